"""Plain-text tables for the terminal: one function, used by the evaluation report and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns padded to their widest cell; a column is set right when all its cells are numbers.

    Parameters
    ----------
    header : sequence of str
        Column titles.
    rows : iterable of sequences
        Cells; floats are shown with four decimals, everything else with ``str``.

    Returns
    -------
    str
        The table without a final newline.
    """
    rows = [list(row) for row in rows]
    right = [bool(rows) and all(isinstance(row[c], (int, float)) for row in rows) for c in range(len(header))]
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[c]) for line in [list(header), *cells]) for c in range(len(header))]

    def line(parts: Sequence[str]) -> str:
        padded = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])
