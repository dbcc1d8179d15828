"""Each preset against its system's own statement, written here from the paper or the system, not from the package.

The statements are plain loops over dense float64 arrays: `v` (U, I) has the values, `seen` (U, I) what is observed.
"""

import dataclasses
import itertools
import json
import pickle
import tracemalloc
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array, csr_matrix

from wals_gpu import reference
from wals_gpu.errors import ModelFormatError
from wals_gpu.objective import bound as bound_module
from wals_gpu.objective import terms as terms_module
from wals_gpu.objective.presets import (
    PRESETS,
    GoogleWals,
    Hu,
    Ials,
    Implicit,
    bound_from_arrays,
    make_objective,
    usual_regularization,
)

U, I, D = 13, 9, 3  # noqa: E741
EMPTY_USER, EMPTY_ITEM = 4, 6
ROW_WEIGHTS = np.linspace(0.3, 2.0, U)
COLUMN_WEIGHTS = np.linspace(1.5, 0.2, I)


def to_csr(v, seen, dtype=np.float64):
    """Canonical CSR that keeps stored zeros."""
    rows, columns = np.nonzero(seen)
    row_ptr = np.concatenate([[0], np.cumsum(seen.sum(axis=1))])
    return csr_matrix((v[rows, columns].astype(dtype), columns.astype(np.int32), row_ptr), shape=v.shape)


def make_data(signed, seed=0):
    """Values from 0.05 to 6 with some stored zeros, a user and an item without entries, negative values if `signed`."""
    rng = np.random.default_rng(seed)
    seen = rng.random((U, I)) < 0.45
    seen[EMPTY_USER], seen[:, EMPTY_ITEM] = False, False
    v = np.exp(rng.uniform(np.log(0.05), np.log(6), (U, I)))
    v[rng.random((U, I)) < 0.15] = 0
    if signed:
        v[rng.random((U, I)) < 0.25] *= -1
    return np.where(seen, v, 0), seen


def make_factors(seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(U, D)), rng.normal(size=(I, D))


class System(NamedTuple):
    """A system: its loss over both factors, up to `constant(seen)`, and its own solution of one row.

    `solve(v, seen, r, other, side)` is for row r of `v` and `seen`, which are both transposed if side is "item";
    `other` has the fixed factors.
    """

    preset: str
    params: dict
    loss: object
    solve: object
    constant: object = staticmethod(lambda seen: 0.0)


def pairs():
    return ((u, i) for u in range(U) for i in range(I))


def plain_ridge(lam, x, y):
    return lam * (np.sum(x**2) + np.sum(y**2))


# benfred/implicit: sum over stored of |c| (p - s)^2 + sum over the rest of s^2 + ridge, c = alpha r, p = [c > 0].
def implicit_system(alpha, lam):
    def loss(v, seen, x, y):
        total = plain_ridge(lam, x, y)
        for u, i in pairs():
            s, c = x[u] @ y[i], alpha * v[u, i]
            total += abs(c) * ((1.0 if c > 0 else 0.0) - s) ** 2 if seen[u, i] else s**2
        return total

    def solve(v, seen, r, other, side):
        a, b = other.T @ other + lam * np.eye(D), np.zeros(D)
        for j in np.flatnonzero(seen[r]):
            c = alpha * v[r, j]
            if c > 0:
                b += c * other[j]
            a += (abs(c) - 1) * np.outer(other[j], other[j])
        return np.linalg.solve(a, b)

    return System("implicit", dict(alpha=alpha, regularization=lam), loss, solve)


# Hu, Koren, Volinsky 2008, equations 3 and 4: C^u diagonal, p(u) the preferences, both over ALL items.
def hu_system(confidence, lam, **params):
    def loss(v, seen, x, y):
        return plain_ridge(lam, x, y) + sum(
            confidence(v[u, i]) * ((1.0 if v[u, i] > 0 else 0.0) - x[u] @ y[i]) ** 2 for u, i in pairs()
        )

    def solve(v, seen, r, other, side):
        c, p = np.diag([confidence(value) for value in v[r]]), (v[r] > 0).astype(float)
        return np.linalg.inv(other.T @ c @ other + lam * np.eye(D)) @ other.T @ c @ p

    return System("hu", dict(regularization=lam, **params), loss, solve)


# Rendle et al., "Revisiting the Performance of iALS": L_S + alpha_0 L_I + R with the frequency-scaled ridge, and the
# solution as their program writes it: w0 * gramian + ridge + sum of outer products, right-hand side a sum of factors.
def ials_system(w0, nu, lam):
    def loss(v, seen, x, y):
        s = x @ y.T
        total = np.sum((s[seen] - 1) ** 2) + w0 * np.sum(s**2)
        total += sum(lam * (np.sum(seen[u]) + w0 * I) ** nu * np.sum(x[u] ** 2) for u in range(U))
        return total + sum(lam * (np.sum(seen[:, i]) + w0 * U) ** nu * np.sum(y[i] ** 2) for i in range(I))

    def solve(v, seen, r, other, side):
        history = other[seen[r]]
        choices = I if side == "user" else U
        a = w0 * (other.T @ other) + lam * (len(history) + w0 * choices) ** nu * np.eye(D) + history.T @ history
        return np.linalg.solve(a, history.sum(axis=0))

    params = dict(unobserved_weight=w0, nu=nu, regularization=lam)
    # (1 + w0)(s - 1/(1 + w0))^2 = (s - 1)^2 + w0 s^2 - w0/(1 + w0)
    return System("ials", params, loss, solve, staticmethod(lambda seen: seen.sum() * w0 / (1 + w0)))


