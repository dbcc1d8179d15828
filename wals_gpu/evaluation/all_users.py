"""Users that are measured, of whom some may be elsewhere: what measuring asks of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["HERE", "AllUsers", "UsersHere", "drawn_here"]

Result = TypeVar("Result")


class AllUsers(Protocol):
    """Users in the order of their rows, of whom some are here. Who has others makes the same calls."""

    def alone(self, work: Callable[[], Result]) -> Result:
        """What is done here, with those who are here; an error of one is an error of all."""

    def place(self, n: int) -> tuple[int, int]:
        """Of things of the users, n of them here: how many are before those, and how many there are."""

    def total(self, values: Any) -> Any:
        """The sum of numbers, or arrays as long everywhere."""

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (n here, ...) of everywhere, in order."""

    def cutoff(self, values: NDArray[Any], k: int) -> Any:
        """The k-th largest of values, (n here,) float64 or datetime64, of everywhere."""


class UsersHere:
    """All users in this process, see :class:`AllUsers`."""

    def alone(self, work: Callable[[], Result]) -> Result:
        """See :meth:`AllUsers.alone`."""
        return work()

    def place(self, n: int) -> tuple[int, int]:
        """See :meth:`AllUsers.place`."""
        return 0, n

    def total(self, values: Any) -> Any:
        """See :meth:`AllUsers.total`."""
        return values

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See :meth:`AllUsers.gather`."""
        return rows

    def cutoff(self, values: NDArray[Any], k: int) -> Any:
        """See :meth:`AllUsers.cutoff`."""
        return np.partition(values, len(values) - k)[len(values) - k]


#: All users in this process.
HERE = UsersHere()


def drawn_here(
    everyone: AllUsers, n: int, size: int, random_state: int | np.random.Generator | None
) -> NDArray[np.int64]:
    """Which of n things here are among `size` that are drawn from those of everywhere, without replacement.

    Returns
    -------
    (m,) int64
        Numbers from 0 to before n, rising.
    """
    first, total = everyone.place(n)
    drawn = np.random.default_rng(random_state).choice(total, size, replace=False) - first
    here: NDArray[np.int64] = np.sort(drawn[(drawn >= 0) & (drawn < n)])
    return here
