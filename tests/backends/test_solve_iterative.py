"""Conjugate gradients and subspace steps: as the reference defines them, and never raising the loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from once import once
from rounding import rounding
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random
from solving import solve_rows
from steps import (
    OBJECTIVES,
    STEPS,
    longest_problem,
    longest_solution,
    preset_problem,
    preset_solution,
    row_losses,
    solve_by_reference,
)

from wals_gpu import WALS
from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.objective.presets import make_objective
from wals_gpu.objective.terms import RowTerms


@pytest.mark.parametrize(("objective", "parameters"), OBJECTIVES)
@pytest.mark.parametrize("factors", [1, 5, 16, 33, 70])
@pytest.mark.parametrize("with_prior", [False, True])
def test_steps_are_those_of_the_reference(isa, objective, parameters, factors, with_prior):
    terms, other, prior, start = preset_problem(objective, parameters, factors, np.float64)
    prior = prior if with_prior else None
    for steps in STEPS:
        got = start.copy()
        solve_rows(CpuBackend(2), terms, other, got, prior=prior, **steps)
        expected = preset_solution(objective, parameters, factors, np.float64, with_prior=with_prior, **steps)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("objective", "parameters"), OBJECTIVES)
@pytest.mark.parametrize("factors", [7, 64, 130])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_row_loss_ever_rises(isa, objective, parameters, factors, dtype):
    terms, other, prior, start = preset_problem(objective, parameters, factors, dtype, signs=objective == "implicit")
    backend = CpuBackend(2)
    exact = np.zeros_like(start)
    solve_rows(backend, terms, other, exact, prior=prior)
    losses = row_losses(terms, other, prior)
    lowest = losses(exact)
    slack = 1e-5 if dtype == np.float32 else 1e-10
    for steps in STEPS:
        x = start.copy()
        before = losses(x)
        scale = np.abs(before) + np.abs(lowest)
        for _ in range(3):
            solve_rows(backend, terms, other, x, prior=prior, **steps)
            after = losses(x)
            assert np.all(after <= before + slack * scale)
            assert np.all(after >= lowest - slack * scale)
            before = after
        assert after.sum() < losses(start).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_cg_steps_reach_the_exact_solution(isa, dtype):
    terms, other, prior, x = preset_problem("hu", {"regularization": 1.0}, 65, dtype)
    exact = np.zeros_like(x)
    solve_rows(CpuBackend(1), terms, other, exact, prior=prior)
    solve_rows(CpuBackend(1), terms, other, x, prior=prior, solver="cg", cg_steps=200)
    error = np.abs(x - exact).max() / np.abs(exact).max()
    assert error < (1e-4 if dtype == np.float32 else 1e-10)


def test_tolerance_ends_cg_early():
    terms, other, _, start = preset_problem("hu", {}, 33, np.float64)
    loose, all_steps, one = start.copy(), start.copy(), start.copy()
    backend = CpuBackend(1)
    solve_rows(backend, terms, other, loose, solver="cg", cg_steps=50, cg_tolerance=0.9)
    solve_rows(backend, terms, other, all_steps, solver="cg", cg_steps=50)
    solve_rows(backend, terms, other, one, solver="cg", cg_steps=1)
    assert not np.allclose(loose, all_steps)
    assert np.any(np.all(loose == one, axis=1))


@pytest.mark.parametrize("steps", STEPS)
def test_threads_do_not_change_a_bit(steps):
    terms, other, _, start = preset_problem("hu", {}, 48, np.float32)
    results = []
    for threads in (1, 2, 5):
        x = start.copy()
        solve_rows(CpuBackend(threads), terms, other, x, **steps)
        results.append(x)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(("objective", "parameters"), OBJECTIVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [{"solver": "cholesky"}, *STEPS])
def test_loss_of_the_rows_comes_with_the_solve(isa, objective, parameters, dtype, steps):
    """It is the loss at the factors that were written, without constant and without the other side's ridge."""
    for factors in (5, 33):
        terms, other, prior, x = preset_problem(objective, parameters, factors, dtype)
        backend = CpuBackend(2)
        for given in (None, prior):
            got = solve_rows(backend, terms, other, x, prior=given, return_loss=True, **steps)
            expected = backend.loss(terms, x, other, np.zeros(1, dtype), user_prior=given) - terms.target_square
            tolerance = 1e-6 if dtype == np.float32 else 1e-12
            assert got == pytest.approx(expected, rel=tolerance, abs=tolerance * terms.target_square)
    assert solve_rows(backend, terms, other, x, **steps) is None


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("factors", [64, 256])
def test_long_rows(isa, solver, factors):
    """Rows that do not fit the cache, and results that do not depend on threads."""
    terms, other, start = longest_problem(factors)
    expected = longest_solution(factors)
    results = []
    for threads in (1, 2, 5):
        x = start.copy()
        row_loss = solve_rows(CpuBackend(threads), terms, other, x, solver=solver, cg_steps=40, return_loss=True)
        results.append((x, row_loss))
    x, row_loss = results[0]
    np.testing.assert_allclose(x, expected, rtol=1e-7, atol=1e-9)
    assert row_loss == pytest.approx(CpuBackend(1).loss(terms, x, other, np.zeros(1)), rel=1e-12)
    for other_x, other_loss in results[1:]:
        np.testing.assert_array_equal(x, other_x)
        assert row_loss == other_loss


