"""``wals-gpu completion``: a script by which a shell completes commands, options and files, without starting Python."""

from __future__ import annotations

import argparse
from pathlib import Path

from wals_gpu.cli.parser import PARAMETERS, Commands, add_command

__all__ = ["add", "run", "script"]

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")

EPILOG = """\
examples:
  wals-gpu completion bash

Write it to ~/.local/share/bash-completion/completions/wals-gpu for bash; docs/cli.md
says where zsh, fish, tcsh and PowerShell look. The script knows the options of this
version: write it again after an update. Needs: pip install 'wals_gpu[completion]'.
"""

#: What the values of options and names are called that are files, beside those that are paths.
_FILES = ("FILE", "INTERACTIONS", "MODEL")


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "completion", "print a script that completes commands for a shell", run, EPILOG)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    print(script(args.program, args.shell))


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """For the parser of the whole command line.

    Raises
    ------
    ImportError
        shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError("completion needs shtab: pip install 'wals_gpu[completion]'", name=error.name) from error
    names = [f"{name}=" for name in PARAMETERS]
    for one in _parsers(parser):
        for action in one._actions:
            if action.type is Path or action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab asks for it
            elif action.dest == "set":  # of any objective
                complete = {"bash": "_wals_gpu_parameters", "zsh": f"({' '.join(names)})"}
                action.complete = complete  # type: ignore[attr-defined]
    preamble = f'_wals_gpu_parameters() {{ compgen -W {" ".join(names)!r} -- "$1"; }}' if shell == "bash" else ""
    return str(shtab.complete(parser, shell=shell, preamble=preamble))


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """It and those of its commands."""
    commands = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    return [parser, *(one for choices in commands for one in choices.values())]
