"""Interactions are brought to the numbering of others by id, or refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import DataError, Interactions, ParameterWarning, as_interactions, read_interactions
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames
from wals_gpu.data.matching import is_table, match, open_interactions, read_like
from wals_gpu.evaluation import random_holdout

USERS, ITEMS = Ids(pa.array(["ann", "bob", "eve", "zoe"]), "user"), Ids(np.array([3, 10, 20]), "item")
LOG = pd.DataFrame({"user": ["zoe", "ann", "eve"], "item": [10, 20, 10], "value": [1.0, 2.0, 3.0]})
EXPECTED = {("ann", 20): 2.0, ("eve", 10): 3.0, ("zoe", 10): 1.0}


def cells(data):
    coo = data.matrix.tocoo()
    return dict(zip(zip(data.user_ids[coo.row], data.item_ids[coo.col], strict=True), coo.data.tolist(), strict=True))


def test_what_is_numbered_apart_is_moved():
    data = as_interactions(LOG)
    data = replace(data, times=np.arange(3.0))
    moved, dropped, unknown = match("test", data, USERS, ITEMS, "the model")
    assert moved.matrix.shape == (4, 3) and moved.matrix.has_canonical_format and cells(moved) == EXPECTED
    assert (dropped, unknown) == (0, "") and moved.user_ids is USERS and moved.item_ids is ITEMS
    assert moved.times.tolist() == data.times.tolist() and moved.columns == data.columns
    assert moved.matrix.toarray()[[0, 2, 3], [2, 1, 1]].tolist() == [2, 3, 1]
    assert match("test", moved, USERS, ITEMS, "the model").data is moved  # the same already
    # one side only
    half = match("test", data, None, ITEMS, "train").data
    assert half.matrix.shape == (3, 3) and half.user_ids == data.user_ids and cells(half) == EXPECTED
    nobody = match("test", Interactions(data.matrix[:0], data.user_ids.subset([]), data.item_ids), USERS, ITEMS, "x")
    assert nobody.data.matrix.shape == (4, 3) and nobody.data.matrix.nnz == 0


def test_unknown_ids_are_named():
    more = pd.concat([LOG, pd.DataFrame({"user": ["who", "ann", "you"], "item": [3, 99, 98], "value": 1.0})])
    data = replace(as_interactions(more), times=np.arange(6.0))
    message = "test names 2 users and 2 items that the model does not know, such as item 98, in 3 of its 6 entries"
    with pytest.raises(DataError, match=message):
        match("test", data, USERS, ITEMS, "the model")
    with pytest.warns(ParameterWarning, match=r"3 of 6 entries of test name .* not known to the model \(2 users and 2"):
        moved, dropped, unknown = match("test", data, USERS, ITEMS, "the model", drop=True)
    assert cells(moved) == EXPECTED and dropped == 3
    assert unknown == "2 users and 2 items, such as item 98"
    kept = [pair in EXPECTED for pair in cells(data)]
    assert moved.times.tolist() == data.times[kept].tolist()
    for drop in (False, True):
        with pytest.raises(DataError, match="none of the 1 entries of test is of a user and an item that the model"):
            match("test", as_interactions(more.iloc[3:4]), USERS, ITEMS, "the model", drop=drop)
    # ids without an entry are nobody's
    wide = Interactions(
        csr_matrix(([1.0], ([0], [1])), shape=(2, 2)), Ids(pa.array(["ann", "who"])), Ids(np.array([9, 10]))
    )
    assert cells(match("test", wide, USERS, ITEMS, "the model").data) == {("ann", 10): 1.0}


def test_ids_of_another_kind_are_an_error():
    numbers = as_interactions(LOG.assign(user=[1, 2, 3]))
    with pytest.raises(
        DataError, match=r"user ids of test are integers, such as 1, but those of .* are strings, such as 'ann'"
    ):
        match("test", numbers, USERS, ITEMS, "the model", drop=True)
    texts = as_interactions(LOG.assign(item=["10", "20", "10"]))
    with pytest.raises(
        DataError, match="item ids of test are strings, such as '10', but those of the model are integers"
    ):
        match("test", texts, USERS, ITEMS, "the model", drop=True)


def test_a_matrix_is_taken_by_number():
    matrix = csr_matrix(np.ones((4, 3)))
    for data in (matrix, matrix.toarray(), Interactions(matrix), matrix.tocoo()):
        got = read_like("test", data, USERS, ITEMS, "the model").data
        assert got.user_ids is None and got.matrix.shape == (4, 3)
    with pytest.raises(DataError, match=r"test must have 4 rows, one for each user of the model; got shape \(3, 3\)"):
        read_like("test", matrix[:3], USERS, ITEMS, "the model")
    with pytest.raises(DataError, match="test must have 3 columns, one for each item of train"):
        read_like("test", matrix[:, :2], None, ITEMS, "train")


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "csv", "parquet"])
def test_tables_are_read_and_moved(kind, tmp_path):
    path = tmp_path / f"log.{kind}"
    more = pd.concat([LOG, pd.DataFrame({"user": ["who"], "item": [3], "value": [1.0]})], ignore_index=True)
    if kind == "csv":
        more.to_csv(path, index=False)
    elif kind == "parquet":
        more.to_parquet(path)
    table = {"pandas": more, "polars": pl.from_pandas(more), "arrow": pa.Table.from_pandas(more)}.get(kind, path)
    assert is_table(table) and is_table(str(path))
    with pytest.warns(ParameterWarning, match="1 of 4 entries of test name a user or an item that is not known"):
        got = read_like("test", table, USERS, ITEMS, "the model")
    assert cells(got.data) == EXPECTED and got.dropped == 1
    with pytest.raises(DataError, match="test names 1 user that the model does not know, such as user 'who'"):
        read_like("test", table, USERS, ITEMS, "the model", drop=False)


def test_numbers_of_a_text_file_may_be_the_texts_of_others(tmp_path):
    """A text file has no types: of the known ids some are no numbers, of this file's all are."""
    users = Ids(pa.array(["100", "20", "9", "ann"]), "user")
    path = tmp_path / "log.csv"
    path.write_text("user,item,value\n9,10,1\n100,20,2\n20,3,3\n100,3,4\n")
    got = read_like("test", path, users, ITEMS, "the model").data
    assert cells(got) == {("9", 10): 1, ("100", 20): 2, ("100", 3): 4, ("20", 3): 3}
    assert got.matrix.has_canonical_format and got.matrix.has_sorted_indices
    pd.read_csv(path).to_parquet(tmp_path / "log.parquet")  # has types
    with pytest.raises(DataError, match="user ids of test are integers"):
        read_like("test", tmp_path / "log.parquet", users, ITEMS, "the model")
    # What was read from it knows that it is one, also as a part of a split.
    held, _ = random_holdout(read_interactions(path), 0.01)
    assert cells(read_like("test", held, users, ITEMS, "the model").data) == cells(got)
    with pytest.raises(DataError, match="user ids of test are integers"):
        read_like("test", read_interactions(tmp_path / "log.parquet"), users, ITEMS, "the model")


