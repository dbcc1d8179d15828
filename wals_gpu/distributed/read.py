"""Interactions that no rank has as a whole: each reads a part of the files, and gets the rows that it is to solve.

1. Each rank reads its part as one machine reads a file (:mod:`wals_gpu.data.interactions`), with ids of its own.
2. Distinct ids go to the rank that owns their range (ranges are cut at sampled ids), which sorts them and counts their
   entries: an id's row is the number of ids before it, as on one machine.
3. Rows are cut into ranges that cost the same (:mod:`.cuts`), and entries go to the ranks that have their user, and
   their item. Values of a pair that several ranks have read are added up in the order of the ranks.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import as_path
from wals_gpu.data.csr import select
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, Interactions, as_interactions, latest_times
from wals_gpu.distributed.cuts import Cuts, cut_rows
from wals_gpu.distributed.group import Group, gather_json, of_each, to_receive, together
from wals_gpu.distributed.shards import Shards, period_of_all
from wals_gpu.errors import DataError

__all__ = ["merge_entries", "merge_shards", "parquet_files", "read_sharded", "reads_in_parts", "some_entries"]

#: Options of reading that look at all rows at once.
_OF_ALL_ROWS = ("min_user_interactions", "min_item_interactions", "half_life", "user_ids", "item_ids")

#: Ids of each rank that ranges are cut by.
_SAMPLED = 256

#: Files or folders.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def parquet_files(path: Paths) -> list[Path]:
    """The Parquet files of paths: themselves, or those of folders; none where one of them is something else."""
    if not isinstance(path, (str, os.PathLike)):
        of_each = [parquet_files(one) for one in path]
        return [file for files in of_each for file in files] if all(of_each) else []
    place = as_path("path", path)
    if place.is_dir():
        files = sorted(one for one in place.rglob("*") if one.is_file() and not one.name.startswith((".", "_")))
        return files if files and all(one.suffix in (".parquet", ".pq") for one in files) else []
    return [place] if place.is_file() and place.suffix in (".parquet", ".pq") else []


def reads_in_parts(path: Paths, options: Collection[str]) -> bool:
    """Whether :func:`read_sharded` reads these files, with options of such names."""
    return not any(name in options for name in _OF_ALL_ROWS) and bool(parquet_files(path))


def read_sharded(path: Paths, group: Group, factors: int, options: SolveOptions, **columns: Any) -> Shards:
    """Read Parquet files, a part on each rank. Every rank makes the call.

    Parameters
    ----------
    path : str or path, or a list of them
        Parquet files, or folders of them, that all ranks see.
    group : Group
    factors : int
    options : SolveOptions
        What the cost of a row follows from.
    **columns
        As for :func:`wals_gpu.as_interactions`: ``user_column``, ``value_column``, ``time_column``, ``min_value``,
        ``dtype`` and others that look at single rows.

    Returns
    -------
    Shards

    Raises
    ------
    DataError, FileNotFoundError
        There is no such file, or its data cannot be used; on all ranks.
    """
    with together(group, "reading the interactions"):
        if unfit := [name for name in _OF_ALL_ROWS if columns.get(name) is not None]:
            raise ValueError(f"{', '.join(unfit)} cannot be used where each rank reads a part of the rows")
        files = parquet_files(path)
        if not files:
            for one in [path] if isinstance(path, (str, os.PathLike)) else path:
                if not Path(one).exists():
                    raise FileNotFoundError(2, os.strerror(2), os.fspath(one))
            raise DataError(f"{path} holds no Parquet files, of which each rank could read a part")
        local = _read_part(files, group.rank, group.size, columns)
    return merge_shards(local, group, factors, options, np.dtype(columns.get("dtype", "float32")))


def _read_part(files: Sequence[Path], rank: int, size: int, columns: dict[str, Any]) -> Interactions | None:
    """The row groups rank, rank + size, ... of all files, read one file after another; None where there are none."""
    tables, number = [], 0
    for path in files:
        with pq.ParquetFile(path) as file:
            mine = [i for i in range(file.num_row_groups) if (number + i) % size == rank]
            number += file.num_row_groups
            if mine:
                tables.append(file.read_row_groups(mine))
    if not tables or not any(len(table) for table in tables):
        return None
    return as_interactions(pa.concat_tables(tables, promote_options="permissive"), **columns)


def merge_shards(
    local: Interactions | None, group: Group, factors: int, options: SolveOptions, dtype: np.dtype[Any]
) -> Shards:
    """The shards of interactions of which each rank has read some. Every rank makes the call.

    Parameters
    ----------
    local : Interactions, optional
        With ids. None: nothing.
    group : Group
    factors : int
    options : SolveOptions
    dtype : dtype
        Of the values.

    Returns
    -------
    Shards

    Raises
    ------
    DataError
        No rank has anything, or ids are numbers on one and text on another.
    """
    matrix = csr_matrix((0, 0), dtype=dtype) if local is None else local.matrix
    entries = matrix.tocoo()
    user_ids, item_ids = (None, None) if local is None else (local.user_ids, local.item_ids)
    times = None if local is None else local.times
    shards = merge_entries(
        user_ids, item_ids, entries.row, entries.col, entries.data, group, factors, options, times=times
    )
    of_texts = local is not None and all(name is None or isinstance(name, str) for name in local.columns or ())
    given = gather_json(group, list(local.columns) if of_texts and local is not None and local.columns else None)
    columns = next((ColumnNames(*names) for names in given if names is not None), None)
    return replace(shards, columns=columns)


def merge_entries(
    user_ids: Ids | None,
    item_ids: Ids | None,
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    values: NDArray[np.floating],
    group: Group,
    factors: int,
    options: SolveOptions,
    *,
    add_repeats: bool = True,
    times: NDArray[Any] | None = None,
) -> Shards:
    """The shards of entries of which each rank has some. Every rank makes the call.

    Parameters
    ----------
    user_ids, item_ids : Ids, optional
        Of this rank's rows and columns. None: it has nothing.
    rows, columns : (n,) int
    values : (n,) of the model's dtype
    group : Group
    factors : int
    options : SolveOptions
    add_repeats : bool, default True
        Whether values of a repeated pair are added up. False: each stays an entry of its own, in the order of the
        values, and rows count them all; the result does not depend on which rank had what.
    times : (n,) float64 or datetime64, optional
        Of the entries, on all ranks that have any; of a repeated pair the latest is kept.

    Returns
    -------
    Shards

    Raises
    ------
    DataError
        No rank has anything, or ids, or times, are numbers on one and text, or dates, on another.
    """
    sides = [user_ids, item_ids]
    kinds = gather_json(group, [None if ids is None else str(_dtype_of(ids)) for ids in sides])
    placed = []
    for side, name in enumerate(("user", "item")):
        found = {kind[side] for kind in kinds if kind[side] is not None}
        if found == {"int64", "uint64"}:  # ids of a rank are uint64 only where they have to be
            ids, found = sides[side], {"uint64"}
            negative = ids is not None and len(ids) > 0 and ids[0] < 0
            if any(gather_json(group, bool(negative))):
                raise DataError(f"{name} ids must not be below 0 where others are above 2**63 - 1")
        if len(found) != 1:
            what = "there are no interactions" if not found else f"{name} ids are {' and '.join(sorted(found))}"
            raise DataError(f"the ranks read different files, and {what}")
        ids = sides[side]
        if ids is None:
            ids = Ids(pa.array([], pa.large_string()) if found == {"string"} else np.empty(0, np.int64), name)
        counts = np.bincount((rows, columns)[side], minlength=len(ids))
        placed.append(_Placed(group, ids, found.pop(), counts, factors, options))
    users, items = placed
    of_user, of_item = users.rows[rows], items.rows[columns]
    times = _of_one_kind(group, times)
    of_users, times = _delivered(group, users.cuts, of_user, of_item, values, len(items), add_repeats, times)
    if group.size == 1:
        of_items = CpuBackend(1).transpose(of_users)
        of_items.has_canonical_format = True  # as of_users says, whatever it repeats
    else:
        of_items, _ = _delivered(group, items.cuts, of_item, of_user, values, len(users), add_repeats)
    more: dict[str, Any] = {"times": times, "period": period_of_all(group, times)}
    return Shards(
        group, of_users, of_items, users.cuts, items.cuts, users.own, items.own, has_repeats=not add_repeats, **more
    )


def some_entries(shards: Shards, keep: NDArray[np.bool_]) -> Shards:
    """The shards of some entries, of the same users and items. Every rank makes the call.

    Parameters
    ----------
    shards : Shards
        In memory.
    keep : (Z,) bool
        Which entries of the rank's users.
    """
    group, users = shards.group, shards.users
    matrix, times = users, shards.times
    with together(group, "choosing entries"):
        matrix, times = select(users, keep), None if times is None else times[keep]
        entries = matrix.tocoo()
        rows = entries.row + np.int64(shards.user_cuts.of(group.rank).start)
    n_users, add_repeats = shards.shape[0], not shards.has_repeats
    items, _ = _delivered(group, shards.item_cuts, entries.col, rows, entries.data, n_users, add_repeats)
    return replace(shards, users=matrix, items=items, times=times, period=period_of_all(group, times))


def _of_one_kind(group: Group, times: NDArray[Any] | None) -> NDArray[Any] | None:
    """The times of this rank's entries, of the type that those of all ranks have; None where no rank has any."""
    kinds = {kind for kind in gather_json(group, None if times is None else times.dtype.str) if kind is not None}
    if not kinds:
        return None
    if len({kind[1] for kind in kinds}) > 1:
        raise DataError("the ranks read different files, and times are numbers and dates")
    kind = np.dtype(kinds.pop() if len(kinds) == 1 else "M8[us]")
    return np.empty(0, kind) if times is None else times.astype(kind, copy=False)


