"""Items that come after the fit: from their text or embedding at once, and from interactions as these arrive.

Functions of :class:`.fitted.Fitted`, which give another one; the methods of :class:`wals_gpu.WALS` document what they
take and give.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from wals_gpu.checks import index_of_ids, number, with_ids
from wals_gpu.data.csr import as_csr
from wals_gpu.data.features import feature_rows, has_columns
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.titles import is_missing
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.model.rows import Growth, changeable, merged_ids
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.priors.linear import COLD_MODES, FittedPrior
from wals_gpu.training.fitted import Fitted

__all__ = ["add_items", "project_items", "update_items"]


def project_items(fitted: Fitted, items: Any) -> NDArray[np.floating]:
    """Factors (n, D) of items without interactions, from their texts or embeddings."""
    embeddings = _embeddings(fitted, feature_rows("items", items)[1] if has_columns(items) else items)
    assert fitted.item_prior is not None
    return fitted.item_prior.project_unmet(embeddings, fitted.dtype)


def _embeddings(fitted: Fitted, items: Any) -> Any:
    if fitted.item_prior is None:
        raise ModelFitError("the model has no item_prior, so it knows items by their interactions only")
    if isinstance(items, str):
        raise TypeError("items must be a list of texts or an array (n, E), got a str: put it into a list")
    if hasattr(items, "to_pylist"):  # of Arrow
        items = items.to_pylist()
    texts = list(items) if getattr(items, "ndim", 0) == 1 or type(items).__name__ == "Series" else items
    is_texts = isinstance(texts, Sequence) and all(
        isinstance(text, str) or (not np.ndim(text) and is_missing(text)) for text in texts
    )
    return fitted.item_prior.encode(texts) if is_texts else items


def add_items(fitted: Fitted, items: Any, ids: ArrayLike | None, mode: str | None) -> tuple[Fitted, NDArray[Any]]:
    """With items that have no interactions yet; and their ids, or column numbers."""
    knows_ids = fitted.item_ids is not None  # else an index says nothing: columns are counted
    if has_columns(items):
        found, features = feature_rows("items", items, ids)
        ids, items = found if knows_ids or index_of_ids(items) is None else ids, features
    elif knows_ids or isinstance(items, Mapping):
        items, ids = with_ids("text or embedding", items, ids)
    embeddings = _embeddings(fitted, items)
    prior, bound = fitted.item_prior, changeable(fitted)
    assert prior is not None and prior.mean is not None
    mean = prior.project(embeddings, fitted.dtype)
    mode = prior.prior.cold if mode is None else mode
    if mode not in COLD_MODES:
        raise ValueError(f"mode must be one of {', '.join(COLD_MODES)}; got {mode!r}")
    if mode == "regression" and prior.cold_weights is None:
        raise ValueError("mode 'regression' needs a model that was fitted with LinearPrior(..., cold='regression')")
    n, n_old = len(mean), fitted.n_items
    growth = _growth(fitted, ids, n)
    source = growth.source
    objective = bound.objective.of_rows((bound.n_users, n_old), items=source)
    grown = replace(bound.of_items(source), objective=objective)
    if mode != "map":
        unmet = np.zeros(len(source), np.bool_)
        unmet[growth.new] = True
        grown = grown.without_background(items=unmet)
        new = mean if mode == "prior_mean" else prior.project_unmet(embeddings, fitted.dtype)
    else:
        nothing = sparse.csr_matrix((n, bound.n_users), dtype=fitted.dtype)
        new = _solve_items(fitted, grown, nothing, growth.new, mean, np.full(n, -1))

    seen, calibration = fitted.seen, fitted.calibration
    if seen is not None:
        columns = growth.old.astype(seen.indices.dtype)[seen.indices]
        seen = sparse.csr_matrix((seen.data, columns, seen.indptr), shape=(seen.shape[0], n_old + n))
    changed = replace(
        fitted,
        item_factors=_read_only(growth.spread(fitted.item_factors, new)),
        item_ids=growth.ids,
        bound=grown,
        seen=seen,
        item_prior=_grown_prior(prior, growth.spread(prior.mean, mean), growth),
        calibration=None if calibration is None else calibration.with_counts(growth.spread(calibration.counts, 0)),
        neighbors=None if fitted.neighbors is None else fitted.neighbors.spread(growth.old, n_old + n),
        counts=None if fitted.counts is None else growth.spread(fitted.counts, 0),
    )
    return changed, growth.new if growth.ids is None else growth.ids.take(growth.new)


def _grown_prior(prior: FittedPrior, mean: NDArray[np.floating], growth: Growth) -> FittedPrior:
    """With the prior means of more rows, and a strength of each where each has its own: new ones the mean of all."""
    grown = copy.copy(prior)
    grown.mean = mean
    if isinstance(prior.prior.strength, np.ndarray):
        grown.prior = copy.copy(prior.prior)
        grown.prior.strength = growth.spread(prior.prior.strength, prior.prior.strength.mean())
    return grown


def update_items(
    fitted: Fitted, interactions: Any, exposure: float | None, columns: Mapping[str, Any]
) -> tuple[Fitted, NDArray[Any]]:
    """With factors of some items from their interactions, everything else as it is; and their ids, or columns."""
    if exposure is not None:
        exposure = number("exposure", exposure, 0.0, 1.0)
    bound = changeable(fitted)
    matrix = _item_interactions(fitted, interactions, columns)
    of_items = fitted.backend.transpose(matrix)
    rows = np.flatnonzero(np.diff(of_items.indptr))
    bound = bound if exposure is None else bound.met(rows, exposure)
    mean = None
    if fitted.item_prior is not None and fitted.item_prior.mean is not None:
        mean = fitted.item_prior.mean[rows]
    changed = fitted.item_factors.copy()
    changed[rows] = _solve_items(fitted, bound, of_items[rows], rows, mean, rows)
    seen = None if fitted.seen is None else _replace_columns(fitted.seen, rows, matrix)
    calibration = fitted.calibration
    if calibration is not None:
        counts = calibration.counts.copy()
        counts[rows] = item_counts(matrix)[rows]
        calibration = calibration.with_counts(counts)
    updated = replace(fitted, item_factors=_read_only(changed), bound=bound, seen=seen, calibration=calibration)
    return updated, rows if fitted.item_ids is None else fitted.item_ids.take(rows)


def _item_interactions(fitted: Fitted, interactions: Any, columns: Mapping[str, Any]) -> sparse.csr_matrix:
    """All that is known of some items, (U, I)."""
    if isinstance(interactions, Interactions) and interactions.item_ids is None:
        interactions = interactions.matrix
    if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
        matrix = as_csr(interactions, dtype=fitted.dtype, n_columns=fitted.n_items)
        if matrix.shape[0] != fitted.n_users:
            raise DataError(f"interactions must have {fitted.n_users} rows, one per user; got {matrix.shape}")
        return matrix
    if fitted.user_ids is None or fitted.item_ids is None:
        raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no ids")
    known: dict[str, Any] = {"user_ids": fitted.user_ids, "item_ids": fitted.item_ids}
    known |= {"like": fitted.columns, "warn_ratings": False}
    return as_interactions(interactions, dtype=fitted.dtype, **(known | dict(columns))).matrix


def _solve_items(
    fitted: Fitted,
    bound: BoundObjective,
    of_items: sparse.csr_matrix,
    rows: NDArray[np.integer],
    mean: NDArray[np.floating] | None,
    fitted_rows: NDArray[np.integer],
) -> NDArray[np.floating]:
    """Exact factors of items from their interactions (n, U) and prior means."""
    terms = bound.of_items(rows).item_terms(of_items)
    if mean is not None and fitted.item_prior is not None:
        terms, mean = fitted.item_prior.pulled(terms, mean, fitted_rows)
    factors = np.zeros((len(rows), fitted.factors), fitted.dtype)
    fitted.backend.solve_rows(terms, fitted.user_factors, factors, prior=mean)
    return factors


def _growth(fitted: Fitted, ids: ArrayLike | None, n: int) -> Growth:
    """Where rows are with n new items, whose ids must be new and distinct."""
    if fitted.item_ids is None:
        if ids is not None:
            raise TypeError("ids must not be given: the model was fitted on a matrix, new items are its next columns")
        return merged_ids(None, fitted.n_items, None, n, "item")
    if ids is None:
        raise TypeError("ids must be given, one for each new item: the model knows its items by ids")
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"ids must be a list of ids, one for each new item, got {ids!r:.60}")
    new: list[Any] = ids.to_pylist() if hasattr(ids, "to_pylist") else list(ids)  # type: ignore[arg-type]  # says so
    if len(new) != n:
        raise DataError(f"ids must have one id for each of {n} items, got {len(new)}")
    known = np.flatnonzero(np.asarray(fitted.item_ids.find(new)) >= 0).tolist() if n else []
    if known:
        raise DataError(f"ids must be new, but the model knows {len(known)} of them, such as {new[known[0]]!r}")
    return merged_ids(fitted.item_ids, fitted.n_items, new, n, "item")


def _read_only(factors: NDArray[np.floating]) -> NDArray[np.floating]:
    factors.flags.writeable = False  # answers may keep what they computed from it
    return factors


def _replace_columns(
    seen: sparse.csr_matrix, columns: NDArray[np.integer], matrix: sparse.csr_matrix
) -> sparse.csr_matrix:
    """`seen` with some columns as they are in `matrix`, which has no others; stored zeros stay stored."""
    kept = np.isin(seen.indices, columns, invert=True)
    row_of = [np.repeat(np.arange(m.shape[0]), np.diff(m.indptr)) for m in (seen, matrix)]
    row = np.concatenate([row_of[0][kept], row_of[1]])
    column = np.concatenate([seen.indices[kept], matrix.indices])
    data = np.concatenate([seen.data[kept], matrix.data.astype(seen.dtype)])
    if seen.dtype == bool:
        data[:] = True
    return sparse.csr_matrix((data, (row, column)), shape=seen.shape)
