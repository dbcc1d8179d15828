"""The page about a model, ``README.md`` in its folder: what it was learned from, how, and how good it was found to be.

In the form of the model cards of the Hugging Face hub: YAML between lines of dashes for programs, Markdown for people.
Numbers only: no ids, no titles and no rows of anybody. The same model and versions make the same page, to the byte.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from wals_gpu.checks import number
from wals_gpu.data.files import version_of
from wals_gpu.data.times import Period
from wals_gpu.evaluation.report import EvaluationReport
from wals_gpu.evaluation.resampling import Estimate

__all__ = ["Measured", "Sizes", "model_card"]

_PACKAGES = ("wals_gpu", "numpy", "scipy")


class Sizes(NamedTuple):
    """Of a model."""

    users: int
    items: int
    entries: int


@dataclass(frozen=True)
class Measured:
    """What lists of a model were measured to be.

    Parameters
    ----------
    values : dict of str to Estimate
        By the name of the metric, such as "ndcg@20".
    about : str, optional
        On whom and how, in a sentence.
    """

    values: dict[str, Estimate]
    about: str = ""

    @classmethod
    def of(cls, metrics: Any) -> Measured:
        """From what :meth:`wals_gpu.WALS.save` takes; TypeError or ValueError where it is something else."""
        if isinstance(metrics, Measured):
            return metrics
        if isinstance(metrics, EvaluationReport):
            return cls._of_report(metrics)
        if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
            raise TypeError(
                "metrics must be what evaluate gave, or a mapping of names to numbers such as {'ndcg@20': 0.31}, got "
                f"{metrics!r:.60}"
            )
        return cls({name: _estimate(f"metrics[{name!r}]", value) for name, value in metrics.items()})

    @classmethod
    def _of_report(cls, report: EvaluationReport) -> Measured:
        models = [name for name in report.results if name != "popularity"] or list(report.results)
        if len(models) > 1:
            raise ValueError(
                f"metrics must be of the model that is saved, got those of {', '.join(map(repr, models))}: give "
                f"report.results[{models[0]!r}], if it is that one"
            )
        # The page speaks of 95 %; gini of no list at all is no number
        values = {
            name: one if report.confidence == 0.95 else Estimate(one.value, None, None)
            for name, one in report.results[models[0]].items()
            if math.isfinite(one.value)
        }
        return cls(values, report.notes[0] if report.notes else "")

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` takes."""
        return {"about": self.about, "values": [[name, *value] for name, value in self.values.items()]}

    @classmethod
    def from_json(cls, saved: Any) -> Measured:
        """What :meth:`to_json` gave; KeyError, TypeError or ValueError where it is something else."""
        values = {str(name): _estimate(str(name), tuple(value)) for name, *value in saved["values"]}
        return cls(values, str(saved["about"]))


def _estimate(name: str, value: Any) -> Estimate:
    parts = value if isinstance(value, tuple) else (value, None, None)
    if len(parts) != 3:
        raise ValueError(f"{name} must be a number, or an Estimate of value, low and high, got {value!r}")
    checked = [None if part is None else number(name, part, -math.inf) for part in parts]
    if checked[0] is None:
        raise TypeError(f"{name} must be a number, got None")
    return Estimate(checked[0], checked[1], checked[2])


def model_card(sizes: Sizes, metadata: Mapping[str, Any]) -> str:
    """The page, from what the folder's ``model.json`` says of the model.

    Parameters
    ----------
    sizes : Sizes
    metadata : mapping
        What :func:`.files.to_tensors` gave: settings, objective, history and what else is known.

    Returns
    -------
    str
    """
    measured = None if metadata.get("measured") is None else Measured.from_json(metadata["measured"])
    front = "\n".join(_front_matter(metadata, measured))
    return f"---\n{front}\n---\n\n" + "\n\n".join(_sections(sizes, metadata, measured)) + "\n\n"


def _front_matter(metadata: Mapping[str, Any], measured: Measured | None) -> Iterator[str]:
    yield "library_name: wals_gpu"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("recommender-systems", "implicit-feedback", "matrix-factorization", "wals"))
    results = _validation(metadata) + ([] if measured is None else list(measured.values.items()))
    if not results:
        return
    # A text in JSON is a text in YAML. A model of the hub's index has a task, data and metrics, each with a name.
    yield "model-index:"
    yield "- name: WALS"
    yield "  results:"
    yield '  - task: {type: "recommendation", name: "Top-k recommendation from implicit feedback"}'
    yield '    dataset: {type: "private", name: "Interactions that were held out"}'
    yield "    metrics:"
    for name, estimate in results:
        shown = json.dumps(name)
        yield f"    - {{type: {shown}, name: {shown}, value: {estimate.value:.6g}}}"


