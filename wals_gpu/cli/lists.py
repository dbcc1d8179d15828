"""Files of items to recommend and not to recommend, as the command line takes them."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.cli.inputs import refuse_model
from wals_gpu.cli.lines import ids_of_lines, read_lines
from wals_gpu.cli.output import say
from wals_gpu.data.interactions import read_interactions
from wals_gpu.data.names import item_names
from wals_gpu.errors import EmptyTableError, ParameterWarning

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
            ids = ids_of_lines(read_lines(path, option), model.item_ids, "item", option, item_names(), all_fit=True)
            columns = _columns(ids, model.item_ids, n_items, option)
            _warn_unknown(option, "items", columns)
            columns = columns[columns >= 0]
            lists[name] = columns if model.item_ids is None else model.item_ids.take(columns)
    return lists


def user_lists(args: argparse.Namespace, model: WALS, users: Any) -> dict[str, csr_matrix]:
    """``deny=`` and ``allow=`` of `users` from tables with a user and an item column.

    A user that the table does not name has an empty list: nothing is denied to them, or nothing allowed. The users may
    be unknown to the model.
    """
    lists = {}
    n_users, n_items = model.n_users, model.n_items
    for name in ("deny", "allow"):
        path = getattr(args, name)
        if path is not None:
            refuse_model(path, f"a table of pairs, for --{name}")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ParameterWarning)  # a pair twice is as good as once
                named = {"user_column": args.user_column, "item_column": args.item_column, "value_column": False}
                try:
                    data = read_interactions(path, **named, like=model.columns_)
                except EmptyTableError:  # a night in which nothing was returned
                    say(f"--{name}: {path} has no rows, so nothing is {'denied' if name == 'deny' else 'allowed'}")
                    lists[name] = csr_matrix((len(users), n_items), dtype=bool)
                    continue
            assert data.user_ids is not None and data.item_ids is not None  # as of every table
            user_rows = _columns(data.user_ids.ids, model.user_ids, n_users, f"--{name}")
            columns = _columns(data.item_ids.ids, model.item_ids, n_items, f"--{name}")
            rows_of_users = _positions(np.asarray(users), data.user_ids)  # the row of each user in the table, or -1
            user_rows[rows_of_users[rows_of_users >= 0]] = 0  # known at least here
            _warn_unknown(f"--{name}", "users", user_rows)
            _warn_unknown(f"--{name}", "items", columns)
            pairs = data.matrix.tocoo()
            known = columns[pairs.col] >= 0
            row, column = pairs.row[known], columns[pairs.col[known]]
            # The last row is empty, and is the one of -1
            of_table = csr_matrix((np.ones(len(row), bool), (row, column)), shape=(data.matrix.shape[0] + 1, n_items))
            lists[name] = of_table[rows_of_users]
    return lists


def _columns(values: NDArray[Any], ids: Ids | None, n: int, option: str) -> NDArray[np.int64]:
    """Row numbers of ids, -1 where the model has no such id."""
    if ids is not None:
        found = _positions(values, ids)
        if (ids.kind == "integer") != (values.dtype.kind in "iu") and (found < 0).all():
            raise TypeError(f"{option}: {ids.side} ids are {ids.kind}s, got {values[0]!r}")
        return found
    if values.dtype.kind not in "iu":
        raise TypeError(f"{option}: the model was fitted on a matrix, so ids must be row numbers, got {values[0]!r}")
    return np.where((values >= 0) & (values < n), values, -1).astype(np.int64)


def _positions(values: NDArray[Any], ids: Ids) -> NDArray[np.int64]:
    """Positions of ids, -1 for unknown ones. Ids of a few rows of text may all look like integers, or one may not."""
    if ids.kind == "string" and values.dtype.kind in "iu":
        values = values.astype(str).astype(object)
    if ids.kind == "string" or values.dtype.kind in "iu":
        return np.asarray(ids.find(values))
    fits = np.array([re.fullmatch("0|-?[1-9][0-9]{0,19}", str(value)) is not None for value in values], bool)
    found = np.full(len(values), -1, np.int64)
    found[fits] = ids.find(np.array([int(value) for value in values[fits]], object))
    return found


def _warn_unknown(option: str, things: str, rows: NDArray[np.int64]) -> None:
    if unknown := int((rows < 0).sum()):
        say(f"{option}: {unknown:,} of {len(rows):,} {things} are unknown to the model and left out")