# TensorFlow's WALSModel: || sqrt(W) * (A - U V') ||^2 + lambda (|U|^2 + |V|^2), W_ij = w0 + R_i C_j if stored else w0.
def google_system(w0, rows, columns, lam, **params):
    def weights(v, seen):
        r, c = rows(v, seen), columns(v, seen)
        return np.where(seen, w0 + np.outer(r, c), w0)

    def loss(v, seen, x, y):
        return np.linalg.norm(np.sqrt(weights(v, seen)) * (v - x @ y.T)) ** 2 + plain_ridge(lam, x, y)

    def solve(v, seen, r, other, side):
        w = weights(v, seen) if side == "user" else weights(v.T, seen.T).T
        w = np.diag(w[r])
        return np.linalg.solve(other.T @ w @ other + lam * np.eye(D), other.T @ w @ v[r])

    return System("google_wals", dict(unobserved_weight=w0, regularization=lam, **params), loss, solve)


# The column weights of Google's recommendation tutorial: (1 / number of rows that have the item) ^ exponent.
def tutorial_weights(factor, exponent):
    def columns(v, seen):
        n = seen.sum(axis=0)
        frac = np.array([1.0 / k if k else 0.0 for k in n])
        return factor * frac**exponent

    return columns


# He et al. 2016, equations 7 and 8: sum over R of w (r - r^)^2 + sum_u sum over i not in R_u of c_i r^^2 + ridge,
# c_i = c_0 f_i^alpha / sum_j f_j^alpha with f_i = |R_i| / sum_j |R_j|.
def eals_system(w, c0, exponent, lam):
    def item_weights(seen):
        f = seen.sum(axis=0) / seen.sum()
        return c0 * f**exponent / np.sum(f**exponent)

    def loss(v, seen, x, y):
        c = item_weights(seen)
        return plain_ridge(lam, x, y) + sum(
            w * (1 - x[u] @ y[i]) ** 2 if seen[u, i] else c[i] * (x[u] @ y[i]) ** 2 for u, i in pairs()
        )

    def solve(v, seen, r, other, side):
        c = item_weights(seen) if side == "user" else np.full(U, item_weights(seen.T)[r])
        a, b = lam * np.eye(D), np.zeros(D)
        for j, y in enumerate(other):
            a = a + (w if seen[r, j] else c[j]) * np.outer(y, y)
            b = b + (w * y if seen[r, j] else 0)
        return np.linalg.solve(a, b)

    params = dict(confidence=w, missing_weight=c0, exponent=exponent, regularization=lam)
    return System("eals", params, loss, solve)


# Spark ML ALS with implicitPrefs: the normal equation starts at Y'Y, each rating adds c1 = alpha |r| to the matrix and,
# if r > 0, 1 + c1 to the right-hand side and 1 to numExplicits; the ridge is numExplicits * regParam.
def spark_system(alpha, reg):
    def loss(v, seen, x, y):
        total = reg * sum(np.sum(v[u] > 0) * np.sum(x[u] ** 2) for u in range(U))
        total += reg * sum(np.sum(v[:, i] > 0) * np.sum(y[i] ** 2) for i in range(I))
        for u, i in pairs():
            total += (1 + alpha * abs(v[u, i])) * (float(v[u, i] > 0) - x[u] @ y[i]) ** 2
        return total

    def solve(v, seen, r, other, side):
        a, b, explicits = other.T @ other, np.zeros(D), 0
        for j in np.flatnonzero(seen[r]):
            c1 = alpha * abs(v[r, j])
            a = a + c1 * np.outer(other[j], other[j])
            if v[r, j] > 0:
                b = b + (1 + c1) * other[j]
                explicits += 1
        return np.linalg.solve(a + explicits * reg * np.eye(D), b)

    return System("spark", dict(alpha=alpha, regularization=reg), loss, solve)


# Zhou et al. 2008: sum over known ratings of (r - u.m)^2 + lambda (sum n_u |u|^2 + sum n_m |m|^2).
def explicit_system(lam):
    def loss(v, seen, x, y):
        total = np.sum((v - x @ y.T)[seen] ** 2)
        total += lam * np.sum(seen.sum(axis=1) * np.sum(x**2, axis=1))
        return total + lam * np.sum(seen.sum(axis=0) * np.sum(y**2, axis=1))

    def solve(v, seen, r, other, side):
        m = other[seen[r]]
        return np.linalg.solve(m.T @ m + lam * len(m) * np.eye(D), m.T @ v[r][seen[r]])

    return System("explicit", dict(regularization=lam), loss, solve)


