"""How the command line is parsed: errors of one line, and commands that bring their function with them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from wals_gpu.cli.output import say

__all__ = ["Commands", "Formatter", "Parser", "add_command"]


class Commands(Protocol):
    """What ``add_subparsers`` returns; argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Errors in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Say it and exit with status 2."""
        say(f"error: {message} (try: {self.prog} --help)")
        raise SystemExit(2)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Room for the longest option beside its explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def add_command(
    commands: Commands, name: str, help: str, run: Callable[[argparse.Namespace], int | None], epilog: str = ""
) -> argparse.ArgumentParser:
    """The parser of a command, whose arguments the caller adds; `run` does its work and may return a status."""
    parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog, formatter_class=Formatter
    )
    parser.set_defaults(command=name, run=run)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.add_argument("--traceback", action="store_true", help="on an error, show where in the code it came from")
    return parser
