"""The plots of the documentation; needs matplotlib."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from lib.tables import RANKERS, load, means

matplotlib.use("svg")


def plot(name: str, path: Path) -> None:
    """Loss against seconds of every system, for one fit-SET-RANK."""
    matplotlib.rcParams["svg.hashsalt"] = name  # the same JSON gives the same file
    result = load(name)
    records = [record for record in result["records"] if record.get("losses")]
    lowest = min(point["loss"] for record in records for point in record["losses"])
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    families = list(dict.fromkeys(record["system"].split()[0] for record in records))
    for record in records:
        family = record["system"].split()[0]
        style = {"exact": "-o", "cg": "--s", "subspace": ":^"}[record["kind"]]
        points = [(point["seconds"], point["loss"] / lowest) for point in record["losses"]]
        color = f"C{families.index(family)}"
        axes.plot(*zip(*points, strict=True), style, color=color, markersize=4, label=record["system"])
    axes.set(xscale="log", yscale="log", xlabel="seconds since the start of the fit", ylabel="loss / lowest loss")
    axes.set_title(f"{result['settings']['set']} shape, {result['settings']['factors']} factors")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%.3g"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_text(result: dict, path: Path) -> None:
    """Recall@100 of the arms of bench_text.py: a panel for each cohort, a group of bars for each set."""
    matplotlib.rcParams["svg.hashsalt"] = "text"
    by_set = means(result)
    arms = list(dict.fromkeys(arm for of_set in by_set.values() for arm in of_set))
    figure, panels = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for axes, cohort in zip(panels, ("warm", "few-shot", "cold"), strict=True):
        for place, arm in enumerate(arms):
            at = [(x, of_set.get(arm, {}).get(f"{cohort} recall@100")) for x, of_set in enumerate(by_set.values())]
            at = [(x + (place - len(arms) / 2) * 0.11, value) for x, value in at if value is not None]
            if at:
                axes.bar(*zip(*at, strict=True), width=0.1, color=f"C{place}", label=arm)
        short = [name.removeprefix("amazon-").removesuffix("-2014") for name in by_set]  # else names meet
        axes.set_xticks(range(len(by_set)), short, fontsize=8)
        axes.set_title(f"{cohort} items")
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("recall@100")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot_ranking(result: dict, path: Path) -> None:
    """nDCG of the systems of bench_ranking.py as a share of the best, a line of dots for each log and kind of split.

    Bars are intervals of 95 % of the difference to the best, paired over users.
    """
    matplotlib.rcParams["svg.hashsalt"] = "ranking"
    rows = [one for one in result["comparisons"] if len(one["ndcg@20"]["mean"]) > 1]
    styles = {
        "popularity": ("|", "0.4"),
        "item-kNN": ("x", "0.4"),
        "EASE": ("D", "C3"),
        "implicit": ("v", "C0"),
        "implicit tuned": ("^", "C0"),
        "irspack tuned": ("s", "C2"),
        "ours": ("o", "C1"),
        "ours, neighbors": ("P", "C1"),
        "ours tuned": ("*", "C1"),
    }
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.38 * len(rows)), layout="constrained")
    lowest = 0.5
    for place, one in enumerate(rows):
        found, behind = one["ndcg@20"]["mean"], one["ndcg@20"]["minus best"]
        best = found[behind["of"]][0]
        axes.axhline(place, color="0.9", linewidth=1, zorder=0)
        for system, (marker, color) in styles.items():
            if system not in found:
                continue
            value = found[system][0] / best
            if value < lowest:  # off the scale: at its edge, hollow
                axes.plot(lowest, place, "<", color=color, fillstyle="none", markersize=6, clip_on=False)
                continue
            if system in behind:  # paired: of the difference to the best
                ends = [1 + end / best for end in behind[system][1:]]
                axes.plot(ends, [place, place], color=color, linewidth=1.5, alpha=0.6, zorder=1)
            axes.plot(value, place, marker, color=color, markersize=10 if marker == "*" else 6, zorder=2)
    names = [one["set"] + ("" if one["kind"] == "random" else ", by time") for one in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(lowest, 1.03)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("nDCG@20 as a share of the best system's; \u25c1 further to the left")
    axes.grid(alpha=0.3, axis="x")
    measured = [system for system in styles if any(system in one["ndcg@20"]["mean"] for one in rows)]
    handles = [
        matplotlib.lines.Line2D([], [], linestyle="", marker=styles[s][0], color=styles[s][1], label=RANKERS[s])
        for s in measured
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
