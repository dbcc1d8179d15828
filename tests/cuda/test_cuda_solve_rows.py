"""Row solves of the CUDA kernels, run by the emulator, against the float64 definition; how close is close enough, see
support/rows.py. Every case runs under several schedules and gives the same bits in each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from emulated_cuda import ON_DEVICE, SCHEDULES, EmulatedMemory, emulated_backend, needs_kernels
from hard_cases import CASES, SINGULAR, SOLVERS, backward_bound, solve
from rows import dual_limit, make_check, make_matrix, make_terms, problem
from solving import solve_rows
from steps import solve_by_reference

from wals_gpu import reference
from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_plan import plan_cg, plan_exact, plan_rows, slice_rows
from wals_gpu.backends.cuda_solve import RowKernels
from wals_gpu.backends.cuda_terms import fitting_parts
from wals_gpu.backends.solve import SolveOptions, SolveSizes
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.presets import PRESETS, make_objective
from wals_gpu.objective.terms import RowTerms

pytestmark = needs_kernels
DEPTH = LIMITS.panel_depth


def run(terms, other, *, start=None, prior=None, backend=None, schedules=SCHEDULES, **how):
    """The solution under every schedule; all bits must agree."""
    backend = emulated_backend() if backend is None else backend
    results = []
    for schedule in schedules:
        backend.device.kernels.configure(**schedule)
        x = np.full((terms.n_rows, other.shape[1]), np.nan, np.float32) if start is None else start.copy()
        solve_rows(backend, terms, other, x, prior=prior, **how)
        results.append(x)
    backend.device.kernels.configure()
    assert all(x.tobytes() == results[0].tobytes() for x in results)
    return results[0]


def forms(terms, d):
    plan = plan_exact(terms, d, LIMITS.kernel_sizes, LIMITS.giant_entries)
    return {(rows.form, rows.size) for rows in plan}


@pytest.fixture
def no_second_try(monkeypatch):
    """Fails where float32 did not solve a row by itself."""

    def check(self, numbers, count, before, failed):
        solve_again(self, numbers, count, before, failed)
        status = self._buffers.get("own status", 1, np.int32)
        again = self._memory.download(status)[0]
        rows = self._memory.download(self._buffers.get("again", 1, np.int32))[:again]
        assert not again, f"rows {rows} were solved again"

    solve_again = RowKernels.solve_again
    monkeypatch.setattr(RowKernels, "solve_again", check)


# Exact solves


@pytest.mark.parametrize("signs", ["plus", "minus", "mixed", "all", "tiny"])
@pytest.mark.parametrize("d", [1, 31, 32, 33, 64, 100, 128])
def test_rows_of_every_length(d, signs, no_second_try):
    limit = dual_limit(d)
    edges = {0, 1, 15, 16, 17, DEPTH - 1, DEPTH, DEPTH + 1, 2 * DEPTH + 1, 65, limit, limit + 1, d, 3 * DEPTH + 5}
    lengths = sorted(edges - {-1})
    terms, other, prior = problem(d, lengths, signs, seed=d)
    make_check(terms, other)(run(terms, other, schedules=SCHEDULES[-1:]))
    make_check(terms, other, prior)(run(terms, other, prior=prior))


@pytest.mark.parametrize("signs", ["plus", "minus", "tiny"])
@pytest.mark.parametrize("d", [2, 7, 33, 64, 128, 255, 256, 1000])
def test_a_warp_a_row(d, signs, no_second_try):
    """Rows of up to 32 entries of one sign, some without a Gram coefficient, around each eighth and tile."""
    most = min(dual_limit(d), LIMITS.kernel_sizes[0])
    lengths = [n for n in (1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32) if n <= most]
    terms, other, prior = problem(d, lengths, signs, seed=d)
    terms.gram[3::4] = 0
    assert forms(terms, d) == {("dual", LIMITS.kernel_sizes[0])}
    for of, schedules in ((None, SCHEDULES[:1]), (prior, SCHEDULES[1:])):
        solved = run(terms, other, prior=of, schedules=schedules)
        expected = reference.solve_rows(terms, other, prior=of)
        make_check(terms, other, of)(solved)
        largest = abs(expected).max(axis=1, keepdims=True)
        assert (abs(solved - expected) <= 2e-5 * largest).all()  # as the self-check; 2.6e-6 was the most


@pytest.mark.parametrize(("factor", "ridge"), [(1e-37, 1e-2), (1e-30, 1e-30), (1e5, 1e15), (1e-3, 1e3)])
@pytest.mark.parametrize("weight", [1e-30, 1.0, 1e18])
def test_a_warp_a_row_of_any_size(factor, ridge, weight):
    """Coefficients, factors and ridges far from 1, with prior means: where float32 does not do, float64 does."""
    terms, other, prior = problem(40, [1, 5, 20, 32], "plus", background=0.0, ridge=ridge)
    other *= np.float32(factor)
    terms.gram[:] *= np.float32(weight)
    make_check(terms, other, prior)(run(terms, other, prior=prior, schedules=SCHEDULES[-1:]))


def test_both_modules_have_the_same_limits():
    """Also a device has: the backend reads them from either."""
    cuda = emulated_backend().device.kernels.LIMITS
    assert cuda._asdict() == LIMITS._asdict()
    for limits in (cuda, LIMITS):
        with pytest.raises(AttributeError):
            limits.slice_entries = 1


def test_all_forms_and_sizes_are_met():
    """The cases of this file go through every exact kernel."""
    met = set()
    for d, lengths in ((32, [0, 20, 300]), (64, [40, 100]), (128, [100, 300]), (256, [200, 300]), (300, [300, 8200])):
        met |= forms(problem(d, lengths)[0], d)
    of_sizes = {(form, size) for form in ("primal", "dual") for size in LIMITS.kernel_sizes}
    assert met == {("diagonal", 0), ("large", 0), ("sliced exact", 0), *of_sizes}


@pytest.mark.parametrize(("d", "lengths"), [(160, [129, 161]), (256, [129, 224, 225])])
@pytest.mark.parametrize("signs", ["plus", "mixed"])
def test_the_largest_block(d, lengths, signs, no_second_try):
    terms, other, prior = problem(d, lengths, signs)
    make_check(terms, other, prior)(run(terms, other, prior=prior, schedules=SCHEDULES[1:]))


@pytest.mark.parametrize(
    ("d", "lengths"),
    [(257, [0, 5, 240, 260]), (384, [385]), (400, [401]), (513, [300]), (LIMITS.most_device_factors, [256, 257])],
)
def test_matrices_in_the_workspace(d, lengths, no_second_try):
    terms, other, prior = problem(d, lengths, "plus")
    assert ("large", 0) in forms(terms, d)
    make_check(terms, other, prior)(run(terms, other, prior=prior, schedules=SCHEDULES[-1:]))


def test_rows_of_many_factors_do_not_depend_on_what_shares_their_slot(monkeypatch, no_second_try):
    """Blocks take rows as they come; more rows than slots, and each row by itself, give the same bits."""
    terms, other, prior = problem(260, [262, 300, 261, 290, 270], "all")
    whole = run(terms, other, prior=prior)
    make_check(terms, other, prior)(whole)
    monkeypatch.setattr("wals_gpu.backends.cuda_solve.LARGE_SLOTS", 2)
    np.testing.assert_array_equal(run(terms, other, prior=prior), whole)
    monkeypatch.setattr("wals_gpu.backends.cuda_solve.LARGE_SLOTS", 1)
    np.testing.assert_array_equal(run(terms, other, prior=prior, schedules=SCHEDULES[:1]), whole)


def test_many_factors_of_very_different_size(no_second_try):
    """Columns fall over six orders of magnitude, and one value is far beyond the others of its column."""
    terms, other, _ = problem(272, [280, 300], "plus", background=1.0, ridge=1e-3)
    other *= np.logspace(0, -6, 272).astype(np.float32)
    other[0] *= 100
    make_check(terms, other)(run(terms, other, schedules=SCHEDULES[-1:]))


def test_many_factors_too_close_to_singular_are_solved_in_float64():
    rng = np.random.default_rng(5)
    other = (rng.normal(size=(300, 1)) * rng.normal(size=272) + 1e-3 * rng.normal(size=(300, 272))).astype(np.float32)
    terms = make_terms([300], 300, rng, np.float32, background=0.0, ridge=1e-2)
    solved, (a, b) = run(terms, other, schedules=SCHEDULES[:1])[0], reference.row_system(terms, 0, other)
    exact = np.linalg.solve(a, b)
    assert np.linalg.norm(solved - exact) < 1e-5 * np.linalg.norm(exact)


@pytest.mark.parametrize(("d", "signs"), [(5, "all"), (40, "plus")])
def test_giant_rows_summed_in_slices(d, signs, no_second_try):
    terms, other, prior = problem(d, [LIMITS.giant_entries + 1, 20], signs)
    assert ("sliced exact", 0) in forms(terms, d)
    make_check(terms, other, prior)(run(terms, other, prior=prior, schedules=SCHEDULES[-1:]))


def test_slices_depend_on_the_row_alone():
    row_ptr = np.cumsum([0, 10, 5000, 400_000, 9000])
    whole = slice_rows(row_ptr, np.array([3, 2, 1, 0], np.int32), 4096, 1000)
    each = [slice_rows(row_ptr, np.array([r], np.int32), 4096, 1)[0] for r in (3, 2, 1, 0)]
    assert len(whole) == 1 and [len(b.slices) for b in each] == [3, 64, 2, 1]
    for name in ("begin", "end", "row"):
        np.testing.assert_array_equal(whole[0].slices[name], np.concatenate([b.slices[name] for b in each]))
    assert [b.n_slots for b in slice_rows(row_ptr, np.array([3, 1, 0], np.int32), 4096, 3)] == [3, 3]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_on_both_sides(name):
    matrix = make_matrix(name, np.float32)
    bound, backend = make_objective(name).bind(matrix), emulated_backend()
    rng = np.random.default_rng(6)
    for terms, n_other in ((bound.user_terms(matrix), 53), (bound.item_terms(backend.transpose(matrix)), 37)):
        if name == "spark":  # its ridge is 0 where a row has no positive value, and the system singular
            terms = RowTerms(**{**vars(terms), "ridge": terms.ridge + np.float32(0.01)})
        other = rng.normal(size=(n_other, 19)).astype(np.float32)
        prior = rng.normal(size=(terms.n_rows, 19)).astype(np.float32)
        make_check(terms, other)(run(terms, other))
        make_check(terms, other, prior)(run(terms, other, prior=prior))


def test_values_of_any_size(no_second_try):
    """Coefficients and factors far from 1: f16 has five bits of exponent, the kernels' scales make up for that."""
    for factor, weight in ((1e-6, 1e10), (1e6, 1e-10), (1e-10, 1.0), (1e8, 1e6)):
        terms, other, _ = problem(40, [10, 34, 80], "plus", background=0.0)
        other *= np.float32(factor)
        terms.gram[:] *= np.float32(weight)
        terms.ridge[:] = np.float32(0.01 * weight * factor**2)
        make_check(terms, other)(run(terms, other, schedules=SCHEDULES[-1:]))


