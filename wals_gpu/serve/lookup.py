"""Ids as JSON has them, and what people type, to row numbers of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.data.ids import Ids

__all__ = ["ItemSearch", "rows_beginning", "rows_of"]

#: The one form of each integer: "007" is not 7.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")


def rows_of(ids: Ids | None, n: int, values: Sequence[str | int]) -> NDArray[np.int64]:
    """Row numbers (B,) of ids, -1 of unknown ones. They are compared as texts: the "7" of JSON finds the 7 of a model.

    Parameters
    ----------
    ids : Ids or None
        None where the model goes by row numbers, of which there are `n`.
    n : int
    values : sequence of str or int
    """
    if ids is not None and ids.kind == "string":
        if len(values) == 1:  # most requests
            return np.array([ids.find(str(values[0]))], np.int64)
        return np.asarray(ids.find(np.array([str(value) for value in values], object)), np.int64).reshape(-1)
    numbers = [_number(value) for value in values]
    if ids is None:
        found = [-1 if number is None or not 0 <= number < n else number for number in numbers]
        return np.array(found, np.int64)
    limits = np.iinfo(ids.ids.dtype)
    fits = np.array([number is not None and limits.min <= number <= limits.max for number in numbers], bool)
    rows = np.full(len(values), -1, np.int64)
    if fits.any():
        rows[fits] = ids.find(np.array([numbers[at] for at in np.flatnonzero(fits)], ids.ids.dtype))
    return rows


def _number(value: str | int) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if _INTEGER.fullmatch(value) else None


def rows_beginning(ids: Ids | None, n: int, prefix: str, limit: int) -> NDArray[np.int64]:
    """Row numbers of the first `limit` ids that begin with a text."""
    if ids is not None and ids.kind == "string":
        start = _first_not_below(ids, prefix)
        some = ids[start : start + limit].tolist()
        return np.arange(start, start + sum(one.startswith(prefix) for one in some))
    values = np.arange(n) if ids is None else ids.ids
    if not prefix:
        return np.arange(min(limit, n))
    number = _number(prefix)
    if number is None or number < 0:
        return np.empty(0, np.int64)
    rows: list[int] = []
    largest = int(values[-1]) if len(values) else 0
    low, high = number, number + 1
    while low <= largest and len(rows) < limit:  # 7, 70..79, 700..799, ...
        start = int(np.searchsorted(values, np.array(low, values.dtype)))
        end = len(values) if high > largest else int(np.searchsorted(values, np.array(high, values.dtype)))
        rows += range(start, min(end, start + limit - len(rows)))
        if number == 0:
            break
        low, high = low * 10, high * 10
    return np.array(rows, np.int64)


def _first_not_below(ids: Ids, text: str) -> int:
    """The number of ids that come before a text, by code point."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < text:
            low = middle + 1
        else:
            high = middle
    return low


class ItemSearch:
    """Items by words of their titles, or by id.

    Parameters
    ----------
    names : Arrow string array, (I,)
        Ids as texts.
    titles : Arrow string array, (I,), optional
        Null where there is none.
    popularity : (I,) array
        By which hits are ordered.
    """

    def __init__(self, names: pa.Array, titles: pa.Array | None, popularity: NDArray[Any]) -> None:
        blank = pa.scalar(" ", pa.large_string())
        texts = names if titles is None else pc.binary_join_element_wise(titles, names, blank, null_handling="replace")
        self._texts = pc.utf8_lower(texts)
        self._popularity = popularity

    def find(self, words: str, limit: int) -> NDArray[np.int64]:
        """Row numbers of items that have all the words, or beginnings of words first; of no words, the most popular."""
        parts = words.lower().split()
        if not parts:
            return _highest(self._popularity, np.arange(len(self._popularity)), limit)
        rows: NDArray[np.int64] = np.arange(len(self._texts))
        texts = self._texts
        for part in parts:
            has = pc.match_substring(texts, part)
            texts = texts.filter(has)
            rows = rows[has.to_numpy(zero_copy_only=False)]
        if not len(rows):
            return rows
        starts = np.zeros(len(rows), np.int64)  # 2: the title begins so, 1: every word begins one, 0: somewhere inside
        whole = " ".join(parts)
        starts += pc.starts_with(texts, whole).to_numpy(zero_copy_only=False)
        begins = np.ones(len(rows), bool)
        for part in parts:
            pattern = rf"(^|[^\pL\pN]){re.escape(part)}"
            begins &= pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
        starts += begins
        best: list[int] = []
        for level in (2, 1, 0):
            some = rows[starts == level]
            best += _highest(self._popularity, some, limit - len(best)).tolist()
        return np.array(best, np.int64)


def _highest(values: NDArray[Any], rows: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    if len(rows) > 10 * limit > 0:  # not all need to be sorted
        bound = np.partition(values[rows], len(rows) - limit)[len(rows) - limit]
        rows = rows[values[rows] >= bound]
    return rows[np.argsort(-values[rows], kind="stable")[: max(limit, 0)]]
