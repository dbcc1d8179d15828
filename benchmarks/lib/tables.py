"""The tables of the documentation, one function for each kind of result file."""

import json
import math
import re
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np

from lib.common import RESULTS


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.5f}".rstrip("0")


def spread(summary: dict) -> str:
    """Median, and quartiles where they differ."""
    middle, low, high = (number(summary[key]) for key in ("median", "q25", "q75"))
    return middle if low == high else f"{middle} ({low}-{high})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; every column but the first is right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def caption(result: dict, *words: str, packages: Sequence[str] | None = None) -> str:
    """The line below a table of times: machine, versions (of the systems measured unless named), date."""
    if packages is None:
        measured = {record["system"].split()[0].replace("faiss", "faiss-cpu") for record in result["records"]}
        names = ("wals_gpu", "implicit", "irspack", "cmfrec", "faiss-cpu", "hnswlib", "usearch")
        packages = [name for name in names if name in measured]
    machine = f"{result['machine']['processor']}, {result['settings']['threads']} threads"
    return plain_caption(result, *words, machine, versions(result, packages)) + busy_words(result["machine"]) + "\n"


def plain_caption(result: dict, *words: str) -> str:
    """The line below a table without times: `words` and the date."""
    return "\n" + "; ".join(word for word in (*words, result["date"]) if word) + "."


def versions(result: dict, packages: Sequence[str]) -> str:
    return ", ".join(f"{name} {result['versions'][name]}" for name in packages if name in result["versions"])


def busy_words(machine: dict) -> str:
    load = machine["load_at_start"]
    return f" **The machine was busy (load {load:.1f}): its times are not to be relied on.**" if load > 0.5 else ""


def ceiling_words(result: dict) -> str:
    return f"ceiling: {result['ceiling_gflops']:.0f} GFLOP/s (float32 matrix product, measured in the same run)"


def fit_table(result: dict) -> str:
    """Everything measured for one set and rank."""
    header = ["system", "s/iteration", "of ceiling", "fit, s", "fit, MiB", "loss after"]
    rows = []
    for record in result["records"]:
        if "error" in record:
            rows.append([record["system"], f"failed: {record['error']}", "", "", "", ""])
            continue
        last = record["losses"][-1] if record["losses"] else None
        rows.append(
            [
                record["system"],
                spread(record["seconds_per_iteration"]),
                f"{record['fraction_of_ceiling']:.0%}",
                f"{spread(record['fit_seconds'])} / {record['iterations']} it.",
                number(record["fit_mib"]),
                f"{last['loss']:.6g} / {last['iteration']} it." if last else "",
            ]
        )
    users, items, entries = result["records"][0]["shape"]
    shape = f"{users:,} x {items:,}, {entries:,} entries, {result['settings']['factors']} factors, float32"
    return table(header, rows) + caption(result, shape, ceiling_words(result))


def ranks_table(results: list[dict]) -> str:
    """Seconds per iteration of every system, a column for each rank measured on the set."""
    results = sorted(results, key=lambda result: result["settings"]["factors"])
    cells_of: dict[str, dict[int, str]] = {}
    for result in results:
        for record in result["records"]:
            if "error" not in record:
                text = f"{spread(record['seconds_per_iteration'])}, {record['fraction_of_ceiling']:.0%}"
                cells_of.setdefault(record["system"], {})[record["factors"]] = text
    ranks = [result["settings"]["factors"] for result in results]
    rows = [[name, *(cells.get(rank, "-") for rank in ranks)] for name, cells in cells_of.items()]
    words = "s/iteration and fraction of the ceiling"
    fullest = max(results, key=lambda result: len(result["records"]))  # has the versions of all systems
    return table(["system", *(f"D = {rank}" for rank in ranks)], rows) + caption(fullest, words)


def converge_table(result: dict) -> str:
    """When each system was within reach of the exact solver's final loss."""
    rows = []
    for record in result["records"]:
        if "error" in record:
            rows.append([record["system"], f"failed: {record['error']}", ""])
            continue
        at, last = record["reached"], record["losses"][-1]
        distance = last["loss"] / result["final_loss"] - 1
        cells = [number(at["seconds"]), str(at["iteration"])] if at else ["not reached", f"{distance:+.2%} at the end"]
        rows.append([record["system"], *cells])
    settings = result["settings"]
    words = f"{settings['set']} shape, {settings['factors']} factors, {settings['iterations']} iterations or "
    words += f"{settings['budget']:g} s at most"
    return table(["system", f"s until within {settings['within']:.1%}", "iterations"], rows) + caption(result, words)


def threads_table(result: dict) -> str:
    """Seconds per iteration, a column for each number of threads."""
    counts = sorted({record["threads"] for record in result["records"]})
    rows = []
    for name in dict.fromkeys(record["system"] for record in result["records"]):
        own = [record for record in result["records"] if record["system"] == name and "error" not in record]
        seconds = {record["threads"]: record["seconds_per_iteration"] for record in own}
        cells = [spread(seconds[count]) if count in seconds else "failed" for count in counts]
        ends = [seconds[count]["median"] for count in (counts[0], counts[-1]) if count in seconds]
        rows.append([name, *cells, f"{ends[0] / ends[1]:.2f}" if len(ends) == 2 else "-"])
    settings = result["settings"]
    header = ["system", *(f"{count} thread{'s' * (count > 1)}" for count in counts), "times as fast"]
    words = f"s/iteration; {settings['set']} shape, {settings['factors']} factors, float32"
    return table(header, rows) + caption(result, words)


def compare_trees_table(result: dict) -> str:
    """Two source trees of wals_gpu: seconds per iteration, ratios of times, distance of the factors."""
    rows = []
    for of_case in result["comparisons"]:
        case = of_case["system"], of_case["factors"]
        by_tree = {r["tree"]: r for r in result["records"] if (r["system"], r["factors"]) == case}
        seconds = [spread(by_tree[name]["seconds_per_iteration"]) for name in result["trees"]]
        ratios = [
            "{median:.3f} ({q25:.3f}-{q75:.3f})".format(**of_case[key]) for key in ("iteration_ratio", "fit_ratio")
        ]
        apart = of_case["largest_difference"]
        factors = f"{apart:.1e} apart" if apart else "the same bits"
        rows.append([f"{case[0]}, D = {case[1]}", *seconds, *ratios, factors])
    header = ["system", "before, s/iteration", "after, s/iteration", "ratio", "ratio of whole fits", "factors"]
    commits = ", ".join(f"{name} {tree['commit'] or 'without git'}" for name, tree in result["trees"].items())
    settings = result["settings"]
    words = f"{settings['set']} shape, {settings['iterations']} iterations, repeats: {settings['repeats']}"
    return table(header, rows) + caption(result, words, commits)


