"""Microseconds per row over row length and rank: short rows, giant rows, tiny and odd ranks.

    .venv-peers/bin/python benchmarks/cases/bench_rows.py

A measurement is a half-sweep over equal rows, less one over a single short row: what all rows share (the Gram matrix
of the other side and what a system does with it) is measured apart. The fraction of the ceiling counts the rows'
own flops.
Exact answers are checked by their residual in float64 before they are timed. Writes results/rows.json.
"""

import argparse
import sys

import _path  # noqa: F401

from lib import ceiling
from lib.common import interleave, rounded, run_worker, standard_arguments, summary, write_result
from lib.systems import ONE_BLAS_THREAD

ENV = {
    "wals_gpu exact": {},
    "wals_gpu CG": {},
    "implicit Cholesky": ONE_BLAS_THREAD,
    "implicit CG": ONE_BLAS_THREAD,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[1, 8, 64, 512, 8192, 131_072])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 8, 31, 32, 33, 100, 128, 256])
    parser.add_argument("--systems", nargs="*", default=list(ENV), choices=ENV, metavar="SYSTEM")
    parser.add_argument("--repeats", type=int, default=2)
    standard_arguments(parser, quick="one repeat of a few sizes, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.lengths, args.ranks = 1, [1, 64, 16_384], [1, 33, 128]

    gemms: list[dict] = []
    runs: dict[str, list[dict]] = {name: [] for name in args.systems}
    for repeat, name in interleave(["SGEMM", *args.systems], args.repeats, args.seed):
        if name == "SGEMM":
            gemms += ceiling.measure(args.threads)
            continue
        spec = {key: getattr(args, key) for key in ("lengths", "ranks", "threads", "seed")}
        run = run_worker("worker_rows.py", spec | {"system": name}, ENV[name])
        runs[name].append(run)
        print(repeat, name, run.get("error", "checked and timed"), file=sys.stderr)

    top = ceiling.best_gflops(gemms)
    records = []
    for name, own_runs in runs.items():
        shared = {"system": name, "dtype": "float32", "threads": args.threads, "seed": args.seed, "unit": "us/row"}
        errors = [run["error"] for run in own_runs if "error" in run]
        if errors:
            records.append(shared | {"error": errors[0]})
            continue
        for same in zip(*(run["results"] for run in own_runs), strict=True):
            case = {key: value for key, value in same[0].items() if "seconds" not in key}
            own = summary([result["seconds"] - result["shared_seconds"] for result in same])
            gflop = case["rows"] * float(ceiling.row_flops(case["row_length"], case["factors"])) / 1e9
            case["microseconds_per_row"] = {k: rounded(v / case["rows"] * 1e6) for k, v in own.items() if k != "n"}
            case["shared_seconds"] = rounded(summary([result["shared_seconds"] for result in same])["median"])
            # a row that costs less than the noise of the shared part has no fraction
            measurable = own["median"] > 0.1 * case["shared_seconds"]
            case["fraction_of_ceiling"] = rounded(gflop / own["median"] / top) if measurable else None
            records.append(shared | case)
    write_result("rows", args, records, ceiling_gflops=rounded(top), sgemm=gemms)


if __name__ == "__main__":
    main()
