"""Seconds per iteration, fit time, memory and loss of wals_gpu and the systems it is compared with.

    .venv-peers/bin/python benchmarks/cases/bench_fit.py ml-20m --factors 128

Every fit runs in a process of its own, the systems interleaved, SGEMM measured in every round. The first round also
keeps the factors of a few iterations and computes their loss here, in float64, for the plot of loss against seconds.
A fit that is over --budget after two iterations is not repeated: its iterations are the spread.
Writes results/fit-<set>-<factors>.json.
"""

import argparse
import sys
import tempfile

import _path  # noqa: F401

from lib import ceiling
from lib.common import interleave, rounded, save_matrix, standard_arguments, write_result
from lib.fits import line_of, problem_arguments, record_of, run_system
from lib.systems import SYSTEMS
from wals_gpu.datasets import SHAPES, synthetic

# An iteration with over-relaxation takes as long as one without.
PLAIN = [name for name, system in SYSTEMS.items() if "over_relaxation" not in system.options]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    problem_arguments(parser)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[1, 2, 4, 10], help="where to take the loss")
    parser.add_argument("--budget", type=float, default=10, help="seconds after which a fit ends, after 3 iterations")
    parser.add_argument("--systems", nargs="*", default=PLAIN, choices=SYSTEMS, metavar="SYSTEM")
    standard_arguments(parser, quick="one repeat of three iterations, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.iterations, args.checkpoints = 1, 3, [1, 3]
    return args


def too_slow(run: dict, budget: float) -> bool:
    """Whether a fit was over the budget after the second iteration already."""
    return "error" in run or run["elapsed"][1] > budget


def main() -> None:
    args = parse()
    matrix = synthetic(*SHAPES[args.set], random_state=args.seed)
    runs: dict[str, list[dict]] = {name: [] for name in args.systems}
    gemms: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/matrix.npz"
        save_matrix(path, matrix)
        for repeat, name in interleave(["SGEMM", *args.systems], args.repeats, args.seed):
            if name == "SGEMM":
                gemms += ceiling.measure(args.threads)
                print(repeat, name, [round(gemm.get("gflops", 0)) for gemm in gemms[-2:]], file=sys.stderr)
                continue
            if runs[name] and too_slow(runs[name][0], args.budget):
                continue
            run = run_system(name, args, path, matrix, args.checkpoints if repeat == 0 else [])
            runs[name].append(run)
            print(repeat, name, line_of(run), file=sys.stderr)

    top, gflop = ceiling.best_gflops(gemms), ceiling.iteration_gflop(matrix, args.factors)
    shared = {
        "shape": [*matrix.shape, int(matrix.nnz)],
        "factors": args.factors,
        "dtype": "float32",
        "device": "cpu",
        "threads": args.threads,
        "seed": args.seed,
        "unit": "s/iteration",
    }
    records = []
    for name, own_runs in runs.items():
        record = record_of(name, own_runs) | shared
        if "error" not in record:
            record["fraction_of_ceiling"] = rounded(gflop / record["seconds_per_iteration"]["median"] / top)
        records.append(record)
    ceilings = {"ceiling_gflops": rounded(top), "exact_iteration_gflop": rounded(gflop)}
    write_result(f"fit-{args.set}-{args.factors}", args, records, **ceilings, sgemm=gemms)


if __name__ == "__main__":
    main()
