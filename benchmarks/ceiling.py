"""The ceiling every time is set against: SGEMM of this machine, and the flops an exact sweep needs."""

import numpy as np
from common import run_worker

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


def exact_gflop(matrix, factors: int) -> float:
    """GFLOP of one exact iteration (users, then items), each row solved in its cheaper form.

    With n entries in the row: primal n D (D+1) + D^3/3 + 2 D^2, dual n (n+1) D + n^3/3 + 4 n D; a rotation of
    2 D^2 per row goes with each side's Gram diagonalised once, two per row. It is a model, the same for every
    system: what an iteration at the ceiling would need, whatever a system does in fact.
    """
    d = float(factors)
    total = 0.0
    for lengths in (np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])):
        n = lengths.astype(np.float64)
        primal = n * d * (d + 1) + d**3 / 3 + 2 * d**2
        dual = n * (n + 1) * d + n**3 / 3 + 4 * n * d
        total += np.minimum(primal, dual).sum() + 2 * 2 * d**2 * n.size
    return total / 1e9
