"""``wals-gpu export``: a model for other programs to search, as files or in a database."""

from __future__ import annotations

import argparse
import inspect
import os
from typing import Any

from wals_gpu.cli.inputs import load_model
from wals_gpu.cli.options import add_model_folder, positive
from wals_gpu.cli.output import bytes_in_words, print_json
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.export.dispatch import TARGETS, export
from wals_gpu.export.folder import Export, check_folder

__all__ = ["add", "run"]

EPILOG = """\
examples:
  wals-gpu export model --to parquet --out vectors
  wals-gpu export model --to faiss --index flat --out index
  wals-gpu export model --to onnx --query history --out graph
  wals-gpu export model --to pgvector --url postgresql://shop@db/shop --overwrite
  wals-gpu export model --to qdrant --url http://localhost:6333

Dot products of what is written are the scores of 'wals-gpu recommend', and what
people have is written too, to be left out. docs/export.md says how to ask each.
A database's password is taken from PGPASSWORD, a key of Qdrant from
QDRANT_API_KEY.
"""

#: Options that are passed on where they are given, and what of the library they are.
_OPTIONS = ("index", "dtype", "m", "ef_construction", "schema", "collection", "query", "factors_only", "overwrite")


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "export", "write a model for other programs to search", run, EPILOG)
    add_model_folder(parser)
    parser.add_argument("--to", choices=list(TARGETS), required=True, help="what reads it")
    parser.add_argument("--out", metavar="FOLDER", help="new or empty; not for pgvector")
    parser.add_argument(
        "--url", metavar="URL",
        help="pgvector: of the database (default: what PGHOST and the others say); qdrant: of the server",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", default=None, help="put it in the place of an earlier one")
    parser.add_argument("--no-seen", action="store_true", help="do not write what people have")
    parser.add_argument(
        "--factors-only", action="store_true", default=None, help="of a model with neighbours, leave these out"
    )
    group = parser.add_argument_group("of some targets")
    group.add_argument(
        "--index", metavar="KIND",
        help="faiss: hnsw (default), flat, or a text for its index_factory; pgvector: hnsw (default) or none",
    )  # fmt: skip
    group.add_argument("--m", metavar="N", type=positive, help="neighbours of an item in the graph")
    group.add_argument(
        "--ef-construction", metavar="N", type=positive, help="candidates looked at where an item is added to it"
    )
    group.add_argument("--dtype", choices=["float32", "float16"], help="pgvector: of the items (default float32)")
    group.add_argument("--schema", metavar="NAME", help="pgvector: where the tables are made (default wals)")
    group.add_argument("--collection", metavar="NAME", help="qdrant: what names begin with (default wals)")
    group.add_argument(
        "--query", metavar="KIND",
        help="onnx: users (default), vectors, or history, which solves for somebody given by items",
    )  # fmt: skip
    parser.set_defaults(device="auto", threads=0)  # nothing is computed that a device would be faster at


def run(args: argparse.Namespace) -> None:
    """Write it, and say how to ask it."""
    options: dict[str, Any] = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    if args.no_seen:
        options["seen"] = False
    known = inspect.signature(TARGETS[args.to]).parameters
    for name in options:
        if name not in known:
            option = "--no-seen" if name == "seen" else args.parser.name_of(name)
            raise ValueError(f"{option} has no meaning with --to {args.to}")
    out = _where(args)
    if args.url is None and args.to != "pgvector":
        check_folder(out, bool(args.overwrite), "--out")
    if args.to == "qdrant" and args.url is not None:
        options["api_key"] = os.environ.get("QDRANT_API_KEY")
    done = export(load_model(args), out, to=args.to, **options)
    if args.json:
        print_json({"to": done.to, "where": done.where, done.unit: done.sizes, "query": done.query})
        return
    print(f"wrote {', '.join(_sizes(done))} to {done.where}")
    print(f"ask it:\n{done.query}")  # in one line, to be copied


def _where(args: argparse.Namespace) -> str:
    """The folder or the address, of which a target takes one."""
    if args.to == "pgvector":
        if args.out is not None:
            raise ValueError("--out has no meaning with --to pgvector; --url is the address of a database")
        return args.url or ""
    if args.url is not None and args.to != "qdrant":
        raise ValueError(f"--url has no meaning with --to {args.to}; --out is the folder to write")
    if (args.out is None) == (args.url is None):
        raise ValueError(
            "--out FOLDER or --url URL must be given" if args.to == "qdrant" else "--out FOLDER must be given"
        )
    where: str = args.url if args.out is None else args.out
    if args.out is None and "://" not in where:  # a folder of the local mode otherwise
        raise ValueError(f"--url must be an address such as http://localhost:6333, got {where!r}")
    return where


def _sizes(done: Export) -> list[str]:
    if done.unit == "rows":
        return [f"{n:,} rows of {name}" for name, n in done.sizes.items()]
    return [f"{name} ({bytes_in_words(n)})" for name, n in done.sizes.items()]
