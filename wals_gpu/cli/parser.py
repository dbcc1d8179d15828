"""How the command line is parsed: options and names in any order, errors of one line, and commands that bring their
function with them."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from wals_gpu.checks import did_you_mean
from wals_gpu.cli.output import say
from wals_gpu.objective.presets import PRESETS

__all__ = ["PARAMETERS", "Command", "Commands", "Formatter", "Program", "add_command"]

#: What ``--set`` takes.
PARAMETERS = sorted({field.name for preset in PRESETS.values() for field in dataclasses.fields(preset)})

#: What the library calls an argument whose option has another name.
ARGUMENTS = {"num_threads": "threads", "random_state": "seed", "quotas": "quota"}

#: What the library says of arguments that the command line has in another form.
PHRASES = {
    "value_column=False": "--no-values",
    "overwrite=True": "--overwrite",
    "factors_only=True": "--factors-only",
    "resume=True, or --resume": "--resume",
    "resume=True": "--resume",
    "columns=['user', 'item', 'value', 'time']": "--columns user,item,value,time",
    "rename it, or give a mapping of id to title": "--item-column names it",
}

NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")


class Commands(Protocol):
    """What ``add_subparsers`` returns; argparse has no public name for it."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


class Parser(argparse.ArgumentParser):
    """Errors in one line, as all others, which name what is like a misspelt name."""

    def error(self, message: str) -> NoReturn:
        """Say it and exit with status 2."""
        message = re.sub(r"invalid float value: (.*)", r"must be a number, got \1", message)
        message = re.sub(r"^argument (\S+): (must )?", lambda of: f"{of[1]} must " if of[2] else f"{of[1]}: ", message)
        say(f"error: {message} (try: {self.prog} --help)")
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """One message in every version of Python, with what is like `value`."""
        if action.choices is None or value in action.choices:
            return
        names = list(action.choices)
        if action.dest == "command":
            like = did_you_mean(value, names) or f"; there are {', '.join(names)}"
            self.error(f"there is no command {value!r}{like}")
        like = did_you_mean(value, names, gpu="cuda")
        raise argparse.ArgumentError(action, f"must be one of {', '.join(map(str, names))}, got {value!r}{like}")


class Program(Parser):
    """The parser of the whole command line."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """``wals-gpu help fit`` is ``wals-gpu fit --help``."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] == ["help"]:
            words = [*words[1:2], "--help"]
        first = words[0] if words else ""
        if first.startswith("-") and not any(option.startswith(first) for option in self._option_string_actions):
            self.error(f"a command must come before {first}")
        return super().parse_known_args(words, namespace)


class Command(Parser):
    """The parser of a command, which takes options before, between and after names."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Everything must be known; argparse itself would let the parser of the whole line complain, in its words."""
        words = list(sys.argv[1:] if args is None else args)
        parsed, left = super().parse_known_args(self._options_first(words), namespace)
        if left := [word for word in left if word != "--"]:
            several = "s" if len(left) > 1 else ""
            self.error(f"unexpected argument{several}: {' '.join(map(repr, left))}")
        return parsed, []

    def _options_first(self, words: Sequence[str]) -> list[str]:
        """Options with their values, then ``--`` and all names: argparse wants names together.

        ``parse_intermixed_args`` does not go into commands, and loses a ``--`` before ids that begin with "-".
        """
        options: list[str] = []
        names: list[str] = []
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if word == "--":
                names += words[at:]
                break
            found = self._option(word)
            if found is None:
                names.append(word)
                continue
            options.append(word)
            action, has_value = found
            if has_value or action.nargs == 0:
                continue
            most = (
                {None: 1, "?": 1}.get(action.nargs, len(words)) if not isinstance(action.nargs, int) else action.nargs
            )
            taken = 0
            while taken < most and at < len(words) and words[at] != "--" and self._option(words[at]) is None:
                # As many as can be meant: `-k 10 50 plays.csv` has two numbers and a name
                if taken and not isinstance(action.nargs, int) and not _fits(action, words[at]):
                    break
                options.append(words[at])
                at, taken = at + 1, taken + 1
        return [*options, "--", *names] if names else options

    def name_of(self, dest: str) -> str:
        """What an argument is called on the command line."""
        action = next(action for action in self._actions if action.dest == dest)
        return action.option_strings[-1] if action.option_strings else str(action.metavar)

    def in_options(self, text: str) -> str:
        """A message of the library in the words of the command line: user_column='who' as --user-column 'who'."""
        there = {action.dest: option for action in self._actions for option in action.option_strings[-1:]}
        names = there | {name: there[dest] for name, dest in ARGUMENTS.items() if dest in there}
        for phrase, option in PHRASES.items():
            text = text.replace(phrase, option)
        for name, option in names.items():
            if "_" in name:  # wherever it is, but in quotes or in a path
                text = re.sub(rf"(?<![\w'\"/.-]){name}(?![\w'\"/-])", option, text)
            else:  # a word like any other, but where it has a value, or begins what is said
                text = re.sub(rf"(?<![\w'\"/.-]){name}(?==)|^{name}(?= must| has| need| cannot| is for)", option, text)
            text = re.sub(rf"(?<![\w'\"/.-]){option}=", f"{option} ", text)
        return text

    def _option(self, word: str) -> tuple[argparse.Action, bool] | None:
        """The option of a word and whether its value is in the same word; None where it is a name or a value."""
        known = self._option_string_actions
        name, equals, _ = word.partition("=")
        if name in known:
            return known[name], bool(equals)
        if not word.startswith("-") or word == "-" or NEGATIVE_NUMBER.fullmatch(word):
            return None
        if not word.startswith("--") and word[:2] in known and f"-{name}" not in known:
            return known[word[:2]], True  # -k5
        if " " in name:
            return None
        begun = [option for option in known if option.startswith(name)] if name.startswith("--") else []
        if len({id(known[option]) for option in begun}) == 1:
            return known[begun[0]], bool(equals)
        if begun:
            self.error(f"{name} may be {' or '.join(begun)}")
        parameter = name.lstrip("-").replace("-", "_")
        if "--set" in known and parameter in PARAMETERS:
            self.error(f"there is no option {name}; it is a parameter of the objective: --set {parameter}=X")
        self.error(f"there is no option {name}{did_you_mean(name, known)}")


def _fits(action: argparse.Action, word: str) -> bool:
    kind = action.type if callable(action.type) else str
    try:
        kind(word)
    except (argparse.ArgumentTypeError, TypeError, ValueError):
        return False
    return True


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Room for the longest option beside its explanation."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **({"max_help_position": 32} | options))


def add_command(
    commands: Commands, name: str, help: str, run: Callable[[argparse.Namespace], int | None], epilog: str = ""
) -> argparse.ArgumentParser:
    """The parser of a command, whose arguments the caller adds; `run` does its work and may return a status."""
    parser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", epilog=epilog, formatter_class=Formatter
    )
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.add_argument("--traceback", action="store_true", help="on an error, show where in the code it came from")
    return parser
