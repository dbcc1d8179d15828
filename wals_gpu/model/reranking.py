"""What the options of ``recommend`` say about re-ranking, checked, with what a fit learned; see docs/reranking.md."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import number
from wals_gpu.data.categories import Categories
from wals_gpu.errors import ModelFitError
from wals_gpu.retrieval.quotas import Quotas
from wals_gpu.retrieval.rerank import DPP, MMR, Reranking
from wals_gpu.training.fitted import Fitted

__all__ = ["make_reranking"]


def make_reranking(
    fitted: Fitted,
    diversity: float | MMR | DPP = 0.0,
    quotas: Any = None,
    categories: Any = None,
    category_column: str | None = None,
    popularity_penalty: float = 0.0,
) -> Reranking | None:
    """The object that the options of ``recommend`` stand for; None leaves lists in the order of their scores.

    Raises
    ------
    TypeError, ValueError
        An option of a wrong kind or value, or one that has no meaning beside the others.
    DataError
        Categories that cannot be read.
    ModelFitError
        Vectors or interactions are asked for that the model does not have.
    """
    chosen: MMR | DPP | None
    if isinstance(diversity, (MMR, DPP)):
        chosen = diversity
    elif isinstance(diversity, numbers.Real):
        chosen = MMR(number("diversity", diversity, 0, 1))
    else:
        raise TypeError(f"diversity must be a number from 0 to 1, or an MMR or DPP, got {diversity!r:.60}")
    bounds = None
    if quotas is not None:
        if categories is None:
            raise ValueError(
                "quotas need categories=: a label for each item, a mapping of item id to label, or a table"
            )
        known = Categories.read(categories, fitted.n_items, fitted.item_ids, category_column)
        bounds = Quotas.of(quotas, known)
    elif categories is not None or category_column is not None:
        name = "categories" if categories is not None else "category_column"
        raise ValueError(f"{name} has a meaning only with quotas=")
    penalty = number("popularity_penalty", popularity_penalty)
    popularity = fitted.popularity() if penalty else None
    if chosen.weight == 0:
        chosen = None
    if chosen is None and bounds is None and popularity is None:
        return None
    vectors = None if chosen is None else _vectors(fitted, chosen.by)
    return Reranking(chosen, vectors, bounds, penalty, popularity)


def _vectors(fitted: Fitted, by: Any) -> NDArray[Any]:
    """What items are compared by, (I, E)."""
    if isinstance(by, str) and by == "factors":
        return fitted.item_factors
    if isinstance(by, str):
        if fitted.item_prior is None or fitted.item_prior.mean is None:
            raise ModelFitError("by='prior' needs a model with an item_prior: this one knows no features of its items")
        return fitted.item_prior.mean
    if len(by) != fitted.n_items:
        raise ValueError(f"by must have a row for each of the model's {fitted.n_items} items, got shape {by.shape}")
    vectors: NDArray[np.floating] = by
    return vectors
