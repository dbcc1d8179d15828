"""The settings of an item prior, chosen by validation on items with and without interactions."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import check_columns
from wals_gpu.data.options import ColumnOptions
from wals_gpu.errors import ModelFitError
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.splits import cold_items_split, random_holdout
from wals_gpu.objective.options import Unpack
from wals_gpu.priors.linear import LinearPrior

__all__ = ["PriorChoice", "PriorTrial", "StrengthTrial", "tune_prior", "tune_strength"]


@dataclass(frozen=True)
class StrengthTrial:
    """What one strength gave.

    Attributes
    ----------
    strength : float
    warm : float
        NDCG@k of held-out entries of items that have others, ranked among all such items.
    cold : float
        NDCG@k of items that lost all their entries, ranked among themselves.
    """

    strength: float
    warm: float
    cold: float


def tune_strength(
    model: Any,
    interactions: Any,
    strengths: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
    *,
    cold_weight: float = 0.5,
    heldout: float = 0.1,
    k: int = 100,
    random_state: int = 0,
    **columns: Unpack[ColumnOptions],
) -> list[StrengthTrial]:
    """Fit with several strengths of the item prior, and measure each on items with and without interactions.

    Parameters
    ----------
    model : WALS
        With an ``item_prior``; it is not fitted itself, and stays as it is.
    interactions, **columns
        As for :meth:`WALS.fit`. A share `heldout` of the items loses all entries; of the others' entries the same share
        is hidden. All strengths are measured on this one split.
    strengths : sequence of float > 0
        To try; one fit each.
    cold_weight : float from 0 to 1, default 0.5
        How much items without interactions count: the best strength has the highest
        ``warm ** (1 - cold_weight) * cold ** cold_weight``.
    heldout : float, default 0.1
    k : int, default 100
        Length of the lists.
    random_state : int, default 0
        Seed of the split.

    Returns
    -------
    list of StrengthTrial
        Best first: ``model.item_prior.strength = tune_strength(model, data)[0].strength``, then fit.

    Raises
    ------
    DataError, TypeError, ValueError
        As :meth:`WALS.fit`; or a parameter is out of range.
    ModelFitError
        The model has no item_prior.
    """
    prior = model.item_prior
    if prior is None:
        raise ModelFitError("tune_strength needs a model with an item_prior")
    if isinstance(strengths, (str, int, float)) or not len(strengths):
        raise ValueError(f"strengths must be a sequence of numbers > 0, got {strengths!r}")
    chosen = [number("each of strengths", strength, positive=True) for strength in strengths]
    cold_weight = number("cold_weight", cold_weight, high=1)
    heldout = number("heldout", heldout, positive=True, below=1)
    k = integer("k", k, 1)
    data = _read(model, interactions, columns, tune_strength)
    split = _ColdSplit.make(data.matrix, heldout, integer("random_state", random_state, 0))

    trials = []
    for strength in chosen:
        trial = copy.copy(model)
        trial.item_prior = copy.copy(prior)
        trial.item_prior.strength, trial.compute_loss = strength, False
        if trial.popularity_exponent == "auto":  # to be chosen once the strength is
            trial.popularity_exponent = 0.0
        trial.fit(replace(data, matrix=split.train))
        factors = trial.fitted.item_table()
        of_warm = _ndcg(trial, factors, split.warm, split.warm_test, split.train, k)
        trials.append(StrengthTrial(strength, of_warm, _ndcg(trial, factors, split.cold, split.cold_test, None, k)))
    return sorted(trials, key=lambda t: -(t.warm ** (1 - cold_weight)) * t.cold**cold_weight)


class _OfPrior:
    """What has settings of a prior as attributes."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of the prior, by name."""
        return {name: getattr(self, name) for name in ("relative_strength", "ridge", "kernel", "cold")}


@dataclass(frozen=True)
class PriorTrial(_OfPrior):
    """What one choice of settings gave.

    Attributes
    ----------
    relative_strength : float
    cold : {"prior_mean", "regression"}
    warm_scores, cold_scores : tuple of float
        Of each split: NDCG@k of held-out entries of items that have others, ranked among all such items, and of items
        that lost all their entries, ranked among themselves.
    ridge, kernel : float
    """

    relative_strength: float
    cold: str
    warm_scores: tuple[float, ...]
    cold_scores: tuple[float, ...]
    ridge: float = 1.0
    kernel: float = 0.0

    def scores(self, cold_weight: float) -> NDArray[np.float64]:
        """What it is compared by: ``warm^(1 - w) cold^w`` of the scores of each split.

        Parameters
        ----------
        cold_weight : float from 0 to 1
            w.

        Returns
        -------
        (n_splits,) float64 array
        """
        warm, cold = np.asarray(self.warm_scores), np.asarray(self.cold_scores)
        weighed: NDArray[np.float64] = warm ** (1 - cold_weight) * cold**cold_weight
        return weighed


