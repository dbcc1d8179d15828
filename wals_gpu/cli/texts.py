"""Options of item texts, and the model that has them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from wals_gpu.cli.options import number
from wals_gpu.cli.output import say
from wals_gpu.data.columns import open_source
from wals_gpu.data.source import TextOptions
from wals_gpu.errors import DataError
from wals_gpu.model.wals import HYBRID_PRIOR, WALS

__all__ = ["add_texts", "check_texts", "hybrid", "read_texts", "words_of_texts"]

#: Options that mean something only beside --items and --encoder.
_BESIDE = ("text", "cache", "strength", "relative_strength")


def add_texts(parser: argparse.ArgumentParser, *, is_searched: bool = False) -> None:
    """--items, --encoder and what goes with them; `is_searched`: but the strengths, which a search chooses."""
    texts = parser.add_argument_group("item texts: items nobody has yet are recommended too")
    texts.add_argument("--items", metavar="FILE", type=Path, help="table of items with their texts")
    texts.add_argument("--encoder", metavar="NAME", help="folder of a transformers model, or its name on the hub")
    texts.add_argument(
        "--text", metavar="COLUMNS", help="of the table, joined where several (default: named like text, else title)"
    )
    texts.add_argument(
        "--cache", metavar="DIR", type=Path, help="keep the texts' vectors here: the next fit need not compute them"
    )
    if is_searched:
        return
    texts.add_argument(
        "--strength",
        type=number,
        help="what a text is worth, in the units of the objective, in place of --relative-strength",
    )
    texts.add_argument(
        "--relative-strength",
        metavar="C",
        type=number,
        help=f"what a text is worth, as a multiple of its item's ridge (default {HYBRID_PRIOR['relative_strength']:g}; "
        "0: only to items that nobody has)",
    )


def check_texts(args: argparse.Namespace) -> None:
    """What can be refused before any work."""
    if (args.items is None) != (args.encoder is None):
        raise ValueError(
            "--items and --encoder belong together: a table of items, and what turns its texts into vectors"
        )
    names = [name for name in _BESIDE if name in args]
    if args.encoder is None and any(getattr(args, name) is not None for name in names):
        *others, last = (f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"{', '.join(others)} and {last} need --items and --encoder")
    if args.encoder is None and args.settings.get("item_prior") is not None:
        raise ValueError(f"--settings {args.config} has settings of item texts, which need --items and --encoder")
    if _given(args).keys() >= {"strength", "relative_strength"}:
        raise ValueError("--strength and --relative-strength must not both be given: one is absolute, one a multiple")


def _given(args: argparse.Namespace) -> dict[str, float]:
    """The strengths that options give."""
    names = ("strength", "relative_strength")
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def words_of_texts(args: argparse.Namespace) -> list[str]:
    """The options again, for another command."""
    words = []
    for name in ("items", "encoder", "text", "cache"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    return words


def read_texts(args: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """Ids and texts of --items."""
    from wals_gpu.text.items import read_item_texts

    columns, item_column = None if args.text is None else args.text.split(","), args.item_column
    if item_column is not None and args.items.suffix != ".txt":
        names = open_source(args.items, TextOptions(encoding=args.encoding)).names
        item_column = item_column if item_column in names else None  # it is that of the interactions
    ids, texts = read_item_texts(args.items, text_columns=columns, item_column=item_column, encoding=args.encoding)
    if ids is None:
        raise DataError(
            f"{args.items} must have a column of item ids, named like item_id, or as --item-column names it in the "
            "interactions"
        )
    return ids.to_pylist(), texts


def hybrid(args: argparse.Namespace, ids: list[Any], items: Any, *, is_encoded: bool = False) -> WALS:
    """A model with the texts of items, or their vectors, in the recommended configuration where nothing is said."""
    given = _given(args)
    settings = dict(args.settings)
    of_file = {name: value for name, value in (settings.pop("item_prior", None) or {}).items() if value is not None}
    if given:  # the one that an option gives is in the place of either
        of_file = {name: value for name, value in of_file.items() if name not in ("strength", "relative_strength")}
    started = time.perf_counter()
    model = WALS.hybrid(
        items,
        None if is_encoded else args.encoder,
        ids=ids,
        cache_dir=None if is_encoded else args.cache,
        show_progress=not args.quiet,
        prior=of_file | given,
        **settings,
    )
    if not (args.quiet or is_encoded) and args.cache is None:
        seconds = time.perf_counter() - started
        say(f"{len(items):,} texts encoded in {seconds:.1f} s; with --cache DIR, the next fit would have their vectors")
    return model
