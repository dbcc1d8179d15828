"""Users that come after the fit, and news of those that were there: factors from all that is known of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from wals_gpu.data.csr import as_csr
from wals_gpu.data.interactions import Interactions, as_interactions, in_order_of_appearance
from wals_gpu.data.matching import open_table
from wals_gpu.errors import DataError, SingularSystemError
from wals_gpu.model.rows import Growth, changeable, merged_ids, rows_replaced
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.training.fitted import Fitted

__all__ = ["update_users"]


def update_users(
    fitted: Fitted, interactions: Any, embeddings: Any, columns: Mapping[str, Any]
) -> tuple[Fitted, NDArray[Any]]:
    """With factors of some users from their interactions, new users among them; and their ids, or row numbers."""
    bound = changeable(fitted)
    matrix, ids, known = _user_interactions(fitted, interactions, columns)
    is_new = known < 0
    n_new = int(is_new.sum())
    new_ids = None if ids is None else ids[is_new].tolist()
    growth = merged_ids(fitted.user_ids, fitted.n_users, new_ids, n_new, "user")
    rows = np.full(len(known), -1)
    rows[~is_new] = growth.old[known[~is_new]]
    rows[is_new] = growth.new

    met = np.diff(matrix.indptr) > 0
    prior = _grown_prior(fitted, growth, embeddings)
    is_cold = prior is not None and prior.prior.cold != "map"
    grown = _grown_bound(bound, growth, rows[met], rows[~met] if is_cold else None)
    seen = None if fitted.seen is None else rows_replaced(fitted.seen, growth, rows, matrix)
    factors = growth.spread(fitted.user_factors, 0)
    changed = replace(fitted, user_factors=factors, user_ids=growth.ids, bound=grown, seen=seen, user_prior=prior)
    mean = None if prior is None or prior.mean is None else prior.mean[rows]
    factors[rows] = _solve(
        fitted, grown.of_users(rows), matrix, mean, known, lambda row: changed.name_of_user(int(rows[row]))
    )
    factors.flags.writeable = False  # answers may keep what they computed from them
    order = np.sort(rows)
    return changed, order if growth.ids is None else growth.ids.take(order)


def _user_interactions(
    fitted: Fitted, interactions: Any, columns: Mapping[str, Any]
) -> tuple[sparse.csr_matrix, NDArray[Any] | None, NDArray[np.int64]]:
    """All that is known of some users (n, I), their ids, and the row in the model of each, -1 for a new one."""
    if isinstance(interactions, Interactions) and interactions.user_ids is None:
        interactions = interactions.matrix
    if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
        matrix = as_csr(interactions, dtype=fitted.dtype, n_columns=fitted.n_items)
        n, n_old = matrix.shape[0], fitted.n_users
        if n < n_old or (n > n_old and fitted.user_ids is not None):
            more = ", and one for each new user after them" if fitted.user_ids is None else "; new users need ids"
            raise DataError(f"interactions must have {n_old} rows, one per user{more}; got {matrix.shape}")
        rows = np.flatnonzero((np.diff(matrix.indptr) > 0) | (np.arange(n) >= n_old))
        names = None if fitted.user_ids is None else fitted.user_ids.take(rows)
        return matrix[rows], names, np.where(rows < n_old, rows, -1)
    if fitted.user_ids is None or fitted.item_ids is None:
        raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no ids")
    options: dict[str, Any] = {"dtype": fitted.dtype, "item_ids": fitted.item_ids, "like": fitted.columns}
    options |= {"warn_ratings": False} | dict(columns)
    as_text = False
    if isinstance(interactions, Interactions):
        data = as_interactions(interactions, **options)
        order = np.arange(data.matrix.shape[0])
    else:
        table = open_table("interactions", interactions, columns)
        as_text = table.text_ids
        data, order = in_order_of_appearance(table, **options)
    assert data.user_ids is not None
    names, kind = data.user_ids.take(order), data.user_ids.kind
    if as_text and kind == "integer" and fitted.user_ids.kind == "string":
        # Of a text file whose ids happen to be written like integers, each as str() writes it.
        names, kind = np.array([str(name) for name in names.tolist()], dtype=object), "string"
    if kind != fitted.user_ids.kind:
        raise DataError(f"user ids must be {fitted.user_ids.kind}s as those of the model, got {kind}s")
    known = np.asarray(fitted.user_ids.find(names))
    matrix = data.matrix[order]
    rows = np.flatnonzero((np.diff(matrix.indptr) > 0) | (known < 0))
    return matrix[rows], names[rows], known[rows]


def _grown_bound(
    bound: BoundObjective, growth: Growth, met: NDArray[np.integer], absent: NDArray[np.integer] | None
) -> BoundObjective:
    """With the new users; those of `met` have the full weight of unobserved pairs, those of `absent` have none."""
    shape, source = (bound.n_users, bound.n_items), growth.source
    grown = replace(bound.of_users(source), objective=bound.objective.of_rows(shape, users=source))
    background = grown.user_background
    if background is not None and len(background) > 1:
        background = background.copy()
        background[met] = 1.0
        grown = replace(grown, user_background=background)
    if absent is None:
        return grown
    is_absent = np.zeros(grown.n_users, np.bool_)
    is_absent[absent] = True
    return grown.without_background(users=is_absent)


def _grown_prior(fitted: Fitted, growth: Growth, embeddings: Any) -> FittedPrior | None:
    """With the prior means of new users: from their embeddings, or that of the mean user."""
    prior, n = fitted.user_prior, len(growth.new)
    if prior is None:
        if embeddings is not None:
            raise ValueError("embeddings of users need a model with a user_prior")
        return None
    assert prior.mean is not None
    added = np.tile(prior.weights[-1], (n, 1))
    if embeddings is not None:
        names = None if growth.ids is None else growth.ids.take(growth.new)
        added = prior.project(LinearPrior(embeddings).rows_named("user", names, n))
    grown = copy.copy(prior)
    grown.mean = growth.spread(prior.mean, added)
    if isinstance(prior.prior.strength, np.ndarray):
        grown.prior = copy.copy(prior.prior)
        grown.prior.strength = growth.spread(prior.prior.strength, prior.prior.strength.mean())
    return grown


def _solve(
    fitted: Fitted,
    bound: BoundObjective,
    matrix: sparse.csr_matrix,
    mean: NDArray[np.floating] | None,
    known: NDArray[np.integer],
    name_of: Callable[[int], str],
) -> NDArray[np.floating]:
    """Exact factors of users from their interactions (n, I) and prior means."""
    terms = bound.user_terms(matrix)
    if mean is not None and fitted.user_prior is not None:
        terms, mean = fitted.user_prior.pulled(terms, mean, known)
    factors = np.zeros((matrix.shape[0], fitted.factors), fitted.dtype)
    try:
        fitted.backend.solve_rows(terms, fitted.item_factors, factors, prior=mean, spectrum=fitted.spectrum(terms))
    except SingularSystemError as error:
        raise SingularSystemError(error.row, error.remedy, name_of(error.row)) from error
    return factors
