"""Optuna's side of the proposals; imported when a search begins, as it needs Optuna."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna

__all__ = ["Proposals"]


class Proposals(optuna.samplers.BaseSampler):  # type: ignore[misc]  # checked without Optuna, a class of any kind
    """Parameters that a function proposes; those that it leaves out are sampled by TPE.

    Parameters
    ----------
    propose : callable
        Gets how many trials there are before this one, those of other processes that are under way among them.
    seed : callable
        The same for the seed of TPE.
    distributions : dict
        Of all parameters.
    n_startup : int
        Trials before TPE models what it has seen.
    """

    def __init__(
        self,
        propose: Callable[[int], dict[str, Any]],
        seed: Callable[[int], int],
        distributions: dict[str, Any],
        n_startup: int,
    ) -> None:
        self._propose, self._seed, self._distributions, self._n_startup = propose, seed, distributions, n_startup

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """All of it."""
        return self._distributions

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        """Every parameter of a trial."""
        # Not the trial's number: one that failed, or was interrupted, is made again.
        states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING)
        earlier = sum(one.number < trial.number for one in study.get_trials(deepcopy=False, states=states))
        proposal = self._propose(earlier)
        missing = [name for name in search_space if name not in proposal]
        if missing:
            # Made anew for each trial, so that it does not matter which were made before in this process.
            tpe = optuna.samplers.TPESampler(
                seed=self._seed(earlier), multivariate=True, n_startup_trials=self._n_startup, constant_liar=True
            )
            sampled = tpe.sample_relative(study, trial, tpe.infer_relative_search_space(study, trial))
            for name in missing:
                known = name in sampled
                proposal[name] = (
                    sampled[name] if known else tpe.sample_independent(study, trial, name, search_space[name])
                )
        return proposal

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """Never asked, as all are sampled together."""
        raise NotImplementedError
