"""Over-relaxed sweeps: as the reference defines them, with the loss of what was written, and never raising it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from checkpointing import Stop, interrupt_at, make_likes, same_course
from emulated_cuda import emulated_backend, needs_kernels
from scipy.sparse import csr_matrix
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

from wals_gpu import WALS, reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.solve import SolveSizes
from wals_gpu.objective.presets import make_objective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import LinearPrior

SOLVERS = [{"solver": "cholesky"}, *STEPS]


@pytest.mark.parametrize(("objective", "parameters"), OBJECTIVES)
@pytest.mark.parametrize("factors", [1, 5, 16, 33, 70])
@pytest.mark.parametrize("with_prior", [False, True])
def test_rows_go_as_far_as_the_reference_says(isa, objective, parameters, factors, with_prior):
    terms, other, prior, start = preset_problem(objective, parameters, factors, np.float64)
    prior = prior if with_prior else None
    for how in SOLVERS:
        for relaxation in (0.5, 1.7):
            got = start.copy()
            solve_rows(CpuBackend(2), terms, other, got, prior=prior, relaxation=relaxation, **how)
            expected = preset_solution(
                objective, parameters, factors, np.float64, with_prior=with_prior, relaxation=relaxation, **how
            )
            np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9)
            empty = np.diff(terms.row_ptr) == 0
            exact = preset_solution(objective, parameters, factors, np.float64, with_prior=with_prior)
            assert empty.any()
            np.testing.assert_allclose(got[empty], exact[empty], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("objective", "parameters"), OBJECTIVES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_is_that_of_what_was_written_and_never_rises(isa, objective, parameters, dtype):
    tolerance = 2e-6 if dtype == np.float32 else 1e-12
    for factors in (5, 33, 64):
        terms, other, prior, start = preset_problem(objective, parameters, factors, dtype)
        losses = row_losses(terms, other, prior)
        for how in SOLVERS:
            for relaxation in (0.3, 1.5, 1.99):
                x = start.copy()
                before = losses(x)
                size = np.abs(before) + terms.target_square / len(before)
                for _ in range(3):
                    got = solve_rows(
                        CpuBackend(2), terms, other, x, prior=prior, relaxation=relaxation, return_loss=True, **how
                    )
                    after = losses(x)
                    constant = (terms.ridge.astype(float) * (prior.astype(float) ** 2).sum(axis=1)).sum()
                    assert got == pytest.approx(after.sum() + constant, rel=tolerance, abs=tolerance * size.sum())
                    assert np.all(after <= before + tolerance * 20 * size)
                    before = after


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("factors", [64, 256])
def test_giant_rows_and_long_ones_with_any_number_of_threads(isa, solver, factors):
    terms, other, start = longest_problem(factors)
    expected = reference.relax(terms, start, longest_solution(factors), 1.6)
    results = []
    for threads in (1, 2, 5):
        x = start.copy()
        loss = solve_rows(
            CpuBackend(threads), terms, other, x, solver=solver, cg_steps=40, relaxation=1.6, return_loss=True
        )
        results.append((x, loss))
    np.testing.assert_allclose(results[0][0], expected, rtol=1e-7, atol=1e-9)
    assert results[0][1] == pytest.approx(CpuBackend(1).loss(terms, x, other, np.zeros(1)), rel=1e-11)
    for x, loss in results[1:]:
        np.testing.assert_array_equal(x, results[0][0])
        assert loss == results[0][1]


def test_rows_that_float32_cannot_solve_are_relaxed_too():
    """A near-singular system is solved again in float64; conjugate gradients out of range are solved exactly."""
    rng = np.random.default_rng(0)
    row_ptr, col_idx = np.array([0, 40]), np.arange(40, dtype=np.int32)
    for scale, how in ((1.0, {"solver": "cholesky"}), (1e17, {"solver": "cg"})):
        weight = np.full(40, scale, np.float32)
        one = np.ones(1, np.float32)
        terms = RowTerms(row_ptr, col_idx, weight, None, 0.0, 0 * one, np.float32(1e-7 * scale) * one, one, 0.0)
        left = np.linalg.qr(rng.standard_normal((40, 8)))[0]
        other = np.ascontiguousarray(left * np.logspace(0, -3, 8), np.float32)
        start = rng.standard_normal((1, 8)).astype(np.float32)
        solved, relaxed = start.copy(), start.copy()
        solve_rows(CpuBackend(1), terms, other, solved, **how)
        solve_rows(CpuBackend(1), terms, other, relaxed, relaxation=1.5, **how)
        expected = reference.relax(terms, start, solved, 1.5)
        np.testing.assert_allclose(relaxed, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@needs_kernels
@pytest.mark.parametrize("how", SOLVERS, ids=str)
@pytest.mark.parametrize("d", [5, 33, 130])
def test_cuda_rows_go_as_far_as_the_reference_says(how, d):
    backend = emulated_backend()
    terms, other, prior, start = preset_problem("implicit", {"alpha": 2.0}, d, np.float32)
    for given in (None, prior):
        got = start.copy()
        loss = solve_rows(backend, terms, other, got, prior=given, relaxation=1.7, return_loss=True, **how)
        expected = solve_by_reference(terms, other, start, prior=given, relaxation=1.7, **how)
        np.testing.assert_allclose(got, expected, rtol=5e-4, atol=5e-4 * abs(expected).max())
        cpu = start.copy()
        wanted = solve_rows(CpuBackend(1), terms, other, cpu, prior=given, relaxation=1.7, return_loss=True, **how)
        assert loss == pytest.approx(wanted, rel=1e-4, abs=1e-4 * terms.target_square)
    sizes = SolveSizes(100, 50, 900, d)
    assert backend.memory_of(replace(sizes, is_relaxed=True)).growing > backend.memory_of(sizes).growing


@needs_kernels
def test_cuda_relaxation_out_of_range():
    terms, other, _, start = preset_problem("hu", {}, 5, np.float32)
    for relaxation in (0.0, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"relaxation must lie in \(0, 2\), got"):
            solve_rows(emulated_backend(), terms, other, start, relaxation=relaxation)


# The fit


def objective_of(model, matrix):
    """The loss of a model's factors by definition."""
    bound = model.objective.bind(matrix)
    items = bound.item_terms(matrix.T.tocsr())
    return reference.loss(bound.user_terms(matrix), model.user_factors, model.item_factors, items.ridge)


