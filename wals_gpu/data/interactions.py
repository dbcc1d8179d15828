"""Interactions as users have them, turned into one checked sparse matrix with id maps.

This is the only place where input data is checked. What leaves it is canonical: rows sorted by column, no pair twice,
every number finite.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from wals_gpu.checks import warn
from wals_gpu.data.columns import Column, Source, open_source
from wals_gpu.data.csr import MAX_SIDE, as_csr, cast_values, value_dtype, warn_repeats
from wals_gpu.data.ids import Ids, is_string
from wals_gpu.errors import DataError

__all__ = [
    "ITEM_COLUMNS",
    "ColumnNames",
    "Interactions",
    "as_interactions",
    "in_order_of_appearance",
    "read_interactions",
]

# Columns taken when none is named, compared without case, "_", "-" and spaces.
USER_COLUMNS = ("user_id", "user", "customer_id", "customer")
ITEM_COLUMNS = ("item_id", "item", "product_id", "product", "movie_id", "movie", "book_id", "book", "track_id", "track")
VALUE_COLUMNS = ("value", "rating", "count", "weight", "plays", "quantity")


class ColumnNames(NamedTuple):
    """What the columns of a table are called that interactions came from; None where there was none."""

    user: Hashable
    item: Hashable
    value: Hashable | None = None
    time: Hashable | None = None


@dataclass(frozen=True)
class Interactions:
    """Who interacted with what, and how much.

    Attributes
    ----------
    matrix : csr_matrix, (U, I), float32 or float64
        Canonical: columns sorted within a row, no pair twice, all values finite. Index arrays have SciPy's usual
        type: int32, or int64 from 2**31 entries on. A stored zero is kept: it is not the same as an absent entry.
    user_ids, item_ids : Ids or None
        The ids of the rows and of the columns; ``None`` where the data came as a matrix, whose rows are 0..U-1.
    times : (Z,) float64 or datetime64 array, or None
        When each entry of ``matrix`` happened, in the order of ``matrix.data``; of a repeated pair the latest time.
    columns : ColumnNames or None
        The columns of the table that the data came from; ``None`` for a matrix.
    """

    matrix: sparse.csr_matrix
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    times: NDArray[Any] | None = None
    columns: ColumnNames | None = None


def as_interactions(
    data: Any,
    *,
    user_column: Hashable | None = None,
    item_column: Hashable | None = None,
    value_column: Hashable | Literal[False] | None = None,
    user_ids: Ids | None = None,
    item_ids: Ids | None = None,
    unknown: Literal["error", "drop"] = "error",
    dtype: DTypeLike = "float32",
) -> Interactions:
    """Check user data and turn it into a canonical sparse matrix with id maps.

    Parameters
    ----------
    data : sparse matrix or array, ndarray, DataFrame, Arrow table, Interactions, or path
        A matrix is (U, I): any SciPy sparse format, or a dense 2-D array whose zeros are absent entries. A table has
        one row per interaction: pandas or polars DataFrame (polars LazyFrame too), Arrow table, any object with the
        Arrow stream interface, or the path of a file as in :func:`read_interactions`.
    user_column, item_column : str, optional
        Columns with the ids: integers or strings, no nulls. By default the one column that is named like
        ``user_id``, ``userId``, ``user`` or ``customer_id``; like ``item_id``, ``movieId``, ``product_id``,
        ``book_id`` or ``track_id``. In a pandas DataFrame a named index level counts as a column.
    value_column : str or False, optional
        Column with finite numbers. By default the one that is named ``value``, ``rating``, ``count``, ``weight``,
        ``plays`` or ``quantity``. If there is none, or with ``False``, every row counts 1.
    user_ids, item_ids : Ids, optional
        Ids that are known already, such as those of a fitted model: rows (columns) get their positions, and the
        matrix their number. By default the distinct ids of the data in increasing order, so that the order of the
        rows of the table does not matter.
    unknown : {"error", "drop"}
        What to do with rows of a table whose id is not among ``user_ids`` or ``item_ids``.
    dtype : {"float32", "float64"}
        Type of the values; integers and bools are converted.

    Returns
    -------
    Interactions
        The values of repeated pairs are summed. Where nothing has to be converted or sorted, the matrix shares the
        memory of ``data``; ``data`` itself is never changed.

    Raises
    ------
    DataError
        If the data cannot be used: no interactions, NaN or infinite values, null ids, ids of another type, indices
        out of range, a column that is missing or ambiguous, a file that cannot be read.
    KeyError
        If an id is not among ``user_ids`` or ``item_ids``, with ``unknown="error"``.
    TypeError
        If ``data`` is of no kind listed above.
    FileNotFoundError
        If ``data`` is a path and there is nothing.

    Warns
    -----
    ParameterWarning
        If pairs were repeated, or rows dropped; says how many.
    """
    if unknown not in ("error", "drop"):
        raise ValueError(f"unknown must be 'error' or 'drop', got {unknown!r}")
    if isinstance(data, (Interactions, np.ndarray)) or sparse.issparse(data):
        if not (user_column is None and item_column is None and value_column is None):
            raise ValueError("user_column, item_column and value_column are for tables; interactions is a matrix")
        return _from_matrix(data, user_ids, item_ids, dtype)
    source = data if isinstance(data, Source) else open_source(data)
    return _from_table(source, (user_column, item_column, value_column), (user_ids, item_ids), unknown, dtype)


def read_interactions(path: str | os.PathLike[str], **options: Any) -> Interactions:
    """Read a Parquet or text file of interactions.

    Parameters
    ----------
    path : str or path
        A Parquet file or a folder of them, recognised by content; or UTF-8 text with the column names in its first
        line, separated by comma, tab, semicolon or ``|`` (whichever is most frequent in that line). Text may be
        compressed: ``.gz``, ``.bz2``, ``.zst``.
    **options
        As for :func:`as_interactions`.

    Returns
    -------
    Interactions
        Ids of a text file are integers if all of the column are written as plain integers (``42``, but not ``007``
        or ``4.0``), else strings, exactly as written.

    Raises
    ------
    DataError, KeyError, FileNotFoundError
        As :func:`as_interactions`.
    """
    return as_interactions(os.fspath(path), **options)


def in_order_of_appearance(
    data: Any,
    *,
    user_column: Hashable | None = None,
    item_column: Hashable | None = None,
    value_column: Hashable | Literal[False] | None = None,
    **options: Any,
) -> tuple[Interactions, NDArray[np.int64]]:
    """A table as :func:`as_interactions` takes it, and its users in the order in which they first appear in it.

    Parameters
    ----------
    data : table or path
    user_column, item_column, value_column, **options
        As for :func:`as_interactions`.

    Returns
    -------
    interactions : Interactions
    rows : (U,) int64 array
        Their row numbers.
    """
    source = open_source(data)
    kept: list[Column] = []

    def read(ids: Sequence[Any], values: Sequence[Any]) -> list[Column]:
        columns = source.read(ids, values)
        kept.append(columns[0])
        return columns

    columns: dict[str, Any] = {"user_column": user_column, "item_column": item_column, "value_column": value_column}
    interactions = as_interactions(replace(source, read=read), **columns, **options)
    ids = interactions.user_ids
    assert ids is not None
    (column,) = kept
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    first = pc.unique(column)
    if ids.kind == "integer" and is_string(first.type):  # of a file without types
        first = first.cast(pa.from_numpy_dtype(ids.ids.dtype))
    return interactions, np.asarray(ids.index_of(first.to_numpy(zero_copy_only=False)))


def _from_matrix(data: Any, user_ids: Ids | None, item_ids: Ids | None, dtype: DTypeLike) -> Interactions:
    own = data if isinstance(data, Interactions) else Interactions(data)
    matrix = as_csr(own.matrix, dtype=dtype)
    for known, has, n, what in ((user_ids, own.user_ids, 0, "rows"), (item_ids, own.item_ids, 1, "columns")):
        for ids in (known, has):
            if ids is not None and len(ids) != matrix.shape[n]:
                raise DataError(f"interactions must have {len(ids)} {what}, one per id; got shape {matrix.shape}")
        if known is not None and has is not None and known != has:
            raise DataError(f"the {known.side} ids of interactions are not the known ones; build it with these")
    known_users = own.user_ids if user_ids is None else user_ids
    known_items = own.item_ids if item_ids is None else item_ids
    return Interactions(matrix, known_users, known_items, own.times, own.columns)


def _from_table(
    source: Source,
    columns: tuple[Any, Any, Any],
    known: tuple[Ids | None, Ids | None],
    unknown: str,
    dtype: DTypeLike,
) -> Interactions:
    dtype = value_dtype(dtype)
    user = _choose(source, columns[0], "user_column", USER_COLUMNS)
    item = _choose(source, columns[1], "item_column", ITEM_COLUMNS)
    value = None if columns[2] is False else _choose(source, columns[2], "value_column", VALUE_COLUMNS)
    chosen = [user, item] if value is None else [user, item, value]
    if len(set(chosen)) < len(chosen):
        raise DataError(f"user_column, item_column and value_column must be different columns, got {chosen}")
    arrays = source.read([user, item], chosen[2:])
    if not len(arrays[0]):
        raise DataError(f"interactions must hold at least one row; {source.what} has none")

    rows, row_ids = _encode(arrays[0], "user", user, known[0], unknown, source.text_ids)
    cols, col_ids = _encode(arrays[1], "item", item, known[1], unknown, source.text_ids)
    values = np.ones(len(rows), dtype) if value is None else _numbers(arrays[2], value, dtype)
    del arrays
    absent = (rows < 0) | (cols < 0) if known != (None, None) else np.zeros(0, bool)
    if absent.any():
        rows, cols, values = rows[~absent], cols[~absent], values[~absent]
        warn(f"{absent.sum()} of {len(absent)} rows name a user or an item that is not known; they were dropped")
    matrix = sparse.coo_matrix((values, (rows, cols)), shape=(len(row_ids), len(col_ids))).tocsr()
    if matrix.nnz < len(values):
        warn_repeats(len(values) - matrix.nnz, f"of {len(values)} rows of {source.what}")
        cast_values(matrix.data, dtype, lambda k: f"the sum of column {value!r} for a repeated pair")
    return Interactions(matrix, row_ids, col_ids, columns=ColumnNames(user, item, value))


def _encode(
    column: Column, side: str, name: Hashable, known: Ids | None, unknown: str, text: bool
) -> tuple[NDArray[np.int32], Ids]:
    """Position of each id of a column among the ids of its side; -1 where ``known`` does not have it."""
    where = f"{side}_column {name!r}"
    coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            f"{where} must have an id in every row, got {column.null_count} nulls (or NaN), the first in row {row}"
        )
    if not (is_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{where} must hold integers or strings, got {kind}; convert it to one of these")
    column = column.unify_dictionaries() if coded else column.dictionary_encode()
    # Python never sees a row: codes and the distinct values are all that is handled from here on.
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    distinct = column.chunk(0).dictionary
    if is_string(kind):
        distinct = distinct.cast(pa.large_string())
    if coded:  # categories may be unused
        used = np.zeros(len(distinct), bool)
        used[codes] = True
        codes = (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
        distinct = distinct.take(pa.array(np.flatnonzero(used)))
    if distinct.null_count:
        raise DataError(f"{where} must have an id in every row, got nulls")
    if text and (known is None or known.kind == "integer"):
        distinct = _integers_if_all(distinct)
    if len(distinct) > MAX_SIDE:
        raise DataError(f"{where} may hold at most {MAX_SIDE} distinct ids, got {len(distinct)}")
    if known is None:
        ids, position = Ids.encode(distinct, side)
        return position[codes], ids
    if (known.kind == "integer") != pa.types.is_integer(distinct.type):
        raise DataError(f"{where} must hold {known.kind} ids as known before, got {distinct.type}")
    find = known.index_of if unknown == "error" else known.find
    return find(distinct.to_numpy(zero_copy_only=False)).astype(np.int32)[codes], known


def _integers_if_all(texts: pa.Array) -> pa.Array:
    """Ids of a text file: integers if each is written as an integer is, so that no id changes; else strings."""
    for kind in (pa.int64(), pa.uint64()):
        try:
            integers = texts.cast(kind)
        except pa.ArrowInvalid:
            continue
        if integers.cast(pa.large_string()).equals(texts):
            return integers
    return texts


def _numbers(column: Column, name: Hashable, dtype: np.dtype[Any]) -> NDArray[np.floating]:
    where = f"value_column {name!r}"
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"{where} must have a number in every row, got a null (or NaN) in row {row}")
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if not any(is_kind(kind) for is_kind in known):
        raise DataError(f"{where} must hold numbers, got {kind}")
    if not pa.types.is_floating(kind):
        column = column.cast(pa.from_numpy_dtype(dtype), safe=False)
    values = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return cast_values(values, dtype, lambda k: f"row {k} of {where}")


def _choose(source: Source, column: Any, argument: str, defaults: Sequence[str]) -> Hashable | None:
    if column is not None:
        matches = [name for name in source.names if name == column]
    else:
        usual = {_plain_name(name) for name in defaults}
        matches = [name for name in source.names if _plain_name(name) in usual]
    if len(matches) == 1:
        return matches[0]
    if not matches and column is None and argument == "value_column":
        return None
    if column is not None:
        problem = f"{argument}={column!r} is {'not there' if not matches else 'not unique'}"
    elif matches:
        problem = f"{argument} must say which of {', '.join(map(repr, matches))} to use"
    else:
        problem = (
            f"{argument} must be given, since no column has a usual name such as {defaults[0]!r} or {defaults[1]!r}"
        )
    listing = ", ".join(f"{name!r:.60}" for name in source.names[:20]) + (", ..." if len(source.names) > 20 else "")
    raise DataError(f"{problem}; {source.what} has the columns {listing}")


def _plain_name(name: Hashable) -> str:
    return re.sub(r"[_\-\s]", "", str(name)).lower()
