"""What models recommend to some of the test users: lists with reasons for people to judge, and scores beside hits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.data.csr import contains, entry_keys
from wals_gpu.data.ids import Ids, plain
from wals_gpu.data.titles import Titles
from wals_gpu.evaluation.entrants import Answers, Entrant, named_models
from wals_gpu.evaluation.recommenders import ids_of
from wals_gpu.evaluation.task import Task

__all__ = ["Bin", "Example", "Named", "Recommended", "by_name", "calibration", "examples"]

#: Users whose scores are looked at, and groups that these are put in.
_USERS, _BINS = 2000, 10
#: Reasons that an item is shown with.
_REASONS = 2


class Named:
    """Items and users as people know them.

    Parameters
    ----------
    user_ids, item_ids : Ids or None
    titles : Titles or None
    """

    def __init__(self, user_ids: Ids | None, item_ids: Ids | None, titles: Titles | None) -> None:
        self._user_ids, self._item_ids, self._titles = user_ids, item_ids, titles

    def user(self, row: int) -> str:
        """What a user is called."""
        return str(row if self._user_ids is None else plain(self._user_ids[row]))

    def items(self, columns: NDArray[np.integer]) -> list[tuple[str, str]]:
        """Id and title of items; the title is empty where there is none."""
        ids = np.asarray(columns, np.int64) if self._item_ids is None else self._item_ids.take(columns)
        titles = [None] * len(ids) if self._titles is None else self._titles.of(ids).to_pylist()
        return [(str(plain(one)), title or "") for one, title in zip(ids, titles, strict=True)]


@dataclass(frozen=True)
class Recommended:
    """An item of a list: id, title, score, whether it was hidden from the model and is now found, and why it is there:
    the user's items that speak most for it."""

    item: tuple[str, str]
    score: float
    is_hit: bool
    reasons: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """A user, some of what they have, what was hidden of it, and the list of a model."""

    user: str
    known: list[tuple[str, str]]
    n_known: int
    n_hidden: int
    source: str
    items: list[Recommended]


def _first_of_lists(task: Task, model: Any, rows: NDArray[np.int64], k: int, longest: int) -> Answers | None:
    """The first k items of lists as they were measured: those of re-ranking depend on how long the whole list is.

    None where the model cannot be asked in this way: somebody's own, of another kind, is measured all the same.
    """
    try:
        found = Entrant("model", model, task).answers(rows, min(max(k, longest), task.train.shape[1]))
    except (AttributeError, TypeError, ValueError, LookupError):
        return None
    return Answers(found.columns[:, :k], found.scores[:, :k], found.sources)


def examples(task: Task, model: Any, named: Named, n: int, k: int = 6, longest: int = 0) -> list[Example]:
    """Lists of users of little, middling and much activity, the same each time.

    Parameters
    ----------
    task : Task
    model : Recommender
    named : Named
    n : int
        Users.
    k : int, default 6
        Items of a list that are shown.
    longest : int, default 0
        How many it has, where these are more.

    Returns
    -------
    list of Example
        Empty where the model cannot be asked in this way.
    """
    if n < 1:
        return []
    known = np.diff(task.known.indptr)[task.users]
    rows = task.users[known > 0]
    if not rows.size:
        return []
    order = rows[np.argsort(np.diff(task.known.indptr)[rows], kind="stable")]
    places = np.unique(np.round((len(order) - 1) * np.linspace(0.15, 0.97, n)).astype(np.int64))
    answers = _first_of_lists(task, model, order[places], k, longest)
    if answers is None:
        return []
    columns, scores, sources = answers
    found = []
    for at, row in enumerate(order[places].tolist()):
        have = task.known.indices[task.known.indptr[row] : task.known.indptr[row + 1]]
        values = task.known.data[task.known.indptr[row] : task.known.indptr[row + 1]]
        hidden = set(task.test.indices[task.test.indptr[row] : task.test.indptr[row + 1]].tolist())
        most = have[np.argsort(-values, kind="stable")[:6]]
        there = (columns[at] >= 0) & (scores[at] > -np.inf)
        listed = columns[at][there]
        items = [
            Recommended(item, float(score), column in hidden, _reasons(task, model, named, row, column))
            for item, score, column in zip(named.items(listed), scores[at][there], listed.tolist(), strict=True)
        ]
        source = "model" if sources is None else str(sources[at])
        found.append(Example(named.user(row), named.items(most), len(have), len(hidden), source, items))
    return found


