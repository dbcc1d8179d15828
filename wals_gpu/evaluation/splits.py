"""Ways to hold out a part of the interactions, the same on every machine.

Every function takes a matrix (U, I), ``Interactions``, or a table: DataFrame, Arrow table, path of a file, with
``user_column=``, ``time_column=`` and all other options of :func:`.as_interactions` for tables. It is brought to
canonical CSR (rows in order, columns sorted, no duplicates), and one number per entry is drawn in that order
from ``numpy.random.default_rng(random_state).random``. The same data and seed therefore give the same split everywhere,
whatever order the entries came in.

The parts of a matrix are CSR matrices; those of Interactions and of a table are Interactions, with the ids and times.
All parts keep the rows and columns of the whole; entries stored as 0 stay entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag, integer, number, seed
from wals_gpu.data.csr import entry_rows, select
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions
from wals_gpu.data.matching import is_table, open_interactions, read_like
from wals_gpu.evaluation.times import at_or_after, duration, entry_times, moment

__all__ = [
    "StrongSplit",
    "cold_items_split",
    "last_n",
    "leave_one_out",
    "random_holdout",
    "rolling_windows",
    "sample_negatives",
    "strong_generalisation_split",
    "temporal_split",
]

#: A csr_matrix where a matrix was split, else Interactions.
Part: TypeAlias = Any


class StrongSplit(NamedTuple):
    """Result of :func:`strong_generalisation_split`: U = T training users + H held-out users.

    Attributes
    ----------
    train : (T, I) csr_matrix or Interactions
        All of the training users.
    fold_in : (H, I) csr_matrix or Interactions
        What a held-out user is known by.
    test : (H, I) csr_matrix or Interactions
        What is asked for.
    train_users, heldout_users : (T,) and (H,) int64 array
        Row numbers in the input.
    """

    train: Part
    fold_in: Part
    test: Part
    train_users: NDArray[np.int64]
    heldout_users: NDArray[np.int64]


def random_holdout(
    matrix: Any,
    fraction: float = 0.2,
    random_state: int | np.random.Generator = 0,
    *,
    per_user: bool = False,
    **columns: Any,
) -> tuple[Part, Part]:
    """Hold out entries at random.

    Parameters
    ----------
    matrix : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions; every stored entry takes part, whatever its value.
    fraction : float, default 0.2
        Share of the entries that goes to ``test``, in (0, 1).
    random_state : int or numpy.random.Generator, default 0
        Seed.
    per_user : bool, default False
        False: ``round(fraction * Z)`` entries of the whole matrix. True: ``floor(fraction * n_u)`` entries of each
        user, so that nobody loses their whole history.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix, or Interactions
        Disjoint; together the input. Interactions where `matrix` is no matrix.

    Raises
    ------
    ValueError
        If ``fraction`` is not in (0, 1).
    """
    whole = _Whole.open("matrix", matrix, columns, random_holdout)
    fraction = number("fraction", fraction, positive=True, below=1)
    n_entries = whole.matrix.nnz
    draws = np.random.default_rng(seed("random_state", random_state)).random(n_entries)
    if flag("per_user", per_user):
        held_out = _per_row_holdout(whole.matrix, draws, fraction)
    else:
        held_out = np.zeros(n_entries, dtype=bool)
        held_out[np.argsort(draws, kind="stable")[: round(fraction * n_entries)]] = True
    return whole.divide(held_out)


def leave_one_out(
    matrix: Any,
    timestamps: ArrayLike | None = None,
    random_state: int | np.random.Generator = 0,
    **columns: Any,
) -> tuple[Part, Part]:
    """Hold out one entry of every user who has at least two: the last by time, or a random one.

    Parameters
    ----------
    matrix : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries, optional
        Time of each entry: numbers, dates with or without zones, or such text; an array, for a matrix only, in
        canonical CSR order (rows in order, columns sorted). Default: the times of the Interactions or of the table. The
        latest entry is held out; of equal times, the one with the highest column. Where there are no times: an entry at
        random.
    random_state : int or numpy.random.Generator, default 0
        Seed of the random choice; unused with times.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix, or Interactions
        Interactions where `matrix` is no matrix.

    Raises
    ------
    ValueError
        If ``timestamps`` does not fit the entries or holds NaN; or is an array beside a table or what was read from
        one, whose rows are in another order than the entries.
    """
    whole = _Whole.open("matrix", matrix, columns, leave_one_out)
    rng, key = np.random.default_rng(seed("random_state", random_state)), whole.times(timestamps)
    if key is None:
        key = rng.random(whole.matrix.nnz)
    return whole.divide(_last_of_each_row(whole.matrix, key, 1))


def last_n(data: Any, n: int = 1, timestamps: ArrayLike | None = None, **columns: Any) -> tuple[Part, Part]:
    """Hold out the last n entries, by time, of every user who has more than n.

    Users with n entries or fewer keep them all, so that nobody loses their whole history.

    Parameters
    ----------
    data : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions.
    n : int, default 1
        Entries to hold out of each user; of equal times, those with the highest columns.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries, optional
        As of :func:`leave_one_out`, but there must be times.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix, or Interactions
        Interactions where `data` is no matrix.

    Raises
    ------
    ValueError
        If there are no times, or ``timestamps`` cannot be used, as of :func:`leave_one_out`; or if no user has more
        than n entries.
    """
    n = integer("n", n, 1)
    whole = _Whole.open("data", data, columns, last_n)
    held_out = _last_of_each_row(whole.matrix, whole.needed_times(timestamps), min(n, whole.matrix.nnz))
    if not held_out.any():
        raise ValueError(f"n={n} leaves nothing to hold out: no user has more than {n} entries")
    return whole.divide(held_out)


def sample_negatives(train: Any, test: Any, n: int = 99, random_state: int | np.random.Generator = 0) -> Part:
    """For each user with a test entry, the test items and n items drawn from those the user has nothing to do with.

    The protocol of He et al., "Neural Collaborative Filtering" (WWW 2017), with :func:`leave_one_out`. Metrics on so
    few candidates are far above those on all items, and can order models differently (Krichene and Rendle, "On Sampled
    Metrics for Item Recommendation", KDD 2020): use them to compare with papers that do, and only for that.

    Parameters
    ----------
    train, test : (U, I) matrix or Interactions
        What each user has; every stored entry counts. `test` with other ids than `train` is brought to those.
    n : int, default 99
        Items to draw, uniformly and none twice.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    (U, I) csr_matrix of bool; where `train` is Interactions, Interactions with values of 1
        The candidates; users without a test entry have none.

    Raises
    ------
    ValueError
        If n is below 1, shapes differ, fewer than n items are left for a user, or `test` has ids that `train` does not
        know.
    """
    n = integer("n", n, 1)
    whole = _Whole.open("train", train, {})
    test = read_like("test", test, whole.data.user_ids, whole.data.item_ids, "train").data.matrix
    train = whole.matrix
    if train.shape != test.shape:
        raise ValueError(f"train and test must have one shape, got {train.shape} and {test.shape}")
    n_users, n_items = test.shape
    rng = np.random.default_rng(seed("random_state", random_state))
    rows = []
    for user in range(n_users):
        tested = test.indices[test.indptr[user] : test.indptr[user + 1]]
        if not tested.size:
            rows.append(tested)
            continue
        known = np.union1d(tested, train.indices[train.indptr[user] : train.indptr[user + 1]])
        left = n_items - known.size
        if left < n:
            raise ValueError(f"n must be at most the number of items that a user does not have, {left} for user {user}")
        rows.append(np.union1d(tested, _draw_others(rng, known, left, n)))
    row_ptr = np.concatenate([[0], np.cumsum([row.size for row in rows], dtype=np.int64)])
    columns = np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int32)
    drawn = csr_matrix((np.ones(columns.size, bool), columns, row_ptr), shape=test.shape)
    if whole.wants_matrix:
        return drawn
    return replace(whole.data, matrix=drawn.astype(np.float32), times=None)


def _draw_others(rng: np.random.Generator, known: NDArray[np.integer], left: int, n: int) -> NDArray[np.int64]:
    """n of the `left` items that are not `known` (sorted)."""
    drawn: NDArray[np.int64] = np.sort(rng.choice(left, n, replace=False))
    # The j-th item that is not known is j + the number of known ones before it.
    return drawn + np.searchsorted(known - np.arange(known.size), drawn, side="right")


def temporal_split(
    matrix: Any,
    timestamps: ArrayLike | None = None,
    *,
    fraction: float = 0.2,
    cutoff: Any = None,
    per_user: bool = False,
    random_state: int | np.random.Generator = 0,
    **columns: Any,
) -> tuple[Part, Part]:
    """Train on what happened before one moment, test on what happened from it on.

    Users and items that appear only after the cutoff keep their row and column: their test entries count (mostly as
    misses), as they would in service.

    With ``per_user=True`` there is no such moment: of each user's entries the latest are tested. Everybody with two
    entries or more is, also where most are active for some days only, but a model may learn from others what was later.

    Parameters
    ----------
    matrix : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries, optional
        Time of each entry; an array, for a matrix only, in canonical CSR order. Default: the times of the Interactions
        or of the table.
    fraction : float, default 0.2
        Without ``cutoff``: the cutoff is the time of entry ``Z - round(fraction * Z)`` in order of time, so that
        about this share is tested (more if many entries share that time).
    cutoff : number, datetime64, datetime, date, pandas Timestamp, or text such as "2024-01-31", optional
        First moment of the test period: a number where the times are numbers, in their unit; a moment where they are
        dates. A date is its beginning; zones are converted to UTC, in which the times are, and a moment without one is
        UTC. Not with ``per_user=True``.
    per_user : bool, default False
        Test the latest ``max(1, floor(fraction * n))`` of each user's n entries, where n is 2 or more.
    random_state : int or numpy.random.Generator, default 0
        With ``per_user=True``: seed of the choice between a user's entries of the same time.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix, or Interactions
        Interactions where `matrix` is no matrix.

    Raises
    ------
    ValueError
        If there are no times, ``timestamps`` cannot be used, as of :func:`leave_one_out`, one of the two sides would
        be empty, or there is a ``cutoff`` beside ``per_user=True``.
    TypeError, ValueError
        If ``cutoff`` is no moment, or of another kind than the times.
    """
    whole = _Whole.open("matrix", matrix, columns, temporal_split)
    times, n_entries = whole.needed_times(timestamps), whole.matrix.nnz
    rng = np.random.default_rng(seed("random_state", random_state))
    fraction = number("fraction", fraction, positive=True, below=1)
    if not n_entries:
        raise ValueError("matrix must have entries to split, got none")
    if per_user:
        if cutoff is not None:
            raise ValueError(f"cutoff is one moment for all users: not with per_user=True, got {cutoff!r}")
        draws = rng.random(n_entries)
        place = np.empty(n_entries, np.int64)
        place[np.lexsort((draws, times))] = np.arange(n_entries)
        per_row = np.diff(whole.matrix.indptr)
        late = _last_of_each_row(whole.matrix, place, np.maximum(1, (fraction * per_row).astype(np.int64)))
        if not late.any():
            raise ValueError("no user has two entries or more, so per_user=True leaves none for test")
        return whole.divide(late)
    if cutoff is None:
        first = min(n_entries - round(fraction * n_entries), n_entries - 1)
        cutoff = np.partition(times, first)[first]
    else:
        cutoff = moment("cutoff", cutoff, times)
    late = at_or_after(times, cutoff)
    if late.all() or not late.any():
        side = "train" if late.all() else "test"
        raise ValueError(
            f"a cutoff at time {cutoff} leaves no entry for {side}, as the times go from {times.min()} to "
            f"{times.max()}; give another cutoff or fraction"
        )
    return whole.divide(late)


def rolling_windows(
    data: Any,
    n_splits: int = 5,
    *,
    test_size: Any = None,
    max_train_size: Any = None,
    gap: Any = None,
    timestamps: ArrayLike | None = None,
    **columns: Any,
) -> Iterator[tuple[Part, Part]]:
    """Pairs of train and test, window after window: test on a window, train on what happened before it.

    The names are those of scikit-learn's ``TimeSeriesSplit``; sizes are lengths of time such as "7d", as of RecTools'
    ``TimeRangeSplitter``, not numbers of entries. The windows follow one another without a hole, from the earliest to
    the one that ends with the last entry.

    Parameters
    ----------
    data : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions, with times.
    n_splits : int, default 5
        Number of windows.
    test_size : number, timedelta, timedelta64, or text such as "7d", "12h", "30min", optional
        Length of a window: a number where the times are numbers, in their unit; a duration where they are dates. It
        ends with its last moment, and begins just after the one before, so that "7d" of a column of days are seven.
        Default: the entries in order of time are cut in ``n_splits + 1`` parts of about the same number, of which the
        first is trained on only; entries of one time stay together.
    max_train_size : of the same kinds, optional
        Train only on what happened in such a time before the window (and the gap). Default: on everything before.
    gap : of the same kinds, optional
        A time before each window that is not trained on. Default: none.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries, optional
        As of :func:`temporal_split`.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Yields
    ------
    train, test : (U, I) csr_matrix, or Interactions
        Interactions where `data` is no matrix. All keep the rows and columns of the whole.

    Raises
    ------
    ValueError
        Before the first pair: if there are no times, they cannot be used, or a window would have nothing to train on or
        to test with.
    TypeError, ValueError
        If a length is none, or of another kind than the times.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> plays, days = csr_matrix(np.ones((3, 3))), np.arange(9)
    >>> [(train.nnz, test.nnz) for train, test in rolling_windows(plays, 2, test_size=2, timestamps=days)]
    [(5, 2), (7, 2)]
    """
    n_splits = integer("n_splits", n_splits, 1)
    whole = _Whole.open("data", data, columns, rolling_windows)
    times = whole.needed_times(timestamps)
    if not whole.matrix.nnz:
        raise ValueError("data must have entries to split, got none")
    if times.dtype.kind == "u":
        times = times.astype(np.int64)  # differences of unsigned numbers would wrap around
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    if test_size is None:
        if len(ordered) <= n_splits:
            raise ValueError(f"n_splits must be below the number of entries, {len(ordered)}, got {n_splits}")
        part = len(ordered) // (n_splits + 1)
        starts = [ordered[len(ordered) - k * part] for k in range(n_splits, 0, -1)]
        side = "left"  # a start belongs to its window
    else:
        length = duration("test_size", test_size, times)
        starts = [ordered[-1] - k * length for k in range(n_splits, 0, -1)]
        side = "right"
    ends_of_train = starts if gap is None else [start - duration("gap", gap, times) for start in starts]

    def place(when: Any) -> int:
        """How many entries are before a start."""
        return int(np.searchsorted(ordered, when, side=side))  # type: ignore[call-overload]

    begins, ends = [place(start) for start in starts], [place(end) for end in ends_of_train]
    firsts = [0] * n_splits
    if max_train_size is not None:
        length = duration("max_train_size", max_train_size, times)
        firsts = [place(end - length) for end in ends_of_train]
    pieces = list(zip(firsts, ends, begins, [*begins[1:], len(ordered)], strict=True))
    for k, (first, end, begin, last) in enumerate(pieces):
        if first == end or begin == last:
            nothing = "to train on" if first == end else "to test with"
            raise ValueError(
                f"window {k + 1} of {n_splits}, from {starts[k]} on, has nothing {nothing}: the times go from "
                f"{ordered[0]} to {ordered[-1]}; give fewer windows, or other sizes"
            )

    def pairs() -> Iterator[tuple[Part, Part]]:
        for first, end, begin, last in pieces:
            masks = np.zeros((2, len(ordered)), dtype=bool)
            masks[0, order[first:end]] = masks[1, order[begin:last]] = True
            yield whole.part(masks[0]), whole.part(masks[1])

    return pairs()


def cold_items_split(
    matrix: Any, fraction: float = 0.2, random_state: int | np.random.Generator = 0, **columns: Any
) -> tuple[Part, Part, NDArray[np.int64]]:
    """Take every entry of some items away: a cold start with a known answer.

    Parameters
    ----------
    matrix : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions.
    fraction : float, default 0.2
        Share of the items that have entries to make cold, in (0, 1); ``round(fraction * count)`` items, drawn
        uniformly.
    random_state : int or numpy.random.Generator, default 0
        Seed.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    train, test : (U, I) csr_matrix, or Interactions
        All entries of the warm and of the cold items; both keep all I columns. Interactions where `matrix` is no
        matrix.
    cold_items : (C,) int64 array
        Sorted column numbers of the cold items; ``train.item_ids[cold_items]`` are their ids.

    Raises
    ------
    ValueError
        If ``fraction`` leaves no item with entries on one of the two sides.
    """
    whole = _Whole.open("matrix", matrix, columns, cold_items_split)
    matrix = whole.matrix
    fraction = number("fraction", fraction, positive=True, below=1)
    items = np.flatnonzero(np.bincount(matrix.indices, minlength=matrix.shape[1]))
    draws = np.random.default_rng(seed("random_state", random_state)).random(items.size)
    count = round(fraction * items.size)
    if not 0 < count < items.size:
        raise ValueError(f"fraction={fraction} of {items.size} items with entries leaves none on one of the two sides")
    cold = np.sort(items[np.argsort(draws, kind="stable")[:count]])
    is_cold = np.zeros(matrix.shape[1], dtype=bool)
    is_cold[cold] = True
    return *whole.divide(is_cold[matrix.indices]), cold.astype(np.int64)


def strong_generalisation_split(
    matrix: Any,
    heldout: float = 0.1,
    test_fraction: float = 0.2,
    random_state: int | np.random.Generator = 0,
    **columns: Any,
) -> StrongSplit:
    """Hold out whole users; recommend to them from a part of their history (Liang et al. 2018).

    The model never sees the held-out users in training. ``floor(test_fraction * n_u)`` of such a user's entries are
    asked for, the rest is what :meth:`WALS.recommend_for` is given; a user with too few entries to give one up has an
    empty test row and is left out by the metrics. As in the paper, held-out entries of items that no training user
    has are dropped.

    Parameters
    ----------
    matrix : (U, I) matrix, Interactions, DataFrame, Arrow table or path
        The interactions.
    heldout : float or int, default 0.1
        A share of the users that have entries (float in (0, 1)), or their number (int).
    test_fraction : float, default 0.2
        Share of a held-out user's entries that is asked for.
    random_state : int or numpy.random.Generator, default 0
        Seed.
    **columns
        ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

    Returns
    -------
    StrongSplit
        ``train`` (T, I), ``fold_in`` (H, I), ``test`` (H, I): csr_matrix, or Interactions where `matrix` is no matrix,
        with the ids of their users; ``train_users`` (T,), ``heldout_users`` (H,): row numbers in the input.

    Raises
    ------
    ValueError
        If ``heldout`` leaves no user on one of the two sides.
    """
    whole = _Whole.open("matrix", matrix, columns, strong_generalisation_split)
    matrix = whole.matrix
    test_fraction = number("test_fraction", test_fraction, positive=True, below=1)
    users = np.flatnonzero(np.diff(matrix.indptr))
    if isinstance(heldout, (int, np.integer)) and not isinstance(heldout, bool):
        count = int(heldout)
    else:
        count = round(number("heldout", heldout, high=1) * users.size)
    if not 0 < count < users.size:
        raise ValueError(
            f"heldout must leave users on both sides: {heldout!r} of {users.size} users with entries given"
        )
    rng = np.random.default_rng(seed("random_state", random_state))
    heldout_users = np.sort(users[np.argsort(rng.random(users.size), kind="stable")[:count]])
    is_train = np.ones(matrix.shape[0], dtype=bool)
    is_train[heldout_users] = False
    train, entries = whole.rows(is_train), whole.rows(~is_train)
    known = np.bincount(train.matrix.indices, minlength=matrix.shape[1]) > 0
    entries = entries.where(known[entries.matrix.indices])
    in_test = _per_row_holdout(entries.matrix, rng.random(entries.matrix.nnz), test_fraction)
    fold_in, test = entries.divide(in_test)
    return StrongSplit(train.all(), fold_in, test, np.flatnonzero(is_train), heldout_users.astype(np.int64))


@dataclass(frozen=True)
class _Whole:
    """What is split, and what its parts are to be."""

    data: Interactions  # with a canonical matrix
    given: Any
    wants_matrix: bool  # as a matrix was given
    is_table: bool

    @classmethod
    def open(cls, name: str, given: Any, columns: Mapping[str, Any], of: Callable[..., Any] | None = None) -> _Whole:
        table = is_table(given)
        data = open_interactions(name, given, columns, of=of)
        # An array of triplets is a table, though it looks like a matrix.
        table = table or not (isinstance(given, Interactions) or data.user_ids is None)
        return cls(data, given, not (table or isinstance(given, Interactions)), table)

    @property
    def matrix(self) -> csr_matrix:
        return self.data.matrix

    def times(self, timestamps: Any) -> NDArray[Any] | None:
        return entry_times(self.data, self.given, timestamps, self.is_table)

    def needed_times(self, timestamps: Any) -> NDArray[Any]:
        times = self.times(timestamps)
        if times is None:
            if self.wants_matrix:
                advice = "give timestamps, one for each entry in the order of a sorted CSR matrix"
            elif self.is_table:
                advice = "name the column that has them: time_column='time'"
            else:
                advice = "read them with the interactions: as_interactions(table, time_column='time')"
            raise ValueError(f"there are no times to split by; {advice}")
        return times

    def where(self, keep: NDArray[np.bool_]) -> _Whole:
        """Only the entries (Z,) that are kept, of all rows and columns."""
        times = None if self.data.times is None else self.data.times[keep]
        return replace(self, data=replace(self.data, matrix=select(self.matrix, keep), times=times))

    def rows(self, keep: NDArray[np.bool_]) -> _Whole:
        """Only the rows (U,) that are kept."""
        entries = np.repeat(keep, np.diff(self.matrix.indptr))
        times = None if self.data.times is None else self.data.times[entries]
        ids: Ids | None = None if self.data.user_ids is None else self.data.user_ids.subset(np.flatnonzero(keep))
        return replace(self, data=replace(self.data, matrix=self.matrix[keep], user_ids=ids, times=times))

    def all(self) -> Part:
        return self.matrix if self.wants_matrix else self.data

    def part(self, keep: NDArray[np.bool_]) -> Part:
        return self.where(keep).all()

    def divide(self, held_out: NDArray[np.bool_]) -> tuple[Part, Part]:
        """train, test"""
        return self.part(~held_out), self.part(held_out)


def _last_of_each_row(matrix: csr_matrix, key: NDArray[Any], n: int | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the n entries with the highest keys of each row that has more than n: one number, or one for each row."""
    order = np.lexsort((key, entry_rows(matrix)))  # by row, then key; stable, so equal keys stay in column order
    per_row = np.diff(matrix.indptr)
    from_end = np.repeat(matrix.indptr[1:], per_row) - np.arange(matrix.nnz)  # n, ..., 2, 1 in each row
    held_out = np.zeros(matrix.nnz, dtype=bool)
    held_out[order] = from_end <= np.repeat(np.where(per_row > n, n, 0), per_row)
    return held_out


def _per_row_holdout(matrix: csr_matrix, draws: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Mask of the ``floor(fraction * n)`` entries with the smallest draws in each row."""
    order = np.lexsort((draws, entry_rows(matrix)))
    per_row = np.diff(matrix.indptr)
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], per_row)
    held_out = np.zeros(matrix.nnz, dtype=bool)
    held_out[order] = position < np.repeat((fraction * per_row).astype(np.int64), per_row)
    return held_out
