"""Builds the kernels for the CPU emulator and loads them; nothing of this is installed."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"cuda_emulator-{sys.implementation.cache_tag}"


@functools.cache
def build() -> Path:
    """The folder with the modules, up to date with the sources."""
    configure = [
        "cmake", "-S", str(ROOT / "tools" / "cuda_emulator"), "-B", str(BUILD), "-G", "Ninja",
        "-DCMAKE_BUILD_TYPE=None", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(BUILD)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}", pytrace=False)
    return BUILD


@functools.cache
def load(name: str) -> ModuleType:
    """The emulated module `name`, e.g. "_emulator_tests_checked"."""
    path = next(build().glob(f"{name}.*.so"))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
