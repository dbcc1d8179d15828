"""The CPU backend's row solves and loss against the float64 definition; support/rows.py says how close is enough."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import TOPK_ONLY
from rows import ROOM, dual_limit, giant_length, make_check, make_matrix, make_terms, panel_rows
from scipy.sparse import random as sparse_random
from solving import solve_rows

from wals_gpu import _cpu, reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.presets import PRESETS, make_objective
from wals_gpu.objective.terms import RowTerms

BACKEND = CpuBackend(2)

both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def solve(terms, other, *, prior=None, backend=BACKEND):
    factors = np.full((terms.n_rows, other.shape[1]), np.nan, other.dtype)  # every number must be written
    solve_rows(backend, terms, other, factors, prior=prior)
    return factors


def check_every_isa(terms, other, prior=None):
    check = make_check(terms, other, prior)
    before = _cpu.isa()
    try:
        for name in _cpu.available_isas():
            _cpu.use_isa(name)
            check(solve(terms, other, prior=prior))
    finally:
        _cpu.use_isa(before)


@both_dtypes
def test_the_check_sees_ten_tolerances(dtype):
    rng = np.random.default_rng(2)
    terms = make_terms([30, 3, 0], 200, rng, dtype, ridge=100.0)
    other = rng.normal(size=(200, 8)).astype(dtype)
    check, solved = make_check(terms, other), reference.solve_rows(terms, other).astype(dtype)
    check(solved)
    # The systems' condition numbers are below 2: eigenvalues do not dilute what a number is off by.
    for row in range(2):
        wrong = solved.copy()
        wrong[row, 3] += 10 * ROOM[np.dtype(dtype).name] * np.finfo(dtype).eps * np.linalg.norm(solved[row])
        with pytest.raises(AssertionError, match=f"row {row} of"):
            check(wrong)


# Exact solves


@st.composite
def problems(draw):
    """Rows of the lengths at which something changes, in any mixture of signs, weights, ridges and priors."""
    d = draw(st.integers(1, 130))
    limit = dual_limit(d)
    edges = sorted({0, 1, 2, 3, limit - 1, limit, limit + 1, d - 1, d, d + 1, 2 * d + 1, 300} - {-1})
    lengths = draw(st.lists(st.sampled_from(edges), min_size=1, max_size=5))
    n_other = draw(st.sampled_from([1, 7, d + 3, 301]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    signs = draw(st.sampled_from(["plus", "minus", "zero", "tiny", "mixed", "all"]))
    background = draw(st.sampled_from([0.0, 1e-3, 1.0] if signs in ("plus", "zero", "tiny") else [1e-3, 1.0]))
    ridge = draw(st.sampled_from([1e-3, 0.1, 10.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    terms = make_terms(lengths, n_other, rng, dtype, signs, background, ridge)
    other = rng.normal(size=(n_other, d)).astype(dtype)
    prior = rng.normal(size=(len(lengths), d)).astype(dtype) if draw(st.booleans()) else None
    return terms, other, prior


@given(problems())
@settings(max_examples=400)
def test_any_rows(problem):
    check_every_isa(*problem)


@both_dtypes
@pytest.mark.parametrize("signs", ["plus", "minus", "mixed", "runs"])
@pytest.mark.parametrize("d", [3, 40, 257])
def test_rows_around_whole_panels(d, signs, dtype):
    k = panel_rows(d, dtype)
    assert k > dual_limit(d) or signs == "mixed" or d > 128
    lengths = [k - 1, k, k + 1, 2 * k - 1, 2 * k, 2 * k + 1, 2 * k + 3, 13 * k + 1]
    assert max(lengths) < giant_length(d)
    rng = np.random.default_rng(d)
    terms = make_terms(lengths, max(lengths), rng, dtype, signs)
    other = rng.normal(size=(max(lengths), d)).astype(dtype)
    check_every_isa(terms, other, rng.normal(size=(len(lengths), d)).astype(dtype))


@both_dtypes
@pytest.mark.parametrize("d", [255, 256, 512, 1024])
def test_large_factors(d, dtype):
    limit = dual_limit(d)
    rng = np.random.default_rng(d)
    terms = make_terms([1, limit, limit + 1], limit + 1, rng, dtype)
    other = rng.normal(size=(limit + 1, d)).astype(dtype)
    check_every_isa(terms, other, rng.normal(size=(3, d)).astype(dtype))


@both_dtypes
@pytest.mark.parametrize("signs", ["plus", "minus", "runs", "all"])
def test_giant_rows_summed_in_slices(signs, dtype):
    d = 250
    n = giant_length(d)
    rng = np.random.default_rng(8)
    terms = make_terms([5, n + 4099, 0, n, n - 1], n + 4099, rng, dtype, signs)
    other = rng.normal(size=(n + 4099, d)).astype(dtype)
    check_every_isa(terms, other, rng.normal(size=(5, d)).astype(dtype))


@pytest.mark.parametrize("signs", ["plus", "all"])
def test_the_giant_path_is_the_one_taken(signs, isa):
    """Its sums are in another order, so the same row behind one entry fewer has other last bits; elsewhere not."""
    d = 250
    n = giant_length(d)
    rng = np.random.default_rng(9)
    other = rng.normal(size=(n, d)).astype(np.float32)
    other[-1] = 0  # the last entry changes nothing but the length
    for length, same in ((n, False), (n - 1, True)):
        terms = make_terms([length], length, rng, np.float32, signs)
        table = other[n - length :]
        short = RowTerms(
            np.array([0, length - 1]),
            terms.col_idx[:-1],
            terms.rhs[:-1],
            terms.gram[:-1],
            0.0,
            terms.background,
            terms.ridge,
            terms.other_background,
            0.0,
        )
        assert np.array_equal(solve(terms, table), solve(short, table)) == same


@both_dtypes
def test_constants_stand_for_whole_arrays(dtype, isa):
    rng = np.random.default_rng(2)
    full = make_terms([0, 4, 30, 70], 50, rng, dtype)
    other = rng.normal(size=(50, 33)).astype(dtype)
    size = full.n_entries
    one = np.ones(1, dtype)
    rhs = rng.uniform(1, 2, size).astype(dtype)

    def terms(rhs, gram, offset, background, ridge, other_background):
        return RowTerms(full.row_ptr, full.col_idx, rhs, gram, offset, background, ridge, other_background, 0.0)

    constants = (one / 2, one / 4, one * 2)
    arrays = tuple(np.full(n, c[0], dtype) for n, c in zip((4, 4, 50), constants, strict=True))
    for short_rhs, short_gram, offset in ((rhs, None, -0.5), (one * 3, one, 0.0), (one * 3, None, 2.0), (rhs, one, 0)):
        short = terms(short_rhs, short_gram, offset, *constants)
        long = terms(np.array(short.rhs_values()), np.array(short.gram_values()), 0.0, *arrays)
        np.testing.assert_array_equal(solve(short, other), solve(long, other))
        make_check(short, other)(solve(short, other))


@both_dtypes
def test_items_with_equal_factors_and_repeated_entries(dtype, isa):
    rng = np.random.default_rng(3)
    other = np.repeat(rng.normal(size=(6, 20)), 10, axis=0).astype(dtype)
    for signs in ("plus", "minus", "mixed"):
        terms = make_terms([15, 60, 300], 60, rng, dtype, signs)
        assert len(np.unique(terms.col_idx[-300:])) < 300
        make_check(terms, other)(solve(terms, other))


@both_dtypes
def test_no_rows_and_rows_without_entries(dtype, isa):
    rng = np.random.default_rng(4)
    other = rng.normal(size=(30, 17)).astype(dtype)
    assert solve(make_terms(np.zeros(0, int), 30, rng, dtype), other).shape == (0, 17)
    terms = make_terms([0, 0, 0], 30, rng, dtype)
    assert not solve(terms, other).any()
    prior = rng.normal(size=(3, 17)).astype(dtype)
    make_check(terms, other, prior)(solve(terms, other, prior=prior))
    # Without a ridge: 0 without a prior, singular or not; the prior itself where nothing pulls at it.
    for background in (0.0, 1.0):
        terms = make_terms([0, 0, 0], 30, rng, dtype, background=background, ridge=0.0)
        assert not solve(terms, other).any()
        assert not solve(terms, np.zeros_like(other)).any()
    terms = make_terms([0, 0, 0], 30, rng, dtype, background=0.0, ridge=0.0)
    np.testing.assert_array_equal(solve(terms, other, prior=prior), prior)


@pytest.mark.parametrize("n", [20, 100, 9000])
def test_float32_rows_too_close_to_singular_are_solved_in_float64(n, isa):
    """Factors nearly on a line: condition numbers beyond what float32 can do. The answer is exact all the same."""
    d = 250 if n > giant_length(250) else 40
    rng = np.random.default_rng(5)
    other = (rng.normal(size=(n, 1)) * rng.normal(size=d) + 1e-3 * rng.normal(size=(n, d))).astype(np.float32)
    terms = make_terms([n], n, rng, np.float32, background=0.0, ridge=1e-4 * n)
    a, b = reference.row_system(terms, 0, other)
    exact = np.linalg.solve(a, b)
    assert np.linalg.cond(a) > 1e5
    in_float32 = np.linalg.solve(a.astype(np.float32), b.astype(np.float32))
    assert np.linalg.norm(in_float32 - exact) > 1e-4 * np.linalg.norm(exact)
    assert np.linalg.norm(solve(terms, other)[0] - exact) < 1e-6 * np.linalg.norm(exact)


@both_dtypes
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_on_both_sides(name, dtype, isa):
    matrix = make_matrix(name, dtype)
    bound = make_objective(name).bind(matrix)
    rng = np.random.default_rng(6)
    for terms, n_other in ((bound.user_terms(matrix), 53), (bound.item_terms(BACKEND.transpose(matrix)), 37)):
        if name == "spark":  # its ridge is 0 where a row has no positive value, and the system singular
            terms = RowTerms(**{**vars(terms), "ridge": terms.ridge + dtype(0.01)})
        other = rng.normal(size=(n_other, 19)).astype(dtype)
        prior = rng.normal(size=(terms.n_rows, 19)).astype(dtype)
        make_check(terms, other)(solve(terms, other))
        make_check(terms, other, prior)(solve(terms, other, prior=prior))


def test_instruction_sets_are_not_the_same_code():
    """The set that is asked for runs: longer vectors add in another order. Sets for top-k alone solve as avx512."""
    rng = np.random.default_rng(10)
    terms = make_terms([3, 60, 200], 200, rng, np.float32)
    other = rng.normal(size=(200, 70)).astype(np.float32)
    before, solutions = _cpu.isa(), {}
    for name in _cpu.available_isas():
        _cpu.use_isa(name)
        solutions[name] = solve(terms, other).tobytes()
    _cpu.use_isa(before)
    own = [name for name in solutions if name not in TOPK_ONLY]
    assert len({solutions[name] for name in own}) == len(own)
    assert all(solutions[name] == solutions["avx512"] for name in solutions if name in TOPK_ONLY)


@both_dtypes
def test_the_number_of_threads_changes_no_bit(dtype, isa):
    d = 250
    n = giant_length(d) + 5000
    rng = np.random.default_rng(11)
    terms = make_terms([n, *rng.integers(0, 400, 60)], n, rng, dtype, "all")
    other = rng.normal(size=(n, d)).astype(dtype)
    x = rng.normal(size=(terms.n_rows, d)).astype(dtype)
    answers = []
    for threads in (1, 2, 3, 7):
        backend = CpuBackend(threads)
        loss = backend.loss(terms, x, other, np.ones(1, dtype))
        answers.append((solve(terms, other, prior=x, backend=backend).tobytes(), loss))
    assert answers.count(answers[0]) == 4


# Systems without a solution


@both_dtypes
@pytest.mark.parametrize("n", [3, 30])
def test_singular_system_names_the_first_such_row(n, dtype, isa):
    rng = np.random.default_rng(12)
    terms = make_terms([n, 0, n, n, n], 40, rng, dtype, background=0.0)
    other = rng.normal(size=(40, 50)).astype(dtype)
    terms.ridge[[2, 4]] = 0
    factors = np.full((5, 50), 7, dtype)
    with pytest.raises(SingularSystemError, match="row 2 is not positive definite; increase the reg") as info:
        solve_rows(BACKEND, terms, other, factors)
    assert info.value.row == 2
    # The other rows are solved, those two left alone.
    assert (factors[[2, 4]] == 7).all()
    terms.ridge[[2, 4]] = 1
    np.testing.assert_array_equal(factors[[0, 1, 3]], solve(terms, other)[[0, 1, 3]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("background", [0.0, 1.0])
@both_dtypes
def test_factors_that_are_no_numbers(bad, background, dtype, isa):
    rng = np.random.default_rng(13)
    terms = make_terms([3, 30], 40, rng, dtype, background=background)
    other = rng.normal(size=(40, 20)).astype(dtype)
    other[terms.col_idx[0], 5] = bad
    with pytest.raises(ModelFitError, match=r"NaN or infinity|not finite"):
        solve(terms, other)


@both_dtypes
def test_solution_beyond_the_range_of_the_dtype(dtype, isa):
    most = np.finfo(dtype).max
    terms = make_terms([1], 1, np.random.default_rng(14), dtype, background=0.0)
    terms.rhs[:], terms.gram[:], terms.ridge[:] = most / 4, 0, 0.01
    with pytest.raises(ModelFitError, match=r"row 0 is not finite \(1 such rows\)"):
        solve(terms, np.ones((1, 3), dtype))
    terms.rhs[:] = most / 2000
    assert np.isfinite(solve(terms, np.ones((1, 3), dtype))).all()


# Loss


def make_training(name, dtype, d):
    matrix = make_matrix(name, dtype)
    bound = make_objective(name, **({"regularization": 0.05} if name == "spark" else {})).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(BACKEND.transpose(matrix))
    rng = np.random.default_rng(15)
    return users, items, *(rng.normal(size=(n, d)).astype(dtype) for n in (37, 53, 37, 53))


@both_dtypes
@pytest.mark.parametrize("d", [1, 31, 32, 45, 97])
@pytest.mark.parametrize("name", PRESETS)
def test_loss_is_the_definitions(name, d, dtype, isa):
    users, items, x, y, user_prior, item_prior = make_training(name, dtype, d)
    sizes = reference.loss(
        RowTerms(**{**vars(users), "rhs": -abs(users.rhs), "gram": abs(users.gram_values())}),
        abs(x),
        abs(y),
        items.ridge,
    )
    for priors in ({}, {"user_prior": user_prior, "item_prior": item_prior}):
        expected = reference.loss(users, x, y, items.ridge, **priors)
        got = BACKEND.loss(users, x, y, items.ridge, **priors)
        assert abs(got - expected) <= 1e-13 * sizes + np.finfo(dtype).eps * bool(priors) * expected


@both_dtypes
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_no_half_sweep_raises_the_loss(name, with_prior, dtype):
    users, items, x, y, user_prior, item_prior = make_training(name, dtype, 8)
    if name == "spark":
        users, items = (RowTerms(**{**vars(t), "ridge": t.ridge + dtype(0.01)}) for t in (users, items))
    user_prior, item_prior = (user_prior, item_prior) if with_prior else (None, None)
    losses = []
    for _ in range(40):
        solve_rows(BACKEND, users, y, x, prior=user_prior)
        losses.append(BACKEND.loss(users, x, y, items.ridge, user_prior=user_prior, item_prior=item_prior))
        solve_rows(BACKEND, items, x, y, prior=item_prior)
        losses.append(BACKEND.loss(users, x, y, items.ridge, user_prior=user_prior, item_prior=item_prior))
    assert losses[-1] < 0.9 * losses[0]
    # float64: rounding of the sum. float32: a solution that is off by eps lies higher by eps^2 times the curvature.
    assert np.all(np.diff(losses) <= (1e-13 if dtype is np.float64 else 1e-10) * losses[0])


@pytest.mark.parametrize("name", PRESETS)
def test_gradient_is_zero_where_the_sweeps_end(name):
    users, items, x, y, user_prior, item_prior = make_training(name, np.float64, 3)
    ridge = 4 * abs(users.gram_values()).max()  # so much that sweeps converge fast
    users, items = (RowTerms(**{**vars(t), "ridge": t.ridge + ridge}) for t in (users, items))
    priors = {"user_prior": user_prior, "item_prior": item_prior}
    start = max(abs(g).max() for g in reference.gradient(users, x, y, items.ridge, **priors))
    for _ in range(800):
        solve_rows(BACKEND, users, y, x, prior=user_prior)
        solve_rows(BACKEND, items, x, y, prior=item_prior)
    gx, gy = reference.gradient(users, x, y, items.ridge, **priors)
    assert max(abs(gx).max(), abs(gy).max()) < 1e-9 * start


@pytest.mark.parametrize("name", PRESETS)
def test_a_spectrum_of_before_and_few_rows_change_nothing(name):
    """Few rows rotate only what they meet, many the whole table; a spectrum that is handed in is not computed again."""
    rng = np.random.default_rng(5)
    matrix = sparse_random(30, 200, 0.1, format="csr", dtype=np.float32, random_state=rng)
    terms = make_objective(name).bind(matrix).user_terms(matrix)
    assert terms.n_entries > 200
    other = rng.standard_normal((200, 20), dtype=np.float32)
    backend = CpuBackend(2)
    spectrum = backend.spectrum(terms, other)
    many, few = np.empty((30, 20), np.float32), np.empty((4, 20), np.float32)
    solve_rows(backend, terms, other, many)
    row_terms = replace(
        terms,
        row_ptr=terms.row_ptr[:5],
        col_idx=terms.col_idx[: terms.row_ptr[4]],
        rhs=terms.rhs if len(terms.rhs) == 1 else terms.rhs[: terms.row_ptr[4]],
        gram=terms.gram if terms.gram is None or len(terms.gram) == 1 else terms.gram[: terms.row_ptr[4]],
        ridge=terms.ridge if len(terms.ridge) == 1 else terms.ridge[:4],
    )
    assert 0 < row_terms.n_entries < 200
    solve_rows(backend, row_terms, other, few)
    np.testing.assert_array_equal(few, many[:4])
    few[:] = 0
    solve_rows(backend, row_terms, other, few, spectrum=spectrum)
    np.testing.assert_array_equal(few, many[:4])
    if spectrum.vectors is not None:  # it is really used
        solve_rows(backend, row_terms, other, few, spectrum=spectrum._replace(values=2 * spectrum.values))
        assert abs(few - many[:4]).max() > 1e-3
