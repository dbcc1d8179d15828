"""The estimator: parameters and checks of Spark's, training on the executors."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel, keyword_only
from pyspark.ml import Estimator
from pyspark.ml.common import _py2java
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.recommendation import _ALSParams
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType

from wals_gpu.model.wals import WALS
from wals_gpu.spark.executors import FIT_SCHEMA, ITEM, PACKED_SCHEMA, REPORT, USER, FitOrder, fitted, packed, raised
from wals_gpu.spark.model import ALSModel
from wals_gpu.system import usable_cpus

__all__ = ["ALS"]

#: What Spark's Scala has as the seed where none is given: the same in every process.
_SEED = 1994790107


def _described(estimator: type[Any]) -> type[Any]:
    """Setters say which parameter they set; they all have the same sections."""
    for name, method in vars(estimator).items():
        is_setter = name.startswith("set") and [*inspect.signature(method).parameters] == ["self", "value"]
        if is_setter and method.__doc__:
            kind = method.__annotations__["value"]
            method.__doc__ += f"\n\nParameters\n----------\nvalue : {kind}\n    As for :class:`ALS`.\n"
            method.__doc__ += "\nReturns\n-------\nALS\n    Itself."
    return estimator


@_described
class ALS(Estimator, _ALSParams, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[misc]
    """Alternating least squares, with the parameters of ``pyspark.ml.recommendation.ALS`` and their defaults.

    Training runs in a barrier stage, one task ("rank") an executor, and does not depend on their number. Ratings are
    treated as Spark treats them: repeated pairs are entries of their own; zeros and negative ratings have Spark's
    meaning, explicit and implicit; users are solved last.

    Parameters
    ----------
    rank : int, default 10
        Factors.
    maxIter : int, default 10
    regParam : float, default 0.1
        As in Spark, multiplied by a row's ratings (those above 0 with `implicitPrefs`).
    implicitPrefs : bool, default False
        False: the objective "explicit"; True: "spark" (docs/objective.md).
    alpha : float, default 1.0
    userCol, itemCol, ratingCol : str
        What predictions are called is set by :meth:`setPredictionCol`, as in Spark.
    seed : int, optional
        Default: the same in every program.
    coldStartStrategy : {"nan", "drop"}, default "nan"
        Of the model.
    numUserBlocks, numItemBlocks : int, default 10
        The larger one: partitions of the factors' DataFrames. Training has no blocks.
    finalStorageLevel : str, default "MEMORY_AND_DISK"
        Of the factors.
    blockSize : int, default 4096
        Of the model, where Spark's own code computes lists.
    checkpointInterval, intermediateStorageLevel
        Accepted and not used: nothing intermediate is stored.
    nonnegative : bool, default False
        True is refused.
    solver : {"auto", "cholesky", "cg", "subspace"}, default "auto"
        As for :class:`wals_gpu.WALS`: Spark's is "cholesky".
    numRanks : int, default 0
        Tasks of the barrier stage; 0: as many as there are executors, in local mode one.
    numThreads : int, default 0
        Of each of them; 0: the cores of its executor, divided by its tasks.
    timeout : float, default 1800
        Seconds after which a rank that hears nothing of another one gives up.

    Examples
    --------
    ``from wals_gpu.spark import ALS`` in place of ``from pyspark.ml.recommendation import ALS``; docs/spark.md.
    """

    solver: Param[str] = Param(
        Params._dummy(), "solver", "how rows are solved: auto, cholesky, cg, subspace", TypeConverters.toString
    )
    numRanks: Param[int] = Param(
        Params._dummy(), "numRanks", "tasks of the barrier stage; 0: one an executor", TypeConverters.toInt
    )
    numThreads: Param[int] = Param(
        Params._dummy(), "numThreads", "threads of a task; 0: the cores of its executor", TypeConverters.toInt
    )
    timeout: Param[float] = Param(
        Params._dummy(), "timeout", "seconds until a task that hears nothing gives up", TypeConverters.toFloat
    )

    _input_kwargs: dict[str, Any]

    @keyword_only  # type: ignore[untyped-decorator]
    def __init__(
        self,
        *,
        rank: int = 10,
        maxIter: int = 10,
        regParam: float = 0.1,
        numUserBlocks: int = 10,
        numItemBlocks: int = 10,
        implicitPrefs: bool = False,
        alpha: float = 1.0,
        userCol: str = "user",
        itemCol: str = "item",
        seed: int | None = None,
        ratingCol: str = "rating",
        nonnegative: bool = False,
        checkpointInterval: int = 10,
        intermediateStorageLevel: str = "MEMORY_AND_DISK",
        finalStorageLevel: str = "MEMORY_AND_DISK",
        coldStartStrategy: str = "nan",
        blockSize: int = 4096,
        solver: str = "auto",
        numRanks: int = 0,
        numThreads: int = 0,
        timeout: float = 1800.0,
    ) -> None:
        super().__init__()
        self._setDefault(seed=_SEED, solver="auto", numRanks=0, numThreads=0, timeout=1800.0)
        self.setParams(**self._input_kwargs)

    @keyword_only  # type: ignore[untyped-decorator]
    def setParams(
        self,
        *,
        rank: int = 10,
        maxIter: int = 10,
        regParam: float = 0.1,
        numUserBlocks: int = 10,
        numItemBlocks: int = 10,
        implicitPrefs: bool = False,
        alpha: float = 1.0,
        userCol: str = "user",
        itemCol: str = "item",
        seed: int | None = None,
        ratingCol: str = "rating",
        nonnegative: bool = False,
        checkpointInterval: int = 10,
        intermediateStorageLevel: str = "MEMORY_AND_DISK",
        finalStorageLevel: str = "MEMORY_AND_DISK",
        coldStartStrategy: str = "nan",
        blockSize: int = 4096,
        solver: str = "auto",
        numRanks: int = 0,
        numThreads: int = 0,
        timeout: float = 1800.0,
    ) -> ALS:
        """Set the parameters that are given.

        Parameters
        ----------
        rank, maxIter, regParam, implicitPrefs, alpha, nonnegative, seed, solver
            Of the fit; each as for :class:`ALS`.
        userCol, itemCol, ratingCol, coldStartStrategy, blockSize
            Of the tables, and of the model.
        numUserBlocks, numItemBlocks, checkpointInterval, intermediateStorageLevel, finalStorageLevel
            Of the factors' DataFrames.
        numRanks, numThreads, timeout
            Of the barrier stage.

        Returns
        -------
        ALS
            Itself.
        """
        return self._put(**self._input_kwargs)

    def _put(self, **values: Any) -> ALS:
        self._set(**values)
        return self

    def setRank(self, value: int) -> ALS:
        """Set `rank`."""
        return self._put(rank=value)

    def setNumUserBlocks(self, value: int) -> ALS:
        """Set `numUserBlocks`."""
        return self._put(numUserBlocks=value)

    def setNumItemBlocks(self, value: int) -> ALS:
        """Set `numItemBlocks`."""
        return self._put(numItemBlocks=value)

    def setImplicitPrefs(self, value: bool) -> ALS:
        """Set `implicitPrefs`."""
        return self._put(implicitPrefs=value)

    def setAlpha(self, value: float) -> ALS:
        """Set `alpha`."""
        return self._put(alpha=value)

    def setUserCol(self, value: str) -> ALS:
        """Set `userCol`."""
        return self._put(userCol=value)

    def setItemCol(self, value: str) -> ALS:
        """Set `itemCol`."""
        return self._put(itemCol=value)

    def setRatingCol(self, value: str) -> ALS:
        """Set `ratingCol`."""
        return self._put(ratingCol=value)

    def setNonnegative(self, value: bool) -> ALS:
        """Set `nonnegative`."""
        return self._put(nonnegative=value)

    def setIntermediateStorageLevel(self, value: str) -> ALS:
        """Set `intermediateStorageLevel`."""
        return self._put(intermediateStorageLevel=value)

    def setFinalStorageLevel(self, value: str) -> ALS:
        """Set `finalStorageLevel`."""
        return self._put(finalStorageLevel=value)

    def setColdStartStrategy(self, value: str) -> ALS:
        """Set `coldStartStrategy`."""
        return self._put(coldStartStrategy=value)

    def setMaxIter(self, value: int) -> ALS:
        """Set `maxIter`."""
        return self._put(maxIter=value)

    def setRegParam(self, value: float) -> ALS:
        """Set `regParam`."""
        return self._put(regParam=value)

    def setPredictionCol(self, value: str) -> ALS:
        """Set `predictionCol`."""
        return self._put(predictionCol=value)

    def setCheckpointInterval(self, value: int) -> ALS:
        """Set `checkpointInterval`."""
        return self._put(checkpointInterval=value)

    def setSeed(self, value: int) -> ALS:
        """Set `seed`."""
        return self._put(seed=value)

    def setBlockSize(self, value: int) -> ALS:
        """Set `blockSize`."""
        return self._put(blockSize=value)

    def setSolver(self, value: str) -> ALS:
        """Set `solver`."""
        return self._put(solver=value)

    def setNumRanks(self, value: int) -> ALS:
        """Set `numRanks`."""
        return self._put(numRanks=value)

    def setNumThreads(self, value: int) -> ALS:
        """Set `numThreads`."""
        return self._put(numThreads=value)

    def setTimeout(self, value: float) -> ALS:
        """Set `timeout`."""
        return self._put(timeout=value)

    def setNumBlocks(self, value: int) -> ALS:
        """Set `numUserBlocks` and `numItemBlocks`."""
        return self._put(numUserBlocks=value, numItemBlocks=value)

    def getSolver(self) -> str:
        """The value of `solver`."""
        value: str = self.getOrDefault(self.solver)
        return value

    def getNumRanks(self) -> int:
        """The value of `numRanks`."""
        value: int = self.getOrDefault(self.numRanks)
        return value

    def getNumThreads(self) -> int:
        """The value of `numThreads`."""
        value: int = self.getOrDefault(self.numThreads)
        return value

    def getTimeout(self) -> float:
        """The value of `timeout`."""
        value: float = self.getOrDefault(self.timeout)
        return value

    def _fit(self, dataset: DataFrame) -> ALSModel:
        session = dataset.sparkSession
        if not hasattr(session, "_jvm") or not hasattr(dataset, "_jdf"):
            raise TypeError(
                "wals_gpu.spark.ALS needs a classic Spark session: Spark Connect has no way to models in the JVM; "
                "start the session without .remote(...) and with spark.api.mode=classic"
            )
        if self.getOrDefault(self.nonnegative):
            raise ValueError(
                "nonnegative must be False: wals_gpu.spark.ALS has no nonnegative least squares; "
                "pyspark.ml.recommendation.ALS has"
            )
        java = self._as_java(session)
        java.transformSchema(dataset._jdf.schema())  # refuses what Spark refuses, in its words
        settings = self._settings()
        WALS(**settings)  # its errors come before any work
        n_ranks, cores = self._places(session.sparkContext)
        order = FitOrder(settings, self.getOrDefault(self.numThreads), cores, float(self.getOrDefault(self.timeout)))

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            return fitted(batches, order)

        ratings = dataset.select(*self._columns(dataset)).mapInArrow(packed, PACKED_SCHEMA).repartition(n_ranks)
        blocks = max(self.getNumUserBlocks(), self.getNumItemBlocks())
        frame = ratings.mapInArrow(run, FIT_SCHEMA, barrier=True).repartition(blocks, "side", "id")
        frame = self._kept(frame)
        report = json.loads(frame.where(F.col("side") == REPORT).select("report").collect()[0][0])
        if "error" in report:
            raise raised(report["error"])
        factors = [frame.where(F.col("side") == side).select("id", "features")._jdf for side in (USER, ITEM)]
        made = session._jvm.org.apache.spark.ml.recommendation.ALSModel(self.uid, self.getRank(), *factors)
        empty = session._jvm.org.apache.spark.ml.param.ParamMap()
        model: ALSModel = self._copyValues(ALSModel(java.copyValues(made, empty)))
        model.losses = report["losses"]
        return model

    def _as_java(self, session: Any) -> Any:
        """Spark's own estimator with these parameters, which checks them."""
        java = session._jvm.org.apache.spark.ml.recommendation.ALS(self.uid)
        for param, value in self.extractParamMap().items():
            if java.hasParam(param.name):
                java_param = java.getParam(param.name)
                java.set(java_param.w(_py2java(session.sparkContext, value)))
        return java

    def _settings(self) -> dict[str, Any]:
        """Of the model that does the work."""
        settings: dict[str, Any] = {
            "factors": self.getRank(),
            "iterations": self.getMaxIter(),
            "solver": self.getOrDefault(self.solver),
            "random_state": self.getSeed() % 2**64,
            "init_scale": 1.0,  # Spark's start values have length 1
            "regularization": self.getRegParam(),
            "device": "cpu",
            "objective": "spark" if self.getImplicitPrefs() else "explicit",
        }
        if self.getImplicitPrefs():
            settings["alpha"] = self.getAlpha()
        return settings

    def _places(self, context: Any) -> tuple[int, int]:
        """Ranks, and the cores of an executor (0: not known)."""
        n, scala = self.getOrDefault(self.numRanks), context._jsc.sc()
        if n < 0:
            raise ValueError(f"numRanks must be at least 0, got {n}")
        if self.getOrDefault(self.numThreads) < 0:
            raise ValueError(f"numThreads must be at least 0, got {self.getOrDefault(self.numThreads)}")
        if scala.isLocal():
            cores = _local_cores(context.master)
            if n > cores:
                raise ValueError(f"numRanks must be at most {cores}, the cores of master {context.master!r}, got {n}")
            return n or 1, cores
        cluster = re.fullmatch(r"local-cluster\[\s*\d+\s*,\s*(\d+)\s*,.*", context.master)
        cores = int(cluster[1]) if cluster else int(context.getConf().get("spark.executor.cores", "0"))
        return n or max(len(scala.statusTracker().getExecutorInfos()) - 1, 1), cores

    def _columns(self, dataset: DataFrame) -> list[Column]:
        """Users, items and ratings as Spark takes them, with its sentences where it does not."""
        values = F.col(self.getRatingCol()).cast("float")
        refused = F.raise_error(F.lit("Ratings MUST NOT be Null or NaN"))
        values = F.when(values.isNull() | F.isnan(values), refused.cast("float")).otherwise(values)
        ids = [_checked_ids(dataset, column) for column in (self.getUserCol(), self.getItemCol())]
        return [ids[0].alias("user"), ids[1].alias("item"), values.alias("rating")]

    def _kept(self, frame: DataFrame) -> DataFrame:
        """Computed once: in the checkpoint folder where there is one, else in the executors' storage."""
        if frame.sparkSession.sparkContext._jsc.sc().getCheckpointDir().isDefined():
            return frame.checkpoint(eager=True)
        name = self.getFinalStorageLevel().replace("_SER", "")
        level = (
            StorageLevel.MEMORY_AND_DISK_DESER if name in ("MEMORY_AND_DISK", "NONE") else getattr(StorageLevel, name)
        )
        return frame.localCheckpoint(eager=True, storageLevel=level)