def test_factors_of_very_different_size(no_second_try):
    """Columns fall over six orders of magnitude, as spectra do; the weak directions must not be lost."""
    for lengths in ([20, 30], [60, 200]):
        terms, other, _ = problem(40, lengths, "plus", background=1.0, ridge=1e-3)
        other *= np.logspace(0, -6, 40).astype(np.float32)
        make_check(terms, other)(run(terms, other, schedules=SCHEDULES[-1:]))


@pytest.mark.parametrize("n", [20, 100])
def test_rows_too_close_to_singular_are_solved_in_float64(n):
    rng = np.random.default_rng(5)
    other = (rng.normal(size=(n, 1)) * rng.normal(size=40) + 1e-3 * rng.normal(size=(n, 40))).astype(np.float32)
    terms = make_terms([n], n, rng, np.float32, background=0.0, ridge=1e-4 * n)
    a, b = reference.row_system(terms, 0, other)
    exact = np.linalg.solve(a, b)
    assert np.linalg.cond(a) > 1e5
    solved = run(terms, other)[0]
    assert np.linalg.norm(solved - exact) < 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("n", [3, 30])
def test_singular_system_names_the_first_such_row(n):
    rng = np.random.default_rng(12)
    terms = make_terms([n, 0, n, n, n], 40, rng, np.float32, background=0.0)
    terms.ridge[[2, 4]] = 0
    other = rng.normal(size=(40, 50)).astype(np.float32)
    factors = np.full((5, 50), 7, np.float32)
    with pytest.raises(SingularSystemError, match="row 2 is not positive definite; increase the reg"):
        solve_rows(emulated_backend(), terms, other, factors)
    assert (factors[[2, 4]] == 7).all()
    assert (factors[[0, 1, 3]] != 7).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_factors_that_are_no_numbers(bad):
    for background in (0.0, 1.0):
        terms, other, _ = problem(20, [3, 30], background=background)
        other[terms.col_idx[0], 5] = bad
        with pytest.raises(ModelFitError, match=r"NaN or infinity|not finite"):
            solve_rows(emulated_backend(), terms, other, np.zeros((2, 20), np.float32))


