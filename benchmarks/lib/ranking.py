"""Rankings compared: splits at random and by time, EASE, one evaluator for every system's lists, paired intervals."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

from lib.common import rounded
from lib.logs import LOGS, load_log, ones_of, split
from wals_gpu import as_interactions
from wals_gpu.evaluation import Popularity
from wals_gpu.evaluation.metrics import row_metrics

K = 20
METRICS = (f"ndcg@{K}", f"recall@{K}")

#: Logs that say when something happened, and in which column: all of them may be split by time.
TIMES = {"ml-100k": "timestamp", "ml-latest-small": "timestamp", "amazon-beauty-2014": "position"}
SETS = [name for name in LOGS if name != "steam-200k hours"]
#: Of random splits. No other case has them.
SEEDS = (61, 62, 63)
WINDOWS = 3


def load_ones(name: str, folder: Path) -> csr_matrix:
    """Interactions (U, I), each counted once: item-item models and papers take them so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the values of repeated pairs were summed
        return ones_of(load_log(name, folder))


def load_times(name: str, folder: Path) -> tuple[csr_matrix, np.ndarray]:
    """Interactions (U, I), each counted once, and when each entry happened (Z,)."""
    table = pq.read_table(folder / LOGS[name])
    user, item = table.column_names[:2]
    columns = {"user_column": user, "item_column": item, "value_column": False, "time_column": TIMES[name]}
    data = as_interactions(table, **columns)
    return ones_of(data.matrix), np.asarray(data.times)