@pytest.mark.parametrize("objective", ["implicit", "hu", "ials", "google_wals", "eals"])
@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
@pytest.mark.parametrize("factors", [5, 16])  # with 16 both sides are rotated while the fit lasts
def test_a_fit_tells_its_loss_and_never_raises_it(objective, solver, factors):
    matrix = make_likes().astype(np.float64)
    model = WALS(
        factors, objective, solver=solver, block_size=16, iterations=14, over_relaxation=1.8, init_scale=1.0,
        dtype="float64",
    ).fit(matrix)  # fmt: skip
    losses = [record.loss for record in model.history_]
    assert losses[-1] == pytest.approx(objective_of(model, matrix), rel=1e-10)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))


def structured(rng, users=600, items=200, rank=24):
    """Preferences with many directions of similar weight, which alternating least squares takes long to tell apart."""
    scores = rng.standard_normal((users, rank)) @ rng.standard_normal((rank, items))
    return csr_matrix((scores > np.quantile(scores, 0.9)).astype(np.float32))


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_it_takes_less_than_two_thirds_of_the_iterations(solver):
    matrix = structured(np.random.default_rng(0))
    plain, relaxed = (
        WALS(
            16, "hu", alpha=10, regularization=1.0, solver=solver, iterations=30, over_relaxation=factor, init_scale=1.0
        ).fit(matrix)
        for factor in (1.0, 1.7)
    )
    wanted = plain.history_[-1].loss * 1.0001
    assert next(r.iteration for r in relaxed.history_ if r.loss <= wanted) < 20
    assert next(r.iteration for r in plain.history_ if r.loss <= wanted) > 24


def test_the_fixed_points_are_the_same():
    matrix = make_likes()
    model = WALS(
        8, "hu", alpha=5, regularization=2.0, iterations=400, over_relaxation=1.6, dtype="float64", init_scale=1.0
    ).fit(matrix)
    users, items = (
        make_objective("hu", alpha=5, regularization=2.0).bind(m).user_terms(m) for m in (matrix, matrix.T.tocsr())
    )
    gradients = reference.gradient(users, model.user_factors, model.item_factors, items.ridge)
    scale = max(abs(model.user_factors).max(), abs(model.item_factors).max())
    assert max(abs(gradient).max() for gradient in gradients) < 1e-5 * scale


def test_one_is_no_relaxation():
    plain, one = (WALS(8, iterations=4, **how).fit(make_likes()) for how in ({}, {"over_relaxation": 1}))
    assert same_course(plain, one)
    relaxed = WALS(8, iterations=4, over_relaxation=1.7).fit(make_likes())
    assert not same_course(plain, relaxed)
    assert relaxed.history_[0].loss == plain.history_[0].loss  # the first leaves random factors: not relaxed
    assert relaxed.history_[1].loss != plain.history_[1].loss


@pytest.mark.parametrize("factors", [5, 16])
def test_it_resumes_and_grows(tmp_path, factors):
    make = lambda n: WALS(factors, iterations=n, over_relaxation=1.5)  # noqa: E731
    with pytest.raises(Stop):
        make(6).fit(make_likes(), checkpoint_dir=tmp_path, callback=interrupt_at(3))
    make(6).fit(make_likes(), checkpoint_dir=tmp_path, resume=True)
    longer = make(9).fit(make_likes(), checkpoint_dir=tmp_path, resume=True)
    assert same_course(longer, make(9).fit(make_likes()))


def test_it_is_saved_with_the_model(tmp_path):
    WALS(4, iterations=1, over_relaxation=1.25).fit(make_likes()).save(tmp_path / "model")
    assert WALS.load(tmp_path / "model").over_relaxation == 1.25


def test_with_priors():
    rng = np.random.default_rng(3)
    matrix = make_likes()
    prior = LinearPrior(rng.standard_normal((matrix.shape[1], 6)).astype(np.float32))
    plain, relaxed = (
        WALS(8, "hu", iterations=8, item_prior=prior, over_relaxation=factor, dtype="float64").fit(matrix)
        for factor in (1.0, 1.6)
    )
    losses = [record.loss for record in relaxed.history_]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(losses))
    assert losses[-1] < plain.history_[-1].loss


@pytest.mark.parametrize("wrong", [0.9, 2, 2.5, float("nan"), "1.5", True, None])
def test_wrong_values(wrong):
    error = ValueError if isinstance(wrong, float | int) and wrong is not True else TypeError
    with pytest.raises(error, match=r"over_relaxation must be a number from 1 to below 2, got"):
        WALS(over_relaxation=wrong)
