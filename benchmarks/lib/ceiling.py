"""The ceiling every time is set against: SGEMM of this machine, and the flops an exact sweep needs."""

import numpy as np

from lib.common import run_worker

SIZE = 3072  # large enough for a library's full rate, three matrices of 36 MiB


def measure(threads: int) -> list[dict]:
    """SGEMM of MKL (through torch) and OpenBLAS (through numpy), each in its own process."""
    records = [
        run_worker("worker_gemm.py", {"library": library, "size": SIZE, "threads": threads})
        for library in ("torch", "numpy")
    ]
    return [record | {"system": "SGEMM", "size": SIZE, "unit": "GFLOP/s"} for record in records]


def best_gflops(records: list[dict]) -> float:
    """The fastest library's median over all measurements: one ceiling for a whole run."""
    by_library: dict[str, list[float]] = {}
    for record in records:
        if "gflops" in record:
            by_library.setdefault(record["library"], []).append(record["gflops"])
    return max(float(np.median(values)) for values in by_library.values())


def row_flops(n, factors: int) -> np.ndarray:
    """Flops of an exact row with n entries, in its cheaper form, and of the two rotations of its factor.

    Primal n D (D+1) + D^3/3 + 2 D^2, dual n (n+1) D + n^3/3 + 4 n D, rotations 2 x 2 D^2.
    """
    n, d = np.asarray(n, dtype=np.float64), float(factors)
    primal = n * d * (d + 1) + d**3 / 3 + 2 * d**2
    dual = n * (n + 1) * d + n**3 / 3 + 4 * n * d
    return np.minimum(primal, dual) + 4 * d**2


def iteration_gflop(matrix, factors: int) -> float:
    """GFLOP of one exact iteration, users then items.

    It is a model and the same for every system: what an exact iteration at the ceiling would take, whatever a system
    does in fact.
    """
    lengths = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])
    return sum(float(row_flops(n, factors).sum()) for n in lengths) / 1e9
