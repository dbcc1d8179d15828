"""Keyword arguments with types, so that a type checker finds a misspelt one; they say nothing new at run time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypedDict

from numpy.typing import ArrayLike

__all__ = ["ObjectiveOptions", "Unpack"]

if TYPE_CHECKING:
    from typing_extensions import Unpack  # type checkers have it whether it is installed or not
elif sys.version_info >= (3, 11):
    from typing import Unpack
else:  # for typing.get_type_hints, which is all that looks at it

    class Unpack:
        """Stands in for that of Python 3.11."""

        def __class_getitem__(cls, options: Any) -> Any:
            return options


class ObjectiveOptions(TypedDict, total=False):
    """The parameters of all presets together; each preset documents its own, and refuses those of others."""

    regularization: float | str
    alpha: float
    weighting: str
    epsilon: float
    exponent: float | None
    unobserved_weight: float
    nu: float
    row_weights: ArrayLike | None
    column_weights: ArrayLike | None
    factor: float
    confidence: float
    missing_weight: float
    background: float
    damping: float
