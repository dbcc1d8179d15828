"""Columns of a table, as Arrow arrays, out of whatever holds the table.

What has Arrow's stream interface (PyCapsule) is read by it: relations of DuckDB, tables of Ibis, readers of batches.
pandas and polars have it too, and ways of their own here for what it would lose: named levels of an index, sparse and
long floating-point columns, columns of objects with an error that names row and values; lazy frames of which only the
wanted columns are computed.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from wals_gpu.data.paths import open_paths
from wals_gpu.data.source import Column, Source, TextOptions
from wals_gpu.errors import DataError

__all__ = ["as_arrow", "native", "open_source"]

_FEW = 20
#: Of units of time that Arrow does not have, one that it has.
_FINER = {"Y": "D", "M": "D", "W": "D", "h": "s", "m": "s"}


def open_source(data: Any, options: TextOptions | None = None) -> Source:
    """The source of a table or of files.

    Raises
    ------
    TypeError
        If ``data`` is of no kind that holds a table, or `options` are for files and it is none.
    DataError
        If a file cannot be read.
    FileNotFoundError, PermissionError
        If there is no file to read.
    """
    kinds = _kinds(data)
    if isinstance(data, (str, os.PathLike)):
        return open_paths([data], options)
    if isinstance(data, (list, tuple)) and data and all(isinstance(path, (str, os.PathLike)) for path in data):
        return open_paths(data, options)
    if options is not None and (given := options.given()):
        raise TypeError(f"{', '.join(given)} can be given with files of text only, got {type(data).__name__}")
    if kinds & {"pandas.DataFrame", "pandas.Series"}:
        return _pandas(data)
    if kinds & {"polars.DataFrame", "polars.LazyFrame"}:
        return _polars(data)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, np.ndarray) and data.dtype.names is not None and data.ndim == 1:
        return _structured(data)
    if isinstance(data, pa.Table):
        return _arrow(data)
    if "pyspark.DataFrame" in kinds:
        return _spark(data)
    if hasattr(data, "__dask_graph__") and hasattr(data, "columns"):
        return _dask(data)
    if hasattr(data, "__arrow_c_stream__") and "polars.Series" not in kinds:
        try:
            return _stream(data)
        except (pa.ArrowException, TypeError) as error:
            raise TypeError(f"interactions must be a table, got {type(data).__name__}: {error}") from error
    raise TypeError(
        "interactions must be a 2-D SciPy sparse matrix or NumPy array, a DataFrame of pandas, polars, Dask or Spark, "
        "an Arrow table or what has Arrow's stream interface, or the path of a Parquet, Feather, JSON Lines or CSV "
        f"file; got {type(data).__module__}.{type(data).__name__}"
    )


def _kinds(data: Any) -> set[str]:
    # By name, so that pandas and polars are imported by nobody but the user; by all bases, for subclasses.
    return {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(data).__mro__}


def native(array: Any) -> Any:
    """An array in the byte order of this machine."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _structured(data: Any) -> Source:
    """A structured array of NumPy."""

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        return [pa.chunked_array([_from_field(data[name], name)]) for name in [*ids, *numbers, *plain]]

    return Source("the array", list(data.dtype.names), read, first=lambda name: list(data[name][:_FEW]))


def _from_field(values: Any, name: Hashable) -> pa.Array:
    if values.ndim > 1:
        raise DataError(f"column {name!r} of the array must hold one value in each row, got shape {values.shape[1:]}")
    values = native(values)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype(np.float64)  # long double
    elif values.dtype.kind == "M" and (unit := np.datetime_data(values.dtype)[0]) in _FINER:
        values = values.astype(f"M8[{_FINER[unit]}]")
    return as_arrow(values, name, "the array")


def _arrow(table: pa.Table) -> Source:
    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        return [table[name] for name in [*ids, *numbers, *plain]]

    return Source(
        "the table", table.column_names, read, first=lambda name: _python(table[name].slice(0, _FEW))
    )  # fmt: skip


def _stream(data: Any) -> Source:
    """Whatever has Arrow's PyCapsule interface, such as relations of DuckDB: columns that nobody wants are not kept."""
    # Newer than the oldest pyarrow that is supported.
    opened = getattr(pa.RecordBatchReader, "from_stream", None)
    reader = pa.table(data).to_reader() if opened is None else opened(data)
    names = reader.schema.names
    begun: list[Any] = []  # what was looked at

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = [*ids, *numbers, *plain]
        places = [names.index(name) for name in dict.fromkeys(wanted)]
        batches = [batch.select(places) for batch in (*begun, *reader)]
        table = pa.Table.from_batches(batches, pa.schema([reader.schema.field(place) for place in places]))
        begun.clear()
        return [table[name] for name in wanted]

    def first(name: Hashable) -> list[Any]:
        if not begun and (batch := next(iter(reader), None)) is not None:
            begun.append(batch)
        return _python(begun[0].column(names.index(name)).slice(0, _FEW)) if begun else []

    return Source("the table", names, read, first=first)


