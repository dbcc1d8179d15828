"""``wals-gpu compare``: saved models on the same users, with intervals and p-values of their differences."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from wals_gpu.checks import warn
from wals_gpu.cli.evaluate import check_html, writing_html
from wals_gpu.cli.inputs import load_model, read_titles, reading_options, refuse_model
from wals_gpu.cli.options import (
    add_computation,
    add_html,
    add_reading,
    add_titles,
    check_device,
    positive,
    whole_number,
)
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.data.csr import canonical, contains, entry_keys, entry_rows, select
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions
from wals_gpu.data.matching import read_like
from wals_gpu.evaluation.report import evaluate
from wals_gpu.model.wals import WALS

__all__ = ["add", "run"]

EPILOG = """\
examples:
  wals-gpu compare monday tuesday --data test.parquet
  wals-gpu compare monday tuesday --data test.parquet --html report.html --titles items.csv

Every model recommends to the same users of --data, and to nobody what any of the
models has learned that they have; test entries that one of them has learned from are
left out and counted. A user whom a model does not know gets what it gives to such
users: the most popular items.

p is of a paired permutation test over users, two-sided; p (Holm) is adjusted for the
pairs of models of a metric. Choose the metric before you look.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "compare", "compare saved models on the same users", run, EPILOG)
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", type=Path,
        help="folders that 'wals-gpu fit' saved; popularity is compared, too",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="FILE", required=True, help="what is to be found: interactions that no model has learned from"
    )
    parser.add_argument("-k", type=positive, nargs="+", default=[20, 100], help="list lengths (default 20 100)")
    parser.add_argument(
        "--cohorts", metavar="N", type=positive, help="also users and items with 0, up to N, and more known entries"
    )
    parser.add_argument("--seed", metavar="N", type=whole_number, default=0, help="of resamples and signs (default 0)")
    add_html(parser, "metrics, differences, cohorts, curves, lists to judge")
    add_titles(parser)
    add_reading(parser, "as of the models' own data")
    add_computation(parser)


def run(args: argparse.Namespace) -> None:
    """Load, recommend, compare and print."""
    check_device(args, max(args.k))
    if args.html is not None:
        check_html(args.html)
    elif args.titles is not None:
        raise ValueError("--titles are shown in the page of --html FILE")
    refuse_model(args.data, "a file of interactions, for --data")
    titles = read_titles(args)
    models = {name: load_model(args, path) for name, path in _names(args.models).items()}
    known = _known(models)
    if known.user_ids is None or known.item_ids is None:
        raise ValueError(
            f"MODELs must have the ids that --data is read by: {', '.join(models)} "
            f"{'was' if len(models) == 1 else 'were'} fitted on a matrix, whose rows and columns have numbers only; "
            "wals_gpu.evaluation.evaluate compares such models on a matrix"
        )
    options = reading_options(args)
    del options["dtype"], options["warn_ratings"]
    first = next(iter(models.values()))
    matched = read_like("--data", args.data, known.user_ids, known.item_ids, "any model", options, like=first.columns_)
    test = _unseen(matched.data, known)
    few_shot = 5 if args.cohorts is None and args.html is not None else args.cohorts
    found = evaluate(models, known, test, args.k, few_shot=few_shot, random_state=args.seed)
    if args.json:
        print_json({"models": dict(zip(models, map(str, args.models), strict=True)), **found.to_dict()})
    else:
        print(f"{test.matrix.nnz:,} entries to find\n")
        print(f"{found}\n[in brackets: 95 % interval, bootstrap over users; seed {args.seed}]")
    if args.html is not None:
        from wals_gpu.report import write_report

        made = {"models": ", ".join(map(str, args.models)), "data": args.data, "seed": args.seed}
        with writing_html(args.html):
            write_report(
                args.html, found, model=models, train=known, test=test, titles=titles, settings=made,
                random_state=args.seed, title=f"Comparison on {Path(args.data).name}",
            )  # fmt: skip


