"""Regressions of items on their nearest items: native against the reference, on awkward matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import _cpu, reference
from wals_gpu.backends.cpu import CpuBackend

DTYPES = [np.float32, np.float64]


def pattern(rng: np.random.Generator, users: int, items: int, density: float) -> csr_matrix:
    """Entries of any value; popular items have more of them."""
    share = np.minimum(1, density * 2 * rng.random(items) / max(rng.random(), 0.3))
    matrix = csr_matrix(np.where(rng.random((users, items)) < share, rng.integers(1, 6, (users, items)), 0))
    return matrix.astype(np.float32)


def exact_weights(rng: np.random.Generator, users: int, dtype: type) -> np.ndarray:
    """Powers of two: sums of them are exact, and equal cosines are equal numbers."""
    return (2.0 ** rng.integers(-2, 3, users)).astype(dtype)


def assert_same(found, expected, dtype):
    ids, weights = found
    np.testing.assert_array_equal(ids, expected[0])
    assert ids.dtype == np.int32
    assert weights.dtype == dtype
    tolerance = {np.float32: 2e-5, np.float64: 1e-10}[dtype] * max(1, np.abs(expected[1]).max(initial=0))
    np.testing.assert_allclose(weights, expected[1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("users", "items", "density", "m"),
    [
        (200, 90, 0.1, 10),
        (200, 90, 0.1, 200),  # more than there are items
        (1, 30, 0.5, 7),
        (40, 1, 0.5, 3),
        (60, 2, 0.5, 1),
        (50, 300, 0.02, 17),
        (30, 5000, 0.003, 40),  # short rows, items without users
        (500, 130, 0.3, 129),
        (400, 33, 0.6, 32),
        (0, 5, 0.5, 2),
    ],
)
def test_the_reference_is_met(isa, dtype, users, items, density, m):
    rng = np.random.default_rng(users + items)
    matrix, weights = pattern(rng, users, items, density), exact_weights(rng, users, dtype)
    expected = reference.neighbors(matrix, weights, m, 3.0)
    if items > 2 and users > 1:
        assert (expected[0] >= 0).any()
    for threads in (1, 3):
        assert_same(CpuBackend(threads).fit_neighbors(matrix, weights, m, 3.0), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_users_with_all_items_and_items_without_users(isa, dtype):
    rng = np.random.default_rng(1)
    dense = rng.random((80, 60)) < 0.15
    dense[[3, 40]] = True
    dense[:, 17] = True
    dense[:, [5, 59]] = False
    dense[7] = False
    matrix, weights = csr_matrix(dense.astype(np.float32)), exact_weights(rng, 80, dtype)
    weights[11] = 0
    for m in (4, 59):
        found = CpuBackend(2).fit_neighbors(matrix, weights, m, 1.0)
        assert_same(found, reference.neighbors(matrix, weights, m, 1.0), dtype)
        assert (found[0][[5, 59]] == -1).all()
        assert not found[1][[5, 59]].any()
        assert not (found[0] == np.arange(60)[:, None]).any()


def test_users_of_no_weight_make_no_neighbours(isa):
    matrix = csr_matrix(np.array([[1, 1, 0], [0, 1, 1]], np.float32))
    ids, _ = CpuBackend(1).fit_neighbors(matrix, np.array([0, 1], np.float32), 2, 1.0)
    np.testing.assert_array_equal(ids, [[-1, -1], [2, -1], [1, -1]])


@pytest.mark.parametrize("ridge", [1.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_twice(isa, dtype, ridge):
    """Equal columns share their weight; without a ridge their system is singular, and the result still a solution."""
    rng = np.random.default_rng(2)
    dense = rng.random((300, 40)) < 0.2
    dense[:, 20:] = dense[:, :20]
    matrix, weights = csr_matrix(dense.astype(np.float32)), exact_weights(rng, 300, dtype)
    ids, found = CpuBackend(1).fit_neighbors(matrix, weights, 39, ridge)
    expected = reference.neighbors(matrix, weights, 39, ridge)
    if ridge:
        assert_same((ids, found), expected, dtype)
        return
    np.testing.assert_array_equal(ids, expected[0])
    assert np.isfinite(found).all()
    table = dense.astype(float)
    for i in range(40):
        np.testing.assert_allclose(table[:, ids[i]] @ found[i], table[:, i], atol=1e-3)  # its twin is there


def test_ties_go_to_the_lower_number(isa):
    """All items of one user are equally near."""
    matrix = csr_matrix(np.ones((1, 30), np.float32))
    ids, weights = CpuBackend(1).fit_neighbors(matrix, np.ones(1, np.float32), 4, 1.0)
    np.testing.assert_array_equal(ids[10], [0, 1, 2, 3])
    np.testing.assert_array_equal(ids[2], [0, 1, 3, 4])
    np.testing.assert_allclose(weights, 1 / 5, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_threads_nor_memory_change_a_bit(isa, dtype):
    rng = np.random.default_rng(3)
    matrix = pattern(rng, 300, 700, 0.05)
    weights = rng.random(300).astype(dtype)
    expected = CpuBackend(1).fit_neighbors(matrix, weights, 25, 0.7)
    for threads in (1, 2, 5):
        backend = CpuBackend(threads)
        least, most = backend.neighbor_memory(700, 25, dtype)
        assert least < most
        for memory in (None, least, (least + most) // 2):
            ids, found = backend.fit_neighbors(matrix, weights, 25, 0.7, memory=memory)
            np.testing.assert_array_equal(ids, expected[0])
            assert found.tobytes() == expected[1].tobytes()


def test_the_transposed_matrix_may_be_given():
    rng = np.random.default_rng(4)
    matrix, weights = pattern(rng, 50, 40, 0.2), np.ones(50, np.float32)
    backend = CpuBackend(1)
    expected = backend.fit_neighbors(matrix, weights, 5, 1.0)
    found = backend.fit_neighbors(matrix, weights, 5, 1.0, transposed=backend.transpose(matrix))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"user_weights": [1.0] * 6}, TypeError, "user_weights must be a float32 or float64 array"),
        ({"user_weights": np.ones(6, int)}, TypeError, "user_weights must be a float32 or float64 array"),
        ({"user_weights": np.ones(5, np.float32)}, ValueError, r"user_weights must have shape \(U=6,\), got \(5,\)"),
        ({"user_weights": np.full(6, np.nan)}, ValueError, "user_weights must be finite"),
        ({"user_weights": -np.ones(6)}, ValueError, "user_weights must be finite and at least 0"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
        ({"ridge": -1.0}, ValueError, "ridge must be a finite number of at least 0"),
        ({"ridge": np.nan}, ValueError, "ridge must be a finite number of at least 0"),
        ({"transposed": csr_matrix((6, 4))}, ValueError, r"transposed must be \(4, 6\)"),
        ({"memory": 1000}, MemoryError, "3 neighbours of 4 items take"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"user_weights": np.ones(6, np.float32), "n_neighbors": 3, "ridge": 1.0} | changes
    with pytest.raises(error, match=message):
        CpuBackend(1).fit_neighbors(csr_matrix(np.eye(6, 4, dtype=np.float32)), **arguments)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, np.array([0, 2, 4]), "row_ptr and columns do not fit"),
        (0, np.array([0, 3, 2, 3]), "row_ptr and columns do not fit"),
        (1, np.array([0, 2, 5], np.int32), "index outside"),
        (1, np.array([0, -1, 1], np.int32), "index outside"),
        (3, np.array([0, 1, 2], np.int32), "index outside"),
        (4, np.ones(3, np.float32), "one for each user"),
        (5, 0, "n_neighbors must be at least 1"),
        (8, 0, "n_threads must be at least 1"),
    ],
)
def test_what_would_leave_an_array_is_refused(at, value, message):
    arguments = [
        np.array([0, 2, 3]), np.array([0, 2, 1], np.int32),
        np.array([0, 1, 2, 3]), np.array([0, 1, 0], np.int32),
        np.ones(2, np.float32), 2, 1.0, 1 << 30, 1,
    ]  # fmt: skip
    _cpu.fit_neighbors(*arguments)
    arguments[at] = value
    with pytest.raises(ValueError, match=message):
        _cpu.fit_neighbors(*arguments)
