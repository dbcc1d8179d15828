"""Item texts in files, and their vectors in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.data.interactions import ITEM_COLUMNS
from wals_gpu.errors import DataError

__all__ = ["read_item_texts", "write_embeddings"]

_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
_ID_COLUMNS = (*ITEM_COLUMNS, "id")


def read_item_texts(
    path: str | os.PathLike[str],
    *,
    text_columns: str | Sequence[str] = "text",
    item_column: str | None = None,
) -> tuple[pa.Array | None, list[str]]:
    """Ids and texts of a table of items.

    Parameters
    ----------
    path : path
        ``.parquet``; ``.csv`` or ``.tsv`` with the column names in its first line; ``.jsonl``, an object per line;
        ``.txt``, a text per line and no ids.
    text_columns : str or sequence of str, default "text"
        Joined with ". " where there are several; what is missing counts as empty.
    item_column : str, optional
        Default: the one named like item_id; none where there is no such column.

    Returns
    -------
    ids : Array of n, or None
        As the file has them; each is there once.
    texts : list of n str

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or has an id twice or none in a row.
    FileNotFoundError
    """
    path = Path(path)
    if path.suffix == ".txt":
        try:
            return None, path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from error
    names = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    table = _read_table(path, names)
    missing = [name for name in [*names, item_column] if name is not None and name not in table.column_names]
    if missing or not names:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    columns = []
    for name in names:
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            if column.null_count < len(column):
                raise DataError(f"{path}: column {name!r} must hold text, got {column.type}")
        columns.append([(value or "").strip() for value in column.to_pylist()])
    texts = [". ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]
    if item_column is None:
        item_column = next((name for name in _ID_COLUMNS if name in table.column_names and name not in names), None)
    if item_column is None:
        return None, texts
    ids = table[item_column].combine_chunks()
    if ids.null_count:
        raise DataError(f"{path}: column {item_column!r} must have an id in every row, got {ids.null_count} without")
    if len(ids.unique()) < len(ids):
        raise DataError(f"{path}: column {item_column!r} must have each id once, got {len(ids)} rows of fewer ids")
    return ids, texts


def write_embeddings(path: str | os.PathLike[str], ids: pa.Array | None, vectors: NDArray[np.float32]) -> None:
    """Write vectors (n, E) to a Parquet file: ``item_id`` where there are ids, and ``embedding``, lists of E float32.

    The file gets its name when it is whole. Rows are written in blocks: memory-mapped vectors are not read into memory.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    vector_type = pa.list_(pa.float32(), vectors.shape[1])
    fields = [] if ids is None else [pa.field("item_id", ids.type)]
    schema = pa.schema([*fields, pa.field("embedding", vector_type)])
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 1 << 14
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for begin in range(0, len(vectors), rows):
                block = np.ascontiguousarray(vectors[begin : begin + rows])
                columns: list[Any] = [] if ids is None else [ids[begin : begin + rows]]
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), vectors.shape[1]))
                writer.write_table(pa.table(columns, schema=schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_table(path: Path, text_columns: Sequence[str]) -> pa.Table:
    kind = _SUFFIXES.get(path.suffix)
    if kind is None:
        raise DataError(f"{path} must end in .txt or one of {', '.join(_SUFFIXES)}")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        if kind == "json":
            import pyarrow.json

            return pyarrow.json.read_json(path)
        import pyarrow.csv

        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(
                delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True
            ),
            # Only an empty field is missing: "NA" is a text like any other.
            convert_options=pyarrow.csv.ConvertOptions(
                null_values=[""], strings_can_be_null=True, column_types=dict.fromkeys(text_columns, pa.string())
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
