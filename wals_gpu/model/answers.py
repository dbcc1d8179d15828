"""What a fitted model answers: recommendations, similar rows, single scores, their certainty and reasons.

Functions of :class:`.fitted.Fitted`; the methods of :class:`wals_gpu.WALS` document what they take and give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.ids import plain, row_numbers
from wals_gpu.data.titles import Titles
from wals_gpu.errors import DataError
from wals_gpu.model.queries import Queries, known_users, new_rows, new_users
from wals_gpu.model.recommendations import (
    Explanation,
    Layout,
    Recommendations,
    RecommendationsChunk,
    arrow_type,
)
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.explore import UCB, Chunks, Part, Thompson, Users, best_items
from wals_gpu.retrieval.lists import Filters, Lists, permitted_items
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.retrieval.rerank import Reranking
from wals_gpu.training.fitted import Fitted

__all__ = [
    "Explanation",
    "explain",
    "explain_for",
    "item_index",
    "predict",
    "recommend",
    "recommend_chunks",
    "search",
    "similar_items",
    "similar_users",
]

#: Pairs that `predict` scores at a time: their users' factors are 8 MiB at 128 factors.
PAIRS = 16384

# ---------------------------------------------------------------------------------------------------- recommendations


def recommend(
    fitted: Fitted,
    queries: Queries,
    k: int,
    lists: Lists,
    explore: UCB | Thompson | None,
    titles: Titles | None = None,
    show_progress: bool = False,
    reranking: Reranking | None = None,
) -> Recommendations:
    """The k best items for users."""
    index, chunks = _best_items(fitted, queries, k, lists, explore, CHUNK, reranking)
    columns, scores = index.collect(queries.users.n, k, chunks, show_progress)
    everybody = slice(0, queries.users.n)
    ids, names, source = index.named(columns), queries.names(everybody), queries.source(everybody)
    layout = queries.layout(fitted, titles)
    if not queries.is_single:
        return Recommendations(ids, scores, names, source, layout)
    if not len(ids):  # a single one that is skipped
        return Recommendations(
            ids.reshape(0), scores.reshape(0), plain(queries.names(slice(0, 1))[0]), "skipped", layout
        )
    return Recommendations(ids[0], scores[0], plain(names[0]), str(source[0]), layout)


def recommend_chunks(
    fitted: Fitted,
    queries: Queries,
    k: int,
    lists: Lists,
    explore: UCB | Thompson | None,
    chunk_size: int,
    titles: Titles | None = None,
    reranking: Reranking | None = None,
) -> Iterator[RecommendationsChunk]:
    """The same, some users at a time, with their ids, or row numbers; wrong options are refused at once."""
    chunk_size = integer("chunk_size", chunk_size, 1)
    index, chunks = _best_items(fitted, queries, k, lists, explore, chunk_size, reranking)
    index.check_length(k, min(chunk_size, queries.users.n))
    layout = queries.layout(fitted, titles)

    def named() -> Iterator[RecommendationsChunk]:
        for part, columns, scores in chunks:
            yield RecommendationsChunk(index.named(columns), scores, queries.names(part), queries.source(part), layout)

    return named()


def _best_items(
    fitted: Fitted,
    queries: Queries,
    k: int,
    lists: Lists,
    explore: UCB | Thompson | None,
    chunk_size: int,
    reranking: Reranking | None,
) -> tuple[ExactIndex, Chunks]:
    """The index of the items, and its answers for users, a chunk after the other."""
    index = item_index(fitted)
    filters = index.filters(queries.n_given, lists)
    if queries.kept is not None:
        filters = filters.of(queries.kept)
    k = integer("k", k, 1)
    has_popular = queries.policy.cold_users == "popular"
    popularity: list[ExactIndex] = []  # made when it is needed

    def search(rows: NDArray[np.integer] | None, n: int, chunk: int | None) -> Chunks:
        users = queries.users if rows is None else queries.users.of(rows)
        own = filters if rows is None else filters.of(rows)
        able = index if reranking is None else _able(index, n)
        chunks = best_items(able, users, n, own, explore, chunk or chunk_size, fitted.item_neighbors())
        if not has_popular or users.cold is None or not users.cold.any():
            return chunks
        if not popularity:
            counts, num_threads = fitted.popularity()[:, None], getattr(fitted.backend, "num_threads", 0)
            popularity.append(ExactIndex(counts.astype(np.float64), num_threads=num_threads))
        return _with_popular_items(chunks, popularity[0], users.cold, n, own, users.seen)

    if reranking is None:
        return index, search(None, k, None)
    index.check(k)
    if isinstance(explore, Thompson) and explore.seed is None:  # who is searched again has the same draw
        explore = replace(explore, seed=int(np.random.default_rng().integers(2**63)))
    cold = queries.users.cold if has_popular else None
    return index, reranking.chunks(search, k, len(index), None if cold is None else cold.__getitem__)


def _able(index: ExactIndex, n: int) -> ExactIndex:
    """An index that finds n items: the same, or on the CPU, where a device finds fewer."""
    try:
        index.check(n)
    except ValueError:
        return ExactIndex(index.vectors, index.ids, metric=index.metric, device="cpu")
    return index


def _with_popular_items(
    chunks: Chunks,
    popularity: ExactIndex,
    cold: NDArray[np.bool_],
    k: int,
    filters: Filters,
    seen_of: Callable[[Part], csr_matrix | None],
) -> Chunks:
    """The same answers, but for users of whom nothing is known the most popular items, with their popularity.

    The lists hold for these too. Hardly any has seen something: only what tells nothing, such as dislikes. Numbers are
    compared as float64, which has all of them.
    """

    def best(n: int, own: Filters, seen: csr_matrix | None) -> tuple[NDArray[np.int32], NDArray[np.floating]]:
        def ones(part: slice) -> NDArray[np.float64]:
            return np.ones((part.stop - part.start, 1))

        def hidden(part: slice) -> csr_matrix | None:
            return None if seen is None else seen[part]

        return popularity.collect(n, k, popularity.chunks(ones, n, k, own, hidden))

    # Without lists for each user all of them get the same: found once.
    for_all = best(1, filters, None) if filters.deny is None and filters.allow is None else None
    for part, columns, scores in chunks:
        rows = np.flatnonzero(cold[part])
        if len(rows):
            seen = seen_of(part)
            seen = None if seen is None else seen[rows]
            has_seen = seen is not None and seen.nnz > 0
            one = None if has_seen else for_all
            columns[rows], scores[rows] = one or best(len(rows), filters.of(part.start + rows), seen)
        yield part, columns, scores


def item_index(fitted: Fitted, metric: str = "dot") -> ExactIndex:
    """The item factors as an index."""
    return fitted.index("item", metric)


def similar_items(
    fitted: Fitted,
    items: ArrayLike,
    k: int,
    lists: Lists,
    titles: Titles | None = None,
    show_progress: bool = False,
) -> Recommendations:
    """The k items with the most similar factors, the item itself first."""
    rows, is_single = row_numbers(items, fitted.item_ids, fitted.n_items, "item")
    index = item_index(fitted, "cosine")
    return _similar(index, rows, is_single, k, index.filters(len(rows), lists), "item_id", titles, show_progress)


def similar_users(
    fitted: Fitted, users: ArrayLike, k: int, deny: ArrayLike | None, allow: ArrayLike | None, show_progress: bool
) -> Recommendations:
    """The k users with the most similar factors, the user themself first; of those that the lists permit."""
    rows, is_single = row_numbers(users, fitted.user_ids, fitted.n_users, "user")
    index = fitted.index("user", "cosine")
    permitted = permitted_items(deny, allow, len(index), fitted.user_ids, ("deny_users", "allow_users"))
    filters = Filters(len(index), permitted_items=permitted)
    return _similar(index, rows, is_single, k, filters, "user_id", None, show_progress)


def _similar(
    index: ExactIndex,
    rows: NDArray[np.int64],
    is_single: bool,
    k: int,
    filters: Filters,
    queries: str,
    titles: Titles | None,
    show_progress: bool,
) -> Recommendations:
    columns, scores = index.similar(rows, k, filters, show_progress)
    kind = arrow_type(index.ids)
    layout = Layout("similar_id", kind, queries, kind, has_source=False, titles=titles)
    return _pair(index.named(columns), scores, index.named(rows.astype(np.int32)), is_single, layout)


def search(
    index: ExactIndex,
    vectors: ArrayLike,
    k: int,
    lists: Lists,
    titles: Titles | None = None,
    show_progress: bool = False,
    reranking: Reranking | None = None,
) -> Recommendations:
    """The k best items of an index for vectors; of a single one the table says nothing, of several their numbers."""
    array = index.check_queries(vectors)
    is_single, table = array.ndim == 1, np.atleast_2d(array)
    filters = index.filters(len(table), lists)

    def found(rows: NDArray[np.integer] | None, n: int, chunk: int | None) -> Chunks:
        some, own = (table, filters) if rows is None else (table[rows], filters.of(rows))
        able = index if reranking is None else _able(index, n)
        return able.chunks(some.__getitem__, len(some), n, own, chunk=chunk or CHUNK)

    k = integer("k", k, 1)
    if reranking is not None:
        index.check(k)
    chunks = found(None, k, None) if reranking is None else reranking.chunks(found, k, len(index))
    columns, scores = index.collect(len(table), k, chunks, show_progress)
    layout = Layout(
        found_type=arrow_type(index.ids), query=None if is_single else "query", has_source=False, titles=titles
    )
    return _pair(index.named(columns), scores, np.arange(len(table)), is_single, layout)


def _pair(
    ids: NDArray[Any], scores: NDArray[np.floating], queries: NDArray[Any], is_single: bool, layout: Layout
) -> Recommendations:
    if is_single:
        return Recommendations(ids[0], scores[0], plain(queries[0]), "model", layout)
    return Recommendations(ids, scores, queries, np.full(len(ids), "model"), layout)


# ---------------------------------------------------------------------------------------------------- single scores


def predict(fitted: Fitted, users: ArrayLike, items: ArrayLike, noise: float | None) -> Any:
    """Scores of pairs of a user and an item; with `noise` also their standard deviations."""
    rows, one_user = row_numbers(users, fitted.user_ids, fitted.n_users, "user")
    columns, one_item = row_numbers(items, fitted.item_ids, fitted.n_items, "item")
    if not (one_user or one_item or len(rows) == len(columns)):
        raise ValueError(f"users and items must be pairs, got {len(rows)} users and {len(columns)} items")
    n = len(columns) if one_user else len(rows)
    rows, columns = np.broadcast_to(rows, n), np.broadcast_to(columns, n)
    scores = _pair_scores(fitted, rows, columns)
    one, neighbors = one_user and one_item, fitted.item_neighbors()
    if noise is None and neighbors is None:
        return scores[0] if one else scores
    different, user_of_pair = np.unique(rows, return_inverse=True)
    queries = known_users(fitted, different, filter_seen=False)
    if neighbors is not None:
        scores += _pair_additions(neighbors, queries, user_of_pair, columns, fitted.dtype)
    if noise is None:
        return scores[0] if one else scores
    std = number("noise", noise) * _pair_deviations(queries, user_of_pair, fitted.item_table(), columns)
    return (scores[0], std[0]) if one else (scores, std)


def explain(fitted: Fitted, user: Any, item: Any, k: int) -> Explanation:
    """What each of a user's items adds to the score of an item."""
    rows, one_user = row_numbers(user, fitted.user_ids, fitted.n_users, "user")
    column, one_item = row_numbers(item, fitted.item_ids, fitted.n_items, "item")
    for name, value, is_one in (("user", user, one_user), ("item", item, one_item)):
        if not is_one:
            raise ValueError(f"{name} must be one id, got {value!r:.60}")
    return _explain(fitted, known_users(fitted, rows, filter_seen=False), int(column[0]), k)


