"""``evaluate``: what a model recommends, measured beside popularity, with intervals and cohorts of users."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.csr import canonical, contains, entry_keys, entry_rows, select
from wals_gpu.evaluation.metrics import (
    Estimate,
    bootstrap_interval,
    check_ids,
    check_ks,
    list_metrics,
    recommendation_counts,
    relevant_entries,
    row_metrics,
    surprise_of,
)
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.tables import format_table

__all__ = ["Cohort", "EvaluationReport", "Recommender", "evaluate"]


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
        columns = [metric for metric in metrics if metric.startswith(("recall@", "ndcg@"))][:2]
        header = ["cohort", "users", "entries", *(f"{name} {metric}" for metric in columns for name in names)]
        rows = [
            [cohort, part.users, part.entries, *(part.results[name][m] for m in columns for name in names)]
            for cohort, part in self.cohorts.items()
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
    task = _Task.make(model, train, test, fold_in, filter_seen, candidates, check_ks(ks, None))
    relevant_by_cohort = {} if few_shot is None else task.cohorts(integer("few_shot", few_shot, 1))
    cohorts = {
        name: Cohort(int((np.diff(relevant.indptr) > 0).sum()), relevant.nnz, {})
        for name, relevant in relevant_by_cohort.items()
    }
    confidence = number("confidence", confidence, positive=True, below=1)
    resamples = _Resamples(confidence, integer("n_resamples", n_resamples, 0), random_state)
    batch_size = integer("batch_size", batch_size, 1)
    report = EvaluationReport({}, {}, task.users, task.test.shape[0] - task.users.size, {}, cohorts)
    models = {_name_of(model): model} | ({"popularity": Popularity(task.train)} if baseline else {})
    for name, recommender in models.items():
        tally = _Tally(task, relevant_by_cohort)
        for start in range(0, task.users.size, batch_size):
            tally.add(recommender, task.users[start : start + batch_size])
        report.seconds[name] = tally.seconds
        report.per_user[name] = tally.whole.values()
        of_users = resamples.estimates(report.per_user[name])
        for cohort, metrics in tally.cohorts.items():
            cohorts[cohort].results[name] = resamples.estimates(metrics.values())
        of_lists = {metric: Estimate(value, None, None) for metric, value in list_metrics(tally.counts).items()}
        report.results[name] = dict(
            sorted((of_users | of_lists).items(), key=lambda item: int(item[0].split("@")[1]))  # by k
        )
    return report


# ---------------------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class _Task:
    """The data of an evaluation, checked: whom to recommend to, and what is relevant to them.

    U training users, H rows of `test` (U of them without `fold_in`), V users with a relevant item.
    """

    train: csr_matrix  # (U, I)
    test: csr_matrix  # (H, I), relevant entries only
    fold_in: csr_matrix | None  # (H, I)
    candidates: csr_matrix | None  # (H, I)
    filter_seen: bool
    ks: list[int]
    users: NDArray[np.int64]  # (V,) row numbers of test
    surprise: NDArray[np.float64]  # (I,)

    @classmethod
    def make(
        cls, model: Recommender, train: Any, test: Any, fold_in: Any, filter_seen: bool, candidates: Any, ks: list[int]
    ) -> _Task:
        train, test = canonical("train", train), relevant_entries(test)
        fold_in = None if fold_in is None else canonical("fold_in", fold_in)
        _check_shapes(model, train, test, fold_in)
        if filter_seen:
            _check_unseen(train if fold_in is None else fold_in, test)
        users = np.flatnonzero(np.diff(test.indptr))
        if users.size == 0:
            raise ValueError("test has no user with a value above 0, so there is nothing to measure")
        if candidates is not None:
            candidates = canonical("candidates", candidates)
            if candidates.shape != test.shape:
                raise ValueError(f"candidates must have the shape of test, {test.shape}, got {candidates.shape}")
        surprise = surprise_of(relevant_entries(train, "train"), train.shape[1])
        return cls(train, test, fold_in, candidates, filter_seen, ks, users, surprise)

    def cohorts(self, few: int) -> dict[str, csr_matrix]:
        """The relevant entries that belong to each cohort, of which there are some."""
        known = self.train if self.fold_in is None else self.fold_in
        of_user = np.diff(known.indptr)[entry_rows(self.test)]
        of_item = np.bincount(self.train.indices, minlength=self.train.shape[1])[self.test.indices]
        by_cohort = {}
        for side, n in (("users", of_user), ("items", of_item)):
            for name, mask in (("cold", n == 0), ("few-shot", (n > 0) & (n <= few)), ("warm", n > few)):
                if mask.any():
                    by_cohort[f"{name} {side}"] = select(self.test, mask)
        return by_cohort

    def recommend(self, model: Recommender, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What a model recommends to some rows of `test`: column numbers (b, K), -1 for none.

        A model that was fitted on a table takes and gives the ids of that table.
        """
        options: dict[str, Any] = {} if self.candidates is None else {"allow": self.candidates[rows]}
        if self.fold_in is None:
            user_ids = getattr(model, "user_ids", None)
            users = rows if user_ids is None else user_ids.take(rows)
            ids, _ = model.recommend(users, max(self.ks), filter_seen=self.filter_seen, **options)
        else:
            ids, _ = model.recommend_for(self.fold_in[rows], max(self.ks), filter_seen=self.filter_seen, **options)
        item_ids = getattr(model, "item_ids", None)
        if item_ids is None:
            return ids
        labels: NDArray[Any] = np.asarray(ids, dtype=object)
        columns = np.full(labels.shape, -1, dtype=np.int64)
        is_item = labels != np.array(None)  # None: no item was left
        columns[is_item] = item_ids.index_of(labels[is_item])
        return columns


