"""Interactions beside others: read with what is known of those, and brought to their numbering by id."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix, issparse

from wals_gpu.checks import did_you_mean, warn
from wals_gpu.data.columns import open_source
from wals_gpu.data.csr import canonical, entry_rows
from wals_gpu.data.encode import integers_among
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, Interactions, as_interactions
from wals_gpu.data.source import Source, TextOptions
from wals_gpu.errors import DataError

__all__ = [
    "OPTIONS",
    "Match",
    "check_columns",
    "in_kinds_of",
    "is_paths",
    "is_table",
    "match",
    "open_interactions",
    "open_table",
    "options_of_part",
    "places_of",
    "read_like",
]

# What chooses from a whole, or weighs or numbers it, has no meaning for a part that is held out of it.
_OF_A_WHOLE = (
    "time_column", "min_user_interactions", "min_item_interactions", "half_life", "user_ids", "item_ids", "unknown",
)  # fmt: skip

#: Of :func:`.as_interactions`, but what it reads, and as what.
OPTIONS = frozenset(inspect.signature(as_interactions).parameters) - {"data", "dtype"}
#: What others call an argument that a function here may have.
_MEANT = dict.fromkeys(("test-size", "test-fraction", "test-ratio", "test", "frac", "ratio"), "fraction")
_MEANT |= dict.fromkeys(("seed", "rng", "generator"), "random_state") | dict.fromkeys(("k", "n", "top-k"), "ks")


class Match(NamedTuple):
    """Interactions in the numbering of others."""

    data: Interactions
    dropped: int = 0  # entries of users and items that the others do not have
    unknown: str = ""  # these users and items in words: "3 users, such as user 'ann'"


def is_table(data: Any) -> bool:
    """Whether it is a table or the path of one: no matrix and no Interactions."""
    if isinstance(data, np.ndarray):
        return data.dtype.names is not None
    is_matrix = isinstance(data, Interactions) or hasattr(data, "tocsr")
    return not (is_matrix or issparse(getattr(data, "matrix", None)))


def is_paths(data: Any) -> bool:
    """Whether it is the path of a file, or a list of such."""
    several = data if isinstance(data, (list, tuple)) else [data]
    return bool(several) and all(isinstance(one, (str, os.PathLike)) for one in several)


def check_columns(
    columns: Mapping[str, Any], of: Callable[..., Any] | None = None, known: frozenset[str] = OPTIONS
) -> None:
    """TypeError where one is no option of tables. `of` was called: one of its arguments may be meant."""
    if strange := [key for key in columns if key not in known]:
        of_call = set(inspect.signature(of).parameters) - {"columns"} if of else set()
        meant = {key: value for key, value in _MEANT.items() if value in of_call}
        raise TypeError(
            f"unexpected argument {strange[0]!r}; a table is described by user_column, item_column, value_column, "
            "time_column and the other options of as_interactions" + did_you_mean(strange[0], of_call | known, **meant)
        )


def open_interactions(
    name: str,
    data: Any,
    columns: Mapping[str, Any] | None = None,
    dtype: DTypeLike = "float32",
    of: Callable[..., Any] | None = None,
) -> Interactions:
    """What an argument holds, with a canonical matrix.

    Parameters
    ----------
    name : str
        The argument, for error messages.
    data : (U, I) sparse matrix or array, Interactions, DataFrame, Arrow table or path
    columns : mapping, optional
        Options of :func:`.as_interactions` for tables, such as ``user_column``; None is as if not given.
    dtype : {"float32", "float64"}
        Of the values of a table; a matrix of floats keeps its own.
    of : callable, optional
        The function that was called, whose arguments may have been meant by names that are not known.

    Returns
    -------
    Interactions
        Without ids for a matrix. A sparse matrix that is canonical already is shared; it may be without entries.

    Raises
    ------
    DataError, TypeError, ValueError
        If something cannot be used; the message names the argument.
    """
    check_columns(columns or {}, of, OPTIONS - {"user_ids", "item_ids", "unknown"})
    columns = {key: value for key, value in (columns or {}).items() if value is not None}
    if isinstance(data, np.ndarray) or is_table(data):
        is_double = getattr(data, "dtype", None) == np.float64
        try:
            return as_interactions(data, dtype="float64" if is_double else dtype, **columns)
        except (DataError, TypeError) as error:
            raise type(error)(f"{name}: {error}") from error
    if columns:
        raise ValueError(f"{', '.join(columns)} can be given with a table only; {name} is a matrix or Interactions")
    matrix = canonical(name, getattr(data, "matrix", data))
    own = data if isinstance(data, Interactions) else Interactions(matrix)
    for ids, n, side in ((own.user_ids, matrix.shape[0], "row"), (own.item_ids, matrix.shape[1], "column")):
        if ids is not None and len(ids) != n:
            raise DataError(f"{name} must have {len(ids)} {side}s, one per {ids.side} id; got shape {matrix.shape}")
    if own.times is not None:
        same_order = own.matrix.format == "csr" and own.matrix.has_canonical_format
        if not same_order or np.shape(own.times) != (matrix.nnz,):
            raise DataError(
                f"{name}.times must have one time for each entry of {name}.matrix, a CSR matrix with sorted columns "
                f"and no pair twice; got shape {np.shape(own.times)} for {matrix.nnz} entries"
            )
    return Interactions(matrix, own.user_ids, own.item_ids, own.times, own.columns, own.repeats, own.text_ids)


def read_like(
    name: str,
    data: Any,
    user_ids: Ids | None,
    item_ids: Ids | None,
    whose: str,
    columns: Mapping[str, Any] | None = None,
    *,
    like: ColumnNames | None = None,
    drop: bool | None = None,
    is_part: bool = True,
    dtype: DTypeLike = "float32",
) -> Match:
    """What an argument holds, in the numbering of interactions or of a model that are known.

    Parameters
    ----------
    name, data, columns, dtype
        As of :func:`open_interactions`.
    user_ids, item_ids : Ids or None
        The known ids; None: rows (columns) are taken by their number.
    whose : str
        Who knows them, for messages: "the model".
    like : ColumnNames, optional
        The columns of the known interactions' table: where `data` is a table with such columns, and `columns` does
        not say otherwise, they are taken.
    drop : bool, optional
        What to do with entries of unknown ids: leave them out, with a warning, or raise. Default: leave those of a
        table out, as it may be newer than the model; raise for Interactions.
    is_part : bool, default True
        Whether it was held out of something: options that choose users and items by their numbers of entries, or weigh
        by time, are for the rest then.

    Returns
    -------
    Match

    Raises
    ------
    DataError, TypeError, ValueError
        As :func:`open_interactions` and :func:`match`.
    """
    columns = {key: value for key, value in (columns or {}).items() if value is not None}
    if is_part:
        columns = options_of_part(columns)
        advice = "leave these out, or give a table: its rows of unknown ids are left out and counted"
    else:
        advice = "it is to be what was learned from, read with the same options, such as min_value"
    if not (is_table(data) or "triplets" in columns):
        own = open_interactions(name, data, None, dtype)
        return match(name, own, user_ids, item_ids, whose, drop=bool(drop), as_text=own.text_ids, advice=advice)
    as_text = False
    if is_table(data):
        data = open_table(name, data, columns)
        as_text = data.text_ids
    # Of ratings that count as likes was warned where the known ones were read.
    own = open_interactions(name, data, {"warn_ratings": False, "like": like} | columns, dtype)
    drop = drop is None or drop
    return match(name, own, user_ids, item_ids, whose, drop=drop, as_text=as_text, advice=advice)


def options_of_part(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Options of reading without those that choose from a whole, for a part that is held out of it."""
    return {key: value for key, value in columns.items() if value is not None and key not in _OF_A_WHOLE}


