"""Popularity calibration: lists in the order of ``s_ui n_i^gamma``, with n_i the training entries of the item.

One number, found after a fit in the time of some searches. Its multipliers are one for each item, so that they go into
the item factors once, and answers cost what they cost before.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend
from wals_gpu.checks import number
from wals_gpu.errors import DataError
from wals_gpu.evaluation.metrics import in_batches, relevant_entries, row_metrics
from wals_gpu.retrieval.neighbors import Extra, Neighbors, topk

__all__ = [
    "COARSE",
    "Calibration",
    "best_exponent",
    "check_exponent",
    "choose_popularity_exponent",
    "metric_of_lists",
    "metric_of_users",
    "some_users",
]

#: Exponents that are tried; then those between the best of them and its neighbours, :data:`STEP` apart.
COARSE = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
STEP = 0.05
#: Users that the metric is taken over: the error of a difference is a few ten-thousandths then.
USERS = 4000
#: Standard errors that a gain over 0 must have. More miss the gains of small data, while a wrong step costs little: the
#: metric is flat around its best exponent.
ERRORS = 1.0
#: Beyond this an item of a million entries counts a million times one of a single entry.
LARGEST = 1.0


def check_exponent(name: str, value: object) -> float:
    """An exponent as a number from -1 to 1; TypeError or ValueError names the argument."""
    return number(name, value, -LARGEST, LARGEST)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The multipliers of items.

    An item's count goes with its factor: it is that of the interactions which the factor was solved from, and stays
    where these are forgotten with their users.

    Parameters
    ----------
    exponent : float
        gamma.
    counts : (I,) int64
        n_i. An item without entries counts as one of a single entry.
    typical : float
        The count whose multiplier is 1.
    """

    exponent: float
    counts: NDArray[np.int64]
    typical: float

    @classmethod
    def of(cls, exponent: float, counts: NDArray[np.int64]) -> Calibration:
        """Of a fit. The multipliers of the items of all training entries have the geometric mean 1, so that scores stay
        on their scale."""
        n = np.maximum(counts, 1)
        weight = counts.astype(np.float64)
        total = weight.sum()
        return cls(exponent, counts, float(np.exp((weight @ np.log(n)) / total)) if total > 0 else 1.0)

    def multipliers(self) -> NDArray[np.float64]:
        """``(max(n_i, 1) / typical)^gamma``, (I,)."""
        multipliers: NDArray[np.float64] = (np.maximum(self.counts, 1) / self.typical) ** self.exponent
        return multipliers

    def scaled(self, items: NDArray[np.floating]) -> NDArray[np.floating]:
        """Item factors (I, D) times their multipliers; the same array where all of these are 1."""
        if self.exponent == 0:
            return items
        scaled: NDArray[np.floating] = items * self.multipliers().astype(items.dtype)[:, None]
        return scaled

    def with_counts(self, counts: NDArray[np.int64]) -> Calibration:
        """With other counts, or of other items; the multiplier of a count stays what it was."""
        return replace(self, counts=counts)


def choose_popularity_exponent(
    user_factors: NDArray[np.floating],
    item_factors: NDArray[np.floating],
    counts: NDArray[np.integer],
    known: csr_matrix,
    held_out: csr_matrix,
    backend: Backend,
    *,
    metric: str = "ndcg",
    k: int = 20,
    grid: Sequence[float] | None = None,
    users: NDArray[np.integer] | None = None,
    max_users: int = USERS,
    random_state: int = 0,
    neighbors: Neighbors | None = None,
) -> tuple[float, dict[float, float]]:
    """The exponent gamma that lists by ``s_ui n_i^gamma`` find the most held-out entries with.

    The best of the grid, unless 0 is as good within the noise: its gain over 0 must be more than the standard error of
    the mean difference over users, paired. Of equal ones the nearest to 0.

    Parameters
    ----------
    user_factors : (U, D) array
    item_factors : (I, D) array
        May both be rotated in the same way, as scores are the same.
    counts : (I,) array of int
        Training entries of each item.
    known : (U, I) csr_matrix
        What users have: not recommended to them.
    held_out : (U, I) csr_matrix
        What is to be found, values above 0; none of it in `known`. Users without any are left out.
    backend : Backend
        What searches are done on.
    metric : str, default "ndcg"
        One of :data:`wals_gpu.training.validation.METRICS`.
    k : int, default 20
        Length of the lists.
    grid : sequence of float, optional
        What is tried, and 0. Default: from -0.2 to 0.4 in steps of 0.1, then 0.05 to both sides of the best.
    users : (n,) array of int, optional
        Rows of the only users to look at.
    max_users : int, default 4000
        Users that are looked at; of more, as many are drawn.
    random_state : int, default 0
        Seed of that draw.
    neighbors : Neighbors, optional
        What is added to the dot products.

    Returns
    -------
    exponent : float
    metrics : dict of float to float
        The metric, a mean over users, of each exponent that was tried, in rising order.

    Raises
    ------
    DataError
        `held_out` has no value above 0.
    """
    relevant = relevant_entries(held_out, "held_out")
    asked = np.diff(relevant.indptr) > 0
    users = np.flatnonzero(asked) if users is None else users[asked[users]]
    if not len(users):
        raise DataError("held_out has no value above 0, so there is nothing to measure an exponent with")
    users = some_users(users, max_users, random_state)
    given = (user_factors, item_factors, known, relevant, backend)

    def measure(exponent: float) -> NDArray[np.float64]:
        calibration = Calibration.of(exponent, np.asarray(counts, np.int64))
        return metric_of_users(*given, users, calibration, metric=metric, k=k, neighbors=neighbors)

    return best_exponent(measure, grid)


