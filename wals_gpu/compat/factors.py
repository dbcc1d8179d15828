"""A model's factors: their norms and Gram matrices as implicit caches them, and rows of new data.

Shapes: U users, I items, D factors, B rows of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.checks import refuse_masked
from wals_gpu.compat.rows import csr, implicits_words, row_terms, solve
from wals_gpu.objective.terms import RowTerms

__all__ = ["Factors", "KnownSpectrum"]


class KnownSpectrum(NamedTuple):
    """The factors and Gram matrix of a side, these factors in the model's type, and their spectrum."""

    factors: NDArray[np.floating]
    gram: NDArray[np.floating]
    table: NDArray[np.floating]
    spectrum: Spectrum


class Factors:
    """What :class:`wals_gpu.als.CpuAlternatingLeastSquares` has and computes of its factors.

    Attributes
    ----------
    user_factors : (U, D) array or None
    item_factors : (I, D) array or None
    """

    user_factors: NDArray[np.floating] | None
    item_factors: NDArray[np.floating] | None
    regularization: float
    alpha: float
    dtype: np.dtype
    strict_compat = False  # for instances unpickled from implicit's own class
    # Caches under implicit's names: programs reset them after they change the factors.
    _user_norms: NDArray[np.floating] | None
    _item_norms: NDArray[np.floating] | None
    _XtX: NDArray[np.floating] | None
    _YtY: NDArray[np.floating] | None
    _user_spectrum: KnownSpectrum | None = None
    _item_spectrum: KnownSpectrum | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without spectra, which are computed again: a pickle names the model's class and NumPy's, no inner one."""
        spectra = vars(self).keys() & {"_user_spectrum", "_item_spectrum"}
        return vars(self) | dict.fromkeys(spectra)

    @property
    def _backend(self) -> Backend:
        raise NotImplementedError  # the model knows its device

    def _fitted(self, side: str) -> NDArray[np.floating]:
        factors = self.user_factors if side == "user" else self.item_factors
        if factors is None:
            raise TypeError(f"{side}_factors is None: fit the model first")
        return factors

    @property
    def user_norms(self) -> NDArray[np.floating]:
        """Norms of the user factors (U,), 1e-10 in place of 0; cached."""
        if self._user_norms is None:
            self._user_norms = _norms(self._fitted("user"))
        return self._user_norms

    @property
    def item_norms(self) -> NDArray[np.floating]:
        """Norms of the item factors (I,), 1e-10 in place of 0; cached."""
        if self._item_norms is None:
            self._item_norms = _norms(self._fitted("item"))
        return self._item_norms

    @property
    def XtX(self) -> NDArray[np.floating]:
        """Gram matrix (D, D) of the user factors; cached."""
        if self._XtX is None:
            users = self._fitted("user")
            self._XtX = users.T @ users
        return self._XtX

    @property
    def YtY(self) -> NDArray[np.floating]:
        """Gram matrix (D, D) of the item factors; cached."""
        if self._YtY is None:
            items = self._fitted("item")
            self._YtY = items.T @ items
        return self._YtY

    def _index(self, ids: ArrayLike, n: int, name: str) -> NDArray[np.integer]:
        """Ids as row numbers in [0, n)."""
        refuse_masked(name, ids)
        index = np.asarray(ids)
        if not index.size:
            return index.astype(np.intp)
        if index.dtype.kind not in "iu":
            raise IndexError(f"{name} must be integers, got {index.dtype}")
        lowest = -n if self.strict_compat else 0
        if index.min() < lowest or index.max() >= n:
            bad = index[(index < lowest) | (index >= n)].flat[0]
            raise IndexError(f"{name} must be in [{lowest}, {n}), got {bad}")
        rows = index.astype(np.intp, copy=False)
        return rows % n if lowest else rows

    def _terms(self, matrix: csr_matrix, side: str) -> RowTerms:
        return row_terms(matrix, side, self.dtype, self.alpha, self.regularization)

    # ------------------------------------------------------------------------------------------------ new data

    def recalculate_user(self, userid: ArrayLike, user_items: csr_matrix) -> NDArray[np.floating]:
        """Exact factors of users from their rows, without storing them.

        Parameters
        ----------
        userid : int or (B,) array of int
            Only its length matters.
        user_items : (B, I) csr_matrix
            All that is known of each user, not only what is new.

        Returns
        -------
        (D,) for one id, else (B, D)

        Raises
        ------
        ValueError
            Another number of rows than ids, or an item that the model does not know.
        SingularSystemError
            A row has no unique solution.
        """
        return self._recalculate(userid, user_items, "user")

    def recalculate_item(self, itemid: ArrayLike, item_users: csr_matrix) -> NDArray[np.floating]:
        """Exact factors of items from their rows, without storing them.

        Parameters
        ----------
        itemid : int or (B,) array of int
            Only its length matters.
        item_users : (B, U) csr_matrix
            All that is known of each item, not only what is new.

        Returns
        -------
        (D,) for one id, else (B, D)

        Raises
        ------
        ValueError
            Another number of rows than ids, or a user that the model does not know.
        SingularSystemError
            A row has no unique solution.
        """
        return self._recalculate(itemid, item_users, "item")

    def partial_fit_users(self, userids: ArrayLike, user_items: csr_matrix) -> None:
        """Recalculate users and store their factors; new ids make the model larger, rows between them are zero.

        Parameters
        ----------
        userids : (B,) array of int
        user_items : (B, I) csr_matrix
            All that is known of each user, not only what is new.

        Raises
        ------
        IndexError
            A negative id.
        ValueError
            As :meth:`recalculate_user`, and no ids.
        """
        if np.size(userids) != user_items.shape[0]:
            raise ValueError("user_items must contain 1 row for every user in userids")
        self.user_factors = self._with_rows(userids, user_items, "user")
        self._user_norms = self._XtX = None

    def partial_fit_items(self, itemids: ArrayLike, item_users: csr_matrix) -> None:
        """Recalculate items and store their factors; new ids make the model larger, rows between them are zero.

        Parameters
        ----------
        itemids : (B,) array of int
        item_users : (B, U) csr_matrix
            All that is known of each item, not only what is new.

        Raises
        ------
        IndexError
            A negative id.
        ValueError
            As :meth:`recalculate_item`, and no ids.
        """
        if np.size(itemids) != item_users.shape[0]:
            raise ValueError("item_users must contain 1 row for every user in itemids")
        self.item_factors = self._with_rows(itemids, item_users, "item")
        self._item_norms = self._YtY = None

    def _with_rows(self, ids: ArrayLike, matrix: csr_matrix, side: str) -> NDArray[np.floating]:
        """Factors of a side, grown by zero rows as far as needed, with recalculated rows at `ids`."""
        factors, index = self._fitted(side), np.asarray(ids)
        if not index.size:
            raise ValueError(f"{side}ids must hold at least one id")
        if index.dtype.kind not in "iu":
            raise IndexError(f"{side}ids must be integers, got {index.dtype}")
        if index.min() < 0:
            raise IndexError(f"{side}ids must be >= 0, got {index.min()}")
        new = self._recalculate(ids, matrix, side)
        missing = int(index.max()) + 1 - len(factors)
        if missing > 0:
            factors = np.concatenate([factors, np.zeros((missing, factors.shape[1]), factors.dtype)])
        factors[index] = new
        return factors

    def _recalculate(self, ids: ArrayLike, matrix: csr_matrix, side: str) -> NDArray[np.floating]:
        name, other_side = ("user_items", "item") if side == "user" else ("item_users", "user")
        rows = np.size(ids)
        if matrix.shape[0] != rows:
            raise ValueError(
                f"{name} should have one row for every item in {side}: got {matrix.shape[0]} rows for {rows} ids"
            )
        other = self._fitted(other_side)
        terms = self._terms(csr(matrix, name, len(other)), side)
        factors = np.zeros((rows, other.shape[1]), self.dtype)
        table, spectrum = self._spectrum(other_side, terms)
        solve(self._backend, terms, table, factors, side, None, spectrum)
        return factors[0] if np.isscalar(ids) else factors

    def _spectrum(self, side: str, terms: RowTerms) -> tuple[NDArray[np.floating], Spectrum]:
        """Factors of a side in the model's type, and their spectrum, kept from an earlier call while that is true.

        Whoever changes factors in place resets `_XtX` and `_YtY`, as for implicit; new arrays are noticed.
        """
        factors, gram = self._fitted(side), self.XtX if side == "user" else self.YtY
        cache = getattr(self, f"_{side}_spectrum")
        if cache is None or cache.factors is not factors or cache.gram is not gram or cache.table.dtype != self.dtype:
            table = np.ascontiguousarray(factors, self.dtype)
            with implicits_words(side):
                cache = KnownSpectrum(factors, gram, table, self._backend.spectrum(terms, table))
            setattr(self, f"_{side}_spectrum", cache)
        return cache.table, cache.spectrum


def _norms(factors: NDArray[np.floating]) -> NDArray[np.floating]:
    norms: NDArray[np.floating] = np.linalg.norm(factors, axis=-1)
    norms[norms == 0] = 1e-10
    return norms