def _validation(metadata: Mapping[str, Any]) -> list[tuple[str, Estimate]]:
    """The best value of the metric that the fit was validated with."""
    validation = metadata.get("validation") or {}
    best, history = validation.get("best_iteration"), metadata["history"]
    if best is None or not 1 <= best <= len(history) or history[best - 1]["validation"] is None:
        return []
    return [(f"{validation['metric']} (validation)", Estimate(history[best - 1]["validation"], None, None))]


def _sections(sizes: Sizes, metadata: Mapping[str, Any], measured: Measured | None) -> Iterator[str]:
    yield "# A model of wals_gpu"
    yield (
        "Weighted matrix factorisation of implicit feedback: who had to do with what, without ratings. It orders items "
        "for a user.\n"
        "Made with [wals_gpu](https://pypi.org/project/wals_gpu/)."
    )
    yield "## Data"
    yield _table(("", ""), _data(sizes, metadata))
    yield "## Settings"
    yield _table(("", ""), _settings(metadata))
    yield "## Metrics"
    yield from _metrics(metadata, measured)
    yield "## Use"
    yield from _use(sizes)
    yield "## Limits"
    yield (
        "- Scores order the items of one user. They are no probabilities, and do not compare between users.\n"
        "- Users and items that were not in the data are new to it: users can be given by their interactions, items "
        "come with the next fit.\n"
        "- What was popular is recommended more often than its share, as in any model of what people did; what was "
        "never shown could not be chosen.\n"
        "- Factors are learned from people. Those of items give no person away by themselves, but they are not "
        "anonymous in any strict sense."
    )
    yield "## Versions"
    versions = {name: version_of(name) for name in _PACKAGES} | {"Python": platform.python_version()}
    yield _table(("", ""), ((name, version or "a source tree") for name, version in versions.items()))


def _data(sizes: Sizes, metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    users, items, entries = sizes
    yield "users", f"{users:,}" if users else "none: they were left out"
    yield "items", f"{items:,}"
    if users:
        yield "interactions", f"{entries:,}"
        yield "share of all pairs", f"{entries / max(users * items, 1):.3g}"
    if metadata.get("period") is not None:
        period = Period.from_json(metadata["period"])
        yield "from", str(period.first)
        yield "to", str(period.last)


def _settings(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    objective, settings = metadata["objective"], metadata["settings"]
    yield "objective", str(objective["objective"])
    yield from ((name, _plain(value)) for name, value in objective["parameters"].items())
    yield from ((name, _plain(value)) for name, value in settings.items() if name != "iterations")
    yield "iterations", f"{len(metadata['history'])} of {settings['iterations']}"
    for side in ("item", "user"):
        if f"{side}_prior" in metadata.get("priors", {}):
            yield f"{side} prior", "features"
    calibration = metadata.get("calibration")
    if calibration is not None and settings.get("popularity_exponent") == "auto":
        yield "popularity exponent that was chosen", _plain(calibration["exponent"])
    losses = [record["loss"] for record in metadata["history"] if record["loss"] is not None]
    if losses:
        yield "loss at the end", f"{losses[-1]:.6g}"


def _metrics(metadata: Mapping[str, Any], measured: Measured | None) -> Iterator[str]:
    rows = _validation(metadata) + ([] if measured is None else list(measured.values.items()))
    if not rows:
        yield "None were given. `save(folder, metrics=report)` writes what `wals_gpu.evaluation.evaluate` found here."
        return
    yield _table(("metric", "value"), ((name, str(estimate)) for name, estimate in rows))
    if measured is not None and measured.about:
        yield measured.about.rstrip(".") + "."
    if any(estimate.low is not None for _, estimate in rows):
        yield "In brackets: 95 % intervals, by bootstrap over users."


def _use(sizes: Sizes) -> Iterator[str]:
    load = 'model = WALS.load("FOLDER")  # or WALS.from_hub("OWNER/NAME")'
    if sizes.users:
        ask = "items, scores = model.recommend(user, k=10)"
    else:
        ask = "items, scores = model.recommend_for(table, k=10)  # of users and items: all that these users have"
    yield f"```python\nfrom wals_gpu import WALS\n\n{load}\n{ask}\n```"
    yield "Loading checks every byte of the model against its hash and runs no code from it."


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(heads: tuple[str, str], rows: Any) -> str:
    lines = [f"| {a} | {b} |" for a, b in ((_cell(a), _cell(b)) for a, b in (heads, *rows))]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
