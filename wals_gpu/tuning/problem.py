"""What a trial is measured on: interactions in two or three parts, and how well settings find what is held out."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.data.csr import select
from wals_gpu.data.interactions import Interactions
from wals_gpu.errors import DataError
from wals_gpu.evaluation.metrics import relevant_entries
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.evaluation.splits import random_holdout, temporal_split
from wals_gpu.training.calibration import choose_popularity_exponent
from wals_gpu.training.validation import parse_metric

__all__ = ["MOST_ITERATIONS", "Measured", "Outcome", "Parts", "Problem", "Split", "settled"]

#: Where a fit ends that gets better and better.
MOST_ITERATIONS = 24
#: Measurements without a new best after which it ends.
_PATIENCE = 2
#: Users that a trial is measured on at its end, and that it is watched with after each iteration; of more, as many are
#: drawn once for the whole search.
_USERS, _WATCHED = 4000, 1500
#: Where there are fewer users than that to measure with, trials that are worth it are measured on other splits, too:
#: the best of many trials on a few hundred users is the one that was lucky with them.
_ENOUGH, _MOST_SPLITS = 4000, 4


@dataclass(frozen=True)
class Parts:
    """The interactions of a search: all of them, and what is held out of them.

    Parameters
    ----------
    whole, search, train, valid : Interactions
        `search` is `whole` without `test`; `train` and `valid` are its parts.
    test : Interactions or None
        Looked at once, when the search is over.
    by_time : bool
        Whether what is held out is what came last; else it was drawn.
    """

    whole: Interactions
    search: Interactions
    train: Interactions
    valid: Interactions
    test: Interactions | None
    by_time: bool

    @classmethod
    def divide(cls, whole: Interactions, validation: float, test: float, seed: int) -> Parts:
        """The latest entries are held out where there are times, else some at random.

        Raises
        ------
        DataError
            One of the parts would be empty.
        """
        by_time = whole.times is not None and _spread(whole.times)
        search, tested = (whole, None) if not test else _hold_out(whole, test, seed, by_time, "test")
        train, valid = _hold_out(search, validation / (1 - test), seed + 1, by_time, "validation")
        return cls(whole, search, train, valid, tested, by_time)


def _spread(times: NDArray[Any]) -> bool:
    return bool(len(times)) and bool(times.min() < times.max())


def _hold_out(
    data: Interactions, share: float, seed: int, by_time: bool, name: str
) -> tuple[Interactions, Interactions]:
    n = data.matrix.nnz
    try:
        kept, held = temporal_split(data, fraction=share) if by_time else random_holdout(data, share, seed)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if not kept.matrix.nnz or not (held.matrix.data > 0).any():
        raise DataError(f"{name}={share:.3g} of {n} interactions leaves none on one of the two sides")
    return kept, held


@dataclass(frozen=True)
class Outcome:
    """What a trial gave.

    Parameters
    ----------
    score : float
        The metric at the best iteration, with the best exponent; where it was ended early, the best of `curve`.
    popularity_exponent : float
    iterations : int
        The best one's number.
    first : float
        The metric on the first split, of those that `score` is the mean over.
    curve : tuple of float
        The metric after each iteration, of fewer users and without the exponent.
    is_whole : bool
        False: it was ended as hopeless, or for want of time; or was not worth other splits.
    seconds : float
    """

    score: float
    popularity_exponent: float
    iterations: int
    first: float
    curve: tuple[float, ...]
    is_whole: bool
    seconds: float


class Problem:
    """Measures settings.

    Parameters
    ----------
    model : type
        :class:`wals_gpu.WALS` or a class made from it.
    fixed : mapping
        Settings of every trial.
    parts : Parts
    metric : str
    seed : int
        Of the users to measure on.

    Attributes
    ----------
    splits : list of Split
        A score is the mean over them.
    n_users : int
        That the first of them measures.
    metric_name, k : str, int
        `metric` in its parts.
    """

    def __init__(self, model: Any, fixed: Mapping[str, Any], parts: Parts, metric: str, seed: int) -> None:
        self.model, self.fixed, self.parts, self.metric = model, dict(fixed), parts, metric
        self.metric_name, self.k = parse_metric(metric)
        self._seed, self._has_prior = seed, fixed.get("user_prior") is not None
        rng = np.random.default_rng([seed, 2])
        self.splits = [Split.make(parts.train.matrix, parts.valid.matrix, self._has_prior, rng)]
        self.n_users = int(np.count_nonzero(np.diff(self.splits[0].valid.indptr)))
        # The future is held out once: there is only one.
        for number in range(1, 1 if parts.by_time else min(-(-_ENOUGH // self.n_users), _MOST_SPLITS)):
            self.splits.append(self._draw(np.random.default_rng([seed, 3, number]), rng))
        self.chooses_exponent = "popularity_exponent" not in fixed

    def _draw(self, rng: np.random.Generator, of_users: np.random.Generator) -> Split:
        share = self.parts.valid.matrix.nnz / self.parts.search.matrix.nnz
        return Split.make(*random_holdout(self.parts.search.matrix, share, rng), self._has_prior, of_users)

    def afresh(self, number: int) -> Split:
        """Another split of the same kind, that no trial is measured on; not of the future, as there is only one."""
        return self._draw(*(np.random.default_rng([self._seed, 4 + part, number]) for part in range(2)))

    def with_ids(self, part: csr_matrix) -> Interactions:
        """A part of the matrix with the ids of the whole, by which priors find embeddings."""
        return Interactions(part, self.parts.whole.user_ids, self.parts.whole.item_ids)

    def settings(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the model: those that were chosen, beside the fixed ones."""
        settings = dict(self.fixed)
        for name, value in chosen.items():
            side, point, parameter = name.partition(".")
            if not point:
                settings[name] = value
                continue
            if settings[side] is self.fixed[side]:  # the user's own stays as it is; what is large is shared
                settings[side] = copy.copy(settings[side])
            setattr(settings[side], parameter, value)
        return settings

    def measure(
        self,
        chosen: Mapping[str, Any],
        is_hopeless: Callable[[list[float]], bool] = lambda curve: False,
        deadline: float | None = None,
        exponents: Sequence[float] | None = None,
        worth: float = 0.0,
    ) -> Outcome:
        """Fit with early stopping, then choose the exponent of items' popularity.

        Parameters
        ----------
        chosen : mapping
            Settings beside the fixed ones.
        is_hopeless : callable
            Gets the metric after each iteration so far; true ends the trial.
        deadline : float, optional
            Of ``time.perf_counter()``; the iteration that passes it is the last.
        exponents : sequence of float, optional
            Of items' popularity, that are tried; default: those of :func:`.choose_popularity_exponent`.
        worth : float, default 0
            The metric on the first split from which the others are looked at.
        """
        began = time.perf_counter()
        found = [self.measure_on(self.splits[0], chosen, exponents, is_hopeless, deadline)]
        for split in self.splits[1:]:
            if not found[-1].is_whole or found[0].score < worth:
                break
            found.append(self.measure_on(split, chosen, exponents, deadline=deadline))
        first = found[0]
        is_whole = len(found) == len(self.splits) and found[-1].is_whole
        score = float(np.mean([one.score for one in found])) if is_whole else first.score
        exponent, iterations = settled(found if is_whole else [first])
        seconds = time.perf_counter() - began
        return Outcome(score, exponent, iterations, first.score, first.curve, is_whole, seconds)

    def measure_on(
        self,
        split: Split,
        chosen: Mapping[str, Any],
        exponents: Sequence[float] | None = None,
        is_hopeless: Callable[[list[float]], bool] = lambda curve: False,
        deadline: float | None = None,
    ) -> Measured:
        """The same on one split."""
        curve: list[float] = []
        is_whole = True

        def after(_: Any, record: Any) -> bool:
            nonlocal is_whole
            curve.append(record.validation)
            ended = is_hopeless(curve) or (deadline is not None and time.perf_counter() > deadline)
            is_whole = is_whole and not ended
            return ended

        settings = self.settings(chosen) | {"iterations": MOST_ITERATIONS, "compute_loss": False}
        model = self.model(**settings)
        train, watched = self.with_ids(split.train), self.with_ids(split.watched)
        model.fit(train, validation=watched, metric=self.metric, patience=_PATIENCE, callback=after)
        exponent, score = 0.0, max(curve)
        if is_whole:
            fitted = model.fitted
            grid = exponents if self.chooses_exponent else [model.popularity_exponent]
            exponent, scores = choose_popularity_exponent(
                fitted.user_factors, fitted.item_factors, split.counts, split.train, split.valid,
                fitted.backend, metric=self.metric_name, k=self.k, grid=grid, max_users=_USERS,
                neighbors=fitted.neighbors,
            )  # fmt: skip
            score = scores[exponent] if self.chooses_exponent else scores[round(model.popularity_exponent, 9)]
        return Measured(score, exponent, model.best_iteration_, tuple(curve), is_whole)


