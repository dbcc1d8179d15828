"""The last part of a search: neighbours of items beside the best factors, one setting after another.

Neighbours do not depend on the factors, so that a choice costs a search of the lists and no fit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration, metric_of_lists
from wals_gpu.training.neighbors import fit_neighbors
from wals_gpu.tuning.problem import Problem

__all__ = ["RIDGES", "SIZES", "WEIGHTS", "NeighborTrial", "choose_neighbors"]

#: What is tried.
SIZES = (50, 100, 200, 400)
RIDGES = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
#: The best of these, ridge and weight, is where the walk begins.
_SIZE = 100
_STARTS = ((20.0, 1.5), (20.0, 0.5), (20.0, 4.0), (80.0, 1.5), (80.0, 0.5), (80.0, 4.0), (5.0, 1.5), (5.0, 4.0))
#: Places in a row that may be worse before a direction is given up.
_MISSES = 2
#: Fits that are kept: a walk comes back to the last ones only.
_KEPT = 4
#: Standard errors that a gain over the factors alone must have: it is the best of dozens.
_ERRORS = 2.0
_STEP, _FURTHEST = 0.05, 0.5  # of the popularity exponent


@dataclass(frozen=True)
class NeighborTrial:
    """What one choice gave, by the metric of the search.

    Attributes
    ----------
    neighbors : int
        0: the factors alone.
    neighbor_regularization, neighbor_weight, popularity_exponent : float
    score : float
    """

    neighbors: int
    neighbor_regularization: float
    neighbor_weight: float
    popularity_exponent: float
    score: float


def choose_neighbors(
    problem: Problem, chosen: Mapping[str, Any], exponent: float, deadline: float | None = None
) -> list[NeighborTrial]:
    """Search neighbours for settings of the factors, along one setting at a time.

    Parameters
    ----------
    problem : Problem
    chosen : mapping
        The settings of the factors, their iterations among them.
    exponent : float
        Of items' popularity, that is the best without neighbours.
    deadline : float, optional
        Of ``time.perf_counter()``; what passes it is the last.

    Returns
    -------
    list of NeighborTrial
        All that was tried, the factors alone first and what is chosen last: these where nothing is better by more than
        twice the standard error of the mean difference over users.
    """
    ridges = _places("neighbor_regularization", RIDGES, problem.fixed)
    weights = _places("neighbor_weight", WEIGHTS, problem.fixed)
    walk = _Walk(problem, chosen, deadline)
    best = walk.measure(0, 0.0, 0.0, exponent)
    alone, values = best, walk.values[best]
    for ridge, weight in _STARTS:
        if walk.settings and walk.is_over():
            break
        here = [ridge if ridge in ridges else ridges[0], weight if weight in weights else weights[0]]
        walk.begin([_SIZE, *here, exponent])
    for _ in range(2):
        before = list(walk.settings)
        walk.along(2, weights)
        walk.along(1, ridges)
        walk.along(0, [size for size in SIZES if size < problem.splits[0].train.shape[1]] or [_SIZE])
        if problem.chooses_exponent:
            steps = round(_FURTHEST / _STEP)
            walk.along(3, [round(step * _STEP, 9) for step in range(-steps, steps + 1)])
        if walk.settings == before or walk.is_over():
            break
    found = max(walk.values, key=lambda one: one.score)
    gain = walk.values[found] - values
    if found is alone or gain.mean() <= _ERRORS * gain.std() / np.sqrt(len(gain)):
        found = alone
    return [*walk.values, found]


def _places(name: str, usual: tuple[float, ...], fixed: Mapping[str, Any]) -> tuple[float, ...]:
    """What is tried of a setting: what is given stays."""
    return (float(fixed[name]),) if name in fixed else usual


class _Walk:
    """Measurements of neighbours beside factors that are fitted once."""

    def __init__(self, problem: Problem, chosen: Mapping[str, Any], deadline: float | None) -> None:
        self._problem, self._deadline = problem, deadline
        model = problem.model(**(problem.settings(chosen) | {"compute_loss": False, "popularity_exponent": 0.0}))
        self._fitted = [model.fit(problem.with_ids(split.train)).fitted for split in problem.splits]
        self._fits: dict[tuple[int, int, float], Neighbors] = {}
        self.values: dict[NeighborTrial, NDArray[np.float64]] = {}
        self.settings: list[Any] = []

    def is_over(self) -> bool:
        """Whether there is no time left."""
        return self._deadline is not None and time.perf_counter() > self._deadline

    def begin(self, settings: list[Any]) -> None:
        """Stand where the metric is best of all places that this was called with."""
        if not self.settings or self._score(settings) > self._score(self.settings):
            self.settings = settings

    def along(self, which: int, places: Any) -> None:
        """Move one of the settings to its best place: up and down from where it is, as long as it gets better soon."""
        places = sorted({*places, self.settings[which]})
        here, best = places.index(self.settings[which]), self._score(self.settings)
        for step in (1, -1):
            moved, missed = here + step, 0
            while 0 <= moved < len(places) and missed < _MISSES and not self.is_over():
                there = [*self.settings[:which], places[moved], *self.settings[which + 1 :]]
                score = self._score(there)
                if score > best:
                    self.settings, best, here, missed = there, score, moved, 0
                else:
                    missed += 1
                moved += step

    def _score(self, settings: list[Any]) -> float:
        return self.measure(*settings).score

    def measure(self, size: int, ridge: float, weight: float, exponent: float) -> NeighborTrial:
        """The metric of one choice; measured once."""
        for known in self.values:
            if (known.neighbors, known.neighbor_regularization) == (size, ridge) and (
                (known.neighbor_weight, known.popularity_exponent) == (weight, exponent)
            ):
                return known
        parts = [self._on(number, size, ridge, weight, exponent) for number in range(len(self._fitted))]
        score = float(np.mean([values.mean() for values in parts]))
        values = np.concatenate(parts)
        trial = NeighborTrial(size, ridge, weight, exponent, score)
        self.values[trial] = values
        return trial

    def _on(self, number: int, size: int, ridge: float, weight: float, exponent: float) -> NDArray[np.float64]:
        """The metric of each user of one split."""
        fitted, split = self._fitted[number], self._problem.splits[number]
        calibration = Calibration.of(exponent, split.counts)
        items, added = calibration.scaled(fitted.item_factors), None
        if size:
            added = self._neighbors(number, size, ridge).scaled(weight * calibration.multipliers())
        users, problem = np.flatnonzero(np.diff(split.valid.indptr)), self._problem
        given = (fitted.user_factors, items, split.train, split.valid, fitted.backend, users)
        return metric_of_lists(*given, metric=problem.metric_name, k=problem.k, added=added)

    def _neighbors(self, number: int, size: int, ridge: float) -> Neighbors:
        key = (number, size, ridge)
        if key not in self._fits:
            train, backend = self._problem.splits[number].train, self._fitted[number].backend
            while len(self._fits) >= _KEPT * len(self._fitted):
                self._fits.pop(next(iter(self._fits)))
            self._fits[key] = fit_neighbors(train, size, 1.0, ridge, backend)
        return self._fits[key]
