"""One number for how well a model finds what users took, as scikit-learn's ``score`` is hidden for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.csr import as_csr, contains, entry_keys, entry_rows, select
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import open_table, places_of
from wals_gpu.errors import DataError
from wals_gpu.evaluation.metrics import in_batches, relevant_entries, row_metrics
from wals_gpu.model.queries import fold_in
from wals_gpu.retrieval.neighbors import Extra, topk
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.validation import parse_metric

__all__ = ["score"]


def score(
    fitted: Fitted,
    interactions: Any,
    metric: str,
    heldout: float,
    random_state: int | np.random.Generator,
    columns: Mapping[str, Any],
) -> float:
    """What :meth:`wals_gpu.WALS.score` documents."""
    k = parse_metric(metric)[1]
    fitted.backend.check(k=k)
    heldout = number("heldout", heldout, positive=True, below=1)
    if not isinstance(random_state, np.random.Generator):
        random_state = integer("random_state", random_state, 0)
    data, as_text = _users_of(fitted, interactions, columns)
    known, unseen = _unseen_entries(fitted, data, as_text)
    folded = np.flatnonzero(known < 0)
    given, hidden = _split_rows(data.matrix[folded], heldout, np.random.default_rng(random_state))
    ranked = np.flatnonzero(known >= 0)
    values = _measured(fitted, relevant_entries(hidden, "interactions"), given, None, k, metric)
    if len(ranked):
        assert fitted.seen is not None
        new, rows = relevant_entries(unseen[ranked], "interactions"), known[ranked]
        values += _measured(fitted, new, fitted.seen[rows], fitted.user_factors[rows], k, metric)
    if not values:
        raise DataError(
            "interactions have nothing to ask for: users the model does not know need two items that it knows, with "
            "values above 0"
        )
    return float(np.concatenate(values).mean())


def _users_of(fitted: Fitted, interactions: Any, columns: Mapping[str, Any]) -> tuple[Interactions, bool]:
    """Users by their interactions with items of the model; others are dropped, with a warning.

    And whether their ids come from a file of text, where numbers may be the texts of the model.
    """
    if isinstance(interactions, Interactions) and interactions.item_ids is None:
        interactions = interactions.matrix
    if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
        return Interactions(as_csr(interactions, dtype=fitted.dtype, n_columns=fitted.n_items)), False
    if fitted.item_ids is None:
        raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no item ids")
    as_text = False
    if not isinstance(interactions, Interactions):
        interactions = open_table("interactions", interactions, columns)
        as_text = interactions.text_ids
    options: dict[str, Any] = {"item_ids": fitted.item_ids, "unknown": "drop", "like": fitted.columns}
    options |= {"warn_ratings": False}
    return as_interactions(interactions, dtype=fitted.dtype, **(options | dict(columns))), as_text


def _unseen_entries(fitted: Fitted, data: Interactions, as_text: bool) -> tuple[NDArray[np.int64], csr_matrix]:
    """The row in the model of each user whom it knows and of whom it has not seen all, else -1; and what it has not."""
    known = np.full(data.matrix.shape[0], -1)
    user_ids = fitted.user_ids
    if user_ids is None or data.user_ids is None or fitted.seen is None or not len(user_ids):
        return known, data.matrix
    known = places_of("interactions", data.user_ids, user_ids, "the model", as_text)
    seen = [
        fitted.seen[known[known >= 0]],
        csr_matrix((int((known < 0).sum()), fitted.n_items), dtype=fitted.seen.dtype),
    ]
    order = np.argsort(np.argsort(known < 0, kind="stable"), kind="stable")
    owned = sparse.vstack(seen, "csr")[order]
    unseen = select(data.matrix, ~contains(entry_keys(owned), entry_keys(data.matrix)))
    return np.where(np.diff(unseen.indptr) > 0, known, -1), unseen


def _split_rows(matrix: csr_matrix, share: float, rng: np.random.Generator) -> tuple[csr_matrix, csr_matrix]:
    """The entries of each row in two: a share to ask for, at least one and not all; nothing of a row with one entry."""
    draws = rng.random(matrix.nnz)
    per_row = np.diff(matrix.indptr)
    hidden = np.where(per_row > 1, np.maximum((share * per_row).astype(np.int64), 1), 0)
    order = np.lexsort((draws, entry_rows(matrix)))
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], per_row)
    is_hidden = np.zeros(matrix.nnz, dtype=bool)
    is_hidden[order] = position < np.repeat(hidden, per_row)
    return select(matrix, ~is_hidden), select(matrix, is_hidden)


def _measured(
    fitted: Fitted,
    hidden: csr_matrix,
    owned: csr_matrix,
    factors: NDArray[np.floating] | None,
    k: int,
    metric: str,
) -> list[NDArray[np.float64]]:
    """The metric of each user with something to find; their factors are folded in from what they own by default."""
    users = np.flatnonzero(np.diff(hidden.indptr))
    values, items, neighbors = [], fitted.item_table(), fitted.item_neighbors()
    length = min(k, len(items))
    for batch in in_batches(users, length):
        vectors = fold_in(fitted, owned[batch]) if factors is None else factors[batch]
        extra = None if neighbors is None else Extra(neighbors, owned[batch])
        ids, _ = topk(fitted.backend, vectors, items, length, owned[batch], extra=extra)
        values.append(row_metrics(ids, hidden[batch], [k], None)[metric])
    return values