class Measured(NamedTuple):
    """Of a trial on one split, as :class:`Outcome` has them."""

    score: float
    exponent: float
    iterations: int
    curve: tuple[float, ...]
    is_whole: bool


def settled(found: Sequence[Measured]) -> tuple[float, int]:
    """Exponent and iterations: means over splits, as they are used."""
    exponent = round(float(np.mean([one.exponent for one in found])), 3)
    return exponent, round(float(np.mean([one.iterations for one in found])))


@dataclass(frozen=True)
class Split:
    """What trials learn from, and what they are measured with.

    Parameters
    ----------
    train : (U, I) csr_matrix
    valid : (U, I) csr_matrix
        What some users should find.
    watched : (U, I) csr_matrix
        What some of these should find, for the measurements after each iteration.
    counts : (I,) array of int
        Training entries above 0 of each item.
    """

    train: csr_matrix
    valid: csr_matrix
    watched: csr_matrix
    counts: NDArray[np.int64]

    @classmethod
    def make(cls, train: csr_matrix, valid: csr_matrix, has_user_prior: bool, rng: np.random.Generator) -> Split:
        """Of interactions in two parts; `has_user_prior`: who has nothing in training is measured too."""
        valid = relevant_entries(valid, "validation")
        if not has_user_prior:
            # Who has nothing in training gets what is popular, the same in every trial.
            valid = select(valid, np.repeat(np.diff(train.indptr) > 0, np.diff(valid.indptr)))
        if not valid.nnz:
            raise DataError("validation has no user with other interactions to learn from")
        valid = _some_users(valid, _USERS, rng)
        return cls(train, valid, _some_users(valid, _WATCHED, rng), item_counts(train))


def _some_users(valid: csr_matrix, most: int, rng: np.random.Generator) -> csr_matrix:
    users = np.flatnonzero(np.diff(valid.indptr))
    if len(users) <= most:
        return valid
    keep = np.zeros(valid.shape[0], bool)
    keep[rng.choice(users, most, replace=False)] = True
    return select(valid, np.repeat(keep, np.diff(valid.indptr)))
