"""How much the lists of recommendations of one model differ from those of another: what people notice of a new one.

Of a user with the lists ``a`` (old) and ``b`` (new), of the k best items each, and their beginnings ``a_d``, ``b_d`` of
the d best:

==================  =================================================================================================
``changed``         ``1 - |a & b| / n``, n the number of items in the longer list: the share of the list that is new
``overlap``         rank-biased overlap with the persistence p = 0.9 (Webber, Moffat and Zobel, "A Similarity Measure
                    for Indefinite Rankings", 2010), extrapolated from n items, their equation 30:
                    ``p^n |a & b| / n + (1 - p) / p  sum of p^d |a_d & b_d| / d, d = 1 .. n``: 1 for equal lists, 0
                    for lists with nothing in common; the first ten places have 86 % of the weight
``users_changed``   1 where the list is not the same, item by item
``first_changed``   1 where the first item is not the same
==================  =================================================================================================

Each is a mean over users. ``new_items`` is of all lists together: of the different items in new lists, the share that
is in no old one. Users for whom both lists are empty count as unchanged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag, integer, refuse_other, seed
from wals_gpu.data.ids import Ids, row_numbers
from wals_gpu.data.tables import format_table, html_table
from wals_gpu.errors import DataError
from wals_gpu.evaluation.all_users import HERE, AllUsers, drawn_here
from wals_gpu.evaluation.metrics import places_of, users_at_once
from wals_gpu.evaluation.recommenders import Recommender, ids_of, parameters_of, recommend

__all__ = ["Churn", "churn"]

#: Of rank-biased overlap: how probable it is that who looks at an item looks at the next one, too.
PERSISTENCE = 0.9

_NOTHING = csr_matrix((0, 0), dtype=np.float32)  # models that know their users need not be told


@dataclass(frozen=True)
class Churn:
    """What :func:`churn` found; the module's text has the formulas.

    Attributes
    ----------
    k : int
        Length of the lists.
    users : int
        How many users' lists were compared.
    changed, overlap, users_changed, first_changed : float
        From 0 to 1, means over the users.
    new_items : float
        From 0 to 1.
    """

    k: int
    users: int
    changed: float
    overlap: float
    users_changed: float
    first_changed: float
    new_items: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return asdict(self)

    def _rows(self) -> list[list[Any]]:
        return [
            [f"of the first {self.k}, new to the user", f"{self.changed:.1%}"],
            ["rank-biased overlap", f"{self.overlap:.3f}"],
            ["users with another list", f"{self.users_changed:.1%}"],
            ["users with another first item", f"{self.first_changed:.1%}"],
            ["items that nobody was shown before", f"{self.new_items:.1%}"],
        ]

    def __str__(self) -> str:
        return format_table(["churn", f"{self.users:,} users"], self._rows())

    def _repr_html_(self) -> str:
        return html_table(["churn", f"{self.users:,} users"], self._rows())


def churn(
    old: Recommender,
    new: Recommender,
    users: ArrayLike | None = None,
    k: int = 20,
    *,
    sample: int | None = 1000,
    random_state: int | np.random.Generator = 0,
    filter_seen: bool = True,
    everyone: AllUsers = HERE,
) -> Churn:
    """How much the lists that users get change from one model to another.

    Part of it is no change of mind: with `filter_seen`, what somebody has since taken leaves their list, and another
    item moves up.

    Parameters
    ----------
    old, new : WALS, or any Recommender
        Fitted models, each with ids of its own order, or both without ids: then by row and column numbers.
    users : (B,) list or array of ids, optional
        Whom to compare for; both must know them. Default: all users that both know.
    k : int, default 20
        Length of the lists.
    sample : int, optional, default 1000
        At most so many users, drawn without replacement; None: all.
    random_state : int or Generator, default 0
        Seed of the draw.
    filter_seen : bool, default True
        Whether lists leave out what the user has, each by its own model's interactions.
    everyone : AllUsers, optional
        Where both models have some of the users, the same ones: who has the others. For fits on several ranks.

    Returns
    -------
    Churn

    Raises
    ------
    DataError
        One model has ids and the other none, or of another kind; a user is unknown to one of them; or there is no user
        whom both know.
    """
    k = integer("k", k, 1)
    filter_seen = flag("filter_seen", filter_seen)
    for name, model in (("old", old), ("new", new)):
        refuse_other(name, model, "a fitted model", "recommend")
        if "user_items" in parameters_of(getattr(model, "recommend", None)):
            raise TypeError(f"{name} must be a model that knows its users, such as a WALS; {model!r:.60} is to be told")
    if sample is not None:
        sample = integer("sample", sample, 1)
    drawn_by = seed("random_state", random_state)
    rows = everyone.alone(lambda: _rows_of_both(old, new, users))
    n = everyone.place(len(rows[0]))[1]
    if not n:
        raise DataError("there is no user whom both models know, so no lists to compare")
    if sample is not None and n > sample:
        chosen = drawn_here(everyone, len(rows[0]), sample, drawn_by)
        rows, n = (rows[0][chosen], rows[1][chosen]), sample

    def compared() -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
        """Sums over the users who are here, and the items that they are shown by the old and by the new model."""
        places, totals = _common_columns(old, new), np.zeros(4)
        length = min(k, max(len(of_model) for of_model in places))
        step = users_at_once(length)
        shown: list[list[NDArray[np.int64]]] = [[], []]
        for start in range(0, len(rows[0]), step):
            lists = []
            for model, own, place, seen in zip((old, new), rows, places, shown, strict=True):
                of_batch = own[start : start + step]
                found = recommend(model, of_batch, length, known=_NOTHING, is_fold_in=False, filter_seen=filter_seen)
                lists.append(np.where(found >= 0, place[found], -1)[:, :length])
                seen.append(np.unique(lists[-1]))
            totals += _sums(lists[0], lists[1])
        return totals, [np.unique(np.concatenate([np.empty(0, np.int64), *parts])) for parts in shown]

    own_totals, own_items = everyone.alone(compared)
    totals = everyone.total(own_totals)
    before, after = (np.unique(everyone.gather(items)) for items in own_items)
    before, after = before[before >= 0], after[after >= 0]
    fresh = 1 - float(np.isin(after, before).mean()) if len(after) else 0.0
    changed, overlap, users_changed, first_changed = (totals / n).tolist()
    return Churn(k, n, changed, overlap, users_changed, first_changed, fresh)


def _sums(old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of changed, overlap, users_changed and first_changed over users, from two arrays (B, k) of items, -1 for none."""
    k = old.shape[1]
    there_old, there_new = old >= 0, new >= 0
    place = places_of(old, new, max(int(old.max(initial=0)), int(new.max(initial=0))) + 1)
    # A common item counts from the depth on where both lists have had it.
    depth = np.maximum(place, np.arange(k))
    rows, columns = np.nonzero(there_old & (place < k))
    at_depth = np.zeros((len(old), k))
    np.add.at(at_depth, (rows, depth[rows, columns]), 1)
    common = at_depth.cumsum(axis=1)  # |a_d & b_d|
    longest = np.maximum(there_old.sum(axis=1), there_new.sum(axis=1))
    some, ranks = longest > 0, np.arange(1, k + 1)
    n = np.maximum(longest, 1)
    share = np.where(some, common[:, -1] / n, 1.0)
    weights = np.where(ranks <= longest[:, None], PERSISTENCE**ranks / ranks, 0.0)
    overlap = PERSISTENCE**n * share + (1 - PERSISTENCE) / PERSISTENCE * (weights * common).sum(axis=1)
    return np.array(
        [
            (1 - share).sum(),
            np.where(some, overlap, 1.0).sum(),
            (old != new).any(axis=1).sum(),
            (old[:, 0] != new[:, 0]).sum(),
        ],
        dtype=np.float64,
    )


