"""``evaluate``: what a model recommends, measured beside popularity, with intervals and cohorts of users."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from html import escape
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag, integer, number, seed, warn
from wals_gpu.data.matching import check_columns, is_table
from wals_gpu.data.tables import as_output, format_table, html_table
from wals_gpu.evaluation.comparison import Difference, Differences, differences_of
from wals_gpu.evaluation.entrants import Entrant, named_models
from wals_gpu.evaluation.metrics import (
    check_ids,
    check_ks,
    list_metrics,
    recommendation_counts,
    row_metrics,
    users_at_once,
)
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.recommenders import AnyRecommender, ImplicitRecommender, Recommender
from wals_gpu.evaluation.resampling import Estimate, bootstrap_interval
from wals_gpu.evaluation.task import Task

__all__ = [
    "AnyRecommender",
    "Cohort",
    "Comparison",
    "EvaluationReport",
    "ImplicitRecommender",
    "Recommender",
    "evaluate",
]


class Cohort(NamedTuple):
    """Metrics of a part of the test data: lists of the whole evaluation, relevant items of the cohort only.

    Attributes
    ----------
    users : int
        How many have a relevant item in it.
    entries : int
        Relevant items.
    results : dict of str to dict of str to Estimate
        As of :class:`EvaluationReport`, means over users only.
    """

    users: int
    entries: int
    results: dict[str, dict[str, Estimate]]


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """What :func:`evaluate` found; ``print(report)`` shows tables, as a notebook does.

    Attributes
    ----------
    results : dict of str to dict of str to Estimate
        ``results[model name][metric name]``.
    per_user : dict of str to dict of str to (V,) array
        The same metrics per evaluated user, for paired comparisons.
    users : (V,) int64 array
        Rows of ``test`` that were evaluated; of the training data, where ``test`` was brought to its ids.
    users_left_out : int
        Rows of ``test`` without a relevant item.
    seconds : dict of str to float
        Time each model took to recommend.
    cohorts : dict of str to Cohort
        "known users" and "cold users" (those without any training entry) where there are cold ones. With ``few_shot``
        also "few-shot users", "warm users" and "cold items", "few-shot items", "warm items", as far as there are test
        entries of them.
    entries : int
        Relevant items of all evaluated users.
    cold_users : int
        How many of ``users`` have no training entry (with ``fold_in``: no entry there).
    cold_lists : dict of str to str
        What each model recommended to them, in words; empty where there are none.
    dropped : int
        Entries of a table given as ``test`` that were left out, since the model does not know their user or item.
    user_ids : (V,) array or None
        The ids of ``users``, in the order of the values of ``per_user``; None where there are none.
    notes : list of str
        Who was evaluated and who was not, what cold users got, and what was left out: a sentence each.
    recommended : dict of str to dict of int to (I,) int64 array
        ``recommended[model name][k]``: in how many of the lists, cut at k, each item is.
    confidence : float
        Of the intervals.
    """

    results: dict[str, dict[str, Estimate]]
    per_user: dict[str, dict[str, NDArray[np.float64]]]
    users: NDArray[np.int64]
    users_left_out: int
    seconds: dict[str, float]
    cohorts: dict[str, Cohort] = field(default_factory=dict)
    entries: int = 0
    cold_users: int = 0
    cold_lists: dict[str, str] = field(default_factory=dict)
    dropped: int = 0
    user_ids: NDArray[Any] | None = None
    notes: list[str] = field(default_factory=list)
    recommended: dict[str, dict[int, NDArray[np.int64]]] = field(default_factory=dict)
    confidence: float = 0.95

    def to_dict(self) -> dict[str, Any]:
        """Everything but the per-user values, as plain Python numbers for JSON; None for gini@k without any list."""
        return {
            "users": int(self.users.size),
            "users_left_out": self.users_left_out,
            "entries": self.entries,
            "cold_users": self.cold_users,
            "cold_lists": dict(self.cold_lists),
            "dropped": self.dropped,
            "notes": list(self.notes),
            "seconds": self.seconds,
            "results": _plain_results(self.results),
            "cohorts": {
                name: {"users": cohort.users, "entries": cohort.entries, "results": _plain_results(cohort.results)}
                for name, cohort in self.cohorts.items()
            },
        }

    def to_arrow(self) -> pa.Table:
        """An Arrow table with a row for each model, cohort ("all" first) and metric.

        Returns
        -------
        pyarrow.Table
            Columns ``model``, ``cohort``, ``metric``, ``value``, ``low``, ``high`` (null where a metric has no
            interval) and ``users``, over whom it is.
        """
        parts = {"all": Cohort(len(self.users), self.entries, self.results), **self.cohorts}
        rows = [
            (model, cohort, metric, *estimate, part.users)
            for cohort, part in parts.items()
            for model, metrics in part.results.items()
            for metric, estimate in metrics.items()
        ]
        columns = list(zip(*rows, strict=True))
        number, text = pa.float64(), pa.string()
        kinds = {"model": text, "cohort": text, "metric": text, "value": number, "low": number, "high": number}
        kinds["users"] = pa.int64()
        arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds.values(), strict=True)]
        return pa.table(arrays, names=list(kinds))

    def to_pandas(self) -> Any:
        """The table of :meth:`to_arrow` as a pandas DataFrame; ImportError without pandas."""
        return as_output(self.to_arrow(), "pandas")

    def to_polars(self) -> Any:
        """The table of :meth:`to_arrow` as a polars DataFrame; ImportError without polars."""
        return as_output(self.to_arrow(), "polars")

    def __str__(self) -> str:
        text = "\n".join([format_table(*self._table()), *self.notes])
        return f"{text}\n\n{format_table(*self._cohort_table())}" if self.cohorts else text

    def __repr__(self) -> str:
        return str(self)  # the arrays of all users would fill the screen

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        cohorts = html_table(*self._cohort_table()) if self.cohorts else ""
        return f"<div>{html_table(*self._table())}{notes}{cohorts}</div>"

    def _table(self) -> tuple[list[str], list[list[Any]]]:
        names = list(self.results)
        metrics = self.results[names[0]]
        return ["metric", *names], [[metric, *(self.results[n][metric] for n in names)] for metric in metrics]

    def _cohort_table(self) -> tuple[list[str], list[list[Any]]]:
        """Two metrics of everybody and of each cohort, one below the other, so that a terminal is wide enough."""
        names = list(self.results)
        chosen = [metric for metric in self.results[names[0]] if metric.startswith(("recall@", "ndcg@"))][:2]
        parts = {"all": Cohort(len(self.users), self.entries, self.results), **self.cohorts}
        rows: list[list[Any]] = [
            [metric, cohort, part.users, part.entries, *(part.results[name][metric] for name in names)]
            for metric in chosen
            for cohort, part in parts.items()
        ]
        return ["metric", "of", "users", "entries", *names], rows


@dataclass(frozen=True, repr=False)
class Comparison(EvaluationReport):
    """What :func:`evaluate` found of several models: a report of each, and the differences of every pair.

    Attributes
    ----------
    differences : Differences
        A list of :class:`.Difference`, for every metric that is a mean over users and every pair of models, popularity
        among them: with a paired interval, the p-value of a paired permutation test, and Holm's adjustment for the
        pairs of a metric. ``differences.to_pandas()`` is a table.
    """

    differences: Differences = field(default_factory=Differences)

    def between(self, first: str, second: str) -> dict[str, Difference]:
        """The differences of two models, by metric.

        Parameters
        ----------
        first, second : str
            Their names, in either order; values are ``first - second``.

        Returns
        -------
        dict of str to Difference

        Raises
        ------
        KeyError
            These two were not compared.
        """
        return self.differences.between(first, second)

    def to_dict(self) -> dict[str, Any]:
        """The same as of :class:`EvaluationReport`, with ``differences``, a list of dicts."""
        return super().to_dict() | {"differences": [one._asdict() for one in self.differences]}

    def _shown(self) -> Differences:
        """Those of the metrics that most people look at; the rest is in `differences`."""
        metrics = {one.metric for one in self.differences}
        return self.differences.of(*(name for name in metrics if name.startswith(("recall@", "ndcg@"))))

    def __str__(self) -> str:
        return f"{super().__str__()}\n\n{self._shown()}" if self.differences else super().__str__()

    def _repr_html_(self) -> str:
        table = html_table(*self._shown().lines()) if self.differences else ""
        return f"<div>{super()._repr_html_()}{table}</div>"


def _plain_results(results: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {
        name: {
            metric: {"value": None if math.isnan(e.value) else e.value, "low": e.low, "high": e.high}
            for metric, e in metrics.items()
        }
        for name, metrics in results.items()
    }


@overload
def evaluate(
    model: Mapping[str, Any], train: Any, test: Any, ks: int | Sequence[int] = ..., **options: Any
) -> Comparison: ...


@overload
def evaluate(
    model: AnyRecommender, train: Any, test: Any, ks: int | Sequence[int] = ..., **options: Any
) -> EvaluationReport: ...


def evaluate(
    model: AnyRecommender | Mapping[str, Any],
    train: Any,
    test: Any,
    ks: int | Sequence[int] = (20, 100),
    *,
    fold_in: Any | None = None,
    filter_seen: bool = True,
    candidates: Any | None = None,
    few_shot: int | None = None,
    cold_users: str | None = None,
    options: Mapping[str, Any] | None = None,
    vectors: ArrayLike | None = None,
    baseline: bool = True,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
    random_state: int | np.random.Generator = 0,
    batch_size: int = 2048,
    **columns: Any,
) -> EvaluationReport:
    """Recommend to every user with a test item and measure, with the popularity baseline beside.

    Several models, by name, are compared: each ranks for the same users, what they have is kept from all lists, and
    each pair is compared user by user. What a model cannot answer counts as an empty list, with a warning.

    What has ids is compared by id: ``train``, ``test``, ``fold_in`` and ``candidates`` may be numbered apart from the
    model and from each other. A matrix has no ids and is taken by its row and column numbers, which must be those of
    the model.

    Parameters
    ----------
    model : WALS, any Recommender, a model of implicit's signature, or dict of str to such
        A fitted model, or several by name. In a dict also a model of RecTools, in a pair with its dataset:
        ``{"mine": wals, "theirs": (model, dataset)}``.
    train : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        What the model was fitted on. For several, what users are known by: users and items are those of `train`, where
        it has ids, and a model that was fitted on others is asked for these by id.
    test : the same, or (H, I) with ``fold_in``
        The held-out items; values above 0 are relevant. Rows of a table whose user or item is unknown to the model are
        left out, with a warning that counts them; in Interactions they are an error.
    ks : int or sequence of int, default (20, 100)
        List lengths. Lists longer than there are items end where these do.
    fold_in : (H, I) matrix, Interactions or table, optional
        For :func:`strong_generalisation_split`: the users to recommend to, by their known interactions
        (``model.recommend_for``). Default: row b of ``test`` is training user b (``model.recommend``).
    filter_seen : bool, default True
        Do not recommend what the user already has.
    candidates : of the kinds of ``test``, optional
        Rank only the stored entries of each user's row, such as those of :func:`sample_negatives`; the model must take
        ``allow=``. Default: all items.
    few_shot : int, optional
        Also measure by how much is known: of users and of items with no training entry (cold), up to this many
        (few-shot), and more (warm). In a cohort of items, only these are relevant; the lists stay the same.
    cold_users : str, optional
        What the model is to recommend to users without a training entry, where its ``recommend`` takes ``cold_users``
        as that of :class:`.WALS`. Default: whatever it does by itself. Cold and known users are reported apart whenever
        there are cold ones, and ``report.notes`` says what they got.
    options : mapping of str to anything, optional
        Further arguments for the model's ``recommend``, such as ``{"diversity": 0.3}``; of several models, for those
        that take them.
    vectors : (I, E) array, optional
        Of the items, for ``intra_list_diversity@k``, in the order of the model's ids (the columns of ``train``).
        Default: the item factors of the model, of several of the first one that has such; without any, the metric is
        left out.
    baseline : bool, default True
        Measure :class:`Popularity` of ``train`` too.
    confidence, n_resamples, random_state
        See :func:`bootstrap_interval`; 0 resamples for no intervals.
    n_permutations : int, default 9999
        Of several models: assignments of signs of the permutation test; 0 for no p-values.
    batch_size : int, default 2048
        Users per call of the model; fewer where lists have thousands of items.
    **columns
        ``user_column``, ``item_column``, ``value_column`` and the like of what is given as a table. Default for
        ``test``: the columns that ``train`` has them in.

    Returns
    -------
    EvaluationReport
        Of several models a :class:`Comparison`, which is one too.

    Raises
    ------
    DataError
        If ids are unknown or of another kind than those of the model.
    ValueError
        If shapes do not fit, no user has a test item, or (with ``filter_seen``) test items are among the seen ones,
        where no model could find them; a model was fitted on test entries; or there is none.
    TypeError
        If ``test`` is a table and nobody has ids to read it with; no model takes ``cold_users``, or one of the
        ``options``; or one of RecTools has no dataset.

    Warns
    -----
    ParameterWarning
        If entries of a table were left out; if one of several models had no list for a user.
    """
    check_columns(columns, evaluate)
    of_tables = [name for name, value in columns.items() if value is not None]
    given = [data for data in (train, test, fold_in, candidates) if data is not None]
    if of_tables and not any(isinstance(data, np.ndarray) or is_table(data) for data in given):
        raise ValueError(f"{', '.join(of_tables)} can be given with a table only; none of train, test, ... is one")
    ks, baseline = check_ks(ks, None), flag("baseline", baseline)
    several = named_models(model, baseline) if isinstance(model, Mapping) else None
    models = several or {_name_of(model): model}
    asked: dict[str, Any] = {"by_train": several is not None, "vectors": vectors, "more": options}
    task = Task.make(models, train, test, fold_in, candidates, filter_seen, ks, cold_users, columns, **asked)
    few = None if few_shot is None else integer("few_shot", few_shot, 1)
    relevant_by_cohort = task.cohorts(few)
    cohorts = {
        name: Cohort(int((np.diff(relevant.indptr) > 0).sum()), relevant.nnz, {})
        for name, relevant in relevant_by_cohort.items()
    }
    confidence = number("confidence", confidence, positive=True, below=1)
    resamples = _Resamples(confidence, integer("n_resamples", n_resamples, 0), seed("random_state", random_state))
    n_permutations = integer("n_permutations", n_permutations, 0)
    batch_size = users_at_once(task.length, integer("batch_size", batch_size, 1))
    left_out = task.test.shape[0] - task.users.size
    report = EvaluationReport(
        {},
        {},
        task.users,
        left_out,
        {},
        cohorts,
        entries=task.test.nnz,
        cold_users=int(task.is_cold(task.users).sum()),
        dropped=task.dropped,
        user_ids=None if task.user_ids is None else task.user_ids[task.users],
        confidence=confidence,
    )
    popular = Popularity(task.train)
    entrants = [Entrant(name, one, task) for name, one in (several or {}).items()]
    askers: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]]
    if several is None:
        Entrant(_name_of(model), model, task)  # which is refused where it was fitted on what is to be found
    if entrants:
        askers = {entrant.name: entrant.lists for entrant in entrants}
    else:
        askers = {name: partial(task.recommend, one) for name, one in models.items()}
    if baseline:
        askers["popularity"] = partial(task.recommend, popular)
    for name, ask in askers.items():
        tally = _Tally(task, relevant_by_cohort, popular)
        for start in range(0, task.users.size, batch_size):
            tally.add(ask, task.users[start : start + batch_size])
        report.seconds[name] = tally.seconds
        report.per_user[name] = tally.whole.values()
        report.recommended[name] = tally.counts
        if report.cold_users:
            report.cold_lists[name] = tally.cold.in_words()
        of_users = resamples.estimates(report.per_user[name])
        for cohort, of_cohort in tally.cohorts.items():
            cohorts[cohort].results[name] = resamples.estimates(of_cohort.values())
        of_lists = {metric: Estimate(value, None, None) for metric, value in list_metrics(tally.counts).items()}
        report.results[name] = dict(
            sorted((of_users | of_lists).items(), key=lambda item: int(item[0].split("@")[1]))  # by k
        )
    report.notes.extend(_notes(report, task))
    if several is None:
        return report
    for entrant in entrants:
        if warning := entrant.warning():
            warn(warning)
            report.notes.append(warning)
    metrics = [name for name in report.results[entrants[0].name] if name in report.per_user[entrants[0].name]]
    differences = differences_of(report.per_user, metrics, n_permutations=n_permutations, **resamples._asdict())
    return Comparison(**{each.name: getattr(report, each.name) for each in fields(report)}, differences=differences)


def _notes(report: EvaluationReport, task: Task) -> Iterator[str]:
    n_users = f"{len(report.users):,}"
    left_out = f"; {report.users_left_out:,} left out, without a test item" if report.users_left_out else ""
    yield f"{n_users} users evaluated{left_out}"
    if report.cold_users:
        has = "has" if report.cold_users == 1 else "have"
        what = "training entry" if task.fold_in is None else "entry in fold_in"
        lists = {
            name: got for name, got in report.cold_lists.items() if name in task.models
        }  # popularity's are no news
        if len(task.models) == 1:
            yield f"{report.cold_users:,} of {n_users} users {has} no {what}: they got {next(iter(lists.values()))}"
        else:
            got = "; ".join(f"{name} gave them {what}" for name, what in lists.items())
            yield f"{report.cold_users:,} of {n_users} users {has} no {what}: {got}"
    if "popularity" in report.results and len(report.results) > 1:
        metric = next(name for name in report.results["popularity"] if name.startswith("ndcg@"))
        for model in task.models:
            ours, popular = (report.results[name][metric].value for name in (model, "popularity"))
            if ours < popular:
                of = f" of {model}" if len(task.models) > 1 else ""
                yield f"popularity is ahead{of} in {metric}: try 3 or 10 times the regularization (docs/objective.md)"
    if report.dropped:
        yield f"{report.dropped:,} entries of test left out: the model does not know {task.dropped_ids}"


def _name_of(model: Any) -> str:
    return type(model).__name__.lower()


# ---------------------------------------------------------------------------------------------------- the lists


class _UserMetrics:
    """The metrics of each user with a relevant item, batch after batch."""

    def __init__(
        self,
        relevant: csr_matrix,
        ks: list[int],
        surprise: NDArray[np.float64] | None = None,
        directions: NDArray[np.floating] | None = None,
    ) -> None:
        self._relevant, self._ks, self._surprise, self._directions = relevant, ks, surprise, directions
        self._parts: list[dict[str, NDArray[np.float64]]] = []

    def add(self, users: NDArray[np.int64], ids: NDArray[np.int64], expected: NDArray[np.int64] | None = None) -> None:
        relevant = self._relevant[users]
        rows = np.flatnonzero(np.diff(relevant.indptr))
        expected = None if expected is None else expected[rows]
        found = row_metrics(ids[rows], relevant[rows], self._ks, self._surprise, self._directions, expected)
        self._parts.append(found)

    def values(self) -> dict[str, NDArray[np.float64]]:
        return {metric: np.concatenate([part[metric] for part in self._parts]) for metric in self._parts[0]}


class _Tally:
    """What the lists of one model come to, batch after batch: for users, for cohorts, all together, and in time."""

    def __init__(self, task: Task, relevant_by_cohort: dict[str, csr_matrix], popular: Popularity) -> None:
        self._task, self._popular = task, popular
        self.cold = _ColdLists(task, popular)
        self.whole = _UserMetrics(task.test, task.ks, task.surprise, task.directions)
        self.cohorts = {name: _UserMetrics(relevant, task.ks) for name, relevant in relevant_by_cohort.items()}
        self.counts = {k: np.zeros(task.train.shape[1], dtype=np.int64) for k in task.ks}
        self.seconds = 0.0

    def add(self, ask: Callable[[NDArray[np.int64]], NDArray[np.int64]], users: NDArray[np.int64]) -> None:
        began = time.perf_counter()
        ids = ask(users)
        self.seconds += time.perf_counter() - began
        ids = check_ids(ids, (users.size, self._task.train.shape[1]))
        self.whole.add(users, ids, self._task.popular(self._popular, users))
        for metrics in self.cohorts.values():
            metrics.add(users, ids)
        self.cold.add(users, ids)
        for k, counts in recommendation_counts(ids, self._task.ks, self._task.train.shape[1]).items():
            self.counts[k] += counts


class _ColdLists:
    """What users without history were given: found out from the lists, whatever the model calls it."""

    def __init__(self, task: Task, popular: Popularity) -> None:
        self._task, self._popular = task, popular
        self._first: NDArray[np.int64] | None = None
        self._all_popular = self._all_alike = self._all_empty = True

    def add(self, users: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        task, cold = self._task, self._task.is_cold(users)
        rows, lists = users[cold], ids[cold]
        if not rows.size:
            return
        if self._first is None:
            self._first = lists[0]
        self._all_empty &= bool((lists < 0).all())
        self._all_alike &= bool((lists == self._first).all())
        if self._all_popular:  # items that are as popular may stand in another order
            best = task.popular(self._popular, rows)
            counts, best = (np.where(some >= 0, self._popular.counts[some], -1) for some in (lists, best))
            self._all_popular = np.array_equal(counts, best)

    def in_words(self) -> str:
        if self._all_empty:
            return "no items"
        if self._all_popular:
            return "the most popular items"
        if self._all_alike:
            return "one list for all of them, which is not the most popular items"
        return "different lists, which are not the most popular items"


class _Resamples(NamedTuple):
    """How to tell how sure a mean over users is."""

    confidence: float
    n_resamples: int
    random_state: int | np.random.Generator | None

    def estimates(self, table: dict[str, NDArray[np.float64]]) -> dict[str, Estimate]:
        if not self.n_resamples:
            return {metric: Estimate(float(values.mean()), None, None) for metric, values in table.items()}
        resampled: Any = bootstrap_interval(np.column_stack(list(table.values())), **self._asdict())
        return dict(zip(table, resampled, strict=True))
