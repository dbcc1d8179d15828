"""The state of a fit: two sides that are solved in turn, and what is known after each iteration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.devices import Backend, held
from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import StoredTerms
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.steps import PriorSteps

__all__ = ["FitRecord", "FitState", "Side"]


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


@dataclass(eq=False)
class Side:
    """The users, or the items, in a fit.

    Parameters
    ----------
    name : {"user", "item"}
    terms : RowTerms or StoredTerms
        Of its R rows.
    factors : (R, D) array
        Start values; written by the fit.
    ids : Ids or None
        Of the rows, for error messages.
    prior : PriorSteps or None
        Of the rows, bound to the same terms.
    """

    name: str
    terms: RowTerms | StoredTerms
    factors: NDArray[np.floating]
    ids: Ids | None = None
    prior: PriorSteps | None = None


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
    over_relaxation : float, default 1
        See :class:`.model.WALS`.
    """

    def __init__(
        self,
        backend: Backend,
        users: Side,
        items: Side,
        how: dict[str, Any],
        compute_loss: bool,
        over_relaxation: float = 1.0,
    ) -> None:
        self.backend = backend
        self.users, self.items = users, items
        self.how = how
        self.compute_loss = compute_loss
        self.over_relaxation = over_relaxation
        # Parts of a side are solved one by one, so that their factors cannot be rotated together; prior means are given
        # in the basis that the factors started in.
        moving = all(isinstance(side.terms, RowTerms) and side.prior is None for side in (users, items))
        self.basis = backend.moving_basis(users.factors, items.factors) if moving else None

    def iterate(self, iteration: int) -> float | None:
        """Iteration number `iteration`, 1 for the first; the loss after it, if it is wanted."""
        # The first leaves random factors behind, and the next ones are far from where the steps become linear and
        # relaxation pays: it rises with them.
        self.how["relaxation"] = 1.0 if iteration == 1 else min(self.over_relaxation, 1 + 0.1 * iteration)
        if self.users.prior is not None or self.items.prior is not None:
            return self._iterate_with_priors()
        self._sweep(self.users, self.items)
        item_loss = self._sweep(self.items, self.users, return_loss=self.compute_loss)
        if item_loss is None:
            return None
        # The constant, and the ridge of the side that was not solved last.
        return self.users.terms.target_square + item_loss + self._penalty(self.users)

    def _iterate_with_priors(self) -> float | None:
        for side, other in ((self.users, self.items), (self.items, self.users)):
            if side.prior is not None:
                side.prior.learn(side.factors, other.factors)
        self._sweep_with_prior(self.users, self.items)
        data = self._sweep_with_prior(self.items, self.users, return_loss=self.compute_loss)
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
            side.factors *= side.factors.dtype.type(factor)
            if side.prior is not None:
                side.prior.scale_by(factor)
        return 2 * math.sqrt(p * q)

    def _penalty(self, side: Side) -> float:
        """What the loss has beside the data part for one side: its ridge, or its prior."""
        if side.prior is not None:
            return side.prior.penalty(side.factors)
        return self.backend.ridge_loss(side.factors, side.terms.ridge)

    def _sweep_with_prior(self, side: Side, other: Side, *, return_loss: bool = False) -> float | None:
        """Solve the rows of a side, let its prior follow, if it has one; with `return_loss`, the data part."""
        terms = side.terms if side.prior is None else side.prior.terms
        target = None if side.prior is None else side.prior.target()
        loss = self._sweep(side, other, terms, target, return_loss=return_loss)
        if loss is not None:
            loss -= self.backend.ridge_loss(side.factors, terms.ridge, target)
        change = 0.0 if side.prior is None else side.prior.update(side.factors, other.factors)
        return None if loss is None else loss + change

    def _sweep(
        self,
        side: Side,
        other: Side,
        terms: RowTerms | StoredTerms | None = None,
        target: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """Solve the rows of a side, by default with its own terms and no prior means."""
        terms = side.terms if terms is None else terms
        how = self.how | {"return_loss": return_loss, "basis": self.basis}
        first, total = 0, 0.0
        try:
            if self.basis is None:
                how["spectrum"] = self.backend.spectrum(terms, other.factors)
            for rows, part in terms.parts():
                first = rows.start
                prior = None if target is None else target[rows]
                total += self.backend.solve_rows(part, other.factors, side.factors[rows], prior=prior, **how) or 0.0
                del part  # before the next part is read
        except SingularSystemError as error:
            row = first + error.row
            who = f"{side.name} {row}" if side.ids is None else f"{side.name} {row} (id {side.ids.take(row)!r})"
            raise SingularSystemError(row, error.remedy, who) from error
        except ModelFitError as error:
            raise ModelFitError(f"{side.name}s: {error}") from error
        return total if return_loss else None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the next iteration depends on, by name; not copied."""
        arrays = {"user_factors": self.users.factors, "item_factors": self.items.factors}
        for side in (self.users, self.items):
            if side.prior is not None:
                fitted = side.prior.fitted
                arrays |= {f"{side.name}_prior.weights": fitted.weights, f"{side.name}_prior.scale": fitted.scale}
        return arrays if self.basis is None else arrays | {"basis": self.basis}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`arrays` gave once; ValueError where that was of another fit."""
        own = self.arrays()
        wanted, got = ({n: (a.shape, a.dtype.name) for n, a in each.items()} for each in (own, arrays))
        if wanted != got:
            raise ValueError(f"the state of a fit must be {wanted}, got {got}")
        for name, array in own.items():
            np.copyto(array, arrays[name])
        for side in (self.users, self.items):
            if side.prior is not None:
                side.prior.refresh()

    def held(self) -> AbstractContextManager[None]:
        """The factors may be on the device alone while it lasts; priors read and write them on the host."""
        sides = (self.users, self.items)
        return held(self.backend, *(side.factors for side in sides if all(s.prior is None for s in sides)))

    def strengths(self) -> tuple[float | None, float | None]:
        """Mean strength of the priors of users and items."""
        users, items = (None if s.prior is None else float(s.prior.strength.mean()) for s in (self.users, self.items))
        return users, items

    def finish(self) -> None:
        """Bring both sides back to the basis they started in."""
        if self.basis is not None:
            self.backend.restore_basis(self.users.factors, self.items.factors, self.basis)
            self.basis = None
        for side in (self.users, self.items):
            if side.prior is not None:
                side.prior.finish()
