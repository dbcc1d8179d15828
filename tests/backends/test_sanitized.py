"""The source distribution is whole; native calls have no races and stay in their arrays (make sanitize: all of it)."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    name = done.stdout.splitlines()[-1]
    with tarfile.open(folder / name) as archive:
        archive.extractall(folder, filter="data")
    return folder / name.removesuffix(".tar.gz")


def test_the_source_distribution_is_whole(sdist):
    done = subprocess.run(
        ["git", "ls-files", "csrc", "tools", "wals_gpu", "tests", "setup.py", "LICENSE"], cwd=ROOT, capture_output=True
    )
    if done.returncode:
        pytest.skip("no git checkout")
    missing = [name for name in done.stdout.decode().split() if not (sdist / name).exists()]
    assert not missing
    assert not list(sdist.rglob("*.so")) and not list(sdist.rglob("*.pyc"))


def run_sanitized(program, sanitizers, *sources, definitions=()):
    """What a native program prints that was built with sanitizers; a finding ends it with an error."""
    compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-pthread", "-O1", "-g", "-ffp-contract=fast"]
    options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *(f"-D{one}" for one in definitions)]
    subprocess.run([*compiler, *options, *(ROOT / source for source in sources), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_races_of_the_loop_of_threads(tmp_path):
    assert run_sanitized(tmp_path / "parallel", "thread", "tests/support/native_parallel.cpp") == "10 caught\n"


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_every_native_call(tmp_path, sanitizers):
    """With the kernels of one instruction set, and several threads; make sanitize looks at all of them."""
    sources = [
        "tests/support/native_threads.cpp",
        *(f"csrc/cpu/{name}.cpp" for name in ("kernels", "drivers", "dispatch")),
    ]
    definitions = ["WALS_ISA=isa_baseline", "WALS_VECTOR_BYTES=16", "WALS_ROWS_PER_TILE=4"]
    printed = run_sanitized(tmp_path / "threads", sanitizers, *sources, definitions=definitions)
    assert printed == "4 of 4 the same\n"
