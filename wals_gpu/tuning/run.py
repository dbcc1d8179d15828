"""From interactions and a budget to settings: what :meth:`wals_gpu.WALS.tune` does."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import flag, integer, number
from wals_gpu.data.interactions import as_interactions
from wals_gpu.data.progress import progress_bar
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.errors import ModelFitError
from wals_gpu.evaluation.metrics import bootstrap_interval
from wals_gpu.evaluation.report import evaluate
from wals_gpu.evaluation.times import seconds_of
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.training.checkpoints import fingerprint
from wals_gpu.training.memory import check_memory
from wals_gpu.training.validation import parse_metric
from wals_gpu.tuning.confirm import Confirmed, confirm
from wals_gpu.tuning.neighbors import NeighborTrial, choose_neighbors
from wals_gpu.tuning.priors import PriorChoice, tune_prior
from wals_gpu.tuning.problem import Parts, Problem
from wals_gpu.tuning.result import Comparison, Trials, Tuning
from wals_gpu.tuning.search import Budget, Finished, Search, best_of, finished_of, import_optuna, open_study
from wals_gpu.tuning.space import Space, make_space

__all__ = ["tune"]

#: Of the study in a storage.
_NAME = "wals_gpu"
#: Shares of a budget of time that are kept for the best trials' second measurement, for the settings of a prior, and
#: for the neighbours, beside a fit of the best factors.
CONFIRM, PRIOR, NEIGHBORS = 0.12, 0.2, 0.2
#: Of an item prior, that are tried beside the best factors.
STRENGTHS, RIDGES, KERNELS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.3, 3.0), (0.0, 0.5)
#: What is held out, in words.
_HELD = {
    "random": "interactions drawn at random",
    "latest": "the latest interactions",
    "latest of each user": "each user's latest interactions (the last days have too few users who were there before)",
}
#: What items without interactions count in that choice.
COLD_WEIGHT = 0.25


def tune(
    model: Any,
    interactions: Any,
    budget: Any,
    *,
    trials: int | None,
    metric: str,
    validation: float,
    test: float,
    space: Mapping[str, Any] | None,
    storage: str | os.PathLike[str] | None,
    refit: bool,
    show_progress: bool,
    callback: Callable[[Trials], bool | None] | None,
    fixed: Mapping[str, Any],
    columns: Mapping[str, Any],
) -> Tuning:
    """Search settings of a class of models; :meth:`wals_gpu.WALS.tune` documents the arguments.

    Parameters
    ----------
    model : type
    fixed : mapping
        Arguments of the model that are not searched.
    columns : mapping
        Of a table.
    """
    began = time.perf_counter()
    import_optuna()
    seconds = None if budget is None else seconds_of("budget", budget)
    if trials is not None:
        trials = integer("trials", trials, 1)
    if seconds is None and trials is None:
        raise ValueError("budget and trials are both None, so the search would have no end")
    k = parse_metric(metric)[1]
    validation = number("validation", validation, positive=True, below=1)
    test = number("test", test, below=1)
    if validation + test >= 1:
        raise ValueError(f"validation and test together must be below 1, got {validation:g} + {test:g}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    if space is not None and not isinstance(space, Mapping):
        raise TypeError(f"space must be a dict of ranges by name, got {space!r:.60}")
    fixed = dict(fixed)
    if fixed.get("popularity_exponent") == "auto":
        del fixed["popularity_exponent"]  # what every trial does
    if "iterations" in fixed:
        raise TypeError("iterations are found by tune: a trial ends when more of them rank no better")
    refit = flag("refit", refit)
    base = model(**fixed)
    seed = base.random_state
    if not isinstance(seed, int):
        raise TypeError(f"random_state must be an integer, the seed of the search, got {seed!r:.60}")
    if isinstance(interactions, StoredMatrix):
        raise TypeError("interactions must be in memory: tune splits them, and stored ones are not split")
    whole = as_interactions(interactions, dtype=base.dtype, **columns)
    parts = Parts.divide(whole, validation, test, seed)

    def can_have(factors: int) -> bool:
        try:
            with_these = model(**(fixed | {"factors": factors}))
            check_memory(with_these.estimate_memory(*whole.matrix.shape, whole.matrix.nnz, validation=True))
        except (ValueError, MemoryError):
            return False
        return True

    searched = make_space(base.get_params(), fixed, space or {}, parts.train.matrix, can_have)
    problem = Problem(model, fixed, parts, metric, seed)
    shared = {
        "data": fingerprint(whole.matrix, whole.user_ids, whole.item_ids),
        "metric": metric,
        "validation": validation,
        "test": test,
        "held out": parts.held,
        "space": searched.describe(),
        "settings": {
            name: _comparable(value) for name, value in fixed.items() if name not in ("device", "num_threads")
        },
    }
    study = open_study(storage, _NAME, shared)
    beside: list[NeighborTrial] = []
    confirmed: list[Confirmed] = []
    prior: PriorChoice | None = None
    of_prior: list[str] = []
    limits = Budget(seconds, trials, began, spent=sum(one.outcome.seconds for one in finished_of(study)))
    search = Search(problem, searched, study, limits, seed)
    with_prior, with_neighbors = _searches_prior(problem, searched), "neighbors" not in fixed
    shares = CONFIRM * (not parts.by_time) + PRIOR * with_prior + NEIGHBORS * with_neighbors

    def after(best: Finished) -> float:
        return _seconds_after(best, base, shares * (seconds or 0.0), bool(test), refit, with_neighbors)

    with _Progress(limits, metric, search, show_progress, callback) as progress:
        interrupted = search.run(progress.tell, after)
        found = Trials(search.finished())
        if not interrupted:
            interrupted, confirmed = _confirm(problem, found, limits)
        best = confirmed[0].settled() if confirmed else best_of(found)
        if with_prior and not interrupted:
            interrupted, prior, of_prior = _search_prior(problem, best, limits)
        if with_neighbors and not interrupted:
            interrupted, beside = _search_neighbors(problem, best, _of_prior(prior), limits)
    if not best.outcome.is_whole and not best.outcome.score:
        raise ModelFitError("no trial could be fitted; the warnings say why")
    chosen = dict(best.settings) | {"iterations": best.outcome.iterations} | _of_prior(prior)
    if problem.chooses_exponent:
        chosen["popularity_exponent"] = best.outcome.popularity_exponent
    score = best.outcome.score
    if beside and beside[-1].neighbors:
        chosen |= {name: value for name, value in dataclasses.asdict(beside[-1]).items() if name != "score"}
        score = beside[-1].score
        if not problem.chooses_exponent:
            del chosen["popularity_exponent"]
    settings = problem.settings(chosen)
    comparison = _compare(model, settings, fixed, parts, metric, k) if parts.test is not None else None
    fitted = model(**settings).fit(whole) if refit else None
    edges = searched.edges(best.settings)
    return Tuning(
        best_settings=settings,
        model=fitted,
        metric=metric,
        validation_score=score,
        best_score=None if comparison is None else comparison.best,
        comparison=comparison,
        trials=found,
        confirmed=confirmed,
        prior=prior,
        neighbor_trials=beside,
        edges=edges,
        notes=_notes(parts, len(problem.splits), comparison, edges, searched, interrupted)
        + _of_confirmed(confirmed, metric)
        + of_prior
        + _of_neighbors(beside, metric),
        config=_config(model, settings),
        interrupted=interrupted,
        seconds=time.perf_counter() - began,
        study=study,
    )


def _confirm(problem: Problem, found: list[Finished], budget: Budget) -> tuple[bool, list[Confirmed]]:
    """The best trials on other splits; and whether Ctrl-C ended it, which leaves the best one as it was found."""
    try:
        return False, confirm(problem, found, None if budget.seconds is None else CONFIRM * budget.seconds)
    except KeyboardInterrupt:
        return True, []


def _of_confirmed(confirmed: list[Confirmed], metric: str) -> list[str]:
    if not confirmed:
        return []
    best, n = confirmed[0], len(confirmed[0].scores)
    searched = max(one.trial.outcome.score for one in confirmed)
    return [
        f"the best {len(confirmed)} trials were measured on {n} more split{'s' * (n > 1)}, where the chosen one, of "
        f"{best.trial.factors} factors, has {metric} {best.score:.4f}; the best of all had {searched:.4f} in the search"
    ]


def _searches_prior(problem: Problem, space: Space) -> bool:
    """Whether the settings of an item prior are open: not where a strength is given, or ranges of the user's own."""
    prior = problem.fixed.get("item_prior")
    return (
        isinstance(prior, LinearPrior)
        and prior.strength is None
        and prior.shrinkage is None
        and prior.learn == "none"
        and not any(p.name.startswith("item_prior.") for p in space.parameters)
    )


