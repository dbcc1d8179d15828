"""Titles of items, to be shown beside their ids."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.data.columns import Source, open_source
from wals_gpu.data.ids import is_string
from wals_gpu.data.interactions import ITEM_COLUMNS
from wals_gpu.errors import DataError

__all__ = ["TITLE_COLUMNS", "Titles"]

# Columns taken when none is named, compared without case, "_", "-" and spaces.
TITLE_COLUMNS = ("title", "name", "item_title", "item_name", "product_name", "movie_title", "book_title", "track_name")
_ID_COLUMNS = (*ITEM_COLUMNS, "id")


class Titles:
    """Titles by item id. Ids are compared as texts: the ``7`` of a model finds the ``"7"`` of a text file.

    Parameters
    ----------
    ids, titles : Arrow string arrays, (n,)
        Of a repeated id, the first title counts.
    """

    __slots__ = ("_ids", "_titles")

    def __init__(self, ids: pa.Array, titles: pa.Array) -> None:
        self._ids, self._titles = ids, titles

    @classmethod
    def read(cls, source: Any, title_column: Hashable | None = None, item_column: Hashable | None = None) -> Titles:
        """Titles in any form.

        Parameters
        ----------
        source : mapping of id to title, list of titles, Series, table, path, or Titles
            A list has the title of item number 0 first. A pandas Series has the ids in its index. A table is a pandas
            or polars DataFrame, an Arrow table, or the path of a Parquet or CSV file, with a row for each item.
        title_column, item_column : str, optional
            Of a table. Default: the column that is named like ``title`` or ``name``, and like ``item_id`` or ``id``.

        Raises
        ------
        DataError
            A column is missing or not of texts, or the file cannot be read.
        TypeError
            The source is of none of these kinds.
        FileNotFoundError
        """
        if isinstance(source, Titles):
            return source
        if not (isinstance(source, (str, os.PathLike)) or hasattr(source, "__arrow_c_stream__")):
            # A pandas Series has this protocol only from version 3 on, and is none of the tables in either case.
            if isinstance(source, Mapping):
                return cls._of_pairs(list(source.keys()), list(source.values()))
            if isinstance(source, Sequence) or (isinstance(source, np.ndarray) and source.ndim == 1):
                return cls._of_pairs(range(len(source)), list(source))
        if type(source).__name__ == "Series" and hasattr(source, "index") and hasattr(source, "tolist"):
            return cls._of_pairs(source.index.tolist(), source.tolist())
        try:
            table = open_source(source)
        except TypeError:
            raise TypeError(
                "titles must be a mapping of item id to title, a list of titles, a table, or the path of a Parquet or "
                f"CSV file; got {type(source).__module__}.{type(source).__name__}"
            ) from None
        title = _choose(table, title_column, "title_column", TITLE_COLUMNS)
        item = _choose(table, item_column, "the column of item ids", [c for c in _ID_COLUMNS if c != title])
        ids, titles = (_texts(c, name) for c, name in zip(table.read([item, title], []), (item, title), strict=True))
        if ids.null_count:
            raise DataError(f"titles must have an id in every row, got {ids.null_count} without in column {item!r}")
        return cls(ids, titles)

    @classmethod
    def _of_pairs(cls, ids: Sequence[Any], titles: Sequence[Any]) -> Titles:
        texts = [None if title is None or title != title else str(title) for title in titles]
        return cls(pa.array([str(one) for one in ids], pa.large_string()), pa.array(texts, pa.large_string()))

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, ids: NDArray[Any] | pa.Array) -> pa.Array:
        """Titles of items (n,), null where there is none."""
        array = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids)
        place = pc.index_in(array.cast(pa.large_string()), value_set=self._ids)
        return self._titles.take(place)


def _choose(source: Source, column: Hashable | None, argument: str, usual: Sequence[str]) -> Hashable:
    if column is not None:
        matches = [name for name in source.names if name == column]
    else:
        plain = {_plain_name(name): name for name in reversed(source.names)}
        matches = [plain[name] for name in map(_plain_name, usual) if name in plain][:1]
    if len(matches) == 1:
        return matches[0]
    if column is None:
        problem = f"{argument} must be given, since no column has a usual name such as {usual[0]!r}"
    else:
        problem = f"{argument}={column!r} is {'not unique' if matches else 'not there'}"
    raise DataError(f"{problem}; {source.what} has the columns {', '.join(f'{name!r:.60}' for name in source.names)}")


def _plain_name(name: Hashable) -> str:
    return re.sub(r"[_\-\s]", "", str(name)).lower()


def _texts(column: pa.ChunkedArray, name: Hashable) -> pa.Array:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"titles and their ids must be texts or integers, got {kind} in column {name!r}")
    return pa.chunked_array(column.cast(kind)).cast(pa.large_string()).combine_chunks()
