"""Launches of the project's own host code, run on nvcc's PTX.

The emulated module (tools/cuda_emulator) is asked to hand its launches over (``run_elsewhere``): kernel, grid, block
and the parameters' bytes as g++ laid them out, with device memory as it lies in this process. So what host code
computes, it computes with what nvcc compiled, and no parameter is typed in. That the two compilers agree on sizes and
places of parameters is checked at each launch; on fields of structures, by what the kernels compute.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ptx.machine import run
from ptx.memory import Segment
from ptx.parser import Fault, Kernel, parse
from ptx.tensor import Model
from ptx.threads import Launch

__all__ = ["Device", "compile_sources", "find_nvcc", "read_kernels"]


def find_nvcc() -> str | None:
    """As the build finds it."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compile_sources(nvcc: str, sources: Iterable[Path], architecture: int, folder: Path, jobs: int = 2) -> list[Path]:
    """PTX of CUDA sources for compute_`architecture`, as csrc/CMakeLists.txt compiles them, with source lines.

    Raises
    ------
    RuntimeError
        With what nvcc said.
    """

    def one(source: Path) -> Path:
        result = folder / f"{source.stem}.{architecture}.ptx"
        flags = ["-std=c++17", "-O3", "-ptx", f"-arch=compute_{architecture}", "-lineinfo"]
        done = subprocess.run([nvcc, *flags, source, "-o", result], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc of {source.name}:\n{done.stdout}{done.stderr}")
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources))


def read_kernels(files: Iterable[Path]) -> dict[str, Kernel]:
    """Kernels of several modules by name."""
    kernels: dict[str, Kernel] = {}
    for file in files:
        kernels |= parse(file.read_text())
    return kernels


class Device:
    """Runs the launches of an emulated module.

    Parameters
    ----------
    kernels : dict of str to Kernel
        By mangled name.
    model : Model
        Of the tensor cores.

    Attributes
    ----------
    launched : Counter
        Instructions that groups of threads went through, by kernel.
    """

    def __init__(self, kernels: dict[str, Kernel], model: Model) -> None:
        self.kernels, self.model = kernels, model
        self.launched: Counter[str] = Counter()

    @contextmanager
    def instead_of(self, module: ModuleType) -> Iterator[None]:
        """As long as it lasts, launches of `module` come here."""
        names = _names(str(module.__file__))

        def launch(
            address: int,
            grid: tuple[int, int, int],
            block: tuple[int, int, int],
            shared_bytes: int,
            parameters: list[tuple[int, int, int]],
            data: bytes,
        ) -> None:
            kernel = self.kernels.get(names[address])
            if kernel is None:
                raise Fault(f"there is no PTX of {names[address]}")
            check_parameters(kernel, parameters)
            segments = [Segment.at(name, begin, end) for begin, end, name in module.arrays()]
            self.launched[kernel.name] += run(Launch(kernel, grid, block, shared_bytes, data), segments, self.model)

        module.run_elsewhere(launch)
        try:
            yield
        finally:
            module.run_elsewhere(None)


def check_parameters(kernel: Kernel, given: list[tuple[int, int, int]]) -> None:
    """That host and device compiler lay out parameters alike: (offset, size, alignment) of each."""
    wanted = [(each.offset, each.size, each.alignment) for each in kernel.parameters]
    if given != wanted:
        raise Fault(f"parameters (offset, size, alignment) of {kernel.name}: {given} on the host, {wanted} in its PTX")


def _names(library: str) -> dict[int, str]:
    """Functions of a library by address."""
    done = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True)
    fields = (line.split() for line in done.stdout.splitlines())
    return {int(address, 16): name for address, kind, name in fields if kind in "tTwW"}
