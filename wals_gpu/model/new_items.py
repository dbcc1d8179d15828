"""Items that come after the fit: from their text or embedding at once, and from interactions as these arrive."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from wals_gpu.backends.session import Backend
from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.priors.linear import COLD_MODES, FittedPrior

__all__ = ["NewItems"]


class NewItems:
    """New items of :class:`wals_gpu.WALS`, which provides the attributes below."""

    factors: int
    dtype: np.dtype
    user_factors: NDArray[np.floating] | None
    item_factors: NDArray[np.floating] | None
    user_ids: Ids | None
    item_ids: Ids | None
    item_prior_: FittedPrior | None
    _backend: Backend
    _bound: BoundObjective | None
    _seen: sparse.csr_matrix | None
    _fitted: Callable[[], tuple[NDArray[np.floating], NDArray[np.floating]]]

    def project_items(self, items: Any) -> NDArray[np.floating]:
        """Prior means of items from their texts or embeddings, to be handed to :meth:`search`, for example.

        Parameters
        ----------
        items : list of n str or None, or (n, E) array
            Texts need a model whose prior has its encoder: see :class:`.LinearPrior`.

        Returns
        -------
        (n, D) array
        """
        self._fitted()
        if self.item_prior_ is None:
            raise ModelFitError("the model has no item_prior, so it knows items by their interactions only")
        if isinstance(items, str):
            raise TypeError("items must be a list of texts or an array (n, E), got a str: put it into a list")
        is_texts = isinstance(items, Sequence) and all(item is None or isinstance(item, str) for item in items)
        embeddings = self.item_prior_.encode(items) if is_texts else items
        return self.item_prior_.project(embeddings, self.dtype)

    def add_items(self, items: Any, ids: ArrayLike | None = None, *, mode: str | None = None) -> NDArray[Any]:
        """Take in items that have no interactions yet; they are recommended from now on.

        Parameters
        ----------
        items : list of n str or None, or (n, E) array
            Texts, or embeddings, as for :meth:`project_items`.
        ids : (n,) list or array of ids
            Of the items, none of them known yet. Not where the model was fitted on a matrix: the new items are then its
            next columns.
        mode : {"prior_mean", "map"}, optional
            Factor of an item: its prior mean, or the solution of its row as one that everybody could have met and
            nobody has. Default: as the prior's `cold`.

        Returns
        -------
        (n,) array
            Ids, or column numbers, in the order of `items`. With ids, the row numbers of other items may change: rows
            are in the order of the ids.

        Raises
        ------
        DataError, TypeError, ValueError
            Lengths or kinds that do not fit, ids that are repeated or known; the model is left as it was.
        ModelFitError
            The model is not fitted, or has no item_prior.
        """
        _, item_factors = self._fitted()
        mean = self.project_items(items)
        prior, bound = self.item_prior_, self._bound
        assert prior is not None and prior.mean is not None and bound is not None
        mode = prior.prior.cold if mode is None else mode
        if mode not in COLD_MODES:
            raise ValueError(f"mode must be one of {', '.join(COLD_MODES)}; got {mode!r}")
        n, n_old = len(mean), len(item_factors)
        merged, row = self._merged_ids(ids, n)

        # Where each new row comes from: an old one, or -1 for a new item.
        source = np.full(n_old + n, -1)
        source[row[:n_old]] = np.arange(n_old)
        grown = bound.of_items(source)
        new_rows = row[n_old:]
        if mode == "prior_mean":
            unmet = np.zeros(len(source), np.bool_)
            unmet[new_rows] = True
            grown = grown.without_background(items=unmet)
            new = mean
        else:
            nothing = sparse.csr_matrix((n, bound.n_users), dtype=self.dtype)
            new = self._solve_items(grown, nothing, new_rows, mean, np.full(n, -1))

        def spread(old: NDArray[Any], added: NDArray[Any]) -> NDArray[Any]:
            out = np.empty((len(source), *old.shape[1:]), old.dtype)
            out[row[:n_old]] = old
            out[new_rows] = added
            return out

        self._put_items(spread(item_factors, new))
        prior.mean = spread(prior.mean, mean)
        if isinstance(prior.prior.strength, np.ndarray):
            prior.prior.strength = spread(prior.prior.strength, prior.prior.strength.mean())
        if self._seen is not None:
            columns = row[:n_old].astype(self._seen.indices.dtype)[self._seen.indices]
            shape = (self._seen.shape[0], n_old + n)
            self._seen = sparse.csr_matrix((self._seen.data, columns, self._seen.indptr), shape=shape)
        self._bound, self.item_ids = grown, merged
        return new_rows if merged is None else merged.take(new_rows)

    def update_items(self, interactions: Any, *, exposure: float | None = None, **columns: Any) -> NDArray[Any]:
        """Factors of some items from their interactions, everything else as it is.

        Parameters
        ----------
        interactions : matrix (U, I), or a table with ids that the model knows
            All that is known of the items that occur in it, not only what is new; other items stay as they are.
        exposure : float from 0 to 1, optional
            How far users without an interaction count as users who did not want the item: the share of the objective's
            weight of unobserved pairs. Default: as it is, which is 1 for an item of the fit, or added with mode "map",
            and 0 for one added as its prior mean, which hardly anybody can have met yet.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table.

        Returns
        -------
        (n,) array
            Ids, or column numbers, of the items that have new factors.

        Raises
        ------
        DataError, KeyError, TypeError, ValueError
            Input that cannot be used, or users or items that the model does not know; the model is left as it was.
        """
        user_factors, item_factors = self._fitted()
        number = isinstance(exposure, numbers.Real) and not isinstance(exposure, bool)
        if exposure is not None and not (number and math.isfinite(exposure) and 0 <= exposure <= 1):
            raise ValueError(f"exposure must be a number from 0 to 1, got {exposure!r}")
        if isinstance(interactions, Interactions) and interactions.item_ids is None:
            interactions = interactions.matrix
        if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
            matrix = as_csr(interactions, dtype=self.dtype, n_columns=len(item_factors))
            if matrix.shape[0] != len(user_factors):
                raise DataError(f"interactions must have {len(user_factors)} rows, one per user; got {matrix.shape}")
        elif self.user_ids is None or self.item_ids is None:
            raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no ids")
        else:
            known: dict[str, Any] = {"user_ids": self.user_ids, "item_ids": self.item_ids}
            matrix = as_interactions(interactions, dtype=self.dtype, **known, **columns).matrix
        of_items = self._backend.transpose(matrix)
        rows = np.flatnonzero(np.diff(of_items.indptr))
        assert self._bound is not None
        bound = self._bound if exposure is None else self._bound.met(rows, float(exposure))
        mean = None
        if self.item_prior_ is not None and self.item_prior_.mean is not None:
            mean = self.item_prior_.mean[rows]
        changed = item_factors.copy()
        changed[rows] = self._solve_items(bound, of_items[rows], rows, mean, rows)
        if self._seen is not None:
            self._seen = _replace_columns(self._seen, rows, matrix)
        self._put_items(changed)
        self._bound = bound
        return rows if self.item_ids is None else self.item_ids.take(rows)

    def _solve_items(
        self,
        bound: BoundObjective,
        of_items: sparse.csr_matrix,
        rows: NDArray[np.integer],
        mean: NDArray[np.floating] | None,
        fitted_rows: NDArray[np.integer],
    ) -> NDArray[np.floating]:
        """Exact factors of items from their interactions (n, U) and prior means."""
        user_factors, _ = self._fitted()
        terms = bound.of_items(rows).item_terms(of_items)
        if mean is not None and self.item_prior_ is not None:
            terms, mean = self.item_prior_.pulled(terms, mean, fitted_rows)
        factors = np.zeros((len(rows), self.factors), self.dtype)
        self._backend.solve_rows(terms, user_factors, factors, prior=mean)
        return factors

    def _merged_ids(self, ids: ArrayLike | None, n: int) -> tuple[Ids | None, NDArray[np.int64]]:
        """The ids with `n` more, and the row of each: of the old ones in order, then of the new ones."""
        _, item_factors = self._fitted()
        if self.item_ids is None:
            if ids is not None:
                raise TypeError(
                    "ids must not be given: the model was fitted on a matrix, new items are its next columns"
                )
            return None, np.arange(len(item_factors) + n)
        if ids is None:
            raise TypeError("ids must be given, one for each new item: the model knows its items by ids")
        new: list[Any] = list(ids)  # type: ignore[arg-type]  # what is no iterable says so itself
        if len(new) != n:
            raise DataError(f"ids must have one id for each of {n} items, got {len(new)}")
        known = np.flatnonzero(np.asarray(self.item_ids.find(new)) >= 0).tolist() if n else []
        if known:
            raise DataError(f"ids must be new, but the model knows {len(known)} of them, such as {new[known[0]]!r}")
        old = self.item_ids.ids
        text = self.item_ids.kind == "string"
        merged, row = Ids.encode(pa.array([*old, *new], type=pa.large_string()) if text else _joined(old, new), "item")
        if len(merged) < len(old) + n:
            raise DataError("ids must be distinct, got the same id for several items")
        return merged, row.astype(np.int64)

    def _put_items(self, factors: NDArray[np.floating]) -> None:
        factors.flags.writeable = False  # answers may keep what they computed from it
        self.item_factors = factors


def _replace_columns(
    seen: sparse.csr_matrix, columns: NDArray[np.integer], matrix: sparse.csr_matrix
) -> sparse.csr_matrix:
    """`seen` with some columns as they are in `matrix`, which has no others; stored zeros stay stored."""
    kept = np.isin(seen.indices, columns, invert=True)
    row_of = [np.repeat(np.arange(m.shape[0]), np.diff(m.indptr)) for m in (seen, matrix)]
    row = np.concatenate([row_of[0][kept], row_of[1]])
    column = np.concatenate([seen.indices[kept], matrix.indices])
    data = np.concatenate([seen.data[kept], matrix.data.astype(seen.dtype)])
    if seen.dtype == bool:
        data[:] = True
    return sparse.csr_matrix((data, (row, column)), shape=seen.shape)


def _joined(old: NDArray[np.integer], new: list[Any]) -> pa.Array:
    return pa.array([*old.tolist(), *(int(one) for one in new)])
