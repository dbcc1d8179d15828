"""Interactions that no rank has as a whole: each reads a part of the files, and gets the rows that it is to solve.

1. Each rank reads consecutive rows as one machine reads a file (:mod:`wals_gpu.data.interactions`), with ids of its
   own. What is looked at of all rows (the latest time, above all) is gathered before.
2. Distinct ids go to the rank that owns their range (ranges are cut at sampled ids), which sorts them and counts their
   entries: an id's row is the number of ids before it, as on one machine.
3. Rows are cut into ranges that cost the same (:mod:`.cuts`), and entries go to the rank that has their user, which
   adds up those of a pair in the order of the table; what is left goes to the ranks that have the items.
4. Users and items without enough of each other are left out, and what is left is cut anew.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import warn
from wals_gpu.data.csr import entry_rows, select
from wals_gpu.data.encode import written_as_integers
from wals_gpu.data.files import version_of
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import (
    Bounds,
    ColumnNames,
    Interactions,
    TableRows,
    latest_times,
    no_rows,
    nothing_left,
    repeats_of_table,
)
from wals_gpu.data.matching import open_table, options_of_part
from wals_gpu.data.paths import part_of
from wals_gpu.data.source import Source
from wals_gpu.data.times import Period
from wals_gpu.distributed.cuts import Cuts, cut_rows
from wals_gpu.distributed.group import Group, agree, gather_json, of_each, to_receive, together
from wals_gpu.distributed.shards import Shards, period_of_all
from wals_gpu.errors import DataError, EmptyTableError, ParameterWarning

__all__ = ["merge_entries", "merge_shards", "read_sharded", "read_validation", "some_entries"]

#: Ids of each rank that ranges are cut by.
_SAMPLED = 256

#: Options of reading that number what is read; here, all ranks together do.
_KNOWN_IDS = ("user_ids", "item_ids")

#: Files or folders.
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_sharded(
    path: Paths,
    group: Group,
    factors: int,
    options: SolveOptions,
    *,
    kinds: Sequence[str | None] = (None, None),
    **columns: Any,
) -> Shards:
    """Read files, a part on each rank. Every rank makes the call.

    A part is consecutive row groups of Parquet files, or whole files of other kinds: a single one of these is read by
    rank 0. The result is that of one process, to the bit.

    Parameters
    ----------
    path : str or path, or a list of them
        As for :func:`wals_gpu.read_interactions`; all ranks see them.
    group : Group
    factors : int
    options : SolveOptions
        What the cost of a row follows from.
    kinds : (str or None, str or None), optional
        "string": ids of users, of items, in files of text are texts, even if all are written like integers.
    **columns
        As for :func:`wals_gpu.as_interactions`, but ``user_ids`` and ``item_ids``.

    Returns
    -------
    Shards

    Raises
    ------
    DataError, FileNotFoundError, TypeError, ValueError
        There is no such file, or its data cannot be used; on all ranks.
    DistributedError
        The ranks do not see the same files.
    """
    agree(group, version=version_of("wals_gpu"), factors=factors, solver=repr(options))
    with _said_once(group):
        part = _read_part("interactions", path, group, columns, kinds)
    n_rows = int(of_each(group, len(part.rows)).sum())
    users, items, matrix, times = _by_user(
        *part.ids, part.rows, part.columns, part.values, group, factors, options, True, part.times
    )
    names, what = _names_of_all(group, part.names), part.what
    del part
    n_repeats = n_rows - int(of_each(group, matrix.nnz).sum())
    if n_repeats:
        with together(group, "adding up values of repeated pairs"):
            assert names is not None
            repeats_of_table(names, what, n_repeats, n_rows, matrix.data, quiet=group.rank > 0)
    least = columns.get("min_user_interactions") or 1, columns.get("min_item_interactions") or 1
    if least != (1, 1):
        users, items, matrix, times = _with_enough(group, users, items, matrix, times, least, factors, options)
    return replace(_shards(group, users, items, matrix, times), columns=names)


def read_validation(path: Any, shards: Shards, **columns: Any) -> csr_matrix:
    """Interactions to validate with, in the numbering of shards: each rank reads a part, and gets those of its users.

    Every rank makes the call.

    Parameters
    ----------
    path : path or list of them, or table
        Files as for :func:`read_sharded`; a table in memory is that of rank 0.
    shards : Shards
        With ids.
    **columns
        As for :func:`wals_gpu.as_interactions`; what chooses from a whole, as ``half_life`` does, is left out.

    Returns
    -------
    (own users, I) csr_matrix

    Raises
    ------
    DataError, FileNotFoundError, TypeError, ValueError
        It cannot be read, or has no entry of a user and an item of the shards; on all ranks.

    Warns
    -----
    ParameterWarning
        On rank 0, if rows of other users or items were dropped.
    """
    group, own_ids = shards.group, (shards.user_ids, shards.item_ids)
    kinds = [next((kind for kind in kinds if kind), None) for kinds in zip(
        *gather_json(group, [None if ids is None or not len(ids) else ids.kind for ids in own_ids]), strict=True
    )]  # fmt: skip
    with together(group, "reading validation"):
        if None in kinds:
            raise TypeError("validation must be a matrix or a share: the interactions have no ids")
    # Of ratings that count as likes was warned where the interactions were read.
    fixed = {"warn_ratings": False, "dtype": shards.dtype}
    columns = {"like": shards.columns} | options_of_part(columns) | fixed
    with _said_once(group):
        part = _read_part("validation", path, group, columns, kinds)
    places = [np.empty(0, np.int64)] * 2
    for side, (of_part, known, kind) in enumerate(zip(part.ids, own_ids, kinds, strict=True)):
        assert kind is not None
        codes = (part.rows, part.columns)[side]
        places[side] = _found(group, of_part, known, kind, part.of_text)[codes]
    is_known = (places[0] >= 0) & (places[1] >= 0)
    n_rows, n_known = (int(n) for n in of_each(group, (len(is_known), np.count_nonzero(is_known))).sum(axis=0))
    if not n_known:
        raise DataError(f"none of the {n_rows} rows of validation is of a user and an item of the interactions")
    if n_known < n_rows and group.rank == 0:
        warn(
            f"{n_rows - n_known} of {n_rows} rows of validation name a user or an item that is not known; they were "
            "dropped"
        )
    rows, cols = (of_side[is_known] for of_side in places)
    values = part.values[is_known]
    return _delivered(group, shards.user_cuts, rows, cols, values, shards.shape[1], True)[0]


class _Part(NamedTuple):
    """What a rank has read."""

    ids: tuple[Ids | None, Ids | None]
    rows: NDArray[np.integer]
    columns: NDArray[np.integer]
    values: NDArray[np.floating]
    times: NDArray[Any] | None
    names: ColumnNames | None
    what: str
    of_text: bool


def _read_part(name: str, path: Any, group: Group, columns: Mapping[str, Any], kinds: Sequence[str | None]) -> _Part:
    """The rank's part of files, weighed as one process weighs it."""
    sources: list[Source] = []
    seen, rows, who = "", None, f"reading {'the ' if name == 'interactions' else ''}{name}"
    with together(group, who):
        if unfit := [option for option in _KNOWN_IDS if columns.get(option) is not None]:
            raise ValueError(f"{', '.join(unfit)} cannot be used where each rank reads a part of the rows")
        _check_paths(name, path, group.size)
        source = open_table(name, path, columns)
        pieces = [(1, source)] if source.pieces is None else source.pieces()
        sizes = [size for size, _ in pieces]
        seen = f"{len(sizes)} parts, {sum(sizes)} bytes, {hashlib.sha256(repr(sizes).encode()).hexdigest()[:8]}"
        sources.append(replace(source, pieces=lambda: pieces))
    options = {option: repr(value) for option, value in sorted(columns.items()) if value is not None}
    agree(group, **{f"files of {name}": seen, "options of reading": options, "kinds of ids": list(kinds)})
    source, bounds, shown = sources[0], None, list[Any]()
    with together(group, who):
        mine = part_of(source, group.rank, group.size)
        if mine is not None:
            try:
                rows = TableRows.read(mine, columns)
                shown = rows.shown_times()
            except EmptyTableError:  # a file with names of columns alone
                pass
    shown = list(chain.from_iterable(gather_json(group, shown)))
    with together(group, who):
        if rows is not None:
            rows = rows.with_times(shown)
            bounds = rows.bounds
    period = None if bounds is None or bounds.period is None else bounds.period.to_json()
    found = gather_json(group, None if bounds is None else bounds._replace(period=None))
    periods = [None if one is None else Period.from_json(one) for one in gather_json(group, period)]
    parts = [
        Bounds(*one)._replace(period=of_one) for one, of_one in zip(found, periods, strict=True) if one is not None
    ]
    if not parts:
        raise no_rows(source.what)
    entries = None
    with together(group, who):
        of_all = Bounds.of_all(parts)
        if rows is not None and (rows.keep is None or rows.keep.any() or not of_all.n_kept):
            entries = rows.entries(of_all)
    del rows
    dtype = np.dtype(columns.get("dtype", "float32"))
    if entries is None:
        nobody = np.empty(0, np.int32)
        part = _Part((None, None), nobody, nobody, np.empty(0, dtype), None, None, source.what, source.text_ids)
    else:
        ids = entries.user_ids, entries.item_ids
        part = _Part(
            ids, entries.rows, entries.columns, entries.values, entries.times, entries.names, source.what,
            source.text_ids,
        )  # fmt: skip
    return _of_one_text_kind(group, part, kinds) if source.text_ids else part


