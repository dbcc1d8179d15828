"""Spark's ALS and `wals_gpu.spark.ALS` in one run: seconds an iteration, and the whole job from Parquet to Parquet.

    python benchmarks/cases/bench_spark.py [SET] [--factors 64] [--blas LIBRARY]

Each system runs in a Python and a JVM of its own, local[THREADS]. Seconds an iteration are those that more iterations
add to a fit of cached ratings. The whole job reads ratings, fits, recommends for all users and writes. Spark's is
measured as installed and, with --blas (Debian: libopenblas0), with that library through the JNI of dev.ludovic.netlib.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import _path  # noqa: F401
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lib.common import rounded, run_worker, standard_arguments, write_result
from wals_gpu.datasets import SHAPES, synthetic


def write_ratings(path: Path, name: str, seed: int) -> list[int]:
    """Several row groups, as Spark reads them in parallel; the shape and the entries."""
    matrix = synthetic(*SHAPES[name], random_state=seed).tocoo()
    order = np.random.default_rng(seed).permutation(matrix.nnz)
    columns = {"user": matrix.row[order], "item": matrix.col[order], "rating": matrix.data[order].astype(np.float32)}
    table = pa.table({key: pa.array(column) for key, column in columns.items()})
    pq.write_table(table, path, row_group_size=max(matrix.nnz // 16, 1))
    return [*matrix.shape, matrix.nnz]


def systems(args) -> dict[str, dict]:
    """What is measured, by name."""
    found = {"Spark": {"module": "pyspark.ml.recommendation", "settings": {}}}
    if args.blas:
        found["Spark, OpenBLAS"] = {"module": "pyspark.ml.recommendation", "settings": {}, "blas": args.blas}
    for name, solver in (("wals_gpu, exact", "cholesky"), ("wals_gpu, CG", "cg")):
        found[name] = {"module": "wals_gpu.spark", "settings": {"solver": solver}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SHAPES, nargs="?", default="ml-20m")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--iterations", type=int, nargs=2, default=[2, 6], help="of the fits whose difference is taken")
    parser.add_argument("--job-iterations", type=int, default=10)
    parser.add_argument("--memory", default="6g", help="of the JVM")
    parser.add_argument("--blas", help="a shared library, such as /usr/lib/x86_64-linux-gnu/libopenblas.so.0")
    parser.add_argument("--only", nargs="+", help="of the systems, some")
    standard_arguments(parser, "a small set")
    args = parser.parse_args()
    if args.quick:
        args.set, args.iterations, args.job_iterations = "ml-1m", [1, 3], 2
    records = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "ratings.parquet"
        shape = write_ratings(data, args.set, args.seed)
        for name, system in systems(args).items():
            if args.only and name not in args.only:
                continue
            few, many = args.iterations
            if system["module"].startswith("wals_gpu"):
                many = few + 10 * (many - few)  # short ones, beside what a fit takes without them
            spec = {
                **system, "data": str(data), "out": str(Path(folder) / "lists"), "factors": args.factors,
                "iterations": [few, many], "job_iterations": args.job_iterations, "threads": args.threads,
                "memory": args.memory, "seed": args.seed,
            }  # fmt: skip
            found = run_worker("worker_spark.py", spec, {"OPENBLAS_NUM_THREADS": "1"} if system.get("blas") else None)
            if "error" in found:
                raise SystemExit(f"{name}: {found['error']}")
            rounding = {key: rounded(value) for key, value in found.items() if isinstance(value, float)}
            records.append({"system": name, **found, **rounding})
            print(json.dumps(records[-1]), file=sys.stderr)
    theirs = [record for record in records if record["system"].startswith("Spark")]
    for record in records:
        for key in ("iteration_seconds", "job_seconds") if theirs else ():
            record[f"{key}_ratio"] = rounded(min(other[key] for other in theirs) / record[key])
    args.blas = args.blas and Path(args.blas).name  # where it lies is a matter of the machine
    write_result("spark", args, records, shape=shape)


if __name__ == "__main__":
    main()
