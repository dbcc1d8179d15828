"""How sure a mean over users is, and a difference of two: intervals, p-values, and Holm's adjustment of these.

Shape letters: V users, M columns (metrics, or differences of metrics), B resamples at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.checks import integer, number, seed

__all__ = ["Estimate", "bootstrap_interval", "holm", "interval_of", "paired_p_values", "resampled_means"]

#: Draws at a time: 1 MiB of users' numbers. More is no faster, as they leave the cache (docs/architecture.md).
_DRAWS = 1 << 17
#: Signs at a time, as float64: 16 MiB.
_SIGNS = 1 << 21


class Estimate(NamedTuple):
    """A mean over users with the ends of its confidence interval.

    Attributes
    ----------
    value : float
    low, high : float or None
        None where a metric is not a mean over users, or no interval was asked for.
    """

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{interval}"

    def _repr_html_(self) -> str:
        interval = "" if self.low is None else f" <small>[{self.low:.4f}, {self.high:.4f}]</small>"
        return f"{self.value:.4f}{interval}"


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    random_state: int | np.random.Generator = 0,
) -> Estimate | list[Estimate]:
    """Mean over users with a percentile bootstrap interval: resample the users, take the mean, look at the quantiles.

    The interval answers "how much would this number move with other users of the same kind?". It does not cover the
    choice of the split or of the seed. For the difference of two models, give the difference of their per-user
    values. The resampling is :func:`scipy.stats.bootstrap`'s.

    Parameters
    ----------
    values : (V,) or (V, M) array of float
        One value per user; with M columns, M metrics resampled together.
    confidence : float, default 0.95
        Share of the resampled means inside the interval, in (0, 1).
    n_resamples : int, default 1000
        Number of resamples.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    Estimate or list of Estimate
        One for a vector, M for a matrix.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[0] == 0:
        raise ValueError(f"values must have shape (V,) or (V, M) with V > 0, got {values.shape}")
    confidence = number("confidence", confidence, positive=True, below=1)
    n_resamples = integer("n_resamples", n_resamples, 1)
    table = values.reshape(values.shape[0], -1)
    means = resampled_means(table, n_resamples, np.random.default_rng(seed("random_state", random_state)))
    low, high = interval_of(means, confidence)
    estimates = [Estimate(*map(float, numbers)) for numbers in zip(table.mean(axis=0), low, high, strict=True)]
    return estimates if values.ndim == 2 else estimates[0]


def interval_of(resampled: NDArray[np.float64], confidence: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both ends (M,) of the percentile interval of resampled statistics (n_resamples, M)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail], axis=0)
    return low, high


def resampled_means(table: NDArray[np.float64], n_resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means (n_resamples, M) over as many users as there are, drawn with replacement, of a table (V, M).

    SciPy resamples the users' numbers, not their values: a sum over users is then a product with how often each was
    drawn, which reads the table row by row. The same values for the same seed, and a tenth of the time.
    """
    from scipy.stats import bootstrap  # most of a second to import

    n_users = table.shape[0]
    if n_users == 1:  # which SciPy refuses: there is nothing else to draw
        return np.repeat(table, n_resamples, axis=0)

    def means(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        """(M, B) of users' numbers (B, V)."""
        n = len(drawn)
        cells = drawn + n_users * np.arange(n)[:, None]
        times_drawn = np.bincount(cells.ravel(), minlength=n * n_users).reshape(n, n_users)
        result: NDArray[np.float64] = (times_drawn @ table).T / n_users
        return result

    found = bootstrap(
        (np.arange(n_users),),
        means,
        n_resamples=n_resamples,
        batch=max(1, _DRAWS // n_users),
        vectorized=True,
        method="percentile",
        random_state=rng,  # `rng` from SciPy 1.15 on, which takes this name, too
    )
    resampled: NDArray[np.float64] = found.bootstrap_distribution.T
    return resampled


def paired_p_values(
    differences: NDArray[np.float64], n_permutations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """p-values of the paired permutation test: would such means come up if the two models could be exchanged?

    Under that hypothesis a user's difference has either sign with the same probability. Two-sided: the share of the
    assignments of signs whose mean is at least as far from 0. Where there are no more than `n_permutations` of them,
    :func:`scipy.stats.permutation_test` goes through all; else `n_permutations` are drawn and the p-value is
    (hits + 1) / (n_permutations + 1), which is never 0 (Phipson and Smyth 2010). SciPy draws too, but loops over users
    in Python: docs/architecture.md has the times.

    Parameters
    ----------
    differences : (V, M) array of float64
        Of users, one column for each metric and pair of models.
    n_permutations : int
    rng : numpy.random.Generator

    Returns
    -------
    (M,) float64 array
        1 where all differences are 0.
    """
    differs = (differences != 0).any(axis=1)  # whoever does not adds nothing, whatever the sign
    table = differences[differs]
    if not table.size:
        return np.ones(differences.shape[1])
    if len(table) < n_permutations.bit_length():  # 2 ** len(table) is no more
        return _of_all_signs(table, n_permutations, rng)
    observed = np.abs(table.sum(axis=0))
    # Equal sums may differ in their last bits, by the order that they were added in.
    least = observed - 100 * np.finfo(np.float64).eps * np.abs(table).sum(axis=0)
    total, n = table.sum(axis=0), len(table)
    hits = np.zeros(table.shape[1])
    batch = max(1, _SIGNS // n)
    for start in range(0, n_permutations, batch):
        size = min(batch, n_permutations - start)
        bits = np.frombuffer(rng.bytes(-(-size * n // 8)), np.uint8)
        flipped = np.unpackbits(bits)[: size * n].reshape(size, n).astype(np.float64)
        hits += (np.abs(total - 2 * (flipped @ table)) >= least).sum(axis=0)
    p_values: NDArray[np.float64] = (hits + 1) / (n_permutations + 1)
    return p_values


def _of_all_signs(table: NDArray[np.float64], n_permutations: int, rng: np.random.Generator) -> NDArray[np.float64]:
    from scipy.stats import permutation_test

    def mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        result: NDArray[np.float64] = values.mean(axis=axis)
        return result

    if len(table) == 1:  # which SciPy refuses: both signs are as far from 0
        return np.ones(table.shape[1])
    found = permutation_test(
        (table,), mean, permutation_type="samples", vectorized=True, n_resamples=n_permutations, random_state=rng
    )
    return np.where((table != 0).any(axis=0), found.pvalue, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's method (1979): the chance of any false alarm stays below each.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is smaller than one before it, or above 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    found: list[float] = adjusted.tolist()
    return found
