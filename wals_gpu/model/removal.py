"""Users and items that leave a fitted model, with all that it has of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.checks import refuse_zeros_and_ones
from wals_gpu.data.ids import Ids, row_numbers
from wals_gpu.errors import ModelFitError
from wals_gpu.model.rows import changeable, ids_of_rows, prior_of_rows
from wals_gpu.training.fitted import Fitted

__all__ = ["remove_items", "remove_users", "with_users", "without_users"]


def remove_users(fitted: Fitted, users: ArrayLike, unknown: str) -> tuple[Fitted, NDArray[Any]]:
    """Without some users; and the ids, or former row numbers, of those who were there."""
    changeable(fitted)
    n, ids = fitted.n_users, fitted.user_ids
    gone = _rows(users, ids, n, "user", unknown)
    changed = _of_users(fitted, np.delete(np.arange(n), gone))
    return changed, gone if ids is None else ids.take(gone)


def remove_items(fitted: Fitted, items: ArrayLike, unknown: str) -> tuple[Fitted, NDArray[Any]]:
    """Without some items; and the ids, or former column numbers, of those that were there."""
    bound, n, ids = changeable(fitted), fitted.n_items, fitted.item_ids
    gone = _rows(items, ids, n, "item", unknown)
    kept = np.delete(np.arange(n), gone)
    factors = fitted.item_factors[kept]
    factors.flags.writeable = False  # answers may keep what they computed from it
    objective = bound.objective.of_rows((bound.n_users, bound.n_items), items=kept)
    calibration = fitted.calibration
    changed = replace(
        fitted,
        item_factors=factors,
        item_ids=ids_of_rows(ids, kept),
        bound=replace(bound.of_items(kept), objective=objective),
        seen=None if fitted.seen is None else fitted.seen[:, kept],
        item_prior=prior_of_rows(fitted.item_prior, kept, ids, n),
        calibration=None if calibration is None else calibration.with_counts(calibration.counts[kept]),
        neighbors=None if fitted.neighbors is None else fitted.neighbors.of_items(kept),
        counts=None if fitted.counts is None else fitted.counts[kept],
    )
    return changed, gone if ids is None else ids.take(gone)


def without_users(fitted: Fitted) -> Fitted:
    """Without any user: what is left answers for users that are given by their interactions.

    Raises
    ------
    ModelFitError
        The model has a user prior, whose features are of people; or its interactions are on disk, or not there.
    """
    if fitted.user_prior is not None:
        raise ModelFitError("a model with a user prior cannot be had without its users: the prior is made of them")
    return replace(_of_users(fitted, np.arange(0)), counts=fitted.popularity())


def with_users(fitted: Fitted, kept: NDArray[np.int64]) -> Fitted:
    """With some users alone, by row number in rising order, and the popularity of items that all of them made."""
    changed = _of_users(fitted, kept)
    return changed if fitted.seen is None and fitted.counts is None else replace(changed, counts=fitted.popularity())


def _of_users(fitted: Fitted, kept: NDArray[np.int64]) -> Fitted:
    """With some users alone, as far as it is about users: `counts` stays what it is."""
    bound, ids = changeable(fitted), fitted.user_ids
    objective = bound.objective.of_rows((bound.n_users, bound.n_items), users=kept)
    factors = fitted.user_factors[kept]
    factors.flags.writeable = False  # answers may keep what they computed from it
    return replace(
        fitted,
        user_factors=factors,
        user_ids=ids_of_rows(ids, kept),
        bound=replace(bound.of_users(kept), objective=objective),
        seen=None if fitted.seen is None else fitted.seen[kept],
        user_prior=prior_of_rows(fitted.user_prior, kept, ids, fitted.n_users),
    )


def _rows(queries: ArrayLike, ids: Ids | None, n: int, side: str, unknown: str) -> NDArray[np.int64]:
    """Row numbers to remove, each once, in rising order."""
    if unknown not in ("error", "skip"):
        raise ValueError(f"unknown must be 'error' or 'skip', got {unknown!r}")
    refuse_zeros_and_ones(f"{side}s", queries, n, side)
    if unknown == "skip":
        if ids is not None:
            found = np.ravel(ids.find(queries))
        else:
            found = np.ravel(np.asarray(queries))
            if found.size and found.dtype.kind not in "iu":
                raise TypeError(f"{side}s must be row numbers (integers), got {found.dtype}")
        rows = found[(found >= 0) & (found < n)]
    else:
        rows, _ = row_numbers(queries, ids, n, side)
    rows = np.unique(rows).astype(np.int64)
    if len(rows) == n:
        raise ValueError(f"{side}s must leave at least one of the {n} {side}s: a model without any answers nothing")
    return rows
