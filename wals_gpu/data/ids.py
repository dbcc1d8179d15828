"""The id map of one side of the matrix: from the user's own ids to row numbers and back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from wals_gpu.checks import refuse_bools, refuse_masked, refuse_zeros_and_ones
from wals_gpu.errors import ModelFormatError

#: A bisection step in Python costs about as much as hashing this many ids does in Arrow.
BISECT_RATIO = 64
_DENSE_BESIDE = 1 << 14  # numbers that a table may have beyond those that are looked up in it
_IDS_AT_ONCE = 1 << 16  # that a loop over all ids turns into Python objects


def dense_positions(
    parts: Sequence[NDArray[np.integer]],
) -> tuple[NDArray[np.integer], NDArray[np.int32]] | None:
    """The distinct numbers in order, and the position of each number among them, where these lie close together.

    Takes the time of reading and writing a number, where sorting or hashing takes several times that.

    Parameters
    ----------
    parts : sequence of integer arrays of one dtype
        One after another, n numbers.

    Returns
    -------
    (distinct, position) : (m,) array of int64 or uint64, (n,) int32 array
        None: from the least number to the largest there are more than n and some thousand, whose table would not pay.
    """
    parts = [part for part in parts if len(part)]
    n = sum(map(len, parts))
    if not n:
        return None
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    if high - low >= n + _DENSE_BESIDE:
        return None
    kind = np.uint64 if high > np.iinfo(np.int64).max else np.int64  # so that no difference overflows
    seen = np.zeros(high - low + 1, bool)
    for part in parts:
        seen[part.astype(kind, copy=False) - kind(low)] = True
    distinct: NDArray[np.integer] = np.flatnonzero(seen).astype(kind) + kind(low)
    place = np.cumsum(seen, dtype=np.int32)
    place -= 1
    position = np.empty(n, np.int32)
    begin = 0
    for part in parts:
        np.take(place, part.astype(kind, copy=False) - kind(low), out=position[begin : begin + len(part)])
        begin += len(part)
    return distinct, position


def _is_missing(value: Any) -> bool:
    """None, NaN, or what pandas has for it."""
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


class Ids:
    """Distinct ids in increasing order; the position of an id is its row (or column) number in the matrix.

    Parameters
    ----------
    values : integer array or Arrow string array, (N,)
        Strictly increasing: integers by value, strings by code point. Use :meth:`encode` for values in any order.
    side : str
        What the ids name ("user", "item"); used in error messages only.

    Raises
    ------
    ValueError
        If ``values`` are not strictly increasing, or hold nulls.
    TypeError
        If ``values`` are neither integers nor strings.

    Notes
    -----
    Integers are kept as int64, or as uint64 where one of them exceeds 2**63 - 1. Strings are kept as one Arrow
    buffer: a million ids cost their own bytes and 8 more each, not a Python object each.

    They behave as a sequence that cannot be changed: ``for user in ids``, ``len(ids)``, ``ids[0]``, ``ids[-1]``,
    ``ids[:5]``, ``ids[[2, 0]]``, ``"ann" in ids``, ``list(ids)``, ``numpy.asarray(ids)``, ``pyarrow.array(ids)``.

    Examples
    --------
    >>> import pyarrow as pa
    >>> ids = Ids(pa.array(["ann", "bob", "eve"]), "user")
    >>> ids[0], ids[-1], "bob" in ids, "dan" in ids
    ('ann', 'eve', True, False)
    >>> ids.find(["eve", "dan"]).tolist()
    [2, -1]
    """

    __slots__ = ("_values", "side")
    _values: Any  # NumPy's array or Arrow's, by the kind

    def __init__(self, values: NDArray[np.integer] | pa.Array, side: str = "row") -> None:
        if isinstance(values, pa.Array) and not pa.types.is_integer(values.type):
            if not is_string(values.type):
                raise TypeError(f"{side} ids must be integers or strings, got {values.type}")
            values = values.cast(pa.large_string())
            increasing = pc.all(pc.greater(values[1:], values[:-1]), min_count=0).as_py()
            if values.null_count or not increasing:
                raise ValueError(f"{side} ids must be strictly increasing strings without nulls")
        else:
            refuse_masked(f"{side} ids", values)
            values = np.asarray(values)
            if values.ndim != 1 or values.dtype.kind not in "iu":
                raise TypeError(f"{side} ids must be a 1-D array of integers, got {values.ndim}-D {values.dtype}")
            large = values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max
            values = values.astype(np.uint64 if large else np.int64)
            if not np.all(values[1:] > values[:-1]):
                raise ValueError(f"{side} ids must be strictly increasing")
            values.flags.writeable = False
        self._values = values
        self.side = side

    @classmethod
    def encode(cls, values: pa.Array, side: str = "row") -> tuple[Ids, NDArray[np.int32]]:
        """The distinct values as ids, and the position of each value among them.

        Parameters
        ----------
        values : Arrow array of integers or strings, (N,), without nulls
            In any order, repeats allowed.
        side : str
            What the ids name.

        Returns
        -------
        ids : Ids
        position : int32 array, (N,)
        """
        if pa.types.is_integer(values.type):
            numbers = values.to_numpy(zero_copy_only=False)
            if (dense := dense_positions([numbers])) is not None:
                return cls(dense[0], side), dense[1]
            distinct, position = np.unique(numbers, return_inverse=True)
            return cls(distinct, side), position.astype(np.int32, copy=False)
        encoded = values.cast(pa.large_string()).dictionary_encode()
        order = pc.sort_indices(encoded.dictionary)
        rank = np.empty(len(order), np.int32)
        rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
        return cls(encoded.dictionary.take(order), side), rank[encoded.indices.to_numpy()]

    @property
    def kind(self) -> str:
        """``"integer"`` or ``"string"``."""
        return "integer" if isinstance(self._values, np.ndarray) else "string"

    @property
    def ids(self) -> NDArray[Any]:
        """All ids in order, (N,): int64 (or uint64), or an object array of ``str`` made by this call."""
        values: NDArray[Any] = self._values
        return values if self.kind == "integer" else self._values.to_numpy(zero_copy_only=False)

    def to_numpy(self) -> NDArray[Any]:
        """All ids in order, (N,), as :attr:`ids`: read-only int64 (or uint64), or an object array of ``str``."""
        return self.ids

    def tolist(self) -> list[Any]:
        """All ids in order, as a list of Python ``int`` or ``str``."""
        ids: list[Any] = self._values.tolist() if self.kind == "integer" else self._values.to_pylist()
        return ids

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _IDS_AT_ONCE):
            part = self._values[start : start + _IDS_AT_ONCE]
            yield from part.tolist() if self.kind == "integer" else part.to_pylist()

    def __getitem__(self, index: Any) -> Any:
        """The id at a position, or an array of the ids at several.

        Parameters
        ----------
        index : int, slice, array or list of int, or (N,) mask of bool
            A single negative number counts from the end. In arrays negative numbers are refused: results of searches
            hold -1 for "none", which :meth:`take` understands.

        Returns
        -------
        id, or array as :meth:`take` gives it

        Raises
        ------
        IndexError
            If a position is outside.
        TypeError
            If `index` is something else, such as an id: :meth:`index_of` gives the position of an id.
        """
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not isinstance(index, (bool, np.bool_)) and hasattr(index, "__index__") and not np.ndim(index):
            position = int(index)
            if not -len(self) <= position < len(self):
                raise IndexError(f"index must be in [{-len(self)}, {len(self)}) for {self._count()}, got {position}")
            return self.take(position % len(self))
        positions = np.asarray(index)
        if positions.ndim and positions.dtype == bool:
            if positions.shape != (len(self),):
                raise IndexError(f"a mask must have shape ({len(self)},) for {self._count()}, got {positions.shape}")
            positions = np.flatnonzero(positions)
        if not positions.ndim or (positions.size and positions.dtype.kind not in "iu"):
            raise TypeError(
                f"index must be a position, a slice, or an array of positions, got {index!r:.60}; "
                "index_of(id) gives the position of an id"
            )
        if positions.size and positions.min() < 0:
            raise IndexError(
                f"positions in an array must be in [0, {len(self)}), got {positions.min()}; take() reads -1 as 'none'"
            )
        return self.take(positions)

    def __contains__(self, value: object) -> bool:
        if np.ndim(value) if isinstance(value, np.ndarray) else not isinstance(value, (str, int, np.generic)):
            return False
        try:
            return bool(self.find(value) >= 0)  # type: ignore[arg-type]
        except (TypeError, ValueError):  # of the other kind, or no text that can be encoded
            return False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        made_here = self.kind == "string"
        if copy is False and (made_here or (dtype is not None and np.dtype(dtype) != self.ids.dtype)):
            raise ValueError("these ids have no array that could be shared: copy=False is not possible")
        ids = self.ids if dtype is None else self.ids.astype(dtype, copy=False)
        return ids.copy() if copy and not made_here and ids is self._values else ids

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        ids = pa.array(self._values) if self.kind == "integer" else self._values
        return ids if type is None else ids.cast(type)

    def mask(self, values: ArrayLike, *, unknown: str = "error") -> NDArray[np.bool_]:
        """Which of these ids are among some values: a list to leave out or choose from, looked up once for many uses.

        Parameters
        ----------
        values : list or array of ids
        unknown : {"error", "skip"}, default "error"
            What to do with values that are not among these ids.

        Returns
        -------
        (N,) bool

        Raises
        ------
        KeyError
            A value is not among the ids, with ``unknown="error"``.

        Examples
        --------
        >>> Ids(np.array([10, 20, 30]), "item").mask([30, 10])
        array([ True, False,  True])
        """
        if unknown not in ("error", "skip"):
            raise ValueError(f"unknown must be 'error' or 'skip', got {unknown!r}")
        refuse_zeros_and_ones("values", values, len(self), self.side)
        find = self.index_of if unknown == "error" else self.find
        index = np.atleast_1d(find(list(values) if isinstance(values, (set, frozenset)) else values))
        mask = np.zeros(len(self), bool)
        mask[index[index >= 0]] = True
        return mask

    def subset(self, index: ArrayLike) -> Ids:
        """The ids at strictly increasing positions, as `Ids` of their own.

        Parameters
        ----------
        index : (n,) array or list of int

        Returns
        -------
        Ids

        Raises
        ------
        IndexError, TypeError
            As ``ids[index]``.
        ValueError
            If the positions do not increase.
        """
        values = self[np.asarray(index, np.int64)]
        return Ids(values if self.kind == "integer" else pa.array(values, pa.large_string()), self.side)

    def _count(self) -> str:
        return f"{len(self)} {self.side} ids"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ids):
            return NotImplemented
        if self.kind != other.kind:
            return False
        return np.array_equal(self._values, other._values) if self.kind == "integer" else self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # compares by content, which may be large

    def __repr__(self) -> str:
        first = ", ".join(repr(self.take(i)) for i in range(min(3, len(self))))
        return f"Ids({len(self)} {self.side} ids, {self.kind}: {first}{', ...' if len(self) > 3 else ''})"

    def find(self, values: ArrayLike) -> Any:
        """Position of each id, -1 where there is no such id.

        Parameters
        ----------
        values : an id, or an array, list, Series or Arrow array of ids, of any shape
            Of the kind of these ids.

        Returns
        -------
        int64 array of the shape of ``values`` (a NumPy integer for a single id)

        Raises
        ------
        TypeError
            If a value is not an integer (bool and float are not), or not a string, as these ids are.
        """
        return self._find_integers(values) if self.kind == "integer" else self._find_strings(values)

    def index_of(self, values: ArrayLike) -> Any:
        """Position of each id, as :meth:`find`, but an unknown id is an error.

        Parameters
        ----------
        values : an id, or an array, list, Series or Arrow array of ids, of any shape
            Of the kind of these ids.

        Returns
        -------
        int64 array of the shape of ``values`` (a NumPy integer for a single id)

        Raises
        ------
        KeyError
            If an id is unknown; the message names the first unknown ones.
        TypeError
            As :meth:`find`.
        """
        index = self.find(values)
        missing = np.ravel(index) < 0
        if missing.any():
            unknown = np.asarray(values, dtype=object).ravel()[missing]
            examples = ", ".join(repr(plain(v)) for v in unknown[:3])
            raise KeyError(
                f"unknown {self.side} id: {examples}" + (f" and {len(unknown) - 3} more" * (len(unknown) > 3))
            )
        return index

    def take(self, index: ArrayLike) -> Any:
        """The ids at the given positions.

        Parameters
        ----------
        index : int array of any shape
            Positions in [0, N), or -1 for "none".

        Returns
        -------
        array of the shape of ``index``
            int64 (or uint64) for integer ids; an object array of ``str`` for string ids. Where ``index`` holds
            a -1, an object array with ``None`` in these places. A single position gives a single id.

        Raises
        ------
        IndexError
            If a position is not in [-1, N).
        """
        index = np.asarray(index)
        if index.size and index.dtype.kind not in "iu":
            raise TypeError(f"index must be integers, got {index.dtype}")
        if index.size and not (-1 <= index.min() and index.max() < len(self)):
            raise IndexError(f"index must be in [-1, {len(self)}) for {len(self)} {self.side} ids, got {_worst(index)}")
        flat = index.ravel().astype(np.int64)
        none = flat < 0
        if self.kind == "string":
            ids = self._values.take(pa.array(flat, mask=none)).to_numpy(zero_copy_only=False)
        elif none.any():
            ids = np.full(flat.size, None, dtype=object)
            ids[~none] = self._values[flat[~none]]
        else:
            ids = self._values[flat]
        return ids.reshape(index.shape) if index.ndim else plain(ids[0])

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Plain arrays to save, for :meth:`from_arrays`.

        Parameters
        ----------
        name : str
            What their names are, or begin with.

        Returns
        -------
        dict of str to array
            ``name`` for integers, (N,) int64 or uint64; for strings ``name.offsets``, (N+1,) int64, and ``name.utf8``,
            uint8.
        """
        if self.kind == "integer":
            return {name: self._values}
        _, offsets, utf8 = self._values.buffers()
        offsets = np.frombuffer(offsets, np.int64)[self._values.offset :][: len(self) + 1]
        utf8 = np.frombuffer(utf8, np.uint8) if utf8 else np.empty(0, np.uint8)
        return {f"{name}.offsets": offsets - offsets[0], f"{name}.utf8": utf8[offsets[0] : offsets[-1]]}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str, side: str) -> Ids | None:
        """The ids that :meth:`to_arrays` wrote.

        Parameters
        ----------
        arrays : mapping of str to array
            May hold others, too.
        name : str
            As it was given to :meth:`to_arrays`.
        side : str
            What the ids name.

        Returns
        -------
        Ids or None
            None where there are none of this name.

        Raises
        ------
        ModelFormatError
            If the arrays are not what :meth:`to_arrays` writes.
        """
        try:
            if name in arrays:
                return cls(arrays[name], side)
            if f"{name}.offsets" not in arrays and f"{name}.utf8" not in arrays:
                return None
            offsets, utf8 = arrays[f"{name}.offsets"], arrays[f"{name}.utf8"]
            if offsets.dtype != np.int64 or utf8.dtype != np.uint8 or offsets.ndim != 1 or utf8.ndim != 1:
                raise ValueError("offsets must be 1-D int64 and text 1-D uint8")
            if not offsets.size or offsets[0] != 0 or offsets[-1] != utf8.size or np.any(np.diff(offsets) < 0):
                raise ValueError("offsets do not fit the text")
            buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(utf8))]
            values = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
            values.validate(full=True)
            return cls(values, side)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFormatError(f"{side} ids {name!r} are damaged: {error}") from error

    def _find_integers(self, values: ArrayLike) -> Any:
        refuse_bools(f"{self.side} ids are integers", values)
        query = np.asarray(values)
        in_range = np.ones(query.shape, bool)
        if query.dtype.kind not in "iu":
            # Python ints beyond 64 bits, nullable Series, and everything that is an error.
            objects = np.asarray(values, dtype=object)
            for value in objects.flat:
                if not isinstance(value, (int, np.integer)) or isinstance(value, (bool, np.bool_)):
                    # One that is missing makes floats of all others.
                    gap = next((n for n, value in enumerate(objects.flat) if _is_missing(value)), None)
                    if gap is not None and objects.ndim:
                        raise TypeError(
                            f"{self.side} ids are integers, and none may be missing; got {objects.flat[gap]!r} at "
                            f"position {gap}"
                        )
                    raise TypeError(f"{self.side} ids are integers, got {type(value).__name__} {value!r}")
            limits = np.iinfo(self._values.dtype)
            in_range = ((objects >= limits.min) & (objects <= limits.max)).astype(bool)
            query = np.where(in_range, objects, 0).astype(self._values.dtype)
        elif query.dtype.kind != self._values.dtype.kind:
            in_range = query >= 0 if query.dtype.kind == "i" else query <= np.uint64(np.iinfo(np.int64).max)
            query = np.where(in_range, query, 0).astype(self._values.dtype)
        index = _places(self._values, query)
        index_in = np.minimum(index, len(self) - 1)
        is_id = in_range & (self._values[index_in] == query) if len(self) else np.zeros(query.shape, bool)
        return np.where(is_id, index, -1).astype(np.int64)[()]

    def _find_strings(self, values: ArrayLike) -> Any:
        query = np.asarray(values, dtype=object)
        try:
            texts = pa.array(query.ravel())
            if not (is_string(texts.type) or pa.types.is_null(texts.type)):  # bytes would be cast
                raise TypeError(f"they are {texts.type}")
            texts = texts.cast(pa.large_string())
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"{self.side} ids are strings, got {values!r:.60}") from error
        if texts.null_count:
            where = "" if not query.ndim else f" at position {texts.is_null().index(True).as_py()}"
            raise TypeError(f"{self.side} ids are strings, got None{where}")
        if len(texts) * BISECT_RATIO < len(self):
            index = np.array([self._bisect(text) for text in texts.to_pylist()], np.int64)
        else:
            index = pc.fill_null(pc.index_in(texts, value_set=self._values), -1).to_numpy(zero_copy_only=False)
        return index.astype(np.int64).reshape(query.shape)[()]

    def insert(self, values: Sequence[Any]) -> tuple[Ids, NDArray[np.int64], NDArray[np.int64]]:
        """These ids with others among them.

        Parameters
        ----------
        values : sequence of n ids of the same kind
            In any order; different, and none of them is there yet.

        Returns
        -------
        ids : Ids, N + n
        old, new : (N,) and (n,) int64
            Their positions.

        Raises
        ------
        ValueError
            An id is there twice, or no type has all of them.
        """
        n_old = len(self)
        if self.kind == "string":
            joined = pa.concat_arrays([self._values, pa.array(values, pa.large_string())])
            if len(values) * BISECT_RATIO >= n_old:
                return self._sorted(joined)
            by_value = sorted(range(len(values)), key=values.__getitem__)
            places = [self._place(values[k]) for k in by_value]
        else:
            dtype = self._type_with(values)
            added = np.array(values, dtype)
            joined = pa.array(np.concatenate([self._values.astype(dtype, copy=False), added]))
            by_value = np.argsort(added).tolist()
            places = np.searchsorted(self._values.astype(dtype, copy=False), added[by_value]).tolist()
        # The old ones, which are in order, need not be sorted again.
        order = np.insert(np.arange(n_old), places, n_old + np.array(by_value, np.int64))
        position = np.empty(len(order), np.int64)
        position[order] = np.arange(len(order))
        taken = joined.take(pa.array(order))
        ids = Ids(taken if self.kind == "string" else taken.to_numpy(), self.side)
        return ids, position[:n_old], position[n_old:]

    def _sorted(self, joined: pa.Array) -> tuple[Ids, NDArray[np.int64], NDArray[np.int64]]:
        ids, place = Ids.encode(joined, self.side)
        if len(ids) < len(joined):
            raise ValueError(f"{self.side} ids must be distinct, got the same id several times")
        position = place.astype(np.int64)
        return ids, position[: len(self)], position[len(self) :]

    def _type_with(self, values: Sequence[int]) -> np.dtype[Any]:
        """The type of these integers and others; ValueError where none has them all."""
        lowest = min([*self._values[:1].tolist(), *values], default=0)
        highest = max([*self._values[-1:].tolist(), *values], default=0)
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
                return np.dtype(dtype)
        raise ValueError(f"{self.side} ids must be integers of 64 bits together, got {lowest} and {highest}")

    def _place(self, text: str) -> int:
        """How many ids come before a text."""
        # UTF-8 bytes, by which Arrow sorts, and Python strings have the same order: by code point.
        return bisect_left(range(len(self)), text, key=lambda i: self._values[i].as_py())

    def _bisect(self, text: str) -> int:
        at = self._place(text)
        return at if at < len(self) and self._values[at].as_py() == text else -1


