"""Tables of features: rows of numbers, and the ids that these are found by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wals_gpu.checks import as_list, index_of_ids, refuse_reordered
from wals_gpu.data.columns import open_source
from wals_gpu.data.encode import as_plain, plain_type
from wals_gpu.data.ids import is_string
from wals_gpu.data.names import id_names
from wals_gpu.data.source import Source, listing
from wals_gpu.errors import DataError

__all__ = ["feature_rows", "has_columns", "refuse_id_column"]

_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


def feature_rows(name: str, source: Any, ids: Any = None) -> tuple[Any, Any]:
    """Ids and features of rows, in any form.

    Parameters
    ----------
    name : str
        Of the argument, for errors.
    source : (n, E) array, mapping of id to (E,) vector, DataFrame, Series, or Arrow table
        A table has its ids in the column that is named like ``item_id``, ``userId`` or ``id``; one of pandas without
        such a column has them in its index, unless that counts the rows. Features are the other columns, or the one
        that holds lists of numbers.
    ids : sequence of n ids, optional
        Of the rows, where they are given beside.

    Returns
    -------
    ids : sequence of n, or None
        None: without ids.
    features : (n, E) array, or what an array can be made of

    Raises
    ------
    DataError
        A table has several columns of ids, or one that holds neither ids nor numbers.
    ValueError
        `ids` are not those that the features have, or these in another order.
    """
    if isinstance(source, Mapping):
        if ids is not None:
            raise ValueError(f"ids must not be given with a mapping of id to vector as {name}")
        lengths = {np.shape(vector) for vector in source.values()}
        if len(lengths) != 1 or len(next(iter(lengths))) != 1:
            raise DataError(f"{name} must be a vector (E,) for every id, all of one length; got shapes {lengths}")
        return list(source), np.array(list(source.values()))
    index = index_of_ids(source)
    if has_columns(source):
        table = open_source(source)
        names = list(source.columns) if hasattr(source, "iloc") else list(table.names)
        column = _id_column(name, table, names)
        features = [one for one in names if one != column]
        if column is not None:
            own = as_plain(plain_type(table.read([column])[0]))
            # An index of numbers without a name is what a selection of rows leaves.
            is_own = index is not None and (index.name is not None or index.dtype.kind not in "iu")
            for given, where in ((index if is_own else None, "index"), (ids, "ids")):
                if given is not None and as_list(given) != own.to_pylist():
                    raise ValueError(f"{where} of {name} must be what its column {column!r} has; leave one of them out")
            return own if ids is None else ids, _numbers(name, table, features)
        if len(features) == 1 and _holds_lists(table.first(features[0])):
            source = _numbers(name, table, features)
    if ids is not None and index is not None:
        refuse_reordered(name, ids, index)
    return index if ids is None else ids, source if index is None else np.asarray(source)


def refuse_id_column(name: str, source: Any, ids: str) -> None:
    """ValueError where what is taken in the order of some ids has a column of its own, which would be a feature."""
    if has_columns(source) and (column := _id_column(name, table := open_source(source), table.names)) is not None:
        raise ValueError(f"{name} must be in the order of {ids} and without ids, got a table with a column {column!r}")


def has_columns(source: Any) -> bool:
    """Whether it has named columns; of the class, as a lazy frame has to work out those of its own."""
    return hasattr(type(source), "columns")


def _id_column(name: str, table: Source, names: Sequence[Hashable]) -> Hashable | None:
    """The column of ids: named as such, or as users or items are and with another value in each row."""
    sure, doubtful = id_names(names)
    found = sure or [one for one in doubtful if _are_distinct(as_plain(plain_type(table.read([one])[0])))]
    if len(found) > 1:
        raise DataError(f"{name} must have one column of ids, got {listing(found)}: leave out what is none")
    return found[0] if found else None


def _are_distinct(column: pa.Array) -> bool:
    of_ids = is_string(column.type) or pa.types.is_integer(column.type)
    return of_ids and len(column) > 1 and pc.count_distinct(column).as_py() == len(column)


def _holds_lists(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], (list, tuple, np.ndarray))


def _numbers(name: str, table: Source, columns: Sequence[Hashable]) -> Any:
    """The columns side by side, or the one that holds lists."""
    if not columns:
        raise DataError(f"{name} must have columns of numbers beside that of ids, got none")
    read = [as_plain(plain_type(column)) for column in table.read([], plain=columns)]
    if len(read) == 1 and pa.types.is_nested(read[0].type) and not pa.types.is_struct(read[0].type):
        lengths = pc.list_value_length(read[0])
        if lengths.null_count or pc.count_distinct(lengths).as_py() > 1:
            raise DataError(f"{name} must have a vector of one length in each row of column {columns[0]!r}")
        flat = read[0].flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(read[0]), -1)
    for column, values in zip(columns, read, strict=True):
        if not any(is_kind(values.type) for is_kind in _NUMBERS):
            raise DataError(
                f"{name} must have numbers in every column but that of ids, got {values.type} in {column!r}"
            )
    return np.column_stack([values.to_numpy(zero_copy_only=False) for values in read])