@contextmanager
def _said_once(group: Group) -> Iterator[None]:
    """What ranks warn of within, rank 0 warns of, once: it speaks for all."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = gather_json(group, [str(one.message) for one in caught if issubclass(one.category, ParameterWarning)])
    for one in caught:
        if not issubclass(one.category, ParameterWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    for text in dict.fromkeys(chain.from_iterable(said)) if group.rank == 0 else ():
        warn(text)


def _check_paths(name: str, path: Any, n_ranks: int) -> None:
    """Refuse what can be read once."""
    for one in path if isinstance(path, (list, tuple)) else [path]:
        is_path = isinstance(one, (str, os.PathLike))
        is_pipe = is_path and os.path.exists(one) and stat.S_ISFIFO(os.stat(one).st_mode)
        if n_ranks > 1 and is_path and (os.fspath(one) == "-" or is_pipe):
            raise ValueError(f"{name} must be in files where several ranks read them, got {os.fspath(one)!r}")


def _of_one_text_kind(group: Group, part: _Part, kinds: Sequence[str | None]) -> _Part:
    """Of files of text, texts on all ranks where one has ids that are no integers, or `kinds` says so."""
    own = [None if ids is None else str(_dtype_of(ids)) for ids in part.ids]
    found = gather_json(group, own)
    ids, codes = list(part.ids), [part.rows, part.columns]
    for side, (kind, mine) in enumerate(zip(kinds, part.ids, strict=True)):
        others = {one[side] for one in found if one[side] is not None}
        is_text = kind == "string" or (kind is None and "string" in others)
        if mine is not None and mine.kind != "string" and is_text:
            ids[side], place = Ids.encode(pa.array(mine.ids.astype(str)), mine.side)
            codes[side] = place[codes[side]]
    return part._replace(ids=(ids[0], ids[1]), rows=codes[0], columns=codes[1])


def _found(group: Group, asked: Ids | None, known: Ids | None, kind: str, of_text: bool) -> NDArray[np.int64]:
    """Row numbers among all ranks of the ids of a part, -1 where there is none.

    `known` are those of the rank's own rows, of a `kind`.
    """
    is_unsigned = any(gather_json(group, known is not None and kind == "integer" and known.ids.dtype == np.uint64))
    type_of = pa.large_string() if kind == "string" else pa.uint64() if is_unsigned else pa.int64()
    found, is_asked = np.full(0 if asked is None else len(asked), -1, np.int64), np.zeros(0, bool)
    wanted, places = Ids(_distinct(pa.array([], type_of))), np.empty(0, np.int32)
    with together(group, "reading validation"):
        if asked is not None:
            values = pa.array(asked)
            is_asked = np.ones(len(asked), bool)
            if kind == "integer" and asked.kind == "string" and of_text:  # one that is none made texts of all
                is_asked = written_as_integers(values)
                values = values.filter(pa.array(is_asked)).cast(pa.int64())
            elif asked.kind != kind:
                raise DataError(
                    f"the {asked.side} ids of validation are {asked.kind}s, such as {asked[0]!r}, but those of the "
                    f"interactions are {kind}s; convert one of them"
                )
            if kind == "integer":
                numbers = values.to_numpy()
                fits = (numbers >= 0) if is_unsigned else (numbers <= np.iinfo(np.int64).max)
                is_asked[is_asked] = fits
                values = values.filter(pa.array(fits))
            wanted, places = Ids.encode(values.cast(type_of), asked.side)
    # Ranks have ranges of ids, in order; one without any ends where the next one begins.
    begins: list[int] = []
    for first in reversed(gather_json(group, known[0] if known is not None and len(known) else None)):
        begins.insert(0, (begins or [len(wanted)])[0] if first is None else bisect_left(wanted, first))
    pieces = _pieces([0, *begins[1:], len(wanted)])
    n_sent = [piece.stop - piece.start for piece in pieces]
    n_received = to_receive(group, n_sent)
    received = _exchanged(group, [_values(wanted, piece, type_of) for piece in pieces], n_received)
    place = np.full(len(received), -1, np.int64)
    if known is not None and len(received):
        place = np.asarray(known.find(received.to_numpy(zero_copy_only=False)))
    n_own = 0 if known is None else len(known)
    place[place >= 0] += int(of_each(group, n_own)[: group.rank].sum())
    found[is_asked] = _answered(group, place, n_received, n_sent)[places]
    return found


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
    return replace(shards, columns=_names_of_all(group, None if local is None else local.columns))


def _names_of_all(group: Group, names: ColumnNames | None) -> ColumnNames | None:
    """The columns of the table that a rank knows."""
    is_text = names is not None and all(name is None or isinstance(name, str) for name in names)
    given = gather_json(group, list(names) if names is not None and is_text else None)
    return next((ColumnNames(*found) for found in given if found is not None), None)


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
    users, items, matrix, times = _by_user(
        user_ids, item_ids, rows, columns, values, group, factors, options, add_repeats, times
    )
    return _shards(group, users, items, matrix, times, has_repeats=not add_repeats)


def _by_user(
    user_ids: Ids | None,
    item_ids: Ids | None,
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    values: NDArray[np.floating],
    group: Group,
    factors: int,
    options: SolveOptions,
    add_repeats: bool,
    times: NDArray[Any] | None,
) -> tuple[_Side, _Side, csr_matrix, NDArray[Any] | None]:
    """The sides of entries as :func:`merge_entries` takes them, and the rank's rows of users with their times."""
    given = [user_ids, item_ids]
    kinds = gather_json(group, [None if ids is None else str(_dtype_of(ids)) for ids in given])
    placed = []
    for side, name in enumerate(("user", "item")):
        found = {kind[side] for kind in kinds if kind[side] is not None}
        if found == {"int64", "uint64"}:  # ids of a rank are uint64 only where they have to be
            ids, found = given[side], {"uint64"}
            negative = ids is not None and len(ids) > 0 and ids[0] < 0
            if any(gather_json(group, bool(negative))):
                raise DataError(f"{name} ids must not be below 0 where others are above 2**63 - 1")
        if len(found) != 1:
            what = "there are no interactions" if not found else f"{name} ids are {' and '.join(sorted(found))}"
            raise DataError(f"the ranks read different files, and {what}")
        ids = given[side]
        if ids is None:
            ids = Ids(pa.array([], pa.large_string()) if found == {"string"} else np.empty(0, np.int64), name)
        counts = np.bincount((rows, columns)[side], minlength=len(ids))
        placed.append(_Placed(group, ids, found.pop(), counts, factors, options))
    users, items = placed
    of_user, of_item = users.rows[rows], items.rows[columns]
    times = _of_one_kind(group, times)
    matrix, times = _delivered(group, users.cuts, of_user, of_item, values, len(items), add_repeats, times)
    return _Side(users.cuts, users.own), _Side(items.cuts, items.own), matrix, times


