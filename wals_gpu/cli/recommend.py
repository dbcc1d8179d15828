"""``wals-gpu recommend``: items for users of a saved model, or for a text."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from wals_gpu.cli.inputs import load_model, parse_ids, read_lines
from wals_gpu.cli.lists import item_lists, user_lists
from wals_gpu.cli.options import (
    add_computation,
    add_item_lists,
    add_model_folder,
    add_quiet,
    check_device,
    positive,
)
from wals_gpu.cli.output import item_json, pairs_of, plain, print_json, write_recommendations, writer_for
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.evaluation.tables import format_table
from wals_gpu.model.wals import WALS

__all__ = ["add", "run"]

#: So that memory does not grow with the number of users.
USERS_PER_CHUNK = 4096

EPILOG = """\
examples:
  wals-gpu recommend model alice bob -k 5
  wals-gpu recommend model --users-file users.txt --json
  wals-gpu recommend model --text "plays music files"
  wals-gpu recommend model --all --out top10.parquet
  wals-gpu recommend model --all --out top10.parquet --allow-items in_stock.txt \\
      --deny returned.parquet

Ids are those of the training data, or row numbers if it was a matrix. A list
ends early when no item is left. Scores compare items for one user; they are not
probabilities and do not compare users.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "recommend", "recommend items to users of a saved model", run, EPILOG)
    add_model_folder(parser)
    parser.add_argument("users", metavar="USER", nargs="*", help="user ids as in the training data")
    parser.add_argument("--users-file", metavar="FILE", help="text file with a user id per line; - for standard input")
    parser.add_argument("--text", metavar="TEXT", help="the items that are most like this text, instead of USERs")
    parser.add_argument("--all", action="store_true", help="every user, chunk by chunk; needs --out")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="write user_id, rank, item_id, score to .parquet or .csv"
    )
    parser.add_argument("-k", type=positive, default=10, help="items per user (default 10)")
    parser.add_argument("--include-seen", action="store_true", help="also what the user already has")
    add_quiet(parser)
    add_computation(parser)
    add_item_lists(parser)
    lists = parser.add_argument_group("lists for each user: Parquet or CSV files with a user and an item column")
    lists.add_argument("--deny", metavar="FILE", type=Path, help="pairs not to recommend")
    lists.add_argument("--allow", metavar="FILE", type=Path, help="the only pairs to recommend")
    lists.add_argument("--user-column", metavar="COLUMN", help="default: the one named like user_id")
    lists.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id")
    explore = parser.add_argument_group("exploration: what the model is unsure of gets a chance")
    explore.add_argument("--explore", choices=["ucb", "thompson"], help="upper bounds of the scores, or draws")
    explore.add_argument("--noise", type=float, help="how much; 0 is not at all (default 1)")
    explore.add_argument("--seed", type=int, help="of thompson's draws; without one they differ each time")


def run(args: argparse.Namespace) -> None:
    """Recommend to users, or for a text."""
    ways = sum([bool(args.users), args.all, args.users_file is not None, args.text is not None])
    if ways != 1:
        choices = "USER ids, --users-file FILE, --all or --text TEXT"
        raise ValueError(f"say for whom: {choices}" + (" (only one of them)" if ways else ""))
    if args.all and args.out is None:
        raise ValueError("--all needs --out FILE (.parquet or .csv)")
    # Listed items and upper bounds are scored on the host.
    check_device(args, args.k if args.allow is None and args.explore != "ucb" else None)
    if args.text is not None:
        _recommend_for_text(args)
    else:
        _recommend_to_users(args)


def _recommend_to_users(args: argparse.Namespace) -> None:
    if args.out is not None:
        writer_for(args.out)  # refuse a wrong name before the model is loaded
    model = load_model(args)
    users = _users(args, model)
    options: dict[str, Any] = {"filter_seen": not args.include_seen, "explore": args.explore, "noise": args.noise}
    options |= {"random_state": args.seed} | item_lists(args, model) | user_lists(args, model, users)
    chunks = model.recommend_chunks(users, args.k, chunk_size=USERS_PER_CHUNK, **options)
    if args.out is None:
        _print(chunks, args.json)
        return
    with tqdm(total=len(users), desc="recommend", unit="user", delay=1, disable=args.quiet) as progress:
        rows = write_recommendations(args.out, model, chunks, progress.update)
    if args.json:
        print_json({"out": str(args.out), "users": len(users), "rows": rows})
    else:
        print(f"wrote {rows:,} rows for {len(users):,} users to {args.out}")


def _users(args: argparse.Namespace, model: WALS) -> Any:
    """Ids, or row numbers, of the users to recommend to."""
    if args.all:
        return np.arange(model.n_users) if model.user_ids is None else model.user_ids.ids
    texts = args.users or read_lines(args.users_file)
    if not texts:
        raise ValueError(f"{args.users_file} holds no user ids")
    return parse_ids(texts, model.user_ids, model.n_users, "user")


def _print(chunks: Iterator[tuple[Any, Any, Any]], as_json: bool) -> None:
    lists = [(user, pairs_of(ids, scores)) for batch in chunks for user, ids, scores in zip(*batch, strict=True)]
    if as_json:
        print_json([{"user": plain(user), "items": [item_json(pair) for pair in pairs]} for user, pairs in lists])
        return
    rows: list[list[object]] = [
        [str(user), rank, str(item), score] for user, pairs in lists for rank, (item, score) in enumerate(pairs, 1)
    ]
    print(format_table(["user", "rank", "item", "score"], rows))


def _recommend_for_text(args: argparse.Namespace) -> None:
    for_users = {"--out": args.out, "--deny": args.deny, "--allow": args.allow, "--explore": args.explore}
    for_users |= {"--noise": args.noise, "--seed": args.seed, "--include-seen": args.include_seen or None}
    if unfit := [name for name, value in for_users.items() if value is not None]:
        raise ValueError(f"{', '.join(unfit)} cannot be used with --text, which is for no user")
    model = load_model(args)
    lists = item_lists(args, model)
    pairs = pairs_of(*model.search(model.project_items([args.text])[0], args.k, metric="cosine", **lists))
    if args.json:
        print_json({"text": args.text, "items": [item_json(pair) for pair in pairs]})
    else:
        rows = [[rank, str(item), score] for rank, (item, score) in enumerate(pairs, 1)]
        print(format_table(["rank", "item", "cosine"], rows))
