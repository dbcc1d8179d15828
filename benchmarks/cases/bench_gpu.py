"""Row solves and top-k on a CUDA device, against torch's batched Cholesky and implicit's GPU path.

    .venv/bin/python benchmarks/cases/bench_gpu.py            # benchmarks/gpu.sh builds and tests first

Sets of the size of ML-20M and of the Million Song data. One iteration is both half-sweeps, from factors that stay on
the device. "of_floor" is the time that an H100 needs at least for the same bytes and flops (gpu_floors.py), over that
measured. What no time is left for is listed as left out. `--dry-run` goes through the cases at a small size on the CPU
and writes nothing. Writes results/gpu.json.

`--profile` tells instead where the time of an iteration goes, on the first set at 128 factors: by kernel, by copy, and
what of it the device waits. Writes results/gpu_profile.txt.
"""

import argparse
import dataclasses
import sys
import time

import _path  # noqa: F401
import numpy as np

from lib.common import RESULTS, median_seconds, write_result
from lib.gpu_floors import FACTORS, floors, topk_floor
from wals_gpu import backends
from wals_gpu.backends import self_check
from wals_gpu.datasets import SHAPES, synthetic
from wals_gpu.objective import make_objective

SETS = ("ml-20m", "msd")
SOLVERS = ("cholesky", "cg", "subspace")


def solves(backend, matrix, factors: int) -> list[dict]:
    """Seconds of an iteration of each solver."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(0, 0.1, (n, factors)).astype(np.float32) for n in matrix.shape)
    bound = make_objective("hu", alpha=10.0, regularization=10.0).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    least = floors(*matrix.shape, matrix.nnz, factors)
    records = []
    with backend.session(x, y) as session:
        for solver in SOLVERS:
            options = backends.SolveOptions(solver)

            def iteration(options=options):
                session.solve("user", users, options)
                session.solve("item", items, options)

            seconds = median_seconds(iteration, seconds=1.0, at_most=10)
            records.append(
                {
                    "what": solver,
                    "factors": factors,
                    "seconds": seconds,
                    "floor": least[solver],
                    "of_floor": least[solver] / seconds["median"],
                }
            )
    return records


def retrieval(backend, shape: tuple[int, int], factors: int) -> list[dict]:
    """Seconds of the k best items for 4,096 users."""
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, factors)).astype(np.float32) for n in (min(4096, shape[0]), shape[1]))
    least, records = topk_floor(len(users), len(items), factors), []
    for k in (10, 100, 1000):
        seconds = median_seconds(lambda k=k: backend.topk(users, items, k))
        records.append(
            {
                "what": "topk",
                "factors": factors,
                "k": k,
                "seconds": seconds,
                "floor": least,
                "of_floor": least / seconds["median"],
            }
        )
    return records


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


def profile(backend, matrix, factors: int, device: str) -> str:
    """A report of three iterations of each solver: what the device was busy with, and how much of the time."""
    from torch.profiler import ProfilerActivity, profile

    on_device = device == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    rng = np.random.default_rng(0)
    bound = make_objective("hu", alpha=10.0, regularization=10.0).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    lines = [f"{matrix.shape[0]} x {matrix.shape[1]}, {matrix.nnz} entries, {factors} factors, three iterations"]
    for solver in SOLVERS:
        x, y = (rng.normal(0, 0.1, (n, factors)).astype(np.float32) for n in matrix.shape)
        options = backends.SolveOptions(solver)
        with backend.session(x, y) as session:
            for is_measured in (False, True):  # the first uploads, and plans
                with profile(activities=activities) as seen:
                    started = time.perf_counter()
                    for _ in range(3 if is_measured else 1):
                        session.solve("user", users, options)
                        session.solve("item", items, options, return_loss=True)
                    seconds = time.perf_counter() - started
        events = seen.key_averages()
        busy = {event.key: (_device_us(event), event.count) for event in events if _device_us(event) > 0}
        total = sum(time_of for time_of, _ in busy.values()) / 1e6
        lines += ["", f"{solver}: {1000 * seconds:.2f} ms, device busy {1000 * total:.2f} ms ({total / seconds:.0%})"]
        lines += [
            f"{time_of / 1000:10.3f} ms {count:6d} calls  {key[:90]}"
            for key, (time_of, count) in sorted(busy.items(), key=lambda item: -item[1][0])
        ]
    return "\n".join(lines) + "\n"


def _device_us(event) -> float:
    """Time of the device alone in an event; torch before 2.6 calls it after CUDA."""
    return float(getattr(event, "self_device_time_total", None) or getattr(event, "self_cuda_time_total", 0.0) or 0.0)


def cases(backend, name: str, matrix, factors: int, device: str):
    """(what, function that gives its records) of one set and number of factors."""
    yield "solvers", lambda: solves(backend, matrix, factors)
    yield "topk", lambda: retrieval(backend, matrix.shape, factors)
    if name == SETS[0]:
        yield "torch", lambda: [torch_cholesky(matrix.shape[0], factors, device)]
        yield "implicit", lambda: [implicit_fit(matrix, factors)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--factors", type=int, nargs="+", default=list(FACTORS))
    parser.add_argument("--seconds", type=float, default=220.0, help="no case is started later")
    parser.add_argument("--profile", action="store_true", help="where the time of an iteration goes, and nothing else")
    parser.add_argument("--dry-run", action="store_true", help="every case, small and on the CPU; writes nothing")
    args = parser.parse_args()
    args.quick = False
    device = "cpu" if args.dry_run else "cuda"
    backend, start, records = backends.make_backend(device), time.perf_counter(), []
    if args.profile:
        matrix = synthetic(*((300, 200, 3000) if args.dry_run else SHAPES[args.sets[0]]), random_state=0)
        report = profile(backend, matrix, 32 if args.dry_run else 128, device)
        print(report)
        if not args.dry_run:
            (RESULTS / "gpu_profile.txt").write_text(report)
        return
    checked = {} if args.dry_run else {"self_check": dataclasses.asdict(self_check.self_check(backend))}
    for name in args.sets:
        matrix = synthetic(*((300, 200, 3000) if args.dry_run else SHAPES[name]), random_state=0)
        for factors in args.factors[:1] if args.dry_run else args.factors:
            for what, measure in cases(backend, name, matrix, 32 if args.dry_run else factors, device):
                if time.perf_counter() - start > args.seconds:
                    new = [{"what": what, "factors": factors, "left_out": f"{args.seconds:g} s were over"}]
                else:
                    new = measure()
                records += [{"set": name, **record} for record in new]
                print("tried, small" if args.dry_run else new, name, factors, what, file=sys.stderr)
                if not args.dry_run:  # after each: a run that is cut off has the others
                    name_of_device = backend.device.memory.torch.cuda.get_device_name()
                    write_result("gpu", args, records, device=name_of_device, **checked)


if __name__ == "__main__":
    main()