LONG_ROWS = [600, 9_500, 3, 2_000]
LONG = [0, 1, 3]
# How far steps on a copy may end from the reference's, as a share of the way that they go: bfloat16's rounding, which
# moves their size and direction. Up to 0.26 of it was, on all instruction sets; a step less would be 3 to 5 times it.
COPIED = 2**-9


def _long_rows(*, lowest: float = 0.1, ridge: float = 10.0, dtype: type = np.float32):
    """Long rows, a part of the longest beyond what is copied; `lowest`: of the Gram coefficients."""
    rng = np.random.default_rng(0)
    factors, columns = 260, 10_000
    long, longest = 4 * factors * LONG_ROWS[0], 2 * factors * LONG_ROWS[1]  # bytes in the table, of a copy
    assert long > LIMITS.copy_from_bytes and longest > LIMITS.copy_bytes
    row_ptr = np.concatenate([[0], np.cumsum(LONG_ROWS)])
    col_idx = np.concatenate([np.sort(rng.choice(columns, n, replace=False)) for n in LONG_ROWS]).astype(np.int32)
    one = np.ones(1, dtype)
    rhs = (rng.random(len(col_idx)) + 0.5 + lowest).astype(dtype)
    terms = RowTerms(row_ptr, col_idx, rhs, None, -0.5, 0.2 * one, dtype(ridge) * one, one, 0.0)
    other, start = (rng.standard_normal((n, factors)).astype(dtype) for n in (columns, len(LONG_ROWS)))
    other *= (np.arange(1, factors + 1) ** -0.5).astype(dtype)
    other[:, ::37] = 0
    return terms, other, start


@once
def long_row_losses():
    terms, other, _ = _long_rows()
    return row_losses(terms, other, None)


@once
def long_rows_solution(case: dict | None = None, **options):
    return solve_by_reference(*_long_rows(**case or {}), **options)


@pytest.mark.parametrize(
    ("case", "steps", "copied"),
    [
        ({}, 3, True),
        ({}, LIMITS.copy_steps, True),
        ({}, LIMITS.copy_steps + 1, False),  # many steps are for more digits than the copy has
        ({"lowest": -0.1}, 3, False),  # some coefficients are negative
        ({"ridge": 0.05}, 3, False),  # nothing but the ridge holds some directions, and it is too weak to be sure
        ({"dtype": np.float64}, 3, False),
    ],
    ids=str,
)
def test_which_rows_are_copied(isa, case, steps, copied):
    """Steps on a copy (csrc/cpu/row_copy-inl.h) differ from the reference's by its rounding, others by that of T."""
    terms, other, start = _long_rows(**case)
    expected = long_rows_solution(case, solver="cg", cg_steps=steps)
    x = start.copy()
    solve_rows(CpuBackend(2), terms, other, x, solver="cg", cg_steps=steps)
    error = np.abs(x - expected).max(axis=1)
    # Products sum over the entries of a row, and round what is of the size of the start values, up to 150 times that of
    # the result. Of a root of the length, float32 took up to 0.57 on all instruction sets; in float64 the reference,
    # which rounds as well, is off by as much as 1.8.
    growth = 2 if start.dtype == np.float32 else 6
    by_table = np.array([rounding(start.dtype, n, growth) for n in LONG_ROWS]) * np.abs(start).max(axis=1)
    assert error[2] < by_table[2]  # the short row
    if copied:
        assert np.all(error[LONG] > 5 * by_table[LONG])  # 19 to 53 times
        assert np.all(error[LONG] < COPIED * np.abs(start - expected).max(axis=1)[LONG])
    else:
        assert np.all(error[LONG] < by_table[LONG])


