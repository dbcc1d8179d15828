"""A fitted model as vectors alone: whose dot products are its scores, for programs that know nothing else of it.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag, warn
from wals_gpu.data.ids import Ids
from wals_gpu.training.fitted import Fitted

__all__ = ["ScoreVectors", "score_vectors"]


@dataclass(frozen=True, eq=False)
class ScoreVectors:
    """What lists of :meth:`wals_gpu.WALS.recommend` can be made from, and nothing that a file would not need.

    Parameters
    ----------
    users : (U, D) array
    items : (I, D) array
        Times the multipliers of the model's popularity exponent: ``users @ items.T`` are the scores of `recommend`.
    user_ids, item_ids : Ids or None
        Of the rows; None where they go by their numbers.
    known : (U,) bool
        Who has learned factors. `recommend` gives all others what is popular.
    popularity : (I,) int64
        Training entries with a value above 0 of each item.
    seen : (U, I) csr_matrix or StoredMatrix
        The training interactions, of which `recommend` leaves every stored entry out.
    factors_only : bool
        Whether the model adds to its scores what no vectors can express, and these do without.
    """

    users: NDArray[np.floating]
    items: NDArray[np.floating]
    user_ids: Ids | None
    item_ids: Ids | None
    known: NDArray[np.bool_]
    popularity: NDArray[np.int64]
    seen: csr_matrix | Any
    factors_only: bool = False

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.items)

    @property
    def factors(self) -> int:
        """D."""
        return int(self.items.shape[1])

    def seen_by(self, part: slice) -> csr_matrix:
        """The training interactions of some users (R, I)."""
        return self.seen[np.arange(part.start, part.stop)]


def score_vectors(fitted: Fitted, *, factors_only: bool = False, has_neighbors: bool = False) -> ScoreVectors:
    """The vectors of a fitted model.

    Parameters
    ----------
    fitted : Fitted
    factors_only : bool, default False
        Leave out what is no dot product, with a warning, where the model has it.
    has_neighbors : bool, default False
        Whether the caller knows what to do about neighbours of items, so that they are nothing left out.

    Returns
    -------
    ScoreVectors

    Raises
    ------
    ValueError
        The scores are not dot products alone, and `factors_only` is False.
    ModelFitError
        The model knows no interactions: its factors were assigned.
    """
    factors_only = flag("factors_only", factors_only)
    left_out = fitted.neighbors is not None and not has_neighbors
    if left_out:
        text = "the model adds to its scores what items say of their neighbours (neighbors=), which is no dot product"
        if not factors_only:
            raise ValueError(f"{text}: factors_only=True takes the factors alone, whose lists are others")
        warn(f"{text} and is left out: lists are not those of recommend")
    popularity = fitted.popularity()  # knows whether there are interactions
    everybody = np.arange(fitted.n_users)
    known = np.ones(fitted.n_users, bool) if fitted.user_prior is not None else fitted.has_history(everybody)
    return ScoreVectors(
        fitted.user_factors,
        fitted.item_table(),
        fitted.user_ids,
        fitted.item_ids,
        known,
        popularity,
        fitted.seen,
        left_out,
    )