def _search_prior(problem: Problem, best: Finished, budget: Budget) -> tuple[bool, PriorChoice | None, list[str]]:
    """Whether Ctrl-C ended it, settings of the item prior beside the best factors, and what to say of them."""
    chosen = dict(best.settings) | {"iterations": best.outcome.iterations}
    model = problem.model(**(problem.settings(chosen) | {"compute_loss": False, "popularity_exponent": 0.0}))
    deadline = None if budget.seconds is None else time.perf_counter() + PRIOR * budget.seconds
    options: dict[str, Any] = {"ridges": RIDGES, "kernels": KERNELS, "random_state": int(model.random_state)}
    try:
        choice = tune_prior(
            model, problem.parts.search, STRENGTHS, **options, cold_weight=COLD_WEIGHT, deadline=deadline
        )
    except KeyboardInterrupt:
        return True, None, []
    except ValueError as error:  # too few items to take some away: what the search found is worth keeping
        return False, None, [f"item_prior has the settings that it came with: {error}"]
    return False, choice, _words_of_prior(choice)


def _of_prior(choice: PriorChoice | None) -> dict[str, Any]:
    """What was chosen, by the names that a search has for settings of a prior."""
    return {} if choice is None else {f"item_prior.{name}": value for name, value in choice.settings.items()}


