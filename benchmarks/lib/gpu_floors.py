"""The least time that an H100 (SXM) needs for an iteration or for top-k, from bytes and flops: on paper, not measured.

    .venv/bin/python benchmarks/lib/gpu_floors.py        # the table of docs/gpu.md

An iteration is both half-sweeps. Of the parts of a solver the largest is the floor: a kernel may do them at once. Rates
are assumptions: 3.0 TB/s of device memory, 5.5 TB/s from the L2 cache for tables of at most 25 MB, 67 TFLOP/s
of float32, 614 TFLOP/s of f16 by mma.sync, a third of that for a float32-accurate product.
"""

from __future__ import annotations

from wals_gpu.datasets import SHAPES

MEMORY, CACHE, CACHE_BYTES = 3.0e12, 5.5e12, 25e6
FLOAT32, SPLIT = 67e12, 614e12 / 3
FACTORS = (64, 128, 256, 512)


def gather(n_users: int, n_items: int, n_entries: int, factors: int) -> float:
    """Seconds to read the other side's factors of every entry once, on both sides."""
    rates = (CACHE if 4 * n * factors <= CACHE_BYTES else MEMORY for n in (n_users, n_items))
    return sum(4 * n_entries * factors / rate for rate in rates)


def floors(
    n_users: int, n_items: int, n_entries: int, factors: int, steps: int = 3, block: int = 64
) -> dict[str, float]:
    """Seconds of an iteration of each solver: exact (primal form), conjugate gradients, subspace steps."""
    rows, read = n_users + n_items, gather(n_users, n_items, n_entries, factors)
    block = min(block, factors)
    gram = 2 * n_entries * factors * (factors + 16) / SPLIT
    elimination = rows * factors**3 / 3 / FLOAT32
    return {
        "cholesky": max(read, gram, elimination),
        "cg": max(read, 2 * (steps + 1) * 4 * n_entries * factors / FLOAT32),
        "subspace": max(
            read,
            2 * n_entries * factors * (block + 16) / SPLIT,
            (12 * n_entries * factors + rows * factors * block**2 / 3) / FLOAT32,
        ),
    }


def topk_floor(n_queries: int, n_items: int, factors: int) -> float:
    """Seconds of all dot products, float32-accurate."""
    return 2 * n_queries * n_items * factors / SPLIT


def main() -> None:
    print("| set | D | gather | exact, primal | CG, 3 steps | subspace, blocks of 64 | top-k of all users |")
    print("|---" * 7 + "|")
    for name in ("ml-20m", "msd"):
        shape = SHAPES[name]
        for factors in FACTORS:
            times = [gather(*shape, factors), *floors(*shape, factors).values(), topk_floor(*shape[:2], factors)]
            print(f"| {name} | {factors} | " + " | ".join(f"{1000 * t:.3g}" for t in times) + " |")


if __name__ == "__main__":
    main()
