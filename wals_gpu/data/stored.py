"""Interactions on disk, for training on more than the memory holds.

A folder of plain ``.npy`` files, the matrix in CSR form by users and by items; ``np.load(path, mmap_mode="r")`` opens
each of them anywhere::

    stored.json           format, version, shape and dtype; written last
    users/indptr.npy      (U + 1,) int64
    users/indices.npy     (Z,) int32, rising within a row
    users/data.npy        (Z,) float32 or float64, finite
    items/...             the same of the transposed matrix, (I, U)

:func:`write_stored` makes one from blocks of rows or from arrays on disk, :class:`StoredMatrix` opens it, and
:meth:`WALS.fit` takes it. In memory are a block of rows at a time, the factors, and the ``indptr`` arrays.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix, issparse

from wals_gpu.checks import as_path, integer
from wals_gpu.data.csr import as_csr, value_dtype
from wals_gpu.data.interactions import Interactions
from wals_gpu.data.rows_on_disk import AppendedArray, StoredRows
from wals_gpu.errors import DataError
from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.system import to_disk

__all__ = ["StoredMatrix", "StoredTerms", "as_stored", "one_each", "terms_of_rows", "write_stored"]

_VERSION = 1


class StoredMatrix(StoredRows):
    """Interactions in a folder that :func:`write_stored` made; :meth:`WALS.fit` reads them block by block.

    Parameters
    ----------
    path : str or path
    block_bytes : int, default 256 MiB
        Memory for a block of rows. A row that needs more is read all the same.

    Attributes
    ----------
    shape : (int, int)
        U, I.
    nnz : int
        Z, the number of entries.
    dtype : dtype
    transposed : StoredRows
        (I, U).

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    DataError
        It holds something else, or its files do not fit together.
    """

    def __init__(self, path: str | os.PathLike[str], *, block_bytes: int = 256 << 20) -> None:
        folder = as_path("path", path)
        if not folder.exists():
            raise FileNotFoundError(f"no stored interactions at {folder}")
        try:
            metadata = json.loads((folder / "stored.json").read_bytes())
            if metadata["format"] != "wals_gpu interactions" or metadata["format_version"] != _VERSION:
                raise ValueError(f"format {metadata['format']!r}, version {metadata['format_version']!r}")
            n_users, n_items = (integer("shape", n, 1, 2**31 - 1) for n in metadata["shape"])
            dtype = np.dtype({"float32": "float32", "float64": "float64"}[metadata["dtype"]])
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{folder} holds no stored interactions that this version can read: {error!r}") from error
        super().__init__(folder / "users", (n_users, n_items), dtype)
        self.transposed = StoredRows(folder / "items", (n_items, n_users), dtype)
        if self.transposed.nnz != self.nnz:
            raise DataError(f"{folder} has {self.nnz} entries by users and {self.transposed.nnz} by items")
        self.path = folder
        self.block_bytes = block_bytes
        self.block_entries = _block_entries(block_bytes, dtype)

    def __repr__(self) -> str:
        return f"StoredMatrix({str(self.path)!r}: {self.shape[0]} x {self.shape[1]}, {self.nnz} entries, {self.dtype})"

    def bind(self, objective: Objective) -> BoundObjective:
        """As :meth:`.Objective.bind`; values are checked by the first pass of :class:`StoredTerms`.

        Parameters
        ----------
        objective : Objective

        Returns
        -------
        BoundObjective
        """
        return BoundObjective(objective, *self.shape, **objective.learn(self))


def _block_entries(block_bytes: int, dtype: np.dtype[Any]) -> int:
    """Entries that may be worked on in so much memory: with coefficients, or while they are sorted."""
    return max(integer("block_bytes", block_bytes, 1) // (24 + 4 * dtype.itemsize), 1)


class StoredTerms:
    """What a solver needs of one side of a :class:`StoredMatrix`: :class:`RowTerms` of a block of rows at a time.

    Parameters
    ----------
    bound : BoundObjective
    stored : StoredMatrix
    side : {"user", "item"}

    Attributes
    ----------
    background, ridge, other_background, target_square
        As of :class:`RowTerms`, of all rows; computed in a first pass, which also checks every value.
    """

    def __init__(self, bound: BoundObjective, stored: StoredMatrix, side: str) -> None:
        self._bound, self._side = bound, side
        self._rows = stored if side == "user" else stored.transposed
        self._block_entries = stored.block_entries
        background, ridge, self.target_square = [], [], 0.0
        self._one_each: Callable[[RowTerms], RowTerms] = lambda terms: terms
        coefficients: set[float | None] = set()
        gram_offset: float | None = None
        for rows, terms in self.parts():
            background.append((rows, terms.background))
            ridge.append((rows, terms.ridge))
            coefficients.add(float(terms.rhs[0]) if terms.rhs.size == 1 else None)
            if terms.rhs.size > 1 and terms.gram is None:
                gram_offset = terms.gram_offset
            self.target_square += terms.target_square
            self.other_background = terms.other_background
            del terms  # before the next block is read
        # One coefficient for all entries of a block is solved with other roundings than one for each. A block may have
        # one by chance: all are solved as those of the whole matrix would be.
        if len(coefficients) > 1 or None in coefficients:
            self._one_each = lambda terms: one_each(terms, gram_offset)
        self.background, self.ridge = _joined(background), _joined(ridge)

    def parts(self) -> Iterator[tuple[slice, RowTerms]]:
        """Blocks of rows, with their terms."""
        for begin, end in self._rows.bounds(self._block_entries):
            yield slice(begin, end), self._one_each(self._block_terms(begin, end))

    def _block_terms(self, begin: int, end: int) -> RowTerms:
        return terms_of_rows(self._bound, self._side, slice(begin, end), self._rows.block(begin, end))


def terms_of_rows(bound: BoundObjective, side: str, rows: slice, block: csr_matrix) -> RowTerms:
    """The terms of some rows of a side, whose entries are `block`; the objective is that of the whole matrix."""
    own: dict[str, Any] = {f"n_{side}s": rows.stop - rows.start}
    own |= {name: _part(getattr(bound, name), rows) for name in (f"{side}_weights", f"{side}_background")}
    bound = dataclasses.replace(bound, **own)
    try:
        return bound.user_terms(block) if side == "user" else bound.item_terms(block)
    except ValueError as error:
        raise ValueError(f"in the block of rows that begins at {side} {rows.start}: {error}") from error


def as_stored(data: Any, dtype: np.dtype[Any], columns: Mapping[str, Any]) -> Interactions | None:
    """Interactions whose matrix is a stored one, checked; None where it is not. `columns` are of tables."""
    matrix = getattr(data, "matrix", data)
    if not isinstance(matrix, StoredMatrix):
        return None
    own = data if isinstance(data, Interactions) else Interactions(matrix)
    if columns:
        raise TypeError(f"{', '.join(columns)} can be given with a table only; interactions is a stored matrix")
    if matrix.dtype != dtype:
        raise DataError(
            f"interactions are stored as {matrix.dtype}, the model is of dtype {dtype}; both must be the same"
        )
    for ids, n in ((own.user_ids, matrix.shape[0]), (own.item_ids, matrix.shape[1])):
        if ids is not None and len(ids) != n:
            raise DataError(f"interactions must have one {ids.side} id for each of {n} {ids.side}s, got {len(ids)}")
    return own


def one_each(terms: RowTerms, gram_offset: float | None) -> RowTerms:
    """With a coefficient for each entry, also where all are the same; `gram_offset` is of blocks where they differ."""
    if terms.rhs.size > 1 and (terms.gram is None or terms.gram.size > 1):
        return terms
    rhs = np.ascontiguousarray(terms.rhs_values())
    if gram_offset is not None:
        return dataclasses.replace(terms, rhs=rhs, gram=None, gram_offset=gram_offset)
    return dataclasses.replace(terms, rhs=rhs, gram=np.ascontiguousarray(terms.gram_values()))


def _part(array: NDArray[Any] | None, rows: slice) -> NDArray[Any] | None:
    return array if array is None or len(array) == 1 else array[rows]


def _joined(parts: list[tuple[slice, NDArray[Any]]]) -> NDArray[Any]:
    """The numbers of all rows from those of each block; (1,) where a block has one number for several rows."""
    for rows, numbers in parts:
        if len(numbers) < rows.stop - rows.start:
            return numbers
    return np.concatenate([numbers for _, numbers in parts])


# ------------------------------------------------------------------------------------------------------- writing


def write_stored(
    path: str | os.PathLike[str],
    interactions: Any,
    *,
    n_columns: int | None = None,
    dtype: DTypeLike = "float32",
    block_bytes: int = 256 << 20,
) -> StoredMatrix:
    """Write interactions to a folder that :meth:`WALS.fit` can train on without having them in memory.

    Parameters
    ----------
    path : str or path
        The folder; must not exist. It appears under this name once it is whole and on the disk. Who is killed leaves
        no folder of this name, but what was written so far in one beside it, named ``.{name}.`` and eight letters.
    interactions : matrix (U, I), or (data, indices, indptr), or iterable of matrices
        Anything that :func:`wals_gpu.interactions.as_csr` takes; the three arrays of a CSR matrix, which may be
        ``np.memmap`` of any size; or consecutive blocks of rows, (R, I) each, such as a generator makes them.
    n_columns : int, optional
        I; needed for three arrays. Default: of the (first) matrix.
    dtype : {"float32", "float64"}
        Of the values, and so of the model.
    block_bytes : int, default 256 MiB
        Memory to work in, besides the ``indptr`` arrays and a block that was given.

    Returns
    -------
    StoredMatrix

    Raises
    ------
    FileExistsError
        There is something at `path`.
    DataError, TypeError, ValueError
        The interactions cannot be used; nothing is left at `path`.

    Warns
    -----
    ParameterWarning
        Repeated pairs were summed.
    """
    folder = as_path("path", path)
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} is there already; give a new name, or remove it yourself")
    dtype = value_dtype(dtype)
    if n_columns is not None:
        n_columns = integer("n_columns", n_columns, 1, 2**31 - 1)
    max_entries = _block_entries(block_bytes, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        shape = _write_users(work / "users", _blocks(interactions, n_columns, max_entries), n_columns, dtype)
        _write_items(work / "items", StoredRows(work / "users", shape, dtype), max_entries)
        metadata = {"format": "wals_gpu interactions", "format_version": _VERSION, "shape": shape, "dtype": dtype.name}
        (work / "stored.json").write_text(json.dumps(metadata) + "\n")
        work.chmod(0o777 & ~_umask())  # mkdtemp's is for the owner alone
        for written in (*work.rglob("*"), work):
            to_disk(written)
        os.rename(work, folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return StoredMatrix(folder, block_bytes=block_bytes)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _blocks(interactions: Any, n_columns: int | None, max_entries: int) -> Iterable[Any]:
    """Matrices of consecutive rows."""
    if isinstance(interactions, np.ndarray) or issparse(interactions):
        return [interactions]
    arrays = isinstance(interactions, (tuple, list)) and len(interactions) == 3
    if arrays and not any(issparse(one) or np.ndim(one) == 2 for one in interactions):
        if n_columns is None:
            raise ValueError("n_columns, the number of items, must be given with (data, indices, indptr)")
        data, indices, indptr = interactions
        return _csr_blocks(data, indices, indptr, n_columns, max_entries)
    wanted = "interactions must be a matrix, (data, indices, indptr), or an iterable of matrices"
    is_own = isinstance(interactions, Interactions)
    if is_own or hasattr(interactions, "columns"):
        what = "interactions" if is_own else "as_interactions(table)"
        raise TypeError(
            f"{wanted}; got {type(interactions).__name__}: give {what}.matrix, and the ids of the same to "
            "Interactions(StoredMatrix(path), user_ids, item_ids)"
        )
    if isinstance(interactions, (str, os.PathLike, Mapping)) or not isinstance(interactions, Iterable):
        raise TypeError(f"{wanted}; got {type(interactions).__name__}")
    return interactions


def _csr_blocks(data: Any, indices: Any, indptr: Any, n_columns: int, max_entries: int) -> Iterator[csr_matrix]:
    for name, array in (("data", data), ("indices", indices), ("indptr", indptr)):
        if (
            not isinstance(array, np.ndarray)
            or array.ndim != 1
            or array.dtype.kind not in ("biuf" if name == "data" else "iu")
        ):
            raise DataError(f"{name} must be a one-dimensional array of numbers, got {type(array).__name__}")
    row_ptr = np.asarray(indptr, np.int64)
    rises = len(row_ptr) and row_ptr[0] == 0 and np.all(np.diff(row_ptr) >= 0)
    if not rises or row_ptr[-1] > min(len(indices), len(data)):
        raise DataError("indptr must rise from 0 to at most the number of indices and data")
    begin = 0
    while begin < len(row_ptr) - 1:
        end = max(int(np.searchsorted(row_ptr, row_ptr[begin] + max_entries, side="right")) - 1, begin + 1)
        first, last = row_ptr[begin], row_ptr[end]
        arrays = (np.array(data[first:last]), np.array(indices[first:last]), row_ptr[begin : end + 1] - first)
        if len(arrays[1]) and not 0 <= arrays[1].min() <= arrays[1].max() < n_columns:
            raise DataError(f"indices of rows {begin} to {end - 1} must be in [0, {n_columns})")
        yield csr_matrix(arrays, shape=(end - begin, n_columns))
        begin = end


def _write_users(folder: Path, blocks: Iterable[Any], n_columns: int | None, dtype: np.dtype[Any]) -> tuple[int, int]:
    """Write the files of consecutive blocks of rows; the shape of the whole."""
    folder.mkdir()
    row_ptr, entries, rows = [np.zeros(1, np.int64)], 0, 0
    with AppendedArray(folder / "indices.npy", np.int32) as indices, AppendedArray(folder / "data.npy", dtype) as data:
        for block in blocks:
            height = getattr(block, "shape", (0,))[0]
            name = f"interactions[{rows}:{rows + height}]"
            csr = as_csr(block, dtype=dtype, n_columns=n_columns, allow_empty=True, argument=name)
            n_columns = csr.shape[1]
            row_ptr.append(csr.indptr[1:].astype(np.int64) + entries)
            indices.append(csr.indices)
            data.append(csr.data)
            entries, rows = entries + csr.nnz, rows + csr.shape[0]
    if n_columns is None or not entries:
        raise DataError("interactions must hold at least one entry, got none")
    np.save(folder / "indptr.npy", np.concatenate(row_ptr))
    return rows, n_columns


def _write_items(folder: Path, users: StoredRows, max_entries: int) -> None:
    """Write the transposed matrix: distribute entries to groups of items that fit in memory, then sort each group."""
    folder.mkdir()
    n_items = users.shape[1]
    counts = np.zeros(n_items, np.int64)
    for begin, end in users.bounds(max_entries):
        counts += np.bincount(users.indices[users.indptr[begin] : users.indptr[end]], minlength=n_items)
    row_ptr = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "indptr.npy", row_ptr)
    entry = np.dtype([("item", np.int32), ("user", np.int32), ("value", users.dtype)])
    group_ends = [0]
    while group_ends[-1] < n_items:
        end = int(np.searchsorted(row_ptr, row_ptr[group_ends[-1]] + max_entries, side="right")) - 1
        group_ends.append(max(end, group_ends[-1] + 1))
    groups = list(itertools.pairwise(group_ends))
    for begin, end in users.bounds(max_entries):
        block = users.block(begin, end).tocsc()
        entries = np.empty(block.nnz, entry)
        entries["item"] = np.repeat(np.arange(n_items, dtype=np.int32), np.diff(block.indptr))
        entries["user"], entries["value"] = block.indices, block.data
        entries["user"] += begin
        for g, (low, high) in enumerate(groups):
            piece = entries[block.indptr[low] : block.indptr[high]]
            if len(piece):
                with open(folder / f"group-{g}", "ab") as file:
                    piece.tofile(file)
        del block, entries
    with (
        AppendedArray(folder / "indices.npy", np.int32) as indices,
        AppendedArray(folder / "data.npy", users.dtype) as data,
    ):
        for g in range(len(groups)):
            group = folder / f"group-{g}"
            if not group.exists():
                continue
            entries = np.fromfile(group, entry)
            group.unlink()
            order = np.argsort(entries["item"], kind="stable")  # users of an item came in rising order
            indices.append(entries["user"][order])
            data.append(entries["value"][order])
            del entries, order
