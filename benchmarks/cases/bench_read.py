"""Reading a CSV and a Parquet file into interactions, beside polars that reads and sorts the same file.

polars gives a table in the order of users and items; ``read_interactions`` a matrix with the ids of its rows and
columns, repeated pairs summed. Each measurement in a process of its own, interleaved.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict

import _path  # noqa: F401

from lib.common import interleave, run_worker, summary, write_result

SYSTEMS = ("wals_gpu", "polars")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--ids", nargs="+", choices=["integers", "text"], default=["integers", "text"])
    parser.add_argument("--formats", nargs="+", choices=["csv", "parquet"], default=["csv", "parquet"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a trial with a tenth of the rows")
    args = parser.parse_args()
    if args.quick:
        args.rows //= 10
    env = {"POLARS_MAX_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
    records = []
    for ids in args.ids:
        with tempfile.TemporaryDirectory() as folder:
            spec = vars(args) | {"ids": ids, "folder": folder}
            sizes = run_worker("worker_read.py", spec | {"step": "write"})
            for kind in args.formats:
                found = defaultdict(list)
                for _, system in interleave(list(SYSTEMS), args.repeats, args.seed):
                    one = run_worker("worker_read.py", spec | {"step": "read", "system": system, "format": kind}, env)
                    found[system].append(one)
                    print(json.dumps({"ids": ids, "format": kind, "system": system} | one), file=sys.stderr)
                for system, of_system in found.items():
                    record = {
                        name: summary([one[name] for one in of_system]) for name in ("seconds", "peak_mib", "left_mib")
                    }
                    shared = {"rows": args.rows, "ids": ids, "format": kind, "file_mib": sizes[kind]}
                    records.append(shared | {"system": system, "threads": args.threads, "unit": "s, MiB"} | record)
    size = "" if args.rows <= 10_000_000 else f"-{args.rows // 1_000_000}m"
    write_result("read" + size if len(args.ids) > 1 else f"read-{args.ids[0]}{size}", args, records)


if __name__ == "__main__":
    main()
