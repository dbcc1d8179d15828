"""Splits of Interactions and tables keep ids and times; splits by time take moments and durations as people say."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse import coo_matrix, csr_matrix

from wals_gpu import WALS, Interactions, ParameterWarning, as_interactions
from wals_gpu.data.interactions import ColumnNames
from wals_gpu.evaluation import (
    cold_items_split,
    evaluate,
    last_n,
    leave_one_out,
    random_holdout,
    rolling_windows,
    sample_negatives,
    strong_generalisation_split,
    temporal_split,
)

SPLITS = [random_holdout, leave_one_out, cold_items_split, strong_generalisation_split]


def make_log(seed=0, n=150, users=20, items=12):
    """A table of distinct pairs in random order, with dates."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:n]
    return pd.DataFrame(
        {
            "user": [f"u{k:02}" for k in pairs // items],
            "item": pairs % items * 10 + 5,
            "value": rng.integers(1, 6, n).astype(float),
            "time": np.datetime64("2024-01-01", "us") + rng.permutation(n).astype("timedelta64[D]"),
        }
    )


def with_times(log, kind="datetime64[us]"):
    """Interactions of the log with the time of each pair."""
    data = as_interactions(log)
    when = {(u, i): t for u, i, t in zip(log["user"], log["item"], log["time"].to_numpy(), strict=True)}
    coo = data.matrix.tocoo()
    pairs = zip(data.user_ids[coo.row], data.item_ids[coo.col], strict=True)
    times = np.array([when[pair] for pair in pairs]).astype(kind)
    return replace(data, times=times, columns=ColumnNames("user", "item", "value", "time"))


def triples(data):
    """(user, item, time) of each entry."""
    coo = data.matrix.tocoo()
    times = [None] * coo.nnz if data.times is None else data.times.tolist()
    return set(zip(data.user_ids[coo.row].tolist(), data.item_ids[coo.col].tolist(), times, strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_interactions_are_interactions(split):
    data = with_times(make_log())
    by_time = {"timestamps": data.times} if split is leave_one_out else {}
    parts, of_matrix = split(data, random_state=3), split(data.matrix, random_state=3, **by_time)
    whole = triples(data)
    for part, matrix in zip(parts, of_matrix, strict=True):
        if isinstance(part, np.ndarray):
            assert part.tolist() == matrix.tolist()
            continue
        assert type(matrix) is csr_matrix and isinstance(part, Interactions)
        assert abs(part.matrix - matrix).nnz == 0 and part.matrix.shape == matrix.shape
        assert part.matrix.dtype == np.float32 and part.columns == data.columns and part.item_ids == data.item_ids
        assert part.times.dtype == data.times.dtype and len(part.times) == part.matrix.nnz
        assert triples(part) <= whole
    if split is strong_generalisation_split:
        assert parts.train.user_ids == data.user_ids.subset(parts.train_users)
        assert parts.fold_in.user_ids == parts.test.user_ids == data.user_ids.subset(parts.heldout_users)
    else:
        assert parts[0].user_ids == parts[1].user_ids == data.user_ids
        assert triples(parts[0]) | triples(parts[1]) == whole and not triples(parts[0]) & triples(parts[1])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "csv", "parquet"])
def test_tables_are_read_first(split, kind, tmp_path):
    log = make_log().drop(columns="time")
    data, path = as_interactions(log), tmp_path / f"log.{kind}"
    if kind == "csv":
        log.to_csv(path, index=False)
    elif kind == "parquet":
        log.to_parquet(path)
    table = {"pandas": log, "polars": pl.from_pandas(log), "arrow": pa.Table.from_pandas(log)}.get(kind, path)
    for part, expected in zip(split(table, random_state=1), split(data, random_state=1), strict=True):
        if isinstance(part, Interactions):
            assert triples(part) == triples(expected) and part.user_ids == expected.user_ids
        else:
            assert part.tolist() == expected.tolist()


def test_columns_of_tables_are_named_as_elsewhere():
    log = make_log().rename(columns={"user": "who", "item": "what", "value": "stars"})
    columns = {"user_column": "who", "item_column": "what", "value_column": "stars"}
    train, test = random_holdout(log, **columns)
    assert triples(train) | triples(test) == triples(as_interactions(log, **columns))
    assert set(np.r_[train.matrix.data, test.matrix.data]) == {1, 2, 3, 4, 5}
    for split in SPLITS:
        with pytest.raises(ValueError, match="matrix: user_column must be given"):
            split(log)
        with pytest.raises(ValueError, match="user_column can be given with a table only; matrix is"):
            split(csr_matrix(np.eye(4)), user_column="who")
        with pytest.raises(TypeError, match="unexpected argument 'colour'; a table is described by user_column"):
            split(log, colour="who")
        with pytest.raises(TypeError, match="matrix: interactions must be"):
            split(3)


@pytest.mark.parametrize(
    ("split", "name", "value", "meant"),
    [(random_holdout, "test_size", 0.2, "fraction"), (temporal_split, "test", None, "fraction"),
     (leave_one_out, "seed", 3, "random_state"), (cold_items_split, "randomstate", 3, "random_state"),
     (last_n, "user_col", "user", "user_column"), (leave_one_out, "test_size", 0.2, None)],
)  # fmt: skip
def test_names_of_other_libraries_are_refused_with_ours(split, name, value, meant):
    with pytest.raises(TypeError, match=f"unexpected argument '{name}'; a table is described by") as refused:
        split(make_log(), **{name: value})
    assert str(refused.value).endswith(f"; did you mean {meant!r}?" if meant else "options of as_interactions")


def test_evaluate_does_not_pass_over_an_argument_that_it_does_not_know():
    data = as_interactions(make_log(), user_column="user", item_column="item", value_column="value")
    train, test = random_holdout(data)
    model = WALS(4, iterations=1).fit(train)
    for name, value, meant in (("k", 5, "'ks'"), ("metrics", ["ndcg"], None), ("batchsize", 7, "'batch_size'")):
        with pytest.raises(TypeError, match=f"unexpected argument '{name}'") as refused:
            evaluate(model, train, test, **{name: value})
        assert meant is None or str(refused.value).endswith(f"did you mean {meant}?")
    with pytest.raises(ValueError, match="user_column, min_value can be given with a table only"):
        evaluate(model, train, test, user_column="user", min_value=4)


def test_what_times_leave_without_use_is_checked():
    log = make_log()
    log["time"] = np.arange(len(log))
    how = {"user_column": "user", "item_column": "item", "value_column": "value", "time_column": "time"}
    for split in (leave_one_out, temporal_split):
        with pytest.raises(TypeError, match="random_state must be an integer >= 0, got 'x'"):
            split(log, random_state="x", **how)
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\), got 7"):
        temporal_split(log, fraction=7, cutoff=3, **how)


