"""Checks of arguments that several modules share."""

from __future__ import annotations

import math
import numbers
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from wals_gpu.errors import ListLengthError, ParameterWarning
from wals_gpu.system import available_memory

__all__ = [
    "as_list", "as_path", "did_you_mean", "flag", "index_of_ids", "integer", "is_list", "list_length", "number",
    "refuse_bools", "refuse_ids", "refuse_masked", "refuse_other", "refuse_reordered", "refuse_zeros_and_ones", "seed",
    "warn", "with_ids",
]  # fmt: skip

#: Bytes of an answer that is given without asking how much memory there is: that takes longer than many a search.
_ALWAYS_FITS = 1 << 28


def did_you_mean(word: Any, known: Iterable[Any], **meant: str) -> str:
    """The end of a message about a name that is not known: "; did you mean 'x'?", or nothing where no name is like it.

    Case, "-" and "_" do not count. `meant`: what people write for what, such as ``gpu="cuda"``.
    """
    from difflib import get_close_matches  # not for those who make no mistake

    def plain(text: Any) -> str:
        return str(text).lower().replace("_", "-")

    names: dict[str, str] = {}
    for name in known:
        names.setdefault(plain(name), str(name))
    if plain(word) in meant:
        return f"; did you mean {meant[plain(word)]!r}?"
    found = get_close_matches(plain(word), names, n=1)
    return f"; did you mean {names[found[0]]!r}?" if found else ""


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A Python int from `low` to `high`; TypeError or ValueError names the argument otherwise."""
    wanted = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return int(value)


def list_length(name: str, value: Any, n_items: int, bytes_per_place: int) -> int:
    """The length of lists of items, an integer from 1, whose answer fits into the memory.

    Longer lists than there are items end in empty places: these take memory, too.

    Parameters
    ----------
    name : str
        Of the argument, for errors.
    value : int
    n_items : int
        How many there are to choose from.
    bytes_per_place : int
        Of one more place in all lists together.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        It is no such integer.
    ListLengthError
        The lists would not fit.
    """
    length = integer(name, value, 1)
    needed = length * max(bytes_per_place, 1)
    if needed > _ALWAYS_FITS:
        available = available_memory()
        available = sys.maxsize if available is None else available
        if needed > available:
            raise ListLengthError(
                f"{name} must be smaller: lists of {length:,} items take {needed / 2**30:,.1f} GiB, and "
                f"{available / 2**30:,.1f} GiB of memory are available; there are {n_items:,} to choose from"
            )
    return length


def seed(name: str, value: Any) -> int | np.random.Generator | None:
    """What :func:`numpy.random.default_rng` takes: an integer from 0, a Generator, or None for another one each time.

    TypeError or ValueError names the argument otherwise.
    """
    return value if value is None or isinstance(value, np.random.Generator) else integer(name, value, 0)


def as_path(name: str, value: Any) -> Path:
    """A path, "~" being the home folder as in a shell.

    TypeError or ValueError names the argument otherwise: an empty text would be the current folder.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a str or a pathlib.Path, got {value!r:.60}")
    if value == "":
        raise ValueError(f"{name} must be the name of a file or a folder, got ''")
    return Path(os.path.expanduser(value))


def index_of_ids(source: Any) -> Any:
    """The index of a DataFrame or Series of pandas, which has ids; None where it counts the rows, and of all others."""
    # By name, so that pandas is imported by nobody but the user; by all bases, for subclasses.
    kinds = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(source).__mro__}
    if not kinds & {"pandas.DataFrame", "pandas.Series"}:
        return None
    index = source.index
    counts = type(index).__name__ == "RangeIndex" and (index.start, index.step) == (0, 1)
    return None if counts else index


def with_ids(what: str, values: Any, ids: Any) -> tuple[Any, Any]:
    """Values and their ids: those given, or the keys of a mapping, or the index of a pandas object; None: without ids.

    ValueError where ids are given beside a mapping of id to `what`, or in another order than the index has them.
    """
    if not isinstance(values, Mapping):
        index = index_of_ids(values)
        if ids is not None and index is not None:
            refuse_reordered(f"each {what}", ids, index)
        return values, index if ids is None else ids
    if ids is not None:
        raise ValueError(f"ids must not be given with a mapping of id to {what}")
    return list(values.values()), list(values)


def as_list(values: Any) -> list[Any]:
    """Values as Python's, of whatever kind the sequence is."""
    for method in ("to_pylist", "tolist", "to_list"):  # of Arrow; NumPy and pandas; polars
        if hasattr(values, method):
            listed: list[Any] = getattr(values, method)()
            return listed
    return list(values)


