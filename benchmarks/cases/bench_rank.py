"""Exact rows of 512 factors and more: seconds per row, and the fraction of the ceiling.

    .venv/bin/python benchmarks/cases/bench_rank.py

Rows have no background, so that nothing is measured but they: no Gram matrix, eigenvectors or rotations. Those are
timed apart. Solutions are checked by their residual in float64 before they are timed. Writes results/rank.json.
"""

import argparse

import _path  # noqa: F401

from lib import ceiling
from lib.common import rounded, run_worker, standard_arguments, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.125, 0.75, 2], help="entries of a row, times D")
    parser.add_argument("--most-shared", type=int, default=2048, help="ranks above have no eigenvectors timed")
    standard_arguments(parser, quick="small ranks, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.ranks = [512, 768]
    gemms = ceiling.measure(args.threads)
    spec = {key: getattr(args, key) for key in ("ranks", "shares", "most_shared", "threads", "seed")}
    run = run_worker("worker_rank.py", spec)
    if "error" in run:
        raise SystemExit(run["error"])
    gemms += ceiling.measure(args.threads)
    top = ceiling.best_gflops(gemms)
    records = []
    for case in run["cases"]:
        # Without the two rotations of a row's factor, which these rows do not have.
        flops = float(ceiling.row_flops(case["row_length"], case["factors"])) - 4 * case["factors"] ** 2
        fraction = case["rows"] * flops / case["seconds"] / 1e9 / top
        seconds = {"milliseconds_per_row": rounded(case.pop("seconds") / case["rows"] * 1e3)}
        records.append({"system": "wals_gpu exact", **case, **seconds, "fraction_of_ceiling": rounded(fraction)})
    write_result("rank", args, records, shared=run["shared"], ceiling_gflops=rounded(top), sgemm=gemms)


if __name__ == "__main__":
    main()
