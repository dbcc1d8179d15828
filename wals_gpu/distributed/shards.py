"""The interactions of a fit on several machines: each rank has the rows of its users, and the rows of its items."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, Interactions
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.data.times import Period
from wals_gpu.distributed.cuts import Cuts, cut_rows
from wals_gpu.distributed.group import Group, agree, gather_json, of_each, together
from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.training.checkpoints import fingerprint

__all__ = ["Shards", "period_of_all", "shard"]

#: Values that are brought together at a time, where an objective looks at all of them.
_WINDOW = 1 << 22


@dataclass(frozen=True, eq=False)
class Shards:
    """What one rank has of the interactions.

    Parameters
    ----------
    group : Group
    users, items : csr_matrix or StoredRows
        Canonical CSR of the rank's own rows, (own users, I) and (own items, U), in the dtype of the model.
    user_cuts, item_cuts : Cuts
        Which rank has which rows.
    user_ids, item_ids : Ids, optional
        Of the rank's own rows; None where rows go by their numbers.
    has_repeats : bool, default False
        Whether a pair may have several entries, next to each other; objectives take each by itself.
    columns : ColumnNames, optional
        Of the table that they came from.
    times : (Z,) float64 or datetime64 array, optional
        When each entry of `users` happened.
    period : Period, optional
        The earliest and the latest time of all ranks.
    """

    group: Group
    users: csr_matrix
    items: csr_matrix
    user_cuts: Cuts
    item_cuts: Cuts
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    has_repeats: bool = False
    columns: ColumnNames | None = None
    times: NDArray[Any] | None = None
    period: Period | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """U, I of the whole."""
        return self.user_cuts.n_rows, self.item_cuts.n_rows

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        dtype: np.dtype[Any] = self.users.dtype
        return dtype

    def rows_of(self, side: str) -> tuple[csr_matrix, Cuts]:
        """The rank's rows of a side, and the cuts of the side.

        Parameters
        ----------
        side : {"user", "item"}

        Returns
        -------
        rows : csr_matrix or StoredRows
            (own users, I) or (own items, U).
        cuts : Cuts
        """
        return (self.users, self.user_cuts) if side == "user" else (self.items, self.item_cuts)

    def count_entries(self) -> int:
        """Z of the whole. Every rank makes the call."""
        return int(of_each(self.group, self.users.nnz).sum())

    def item_counts(self) -> NDArray[np.int64]:
        """How many entries with a value above 0 each item of all ranks has, (I,). Every rank makes the call."""
        items = self.items
        own: NDArray[np.int64] = np.diff(np.concatenate([[0], np.cumsum(items.data > 0)])[items.indptr])
        return self.group.gather_rows(own, self.item_cuts.counts)

    def bind(self, objective: Objective, **unmet: NDArray[np.bool_]) -> BoundObjective:
        """The objective with what it learns of the whole: as of one matrix on one machine, to the bit.

        Every rank makes the call.

        Parameters
        ----------
        objective : Objective
        **unmet : (U,) or (I,) array of bool
            As `users` and `items` of :meth:`.BoundObjective.without_background`.

        Returns
        -------
        BoundObjective
        """
        bound = BoundObjective(objective, *self.shape, **objective.learn(_Whole(self)))
        return bound.without_background(**unmet)


class _Whole:
    """The matrix of all ranks, as far as objectives look at one: its shape, its values in order, and column counts."""

    def __init__(self, shards: Shards) -> None:
        group = shards.group
        self.shape = shards.shape
        counts: list[int] = of_each(group, shards.users.nnz).tolist()
        self.indices = np.broadcast_to(np.int32(0), sum(counts))  # its size alone is asked for
        lengths = np.diff(shards.items.indptr).astype(np.int64)
        self.column_counts = group.gather_rows(lengths, shards.item_cuts.counts)
        self.data = _Values(group, shards.users.data, counts)


class _Values:
    """The values of all ranks, of which every rank asks for the same slices, rising."""

    def __init__(self, group: Group, own: NDArray[np.floating], counts: list[int]) -> None:
        self._group, self._own = group, own
        self._ends = np.concatenate([[0], np.cumsum(counts)])
        self._start, self._window = 0, np.empty(0, own.dtype)
        bounds = (float(np.min(own)), float(np.max(own))) if len(own) else (np.inf, -np.inf)
        all_bounds = of_each(group, bounds)
        low, high = all_bounds[:, 0].min(), all_bounds[:, 1].max()
        self._only = low if low == high else None

    def __getitem__(self, piece: slice) -> NDArray[np.floating]:
        start, stop, _ = piece.indices(int(self._ends[-1]))
        if self._only is not None:
            return np.full(stop - start, self._only, self._own.dtype)
        if not self._start <= start <= stop <= self._start + len(self._window):
            self._fetch(start, max(stop, start + _WINDOW))
        return self._window[start - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> None:
        pieces = np.clip(self._ends, start, stop)
        first = self._ends[self._group.rank]
        begin, end = pieces[self._group.rank] - first, pieces[self._group.rank + 1] - first
        own = np.ascontiguousarray(self._own[int(begin) : int(end)])
        self._start, self._window = start, self._group.gather_rows(own, np.diff(pieces).tolist())


def period_of_all(group: Group, times: NDArray[Any] | None) -> Period | None:
    """Of the times of all ranks' entries; None where no rank has any. Every rank makes the call.

    Raises
    ------
    DataError
        Some ranks have numbers, others dates.
    """
    own = Period.of(times)
    found = gather_json(group, None if own is None else own.to_json())
    return Period.of_all([Period.from_json(one) for one in found if one])


def shard(data: Interactions, group: Group, factors: int, options: SolveOptions) -> Shards:
    """The rank's part of interactions that every rank can read: in memory, or in a folder that all see.

    Parameters
    ----------
    data : Interactions
        Of a matrix, or of a :class:`.StoredMatrix`, of which no more than the rank's rows is read into memory.
    group : Group
    factors : int
    options : SolveOptions
        What the cost of a row follows from.

    Returns
    -------
    Shards

    Raises
    ------
    DistributedError
        The ranks have different data.
    """
    matrix = data.matrix
    digest = ""
    with together(group, "reading the interactions"):
        digest = _digest_of(data)
    agree(group, shape=list(matrix.shape), entries=int(matrix.nnz), dtype=matrix.dtype.name, content=digest)
    with together(group, "taking the rank's own rows"):
        lengths = np.diff(matrix.indptr), _column_lengths(matrix)
        cuts = [cut_rows(of_side, group.size, factors, options) for of_side in lengths]
        rows = [of_side.of(group.rank) for of_side in cuts]
        if isinstance(matrix, StoredMatrix):
            users, items = matrix.block(*_ends(rows[0])), matrix.transposed.block(*_ends(rows[1]))
        else:
            users, items = matrix[rows[0]], matrix[:, rows[1]].T.tocsr()
        ids = _some(data.user_ids, rows[0]), _some(data.item_ids, rows[1])
        times = None
        if data.times is not None:
            times = data.times[matrix.indptr[rows[0].start] : matrix.indptr[rows[0].stop]]
    more: dict[str, Any] = {"columns": data.columns, "times": times, "period": Period.of(data.times)}
    return Shards(group, users, items, cuts[0], cuts[1], *ids, **more)


def _digest_of(data: Interactions) -> str:
    """Of what every rank has read: all of it, or of stored interactions how many entries each row has."""
    matrix, ids = data.matrix, (data.user_ids, data.item_ids)
    if not isinstance(matrix, StoredMatrix):
        return fingerprint(matrix, *ids)
    empty = csr_matrix((0, 0), dtype=matrix.dtype)
    digest = hashlib.sha256(fingerprint(empty, *ids).encode())
    for lengths in (matrix.indptr, matrix.transposed.indptr):
        digest.update(np.ascontiguousarray(lengths, np.int64).data)
    return digest.hexdigest()


def _column_lengths(matrix: Any) -> NDArray[np.int64]:
    if isinstance(matrix, StoredMatrix):
        return np.diff(matrix.transposed.indptr)
    return np.bincount(matrix.indices, minlength=matrix.shape[1])


def _ends(rows: slice) -> tuple[int, int]:
    return rows.start, rows.stop


def _some(ids: Ids | None, rows: slice) -> Ids | None:
    return None if ids is None else ids.subset(np.arange(rows.start, rows.stop))
