"""Users and items as Arrow tables: what every export of files is made of.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wals_gpu.data.ids import Ids
from wals_gpu.model.recommendations import arrow_type
from wals_gpu.model.vectors import ScoreVectors

__all__ = ["USERS", "id_column", "item_table", "parts", "user_tables", "write_items", "write_users"]

#: Users of a table, and of a group of rows in its file: their vectors are 16 MiB at 256 factors.
USERS = 1 << 14


def parts(n: int) -> Iterator[slice]:
    """All of n rows, :data:`USERS` at a time."""
    return (slice(start, min(start + USERS, n)) for start in range(0, n, USERS))


def id_column(ids: Ids | None, rows: NDArray[np.integer]) -> pa.Array:
    """Ids of some rows; their numbers where there are no ids."""
    return pa.array(rows if ids is None else ids.take(rows), arrow_type(ids))


def _vectors(vectors: NDArray[np.floating]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def item_table(vectors: ScoreVectors, *, with_vectors: bool = True) -> pa.Table:
    """``row``, ``item_id``, ``popularity`` and ``vector`` of each item, in the order of the rows."""
    rows = np.arange(vectors.n_items)
    columns: dict[str, Any] = {"row": rows, "item_id": id_column(vectors.item_ids, rows)}
    columns["popularity"] = vectors.popularity
    if with_vectors:
        columns["vector"] = _vectors(vectors.items)
    return pa.table(columns)


def user_tables(vectors: ScoreVectors, *, seen: str | None, with_vectors: bool = True) -> Iterator[pa.Table]:
    """``row``, ``user_id``, ``known``, ``vector`` and what they have seen of some users after the other.

    `seen`: a list of items in the column of this name, which is "seen" for their ids, "seen_rows" for their numbers;
    None: no such column.
    """
    for part in parts(vectors.n_users):
        rows = np.arange(part.start, part.stop)
        columns: dict[str, Any] = {"row": rows, "user_id": id_column(vectors.user_ids, rows)}
        columns["known"] = vectors.known[part]
        if with_vectors:
            columns["vector"] = _vectors(vectors.users[part])
        if seen is not None:
            matrix = vectors.seen_by(part)
            numbers = matrix.indices.astype(np.int64)
            items = pa.array(numbers) if seen == "seen_rows" else id_column(vectors.item_ids, numbers)
            columns[seen] = pa.LargeListArray.from_arrays(pa.array(matrix.indptr.astype(np.int64)), items)
        yield pa.table(columns)


def write_items(folder: Path, vectors: ScoreVectors, *, with_vectors: bool = True) -> None:
    """``items.parquet``."""
    pq.write_table(item_table(vectors, with_vectors=with_vectors), folder / "items.parquet", compression="zstd")


def write_users(folder: Path, vectors: ScoreVectors, *, seen: str | None, with_vectors: bool = True) -> None:
    """``users.parquet``, of which no more than :data:`USERS` rows are in memory."""
    writer = None
    try:
        for table in user_tables(vectors, seen=seen, with_vectors=with_vectors):
            writer = writer or pq.ParquetWriter(folder / "users.parquet", table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
