"""The command line, ``wals-gpu``: one module for each command; here is what they have in common."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from numpy.linalg import LinAlgError

from wals_gpu.cli import demo, doctor, embed, evaluate, fit, recommend, similar
from wals_gpu.cli.installation import installed_version
from wals_gpu.cli.output import one_line, say
from wals_gpu.cli.parser import Formatter, Parser

__all__ = ["main", "make_parser"]

#: In the order of the help.
COMMANDS = (fit, recommend, similar, embed, evaluate, doctor, demo)

# What bad input, a full disk or a missing extra raise. One line on stderr instead of a traceback, exit status 2.
EXPECTED = (ValueError, TypeError, LookupError, OSError, MemoryError, LinAlgError, ImportError)

ABOUT = """\
Recommendations from implicit feedback (who bought, read, played what) by
weighted alternating least squares."""

FIRST_STEPS = """\
first steps:
  wals-gpu demo                                  see it work, in under a minute
  wals-gpu evaluate plays.parquet                does it beat popularity on my data?
  wals-gpu fit plays.parquet --out model         learn from all of it
  wals-gpu recommend model alice bob             what to show to alice and bob
  wals-gpu recommend model --all --out top.parquet
  wals-gpu similar model "Blue Train"            what is like this item

Every command explains itself: wals-gpu COMMAND --help. Exit status: 0 done,
2 bad input (one line on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        Exit status: 0 done, 1 the installation is not usable (``doctor``), 2 bad input, 130 interrupted.
    """
    args = make_parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status: int = args.run(args) or 0
            sys.stdout.flush()  # so that a reader that has gone away shows here and not at exit
            return status
        except KeyboardInterrupt:
            kept = getattr(args, "checkpoint_dir", None)
            say("interrupted; nothing was saved" + (f" but the checkpoint in {kept}" if kept else ""))
            return 130
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except EXPECTED as error:
            if args.traceback:
                traceback.print_exc()
            say(f"error: {one_line(error)}")
            return 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; of what it parses, `command` is the name of the command, `run` does it."""
    parser = Parser(prog="wals-gpu", formatter_class=Formatter, description=ABOUT, epilog=FIRST_STEPS)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    """The version, looked up only when it is wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"wals_gpu {installed_version('wals_gpu') or '(not installed)'}")
        parser.exit()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")