def explain_for(fitted: Fitted, interactions: Any, item: Any, k: int, columns: Mapping[str, Any]) -> Explanation:
    """The same for one user given by interactions."""
    column, one_item = row_numbers(item, fitted.item_ids, fitted.n_items, "item")
    if not one_item:
        raise ValueError("explain_for takes one item")
    matrix = new_rows(fitted, interactions, columns).matrix
    if matrix.shape[0] != 1:
        raise DataError(f"interactions must be of one user, got {matrix.shape[0]}")
    return _explain(fitted, new_users(fitted, matrix, filter_seen=False), int(column[0]), k)


def _explain(fitted: Fitted, users: Users, column: int, k: int) -> Explanation:
    k = integer("k", k, 1)
    columns, contributions, from_prior = users.posterior(slice(0, 1)).contributions(0, fitted.item_table()[column])
    neighbors, history = fitted.item_neighbors(), users.history(slice(0, 1))
    if neighbors is not None and history is not None:
        owned = history.indices[history.data > 0]
        contributions[np.searchsorted(columns, owned)] += neighbors.to(column, owned)
    best = np.argsort(-contributions, kind="stable")[:k]
    score = float(contributions.sum()) + from_prior
    return Explanation(score, item_index(fitted).named(columns[best]), contributions[best], from_prior)


