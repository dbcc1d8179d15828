"""Ranking metrics and their definitions.

Shape letters: U users, I items, B rows of a batch, K results per row, V evaluated users, M metrics.

Metrics are computed per user and averaged over the users that have at least one relevant test item: a stored value
above 0. The others are left out and counted. With ``hit(r)`` = 1 where the item at rank r (from 1) is relevant and
``n`` the number of the user's relevant items:

==========================  =========================================================================================
``recall@k``                sum of hit(r), r <= k, over ``min(k, n)``: Recall@k of Liang et al., "Variational
                            Autoencoders for Collaborative Filtering" (2018), where a full list of hits is 1 even if
                            ``n > k``
``plain_recall@k``          sum of hit(r), r <= k, over ``n``
``precision@k``             sum of hit(r), r <= k, over ``k``
``hit_rate@k``              1 if any hit(r), r <= k, else 0
``ndcg@k``                  sum of hit(r) / log2(r + 1), r <= k, over the same sum for ``min(k, n)`` hits in front
``map@k``                   sum of hit(r) * precision@r, r <= k, over ``min(k, n)`` (benfred/implicit's)
``mrr@k``                   1 / rank of the first hit within k, 0 without one
``novelty@k``               mean of -log2(p_i) over the recommended items, p_i = share of the training users who have
                            item i, at least one of them (the self-information of Zhou et al. 2010)
``serendipity@k``           sum of hit(r), r <= k, over ``k``, of items that are not among the k that a primitive
                            recommender shows the user, here the most popular ones: relevant and unexpected (Ge,
                            Delgado-Battenfeld and Jannach, "Beyond Accuracy", RecSys 2010)
``intra_list_diversity@k``  mean of 1 - cos(v_i, v_j) over all pairs of the first k items, v their vectors; a zero one
                            is like nothing; 0 where there are fewer than two items (Zhang and Hurley, RecSys 2008)
``coverage@k``              share of the I items that appear in any list
``gini@k``                  Gini index of how often each of the I items is recommended: 0 all alike, near 1 always the
                            same
==========================  =========================================================================================

An id of -1 (fewer than K items were left) takes its rank and is a miss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import refuse_ids
from wals_gpu.data.csr import canonical, contains, entry_keys, select
from wals_gpu.data.features import refuse_id_column
from wals_gpu.data.ids import Ids, row_numbers
from wals_gpu.data.matching import is_table, open_interactions, read_like
from wals_gpu.errors import DataError
from wals_gpu.evaluation.recommenders import as_rectangle, columns_of
from wals_gpu.evaluation.resampling import Estimate, bootstrap_interval  # which had their place here
from wals_gpu.retrieval.exact import ExactIndex

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "check_ids",
    "check_ks",
    "directions_of",
    "in_batches",
    "list_metrics",
    "places_of",
    "ranking_metrics",
    "recommendation_counts",
    "relevant_entries",
    "row_metrics",
    "surprise_of",
    "users_at_once",
]

#: Users whose lists are worked on together, and places of their lists: memory does not grow with either.
_USERS, _PLACES = 2048, 1 << 22


def ranking_metrics(
    ids: ArrayLike,
    test: Any,
    ks: int | Sequence[int] = (20, 100),
    *,
    train: Any | None = None,
    users: ArrayLike | None = None,
    vectors: ArrayLike | None = None,
    expected: ArrayLike | None = None,
) -> dict[str, float]:
    """Mean ranking metrics of lists of recommendations; the module's text defines each.

    Parameters
    ----------
    ids : (B, K) array
        Recommended items, best first: column numbers, -1 for none; where ``test`` has item ids, these ids, None (or
        -1, if it is no id) for none. The answer of ``recommend`` as a whole also says ``users``.
    test : (B, I) matrix or Interactions
        The relevant items: entries with a value above 0.
    ks : int or sequence of int, default (20, 100)
        Lengths at which to cut the lists; none longer than K.
    train : (U, I) matrix or Interactions, optional
        Training data, for ``novelty@k`` only.
    users : (B,) array, optional
        Whom the lists are for: ids where ``test`` has user ids, else row numbers of ``test``, which may have more rows
        then. Default: row b of ``ids`` belongs to row b of ``test``.
    vectors : (I, E) array, optional
        Of the items, in the order of the columns of ``test``, for ``intra_list_diversity@k`` only: their factors, or
        embeddings of their texts.
    expected : (B, L) array, optional
        What a primitive recommender shows, as ``ids``, for ``serendipity@k`` only; L at least the longest of ``ks``,
        such as ``Popularity(train).recommend(users, K)[0]``.

    Returns
    -------
    dict of str to float
        For each k the metrics of the module's table, and ``users`` (averaged over) and ``users_left_out`` (no
        relevant item).

    Raises
    ------
    DataError
        If an item or a user is none of ``test``.
    ValueError
        If shapes do not fit, a number is not in [-1, I), an item appears twice in a row, a user twice, or no row has a
        relevant item.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> test = csr_matrix(np.array([[0, 1, 0, 1]]))  # items 1 and 3 are relevant
    >>> metrics = ranking_metrics([[1, 0, 3]], test, ks=3)
    >>> metrics["recall@3"], round(metrics["map@3"], 4)
    (1.0, 0.8333)
    """
    if is_table(test):
        raise TypeError(f"test must be a matrix or Interactions, got {type(test).__name__}; see as_interactions")
    if isinstance(ids, tuple) and hasattr(ids, "users") and hasattr(ids, "ids"):  # Recommendations
        users, ids = ids.users if users is None else users, ids.ids
    whole = open_interactions("test", test)
    test = relevant_entries(whole)
    if users is not None:
        test = test[_rows_of(users, whole.user_ids, test.shape[0])]
    if whole.item_ids is not None:
        ids = columns_of("ids", as_rectangle("ids", ids), whole.item_ids, "test")
    ids = check_ids(ids, test.shape)
    ks = check_ks(ks, ids.shape[1])
    rows = np.flatnonzero(np.diff(test.indptr))
    if rows.size == 0:
        raise ValueError("test has no row with a value above 0, so there is nothing to measure")
    surprise = None
    if train is not None:
        matched = read_like("train", train, None, whole.item_ids, "test").data
        surprise = surprise_of(relevant_entries(matched, "train"), test.shape[1])
    directions = None if vectors is None else directions_of(vectors, test.shape[1])
    if expected is not None:
        if whole.item_ids is not None:
            expected = columns_of("expected", as_rectangle("expected", expected), whole.item_ids, "test")
        expected = check_ids(expected, test.shape, "expected")
        if expected.shape[1] < max(ks):
            raise ValueError(
                f"expected must have at least {max(ks)} items in a row, as ks has, got {expected.shape[1]}"
            )
        expected = expected[rows]
    per_user = row_metrics(ids[rows], test[rows], ks, surprise, directions, expected)
    counts = recommendation_counts(ids[rows], ks, test.shape[1])
    return {
        **{name: float(values.mean()) for name, values in per_user.items()},
        **list_metrics(counts),
        "users": rows.size,
        "users_left_out": test.shape[0] - rows.size,
    }


def _rows_of(users: ArrayLike, user_ids: Ids | None, n_rows: int) -> NDArray[np.int64]:
    """Rows of the test data that lists belong to."""
    try:
        rows, _ = row_numbers(users, user_ids, n_rows, "user")
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"users must be users of test: {error.args[0]}") from error
    if len(np.unique(rows)) < len(rows):
        raise ValueError("users must name nobody twice: each would count twice")
    return rows


def row_metrics(
    ids: NDArray[Any],
    test: csr_matrix,
    ks: Sequence[int],
    surprise: NDArray[Any] | None,
    directions: NDArray[np.floating] | None = None,
    expected: NDArray[np.integer] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Per-user metrics (B,) of rows that all have a relevant item.

    ids (B, K), test (B, I) and expected (B, L) are checked; directions (I, E) are of :func:`directions_of`. Lists that
    are shorter than a k have no more items.
    """
    rows, n_items = np.arange(ids.shape[0])[:, None], test.shape[1]
    ids = ids[:, : max(ks)]
    length = ids.shape[1]
    # One sorted key per entry of the test matrix turns membership of all B * K pairs into binary searches.
    hit = (contains(entry_keys(test), rows * n_items + ids) & (ids >= 0)).astype(np.float64)

    n_test = np.diff(test.indptr)
    rank = np.arange(1, length + 1)
    hits = hit.cumsum(axis=1)
    dcg = (hit / np.log2(rank + 1)).cumsum(axis=1)
    ideal = (1.0 / np.log2(np.arange(2, min(max(ks), n_items) + 2))).cumsum()
    precision_sum = (hit * hits / rank).cumsum(axis=1)
    first = np.where(hit.any(axis=1), 1.0 + hit.argmax(axis=1), np.inf)
    if surprise is not None:
        surprise_sum = np.where(ids >= 0, surprise[ids], 0.0).cumsum(axis=1)
        filled = np.maximum((ids >= 0).cumsum(axis=1), 1)
    if expected is not None:
        place = places_of(ids, expected, n_items)

    metrics = {}
    for k in ks:
        last, possible = min(k, length) - 1, np.minimum(min(k, n_items), n_test)
        h = hits[:, last]
        metrics[f"recall@{k}"] = h / possible
        metrics[f"plain_recall@{k}"] = h / n_test
        metrics[f"precision@{k}"] = h / k
        metrics[f"hit_rate@{k}"] = np.minimum(h, 1.0)
        metrics[f"ndcg@{k}"] = dcg[:, last] / ideal[possible - 1]
        metrics[f"map@{k}"] = precision_sum[:, last] / possible
        metrics[f"mrr@{k}"] = np.where(first <= k, 1.0 / first, 0.0)
        if surprise is not None:
            metrics[f"novelty@{k}"] = surprise_sum[:, last] / filled[:, last]
        if expected is not None:
            metrics[f"serendipity@{k}"] = (hit * (place >= min(k, expected.shape[1])))[:, :k].sum(axis=1) / k
        if directions is not None:
            metrics[f"intra_list_diversity@{k}"] = _diversity(ids[:, :k], directions)
    return metrics


