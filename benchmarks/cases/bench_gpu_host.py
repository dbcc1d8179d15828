"""What the host does in an iteration of a fit on a CUDA device, at the shape of ML-20M: kernels here return at once.

    .venv/bin/python benchmarks/cases/bench_gpu_host.py --kernels build/.../_emulated.*.so [--before CHECKOUT]

Calls go through the binding of a built module (`--kernels`; by default wals_gpu._cuda), to a kernel with nothing to do;
what CUDA itself takes to start one is not in the times, so starts are counted. Memory is the host's: an upload costs a
copy, a download nothing but the call. `--before` measures another checkout, too, with its own `--kernels-before`.
Writes results/gpu-host.json.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import _path
import numpy as np

from lib.common import rounded, write_result

FACTORS = (64, 128, 256)
SOLVERS = ("cholesky", "cg", "subspace")
#: Of a module, and sizes in bytes.
HOST_SIDE = ("padded", "devices", "device_properties", "cg_staged_rows", "Rows", "LIMITS", "Limits", "own_stream")


class Kernels:
    """A module whose kernels return at once, and are counted."""

    def __init__(self, module):
        self.module, self.starts, self._rows = module, 0, None

    def __getattr__(self, name):
        real = getattr(self.module, name)
        if name in HOST_SIDE or name.endswith("_bytes"):
            return real

        def start(*args):
            self.starts += 1
            self.module.wide_bytes(args[1] if len(args) > 1 and isinstance(args[1], int) else 0)

        setattr(self, name, start)
        return start


class Memory:
    """Device memory on the host, full of zeros; what is copied, and what is started as one graph, is counted."""

    stream = 0

    def __init__(self, factors):
        self.uploads = self.downloads = self.bytes_up = self.bytes_down = self.graphs = 0
        wide = np.random.default_rng(0).normal(size=(4 * factors, factors))
        self._gram = (wide.T @ wide).reshape(-1)

    @contextmanager
    def side_stream(self):
        yield 1

    def record(self, start, own_stream):
        from wals_gpu.backends.cuda_memory import Recorded

        return Recorded(None, [], start())

    def replay(self, recorded):
        self.graphs += 1

    def empty(self, n, dtype):
        return np.zeros(n, dtype)

    zeros = empty  # as earlier versions call it

    def upload(self, array):
        self.uploads += 1
        self.bytes_up += array.nbytes
        return np.array(array).reshape(-1)

    def download(self, array):
        self.downloads += 1
        self.bytes_down += array.nbytes
        return self._gram if array.dtype == np.float64 and array.size == self._gram.size else array

    def address(self, array):
        return array.ctypes.data

    def free_bytes(self):
        return 1 << 40


def counted(kernels, memory):
    """Calls of kernels, graphs, uploads, downloads and bytes copied so far."""
    copied = memory.bytes_up + memory.bytes_down
    return np.array([kernels.starts, memory.graphs, memory.uploads, memory.downloads, copied])


def iteration_of(session, users, items, options, with_loss):
    """An iteration as a fit makes it, in this version or an earlier one."""
    if hasattr(session, "iterate"):
        return lambda: session.iterate(users, items, options, return_loss=with_loss)

    def in_turn():
        session.solve("user", users, options)
        session.solve("item", items, options, return_loss=with_loss)
        if with_loss:
            session.ridge_loss("user", users.ridge)

    return in_turn


def measure(path: str | None) -> list[dict]:
    """Records of the package that is imported here."""
    from wals_gpu.backends.cuda import CudaBackend
    from wals_gpu.backends.solve import SolveOptions
    from wals_gpu.datasets import SHAPES, synthetic
    from wals_gpu.objective import make_objective

    if path is None:
        module = importlib.import_module("wals_gpu._cuda")
    else:
        spec = importlib.util.spec_from_file_location(Path(path).name.split(".")[0], path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    matrix = synthetic(*SHAPES["ml-20m"])
    bound = make_objective("ials").bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(matrix.T.tocsr())
    records = []
    for factors in FACTORS:
        x, y = (np.zeros((n, factors), np.float32) for n in matrix.shape)
        for solver in SOLVERS:
            for with_loss in (False, True):
                memory, kernels = Memory(factors), Kernels(module)
                backend = CudaBackend(kernels, memory)
                with backend.session(x, y) as session:
                    iteration = iteration_of(session, users, items, SolveOptions(solver), with_loss)
                    iteration()
                    iteration()  # the second is recorded
                    counts = counted(kernels, memory)
                    times = []
                    while len(times) < 5 or (sum(times) < 0.4 and len(times) < 200):
                        start = time.perf_counter()
                        iteration()
                        times.append(time.perf_counter() - start)
                    done = counted(kernels, memory)
                starts, graphs, uploads, downloads, copied = ((done - counts) / len(times)).tolist()
                median, least = (rounded(1000 * float(f(times))) for f in (np.median, np.min))
                records.append(
                    {
                        "solver": solver, "factors": factors, "with_loss": with_loss, "milliseconds": median,
                        "least_milliseconds": least, "kernel_calls": starts, "graphs": graphs, "uploads": uploads,
                        "downloads": downloads, "bytes_copied": copied,
                    }
                )  # fmt: skip
    return records


def measure_in(checkout: Path, kernels: str | None) -> list[dict]:
    """The same in a process of its own, with the package of a checkout."""
    command = [sys.executable, __file__, "--worker", *(() if kernels is None else ("--kernels", kernels))]
    env = os.environ | {"PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1"}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", help="a built module, such as the emulator's; by default wals_gpu._cuda")
    parser.add_argument("--before", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--kernels-before", help="its built module")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        json.dump(measure(args.kernels), sys.stdout)
        return
    checkouts = [("this", Path(_path.__file__).resolve().parents[2], args.kernels)]
    if args.before:
        checkouts.insert(0, ("before", args.before, args.kernels_before))
    records = [{"version": name} | record for name, root, kernels in checkouts for record in measure_in(root, kernels)]
    for record in records:
        print(record)
    args = argparse.Namespace(quick=False)
    write_result("gpu-host", args, records)


if __name__ == "__main__":
    main()
