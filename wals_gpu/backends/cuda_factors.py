"""Factors on the device: the caller's arrays and their copies there, as they are or in the basis of a spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cuda_device import Buffers, Device
from wals_gpu.backends.cuda_memory import TorchMemory
from wals_gpu.backends.host import Spectrum, check_gram

__all__ = ["DeviceSpectrum", "Factors", "OnDevice", "OtherSide", "Target", "check_factors", "upload_factors"]


@dataclass(frozen=True)
class DeviceSpectrum:
    """A :class:`.host.Spectrum` in device memory, flat float64: `values` (D,), and `vectors` (D, D) or None."""

    values: Any
    vectors: Any = None

    @classmethod
    def upload(cls, memory: TorchMemory, spectrum: Spectrum) -> DeviceSpectrum:
        """A copy of one on the host."""
        values, vectors = (None if a is None else memory.upload(np.asarray(a, np.float64)) for a in spectrum)
        return cls(values, vectors)

    def download(self, memory: TorchMemory) -> Spectrum:
        """A copy on the host; waits for it.

        Raises
        ------
        ModelFitError
            The Gram matrix was not finite.
        """
        values = memory.download(self.values)
        check_gram(values)
        vectors = None if self.vectors is None else memory.download(self.vectors).reshape(len(values), len(values))
        return Spectrum(values, vectors)


def check_factors(factors: NDArray[np.floating]) -> None:
    """Refuse factors (n, D) of another dtype or width than the kernels take."""
    if str(factors.dtype).removeprefix("torch.") != "float32":  # tensors too
        raise ValueError(f"device='cuda' computes in float32, got factors of dtype {factors.dtype}")
    if not 1 <= factors.shape[1] <= LIMITS.most_device_factors:
        raise ValueError(f"device='cuda' takes 1 to {LIMITS.most_device_factors} factors, got {factors.shape[1]}")


@dataclass(frozen=True)
class OnDevice:
    """Rows (n, D) that are in device memory already, flat, in place of an array."""

    array: Any
    width: int

    def __getitem__(self, rows: slice) -> OnDevice:
        return OnDevice(self.array[rows.start * self.width : rows.stop * self.width], self.width)


def upload_factors(memory: TorchMemory, factors: Any) -> Any:
    """Factors (n, D) in device memory, flat; those that are there already are used in place. None stays None."""
    if factors is None:
        return None
    if isinstance(factors, OnDevice):
        return factors.array
    return memory.upload(np.asarray(factors, np.float32) if isinstance(factors, np.ndarray) else factors)


class Factors:
    """Factors (n, D) of the caller, and where a session keeps them, their copy in device memory.

    `name` tells the two sides of a solve apart: each has a buffer for its rows in the basis of a spectrum.
    """

    def __init__(self, memory: TorchMemory, host: Any, name: str, *, is_kept: bool = False) -> None:
        self._memory, self.host, self.name = memory, host, name
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

    def to_write(self) -> Any:
        """The copy in device memory, flat, to be written to; the caller's array is behind from now on."""
        self._is_ahead = True
        return self._device

    def put(self, rows: slice, z: Any, side: OtherSide, status: Any) -> None:
        """The rows whose status is 0 become those of z in the caller's basis."""
        n, width = rows.stop - rows.start, self.host.shape[1]
        if self._device is not None:
            side.rotate_back(z, n, status, self._device[rows.start * width : rows.stop * width])
            self._is_ahead = True
            return
        out = self._memory.empty(n * width, np.float32)
        side.rotate_back(z, n, status, out)
        good = self._memory.download(status) == 0
        self.host[rows][good] = self._memory.download(out).reshape(n, width)[good]

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
    prior: NDArray[np.floating] | OnDevice | None = None

    def part(self, rows: slice) -> Target:
        """Some of these rows, counted from the first of them."""
        start = self.rows.start
        means = None if self.prior is None else self.prior[rows]
        return Target(self.factors, slice(start + rows.start, start + rows.stop), means)

    def plain(self) -> Any:
        """What they are before, in device memory, flat."""
        return self.factors.plain(self.rows)

    def put(self, z: Any, side: OtherSide, status: Any) -> None:
        """The rows whose status is 0 become those of z."""
        self.factors.put(self.rows, z, side, status)


class OtherSide:
    """The other side's factors on the device, in the basis of its spectrum (None: as they are).

    The table is rotated in float64: that keeps the digits of weak directions, which solutions divide by.
    """

    def __init__(self, device: Device, factors: Factors, spectrum: DeviceSpectrum | None, buffers: Buffers) -> None:
        self._device, self._buffers = device, buffers
        self.n, self.factors = factors.host.shape
        self.padded = device.kernels.padded(self.factors)
        self.spectrum: Any = None if spectrum is None else spectrum.values
        self._rotation: Any = None if spectrum is None else spectrum.vectors
        self._split: dict[bool, Any] = {}
        self.table = self.rotate(factors.plain(), self.n, self.empty_rows(self.n, factors.name), wide=True)
        self.column_max = buffers.get("column_max", self.padded, np.float32)
        device.start("clear", self.column_max, self.padded)
        device.start("column_max", self.table, self.n, self.factors, self.column_max)

    def empty_rows(self, n: int, name: str) -> Any:
        """A buffer for rows (n, padded D) in the basis."""
        return self._buffers.get(f"{name} rows", n * self.padded, np.float32)

    def rotate(self, rows: Any, n: int, out: Any, *, wide: bool) -> Any:
        """out (n, padded D) = rows (n, D) in the basis, in float64 if `wide`, else to float32 accuracy."""
        self._product(rows, n, self.factors, None, out, self.padded, transposed=False, wide=wide)
        return out

    def rotate_back(self, z: Any, n: int, status: Any, out: Any) -> None:
        """out (n, D) = z (n, padded D) in the caller's basis, in rows whose status is 0."""
        self._product(z, n, self.padded, status, out, self.factors, transposed=True, wide=False)

    def _product(
        self, rows: Any, n: int, in_stride: int, status: Any, out: Any, out_stride: int, *, transposed: bool, wide: bool
    ) -> None:
        device, d = self._device, self.factors
        if wide or self._rotation is None:
            device.start("rotate", rows, n, d, in_stride, self._rotation, status, out, out_stride)
            return
        if transposed not in self._split:
            tiles = self._buffers.get(f"split {transposed}", device.kernels.split_basis_bytes(d), np.uint8)
            device.start("split_basis", self._rotation, d, transposed, tiles)
            self._split[transposed] = tiles
        device.start("rotate_split", rows, n, d, in_stride, self._split[transposed], status, out, out_stride)
