"""The plots of the documentation; needs matplotlib."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from lib.tables import load, means

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
        axes.set_xticks(range(len(by_set)), [name.replace("-2014", "") for name in by_set], fontsize=8)
        axes.set_title(f"{cohort} items")
        axes.grid(alpha=0.3, axis="y")
    panels[0].set_ylabel("recall@100")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