class _Placed:
    """Where the ids of a side stand among those of all ranks, and what this rank is to have of them.

    Attributes
    ----------
    rows : (n,) int64
        Of the rank's ids that were read, the row numbers.
    cuts : Cuts
    own : Ids
        Of the rows that this rank is to have.
    """

    def __init__(
        self, group: Group, ids: Ids, kind: str, counts: NDArray[np.int64], factors: int, options: SolveOptions
    ) -> None:
        self._kind = pa.large_string() if kind == "string" else pa.from_numpy_dtype(np.dtype(kind))
        samples = ids[np.linspace(0, len(ids) - 1, min(len(ids), _SAMPLED)).astype(int)].tolist() if len(ids) else []
        gathered = sorted(chain.from_iterable(gather_json(group, samples)))
        splitters = [gathered[len(gathered) * rank // group.size] for rank in range(1, group.size)]
        ends = [0, *(bisect_left(ids, splitter) for splitter in splitters), len(ids)]
        pieces = [slice(a, b) for a, b in pairwise(ends)]
        n_sent = [piece.stop - piece.start for piece in pieces]
        n_received = to_receive(group, n_sent)
        received = _exchanged(group, [_values(ids, piece, self._kind) for piece in pieces], n_received)
        owned = Ids(_distinct(received), ids.side)
        place = np.asarray(owned.find(received.to_numpy(zero_copy_only=False)) if len(received) else np.empty(0, int))
        n_owned = of_each(group, len(owned))
        first = int(n_owned[: group.rank].sum())
        # What was asked gets its answer, in the order in which it was asked.
        self.rows = np.empty(len(ids), np.int64)
        answers = np.split(place + first, np.cumsum(n_received)[:-1])
        group.exchange_rows([np.ascontiguousarray(part, np.int64) for part in answers], n_sent, self.rows)
        totals = np.zeros(len(owned), np.int64)
        their_counts = np.empty(len(received), np.int64)
        group.exchange_rows(
            [np.ascontiguousarray(counts[piece], np.int64) for piece in pieces], n_received, their_counts
        )
        np.add.at(totals, place, their_counts)
        lengths = group.gather_rows(totals, n_owned.tolist())
        self.cuts = cut_rows(lengths, group.size, factors, options)
        self.own = self._handed_over(group, owned, first)

    def __len__(self) -> int:
        return self.cuts.n_rows

    def _handed_over(self, group: Group, owned: Ids, first: int) -> Ids:
        """The ids of the rank's rows, from the ranks that sorted them."""
        ends = np.clip(self.cuts.bounds - first, 0, len(owned))
        pieces = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        n_sent = [piece.stop - piece.start for piece in pieces]
        n_received = to_receive(group, n_sent)
        received = _exchanged(group, [_values(owned, piece, self._kind) for piece in pieces], n_received)
        return Ids(received if owned.kind == "string" else received.to_numpy(), owned.side)


def _dtype_of(ids: Ids) -> Any:
    return "string" if ids.kind == "string" else ids.ids.dtype


def _values(ids: Ids, piece: slice, kind: pa.DataType) -> pa.Array:
    return pa.array(ids)[piece].cast(kind)


def _distinct(values: pa.Array) -> Any:
    """Sorted, as :class:`Ids` takes them."""
    distinct = pc.unique(values)
    distinct = distinct.take(pc.sort_indices(distinct))
    return distinct.to_numpy() if pa.types.is_integer(values.type) else distinct


def _exchanged(group: Group, pieces: list[pa.Array], counts: list[int]) -> pa.Array:
    """Send a piece of ids to every rank; what came from all of them, in order. counts (size,): how many come."""
    kind = pieces[0].type
    if pa.types.is_integer(kind):
        numbers = [piece.to_numpy() for piece in pieces]
        out = np.empty(sum(counts), numbers[0].dtype)
        group.exchange_rows(numbers, counts, out)
        return pa.array(out)
    lengths = [np.asarray(pc.binary_length(piece), np.int64) for piece in pieces]
    out_lengths = np.empty(sum(counts), np.int64)
    group.exchange_rows(lengths, counts, out_lengths)
    texts = [_utf8(piece) for piece in pieces]
    n_bytes = [int(part.sum()) for part in np.split(out_lengths, np.cumsum(counts)[:-1])]
    out_texts = np.empty(sum(n_bytes), np.uint8)
    group.exchange_rows(texts, n_bytes, out_texts)
    offsets = np.concatenate([[0], np.cumsum(out_lengths)]).astype(np.int64)
    return pa.Array.from_buffers(
        pa.large_string(), len(out_lengths), [None, pa.py_buffer(offsets), pa.py_buffer(out_texts)]
    )


def _utf8(texts: pa.Array) -> NDArray[np.uint8]:
    arrays = Ids(texts, "").to_arrays("ids") if len(texts) else {"ids.utf8": np.empty(0, np.uint8)}
    return arrays["ids.utf8"]


def _delivered(
    group: Group,
    cuts: Cuts,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.floating],
    n_columns: int,
    add_repeats: bool,
    times: NDArray[Any] | None = None,
) -> tuple[csr_matrix, NDArray[Any] | None]:
    """The rank's rows of a side, of the entries of all ranks; and their times."""
    arrays: list[NDArray[Any]] = [rows.astype(np.int32), columns.astype(np.int32), values]
    arrays += [] if times is None else [times.view(np.int64)]
    if group.size > 1:
        owners = cuts.owners(rows)
        order = np.argsort(owners, kind="stable")
        n_sent = np.bincount(owners, minlength=group.size)
        ends = np.cumsum(n_sent)
        n_received = to_receive(group, n_sent)
        for number, array in enumerate(arrays):
            arrays[number] = np.empty(sum(n_received), array.dtype)
            group.exchange_rows(np.split(array[order], ends[:-1]), n_received, arrays[number])
    own = cuts.of(group.rank)
    own_rows, own_columns, own_values = arrays[:3]
    shape = (own.stop - own.start, n_columns)
    if not add_repeats:
        return _with_repeats(own_rows - own.start, own_columns, own_values, shape), None
    if times is not None:
        times = latest_times(own_rows, own_columns, arrays[3].view(times.dtype)) if len(own_rows) else times[:0]
    # Stable: values of a pair are added in the order in which the ranks have them.
    matrix = coo_matrix((own_values, (own_rows - own.start, own_columns)), shape=shape).tocsr()
    matrix.sum_duplicates()
    return matrix, times


def _with_repeats(
    rows: NDArray[np.int32], columns: NDArray[np.int32], values: NDArray[np.floating], shape: tuple[int, int]
) -> csr_matrix:
    """CSR in which a repeated pair has several entries, with columns sorted, and values within a pair."""
    order, _ = _counted(columns, shape[1])
    by_row, indptr = _counted(rows[order], shape[0])
    order = order[by_row]
    rows, columns, values = rows[order], columns[order], values[order]
    repeats = np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))
    if len(repeats):
        touched = np.unique(np.concatenate([repeats, repeats + 1]))
        values[touched] = values[touched][np.lexsort((values[touched], columns[touched], rows[touched]))]
    matrix = csr_matrix(shape, dtype=values.dtype)
    matrix.data, matrix.indices = values, columns
    matrix.indptr = indptr.astype(np.int64 if len(values) >= 2**31 else np.int32)
    matrix.has_canonical_format = True  # as far as objectives and solvers are concerned, which look at single entries
    return matrix


def _counted(keys: NDArray[np.int32], n_keys: int) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
    """A stable order by small integers, in linear time, and where each of them begins."""
    n = len(keys)
    one_each = csr_matrix((np.zeros(n, np.int8), keys, np.arange(n + 1)), (n, n_keys))
    by_key = one_each.tocsc()
    return by_key.indices, by_key.indptr
