"""The whole job of a command line at growing sizes: does any step grow faster than its data?

    python benchmarks/cases/bench_job.py [--rows 1000000 10000000 100000000]

A Parquet file of ROWS rows, 50 for each user, among 50,000 items whatever the size, so that the work of every step is
proportional to the rows. Each step is a process of its own, as a person starts it: reading the file into interactions
alone, `wals-gpu fit` (which reads it, too), and `wals-gpu recommend --all` into a Parquet file. Peak memory is that of
the whole process. Writes results/job.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _path  # noqa: F401
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib.common import busy_cores, default_threads, rounded, write_result

#: Of one step of writing the file: what this script itself has in memory.
ROWS_AT_ONCE = 5_000_000
READ = (
    "import sys; from wals_gpu.interactions import read_interactions; print(read_interactions(sys.argv[1]).matrix.nnz)"
)


def write_rows(path: Path, rows: int, users: int, items: int, seed: int) -> None:
    """Rows in no order, of users and items with few and many interactions."""
    rng = np.random.default_rng(seed)
    schema = pa.schema({"user_id": pa.int64(), "item_id": pa.int64(), "plays": pa.float32()})
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, ROWS_AT_ONCE):
            n = min(ROWS_AT_ONCE, rows - begin)
            columns = {
                "user_id": (users * rng.random(n) ** 1.5).astype(np.int64) * 7 + 11,
                "item_id": (items * rng.random(n) ** 2).astype(np.int64) * 3 + 5,
                "plays": rng.integers(1, 20, n).astype(np.float32),
            }
            writer.write_table(pa.table(columns, schema))


def step(command: list[str]) -> dict[str, float]:
    """Seconds and peak resident memory of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return {"seconds": rounded(time.perf_counter() - start), "peak_mib": rounded(usage.ru_maxrss / 1024)}


def size_of(path: Path) -> float:
    """MiB of a file, or of all in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return rounded(sum(each.stat().st_size for each in files) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--per-user", type=int, default=50)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a trial with 100,000 rows and 1,000,000")
    args = parser.parse_args()
    if args.quick:
        args.rows = [100_000, 1_000_000]
    records = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for rows in args.rows:
            data, model, lists = folder / "rows.parquet", folder / "model", folder / "lists.parquet"
            write_rows(data, rows, rows // args.per_user, args.items, args.seed)
            threads = ["--threads", str(args.threads), "--quiet"]
            options = ["--factors", str(args.factors), "--iterations", str(args.iterations), "--out", str(model)]
            commands = {
                "read": (["-c", READ, str(data)], data),
                "fit": (["-m", "wals_gpu", "fit", str(data), *options, *threads], model),
                "recommend": (
                    ["-m", "wals_gpu", "recommend", str(model), "--all", "--out", str(lists), *threads],
                    lists,
                ),
            }
            for name, (command, written) in commands.items():
                busy = rounded(busy_cores(0.3), 2)
                record = {"rows": rows, "step": name, **step(command), "file_mib": size_of(written), "busy": busy}
                records.append(record | {"unit": "s, MiB"})
                print(record, file=sys.stderr, flush=True)
            data.unlink()
            lists.unlink()
            shutil.rmtree(model)
            write_result("job", args, records)  # after every size, so that a run that is stopped has those before


if __name__ == "__main__":
    main()
