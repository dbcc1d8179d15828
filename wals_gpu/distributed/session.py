"""Half-sweeps of a side that lies on several ranks: the steps of one machine, with collectives between them.

With side S solved and F the other one, on each rank:

1. Gram matrices of slabs of F, by the rank that has most of a slab; all add them up in the same order. The eigenproblem
   is solved by rank 0.
2. The rank's rows of both sides are rotated into the basis, where without priors they stay, and those of F travel
   (:mod:`.tables`).
3. The rank's rows of S are solved by the kernels of one machine.
4. Losses of blocks of rows are added up in order.

Nothing of this depends on how the rows are divided, and one process does the same
(:class:`wals_gpu.backends.cpu.CpuSession`), so the factors have its bits on machines of one instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cpu import CpuBackend, HostSession, block_sums
from wals_gpu.backends.devices import limits
from wals_gpu.backends.host import Spectrum, check_gram, decompose, decompose_rows, in_order, no_spectrum, whiten
from wals_gpu.backends.solve import EXACT, SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import one_each, terms_of_rows
from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.group import Group, gather_json, of_each, together
from wals_gpu.distributed.shards import Shards
from wals_gpu.distributed.tables import Part, Tables, make_tables
from wals_gpu.errors import SingularSystemError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.terms import RowTerms, SideTerms, other_side
from wals_gpu.priors.rows import listed_entries

__all__ = ["ShardedSession", "ShardedTerms"]


@dataclass(frozen=True, eq=False)
class ShardedTerms:
    """The terms of the rank's own rows of a side, with what is known of all: :class:`.terms.SideTerms`.

    Parameters
    ----------
    own : RowTerms
        Of the rank's rows; columns are all rows of the other side.
    cuts : Cuts
        Of the side.
    target_square : float
        Of all ranks.
    has_background : bool
        Whether unobserved pairs weigh anything on any rank.
    ids : Ids, optional
        Of the rank's rows, for error messages.
    """

    own: RowTerms
    cuts: Cuts
    target_square: float
    has_background: bool
    ids: Ids | None = None

    @property
    def background(self) -> NDArray[np.floating]:
        """``g`` of the rank's rows."""
        return self.own.background

    @property
    def ridge(self) -> NDArray[np.floating]:
        """``lambda`` of the rank's rows."""
        return self.own.ridge

    @property
    def other_background(self) -> NDArray[np.floating]:
        """``h`` of all columns."""
        return self.own.other_background

    def parts(self) -> Iterator[tuple[slice, RowTerms]]:
        """The rank's rows, in one part."""
        yield from self.own.parts()

    @classmethod
    def of(cls, shards: Shards, bound: BoundObjective, side: str) -> ShardedTerms:
        """The terms of a side. Every rank makes the call.

        Raises
        ------
        ValueError
            A value of some rank has no meaning for the objective.
        """
        group, (matrix, cuts) = shards.group, shards.rows_of(side)
        rows, step = cuts.of(group.rank), int(limits().loss_rows)
        squares = []
        with together(group, f"{side}s"):
            own = terms_of_rows(bound, side, rows, matrix)
            for start in range(rows.start, rows.stop, step):
                some = slice(start, min(start + step, rows.stop))
                block = matrix[some.start - rows.start : some.stop - rows.start]
                if shards.has_repeats:
                    block.has_canonical_format = True
                squares.append(terms_of_rows(bound, side, some, block).target_square)
        own = _as_of_the_whole(group, own)
        square = in_order(group.gather_rows(np.array(squares, np.float64), cuts.blocks(step)))
        any_row = of_each(group, own.background.any()).any()
        ids = shards.user_ids if side == "user" else shards.item_ids
        return cls(own, cuts, square, bool(any_row and own.other_background.any()), ids)


def _as_of_the_whole(group: Group, own: RowTerms) -> RowTerms:
    """One coefficient for all entries is solved with other roundings than one for each: a rank may have one by chance.
    It is solved as the whole matrix would be."""
    mine: list[Any] = []
    if own.n_entries:
        one = float(own.rhs[0]) if own.rhs.size == 1 else None
        offset = own.gram_offset if own.rhs.size > 1 and own.gram is None else None
        mine = [[one, offset]]
    found = [pair for of_rank in gather_json(group, mine) for pair in of_rank]
    coefficients = {one for one, _ in found}
    if len(coefficients) <= 1 and None not in coefficients:
        return own
    with together(group, "making room for coefficients"):
        own = one_each(own, next((offset for _, offset in found if offset is not None), None))
    return own


