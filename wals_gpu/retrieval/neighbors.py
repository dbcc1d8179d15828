"""What items add to the scores of their neighbours: a sparse term beside the dot products of factors.

The score of a user and an item is ``x_u.y_i + sum_j B_ji`` over the items j that the user has. The factors know what is
common to many items; B, a ridge regression of each item on its own few neighbours (:mod:`wals_gpu.training.neighbors`),
knows what is particular to pairs of them.

Shapes: B queries, I items, D factors, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend, NeighborBackend
from wals_gpu.data.csr import contains, entry_keys, select
from wals_gpu.retrieval.lists import pattern, union

__all__ = ["Extra", "Neighbors", "best_of", "highest", "searched", "topk"]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """What having an item adds to the scores of others.

    Parameters
    ----------
    weights : (I, I) csr_matrix of float32, rows sorted
        Row j: for each item what an entry of j adds to its score.
    """

    weights: csr_matrix

    def __len__(self) -> int:
        return int(self.weights.shape[0])

    def added(self, history: csr_matrix) -> csr_matrix:
        """What the entries above 0 of users (B, I) add to their scores: (B, I), rows sorted."""
        added = _ones(history, self.weights.dtype) @ self.weights
        added.sort_indices()
        return added

    def at(self, history: csr_matrix, pairs: csr_matrix) -> NDArray[np.floating]:
        """The same at the stored entries of `pairs` (B, I), (Z,)."""
        return _at(self.added(history), pairs)

    def to(self, item: int, owned: NDArray[np.integer]) -> NDArray[np.floating]:
        """What each of some items (n,) adds to the score of one."""
        values: NDArray[np.floating] = self.weights[owned][:, [item]].toarray()[:, 0]
        return values

    def scaled(self, multipliers: NDArray[np.floating]) -> Neighbors:
        """For scores of which those of each item are multiplied (I,)."""
        weights = self.weights
        values = weights.data * multipliers[weights.indices].astype(weights.dtype)
        return Neighbors(csr_matrix((values, weights.indices, weights.indptr), shape=weights.shape))

    def of_dtype(self, dtype: np.dtype[Any]) -> Neighbors:
        """In the type of the scores that they are added to."""
        return self if self.weights.dtype == dtype else Neighbors(self.weights.astype(dtype))

    def of_items(self, kept: NDArray[np.integer]) -> Neighbors:
        """Of some of the items only, by their numbers."""
        return Neighbors(self.weights[kept][:, kept])

    def spread(self, places: NDArray[np.integer], n: int) -> Neighbors:
        """Among n items, of which those that were there have the places (I,), in rising order; new ones add nothing."""
        weights = self.weights
        ends = np.zeros(n + 1, weights.indptr.dtype)
        ends[places + 1] = np.diff(weights.indptr)
        columns = places.astype(weights.indices.dtype)[weights.indices]
        return Neighbors(csr_matrix((weights.data, columns, np.cumsum(ends)), shape=(n, n)))


class Extra(NamedTuple):
    """What is added to the dot products of queries: by whom, and for what they have."""

    neighbors: Neighbors
    history: csr_matrix  # (B, I); entries above 0 count

    def owned(self) -> csr_matrix:
        """What they have, as ones (B, I)."""
        return _ones(self.history, self.neighbors.weights.dtype)

    def added(self) -> csr_matrix:
        """(B, I)."""
        return self.neighbors.added(self.history)


def topk(
    backend: Backend,
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    k: int,
    excluded: csr_matrix | None = None,
    *,
    permitted: NDArray[np.bool_] | None = None,
    extra: Extra | None = None,
    norms: NDArray[np.floating] | None = None,
    prepared: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """As :meth:`.Backend.topk`, by the scores ``q.y + added``.

    There are no `norms` with `extra`; `prepared` is for the items of a :class:`.PreparingBackend` that prepared them.
    """
    options: dict[str, Any] = {"permitted": permitted}
    if prepared is not None:
        options["prepared"] = prepared
    if extra is None:
        return backend.topk(queries, items, k, excluded, norms=norms, **options)
    if isinstance(backend, NeighborBackend):
        own = (extra.owned(), extra.neighbors.weights)
        return backend.topk_neighbors(queries, items, k, *own, pattern(excluded), **options)
    return searched(backend, queries, items, k, excluded, permitted=permitted, extra=extra)


def searched(
    backend: Backend,
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    k: int,
    excluded: csr_matrix | None = None,
    *,
    permitted: NDArray[np.bool_] | None = None,
    extra: Extra,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """:func:`topk` on any device: what nothing is added to is searched as ever, the rest is scored one by one."""
    added = extra.added()
    excluded = pattern(excluded)
    keep = np.ones(added.nnz, bool) if permitted is None else permitted[added.indices]
    if excluded is not None:
        keep &= ~contains(entry_keys(excluded), entry_keys(added))
    columns, scores = backend.topk(queries, items, k, union(excluded, pattern(added)), permitted=permitted)
    added = select(added, keep)
    own = backend.score_entries(queries, items, pattern(added)) + added.data.astype(items.dtype)
    for row in np.flatnonzero(np.diff(added.indptr)):
        part = slice(added.indptr[row], added.indptr[row + 1])
        best = highest(own[part], k)
        found = columns[row] >= 0
        names = np.concatenate([columns[row][found], added.indices[part][best]])
        values = np.concatenate([scores[row][found], own[part][best]])
        order = np.lexsort((names, -values))[:k]
        columns[row, : len(order)], scores[row, : len(order)] = names[order], values[order]
    return columns, scores


def best_of(
    backend: Backend,
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    k: int,
    listed: csr_matrix,
    extra: Extra,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """As :meth:`.Backend.topk_listed`, by the scores ``q.y + added``; `listed` is a pattern with sorted rows."""
    own = backend.score_entries(queries, items, listed) + _at(extra.added(), listed).astype(items.dtype)
    columns = np.full((len(queries), k), -1, np.int32)
    scores = np.full(columns.shape, -np.inf, items.dtype)
    for row in np.flatnonzero(np.diff(listed.indptr)):
        part = slice(listed.indptr[row], listed.indptr[row + 1])
        best = highest(own[part], k)
        columns[row, : len(best)], scores[row, : len(best)] = listed.indices[part][best], own[part][best]
    return columns, scores


def _ones(history: csr_matrix, dtype: np.dtype[Any]) -> csr_matrix:
    owned = history if history.dtype == bool or (history.data > 0).all() else select(history, history.data > 0)
    return csr_matrix((np.ones(owned.nnz, dtype), owned.indices, owned.indptr), shape=owned.shape)


def _at(matrix: csr_matrix, pairs: csr_matrix) -> NDArray[np.floating]:
    """The values of a matrix with sorted rows at the stored entries of another, 0 where it has none."""
    keys, wanted = entry_keys(matrix), entry_keys(pairs)
    if not len(keys):
        return np.zeros(len(wanted), matrix.dtype)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    values: NDArray[np.floating] = np.where(keys[place] == wanted, matrix.data[place], matrix.dtype.type(0))
    return values


def highest(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Positions of the k highest scores: score down, position up."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
