"""Ways to hold out a part of the interactions, the same on every machine.

Every function takes a matrix (U, I) in SciPy sparse form (or ``Interactions``), brings it to canonical CSR (rows in
order, columns sorted, no duplicates) and draws one number per entry in that order from
``numpy.random.default_rng(random_state).random``. The same matrix and seed therefore give the same split everywhere,
whatever order the entries came in. Results keep the columns of the input; entries stored as 0 stay entries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, issparse

from wals_gpu.checks import number
from wals_gpu.data.csr import canonical, entry_rows, select

__all__ = [
    "StrongSplit",
    "cold_items_split",
    "leave_one_out",
    "random_holdout",
    "sample_negatives",
    "strong_generalisation_split",
    "temporal_split",
]


class StrongSplit(NamedTuple):
    """Result of :func:`strong_generalisation_split`: U = T training users + H held-out users."""

    train: csr_matrix  # (T, I)
    fold_in: csr_matrix  # (H, I): what a held-out user is known by
    test: csr_matrix  # (H, I): what is asked for
    train_users: NDArray[np.int64]  # (T,) row numbers in the input
    heldout_users: NDArray[np.int64]  # (H,) row numbers in the input


def random_holdout(
    matrix: Any, fraction: float = 0.2, random_state: int | np.random.Generator = 0, *, per_user: bool = False
) -> tuple[csr_matrix, csr_matrix]:
    """Hold out entries at random.

    Parameters
    ----------
    matrix : (U, I) sparse matrix or Interactions
        The interactions; every stored entry takes part, whatever its value.
    fraction : float, default 0.2
        Share of the entries that goes to ``test``, in (0, 1).
    random_state : int or numpy.random.Generator, default 0
        Seed.
    per_user : bool, default False
        False: ``round(fraction * Z)`` entries of the whole matrix. True: ``floor(fraction * n_u)`` entries of each
        user, so that nobody loses their whole history.

    Returns
    -------
    train, test : (U, I) csr_matrix
        Disjoint; together the input.

    Raises
    ------
    ValueError
        If ``fraction`` is not in (0, 1).
    """
    matrix = canonical("matrix", matrix)
    fraction = number("fraction", fraction, positive=True, below=1)
    draws = np.random.default_rng(random_state).random(matrix.nnz)
    if per_user:
        held_out = _per_row_holdout(matrix, draws, fraction)
    else:
        held_out = np.zeros(matrix.nnz, dtype=bool)
        held_out[np.argsort(draws, kind="stable")[: round(fraction * matrix.nnz)]] = True
    return select(matrix, ~held_out), select(matrix, held_out)


def leave_one_out(
    matrix: Any, timestamps: ArrayLike | None = None, random_state: int | np.random.Generator = 0
) -> tuple[csr_matrix, csr_matrix]:
    """Hold out one entry of every user who has at least two: the last by time, or a random one.

    Parameters
    ----------
    matrix : (U, I) sparse matrix or Interactions
        The interactions.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries, optional
        Time of each entry, an array in canonical CSR order (rows in order, columns sorted). The latest entry is held
        out; of equal times, the one with the highest column. Default: an entry at random.
    random_state : int or numpy.random.Generator, default 0
        Seed of the random choice; unused with timestamps.

    Returns
    -------
    train, test : (U, I) csr_matrix

    Raises
    ------
    ValueError
        If ``timestamps`` does not fit the entries or holds NaN.
    """
    source, matrix = matrix, canonical("matrix", matrix)
    if timestamps is None:
        key = np.random.default_rng(random_state).random(matrix.nnz)
    else:
        key = _entry_times(source, matrix, timestamps)
    order = np.lexsort((key, entry_rows(matrix)))  # by row, then key; stable, so equal keys stay in column order
    ends = matrix.indptr[1:][np.diff(matrix.indptr) >= 2]
    held_out = np.zeros(matrix.nnz, dtype=bool)
    held_out[order[ends - 1]] = True
    return select(matrix, ~held_out), select(matrix, held_out)


def sample_negatives(train: Any, test: Any, n: int = 99, random_state: int | np.random.Generator = 0) -> csr_matrix:
    """For each user with a test entry, the test items and n items drawn from those the user has nothing to do with.

    The protocol of He et al., "Neural Collaborative Filtering" (WWW 2017), with :func:`leave_one_out`. Metrics on so
    few candidates are far above those on all items, and can order models differently (Krichene and Rendle, "On Sampled
    Metrics for Item Recommendation", KDD 2020): use them to compare with papers that do, and only for that.

    Parameters
    ----------
    train, test : (U, I) sparse matrix or Interactions
        What each user has; every stored entry counts.
    n : int, default 99
        Items to draw, uniformly and none twice.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    (U, I) csr_matrix of bool
        The candidates; users without a test entry have none.

    Raises
    ------
    ValueError
        If shapes differ, or fewer than n items are left for a user.
    """
    train, test = canonical("train", train), canonical("test", test)
    if train.shape != test.shape:
        raise ValueError(f"train and test must have one shape, got {train.shape} and {test.shape}")
    n_users, n_items = test.shape
    rng = np.random.default_rng(random_state)
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
    return csr_matrix((np.ones(columns.size, bool), columns, row_ptr), shape=test.shape)


def _draw_others(rng: np.random.Generator, known: NDArray[np.integer], left: int, n: int) -> NDArray[np.int64]:
    """n of the `left` items that are not `known` (sorted)."""
    drawn: NDArray[np.int64] = np.sort(rng.choice(left, n, replace=False))
    # The j-th item that is not known is j + the number of known ones before it.
    return drawn + np.searchsorted(known - np.arange(known.size), drawn, side="right")


def temporal_split(
    matrix: Any, timestamps: ArrayLike, *, fraction: float = 0.2, cutoff: float | np.datetime64 | None = None
) -> tuple[csr_matrix, csr_matrix]:
    """Train on what happened before one moment, test on what happened from it on.

    Users and items that appear only after the cutoff keep their row and column: their test entries count (mostly as
    misses), as they would in service.

    Parameters
    ----------
    matrix : (U, I) sparse matrix or Interactions
        The interactions.
    timestamps : (Z,) array or (U, I) sparse matrix with the same entries
        Time of each entry, an array in canonical CSR order.
    fraction : float, default 0.2
        Without ``cutoff``: the cutoff is the time of entry ``Z - round(fraction * Z)`` in order of time, so that
        about this share is tested (more if many entries share that time).
    cutoff : float or datetime64, optional
        First moment of the test period, in the unit of ``timestamps``.

    Returns
    -------
    train, test : (U, I) csr_matrix

    Raises
    ------
    ValueError
        If ``timestamps`` does not fit the entries, or one of the two sides would be empty.
    """
    source, matrix = matrix, canonical("matrix", matrix)
    times = _entry_times(source, matrix, timestamps)
    if not matrix.nnz:
        raise ValueError("matrix must have entries to split, got none")
    if cutoff is None:
        fraction = number("fraction", fraction, positive=True, below=1)
        first = min(matrix.nnz - round(fraction * matrix.nnz), matrix.nnz - 1)
        cutoff = np.partition(times, first)[first]
    late = times >= cutoff
    if late.all() or not late.any():
        side = "train" if late.all() else "test"
        raise ValueError(f"a cutoff at time {cutoff} leaves no entry for {side}; give another cutoff or fraction")
    return select(matrix, ~late), select(matrix, late)


def cold_items_split(
    matrix: Any, fraction: float = 0.2, random_state: int | np.random.Generator = 0
) -> tuple[csr_matrix, csr_matrix, NDArray[np.int64]]:
    """Take every entry of some items away: a cold start with a known answer.

    Parameters
    ----------
    matrix : (U, I) sparse matrix or Interactions
        The interactions.
    fraction : float, default 0.2
        Share of the items that have entries to make cold, in (0, 1); ``round(fraction * count)`` items, drawn
        uniformly.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    train, test : (U, I) csr_matrix
        All entries of the warm and of the cold items; both keep all I columns.
    cold_items : (C,) int64 array
        Sorted column numbers of the cold items.

    Raises
    ------
    ValueError
        If ``fraction`` leaves no item with entries on one of the two sides.
    """
    matrix = canonical("matrix", matrix)
    fraction = number("fraction", fraction, positive=True, below=1)
    items = np.flatnonzero(np.bincount(matrix.indices, minlength=matrix.shape[1]))
    draws = np.random.default_rng(random_state).random(items.size)
    count = round(fraction * items.size)
    if not 0 < count < items.size:
        raise ValueError(f"fraction={fraction} of {items.size} items with entries leaves none on one of the two sides")
    cold = np.sort(items[np.argsort(draws, kind="stable")[:count]])
    is_cold = np.zeros(matrix.shape[1], dtype=bool)
    is_cold[cold] = True
    held_out = is_cold[matrix.indices]
    return select(matrix, ~held_out), select(matrix, held_out), cold.astype(np.int64)


def strong_generalisation_split(
    matrix: Any,
    heldout: float = 0.1,
    test_fraction: float = 0.2,
    random_state: int | np.random.Generator = 0,
) -> StrongSplit:
    """Hold out whole users; recommend to them from a part of their history (Liang et al. 2018).

    The model never sees the held-out users in training. ``floor(test_fraction * n_u)`` of such a user's entries are
    asked for, the rest is what :meth:`WALS.recommend_for` is given; a user with too few entries to give one up has an
    empty test row and is left out by the metrics. As in the paper, held-out entries of items that no training user
    has are dropped.

    Parameters
    ----------
    matrix : (U, I) sparse matrix or Interactions
        The interactions.
    heldout : float or int, default 0.1
        A share of the users that have entries (float in (0, 1)), or their number (int).
    test_fraction : float, default 0.2
        Share of a held-out user's entries that is asked for.
    random_state : int or numpy.random.Generator, default 0
        Seed.

    Returns
    -------
    StrongSplit
        ``train`` (T, I), ``fold_in`` (H, I), ``test`` (H, I), ``train_users`` (T,), ``heldout_users`` (H,).

    Raises
    ------
    ValueError
        If ``heldout`` leaves no user on one of the two sides.
    """
    matrix = canonical("matrix", matrix)
    test_fraction = number("test_fraction", test_fraction, positive=True, below=1)
    users = np.flatnonzero(np.diff(matrix.indptr))
    count = heldout if isinstance(heldout, (int, np.integer)) else round(heldout * users.size)
    if not 0 < count < users.size:
        raise ValueError(
            f"heldout must leave users on both sides: {heldout!r} of {users.size} users with entries given"
        )
    rng = np.random.default_rng(random_state)
    heldout_users = np.sort(users[np.argsort(rng.random(users.size), kind="stable")[:count]])
    is_train = np.ones(matrix.shape[0], dtype=bool)
    is_train[heldout_users] = False
    train = matrix[is_train]
    known = np.bincount(train.indices, minlength=matrix.shape[1]) > 0
    entries = matrix[heldout_users]
    entries = select(entries, known[entries.indices])
    in_test = _per_row_holdout(entries, rng.random(entries.nnz), test_fraction)
    return StrongSplit(
        train,
        select(entries, ~in_test),
        select(entries, in_test),
        np.flatnonzero(is_train),
        heldout_users.astype(np.int64),
    )


def _per_row_holdout(matrix: csr_matrix, draws: NDArray[Any], fraction: float) -> NDArray[np.bool_]:
    """Mask of the ``floor(fraction * n)`` entries with the smallest draws in each row."""
    order = np.lexsort((draws, entry_rows(matrix)))
    per_row = np.diff(matrix.indptr)
    position = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], per_row)
    held_out = np.zeros(matrix.nnz, dtype=bool)
    held_out[order] = position < np.repeat((fraction * per_row).astype(np.int64), per_row)
    return held_out


def _entry_times(source: Any, matrix: csr_matrix, timestamps: Any) -> NDArray[Any]:
    """Timestamps as an array (Z,) in the order of the entries of ``matrix``, the canonical form of ``source``."""
    if issparse(timestamps):
        times = canonical("timestamps", timestamps)
        same = np.array_equal(times.indptr, matrix.indptr) and np.array_equal(times.indices, matrix.indices)
        if times.shape != matrix.shape or not same or times.nnz != timestamps.nnz:
            raise ValueError("timestamps must have the shape and the stored entries of matrix, each once")
        times = times.data
    else:
        times = np.asarray(timestamps)
        source = getattr(source, "matrix", source)
        if source.format != "csr" or not source.has_canonical_format:
            raise ValueError(
                "timestamps as an array need a matrix in CSR form with sorted columns and no duplicates, because they "
                "belong to its entries one by one; give a sparse matrix of timestamps instead"
            )
        if times.shape != (matrix.nnz,):
            raise ValueError(
                f"timestamps must have one value per stored entry, shape ({matrix.nnz},), got shape {times.shape}"
            )
    if times.dtype.kind not in "biufM":
        raise ValueError(f"timestamps must be numbers or datetime64, got dtype {times.dtype}")
    if missing := int(np.isnan(times).sum()):
        raise ValueError(f"timestamps must be there for every entry, {missing} of {times.size} are NaN or NaT")
    checked: NDArray[Any] = times
    return checked
