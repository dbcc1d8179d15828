"""Damage to files, from a single bit to another meaning: one call, one hostile file."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

#: What tends to break readers: limits of integers, paths, nesting, names of other types.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 4, 5, 255, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, 2**64, 10**30,
    0.5, -0.0, 1e308, 5e-324, "", "a", "\0", "../../etc/passwd", "model-0123456789abcdef.safetensors", "float64", "F32",
    "float16", "O", "f4, (1,", "S5", "m8", "U8", "BF16", "F8_E4M3", "F4", "\ud800", "x" * 1000, [], {}, [[]], [0, 0],
    [0, 8], [2**60], [2**32, 2**32], [0], [1] * 70, {"a": 1}, [[0, "f4"]], "cg", "ials", "eals", "explicit", "cuda",
]  # fmt: skip
TOKENS = [
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"[", b"]", b'"', b"\\u0000", b"NaN", b"Infinity", b"1e999",
    b",", b"-1", b"9" * 25, b"\n", b"\r\n", b";", b"PK\x03\x04", b"\x93NUMPY", b"[" * 2000, b"null", b"'(2,)'", b"|O",
]  # fmt: skip


def mutate(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """`data` with one to four changes, of bytes or of the structure that files of this kind (their suffix) have."""
    for _ in range(rng.integers(1, 5)):
        if kind == "safetensors" and rng.random() < 0.6:
            data = _header(data, rng)
        elif kind == "json" and rng.random() < 0.7:
            data = _json(data, rng)
        else:
            data = _bytes(data, rng)
    return data


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    at, to = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    match rng.integers(0, 7):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:at] + TOKENS[rng.integers(0, len(TOKENS))] + data[at:]
        case 4:  # a number, in one of the sizes that formats have
            number = int(rng.choice([0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]))
            packed = struct.pack("<Q", number)[: rng.choice([1, 2, 4, 8])]
            return data[:at] + packed + data[at + len(packed) :]
        case 5:
            return data[:to] + data[at:to] + data[to:]
        case _:
            return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[to:]


def _json(data: bytes, rng: np.random.Generator) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, rng)
    return json.dumps(_changed(document, rng)).encode()


def _changed(value: Any, rng: np.random.Generator) -> Any:
    """The value with one of its parts, chosen at random, replaced, removed or put elsewhere."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = keys[rng.integers(0, len(keys))]
        chosen = rng.random()
        if chosen < 0.1:
            value = value.copy()
            del value[key]
            return value
        other = keys[rng.integers(0, len(keys))]
        new = value[other] if chosen < 0.2 else _changed(value[key], rng)
        if isinstance(value, list):
            return [*value[:key], new, *value[key + 1 :]]
        return value | ({f"{key}x": new} if chosen > 0.97 else {key: new})
    return VALUES[rng.integers(0, len(VALUES))]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with another header, its length right or nearly so."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return _bytes(data, rng)
    text = json.dumps(_changed(header, rng)).encode()
    text += b" " * (-len(text) % 8)
    length = len(text) if rng.random() < 0.9 else int(rng.choice([0, 7, len(text) - 1, 2**31, 2**63]))
    return length.to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]
