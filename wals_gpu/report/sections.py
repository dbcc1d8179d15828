"""The sections of the page, each from what it shows; None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.evaluation.comparison import Difference, Differences, in_words
from wals_gpu.evaluation.report import Cohort, EvaluationReport
from wals_gpu.evaluation.resampling import Estimate
from wals_gpu.report.charts import Series, chart, columns_chart, interval_mark, sample, short, stacked
from wals_gpu.report.html import Content, Element, brief, clipped, foreign, h, table
from wals_gpu.report.lists import Bin, Example
from wals_gpu.report.statistics import DataStatistics, TestStatistics, concentration
from wals_gpu.tuning.result import Tuning
from wals_gpu.tuning.search import best_of

__all__ = [
    "answer",
    "calibration_section",
    "cohorts_section",
    "data_section",
    "differences_section",
    "examples_section",
    "metrics_section",
    "popularity_section",
    "primary_metric",
    "settings_section",
    "training_section",
    "tuning_answer",
    "tuning_section",
]

_PARTS = ("head", "middle", "tail")
#: Of more pairs of models than that, one metric is shown.
_PAIRS = 6


def _section(slug: str, heading: str, *content: Content) -> Element:
    return h("section", h("h2", heading, id=f"{slug}-heading"), *content, id=slug, aria_labelledby=f"{slug}-heading")


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


def _interval(estimate: Estimate | Difference, digits: int = 4) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}".replace("-", "\u2212")
    return f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}".replace("-", "\u2212")


def _name(name: str, style: int) -> Element:
    return h("span", sample(style), " ", h("bdi", brief(name), dir="auto"), class_="name")


def styles_of(names: Iterable[str]) -> dict[str, int]:
    """The colour and shape of each model; popularity's is grey."""
    found, number = {}, 0
    for name in names:
        if name == "popularity":
            found[name] = 5
        else:
            found[name] = number % 5
            number += 1
    return found


def primary_metric(report: EvaluationReport) -> str:
    """The metric that the page speaks of first: ndcg of the shortest lists, as long as there is one."""
    names = list(next(iter(report.per_user.values())))
    return next((name for name in names if name.startswith("ndcg@")), names[0])


# ---------------------------------------------------------------------------------------------------- the answer


def _percent_of(confidence: float) -> str:
    return f"{100 * confidence:g}\u00a0%"


def _times(one: Difference) -> str:
    assert one.ratio is not None
    return f"{one.ratio:.2f}" if one.ratio < 2 else f"{one.ratio:.1f}"


def _ratio_interval(one: Difference, confidence: float) -> str:
    if one.ratio_low is None or one.ratio_high is None:
        return ""
    return f"; {_percent_of(confidence)} interval {one.ratio_low:.2f} to {one.ratio_high:.2f} times"


def answer(report: EvaluationReport, differences: Differences, metric: str) -> tuple[str, list[str]]:
    """One sentence, and some more that say how sure it is."""
    means = {name: table[metric].value for name, table in report.results.items()}
    models = [name for name in means if name != "popularity"] or list(means)
    best = max(models, key=lambda name: means[name])
    users = f"{len(report.users):,} users"
    shown = {name: brief(name) for name in means}
    more = []
    others = [name for name in models if name != best]
    by_pair = {(one.first, one.second): one for one in differences if one.metric == metric}
    by_pair |= {(two, one): each.reversed() for (one, two), each in list(by_pair.items())}
    popular = by_pair.get((best, "popularity"))
    if others:
        second = max(others, key=lambda name: means[name])
        one = by_pair[best, second]
        chance = "" if one.p_adjusted is None else f", p {_p(one.p_adjusted)} (Holm)"
        if one.is_clear:
            size = f"{100 * (one.ratio - 1):.1f}\u00a0% better" if one.ratio is not None and one.ratio < 2 else "better"
            size = f"{_times(one)} times as well" if one.ratio is not None and one.ratio >= 2 else f"{size}"
            than = f"as {shown[second]}" if size.endswith("well") else f"than {shown[second]}"
            headline = f"{shown[best]} ranks {size} {than}"
        else:
            headline = f"{shown[best]} and {shown[second]} cannot be told apart"
        of = f", interval {_interval(one)}" if one.low is not None else ""
        more.append(
            f"{metric} is {means[best]:.4f} beside {means[second]:.4f}: a difference of {one.value:.4f}{of}{chance}, "
            f"over the same {users}."
        )
        if popular is not None:
            of_popular = _beside_popularity(popular, report.confidence, metric)
            more.append(f"{shown[best]} {of_popular}.")
        return headline, more
    if popular is None:
        return f"{shown[best]}: {metric} is {means[best]:.4f}", [
            f"{_percent_of(report.confidence)} interval {_interval(report.results[best][metric])}, over {users}."
        ]
    headline = f"{shown[best]} {_beside_popularity(popular, None, metric)}"
    estimate, other = (report.results[name][metric] for name in (best, "popularity"))
    chance = "" if popular.p_adjusted is None else f", p {_p(popular.p_adjusted)}"
    more.append(
        f"{metric} is {estimate.value:.4f}, that of popularity {other.value:.4f}"
        f"{_ratio_interval(popular, report.confidence)}{chance}, over {users}."
    )
    return headline, more


