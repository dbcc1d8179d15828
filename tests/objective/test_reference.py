"""The definition against statements that do not share its algebra: least squares, double loops, finite differences."""

import dataclasses
import pickle

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import reference
from wals_gpu.errors import SingularSystemError
from wals_gpu.objective.presets import Explicit, Implicit
from wals_gpu.objective.terms import RowTerms

USERS, ITEMS = 11, 8


def make_problem(d, seed=0):
    """Confidence and target per pair, g, h, ridges, priors and factors; a user and an item have no entries."""
    rng = np.random.default_rng(seed)
    seen = rng.random((USERS, ITEMS)) < 0.5
    seen[3], seen[:, 5] = False, False
    return {
        "seen": seen,
        "c": rng.uniform(0, 3, seen.shape) * (rng.random(seen.shape) < 0.8),  # some confidences are 0, many below g h
        "t": rng.normal(size=seen.shape),
        "g": rng.uniform(0.1, 2, USERS),
        "h": rng.uniform(0, 2, ITEMS),
        "user_ridge": rng.uniform(0.1, 1, USERS),
        "item_ridge": rng.uniform(0.1, 1, ITEMS),
        "user_prior": rng.normal(size=(USERS, d)),
        "item_prior": rng.normal(size=(ITEMS, d)),
        "x": rng.normal(size=(USERS, d)),
        "y": rng.normal(size=(ITEMS, d)),
    }


def swapped(p):
    """The same problem with the roles of users and items exchanged."""
    names = {"g": "h", "h": "g", "x": "y", "y": "x"}
    names |= {f"{a}_{n}": f"{b}_{n}" for a, b in (("user", "item"), ("item", "user")) for n in ("ridge", "prior")}
    return {n: p[n].T for n in ("seen", "c", "t")} | {n: p[other] for n, other in names.items()}


def make_terms(p):
    """Terms of the users."""
    seen = p["seen"]
    return RowTerms(
        row_ptr=np.concatenate([[0], np.cumsum(seen.sum(axis=1))]),
        col_idx=np.nonzero(seen)[1].astype(np.int32),
        rhs=(p["c"] * p["t"])[seen],
        gram=(p["c"] - np.outer(p["g"], p["h"]))[seen],
        gram_offset=0.0,
        background=p["g"],
        ridge=p["user_ridge"],
        other_background=p["h"],
        target_square=float((p["c"] * p["t"] ** 2)[seen].sum()),
    )


