"""Every operation in NumPy float64, slow and obvious: the definition that the backends are tested against.

Shapes: U users, I items, R rows being solved, D factor size. See :mod:`wals_gpu.objective` for the formula.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.errors import SingularSystemError
from wals_gpu.objective.terms import RowTerms

__all__ = [
    "gradient",
    "loss",
    "neighbors",
    "prior_loss",
    "regress_prior",
    "relax",
    "row_system",
    "solve_rows",
    "solve_rows_cg",
    "solve_rows_subspace",
    "topk",
    "topk_neighbors",
]


def row_system(
    terms: RowTerms, row: int, other: ArrayLike, *, prior: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The linear system ``A x = b`` of one row.

    ``A = g sum_i h_i y_i y_i' + sum over entries gram y y' + ridge Id``, ``b = sum over entries rhs y + ridge prior``.

    Parameters
    ----------
    terms : RowTerms
    row : int
    other : (n_other, D)
        Factors of the other side.
    prior : (D,), optional
        Prior mean of this row, by default 0.

    Returns
    -------
    A : (D, D) float64
    b : (D,) float64
    """
    other = np.asarray(other, np.float64)
    h = np.broadcast_to(terms.other_background, len(other)).astype(np.float64)
    background = float(np.broadcast_to(terms.background, terms.n_rows)[row])
    ridge = float(np.broadcast_to(terms.ridge, terms.n_rows)[row])
    a, entries, y = terms.system(row, other, background * (other.T * h) @ other)
    b = terms.rhs_values()[entries].astype(np.float64) @ y
    return a, b if prior is None else b + ridge * np.asarray(prior, np.float64)


def solve_rows(terms: RowTerms, other: ArrayLike, *, prior: ArrayLike | None = None) -> NDArray[np.float64]:
    """Exact solution of every row.

    Parameters
    ----------
    terms : RowTerms
        R rows.
    other : (n_other, D)
        Factors of the other side.
    prior : (R, D), optional
        Prior means, by default 0.

    Returns
    -------
    (R, D) float64
        The minimiser of the loss over each row. A row without entries is one like all others: its unobserved pairs
        pull it from the prior towards 0. Where its matrix is singular, the minimiser nearest to the prior (or to 0).

    Raises
    ------
    SingularSystemError
        The matrix of a row that has entries is not positive definite.
    """
    other = np.asarray(other, np.float64)
    out = np.zeros((terms.n_rows, other.shape[1])) if prior is None else np.array(prior, np.float64)
    for row, n_entries in enumerate(np.diff(terms.row_ptr)):
        a, b = row_system(terms, row, other, prior=out[row])
        try:
            np.linalg.cholesky(a)
            out[row] = np.linalg.solve(a, b)
        except np.linalg.LinAlgError:
            if n_entries:
                raise SingularSystemError(row) from None
            out[row] += np.linalg.lstsq(a, b - a @ out[row], rcond=None)[0]
    return out


