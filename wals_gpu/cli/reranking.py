"""Options that put lists into another order, as commands that recommend take them; docs/reranking.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from wals_gpu.checks import number as check_number
from wals_gpu.cli.inputs import refuse_model
from wals_gpu.cli.options import number, positive
from wals_gpu.data.categories import Categories
from wals_gpu.data.columns import open_source
from wals_gpu.data.ids import Ids
from wals_gpu.retrieval.quotas import Quotas
from wals_gpu.retrieval.rerank import DPP, MMR

__all__ = ["add_reranking", "check_reranking", "given_reranking", "reranking_options"]

#: Options of the group, by what they are called in what is parsed.
_DESTS = ("diversity", "diversity_method", "pool", "quota", "categories", "category_column", "popularity_penalty")


def add_reranking(parser: argparse.ArgumentParser) -> None:
    """--diversity, --quota and what belongs to them."""
    group = parser.add_argument_group("re-ranking: lists of different, or less popular, items")
    group.add_argument(
        "--diversity", metavar="W", type=number,
        help="from 0 (the order of the scores) to 1: how much items of a list are to differ",
    )  # fmt: skip
    group.add_argument(
        "--diversity-method", choices=["mmr", "dpp"],
        help="mmr (default): from the most similar item before; dpp: from all of them together",
    )  # fmt: skip
    group.add_argument(
        "--pool", metavar="N", type=positive, help="choose among the N best (default 10 K, at least 100)"
    )
    group.add_argument(
        "--quota", metavar="[NAME=]N", type=_quota, action="append",
        help="at most N items of each category, or of one; NAME=N:M at least N and at most M of it; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--categories", metavar="FILE", type=Path, help="table of items with their categories (default: --titles)"
    )
    group.add_argument("--category-column", metavar="COLUMN", help="default: the one named like category or genre")
    group.add_argument(
        "--popularity-penalty", metavar="X", type=number, help="rank popular items lower; 0 (default) is not at all"
    )


def given_reranking(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, for JSON."""
    given = {name: value for name in _DESTS if (value := getattr(args, name)) is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def check_reranking(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before any file is read."""
    for name, needed, needs in (
        ("diversity_method", args.diversity, "--diversity W"),
        ("pool", args.diversity, "--diversity W"),
        ("categories", args.quota, "--quota N"),
        ("category_column", args.quota, "--quota N"),
    ):
        if getattr(args, name) is not None and needed is None:
            raise ValueError(f"--{name.replace('_', '-')} needs {needs}")
    if args.diversity is not None and not 0 <= args.diversity <= 1:
        raise ValueError(f"--diversity must be a number from 0 to 1, got {args.diversity:g}")
    if args.popularity_penalty is not None:
        check_number("--popularity-penalty", args.popularity_penalty)
    names = [name for name, _ in args.quota or ()]
    if None in names and len(names) > 1:
        raise ValueError("--quota N, which is for every category, cannot stand beside another --quota")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--quota has {repeated[0]!r} twice")
    if names and args.categories is None and args.titles is None:
        raise ValueError("--quota needs --categories FILE, or --titles FILE: a table of items with their categories")


def reranking_options(args: argparse.Namespace, k: int, n_items: int, item_ids: Ids | None) -> dict[str, Any]:
    """What :meth:`wals_gpu.WALS.recommend` is to be given for lists of k; after :func:`check_reranking`."""
    options: dict[str, Any] = {}
    if args.diversity is not None:
        kind = DPP if args.diversity_method == "dpp" else MMR
        options["diversity"] = kind(args.diversity, pool=args.pool)
    if args.popularity_penalty is not None:
        options["popularity_penalty"] = args.popularity_penalty
    if args.quota is None:
        return options
    options["quotas"] = args.quota[0][1] if args.quota[0][0] is None else dict(args.quota)
    table = args.titles if args.categories is None else args.categories
    refuse_model(table, "a table of items with their categories")
    item_column = args.item_column
    if item_column is not None and item_column not in open_source(table).names:  # it is that of other files
        item_column = None
    options["categories"] = Categories.read(table, n_items, item_ids, args.category_column, item_column)
    Quotas.of(options["quotas"], options["categories"]).check(k)
    return options


def _quota(text: str) -> tuple[str | None, Any]:
    """N, NAME=N or NAME=N:M."""
    name, equals, bounds = text.rpartition("=")
    low, colon, high = bounds.partition(":")
    if not low.isdigit() or (colon and not high.isdigit()) or (colon and not equals) or (equals and not name):
        raise argparse.ArgumentTypeError(f"must look like 2, Action=2 or Action=1:3, got {text!r}")
    if colon and int(low) > int(high):
        raise argparse.ArgumentTypeError(f"must want at most as many as it allows, got {text!r}")
    return (name if equals else None), (int(low), int(high)) if colon else int(low)
