"""What commands print and write: lines for people, JSON for programs, tables of recommendations."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wals_gpu.data.interactions import Interactions
from wals_gpu.model.wals import WALS

__all__ = [
    "clipped",
    "item_json",
    "one_line",
    "pairs_of",
    "plain",
    "print_json",
    "say",
    "size_of",
    "wrapped",
    "write_recommendations",
    "writer_for",
]


def say(text: str) -> None:
    """One line for the person at the terminal, beside the results."""
    print(f"wals-gpu: {text}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        # str(KeyError) is the repr of its argument
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def print_json(value: Any) -> None:
    """JSON on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=plain)
    print()


def plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def size_of(data: Interactions) -> str:
    """Users, items and entries in words."""
    n_users, n_items = data.matrix.shape
    return f"{n_users:,} users, {n_items:,} items, {data.matrix.nnz:,} entries"


def wrapped(text: str) -> str:
    """A paragraph of 79 columns; where it begins with a space, further lines are indented."""
    return textwrap.fill(text, 79, subsequent_indent="    " if text.startswith(" ") else "", break_on_hyphens=False)


def clipped(text: str, width: int) -> str:
    """The beginning of a text that is longer than `width`."""
    return text if len(text) <= width else text[: width - 3] + "..."


def pairs_of(ids: Any, scores: Any) -> list[tuple[Any, float]]:
    """(item, score) of one list, without the places that no item was left for."""
    return [
        (plain(item), float(score))
        for item, score in zip(ids, scores, strict=True)
        if item is not None and score > -np.inf
    ]


def item_json(pair: tuple[Any, float]) -> dict[str, Any]:
    """An item and its score for JSON."""
    return {"item": pair[0], "score": pair[1]}


def writer_for(path: Path) -> Any:
    """The class that writes this kind of file."""
    from pyarrow.csv import CSVWriter
    from pyarrow.parquet import ParquetWriter

    writers = {".parquet": ParquetWriter, ".pq": ParquetWriter, ".csv": CSVWriter}
    if path.suffix not in writers:
        raise ValueError(f"--out must end in .parquet or .csv, got {path}")
    return writers[path.suffix]


def write_recommendations(
    path: Path, model: WALS, chunks: Iterable[tuple[Any, Any, Any]], callback: Callable[[int], Any]
) -> int:
    """Write user_id, rank, item_id, score and give the file its name at the end: a broken run leaves no half file.

    Parameters
    ----------
    path : Path
    model : WALS
        Its ids have the types of the columns.
    chunks : iterable of (users, ids, scores)
        As of ``WALS.recommend_chunks``.
    callback : callable
        Called with the number of users of each chunk after it is written.

    Returns
    -------
    int
        Number of rows.
    """
    import pyarrow as pa

    # Not from the first chunk: no item may be left for any of its users.
    names, types = ["user_id", "rank", "item_id", "score"], [pa.int64(), pa.int32(), pa.int64(), pa.float32()]
    for column, ids in ((0, model.user_ids), (2, model.item_ids)):
        if ids is not None:
            types[column] = pa.string() if ids.kind == "string" else pa.from_numpy_dtype(ids.ids.dtype)
    schema = pa.schema(list(zip(names, types, strict=True)))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows = 0
    try:
        with writer_for(path)(temporary, schema) as writer:
            for users, items, scores in chunks:
                there = scores > -np.inf
                ranks = np.broadcast_to(np.arange(1, items.shape[1] + 1), items.shape)[there]
                values = (np.repeat(users, there.sum(axis=1)), ranks, items[there], scores[there])
                arrays = [pa.array(each, kind) for each, kind in zip(values, types, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                rows += len(ranks)
                callback(len(users))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return rows
