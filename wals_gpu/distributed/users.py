"""Users that are measured on the ranks that have them: see :mod:`.evaluation.all_users`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wals_gpu.distributed.group import Group, gather_uneven, of_each, together

__all__ = ["UsersOnRanks"]

Result = TypeVar("Result")


class UsersOnRanks:
    """See :class:`.all_users.AllUsers`. Every rank makes the same calls.

    Parameters
    ----------
    group : Group
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def alone(self, work: Callable[[], Result]) -> Result:
        """See :meth:`.AllUsers.alone`."""
        found: list[Result] = []
        with together(self._group, "measuring"):
            found.append(work())
        return found[0]

    def place(self, n: int) -> tuple[int, int]:
        """See :meth:`.AllUsers.place`."""
        counts = of_each(self._group, n)
        return int(counts[: self._group.rank].sum()), int(counts.sum())

    def total(self, values: Any) -> Any:
        """See :meth:`.AllUsers.total`."""
        return of_each(self._group, values).sum(axis=0)

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See :meth:`.AllUsers.gather`."""
        return gather_uneven(self._group, np.ascontiguousarray(rows))

    def cutoff(self, values: NDArray[Any], k: int) -> Any:
        """See :meth:`.AllUsers.cutoff`: by halves, a few bytes at a time."""
        keys = np.sort(_ordered(values))
        ends = of_each(self._group, (int(keys[0]), int(keys[-1])) if len(keys) else (_MOST, -_MOST))
        low, high = int(ends[:, 0].min()), int(ends[:, 1].max())
        while low < high:  # at least k are as large as `low`, and not so many larger than `high`
            middle = low + (high - low + 1) // 2
            if self.total(len(keys) - int(np.searchsorted(keys, middle))) >= k:
                low = middle
            else:
                high = middle - 1
        return _ordered(np.array([low]), back_to=values.dtype)[0]


_MOST = int(np.iinfo(np.int64).max)


def _ordered(values: NDArray[Any], back_to: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Times or numbers as integers in the same order; with `back_to`, what these integers were."""
    dtype = values.dtype if back_to is None else back_to
    if dtype.kind == "M":
        return values.view(np.int64) if back_to is None else values.view(dtype)
    # Of float64, those below 0 fall where their bits rise; -0 is 0.
    bits = (values + 0.0).view(np.int64) if back_to is None else values
    turned = np.where(bits < 0, bits ^ _MOST, bits)
    return turned if back_to is None else turned.view(dtype)