# Our own: in proportion to the data. Written out pair by pair; s = observed weight, 1 on average with ones.
def wals_system(background, exponent, damping, nu, lam):
    def known(v, seen):  # (U, I), whichever side is solved
        z = seen.sum()
        n = seen.sum(axis=0)
        c = np.array([float(max(k, 1)) ** -exponent for k in n])
        c = c * z / sum(k * w for k, w in zip(n, c, strict=True))
        d = np.array([[abs(x) ** damping if x != 0 else 0.0 for x in row] for row in v])
        return background * z / (U * I), c[None, :] * d / (d[seen].sum() / z)

    def ridge(n, n_other, mean, w0):
        m = mean + w0 * n_other
        return lam * m * ((n + w0 * n_other) / m) ** nu

    def loss(v, seen, x, y):
        w0, weight = known(v, seen)
        z = seen.sum()
        total = sum(ridge(seen[u].sum(), I, z / U, w0) * np.sum(x[u] ** 2) for u in range(U))
        total += sum(ridge(seen[:, i].sum(), U, z / I, w0) * np.sum(y[i] ** 2) for i in range(I))
        for u, i in pairs():
            c = w0 + (weight[u, i] if seen[u, i] else 0)
            total += c * ((1.0 if v[u, i] > 0 else 0.0) - x[u] @ y[i]) ** 2
        return total

    def solve(v, seen, r, other, side):
        w0, weight = known(v, seen) if side == "user" else known(v.T, seen.T)
        weight = weight if side == "user" else weight.T
        n_rows, n_other = seen.shape
        a, b = ridge(seen[r].sum(), n_other, seen.sum() / n_rows, w0) * np.eye(D), np.zeros(D)
        for j, y in enumerate(other):
            c = w0 + (weight[r, j] if seen[r, j] else 0)
            a = a + c * np.outer(y, y)
            b = b + (c * y if v[r, j] > 0 else 0)
        return np.linalg.solve(a, b)

    params = dict(background=background, exponent=exponent, damping=damping, nu=nu, regularization=lam)
    return System("wals", params, loss, solve)


def ones(axis):
    return lambda v, seen: np.ones(v.shape[axis])


SYSTEMS = {
    "implicit": implicit_system(1.0, 0.3),
    "implicit-alpha": implicit_system(2.5, 0.05),
    "hu-linear": hu_system(lambda v: 1 + 40 * v, 0.7),
    "hu-log": hu_system(lambda v: 1 + 3 * np.log(1 + v / 0.2), 0.7, alpha=3, weighting="log", epsilon=0.2),
    "hu-power": hu_system(lambda v: 1 + 5 * v**0.6, 0.7, alpha=5, weighting="power", exponent=0.6),
    "ials": ials_system(0.2, 1.0, 0.01),
    "ials-nu": ials_system(0.3, 0.5, 0.05),
    "ials-nu0": ials_system(0.1, 0.0, 0.4),
    "google-plain": google_system(0.1, ones(0), ones(1), 0.2),
    "google-weights": google_system(
        0.05,
        lambda v, seen: ROW_WEIGHTS,
        lambda v, seen: COLUMN_WEIGHTS,
        0.2,
        row_weights=ROW_WEIGHTS,
        column_weights=COLUMN_WEIGHTS,
    ),
    "google-exponent": google_system(0.01, ones(0), tutorial_weights(7.0, 0.5), 0.2, exponent=0.5, factor=7.0),
    "google-linear": google_system(0.01, ones(0), tutorial_weights(100.0, 1.0), 0.2, exponent=1, factor=100),
    "eals": eals_system(1.5, 3.0, 0.4, 0.02),
    "eals-uniform": eals_system(1.0, 4.0, 0.0, 0.02),
    "spark": spark_system(1.7, 0.1),
    "explicit": explicit_system(0.06),
    "wals": wals_system(8.0, 0.25, 0.5, 0.6, 0.0117),
    "wals-counts": wals_system(2.0, 0.7, 1.0, 1.0, 0.1),
    "wals-alike": wals_system(0.5, 0.0, 0.0, 0.0, 0.05),
}
SIGNED = ("wals", "implicit", "google_wals", "spark", "explicit")

every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def terms_of(system, v, seen, dtype=np.float64):
    matrix = to_csr(v, seen, dtype)
    bound = make_objective(system.preset, **system.params).bind(matrix)
    return bound, bound.user_terms(matrix), bound.item_terms(csr_matrix(matrix.T))


def dense(terms, n_other):
    """Weight of every pair and ``c t`` of every pair, from terms."""
    weight = np.outer(np.ones(terms.n_rows) * terms.background, np.ones(n_other) * terms.other_background)
    weighted_target = np.zeros_like(weight)
    for r in range(terms.n_rows):
        for z in range(terms.row_ptr[r], terms.row_ptr[r + 1]):
            weight[r, terms.col_idx[z]] += terms.gram_values()[z]
            weighted_target[r, terms.col_idx[z]] = terms.rhs_values()[z]
    return weight, weighted_target


