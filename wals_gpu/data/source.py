"""What a table gives to those who read it, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

__all__ = ["Column", "Reader", "Source", "TextOptions", "listing"]

Column: TypeAlias = pa.ChunkedArray


class Reader(Protocol):
    """Reads columns: one Arrow array for each name asked for, in this order.

    ``ids`` come in few bytes a row where they are text; ``numbers`` as numbers, also out of a text file; ``plain``
    columns as they are, which is text in a text file.
    """

    def __call__(self, ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]: ...


def _row(row: int) -> str:
    """The k-th row, in words."""
    return f"row {row}"


def _unknown(name: Hashable) -> list[Any]:
    """No values to judge a column by."""
    return []


@dataclass(frozen=True)
class Source:
    """A table whose columns have not been read yet.

    Attributes
    ----------
    what : str
        What to call it in messages.
    names : sequence
        Of its columns; one may be there twice.
    read : Reader
    text_ids : bool
        Ids come as text because the file has no types.
    place : callable
        What to call the k-th row in messages, such as "line 7 of plays.csv"; after `read`.
    first : callable
        Some values of a column, to judge it by; none where that would cost anything.
    remark : str
        What the table looks like, said where a column is not found.
    pieces : callable, optional
        Parts of the rows, in their order, that can be read one by one, each with its size in bytes. None: the
        table is read as a whole.
    """

    what: str
    names: Sequence[Hashable]
    read: Reader
    text_ids: bool = False
    place: Callable[[int], str] = _row
    first: Callable[[Hashable], list[Any]] = _unknown
    remark: str = ""
    pieces: Callable[[], list[tuple[int, Source]]] | None = None


@dataclass(frozen=True)
class TextOptions:
    """How files of text are to be read; None: as they look. :func:`.as_interactions` documents each."""

    columns: tuple[str, ...] | None = None
    encoding: str | None = None
    decimal: str | None = None

    def given(self) -> list[str]:
        """The names of those that were given."""
        return [name for name in ("columns", "encoding", "decimal") if getattr(self, name) is not None]


def listing(names: Sequence[Hashable]) -> str:
    """Names of columns for a message, not too many."""
    return ", ".join(f"{name!r:.60}" for name in names[:20]) + (", ..." if len(names) > 20 else "")
