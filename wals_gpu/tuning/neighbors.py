"""The last part of a search: neighbours of items beside the best factors, one setting after another.

Neighbours do not depend on the factors, so that a choice costs a search of the lists and no fit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.evaluation.metrics import row_metrics
from wals_gpu.retrieval.neighbors import Extra, Neighbors, topk
from wals_gpu.training.calibration import ERRORS, Calibration
from wals_gpu.training.neighbors import fit_neighbors
from wals_gpu.tuning.problem import Problem

__all__ = ["RIDGES", "SIZES", "WEIGHTS", "NeighborTrial", "choose_neighbors"]

#: What is tried, from the middle on.
SIZES = (50, 100, 200, 400, 800)
RIDGES = (2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
WEIGHTS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
_START = (100, 20.0, 1.5)
_STEP, _FURTHEST = 0.05, 0.5  # of the popularity exponent
_USERS_PER_BATCH = 2048


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
    walk = _Walk(problem, chosen, deadline)
    best = walk.measure(0, 0.0, 0.0, exponent)
    alone, values = best, walk.values[best]
    size, ridge, weight = _START
    walk.settings = [size, ridge, weight, exponent]
    for _ in range(2):
        before = list(walk.settings)
        walk.along(2, WEIGHTS)
        walk.along(1, RIDGES)
        walk.along(0, [size for size in SIZES if size < problem.parts.train.matrix.shape[1]] or [_START[0]])
        if problem.chooses_exponent:
            steps = round(_FURTHEST / _STEP)
            walk.along(3, [round(step * _STEP, 9) for step in range(-steps, steps + 1)])
        if walk.settings == before or walk.is_over():
            break
    found = max(walk.values, key=lambda one: one.score)
    gain = walk.values[found] - values
    if found is alone or gain.mean() <= ERRORS * gain.std() / np.sqrt(len(gain)):
        found = alone
    return [*walk.values, found]


class _Walk:
    """Measurements of neighbours beside factors that are fitted once."""

    def __init__(self, problem: Problem, chosen: Mapping[str, Any], deadline: float | None) -> None:
        self._problem, self._deadline = problem, deadline
        train = problem.parts.train
        model = problem.model(**(problem.settings(chosen) | {"compute_loss": False, "popularity_exponent": 0.0}))
        self._fitted = model.fit(train).fitted
        self._users = np.flatnonzero(np.diff(problem.valid.indptr))
        self._batches = [
            self._users[start : start + _USERS_PER_BATCH] for start in range(0, len(self._users), _USERS_PER_BATCH)
        ]
        self._of_fit = Calibration.of(0.0, problem.counts)
        self._fits: dict[tuple[int, float], Neighbors] = {}
        self.values: dict[NeighborTrial, NDArray[np.float64]] = {}
        self.settings: list[Any] = []

    def is_over(self) -> bool:
        """Whether there is no time left."""
        return self._deadline is not None and time.perf_counter() > self._deadline

    def along(self, which: int, places: Any) -> None:
        """Move one of the settings to its best place, up and then down from where it is, as long as it gets better."""
        places = sorted({*places, self.settings[which]})
        here, best = places.index(self.settings[which]), self._score(self.settings)
        for step in (1, -1):
            moved, missed = here + step, 0
            while 0 <= moved < len(places) and missed < 1 and not self.is_over():
                there = [*self.settings[:which], places[moved], *self.settings[which + 1 :]]
                score = self._score(there)
                if score > best:
                    self.settings, best, here = there, score, moved
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
        fitted, known_items, backend = self._fitted, self._problem.parts.train.matrix, self._fitted.backend
        calibration = replace(self._of_fit, exponent=exponent)
        items, neighbors = calibration.scaled(fitted.item_factors), None
        if size:
            neighbors = self._neighbors(size, ridge).scaled(weight * calibration.multipliers())
        name, k = self._problem.metric, self._problem.k
        parts = []
        for batch in self._batches:
            extra = None if neighbors is None else Extra(neighbors, known_items[batch])
            ids, _ = topk(backend, fitted.user_factors[batch], items, k, known_items[batch], extra=extra)
            parts.append(row_metrics(ids, self._problem.valid[batch], [k], None)[name])
        values = np.concatenate(parts)
        trial = NeighborTrial(size, ridge, weight, exponent, float(values.mean()))
        self.values[trial] = values
        return trial

    def _neighbors(self, size: int, ridge: float) -> Neighbors:
        if (size, ridge) not in self._fits:
            train = self._problem.parts.train.matrix
            self._fits[size, ridge] = fit_neighbors(train, size, 1.0, ridge, self._fitted.backend)
        return self._fits[size, ridge]