def _shards(
    group: Group,
    users: _Side,
    items: _Side,
    matrix: csr_matrix,
    times: NDArray[Any] | None,
    has_repeats: bool = False,
) -> Shards:
    """Of the rank's rows of users."""
    by_item = _by_item(group, matrix, users.cuts, items.cuts, not has_repeats)
    period = period_of_all(group, times)
    return Shards(
        group, matrix, by_item, users.cuts, items.cuts, users.ids, items.ids, has_repeats=has_repeats, times=times,
        period=period,
    )  # fmt: skip


class _Side(NamedTuple):
    """Which rank has which rows of a side, and the ids of the rank's own."""

    cuts: Cuts
    ids: Ids


def _with_enough(
    group: Group,
    users: _Side,
    items: _Side,
    matrix: csr_matrix,
    times: NDArray[Any] | None,
    least: tuple[int, int],
    factors: int,
    options: SolveOptions,
) -> tuple[_Side, _Side, csr_matrix, NDArray[Any] | None]:
    """What :func:`wals_gpu.data.interactions._with_enough` leaves of the whole, cut anew."""
    n_items = items.cuts.n_rows
    row, col, keep = entry_rows(matrix), matrix.indices, np.ones(matrix.nnz, bool)
    while True:
        of_users = np.bincount(row[keep], minlength=matrix.shape[0])
        of_items = _totals(group, items.cuts, np.bincount(col[keep], minlength=n_items))
        left = keep & (of_users >= least[0])[row] & (of_items >= least[1])[col]
        if not of_each(group, not np.array_equal(left, keep)).any():
            break
        keep = left
    all_users = group.gather_rows(of_users.astype(np.int64), users.cuts.counts)
    if not of_items.any():
        raise nothing_left(*least)
    sides, numbers = [], []
    for side, lengths in ((users, all_users), (items, of_items)):
        is_left = lengths > 0
        number = np.cumsum(is_left) - 1
        own = side.cuts.of(group.rank)
        cuts = cut_rows(lengths[is_left], group.size, factors, options)
        ids = side.ids.subset(np.flatnonzero(is_left[own]))
        sides.append(_Side(cuts, _handed_over(group, cuts, ids, int(np.count_nonzero(is_left[: own.start])))))
        numbers.append(number)
    first = users.cuts.of(group.rank).start
    matrix, times = _delivered(
        group, sides[0].cuts, numbers[0][first + row[keep]], numbers[1][col[keep]], matrix.data[keep],
        sides[1].cuts.n_rows, True, None if times is None else times[keep],
    )  # fmt: skip
    return sides[0], sides[1], matrix, times


