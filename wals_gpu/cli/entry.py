"""The command line, ``wals-gpu``: one module for each command; here is what they have in common."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from numpy.linalg import LinAlgError

from wals_gpu.backends.launched import is_launched
from wals_gpu.cli import (
    compare,
    completion,
    demo,
    doctor,
    embed,
    evaluate,
    export,
    fit,
    plan,
    recommend,
    rollback,
    serve,
    similar,
    tune,
)  # fmt: skip
from wals_gpu.cli.installation import installed_version
from wals_gpu.cli.output import escaped_output, one_line, say
from wals_gpu.cli.parser import Command, Formatter, Program
from wals_gpu.cli.settings import fill_settings
from wals_gpu.errors import DistributedError

__all__ = ["main", "make_parser"]

#: In the order of the help.
COMMANDS = (
    fit, recommend, similar, serve, embed, evaluate, compare, tune, export, plan, rollback, doctor, demo, completion,
)  # fmt: skip

# What bad input, a full disk or a missing extra raise. One line on stderr instead of a traceback, exit status 2.
EXPECTED = (ValueError, TypeError, LookupError, OSError, MemoryError, LinAlgError, ImportError, DistributedError)

# Arguments that name files to read, and files to write.
_READ = (
    "interactions",
    "data",
    "items",
    "titles",
    "categories",
    "users_file",
    "allow",
    "deny",
    "allow_items",
    "deny_items",
)
_WRITTEN = ("out", "html", "trials_table")

ABOUT = """\
Recommendations from implicit feedback (who bought, read, played what) by
weighted alternating least squares."""

FIRST_STEPS = """\
first steps:
  wals-gpu demo                                  see it work, in under a minute
  wals-gpu evaluate plays.parquet                does it beat popularity on my data?
  wals-gpu tune plays.parquet --out best.json    which settings are best for it?
  wals-gpu fit plays.parquet --out model         learn from all of it
  wals-gpu recommend model alice bob             what to show to alice and bob
  wals-gpu recommend model --all --out top.parquet
  wals-gpu similar model "Blue Train"            what is like this item
  wals-gpu serve model                           look at it in a browser

Every command explains itself: wals-gpu COMMAND --help. Exit status: 0 done,
2 bad input (one line on standard error), 130 interrupted; of 'fit --publish-if'
also 3 (the model is refused) and 4 (another run is on).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; default ``sys.argv[1:]``. None at all prints the help.

    Returns
    -------
    int
        Exit status: 0 done, 1 the installation is not usable (``doctor``), 2 bad input, 130 interrupted; of
        ``fit --publish-if`` 3, the model is refused, and 4, another run is on.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0

    def tell(kind: str, text: str) -> None:
        if int(os.environ.get("RANK", "0")) == 0 or not is_launched():  # of several processes, one speaks for all
            say(f"{kind}: {args.parser.in_options(text)}")

    with warnings.catch_warnings(), escaped_output():
        warnings.showwarning = lambda message, *_, **__: tell("warning", str(message))
        try:
            return _run(args)
        except KeyboardInterrupt:
            kept = getattr(args, "checkpoint_dir", None)
            say("interrupted; nothing was saved" + (f" but the checkpoint in {kept}" if kept else ""))
            return 130
        except BrokenPipeError:  # the reader, such as head, has seen enough
            _discard_output()
            return 0
        except EXPECTED as error:
            if args.traceback:
                traceback.print_exc()
            tell("error", _option_of_file(error, args) + one_line(error))
            if sys.stdout is not None:
                try:
                    sys.stdout.flush()
                except OSError:  # it was the error
                    _discard_output()
            return 2


def _option_of_file(error: BaseException, args: argparse.Namespace) -> str:
    """The option of the file that an error is about, to stand before what the error says."""
    name = getattr(error, "filename", None)
    file = str(name)
    for dest, value in vars(args).items():
        if name is not None and file in [str(one) for one in (value if isinstance(value, list) else [value])]:
            return f"{args.parser.name_of(dest)}: "
    return ""


def _run(args: argparse.Namespace) -> int:
    fill_settings(args)
    _refuse_to_replace_what_is_read(args)
    status: int = args.run(args) or 0
    try:
        if sys.stdout is not None:  # None where it was closed
            sys.stdout.flush()  # so that a reader that has gone away, or a full disk, shows here and not at exit
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise OSError(f"standard output: {one_line(error)}") from error
    return status


def _refuse_to_replace_what_is_read(args: argparse.Namespace) -> None:
    """ValueError where a file to write is one that this command reads, or writes something else to."""
    written = [dest for dest in _WRITTEN if getattr(args, dest, None) is not None]
    for dest in written:
        path = os.path.realpath(getattr(args, dest))
        others = [other for other in (*_READ, *written) if other != dest]
        for other in others if not os.path.isdir(path) else ():
            value = getattr(args, other, None)
            if path in [os.path.realpath(one) for one in (value if isinstance(value, list) else [value]) if one]:
                names = args.parser.name_of(dest), args.parser.name_of(other)
                raise ValueError(
                    f"{names[0]}: {getattr(args, dest)} is the file of {names[1]}, too; give it another name"
                )


def _discard_output() -> None:
    """What is still to be written to standard output goes nowhere: Python would try it again at exit."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: of something that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_parser() -> Program:
    """The parser of the whole command line.

    Of what it parses, `command` is the name of the command, `run` does it, and `program` is this parser.
    """
    parser = Program(prog="wals-gpu", formatter_class=Formatter, description=ABOUT, epilog=FIRST_STEPS)
    parser.set_defaults(program=parser)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Command)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """The version, looked up only when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"wals_gpu {installed_version('wals_gpu') or '(not installed)'}")
        parser.exit()
