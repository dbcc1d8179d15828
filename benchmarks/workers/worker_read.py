"""Reads one file of interactions in this process, or writes it. Prints one JSON object.

What libraries take before they read anything is left out: each has read a small file first.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from lib.common import peak_rss_mib, reset_peak


def write(spec: dict) -> dict:
    """Rows in no order, of users with few and many interactions; each pair once or, by chance, several times."""
    import polars as pl

    rng, n = np.random.default_rng(spec["seed"]), spec["rows"]
    users = (spec["users"] * rng.random(n) ** 1.5).astype(np.int64)
    items = (spec["items"] * rng.random(n) ** 2).astype(np.int64)
    if spec["ids"] == "text":
        names = pl.DataFrame({"user_id": users, "item_id": items}).select(
            ("u" + pl.col("user_id").cast(pl.String)).alias("user_id"),
            ("item-" + pl.col("item_id").cast(pl.String)).alias("item_id"),
        )
    else:
        names = pl.DataFrame({"user_id": users * 7 + 11, "item_id": items * 3 + 5})
    table = names.with_columns(plays=pl.Series(rng.integers(1, 20, n)))
    small = table.head(1000)
    for name in ("csv", "parquet"):
        for part, rows in (("small", small), ("rows", table)):
            path = str(Path(spec["folder"]) / f"{part}.{name}")
            rows.write_csv(path) if name == "csv" else rows.write_parquet(path)
    return {name: (Path(spec["folder"]) / f"rows.{name}").stat().st_size / 2**20 for name in ("csv", "parquet")}


def read(spec: dict) -> dict:
    """Seconds and memory of one system."""
    if spec["system"] == "polars":
        import polars as pl

        def read_file(path):
            table = pl.read_csv(path) if path.endswith("csv") else pl.read_parquet(path)
            return table.sort("user_id", "item_id")
    else:
        from wals_gpu.interactions import read_interactions

        def read_file(path):
            return read_interactions(path, value_column="plays")

    folder, kind = spec["folder"], spec["format"]
    kept = read_file(f"{folder}/small.{kind}")
    before = current_mib()
    reset_peak()
    start = time.perf_counter()
    kept = read_file(f"{folder}/rows.{kind}")
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "peak_mib": peak_rss_mib() - before, "left_mib": current_mib() - before}
    shape = kept.shape if spec["system"] == "polars" else kept.matrix.shape
    return found | {"shape": list(shape)}


def current_mib() -> float:
    """Resident memory now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(write(given) if given["step"] == "write" else read(given)))
