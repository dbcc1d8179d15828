"""Top-k and transposition of the CUDA kernels, run by the emulator, against the definition and the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import SCHEDULES, emulated_backend, needs_kernels
from rounding import rounding
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random

from wals_gpu import reference
from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend

pytestmark = needs_kernels
SEVERAL_SEGMENTS = 3000  # items; few queries then have several lists, which are merged


def excluded_of(queries, items, density=0.3):
    matrix = sparse_random(queries, items, density=density, format="csr", random_state=1)
    matrix.sort_indices()
    return matrix


def run(x, y, k, excluded=None, *, checked=False, schedules=SCHEDULES):
    backend, results = emulated_backend(checked), []
    for schedule in schedules:
        backend.device.kernels.configure(**schedule)
        results.append(backend.topk(x, y, k, excluded))
    backend.device.kernels.configure()
    for ids, scores in results:
        assert ids.tobytes() == results[0][0].tobytes()
        assert scores.tobytes() == results[0][1].tobytes()
    assert results[0][0].dtype == np.int32 and results[0][1].dtype == np.float32
    return results[0]


@pytest.mark.parametrize("queries", [0, 1, 64, 65, 130])
@pytest.mark.parametrize(
    ("items", "factors"), [(1, 3), (5, 1), (127, 16), (128, 31), (129, 64), (SEVERAL_SEGMENTS, 20)]
)
def test_small_integers_agree_exactly(queries, items, factors):
    """Integer factors make scores exact and ties plenty, so ids and scores must agree to the last bit."""
    rng = np.random.default_rng(items * 1000 + queries)
    x = rng.integers(-3, 4, (queries, factors)).astype(np.float32)
    y = rng.integers(-3, 4, (items, factors)).astype(np.float32)
    for k in (1, 10, 101):
        for excluded in (None, excluded_of(queries, items) if queries else csr_matrix((0, items))):
            if queries * items > 100_000 and (k < 101 or excluded is None):
                continue  # the emulator takes seconds for each
            expected = reference.topk(x, y, k, excluded)
            ids, scores = run(x, y, k, excluded, schedules=SCHEDULES[-1:])
            np.testing.assert_array_equal(ids, expected[0])
            np.testing.assert_array_equal(scores, expected[1])


def test_a_thousand_results_same_bits_in_every_schedule():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((3, 100), np.float32), rng.standard_normal((5000, 100), np.float32)
    ids, scores = run(x, y, 1000, excluded_of(3, 5000))
    _, expected = reference.topk(x, y, 1000, excluded_of(3, 5000))
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-5)
    exact = np.take_along_axis(x.astype(np.float64) @ y.T.astype(np.float64), ids.astype(np.int64), 1)
    np.testing.assert_allclose(exact, expected, atol=2e-5)
    assert all(len(set(row)) == 1000 for row in ids.tolist())


def test_lists_are_cut_often():
    """Scores that rise with the item keep every list filling up."""
    items = np.arange(2000, dtype=np.float32)[:, None]
    for k in (1, 10, 300):
        ids, _ = run(np.ones((70, 1), np.float32), items, k, schedules=SCHEDULES[-1:])
        np.testing.assert_array_equal(ids, np.tile(np.arange(1999, 1999 - k, -1), (70, 1)))


def test_equal_scores_come_in_order_of_the_items():
    ids, _ = run(np.ones((5, 4), np.float32), np.ones((2500, 4), np.float32), 700)
    np.testing.assert_array_equal(ids, np.tile(np.arange(700), (5, 1)))
    zeros = np.where(np.arange(300) % 2, -0.0, 0.0).astype(np.float32)[:, None]  # -0 and 0 are equal
    ids, _ = run(np.ones((1, 1), np.float32), zeros, 300)
    np.testing.assert_array_equal(ids[0], np.arange(300))


def test_rows_of_any_size():
    """The smallest query and the smallest item are as exact as the largest."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 40), np.float32), rng.standard_normal((400, 40), np.float32)
    x *= np.array([1e-12, 1e-3, 1, 1e12], np.float32)[:, None]
    y *= np.float32(10) ** rng.integers(-3, 4, (400, 1)).astype(np.float32)
    ids, scores = run(x, y, 50, schedules=SCHEDULES[-1:])
    expected_ids, expected = reference.topk(x, y, 50)
    np.testing.assert_array_equal(ids, expected_ids)
    size = np.take_along_axis(np.abs(x).astype(float) @ np.abs(y).astype(float).T, ids.astype(np.int64), 1)
    np.testing.assert_array_less(np.abs(scores - expected), rounding(np.float32, 40) * size)  # sums of 40 products


