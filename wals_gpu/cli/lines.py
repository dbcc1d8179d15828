"""Text files with an id per line, as editors, spreadsheets and shells save them; and ids from the text of each."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.cli.output import say
from wals_gpu.data.ids import Ids
from wals_gpu.data.names import plain_name

__all__ = ["ids_of_lines", "parse_ids", "read_lines"]

INTEGER = re.compile(r"[+-]?[0-9]+")

#: What a file begins with that is not UTF-8 (PowerShell's ">" writes UTF-16), the longest first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_lines(path: str | Path, option: str) -> list[str]:
    """The lines of a text file, or of standard input for "-", without the ends of lines and without blank ones.

    UTF-8, or what a byte order mark at the beginning says.

    Raises
    ------
    ValueError
        It is no text; the message names the option.
    FileNotFoundError, IsADirectoryError, PermissionError
    """
    if str(path) == "-":
        what, content = "standard input", sys.stdin.buffer.read() if sys.stdin is not None else b""
    else:
        what = str(path)
        content = Path(path).read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if content.startswith(b"PAR1"):
            raise ValueError(f"{option} must be a text file with an id per line; {what} is a Parquet file") from None
        if content.startswith(b"\x1f\x8b"):
            raise ValueError(f"{option} must be a text file with an id per line; {what} is packed by gzip") from None
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{option}: {what} is not UTF-8 text (line {line}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{option} must be a text file with an id per line; {what} is none, or not in UTF-8")
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None) if line.strip()]


def parse_ids(texts: Sequence[str], ids: Ids | None, count: int, side: str) -> NDArray[Any]:
    """Ids as the model has them, from the text of the command line; an unknown one is an error.

    Raises
    ------
    ValueError
        A text is not an integer where ids, or row numbers, are.
    KeyError
        The model does not know an id.
    """
    values, unfit = _values(texts, ids)
    if unfit:
        if INTEGER.fullmatch(unfit[0]) and ids is not None:
            raise KeyError(f"unknown {side} id: {unfit[0]}")
        what = f"{side} ids" if ids is not None else "row numbers, because it was fitted on a matrix"
        kind = "integer " * (ids is not None)
        raise ValueError(f"{side} {unfit[0]!r} is not an integer; this model has {kind}{what}")
    if ids is not None:
        ids.index_of(values)
    elif (outside := values[(values < 0) | (values >= count)]).size:
        raise ValueError(f"{side} {outside[0]} is not a row number in [0, {count})")
    return values


def ids_of_lines(
    lines: Sequence[str], ids: Ids | None, side: str, option: str, headings: Collection[str], *, all_fit: bool
) -> NDArray[Any]:
    """Each id of a file once, in the order of the file; known to the model or not.

    The first line is left out, with a note, where it is one of the `headings` (as :func:`.plain_name` writes them) and
    no id of the model. Lines that are no integers where the model's ids are integers are an error with `all_fit`, or
    where there is nothing else, else left out, with a note.
    """
    lines = _unquoted(lines, ids)
    if lines and plain_name(lines[0]) in headings:
        first, unfit = _values(lines[:1], ids)
        if unfit or ids is None or ids.find(first)[0] < 0:
            say(f"{option}: the first line, {lines[0].strip()!r}, is a heading and left out")
            lines = lines[1:]
    values, unfit = _values(lines, ids)
    if unfit:
        kind = "row numbers" if ids is None else "integers"
        what = f"this model's {side} ids are {kind}"
        if all_fit or not len(values):
            raise ValueError(f"{option}: {what}: got {unfit[0]!r}")
        such = f"{len(unfit):,} of {len(lines):,} lines, such as {unfit[0]!r}"
        say(f"{option}: {what}; {such}, {'is' if len(unfit) == 1 else 'are'} not, and left out")
    distinct = dict.fromkeys(values.tolist())
    if len(distinct) < len(values):
        say(f"{option}: {len(values) - len(distinct):,} of {len(values):,} ids are there a second time and left out")
    return np.array(list(distinct), dtype=values.dtype)


def _unquoted(lines: Sequence[str], ids: Ids | None) -> Sequence[str]:
    """The lines of a column of CSV whose texts are all in quotes, without these; unless the model's ids have them."""
    bare = [line.strip() for line in lines]
    if not all(len(line) > 1 and line[0] == line[-1] == '"' for line in bare):
        return lines
    if ids is not None and ids.kind == "string" and (ids.find(np.array(bare, object)) >= 0).any():
        return lines
    return [line[1:-1].replace('""', '"') for line in bare]


def _values(texts: Sequence[str], ids: Ids | None) -> tuple[NDArray[Any], list[str]]:
    """The ids of texts, and the texts that can be none."""
    if ids is not None and ids.kind == "string":
        return _exact_or_stripped(texts, ids), []
    dtype = np.dtype(np.int64) if ids is None else ids.ids.dtype
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    stripped = [text.strip() for text in texts]
    fit = [bool(INTEGER.fullmatch(text)) and low <= int(text) <= high for text in stripped]
    numbers = [int(text) for text, fits in zip(stripped, fit, strict=True) if fits]
    return np.array(numbers, dtype), [text for text, fits in zip(stripped, fit, strict=True) if not fits]


def _exact_or_stripped(texts: Sequence[str], ids: Ids) -> NDArray[Any]:
    """Ids may have blanks at their ends, and so may lines that do not belong to them."""
    exact, stripped = np.array(texts, object), np.array([text.strip() for text in texts], object)
    return np.where(ids.find(exact) >= 0, exact, stripped) if len(texts) else exact
