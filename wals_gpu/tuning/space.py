"""What a search may choose: parameters with their ranges, and settings that are known to be good somewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.sparse import csr_matrix

from wals_gpu.checks import did_you_mean, integer, number
from wals_gpu.objective.presets import usual_regularization

__all__ = ["KNOWN", "RANKS", "Parameter", "Space", "make_space"]

#: Numbers of factors that are tried: trials begin with :data:`FIRST`, and go on to more and to fewer as long as these
#: are better, and there is time.
RANKS = (32, 64, 128, 256, 512, 1024)
FIRST = 128

#: Ranges of the objective "wals", by name: lowest, highest, and whether steps are by factors. docs/tuning.md says what
#: they were chosen with.
OF_WALS: dict[str, tuple[float, float, bool]] = {
    "background": (1.5, 60.0, True),
    "exponent": (0.0, 0.8, False),
    "nu": (0.0, 1.0, False),
    "regularization": (0.015, 0.6, True),  # times 1 + background, see Parameter.of_entries
    "damping": (0.0, 1.0, False),
}
#: Of any objective.
OF_ALL: dict[str, tuple[float, float, bool]] = {
    "init_scale": (0.03, 1.0, True),
    "over_relaxation": (1.0, 1.6, False),
}

#: Settings that did well on one kind of data or another; the defaults go before them.
#: Those of benchmarks/results/defaults-choice.json that were best on one log or two; every other one over-relaxed.
_NAMES = ("background", "exponent", "nu", "regularization", "init_scale", "over_relaxation", "damping")
KNOWN: tuple[dict[str, float], ...] = tuple(
    dict(zip(_NAMES, values, strict=True))
    for values in (
        (4.92, 0.3, 0.25, 0.0279, 1.0, 1.0, 0.75),
        (20.0, 0.3, 0.25, 0.0078, 0.1, 1.3, 0.0),
        (12.7, 0.1, 1.0, 0.0061, 0.1, 1.0, 1.0),
        (4.0, 0.1, 1.0, 0.0225, 1.0, 1.3, 0.5),
        (9.1, 0.4, 1.0, 0.0066, 0.1, 1.0, 0.75),
        (17.0, 0.0, 0.5, 0.0133, 0.1, 1.3, 0.25),
    )
)

#: What has no range of the user's own, and when it is found.
_FOUND = {"iterations": "in each trial", "popularity_exponent": "at the end of each trial"}
_FOUND |= dict.fromkeys(("neighbors", "neighbor_weight", "neighbor_regularization"), "beside the best factors")

# As much of a range at either end counts as its edge, but where there is nothing beyond it.
_EDGE = 0.04
_ENDS = {("exponent", "low"), ("nu", "low"), ("damping", "low"), ("damping", "high"), ("over_relaxation", "low")}


@dataclass(frozen=True)
class Parameter:
    """One number that is searched.

    Parameters
    ----------
    name : str
        A setting of the model, a parameter of its objective, or after a point one of a prior:
        "item_prior.strength".
    low, high : float
    log : bool, default False
        Whether equal factors are equal steps.
    of_entries : bool, default False
        Of the regularization of "wals", which is a share of the weight of a row, entries and background: the range is
        of the share of the entries alone, ``regularization (1 + background)``. What is good hardly depends on the
        background then.
    """

    name: str
    low: float
    high: float
    log: bool = False
    of_entries: bool = False

    def value(self, place: float) -> float:
        """The value at a place from 0 to 1."""
        place = min(max(place, 0.0), 1.0)
        if self.log:
            return self.inside(math.exp(math.log(self.low) + place * math.log(self.high / self.low)))
        return self.inside(self.low + place * (self.high - self.low))

    def place(self, value: float) -> float:
        """Where a value stands between the ends, from 0 to 1; beyond them, at the end."""
        if self.high == self.low:
            return 0.5
        value = self.inside(value)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def inside(self, value: float) -> float:
        """The nearest value of the range."""
        return min(max(value, self.low), self.high)

    def edge(self, value: float) -> str | None:
        """ "low" or "high" where a value is at the end of the range."""
        place = self.place(value)
        return "low" if place < _EDGE else "high" if place > 1 - _EDGE else None


@dataclass(frozen=True)
class Space:
    """All that a search may choose.

    Parameters
    ----------
    parameters : tuple of Parameter
        But the number of factors.
    ranks : tuple of int
        Numbers of factors, rising.
    start : dict
        The defaults of the parameters.
    background : float
        Of "wals", where it is not searched.
    default : int
        The number of factors that a model has where nothing is said.
    """

    parameters: tuple[Parameter, ...]
    ranks: tuple[int, ...]
    start: dict[str, float]
    background: float = 0.0
    default: int = 0

    @property
    def usual(self) -> int:
        """The default number of factors, where it is searched; else where trials begin."""
        return self.default if self.default in self.ranks else self.first

    @property
    def first(self) -> int:
        """The number of factors that trials begin with."""
        few = [rank for rank in self.ranks if rank <= FIRST]
        return few[-1] if few else self.ranks[0]

    def known(self) -> list[dict[str, float]]:
        """Settings to begin with, the defaults first."""
        points = [self.start]
        for more in KNOWN:
            point = {p.name: more.get(p.name, self.start[p.name]) for p in self.parameters}
            if point not in points:
                points.append(point)
        return points

    def places(self, settings: Mapping[str, float]) -> dict[str, float]:
        """Where settings are in their ranges, from 0 to 1."""
        return {p.name: p.place(settings[p.name] * self._unit(p, settings)) for p in self.parameters}

    def at(self, places: Mapping[str, float]) -> dict[str, float]:
        """The settings at places from 0 to 1; the inverse of :meth:`places`, but for four digits."""
        return self.of_params({p.name: p.value(places[p.name]) for p in self.parameters})

    def params(self, settings: Mapping[str, float]) -> dict[str, float]:
        """Settings as numbers in their ranges, as Optuna has them."""
        return {p.name: p.inside(settings[p.name] * self._unit(p, settings)) for p in self.parameters}

    def of_params(self, params: Mapping[str, float]) -> dict[str, float]:
        """The inverse of :meth:`params`, of four digits."""
        settings: dict[str, float] = {}
        for p in self.parameters:  # the background comes before what depends on it
            settings[p.name] = float(f"{p.inside(params[p.name]) / self._unit(p, settings):.4g}")
        return settings

    def _unit(self, parameter: Parameter, settings: Mapping[str, float]) -> float:
        return 1 + settings.get("background", self.background) if parameter.of_entries else 1.0

    def edges(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Names of what is at the end of its range, and which end."""
        found = {p.name: p.edge(settings[p.name] * self._unit(p, settings)) for p in self.parameters}
        if len(self.ranks) > 1 and settings.get("factors") == self.ranks[-1]:
            found["factors"] = "high"
        elif len(self.ranks) > 1 and settings.get("factors") == self.ranks[0]:
            found["factors"] = "low"
        return {name: end for name, end in found.items() if end is not None and (name, end) not in _ENDS}

    def describe(self) -> dict[str, Any]:
        """As JSON holds it: what a search must have in common with the one that it goes on with."""
        return {p.name: [p.low, p.high, p.log, p.of_entries] for p in self.parameters} | {"factors": list(self.ranks)}


