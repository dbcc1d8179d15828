"""Approximate search: the vectors of an index in faiss, hnswlib or usearch, for catalogues too large to scan.

These libraries search graphs of neighbours. The dot product is no metric: an item need not be its own best match. A
known remedy is one more coordinate that gives all items the same norm, so that the nearest is the best (Bachrach et
al., RecSys 2014). For graphs it is the worse one, as benchmarks/cases/bench_ann.py measures: it makes neighbours of
items of like norm, far from where queries lead. So graphs are built with the dot product itself (Morozov and Babenko,
NeurIPS 2018).

Shapes: B queries, n items that can be found, D factors, k results.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.lists import Lists

__all__ = ["AnnIndex"]

_PACKAGES = {"faiss": "faiss-cpu", "hnswlib": "hnswlib", "usearch": "usearch"}


class AnnIndex:
    """An approximate index with the answers of :class:`.ExactIndex`: same ids, order, scores, and marks for "no more".

    The library proposes candidates, which are scored exactly and ordered. What is approximate is only which items are
    among them; :meth:`recall` measures it.

    Parameters
    ----------
    index : ExactIndex
        Such as ``model.item_index()``, or ``model.item_index("cosine")``.
    library : {"faiss", "hnswlib", "usearch"}
        Must be installed.
    m : int, default 32
        Neighbours of an item in the graph. More: better recall, more memory, slower.
    ef_construction : int, default 200
        Candidates looked at where an item is added.
    ef_search : int, default 128
        Candidates looked at in a search, at least as many as are asked for. This is what to raise for better recall.
    factory : str, optional
        With "faiss" only: another kind of index, as of ``faiss.index_factory`` ("IVF1024,Flat"), in place of the graph;
        `m`, `ef_construction` and `ef_search` have no meaning then.

    Attributes
    ----------
    native : object
        The library's own index: of dot products (with "cosine" of vectors of norm 1), float32, item numbers as labels.
        It can be saved with the library's own functions and searched elsewhere.

    Raises
    ------
    ModuleNotFoundError
        The library is not installed.
    ValueError
        There is nothing to index, or an option has no meaning for the library.
    """

    def __init__(
        self,
        index: ExactIndex,
        library: str,
        *,
        m: int | None = None,
        ef_construction: int | None = None,
        ef_search: int | None = None,
        factory: str | None = None,
    ) -> None:
        if library not in _PACKAGES:
            raise ValueError(f"library must be 'faiss', 'hnswlib' or 'usearch', got {library!r}")
        if factory is not None and (library != "faiss" or (m, ef_construction, ef_search) != (None, None, None)):
            raise ValueError("factory is an option of library='faiss', and takes the place of m and the ef options")
        self.exact = index
        self.library = library
        m = integer("m", 32 if m is None else m, 2)
        ef_construction = integer("ef_construction", 200 if ef_construction is None else ef_construction, 1)
        self.ef_search = integer("ef_search", 128 if ef_search is None else ef_search, 1)
        self._graph = factory is None
        items = index.searched
        if not len(items):
            raise ValueError("index has no item that could be found")
        points = np.ascontiguousarray(items, np.float32)
        builders: dict[str, Any] = {"faiss": _build_faiss, "hnswlib": _build_hnswlib, "usearch": _build_usearch}
        self.native = builders[library](_module(library), points, index.item_numbers(), m, ef_construction, factory)

    def search(
        self, queries: ArrayLike, k: int = 10, *, oversample: int = 1
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """About the k best items for each query.

        Parameters
        ----------
        queries : (D,) or (B, D) array
        k : int, default 10
        oversample : int, default 1
            Candidates asked of the library, in multiples of k.

        Returns
        -------
        ids, scores : (k,) or (B, k)
            As of :meth:`ExactIndex.search`.
        """
        oversample = integer("oversample", oversample, 1)
        array = self.exact.check_queries(queries)
        table = np.atleast_2d(array)
        k = self.exact.check_length(k, len(table))
        numbers = self.exact.item_numbers()
        n_candidates = min(k * oversample, len(numbers))

        def candidate_lists(part: slice) -> csr_matrix:
            neighbours = self._neighbours(np.asarray(self.exact.directions(table[part]), np.float32), n_candidates)
            rows = np.repeat(np.arange(len(neighbours)), n_candidates)[neighbours.ravel() >= 0]
            columns = neighbours.ravel()[neighbours.ravel() >= 0]
            return csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(neighbours), len(self.exact)))

        columns = np.empty((len(table), k), np.int32)
        scores = np.empty(columns.shape, self.exact.vectors.dtype)
        for start in range(0, len(table), CHUNK):
            part = slice(start, min(start + CHUNK, len(table)))
            filters = self.exact.filters(part.stop - start, Lists(allow=candidate_lists(part)))
            chunk = self.exact.chunks(table[part].__getitem__, part.stop - start, k, filters)
            columns[part], scores[part] = self.exact.collect(part.stop - start, k, chunk)
        ids = self.exact.named(columns if array.ndim == 2 else columns[0])
        return ids, scores if array.ndim == 2 else scores[0]

    def recall(self, queries: ArrayLike, k: int = 10, *, oversample: int = 1) -> float:
        """Share of the exact k best items of some queries that :meth:`search` finds; items of equal score count as one.

        Parameters
        ----------
        queries : (B, D) array
            Such as the factors of a few hundred users.
        k, oversample : int
            As for :meth:`search`.

        Returns
        -------
        float
            From 0 to 1; 1 where there is nothing to find.
        """
        _, scores = self.search(queries, k, oversample=oversample)
        # The exact scan sums in another order than the scores of candidates: let it have the last digits.
        _, best_scores = self.exact.search(queries, k)
        there = np.isfinite(best_scores)
        limit = np.where(there, best_scores, np.inf).min(axis=-1, keepdims=True)
        room = 1e-5 * np.abs(np.where(there, best_scores, 0)).max(axis=-1, keepdims=True)
        return float((scores >= limit - room).sum() / there.sum()) if there.any() else 1.0

    def _neighbours(self, points: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """Item numbers (B, n) of the best, -1 for none."""
        if self.library == "faiss":
            if self._graph:
                _module("faiss").downcast_index(self.native.index).hnsw.efSearch = max(self.ef_search, n)
            ids: NDArray[np.int64] = self.native.search(points, n)[1]
            return ids
        if self.library == "hnswlib":
            self.native.set_ef(max(self.ef_search, n))
            return _of_hnswlib(self.native, points, n)
        self.native.expansion_search = max(self.ef_search, n)
        matches = self.native.search(points, n)
        keys, counts = np.atleast_2d(matches.keys), np.atleast_1d(getattr(matches, "counts", len(matches.keys)))
        found = np.full((len(points), n), -1, np.int64)  # of a single query there are no more keys than were found
        found[:, : keys.shape[1]] = np.where(np.arange(keys.shape[1]) < counts[:, None], keys.astype(np.int64), -1)
        return found


def _of_hnswlib(native: Any, points: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Item numbers (B, n), -1 for none: where the graph leads to fewer than n, hnswlib raises and says not how many."""
    try:
        ids: NDArray[np.int64] = native.knn_query(points, n)[0].astype(np.int64)
        return ids
    except RuntimeError:
        if len(points) > 1:
            half = len(points) // 2
            return np.concatenate([_of_hnswlib(native, part, n) for part in (points[:half], points[half:])])
    found = np.full((1, n), -1, np.int64)
    few, many = 0, n
    while many - few > 1:
        middle = (few + many) // 2
        try:
            found[0, :middle] = native.knn_query(points, middle)[0]
            few = middle
        except RuntimeError:
            many = middle
    return found


