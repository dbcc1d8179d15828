"""Today's model and yesterday's on the same held-out interactions, which neither has learned from.

What is held out is new to yesterday's model twice over: the pair of user and item is not among its interactions, and
where both have times, it is later than the last of these. Of what is new, the latest share is held out (without times,
one by chance); today's model learns from the rest, as it would have some time before. Then both recommend to the same
users, those that both know, leave out the same items, all that either has of the user, and are asked for the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.data.csr import contains, entry_keys, entry_rows, select
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions
from wals_gpu.errors import DataError
from wals_gpu.evaluation.all_users import HERE, AllUsers, drawn_here
from wals_gpu.evaluation.metrics import in_batches, relevant_entries, row_metrics
from wals_gpu.evaluation.popularity import Popularity, item_counts
from wals_gpu.evaluation.recommenders import columns_of
from wals_gpu.evaluation.resampling import Estimate, bootstrap_interval
from wals_gpu.model.wals import WALS
from wals_gpu.training.validation import parse_metric

__all__ = ["Comparison", "HeldOut", "NothingNewError", "compare", "hold_out"]

#: Users whose lists are measured, at most: the interval of a mean over so many is a few thousandths wide.
MOST_USERS = 100_000
#: The share of what is new that is held out; without a model before, all is new, and less is enough.
USUAL, USUAL_OF_ALL = 0.5, 0.1


class NothingNewError(ValueError):
    """Two models cannot be compared: there is nothing that neither has learned from."""


@dataclass(frozen=True)
class HeldOut:
    """Interactions in two parts, of the same users and items.

    Parameters
    ----------
    rest : Interactions
        What today's model learns from, to be compared.
    test : (U, I) csr_matrix
        What is asked for.
    known : (U, I) csr_matrix
        What either model has of each user, in the numbering of the interactions: not to be recommended.
    new : int
        Interactions that are new to yesterday's model; without one, all.
    by : str
        "time" or "chance".
    entries : int
        Interactions that are held out.
    keep : (Z,) bool
        Which interactions the rest is.

    Of users who are not all here, `rest`, `test`, `known` and `keep` are of those who are, the numbers of all.
    """

    rest: Interactions
    test: csr_matrix
    known: csr_matrix
    new: int
    by: str
    entries: int
    keep: NDArray[np.bool_]


def hold_out(
    data: Interactions, yesterday: WALS | None, share: float | None, seed: int, everyone: AllUsers = HERE
) -> HeldOut:
    """Hold out a part of what is new.

    Parameters
    ----------
    data : Interactions
        Canonical, of today.
    yesterday : WALS, optional
    share : float, optional
        Of what is new, in (0, 1). Default: 0.5, or without a model before 0.1.
    seed : int
        Of the draw, where there are no times.
    everyone : AllUsers, optional
        Where `data` has some of the users, and `yesterday` those of its users who may be among them.

    Raises
    ------
    DataError
        The ids or the times of the two are of different kinds.
    NothingNewError
        There is nothing new; or nothing would be left to learn from.
    """
    matrix, n_entries = data.matrix, everyone.total(data.matrix.nnz)
    known, new = everyone.alone(lambda: _known_and_new(data, yesterday))
    _, n_new = everyone.place(len(new))
    if not n_new:
        if yesterday is None:
            raise NothingNewError(f"none of the {n_entries:,} interactions has a value above 0, so none can be found")
        later = "" if yesterday.period_ is None else f", and later than {yesterday.period_.last}"
        raise NothingNewError(
            f"there is nothing to compare with: of {n_entries:,} interactions none is new to the model before (of a "
            f"user and an item that it has no interaction of{later})"
        )
    share = (USUAL_OF_ALL if yesterday is None else USUAL) if share is None else share
    wanted = max(round(share * n_new), 1)
    held_out = np.zeros(matrix.nnz, bool)
    if data.times is not None:
        times = np.asarray(data.times)[new]
        held_out[new[times >= everyone.cutoff(times, wanted)]] = True
    else:
        held_out[new[drawn_here(everyone, len(new), wanted, seed)]] = True
    n_held_out = int(everyone.total(np.count_nonzero(held_out)))
    if n_held_out == n_entries:
        raise NothingNewError(
            f"all of the {n_entries:,} interactions would be held out and none would be left to learn from"
        )
    keep = ~held_out
    rest = replace(data, matrix=select(matrix, keep), times=None if data.times is None else data.times[keep])
    of_rest = csr_matrix((np.ones(rest.matrix.nnz, bool), rest.matrix.indices, rest.matrix.indptr), shape=matrix.shape)
    known = known + of_rest  # stored zeros too: they are not recommended either
    by = "chance" if data.times is None else "time"
    test = relevant_entries(select(matrix, held_out))
    return HeldOut(rest, test, csr_matrix(known), n_new, by, n_held_out, keep)


def _known_and_new(data: Interactions, yesterday: WALS | None) -> tuple[csr_matrix, NDArray[np.int64]]:
    """What yesterday's model has of the users (U, I), and which interactions are new to it and can be found."""
    matrix = data.matrix
    is_new, known = np.ones(matrix.nnz, bool), csr_matrix(matrix.shape, dtype=bool)
    if yesterday is not None:
        known = _in_numbering(yesterday, data)
        is_new = ~contains(entry_keys(known), entry_keys(matrix))
        if data.times is not None and yesterday.period_ is not None:
            try:
                is_new &= yesterday.period_.is_before(data.times)
            except TypeError as error:
                raise DataError(
                    f"the interactions cannot be compared with those of the model before: {error}"
                ) from error
    is_new &= matrix.data > 0  # what counts as found
    return known, np.flatnonzero(is_new)


