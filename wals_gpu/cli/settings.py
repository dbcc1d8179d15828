"""Settings of a new model: those of the command line, else those of --settings, else the defaults of the library."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from wals_gpu.model.config import read_config, with_prior
from wals_gpu.model.settings import SETTINGS
from wals_gpu.model.wals import HYBRID_SETTINGS, WALS
from wals_gpu.objective.presets import make_objective
from wals_gpu.priors.linear import LinearPrior

__all__ = ["default_of", "fill_settings"]

#: The option of each setting that has one.
OPTIONS = {
    "factors": "factors",
    "objective": "objective",
    "iterations": "iterations",
    "solver": "solver",
    "over_relaxation": "over_relaxation",
    "popularity_exponent": "popularity_exponent",
    "neighbors": "neighbors",
    "neighbor_weight": "neighbor_weight",
    "neighbor_regularization": "neighbor_regularization",
    "dtype": "dtype",
    "device": "device",
    "num_threads": "threads",
    "random_state": "seed",
}

_CONSTRUCTOR = inspect.signature(WALS.__init__).parameters


def default_of(setting: str) -> Any:
    """What the library takes where nothing is said."""
    return _CONSTRUCTOR[setting].default


def fill_settings(args: argparse.Namespace) -> None:
    """Put what nobody said into the options of a command: where to compute, and all that makes a new model.

    A command that makes one has the arguments of :class:`WALS` in `args.settings` then.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        As :func:`.read_config`; or a setting is given by --set.
    """
    if "settings" in args:
        _fill_model(args)
    else:
        for name in ("device", "num_threads"):
            if OPTIONS[name] in args and getattr(args, OPTIONS[name]) is None:
                setattr(args, OPTIONS[name], default_of(name))


def _fill_model(args: argparse.Namespace) -> None:
    given = {name: getattr(args, option) for name, option in OPTIONS.items() if getattr(args, option) is not None}
    parameters = dict(args.set)
    for name in parameters:
        if name in SETTINGS:
            if name == "iterations" and args.command == "tune":
                remedy = " that the search finds"
            elif name in OPTIONS:
                remedy = f", which has the option --{OPTIONS[name].replace('_', '-')}"
            else:
                remedy = "; WALS.tune in Python takes it" if args.command == "tune" else "; --settings takes it"
            raise ValueError(f"--set is for parameters of the objective; {name} is a setting of the model{remedy}")
    config = {} if args.config is None else _read(args.config)
    with_texts = getattr(args, "encoder", None) is not None
    usual = HYBRID_SETTINGS["objective"] if with_texts else default_of("objective")
    if "objective" in given and given["objective"] != config.get("objective", usual):
        config = {name: value for name, value in config.items() if name in SETTINGS}  # its parameters are of another
    args.settings = config | given | parameters
    own = {name: value for name, value in args.settings.items() if name not in SETTINGS}
    make_objective(args.settings.get("objective", usual), **own)  # before anybody takes a parameter for a setting
    for name, option in OPTIONS.items():
        is_needed = name in ("dtype", "device", "num_threads", "random_state")  # also by what is no model
        setattr(args, option, args.settings.get(name, default_of(name) if is_needed else None))


def _read(path: Path) -> dict[str, Any]:
    """The settings of a file, checked: what is wrong with them names it, unlike what is wrong with options."""
    config = read_config(path)
    prior = None if config.get("item_prior") is None else LinearPrior(None)
    try:
        # Where to compute is checked with the options.
        WALS(**(with_prior(config, prior) | {"device": "cpu", "num_threads": 0}))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
    return config
