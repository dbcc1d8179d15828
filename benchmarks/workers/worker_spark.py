"""One system of bench_spark.py; its argument is a JSON object of settings, and it prints what it took as JSON."""

import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path


def make_session(spec: dict):
    """A session of one machine; with "blas", Spark's linear algebra calls that library."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    options = "-Xss16m"
    if spec.get("blas"):
        options += f" -Ddev.ludovic.netlib.blas.nativeLibPath={spec['blas']}"
        options += f" -Ddev.ludovic.netlib.lapack.nativeLibPath={spec['blas']}"
    settings = {
        "spark.driver.memory": spec["memory"],
        "spark.driver.extraJavaOptions": options,
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.local.dir": tempfile.mkdtemp(dir=Path(spec["data"]).parent),
    }
    builder = SparkSession.builder.master(f"local[{spec['threads']}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def which_blas(spark) -> str:
    """What Spark's linear algebra finds: a class of dev.ludovic.netlib."""
    from py4j.protocol import Py4JError

    try:
        return spark._jvm.dev.ludovic.netlib.blas.NativeBLAS.getInstance().getClass().getSimpleName()
    except Py4JError:
        return "JavaBLAS"


def main() -> None:
    spec = json.loads(sys.argv[1])
    spark = make_session(spec)
    ALS = importlib.import_module(spec["module"]).ALS
    shared = {"rank": spec["factors"], "implicitPrefs": True, "alpha": 10.0, "regParam": 0.05, "seed": spec["seed"]}
    shared |= spec["settings"]

    def fit(ratings, iterations: int) -> float:
        start = time.perf_counter()
        model = ALS(**shared, maxIter=iterations).fit(ratings)
        model.userFactors.count()  # Spark's own are computed no earlier
        return time.perf_counter() - start

    ratings = spark.read.parquet(spec["data"]).cache()
    ratings.count()
    fit(ratings, 1)  # compiles what is compiled as it runs
    few, many = spec["iterations"]
    # The least of two: noise only adds.
    seconds = [min(fit(ratings, n) for _ in range(2)) for n in (few, many)]
    ratings.unpersist(blocking=True)

    start = time.perf_counter()
    model = ALS(**shared, maxIter=spec["job_iterations"]).fit(spark.read.parquet(spec["data"]))
    fitted = time.perf_counter()
    model.recommendForAllUsers(10).write.mode("overwrite").parquet(spec["out"])
    end = time.perf_counter()
    found = {
        "iteration_seconds": (seconds[1] - seconds[0]) / (many - few),
        "fit_seconds": seconds,
        "job_seconds": end - start,
        "job_fit_seconds": fitted - start,
        "job_lists_seconds": end - fitted,
        "blas": which_blas(spark),
    }
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