def places_of(ids: NDArray[np.integer], expected: NDArray[np.integer], n_items: int) -> NDArray[np.int64]:
    """From 0, the place of each item of lists (B, K) in other lists (B, L) of the same users; L where it is not."""
    first = np.arange(len(ids))[:, None] * (n_items + 1)
    keys = (first + np.where(expected < 0, n_items, expected)).ravel()
    order = np.argsort(keys, kind="stable")
    wanted = first + np.where(ids < 0, n_items, ids)
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    places: NDArray[np.int64] = np.where(keys[at] == wanted, at % expected.shape[1], expected.shape[1])
    return places


def directions_of(vectors: ArrayLike, n_items: int) -> NDArray[np.floating]:
    """Vectors (I, E) of items divided by their norms; zero ones stay.

    Raises
    ------
    ValueError
        They are no finite numbers of this shape.
    """
    refuse_ids("vectors", vectors, "item_ids.ids")
    refuse_id_column("vectors", vectors, "item_ids.ids")
    array = np.asarray(vectors)
    if array.ndim != 2 or len(array) != n_items or array.dtype.kind not in "iuf":
        raise ValueError(f"vectors must be numbers of shape (I={n_items}, E), got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("vectors must be finite, got NaN or infinity")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    return ExactIndex(array, metric="cosine").directions(array)


def _diversity(ids: NDArray[np.integer], directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of 1 - cosine (B,) over the pairs of each list (B, k): ``sum_ij cos_ij = |sum_i v_i|^2``."""
    there = ids >= 0
    n = there.sum(axis=1)
    row_ptr = np.concatenate([[0], np.cumsum(n)])
    lists = csr_matrix((np.ones(row_ptr[-1], directions.dtype), ids[there], row_ptr), shape=(len(ids), len(directions)))
    total, own = (lists @ part for part in (directions, np.einsum("ie,ie->i", directions, directions)))
    both = np.einsum("be,be->b", total, total, dtype=np.float64) - own
    return np.where(n > 1, 1 - both / np.maximum(n * (n - 1), 1), 0.0)


def surprise_of(train: csr_matrix, n_items: int) -> NDArray[np.float64]:
    """-log2 of the share of training users who have each item (I,)."""
    if train.shape[1] != n_items:
        raise ValueError(f"train must have as many columns as test (I={n_items}), got shape {train.shape}")
    users = np.bincount(train.indices, minlength=n_items)
    surprise: NDArray[np.float64] = np.log2(max(train.shape[0], 1) / np.maximum(users, 1))
    return surprise


def recommendation_counts(ids: NDArray[Any], ks: Sequence[int], n_items: int) -> dict[int, NDArray[np.int64]]:
    """For each k, how often each of the I items appears in the first k places."""
    counts = {}
    for k in ks:
        top = ids[:, :k]
        counts[k] = np.bincount(top[top >= 0], minlength=n_items)
    return counts


def list_metrics(counts: Mapping[int, NDArray[Any]]) -> dict[str, float]:
    """``coverage@k`` and ``gini@k`` from how often each item was recommended in lists of length k."""
    metrics = {}
    for k, c in counts.items():
        n, total = c.size, c.sum()
        metrics[f"coverage@{k}"] = float(np.count_nonzero(c) / n)
        weighted = (np.arange(1, n + 1) * np.sort(c)).sum()
        metrics[f"gini@{k}"] = float(2 * weighted / (n * total) - (n + 1) / n) if total else math.nan
    return metrics


def relevant_entries(matrix: Any, name: str = "test") -> csr_matrix:
    """Only the entries with a value above 0."""
    matrix = canonical(name, matrix)
    positive = matrix.data > 0
    return matrix if positive.all() else select(matrix, positive)


def users_at_once(length: int, most: int = _USERS) -> int:
    """How many users' lists of some length are worked on together: fewer where lists are long."""
    return min(most, max(_PLACES // max(length, 1), 1))


def in_batches(users: NDArray[Any], length: int) -> Iterator[NDArray[Any]]:
    """Some users (n,), as many at a time as have their lists of some length worked on together."""
    step = users_at_once(length)
    for start in range(0, len(users), step):
        yield users[start : start + step]


def check_ks(ks: int | Sequence[int], longest: int | None) -> list[int]:
    """List lengths as a sorted list of different numbers, each at most `longest`."""
    lengths = np.atleast_1d(np.asarray(ks))
    if (lengths.size and lengths.dtype.kind not in "iu") or lengths.ndim > 1:
        raise TypeError(f"ks must be a list length or several, integers, got {ks!r:.60}")
    ks = sorted({int(k) for k in lengths})
    if not ks or ks[0] < 1:
        raise ValueError(f"ks must be list lengths of at least 1, got {ks}")
    if longest is not None and ks[-1] > longest:
        raise ValueError(f"ks must not exceed the length of the lists, K={longest}, got {ks[-1]}")
    return ks


def check_ids(ids: ArrayLike, shape: tuple[int, int], name: str = "ids") -> NDArray[np.int64]:
    """Ids (B, K) as int64, in [-1, I), no item twice in a row: a repeated hit would count twice."""
    ids = as_rectangle(name, ids)
    if ids.ndim != 2 or ids.shape[0] != shape[0] or ids.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers of shape (B={shape[0]}, K), got {ids.dtype} of shape {ids.shape}")
    if ids.size and not (-1 <= ids.min() and ids.max() < shape[1]):
        raise ValueError(f"{name} must lie in [-1, {shape[1]}), got values from {ids.min()} to {ids.max()}")
    ids = ids.astype(np.int64)
    in_order = np.sort(ids, axis=1)
    repeats = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)
    if repeats.any():
        row = int(np.flatnonzero(repeats)[0])
        raise ValueError(f"{name} must not name an item twice in a row; row {row} does: {ids[row].tolist()}")
    return ids
