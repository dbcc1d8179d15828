"""The source distribution is whole; native calls have no races and stay in their arrays (make sanitize: all of it)."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import beside
import numpy as np
import pytest
from programs import program

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


@pytest.mark.waits_for("parallel, thread")
def test_races_of_the_loop_of_threads():
    done = beside.result("parallel, thread")
    assert done["status"] == 0, done["stderr"]
    assert done["stdout"] == "10 caught\n"


@pytest.mark.parametrize(
    "sanitizers",
    [pytest.param(each, marks=pytest.mark.waits_for(f"native, {each}")) for each in ("thread", "address,undefined")],
)
def test_every_native_call(sanitizers):
    done = beside.result(f"native, {sanitizers}")
    assert done["status"] == 0, done["stderr"]
    assert done["stdout"] == "4 of 4 the same\n"


def arrays(file):
    """Of native_threads.cpp: each behind its length."""
    numbers, at = np.fromfile(file), 0
    while at < len(numbers):
        length = int(numbers[at])
        yield numbers[at + 1 : at + 1 + length]
        at += 1 + length


@pytest.mark.waits_for("native, thread", "native, aarch64")
def test_every_native_call_computes_the_same_on_another_processor():
    """aarch64 has fused products where the baseline of x86-64 has none, so last bits differ, and few neighbours in a
    list of hundreds of them."""
    for name in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        program(name)
    done, here = beside.result("native, aarch64"), beside.result("native, thread")
    assert done["status"] == 0, done["stderr"]
    assert done["stdout"] == "4 of 4 the same\n"
    found, expected = list(arrays(done["results"])), list(arrays(here["results"]))
    assert [len(each) for each in found] == [len(each) for each in expected]
    assert len(found) == 4 * 65
    for number, (own, other) in enumerate(zip(found, expected, strict=True)):
        close = np.isclose(own, other, rtol=1e-3, atol=1e-4 * np.abs(other[np.isfinite(other)]).max(initial=0))
        assert np.mean(~close) <= 1e-3, f"array {number} of {len(found)}: {np.mean(~close):.2%} of {len(own)} differ"
