"""The CPU backend: NumPy arrays in and out, native kernels in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu import _cpu
from wals_gpu.backends.host import (
    Spectrum,
    check_gram,
    check_status,
    decompose,
    decompose_rows,
    has_background,
    in_order,
    no_spectrum,
    solve_parts,
    whiten,
)
from wals_gpu.backends.session import Session, iterate_in_turn
from wals_gpu.backends.solve import EXACT, SolveMemory, SolveOptions, SolveSizes
from wals_gpu.objective.terms import RowTerms, SideTerms, other_side
from wals_gpu.system import usable_cpus

__all__ = ["CpuBackend", "CpuSession", "HostSession"]

#: Threads that may be asked for whatever the machine has; tests do, on machines with a few processors.
_THREADS = 64

#: Rows of both sides, for each factor, up to which a solve may take a copy of a side to do without eigenvectors.
_WHITENED_ROWS = 8

AnySession = TypeVar("AnySession", bound="HostSession")


def takes_plain_steps(factors: int, options: SolveOptions) -> bool:
    """Whether rows with a background and no prior means take subspace steps in the factors' own coordinates, not along
    eigenvectors."""
    many = factors > _cpu.LIMITS.rotated_subspace_factors
    return many and options.solver == "subspace" and options.block_size < factors


def no_losses(n: int, wanted: bool) -> NDArray[np.float64] | None:
    """A place for the losses of n rows, if they are wanted."""
    return np.zeros(n) if wanted else None


def block_sums(row_loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of losses of each block of ``limits().loss_rows`` rows."""
    return np.add.reduceat(row_loss, np.arange(0, len(row_loss), _cpu.LIMITS.loss_rows)) if len(row_loss) else row_loss


def total(row_loss: NDArray[np.float64] | None) -> float | None:
    """The sum of losses, if there are any: block by block, so that rows may lie on several ranks."""
    return None if row_loss is None else in_order(block_sums(row_loss))