@pytest.mark.parametrize("relaxation", [1.0, 1.7])
def test_few_steps_on_copied_rows(isa, relaxation):
    """They lower the loss as far as the reference's, never raise it, and leave the exact solution where it is."""
    terms, other, start = _long_rows()
    how = {"solver": "cg", "cg_steps": 3, "relaxation": relaxation}
    exact = np.zeros_like(start)
    solve_rows(CpuBackend(1), terms, other, exact)
    losses = long_row_losses()
    lowest, first = losses(exact), losses(start)
    x = start.copy()
    row_loss = solve_rows(CpuBackend(1), terms, other, x, return_loss=True, **how)
    expected = long_rows_solution(**how)
    after = losses(x)
    assert np.all(np.abs(x - expected).max(axis=1) < COPIED * np.abs(start - expected).max(axis=1))
    allowed = 1e-4 if relaxation == 1 else 5e-4  # beyond the lowest point of a step the rounding counts more
    assert np.all(after - lowest < losses(expected) - lowest + allowed * (first - lowest))
    assert row_loss == pytest.approx(after.sum(), rel=1e-5)
    x2 = start.copy()
    solve_rows(CpuBackend(3), terms, other, x2, **how)
    np.testing.assert_array_equal(x, x2)
    for _ in range(3 if relaxation == 1 else 12):
        before = after
        solve_rows(CpuBackend(1), terms, other, x, **how)
        after = losses(x)
        assert np.all(after <= before + 1e-6 * np.abs(lowest))
    assert np.all(after < lowest + 1e-3 * (first - lowest))
    stays = exact.copy()
    solve_rows(CpuBackend(1), terms, other, stays, **how)
    assert np.abs(stays - exact).max() < 1e-4 * np.abs(exact).max()
    assert np.all(losses(stays) <= lowest + 1e-6 * np.abs(lowest))
    solve_rows(CpuBackend(1), terms, other, x, solver="cg", cg_steps=100)
    assert np.abs(x - exact).max() < 1e-4 * np.abs(exact).max()


def test_cg_survives_singular_systems():
    """No ridge and fewer entries than factors: there are many minimisers, and CG finds one without dividing by zero."""
    matrix = csr_matrix(np.kron(np.eye(3), np.ones((2, 2))).astype(np.float32))
    terms = make_objective("explicit", regularization=0.0).bind(matrix).user_terms(matrix)
    other = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    for _ in range(5):  # also from where it has converged
        solve_rows(CpuBackend(1), terms, other, x, solver="cg", cg_steps=20)
        np.testing.assert_allclose((x @ other.T)[matrix.nonzero()], 1, atol=1e-4)
    assert np.abs(x).max() < 20


@pytest.mark.parametrize("solver", ["cg", "subspace"])
def test_fit_converges_to_the_loss_of_the_exact_solver(solver):
    matrix = sparse_random(120, 90, density=0.1, format="csr", random_state=3)
    matrix.data[:] = 1
    options = {"factors": 24, "objective": "hu", "alpha": 5.0, "regularization": 2.0, "dtype": "float64"}
    exact = WALS(**options, iterations=200, solver="cholesky").fit(matrix).history_[-1].loss
    model = WALS(**options, iterations=200, solver=solver, block_size=16).fit(matrix)
    losses = [record.loss for record in model.history_]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(losses))
    assert losses[-1] == pytest.approx(exact, rel=1e-3)
