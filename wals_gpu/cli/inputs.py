"""What commands are given: files of interactions, and models, new and saved."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wals_gpu.checks import warn
from wals_gpu.data.columns import open_source
from wals_gpu.data.files import real_folder
from wals_gpu.data.interactions import Interactions, read_interactions
from wals_gpu.data.titles import Titles
from wals_gpu.model.wals import WALS

__all__ = [
    "check_model",
    "load_model",
    "new_model",
    "read_data",
    "read_titles",
    "reading_options",
    "refuse_model",
    "words_of_reading",
]

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

    `options` go before those of the command line.
    """
    given = reading_options(args, **options)
    source = args.interactions if path is None else path
    for one in [source] if isinstance(source, (str, os.PathLike)) else source:
        refuse_model(one, "a file of interactions")
    return read_interactions(source, **given)


def reading_options(args: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """What :func:`wals_gpu.as_interactions` is to be given; `options` go before those of the command line."""
    given = {name: value for name in _OPTIONS if (value := getattr(args, name, None)) is not None}
    if getattr(args, "no_values", False):
        if "value_column" in given:
            raise ValueError("--no-values and --value-column exclude each other")
        given["value_column"] = False
    given |= {"dtype": getattr(args, "dtype", None) or "float32"}
    # Ratings are what this objective is for.
    given["warn_ratings"] = getattr(args, "objective", None) != "explicit"
    if options.get("user_ids") is not None or options.get("item_ids") is not None:
        given = {name: value for name, value in given.items() if name not in _CHOOSING}
    given |= options
    if given.get("time_column") is None and "time" not in given.get("columns", ()) and "half_life" in given:
        raise ValueError("--half-life needs --time-column: how old each interaction is")
    return given


def words_of_reading(args: argparse.Namespace) -> list[str]:
    """The options that say how interactions are read, as they may be typed for another command."""
    words = ["--no-values"] if args.no_values else []
    for name in _OPTIONS:
        value = getattr(args, name)
        if value is not None:
            words += [args.parser.name_of(name), ",".join(value) if name == "columns" else str(value)]
    return words


def refuse_model(path: Any, wanted: str) -> None:
    """A folder of a model is none of data, though it can be taken for one."""
    if path != "" and (real_folder(path) / "model.json").is_file():
        raise ValueError(f"{path} is a saved model; wanted is {wanted}")


def new_model(args: argparse.Namespace) -> WALS:
    """A model of interactions alone."""
    if args.settings.get("item_prior") is not None and getattr(args, "encoder", None) is None:
        warn(f"--settings {args.config} has settings of item texts, and this is without texts")
    return WALS(**{name: value for name, value in args.settings.items() if name != "item_prior"})


def load_model(
    args: argparse.Namespace, path: Path | None = None, option: str = "MODEL", users: slice | None = None
) -> WALS:
    """The model of the command, or another one, on its device; some of its users, where it lies in several parts."""
    path = args.model if path is None else path
    check_model(path, option)
    return WALS.load(path, device=args.device, num_threads=args.threads, users=users)


def check_model(path: Path, option: str) -> None:
    """Refuse a file that is none of a model."""
    if path.is_file() and real_folder(path) == path:
        where = (
            f"; {path} is a file in {path.parent}"
            if path.name == "model.json"
            else f"; {path} is not a model folder, but a file"
        )
        raise ValueError(f"{option} must be a folder that 'wals-gpu fit' saved{where}")


def read_titles(args: argparse.Namespace) -> Titles | None:
    """The titles of --titles, None without one."""
    if args.titles is None:
        if args.title_column is not None:
            raise ValueError("--title-column needs --titles FILE")
        return None
    refuse_model(args.titles, "a table of items, for --titles")
    item_column = args.item_column
    if getattr(args, "deny", None) or getattr(
        args, "allow", None
    ):  # it is that of those, and may have another name here
        item_column = item_column if item_column in open_source(args.titles).names else None
    return Titles.read(args.titles, args.title_column, item_column)
