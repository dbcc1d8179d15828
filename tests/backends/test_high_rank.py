"""More factors than fit the caches: systems solved in blocks, subspace steps without eigenvectors, 8,192 factors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from once import once
from rows import ROOM, dual_limit, giant_length, make_check, make_terms
from scipy.sparse import csr_matrix
from solving import solve_rows

from wals_gpu import WALS, _cpu, reference
from wals_gpu._cpu import LIMITS
from wals_gpu.backends import SolveOptions, cpu
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.host import decompose_rows
from wals_gpu.backends.solve import EXACT, LEAST_BLOCK_MANY_FACTORS, MOST_FACTORS_CG
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.terms import RowTerms

BACKEND = CpuBackend(2)
BLOCKED = LIMITS.blocked_factors
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


@once
def exact_problem(d, signs, dtype, n_giant=0):
    """Rows on both sides of each slab of 256 entries and of the limit of the dual form, an empty one, a giant one."""
    rng = np.random.default_rng(d)
    lengths = [1, 255, 257, dual_limit(d), dual_limit(d) + 1, d + 300, 0] + ([n_giant] if n_giant else [])
    terms = make_terms(lengths, max(lengths), rng, dtype, signs)
    other = rng.normal(size=(max(lengths), d)).astype(dtype)
    prior = rng.normal(size=(len(lengths), d)).astype(dtype)
    return terms, other, prior, make_check(terms, other, prior)


@both_dtypes
@pytest.mark.parametrize(("d", "signs"), [(BLOCKED + 1, "plus"), (BLOCKED + 33, "minus"), (BLOCKED + 97, "all")])
def test_systems_in_blocks(isa, d, signs, dtype):
    terms, other, prior, check = exact_problem(d, signs, dtype)
    results = []
    for threads in (1, 3):
        results.append(np.full(prior.shape, np.nan, dtype))
        solve_rows(CpuBackend(threads), terms, other, results[-1], prior=prior)
    check(results[0])
    np.testing.assert_array_equal(*results)


def test_giant_rows_in_blocks(isa):
    d = BLOCKED + 5
    terms, other, prior, check = exact_problem(d, "all", np.float32, n_giant=giant_length(d) + 4099)
    solved = np.full(prior.shape, np.nan, np.float32)
    loss = solve_rows(BACKEND, terms, other, solved, prior=prior, return_loss=True)
    check(solved)
    expected = BACKEND.loss(terms, solved, other, np.zeros(1, np.float32), user_prior=prior) - terms.target_square
    assert loss == pytest.approx(expected, rel=1e-5)


@both_dtypes
def test_a_pivot_that_is_rounding_is_found_in_a_block(isa, dtype):
    """Of two equal columns the second has nothing of its own; with a ridge on all but rounding it is solved."""
    d, n = BLOCKED + 40, BLOCKED + 200
    rng = np.random.default_rng(1)
    other = rng.normal(size=(n, d)).astype(dtype)
    other[:, d - 3] = other[:, 7]
    terms = make_terms([n], n, rng, dtype, background=0.0, ridge=0.0)
    with pytest.raises(SingularSystemError):
        solve_rows(BACKEND, terms, other, np.zeros((1, d), dtype))


def whitened_problem(signs="plus", dtype=np.float32):
    """Rows of one background and one ridge, in all forms."""
    d, rng, one = LIMITS.rotated_subspace_factors + 16, np.random.default_rng(0), np.ones(1, dtype)
    lengths = [1, 257, dual_limit(d), dual_limit(d) + 1, 0]
    terms = make_terms(lengths, d + 30, rng, dtype, signs)
    terms = replace(terms, background=1.5 * one, ridge=one / 10)
    return terms, rng.normal(size=(d + 30, d)).astype(dtype), rng.normal(size=(len(lengths), d)).astype(dtype)


def solve_in_session(backend, terms, other, factors, options=EXACT, prior=None, return_loss=False):
    """Solve into `factors` as a fit does that may move its sides."""
    own, given = (backend.empty_factors(*array.shape, array.dtype) for array in (factors, other))
    own[:], given[:] = factors, other
    try:
        with backend.session(own, given, may_move=True) as session:
            return session.solve("user", terms, options, prior, return_loss=return_loss)
    finally:
        factors[:] = own


@pytest.fixture
def whitened(monkeypatch):
    """What each call of `whiten` came to: whether sides are solved without eigenvectors."""
    found = []

    def whiten(gram, ridge, original=cpu.whiten):
        whitening = original(gram, ridge)
        found.append(whitening is not None)
        return whitening

    monkeypatch.setattr(cpu, "whiten", whiten)
    return found


@pytest.mark.parametrize(("signs", "dtype"), [("plus", np.float32), ("plus", np.float64), ("minus", np.float32)])
def test_rows_of_one_ridge_are_solved_without_eigenvectors(isa, signs, dtype, whitened):
    terms, other, start = whitened_problem(signs, dtype)
    results, losses = [], []
    for threads in (1, 3):
        results.append(start.copy())
        losses.append(solve_in_session(CpuBackend(threads), terms, other, results[-1], return_loss=True))
    assert whitened == [True, True]
    np.testing.assert_array_equal(*results)
    expected = BACKEND.loss(terms, results[0], other, np.zeros(1, dtype)) - terms.target_square
    assert losses[0] == losses[1] == pytest.approx(expected, rel=1e-5)
    most = (1.5 * terms.other_background.max() + abs(terms.gram).max()) * np.linalg.norm(other, 2) ** 2  # eigenvalue
    for r, x in enumerate(results[0].astype(np.float64)):
        entries = slice(terms.row_ptr[r], terms.row_ptr[r + 1])
        y, gram, rhs = other[terms.col_idx[entries]].astype(np.float64), terms.gram[entries], terms.rhs[entries]
        product = 1.5 * (terms.other_background * (other @ x)) @ other + (gram * (y @ x)) @ y + x / 10
        allowed = np.finfo(dtype).eps * (most * np.linalg.norm(x) + abs(rhs) @ np.linalg.norm(y, axis=1))
        assert np.linalg.norm(product - rhs @ y) <= ROOM[np.dtype(dtype).name] * allowed


@pytest.mark.parametrize("why", ["ridges", "tiny ridge", "no ridge", "backgrounds", "prior", "relaxed", "large sides"])
def test_where_eigenvectors_are_needed(why, whitened, monkeypatch):
    terms, other, start = whitened_problem()
    n, one, options, prior = terms.n_rows, np.ones(1, np.float32), EXACT, None
    if why == "ridges":
        terms = replace(terms, ridge=np.linspace(0.1, 0.2, n, dtype=np.float32))
    elif why == "backgrounds":
        terms = replace(terms, background=np.linspace(1, 2, n, dtype=np.float32))
    elif why in ("tiny ridge", "no ridge"):
        terms = replace(terms, ridge=one * (1e-7 if why == "tiny ridge" else 0))
    elif why == "prior":
        prior = start
    elif why == "relaxed":
        options = SolveOptions(relaxation=1.2)
    else:
        monkeypatch.setattr(cpu, "_WHITENED_ROWS", 1)
    solve_in_session(BACKEND, terms, other, start.copy(), options, prior)
    assert whitened == ([False] if why in ("tiny ridge", "no ridge") else [])


def test_a_row_that_cannot_be_solved_by_a_whitening_stays_as_it_was(isa, whitened):
    terms, other, start = whitened_problem()
    rhs = terms.rhs.copy()
    bad = 2
    rhs[terms.row_ptr[bad]] = np.nan
    got, expected = start.copy(), start.copy()
    with pytest.raises(ModelFitError, match="row 2 is not finite"):
        solve_in_session(BACKEND, replace(terms, rhs=rhs), other, got)
    solve_in_session(BACKEND, terms, other, expected)
    assert whitened == [True, True]
    expected[bad] = start[bad]
    np.testing.assert_array_equal(got, expected)


@both_dtypes
@pytest.mark.parametrize("n", [1, 129, 300, 1500])
def test_gram_matrices_by_blocks(isa, n, dtype):
    for d in (BLOCKED + 1, BLOCKED + 250):
        rng = np.random.default_rng(n)
        factors, weight = rng.normal(size=(n, d)).astype(dtype), rng.uniform(0.5, 2, n).astype(dtype)
        gram = _cpu.gram(factors, weight, 2)
        wide = factors.astype(np.float64)
        # Each product is rounded when it is added: n of them, to the size of the sum of their magnitudes.
        allowed = 3 * n * np.finfo(np.float64).eps * ((np.abs(wide).T * weight) @ np.abs(wide))
        assert (np.abs(gram - (wide.T * weight) @ wide) <= allowed).all()
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(gram, _cpu.gram(factors, weight, 1))


@pytest.mark.parametrize("n", [1, 7, 255, 257, 600])
def test_rotations_of_many_rows(isa, n):
    d = BLOCKED + 16
    rng = np.random.default_rng(n)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    factors = rng.normal(size=(n, d))
    expected = factors @ rotation
    allowed = 3 * d * np.finfo(np.float64).eps * (np.abs(factors) @ np.abs(rotation))
    assert (np.abs(_cpu.rotate(factors, rotation, 2) - expected) <= allowed).all()
    x, y, basis = factors.copy(), factors[::-1].copy(), np.eye(d)
    _cpu.rotate_together(x, y, basis, rotation, True, 2)
    assert (np.abs(x - expected) <= allowed).all() and (np.abs(y - expected[::-1]) <= allowed[::-1]).all()
    np.testing.assert_allclose(basis, rotation, rtol=0, atol=d * np.finfo(np.float64).eps)


def test_the_spectrum_of_few_rows_is_that_of_their_gram_matrix():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 90))
    values, vectors = decompose_rows(rows, np.ones(1))
    assert (np.diff(values) >= 0).all() and np.count_nonzero(values) == 20
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(90), atol=1e-13)
    np.testing.assert_allclose((vectors * values) @ vectors.T, rows.T @ rows, atol=1e-12)


# Subspace steps in the factors' own coordinates


def steps_problem(d, signs, dtype, lengths=(1, 40, 0, 300, 7, 16, 17, 900)):
    rng = np.random.default_rng(d)
    terms = make_terms(lengths, max(lengths), rng, dtype, signs)
    other = rng.normal(size=(max(lengths), d)).astype(dtype)
    return terms, other, rng.normal(size=(len(lengths), d)).astype(dtype)


@pytest.mark.parametrize(
    ("d", "block", "signs", "relaxation"),
    [
        (1, 16, "plus", 1.0),
        (50, 16, "plus", 1.3),
        (97, 48, "all", 1.0),
        (128, 64, "minus", 1.0),
        (160, 32, "mixed", 0.7),
        (BLOCKED + 88, BLOCKED + 48, "all", 1.0),
    ],
)
def test_plain_steps_are_those_of_the_reference(isa, d, block, signs, relaxation):
    terms, other, start = steps_problem(d, signs, np.float64)
    options = SolveOptions("subspace", block_size=block, relaxation=relaxation)
    gram = BACKEND.gram(terms, other)
    results = []
    for threads in (1, 3):
        got = start.copy()
        row_loss = np.zeros(terms.n_rows)
        CpuBackend(threads).solve_plain(terms, other, gram, got, options, row_loss=row_loss)
        loss = float(row_loss.sum())
        results.append((got, loss))
    expected = reference.solve_rows_subspace(terms, other, start, block, relaxation=relaxation, rotated=False)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    expected_loss = BACKEND.loss(terms, got, other, np.zeros(1)) - terms.target_square
    assert loss == pytest.approx(expected_loss, rel=1e-11, abs=1e-11 * abs(expected_loss))


def test_plain_steps_in_float32_never_raise_the_loss(isa):
    terms, other, x = steps_problem(130, "plus", np.float32)
    exact = np.zeros_like(x)
    lowest = solve_rows(BACKEND, terms, other, exact, return_loss=True)
    gram, options = BACKEND.gram(terms, other), SolveOptions("subspace", block_size=32)
    losses, row_loss = [], np.zeros(terms.n_rows)
    for _ in range(30):
        BACKEND.solve_plain(terms, other, gram, x, options, row_loss=row_loss)
        losses.append(float(row_loss.sum()))
    slack = 1e-5 * abs(losses[0])
    assert all(after <= before + slack for before, after in pairwise(losses))
    assert losses[0] > losses[5] > lowest - slack


def test_a_singular_block_names_its_row(isa):
    terms, other, x = steps_problem(60, "plus", np.float32, lengths=(3, 300))
    other[:] = 0
    terms = make_terms((3, 300), 300, np.random.default_rng(0), np.float32, ridge=0.0)
    with pytest.raises(SingularSystemError, match="row 0"):
        BACKEND.solve_plain(terms, other, BACKEND.gram(terms, other), x, SolveOptions("subspace", block_size=16))


def test_which_steps_are_taken():
    """Plain ones above a number of factors, where there is a background and no prior."""
    assert MOST_FACTORS_CG >= LIMITS.rotated_subspace_factors
    assert SolveOptions.choose("auto", MOST_FACTORS_CG, block_size=64).solver == "cg"
    for block, taken in ((64, LEAST_BLOCK_MANY_FACTORS), (256, 256)):
        options = SolveOptions.choose("auto", MOST_FACTORS_CG + 1, block_size=block)
        assert (options.solver, options.block_size) == ("subspace", taken)
    for d, rotated in ((LIMITS.rotated_subspace_factors + 4, False), (80, True)):
        terms, other, start = steps_problem(d, "plus", np.float64, lengths=(100, 3))
        got = start.copy()
        solve_rows(BACKEND, terms, other, got, solver="subspace", block_size=64)
        if rotated:
            continue  # test_solve_iterative.py
        expected = reference.solve_rows_subspace(terms, other, start, 64, rotated=False)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


# Whole fits


def tiny(users=30, items=20):
    rng = np.random.default_rng(0)
    return csr_matrix((rng.random((users, items)) < 0.3).astype(np.float32))


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
def test_more_factors_than_rows(solver, tmp_path):
    """All solvers come to one loss; models are saved, loaded and asked as others."""
    matrix = tiny()
    d = LIMITS.rotated_subspace_factors + 76
    model = WALS(d, "hu", alpha=5, solver=solver, iterations=12, num_threads=2).fit(matrix)
    losses = [record.loss for record in model.history_]
    assert all(b <= a * 1.00001 for a, b in pairwise(losses))
    few = WALS(64, "hu", alpha=5, solver="cholesky", iterations=40, num_threads=2).fit(matrix)
    assert losses[-1] < few.history_[-1].loss * 1.02  # 20 directions are all there are
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert loaded.item_factors.shape == (20, d)
    for a, b in zip(model.recommend([0, 3], k=5), loaded.recommend([0, 3], k=5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_fit_goes_on_to_the_bit(tmp_path):
    d = LIMITS.rotated_subspace_factors + 16
    settings = {"factors": d, "objective": "hu", "solver": "subspace", "num_threads": 2}
    matrix = tiny(users=150, items=90)
    whole = WALS(iterations=3, **settings).fit(matrix)
    WALS(iterations=2, **settings).fit(matrix, checkpoint_dir=tmp_path / "c", resume=True)
    resumed = WALS(iterations=3, **settings).fit(matrix, checkpoint_dir=tmp_path / "c", resume=True)
    np.testing.assert_array_equal(whole.user_factors, resumed.user_factors)


def test_the_most_factors():
    d = LIMITS.most_factors
    matrix = tiny(users=9, items=8)
    model = WALS(d, "hu", iterations=1, num_threads=2, compute_loss=False).fit(matrix)
    assert model.user_factors.shape == (9, d) and np.isfinite(model.user_factors).all()
    assert "MiB" in str(model.estimate_memory(*matrix.shape, matrix.nnz))
    with pytest.raises(ValueError, match=f"factors must be an integer from 1 to {d}, got {d + 1}"):
        WALS(d + 1)


def test_rows_of_the_most_factors(isa):
    """In both forms, by what is left of each system: A x = P' diag(a) P x + lambda x."""
    d = LIMITS.most_factors
    lengths = [300, dual_limit(d) + 1] if isa_is_best() else [300]
    n = max(lengths)
    rng = np.random.default_rng(0)
    other = rng.normal(size=(n, d)).astype(np.float32)
    col_idx = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    size = len(col_idx)
    gram, rhs = (rng.uniform(0.5, 2, size).astype(np.float32) for _ in range(2))
    one = np.ones(1, np.float32)
    ridge = 2000.0
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    terms = RowTerms(row_ptr, col_idx, rhs, gram, 0.0, 0 * one, ridge * one, one, 0.0)
    solved = np.full((len(lengths), d), np.nan, np.float32)
    solve_rows(BACKEND, terms, other, solved)
    for r, length in enumerate(lengths):
        entries, x = slice(row_ptr[r], row_ptr[r + 1]), solved[r].astype(np.float64)
        p, a, rho = other[:length], gram[entries], rhs[entries].astype(np.float64)
        residual = np.linalg.norm(p.T @ (a * (p @ x) - rho) + ridge * x)
        largest = ridge + a.max() * (np.sqrt(length) + np.sqrt(d)) ** 2  # of a Gaussian matrix, almost surely
        size_b = rho @ np.linalg.norm(p, axis=1)
        allowed = np.finfo(np.float32).eps * (largest * np.linalg.norm(x) + size_b)
        assert residual <= ROOM["float32"] * allowed


def isa_is_best():
    return _cpu.isa() == next(name for name in _cpu.available_isas() if name not in ("amx", "avx512vnni"))


def test_top_k_of_the_most_factors(topk_isa):
    d = LIMITS.most_factors
    rng = np.random.default_rng(3)
    queries, items = (rng.normal(size=(n, d)).astype(np.float32) for n in (5, 400))
    ids, scores = BACKEND.topk(queries, items, 10)
    exact = queries.astype(np.float64) @ items.T.astype(np.float64)
    np.testing.assert_array_equal(ids, np.argsort(-exact, axis=1)[:, :10])
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-4)
