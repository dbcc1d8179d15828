"""Exact top-k: the best items for each query, with lists of what a query may and may not get.

Shapes: B queries, I items, D factors, k results. The order is that of :func:`wals_gpu.reference.topk`: score down,
equal scores by item number up. Where fewer than k items are left, the id is None (-1 where items have no ids) and the
score -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.session import Backend, KeepingBackend, PreparingBackend
from wals_gpu.checks import integer, list_length
from wals_gpu.data.csr import select
from wals_gpu.data.ids import Ids
from wals_gpu.data.progress import progress_bar
from wals_gpu.retrieval.lists import Filters, Lists, pattern, stored, union
from wals_gpu.retrieval.neighbors import Extra, best_of, topk
from wals_gpu.retrieval.posterior import squares_along

__all__ = ["CHUNK", "ExactIndex"]

#: Queries worked on at a time. What a search needs beside its answer grows with this and not with the queries.
CHUNK = 4096
#: Searches with few queries after which the items are prepared for more of them, which takes the time of four or so.
SEARCHES = 8
#: Queries of such a search at most; of more, items are prepared on the way at no cost that could be seen.
FEW = 32
#: Bytes of items from which it pays: those of a small catalogue are in the processor's cache.
LEAST = 1 << 20

Results = tuple[NDArray[np.int32], NDArray[np.floating]]


class _Row(NamedTuple):
    """What a search reads of a CSR matrix (1, I): a whole one takes half as long to make as a small search."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]


