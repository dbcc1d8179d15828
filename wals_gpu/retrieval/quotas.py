"""How many items of each category a list may have, and must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import did_you_mean, integer
from wals_gpu.data.categories import Categories

__all__ = ["Quotas", "QuotasLeft"]

#: More than any list has.
_NO_END = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Quotas:
    """Bounds for each of C categories; items without a category are in one more, the last, without bounds.

    Parameters
    ----------
    codes : (I,) int32
        The category of each item, C for none.
    low, high : (C + 1,) int64
    """

    codes: NDArray[np.int32]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @classmethod
    def of(cls, quotas: Any, categories: Categories) -> Quotas:
        """Of what a user gives: a number for every category, or a mapping of labels to a number or a pair.

        Raises
        ------
        TypeError, ValueError
            Not of these kinds, a label that no item has, or bounds that exclude each other.
        """
        names = categories.names
        low = np.zeros(len(names) + 1, np.int64)
        high = np.full(len(names) + 1, _NO_END, np.int64)
        if isinstance(quotas, Mapping):
            if not quotas:
                raise ValueError("quotas must name at least one category, got none")
            place = {name: at for at, name in enumerate(names)}
            for label, bounds in quotas.items():
                if str(label) not in place:
                    like = did_you_mean(label, names)
                    raise ValueError(f"quotas must name categories of items, and no item has {label!r:.60}{like}")
                low[place[str(label)]], high[place[str(label)]] = _bounds(label, bounds)
        elif isinstance(quotas, (int, np.integer)):
            high[:-1] = integer("quotas", quotas, 0)
        else:
            raise TypeError(f"quotas must be a number for every category, or a mapping of them, got {quotas!r:.60}")
        return cls(np.where(categories.codes < 0, len(names), categories.codes).astype(np.int32), low, high)

    def check(self, k: int) -> None:
        """ValueError where a list of k has no room for what it must have."""
        if self.low.sum() > k:
            raise ValueError(f"quotas must fit into a list of k={k} items, but want at least {self.low.sum()}")


def _bounds(label: Any, bounds: Any) -> tuple[int, int]:
    name = f"quotas[{label!r:.60}]"
    if not isinstance(bounds, (tuple, list)):
        return 0, integer(name, bounds, 0)
    if len(bounds) != 2:
        raise ValueError(f"{name} must be a number, or a pair (at least, at most), got {bounds!r:.60}")
    low = integer(f"{name}[0]", bounds[0], 0)
    high = _NO_END if bounds[1] is None else integer(f"{name}[1]", bounds[1], 0)
    if low > high:
        raise ValueError(f"{name} must want at most as many as it allows, got at least {low} and at most {high}")
    return low, high


class QuotasLeft:
    """What lists of b users still may and must have, while they are made.

    Parameters
    ----------
    quotas : Quotas
    columns : (b, n) int32
        The candidates of each; -1 for none.
    """

    def __init__(self, quotas: Quotas, columns: NDArray[np.int32]) -> None:
        self._quotas, n_categories = quotas, len(quotas.low)
        self._rows = np.arange(len(columns))[:, None]
        self._code = np.where(columns >= 0, quotas.codes[columns], n_categories - 1)
        self._count = np.zeros((len(columns), n_categories), np.int64)
        self._low = np.zeros_like(self._count)
        #: Whether each list (b,) can have what it must have, of these candidates.
        self.feasible = np.ones(len(columns), bool)
        if quotas.low.any():
            cells = (self._rows * n_categories + self._code)[columns >= 0]
            there = np.bincount(cells, minlength=self._count.size).reshape(self._count.shape)
            self._low = np.minimum(quotas.low, there)
            self.feasible = (self._low == quotas.low).all(axis=1)
        self._need = self._low.sum(axis=1)

    def permitted(self, slots: int) -> NDArray[np.bool_]:
        """Which candidates (b, n) may come next in lists with so many places left."""
        count = self._count[self._rows, self._code]
        permitted: NDArray[np.bool_] = count < self._quotas.high[self._code]
        full = self._need >= slots
        if full.any():  # what is left is for those that must be there; slots are never 0
            permitted &= ~full[:, None] | (count < self._low[self._rows, self._code])
        return permitted

    def add(self, rows: NDArray[np.integer], places: NDArray[np.integer]) -> None:
        """Lists of some rows took the candidates at some places."""
        code = self._code[rows, places]
        self._need[rows] -= self._count[rows, code] < self._low[rows, code]
        self._count[rows, code] += 1