def test_rows_without_entries_or_weights():
    rng = np.random.default_rng(4)
    other = rng.normal(size=(30, 17)).astype(np.float32)
    assert run(make_terms(np.zeros(0, int), 30, rng, np.float32), other).shape == (0, 17)
    prior = rng.normal(size=(3, 17)).astype(np.float32)
    for background in (0.0, 1.0):
        for ridge in (0.0, 0.1):
            terms = make_terms([0, 0, 0], 30, rng, np.float32, background=background, ridge=ridge)
            assert not run(terms, other).any()
            if background or ridge:
                make_check(terms, other, prior)(run(terms, other, prior=prior))
            else:
                np.testing.assert_array_equal(run(terms, other, prior=prior), prior)


def test_constants_stand_for_whole_arrays():
    full, other, _ = problem(33, [0, 4, 30, 70])
    one = np.ones(1, np.float32)
    constants = (one / 2, one / 4, one * 2)
    arrays = tuple(np.full(n, c[0], np.float32) for n, c in zip((4, 4, len(other)), constants, strict=True))
    for rhs, gram, offset in ((full.rhs + 3, None, -0.5), (one * 3, one, 0.0), (one * 3, None, 2.0)):
        short = RowTerms(full.row_ptr, full.col_idx, rhs, gram, offset, *constants, 0.0)
        every = np.array(short.rhs_values()), np.array(short.gram_values())
        long = RowTerms(full.row_ptr, full.col_idx, *every, 0.0, *arrays, 0.0)
        np.testing.assert_array_equal(run(short, other), run(long, other))


