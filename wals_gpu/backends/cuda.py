"""The CUDA backend: NumPy arrays in and out, device memory of :mod:`.cuda_memory`, native kernels in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType, TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda_memory import Memory, TorchMemory, load_cuda
from wals_gpu.backends.cuda_plan import gram_bounds, may_be_undetermined, plan_cg, plan_exact, plan_subspace, slice_rows
from wals_gpu.backends.host import Spectrum, check_status, decompose, has_background, no_spectrum
from wals_gpu.backends.solve import EXACT, SolveMemory, SolveOptions, SolveSizes
from wals_gpu.errors import DeviceError, SingularSystemError
from wals_gpu.objective.terms import RowTerms, SideTerms, other_side

__all__ = ["CudaBackend", "CudaSession"]

#: Sizes of shared memory that conjugate gradients keep a row's panel in: 5, 2 and 1 blocks on a processor.
PANEL_MEMORY = (32 << 10, 80 << 10, LIMITS.shared_memory)

#: Bytes that the matrices of sliced rows, and of rows in float64, take at a time.
SLOT_MEMORY = 1 << 28


class _Factors:
    """Factors (n, D) of the caller, and where a session keeps them, their copy in device memory."""

    def __init__(self, memory: Memory, host: Any, *, is_kept: bool = False) -> None:
        self._memory, self.host = memory, host
        self._device = memory.upload(host) if is_kept and host.size else None
        self._is_ahead = False  # of the host's

    @property
    def is_kept(self) -> bool:
        return self._device is not None

    def plain(self, rows: slice | None = None) -> Any:
        """Some rows, by default all, in device memory, flat."""
        if self._device is not None:
            width = self.host.shape[1]
            return self._device if rows is None else self._device[rows.start * width : rows.stop * width]
        host = self.host if rows is None else self.host[rows]
        return self._memory.upload(np.asarray(host, np.float32) if isinstance(host, np.ndarray) else host)

    def put(self, rows: slice, z: Any, side: _Side, good: NDArray[np.bool_]) -> None:
        """The rows that are `good` become those of z in the caller's basis."""
        n, width = rows.stop - rows.start, self.host.shape[1]
        if self._device is not None and good.all():
            side.rotate_back(z, n, self._device[rows.start * width : rows.stop * width])
            self._is_ahead = True
            return
        out = self._memory.empty(n * width, np.float32)
        side.rotate_back(z, n, out)
        self.fetch()
        self.host[rows][good] = self._memory.download(out).reshape(n, width)[good]
        self.refresh()

    def fetch(self) -> None:
        """Bring the caller's array up to date."""
        if self._is_ahead:
            self.host[...] = self._memory.download(self._device).reshape(self.host.shape)
            self._is_ahead = False

    def refresh(self) -> None:
        """Follow a change of the caller's array."""
        if self._device is not None:
            self._device, self._is_ahead = self._memory.upload(self.host), False


@dataclass
class _Terms:
    """The terms of some rows, in device memory."""

    host: RowTerms
    row_ptr: Any
    col_idx: Any
    rhs: Any
    gram: Any
    background: Any
    ridge: Any
    bound: Any
    small: tuple[NDArray[np.floating], ...]  # background and ridge as they were


