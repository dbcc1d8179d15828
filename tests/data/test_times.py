"""Times beside the values: whatever a column has, to the microsecond, and what they weigh."""

from __future__ import annotations

import datetime
import decimal
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from wals_gpu.data.interactions import as_interactions, read_interactions
from wals_gpu.errors import DataError, ParameterWarning

pytestmark = pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")

UTC = datetime.timezone.utc


def times_of(column, **options):
    """Of rows that are all different pairs, in their order."""
    n = len(column)
    return as_interactions(pa.table({"user": [1] * n, "item": range(n), "t": column}), time_column="t", **options).times


def micros(*texts):
    return np.array(texts, "datetime64[us]")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, 3]),
        pa.array([1, 2, 3], pa.uint8()),
        pa.array([1.0, 2, 3]),
        pa.array([decimal.Decimal(k) for k in (1, 2, 3)]),
        pa.array(["1", "2", "3"]),
        pa.array(["1.0", "2", "3e0"]),
        pa.array([1, 2, 3]).dictionary_encode(),
    ],
)
def test_numbers(column):
    times = times_of(column)
    assert times.dtype == np.float64 and times.tolist() == [1, 2, 3]


@pytest.mark.parametrize("days", [[20240229, 20240230], [20240301, 20241301], [20240301, 5], [20240301.5, 20240302]])
def test_not_all_integers_are_dates(days):
    assert times_of(pa.array(days)).tolist() == days


def test_epochs_keep_every_digit():
    assert np.diff(times_of(pa.array([1_700_000_000_123_456, 1_700_000_000_123_457]))).tolist() == [1]
    nanos = times_of(pa.array([1_700_000_000_123_456_789, 1_700_000_000_123_456_790]))
    assert nanos.dtype == "datetime64[ns]" and np.diff(nanos) == np.timedelta64(1, "ns")
    with pytest.raises(DataError, match="time_column 't' holds 18446744073709551615"):
        times_of(pa.array([1, 2**64 - 1], pa.uint64()))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([datetime.datetime(2024, 5, 1, 12), datetime.datetime(1969, 1, 1)], micros("2024-05-01T12", "1969-01-01")),
        ([datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)], micros("2024-05-01", "2024-05-02")),
        (pa.array([10**9], pa.timestamp("s")), micros("2001-09-09T01:46:40")),
        (pa.array([10**18 + 9000], pa.timestamp("ns")), micros("2001-09-09T01:46:40.000009")),
        (pa.array([10**12], pa.timestamp("ms", "Asia/Tokyo")), micros("2001-09-09T01:46:40")),
        (
            ["2024-05-01", "2024-05-01 10:00", "2024-05-01T10:00:01"],
            micros("2024-05-01", "2024-05-01T10", "2024-05-01T10:00:01"),
        ),
        (["2024-05-01T10:00:00Z", "2024-05-01T10:00:00+02:00"], micros("2024-05-01T10", "2024-05-01T08")),
        (["2024-05-01T10:00:00-0530", "2024-05-01 10:00"], micros("2024-05-01T15:30", "2024-05-01T10")),
        (["2024-05-01 10:00:00 UTC", "2024-05-01 10:00:00 +0100"], micros("2024-05-01T10", "2024-05-01T09")),
        (
            ["2024-05-01T10:00:00.123456789", "2024-05-01T10:00:00,5Z"],
            micros("2024-05-01T10:00:00.123456", "2024-05-01T10:00:00.5"),
        ),
        (
            ["1.5.2024", "01.05.2024 9:30", "31.12.2023, 23:59:59"],
            micros("2024-05-01", "2024-05-01T09:30", "2023-12-31T23:59:59"),
        ),
        (["2024/05/01", "2024-5-1 9:05"], micros("2024-05-01", "2024-05-01T09:05")),
        (["1.5.24 9:05", "31.12.99"], micros("2024-05-01T09:05", "1999-12-31")),
        (["5/1/2024", "5/13/2024"], micros("2024-05-01", "2024-05-13")),  # the second tells
        (["1/5/2024 9:05", "13/05/2024"], micros("2024-05-01T09:05", "2024-05-13")),
        (["01-05-2024", "13-05-2024, 10:00:01"], micros("2024-05-01", "2024-05-13T10:00:01")),
        (["12/1/10 8:26", "12/31/10 12:50"], micros("2010-12-01T08:26", "2010-12-31T12:50")),
        (["1/12/98 8:26", "31/12/98 12:50"], micros("1998-12-01T08:26", "1998-12-31T12:50")),
        (["5/13/2024 12:05 AM", "05/01/2024 12:05:30 p.m."], micros("2024-05-13T00:05", "2024-05-01T12:05:30")),
        (["2024-05-01 1:05 PM", "2024-05-01T11:05am"], micros("2024-05-01T13:05", "2024-05-01T11:05")),
        ([20240229, 19991231], micros("2024-02-29", "1999-12-31")),
        (["20240229", "19991231"], micros("2024-02-29", "1999-12-31")),
        (pa.array(["2024-05-01", "2024-05-01"]).dictionary_encode(), micros("2024-05-01", "2024-05-01")),
    ],
)  # fmt: skip
def test_dates(column, expected):
    times = times_of(column)
    assert times.dtype == "datetime64[us]"
    np.testing.assert_array_equal(times, expected)


