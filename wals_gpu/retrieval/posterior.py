"""What a row's own system tells beside its solution: how certain its scores are, and what each of its entries adds.

The loss of a row, everything else fixed, is ``(x - m)' A (x - m)`` and a constant, with A of :class:`.RowTerms`. Read
as a Gaussian likelihood in which an observation of confidence c has variance ``noise^2 / c`` and the ridge is a prior
of variance ``noise^2 / ridge``, that is the posterior ``x ~ N(m, noise^2 A^-1)``: the score of an item y has the
variance ``noise^2 y' A^-1 y``. Directions that the row's entries say little about are uncertain, and the more so the
smaller the background and the ridge. Upper confidence bounds on it are LinUCB (Li et al., WWW 2010), draws from it
Thompson sampling for linear bandits (Agrawal and Goyal, ICML 2013).

Shapes: R rows, n items, D factors. Everything is float64: the systems may be badly conditioned.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.backends.host import Spectrum
from wals_gpu.errors import SingularSystemError
from wals_gpu.objective.terms import RowSystem, RowTerms

__all__ = ["Posterior", "squares_along", "variances_by"]

#: Items whose variances are computed at a time: 8 MiB at 128 factors.
ITEMS = 8192


def variances_by(factor: NDArray[np.float64], items: NDArray[np.floating]) -> NDArray[np.float64]:
    """``y' A^-1 y`` of each of the items (n, D), with ``A = L L'`` for the factor L."""
    out = np.empty(len(items))
    for start in range(0, len(items), ITEMS):
        part = slice(start, start + ITEMS)
        out[part] = (solve_triangular(factor, items[part].T, lower=True, check_finite=False) ** 2).sum(axis=0)
    return out


def squares_along(items: NDArray[np.floating], vectors: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Squared coordinates of items (n, D) along orthonormal vectors (D, D) in columns, or as they are, rounded up.

    What rounding may have taken of a coordinate is a part of the item's length, and is added.
    """
    squares = np.empty(items.shape, np.float32)
    lost = 4 * items.shape[1] * np.finfo(np.float64).eps
    for start in range(0, len(items), ITEMS):
        vector = items[start : start + ITEMS].astype(np.float64)
        along = np.abs(vector if vectors is None else vector @ vectors)
        along += lost * np.linalg.norm(vector, axis=1, keepdims=True)
        with np.errstate(over="ignore"):
            squares[start : start + ITEMS] = np.nextafter((along**2).astype(np.float32), np.float32(np.inf))
    return squares


class Posterior:
    """Posterior covariances of rows.

    Parameters
    ----------
    terms : RowTerms
        R rows.
    other : (n_other, D)
        Factors of the other side.
    spectrum : Spectrum
        ``backend.spectrum(terms, other)``.
    name_of : callable
        Name of a row, for errors.
    prior : (R, D), optional
        Prior means of the rows.
    """

    def __init__(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        spectrum: Spectrum,
        name_of: Callable[[int], str],
        prior: NDArray[np.floating] | None = None,
    ) -> None:
        self.terms = terms
        self.other = other
        self.prior = prior
        self._name_of = name_of
        values, vectors = spectrum
        self.eigenvalues, self.eigenvectors = values, vectors
        with one_blas_thread():  # others would wait for each other longer than this takes
            self._gram = np.diag(values) if vectors is None else (vectors * values) @ vectors.T
        self._background = np.broadcast_to(terms.background, terms.n_rows)
        self._ridge = np.broadcast_to(terms.ridge, terms.n_rows)

    def factor(self, row: int) -> NDArray[np.float64]:
        """L (D, D), lower, with ``A = L L'``.

        Raises
        ------
        SingularSystemError
            A is not positive definite: the row leaves some direction free, whose variance has no bound.
        """
        return self._factor(row, self._system(row))

    def _system(self, row: int) -> RowSystem:
        return self.terms.system(row, self.other, self._background[row] * self._gram)

    def _factor(self, row: int, system: RowSystem) -> NDArray[np.float64]:
        try:
            factor: NDArray[np.float64] = cholesky(system.matrix, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            remedy = "its scores have no finite variance: increase the regularization"
            raise SingularSystemError(row, remedy, self._name_of(row)) from None
        return factor

    def draw(self, row: int, noise: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """A draw (D,) from N(0, noise^2 A^-1)."""
        standard = rng.standard_normal(self.other.shape[1])
        drawn: NDArray[np.float64] = solve_triangular(
            self.factor(row), standard, trans="T", lower=True, check_finite=False
        )
        return noise * drawn

    def variances(self, row: int, items: NDArray[np.floating]) -> NDArray[np.float64]:
        """``y' A^-1 y`` of each of the items (n, D), as the squared length of ``L^-1 y``: never below 0."""
        return variances_by(self.factor(row), items)

    def variances_at_most(self, rows: slice, squares: NDArray[np.float32]) -> NDArray[np.float32]:
        """No less than :meth:`variances`, of some rows and items, in D multiplications for each pair.

        A is ``B = g G + lambda`` and something of each entry. Where no entry counts against (a Gram coefficient below
        0), A is no less than B and ``y' A^-1 y <= y' B^-1 y``, which is a dot product in the eigenvectors of G.

        Parameters
        ----------
        rows : slice
        squares : (n, D)
            :func:`squares_along` of the items and the `eigenvectors`.

        Returns
        -------
        (rows, n) array of float32
            inf where B says nothing.
        """
        values, d = self.eigenvalues, len(self.eigenvalues)
        ptr, gram = self.terms.row_ptr, self.terms.gram_values()
        adds = np.array([(gram[ptr[row] : ptr[row + 1]] >= 0).all() for row in range(rows.start, rows.stop)], bool)
        base = np.multiply.outer(self._background[rows].astype(np.float64), values) + self._ridge[rows, None]
        base -= 4 * d * np.finfo(np.float64).eps * np.abs(base).max(axis=1, keepdims=True)  # what A may have lost
        tells = (base > 0).all(axis=1) & adds
        weights = np.divide(1.0, base, out=np.ones_like(base), where=tells[:, None])
        with np.errstate(over="ignore"):
            upward = np.nextafter(weights.astype(np.float32), np.float32(np.inf))
            most: NDArray[np.float32] = upward @ squares.T
            most *= 1 + (d + 16) * np.finfo(np.float32).eps  # of the sum, and of what is made of it
        most[~tells] = np.inf
        return most

    def contributions(
        self, row: int, item: NDArray[np.floating]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], float]:
        """What each entry of a row adds to ``y' A^-1 b``, the score of the item y (D,) with exactly solved factors.

        ``b`` is a sum over the entries and the prior, and so is the score (Hu, Koren, Volinsky 2008, section 5).

        Returns
        -------
        columns : (n,) int32
            The row's entries.
        contributions : (n,)
        from_prior : float
        """
        if self.terms.row_ptr[row] == self.terms.row_ptr[row + 1] and (self.prior is None or not self._ridge[row]):
            return np.empty(0, np.int32), np.empty(0), 0.0  # b is 0, and A may be 0 as well: a ridge for each entry
        system = self._system(row)
        weighted = cho_solve((self._factor(row, system), True), item.astype(np.float64), check_finite=False)
        from_prior = 0.0 if self.prior is None else float(self._ridge[row] * (self.prior[row] @ weighted))
        contributions = self.terms.rhs_values()[system.entries] * (system.factors @ weighted)
        return self.terms.col_idx[system.entries], contributions, from_prior
