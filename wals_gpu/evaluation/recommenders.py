"""Who can be measured: models of this package, of implicit's signature, and anything with a ``recommend``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.data.ids import Ids, plain
from wals_gpu.errors import DataError

__all__ = [
    "AnyRecommender",
    "ImplicitRecommender",
    "RecToolsRecommender",
    "Recommender",
    "as_rectangle",
    "columns_of",
    "ids_of",
    "parameters_of",
    "recommend",
    "speaks_rectools",
]


class Recommender(Protocol):
    """What :func:`.evaluate` needs of a model: WALS, :class:`.Popularity`, or anything of your own."""

    def recommend(self, users: Any, k: int = 10, *, filter_seen: bool = True) -> tuple[NDArray[Any], NDArray[Any]]: ...

    def recommend_for(
        self, interactions: Any, k: int = 10, *, filter_seen: bool = True
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...


class ImplicitRecommender(Protocol):
    """The same in implicit's words: its models, and :class:`wals_gpu.als.AlternatingLeastSquares`."""

    def recommend(
        self, userid: Any, user_items: Any, N: int = 10, filter_already_liked_items: bool = True
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...


AnyRecommender: TypeAlias = Recommender | ImplicitRecommender


class RecToolsRecommender:
    """A model of RecTools with the ``Dataset`` that it recommends from.

    Parameters
    ----------
    model : rectools.models.ModelBase
        Fitted.
    dataset : rectools.dataset.Dataset
        What it was fitted on.
    """

    def __init__(self, model: Any, dataset: Any) -> None:
        if not hasattr(dataset, "user_id_map"):
            raise TypeError(
                f"a model of RecTools stands in a pair with its Dataset, (model, dataset); got {dataset!r:.60}"
            )
        self.model, self.dataset = model, dataset

    @property
    def n_items(self) -> int:
        """Items of the dataset."""
        return len(self.dataset.item_id_map.external_ids)

    def recommend(self, users: NDArray[Any], k: int, *, filter_seen: bool = True) -> NDArray[Any]:
        """Lists (B, k) of item ids for different users, by id; None where there is no item, or no list at all."""
        found = self.model.recommend(
            users=users, dataset=self.dataset, k=k, filter_viewed=filter_seen, on_unsupported_targets="ignore"
        )
        place = {user: row for row, user in enumerate(users.tolist())}
        lists = np.full((len(users), k), None, dtype=object)
        rows = np.array([place[user] for user in found["user_id"].tolist()], dtype=np.int64)
        lists[rows, found["rank"].to_numpy() - 1] = found["item_id"].to_numpy(dtype=object)
        return lists


def speaks_rectools(model: Any) -> bool:
    """Whether a model recommends from a dataset, as those of RecTools do."""
    return {"users", "dataset", "filter_viewed"} <= set(parameters_of(getattr(model, "recommend", None)))


def ids_of(model: Any, side: str) -> Ids | None:
    """The ids of a side ("user", "item") that a model takes and gives; None: row numbers."""
    ids = getattr(model, f"{side}_ids", None)
    return ids if isinstance(ids, Ids) else None


def recommend(
    model: Any,
    rows: NDArray[np.int64],
    k: int,
    *,
    known: csr_matrix,
    is_fold_in: bool,
    filter_seen: bool,
    allow: csr_matrix | None = None,
    options: Mapping[str, Any] | None = None,
) -> NDArray[np.int64]:
    """What a model recommends to some users: column numbers (B, k), -1 where no item is left.

    Parameters
    ----------
    model : AnyRecommender
        It is asked by its own ids, where it has some.
    rows : (B,) int64 array
        Of `known`.
    k : int
    known : (U, I) csr_matrix
        What the users are known by: the training data, or with `is_fold_in` those of new users.
    is_fold_in : bool
        Whether the model has not seen the users, and is to be told of them.
    filter_seen : bool
    allow : (B, I) csr_matrix, optional
        The only items of each user.
    options : mapping, optional
        Further arguments for the model.

    Raises
    ------
    DataError
        If an item that it recommends is not one of its own.
    """
    if _speaks_implicit(model):
        ids = _ask_implicit(model, rows, k, known, is_fold_in, filter_seen, allow)
    else:
        more = dict(options or {}) | ({} if allow is None else {"allow": allow})
        if is_fold_in:
            ids = _ids_of_pair(model, model.recommend_for(known[rows], k, filter_seen=filter_seen, **more))
        else:
            user_ids = ids_of(model, "user")
            users = rows if user_ids is None else user_ids.take(rows)
            ids = _ids_of_pair(model, model.recommend(users, k, filter_seen=filter_seen, **more))
    item_ids = ids_of(model, "item")
    ids = as_rectangle(f"the lists of {type(model).__name__}", ids)
    columns = ids if item_ids is None else columns_of("the lists of the model", ids, item_ids, "it")
    if columns.ndim == 2 and columns.dtype.kind in "iu" and columns.shape[1] < k:  # there are fewer items than that
        columns = np.pad(columns.astype(np.int64), ((0, 0), (0, k - columns.shape[1])), constant_values=-1)
    return columns


def _ids_of_pair(model: Any, answer: Any) -> Any:
    try:
        ids, _ = answer
    except (TypeError, ValueError):
        raise TypeError(
            f"what {type(model).__name__} recommends must be a pair (ids, scores), (B, k) each; got {answer!r:.60}"
        ) from None
    return ids


def columns_of(name: str, ids: ArrayLike, item_ids: Ids, whose: str) -> NDArray[np.int64]:
    """Column numbers of items given by id; -1 for None, and for -1 where that is no id.

    Raises
    ------
    DataError
        If an item is unknown, or of another kind than the ids.
    """
    labels = np.asarray(ids)
    if labels.dtype.kind in "iu" and item_ids.kind == "integer":
        columns, is_none = np.asarray(item_ids.find(labels)), labels == -1
    else:
        labels = np.asarray(ids, dtype=object)
        is_none = labels == np.array(None)
        columns = np.full(labels.shape, -1, dtype=np.int64)
        try:
            columns[~is_none] = item_ids.find(labels[~is_none])
        except TypeError as error:
            raise DataError(f"{name} must hold the item ids of {whose}: {error}") from error
        if item_ids.kind == "integer":
            is_none = is_none | (labels == -1)
    unknown = (columns < 0) & ~is_none
    if unknown.any():
        example = labels[unknown].flat[0]
        raise DataError(
            f"{name} must hold the item ids of {whose}, but {int(unknown.sum())} of {labels.size} are none of these, "
            f"such as {plain(example)!r}"
        )
    return columns


def parameters_of(method: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a method; none where Python does not know them."""
    try:
        return inspect.signature(method).parameters
    except (TypeError, ValueError):
        return {}


def _speaks_implicit(model: Any) -> bool:
    return {"userid", "user_items"} <= set(parameters_of(getattr(model, "recommend", None)))


def _ask_implicit(
    model: Any,
    rows: NDArray[np.int64],
    k: int,
    known: csr_matrix,
    is_fold_in: bool,
    filter_seen: bool,
    allow: csr_matrix | None,
) -> NDArray[Any]:
    if allow is not None:
        raise ValueError(
            "candidates need a model whose recommend takes allow=, a matrix with the items of each user; "
            f"{type(model).__name__}.recommend has implicit's signature, which has none"
        )
    user_items = known[rows]
    if is_fold_in:
        answer = model.recommend(
            np.arange(len(rows)), user_items, N=k, filter_already_liked_items=filter_seen, recalculate_user=True
        )
    else:
        answer = model.recommend(rows, user_items, N=k, filter_already_liked_items=filter_seen)
    ids, scores = np.asarray(answer[0]), np.asarray(answer[1])
    # Items that were to be left out are still there, at the end, with the lowest score there is.
    if scores.dtype.kind == "f":
        ids = np.where(scores <= np.finfo(scores.dtype).min, -1, ids)
    return ids


def as_rectangle(name: str, lists: ArrayLike) -> NDArray[Any]:
    """Lists as an array; a plain error where they are of different lengths."""
    try:
        return np.asarray(lists)
    except ValueError as error:
        raise ValueError(f"{name} must be lists of one length (B, K); fill short ones up with -1 or None") from error