def latency_table(result: dict) -> str:
    """Milliseconds of each request, a column for each system; then the batch with its memory."""
    systems = list(dict.fromkeys(record["system"] for record in result["records"]))
    tables = []
    for mode in ("requests", "batch"):
        lines: dict[str, list[str]] = {}
        for record in result["records"]:
            if record["measure"] != mode:
                continue
            if "error" in record:
                raise ValueError(f"{record['system']} failed: {record['error']}")
            cell = spread({name: 1e3 * value for name, value in record["seconds"].items()})
            if mode == "batch":
                cell += f", {record['extra_mib']['median']:.0f} MiB"
            lines.setdefault(record["request"], []).append(cell)
        first = "one request, ms" if mode == "requests" else "a batch, ms and MiB beyond the answer"
        tables.append(table([first, *systems], [[name, *cells] for name, cells in lines.items()]))
    sizes = result["settings"]
    words = f"requests: {sizes['items']:,} items, {sizes['factors']} factors; batch: {sizes['batch_users']:,} users, "
    words += f"{sizes['batch_items']:,} items, {sizes['batch_factors']} factors; float32"
    return "\n".join(tables) + caption(result, words, packages=("wals_gpu", "implicit"))


def serve_table(result: dict) -> str:
    """Requests a second and latencies of each service, by items and connections, with the ratio of the rates."""
    systems = list(dict.fromkeys(record["system"] for record in result["records"]))
    by_place = {(r["items"], r["connections"], r["system"]): r for r in result["records"]}
    rows = []
    for items, connections in dict.fromkeys((r["items"], r["connections"]) for r in result["records"]):
        some = [by_place[items, connections, system] for system in systems]
        rates = {system: one["rate"]["median"] for system, one in zip(systems, some, strict=True)}
        row = [number(items), number(connections)]
        for one in some:
            low, high = one["rate"]["q25"], one["rate"]["q75"]
            row.append(f"{one['rate']['median']:,.0f} ({low:,.0f}-{high:,.0f})")
        row += [f"{one['p50_ms']['median']:.3g} / {one['p99_ms']['median']:.3g}" for one in some]
        rows.append([*row, f"{rates['wals_gpu'] / rates['implicit']:.2g}"])
    header = ["items", "connections", *(f"{system}, requests/s" for system in systems)]
    header += [*(f"{system}, p50 / p99 ms" for system in systems), "times as many"]
    words = f"{result['settings']['factors']} factors, k = 10, float32; one process each, "
    words += f"{result['settings']['threads']} threads of native code"
    return table(header, rows) + caption(result, words, packages=("wals_gpu", "implicit", "fastapi", "uvicorn"))


def topk_table(result: dict) -> str:
    header = ["system", "items", "users", "k", "seen left out", "s", "of ceiling"]
    rows, memory = [], []
    for record in result["records"]:
        if "error" in record:
            rows.append([record["system"], number(record["items"]), "", "", "", f"failed: {record['error']}", ""])
        elif record["measure"] == "memory":
            sizes = [number(record[key]) for key in ("items", "users", "extra_mib")]
            memory.append([record["system"], *sizes])
        else:
            sizes = [number(record[key]) for key in ("items", "users", "k")]
            seen, fraction = "yes" if record["filter_seen"] else "no", f"{record['fraction_of_ceiling']:.0%}"
            rows.append([record["system"], *sizes, seen, spread(record["seconds"]), fraction])
    rows.sort(key=lambda row: [float(cell.replace(",", "") or 0) for cell in row[1:4]] + row[4:5])
    memory.sort(key=lambda row: (row[0], [float(cell.replace(",", "")) for cell in row[1:3]]))
    memory_table = table(["system", "items", "users", "MiB beyond input and answer"], memory)
    words = f"{result['settings']['factors']} factors, float32"
    return table(header, rows) + "\n" + memory_table + caption(result, words, ceiling_words(result))


def rank_table(result: dict) -> str:
    """Milliseconds per exact row and fraction of the ceiling, a column for each rank."""
    ranks, shares = result["settings"]["ranks"], result["settings"]["shares"]
    cells = {(record["factors"], record["row_length"]): record for record in result["records"]}
    rows = []
    for share in shares:
        own = [cells[rank, int(share * rank)] for rank in ranks]
        texts = [f"{number(each['milliseconds_per_row'])}, {each['fraction_of_ceiling']:.0%}" for each in own]
        rows.append([f"{share:g} D entries", *texts])
    seconds = {each["factors"]: each for each in result["shared"]}
    for name, key in (("Gram matrix of D rows, s", "gram_seconds"), ("eigenvectors, s", "eigenvector_seconds")):
        rows.append([name, *(number(seconds[rank][key]) if rank in seconds else "-" for rank in ranks)])
    words = "milliseconds per exact row, fraction of the ceiling"
    header = ["wals_gpu exact", *(f"D = {rank:,}" for rank in ranks)]
    return table(header, rows) + caption(result, words, ceiling_words(result))


def rows_table(result: dict) -> str:
    """One table for each system: microseconds per row, a line for each length, a column for each rank."""
    parts = []
    records = [record for record in result["records"] if "error" not in record]
    for name in dict.fromkeys(record["system"] for record in records):
        cells = {(r["row_length"], r["factors"]): r for r in records if r["system"] == name}
        lengths, ranks = (sorted({key[axis] for key in cells}) for axis in (0, 1))
        rows = [[f"{n:,}", *(row_cell(cells[n, d]) for d in ranks)] for n in lengths]
        rows.append(["shared, ms", *(number(1e3 * cells[lengths[0], d]["shared_seconds"]) for d in ranks)])
        parts.append(table([f"{name}: entries in the row", *(f"D = {d}" for d in ranks)], rows))
    words = "microseconds per row, fraction of the ceiling; last line: milliseconds per half-sweep that all rows share"
    return "\n".join(parts) + caption(result, words, ceiling_words(result))


def row_cell(record: dict) -> str:
    if record["fraction_of_ceiling"] is None:
        return "-"
    return f"{number(record['microseconds_per_row']['median'])}, {record['fraction_of_ceiling']:.0%}"


def profile_table(result: dict) -> str:
    """Seconds of a whole fit by part."""
    records = result["records"]
    labels = list(dict.fromkeys(label for record in records for label in record["seconds"]))
    rows = []
    for label in labels:
        cells = [record["seconds"].get(label, 0.0) for record in records]
        totals = [record["total"] for record in records]
        rows.append([label, *(f"{s:.2f}, {s / t:.1%}" for s, t in zip(cells, totals, strict=True))])
    rows.append(["all", *(f"{record['total']:.2f}" for record in records)])
    rows.append(["all but rows, Gram matrices and bases", *(f"{record['everything_else']:.1%}" for record in records)])
    settings = result["settings"]
    words = f"seconds of a fit of {settings['iterations']} iterations, {settings['set']}, {settings['factors']} factors"
    return table(["", *(record["system"] for record in records)], rows) + caption(result, words)