def _words_of_prior(choice: PriorChoice) -> list[str]:
    n = len(choice.start.warm_scores)
    if choice.settings == choice.start.settings:
        return [f"{len(choice.trials) - 1} other settings of item_prior are not better on each of {n} splits"]
    changed = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in choice.settings.items()
        if value != choice.start.settings[name]
    ]
    means = [
        f"{name} items {np.mean(getattr(choice.start, scores)):.4f} -> {np.mean(getattr(choice.trial, scores)):.4f}"
        for name, scores in (("warm", "warm_scores"), ("cold", "cold_scores"))
    ]
    off = "; 0 is without the prior but for items that nobody has" if not choice.relative_strength else ""
    return [
        f"item_prior: {', '.join(changed)} is better on each of {n} splits (ndcg@100 of {means[0]}, {means[1]}){off}"
    ]


def _search_neighbors(
    problem: Problem, best: Finished, prior: dict[str, Any], budget: Budget
) -> tuple[bool, list[NeighborTrial]]:
    """Neighbours beside the best factors; and whether Ctrl-C ended it, which leaves the factors as they were found."""
    chosen = dict(best.settings) | {"iterations": best.outcome.iterations} | prior
    exponent = best.outcome.popularity_exponent
    if not problem.chooses_exponent:
        exponent = float(problem.fixed["popularity_exponent"])
    deadline = None if budget.seconds is None else time.perf_counter() + NEIGHBORS * budget.seconds
    try:
        return False, choose_neighbors(problem, chosen, exponent, deadline)
    except KeyboardInterrupt:
        return True, []


def _of_neighbors(trials: list[NeighborTrial], metric: str) -> list[str]:
    if not trials:
        return []
    found, alone = trials[-1], trials[0]
    if not found.neighbors:
        return [f"{len(trials) - 1} choices of neighbors rank no better than the factors alone, within the noise"]
    return [
        f"{found.neighbors} neighbors of each item raise {metric} of validation from {alone.score:.4f} to "
        f"{found.score:.4f}"
    ]


def _comparable(value: Any) -> Any:
    """A setting as JSON holds it."""
    if isinstance(value, LinearPrior):
        return value.fingerprint()
    return value if isinstance(value, (int, float, str)) else repr(value)


