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

__all__ = ["ItemSearch", "UserSearch", "rows_of"]

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


class UserSearch:
    """Users by the beginning of their id, in upper or lower case.

    Parameters
    ----------
    ids : Ids or None
        None where the model goes by row numbers, of which there are `n`.
    n : int
    """

    def __init__(self, ids: Ids | None, n: int) -> None:
        self._ids, self._n = ids, n
        self._folded: pa.Array | None = None  # in order, for ids that are texts
        self._rows: NDArray[np.int32] | None = None  # of these; None: the ids are as they are folded, and in order
        if ids is not None and ids.kind == "string":
            texts = pa.array(ids)
            self._folded = _folded(texts)
            if not self._folded.equals(texts):
                order = pc.sort_indices(self._folded)
                self._folded, self._rows = self._folded.take(order), order.to_numpy().astype(np.int32)

    def find(self, prefix: str, limit: int) -> NDArray[np.integer]:
        """Row numbers of the first `limit` users whose ids begin with a text."""
        if self._folded is None:
            return self._numbers(prefix, limit)
        wanted = prefix.casefold()
        start = _first_not_below(self._folded, wanted)
        some = self._folded[start : start + limit].to_pylist()
        end = start + sum(one.startswith(wanted) for one in some)
        return np.arange(start, end) if self._rows is None else self._rows[start:end]

    def _numbers(self, prefix: str, limit: int) -> NDArray[np.int64]:
        values = np.arange(self._n) if self._ids is None else self._ids.ids
        if not prefix:
            return np.arange(min(limit, self._n))
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


def _folded(texts: pa.Array) -> pa.Array:
    """Texts in one case. Arrow knows no case folding, which differs from lower case beyond ASCII."""
    lower, beyond = pc.utf8_lower(texts), pc.invert(pc.string_is_ascii(texts))
    other = [text.casefold() for text in texts.filter(beyond).to_pylist()]
    return pc.replace_with_mask(lower, beyond, pa.array(other, texts.type)) if other else lower


def _first_not_below(texts: pa.Array, text: str) -> int:
    """The number of texts in order that come before another one, by code point."""
    low, high = 0, len(texts)
    while low < high:
        middle = (low + high) // 2
        if texts[middle].as_py() < text:
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