def _p(p_value: float) -> str:
    text = in_words(p_value)
    return text if text.startswith("<") else f"= {text}"


def _beside_popularity(one: Difference, confidence: float | None, metric: str) -> str:
    interval = "" if confidence is None else _ratio_interval(one, confidence)
    if not one.is_clear:
        return "cannot be told apart from popularity" + (f" in {metric}" if confidence else "")
    if one.ratio is None:
        return "finds something, and popularity nothing"
    return f"ranks {_times(one)} times as well as popularity{interval}"


def tuning_answer(tuning: Tuning) -> tuple[str, list[str]]:
    """The same of a search alone."""
    compared = tuning.comparison
    n = f"{len(tuning.trials):,} trials"
    if compared is None:
        return f"The best of {n} has {tuning.metric} {tuning.validation_score:.4f}", list(tuning.notes[:1])
    gain = compared.gain
    if compared.is_noise:
        headline = f"{n} found nothing that is clearly better than the defaults"
    elif gain.value < 0:
        headline = f"{n} found nothing better than the defaults"
    else:
        share = gain.value / compared.default.value if compared.default.value else 0.0
        headline = f"The settings that {n} found rank {100 * share:.1f}\u00a0% better than the defaults"
    of = "" if gain.low is None else f" ({_interval(gain)})"
    return headline, [
        f"{tuning.metric} is {compared.best.value:.4f}, with the defaults {compared.default.value:.4f}, of popularity "
        f"{compared.popularity.value:.4f}: a gain of {gain.value:.4f}{of}, over {compared.users:,} "
        f"users and interactions "
        "that no trial saw."
    ]


# ---------------------------------------------------------------------------------------------------------- metrics


def metrics_section(report: EvaluationReport, metric: str) -> Element:
    """Every metric of every model with its interval; the usual ones first, with pictures."""
    styles = styles_of(report.results)
    first = next(iter(report.results.values()))
    chosen = [name for name in first if name.startswith(("ndcg@", "recall@"))] or list(first)[:4]
    chosen.sort(key=lambda name: name.partition("@")[0] != metric.partition("@")[0])
    rows = _interval_rows(report.results, chosen, styles)
    interval = f"{_percent_of(report.confidence)} interval"
    shown = table("Metrics with intervals", ["model", "mean", interval, "from 0 to the largest"], rows)
    _mark_groups(shown)
    every: list[list[Content]] = [
        [name, *(_cell(values[name]) for values in report.results.values())] for name in first
    ]
    seconds = ", ".join(f"{brief(name)} {one:.2f} s" for name, one in report.seconds.items())
    return _section(
        "metrics",
        "What was found of the hidden items",
        h(
            "p",
            "Means over the users with a hidden item. The interval says how far a mean would move "
            "with other users of the "
            "same kind; it does not cover another split. ",
            h("small", "recall: hidden items among the first k, over min(k, number hidden). ndcg: the same, early "
                       "places counting more."),
        ),
        h("ul", [h("li", note) for note in report.notes], class_="notes") if report.notes else None,
        shown,
        h(
            "details",
            h("summary", "All metrics"),
            table(f"All metrics, with {interval}s", ["metric", *map(foreign, report.results)], every),
            h("p", f"Time to recommend: {seconds}.") if seconds else None,
        ),
    )  # fmt: skip


