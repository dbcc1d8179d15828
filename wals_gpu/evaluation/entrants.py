"""The models of a comparison: each is asked in its own words, for the same users, and answers in one numbering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.data.csr import contains, entry_keys
from wals_gpu.data.ids import Ids
from wals_gpu.errors import DataError
from wals_gpu.evaluation.recommenders import (
    RecToolsRecommender,
    as_rectangle,
    columns_of,
    ids_of,
    parameters_of,
    speaks_rectools,
)
from wals_gpu.evaluation.task import Task, is_numbered_alike

__all__ = ["Answers", "Entrant", "named_models"]


def named_models(models: Mapping[Any, Any], baseline: bool) -> dict[str, Any]:
    """The models of a comparison by name, those of RecTools with their data.

    Raises
    ------
    TypeError, ValueError
        There are none, a name is no text or that of the baseline, or a model of RecTools has no dataset.
    """
    if not models:
        raise ValueError("model must be a fitted model, or a dict of such by name; the dict is empty")
    found: dict[str, Any] = {}
    for name, model in models.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"the names of models must be texts, got {name!r:.60}")
        if name == "popularity" and baseline:
            raise ValueError("'popularity' is the name of the baseline: give the model another, or baseline=False")
        if isinstance(model, tuple) and len(model) == 2 and hasattr(model[0], "recommend"):
            model = RecToolsRecommender(*model)
        elif speaks_rectools(model):
            raise TypeError(
                f"model {name!r} recommends from a Dataset: give the pair (model, dataset), with what it was fitted on"
            )
        found[name] = model
    return found


class Answers(NamedTuple):
    """Column numbers (b, k), -1 for none; scores (b, k); and what each list is from (b,), where the model says it."""

    columns: NDArray[np.int64]
    scores: NDArray[np.float64]
    sources: NDArray[Any] | None


class Entrant:
    """A model of a comparison.

    Parameters
    ----------
    name : str
    model : AnyRecommender or RecToolsRecommender
    task : Task
        Whose users and items are those of all models; this one may know others.

    Attributes
    ----------
    without_list : int
        Users that got no item at all, so far.
    strange_items : int
        Places of lists with an item that the task does not have: misses.
    """

    def __init__(self, name: str, model: Any, task: Task) -> None:
        self.name, self.model, self._task = name, model, task
        self.without_list = self.strange_items = 0
        self._error: LookupError | None = None
        self._asked = 0
        if isinstance(model, RecToolsRecommender):
            for what, given in (("fold_in", task.fold_in), ("candidates", task.candidates)):
                if given is not None:
                    raise ValueError(f"{what} cannot be used with model {name!r}: RecTools has no way to ask for it")
            if task.filter_seen:
                self._check_viewed()
            return
        self._is_alike = is_numbered_alike(model, task.user_ids if task.fold_in is None else None, task.item_ids)
        history = getattr(getattr(model, "fitted", None), "seen", None)
        if task.fold_in is not None or "filter_seen" not in parameters_of(model.recommend):
            history = None  # it is told what the users have
        self._has_other_history = history is not None and not _same_entries(history, task.known)
        self._users, self._items = (np.arange(n) for n in task.train.shape)
        if not self._is_alike:
            self._renumber()
        if self._has_other_history and task.filter_seen:
            self._check_unseen(history)

    def _renumber(self) -> None:
        """Positions of the task's users and items in the model, -1 for those that it does not know."""
        task, places = self._task, []
        if task.fold_in is not None:
            raise DataError(f"fold_in needs models of the items of train; model {self.name!r} has others")
        for side, ids in (("user", task.user_ids), ("item", task.item_ids)):
            own = ids_of(self.model, side)
            if ids is None or own is None:
                raise DataError(
                    f"model {self.name!r} and train must both have {side} ids, or none, to be known to mean the same"
                )
            if own.kind != ids.kind:
                raise DataError(f"the {side} ids of model {self.name!r} are {own.kind}s, those of train {ids.kind}s")
            places.append(np.asarray(own.find(ids.ids), dtype=np.int64))
        self._users, self._items = places

    def _check_unseen(self, history: Any) -> None:
        test = self._task.test.tocoo()
        rows, columns = self._users[test.row], self._items[test.col]
        there = (rows >= 0) & (columns >= 0)
        self._refuse(contains(entry_keys(history), rows[there] * history.shape[1] + columns[there]))

    def _check_viewed(self) -> None:
        """The same of a model of RecTools, by what its dataset has."""
        task, dataset = self._task, self.model.dataset
        n_users, n_items = task.test.shape
        viewed = dataset.get_user_item_matrix(include_weights=False).tocoo()
        rows = _places_of(dataset.user_id_map.external_ids, task.user_ids, n_users)[viewed.row]
        columns = _places_of(dataset.item_id_map.external_ids, task.item_ids, n_items)[viewed.col]
        there = (rows >= 0) & (columns >= 0)
        self._refuse(contains(entry_keys(task.test), rows[there] * n_items + columns[there]))

    def _refuse(self, is_known: NDArray[np.bool_]) -> None:
        if both := int(is_known.sum()):
            raise ValueError(
                f"model {self.name!r} was fitted on {both} of the {self._task.test.nnz} test entries: it would never "
                "recommend them, as the users have them already; test on what no model has seen"
            )

    def lists(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """What it recommends to users of the task: column numbers (b, K), -1 for none."""
        if isinstance(self.model, RecToolsRecommender):
            ask = self._ask_rectools
        elif self._is_alike and not self._has_other_history:
            ask = self._ask_alike
        else:
            ask = self._ask_of_others
        found = self._as_far_as_known(ask, rows)
        self._asked += len(rows)
        self.without_list += int((found < 0).all(axis=1).sum())
        return found

    def _as_far_as_known(
        self, ask: Callable[[NDArray[np.int64]], NDArray[np.int64]], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The lists; empty ones where a model of somebody's own says by an error that it does not know a user."""
        try:
            return ask(rows)
        except LookupError as error:
            if isinstance(error, DataError):
                raise
            self._error = error
            if len(rows) == 1:
                return np.full((1, self._task.length), -1, dtype=np.int64)
            half = len(rows) // 2  # few that it does not know cost few calls
            parts = [self._as_far_as_known(ask, part) for part in (rows[:half], rows[half:])]
            return np.concatenate(parts)

    def _ask_alike(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._task.recommend(self.model, rows)

    def _ask_of_others(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.answers(rows, self._task.length).columns

    def answers(self, rows: NDArray[np.int64], k: int) -> Answers:
        """What a model with a ``recommend`` of its own gives to users of the task, with its scores.

        Parameters
        ----------
        rows : (b,) int64 array
        k : int

        Returns
        -------
        Answers
            Users that it does not know, and has no list for, have an empty one.
        """
        task = self._task
        own_users, own_items = ids_of(self.model, "user"), ids_of(self.model, "item")
        options = task.options_of(self.model)
        known = np.ones(len(rows), dtype=bool)
        if task.fold_in is not None:
            if task.candidates is not None:
                options["allow"] = task.candidates[rows]
            found = self.model.recommend_for(task.fold_in[rows], k, filter_seen=task.filter_seen, **options)
        else:
            takes = parameters_of(self.model.recommend)
            known = self._users[rows] >= 0
            if "unknown" in takes and not known.all():  # it has a list for whom it does not know, too
                known[:] = True
                options["unknown"] = "popular"
            asked = rows[known]
            if not len(asked):
                return Answers(np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), -np.inf), None)
            n_items = task.train.shape[1] if own_items is None else len(own_items)
            if (self._has_other_history or not self._is_alike) and task.filter_seen and "deny" in takes:
                # Of what it does not know that they have.
                options["deny"] = _in_columns(task.known[asked], self._items, n_items)
            if task.candidates is not None:
                options["allow"] = _in_columns(task.candidates[asked], self._items, n_items)
            users = asked if own_users is None or task.user_ids is None else task.user_ids.take(asked)
            found = self.model.recommend(users, k, filter_seen=task.filter_seen, **options)
        ids, own_scores = (as_rectangle(f"the lists of model {self.name!r}", one) for one in found)
        columns, scores = np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), -np.inf)
        columns[known, : ids.shape[1]] = ids if own_items is None else self._columns(ids, own_items)
        scores[known, : ids.shape[1]] = own_scores
        own_source = getattr(found, "source", None)
        if own_source is None:
            return Answers(columns, scores, None)
        sources = np.full(len(rows), "", dtype=object)
        sources[known] = own_source
        return Answers(columns, scores, sources)

    def _columns(self, ids: NDArray[Any], own: Ids) -> NDArray[np.int64]:
        """Columns of the task of items that the model names."""
        columns = columns_of(f"the lists of model {self.name!r}", ids, own, "it")
        place = np.full(len(own) + 1, -1, dtype=np.int64)
        there = self._items >= 0
        place[self._items[there]] = np.flatnonzero(there)
        found: NDArray[np.int64] = place[columns]  # -1 is the last
        self.strange_items += int(((columns >= 0) & (found < 0)).sum())
        return found

    def _ask_rectools(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        task = self._task
        users = rows if task.user_ids is None else np.asarray(task.user_ids.take(rows))
        ids = self.model.recommend(users, task.length, filter_seen=task.filter_seen)
        is_none = ids == np.array(None)
        columns = np.full(ids.shape, -1, dtype=np.int64)
        columns[~is_none] = _places_of(ids[~is_none], task.item_ids, task.train.shape[1])
        self.strange_items += int(((columns < 0) & ~is_none).sum())
        return columns

    def warning(self) -> str | None:
        """What of its answers was missing, when all users were asked.

        Raises
        ------
        LookupError
            It had no list for anybody, and said so by an error.
        """
        if self._error is not None and self.without_list == self._asked:
            raise self._error
        said = []
        if self.without_list:
            said.append(
                f"model {self.name!r} has no list for {self.without_list:,} of {self._asked:,} users: they count as "
                "empty lists"
            )
        if self.strange_items:
            said.append(
                f"model {self.name!r} recommends items that train does not have, in {self.strange_items:,} places: "
                "these are misses"
            )
        return "; ".join(said) or None


def _places_of(names: NDArray[Any], ids: Ids | None, n: int) -> NDArray[np.int64]:
    """Numbers (m,) of users or items of the task, by what RecTools calls them; -1 where it has none such."""
    if ids is None:
        return np.array([name if 0 <= name < n else -1 for name in names.tolist()], dtype=np.int64)
    return np.asarray(ids.find(names), dtype=np.int64)


def _same_entries(one: Any, other: csr_matrix) -> bool:
    """Whether two matrices have their entries in the same places; the values do not matter."""
    return (
        one.shape == other.shape
        and one.nnz == other.nnz
        and np.array_equal(one.indptr, other.indptr)
        and np.array_equal(one.indices, other.indices)
    )


def _in_columns(matrix: csr_matrix, place: NDArray[np.int64], n_columns: int) -> csr_matrix:
    """A matrix with its columns at other places; those without one (-1) are left out."""
    columns = place[matrix.indices]
    keep = columns >= 0
    ends = np.concatenate([[0], np.cumsum(keep)])[matrix.indptr]
    moved = csr_matrix((matrix.data[keep], columns[keep], ends), shape=(matrix.shape[0], n_columns))
    moved.sort_indices()
    return moved