def refuse_reordered(what: str, ids: Any, index: Any) -> None:
    """ValueError where given ids are those of an index in another order: which of them is meant, nobody can know.

    An index of other ids is what a selection of rows leaves of their numbers, and says nothing.
    """
    given, own = as_list(ids), as_list(index)
    if given != own and len(given) == len(own) and sorted(map(repr, given)) == sorted(map(repr, own)):
        raise ValueError(
            f"ids must be in the order of {what}, whose index has the same ids in another order: leave ids out, or "
            "give what has no index (to_numpy)"
        )


def refuse_ids(name: str, value: Any, ids: str) -> None:
    """ValueError where what is taken in the order of some ids has an index of its own, which would be ignored."""
    if index_of_ids(value) is not None:
        kind = type(value).__name__
        raise ValueError(
            f"{name} must be in the order of {ids}, whatever the index of a {kind} says: give "
            f"{kind.lower() if kind == 'Series' else 'frame'}.loc[{ids}].to_numpy()"
        )


def is_list(value: Any) -> bool:
    """Whether it is a list, array, set, Series, ... of things, and not a text or a mapping."""
    scalar = isinstance(value, (str, bytes, Mapping)) or (isinstance(value, np.ndarray) and not value.ndim)
    return isinstance(value, Collection) and not scalar


def refuse_zeros_and_ones(name: str, rows: Any, n: int, side: str) -> None:
    """TypeError for a 0 or 1 of each of n items (users), which would be taken for the items 0 and 1 again and again."""
    if not is_list(rows) or len(rows) != n or n < 3 or isinstance(rows, Set):
        return
    given = np.asarray(rows)
    if given.dtype.kind in "iu" and given.ndim == 1 and ((given == 0) | (given == 1)).all():
        raise TypeError(
            f"{name} must be a list of {side}s, got a 0 or 1 for each of the {n} {side}s; "
            "np.flatnonzero has the numbers of those with a 1"
        )


def refuse_bools(requirement: str, values: Any) -> None:
    """TypeError where True or False is among integers of a list: NumPy would take it for 1 or 0."""
    if isinstance(values, (list, tuple)) and bool in set(map(type, values)):
        place = next(place for place, value in enumerate(values) if type(value) is bool)
        raise TypeError(f"{requirement}, got bool {values[place]} at position {place}")


def refuse_masked(name: str, value: Any) -> None:
    """ValueError where some of the ids in an array are masked: they would be taken as if they were there."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"{name} must be there throughout, {int(np.ma.getmaskarray(value).sum())} are masked; "
            f"array.compressed() has those that are there"
        )


def refuse_other(name: str, value: Any, wanted: str, *attributes: str) -> None:
    """TypeError where a model, or what else has these attributes, is wanted and something else is given."""
    if not all(hasattr(value, attribute) for attribute in attributes):
        is_path = isinstance(value, (str, os.PathLike)) and name in ("model", "old", "new")
        raise TypeError(f"{name} must be {wanted}, got {value!r:.60}{'; WALS.load(path) reads one' * is_path}")


def flag(name: str, value: Any) -> bool:
    """True or False, also as 1 or 0 or of NumPy; TypeError names the argument otherwise: a text would count as true."""
    if not (isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1))):
        raise TypeError(f"{name} must be True or False, got {value!r:.60}")
    return bool(value)


def number(
    name: str,
    value: Any,
    low: float = 0.0,
    high: float = math.inf,
    *,
    positive: bool = False,
    below: float | None = None,
) -> float:
    """A finite float from `low` to `high`; TypeError names the argument where it is no number, ValueError its range.

    With `positive` 0 itself is refused, with `below` that upper end. A share of something is
    ``number("share", share, positive=True, below=1)``.
    """
    if positive and below is not None:
        wanted = f"lie in (0, {below:g})"
    elif below is not None or high < math.inf:
        wanted = f"be a number from {low:g} to {f'{high:g}' if below is None else f'below {below:g}'}"
    else:
        wanted = f"be a finite number {'> 0' if positive else f'>= {low:g}'}"
    message = f"{name} must {wanted}, got {value!r}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(message)
    try:
        checked = float(value)
    except OverflowError:  # an integer beyond the floats
        raise ValueError(message) from None
    inside = low <= checked <= high and math.isfinite(checked)
    if not inside or (positive and checked <= 0) or (below is not None and checked >= below):
        raise ValueError(message)
    return checked


def warn(message: str) -> None:
    """Warn about the line of the user's that led here, however deep in the package this is."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wals_gpu."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ParameterWarning, stacklevel=level)
