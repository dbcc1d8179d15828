"""ALS for Spark: ``pyspark.ml.recommendation.ALS`` with one import changed.

:class:`ALS` takes the parameters of Spark's estimator and fits on the executors with :mod:`wals_gpu.distributed`;
:class:`ALSModel` is Spark's model, so that transform, save, load, Pipeline and CrossValidator are Spark's own.
"""

from wals_gpu.spark.als import ALS
from wals_gpu.spark.model import ALSModel

__all__ = ["ALS", "ALSModel"]
