"""Validation while fitting: a ranking metric on held-out interactions, early stopping, and the best factors kept."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend
from wals_gpu.data.csr import contains, entry_keys
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import in_kinds_of, is_table, read_like
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.errors import DataError
from wals_gpu.evaluation.metrics import in_batches, relevant_entries, row_metrics
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.evaluation.splits import random_holdout
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration, choose_popularity_exponent, metric_of_lists
from wals_gpu.training.state import FitState

__all__ = ["METRICS", "Validation", "checked_share", "generator_of_holdout", "hold_out", "none_left", "parse_metric"]

#: Of :mod:`wals_gpu.evaluation`, those that are means over users and better when higher.
METRICS = ("recall", "plain_recall", "precision", "hit_rate", "ndcg", "map", "mrr")


def parse_metric(metric: str) -> tuple[str, int]:
    """Name and list length of a metric such as "ndcg@10"; ValueError where it is none."""
    match = re.fullmatch(rf"({'|'.join(METRICS)})@([1-9][0-9]*)", metric) if isinstance(metric, str) else None
    if match is None:
        raise ValueError(f"metric must be one of {', '.join(METRICS)} with a list length (ndcg@10), got {metric!r}")
    return match[1], int(match[2])


class Validation:
    """A metric measured every few iterations, and the factors that it was best with.

    Parameters
    ----------
    backend : Backend
        What searches are done on.
    train : (U, I) csr_matrix
        What is learned from; not recommended.
    test : (U, I) csr_matrix
        What is to be found: values above 0. Users without any are left out.
    metric : str
        Name and list length, such as "ndcg@10"; see :mod:`wals_gpu.evaluation` for the definitions.
    every : int
        Iterations from one measurement to the next.
    patience : int or None
        Measurements in a row without a new best after which the fit is over; None: it goes on.
    cold_get_popular : bool
        Whether users without an entry in `train` get the most popular items, as the model will answer; else what their
        factors say, which know something of them by a user_prior.
    calibration : Calibration, optional
        Of the scores.
    neighbors : Neighbors, optional
        What is added to the dot products.

    Attributes
    ----------
    best_score : float or None
    best_iteration : int or None
        The first iteration with that score; None before the first measurement.
    """

    def __init__(
        self,
        backend: Backend,
        train: csr_matrix,
        test: csr_matrix,
        metric: str,
        every: int = 1,
        patience: int | None = None,
        cold_get_popular: bool = True,
        calibration: Calibration | None = None,
        neighbors: Neighbors | None = None,
    ) -> None:
        self._calibration, self._neighbors = calibration, neighbors
        self._added = neighbors  # to the scores that are measured
        if neighbors is not None and calibration is not None:
            self._added = neighbors.scaled(calibration.multipliers())
        self._name, self._k = parse_metric(metric)
        self.metric, self._backend = metric, backend
        self.every, self.patience = every, patience
        if test.shape != train.shape:
            raise DataError(f"validation must have the shape of the interactions, {train.shape}, got {test.shape}")
        self.train, self.test = train, relevant_entries(test, "validation")
        self._users = np.flatnonzero(np.diff(self.test.indptr))
        if not self._is_something_to_find():
            raise DataError("validation has no value above 0, so there is nothing to measure")
        self._values_of_cold = self._leave_cold_out() if cold_get_popular else np.empty(0)
        if both := sum(int(contains(entry_keys(train[b]), entry_keys(self.test[b])).sum()) for b in self._batches()):
            raise DataError(
                f"{both} entries of validation are in the interactions too: what a user has is not recommended, so "
                "they could not be found; hold them out"
            )
        self.best_score: float | None = None
        self.best_iteration: int | None = None
        self._since_best = 0
        self._best: dict[str, NDArray[Any]] = {}

    def _is_something_to_find(self) -> bool:
        return len(self._users) > 0

    def _item_counts(self) -> NDArray[np.int64]:
        """In how many training entries each item (I,) is."""
        return item_counts(self.train)

    def _leave_cold_out(self) -> NDArray[np.float64]:
        """The metric of users without training entries, the same whatever is learned; they are not looked at again."""
        ends = self.train.indptr
        is_cold = np.asarray(ends[self._users]) == np.asarray(ends[self._users + 1])
        cold, self._users = self._users[is_cold], self._users[~is_cold]
        if not len(cold):
            return np.empty(0)
        popular = np.argsort(-self._item_counts(), kind="stable")[: self._k]
        values = []
        for batch in in_batches(cold, len(popular)):
            ids = np.broadcast_to(popular, (len(batch), len(popular)))
            values.append(row_metrics(ids, self.test[batch], [self._k], None)[self.metric])
        return np.concatenate(values)

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        return in_batches(self._users, min(self._k, self.train.shape[1]))

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self._since_best >= self.patience

    def measure(self, state: FitState) -> float:
        """The metric with the present factors; those may be rotated, as scores are the same."""
        return float(self._values(state.session.factors("user"), state.session.factors("item")).mean())

    def _values(self, users: NDArray[np.floating], items: NDArray[np.floating]) -> NDArray[np.float64]:
        """The metric of each user."""
        if self._calibration is not None:
            items = self._calibration.scaled(items)
        given = (users, items, self.train, self.test, self._backend, self._users)
        found = metric_of_lists(*given, metric=self._name, k=self._k, added=self._added)
        return np.concatenate([self._values_of_cold, found])

    def calibration_of(self, user_factors: NDArray[np.floating], item_factors: NDArray[np.floating]) -> Calibration:
        """The one that the metric is best with; see :func:`.choose_popularity_exponent`."""
        counts, exponent = item_counts(self.train), 0.0
        if len(self._users):  # else all are cold, and get what is popular
            given = (user_factors, item_factors, counts, self.train, self.test, self._backend)
            exponent, _ = choose_popularity_exponent(
                *given, metric=self._name, k=self._k, users=self._users, neighbors=self._neighbors
            )
        return Calibration.of(exponent, counts)

    def after(self, iteration: int, state: FitState) -> float | None:
        """The metric after an iteration, if it is one to measure; a new best is kept."""
        if iteration % self.every:
            return None
        score = self.measure(state)
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_iteration, self._since_best = score, iteration, 0
            for name, array in state.arrays().items():
                if name in self._best:
                    np.copyto(self._best[name], array)
                else:
                    self._best[name] = array.copy()
        else:
            self._since_best += 1
        return score

    def restore_best(self, state: FitState) -> None:
        """Put the best factors in place of the present ones."""
        if self._best:
            state.restore(self._best)

    # ------------------------------------------------------------------------------------------ for checkpoints

    def progress(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The best factors, and what else :meth:`resume` needs; the second can be written as JSON."""
        return self._best, {
            "best_score": self.best_score,
            "best_iteration": self.best_iteration,
            "since_best": self._since_best,
        }

    def resume(self, best: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> None:
        """Go on from what :meth:`progress` gave."""
        self._best = dict(best)
        self.best_score, self.best_iteration = metadata["best_score"], metadata["best_iteration"]
        self._since_best = metadata["since_best"]


def checked_share(share: Any) -> float:
    """Of the entries to hold out; ValueError where it is not in (0, 1)."""
    if not 0 < float(share) < 1:
        raise ValueError(f"validation must be a share in (0, 1), or interactions; got {share!r}")
    return float(share)


def generator_of_holdout(random_state: int | np.random.Generator | None) -> np.random.Generator:
    """What a share is drawn with: not the numbers that start values are drawn with from the same seed."""
    if isinstance(random_state, np.random.Generator):
        return random_state
    return np.random.default_rng(None if random_state is None else [random_state, 1])


def none_left(share: Any, n_entries: int) -> DataError:
    """The error where a share of so many entries is none of them, or all."""
    return DataError(f"validation={share} of {n_entries} entries leaves none on one of the two sides")


def hold_out(
    data: Interactions,
    validation: Any,
    random_state: int | np.random.Generator | None,
    dtype: np.dtype[Any],
    columns: Mapping[str, Any],
) -> tuple[csr_matrix, csr_matrix]:
    """What to train on and what to validate with.

    Parameters
    ----------
    data : Interactions
    validation : float, or matrix, table or Interactions
        A share of the entries of `data` to hold out, or interactions that are not in `data`. What has ids is compared
        by id, whatever its numbering, as :func:`.evaluate` does: Interactions must have no entry of a user or an item
        that is unknown to `data`; such rows of a table are dropped, with a warning. A matrix is taken by row numbers.
    random_state : int, Generator or None
        Seed for a share.
    dtype : dtype
    columns : mapping
        ``user_column``, ``item_column``, ``value_column`` of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix

    Raises
    ------
    DataError, TypeError, ValueError
        If `validation` cannot be used.
    """
    if isinstance(validation, numbers.Real) and not isinstance(validation, bool):
        share = checked_share(validation)
        if isinstance(data.matrix, StoredMatrix):
            raise TypeError(
                "validation must be a matrix: stored interactions are not split; hold some out as you write"
            )
        train, test = random_holdout(data.matrix, share, generator_of_holdout(random_state))
        if not train.nnz or not test.nnz:
            raise none_left(validation, data.matrix.nnz)
        return train, test
    if not is_table(validation):
        try:
            validation = as_interactions(validation, dtype=dtype)  # refuses what is not finite
        except (DataError, TypeError) as error:
            raise type(error)(f"validation: {error}") from error
        validation = in_kinds_of(validation, data.user_ids, data.item_ids)
    elif data.user_ids is None or data.item_ids is None:
        raise TypeError("validation must be a matrix or a share: the interactions are a matrix, so there are no ids")
    known, whose = (data.user_ids, data.item_ids), "the training data"
    test = read_like("validation", validation, *known, whose, columns, like=data.columns, dtype=dtype).data
    return data.matrix, test.matrix
