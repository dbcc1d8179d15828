"""Tables of results: plain text for the terminal, HTML for notebooks, and those of pandas, polars and Arrow."""

from __future__ import annotations

import html
import importlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

__all__ = ["Tabular", "as_output", "check_output", "format_table", "html_table"]

#: Characters of a cell that a terminal shows.
_WIDEST = 100


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to their widest cell; a column is set right when all its cells are numbers.

    Parameters
    ----------
    header : sequence of str
        Column titles.
    rows : iterable of sequences
        Cells; floats are shown with four decimals, everything else with ``str``, in one line and cut after 100
        characters.

    Returns
    -------
    str
        The table without a final newline.
    """
    rows = [list(row) for row in rows]
    right = _columns_of_numbers(len(header), rows)
    cells = [[_line(_text(cell)) for cell in row] for row in rows]
    widths = [max(_width(line[c]) for line in [list(header), *cells]) for c in range(len(header))]

    def line(parts: Sequence[str]) -> str:
        blanks = [" " * (width - _width(part)) for part, width in zip(parts, widths, strict=True)]
        padded = (b + p if r else p + b for p, b, r in zip(parts, blanks, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def html_table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """The same table as HTML, for ``_repr_html_`` in notebooks; whatever text it holds is escaped.

    Parameters
    ----------
    header : sequence of str
        Column titles; empty for a table without a line of them.
    rows : iterable of sequences
        Cells, shown as :func:`format_table` does.
    caption : str, default ""
        A line above the table.

    Returns
    -------
    str
        A ``<table>``, after a ``<p>`` with the caption if there is one.
    """
    rows = [list(row) for row in rows]
    width = len(header) or max(map(len, rows), default=0)
    style = [f' style="text-align: {"right" if right else "left"}"' for right in _columns_of_numbers(width, rows)]

    def line(parts: Iterable[object], tag: str) -> str:
        cells = (f"<{tag}{s}>{html.escape(_text(p))}</{tag}>" for p, s in zip(parts, style, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    head = f"<thead>{line(header, 'th')}</thead>" if header else ""
    above = f"<p>{html.escape(caption)}</p>\n" if caption else ""
    return "\n".join([f"{above}<table>{head}<tbody>", *(line(row, "td") for row in rows), "</tbody></table>"])


def _columns_of_numbers(width: int, rows: Sequence[Sequence[object]]) -> list[bool]:
    return [bool(rows) and all(isinstance(row[c], (int, float)) for row in rows) for c in range(width)]


def _line(text: str) -> str:
    """A cell that does not break the table: an id may be whatever text there is."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _width(text: str) -> int:
    """The columns of a terminal that a text takes: two for each character of East Asian scripts, none for accents."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def _text(cell: object) -> str:
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


# ---------------------------------------------------------------------------------------------- tables for programs


class Tabular:
    """What can be had as a table; a class of it says how with :meth:`to_arrow`."""

    __slots__ = ()

    def to_arrow(self) -> pa.Table:
        """As an Arrow table."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """As a pandas DataFrame; ImportError where pandas is not installed."""
        return as_output(self.to_arrow(), "pandas")

    def to_polars(self) -> Any:
        """As a polars DataFrame; ImportError where polars is not installed."""
        return as_output(self.to_arrow(), "polars")


def check_output(output: str | None) -> str | None:
    """The kind of table of an option ``output=``, before anything is computed.

    Raises
    ------
    ValueError
        It is not None, "pandas", "polars" or "arrow".
    ImportError
        The package is not installed.
    """
    if output is None:
        return None
    if not (isinstance(output, str) and output in _OUTPUTS):
        raise ValueError(f"output must be None or one of {', '.join(map(repr, _OUTPUTS))}, got {output!r}")
    if output != "arrow":
        try:
            importlib.import_module(output)
        except ImportError as error:
            raise ImportError(f"tables of {output} need it: pip install {output}", name=output) from error
    return output


def as_output(table: pa.Table, output: str) -> Any:
    """An Arrow table as `output` says: "pandas", "polars" or "arrow"; errors as :func:`check_output`."""
    if check_output(output) == "pandas":
        return table.to_pandas()
    if output == "polars":
        return importlib.import_module("polars").from_arrow(table)
    return table


_OUTPUTS = ("pandas", "polars", "arrow")