def settings_table(result: dict) -> str:
    rows = []
    for record in result["records"]:
        environment = " ".join(f"{key}={value}" for key, value in record["env"].items())
        options = " ".join(f"{key}={value}" for key, value in record["options"].items())
        time = record.get("error") or spread(record["seconds_per_iteration"])
        words = " ".join(filter(None, [options, environment])) or "as it comes"
        rows.append([record["system"], words, time, "yes" if record["used"] else ""])
    shape = f"{result['settings']['set']}, {result['settings']['factors']} factors"
    return table(["system", "settings", "s/iteration", "used"], rows) + caption(result, shape)


def leave_one_out_table(result: dict) -> str:
    names = list(result["published"])
    columns = [f"wals_gpu, mean of {len(result['records'])}"], result["mean"]
    rows = [
        ["iALS, published", *(f"{result['published'][name]:.3f}" for name in names), ""],
        [*columns[0], *(f"{columns[1][name]:.4f}" for name in names), spread(result["fit_seconds"])],
        ["popularity", *(f"{result['popularity'][name]:.4f}" for name in names), ""],
    ]
    words = f"{result['settings']['factors']} factors, {result['settings']['iterations']} iterations"
    return table(["", *names, "fit, s"], rows) + caption(result, words, packages=())


def accel_table(result: dict) -> str:
    """Seconds of each part of one program, with implicit and with wals_gpu in its place."""
    rows = []
    records = {(record["case"], record["system"]): record for record in result["records"]}
    for case in dict.fromkeys(record["case"] for record in result["records"]):
        theirs, ours = records[case, "implicit"], records[case, "wals_gpu"]
        for part in theirs["seconds"]:
            times = [record["seconds"][part] for record in (theirs, ours)]
            factor = times[0]["median"] / times[1]["median"]
            rows.append([case, part, *map(spread, times), f"{factor:.1f} x"])
        rows.append([case, "NDCG@10", f"{theirs['ndcg_at_10']:.4f}", f"{ours['ndcg_at_10']:.4f}", ""])
    words = f"seconds; {records[case, 'implicit']['set']} shape, 128 factors"
    return table(["program", "part", "implicit", "through wals_gpu.accel", "faster"], rows) + caption(result, words)


def ann_table(result: dict) -> str:
    """Recall: a line for each library, set of items and number of candidates."""
    cells_of: dict[tuple, dict[str, float]] = {}
    for record in result["records"]:
        key = (record["items"], record["system"], record["ef_search"])
        cells_of.setdefault(key, {})[record["vectors"]] = record["recall_at_10"]
    kinds = ["dot product", "longer vectors"]
    rows = [[*key[:2], str(key[2]), *(f"{cells[kind]:.1%}" for kind in kinds)] for key, cells in cells_of.items()]
    peers = versions(result, ("faiss-cpu", "hnswlib", "usearch"))
    return table(["items", "library", "candidates", *kinds], rows) + plain_caption(result, "Recall@10", peers) + "\n"


def means(result: dict) -> dict[str, dict[str, dict[str, float]]]:
    """Of bench_text.py: set -> arm -> "cohort metric" -> mean over the seeds."""
    values_of: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in result["records"]:
        cells = values_of.setdefault(record["set"], {}).setdefault(record["arm"], {})
        for cohort in ("warm", "few-shot", "cold"):
            for metric, value in record.get(cohort, {}).items():
                cells.setdefault(f"{cohort} {metric}", []).append(value)
    return {
        name: {arm: {key: sum(v) / len(v) for key, v in cells.items()} for arm, cells in arms.items()}
        for name, arms in values_of.items()
    }


TEXT_COLUMNS = ["warm recall@20", "warm ndcg@100", "few-shot recall@100", "few-shot ndcg@100"]
TEXT_COLUMNS += ["cold recall@100", "cold ndcg@100", "cold item recall@100"]


def text_table(result: dict, chosen_arms: tuple[str, ...] = ()) -> str:
    """Arms (by default all) and cohorts of bench_text.py, mean over the seeds."""
    columns = TEXT_COLUMNS
    rows = []
    for name, arms in means(result).items():
        for arm, cells in arms.items():
            if chosen_arms and arm not in chosen_arms:
                continue
            rows.append([f"{name}, {arm}", *(f"{cells[key]:.4f}" if key in cells else "-" for key in columns)])
    seeds_of: dict[str, set[int]] = {}
    for record in result["records"]:
        seeds_of.setdefault(record["set"], set()).add(record["seed"])
    ways: dict[str, list[str]] = {}  # sets may have been measured in different ones
    for name, (trials, choose) in result["how"].items():
        way = f"mean of {len(seeds_of[name])} splits, {trials} trials of each arm, settings chosen {_CHOSEN[choose]}"
        ways.setdefault(way, []).append(name)
    words = "; ".join(f"{', '.join(names)}: {way}" for way, names in ways.items())
    words += f"; {result['settings']['factors']} factors, {result['settings']['model']}"
    return table(["set, arm", *columns], rows) + plain_caption(result, words, versions(result, ["irspack"])) + "\n"


_CHOSEN = {"each": "for each split", "once": "once, on the training part of another split"}


def values_of_cells(result: dict, columns: Sequence[str]) -> dict[tuple[str, str, str], dict[int, float]]:
    """Set, arm and column ("cohort metric") -> seed -> value, of what was measured."""
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for record in result["records"]:
        for column in columns:
            cohort, metric = column.split(" ", 1)
            if metric in record.get(cohort, {}):
                values.setdefault((record["set"], record["arm"], column), {})[record["seed"]] = record[cohort][metric]
    return values


def paired_difference(own: dict[int, float], other: dict[int, float]) -> str:
    """Mean difference on the same splits, and twice its standard error."""
    differences = np.array([own[seed] - other[seed] for seed in own])
    return f"{differences.mean():+.4f} ± {2 * differences.std(ddof=1) / np.sqrt(len(differences)):.4f}"


def text_cells_table(result: dict) -> str:
    """Of bench_text.py: how far `texts` and `default` are from the best of what one can do without this prior.

    The interval is twice the standard error of the mean difference on the same splits.
    """
    values = values_of_cells(result, TEXT_COLUMNS)
    rows = []
    for name in dict.fromkeys(key[0] for key in values):
        for arm in ("texts", "default"):
            cells = []
            for column in TEXT_COLUMNS:
                own = values.get((name, arm, column), {})
                others = {each: values.get((name, each, column), {}) for each in ("none", "ridge after", "irspack")}
                others = {each: seeds for each, seeds in others.items() if own and seeds.keys() >= own.keys()}
                if not others or len(own) < 2:
                    cells.append("-")
                    continue
                best = max(others, key=lambda each: sum(others[each][seed] for seed in own))
                cells.append(f"{paired_difference(own, others[best])} ({best})")
            rows.append([f"{name}, {arm}", *cells])
    return table(["set, arm", *TEXT_COLUMNS], rows) + "\nDifference to the best of none, ridge after and irspack.\n"


