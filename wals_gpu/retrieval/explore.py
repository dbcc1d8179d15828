"""Recommendations with the uncertainty of the scores in mind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.retrieval.exact import CHUNK, ExactIndex, Filters
from wals_gpu.retrieval.posterior import Posterior

__all__ = ["Exploration", "Users"]


@dataclass(frozen=True)
class Users:
    """Users to find items for, given by functions of a slice of them.

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
    """

    n: int
    factors: Callable[[slice], NDArray[np.floating]]
    seen: Callable[[slice], csr_matrix | None]
    posterior: Callable[[slice], Posterior]
    keys: NDArray[np.integer]


@dataclass(frozen=True)
class Exploration:
    """How to find items for users: by their scores, or with the uncertainty of the scores.

    Parameters
    ----------
    kind : {None, "ucb", "thompson"}
        None: the scores. "ucb": score + noise sqrt(y' A^-1 y). "thompson": scores of one draw of the user's factors.
    noise : float
    seed : int
        Of the draws. A user's draw depends on it and on the user, not on who else is asked for.
    """

    kind: str | None = None
    noise: float = 1.0
    seed: int = 0

    def chunks(
        self, index: ExactIndex, users: Users, k: int, filters: Filters, chunk: int = CHUNK
    ) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]:
        """As :meth:`ExactIndex.chunks`."""
        if self.kind == "ucb":
            return self._upper_bounds(index, users, k, filters, chunk)
        queries = users.factors if self.kind is None else lambda part: self._drawn(users, part)
        return index.chunks(queries, users.n, k, filters, users.seen, chunk)

    def _drawn(self, users: Users, part: slice) -> NDArray[np.floating]:
        factors, posterior = users.factors(part), users.posterior(part)
        drawn = np.empty_like(factors)
        for row, key in enumerate(users.keys[part]):
            drawn[row] = factors[row] + posterior.draw(row, self.noise, np.random.default_rng([self.seed, int(key)]))
        return drawn

    def _upper_bounds(
        self, index: ExactIndex, users: Users, k: int, filters: Filters, chunk: int
    ) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]:
        """Every item's variance is computed, I D^2 multiplications a user: there is no shortcut to the best."""
        items = index.vectors
        for start in range(0, users.n, chunk):
            part = slice(start, min(start + chunk, users.n))
            factors, posterior, seen = users.factors(part), users.posterior(part), users.seen(part)
            columns = np.full((len(factors), k), -1, np.int32)
            bounds = np.full(columns.shape, -np.inf, items.dtype)
            for row in range(len(factors)):
                hidden = None if seen is None else seen.indices[seen.indptr[row] : seen.indptr[row + 1]]
                permitted = np.flatnonzero(filters.permitted(start + row, hidden))
                bound = items[permitted] @ factors[row].astype(np.float64)
                bound += self.noise * np.sqrt(posterior.variances(row, items[permitted]))
                best = _best(bound, k)
                columns[row, : len(best)], bounds[row, : len(best)] = permitted[best], bound[best]
            yield part, columns, bounds


def _best(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Positions of the k highest scores: score down, position up."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
