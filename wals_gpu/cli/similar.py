"""``wals-gpu similar``: items that are liked by the same users."""

from __future__ import annotations

import argparse

from wals_gpu.cli.inputs import load_model, parse_ids
from wals_gpu.cli.lists import item_lists
from wals_gpu.cli.options import add_computation, add_item_lists, add_model_folder, check_device, positive
from wals_gpu.cli.output import item_json, pairs_of, plain, print_json
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.evaluation.tables import format_table

__all__ = ["add", "run"]

EPILOG = """\
example:
  wals-gpu similar model "Blue Train" -k 5

Similarity is the cosine of the item factors: 1 is the same direction.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "similar", "find items that are liked by the same users", run, EPILOG)
    add_model_folder(parser)
    parser.add_argument("items", metavar="ITEM", nargs="+", help="item ids as in the training data")
    parser.add_argument("-k", type=positive, default=10, help="items per item (default 10)")
    add_computation(parser)
    add_item_lists(parser)


def run(args: argparse.Namespace) -> None:
    """Print a list for each item."""
    check_device(args, args.k)
    model = load_model(args)
    items = parse_ids(args.items, model.item_ids, model.n_items, "item")
    # Nobody wants the item itself, whatever the lists say.
    ids, scores = model.similar_items(items, args.k, deny=[[item] for item in items], **item_lists(args, model))
    lists = [(item, pairs_of(*answer)) for item, *answer in zip(items, ids, scores, strict=True)]
    if args.json:
        print_json([{"item": plain(item), "similar": [item_json(pair) for pair in pairs]} for item, pairs in lists])
        return
    rows = [
        [str(item), rank, str(other), score] for item, pairs in lists for rank, (other, score) in enumerate(pairs, 1)
    ]
    print(format_table(["item", "rank", "similar", "cosine"], rows))