# The formula against each system


@every_system
def test_loss_is_the_systems_own(system):
    v, seen = make_data(system.preset in SIGNED)
    x, y = make_factors()
    _, users, items = terms_of(system, v, seen)
    expected = system.loss(v, seen, x, y)
    expected -= system.constant(seen)
    assert reference.loss(users, x, y, items.ridge) == pytest.approx(expected, rel=1e-12)
    # The terms of the items are the same loss, read by columns.
    assert reference.loss(items, y, x, users.ridge) == pytest.approx(expected, rel=1e-12)


@every_system
def test_the_comparison_sees_a_wrong_coefficient(system):
    v, seen = make_data(system.preset in SIGNED)
    x, y = make_factors()
    _, users, items = terms_of(system, v, seen)
    expected = system.loss(v, seen, x, y) - system.constant(seen)
    for wrong in (
        {"rhs": users.rhs * (1 + 1e-8)},
        {"gram": users.gram_values() * (1 + 1e-8)},
        {"ridge": users.ridge * (1 + 1e-8)},
        {"target_square": users.target_square * (1 + 1e-8)},
    ):
        loss = reference.loss(dataclasses.replace(users, **wrong), x, y, items.ridge)
        assert loss != pytest.approx(expected, rel=1e-12)


@every_system
def test_gradient_is_the_slope_of_the_systems_own_loss(system):
    v, seen = make_data(system.preset in SIGNED)
    x, y = make_factors()
    _, users, items = terms_of(system, v, seen)
    gx, gy = reference.gradient(users, x, y, items.ridge)
    h = 1e-5
    for k in range(5):
        dx, dy = make_factors(10 + k)
        slope = system.loss(v, seen, x + h * dx, y + h * dy) - system.loss(v, seen, x - h * dx, y - h * dy)
        assert slope / (2 * h) == pytest.approx(np.sum(gx * dx) + np.sum(gy * dy), rel=1e-6)


@every_system
def test_solution_is_the_systems_own_on_both_sides(system):
    v, seen = make_data(system.preset in SIGNED)
    x, y = make_factors()
    _, users, items = terms_of(system, v, seen)
    for terms, values, mask, other, side in ((users, v, seen, y, "user"), (items, v.T, seen.T, x, "item")):
        solved = reference.solve_rows(terms, other)
        for r in np.flatnonzero(mask.any(axis=1)):
            expected = system.solve(values, mask, r, other, side)
            np.testing.assert_allclose(solved[r], expected, rtol=1e-9, atol=1e-12)
        assert not solved[~mask.any(axis=1)].any()


@every_system
def test_both_sides_describe_the_same_pairs(system):
    v, seen = make_data(system.preset in SIGNED)
    _, users, items = terms_of(system, v, seen)
    for by_user, by_item in zip(dense(users, I), dense(items, U), strict=True):
        np.testing.assert_allclose(by_user, by_item.T, rtol=1e-13)
    assert users.target_square == pytest.approx(items.target_square, rel=1e-13)
    weight, _ = dense(users, I)
    assert weight.min() >= 0


def test_every_preset_is_tested():
    assert {system.preset for system in SYSTEMS.values()} == set(PRESETS)


def test_every_preset_has_usable_defaults():
    matrix = to_csr(*make_data(signed=False))
    for name in PRESETS:
        assert make_objective(name).bind(matrix).user_terms(matrix).ridge.min() >= 0


# Details


def test_stored_zero_and_negative_value():
    v, seen = np.array([[2.0, 0.0, -3.0, 0.0]]), np.array([[True, True, True, False]])

    def weights(name, **params):
        matrix = to_csr(v, seen)
        return [a[0].tolist() for a in dense(make_objective(name, **params).bind(matrix).user_terms(matrix), 4)]

    # The absent pair, last, always has the background weight. In implicit a stored zero has none at all.
    assert weights("implicit", alpha=2) == [[4, 0, 6, 1], [4, 0, 0, 0]]
    assert weights("spark", alpha=2) == [[5, 1, 7, 1], [5, 0, 0, 0]]
    assert weights("explicit") == [[1, 1, 1, 0], [2, 0, -3, 0]]
    assert weights("google_wals", unobserved_weight=0.5) == [[1.5, 1.5, 1.5, 0.5], [3, 0, -4.5, 0]]


def test_spark_counts_only_positive_values_in_its_ridge():
    matrix = csr_matrix(np.array([[1.0, -1, 2], [-1, -1, 0], [0, 0, 0], [3, 0, 0]]))
    terms = make_objective("spark", regularization=0.5).bind(matrix).user_terms(matrix)
    assert terms.ridge.tolist() == [1.0, 0.0, 0.0, 0.5]


