"""Memory as kernels reach it: device arrays where they lie, shared memory of each block, parameters.

Every access is checked: inside one device array, or inside the block's shared memory, and aligned to its size.
Addresses of device arrays are their real ones, so that kernels and host code agree on them. Shared memory starts at
1 KiB, as on chips, so that a null pointer is found, and is full of 0xff, which is NaN as a float.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx.operations import Array

__all__ = ["PARAMETERS", "SHARED", "BadAccess", "Memory", "Segment"]

#: Where generic addresses have shared memory and parameters: far from any of the host.
SHARED, PARAMETERS, WINDOW = 0x7F00_0000_0000_0000, 0x7E00_0000_0000_0000, 1 << 40
RESERVED = 1024  # bytes of shared memory that belong to the system
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
Integers = NDArray[np.int64]
Part = slice | NDArray[np.bool_]


class BadAccess(Exception):
    """What was wrong, and with which of the addresses."""

    def __init__(self, text: str, which: int) -> None:
        super().__init__(text)
        self.which = which


class Segment:
    """A device array: its bytes, seen as numbers of each size."""

    def __init__(self, name: str, begin: int, data: NDArray[np.uint8]) -> None:
        self.name, self.begin, self.end = name, begin, begin + len(data)
        self.views = {size: data[: len(data) // size * size].view(kind) for size, kind in UNSIGNED.items()}

    @classmethod
    def at(cls, name: str, begin: int, end: int) -> Segment:
        """Memory of this process."""
        data = np.frombuffer((ctypes.c_uint8 * (end - begin)).from_address(begin), np.uint8) if end > begin else _NONE
        return cls(name, begin, data)


_NONE = np.zeros(0, np.uint8)


@dataclass
class Place:
    """Part of the lanes of an access, and where their numbers are: view[index]."""

    part: Part
    view: NDArray[np.unsignedinteger]
    index: Integers


class Memory:
    """What the threads of some blocks reach.

    Parameters
    ----------
    segments : list of Segment
    parameters : (n,) uint8
    block_of : (threads,) int
        Of each thread that runs.
    shared_bytes : int
        Of a block, without what is reserved.
    """

    def __init__(
        self, segments: list[Segment], parameters: NDArray[np.uint8], block_of: Integers, shared_bytes: int
    ) -> None:
        self.segments = sorted((s for s in segments if s.end > s.begin), key=lambda segment: segment.begin)
        self.begins = [segment.begin for segment in self.segments]
        self.shared_end = RESERVED + shared_bytes
        stride = -(-self.shared_end // 16) * 16
        self.shared = Segment("shared memory", 0, np.empty(stride * (int(block_of.max()) + 1), np.uint8))
        self.shared_base = block_of.astype(np.int64) * stride
        self.parameters = Segment("parameters", 0, parameters)
        self.poison()

    def poison(self) -> None:
        """Before blocks start."""
        self.shared.views[1][:] = 0xFF

    def read(self, space: str, address: Integers, lanes: slice | Integers, size: int, count: int = 1) -> Array:
        """(count, lanes) unsigned numbers of `size` bytes."""
        places = list(self.places(space, address, lanes, size * count, size))
        if len(places) == 1:
            place = places[0]
            return np.stack([place.view[place.index + i] for i in range(count)])
        values = np.empty((count, len(address)), UNSIGNED[size])
        for place in places:
            for i in range(count):
                values[i, place.part] = place.view[place.index + i]
        return values

    def write(self, space: str, address: Integers, lanes: slice | Integers, values: list[Array]) -> None:
        """Unsigned numbers of each lane, one after the other; of lanes that meet, the last one's remain."""
        size = values[0].itemsize
        for place in self.places(space, address, lanes, size * len(values), size):
            for i, value in enumerate(values):
                place.view[place.index + i] = value if len(value) == 1 else value[place.part]

    def places(
        self, space: str, address: Integers, lanes: slice | Integers, size: int, element: int
    ) -> Iterator[Place]:
        """Where accesses of `size` bytes go, in elements of so many."""
        if (address & (size - 1)).any():
            which = int(np.flatnonzero(address & (size - 1))[0])
            raise BadAccess(f"misaligned: {size} bytes at address {address[which]:#x}", which)
        low, high = int(address.min()), int(address.max())
        if space == "shared":
            yield self._shared(slice(None), address, lanes, size, element)
        elif space == "param" or (space == "generic" and PARAMETERS <= low and high < PARAMETERS + WINDOW):
            yield self._within(self.parameters, slice(None), address - PARAMETERS, size, element)
        elif space == "generic" and high >= SHARED:
            inside = address >= SHARED
            if inside.all():
                yield self._shared(slice(None), address - SHARED, lanes, size, element)
            else:
                numbers = np.arange(len(self.shared_base))[lanes]
                yield self._shared(inside, (address - SHARED)[inside], numbers[inside], size, element)
                yield from self._device(~inside, address[~inside], size, element)
        else:
            yield from self._device(slice(None), address, size, element)

    def _shared(self, part: Part, address: Integers, lanes: slice | Integers, size: int, element: int) -> Place:
        low, high = int(address.min()), int(address.max())
        if low < RESERVED or high + size > self.shared_end:
            which = int(np.flatnonzero((address < RESERVED) | (address + size > self.shared_end))[0])
            raise BadAccess(
                f"out of bounds: {size} bytes at {int(address[which]) - RESERVED} of the block's "
                f"{self.shared_end - RESERVED} bytes of shared memory",
                which,
            )
        return Place(part, self.shared.views[element], (address + self.shared_base[lanes]) // element)

    def _within(self, segment: Segment, part: Part, address: Integers, size: int, element: int) -> Place:
        low, high = int(address.min()), int(address.max())
        if low < segment.begin or high + size > segment.end:
            which = int(np.flatnonzero((address < segment.begin) | (address + size > segment.end))[0])
            raise BadAccess(
                f"out of bounds: {size} bytes at {int(address[which]) - segment.begin} of the "
                f"{segment.end - segment.begin} bytes of {segment.name}",
                which,
            )
        return Place(part, segment.views[element], (address - segment.begin) // element)

    def _device(self, part: Part, address: Integers, size: int, element: int) -> Iterator[Place]:
        low, high = int(address.min()), int(address.max())
        first = bisect.bisect_right(self.begins, low) - 1
        if first >= 0 and high < self.segments[first].end:
            yield self._within(self.segments[first], part, address, size, element)
            return
        segment_of = np.searchsorted(np.array(self.begins, np.int64), address, "right") - 1
        for number in np.unique(segment_of):
            inside = segment_of == number
            which = int(np.flatnonzero(inside)[0])
            segment = self.segments[number] if number >= 0 else None
            if segment is None or not (address[inside] < segment.end).any():
                after = f", {int(address[which]) - segment.end} bytes behind {segment.name}" if segment else ""
                raise BadAccess(f"out of bounds: no device array at address {address[which]:#x}{after}", which)
            if isinstance(part, slice):
                of_these: NDArray[np.bool_] = inside
            else:
                of_these = part.copy()
                of_these[part] = inside
            yield self._within(segment, of_these, address[inside], size, element)