class CudaBackend:
    """Row solves, loss, top-k and transposition on a CUDA device, in float32.

    What it computes, its arguments and its errors are those of :class:`.cpu.CpuBackend`; results are equal to float32
    accuracy, and the same to the last bit each time. Arrays of the caller stay NumPy arrays; the terms of a matrix are
    copied to the device once, factors on each call, or in a :meth:`session` once.

    Parameters
    ----------
    module, memory : optional
        Kernels and memory in place of the device's; by default those of :func:`.cuda_memory.load_cuda` and
        :class:`.cuda_memory.TorchMemory`.
    memory_limit : int, optional
        Device memory to use, in bytes; by default what is free. Rows that do not fit together are solved in parts.
    """

    name = "cuda"

    def __init__(
        self, module: ModuleType | None = None, memory: Memory | None = None, memory_limit: int | None = None
    ) -> None:
        self._cuda = load_cuda() if module is None else module
        self._memory: Memory = TorchMemory() if memory is None else memory
        self._limit = memory_limit
        self._on_device: WeakKeyDictionary[RowTerms, _Terms] = WeakKeyDictionary()
        self._host = CpuBackend()
        self._kept_bytes = 0  # of factors that sessions keep

    def check(
        self,
        *,
        factors: int | None = None,
        dtype: np.dtype | None = None,
        options: SolveOptions | None = None,
        k: int | None = None,
    ) -> None:
        """Refuse what the kernels cannot do.

        Raises
        ------
        DeviceError
            A kind of ValueError: another dtype than float32, more factors than the kernels take, blocks of "subspace"
            that are too large for them, or more results than a search can give.
        """
        limits = self._cuda.LIMITS
        if dtype is not None and dtype != np.float32:
            raise DeviceError(f"dtype must be float32 on a CUDA device (device='cuda'), got {dtype}")
        if factors is not None and not 1 <= factors <= limits.most_factors:
            raise DeviceError(f"factors must be from 1 to {limits.most_factors} on a CUDA device, got {factors}")
        if options is not None and options.solver == "subspace" and options.block_size > limits.kernel_sizes[-1]:
            wanted = f"a multiple of {limits.tile} from {limits.tile} to {limits.kernel_sizes[-1]} on a CUDA device"
            raise DeviceError(f"block_size must be {wanted}, got {options.block_size}")
        if k is not None and k > limits.most_results:
            raise DeviceError(f"k must be at most {limits.most_results} on a CUDA device, got {k}")

    def session(
        self,
        users: NDArray[np.floating],
        items: NDArray[np.floating],
        *,
        may_move: bool = False,
        is_shared: bool = False,
    ) -> CudaSession:
        """See :meth:`.session.Backend.session`. Factors stay in device memory if those of both sides take less than a
        quarter of it."""
        return CudaSession(self, users, items, is_shared)

    def _available(self) -> int:
        """Device memory for anything but the factors of sessions."""
        if self._limit is None:
            return self._memory.free_bytes() * 9 // 10
        return self._limit - self._kept_bytes

    def _plain(self, factors: Any) -> Any:
        """Factors (n, D) in device memory, flat."""
        return _Factors(self._memory, factors).plain()

    # ---------------------------------------------------------------------------------------------------- row solves

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
        """As :meth:`.cpu.CpuBackend.solve_rows`, in float32; see :meth:`check`."""
        self.check(options=options)
        self._check_factors(other)
        spectrum = self.spectrum(terms, other) if spectrum is None else spectrum
        of_other, own = _Factors(self._memory, other), _Factors(self._memory, factors)
        return self._solve(terms, of_other, own, slice(0, terms.n_rows), spectrum, options, prior, return_loss)

    def _solve(
        self,
        terms: RowTerms,
        other: _Factors,
        own: _Factors,
        at: slice,
        spectrum: Spectrum,
        options: SolveOptions,
        prior: NDArray[np.floating] | None,
        return_loss: bool,
    ) -> float | None:
        """Solve the rows `at` of a side, which have these terms and prior means; the loss."""
        whole, table = terms, other
        if terms.n_entries < len(other.host) and not other.is_kept:
            # Few rows: only the factors that they meet are copied and rotated.
            met, place = np.unique(terms.col_idx, return_inverse=True)
            table = _Factors(self._memory, other.host[met])
            terms = replace(terms, col_idx=place.astype(np.int32))
        side = _Side(self, table, spectrum)
        status, loss = np.empty(terms.n_rows, np.int32), 0.0
        parts = self._parts(terms, side, prior is not None, options)
        for rows in parts:
            on_device = self._upload(whole if len(parts) == 1 and terms is whole else _some_rows(terms, rows))
            target = _Target(own, slice(at.start + rows.start, at.start + rows.stop))
            means = None if prior is None else prior[rows]
            status[rows], part_loss = self._solve_part(on_device, side, target, means, options, return_loss)
            loss += part_loss
        check_status(status, other.host)
        return loss if return_loss else None

    def _solve_part(
        self,
        terms: _Terms,
        side: _Side,
        target: _Target,
        prior: NDArray[np.floating] | None,
        options: SolveOptions,
        return_loss: bool,
    ) -> tuple[NDArray[np.int32], float]:
        """Solves some rows into their place; their status and their part of the loss."""
        memory, n = self._memory, terms.host.n_rows
        if n == 0:
            return np.zeros(0, np.int32), 0.0
        padded = side.padded
        z = memory.empty(n * padded, np.float32)
        if options.solver != "cholesky":
            side.rotate(target.plain(), n, z, wide=False)
        start = None
        if options.relaxation != 1:
            start = memory.empty(n * padded, np.float32)
            side.rotate(target.plain(), n, start, wide=False)
        means = None
        if prior is not None:
            means = memory.empty(n * padded, np.float32)
            side.rotate(self._plain(prior), n, means, wide=True)
        status = memory.zeros(n, np.int32)
        rows = self._rows(terms, side, z, status, means, options.relaxation)
        whole = np.ones(n, bool)  # rows whose solution is relaxed as a whole, not in steps by the kernel
        if options.solver == "cg":
            self._start_cg(rows, terms.host, side, options.cg_steps, options.cg_tolerance)
        elif options.solver == "subspace" and options.block_size < side.factors:
            whole = self._start_subspace(rows, terms.host, side, options.block_size)
        else:
            self._start_exact(rows, terms.host, side.factors, whole)
        if options.solver != "cg":
            self._mark_undetermined(rows, terms.host, side)
        again, solved = self._solve_again(rows, status, side.factors)
        good = solved == 0
        if start is not None:
            whole[again] = True
            self._relax(rows, terms.host, whole, start)
        target.put(z, side, good)
        return solved, self._total(rows, n, wide=False) if return_loss and good.all() else 0.0

    def _relax(self, rows: Any, terms: RowTerms, whole: NDArray[np.bool_], start: Any) -> None:
        """Starts the relaxation of rows with entries that were solved as a whole."""
        numbers = np.flatnonzero(whole & (np.diff(terms.row_ptr) > 0)).astype(np.int32)
        if len(numbers):
            on_device = self._memory.upload(numbers)
            address = self._memory.address
            self._cuda.relax(rows, address(on_device), len(numbers), address(start), self._memory.stream)

    def _start_exact(self, rows: Any, terms: RowTerms, factors: int, wanted: NDArray[np.bool_]) -> None:
        """Starts the kernels that solve the `wanted` rows exactly."""
        cuda, memory = self._cuda, self._memory
        for part in plan_exact(terms, factors, cuda.LIMITS.kernel_sizes, cuda.LIMITS.giant_entries):
            numbers = part.numbers[wanted[part.numbers]]
            if not len(numbers):
                continue
            if part.form != "sliced":
                on_device = memory.upload(numbers)
                cuda.solve_exact(rows, part.form, part.size, memory.address(on_device), len(numbers), memory.stream)
                continue
            for batch, workspace in self._sliced(terms, numbers, cuda.slot_bytes(factors)):
                cuda.solve_sliced(rows, *batch, workspace, memory.stream)

    def _sliced(
        self, terms: RowTerms, numbers: NDArray[np.int32], slot: int
    ) -> Iterator[tuple[tuple[int, int, int, int], int]]:
        """Batches of giant rows as the kernels take them (slices, how many, rows, how many), each with a workspace of
        `slot` bytes for each slice."""
        memory = self._memory
        for batch in slice_rows(terms.row_ptr, numbers, self._cuda.LIMITS.slice_entries, max(SLOT_MEMORY // slot, 1)):
            slices, sliced = memory.upload(batch.slices), memory.upload(batch.rows)
            workspace = memory.empty(batch.n_slots * slot, np.uint8)
            address = memory.address
            yield (address(slices), len(batch.slices), address(sliced), len(batch.rows)), address(workspace)

    def _start_cg(self, rows: Any, terms: RowTerms, side: _Side, steps: int, tolerance: float) -> None:
        cuda, memory = self._cuda, self._memory
        staged = tuple(cuda.cg_staged_rows(side.factors, size) for size in PANEL_MEMORY)
        empty, plan, giant = plan_cg(terms, staged, cuda.LIMITS.giant_entries)
        if len(empty):
            on_device = memory.upload(empty)
            cuda.solve_exact(rows, "diagonal", 0, memory.address(on_device), len(empty), memory.stream)
        for most, numbers in plan:
            on_device = memory.upload(numbers)
            cuda.solve_cg(rows, memory.address(on_device), len(numbers), most, steps, tolerance, memory.stream)
        for batch, workspace in self._sliced(terms, giant, cuda.cg_slot_bytes(side.factors)):
            cuda.solve_cg_sliced(rows, *batch, steps, tolerance, workspace, memory.stream)

    def _start_subspace(self, rows: Any, terms: RowTerms, side: _Side, block: int) -> NDArray[np.bool_]:
        """Starts subspace steps, and exact solves of short rows; a mask of the latter."""
        cuda, memory = self._cuda, self._memory
        exact, others, giant = plan_subspace(terms, block, cuda.LIMITS.giant_entries)
        self._start_exact(rows, terms, side.factors, exact)
        if not len(others) and not len(giant):
            return exact
        errors, on_device = memory.empty(terms.n_entries, np.float32), memory.upload(others)
        of_errors = memory.address(errors)
        cuda.solve_subspace(rows, block, memory.address(on_device), len(others), of_errors, memory.stream)
        for batch, workspace in self._sliced(terms, giant, cuda.subspace_slot_bytes(block)):
            cuda.solve_subspace_sliced(rows, block, *batch, of_errors, workspace, memory.stream)
        return exact

    def _mark_undetermined(self, rows: Any, terms: RowTerms, side: _Side) -> None:
        """Starts the search for coordinates that nothing determines, in rows where there can be some."""
        assert side.values is not None
        numbers = np.flatnonzero(may_be_undetermined(terms, side.values)).astype(np.int32)
        if len(numbers):
            on_device = self._memory.upload(numbers)
            self._cuda.mark_undetermined(rows, self._memory.address(on_device), len(numbers), self._memory.stream)

    def _solve_again(self, rows: Any, status: Any, factors: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Solves rows that float32 could not, in float64: which they were, and the status of all rows."""
        cuda, memory = self._cuda, self._memory
        found = memory.download(status)
        bad = np.flatnonzero(found).astype(np.int32)
        if not len(bad):
            return bad, found
        together = max(SLOT_MEMORY // cuda.wide_bytes(factors), 1)
        workspace = memory.empty(min(together, len(bad)) * cuda.wide_bytes(factors), np.uint8)
        for first in range(0, len(bad), together):
            numbers = bad[first : first + together]
            on_device = memory.upload(numbers)
            cuda.solve_wide(rows, memory.address(on_device), len(numbers), memory.address(workspace), memory.stream)
        return bad, memory.download(status)

    def _rows(self, terms: _Terms, side: _Side, z: Any, status: Any, prior: Any, relaxation: float = 1.0) -> Any:
        """The problem as the kernels take it; `side` gives the table and, if it has one, the spectrum."""
        address = self._memory.address
        return self._cuda.Rows(
            n_rows=terms.host.n_rows,
            factors=side.factors,
            row_ptr=address(terms.row_ptr),
            col_idx=address(terms.col_idx),
            rhs=self._values(terms.rhs),
            gram=(0, 0) if terms.gram is None else self._values(terms.gram),
            gram_offset=terms.host.gram_offset,
            background=self._values(terms.background),
            ridge=self._values(terms.ridge),
            table=address(side.table),
            column_max=address(side.column_max),
            spectrum=0 if side.spectrum is None else address(side.spectrum),
            gram_bound=address(terms.bound),
            prior=0 if prior is None else address(prior),
            z=address(z),
            status=0 if status is None else address(status),
            relaxation=relaxation,
        )

    def _values(self, array: Any) -> tuple[int, int]:
        """Address and stride of values of which there is one for each index, or one for all."""
        return self._memory.address(array), 0 if len(array) == 1 else 1

    def _upload(self, terms: RowTerms) -> _Terms:
        kept = self._on_device.get(terms)
        # Terms are read-only; of what is small, a change is seen all the same.
        small = (terms.background, terms.ridge)
        if kept is None or not all(np.array_equal(a, b) for a, b in zip(kept.small, small, strict=True)):
            upload = self._memory.upload
            kept = _Terms(
                replace(terms),  # another object: the cache must not keep its own key alive
                upload(terms.row_ptr),
                upload(terms.col_idx),
                upload(terms.rhs),
                None if terms.gram is None else upload(terms.gram),
                upload(terms.background),
                upload(terms.ridge),
                upload(gram_bounds(terms)[0]),
                tuple(values.copy() for values in small),
            )
            self._on_device[terms] = kept
        return kept

    # ------------------------------------------------------------------------------------------------------- memory

    def memory_of(self, sizes: SolveSizes) -> SolveMemory:
        """Bytes of a solve: on the device what must be there at once, and what grows with the rows.

        Rows are solved in parts where both together exceed the limit; the first alone has to fit.
        """
        d, padded = sizes.factors, self._cuda.padded(sizes.factors)
        fixed = 4 * sizes.n_other * (d + padded) + self._cuda.gram_bytes(sizes.n_other, d) + 24 * d**2
        fixed += SLOT_MEMORY + max(self._cuda.slot_bytes(d), self._cuda.wide_bytes(d))
        row = 4 * (d + padded) + (4 * (d + padded) if sizes.has_prior else 0) + (4 * padded if sizes.is_relaxed else 0)
        entry = 12 + (4 if sizes.solver == "subspace" else 0)
        return SolveMemory(4 * sizes.n_rows, fixed, sizes.n_rows * (row + 40) + sizes.n_entries * entry)

    def _parts(self, terms: RowTerms, side: _Side, has_prior: bool, options: SolveOptions) -> list[slice]:
        """Consecutive rows that fit into device memory together."""
        n, is_relaxed = terms.n_rows, options.relaxation != 1
        sizes = SolveSizes(n, side.n, terms.n_entries, side.factors, 4, options.solver, has_prior, is_relaxed)
        _, fixed, growing = self.memory_of(sizes)
        limit = self._available()
        if terms in self._on_device or fixed + growing <= limit:
            return [slice(0, n)]
        if fixed >= limit:
            raise MemoryError(
                f"a solve with {side.n} x {side.factors} factors of the other side takes {fixed} bytes of device "
                f"memory besides its rows; {limit} may be used"
            )
        row, entry = self.memory_of(replace(sizes, n_rows=1, n_other=0, n_entries=0)).growing, 16
        cost = np.arange(n + 1) * row + terms.row_ptr * entry
        starts = [0]
        while starts[-1] < n:
            first = starts[-1]
            end = int(np.searchsorted(cost, cost[first] + limit - fixed, side="right")) - 1
            if end == first:
                raise MemoryError(
                    f"row {first} with {terms.row_ptr[first + 1] - terms.row_ptr[first]} entries does not fit into "
                    f"{limit - fixed} bytes of device memory"
                )
            starts.append(end)
        return [slice(a, b) for a, b in pairwise(starts)]

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]:
        """An (n, D) array, not initialised. float32 alone."""
        array = np.empty((n, factors), dtype)
        self._check_factors(array)
        return array

    def _check_factors(self, factors: NDArray[np.floating]) -> None:
        if str(factors.dtype).removeprefix("torch.") != "float32":  # tensors too
            raise ValueError(f"device='cuda' computes in float32, got factors of dtype {factors.dtype}")
        if not 1 <= factors.shape[1] <= LIMITS.most_factors:
            raise ValueError(f"device='cuda' takes 1 to {LIMITS.most_factors} factors, got {factors.shape[1]}")

    # ------------------------------------------------------------------------------------- Gram matrices and losses

    def spectrum(self, terms: SideTerms, other: NDArray[np.floating]) -> Spectrum:
        """As :meth:`.cpu.CpuBackend.spectrum`; the eigenproblem is solved on the host, in float64."""
        return self._spectrum(terms, _Factors(self._memory, other))

    def _spectrum(self, terms: SideTerms, other: _Factors) -> Spectrum:
        if not has_background(terms):
            return no_spectrum(other.host.shape[1])
        return decompose(self._gram(other, terms.other_background))

    def _gram(self, factors: _Factors, weight: NDArray[np.floating]) -> NDArray[np.float64]:
        cuda, memory = self._cuda, self._memory
        self._check_factors(factors.host)
        n, d = factors.host.shape
        y, w, out = factors.plain(), memory.upload(weight.astype(np.float32)), memory.empty(d * d, np.float64)
        workspace = memory.empty(cuda.gram_bytes(n, d), np.uint8)
        cuda.gram(
            memory.address(y), n, d, self._values(w), memory.address(out), memory.address(workspace), memory.stream
        )
        return memory.download(out).reshape(d, d)

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
        """As :meth:`.cpu.CpuBackend.loss`, dot products and sums in float64."""
        users, items = _Factors(self._memory, user_factors), _Factors(self._memory, item_factors)
        return (
            self._data_loss(user_terms, users, items)
            + self._ridge_loss(users, user_terms.ridge, user_prior)
            + self._ridge_loss(items, item_ridge, item_prior)
        )

    def _data_loss(self, user_terms: RowTerms, users: _Factors, items: _Factors) -> float:
        """The loss but for its ridges."""
        memory, total = self._memory, user_terms.target_square
        side = _Side(self, items, None)
        parts = self._parts(user_terms, side, False, EXACT)
        for rows in parts:
            terms = self._upload(user_terms if len(parts) == 1 else _some_rows(user_terms, rows))
            n = terms.host.n_rows
            x = memory.empty(max(n, 1) * side.padded, np.float32)
            side.rotate(users.plain(rows), n, x, wide=False)
            total += self._total(self._rows(terms, side, x, None, None), n, wide=True)
        user_gram = self._gram(users, user_terms.background)
        item_gram = self._gram(items, user_terms.other_background)
        return total + float(np.vdot(user_gram, item_gram))

    def _total(self, rows: Any, n: int, *, wide: bool) -> float:
        """Sum of the rows' parts of the loss."""
        memory = self._memory
        parts = memory.empty(max(n, 1), np.float64)
        self._cuda.row_loss(rows, wide, memory.address(parts), memory.stream)
        return self._sum(parts, n)

    def _sum(self, values: Any, n: int) -> float:
        memory = self._memory
        out = memory.empty(1, np.float64)
        self._cuda.sum(memory.address(values), n, memory.address(out), memory.stream)
        return float(memory.download(out)[0])

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float:
        """Sum over rows of ``ridge |x - prior|^2``, in float64; `ridge` is (R,) or (1,)."""
        return self._ridge_loss(_Factors(self._memory, factors), ridge, prior)

    def _ridge_loss(
        self, factors: _Factors, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float:
        memory, (n, d) = self._memory, factors.host.shape
        if n == 0:
            return 0.0
        self._check_factors(factors.host)
        x, weight = factors.plain(), memory.upload(ridge.astype(np.float32))
        means = None if prior is None else memory.upload(np.asarray(prior, np.float32))
        parts = memory.empty(n, np.float64)
        self._cuda.ridge_loss(
            memory.address(x),
            0 if means is None else memory.address(means),
            n,
            d,
            self._values(weight),
            memory.address(parts),
            memory.stream,
        )
        return self._sum(parts, n)

    # ---------------------------------------------------------------------------------------------------- the others

    def transpose(self, matrix: csr_matrix) -> csr_matrix:
        """The transposed matrix as CSR with sorted indices; one of float64 is transposed on the host."""
        if matrix.dtype != np.float32 or matrix.shape[0] > np.iinfo(np.int32).max:
            return self._host.transpose(matrix)
        cuda, memory, (n_rows, n_cols), n = self._cuda, self._memory, matrix.shape, len(matrix.indices)
        row_ptr = memory.upload(matrix.indptr.astype(np.int64))
        col_idx, value = memory.upload(matrix.indices.astype(np.int32)), memory.upload(matrix.data)
        t_row_ptr = memory.empty(n_cols + 1, np.int64)
        t_col_idx, t_value = memory.empty(max(n, 1), np.int32), memory.empty(max(n, 1), np.float32)
        workspace = memory.empty(cuda.transpose_bytes(n), np.uint8)
        address = memory.address
        cuda.transpose(
            n_rows,
            n_cols,
            n,
            address(row_ptr),
            address(col_idx),
            address(value),
            address(t_row_ptr),
            address(t_col_idx),
            address(t_value),
            address(workspace),
            memory.stream,
        )
        indptr = memory.download(t_row_ptr)
        if n <= np.iinfo(np.int32).max:
            indptr = indptr.astype(np.int32)
        columns, values = memory.download(t_col_idx)[:n], memory.download(t_value)[:n]
        return csr_matrix((values, columns, indptr), shape=(n_cols, n_rows), copy=False)

    def topk(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, excluded: csr_matrix | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """As :meth:`.cpu.CpuBackend.topk`, for at most 1,024 results; scores are float32.

        The inputs may also be on the device already (torch, DLPack, ``__cuda_array_interface__``); results are on the
        host.
        """
        cuda, (n, d), n_items = self._cuda, queries.shape, items.shape[0]
        kept = min(k, n_items)
        if kept > LIMITS.most_results:
            self.check(k=k)
        if n == 0 or kept == 0:
            return np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
        self._check_factors(items)
        table = self._padded(items)
        limit = self._available()
        each = max(cuda.topk_bytes(4096, n_items, k) // 4096 + 8 * cuda.padded(d) + 8 * k, 1)
        together = min(max(limit // 2 // each, 64), n)
        ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
        for first in range(0, n, together):
            part = slice(first, min(first + together, n))
            ids[part], scores[part] = self._topk(
                queries[part], table, n_items, k, None if excluded is None else excluded[part]
            )
        return ids, scores

    def _topk(
        self, queries: NDArray[np.floating], table: Any, n_items: int, k: int, excluded: csr_matrix | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        cuda, memory, (n, d) = self._cuda, self._memory, queries.shape
        x = self._padded(queries)
        lists = None
        if excluded is not None:
            row_ptr = excluded.indptr.astype(np.int64)
            lists = memory.upload(row_ptr), memory.upload(excluded.indices.astype(np.int32))
        ids, scores = memory.empty(n * k, np.int32), memory.empty(n * k, np.float32)
        workspace = memory.empty(cuda.topk_bytes(n, n_items, k), np.uint8)
        address = memory.address
        cuda.topk(
            address(x),
            n,
            address(table),
            n_items,
            d,
            k,
            0 if lists is None else address(lists[0]),
            0 if lists is None else address(lists[1]),
            address(ids),
            address(scores),
            address(workspace),
            memory.stream,
        )
        return memory.download(ids).reshape(n, k), memory.download(scores).reshape(n, k)

    def _padded(self, factors: Any) -> Any:
        """A copy on the device whose rows fill whole cache lines."""
        cuda, memory, (n, d) = self._cuda, self._memory, factors.shape
        plain, out = self._plain(factors), memory.empty(n * cuda.padded(d), np.float32)
        cuda.rotate(memory.address(plain), n, d, d, 0, False, False, memory.address(out), cuda.padded(d), memory.stream)
        return out

    def topk_listed(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, listed: csr_matrix
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        """As :meth:`.cpu.CpuBackend.topk_listed`, on the host: it touches the listed items alone."""
        return self._host.topk_listed(queries, items, k, listed)

    def score_entries(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], listed: csr_matrix
    ) -> NDArray[np.floating]:
        """As :meth:`.cpu.CpuBackend.score_entries`, on the host, with the bits of :meth:`topk_listed`."""
        return self._host.score_entries(queries, items, listed)


class CudaSession:
    """See :class:`.session.Session`. Factors stay in device memory where they fit and nobody else writes to them; they
    stay in the basis that they began in: rotations cost next to nothing on a device."""

    def __init__(
        self, backend: CudaBackend, users: NDArray[np.floating], items: NDArray[np.floating], is_shared: bool
    ) -> None:
        self._backend, memory = backend, backend._memory
        fit = users.nbytes + items.nbytes <= backend._available() // 4
        plain = all(array.flags.c_contiguous and array.dtype == np.float32 for array in (users, items))
        is_kept = fit and plain and not is_shared
        self._sides = {
            "user": _Factors(memory, users, is_kept=is_kept),
            "item": _Factors(memory, items, is_kept=is_kept),
        }
        self._kept_bytes = users.nbytes + items.nbytes if is_kept else 0
        backend._kept_bytes += self._kept_bytes

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
        backend, own, other = self._backend, self._sides[side], self._sides[other_side(side)]
        backend.check(options=options)
        backend._check_factors(other.host)
        spectrum, total = backend._spectrum(terms, other), 0.0
        for rows, part in terms.parts():
            try:
                means = None if prior is None else prior[rows]
                total += backend._solve(part, other, own, rows, spectrum, options, means, return_loss) or 0.0
            except SingularSystemError as error:
                raise SingularSystemError(rows.start + error.row, error.remedy) from error
            del part  # before the next part is read
        return total if return_loss else None

    def loss(self, user_terms: RowTerms, item_ridge: NDArray[np.floating]) -> float:
        """See :meth:`.session.Session.loss`."""
        data = self._backend._data_loss(user_terms, self._sides["user"], self._sides["item"])
        return data + self.ridge_loss("user", user_terms.ridge) + self.ridge_loss("item", item_ridge)

    def ridge_loss(self, side: str, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None) -> float:
        """See :meth:`.session.Session.ridge_loss`."""
        return self._backend._ridge_loss(self._sides[side], ridge, prior)

    def factors(self, side: str) -> NDArray[np.floating]:
        """See :meth:`.session.Session.factors`."""
        self._sides[side].fetch()
        factors: NDArray[np.floating] = self._sides[side].host
        return factors

    def arrays(self) -> dict[str, NDArray[Any]]:
        """See :meth:`.session.Session.arrays`."""
        return {f"{side}_factors": self.factors(side) for side in self._sides}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """See :meth:`.session.Session.restore`."""
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])
        for factors in self._sides.values():
            factors.refresh()

    def close(self) -> None:
        """See :meth:`.session.Session.close`."""
        for side, factors in self._sides.items():
            factors.fetch()
            self._sides[side] = _Factors(self._backend._memory, factors.host)
        self._backend._kept_bytes -= self._kept_bytes
        self._kept_bytes = 0

    def __enter__(self) -> CudaSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Target:
    """Some rows of a side, to be solved."""

    factors: _Factors
    rows: slice

    def plain(self) -> Any:
        """What they are before, in device memory, flat."""
        return self.factors.plain(self.rows)

    def put(self, z: Any, side: _Side, good: NDArray[np.bool_]) -> None:
        """The rows that are `good` become those of z."""
        self.factors.put(self.rows, z, side, good)


class _Side:
    """The other side's factors on the device, in the basis of its spectrum (None: as they are)."""

    def __init__(self, backend: CudaBackend, factors: _Factors, spectrum: Spectrum | None) -> None:
        self.cuda, self.memory = backend._cuda, backend._memory
        memory, (self.n, self.factors) = self.memory, factors.host.shape
        self.padded = self.cuda.padded(self.factors)
        self.values = None if spectrum is None else np.ascontiguousarray(spectrum.values, np.float64)
        self.spectrum = None if self.values is None else memory.upload(self.values)
        rotation = None if spectrum is None else spectrum.vectors
        self.rotation = None if rotation is None else memory.upload(np.ascontiguousarray(rotation, np.float64))
        self.table = memory.empty(max(self.n, 1) * self.padded, np.float32)
        self.rotate(factors.plain(), self.n, self.table, wide=True)
        self.column_max = memory.zeros(self.padded, np.float32)
        self.cuda.column_max(
            memory.address(self.table), self.n, self.factors, memory.address(self.column_max), memory.stream
        )

    def rotate(self, rows: Any, n: int, out: Any, *, wide: bool) -> None:
        """out (n, padded D) = rows (n, D) in the basis, summed in float64 if `wide`."""
        self._product(rows, n, self.factors, False, wide, out, self.padded)

    def rotate_back(self, z: Any, n: int, out: Any) -> None:
        """out (n, D) = z (n, padded D) in the caller's basis."""
        self._product(z, n, self.padded, True, False, out, self.factors)

    def _product(
        self, rows: Any, n: int, in_stride: int, transposed: bool, wide: bool, out: Any, out_stride: int
    ) -> None:
        address = self.memory.address
        q = 0 if self.rotation is None else address(self.rotation)
        self.cuda.rotate(
            address(rows), n, self.factors, in_stride, q, transposed, wide, address(out), out_stride, self.memory.stream
        )


def _some_rows(terms: RowTerms, rows: slice) -> RowTerms:
    """The terms of consecutive rows."""
    entries = slice(int(terms.row_ptr[rows.start]), int(terms.row_ptr[rows.stop]))

    def part(values: NDArray[np.floating], which: slice) -> NDArray[np.floating]:
        return values if len(values) == 1 else values[which]

    return replace(
        terms,
        row_ptr=terms.row_ptr[rows.start : rows.stop + 1] - entries.start,
        col_idx=terms.col_idx[entries],
        rhs=part(terms.rhs, entries),
        gram=None if terms.gram is None else part(terms.gram, entries),
        background=part(terms.background, rows),
        ridge=part(terms.ridge, rows),
    )