def open_table(name: str, data: Any, columns: Mapping[str, Any]) -> Source:
    """The source of a table that an argument holds; errors as :func:`.open_source`, which name the argument."""
    names = columns.get("columns")
    options = TextOptions(None if names is None else tuple(names), columns.get("encoding"), columns.get("decimal"))
    try:
        return open_source(data, options)
    except (DataError, TypeError) as error:  # which speaks of interactions
        raise type(error)(str(error) if name == "interactions" else f"{name}: {error}") from error


def match(
    name: str,
    data: Interactions,
    user_ids: Ids | None,
    item_ids: Ids | None,
    whose: str,
    *,
    drop: bool = False,
    as_text: bool = False,
    advice: str = "leave these out",
) -> Match:
    """Interactions in the numbering of known ids.

    Parameters
    ----------
    name : str
        The argument, for messages.
    data : Interactions
        With a canonical matrix, which may have no ids on either side: it is taken by row (column) number there.
    user_ids, item_ids, whose, drop
        As of :func:`read_like`.
    as_text : bool
        The ids come from a text file, whose numbers may be texts to others.
    advice : str
        What to do about unknown ids, for the error.

    Returns
    -------
    Match
        `data` itself where the ids are the known ones. Else a matrix (len(user_ids), len(item_ids)), and times.

    Raises
    ------
    DataError
        If ids are of another kind than the known ones; if entries are of unknown ids (with `drop`: all are); or if
        there are no ids to compare, and the shape does not fit.
    """
    matrix, n_entries = data.matrix, data.matrix.nnz
    places, unknown, same = [], [], True
    sides = ((data.user_ids, user_ids, entry_rows(matrix)), (data.item_ids, item_ids, matrix.indices))
    for axis, (own, known, index) in enumerate(sides):
        if known is None or own is None or own == known:
            if known is not None and matrix.shape[axis] != len(known):
                raise DataError(
                    f"{name} must have {len(known)} {('rows', 'columns')[axis]}, one for each {known.side} of {whose}; "
                    f"got shape {matrix.shape}"
                )
            places.append(index)
            continue
        same = False
        there = places_of(name, own, known, whose, as_text)[index]
        places.append(there)
        if (missing := there < 0).any():
            others = np.unique(index[missing])
            plural = f"{len(others)} {own.side}{'s' * (len(others) > 1)}"
            unknown.append((plural, f"{own.side} {own[int(others[0])]!r}", missing))
    if same:
        return Match(data)
    rows, cols = places
    times = data.times
    values = matrix.data
    dropped, strange = 0, ""
    if unknown:
        missing = np.logical_or.reduce([each[2] for each in unknown])
        dropped = int(missing.sum())
        who, example = " and ".join(each[0] for each in unknown), unknown[-1][1]
        strange = f"{who}, such as {example}"
        if dropped == n_entries:
            raise DataError(
                f"none of the {n_entries} entries of {name} is of a user and an item that {whose} knows: "
                f"it does not know {strange}"
            )
        if not drop:
            raise DataError(
                f"{name} names {who} that {whose} does not know, such as {example}, in {dropped} of its {n_entries} "
                f"entries; {advice}"
            )
        rows, cols, values = rows[~missing], cols[~missing], values[~missing]
        times = None if times is None else times[~missing]
        warn(
            f"{dropped} of {n_entries} entries of {name} name a user or an item that is not known to {whose} "
            f"({strange}); they were dropped"
        )
    shape = tuple(n if ids is None else len(ids) for ids, n in zip((user_ids, item_ids), matrix.shape, strict=True))
    n_rows, n_columns = shape
    keys = rows.astype(np.int64) * n_columns + cols
    if np.any(keys[1:] <= keys[:-1]):  # the known ids are texts of numbers, which have another order
        order = np.argsort(keys, kind="stable")
        rows, cols, values = rows[order], cols[order], values[order]
        times = None if times is None else times[order]
    row_ptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    moved = csr_matrix((values, cols.astype(matrix.indices.dtype), row_ptr), shape=shape)
    users = data.user_ids if user_ids is None else user_ids
    items = data.item_ids if item_ids is None else item_ids
    return Match(Interactions(moved, users, items, times, data.columns), dropped, strange)


