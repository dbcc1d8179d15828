"""What everything on the device shares: the kernels, the memory that they work in, and how much of it may be used."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from wals_gpu.backends.cuda_memory import Memory
from wals_gpu.backends.solve import SolveMemory, SolveSizes

__all__ = ["SLOT_MEMORY", "Buffers", "Device"]

#: Bytes that the matrices of sliced rows, and of rows in float64, take at a time.
SLOT_MEMORY = 1 << 28


@dataclass(eq=False)
class Device:
    """Kernels and memory of a device.

    Attributes
    ----------
    kernels : module
        The native module, or the emulator of it.
    memory : Memory
    limit : int or None
        Device memory to use, in bytes; None: what is free.
    kept_bytes : int
        Of factors that sessions keep.
    buffer_bytes : int
        Of what is free again for the next solve, though nobody else has it.
    """

    kernels: ModuleType
    memory: Memory
    limit: int | None = None
    kept_bytes: int = 0
    buffer_bytes: int = 0

    def available(self) -> int:
        """Device memory for anything but the factors of sessions."""
        if self.limit is None:
            return (self.memory.free_bytes() + self.buffer_bytes) * 9 // 10
        return self.limit - self.kept_bytes

    def values(self, array: Any) -> tuple[int, int]:
        """Address and stride of values of which there is one for each index, or one for all."""
        return self.memory.address(array), 0 if len(array) == 1 else 1

    def memory_of(self, sizes: SolveSizes) -> SolveMemory:
        """Bytes of a solve: on the device what must be there at once, and what grows with the rows.

        Rows are solved in parts where both together exceed the limit; the first alone has to fit.
        """
        kernels, d = self.kernels, sizes.factors
        padded = kernels.padded(d)
        fixed = 4 * sizes.n_other * (d + padded) + kernels.gram_bytes(sizes.n_other, d)
        fixed += kernels.spectrum_bytes(d) + 16 * d**2 + 2 * kernels.split_basis_bytes(d)
        fixed += SLOT_MEMORY + max(kernels.slot_bytes(d), kernels.wide_bytes(d))
        row = 4 * (d + padded) + (4 * (d + padded) if sizes.has_prior else 0) + (4 * padded if sizes.is_relaxed else 0)
        entry = 12 + (4 if sizes.solver == "subspace" else 0)
        return SolveMemory(4 * sizes.n_rows, fixed, sizes.n_rows * (row + 40) + sizes.n_entries * entry)


class Buffers:
    """Arrays on the device that one solve after the other works in: by name, as long as the largest that was wanted."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._arrays: dict[str, Any] = {}
        self._bytes = 0

    def get(self, name: str, n: int, dtype: type[np.generic]) -> Any:
        """The array `name`, of at least `n` numbers, not initialised."""
        kept = self._arrays.get(name)
        if kept is None or len(kept) < n:
            del kept
            itemsize = np.dtype(dtype).itemsize
            self._count(-itemsize * len(self._arrays.pop(name, ())))
            self._arrays[name] = self._device.memory.empty(max(n, 1), dtype)
            self._count(itemsize * max(n, 1))
        return self._arrays[name]

    def clear(self) -> None:
        """Give the memory back."""
        self._arrays.clear()
        self._count(-self._bytes)

    def _count(self, n_bytes: int) -> None:
        self._bytes += n_bytes
        self._device.buffer_bytes += n_bytes
