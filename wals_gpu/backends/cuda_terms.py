"""The terms of rows on the device: copied there once, or in parts where they do not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_factors import OtherSide
from wals_gpu.backends.cuda_plan import gram_bounds
from wals_gpu.backends.solve import EXACT, SolveOptions, SolveSizes
from wals_gpu.objective.terms import RowTerms

__all__ = ["DeviceTerms", "TermsCache", "fitting_parts", "some_rows"]


class DeviceTerms:
    """The terms of some rows, in device memory."""

    def __init__(self, device: Device, terms: RowTerms) -> None:
        upload = device.memory.upload
        self._device = device
        self.host = replace(terms)  # another object: a cache must not keep its own key alive
        self._row_ptr = upload(terms.row_ptr)
        self._col_idx = upload(terms.col_idx)
        self._rhs = upload(terms.rhs)
        self._gram = None if terms.gram is None else upload(terms.gram)
        self._background = upload(terms.background)
        self._ridge = upload(terms.ridge)
        self._bound = upload(gram_bounds(terms)[0])
        self._small = terms.background.copy(), terms.ridge.copy()

    def is_copy_of(self, terms: RowTerms) -> bool:
        """Whether `terms`, which these were copied from, are as they were.

        Terms are read-only; of what is small, a change is seen all the same.
        """
        return all(np.array_equal(a, b) for a, b in zip(self._small, (terms.background, terms.ridge), strict=True))

    def rows(self, side: OtherSide, z: Any, status: Any = None, prior: Any = None, relaxation: float = 1.0) -> Any:
        """The rows as the kernels take them; `side` gives the table and, if it has one, the spectrum.

        They hold addresses alone: the arrays must live as long.
        """
        address, values = self._device.memory.address, self._device.values
        return self._device.kernels.Rows(
            n_rows=self.host.n_rows,
            factors=side.factors,
            row_ptr=address(self._row_ptr),
            col_idx=address(self._col_idx),
            rhs=values(self._rhs),
            gram=(0, 0) if self._gram is None else values(self._gram),
            gram_offset=self.host.gram_offset,
            background=values(self._background),
            ridge=values(self._ridge),
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

    def upload(self, terms: RowTerms) -> DeviceTerms:
        """These terms on the device."""
        kept = self.kept.get(terms)
        if kept is None or not kept.is_copy_of(terms):
            kept = self.kept[terms] = DeviceTerms(self._device, terms)
        return kept

    def parts(
        self, terms: RowTerms, side: OtherSide, options: SolveOptions = EXACT, *, has_prior: bool = False
    ) -> Iterator[tuple[slice, DeviceTerms]]:
        """Consecutive rows that fit into device memory together, and their terms on the device."""
        n, is_relaxed = terms.n_rows, options.relaxation != 1
        sizes = SolveSizes(n, side.n, terms.n_entries, side.factors, 4, options.solver, has_prior, is_relaxed)
        parts = [slice(0, n)] if terms in self.kept else fitting_parts(self._device, terms, sizes)
        for rows in parts:
            yield rows, self.upload(terms if len(parts) == 1 else some_rows(terms, rows))


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


def some_rows(terms: RowTerms, rows: slice) -> RowTerms:
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
