"""How implicit ranks: filtered items last instead of left out, equal scores by falling id.

Shapes: B queries, n rows to choose from, D factors, N results.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend

__all__ = ["chosen_columns", "rank"]

#: Queries per call of the backend, so that the entries that `hidden` adds to each of them stay few.
BATCH = 4096


def rank(
    backend: Backend,
    queries: NDArray[np.floating],
    factors: NDArray[np.floating],
    N: int,
    liked: csr_matrix | None,
    hidden: NDArray[np.integer],
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """The N rows of `factors` with the highest dot product for each query.

    Parameters
    ----------
    backend : Backend
    queries : (B, D)
    factors : (n, D)
    N : int
    liked : (B, n) csr_matrix, optional
        Stored entries, of any value, are filtered.
    hidden : (H,) array of int
        Sorted rows that are filtered for all queries.

    Returns
    -------
    ids : (B, min(N, n)) int32
    scores : same shape
        Falling, equal ones by falling id. Filtered rows come last, with the lowest number of the dtype.
    """
    n = len(factors)
    queries = np.ascontiguousarray(queries, factors.dtype)
    ids = np.empty((len(queries), min(N, n)), np.int32)
    scores = np.empty(ids.shape, factors.dtype)
    for start in range(0, len(queries), BATCH):
        part = slice(start, start + BATCH)
        excluded = _excluded(None if liked is None else liked[part], hidden, len(queries[part]), n)
        best = backend.topk(queries[part], factors, ids.shape[1], excluded)
        ids[part], scores[part] = _filtered_last(*_ties_by_falling_id(*best), excluded)
    return ids, scores


def chosen_columns(liked: csr_matrix, only: NDArray[np.integer]) -> csr_matrix:
    """The columns `only` (sorted; of equal ones the first) of a matrix with sorted rows, without stored zeros.

    implicit filters stored zeros too, but not where it is given a choice of items.
    """
    place = np.minimum(np.searchsorted(only, liked.indices), len(only) - 1)
    kept = (only[place] == liked.indices) & (liked.data != 0)
    row_ptr = np.concatenate([[0], np.cumsum(kept)])[liked.indptr]
    return csr_matrix((liked.data[kept], place[kept], row_ptr), shape=(liked.shape[0], len(only)))


def _excluded(liked: csr_matrix | None, hidden: NDArray[np.integer], rows: int, n: int) -> csr_matrix | None:
    """Entries to exclude, (rows, n): those of `liked`, and the columns `hidden` in each row. None: there are none."""
    if liked is not None:
        liked = csr_matrix((np.ones(liked.nnz, bool), liked.indices, liked.indptr), (rows, n))
    if not len(hidden):
        return liked
    hide = csr_matrix(
        (np.ones(rows * len(hidden), bool), np.tile(hidden, rows), np.arange(rows + 1) * len(hidden)), (rows, n)
    )
    return hide if liked is None else hide + liked


def _ties_by_falling_id(
    ids: NDArray[np.int32], scores: NDArray[np.floating]
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    if not ((scores[:, 1:] == scores[:, :-1]) & (ids[:, 1:] >= 0)).any():
        return ids, scores
    order = np.lexsort((-ids, -scores), axis=-1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def _filtered_last(
    ids: NDArray[np.int32], scores: NDArray[np.floating], excluded: csr_matrix | None
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """Put excluded items into the slots (id -1) left over: of those below k the highest ones, by falling id.

    That is what implicit's selection comes to, which sees items in rising order and scores these lower than any other.
    """
    short = np.flatnonzero(ids[:, -1] < 0)
    if excluded is None or not len(short):
        return ids, scores
    k = ids.shape[1]
    filtered = excluded[short][:, :k].toarray()
    fill = -np.sort(-np.where(filtered, np.arange(k), -1), axis=1)
    slot = np.arange(k) - (ids[short] >= 0).sum(axis=1, keepdims=True)
    fill = np.take_along_axis(fill, np.maximum(slot, 0), 1)
    ids[short] = np.where(slot < 0, ids[short], fill)
    scores[short] = np.where(slot < 0, scores[short], np.finfo(scores.dtype).min)
    return ids, scores
