"""Rows of a fitted model that come and go: where they are then, and what else of the model goes by rows.

Functions of :class:`.fitted.Fitted` elsewhere in this package make another one with them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.training.fitted import Fitted

__all__ = ["Growth", "changeable", "ids_of_rows", "merged_ids", "prior_of_rows", "rows_replaced"]


@dataclass(frozen=True)
class Growth:
    """Where the rows of a side are once new ones are among them.

    Parameters
    ----------
    ids : Ids, optional
        Of all rows; None where they go by their numbers.
    old : (n_old,) int64
        Of the rows that were there.
    new : (n_new,) int64
    """

    ids: Ids | None
    old: NDArray[np.int64]
    new: NDArray[np.int64]

    @property
    def source(self) -> NDArray[np.int64]:
        """Where each row comes from, (n_old + n_new,): an old row, or -1 for a new one."""
        source = np.full(len(self.old) + len(self.new), -1)
        source[self.old] = np.arange(len(self.old))
        return source

    def spread(self, old: NDArray[Any], added: Any) -> NDArray[Any]:
        """An array with one entry for each old row, and `added` in the places of the new ones."""
        out = np.empty((len(self.old) + len(self.new), *old.shape[1:]), old.dtype)
        out[self.old] = old
        out[self.new] = added
        return out


def changeable(fitted: Fitted) -> BoundObjective:
    """The objective of the training data, of a model whose rows can be changed; ModelFitError says why not."""
    if fitted.bound is None:
        raise ModelFitError(
            "the factors were assigned, not learned: what is known of each row is not there, so call fit"
        )
    if isinstance(fitted.seen, StoredMatrix):
        raise ModelFitError(
            f"the training interactions are on disk, in {str(fitted.seen.path)!r}, and are not changed there: save the "
            "model and load it again, which has them in memory then"
        )
    return fitted.bound


def merged_ids(old: Ids | None, n_old: int, new: list[Any] | None, n_new: int, side: str) -> Growth:
    """The ids of a side with new ones among them, which must differ from them and from one another."""
    if old is None or new is None:
        return Growth(None, np.arange(n_old, dtype=np.int64), np.arange(n_old, n_old + n_new, dtype=np.int64))
    new = new if old.kind == "string" else [int(one) for one in new]
    if len(set(new)) < len(new):
        raise DataError(f"ids must be distinct, got the same id for several {side}s")
    return Growth(*old.insert(new))


def ids_of_rows(ids: Ids | None, rows: NDArray[np.integer]) -> Ids | None:
    """The ids of some rows in rising order."""
    return None if ids is None else ids.subset(rows)


def prior_of_rows(prior: FittedPrior | None, kept: NDArray[np.integer], ids: Ids | None, n: int) -> FittedPrior | None:
    """What a fit learned of a prior, without all that it has of the other rows; `ids` are those of all n rows."""
    if prior is None:
        return None
    shrunk = copy.copy(prior)
    shrunk.mean = None if prior.mean is None else prior.mean[kept]
    shrunk.prior = prior.prior.of_rows(kept, ids, n)
    return shrunk


def rows_replaced(
    seen: sparse.csr_matrix, growth: Growth, rows: NDArray[np.integer], matrix: sparse.csr_matrix
) -> sparse.csr_matrix:
    """Interactions with some rows, numbered as after the growth, as they are in `matrix` (n, I), others as they were.

    Stored zeros stay stored.
    """
    matrix = matrix.astype(seen.dtype)
    if seen.dtype == bool:
        matrix.data[:] = True
    place = np.full(len(growth.old) + len(growth.new), -1)
    place[growth.old] = np.arange(len(growth.old))
    place[rows] = len(growth.old) + np.arange(len(rows))
    return sparse.vstack([seen, matrix], "csr")[place]
