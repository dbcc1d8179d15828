"""The fit loop: iterations until there are enough, with validation, checkpoints and a callback between them."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm.auto import tqdm

from wals_gpu.training.checkpoints import Checkpoint
from wals_gpu.training.state import FitRecord, FitState
from wals_gpu.training.validation import Validation

__all__ = ["run_fit"]


def run_fit(
    state: FitState,
    iterations: int,
    history: list[FitRecord],
    *,
    validation: Validation | None = None,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[FitRecord], bool | None] | None = None,
    show_progress: bool = False,
) -> None:
    """Iterate until `iterations` are in the history, patience runs out, or the callback asks for the end.

    Parameters
    ----------
    state : FitState
        Has the best factors in the end, or without validation the last ones, and is finished, whatever ends the fit.
    iterations : int
    history : list of FitRecord
        Of the iterations that the state has behind it; grows.
    validation, checkpoint, callback
        Are told of every iteration, in this order; a true result of the callback ends the fit.
    show_progress : bool
        A progress bar with loss and metric.
    """
    try:
        bar = tqdm(total=iterations, initial=len(history), disable=not show_progress, desc="WALS", unit="it")
        with bar, state.held():
            done = len(history) >= iterations or (validation is not None and validation.exhausted)
            while not done:
                iteration = len(history) + 1
                started = time.perf_counter()
                loss = state.iterate(iteration)
                seconds = time.perf_counter() - started
                if validation is not None or callback is not None or checkpoint is not None:
                    state.backend.fetch()
                metric = None if validation is None else validation.after(iteration, state)
                record = FitRecord(iteration, loss, seconds, metric, *state.strengths())
                history.append(record)
                shown = {} if loss is None else {"loss": f"{loss:.6g}"}
                if validation is not None and validation.best_score is not None:
                    shown[f"best {validation.metric}"] = f"{validation.best_score:.4f}"
                bar.set_postfix(shown, refresh=False)
                bar.update()
                done = iteration == iterations or (validation is not None and validation.exhausted)
                done |= callback is not None and bool(callback(record))
                if checkpoint is not None and (done or iteration % checkpoint.every == 0):
                    checkpoint.save(state, history, validation)
    finally:
        if validation is not None:
            validation.restore_best(state)
        state.finish()
