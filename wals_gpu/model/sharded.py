"""What a fit on several ranks needs of a model: its settings before, and a model of some of the users after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.data.ids import Ids
from wals_gpu.model.card import Measured
from wals_gpu.model.files import to_tensors
from wals_gpu.model.removal import with_users
from wals_gpu.model.starting import SavedStart, ids_between
from wals_gpu.model.wals import WALS
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.plan import FitSettings
from wals_gpu.training.state import History

__all__ = ["fit_settings", "model_of", "own_users", "tensors_of"]


def fit_settings(model: WALS) -> FitSettings:
    """What the model says of its fits."""
    return model._settings().of_fit()


def model_of(
    model: WALS,
    fitted: Fitted,
    history: History,
    metric: str | None,
    best_iteration: int | None,
    device: str | None = None,
) -> WALS:
    """A model with the settings of another one, and with these factors; `device` is what the fit computed on."""
    new = type(model)(**model.get_params())
    new._become(fitted)
    new.history_, new.validation_metric_, new.best_iteration_ = history, metric, best_iteration
    new.device_ = device
    return new


def tensors_of(
    model: WALS, exponents: Mapping[str, int] | None = None, measured: Measured | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays of a model that would be saved, and what is written as JSON; see :func:`.files.to_tensors`.

    `measured` takes the place of what is known of the model's lists.
    """
    saved = model._saved()
    return to_tensors(saved if measured is None else replace(saved, measured=measured), exponents)


def own_users(model: WALS | str | PathLike[str], ids: Ids | None, rows: slice, **computation: Any) -> WALS:
    """The part of an earlier model that has those of its users who are among some, with all items.

    Parameters
    ----------
    model : WALS or path
        Of a model that ranks have saved, no more than the parts of these users are read; any other is read as a whole.
    ids : Ids, optional
        Of the users, who lie between the first and the last of them by their ids.
    rows : slice
        Their row numbers, by which they are found where there are no ids.
    **computation
        ``device`` and ``num_threads`` of the model that is read.

    Returns
    -------
    WALS
        Its first user is the first one whose id, or row number, is in that range; it may have none. `popularity` is of
        all users, where the file has it.

    Raises
    ------
    FileNotFoundError, ModelFormatError
        As from ``WALS.load``.
    """
    if isinstance(model, WALS):
        whole, some = model, _range_of(model.user_ids, model.n_users, ids, rows)
    else:
        start = SavedStart(model)
        if start.in_parts:
            some = start.users_between(ids, rows)
            whole = WALS.load(start.folder, users=some if some.start < some.stop else slice(0, 1), **computation)
            some = slice(0, some.stop - some.start)
        else:
            whole = WALS.load(start.folder, **computation)
            some = _range_of(whole.user_ids, whole.n_users, ids, rows)
    if some == slice(0, whole.n_users):
        return whole
    part = model_of(
        whole, with_users(whole.fitted, np.arange(some.start, some.stop)), whole.history_, whole.validation_metric_,
        whole.best_iteration_,
    )  # fmt: skip
    return part


def _range_of(own: Ids | None, n: int, ids: Ids | None, rows: slice) -> slice:
    """Rows of a model with n users among whom some are looked for."""
    if own is None or ids is None:
        return slice(min(rows.start, n), min(rows.stop, n))
    return ids_between(own, ids)