def solve_rows_cg(
    terms: RowTerms, other: ArrayLike, start: ArrayLike, steps: int, *, prior: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Preconditioned conjugate gradients on every row's system, from `start`.

    In the basis where the Gram matrix of the other side is diagonal, with the diagonal of the row's matrix there as the
    preconditioner. (The basis matters: it makes the preconditioner exact for the background's part.)

    Parameters
    ----------
    terms, other, prior
        As for :func:`solve_rows`. Rows without entries are solved exactly.
    start : (R, D)
    steps : int

    Returns
    -------
    (R, D) float64
    """
    other = np.asarray(other, np.float64)
    out = solve_rows(_only_empty_rows(terms), other, prior=prior)
    rotation = _rotation(terms, other)
    for row in np.flatnonzero(np.diff(terms.row_ptr)).tolist():
        a, b = row_system(terms, row, other, prior=None if prior is None else np.asarray(prior)[row])
        a, b = rotation.T @ a @ rotation, rotation.T @ b
        z = rotation.T @ np.asarray(start, np.float64)[row]
        diagonal = np.diag(a)
        residual = b - a @ z
        direction = residual / diagonal
        rho = residual @ direction
        for _ in range(steps):
            if rho <= 1e-30:
                break
            product = a @ direction
            length = rho / (direction @ product)
            z = z + length * direction
            residual = residual - length * product
            previous, rho = rho, residual @ (residual / diagonal)
            direction = residual / diagonal + rho / previous * direction
        out[row] = rotation @ z
    return out


def solve_rows_subspace(
    terms: RowTerms,
    other: ArrayLike,
    start: ArrayLike,
    block: int,
    *,
    prior: ArrayLike | None = None,
    relaxation: float = 1.0,
    rotated: bool = True,
) -> NDArray[np.float64]:
    """One pass of subspace steps over every row, from `start` (iALS++, Rendle et al. 2021, "iALS++: Speeding up Matrix
    Factorization with Subspace Optimization").

    In the basis where the Gram matrix of the other side is diagonal, eigenvalues rising: block after block of
    coordinates is set to the minimum of the loss with the others fixed.

    Parameters
    ----------
    terms, other, prior
        As for :func:`solve_rows`. Rows with at most `block` entries are solved exactly.
    start : (R, D)
    block : int
    relaxation : float, default 1
        Each block, and each row that is solved exactly, goes this many times the way; see :func:`relax`.
    rotated : bool, default True
        False: in the factors' own coordinates, and only rows without entries are solved exactly.

    Returns
    -------
    (R, D) float64
    """
    other = np.asarray(other, np.float64)
    out = relax(terms, start, solve_rows(terms, other, prior=prior), relaxation)
    rotation = _rotation(terms, other) if rotated else np.eye(other.shape[1])
    for row in np.flatnonzero(np.diff(terms.row_ptr) > (block if rotated else 0)).tolist():
        a, b = row_system(terms, row, other, prior=None if prior is None else np.asarray(prior)[row])
        if rotated:
            a, b = rotation.T @ a @ rotation, rotation.T @ b
        z = rotation.T @ np.asarray(start, np.float64)[row]
        for first in range(0, len(z), block):
            part = slice(first, first + block)
            z[part] += relaxation * np.linalg.solve(a[part, part], (b - a @ z)[part])
        out[row] = rotation @ z
    return out


def relax(terms: RowTerms, start: ArrayLike, solved: ArrayLike, relaxation: float) -> NDArray[np.float64]:
    """Rows with entries go `relaxation` times the way from `start` to `solved`, the others all of it.

    Successive over-relaxation (Young 1954, "Iterative Methods for Solving Partial Difference Equations of Elliptic
    Type") with each sweep of the alternating least squares as one of its block steps. Along that way the loss is a
    parabola; where `solved` is its lowest point, as after an exact solve or conjugate gradients, it falls for each
    factor between 0 and 2.

    Parameters
    ----------
    terms : RowTerms
        R rows.
    start, solved : (R, D)
    relaxation : float
        Above 0 and below 2; 1 gives `solved`.

    Returns
    -------
    (R, D) float64
    """
    start, solved = np.asarray(start, np.float64), np.asarray(solved, np.float64)
    length = np.where(np.diff(terms.row_ptr) > 0, relaxation, 1.0)
    out: NDArray[np.float64] = start + length[:, None] * (solved - start)
    return out


def _rotation(terms: RowTerms, other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eigenvectors of the other side's weighted Gram matrix, in columns; the identity where there is no background."""
    if not np.any(terms.background):
        return np.eye(other.shape[1])
    return np.linalg.eigh((other.T * np.broadcast_to(terms.other_background, len(other))) @ other)[1]


def _only_empty_rows(terms: RowTerms) -> RowTerms:
    """The same rows without their entries."""
    nothing = terms.rhs[:0]
    return replace(
        terms,
        row_ptr=np.zeros_like(terms.row_ptr),
        col_idx=terms.col_idx[:0],
        rhs=nothing if len(terms.rhs) != 1 else terms.rhs,
        gram=None if terms.gram is None else (nothing if len(terms.gram) != 1 else terms.gram),
    )


def loss(
    user_terms: RowTerms,
    user_factors: ArrayLike,
    item_factors: ArrayLike,
    item_ridge: ArrayLike,
    *,
    user_prior: ArrayLike | None = None,
    item_prior: ArrayLike | None = None,
) -> float:
    """The objective, as a sum over all U x I pairs.

    Parameters
    ----------
    user_terms : RowTerms
        Terms of all users.
    user_factors : (U, D)
    item_factors : (I, D)
    item_ridge : (I,) or (1,)
        Ridge of the items, ``item_terms.ridge``.
    user_prior, item_prior : (U, D) and (I, D), optional
        Prior means, by default 0.

    Returns
    -------
    float
    """
    x, y, dx, dy = _factors(user_factors, item_factors, user_prior, item_prior)
    weight, weighted_target = _dense(user_terms, len(y))
    scores = x @ y.T
    pairs = np.sum(weight * scores**2) - 2 * np.sum(weighted_target * scores) + user_terms.target_square
    return float(pairs + np.sum(_column(user_terms.ridge) * dx**2) + np.sum(_column(item_ridge) * dy**2))


def gradient(
    user_terms: RowTerms,
    user_factors: ArrayLike,
    item_factors: ArrayLike,
    item_ridge: ArrayLike,
    *,
    user_prior: ArrayLike | None = None,
    item_prior: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient of :func:`loss`.

    Parameters
    ----------
    user_terms, user_factors, item_factors, item_ridge, user_prior, item_prior
        As of :func:`loss`.

    Returns
    -------
    (U, D) float64
        With respect to `user_factors`.
    (I, D) float64
        With respect to `item_factors`.
    """
    x, y, dx, dy = _factors(user_factors, item_factors, user_prior, item_prior)
    weight, weighted_target = _dense(user_terms, len(y))
    residual = weight * (x @ y.T) - weighted_target
    return 2 * (residual @ y + _column(user_terms.ridge) * dx), 2 * (residual.T @ x + _column(item_ridge) * dy)


def regress_prior(
    features: ArrayLike, factors: ArrayLike, strength: ArrayLike, ridge: float, *, intercept: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The linear prior that fits factors best: the minimum of :func:`prior_loss` over W and b.

    Parameters
    ----------
    features : (R, E)
    factors : (R, D)
    strength : (R,) or (1,)
    ridge : float > 0
        mu.
    intercept : bool, default True
        False: b = 0.

    Returns
    -------
    W : (D, E) float64
    b : (D,) float64
    """
    f: NDArray[np.float64] = np.asarray(features, np.float64)
    f = np.hstack([f, np.ones((len(f), 1))])[:, : None if intercept else -1]
    s = np.broadcast_to(strength, len(f)).astype(np.float64)
    moments = (f.T * s) @ np.asarray(factors, np.float64)
    weights = np.asarray(np.linalg.solve((f.T * s) @ f + ridge * np.eye(f.shape[1]), moments).T, np.float64)
    return (weights[:, :-1], weights[:, -1]) if intercept else (weights, np.zeros(len(weights)))


def prior_loss(
    features: ArrayLike,
    factors: ArrayLike,
    weights: ArrayLike,
    intercept: ArrayLike,
    strength: ArrayLike,
    ridge: float,
    *,
    towards_zero: ArrayLike = 0.0,
) -> float:
    """What a linear prior puts in place of a side's ridge.

    ``sum_i [r_i |y_i|^2 + s_i |y_i - W e_i - b|^2] + mu (|W|^2 + |b|^2)``.

    Parameters
    ----------
    features : (R, E)
    factors : (R, D)
    weights : (D, E)
        W.
    intercept : (D,)
        b.
    strength : (R,) or (1,)
        s.
    ridge : float
        mu.
    towards_zero : (R,) or a number, default 0
        r.

    Returns
    -------
    float
    """
    y, w = np.asarray(factors, np.float64), np.asarray(weights, np.float64)
    mean = np.asarray(features, np.float64) @ w.T + np.asarray(intercept, np.float64)
    squares, distances = np.sum(y**2, axis=1), np.sum((y - mean) ** 2, axis=1)
    return float(
        np.sum(towards_zero * squares)
        + np.sum(strength * distances)
        + ridge * (np.sum(w**2) + np.sum(np.square(intercept)))
    )


def neighbors(
    matrix: csr_matrix, user_weights: ArrayLike, n_neighbors: int, ridge: float
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Each item's regression on the items whose columns are nearest to its own.

    With T the 0/1 matrix of the stored entries, ``G = T' diag(user_weights) T`` and N the neighbours of item i:
    ``b_i = (G_NN + ridge Id)^-1 G_Ni``, which minimises ``|t_i - T_N b|^2 + ridge |b|^2`` with users' rows weighted.

    Parameters
    ----------
    matrix : (U, I) csr_matrix
        Stored entries (of any value) are ones; none is stored twice.
    user_weights : (U,)
        Finite, none below 0.
    n_neighbors : int
        m at most: the items j with the largest cosine ``G_ij / sqrt(G_ii G_jj)``, equal ones by item number, that share
        a user of some weight with item i; never the item itself.
    ridge : float
        At least 0.

    Returns
    -------
    ids : (I, m) int32
        The neighbours of item i, by number; -1 where there are fewer.
    weights : (I, m) float64
        b_i. Where the system is singular (no ridge, dependent columns), its shortest solution; 0 where the id is -1.
    """
    pattern = csr_matrix((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape).toarray()
    gram = (pattern.T * np.asarray(user_weights, np.float64)) @ pattern
    ids = np.full((len(gram), n_neighbors), -1, np.int32)
    weights = np.zeros(ids.shape)
    for i, row in enumerate(gram):
        others = np.flatnonzero(row > 0)
        others = others[others != i]
        # The square of the cosine times G_ii: of integer sums, equal cosines are equal numbers.
        nearest = np.argsort(-(row[others] ** 2) / np.diag(gram)[others], kind="stable")[:n_neighbors]
        chosen = np.sort(others[nearest])
        system = gram[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
        ids[i, : len(chosen)] = chosen
        weights[i, : len(chosen)] = np.linalg.lstsq(system, row[chosen], rcond=None)[0]
    return ids, weights


def topk(
    queries: ArrayLike, items: ArrayLike, k: int, excluded: csr_matrix | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The k items with the highest dot product for each query: score down, equal scores by item number up.

    Parameters
    ----------
    queries : (B, D)
    items : (I, D)
    k : int
    excluded : (B, I) csr_matrix, optional
        Stored entries (of any value) are items that a query must not get.

    Returns
    -------
    ids : (B, k) int32
        -1 where fewer than k items are left.
    scores : (B, k) float64
        -inf where the id is -1.
    """
    return _best(np.asarray(queries, np.float64) @ np.asarray(items, np.float64).T, k, excluded)


def topk_neighbors(
    queries: ArrayLike,
    items: ArrayLike,
    k: int,
    history: csr_matrix,
    neighbors: csr_matrix,
    excluded: csr_matrix | None = None,
    *,
    scale: ArrayLike = 1.0,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """As :func:`topk`, of the scores ``scale_i (x.y_i + sum over j of h_j B_ji)``.

    Parameters
    ----------
    queries, items, k, excluded
        As for :func:`topk`.
    history : (B, n) csr_matrix
        h: what each query has, with weights.
    neighbors : (n, I) csr_matrix
        Row j: ``B_ji`` for all i, as :func:`neighbors` puts them into rows i.
    scale : (I,) or a number, default 1

    Returns
    -------
    ids : (B, k) int32
    scores : (B, k) float64
    """
    scores = np.asarray(queries, np.float64) @ np.asarray(items, np.float64).T
    added = history.toarray().astype(np.float64) @ neighbors.toarray().astype(np.float64)
    return _best((scores + added) * np.asarray(scale, np.float64), k, excluded)


def _best(
    scores: NDArray[np.float64], k: int, excluded: csr_matrix | None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The k highest scores (B, I) of each row that are not excluded."""
    ids = np.full((len(scores), k), -1, np.int32)
    best = np.full((len(scores), k), -np.inf)
    for b, row in enumerate(scores):
        allowed = np.ones(len(row), bool)
        if excluded is not None:
            allowed[excluded.indices[excluded.indptr[b] : excluded.indptr[b + 1]]] = False
        candidates = np.flatnonzero(allowed)
        order = candidates[np.argsort(-row[candidates], kind="stable")][:k]
        ids[b, : len(order)] = order
        best[b, : len(order)] = row[order]
    return ids, best


def _dense(terms: RowTerms, n_other: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight of every pair (c where observed, else g h) and ``c t`` (0 where not observed), each (R, n_other)."""
    rows = np.repeat(np.arange(terms.n_rows), np.diff(terms.row_ptr))
    weight = np.outer(
        np.broadcast_to(terms.background, terms.n_rows).astype(np.float64),
        np.broadcast_to(terms.other_background, n_other).astype(np.float64),
    )
    weight[rows, terms.col_idx] += terms.gram_values()
    weighted_target = np.zeros(weight.shape)
    weighted_target[rows, terms.col_idx] = terms.rhs_values()
    return weight, weighted_target


def _factors(
    user_factors: ArrayLike, item_factors: ArrayLike, user_prior: ArrayLike | None, item_prior: ArrayLike | None
) -> tuple[NDArray[np.float64], ...]:
    """Both factors in float64, and their differences from the priors."""
    x, y = np.asarray(user_factors, np.float64), np.asarray(item_factors, np.float64)
    dx = x if user_prior is None else x - np.asarray(user_prior, np.float64)
    dy = y if item_prior is None else y - np.asarray(item_prior, np.float64)
    return x, y, dx, dy


def _column(ridge: ArrayLike) -> NDArray[np.float64]:
    """Ridge as a column, to multiply factors by rows."""
    return np.asarray(ridge, np.float64)[:, None]
