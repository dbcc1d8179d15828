"""Files of items to recommend and not to recommend, as the command line takes them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.cli.inputs import read_lines
from wals_gpu.cli.output import say
from wals_gpu.data.interactions import read_interactions
from wals_gpu.errors import ParameterWarning

if TYPE_CHECKING:
    import argparse

    from wals_gpu.data.ids import Ids
    from wals_gpu.model.wals import WALS

__all__ = ["item_lists", "user_lists"]


def item_lists(args: argparse.Namespace, model: WALS) -> dict[str, Any]:
    """``deny_items=`` and ``allow_items=`` from text files with an item id per line.

    Ids that the model does not know are left out, with a note: a catalogue has items that nobody touched yet, and they
    cannot be recommended in any case.
    """
    n_items = model.n_items
    lists: dict[str, Any] = {}
    for name in ("deny_items", "allow_items"):
        path = getattr(args, name)
        if path is not None:
            option = f"--{name.replace('_', '-')}"
            ids = _ids_of(read_lines(path), model.item_ids, option)
            columns = _columns(ids, model.item_ids, n_items, option)
            _warn_unknown(option, "items", columns)
            columns = columns[columns >= 0]
            lists[name] = columns if model.item_ids is None else model.item_ids.take(columns)
    return lists


def user_lists(args: argparse.Namespace, model: WALS, users: Any) -> dict[str, csr_matrix]:
    """``deny=`` and ``allow=`` of `users` from tables with a user and an item column.

    A user that the table does not name has an empty list: nothing is denied to them, or nothing allowed.
    """
    lists = {}
    n_users, n_items = model.n_users, model.n_items
    rows = users if model.user_ids is None else model.user_ids.index_of(users)
    for name in ("deny", "allow"):
        path = getattr(args, name)
        if path is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ParameterWarning)  # a pair twice is as good as once
                data = read_interactions(
                    path, user_column=args.user_column, item_column=args.item_column, value_column=False
                )
            assert data.user_ids is not None and data.item_ids is not None  # as of every table
            user_rows = _columns(data.user_ids.ids, model.user_ids, n_users, f"--{name}")
            item_columns = _columns(data.item_ids.ids, model.item_ids, n_items, f"--{name}")
            _warn_unknown(f"--{name}", "users", user_rows)
            _warn_unknown(f"--{name}", "items", item_columns)
            pairs = data.matrix.tocoo()
            row, column = user_rows[pairs.row], item_columns[pairs.col]
            both = (row >= 0) & (column >= 0)
            of_all = csr_matrix((np.ones(both.sum(), bool), (row[both], column[both])), shape=(n_users, n_items))
            lists[name] = of_all[rows]
    return lists


def _ids_of(texts: list[str], ids: Ids | None, option: str) -> NDArray[Any]:
    if ids is not None and ids.kind == "string":
        return np.array(texts, dtype=object)
    try:
        return np.array([int(text) for text in texts], np.int64)
    except (ValueError, OverflowError) as error:
        kind = "row numbers" if ids is None else "integers"
        raise ValueError(f"{option}: this model's item ids are {kind}: {error}") from None


def _columns(values: NDArray[Any], ids: Ids | None, n: int, option: str) -> NDArray[np.int64]:
    """Row numbers of ids, -1 where the model has no such id."""
    if ids is not None:
        try:
            return np.asarray(ids.find(values))
        except TypeError as error:
            raise TypeError(f"{option}: {error}") from None
    if values.dtype.kind not in "iu":
        raise TypeError(f"{option}: the model was fitted on a matrix, so ids must be row numbers, got {values[0]!r}")
    return np.where((values >= 0) & (values < n), values, -1).astype(np.int64)


def _warn_unknown(option: str, things: str, rows: NDArray[np.int64]) -> None:
    if unknown := int((rows < 0).sum()):
        say(f"{option}: {unknown:,} of {len(rows):,} {things} are unknown to the model and left out")
