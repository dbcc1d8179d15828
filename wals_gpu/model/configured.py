"""Settings as attributes of a model that are checked when assigned; scikit-learn's way to them, and plain configs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from wals_gpu.backends.session import Backend
from wals_gpu.checks import did_you_mean
from wals_gpu.model.config import config_of, read_config, with_prior
from wals_gpu.model.settings import SETTINGS, ModelOptions, Settings, how_to_set, is_free
from wals_gpu.objective.bound import Objective
from wals_gpu.objective.options import Unpack
from wals_gpu.priors.linear import LinearPrior

__all__ = ["Configured"]

M = TypeVar("M", bound="Configured")
Given = TypeVar("Given", contravariant=True)
Kept = TypeVar("Kept", covariant=True)


class _Setting(Protocol[Given, Kept]):
    """For type checkers: an attribute that takes more types than it has, as a preset's name becomes the preset."""

    def __get__(self, model: Any, of: Any = None) -> Kept: ...
    def __set__(self, model: Any, value: Given) -> None: ...


class Configured:
    """What has the settings of a model as attributes: :class:`wals_gpu.WALS` documents each.

    Assigning one checks it as the constructor does, and raises what that raises; nothing has changed then. An objective
    that is assigned, by name or ready, comes with its own parameters. Any other public attribute is an AttributeError
    that says how to set what was meant.
    """

    factors: int
    objective: _Setting[str | Objective, Objective]
    iterations: int
    solver: str
    cg_steps: int
    block_size: int
    over_relaxation: float
    dtype: _Setting[DTypeLike, np.dtype]
    device: str
    num_threads: int
    random_state: int | np.random.Generator | None
    init_scale: float
    compute_loss: bool
    item_prior: LinearPrior | None
    user_prior: LinearPrior | None
    popularity_exponent: float | str = 0.0  # these also of those that an earlier version pickled
    neighbors: int = 0
    neighbor_weight: float = 1.5
    neighbor_regularization: float = 20.0

    _backend: Backend
    _given: dict[str, Any] | None = None  # arguments as they were given; None: a pickle of version 0.1.0

    def _configure(self, arguments: Mapping[str, Any], objective_params: Mapping[str, Any]) -> None:
        """Take the arguments of the constructor."""
        self._take_settings(Settings.make(arguments, objective_params))

    def _settings(self) -> Settings:
        values = {name: getattr(self, name) for name in SETTINGS}
        if self._given is None:
            return Settings.of_values(values, self._backend)
        given = {name: values[name] for name in SETTINGS if name not in self._given}
        return Settings(given | self._given, values, self._backend)

    def _take_settings(self, settings: Settings) -> None:
        vars(self).update(settings.values)
        self._given, self._backend = settings.given, settings.backend

    if not TYPE_CHECKING:  # a type checker would take any attribute for one that can be assigned

        def __setattr__(self, name: str, value: Any) -> None:
            if name in SETTINGS:
                self._take_settings(self._settings().assigned(name, value))
            elif is_free(type(self), name):
                super().__setattr__(name, value)
            else:
                fit = inspect.signature(type(self).fit).parameters.values()
                of_fit = [one.name for one in fit if one.kind is one.KEYWORD_ONLY]
                raise AttributeError(how_to_set(name, value, self.objective, of_fit))

    # ------------------------------------------------------------------------------------------------ scikit-learn

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, as scikit-learn asks for them.

        Parameters
        ----------
        deep : bool, default True
            Whether parameters of the objective that were not given are there too, with their defaults. (Those of an
            objective that was given as an object are in the object.)

        Returns
        -------
        dict
            ``type(model)(**params)`` is the same model, not fitted.
        """
        params = self._settings().params(deep)
        # A class made from this one has arguments of its own, and may not take all of these.
        _, *own = inspect.signature(type(self).__init__).parameters.values()
        names = [one.name for one in own if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        if any(one.kind is one.VAR_KEYWORD for one in own):
            names = [*params, *(name for name in names if name not in params)]
        return {name: params[name] if name in params else getattr(self, name) for name in names}

    def set_params(self: M, **params: Unpack[ModelOptions]) -> M:
        """Change arguments of the constructor, parameters of the objective among them, all or none.

        Parameters
        ----------
        **params
            As for the constructor. Those that are not named stay as they were given, so a new ``objective`` must know
            the parameters that were given for the one before; ``model.objective = name`` starts from its defaults.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            As the constructor; a name that is none is a ValueError.
        """
        own, others = (*SETTINGS, *self.objective.parameters()), ModelOptions.__annotations__
        for name in params:
            if name not in own and name not in others:
                raise ValueError(f"WALS has no setting {name}{did_you_mean(name, own) or did_you_mean(name, others)}")
        self._take_settings(self._settings().changed(params))
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        takes = InputTags(two_d_array=True, sparse=True, string=True)
        return Tags(estimator_type=None, target_tags=TargetTags(required=False), input_tags=takes)

    # ------------------------------------------------------------------------------------------------ configs

    def to_config(self) -> dict[str, Any]:
        """The settings as a dict that JSON holds, such as ``json.dump(model.to_config(), file, indent=2)``.

        Returns
        -------
        dict
            Every setting by name; the objective as a dict with its name and all parameters, weights as lists. Priors
            are left out, with a warning: their features are no settings. :meth:`from_config` gives the same model, not
            fitted.

        Raises
        ------
        ValueError
            ``random_state`` is a Generator, or the objective is a class of your own.
        """
        return config_of(self._settings())

    def _settings_with(self, config: Mapping[str, Any] | str | PathLike[str]) -> Settings:
        """The settings, less those that a config has in their place; errors as :meth:`from_config`."""
        arguments, settings = read_config(config), self._settings()
        arguments = with_prior(arguments, settings.values["item_prior"])
        if "objective" in arguments:
            settings = settings.assigned("objective", arguments["objective"])
        return settings.changed(arguments)

    @classmethod
    def from_config(cls: type[M], config: Mapping[str, Any] | str | PathLike[str]) -> M:
        """A model, not fitted, from what :meth:`to_config` gave.

        Parameters
        ----------
        config : dict, or path of a JSON file
            A part of the settings will do, the others have their defaults. The objective may also be given by its name,
            its parameters beside it, as the constructor takes them. One with settings of an item prior needs features:
            ``WALS.hybrid(items, encoder).fit(interactions, settings=config)``.

        Returns
        -------
        WALS

        Raises
        ------
        FileNotFoundError
            There is no such file.
        TypeError, ValueError
            A setting that is none, or of the wrong kind or range; a file that is no JSON. The message names the setting
            and the file.
        """
        arguments = read_config(config)
        try:
            return cls(**with_prior(arguments, None))
        except (TypeError, ValueError) as error:
            if isinstance(config, Mapping):
                raise
            raise type(error)(f"{config}: {error}") from error