def encode_table(result: dict) -> str:
    header = ["system", "texts", "tokens", "s", "texts/s", "largest difference"]
    rows = []
    for record in result["records"]:
        sizes = [f"{record['texts']:,} {record['kind']}", number(record["tokens"]), spread(record["seconds"])]
        difference = f"{record['largest_difference']:.1e}"
        rows.append([record["system"], *sizes, number(record["texts_per_second"]), difference])
    words = f"{result['settings']['model']}, at most {result['settings']['max_length']} tokens"
    return table(header, rows) + caption(result, words, packages=("torch", "sentence-transformers"))


def finetune_table(result: dict) -> str:
    """Of bench_finetune.py, all sets: mean over the seeds, and what the rounds bring beside as many more iterations."""
    columns = ["warm recall@20", "warm ndcg@100", "few-shot recall@100", "cold recall@100", "cold ndcg@100"]
    values = values_of_cells(result, columns)
    kept: dict[str, list[str]] = {}
    for record in result["records"]:
        if "rounds" in record:
            kept.setdefault(record["set"], []).append(str(sum(each["kept"] for each in record["rounds"])))
    rows = []
    for name, arm in dict.fromkeys(key[:2] for key in values):
        cells = []
        for column in columns:
            own = values.get((name, arm, column), {})
            cell = f"{np.mean(list(own.values())):.4f}" if own else "-"
            before = values.get((name, "text, more iterations", column), {})
            if own and arm == "fine-tuned" and len(own) > 1:
                cell += f" ({paired_difference(own, before)})"
            cells.append(cell)
        rows.append([f"{name}, {arm}", *cells])
    settings = result["settings"]
    words = "in brackets the difference to more iterations on the same splits; rounds kept on each split: "
    words += "; ".join(f"{name} {', '.join(counts)}" for name, counts in kept.items())
    words += f"; {settings['factors']} factors, {settings['model']}, "
    words += f"{settings['rounds']} rounds of {settings['epochs']} epoch and {settings['more_iterations']} iterations, "
    words += f"rate {settings['learning_rate']:g}, layers from {settings['freeze_below']}"
    return table(["set, arm", *columns], rows) + plain_caption(result, words) + "\n"


def encoders_table(result: dict) -> str:
    """Of bench_encoders.py, all sets: mean over the seeds, and the difference to the first encoder's on the same."""
    columns = ["warm ndcg@100", "few-shot recall@100", "cold recall@100", "cold ndcg@100"]
    values = values_of_cells(result, columns)
    rows, first = [], {}
    for name, arm in dict.fromkeys(key[:2] for key in values):
        least = first.setdefault(name, arm)
        cells = []
        for column in columns:
            own = values[name, arm, column]
            cell = f"{np.mean(list(own.values())):.4f}"
            if arm != least and len(own) > 1:
                cell += f" ({paired_difference(own, values[name, least, column])})"
            cells.append(cell)
        rows.append([f"{name}, {arm}", *cells])
    settings = result["settings"]
    words = "in brackets the difference to the first on the same splits; mean of "
    words += f"{len(settings['seeds'])} splits; {settings['factors']} factors, encoders in {settings['dtype']}"
    return table(["set, encoder, layers", *columns], rows) + plain_caption(result, words) + "\n"


def arrivals_table(result: dict) -> str:
    """Recall@100 of new items over the interactions that have come, among themselves and among all items."""
    cells: dict[tuple, dict[int, list[tuple[float, float]]]] = {}
    for record in result["records"]:
        arm = record["arm"] if record["arm"] == "no prior" else f"{record['arm']}, exposure {record['exposure']:g}"
        recalls = record["new"]["recall@100"], record["all"]["recall@100"]
        cells.setdefault((record["set"], arm), {}).setdefault(record["arrived"], []).append(recalls)
    arrived = sorted({record["arrived"] for record in result["records"]})
    rows = []
    for (name, arm), by_count in cells.items():
        means = [[sum(values) / len(values) for values in zip(*by_count[n], strict=True)] for n in arrived]
        rows.append([f"{name}, {arm}", *(f"{new:.3f} / {among_all:.3f}" for new, among_all in means)])
    words = "recall@100 among the new items / among all items; mean of "
    words += f"{len(result['settings']['seeds'])} splits; {result['settings']['factors']} factors, "
    words += result["settings"]["model"]
    header = ["set, arm", *(f"{n} interaction{'s' * (n != 1)}" for n in arrived)]
    return table(header, rows) + plain_caption(result, words) + "\n"


def defaults_table(result: dict) -> str:
    """What a person gets without settings, beside tuned ones; the last row is the mean and the worst of the regrets."""
    systems = ["popularity", "WALS() before", "ials as it is", "WALS()", "ials, tuned", "EASE"]
    header = ["log", "values", *systems, "regret"]
    rows = []
    for record in result["records"]:
        of_ones = record["values"] == "ones"
        cells = []
        for system in systems:
            name = f"{system}, ones" if of_ones and f"{system}, ones" in record["ndcg@20"] else system
            value = record["ndcg@20"].get(name)
            cells.append("-" if value is None else f"{value:.3f}")
        one = record["regret"]
        regret = f"{one['value']:+.1%} ({one['low']:+.1%} to {one['high']:+.1%})"
        rows.append([record["log"], record["values"], *cells, regret])
    total = result["summary"]
    words = f"nDCG@20, mean of {len(result['seeds'])} splits; regret of WALS() beside tuned ials: mean "
    words += f"{total['mean_regret']:.1%}, worst {total['worst_regret']:.1%}; WALS() is at least "
    words += f"{total['least_over_popularity']:.2f} times popularity; intervals of 95 %, paired over users"
    return table(header, rows) + plain_caption(result, words) + "\n"


def defaults_choice_table(result: dict) -> str:
    """The best trials, and what would have been chosen without each log."""
    header = ["settings", "iterations", "mean regret", "worst regret"]
    rows = []
    for record in result["records"][:6]:
        settings = record["settings"]
        if settings != "defaults":
            settings = ", ".join(f"{name} {number(value)}" for name, value in settings.items())
        rows.append([settings, record["iterations"], f"{record['mean_regret']:.1%}", f"{record['worst_regret']:.1%}"])
    left_out = result["left_out"].values()
    same = sum(choice["settings"] == "defaults" for choice in left_out)
    words = (
        f"{result['settings']['trials']} settings of objective wals on {len(result['best'])} logs; regret beside the "
    )
    words += "best of all on each log; without any one log the defaults would have been chosen "
    worst = max(choice["regret"] for choice in left_out)
    words += f"{same} times of {len(left_out)}, at most {worst:.1%} below the best on the log left out"
    return table(header, [[str(cell) for cell in row] for row in rows]) + plain_caption(result, words) + "\n"


