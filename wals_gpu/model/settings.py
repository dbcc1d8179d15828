"""The settings of a model: what the constructor takes, checked the same way there and whenever one is assigned."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from wals_gpu.backends.devices import limits, make_backend
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import did_you_mean, flag, integer, number, seed
from wals_gpu.objective.bound import Objective
from wals_gpu.objective.options import ObjectiveOptions
from wals_gpu.objective.presets import PRESETS, make_objective
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.training.calibration import check_exponent
from wals_gpu.training.plan import FitSettings

__all__ = ["SETTINGS", "ModelOptions", "Settings", "check_names", "how_to_set", "is_free"]


class ModelOptions(ObjectiveOptions, total=False):
    """Arguments of :class:`wals_gpu.WALS`, which documents each."""

    factors: int
    objective: str | Objective
    iterations: int
    solver: str
    cg_steps: int
    block_size: int
    over_relaxation: float
    dtype: DTypeLike
    device: str
    num_threads: int
    random_state: int | np.random.Generator | None
    init_scale: float
    compute_loss: bool
    item_prior: LinearPrior | None
    user_prior: LinearPrior | None
    popularity_exponent: float | str
    neighbors: int
    neighbor_weight: float
    neighbor_regularization: float


def _dtype(value: Any) -> np.dtype:
    try:
        dtype: np.dtype = np.dtype(value)
    except (TypeError, ValueError, SyntaxError):  # NumPy parses texts such as "f4, (2,3)f8"
        raise ValueError(f"dtype must be float32 or float64, got {value!r}") from None
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


def _random_state(value: Any) -> int | np.random.Generator | None:
    return seed("random_state", value)


def _compute_loss(value: Any) -> bool:
    return flag("compute_loss", value)


def _prior(name: str) -> Callable[[Any], LinearPrior | None]:
    def check(value: Any) -> LinearPrior | None:
        if value is None or isinstance(value, LinearPrior):
            return value
        raise TypeError(f"{name} must be a LinearPrior, such as LinearPrior(embeddings); got {value!r:.60}")

    return check


def _popularity_exponent(value: Any) -> float | str:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f'popularity_exponent must be a number from -1 to 1, or "auto"; got {value!r:.60}')
        return value
    return check_exponent("popularity_exponent", value)


def _as_given(value: Any) -> Any:
    return value


#: Beyond these an item-item model of all items is the simpler choice.
MOST_NEIGHBORS = 1024

#: Each argument of the constructor but the parameters of the objective, in its order, and what it is turned into.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "factors": lambda value: integer("factors", value, 1, limits().most_factors),
    "objective": _as_given,  # together with its parameters
    "iterations": lambda value: integer("iterations", value, 0),
    "solver": _as_given,  # by SolveOptions, as the next two
    "cg_steps": lambda value: integer("cg_steps", value, 1),
    "block_size": lambda value: SolveOptions(block_size=value) and int(value),
    "over_relaxation": lambda value: number("over_relaxation", value, 1.0, below=2.0),
    "dtype": _dtype,
    "device": _as_given,  # by make_backend
    "num_threads": lambda value: integer("num_threads", value, 0),
    "random_state": _random_state,
    "init_scale": lambda value: number("init_scale", value),
    "compute_loss": _compute_loss,
    "item_prior": _prior("item_prior"),
    "user_prior": _prior("user_prior"),
    "popularity_exponent": _popularity_exponent,
    "neighbors": lambda value: integer("neighbors", value, 0, MOST_NEIGHBORS),
    "neighbor_weight": lambda value: number("neighbor_weight", value),
    "neighbor_regularization": lambda value: number("neighbor_regularization", value, positive=True),
}

SETTINGS = tuple(_CHECKS)


@dataclass(frozen=True, eq=False)
class Settings:
    """All settings of a model. They do not change: a change makes others, or raises and leaves these.

    Parameters
    ----------
    given : dict
        Arguments as they were given, those of the objective that were given too.
    values : dict
        What each of :data:`SETTINGS` was turned into.
    backend : Backend
    """

    given: dict[str, Any]
    values: dict[str, Any]
    backend: Backend

    @classmethod
    def make(cls, arguments: Mapping[str, Any], objective_params: Mapping[str, Any]) -> Settings:
        """Those of a new model; TypeError or ValueError names the argument."""
        check_names(objective_params, arguments["objective"])
        values = {name: check(arguments[name]) for name, check in _CHECKS.items()}
        values["objective"] = make_objective(arguments["objective"], **objective_params)
        backend = make_backend(values["device"], values["num_threads"])
        return cls({**arguments, **objective_params}, values, backend)._checked()

    @classmethod
    def of_values(cls, values: Mapping[str, Any], backend: Backend) -> Settings:
        """Those of a model that only says what they were turned into, as pickles of version 0.1.0."""
        return cls(dict(values), dict(values), backend)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """With other arguments, as a constructor that is given these beside the others would have it."""
        given = self.given | dict(changes)
        params = {name: value for name, value in given.items() if name not in _CHECKS}
        values = self.values | {name: _CHECKS[name](changes[name]) for name in _CHECKS if name in changes}
        if "objective" in changes or any(name not in _CHECKS for name in changes):
            if isinstance(given["objective"], Objective) and "objective" not in changes:
                params = {}
                given = {name: given[name] for name in _CHECKS}
                own = {name: value for name, value in changes.items() if name not in _CHECKS}
                given["objective"] = _with_parameters(self.values["objective"], own)
            check_names(params, given["objective"])
            values["objective"] = make_objective(given["objective"], **params)
        backend = self.backend
        if "device" in changes or "num_threads" in changes:
            backend = make_backend(values["device"], values["num_threads"])
        return Settings(given, values, backend)._checked()

    def assigned(self, name: str, value: Any) -> Settings:
        """With one of :data:`SETTINGS` assigned: a new objective comes with its own parameters."""
        if name != "objective":
            return self.changed({name: value})
        kept = {key: self.given[key] for key in _CHECKS}
        return Settings(kept, self.values, self.backend).changed({name: value})

    def of_fit(self) -> FitSettings:
        """What fits depend on beside their data."""
        values = dict(self.values)
        options = SolveOptions.choose(
            values.pop("solver"),
            values["factors"],
            cg_steps=values.pop("cg_steps"),
            block_size=values.pop("block_size"),
        )
        del values["device"], values["num_threads"]
        return FitSettings(options=options, backend=self.backend, **values)

    def params(self, deep: bool) -> dict[str, Any]:
        """Arguments of the constructor, as given; with `deep` also parameters of the objective that were not."""
        if deep and isinstance(self.given["objective"], str):
            return self.given | {
                name: value for name, value in self.values["objective"].parameters().items() if name not in self.given
            }
        return dict(self.given)

    def _checked(self) -> Settings:
        """These, where they go together and the device can do what they ask for."""
        self.of_fit().check_device()
        return self


def _with_parameters(objective: Objective, params: Mapping[str, Any]) -> Objective:
    accepted = objective.parameters()
    unknown = [name for name in params if name not in accepted]
    if unknown:
        raise TypeError(
            f"objective {objective.name!r} has no parameter {', '.join(unknown)}; it has {', '.join(accepted)}"
        )
    return dataclasses.replace(objective, **params)


def check_names(params: Mapping[str, Any], objective: Any) -> None:
    """TypeError, with the name that may have been meant, where a parameter is of no objective and no setting."""
    known, of_preset = _parameters(), ""
    own = known
    if isinstance(objective, str) and objective in PRESETS:
        own = tuple(field.name for field in dataclasses.fields(PRESETS[objective]))
    for name in params:
        # "factor" is a parameter of a preset that few use, and "factors" what others mean by it.
        if name in own or (name in known and f"{name}s" not in SETTINGS):
            continue
        if own is not known:
            of_preset = f", and objective {objective!r} has no parameter {name}; it has {', '.join(own)}"
        hint = did_you_mean(name, (*SETTINGS, *own)) or did_you_mean(name, known)
        raise TypeError(f"WALS has no setting {name}{of_preset}{hint}")


def is_free(model: type, name: str) -> bool:
    """Whether an attribute that is no setting may be assigned: a private, a learned or a declared one.

    Classes of a user's may have others, but for those that look like a parameter of an objective.
    """
    if name.startswith("_") or name.endswith("_"):
        return True
    if any(name in vars(cls) or name in inspect.get_annotations(cls) for cls in model.__mro__):
        return True
    return "_is_closed" not in vars(model) and name not in _parameters()


def how_to_set(name: str, value: Any, objective: Objective, fit_arguments: Collection[str]) -> str:
    """What to say to who assigned an attribute that has no effect."""
    shown = f"{value!r:.40}"
    if name in objective.parameters():
        return (
            f"{name} is a parameter of the objective: model.set_params({name}={shown}), or "
            f"model.objective = make_objective({objective.name!r}, {name}={shown})"
        )
    of = [preset.name for preset in PRESETS.values() if name in (field.name for field in dataclasses.fields(preset))]
    if of:
        return (
            f"{name} is a parameter of the objective {' or '.join(map(repr, of))}, not of {objective.name!r}: "
            f"model.objective = make_objective({of[0]!r}, {name}={shown})"
        )
    if name in fit_arguments:
        return f"{name} is an argument of fit: model.fit(interactions, {name}={shown})"
    hint = did_you_mean(name, (*SETTINGS, *objective.parameters()))
    return f"WALS has no setting {name}{hint or '; it has ' + ', '.join(SETTINGS)}"


def _parameters() -> tuple[str, ...]:
    """Of all presets."""
    return tuple(dict.fromkeys(field.name for preset in PRESETS.values() for field in dataclasses.fields(preset)))