# Approximate solves

STEPS = [{"solver": "cg", "cg_steps": 1}, {"solver": "cg", "cg_steps": 3}, {"solver": "subspace", "block_size": 16}]
OBJECTIVES = [("implicit", {"alpha": 2.0}), ("implicit", {"alpha": 0.5}), ("ials", {}), ("eals", {}), ("explicit", {})]


@pytest.mark.parametrize("how", STEPS, ids=lambda how: f"{how['solver']}{how.get('cg_steps', '')}")
@pytest.mark.parametrize("d", [1, 20, 33, 70, 130])
def test_steps_are_those_of_the_reference(d, how):
    for name, parameters in OBJECTIVES:
        matrix = make_matrix(name, np.float32, shape=(9, 150))
        terms = make_objective(name, **parameters).bind(matrix).user_terms(matrix)
        rng = np.random.default_rng(d)
        other, prior, start = (rng.normal(size=(n, d)).astype(np.float32) * 0.3 for n in (150, 9, 9))
        solved = run(terms, other, start=start, prior=prior, schedules=SCHEDULES[1:], **how)
        expected = solve_by_reference(terms, other, start, prior=prior, **how)
        np.testing.assert_allclose(solved, expected, rtol=2e-4, atol=2e-4 * abs(expected).max())
        losses = [reference.row_system(terms, r, other, prior=prior[r]) for r in range(9)]
        for r, (a, b) in enumerate(losses):
            before, after = (x @ a @ x - 2 * b @ x for x in (start[r].astype(float), solved[r].astype(float)))
            assert after <= before + 1e-5 * abs(before)


