"""``wals-gpu recommend``: items for users of a saved model, or for a text."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wals_gpu.backends.launched import is_launched
from wals_gpu.cli.answers import FOR_TEXT, FOR_USERS, MODEL, answers_of, columns_of, print_answers, schema
from wals_gpu.cli.inputs import load_model, read_titles
from wals_gpu.cli.lines import ids_of_lines, parse_ids, read_lines
from wals_gpu.cli.lists import item_lists, user_lists
from wals_gpu.cli.options import (
    add_computation,
    add_item_lists,
    add_model_folder,
    add_quiet,
    add_rank_timeout,
    add_titles,
    check_device,
    number,
    positive,
    rank_timeout,
    whole_number,
)
from wals_gpu.cli.output import print_json, say
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.cli.reranking import add_reranking, check_reranking, reranking_options
from wals_gpu.cli.tables import check_kind, check_table, open_table
from wals_gpu.data.files import folder_digest, load_metadata
from wals_gpu.data.names import user_names
from wals_gpu.data.progress import progress_bar
from wals_gpu.model.recommendations import RecommendationsChunk
from wals_gpu.model.wals import WALS

__all__ = ["add", "run"]

#: So that memory does not grow with the number of users: so many at most, and places in their lists.
USERS_PER_CHUNK, PLACES_PER_CHUNK = 4096, 1 << 24

EPILOG = """\
examples:
  wals-gpu recommend model alice bob -k 5
  wals-gpu recommend model alice --titles items.csv
  wals-gpu recommend model --users-file users.txt --json
  wals-gpu recommend model --text "plays music files" --titles items.csv
  wals-gpu recommend model --all --out top10.parquet
  wals-gpu recommend model --all --out top10.parquet --allow-items in_stock.txt \\
      --deny returned.parquet
  wals-gpu recommend model alice --titles films.csv --diversity 0.3 --quota 2

Ids are those of the training data, or row numbers if it was a matrix; those that
begin with "-" stand after "--". A list ends early when no item is left. Scores
compare items for one user; they are not probabilities and do not compare users.
Whom the model does not know gets the most popular items, and is counted on
standard error; only a USER that is typed must be known.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "recommend", "recommend items to users of a saved model", run, EPILOG)
    add_model_folder(parser)
    parser.add_argument("users", metavar="USER", nargs="*", default=[], help="user ids as in the training data")
    parser.add_argument("--users-file", metavar="FILE", help="text file with a user id per line; - for standard input")
    parser.add_argument("--text", metavar="TEXT", help="the items that are most like this text, instead of USERs")
    parser.add_argument("--all", action="store_true", help="every user, chunk by chunk; needs --out")
    parser.add_argument(
        "--out", metavar="FILE", type=Path,
        help="write user_id, rank, item_id, score, source to .parquet, .csv, .tsv, .jsonl or .feather",
    )  # fmt: skip
    parser.add_argument("-k", type=positive, default=10, help="items per user (default 10)")
    parser.add_argument("--include-seen", action="store_true", help="also what the user already has")
    add_quiet(parser)
    add_titles(parser)
    cold = parser.add_argument_group("users that the model knows nothing of")
    cold.add_argument(
        "--cold-users", choices=["popular", "mean", "error"], default="popular",
        help="known users without interactions: the most popular items (default), those of the mean user, or an error",
    )  # fmt: skip
    cold.add_argument(
        "--unknown", choices=["popular", "skip", "error"],
        help="ids that the model does not have: the most popular items (default for --users-file), nothing, or an error"
        " (default for USER)",
    )  # fmt: skip
    add_computation(parser)
    add_rank_timeout(parser)
    add_item_lists(parser)
    lists = parser.add_argument_group("lists for each user: Parquet or CSV files with a user and an item column")
    lists.add_argument("--deny", metavar="FILE", type=Path, help="pairs not to recommend")
    lists.add_argument("--allow", metavar="FILE", type=Path, help="the only pairs to recommend")
    lists.add_argument("--user-column", metavar="COLUMN", help="default: the one named like user_id")
    lists.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id; also of --titles")
    explore = parser.add_argument_group("exploration: what the model is unsure of gets a chance")
    explore.add_argument("--explore", choices=["ucb", "thompson"], help="upper bounds of the scores, or draws")
    explore.add_argument("--noise", metavar="X", type=number, help="how much; 0 is not at all (default 1)")
    explore.add_argument(
        "--seed", metavar="N", type=whole_number, help="of thompson's draws; without one they differ each time"
    )
    add_reranking(parser)


