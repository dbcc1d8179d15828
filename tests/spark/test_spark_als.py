"""wals_gpu.spark.ALS beside Spark's own ALS, in local mode."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spark_example import EXPECTED, run_example
from sparks import need_spark

need_spark()

from pyspark.ml import Pipeline, PipelineModel, recommendation  # noqa: E402
from pyspark.ml.evaluation import RegressionEvaluator  # noqa: E402
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402

from wals_gpu import DataError, SingularSystemError, as_interactions  # noqa: E402
from wals_gpu.spark import ALS, ALSModel  # noqa: E402

SETTINGS = {"rank": 3, "maxIter": 8, "regParam": 0.1, "seed": 3, "numUserBlocks": 2, "numItemBlocks": 2}


def make_ratings(implicit=False, seed=0):
    """(user, item, rating): of rank 2 and some noise; some pairs twice, negative values, and zeros where implicit."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 60, 900) * 7 - 30, rng.integers(0, 40, 900) * 3
    x, y = rng.normal(size=(500, 2)), rng.normal(size=(500, 2))
    values = np.einsum("nd,nd->n", x[users], y[items]) + 0.1 * rng.normal(size=900)
    if implicit:
        values = np.round(2 * values)
    return list(zip(users.tolist(), items.tolist(), values.tolist(), strict=True))


@pytest.fixture(scope="module")
def ratings(spark):
    return spark.createDataFrame(make_ratings(), ["user", "item", "rating"]).repartition(3).cache()


@pytest.fixture(scope="module")
def model(ratings):
    return ALS(**SETTINGS).fit(ratings)


def factors_of(frame):
    rows = sorted(frame.collect())
    return [row.id for row in rows], np.array([row.features for row in rows])


def objective(model, ratings, implicit, reg=0.1, alpha=1.0):
    """Spark's own, in float64 and by hand: repeated pairs one by one."""
    users, x = factors_of(model.userFactors)
    items, y = factors_of(model.itemFactors)
    scores = x @ y.T
    counts = [np.zeros(len(users)), np.zeros(len(items))]
    total = (scores**2).sum() if implicit else 0.0
    for user, item, value in ratings:
        u, i = users.index(user), items.index(item)
        for count, row in zip(counts, (u, i), strict=True):
            count[row] += value > 0 if implicit else 1
        if implicit:
            wanted, c1 = float(value > 0), alpha * abs(value)
            total += (1 + c1) * (wanted - scores[u, i]) ** 2 - scores[u, i] ** 2
        else:
            total += (value - scores[u, i]) ** 2
    ridge = counts[0] @ (x**2).sum(1) + counts[1] @ (y**2).sum(1)
    return total + reg * ridge


@pytest.mark.parametrize("implicit", [False, True])
def test_loss_is_that_of_spark(spark, implicit):
    """Both run for long; repeated pairs, zeros and negative ratings are in the data."""
    rows = make_ratings(implicit)
    frame = spark.createDataFrame(rows, ["user", "item", "rating"])
    settings = SETTINGS | {"rank": 2, "maxIter": 10, "implicitPrefs": implicit}
    ours, theirs = ALS(**settings).fit(frame), recommendation.ALS(**settings).fit(frame)
    # Other start values lead to other minima, about as deep.
    assert objective(ours, rows, implicit) == pytest.approx(objective(theirs, rows, implicit), rel=1e-2)
    assert ours.losses[-1] == pytest.approx(objective(ours, rows, implicit), rel=1e-5)
    assert factors_of(ours.userFactors)[0] == factors_of(theirs.userFactors)[0]
    # Users are solved last by both: each is the least of what `objective` computes, for the items of its model.
    for model in (ours, theirs):
        users, x = factors_of(model.userFactors)
        items, y = factors_of(model.itemFactors)
        for place in (4, 11):
            gram, rhs, n = y.T @ y if implicit else np.zeros((2, 2)), np.zeros(2), 0
            for user, item, value in rows:
                if user == users[place]:
                    row, c1 = y[items.index(item)], abs(value) if implicit else 1.0
                    gram, n = gram + c1 * np.outer(row, row), n + (value > 0 if implicit else 1)
                    rhs += ((1 + c1) * (value > 0) if implicit else value) * row
            np.testing.assert_allclose(x[place], np.linalg.solve(gram + 0.1 * n * np.eye(2), rhs), rtol=5e-4, atol=1e-4)