def some_users(users: NDArray[np.integer], most: int = USERS, random_state: int = 0) -> NDArray[np.integer]:
    """Those of some rows that a metric is taken over, in rising order: all, or as many as are drawn."""
    if len(users) <= most:
        return users
    return np.sort(np.random.default_rng(random_state).choice(users, most, replace=False))


def metric_of_users(
    user_factors: NDArray[np.floating],
    item_factors: NDArray[np.floating],
    known: csr_matrix,
    relevant: csr_matrix,
    backend: Backend,
    users: NDArray[np.integer],
    calibration: Calibration,
    *,
    metric: str,
    k: int,
    neighbors: Neighbors | None = None,
) -> NDArray[np.float64]:
    """The metric of some users (n,) by row number, (n,); other arguments as of :func:`choose_popularity_exponent`."""
    items = calibration.scaled(item_factors)
    added = None if neighbors is None else neighbors.scaled(calibration.multipliers())
    return metric_of_lists(user_factors, items, known, relevant, backend, users, metric=metric, k=k, added=added)


def metric_of_lists(
    user_factors: NDArray[np.floating],
    items: NDArray[np.floating],
    known: csr_matrix,
    relevant: csr_matrix,
    backend: Backend,
    users: NDArray[np.integer],
    *,
    metric: str,
    k: int,
    added: Neighbors | None = None,
) -> NDArray[np.float64]:
    """:func:`metric_of_users` with factors of items and neighbours that are calibrated already."""
    parts = [np.empty(0)]
    length = min(k, len(items))
    for batch in in_batches(users, length):
        extra = None if added is None else Extra(added, known[batch])
        ids, _ = topk(backend, user_factors[batch], items, length, known[batch], extra=extra)
        parts.append(row_metrics(ids, relevant[batch], [k], None)[f"{metric}@{k}"])
    return np.concatenate(parts)


def best_exponent(
    measure_one: Callable[[float], NDArray[np.float64]], grid: Sequence[float] | None = None
) -> tuple[float, dict[float, float]]:
    """As :func:`choose_popularity_exponent`, by a function that gives the metric of each user with an exponent."""
    measured: dict[float, NDArray[np.float64]] = {}

    def measure(exponents: Sequence[float]) -> None:
        for exponent in exponents:
            exponent = round(float(exponent), 9) + 0.0  # no -0.0
            if exponent not in measured:
                measured[exponent] = measure_one(exponent)

    def best() -> float:
        return max(measured, key=lambda exponent: (float(measured[exponent].mean()), -abs(exponent)))

    if grid is None:
        measure(COARSE)
        measure([best() - STEP, best() + STEP])
    else:
        measure([0.0, *(check_exponent("each of grid", exponent) for exponent in grid)])
    found = best()
    gain = measured[found] - measured[0.0]
    if len(gain) < 2 or gain.mean() <= ERRORS * gain.std(ddof=1) / np.sqrt(len(gain)):
        found = 0.0
    return found, {exponent: float(measured[exponent].mean()) for exponent in sorted(measured)}
