"""Times of entries, and the moments and durations that people compare them with."""

from __future__ import annotations

import datetime
import numbers
import re
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import issparse

from wals_gpu.data.columns import as_arrow
from wals_gpu.data.csr import canonical
from wals_gpu.data.interactions import Interactions
from wals_gpu.data.times import as_times, checked_times
from wals_gpu.errors import DataError

__all__ = ["at_or_after", "duration", "entry_times", "moment", "seconds_of"]

_UNITS = {
    "weeks": ("w", "wk", "week", "weeks"),
    "days": ("d", "day", "days"),
    "hours": ("h", "hr", "hour", "hours"),
    "minutes": ("min", "mins", "minute", "minutes"),
    "seconds": ("s", "sec", "secs", "second", "seconds"),
}
_1970 = np.datetime64(0, "s")
_UNIT_OF = {word: unit for unit, words in _UNITS.items() for word in words}


def entry_times(data: Interactions, given: Any, timestamps: Any, is_table: bool) -> NDArray[Any] | None:
    """Times (Z,) of the entries of `data` in their order; None where there are none.

    Parameters
    ----------
    data : Interactions
        With a canonical matrix.
    given : matrix, Interactions or table
        What `data` was made of.
    timestamps : None, (Z,) array or sparse matrix
        None: those of `data`.
    is_table : bool
        Whether `given` is a table.

    Raises
    ------
    ValueError
        If `timestamps` cannot be told to belong to the entries, do not fit them, are no times, or are missing.
    """
    matrix = data.matrix
    if timestamps is None:
        if data.times is None:
            return None
        times = np.asarray(data.times)
    elif issparse(getattr(timestamps, "matrix", timestamps)):
        stored = getattr(timestamps, "matrix", timestamps)
        own = canonical("timestamps", stored)
        same = np.array_equal(own.indptr, matrix.indptr) and np.array_equal(own.indices, matrix.indices)
        if own.shape != matrix.shape or not same or own.nnz != stored.nnz:
            raise ValueError("timestamps must have the shape and the stored entries of matrix, each once")
        times = own.data
    else:
        _check_order(data, given, timestamps, is_table)
        times = _as_array(timestamps)
        if times.shape != (matrix.nnz,):
            raise ValueError(
                f"timestamps must have one value per stored entry, shape ({matrix.nnz},), got shape {times.shape}"
            )
    return checked_times("timestamps", times)


def _check_order(data: Interactions, given: Any, timestamps: Any, is_table: bool) -> None:
    """An array belongs to entries one by one, so both must be in the same order: those of a table are not."""
    name = getattr(timestamps, "name", timestamps if isinstance(timestamps, str) else None)
    column = repr(name) if isinstance(name, str) else "'time'"
    if is_table:
        raise ValueError(
            "timestamps beside a table have no order in common with the entries, which are sorted by user and item, "
            f"and repeated pairs are one entry; name the column instead: time_column={column}"
        )
    if data.user_ids is not None or data.item_ids is not None:
        raise ValueError(
            "timestamps as an array cannot be told to belong to interactions with ids: the rows of a table are in "
            "another order than the entries, which are sorted by user and item, and repeated pairs are one entry; read "
            f"the times with the rest, as_interactions(table, time_column={column}), and leave timestamps out"
        )
    if np.ndim(timestamps) == 0:
        raise ValueError(
            f"timestamps must be an array or a sparse matrix with a time for each entry, got {timestamps!r:.60}"
        )
    own = getattr(given, "matrix", given)
    if not isinstance(own, np.ndarray) and (own.format != "csr" or not own.has_canonical_format):
        raise ValueError(
            "timestamps as an array need a matrix in CSR form with sorted columns and no duplicates, because they "
            "belong to its entries one by one; give a sparse matrix of timestamps instead"
        )


def _as_array(timestamps: Any) -> NDArray[Any]:
    """Numbers or dates; what Python or pandas have as objects (dates with zones, for one) or as text is read first."""
    times: NDArray[Any] = np.asanyarray(timestamps)
    if np.ma.is_masked(times) or times.ndim != 1 or times.dtype.kind not in "OU":
        return times
    try:
        column = as_arrow(times if times.dtype.kind == "O" else times.astype(object), "timestamps", "the array")
        return as_times(pa.chunked_array([column]), "timestamps", lambda row: f"place {row}")
    except DataError as error:
        raise ValueError(str(error).replace("time_column 'timestamps'", "timestamps")) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.integer, np.floating)) and not isinstance(value, (bool, np.timedelta64))


def moment(name: str, value: Any, times: NDArray[Any]) -> Any:
    """A moment that can be compared with `times`: a number, or datetime64 in UTC.

    Parameters
    ----------
    name : str
        The argument.
    value : number, datetime64, datetime, date, pandas Timestamp, or text as a column of times may hold it
        Of the kind of the times. A date is its beginning, a moment without a zone is UTC.
    times : (Z,) array

    Raises
    ------
    TypeError, ValueError
        If it is of another kind, or no moment.
    """
    if times.dtype.kind != "M":
        if not _is_number(value):
            low, high = (f"{float(end):.16g}" for end in (times.min(), times.max()))
            raise TypeError(
                f"{name} must be a number, as the times are (from {low} to {high}), got {value!r}"
                + _in_numbers(_moment_or_none(value), times)
            )
        if not np.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        return value
    when = _moment_or_none(value)
    if when is None:
        is_kind = isinstance(value, (str, np.datetime64, datetime.date)) or hasattr(value, "to_datetime64")
        raise (ValueError if is_kind else TypeError)(
            f"{name} must be a moment such as '2024-01-31' or '2024-01-31 18:00', as the times are dates; got {value!r}"
        )
    return when


