"""What a search found."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from wals_gpu.checks import as_path
from wals_gpu.data.files import whole_file
from wals_gpu.data.tables import Tabular, format_table, html_table
from wals_gpu.evaluation.metrics import Estimate
from wals_gpu.tuning.confirm import Confirmed
from wals_gpu.tuning.neighbors import NeighborTrial
from wals_gpu.tuning.priors import PriorChoice
from wals_gpu.tuning.search import Finished, import_optuna, quiet

if TYPE_CHECKING:
    import optuna

__all__ = ["Comparison", "Trials", "Tuning"]


class Trials(list[Finished], Tabular):
    """The trials of a search that have a score, in their order; tables of other libraries are a call away."""

    def to_arrow(self) -> pa.Table:
        """A row for each: its number, score, settings, exponent of popularity, iterations, seconds, and whether it was
        measured to its end."""
        names = list(dict.fromkeys(name for one in self for name in one.settings))
        columns: dict[str, Any] = {"trial": pa.array([one.number for one in self], pa.int64())}
        columns["score"] = pa.array([one.outcome.score for one in self], pa.float64())
        for name in names:
            kind = pa.int64() if name == "factors" else pa.float64()
            columns[name] = pa.array([one.settings.get(name) for one in self], kind)
        columns["popularity_exponent"] = pa.array([one.outcome.popularity_exponent for one in self], pa.float64())
        columns["iterations"] = pa.array([one.outcome.iterations for one in self], pa.int64())
        columns["seconds"] = pa.array([one.outcome.seconds for one in self], pa.float64())
        columns["whole"] = pa.array([one.outcome.is_whole for one in self], pa.bool_())
        return pa.table(columns)

    def _lines(self) -> tuple[list[str], list[list[object]]]:
        table = self.to_arrow()
        return table.column_names, [list(row.values()) for row in table.to_pylist()]

    def __str__(self) -> str:
        return format_table(*self._lines()) if self else "no trials"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self._lines()) if self else "<p>no trials</p>"


@dataclass(frozen=True)
class Comparison:
    """Scores on interactions that no trial has seen.

    Attributes
    ----------
    best, default, popularity : Estimate
        The settings that were found, those of a new model, and the most popular items, with an interval of 95 % from
        resampled users.
    gain : Estimate
        `best` - `default`, paired: the same users for both.
    users : int
        Whom the scores are means over.
    """

    best: Estimate
    default: Estimate
    popularity: Estimate
    gain: Estimate
    users: int

    @property
    def is_noise(self) -> bool:
        """Whether the interval of the gain holds 0."""
        return self.gain.low is not None and self.gain.high is not None and self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True, repr=False, eq=False)
class Tuning:
    """What :meth:`wals_gpu.WALS.tune` found; ``print`` shows a summary, as a notebook does.

    Attributes
    ----------
    best_settings : dict
        ``WALS(**best_settings)`` is the model that was best, not fitted.
    model : WALS or None
        The same, fitted on all interactions; None with ``refit=False``.
    metric : str
    validation_score : float
        Of the best trial on the interactions that it was chosen with, so a little too good.
    best_score : Estimate or None
        Of the best settings on interactions that no trial has seen, with an interval of 95 %; None with ``test=0``.
    comparison : Comparison or None
        The same beside the defaults and popularity.
    trials : Trials
        Every trial, as a list and as a table: ``trials.to_pandas()``.
    confirmed : list of Confirmed
        The few best trials as they were measured again, on splits that chose none of them; the first one is chosen.
        Empty where that was not done: few trials, little time, or interactions held out by time.
    prior : PriorChoice or None
        Settings of the item prior that were tried beside the best factors, with items that lost their interactions;
        None where there is no prior, or its settings were given.
    neighbor_trials : list of NeighborTrial
        Neighbours of items that were tried beside the best factors, the chosen one last; empty where they were fixed.
    edges : dict of str to str
        Settings that ended at the edge of their range, "low" or "high": a wider range may have better ones.
    notes : list of str
        What to know of the result, a sentence each.
    config : dict
        The settings as :meth:`save` writes them.
    interrupted : bool
        Whether Ctrl-C ended the search.
    seconds : float
    study : optuna.Study
        For everything that Optuna can do with it.
    """

    best_settings: dict[str, Any]
    model: Any
    metric: str
    validation_score: float
    best_score: Estimate | None
    comparison: Comparison | None
    trials: Trials
    confirmed: list[Confirmed]
    prior: PriorChoice | None
    neighbor_trials: list[NeighborTrial]
    edges: dict[str, str]
    notes: list[str]
    config: dict[str, Any]
    interrupted: bool
    seconds: float
    study: optuna.Study = field(repr=False)

    def command(
        self, interactions: str | Sequence[str] = "INTERACTIONS", file: str | os.PathLike[str] = "best.json"
    ) -> str:
        """The command line that fits the best settings.

        Parameters
        ----------
        interactions : str or sequence of str
            The file that holds them; or several, and options that say how they are read, and with an item prior where
            its texts are: ``["plays.csv", "--items", "items.csv", "--encoder", "roberta-base"]``.
        file : str or path, default "best.json"
            What :meth:`save` has written.

        Returns
        -------
        str
            Quoted for a shell.
        """
        words = [interactions] if isinstance(interactions, str) else interactions
        return shlex.join(["wals-gpu", "fit", *words, "--settings", os.fspath(file), "--out", "model"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the best settings as JSON: ``WALS.from_config(path)`` and ``wals-gpu fit --settings`` read it; with an
        item prior, ``WALS.hybrid(items, encoder).fit(interactions, settings=path)`` and ``fit --items --encoder``.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        OSError
            The file cannot be written; an earlier one is as it was.
        """
        with whole_file(as_path("path", path)) as temporary:
            temporary.write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")

    def to_show(self) -> dict[str, Any]:
        """The best settings by name; of an item prior those that were chosen, in place of its features."""
        settings = dict(self.best_settings)
        if self.prior is not None:
            del settings["item_prior"]
            settings |= {f"item_prior.{name}": value for name, value in self.prior.settings.items()}
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values for JSON."""
        compared = self.comparison
        scores = (
            None
            if compared is None
            else {name: getattr(compared, name)._asdict() for name in ("best", "default", "popularity", "gain")}
        )
        return {
            "metric": self.metric,
            "settings": self.config,
            "validation": self.validation_score,
            "test": scores,
            "users": None if compared is None else compared.users,
            "trials": len(self.trials),
            "confirmed_trials": len(self.confirmed),
            "prior_trials": 0 if self.prior is None else len(self.prior.trials),
            "neighbor_trials": len(self.neighbor_trials),
            "seconds": self.seconds,
            "edges": self.edges,
            "notes": self.notes,
            "interrupted": self.interrupted,
        }

    # ------------------------------------------------------------------------------------------------ pictures

    def plot_importance(self, ax: Any = None) -> Any:
        """How much of the scores' variance each setting explains, by Optuna's own measure, among the trials of the
        number of factors that has most.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            To draw into; by default those of a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            There are too few trials.
        """
        plt = _pyplot("plot_importance")
        importance = self.importance()
        if ax is None:
            _, ax = plt.subplots()
        names = list(importance)[::-1]
        ax.barh(names, [importance[name] for name in names])
        ax.set_xlabel(f"share of the variance of {self.metric}")
        return ax

    def importance(self) -> dict[str, float]:
        """The numbers of :meth:`plot_importance`.

        Returns
        -------
        dict of str to float
            Shares of the variance by setting, the largest first.

        Raises
        ------
        ValueError
            There are too few trials.
        """
        optuna = import_optuna()
        with quiet():
            few = optuna.create_study(direction="maximize")
            whole = [one for one in self.trials if one.outcome.is_whole]
            count = Counter(one.factors for one in whole)
            rank = max(count, key=lambda factors: (count[factors], -factors)) if count else 0
            wanted = {one.number for one in whole if one.factors == rank}
            if len(wanted) < 10:
                raise ValueError(f"the importance of settings needs 10 trials of as many factors, got {len(wanted)}")
            few.add_trials([trial for trial in self.study.get_trials(deepcopy=False) if trial.number in wanted])
            names = [name for name in self.trials[0].settings if name != "factors"]
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(few, evaluator=evaluator, params=names))

    def plot_slices(self, settings: Sequence[str] | None = None) -> Any:
        """The score of every trial over each setting.

        Parameters
        ----------
        settings : sequence of str, optional
            Which; default: all that were searched.

        Returns
        -------
        matplotlib Figure
        """
        plt = _pyplot("plot_slices")
        names = list(self.trials[0].settings) if settings is None else list(settings)
        unknown = [name for name in names if name not in self.trials[0].settings]
        if unknown:
            raise ValueError(f"settings must be of {', '.join(self.trials[0].settings)}; got {unknown[0]!r}")
        figure, axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 3), sharey=True, squeeze=False)
        logarithmic = {
            name: getattr(kind, "log", name == "factors")
            for name, kind in self.study.trials[self.trials[0].number].distributions.items()
        }
        ranks = sorted({one.factors for one in self.trials})
        for ax, name in zip(axes[0], names, strict=True):
            for color, rank in enumerate(ranks):
                chosen = [one for one in self.trials if one.factors == rank]
                ax.plot(
                    [one.settings[name] for one in chosen], [one.outcome.score for one in chosen], ".",
                    color=f"C{color}", label=f"{rank} factors",
                )  # fmt: skip
            if logarithmic.get(name):
                ax.set_xscale("log")
            ax.set_xlabel(name)
        axes[0][0].set_ylabel(self.metric)
        scores = sorted(one.outcome.score for one in self.trials)
        axes[0][0].set_ylim(
            scores[len(scores) // 4], scores[-1] + 0.05 * (scores[-1] - scores[len(scores) // 4]) + 1e-9
        )
        axes[0][-1].legend(fontsize="small")
        figure.tight_layout()
        return figure

    # ------------------------------------------------------------------------------------------------ in words

    def _lines(self) -> list[tuple[str, object]]:
        n = len(self.trials)
        lines: list[tuple[str, object]] = [(name, _short(value)) for name, value in self.to_show().items()]
        lines.append(
            (f"{self.metric} of validation", f"{self.validation_score:.4f}, the best of {n} trial{'s' * (n > 1)}")
        )
        if self.comparison is not None:
            for name in ("best", "default", "popularity", "gain"):
                shown = {"gain": "best - default"}.get(name, name)
                lines.append((f"{self.metric} of test, {shown}", str(getattr(self.comparison, name))))
        return lines

    def __str__(self) -> str:
        table = format_table(["setting", "value"], self._lines())
        return "\n".join([table, *self.notes])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<div>{html_table(['setting', 'value'], self._lines())}{notes}</div>"


def _short(value: Any) -> str:
    return (
        f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, (int, str)) else f"{value!r:.60}"
    )


def _pyplot(method: str) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{method} needs matplotlib: pip install 'wals_gpu[plot]'", name=error.name) from error
    return plt
