"""Re-ranking: lists whose items differ from one another, keep to quotas, or are less popular.

The items with the highest scores, the *pool* of a user, are put into another order, one place after the other; what
comes next depends on what is there already. The relevance of an item is its score on a scale that is the same for all
users: ``r_i = (s_i - min) / (max - min)`` over the user's pool, from 0 to 1, less
``popularity_penalty * log(1 + n_i) / log(1 + max_j n_j)`` with n_i the training entries of an item.

====================  ===============================================================================================
:class:`MMR`          next is the item with the highest ``(1 - w) r_i - w max_j cos(v_i, v_j)`` over those in the list:
                      maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998)
:class:`DPP`          next is the item that raises ``(1 - w) sum_i r_i + w log det S`` of the list most: the greedy MAP
                      of a determinantal point process with the kernel ``q_i S_ij q_j`` (Chen, Zhang and Zhou, NeurIPS
                      2018), whose Cholesky factor grows by a row for each item: O(k^2 n) a user
====================  ===============================================================================================

The first item of a list is the one with the highest relevance, also with w = 1. Of equal values, the lower item number
comes first. Similarity is the cosine of the items' factors, or of other vectors; a zero vector is like nothing.

Shapes: B users, b of a batch, I items, n candidates of a pool, E numbers of a vector, k places of a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import integer, number, refuse_ids, warn
from wals_gpu.data.features import refuse_id_column
from wals_gpu.retrieval.explore import Chunks
from wals_gpu.retrieval.quotas import Quotas, QuotasLeft

__all__ = ["DPP", "MMR", "Reranking", "pool_size"]

#: A pool without a size of its own: so many candidates for each place of a list, and so many at least.
POOL_PER_PLACE, POOL = 10, 100
#: What an item has in common with nothing, not even with its own copy: keeps determinants away from 0, so that a list
#: may be longer than its vectors and have copies. ``S_ij = (1 - SHARE) cos(v_i, v_j)`` for i != j, ``S_ii = 1``.
SHARE = 0.01
#: Bytes of vectors that are worked on at a time; larger ones do not stay in a cache.
_BYTES = 1 << 24

#: Candidates for some users (None: all), so many for each, with scores in falling order; in chunks of some size.
Search = Callable[[NDArray[np.integer] | None, int, int | None], Chunks]


def pool_size(k: int, pool: int | None) -> int:
    """How many candidates a list of k is made from."""
    return max(POOL, POOL_PER_PLACE * k) if pool is None else max(pool, k)


class _Growing(Protocol):
    """Lists under way, from the vectors of their candidates (b, n, E)."""

    def values(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each candidate (b, n) is worth as the next one; the first has been chosen."""

    def add(self, places: NDArray[np.integer]) -> None:
        """Each of the b lists took the candidate at its place."""


@dataclass(frozen=True, eq=False)
class _Diversity:
    weight: float = 0.3
    by: Any = "factors"
    pool: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", number("weight", self.weight, 0, 1))
        if self.pool is not None:
            object.__setattr__(self, "pool", integer("pool", self.pool, 1))
        if isinstance(self.by, str):
            if self.by not in ("factors", "prior"):
                raise ValueError(f"by must be 'factors', 'prior' or an array (I, E), got {self.by!r:.60}")
        else:
            refuse_ids("by", self.by, "model.item_ids.ids")
            refuse_id_column("by", self.by, "model.item_ids.ids")
            vectors = np.asarray(self.by)
            if vectors.ndim != 2 or not vectors.shape[1] or vectors.dtype.kind not in "iuf":
                got = f"{vectors.dtype} {vectors.shape}"
                raise TypeError(f"by must be 'factors', 'prior' or an array (I, E) of numbers, got {got}")
            if not np.isfinite(vectors).all():
                raise ValueError("by must be finite, got NaN or infinity")
            object.__setattr__(self, "by", vectors)

    def grow(self, vectors: NDArray[Any], k: int) -> _Growing:
        """Lists under way, which take one candidate after the other.

        Parameters
        ----------
        vectors : (b, n, E) array
            Of the n candidates of each of b users.
        k : int
            Places of a list.

        Returns
        -------
        object
            Its ``values(relevance)`` are what each candidate (b, n) is worth as the next one; ``add(places)`` takes one
            for each list.
        """
        raise NotImplementedError


class MMR(_Diversity):
    """Maximal marginal relevance: the next item is good, and unlike the most similar one that is there.

    Parameters
    ----------
    weight : float from 0 to 1, default 0.3
        w of ``(1 - w) r_i - w max_j cos(v_i, v_j)``. 0: the order of the scores. 1: after the first item, only what is
        unlike those before counts.
    by : {"factors", "prior"} or (I, E) array, default "factors"
        What items are similar by. "prior": the prior means of a model with an item_prior, which is what their texts say
        of them. An array has a row for each item, in the order of the model's ids, such as embeddings of its text.
    pool : int, optional
        Candidates of each user. Default: 10 for each place of the list, at least 100.
    """

    def grow(self, vectors: NDArray[Any], k: int) -> _Growing:
        return _Nearest(vectors, self.weight)


