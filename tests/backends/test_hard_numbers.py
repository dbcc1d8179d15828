"""The table of hard cases: accurate, or an error that says what to do; never NaN, never a step that raises the loss."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hard_cases import CASES, OVERFLOW, SINGULAR, SOLVERS, backward_bound, backward_error, solve
from solving import solve_rows

from wals_gpu import WALS, ModelFitError, SingularSystemError
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.objective.terms import RowTerms


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("title", CASES)
def test_hard_case(title, solver, dtype, isa):
    result, rise = solve(title, dtype, solver)
    if title in SINGULAR and solver != "cg":  # from a start, CG finds a minimum where there are many
        assert result == "SingularSystemError"
    elif title in OVERFLOW and dtype == "float64":
        assert result == "ModelFitError"
    else:
        assert result <= backward_bound(title, solver, dtype)
        assert rise <= 10 * np.finfo(dtype).eps


def test_the_measure_sees_an_error():
    a, b, x = np.diag([1.0, 1e-8]), np.array([1.0, 1e-8]), np.ones(2)
    off = np.array([1e-5, 0])
    assert backward_error(x, (a, b)) == 0
    expected = pytest.approx(1e-5 / (np.sqrt(2) + 1), rel=1e-4)  # |A| = 1, |x| = sqrt 2 and |b| = 1, but for 1e-5
    assert backward_error(x + off, (a, b)) == expected
    for scale in (1e-300, 1e300):
        assert backward_error(x + off, (a * scale, b * scale)) == expected
        assert backward_error(scale * (x + off), (a, b * scale)) == expected


PLAYS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ridge", [0, 1e-38, 1e-30, 1e-20, 1e-12])
def test_more_factors_than_rows_without_ridge(solver, dtype, ridge):
    """Exact solvers name the row and the remedy; CG does not walk off along what no data determine."""
    model = WALS(16, "implicit", regularization=ridge, solver=solver, block_size=16, iterations=10, dtype=dtype)
    if solver == "cg":
        model.fit(PLAYS)
        assert max(abs(model.user_factors).max(), abs(model.item_factors).max()) < 1000
        assert all(abs(record.loss) <= 1e-4 for record in model.history_)  # it fits all data; at first it is 6
    elif ridge == 0:
        with pytest.raises(SingularSystemError, match=r"user 0 is not positive definite; increase the regularization"):
            model.fit(PLAYS)
    else:
        with contextlib.suppress(SingularSystemError):
            model.fit(PLAYS)
        assert np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("factors", "items"), [(11, 10), (12, 10), (16, 15), (33, 32), (64, 60)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_directions_without_data_are_not_filled_with_rounding(factors, items, dtype, seed):
    """Whether rounding makes such a direction's pivot positive is chance: none may pass."""
    y = np.random.default_rng(seed).standard_normal((items, factors)).astype(dtype)
    one = np.ones(1, dtype)
    every = np.arange(items, dtype=np.int32)
    terms = RowTerms(np.array([0, items]), every, one, one, 0.0, one, 0 * one, one, 0.0)
    for solver in ("cholesky", "subspace"):
        with pytest.raises(SingularSystemError):
            solve_rows(CpuBackend(1), terms, y, np.zeros((1, factors), dtype), solver=solver, block_size=16)
    x = np.zeros((1, factors), dtype)
    solve_rows(CpuBackend(1), terms, y, x, solver="cg", cg_steps=20)
    assert abs(x).max() < 100  # 1e14 with rounding followed


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("alpha", "regularization"), [(1e-8, 1e-8), (1e8, 1e-8), (1e8, 1e8), (1e-8, 1e8), (1e30, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_parameters(solver, alpha, regularization, dtype):
    """Factors are finite and the loss falls, or an error says what to change."""
    rng = np.random.default_rng(0)
    plays = (rng.random((40, 30)) < 0.2) * 10.0 ** rng.uniform(-4, 4, (40, 30))
    settings = {"alpha": alpha, "regularization": regularization, "iterations": 15}
    model = WALS(16, "implicit", **settings, solver=solver, block_size=16, dtype=dtype)
    try:
        model.fit(plays)
    except (SingularSystemError, ModelFitError) as error:
        assert "regularization" in str(error)
        return
    assert np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()
    losses = np.array([record.loss for record in model.history_])
    assert np.isfinite(losses).all()
    # The loss is a difference of numbers of the size of the targets' squares, alpha times their sum.
    slack = np.finfo(dtype).eps * (100 * alpha * plays.sum() + 1e-2 * abs(losses).max())
    assert np.all(np.diff(losses) <= slack)


def test_values_that_no_float32_holds_are_refused_by_name():
    with pytest.raises(ValueError, match=r"coefficients too large for float32"):
        WALS(4, "implicit", alpha=1e20).fit(PLAYS * 1e20)
    model = WALS(4, "implicit", alpha=1e20, regularization=1e30, dtype="float64").fit(PLAYS * 1e20)
    assert np.isfinite(model.user_factors).all()