def _spark(frame: Any) -> Source:
    """A DataFrame of Spark, whose wanted columns are collected to this machine."""
    if not hasattr(frame, "toArrow"):
        raise TypeError(
            "a DataFrame of Spark needs pyspark 4, which has its toArrow; of earlier ones give toPandas(), of pandas "
            "on Spark to_spark()"
        )

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = [*ids, *numbers, *plain]
        # In backticks: a name with a dot would be taken apart.
        table = frame.select([f"`{name.replace('`', '``')}`" for name in dict.fromkeys(wanted)]).toArrow()
        return [table[name] for name in wanted]

    return Source("the DataFrame", frame.columns, read)


def _dask(frame: Any) -> Source:
    """A DataFrame of Dask, whose wanted columns are computed into one of pandas on this machine."""
    names, index = list(frame.columns), frame.index.name
    levels = [] if index is None or index in names else [index]

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = dict.fromkeys(name for name in (*ids, *numbers, *plain) if name not in levels)
        return _pandas(frame[list(wanted)].compute()).read(ids, numbers, plain)

    return Source("the DataFrame", [*names, *levels], read)


def _python(column: Column) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _pandas(frame: Any) -> Source:
    if frame.ndim == 1:  # such as frame.groupby(["user_id", "item_id"]).size()
        frame = frame.to_frame("value" if frame.name is None else frame.name)
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]

    def column_of(name: Any) -> Any:
        return frame.index.get_level_values(name).to_series() if name in levels else frame[name]

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        columns = []
        for name in [*ids, *numbers, *plain]:
            array = _from_pandas(column_of(name), name)
            columns.append(array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))
        return columns

    def first(name: Hashable) -> list[Any]:
        values: list[Any] = column_of(name).head(_FEW).tolist()
        return values

    return Source("the DataFrame", [*frame.columns, *levels], read, first=first)


def _from_pandas(column: Any, name: Hashable) -> Any:
    if hasattr(column, "sparse"):
        column = column.sparse.to_dense()
    elif isinstance(column.dtype, np.dtype) and not column.dtype.isnative:
        column = column.astype(column.dtype.newbyteorder("="))
    elif isinstance(column.dtype, np.dtype) and column.dtype.kind == "f" and column.dtype.itemsize > 8:
        column = column.astype(np.float64)  # long double
    return as_arrow(column, name, "the DataFrame")


def as_arrow(column: Any, name: Hashable, what: str) -> Any:
    """A Series or an array of NumPy as Arrow's; `name` and `what` it is a column of are for errors.

    Raises
    ------
    DataError
        It is of no type that can be read, or of several.
    """
    try:
        array = pa.array(column, from_pandas=True)
    except UnicodeEncodeError as error:
        rows = ((k, value) for k, value in enumerate(column) if isinstance(value, str) and not _is_unicode(value))
        row, text = next(rows, (None, None))
        raise DataError(
            f"column {name!r} of {what} must hold valid Unicode, got a lone surrogate"
            + (f" in row {row}: {text!a:.60}" if row is not None else "")
        ) from error
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        if column.dtype == object:
            _check_one_type(column, name, what)
            _check_integers(column, name, what)
        raise DataError(
            f"column {name!r} of {what} is of no type that can be read ({column.dtype}): {error}"
        ) from error
    if column.dtype == object and pa.types.is_date(array.type):
        _check_one_type(column, name, what)  # behind a date, Arrow takes the day of a moment
    return array


def _check_one_type(column: Any, name: Hashable, what: str) -> None:
    """DataError where a column of objects has values of several types."""
    first: dict[str, tuple[int, Any]] = {}
    for row, value in enumerate(column):
        if value is not None and value == value:  # missing ones are another matter
            first.setdefault(type(value).__name__, (row, value))
    if len(first) > 1:
        got = " and ".join(f"{value!r:.60} ({kind}) in row {row}" for kind, (row, value) in list(first.items())[:2])
        raise DataError(f"column {name!r} of {what} must hold values of one type, got {got}")


def _check_integers(column: Any, name: Hashable, what: str) -> None:
    """DataError where a column of objects has integers that no type of 64 bits holds together."""
    found = [(value, row) for row, value in enumerate(column) if isinstance(value, int)]
    if found and not -(2**63) <= (low := min(found))[0] <= (high := max(found))[0] < 2 ** (63 if low[0] < 0 else 64):
        got = " and ".join(f"{value} in row {row}" for value, row in dict.fromkeys((low, high)))
        raise DataError(f"column {name!r} of {what} must hold integers of 64 bits, or text, got {got:.160}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _polars(frame: Any) -> Source:
    lazy = hasattr(frame, "collect")

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        wanted = [*ids, *numbers, *plain]
        chosen = frame.select(list(dict.fromkeys(wanted)))
        chosen = chosen.collect() if lazy else chosen
        try:
            table = chosen.to_arrow()
        except pa.ArrowException as error:  # Int128, for one
            raise DataError(f"columns of the DataFrame are of no type that Arrow has: {chosen.schema}") from error
        return [table[name] for name in wanted]

    def first(name: Hashable) -> list[Any]:
        values: list[Any] = [] if lazy else frame[name].head(_FEW).to_list()
        return values

    return Source("the DataFrame", frame.collect_schema().names() if lazy else frame.columns, read, first=first)