def relaxation_table(result: dict) -> str:
    """Iterations to the loss of the plain fit, nDCG@20 beside that fit's, and seconds of the whole fit."""
    [plain, *others] = result["records"][0]["systems"]
    rows = []
    for record in result["records"]:
        systems = record["systems"]
        [(iterations, scores)] = systems[plain]["ndcg@20"].items()
        row = [record["log"], f"{mean(scores):.4f}", number(systems[plain]["seconds"])]
        for name in others:
            last_two = list(systems[name]["ndcg@20"].values())[-2:]
            changes = (mean(theirs) / mean(scores) - 1 for theirs in last_two)
            row.append(str(systems[name]["reached"] or "more"))
            row += [f"{change:+.1%}" for change in changes]
            row.append(f"{systems[name]['seconds'] / systems[plain]['seconds']:.0%}")
        rows.append(row)
    header = ["log", f"{plain}, {iterations} iterations: nDCG@20", "fit, CPU s"]
    for name in others:
        header.append(f"{name}: iterations to its loss")
        header += [f"nDCG@20 after {n}" for n in list(result["records"][0]["systems"][name]["ndcg@20"])[-2:]]
        header.append("CPU s")
    words = f"changes beside {plain}; means, of seconds medians, of {len(result['seeds'])} splits"
    words += f", {result['machine']['processor']}"
    return table(header, rows) + plain_caption(result, words) + "\n"


def halves_table(result: dict) -> str:
    """Models saved with dtype="float16" beside the same ones saved as they are."""
    rows = [
        [
            record["log"],
            *(f"{record['mib'][kind]:.1f}" for kind in ("whole", "halves")),
            *(f"{record['ndcg@20'][kind]:.4f}" for kind in ("whole", "halves")),
            f"{record['largest_difference']:.1g}",
            f"{record['same_first']:.1%}",
        ]
        for record in result["records"]
    ]
    header = ["log", "MiB", "MiB, float16", "nDCG@20", "nDCG@20, float16", "largest difference", "same first item"]
    splits = len(result["seeds"])
    words = f"WALS(), 256 factors; a fifth hidden, {splits} split{'s' * (splits > 1)}"
    return table(header, rows) + plain_caption(result, words) + "\n"


def ratings_table(result: dict) -> str:
    """What ratings are best taken for."""
    header = [
        "log",
        "likes from",
        "weighted by value",
        "alike",
        "likes only",
        "weighted - alike",
        "weighted - likes only",
    ]
    rows = []
    for record in result["records"]:
        differences = [
            f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
            for value, low, high in (record["weighted - alike"], record["weighted - likes only"])
        ]
        means = [f"{record[way]:.3f}" for way in ("weighted", "alike", "likes only")]
        rows.append([record["log"], number(record["liked_from"]), *means, *differences])
    words = f"nDCG@20 of hidden likes, {len(result['seeds'])} splits, intervals of 95 %, paired over users"
    return table(header, rows) + plain_caption(result, words) + "\n"


def small_catalogues_table(result: dict) -> str:
    """What the default ridge of small catalogues is worth beside that of large ones, by number of items."""
    sizes = sorted({record["items"] for record in result["records"]})
    found = {(record["log"], record["kind"], record["items"]): record["ndcg@20"] for record in result["records"]}
    rows = []
    for log, kind in dict.fromkeys((record["log"], record["kind"]) for record in result["records"]):
        cells = []
        for size in sizes:
            one = found.get((log, kind, size))
            if one is None:
                cells.append("-")
                continue
            value, low, high = (100 * number for number in one["gain over 0.0117"])
            cells.append(f"{one['mean']['auto']:.3f}, {value:+.1f}% ({low:+.1f} to {high:+.1f})")
        rows.append([log, kind, *cells])
    gains = [record["ndcg@20"]["gain over 0.0117"] for record in result["records"]]
    ahead, behind = sum(low > 0 for _, low, _ in gains), sum(high < 0 for _, _, high in gains)
    words = (
        f"nDCG@20 of WALS() and its gain over regularization=0.0117, {len(result['seeds'])} splits: ahead beyond the "
        f"interval {ahead} times of {len(gains)}, behind {behind} times; intervals of 95 %, paired over users"
    )
    return (
        table(["log", "items are", *(f"{size:,} items" for size in sizes)], rows) + plain_caption(result, words) + "\n"
    )


def small_catalogues_choice_table(result: dict) -> str:
    """The best multiple of the ridge by number of items, and what rules for it cost."""
    rows, kinds = [], list(dict.fromkeys(record["kind"] for record in result["records"]))
    for size in sorted({record["items"] for record in result["records"]}):
        cells = []
        for kind in kinds:
            best = [record["best"] for record in result["records"] if (record["items"], record["kind"]) == (size, kind)]
            middle = math.exp(sum(map(math.log, best)) / len(best)) if best else None
            cells.append("-" if middle is None else f"{middle:.1f} ({min(best):g} to {max(best):g})")
        rows.append([f"{size:,}", f"{max(1, math.sqrt(1600 / size)):.1f}", *cells])
    first = table(["items", "sqrt(1600 / items), at least 1", *(f"best, {kind}" for kind in kinds)], rows)
    rules = [[name, *(f"{of[key]:.1%}" for key in ("mean", "worst", *kinds))] for name, of in result["rules"].items()]
    second = table(
        ["times 0.0117, at least 1", "mean regret", "worst regret", *(f"mean, {kind}" for kind in kinds)], rules
    )
    words = (
        f"best of {len(result['multiples'])} multiples of 0.0117 by nDCG@20: geometric mean and range over logs, one "
        "split of each"
    )
    return first + "\n" + second + plain_caption(result, words) + "\n"


#: What the systems of bench_ranking.py are called in tables and plots, in this order.
RANKERS = {
    "popularity": "popularity",
    "item-kNN": "item-kNN",
    "EASE": "EASE",
    "implicit": "implicit ALS",
    "implicit tuned": "implicit ALS, tuned",
    "irspack tuned": "irspack iALS, tuned",
    "ours": "WALS()",
    "ours, neighbors": "WALS(neighbors=100)",
    "ours tuned": "WALS.tune",
}