def test_popularity_of_an_item_nobody_has():
    v, seen = make_data(signed=False)
    matrix = to_csr(v, seen)
    counts = seen.sum(axis=0)
    eals = make_objective("eals", missing_weight=10, exponent=0.5).bind(matrix)
    assert eals.item_background[EMPTY_ITEM] == 0
    assert eals.item_background.sum() == pytest.approx(10)
    steep = make_objective("eals", missing_weight=10, exponent=1000).bind(matrix).item_background
    np.testing.assert_allclose(steep, 10 * (counts == counts.max()) / np.sum(counts == counts.max()), atol=1e-30)
    google = make_objective("google_wals", exponent=0.5, factor=3).bind(matrix)
    np.testing.assert_allclose(google.item_weights, 3 / np.sqrt(np.maximum(counts, 1)))


@pytest.mark.parametrize("name", PRESETS)
def test_no_entries_at_all(name):
    matrix = csr_matrix((4, 5))
    bound = make_objective(name).bind(matrix)
    terms = bound.user_terms(matrix)
    assert terms.n_rows == 4 and terms.n_entries == 0 and terms.target_square == 0
    assert np.isfinite(terms.background).all() and np.isfinite(terms.other_background).all()
    assert not reference.solve_rows(terms, np.ones((5, 2))).any()
    assert bound.user_terms(csr_matrix((0, 5))).n_rows == 0


@every_system
def test_unseen_users_are_solved_as_training_users_with_the_same_history(system):
    v, seen = make_data(system.preset in SIGNED)
    bound, users, _ = terms_of(system, v, seen)
    _, y = make_factors()
    trained = reference.solve_rows(users, y)
    for rows in ([8], [3, 0, EMPTY_USER, 3]):
        terms = bound.user_terms(to_csr(v[rows], seen[rows]), fold_in=True)
        if "row_weights" not in system.params:
            np.testing.assert_array_equal(reference.solve_rows(terms, y), trained[rows])
        else:
            weight = 0.05 + COLUMN_WEIGHTS  # an unseen user has row weight 1
            np.testing.assert_allclose(dense(terms, I)[0][0], np.where(seen[rows[0]], weight, 0.05))


def test_unseen_items_where_items_have_no_weights():
    v, seen = make_data(signed=False)
    for name in ("implicit", "hu", "ials", "spark", "explicit"):
        bound = make_objective(name).bind(to_csr(v, seen))
        assert bound.item_terms(to_csr(v.T[[2, 2]], seen.T[[2, 2]])).n_rows == 2


# Representation: dtype, memory, constants


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_system
def test_coefficients_are_rounded_once(system, dtype):
    v, seen = make_data(system.preset in SIGNED)
    v = v.astype(dtype).astype(np.float64)
    for exact, terms in zip(terms_of(system, v, seen)[1:], terms_of(system, v, seen, dtype)[1:], strict=True):
        for name in ("rhs", "background", "ridge", "other_background"):
            assert getattr(terms, name).dtype == dtype
            np.testing.assert_array_equal(getattr(terms, name), getattr(exact, name).astype(dtype))
        if terms.gram is None:
            scale = exact.rhs_values()
            np.testing.assert_allclose((terms.gram_values() - exact.gram_values()) / scale, 0, atol=np.finfo(dtype).eps)
        else:
            np.testing.assert_array_equal(terms.gram, exact.gram.astype(dtype))
        assert terms.target_square == exact.target_square
        assert terms.row_ptr.dtype == np.int64 and terms.col_idx.dtype == np.int32


def test_small_confidence_keeps_its_digits_in_float32():
    # 1 + alpha v rounds to 1 in float32; the Gram coefficient must still be alpha v where it is stored.
    matrix = csr_matrix(np.array([[1e-9, 0.0], [2e-9, 3e-9]], np.float32))
    matrix.data[:] = [1e-9, 0, 3e-9]
    terms = Hu(alpha=1).bind(matrix).user_terms(matrix)
    np.testing.assert_allclose(terms.gram, matrix.data, rtol=1e-6)
    google = GoogleWals(unobserved_weight=100.0, row_weights=1e-7).bind(matrix).user_terms(matrix)
    np.testing.assert_allclose(google.gram, 1e-7, rtol=1e-6)


@pytest.mark.parametrize("chunk", [2, 7, 44])
@every_system
def test_the_size_of_a_chunk_does_not_matter(system, chunk, monkeypatch):
    v, seen = make_data(system.preset in SIGNED)
    whole = terms_of(system, v, seen)
    monkeypatch.setattr(bound_module, "CHUNK", chunk)
    monkeypatch.setattr(terms_module, "CHUNK", chunk)
    parts = terms_of(system, v, seen)
    for expected, terms in zip(whole[1:], parts[1:], strict=True):
        np.testing.assert_array_equal(terms.rhs_values(), expected.rhs_values())
        np.testing.assert_array_equal(terms.gram_values(), expected.gram_values())
        np.testing.assert_array_equal(terms.other_background, expected.other_background)
        assert terms.target_square == pytest.approx(expected.target_square, rel=1e-14)