def test_infinite_and_nan_scores_do_not_crash():
    items = np.array([[1.0], [np.nan], [-np.inf], [np.inf], [2.0]], np.float32)
    ids, scores = run(np.ones((6, 1), np.float32), items, 4)
    np.testing.assert_array_equal(ids[:, :2], np.tile([4, 0], (6, 1))) if ids[0, 0] == 4 else None
    assert not np.isnan(scores).any()
    assert 4 in ids[0] and 0 in ids[0] and 1 not in ids[0]


def test_fewer_left_than_asked_for_and_more_than_possible():
    excluded = csr_matrix(np.array([[1, 0, 1], [1, 1, 1]]))
    items = np.array([[1.0, 1], [2, 2], [3, 3]], np.float32)
    ids, scores = run(np.ones((2, 2), np.float32), items, 2, excluded)
    np.testing.assert_array_equal(ids, [[1, -1], [-1, -1]])
    np.testing.assert_array_equal(scores, [[4, -np.inf], [-np.inf, -np.inf]])
    assert run(np.ones((2, 2), np.float32), items, 5000)[0].shape == (2, 5000)  # three items are at most three results
    most = LIMITS.most_results
    with pytest.raises(ValueError, match=f"k must be at most {most} on a CUDA device, got {most + 1}"):
        emulated_backend().topk(np.ones((1, 1), np.float32), np.ones((2 * most, 1), np.float32), most + 1)


def test_queries_in_parts():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((150, 8), np.float32), rng.standard_normal((300, 8), np.float32)
    excluded = excluded_of(150, 300)
    small = emulated_backend(memory_limit=1)
    for found, expected in zip(small.topk(x, y, 7, excluded), run(x, y, 7, excluded), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 1])
def test_lists_for_everybody_and_norms(share):
    rng = np.random.default_rng(4)
    x = rng.integers(-2, 3, (9, 8)).astype(np.float32)
    y = rng.integers(-2, 3, (300, 8)).astype(np.float32)
    permitted, norms = rng.random(300) < share, (2.0 ** rng.integers(-2, 3, 300)).astype(np.float32)
    own = excluded_of(9, 300)
    mask = np.tile(~permitted, (9, 1))
    for excluded, hidden in ((None, mask), (own, mask | own.toarray().astype(bool))):
        for divided, options in ((y, {}), (y / norms[:, None], {"norms": norms})):
            found = emulated_backend().topk(x, y, 20, excluded, permitted=permitted, **options)
            expected = reference.topk(x, divided, 20, csr_matrix(hidden))
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    found, expected = emulated_backend().topk(x, y, 20, norms=norms), reference.topk(x, y / norms[:, None], 20)
    np.testing.assert_array_equal(found[0], expected[0])


def test_listed_items_are_scored_on_the_host():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 8), np.float32), rng.standard_normal((30, 8), np.float32)
    listed, cpu, cuda = excluded_of(5, 30), CpuBackend(1), emulated_backend()
    np.testing.assert_array_equal(cuda.score_entries(x, y, listed), cpu.score_entries(x, y, listed))
    np.testing.assert_array_equal(cuda.topk_listed(x, y, 3, listed)[0], cpu.topk_listed(x, y, 3, listed)[0])


@pytest.mark.parametrize("schedule", SCHEDULES[:: len(SCHEDULES) - 1], ids=str)
def test_checked(schedule):
    rng = np.random.default_rng(3)
    x = rng.integers(-2, 3, (66, 20)).astype(np.float32)
    y = rng.integers(-2, 3, (600, 20)).astype(np.float32)
    excluded = excluded_of(66, 600)
    ids, scores = run(x, y, 20, excluded, checked=True, schedules=[schedule])
    expected = reference.topk(x, y, 20, excluded)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_transposition_is_the_hosts():
    matrix = sparse_random(9, 8, density=0.4, format="csr", dtype=np.float32, random_state=1)
    found, expected = emulated_backend().transpose(matrix), CpuBackend(1).transpose(matrix)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
