"""What every device does: single solves and searches, and sessions, in which both sides are solved in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.solve import EXACT, SolveMemory, SolveOptions, SolveSizes
from wals_gpu.objective.terms import RowTerms, SideTerms

__all__ = ["Backend", "FeatureRows", "KeepingBackend", "NeighborBackend", "Session", "iterate_in_turn"]


class FeatureRows(Protocol):
    """Features F (R, E) of a side's rows on a device, for a linear prior.

    X (R, D) are the session's factors of the side, M (R, D) their prior means. A map is (E+1, D) float64, its constant
    in the last row. Numbers for each row have a name, and are copied there when it is for another array than before.
    """

    def project(self, weights: NDArray[np.float64]) -> None:
        """M becomes what a map gives."""

    def mean(self) -> NDArray[np.floating]:
        """A copy of M."""

    def target(self, weights: NDArray[np.float64], shrunk: NDArray[np.floating] | None) -> Any:
        """Prior means for :meth:`Session.solve`: M, of these weights, times a number of each row, if there is one."""

    def settle(self, weights: NDArray[np.float64], stays: NDArray[np.bool_]) -> None:
        """Rows of X that are not to stay become what a map gives."""

    def move(self, step: NDArray[np.float64]) -> None:
        """X grows by what a map gives."""

    def cross(self, name: str, weight: NDArray[np.float64], *, from_mean: bool = False) -> NDArray[np.float64]:
        """``[F 1]' diag(weight) X``, or of X - M, (E+1, D)."""

    def line(self, step: NDArray[np.float64], terms: RowTerms) -> tuple[float, float]:
        """Sums over the entries of ``(gram x.y - rhs) v.y`` and ``gram (v.y)^2``, v what a map gives for the row."""

    def gram(self, terms: RowTerms) -> NDArray[np.float64] | None:
        """The Gram matrix (D, D) of the other side under these terms; None where it counts for nothing."""

    def spectrum(self, terms: RowTerms) -> Spectrum:
        """As :meth:`Backend.spectrum` of the other side."""

    def ridge_loss(self, name: str, ridge: NDArray[np.float64], *, from_mean: bool = False) -> float:
        """Sum over rows of ``ridge |x|^2``, or of x - m."""


class Session(Protocol):
    """Factors of both sides while they are solved in turn; :meth:`Backend.session` opens one.

    The arrays that it was opened with are the caller's, and right again once it is closed. Meanwhile they may be behind
    what a device has, and in another basis than they began in, the same for both sides: :meth:`factors` brings them up
    to date, and dot products, norms and losses are those of the final factors, single coordinates are not.
    """

    def solve(
        self,
        side: str,
        terms: SideTerms,
        options: SolveOptions,
        prior: NDArray[np.floating] | None = None,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """Solve the rows of `side` ("user" or "item"), given the other; as :meth:`Backend.solve_rows` otherwise."""

    def iterate(
        self,
        users: SideTerms,
        items: SideTerms,
        options: SolveOptions,
        errors_of: Callable[[str], AbstractContextManager[object]] = nullcontext,
        *,
        return_loss: bool = False,
    ) -> float | None:
        """Solve the users, then the items, as two calls of :meth:`solve` without prior means do.

        Errors of a side are raised inside ``with errors_of(side)``. A device may find those of the users when it has
        been given the items, too; these stay as they were all the same.

        Returns
        -------
        float or None
            With `return_loss`, the loss after it: with the constant and both ridges.
        """

    def loss(self, user_terms: RowTerms, item_ridge: NDArray[np.floating]) -> float:
        """As :meth:`Backend.loss` of the present factors, without prior means."""

    def ridge_loss(self, side: str, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None) -> float:
        """As :meth:`Backend.ridge_loss` of the present factors of a side."""

    def features(self, features: Mapping[str, NDArray[np.floating]]) -> Mapping[str, FeatureRows] | None:
        """Features (R, E) of the rows of one side or both, with which a device does what linear priors sum over rows.

        None where the factors are the caller's own arrays between the solves, to be read and written there.
        """

    def scale(self, side: str, factor: float) -> None:
        """Multiply the factors of a side, rounded to their type."""

    def factors(self, side: str) -> NDArray[np.floating]:
        """The caller's array of a side, up to date until the next solve; only to be read."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the next solve depends on, by name, up to date; not copied. :meth:`restore` takes it back."""

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`arrays` gave once, or what a copy of it holds."""

    def close(self) -> None:
        """Leave the factors with the caller, up to date and in the basis that they began in; once is enough."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def iterate_in_turn(
    session: Session,
    users: SideTerms,
    items: SideTerms,
    options: SolveOptions,
    errors_of: Callable[[str], AbstractContextManager[object]],
    return_loss: bool,
) -> float | None:
    """:meth:`Session.iterate` by one solve after the other."""
    with errors_of("user"):
        session.solve("user", users, options)
    with errors_of("item"):
        loss = session.solve("item", items, options, return_loss=return_loss)
    # The constant, and the ridge of the side that was not solved last.
    return None if loss is None else users.target_square + loss + session.ridge_loss("user", users.ridge)


