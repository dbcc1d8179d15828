"""Checks of arguments that several modules share."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.ids import Ids

__all__ = ["integer", "number", "row_numbers"]


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A Python int from `low` to `high`; TypeError or ValueError names the argument otherwise."""
    wanted = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return int(value)


def number(name: str, value: Any, *, positive: bool = False) -> float:
    """A finite float >= 0, or > 0 if `positive`; TypeError or ValueError names the argument otherwise."""
    message = f"{name} must be a finite number {'> 0' if positive else '>= 0'}, got {value!r}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(message)
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(message)
    return float(value)


def row_numbers(asked: ArrayLike, ids: Ids | None, n: int, side: str, name: str = "") -> tuple[NDArray[np.int64], bool]:
    """Row numbers (B,) of ids, or of row numbers where there are no `ids`, and whether it was a single one.

    Raises
    ------
    KeyError, IndexError
        An id, or a row number, that is unknown.
    TypeError, ValueError
        Something else than an id or a 1-D list of ids.
    """
    name = name or f"{side}s"
    if ids is not None:
        index = np.asarray(ids.index_of(asked))
    else:
        index = np.asarray(asked)
        if index.size and index.dtype.kind not in "iu":
            raise TypeError(f"{name} must be row numbers (integers), got {index.dtype}")
        if index.size and not (0 <= index.min() and index.max() < n):
            bad = index[(index < 0) | (index >= n)].flat[0]
            raise IndexError(f"{name} must be in [0, {n}), got {bad}")
    if index.ndim > 1:
        raise ValueError(f"{name} must be one id or a 1-D list of ids, got shape {index.shape}")
    return np.atleast_1d(index).astype(np.int64), index.ndim == 0