@dataclass(frozen=True)
class PriorChoice(_OfPrior):
    """The answer of :func:`tune_prior`.

    Attributes
    ----------
    relative_strength : float
    cold : {"prior_mean", "regression"}
    trials : tuple of PriorTrial
        Best mean first. The choice need not be the first one: it takes a margin to leave what is recommended.
    ridge, kernel : float
    start : PriorTrial
        What the prior had.
    """

    relative_strength: float
    cold: str
    trials: tuple[PriorTrial, ...]
    ridge: float
    kernel: float
    start: PriorTrial

    @property
    def trial(self) -> PriorTrial:
        """What the choice gave."""
        return next(trial for trial in self.trials if trial.settings == self.settings)

    def applied(self, prior: LinearPrior) -> LinearPrior:
        """A prior with the chosen settings.

        Parameters
        ----------
        prior : LinearPrior
            It stays as it is.

        Returns
        -------
        LinearPrior
        """
        return prior.with_parameters(**self.settings)


def tune_prior(
    model: Any,
    interactions: Any,
    relative_strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    ridges: Sequence[float] = (),
    kernels: Sequence[float] = (),
    splits: int = 3,
    cold_weight: float = 0.5,
    heldout: float = 0.1,
    k: int = 100,
    random_state: int = 0,
    deadline: float | None = None,
    **columns: Unpack[ColumnOptions],
) -> PriorChoice:
    """Choose how strong the item prior is, 0 for not at all, and whether cold items have a map of their own.

    Parameters
    ----------
    model : WALS
        With an ``item_prior``; it is not fitted itself, and stays as it is.
    interactions, **columns
        As for :meth:`WALS.fit`.
    relative_strengths : sequence of float >= 0
        To try, beside the one that the prior has (0.5, as in :meth:`WALS.hybrid`, where it has none); one fit for each
        and each split. Both ways to cold items are measured on the same fit.
    ridges, kernels : sequence of float, optional
        Of the prior's `ridge` and `kernel`, to try one after the other beside what was best until then.
    splits : int, default 3
        In each, a share `heldout` of the items loses all entries; of the others' entries the same share is hidden.
    cold_weight : float from 0 to 1, default 0.5
        How much items without interactions count: settings are compared by
        ``warm ** (1 - cold_weight) * cold ** cold_weight``.
    heldout : float, default 0.1
    k : int, default 100
        Length of the lists.
    random_state : int, default 0
        Seed of the first split.
    deadline : float, optional
        Of ``time.perf_counter()``: no fit begins after it, and what was not measured on every split does not count.
        The prior's own settings are measured whatever the time.

    Returns
    -------
    PriorChoice
        ``model.item_prior = tune_prior(model, data).applied(model.item_prior)``, then fit.

    Raises
    ------
    DataError, TypeError, ValueError
        As :meth:`WALS.fit`; or a parameter is out of range.
    ModelFitError
        The model has no item_prior.

    Notes
    -----
    One split is not enough to choose by: the items that lose their entries differ more between splits than good
    settings do. So the prior's own settings stay unless others are better on every split; of several such, the best
    mean is taken.
    """
    prior = model.item_prior
    if prior is None:
        raise ModelFitError("tune_prior needs a model with an item_prior")
    if isinstance(relative_strengths, (str, int, float)) or not len(relative_strengths):
        raise ValueError(f"relative_strengths must be a sequence of numbers >= 0, got {relative_strengths!r}")
    for name, values in (("ridges", ridges), ("kernels", kernels)):
        if isinstance(values, (str, int, float)):
            raise ValueError(f"{name} must be a sequence of numbers, got {values!r}")
    tried = [number("each of relative_strengths", strength) for strength in relative_strengths]
    ridges = [number("each of ridges", ridge, positive=True) for ridge in ridges]
    kernels = [number("each of kernels", kernel, high=1) for kernel in kernels]
    usual = 0.5 if prior.relative_strength is None else prior.relative_strength
    cold_weight = number("cold_weight", cold_weight, high=1)
    heldout = number("heldout", heldout, positive=True, below=1)
    splits, k = integer("splits", splits, 1), integer("k", k, 1)
    random_state = integer("random_state", random_state, 0)
    deadline = None if deadline is None else number("deadline", deadline, -math.inf)
    data = _read(model, interactions, columns, tune_prior)
    walk = _PriorWalk(model, data, range(random_state, random_state + splits), heldout, k, cold_weight, deadline)
    own = _PriorSettings(usual, prior.ridge, prior.kernel)
    walk.measure([own, *(own._replace(strength=strength) for strength in tried)])
    walk.stand(own, "regression" if prior.cold == "regression" else "prior_mean")
    for name, values in (("ridge", ridges), ("kernel", kernels)):
        here = walk.here[0]
        walk.measure([here._replace(**{name: value}) for value in values])
        walk.move()
    ordered = sorted(walk.trials.values(), key=lambda trial: -float(trial.scores(cold_weight).mean()))
    found = walk.trials[walk.here]
    return PriorChoice(
        found.relative_strength, found.cold, tuple(ordered), found.ridge, found.kernel, walk.trials[walk.start]
    )