def _pair_scores(fitted: Fitted, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.floating]:
    """Dot products (n,) of pairs given by row numbers of users and of items."""
    scores, items = np.empty(len(rows), fitted.dtype), fitted.item_table()
    for start in range(0, len(rows), PAIRS):
        part = slice(start, min(start + PAIRS, len(rows)))
        n = part.stop - start
        pairs = csr_matrix((np.ones(n, bool), columns[part], np.arange(n + 1)), shape=(n, fitted.n_items))
        scores[part] = fitted.backend.score_entries(fitted.user_factors[rows[part]], items, pairs)
    return scores


def _pair_additions(
    neighbors: Neighbors,
    users: Users,
    user_of_pair: NDArray[np.integer],
    columns: NDArray[np.integer],
    dtype: np.dtype,
) -> NDArray[np.floating]:
    """What neighbours add to the scores (n,) of pairs of one of the users, by its place among them, and an item."""
    added = np.zeros(len(columns), dtype)
    order = np.argsort(user_of_pair, kind="stable")
    ends = np.searchsorted(user_of_pair[order], np.arange(users.n + 1))
    for start in range(0, users.n, CHUNK):
        part = slice(start, min(start + CHUNK, users.n))
        extra = users.extra(neighbors, part)
        if extra is not None:
            pairs = order[ends[part.start] : ends[part.stop]]
            row_ptr = ends[part.start : part.stop + 1] - ends[part.start]
            listed = csr_matrix((np.ones(len(pairs), bool), columns[pairs], row_ptr), shape=extra.history.shape)
            added[pairs] = neighbors.at(extra.history, listed)
    return added


def _pair_deviations(
    users: Users, user_of_pair: NDArray[np.integer], item_factors: NDArray[np.floating], columns: NDArray[np.integer]
) -> NDArray[np.float64]:
    """``sqrt(y' A^-1 y)`` (n,) of pairs of one of the users, by its place among them, and an item."""
    deviations = np.empty(len(columns))
    order = np.argsort(user_of_pair, kind="stable")
    ends = np.searchsorted(user_of_pair[order], np.arange(users.n + 1))
    for start in range(0, users.n, CHUNK):
        part = slice(start, min(start + CHUNK, users.n))
        posterior = users.posterior(part)
        for row in range(part.stop - start):
            pairs = order[ends[start + row] : ends[start + row + 1]]
            deviations[pairs] = np.sqrt(posterior.variances(row, item_factors[columns[pairs]]))
    return deviations