def test_interactions_without_ids_stay_without():
    data = Interactions(csr_matrix(np.ones((6, 4))), times=np.arange(24.0))
    for split in (*SPLITS, temporal_split, last_n):
        parts = split(data)
        assert all(isinstance(part, Interactions) for part in parts[:2])
        assert parts[0].user_ids is None and parts[0].item_ids is None and parts[0].columns is None
        assert np.array_equal(parts[0].times % 4, parts[0].matrix.indices)


def test_damaged_interactions_are_refused():
    matrix = csr_matrix(np.eye(3))
    for wrong, message in (
        (Interactions(matrix, times=np.arange(2.0)), r"matrix.times must have one time for each .* got shape \(2,\)"),
        (Interactions(matrix.tocoo(), times=np.arange(3.0)), "CSR matrix with sorted columns"),
        (Interactions(matrix, user_ids=as_interactions(make_log()).user_ids), "must have 20 rows, one per user id"),
    ):
        with pytest.raises(ValueError, match=message):
            random_holdout(wrong)


# ---------------------------------------------------------------------------------------------------------------- times


def test_the_times_of_interactions_are_taken():
    log = make_log()
    data = with_times(log)
    last = log.sort_values("time").groupby("user").tail(1)
    train, test = leave_one_out(data)
    assert {(u, i) for u, i, _ in triples(test)} == set(zip(last["user"], last["item"], strict=True))
    late = log[log["time"] >= "2024-04-01"]
    for cutoff in ("2024-04-01", datetime.date(2024, 4, 1), pd.Timestamp("2024-04-01")):
        train, test = temporal_split(data, cutoff=cutoff)
        assert {(u, i) for u, i, _ in triples(test)} == set(zip(late["user"], late["item"], strict=True))
        assert train.times.max() < np.datetime64("2024-04-01") <= test.times.min()
    fifth = temporal_split(data)[1]
    assert fifth.matrix.nnz == 30 and fifth.times.min() == np.sort(data.times)[-30]
    # without times: at random, or an error that says what to do
    plain = replace(data, times=None)
    assert triples(leave_one_out(plain)[1]) == triples(leave_one_out(plain, random_state=0)[1])
    for split in (temporal_split, last_n, rolling_windows):
        with pytest.raises(ValueError, match=r"no times to split by; .*as_interactions\(table, time_column='time'\)"):
            split(plain)
        with pytest.raises(ValueError, match="no times to split by; name the column that has them: time_column="):
            split(log.drop(columns="time"))
        with pytest.raises(ValueError, match="no times to split by; give timestamps"):
            split(data.matrix)