class ExactIndex:
    """Exact search among vectors of items.

    Parameters
    ----------
    vectors : (I, D) array of float32 or float64
        Not copied where it is C-ordered; it must not change then.
    ids : Ids, optional
        Names of the rows, which then stand in answers and are expected in lists.
    metric : {"dot", "cosine"}, default "dot"
        "cosine" keeps the norms, by which the vectors are divided while they are searched; a zero vector has no
        direction: as an item it is never found, as a query it finds nothing.
    device : {"auto", "cpu", "cuda", "cuda:0", ...}, default "auto"
        "auto": the CPU. "cuda": the current CUDA device, for float32 vectors, where there is one that can be used; they
        stay there as long as the index lives. "cuda:1": that one.
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
        if backend is None and not np.isfinite(vectors).all():  # those of a model are known to be
            row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
            raise ValueError(f"vectors must be finite, got NaN or infinity in row {row}")
        if metric not in ("dot", "cosine"):
            raise ValueError(f"metric must be 'dot' or 'cosine', got {metric!r}")
        self.vectors = np.ascontiguousarray(vectors)
        self.ids = ids
        self.metric = metric
        self._backend = backend or make_backend(device, integer("num_threads", num_threads, 0))
        self._norms: NDArray[np.floating] | None = None
        self._known: NDArray[np.bool_] | None = None  # which vectors have a direction; None: all that is asked of them
        if metric == "cosine":
            norms = _norms(self.vectors)
            known = norms > 0
            self._norms = np.where(known, norms, norms.dtype.type(1))
            self._known = None if known.all() else known
        self._preparing = self._backend if isinstance(self._backend, PreparingBackend) else None
        self._prepared: NDArray[np.uint8] | None = None
        self._searches = 0
        self._along: tuple[Any, NDArray[np.float32] | None] = None, None
        self._longest: float | None = None
        # An array of the index's own: what a device keeps of it goes with the index.
        self._table = self.vectors.view()
        if isinstance(self._backend, KeepingBackend):
            self._backend.keep(self._table, *(() if self._norms is None else (self._norms,)))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def searched(self) -> NDArray[np.floating]:
        """The vectors that are compared with queries (n, D): with "cosine" those that have a direction, of norm 1.

        With "cosine" this makes them.
        """
        if self._norms is None:
            return self.vectors
        known = slice(None) if self._known is None else self._known
        vectors: NDArray[np.floating] = self.vectors[known] / self._norms[known, None]
        return vectors

    @property
    def longest(self) -> float:
        """The largest norm of the vectors, rounded."""
        if self._longest is None:
            self._longest = float(_norms(self.vectors).max(initial=0))
        return self._longest

    def squares_along(self, vectors: NDArray[np.float64] | None) -> NDArray[np.float32]:
        """:func:`.posterior.squares_along` of the vectors; kept where they are wanted again along the same array.

        Parameters
        ----------
        vectors : (D, D) float64 array, or None
            Orthonormal, in columns. None: along the axes.

        Returns
        -------
        (n, D) float32 array
        """
        wanted, squares = self._along
        if squares is None or wanted is not vectors:
            squares = squares_along(self.vectors, vectors)
            self._along = vectors, squares if wanted is vectors else None
        return squares

    def item_numbers(self) -> NDArray[np.int64]:
        """Item numbers of the rows of `searched`.

        Returns
        -------
        (n,) int64 array
        """
        return np.arange(len(self)) if self._known is None else np.flatnonzero(self._known)

    def directions(self, queries: NDArray[np.floating]) -> NDArray[np.floating]:
        """Queries as they are compared with `searched`.

        Parameters
        ----------
        queries : (B, D) array

        Returns
        -------
        (B, D) array
            With "cosine" divided by their norm, zero ones left; else the same array.
        """
        if self.metric == "dot":
            return queries
        norms = _norms(queries)[:, None]
        directions: NDArray[np.floating] = queries / np.where(norms == 0, norms.dtype.type(1), norms)
        return directions

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
        deny_items, allow_items : list of ids, or (I,) array of bool, optional
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
        """The lists of :meth:`search`, checked, with item numbers in place of ids.

        Parameters
        ----------
        n_queries : int
            B.
        lists : Lists

        Returns
        -------
        Filters

        Raises
        ------
        KeyError, IndexError
            A list names an item that is not there.
        TypeError, ValueError
            A list is of a wrong kind or shape.
        """
        return lists.filters(n_queries, len(self), self.ids)

    def chunks(
        self,
        queries_of: Callable[[slice], NDArray[np.floating]],
        n_queries: int,
        k: int,
        filters: Filters,
        deny_of: Callable[[slice], csr_matrix | None] = lambda part: None,
        chunk: int = CHUNK,
        extra_of: Callable[[slice], Extra | None] = lambda part: None,
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
        extra_of : callable, optional
            What is added to the dot products of a slice; not with the metric "cosine".

        Yields
        ------
        part : slice
        columns : (b, k) int32
        scores : (b, k)
        """
        k = integer("k", k, 1)
        permitted = self._permitted(filters)
        for start in range(0, n_queries, chunk):
            part = slice(start, min(start + chunk, n_queries))
            queries = np.ascontiguousarray(queries_of(part), self.vectors.dtype)
            deny = union(pattern(deny_of(part)), None if filters.deny is None else filters.deny[part])
            compared, extra = self.directions(queries), extra_of(part)
            listed = None if filters.allow is None else _listed(filters.allow[part], deny, permitted)
            if extra is not None and listed is not None:
                columns, scores = best_of(self._backend, compared, self._table, k, listed, extra)
            elif listed is not None:
                columns, scores = self._backend.topk_listed(compared, self._table, k, listed, norms=self._norms)
            else:
                columns, scores = self._topk(compared, k, deny, permitted, extra)
            if self.metric == "cosine":
                directionless = ~queries.any(axis=1)
                columns[directionless], scores[directionless] = -1, -np.inf
            yield part, columns, scores

    def best(
        self, queries: NDArray[np.floating], k: int, deny: csr_matrix | NDArray[np.int32] | None = None
    ) -> Results:
        """Item numbers and dot products for queries, as :meth:`search`, but nothing is checked.

        For who asks once for each of many requests: of a small catalogue, checks take as long as the search.

        Parameters
        ----------
        queries : (B, D) array
            C-ordered, of the type of the vectors, finite.
        k : int
            From 1.
        deny : (B, I) csr_matrix, optional
            Canonical, with int32 columns; its values are not looked at. Or, of a single query, the numbers of the items
            alone, in rising order.

        Returns
        -------
        columns : (B, k) int32 array
        scores : (B, k) array
        """
        assert self.metric == "dot"
        if isinstance(deny, np.ndarray):
            deny = _Row(np.array([0, len(deny)], np.int64), deny)
        return self._topk(queries, k, deny)

    def prepare(self) -> None:
        """Spend some searches' time and a quarter of the vectors' memory now, for single queries to be answered sooner.

        Done by itself after a few of them. Nothing where it would not pay: on a device other than the CPU, on a
        processor without AVX512-VNNI, and for small catalogues.
        """
        if self._preparing is not None and self._prepared is None and self._table.nbytes >= LEAST:
            self._prepared = self._preparing.prepare(self._table, self._norms)
        if self._prepared is None:
            self._preparing = None

    def _topk(
        self,
        queries: NDArray[np.floating],
        k: int,
        deny: csr_matrix | None,
        permitted: NDArray[np.bool_] | None = None,
        extra: Extra | None = None,
    ) -> Results:
        """The best of all items for queries as they are compared with them."""
        if self._preparing is not None and len(queries) < FEW and self._prepared is None:
            self._searches += 1
            if self._searches >= SEARCHES:
                self.prepare()
        return topk(
            self._backend, queries, self._table, k, deny, permitted=permitted, extra=extra, norms=self._norms,
            prepared=self._prepared,
        )  # fmt: skip

    def collect(
        self,
        n_queries: int,
        k: int,
        chunks: Iterable[tuple[slice, NDArray[np.int32], NDArray[np.floating]]],
        show_progress: bool = False,
    ) -> Results:
        """All answers of :meth:`chunks` in two arrays.

        Parameters
        ----------
        n_queries : int
            B.
        k : int
        chunks : iterable
            As :meth:`chunks` gives them, together for all B queries.
        show_progress : bool, default False

        Returns
        -------
        columns : (B, k) int32 array
        scores : (B, k) array

        Raises
        ------
        TypeError, ValueError
            As :meth:`check_length`, before the first chunk.
        """
        columns = np.empty((n_queries, self.check_length(k, n_queries)), np.int32)
        scores = np.empty(columns.shape, self.vectors.dtype)
        with progress_bar(n_queries, show_progress, desc="top-k", unit="query") as progress:
            for part, columns[part], scores[part] in chunks:
                progress.update(part.stop - part.start)
        return columns, scores

    def similar(self, rows: NDArray[np.integer], k: int, filters: Filters, show_progress: bool = False) -> Results:
        """The k items nearest to each of some, each item first in its own list.

        It is put there and not searched for: another one may have the same vector. Where lists exclude it, or its
        vector is zero, it is left out.

        Parameters
        ----------
        rows : (B,) array of int
            Item numbers.
        k : int
        filters : Filters
            Of B queries.
        show_progress : bool, default False

        Returns
        -------
        columns : (B, k) int32 array
            Item numbers, -1 for none.
        scores : (B, k) array
            With the metric "cosine", cosines; -inf where there is no item.
        """
        own = csr_matrix((np.ones(len(rows), bool), rows, np.arange(len(rows) + 1)), shape=(len(rows), len(self)))
        permitted = self._permitted(filters)
        first = np.ones(len(rows), bool) if permitted is None else permitted[rows]
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
        """Ids in place of item numbers.

        Parameters
        ----------
        columns : array of int32, of any shape
            -1 for none.

        Returns
        -------
        array of the same shape
            Ids, None for -1; the numbers themselves where items have no ids.
        """
        return columns if self.ids is None else self.ids.take(columns)

    def _permitted(self, filters: Filters) -> NDArray[np.bool_] | None:
        """Which items (I,) can be found at all; None: all."""
        if filters.permitted_items is None or self._known is None:
            return self._known if filters.permitted_items is None else filters.permitted_items
        both: NDArray[np.bool_] = self._known & filters.permitted_items
        return both

    # ------------------------------------------------------------------------------------------------ input

    def check(self, k: int) -> None:
        """Refuse lists that are too long for the device.

        Parameters
        ----------
        k : int

        Raises
        ------
        ValueError
            The device does not find as many items for a query.
        """
        self._backend.check(k=k)

    def check_length(self, k: int, n_queries: int) -> int:
        """The length of the lists of so many queries, if they fit into the memory together.

        Parameters
        ----------
        k : int
        n_queries : int
            B.

        Returns
        -------
        int

        Raises
        ------
        TypeError, ValueError
            It is no integer from 1, or there is not as much memory.
        """
        found = 4 + self.vectors.itemsize  # of a place: a number and a score
        of_all = n_queries * (found + (0 if self.ids is None else 8)) + min(n_queries, CHUNK) * found
        return list_length("k", k, len(self), of_all)

    def check_queries(self, queries: ArrayLike) -> NDArray[np.floating]:
        """Queries in the type of the vectors.

        Parameters
        ----------
        queries : (D,) or (B, D) array of numbers

        Returns
        -------
        array of the same shape

        Raises
        ------
        ValueError
            They are no numbers, of another shape, or not finite.
        """
        array = np.asarray(queries.detach() if hasattr(queries, "detach") else queries)  # of torch, with gradients
        D = self.vectors.shape[1]
        if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or array.shape[-1] != D:
            raise ValueError(f"queries must be numbers of shape (D={D},) or (B, {D}), got {array.dtype} {array.shape}")
        array = array.astype(self.vectors.dtype, copy=False)
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(np.atleast_2d(array)).all(axis=1))[0])
            raise ValueError(f"queries must be finite, but query {row} is not")
        return array


def _norms(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of each row (n,), from squares in float64, which those of small and large float32 numbers do not leave.

    0 where it is below the normal numbers of the type: such a row has lost its direction.
    """
    limits = np.finfo(vectors.dtype)
    norms = np.empty(len(vectors), vectors.dtype)
    for start in range(0, len(vectors), 16384):  # in pieces, for the sake of the squares' memory
        piece = slice(start, start + 16384)
        exact = np.linalg.norm(vectors[piece].astype(np.float64, copy=False), axis=1)
        norms[piece] = np.where(exact < limits.tiny, 0, np.minimum(exact, limits.max))
    return norms


def _listed(allow: csr_matrix, deny: csr_matrix | None, permitted: NDArray[np.bool_] | None) -> csr_matrix:
    """The entries of the pattern `allow` that are left."""
    keep = np.ones(allow.nnz, bool) if permitted is None else permitted[allow.indices]
    if deny is not None:
        keep &= ~stored(deny, allow)
    return select(allow, keep)
