"""Exact rows of many factors, and what a half-sweep needs besides, in this process; started by bench_rank.py.

Prints one JSON object.
"""

import json
import sys
from functools import partial

import numpy as np

from lib.common import median_seconds, threadpools
from wals_gpu import _cpu
from wals_gpu.backends import SolveOptions, make_backend
from wals_gpu.backends.host import decompose
from wals_gpu.objective.terms import RowTerms

RIDGE = 1.0


def rows_of(n: int, rows: int, n_other: int, rng: np.random.Generator) -> RowTerms:
    """Rows of n entries and no background: the shared part of their systems is the ridge, in any basis."""
    columns = np.concatenate([np.sort(rng.choice(n_other, n, replace=False)) for _ in range(rows)])
    one = np.ones(1, np.float32)
    gram, rhs = (rng.uniform(1, 3, rows * n).astype(np.float32) for _ in range(2))
    row_ptr = np.arange(rows + 1) * n
    return RowTerms(row_ptr, columns.astype(np.int32), rhs, gram, 0.0, 0 * one, RIDGE * one, one, 0.0)


def largest_residual(terms: RowTerms, other: np.ndarray, solved: np.ndarray) -> float:
    """Of A x = b, relative to b, in float64."""
    residuals = []
    for row, x in enumerate(solved.astype(np.float64)):
        entries = slice(terms.row_ptr[row], terms.row_ptr[row + 1])
        p = other[terms.col_idx[entries]].astype(np.float64)
        b = terms.rhs[entries] @ p
        residual = (terms.gram[entries] * (p @ x)) @ p + RIDGE * x - b
        residuals.append(np.linalg.norm(residual) / np.linalg.norm(b))
    return float(max(residuals))


def measure(factors: int, share: float, threads: int, seed: int) -> dict:
    """Seconds of some rows of `share` times D entries."""
    rng = np.random.default_rng(seed)
    n = int(share * factors)
    rows = threads * max(2, 4096 // factors)
    other = rng.standard_normal((max(n, 256), factors), dtype=np.float32) / np.sqrt(factors, dtype=np.float32)
    terms, solved = rows_of(n, rows, len(other), rng), np.zeros((rows, factors), np.float32)
    table, options = _cpu.rotate(other, None, threads), SolveOptions()
    steps = options.solver, options.cg_steps, options.cg_tolerance, options.block_size, options.relaxation
    solve = partial(_cpu.solve_rows, terms, table, np.zeros(factors), None, None, solved, *steps, None, threads)
    assert not solve().any(), "a row has no solution"
    residual = largest_residual(terms, other, solved)
    assert residual < 1e-3, f"{n} entries, {factors} factors: residual {residual:.2g}"
    timed = median_seconds(solve, at_least=3, seconds=0.2)
    return {"factors": factors, "row_length": n, "rows": rows, "seconds": timed["median"], "residual": residual}


def shared(factors: int, threads: int, seed: int) -> dict:
    """Seconds of a Gram matrix of as many rows as factors, and of its eigenvectors."""
    other = np.random.default_rng(seed).standard_normal((factors, factors), dtype=np.float32)
    backend = make_backend("cpu", threads)
    terms = rows_of(1, 1, factors, np.random.default_rng(seed))
    matrix = backend.gram(terms, other)
    gram = median_seconds(lambda: backend.gram(terms, other), at_least=2, seconds=0.1)["median"]
    vectors = median_seconds(lambda: decompose(matrix), at_least=1, seconds=0.0)["median"]
    return {"factors": factors, "gram_seconds": gram, "eigenvector_seconds": vectors}


def main() -> None:
    spec = json.loads(sys.argv[1])
    how = spec["threads"], spec["seed"]
    cases = [measure(factors, share, *how) for factors in spec["ranks"] for share in spec["shares"]]
    besides = [shared(factors, *how) for factors in spec["ranks"] if factors <= spec["most_shared"]]
    print(json.dumps({"cases": cases, "shared": besides, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
