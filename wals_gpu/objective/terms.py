"""What a solver needs to know of the rows of one side, and the sparse-matrix steps that objectives compute it with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

__all__ = [
    "RowSystem",
    "RowTerms",
    "SideTerms",
    "check_matrix",
    "column_counts",
    "entry_error",
    "other_side",
    "product_at",
    "row_of_entry",
]

Floats = NDArray[np.float64]

#: Entries worked on at a time. What is computed in float64 for float32 data stays in the cache, and no 64-bit array of
#: the size of the data ever exists beside it.
CHUNK = 1 << 16


class SideTerms(Protocol):
    """The terms of all rows of a side: :class:`RowTerms`, or blocks of interactions on disk, read one at a time."""

    @property
    def background(self) -> NDArray[np.floating]:
        """``g`` of each row, (R,) or (1,)."""

    @property
    def ridge(self) -> NDArray[np.floating]:
        """``lambda`` of each row, (R,) or (1,)."""

    @property
    def other_background(self) -> NDArray[np.floating]:
        """``h`` of each column, (n_other,) or (1,)."""

    @property
    def target_square(self) -> float:
        """Sum of ``c t^2`` over the entries."""

    def parts(self) -> Iterator[tuple[slice, RowTerms]]:
        """The rows in the pieces to solve them in, each with its terms."""


class RowSystem(NamedTuple):
    """The matrix of a row, and what it was made from.

    Attributes
    ----------
    matrix : (D, D) float64
        A of :class:`RowTerms`.
    entries : slice
        Where the row's n entries stand.
    factors : (n, D) float64
        Of the other side, as the entries meet them.
    """

    matrix: Floats
    entries: slice
    factors: Floats


@dataclass(frozen=True, eq=False)
class RowTerms:
    """What a solver needs for R rows of one side; values are in the factor dtype (float32 or float64).

    The system of row r is ``A x = b`` with ``G = sum_i other_background_i y_i y_i'`` and::

        A = background_r G + sum over the row's entries of gram y y' + ridge_r Id
        b = sum over the row's entries of rhs y + ridge_r prior_r

    A shape (1,) stands for one value shared by all entries, rows or columns. Arrays may share memory with the matrix
    that they came from: treat them as read-only.

    Parameters
    ----------
    row_ptr : (R+1,) int64
    col_idx : (Z,) int32
        Sorted within a row.
    rhs : (Z,) or (1,)
        ``c t`` of each entry.
    gram : (Z,) or (1,), or None
        ``c - g h`` of each entry. None: it is ``rhs + gram_offset``.
    gram_offset : float
        Used only when `gram` is None.
    background : (R,) or (1,)
        ``g`` of each row. A constant weight of all unobserved pairs stands here, on both sides: only ``g h`` matters.
    ridge : (R,) or (1,)
        ``lambda`` of each row.
    other_background : (n_other,) or (1,)
        ``h`` of each column.
    target_square : float
        Sum of ``c t^2`` over the entries, accumulated in float64: the part of the loss that factors do not change.
    """

    row_ptr: NDArray[np.int64]
    col_idx: NDArray[np.int32]
    rhs: NDArray[np.floating]
    gram: NDArray[np.floating] | None
    gram_offset: float
    background: NDArray[np.floating]
    ridge: NDArray[np.floating]
    other_background: NDArray[np.floating]
    target_square: float

    @property
    def n_rows(self) -> int:
        """R, the number of rows."""
        return len(self.row_ptr) - 1

    @property
    def n_entries(self) -> int:
        """Z, the number of observed entries."""
        return len(self.col_idx)

    def parts(self) -> Iterator[tuple[slice, RowTerms]]:
        """The rows in the pieces to solve them in, each with its terms: all at once."""
        yield slice(0, self.n_rows), self

    def some(self, rows: slice) -> RowTerms:
        """The terms of consecutive rows; without `target_square`, which is of all of them.

        Parameters
        ----------
        rows : slice
            With a start and a stop.

        Returns
        -------
        RowTerms
        """
        first, last = self.row_ptr[rows.start], self.row_ptr[rows.stop]

        def part(array: NDArray[Any], piece: slice) -> NDArray[Any]:
            return array if len(array) == 1 else array[piece]

        entries = slice(first, last)
        return replace(
            self,
            row_ptr=self.row_ptr[rows.start : rows.stop + 1] - first,
            col_idx=self.col_idx[entries],
            rhs=part(self.rhs, entries),
            gram=None if self.gram is None else part(self.gram, entries),
            background=part(self.background, rows),
            ridge=part(self.ridge, rows),
            target_square=0.0,
        )

    def rhs_values(self) -> NDArray[np.floating]:
        """Right-hand coefficient of every entry, (Z,); a read-only view where all are the same."""
        return np.broadcast_to(self.rhs, self.n_entries)

    def gram_values(self) -> NDArray[np.floating]:
        """Gram coefficient of every entry, (Z,); a read-only view where all are the same."""
        gram = self.rhs + self.rhs.dtype.type(self.gram_offset) if self.gram is None else self.gram
        return np.broadcast_to(gram, self.n_entries)

    def system(self, row: int, other: NDArray[np.floating], background: NDArray[np.floating]) -> RowSystem:
        """The matrix A of a row in float64, where ``background_r G`` is known.

        Parameters
        ----------
        row : int
        other : (n_other, D) array
            Factors of the other side.
        background : (D, D) float64 array
            ``background_r G``.

        Returns
        -------
        RowSystem
        """
        entries = slice(self.row_ptr[row], self.row_ptr[row + 1])
        factors = other[self.col_idx[entries]].astype(np.float64)
        matrix = background + (factors.T * self.gram_values()[entries]) @ factors
        matrix[np.diag_indices_from(matrix)] += np.broadcast_to(self.ridge, self.n_rows)[row]
        return RowSystem(matrix, entries, factors)


def check_matrix(matrix: csr_matrix, side: str, n_columns: int | None) -> tuple[float, float]:
    """Refuse a matrix that is not canonical CSR of finite floats; its lowest and highest value, (0, 0) if it has none.

    `side` ("user" or "item") is what its rows are, `n_columns` how many columns it must have (None: any number).
    """
    if getattr(matrix, "format", None) != "csr":
        raise TypeError(f"matrix must be a scipy.sparse CSR matrix, got {type(matrix).__name__}")
    if matrix.dtype not in (np.float32, np.float64):
        raise TypeError(f"matrix must hold float32 or float64, got {matrix.dtype}; convert it with astype('float32')")
    if n_columns is not None and matrix.shape[1] != n_columns:
        columns = f"{n_columns} columns, one for each training {other_side(side)}"
        raise ValueError(f"matrix must have {columns}, got shape {matrix.shape}")
    if not matrix.has_canonical_format:
        raise ValueError("matrix must have sorted indices without duplicates; call its sum_duplicates() first")
    data = matrix.data
    if not data.size == matrix.indices.size == matrix.nnz:
        raise ValueError(f"matrix has {matrix.nnz} entries in an array of {data.size}; call its prune() first")
    if not data.size:
        return 0.0, 0.0
    lowest, highest = float(data.min()), float(data.max())  # both NaN if there is one
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise entry_error("matrix must have finite values", matrix, side, ~np.isfinite(data))
    return lowest, highest


def entry_error(requirement: str, matrix: csr_matrix, side: str, bad: NDArray[np.bool_]) -> ValueError:
    """An error that names the first of the entries that are `bad`, a mask of shape (Z,)."""
    entries = np.flatnonzero(bad)
    row, column, value = row_of_entry(matrix, entries[0]), matrix.indices[entries[0]], matrix.data[entries[0]]
    return ValueError(
        f"{requirement}, got {value} for {side} {row}, {other_side(side)} {column} ({len(entries)} such entries)"
    )


def other_side(side: str) -> str:
    """ "item" for "user", and the reverse."""
    return "item" if side == "user" else "user"


def row_of_entry(matrix: csr_matrix, entry: NDArray[np.integer]) -> NDArray[np.int64]:
    """Row number of entries given by their position."""
    return np.searchsorted(matrix.indptr, entry, side="right") - 1


def column_counts(matrix: csr_matrix) -> Floats:
    """Number of entries of each column, (I,)."""
    if hasattr(matrix, "column_counts"):  # one that lies on several machines has been counted there
        return np.asarray(matrix.column_counts, np.float64)
    counts = np.zeros(matrix.shape[1], np.int64)
    for start in range(0, matrix.indices.size, CHUNK):  # bincount makes a 64-bit copy of what it counts
        counts += np.bincount(matrix.indices[start : start + CHUNK], minlength=len(counts))
    return counts.astype(np.float64)


def product_at(matrix: csr_matrix, entries: slice, of_rows: Floats | None, of_columns: Floats | None) -> Floats:
    """Number of the row times number of the column of each entry of a slice; size 1 if all are equal. None means 1."""
    product = np.ones(1)
    if of_rows is not None:
        product = product * (of_rows if len(of_rows) == 1 else _repeat_rows(of_rows, matrix.indptr, entries))
    if of_columns is not None:
        product = product * (of_columns if len(of_columns) == 1 else of_columns[matrix.indices[entries]])
    return product


def _repeat_rows(of_rows: Floats, row_ptr: NDArray[np.integer], entries: slice) -> Floats:
    """The row's number at each entry of a slice, in memory of the slice (np.repeat over all rows would be (Z,))."""
    first = np.searchsorted(row_ptr, entries.start, side="right") - 1
    last = np.searchsorted(row_ptr, entries.stop, side="left")
    lengths = np.diff(np.clip(row_ptr[first : last + 1], entries.start, entries.stop))
    return np.repeat(of_rows[first:last], lengths)