def _places(ascending: NDArray[Any], query: NDArray[Any]) -> NDArray[np.intp]:
    """As ``numpy.searchsorted``.

    Many numbers are looked up in their own order: at random, each step of a bisection waits for memory, and 100,000 of
    300,000 take five to ten times as long as this with its sort.
    """
    if query.size < 1000:
        return np.searchsorted(ascending, query)
    flat = query.ravel()
    order = np.argsort(flat)
    places = np.empty(flat.size, np.intp)
    places[order] = np.searchsorted(ascending, flat[order])
    return places.reshape(query.shape)


def is_string(kind: pa.DataType) -> bool:
    """Whether an Arrow type is one of texts."""
    view = getattr(pa.types, "is_string_view", lambda _: False)  # absent from older pyarrow
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or view(kind)


def plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _worst(index: NDArray[np.integer]) -> int:
    return int(index.min()) if index.min() < -1 else int(index.max())


def row_numbers(
    queries: ArrayLike, ids: Ids | None, n: int, side: str, name: str = ""
) -> tuple[NDArray[np.int64], bool]:
    """Row numbers (B,) of queries, which are ids, or row numbers where there are no `ids`; whether it was a single one.

    Raises
    ------
    KeyError, IndexError
        An id, or a row number, that is unknown.
    TypeError, ValueError
        Something else than an id or a 1-D list of ids.
    """
    name = name or f"{side}s"
    refuse_masked(name, queries)
    if ids is not None:
        index = np.asarray(ids.index_of(queries))
    else:
        refuse_bools(f"{name} must be row numbers (integers)", queries)
        index = np.asarray(queries)
        if index.size and index.dtype.kind not in "iu":
            raise TypeError(f"{name} must be row numbers (integers), got {index.dtype}")
        if index.size and not (0 <= index.min() and index.max() < n):
            bad = index[(index < 0) | (index >= n)].flat[0]
            raise IndexError(f"{name} must be in [0, {n}), got {bad}")
    if index.ndim > 1:
        raise ValueError(f"{name} must be one id or a 1-D list of ids, got shape {index.shape}")
    return np.atleast_1d(index).astype(np.int64), index.ndim == 0
