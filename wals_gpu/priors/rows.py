"""What the steps of a prior sum over rows, and need of the other side: here in one process, elsewhere on many ranks.

Sums are taken over chunks of ``limits().loss_rows`` rows, counted from the first row of the side, and the sums of
chunks are added in pairs, these again in pairs, and so on. That order follows from the number of rows alone: whoever
has consecutive chunks adds up what belongs together, and the result has the same bits whatever the number of threads
and of ranks. Errors grow with the logarithm of the number of chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.backends.devices import limits
from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.objective.terms import Floats, RowTerms

__all__ = [
    "AllRows",
    "Piece",
    "RowsHere",
    "add_pieces",
    "chunk_rows",
    "column_sums",
    "listed_entries",
    "over_chunks",
    "pieces_here",
    "sum_of_pieces",
]

Result = TypeVar("Result")


def chunk_rows() -> int:
    """Rows of a chunk."""
    return int(limits().loss_rows)


def over_chunks(n: int, work: Callable[[slice], Result], threads: int) -> Iterator[Result]:
    """The results of chunks of n rows, in order; threads work on some chunks at a time, with one BLAS thread each."""
    size = chunk_rows()
    chunks = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    with one_blas_thread():
        if len(chunks) <= 1 or threads <= 1:
            yield from map(work, chunks)
            return
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(chunks), 2 * threads):  # so that few results wait to be summed
                yield from pool.map(work, chunks[first : first + 2 * threads])


class Piece(NamedTuple):
    """The sum of chunks ``place * 2**level`` to before ``(place + 1) * 2**level``, as far as there are as many."""

    level: int
    place: int
    value: Floats


def add_pieces(pieces: list[Piece], more: Iterator[Piece] | list[Piece]) -> list[Piece]:
    """Consecutive pieces, joined where two make one of the next level; `pieces` grows, and is returned."""
    for piece in more:
        while pieces and piece.place % 2 and pieces[-1][:2] == (piece.level, piece.place - 1):
            piece = Piece(piece.level + 1, piece.place // 2, pieces.pop().value + piece.value)
        pieces.append(piece)
    return pieces


def sum_of_pieces(pieces: list[Piece]) -> Floats:
    """The sum of all, of which :func:`add_pieces` has joined what can be: what is left over at the end belongs to the
    right of what is before it."""
    *before, last = pieces
    total = last.value
    for piece in reversed(before):
        total = piece.value + total
    return total


class AllRows(Protocol):
    """The rows of a side, of which some are here, in the order of their numbers. Who has others makes the same calls.

    Attributes
    ----------
    first, n : int
        Number of the first row here, a multiple of :func:`chunk_rows`, and how many rows there are anywhere.
    """

    first: int
    n: int

    def alone(self, work: Callable[[], Result]) -> Result:
        """What is done here, with the rows that are here; an error of one is an error of all."""

    def total(self, here: int, work: Callable[[slice], Any], threads: int) -> Floats:
        """The sum of work(chunk) over the chunks of all rows, of which so many are here, (...) float64."""

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows (n here, ...) of everywhere, in order."""

    def agree(self, *arrays: NDArray[Any]) -> None:
        """Fill arrays, which may differ by rounding where machines differ, with those that one of all has."""

    def column_sums(self, terms: RowTerms, n_other: int) -> Floats:
        """Sums of the Gram coefficients of the entries of each row of the other side, (n_other,)."""

    def spectrum(self, terms: RowTerms, other: NDArray[np.floating]) -> Spectrum:
        """As :meth:`.Backend.spectrum` of all rows of the other side; `other` are those that are here."""

    def products(
        self, terms: RowTerms, factors: list[NDArray[np.floating]], other: NDArray[np.floating]
    ) -> list[NDArray[np.floating]]:
        """Dot products of each entry's row (of each of several arrays) with what it meets of the other side, (Z,)."""

    def solve(self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating]) -> None:
        """As :meth:`.Backend.solve_rows`, all rows that are here."""

    def solve_some(
        self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating], mean: NDArray[np.floating]
    ) -> None:
        """The same of some rows, the same ones in each call, with prior means."""

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], mean: NDArray[np.floating] | None = None
    ) -> float:
        """As :meth:`.Backend.ridge_loss`, of all rows."""


class RowsHere:
    """All rows in this process, see :class:`AllRows`.

    Parameters
    ----------
    n : int
    backend : Backend
    """

    first = 0

    def __init__(self, n: int, backend: Backend) -> None:
        self.n, self._backend = n, backend

    def alone(self, work: Callable[[], Result]) -> Result:
        """See :meth:`AllRows.alone`."""
        return work()

    def total(self, here: int, work: Callable[[slice], Any], threads: int) -> Floats:
        """See :meth:`AllRows.total`."""
        return sum_of_pieces(pieces_here(self.first, here, work, threads))

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See :meth:`AllRows.gather`."""
        return rows

    def agree(self, *arrays: NDArray[Any]) -> None:
        """See :meth:`AllRows.agree`."""

    def column_sums(self, terms: RowTerms, n_other: int) -> Floats:
        """See :meth:`AllRows.column_sums`."""
        return column_sums(terms.col_idx, terms.gram_values(), n_other)

    def spectrum(self, terms: RowTerms, other: NDArray[np.floating]) -> Spectrum:
        """See :meth:`AllRows.spectrum`."""
        return self._backend.spectrum(terms, other)

    def products(
        self, terms: RowTerms, factors: list[NDArray[np.floating]], other: NDArray[np.floating]
    ) -> list[NDArray[np.floating]]:
        """See :meth:`AllRows.products`."""
        listed = listed_entries(terms, len(other))
        return [self._backend.score_entries(array, other, listed) for array in factors]

    def solve(self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating]) -> None:
        """See :meth:`AllRows.solve`."""
        self._backend.solve_rows(terms, other, factors)

    def solve_some(
        self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating], mean: NDArray[np.floating]
    ) -> None:
        """See :meth:`AllRows.solve_some`."""
        self._backend.solve_rows(terms, other, factors, prior=mean)

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], mean: NDArray[np.floating] | None = None
    ) -> float:
        """See :meth:`AllRows.ridge_loss`."""
        return self._backend.ridge_loss(factors, ridge, mean)


def pieces_here(first: int, n: int, work: Callable[[slice], Any], threads: int) -> list[Piece]:
    """Sums of the chunks of n rows, the first of which has this number; of no rows, what a sum of none is."""
    if not n:
        with one_blas_thread():
            return [Piece(0, 0, np.asarray(work(slice(0, 0)), np.float64))]
    values: Iterator[Floats] = (np.asarray(value, np.float64) for value in over_chunks(n, work, threads))
    start = first // chunk_rows()
    return add_pieces([], (Piece(0, start + index, value) for index, value in enumerate(values)))


def column_sums(columns: NDArray[np.integer], values: NDArray[np.floating], n: int) -> Floats:
    """Sums of the values of each of n columns, in the order of the entries."""
    return np.asarray(np.bincount(columns, values, n), np.float64)


def listed_entries(terms: RowTerms, n_columns: int) -> csr_matrix:
    """The entries as :meth:`.Backend.score_entries` takes them."""
    row_ptr = terms.row_ptr.astype(np.int32) if terms.n_entries <= np.iinfo(np.int32).max else terms.row_ptr
    return csr_matrix((terms.col_idx, terms.col_idx, row_ptr), shape=(terms.n_rows, n_columns))