def shapes(name, values, stored_zero=False, **params):
    matrix = csr_matrix(np.array(values, np.float32))
    matrix.data[1] *= not stored_zero
    terms = make_objective(name, **params).bind(matrix).user_terms(matrix)
    return (
        "shared" if np.shares_memory(terms.rhs, matrix.data) else terms.rhs.shape,
        None if terms.gram is None else terms.gram.shape,
    )


def test_constants_have_one_value_and_the_gram_is_left_out_where_it_can_be():
    counts, ones, signed = [[1, 2, 0], [3, 0, 4]], [[1, 1, 0], [1, 0, 1]], [[1, -2, 0], [3, 0, 4]]
    assert shapes("implicit", counts) == ("shared", None)
    assert shapes("implicit", counts, alpha=2) == ((4,), None)
    assert shapes("implicit", signed) == ((4,), (4,))
    assert shapes("implicit", counts, stored_zero=True) == ("shared", None)
    assert shapes("hu", counts, stored_zero=True) == ((4,), (4,))
    assert shapes("implicit", ones) == ((1,), (1,))
    assert shapes("hu", counts) == ((4,), None)
    assert shapes("spark", counts) == ((4,), None)
    assert shapes("ials", counts) == ((1,), (1,))
    assert shapes("eals", counts) == ((1,), (4,))
    assert shapes("explicit", counts) == ("shared", (1,))
    assert shapes("google_wals", counts) == ((4,), (1,))
    assert shapes("google_wals", ones, exponent=0.5) == ((4,), None)
    assert shapes("google_wals", ones) == ((1,), (1,))


@pytest.mark.parametrize(
    ("name", "signed"), [(name, signed) for name in PRESETS for signed in range(1 + PRESETS[name].accepts_negative)]
)
def test_memory_of_float32_terms(name, signed):
    n_rows, n_columns, per_row = 1000, 2000, 1000
    size = n_rows * per_row
    data = np.linspace(-0.01 if signed else 0.5, 5, size, dtype=np.float32)
    indices = np.tile(np.arange(0, n_columns, 2, dtype=np.int32), n_rows)
    matrix = csr_matrix((data, indices, np.arange(n_rows + 1) * per_row), shape=(n_rows, n_columns))
    matrix.indices, matrix.indptr = indices, np.arange(n_rows + 1, dtype=np.int64) * per_row
    assert matrix.has_canonical_format  # found once and kept by SciPy
    objective = make_objective(name, exponent=0.5) if name in ("google_wals", "eals") else make_objective(name)
    tracemalloc.start()
    terms = objective.bind(matrix).user_terms(matrix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(a.nbytes for a in (terms.rhs, terms.gram) if a is not None and not np.shares_memory(a, data))
    masks = size if signed else 0
    assert kept <= 2 * size * 4
    assert peak - kept - masks < 12 * bound_module.CHUNK * 8 < size * 8


# The regularization that follows the number of items


@pytest.mark.parametrize(
    ("n_items", "times"), [(0, 5.657), (1, 5.657), (50, 5.657), (64, 5), (100, 4), (400, 2), (1600, 1), (10**7, 1)]
)
def test_usual_regularization(n_items, times):
    assert usual_regularization(n_items) == pytest.approx(0.0117 * times, rel=1e-4)


def test_usual_regularization_of_many_items_is_one_number():
    assert {usual_regularization(n) for n in (1600, 1601, 1682, 12345)} == {0.0117}
    falling = [usual_regularization(n) for n in range(50, 1601)]
    assert all(more > less for more, less in itertools.pairwise(falling))


def likes_of(n_users, n_items, seed=0):
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random((n_users, n_items)) < 0.1).astype(np.float32))


@pytest.mark.parametrize("n_items", [3, 60, 400, 1700])
def test_auto_is_the_same_as_its_number(n_items):
    matrix = likes_of(40, n_items)
    auto = make_objective().bind(matrix)
    given = make_objective(regularization=usual_regularization(n_items)).bind(matrix)
    assert make_objective().regularization == "auto" and auto.regularization == given.regularization
    for ours, theirs in (
        (auto.user_terms(matrix), given.user_terms(matrix)),
        (auto.item_terms(csr_matrix(matrix.T)), given.item_terms(csr_matrix(matrix.T))),
    ):
        np.testing.assert_array_equal(ours.ridge, theirs.ridge)
        np.testing.assert_array_equal(ours.gram_values(), theirs.gram_values())


def test_a_regularization_that_is_given_stays():
    matrix = likes_of(40, 60)
    for value in (0, 0.0117, 3):
        bound = make_objective(regularization=value).bind(matrix)
        assert bound.regularization == bound.objective.regularization == value and len(bound.numbers) == 3


def test_auto_stays_what_it_was_in_the_fit():
    matrix = likes_of(40, 100)
    bound = make_objective().bind(matrix)
    few = bound.of_items(np.arange(60))
    many = bound.of_items(np.concatenate([np.arange(100), np.full(4000, -1)]))
    alone = bound.of_users(np.array([3, -1]))
    assert {each.regularization for each in (few, many, alone)} == {4 * 0.0117}


