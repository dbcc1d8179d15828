"""Spark's ALSModel, with lists of recommendations from the library's own search."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml import recommendation
from pyspark.ml.util import JavaMLReader
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StructField, StructType

from wals_gpu.spark.executors import topk_lists

__all__ = ["ALSModel"]

#: Bytes of factors that go to the driver and to each Python worker; above, Spark's own search is used.
_BROADCAST = 512 << 20


class ALSModel(recommendation.ALSModel):  # type: ignore[misc]
    """What :meth:`.ALS.fit` gives: Spark's model, of which ``recommendFor...`` are computed by this library.

    It is an instance of ``pyspark.ml.recommendation.ALSModel``, and is saved and loaded as one.

    Attributes
    ----------
    losses : list of float, or None
        The training objective after each iteration; None for a model that was loaded.
    """

    losses: list[float] | None = None

    @classmethod
    def of(cls, model: recommendation.ALSModel) -> ALSModel:
        """A model of Spark's, such as one of a loaded PipelineModel, as one of this class.

        Parameters
        ----------
        model : pyspark.ml.recommendation.ALSModel

        Returns
        -------
        ALSModel
        """
        java = model._java_obj.copy(model._empty_java_param_map())  # each Python object lets go of its own in the end
        new = cls(java)
        new._resetUid(java.uid())
        new._transfer_params_from_java()
        return new

    @classmethod
    def read(cls) -> JavaMLReader[ALSModel]:
        """A reader of saved models, Spark's as well."""
        return _Reader(cls)

    def recommendForAllUsers(self, numItems: int) -> DataFrame:
        """The best items for each user.

        Parameters
        ----------
        numItems : int
            Of each list, or all items where there are fewer.

        Returns
        -------
        DataFrame
            (user, [(item, rating), ...]), as Spark gives it.
        """
        return self._lists(self.userFactors, "user", numItems) or super().recommendForAllUsers(numItems)

    def recommendForAllItems(self, numUsers: int) -> DataFrame:
        """The best users for each item.

        Parameters
        ----------
        numUsers : int
            Of each list, or all users where there are fewer.

        Returns
        -------
        DataFrame
            (item, [(user, rating), ...]), as Spark gives it.
        """
        return self._lists(self.itemFactors, "item", numUsers) or super().recommendForAllItems(numUsers)

    def recommendForUserSubset(self, dataset: DataFrame, numItems: int) -> DataFrame:
        """As :meth:`recommendForAllUsers`, for some of the users.

        Parameters
        ----------
        dataset : DataFrame
            With the users in the model's `userCol`; those that the model does not know are left out.
        numItems : int
            Of each list, or all items where there are fewer.

        Returns
        -------
        DataFrame
            (user, [(item, rating), ...]), as Spark gives it.
        """
        some = _subset(self.userFactors, dataset, self.getUserCol())
        return self._lists(some, "user", numItems) or super().recommendForUserSubset(dataset, numItems)

    def recommendForItemSubset(self, dataset: DataFrame, numUsers: int) -> DataFrame:
        """As :meth:`recommendForAllItems`, for some of the items.

        Parameters
        ----------
        dataset : DataFrame
            With the items in the model's `itemCol`; those that the model does not know are left out.
        numUsers : int
            Of each list, or all users where there are fewer.

        Returns
        -------
        DataFrame
            (item, [(user, rating), ...]), as Spark gives it.
        """
        some = _subset(self.itemFactors, dataset, self.getItemCol())
        return self._lists(some, "item", numUsers) or super().recommendForItemSubset(dataset, numUsers)

    def _lists(self, queries: DataFrame, side: str, k: int) -> DataFrame | None:
        """None: where Spark's own search is to be used."""
        if k < 1:
            return None
        # Spark keeps what is sent in a file until the session ends, so that it is sent once, for all lists.
        sent: dict[str, Any] = self.__dict__.setdefault("_sent", {})
        if side not in sent:
            others = self.itemFactors if side == "user" else self.userFactors
            if others.count() * self.rank * 4 > _BROADCAST:
                return None
            table = others.toArrow()
            ids = table.column("id").to_numpy()
            order = np.argsort(ids)
            vectors = pa.chunked_array(table.column("features")).combine_chunks().flatten().to_numpy()
            vectors = np.ascontiguousarray(vectors.reshape(len(ids), -1)[order])
            sent[side] = queries.sparkSession.sparkContext.broadcast((ids[order], vectors))
        shared = sent[side]
        own, other = self.getUserCol(), self.getItemCol()
        if side == "item":
            own, other = other, own
        names = [own, "recommendations", other, "rating"]

        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            other_ids, other_vectors = shared.value
            return topk_lists(batches, other_ids, other_vectors, k, names)

        entry = StructType([StructField(other, IntegerType()), StructField("rating", FloatType())])
        fields = [StructField(own, IntegerType(), False), StructField("recommendations", ArrayType(entry))]
        return queries.select("id", "features").mapInArrow(run, StructType(fields))


class _Reader(JavaMLReader[ALSModel]):  # type: ignore[misc]
    """Reads what Spark's models write."""

    @classmethod
    def _java_loader_class(cls, clazz: Any) -> str:
        return "org.apache.spark.ml.recommendation.ALSModel"

    def load(self, path: str) -> ALSModel:
        return ALSModel.of(super().load(path))


def _subset(factors: DataFrame, dataset: DataFrame, column: str) -> DataFrame:
    wanted = dataset.select(dataset[column].alias("id")).distinct()
    return factors.join(wanted, "id", "left_semi")
