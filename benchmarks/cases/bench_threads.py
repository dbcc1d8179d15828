"""Seconds per iteration over the number of threads, for wals_gpu's solvers and implicit's CG.

    .venv-peers/bin/python benchmarks/cases/bench_threads.py ml-20m --factors 128

Fits of three iterations, interleaved over systems and thread counts; the first iteration, which has the preparation in
it, does not count. Writes results/threads-<set>-<factors>.json.
"""

import argparse
import sys
import tempfile

import _path  # noqa: F401

from lib.common import default_threads, interleave, save_matrix, standard_arguments, write_result
from lib.fits import line_of, problem_arguments, record_of, run_system
from lib.systems import SYSTEMS
from wals_gpu.datasets import SHAPES, synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    problem_arguments(parser)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="*", default=list(range(1, default_threads() + 1)))
    systems = ["wals_gpu exact", "wals_gpu CG", "wals_gpu subspace", "implicit CG"]
    parser.add_argument("--systems", nargs="*", default=systems, choices=SYSTEMS, metavar="SYSTEM")
    standard_arguments(parser, quick="one repeat at 32 factors, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.factors = 1, 32
    args.budget = 3600.0

    matrix = synthetic(*SHAPES[args.set], random_state=args.seed)
    cells = [(name, threads) for name in args.systems for threads in args.counts]
    runs: dict[tuple[str, int], list[dict]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/matrix.npz"
        save_matrix(path, matrix)
        for repeat, (name, threads) in interleave(cells, args.repeats, args.seed):
            run = run_system(name, argparse.Namespace(**(vars(args) | {"threads": threads})), path, matrix, [])
            runs[name, threads].append(run)
            print(repeat, name, threads, "threads", line_of(run), file=sys.stderr)
    args.threads = max(args.counts)
    shared = {"shape": [*matrix.shape, int(matrix.nnz)], "factors": args.factors, "dtype": "float32", "device": "cpu"}
    shared |= {"seed": args.seed, "unit": "s/iteration"}
    records = [record_of(name, own_runs) | {"threads": threads} | shared for (name, threads), own_runs in runs.items()]
    write_result(f"threads-{args.set}-{args.factors}", args, records)


if __name__ == "__main__":
    main()
