"""Frames of other libraries as interactions: only what is wanted of them is read, and all say the same."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from wals_gpu import WALS, DataError, as_interactions
from wals_gpu.data.titles import Titles

TABLE = pd.DataFrame({
    "user_id": ["b", "a", "b", "c"], "item_id": [30, 10, 20, 10], "count": [1.0, 2.0, 3.0, 4.0], "when": [4, 3, 2, 1],
})  # fmt: skip


def same(data, **options):
    got, want = as_interactions(data, **options), as_interactions(TABLE, **options)
    assert got.user_ids == want.user_ids and got.item_ids == want.item_ids and got.columns == want.columns
    np.testing.assert_array_equal(got.matrix.toarray(), want.matrix.toarray())
    if want.times is not None:
        np.testing.assert_array_equal(got.times, want.times)


def test_streams_keep_only_what_is_wanted():
    """Also one that can be read once, of several batches, with a column that nobody could hold."""
    batches = [pa.RecordBatch.from_pandas(TABLE.iloc[:1]), pa.RecordBatch.from_pandas(TABLE.iloc[1:])]
    same(pa.RecordBatchReader.from_batches(batches[0].schema, batches))
    same(pa.RecordBatchReader.from_batches(batches[0].schema, batches), time_column="when", value_column=False)
    with pytest.raises(DataError, match=r"'nobody'.*there are|nobody"):
        as_interactions(pa.RecordBatchReader.from_batches(batches[0].schema, batches), user_column="nobody")
    with pytest.raises(DataError):  # no row at all
        as_interactions(pa.RecordBatchReader.from_batches(batches[0].schema, []))


def test_relations_of_duckdb():
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    relation = duckdb.from_df(TABLE)
    same(relation)
    same(relation, time_column="when")  # a query can be asked again
    same(duckdb.sql("SELECT *, 1 AS extra FROM relation ORDER BY item_id"))
    model = WALS(factors=2, iterations=1, num_threads=1).fit(relation)
    assert model.recommend("a", 1, titles=duckdb.sql("SELECT 20 AS item_id, 'tea' AS title")).to_arrow().num_rows == 1


@pytest.mark.parametrize("partitions", [1, 3])
def test_frames_of_dask(partitions):
    frames = pytest.importorskip("dask.dataframe", reason="dask is not installed")
    frame = frames.from_pandas(TABLE, npartitions=partitions)
    same(frame)
    same(frame, time_column="when")
    same(frames.from_pandas(TABLE.set_index("item_id"), npartitions=partitions))
    computed = []
    counted = frame.assign(other=frame["count"].map(lambda value: computed.append(value) or value, meta=("o", float)))
    same(counted)
    assert not computed  # a column that nobody asked for
    titles = frames.from_pandas(pd.DataFrame({"item_id": [10], "title": ["tea"]}), npartitions=1)
    assert Titles.read(titles).of(np.array([10, 20])).to_pylist() == ["tea", None]


def test_an_older_spark_is_told_what_to_do(monkeypatch):
    module = ModuleType("pyspark.sql.dataframe")
    exec("class DataFrame:\n    columns = ['user_id', 'item_id']", module.__dict__)
    monkeypatch.setitem(sys.modules, "pyspark.sql.dataframe", module)
    with pytest.raises(TypeError, match=r"needs pyspark 4, .* give toPandas\(\)"):
        as_interactions(module.DataFrame())
