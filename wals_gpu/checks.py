"""Checks of arguments that several modules share."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from types import FrameType
from typing import Any

import numpy as np

from wals_gpu.errors import ParameterWarning

__all__ = ["integer", "number", "warn"]


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


def warn(message: str) -> None:
    """Warn about the line of the user's that led here, however deep in the package this is."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wals_gpu."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ParameterWarning, stacklevel=level)