def test_the_latest_of_each_user():
    rng = np.random.default_rng(6)
    matrix = csr_matrix(rng.random((40, 30)) < np.linspace(0.02, 0.9, 40)[:, None], dtype=np.float32)
    times = rng.integers(0, 12, matrix.nnz)  # many a time twice
    for fraction in (0.05, 0.3, 0.9):
        train, test = temporal_split(matrix, times, fraction=fraction, per_user=True, random_state=3)
        size, held = np.diff(matrix.indptr), np.diff(test.indptr)
        assert (held == np.where(size > 1, np.maximum(1, (fraction * size).astype(int)), 0)).all()
        assert (train + test != matrix).nnz == 0
        when = matrix.copy()
        when.data = times + 1.0
        for user in np.flatnonzero(held):
            assert when[user].multiply(train[user]).max() <= when[user].multiply(test[user]).tocoo().data.min()
    same = np.zeros(matrix.nnz)
    first, again, other = (temporal_split(matrix, same, per_user=True, random_state=n)[1] for n in (0, 0, 1))
    assert (first != again).nnz == 0 < (first != other).nnz  # of equal times, at random
    with pytest.raises(ValueError, match="cutoff is one moment for all users: not with per_user=True, got 4"):
        temporal_split(matrix, times, cutoff=4, per_user=True)
    with pytest.raises(ValueError, match="no user has two entries or more, so per_user=True leaves none for test"):
        temporal_split(csr_matrix(np.eye(3)), np.arange(3), per_user=True)


@pytest.mark.parametrize("split", [leave_one_out, temporal_split, last_n, rolling_windows])
def test_an_array_of_times_beside_what_came_from_a_table_is_refused(split):
    """The rows of the table are in another order than the entries: it gave a random split that looked temporal."""
    log = make_log()
    data = as_interactions(log)
    for times in (log["time"], log["time"].to_numpy(), log["time"].tolist(), pl.Series(log["time"])):
        with pytest.raises(ValueError, match=r"another order than the entries.*time_column='time'"):
            split(data, timestamps=times)
        with pytest.raises(ValueError, match=r"beside a table have no order in common.*time_column='time'"):
            split(log, timestamps=times)
    with pytest.raises(ValueError, match="time_column='when'"):
        split(data, timestamps=log["time"].rename("when"))
    with pytest.raises(ValueError, match="time_column='when'"):
        split(log, timestamps="when")
    with pytest.raises(ValueError, match="must be an array or a sparse matrix"):
        split(data.matrix, timestamps="time")
    # a matrix in canonical order, and a sparse matrix of times, stay as they were
    times = np.arange(data.matrix.nnz) * 1e9
    as_matrix = csr_matrix((times, data.matrix.indices, data.matrix.indptr), shape=data.matrix.shape)
    by_array = [part for part in split(data.matrix, timestamps=times)]
    by_matrix = [part for part in split(data, timestamps=as_matrix)]
    for ours, theirs in zip(by_array, by_matrix, strict=True):
        ours, theirs = (ours, theirs) if split is not rolling_windows else (ours[1], theirs[1])
        assert abs(ours - theirs.matrix).nnz == 0


