"""What commands are given: files of interactions, saved models, ids."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, read_interactions
from wals_gpu.errors import DataError
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import make_objective

__all__ = ["load_model", "model_settings", "new_model", "option_names", "parse_ids", "read_data", "read_lines"]


#: Arguments of as_interactions and the options of the command line that are passed on to them.
_OPTIONS = (
    "user_column", "item_column", "value_column", "time_column", "columns", "encoding", "min_value",
    "min_user_interactions", "min_item_interactions", "half_life",
)  # fmt: skip
#: What has no meaning for data whose users and items are those of a model, or of other data.
_CHOOSING = ("min_user_interactions", "min_item_interactions", "half_life")


def read_data(
    args: argparse.Namespace, path: str | os.PathLike[str] | Sequence[str] | None = None, **options: Any
) -> Interactions:
    """The interactions of the command, or of other files with the same columns.

    `options` go before those of the command line. Errors and warnings name the options of the command line.
    """
    given = {name: value for name in _OPTIONS if (value := getattr(args, name, None)) is not None}
    if getattr(args, "no_values", False):
        if "value_column" in given:
            raise ValueError("--no-values and --value-column exclude each other")
        given["value_column"] = False
    given |= {"dtype": getattr(args, "dtype", "float32")}
    # Ratings are what this objective is for.
    given["warn_ratings"] = getattr(args, "objective", None) != "explicit"
    if options.get("user_ids") is not None or options.get("item_ids") is not None:
        given = {name: value for name, value in given.items() if name not in _CHOOSING}
    given |= options
    if given.get("time_column") is None and "time" not in given.get("columns", ()) and "half_life" in given:
        raise ValueError("--half-life needs --time-column: how old each interaction is")
    with option_names():
        return read_interactions(args.interactions if path is None else path, **given)


# "columns" and "encoding" are also words.
_ARGUMENT = re.compile(
    rf"\b({'|'.join(name for name in _OPTIONS if '_' in name)})\b(=)?|\b(columns|encoding)(=|(?= must| is for| can))"
)


def _in_options(text: str) -> str:
    """A message with the options of the command line in place of the arguments behind them."""
    text = text.replace("value_column=False", "--no-values")
    text = text.replace("columns=['user', 'item', 'value', 'time']", "--columns user,item,value,time")

    def option(found: re.Match[str]) -> str:
        equals = " " if "=" in found[0] else ""
        return f"--{(found[1] or found[3]).replace('_', '-')}{equals}"

    return _ARGUMENT.sub(option, text)


@contextlib.contextmanager
def option_names() -> Iterator[None]:
    """Errors and warnings from inside speak of options of the command line: ``--user-column`` for user_column."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (DataError, ValueError, TypeError) as error:
            if type(error) not in (DataError, ValueError, TypeError):
                raise  # made of something else than a message
            raise type(error)(_in_options(str(error))) from error
    for one in caught:
        warnings.warn_explicit(_in_options(str(one.message)), one.category, one.filename, one.lineno)


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of a new model that have one default, whatever the model is."""
    return {
        "solver": args.solver,
        "over_relaxation": args.over_relaxation,
        "dtype": args.dtype,
        "device": args.device,
        "num_threads": args.threads,
        "random_state": args.seed,
    }


def new_model(args: argparse.Namespace) -> WALS:
    """A model of interactions alone."""
    chosen = {name: getattr(args, name) for name in ("factors", "iterations") if getattr(args, name) is not None}
    objective = make_objective(args.objective or "wals", **dict(args.set))
    return WALS(objective=objective, **chosen, **model_settings(args))


def load_model(args: argparse.Namespace) -> WALS:
    """The model of the command, on its device."""
    return WALS.load(args.model, device=args.device, num_threads=args.threads)


def parse_ids(texts: Sequence[str], ids: Ids | None, count: int, side: str) -> Any:
    """Ids as the model has them, from the text of the command line; an unknown one is an error."""
    if ids is not None and ids.kind == "string":
        values = np.array(texts, dtype=object)
    else:
        values = np.array([_whole_number(text, side, ids is not None) for text in texts])
    if ids is not None:
        ids.index_of(values)
    elif (outside := values[(values < 0) | (values >= count)]).size:
        raise ValueError(f"{side} {outside[0]} is not a row number in [0, {count})")
    return values


def _whole_number(text: str, side: str, is_id: bool) -> int:
    try:
        return int(text)
    except ValueError:
        what = f"{side} ids" if is_id else "row numbers, because it was fitted on a matrix"
        raise ValueError(f"{side} {text!r} is not an integer; this model has {'integer ' * is_id}{what}") from None


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file in UTF-8, or of standard input for "-", without empty ones and byte order marks."""
    with contextlib.nullcontext(sys.stdin) if str(path) == "-" else open(path, encoding="utf-8-sig") as file:
        try:
            return [line.strip().removeprefix("\ufeff") for line in file if line.strip()]
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from error