def _in_numbering(model: WALS, data: Interactions) -> csr_matrix:
    """The interactions that a model was fitted on, as far as they are of users and items of the data (U, I)."""
    seen = csr_matrix(model.fitted.seen)
    places = []
    sides = ((data.user_ids, model.user_ids, entry_rows(seen)), (data.item_ids, model.item_ids, seen.indices))
    for axis, (ids, own, index) in enumerate(sides):
        if (ids is None) != (own is None):
            raise DataError("the interactions have ids and the model before none, or the reverse: they do not compare")
        place = np.where(index < data.matrix.shape[axis], index, -1) if ids is None else _find(ids, own)[index]
        places.append(place)
    rows, cols = places
    keep = (rows >= 0) & (cols >= 0)
    found = csr_matrix((np.ones(int(keep.sum()), bool), (rows[keep], cols[keep])), shape=data.matrix.shape)
    found.sort_indices()
    return found


def _find(ids: Ids, own: Ids | None) -> NDArray[np.int64]:
    """Where the ids of a model are among those of the data, -1 for nowhere."""
    assert own is not None
    if ids.kind != own.kind:
        raise DataError(
            f"the {ids.side} ids of the interactions are {ids.kind}s, those of the model before {own.kind}s"
        )
    return np.asarray(ids.find(own.ids), dtype=np.int64)


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Parameters
    ----------
    values : dict of metric to dict of name to Estimate
        Of "candidate", "popularity" and, where there is one, "yesterday" and the "difference" of both, with 95 %
        intervals; that of the difference is of the same users' differences.
    users, entries : int
        Whose lists were measured, and what they were asked for.
    unknown_users : int
        Users with held-out interactions who are new to one of the models, and left out.
    unknown_items : int
        Held-out interactions with items that are new to today's model too, and left out.
    """

    values: dict[str, dict[str, Estimate]]
    users: int
    entries: int
    unknown_users: int
    unknown_items: int


def compare(
    candidate: WALS,
    yesterday: WALS | None,
    held_out: HeldOut,
    metrics: Sequence[str],
    seed: int,
    everyone: AllUsers = HERE,
) -> Comparison:
    """Measure today's model, yesterday's and popularity; with `everyone` as for :func:`hold_out`.

    Raises
    ------
    NothingNewError
        No held-out interaction is of a user that both models know and of an item that today's knows.
    """
    rest, test = held_out.rest, held_out.test
    n_items = test.shape[1]
    is_item = everyone.total(np.bincount(rest.matrix.indices, minlength=n_items)) > 0
    counts = everyone.total(everyone.alone(lambda: item_counts(rest.matrix)))
    test = select(test, is_item[test.indices])
    n_found = int(everyone.total(test.nnz))
    is_user = np.diff(rest.matrix.indptr) > 0
    if yesterday is not None:
        before = yesterday
        is_user &= everyone.alone(lambda: _knows(before, rest))
    asked = np.diff(test.indptr) > 0
    users = np.flatnonzero(asked & is_user)
    unknown_users = int(everyone.total(np.count_nonzero(asked & ~is_user)))
    _, n_users = everyone.place(len(users))
    if not n_users:
        raise NothingNewError(
            f"none of the {held_out.entries:,} interactions that were held out is of a user whom both models know, and "
            "of an item that was seen before"
        )
    if n_users > MOST_USERS:
        users, n_users = users[drawn_here(everyone, len(users), MOST_USERS, seed)], MOST_USERS
    models: dict[str, WALS | Popularity] = {
        "candidate": candidate,
        "popularity": Popularity(rest.matrix, counts=counts),
    }
    if yesterday is not None:
        models["yesterday"] = yesterday
    of_users = everyone.alone(lambda: _measured(models, held_out, test, users, metrics))
    found = dict(zip(models, np.split(everyone.gather(of_users), len(models), axis=1), strict=True))
    values: dict[str, dict[str, Estimate]] = {}
    for place, metric in enumerate(metrics):
        columns = {name: of_model[:, place] for name, of_model in found.items()}
        if yesterday is not None:
            columns["difference"] = columns["candidate"] - columns["yesterday"]
        estimates: Any = bootstrap_interval(np.column_stack(list(columns.values())), random_state=seed)
        values[metric] = dict(zip(columns, estimates, strict=True))
    n_asked = int(everyone.total(test[users].nnz))
    return Comparison(values, n_users, n_asked, unknown_users, held_out.entries - n_found)


def _measured(
    models: Mapping[str, WALS | Popularity],
    held_out: HeldOut,
    test: csr_matrix,
    users: NDArray[np.int64],
    metrics: Sequence[str],
) -> NDArray[np.float64]:
    """Metrics of users, by row number: of the first model all, then of the next one (B, models x metrics)."""
    ks = sorted({parse_metric(metric)[1] for metric in metrics})
    # Places beyond every catalogue hold nothing.
    k = min(ks[-1], max(test.shape[1], *(model.n_items for model in models.values() if isinstance(model, WALS))))
    columns = []
    for model in models.values():
        lists_of = _popular(model, held_out, k) if isinstance(model, Popularity) else _lists_of(model, held_out, k)
        parts = [row_metrics(lists_of(batch), test[batch], ks, None) for batch in in_batches(users, k)]
        columns += [np.concatenate([np.empty(0), *(part[metric] for part in parts)]) for metric in metrics]
    return np.column_stack(columns)


def _knows(model: WALS, data: Interactions) -> NDArray[np.bool_]:
    """Which users of the data (U,) a model has learned something of."""
    fitted, n = model.fitted, data.matrix.shape[0]
    own = np.arange(n) if data.user_ids is None else np.asarray(_find_in(fitted.user_ids, data.user_ids))
    known = (own >= 0) & (own < fitted.n_users)
    known[known] = fitted.has_history(own[known])
    return known


def _find_in(own: Ids | None, ids: Ids) -> NDArray[np.int64]:
    assert own is not None
    return np.asarray(own.find(ids.ids), dtype=np.int64)


def _lists_of(model: WALS, held_out: HeldOut, k: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """What a model recommends to users by row number: columns of the data (B, k), -1 for what is none of these."""
    data, known = held_out.rest, held_out.known
    n_items = data.matrix.shape[1]
    if data.item_ids is None or model.item_ids is None:
        to_own = np.where(np.arange(n_items) < model.n_items, np.arange(n_items), -1)
    else:
        to_own = _find_in(model.item_ids, data.item_ids)

    def lists(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        of_rows = known[rows]
        own = to_own[of_rows.indices]
        kept = own >= 0
        row_ptr = np.concatenate([[0], np.cumsum(kept)])[of_rows.indptr]
        deny = csr_matrix((np.ones(int(kept.sum()), bool), own[kept], row_ptr), shape=(len(rows), model.n_items))
        deny.sort_indices()
        users = rows if data.user_ids is None else data.user_ids.take(rows)
        ids = model.recommend(users, min(k, model.n_items), deny=deny).ids
        found = np.full((len(rows), k), -1, np.int64)
        if data.item_ids is None or model.item_ids is None:
            found[:, : ids.shape[1]] = np.where(np.asarray(ids) < n_items, ids, -1)
        else:  # what is not among today's items takes its place, and is not found
            own_columns = columns_of("the lists", ids, model.item_ids, "the model")
            place = np.append(np.asarray(data.item_ids.find(model.item_ids.ids)), -1)
            found[:, : ids.shape[1]] = place[own_columns]
        return found

    return lists


def _popular(popularity: Popularity, held_out: HeldOut, k: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    known = held_out.known.astype(np.float32)
    return lambda rows: np.asarray(popularity.recommend_for(known[rows], k)[0])
