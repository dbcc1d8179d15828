"""Ranking metrics with their definitions, the popularity baseline, and ``evaluate``; with the splits of ``splits.py``.

Shape letters: U users, I items, B rows of a batch, K results per row, V evaluated users, M metrics.

Metrics are computed per user and averaged over the users that have at least one relevant test item: a stored value
above 0. The others are left out and counted. With ``hit(r)`` = 1 where the item at rank r (from 1) is relevant and
``n`` the number of the user's relevant items:

====================  ===============================================================================================
``recall@k``          sum of hit(r), r <= k, over ``min(k, n)``: Recall@k of Liang et al., "Variational Autoencoders for
                      Collaborative Filtering" (2018), where a full list of hits is 1 even if ``n > k``
``plain_recall@k``    sum of hit(r), r <= k, over ``n``
``precision@k``       sum of hit(r), r <= k, over ``k``
``hit_rate@k``        1 if any hit(r), r <= k, else 0
``ndcg@k``            sum of hit(r) / log2(r + 1), r <= k, over the same sum for ``min(k, n)`` hits in front
``map@k``             sum of hit(r) * precision@r, r <= k, over ``min(k, n)`` (benfred/implicit's)
``mrr@k``             1 / rank of the first hit within k, 0 without one
``novelty@k``         mean of -log2(p_i) over the recommended items, p_i = share of the training users who have item
                      i, at least one of them (the self-information of Zhou et al. 2010)
``coverage@k``        share of the I items that appear in any list
``gini@k``            Gini index of how often each of the I items is recommended: 0 all alike, near 1 always the same
====================  ===============================================================================================

An id of -1 (fewer than K items were left) takes its rank and is a miss.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from ._checks import integer
from ._tables import format_table
from .popularity import Popularity
from .splits import (
    StrongSplit,
    canonical,
    check_fraction,
    cold_items_split,
    contains,
    entry_keys,
    entry_rows,
    leave_one_out,
    random_holdout,
    sample_negatives,
    select,
    strong_generalisation_split,
    temporal_split,
)

__all__ = [
    "Cohort",
    "Estimate",
    "EvaluationReport",
    "Popularity",
    "StrongSplit",
    "bootstrap_interval",
    "cold_items_split",
    "evaluate",
    "leave_one_out",
    "random_holdout",
    "ranking_metrics",
    "sample_negatives",
    "strong_generalisation_split",
    "temporal_split",
]


def ranking_metrics(
    ids: ArrayLike, test: Any, ks: int | Sequence[int] = (20, 100), *, train: Any | None = None
) -> dict[str, float]:
    """Mean ranking metrics of lists of recommendations; the module's text defines each.

    Parameters
    ----------
    ids : (B, K) array of int
        Recommended column numbers, best first; -1 for none. Row b belongs to row b of ``test``.
    test : (B, I) sparse matrix or Interactions
        The relevant items: entries with a value above 0.
    ks : int or sequence of int, default (20, 100)
        Lengths at which to cut the lists; none longer than K.
    train : (U, I) sparse matrix or Interactions, optional
        Training data, for ``novelty@k`` only.

    Returns
    -------
    dict of str to float
        For each k the metrics of the module's table, and ``users`` (averaged over) and ``users_left_out`` (no
        relevant item).

    Raises
    ------
    ValueError
        If shapes do not fit, an id is not in [-1, I), an item appears twice in a row, or no row has a relevant item.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> test = csr_matrix(np.array([[0, 1, 0, 1]]))  # items 1 and 3 are relevant
    >>> metrics = ranking_metrics([[1, 0, 3]], test, ks=3)
    >>> metrics["recall@3"], round(metrics["map@3"], 4)
    (1.0, 0.8333)
    """
    test = _relevant(test)
    ids = _check_ids(ids, test.shape)
    ks = _check_ks(ks, ids.shape[1])
    rows = np.flatnonzero(np.diff(test.indptr))
    if rows.size == 0:
        raise ValueError("test has no row with a value above 0, so there is nothing to measure")
    surprise = None if train is None else _surprise(_relevant(train, "train"), test.shape[1])
    per_user = _row_metrics(ids[rows], test[rows], ks, surprise)
    counts = _recommendation_counts(ids[rows], ks, test.shape[1])
    return {
        **{name: float(values.mean()) for name, values in per_user.items()},
        **_list_metrics(counts),
        "users": rows.size,
        "users_left_out": test.shape[0] - rows.size,
    }


def _row_metrics(
    ids: NDArray[Any], test: csr_matrix, ks: Sequence[int], surprise: NDArray[Any] | None
) -> dict[str, NDArray[np.float64]]:
    """Per-user metrics (B,) of rows that all have a relevant item; ids (B, K) and test (B, I) are checked."""
    rows, k_max = np.arange(ids.shape[0])[:, None], max(ks)
    ids = ids[:, :k_max]
    # One sorted key per entry of the test matrix turns membership of all B * K pairs into binary searches.
    hit = (contains(entry_keys(test), rows * test.shape[1] + ids) & (ids >= 0)).astype(np.float64)

    n_test = np.diff(test.indptr)
    rank = np.arange(1, k_max + 1)
    discount = 1.0 / np.log2(rank + 1)
    hits = hit.cumsum(axis=1)
    dcg = (hit * discount).cumsum(axis=1)
    ideal = discount.cumsum()
    precision_sum = (hit * hits / rank).cumsum(axis=1)
    first = np.where(hit.any(axis=1), 1.0 + hit.argmax(axis=1), np.inf)
    if surprise is not None:
        news = np.where(ids >= 0, surprise[ids], 0.0).cumsum(axis=1)
        filled = np.maximum((ids >= 0).cumsum(axis=1), 1)

    metrics = {}
    for k in ks:
        possible, h = np.minimum(k, n_test), hits[:, k - 1]
        metrics[f"recall@{k}"] = h / possible
        metrics[f"plain_recall@{k}"] = h / n_test
        metrics[f"precision@{k}"] = h / k
        metrics[f"hit_rate@{k}"] = np.minimum(h, 1.0)
        metrics[f"ndcg@{k}"] = dcg[:, k - 1] / ideal[possible - 1]
        metrics[f"map@{k}"] = precision_sum[:, k - 1] / possible
        metrics[f"mrr@{k}"] = np.where(first <= k, 1.0 / first, 0.0)
        if surprise is not None:
            metrics[f"novelty@{k}"] = news[:, k - 1] / filled[:, k - 1]
    return metrics


def _surprise(train: csr_matrix, n_items: int) -> NDArray[np.float64]:
    """-log2 of the share of training users who have each item (I,)."""
    if train.shape[1] != n_items:
        raise ValueError(f"train must have as many columns as test (I={n_items}), got shape {train.shape}")
    users = np.bincount(train.indices, minlength=n_items)
    surprise: NDArray[np.float64] = np.log2(max(train.shape[0], 1) / np.maximum(users, 1))
    return surprise


def _recommendation_counts(ids: NDArray[Any], ks: Sequence[int], n_items: int) -> dict[int, NDArray[np.int64]]:
    """For each k, how often each of the I items appears in the first k places."""
    counts = {}
    for k in ks:
        top = ids[:, :k]
        counts[k] = np.bincount(top[top >= 0], minlength=n_items)
    return counts


def _list_metrics(counts: Mapping[int, NDArray[Any]]) -> dict[str, float]:
    metrics = {}
    for k, c in counts.items():
        n, total = c.size, c.sum()
        metrics[f"coverage@{k}"] = float(np.count_nonzero(c) / n)
        weighted = (np.arange(1, n + 1) * np.sort(c)).sum()
        metrics[f"gini@{k}"] = float(2 * weighted / (n * total) - (n + 1) / n) if total else math.nan
    return metrics


# -------------------------------------------------------------------------------------------------- bootstrap


class Estimate(NamedTuple):
    """A mean over users with the ends of its confidence interval (``None`` where a metric is not a mean over users)."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.value:.4f}{interval}"