def test_times_between_microseconds_keep_their_order():
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        times = times_of(pa.array([10**18 + 2, 10**18 + 1], kind))
        assert times.dtype == "datetime64[ns]" and times[0] - times[1] == np.timedelta64(1, "ns")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_times_of_small_types_are_refused_where_their_order_is_lost(kind):
    """Seconds in float32 are rounded to 128: who came last is not known any more, and a split would hold out others."""
    exact, rounded = np.array([1, 2, 3], kind), np.array([1_700_000_050, 1_700_000_000], np.float32)
    assert times_of(exact).tolist() == [1, 2, 3]
    if kind == np.float16:
        rounded = np.array([4100, 4099], kind)
    fields = np.array([(1, 2, time) for time in rounded], dtype=[("user", "i8"), ("item", "i4"), ("t", kind)])
    rows = np.array([[1, 1, 1, time] for time in rounded], kind)
    for give in (
        lambda: times_of(rounded),
        lambda: as_interactions(fields, time_column="t"),
        lambda: as_interactions(rows, triplets=True),
    ):
        with pytest.raises(DataError, match=rf"time_column '.*' as {np.dtype(kind)} are rounded to .*give float64"):
            give()


def test_dates_of_frames():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    naive = pd.to_datetime(["2024-05-01 10:00", "2024-05-02 00:00"])
    for column in (
        naive,
        naive.tz_localize("UTC").tz_convert("Asia/Tokyo"),
        [pd.Timestamp("2024-05-01 12:00", tz="Europe/Berlin"), pd.Timestamp("2024-05-02", tz="UTC")],
        naive.astype(pd.ArrowDtype(pa.timestamp("ms"))),
        pd.Categorical(["2024-05-01 10:00", "2024-05-02"]),
    ):
        frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "t": column})
        got = as_interactions(frame, time_column="t").times
        np.testing.assert_array_equal(got, micros("2024-05-01T10", "2024-05-02"))
    frame = pl.DataFrame({"user": [1, 1], "item": [1, 2], "t": naive.to_pydatetime().tolist()})
    zoned = frame.with_columns(pl.col("t").dt.replace_time_zone("UTC").dt.convert_time_zone("America/New_York"))
    for data in (frame, frame.lazy(), zoned):
        np.testing.assert_array_equal(
            as_interactions(data, time_column="t").times, micros("2024-05-01T10", "2024-05-02")
        )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, None], r"time_column 't' must have a time in every row, got a null \(or NaN\) in row 1"),
        ([1, np.nan], "must have a finite time in every row, got nan in row 1"),
        ([1, np.inf], "got inf in row 1"),
        (["2024-05-01"] * 70 + ["yesterday"], "such as 2024-03-01 .*, got 'yesterday' in row 70"),
        (["2024-05-01T10:00:00Z"] * 70 + ["2024-13-01T10:00:00Z"], "got '2024-13-01T10:00:00Z' in row 70"),
        (["2024-05-01", ""], "got '' in row 1"),
        (["5/1/2024", "2024-05-01"], "got '5/1/2024' in row 0: whether the day or the month comes first"),
        (["5/13/2024", "13/5/2024"], "got '5/13/2024' in row 0: whether the day or the month comes first"),
        (["24/05/01", "24/05/02"], "got '24/05/01' in row 0: whether the day or the month comes first"),  # or the year
        (["5/13/2024", "5/32/2024"], "got '5/32/2024' in row 1"),
        (["5/13/2024 13:05 PM", "5/1/2024"], "got '5/13/2024 13:05 PM' in row 0"),
        ([True, False], "must hold numbers, dates or text in ISO 8601, got bool"),
        ([datetime.time(1), datetime.time(2)], "got time64"),
        ([datetime.timedelta(1), datetime.timedelta(2)], "got duration"),
    ],
)
def test_what_is_no_time(column, message):
    with pytest.raises(DataError, match=message):
        times_of(column)


