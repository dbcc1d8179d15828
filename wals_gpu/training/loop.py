"""A fit: iterations until there are enough, with validation, checkpoints and a callback between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from wals_gpu.backends.devices import make_backend
from wals_gpu.data.progress import progress_bar
from wals_gpu.errors import DeviceLostError
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.plan import Plan
from wals_gpu.training.state import FitRecord, FitState, History

__all__ = ["Run"]

#: Seconds after which factors are brought from a device to the host: so much work is lost with it at most, and copying
#: them, some hundredths of a second, is no part of a fit's time.
HOME_EVERY = 30.0


class Run:
    """A fit under way, from ``with Run(plan, publish) as run`` to the end of that block, however it is left.

    At its beginning a session of both sides is opened, and a checkpoint resumed, or the first one written. At its end
    the factors are the best ones, or without validation the last ones, and the session is closed.

    Parameters
    ----------
    plan : Plan
    publish : callable
        Gets the run, once it has begun (an earlier fit is gone then) and once it has ended.

    Attributes
    ----------
    fitted : Fitted
        The arrays that are being solved: right at the end, and in a callback, where they may be rotated.
    history : History
        Of the iterations that are behind; grows.

    A device that is lost ends the fit with what the host has: the factors after the last iteration that was validated,
    shown to a callback or in a checkpoint, or that was brought there because :data:`HOME_EVERY` seconds were over.

    Raises
    ------
    CheckpointError, ModelFormatError, OSError
        On entering: the checkpoint is of another fit, damaged, in the way, or cannot be written.
    """

    def __init__(self, plan: Plan, publish: Callable[[Run], None]) -> None:
        self._plan, self._publish = plan, publish
        self.history = History()
        users, items = plan.users, plan.items
        of_users, of_items = (None if side.prior is None else side.prior.fitted for side in (users, items))
        self.fitted = Fitted(
            plan.settings.backend, users.factors, items.factors, users.ids, items.ids, plan.bound, plan.train,
            of_users, of_items, plan.columns, plan.calibration, plan.neighbors, plan.period,
        )  # fmt: skip

    def __enter__(self) -> Run:
        plan, settings = self._plan, self._plan.settings
        has_prior = any(side.prior is not None for side in (plan.users, plan.items))
        session = plan.session
        if session is None:
            # Prior means are given in the basis that the factors started in, and priors write to the factors.
            session = settings.backend.session(plan.users.factors, plan.items.factors, may_move=not has_prior)
        self._state = FitState(
            session, plan.users, plan.items, settings.options, settings.compute_loss, settings.over_relaxation
        )
        if plan.checkpoint is not None:
            try:
                self.history = History(
                    plan.checkpoint.begin(self._state, settings.iterations, plan.validation, resume=plan.resume)
                )
            except BaseException:
                session.close()
                raise
        self._home, self._home_at = len(self.history), time.monotonic()
        self._publish(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DeviceLostError):
            self._leave_device()
        try:
            self._end(kind)
        except DeviceLostError as lost:  # perhaps only now: what was computed had not come back
            self._leave_device()
            self._end(DeviceLostError)
            if not isinstance(error, DeviceLostError):
                raise DeviceLostError(f"{lost}. {self._what_is_left()}") from lost

    def _leave_device(self) -> None:
        """Go back to the iteration that the host has, and do on the CPU what is left to do."""
        del self.history[self._home :]
        self._state.leave_device(make_backend("cpu"))

    def _end(self, kind: type[BaseException] | None) -> None:
        """Close the session, and hand over what was learned."""
        if kind is not None and self._plan.session is not None:
            # On several ranks an error is one of all, and nobody asks for what was learned; one of them may be gone.
            self._plan.session.close()
            self._publish(self)
            return
        if self._plan.validation is not None:
            self._plan.validation.restore_best(self._state)
        self._state.finish()
        for factors in (self.fitted.user_factors, self.fitted.item_factors):
            factors.flags.writeable = False  # answers may keep what they computed from them
        try:
            if self._plan.settings.popularity_exponent == "auto" and (kind is None or kind is KeyboardInterrupt):
                self._calibrate()
        finally:
            self._publish(self)

    def _calibrate(self) -> None:
        """Choose the popularity exponent by what was held out."""
        assert self._plan.validation is not None  # without, the plan was refused
        calibration = self._plan.validation.calibration_of(self.fitted.user_factors, self.fitted.item_factors)
        self.fitted = replace(self.fitted, calibration=calibration)

    @property
    def device(self) -> str:
        """What the fit computes on, and why."""
        return self._plan.device or self._plan.settings.backend.name

    @property
    def best_iteration(self) -> int | None:
        """The iteration that the factors are from, with validation."""
        return None if self._plan.validation is None else self._plan.validation.best_iteration

    @property
    def metric(self) -> str | None:
        """What the fit is validated with."""
        return None if self._plan.validation is None else self._plan.validation.metric

    def iterate(self, callback: Callable[[FitRecord], bool | None] | None = None, show_progress: bool = False) -> None:
        """Iterate until there are enough in the history, patience runs out, or the callback asks for the end.

        Parameters
        ----------
        callback : callable, optional
            Gets the record of each iteration, after validation and before its checkpoint; a true result ends the fit.
        show_progress : bool, default False
            A progress bar with loss and metric.

        Raises
        ------
        DeviceLostError
            The device stopped working; what the host has of the factors is left.
        """
        try:
            self._iterate(callback, show_progress)
        except DeviceLostError as error:
            raise DeviceLostError(f"{error}. {self._what_is_left()}") from error

    def _what_is_left(self) -> str:
        """What there is of the fit without the device, and how to go on from it."""
        if not self._home:
            return "The fit had come to nothing yet"
        best = self.best_iteration
        left = f"The model has the factors after iteration {self._home if best is None else best}"
        if self._plan.checkpoint is not None:
            return (
                f"{left}, and {self._plan.checkpoint.path} a checkpoint: the same fit with resume=True goes on from it"
            )
        return f"{left} of {self._plan.settings.iterations}; fit(..., warm_start=True) goes on from them"

    def _iterate(self, callback: Callable[[FitRecord], bool | None] | None, show_progress: bool) -> None:
        plan, history, state = self._plan, self.history, self._state
        iterations, validation = plan.settings.iterations, plan.validation
        with progress_bar(iterations, show_progress, initial=len(history), desc="WALS", unit="it") as bar:
            done = len(history) >= iterations or (validation is not None and validation.exhausted)
            while not done:
                record = self._one_iteration(len(history) + 1)
                history.append(record)
                bar.set_postfix(self._progress(record), refresh=False)
                bar.update()
                done = record.iteration == iterations or (validation is not None and validation.exhausted)
                if callback is not None or time.monotonic() - self._home_at >= HOME_EVERY:
                    self._bring_home(record.iteration)
                if callback is not None:
                    state.session.factors("user"), state.session.factors("item")  # brought up to date
                    done |= bool(callback(record))
                if plan.checkpoint is not None and (done or record.iteration % plan.checkpoint.every == 0):
                    self._bring_home(record.iteration)
                    plan.checkpoint.save(state, history, validation)

    def _bring_home(self, iteration: int) -> None:
        """Bring the host's factors up to date, where they are elsewhere."""
        if getattr(self._state.session, "can_be_lost", False):
            self._state.session.arrays()
        self._home, self._home_at = iteration, time.monotonic()

    def _one_iteration(self, iteration: int) -> FitRecord:
        validation, state = self._plan.validation, self._state
        started = time.perf_counter()
        loss = state.iterate(iteration)
        seconds = time.perf_counter() - started
        metric = None if validation is None else validation.after(iteration, state)
        if metric is not None:
            self._bring_home(iteration)
        return FitRecord(iteration, loss, seconds, metric, *state.strengths())

    def _progress(self, record: FitRecord) -> dict[str, str]:
        """What the progress bar shows beside the number of iterations."""
        columns = {} if record.loss is None else {"loss": f"{record.loss:.6g}"}
        validation = self._plan.validation
        if validation is not None and validation.best_score is not None:
            columns[f"best {validation.metric}"] = f"{validation.best_score:.4f}"
        return columns
