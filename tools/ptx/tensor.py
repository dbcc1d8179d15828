"""Tensor-core operations of warps: where lanes hold the elements of a fragment, and how chips add up.

Written from the PTX manual's tables ("Matrix fragments for mma"), not from the project's kernels or emulator.

What an mma rounds is not documented; it has been measured. Products are exact. A chip adds `block` of them and the sum
so far at a time: every addend is shifted to the exponent of the largest and cut off `extra` bits below a float32's last
bit there, the sum is cut off to a float32 (toward zero).

    M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh: Numerical behavior of NVIDIA tensor cores. PeerJ CS 7:e330, 2021
    F. A. Khattak, M. Mikaitis: Accurate models of NVIDIA tensor cores. arXiv:2512.07004, 2025

Where the papers leave a choice the less accurate one is taken: the largest addend counts by its own exponent (on a chip
a product is shifted by the sum of its factors' exponents, which may be one less).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptx.parser import Unsupported

__all__ = ["MODELS", "Layout", "Model", "multiply"]

Floats = NDArray[np.float64]
LANE = np.arange(32)
#: Of a float64's bits: where its exponent is, the exponent's 1, and one so small that no addend matters beside it.
EXPONENT, ONE, LEAST = 0x7FF0 << 48, 1 << 52, (1023 - 400) << 52
GROUP, IN_GROUP = LANE[:, None] // 4, LANE[:, None] % 4


@dataclass(frozen=True)
class Model:
    """How a chip adds up; `block` 0: exactly, and cut off once, as no chip does."""

    extra: int
    block: int

    def error(self, depth: int = 16) -> float:
        """Most that one mma loses, relative to the sum of its addends' magnitudes (docs/gpu.md has the derivation)."""
        if not self.block:
            return 2.0**-23
        block = min(self.block, depth)
        return depth / block * (block * 2.0**-self.extra + 1) * 2.0**-23


#: By chip. The first cuts off most of all that are known: what is accurate enough with it is so everywhere.
MODELS = {"v100": Model(0, 4), "t4": Model(1, 4), "a100": Model(1, 8), "h100": Model(2, 16), "exact": Model(0, 0)}


class Layout:
    """Fragments of one shape of f16: element [lane, register element] of A, B and C has which row and column."""

    def __init__(self, shape: str, kind: str) -> None:
        self.depth = {"m16n8k16": 16, "m16n8k8": 8}.get(shape, 0)
        if kind != "f16" or not self.depth:
            raise Unsupported(f"mma of shape {shape} and type {kind}")
        i, j, k = np.arange(self.depth // 2), np.arange(self.depth // 4), np.arange(4)
        self.a = _flat(GROUP + 8 * (i // 2 % 2), 2 * IN_GROUP + i % 2 + 8 * (i // 4), self.depth)
        self.b = _flat(2 * IN_GROUP + j % 2 + 8 * (j // 2), GROUP + 0 * j, 8)
        self.c = _flat(GROUP + 8 * (k // 2), 2 * IN_GROUP + k % 2, 8)


def _decode(registers: list[NDArray[np.uint32]]) -> Floats:
    """(warps, 32, elements) numbers of (warps, 32) registers."""
    return np.stack(registers, -1).view(np.float16).astype(np.float64)


def _flat(row: NDArray[np.int64], column: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """[lane, element] to the place in a matrix of so many columns."""
    return (row * width + column).reshape(-1)


def truncate(x: Floats) -> NDArray[np.float32]:
    """To float32, toward zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = x.astype(np.float32)
        bits = nearest.view(np.uint32)
        bits -= (np.abs(nearest.astype(np.float64)) > np.abs(x)).astype(np.uint32)
    return nearest


def dot(a: Floats, b: Floats, c: Floats, model: Model) -> Floats:
    """(..., m, k) times (..., k, n) plus (..., m, n), of warps, as `model` adds up."""
    depth = a.shape[-1]
    if not model.block:
        return truncate(a @ b + c).astype(np.float64)
    block, digits = min(model.block, depth), 23 + model.extra
    left, right = np.moveaxis(a, -1, 0)[..., None], np.moveaxis(b, -2, 0)[..., None, :]
    addends = np.empty((block + 1, *c.shape))
    for k in range(0, depth, block):
        np.multiply(left[k : k + block], right[k : k + block], out=addends[:block])
        addends[block] = c
        largest = np.maximum((addends.view(np.int64) & EXPONENT).max(0), LEAST)
        addends *= (2046 * ONE - largest + digits * ONE).view(np.float64)  # largest to 2^digits
        np.trunc(addends, out=addends)
        c = addends.sum(0) * (largest - digits * ONE).view(np.float64)
        c = (c.view(np.int64) & ~0x1FFFFFFF).view(np.float64)  # 24 digits remain
    return truncate(c).astype(np.float64)


def multiply(
    layout: Layout,
    a: list[NDArray[np.uint32]],
    b: list[NDArray[np.uint32]],
    c: list[NDArray[np.float32]],
    model: Model,
) -> NDArray[np.float32]:
    """The (warps, 32, 4) float32 results of (warps, 32) registers of each fragment."""
    warps = len(a[0])

    def place(numbers: Floats, places: NDArray[np.int64], rows: int, columns: int) -> Floats:
        matrix = np.empty((warps, rows * columns))
        matrix[:, places] = numbers.reshape(warps, -1)
        return matrix.reshape(warps, rows, columns)

    left = place(_decode(a), layout.a, 16, layout.depth)
    right = place(_decode(b), layout.b, layout.depth, 8)
    start = place(np.stack(c, -1).astype(np.float64), layout.c, 16, 8)
    done = dot(left, right, start, model).astype(np.float32).reshape(warps, -1)
    return done[:, layout.c].reshape(warps, 32, 4)
