"""What the package's types are worth to a program that is checked against them."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

PROGRAM = Path(__file__).parents[1] / "support" / "typed_program.py"


def test_a_program_checked_by_mypy(tmp_path):
    """With the package as an installed one: its own errors are not reported (make lint finds those)."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [*command, "--follow-imports=silent", str(PROGRAM)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PROGRAM.read_text().replace("  # type: ignore", "  # "))
    done = subprocess.run([*command, "--follow-imports=silent", str(wrong)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("error:") == 6, done.stdout


def test_the_program_runs():
    subprocess.run([sys.executable, "-c", PROGRAM.read_text()], check=True)
