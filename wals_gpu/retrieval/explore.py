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
from wals_gpu.retrieval.posterior import Posterior, variances_by

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
    what its own can be at most, D multiplications (:meth:`.Posterior.variances_at_most`) with a table of the size of
    the items' own, in float32, which the index keeps from the second call on.

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
            squares = index.squares_along(posterior.eigenvectors)
            extra = users.extra(neighbors, part)
            added = None if extra is None else extra.added()
            columns = np.full((len(factors), k), -1, np.int32)
            bounds = np.full(columns.shape, -np.inf, items.dtype)
            known = users.known(part) & (self.noise > 0)
            some = max(_PAIRS // max(len(items), 1), 1)
            for rows in (slice(n, min(n + some, len(factors))) for n in range(0, len(factors), some)):
                most = _scores_at_most(factors[rows], items, index.longest)
                deviation = np.sqrt(posterior.variances_at_most(rows, squares))
                for row in range(rows.start, rows.stop):
                    hidden = None if seen is None else seen.indices[seen.indptr[row] : seen.indptr[row + 1]]
                    permitted = np.flatnonzero(filters.permitted(start + row, hidden))
                    more = np.zeros(1) if added is None else added[[row]].toarray()[0, permitted]
                    at_most = most[row - rows.start, permitted] + more
                    with one_blas_thread():  # systems of one user are small
                        factor = None
                        if known[row]:
                            factor = posterior.factor(row)
                            at_most += self.noise * deviation[row - rows.start, permitted]
                        exact = functools.partial(self._bounds, factors[row], items, permitted, more, factor)
                        best, values = _highest_of(at_most, exact, k)
                    columns[row, : len(best)], bounds[row, : len(best)] = permitted[best], values
            yield part, columns, bounds

    def _bounds(
        self,
        user: NDArray[np.floating],
        items: NDArray[np.floating],
        permitted: NDArray[np.integer],
        more: NDArray[np.floating],
        factor: NDArray[np.float64] | None,
        which: NDArray[np.integer],
    ) -> NDArray[np.float64]:
        """The bounds of some of the permitted items, all of which get `more` beside the dot product.

        Equal items have equal bounds, wherever they are.
        """
        some = items[permitted[which]].astype(np.float64)
        bounds: NDArray[np.float64] = (some * user).sum(axis=1) + np.broadcast_to(more, len(permitted))[which]
        return bounds if factor is None else bounds + self.noise * np.sqrt(variances_by(factor, some))


def _scores_at_most(factors: NDArray[np.floating], items: NDArray[np.floating], longest: float) -> NDArray[np.float64]:
    """No less than the dot products; `longest` is the largest norm of the items.

    In the type of the items, a sum of D products loses up to D eps of the product of both norms.
    """
    type_, d = np.finfo(items.dtype), factors.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        products = (factors @ items.T).astype(np.float64)
        norms = np.linalg.norm(factors.astype(np.float64), axis=1, keepdims=True)
    products[~np.isfinite(products)] = np.inf
    products += (d + 4) * (float(type_.eps) * longest * norms + float(type_.tiny))
    return products


def _highest_of(
    at_most: NDArray[np.float64], exact: Callable[[NDArray[np.integer]], NDArray[np.float64]], k: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Positions of the k highest numbers, as :func:`.highest` has them, and the numbers: `exact` says some of them,
    which are no more than `at_most`."""
    first = highest(at_most, 4 * k)
    found = exact(first)
    least = np.partition(found, len(found) - k)[len(found) - k] if k < len(found) else -np.inf
    least -= 8 * np.finfo(np.float64).eps * abs(least)
    among = np.union1d(first, np.flatnonzero(at_most >= least))
    found = exact(among)  # all at once: equal items then have equal numbers
    best = highest(found, k)
    return among[best], found[best]


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
