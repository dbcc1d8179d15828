"""Spark sessions for tests."""

import os
import shutil
import sys

import pytest

#: Where executors find the package.
PATH = os.pathsep.join(p or os.getcwd() for p in sys.path)

#: The second compiler of Java, and threads that collect garbage, take more of two processors than they save in minutes.
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def need_spark():
    """Skip the module where pyspark, torch or Java is missing; an error where WALS_GPU_REQUIRE_SPARK=1."""
    missing = []
    for name in ("pyspark", "torch"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if not os.environ.get("JAVA_HOME") and not shutil.which("java"):
        missing.append("Java")
    if missing:
        text = f"tests of Spark need {', '.join(missing)}"
        if os.environ.get("WALS_GPU_REQUIRE_SPARK") == "1":
            pytest.fail(f"{text}, and WALS_GPU_REQUIRE_SPARK=1 says that they must run", pytrace=False)
        pytest.skip(text, allow_module_level=True)


def start_spark(master="local[2,2]", **settings):
    """A small session whose Python workers are this Python.

    A task may fail once: on a busy machine Spark 4 now and then reads from a worker whose socket it has just closed.
    """
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.master(master).appName("wals_gpu tests")
    known = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.default.parallelism": "2",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": f"-Xss4m {SHORT_LIVED}",  # Spark's own ALS has deep lineages
        "spark.executor.extraJavaOptions": SHORT_LIVED,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.executorEnv.PYTHONPATH": PATH,
        "spark.python.daemon.module": "spark_daemon",
        "spark.log.level": "OFF",
    }
    for name, value in (known | settings).items():
        builder = builder.config(name, value)
    return builder.getOrCreate()
