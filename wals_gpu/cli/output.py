"""What commands print: lines for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import Any

from wals_gpu.data.ids import plain
from wals_gpu.data.interactions import Interactions

__all__ = ["bytes_in_words", "clipped", "in_words", "one_line", "print_json", "say", "size_of", "wrapped"]


def say(text: str) -> None:
    """One line for the person at the terminal, beside the results."""
    print(f"wals-gpu: {text}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """What an error says, in a line."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"not enough memory. {error}"
    else:
        # str(KeyError) is the repr of its argument
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def print_json(value: Any) -> None:
    """JSON on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=plain)
    print()


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
