"""The fit loop: sweeps over the users and the items in turn, and what is known after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from wals_gpu.backends import Backend
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.ids import Ids
from wals_gpu.row_terms import RowTerms

__all__ = ["FitRecord", "FitState", "Side", "run_fit"]


@dataclass(frozen=True)
class FitRecord:
    """One iteration of :meth:`WALS.fit`: a sweep over the users, then one over the items.

    Attributes
    ----------
    iteration : int
        1 for the first.
    loss : float or None
        The objective after it, over all U x I pairs; None with ``compute_loss=False``.
    seconds : float
        Wall time of the iteration, the loss included, the callback not.
    """

    iteration: int
    loss: float | None
    seconds: float


@dataclass(eq=False)
class Side:
    """The users, or the items, in a fit.

    Parameters
    ----------
    name : {"user", "item"}
    terms : RowTerms
        Of its R rows.
    factors : (R, D) array
        Start values; written by the fit.
    ids : Ids or None
        Of the rows, for error messages.
    """

    name: str
    terms: RowTerms
    factors: NDArray[np.floating]
    ids: Ids | None = None


class FitState:
    """Two sides that are solved in turn.

    Until :meth:`finish`, both sides may be in a basis other than the one they started in, the same for both, that suits
    the solver: their dot products, norms and loss are those of the final model, single coordinates are not.

    Parameters
    ----------
    backend : Backend
    users, items : Side
    how : dict
        Arguments of :meth:`Backend.solve_rows` that say which solver.
    compute_loss : bool
    """

    def __init__(self, backend: Backend, users: Side, items: Side, how: dict[str, Any], compute_loss: bool) -> None:
        self.backend = backend
        self.users, self.items = users, items
        self.how = how
        self.compute_loss = compute_loss
        self.basis = backend.moving_basis(users.factors, items.factors)

    def iterate(self) -> float | None:
        """One iteration; the loss after it, if it is wanted."""
        self._sweep(self.users, self.items)
        item_loss = self._sweep(self.items, self.users, return_loss=self.compute_loss)
        if item_loss is None:
            return None
        # The constant, and the ridge of the side that was not solved last.
        terms = self.users.terms
        return terms.target_square + item_loss + self.backend.ridge_loss(self.users.factors, terms.ridge)

    def _sweep(self, side: Side, other: Side, *, return_loss: bool = False) -> float | None:
        try:
            return self.backend.solve_rows(
                side.terms, other.factors, side.factors, return_loss=return_loss, basis=self.basis, **self.how
            )
        except SingularSystemError as error:
            who = f"{side.name} {error.row}"
            if side.ids is not None:
                who += f" (id {side.ids.take(error.row)!r})"
            raise SingularSystemError(error.row, error.remedy, who) from error
        except ModelFitError as error:
            raise ModelFitError(f"{side.name}s: {error}") from error

    def finish(self) -> None:
        """Bring both sides back to the basis they started in."""
        if self.basis is not None:
            self.backend.restore_basis(self.users.factors, self.items.factors, self.basis)
            self.basis = None


def run_fit(
    state: FitState, iterations: Iterable[int], after: Callable[[FitRecord], bool], *, show_progress: bool
) -> None:
    """Iterate, and call ``after(record)`` each time, until it is true or the iterations are done.

    Parameters
    ----------
    state : FitState
        Finished in the end, whatever ends it.
    iterations : iterable of int
        Numbers for the records.
    after : callable
    show_progress : bool
        A progress bar with the loss.
    """
    iterations = list(iterations)
    try:
        with tqdm(total=len(iterations), disable=not show_progress, desc="WALS", unit="it") as progress:
            for iteration in iterations:
                started = time.perf_counter()
                loss = state.iterate()
                record = FitRecord(iteration, loss, time.perf_counter() - started)
                if loss is not None:
                    progress.set_postfix(loss=f"{loss:.6g}", refresh=False)
                progress.update()
                if after(record):
                    return
    finally:
        state.finish()
