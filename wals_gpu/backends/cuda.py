"""The CUDA backend: NumPy arrays in and out, device memory of :mod:`.cuda_memory`, native kernels in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda_memory import Memory, TorchMemory, load_cuda
from wals_gpu.backends.cuda_plan import gram_bounds, may_be_undetermined, plan_cg, plan_exact, plan_subspace, slice_rows
from wals_gpu.backends.host import Spectrum
from wals_gpu.objective.terms import RowTerms

if TYPE_CHECKING:
    from wals_gpu.data.stored import StoredTerms

__all__ = ["CudaBackend"]

#: Sizes of shared memory that conjugate gradients keep a row's panel in: 5, 2 and 1 blocks on a processor.
PANEL_MEMORY = (32 << 10, 80 << 10, LIMITS.shared_memory)

#: Bytes that the matrices of sliced rows, and of rows in float64, take at a time.
SLOT_MEMORY = 1 << 28


@dataclass
class _Held:
    """Factors of the caller in device memory, (n D)."""

    host: NDArray[np.float32]
    device: Any
    is_ahead: bool = False  # of the host's


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
    copied to the device once, factors on each call, or between :meth:`hold` and :meth:`release` not at all.

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
        self._held: list[_Held] = []

    # ------------------------------------------------------------------------------------------ factors on the device

    def hold(self, *factors: NDArray[np.floating]) -> None:
        """Keep these arrays (C-ordered float32) in device memory until :meth:`release`, if all take less than a quarter
        of it. Others, and views of whole rows of these, may be handed in meanwhile."""
        self.release()
        size = sum(array.nbytes for array in factors)
        if size <= self._available() // 4 and all(a.flags.c_contiguous and a.dtype == np.float32 for a in factors):
            self._held = [_Held(array, self._memory.upload(array)) for array in factors if array.size]

    def fetch(self) -> None:
        """Bring the held arrays up to date."""
        for each in self._held:
            if each.is_ahead:
                each.host[...] = self._memory.download(each.device).reshape(each.host.shape)
                each.is_ahead = False

    def release(self) -> None:
        """End :meth:`hold`; the arrays are up to date then."""
        self.fetch()
        self._held = []

    def _available(self) -> int:
        """Device memory for anything else."""
        if self._limit is None:
            return self._memory.free_bytes() * 9 // 10
        return self._limit - sum(each.host.nbytes for each in self._held)

    def _find_held(self, factors: Any) -> tuple[_Held, slice] | None:
        """Held factors that have these as some of their rows, and where in them."""
        if not isinstance(factors, np.ndarray) or not factors.flags.c_contiguous or factors.dtype != np.float32:
            return None
        for each in self._held:
            first, rest = divmod(factors.ctypes.data - each.host.ctypes.data, 4)
            if factors.shape[1:] == each.host.shape[1:] and not rest and 0 <= first <= each.host.size - factors.size:
                return each, slice(first, first + factors.size)
        return None

    def _plain(self, factors: Any) -> Any:
        """Factors (n, D) in device memory, flat."""
        found = self._find_held(factors)
        if found is not None:
            return found[0].device[found[1]]
        return self._memory.upload(np.asarray(factors, np.float32) if isinstance(factors, np.ndarray) else factors)

    def _put(self, z: Any, side: _Side, factors: NDArray[np.floating], good: NDArray[np.bool_]) -> None:
        """Rows of `factors` that are `good` become those of z in the caller's basis."""
        found = self._find_held(factors)
        if found is not None and good.all():
            side.rotate_back(z, len(factors), found[0].device[found[1]])
            found[0].is_ahead = True
            return
        out = self._memory.empty(factors.size, np.float32)
        side.rotate_back(z, len(factors), out)
        self.fetch()
        factors[good] = self._memory.download(out).reshape(factors.shape)[good]
        if found is not None:
            found[0].device = self._memory.upload(found[0].host)

    # ---------------------------------------------------------------------------------------------------- row solves

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
        """As :meth:`.cpu.CpuBackend.solve_rows`. `basis` is not used; `block_size` is at most 256."""
        if solver not in ("cholesky", "cg", "subspace"):
            raise ValueError(f"solver must be 'cholesky', 'cg' or 'subspace', got {solver!r}")
        tile, most = LIMITS.tile, LIMITS.kernel_sizes[-1]
        if solver == "subspace" and (block_size < tile or block_size % tile or block_size > most):
            raise ValueError(
                f"block_size must be a multiple of {tile} from {tile} to {most} on a CUDA device, got {block_size}"
            )
        if not 0 < relaxation < 2:
            raise ValueError(f"relaxation must be above 0 and below 2, got {relaxation}")
        self._check_factors(other)
        values, rotation = self.spectrum(terms, other) if spectrum is None else spectrum
        whole, table = terms, other
        if terms.n_entries < len(other) and self._find_held(other) is None:
            # Few rows: only the factors that they meet are copied and rotated.
            met, place = np.unique(terms.col_idx, return_inverse=True)
            table, terms = other[met], replace(terms, col_idx=place.astype(np.int32))
        side = _Side(self, table, values, rotation)
        status, loss = np.empty(terms.n_rows, np.int32), 0.0
        how = {"solver": solver, "cg_steps": cg_steps, "cg_tolerance": cg_tolerance, "block_size": block_size}
        how["relaxation"] = relaxation
        parts = self._parts(terms, side, prior is not None, solver, relaxation != 1)
        for rows in parts:
            on_device = self._upload(whole if len(parts) == 1 and terms is whole else _some_rows(terms, rows))
            solved, part_loss = self._solve_part(
                on_device, side, factors[rows], None if prior is None else prior[rows], how, return_loss
            )
            status[rows], loss = solved, loss + part_loss
        CpuBackend._check(status, other)
        return loss if return_loss else None

    def _solve_part(
        self,
        terms: _Terms,
        side: _Side,
        factors: NDArray[np.floating],
        prior: NDArray[np.floating] | None,
        how: dict[str, Any],
        return_loss: bool,
    ) -> tuple[NDArray[np.int32], float]:
        """Solves some rows into `factors`, a view of the caller's; their status and their part of the loss."""
        memory, n = self._memory, terms.host.n_rows
        if n == 0:
            return np.zeros(0, np.int32), 0.0
        solver, padded = how["solver"], side.padded
        z = memory.empty(n * padded, np.float32)
        if solver != "cholesky":
            side.rotate(self._plain(factors), n, z, wide=False)
        start = None
        if how["relaxation"] != 1:
            start = memory.empty(n * padded, np.float32)
            side.rotate(self._plain(factors), n, start, wide=False)
        means = None
        if prior is not None:
            means = memory.empty(n * padded, np.float32)
            side.rotate(self._plain(prior), n, means, wide=True)
        status = memory.zeros(n, np.int32)
        rows = self._rows(terms, side, z, status, means, how["relaxation"])
        whole = np.ones(n, bool)  # rows whose solution is relaxed as a whole, not in steps by the kernel
        if solver == "cg":
            self._start_cg(rows, terms.host, side, how["cg_steps"], how["cg_tolerance"])
        elif solver == "subspace" and how["block_size"] < side.factors:
            whole = self._start_subspace(rows, terms.host, side, how["block_size"])
        else:
            self._start_exact(rows, terms.host, side.factors, whole)
        if solver != "cg":
            self._mark_undetermined(rows, terms.host, side)
        again, solved = self._solve_again(rows, status, side.factors)
        good = solved == 0
        if start is not None:
            whole[again] = True
            numbers = np.flatnonzero(whole & (np.diff(terms.host.row_ptr) > 0)).astype(np.int32)
            if len(numbers):
                on_device = memory.upload(numbers)
                self._cuda.relax(rows, memory.address(on_device), len(numbers), memory.address(start), memory.stream)
        self._put(z, side, factors, good)
        return solved, self._total(rows, n, wide=False) if return_loss and good.all() else 0.0

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

    def estimate_memory(
        self,
        n_rows: int,
        n_other: int,
        n_entries: int,
        factors: int,
        *,
        solver: str = "cholesky",
        prior: bool = False,
        relaxed: bool = False,
    ) -> tuple[int, int]:
        """Device memory of a solve, in bytes: what must be there at once, and what grows with the rows.

        Rows are solved in parts where both together exceed the limit; the first alone has to fit.
        """
        padded = self._cuda.padded(factors)
        fixed = 4 * n_other * (factors + padded) + self._cuda.gram_bytes(n_other, factors) + 24 * factors**2
        fixed += SLOT_MEMORY + max(self._cuda.slot_bytes(factors), self._cuda.wide_bytes(factors))
        row = 4 * (factors + padded) + (4 * (factors + padded) if prior else 0) + (4 * padded if relaxed else 0) + 40
        entry = 12 + (4 if solver == "subspace" else 0)
        return fixed, n_rows * row + n_entries * entry

    def _parts(self, terms: RowTerms, side: _Side, prior: bool, solver: str, relaxed: bool = False) -> list[slice]:
        """Consecutive rows that fit into device memory together."""
        n, factors = terms.n_rows, side.factors
        how: dict[str, Any] = {"solver": solver, "prior": prior, "relaxed": relaxed}
        fixed, growing = self.estimate_memory(n, side.n, terms.n_entries, factors, **how)
        limit = self._available()
        if terms in self._on_device or fixed + growing <= limit:
            return [slice(0, n)]
        if fixed >= limit:
            raise MemoryError(
                f"a solve with {side.n} x {factors} factors of the other side takes {fixed} bytes of device memory "
                f"besides its rows; {limit} may be used"
            )
        row, entry = self.estimate_memory(1, 0, 0, factors, **how)[1], 16
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

    def moving_basis(self, factors: NDArray[np.floating], other: NDArray[np.floating]) -> None:
        """None: rotations cost next to nothing on a device, and the caller's factors stay in their own basis."""

    def restore_basis(
        self, factors: NDArray[np.floating], other: NDArray[np.floating], basis: NDArray[np.float64]
    ) -> None:
        """Not called: there is no moving basis."""
        raise ValueError("device='cuda' has no moving basis")

    # ------------------------------------------------------------------------------------- Gram matrices and losses

    def spectrum(self, terms: RowTerms | StoredTerms, other: NDArray[np.floating]) -> Spectrum:
        """As :meth:`.cpu.CpuBackend.spectrum`; the eigenproblem is solved on the host, in float64."""
        if not np.any(terms.background) or not np.any(terms.other_background):
            return Spectrum(np.zeros(other.shape[1]), None)
        return self._host.decompose(self._gram(other, terms.other_background))

    def _gram(self, factors: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float64]:
        cuda, memory = self._cuda, self._memory
        self._check_factors(factors)
        n, d = factors.shape
        y, w, out = self._plain(factors), memory.upload(weight.astype(np.float32)), memory.empty(d * d, np.float64)
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
        memory, total = self._memory, user_terms.target_square
        side = _Side(self, item_factors, None, None)
        parts = self._parts(user_terms, side, False, "cholesky")
        for rows in parts:
            terms = self._upload(user_terms if len(parts) == 1 else _some_rows(user_terms, rows))
            n = terms.host.n_rows
            x = memory.empty(max(n, 1) * side.padded, np.float32)
            side.rotate(self._plain(user_factors[rows]), n, x, wide=False)
            total += self._total(self._rows(terms, side, x, None, None), n, wide=True)
        user_gram = self._gram(user_factors, user_terms.background)
        item_gram = self._gram(item_factors, user_terms.other_background)
        return (
            total
            + float(np.vdot(user_gram, item_gram))
            + self.ridge_loss(user_factors, user_terms.ridge, user_prior)
            + self.ridge_loss(item_factors, item_ridge, item_prior)
        )

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
        memory, (n, d) = self._memory, factors.shape
        if n == 0:
            return 0.0
        self._check_factors(factors)
        x, weight = self._plain(factors), memory.upload(ridge.astype(np.float32))
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
            raise ValueError(f"k must be at most {LIMITS.most_results} on a CUDA device, got {k}")
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


class _Side:
    """The other side's factors on the device, in the basis of its spectrum (values None: as they are)."""

    def __init__(
        self,
        backend: CudaBackend,
        factors: NDArray[np.floating],
        values: NDArray[np.float64] | None,
        rotation: NDArray[np.float64] | None,
    ) -> None:
        self.cuda, self.memory = backend._cuda, backend._memory
        memory, (self.n, self.factors) = self.memory, factors.shape
        self.padded, self.values = self.cuda.padded(self.factors), values
        self.spectrum = None if values is None else memory.upload(np.ascontiguousarray(values, np.float64))
        self.rotation = None if rotation is None else memory.upload(np.ascontiguousarray(rotation, np.float64))
        self.table = memory.empty(max(self.n, 1) * self.padded, np.float32)
        self.rotate(backend._plain(factors), self.n, self.table, wide=True)
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