def _config(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings but those of a machine, and the features of priors; of a user prior, nothing."""
    config: dict[str, Any] = model(**(dict(settings) | {"item_prior": None, "user_prior": None})).to_config()
    config = {name: value for name, value in config.items() if name not in ("device", "num_threads")}
    prior = settings.get("item_prior")
    return config if prior is None else config | {"item_prior": prior.to_config()}


def _seconds_after(best: Finished, base: Any, kept: float, with_test: bool, refit: bool, with_neighbors: bool) -> float:
    """What comes after the search takes, roughly: `kept` for other searches, and fits, each shorter than a trial."""
    of_best = best.outcome.seconds
    fits = of_best * (int(with_test) + int(refit) + int(with_neighbors))
    if with_test:  # the defaults too
        fits += of_best * max(1.0, base.factors / best.factors)
    return kept + fits


def _compare(
    model: Any, settings: Mapping[str, Any], fixed: Mapping[str, Any], parts: Parts, metric: str, k: int
) -> Comparison:
    """The best settings, the defaults and popularity on interactions that no trial has seen."""
    values: list[NDArray[np.float64]] = []
    for arguments, baseline in ((settings, False), (fixed, True)):
        fitted = model(**(dict(arguments) | {"compute_loss": False})).fit(parts.search)
        report = evaluate(fitted, parts.search, parts.test, [k], baseline=baseline, n_resamples=0)
        values += [table[metric] for table in report.per_user.values()]
    best, default, popularity = values
    found: Any = bootstrap_interval(np.column_stack([best, default, popularity, best - default]))
    return Comparison(found[0], found[1], found[2], found[3], len(best))


def _notes(
    parts: Parts,
    n_splits: int,
    comparison: Comparison | None,
    edges: Mapping[str, str],
    space: Space,
    interrupted: bool,
) -> list[str]:
    notes = [f"{_HELD[parts.held]} were held out: {parts.valid.matrix.nnz:,} to choose settings with"]
    if n_splits > 1:
        notes[0] += f" ({n_splits} times, as these are few users)"
    if parts.test is not None:
        notes[0] += f", {parts.test.matrix.nnz:,} to measure the best ones with"
    if comparison is not None:
        gain = comparison.gain
        if comparison.is_noise:
            notes.append(
                f"best and default differ by {gain}: noise explains that, so the defaults may be as good as these "
                "settings"
            )
        elif gain.value < 0:
            notes.append(f"best and default differ by {gain}: the defaults are better, so keep them")
        if comparison.best.value < comparison.popularity.value:
            notes.append("the most popular items are better than the best settings that were found")
    ranges = {
        p.name: f"{p.low:g} ... {p.high:g}" + (" over 1 + background" if p.of_entries else "") for p in space.parameters
    }
    for name, end in edges.items():
        of = ranges.get(name, f"{space.ranks[0]} ... {space.ranks[-1]}")
        notes.append(f"{name} is at the {end} end of its range ({of}): others may be better")
    if any(p.name.startswith("user_prior.") for p in space.parameters):
        notes.append("settings of user_prior are in the model, but not among those that are saved")
    if interrupted:
        notes.append("Ctrl-C ended the search early")
    return notes


class _Progress:
    """A bar of the budget with the best so far."""

    def __init__(
        self,
        budget: Budget,
        metric: str,
        search: Search,
        is_shown: bool,
        callback: Callable[[Trials], bool | None] | None,
    ) -> None:
        self._budget, self._metric, self._search, self._callback = budget, metric, search, callback
        of_time = budget.seconds is not None
        total = math.ceil(budget.seconds) if budget.seconds is not None else budget.trials
        self._of_time = of_time
        self._bar = progress_bar(
            total, is_shown, desc="tune", unit="s" if of_time else "trial",
            bar_format="{desc}: {n:.0f}/{total:.0f} {unit} {bar} {postfix}",
        )  # fmt: skip

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, made: Finished, best: Finished, n: int) -> bool:
        """Show a trial; whether the callback asks for the end."""
        now = time.perf_counter() - self._budget.began if self._of_time else float(n)
        self._bar.n = min(now, self._bar.total)
        self._bar.set_postfix_str(
            f"{n} trials, best {self._metric} {best.outcome.score:.4f} with {best.factors} factors", refresh=True
        )
        return self._callback is not None and bool(self._callback(Trials(self._search.finished())))
