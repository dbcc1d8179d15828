"""The data of an evaluation: whom to recommend to, and what is relevant to them, in one numbering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag
from wals_gpu.data.csr import contains, entry_keys, entry_rows, select
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames
from wals_gpu.data.matching import is_table, read_like
from wals_gpu.errors import DataError
from wals_gpu.evaluation.metrics import directions_of, relevant_entries, surprise_of
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.recommenders import RecToolsRecommender, ids_of, parameters_of, recommend

__all__ = ["Task", "is_numbered_alike"]


@dataclass(frozen=True)
class Task:
    """U training users, H rows of `test` (U of them without `fold_in`), V users with a relevant item."""

    train: csr_matrix  # (U, I)
    test: csr_matrix  # (H, I), relevant entries only
    fold_in: csr_matrix | None  # (H, I)
    candidates: csr_matrix | None  # (H, I)
    filter_seen: bool
    ks: list[int]
    users: NDArray[np.int64]  # (V,) row numbers of test
    surprise: NDArray[np.float64]  # (I,)
    directions: NDArray[np.floating] | None  # (I, E) of items, to tell how much they differ
    options: Mapping[str, Any]  # for the models that take them
    models: Mapping[str, Any]  # that are measured
    user_ids: Ids | None  # of the rows of test
    item_ids: Ids | None
    dropped: int  # entries of test that are of an unknown user or item
    dropped_ids: str  # these, in words

    @classmethod
    def make(
        cls,
        models: Mapping[str, Any],
        train: Any,
        test: Any,
        fold_in: Any,
        candidates: Any,
        filter_seen: bool,
        ks: list[int],
        cold_users: str | None,
        columns: Mapping[str, Any],
        *,
        by_train: bool = False,
        vectors: Any = None,
        more: Mapping[str, Any] | None = None,
    ) -> Task:
        """Read and check everything; :func:`.evaluate` documents the arguments.

        `by_train`: the users and items are those of `train`, where it has ids, and not those of the models, which may
        have different ones.
        """
        filter_seen = flag("filter_seen", filter_seen)
        method = "recommend" if fold_in is None else "recommend_for"
        for model in models.values():
            if isinstance(model, type) or not (hasattr(model, method) or hasattr(model, "recommend")):
                raise TypeError(f"model must be a fitted model with {method}(...), such as a WALS, got {model!r:.60}")
        options = _options(models, fold_in is not None, cold_users, more)
        first = next(iter(models.values()))
        user_ids, item_ids = ids_of(first, "user"), ids_of(first, "item")
        if by_train:
            user_ids, item_ids = _common_ids(models, train, columns)
        whose = "train" if by_train or (user_ids is None and item_ids is None) else "the model"
        if fold_in is not None:
            user_ids = None  # of other people
        remembered = getattr(first, "columns_", None)
        like: ColumnNames | None = remembered if isinstance(remembered, ColumnNames) else None
        known = read_like("train", train, user_ids, item_ids, whose, columns, like=like, drop=False, is_part=False).data
        item_ids = known.item_ids if item_ids is None else item_ids
        user_ids = known.user_ids if user_ids is None else user_ids
        like = like if known.columns is None else known.columns
        if fold_in is not None:
            _need_ids("fold_in", fold_in, item_ids)
            folded = read_like("fold_in", fold_in, None, item_ids, whose, columns, like=like).data
            fold_in, user_ids = folded.matrix, folded.user_ids
            if user_ids is not None:
                whose = f"{whose} or fold_in"
        _need_ids("test", test, item_ids, user_ids)
        matched = read_like("test", test, user_ids, item_ids, whose, columns, like=like)
        relevant = relevant_entries(matched.data)
        for model in models.values():
            if not by_train or is_numbered_alike(model, user_ids if fold_in is None else None, item_ids):
                _check_shapes(model, known.matrix, relevant, fold_in)
        if filter_seen:
            _check_unseen(known.matrix if fold_in is None else fold_in, relevant)
        users = np.flatnonzero(np.diff(relevant.indptr))
        if matched.data.matrix.nnz == 0:
            raise ValueError("test has no entry, so there is nothing to measure")
        if users.size == 0:
            raise ValueError("test has no user with a value above 0, so there is nothing to measure")
        if candidates is not None:
            _need_ids("candidates", candidates, item_ids, user_ids)
            columns = {**columns, "value_column": False, "min_value": None} if is_table(candidates) else columns
            candidates = read_like("candidates", candidates, user_ids, item_ids, whose, columns, like=like).data.matrix
            if candidates.shape != relevant.shape:
                raise ValueError(f"candidates must have the shape of test, {relevant.shape}, got {candidates.shape}")
        surprise = surprise_of(relevant_entries(known, "train"), relevant.shape[1])
        vectors = _item_factors(models, item_ids, relevant.shape[1]) if vectors is None else vectors
        directions = None if vectors is None else directions_of(vectors, relevant.shape[1])
        rest = (surprise, directions, options, models, user_ids, item_ids, matched.dropped, matched.unknown)
        return cls(known.matrix, relevant, fold_in, candidates, filter_seen, ks, users, *rest)

    @property
    def known(self) -> csr_matrix:
        """(H, I): what the users are known by."""
        return self.train if self.fold_in is None else self.fold_in

    @property
    def length(self) -> int:
        """K: of the longest lists, which no model has more items for."""
        most: int = self.train.shape[1]
        for model in self.models.values():
            ids = ids_of(model, "item")
            if isinstance(model, RecToolsRecommender):
                most = max(most, model.n_items)
            elif ids is not None:
                most = max(most, len(ids))
        return int(min(max(self.ks), most))

    def is_cold(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of `test` are known by nothing (b,)."""
        ends = self.known.indptr
        cold: NDArray[np.bool_] = ends[rows] == ends[rows + 1]
        return cold

    def cohorts(self, few: int | None) -> dict[str, csr_matrix]:
        """The relevant entries that belong to each cohort, of which there are some.

        Known and cold users where there are cold ones; with `few` also by the number of entries, and of items.
        """
        of_user = np.diff(self.known.indptr)[entry_rows(self.test)]
        masks = {"known users": of_user > 0, "cold users": of_user == 0} if (of_user == 0).any() else {}
        if few is not None:
            of_item = np.bincount(self.train.indices, minlength=self.train.shape[1])[self.test.indices]
            for side, n in (("users", of_user), ("items", of_item)):
                masks |= {
                    f"cold {side}": n == 0,
                    f"few-shot {side}": (n > 0) & (n <= few),
                    f"warm {side}": n > few,
                }
        return {name: select(self.test, mask) for name, mask in masks.items() if mask.any()}

    def popular(self, popularity: Popularity, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The most popular items for some rows of `test`, of those that they may get: (b, K), -1 for none."""
        allow = None if self.candidates is None else self.candidates[rows]
        return popularity.recommend_for(self.known[rows], self.length, filter_seen=self.filter_seen, allow=allow)[0]

    def recommend(self, model: Any, rows: NDArray[np.int64]) -> NDArray[Any]:
        """What a model recommends to some rows of `test`: column numbers (b, K), -1 for none."""
        return recommend(
            model,
            rows,
            self.length,
            known=self.known,
            is_fold_in=self.fold_in is not None,
            filter_seen=self.filter_seen,
            allow=None if self.candidates is None else self.candidates[rows],
            options=self.options_of(model),
        )

    def options_of(self, model: Any) -> dict[str, Any]:
        """Those of the options that a model takes; the baseline, which nobody named, takes none."""
        if not any(model is one for one in self.models.values()):
            return {}
        takes = parameters_of(getattr(model, "recommend" if self.fold_in is None else "recommend_for", None))
        return {name: value for name, value in self.options.items() if name in takes}


def is_numbered_alike(model: Any, user_ids: Ids | None, item_ids: Ids | None) -> bool:
    """Whether a model takes and gives row and column numbers of a task with these ids, or the same ids."""
    if isinstance(model, RecToolsRecommender):
        return False
    pairs = ((ids_of(model, "user"), user_ids), (ids_of(model, "item"), item_ids))
    return all(own is None or known is None or own == known for own, known in pairs)


def _common_ids(models: Mapping[str, Any], train: Any, columns: Mapping[str, Any]) -> tuple[Ids | None, Ids | None]:
    """The ids that several models are compared by where `train` has none of its own: theirs, if they are the same."""
    given = getattr(train, "user_ids", None), getattr(train, "item_ids", None)
    if is_table(train) or any(ids is not None for ids in given):
        return None, None  # those that train is read with
    found: list[Ids | None] = []
    for side in ("user", "item"):
        of_models = {name: ids for name, model in models.items() if (ids := ids_of(model, side)) is not None}
        first = next(iter(of_models), None)
        if first is not None and (others := [name for name in of_models if of_models[name] != of_models[first]]):
            raise DataError(
                f"train must have ids, as a table or Interactions has them: {first!r} and {others[0]!r} have different "
                f"{side} ids, and the rows and columns of a matrix are those of one of them only"
            )
        found.append(None if first is None else of_models[first])
    return found[0], found[1]


def _options(
    models: Mapping[str, Any], is_fold_in: bool, cold_users: str | None, more: Mapping[str, Any] | None
) -> dict[str, Any]:
    method = "recommend_for" if is_fold_in else "recommend"
    if not isinstance(more, (Mapping, type(None))):
        raise TypeError(f"options must be a dict of arguments of recommend by name, got {more!r:.60}")
    options = dict(more or {}) | ({} if cold_users is None else {"cold_users": cold_users})
    for name, value in options.items():
        if name in ("users", "interactions", "k", "filter_seen", "allow", "deny", "unknown", "output"):
            raise TypeError(f"options must not have {name!r}, which evaluate itself gives to the model")
        if not any(name in parameters_of(getattr(model, method, None)) for model in models.values()):
            given = f"{name}={value!r:.60}"
            raise TypeError(f"{given} needs a model whose {method} takes {name}=; this one does not")
    return options


def _item_factors(models: Mapping[str, Any], item_ids: Ids | None, n_items: int) -> NDArray[np.floating] | None:
    """The vectors of items of the first model that has such in this computer's memory, of the items of the task."""
    for model in models.values():
        factors = getattr(model, "item_factors", None)
        if not isinstance(factors, np.ndarray) or factors.ndim != 2 or factors.dtype.kind != "f":
            continue
        if len(factors) == n_items and is_numbered_alike(model, None, item_ids) and np.isfinite(factors).all():
            return factors
    return None


def _need_ids(name: str, data: Any, *ids: Any) -> None:
    if is_table(data) and any(each is None for each in ids):
        raise TypeError(
            f"{name} must be a matrix, as there are no ids to read a table with: the model was fitted on a matrix, and "
            "train is one; fit the model on a table, or on what as_interactions makes of it"
        )


def _check_shapes(model: Any, train: csr_matrix, test: csr_matrix, fold_in: csr_matrix | None) -> None:
    known = train if fold_in is None else fold_in
    expected = (known.shape[0], train.shape[1])
    if test.shape != expected or known.shape != expected:
        what = "train" if fold_in is None else "fold_in and the columns of train"
        raise ValueError(f"test must have shape {expected} as {what}, got {test.shape}")
    for side, axis, word in (("user", 0, "rows"), ("item", 1, "columns")):
        # Of implicit's models on a GPU they are no arrays, but have a shape.
        shape: Any = getattr(getattr(model, f"{side}_factors", None), "shape", ())
        if len(shape) == 2 and shape[0] != train.shape[axis] and not (side == "user" and fold_in is not None):
            raise ValueError(f"model was fitted on {shape[0]} {side}s, but train has {train.shape[axis]} {word}")


def _check_unseen(known: csr_matrix, test: csr_matrix) -> None:
    if both := int(contains(entry_keys(known), entry_keys(test)).sum()):
        raise ValueError(
            f"{both} test entries are among the user's seen items, which filter_seen=True never recommends; "
            "use disjoint data or filter_seen=False"
        )
