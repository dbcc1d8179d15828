"""Row solves of one system in this process over a grid of row lengths and ranks; started by bench_rows.py.

Prints one JSON object.
"""

import json
import sys
import warnings

import numpy as np
from ceiling import row_flops
from common import median_seconds, threadpools
from loss import row_residuals
from scipy.sparse import csr_matrix

ALPHA, RIDGE = 10.0, 1.0
TARGET_FLOPS = 1e9  # per timed call, so that short rows come by the thousand
MOST_ROWS = 20_000
MOST_ENTRIES = 4_000_000
OTHER_ROWS = 20_000  # rows of the other side, unless a row is longer


def make_rows(n: int, factors: int, seed: int):
    """Rows of n entries each, values 1 to 3, CSR (R, n_other), and the factors of the other side (n_other, D)."""
    rng = np.random.default_rng(seed)
    rows = int(np.clip(TARGET_FLOPS / row_flops(n, factors), 1, min(MOST_ROWS, max(1, MOST_ENTRIES // n))))
    n_other = max(OTHER_ROWS, n)
    # distinct per row: one from each of n equal ranges
    width = n_other // n
    columns = (np.arange(n) * width + rng.integers(width, size=(rows, n))).astype(np.int32).ravel()
    values = rng.integers(1, 4, rows * n).astype(np.float32)
    matrix = csr_matrix((values, columns, np.arange(0, rows * n + 1, n)), shape=(rows, n_other))
    return matrix, rng.standard_normal((n_other, factors), dtype=np.float32) / np.sqrt(factors, dtype=np.float32)


def wals_gpu(matrix, other, threads):
    from wals_gpu.backends import make_backend
    from wals_gpu.objective import make_objective

    backend = make_backend("cpu", threads)
    objective = make_objective("hu", alpha=ALPHA, regularization=RIDGE).bind(matrix)
    terms = objective.user_terms(matrix)
    factors = np.zeros((matrix.shape[0], other.shape[1]), np.float32)
    return factors, lambda: backend.solve_rows(terms, other, factors)


def implicit(use_cg, matrix, other, threads):
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=other.shape[1], use_cg=use_cg, num_threads=threads)
    confidence = matrix.copy()
    confidence.data = 1 + np.float32(ALPHA) * matrix.data
    factors = np.zeros((matrix.shape[0], other.shape[1]), np.float32)
    return factors, lambda: model.solver(confidence, factors, other, RIDGE, num_threads=threads)


SYSTEMS = {
    "wals_gpu exact": wals_gpu,
    "implicit Cholesky": lambda *args: implicit(False, *args),
    "implicit CG": lambda *args: implicit(True, *args),
}


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    results = []
    for n in spec["lengths"]:
        for factors in spec["ranks"]:
            matrix, other = make_rows(n, factors, spec["seed"])
            solved, solve = SYSTEMS[spec["system"]](matrix, other, spec["threads"])
            solve()
            sample = np.linspace(0, matrix.shape[0] - 1, 20).astype(int)
            residual = row_residuals(matrix, solved, other, alpha=ALPHA, ridge=RIDGE, rows=sample).max()
            if not spec["system"].endswith("CG"):
                assert residual < 1e-3, f"{n} entries, {factors} factors: residual {residual:.2g}"
            seconds = median_seconds(solve, seconds=0.1)["median"]
            case = {"row_length": n, "factors": factors, "rows": matrix.shape[0], "other_rows": matrix.shape[1]}
            results.append(case | {"seconds": seconds, "largest_residual": float(residual)})
    print(json.dumps({"results": results, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
