"""Row solves on the device: which kernels are started for which rows, and what follows where float32 was not enough.

The host decides nothing on the way: kernels list the rows that need a second solve, and count those that even that does
not solve, in an :class:`Outcome` that is read once they have all been started.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cuda_device import LARGE_SLOTS, SLOT_MEMORY, Buffers, Device
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, OnDevice, OtherSide, Target, upload_factors
from wals_gpu.backends.cuda_loss import add_ridge_loss, add_row_loss
from wals_gpu.backends.cuda_plan import takes_steps
from wals_gpu.backends.cuda_terms import DeviceRows, DeviceTerms, TermsCache
from wals_gpu.backends.host import check_status
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.objective.terms import RowTerms

__all__ = ["Outcome", "RowKernels", "RowSolver", "Started", "ridge_loss"]


class Outcome:
    """What some solves leave for the host, in one small array on the device.

    `loss` and `ridge` are sums over rows; `failed` (2,) counts the rows that were not solved, in each of two
    half-sweeps.
    """

    RECORD = np.dtype([("loss", np.float64), ("ridge", np.float64), ("failed", np.int32, 2)])

    def __init__(self, device: Device) -> None:
        self._device = device
        self._array = device.memory.empty(self.RECORD.itemsize // 4, np.int32)
        self.clear()

    def clear(self) -> None:
        """All 0 again."""
        self._device.start("clear", self._array, self.RECORD.itemsize // 4)

    def address(self, name: str, half: int = 0) -> int:
        """Where a number of it is on the device."""
        start: int = self.RECORD.fields[name][1]  # type: ignore[index]  # it has fields
        return self._device.memory.address(self._array) + start + 4 * half

    def read(self) -> Any:
        """A record on the host; waits for all that was started."""
        return self._device.memory.download(self._array).view(self.RECORD)[0]


def ridge_loss(
    device: Device, factors: Factors, weight: Any, buffers: Buffers, prior: NDArray[np.floating] | OnDevice | None
) -> float:
    """As :meth:`.cpu.CpuBackend.ridge_loss`, of a weight (R,) or (1,) float32 on the device; waits."""
    outcome = Outcome(device)
    add_ridge_loss(device, factors, weight, outcome.address("ridge"), buffers, prior)
    return float(outcome.read()["ridge"])


@dataclass(frozen=True)
class Started:
    """A half-sweep whose kernels have been started: the status of its rows, and the factors that they were given."""

    status: Callable[[], NDArray[np.int32]]
    other: Factors

    def check(self) -> None:
        """Raise for the rows that were not solved, see :func:`.host.check_status`; waits."""
        self.other.fetch()
        check_status(self.status(), self.other.host)


class RowSolver:
    """Solves rows of either side, in parts that fit into device memory."""

    def __init__(self, device: Device, cache: TermsCache) -> None:
        self._device, self._cache = device, cache

    def solve(
        self,
        terms: RowTerms,
        other: Factors,
        target: Target,
        spectrum: DeviceSpectrum,
        options: SolveOptions,
        return_loss: bool,
        buffers: Buffers,
    ) -> float | None:
        """Solve the rows of `target`, which have these terms; the loss if `return_loss`."""
        outcome = Outcome(self._device)
        started = self.start(terms, other, target, spectrum, options, outcome, buffers, return_loss=return_loss)
        found = outcome.read()
        if found["failed"][0]:
            started.check()
        return float(found["loss"]) if return_loss else None

    def start(
        self,
        terms: RowTerms,
        other: Factors,
        target: Target,
        spectrum: DeviceSpectrum,
        options: SolveOptions,
        outcome: Outcome,
        buffers: Buffers,
        *,
        half: int = 0,
        return_loss: bool = False,
    ) -> Started:
        """Start all that :meth:`solve` does, without a wait where a session keeps the factors.

        What comes of it is added to the `outcome`. In its second half nothing is written if the first failed.
        """
        table, memory, has_prior = other, self._device.memory, target.prior is not None
        n_other, factors = other.host.shape
        self._device.expect(terms, n_other, factors, options, has_prior=has_prior)
        if terms.n_entries < len(other.host) and not other.is_kept:
            # Few rows: only the factors that they meet are copied and rotated.
            met, place = np.unique(terms.col_idx, return_inverse=True)
            table = Factors(memory, other.host[met], other.name)
            terms = replace(terms, col_idx=place.astype(np.int32))
        side = OtherSide(self._device, table, spectrum, buffers)
        # In front of the status of all rows, how many of a part are solved again.
        status = buffers.get(f"{target.factors.name} status", terms.n_rows + 1, np.int32)
        count = memory.address(status)
        self._device.start("clear", count, terms.n_rows + 1)
        for rows, part in self._cache.parts(terms, side, options, has_prior=has_prior):
            if rows.start:
                self._device.start("clear", count, 1)
            kernels = RowKernels(self._device, part, side, buffers, options)
            kernels.solve(target.part(rows), status[1 + rows.start : 1 + rows.stop], count, outcome, half)
            if return_loss:
                n, loss = rows.stop - rows.start, outcome.address("loss")
                add_row_loss(self._device, kernels.rows, n, loss, buffers, wide=False)
        return Started(lambda: memory.download(status)[1 : terms.n_rows + 1], other)


class RowKernels:
    """Starts the kernels that solve some rows, for each row the one that its length and coefficients ask for."""

    def __init__(
        self, device: Device, terms: DeviceTerms, side: OtherSide, buffers: Buffers, options: SolveOptions
    ) -> None:
        self._device, self._memory = device, device.memory
        self._terms, self._side, self._buffers, self._options = terms, side, buffers, options
        self.rows: Any = None

    def solve(self, target: Target, status: Any, count: int, outcome: Outcome, half: int) -> None:
        """Solve the rows of `target` into their place; their `status`, and *count, are 0 before."""
        side, options, n = self._side, self._options, self._terms.host.n_rows
        if n == 0:
            return
        name = target.factors.name
        z = side.empty_rows(n, name)
        if options.solver != "cholesky":
            side.rotate(target.plain(), n, z, wide=False)
        start = None
        if options.relaxation != 1:
            start = side.rotate(target.plain(), n, side.empty_rows(n, "start"), wide=False)
        means = None
        if target.prior is not None:
            prior = upload_factors(self._memory, target.prior)
            means = side.rotate(prior, n, side.empty_rows(n, "means"), wide=True)
        self.rows = self._terms.rows(side, z, status, means, options.relaxation)
        self._solve_once()
        numbers = self._buffers.get("again", n, np.int32)
        self.solve_again(numbers, count, outcome.address("failed") if half else 0, outcome.address("failed", half))
        if start is not None:
            self._relax(start, numbers, count)
        target.put(z, side, status)

    def solve_again(self, numbers: Any, count: int, before: int, failed: int) -> None:
        """Rows that float32 could not solve are listed, and solved in float64."""
        self._device.start("review", self.rows, self._options.solver != "cg", before, numbers, count)
        slot = self._device.kernels.wide_bytes(self._side.factors)
        slots = max(min(self._terms.host.n_rows, LIMITS.blocks_of_device, SLOT_MEMORY // slot), 1)
        self._device.start("solve_wide", self.rows, numbers, count, slots, self._workspace(slots * slot), failed)

    def _relax(self, start: Any, numbers: Any, count: int) -> None:
        """Rows that have entries are relaxed, from where they were at the `start`; those that steps have relaxed only
        where they were solved again."""
        in_steps = takes_steps(self._options, self._side.factors)
        most = self._options.block_size if in_steps else self._terms.host.n_entries
        self._device.start("relax", self.rows, most, None, None, start)
        if in_steps:
            self._device.start("relax", self.rows, most, numbers, count, start)

    def _solve_once(self) -> None:
        """The rows with most entries on one stream, beside them all others."""
        most, *others = self._terms.plan(self._side.factors, self._options)
        if not others:
            self._start(most, self._memory.stream)
            return
        self._workspace(max(part.workspace for part in (most, *others)))  # for all, before the streams part
        with self._memory.side_stream() as stream:
            self._start(most, self._memory.stream)
            for part in others:  # those that need a workspace share it, and so a stream
                self._start(part, self._memory.stream if most.workspace and part.workspace else stream)

    def _workspace(self, n_bytes: int) -> Any:
        return self._buffers.get("slots", n_bytes, np.uint8)

    def _start(self, part: DeviceRows, stream: Any) -> None:
        options, steps = self._options, (self._options.cg_steps, self._options.cg_tolerance)
        workspace = self._workspace(part.workspace) if part.workspace else None
        has_errors, n = part.form.endswith("subspace"), self._terms.host.n_entries
        errors = self._buffers.get("errors", n, np.float32) if has_errors else None
        for rows in part.rows:
            call, *arguments = {
                "cg": ("solve_cg", *rows, part.size, *steps),
                "subspace": ("solve_subspace", options.block_size, *rows, errors),
                "large": ("solve_large", *rows, min(rows[-1], LARGE_SLOTS), workspace),
                "sliced cg": ("solve_cg_sliced", *rows, *steps, workspace),
                "sliced subspace": ("solve_subspace_sliced", options.block_size, *rows, errors, workspace),
                "sliced exact": ("solve_sliced", *rows, workspace),
            }.get(part.form, ("solve_exact", part.form, part.size, *rows))
            self._device.start(call, self.rows, *arguments, stream=stream)
