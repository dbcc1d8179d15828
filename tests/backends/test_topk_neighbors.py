"""Native top-k with what histories add to scores, against the reference: ties included, whatever is passed over."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random

from wals_gpu import _cpu, reference
from wals_gpu.backends import NeighborBackend
from wals_gpu.backends.cpu import CpuBackend

DTYPES = [np.float32, np.float64]


def sparse(rng: np.random.Generator, rows: int, columns: int, density: float, values=(1, 2, 3)) -> csr_matrix:
    """Small integers."""
    matrix = sparse_random(rows, columns, density, "csr", random_state=rng)
    matrix.data = rng.choice(values, matrix.nnz).astype(float)
    matrix.sort_indices()
    return matrix


def topk(
    x, y, k, history, neighbors, *, threads=1, filter=True, excluded=None, permitted=None, norms=None, prepared=None
):
    """ids, scores and the number of pairs scored."""
    where = (None, None) if excluded is None else (excluded.indptr.astype(np.int64), excluded.indices)
    weighted = [
        (each.indptr.astype(np.int64), each.indices.astype(np.int32), each.data.astype(y.dtype))
        for each in (history, neighbors)
    ]
    return _cpu.topk(x, y, k, *where, threads, filter, permitted, norms, *weighted, prepared)


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1].tobytes() == expected[1].tobytes()


@pytest.fixture(scope="module")
def of_integers():
    """Factors, histories and neighbours that are small integers, and lists by definition: once for all."""

    @functools.cache
    def make(queries, items, factors):
        rng = np.random.default_rng(items * 1000 + queries)
        x, y = (rng.integers(-3, 4, (n, factors)) for n in (queries, items))
        n = 40
        history = sparse(rng, queries, n, 0.2) if queries else csr_matrix((0, n))
        neighbors = sparse(rng, n, items, min(1, 200 / items), (-9, -2, 1, 3, 15))
        own = sparse(rng, queries, items, 0.3) if queries else csr_matrix((0, items))
        scale = 2.0 ** rng.integers(-3, 4, items)
        cases = []
        for permitted in (None, rng.random(items) < 0.4, rng.random(items) < 0.8):
            for excluded, by in ((None, None), (own, None), (own, scale)):
                mask = np.zeros((queries, items), bool) if excluded is None else excluded.toarray() != 0
                mask |= np.zeros(items, bool) if permitted is None else ~permitted
                ids, scores = reference.topk_neighbors(
                    x, y, 101, history, neighbors, csr_matrix(mask), scale=1.0 if by is None else by
                )
                cases.append((excluded, permitted, by, ids, scores))
        return x, y, history, neighbors, cases

    return make


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("queries", [0, 1, 2, 3, 4, 9, 100])
@pytest.mark.parametrize(("items", "factors"), [(1, 3), (5, 1), (49, 31), (100, 17), (4000, 20)])
def test_small_integers_agree_exactly(topk_isa, dtype, queries, items, factors, of_integers):
    """Integers make scores exact and ties plenty, so ids and scores must agree to the last bit."""
    x, y, history, neighbors, cases = of_integers(queries, items, factors)
    x, y = x.astype(dtype), y.astype(dtype)
    prepared = CpuBackend(1).prepare(y)
    for excluded, permitted, scale, *expected in cases:
        for k in (1, 10, 101):
            for threads, ready in ((1, None), (3, None), (1, prepared)):
                options = {"permitted": permitted, "scale": scale, "prepared": ready}
                ids, scores = CpuBackend(threads).topk_neighbors(x, y, k, history, neighbors, excluded, **options)
                assert ids.dtype == np.int32
                assert scores.dtype == dtype
                np.testing.assert_array_equal(ids, expected[0][:, :k])
                np.testing.assert_array_equal(scores, expected[1][:, :k])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [7, 64])
@pytest.mark.parametrize("strength", [1e-4, 0.3, 30.0, 1e6])
def test_what_is_passed_over_changes_no_bit(topk_isa, dtype, factors, strength):
    """Filters, guesses, threads and the number of queries: the same lists, however large what is added is."""
    rng = np.random.default_rng(factors)
    x = rng.standard_normal((150, factors)).astype(dtype)
    y = (rng.standard_normal((6000, factors)) * rng.lognormal(0, 1, (6000, 1))).astype(dtype)
    history = sparse(rng, 150, 300, 0.1, (0.5, 1.0))
    neighbors = sparse(rng, 300, 6000, 0.02, rng.standard_normal(100) * strength)
    norms = rng.uniform(0.5, 2, len(y)).astype(dtype)
    some = rng.random(len(y)) < 0.4
    for k in (10, 300):
        for permitted, by in ((None, None), (some, None), (some, norms)):
            options = {"permitted": permitted, "norms": by}
            prepared = _cpu.prepare_items(y, by, 1)
            plain = topk(x, y, k, history, neighbors, filter=False, **options)
            for threads in (1, 2):
                assert_same_bits(topk(x, y, k, history, neighbors, threads=threads, **options), plain)
            for n in (1, 2, 3, 40):
                for threads, ready in ((1, None), (4, None), (1, prepared), (2, prepared)):
                    few = topk(x[:n], y, k, history[:n], neighbors, threads=threads, prepared=ready, **options)
                    assert_same_bits(few, (plain[0][:n], plain[1][:n]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_the_definition(topk_isa, dtype):
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((n, 33)).astype(dtype) for n in (70, 3000))
    history, neighbors = sparse(rng, 70, 3000, 0.01), sparse(rng, 3000, 3000, 0.01, rng.standard_normal(50))
    scale = rng.uniform(0.5, 2, 3000).astype(dtype)
    excluded = sparse(rng, 70, 3000, 0.05)
    ids, scores = CpuBackend(1).topk_neighbors(x, y, 20, history, neighbors, excluded, scale=scale)
    expected = reference.topk_neighbors(x, y, 20, history, neighbors, excluded, scale=scale)
    np.testing.assert_allclose(scores, expected[1], rtol=1e-4 if dtype == np.float32 else 1e-12)
    assert (ids == expected[0]).mean() > 0.99


def test_the_filter_is_at_work(topk_isa):
    """Where what is added rules most items out, few pairs are scored."""
    if topk_isa not in ("amx", "avx512vnni"):
        pytest.skip("this instruction set has no filter")
    rng = np.random.default_rng(6)
    x, y = (rng.standard_normal((n, 64)).astype(np.float32) for n in (64, 20_000))
    history, neighbors = sparse(rng, 64, 500, 0.1), sparse(rng, 500, 20_000, 0.01, (3.0, 5.0))
    scored = topk(x, y, 10, history, neighbors)[2]
    assert scored < 0.2 * 64 * 20_000


def test_no_history_is_plain_top_k(topk_isa):
    rng = np.random.default_rng(7)
    x, y = (rng.standard_normal((n, 20)).astype(np.float32) for n in (50, 900))
    found = CpuBackend(2).topk_neighbors(x, y, 9, csr_matrix((50, 900)), csr_matrix((900, 900)))
    assert_same_bits(found, CpuBackend(2).topk(x, y, 9))


def test_the_backend_says_that_it_can():
    assert isinstance(CpuBackend(1), NeighborBackend)


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("matrix", "part", "value"),
    [
        ("history", 1, np.array([0, 7], np.int32)),
        ("history", 1, np.array([-1, 2], np.int32)),
        ("neighbors", 1, np.array([0, 5000], np.int32)),
        ("neighbors", 1, np.array([0, -3], np.int32)),
        ("neighbors", 0, np.array([0, 5, 1, 2])),
        ("neighbors", 0, np.array([-4, 1, 1, 2])),
    ],
)
def test_what_would_leave_an_array_is_refused(queries, threads, matrix, part, value):
    history_ptr = np.full(queries + 1, 2)
    history_ptr[0] = 0
    arguments = {
        "history": [history_ptr, np.array([0, 2], np.int32), np.ones(2, np.float32)],
        "neighbors": [np.array([0, 1, 1, 2]), np.array([0, 4999], np.int32), np.ones(2, np.float32)],
    }
    x, y = np.ones((queries, 4), np.float32), np.ones((5000, 4), np.float32)

    def call():
        return _cpu.topk(x, y, 3, None, None, threads, True, None, None, *(tuple(a) for a in arguments.values()))

    call()
    arguments[matrix][part] = value
    with pytest.raises(ValueError, match="index outside"):
        call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": csr_matrix((2, 7))}, r"shapes \(B=3, n\) and \(n, I=9\), got \(2, 7\) and \(7, 9\)"),
        ({"history": csr_matrix((3, 6))}, "history and neighbors must have shapes"),
        ({"neighbors": csr_matrix((7, 8))}, "history and neighbors must have shapes"),
        ({"scale": np.ones(8)}, r"scale must have shape \(I=9,\), got \(8,\)"),
        ({"scale": np.zeros(9)}, "scale must be positive"),
        ({"scale": -np.ones(9)}, "scale must be positive"),
        ({"scale": np.full(9, np.inf)}, "scale must be positive"),
        ({"scale": np.full(9, np.nan)}, "scale must be positive"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {"history": csr_matrix((3, 7)), "neighbors": csr_matrix((7, 9))} | changes
    with pytest.raises(ValueError, match=message):
        CpuBackend(1).topk_neighbors(np.ones((3, 2), np.float32), np.ones((9, 2), np.float32), 2, **arguments)
