"""The strength of an item prior, chosen by validation on items with and without interactions."""

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

if TYPE_CHECKING:
    from wals_gpu.model.wals import WALS

__all__ = ["StrengthTrial", "tune_strength"]


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
        scores = [_ndcg(trial, warm, warm_test, train, k), _ndcg(trial, cold, cold_test, None, k)]
        trials.append(StrengthTrial(strength, *scores))
    return sorted(trials, key=lambda t: -(t.warm ** (1 - cold_weight)) * t.cold**cold_weight)


def _ndcg(model: WALS, items: NDArray[np.integer], test: csr_matrix, seen: csr_matrix | None, k: int) -> float:
    """NDCG@k of some items ranked among themselves, over the users who have any of them in `test`."""
    assert model.user_factors is not None and model.item_factors is not None
    factors = np.ascontiguousarray(model.fitted.item_table()[items])
    k = min(k, len(items))
    test = test[:, items]
    users = np.flatnonzero(np.diff(test.indptr))
    excluded = None if seen is None else seen[users][:, items]
    ids, _ = model._backend.topk(model.user_factors[users], factors, k, excluded)
    return float(ranking_metrics(ids, test[users], k)[f"ndcg@{k}"])
