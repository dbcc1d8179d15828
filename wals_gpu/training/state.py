"""The state of a fit: two sides that are solved in turn, and what is known after each iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.backends.session import Backend, Session
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.tables import Tabular, format_table, html_table
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.terms import SideTerms
from wals_gpu.priors.steps import PriorSteps

__all__ = ["FitRecord", "FitState", "History", "Side"]


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
        Wall time of the iteration, the loss included; validation, checkpoint and callback not.
    validation : float or None
        The metric on held-out interactions; None where it was not measured.
    user_strength, item_strength : float or None
        Mean strength of the side's prior, if it has one. Where it is learned, the losses of two iterations are values
        of one objective only if it is the same in both.
    """

    iteration: int
    loss: float | None
    seconds: float
    validation: float | None = None
    user_strength: float | None = None
    item_strength: float | None = None


class History(list[FitRecord], Tabular):
    """The list of the iterations of a fit; ``print`` shows a table, and tables of other libraries are a call away.

    Examples
    --------
    >>> history = History([FitRecord(1, 12.5, 0.25), FitRecord(2, 10.0, 0.25)])
    >>> print(history)
    iteration     loss  seconds
    ---------  -------  -------
            1  12.5000   0.2500
            2  10.0000   0.2500
    >>> history.to_arrow()["loss"].to_pylist()
    [12.5, 10.0]
    """

    def to_arrow(self) -> pa.Table:
        """As an Arrow table with a row for each iteration and the columns of :class:`FitRecord`; null where None."""
        names = [field.name for field in fields(FitRecord)]
        kinds = dict.fromkeys(names, pa.float64()) | {"iteration": pa.int64()}
        return pa.table({name: pa.array([getattr(record, name) for record in self], kinds[name]) for name in names})

    def _lines(self) -> tuple[list[str], list[list[object]]]:
        """The columns that hold anything, for people."""
        names = [field.name for field in fields(FitRecord)]
        names = [name for name in names[:3] if self] + [
            name for name in names[3:] if any(getattr(record, name) is not None for record in self)
        ]
        blank = ((getattr(record, name) for name in names) for record in self)
        return names, [["" if value is None else value for value in row] for row in blank]

    def __str__(self) -> str:
        return format_table(*self._lines()) if self else "no iterations"

    def _repr_html_(self) -> str:
        return html_table(*self._lines()) if self else "<p>no iterations</p>"


@dataclass(eq=False)
class Side:
    """The users, or the items, in a fit.

    Parameters
    ----------
    name : {"user", "item"}
    terms : SideTerms
        Of its R rows.
    factors : (R, D) array
        Start values; written by the fit.
    ids : Ids or None
        Of the rows, for error messages.
    prior : PriorSteps or None
        Of the rows, bound to the same terms.
    """

    name: str
    terms: SideTerms
    factors: NDArray[np.floating]
    ids: Ids | None = None
    prior: PriorSteps | None = None

    def name_of(self, row: int) -> str:
        """A row in the user's words, such as "user 3 (id 'ann')"."""
        return f"{self.name} {row}" if self.ids is None else f"{self.name} {row} (id {self.ids.take(row)!r})"


