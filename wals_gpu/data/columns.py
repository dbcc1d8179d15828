"""Columns of a table, as Arrow arrays, out of whatever holds the table: pandas, polars, Arrow, Parquet, CSV."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from wals_gpu.errors import DataError

Column: TypeAlias = pa.ChunkedArray

_DELIMITERS = ",\t;|"
_HEAD_BYTES = 1 << 16
# Each block has its own dictionary of ids until they are merged; blocks of 1 MB took twice the memory.
_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Source:
    """A table whose columns have not been read yet.

    ``read(id_columns, value_columns)`` gives one Arrow array for each name asked for. ``text_ids``: ids come as
    text because the file has no types.
    """

    what: str
    names: Sequence[Hashable]
    read: Callable[[Sequence[Any], Sequence[Any]], list[Column]]
    text_ids: bool = False


def open_source(data: Any) -> Source:
    """The source of a table or a file.

    Raises
    ------
    TypeError
        If ``data`` is of no kind that holds a table.
    DataError
        If a file cannot be read.
    FileNotFoundError, PermissionError
        If there is no file to read.
    """
    # By name, so that pandas and polars are imported by nobody but the user; by all bases, for subclasses.
    kinds = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(data).__mro__}
    if isinstance(data, (str, os.PathLike)):
        return _file(Path(data))
    if kinds & {"pandas.DataFrame", "pandas.Series"}:
        return _pandas(data)
    if kinds & {"polars.DataFrame", "polars.LazyFrame"}:
        return _polars(data)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if not isinstance(data, pa.Table) and hasattr(data, "__arrow_c_stream__") and "polars.Series" not in kinds:
        data = pa.table(data)
    if isinstance(data, pa.Table):
        return Source("the table", data.column_names, lambda ids, values: [data[name] for name in [*ids, *values]])
    raise TypeError(
        "interactions must be a 2-D SciPy sparse matrix or NumPy array, a pandas or polars DataFrame, an Arrow table, "
        f"or the path of a Parquet or CSV file; got {type(data).__module__}.{type(data).__name__}"
    )


def _pandas(frame: Any) -> Source:
    if frame.ndim == 1:  # such as frame.groupby(["user_id", "item_id"]).size()
        frame = frame.to_frame("value" if frame.name is None else frame.name)
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]

    def read(ids: Sequence[Any], values: Sequence[Any]) -> list[Column]:
        columns = []
        for name in [*ids, *values]:
            column = frame.index.get_level_values(name).to_series() if name in levels else frame[name]
            try:
                array = pa.array(column, from_pandas=True)
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise DataError(f"column {name!r} of the DataFrame is of no type that Arrow has: {error}") from error
            columns.append(array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]))
        return columns

    return Source("the DataFrame", [*frame.columns, *levels], read)


def _polars(frame: Any) -> Source:
    lazy = hasattr(frame, "collect")

    def read(ids: Sequence[Any], values: Sequence[Any]) -> list[Column]:
        chosen = frame.select([*ids, *values])
        chosen = chosen.collect() if lazy else chosen
        try:
            columns: list[Column] = chosen.to_arrow().columns
            return columns
        except pa.ArrowException as error:  # Int128, for one
            raise DataError(f"columns of the DataFrame are of no type that Arrow has: {chosen.schema}") from error

    return Source("the DataFrame", frame.collect_schema().names() if lazy else frame.columns, read)


def _file(path: Path) -> Source:
    if path.is_dir():
        return _parquet(path)
    with open(path, "rb") as file:  # FileNotFoundError and PermissionError say enough as they are
        magic = file.read(4)
    if not magic:
        raise DataError(f"{path} is empty")
    if magic == b"PAR1":
        return _parquet(path)
    if path.suffix in (".parquet", ".pq"):
        raise DataError(f"{path} is not a Parquet file: it begins with {magic!r}")
    return _text(path)


def _parquet(path: Path) -> Source:
    import pyarrow.parquet as pq

    def read(ids: Sequence[str], values: Sequence[str]) -> list[Column]:
        try:
            # Strings stay dictionary-encoded as in the file: codes, not one string for each row.
            table = pq.read_table(path, columns=[*ids, *values], read_dictionary=list(ids))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return [table[name] for name in [*ids, *values]]

    try:
        names = pq.ParquetDataset(path).schema.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    if not names:
        raise DataError(f"{path} holds no Parquet file")
    return Source(str(path), names, read)


def _text(path: Path) -> Source:
    import pyarrow.csv

    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(_HEAD_BYTES)
        line = head.decode("utf-8-sig", errors="strict" if len(head) < _HEAD_BYTES else "ignore")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is neither Parquet nor readable UTF-8 text: {error}") from error
    line = re.split(r"[\r\n]", line, maxsplit=1)[0]
    if "\0" in line or not line.strip():
        raise DataError(f"{path} must be a Parquet file, or a text file with the column names in its first line")
    delimiter = max(_DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))

    def read(ids: Sequence[str], values: Sequence[str]) -> list[Column]:
        kinds = {name: pa.dictionary(pa.int32(), pa.string()) for name in ids} | dict.fromkeys(values, pa.float64())
        try:
            table = pyarrow.csv.read_csv(
                path,
                read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
                # Only an empty field is missing: "NA" and "null" are ids like any other.
                convert_options=pyarrow.csv.ConvertOptions(
                    include_columns=list(kinds),
                    column_types=kinds,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        return [table[name] for name in kinds]

    return Source(str(path), names, read, text_ids=True)
