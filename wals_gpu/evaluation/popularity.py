"""The baseline that every model has to beat."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag, list_length
from wals_gpu.data.csr import canonical, contains, entry_keys, entry_rows, select
from wals_gpu.data.ids import row_numbers
from wals_gpu.data.matching import open_interactions, read_like

__all__ = ["Popularity", "item_counts"]

# Looked at at a time: on disk because all may not fit, in memory for the sake of the copies.
_ENTRIES = 1 << 22


def item_counts(train: Any) -> NDArray[np.int64]:
    """How many entries with a value above 0 each column of a CSR matrix has (I,), in memory or on disk."""
    counts = np.zeros(train.shape[1], np.int64)
    for start in range(0, train.nnz, _ENTRIES):
        piece = slice(start, min(start + _ENTRIES, train.nnz))
        counts += np.bincount(train.indices[piece][train.data[piece] > 0], minlength=train.shape[1])
    return counts


class Popularity:
    """The baseline that every model has to beat: the items that most training users have, for everybody.

    Parameters
    ----------
    train : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        An item's popularity is the number of users with a value above 0. Equal popularity: the lower column first.
    counts : (I,) int64 array, optional
        The popularity of each item, where `train` has some of the users that it is to be counted from.
    **columns
        ``user_column``, ``item_column``, ``value_column`` of a table.

    Attributes
    ----------
    counts : (I,) int64 array
        The popularity of each item.
    user_ids, item_ids : Ids or None
        The ids that it takes and gives, as :class:`.WALS` does; None for a matrix: row and column numbers.
    """

    def __init__(self, train: Any, *, counts: NDArray[np.int64] | None = None, **columns: Any) -> None:
        data = open_interactions("train", train, columns)
        self.user_ids, self.item_ids = data.user_ids, data.item_ids
        self._train = data.matrix
        self.counts = item_counts(self._train) if counts is None else counts  # (I,)
        self._order = np.argsort(-self.counts, kind="stable")
        self._rank = np.empty_like(self._order)
        self._rank[self._order] = np.arange(self._order.size)

    def recommend(
        self, users: ArrayLike, k: int = 10, *, filter_seen: bool = True, allow: csr_matrix | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Most popular items that the users do not have yet.

        Parameters
        ----------
        users : (B,) array
            Ids, or row numbers of the training matrix where there are none.
        k : int, default 10
            List length; where fewer items are left, id -1 and score ``-inf``.
        filter_seen : bool, default True
            Leave out what the user has an entry for.
        allow : (B, I) csr_matrix, optional
            The only items that each user may get.

        Returns
        -------
        ids : (B, k) array
            Ids of items, None for none; or int64 column numbers, -1 for none.
        scores : (B, k) float64 array
            The number of training users who have the item.
        """
        rows, _ = row_numbers(users, self.user_ids, self._train.shape[0], "user")
        return self.recommend_for(self._train[rows], k, filter_seen=filter_seen, allow=allow)

    def recommend_for(
        self, interactions: Any, k: int = 10, *, filter_seen: bool = True, allow: csr_matrix | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Most popular items for users given by their interactions, seen in training or not.

        Parameters
        ----------
        interactions : (B, I) matrix, Interactions, DataFrame, Arrow table or path
            What each user has; values do not matter. What has ids is matched by item id.
        k, filter_seen, allow
            As for :meth:`recommend`.

        Returns
        -------
        ids, scores : (B, k) array
            As of :meth:`recommend`.
        """
        known = read_like("interactions", interactions, None, self.item_ids, "the training data")
        ids, scores = self._lists(known.data.matrix, k, filter_seen, allow)
        return ids if self.item_ids is None else self.item_ids.take(ids), scores

    def _lists(
        self, seen: csr_matrix, k: int, filter_seen: bool, allow: csr_matrix | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        n_rows, n_items = seen.shape
        k = list_length("k", k, n_items, 5 * 8 * n_rows)  # arrays that are there at once
        if allow is not None:
            return self._from_lists(allow, seen if flag("filter_seen", filter_seen) else None, k)
        # With a row's seen ranks sorted, s_0 < s_1 < ..., the j-th unseen rank is j + #{m : s_m - m <= j}.
        skipped = np.zeros((n_rows, k), dtype=np.int64)
        if flag("filter_seen", filter_seen) and seen.nnz:
            rows = entry_rows(seen)
            ranks = self._rank[seen.indices]
            ranks = ranks[np.lexsort((ranks, rows))]
            before = ranks - (np.arange(seen.nnz) - np.repeat(seen.indptr[:-1], np.diff(seen.indptr)))
            inside = before < k
            np.add.at(skipped, (rows[inside], before[inside]), 1)
            skipped = skipped.cumsum(axis=1)
        place = np.arange(k) + skipped
        ids = np.where(place < n_items, self._order[np.minimum(place, n_items - 1)], -1)
        return ids, np.where(ids >= 0, self.counts[ids], -np.inf)

    def _from_lists(self, allow: csr_matrix, seen: csr_matrix | None, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        allow = canonical("allow", allow)
        if seen is not None:
            allow = select(allow, ~contains(entry_keys(seen), entry_keys(allow)))
        rows = entry_rows(allow)
        order = np.lexsort((self._rank[allow.indices], rows))
        place = np.arange(allow.nnz) - np.repeat(allow.indptr[:-1], np.diff(allow.indptr))
        ids = np.full((allow.shape[0], k), -1, np.int64)
        best = place < k
        ids[rows[best], place[best]] = allow.indices[order][best]
        return ids, np.where(ids >= 0, self.counts[ids], -np.inf)
