"""Plain ``.npy`` files that are larger than memory: written piece by piece, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix, vstack

from wals_gpu.errors import DataError

__all__ = ["AppendedArray", "FileArray", "StoredRows"]


def _row_places(rows: Any, n: int) -> NDArray[np.int64]:
    """Numbers of some of n rows, given as NumPy's indexing takes them, in time and memory of those alone.

    Raises
    ------
    IndexError
        One is not there, or a mask is not of n rows.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n))
    given = np.atleast_1d(rows)
    if given.dtype == np.bool_:
        if given.shape != (n,):
            raise IndexError(f"a mask of rows must have shape ({n},), got {given.shape}")
        return np.flatnonzero(given)
    if given.size and (given.dtype.kind not in "iu" or given.ndim != 1):
        raise IndexError(f"rows must be a list of row numbers, got {given.dtype} {given.shape}")
    numbers = given.astype(np.int64)
    if numbers.size and not -n <= numbers.min() <= numbers.max() < n:
        raise IndexError(f"rows must be in [{-n}, {n}), got {numbers.min()} to {numbers.max()}")
    return np.where(numbers < 0, numbers + n, numbers)


class AppendedArray:
    """A one-dimensional ``.npy`` file that grows; its header is written at the end, into the space left for it."""

    _HEADER = 128

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._file = open(path, "xb")
        self._file.write(bytes(self._HEADER))
        self._count = 0

    def append(self, array: NDArray[Any]) -> None:
        """Write more numbers behind those that are there."""
        np.ascontiguousarray(array, self._dtype).tofile(self._file)
        self._count += len(array)

    def __enter__(self) -> AppendedArray:
        return self

    def __exit__(self, *_: Any) -> None:
        fields = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count,)}
        start = b"\x93NUMPY\x01\x00" + (self._HEADER - 10).to_bytes(2, "little")
        self._file.flush()
        self._file.seek(0)
        self._file.write(start + repr(fields).encode().ljust(self._HEADER - 11) + b"\n")
        self._file.close()


class FileArray:
    """A one-dimensional ``.npy`` file of which slices are read; ``np.asarray`` maps the whole.

    Parameters
    ----------
    path : path

    Raises
    ------
    DataError
        It is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open(path, "rb") as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, self.dtype = read[version](file)
                self._offset = file.tell()
            (self.size,) = shape
        except (KeyError, ValueError) as error:
            raise DataError(f"{path} is no .npy file of a one-dimensional array: {error!r}") from error
        if self.dtype.kind not in "if" or not self.dtype.isnative:
            raise DataError(f"{path} must hold integers or floats of this machine's byte order, got {self.dtype}")
        n_bytes, size = self._offset + self.size * self.dtype.itemsize, path.stat().st_size
        if n_bytes != size:
            raise DataError(f"{path} must have {n_bytes} bytes for {self.size} numbers, got {size}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, piece: slice) -> NDArray[Any]:
        start, stop, _ = piece.indices(self.size)
        count = max(stop - start, 0)
        read = np.fromfile(self._path, self.dtype, count, offset=self._offset + start * self.dtype.itemsize)
        if len(read) != count:
            raise DataError(f"{self._path} has become shorter: {count} numbers from {start} on are not there")
        return read

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if not self.size:
            return np.empty(0, self.dtype)
        return np.memmap(self._path, self.dtype, "r", self._offset, (self.size,))


class StoredRows:
    """A CSR matrix on disk, with the attributes of SciPy's.

    Parameters
    ----------
    folder : path
        Of the three files.
    shape : (int, int)
    dtype : dtype

    Attributes
    ----------
    indptr : (R + 1,) int64 array
        In memory.
    indices, data : FileArray
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        indptr, self.indices, self.data = (FileArray(folder / f"{name}.npy") for name in ("indptr", "indices", "data"))
        for name, got, kind in (
            ("indptr", indptr, "int64"),
            ("indices", self.indices, "int32"),
            ("data", self.data, dtype),
        ):
            if got.dtype != kind:
                raise DataError(f"{folder / name}.npy must hold {kind}, got {got.dtype}")
        self.indptr = indptr[:]
        n = len(self.indices)
        rises = len(self.indptr) == shape[0] + 1 and self.indptr[0] == 0 and np.all(np.diff(self.indptr) >= 0)
        if not rises or self.indptr[-1] != n or len(self.data) != n:
            raise DataError(
                f"{folder} is no CSR matrix: indptr must have {shape[0] + 1} numbers that rise from 0 to the number of "
                f"indices, {n}, and of data, {len(self.data)}"
            )

    @property
    def nnz(self) -> int:
        """Z, the number of entries."""
        return len(self.indices)

    def block(self, begin: int, end: int) -> csr_matrix:
        """Consecutive rows, read into memory.

        Parameters
        ----------
        begin, end : int
            From `begin` to before `end`.

        Returns
        -------
        (end - begin, n_columns) csr_matrix
        """
        first, last = int(self.indptr[begin]), int(self.indptr[end])
        row_ptr = self.indptr[begin : end + 1] - first
        parts = (self.data[first:last], self.indices[first:last], row_ptr)
        return csr_matrix(parts, shape=(end - begin, self.shape[1]))

    def bounds(self, max_entries: int) -> Iterator[tuple[int, int]]:
        """Blocks of rows that fit into memory; a row of more entries is a block of its own.

        Parameters
        ----------
        max_entries : int
            Of a block.

        Yields
        ------
        begin, end : int
            From `begin` to before `end`.
        """
        begin = 0
        while begin < self.shape[0]:
            end = int(np.searchsorted(self.indptr, self.indptr[begin] + max_entries, side="right")) - 1
            end = max(end, begin + 1)
            yield begin, end
            begin = end

    def __getitem__(self, rows: Any) -> csr_matrix:
        """Rows by number, slice or array of numbers, read into memory."""
        numbers = _row_places(rows, self.shape[0])
        if not len(numbers):
            return csr_matrix((0, self.shape[1]), dtype=self.dtype)
        # Runs of consecutive rows are read in one piece.
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
        ends = np.append(starts[1:], len(numbers))
        runs = [self.block(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, ends, strict=True)]
        return vstack(runs, format="csr", dtype=self.dtype)
