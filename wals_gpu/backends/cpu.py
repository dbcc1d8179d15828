"""The CPU backend: NumPy arrays in and out, native kernels in between."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu import _cpu
from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.backends.host import Spectrum
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.terms import RowTerms

if TYPE_CHECKING:
    from wals_gpu.data.stored import StoredTerms

__all__ = ["CpuBackend", "available_threads"]

_REMEDY = "scale the values down, increase the regularization, or use dtype='float64'"


def available_threads() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuBackend:
    """Row solves, loss, top-k and transposition on the CPU.

    Parameters
    ----------
    num_threads : int, default 0
        0: one for each processor that this process may use. Results do not depend on it.
    """

    name = "cpu"

    def __init__(self, num_threads: int = 0) -> None:
        self.num_threads = num_threads or available_threads()

    def solve_rows(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        factors: NDArray[np.floating],
        *,
        prior: NDArray[np.floating] | None = None,
        solver: str = "cholesky",
        cg_steps: int = 3,
        cg_tolerance: float = 0.0,
        block_size: int = 64,
        relaxation: float = 1.0,
        return_loss: bool = False,
        basis: NDArray[np.float64] | None = None,
        spectrum: Spectrum | None = None,
    ) -> float | None:
        """Solve every row of `terms` into `factors`, see :func:`wals_gpu.reference.solve_rows`.

        Parameters
        ----------
        terms : RowTerms
            R rows, in the dtype of the factors.
        other : (n_other, D)
            Factors of the other side, C-ordered float32 or float64.
        factors : (R, D)
            Written; iterative solvers start from it. Rows that could not be solved are left as they were.
        prior : (R, D), optional
            Prior means.
        solver : {"cholesky", "cg", "subspace"}
            Exact; conjugate gradients; one pass of exact steps over blocks of coordinates (iALS++).
        cg_steps : int, default 3
            Steps of "cg" at most.
        cg_tolerance : float, default 0
            "cg" ends early when the preconditioned residual has fallen to this part of its first norm.
        block_size : int, default 64
            Coordinates of a block of "subspace", a multiple of 16.
        relaxation : float, default 1
            Rows with entries go this many times the way from where they are to what the solver gives ("subspace": block
            by block), see :func:`wals_gpu.reference.relax`; above 0 and below 2.
        return_loss : bool, default False
            Also evaluate the loss of the rows, while what it needs is in the cache.
        basis : (D, D) float64, optional
            From :meth:`moving_basis`. Both factor arrays may then be rotated in place, the loss is the same in any
            basis, and `basis` keeps count; it saves a rotated copy of `other`. Not with priors.
        spectrum : Spectrum, optional
            ``self.spectrum(terms, other)``, from an earlier call with the same `other`. Few rows are then solved in
            time that does not depend on the size of `other`. Not with `basis`, which changes `other`.

        Returns
        -------
        float or None
            With `return_loss`: the loss without its constant (`target_square`) and without the ridge of the other
            side. Products are in the dtype of the factors, sums in float64.

        Raises
        ------
        SingularSystemError
            The system of a row is singular to working precision.
        ModelFitError
            The solution of a row is not finite: input values or ridges are out of the range of the dtype.
        """
        values, rotation = self.spectrum(terms, other) if spectrum is None else spectrum
        if basis is None:
            table = other
            if terms.n_entries < len(other):  # few rows: only the factors that they meet are rotated
                met, place = np.unique(terms.col_idx, return_inverse=True)
                table, terms = other[met], replace(terms, col_idx=place.astype(np.int32))
            table = _cpu.rotate(table, rotation, self.num_threads)
        else:
            if rotation is not None:
                # What the row systems are built from is rotated in float64 for the exact solvers: that keeps the
                # digits of weak directions. CG stops short of them.
                _cpu.rotate_together(factors, other, basis, rotation, solver != "cg", self.num_threads)
            table, rotation = other, None
        if prior is not None:
            prior = _cpu.rotate(np.ascontiguousarray(prior, other.dtype), rotation, self.num_threads)
        row_loss = np.zeros(terms.n_rows) if return_loss else None
        status = _cpu.solve_rows(
            terms,
            table,
            values,
            rotation,
            prior,
            factors,
            solver,
            cg_steps,
            cg_tolerance,
            block_size,
            relaxation,
            row_loss,
            self.num_threads,
        )
        self._check(status, other)
        return None if row_loss is None else float(row_loss.sum())

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]:
        """An (n, D) array, not initialised, that starts on a cache line."""
        memory = np.empty(n * factors * dtype.itemsize + 64, np.uint8)
        start = -memory.ctypes.data % 64
        return memory[start : start + n * factors * dtype.itemsize].view(dtype).reshape(n, factors)

    def moving_basis(self, factors: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Starts a series of solves that leave both sides in whatever basis suits the last of them.

        Returns
        -------
        (D, D) float64 or None
            To be handed to every :meth:`solve_rows`, and in the end to :meth:`restore_basis`. None where the arrays do
            not allow it: D is no multiple of 16, or they are not from :meth:`empty_factors`.
        """
        aligned = all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in (factors, other))
        return np.eye(factors.shape[1]) if aligned and factors.shape[1] % _cpu.LIMITS.tile == 0 else None

    def restore_basis(
        self, factors: NDArray[np.floating], other: NDArray[np.floating], basis: NDArray[np.float64]
    ) -> None:
        """Rotates both sides back to the basis they had when `basis` was made."""
        _cpu.rotate_together(factors, other, basis, np.ascontiguousarray(basis.T), True, self.num_threads)

    def hold(self, *factors: NDArray[np.floating]) -> None:
        """Nothing: the arrays are where they are used."""

    def fetch(self) -> None:
        """Nothing: the arrays are up to date."""

    def release(self) -> None:
        """Nothing is held."""

    def spectrum(self, terms: RowTerms | StoredTerms, other: NDArray[np.floating]) -> Spectrum:
        """Eigenvalues and eigenvectors of the Gram matrix of `other`, weighted by ``terms.other_background``."""
        if not np.any(terms.background) or not np.any(terms.other_background):
            return Spectrum(np.zeros(other.shape[1]), None)
        return self.decompose(_cpu.gram(other, terms.other_background, self.num_threads))

    @staticmethod
    def decompose(gram: NDArray[np.float64]) -> Spectrum:
        """Eigenvalues and eigenvectors of a Gram matrix (D, D)."""
        if not np.isfinite(gram).all():
            raise ModelFitError(f"NaN or infinity encountered in the factors or their Gram matrix; {_REMEDY}")
        # One BLAS thread: a D x D problem gains little from more, and OpenBLAS's threads go on spinning for up to
        # 30 ms after it, on the processors that the row solves are about to use.
        with one_blas_thread():
            values, vectors = np.linalg.eigh(gram)
        # Eigenvalues that are rounding become 0, so that a solver can see where nothing is known.
        rounding = len(values) * np.finfo(np.float64).eps * values[-1]
        return Spectrum(np.where(values > rounding, values, 0.0), vectors)

    @staticmethod
    def _check(status: NDArray[np.int32], other: NDArray[np.floating]) -> None:
        bad = np.flatnonzero(status)
        if not len(bad):
            return
        if not np.isfinite(other).all():
            raise ModelFitError(f"NaN or infinity encountered in the factors; {_REMEDY}")
        row = int(bad[0])
        if status[row] > 0:
            raise SingularSystemError(row)
        raise ModelFitError(f"the solution of row {row} is not finite ({len(bad)} such rows); {_REMEDY}")

    def loss(
        self,
        user_terms: RowTerms,
        user_factors: NDArray[np.floating],
        item_factors: NDArray[np.floating],
        item_ridge: NDArray[np.floating],
        *,
        user_prior: NDArray[np.floating] | None = None,
        item_prior: NDArray[np.floating] | None = None,
    ) -> float:
        """The objective in O(Z D + (U + I) D^2), accumulated in float64; see :func:`wals_gpu.reference.loss`."""
        entries = _cpu.entry_loss(user_terms, user_factors, item_factors, self.num_threads)
        user_gram = _cpu.gram(user_factors, user_terms.background, self.num_threads)
        item_gram = _cpu.gram(item_factors, user_terms.other_background, self.num_threads)
        return (
            user_terms.target_square
            + entries
            + float(np.vdot(user_gram, item_gram))
            + self.ridge_loss(user_factors, user_terms.ridge, user_prior)
            + self.ridge_loss(item_factors, item_ridge, item_prior)
        )

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float:
        """Sum over rows of ``ridge |x - prior|^2``, in float64; `ridge` is (R,) or (1,)."""
        return _cpu.ridge_loss(factors, prior, ridge, self.num_threads)

    def transpose(self, matrix: csr_matrix) -> csr_matrix:
        """The transposed matrix as CSR with sorted indices."""
        row_ptr, col_idx, value = _cpu.transpose(*_pattern(matrix), matrix.data, matrix.shape[1], self.num_threads)
        # SciPy gives both index arrays one type and would widen the column numbers if row_ptr stayed int64.
        if len(col_idx) <= np.iinfo(np.int32).max:
            row_ptr = row_ptr.astype(np.int32)
        return csr_matrix((value, col_idx, row_ptr), shape=matrix.shape[::-1], copy=False)

    def topk(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, excluded: csr_matrix | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The k items of highest dot product for each query; see :func:`wals_gpu.reference.topk`.

        Parameters
        ----------
        queries : (B, D)
        items : (I, D)
        k : int
        excluded : (B, I) CSR with sorted indices, optional
            Stored entries are items that the query must not get.

        Returns
        -------
        ids : (B, k) int32
        scores : (B, k)
            In the dtype of the items. The memory needed beyond this does not depend on B.
        """
        row_ptr, col_idx = (None, None) if excluded is None else _pattern(excluded)
        queries = np.ascontiguousarray(queries, items.dtype)
        ids, scores, _ = _cpu.topk(queries, np.ascontiguousarray(items), k, row_ptr, col_idx, self.num_threads)
        return ids, scores

    def topk_listed(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, listed: csr_matrix
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The k best of the items listed for each query, in time that depends on the lists alone.

        Parameters
        ----------
        queries : (B, D)
        items : (I, D)
        k : int
        listed : (B, I) CSR without repeated entries
            Stored entries are the items to choose from.

        Returns
        -------
        ids, scores : (B, k)
            As for :meth:`topk`.
        """
        queries = np.ascontiguousarray(queries, items.dtype)
        return _cpu.topk_listed(queries, np.ascontiguousarray(items), k, *_pattern(listed), self.num_threads)

    def score_entries(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], listed: csr_matrix
    ) -> NDArray[np.floating]:
        """The dot product of each stored entry's query and item, (Z,), with the bits of :meth:`topk`."""
        queries = np.ascontiguousarray(queries, items.dtype)
        return _cpu.score_entries(queries, np.ascontiguousarray(items), *_pattern(listed), self.num_threads)


def _pattern(matrix: csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Row pointers and column numbers in the types that the kernels take."""
    return matrix.indptr.astype(np.int64, copy=False), matrix.indices.astype(np.int32, copy=False)