def _totals(group: Group, cuts: Cuts, counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """The sums over ranks of counts (R,) of all rows of a side, on every rank: each adds up those of its own rows."""
    n_own = cuts.counts[group.rank]
    received = np.empty(n_own * group.size, np.int64)
    group.exchange_rows(np.split(counts.astype(np.int64), cuts.bounds[1:-1]), [n_own] * group.size, received)
    return group.gather_rows(received.reshape(group.size, n_own).sum(axis=0), cuts.counts)


def _by_item(group: Group, matrix: csr_matrix, users: Cuts, items: Cuts, add_repeats: bool) -> csr_matrix:
    """The rank's rows of items (own items, U), of the rows of users that all ranks have."""
    if group.size == 1:
        by_item = CpuBackend(1).transpose(matrix)
        by_item.has_canonical_format = True  # as `matrix` says, whatever it repeats
        return by_item
    entries = matrix.tocoo()
    rows = entries.row + np.int64(users.of(group.rank).start)
    by_item, _ = _delivered(group, items, entries.col, rows, entries.data, users.n_rows, add_repeats)
    return by_item


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
    items = _by_item(group, matrix, shards.user_cuts, shards.item_cuts, not shards.has_repeats)
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
        type_of = pa.large_string() if kind == "string" else pa.from_numpy_dtype(np.dtype(kind))
        samples = ids[np.linspace(0, len(ids) - 1, min(len(ids), _SAMPLED)).astype(int)].tolist() if len(ids) else []
        gathered = sorted(chain.from_iterable(gather_json(group, samples)))
        splitters = [gathered[len(gathered) * rank // group.size] for rank in range(1, group.size)]
        pieces = _pieces([0, *(bisect_left(ids, splitter) for splitter in splitters), len(ids)])
        n_sent = [piece.stop - piece.start for piece in pieces]
        n_received = to_receive(group, n_sent)
        received = _exchanged(group, [_values(ids, piece, type_of) for piece in pieces], n_received)
        owned = Ids(_distinct(received), ids.side)
        place = np.asarray(owned.find(received.to_numpy(zero_copy_only=False)) if len(received) else np.empty(0, int))
        n_owned = of_each(group, len(owned))
        first = int(n_owned[: group.rank].sum())
        self.rows = _answered(group, place + first, n_received, n_sent)
        totals = np.zeros(len(owned), np.int64)
        their_counts = np.empty(len(received), np.int64)
        group.exchange_rows(
            [np.ascontiguousarray(counts[piece], np.int64) for piece in pieces], n_received, their_counts
        )
        np.add.at(totals, place, their_counts)
        lengths = group.gather_rows(totals, n_owned.tolist())
        self.cuts = cut_rows(lengths, group.size, factors, options)
        self.own = _handed_over(group, self.cuts, owned, first)

    def __len__(self) -> int:
        return self.cuts.n_rows


def _handed_over(group: Group, cuts: Cuts, ids: Ids, first: int) -> Ids:
    """The ids of the rank's rows, from the ranks that have them in order: this one from row `first` on."""
    kind = pa.array(ids).type
    pieces = _pieces(np.clip(cuts.bounds - first, 0, len(ids)).tolist())
    n_sent = [piece.stop - piece.start for piece in pieces]
    n_received = to_receive(group, n_sent)
    received = _exchanged(group, [_values(ids, piece, kind) for piece in pieces], n_received)
    return Ids(received if ids.kind == "string" else received.to_numpy(), ids.side)


def _pieces(ends: Sequence[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _answered(group: Group, answers: NDArray[np.integer], n_asked: list[int], n_sent: list[int]) -> NDArray[np.int64]:
    """Numbers for what other ranks asked, n_asked (size,), go back to them; those for what this one asked."""
    received = np.empty(sum(n_sent), np.int64)
    parts = np.split(answers.astype(np.int64), np.cumsum(n_asked)[:-1])
    group.exchange_rows([np.ascontiguousarray(part) for part in parts], n_sent, received)
    return received


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
    entries = coo_matrix((own_values, (own_rows - own.start, own_columns)), shape=shape)
    entries.has_canonical_format = True  # what is repeated stays so far, in the order in which the ranks had it
    matrix = entries.tocsr()
    # SciPy sorts all rows or none. Where it does not sort those of one rank, values of a pair, which it takes out of
    # their order as it sorts, would be added up in another order than in one process.
    matrix.has_sorted_indices = bool(of_each(group, bool(matrix.has_sorted_indices)).all())
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
