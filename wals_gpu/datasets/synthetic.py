"""Seeded implicit feedback of any size: long-tailed rows and columns over a planted low-rank preference."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# (n_users, n_items, n_entries) of well-known data sets, rounded, for ``synthetic(*SHAPES[name])``.
SHAPES = {
    "ml-1m": (6_040, 3_700, 1_000_000),
    "ml-20m": (136_677, 20_108, 10_000_000),
    "msd": (571_355, 41_140, 33_600_000),
}

# Fitted to ML-20M as the implicit-feedback literature filters it: row lengths have median 33 and 95th percentile 260,
# column lengths median 89 and 99th percentile 9,122 (here: 33, 260, 89, 8,525).
_USER_SPREAD = 1.25
_POPULARITY_EXPONENT = 1.5
_POPULARITY_SHIFT = 0.01
# How differently topics see an item (standard deviation of the log), and how mixed a user's taste is (Dirichlet). With
# these a truncated SVD finds about 1.6 times as many held-out items as popularity; with 1.0 and 0.2 it finds fewer.
_TOPIC_SPREAD = 2.0
_TOPIC_CONCENTRATION = 0.1

# Entries that are drawn at a time. The result depends on it, as it does on the seed.
_CHUNK_ENTRIES = 2_000_000
# Rejecting repetitions gets slow for rows that hold most of the popular items; these are finished by sorting all items.
_REJECTION_ROUNDS = 8


def synthetic(
    n_users: int, n_items: int, n_entries: int, *, rank: int = 16, random_state: int = 0
) -> sparse.csr_matrix:
    """Generate implicit feedback that looks like that of a shop or a film site.

    Row lengths are log-normal, item popularity follows a shifted power law (Zipf-Mandelbrot) over shuffled ids. User u
    draws its items without replacement from P_u = sum_k theta_uk phi_k, with theta_u a Dirichlet mixture of ``rank``
    topics and phi_k a distribution over the items: the matrix of probabilities has rank ``rank``, so there is something
    to learn beyond popularity. Values are 1, 2, ... (geometric with mean 2), independent of all this.

    Parameters
    ----------
    n_users, n_items : int
        Shape (U, I) of the matrix; see also ``SHAPES``.
    n_entries : int
        Number of entries Z, at least ``n_users`` and at most U I. Every user has at least one; an item may have none.
    rank : int, default 16
        Number of topics.
    random_state : int, default 0
        Seed. The same arguments give the same matrix.

    Returns
    -------
    csr_matrix, (U, I), float32
        Canonical: sorted columns, exactly ``n_entries`` entries, none twice.

    Raises
    ------
    ValueError
        If a size is not positive, or ``n_entries`` does not fit.

    Examples
    --------
    >>> synthetic(*SHAPES["ml-1m"]).shape
    (6040, 3700)
    """
    sizes = {"n_users": n_users, "n_items": n_items, "n_entries": n_entries, "rank": rank}
    for name, size in sizes.items():
        if operator.index(size) < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if not n_users <= n_entries <= n_users * n_items:
        bounds = f"n_users = {n_users} and n_users * n_items = {n_users * n_items}"
        raise ValueError(f"n_entries must be between {bounds}, got {n_entries}")

    rng = np.random.default_rng(random_state)
    lengths = _row_lengths(rng, n_users, n_items, n_entries)
    ranks = np.arange(1, n_items + 1)
    popularity = (ranks + _POPULARITY_SHIFT * n_items) ** -_POPULARITY_EXPONENT
    topics = rng.permutation(popularity) * np.exp(_TOPIC_SPREAD * rng.standard_normal((rank, n_items)))
    topics /= topics.sum(axis=1, keepdims=True)

    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.empty(n_entries, np.int32)
    cuts = np.searchsorted(indptr, np.arange(_CHUNK_ENTRIES, n_entries, _CHUNK_ENTRIES))
    for first, last in zip([0, *cuts], [*cuts, n_users], strict=True):
        mixtures = rng.dirichlet(np.full(rank, _TOPIC_CONCENTRATION), last - first)
        indices[indptr[first] : indptr[last]] = _draw_items(rng, lengths[first:last], mixtures, topics)
    values = rng.geometric(0.5, n_entries).astype(np.float32)
    return sparse.csr_matrix((values, indices, indptr), shape=(n_users, n_items))


def _row_lengths(rng: np.random.Generator, n_users: int, n_items: int, n_entries: int) -> NDArray[np.int64]:
    """(U,) log-normal lengths in [1, n_items] that add up to n_entries."""
    raw = np.exp(_USER_SPREAD * rng.standard_normal(n_users))
    low, high = 0.0, float(n_items) / raw.min()
    for _ in range(100):  # bisection on the scale, down to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * raw, 1, n_items).sum() < n_entries else (low, middle)
    exact = np.clip(high * raw, 1, n_items)
    lengths: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    # Largest remainders round up, so that the sum is exact.
    lengths[np.argsort(lengths - exact, kind="stable")[: n_entries - lengths.sum()]] += 1
    return lengths


def _draw_items(
    rng: np.random.Generator, lengths: NDArray[np.int64], mixtures: NDArray[np.float64], topics: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Columns of R rows, sorted within each row: row r draws lengths[r] distinct items from mixtures[r] @ topics.

    Successive sampling: repeated draws are rejected until the row is full.
    """
    n_rows, (rank, n_items) = len(lengths), topics.shape
    # Distributions are laid end to end, the k-th one in [k, k+1), so that one search serves all of them.
    mixture_ends = _laid_end_to_end(mixtures)
    topic_ends = _laid_end_to_end(topics)
    keys: NDArray[np.int64] = np.empty(0, np.int64)  # row * n_items + item, sorted
    missing = lengths
    for _ in range(_REJECTION_ROUNDS):
        rows = np.repeat(np.arange(n_rows), missing)
        topic = np.searchsorted(mixture_ends, rows + rng.random(len(rows)), side="right") - rows * rank
        item = np.searchsorted(topic_ends, topic + rng.random(len(rows)), side="right") - topic * n_items
        keys = np.sort(np.concatenate([keys, rows * n_items + item]))
        # np.unique, which hashes, took ten times as long as the rest of this function (NumPy 2.4).
        keys = keys[np.diff(keys, prepend=-1) > 0]
        missing = lengths - np.bincount(keys // n_items, minlength=n_rows)
        if not missing.any():
            return np.asarray(keys % n_items)
    parts = [keys]
    row_ends = np.searchsorted(keys, np.arange(n_rows + 1) * n_items)
    for row in np.flatnonzero(missing):
        # The same law in one step: the largest of log p + Gumbel noise are a successive sample (Yellott 1977).
        scores = np.log(mixtures[row] @ topics) + rng.gumbel(size=n_items)
        scores[keys[row_ends[row] : row_ends[row + 1]] - row * n_items] = -np.inf
        parts.append(row * n_items + np.argpartition(-scores, missing[row] - 1)[: missing[row]])
    return np.asarray(np.sort(np.concatenate(parts)) % n_items)


def _laid_end_to_end(distributions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n * m,) right ends of the m intervals of each of n distributions, the k-th one filling [k, k+1)."""
    ends = np.cumsum(distributions, axis=1)
    ends[:, -1] = 1.0
    np.minimum(ends, 1.0, out=ends)
    return (ends + np.arange(len(ends))[:, None]).ravel()
