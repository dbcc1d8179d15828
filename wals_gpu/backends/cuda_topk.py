"""Search on the device: the items of highest dot product for each query, in parts that fit into its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_factors import check_factors, padded_factors
from wals_gpu.data.csr import select

__all__ = ["topk"]


def topk(
    device: Device,
    queries: Any,
    items: Any,
    k: int,
    excluded: csr_matrix | None = None,
    permitted: NDArray[np.bool_] | None = None,
    norms: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """As :meth:`.cuda.CudaBackend.topk`, for a k that the kernels take."""
    if permitted is not None:
        chosen = np.flatnonzero(permitted)
        norms = None if norms is None else norms[chosen]
        ids, scores = topk(device, queries, items[chosen], k, _columns_of(excluded, chosen), norms=norms)
        return np.where(ids < 0, -1, np.append(chosen, -1)[ids]).astype(np.int32), scores
    if norms is not None:
        items = items / norms[:, None]
    kernels, (n, d), n_items = device.kernels, queries.shape, items.shape[0]
    if n == 0 or min(k, n_items) == 0:
        return np.full((n, k), -1, np.int32), np.full((n, k), -np.inf, np.float32)
    check_factors(items)
    table = padded_factors(device, items)
    limit = device.available()
    of_query = max(kernels.topk_bytes(4096, n_items, k) // 4096 + 8 * kernels.padded(d) + 8 * k, 1)
    together = min(max(limit // 2 // of_query, 64), n)
    ids, scores = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    for first in range(0, n, together):
        part = slice(first, min(first + together, n))
        lists = None if excluded is None else excluded[part]
        ids[part], scores[part] = _search(device, queries[part], table, n_items, k, lists)
    return ids, scores


def _columns_of(matrix: csr_matrix | None, chosen: NDArray[np.integer]) -> csr_matrix | None:
    """Some columns, by their sorted numbers, of the pattern of a matrix."""
    if matrix is None:
        return None
    place = np.full(matrix.shape[1], -1, np.int32)
    place[chosen] = np.arange(len(chosen), dtype=np.int32)
    place = place[matrix.indices]
    kept = select(matrix, place >= 0)
    return csr_matrix((kept.data, place[place >= 0], kept.indptr), shape=(matrix.shape[0], len(chosen)))


def _search(
    device: Device, queries: Any, table: Any, n_items: int, k: int, excluded: csr_matrix | None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Queries together; `table` are the padded items on the device."""
    kernels, memory, (n, d) = device.kernels, device.memory, queries.shape
    x = padded_factors(device, queries)
    lists = None
    if excluded is not None:
        row_ptr = excluded.indptr.astype(np.int64)
        lists = memory.upload(row_ptr), memory.upload(excluded.indices.astype(np.int32))
    ids, scores = memory.empty(n * k, np.int32), memory.empty(n * k, np.float32)
    workspace = memory.empty(kernels.topk_bytes(n, n_items, k), np.uint8)
    address = memory.address
    kernels.topk(
        address(x),
        n,
        address(table),
        n_items,
        d,
        k,
        0 if lists is None else address(lists[0]),
        0 if lists is None else address(lists[1]),
        address(ids),
        address(scores),
        address(workspace),
        memory.stream,
    )
    return memory.download(ids).reshape(n, k), memory.download(scores).reshape(n, k)
