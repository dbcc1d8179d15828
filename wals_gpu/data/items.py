"""Tables of items: ids, and what they are called or described by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.data.columns import open_source
from wals_gpu.data.encode import as_plain, checked_ids, integers_among, integers_if_all
from wals_gpu.data.ids import Ids, is_string
from wals_gpu.data.names import Missing, choose_item, choose_named, choose_title, missing_error, plain_name
from wals_gpu.data.source import Column, Source, TextOptions
from wals_gpu.errors import DataError

__all__ = ["ItemTable", "as_texts", "id_values", "read_items"]


@dataclass(frozen=True)
class ItemTable:
    """Columns of a table of items.

    Attributes
    ----------
    ids : Arrow array of n integers or strings, or None
        Each is there once; None where the table has no column of ids.
    columns : dict of name to Arrow array of n
    """

    ids: pa.Array | None
    columns: Mapping[Hashable, pa.Array]

    def find(self, item_ids: Ids) -> NDArray[np.int64]:
        """The position of each row's item among ids.

        Ids of the other kind are converted where that is exact: text written as integers are, and integers.

        Parameters
        ----------
        item_ids : Ids

        Returns
        -------
        (n,) int64 array
            -1 for an unknown one.

        Raises
        ------
        DataError
            The table has no column of ids.
        """
        if self.ids is None:
            raise DataError("the table of items has no column of ids; item_column names it")
        values = self.ids
        if item_ids.kind == "integer" and not pa.types.is_integer(values.type):
            return integers_among(values, item_ids)
        if item_ids.kind == "string" and pa.types.is_integer(values.type):
            values = values.cast(pa.large_string())
        found: NDArray[np.int64] = item_ids.find(values.to_numpy(zero_copy_only=False))
        return found

    def of(self, item_ids: Ids, column: Hashable | None = None) -> list[Any]:
        """The values of a column for each of some items.

        Parameters
        ----------
        item_ids : Ids
            I of them.
        column : str, optional
            One of `columns`. Default: the first.

        Returns
        -------
        list of I values
            None where the table lacks the item.

        Raises
        ------
        DataError
            The table has no column of ids.
        KeyError
            It has no such column.
        """
        position = self.find(item_ids)
        row = np.full(len(item_ids), -1, np.int64)
        row[position[position >= 0]] = np.flatnonzero(position >= 0)
        values = next(iter(self.columns.values())) if column is None else self.columns[column]
        found: list[Any] = values.take(pa.array(row, mask=row < 0)).to_pylist()
        return found


def read_items(
    path: Any,
    columns: str | Sequence[str] | None = None,
    item_column: str | None = None,
    item_ids: Ids | None = None,
    *,
    texts: bool = False,
    file_columns: Sequence[str] | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    argument: str = "columns",
    unique: bool = True,
) -> ItemTable:
    """Read a table of items, by the same rules as interactions.

    Parameters
    ----------
    path : path, list of paths, DataFrame or Arrow table
        As of :func:`.as_interactions`.
    columns : str or sequence of str, optional
        Columns to read. Default: the one that is named like ``title`` or ``name``; with `texts` like ``text`` or
        ``description``, else the title.
    item_column : str, optional
        Column of ids. Default: the one named like ``item_id``, ``movieId`` or ``id``; none where there is none.
    item_ids : Ids, optional
        Those of a model: ids that are text in the file become what these are.
    texts : bool, default False
        What the default of `columns` is.
    file_columns, encoding, decimal
        As `columns`, `encoding` and `decimal` of :func:`.as_interactions`.
    argument : str
        What `columns` is called, for error messages.
    unique : bool, default True
        Whether an id that is there twice is an error.

    Returns
    -------
    ItemTable

    Raises
    ------
    DataError
        The file cannot be read, lacks a column, or has an id twice or none in a row.
    FileNotFoundError
    """
    names = None if file_columns is None else tuple(file_columns)
    source = open_source(path, TextOptions(names, encoding, decimal))
    wanted: Sequence[Hashable] | None = [columns] if isinstance(columns, str) else columns
    problems = []
    if wanted is None:
        usual = choose_title([name for name in source.names if name != item_column], texts=texts)
        if usual is None:
            example = "text" if texts else "title"
            raise missing_error(
                source, [f"{argument} must be given, since no column has a usual name such as {example!r}"]
            )
        wanted = [usual]
    chosen, item = [], None
    for name in wanted:
        try:
            chosen.append(choose_named(source, name, argument))
        except Missing as error:
            problems.append(str(error))
    if not chosen and not problems:
        raise ValueError(f"{argument} must name at least one column")
    try:
        item = _item_column(source, item_column, chosen)
    except Missing as error:
        problems.append(str(error))
    if problems:
        raise missing_error(source, problems)
    arrays = source.read([] if item is None else [item], plain=chosen)
    read = {name: as_plain(column) for name, column in zip(chosen, arrays[0 if item is None else 1 :], strict=True)}
    if item is None:
        return ItemTable(None, read)
    ids = id_values(arrays[0], f"item_column {item!r}", source, source.text_ids, item_ids)
    distinct = ids.unique()
    if unique and len(distinct) < len(ids):
        counts = ids.value_counts()
        twice = next(entry["values"] for entry in counts if entry["counts"].as_py() > 1)
        raise DataError(
            f"item_column {item!r} of {source.what} must have each id once, got {len(ids)} rows of {len(distinct)} "
            f"ids, {twice.as_py()!r} more than once"
        )
    return ItemTable(ids, read)


def _item_column(source: Source, column: str | None, taken: Sequence[Hashable]) -> Hashable | None:
    if column is not None:
        return choose_named(source, column, "item_column")
    left = [name for name in source.names if name not in taken]
    few = Source(source.what, left, source.read)
    exact = [name for name in left if plain_name(name) == "id"]
    try:
        return choose_item(few, None)
    except Missing as error:
        if len(exact) == 1:
            return exact[0]
        if "must say which" in str(error):
            raise
        return None


def as_texts(table: ItemTable, what: str) -> list[str]:
    """The columns joined with ". " where there are several; what is missing counts as empty.

    Raises
    ------
    DataError
        A column does not hold text.
    """
    columns = []
    for name, column in table.columns.items():
        if not is_string(column.type) and column.null_count < len(column):
            raise DataError(f"{what}: column {name!r} must hold text, got {column.type}")
        columns.append([(value or "").strip() for value in column.to_pylist()])
    return [". ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]


def id_values(column: Column, where: str, source: Source, text: bool, known: Ids | None) -> pa.Array:
    """The ids of a column in each row, in the kind they have; see :func:`.integers_if_all`."""
    column = checked_ids(column, where, source)
    ids = as_plain(column)
    if text and (known is None or known.kind == "integer"):
        ids = integers_if_all(ids)
    return ids