def bootstrap_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    random_state: int | np.random.Generator = 0,
) -> Estimate | list[Estimate]:
    """Mean over users with a percentile bootstrap interval: resample the users, take the mean, look at the quantiles.

    The interval answers "how much would this number move with other users of the same kind?". It does not cover the
    choice of the split or of the seed. For the difference of two models, give the difference of their per-user
    values.

    Parameters
    ----------
    values : (V,) or (V, M) array of float
        One value per user; with M columns, M metrics resampled together.
    confidence : float, default 0.95
        Share of the resampled means inside the interval, in (0, 1).
    n_resamples : int, default 1000
        Number of resamples.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    Estimate or list of Estimate
        One for a vector, M for a matrix.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[0] == 0:
        raise ValueError(f"values must have shape (V,) or (V, M) with V > 0, got {values.shape}")
    check_fraction("confidence", confidence)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    table = values.reshape(values.shape[0], -1)
    n_users = table.shape[0]
    rng = np.random.default_rng(random_state)
    means = np.empty((n_resamples, table.shape[1]))
    for sample in range(n_resamples):
        times_drawn = np.bincount(rng.integers(0, n_users, n_users), minlength=n_users)
        means[sample] = times_drawn @ table / n_users
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    estimates = [Estimate(*map(float, each)) for each in zip(table.mean(axis=0), low, high, strict=True)]
    return estimates if values.ndim == 2 else estimates[0]


# ------------------------------------------------------------------------------------ recommenders, evaluate


class Recommender(Protocol):
    """What :func:`evaluate` needs of a model: WALS, :class:`Popularity`, or anything of your own."""

    def recommend(self, users: Any, k: int = 10, *, filter_seen: bool = True) -> tuple[NDArray[Any], NDArray[Any]]: ...

    def recommend_for(
        self, interactions: Any, k: int = 10, *, filter_seen: bool = True
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...


class Cohort(NamedTuple):
    """Metrics of a part of the test data: lists of the whole evaluation, relevant items of the cohort only."""

    users: int  # with a relevant item in it
    entries: int  # relevant items
    results: dict[str, dict[str, Estimate]]  # as of EvaluationReport, means over users only


@dataclass(frozen=True)
class EvaluationReport:
    """What :func:`evaluate` found; ``print(report)`` shows a table.

    Attributes
    ----------
    results : dict of str to dict of str to Estimate
        ``results[model name][metric name]``.
    per_user : dict of str to dict of str to (V,) array
        The same metrics per evaluated user, for paired comparisons.
    users : (V,) int64 array
        Rows of ``test`` that were evaluated.
    users_left_out : int
        Rows of ``test`` without a relevant item.
    seconds : dict of str to float
        Time each model took to recommend.
    cohorts : dict of str to Cohort
        "cold users", "few-shot users", "warm users" and the same of items, as far as there are test entries of them;
        empty without ``few_shot``.
    """

    results: dict[str, dict[str, Estimate]]
    per_user: dict[str, dict[str, NDArray[np.float64]]]
    users: NDArray[np.int64]
    users_left_out: int
    seconds: dict[str, float]
    cohorts: dict[str, Cohort] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-user values, as plain Python numbers for JSON."""
        return {
            "users": int(self.users.size),
            "users_left_out": self.users_left_out,
            "seconds": self.seconds,
            "results": _plain_results(self.results),
            "cohorts": {
                name: {"users": cohort.users, "entries": cohort.entries, "results": _plain_results(cohort.results)}
                for name, cohort in self.cohorts.items()
            },
        }

    def __str__(self) -> str:
        names = list(self.results)
        metrics = self.results[names[0]]
        rows: list[list[Any]] = [[metric, *(self.results[name][metric] for name in names)] for metric in metrics]
        left_out = f"; {self.users_left_out} left out, without a test item" if self.users_left_out else ""
        text = f"{format_table(['metric', *names], rows)}\n{self.users.size} users evaluated{left_out}"
        if not self.cohorts:
            return text
        shown = [metric for metric in metrics if metric.startswith(("recall@", "ndcg@"))][:2]
        header = ["cohort", "users", "entries", *(f"{name} {metric}" for metric in shown for name in names)]
        rows = [
            [cohort, found.users, found.entries, *(found.results[name][m] for m in shown for name in names)]
            for cohort, found in self.cohorts.items()
        ]
        return f"{text}\n\n{format_table(header, rows)}"


