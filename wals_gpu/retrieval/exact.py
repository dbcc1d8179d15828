"""Exact top-k: the best items for each query, with lists of what a query may and may not get.

Shapes: B queries, I items, D factors, k results. The order is that of :func:`wals_gpu.reference.topk`: score down,
equal scores by item number up. Where fewer than k items are left, the id is None (-1 where items have no ids) and the
score -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.session import Backend
from wals_gpu.checks import integer
from wals_gpu.data.csr import select
from wals_gpu.data.ids import Ids
from wals_gpu.data.progress import tqdm
from wals_gpu.retrieval.lists import Filters, Lists, pattern, stored, union

__all__ = ["CHUNK", "ExactIndex"]

#: Queries worked on at a time. What a search needs beside its answer grows with this and not with the queries.
CHUNK = 4096

Results = tuple[NDArray[np.int32], NDArray[np.floating]]


class ExactIndex:
    """Exact search among vectors of items.

    Parameters
    ----------
    vectors : (I, D) array of float32 or float64
        Not copied with "dot" where it is C-ordered.
    ids : Ids, optional
        Names of the rows, which then stand in answers and are expected in lists.
    metric : {"dot", "cosine"}, default "dot"
        "cosine" keeps a copy of the vectors, each divided by its norm; a zero vector has no direction: as an item it is
        never found, as a query it finds nothing.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto": the CPU. "cuda": the current CUDA device, for float32 vectors, where there is one that can be used.
    num_threads : int, default 0
        0: all processors that this process may use. Results do not depend on it.
    backend : Backend, optional
        In place of a new one for `device` and `num_threads`.

    Raises
    ------
    TypeError, ValueError
        The vectors are not a 2-D array of floats, or not as many as the ids.

    Examples
    --------
    >>> import numpy as np
    >>> index = ExactIndex(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    >>> ids, scores = index.search([1.0, 0.1], k=2)
    >>> ids.tolist(), scores.round(2).tolist()
    ([0, 2], [1.0, 0.68])
    >>> index.search([1.0, 0.1], k=2, deny_items=[0])[0].tolist()
    [2, 1]
    """

    def __init__(
        self,
        vectors: NDArray[np.floating],
        ids: Ids | None = None,
        *,
        metric: str = "dot",
        device: str = "auto",
        num_threads: int = 0,
        backend: Backend | None = None,
    ) -> None:
        if not isinstance(vectors, np.ndarray) or vectors.dtype not in (np.float32, np.float64) or vectors.ndim != 2:
            got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
            raise TypeError(f"vectors must be a float32 or float64 array (I, D), got {got}")
        if ids is not None and len(ids) != len(vectors):
            raise ValueError(f"ids must name the {len(vectors)} vectors, got {len(ids)} ids")
        if metric not in ("dot", "cosine"):
            raise ValueError(f"metric must be 'dot' or 'cosine', got {metric!r}")
        self.vectors = np.ascontiguousarray(vectors)
        self.ids = ids
        self.metric = metric
        self._backend = backend or make_backend(device, integer("num_threads", num_threads, 0))
        self._table, self._known = self.vectors, None  # what is searched, and the item numbers of its rows (None: all)
        if metric == "cosine":
            norms = np.linalg.norm(self.vectors, axis=1)
            self._known = np.flatnonzero(norms > 0)
            self._table = self.vectors[self._known] / norms[self._known, None]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def searched(self) -> NDArray[np.floating]:
        """The vectors that are compared with queries (n, D): with "cosine" those that have a direction, of norm 1."""
        return self._table

    def item_numbers(self) -> NDArray[np.int64]:
        """Item numbers (n,) of the rows of `searched`."""
        return np.arange(len(self)) if self._known is None else self._known

    def directions(self, queries: NDArray[np.floating]) -> NDArray[np.floating]:
        """Queries (B, D) as they are compared with `searched`: with "cosine" divided by their norm, zero ones left."""
        if self.metric == "dot":
            return queries
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        return queries / np.where(norms == 0, 1, norms)

    def search(
        self,
        queries: ArrayLike,
        k: int = 10,
        *,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        show_progress: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k best items for each query.

        Parameters
        ----------
        queries : (D,) or (B, D) array
        k : int, default 10
        deny : (B, I) sparse matrix, or B lists of ids, optional
            Items that each query must not get: the stored entries of its row, of any value.
        allow : (B, I) sparse matrix, or B lists of ids, optional
            The only items that each query may get. Only these are scored.
        deny_items, allow_items : list of ids, optional
            The same for all queries. Whatever is given holds: an item must be on every allow list and on no deny list.
        show_progress : bool, default False

        Returns
        -------
        ids : (k,) for one query, (B, k) for several
            Ids, or int32 row numbers; None, or -1, where fewer than k items are left.
        scores : same shape
            Dot products or cosines in falling order, equal ones by item number; -inf where there is no item.

        Raises
        ------
        KeyError, IndexError
            A list names an item that is not there.
        TypeError, ValueError
            Queries or lists of a wrong kind or shape, or not finite.
        """
        array = self.check_queries(queries)
        table = np.atleast_2d(array)
        filters = self.filters(len(table), Lists(deny, allow, deny_items, allow_items))
        chunks = self.chunks(table.__getitem__, len(table), k, filters)
        columns, scores = self.collect(len(table), k, chunks, show_progress)
        return self.named(columns if array.ndim == 2 else columns[0]), scores if array.ndim == 2 else scores[0]

    def filters(self, n_queries: int, lists: Lists) -> Filters:
        """The lists of :meth:`search`, checked, with item numbers in place of ids."""
        return lists.filters(n_queries, len(self), self.ids)

    def chunks(
        self,
        queries_of: Callable[[slice], NDArray[np.floating]],
        n_queries: int,
        k: int,
        filters: Filters,
        deny_of: Callable[[slice], csr_matrix | None] = lambda part: None,
        chunk: int = CHUNK,
    ) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]:
        """Answers for a chunk of queries after the other, as item numbers.

        Parameters
        ----------
        queries_of : callable
            The queries (b, D) of a slice of all.
        n_queries : int
        k : int
        filters : Filters
        deny_of : callable, optional
            Further items to deny, (b, I) canonical CSR, to the queries of a slice.
        chunk : int
            Queries of a slice.

        Yields
        ------
        part : slice
        columns : (b, k) int32
        scores : (b, k)
        """
        k = integer("k", k, 1)
        answer = self._answer_listed if filters.allow is not None else self._answer_from(filters, min(n_queries, chunk))
        for start in range(0, n_queries, chunk):
            part = slice(start, min(start + chunk, n_queries))
            queries = np.ascontiguousarray(queries_of(part), self._table.dtype)
            deny = union(pattern(deny_of(part)), None if filters.deny is None else filters.deny[part])
            columns, scores = answer(self.directions(queries), k, deny, filters, part)
            if self.metric == "cosine":
                directionless = ~queries.any(axis=1)
                columns[directionless], scores[directionless] = -1, -np.inf
            yield part, columns, scores

    def collect(
        self,
        n_queries: int,
        k: int,
        chunks: Iterable[tuple[slice, NDArray[np.int32], NDArray[np.floating]]],
        show_progress: bool = False,
    ) -> Results:
        """All answers of :meth:`chunks` in two arrays (B, k)."""
        columns = np.empty((n_queries, integer("k", k, 1)), np.int32)
        scores = np.empty(columns.shape, self._table.dtype)
        with tqdm(total=n_queries, disable=not show_progress, desc="top-k", unit="query") as progress:
            for part, columns[part], scores[part] in chunks:
                progress.update(part.stop - part.start)
        return columns, scores

    def similar(self, rows: NDArray[np.integer], k: int, filters: Filters, show_progress: bool = False) -> Results:
        """Numbers and cosines of the k items nearest to items (B,), each item first in its own list.

        It is put there and not searched for: another one may have the same vector. Where lists exclude it, or its
        vector is zero, it is left out.
        """
        own = csr_matrix((np.ones(len(rows), bool), rows, np.arange(len(rows) + 1)), shape=(len(rows), len(self)))
        first = np.zeros(len(self), bool)
        first[self._known] = True
        first = (first & filters.for_all())[rows]
        if filters.allow is not None:
            first &= stored(filters.allow, own)
        if filters.deny is not None:
            first &= ~stored(filters.deny, own)

        def with_itself() -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]:
            for part, columns, scores in self.chunks(
                lambda part: self.vectors[rows[part]], len(rows), k, filters, lambda part: own[part]
            ):
                at = np.flatnonzero(first[part])
                columns[at, 1:], scores[at, 1:] = columns[at, :-1], scores[at, :-1]
                columns[at, 0], scores[at, 0] = rows[part][at], 1
                yield part, columns, scores

        return self.collect(len(rows), k, with_itself(), show_progress)

    def named(self, columns: NDArray[np.int32]) -> NDArray[Any]:
        """Ids in place of item numbers, None for -1."""
        return columns if self.ids is None else self.ids.take(columns)

    # ------------------------------------------------------------------------------------------------ one chunk

    def _answer_from(self, filters: Filters, n_queries: int) -> Callable[..., Results]:
        """How to answer without lists of what each query may get: from the table, or from a copy of a part of it."""
        table, known, hidden = self._table, self._known, filters.deny_items
        # A few denied items join the denied items of each query; more of them are cheaper to leave out of the table.
        if filters.allow_items is not None or (hidden is not None and n_queries * len(hidden) > len(table)):
            permitted = filters.for_all()
            kept = np.flatnonzero(permitted if known is None else permitted[known])
            table, known, hidden = table[kept], kept if known is None else known[kept], None

        def answer(
            queries: NDArray[np.floating], k: int, deny: csr_matrix | None, filters: Filters, part: slice
        ) -> Results:
            if hidden is not None and len(hidden):
                row_ptr = np.arange(len(queries) + 1) * len(hidden)
                hide = (np.ones(row_ptr[-1], bool), np.tile(hidden, len(queries)), row_ptr)
                deny = union(deny, csr_matrix(hide, shape=(len(queries), len(self))))
            columns, scores = self._backend.topk(queries, table, k, _in_table(deny, known))
            return _from_table(columns, known), scores

        return answer

    def _answer_listed(
        self, queries: NDArray[np.floating], k: int, deny: csr_matrix | None, filters: Filters, part: slice
    ) -> Results:
        assert filters.allow is not None
        listed = filters.allow[part]
        keep = filters.for_all()[listed.indices]
        if deny is not None:
            keep &= ~stored(deny, listed)
        listed = _in_table(select(listed, keep), self._known)
        columns, scores = self._backend.topk_listed(queries, self._table, k, listed)
        return _from_table(columns, self._known), scores

    # ------------------------------------------------------------------------------------------------ input

    def check_queries(self, queries: ArrayLike) -> NDArray[np.floating]:
        """Queries (D,) or (B, D) in the type of the vectors; ValueError for anything else."""
        array = np.asarray(queries)
        D = self.vectors.shape[1]
        if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or array.shape[-1] != D:
            raise ValueError(f"queries must be numbers of shape (D={D},) or (B, {D}), got {array.dtype} {array.shape}")
        array = array.astype(self.vectors.dtype, copy=False)
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(np.atleast_2d(array)).all(axis=1))[0])
            raise ValueError(f"queries must be finite, but query {row} is not")
        return array


def _in_table(matrix: csr_matrix | None, known: NDArray[np.integer] | None) -> csr_matrix | None:
    """The columns `known` (sorted) of a pattern."""
    if matrix is None or known is None:
        return matrix
    place = np.full(matrix.shape[1], -1, np.int32)
    place[known] = np.arange(len(known), dtype=np.int32)
    place = place[matrix.indices]
    kept = select(matrix, place >= 0)
    return csr_matrix((kept.data, place[place >= 0], kept.indptr), shape=(matrix.shape[0], len(known)))


def _from_table(columns: NDArray[np.int32], known: NDArray[np.integer] | None) -> NDArray[np.int32]:
    if known is None:
        return columns
    if not len(known):
        return np.full_like(columns, -1)
    return np.where(columns >= 0, known[columns], -1).astype(np.int32)