class ShardedSession(HostSession):
    """See :class:`.session.Session`. Arrays are the rank's own rows; every rank makes the same calls.

    Parameters
    ----------
    group : Group
    backend : CpuBackend
        Of this rank.
    users, items : (own rows, D)
        Solved in place.
    user_terms, item_terms : ShardedTerms
    mode : {"auto", "all", "halo", "blocks"}
        How the other side's factors come, see :mod:`.tables`.
    table_bytes : int, optional
        Memory that "auto" may give to them.
    may_move : bool, default False
        As of :meth:`.session.Backend.session`.
    """

    def __init__(
        self,
        group: Group,
        backend: CpuBackend,
        users: NDArray[np.floating],
        items: NDArray[np.floating],
        user_terms: ShardedTerms,
        item_terms: ShardedTerms,
        mode: str = "auto",
        table_bytes: int | None = None,
        may_move: bool = False,
    ) -> None:
        self.group = group
        self._terms = terms = {"user": user_terms, "item": item_terms}
        self._cuts = {side: of_side.cuts for side, of_side in terms.items()}
        row_bytes = backend.rotated(users[:0], Spectrum(np.zeros(users.shape[1]), None)).shape[1] * users.itemsize
        self.tables: dict[str, Tables] = {
            side: make_tables(group, self._cuts[other_side(side)], of_side.own, mode, row_bytes, table_bytes)
            for side, of_side in terms.items()
        }
        n_factors = users.shape[1]
        moves = may_move and backend.moves(n_factors, sum(cuts.n_rows for cuts in self._cuts.values()))
        super().__init__(backend, users, items, moves)
        self._some: dict[str, Tables] = {}  # of the rows of :meth:`solve_some`
        # Side, weights and spectrum of the last solve: the line search that follows it needs the same.
        self._kept: tuple[str, NDArray[np.floating], Spectrum] | None = None
        self._slabs = {side: _Slabs(group, cuts, n_factors) for side, cuts in self._cuts.items()}

    def solve(
        self,
        side: str,
        terms: SideTerms,
        options: SolveOptions,
        prior: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """See :meth:`.session.Session.solve`; the loss is that of all ranks. Terms (of rows) that are not those which
        the session was opened with may differ from them in their ridge alone."""
        if isinstance(terms, RowTerms):
            terms = replace(self._terms[side], own=terms)
        assert isinstance(terms, ShardedTerms)
        own = self._sides[side]
        with together(self.group, "making room for losses"):
            row_loss = np.zeros(len(own)) if return_loss else None
        self._solve(side, terms, own, options, prior, row_loss)
        return None if row_loss is None else self._total(side, row_loss)

    def solve_to(self, side: str, terms: ShardedTerms, target: NDArray[np.floating]) -> None:
        """Solve a side exactly, not into its factors but into another array (own rows, D)."""
        self._solve(side, terms, target, EXACT, None, None)

    def _solve(
        self,
        side: str,
        terms: ShardedTerms,
        own: NDArray[np.floating],
        options: SolveOptions,
        prior: NDArray[np.floating] | None,
        row_loss: NDArray[np.float64] | None,
    ) -> None:
        self._kept = None
        error: Exception | None = None
        solve: Callable[..., None]
        seen, spectrum = self._sides[other_side(side)], None
        if prior is None and terms.has_background and self._backend.takes_plain_steps(own.shape[1], options):
            gram = self._gram(other_side(side), terms.other_background)
            solve = partial(self._backend.solve_plain, gram=gram, options=options)
        elif (whitening := self._whitening(side, terms, options, prior)) is not None:
            with together(self.group, "whitening factors"):
                seen = self._backend.whitened(seen, whitening)
            solve = partial(self._backend.solve_whitened, whitening=whitening)
        else:
            spectrum = self.spectrum(other_side(side), terms.other_background, terms.has_background)
            if self.basis is None:
                seen = self._rotated(seen, spectrum)
            else:
                with together(self.group, "rotating factors"):
                    spectrum = self._move(side, spectrum, options)
            solve = partial(self._backend.solve_rotated, spectrum=spectrum, options=options)
        has_own_ridge = terms.own.ridge is not self._terms[side].own.ridge
        for part, table in self.tables[side].rounds(seen, lambda n: self._empty(n, seen)):
            if error is not None or not part.terms.n_rows:
                continue
            target, losses = own[part.rows], None if row_loss is None else row_loss[part.rows]
            means = {} if prior is None else {"prior": prior[part.rows]}
            try:
                of_part = part.terms
                if has_own_ridge:
                    ridge = terms.own.ridge
                    of_part = replace(of_part, ridge=ridge if len(ridge) == 1 else ridge[part.rows])
                solve(of_part, table, factors=target, row_loss=losses, **means)
            except SingularSystemError as singular:
                place = part.rows.start + singular.row
                row = self._cuts[side].of(self.group.rank).start + place
                who = f"{side} {row}" if terms.ids is None else f"{side} {row} (id {terms.ids[place]!r})"
                error = SingularSystemError(row, singular.remedy, who)
            except Exception as failed:  # goes through the other rounds, which all ranks take part in
                error = failed
        with together(self.group, f"solving {side}s"):
            if error is not None:
                raise error
        if prior is not None and spectrum is not None:
            self._kept = (other_side(side), terms.other_background, spectrum)

    def solve_some(
        self,
        side: str,
        terms: RowTerms,
        target: NDArray[np.floating],
        prior: NDArray[np.floating],
        spectrum: Spectrum,
    ) -> None:
        """Solve some rows of a side exactly, the same ones in each call, into `target`, with prior means.

        Parameters
        ----------
        side : {"user", "item"}
        terms : RowTerms
            Of n of the rank's rows; columns are all rows of the other side.
        target, prior : (n, D)
        spectrum : Spectrum
            Of the other side.
        """
        other = self._sides[other_side(side)]
        if side not in self._some:
            self._some[side] = Tables(
                self.group, self._cuts[other_side(side)], [Part(slice(0, terms.n_rows), terms)], "halo"
            )
        seen = self._rotated(other, spectrum)
        for part, table in self._some[side].rounds(seen, lambda n: self._empty(n, seen)):
            with together(self.group, f"solving some {side}s"):
                if terms.n_rows:
                    placed = replace(terms, col_idx=part.terms.col_idx)
                    self._backend.solve_rotated(placed, table, spectrum, target, EXACT, prior)

    def products(self, side: str, terms: RowTerms, factors: list[NDArray[np.floating]]) -> list[NDArray[np.floating]]:
        """Dot products of each entry's row, of each of several arrays (own rows, D), with what it meets of the other
        side, (Z,) each."""
        other, found = self._sides[other_side(side)], []
        with together(self.group, "making room for scores"):
            found = [np.empty(terms.n_entries, array.dtype) for array in factors]
        error: Exception | None = None
        for part, table in self.tables[side].rounds(other, lambda n: self._empty(n, other)):
            if error is not None or not part.terms.n_rows:
                continue
            entries = slice(int(terms.row_ptr[part.rows.start]), int(terms.row_ptr[part.rows.stop]))
            try:
                listed = listed_entries(part.terms, len(table))
                for array, scores in zip(factors, found, strict=True):
                    scores[entries] = self._backend.score_entries(array[part.rows], table, listed)
            except Exception as failed:
                error = failed
        with together(self.group, f"scoring entries of {side}s"):
            if error is not None:
                raise error
        return found

    def scale(self, side: str, factor: float) -> None:
        """See :meth:`.session.Session.scale`."""
        self._kept = None
        super().scale(side, factor)

    def _whitening(
        self, side: str, terms: ShardedTerms, options: SolveOptions, prior: NDArray[np.floating] | None
    ) -> NDArray[np.float64] | None:
        """What :func:`.host.whiten` finds on rank 0, for all ranks; None where the side is solved without."""
        other = other_side(side)
        n_rows, n_other = (self._cuts[name].n_rows for name in (side, other))
        ridge = self._whitened_ridge(terms.own, options, prior, n_rows, n_other)
        ridges = of_each(self.group, np.nan if ridge is None else ridge)
        if not (ridges == ridges[0]).all():
            return None
        gram = self._gram(other, terms.other_background)
        with together(self.group):
            found = whiten(gram, ridges[0]) if self.group.rank == 0 else None
        if not of_each(self.group, found is not None)[0]:
            return None
        whitening = gram if found is None else found
        self.group.broadcast(whitening)
        return whitening

    def _gram(self, side: str, weight: NDArray[np.floating]) -> NDArray[np.float64]:
        gram = self._slabs[side].gram(self._backend, self._sides[side], weight)
        with together(self.group):
            check_gram(gram)
        return gram

    def spectrum(self, side: str, weight: NDArray[np.floating], is_wanted: bool = True) -> Spectrum:
        """Of a side's factors with these weights, (R,) of all ranks or (1,); without `is_wanted`, that of zeros."""
        width = self._sides[side].shape[1]
        if not is_wanted:
            return no_spectrum(width)
        if self._kept is not None and self._kept[0] == side and self._kept[1] is weight:
            return self._kept[2]
        values, vectors = np.empty(width), np.empty((width, width))
        is_few = CpuBackend.decomposes_rows(self._cuts[side].n_rows, width)
        given: NDArray[Any] = self.gathered(side) if is_few else self._gram(side, weight)
        with together(self.group):
            if self.group.rank == 0:
                found = decompose_rows(given, weight) if is_few else decompose(given)
                assert found.vectors is not None
                values, vectors = found.values, np.ascontiguousarray(found.vectors)
        self.group.broadcast(values)
        self.group.broadcast(vectors)
        return Spectrum(values, vectors)

    def _rotated(self, other: NDArray[np.floating], spectrum: Spectrum) -> NDArray[np.floating]:
        rotated = other
        with together(self.group, "rotating factors"):
            rotated = self._backend.rotated(other, spectrum)
        return rotated

    def _empty(self, n: int, like: NDArray[np.floating]) -> NDArray[np.floating]:
        """At least a row: an array without any starts on no cache line."""
        return self._backend.empty_factors(max(n, 1), like.shape[1], like.dtype)[:n]

    def _total(self, side: str, row_loss: NDArray[np.float64]) -> float:
        """The sum of the rows of all ranks, block by block."""
        blocks = self._cuts[side].blocks(int(limits().loss_rows))
        return in_order(self.group.gather_rows(block_sums(row_loss), blocks))

    def loss(self, user_terms: RowTerms, item_ridge: NDArray[np.floating]) -> float:
        """Not there: a fit on several ranks has the loss from its sweeps."""
        raise NotImplementedError

    def ridge_loss(self, side: str, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None) -> float:
        """See :meth:`.session.Session.ridge_loss`; of all ranks."""
        losses = self._backend.ridge_losses(self._sides[side], ridge, prior)
        return in_order(self.group.gather_rows(losses, self._cuts[side].blocks(int(limits().loss_rows))))

    def gathered(self, side: str) -> NDArray[np.floating]:
        """The rows of all ranks, (R, D). Every rank makes the call."""
        own, cuts = self._sides[side], self._cuts[side]
        table = own
        with together(self.group, f"making room for the factors of all {side}s"):
            table = np.empty((cuts.n_rows, own.shape[1]), own.dtype)
        return self.group.gather_rows(own, cuts.counts, table)

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """See :meth:`.session.Session.restore`."""
        self._kept = None
        super().restore(arrays)


class _Slabs:
    """The slabs of rows that the Gram matrix of a side is summed in, and the ranks that sum them."""

    def __init__(self, group: Group, cuts: Cuts, factors: int) -> None:
        self._group, self._factors = group, factors
        n = cuts.n_rows
        self._bounds = CpuBackend.gram_bounds(n, factors)
        # A slab belongs to who has its middle row. Slabs of a rank are neighbours, as its rows are.
        middles = (self._bounds[:-1] + self._bounds[1:]) // 2
        owners = np.minimum(cuts.owners(np.minimum(middles, max(n - 1, 0))), group.size - 1)
        self._slabs = np.searchsorted(owners, np.arange(group.size + 1))
        needed = self._bounds[self._slabs]  # rows of the slabs of each rank, [needed[r], needed[r + 1])
        own = cuts.of(group.rank)
        # Rows that this rank gives to each rank, and those that it gets from each.
        self._given = [
            slice(*(np.clip([needed[r], needed[r + 1]], own.start, own.stop) - own.start)) for r in range(group.size)
        ]
        mine = needed[group.rank], needed[group.rank + 1]
        self._start = mine[0]
        self._wanted = np.diff(np.clip(cuts.bounds, *mine)).tolist()

    def gram(self, backend: CpuBackend, own: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float64]:
        """The weighted Gram matrix of the rows of all ranks, (D, D)."""
        group, width = self._group, self._factors
        with together(group, "making room for slabs"):
            rows = np.empty((sum(self._wanted), width), own.dtype)
        group.exchange_rows([own[given] for given in self._given], self._wanted, rows)
        first, last = self._slabs[group.rank], self._slabs[group.rank + 1]
        bounds = self._bounds[first : last + 1] - self._start
        of_rows = weight if len(weight) == 1 else weight[self._start : self._start + len(rows)]
        with together(group, "adding up slabs"):
            sums = backend.gram_slabs(rows, of_rows, bounds) if last > first else np.empty((0, width, width))
        upper = np.zeros((width, width))
        for slab in group.gather_rows(sums, np.diff(self._slabs).tolist()):
            upper += slab
        return np.triu(upper) + np.triu(upper, 1).T
