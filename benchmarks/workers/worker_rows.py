"""Row solves of one system in this process over a grid of row lengths and ranks; started by bench_rows.py.

Prints one JSON object.
"""

import json
import sys
import warnings

import numpy as np
from scipy.sparse import csr_matrix

from lib.ceiling import row_flops
from lib.common import median_seconds, threadpools
from lib.loss import row_residuals

ALPHA, RIDGE = 10.0, 1.0
TARGET_FLOPS = 2e9  # per timed call: several times what the other side's Gram matrix takes
MOST_ROWS = 20_000
MOST_ENTRIES = 4_000_000
OTHER_ROWS = 20_000  # rows of the other side, unless a row is longer


def make_rows(n: int, rows: int, n_other: int, rng: np.random.Generator) -> csr_matrix:
    """Matrix (rows, n_other) with n entries in each row, values 1 to 3."""
    # distinct per row: one from each of n equal ranges
    width = n_other // n
    columns = (np.arange(n) * width + rng.integers(width, size=(rows, n))).astype(np.int32).ravel()
    values = rng.integers(1, 4, rows * n).astype(np.float32)
    return csr_matrix((values, columns, np.arange(0, rows * n + 1, n)), shape=(rows, n_other))


def wals_gpu(solver, matrix, other, threads):
    from wals_gpu.backends import SolveOptions, make_backend
    from wals_gpu.objective import make_objective

    backend = make_backend("cpu", threads)
    objective = make_objective("hu", alpha=ALPHA, regularization=RIDGE).bind(matrix)
    terms = objective.user_terms(matrix)
    factors = np.zeros((matrix.shape[0], other.shape[1]), np.float32)
    return factors, lambda: backend.solve_rows(terms, other, factors, SolveOptions(solver))


def implicit(use_cg, matrix, other, threads):
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=other.shape[1], use_cg=use_cg, num_threads=threads)
    confidence = matrix.copy()
    confidence.data = 1 + np.float32(ALPHA) * matrix.data
    factors = np.zeros((matrix.shape[0], other.shape[1]), np.float32)
    return factors, lambda: model.solver(confidence, factors, other, RIDGE, num_threads=threads)


SYSTEMS = {
    "wals_gpu exact": lambda *args: wals_gpu("cholesky", *args),
    "wals_gpu CG": lambda *args: wals_gpu("cg", *args),
    "implicit Cholesky": lambda *args: implicit(False, *args),
    "implicit CG": lambda *args: implicit(True, *args),
}


def measure(system: str, n: int, factors: int, threads: int, seed: int) -> dict:
    """Seconds of a half-sweep over rows of n entries, and of one over a single short row: what all rows share."""
    rng = np.random.default_rng(seed)
    rows = int(np.clip(TARGET_FLOPS / row_flops(n, factors), 1, min(MOST_ROWS, max(1, MOST_ENTRIES // n))))
    n_other = max(OTHER_ROWS, n)
    other = rng.standard_normal((n_other, factors), dtype=np.float32) / np.sqrt(factors, dtype=np.float32)
    matrix = make_rows(n, rows, n_other, rng)
    solved, solve = SYSTEMS[system](matrix, other, threads)
    solve()
    sample = np.linspace(0, rows - 1, min(rows, 20)).astype(int)
    residual = float(row_residuals(matrix, solved, other, alpha=ALPHA, ridge=RIDGE, rows=sample).max())
    if not system.endswith("CG"):
        assert residual < 1e-3, f"{n} entries, {factors} factors: residual {residual:.2g}"
    _, solve_one = SYSTEMS[system](make_rows(1, 1, n_other, rng), other, threads)
    shared, seconds = (median_seconds(call, at_least=2, seconds=0.1)["median"] for call in (solve_one, solve))
    case = {"row_length": n, "factors": factors, "rows": rows, "other_rows": n_other, "largest_residual": residual}
    return case | {"seconds": seconds, "shared_seconds": shared}


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    grid = [(n, factors) for n in spec["lengths"] for factors in spec["ranks"]]
    results = [measure(spec["system"], *case, spec["threads"], spec["seed"]) for case in grid]
    print(json.dumps({"results": results, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