def least_squares(weights, targets, other, ridge, prior):
    """argmin of sum_i weights_i (targets_i - x.y_i)^2 + ridge |x - prior|^2, by QR of the stacked rows."""
    root = np.sqrt(weights)
    rows = np.vstack([root[:, None] * other, np.sqrt(ridge) * np.eye(other.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([root * targets, np.sqrt(ridge) * prior]), rcond=None)[0]


def loss_by_loops(p):
    total = 0.0
    for u in range(USERS):
        for i in range(ITEMS):
            s = p["x"][u] @ p["y"][i]
            total += p["c"][u, i] * (p["t"][u, i] - s) ** 2 if p["seen"][u, i] else p["g"][u] * p["h"][i] * s**2
        total += p["user_ridge"][u] * np.sum((p["x"][u] - p["user_prior"][u]) ** 2)
    return total + sum(p["item_ridge"][i] * np.sum((p["y"][i] - p["item_prior"][i]) ** 2) for i in range(ITEMS))


def loss_of(p, terms=None):
    terms = make_terms(p) if terms is None else terms
    priors = {"user_prior": p["user_prior"], "item_prior": p["item_prior"]}
    return reference.loss(terms, p["x"], p["y"], p["item_ridge"], **priors)


def gradient_of(p):
    priors = {"user_prior": p["user_prior"], "item_prior": p["item_prior"]}
    return reference.gradient(make_terms(p), p["x"], p["y"], p["item_ridge"], **priors)


@pytest.mark.parametrize("d", [1, 2, 7, 12])
@pytest.mark.parametrize("side", ["user", "item"])
def test_solve_rows_is_weighted_least_squares(d, side):
    p = make_problem(d) if side == "user" else swapped(make_problem(d))
    solved = reference.solve_rows(make_terms(p), p["y"], prior=p["user_prior"])
    for r, seen in enumerate(p["seen"]):
        weights = np.where(seen, p["c"][r], p["g"][r] * p["h"])
        expected = least_squares(weights, np.where(seen, p["t"][r], 0), p["y"], p["user_ridge"][r], p["user_prior"][r])
        np.testing.assert_allclose(solved[r], expected, rtol=1e-9, atol=1e-11)


def test_no_prior_is_a_prior_of_zero():
    p = make_problem(4)
    zero = np.zeros((USERS, 4))
    terms = make_terms(p)
    np.testing.assert_array_equal(reference.solve_rows(terms, p["y"]), reference.solve_rows(terms, p["y"], prior=zero))
    assert reference.loss(terms, p["x"], p["y"], p["item_ridge"]) == reference.loss(
        terms, p["x"], p["y"], p["item_ridge"], user_prior=zero, item_prior=np.zeros((ITEMS, 4))
    )


def test_row_without_entries_and_ridge_is_the_minimiser_nearest_to_its_prior():
    empty = csr_matrix((2, 3))
    prior = np.array([[3.0, 4.0], [-1.0, 2.0]])
    explicit = Explicit(regularization=1).bind(empty).user_terms(empty)  # no unobserved weight: nothing moves it
    np.testing.assert_array_equal(reference.solve_rows(explicit, np.ones((3, 2)), prior=prior), prior)
    assert not reference.solve_rows(explicit, np.ones((3, 2))).any()
    implicit = Implicit(regularization=0).bind(empty).user_terms(empty)
    assert not reference.solve_rows(implicit, np.ones((3, 2))).any()  # a singular system
    # Scores x . (1, 1) must be 0, and the rest of the prior stays.
    expected = prior - prior.sum(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(reference.solve_rows(implicit, np.ones((3, 2)), prior=prior), expected, atol=1e-14)


@pytest.mark.parametrize("d", [1, 5])
def test_loss_is_the_double_sum(d):
    p = make_problem(d)
    assert loss_of(p) == pytest.approx(loss_by_loops(p), rel=1e-12)
    # The comparison can fail: a change of one coefficient in a hundred million is seen.
    terms = make_terms(p)
    gram = terms.gram.copy()
    gram[0] *= 1 + 1e-8
    assert loss_of(p, dataclasses.replace(terms, gram=gram)) != pytest.approx(loss_by_loops(p), rel=1e-12)


@pytest.mark.parametrize("d", [1, 5])
def test_gradient_is_the_slope_of_the_loss(d):
    p = make_problem(d)
    h = 1e-6
    for name, gradient in zip("xy", gradient_of(p), strict=True):
        for index in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = p[name].copy()
                moved[index] += sign * h
                ends.append(loss_by_loops({**p, name: moved}))
            assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(gradient[index], rel=1e-6, abs=1e-6)


def test_exact_sweeps_never_raise_the_loss_and_end_where_the_gradient_is_zero():
    p = make_problem(3)
    users, items = make_terms(p), make_terms(swapped(p))
    losses = [loss_of(p)]
    for _ in range(400):
        p["x"] = reference.solve_rows(users, p["y"], prior=p["user_prior"])
        losses.append(loss_of(p))
        p["y"] = reference.solve_rows(items, p["x"], prior=p["item_prior"])
        losses.append(loss_of(p))
    assert np.all(np.diff(losses) <= 1e-12 * losses[0])
    gx, gy = gradient_of(p)
    assert max(abs(gx).max(), abs(gy).max()) < 1e-6 * losses[0]


def test_constants_and_left_out_gram_mean_their_full_arrays():
    p = make_problem(3)
    rng = np.random.default_rng(5)
    rhs = rng.uniform(1, 2, int(p["seen"].sum()))
    one = np.ones(1)
    short = dataclasses.replace(
        make_terms(p), rhs=rhs, gram=None, gram_offset=-0.5, background=one / 2, ridge=one, other_background=one
    )
    full = dataclasses.replace(
        short, gram=rhs - 0.5, background=np.full(USERS, 0.5), ridge=np.ones(USERS), other_background=np.ones(ITEMS)
    )
    np.testing.assert_array_equal(reference.solve_rows(short, p["y"]), reference.solve_rows(full, p["y"]))
    assert loss_of(p, short) == loss_of(p, full)
    short = dataclasses.replace(short, rhs=one * 2, gram=one)
    full = dataclasses.replace(full, rhs=np.full(len(rhs), 2.0), gram=np.ones(len(rhs)))
    np.testing.assert_array_equal(reference.solve_rows(short, p["y"]), reference.solve_rows(full, p["y"]))
    assert loss_of(p, short) == loss_of(p, full)


def test_float32_input_is_computed_in_float64_and_left_alone():
    matrix = csr_matrix(np.array([[1, 0, 2], [0, 3, 0]], np.float32))
    terms = Implicit(regularization=0.25).bind(matrix).user_terms(matrix)
    y = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    prior = np.ones((2, 2), np.float32)
    solved = reference.solve_rows(terms, y, prior=prior)
    assert solved.dtype == np.float64 and (prior == 1).all()
    y = y.astype(np.float64)
    expected = np.linalg.solve(y.T @ np.diag([1.0, 1, 2]) @ y + 0.25 * np.eye(2), y.T @ [1.0, 0, 2] + 0.25)
    np.testing.assert_allclose(solved[0], expected, rtol=1e-13)


def test_singular_system_names_the_row():
    matrix = csr_matrix(np.array([[1.0, 2, 3], [0, 0, 0], [4, 0, 0]]))
    terms = Explicit(regularization=0).bind(matrix).user_terms(matrix)
    y = np.array([[1.0, 0], [0, 1], [1, 1]])
    with pytest.raises(
        SingularSystemError, match="row 2 is not positive definite; increase the regularization"
    ) as info:
        reference.solve_rows(terms, y)
    assert info.value.row == 2 and isinstance(info.value, np.linalg.LinAlgError)
    assert str(pickle.loads(pickle.dumps(info.value))) == str(info.value)


def test_topk_order_ties_exclusions_and_padding():
    items = np.array([[1.0], [3], [2], [3], [-1]])
    queries = np.array([[1.0], [-1], [0]])
    excluded = csr_matrix(np.array([[0, 5.0, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]))
    excluded.data[0] = 0  # a stored zero excludes too
    ids, scores = reference.topk(queries, items, 4, excluded)
    assert ids.tolist() == [[3, 2, 0, 4], [2, 3, -1, -1], [0, 1, 2, 3]]
    assert scores.tolist() == [[3, 2, 1, -1], [-2, -3, -np.inf, -np.inf], [0, 0, 0, 0]]
    assert ids.dtype == np.int32
    ids, scores = reference.topk(queries[:1], items, 7)
    assert ids.tolist() == [[1, 3, 2, 0, 4, -1, -1]]
    assert reference.topk(np.empty((0, 1)), items, 2)[0].shape == (0, 2)


@pytest.mark.parametrize("k", [1, 6, 30])
def test_topk_is_the_head_of_a_full_sort(k):
    rng = np.random.default_rng(3)
    queries, items = rng.integers(-2, 3, (9, 3)), rng.integers(-2, 3, (30, 3))  # whole numbers, so many ties
    ids, scores = reference.topk(queries, items, k)
    for query, row, row_scores in zip(queries, ids, scores, strict=True):
        expected = sorted((-float(query @ item), i) for i, item in enumerate(items))[:k]
        assert [(-s, i) for s, i in zip(row_scores, row, strict=True)] == expected
