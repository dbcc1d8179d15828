"""What the page says of the data: sizes, the long tail, activity, times, repeats, and what is new in the test part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.data.interactions import Interactions

__all__ = ["DataStatistics", "TestStatistics", "concentration"]


def concentration(counts: NDArray[np.integer], points: int = 120) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of all that the first share of items has, those of most first: (x, y), both from 0 to 1.

    Parameters
    ----------
    counts : (I,) array of int
    points : int, default 120
        How many there are at most; close together where the curve is steep.
    """
    rest = np.cumsum(np.sort(counts)[::-1].astype(np.float64))
    total = rest[-1] if rest.size and rest[-1] > 0 else 1.0
    places = np.unique(np.round(len(counts) * np.linspace(0, 1, points) ** 3).astype(np.int64))
    shares = np.concatenate([[0.0], rest / total])
    return places / max(len(counts), 1), shares[places]


@dataclass(frozen=True)
class DataStatistics:
    """Of all interactions.

    Attributes
    ----------
    n_users, n_items, n_entries : int
    per_user, per_item : (U,), (I,) int64 arrays
        Entries of each.
    repeats : int or None
        Rows of the table that repeated a pair; None where it was no table.
    values : tuple of three floats or None
        Least, median and largest; None where all are 1.
    times : tuple or None
        First and last.
    periods : tuple of a list of str and a list of int
        Names of equal spans of time, and their entries.
    """

    n_users: int
    n_items: int
    n_entries: int
    per_user: NDArray[np.int64]
    per_item: NDArray[np.int64]
    repeats: int | None = None
    values: tuple[float, float, float] | None = None
    times: tuple[str, str] | None = None
    periods: tuple[list[str], list[int]] = field(default_factory=lambda: ([], []))

    @classmethod
    def of(cls, data: Interactions) -> DataStatistics:
        """Of interactions with a canonical matrix."""
        matrix = data.matrix
        n_users, n_items = matrix.shape
        per_user = np.diff(matrix.indptr).astype(np.int64)
        per_item = np.bincount(matrix.indices, minlength=n_items)
        values = None
        if matrix.nnz and not (matrix.data == 1).all():
            values = (float(matrix.data.min()), float(np.median(matrix.data)), float(matrix.data.max()))
        times: tuple[str, str] | None = None
        periods: tuple[list[str], list[int]] = ([], [])
        if data.times is not None and len(data.times):
            times, periods = _periods(np.asarray(data.times))
        repeats = None if data.columns is None else data.repeats
        return cls(n_users, n_items, int(matrix.nnz), per_user, per_item, repeats, values, times, periods)

    def activity(self) -> tuple[list[str], list[int]]:
        """How many users have so many entries: 0, 1, 2, 3-4, 5-8, ..."""
        return _by_size(self.per_user)

    def popularity(self) -> tuple[list[str], list[int]]:
        """The same of items."""
        return _by_size(self.per_item)


def _by_size(counts: NDArray[np.int64]) -> tuple[list[str], list[int]]:
    names, found, low = [], [], 1
    if (counts == 0).any():
        names.append("0")
        found.append(int((counts == 0).sum()))
    most = int(counts.max(initial=0))
    while low <= most:
        high = 1 if low == 1 else 2 * (low - 1)
        names.append(_span(low, high))
        found.append(int(((counts >= low) & (counts <= high)).sum()))
        low = high + 1
    return names, found


def _span(low: int, high: int) -> str:
    def text(number: int) -> str:
        return f"{number:,}" if number < 10000 else f"{number / 1000:.3g}k"

    return text(low) if low == high else f"{text(low)}\u2013{text(high)}"


def _periods(times: NDArray[Any], n: int = 24) -> tuple[tuple[str, str], tuple[list[str], list[int]]]:
    is_date = times.dtype.kind == "M"
    numbers = times.astype("M8[s]").astype(np.int64) if is_date else times.astype(np.float64)

    def text(number: float) -> str:
        if not is_date:
            return f"{number:.6g}"
        return str(np.datetime64(int(number), "s").astype("M8[D]"))

    low, high = float(numbers.min()), float(numbers.max())
    ends = (text(low), text(high))
    if high == low:
        return ends, ([], [])
    counts, edges = np.histogram(numbers, bins=n, range=(low, high))
    return ends, ([text(edge) for edge in edges[:-1]], counts.tolist())


@dataclass(frozen=True)
class TestStatistics:
    """Of a division in two.

    Attributes
    ----------
    n_train, n_test : int
        Entries; of the test part those that are to be found.
    users : int
        With a test entry.
    cold_users : int
        Of these, without a training entry.
    cold_entries : int
        Test entries of items without a training entry.
    """

    __test__ = False  # for pytest, which looks at names

    n_train: int
    n_test: int
    users: int
    cold_users: int
    cold_entries: int

    @classmethod
    def of(cls, train: csr_matrix, test: csr_matrix, known: csr_matrix | None = None) -> TestStatistics:
        """Of canonical matrices; `known`: what the users of `test` are known by, where that is not `train`."""
        known = train if known is None else known
        asked = np.diff(test.indptr) > 0
        cold = asked & (np.diff(known.indptr) == 0)
        per_item = np.bincount(train.indices, minlength=train.shape[1])
        cold_entries = int((per_item[test.indices] == 0).sum())
        return cls(int(train.nnz), int(test.nnz), int(asked.sum()), int(cold.sum()), cold_entries)
