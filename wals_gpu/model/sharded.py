"""What a fit on several ranks needs of a model: its settings before, and a model of some of the users after."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from wals_gpu.model.files import to_tensors
from wals_gpu.model.wals import WALS
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.plan import FitSettings
from wals_gpu.training.state import History

__all__ = ["fit_settings", "model_of", "tensors_of"]


def fit_settings(model: WALS) -> FitSettings:
    """What the model says of its fits."""
    return model._settings().of_fit()


def model_of(model: WALS, fitted: Fitted, history: History, metric: str | None, best_iteration: int | None) -> WALS:
    """A model with the settings of another one, and with these factors."""
    new = type(model)(**model.get_params())
    new._become(fitted)
    new.history_, new.validation_metric_, new.best_iteration_ = history, metric, best_iteration
    return new


def tensors_of(model: WALS) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a model that would be saved, and what is written as JSON."""
    return to_tensors(model._saved())
