"""What is computed once for all instruction sets: the definition's results depend on none of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable)


def once(function: Function) -> Function:
    """`function` with its results remembered, read-only where they are arrays; arguments as a test is parametrized."""
    results: dict[str, object] = {}

    @functools.wraps(function)
    def remembered(*args, **kwargs):
        assert not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())), "their text is shortened"
        key = repr((args, kwargs))
        if key not in results:
            results[key] = function(*args, **kwargs)
            if isinstance(results[key], np.ndarray):
                results[key].flags.writeable = False
        return results[key]

    return remembered
