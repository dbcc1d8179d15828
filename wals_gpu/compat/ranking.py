"""How implicit ranks: filtered items last instead of left out, equal scores by falling id.

Shapes: B queries, n rows to choose from, D factors, N results.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend

__all__ = ["chosen_columns", "rank"]


def rank(
    backend: Backend,
    queries: NDArray[np.floating],
    factors: NDArray[np.floating],
    N: int,
    *,
    liked: csr_matrix | None = None,
    hidden: NDArray[np.integer] | None = None,
    only: NDArray[np.integer] | None = None,
    norms: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """The N rows of `factors` with the highest dot product for each query.

    Parameters
    ----------
    backend : Backend
    queries : (B, D)
    factors : (n, D)
    N : int
    liked : (B, n) csr_matrix with sorted rows, optional
        Stored entries, of any value, are filtered.
    hidden : (H,) array of int, optional
        Rows that are filtered for all queries. Not together with `only`.
    only : (m,) array of int, rising, optional
        The only rows to rank.
    norms : (n,), optional
        Rows are divided by them.

    Returns
    -------
    ids : (B, min(N, n)) int32, or with `only` (B, min(N, m))
    scores : same shape
        Falling, equal ones by falling id. Filtered rows come last, with the lowest number of the dtype.
    """
    n = len(factors)
    k = min(N, n if only is None else len(only))
    permitted = None
    if only is not None:
        permitted = np.zeros(n, bool)
        permitted[only] = True
    elif hidden is not None and len(hidden):
        permitted = np.ones(n, bool)
        permitted[hidden] = False
    excluded = None
    if liked is not None:
        excluded = csr_matrix((np.ones(liked.nnz, bool), liked.indices, liked.indptr), (len(queries), n))
    best = backend.topk(queries, factors, k, excluded, permitted=permitted, norms=norms)
    ids, scores = _ties_by_falling_id(*best)
    short = np.flatnonzero(ids[:, -1] < 0)
    if len(short) and (excluded is not None or (only is None and permitted is not None)):
        filtered = np.zeros((len(short), k), bool)
        if excluded is not None:
            filtered |= (excluded if only is None else chosen_columns(excluded, only))[short][:, :k].toarray()
        if only is None and permitted is not None:
            filtered |= ~permitted[:k]
        _put_last(ids, scores, short, filtered, only)
    return ids, scores


def chosen_columns(liked: csr_matrix, only: NDArray[np.integer]) -> csr_matrix:
    """The columns `only` (sorted; of equal ones the first) of a matrix with sorted rows."""
    place = np.minimum(np.searchsorted(only, liked.indices), len(only) - 1)
    kept = only[place] == liked.indices
    row_ptr = np.concatenate([[0], np.cumsum(kept)])[liked.indptr]
    return csr_matrix((liked.data[kept], place[kept], row_ptr), shape=(liked.shape[0], len(only)))


def _ties_by_falling_id(
    ids: NDArray[np.int32], scores: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    if not ((scores[:, 1:] == scores[:, :-1]) & (ids[:, 1:] >= 0)).any():
        return ids, scores
    order = np.lexsort((-ids, -scores), axis=-1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def _put_last(
    ids: NDArray[np.int32],
    scores: NDArray[np.floating],
    short: NDArray[np.integer],
    filtered: NDArray[np.bool_],
    only: NDArray[np.integer] | None,
) -> None:
    """Fill the slots (id -1) left over in the rows `short` (s,) with filtered rows.

    Of the first k to choose from, of which `filtered` (s, k) tells, these are the highest ones, by falling id. That is
    what implicit's selection comes to, which sees rows in rising order and scores these lower than any other.
    """
    k = ids.shape[1]
    fill = -np.sort(-np.where(filtered, np.arange(k), -1), axis=1)
    slot = np.arange(k) - (ids[short] >= 0).sum(axis=1, keepdims=True)
    fill = np.take_along_axis(fill, np.maximum(slot, 0), 1)
    if only is not None:
        fill = np.where(fill < 0, -1, only[fill])
    ids[short] = np.where(slot < 0, ids[short], fill)
    scores[short] = np.where(slot < 0, scores[short], np.finfo(scores.dtype).min)
