"""The course of a fit as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wals_gpu.errors import ModelFitError
from wals_gpu.training.state import FitRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_history(history: Sequence[FitRecord], metric: str | None, best: int | None, ax: Axes | None) -> Axes:
    """Loss (left) and validation metric (right) by iteration, as :meth:`WALS.plot_history` describes."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plot_history needs matplotlib: pip install 'wals_gpu[plot]'") from error
    losses = [(record.iteration, record.loss) for record in history if record.loss is not None]
    measured = [(record.iteration, record.validation) for record in history if record.validation is not None]
    if not losses and not measured:
        raise ModelFitError("there is no history to plot: call fit(interactions) with compute_loss=True or validation")
    if ax is None:
        _, ax = plt.subplots()
    ax.set_xlabel("iteration")
    if losses:
        ax.plot(*zip(*losses, strict=True), color="C0", marker=".", label="loss")
        ax.set_ylabel("loss", color="C0")
    if measured:
        right = ax.twinx() if losses else ax
        right.plot(*zip(*measured, strict=True), color="C1", marker=".", label=metric)
        right.set_ylabel(metric, color="C1")
        if best is not None:
            right.axvline(best, color="C1", linestyle=":", label=f"best {metric}")
    ax.locator_params(axis="x", integer=True)
    return ax
