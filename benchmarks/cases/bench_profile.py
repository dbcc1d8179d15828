"""Where the time of a fit goes: solving rows, and everything else.

    .venv-peers/bin/python benchmarks/cases/bench_profile.py

Fits WALS with a clock around each part, once per solver, with the loss of every iteration. "loss" is the difference
between the row solves of a fit with and of one without it, plus the ridge terms. Writes results/profile.json.
"""

import argparse
import sys
import time
from collections import defaultdict
from contextlib import contextmanager

import _path  # noqa: F401
import numpy as np

from lib.common import standard_arguments, write_result
from wals_gpu import WALS, _cpu
from wals_gpu.backends import cpu
from wals_gpu.datasets import SHAPES, synthetic
from wals_gpu.objective import BoundObjective, Objective
from wals_gpu.training import plan

PARTS = [  # (label, owner, attribute)
    ("check input", plan, "as_interactions"),
    ("coefficients", Objective, "bind"),
    ("coefficients", BoundObjective, "_terms"),
    ("transpose", _cpu, "transpose"),
    ("start values", plan, "_start_values"),
    ("solve rows", _cpu, "solve_rows"),
    ("Gram matrices", _cpu, "gram"),
    ("eigenvectors", np.linalg, "eigh"),
    ("rotations", _cpu, "rotate"),
    ("rotations", _cpu, "rotate_together"),
    ("loss", cpu.CpuBackend, "ridge_loss"),
]


@contextmanager
def clocks(spent: dict[str, float]):
    """Add the seconds of every call of PARTS to `spent`."""
    originals = []
    for label, owner, name in PARTS:
        original = getattr(owner, name)

        def timed(*args, _call=original, _label=label, **kwargs):
            start = time.perf_counter()
            try:
                return _call(*args, **kwargs)
            finally:
                spent[_label] += time.perf_counter() - start

        originals.append((owner, name, original))
        setattr(owner, name, timed)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SHAPES, default="ml-20m")
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=10)
    standard_arguments(parser, quick="the smallest set, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.set = "ml-1m"
    matrix = synthetic(*SHAPES[args.set], random_state=args.seed)
    records = []
    for solver in ("cholesky", "cg"):
        runs = {}
        for compute_loss in (False, True):
            fit = WALS(
                args.factors,
                "hu",
                alpha=10.0,
                regularization=10.0,
                iterations=args.iterations,
                solver=solver,
                num_threads=args.threads,
                compute_loss=compute_loss,
            )
            spent: dict[str, float] = defaultdict(float)
            start = time.perf_counter()
            with clocks(spent):
                fit.fit(matrix)
            runs[compute_loss] = dict(spent) | {"total": time.perf_counter() - start}
        parts = dict(runs[True])
        evaluated = max(0.0, parts["solve rows"] - runs[False]["solve rows"])
        parts["solve rows"] -= evaluated
        parts["loss"] = parts.get("loss", 0.0) + evaluated
        total = parts.pop("total")
        parts["rest"] = total - sum(parts.values())
        work = ("solve rows", "Gram matrices", "eigenvectors", "rotations")
        other = sum(seconds for label, seconds in parts.items() if label not in work)
        records.append(
            {
                "system": f"wals_gpu {solver}",
                "unit": "s",
                "threads": args.threads,
                "seconds": parts,
                "total": total,
                "everything_else": other / total,
            }
        )
        print(solver, f"{total:.2f} s, everything else {other / total:.1%}", parts, file=sys.stderr)
    write_result("profile", args, records)


if __name__ == "__main__":
    main()
