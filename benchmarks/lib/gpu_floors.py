"""The least time that an H100 (SXM) needs for an iteration or for top-k, from bytes and flops: on paper, not measured.

    .venv/bin/python benchmarks/lib/gpu_floors.py        # the table of docs/gpu.md

An iteration is both half-sweeps. Of the parts of a solver the largest is the floor: a kernel may do them at once. Rates
are assumptions: 3.0 TB/s of device memory, 5.5 TB/s from the L2 cache for tables of at most 25 MB, 67 TFLOP/s
of float32, 614 TFLOP/s of f16 by mma.sync, a third of that for a float32-accurate product. Lengths of rows are those
of a log-normal and of a Zipf-Mandelbrot law, as :func:`wals_gpu.datasets.synthetic` has them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from wals_gpu.backends.devices import limits
from wals_gpu.datasets import SHAPES

MEMORY, CACHE, CACHE_BYTES = 3.0e12, 5.5e12, 25e6
FLOAT32, SPLIT = 67e12, 614e12 / 3
FACTORS = (64, 128, 256, 512)


def gather(n_users: int, n_items: int, n_entries: int, factors: int) -> float:
    """Seconds to read the other side's factors of every entry once, on both sides."""
    rates = (CACHE if 4 * n * factors <= CACHE_BYTES else MEMORY for n in (n_users, n_items))
    return sum(4 * n_entries * factors / rate for rate in rates)


def lengths(n_users: int, n_items: int, n_entries: int) -> list[NDArray[np.float64]]:
    """Entries of each row of both sides."""
    users = np.exp(1.25 * ndtri((np.arange(n_users) + 0.5) / n_users))
    items = (np.arange(1, n_items + 1) + 0.01 * n_items) ** -1.5
    return [np.maximum(n_entries * each / each.sum(), 1) for each in (users, items)]


def exact(n: NDArray[np.float64], factors: int) -> tuple[float, float]:
    """Flops of rows with n entries, each in its form: float32-accurate products on tensor cores, and the eliminations
    within tiles in float32, 240 a row of a tile with as many rows of the diagonal one beside it."""
    most = min(limits().kernel_sizes[-1], factors * limits().dual_numerator // limits().dual_denominator)
    dual = n <= most
    size, depth = np.where(dual, n, factors), np.where(dual, factors, n)
    return float((depth * size * (size + 16) + size**3 / 3).sum()), float(15 * (size**2).sum())


def floors(
    n_users: int, n_items: int, n_entries: int, factors: int, steps: int = 3, block: int = 64
) -> dict[str, float]:
    """Seconds of an iteration of each solver: exact, conjugate gradients, subspace steps."""
    rows, read = n_users + n_items, gather(n_users, n_items, n_entries, factors)
    block = min(block, factors)
    sides = [exact(n, factors) for n in lengths(n_users, n_items, n_entries)]
    products, eliminations = (sum(part) for part in zip(*sides, strict=True))
    return {
        "cholesky": max(read, products / SPLIT, eliminations / FLOAT32),
        "cg": max(read, 2 * (steps + 1) * 4 * n_entries * factors / FLOAT32),
        "subspace": max(
            read,
            (2 * n_entries * factors * (block + 16) + rows * factors * block**2 / 3) / SPLIT,
            (12 * n_entries * factors + rows * factors * 15 * block) / FLOAT32,
        ),
    }


def topk_floor(n_queries: int, n_items: int, factors: int) -> float:
    """Seconds of all dot products, float32-accurate."""
    return 2 * n_queries * n_items * factors / SPLIT


def main() -> None:
    print("| set | D | gather | exact | CG, 3 steps | subspace, blocks of 64 | top-k of all users |")
    print("|---" * 7 + "|")
    for name in ("ml-20m", "msd"):
        shape = SHAPES[name]
        for factors in FACTORS:
            times = [gather(*shape, factors), *floors(*shape, factors).values(), topk_floor(*shape[:2], factors)]
            print(f"| {name} | {factors} | " + " | ".join(f"{1000 * t:.3g}" for t in times) + " |")


if __name__ == "__main__":
    main()
