"""Item texts in files, and their vectors in files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.checks import as_path
from wals_gpu.data.files import whole_file
from wals_gpu.data.items import as_texts, read_items
from wals_gpu.errors import DataError

__all__ = ["read_item_texts", "write_embeddings"]


def read_item_texts(
    path: str | os.PathLike[str],
    *,
    text_columns: str | Sequence[str] | None = None,
    item_column: str | None = None,
    encoding: str | None = None,
) -> tuple[pa.Array | None, list[str]]:
    """Ids and texts of a table of items.

    Parameters
    ----------
    path : path
        ``.txt``: a text per line and no ids. Else a table, as :func:`wals_gpu.read_interactions` reads it: Parquet,
        Feather, CSV, JSON Lines, folders and patterns.
    text_columns : str or sequence of str, optional
        Joined with ". " where there are several; what is missing counts as empty. Default: the column named like
        ``text`` or ``description``, else the one named like ``title`` or ``name``.
    item_column : str, optional
        Default: the one named like ``item_id``, else ``id``; none where there is no such column.
    encoding : str, optional
        Of text; default UTF-8, or what a byte order mark says.

    Returns
    -------
    ids : Array of n, or None
        Integers, or strings exactly as the file has them; each is there once.
    texts : list of n str

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or has an id twice or none in a row.
    FileNotFoundError
    """
    if str(path).endswith(".txt"):
        try:
            # Not splitlines, for which texts have more ends of lines than files: a form feed, or U+2028.
            lines = as_path("path", path).read_text(encoding=encoding or "utf-8-sig").split("\n")
            return None, lines[:-1] if lines[-1] == "" else lines
        except UnicodeError as error:
            raise DataError(f"{path} is not {encoding or 'UTF-8'} text: {error}") from error
    table = read_items(path, text_columns, item_column, texts=True, encoding=encoding, argument="text_columns")
    return table.ids, as_texts(table, str(path))


def write_embeddings(path: str | os.PathLike[str], ids: pa.Array | None, vectors: NDArray[np.float32]) -> None:
    """Write vectors (n, E) to a Parquet file: ``item_id`` where there are ids, and ``embedding``, lists of E float32.

    The file gets its name when it is whole. Rows are written in blocks: memory-mapped vectors are not read into memory.
    """
    import pyarrow.parquet as pq

    path = as_path("path", path)
    vector_type = pa.list_(pa.float32(), vectors.shape[1])
    fields = [] if ids is None else [pa.field("item_id", ids.type)]
    schema = pa.schema([*fields, pa.field("embedding", vector_type)])
    rows = 1 << 14
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for begin in range(0, len(vectors), rows):
            block = np.ascontiguousarray(vectors[begin : begin + rows])
            columns: list[Any] = [] if ids is None else [ids[begin : begin + rows]]
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), vectors.shape[1]))
            writer.write_table(pa.table(columns, schema=schema))