class DPP(_Diversity):
    """Greedy determinantal point process: the next item is good, and adds most to what the list spans.

    Where MMR looks at the most similar item only, this looks at all that are there together.

    Parameters
    ----------
    weight : float from 0 to 1, default 0.3
        w of ``(1 - w) sum_i r_i + w log det S``, with ``S_ij = 0.99 cos(v_i, v_j)`` for i != j and ``S_ii = 1``; theta
        of Chen et al. is 1 - w.
    by, pool
        As for :class:`MMR`.
    """

    def grow(self, vectors: NDArray[Any], k: int) -> _Growing:
        return _Volume(vectors, self.weight, k)


class _Nearest:
    def __init__(self, vectors: NDArray[Any], weight: float) -> None:
        self._candidates, self._weight = _Candidates(vectors), weight
        self._nearest = np.full(vectors.shape[:2], -np.inf)

    def values(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = (1 - self._weight) * relevance - self._weight * self._nearest
        return values

    def add(self, places: NDArray[np.integer]) -> None:
        np.maximum(self._nearest, self._candidates.cosines(places), out=self._nearest)


class _Volume:
    """Algorithm 1 of Chen, Zhang and Zhou, for b lists at once: `_rest` is d_i^2, `_factor` has the rows c_i."""

    def __init__(self, vectors: NDArray[Any], weight: float, k: int) -> None:
        self._candidates, self._weight = _Candidates(vectors), weight
        self._rows = np.arange(len(vectors))
        self._rest = np.ones(vectors.shape[:2])
        self._factor = np.zeros((*vectors.shape[:2], k))
        self._length = 0

    def values(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        # S - SHARE * identity has no negative eigenvalue, so the rest is at least SHARE but for rounding
        values: NDArray[np.float64] = (1 - self._weight) * relevance + self._weight * np.log(
            np.maximum(self._rest, SHARE)
        )
        return values

    def add(self, places: NDArray[np.integer]) -> None:
        at, known = self._length, self._factor[:, :, : self._length]
        similar = (1 - SHARE) * self._candidates.cosines(places)
        similar -= np.einsum("bnt,bt->bn", known, known[self._rows, places])
        row = similar / np.sqrt(np.maximum(self._rest[self._rows, places], SHARE))[:, None]
        self._factor[:, :, at] = row
        self._rest -= row**2
        self._length += 1


class _Candidates:
    """Cosines between the candidates (b, n) of each user, from their vectors (b, n, E)."""

    def __init__(self, vectors: NDArray[Any]) -> None:
        self.vectors = vectors if vectors.dtype in (np.float32, np.float64) else vectors.astype(np.float64)
        self._rows = np.arange(len(vectors))
        limits = np.finfo(self.vectors.dtype)
        with np.errstate(over="ignore", under="ignore"):
            squares = np.einsum("bne,bne->bn", self.vectors, self.vectors)
        if not ((squares > limits.tiny / limits.eps) & (squares < limits.max)).all():
            # Zero vectors, or numbers whose squares leave the type: by their largest number first
            largest = np.abs(self.vectors).max(axis=2, keepdims=True)
            self.vectors = self.vectors / np.where(largest > 0, largest, self.vectors.dtype.type(1))
            squares = np.einsum("bne,bne->bn", self.vectors, self.vectors)
        exact = squares.astype(np.float64)
        self._inverse = np.where(exact > 0, 1 / np.sqrt(np.where(exact > 0, exact, 1)), 0.0)

    def cosines(self, places: NDArray[np.integer]) -> NDArray[np.float64]:
        """Of all candidates (b, n) with the one at each row's place; copies of a vector have the same to the bit."""
        # Not a product of matrices: BLAS sums rows in different orders, and ties would fall as they come
        products = np.einsum("bne,be->bn", self.vectors, self.vectors[self._rows, places])
        cosines: NDArray[np.float64] = products * self._inverse * self._inverse[self._rows, places][:, None]
        return cosines


@dataclass(frozen=True, eq=False)
class Reranking:
    """What is done with the candidates of each user.

    Parameters
    ----------
    diversity : MMR or DPP, optional
    vectors : (I, E) array, optional
        What it compares items by.
    quotas : Quotas, optional
    penalty : float, default 0.0
        Of popularity.
    popularity : (I,) array of int, optional
        Training entries of each item; with a penalty.
    """

    diversity: MMR | DPP | None = None
    vectors: NDArray[Any] | None = None
    quotas: Quotas | None = None
    penalty: float = 0.0
    popularity: NDArray[np.integer] | None = None

    def chunks(
        self,
        search: Search,
        k: int,
        n_items: int,
        by_popularity: Callable[[slice], NDArray[np.bool_]] | None = None,
    ) -> Chunks:
        """The lists of users, as :meth:`.ExactIndex.chunks`; scores are those of the search.

        A list that quotas leave short, though there may be more items, is made again from a pool that is four times as
        large, and so on.

        Parameters
        ----------
        search : callable
            Candidates for users given by row numbers (None: all), n for each, a chunk of users after the other.
        k : int
        n_items : int
            I.
        by_popularity : callable, optional
            Whose lists (b,) of a slice are the most popular items: no penalty for these.
        """
        if self.quotas is not None:
            self.quotas.check(k)
        n = max(min(pool_size(k, None if self.diversity is None else self.diversity.pool), n_items), 1)
        without = 0
        for part, columns, scores in search(None, n, None):
            plain = np.zeros(len(columns), bool) if by_popularity is None else by_popularity(part)
            scale = _scale(scores)
            ids, values, done, feasible = self._lists(columns, scores, scale, plain, k)
            left = np.flatnonzero(~done & (columns[:, -1] >= 0)) if self.quotas is not None else np.array([], int)
            wide = n
            while len(left) and wide < n_items:
                wide = min(4 * wide, n_items)
                for piece, more, their in search(part.start + left, wide, max(_BYTES // (16 * wide), 1)):
                    rows = left[piece]
                    own = (scale[0][rows], scale[1][rows])
                    ids[rows], values[rows], done[rows], feasible[rows] = self._lists(more, their, own, plain[rows], k)
                    done[rows] |= more[:, -1] < 0
                left = left[~done[left]]
            without += int((~feasible).sum())
            yield part, ids, values
        if without:
            lists = "1 list has" if without == 1 else f"{without:,} lists have"
            warn(f"{lists} fewer items of a category than quotas want: there are no more of it for whom they are for")

    def _lists(
        self,
        columns: NDArray[np.int32],
        scores: NDArray[np.floating],
        scale: tuple[NDArray[np.float64], NDArray[np.float64]],
        plain: NDArray[np.bool_],
        k: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_]]:
        """Lists (b, k) of items and of scores, whether each is full and has what it must, and whether it has that."""
        ids, values = np.full((len(columns), k), -1, np.int32), np.full((len(columns), k), -np.inf, scores.dtype)
        done, feasible = np.ones(len(columns), bool), np.ones(len(columns), bool)
        width = 0 if self.vectors is None else self.vectors.shape[1]
        batch = max(_BYTES // (8 * columns.shape[1] * (width + min(k, columns.shape[1]))), 1)
        for start in range(0, len(columns), batch):
            b = slice(start, start + batch)
            relevance = (scores[b] - scale[0][b, None]) / scale[1][b, None]
            chosen, feasible[b] = self._choose(columns[b], relevance, plain[b], k)
            there = chosen >= 0
            ids[b, : chosen.shape[1]] = np.where(there, np.take_along_axis(columns[b], chosen, 1), -1)
            values[b, : chosen.shape[1]] = np.where(there, np.take_along_axis(scores[b], chosen, 1), -np.inf)
            done[b] = feasible[b] & (ids[b, -1] >= 0)
        return ids, values, done, feasible

    def _choose(
        self, columns: NDArray[np.int32], relevance: NDArray[np.float64], plain: NDArray[np.bool_], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Places of candidates (b, min(k, n)), -1 for none, and whether each list has what it must have."""
        # By item number, so that argmax takes the lowest of equal ones; -1 becomes the highest number there is
        order = np.argsort(columns.view(np.uint32), axis=1, kind="stable")
        columns, relevance = np.take_along_axis(columns, order, 1), np.take_along_axis(relevance, order, 1)
        if self.penalty and self.popularity is not None:
            entries = np.log1p(np.where(columns >= 0, self.popularity[columns], 0))
            cost = self.penalty * (entries / np.log1p(max(int(self.popularity.max()), 1)))
            relevance = relevance - np.where(plain[:, None], 0, cost)
        rows, steps = np.arange(len(columns)), min(k, columns.shape[1])
        open = columns >= 0
        relevance = np.where(open, relevance, 0)  # no infinities, which would spread
        quotas = None if self.quotas is None else QuotasLeft(self.quotas, columns)
        growing: _Growing | None = None
        if self.diversity is not None and self.vectors is not None:
            growing = self.diversity.grow(self.vectors[columns], steps)
        chosen = np.full((len(columns), steps), -1, np.int64)
        for step in range(steps):
            worth = relevance if growing is None or not step else growing.values(relevance)
            may = open if quotas is None else open & quotas.permitted(k - step)
            worth = np.where(may, worth, -np.inf)
            best = worth.argmax(axis=1)
            found = may[rows, best]
            chosen[found, step] = order[rows, best][found]
            open[rows[found], best[found]] = False
            if quotas is not None:
                quotas.add(rows[found], best[found])
            if growing is not None:
                growing.add(best)  # also of lists that have ended, where it does no harm
        return chosen, np.ones(len(columns), bool) if quotas is None else quotas.feasible


def _scale(scores: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest score of each pool (b,), and how far it is to the highest; 1 where all are equal."""
    there = scores > -np.inf
    exact = scores.astype(np.float64)
    low = np.where(there, exact, np.inf).min(axis=1)
    high = np.where(there, exact, -np.inf).max(axis=1)
    low, high = np.where(there.any(axis=1), (low, high), 0.0)
    span = high - low
    return low, np.where(span > 0, span, 1.0)
