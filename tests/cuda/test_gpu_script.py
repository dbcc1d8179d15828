"""What is run first on a machine with a GPU, as far as it goes without one."""

import os
import re
import subprocess
import sys

import pytest
from beside import ROOT

pytest.importorskip("torch", reason="torch is not installed")


def run(*arguments):
    env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", ROOT / "benchmarks" / "gpu.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_a_dry_run_goes_through_all_of_it_in_order():
    before = sorted((ROOT / "benchmarks" / "results").glob("gpu*"))
    done = run("--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [
        "build_ext", "doctor --gpu", "-m pytest", "memcheck", "racecheck", "initcheck", "synccheck",
        "tests collected", "cases can be computed", "cholesky: ", "nsys profile",
    ]  # fmt: skip
    assert [step for step in re.findall("|".join(steps), done.stdout) if step != "-m pytest"] == [
        step for step in steps if step != "-m pytest"
    ]
    assert "tried, small msd 64 topk" in done.stderr
    assert sorted((ROOT / "benchmarks" / "results").glob("gpu*")) == before


def test_it_takes_nothing_else():
    assert run("--quick").returncode == 2
