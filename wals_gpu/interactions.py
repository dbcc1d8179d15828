"""Interactions as users have them, turned into one checked sparse matrix with id maps.

This is the only place where input data is checked. What leaves it is canonical: rows sorted by column, no pair twice,
every number finite.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from wals_gpu._columns import Column, Source, open_source
from wals_gpu.errors import DataError, ParameterWarning
from wals_gpu.ids import Ids, _is_string

__all__ = ["Ids", "Interactions", "as_csr", "as_interactions", "read_interactions"]

# Columns taken when none is named, compared without case, "_", "-" and spaces.
USER_COLUMNS = ("user_id", "user", "customer_id", "customer")
ITEM_COLUMNS = ("item_id", "item", "product_id", "product", "movie_id", "movie", "book_id", "book", "track_id", "track")
VALUE_COLUMNS = ("value", "rating", "count", "weight", "plays", "quantity")

_MAX_SIDE = 2**31 - 1


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
    """

    matrix: sparse.csr_matrix
    user_ids: Ids | None = None
    item_ids: Ids | None = None


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
    source = open_source(data)
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


def as_csr(
    data: Any,
    *,
    dtype: DTypeLike = "float32",
    n_columns: int | None = None,
    allow_empty: bool = False,
    argument: str = "interactions",
) -> sparse.csr_matrix:
    """Check a matrix and turn it into canonical CSR.

    Parameters
    ----------
    data : SciPy sparse matrix or array of any format, or ndarray, 2-D
        Zeros of a dense array are absent entries; zeros stored in a sparse one are kept (except in the blocks of BSR).
    dtype : {"float32", "float64"}
        Type of the values.
    n_columns : int, optional
        Number of columns that is wanted.
    allow_empty : bool
        Whether a matrix without any stored entry is fine.
    argument : str
        Name for error messages.

    Returns
    -------
    csr_matrix
        Shares memory with ``data`` where nothing had to be changed; ``data`` itself is never changed.

    Raises
    ------
    TypeError
        If ``data`` is no matrix.
    DataError
        If it is not 2-D, has other than ``n_columns`` columns, no entry, an index out of range, or a value that is
        not finite.

    Warns
    -----
    ParameterWarning
        If entries were repeated, and therefore summed.
    """
    dtype = _value_dtype(dtype)
    if not isinstance(data, np.ndarray) and not sparse.issparse(data):
        raise TypeError(f"{argument} must be a SciPy sparse matrix or a NumPy array, got {type(data).__name__}")
    if data.ndim != 2:
        raise DataError(f"{argument} must be a 2-D matrix (users, items), got shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise DataError(f"{argument} must hold real numbers, got dtype {data.dtype}")
    if n_columns is not None and data.shape[1] != n_columns:
        raise DataError(f"{argument} must have {n_columns} columns, one per item; got shape {data.shape}")
    if max(data.shape) > _MAX_SIDE:
        raise DataError(f"{argument} may have at most {_MAX_SIDE} rows and columns, got shape {data.shape}")
    if isinstance(data, np.ndarray):
        csr = sparse.csr_matrix(data)
    else:
        _check_indices(data, argument)
        if data.format == "coo":
            # SciPy sums repeated entries of COO as it converts, in the type of the data: True + True is True there.
            values = _cast(data.data, dtype, lambda k: f"{argument}[{data.row[k]}, {data.col[k]}]")
            data = sparse.coo_matrix((values, (data.row, data.col)), shape=data.shape)
        csr = data.tocsr()
        if data.format == "bsr":
            csr.eliminate_zeros()  # the padding of its blocks
    n_stored = data.nnz if getattr(data, "format", "") == "coo" else csr.nnz
    if not n_stored and not allow_empty:
        raise DataError(f"{argument} must hold at least one entry, got none in shape {data.shape}")

    def place(k: int) -> str:
        summed = "the sum at " if csr.nnz < n_stored else ""
        return f"{summed}{argument}[{np.searchsorted(csr.indptr, k, side='right') - 1}, {csr.indices[k]}]"

    values = _cast(csr.data[: csr.nnz], dtype, place)
    # A matrix of our own: its flags are fresh, and sorting it does not reach into the user's.
    csr = sparse.csr_matrix((values, csr.indices[: csr.nnz], csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    if csr.nnz < n_stored:
        _warn_repeats(n_stored - csr.nnz, f"entries of {argument}")
        _cast(csr.data, dtype, place)
    return csr


def _from_matrix(data: Any, user_ids: Ids | None, item_ids: Ids | None, dtype: DTypeLike) -> Interactions:
    own = data if isinstance(data, Interactions) else Interactions(data)
    matrix = as_csr(own.matrix, dtype=dtype)
    for known, has, n, what in ((user_ids, own.user_ids, 0, "rows"), (item_ids, own.item_ids, 1, "columns")):
        for ids in (known, has):
            if ids is not None and len(ids) != matrix.shape[n]:
                raise DataError(f"interactions must have {len(ids)} {what}, one per id; got shape {matrix.shape}")
        if known is not None and has is not None and known != has:
            raise DataError(f"the {known.side} ids of interactions are not the known ones; build it with these")
    return Interactions(
        matrix, own.user_ids if user_ids is None else user_ids, own.item_ids if item_ids is None else item_ids
    )


def _from_table(
    source: Source,
    columns: tuple[Any, Any, Any],
    known: tuple[Ids | None, Ids | None],
    unknown: str,
    dtype: DTypeLike,
) -> Interactions:
    dtype = _value_dtype(dtype)
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
        _warn(f"{absent.sum()} of {len(absent)} rows name a user or an item that is not known; they were dropped")
    matrix = sparse.coo_matrix((values, (rows, cols)), shape=(len(row_ids), len(col_ids))).tocsr()
    if matrix.nnz < len(values):
        _warn_repeats(len(values) - matrix.nnz, f"of {len(values)} rows of {source.what}")
        _cast(matrix.data, dtype, lambda k: f"the sum of column {value!r} for a repeated pair")
    return Interactions(matrix, row_ids, col_ids)


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
    if not (_is_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{where} must hold integers or strings, got {kind}; convert it to one of these")
    column = column.unify_dictionaries() if coded else column.dictionary_encode()
    # Python never sees a row: codes and the distinct values are all that is handled from here on.
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    distinct = column.chunk(0).dictionary
    if _is_string(kind):
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
    if len(distinct) > _MAX_SIDE:
        raise DataError(f"{where} may hold at most {_MAX_SIDE} distinct ids, got {len(distinct)}")
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
    return _cast(values, dtype, lambda k: f"row {k} of {where}")


def _choose(source: Source, asked: Any, argument: str, defaults: Sequence[str]) -> Hashable | None:
    if asked is not None:
        found = [name for name in source.names if name == asked]
    else:
        usual = {_plain_name(name) for name in defaults}
        found = [name for name in source.names if _plain_name(name) in usual]
    if len(found) == 1:
        return found[0]
    if not found and asked is None and argument == "value_column":
        return None
    if asked is not None:
        problem = f"{argument}={asked!r} is {'not there' if not found else 'not unique'}"
    elif found:
        problem = f"{argument} must say which of {', '.join(map(repr, found))} to use"
    else:
        problem = (
            f"{argument} must be given, since no column has a usual name such as {defaults[0]!r} or {defaults[1]!r}"
        )
    names = ", ".join(f"{name!r:.60}" for name in source.names[:20]) + (", ..." if len(source.names) > 20 else "")
    raise DataError(f"{problem}; {source.what} has the columns {names}")


def _plain_name(name: Hashable) -> str:
    return re.sub(r"[_\-\s]", "", str(name)).lower()


def _check_indices(matrix: Any, argument: str) -> None:
    """Raise where following the indices would leave the matrix: SciPy does not check them, and C code follows."""
    if matrix.format == "coo":
        pairs = [(matrix.row, matrix.shape[0], "row"), (matrix.col, matrix.shape[1], "column")]
        if not len(matrix.row) == len(matrix.col) == len(matrix.data):
            raise DataError(f"{argument} is no valid COO matrix: row, col and data must have the same length")
    elif matrix.format in ("csr", "csc", "bsr"):
        blocks = getattr(matrix, "blocksize", (1, 1))
        n_major, n_minor = (side // block for side, block in zip(matrix.shape, blocks, strict=True))
        minor = "column"
        if matrix.format == "csc":
            n_major, n_minor, minor = n_minor, n_major, "row"
        ptr, n_stored = matrix.indptr, min(len(matrix.indices), len(matrix.data))
        if len(ptr) != n_major + 1 or ptr[0] != 0 or ptr[-1] > n_stored or np.any(ptr[1:] < ptr[:-1]):
            raise DataError(
                f"{argument} is no valid {matrix.format.upper()} matrix: indptr must have {n_major + 1} entries, "
                f"rise from 0, and end at most at the {n_stored} stored entries"
            )
        pairs = [(matrix.indices[: ptr[-1]], n_minor, minor)]
    else:
        return
    for index, n, what in pairs:
        if len(index) and not (index.min() >= 0 and index.max() < n):
            bad = index[(index < 0) | (index >= n)][0]
            raise DataError(f"{argument} must have {what} indices in [0, {n}), got {bad}")


def _cast(values: NDArray[Any], dtype: np.dtype[Any], place: Callable[[int], str]) -> NDArray[np.floating]:
    """The values in the type of the matrix, which all of them must fit; ``place`` names the k-th for the error."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused here
        cast = values.astype(dtype, copy=False)
    finite = np.isfinite(cast)
    if not finite.all():
        k = int(np.argmin(finite))
        fits = f" and fit {dtype}" if np.isinf(cast[k]) else ""
        raise DataError(f"every value must be finite{fits}, but {place(k)} is {values[k]}")
    return cast


def _warn_repeats(n: int, what: str) -> None:
    _warn(f"{n} {what} repeat a pair of user and item; the values of a pair were summed")


def _warn(message: str) -> None:
    """Warn about the line of the user's that led here, however deep in the package this is."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wals_gpu."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ParameterWarning, stacklevel=level)


def _value_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return np.dtype(dtype)