def _plain_results(results: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {
        name: {metric: {"value": e.value, "low": e.low, "high": e.high} for metric, e in metrics.items()}
        for name, metrics in results.items()
    }


def evaluate(
    model: Recommender,
    train: Any,
    test: Any,
    ks: int | Sequence[int] = (20, 100),
    *,
    fold_in: Any | None = None,
    filter_seen: bool = True,
    candidates: Any | None = None,
    few_shot: int | None = None,
    baseline: bool = True,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    random_state: int | np.random.Generator = 0,
    batch_size: int = 2048,
) -> EvaluationReport:
    """Recommend to every user with a test item and measure, with the popularity baseline beside.

    Parameters
    ----------
    model : WALS or any Recommender
        A fitted model.
    train : (U, I) sparse matrix or Interactions
        What the model was fitted on.
    test : (U, I), or (H, I) with ``fold_in``
        The held-out items; values above 0 are relevant.
    ks : int or sequence of int, default (20, 100)
        List lengths.
    fold_in : (H, I) sparse matrix, optional
        For :func:`strong_generalisation_split`: the users to recommend to, by their known interactions
        (``model.recommend_for``). Default: row b of ``test`` is training user b (``model.recommend``).
    filter_seen : bool, default True
        Do not recommend what the user already has.
    candidates : sparse matrix of the shape of ``test``, optional
        Rank only the stored entries of each user's row, such as those of :func:`sample_negatives`; the model must take
        ``allow=``. Default: all items.
    few_shot : int, optional
        Also measure by how much is known: of users and of items with no training entry (cold), up to this many
        (few-shot), and more (warm). In a cohort of items, only these are relevant; the lists stay the same.
    baseline : bool, default True
        Measure :class:`Popularity` of ``train`` too.
    confidence, n_resamples, random_state
        See :func:`bootstrap_interval`; 0 resamples for no intervals.
    batch_size : int, default 2048
        Users per call of the model; bounds memory at ``batch_size * max(ks)`` ids.

    Returns
    -------
    EvaluationReport

    Raises
    ------
    ValueError
        If shapes do not fit, no user has a test item, or (with ``filter_seen``) test items are among the seen ones,
        where no model could find them.
    """
    train, test = canonical("train", train), _relevant(test)
    known = train if fold_in is None else canonical("fold_in", fold_in)
    expected = (known.shape[0], train.shape[1])
    if test.shape != expected or known.shape != expected:
        what = "train" if fold_in is None else "fold_in and the columns of train"
        raise ValueError(f"test must have shape {expected} as {what}, got {test.shape}")
    factors = getattr(model, "user_factors", None)
    if fold_in is None and factors is not None and len(factors) != train.shape[0]:
        raise ValueError(f"model was fitted on {len(factors)} users, but train has {train.shape[0]} rows")
    if filter_seen and (both := int(contains(entry_keys(known), entry_keys(test)).sum())):
        raise ValueError(
            f"{both} test entries are among the user's seen items, which filter_seen=True never recommends; "
            "use disjoint data or filter_seen=False"
        )
    ks = _check_ks(ks, None)
    users = np.flatnonzero(np.diff(test.indptr))
    if users.size == 0:
        raise ValueError("test has no user with a value above 0, so there is nothing to measure")
    surprise = _surprise(_relevant(train, "train"), train.shape[1])
    if candidates is not None:
        candidates = canonical("candidates", candidates)
        if candidates.shape != test.shape:
            raise ValueError(f"candidates must have the shape of test, {test.shape}, got {candidates.shape}")
    parts_of_test = {} if few_shot is None else _cohorts(known, train, test, integer("few_shot", few_shot, 1))
    cohorts = {
        name: Cohort(int((np.diff(part.indptr) > 0).sum()), part.nnz, {}) for name, part in parts_of_test.items()
    }

    def estimates(table: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
        if not n_resamples:
            return {metric: Estimate(float(values.mean()), None, None) for metric, values in table.items()}
        columns = np.column_stack(list(table.values()))
        resampled: Any = bootstrap_interval(
            columns, confidence=confidence, n_resamples=n_resamples, random_state=random_state
        )
        return dict(zip(table, resampled, strict=True))

    results, per_user, seconds = {}, {}, {}
    models = {_name_of(model): model} | ({"popularity": Popularity(train)} if baseline else {})
    for name, each in models.items():
        parts, counts, seconds[name] = [], {k: np.zeros(train.shape[1], dtype=np.int64) for k in ks}, 0.0
        cohort_parts: dict[str, list[dict[str, NDArray[np.float64]]]] = {cohort: [] for cohort in cohorts}
        for start in range(0, users.size, batch_size):
            batch = users[start : start + batch_size]
            began = time.perf_counter()
            options = {} if candidates is None else {"allow": candidates[batch]}
            ids = _recommend(each, batch, None if fold_in is None else known, max(ks), filter_seen, **options)
            seconds[name] += time.perf_counter() - began
            ids = _check_ids(ids, (batch.size, train.shape[1]))
            parts.append(_row_metrics(ids, test[batch], ks, surprise))
            for k, c in _recommendation_counts(ids, ks, train.shape[1]).items():
                counts[k] += c
            for cohort, relevant in parts_of_test.items():
                relevant = relevant[batch]
                rows = np.flatnonzero(np.diff(relevant.indptr))
                cohort_parts[cohort].append(_row_metrics(ids[rows], relevant[rows], ks, None))
        per_user[name] = _joined(parts)
        results[name] = estimates(per_user[name])
        for cohort, found in cohort_parts.items():
            cohorts[cohort].results[name] = estimates(_joined(found))
        results[name] |= {metric: Estimate(value, None, None) for metric, value in _list_metrics(counts).items()}
        results[name] = dict(sorted(results[name].items(), key=lambda each: int(each[0].split("@")[1])))  # by k
    return EvaluationReport(results, per_user, users, test.shape[0] - users.size, seconds, cohorts)


def _joined(parts: list[dict[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in parts[0]}


def _cohorts(known: csr_matrix, train: csr_matrix, test: csr_matrix, few: int) -> dict[str, csr_matrix]:
    """The entries of `test` that belong to each cohort, of which there are some."""
    of_user = np.diff(known.indptr)[entry_rows(test)]
    of_item = np.bincount(train.indices, minlength=train.shape[1])[test.indices]
    found = {}
    for side, n in (("users", of_user), ("items", of_item)):
        for name, mask in (("cold", n == 0), ("few-shot", (n > 0) & (n <= few)), ("warm", n > few)):
            if mask.any():
                found[f"{name} {side}"] = select(test, mask)
    return found


def _recommend(
    model: Recommender, rows: NDArray[Any], known: csr_matrix | None, k: int, filter_seen: bool, **options: Any
) -> NDArray[Any]:
    """Column numbers for training users, or for rows that are known by their interactions.

    A model that was fitted on a table takes and gives the ids of that table.
    """
    user_ids, item_ids = getattr(model, "user_ids", None), getattr(model, "item_ids", None)
    if known is None:
        users = rows if user_ids is None else user_ids.take(rows)
        ids, _ = model.recommend(users, k, filter_seen=filter_seen, **options)
    else:
        ids, _ = model.recommend_for(known[rows], k, filter_seen=filter_seen, **options)
    if item_ids is None:
        return ids
    named: NDArray[Any] = np.asarray(ids, dtype=object)
    columns = np.full(named.shape, -1, dtype=np.int64)
    there = named != np.array(None)  # None: no item was left
    columns[there] = item_ids.index_of(named[there])
    return columns


def _name_of(model: Recommender) -> str:
    return type(model).__name__.lower()


def _relevant(matrix: Any, name: str = "test") -> csr_matrix:
    """Only the entries with a value above 0."""
    matrix = canonical(name, matrix)
    positive = matrix.data > 0
    return matrix if positive.all() else select(matrix, positive)


def _check_ks(ks: int | Sequence[int], longest: int | None) -> list[int]:
    ks = sorted({int(k) for k in np.atleast_1d(ks)})
    if not ks or ks[0] < 1:
        raise ValueError(f"ks must be list lengths of at least 1, got {ks}")
    if longest is not None and ks[-1] > longest:
        raise ValueError(f"ks must not exceed the length of the lists, K={longest}, got {ks[-1]}")
    return ks


def _check_ids(ids: ArrayLike, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Ids (B, K) as int64, in [-1, I), no item twice in a row: a repeated hit would count twice."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.shape[0] != shape[0] or ids.dtype.kind not in "iu":
        raise ValueError(f"ids must be integers of shape (B={shape[0]}, K), got {ids.dtype} of shape {ids.shape}")
    if ids.size and not (-1 <= ids.min() and ids.max() < shape[1]):
        raise ValueError(f"ids must lie in [-1, {shape[1]}), got values from {ids.min()} to {ids.max()}")
    ids = ids.astype(np.int64)
    in_order = np.sort(ids, axis=1)
    twice = ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise ValueError(f"ids must not name an item twice in a row; row {row} does: {ids[row].tolist()}")
    return ids
