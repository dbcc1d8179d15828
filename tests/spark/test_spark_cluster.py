"""A program for Spark's ALS with one import changed, on two executors of their own processes."""

import json
import os
import subprocess
import sys

import pytest
from sparks import PATH, need_spark

need_spark()

#: What MLlib's guide does with its ALS, on small data.
EXAMPLE = """
from {module} import ALS
import json, sys
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.sql import Row
from sparks import start_spark

spark = start_spark({master!r})
lines = spark.createDataFrame([(f"{{u}}::{{i}}::{{1 + (u * i) % 5}}::0",) for u in range(30) for i in range(12)], ["value"])
parts = lines.rdd.map(lambda row: row.value.split("::"))
ratingsRDD = parts.map(lambda p: Row(userId=int(p[0]), movieId=int(p[1]), rating=float(p[2]), timestamp=int(p[3])))
ratings = spark.createDataFrame(ratingsRDD)
(training, test) = ratings.randomSplit([0.8, 0.2], seed=1)

# Build the recommendation model using ALS on the training data
# Note we set cold start strategy to 'drop' to ensure we don't get NaN evaluation metrics
als = ALS(maxIter=5, regParam=0.01, userCol="userId", itemCol="movieId", ratingCol="rating",
          coldStartStrategy="drop", seed=0)
model = als.fit(training)

# Evaluate the model by computing the RMSE on the test data
predictions = model.transform(test)
evaluator = RegressionEvaluator(metricName="rmse", labelCol="rating", predictionCol="prediction")
rmse = evaluator.evaluate(predictions)

userRecs = model.recommendForAllUsers(10)
movieRecs = model.recommendForAllItems(10)
users = ratings.select(als.getUserCol()).distinct().limit(3)
userSubsetRecs = model.recommendForUserSubset(users, 10)
movies = ratings.select(als.getItemCol()).distinct().limit(3)
movieSubSetRecs = model.recommendForItemSubset(movies, 10)
frames = [userRecs, movieRecs, userSubsetRecs, movieSubSetRecs]
print(json.dumps({{
    "rmse": rmse, "counts": [frame.count() for frame in frames], "schemas": [f.schema.simpleString() for f in frames],
    "first": [len(frame.first()[1]) for frame in frames], "executors": spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos().__len__(),
}}))
spark.stop()
"""


def run_example(module, master, tmp_path):
    program = tmp_path / f"{module}.py"
    program.write_text(EXAMPLE.format(module=module, master=master))
    environment = os.environ | {"PYTHONPATH": PATH, "PYSPARK_PYTHON": sys.executable}
    environment.pop("SPARK_HOME", None)
    found = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads(found.stdout.splitlines()[-1])


def test_the_example_of_spark_on_two_executors_with_one_import_changed(tmp_path):
    theirs = run_example("pyspark.ml.recommendation", "local[2]", tmp_path)
    ours = run_example("wals_gpu.spark", "local-cluster[2,1,1024]", tmp_path)
    assert ours.pop("executors") == 3 and theirs.pop("executors") == 1  # the driver is one
    assert ours.pop("rmse") == pytest.approx(theirs.pop("rmse"), rel=0.5)
    assert ours == theirs