def test_arrays_of_times_are_what_columns_may_hold():
    matrix = csr_matrix(np.ones((1, 3)))
    zone = datetime.timezone(datetime.timedelta(hours=2))
    aware = [
        datetime.datetime(2024, 1, 1, 12, tzinfo=zone),
        datetime.datetime(2024, 1, 1, 11, tzinfo=datetime.timezone.utc),
    ]
    aware.append(datetime.datetime(2024, 1, 1, 9, tzinfo=datetime.timezone.utc))
    texts = ["2024-01-01T12:00:00+02:00", "2024-01-01T11:00:00Z", "2024-01-01T09:00:00Z"]
    for times in (
        aware,
        pd.Series(pd.to_datetime(aware, utc=True)),
        texts,
        np.array(texts),
        [2, 2.5, 0.5],
    ):
        assert leave_one_out(matrix, times)[1].indices.tolist() == [1]
    train, test = temporal_split(matrix, aware, cutoff="2024-01-01 10:30")
    assert (train.indices.tolist(), test.indices.tolist()) == ([0, 2], [1])
    for times, message in (
        (["yesterday", "2024-01-01", "2024-01-02"], "^timestamps must hold numbers, or dates .*'yesterday' in place 0"),
        ([None, *aware[1:]], "^timestamps must have a time in every row, got a null"),
        ([datetime.date(2024, 1, 1), *aware[1:]], "must hold values of one type"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "timestamps must be there for every entry, 1 are masked"),
        (np.array([True, False, True]), "timestamps must be numbers or datetime64, got dtype bool"),
    ):
        with pytest.raises(ValueError, match=message):
            leave_one_out(matrix, times)