def test_one_id_that_is_no_number_does_not_hide_the_others(tmp_path):
    """It made texts of all ids of the file, of which not one was known then."""
    users = Ids(np.array([9, 20, 100]), "user")
    path = tmp_path / "log.csv"
    path.write_text("user,item,value\n9,10,1\nann,10,7\n100,20,2\n20,30,3\n007,30,3\n")
    with pytest.warns(ParameterWarning, match=r"2 of 5 entries of test name .*\(2 users, such as user '007'\)"):
        got = read_like("test", path, users, Ids(np.array([10, 20, 30]), "item"), "the model").data
    assert cells(got) == {(9, 10): 1, (100, 20): 2, (20, 30): 3}
    with pytest.warns(ParameterWarning, match="2 of 5 rows name a user or an item that is not known"):
        known = read_interactions(path, user_ids=users, unknown="drop")
    assert cells(known) == cells(got)
    with pytest.raises(KeyError, match=r"unknown user id: '(ann|007)'"):
        read_interactions(path, user_ids=users)
    path.write_text("user,item\nann,10\n")
    with pytest.raises(DataError, match="user_column 'user' must hold integer ids as known before"):
        read_interactions(path, user_ids=users, unknown="drop")


def test_the_columns_of_the_known_table_are_the_default():
    named = LOG.rename(columns={"user": "who", "item": "what"})
    like = ColumnNames("who", "what", "value")
    assert cells(read_like("test", named, USERS, ITEMS, "x", like=like).data) == EXPECTED
    assert cells(read_like("test", LOG, USERS, ITEMS, "x", like=like).data) == EXPECTED  # it has usual names itself
    both = named.assign(user="ann", item=3)
    assert cells(read_like("test", both, USERS, ITEMS, "x", like=like).data) == EXPECTED
    chosen = {"user_column": "user", "item_column": "what", "value_column": None}
    assert set(cells(read_like("test", both, USERS, ITEMS, "x", chosen, like=like).data)) == {("ann", 10), ("ann", 20)}


def test_options_of_a_whole_are_not_for_its_parts():
    log = LOG.rename(columns={"value": "rating"}).assign(time=[1.0, 2.0, 3.0])
    whole = {"min_user_interactions": 2, "half_life": 1.0, "time_column": "time"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of ratings as well, which the whole was warned of
        got = read_like("test", log, USERS, ITEMS, "the model", {**whole, "min_item_interactions": 2}).data
        assert cells(got) == EXPECTED and got.times is None
        liked = read_like("test", log, USERS, ITEMS, "the model", {**whole, "min_value": 2}).data
    assert cells(liked) == {pair: value for pair, value in EXPECTED.items() if value >= 2}
    with pytest.raises(DataError, match="train: min_user_interactions"):
        read_like("train", log, USERS, ITEMS, "the model", {"min_user_interactions": 2}, is_part=False)
    with pytest.raises(TypeError, match="unexpected argument 'colour'; a table is described by user_column"):
        read_like("test", log, USERS, ITEMS, "the model", {"colour": 2})


def test_files_without_a_line_of_names(tmp_path):
    (tmp_path / "log.txt").write_text("zoe;10;1,0\nann;20;2,0\neve;10;3,0\n")
    options = {"columns": ["user", "item", "value"], "decimal": ","}
    for path in (tmp_path / "log.txt", [tmp_path / "log.txt"]):
        assert cells(read_like("test", path, USERS, ITEMS, "the model", options).data) == EXPECTED


def test_what_cannot_be_opened_is_named():
    for wrong in (3, None, object()):
        with pytest.raises(TypeError, match="train: interactions must be"):
            open_interactions("train", wrong)
        with pytest.raises(TypeError, match="train: interactions must be"):
            read_like("train", wrong, USERS, ITEMS, "the model")
    with pytest.raises(DataError, match="train: user_column must be given"):
        open_interactions("train", pd.DataFrame({"a": [1]}))
    with pytest.raises(DataError, match=r"train: .*at least one row"):
        open_interactions("train", LOG.iloc[:0])
    with pytest.raises(FileNotFoundError):
        open_interactions("train", "nowhere.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_interactions("train", csr_matrix((3, 4))).matrix.nnz == 0  # nothing to refuse here