@pytest.mark.parametrize("how", [*STEPS, {"solver": "subspace", "block_size": 128}], ids=str)
@pytest.mark.parametrize("d", [300, 600])
def test_steps_with_many_factors(d, how):
    terms, other, start = problem(d, [1, 140], "plus")
    solved = run(terms, other, start=start, schedules=SCHEDULES[-1:], **how)
    cpu = start.copy()
    solve_rows(CpuBackend(1), terms, other, cpu, **how)
    np.testing.assert_allclose(solved, cpu, rtol=1e-3, atol=1e-4 * abs(cpu).max())


def test_conjugate_gradients_reach_the_exact_solution():
    terms, other, start = problem(20, [0, 5, 60], ridge=1.0)
    np.testing.assert_allclose(
        run(terms, other, start=start, solver="cg", cg_steps=60), reference.solve_rows(terms, other), atol=2e-5
    )


def test_conjugate_gradients_whatever_stays_in_shared_memory(monkeypatch):
    """A row is staged whole, in part or not at all; the bits are the same."""
    terms, other, start = problem(33, [0, 7, 60, 130])
    how = {"start": start, "solver": "cg", "schedules": SCHEDULES[-1:]}
    whole = run(terms, other, **how)
    monkeypatch.setattr(
        "wals_gpu.backends.cuda_plan.plan_cg", lambda terms, staged, giant: plan_cg(terms, (3, 40), giant)
    )
    planned_anew = RowTerms(**{**vars(terms), "row_ptr": terms.row_ptr.copy()})
    np.testing.assert_array_equal(run(planned_anew, other, **how), whole)


def test_singular_rows_do_not_lead_conjugate_gradients_astray():
    terms, other, start = problem(30, [4, 8], background=0.0, ridge=0.0)
    solved = run(terms, other, start=start, solver="cg", cg_steps=50)
    assert np.isfinite(solved).all()
    for r, x in enumerate(solved.astype(np.float64)):
        a, b = reference.row_system(terms, r, other)
        assert np.linalg.norm(a @ x - b) < 1e-2 * np.linalg.norm(b)
        assert np.linalg.norm(x - start[r]) < 100


# Giant rows in steps: summed in slices


@pytest.fixture
def small_slices(monkeypatch):
    """Rows of more than 32 entries are giant, and cut by 16."""
    limits = LIMITS._replace(slice_entries=16, giant_entries=32)
    for checked in () if ON_DEVICE else (False, True):
        monkeypatch.setattr(emulated_backend(checked).device.kernels, "LIMITS", limits)
    monkeypatch.setattr(emulated_backend().device.kernels, "LIMITS", limits)