def test_days_beside_moments_are_refused():
    """Arrow takes the days of them all where the first one is a day: what happened at 23:00 would be as early as it."""
    pd = pytest.importorskip("pandas")
    day, moment = datetime.date(2024, 5, 1), datetime.datetime(2024, 5, 1, 23)
    for times in ([day, moment], [moment, day], [day, pd.Timestamp(moment)]):
        frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "t": pd.Series(times, dtype=object)})
        with pytest.raises(DataError, match=r"column 't' of the DataFrame must hold values of one type, got .*\(date"):
            as_interactions(frame, time_column="t")
    frame["t"] = pd.Series([day, None], dtype=object)
    with pytest.raises(DataError, match="must have a time in every row, got a null"):
        as_interactions(frame, time_column="t")


def test_lines_and_hints_of_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,timestamp\na,x,2024-05-01\n\nb,y,soon\n")
    with pytest.raises(DataError, match=r"got 'soon' in line 4 of .*a\.csv"):
        read_interactions(path, time_column="timestamp")
    with pytest.raises(DataError, match=r"time_column='when' is not there; .* may be 'timestamp'"):
        read_interactions(path, time_column="when")
    assert read_interactions(path).times is None  # nobody asked for them
    path.write_text("a,x,2024-05-01\n")
    assert read_interactions(path, columns=["user", "item", "time"]).times.tolist() == [datetime.datetime(2024, 5, 1)]


def test_of_repeated_pairs_the_latest():
    rng = np.random.default_rng(0)
    rows = list(
        zip(
            rng.integers(0, 9, 200).tolist(),
            rng.integers(0, 9, 200).tolist(),
            rng.permutation(200).tolist(),
            strict=True,
        )
    )
    users, items, moments = zip(*rows, strict=True)
    got = as_interactions(pa.table({"user": users, "item": items, "when": moments}), time_column="when")
    latest: dict = {}
    counts: dict = {}
    for user, item, moment in rows:
        latest[user, item] = max(moment, latest.get((user, item), -1))
        counts[user, item] = counts.get((user, item), 0) + 1
    pairs = got.matrix.tocoo()
    keys = list(zip(got.user_ids.take(pairs.row).tolist(), got.item_ids.take(pairs.col).tolist(), strict=True))
    assert [latest[key] for key in keys] == got.times.tolist()
    assert [counts[key] for key in keys] == got.matrix.data.tolist()
    assert got.columns.time == "when"
    shuffled = pa.table({"user": users, "item": items, "when": moments}).take(pa.array(rng.permutation(200)))
    assert as_interactions(shuffled, time_column="when").times.tolist() == got.times.tolist()


def test_times_stay_with_rows_of_known_ids():
    known = as_interactions(pa.table({"user": ["a", "b"], "item": ["x", "y"]}))
    more = pa.table({"user": ["b", "new", "a"], "item": ["x", "x", "y"], "t": [1, 2, 3]})
    got = as_interactions(more, user_ids=known.user_ids, item_ids=known.item_ids, unknown="drop", time_column="t")
    assert got.times.tolist() == [3, 1]  # of a, then of b


def test_interactions_with_times_that_do_not_fit():
    data = as_interactions(pa.table({"user": [1, 1], "item": [1, 2], "t": [1, 2]}), time_column="t")
    assert as_interactions(data, dtype="float64").times.tolist() == [1, 2]
    for matrix, times in ((data.matrix.tocoo(), data.times), (data.matrix, data.times[:1])):
        with pytest.raises(DataError, match="times of Interactions must be one for each entry"):
            as_interactions(replace(data, matrix=matrix, times=times))


