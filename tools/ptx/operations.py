"""What instructions without memory and without other threads compute: one line of NumPy each, over all lanes at once.

Two groups. ``DIRECT`` are NumPy's own functions, which write to the register in place. ``COMPUTED`` are functions of
the operands whose result is copied there; they may compute lanes that do not count.

fma rounds the product to float64 first (for f32 that shows in one result of 2^29; for f64 it rounds twice, which is no
more accurate than a chip). Approximations are as far from the true value as the manual allows, to one side or the other
by the bits of the argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.parser import BYTES, Unsupported

__all__ = ["COMPARE", "COMPUTED", "DIRECT", "Array", "Function", "convert", "dtype_of"]

Array = NDArray[Any]
Function = Callable[..., Any]

_KINDS = {"u": "u", "s": "i", "b": "u", "f": "f"}


def dtype_of(kind: str) -> np.dtype:
    """NumPy's type for PTX's."""
    if kind == "pred":
        return np.dtype(bool)
    if kind == "f16x2":
        return np.dtype(np.uint32)
    return np.dtype(f"{_KINDS[kind[0]]}{BYTES[kind]}")


def _shift(function: np.ufunc) -> Function:
    """By more than all bits NumPy, too, leaves zeros or signs."""
    return lambda a, b: function(a, np.minimum(b.astype(np.int64), 8 * a.itemsize).astype(a.dtype))


def _high(a: Array, b: Array) -> Array:
    """Upper half of an integer product."""
    if a.itemsize == 4:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)
    full = [int(x) * int(y) >> 64 for x, y in np.broadcast(a, b)]
    return np.array([x & (1 << 64) - 1 for x in full], np.uint64).view(a.dtype)


def _wide(a: Array) -> Array:
    return a.astype(f"{a.dtype.kind}{2 * a.itemsize}")


def _divide(a: Array, b: Array) -> Array:
    """Toward zero; by zero something, as on a chip."""
    if a.dtype.kind == "f":
        return a / b
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    return quotient + ((quotient < 0) & (quotient * safe != a)).astype(a.dtype)


def _fma(a: Array, b: Array, c: Array) -> Array:
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    return a * b + c


def _approximate(function: Function, error: float) -> Function:
    def result(a: Array) -> Array:
        exact = function(a.astype(np.float64))
        if a.itemsize == 8:  # CUDA's rsqrt(double) is this instruction, and within a unit of its last place
            return exact
        sign = np.where(a.view(np.uint32) * np.uint32(2654435761) >> np.uint32(31), error, -error)
        return (exact * (1 + sign)).astype(np.float32)

    return result


def _bit_length(x: Array) -> NDArray[np.int64]:
    """Of unsigned numbers."""
    high = (x >> x.dtype.type(16)).astype(np.float64) if x.itemsize == 4 else (x >> np.uint64(32)).astype(np.float64)
    half = 4 * x.itemsize
    low = (x & x.dtype.type((1 << half) - 1)).astype(np.float64)
    return np.where(high > 0, np.frexp(high)[1] + half, np.frexp(low)[1]).astype(np.int64)


def _find(a: Array, shift: bool = False) -> NDArray[np.uint32]:
    """Place of the highest bit that is not a sign, from the lowest or (shift) from the highest; else -1."""
    unsigned = np.where(a < 0, ~a, a).view(f"u{a.itemsize}") if a.dtype.kind == "i" else a
    length = _bit_length(unsigned)
    return np.where(length == 0, -1, 8 * a.itemsize - length if shift else length - 1).astype(np.int32).view(np.uint32)


def _reverse(a: Array) -> Array:
    """Bits in the other order."""
    octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.itemsize)
    return (
        np.packbits(np.unpackbits(octets, axis=1, bitorder="little"), axis=1)
        .reshape(-1)
        .view(f">u{a.itemsize}")
        .astype(a.dtype)
    )


def _mask(length: Array, like: np.dtype) -> Array:
    bits = 8 * like.itemsize
    ones = np.uint64((1 << bits) - 1) >> np.minimum(
        np.uint64(63), np.uint64(bits) - np.minimum(length.astype(np.uint64) & np.uint64(255), np.uint64(bits))
    )
    return np.where(length == 0, np.uint64(0), ones).astype(like)


def _insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    mask = np.left_shift(_mask(length, b.dtype), position.astype(b.dtype))
    return (b & ~mask) | (np.left_shift(a, position.astype(b.dtype)) & mask)


def _extract(a: Array, position: Array, length: Array) -> Array:
    if a.dtype.kind == "i":
        raise Unsupported("bfe of signed numbers")
    return np.right_shift(a, position.astype(a.dtype)) & _mask(length, a.dtype)


def _permute(a: Array, b: Array, selector: Array) -> NDArray[np.uint32]:
    pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        octet = (pool >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64) & np.uint64(255)).astype(np.uint32)
        octet = np.where(choice & np.uint32(8), np.where(octet & np.uint32(128), 255, 0), octet).astype(np.uint32)
        result |= octet << np.uint32(8 * i)
    return result


def _funnel(left: bool, wrap: bool) -> Function:
    def result(low: Array, high: Array, by: Array) -> NDArray[np.uint32]:
        n = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        return (both << n >> np.uint64(32) if left else both >> n).astype(np.uint32)

    return result


def _logic(a: Array, b: Array, c: Array, table: Array) -> NDArray[np.uint32]:
    result, bits = np.zeros(np.broadcast(a, b, c).shape, np.uint32), int(table.reshape(-1)[0])
    for i in range(8):
        if bits >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result


#: Functions with out= and where=, for operands of the instruction's type.
DIRECT: dict[str, np.ufunc] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mul.lo": np.multiply, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs,
    "sqrt": np.sqrt,
}  # fmt: skip

#: Name without rounding and type, and what it computes.
COMPUTED: dict[str, Function] = {
    "shl": _shift(np.left_shift), "shr": _shift(np.right_shift),
    "min": lambda a, b: np.fmin(a, b), "max": lambda a, b: np.fmax(a, b),
    "mul.wide": lambda a, b: _wide(a) * _wide(b), "mad.wide": lambda a, b, c: _wide(a) * _wide(b) + c,
    "mul.hi": _high, "mad.lo": lambda a, b, c: a * b + c, "mad": _fma, "fma": _fma, "div": _divide,
    "div.full": _divide, "div.approx": _divide, "rcp": lambda a: a.dtype.type(1) / a,
    "rem": lambda a, b: a - _divide(a, b) * b,
    "rsqrt.approx": _approximate(lambda x: 1 / np.sqrt(x), 2.0**-22.9),
    "sqrt.approx": _approximate(np.sqrt, 2.0**-23), "rcp.approx": _approximate(lambda x: 1 / x, 2.0**-23),
    "ex2.approx": _approximate(np.exp2, 2.0**-22), "lg2.approx": _approximate(np.log2, 2.0**-22),
    "copysign": lambda a, b: np.copysign(b, a), "popc": lambda a: np.bitwise_count(a).astype(np.uint32),
    "clz": lambda a: (8 * a.itemsize - _bit_length(a)).astype(np.uint32), "brev": _reverse,
    "bfind": _find, "bfind.shiftamt": lambda a: _find(a, shift=True), "bfi": _insert, "bfe": _extract,
    "prmt": _permute, "lop3": _logic,
    **{f"shf.{side}.{how}": _funnel(side == "l", how == "wrap") for side in "lr" for how in ("wrap", "clamp")},
    "sad": lambda a, b, c: c + np.where(a < b, b - a, a - b), "cnot": lambda a: (a == 0).astype(a.dtype),
}  # fmt: skip
if not hasattr(np, "bitwise_count"):  # NumPy 1
    COMPUTED["popc"] = lambda a: np.unpackbits(
        np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.itemsize), axis=1
    ).sum(1, dtype=np.uint32)

_ORDERED = {
    "eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _either_nan(a: Array, b: Array) -> NDArray[np.bool_]:
    return np.isnan(a) | np.isnan(b)


#: Comparisons of setp. Of floats, those that end in u are true where one is NaN.
COMPARE: dict[str, Function] = {
    **_ORDERED,
    "ne": lambda a, b: (a != b) & ~_either_nan(a, b) if a.dtype.kind == "f" else a != b,
    **{f"{name}u": lambda a, b, f=function: f(a, b) | _either_nan(a, b) for name, function in _ORDERED.items()},
    "neu": np.not_equal,
    "num": lambda a, b: ~_either_nan(a, b),
    "nan": _either_nan,
}

_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def convert(words: tuple[str, ...]) -> Function:
    """cvt of the given name, as a function of its operands."""
    text, target, source = ".".join(words), words[-2], words[-1]
    if text == "cvt.rn.f16x2.f32":
        return lambda high, low: _half(low) | _half(high) << np.uint32(16)
    extra = set(words[1:-2]) - _ROUND.keys() - {"rn", "ftz"}
    to = dtype_of(target)
    if to.kind == "f" and dtype_of(source).kind == "f":  # a rounding to integers within floats keeps the type
        if extra or not re.fullmatch(r"f(16|32|64)", target):
            raise Unsupported(text)
        to_whole = next((_ROUND[word] for word in words if word in _ROUND), lambda x: x)
        return lambda x: to_whole(x).astype(to)
    if extra - {"sat"}:
        raise Unsupported(text)
    if dtype_of(source).kind != "f":
        if "sat" in extra:
            raise Unsupported(text)
        return lambda x: x.astype(to)
    rounding = next(_ROUND[word] for word in words if word in _ROUND)
    least, most = np.iinfo(to).min, np.iinfo(to).max

    def to_integer(x: Array) -> Array:  # to the nearest that there is; NaN to 0
        whole = rounding(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf))
        inside = np.where((whole > least) & (whole < most), whole, 0).astype(to)
        return np.where(whole >= float(most), to.type(most), np.where(whole <= least, to.type(least), inside))

    return to_integer


def _half(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return x.astype(np.float16).view(np.uint16).astype(np.uint32)
