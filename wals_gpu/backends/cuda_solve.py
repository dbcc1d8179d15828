"""Row solves on the device: which kernels are started for which rows, and what follows where float32 was not enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cuda_device import LARGE_SLOTS, SLOT_MEMORY, Device
from wals_gpu.backends.cuda_factors import Factors, OtherSide, Target, upload_factors
from wals_gpu.backends.cuda_loss import row_loss
from wals_gpu.backends.cuda_plan import may_be_undetermined, plan_cg, plan_exact, plan_subspace, slice_rows
from wals_gpu.backends.cuda_terms import DeviceTerms, TermsCache
from wals_gpu.backends.host import Spectrum, check_status
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.objective.terms import RowTerms

__all__ = ["RowKernels", "RowSolver"]

#: Blocks of conjugate gradients on a processor, whose shared memory keeps their rows' panels: as many as have
#: registers, and fewer for longer rows.
CG_BLOCKS = (3, 2, 1)


class RowSolver:
    """Solves rows of either side, in parts that fit into device memory."""

    def __init__(self, device: Device, cache: TermsCache) -> None:
        self._device, self._cache = device, cache

    def solve(
        self,
        terms: RowTerms,
        other: Factors,
        target: Target,
        spectrum: Spectrum,
        options: SolveOptions,
        return_loss: bool,
    ) -> float | None:
        """Solve the rows of `target`, which have these terms; the loss if `return_loss`."""
        table, has_prior = other, target.prior is not None
        n_other, factors = other.host.shape
        self._device.expect(terms, n_other, factors, options, has_prior=has_prior)
        if terms.n_entries < len(other.host) and not other.is_kept:
            # Few rows: only the factors that they meet are copied and rotated.
            met, place = np.unique(terms.col_idx, return_inverse=True)
            table = Factors(self._device.memory, other.host[met])
            terms = replace(terms, col_idx=place.astype(np.int32))
        side = OtherSide(self._device, table, spectrum)
        status, loss = np.empty(terms.n_rows, np.int32), 0.0
        for rows, part in self._cache.parts(terms, side, options, has_prior=has_prior):
            status[rows], part_loss = self._solve_part(part, side, target.part(rows), options, return_loss)
            loss += part_loss
        check_status(status, other.host)
        return loss if return_loss else None

    def _solve_part(
        self, terms: DeviceTerms, side: OtherSide, target: Target, options: SolveOptions, return_loss: bool
    ) -> tuple[NDArray[np.int32], float]:
        """Solves rows that fit, into their place; their status and their part of the loss."""
        memory, n = self._device.memory, terms.host.n_rows
        if n == 0:
            return np.zeros(0, np.int32), 0.0
        z = side.empty_rows(n) if options.solver == "cholesky" else side.rotate(target.plain(), n, wide=False)
        start = None if options.relaxation == 1 else side.rotate(target.plain(), n, wide=False)
        means = None
        if target.prior is not None:
            means = side.rotate(upload_factors(memory, target.prior), n, wide=True)
        status = memory.zeros(n, np.int32)
        rows = terms.rows(side, z, status, means, options.relaxation)
        kernels = RowKernels(self._device, rows, terms.host, side)
        in_one = kernels.solve(options)
        again, solved = kernels.solve_again(status)
        good = solved == 0
        if start is not None:
            in_one[again] = True
            kernels.relax(in_one, start)
        target.put(z, side, good)
        return solved, row_loss(self._device, rows, n, wide=False) if return_loss and good.all() else 0.0


class RowKernels:
    """Starts the kernels that solve some rows, for each row the one that its length and coefficients ask for.

    Parameters
    ----------
    device : Device
    rows
        The rows as the kernels take them, see :meth:`.cuda_terms.DeviceTerms.rows`.
    terms : RowTerms
        Their terms, on the host.
    side : OtherSide
    """

    def __init__(self, device: Device, rows: Any, terms: RowTerms, side: OtherSide) -> None:
        self._kernels, self._memory, self._limits = device.kernels, device.memory, device.limits
        self._rows, self._terms, self._side = rows, terms, side

    def solve(self, options: SolveOptions) -> NDArray[np.bool_]:
        """Solves all rows once; a mask of those whose solution is relaxed as a whole, not in steps by the kernel."""
        in_one = np.ones(self._terms.n_rows, bool)
        if options.solver == "cg":
            self._solve_cg(options.cg_steps, options.cg_tolerance)
            return in_one
        if options.solver == "subspace" and options.block_size < self._side.factors:
            in_one = self._solve_subspace(options.block_size)
        else:
            self._solve_exact(in_one)
        self._mark_undetermined()
        return in_one

    def solve_again(self, status: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Solves rows that float32 could not, in float64: which they were, and the status of all rows."""
        kernels, memory = self._kernels, self._memory
        first_status = memory.download(status)
        bad = np.flatnonzero(first_status).astype(np.int32)
        if not len(bad):
            return bad, first_status
        slot = kernels.wide_bytes(self._side.factors)
        together = max(SLOT_MEMORY // slot, 1)
        workspace = memory.empty(min(together, len(bad)) * slot, np.uint8)
        for first in range(0, len(bad), together):
            numbers = bad[first : first + together]
            on_device = memory.upload(numbers)
            kernels.solve_wide(
                self._rows, memory.address(on_device), len(numbers), memory.address(workspace), memory.stream
            )
        return bad, memory.download(status)

    def relax(self, mask: NDArray[np.bool_], start: Any) -> None:
        """Relaxes those of these rows that have entries, from where they were at the `start`."""
        numbers = np.flatnonzero(mask & (np.diff(self._terms.row_ptr) > 0)).astype(np.int32)
        if len(numbers):
            memory, on_device = self._memory, self._memory.upload(numbers)
            self._kernels.relax(
                self._rows, memory.address(on_device), len(numbers), memory.address(start), memory.stream
            )

    def _solve_exact(self, mask: NDArray[np.bool_]) -> None:
        kernels, memory, factors = self._kernels, self._memory, self._side.factors
        for part in plan_exact(self._terms, factors, self._limits.kernel_sizes, kernels.LIMITS.giant_entries):
            numbers = part.numbers[mask[part.numbers]]
            if not len(numbers):
                continue
            if part.form == "large":
                on_device, slots = memory.upload(numbers), min(len(numbers), LARGE_SLOTS)
                workspace = memory.empty(slots * kernels.slot_bytes(factors), np.uint8)
                of_rows = memory.address(on_device), len(numbers), slots, memory.address(workspace)
                kernels.solve_large(self._rows, *of_rows, memory.stream)
                del workspace
            elif part.form == "sliced":
                for batch, workspace in self._sliced(numbers, kernels.slot_bytes(factors)):
                    kernels.solve_sliced(self._rows, *batch, workspace, memory.stream)
            else:
                self._solve_in_blocks(part.form, part.size, numbers)

    def _solve_in_blocks(self, form: str, size: int, numbers: NDArray[np.int32]) -> None:
        """Exact solves with the kernel of a form and size, a row in each block."""
        memory, on_device = self._memory, self._memory.upload(numbers)
        self._kernels.solve_exact(self._rows, form, size, memory.address(on_device), len(numbers), memory.stream)

    def _solve_cg(self, steps: int, tolerance: float) -> None:
        kernels, memory, factors = self._kernels, self._memory, self._side.factors
        room = map(self._limits.shared_of_each, CG_BLOCKS)
        staged = tuple(kernels.cg_staged_rows(factors, size) for size in room)
        empty, plan, giant = plan_cg(self._terms, staged, kernels.LIMITS.giant_entries)
        if len(empty):
            self._solve_in_blocks("diagonal", 0, empty)
        for most, numbers in plan:
            on_device = memory.upload(numbers)
            kernels.solve_cg(self._rows, memory.address(on_device), len(numbers), most, steps, tolerance, memory.stream)
        for batch, workspace in self._sliced(giant, kernels.cg_slot_bytes(factors)):
            kernels.solve_cg_sliced(self._rows, *batch, steps, tolerance, workspace, memory.stream)

    def _solve_subspace(self, block: int) -> NDArray[np.bool_]:
        """Steps over blocks of coordinates, and exact solves of short rows; a mask of the latter."""
        kernels, memory = self._kernels, self._memory
        longest = kernels.LIMITS.giant_entries if block <= self._limits.kernel_sizes[-1] else 0
        exact, others, giant = plan_subspace(self._terms, block, longest)
        self._solve_exact(exact)
        if not len(others) and not len(giant):
            return exact
        errors, on_device = memory.empty(self._terms.n_entries, np.float32), memory.upload(others)
        of_errors = memory.address(errors)
        kernels.solve_subspace(self._rows, block, memory.address(on_device), len(others), of_errors, memory.stream)
        for batch, workspace in self._sliced(giant, kernels.subspace_slot_bytes(block)):
            kernels.solve_subspace_sliced(self._rows, block, *batch, of_errors, workspace, memory.stream)
        return exact

    def _mark_undetermined(self) -> None:
        """Looks for coordinates that nothing determines, in rows where there can be some."""
        assert self._side.values is not None
        numbers = np.flatnonzero(may_be_undetermined(self._terms, self._side.values)).astype(np.int32)
        if len(numbers):
            memory, on_device = self._memory, self._memory.upload(numbers)
            self._kernels.mark_undetermined(self._rows, memory.address(on_device), len(numbers), memory.stream)

    def _sliced(self, numbers: NDArray[np.int32], slot: int) -> Iterator[tuple[tuple[int, int, int, int], int]]:
        """Batches of giant rows as the kernels take them (slices, how many, rows, how many), each with a workspace of
        `slot` bytes for each slice."""
        memory, address, entries = self._memory, self._memory.address, self._kernels.LIMITS.slice_entries
        for batch in slice_rows(self._terms.row_ptr, numbers, entries, max(SLOT_MEMORY // slot, 1)):
            slices, sliced = memory.upload(batch.slices), memory.upload(batch.rows)
            workspace = memory.empty(batch.n_slots * slot, np.uint8)
            yield (address(slices), len(batch.slices), address(sliced), len(batch.rows)), address(workspace)
