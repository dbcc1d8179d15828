"""How a rank comes by the factors of the other side that its rows meet, in the basis of a half-sweep.

Each rank rotates its own rows once; then they travel. Three ways, of which the results have the same bits:

- all: every rank gets the whole table. The least work where most rows of it are met anyway.
- halo: a rank gets the rows that its own rows meet. Less traffic and memory where it meets few.
- blocks: the rank's rows are solved block by block, each with the halo of its own. More traffic, for tables larger
  than memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.group import Group, of_each, to_receive, together
from wals_gpu.objective.terms import RowTerms

__all__ = ["MODES", "Part", "Tables", "make_tables"]

MODES = ("auto", "all", "halo", "blocks")

#: Where a rank meets less of the other side than this, it gets what it meets.
_HALO_SHARE = 0.8


@dataclass(frozen=True)
class Part:
    """Some of the rank's own rows, and their terms, whose columns are rows of the table that comes with them."""

    rows: slice
    terms: RowTerms


class Tables:
    """What the half-sweeps of a side need of the other one.

    Parameters
    ----------
    group : Group
    cuts : Cuts
        Of the other side.
    parts : list of Part
        Of the rank, in as many rounds as every rank has.
    mode : {"all", "halo", "blocks"}
    """

    def __init__(self, group: Group, cuts: Cuts, parts: list[Part], mode: str) -> None:
        self.mode, self._group, self._cuts = mode, group, cuts
        self._parts = parts
        self._wanted: list[list[int]] = []  # of each round: rows from each rank
        self._sent: list[list[NDArray[np.int64]]] = []  # and own rows for each rank
        if mode != "all":
            self._parts = [self._with_halo(part) for part in parts]

    def _with_halo(self, part: Part) -> Part:
        """The part with columns counted in its halo; all ranks learn what the others want of them in its round."""
        group, met = self._group, np.empty(0, np.int32)
        with together(group, "counting what is met"):
            met = np.unique(part.terms.col_idx)
            place = np.searchsorted(met, part.terms.col_idx).astype(np.int32)
        wanted = np.diff(np.searchsorted(met, self._cuts.bounds)).tolist()
        requests = np.split(met.astype(np.int64), np.cumsum(wanted)[:-1])
        asked = to_receive(group, wanted)
        received = np.empty(sum(asked), np.int64)
        group.exchange_rows(requests, asked, received)
        first = self._cuts.bounds[group.rank]
        self._wanted.append(wanted)
        self._sent.append(np.split(received - first, np.cumsum(asked)[:-1]))
        return Part(part.rows, replace(part.terms, col_idx=place))

    def rounds(self, own: NDArray[np.floating], empty: Any) -> Iterator[tuple[Part, NDArray[np.floating]]]:
        """The parts, each with its table. Every rank goes through all rounds.

        Parameters
        ----------
        own : (own rows of the other side, P)
            As they are to be seen.
        empty : callable
            Makes an array (n, P) that solvers take as a table.
        """
        if self.mode == "all":
            with together(self._group, "making room for factors of the other side"):
                table = empty(self._cuts.n_rows)
            self._group.gather_rows(own, self._cuts.counts, table)
            for part in self._parts:
                yield part, table
            return
        for part, wanted, sent in zip(self._parts, self._wanted, self._sent, strict=True):
            with together(self._group, "making room for factors of the other side"):
                table, pieces = empty(sum(wanted)), [own[rows] for rows in sent]
            self._group.exchange_rows(pieces, wanted, table)
            del pieces
            yield part, table
            del table  # before the next one is there


def make_tables(
    group: Group, cuts: Cuts, terms: RowTerms, mode: str, row_bytes: int, budget: int | None = None
) -> Tables:
    """Choose how the other side's factors come, the same way on all ranks.

    Parameters
    ----------
    group : Group
    cuts : Cuts
        Of the other side.
    terms : RowTerms
        Of the rank's own rows.
    mode : {"auto", "all", "halo", "blocks"}
        "auto": "all" where a rank meets most of the other side and the table fits, else "halo" where what a rank meets
        fits, else "blocks".
    row_bytes : int
        Of a row of the table.
    budget : int, optional
        Bytes that a table may take; None: any.

    Returns
    -------
    Tables
    """
    most = int(of_each(group, _n_met(terms.col_idx, cuts.n_rows)).max())
    if mode == "auto":
        fits = budget is None or cuts.n_rows * row_bytes <= budget
        mode = "all" if fits and most >= _HALO_SHARE * cuts.n_rows else "halo"
        if mode == "halo" and budget is not None and most * row_bytes > budget:
            mode = "blocks"
    slices = [slice(0, terms.n_rows)]
    if mode == "blocks":
        fitting = most // 2 if budget is None else budget // row_bytes
        slices = _blocks(terms, cuts.n_rows, max(fitting, 1))
        n_rounds = int(of_each(group, len(slices)).max())
        slices += [slice(terms.n_rows, terms.n_rows)] * (n_rounds - len(slices))
    return Tables(group, cuts, [Part(rows, terms.some(rows)) for rows in slices], mode)


def _n_met(col_idx: NDArray[np.int32], n_columns: int) -> int:
    met = np.zeros(n_columns, np.bool_)
    met[col_idx] = True
    return int(np.count_nonzero(met))


def _blocks(terms: RowTerms, n_columns: int, most_met: int) -> list[slice]:
    """Consecutive rows that meet at most so many columns together, or are one row, in steps of a part of the rows."""
    start, blocks = 0, []
    met, n_met = np.zeros(n_columns, np.bool_), 0
    for begin, columns in _steps(terms, most_met):
        n_new = int(np.count_nonzero(~met[columns]))
        if n_met + n_new > most_met and begin > start:
            blocks.append(slice(start, begin))
            start, n_new = begin, len(columns)
            met[:], n_met = False, 0
        met[columns] = True
        n_met += n_new
    return [*blocks, slice(start, terms.n_rows)]


def _steps(terms: RowTerms, most_met: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Where each of many short ranges of rows begins, and the columns that it meets; halved where they are too many."""
    step = max(terms.n_rows // 256, 1)
    ranges = [(begin, min(begin + step, terms.n_rows)) for begin in range(0, terms.n_rows, step)][::-1]
    while ranges:
        begin, end = ranges.pop()
        columns = np.unique(terms.col_idx[terms.row_ptr[begin] : terms.row_ptr[end]])
        if len(columns) <= most_met or end - begin == 1:
            yield begin, columns
        else:
            middle = (begin + end) // 2
            ranges += [(middle, end), (begin, middle)]