def in_kinds_of(data: Interactions, user_ids: Ids | None, item_ids: Ids | None) -> Interactions:
    """Interactions of a file of text with texts as ids where the known ones are texts, though all here are numbers."""
    if not data.text_ids:
        return data
    users, items = _as_texts(data.user_ids, user_ids), _as_texts(data.item_ids, item_ids)
    if users is data.user_ids and items is data.item_ids:
        return data
    moved = match("interactions", data, users, items, "the file", as_text=True).data
    return replace(moved, repeats=data.repeats, text_ids=True)


def _as_texts(own: Ids | None, known: Ids | None) -> Ids | None:
    """Ids as texts where the known ones are texts; else the same object."""
    if own is None or known is None or own.kind == known.kind or known.kind == "integer":
        return own
    return Ids.encode(pa.array(own.ids.astype(str)), own.side)[0]


def places_of(name: str, own: Ids, known: Ids, whose: str, as_text: bool = False) -> NDArray[np.int64]:
    """Positions of `own` ids among the known ones, -1 where they are unknown; arguments as of :func:`match`.

    Raises
    ------
    DataError
        They are of another kind than the known ones: not one could be found.
    """
    values = own.ids
    if own.kind != known.kind:
        if as_text and known.kind == "integer" and ((found := integers_among(pa.array(own), known)) >= 0).any():
            return found  # one id that is no number made texts of all of them
        if not (as_text and known.kind == "string"):
            raise DataError(
                f"the {own.side} ids of {name} are {own.kind}s, such as {own[0]!r}, but those of {whose} are "
                f"{known.kind}s, such as {known[0]!r}; convert one of them"
                if len(own) and len(known)
                else f"the {own.side} ids of {name} are {own.kind}s, but those of {whose} are {known.kind}s"
            )
        values = values.astype(str)
    positions: NDArray[np.int64] = known.find(values)
    return positions
