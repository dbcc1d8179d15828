"""A fit on interactions that stay on disk, in an address space that is smaller than they are.

Each step runs in a process of its own under RLIMIT_AS: writing the folder from blocks that are made as they are asked
for, then the fit. Prints and writes the sizes on disk, the limit, and the peak of the resident memory of each step.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import peak_rss_mib, reset_peak, run_worker, write_result
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.stored import StoredMatrix, write_stored


def blocks(n_users: int, n_items: int, per_user: int, seed: int, rows: int = 20_000):
    """Users who each have one item of every `n_items / per_user` consecutive ones."""
    width = n_items // per_user
    for begin in range(0, n_users, rows):
        rng = np.random.default_rng([seed, begin])
        n = min(rows, n_users - begin)
        columns = (np.arange(per_user) * width + rng.integers(0, width, (n, per_user))).astype(np.int32)
        values = rng.integers(1, 6, n * per_user).astype(np.float32)
        yield csr_matrix((values, columns.ravel(), np.arange(n + 1) * per_user), shape=(n, n_items))


def step(spec: dict) -> dict:
    """One step in this process: its seconds and memory."""
    limit = spec["limit_mib"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    block_bytes = spec["block_mib"] << 20
    reset_peak()
    started = time.perf_counter()
    record = {}
    if spec["step"] == "write":
        data = blocks(*spec["shape"], spec["per_user"], spec["seed"])
        write_stored(spec["folder"], data, block_bytes=block_bytes)
    else:
        model = WALS(spec["factors"], "hu", iterations=spec["iterations"], num_threads=spec["threads"])
        model.fit(StoredMatrix(spec["folder"], block_bytes=block_bytes))
        record["losses"] = [each.loss for each in model.history_]
        record["seconds_per_iteration"] = float(np.median([each.seconds for each in model.history_]))
    return {"seconds": time.perf_counter() - started, "peak_rss_mib": peak_rss_mib()} | record


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
            records.append({"step": name} | run_worker("bench_stored.py", spec | {"step": name}, timeout=36_000))
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
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(step(json.loads(sys.argv[1]))))
    else:
        main()
