"""A nightly run: fit, compare with the model in use on what neither has learned from, publish or refuse, log it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from wals_gpu.checks import flag, integer, number, refuse_other
from wals_gpu.data.files import CURRENT, real_folder, version_of
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import check_columns
from wals_gpu.data.times import Period
from wals_gpu.evaluation.all_users import HERE, AllUsers
from wals_gpu.evaluation.churn import churn
from wals_gpu.evaluation.resampling import Estimate
from wals_gpu.model.card import Measured
from wals_gpu.model.wals import WALS
from wals_gpu.publishing.condition import NO_CONDITION, Condition
from wals_gpu.publishing.folder import ModelFolder, now
from wals_gpu.publishing.measure import Comparison, HeldOut, NothingNewError, compare, hold_out
from wals_gpu.training.plan import check_start

__all__ = ["Night", "Outcome", "publish"]

#: What is measured where the condition names nothing; and the length of the lists whose churn is.
USUAL_METRIC, CHURN_K = "ndcg@20", 20


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    published : bool
    name : str or None
        Of the model that is in use from now on; None where the one before stays.
    reason : str
        Why.
    record : dict
        What is in the log.
    model : WALS
        The model that was published, or refused.
    """

    published: bool
    name: str | None
    reason: str
    record: dict[str, Any]
    model: WALS = field(repr=False)


