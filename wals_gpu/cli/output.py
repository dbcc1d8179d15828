"""What commands print: lines for people, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from wals_gpu.data.ids import plain
from wals_gpu.data.interactions import Interactions

__all__ = [
    "bytes_in_words", "clipped", "escaped_output", "in_words", "one_line", "print_json", "say", "size_of", "wrapped",
]  # fmt: skip


def say(text: str) -> None:
    """One line for the person at the terminal, beside the results."""
    print(f"wals-gpu: {text}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename or repr('')}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        # str(KeyError) is the repr of its argument
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def print_json(value: Any) -> None:
    """JSON on standard output; escaped as JSON has it, what its encoding does not have."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=plain)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=plain)
    print(text)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Standard output in which is escaped what its encoding does not have: ids and paths may be whatever there is."""
    before = getattr(sys.stdout, "errors", None)
    if before != "strict" or not hasattr(sys.stdout, "reconfigure"):
        yield
        return
    stream: Any = sys.stdout
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # it is closed, or what it still held cannot be written
            stream.reconfigure(errors=before)


def size_of(data: Interactions) -> str:
    """Users, items and entries in words."""
    n_users, n_items = data.matrix.shape
    return in_words(n_users, n_items, data.matrix.nnz)


def in_words(n_users: int, n_items: int, n_entries: int) -> str:
    """The same of numbers."""
    return f"{n_users:,} users, {n_items:,} items, {n_entries:,} entries"


def bytes_in_words(n: float) -> str:
    """Such as "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def wrapped(text: str) -> str:
    """A paragraph of 79 columns; where it begins with a space, further lines are indented."""
    return textwrap.fill(text, 79, subsequent_indent="    " if text.startswith(" ") else "", break_on_hyphens=False)


def clipped(text: str, width: int) -> str:
    """The beginning of a text that is longer than `width`."""
    return text if len(text) <= width else text[: width - 3] + "..."
