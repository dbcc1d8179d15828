"""Row solves and top-k on a CUDA device, against torch's batched Cholesky and implicit's GPU path.

    .venv/bin/python benchmarks/bench_gpu.py            # benchmarks/gpu.sh builds and tests first

One iteration is both half-sweeps, copies of the factors to and from the device included. "of_floor" is the time that an
H100 needs at least for the same bytes and flops (FLOORS), over the time measured. `--dry-run` goes through the cases at
a small size on the CPU and writes nothing. Writes results/gpu.json.
"""

import argparse
import itertools
import sys

import numpy as np
from common import median_seconds, write_result

from wals_gpu import backends
from wals_gpu.datasets import SHAPES, synthetic
from wals_gpu.objective import make_objective

FACTORS = (64, 128, 256, 512)
#: On paper, H100 SXM, ms per iteration of 137k x 20k with 10 million entries: the largest of gather, Gram (three f16
#: products) and Cholesky (primal, float32); gather with the rows kept; subspace blocks of 64. The dual form may do
#: better than the first.
FLOORS = {
    "cholesky": (1.1, 2.2, 13.4, 106.0),
    "cg": (1.1, 2.2, 4.4, 11.8),
    "subspace": (1.4, 2.8, 5.6, 14.0),
}


def solves(backend, matrix, factors: int) -> list[dict]:
    """Seconds of an iteration of each solver."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0, 0.1, (n, factors)).astype(np.float32) for n in matrix.shape)
    bound = make_objective("hu", alpha=10.0, regularization=10.0).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    records = []
    for solver, floors in FLOORS.items():

        def iteration(how=solver):
            backend.solve_rows(users, y, x, solver=how)
            backend.solve_rows(items, x, y, solver=how)

        seconds = median_seconds(iteration, seconds=3.0)
        floor = floors[FACTORS.index(factors)] / 1000 if factors in FACTORS else None
        of_floor = floor and floor / seconds["median"]
        records.append({"what": solver, "factors": factors, "seconds": seconds, "floor": floor, "of_floor": of_floor})
    return records


def retrieval(backend, shape: tuple[int, int], factors: int) -> list[dict]:
    """Seconds of the k best items for 4,096 users."""
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, factors)).astype(np.float32) for n in (min(4096, shape[0]), shape[1]))
    return [
        {
            "what": "topk",
            "factors": factors,
            "k": k,
            "seconds": median_seconds(lambda k=k: backend.topk(users, items, k)),
        }
        for k in (10, 100, 1000)
    ]


def torch_cholesky(rows: int, factors: int, device: str) -> dict:
    """torch's batched Cholesky and solve alone: no Gram matrices, which a fit needs besides."""
    import torch

    batch = min(4096, rows, (4 << 30) // (4 * factors**2))
    a = torch.randn(batch, factors, 16, device=device)
    a = a @ a.mT + torch.eye(factors, device=device)
    b = torch.randn(batch, factors, 1, device=device)

    def solve():
        torch.cholesky_solve(b, torch.linalg.cholesky(a))
        if device == "cuda":
            torch.cuda.synchronize()

    return {"what": "torch cholesky + solve", "factors": factors, "rows": batch, "seconds": median_seconds(solve)}


def implicit_fit(matrix, factors: int) -> dict:
    """Seconds of an iteration of implicit's CUDA model (conjugate gradients), where it is installed with CUDA."""
    try:
        import implicit.gpu

        if not implicit.gpu.HAS_CUDA:
            return {"what": "implicit gpu", "factors": factors, "left_out": "this build of implicit has no CUDA"}
        from implicit.gpu.als import AlternatingLeastSquares
    except ImportError as error:
        return {"what": "implicit gpu", "factors": factors, "left_out": str(error)}
    seconds = {}
    for iterations in (1, 6):
        model = AlternatingLeastSquares(factors=factors, iterations=iterations, alpha=10.0, random_state=0)
        seconds[iterations] = median_seconds(lambda m=model: m.fit(matrix, show_progress=False), at_most=3)["median"]
    return {"what": "implicit gpu", "factors": factors, "seconds": {"median": (seconds[6] - seconds[1]) / 5}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", type=int, nargs="+", default=list(FACTORS))
    parser.add_argument("--dry-run", action="store_true", help="every case, small and on the CPU; writes nothing")
    args = parser.parse_args()
    args.quick = False
    shape = (300, 200, 3000) if args.dry_run else SHAPES["ml-20m"]
    backend = backends.make_backend("cpu" if args.dry_run else "cuda")
    device = "cpu" if args.dry_run else "cuda"
    matrix = synthetic(*shape, random_state=0)
    records = []
    for factors in args.factors:
        wanted = 32 if args.dry_run else factors
        cases = itertools.chain(
            solves(backend, matrix, wanted),
            retrieval(backend, matrix.shape, wanted),
            [torch_cholesky(matrix.shape[0], wanted, device), implicit_fit(matrix, wanted)],
        )
        for record in cases:
            print("tried, small" if args.dry_run else record, factors, record["what"], file=sys.stderr)
            records.append(record)
    if not args.dry_run:
        import torch

        write_result("gpu", args, records, device=torch.cuda.get_device_name(), set="ml-20m")


if __name__ == "__main__":
    main()
