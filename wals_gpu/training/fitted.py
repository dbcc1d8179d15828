"""What a fit learned: all that answers are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames
from wals_gpu.data.times import Period
from wals_gpu.errors import ModelFitError
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.retrieval.exact import ExactIndex
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration

__all__ = ["Fitted", "says_something"]

#: Users that are worked on at a time.
_USERS = 1 << 14


def says_something(factors: NDArray[np.floating], rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which of some rows of (n, D) are not 0: float64 has remainders of 1e-130 where float32 has 0."""
    tiny = np.finfo(np.float32).tiny
    high: NDArray[np.bool_] = np.abs(factors[rows, 0]) > tiny  # of nearly every row, so that few are read as a whole
    rest = np.flatnonzero(~high)
    for start in range(0, len(rest), _USERS):
        piece = rest[start : start + _USERS]
        high[piece] = np.abs(factors[rows[piece]]).max(axis=1) > tiny
    return high


@dataclass(frozen=True, eq=False)
class Fitted:
    """Factors and what they mean. It does not change: who changes a model makes another (``dataclasses.replace``).

    Parameters
    ----------
    backend : Backend
        What answers are computed on.
    user_factors, item_factors : (U, D) and (I, D)
    user_ids, item_ids : Ids, optional
        Of the rows; None where they go by their numbers.
    bound : BoundObjective, optional
        The objective of the training matrix; None where factors were assigned, not learned.
    seen : (U, I) csr_matrix or StoredMatrix, optional
        The training interactions; without their values (bool) where a file did not have them.
    user_prior, item_prior : FittedPrior, optional
    columns : ColumnNames, optional
        Of the table that the training interactions came from.
    calibration : Calibration, optional
        What the scores of each item are multiplied by; None: nothing.
    neighbors : Neighbors, optional
        What is added to the dot products, before they are multiplied.
    period : Period, optional
        The earliest and the latest time of the interactions that were read, where they had times.
    counts : (I,) int64 array, optional
        What :meth:`popularity` gives, where the users that it was counted from are not there.
    """

    backend: Backend
    user_factors: NDArray[np.floating]
    item_factors: NDArray[np.floating]
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    bound: BoundObjective | None = None
    seen: csr_matrix | Any | None = None
    user_prior: FittedPrior | None = None
    item_prior: FittedPrior | None = None
    columns: ColumnNames | None = None
    calibration: Calibration | None = None
    neighbors: Neighbors | None = None
    period: Period | None = None
    counts: NDArray[np.int64] | None = None
    _kept_spectrum: list[Spectrum] = field(default_factory=list, init=False, repr=False)
    _kept_popularity: list[NDArray[np.int64]] = field(default_factory=list, init=False, repr=False)
    _kept_mean: list[NDArray[np.floating]] = field(default_factory=list, init=False, repr=False)
    _kept_table: list[NDArray[np.floating]] = field(default_factory=list, init=False, repr=False)
    _kept_neighbors: list[Neighbors] = field(default_factory=list, init=False, repr=False)
    _kept_indexes: dict[tuple[str, str], ExactIndex] = field(default_factory=dict, init=False, repr=False)

    def check_assigned(self) -> None:
        """ModelFitError where factors that somebody assigned are none, or of other users or items.

        Not for a rank of several during a fit, which has the rows that it solves.
        """
        sides = (("user", self.user_factors, self.user_ids), ("item", self.item_factors, self.item_ids))
        for axis, (side, factors, ids) in enumerate(sides):
            is_array = isinstance(factors, np.ndarray)
            if not is_array or factors.ndim != 2 or factors.dtype not in (np.float32, np.float64):
                got = f"{factors.dtype} {factors.shape}" if is_array else type(factors).__name__
                raise ModelFitError(f"{side}_factors must be a float32 or float64 array (n, D), got {got}")
            known = len(ids) if ids is not None else len(factors) if self.seen is None else self.seen.shape[axis]
            if known != len(factors):
                raise ModelFitError(
                    f"{side}_factors must have a row for each of the {known} {side}s that the model learned, got shape "
                    f"{factors.shape}; call fit for others"
                )
        if self.user_factors.shape[1] != self.item_factors.shape[1]:
            got = f"{self.user_factors.shape} and {self.item_factors.shape}"
            raise ModelFitError(f"user_factors (U, D) and item_factors (I, D) must have one D, got {got}")

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_factors)

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.item_factors)

    @property
    def factors(self) -> int:
        """D."""
        return int(self.item_factors.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Of the factors."""
        return self.item_factors.dtype

    def spectrum(self, terms: RowTerms) -> Spectrum:
        """Of the item factors, for rows of users. Kept where these are read-only, as a fit leaves them."""
        if not terms.background.any() or self.item_factors.flags.writeable:
            return self.backend.spectrum(terms, self.item_factors)
        if not self._kept_spectrum:
            self._kept_spectrum.append(self.backend.spectrum(terms, self.item_factors))
        return self._kept_spectrum[0]

    def item_table(self) -> NDArray[np.floating]:
        """What scores are dot products with (I, D): the item factors, times the multipliers of the calibration.

        Without a calibration these are the item factors themselves. Kept where those are read-only, as a fit leaves
        them.
        """
        if self.calibration is None or self.calibration.exponent == 0:
            return self.item_factors
        if self.item_factors.flags.writeable:
            return self.calibration.scaled(self.item_factors)
        if not self._kept_table:
            table = self.calibration.scaled(self.item_factors)
            table.flags.writeable = False
            self._kept_table.append(table)
        return self._kept_table[0]

    def item_neighbors(self) -> Neighbors | None:
        """What is added to the dot products with :meth:`item_table`. Kept."""
        if self.neighbors is None:
            return None
        if not self._kept_neighbors:
            neighbors = self.neighbors.of_dtype(self.dtype)
            if self.calibration is not None and self.calibration.exponent != 0:
                neighbors = neighbors.scaled(self.calibration.multipliers())
            self._kept_neighbors.append(neighbors)
        return self._kept_neighbors[0]

    def index(self, side: str, metric: str = "dot") -> ExactIndex:
        """The factors of a side, "user" or "item", to be searched; dot products with items are their scores.

        Kept where the factors are read-only, as a fit leaves them: with the metric "cosine" it has their norms.
        """
        users = side == "user"
        factors, ids = (self.user_factors, self.user_ids) if users else (self.item_factors, self.item_ids)
        is_writeable = factors.flags.writeable
        if not users and metric == "dot":
            factors = self.item_table()
        if is_writeable:
            return ExactIndex(factors, ids, metric=metric, backend=self.backend)
        key = (side, metric)
        if key not in self._kept_indexes:
            self._kept_indexes[key] = ExactIndex(factors, ids, metric=metric, backend=self.backend)
        return self._kept_indexes[key]

    def has_history(self, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the model learned anything of users by row number (n,): an entry, and factors that are not all 0.

        All have, where the training data are not there. Of values of 0 and below, most objectives learn nothing that
        tells one item from another.
        """
        if self.seen is None:
            return np.ones(len(rows), bool)
        has: NDArray[np.bool_] = self.seen.indptr[rows] < self.seen.indptr[np.asarray(rows) + 1]
        has &= says_something(self.user_factors, np.asarray(rows))
        return has

    def popularity(self) -> NDArray[np.int64]:
        """In how many training entries with a value above 0 each item (I,) is. Kept.

        Raises
        ------
        ModelFitError
            There is no training data: factors were assigned.
        """
        if self.counts is not None:
            return self.counts
        if self.seen is None:
            raise ModelFitError("the model knows no interactions, so it does not know which items are popular")
        if not self._kept_popularity:
            self._kept_popularity.append(item_counts(self.seen))
        return self._kept_popularity[0]

    def mean_user(self) -> NDArray[np.floating]:
        """The mean of the factors of all users with an entry in the training data, (D,).

        Kept where the factors are read-only, as a fit leaves them.
        """
        if self._kept_mean and not self.user_factors.flags.writeable:
            return self._kept_mean[0]
        total, n = np.zeros(self.factors), 0
        for start in range(0, self.n_users, _USERS):
            rows = np.arange(start, min(start + _USERS, self.n_users))
            known = self.user_factors[rows[self.has_history(rows)]]
            total, n = total + known.sum(axis=0, dtype=np.float64), n + len(known)
        mean: NDArray[np.floating] = (total / max(n, 1)).astype(self.dtype)
        self._kept_mean[:] = [mean]
        return mean

    def name_of_user(self, row: int) -> str:
        """A user in the caller's words, such as "user 3 (id 'ann')"."""
        return f"user {row}" if self.user_ids is None else f"user {row} (id {self.user_ids.take(row)!r})"