def _module(library: str) -> Any:
    try:
        return importlib.import_module("usearch.index" if library == "usearch" else library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"library={library!r} needs the package {_PACKAGES[library]}: pip install {_PACKAGES[library]}",
            name=error.name,
        ) from error


def _build_faiss(
    faiss: Any, points: NDArray[np.float32], labels: NDArray[np.int64], m: int, ef: int, factory: str | None
) -> Any:
    if factory is None:
        graph = faiss.IndexHNSWFlat(points.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = ef
    else:
        graph = faiss.index_factory(points.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        graph.train(points)
    index = faiss.IndexIDMap(graph)
    index.add_with_ids(points, labels)
    return index


def _build_hnswlib(
    hnswlib: Any, points: NDArray[np.float32], labels: NDArray[np.int64], m: int, ef: int, factory: None
) -> Any:
    index = hnswlib.Index("ip", points.shape[1])
    index.init_index(len(points), ef_construction=ef, M=m, random_seed=100)
    index.add_items(points, labels)
    return index


def _build_usearch(
    usearch: Any, points: NDArray[np.float32], labels: NDArray[np.int64], m: int, ef: int, factory: None
) -> Any:
    index = usearch.Index(ndim=points.shape[1], metric="ip", dtype="f32", connectivity=m, expansion_add=ef)
    index.add(labels.astype(np.uint64), points)
    return index
