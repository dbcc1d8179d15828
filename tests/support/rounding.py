"""Bounds of tests from the arithmetic: what rounding can do, and nothing more."""

from __future__ import annotations

import numpy as np


def rounding(dtype, length: float = 1, growth: float = 1.0) -> float:
    """The relative error that sums of `length` products may have, times `growth`.

    One operation is off by half of eps at most. The errors of a sum add up like a random walk, to the root of its
    length (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), and all orders of summation, so all instruction sets, stay
    below eps times it. `growth` is what comes on top, with its reason where it is given: the condition number of a
    system that is solved, the number of steps in a row, room that was measured. Multiply by the size of the largest
    numbers that go into the sum: where they cancel, the result's own size says nothing.
    """
    return growth * float(np.finfo(dtype).eps) * max(length, 1) ** 0.5