def test_partitions_and_ranks_change_no_bit(ratings, model):
    again = ALS(**SETTINGS, numRanks=2).fit(ratings.repartition(5, "item"))
    for side in ("userFactors", "itemFactors"):
        ids, rows = factors_of(getattr(model, side))
        other_ids, other_rows = factors_of(getattr(again, side))
        assert ids == other_ids
        np.testing.assert_array_equal(rows, other_rows)
    assert again.losses == pytest.approx(model.losses, rel=1e-12)


def test_a_rank_without_ratings(spark):
    frame = spark.createDataFrame([(1, 2, 3.0)], ["user", "item", "rating"])
    model = ALS(rank=2, maxIter=2, numRanks=2, regParam=0.01).fit(frame)
    assert model.transform(frame).first().prediction == pytest.approx(3, abs=0.2)


def test_parameters_are_those_of_spark():
    theirs, ours = recommendation.ALS, ALS
    for name in ("__init__", "setParams"):
        of_theirs = inspect.signature(getattr(theirs, name)).parameters
        of_ours = inspect.signature(getattr(ours, name)).parameters
        assert [(p.name, p.kind, p.default) for p in of_theirs.values()] == [
            (p.name, p.kind, p.default) for p in list(of_ours.values())[: len(of_theirs)]
        ]
    methods = {name for name in dir(theirs) if re.match(r"(get|set)[A-Z]", name)}
    assert methods <= set(dir(ours))
    mine, their = ALS(), recommendation.ALS()
    assert {p.name for p in their.params} <= {p.name for p in mine.params}
    for param in their.params:
        if param.name != "seed":
            assert their.hasDefault(param.name) == mine.hasDefault(param.name)
            assert not their.hasDefault(param.name) or their.getOrDefault(param.name) == mine.getOrDefault(param.name)


def test_setters_chain_and_are_read_back():
    als = ALS()
    for name in sorted(name for name in dir(ALS) if re.match(r"set[A-Z]", name)):
        if name in ("setParams", "setNumBlocks"):
            continue
        param = name[3].lower() + name[4:]
        old = als.getOrDefault(param)
        new = not old if isinstance(old, bool) else old + 1 if isinstance(old, (int, float)) else f"{old}x"
        assert getattr(als, name)(new) is als
        assert getattr(als, f"get{name[3:]}")() == new
    assert als.setNumBlocks(4).getNumUserBlocks() == als.getNumItemBlocks() == 4
    assert ALS().getSeed() == ALS().getSeed()
    assert ALS().setParams(rank=4, solver="cg").getSolver() == "cg"


def test_estimator_and_model_are_saved_and_loaded(ratings, model, tmp_path):
    als = ALS(**SETTINGS, solver="cholesky", timeout=60.0, coldStartStrategy="drop")
    als.save(str(tmp_path / "als"))
    again = ALS.load(str(tmp_path / "als"))
    assert type(again) is ALS and again.uid == als.uid
    assert {p.name: v for p, v in again.extractParamMap().items()} == {
        p.name: v for p, v in als.extractParamMap().items()
    }
    model.save(str(tmp_path / "model"))
    for loaded in (ALSModel.load(str(tmp_path / "model")), recommendation.ALSModel.load(str(tmp_path / "model"))):
        assert loaded.rank == 3 and loaded.getUserCol() == "user"
        assert factors_of(loaded.userFactors)[0] == factors_of(model.userFactors)[0]
        np.testing.assert_array_equal(factors_of(loaded.itemFactors)[1], factors_of(model.itemFactors)[1])
    ours = ALSModel.load(str(tmp_path / "model"))
    assert type(ours) is ALSModel and ours.uid == model.uid
    model.write().overwrite().save(str(tmp_path / "model"))


def lists_of(frame):
    own, other = frame.columns[0], "item" if frame.columns[0] == "user" else "user"
    return {row[own]: [(r[other], r.rating) for r in row.recommendations] for row in frame.collect()}


@pytest.mark.parametrize("side, n", [("User", 4), ("Item", 1000)])
def test_lists_are_those_of_spark(ratings, model, side, n):
    ours = getattr(model, f"recommendForAll{side}s")(n)
    theirs = getattr(recommendation.ALSModel, f"recommendForAll{side}s")(model, n)
    assert ours.schema.simpleString() == theirs.schema.simpleString()
    mine, their = lists_of(ours), lists_of(theirs)
    assert mine.keys() == their.keys()
    for key, found in mine.items():
        assert len(found) == len(their[key]) <= n
        np.testing.assert_allclose([s for _, s in found], [s for _, s in their[key]], rtol=1e-4, atol=1e-5)
        assert {i for i, _ in found} == {i for i, _ in their[key]}
    column = side.lower()
    some = ratings.where(F.col(column) > 60).union(ratings.limit(1).withColumn(column, F.lit(10**6)))
    subset = lists_of(getattr(model, f"recommendFor{side}Subset")(some.select(column), n))
    assert subset == {key: found for key, found in mine.items() if key > 60} != {}
    assert len(ours.take(3)) == 3