class Backend(Protocol):
    """What every device does, as :mod:`wals_gpu.reference` defines it; :class:`.cpu.CpuBackend` documents the rest."""

    name: str

    def check(
        self,
        *,
        factors: int | None = None,
        dtype: np.dtype | None = None,
        options: SolveOptions | None = None,
        k: int | None = None,
    ) -> None:
        """Refuse, with a :class:`.DeviceError` that names it, what this device cannot do."""

    def session(
        self,
        users: NDArray[np.floating],
        items: NDArray[np.floating],
        *,
        may_move: bool = False,
        is_shared: bool = False,
    ) -> Session:
        """Open a session.

        Parameters
        ----------
        users, items : (U, D) and (I, D)
            C-ordered, best from :meth:`empty_factors`. Solved in place.
        may_move : bool, default False
            Both sides may be left in whatever basis suits the solver, until the session is closed. Not with
            prior means, which are given in the basis that the factors began in.
        is_shared : bool, default False
            The caller writes to the arrays too, between the solves: a device keeps no copies of them.
        """

    def solve_rows(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        factors: NDArray[np.floating],
        options: SolveOptions = EXACT,
        *,
        prior: NDArray[np.floating] | None = None,
        return_loss: bool = False,
        spectrum: Spectrum | None = None,
    ) -> float | None: ...

    def spectrum(self, terms: SideTerms, other: NDArray[np.floating]) -> Spectrum: ...

    def memory_of(self, sizes: SolveSizes) -> SolveMemory: ...

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]: ...

    def loss(
        self,
        user_terms: RowTerms,
        user_factors: NDArray[np.floating],
        item_factors: NDArray[np.floating],
        item_ridge: NDArray[np.floating],
        *,
        user_prior: NDArray[np.floating] | None = None,
        item_prior: NDArray[np.floating] | None = None,
    ) -> float: ...

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float: ...

    def topk(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        excluded: csr_matrix | None = None,
        *,
        permitted: NDArray[np.bool_] | None = None,
        norms: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...

    def topk_listed(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        listed: csr_matrix,
        *,
        norms: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...

    def score_entries(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], listed: csr_matrix
    ) -> NDArray[np.floating]: ...

    def transpose(self, matrix: csr_matrix) -> csr_matrix: ...


@runtime_checkable
class KeepingBackend(Protocol):
    """What devices with a memory of their own have beside."""

    def keep(self, *arrays: NDArray[np.floating]) -> None:
        """These arrays do not change while they live: what is made of them for searches may be kept as long."""


@runtime_checkable
class PreparingBackend(Protocol):
    """What the CPU has beside: items that are searched again and again may be prepared for it.

    ``isinstance(backend, PreparingBackend)`` tells whether this one does. What `prepare` gives, its `topk` and its
    `topk_neighbors` take as ``prepared``, with the same items and norms.
    """

    def prepare(
        self, items: NDArray[np.floating], norms: NDArray[np.floating] | None = None
    ) -> NDArray[np.uint8] | None: ...


@runtime_checkable
class NeighborBackend(Protocol):
    """What some devices have beside: kernels for regressions of items on their neighbours.

    ``isinstance(backend, NeighborBackend)`` tells whether this one has.
    """

    def neighbor_memory(self, n_items: int, n_neighbors: int, dtype: DTypeLike = ...) -> tuple[int, int]: ...

    def fit_neighbors(
        self,
        matrix: csr_matrix,
        user_weights: NDArray[np.floating],
        n_neighbors: int,
        ridge: float,
        *,
        transposed: csr_matrix | None = None,
        memory: int | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...

    def topk_neighbors(
        self,
        queries: NDArray[np.floating],
        items: NDArray[np.floating],
        k: int,
        history: csr_matrix,
        neighbors: csr_matrix,
        excluded: csr_matrix | None = None,
        *,
        permitted: NDArray[np.bool_] | None = None,
        scale: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...
