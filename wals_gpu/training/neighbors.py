"""The weights of neighbours: a ridge regression of each item on the items that most resemble it.

With T (U, I) what users have, 0 or 1, and weights v_u of users, ``G = T' diag(v) T`` counts how often two items are had
by the same user. Item i is predicted by its m neighbours N, those of the largest cosine ``G_ji / sqrt(G_jj G_ii)``:

    B_Ni = (G_NN + ridge I)^-1 G_Ni,

the least squares of Ning and Karypis (SLIM, 2011) and of Steck (EASE, 2019) with the diagonal at 0, but over m items in
place of all: m^3 / 3 flops an item and m numbers to keep, where EASE inverts and keeps an I x I matrix. Each row is a
weighted normal equation as those of the factors are. v_u = n_u^-1/2, 1 on average over the entries: a user who has
everything says little about pairs.

Shapes: U users, I items, m neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.session import Backend
from wals_gpu.data.csr import select
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.system import available_memory

__all__ = ["as_neighbors", "fit_neighbors", "owned_by", "regressions", "user_weights"]


def user_weights(n_entries: NDArray[np.integer]) -> NDArray[np.float32]:
    """v_u (U,) from the entries of each user (U,)."""
    n = np.maximum(n_entries, 1).astype(np.float64)
    weights = 1 / np.sqrt(n)
    total = float((weights * n_entries).sum())
    scaled: NDArray[np.float32] = (weights * (n_entries.sum() / total if total else 1.0)).astype(np.float32)
    return scaled


def fit_neighbors(train: csr_matrix, n_neighbors: int, weight: float, ridge: float, backend: Backend) -> Neighbors:
    """The weights of a training matrix, times `weight`.

    Parameters
    ----------
    train : (U, I) csr_matrix
        Entries above 0 count, each as 1.
    n_neighbors : int
        m; items that fewer others occur with have fewer.
    weight : float
        What the regressions count beside the dot products of factors.
    ridge : float
        In users: an item needs about as many before its own numbers are believed.
    backend : Backend
        Its threads are used; the work is the CPU's, whatever the device.

    Returns
    -------
    Neighbors

    Raises
    ------
    MemoryError
        There is not the memory that the smallest way takes.
    """
    return as_neighbors(*regressions(owned_by(train), n_neighbors, ridge, backend), weight)


def owned_by(train: csr_matrix) -> csr_matrix:
    """What users have, values above 0, as ones."""
    owned = select(train, train.data > 0)
    return csr_matrix((np.ones(owned.nnz, np.float32), owned.indices, owned.indptr), shape=owned.shape)


def regressions(
    owned: csr_matrix, n_neighbors: int, ridge: float, backend: Backend, items: slice | None = None
) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
    """Neighbours and their weights (n, m) of some items, by default of all; see :meth:`.CpuBackend.fit_neighbors`.

    Raises
    ------
    MemoryError
        There is not the memory that the smallest way takes.
    """
    cpu: Any = backend if backend.name == "cpu" else make_backend("cpu", 0)
    n_items, left = owned.shape[1], available_memory()
    n_neighbors = min(n_neighbors, max(n_items - 1, 1))
    least, most = cpu.neighbor_memory(n_items, n_neighbors)
    if left is not None and least > left:
        raise MemoryError(
            f"neighbors={n_neighbors} of {n_items} items take {least / 2**20:,.0f} MiB of memory to find, and "
            f"{left / 2**20:,.0f} MiB are free: take fewer neighbors, or fewer threads"
        )
    memory = most if left is None else min(most, max(least, left // 2))
    weights_of_users = user_weights(np.diff(owned.indptr))
    found: tuple[NDArray[np.int32], NDArray[np.floating]] = cpu.fit_neighbors(
        owned, weights_of_users, n_neighbors, ridge, memory=memory, items=items
    )
    return found


def as_neighbors(ids: NDArray[np.int32], values: NDArray[np.floating], weight: float) -> Neighbors:
    """The regressions of all items (I, m), times `weight`."""
    n_items = len(ids)
    of_item = np.repeat(np.arange(n_items, dtype=np.int32), ids.shape[1])
    kept = ids.ravel() >= 0
    entries = (values.ravel()[kept] * np.float32(weight), (ids.ravel()[kept], of_item[kept]))
    weights = csr_matrix(entries, shape=(n_items, n_items))
    weights.sort_indices()
    return Neighbors(weights)
