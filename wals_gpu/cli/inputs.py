"""What commands are given: files of interactions, saved models, ids."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, read_interactions
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import make_objective

__all__ = ["load_model", "model_settings", "new_model", "parse_ids", "read_data", "read_lines"]


def read_data(args: argparse.Namespace, path: str | None = None, **options: Any) -> Interactions:
    """The interactions of the command, or of another file with the same columns."""
    columns = {"user_column": args.user_column, "item_column": args.item_column, "value_column": args.value_column}
    return read_interactions(path or args.interactions, **({"dtype": args.dtype} | columns | options))


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


def read_lines(path: str) -> list[str]:
    """The lines of a text file, or of standard input for "-", without empty ones."""
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]