def _moment_or_none(value: Any) -> np.datetime64 | None:
    when: Any = None
    if isinstance(value, (int, np.integer)):  # 20240131, as a column of integers may have it
        value = str(value)
    if isinstance(value, str):
        when = _parsed(value)
    elif isinstance(value, np.datetime64):
        when = value
    elif hasattr(value, "to_datetime64"):  # pandas: nanoseconds, a zone is converted
        when = value.to_datetime64()
    elif isinstance(value, datetime.date):  # datetime is a kind of it
        when = _without_zone(value)
    return None if when is None or np.isnat(when) else when


def _parsed(text: str) -> np.datetime64 | None:
    text = text.strip()
    if re.fullmatch(r"\d{4}(-\d\d)?", text):  # a year, a month: their beginning
        text += "-01" * (3 - len(text.split("-")))
    if re.search(r"\d[zZ]$", text):  # fromisoformat takes it from Python 3.11 on
        text = text[:-1] + "+00:00"
    try:
        return _without_zone(datetime.datetime.fromisoformat(text))
    except ValueError:
        pass
    try:  # 31.1.2024: whatever a column of times may hold
        found = as_times(pa.chunked_array([[text]]), "", str)
    except DataError:
        return None
    return found[0] if found.dtype.kind == "M" else None


def _without_zone(value: datetime.date) -> np.datetime64:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return np.datetime64(value, "us")


def at_or_after(times: NDArray[Any], when: Any) -> NDArray[np.bool_]:
    """Which times are not before a moment."""
    if times.dtype.kind == "M" and np.datetime_data(times.dtype)[0] in ("ns", "ps", "fs", "as"):
        # NumPy would bring the moment to nanoseconds, which hold no years before 1678 or after 2262, without a word.
        if np.datetime_data(when.dtype)[0] not in ("ns", "ps", "fs", "as"):
            times, when = times.astype("M8[us]"), when.astype("M8[us]")  # rounded down: the answer is the same
    late: NDArray[np.bool_] = times >= when
    return late


def duration(name: str, value: Any, times: NDArray[Any]) -> Any:
    """A length of time that can be added to `times`: a number, or timedelta64.

    Parameters
    ----------
    name : str
        The argument.
    value : number, timedelta, timedelta64, or text such as "7d", "12h", "30min", "2 weeks"
        A number where the times are numbers, in their unit.
    times : (Z,) array

    Raises
    ------
    TypeError, ValueError
        If it is of another kind, or not above 0.
    """
    if times.dtype.kind != "M":
        if not _is_number(value):
            raise TypeError(
                f"{name} must be a number in the unit of the times, which are numbers, got {value!r}"
                + _in_numbers(_length_or_none(value), times)
            )
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a number above 0, got {value!r}")
        return value
    length = _length_or_none(value)
    if length is None:
        raise (ValueError if isinstance(value, (str, np.timedelta64, datetime.timedelta)) else TypeError)(
            f"{name} must be a duration above 0 such as '7d', '12h', '30min' or a timedelta, as the times are dates; "
            f"got {value!r}"
        )
    return length


def seconds_of(name: str, value: Any) -> float:
    """A length of time in seconds.

    Parameters
    ----------
    name : str
        The argument.
    value : number of seconds, timedelta, timedelta64, or text such as "90s", "2min", "1.5 hours"

    Raises
    ------
    TypeError, ValueError
        If it is none, or not above 0.
    """
    message = f"{name} must be a length of time above 0, such as '2min', '90s' or a number of seconds; got {value!r}"
    if _is_number(value):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(message)
        return float(value)
    length = _length_or_none(value)
    if length is None:
        raise (ValueError if isinstance(value, (str, np.timedelta64, datetime.timedelta)) else TypeError)(message)
    return float(length / np.timedelta64(1, "us")) / 1e6


def _length_or_none(value: Any) -> np.timedelta64 | None:
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value)
        unit = _UNIT_OF.get(found[2].lower()) if found else None
        if found is None or unit is None:
            return None
        try:
            value = datetime.timedelta(**{unit: float(found[1])})
        except OverflowError:
            return None
    if isinstance(value, datetime.timedelta):  # NaT of pandas is none
        value = np.timedelta64(value, "us")
    if not isinstance(value, np.timedelta64) or np.datetime_data(value.dtype)[0] in ("Y", "M", "generic"):
        return None  # months have no one length
    return value if value > np.timedelta64(0, "us") else None  # not NaT either


def _in_numbers(value: np.datetime64 | np.timedelta64 | None, times: NDArray[Any]) -> str:
    """What a moment or a length would be in times that look like Unix time; the user is to say so."""
    units: tuple[tuple[Any, str], ...] = (("s", "seconds"), ("ms", "milliseconds"), ("us", "microseconds"))
    for unit, word in units:
        one = np.timedelta64(1, unit)
        first, last = ((np.datetime64(year) - _1970) / one for year in ("1990", "2100"))
        if value is not None and first <= times.min() and times.max() < last:
            length = value - _1970 if isinstance(value, np.datetime64) else value
            return f"; if these are {word} since 1970, it is {length / one:.16g}"
    return ""
