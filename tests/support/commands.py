"""The command line for tests: options of a fit that takes no time, and the parser of each command."""

from wals_gpu.cli.entry import make_parser

QUICK = ["--factors", "8", "--iterations", "3", "--objective", "hu", "--set", "alpha=10", "--quiet"]


def command_parsers():
    """The parser of each command, by name."""
    (commands,) = (action for action in make_parser()._actions if isinstance(action.choices, dict))
    return commands.choices