def _read(model: Any, interactions: Any, columns: Mapping[str, Any], of: Callable[..., Any]) -> Interactions:
    """Without times: what is hidden is drawn, and a part of the entries cannot have the times of all."""
    check_columns(columns, of)
    return replace(as_interactions(interactions, dtype=model.dtype, **columns), times=None)


class _PriorSettings(NamedTuple):
    """What decides a fit."""

    strength: float
    ridge: float
    kernel: float


class _ColdSplit(NamedTuple):
    """Interactions of which some items have none left, and the others a part hidden."""

    train: csr_matrix
    warm: NDArray[np.integer]
    warm_test: csr_matrix
    cold: NDArray[np.integer]
    cold_test: csr_matrix

    @classmethod
    def make(cls, matrix: csr_matrix, heldout: float, seed: int) -> _ColdSplit:
        rest, cold_test, cold = cold_items_split(matrix, heldout, seed)
        train, warm_test = random_holdout(rest, heldout, seed)
        warm = np.flatnonzero(np.bincount(train.indices, minlength=train.shape[1]))
        return cls(train, warm, warm_test, cold, cold_test)


class _PriorWalk:
    """Measurements on the same splits, and the best place so far."""

    here: tuple[_PriorSettings, str]
    start: tuple[_PriorSettings, str]

    def __init__(
        self,
        model: Any,
        data: Interactions,
        seeds: Sequence[int],
        heldout: float,
        k: int,
        cold_weight: float,
        deadline: float | None,
    ) -> None:
        self._model, self._data, self._k = model, data, k
        self._cold_weight, self._deadline = cold_weight, deadline
        self._splits = [_ColdSplit.make(data.matrix, heldout, seed) for seed in seeds]
        self.trials: dict[tuple[_PriorSettings, str], PriorTrial] = {}

    def measure(self, settings: Sequence[_PriorSettings]) -> None:
        """Fit what is not known yet on every split, as long as there is time; the very first whatever the time."""
        for one in dict.fromkeys(settings):
            if (one, "prior_mean") in self.trials:
                continue
            scores: dict[str, list[tuple[float, float]]] = {"regression": [], "prior_mean": []}
            for split in self._splits:
                if self.trials and self._deadline is not None and time.perf_counter() > self._deadline:
                    return
                trial, prior_mean = self._fitted(one, split.train)
                factors = trial.fitted.item_factors
                of_warm = _ndcg(trial, factors, split.warm, split.warm_test, split.train, self._k)
                for way, of_way in (("regression", factors), ("prior_mean", prior_mean)):
                    scores[way].append((of_warm, _ndcg(trial, of_way, split.cold, split.cold_test, None, self._k)))
            for way, pairs in scores.items():
                warm, cold = zip(*pairs, strict=True)
                self.trials[one, way] = PriorTrial(one.strength, way, warm, cold, one.ridge, one.kernel)

    def _fitted(self, settings: _PriorSettings, train: csr_matrix) -> tuple[Any, NDArray[np.floating]]:
        trial, prior = copy.copy(self._model), self._model.item_prior
        assert prior is not None
        trial.compute_loss, trial.popularity_exponent, trial.neighbors = False, 0.0, 0
        trial.item_prior = prior.with_parameters(
            relative_strength=settings.strength, ridge=settings.ridge, kernel=settings.kernel,
            learn="none", cold="regression",
        )  # fmt: skip
        trial.fit(replace(self._data, matrix=train))
        assert trial.item_prior_ is not None and trial.item_prior_.mean is not None
        return trial, trial.item_prior_.mean

    def stand(self, settings: _PriorSettings, cold: str) -> None:
        """Begin with settings that are measured, and move from them."""
        self.here = self.start = settings, cold
        self.move()

    def move(self) -> None:
        """Go where it is better on every split; of several, to the best mean, rather with cold items as now."""
        scores = {key: trial.scores(self._cold_weight) for key, trial in self.trials.items()}
        start = scores[self.here]
        better = [key for key in scores if (scores[key] > start).all()]
        self.here = max(better, key=lambda key: (float(scores[key].mean()), key[1] == self.here[1]), default=self.here)


def _ndcg(
    trial: Any,
    factors: NDArray[np.floating],
    items: NDArray[np.integer],
    test: csr_matrix,
    seen: csr_matrix | None,
    k: int,
) -> float:
    """NDCG@k of some items ranked among themselves, over the users who have any of them in `test`."""
    assert trial.user_factors is not None
    factors = np.ascontiguousarray(factors[items])
    k = min(k, len(items))
    test = test[:, items]
    users = np.flatnonzero(np.diff(test.indptr))
    excluded = None if seen is None else seen[users][:, items]
    ids, _ = trial.fitted.backend.topk(trial.user_factors[users], factors, k, excluded)
    return float(ranking_metrics(ids, test[users], k)[f"ndcg@{k}"])
