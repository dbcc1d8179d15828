"""Settings as plain dicts that JSON holds: what :meth:`wals_gpu.WALS.to_config` gives and ``from_config`` takes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from wals_gpu.checks import as_path, did_you_mean, warn
from wals_gpu.model.settings import SETTINGS, Settings
from wals_gpu.objective.presets import PRESETS
from wals_gpu.priors.linear import LinearPrior

__all__ = ["arguments_of", "config_of", "read_config", "with_prior"]

_PRIORS = ("item_prior", "user_prior")
_LIMIT = 1 << 26  # weights of some million users fit; parsed, a byte of JSON may take fifty


def config_of(settings: Settings) -> dict[str, Any]:
    """What :meth:`wals_gpu.WALS.to_config` documents."""
    values = dict(settings.values)
    objective, seed = values["objective"], values["random_state"]
    if PRESETS.get(objective.name) is not type(objective):
        raise ValueError(
            f"a config names one of the objectives {', '.join(PRESETS)}; this model's is {objective!r:.80}"
        )
    if isinstance(seed, np.random.Generator):
        raise ValueError("random_state is a Generator, which a config cannot hold: set it to an integer, or to None")
    for name in _PRIORS:
        if values.pop(name) is not None:
            warn(f"{name} is not in the config, which has no place for its features: set it again after from_config")
    values["dtype"] = values["dtype"].name
    values["objective"] = {"name": objective.name} | {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in objective.parameters().items()
    }
    return values


def read_config(source: Any) -> dict[str, Any]:
    """Arguments of :class:`wals_gpu.WALS` from a config.

    Parameters
    ----------
    source : mapping, or path of a JSON file
        What ``to_config`` gave, or a part of it: settings by name. The objective is an object with its ``name`` and
        parameters, or its name alone, with parameters beside it as the constructor takes them.

    Returns
    -------
    dict
        Keyword arguments, the objective by its name and its parameters beside the others: ``WALS(**arguments)``. Names
        are checked, values are not: the constructor does that. An ``item_prior`` is a dict of settings of a
        :class:`.LinearPrior`, for features that come from elsewhere.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    TypeError, ValueError
        A name that is none, or a file that holds something else; the message names the file, and the line of what is
        no JSON.
    """
    if isinstance(source, Mapping):
        return arguments_of(source)
    if not isinstance(source, (str, os.PathLike)):
        # A search is what comes to mind where the file that it saved is asked for.
        hint = "; its attribute config is one" if isinstance(getattr(source, "config", None), Mapping) else ""
        raise TypeError(f"a config must be a dict or the path of a JSON file, got {type(source).__name__}{hint}")
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        raise ValueError(
            f"a config must be a dict or the path of a JSON file, got JSON: give json.loads({source!r:.40})"
        )
    path = as_path("source", source)
    if not path.exists():
        raise FileNotFoundError(f"no config at {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file, so it holds no config")
    if path.stat().st_size > _LIMIT:
        raise ValueError(f"{path} is larger than {_LIMIT} bytes, so it holds no config")
    try:
        parsed = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path} is not JSON: {error.msg} in {where}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return arguments_of(parsed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from None


def with_prior(arguments: dict[str, Any], prior: LinearPrior | None) -> dict[str, Any]:
    """Arguments of a config in which settings of an item prior have become those of a prior with features.

    Raises
    ------
    ValueError
        There is no prior to have them.
    """
    settings = arguments.get("item_prior")
    if settings is None:
        return arguments
    if prior is None:
        raise ValueError(
            "the config has settings of an item_prior, whose features it cannot hold: give it to the fit of a model "
            "that has them, WALS.hybrid(items, encoder).fit(interactions, settings=...)"
        )
    try:
        return arguments | {"item_prior": prior.with_parameters(**settings)}
    except (TypeError, ValueError) as error:
        raise type(error)(f"item_prior: {error}") from error


def arguments_of(config: Any) -> dict[str, Any]:
    """Keyword arguments of the constructor from a parsed config, see :func:`read_config`."""
    if not isinstance(config, Mapping):
        raise TypeError(f"a config must be an object of settings by name, got {config!r:.60}")
    arguments = dict(config)
    for name in _PRIORS:
        if arguments.get(name) is not None and not (name == "item_prior" and isinstance(arguments[name], Mapping)):
            raise ValueError(f"a config has no {name}: it is made of features, and set on the model")
    if arguments.get("item_prior") is not None:
        prior = dict(arguments["item_prior"])
        accepted = LinearPrior(None).to_config()
        if unknown := [name for name in prior if name not in accepted]:
            hint = did_you_mean(unknown[0], [*accepted]) or f"; it has {', '.join(accepted)}"
            raise ValueError(f"item_prior has no setting {unknown[0]!r}{hint}")
        arguments["item_prior"] = prior
    beside = {}
    objective = arguments.get("objective")
    if isinstance(objective, Mapping):
        beside = dict(objective)
        if not isinstance(beside.get("name"), str):
            raise TypeError(f"objective must be a name, or an object with a name and parameters; got {objective!r:.60}")
        arguments["objective"] = name = beside.pop("name")
        _check_names(beside, name, f"objective {name!r} has no parameter")
        twice = [parameter for parameter in beside if parameter in arguments]
        if twice:
            raise ValueError(f"{twice[0]} is given twice: in the objective, and beside it")
    known = [name for name in arguments if name not in SETTINGS]
    _check_names(known, arguments.get("objective"), "a config has no setting", SETTINGS)
    return arguments | beside


def _check_names(names: Any, objective: Any, problem: str, more: tuple[str, ...] = ()) -> None:
    presets = [PRESETS[objective]] if isinstance(objective, str) and objective in PRESETS else list(PRESETS.values())
    accepted = [*more, *dict.fromkeys(field.name for preset in presets for field in dataclasses.fields(preset))]
    unknown = [name for name in names if name not in accepted]
    if unknown:
        hint = did_you_mean(unknown[0], accepted) or f"; it has {', '.join(accepted)}"
        raise ValueError(f"{problem} {unknown[0]!r}{hint}")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