def publish(
    model: WALS,
    interactions: Any,
    folder: str | PathLike[str],
    publish_if: str | Condition,
    *,
    warm_start: WALS | str | PathLike[str] | None = None,
    holdout: float | None = None,
    refit: bool = True,
    keep: int = 7,
    keep_refused: bool = False,
    wait: float = 0.0,
    dtype: str | None = None,
    fit: Mapping[str, Any] | None = None,
    finish: Callable[[WALS], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    show_progress: bool = False,
    **columns: Any,
) -> Outcome:
    """Fit a model, and make it the one in use if it is good enough beside the one before.

    Parameters
    ----------
    model : WALS
        Its settings; fitted when the call returns.
    interactions : table, path, matrix, Interactions, or function that returns one of these
        All that the new model is to learn from. A function is called once the folder is locked.
    folder : str or path
        Of models: its ``current`` leads to the one in use (:class:`.ModelFolder`). Made if needed.
    publish_if : str or Condition
        Such as ``"ndcg@20 >= yesterday - 0.002 and ndcg@20 > popularity"``, or ``"always"``.
    warm_start : WALS or path, optional
        The model before: the fit begins with its factors, and it is "yesterday". A path that leads to the model in use
        of `folder` may be one that is not there yet, in the first run. Default: "yesterday" is the model in use, if
        there is one, and the fit begins at random.
    holdout : float, optional
        The share of the interactions that are new to the model before to hold out and measure with: the latest, where
        there are times. Default: 0.5; without a model before, 0.1 of all.
    refit : bool, default True
        Whether what is published is fitted once more, on everything, with the same settings and start. False: it is
        the model that was measured, which has not learned from what was held out.
    keep : int, default 7
        How many published models stay in the folder, from 2.
    keep_refused : bool, default False
        Whether a model that is refused is kept there too, under another name, to be looked at; as many as `keep`.
    wait : float, default 0
        Seconds to wait for another run in the same folder to end.
    dtype : {"float16"}, optional
        As for :meth:`.WALS.save`.
    fit : mapping, optional
        Further arguments of :meth:`.WALS.fit`, such as ``{"validation": 0.1, "patience": 3}``. What validation chose,
        the number of iterations and the popularity exponent, is taken over by the last fit, which has none.
    finish : callable, optional
        Called with the model before it is saved, such as ``lambda model: model.add_items(texts, ids)``.
    stopped : callable, optional
        Asked after each iteration; a true answer ends the run with KeyboardInterrupt, and nothing is published.
    show_progress : bool, default False
    **columns
        Of a table, as for :func:`.as_interactions`: ``time_column`` above all.

    Returns
    -------
    Outcome

    Raises
    ------
    BusyError
        Another run holds the folder.
    DataError, TypeError, ValueError, OSError, MemoryError, ...
        As reading, :meth:`.WALS.fit` and :meth:`.WALS.save`: the model in use stays, and the log says "failed".
    KeyboardInterrupt
        Likewise, "interrupted".
    """
    check_columns(columns, publish)
    refuse_other("model", model, "a WALS, which is fitted here", "fit", "save")
    refit = flag("refit", refit)
    night = Night(model, folder, publish_if, dict(fit or {}), stopped, show_progress)
    return night.run(
        interactions, warm_start, holdout=holdout, refit=refit, keep=keep, keep_refused=keep_refused, wait=wait,
        dtype=dtype, finish=finish, columns=columns,
    )  # fmt: skip


class Night:
    """A run of :func:`publish`, and what it has found out so far.

    Parameters
    ----------
    model, folder, publish_if, stopped, show_progress
        As there.
    options : dict
        Its `fit`.
    everyone : AllUsers, optional
        Who has the users that are not here, where the fit is one of several ranks: they make the same calls.
    """

    def __init__(
        self,
        model: WALS,
        folder: str | PathLike[str],
        publish_if: str | Condition,
        options: dict[str, Any],
        stopped: Callable[[], bool] | None,
        show_progress: bool,
        everyone: AllUsers = HERE,
    ) -> None:
        condition = publish_if if isinstance(publish_if, Condition) else Condition.parse(publish_if)
        self.store, self.everyone = ModelFolder(folder), everyone
        self.model, self.condition, self.options = model, condition, options
        self.stopped, self.show_progress = stopped or (lambda: False), show_progress
        self.start: Any = False
        self.held_out: HeldOut | None = None
        self._comparison: Comparison | None = None
        self.is_fitted = self.is_over = False  # over: the log has the line
        self.seconds: dict[str, float] = {}
        self.record: dict[str, Any] = {
            "time": now(),
            "decision": "failed",
            "reason": "",
            "model": None,
            "previous": None,
            "condition": condition.text,
        }

    def run(
        self,
        interactions: Any,
        warm_start: Any,
        *,
        holdout: float | None,
        refit: bool,
        keep: int,
        keep_refused: bool,
        wait: float,
        dtype: str | None,
        finish: Callable[[WALS], None] | None,
        columns: Mapping[str, Any],
    ) -> Outcome:
        """From the lock to the line in the log; see :func:`publish`."""
        keep = integer("keep", keep, 2)
        if holdout is not None:
            holdout = number("holdout", holdout, positive=True, below=1)
        with self.locked(number("wait", wait)):
            try:
                current = self.current()
                with self.timed("read"):
                    data, yesterday = self.read(interactions, columns, self.source(warm_start, current))
                self.describe(data, yesterday)
                holds = self.decide(data, yesterday, holdout)
                if holds and refit and self.held_out is not None:
                    with self.timed("refit"):
                        self.fit_again(data)
                if yesterday is not None and self.is_fitted:
                    self.measure_churn(yesterday)

                def save(path: Path) -> None:
                    with self.timed("save"):
                        self.save(path, dtype, self.measured(holds and refit), finish)

                if holds:
                    name, is_current = self.publish(save, current, keep)
                    return self.outcome(is_current, name if is_current else None)
                if keep_refused and self.is_fitted:
                    self.record["kept"] = self.keep_refused(save, keep)
                self.log()
                return self.outcome(False, None)
            except BaseException as error:
                if self.is_over:
                    raise
                is_stop = isinstance(error, KeyboardInterrupt)
                reason = "stopped by hand" if is_stop else " ".join(f"{type(error).__name__}: {error}".split())[:500]
                self.record |= {"decision": "interrupted" if is_stop else "failed", "model": None, "reason": reason}
                with contextlib.suppress(OSError):  # a full disk: what went wrong is more than that it is not written
                    self.log()
                raise

    # ------------------------------------------------------------------- what a fit on several ranks does otherwise

    @property
    def candidate(self) -> WALS:
        """The model that was fitted."""
        return self.model

    def locked(self, wait: float) -> AbstractContextManager[None]:
        """Keep other runs out of the folder."""
        return self.store.locked(wait)

    def current(self) -> str | None:
        """The name of the model in use."""
        return self.store.current

    def read(self, interactions: Any, columns: Mapping[str, Any], source: Any) -> tuple[Interactions, WALS | None]:
        """The interactions, and the model before, of which `source` says where it is."""
        yesterday = source
        if not isinstance(source, (WALS, type(None))):
            yesterday = WALS.load(source, device=self.model.device, num_threads=self.model.num_threads)
        self.check_yesterday(yesterday)
        if self.start is not False:
            self.start = yesterday
        data = interactions() if callable(interactions) else interactions
        return as_interactions(data, **({"dtype": self.model.dtype} | dict(columns))), yesterday

    def period(self, data: Interactions) -> Period | None:
        """Of the interactions of all users."""
        return Period.of(data.times)

    def fit(self, data: Interactions, options: Mapping[str, Any]) -> None:
        """Fit all of the interactions, or what is left of them."""
        self.model.fit(
            data,
            warm_start=self.start,
            callback=lambda *_: self.stopped(),
            show_progress=self.show_progress,
            **options,
        )
        if self.stopped():
            raise KeyboardInterrupt

    def save(
        self, path: Path, dtype: str | None, measured: Measured | None, finish: Callable[[WALS], None] | None
    ) -> None:
        """Write the model to a folder."""
        if finish is not None:
            finish(self.model)
        self.model.save(path, dtype=dtype, metrics=measured)

    def publish(self, save: Callable[[Path], None], current: str | None, keep: int) -> tuple[str, bool]:
        """See :meth:`.ModelFolder.publish`."""
        found = self.store.publish(save, self.record, current, keep)
        self.is_over = True
        return found

    def keep_refused(self, save: Callable[[Path], None], keep: int) -> str:
        """See :meth:`.ModelFolder.keep_refused`."""
        return self.store.keep_refused(save, keep)

    def log(self) -> None:
        """Write the line of this run."""
        self.store.log(self.record)
        self.is_over = True

    def outcome(self, published: bool, name: str | None) -> Outcome:
        """How the run ended."""
        return Outcome(published, name, self.record["reason"], self.record, self.candidate)

    # -------------------------------------------------------------------------------------------------------- steps

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = round(time.perf_counter() - started, 3)
            self.record["seconds"] = dict(self.seconds)

    def source(self, warm_start: Any, current: str | None) -> Any:
        """The model before, or the folder that it is in; and whether fits begin with it, which `start` says then."""
        self.record["warm_start"] = None
        if warm_start is None:
            return None if current is None else self.store.path / current
        if isinstance(warm_start, WALS):
            self.start, self.record["warm_start"] = warm_start, "a model in memory"
            return warm_start
        own = [os.path.realpath(path) for path in (self.store.path, self.store.path / CURRENT)]
        is_own = os.path.realpath(warm_start) in own
        if is_own and current is None:
            return None  # the first run of this folder
        where = self.store.path / current if is_own and current is not None else real_folder(warm_start)
        self.start, self.record["warm_start"] = where, where.name
        return where

    def check_yesterday(self, yesterday: WALS | None) -> None:
        """Whether fits can begin with the model before."""
        if self.start is not False and yesterday is not None:
            check_start(self.model.factors, yesterday.fitted.factors)

    def describe(self, data: Interactions, yesterday: WALS | None) -> None:
        """Sizes, settings and versions."""
        n_users, n_entries = (int(self.everyone.total(n)) for n in (data.matrix.shape[0], data.matrix.nnz))
        of_data: dict[str, Any] = {"users": n_users, "items": data.matrix.shape[1], "entries": n_entries}
        if (period := self.period(data)) is not None:
            of_data["from"], of_data["to"] = period.to_json()
        if yesterday is not None:
            for side, ids, own in (
                ("users", data.user_ids, yesterday.user_ids),
                ("items", data.item_ids, yesterday.item_ids),
            ):
                if ids is not None and own is not None and ids.kind == own.kind:
                    new = int((np.asarray(own.find(ids.ids)) < 0).sum())
                    of_data[f"new_{side}"] = int(self.everyone.total(new)) if side == "users" else new
        self.record["data"] = of_data
        self.record["settings"] = _settings_of(self.model)
        names = ("wals_gpu", "numpy", "scipy")
        self.record["versions"] = {name: version_of(name) for name in names}

    def decide(self, data: Interactions, yesterday: WALS | None, share: float | None) -> bool:
        """Hold out, fit, measure: whether the condition holds. Where nothing can be measured, only "always" does."""
        model, condition, everyone = self.model, self.condition, self.everyone
        seed = model.random_state if isinstance(model.random_state, int) else 0
        metrics = condition.metrics or [USUAL_METRIC]
        try:
            with self.timed("hold_out"):
                self.held_out = held_out = hold_out(data, yesterday, share, seed, everyone)
            self.record["held_out"] = {"entries": held_out.entries, "new": held_out.new, "by": held_out.by}
        except NothingNewError as error:
            return self._without_measuring(data, error)
        with self.timed("fit"):
            self._fit(held_out.rest, self.options)
        try:
            with self.timed("measure"):
                self._comparison = found = compare(self.candidate, yesterday, held_out, metrics, seed, everyone)
        except NothingNewError as error:
            return self._unmeasured(error)
        self.record["held_out"] |= {
            "measured_users": found.users,
            "measured_entries": found.entries,
            "users_new_to_a_model": found.unknown_users,
            "entries_of_new_items": found.unknown_items,
        }
        self.record["metrics"] = {
            metric: {name: _plain(estimate) for name, estimate in of_metric.items()}
            for metric, of_metric in found.values.items()
        }
        values = {
            metric: {name: estimate.value for name, estimate in of_metric.items()}
            for metric, of_metric in found.values.items()
        }
        verdict = condition.check(values, found.users, yesterday is not None)
        return self._decided(*verdict)

    def _without_measuring(self, data: Interactions, error: NothingNewError) -> bool:
        self.held_out = None
        if not self.condition.needs_measuring:
            with self.timed("fit"):
                self._fit(data, self.options)
        return self._unmeasured(error)

    def _unmeasured(self, error: NothingNewError) -> bool:
        if self.condition.needs_measuring:
            return self._decided(False, str(error))
        return self._decided(True, f"{NO_CONDITION}, and nothing could be measured: {error}")

    def _decided(self, holds: bool, reason: str) -> bool:
        self.record |= {"decision": "published" if holds else "refused", "reason": reason}
        return holds

    def _fit(self, data: Interactions, options: Mapping[str, Any]) -> None:
        self.fit(data, options)
        self.is_fitted = True
        history = self.candidate.history_
        self.record["iterations"] = len(history)
        self.record["loss"] = None if not history else history[-1].loss
        self.record["device"] = self.candidate.device_

    def fit_again(self, data: Interactions) -> None:
        """On everything, for as long as the fit that was measured, with what its validation chose."""
        model, found = self.model, self.candidate
        chosen: dict[str, Any] = {}
        if found.best_iteration_ is not None:
            chosen["iterations"] = max(found.best_iteration_, 1)
        if model.popularity_exponent == "auto":
            chosen["popularity_exponent"] = found.popularity_exponent_
        of_validation = ("validation", "metric", "validate_every", "patience")
        before = {name: getattr(model, name) for name in chosen}
        model.set_params(**chosen)
        try:
            self._fit(data, {name: value for name, value in self.options.items() if name not in of_validation})
        finally:
            model.set_params(**before)

    def measure_churn(self, yesterday: WALS) -> None:
        """How much lists change; a model that knows none of the users before has none."""
        with self.timed("churn"):
            try:
                found = churn(yesterday, self.candidate, k=CHURN_K, everyone=self.everyone)
            except ValueError as error:
                self.record["churn"] = {"none": str(error)}
                return
        self.record["churn"] = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in found.to_dict().items()
        }

    def measured(self, refit: bool) -> Measured | None:
        """For the page of the model."""
        if self._comparison is None:
            return None
        found, held_out = self._comparison, self.held_out
        assert held_out is not None
        values = {metric: of_metric["candidate"] for metric, of_metric in found.values.items()}
        values |= {
            f"{metric} of {other}": of_metric[other]
            for metric, of_metric in found.values.items()
            for other in ("yesterday", "popularity")
            if other in of_metric
        }
        about = (
            f"Measured on {found.entries:,} interactions of {found.users:,} users, held out by {held_out.by} from what "
            "was new to the model before"
        )
        return Measured(values, about + (", then fitted once more on everything" if refit else ""))


def _settings_of(model: WALS) -> dict[str, Any]:
    """The settings, without the values of arrays, which may have one for each user."""
    values: dict[str, Any] = {
        name: getattr(model, name)
        for name in ("factors", "iterations", "solver", "over_relaxation", "random_state", "popularity_exponent")
    }
    if not isinstance(model.random_state, (int, type(None))):
        values["random_state"] = type(model.random_state).__name__
    values["dtype"] = model.dtype.name
    values["neighbors"] = model.neighbors
    parameters = model.objective.parameters()
    values["objective"] = {"name": model.objective.name} | {
        name: f"{value.size} numbers" if isinstance(value, np.ndarray) else value for name, value in parameters.items()
    }
    return values


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 6) for name, value in estimate._asdict().items()}