class CpuBackend:
    """Row solves, loss, top-k and transposition on the CPU.

    Parameters
    ----------
    num_threads : int, default 0
        0: one for each processor that this process may use. Results do not depend on it. More than the machine has
        processors, or 64 of them, are not started: each call would take longer, and memory for each.
    """

    name = "cpu"

    def __init__(self, num_threads: int = 0) -> None:
        self.num_threads = min(num_threads or usable_cpus(), max(_THREADS, os.cpu_count() or 1))

    def check(
        self,
        *,
        factors: int | None = None,
        dtype: np.dtype | None = None,
        options: SolveOptions | None = None,
        k: int | None = None,
    ) -> None:
        """The CPU refuses nothing."""

    def solve_rows(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        factors: NDArray[np.floating],
        options: SolveOptions = EXACT,
        *,
        prior: NDArray[np.floating] | None = None,
        return_loss: bool = False,
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
        options : SolveOptions, optional
            By default exact.
        prior : (R, D), optional
            Prior means.
        return_loss : bool, default False
            Also evaluate the loss of the rows, while what it needs is in the cache.
        spectrum : Spectrum, optional
            ``self.spectrum(terms, other)``, from an earlier call with the same `other`. Few rows are then solved in
            time that does not depend on the size of `other`.

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
        row_loss = no_losses(terms.n_rows, return_loss)
        if spectrum is None and prior is None and has_background(terms) and takes_plain_steps(other.shape[1], options):
            self.solve_plain(terms, other, self.gram(terms, other), factors, options, row_loss=row_loss)
        else:
            spectrum = self.spectrum(terms, other) if spectrum is None else spectrum
            table, terms = self.table_for(terms, other, spectrum)
            self.solve_rotated(terms, table, spectrum, factors, options, prior, row_loss=row_loss)
        return total(row_loss)

    def table_for(
        self, terms: RowTerms, other: NDArray[np.floating], spectrum: Spectrum
    ) -> tuple[NDArray[np.floating], RowTerms]:
        """The table that :meth:`solve_rotated` is to have, and terms whose columns are its rows.

        Few rows meet few of the other side: only those are rotated then.
        """
        if terms.n_entries >= len(other):
            return self.rotated(other, spectrum), terms
        met, place = np.unique(terms.col_idx, return_inverse=True)
        return self.rotated(other[met], spectrum), replace(terms, col_idx=place.astype(np.int32))

    def takes_plain_steps(self, factors: int, options: SolveOptions) -> bool:
        """Whether rows with a background and no prior means are solved by :meth:`solve_plain`."""
        return takes_plain_steps(factors, options)

    def whitens(self, factors: int, n_rows: int, n_other: int) -> bool:
        """Whether exact solves of sides that may move do without eigenvectors where they can: :meth:`solve_whitened`.

        Eigenvectors of many factors take longer than all rows of small sides do. For larger ones the table of the other
        side would take more memory than is saved.
        """
        many = factors > _cpu.LIMITS.rotated_subspace_factors and factors % _cpu.LIMITS.tile == 0
        few = n_rows + n_other <= _WHITENED_ROWS * factors
        return many and few and not self.decomposes_rows(n_other, factors)

    def whitened(self, factors: NDArray[np.floating], whitening: NDArray[np.float64]) -> NDArray[np.floating]:
        """Factors (n, D), row by row, as :meth:`solve_whitened` takes them."""
        return _cpu.rotate(factors, whitening.T, self.num_threads)

    def solve_whitened(
        self,
        terms: RowTerms,
        table: NDArray[np.floating],
        whitening: NDArray[np.float64],
        factors: NDArray[np.floating],
        *,
        row_loss: NDArray[np.float64] | None = None,
    ) -> None:
        """Solve rows exactly that have one background and one ridge, without prior means.

        In the coordinates of a whitening, see :func:`.host.whiten`, background and ridge together are the background
        alone. The caller has ``table = self.whitened(other, whitening)``; `factors` start on a cache line.
        """
        ones = np.ones(len(whitening))
        terms = replace(terms, ridge=np.zeros(1, terms.ridge.dtype))
        status = self._solve(terms, table, Spectrum(ones, None), factors, EXACT, None, row_loss)
        solved, are_solved = factors, status == 0
        if not are_solved.all():
            solved = self.empty_factors(are_solved.sum(), len(whitening), factors.dtype)
            solved[:] = factors[are_solved]
        # In float64: where directions differ much in length, sums lose what float32 has.
        _cpu.rotate_together(factors[:0], solved, whitening[:0], whitening, True, self.num_threads)
        if solved is not factors:
            factors[are_solved] = solved
        check_status(status, table)

    def rotated(self, factors: NDArray[np.floating], spectrum: Spectrum) -> NDArray[np.floating]:
        """Factors (n, D), row by row in the basis of the eigenvectors, as :meth:`solve_rotated` takes them."""
        return _cpu.rotate(factors, spectrum.vectors, self.num_threads)

    def solve_rotated(
        self,
        terms: RowTerms,
        table: NDArray[np.floating],
        spectrum: Spectrum,
        factors: NDArray[np.floating],
        options: SolveOptions = EXACT,
        prior: NDArray[np.floating] | None = None,
        *,
        row_loss: NDArray[np.float64] | None = None,
    ) -> None:
        """As :meth:`solve_rows`, where the caller has ``table = self.rotated(other, spectrum)``.

        Many parts of a side are solved from one table, and tables may be put together from pieces: each row of one
        depends on its own factors and the spectrum alone. Each row's part of the loss is written to `row_loss` (R,).
        """
        if prior is not None:
            prior = self.rotated(np.ascontiguousarray(prior, table.dtype), spectrum)
        check_status(self._solve(terms, table, spectrum, factors, options, prior, row_loss), table)

    def _solve(
        self,
        terms: RowTerms,
        table: NDArray[np.floating],
        spectrum: Spectrum,
        factors: NDArray[np.floating],
        options: SolveOptions,
        prior: NDArray[np.floating] | None,
        row_loss: NDArray[np.float64] | None,
    ) -> NDArray[np.int32]:
        """The status of each row; `table` and `prior` are in the basis of the spectrum, and so are the factors where
        this has no vectors. Each row's part of the loss is written to `row_loss` (R,)."""
        status: NDArray[np.int32] = _cpu.solve_rows(
            terms,
            table,
            spectrum.values,
            spectrum.vectors,
            prior,
            factors,
            options.solver,
            options.cg_steps,
            options.cg_tolerance,
            options.block_size,
            options.relaxation,
            row_loss,
            self.num_threads,
        )
        return status

    def solve_plain(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        gram: NDArray[np.float64],
        factors: NDArray[np.floating],
        options: SolveOptions,
        *,
        row_loss: NDArray[np.float64] | None = None,
    ) -> None:
        """One pass of subspace steps in the factors' own coordinates, without eigenvectors of `gram` (:meth:`gram`).

        Otherwise as :meth:`solve_rotated`; see :func:`wals_gpu.reference.solve_rows_subspace` with ``rotated=False``.
        """
        block, relaxation = options.block_size, options.relaxation
        status = _cpu.solve_rows_plain(terms, other, gram, factors, block, relaxation, row_loss, self.num_threads)
        check_status(status, other)

    def session(
        self,
        users: NDArray[np.floating],
        items: NDArray[np.floating],
        *,
        may_move: bool = False,
        is_shared: bool = False,
    ) -> CpuSession:
        """See :meth:`.session.Backend.session`."""
        return CpuSession(self, users, items, may_move)

    def memory_of(self, sizes: SolveSizes) -> SolveMemory:
        """Bytes that solving a side takes beside its factors and terms."""
        limits = _cpu.LIMITS
        padded = -(-sizes.factors * sizes.itemsize // 64) * 64
        square = sizes.factors**2 * 8  # a matrix of float64
        of_rows = (8 + 4 + 8) * sizes.n_rows  # of a row: place in the order of work, status, loss
        many = sizes.factors > limits.rotated_subspace_factors
        if sizes.solver == "subspace" and many and not sizes.has_prior:
            # The Gram matrix, its packed copy, the basis, and the table block by block; 128 rows of each thread.
            squares = square * (16 + sizes.itemsize) // 8
            return SolveMemory(padded * sizes.n_other + squares + self.num_threads * 128 * 2 * padded + of_rows)
        moves = sizes.is_moving and self.moves(sizes.factors, sizes.n_rows + sizes.n_other)
        rotated = padded * sizes.n_other
        # The Gram matrix, its eigenvectors, two more that LAPACK works in, and the basis that both sides are in.
        shared = 5 * square + (0 if moves else rotated)
        if moves and self.whitens(sizes.factors, sizes.n_rows, sizes.n_other):
            shared = max(shared, 4 * square + rotated)  # a whitening, transposed and packed, and the basis
        # A thread's system; in blocks it takes the place of the factor and of most of the panel.
        system = padded**2 // sizes.itemsize * (1 if sizes.factors > limits.blocked_factors else 3)
        of_threads = self.num_threads * (system + 512 * padded) if sizes.solver == "cholesky" else 0
        return SolveMemory(shared + of_threads + of_rows)

    def moves(self, factors: int, rows: int) -> bool:
        """Whether both sides, of so many rows together, may move to another basis; its (D, D) moves as well."""
        return factors % _cpu.LIMITS.tile == 0 and factors <= max(rows, _cpu.LIMITS.blocked_factors)

    def move(
        self,
        own: NDArray[np.floating],
        other: NDArray[np.floating],
        basis: NDArray[np.float64],
        rotation: NDArray[np.float64],
        options: SolveOptions = EXACT,
    ) -> None:
        """Rotate rows of both sides, and the basis (D, D) that they are in, in place.

        What the row systems are built from, `other`, is rotated in float64 for the exact solvers: that keeps the digits
        of weak directions. CG stops short of them.
        """
        _cpu.rotate_together(own, other, basis, rotation, options.solver != "cg", self.num_threads)

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]:
        """An (n, D) array, not initialised, that starts on a cache line."""
        memory = np.empty(n * factors * dtype.itemsize + 64, np.uint8)
        start = -memory.ctypes.data % 64
        return memory[start : start + n * factors * dtype.itemsize].view(dtype).reshape(n, factors)

    def spectrum(self, terms: SideTerms, other: NDArray[np.floating]) -> Spectrum:
        """Eigenvalues and eigenvectors of the Gram matrix of `other`, weighted by ``terms.other_background``."""
        n, d = other.shape
        if not has_background(terms):
            return no_spectrum(d)
        if self.decomposes_rows(n, d):
            return decompose_rows(other, terms.other_background)
        return decompose(self.gram(terms, other))

    @staticmethod
    def decomposes_rows(n: int, factors: int) -> bool:
        """Whether n rows are so few that a spectrum is found without their Gram matrix."""
        return factors > _cpu.LIMITS.blocked_factors and 2 * n < factors

    def gram(self, terms: SideTerms, other: NDArray[np.floating]) -> NDArray[np.float64]:
        """The Gram matrix (D, D) of `other`, weighted by ``terms.other_background``; ModelFitError if not finite."""
        gram = _cpu.gram(other, terms.other_background, self.num_threads)
        check_gram(gram)
        return gram

    def gram_slabs(
        self, factors: NDArray[np.floating], weight: NDArray[np.floating], bounds: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Gram matrices of rows from one bound to the next, (slabs, D, D): upper triangles.

        :meth:`gram` is the sum, in order, of those that :meth:`gram_bounds` has.
        """
        slabs: NDArray[np.float64] = _cpu.gram_slabs(factors, weight, bounds, self.num_threads)
        return slabs

    @staticmethod
    def gram_bounds(n: int, factors: int) -> NDArray[np.int64]:
        """Where the slabs of n rows end, (slabs + 1,)."""
        return np.array(_cpu.gram_bounds(n, factors), np.int64)

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
        return in_order(self.ridge_losses(factors, ridge, prior))

    def ridge_losses(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> NDArray[np.float64]:
        """The same of each block of ``limits().loss_rows`` rows."""
        losses: NDArray[np.float64] = _cpu.ridge_losses(factors, prior, ridge, self.num_threads)
        return losses

    def transpose(self, matrix: csr_matrix) -> csr_matrix:
        """The transposed matrix as CSR with sorted indices."""
        row_ptr, col_idx, value = _cpu.transpose(*_pattern(matrix), matrix.data, matrix.shape[1], self.num_threads)
        # SciPy gives both index arrays one type and would widen the column numbers if row_ptr stayed int64.
        if len(col_idx) <= np.iinfo(np.int32).max:
            row_ptr = row_ptr.astype(np.int32)
        return csr_matrix((value, col_idx, row_ptr), shape=matrix.shape[::-1], copy=False)

    def neighbor_memory(self, n_items: int, n_neighbors: int, dtype: DTypeLike = np.float32) -> tuple[int, int]:
        """Bytes that :meth:`fit_neighbors` works in, beside matrix and result.

        Returns
        -------
        least : int
            With less it refuses.
        most : int
            More cannot be of use; less is taken where that is as fast.
        """
        least, most = _cpu.neighbor_memory(n_items, n_neighbors, np.dtype(dtype) == np.float64, self.num_threads)
        return int(least), int(most)

    def fit_neighbors(
        self,
        matrix: csr_matrix,
        user_weights: NDArray[np.floating],
        n_neighbors: int,
        ridge: float,
        *,
        transposed: csr_matrix | None = None,
        memory: int | None = None,
        items: slice | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """Each item's regression on the items nearest to it; see :func:`wals_gpu.reference.neighbors`.

        Parameters
        ----------
        matrix : (U, I) canonical CSR
            Stored entries (of any value) are ones.
        user_weights : (U,) float32 or float64
            Finite, none below 0.
        n_neighbors : int
            m, at least 1.
        ridge : float
            Finite, at least 0.
        transposed : (I, U) canonical CSR, optional
            The transposed matrix, where the caller has it.
        memory : int, optional
            Bytes to work in at most, see :meth:`neighbor_memory`; by default as many as it can use. The result does
            not depend on it, nor on the number of threads.
        items : slice, optional
            The only items to give, one after the other, of I; default: all.

        Returns
        -------
        ids : (I, m) int32
            Rising in each row; -1 where an item has fewer neighbours.
        weights : (I, m)
            In the dtype of `user_weights`; 0 where the id is -1. Where the system is singular (no ridge and dependent
            columns), a ridge of 1e-10 of its largest diagonal element is added.

        Raises
        ------
        TypeError, ValueError
            An argument is not what is said above.
        MemoryError
            `memory` is less than the least.
        """
        n_users, n_items = matrix.shape
        if not isinstance(user_weights, np.ndarray) or user_weights.dtype not in (np.float32, np.float64):
            got = getattr(user_weights, "dtype", type(user_weights).__name__)
            raise TypeError(f"user_weights must be a float32 or float64 array (U={n_users},), got {got}")
        if user_weights.shape != (n_users,):
            raise ValueError(f"user_weights must have shape (U={n_users},), got {user_weights.shape}")
        if not (np.isfinite(user_weights).all() and (user_weights >= 0).all()):
            raise ValueError("user_weights must be finite and at least 0")
        if not 1 <= n_neighbors < 2**31:
            raise ValueError(f"n_neighbors must be at least 1, got {n_neighbors}")
        if not 0 <= ridge < np.inf:
            raise ValueError(f"ridge must be a finite number of at least 0, got {ridge}")
        if transposed is None:
            transposed = self.transpose(matrix)
        elif transposed.shape != (n_items, n_users) or transposed.nnz != matrix.nnz:
            wanted, got = (f"{shape} with {n} entries" for shape, n in (
                ((n_items, n_users), matrix.nnz), (transposed.shape, transposed.nnz)
            ))  # fmt: skip
            raise ValueError(f"transposed must be {wanted}, got {got}")
        least, most = self.neighbor_memory(n_items, n_neighbors, user_weights.dtype)
        memory = most if memory is None else memory
        if memory < least:
            raise MemoryError(
                f"{n_neighbors} neighbours of {n_items} items take {least} bytes of memory at least, got {memory}"
            )
        return _cpu.fit_neighbors(
            *_pattern(matrix),
            *_pattern(transposed),
            np.ascontiguousarray(user_weights),
            n_neighbors,
            ridge,
            memory,
            self.num_threads,
            *((0, n_items) if items is None else (items.start, items.stop)),
        )

    def topk(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        excluded: csr_matrix | None = None,
        *,
        permitted: NDArray[np.bool_] | None = None,
        norms: NDArray[np.floating] | None = None,
        prepared: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The k items of highest dot product for each query; see :func:`wals_gpu.reference.topk`.

        Parameters
        ----------
        queries : (B, D)
        items : (I, D)
        k : int
        excluded : (B, I) CSR with sorted indices, optional
            Stored entries are items that the query must not get.
        permitted : (I,) bool, optional
            False: no query gets the item.
        norms : (I,), optional
            Each item is divided by its own before it is scored, to the bits of ``items / norms[:, None]``, which is
            not made. Any positive number where `permitted` is False.
        prepared : array of uint8, optional
            ``self.prepare(items, norms)``: the result is the same, one query takes a third of the time.

        Returns
        -------
        ids : (B, k) int32
        scores : (B, k)
            In the dtype of the items. The memory needed beyond this does not depend on B.
        """
        row_ptr, col_idx = (None, None) if excluded is None else _pattern(excluded)
        queries = np.ascontiguousarray(queries, items.dtype)
        items = np.ascontiguousarray(items)
        ids, scores, _ = _cpu.topk(
            queries, items, k, row_ptr, col_idx, self.num_threads, True, permitted, norms, None, None, prepared
        )
        return ids, scores

    def prepare(
        self, items: NDArray[np.floating], norms: NDArray[np.floating] | None = None
    ) -> NDArray[np.uint8] | None:
        """What :meth:`topk` searches in place of all items, for items that are searched again and again.

        Rows in int8, by which most items can be ruled out (csrc/cpu/topk_int8.cpp). It takes a quarter of the memory
        of the items, and the time of some searches.

        Parameters
        ----------
        items : (I, D)
        norms : (I,), optional
            Those that :meth:`topk` gets.

        Returns
        -------
        array of uint8, or None
            None where it would save nothing: items in float64, or a processor without AVX512-VNNI.
        """
        prepared: NDArray[np.uint8] | None = _cpu.prepare_items(np.ascontiguousarray(items), norms, self.num_threads)
        return prepared

    def topk_neighbors(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        history: csr_matrix,
        neighbors: csr_matrix,
        excluded: csr_matrix | None = None,
        *,
        permitted: NDArray[np.bool_] | None = None,
        scale: NDArray[np.floating] | None = None,
        prepared: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The k items of highest dot product plus what a history adds; see :func:`wals_gpu.reference.topk_neighbors`.

        Parameters
        ----------
        queries : (B, D)
        items : (I, D)
        k : int
        history : (B, n) CSR
            What each query has, with weights.
        neighbors : (n, I) CSR
            What an entry of the history adds to the score of an item. Best with values in the dtype of the items, which
            are not copied then; only the rows that histories name are read.
        excluded, permitted
            As for :meth:`topk`.
        scale : (I,), optional
            Scores are multiplied by it, rounded as divisions by ``1 / scale``. Positive, and finite as its inverse is.
        prepared : array of uint8, optional
            ``self.prepare(items)``; not with a `scale`.

        Returns
        -------
        ids : (B, k) int32
        scores : (B, k)
            As for :meth:`topk`. Each thread works in 8 MiB, or the scores of 32 queries with all items where these take
            more.

        Raises
        ------
        ValueError
            Shapes do not fit, an index is outside its matrix, or a scale is not positive and finite.
        """
        n_items = len(items)
        if history.shape != (len(queries), neighbors.shape[0]) or neighbors.shape[1] != n_items:
            raise ValueError(
                f"history and neighbors must have shapes (B={len(queries)}, n) and (n, I={n_items}), "
                f"got {history.shape} and {neighbors.shape}"
            )
        norms = None
        if scale is not None:
            prepared = None
            if np.shape(scale) != (n_items,):
                raise ValueError(f"scale must have shape (I={n_items},), got {np.shape(scale)}")
            with np.errstate(divide="ignore", over="ignore"):
                norms = 1 / np.asarray(scale, items.dtype)
            if not (np.isfinite(norms).all() and (norms > 0).all()):
                raise ValueError("scale must be positive and finite, and so must be 1 / scale")
        row_ptr, col_idx = (None, None) if excluded is None else _pattern(excluded)
        queries = np.ascontiguousarray(queries, items.dtype)
        items = np.ascontiguousarray(items)
        own, others = (
            (*_pattern(matrix), matrix.data.astype(items.dtype, copy=False)) for matrix in (history, neighbors)
        )
        ids, scores, _ = _cpu.topk(
            queries, items, k, row_ptr, col_idx, self.num_threads, True, permitted, norms, own, others, prepared
        )
        return ids, scores

    def topk_listed(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        listed: csr_matrix,
        *,
        norms: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """The k best of the items listed for each query, in time that depends on the lists alone.

        Parameters
        ----------
        queries : (B, D)
        items : (I, D)
        k : int
        listed : (B, I) CSR without repeated entries
            Stored entries are the items to choose from.
        norms : (I,), optional
            As for :meth:`topk`.

        Returns
        -------
        ids, scores : (B, k)
            As for :meth:`topk`.
        """
        queries = np.ascontiguousarray(queries, items.dtype)
        return _cpu.topk_listed(queries, np.ascontiguousarray(items), k, *_pattern(listed), self.num_threads, norms)

    def score_entries(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], listed: csr_matrix
    ) -> NDArray[np.floating]:
        """The dot product of each stored entry's query and item, (Z,), with the bits of :meth:`topk`."""
        queries = np.ascontiguousarray(queries, items.dtype)
        return _cpu.score_entries(queries, np.ascontiguousarray(items), *_pattern(listed), self.num_threads)


class HostSession(Session):
    """What sessions on the host share, in one process and on several ranks: see :class:`.session.Session`.

    The arrays are the caller's own, solved in place. With `basis`, both sides are rotated together into the basis of
    each solve, and stay there: the loss is the same in any basis, and a rotated copy of the other side is saved.
    """

    def __init__(
        self, backend: CpuBackend, users: NDArray[np.floating], items: NDArray[np.floating], moves: bool
    ) -> None:
        self._backend = backend
        self._sides = {"user": users, "item": items}
        #: The basis that both sides are in, (D, D) float64; None where they stay in their own.
        self.basis: NDArray[np.float64] | None = np.eye(users.shape[1]) if moves else None
        self._has_moved = False

    def _whitened_ridge(
        self,
        terms: SideTerms,
        options: SolveOptions,
        prior: NDArray[np.floating] | None,
        n_rows: int,
        n_other: int,
    ) -> float | None:
        """The ridge that all rows of a side have for each unit of background, where a whitening is to hold it.

        `n_rows` and `n_other` are those of all ranks.
        """
        is_exact = options.solver == "cholesky" and options.relaxation == 1 and prior is None
        if self.basis is None or not is_exact or not self._backend.whitens(len(self.basis), n_rows, n_other):
            return None
        if len(terms.ridge) != 1 or len(terms.background) != 1 or not has_background(terms):
            return None
        return float(terms.ridge[0]) / float(terms.background[0])

    def iterate(
        self,
        users: SideTerms,
        items: SideTerms,
        options: SolveOptions,
        errors_of: Callable[[str], AbstractContextManager[object]] = nullcontext,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """See :meth:`.session.Session.iterate`."""
        return iterate_in_turn(self, users, items, options, errors_of, return_loss)

    def _move(self, side: str, spectrum: Spectrum, options: SolveOptions) -> Spectrum:
        """Rotate both sides, of which `side` is solved next, into the basis of a spectrum; the spectrum in that
        basis."""
        if spectrum.vectors is not None and self.basis is not None:
            self._has_moved = True
            own, other = self._sides[side], self._sides[other_side(side)]
            self._backend.move(own, other, self.basis, spectrum.vectors, options)
        return Spectrum(spectrum.values, None)

    def features(self, features: Mapping[str, NDArray[np.floating]]) -> None:
        """See :meth:`.session.Session.features`: the arrays are the caller's own."""

    def scale(self, side: str, factor: float) -> None:
        """See :meth:`.session.Session.scale`."""
        self._sides[side] *= self._sides[side].dtype.type(factor)

    def factors(self, side: str) -> NDArray[np.floating]:
        """See :meth:`.session.Session.factors`; on ranks, the rank's own rows."""
        return self._sides[side]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`.session.Session.arrays`; on ranks, the rank's part of it."""
        arrays: dict[str, NDArray[Any]] = {f"{side}_factors": array for side, array in self._sides.items()}
        return arrays if self.basis is None else arrays | {"basis": self.basis}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """See :meth:`.session.Session.restore`."""
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])
        self._has_moved = True

    def close(self) -> None:
        """See :meth:`.session.Session.close`; each rank brings its own rows back."""
        if self.basis is not None and self._has_moved:
            self._backend.move(self._sides["user"], self._sides["item"], self.basis, np.ascontiguousarray(self.basis.T))
        self.basis = None

    def __enter__(self: AnySession) -> AnySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class CpuSession(HostSession):
    """See :class:`.session.Session`.

    With `may_move` the sides move, where the arrays allow it: D is a multiple of 16, they are from
    :meth:`CpuBackend.empty_factors`, and have as many rows together as the basis has.
    :class:`wals_gpu.distributed.session.ShardedSession` does the same with rows on several ranks, to the bit.
    """

    def __init__(
        self, backend: CpuBackend, users: NDArray[np.floating], items: NDArray[np.floating], may_move: bool
    ) -> None:
        allows = all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in (users, items))
        moves = may_move and allows and backend.moves(users.shape[1], len(users) + len(items))
        super().__init__(backend, users, items, moves)

    def solve(
        self,
        side: str,
        terms: SideTerms,
        options: SolveOptions,
        prior: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """See :meth:`.session.Session.solve`."""
        own, other = self._sides[side], self._sides[other_side(side)]
        row_loss, table = no_losses(len(own), return_loss), other
        solve: Callable[..., None]
        if prior is None and has_background(terms) and takes_plain_steps(own.shape[1], options):
            solve = partial(self._backend.solve_plain, gram=self._backend.gram(terms, other), options=options)
        elif (whitening := self._whitening(terms, own, other, options, prior)) is not None:
            table = self._backend.whitened(other, whitening)
            solve = partial(self._backend.solve_whitened, whitening=whitening)
        else:
            spectrum = self._backend.spectrum(terms, other)
            if self.basis is not None:
                spectrum = self._move(side, spectrum, options)
            elif isinstance(terms, RowTerms):
                table, terms = self._backend.table_for(terms, other, spectrum)
            else:
                table = self._backend.rotated(other, spectrum)
            solve = partial(self._backend.solve_rotated, spectrum=spectrum, options=options)

        def solve_part(rows: slice, part: RowTerms) -> None:
            means = {} if prior is None else {"prior": prior[rows]}
            losses = None if row_loss is None else row_loss[rows]
            solve(part, table, factors=own[rows], row_loss=losses, **means)

        solve_parts(terms, solve_part)
        return total(row_loss)

    def _whitening(
        self,
        terms: SideTerms,
        own: NDArray[np.floating],
        other: NDArray[np.floating],
        options: SolveOptions,
        prior: NDArray[np.floating] | None,
    ) -> NDArray[np.float64] | None:
        ridge = self._whitened_ridge(terms, options, prior, len(own), len(other))
        return None if ridge is None else whiten(self._backend.gram(terms, other), ridge)

    def loss(self, user_terms: RowTerms, item_ridge: NDArray[np.floating]) -> float:
        """See :meth:`.session.Session.loss`."""
        return self._backend.loss(user_terms, self._sides["user"], self._sides["item"], item_ridge)

    def ridge_loss(self, side: str, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None) -> float:
        """See :meth:`.session.Session.ridge_loss`."""
        return self._backend.ridge_loss(self._sides[side], ridge, prior)


def _pattern(matrix: csr_matrix) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Row pointers and column numbers in the types that the kernels take."""
    return matrix.indptr.astype(np.int64, copy=False), matrix.indices.astype(np.int32, copy=False)
