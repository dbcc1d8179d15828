"""Titles of items, to be shown beside their ids."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.checks import warn
from wals_gpu.data.ids import BISECT_RATIO, Ids, is_string
from wals_gpu.data.items import read_items
from wals_gpu.errors import DataError

__all__ = ["Titles", "is_missing", "refuse_several"]


class Titles:
    """Titles by item id. Ids are compared as texts: the ``7`` of a model finds the ``"7"`` of a text file.

    Parameters
    ----------
    ids, titles : Arrow string arrays, (n,)
        Of a repeated id, the first title counts.
    by_number : bool, default False
        They are those of a list: of items that are numbers.
    """

    __slots__ = ("_by_number", "_checked", "_ids", "_order", "_titles")

    def __init__(self, ids: pa.Array, titles: pa.Array, by_number: bool = False) -> None:
        self._ids, self._titles, self._by_number = ids, titles, by_number
        self._checked: Ids | None = None  # of which one was found to have a title
        self._order: Any = None  # in which the ids rise; made when few are first looked up

    @classmethod
    def read(cls, source: Any, title_column: str | None = None, item_column: str | None = None) -> Titles:
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
                return cls._of_pairs(range(len(source)), list(source), by_number=True)
        if type(source).__name__ == "Series" and hasattr(source, "index") and hasattr(source, "tolist"):
            return cls._of_pairs(source.index.tolist(), source.tolist())
        try:
            table = read_items(source, title_column, item_column, argument="title_column", unique=False)
        except TypeError as error:
            if "interactions must be" not in str(error):
                raise
            raise TypeError(
                "titles must be a mapping of item id to title, a list of titles, a table, or the path of a Parquet or "
                f"CSV file; got {type(source).__module__}.{type(source).__name__}"
            ) from None
        if table.ids is None:
            raise DataError(
                "titles must have a column of item ids that is named like 'item_id' or 'id': rename it, or give a "
                "mapping of id to title"
            )
        ((name, titles),) = table.columns.items()
        return cls(table.ids.cast(pa.large_string()), _texts(titles, name))

    @classmethod
    def _of_pairs(cls, ids: Sequence[Any], titles: Sequence[Any], by_number: bool = False) -> Titles:
        refuse_several("titles must be texts", titles, "; pairs of id and title: dict(pairs)")
        texts = [None if is_missing(title) else str(title) for title in titles]
        keys = pa.array([str(one) for one in ids], pa.large_string())
        return cls(keys, pa.array(texts, pa.large_string()), by_number)

    def checked(self, item_ids: Ids | None) -> Titles:
        """The same, after a warning where not one is of the items of a model: these may be written in another way."""
        if item_ids is not None and item_ids is not self._checked and len(item_ids) and len(self):
            self._refuse_texts(item_ids.kind == "string")
            every = pa.array(item_ids).cast(pa.large_string())
            if pc.index_in(every, value_set=self._ids).null_count == len(every):
                warn(
                    f"none of the {len(self)} titles is of an item of the model: they are of ids such as "
                    f"{self._ids[0].as_py()!r:.60}, the model has such as {item_ids[0]!r:.60}"
                )
            else:
                self._checked = item_ids  # each request of a service comes by here
        return self

    def _refuse_texts(self, are_texts: bool) -> None:
        if self._by_number and are_texts:
            raise DataError(
                "titles is a list, which is for items that are numbers; these have texts as ids: give a mapping of id "
                "to title, or a table"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, ids: NDArray[Any] | pa.Array) -> pa.Array:
        """Titles of items (n,), null where there is none."""
        array = ids if isinstance(ids, (pa.Array, pa.ChunkedArray)) else pa.array(ids)
        self._refuse_texts(is_string(array.type))
        texts = array.cast(pa.large_string())
        if len(texts) * BISECT_RATIO < len(self):
            return self._titles.take(pa.array([self._bisect(text) for text in texts.to_pylist()], pa.int64()))
        return self._titles.take(pc.index_in(texts, value_set=self._ids))

    def _bisect(self, text: str | None) -> int | None:
        """The place of an id, the first of several; None where there is none."""
        if text is None:
            return None
        if self._order is None:
            self._order = pc.sort_indices(self._ids).to_numpy()
        order = self._order
        at = bisect_left(order, text, key=lambda place: self._ids[int(place)].as_py())
        return int(order[at]) if at < len(order) and self._ids[int(order[at])].as_py() == text else None


def refuse_several(requirement: str, values: Sequence[Any], advice: str = "") -> None:
    """TypeError where one of the values is not one, but several."""
    for value in values:
        if isinstance(value, (list, tuple, dict, set, np.ndarray)):
            raise TypeError(f"{requirement}, got {value!r:.60}{advice}")


def is_missing(value: Any) -> bool:
    """Whether it is what Python and tables have in place of a value: None, NaN, NaT, or the NA of pandas."""
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def _texts(column: pa.Array, name: Hashable) -> pa.Array:
    if not (is_string(column.type) or pa.types.is_integer(column.type) or column.null_count == len(column)):
        raise DataError(f"titles must be texts or integers, got {column.type} in column {name!r}")
    return column.cast(pa.large_string())
