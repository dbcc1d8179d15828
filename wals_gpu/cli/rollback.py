"""``wals-gpu rollback``: the model that was in use before, in use again."""

from __future__ import annotations

import argparse
from pathlib import Path

from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.data.files import load_metadata
from wals_gpu.data.tables import format_table
from wals_gpu.errors import ModelFormatError
from wals_gpu.publishing.folder import ModelFolder

__all__ = ["add", "run"]

EPILOG = """\
The folder is one that 'wals-gpu fit --publish-if' writes to. The change is one step, also
for whoever is reading the model; no run needs to be over. The model that is left stays in
the folder, and a run that is under way will not publish.

examples:
  wals-gpu rollback models --list
  wals-gpu rollback models
  wals-gpu rollback models --to 20261130T020311Z
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "rollback", "put the model before back into use", run, EPILOG)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of models, with one that is in use")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--to", metavar="NAME", help="this one (default: the one that was in use before)")
    what.add_argument("--list", action="store_true", help="say what there is, and change nothing")


def run(args: argparse.Namespace) -> None:
    """Go back, or list."""
    folder = ModelFolder(args.folder)
    if args.list:
        _list(folder, args.json)
        return
    name, before = folder.rollback(args.to)
    if args.json:
        print_json({"model": name, "previous": before})
    else:
        print(f"{args.folder / 'current'} is {name} now; it was {before or 'none'}")


def _list(folder: ModelFolder, as_json: bool) -> None:
    current = folder.current
    names = folder.names()
    if not names:
        raise ValueError(f"{folder.path} is no folder of models: there is none")
    found = [{"model": name, "current": name == current, **_of(folder, name)} for name in names]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            "*" if one["current"] else "",
            str(one["model"]),
            str(one["previous"] or "none"),
            "damaged" if one["is_damaged"] else str(one["metrics"] or "none"),
        ]
        for one in found
    ]
    print(format_table(["in use", "model", "before it", "measured"], rows))


def _of(folder: ModelFolder, name: str) -> dict[str, str | bool | None]:
    """What is known of a model. Of its numbers, whose hashes are checked when it is loaded, nothing is read."""
    try:
        load_metadata(folder.path / name)
        is_damaged = False
    except (ModelFormatError, OSError):
        is_damaged = True
    about = folder.about(name)
    metrics = ", ".join(f"{metric} {of['candidate']['value']:.4f}" for metric, of in about.get("metrics", {}).items())
    return {"previous": about.get("previous"), "metrics": metrics or None, "is_damaged": is_damaged}