def _checked_ids(dataset: DataFrame, name: str) -> Column:
    """Whole numbers of 32 bits; where a value is none, Spark's error."""
    column = F.col(name)
    if isinstance(dataset.schema[name].dataType, IntegerType):
        refused = F.raise_error(F.lit(f"{name} Ids MUST NOT be Null"))
        return F.when(column.isNull(), refused.cast("int")).otherwise(column)
    # As a double, which all of int is exact in; ANSI mode must not stop at its own error first.
    whole = column.cast("double")
    fits = whole.between(-(2.0**31), 2.0**31 - 1) & (F.floor(whole) == whole)
    text = F.concat(
        F.lit("ALS only supports non-Null values in Integer range and without fractional part for column "),
        F.lit(f"{name}, but got "), F.coalesce(column.cast("string"), F.lit("null")),
    )  # fmt: skip
    return F.when(fits, column.cast("int")).otherwise(F.raise_error(text).cast("int"))


def _local_cores(master: str) -> int:
    """Of a master local, local[4], local[*] or local[4,2]."""
    found = re.fullmatch(r"local(?:\[\s*(\d+|\*)\s*(?:,.*)?\])?", master)
    inside = found[1] if found else None
    if inside is None:
        return 1
    return usable_cpus() if inside == "*" else int(inside)
