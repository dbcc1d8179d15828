"""A program for Spark's ALS with one import changed, on two executors that are processes of their own."""

import json
import os
import subprocess
import sys

from spark_example import EXPECTED, run_example
from sparks import PATH, need_spark

need_spark()

from wals_gpu.spark import ALS  # noqa: E402

PROGRAM = """
import json
from spark_example import run_example
from sparks import start_spark
from wals_gpu.spark import ALS

spark = start_spark("local-cluster[2,1,1024]")
found = run_example(spark, ALS)
print(json.dumps(found | {"executors": len(spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()) - 1}))
spark.stop()
"""


def test_two_executors(spark, tmp_path):
    """The ranks of the fit are on both; the model is that of local mode."""
    environment = os.environ | {"PYTHONPATH": PATH}
    environment.pop("SPARK_HOME", None)
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr[-4000:]
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["executors"] == 2 and result["lists"] == EXPECTED
    assert result["rmse"] == run_example(spark, ALS)["rmse"]