def run(args: argparse.Namespace) -> None:
    """Recommend to users, or for a text."""
    ways = sum([bool(args.users), args.all, args.users_file is not None, args.text is not None])
    if ways != 1:
        choices = "USER ids, --users-file FILE, --all or --text TEXT"
        raise ValueError(f"say for whom: {choices}" + (" (only one of them)" if ways else ""))
    if args.all and args.out is None:
        raise ValueError("--all needs --out FILE (such as top10.parquet or top10.csv)")
    if args.noise is not None and args.explore is None:
        raise ValueError("--noise needs --explore ucb or --explore thompson")
    if args.seed is not None and args.explore != "thompson":
        raise ValueError("--seed needs --explore thompson: nothing else is random")
    check_reranking(args)
    if args.out is not None and not is_launched():
        check_table(args.out)
    # Listed items and upper bounds are scored on the host.
    check_device(args, args.k if args.allow is None and args.explore != "ucb" else None)
    if is_launched():
        _recommend_on_ranks(args)
    elif args.text is not None:
        _recommend_for_text(args)
    else:
        written = _recommend_to_users(args, load_model(args))
        if args.out is not None:
            _say_written(args, args.out, *written)


def _recommend_on_ranks(args: argparse.Namespace) -> None:
    """Each of the processes that torchrun started writes the lists of its part of the users to a file of a folder."""
    from wals_gpu.distributed.group import agree, gather_json, together
    from wals_gpu.distributed.launch import connected, threads_of_rank

    with connected(rank_timeout(args)) as group:
        args.quiet = args.quiet or group.rank > 0
        args.threads = args.threads or threads_of_rank()
        folder = args.out
        with together(group):
            if not args.all:
                raise ValueError("on several ranks, recommend takes --all: lists of every user, a part of them on each")
            check_kind(folder)
            metadata = load_metadata(args.model)
            n_users = int(metadata["objective"]["n_users"])
            rows = slice(n_users * group.rank // group.size, n_users * (group.rank + 1) // group.size)
            digest = folder_digest(args.model)
            if group.rank == 0:
                _make_folder_of_parts(folder)
        agree(group, model=digest)
        name = f"part-{group.rank:05d}{folder.suffix}"
        # Readers of the folder pass over it until all parts are whole: yesterday's and today's are never mixed.
        args.out = folder / f".{name}"
        try:
            with together(group):
                check_table(args.out)
                written = _recommend_part(args, metadata, rows)
        except BaseException:
            with contextlib.suppress(OSError):
                args.out.unlink(missing_ok=True)
            raise
        with together(group):
            if written is not None:
                os.replace(args.out, folder / name)
        names = gather_json(group, name if written is not None else None)
        counts = np.sum(gather_json(group, written or (0, 0)), axis=0).tolist()
        with together(group):
            if group.rank == 0:
                for one in folder.iterdir():  # parts of an earlier run on more ranks
                    if one.name not in names:
                        one.unlink()
        if group.rank == 0:
            _say_written(args, folder, *counts)


def _make_folder_of_parts(folder: Path) -> None:
    """The folder, without what a run that was killed has left; refused where it has anything but parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in list(folder.iterdir()):
        if one.name.startswith(".part-"):
            one.unlink()
        elif not one.name.startswith("part-"):
            raise ValueError(f"--out {folder} must be a new folder, or one of earlier parts; it has {one.name}")


def _recommend_part(args: argparse.Namespace, metadata: dict[str, Any], rows: slice) -> tuple[int, int] | None:
    """How many rows were written for how many users; None where the rank has none of them."""
    if rows.start == rows.stop:
        return None
    if "user_bounds" not in metadata:  # the model lies in one part, and every rank reads all of it
        return _recommend_to_users(args, load_model(args), rows)
    model = load_model(args, users=rows)
    if args.popularity_penalty and model.fitted.counts is None:  # of an earlier version
        raise ValueError(
            "--popularity-penalty needs all users of the model, which does not say what they have: on one rank, or of "
            "a model that this version saves"
        )
    return _recommend_to_users(args, model, slice(None), rows.start if model.user_ids is None else 0)


# ------------------------------------------------------------------------------------------------------------ for users


def _recommend_to_users(
    args: argparse.Namespace, model: WALS, rows: slice = slice(None), first: int = 0
) -> tuple[int, int]:
    """Lists of users, of --all those of some rows; without ids, the first user of the model is number `first`.

    How many rows were written to --out, for how many users.
    """
    titles = read_titles(args)
    if titles is not None:
        titles.checked(model.item_ids)
    users, unknown = _users(args, model)
    users = users[rows]
    options: dict[str, Any] = {"filter_seen": not args.include_seen, "explore": args.explore, "noise": args.noise}
    options |= {"random_state": args.seed} | item_lists(args, model) | user_lists(args, model, users)
    options |= {"cold_users": args.cold_users, "unknown": unknown}
    options |= reranking_options(args, args.k, model.n_items, model.item_ids)
    k = min(args.k, model.n_items)
    chunk_size = min(USERS_PER_CHUNK, max(PLACES_PER_CHUNK // k, 1))
    chunks = model.recommend_chunks(users, k, chunk_size=chunk_size, **options)
    counted = _counting(chunks, model, args)
    if args.out is None:
        answers = [
            one for chunk in counted for one in answers_of(chunk.users, chunk.ids, chunk.scores, titles, chunk.source)
        ]
        if args.json:
            print_json([{"user": one.query, "source": one.source, "items": one.to_json()} for one in answers])
        else:
            print_answers(answers, FOR_USERS)
        return 0, 0
    n_rows = 0
    columns = schema(FOR_USERS, model.user_ids, model.item_ids, titles is not None, with_source=True)
    with (
        progress_bar(len(users), not args.quiet, desc="recommend", unit="user", delay=1) as progress,
        open_table(args.out, columns) as write,
    ):
        for chunk in counted:
            of_users = chunk.users + first if first else chunk.users
            parts = columns_of(of_users, chunk.ids, chunk.scores, titles, chunk.source)
            write(parts)
            n_rows += len(parts[0])
            progress.update(len(chunk.users))
    return n_rows, len(users)


def _say_written(args: argparse.Namespace, out: Path, n_rows: int, n_users: int) -> None:
    if args.json:
        print_json({"out": str(out), "users": n_users, "rows": n_rows})
    else:
        print(f"wrote {n_rows:,} rows for {n_users:,} users to {out}")


def _users(args: argparse.Namespace, model: WALS) -> tuple[Any, str]:
    """Ids, or row numbers, of the users to recommend to; and what to do with those that the model does not know."""
    if args.all:
        return np.arange(model.n_users) if model.user_ids is None else model.user_ids.ids, "error"
    if args.users and args.unknown in (None, "error"):
        return parse_ids(args.users, model.user_ids, model.n_users, "user"), "error"
    option = "USER" if args.users else "--users-file"
    texts = args.users or read_lines(args.users_file, option)
    if not texts:
        raise ValueError(f"--users-file {args.users_file} holds no user ids")
    if args.unknown == "error":
        return parse_ids(texts, model.user_ids, model.n_users, "user"), "error"
    users = ids_of_lines(texts, model.user_ids, "user", option, user_names(), all_fit=False)
    known = _known(model, users)
    if known.all():
        return users, "error"
    if args.unknown is None and not known.any():
        such = ", ".join(map(repr, users[:3].tolist()))
        raise ValueError(
            f"--users-file {args.users_file}: the model knows none of {len(users):,} ids, such as {such}; "
            "--unknown popular recommends to them all the same"
        )
    count, such = _count(users, ~known)
    if args.unknown == "skip":
        say(f"{count} unknown to the model, {such}, and left out")
        return users[known], "error"
    say(f"{count} unknown to the model, {such}: {_instead(args)} (--unknown skip leaves them out)")
    return users, "popular"


def _instead(args: argparse.Namespace) -> str:
    """What users get of whom nothing is known."""
    what = "the items of the mean user" if args.cold_users == "mean" else "the most popular items"
    return f"{what} are recommended instead"


def _known(model: WALS, users: Any) -> Any:
    """Whether the model has each user."""
    if model.user_ids is not None:
        return model.user_ids.find(users) >= 0
    return (users >= 0) & (users < model.n_users)


def _count(users: Any, some: Any) -> tuple[str, str]:
    """How many, and up to three by name."""
    n = int(some.sum())
    names = ", ".join(repr(user) for user in users[some][:3].tolist())
    return f"{n:,} of {len(users):,} users {'is' if n == 1 else 'are'}", f"such as {names}" if n > 3 else names


def _counting(
    chunks: Iterator[RecommendationsChunk], model: WALS, args: argparse.Namespace
) -> Iterator[RecommendationsChunk]:
    """The same; after the last one, a line says which known users the model has nothing of."""
    n, cold = 0, 0
    names: list[Any] = []
    for chunk in chunks:
        yield chunk
        some = (chunk.source != MODEL) & _known(model, chunk.users)
        n, cold = n + len(some), cold + int(some.sum())
        names += chunk.users[some][: 3 - len(names)].tolist()
    if cold:
        such = ("such as " if cold > len(names) else "") + ", ".join(map(repr, names))
        verb = "has" if cold == 1 else "have"
        say(f"{cold:,} of {n:,} users {verb} no interactions to go by, {such}: {_instead(args)} (--cold-users)")


# ------------------------------------------------------------------------------------------------------------- a text


def _recommend_for_text(args: argparse.Namespace) -> None:
    for_users = {"--deny": args.deny, "--allow": args.allow, "--explore": args.explore, "--noise": args.noise}
    for_users |= {"--seed": args.seed, "--include-seen": args.include_seen or None, "--unknown": args.unknown}
    if unfit := [name for name, value in for_users.items() if value is not None]:
        raise ValueError(f"{', '.join(unfit)} cannot be used with --text, which is for no user")
    titles = read_titles(args)
    model = load_model(args)
    if titles is not None:
        titles.checked(model.item_ids)
    if model.fitted.item_prior is None:
        raise ValueError(
            f"--text needs a model that was fitted with --items and --encoder; {args.model} knows no texts"
        )
    lists = item_lists(args, model) | reranking_options(args, args.k, model.n_items, model.item_ids)
    found = model.search(model.project_items([args.text])[0], min(args.k, model.n_items), metric="cosine", **lists)
    ids, scores = (np.asarray(array)[None] for array in found)
    if args.out is not None:
        with open_table(args.out, schema(FOR_TEXT, None, model.item_ids, titles is not None)) as write:
            columns = columns_of(None, ids, scores, titles)
            write(columns)
        if args.json:
            print_json({"text": args.text, "out": str(args.out), "rows": len(columns[0])})
        else:
            print(f"wrote {len(columns[0]):,} rows to {args.out}")
        return
    answers = answers_of([None], ids, scores, titles)
    if args.json:
        print_json({"text": args.text, "items": answers[0].to_json()})
    else:
        print_answers(answers, FOR_TEXT)