def _cell(estimate: Estimate) -> str:
    return str(estimate).replace("-", "\u2212")


def _interval_rows(
    results: Mapping[str, Mapping[str, Estimate]], metrics: Sequence[str], styles: Mapping[str, int]
) -> list[list[Content]]:
    """A line with the metric, then one for each model."""
    rows: list[list[Content]] = []
    for name in metrics:
        estimates = {model: values[name] for model, values in results.items() if name in values}
        top = max((one.high if one.high is not None else one.value for one in estimates.values()), default=0.0)
        rows.append([name, "", "", ""])
        for model, one in estimates.items():
            picture = interval_mark(styles[model], one.value, one.low, one.high, (0.0, top), None)
            interval = "" if one.low is None else _interval(one)
            rows.append([_name(model, styles[model]), f"{one.value:.4f}", interval, picture])
    return rows


def _mark_groups(shown: Element) -> None:
    """Lines that are headings of the ones below get a class, and their cells of pictures theirs."""
    for row in shown.iter("tr"):
        cells = list(row)
        if cells[0].get("scope") == "row" and all(not len(cell) and not cell.text for cell in cells[1:]):
            row.set("class", "group")
            cells[0].set("colspan", str(len(cells)))
            cells[0].set("scope", "rowgroup")
            for cell in cells[1:]:
                row.remove(cell)
        elif len(cells[-1]) and cells[-1][0].tag == "svg":
            cells[-1].set("class", "bar")


# ------------------------------------------------------------------------------------------------------ differences


def differences_section(report: EvaluationReport, differences: Differences) -> Element | None:
    """Pairs of models on the same users."""
    if not differences:
        return None
    metrics = list(dict.fromkeys(one.metric for one in differences))
    chosen = [name for name in metrics if name.startswith(("ndcg@", "recall@"))] or metrics[:2]
    if len(differences) > _PAIRS * len(metrics):
        chosen = [primary_metric(report)]
    rows: list[list[Content]] = []
    for metric in sorted(chosen, key=lambda name: not name.startswith("ndcg@")):
        found = differences.of(metric)
        ends = [end for one in found for end in (one.low, one.high, one.value) if end is not None]
        range_ = min(0.0, *ends), max(0.0, *ends)
        rows.append([metric, "", "", "", "", "", ""])
        for one in found:
            picture = interval_mark(0, one.value, one.low, one.high, range_, 0.0)
            rows.append(
                [
                    h("span", *_pair(one), class_="pair"),
                    f"{one.value:.4f}".replace("-", "\u2212"),
                    _interval(one) if one.low is not None else "",
                    "" if one.ratio is None else f"{one.ratio:.2f} \u00d7",
                    "" if one.p_adjusted is None else in_words(one.p_adjusted),
                    _verdict(one),
                    picture,
                ]
            )
    header: list[Content] = [
        "models", "difference", f"{_percent_of(report.confidence)} interval", "ratio", "p (Holm)", "verdict", "beside 0"
    ]  # fmt: skip
    shown = table("Differences of models, user by user", header, rows)
    _mark_groups(shown)
    return _section(
        "differences",
        "Is the difference real?",
        h(
            "p",
            "Each pair is compared on the same users: these are resampled with both models' values "
            "for the interval, and "
            "for the p-value each user's difference has its sign flipped at random (two-sided "
            "permutation test). Holm's "
            "method adjusts for the pairs of a metric.",
        ),
        shown,
    )


def _pair(one: Difference) -> list[Content]:
    return [foreign(brief(one.first, 28)), " \u2212 ", foreign(brief(one.second, 28))]


def _verdict(one: Difference) -> Element:
    if not one.is_clear:
        return h("span", "may be chance", class_="chance")
    return h("span", "clear", class_="clear") if one.value > 0 else h("span", "clearly less", class_="worse")


