"""A fit on interactions that stay on disk, in an address space that is smaller than they are.

Each step runs in a process of its own under RLIMIT_AS: writing the folder from blocks that are made one at a time,
then the fit. Prints and writes the sizes on disk, the limit, and the peak of the resident memory of each step.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import _path  # noqa: F401

from lib.common import run_worker, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--per-user", type=int, default=200)
    parser.add_argument("--factors", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-mib", type=int, default=1200)
    parser.add_argument("--block-mib", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a trial with a fiftieth of the users")
    args = parser.parse_args()
    if args.quick:
        args.users //= 50
    with tempfile.TemporaryDirectory() as folder:
        spec = vars(args) | {"shape": [args.users, args.items], "folder": f"{folder}/interactions"}
        records = []
        for name in ("write", "fit"):
            records.append({"step": name} | run_worker("worker_stored.py", spec | {"step": name}, timeout=36_000))
            print(json.dumps(records[-1]), file=sys.stderr)
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
    shared = {
        "shape": [args.users, args.items, args.users * args.per_user],
        "factors": args.factors,
        "dtype": "float32",
        "device": "cpu",
        "threads": args.threads,
        "seed": args.seed,
        "unit": "s, MiB",
        "disk_mib": disk,
        "limit_mib": args.limit_mib,
        "block_mib": args.block_mib,
    }
    write_result("stored", args, [record | shared for record in records])


if __name__ == "__main__":
    main()