def _check_shapes(model: Recommender, train: csr_matrix, test: csr_matrix, fold_in: csr_matrix | None) -> None:
    known = train if fold_in is None else fold_in
    expected = (known.shape[0], train.shape[1])
    if test.shape != expected or known.shape != expected:
        what = "train" if fold_in is None else "fold_in and the columns of train"
        raise ValueError(f"test must have shape {expected} as {what}, got {test.shape}")
    factors = getattr(model, "user_factors", None)
    if fold_in is None and factors is not None and len(factors) != train.shape[0]:
        raise ValueError(f"model was fitted on {len(factors)} users, but train has {train.shape[0]} rows")


def _check_unseen(known: csr_matrix, test: csr_matrix) -> None:
    if both := int(contains(entry_keys(known), entry_keys(test)).sum()):
        raise ValueError(
            f"{both} test entries are among the user's seen items, which filter_seen=True never recommends; "
            "use disjoint data or filter_seen=False"
        )


def _name_of(model: Recommender) -> str:
    return type(model).__name__.lower()


# ---------------------------------------------------------------------------------------------------- the lists


class _UserMetrics:
    """The metrics of each user with a relevant item, batch after batch."""

    def __init__(self, relevant: csr_matrix, ks: list[int], surprise: NDArray[np.float64] | None) -> None:
        self._relevant, self._ks, self._surprise = relevant, ks, surprise
        self._parts: list[dict[str, NDArray[np.float64]]] = []

    def add(self, users: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        relevant = self._relevant[users]
        rows = np.flatnonzero(np.diff(relevant.indptr))
        self._parts.append(row_metrics(ids[rows], relevant[rows], self._ks, self._surprise))

    def values(self) -> dict[str, NDArray[np.float64]]:
        return {metric: np.concatenate([part[metric] for part in self._parts]) for metric in self._parts[0]}


class _Tally:
    """What the lists of one model come to, batch after batch: for users, for cohorts, all together, and in time."""

    def __init__(self, task: _Task, relevant_by_cohort: dict[str, csr_matrix]) -> None:
        self._task = task
        self.whole = _UserMetrics(task.test, task.ks, task.surprise)
        self.cohorts = {name: _UserMetrics(relevant, task.ks, None) for name, relevant in relevant_by_cohort.items()}
        self.counts = {k: np.zeros(task.train.shape[1], dtype=np.int64) for k in task.ks}
        self.seconds = 0.0

    def add(self, model: Recommender, users: NDArray[np.int64]) -> None:
        began = time.perf_counter()
        ids = self._task.recommend(model, users)
        self.seconds += time.perf_counter() - began
        ids = check_ids(ids, (users.size, self._task.train.shape[1]))
        for metrics in (self.whole, *self.cohorts.values()):
            metrics.add(users, ids)
        for k, counts in recommendation_counts(ids, self._task.ks, self._task.train.shape[1]).items():
            self.counts[k] += counts


class _Resamples(NamedTuple):
    """How to tell how sure a mean over users is."""

    confidence: float
    n_resamples: int
    random_state: int | np.random.Generator

    def estimates(self, table: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
        if not self.n_resamples:
            return {metric: Estimate(float(values.mean()), None, None) for metric, values in table.items()}
        resampled: Any = bootstrap_interval(np.column_stack(list(table.values())), **self._asdict())
        return dict(zip(table, resampled, strict=True))
