"""The source distribution is whole; the loop of native threads has no races (make sanitize looks at the kernels)."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
        ["git", "ls-files", "csrc", "wals_gpu", "tests", "setup.py", "LICENSE"], cwd=ROOT, capture_output=True
    )
    if done.returncode:
        pytest.skip("no git checkout")
    missing = [name for name in done.stdout.decode().split() if not (sdist / name).exists()]
    assert not missing
    assert not list(sdist.rglob("*.so")) and not list(sdist.rglob("*.pyc"))


def test_races(tmp_path):
    """Of the loop that every native call runs its threads in; make sanitize looks at the kernels too."""
    program = tmp_path / "parallel"
    source = str(ROOT / "tests/native_parallel.cpp")
    options = ["-std=c++17", "-pthread", "-O1", "-g", "-fsanitize=thread"]
    subprocess.run([os.environ.get("CXX", "c++"), *options, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "10 caught\n"), done.stderr