def _call_of(model: Any, task: Task, side: str, number: int) -> Any:
    """What a model calls a user or an item of the task."""
    ids = task.user_ids if side == "user" else task.item_ids
    return number if ids_of(model, side) is None or ids is None else ids[number]


def _reasons(task: Task, model: Any, named: Named, row: int, column: int) -> list[tuple[str, str]]:
    """The user's items that add most to the score."""
    item = _call_of(model, task, "item", column)
    try:
        if task.fold_in is not None:
            why = model.explain_for(task.fold_in[row], item, _REASONS)
        else:
            why = model.explain(_call_of(model, task, "user", row), item, _REASONS)
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError):  # no explanation is no error here
        return []
    speaks_for = np.asarray(why.ids)[np.asarray(why.contributions) > 0]
    if ids_of(model, "item") is None or task.item_ids is None:
        return named.items(speaks_for.astype(np.int64))
    columns = np.asarray(task.item_ids.find(speaks_for))
    return named.items(columns[columns >= 0])


@dataclass(frozen=True)
class Bin:
    """Recommended items of about the same score: how many were hidden test items, with an interval of 95 %."""

    score: float
    hits: int
    n: int
    share: float
    low: float
    high: float


def calibration(task: Task, model: Any, k: int, seed: int, longest: int = 0) -> list[Bin]:
    """Whether higher scores are more often right: recommended items in groups of as many, by score.

    Parameters
    ----------
    task : Task
    model : Recommender
    k : int
        Items of each list that are looked at.
    seed : int
        Of the draw of users, where there are more than 2,000.
    longest : int, default 0
        How many a list has, where these are more.

    Returns
    -------
    list of Bin
        By rising score; empty where the model has no scores, or lists are too few.
    """
    rows = task.users[np.diff(task.known.indptr)[task.users] > 0]
    if len(rows) > _USERS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _USERS, replace=False))
    if not len(rows):
        return []
    answers = _first_of_lists(task, model, rows, k, longest)
    if answers is None:
        return []
    columns, scores, sources = answers
    there = (columns >= 0) & np.isfinite(scores)
    if sources is not None:
        there &= (sources == "model")[:, None]
    keys = np.broadcast_to(rows[:, None], columns.shape)[there] * task.test.shape[1] + columns[there]
    hits, found = contains(entry_keys(task.test), keys), scores[there].astype(np.float64)
    if len(found) < 10 * _BINS or found.min() == found.max():
        return []
    from scipy.stats import binomtest

    bins = []
    for part in np.array_split(np.argsort(found, kind="stable"), _BINS):
        n_hits = int(hits[part].sum())
        ends = binomtest(n_hits, len(part)).proportion_ci(method="wilson")
        share = n_hits / len(part)
        bins.append(Bin(float(found[part].mean()), n_hits, len(part), share, float(ends.low), float(ends.high)))
    return bins


def by_name(model: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    """Models by the names that they have in an evaluation.

    Raises
    ------
    ValueError
        The evaluation is of several, and nothing says which of these it is.
    """
    if isinstance(model, Mapping):
        return named_models(model, baseline=False)
    several = [name for name in names if name != "popularity"]
    if len(several) > 1:
        raise ValueError(
            f"model must be a dict of models by name, as evaluation is of several: {', '.join(map(repr, several))}"
        )
    name = next(iter(names), type(model).__name__.lower())
    return {name: model}
