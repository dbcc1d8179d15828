"""What everything on the device shares: the kernels, the memory that they work in, what the device has, and how much of
it may be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.cuda_errors import explained
from wals_gpu.backends.cuda_memory import Recorded, TorchMemory
from wals_gpu.backends.cuda_plan import MOST_SLICES
from wals_gpu.backends.solve import SolveMemory, SolveOptions, SolveSizes
from wals_gpu.errors import DeviceLostError
from wals_gpu.objective.terms import RowTerms

__all__ = ["LARGE_SLOTS", "SLOT_MEMORY", "Buffers", "Device", "DeviceLimits"]

#: Bytes that the sums of giant rows, and the matrices of rows in float64, take at a time: they stay in L2. A giant row
#: by itself may take more, MOST_SLICES slots.
SLOT_MEMORY = 1 << 25
#: Rows of more factors than a block's shared memory holds that are solved at a time: one for each processor.
LARGE_SLOTS = LIMITS.blocks_of_device // 2


@dataclass(frozen=True)
class DeviceLimits:
    """What a device has, as CUDA says, and what of the kernels has room there. Sizes are in bytes.

    Attributes
    ----------
    name : str
    capability : (int, int)
        Compute capability.
    processors, threads, registers : int
        Processors, and what each of them has.
    shared, shared_reserved, shared_of_block : int
        Shared memory of a processor, what each block takes of it beyond its own, and what a block can have.
    cache_bytes, memory_bytes : int
        The L2 cache; all memory.
    kernel_sizes : tuple of int
        Those of ``LIMITS.kernel_sizes`` whose matrices fit into the shared memory of a block. Longer rows, and more
        factors, are solved in a workspace.
    """

    name: str
    capability: tuple[int, int]
    processors: int
    threads: int
    registers: int
    shared: int
    shared_reserved: int
    shared_of_block: int
    cache_bytes: int
    memory_bytes: int
    kernel_sizes: tuple[int, ...]

    @classmethod
    def of(cls, kernels: ModuleType, device: int = -1) -> DeviceLimits:
        """Those of a device, by default the current one."""
        properties = kernels.device_properties(device)
        room = properties["shared_of_block"]
        sizes = tuple(size for size in kernels.LIMITS.kernel_sizes if kernels.exact_bytes(size) <= room)
        return cls(**properties, kernel_sizes=sizes)

    def shared_of_each(self, blocks: int) -> int:
        """Shared memory of a block of which so many are to be on a processor."""
        return min(self.shared_of_block, (self.shared // blocks - self.shared_reserved) // 128 * 128)


@dataclass(eq=False)
class Device:
    """Kernels and memory of a device.

    Attributes
    ----------
    kernels : module
        The native module, or the emulator of it.
    memory : TorchMemory
    limit : int or None
        Device memory to use, in bytes; None: what is free.
    kept_bytes : int
        Of factors that sessions keep.
    buffer_bytes : int
        Of what is free again for the next solve, though nobody else has it.
    limits : DeviceLimits
        Of the device that has the memory.
    """

    kernels: ModuleType
    memory: TorchMemory
    limit: int | None = None
    kept_bytes: int = 0
    buffer_bytes: int = 0
    limits: DeviceLimits = field(init=False)

    def __post_init__(self) -> None:
        stream = self.memory.stream  # a pair with the device, or of the current one
        self.limits = DeviceLimits.of(self.kernels, stream[0] if isinstance(stream, tuple) else -1)

    def available(self) -> int:
        """Device memory for anything but the factors of sessions."""
        if self.limit is None:
            return (self.memory.free_bytes() + self.buffer_bytes) * 9 // 10
        return self.limit - self.kept_bytes

    def values(self, array: Any) -> tuple[int, int]:
        """Address and stride of values of which there is one for each index, or one for all."""
        return self.memory.address(array), 0 if len(array) == 1 else 1

    def start(self, call: str, *arguments: Any, stream: Any = None) -> None:
        """A call of the module that starts kernels, on a stream, by default the one that everything is ordered by.
        Arrays are given as their addresses, None as 0."""
        address = self.memory.address
        is_array = [hasattr(given, "__len__") and not isinstance(given, (str, tuple)) for given in arguments]
        given = [address(a) if array else 0 if a is None else a for a, array in zip(arguments, is_array, strict=True)]
        getattr(self.kernels, call)(*given, self.memory.stream if stream is None else stream)

    def record(self, start: Callable[[], Any]) -> Recorded | None:
        """See :meth:`.cuda_memory.TorchMemory.record`; None, and a warning, where it cannot be done."""
        try:
            return self.memory.record(start, self.kernels.own_stream)
        except (RuntimeError, MemoryError) as error:
            if isinstance(explained(error), DeviceLostError):
                raise
            why = f"CUDA does not record the iterations of this fit, which are started kernel by kernel: {error}"
            warnings.warn(why, RuntimeWarning, stacklevel=2)
            return None

    def expect(self, terms: RowTerms, n_other: int, factors: int, options: SolveOptions, *, has_prior: bool) -> None:
        """Where memory runs out from now on, the error tells what this solve was expected to take."""
        n, entries = terms.n_rows, terms.n_entries
        sizes = SolveSizes(n, n_other, entries, factors, 4, options.solver, has_prior, options.relaxation != 1)
        memory = self.memory_of(sizes)
        self.memory.note = (
            f"; a solve of {n} rows with {entries} entries, {n_other} x {factors} factors of the other side, was "
            f"expected to take {memory.fixed + memory.growing}"
        )

    def memory_of(self, sizes: SolveSizes) -> SolveMemory:
        """Bytes of a solve: on the device what must be there at once, and what grows with the rows.

        Rows are solved in parts where both together exceed the limit; the first alone has to fit.
        """
        kernels, d = self.kernels, sizes.factors
        padded = kernels.padded(d)
        fixed = 4 * sizes.n_other * (d + padded) + kernels.gram_bytes(sizes.n_other, d)
        fixed += kernels.spectrum_bytes(d) + 16 * d**2 + 2 * kernels.split_basis_bytes(d)
        slot = kernels.slot_bytes(d)  # of the workspaces one is there at a time
        large = min(LARGE_SLOTS, sizes.n_rows) if d > self.limits.kernel_sizes[-1] else 0
        slices = -(-sizes.n_entries // kernels.LIMITS.slice_entries)
        giant = min(slices, MOST_SLICES) if sizes.n_entries > kernels.LIMITS.giant_entries else 0
        fixed += max(SLOT_MEMORY, large * slot, giant * slot, kernels.wide_bytes(d))
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