# ---------------------------------------------------------------------------------------------------------- cohorts


def cohorts_section(report: EvaluationReport, metric: str) -> Element | None:
    """Parts of users and items."""
    if not report.cohorts:
        return None
    styles = styles_of(report.results)
    parts = {"all": Cohort(len(report.users), report.entries, report.results), **report.cohorts}
    estimates = [values[metric] for part in parts.values() for values in part.results.values()]
    top = max(one.high if one.high is not None else one.value for one in estimates)
    rows: list[list[Content]] = []
    for name, part in parts.items():
        text = f"{name}: {part.users:,} users, {part.entries:,} hidden items"
        rows.append([text, "", "", ""])
        for model, values in part.results.items():
            one = values[metric]
            picture = interval_mark(styles[model], one.value, one.low, one.high, (0.0, top), None)
            rows.append([_name(model, styles[model]), f"{one.value:.4f}", _interval(one), picture])
    shown = table(
        f"{metric} by cohort", ["model", "mean", f"{_percent_of(report.confidence)} interval", "from 0"], rows
    )
    _mark_groups(shown)
    return _section(
        "cohorts",
        "Who is served how well?",
        h(
            "p",
            "By how much is known: cold is no training entry, few-shot up to the limit that was "
            "asked for, warm more. In "
            "a cohort of items only these are relevant; the lists are the same.",
        ),
        shown,
    )


# ------------------------------------------------------------------------------------------------------- popularity


def popularity_section(
    report: EvaluationReport, per_item: NDArray[np.integer] | None, test_per_item: NDArray[np.integer] | None
) -> Element | None:
    """How much lists are made of what everybody has, and how much of the catalogue anybody is shown."""
    if not report.recommended:
        return None
    styles = styles_of(report.recommended)
    k = max(next(iter(report.recommended.values())))
    n_items = len(next(iter(report.recommended.values()))[k])
    series = []
    for name, counts in report.recommended.items():
        x, y = concentration(counts[k])
        series.append(Series(name, 100 * x, 100 * y, styles[name]))
    if per_item is not None:
        x, y = concentration(per_item)
        series.append(Series("training entries", 100 * x, 100 * y, 4))
    lines = chart(
        "concentration",
        "How concentrated lists are",
        f"Share of all recommendations (first {k} places) that the most recommended items have. The "
        f"nearer to the upper "
        "left corner, the more lists are alike.",
        series,
        "items, the most recommended first (%)",
        "recommendations (%)",
        from_zero=True,
    )
    groups = None if per_item is None else _popularity_groups(report, per_item, test_per_item, k)
    names = [f"{name}@{k}" for name in ("coverage", "gini", "novelty")]
    rows: list[list[Content]] = []
    for name, values in report.results.items():
        cells: list[Content] = [_name(name, styles[name])]
        for metric in names:
            one = values.get(metric)
            cells.append("" if one is None else f"{one.value:.4f}")
        cells.insert(2, f"{np.count_nonzero(report.recommended[name][k]):,} of {n_items:,}")
        rows.append(cells)
    header: list[Content] = [
        "model", f"coverage@{k}", "items shown", f"gini@{k} (0 all alike)", f"novelty@{k} (bits)"
    ]  # fmt: skip
    return _section(
        "popularity",
        "Popularity bias and coverage",
        h(
            "p",
            "A model that only repeats what everybody has covers little of the catalogue and says little that is new.",
        ),
        table("Coverage, inequality and novelty of all lists", header, rows),
        h("div", lines, groups, class_="figures"),
    )