def make_space(
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    given: Mapping[str, Any],
    train: csr_matrix,
    can_have: Callable[[int], bool],
) -> Space:
    """What is searched for some data.

    Parameters
    ----------
    defaults : mapping
        Values of all settings and of the objective's parameters where nothing is searched.
    fixed : mapping
        Settings that the user has decided.
    given : mapping
        Ranges of the user's own, see :meth:`wals_gpu.WALS.tune`.
    train : (U, I) csr_matrix
    can_have : callable
        Whether a model can have a number of factors, and a fit the memory for it.

    Raises
    ------
    TypeError, ValueError
        A name or a range that is none.
    """
    if defaults["objective"] == "wals" and defaults.get("regularization") == "auto":
        defaults = dict(defaults) | {"regularization": usual_regularization(train.shape[1])}
    ranges: dict[str, tuple[float, float, bool]] = {}
    usual = OF_WALS | OF_ALL if defaults["objective"] == "wals" else OF_ALL
    for name, spec in usual.items():
        if name not in fixed:
            ranges[name] = spec
    if "damping" in ranges and train.nnz and train.data.min() == train.data.max():
        del ranges["damping"]  # has no effect
    ranks = _ranks(given.get("factors"), fixed, train, can_have)
    for name, spec in given.items():
        if name == "factors":
            continue
        if not isinstance(name, str):
            raise TypeError(f"space must be a dict of ranges by the names of settings, got the key {name!r:.60}")
        if name in fixed:
            raise ValueError(f"space has {name}, which is given as a setting too: {name}={fixed[name]!r}")
        if name in _FOUND:
            raise ValueError(f"space has no place for {name}, which is found {_FOUND[name]}")
        if not _is_number(name, defaults):
            known = [*usual, *(n for n, v in defaults.items() if isinstance(v, float)), "factors"]
            raise ValueError(f"space has no number {name!r} to search{did_you_mean(name, known)}")
        ranges[name] = _range(name, spec)
    parameters = tuple(
        Parameter(name, *spec, of_entries=spec is OF_WALS.get(name) and name == "regularization")
        for name, spec in ranges.items()
    )
    start = {}
    for parameter in parameters:
        default = _default(parameter.name, defaults)
        start[parameter.name] = float(default) if isinstance(default, (int, float)) else parameter.value(0.5)
    return Space(parameters, ranks, start, float(defaults.get("background", 0.0)), defaults["factors"])


