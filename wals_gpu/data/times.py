"""When something happened, out of whatever a column has: numbers, dates with or without zones, text."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.checks import number
from wals_gpu.data.encode import plain_type
from wals_gpu.data.ids import is_string
from wals_gpu.data.source import Column
from wals_gpu.errors import DataError

__all__ = ["Period", "as_times", "checked_times", "recency", "refuse_rounded", "shown_times"]

# Every integer up to here is a float64; microseconds since 1970 are, nanoseconds are not.
_EXACT = 2**53
_UNITS = {
    "s": 1, "sec": 1, "second": 1, "seconds": 1, "min": 60, "minute": 60, "minutes": 60, "h": 3600, "hour": 3600,
    "hours": 3600, "d": 86400, "day": 86400, "days": 86400, "w": 604800, "week": 604800, "weeks": 604800,
    "y": 31557600, "year": 31557600, "years": 31557600,
}  # fmt: skip
_SLASHES = r"^(?P<one>\d{1,2})[/-](?P<two>\d{1,2})[/-](?P<year>\d{4}|\d{2})(?P<rest>,?[T ].*)?$"
_ZONE = r"[T ]\d{1,2}(:\d{2}){0,2}(\.\d+)?(Z|[+-]\d{2}(:?\d{2})?)$"


class Period(NamedTuple):
    """The earliest and the latest time of some interactions: numbers, or datetime64 in UTC."""

    first: Any
    last: Any

    @classmethod
    def of(cls, times: NDArray[Any] | None) -> Period | None:
        """Of the times of entries (Z,); None where there are none."""
        return None if times is None or not len(times) else cls(times.min(), times.max())

    @classmethod
    def of_all(cls, parts: Sequence[Period]) -> Period | None:
        """From the first to the last of several; None of none.

        Raises
        ------
        DataError
            Some are of numbers, others of dates.
        """
        if len({isinstance(part.first, np.datetime64) for part in parts}) > 1:
            raise DataError("the times must be of one kind, got numbers in some parts and dates in others")
        return cls(min(part.first for part in parts), max(part.last for part in parts)) if parts else None

    def to_json(self) -> list[Any]:
        """Two numbers, or two texts in ISO 8601."""
        return [str(time) if isinstance(time, np.datetime64) else float(time) for time in self]

    @classmethod
    def from_json(cls, saved: Any) -> Period:
        """What :meth:`to_json` gave; ValueError, TypeError where it is something else."""
        first, last = saved
        if isinstance(first, str) and isinstance(last, str):
            times = np.datetime64(first), np.datetime64(last)
            if np.isnat(times).any():
                raise ValueError(f"a period must have two times, got {saved!r:.60}")
            return cls(*times)
        return cls(*(number("period", time, -np.inf) for time in (first, last)))

    def is_before(self, times: NDArray[Any]) -> NDArray[np.bool_]:
        """Which times (n,) are later than the last one; TypeError where one are numbers and the others dates."""
        if (times.dtype.kind == "M") != isinstance(self.last, np.datetime64):
            kinds = [
                "dates" if is_date else "numbers"
                for is_date in (times.dtype.kind == "M", isinstance(self.last, np.datetime64))
            ]
            raise TypeError(f"the times must be of one kind, got {kinds[0]} now and {kinds[1]} before")
        last = self.last
        if times.dtype.kind == "M":  # in one unit: NumPy would bring both to nanoseconds, which hold few centuries
            times, last = times.astype("M8[us]"), last.astype("M8[us]")
        later: NDArray[np.bool_] = times > last
        return later


def as_times(column: Column, name: Hashable, place: Callable[[int], str]) -> NDArray[Any]:
    """The times of a column.

    Parameters
    ----------
    column : ChunkedArray of n
        Numbers; timestamps of any unit, with a zone or without, or dates; or text: numbers, ISO 8601 (``2024-03-01``,
        ``2024-03-01T12:00:00+01:00``, zones may differ), German dates (``1.3.2024 12:00``), or dates such as
        ``3/25/2024 1:05 PM`` where some row tells whether the day or the month comes first.
    name : of the column
    place : callable
        What to call a row.

    Returns
    -------
    float64 array (n,), or datetime64[us] array in UTC (n,)
        Of numbers and of the others. Integers beyond 2**53 are nanoseconds since 1970: datetime64[ns], as are
        timestamps between two microseconds; integers that all read as dates, such as 20240301, are these. What has no
        zone is taken as it is.

    Raises
    ------
    DataError
        A time is missing, or is none, or all are rounded so much that their order is lost, as seconds in float32 are.
    """
    where = f"time_column {name!r}"
    column = plain_type(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"{where} must have a time in every row, got a null (or NaN) in {place(row)}")
    kind = column.type
    if is_string(kind):
        return _of_text(column.cast(pa.large_string()), where, place)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # A zone is how an instant is shown; Arrow has the instants in UTC.
        return _dates(column, where)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _numbers(column, where, place)
    raise DataError(f"{where} must hold numbers, dates or text in ISO 8601, got {kind}")


def checked_times(what: str, times: NDArray[Any]) -> NDArray[Any]:
    """Times as float64, unsigned integers, or datetime64, whose differences do not wrap around.

    Raises
    ------
    DataError
        One is missing or infinite, they are no times, or all are rounded so much that their order is lost.
    """
    if np.ma.is_masked(times):
        raise DataError(f"{what} must be there for every entry, {int(np.ma.getmaskarray(times).sum())} are masked")
    times = np.asarray(times)
    if times.dtype.kind not in "iufM":
        raise DataError(f"{what} must be numbers or datetime64, got dtype {times.dtype}")
    if missing := int(np.isnan(times).sum()):
        raise DataError(f"{what} must be there for every entry, {missing} of {times.size} are NaN or NaT")
    if times.dtype.kind == "f" and np.isinf(times).any():
        raise DataError(f"{what} must be finite, got infinity")
    refuse_rounded(what, times)
    return times.astype({"i": np.int64, "f": np.float64}.get(times.dtype.kind, times.dtype), copy=False)


def refuse_rounded(what: str, times: NDArray[Any]) -> None:
    """DataError where numbers of a small floating-point type are so large that neighbours are more than 1 apart."""
    if times.dtype.kind == "f" and times.dtype.itemsize < 8 and times.size:
        largest = np.abs(times).max()
        if (step := float(np.spacing(largest))) > 1:
            raise DataError(
                f"{what} as {times.dtype} are rounded to {step:g} at {float(largest):.10g}, so their order is lost; "
                "give float64 or integers, from the source: what was rounded stays so"
            )


def shown_times(column: Column) -> list[Any]:
    """Some times of a part of a column that decide how all of it is read (n,): texts, or integers.

    How the others are to be read is seen from them: :func:`as_times` of a part with those that all parts have shown
    gives what it gives of the whole.
    """
    column = plain_type(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count or not len(column):
        return []
    if pa.types.is_integer(column.type):
        return _shown_integers(_numpy(column))
    return _shown_texts(column.cast(pa.large_string())) if is_string(column.type) else []


def _shown_integers(values: NDArray[Any]) -> list[Any]:
    shown = [values.min(), values.max()]
    if -_EXACT <= shown[0] and shown[1] <= _EXACT and _days(values.astype(np.int64)) is None:
        shown.append(values[_first(len(values), lambda a, b: _days(values[a:b].astype(np.int64)) is None)])
    return [value.item() for value in shown]


def _shown_texts(column: Column) -> list[Any]:
    def fails(begin: int, end: int) -> bool:
        try:
            column.slice(begin, end - begin).cast(kind)
        except pa.ArrowException:
            return True
        return False

    shown: list[Any] = []
    for kind in (pa.int64(), pa.float64()):
        if not fails(0, len(column)):
            of_integers = _shown_integers(_numpy(column.cast(kind))) if kind == pa.int64() else []
            return shown + [str(value) for value in of_integers]
        shown.append(column[_first(len(column), fails)].as_py())
    found = pc.extract_regex(pc.utf8_trim_whitespace(column), _SLASHES)
    if found.null_count < len(found):
        parts = [pc.struct_field(found, name) for name in ("one", "two", "year")]
        for part in (*(part.cast(pa.int64()) for part in parts), pc.equal(pc.utf8_length(parts[2]), 2)):
            shown.append(column[pc.index(part, pc.max(part)).as_py()].as_py())
    return shown


def _first(n: int, fails: Callable[[int, int], bool]) -> int:
    """The first of n rows for which a range of rows that has it `fails`; there is one."""
    begin, end = 0, n
    while end - begin > 1:
        middle = (begin + end) // 2
        begin, end = (begin, middle) if fails(begin, middle) else (middle, end)
    return begin


def _numpy(column: Column) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, column.type.to_pandas_dtype()), *(c.to_numpy(False) for c in column.chunks)])


def _dates(column: Column, where: str) -> NDArray[Any]:
    try:
        zone = column.type.tz if pa.types.is_timestamp(column.type) else None
        micros = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
        if column.type == pa.timestamp("ns", zone):
            nanos = _numpy(column.cast(pa.int64()))
            if (nanos % 1000).any():  # events of one microsecond have an order, too
                return nanos.astype("datetime64[ns]")
    except pa.ArrowException as error:
        raise DataError(f"{where} holds dates that cannot be counted in microseconds: {error}") from error
    return _numpy(micros).astype("datetime64[us]")


def _numbers(column: Column, where: str, place: Callable[[int], str]) -> NDArray[Any]:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values = _numpy(column)
    if values.dtype.kind in "iu" and len(values):
        largest = max(int(values.max()), -int(values.min()))
        if largest > np.iinfo(np.int64).max:
            raise DataError(f"{where} holds {largest}, which is beyond nanoseconds of any date")
        if largest > _EXACT:
            return values.astype(np.int64).astype("datetime64[ns]")
        if (days := _days(values.astype(np.int64))) is not None:
            return days
    numbers = values.astype(np.float64)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{where} must have a finite time in every row, got {numbers[row]} in {place(row)}")
    refuse_rounded(f"the times of {where}", values)
    return numbers


def _days(values: NDArray[np.int64]) -> NDArray[Any] | None:
    """Midnights, where all integers read as dates of 1900 to 2100, such as 20240301; else None.

    Differences of such numbers are no lengths of time. Seconds since 1970 of this size are of the summer of 1970.
    """
    if not ((values >= 19000101) & (values <= 21001231)).all():
        return None
    year, month, day = values // 10000, values // 100 % 100, values % 100
    if not ((month >= 1) & (month <= 12) & (day >= 1)).all():
        return None
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1)
    return days.astype("datetime64[us]") if (days.astype("datetime64[M]") == months).all() else None


def _of_text(column: Column, where: str, place: Callable[[int], str]) -> NDArray[Any]:
    for kind in (pa.int64(), pa.float64()):
        try:
            return _numbers(column.cast(kind), where, place)
        except pa.ArrowException:
            continue
    texts = pc.utf8_trim_whitespace(column)
    texts = pc.replace_substring_regex(texts, r"\s*(UTC|GMT|z)$", "Z")
    texts = pc.replace_substring_regex(texts, r"\s+([+-]\d{2}:?\d{2})$", r"\1")
    texts = pc.replace_substring_regex(texts, r"^(\d{4})/(\d{2})/(\d{2})", r"\1-\2-\3")
    # 1.3.2024 and 01.03.2024, then one digit of what has two
    texts = pc.replace_substring_regex(texts, r"^(\d{1,2})\.\s?(\d{1,2})\.\s?(\d{4}),?", r"\3-\2-\1")
    for years, century in (("[0-6]", "20"), ("[7-9]", "19")):
        short = rf"^(\d{{1,2}})\.\s?(\d{{1,2}})\.\s?({years}\d),?(\s|$)"
        texts = pc.replace_substring_regex(texts, short, rf"{century}\3-\2-\1\4")
    texts = _half_days(_with_slashes(texts))
    for place_of_digit in (r"^(\d{4}-)(\d-\d{1,2})", r"^(\d{4}-\d{2}-)(\d(?:[^\d].*)?)$", r"([T ])(\d:\d{2})"):
        texts = pc.replace_substring_regex(texts, place_of_digit, r"\10\2")  # RE2: the first group, 0, the second
    texts = pc.replace_substring_regex(texts, r"(\d{2}:\d{2}:\d{2})[.,](\d{1,6})\d*", r"\1.\2")
    zoned = pc.match_substring_regex(texts, _ZONE)
    micros = np.zeros(len(texts), np.int64)
    of_zone = _numpy_bool(zoned)
    for mask, kind in ((of_zone, pa.timestamp("us", "UTC")), (~of_zone, pa.timestamp("us"))):
        if mask.any():
            part = texts if mask.all() else texts.filter(pa.array(mask))
            try:
                micros[mask] = _numpy(part.cast(kind).cast(pa.int64()))
            except pa.ArrowException as error:
                raise _bad_text(column, texts, of_zone, where, place) from error
    return micros.astype("datetime64[us]")


def _with_slashes(texts: Column) -> Column:
    """``3/25/2024`` and ``25-3-2024`` as ISO has them, if the column tells which is the month; else unchanged."""
    found = pc.extract_regex(texts, _SLASHES)
    if found.null_count == len(found):
        return texts
    one, two, year, rest = (pc.struct_field(found, name) for name in ("one", "two", "year", "rest"))
    highest = [pc.max(part.cast(pa.int64())).as_py() for part in (one, two, year)]
    if (highest[0] > 12) == (highest[1] > 12):
        return texts
    if highest[0] > 12 and highest[2] <= 31 and pc.any(pc.equal(pc.utf8_length(year), 2)).as_py():
        return texts  # may be year, month, day
    for years, century in (("[0-6]", "20"), ("[7-9]", "19")):
        year = pc.replace_substring_regex(year, rf"^({years}\d)$", rf"{century}\1")
    month, day = (two, one) if highest[0] > 12 else (one, two)
    month, day = (pc.utf8_lpad(part, 2, "0") for part in (month, day))
    rest = pc.replace_substring_regex(rest, r"^,?[T ]\s*", " ")
    iso = _joined(_joined(year, month, day, between="-"), rest)
    return pc.if_else(pc.is_null(found), texts, iso)


def _half_days(texts: Column) -> Column:
    """``1:05 PM`` as 13:05."""
    pattern = r"^(?P<date>.*[T ])(?P<hour>1[0-2]|0?[1-9])(?P<rest>:[\d:.]*\d)\s*(?P<half>[AaPp])\.?[Mm]\.?$"
    found = pc.extract_regex(texts, pattern)
    if found.null_count == len(found):
        return texts
    date, hour, rest, half = (pc.struct_field(found, name) for name in ("date", "hour", "rest", "half"))
    hours = hour.cast(pa.int64())
    hours = pc.if_else(pc.equal(hours, 12), 0, hours)
    hours = pc.add(hours, pc.if_else(pc.equal(pc.utf8_lower(half), "p"), 12, 0))
    hour = pc.utf8_lpad(hours.cast(pa.large_string()), 2, "0")
    return pc.if_else(pc.is_null(found), texts, _joined(date, hour, rest))


def _joined(*columns: Column, between: str = "") -> Column:
    return pc.binary_join_element_wise(*columns, pa.scalar(between, columns[0].type))


def _numpy_bool(column: Column) -> NDArray[np.bool_]:
    return np.concatenate([np.zeros(0, bool), *(chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks)])


def _bad_text(
    column: Column, texts: Column, of_zone: NDArray[np.bool_], where: str, place: Callable[[int], str]
) -> DataError:
    """The first text that is no time; looked for by halves, since Arrow only says that there is one."""

    def fails(begin: int, end: int) -> bool:
        part, mask = texts.slice(begin, end - begin), of_zone[begin:end]
        try:
            part.filter(pa.array(mask)).cast(pa.timestamp("us", "UTC"))
            part.filter(pa.array(~mask)).cast(pa.timestamp("us"))
        except pa.ArrowException:
            return True
        return False

    begin = _first(len(texts), fails)
    text = column[begin].as_py()
    advice = ""
    if re.match(r"\s*\d{1,2}[/-]\d{1,2}[/-]\d{2,4}", text):
        advice = ": whether the day or the month comes first, nobody can know from this column; write 2024-03-01"
    return DataError(
        f"{where} must hold numbers, or dates such as 2024-03-01 or 2024-03-01T12:00:00+01:00, got {text!r:.60} in "
        f"{place(begin)}{advice}"
    )


def recency(times: NDArray[Any], half_life: Any, latest: Any = None) -> NDArray[np.float64]:
    """2**-((latest - time) / half_life) for each time, (n,).

    Parameters
    ----------
    times : float64 or datetime64 array (n,)
    half_life : number, str, timedelta
        In the unit of times that are numbers; for dates a span of time, such as "90d", "12h", or a timedelta of
        datetime, NumPy or pandas.
    latest : number or datetime64, optional
        Default: the latest of these times.

    Raises
    ------
    TypeError, ValueError
        It is no span of these times.
    """
    age = (times.max() if latest is None else latest) - times
    if times.dtype.kind == "M":
        seconds = _seconds(half_life)
        ages: NDArray[np.float64] = age.astype(f"timedelta64[{np.datetime_data(times.dtype)[0]}]").astype(np.float64)
        ages /= {"us": 1e6, "ns": 1e9}.get(np.datetime_data(times.dtype)[0], 1.0)
    else:
        if isinstance(half_life, str):
            try:
                half_life = float(half_life)
            except ValueError:
                raise ValueError(
                    f"half_life must be a number in the unit of the times, which are numbers themselves; got "
                    f"{half_life!r} (90 days are 7776000 in seconds)"
                ) from None
        if isinstance(half_life, (datetime.timedelta, np.timedelta64)):
            raise TypeError(f"half_life must be a number, as the times are, got {half_life!r}")
        seconds, ages = number("half_life", half_life, positive=True), age
    return np.exp2(-ages / seconds)


def _seconds(span: Any) -> float:
    wanted = "half_life must be a span of time above 0, such as '90d', '12h', '30min' or a timedelta"
    if isinstance(span, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", span.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{wanted} (units: s, min, h, d, w, y), got {span!r}")
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(span, np.timedelta64):
        try:
            seconds = float(span / np.timedelta64(1, "s"))
        except TypeError:  # months and years have no length, and numbers no unit
            raise ValueError(f"{wanted}, got {span!r}") from None
    elif isinstance(span, datetime.timedelta):
        seconds = span.total_seconds()
    else:
        raise TypeError(f"{wanted}, because the times are dates; got {span!r}")
    if not (seconds > 0 and np.isfinite(seconds)):
        raise ValueError(f"{wanted}, got {span!r}")
    return seconds
