"""The search: trials, one after another, from cheap ones of few factors to the best settings at more.

Everything a proposal depends on is in the study: the seed, and the trials that are finished. So a search that was
interrupted goes on as if it had not been, and several processes can share one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wals_gpu.checks import as_path, warn
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.training.calibration import LARGEST
from wals_gpu.tuning.problem import Outcome, Problem
from wals_gpu.tuning.space import Space

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Budget",
    "Finished",
    "Search",
    "best_of",
    "exponents_near",
    "finished_of",
    "import_optuna",
    "in_order",
    "near_ranks",
    "open_study",
    "quiet",
]

#: Share of the budget for the first number of factors, where a trial is cheap.
SHAPE = 0.25
#: The best so many settings that steps and other numbers of factors begin from.
PARENTS = 3
#: Standard deviation of steps, as a share of each range, at their beginning and at the end.
STEPS = (0.15, 0.04)
#: Share of the settings that a step changes, on average.
CHANGED = 0.6
#: Share of the trials that Optuna's sampler proposes, which looks everywhere.
SAMPLED = 0.25
#: A trial ends when it is worse than this share of the best one of as many factors, at the same iteration.
HOPELESS = 0.9
_PATIENT = 3
#: And is not measured on other splits when it is worse than this share of the best one on the first.
WORTH = 0.98
#: Numbers of factors whose best trials differ by less than this share are searched side by side: the best of many
#: trials looks better than it is, and of one number there are more than of another.
NEAR = 0.01
#: More factors are not tried where that would take more than this share of the time that is left.
DEAR = 0.25


def import_optuna() -> Any:
    """Optuna; ImportError names the extra where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune needs Optuna: pip install 'wals_gpu[tune]'", name=error.name) from error
    return optuna


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's own lines about each trial; its settings are as they were afterwards."""
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(storage: str | os.PathLike[str] | None, name: str, search: dict[str, Any]) -> Any:
    """A new study, or the one of that name in a storage.

    Parameters
    ----------
    storage : str or path, optional
        A file of SQLite, which is made, or an address such as "postgresql://..."; None: in memory.
    name : str
    search : dict
        What the trials of a study have in common.

    Raises
    ------
    ValueError
        The storage cannot be used, or has a study of that name with something else in common.
    """
    url, shown = None, ""
    if storage is not None:
        text = storage if isinstance(storage, str) else os.fspath(as_path("storage", storage))
        url = text if "://" in text else _sqlite(as_path("storage", text))
        shown = re.sub(r"(://[^:/@]*:).*@", r"\1***@", text)  # an address without its password
    try:
        with quiet():
            try:
                study = _make_study(url, name)
            except Exception:  # another process may have made the tables at this moment
                if url is None:
                    raise
                time.sleep(1.0)
                study = _make_study(url, name)
            known = study.user_attrs.get("search")
            if known is None:
                study.set_user_attr("search", search)
    except Exception as error:  # of SQLAlchemy and of the drivers below it, each of their own kind
        if url is None:
            raise
        said = getattr(error, "orig", None) or error  # the driver's words, without SQLAlchemy's statement around them
        raise ValueError(f"storage cannot be {shown}: {' '.join(str(said).split())[:200]}") from error
    if known is not None and known != search:
        differs = [key for key in search if known.get(key) != search[key]]
        raise ValueError(
            f"storage cannot be {shown}, which holds a search with other {' and '.join(differs) or 'settings'}; give "
            "another file, or the arguments of that search"
        )
    return study


def _make_study(url: str | None, name: str) -> Any:
    create: Any = import_optuna().create_study
    return create(storage=url, study_name=name, direction="maximize", load_if_exists=True)


