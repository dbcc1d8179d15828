"""The settings of an item prior, chosen by validation on items with and without interactions."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.interactions import as_interactions
from wals_gpu.data.options import ColumnOptions
from wals_gpu.errors import ModelFitError
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.splits import cold_items_split, random_holdout
from wals_gpu.objective.options import Unpack
from wals_gpu.priors.linear import LinearPrior

if TYPE_CHECKING:
    from wals_gpu.model.wals import WALS

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
    model: WALS,
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
    options: Mapping[str, Any] = columns
    data = as_interactions(interactions, dtype=model.dtype, **options)
    rest, cold_test, cold = cold_items_split(data.matrix, heldout, integer("random_state", random_state, 0))
    train, warm_test = random_holdout(rest, heldout, random_state)
    warm = np.flatnonzero(np.bincount(train.indices, minlength=train.shape[1]))

    trials = []
    for strength in chosen:
        trial = copy.copy(model)
        trial.item_prior = copy.copy(prior)
        trial.item_prior.strength, trial.compute_loss = strength, False
        if trial.popularity_exponent == "auto":  # to be chosen once the strength is
            trial.popularity_exponent = 0.0
        trial.fit(replace(data, matrix=train))
        factors = trial.fitted.item_table()
        scores = [_ndcg(trial, factors, warm, warm_test, train, k), _ndcg(trial, factors, cold, cold_test, None, k)]
        trials.append(StrengthTrial(strength, *scores))
    return sorted(trials, key=lambda t: -(t.warm ** (1 - cold_weight)) * t.cold**cold_weight)


@dataclass(frozen=True)
class PriorTrial:
    """What one pair of settings gave.

    Attributes
    ----------
    relative_strength : float
    cold : {"prior_mean", "regression"}
    warm_scores, cold_scores : tuple of float
        Of each split: NDCG@k of held-out entries of items that have others, ranked among all such items, and of items
        that lost all their entries, ranked among themselves.
    """

    relative_strength: float
    cold: str
    warm_scores: tuple[float, ...]
    cold_scores: tuple[float, ...]

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
class PriorChoice:
    """The answer of :func:`tune_prior`.

    Attributes
    ----------
    relative_strength : float
    cold : {"prior_mean", "regression"}
    trials : tuple of PriorTrial
        Best mean first. The choice need not be the first one: it takes a margin to leave what is recommended.
    """

    relative_strength: float
    cold: str
    trials: tuple[PriorTrial, ...]

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
        return prior.with_parameters(relative_strength=self.relative_strength, cold=self.cold)


def tune_prior(
    model: WALS,
    interactions: Any,
    relative_strengths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    splits: int = 3,
    cold_weight: float = 0.5,
    heldout: float = 0.1,
    k: int = 100,
    random_state: int = 0,
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
    tried = [number("each of relative_strengths", strength) for strength in relative_strengths]
    usual = 0.5 if prior.relative_strength is None else prior.relative_strength
    cold_weight = number("cold_weight", cold_weight, high=1)
    heldout = number("heldout", heldout, positive=True, below=1)
    splits, k = integer("splits", splits, 1), integer("k", k, 1)
    random_state = integer("random_state", random_state, 0)
    options: Mapping[str, Any] = columns
    data = as_interactions(interactions, dtype=model.dtype, **options)
    measured: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for seed in range(random_state, random_state + splits):
        rest, cold_test, cold = cold_items_split(data.matrix, heldout, seed)
        train, warm_test = random_holdout(rest, heldout, seed)
        warm = np.flatnonzero(np.bincount(train.indices, minlength=train.shape[1]))
        for strength in dict.fromkeys([usual, *tried]):
            trial = copy.copy(model)
            trial.compute_loss, trial.popularity_exponent = False, 0.0
            trial.item_prior = prior.with_parameters(relative_strength=strength, learn="none", cold="regression")
            trial.fit(replace(data, matrix=train))
            assert trial.item_prior_ is not None and trial.item_prior_.mean is not None
            assert trial.item_factors is not None
            of_warm = _ndcg(trial, trial.item_factors, warm, warm_test, train, k)
            for way, factors in (("regression", trial.item_factors), ("prior_mean", trial.item_prior_.mean)):
                of_cold = _ndcg(trial, factors, cold, cold_test, None, k)
                measured.setdefault((strength, way), []).append((of_warm, of_cold))
    trials = {key: PriorTrial(*key, *zip(*pairs, strict=True)) for key, pairs in measured.items()}
    scores = {key: trial.scores(cold_weight) for key, trial in trials.items()}
    own = usual, "regression" if prior.cold == "regression" else "prior_mean"
    start = scores[own]
    better = [key for key in scores if (scores[key] > start).all()]
    chosen = max(better, key=lambda key: float(scores[key].mean()), default=own)
    ordered = sorted(trials, key=lambda key: -float(scores[key].mean()))
    return PriorChoice(*chosen, tuple(trials[key] for key in ordered))


def _ndcg(
    trial: WALS,
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
    ids, _ = trial._backend.topk(trial.user_factors[users], factors, k, excluded)
    return float(ranking_metrics(ids, test[users], k)[f"ndcg@{k}"])