class FitState:
    """Two sides that are solved in turn, in an open session.

    Parameters
    ----------
    session : Session
        Of the factors of both sides.
    users, items : Side
    options : SolveOptions
    compute_loss : bool
    over_relaxation : float, default 1
        See :class:`wals_gpu.WALS`.
    """

    def __init__(
        self,
        session: Session,
        users: Side,
        items: Side,
        options: SolveOptions,
        compute_loss: bool,
        over_relaxation: float = 1.0,
    ) -> None:
        self.session = session
        self.users, self.items = users, items
        self.options = options
        self.compute_loss = compute_loss
        self.over_relaxation = over_relaxation
        features = {side.name: side.prior.features for side in (users, items) if side.prior is not None}
        on_device = session.features(features) if features else None
        for side in (users, items):
            if side.prior is not None and on_device is not None:
                side.prior.attach(on_device[side.name])

    def iterate(self, iteration: int) -> float | None:
        """Iteration number `iteration`, 1 for the first; the loss after it, if it is wanted."""
        # The first leaves random factors behind, and the next ones are far from where the steps become linear and
        # relaxation pays: it rises with them.
        relaxation = 1.0 if iteration == 1 else min(self.over_relaxation, 1 + 0.1 * iteration)
        options = self.options.relaxed(relaxation)
        if self.users.prior is not None or self.items.prior is not None:
            return self._iterate_with_priors(options)
        users, items = self.users.terms, self.items.terms
        return self.session.iterate(users, items, options, self._errors_of, return_loss=self.compute_loss)

    def _iterate_with_priors(self, options: SolveOptions) -> float | None:
        for side, other in ((self.users, self.items), (self.items, self.users)):
            if side.prior is not None and side.prior.fitted.prior.learn != "none":
                side.prior.learn(self.session.factors(side.name), self.session.factors(other.name))
        self._sweep_with_prior(self.users, self.items, options)
        data = self._sweep_with_prior(self.items, self.users, options, return_loss=self.compute_loss)
        penalty = self._balance()
        return None if data is None else self.users.terms.target_square + data + penalty

    def _balance(self) -> float:
        """Scale one side up and the other down, to the minimum of the loss; the penalties after it.

        Scores stay as they are, and penalties are squares: those of the users become p / c^2 where those of the items
        become q c^2, least where both are sqrt(p q). The sweeps alone drift there slowly: where a prior leaves the
        items no ridge towards 0, nothing but W's own ridge and the users' holds the scale.
        """
        p, q = self._penalty(self.users), self._penalty(self.items)
        if not (p > 0 and q > 0):
            return p + q
        scale = (p / q) ** 0.25
        for side, factor in ((self.users, 1 / scale), (self.items, scale)):
            self.session.scale(side.name, factor)
            if side.prior is not None:
                side.prior.scale_by(factor)
        return 2 * math.sqrt(p * q)

    def _penalty(self, side: Side) -> float:
        """What the loss has beside the data part for one side: its ridge, or its prior."""
        if side.prior is not None:
            return side.prior.penalty(side.factors)
        return self.session.ridge_loss(side.name, side.terms.ridge)

    def _sweep_with_prior(
        self, side: Side, other: Side, options: SolveOptions, *, return_loss: bool = False
    ) -> float | None:
        """Solve the rows of a side, let its prior follow, if it has one; with `return_loss`, the data part."""
        terms = side.terms if side.prior is None else side.prior.terms
        target = None if side.prior is None else side.prior.target()
        loss = self._sweep(side, terms, options, target, return_loss=return_loss)
        if loss is not None:
            loss -= self.session.ridge_loss(side.name, terms.ridge, target)
        change = 0.0 if side.prior is None else side.prior.update(side.factors, other.factors)
        return None if loss is None else loss + change

    def _sweep(
        self,
        side: Side,
        terms: SideTerms,
        options: SolveOptions,
        target: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """Solve the rows of a side, with these terms and prior means."""
        with self._errors_of(side.name):
            return self.session.solve(side.name, terms, options, target, return_loss=return_loss)

    @contextmanager
    def _errors_of(self, name: str) -> Iterator[None]:
        """Errors of a side's solve name its rows in the user's words."""
        side = self.users if name == "user" else self.items
        try:
            yield
        except SingularSystemError as error:
            if error.who is not None:  # by the rank that has the row
                raise
            raise SingularSystemError(error.row, error.remedy, side.name_of(error.row)) from error
        except ModelFitError as error:
            raise ModelFitError(f"{name}s: {error}") from error

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the next iteration depends on, by name; not copied."""
        arrays = self.session.arrays()
        for side in (self.users, self.items):
            if side.prior is not None:
                fitted = side.prior.fitted
                arrays |= {f"{side.name}_prior.weights": fitted.weights, f"{side.name}_prior.scale": fitted.scale}
        return arrays

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`arrays` gave once; ValueError where that was of another fit."""
        own, other = ({n: (a.shape, a.dtype.name) for n, a in state.items()} for state in (self.arrays(), arrays))
        if own != other:
            raise ValueError(f"the state of a fit must be {own}, got {other}")
        self.session.restore(dict(arrays))
        for side in (self.users, self.items):
            if side.prior is not None:
                fitted = side.prior.fitted
                np.copyto(fitted.weights, arrays[f"{side.name}_prior.weights"])
                np.copyto(fitted.scale, arrays[f"{side.name}_prior.scale"])
                side.prior.refresh()

    def strengths(self) -> tuple[float | None, float | None]:
        """Mean strength of the priors of users and items."""
        users, items = (None if s.prior is None else s.prior.mean_strength for s in (self.users, self.items))
        return users, items

    def leave_device(self, backend: Backend) -> None:
        """What is left to do is done on another device: that of the session is lost."""
        for side in (self.users, self.items):
            if side.prior is not None:
                side.prior.move_to(backend)

    def finish(self) -> None:
        """Close the session: the factors are the caller's again, in the basis that they began in."""
        self.session.close()
        for side in (self.users, self.items):
            if side.prior is not None:
                side.prior.attach(None)
        for side, other in ((self.users, self.items), (self.items, self.users)):
            if side.prior is not None:
                side.prior.finish(side.factors, other.factors)
