"""Native top-k against the reference: same items, same order, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random

from wals_gpu import _cpu, reference
from wals_gpu.backends.cpu import CpuBackend

DTYPES = [np.float32, np.float64]


def _excluded(rng: np.random.Generator, queries: int, items: int, density: float) -> csr_matrix:
    matrix = sparse_random(queries, items, density=density, format="csr", random_state=rng)
    matrix.sort_indices()
    return matrix


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [0, 1, 2, 3, 4, 5, 9, 300])
@pytest.mark.parametrize(("items", "factors"), [(1, 3), (5, 1), (47, 8), (48, 16), (49, 31), (100, 17), (9000, 20)])
def test_small_integers_agree_exactly(isa, dtype, queries, items, factors):
    """Integer factors make scores exact and ties plenty, so ids and scores must agree to the last bit."""
    rng = np.random.default_rng(items * 1000 + queries)
    x = rng.integers(-3, 4, (queries, factors)).astype(dtype)
    y = rng.integers(-3, 4, (items, factors)).astype(dtype)
    for k in (1, 10, 101):
        for excluded in (None, _excluded(rng, queries, items, 0.3) if queries else csr_matrix((0, items))):
            expected = reference.topk(x, y, k, excluded)
            for threads in (1, 3):
                ids, scores = CpuBackend(threads).topk(x, y, k, excluded)
                assert ids.dtype == np.int32
                assert scores.dtype == dtype
                np.testing.assert_array_equal(ids, expected[0])
                np.testing.assert_array_equal(scores, expected[1])


def test_random_factors(isa):
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((70, 100), dtype=np.float32), rng.standard_normal((3000, 100), dtype=np.float32)
    ids, scores = CpuBackend(2).topk(x, y, 1000)
    expected_ids, expected = reference.topk(x, y, 1000)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
    # Where the order differs, the scores are equal to rounding: each list is right for its own scores.
    exact = np.take_along_axis(x.astype(np.float64) @ y.T.astype(np.float64), ids.astype(np.int64), 1)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    assert (ids == expected_ids).mean() > 0.99
    assert all(len(set(row)) == 1000 for row in ids.tolist())


def test_equal_scores_come_in_order_of_the_items(isa):
    ids, _ = CpuBackend(2).topk(np.ones((5, 4), np.float32), np.ones((500, 4), np.float32), 130)
    np.testing.assert_array_equal(ids, np.tile(np.arange(130), (5, 1)))


def test_fewer_left_than_asked_for():
    excluded = csr_matrix(np.array([[1, 0, 1], [1, 1, 1]]))
    ids, scores = CpuBackend(1).topk(np.ones((2, 2)), np.array([[1.0, 1], [2, 2], [3, 3]]), 2, excluded)
    np.testing.assert_array_equal(ids, [[1, -1], [-1, -1]])
    np.testing.assert_array_equal(scores, [[4, -np.inf], [-np.inf, -np.inf]])


def test_infinite_and_nan_scores_do_not_crash(isa):
    items = np.array([[1.0], [np.nan], [-np.inf], [np.inf], [2.0]], np.float32)
    for queries in (1, 6):
        ids, scores = CpuBackend(1).topk(np.ones((queries, 1), np.float32), items, 4)
        np.testing.assert_array_equal(ids[:, :3], np.tile([3, 4, 0], (queries, 1)))
        assert not np.isnan(scores).any()


def test_binding_refuses_what_does_not_fit():
    x, y = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="queries"):
        _cpu.topk(x, y[:, :2].copy(), 1, None, None, 1)
    with pytest.raises(ValueError, match="excluded"):
        _cpu.topk(x, y, 1, np.array([0, 1]), np.array([0], np.int32), 1)
    with pytest.raises(ValueError, match="excluded"):
        _cpu.topk(x, y, 1, np.array([0, 5, 9]), np.array([0], np.int32), 1)
    with pytest.raises(ValueError, match="k must"):
        _cpu.topk(x, y, 0, None, None, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("items", "factors"), [(1, 3), (5, 1), (48, 16), (49, 31), (100, 32), (900, 70)])
def test_listed_items_only(isa, dtype, items, factors):
    """Allow lists: the same as excluding everything else, and the bits of score_entries."""
    rng = np.random.default_rng(items)
    x, y = rng.integers(-3, 4, (45, factors)).astype(dtype), rng.integers(-3, 4, (items, factors)).astype(dtype)
    chosen = rng.random((45, items)) < 0.4
    chosen[7] = False
    listed, excluded = csr_matrix(chosen), csr_matrix(~chosen)
    for k in (1, 3, 50):
        expected = reference.topk(x, y, k, excluded)
        for threads in (1, 3):
            ids, scores = CpuBackend(threads).topk_listed(x, y, k, listed)
            assert ids.dtype == np.int32 and scores.dtype == dtype
            np.testing.assert_array_equal(ids, expected[0])
            np.testing.assert_array_equal(scores, expected[1])
    rows = np.repeat(np.arange(45), np.diff(listed.indptr))
    scores = CpuBackend(2).score_entries(x, y, listed)
    np.testing.assert_array_equal(scores, (x[rows] * y[listed.indices]).sum(axis=1))
    assert scores.dtype == dtype


def test_a_pair_has_one_score_in_every_list(isa):
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((20, 100), dtype=np.float32), rng.standard_normal((300, 100), dtype=np.float32)
    full = csr_matrix(np.ones((20, 300), bool))
    scores = CpuBackend(2).score_entries(x, y, full).reshape(20, 300)
    np.testing.assert_allclose(scores, x.astype(float) @ y.T.astype(float), atol=1e-4)
    one = csr_matrix(([True], ([4], [123])), shape=(20, 300))
    assert CpuBackend(1).score_entries(x, y, one) == scores[4, 123]
    ids, best = CpuBackend(2).topk_listed(x, y, 300, full)
    assert (np.take_along_axis(scores, ids.astype(int), 1) == best).all()


def test_listed_scores_that_are_no_numbers_are_left_out(isa):
    items = np.array([[1.0], [np.nan], [-np.inf], [np.inf], [2.0]], np.float32)
    ids, scores = CpuBackend(1).topk_listed(np.ones((2, 1)), items, 4, csr_matrix(np.ones((2, 5))))
    np.testing.assert_array_equal(ids, np.tile([3, 4, 0, -1], (2, 1)))
    np.testing.assert_array_equal(scores, np.tile([np.inf, 2, 1, -np.inf], (2, 1)).astype(np.float32))


def test_binding_of_listed_items_refuses_what_does_not_fit():
    x, y = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    one = np.array([0], np.int32)
    for call in (lambda *a: _cpu.topk_listed(*a[:2], 1, *a[2:], 1), lambda *a: _cpu.score_entries(*a, 1)):
        with pytest.raises(ValueError, match="queries"):
            call(x, y[:, :2].copy(), np.array([0, 1, 1]), one)
        for row_ptr in ([0, 1], [0, 2, 2], [1, 1, 1], [0, 2, 1], [0, 0, 0]):
            with pytest.raises(ValueError, match="listed"):
                call(x, y, np.array(row_ptr), one)
        for bad in (-1, 4):
            with pytest.raises(ValueError, match="outside the items"):
                call(x, y, np.array([0, 1, 1]), np.array([bad], np.int32))
    with pytest.raises(ValueError, match="k must"):
        _cpu.topk_listed(x, y, 0, np.array([0, 0, 0]), one[:0], 1)
