"""One request at a time, as a web service has them, beside implicit; and a batch with a list for everybody.

    .venv-peers/bin/python benchmarks/cases/bench_latency.py

Requests: the ten best of 300,000 items for one user, with a deny list and an allow list of a third of the items, items
similar to one, and 16 users at once. Batch: 4,096 users and 20,000 items, half of which are denied to everybody, with
what the call takes in memory beyond its answer. Systems have the same factors; answers are checked against a full sort
of float64 scores before they are timed. Writes results/latency.json.
"""

import argparse
import sys

import _path  # noqa: F401

from lib.common import interleave, run_worker, standard_arguments, summary, write_result
from lib.systems import ONE_BLAS_THREAD

SYSTEMS = ("implicit", "wals_gpu.als", "WALS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--batch-users", type=int, default=4096)
    parser.add_argument("--batch-items", type=int, default=20_000)
    parser.add_argument("--batch-factors", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    standard_arguments(parser, quick="one repeat with 30,000 items")
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.items = 1, 30_000

    shapes = {
        "requests": {"users": 200, "items": args.items, "factors": args.factors},
        "batch": {"users": args.batch_users, "items": args.batch_items, "factors": args.batch_factors},
    }
    cases = [(mode, system) for mode in shapes for system in SYSTEMS]
    runs: dict[tuple[str, str], list[dict]] = {case: [] for case in cases}
    for repeat, (mode, system) in interleave(cases, args.repeats, args.seed):
        spec = shapes[mode] | {"system": system, "mode": mode, "threads": args.threads, "seed": args.seed}
        runs[mode, system].append(run_worker("worker_latency.py", spec, ONE_BLAS_THREAD))
        print(repeat, mode, system, runs[mode, system][-1].get("error", "checked and timed"), file=sys.stderr)

    records = []
    for (mode, system), own_runs in runs.items():
        shared = {"system": system, "measure": mode, **shapes[mode], "k": 10, "dtype": "float32", "unit": "s"}
        errors = [run["error"] for run in own_runs if "error" in run]
        if errors:
            records.append(shared | {"error": errors[0]})
            continue
        for same in zip(*(run["results"] for run in own_runs), strict=True):
            record = shared | {"request": same[0]["request"], "seconds": summary([one["seconds"] for one in same])}
            if mode == "batch":
                record["extra_mib"] = summary([one["extra_mib"] for one in same])
            records.append(record)
    write_result("latency", args, records)


if __name__ == "__main__":
    main()