def _names(paths: list[Path]) -> dict[str, Path]:
    """Models by the name of their folder, after those of as many folders around it as tell them apart."""
    real = [path.resolve() for path in paths]
    found: dict[str, Path] = {}
    for path, own in zip(paths, real, strict=True):
        if real.count(own) > 1:
            raise ValueError(f"MODEL {path} is there twice")
        for n in range(1, len(own.parts) + 1):
            name = str(Path(*own.parts[-n:]))
            if name != "popularity" and sum(one.parts[-n:] == own.parts[-n:] for one in real) == 1:
                break
        found[name] = path
    return found


def _known(models: Mapping[str, WALS]) -> Interactions:
    """What any of the models has learned from, in one numbering."""
    histories: list[tuple[WALS, csr_matrix]] = []
    for name, model in models.items():
        if model.fitted.seen is None:
            raise ValueError(
                f"model {name} does not say what it has learned from, so nothing can be kept from its lists"
            )
        histories.append((model, canonical("seen", model.fitted.seen)))
    first, seen = histories[0]
    if all(_is_alike(first, seen, model, other) for model, other in histories[1:]):
        return Interactions(seen.astype(np.float32), first.user_ids, first.item_ids)
    user_ids, users = _union([model.user_ids for model in models.values()], models, "user")
    item_ids, items = _union([model.item_ids for model in models.values()], models, "item")
    rows, columns, values = [], [], []
    for (_, matrix), row_of, column_of in zip(histories, users, items, strict=True):
        rows.append(row_of[entry_rows(matrix)])
        columns.append(column_of[matrix.indices])
        values.append(matrix.data.astype(np.float32))
    n_items = len(item_ids)
    keys = np.concatenate(rows) * n_items + np.concatenate(columns)
    keys, place = np.unique(keys, return_index=True)  # of an entry that several have, the value of the first
    data = np.concatenate(values)[place]
    ends = np.searchsorted(keys // n_items, np.arange(len(user_ids) + 1))
    return Interactions(csr_matrix((data, keys % n_items, ends), shape=(len(user_ids), n_items)), user_ids, item_ids)


def _is_alike(first: WALS, seen: csr_matrix, other: WALS, others: csr_matrix) -> bool:
    same_ids = first.user_ids == other.user_ids and first.item_ids == other.item_ids
    same = same_ids and seen.shape == others.shape and np.array_equal(seen.indptr, others.indptr)
    return bool(same and np.array_equal(seen.indices, others.indices))


def _union(
    ids: list[Ids | None], models: Mapping[str, WALS], side: str
) -> tuple[Ids, list[np.ndarray[Any, np.dtype[np.int64]]]]:
    """All ids, and where those of each model are among them."""
    there = [one for one in ids if one is not None]
    kinds = {one.kind for one in there}
    if len(there) < len(ids) or len(kinds) > 1:
        names = ", ".join(models)
        raise ValueError(
            f"MODELs must all have {side} ids of one kind, as they are of different data: {names} have "
            + ("some none" if len(there) < len(ids) else " and ".join(f"{kind}s" for kind in sorted(kinds)))
        )
    whole, _ = Ids.encode(pa.array(np.concatenate([one.ids for one in there])), side)
    return whole, [np.asarray(whole.find(one.ids), dtype=np.int64) for one in there]


def _unseen(test: Interactions, known: Interactions) -> Interactions:
    """What is left to find without the entries that a model has learned from."""
    matrix = test.matrix
    seen = contains(entry_keys(known.matrix), entry_keys(matrix))
    if not seen.any():
        return test
    if seen.all():
        raise ValueError(f"--data: all of its {matrix.nnz:,} entries are among those that a model has learned from")
    warn(f"{int(seen.sum()):,} of {matrix.nnz:,} entries of --data are left out: a model has learned from them")
    return Interactions(select(matrix, ~seen), test.user_ids, test.item_ids)
