"""The kernels of the CPU emulator; nothing of this is installed."""

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import beside
import pytest

pytest.importorskip("pybind11", reason="pybind11 is not installed")

ROOT = beside.ROOT
#: Of the devices that are emulated where a test does not say it: all tests of kernels, on a device of 64 or 99 KiB of
#: shared memory, by WALS_GPU_TEST_ARCHITECTURE=75 or 86.
ARCHITECTURE = int(os.environ.get("WALS_GPU_TEST_ARCHITECTURE", 80))


@functools.cache
def load(name: str) -> ModuleType:
    """The emulated module `name`, e.g. "_emulator_tests_checked"; pytest.mark.waits_for("emulator") on who calls it."""
    path = next(Path(beside.result("emulator")).glob(f"{name}.*.so"))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.configure = functools.partial(module.configure, architecture=ARCHITECTURE)
    module.configure()
    return module
