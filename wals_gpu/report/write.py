"""``write_report``: the page, from what was measured to a file."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from wals_gpu.checks import as_path, integer, refuse_other
from wals_gpu.data.files import whole_file
from wals_gpu.data.interactions import Interactions
from wals_gpu.data.matching import is_table, open_interactions
from wals_gpu.data.titles import Titles
from wals_gpu.evaluation.comparison import Differences, differences_of
from wals_gpu.evaluation.recommenders import RecToolsRecommender
from wals_gpu.evaluation.report import Comparison, EvaluationReport
from wals_gpu.evaluation.task import Task
from wals_gpu.report import sections
from wals_gpu.report.html import Element, clipped, h, write_html
from wals_gpu.report.lists import Example, Named, by_name, calibration, examples
from wals_gpu.report.statistics import DataStatistics, TestStatistics
from wals_gpu.report.style import stylesheet
from wals_gpu.tuning.result import Tuning

__all__ = ["check_report_path", "write_report"]

#: What a browser may fetch for this page: nothing. Its styles are in it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def check_report_path(path: str | os.PathLike[str], option: str = "path") -> Path:
    """A path that a report can be written to, before any work.

    Raises
    ------
    ValueError
        It is a folder, does not end in .html or .htm, or lies in a folder that is not there.
    """
    file = as_path(option, path)
    if file.is_dir():
        raise ValueError(f"{option} must be a file; {file} is a folder")
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{option} must end in .html, got {file}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{option} {file}: there is no folder {file.parent}; make it first")
    return file


def write_report(
    path: str | os.PathLike[str],
    evaluation: EvaluationReport | None = None,
    *,
    model: Any = None,
    train: Any = None,
    test: Any = None,
    fold_in: Any = None,
    options: Mapping[str, Any] | None = None,
    filter_seen: bool = True,
    candidates: Any = None,
    data: Any = None,
    tuning: Tuning | None = None,
    titles: Any = None,
    title_column: str | None = None,
    settings: Mapping[str, Any] | None = None,
    title: str | None = None,
    n_examples: int = 4,
    random_state: int = 0,
) -> Path:
    """Write what is known of models and data as a page: one file without scripts, that loads nothing from elsewhere.

    Whatever is given is shown; nothing is needed beside the path and one of the others.

    Parameters
    ----------
    path : path
        Ends in ``.html``; one there is replaced once the page is whole.
    evaluation : EvaluationReport or Comparison, optional
        What :func:`wals_gpu.evaluation.evaluate` found.
    model : fitted model, or dict of such by name, optional
        As `evaluate` was given it: for settings, curves and, with `train` and `test`, scores and example lists.
    train, test, fold_in, options, filter_seen, candidates : as for `evaluate`, optional
        With all that was given there, such as options ``{"diversity": 0.3}``, the lists shown are those that were
        measured.
    data : matrix, Interactions, table or path, optional
        All interactions, before they were divided: for the statistics, with times and repeated rows where it is a table
        or Interactions. Rows and columns of `train`, where that is a matrix, are those of `data`, and have its ids.
        Default: `train`.
    tuning : Tuning, optional
        What :meth:`wals_gpu.WALS.tune` found: its trials.
    titles, title_column : optional
        Titles of items, as for :meth:`wals_gpu.WALS.recommend`.
    settings : dict, optional
        More that was set, such as the split; a table of its own.
    title : str, optional
        Default: "Ranking report".
    n_examples : int, default 4
        Users whose lists are shown, of each of at most two models; 0 for none.
    random_state : int, default 0
        Seed of what is drawn: users whose scores are looked at, resamples of an evaluation of one model.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        Nothing is given to show, `path` cannot be a page, or `model` is one of several that `evaluation` is of.
    DataError, TypeError
        `train`, `test`, `data` or `titles` cannot be read.
    OSError
        The file cannot be written; an earlier one is as it was.
    """
    file = check_report_path(path)
    n_examples, random_state = integer("n_examples", n_examples, 0), integer("random_state", random_state, 0)
    if all(one is None for one in (evaluation, model, data, train, tuning)):
        raise ValueError("write_report needs something to show: evaluation, model, train, data or tuning")
    if evaluation is not None:
        refuse_other("evaluation", evaluation, "what evaluate gave", "results", "recommended")
    if tuning is not None:
        refuse_other("tuning", tuning, "what WALS.tune gave", "trials", "config")
    for one in () if model is None else model.values() if isinstance(model, Mapping) else (model,):
        alone = one[0] if isinstance(one, tuple) and one else one  # RecTools' models are with their dataset
        refuse_other("model", alone, "a fitted model, or a dict of such by name", "recommend")
    if not isinstance(settings, (Mapping, type(None))):
        raise TypeError(f"settings must be a dict, got {settings!r:.60}")
    whole = None if data is None and train is None else _opened("train" if data is None else "data", train, data)
    task = None
    models = {} if model is None else by_name(model, {} if evaluation is None else evaluation.results)
    if train is not None and test is not None:
        task = _task(models, model, train, test, fold_in, options, filter_seen, candidates)
    user_ids, item_ids = (None, None) if task is None else (task.user_ids, task.item_ids)
    if whole is not None:
        user_ids = whole.user_ids if user_ids is None else user_ids
        item_ids = whole.item_ids if item_ids is None else item_ids
    known_titles = None if titles is None else Titles.read(titles, title_column).checked(item_ids)
    named = Named(user_ids if fold_in is None else None, item_ids, known_titles)
    blocks: list[Element | None] = []
    headline, lead = "", list[str]()
    if evaluation is not None:
        metric = sections.primary_metric(evaluation)
        differences = _differences(evaluation, random_state)
        headline, lead = sections.answer(evaluation, differences, metric)
        blocks += [
            sections.metrics_section(evaluation, metric),
            sections.differences_section(evaluation, differences),
            sections.cohorts_section(evaluation, metric),
        ]
        per_item = None if task is None else np.bincount(task.train.indices, minlength=task.train.shape[1])
        of_test = None if task is None else np.bincount(task.test.indices, minlength=task.test.shape[1])
        blocks.append(sections.popularity_section(evaluation, per_item, of_test))
    if task is not None and models:
        longest = max(next(iter(evaluation.recommended.values()), [20])) if evaluation is not None else 20
        k = min(longest, 20)
        bins = {name: calibration(task, one, k, random_state, longest) for name, one in models.items()}
        blocks.append(sections.calibration_section(bins, k))
        lists: dict[str, list[Example]] = {}
        for name, one in list(models.items())[:2]:
            lists[name] = examples(task, one, named, n_examples, longest=longest)
        blocks.append(sections.examples_section(lists))
    blocks.append(sections.training_section(models))
    blocks.append(sections.tuning_section(tuning))
    if tuning is not None and not headline:
        headline, lead = sections.tuning_answer(tuning)
    statistics = None if whole is None else DataStatistics.of(whole)
    division = None if task is None else TestStatistics.of(task.train, task.test, task.fold_in)
    blocks.append(sections.data_section(statistics, division))
    blocks.append(sections.settings_section(_settings(models, settings)))
    there = [block for block in blocks if block is not None]
    page = _page(title or "Ranking report", headline or title or "Ranking report", lead, there)
    with whole_file(file) as temporary:
        temporary.write_text(write_html(page), "utf-8")
    return file


def _opened(name: str, train: Any, data: Any) -> Interactions:
    given = train if data is None else data
    return open_interactions(name, given, {"warn_ratings": False} if is_table(given) else None)


def _task(
    models: Mapping[str, Any],
    model: Any,
    train: Any,
    test: Any,
    fold_in: Any,
    options: Mapping[str, Any] | None,
    filter_seen: bool,
    candidates: Any,
) -> Task:
    asked = dict(models)
    by_train = isinstance(model, Mapping)
    if not asked:
        from wals_gpu.evaluation.popularity import Popularity

        asked, by_train, options = {"popularity": Popularity(train)}, True, None
    return Task.make(
        asked, train, test, fold_in, candidates, filter_seen, [10], None, {}, by_train=by_train, more=options
    )


def _differences(evaluation: EvaluationReport, seed: int) -> Differences:
    if isinstance(evaluation, Comparison):
        return evaluation.differences
    first = next(iter(evaluation.per_user.values()), {})
    has_intervals = any(one.low is not None for values in evaluation.results.values() for one in values.values())
    n = 1000 if has_intervals else 0
    return differences_of(
        evaluation.per_user, list(first), confidence=evaluation.confidence, n_resamples=n, n_permutations=9999,
        random_state=seed,
    )  # fmt: skip


def _settings(models: Mapping[str, Any], settings: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if settings:
        found["This run"] = dict(settings)
    for name, model in models.items():
        config = getattr(model, "to_config", None)
        inner = model.model if isinstance(model, RecToolsRecommender) else model
        values: dict[str, Any] = {"class": type(inner).__name__}
        if config is not None:
            values |= _flat(config())
        for attribute in ("device_", "best_iteration_", "popularity_exponent_", "regularization_"):
            if getattr(model, attribute, None) is not None:
                values[attribute] = getattr(model, attribute)
        found[f"Model {name}"] = values
    return found


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif value is not None:
            found[before + name] = value
    return found


def _page(title: str, headline: str, lead: list[str], blocks: list[Element]) -> Element:
    links = [(block.get("id"), block[0].text or "") for block in blocks]
    try:
        own_version = version("wals_gpu")
    except PackageNotFoundError:
        own_version = ""
    now = datetime.datetime.now(datetime.timezone.utc)
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("meta", name="referrer", content="no-referrer"),
        h("title", f"{clipped(headline, 100)} \u2013 {clipped(title, 60)}" if headline != title else title),
        h("style", stylesheet()),
    )
    navigation = h(
        "nav", h("ul", [h("li", h("a", text, href=f"#{slug}")) for slug, text in links]), aria_label="Sections"
    )
    body = h(
        "body",
        h("a", "To the content", href="#content", class_="skip"),
        h(
            "div",
            h(
                "header",
                h("p", clipped(title, 200), class_="kicker") if headline != title else None,
                h("h1", headline),
                [h("p", text, class_="lead") for text in lead],
            ),
            h("div", navigation, h("main", *blocks, id="content", tabindex="-1"), class_="layout"),
            h(
                "footer",
                f"Made by wals_gpu {own_version} on {now:%d %B %Y, %H:%M} UTC. This file is all there is: it has no "
                "scripts, and loads nothing.",
            ),
            class_="page",
        ),
    )
    return h("html", head, body, lang="en")