def test_times_as_values_are_noticed():
    table = pa.table({"user": ["a", "a"], "item": ["x", "y"], "time": [1_700_000_050, 1_700_000_000]})
    with pytest.raises(DataError, match=r"has 1700000050 in row 0, which float32 rounds to .* time_column='time'"):
        as_interactions(table, value_column="time")
    assert as_interactions(table, value_column="time", dtype="float64").matrix.data.tolist() == [1700000050, 1700000000]
    twice = pa.table({"user": ["a", "a"], "item": ["x", "x"], "time": [1.0, 2.0]})
    with pytest.warns(ParameterWarning, match="summed; if these are times, time_column='time' keeps the latest"):
        as_interactions(twice, value_column="time")


# -------------------------------------------------------------------------------------------------------- half-life


def weights(times, half_life, values=None, dtype="float64"):
    n = len(times)
    columns = {"user": [1] * n, "item": range(n), "value": [1.0] * n if values is None else values, "t": times}
    return as_interactions(pa.table(columns), time_column="t", half_life=half_life, dtype=dtype).matrix.data


def test_half_life():
    days = ["2024-04-10", "2024-04-09", "2024-03-31T00:00:00Z", "2024-04-05"]
    expected = [1, 2**-0.1, 0.5, 2**-0.5]
    for span in ("10d", "240h", " 240 hours", "1.4285714285714286w", datetime.timedelta(10), np.timedelta64(10, "D")):
        np.testing.assert_allclose(weights(days, span), expected, rtol=1e-12)
    pd = pytest.importorskip("pandas")
    np.testing.assert_allclose(weights(days, pd.Timedelta("10D")), expected, rtol=1e-12)
    for span in (5, 5.0, "5", np.float32(5)):
        np.testing.assert_allclose(weights([10, 5, 0], span), [1, 0.5, 0.25])
    nanos = [1_700_000_000_000_000_000, 1_700_000_000_000_000_000 - 10**9 * 60]
    np.testing.assert_allclose(weights(nanos, "1min"), [1, 0.5])
    np.testing.assert_allclose(weights([1, 0], 1, values=[3.0, 8.0]), [3, 4])


def test_half_life_weighs_rows_before_they_are_summed():
    table = pa.table({"user": [1, 1], "item": [1, 1], "value": [2.0, 4.0], "t": [0, 10]})
    got = as_interactions(table, time_column="t", half_life=5)
    assert got.matrix.data.tolist() == [2 / 4 + 4] and got.times.tolist() == [10]


def test_what_is_very_old_is_still_there():
    assert (weights([0.0, 1e9], 1, dtype="float32") > 0).all()


@pytest.mark.parametrize(
    ("times", "half_life", "message"),
    [
        ([1, 2], "5d", "half_life must be a number in the unit of the times"),
        ([1, 2], datetime.timedelta(1), "half_life must be a number"),
        ([1, 2], 0, "half_life must be a finite number > 0"),
        ([1, 2], -3, "half_life must be a finite number > 0"),
        (["2024-05-01"], 90, "half_life must be a span of time"),
        (["2024-05-01"], "90", "half_life must be a span of time"),
        (["2024-05-01"], "90 months", "half_life must be a span of time"),
        (["2024-05-01"], "-3d", "half_life must be a span of time"),
        (["2024-05-01"], "0d", "half_life must be a span of time"),
        (["2024-05-01"], np.timedelta64(3, "M"), "half_life must be a span of time"),
        (["2024-05-01"], np.timedelta64("NaT"), "half_life must be a span of time"),
    ],
)
def test_what_is_no_half_life(times, half_life, message):
    with pytest.raises((TypeError, ValueError), match=message):
        weights(times, half_life)


def test_half_life_needs_times():
    with pytest.raises(ValueError, match="half_life needs time_column"):
        as_interactions(pa.table({"user": [1], "item": [1]}), half_life=3)
    with pytest.raises(ValueError, match="time_column, half_life are for tables"):
        as_interactions(np.eye(2), half_life=3, time_column="t")