def ranking_rows(result: dict, metric: str, systems: Sequence[str]) -> list[list[str]]:
    """A row for each log and kind of split; bold is who is ahead of each other system beyond the interval."""
    rows = []
    for one in result["comparisons"]:
        found = one[metric]
        cells = []
        for system in systems:
            value = found["mean"].get(system)
            text = "-" if value is None else f"{value[0]:.3f}" if value[0] >= 0.1 else f"{value[0]:.4f}"
            cells.append(f"**{text}**" if found["ahead"] == system else text)
        rows.append([one["set"] if one["kind"] == "random" else f"{one['set']}, by time", *cells])
    return rows


def best_peer_cell(found: dict) -> str:
    """WALS.tune less the best of the other libraries' systems and EASE, with its interval."""
    against = found.get("minus best peer", {})
    if "ours tuned" not in against:
        return "-"
    value, low, high = against["ours tuned"]
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f}), {RANKERS[against['of']]}"


def ranked(result: dict, systems: Sequence[str]) -> list[str]:
    """Those that were measured on any log."""
    measured = {system for one in result["comparisons"] for system in one["ndcg@20"]["mean"]}
    return [system for system in systems if system in measured]


def ranking_words(result: dict) -> str:
    counts = sorted({len(one["splits"]) for one in result["comparisons"]})
    minutes = sorted({record["minutes"] for record in result["records"] if record["stage"] == "search"})
    words = f"mean of {counts[0]}{f' to {counts[-1]}' * (len(counts) > 1)} split{'s' * (counts != [1])}"
    if minutes:
        spent = number(minutes[0]) if len(minutes) == 1 else f"{number(minutes[0])} to {number(minutes[-1])}"
        words += f"; searches of {spent} minute{'s' * (minutes != [1])} each"
        fits = [record for record in result["records"] if record.get("searched_on") is not None]
        if any(record["searched_on"] != record["split"] for record in fits):
            words += ", on the first split of a log"
        words += search_threads(result)
    return words + "; bold: ahead of each other system, by an interval of 95 % paired over users"


def search_threads(result: dict) -> str:
    """Who searched on fewer threads than the others, in words."""
    threads: dict[str, int] = {}
    for record in result["records"]:
        if record["stage"] == "search":
            threads[record["system"]] = min(record["threads"], threads.get(record["system"], record["threads"]))
    most = max(threads.values(), default=1)
    fewer = [system for system, n in threads.items() if n < most]
    if not fewer:
        return f", on {most} threads" if most > 1 else ""
    names = " and ".join(RANKERS[system] for system in fewer)
    of_some = {
        record["kind"] for record in result["records"] if record["stage"] == "search" and record["threads"] < most
    }
    where = " where logs are split at random" if of_some == {"random"} else ""
    return f", that of {names} on {threads[fewer[0]]} thread{where}, the others' on {most}"


def ranking_table(result: dict) -> str:
    """nDCG and recall of every system on every log."""
    if not result["comparisons"]:
        return "Not measured yet.\n"
    systems = ranked(result, list(RANKERS))
    metrics = [metric for metric in ("ndcg@20", "recall@20") if metric in result["comparisons"][0]]
    tables = []
    for metric in metrics:
        header = [metric.replace("ndcg", "nDCG"), *(RANKERS[one] for one in systems), "WALS.tune - best peer"]
        rows = ranking_rows(result, metric, systems)
        for row, one in zip(rows, result["comparisons"], strict=True):
            row.append(best_peer_cell(one[metric]))
        tables.append(table(header, rows))
    peers = versions(result, ("wals_gpu", "implicit", "irspack"))
    return "\n".join(tables) + plain_caption(result, ranking_words(result), peers) + "\n"


def ranking_short_table(result: dict) -> str:
    """nDCG of the systems that matter most, random splits."""
    systems = ["popularity", "EASE", "implicit tuned", "irspack tuned", "ours", "ours, neighbors", "ours tuned"]
    systems = ranked(result, systems)
    random_only = {**result, "comparisons": [one for one in result["comparisons"] if one["kind"] == "random"]}
    if not random_only["comparisons"]:
        return "Not measured yet.\n"
    rows = ranking_rows(random_only, "ndcg@20", systems)
    peers = versions(result, ("wals_gpu", "implicit", "irspack"))
    words = f"nDCG@20, {ranking_words(result)}"
    return table(["log", *(RANKERS[system] for system in systems)], rows) + plain_caption(result, words, peers) + "\n"


def headline_table(result: dict) -> str:
    """Ranking, speed and memory beside other systems: a line of the README for each."""
    fit = load("fit-ml-20m-128")
    records = {record["system"]: record for record in fit["records"]}
    logs = [one["ndcg@20"]["mean"] for one in result["comparisons"] if one["kind"] == "random"]

    def ranks(system: str) -> str:
        return f"{sum(one[system][0] for one in logs) / len(logs):.3f}" if system in logs[0] else "-"

    def speed(system: str) -> str:
        return f"{number(records[f'{system} CG']['seconds_per_iteration']['median'])} s"

    def memory(system: str) -> str:
        return f"{records[f'{system} CG']['fit_mib']} MiB"

    fitted = ("wals_gpu", "irspack", "implicit", "cmfrec")
    minutes = sorted({record["minutes"] for record in result["records"] if record["stage"] == "search"})
    spent = "searches of " + " to ".join(dict.fromkeys(number(one) for one in (minutes[0], minutes[-1])))
    words = f"{spent} minute{'s' * (minutes != [1])} each"
    rows = [
        [f"**ranking**, mean nDCG@20 of {len(logs)} logs, {words}", ranks("ours tuned")],
        ["the same, no settings", ranks("ours")],
        ["**speed**, an iteration on ML-20M's shape, 128 factors", *map(speed, fitted), "-"],
        ["**memory** of that fit beyond its input", *map(memory, fitted), "-"],
    ]
    rows[0] += [ranks("irspack tuned"), ranks("implicit tuned"), "-", ranks("EASE")]
    rows[1] += ["-", ranks("implicit"), "-", "-"]
    words = f"ranking: {result['date']}; speed and memory: three steps of conjugate gradients a row in each system"
    return table(["", *fitted, "EASE"], rows) + caption(fit, words)


