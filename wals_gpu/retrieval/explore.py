"""Recommendations with the uncertainty of the scores in mind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.checks import integer, number
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.lists import Filters
from wals_gpu.retrieval.neighbors import Extra, Neighbors, highest
from wals_gpu.retrieval.posterior import ITEMS, Posterior, variances_by

__all__ = ["UCB", "Chunks", "Part", "Thompson", "Users", "best_items", "make_exploration"]

Chunks = Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]

#: Some of a row of things: a slice, or their numbers.
Part = slice | NDArray[np.integer]

#: Pairs of a user and an item whose scores and bounds are kept at a time: 64 MiB.
_PAIRS = 1 << 22


def _nothing(part: Part) -> csr_matrix | None:
    """What nobody has."""
    return None


@dataclass(frozen=True)
class Users:
    """Users to find items for, given by functions of a slice of them, or of numbers of some.

    Parameters
    ----------
    n : int
    factors : callable
        (b, D).
    seen : callable
        Items not to show them, (b, I) canonical CSR or None.
    posterior : callable
        Their Posterior.
    keys : (n,) array of int
        Who they are: draws depend on the seed and on this.
    history : callable
        What they have, (b, I) CSR or None: entries above 0 add to the scores of neighbours.
    cold : (n,) array of bool, optional
        Of whom nothing is known: their factors are as they are, and there is nothing to explore with.
    """

    n: int
    factors: Callable[[Part], NDArray[np.floating]]
    seen: Callable[[Part], csr_matrix | None]
    posterior: Callable[[Part], Posterior]
    keys: NDArray[np.integer]
    history: Callable[[Part], csr_matrix | None] = _nothing
    cold: NDArray[np.bool_] | None = None

    def of(self, rows: NDArray[np.integer]) -> Users:
        """Some of them, by their numbers (m,)."""
        own = {name: _picked(getattr(self, name), rows) for name in ("factors", "seen", "posterior", "history")}
        cold = None if self.cold is None else self.cold[rows]
        return replace(self, n=len(rows), keys=self.keys[rows], cold=cold, **own)

    def known(self, part: slice) -> NDArray[np.bool_]:
        """Of whom of a slice something is known, (b,)."""
        return np.ones(part.stop - part.start, bool) if self.cold is None else ~self.cold[part]

    def extra(self, neighbors: Neighbors | None, part: slice) -> Extra | None:
        """What neighbours add to the scores of a slice of them."""
        history = None if neighbors is None else self.history(part)
        return None if neighbors is None or history is None else Extra(neighbors, history)


def _picked(function: Callable[[Part], Any], rows: NDArray[np.integer]) -> Callable[[Part], Any]:
    return lambda part: function(rows[part])


@dataclass(frozen=True)
class UCB:
    """Rank by the upper confidence bounds ``score + noise sqrt(y' A^-1 y)``: the same call, the same answer.

    Variances, D^2 multiplications each, are computed of the items whose bound can be among the best: first each gets
    what its own can be at most, D multiplications (:meth:`.Posterior.variances_at_most`).

    Parameters
    ----------
    noise : float, default 1.0
        Standard deviation of an observation of confidence 1. 0 explores nothing.
    """

    noise: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", number("noise", self.noise))

    def chunks(
        self,
        index: ExactIndex,
        users: Users,
        k: int,
        filters: Filters,
        chunk: int = CHUNK,
        neighbors: Neighbors | None = None,
    ) -> Chunks:
        """The k best items for users, a chunk of users after the other, as :meth:`.ExactIndex.chunks`.

        Parameters
        ----------
        index : ExactIndex
            Of the items.
        users : Users
        k : int
        filters : Filters
            Of these users.
        chunk : int, default 4096
            Users of a chunk.
        neighbors : Neighbors, optional
            What is added to the dot products.

        Yields
        ------
        part : slice
        columns : (b, k) int32
        scores : (b, k)
            The bounds.
        """
        items = index.vectors
        for start in range(0, users.n, chunk):
            part = slice(start, min(start + chunk, users.n))
            factors, posterior, seen = users.factors(part), users.posterior(part), users.seen(part)
            extra = users.extra(neighbors, part)
            added = None if extra is None else extra.added()
            columns = np.full((len(factors), k), -1, np.int32)
            bounds = np.full(columns.shape, -np.inf, items.dtype)
            known = users.known(part) & (self.noise > 0)
            some = max(_PAIRS // max(len(items), 1), 1)
            for rows in (slice(n, min(n + some, len(factors))) for n in range(0, len(factors), some)):
                scores = _products(factors[rows], items)
                most = np.sqrt(posterior.variances_at_most(rows, items))
                for row, score, deviation in zip(range(rows.start, rows.stop), scores, most, strict=True):
                    hidden = None if seen is None else seen.indices[seen.indptr[row] : seen.indptr[row + 1]]
                    permitted = np.flatnonzero(filters.permitted(start + row, hidden))
                    bound = score[permitted]
                    if added is not None:
                        bound += added[[row]].toarray()[0, permitted]
                    if known[row]:
                        with one_blas_thread():  # systems of one user are small
                            factor = posterior.factor(row)
                            deviations = functools.partial(self._deviations, factor, items, permitted)
                            best, values = _highest_of(bound, self.noise * deviation[permitted], deviations, k)
                    else:
                        best = highest(bound, k)
                        values = bound[best]
                    columns[row, : len(best)], bounds[row, : len(best)] = permitted[best], values
            yield part, columns, bounds

    def _deviations(
        self,
        factor: NDArray[np.float64],
        items: NDArray[np.floating],
        permitted: NDArray[np.integer],
        which: NDArray[np.integer],
    ) -> NDArray[np.float64]:
        """What some of the permitted items get beside their scores."""
        deviations: NDArray[np.float64] = self.noise * np.sqrt(variances_by(factor, items[permitted[which]]))
        return deviations


def _products(factors: NDArray[np.floating], items: NDArray[np.floating]) -> NDArray[np.float64]:
    """Dot products in float64, without a copy of all items in it."""
    products = np.empty((len(factors), len(items)))
    wide = factors.astype(np.float64)
    for start in range(0, len(items), ITEMS):
        part = slice(start, start + ITEMS)
        products[:, part] = wide @ items[part].T.astype(np.float64)
    return products


def _highest_of(
    scores: NDArray[np.float64],
    at_most: NDArray[np.float64],
    added_to: Callable[[NDArray[np.integer]], NDArray[np.float64]],
    k: int,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Positions of the k highest sums of a score and what is added to it, as :func:`.highest` has them, and the sums.

    `added_to` says it of some positions; it is no more than `at_most`.
    """
    first = highest(scores + at_most, 4 * k)
    sums = scores[first] + added_to(first)
    least = np.partition(sums, len(sums) - k)[len(sums) - k] if k < len(sums) else -np.inf
    least -= 8 * np.finfo(np.float64).eps * abs(least)
    among = np.union1d(first, np.flatnonzero(scores + at_most >= least))
    sums = scores[among] + added_to(among)  # all at once: equal items then have equal sums
    best = highest(sums, k)
    return among[best], sums[best]


@dataclass(frozen=True)
class Thompson:
    """Rank by the scores of one draw of the user's factors.

    Parameters
    ----------
    noise : float, default 1.0
        Standard deviation of an observation of confidence 1. 0 explores nothing.
    seed : int or None
        Of the draws. A user's draw depends on it and on the user, not on who else is there. None: every call has a new
        one from the operating system.
    """

    noise: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", number("noise", self.noise))
        if self.seed is not None:
            object.__setattr__(self, "seed", integer("seed", self.seed, 0))

    def chunks(
        self,
        index: ExactIndex,
        users: Users,
        k: int,
        filters: Filters,
        chunk: int = CHUNK,
        neighbors: Neighbors | None = None,
    ) -> Chunks:
        """The k best items for users, a chunk of users after the other, as :meth:`.ExactIndex.chunks`.

        Parameters
        ----------
        index, users, k, filters, chunk, neighbors
            As of :meth:`UCB.chunks`.

        Returns
        -------
        iterator of (slice, (b, k) int32 array, (b, k) array)
            Scores are those of the draws.
        """
        seed: Any = np.random.SeedSequence(self.seed).entropy  # the seed itself, where there is one

        def drawn(part: slice) -> NDArray[np.floating]:
            factors, posterior = users.factors(part), users.posterior(part)
            draws = np.array(factors)
            with one_blas_thread():
                for row in np.flatnonzero(users.known(part)).tolist():
                    key = int(users.keys[part.start + row])
                    draws[row] += posterior.draw(row, self.noise, np.random.default_rng([seed, key]))
            return draws

        extra_of = functools.partial(users.extra, neighbors)
        return index.chunks(drawn, users.n, k, filters, users.seen, chunk, extra_of)


def make_exploration(
    explore: str | UCB | Thompson | None, noise: float | None, random_state: int | np.random.Generator | None
) -> UCB | Thompson | None:
    """The object that the options of ``recommend`` stand for; None ranks by the scores alone.

    Raises
    ------
    TypeError, ValueError
        An option of a wrong kind or value, or one that has no meaning beside the others.
    """
    if isinstance(explore, (UCB, Thompson)):
        for name, value in (("noise", noise), ("random_state", random_state)):
            if value is not None:
                raise ValueError(f"{name} has no meaning beside an object: explore={explore!r} says it all")
        return explore
    if not (explore is None or (isinstance(explore, str) and explore in ("ucb", "thompson"))):
        raise ValueError(f"explore must be None, 'ucb' or 'thompson', got {explore!r}")
    if explore is None and noise is not None:
        raise ValueError("noise has a meaning only with explore='ucb' or 'thompson'")
    if explore != "thompson" and random_state is not None:
        raise ValueError("random_state has a meaning only with explore='thompson'")
    if explore is None:
        return None
    noise = 1.0 if noise is None else noise
    if explore == "ucb":
        return UCB(noise)
    if isinstance(random_state, np.random.Generator):
        random_state = int(random_state.integers(2**63))
    return Thompson(noise, None if random_state is None else integer("random_state", random_state, 0))


def best_items(
    index: ExactIndex,
    users: Users,
    k: int,
    filters: Filters,
    explore: UCB | Thompson | None = None,
    chunk: int = CHUNK,
    neighbors: Neighbors | None = None,
) -> Chunks:
    """The k best items of an index for users, by their scores or exploring, as :meth:`ExactIndex.chunks`."""
    if explore is None:
        extra_of = functools.partial(users.extra, neighbors)
        return index.chunks(users.factors, users.n, k, filters, users.seen, chunk, extra_of)
    return explore.chunks(index, users, k, filters, chunk, neighbors)
