"""The example of Spark's guide to collaborative filtering, on small data of our own."""

#: Rows of each DataFrame of lists, and the length of the first list.
EXPECTED = [[30, 10], [12, 10], [3, 10], [3, 10]]


def run_example(spark, ALS):
    """What a program for pyspark.ml.recommendation does with either ALS."""
    from pyspark.ml.evaluation import RegressionEvaluator
    from pyspark.sql import Row

    lines = spark.createDataFrame(
        [(f"{u}::{i}::{1 + (u * i) % 5}::0",) for u in range(30) for i in range(12)], ["value"]
    )
    parts = lines.rdd.map(lambda row: row.value.split("::"))
    ratings_rdd = parts.map(lambda p: Row(userId=int(p[0]), movieId=int(p[1]), rating=float(p[2]), timestamp=int(p[3])))
    ratings = spark.createDataFrame(ratings_rdd)
    (training, test) = ratings.randomSplit([0.8, 0.2], seed=1)

    # Build the recommendation model using ALS on the training data
    # Note we set cold start strategy to 'drop' to ensure we don't get NaN evaluation metrics
    als = ALS(maxIter=5, regParam=0.01, userCol="userId", itemCol="movieId", ratingCol="rating",
              coldStartStrategy="drop", seed=0, numUserBlocks=2, numItemBlocks=2)  # fmt: skip
    model = als.fit(training)

    # Evaluate the model by computing the RMSE on the test data
    predictions = model.transform(test)
    evaluator = RegressionEvaluator(metricName="rmse", labelCol="rating", predictionCol="prediction")
    rmse = evaluator.evaluate(predictions)

    # Generate top 10 movie recommendations for each user, and for a specified set of users; and users for movies
    user_recs = model.recommendForAllUsers(10)
    movie_recs = model.recommendForAllItems(10)
    users = ratings.select(als.getUserCol()).distinct().limit(3)
    user_subset_recs = model.recommendForUserSubset(users, 10)
    movies = ratings.select(als.getItemCol()).distinct().limit(3)
    movie_subset_recs = model.recommendForItemSubset(movies, 10)
    frames = [frame.collect() for frame in (user_recs, movie_recs, user_subset_recs, movie_subset_recs)]
    return {"rmse": rmse, "lists": [[len(rows), len(rows[0].recommendations)] for rows in frames]}