def ranking_cost_table(result: dict) -> str:
    """Seconds and memory of every system, median over the splits of a log, random ones."""
    lines = {
        "search, s": ("search", "seconds"),
        "fit, s": ("fit", "fit_seconds"),
        "lists, s": ("fit", "recommend_seconds"),
        "MiB": ("fit", "mib"),
    }
    records = [record for record in result["records"] if record["kind"] == "random"]
    rows, busy, systems = [], 0.0, ranked(result, list(RANKERS))
    for name in dict.fromkeys(record["set"] for record in records):
        for label, (stage, fact) in lines.items():
            cells = []
            for system in systems:
                own = [r for r in records if (r["set"], r["system"], r["stage"]) == (name, system, stage) and fact in r]
                if own:
                    middle = sorted(record[fact] for record in own)[len(own) // 2]
                    if stage == "fit":  # searches take as long as they may
                        busy = max(busy, *(record["busy"] for record in own))
                cells.append(number(middle) if own else "-")
            rows.append([f"{name}: {label}", *cells])
    threads = sorted({record["threads"] for record in records})
    machine = f"{result['machine']['processor']}, {' or '.join(map(str, threads))} thread{'s' * (threads != [1])}"
    words = (
        "median over the splits; lists: the best 20 for each tested user; MiB: peak of fit and lists beyond the input"
    )
    peers = versions(result, ("wals_gpu", "implicit", "irspack"))
    warning = busy_words({"load_at_start": busy})
    return (
        table(["", *(RANKERS[one] for one in systems)], rows)
        + plain_caption(result, words, machine, peers)
        + warning
        + "\n"
    )


def ranking_target_table(result: dict) -> str:
    """What share of the nDCG of many random trials searches of minutes reach."""
    rows = []
    for record in result["records"]:
        cells = []
        for way in ("tune", "blind", "random"):
            value = record.get(way, {}).get("ndcg@20")
            share = f", {record['share'][way]:.1%}" if way in record.get("share", {}) else ""
            cells.append("-" if way not in record else "failed" if value is None else f"{value:.4f}{share}")
        seconds = record.get("random", {}).get("seconds")
        rows.append([record["set"], *cells, str(record["trials"]), "-" if seconds is None else number(seconds)])
    header = ["log", "WALS.tune", "without known settings", "random trials", "trials", "their s"]
    if not any("blind" in record for record in result["records"]):
        header.pop(2)
        rows = [[*row[:2], *row[3:]] for row in rows]
    minutes = sorted({record["minutes"] for record in result["records"]})
    words = (
        f"nDCG@20 of the test part and share of that of random trials, one split; searches of {minutes[0]:g} minutes"
    )
    threads = f"{result['settings']['threads']} threads"
    return table(header, rows) + plain_caption(result, words, threads) + busy_words(result["machine"]) + "\n"


def calibration_table(result: dict) -> str:
    """What exponents of the items' popularity are worth, fixed and chosen; the last row are means over the logs."""
    header = [
        "log",
        "nDCG@20",
        "best exponent",
        "its gain",
        "gain of 0.05",
        "chosen by validation",
        "its gain",
        "by folding in",
    ]
    rows = []
    for record in result["records"]:
        best = f"{record['best']:g}"
        of_best = "-" if record["best"] == 0 else _percent(record["gain"][best])
        chosen, folded = (", ".join(f"{each:g}" for each in record[kind]) for kind in ("chosen", "by_folding_in"))
        cells = [f"{record['ndcg@20']['0']:.3f}", best, of_best, _percent(record["gain"]["0.05"]), chosen]
        rows.append([record["log"], *cells, _percent(record["auto"]), folded])
    total = result["summary"]
    means = [f"{one['mean']:+.1%}, worst {one['worst']:+.1%}" for one in (total["exponents"]["0.05"], total["auto"])]
    rows.append(["mean", "", "", "", means[0], "", means[1], ""])
    words = f"WALS() on {len(result['seeds'])} splits; gains in nDCG@20 over an exponent of 0 of the same fit, with "
    words += "intervals of 95 %, paired over users; chosen: of each split, by a tenth of the training entries in a fit "
    words += "without them, and used in the fit with all"
    return table(header, rows) + plain_caption(result, words) + "\n"


def _percent(gain: dict) -> str:
    return f"{gain['value']:+.1%} ({gain['low']:+.1%} to {gain['high']:+.1%})"


def rerank_table(result: dict) -> str:
    """bench_rerank.py: what ways of re-ranking take and give."""
    keys = {"ndcg": "nDCG@20", "recall": "recall@20", "intra_list_diversity": "diversity by factors"}
    keys |= {"diversity_of_texts": "by texts", "serendipity": "serendipity", "novelty": "novelty, bits"}
    keys["coverage"] = "coverage"
    records = [record for record in result["records"] if record["part"] == "quality"]
    if not records:
        return "Not measured yet.\n"
    rows = []
    for record in records:
        cells = (f"{record[key]:.2f}" if key == "novelty" else f"{record[key]:.3f}" for key in keys)
        rows.append([record["way"], *cells])
    words = (
        f"the embedded Debian set, WALS(), a fifth of the entries hidden, lists of 20 for {records[0]['users']:,} users"
    )
    return table(["re-ranking", *keys.values()], rows) + plain_caption(result, words) + "\n"


def rerank_time_table(result: dict) -> str:
    """bench_rerank.py: milliseconds a user."""
    records = [record for record in result["records"] if record["part"] == "time"]
    if not records:
        return "Not measured yet.\n"
    one = records[0]
    rows = [[record["way"], f"{record['ms_per_user']:.2f}"] for record in records]
    words = f"{one['users']:,} users, {one['items']:,} items, {one['factors']} factors, lists of 20, pools of 200; "
    words += (
        f"the search on {result['settings']['threads']} threads of {result['machine']['processor']}, re-ranking on one"
    )
    below = plain_caption(result, words) + busy_words(result["machine"])
    return table(["recommend", "ms a user"], rows) + below + "\n"


def explore_table(result: dict) -> str:
    """bench_explore.py: milliseconds a list of one user, and variances computed for it."""
    rows = []
    for record in result["records"]:
        variances = f"{record['variances']:,.0f}" if record["variances"] else ""
        log = f"{record['log']}, {record['items']:,} items"
        rows.append([log, record["way"], f"{record['ms_a_list']:.3g}", variances])
    words = f"lists of 10, {result['records'][0]['factors']} factors, one user at a time; "
    below = plain_caption(result, words + result["machine"]["processor"]) + busy_words(result["machine"])
    return table(["items", "lists", "ms", "variances"], rows) + below + "\n"


def scale_table(result: dict) -> str:
    """bench_scale.py: what fits on several ranks took, beside what the plan says."""
    header = ["solver, network", "ranks", "s/iteration", "planned", "MiB sent", "planned", "MiB of a rank", "planned"]
    rows = []
    for record in result["records"]:
        name = f"{record['solver']}, {record['network'] or 'one machine'}"
        cells = (record[f"{key}{end}"] for key in ("seconds", "sent_mib", "peak_mib") for end in ("", "_planned"))
        rows.append([name, str(record["ranks"]), *(f"{cell:.3g}" for cell in cells)])
    settings = result["settings"]
    cores = result["machine"]["cores"]
    words = f"{settings['set']}'s shape, {settings['factors']} factors, a thread a rank on {cores} cores; "
    words += "networks: two namespaces, a link of that rate each way; planned: fit_cost with the rate measured before"
    return table(header, rows) + plain_caption(result, words) + "\n"


def read_table(result: dict) -> str:
    """bench_read.py: reading files into interactions, beside polars that reads and sorts them."""
    header = ["file", "MB", "system", "s", "MiB at most", "times polars' s", "times its MiB"]
    rows, by_name = [], {(r["ids"], r["format"], r["system"]): r for r in result["records"]}
    for (ids, kind, system), record in by_name.items():
        beside = by_name[ids, kind, "polars"]
        ratios = (record[name]["median"] / beside[name]["median"] for name in ("seconds", "peak_mib"))
        cells = [f"{record['seconds']['median']:.3g}", f"{record['peak_mib']['median']:.4g}"]
        cells += [f"{ratio:.2f}" for ratio in ratios] if system != "polars" else ["", ""]
        rows.append([f"{kind}, ids are {ids}", f"{record['file_mib'] * 2**20 / 1e6:.0f}", system, *cells])
    settings = result["settings"]
    words = f"{settings['rows']:,} rows of {settings['users']:,} users and {settings['items']:,} items; medians of "
    words += f"{settings['repeats']}; memory beyond that of the process before"
    return table(header, rows) + caption(result, words, packages=("wals_gpu", "polars"))


def job_table(result: dict) -> str:
    """bench_job.py: every step at growing sizes, and what a tenfold of the rows costs it."""
    header = ["step", "rows", "s", "s per million rows", "MiB at most", "MiB written", "times the s", "times the MiB"]
    rows = []
    for name in dict.fromkeys(record["step"] for record in result["records"]):
        before: dict = {}
        for record in (each for each in result["records"] if each["step"] == name):
            cells = [f"{record['rows']:,}", number(record["seconds"]), number(record["seconds"] / record["rows"] * 1e6)]
            cells += [number(record["peak_mib"]), number(record["file_mib"])]
            cells += [f"{record[key] / before[key]:.1f}" if before else "" for key in ("seconds", "peak_mib")]
            rows.append([name, *cells])
            before = record
    settings = result["settings"]
    words = f"{settings['per_user']} rows of each user, {settings['items']:,} items, {settings['factors']} factors, "
    words += f"{settings['iterations']} iterations; each step with its process's start"
    return table(header, rows) + caption(result, words, packages=("wals_gpu",))


def spark_table(result: dict) -> str:
    """bench_spark.py: an iteration and the whole job, beside Spark's own ALS."""
    header = ["system", "s/iteration", "times as fast", "whole job, s", "of it fit", "of it lists", "times as fast"]
    rows = []
    for record in result["records"]:
        cells = [number(record["iteration_seconds"]), f"{record['iteration_seconds_ratio']:.1f}"]
        cells += [number(record[key]) for key in ("job_seconds", "job_fit_seconds", "job_lists_seconds")]
        rows.append([record["system"], *cells, f"{record['job_seconds_ratio']:.1f}"])
    settings = result["settings"]
    users, items, entries = result["shape"]
    words = f"{users:,} users, {items:,} items, {entries:,} ratings, rank {settings['factors']}; the job has "
    words += (
        f"{settings['job_iterations']} iterations and lists of 10 for all users, from Parquet to Parquet; local mode"
    )
    return table(header, rows) + caption(result, words, packages=("wals_gpu", "pyspark"))


TABLES: dict[str, Callable[[dict], str]] = {  # by how the name of the benchmark begins
    "scale": scale_table,
    "spark": spark_table,
    "job": job_table,
    "read": read_table,
    "fit-": fit_table,
    "defaults-choice": defaults_choice_table,
    "defaults": defaults_table,
    "ratings": ratings_table,
    "small-catalogues-choice": small_catalogues_choice_table,
    "small-catalogues": small_catalogues_table,
    "calibration": calibration_table,
    "relaxation": relaxation_table,
    "halves": halves_table,
    "accel": accel_table,
    "converge-": converge_table,
    "threads-": threads_table,
    "compare-trees": compare_trees_table,
    "ann": ann_table,
    "latency": latency_table,
    "serve": serve_table,
    "serve-20000": serve_table,
    "serve-300000": serve_table,
    "topk": topk_table,
    "rows": rows_table,
    "rank": rank_table,
    "explore": explore_table,
    "rerank": rerank_table,
    "settings": settings_table,
    "profile": profile_table,
    "ml1m-leave-one-out": leave_one_out_table,
    "encode": encode_table,
    "arrivals": arrivals_table,
    "ranking-target": ranking_target_table,
    "ranking": ranking_table,
}

#: Other tables of a result file: the name in the markers -> the file, the function.
VIEWS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "ranking-short": ("ranking", ranking_short_table),
    "headline": ("ranking", headline_table),
    "ranking-cost": ("ranking", ranking_cost_table),
    "rerank-time": ("rerank", rerank_time_table),
}


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def load_each(case: str) -> list[dict]:
    """The results of a case that writes a file for each set."""
    names = (path.stem for path in sorted(RESULTS.glob(f"{case}-*.json")) if not path.stem.endswith("quick"))
    return [load(name) for name in names]


