"""Factors on the device: the caller's arrays and their copies there, as they are or in the basis of a spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_memory import Memory
from wals_gpu.backends.host import Spectrum

__all__ = ["Factors", "OtherSide", "Target", "check_factors", "upload_factors"]


def check_factors(factors: NDArray[np.floating]) -> None:
    """Refuse factors (n, D) of another dtype or width than the kernels take."""
    if str(factors.dtype).removeprefix("torch.") != "float32":  # tensors too
        raise ValueError(f"device='cuda' computes in float32, got factors of dtype {factors.dtype}")
    if not 1 <= factors.shape[1] <= LIMITS.most_device_factors:
        raise ValueError(f"device='cuda' takes 1 to {LIMITS.most_device_factors} factors, got {factors.shape[1]}")


def upload_factors(memory: Memory, factors: Any) -> Any:
    """Factors (n, D) in device memory, flat; those that are there already are used in place."""
    return memory.upload(np.asarray(factors, np.float32) if isinstance(factors, np.ndarray) else factors)


class Factors:
    """Factors (n, D) of the caller, and where a session keeps them, their copy in device memory."""

    def __init__(self, memory: Memory, host: Any, *, is_kept: bool = False) -> None:
        self._memory, self.host = memory, host
        self._device = memory.upload(host) if is_kept and host.size else None
        self._is_ahead = False  # of the host's

    @property
    def is_kept(self) -> bool:
        """Whether there is a copy in device memory."""
        return self._device is not None

    def plain(self, rows: slice | None = None) -> Any:
        """Some rows, by default all, in device memory, flat."""
        if self._device is not None:
            width = self.host.shape[1]
            return self._device if rows is None else self._device[rows.start * width : rows.stop * width]
        return upload_factors(self._memory, self.host if rows is None else self.host[rows])

    def put(self, rows: slice, z: Any, side: OtherSide, good: NDArray[np.bool_]) -> None:
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

    def newest(self) -> Any:
        """A copy on the host of what is newer on the device than the caller's array; None where nothing is."""
        return self._memory.download(self._device).reshape(self.host.shape) if self._is_ahead else None

    def fetch(self, newest: Any = None) -> None:
        """Bring the caller's array up to date, to what :meth:`newest` gave, if it has been asked before."""
        newest = self.newest() if newest is None else newest
        if newest is not None:
            self.host[...], self._is_ahead = newest, False

    def forget(self) -> None:
        """Give up the copy in device memory: what the host has is what there is."""
        self._device, self._is_ahead = None, False

    def refresh(self) -> None:
        """Follow a change of the caller's array."""
        if self._device is not None:
            self._device, self._is_ahead = self._memory.upload(self.host), False


@dataclass(frozen=True)
class Target:
    """Some rows of a side, to be solved, and their prior means (R, D), if they have some."""

    factors: Factors
    rows: slice
    prior: NDArray[np.floating] | None = None

    def part(self, rows: slice) -> Target:
        """Some of these rows, counted from the first of them."""
        start = self.rows.start
        means = None if self.prior is None else self.prior[rows]
        return Target(self.factors, slice(start + rows.start, start + rows.stop), means)

    def plain(self) -> Any:
        """What they are before, in device memory, flat."""
        return self.factors.plain(self.rows)

    def put(self, z: Any, side: OtherSide, good: NDArray[np.bool_]) -> None:
        """The rows that are `good` become those of z."""
        self.factors.put(self.rows, z, side, good)


class OtherSide:
    """The other side's factors on the device, in the basis of its spectrum (None: as they are)."""

    def __init__(self, device: Device, factors: Factors, spectrum: Spectrum | None) -> None:
        self._kernels, self._memory = device.kernels, device.memory
        memory, (self.n, self.factors) = self._memory, factors.host.shape
        self.padded = self._kernels.padded(self.factors)
        self.values = None if spectrum is None else np.ascontiguousarray(spectrum.values, np.float64)
        self.spectrum = None if self.values is None else memory.upload(self.values)
        rotation = None if spectrum is None else spectrum.vectors
        self._rotation = None if rotation is None else memory.upload(np.ascontiguousarray(rotation, np.float64))
        self.table = self.rotate(factors.plain(), self.n, wide=True)
        self.column_max = memory.zeros(self.padded, np.float32)
        self._kernels.column_max(
            memory.address(self.table), self.n, self.factors, memory.address(self.column_max), memory.stream
        )

    def empty_rows(self, n: int) -> Any:
        """Rows (n, padded D) in the basis, not initialised."""
        return self._memory.empty(max(n, 1) * self.padded, np.float32)

    def rotate(self, rows: Any, n: int, *, wide: bool) -> Any:
        """Rows (n, D) in the basis, (n, padded D), summed in float64 if `wide`."""
        out = self.empty_rows(n)
        self._product(rows, n, self.factors, out, self.padded, transposed=False, wide=wide)
        return out

    def rotate_back(self, z: Any, n: int, out: Any) -> None:
        """out (n, D) = z (n, padded D) in the caller's basis."""
        self._product(z, n, self.padded, out, self.factors, transposed=True, wide=False)

    def _product(
        self, rows: Any, n: int, in_stride: int, out: Any, out_stride: int, *, transposed: bool, wide: bool
    ) -> None:
        address = self._memory.address
        q = 0 if self._rotation is None else address(self._rotation)
        self._kernels.rotate(
            address(rows),
            n,
            self.factors,
            in_stride,
            q,
            transposed,
            wide,
            address(out),
            out_stride,
            self._memory.stream,
        )
