"""The part of the demo that learns from links: measured, and recommendations that anybody can judge."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wals_gpu.cli.evaluate import writing_html
from wals_gpu.cli.output import clipped, wrapped
from wals_gpu.data.interactions import Interactions
from wals_gpu.datasets.debian import load_debian_packages
from wals_gpu.evaluation.report import EvaluationReport, evaluate
from wals_gpu.evaluation.splits import random_holdout
from wals_gpu.evaluation.tables import format_table
from wals_gpu.model.wals import WALS

PACKAGES = ("python3-sklearn", "wordpress", "gnome", "games-arcade")
SIMILAR_TO = ("python3-numpy", "mariadb-server", "default-jre")
METRICS = ("recall@20", "ndcg@100")


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, for printing and for JSON."""

    users: int
    items: int
    entries: int
    hidden: int
    fit_seconds: float
    report: EvaluationReport
    recommendations: list[dict[str, Any]]  # package, summary, known, items: rank, item, score, hidden, summary
    similar: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "report": self.report.to_dict()}


def run_demo(
    *,
    seed: int = 0,
    device: str = "auto",
    num_threads: int = 0,
    show_progress: bool = False,
    html: Path | None = None,
) -> DemoResult:
    """Hide a fifth of the embedded data, fit the rest, look for what was hidden.

    Parameters
    ----------
    seed : int, default 0
        Of the split, the start values and the bootstrap.
    device, num_threads
        As for :class:`wals_gpu.WALS`.
    show_progress : bool, default False
        A progress bar while fitting.
    html : Path, optional
        Write a report there.

    Returns
    -------
    DemoResult
    """
    data = load_debian_packages()
    matrix, names, packages = data.interactions.matrix, data.interactions.item_ids, data.interactions.user_ids
    assert names is not None and packages is not None
    train, test = random_holdout(matrix, 0.2, seed)
    model = WALS(device=device, num_threads=num_threads, random_state=seed)
    model.fit(Interactions(train, packages, names), show_progress=show_progress)
    report = evaluate(model, train, test, random_state=seed, few_shot=None if html is None else 5)
    summaries = dict(zip(data.items["item_id"].to_pylist(), data.items["summary"].to_pylist(), strict=True))
    if html is not None:
        from wals_gpu.report import write_report

        with writing_html(html):
            write_report(
                html, report, model=model, train=train, test=test, data=data.interactions, random_state=seed,
                titles=summaries,
                settings={"data": "packages of Debian and those that they name", "split": "random", "seed": seed},
                title="What Debian's packages name, from the embedded data of wals-gpu demo",
            )  # fmt: skip

    recommendations = []
    for package in PACKAGES:
        row = packages.index_of(package)
        hidden = set(names.take(test[row].indices))
        ids, scores = model.recommend(package, 7)
        best = [(item, score) for item, score in zip(ids, scores, strict=True) if item != package][:6]
        recommendations.append(
            {
                "package": package,
                "summary": summaries.get(package),
                "known": names.take(train[row].indices).tolist(),
                "hidden": len(hidden),
                "items": [
                    {"item": item, "score": float(score), "hidden": item in hidden, "summary": summaries[item]}
                    for item, score in best
                ],
            }
        )
    similar = {item: model.similar_items(item, 6)[0][1:].tolist() for item in SIMILAR_TO}
    seconds = sum(record.seconds for record in model.history_)
    users, items = matrix.shape
    return DemoResult(users, items, matrix.nnz, test.nnz, seconds, report, recommendations, similar)


def format_demo(result: DemoResult) -> str:
    """The demo as a page of text, 80 columns wide."""
    names = list(result.report.results)
    table = [[metric, *(result.report.results[name][metric] for name in names)] for metric in METRICS]
    parts = [
        wrapped(
            "Every package of the Debian system names other packages that it needs or recommends: "
            f"{result.users:,} packages name {result.items:,} others, {result.entries:,} times in all. We hid "
            f"{result.hidden:,} of these links, learned from the rest which packages go together, and ask for the "
            "hidden ones. Only the links are used here; the names and descriptions below are for you. The same works "
            "for people and what they bought, read or played."
        ),
        wrapped(
            f"Fitted in {result.fit_seconds:.1f} s, without settings. Was the hidden found? "
            f"({result.report.users.size:,} packages, 95 % interval)"
        ),
        format_table(["metric", *names], table),
        wrapped(
            "recall@20 is the share of the hidden links among the first 20 suggestions, ndcg@100 the same for 100 with "
            "early places counting more; 1 is perfect. popularity suggests to everyone what is named most often."
        ),
    ]
    for page in result.recommendations:
        rows = [["*" if r["hidden"] else "", r["item"], clipped(r["summary"], 48)] for r in page["items"]]
        known = ", ".join(page["known"][:5]) + (" and more" if len(page["known"]) > 5 else "")
        title = page["package"] + (f" ({page['summary']})" if page["summary"] else "")
        parts.append(
            f"{title}\n{wrapped('  names ' + known)}\n"
            f"{textwrap.indent(format_table(['', 'suggested', '* = was hidden'], rows), '  ')}"
        )
    similar = "\n".join(wrapped(f"  {item}: {', '.join(others)}") for item, others in result.similar.items())
    parts.append(f"Named by the same packages as\n{similar}")
    return "\n\n".join(parts)
