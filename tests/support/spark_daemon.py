"""What Spark forks its Python workers from, with torch and the package: to import them takes a slow processor 5 s for
each worker, and a task that fails is the end of one."""

import pandas  # noqa: F401
import pyarrow.compute  # noqa: F401
import torch.distributed  # noqa: F401
from pyspark.daemon import manager

import wals_gpu.spark.executors  # noqa: F401

if __name__ == "__main__":
    manager()
