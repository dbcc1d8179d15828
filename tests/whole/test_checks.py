"""Checks of arguments: TypeError for the kind, ValueError for the range, and a message that says what was wanted."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from wals_gpu.checks import integer, number, seed

SHARE = {"positive": True, "below": 1}
RELAXATION = {"low": 1, "below": 2}


@pytest.mark.parametrize(
    "options, wanted, inside, outside",
    [
        ({}, "x must be a finite number >= 0", [0, 0.0, -0.0, 1e300], [-1e-300, -1]),
        ({"positive": True}, "x must be a finite number > 0", [5e-324, 1, 1e300], [0, 0.0, -0.0, -1]),
        ({"high": 1}, "x must be a number from 0 to 1", [0, 0.5, 1, np.float32(1)], [-0.1, math.nextafter(1, 2)]),
        (SHARE, "x must lie in (0, 1)", [5e-324, 0.5, math.nextafter(1, 0)], [0, 1, -0.5, 1.5]),
        (RELAXATION, "x must be a number from 1 to below 2", [1, 1.5, math.nextafter(2, 0)], [2, 0.99, -1.5]),
        ({"low": -1, "high": 1}, "x must be a number from -1 to 1", [-1, 0, 1], [-1.5, 1.5]),
    ],
)
def test_number(options, wanted, inside, outside):
    for value in inside:
        checked = number("x", value, **options)
        assert type(checked) is float and checked == value
    for value in [*outside, math.nan, math.inf, -math.inf, 10**400, -(10**400)]:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{wanted}, got {value!r}')}$"):
            number("x", value, **options)
    for value in [None, "1", True, False, np.True_, 1 + 0j, [1.0], np.ones(1)]:
        with pytest.raises(TypeError, match=f"^{re.escape(f'{wanted}, got {value!r}')}$"):
            number("x", value, **options)


def test_number_takes_numbers_of_other_libraries():
    for value in [np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.int64(1)]:
        checked = number("x", value, positive=True)
        assert type(checked) is float and checked == value


def test_integer():
    for value in [0, 7, np.int8(3)]:
        checked = integer("n", value, 0, 7)
        assert type(checked) is int and checked == value
    for value, high, wanted in [(-1, None, ">= 0"), (8, 7, "from 0 to 7"), (-1, 7, "from 0 to 7")]:
        with pytest.raises(ValueError, match=f"^n must be an integer {wanted}, got {value}$"):
            integer("n", value, 0, high)
    for value in [None, "1", True, 1.0, np.float32(1)]:
        with pytest.raises(TypeError, match=f"^{re.escape(f'n must be an integer >= 0, got {value!r}')}$"):
            integer("n", value, 0)


def test_seed():
    generator = np.random.default_rng(0)
    assert (seed("s", np.int64(7)), seed("s", None), seed("s", generator)) == (7, None, generator)
    for value, error in ((-1, ValueError), ("x", TypeError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match=f"^s must be an integer >= 0, got {value!r}$"):
            seed("s", value)
