"""docs/first-hour.md, as somebody would who follows it: every block in its order, and what it shows."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-hour.md"
BLOCKS = re.findall(r"^```(python|console)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block):
    """Each command of a console block with the lines below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, shown


def assert_shows(output, shown):
    """The lines of the page stand in the output, one after the other; "..." stands for any others."""
    lines = [line.rstrip() for line in output.splitlines()]
    at = 0
    for expected in shown:
        if expected == "...":
            continue
        assert expected in lines[at:], f"{expected!r} is not in the rest of the output:\n{output}"
        at = lines.index(expected, at) + 1


def test_every_block_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), namespace)
            continue
        for command, shown in commands(block):
            program, *words = shlex.split(command)
            assert program == "wals-gpu"
            run = subprocess.run(
                [sys.executable, "-m", "wals_gpu", *words],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", env=environment,
            )  # fmt: skip
            assert run.returncode == 0, run.stdout
            assert_shows(run.stdout, shown)
    report = namespace["report"].results
    assert report["wals"]["recall@10"].value > 1.5 * report["popularity"]["recall@10"].value
    assert "popularity" in capsys.readouterr().out


def test_the_page_has_both_kinds_of_blocks():
    kinds = [kind for kind, _ in BLOCKS]
    assert kinds.count("python") >= 4 and kinds.count("console") >= 5