def test_times_that_float32_rounds_are_refused():
    matrix = csr_matrix(np.ones((1, 2)))
    seconds = np.array([1_700_000_050, 1_700_000_000])
    assert leave_one_out(matrix, seconds)[1].indices.tolist() == [0]
    rounded = csr_matrix((seconds.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
    for times in (rounded, rounded.data):
        with pytest.raises(ValueError, match=r"timestamps as float32 are rounded to 128 at .*float64"):
            leave_one_out(matrix, times)
    days = (seconds / 86400).astype(np.float32)  # of these it holds enough
    assert leave_one_out(matrix, days)[1].nnz == 1
    with pytest.raises(ValueError, match="must be finite, got infinity"):
        leave_one_out(matrix, [np.inf, 1])


def test_cutoffs_of_every_kind():
    matrix = csr_matrix(np.ones((2, 3)))
    times = np.array("2024-01-31", "M8[us]") + (np.arange(6) - 3) * np.timedelta64(6, "h")
    utc, plus5 = datetime.timezone.utc, datetime.timezone(datetime.timedelta(hours=5))
    same = [
        "2024-01-31", " 2024-01-31 ", "2024-01-31 00:00", "2024-01-31T00:00:00", "2024-01-31T00:00:00Z",
        "2024-01-31T05:00+05:00", "2024-01-30T23:59:59.999999", "31.1.2024", "31.01.2024 00:00",
        "1/31/2024", "20240131",
        datetime.date(2024, 1, 31), datetime.datetime(2024, 1, 31), datetime.datetime(2024, 1, 31, tzinfo=utc),
        datetime.datetime(2024, 1, 31, 5, tzinfo=plus5), np.datetime64("2024-01-31"), np.datetime64("2024-01-31", "ns"),
        pd.Timestamp("2024-01-31"), pd.Timestamp("2024-01-31T05:00", tz="Asia/Karachi"),
    ]  # fmt: skip
    for unit in ("us", "ns", "s", "m"):
        for cutoff in same:
            if unit not in ("us", "ns") and "59" in str(cutoff):
                continue
            assert temporal_split(matrix, times.astype(f"M8[{unit}]"), cutoff=cutoff)[1].nnz == 3, (unit, cutoff)
    days = np.array(["2023-12-31", "2024-01-01", "2024-01-02", "2024-02-01", "2024-02-02", "2024-02-03"], "M8[D]")
    assert temporal_split(matrix, days, cutoff="2024-02")[1].nnz == 3
    assert temporal_split(matrix, days, cutoff="2024")[1].nnz == 5
    for far in ("3000-01-01", "1500-01-01", datetime.date(9999, 1, 1)):  # nanoseconds do not hold these
        with pytest.raises(ValueError, match="leaves no entry for"):
            temporal_split(matrix, times.astype("M8[ns]"), cutoff=far)
    before = np.array(["1969-12-31T23:59:59.5", "1970-01-01"] * 3, "M8[ns]")
    assert temporal_split(matrix, before, cutoff="1970-01-01")[1].nnz == 3
    for wrong in ("tomorrow", "1/2/2024", "2024-13-01", "", "now", "NaT", np.datetime64("NaT"), pd.NaT):
        with pytest.raises(ValueError, match="cutoff must be a moment such as '2024-01-31'"):
            temporal_split(matrix, times, cutoff=wrong)
    for wrong in (1.7e9, 5, True, ["2024-01-31"], datetime.timedelta(1)):
        with pytest.raises(TypeError, match=r"cutoff must be a moment such as '2024-01-31'.*as the times are dates"):
            temporal_split(matrix, times, cutoff=wrong)
    for wrong in ("2024-01-31", "3", datetime.date(2024, 1, 31), np.datetime64("2024"), np.timedelta64(3, "s"), True):
        with pytest.raises(TypeError, match=r"cutoff must be a number, as the times are \(from 0 to 5\)"):
            temporal_split(matrix, np.arange(6), cutoff=wrong)
    with pytest.raises(ValueError, match="finite"):
        temporal_split(matrix, np.arange(6), cutoff=np.nan)
    seconds = (days - np.datetime64("1970-01-01")) // np.timedelta64(1, "s")  # what most logs have
    for unit, factor in (("seconds", 1), ("milliseconds", 1000), ("microseconds", 10**6)):
        words = f"if these are {unit} since 1970, it is {1704153600 * factor}$"
        with pytest.raises(TypeError, match=words):
            temporal_split(matrix, seconds * factor, cutoff="2024-01-02")
        with pytest.raises(TypeError, match=f"if these are {unit} since 1970, it is {604800 * factor}$"):
            rolling_windows(matrix, 2, test_size="7d", timestamps=seconds * factor)
        assert temporal_split(matrix, seconds * factor, cutoff=1704153600 * factor)[1].nnz == 4
    for cutoff in (3, 2.5, np.float32(3), np.int64(3)):
        assert temporal_split(matrix, np.arange(6), cutoff=cutoff)[1].nnz == 3


def test_last_n_of_each_user():
    matrix = csr_matrix(np.array([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]))
    times = np.array([4, 1, 3, 2, 5, 5, 9, 8])
    train, test = last_n(matrix, 2, times)
    assert test.toarray().tolist() == [[1, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4]  # nobody loses all
    assert abs(train + test - matrix).nnz == 0
    for n, count in ((1, 3), (3, 3)):
        assert last_n(matrix, n, times)[1].nnz == count
    assert abs(last_n(matrix, 1, times)[1] - leave_one_out(matrix, times)[1]).nnz == 0
    with pytest.raises(ValueError, match="no user has more than 4 entries"):
        last_n(matrix, 4, times)
    with pytest.raises(ValueError, match="n must be an integer >= 1, got 0"):
        last_n(matrix, 0, times)
    data = with_times(make_log())
    train, test = last_n(data, 3)
    per_user = np.diff(data.matrix.indptr)
    assert np.diff(test.matrix.indptr).tolist() == np.where(per_user > 3, 3, 0).tolist()
    latest = dict.fromkeys(data.user_ids, 0)
    for user, _, time in triples(train):
        latest[user] = max(latest[user], time.timestamp())
    assert all(time.timestamp() > latest[user] for user, _, time in triples(test))


# -------------------------------------------------------------------------------------------------------------- windows


def test_windows_of_days():
    data = with_times(make_log(n=60))  # one entry a day, 2024-01-01 to 2024-02-29
    pairs = list(rolling_windows(data, 3, test_size="7d"))
    assert len(pairs) == 3
    for k, (train, test) in enumerate(pairs):
        end = np.datetime64("2024-02-29") - 7 * (2 - k)
        assert (test.times.min(), test.times.max()) == (end - 6, end) and test.matrix.nnz == 7
        assert train.matrix.nnz == 60 - 7 * (3 - k) and train.times.max() < test.times.min()
        assert train.user_ids == test.user_ids == data.user_ids and train.matrix.shape == data.matrix.shape
    for size in (
        "7D",
        "1w",
        " 1 week",
        "168h",
        "7.0 days",
        datetime.timedelta(7),
        np.timedelta64(7, "D"),
        pd.Timedelta("7D"),
    ):
        again = list(rolling_windows(data, 3, test_size=size))
        assert [triples(test) for _, test in again] == [triples(test) for _, test in pairs]
    short = list(rolling_windows(data, 3, test_size="7d", max_train_size="10d", gap="2d"))
    for (train, test), (_, expected) in zip(short, pairs, strict=True):
        assert triples(test) == triples(expected) and train.matrix.nnz == 10
        assert train.times.max() == test.times.min() - np.timedelta64(3, "D")


def test_windows_of_equal_numbers():
    data = with_times(make_log(n=63))
    pairs = list(rolling_windows(data))
    assert [(train.matrix.nnz, test.matrix.nnz) for train, test in pairs] == [(13 + 10 * k, 10) for k in range(5)]
    for train, test in pairs:
        assert train.times.max() < test.times.min()
    # entries of one time stay together, in the later part
    matrix, times = csr_matrix(np.ones((2, 5))), np.array([0, 1, 2, 2, 2, 2, 3, 4, 5, 6])
    sizes = [(train.nnz, test.nnz) for train, test in rolling_windows(matrix, 2, timestamps=times)]
    assert sizes == [(2, 5), (7, 3)]
    ((train, test),) = rolling_windows(matrix, 1, timestamps=times, gap=1)
    assert (train.nnz, test.nnz) == (1, 8)


def test_windows_of_numbers():
    matrix, times = csr_matrix(np.ones((2, 5))), np.array([10, 4, 3, 2, 1, 9, 8, 7, 6, 5], np.uint32)
    for kind in (np.uint32, np.int64, np.float64, np.float32):
        pairs = list(rolling_windows(matrix, 2, test_size=3, timestamps=times.astype(kind)))
        assert [sorted(times[np.isin(np.arange(10), _places(test))]) for _, test in pairs] == [[5, 6, 7], [8, 9, 10]]
        assert [train.nnz for train, _ in pairs] == [4, 7]
    pairs = list(rolling_windows(matrix, 2, test_size=3, max_train_size=2, gap=1, timestamps=times))
    assert [sorted(times[_places(train)]) for train, _ in pairs] == [[2, 3], [5, 6]]


@pytest.mark.parametrize("kind", ["int8", "int16", "int32"])
def test_windows_do_not_wrap_around(kind):
    """The beginning of the gap was beyond int8, and so far in the future that all was trained on, the tests too."""
    matrix, lowest = csr_matrix(np.ones((1, 6))), np.iinfo(kind).min
    times = np.arange(lowest, lowest + 6).astype(kind)
    with pytest.raises(ValueError, match="nothing to train on"):
        rolling_windows(matrix, 1, test_size=2, gap=100, timestamps=times)
    ((train, test),) = rolling_windows(matrix, 1, test_size=2, max_train_size=2**40, timestamps=times)
    assert (train.indices.tolist(), test.indices.tolist()) == ([0, 1, 2, 3], [4, 5])


def _places(matrix):
    coo = coo_matrix(matrix)
    return coo.row * matrix.shape[1] + coo.col


def test_windows_that_cannot_be_are_refused_before_the_first():
    data = with_times(make_log(n=60))
    with pytest.raises(ValueError, match=r"window 1 of 9, from .* on, has nothing to train on"):
        rolling_windows(data, 9, test_size="7d")
    with pytest.raises(ValueError, match="nothing to train on"):
        rolling_windows(data, 2, test_size="7d", gap="90d")
    with pytest.raises(ValueError, match=r"window 1 of 5, .* has nothing to test with"):
        rolling_windows(csr_matrix(np.ones((1, 4))), 5, test_size=1, timestamps=[0, 1, 2, 20])
    with pytest.raises(ValueError, match="n_splits must be below the number of entries, 4, got 4"):
        rolling_windows(csr_matrix(np.ones((1, 4))), 4, timestamps=range(4))
    with pytest.raises(ValueError, match="n_splits must be an integer >= 1"):
        rolling_windows(data, 0)
    for size in ("7", "d", "1 fortnight", "1m", "-7d", "0d", "", "1e9d", "99999999999d", datetime.timedelta(0), pd.NaT):
        with pytest.raises((ValueError, TypeError), match="test_size must be a duration above 0 such as '7d'"):
            rolling_windows(data, 2, test_size=size)
    for size in (np.timedelta64(1, "M"), np.timedelta64("NaT", "D"), np.timedelta64(-3, "D")):
        with pytest.raises(ValueError, match="test_size must be a duration above 0"):
            rolling_windows(data, 2, test_size=size)
    for size in (7, 0.2, True):
        with pytest.raises(TypeError, match=r"test_size must be a duration above 0 .*as the times are dates"):
            rolling_windows(data, 2, test_size=size)
    numbers = with_times(make_log(n=60)).matrix
    for size in ("7d", datetime.timedelta(7), np.timedelta64(7, "D"), True):
        with pytest.raises(TypeError, match="gap must be a number in the unit of the times"):
            rolling_windows(numbers, 2, gap=size, timestamps=range(60))
    with pytest.raises(ValueError, match="gap must be a number above 0, got 0"):
        rolling_windows(numbers, 2, gap=0, timestamps=range(60))


# ------------------------------------------------------------------------------------------------------------ negatives


def test_negatives_of_interactions():
    data = with_times(make_log())
    train, test = leave_one_out(data)
    drawn, plain = sample_negatives(train, test, 2), sample_negatives(train.matrix, test.matrix, 2)
    assert isinstance(drawn, Interactions) and drawn.user_ids == data.user_ids and drawn.times is None
    assert drawn.matrix.dtype == np.float32 and plain.dtype == bool and abs(drawn.matrix - plain).nnz == 0
    coo = test.matrix.tocoo()
    apart = as_interactions(
        pd.DataFrame({"user": data.user_ids[coo.row], "item": data.item_ids[coo.col]}).iloc[5:]
    )  # fewer users, perhaps fewer items
    assert apart.matrix.shape != data.matrix.shape
    kept = sample_negatives(train, apart, 2)
    assert kept.matrix.shape == data.matrix.shape and kept.matrix.nnz == drawn.matrix.nnz - 15
    stranger = as_interactions(pd.DataFrame({"user": ["who"], "item": [5]}))
    with pytest.raises(ValueError, match="none of the 1 entries of test is of a user and an item that train knows"):
        sample_negatives(train, stranger, 2)


# ------------------------------------------------------------------------------------------------------ times of tables


@pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")
@pytest.mark.parametrize("kind", ["pandas", "polars", "csv", "parquet", "interactions"])
def test_times_come_with_the_table(kind, tmp_path):
    log, path = make_log(), tmp_path / f"log.{kind}"
    if kind == "csv":
        log.to_csv(path, index=False)
    elif kind == "parquet":
        log.to_parquet(path)
    given = {"pandas": log, "polars": pl.from_pandas(log)}.get(kind, path)
    options = {"time_column": "time"}
    if kind == "interactions":
        given, options = as_interactions(log, **options), {}
    data = with_times(log)
    for split, more in (
        (leave_one_out, {}), (last_n, {"n": 2}), (temporal_split, {"cutoff": "2024-04-01"}), (temporal_split, {}),
        (lambda data, **rest: next(iter(rolling_windows(data, 3, test_size="2w", **rest))), {}),
    ):  # fmt: skip
        for part, expected in zip(split(given, **more, **options), split(data, **more), strict=True):
            assert triples(part) == triples(expected) and part.times.dtype == np.dtype("M8[us]")
            assert part.columns.time == "time"


def test_the_last_event_is_the_last_of_the_table():
    """An array of the table's times held out another; float32 made both times one; sums made the first the last."""
    for time in ([1, 2], [1_700_000_000, 1_700_000_050], [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")]):
        log = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["y", "x"], "time": time})
        _, test = leave_one_out(log, time_column="time")
        assert test.item_ids[test.matrix.indices].tolist() == ["x"]
    log = pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["x", "x", "y"], "time": [1.0, 2.0, 2.5]})
    with pytest.warns(ParameterWarning, match="repeat a pair"):
        _, test = leave_one_out(log, time_column="time")
    assert test.item_ids[test.matrix.indices].tolist() == ["y"] and test.times.tolist() == [2.5]


def test_zones_are_utc():
    time = pd.to_datetime(["2024-01-31 23:30", "2024-02-01 00:30", "2024-02-01 01:30"]).tz_localize("Europe/Berlin")
    log = pd.DataFrame({"user": [1, 1, 1], "item": [1, 2, 3], "time": time})
    for cutoff in ("2024-02-01", pd.Timestamp("2024-02-01 01:00", tz="Europe/Berlin"), "2024-02-01T01:00+01:00"):
        _, test = temporal_split(log, time_column="time", cutoff=cutoff)
        assert test.item_ids[test.matrix.indices].tolist() == [3]


def test_all_options_of_tables_are_taken(tmp_path):
    path = tmp_path / "log.dat"
    path.write_text("7::1::5::100\n7::2::1::200\n7::3::4::300\n8::1::5::400\n", encoding="utf-8")
    train, test = leave_one_out([path], columns=["user", "item", "value", "time"], min_value=2)
    assert test.times.tolist() == [300] and train.times.tolist() == [100, 400]
    triplets = np.array([[1, 10, 5.0], [2, 20, 3.0], [3, 10, 1.0]])
    with pytest.raises(ValueError, match=r"matrix: .*triplets=True"):
        random_holdout(triplets)
    train, test = random_holdout(triplets, 0.4, triplets=True)
    assert train.item_ids.tolist() == [10, 20] and train.matrix.nnz + test.matrix.nnz == 3
    train, test = random_holdout(triplets, triplets=False)
    assert type(train) is csr_matrix and train.shape == (3, 3)
    with pytest.raises(ValueError, match="beside a table"):
        leave_one_out(triplets, [1, 2, 3], triplets=True)