def _sqlite(path: Path) -> str:
    """The address of a file, in which "?" and "%" mean something else."""
    from sqlalchemy.engine import URL  # of which Optuna makes its storage

    if path.is_dir():
        raise ValueError(f"storage must be a file; {path} is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"storage must be a file in a folder that is there; there is no {path.parent}")
    address: str = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    return address


@dataclass(frozen=True)
class Budget:
    """How long a search may take: until `trials` are finished, or `seconds` over, whichever comes first.

    Parameters
    ----------
    seconds : float or None
    trials : int or None
        With those of earlier calls.
    began : float
        Of ``time.perf_counter()``.
    spent : float
        Seconds of earlier calls.
    """

    seconds: float | None
    trials: int | None
    began: float
    spent: float = 0.0

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.seconds is None else self.began + self.seconds - time.perf_counter()

    def fraction(self, finished: int) -> float:
        """How much of the budget is gone, from 0 to 1."""
        of_trials = 0.0 if self.trials is None else finished / self.trials
        if self.seconds is None:
            return of_trials
        elapsed = time.perf_counter() - self.began
        return max(of_trials, (self.spent + elapsed) / (self.spent + self.seconds))


@dataclass(frozen=True)
class Finished:
    """A trial of the past.

    Parameters
    ----------
    number : int
    settings : dict
        What was chosen, with ``factors``.
    outcome : Outcome
    """

    number: int
    settings: dict[str, Any]
    outcome: Outcome

    @property
    def factors(self) -> int:
        """Its rank."""
        return int(self.settings["factors"])


def finished_of(study: optuna.Study) -> list[Finished]:
    """All trials with a score, in their order."""
    found = []
    for trial in study.get_trials(deepcopy=False, states=(import_optuna().trial.TrialState.COMPLETE,)):
        made = dict(trial.user_attrs["outcome"])
        settings = made.pop("settings")
        made["curve"] = tuple(made["curve"])
        found.append(Finished(trial.number, settings, Outcome(score=float(trial.value or 0.0), **made)))
    return found


class Search:
    """Trials until the budget is gone.

    Parameters
    ----------
    problem : Problem
    space : Space
    study : optuna.Study
    budget : Budget
    seed : int
    """

    def __init__(self, problem: Problem, space: Space, study: optuna.Study, budget: Budget, seed: int) -> None:
        self._problem, self._space, self._study, self._budget, self._seed = problem, space, study, budget, seed
        self._optuna = import_optuna()

    def finished(self) -> list[Finished]:
        """See :func:`finished_of`."""
        return finished_of(self._study)

    def run(self, tell: Callable[[Finished, Finished, int], bool], reserve: Callable[[Finished], float]) -> bool:
        """Make trials; whether Ctrl-C ended it.

        Parameters
        ----------
        tell : callable
            Gets each trial, the best so far, and the number of trials; true ends the search.
        reserve : callable
            Seconds that must be left, given the best so far.
        """
        try:
            while True:
                finished = self.finished()
                best = best_of(finished) if finished else None
                if self._budget.trials is not None and len(finished) >= self._budget.trials:
                    return False
                left = self._budget.left() - (0.0 if best is None else reserve(best))
                if finished and left <= 0:
                    return False
                made = self._one(finished, left)
                if tell(made, best_of([*finished, made]), len(finished) + 1):
                    return False
        except KeyboardInterrupt:
            if not self.finished():
                raise
            return True

    # ------------------------------------------------------------------------------------------------ one trial

    def _one(self, finished: list[Finished], left: float) -> Finished:
        trial = self._ask(finished, left)
        chosen: dict[str, Any] = self._space.of_params(trial.params)
        chosen["factors"] = trial.params["factors"]
        deadline = time.perf_counter() + left if finished else None
        try:
            outcome = self._problem.measure(
                chosen,
                self._hopeless(finished, chosen["factors"]),
                deadline,
                exponents_near(finished),
                _worth(finished),
            )
        except (ModelFitError, SingularSystemError, MemoryError) as error:  # of these settings: others may do
            if not any(one.outcome.is_whole for one in finished) and len(finished) >= len(self._space.known()):
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                raise
            warn(f"a trial with {chosen} failed: {error}")
            outcome = Outcome(0.0, 0.0, 1, 0.0, (0.0,), False, 0.0)
        except BaseException:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            raise
        made = dataclasses.asdict(outcome) | {"settings": chosen, "curve": list(outcome.curve)}
        del made["score"]
        trial.set_user_attr("outcome", made)  # at once: a storage writes each attribute to the disk
        self._study.tell(trial, outcome.score)
        return Finished(trial.number, chosen, outcome)

    def _ask(self, finished: list[Finished], left: float) -> optuna.Trial:
        from wals_gpu.tuning.sampler import Proposals

        distributions: dict[str, Any] = {
            p.name: self._optuna.distributions.FloatDistribution(p.low, p.high, log=p.log)
            for p in self._space.parameters
        }
        distributions["factors"] = self._optuna.distributions.CategoricalDistribution(self._space.ranks)
        with quiet():
            self._study.sampler = Proposals(
                lambda number: self._propose(number, finished, left),
                lambda number: int(np.random.default_rng([self._seed, number]).integers(2**31)),
                distributions,
                len(self._space.known()),
            )
            trial: optuna.Trial = self._study.ask(distributions)
        return trial

    def _hopeless(self, finished: list[Finished], factors: int) -> Callable[[list[float]], bool]:
        same = [one for one in finished if one.factors == factors and one.outcome.is_whole]
        if len(same) < 3:
            return lambda curve: False
        best = best_of(same).outcome.curve

        def is_hopeless(curve: list[float]) -> bool:
            if len(curve) < _PATIENT:
                return False
            return max(curve) < HOPELESS * max(best[: len(curve)])

        return is_hopeless

    # ------------------------------------------------------------------------------------------------ proposals

    def _propose(self, number: int, finished: list[Finished], left: float) -> dict[str, Any]:
        """Parameters of a trial, some or all of them."""
        space, known = self._space, self._space.known()
        if number < len(known):
            return space.params(known[number]) | {"factors": space.first}
        if number == len(known) and space.usual != space.first:
            return space.params(known[0]) | {"factors": space.usual}  # the defaults as they are
        rng = np.random.default_rng([self._seed, number, 1])
        fraction = self._budget.fraction(number)
        factors = space.first
        if fraction >= SHAPE and finished:
            scout = self._scout(finished, left)
            if scout is not None:
                return scout
            factors = self._rank(finished, rng)
        if rng.random() < SAMPLED:
            return {"factors": factors}  # the rest is left to Optuna
        # A step from the mean of two good settings, or from one of them.
        whole = in_order(one for one in finished if one.outcome.is_whole)
        parents = [one for one in whole if one.factors == factors]
        parents = [*parents, *(one for one in whole if one.factors != factors)][:PARENTS]
        if not parents:
            return {"factors": factors}
        one, other = (space.places(parents[int(rng.integers(len(parents)))].settings) for _ in range(2))
        deviation = STEPS[0] * (STEPS[1] / STEPS[0]) ** min(fraction, 1.0)
        places = {}
        for name, place in one.items():
            share, step, is_changed = rng.random(), rng.standard_normal(), rng.random() < CHANGED
            between = place + share * (other[name] - place)
            places[name] = _reflected(between + deviation * step) if is_changed else between
        return {p.name: p.value(places[p.name]) for p in space.parameters} | {"factors": factors}

    def _rank(self, finished: list[Finished], rng: np.random.Generator) -> int:
        """The best number of factors, or every other time one that is near it, rather one whose trials are cheap."""
        best = best_of(finished)
        near = {rank: one for rank, one in near_ranks(finished).items() if rank != best.factors}
        if not near or rng.random() < 0.5:
            return best.factors
        speeds = np.array([1 / max(one.outcome.seconds, 1e-9) for one in near.values()])
        return int(rng.choice(list(near), p=speeds / speeds.sum()))

    def _scout(self, finished: list[Finished], left: float) -> dict[str, Any] | None:
        """The best settings of one number of factors with the next one, as long as that is no worse than the last."""
        ranks, first = self._space.ranks, self._space.ranks.index(self._space.first)
        by_rank = {rank: [one for one in finished if one.factors == rank and one.outcome.is_whole] for rank in ranks}
        up, down = ranks[first:], ranks[first::-1]
        if len(up) > 1 and _best(by_rank[up[1]]) > _best(by_rank[up[0]]):
            down = down[:1]  # fewer are worse
        for way, growth in ((up, 3.0), (down, 1.0)):
            for few, more in pairwise(way):
                if not by_rank[few]:
                    break
                best = best_of(by_rank[few])
                # The defaults are tried with more anyway.
                known = [_shape(best), *(_shape(one) for one in by_rank[few] if one.number)]
                if not any(one.factors == more and _shape(one) in known for one in finished):
                    if self._budget.seconds is not None and growth * best.outcome.seconds > DEAR * left:
                        break
                    return self._space.params(best.settings) | {"factors": more}
                if _best(by_rank[more]) <= (1 - NEAR) * _best(by_rank[few]):
                    break
        return None


def _shape(one: Finished) -> dict[str, Any]:
    """Settings but the number of factors."""
    return {name: value for name, value in one.settings.items() if name != "factors"}


def best_of(finished: list[Finished]) -> Finished:
    """The one with the highest score, of those measured to their end if there are any; of equals the first."""
    whole = [one for one in finished if one.outcome.is_whole]
    return in_order(whole or finished)[0]


def near_ranks(finished: list[Finished]) -> dict[int, Finished]:
    """The best trial of each number of factors that is as good as the best of all, or nearly; from few to many."""
    ranks = sorted({one.factors for one in finished})
    best = {rank: best_of([one for one in finished if one.factors == rank]) for rank in ranks}
    least = (1 - NEAR) * best_of(finished).outcome.score
    return {rank: one for rank, one in best.items() if one.outcome.is_whole and one.outcome.score >= least}


def in_order(trials: Iterable[Finished]) -> list[Finished]:
    """The best first; of equals the first."""
    return sorted(trials, key=lambda one: (-one.outcome.score, one.number))


def _worth(finished: list[Finished]) -> float:
    """What a trial must have on the first split so that the others are looked at."""
    whole = [one for one in finished if one.outcome.is_whole]
    return WORTH * best_of(whole).outcome.first if whole else 0.0


def exponents_near(finished: list[Finished]) -> list[float] | None:
    """Exponents of items' popularity for the next trial: those near the best ones; None: all, where little is known."""
    whole = [one for one in finished if one.outcome.is_whole]
    if len(whole) < PARENTS:
        return None
    near = [one.outcome.popularity_exponent for one in in_order(whole)[:PARENTS]]
    middle = round(sorted(near)[len(near) // 2] / 0.05) * 0.05  # of several splits it is a mean
    return [round(min(max(middle + step, -LARGEST), LARGEST), 2) for step in (-0.05, 0.0, 0.05, 0.1)]


def _best(finished: list[Finished]) -> float:
    return max(one.outcome.score for one in finished) if finished else 0.0


def _reflected(place: float) -> float:
    """Back from beyond an end of 0 ... 1."""
    place = abs(place)
    return 2 - place if place > 1 else place
