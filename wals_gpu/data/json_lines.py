"""Tables in JSON: an object for each row, one in each line, or all of them in an array."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NoReturn

import pyarrow as pa

from wals_gpu.data.source import Column, Source, TextOptions
from wals_gpu.errors import DataError

__all__ = ["open_json"]

_SAMPLE = 1000
_BLOCK_BYTES = 1 << 24


def open_json(name: str, stream: Callable[[], Any], options: TextOptions) -> Source:
    """The source of a file of JSON.

    Parameters
    ----------
    name : str
        Of the file, for messages.
    stream : callable
        Opens it at its first byte, uncompressed.
    options : TextOptions
        Those of other text are refused.

    Raises
    ------
    DataError
        It is no JSON, or has no objects.
    """
    given = [option for option in options.given() if option != "encoding"]
    if given:
        raise DataError(f"{', '.join(given)} cannot be given with JSON, which has names and numbers; {name} is JSON")
    if (options.encoding or "utf8").lower().replace("_", "-") not in ("utf-8", "utf8", "utf-8-sig"):
        raise DataError(f"encoding must be 'utf-8' with JSON, got {options.encoding!r} for {name}")
    with stream() as file:
        begin = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _array(name, stream) if begin[:1] == b"[" else _Lines(name, stream).source()


def _objects(name: str, stream: Callable[[], Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects with the numbers of their lines; slow."""
    with io.TextIOWrapper(stream(), "utf-8-sig") as text:
        number = 0
        try:
            for number, line in enumerate(text, 1):
                if not line.strip():
                    continue
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError(f"it is {type(found).__name__}")
                yield number, found
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name} must have a JSON object in each line, or be one array of objects: line {number}: {error}"
            ) from error


class _Lines:
    def __init__(self, name: str, stream: Callable[[], Any]) -> None:
        self._name, self._stream = name, stream
        sample = list(itertools.islice(_objects(name, stream), _SAMPLE))
        self._lines = [line for line, _ in sample]
        self._sample: list[dict[Hashable, Any]] = [dict(found.items()) for _, found in sample]
        if not self._sample:
            raise DataError(f"{name} holds no JSON object")
        self._names: list[Hashable] = list(dict.fromkeys(key for found in self._sample for key in found))

    def source(self) -> Source:
        return Source(self._name, self._names, self._read, place=self._place, first=self._first)

    def _first(self, name: Hashable) -> list[Any]:
        return [found[name] for found in self._sample if name in found]

    def _kind(self, name: Hashable, role: str) -> Any:
        """The Arrow type of a column, by the first rows."""
        kinds = {type(value) for value in self._first(name) if value is not None}
        if kinds <= {str}:
            return pa.string()  # or Arrow would take dates for dates
        if role == "number" and kinds <= {int, float}:
            return pa.float64()
        if kinds == {int}:
            return pa.uint64() if max(v for v in self._first(name) if v is not None) > 2**63 - 1 else pa.int64()
        if kinds == {bool}:
            return pa.bool_()
        if kinds <= {int, float}:
            return pa.float64()
        one, *others = [
            (line, found[name])
            for line, found in zip(self._lines, self._sample, strict=True)
            if found.get(name) is not None
        ]
        another = next((other for other in others if type(other[1]) is not type(one[1])), one)
        raise DataError(
            f"column {name!r} must hold text throughout, or numbers: {self._name} has {one[1]!r:.60} in line {one[0]}"
            + (f" and {another[1]!r:.60} in line {another[0]}" if another is not one else "")
        )

    def _read(self, ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        import pyarrow.json

        roles = dict.fromkeys(plain, "plain") | dict.fromkeys(numbers, "number") | dict.fromkeys(ids, "id")
        # Two names for one key are a matter of the caller; two keys of one name, of JSON.
        schema = pa.schema([(name, self._kind(name, role)) for name, role in roles.items()])
        try:
            with self._stream() as stream:
                if stream.read(3) != b"\xef\xbb\xbf":
                    stream.close()
                    stream = self._stream()
                table = pyarrow.json.read_json(
                    stream,
                    read_options=pyarrow.json.ReadOptions(block_size=_BLOCK_BYTES),
                    parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
                )
        except (pa.ArrowException, OSError) as error:
            self._explain(error, schema)
        return [table[name] for name in [*ids, *numbers, *plain]]

    def _place(self, row: int) -> str:
        at = next(itertools.islice(_objects(self._name, self._stream), row, None), None)
        return f"row {row} of {self._name}" if at is None else f"line {at[0]} of {self._name}"

    def _explain(self, error: Exception, schema: pa.Schema) -> NoReturn:
        fits: dict[str, Any] = {"string": str, "bool": bool, "double": (int, float), "int64": int, "uint64": int}
        for line, found in _objects(self._name, self._stream):
            for field in schema:
                value = found.get(field.name)
                wanted = fits[str(field.type)]
                is_wrong = not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)
                if value is not None and is_wrong:
                    raise DataError(
                        f"column {field.name!r} of {self._name} must hold one kind of value: line {line} has "
                        f"{value!r:.60}, the first lines {field.type}"
                    ) from error
        raise DataError(f"{self._name} cannot be read: {error}") from error


def _array(name: str, stream: Callable[[], Any]) -> Source:
    """An array of objects, which Python reads: it is all in memory, as many times as that takes."""
    try:
        with stream() as file:
            found = json.loads(file.read().decode("utf-8-sig"))
        if not all(isinstance(row, dict) for row in found):
            raise ValueError("not all of its elements are objects")
        keys = dict.fromkeys(key for row in found for key in row)
        table = pa.table({key: [row.get(key) for row in found] for key in keys})
    except (ValueError, RecursionError, pa.ArrowException, OverflowError, TypeError) as error:
        raise DataError(f"{name} must be an array of JSON objects, each with the same columns: {error}") from error
    if not len(table):
        raise DataError(f"{name} holds no JSON object")

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        return [table[column] for column in [*ids, *numbers, *plain]]

    return Source(name, list(keys), read, place=lambda row: f"object {row} of {name}")