def window_split(matrix: csr_matrix, times: np.ndarray, window: int, seed: int = 0) -> tuple[csr_matrix, csr_matrix]:
    """Train and test by each user's own clock: a window of their latest entries is tested, what was before is trained.

    A window holds a tenth of the user's n entries, at least one: max(1, n // 10). Window 0 is the last, window 1 the
    one before it (what came later is in neither part), and so on. Users with too few entries to keep one for training
    are in neither. Entries of the same moment are in random order.
    """
    draws = np.random.default_rng(seed).random(matrix.nnz)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((draws, times, rows))
    per_row = np.diff(matrix.indptr)
    from_end = np.empty(matrix.nnz, np.int64)  # 0 for a row's latest entry
    from_end[order] = np.repeat(matrix.indptr[1:], per_row) - 1 - np.arange(matrix.nnz)
    size = np.repeat(np.maximum(1, per_row // 10), per_row)
    kept = np.repeat(per_row, per_row) > (window + 1) * size
    tested = kept & (from_end // size == window)
    trained = kept & (from_end >= (window + 1) * size)

    def part(mask):
        chosen = csr_matrix((matrix.data[mask], (rows[mask], matrix.indices[mask])), shape=matrix.shape)
        chosen.sort_indices()
        return chosen

    return part(trained), part(tested)


def make_split(name: str, kind: str, number: int, folder: Path) -> tuple[csr_matrix, csr_matrix]:
    """Train and test number 0, 1, ... of kind "random" or "time"."""
    if kind == "random":
        return split(load_ones(name, folder), SEEDS[number])
    matrix, times = load_times(name, folder)
    return window_split(matrix, times, number)


def times_of(part: csr_matrix, name: str, folder: Path) -> np.ndarray:
    """When each entry of a part of a log happened (Z,)."""
    matrix, times = load_times(name, folder)

    def places(entries):
        rows = np.repeat(np.arange(entries.shape[0], dtype=np.int64), np.diff(entries.indptr))
        return rows * entries.shape[1] + entries.indices

    return times[np.searchsorted(places(matrix), places(part))]


def tested_users(test: csr_matrix) -> np.ndarray:
    return np.flatnonzero(np.diff(test.indptr))


def with_popular(ids: np.ndarray, users: np.ndarray, train: csr_matrix) -> np.ndarray:
    """Lists (B, K) in which users without any training entry get what is popular, whatever their system gave them."""
    cold = np.diff(train.indptr)[users] == 0
    if cold.any():
        ids = np.array(ids)
        ids[cold] = Popularity(train).recommend(users[cold], ids.shape[1])[0]
    return ids


def check_lists(ids: np.ndarray, users: np.ndarray, train: csr_matrix) -> None:
    """ValueError where a list has an item twice, an item that is none, or one that the user has had."""
    if ids.shape != (len(users), K) or ids.min() < -1 or ids.max() >= train.shape[1]:
        raise ValueError(
            f"lists must be ({len(users)}, {K}) of items or -1, got {ids.shape}, {ids.min()}...{ids.max()}"
        )
    in_order = np.sort(ids, axis=1)
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        raise ValueError("a list has an item twice")
    given = ids >= 0
    rows = np.repeat(np.arange(len(users)), given.sum(axis=1))
    lists = csr_matrix((np.ones(len(rows)), (rows, ids[given])), shape=(len(users), train.shape[1]))
    if lists.multiply(train[users]).nnz:
        raise ValueError("a list has an item that its user has had")


def per_user(ids: np.ndarray, users: np.ndarray, train: csr_matrix, test: csr_matrix) -> dict[str, np.ndarray]:
    """Each metric (U,) of the lists of `users`, who all have a test entry; NaN for all others."""
    ids = with_popular(ids, users, train)
    check_lists(ids, users, train)
    found = row_metrics(ids, test[users], [K], None)
    values = {}
    for name in METRICS:
        values[name] = np.full(test.shape[0], np.nan)
        values[name][users] = found[name]
    return values


class Ease:
    """Steck, "Embarrassingly Shallow Autoencoders" (WWW 2019): B = -P / diag(P) with P = (X'X + ridge)^-1.

    The inverse takes I^3 multiplications and additions and overwrites the Gram matrix: 4 I^2 bytes in all. Users
    without a training entry get what is popular.
    """

    ROWS = 1024

    def __init__(self, train: csr_matrix, ridge: float) -> None:
        n_items = train.shape[1]
        columns = train.T.tocsr()
        gram = np.empty((n_items, n_items), np.float32)
        for start in range(0, n_items, self.ROWS):
            gram[start : start + self.ROWS] = (columns[start : start + self.ROWS] @ train).toarray()
        gram[np.diag_indices_from(gram)] += ridge
        # LAPACK reads by columns: the transposed view of a symmetric matrix is itself; its lower triangle is our upper.
        _, trouble = lapack.spotrf(gram.T, lower=1, overwrite_a=1, clean=0)
        _, worse = lapack.spotri(gram.T, lower=1, overwrite_c=1)
        if trouble or worse:
            raise ValueError(f"ridge={ridge:g} leaves the Gram matrix singular in float32")
        for start in range(0, n_items, self.ROWS):  # the other triangle, without a second matrix
            stop = min(start + self.ROWS, n_items)
            gram[stop:, start:stop] = gram[start:stop, stop:].T
            block = gram[start:stop, start:stop]
            block[...] = np.triu(block) + np.triu(block, 1).T
        diagonal = np.diag(gram).copy()
        gram /= -diagonal
        gram[np.diag_indices_from(gram)] = 0
        self.train, self.weights = train, gram

    def recommend(self, users, k=10, *, filter_seen=True):
        ids = np.empty((len(users), k), np.int64)
        best_scores = np.empty((len(users), k), np.float32)
        for start in range(0, len(users), self.ROWS):
            rows = self.train[users[start : start + self.ROWS]]
            scores = np.asarray(rows @ self.weights)
            if filter_seen:
                scores[rows.nonzero()] = -np.inf
            best = np.argpartition(-scores, k, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, axis=1)
            ids[start : start + self.ROWS] = best
            best_scores[start : start + self.ROWS] = np.take_along_axis(scores, best, axis=1)
        return with_popular(ids, users, self.train), best_scores

    def recommend_for(self, interactions, k=10, *, filter_seen=True):
        raise NotImplementedError


def resampled(values: Mapping[str, Sequence[np.ndarray]], samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Means (1 + samples,) of each system over users: first over all of them, then over users drawn with replacement.

    Parameters
    ----------
    values : dict of list of (U,) array
        Of each system, per split: the metric of each user, NaN for who was not tested.

    Users are drawn with all their splits together, the same for each system, so differences of two systems' means are
    paired, and a user who was tested three times does not count as three.
    """
    totals = {name: np.nansum(np.stack(splits), axis=0) for name, splits in values.items()}
    times = {name: np.isfinite(np.stack(splits)).sum(axis=0) for name, splits in values.items()}
    tested = next(iter(times.values()))
    if any((other != tested).any() for other in times.values()):
        raise ValueError("systems must have been tested with the same users")
    users = np.flatnonzero(tested)
    table = np.column_stack([tested[users], *(totals[name][users] for name in values)]).astype(np.float64)
    rng = np.random.default_rng(seed)
    sums = np.empty((1 + samples, table.shape[1]))
    sums[0] = table.sum(axis=0)
    for sample in range(samples):
        drawn = np.bincount(rng.integers(0, len(users), len(users)), minlength=len(users))
        sums[1 + sample] = drawn @ table
    means = sums[:, 1:] / sums[:, :1]
    return {name: means[:, column] for column, name in enumerate(values)}


def interval(means: np.ndarray) -> list[float]:
    """[value, low, high] of 95 % from what `resampled` gives, or from a difference of two."""
    low, high = np.quantile(means[1:], [0.025, 0.975])
    return [rounded(float(number)) for number in (means[0], low, high)]


def compare(values: Mapping[str, Sequence[np.ndarray]], ours: str, peers: Sequence[str]) -> dict:
    """Mean and interval of each system; its differences to ours, to the best peer and to the best of all.

    "ahead" is the best system if the interval of its lead over each other system is above 0, else None.
    """
    means = resampled(values)
    ranked = sorted(means, key=lambda name: -means[name][0])
    best = ranked[0]
    behind = {name: interval(means[name] - means[best]) for name in means if name != best}
    beyond = bool(behind) and all(high < 0 for _, _, high in behind.values())
    found = {
        "mean": {name: interval(of_system) for name, of_system in means.items()},
        "ahead": best if beyond else None,
        "minus best": {"of": best, **behind},
    }
    peer = next((name for name in ranked if name in peers), None)
    for word, other in (("minus ours", ours), ("minus best peer", peer)):
        if other in means:
            differences = {name: interval(means[name] - means[other]) for name in means if name != other}
            found[word] = {"of": other, **differences}
    return found