def _default(name: str, defaults: Mapping[str, Any]) -> Any:
    """The value of a setting, a parameter of the objective, or one of a prior, where nothing is searched."""
    side, point, parameter = name.partition(".")
    return getattr(defaults.get(side), parameter, None) if point else defaults.get(name)


def _is_number(name: str, defaults: Mapping[str, Any]) -> bool:
    side, point, parameter = name.partition(".")
    if point:
        return side in ("item_prior", "user_prior") and parameter in vars(defaults[side] or object)
    return isinstance(defaults.get(name), (int, float)) and not isinstance(defaults[name], bool)


def _ranks(given: Any, fixed: Mapping[str, Any], train: csr_matrix, can_have: Callable[[int], bool]) -> tuple[int, ...]:
    if "factors" in fixed:
        if given is not None:
            raise ValueError(f"space has factors, which is given as a setting too: factors={fixed['factors']!r}")
        return (int(fixed["factors"]),)
    if given is None:
        sensible = max(min(train.shape), 1)
        ranks = tuple(rank for rank in RANKS if rank < 2 * sensible and can_have(rank))
        return ranks or (min(sensible, RANKS[0]),)
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"space: factors must be a list of numbers of factors, such as [32, 64, 128], got {given!r}")
    for value in given:
        integer("space: each of factors", value, 1)
    ranks = tuple(sorted({int(value) for value in given}))
    if not ranks or not can_have(ranks[-1]):
        raise ValueError(f"space: factors must be a list of numbers that a model can have, got {given!r}")
    return ranks


def _range(name: str, spec: Any) -> tuple[float, float, bool]:
    message = f"space: {name} must be (lowest, highest) or (lowest, highest, 'log'), got {spec!r}"
    if isinstance(spec, (str, Mapping)) or not isinstance(spec, Sequence) or len(spec) not in (2, 3):
        raise TypeError(message)
    if len(spec) == 3 and spec[2] not in ("log", "linear"):
        raise ValueError(message)
    low, high = (number(f"space: {name}", value, -math.inf) for value in spec[:2])
    log = len(spec) == 3 and spec[2] == "log"
    if low >= high or (log and low <= 0):
        raise ValueError(message + (": a 'log' range begins above 0" if log and low <= 0 else ""))
    return low, high, log