def test_factors_are_sent_once_for_all_lists(spark, model):
    model.recommendForAllUsers(2)
    files = len(list(Path(spark.sparkContext._temp_dir).iterdir()))
    model.recommendForAllUsers(3)
    model.recommendForUserSubset(model.userFactors.withColumnRenamed("id", "user"), 1)
    model.copy().recommendForAllUsers(1)
    assert len(list(Path(spark.sparkContext._temp_dir).iterdir())) == files


def test_cold_start(spark, model):
    unseen = spark.createDataFrame([(-30, 0), (-30, 9999), (9999, 0)], ["user", "item"])
    found = [row.prediction for row in model.transform(unseen).orderBy("user", "item").collect()]
    assert np.isnan(found).tolist() == [False, True, True]
    dropped = model.copy().setColdStartStrategy("drop").transform(unseen)
    assert type(model.copy()) is ALSModel and dropped.count() == 1


def test_columns_and_names_reach_the_model(spark):
    frame = spark.createDataFrame([(1, 2, 1), (1, 3, 1), (2, 2, 1)], ["who", "what", "n"])
    als = ALS(rank=2, userCol="who", itemCol="what", ratingCol="n", implicitPrefs=True, coldStartStrategy="drop")
    model = als.setPredictionCol("score").setBlockSize(7).setSeed(-5).fit(frame)
    assert model.uid == als.uid and model.getBlockSize() == 7 and model.getColdStartStrategy() == "drop"
    assert model.transform(frame).columns == ["who", "what", "n", "score"]
    assert model.recommendForAllUsers(1).columns == ["who", "recommendations"]


def test_in_a_pipeline(ratings, tmp_path):
    pipeline = Pipeline(stages=[ALS(**SETTINGS)])
    pipeline.save(str(tmp_path / "pipeline"))
    fitted = Pipeline.load(str(tmp_path / "pipeline")).fit(ratings)
    fitted.save(str(tmp_path / "fitted"))
    again = PipelineModel.load(str(tmp_path / "fitted"))
    expected = sorted(row.prediction for row in fitted.transform(ratings).collect())
    assert sorted(row.prediction for row in again.transform(ratings).collect()) == expected


def test_cross_validation(ratings):
    als = ALS(**SETTINGS, coldStartStrategy="drop")
    grid = ParamGridBuilder().addGrid(als.regParam, [0.05, 50.0]).build()
    evaluator = RegressionEvaluator(metricName="rmse", labelCol="rating", predictionCol="prediction")
    found = CrossValidator(estimator=als, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1).fit(ratings)
    assert found.avgMetrics[0] < found.avgMetrics[1]
    assert found.bestModel.getUserCol() == "user"


def sentence(error):
    """What is said, without where in a plan."""
    return re.sub(r"ALS_\w+|SQLSTATE.*|\s+", " ", str(error).splitlines()[0])


#: Rows of (user, item, rating), types of the columns, and settings that both refuse.
REFUSED = {
    "text": ([("a", 1, 1.0)], "user string, item int, rating float", {}),
    "missing": ([(1, 1, 1.0)], "who int, item int, rating float", {}),
    "fraction": ([(1.5, 1, 1.0)], "user double, item int, rating float", {}),
    "large": ([(2**31, 1, 1.0)], "user bigint, item int, rating float", {}),
    "null": ([(None, 1, 1.0)], "user int, item int, rating float", {}),
    "null_long": ([(1, None, 1.0)], "user int, item bigint, rating float", {}),
    "null_rating": ([(1, 1, None)], "user int, item int, rating float", {}),
    "nan_rating": ([(1, 1, float("nan"))], "user int, item int, rating double", {}),
    "no_rating": ([(1, 1, 1.0)], "user int, item int, rating float", {"ratingCol": ""}),
    "rank": ([(1, 1, 1.0)], "user int, item int, rating float", {"rank": 0}),
    "regParam": ([(1, 1, 1.0)], "user int, item int, rating float", {"regParam": -1.0}),
    "strategy": ([(1, 1, 1.0)], "user int, item int, rating float", {"coldStartStrategy": "zero"}),
}

