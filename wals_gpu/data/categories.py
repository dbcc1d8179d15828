"""Categories of items, such as their genre or maker: one for each, or none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.checks import as_list
from wals_gpu.data.columns import open_source
from wals_gpu.data.ids import Ids, is_string
from wals_gpu.data.items import read_items
from wals_gpu.data.names import plain_name
from wals_gpu.data.titles import Titles, is_missing, refuse_several
from wals_gpu.errors import DataError

__all__ = ["Categories"]

#: What a column of categories is usually called; the first one that is there is taken.
_NAMES = ("category", "categories", "genre", "genres", "kategorie", "categorie", "categoria", "genero")


@dataclass(frozen=True, eq=False)
class Categories:
    """The category of each item of a model.

    Parameters
    ----------
    codes : (I,) int32
        Its place in `names`; -1 of an item without one.
    names : list of str
        Each once.
    """

    codes: NDArray[np.int32]
    names: list[str]

    @classmethod
    def read(
        cls, source: Any, n_items: int, item_ids: Ids | None, column: str | None = None, item_column: str | None = None
    ) -> Categories:
        """Categories in any form.

        Parameters
        ----------
        source : (I,) list or array of labels, mapping of id to label, Series, table, path, or Categories
            A list has a label for each of the I items, in the order of the model's ids (of the columns of the matrix).
            A pandas Series has the ids in its index. A table is a pandas or polars DataFrame, an Arrow table, or the
            path of a Parquet or CSV file, with a row for each item. Labels are compared as texts; None, NaN and ""
            are no category. Ids that the model does not have are ignored.
        n_items : int
            I.
        item_ids : Ids, optional
            Of the model; None: column numbers.
        column, item_column : str, optional
            Of a table. Default: the one that is named like ``category`` or ``genre``, and like ``item_id`` or ``id``.

        Returns
        -------
        Categories

        Raises
        ------
        DataError
            No item of the model has a category, a column is missing, or the file cannot be read.
        TypeError, ValueError
            The source is of none of these kinds, or a list has another length than I.
        FileNotFoundError
        """
        if isinstance(source, Categories):
            if len(source.codes) != n_items:
                raise ValueError(f"categories must be of the model's {n_items} items, got {len(source.codes)}")
            return source
        labels = _labels(source, n_items, item_ids, column, item_column)
        refuse_several("categories must be one label for each item", labels)
        texts = pa.array(["" if _is_nothing(label) else _text(label) for label in labels], pa.large_string())
        coded = texts.dictionary_encode()
        names = coded.dictionary.to_pylist()
        codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        if "" in names:  # no category
            nothing = names.index("")
            names.pop(nothing)
            codes = np.where(codes == nothing, -1, codes - (codes > nothing)).astype(np.int32)
        if not names:
            such = "" if item_ids is None or not len(item_ids) else f", such as {item_ids[0]!r:.60}"
            raise DataError(f"categories has none of any of the model's {n_items} items{such}")
        return cls(codes, names)


def _labels(source: Any, n_items: int, item_ids: Ids | None, column: str | None, item_column: str | None) -> list[Any]:
    """A label, or nothing, for each of the model's items."""
    is_table = isinstance(source, (str, os.PathLike)) or hasattr(source, "__arrow_c_stream__")
    if type(source).__module__.partition(".")[0] in ("polars", "pyarrow") and not hasattr(type(source), "columns"):
        source, is_table = as_list(source), False  # one column
    is_series = type(source).__name__ == "Series" and hasattr(source, "index") and hasattr(source, "tolist")
    if not is_table or is_series:
        if column is not None:
            raise ValueError("category_column has a meaning only with a table of categories")
        if isinstance(source, Mapping):
            return _of_model(list(source.keys()), list(source.values()), n_items, item_ids)
        if is_series:
            return _of_model(source.index.tolist(), source.tolist(), n_items, item_ids)
        if isinstance(source, Sequence) or (isinstance(source, np.ndarray) and source.ndim == 1):
            if len(source) != n_items:
                raise ValueError(f"categories must have a label for each of {n_items} items, got {len(source)}")
            return list(source)
    try:
        table = read_items(source, column or _usual(source), item_column, argument="category_column", unique=False)
    except TypeError as error:
        if "interactions must be" not in str(error):
            raise
        raise TypeError(
            "categories must be a label for each item, a mapping of item id to label, a table, or the path of a "
            f"Parquet or CSV file; got {type(source).__module__}.{type(source).__name__}"
        ) from None
    if table.ids is None:
        raise DataError("categories must have a column of item ids that is named like 'item_id' or 'id'")
    ((name, labels),) = table.columns.items()
    numbers = pc.drop_null(labels) if pa.types.is_floating(labels.type) else None
    if numbers is not None and pc.all(pc.equal(numbers, pc.floor(numbers)), min_count=0).as_py():
        labels = labels.cast(pa.int64(), safe=False)  # integers, which pandas cannot hold beside what is missing
    if not (is_string(labels.type) or pa.types.is_integer(labels.type) or labels.null_count == len(labels)):
        raise DataError(f"categories must be texts or integers, got {labels.type} in column {name!r}")
    return _of_model(table.ids.to_pylist(), labels.to_pylist(), n_items, item_ids)


def _usual(source: Any) -> Any:
    """The column with the usual name that comes first in the list of these."""
    names = list(open_source(source).names)
    plain = [plain_name(name) for name in names]
    for usual in _NAMES:
        if usual in plain:
            return names[plain.index(usual)]
    listed = ", ".join(map(repr, names[:10]))
    raise DataError(f"category_column must be given, since no column has a usual name such as 'category': {listed}")


def _of_model(ids: Sequence[Any], labels: Sequence[Any], n_items: int, item_ids: Ids | None) -> list[Any]:
    """The labels of the model's items, found by id as titles are."""
    refuse_several("categories must be one label for each item", labels)
    texts = [None if _is_nothing(label) else _text(label) for label in labels]
    names = [str(one) for one in ids]
    first: dict[str, str | None] = {}
    for one, text in zip(names, texts, strict=True):
        if first.setdefault(one, text) != text:
            raise DataError(
                f"categories must be one label for each item, got {first[one]!r} and {text!r} for {one!r:.60}"
            )
    found = Titles(pa.array(names, pa.large_string()), pa.array(texts, pa.large_string()))
    own = np.arange(n_items) if item_ids is None else item_ids.ids
    kind = pa.large_string() if item_ids is not None and item_ids.kind == "string" else None
    of_model: list[Any] = found.of(pa.array(own, kind)).to_pylist()
    return of_model


def _text(label: Any) -> str:
    """A label; whole numbers, which are floats beside a missing one, as integers are written."""
    return str(int(label)) if isinstance(label, (float, np.floating)) and float(label).is_integer() else str(label)


def _is_nothing(label: Any) -> bool:
    return is_missing(label) or label == ""
