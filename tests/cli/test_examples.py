"""Every example in the help of a command and on a page is valid."""

import re
import shlex
from pathlib import Path

import pytest
from commands import command_parsers

from wals_gpu.cli.entry import make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def joined(text):
    """Lines, those that end with a backslash together with the next."""
    return re.sub(r" *\\\n *", " ", text).splitlines()


def examples():
    """(where it is from, the command line) of every example in a help text or on a page."""
    for line in joined(make_parser().format_help()):
        if line.startswith("  wals-gpu "):
            yield "help", re.split(r" {2,}", line.strip())[0]  # what it is for stands beside it
    for name, parser in command_parsers().items():
        for line in joined(parser.format_help()):
            if line.startswith("  wals-gpu "):
                yield f"{name} help", line.strip()
    for page in PAGES:
        for line in joined(page.read_text("utf-8")):
            if line.startswith("$ wals-gpu "):
                yield page.name, line.removeprefix("$ ").partition(" #")[0].strip()


EXAMPLES = list(examples())


@pytest.mark.parametrize(("source", "command"), EXAMPLES, ids=[f"{source}: {line}" for source, line in EXAMPLES])
def test_examples_are_understood(source, command):
    """Every one is valid as it stands, with names that its page or help introduces."""
    program, *words = shlex.split(command)
    assert program == "wals-gpu"
    assert make_parser().parse_args(words).command == words[0]
    assert "  " not in command, "two lines run together"


def test_every_help_and_page_has_its_examples():
    count = {source: sum(s == source for s, _ in EXAMPLES) for source, _ in EXAMPLES}
    assert count["help"] == 8 and count["fit help"] == 8 and count["recommend help"] == 7
    assert count["cli.md"] >= 17 and {"text.md", "similar help", "embed help", "evaluate help", "tune help"} <= set(
        count
    )
    continued = [command for source, command in EXAMPLES if source == "fit help" and "--encoder" in command]
    assert continued == [
        "wals-gpu fit plays.parquet --out model --items tracks.csv --text title,description --encoder roberta-base"
    ]