def load_sets(case: str) -> dict | None:
    """All of them as one."""
    results = load_each(case)
    return {**results[-1], "records": [record for each in results for record in each["records"]]} if results else None


def load_text() -> dict | None:
    """All results of bench_text.py as one, with the way in which each set was measured."""
    how = {
        record["set"]: (each["settings"]["trials"], each["settings"]["choose"])
        for each in load_each("text")
        for record in each["records"]
    }
    result = load_sets("text")
    return result and {**result, "how": how}


def make_table(name: str) -> str:
    """The table called NAME in the markers."""
    if name.startswith("text") and (result := load_text()):
        if name == "text-cells":
            return text_cells_table(result)
        return text_table(result, ("none", "default", "irspack") if name == "text-short" else ())
    for of_sets, make_one in (("finetune", finetune_table), ("encoders", encoders_table)):
        if name == of_sets and (result := load_sets(name)):
            return make_one(result)
    if name in VIEWS:
        source, make = VIEWS[name]
        exists = (RESULTS / f"{source}.json").exists()
        return make(load(source)) if exists else f"Not measured yet: no results/{source}.json.\n"
    if (RESULTS / f"{name}.json").exists():
        result = load(name)
        kinds = [kind for kind in TABLES if result["benchmark"].startswith(kind)]
        return TABLES[max(kinds, key=len)](result)  # "ranking", not "rank"
    names = (path.relative_to(RESULTS).with_suffix("").as_posix() for path in RESULTS.glob(f"{name}-*.json"))
    ranks = [each for each in names if re.fullmatch(rf"{name}-\d+", each)]
    return ranks_table([load(each) for each in ranks]) if ranks else f"Not measured yet: no results/{name}.json.\n"
