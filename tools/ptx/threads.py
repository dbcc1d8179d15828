"""The threads of some blocks: their registers, what operands mean to them, and groups of them at one instruction."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx.memory import PARAMETERS, RESERVED, Memory, Segment
from ptx.operations import Array, dtype_of
from ptx.parser import BYTES, Fault, Instruction, Kernel, Unsupported
from ptx.tensor import Model

__all__ = ["Group", "Launch", "Threads"]


@dataclass(frozen=True)
class Launch:
    """grid and block as (x, y, z); shared_bytes: dynamic; parameters: bytes as the driver copies them."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    parameters: bytes

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block[0] * self.block[1] * self.block[2]


class Group:
    """Threads at one instruction. lanes: their numbers, or all; where: for NumPy's functions."""

    __slots__ = ("_whole", "count", "lanes", "mask", "where")

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        everyone = self.count == len(mask)
        self.where: NDArray[np.bool_] | bool = True if everyone else mask
        self.lanes: slice | NDArray[np.int64] = slice(None) if everyone else np.flatnonzero(mask)
        self._whole: bool | None = True if everyone else None

    @property
    def whole(self) -> bool:
        """Whether it consists of whole warps."""
        if self._whole is None:
            each = self.mask.reshape(-1, 32).sum(1)
            self._whole = bool(((each == 0) | (each == 32)).all())
        return self._whole

    @property
    def warps(self) -> slice | NDArray[np.int64]:
        return self.lanes if isinstance(self.lanes, slice) else self.lanes[::32] // 32


class Threads:
    """Of the blocks with these `numbers`; what a block's last warp lacks is filled up with threads that never run.

    A register is an array with a number of each thread, unsigned or bool; instructions see it as what they name.
    Before it is written it is full of ones, NaN as a float.
    """

    def __init__(self, launch: Launch, segments: list[Segment], model: Model, numbers: NDArray[np.int64]) -> None:
        self.launch, self.kernel, self.model = launch, launch.kernel, model
        self.n_blocks, self.block_threads = len(numbers), launch.threads
        padded = -(-self.block_threads // 32) * 32
        self.n = self.n_blocks * padded
        self.block_of = np.repeat(np.arange(self.n_blocks), padded)
        self.thread = np.tile(np.arange(padded), self.n_blocks)
        self.real = self.thread < self.block_threads
        self.lane = self.thread % 32
        self.dynamic = -(-self.kernel.shared_bytes // 128) * 128
        shared = self.dynamic + launch.shared_bytes if launch.shared_bytes else self.kernel.shared_bytes
        parameters = np.frombuffer(launch.parameters.ljust(-(-len(launch.parameters) // 16) * 16, b"\0"), np.uint8)
        self.memory = Memory(segments, parameters.copy(), self.block_of, shared)
        self.special = self._special(numbers)
        self.registers: dict[str, Array] = {}

    def _special(self, numbers: Array) -> dict[str, NDArray[np.uint32]]:
        (gx, gy, gz), (bx, by, bz) = self.launch.grid, self.launch.block
        index = numbers[self.block_of]
        values = {
            "%tid.x": self.thread % bx, "%tid.y": self.thread // bx % by, "%tid.z": self.thread // (bx * by),
            "%ntid.x": bx, "%ntid.y": by, "%ntid.z": bz, "%nctaid.x": gx, "%nctaid.y": gy, "%nctaid.z": gz,
            "%ctaid.x": index % gx, "%ctaid.y": index // gx % gy, "%ctaid.z": index // (gx * gy),
            "%laneid": self.lane, "%warpid": self.thread // 32, "WARP_SZ": 32, "%clock": 0,
            "%lanemask_eq": 1 << self.lane, "%lanemask_lt": (1 << self.lane) - 1, "%lanemask_le": (2 << self.lane) - 1,
            "%lanemask_gt": 0xFFFFFFFF & -(2 << self.lane), "%lanemask_ge": 0xFFFFFFFF & -(1 << self.lane),
        }  # fmt: skip
        return {name: np.broadcast_to(np.asarray(value), self.n).astype(np.uint32) for name, value in values.items()}

    def register(self, name: str) -> Array:
        """Its array, of unsigned numbers or bools."""
        if name not in self.registers:
            kind = self.kernel.registers.get(name)
            if kind is None:
                raise Unsupported(f"register {name}")
            dtype = np.dtype(bool) if kind == "pred" else np.dtype(f"u{BYTES[kind]}")
            self.registers[name] = np.full(self.n, True if kind == "pred" else np.iinfo(dtype).max, dtype)
        return self.registers[name]

    def read(self, text: str, kind: str) -> Array:
        """An operand's numbers: one for each thread, or a single one."""
        dtype = dtype_of(kind)
        if text in self.special:
            return self.special[text].view(dtype)
        if text in self.kernel.registers:
            array = self.register(text)
            if array.itemsize != dtype.itemsize:
                raise Unsupported(f"register {text} of another size than {kind}")
            return array if kind == "pred" else array.view(dtype)
        if dtype.kind == "b":
            return np.array([int(text, 0) != 0])
        return np.array([self.constant(text) & (1 << 8 * dtype.itemsize) - 1], f"u{dtype.itemsize}").view(dtype)

    def constant(self, text: str) -> int:
        """An immediate number, or the address of what has one."""
        if text[:2] in ("0f", "0F", "0d", "0D") and len(text) in (10, 18):
            return int(text[2:], 16)
        if text in self.kernel.shared:
            return RESERVED + self.kernel.shared[text]
        if text in self.kernel.dynamic:
            return RESERVED + self.dynamic
        for parameter in self.kernel.parameters:
            if parameter.name == text:
                return PARAMETERS + parameter.offset
        try:
            return int(text.rstrip("U"), 0)
        except ValueError:
            raise Unsupported(f"operand {text}") from None

    def address(self, text: str) -> Callable[[Group], NDArray[np.int64]]:
        """Of [register + number] or [name + number]."""
        found = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        if not found:
            raise Unsupported(f"address {text}")
        base, offset = found[1], int(found[2] or "0", 0)
        if base in self.kernel.registers:
            array = self.register(base)
            return lambda g: array[g.lanes].astype(np.int64) + offset
        fixed = np.array([self.constant(base) + offset], np.int64)
        return lambda g: fixed.repeat(g.count)

    @staticmethod
    def vector(text: str) -> list[str]:
        return [each.strip() for each in text.strip("{}").split(",")]

    # ---- warps, and what is said of a thread ----

    def bits(self, mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """For each thread, which lanes of its warp are in `mask`."""
        packed = np.packbits(mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)
        return packed.repeat(32)

    def fault(self, text: str, at: Instruction | None, lane: int) -> Fault:
        """With the names of a thread and of the kernel."""
        thread, block = (
            tuple(int(self.special[f"%{name}.{axis}"][lane]) for axis in "xyz") for name in ("tid", "ctaid")
        )
        where = f" in {at}" if at else ""
        return Fault(f"{text}{where}; thread {thread} of block {block} of {self.kernel.name}")