#: Of which Spark says "null", or how to cast.
BETTER = {"large": "for column user, but got 2147483648", "null_long": "for column item, but got null"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_spark_refuses_is_refused_in_its_words(spark, name):
    rows, schema, settings = REFUSED[name]
    frame = spark.createDataFrame(rows, schema)
    errors = []
    for kind in (recommendation.ALS, ALS):
        with pytest.raises(Exception) as caught:
            kind(**{"rank": 2, "maxIter": 1, **settings}).fit(frame)
        errors.append(caught.value)
    if name in BETTER:
        assert BETTER[name] in sentence(errors[1])
        return
    if type(errors[0]).__name__ == "Py4JJavaError":  # now and then pyspark does not translate what the JVM said
        assert sentence(errors[1]).strip()[:60] in sentence(str(errors[0]).replace("\n", " "))
        return
    assert type(errors[0]) is type(errors[1])
    assert sentence(errors[0]) == sentence(errors[1])


def test_whole_numbers_of_other_types(spark, model):
    rows = [(float(u), i, str(v)) for u, i, v in make_ratings()]
    frame = spark.createDataFrame(rows, "user double, item bigint, text string")
    frame = frame.select(
        "user", F.col("item").cast("decimal(12,2)").alias("item"), F.col("text").cast("double").alias("rating")
    )
    again = ALS(**SETTINGS).fit(frame)
    np.testing.assert_array_equal(factors_of(again.userFactors)[1], factors_of(model.userFactors)[1])


def test_what_is_refused_here(spark, ratings):
    with pytest.raises(ValueError, match="nonnegative must be False"):
        ALS(nonnegative=True).fit(ratings)
    with pytest.raises(ValueError, match="solver must be one of"):
        ALS(solver="lu").fit(ratings)
    with pytest.raises(ValueError, match="numRanks must be at most 2"):
        ALS(numRanks=3).fit(ratings)
    with pytest.raises(ValueError, match="numRanks must be at least 0"):
        ALS(numRanks=-1).fit(ratings)
    with pytest.raises(ValueError, match="numThreads must be at least 0"):
        ALS(numThreads=-1).fit(ratings)
    with pytest.raises(TypeError, match="needs a classic Spark session: Spark Connect"):
        ALS().fit(SimpleNamespace(sparkSession=SimpleNamespace()))
    with pytest.raises(DataError, match="there are no ratings"):
        ALS().fit(ratings.limit(0))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_on_an_executor_is_the_same_on_the_driver(spark, ranks):
    """One rating of a user does not make 3 factors without a ridge."""
    rows = [(5, item, 1.0) for item in (3, 4, 9)] + [(u, i, float(u + i)) for u in range(3) for i in (3, 4)]
    frame = spark.createDataFrame(rows, ["user", "item", "rating"])
    with pytest.raises(SingularSystemError, match=r"of item 0 \(id 3\) is not positive.*increase regParam|item \d+"):
        ALS(rank=7, regParam=0.0, numRanks=ranks, maxIter=3).fit(frame)


def test_ratings_that_overflow(spark):
    frame = spark.createDataFrame([(1, 1, 1e30), (1, 2, 1.0)], ["user", "item", "rating"])
    with pytest.raises(ValueError):
        ALS(rank=2, implicitPrefs=True, alpha=1e30).fit(frame)


def test_a_reliable_checkpoint_where_there_is_a_folder(spark, ratings, model, tmp_path):
    spark.sparkContext.setCheckpointDir(str(tmp_path))
    again = ALS(**SETTINGS).fit(ratings)
    assert any(tmp_path.rglob("part-*"))
    np.testing.assert_array_equal(factors_of(again.userFactors)[1], factors_of(model.userFactors)[1])


@pytest.mark.parametrize("kind", [recommendation.ALS, ALS])
def test_the_example_of_spark(spark, kind):
    found = run_example(spark, kind)
    assert found["rmse"] < 1.2  # ratings have a standard deviation of 1.4
    assert found["lists"] == EXPECTED


def test_a_frame_is_data_for_the_library(spark):
    """Of which the wanted columns are collected, one of them with a name that Spark would take apart."""
    rows = "('b', 30, 1.0D, NULL), ('a', 10, 2.0D, array(1)), ('b', 20, 3.0D, NULL)"
    frame = spark.sql(f"SELECT * FROM VALUES {rows} AS t(user_id, `a.b``c`, count, other)")
    got = as_interactions(frame, item_column="a.b`c")
    assert got.user_ids.tolist() == ["a", "b"] and got.item_ids.tolist() == [10, 20, 30]
    assert got.matrix.toarray().tolist() == [[2, 0, 0], [0, 3, 1]]


def test_the_page_of_the_documentation(spark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "spark.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names = {"spark": spark}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    assert names["lists"].count() == 40