def test_auto_is_saved_with_its_number():
    matrix = likes_of(40, 100)
    bound = make_objective().bind(matrix)
    arrays, params = bound.to_arrays()
    assert params["parameters"]["regularization"] == "auto"
    loaded = bound_from_arrays(arrays, json.loads(json.dumps(params)))
    assert loaded.objective == make_objective() and loaded.regularization == 4 * 0.0117
    np.testing.assert_array_equal(loaded.user_terms(matrix).ridge, bound.user_terms(matrix).ridge)
    # What earlier versions saved: three numbers, and the regularization among the parameters.
    earlier = arrays | {"learned.numbers": arrays["learned.numbers"][:3]}
    numbers = {**params, "parameters": params["parameters"] | {"regularization": 0.0117}}
    assert bound_from_arrays(earlier, numbers).regularization == 0.0117
    for bad in (arrays["learned.numbers"][:3], np.array([1, 1, 1, np.nan])):
        with pytest.raises(ModelFormatError, match="saved objective"):
            bound_from_arrays(arrays | {"learned.numbers": bad}, params)


def test_auto_is_for_the_default_objective():
    with pytest.raises(TypeError, match="regularization of objective 'ials' must be a finite number >= 0, got 'auto'"):
        make_objective("ials", regularization="auto")
    with pytest.raises(ValueError, match="must be a finite number >= 0, or \"auto\"; got 'automatic'"):
        make_objective(regularization="automatic")
    with pytest.raises(TypeError, match="regularization"):
        make_objective(regularization=None)
    with pytest.raises(TypeError, match="background"):
        make_objective(background="auto")


# Saving


@every_system
def test_saved_objective_gives_the_same_terms(system):
    v, seen = make_data(system.preset in SIGNED)
    bound, users, items = terms_of(system, v, seen)
    arrays, params = bound.to_arrays()
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    loaded = bound_from_arrays(arrays, json.loads(json.dumps(params)))
    assert loaded.objective == bound.objective and hash(loaded.objective) == hash(bound.objective)
    matrix = to_csr(v, seen)
    for again in (loaded, pickle.loads(pickle.dumps(bound))):
        for expected, terms in (
            (users, again.user_terms(matrix)),
            (items, again.item_terms(csr_matrix(matrix.T))),
        ):
            for name in ("rhs", "background", "ridge", "other_background"):
                np.testing.assert_array_equal(getattr(terms, name), getattr(expected, name))
            np.testing.assert_array_equal(terms.gram_values(), expected.gram_values())


def test_damaged_saved_objective_is_refused():
    v, seen = make_data(signed=False)
    arrays, params = make_objective("eals").bind(to_csr(v, seen)).to_arrays()
    for bad_arrays, bad_params in (
        (arrays, {**params, "objective": "nonsense"}),
        (arrays, {**params, "parameters": {"alpha": 1}}),
        (arrays, {"objective": "eals"}),
        ({"learned.item_background": arrays["learned.item_background"][:-1]}, params),
        ({"learned.unknown": arrays["learned.item_background"]}, params),
        ({"nonsense": arrays["learned.item_background"]}, params),
    ):
        with pytest.raises(ModelFormatError, match="saved objective"):
            bound_from_arrays(bad_arrays, bad_params)


# Parameters and input


def test_make_objective():
    assert make_objective("implicit", alpha=3) == Implicit(alpha=3) != Implicit(alpha=4)
    assert Implicit() != Ials()
    ready = Hu(alpha=2)
    assert make_objective(ready) is ready
    with pytest.raises(TypeError, match="already a Hu; set alpha"):
        make_objective(ready, alpha=3)
    with pytest.raises(ValueError, match=r"one of wals, implicit, hu, .*got 'als'"):
        make_objective("als")
    with pytest.raises(TypeError, match="'ials' has no parameter alpha; it has regularization, unobserved_weight, nu"):
        make_objective("ials", alpha=1)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_checked(name):
    for parameter, value in PRESETS[name]().parameters().items():
        if not isinstance(value, float):
            continue
        for bad, error in (
            (-1, ValueError),
            (np.nan, ValueError),
            (np.inf, ValueError),
            ("1", TypeError),
            (True, TypeError),
        ):
            with pytest.raises(error, match=f"{parameter} of objective '{name}' must be a finite number"):
                PRESETS[name](**{parameter: bad})


