"""The end of a search of factors: the best trials once more, on splits that none of them was chosen by.

The best of a hundred trials is good, and lucky with the users that it was measured on, and its luck does not come back:
so the few best are compared by their means over other splits of the same interactions.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from wals_gpu.tuning.problem import Measured, Problem, settled
from wals_gpu.tuning.search import Finished, exponents_near, in_order, near_ranks

__all__ = ["CANDIDATES", "Confirmed", "confirm"]

#: Trials that are measured again at most, and that there must be for each of them.
CANDIDATES, _EACH = 6, 10
#: Users that are measured in all, those of each split counted, and splits at most.
_USERS, _MOST_SPLITS = 16_000, 16


@dataclass(frozen=True)
class Confirmed:
    """A trial that was measured again.

    Attributes
    ----------
    trial : Finished
        With the outcome of the search.
    scores : tuple of float
        The metric on each of the other splits, the same ones for all.
    popularity_exponent : float
    iterations : int
        Means over these splits.
    """

    trial: Finished
    scores: tuple[float, ...]
    popularity_exponent: float
    iterations: int

    @property
    def score(self) -> float:
        """The mean over the splits."""
        return float(np.mean(self.scores))

    def settled(self) -> Finished:
        """The trial with what was found here in place of the outcome of the search."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("score", "popularity_exponent", "iterations")}
        return dataclasses.replace(self.trial, outcome=dataclasses.replace(self.trial.outcome, **found))


def confirm(problem: Problem, finished: list[Finished], seconds: float | None = None) -> list[Confirmed]:
    """Measure the best trials again.

    Parameters
    ----------
    problem : Problem
    finished : list of Finished
    seconds : float, optional
        What it may take, by what the trials took; None: as long as it takes.

    Returns
    -------
    list of Confirmed
        The best first. Empty where there are too few trials or too little time for it; and where the latest
        interactions were held out, of which there are no others.
    """
    chosen = _candidates(finished)
    if len(chosen) < 2 or problem.parts.by_time:
        return []
    began, exponents = time.perf_counter(), exponents_near(finished)
    a_round = sum(one.outcome.seconds for one in chosen) / len(problem.splits)
    rounds: list[list[Measured]] = []
    for number in range(min(-(-_USERS // problem.n_users), _MOST_SPLITS)):
        if seconds is not None and time.perf_counter() - began + a_round > seconds:
            break
        before, split = time.perf_counter(), problem.afresh(number)
        rounds.append([problem.measure_on(split, one.settings, exponents) for one in chosen])
        a_round = time.perf_counter() - before
    if not rounds:
        return []
    found = []
    for place, one in enumerate(chosen):
        own = [of_round[place] for of_round in rounds]
        found.append(Confirmed(one, tuple(each.score for each in own), *settled(own)))
    return sorted(found, key=lambda one: (-one.score, one.trial.number))


def _candidates(finished: list[Finished]) -> list[Finished]:
    """The best of each number of factors that is near the best one, and the best of all."""
    most = min(CANDIDATES, len(finished) // _EACH)
    if most < 2:
        return []
    best = in_order(near_ranks(finished).values())
    best += [one for one in in_order(one for one in finished if one.outcome.is_whole) if one not in best]
    return best[:most]