@pytest.mark.parametrize("how", [*STEPS, {"solver": "subspace", "block_size": 64}], ids=str)
@pytest.mark.parametrize("d", [1, 20, 33, 70, 300])
def test_giant_rows_take_the_steps_of_the_reference(d, how, small_slices):
    terms, other, start = problem(d, [0, 5, 32, 33, 130, 47], "all", ridge=0.5)
    terms.gram[:] = abs(terms.gram)
    other *= np.float32(0.3)
    for options in (SolveOptions("cg"), SolveOptions("subspace", block_size=16)):
        plan = plan_rows(terms, 300, options, LIMITS.kernel_sizes, 32, (10,))
        assert [list(rows.numbers) for rows in plan if rows.form.startswith("sliced")] == [[4, 5, 3]]
    prior = start[::-1].copy()
    solved = run(terms, other, start=start, prior=prior, **how)
    expected = solve_by_reference(terms, other, start, prior=prior, **how)
    np.testing.assert_allclose(solved, expected, rtol=2e-4, atol=2e-4 * abs(expected).max())


def test_giant_rows_of_conjugate_gradients_end_as_others_do(small_slices, monkeypatch):
    """Each at its own step, by the tolerance; a coordinate that nothing acts on stays where it is."""
    terms, other, start = problem(20, [40, 60, 130, 200], ridge=0.0, background=0.0)
    other[:, 7] = 0
    other[:100] *= np.float32(0.1)
    how = {"start": start, "solver": "cg", "cg_steps": 40, "cg_tolerance": 0.05, "schedules": SCHEDULES[-1:]}
    sliced = run(terms, other, **how)
    monkeypatch.setattr(emulated_backend().device.kernels, "LIMITS", LIMITS)
    np.testing.assert_allclose(sliced, run(terms, other, **how), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(sliced[:, 7], start[:, 7])
    assert not np.allclose(sliced, run(terms, other, **{**how, "cg_tolerance": 0.0}), rtol=1e-3, atol=1e-4)


def test_giant_rows_too_close_to_singular_for_steps_are_solved_in_float64(small_slices):
    rng = np.random.default_rng(5)
    other = (rng.normal(size=(100, 1)) * rng.normal(size=40) + 1e-3 * rng.normal(size=(100, 40))).astype(np.float32)
    terms = make_terms([100, 90], 100, rng, np.float32, background=0.0, ridge=1e-2)
    start = np.ones((2, 40), np.float32)
    solved = run(terms, other, start=start, solver="subspace", block_size=32)
    np.testing.assert_allclose(solved, reference.solve_rows(terms, other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", STEPS[1:], ids=str)
def test_a_giant_row_of_real_length(how):
    terms, other, start = problem(5, [LIMITS.giant_entries + 1, 20])
    solved = run(terms, other, start=start, schedules=SCHEDULES[1:], **how)
    expected = solve_by_reference(terms, other, start, **how)
    np.testing.assert_allclose(solved, expected, rtol=1e-3, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("how", [*STEPS, {"solver": "subspace", "block_size": 128}], ids=str)
def test_checked_giant_steps(how, small_slices):
    backend = emulated_backend(checked=True)
    for d in (20, 150):
        terms, other, start = problem(d, [3, 70, 140], "all")
        plain = run(terms, other, start=start, prior=start, schedules=SCHEDULES[:1], **how)
        checked = run(terms, other, start=start, prior=start, backend=backend, schedules=SCHEDULES[-1:], **how)
        np.testing.assert_allclose(checked, plain, rtol=1e-4, atol=1e-5 * abs(plain).max())


# Systems that break solvers: the results and errors of the CPU


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("title", CASES)
def test_hard_case(title, solver):
    """As test_hard_numbers.py asks of the CPU, with the same bounds; in 20 calls CG comes to 19 roundings."""
    calls = 41 if title != "one user with all of 50,000 items" else 2
    calls = calls if solver == "subspace" else min(calls, 20)
    result, rise = solve(title, "float32", solver, emulated_backend(), calls)
    if title in SINGULAR and solver != "cg":
        assert result == "SingularSystemError"
    else:
        assert result <= backward_bound(title, solver, "float32")
        assert rise <= 10 * np.finfo(np.float32).eps


@pytest.mark.parametrize(("factors", "items"), [(11, 10), (33, 32), (64, 60)])
def test_directions_without_data_are_not_filled_with_rounding(factors, items):
    """Every row of it is named, as the CPU names it, and left as it was; the others are solved."""
    rng = np.random.default_rng(factors)
    y = rng.standard_normal((items, factors)).astype(np.float32)
    one, ridge = np.ones(1, np.float32), np.array([1, 0, 1, 0], np.float32)
    columns = np.tile(np.arange(items, dtype=np.int32), 4)
    terms = RowTerms(np.arange(5) * items, columns, one, one, 0.0, one, ridge, one, 0.0)
    for solver in ("cholesky", "subspace"):
        found = []
        for backend in (CpuBackend(1), emulated_backend()):
            x = np.zeros((4, factors), np.float32)
            with pytest.raises(SingularSystemError) as error:
                solve_rows(backend, terms, y, x, solver=solver, block_size=16)
            assert not x[[1, 3]].any() and x[[0, 2]].any()
            found.append((str(error.value), x))
        assert found[0][0] == found[1][0]
        np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-3, atol=1e-3)
    x = np.zeros((4, factors), np.float32)
    solve_rows(emulated_backend(), terms, y, x, solver="cg", cg_steps=20)
    assert abs(x).max() < 100


# Losses, and the mathematics of a fit


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("d", [1, 33])
def test_loss_is_the_definitions(name, d):
    backend, matrix = emulated_backend(), make_matrix(name, np.float32)
    bound = make_objective(name, **({"regularization": 0.05} if name == "spark" else {})).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    rng = np.random.default_rng(15)
    x, y, user_prior, item_prior = (rng.normal(size=(n, d)).astype(np.float32) for n in (37, 53, 37, 53))
    for priors in ({}, {"user_prior": user_prior, "item_prior": item_prior}):
        expected = reference.loss(users, x, y, items.ridge, **priors)
        assert abs(backend.loss(users, x, y, items.ridge, **priors) - expected) <= 1e-12 * abs(expected) * d
    got = solve_rows(backend, users, y, x, return_loss=True)
    assert users.target_square + got + backend.ridge_loss(y, items.ridge) == pytest.approx(
        reference.loss(users, x, y, items.ridge), rel=1e-5
    )


def test_no_half_sweep_raises_the_loss_and_the_gradient_vanishes():
    backend, matrix = emulated_backend(), make_matrix("ials", np.float32, shape=(10, 15))
    bound = make_objective("ials", regularization=0.1).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    rng = np.random.default_rng(2)
    x, y = (rng.normal(size=(n, 5)).astype(np.float32) for n in (10, 15))
    start = max(abs(g).max() for g in reference.gradient(users, x, y, items.ridge))
    losses = []
    for _ in range(40):
        solve_rows(backend, users, y, x)
        losses.append(backend.loss(users, x, y, items.ridge))
        solve_rows(backend, items, x, y)
        losses.append(backend.loss(users, x, y, items.ridge))
    assert all(b <= a * (1 + 1e-7) for a, b in pairwise(losses))
    assert max(abs(g).max() for g in reference.gradient(users, x, y, items.ridge)) < 1e-3 * start


# Rows that do not fit on the device together


@pytest.mark.parametrize("how", [{}, *STEPS], ids=str)
def test_parts_give_the_bits_of_the_whole(how):
    terms, other, start = problem(33, [0, 4, 300, 70, 12, 90, 1, 1, 200])
    prior = start[::-1].copy()
    whole = run(terms, other, start=start, prior=prior, schedules=SCHEDULES[:1], **how)
    module = emulated_backend().device.kernels
    one = CudaBackend(module, EmulatedMemory(module))
    sizes = SolveSizes(9, len(other), terms.n_entries, 33, has_prior=True)
    _, fixed, growing = one.memory_of(sizes)
    parts = CudaBackend(module, EmulatedMemory(module), fixed + growing // 2)
    assert len(fitting_parts(parts.device, terms, sizes)) >= 3
    np.testing.assert_array_equal(
        run(terms, other, start=start, prior=prior, backend=parts, schedules=SCHEDULES[:1], **how), whole
    )
    x, y = start.copy(), start.copy()
    losses = [solve_rows(b, terms, other, f, return_loss=True, **how) for b, f in ((one, x), (parts, y))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert parts.loss(terms, x, other, terms.ridge[:1]) == pytest.approx(
        one.loss(terms, x, other, terms.ridge[:1]), rel=1e-12
    )


def test_what_can_never_fit_is_refused_with_numbers():
    terms, other, start = problem(33, [4, 3000])
    module = emulated_backend().device.kernels
    fixed = emulated_backend().memory_of(SolveSizes(0, len(other), 0, 33)).fixed
    small = CudaBackend(module, EmulatedMemory(module), fixed - 1)
    with pytest.raises(MemoryError, match=rf"3000 x 33 factors of the other side takes {fixed} bytes"):
        solve_rows(small, terms, other, start)
    small = CudaBackend(module, EmulatedMemory(module), fixed + 10_000)
    with pytest.raises(MemoryError, match=r"row 1 with 3000 entries does not fit into 10000 bytes"):
        solve_rows(small, terms, other, start)


def test_arguments_that_the_device_lacks_are_refused():
    backend = emulated_backend()
    terms, other, start = problem(33, [4, 30])
    with pytest.raises(ValueError, match=r"float32, got factors of dtype float64"):
        solve_rows(backend, terms, other.astype(np.float64), start)
    with pytest.raises(ValueError, match=r"float32, got factors of dtype float64"):
        backend.empty_factors(3, 4, np.dtype(np.float64))
    most = LIMITS.most_device_factors
    with pytest.raises(ValueError, match=f"1 to {most} factors, got {most + 1}"):
        backend.empty_factors(3, most + 1, np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"block_size must be a multiple of 16 from 16 to 256 .* got 272"):
        solve_rows(backend, terms, other, start, solver="subspace", block_size=272)


# The checked build: races, bounds, uninitialised memory, copies in flight, divergent barriers


@pytest.mark.parametrize("schedule", [SCHEDULES[0], {"order": "random", "seed": 5, "resident_blocks": 4}], ids=str)
@pytest.mark.parametrize("d", [1, 20, 40, 70])
def test_checked_exact(d, schedule):
    backend = emulated_backend(checked=True)
    for lengths, signs in (([0, 1, 15, 33, 75], "all"), ([3, 17, 50, 60], "plus")):
        terms, other, prior = problem(d, lengths, signs)
        make_check(terms, other, prior)(run(terms, other, prior=prior, backend=backend, schedules=[schedule]))


def test_checked_large():
    backend = emulated_backend(checked=True)
    for d, lengths in ((160, [150]), (140, [135]), (260, [258])):
        terms, other, prior = problem(d, lengths)
        make_check(terms, other, prior)(run(terms, other, prior=prior, backend=backend, schedules=SCHEDULES[-1:]))


def test_checked_giant_row():
    terms, other, prior = problem(3, [LIMITS.giant_entries + 8])
    make_check(terms, other, prior)(
        run(terms, other, prior=prior, backend=emulated_backend(checked=True), schedules=SCHEDULES[-1:])
    )


@pytest.mark.parametrize("how", STEPS, ids=str)
@pytest.mark.parametrize("d", [5, 40, 140])
def test_checked_steps(d, how):
    backend = emulated_backend(checked=True)
    terms, other, start = problem(d, [0, 3, 40, 50], "all")
    plain = run(terms, other, start=start, prior=start, schedules=SCHEDULES[:1], **how)
    checked = run(terms, other, start=start, prior=start, backend=backend, schedules=SCHEDULES[-1:], **how)
    # Instrumented code is compiled otherwise: other fused multiply-adds, other last bits.
    np.testing.assert_allclose(checked, plain, rtol=1e-4, atol=1e-5 * abs(plain).max())
    assert backend.loss(terms, start, other, np.ones(1, np.float32)) == pytest.approx(
        reference.loss(terms, start, other, np.ones(1)), rel=1e-12
    )