def test_parameters_that_do_not_go_together():
    with pytest.raises(ValueError, match="weighting must be 'linear', 'log' or 'power', got 'cubic'"):
        Hu(weighting="cubic")
    with pytest.raises(ValueError, match="epsilon has a meaning only with weighting='log'"):
        Hu(epsilon=2.0)
    with pytest.raises(ValueError, match="exponent has a meaning only with weighting='power'"):
        Hu(weighting="log", exponent=2.0)
    with pytest.raises(ValueError, match="epsilon of objective 'hu' must be a finite number > 0, got 0"):
        Hu(weighting="log", epsilon=0)
    with pytest.raises(ValueError, match="column_weights and exponent were both given"):
        GoogleWals(column_weights=[1, 2], exponent=0.5)
    with pytest.raises(ValueError, match="row_weights must be one number or a 1-D array"):
        GoogleWals(row_weights=[1.0, -2])
    for parameter, side in (("row_weights", "user"), ("column_weights", "item")):
        with pytest.raises(ValueError, match=rf"{parameter} must be in the order of interactions\.{side}_ids\.ids"):
            GoogleWals(**{parameter: pd.Series([1.0, 2.0], index=["a", "b"])})
    for texts in ("popular", "1", ["1", "2"]):
        with pytest.raises(TypeError, match="column_weights must be one number or a 1-D array"):
            GoogleWals(column_weights=texts)
    with pytest.raises(ValueError, match="row_weights must be there throughout, 1 are masked"):
        GoogleWals(row_weights=np.ma.array([1.0, 2.0], mask=[False, True]))
    with pytest.raises(ValueError, match="exponent of objective 'google_wals' must be"):
        GoogleWals(exponent=-0.5)


def test_objective_does_not_change_with_the_array_it_was_given():
    weights = np.ones(U)
    objective = GoogleWals(row_weights=weights)
    weights[:] = 7
    assert objective.row_weights.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        objective.row_weights[0] = 2


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.5])
def test_bad_values_are_refused_with_their_place(name, bad):
    v, seen = make_data(signed=False)
    v[7, 5], seen[7, 5] = bad, True
    good = to_csr(np.where(np.isfinite(v), v, 1).clip(0), seen)
    bound = make_objective(name).bind(good)
    matrix = to_csr(v, seen)
    if bad == -1.5 and PRESETS[name].accepts_negative:
        assert bound.user_terms(matrix).n_rows == U
        return
    for call in (bound.objective.bind, bound.user_terms):
        with pytest.raises(ValueError, match=rf"got {bad} for user 7, item 5 \(1 such entries\)"):
            call(matrix)
    with pytest.raises(ValueError, match=rf"got {bad} for item 5, user 7"):
        bound.item_terms(csr_matrix(matrix.T))


def test_wrong_matrices_are_refused():
    v, seen = make_data(signed=False)
    matrix = to_csr(v, seen)
    bound = Implicit().bind(matrix)
    with pytest.raises(TypeError, match="CSR matrix, got coo_matrix"):
        bound.user_terms(matrix.tocoo())
    with pytest.raises(TypeError, match="CSR matrix, got ndarray"):
        bound.user_terms(v)
    with pytest.raises(TypeError, match="float32 or float64, got int64"):
        bound.user_terms(matrix.astype(np.int64))
    with pytest.raises(ValueError, match=r"9 columns, one for each training item, got shape \(9, 13\)"):
        bound.user_terms(csr_matrix(matrix.T))
    with pytest.raises(ValueError, match=r"13 columns, one for each training user, got shape \(13, 9\)"):
        bound.item_terms(matrix)
    with pytest.raises(ValueError, match="sum_duplicates"):
        bound.user_terms(csr_matrix(([1.0, 1.0], [2, 2], [0, 2]), shape=(1, I)))
    with pytest.raises(ValueError, match="sum_duplicates"):
        bound.user_terms(csr_matrix(([1.0, 1.0], [2, 1], [0, 2]), shape=(1, I)))
    assert bound.user_terms(csr_array(matrix)).n_entries == matrix.nnz
    roomy = matrix.copy()
    roomy.data, roomy.indices = np.append(roomy.data, 1), np.append(roomy.indices, np.int32(0))
    with pytest.raises(ValueError, match="prune"):
        bound.user_terms(roomy)


def test_wrong_numbers_of_weights_are_refused():
    v, seen = make_data(signed=False)
    matrix = to_csr(v, seen)
    with pytest.raises(ValueError, match="row_weights must have 13 weights, one for each user, got 12"):
        GoogleWals(row_weights=np.ones(12)).bind(matrix)
    with pytest.raises(ValueError, match="column_weights must have 9 weights, one for each item, got 13"):
        GoogleWals(column_weights=np.ones(U)).bind(matrix)
    bound = GoogleWals(row_weights=ROW_WEIGHTS).bind(matrix)
    with pytest.raises(ValueError, match=r"must have 13 rows, got shape \(2, 9\); pass fold_in=True"):
        bound.user_terms(to_csr(v[:2], seen[:2]))
    with pytest.raises(
        ValueError, match=r"weight for each training item, so matrix must have 9 rows, got shape \(1, 13\)"
    ):
        make_objective("eals").bind(matrix).item_terms(to_csr(v.T[:1], seen.T[:1]))


def test_coefficients_beyond_the_dtype_are_refused():
    matrix = csr_matrix(np.array([[1e30, 2.0]], np.float32))
    with pytest.raises(ValueError, match="too large for float32"):
        Implicit(alpha=1e10).bind(matrix).user_terms(matrix)
    assert np.isfinite(Implicit(alpha=1e10).bind(matrix).user_terms(matrix.astype(np.float64)).rhs).all()