def _rows_of_both(old: Any, new: Any, users: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the same users in both models."""
    ids = _pair_of_ids(old, new, "user")
    if users is not None:
        rows = []
        for name, model, own in zip(("old", "new"), (old, new), ids or (None, None), strict=True):
            try:
                rows.append(row_numbers(users, own, _n_users(model) if own is None else len(own), "user")[0])
            except (KeyError, IndexError, TypeError) as error:
                raise DataError(f"users must be users of both models; the {name} one: {error.args[0]}") from error
        if not len(rows[0]):
            raise DataError("users must name somebody, got none")
        return rows[0], rows[1]
    if ids is None:
        both = np.arange(min(_n_users(old), _n_users(new)))
        pair = both, both
    else:
        place = np.asarray(ids[0].find(ids[1].ids))
        pair = place[place >= 0], np.flatnonzero(place >= 0)
    return pair


def _common_columns(old: Any, new: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A number for each item of the old and of the new model, the same where it is the same item."""
    ids = _pair_of_ids(old, new, "item")
    if ids is None:
        return np.arange(_n_items(old)), np.arange(_n_items(new))
    place = np.asarray(ids[0].find(ids[1].ids))
    return np.arange(len(ids[0])), np.where(place >= 0, place, len(ids[0]) + np.arange(len(place)))


def _pair_of_ids(old: Any, new: Any, side: str) -> tuple[Ids, Ids] | None:
    first, second = ids_of(old, side), ids_of(new, side)
    if (first is None) != (second is None):
        raise DataError(f"one of the models has {side} ids and the other none, so they cannot be compared")
    if first is None or second is None:
        return None
    if first.kind != second.kind and len(first) and len(second):
        raise DataError(f"the {side} ids of the old model are {first.kind}s, those of the new one {second.kind}s")
    return first, second


def _n_users(model: Any) -> int:
    return _shape(model)[0]


def _n_items(model: Any) -> int:
    return _shape(model)[1]


def _shape(model: Any) -> tuple[int, int]:
    sides = [getattr(getattr(model, f"{side}_factors", None), "shape", None) for side in ("user", "item")]
    if sides[0] is None or sides[1] is None:
        raise DataError(f"a model without ids must have factors, whose rows are its users and items, got {model!r:.60}")
    return sides[0][0], sides[1][0]
