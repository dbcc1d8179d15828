"""Search on the device: the items of highest dot product for each query.

Items are searched in a table of their own (csrc/cuda/topk.cuh), made on the device. It is kept there as long as the
array that it was made of, where that cannot change; a call then uploads its queries and lists in one piece, and
downloads its results in one.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_factors import check_factors, upload_factors

__all__ = ["ItemTables", "topk"]

#: Bytes of items that are uploaded at a time while a table is made.
UPLOAD = 1 << 26


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Items (n, D) as the kernels search them."""

    array: Any
    n: int
    factors: int
    n_bytes: int

    @classmethod
    def make(cls, device: Device, items: Any, norms: Any = None) -> ItemTable:
        """Of items, divided by their norms, if these are given. On the host, or on the device already."""
        check_factors(items)
        kernels, memory, (n, d) = device.kernels, device.memory, items.shape
        n_bytes = kernels.topk_table_bytes(n, d)
        table = memory.empty(n_bytes, np.uint8)
        together = max(UPLOAD // (4 * d), 1) if isinstance(items, np.ndarray) else n
        for first in range(0, n, together):
            part = slice(first, min(first + together, n))
            plain = upload_factors(memory, items[part])
            divisors = None if norms is None else memory.upload(np.asarray(norms[part], np.float32))
            device.start("topk_table", plain, part.stop - first, d, divisors, table, first, n)
        return cls(table, n, d, n_bytes)


class ItemTables:
    """Tables on the device, kept as long as the arrays of the caller that they were made of.

    Kept are those of arrays that nobody can write to: read-only ones that own their memory, or are views of such; and
    those of arrays that the caller promised not to change (:meth:`keep`). All together take at most half of the memory
    that may be used; those made first make room for others.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.RLock()  # arrays may die, and call _forget, at any time
        self._kept: dict[tuple[int, ...], tuple[tuple[weakref.ref[Any], ...], ItemTable]] = {}
        self._promised: dict[int, weakref.ref[Any]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, *arrays: NDArray[np.floating]) -> None:
        """These do not change while they live."""
        with self._lock:
            for array in arrays:
                self._promised[id(array)] = weakref.ref(array, partial(self._promised.pop, id(array)))

    def of(self, items: Any, norms: Any = None) -> ItemTable:
        """The table of items, divided by their norms, if these are given."""
        arrays = (items,) if norms is None else (items, norms)
        if not all(self._is_constant(array) for array in arrays):
            return ItemTable.make(self._device, items, norms)
        key = tuple(map(id, arrays))
        with self._lock:
            refs, table = self._kept.get(key, ((), None))
            if table is not None and all(ref() is array for ref, array in zip(refs, arrays, strict=True)):
                return table
            table = ItemTable.make(self._device, items, norms)
            taken = sum(kept.n_bytes for _, kept in self._kept.values())
            room = (self._device.available() + taken) // 2 - table.n_bytes
            if room < 0:
                return table
            while taken > room:
                taken -= self._forget(next(iter(self._kept)))
            self._kept[key] = tuple(weakref.ref(array, lambda _: self._forget(key)) for array in arrays), table
            self._device.kept_bytes += table.n_bytes
            return table

    def clear(self) -> None:
        """Give the memory back."""
        with self._lock:
            for key in list(self._kept):
                self._forget(key)

    def _forget(self, key: tuple[int, ...]) -> int:
        with self._lock:
            _, table = self._kept.pop(key, ((), None))
            n_bytes = 0 if table is None else table.n_bytes
            self._device.kept_bytes -= n_bytes
            return n_bytes

    def _is_constant(self, array: Any) -> bool:
        if not isinstance(array, np.ndarray):
            return False  # memory on the device, which its owner may write to
        promised = self._promised.get(id(array))
        if promised is not None and promised() is array:
            return True
        while isinstance(array, np.ndarray):
            if array.flags.writeable:
                return False
            array = array.base
        return array is None or isinstance(array, (bytes, mmap.mmap))


def topk(
    device: Device,
    tables: ItemTables,
    queries: Any,
    items: Any,
    k: int,
    excluded: csr_matrix | None = None,
    permitted: NDArray[np.bool_] | None = None,
    norms: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """As :meth:`.cuda.CudaBackend.topk`, for a k that the kernels take."""
    kernels, (n, d), n_items = device.kernels, queries.shape, items.shape[0]
    if n == 0 or min(k, n_items) == 0:
        return np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    table = tables.of(items, norms)
    mask = None if permitted is None else _bits(permitted)
    of_query = max(kernels.topk_bytes(4096, n_items, d, k, _blocks(device)) // 4096 + 4 * d + 8 * k, 1)
    together = max(device.available() // 2 // of_query, 64)
    if n <= together:
        return _search(device, queries, table, k, excluded, mask)
    ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for first in range(0, n, together):
        part = slice(first, min(first + together, n))
        lists = None if excluded is None else excluded[part]
        ids[part], scores[part] = _search(device, queries[part], table, k, lists, mask)
    return ids, scores


def _blocks(device: Device) -> int:
    """Blocks of a search that run at once: two on a processor."""
    return 2 * device.limits.processors


def _bits(permitted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A bit for each item, up to a multiple of 128."""
    bits = np.packbits(permitted, bitorder="little")
    return np.pad(bits, (0, -len(bits) % 16))


def _search(
    device: Device, queries: Any, table: ItemTable, k: int, excluded: csr_matrix | None, mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Queries together."""
    memory, blocks, (n, d) = device.memory, _blocks(device), queries.shape
    packed: dict[str, NDArray[Any]] = {}
    if isinstance(queries, np.ndarray):
        packed["queries"] = np.ascontiguousarray(queries, np.float32)
    else:
        check_factors(queries)
    if excluded is not None:
        packed["ptr"], packed["idx"] = excluded.indptr.astype(np.int64), excluded.indices.astype(np.int32, copy=False)
    if mask is not None:
        packed["mask"] = mask
    places = np.cumsum([0, *(-(-array.nbytes // 16) * 16 for array in packed.values())])
    buffer = np.zeros(places[-1], np.uint8)
    for array, place in zip(packed.values(), places, strict=False):
        buffer[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)
    at: dict[str, Any] = {} if "queries" in packed else {"queries": upload_factors(memory, queries)}
    if packed:
        uploaded = memory.upload(buffer)
        at |= dict(zip(packed, (memory.address(uploaded) + places).tolist(), strict=False))
    found = memory.empty(2 * n * k, np.int32)
    workspace = memory.empty(device.kernels.topk_bytes(n, table.n, d, k, blocks), np.uint8)
    device.start(
        "topk", at["queries"], n, table.array, table.n, d, k, blocks, at.get("ptr"), at.get("idx"), at.get("mask"),
        found, memory.address(found) + 4 * n * k, workspace,
    )  # fmt: skip
    ids, scores = memory.download(found).reshape(2, n, k)
    return ids, scores.view(np.float32)
