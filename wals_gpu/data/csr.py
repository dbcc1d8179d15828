"""Matrices: checked and brought to canonical CSR once, and small steps on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy import sparse
from scipy.sparse import csr_matrix, issparse

from wals_gpu.checks import warn
from wals_gpu.errors import DataError

__all__ = [
    "MAX_SIDE",
    "as_csr",
    "canonical",
    "cast_values",
    "contains",
    "entry_keys",
    "entry_rows",
    "select",
    "value_dtype",
    "warn_repeats",
]

MAX_SIDE = 2**31 - 1


def as_csr(
    data: Any,
    *,
    dtype: DTypeLike = "float32",
    n_columns: int | None = None,
    allow_empty: bool = False,
    argument: str = "interactions",
) -> sparse.csr_matrix:
    """Check a matrix and turn it into canonical CSR.

    Parameters
    ----------
    data : SciPy sparse matrix or array of any format, or ndarray, 2-D
        Zeros of a dense array are absent entries; zeros stored in a sparse one are kept (except in the blocks of BSR).
    dtype : {"float32", "float64"}
        Type of the values.
    n_columns : int, optional
        Number of columns that is wanted.
    allow_empty : bool
        Whether a matrix without any stored entry is fine.
    argument : str
        Name for error messages.

    Returns
    -------
    csr_matrix
        Shares memory with ``data`` where nothing had to be changed; ``data`` itself is never changed.

    Raises
    ------
    TypeError
        If ``data`` is no matrix.
    DataError
        If it is not 2-D, has other than ``n_columns`` columns, no entry, an index out of range, or a value that is
        not finite.

    Warns
    -----
    ParameterWarning
        If entries were repeated, and therefore summed.
    """
    dtype = value_dtype(dtype)
    if not isinstance(data, np.ndarray) and not sparse.issparse(data):
        raise TypeError(f"{argument} must be a SciPy sparse matrix or a NumPy array, got {type(data).__name__}")
    if data.ndim != 2:
        raise DataError(f"{argument} must be a 2-D matrix (users, items), got shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise DataError(f"{argument} must hold real numbers, got dtype {data.dtype}")
    if n_columns is not None and data.shape[1] != n_columns:
        raise DataError(f"{argument} must have {n_columns} columns, one per item; got shape {data.shape}")
    if max(data.shape) > MAX_SIDE:
        raise DataError(f"{argument} may have at most {MAX_SIDE} rows and columns, got shape {data.shape}")
    if isinstance(data, np.ndarray):
        if isinstance(data, np.ma.MaskedArray):
            data = data.filled(0)  # what is masked is not there
        if data.dtype == np.float16 or not data.dtype.isnative:  # SciPy has no such matrices
            is_half = data.dtype.kind == "f" and data.dtype.itemsize == 2
            data = data.astype(np.float32 if is_half else data.dtype.newbyteorder("="))
        csr = sparse.csr_matrix(data)
    else:
        _check_indices(data, argument)
        if data.format == "coo":
            # SciPy sums repeated entries of COO as it converts, in the type of the data: True + True is True there.
            values = cast_values(data.data, dtype, lambda k: f"{argument}[{data.row[k]}, {data.col[k]}]")
            data = sparse.coo_matrix((values, (data.row, data.col)), shape=data.shape)
        csr = data.tocsr()
        if data.format == "bsr":
            csr.eliminate_zeros()  # the padding of its blocks
    n_stored = data.nnz if getattr(data, "format", "") == "coo" else csr.nnz
    if not n_stored and not allow_empty:
        raise DataError(f"{argument} must hold at least one entry, got none in shape {data.shape}")

    def place(k: int) -> str:
        summed = "the sum at " if csr.nnz < n_stored else ""
        return f"{summed}{argument}[{np.searchsorted(csr.indptr, k, side='right') - 1}, {csr.indices[k]}]"

    values = cast_values(csr.data[: csr.nnz], dtype, place)
    # A matrix of our own: its flags are fresh, and sorting it does not reach into the user's.
    csr = sparse.csr_matrix((values, csr.indices[: csr.nnz], csr.indptr), shape=csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    if csr.nnz < n_stored:
        warn_repeats(n_stored - csr.nnz, f"entries of {argument}")
        cast_values(csr.data, dtype, place)
    return csr


def _check_indices(matrix: Any, argument: str) -> None:
    """Raise where following the indices would leave the matrix: SciPy does not check them, and C code follows."""
    if matrix.format == "coo":
        pairs = [(matrix.row, matrix.shape[0], "row"), (matrix.col, matrix.shape[1], "column")]
        if not len(matrix.row) == len(matrix.col) == len(matrix.data):
            raise DataError(f"{argument} is no valid COO matrix: row, col and data must have the same length")
    elif matrix.format in ("csr", "csc", "bsr"):
        blocks = getattr(matrix, "blocksize", (1, 1))
        n_major, n_minor = (side // block for side, block in zip(matrix.shape, blocks, strict=True))
        minor = "column"
        if matrix.format == "csc":
            n_major, n_minor, minor = n_minor, n_major, "row"
        ptr, n_stored = matrix.indptr, min(len(matrix.indices), len(matrix.data))
        if len(ptr) != n_major + 1 or ptr[0] != 0 or ptr[-1] > n_stored or np.any(ptr[1:] < ptr[:-1]):
            raise DataError(
                f"{argument} is no valid {matrix.format.upper()} matrix: indptr must have {n_major + 1} entries, "
                f"rise from 0, and end at most at the {n_stored} stored entries"
            )
        pairs = [(matrix.indices[: ptr[-1]], n_minor, minor)]
    else:
        return
    for index, n, what in pairs:
        if len(index) and not (index.min() >= 0 and index.max() < n):
            bad = index[(index < 0) | (index >= n)][0]
            raise DataError(f"{argument} must have {what} indices in [0, {n}), got {bad}")


def cast_values(values: NDArray[Any], dtype: np.dtype[Any], place: Callable[[int], str]) -> NDArray[np.floating]:
    """The values in the type of the matrix, which all of them must fit; ``place`` names the k-th for the error."""
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused here
        cast = values.astype(dtype, copy=False)
    finite = np.isfinite(cast)
    if not finite.all():
        k = int(np.argmin(finite))
        fits = f" and fit {dtype}" if np.isinf(cast[k]) else ""
        raise DataError(f"every value must be finite{fits}, but {place(k)} is {values[k]}")
    return cast


def warn_repeats(n: int, what: str, advice: str = "") -> None:
    """Warn that pairs were given more than once, and summed."""
    warn(f"{n} {what} repeat a pair of user and item; the values of a pair were summed{advice}")


def value_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """float32 or float64, as the values of a matrix may be; ValueError for another type."""
    try:
        found = None if dtype is None else np.dtype(dtype)  # of None, NumPy's default
    except TypeError:
        found = None
    if found is None or found not in (np.float32, np.float64):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return found


def canonical(name: str, matrix: Any) -> csr_matrix:
    """Canonical CSR (sorted columns, no duplicates) of anything with entries; the input is not changed."""
    matrix = getattr(matrix, "matrix", matrix)  # Interactions
    if not issparse(matrix):
        raise TypeError(f"{name} must be a SciPy sparse matrix or Interactions, got {type(matrix).__name__}")
    result = csr_matrix(matrix)
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    return result


def select(matrix: csr_matrix, keep: NDArray[np.bool_]) -> csr_matrix:
    """The entries where ``keep`` (Z,) is true, same shape; explicit zeros stay entries."""
    row_ptr = np.concatenate([[0], np.cumsum(keep)])[matrix.indptr]
    return csr_matrix((matrix.data[keep], matrix.indices[keep], row_ptr), shape=matrix.shape)


def entry_rows(matrix: csr_matrix) -> NDArray[np.int64]:
    """Row number of each entry (Z,)."""
    return np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))


def entry_keys(matrix: csr_matrix) -> NDArray[np.int64]:
    """One number for each entry of a canonical matrix, ascending (Z,): equal for equal places."""
    keys: NDArray[np.int64] = entry_rows(matrix) * matrix.shape[1] + matrix.indices
    return keys


def contains(ascending: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of ``keys`` are in ``ascending``."""
    if not ascending.size:
        return np.zeros(keys.shape, dtype=bool)
    nearest: NDArray[Any] = ascending[np.minimum(np.searchsorted(ascending, keys), ascending.size - 1)]
    matches: NDArray[np.bool_] = nearest == keys
    return matches
