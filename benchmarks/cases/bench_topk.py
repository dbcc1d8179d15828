"""Exact top-k: seconds and memory of wals_gpu, implicit's `recommend` and faiss IndexFlatIP.

    .venv-peers/bin/python benchmarks/cases/bench_topk.py

Answers are checked against a full sort of float64 scores before they are timed. Memory is what one call takes beyond
its inputs (for faiss: its index) and its answer, for some users and for four times as many. Writes results/topk.json.
"""

import argparse
import sys

import _path  # noqa: F401

from lib import ceiling
from lib.common import interleave, rounded, run_worker, standard_arguments, summary, write_result
from lib.systems import ONE_BLAS_THREAD, newest_kernels

ENV = {"wals_gpu": {}, "implicit": ONE_BLAS_THREAD, "faiss": newest_kernels()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="*", default=[20_000, 500_000])
    parser.add_argument("--users", type=int, nargs="*", default=[8192, 512], help="one number for each of --items")
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--k", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--systems", nargs="*", default=list(ENV), choices=ENV, metavar="SYSTEM")
    parser.add_argument("--repeats", type=int, default=3)
    standard_arguments(parser, quick="one repeat with 20,000 items and 512 users")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.items, args.users = 1, [20_000], [512]

    cases = [(name, *sizes) for name in args.systems for sizes in zip(args.items, args.users, strict=True)]
    runs: dict[tuple, list[dict]] = {case: [] for case in cases}
    gemms: list[dict] = []
    records = []
    for repeat, case in interleave(["SGEMM", *cases], args.repeats, args.seed):
        if case == "SGEMM":
            gemms += ceiling.measure(args.threads)
            continue
        name, items, users = case
        spec = {key: getattr(args, key) for key in ("factors", "k", "threads", "seed")} | {"system": name}
        run = run_worker("worker_topk.py", spec | {"mode": "time", "items": items, "users": users}, ENV[name])
        runs[case].append(run)
        print(repeat, *case, run.get("error", "checked and timed"), file=sys.stderr)
        for n in (users, 4 * users) if repeat == 0 else ():
            memory = run_worker("worker_topk.py", spec | {"mode": "memory", "items": items, "users": n}, ENV[name])
            shape = {"items": items, "users": n, "k": args.k[0], "filter_seen": False, "unit": "MiB"}
            records.append({"system": name, "measure": "memory", **shape} | memory)

    top = ceiling.best_gflops(gemms)
    for (name, items, users), own_runs in runs.items():
        shared = {"system": name, "measure": "time", "items": items, "users": users, "unit": "s"}
        shared |= {"factors": args.factors, "dtype": "float32", "threads": args.threads, "seed": args.seed}
        errors = [run["error"] for run in own_runs if "error" in run]
        if errors:
            records.append(shared | {"error": errors[0]})
            continue
        for same in zip(*(run["results"] for run in own_runs), strict=True):
            seconds = summary([result["seconds"] for result in same])
            fraction = rounded(2 * users * items * args.factors / seconds["median"] / 1e9 / top)
            more = {"seconds": seconds, "fraction_of_ceiling": fraction, "env": ENV[name]}
            records.append(shared | same[0] | more | {"threadpools": own_runs[0]["threadpools"]})
    write_result("topk", args, records, ceiling_gflops=rounded(top), sgemm=gemms)


if __name__ == "__main__":
    main()