def popularity_shares(
    per_item: NDArray[np.integer], columns: Mapping[str, NDArray[np.integer]]
) -> dict[str, list[float]]:
    """What share of some counts of items falls to the head, the middle and the tail: the most popular items that have
    a third of the training entries together, the next third, and all others.

    Parameters
    ----------
    per_item : (I,) array of int
        Training entries.
    columns : dict of str to (I,) array of int
    """
    order = np.argsort(-np.asarray(per_item), kind="stable")
    before = np.concatenate([[0], np.cumsum(np.asarray(per_item)[order])[:-1]])
    total = max(int(np.sum(per_item)), 1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.minimum(3 * before // total, 2)
    found = {}
    for name, counts in columns.items():
        sums = np.bincount(group, weights=np.asarray(counts, dtype=np.float64), minlength=3)
        found[name] = (sums / max(sums.sum(), 1)).tolist()
    found["items"] = (np.bincount(group, minlength=3) / max(len(group), 1)).tolist()
    return found


def _popularity_groups(
    report: EvaluationReport, per_item: NDArray[np.integer], test_per_item: NDArray[np.integer] | None, k: int
) -> Element:
    counts: dict[str, NDArray[np.integer]] = {name: of[k] for name, of in report.recommended.items()}
    if test_per_item is not None:
        counts["hidden items"] = test_per_item
    shares = popularity_shares(per_item, counts)
    rows: list[list[Content]] = []
    for name in ["items", *counts]:
        text: Content = "items of the catalogue" if name == "items" else name
        if name in report.recommended:
            text = h("span", "recommended by ", h("bdi", brief(name), dir="auto"))
        rows.append([text, *(_percent(share) for share in shares[name]), stacked(shares[name])])
    shown = table(
        "Where recommendations fall",
        ["share of", *(h("span", sample_square(i), " ", part) for i, part in enumerate(_PARTS)), "as a bar"],
        rows,
    )
    _mark_groups(shown)
    return h(
        "figure",
        h(
            "figcaption",
            "Head, middle and tail",
            h(
                "small",
                "Items by training entries: the head are the most popular that have a third of all entries, the middle "
                "the next third, the tail the rest. A fair list is near the hidden items.",
            ),
        ),
        shown,
    )


def sample_square(part: int) -> Element:
    """A square of the colour of a part of a bar."""
    box = h("rect", x="3", y="0", width="13", height="13", rx="2", class_=f"area p{part}")
    return h("svg", box, viewBox="0 0 18 14", width="18", height="13", style="display:inline-block", aria_hidden="true")


# ------------------------------------------------------------------------------------------------------ calibration


def calibration_section(bins: Mapping[str, Sequence[Bin]], k: int) -> Element | None:
    """Whether higher scores are more often right."""
    figures = []
    for number, (name, found) in enumerate(bins.items()):  # colours are those of all models
        if not found:
            continue
        rising = all(a.share <= b.share for a, b in pairwise(found))
        words = "rises with the score throughout" if rising else "does not rise with the score everywhere"
        figures.append(
            chart(
                f"calibration-{number}",
                f"Hits by score: {brief(name)}",
                f"Of the recommended items (first {k} places) in ten groups by score, the share that "
                f"was hidden, with 95\u00a0% "
                f"intervals. It goes from {_percent(found[0].share)} to {_percent(found[-1].share)}, and {words}.",
                [
                    Series(
                        "found",
                        [one.score for one in found],
                        [100 * one.share for one in found],
                        number % 5,
                        "points",
                        [100 * one.low for one in found],
                        [100 * one.high for one in found],
                    )
                ],
                "mean score of the group",
                "hidden items among them (%)",
                from_zero=True,
            )
        )
    if not figures:
        return None
    return _section(
        "calibration",
        "What scores mean",
        h(
            "p",
            "Scores order the items of a user; they are no probabilities. Where the share of hits "
            "rises with the score, a "
            "threshold on scores makes sense.",
        ),
        h("div", *figures, class_="figures"),
    )


# --------------------------------------------------------------------------------------------------------- examples


def _item(item: tuple[str, str]) -> Content:
    name, title = item
    if not title:
        return foreign(name)
    return [foreign(title), " ", h("span", foreign(name), class_="soft")]


def examples_section(examples: Mapping[str, Sequence[Example]]) -> Element | None:
    """Lists for people to judge."""
    cards = []
    for of_user in zip_longest(*examples.values()):  # lists of a user side by side
        for model, example in zip(examples, of_user, strict=True):
            if example is None:
                continue
            has = [foreign(clipped(title or name, 60)) for name, title in example.known]
            listed: list[Content] = []
            for one in has:
                listed += [", ", one] if listed else [one]
            more = example.n_known - len(example.known)
            rows: list[list[Content]] = []
            for place, item in enumerate(example.items, 1):
                reasons: list[Content] = []
                for name, title in item.reasons:
                    reasons += [", " if reasons else "because of ", foreign(clipped(title or name, 48))]
                rows.append(
                    [
                        place,
                        [_item(item.item), h("small", *reasons) if reasons else None],
                        f"{item.score:.3f}" if 1e-3 <= abs(item.score) < 100 else short(item.score),
                        h("span", "\u2713 found", class_="hit") if item.is_hit else "",
                    ]
                )
            source = "" if example.source == "model" else f" (list from: {example.source})"
            shown = table(
                f"What {brief(model)} recommends to {clipped(example.user, 40)}",
                ["#", "item", "score", "was hidden"],
                rows,
            )
            cards.append(
                h(
                    "article",
                    h(
                        "h3",
                        "User ",
                        foreign(example.user),
                        h("small", f" {brief(model)}{source}", class_="soft"),
                    ),
                    h(
                        "p",
                        f"Has {example.n_known:,} item{'s' * (example.n_known != 1)}: ",
                        *listed,
                        f" and {more:,} more" if more > 0 else "",
                        f". {example.n_hidden:,} more {'was' if example.n_hidden == 1 else 'were'} hidden.",
                        class_="has",
                    ),
                    shown if rows else h("p", "No item is left to recommend."),
                )
            )
    if not cards:
        return None
    return _section(
        "examples",
        "Lists to judge for yourself",
        h(
            "p",
            "Users with few, some and many items, chosen by number of items, not by result. Under an "
            "item are the user's "
            "items that speak most for it.",
        ),
        h("div", *cards, class_="cards"),
    )


# --------------------------------------------------------------------------------------------------------- training


def training_section(histories: Mapping[str, Any]) -> Element | None:
    """Loss and validation by iteration; `histories`: models by name."""
    losses, measured, best = [], [], None
    metric = "validation"
    for number, (name, model) in enumerate(histories.items()):
        history = getattr(model, "history_", None) or []
        loss = [(one.iteration, one.loss) for one in history if one.loss is not None]
        valid = [(one.iteration, one.validation) for one in history if one.validation is not None]
        if loss:
            x, y = zip(*loss, strict=True)
            losses.append(Series(name, x, y, number % 5))
        if valid:
            x, y = zip(*valid, strict=True)
            measured.append(Series(name, x, y, number % 5))
            metric = getattr(model, "validation_metric_", None) or metric
            best = getattr(model, "best_iteration_", None) if len(histories) == 1 else None
    figures = []
    for number, one in enumerate(losses):  # one each: objectives have scales of their own
        of = f" of {brief(one.name)}" if len(losses) > 1 else ""
        text = f"The objective over all pairs; it ends at {short(np.asarray(one.y)[-1], 4)}."
        figures.append(chart(f"loss-{number}", f"Loss{of} by iteration", text, [one], "iteration", "loss"))
    if measured:
        ends = ", ".join(f"{brief(one.name)} reaches {short(np.max(np.asarray(one.y)), 4)}" for one in measured)
        text = f"{metric} of held-out interactions: {ends}" + (f"; the best iteration is {best}." if best else ".")
        figures.append(chart("validation", "Validation by iteration", text, measured, "iteration", metric, rule=best))
    if not figures:
        return None
    return _section("training", "How the fit went", h("div", *figures, class_="figures"))


# -------------------------------------------------------------------------------------------------------------- data


def data_section(data: DataStatistics | None, test: TestStatistics | None) -> Element | None:
    """Sizes, tail, activity, time."""
    if data is None and test is None:
        return None
    content: list[Content] = []
    if data is not None:
        content += _of_data(data, test)
    if test is not None:
        content.append(_of_division(test))
    return _section("data", "The data", *content)


def _tile(name: str, value: str, note: str = "") -> Element:
    return h("div", h("dt", name), h("dd", value, h("small", note) if note else None))


def _of_data(data: DataStatistics, test: TestStatistics | None) -> list[Content]:
    density = data.n_entries / max(data.n_users * data.n_items, 1)
    x, y = concentration(data.per_item)
    top = float(np.interp(0.01, x, y))
    tiles = [
        _tile("users", f"{data.n_users:,}", f"{np.median(data.per_user):,.0f} items in the middle"),
        _tile("items", f"{data.n_items:,}", f"{np.median(data.per_item):,.0f} users in the middle"),
        _tile("entries", f"{data.n_entries:,}", f"{100 * density:.2g}\u00a0% of all pairs"),
        _tile("of the most popular 1\u00a0%", _percent(top, 0), "of all entries"),
    ]
    if data.times is not None:
        tiles.append(_tile("time span", data.times[0], f"to {data.times[1]}"))
    if data.repeats is not None:
        share = data.repeats / max(data.n_entries + data.repeats, 1)
        tiles.append(_tile("repeated rows", f"{data.repeats:,}", f"{_percent(share)} of all rows, summed"))
    if data.values is not None:
        tiles.append(
            _tile("value in the middle", short(data.values[1]), f"{short(data.values[0])} to {short(data.values[2])}")
        )
    if test is not None and test.users:
        tiles.append(
            _tile("cold test users", _percent(test.cold_users / test.users), f"{test.cold_users:,} of {test.users:,}")
        )
    figures = [
        chart(
            "long-tail",
            "The long tail",
            f"Share of all entries that the most popular items have: the first 1\u00a0% of the items has "
            f"{_percent(top, 0)}, the "
            f"first 10\u00a0% {_percent(float(np.interp(0.1, x, y)), 0)}.",
            [Series("entries", 100 * x, 100 * y, 0)],
            "items, the most popular first (%)",
            "entries (%)",
            from_zero=True,
        )
    ]
    for slug, title, one, (names, counts) in (
        ("activity", "How active users are", "items", data.activity()),
        ("item-popularity", "How popular items are", "users", data.popularity()),
    ):
        who = "users" if one == "items" else "items"
        if names:
            most = names[int(np.argmax(counts))]
            text = f"{who.capitalize()} by their number of {one}; most have {most}."
            figures.append(columns_chart(slug, title, text, names, counts, one, who))
    names, counts = data.periods
    if names:
        ticks = {float(place): names[place] for place in range(0, len(names), max(len(names) // 3, 1))}
        text = f"Entries in {len(names)} equal spans from {data.times[0]} to {data.times[1]}." if data.times else ""
        series = [Series("entries", np.arange(len(names)), counts, 0)]
        figures.append(
            chart("time", "Entries over time", text, series, "begins", "entries", from_zero=True, x_texts=ticks)
        )
    return [h("dl", *tiles, class_="tiles"), h("div", *figures, class_="figures")]


def _of_division(test: TestStatistics) -> Element:
    cold_users, cold_entries = test.cold_users / max(test.users, 1), test.cold_entries / max(test.n_test, 1)
    rows: list[list[Content]] = [
        ["entries to learn from", f"{test.n_train:,}", ""],
        ["entries to find", f"{test.n_test:,}", _percent(test.n_test / max(test.n_train + test.n_test, 1))],
        ["users with something to find", f"{test.users:,}", ""],
        ["of these without a training entry (cold)", f"{test.cold_users:,}", _percent(cold_users)],
        ["entries to find of items without a training entry", f"{test.cold_entries:,}", _percent(cold_entries)],
    ]
    return table("Training and test", ["part", "number", "share"], rows)


# ----------------------------------------------------------------------------------------------------------- tuning


def tuning_section(tuning: Tuning | None) -> Element | None:
    """The trials of a search."""
    if tuning is None or not tuning.trials:
        return None
    trials = list(tuning.trials)
    numbers = np.array([one.number for one in trials])
    scores = np.array([one.outcome.score for one in trials])
    whole = np.array([one.outcome.is_whole for one in trials])
    floor = float(np.quantile(scores, 0.1)) if len(scores) > 20 else None
    # One that was ended early has the score of some iteration, of fewer users
    so_far = np.maximum.accumulate(np.where(whole | ~whole.any(), scores, -np.inf))
    best = best_of(trials)
    series = [Series("trial", numbers, scores, 0, "dots"), Series("best so far", numbers, so_far, 1)]
    below = "" if floor is None else " The worst tenth lies at the lower edge."
    figures = [
        chart(
            "trials",
            f"{len(trials):,} trials",
            f"{tuning.metric} of validation; the best has {short(best.outcome.score, 4)}.{below}",
            series, "trial", tuning.metric, floor=floor,
        )
    ]  # fmt: skip
    names = list(dict.fromkeys(name for one in trials for name in one.settings))
    for name in names:
        there = [(one.settings[name], one.outcome.score) for one in trials if name in one.settings]
        x, y = (np.array(one, dtype=np.float64) for one in zip(*there, strict=True))
        if len(np.unique(x)) < 2:
            continue
        log = bool((x > 0).all() and x.max() / x.min() > 20)
        of_best = short(best.settings.get(name))
        figures.append(
            chart(
                f"slice-{len(figures)}", name, f"Scores by {name}; the best trial has {of_best}.",
                [Series(tuning.metric, x, y, 0, "dots")], name, tuning.metric, x_log=log, floor=floor,
            )
        )  # fmt: skip
    order = np.lexsort((-scores, ~whole))[:10]
    rows: list[list[Content]] = [
        [
            int(numbers[at]),
            f"{scores[at]:.4f}",
            *(short(trials[at].settings.get(name)) for name in names),
            trials[at].outcome.iterations,
            f"{trials[at].outcome.seconds:.1f} s",
            "yes" if whole[at] else "ended early",
        ]
        for at in order.tolist()
    ]
    header: list[Content] = ["trial", tuning.metric, *names, "iterations", "time", "whole"]
    settings: list[list[Content]] = [[name, _value(value)] for name, value in tuning.to_show().items()]
    compared = _compared(tuning)
    return _section(
        "tuning",
        "The search for settings",
        h("ul", [h("li", note) for note in tuning.notes], class_="notes") if tuning.notes else None,
        compared,
        h("div", *figures, class_="figures"),
        table("The ten best trials", header, rows),
        _importance(tuning),
        h("details", h("summary", "The best settings"), table("The best settings", ["setting", "value"], settings)),
    )


def _compared(tuning: Tuning) -> Element | None:
    compared = tuning.comparison
    if compared is None:
        return None
    estimates = {name: getattr(compared, name) for name in ("best", "default", "popularity")}
    top = max(one.high or one.value for one in estimates.values())
    rows: list[list[Content]] = [
        [_name(name, style), f"{one.value:.4f}", _interval(one),
         interval_mark(style, one.value, one.low, one.high, (0.0, top), None)]
        for (name, one), style in zip(estimates.items(), (0, 1, 5), strict=True)
    ]  # fmt: skip
    shown = table(
        f"{tuning.metric} on interactions that no trial saw", ["model", "mean", "95\u00a0% interval", "from 0"], rows
    )
    _mark_groups(shown)
    return shown


def _importance(tuning: Tuning) -> Element | None:
    try:
        importance = tuning.importance()
    except (ValueError, ImportError):
        return None
    top = max(importance.values(), default=0.0) or 1.0
    rows: list[list[Content]] = [
        [name, _percent(share), interval_mark(0, share, 0.0, share, (0.0, top), None)]
        for name, share in importance.items()
    ]
    shown = table("Share of the scores' variance that each setting explains", ["setting", "share", "from 0"], rows)
    _mark_groups(shown)
    return shown


# --------------------------------------------------------------------------------------------------------- settings


def _value(value: Any) -> str:
    if isinstance(value, float):
        return short(value, 6)
    return clipped(str(value), 120)


def settings_section(settings: Mapping[str, Mapping[str, Any]]) -> Element | None:
    """Everything that was set: tables by name."""
    shown = [
        table(brief(name, 120), ["setting", "value"], [[key, foreign(_value(value))] for key, value in values.items()])
        for name, values in settings.items()
        if values
    ]
    if not shown:
        return None
    return _section("settings", "Settings", h("div", *shown, class_="figures"))
