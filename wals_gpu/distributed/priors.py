"""The rows of a prior's side that lie on other ranks: what the steps of priors ask of them, see :mod:`.priors.rows`.

Each rank has the features, the prior means and the factors of its own rows. Sums of the size of the weights go to rank
0 and come back; W and b are the same on all ranks. Line searches need the other side's factors as they are: these
travel as they do for a half-sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.host import Spectrum
from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.group import Group, gather_uneven, of_each, together
from wals_gpu.distributed.session import ShardedSession, ShardedTerms
from wals_gpu.objective.terms import Floats, RowTerms, other_side
from wals_gpu.priors.rows import Piece, add_pieces, chunk_rows, column_sums, pieces_here, sum_of_pieces

__all__ = ["RowsOnRanks"]

Result = TypeVar("Result")


class RowsOnRanks:
    """See :class:`.priors.rows.AllRows`. Every rank makes the same calls.

    Parameters
    ----------
    group : Group
    session : ShardedSession
        Of both sides.
    side : {"user", "item"}
        That of the prior.
    terms : dict of str to ShardedTerms
        Of both sides, under the objective alone.
    """

    def __init__(self, group: Group, session: ShardedSession, side: str, terms: dict[str, ShardedTerms]) -> None:
        self._group, self._session, self._side, self._of_sides = group, session, side, terms
        self._cuts = terms[side].cuts
        self._who = f"the prior of {side}s"
        self.first, self.n = self._cuts.of(group.rank).start, self._cuts.n_rows

    def alone(self, work: Callable[[], Result]) -> Result:
        """See :meth:`.AllRows.alone`."""
        found: list[Result] = []
        with together(self._group, self._who):
            found.append(work())
        return found[0]

    def total(self, here: int, work: Callable[[slice], Any], threads: int) -> Floats:
        """See :meth:`.AllRows.total`: pieces go to rank 0, their sum to all."""
        group, size = self._group, self._group.size
        places = [_places(self._cuts, rank) for rank in range(size)]
        counts = [len(of_rank) if group.rank == 0 else 0 for of_rank in places]

        def add_up() -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
            own = pieces_here(self.first, here, work, threads)
            values = np.array([piece.value.ravel() for piece in own])[: len(places[group.rank])]
            return values, np.empty((sum(counts), values.shape[1])), own[0].value.shape

        values, received, shape = self.alone(add_up)
        group.exchange_rows([values if rank == 0 else values[:0] for rank in range(size)], counts, received)
        total = np.zeros(values.shape[1])
        if group.rank == 0:
            ends = [end for of_rank in places for end in of_rank]
            pieces = [Piece(*place, value) for place, value in zip(ends, received, strict=True)]
            total = np.ascontiguousarray(sum_of_pieces(add_pieces([], pieces)))
        group.broadcast(total)
        return total.reshape(shape)

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """See :meth:`.AllRows.gather`."""
        return gather_uneven(self._group, rows)

    def agree(self, *arrays: NDArray[Any]) -> None:
        """See :meth:`.AllRows.agree`: those of rank 0."""
        for array in arrays:
            held = np.ascontiguousarray(array)
            self._group.broadcast(held)
            if held is not array:
                array[...] = held

    def column_sums(self, terms: RowTerms, n_other: int) -> Floats:
        """See :meth:`.AllRows.column_sums`: each rank has the entries of its rows of the other side, in this order."""
        other = self._of_sides[other_side(self._side)]

        def own() -> Floats:
            rows = np.repeat(np.arange(other.own.n_rows), np.diff(other.own.row_ptr))
            return column_sums(rows, other.own.gram_values(), other.own.n_rows)

        return self._group.gather_rows(self.alone(own), other.cuts.counts)

    def spectrum(self, terms: RowTerms, other: NDArray[np.floating]) -> Spectrum:
        """See :meth:`.AllRows.spectrum`."""
        any_row = bool(of_each(self._group, bool(terms.background.any())).any())
        return self._session.spectrum(
            other_side(self._side), terms.other_background, any_row and bool(np.any(terms.other_background))
        )

    def products(
        self, terms: RowTerms, factors: list[NDArray[np.floating]], other: NDArray[np.floating]
    ) -> list[NDArray[np.floating]]:
        """See :meth:`.AllRows.products`."""
        return self._session.products(self._side, terms, factors)

    def solve(self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating]) -> None:
        """See :meth:`.AllRows.solve`."""
        self._session.solve_to(self._side, replace(self._of_sides[self._side], own=terms), factors)

    def solve_some(
        self, terms: RowTerms, other: NDArray[np.floating], factors: NDArray[np.floating], mean: NDArray[np.floating]
    ) -> None:
        """See :meth:`.AllRows.solve_some`."""
        self._session.solve_some(self._side, terms, factors, mean, self.spectrum(terms, other))

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], mean: NDArray[np.floating] | None = None
    ) -> float:
        """See :meth:`.AllRows.ridge_loss`."""
        return self._session.ridge_loss(self._side, ridge, mean)


@cache
def _places_of(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Levels and indexes of the pieces that chunks `first` to before `last` make."""
    nothing = np.zeros(())
    return tuple(piece[:2] for piece in add_pieces([], [Piece(0, chunk, nothing) for chunk in range(first, last)]))


def _places(cuts: Cuts, rank: int) -> tuple[tuple[int, int], ...]:
    """Those of a rank's rows."""
    rows, size = cuts.of(rank), chunk_rows()
    if rows.start == rows.stop:
        return ()
    return _places_of(rows.start // size, -(-rows.stop // size))
