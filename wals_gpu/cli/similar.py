"""``wals-gpu similar``: items that are liked by the same users."""

from __future__ import annotations

import argparse
from pathlib import Path

from wals_gpu.cli.answers import SIMILAR, answers_of, columns_of, print_answers, schema
from wals_gpu.cli.inputs import load_model, read_titles
from wals_gpu.cli.lines import parse_ids
from wals_gpu.cli.lists import item_lists
from wals_gpu.cli.options import add_computation, add_item_lists, add_model_folder, add_titles, check_device, positive
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.cli.tables import check_table, open_table

__all__ = ["add", "run"]

EPILOG = """\
examples:
  wals-gpu similar model "Blue Train" -k 5
  wals-gpu similar model 42 7 --titles items.csv

Similarity is the cosine of the item factors: 1 is the same direction.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "similar", "find items that are liked by the same users", run, EPILOG)
    add_model_folder(parser)
    parser.add_argument("items", metavar="ITEM", nargs="+", help="item ids as in the training data")
    parser.add_argument("-k", type=positive, default=10, help="items per item (default 10)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path,
        help="write item_id, rank, similar_id, score to .parquet, .csv, .tsv, .jsonl or .feather",
    )  # fmt: skip
    add_titles(parser)
    parser.add_argument("--item-column", metavar="COLUMN", help="of --titles; default: the one named like item_id")
    add_computation(parser)
    add_item_lists(parser)


def run(args: argparse.Namespace) -> None:
    """Print, or write, a list for each item."""
    if args.out is not None:
        check_table(args.out)
    check_device(args, args.k)
    titles = read_titles(args)
    model = load_model(args)
    if titles is not None:
        titles.checked(model.item_ids)
    items = parse_ids(args.items, model.item_ids, model.n_items, "item")
    # Nobody wants the item itself, whatever the lists say.
    k = min(args.k, model.n_items)
    ids, scores = model.similar_items(items, k, deny=[[item] for item in items], **item_lists(args, model))
    if args.out is not None:
        with open_table(args.out, schema(SIMILAR, model.item_ids, model.item_ids, titles is not None)) as write:
            columns = columns_of(items, ids, scores, titles)
            write(columns)
        if args.json:
            print_json({"out": str(args.out), "items": len(items), "rows": len(columns[0])})
        else:
            print(f"wrote {len(columns[0]):,} rows for {len(items):,} items to {args.out}")
        return
    answers = answers_of(items, ids, scores, titles)
    if args.json:
        print_json([{"item": answer.query, "similar": answer.to_json()} for answer in answers])
    else:
        print_answers(answers, SIMILAR)
