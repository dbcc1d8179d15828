"""The terms of rows on the device: copied there once, or in parts where they do not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import LARGE_SLOTS, SLOT_MEMORY, Device
from wals_gpu.backends.cuda_factors import OtherSide
from wals_gpu.backends.cuda_plan import Rows, gram_bounds, plan_rows, slice_rows
from wals_gpu.backends.host import has_background
from wals_gpu.backends.solve import EXACT, SolveOptions, SolveSizes
from wals_gpu.objective.terms import RowTerms, SideTerms

__all__ = ["DeviceRows", "DeviceTerms", "TermsCache", "fitting_parts"]


#: Blocks of conjugate gradients on a processor, whose shared memory keeps their rows' panels: as many as have
#: registers, and fewer for longer rows.
CG_BLOCKS = (3, 2, 1)

#: The arrays that decide which kernel solves which row.
_PLANNED = ("row_ptr", "col_idx", "rhs", "gram")


@dataclass(frozen=True)
class DeviceRows:
    """A :class:`.cuda_plan.Rows` on the device. `rows` is what calls of the module are given: row numbers and how many,
    or for each batch of slices these, its rows, and how many; batches share a workspace of so many bytes."""

    form: str
    size: int
    rows: list[tuple[Any, ...]]
    workspace: int = 0


class DeviceTerms:
    """The terms of some rows, in device memory, and which kernels solve them.

    Of terms that `like` was copied from, arrays that are still the same are not copied again.
    """

    def __init__(self, device: Device, terms: RowTerms, like: DeviceTerms | None = None) -> None:
        self._device = device
        self.host = replace(terms)  # another object: a cache must not keep its own key alive
        self._small = {name: getattr(terms, name).copy() for name in ("background", "ridge", "other_background")}
        self._arrays: dict[str, Any] = {}
        for name in (*_PLANNED, *self._small):
            array = getattr(terms, name)
            if like is not None and getattr(like.host, name) is array and like.is_unchanged(name, array):
                self._arrays[name] = like._arrays[name]
            elif array is not None:
                self._arrays[name] = device.memory.upload(array)
        planned = like if like is not None and like.shares(terms) else None
        self._plans: dict[tuple[Any, ...], list[DeviceRows]] = {} if planned is None else planned._plans
        self._bound: Any = device.memory.upload(gram_bounds(terms)[0]) if planned is None else planned._bound
        self.has_background = has_background(terms)

    def shares(self, terms: RowTerms) -> bool:
        """Whether the rows are those of these terms but for what is small."""
        same = all(getattr(self.host, name) is getattr(terms, name) for name in _PLANNED)
        return same and self.host.gram_offset == terms.gram_offset

    def is_unchanged(self, name: str, array: Any) -> bool:
        """Whether an array that was copied is as it was; one that is large is taken to be."""
        return name not in self._small or np.array_equal(self._small[name], array)

    def is_copy_of(self, terms: SideTerms) -> bool:
        """Whether `terms`, which these were copied from, are as they were.

        Terms are read-only; of what is small, a change is seen all the same.
        """
        return all(self.is_unchanged(name, getattr(terms, name)) for name in self._small)

    def array(self, name: str) -> Any:
        """One of their arrays on the device."""
        return self._arrays[name]

    def plan(self, factors: int, options: SolveOptions) -> list[DeviceRows]:
        """Which kernels solve the rows; made once, and kept on the device with its lists of rows."""
        kernels, limits = self._device.kernels, self._device.limits
        key = factors, options.solver, options.block_size, limits
        plan = self._plans.get(key)
        if plan is None:
            staged = tuple(kernels.cg_staged_rows(factors, limits.shared_of_each(blocks)) for blocks in CG_BLOCKS)
            giant = kernels.LIMITS.giant_entries
            rows_of = plan_rows(self.host, factors, options, limits.kernel_sizes, giant, staged)
            plan = self._plans[key] = [self._upload(rows, factors, options) for rows in rows_of]
        return plan

    def _upload(self, rows: Rows, factors: int, options: SolveOptions) -> DeviceRows:
        kernels, upload = self._device.kernels, self._device.memory.upload
        n, slots = len(rows.numbers), min(len(rows.numbers), LARGE_SLOTS)
        if not rows.form.startswith("sliced"):
            workspace = slots * kernels.slot_bytes(factors) if rows.form == "large" else 0
            return DeviceRows(rows.form, rows.size, [(upload(rows.numbers), n)], workspace)
        bytes_of = kernels.cg_slot_bytes if rows.form == "sliced cg" else kernels.slot_bytes
        slot = bytes_of(options.block_size if rows.form == "sliced subspace" else factors)
        entries, most = kernels.LIMITS.slice_entries, max(SLOT_MEMORY // slot, 1)
        batches = slice_rows(self.host.row_ptr, rows.numbers, entries, most)
        on_device = [(upload(b.slices), len(b.slices), upload(b.rows), len(b.rows)) for b in batches]
        return DeviceRows(rows.form, rows.size, on_device, slot * max(batch.n_slots for batch in batches))

    def rows(self, side: OtherSide, z: Any, status: Any = None, prior: Any = None, relaxation: float = 1.0) -> Any:
        """The rows as the kernels take them; `side` gives the table and, if it has one, the spectrum.

        They hold addresses alone: the arrays must live as long.
        """
        address, values, arrays = self._device.memory.address, self._device.values, self._arrays
        return self._device.kernels.Rows(
            n_rows=self.host.n_rows,
            factors=side.factors,
            row_ptr=address(arrays["row_ptr"]),
            col_idx=address(arrays["col_idx"]),
            rhs=values(arrays["rhs"]),
            gram=values(arrays["gram"]) if "gram" in arrays else (0, 0),
            gram_offset=self.host.gram_offset,
            background=values(arrays["background"]),
            ridge=values(arrays["ridge"]),
            table=address(side.table),
            column_max=address(side.column_max),
            spectrum=0 if side.spectrum is None else address(side.spectrum),
            gram_bound=address(self._bound),
            prior=0 if prior is None else address(prior),
            z=address(z),
            status=0 if status is None else address(status),
            relaxation=relaxation,
        )


class TermsCache:
    """Terms of the caller, copied to the device once and kept there as long as the caller keeps them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.kept: WeakKeyDictionary[RowTerms, DeviceTerms] = WeakKeyDictionary()

    def find(self, terms: SideTerms) -> DeviceTerms | None:
        """These terms on the device, if they are there."""
        kept = self.kept.get(terms) if isinstance(terms, RowTerms) else None
        return kept if kept is not None and kept.is_copy_of(terms) else None

    def upload(self, terms: RowTerms) -> DeviceTerms:
        """These terms on the device."""
        kept = self.find(terms)
        if kept is None:
            kept = self.kept[terms] = DeviceTerms(self._device, terms, self._like(terms))
        return kept

    def _like(self, terms: RowTerms) -> DeviceTerms | None:
        """Terms on the device that have the same rows."""
        return next((kept for kept in self.kept.values() if kept.shares(terms)), None)

    def ridge(self, ridge: NDArray[np.floating]) -> Any:
        """A ridge on the device: in place where it is that of terms there."""
        for kept in self.kept.values():
            if kept.host.ridge is ridge and kept.is_unchanged("ridge", ridge):
                return kept.array("ridge")
        return self._device.memory.upload(ridge.astype(np.float32))

    def other_background(self, terms: SideTerms) -> tuple[bool, Any]:
        """Whether unobserved pairs weigh anything, and if so the weight of the other side's rows on the device."""
        kept = self.find(terms)
        if not (has_background(terms) if kept is None else kept.has_background):
            return False, None
        like = kept if kept is not None or not isinstance(terms, RowTerms) else self._like(terms)
        if like is not None and like.host.other_background is terms.other_background:
            return True, like.array("other_background")
        return True, self._device.memory.upload(np.asarray(terms.other_background, np.float32))

    def parts(
        self, terms: RowTerms, side: OtherSide, options: SolveOptions = EXACT, *, has_prior: bool = False
    ) -> Iterator[tuple[slice, DeviceTerms]]:
        """Consecutive rows that fit into device memory together, and their terms on the device."""
        n, is_relaxed = terms.n_rows, options.relaxation != 1
        sizes = SolveSizes(n, side.n, terms.n_entries, side.factors, 4, options.solver, has_prior, is_relaxed)
        parts = [slice(0, n)] if terms in self.kept else fitting_parts(self._device, terms, sizes)
        for rows in parts:
            yield rows, self.upload(terms if len(parts) == 1 else terms.some(rows))


def fitting_parts(device: Device, terms: RowTerms, sizes: SolveSizes) -> list[slice]:
    """Consecutive rows that fit into device memory together, in a solve of these sizes.

    Raises
    ------
    MemoryError
        What a solve needs besides its rows, or one of the rows, does not fit.
    """
    n, limit = terms.n_rows, device.available()
    _, fixed, growing = device.memory_of(sizes)
    if fixed + growing <= limit:
        return [slice(0, n)]
    if fixed >= limit:
        raise MemoryError(
            f"a solve with {sizes.n_other} x {sizes.factors} factors of the other side takes {fixed} bytes of device "
            f"memory besides its rows; {limit} may be used"
        )
    row, entry = device.memory_of(replace(sizes, n_rows=1, n_other=0, n_entries=0)).growing, 16
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
