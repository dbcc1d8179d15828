"""Fewer iterations of the default objective with over-relaxation: time to the loss, and what the fits rank like.

    .venv/bin/python benchmarks/cases/bench_relaxation.py DATA_FOLDER

A random fifth of the entries of each log is hidden, with seeds that no setting was chosen with. WALS() is fitted on the
rest, and the same with over_relaxation, one after the other for each seed. Each is measured by nDCG@20 over every user
with a hidden entry, after its last iteration and, relaxed, after earlier ones. Seconds are processor time of whole fits
that nothing is measured in (medians over the seeds): what other programs take does not count. Writes
results/relaxation.json.
"""

import argparse
import json
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import _path  # noqa: F401
import numpy as np

from lib.common import rounded, standard_arguments, write_result
from lib.logs import LOGS, METRIC, load_log, split
from lib.tables import relaxation_table
from wals_gpu import WALS
from wals_gpu.evaluation import evaluate

SEEDS = (41, 42, 43)
SYSTEMS = {  # settings, and the iterations that are measured
    "WALS()": ({}, (10,)),
    "relaxed": ({"over_relaxation": 1.3, "iterations": 7}, (5, 6, 7)),
    "relaxed, 2 CG steps": ({"over_relaxation": 1.3, "iterations": 7, "cg_steps": 2}, (5, 6, 7)),
}


def run(settings: dict, measured: tuple[int, ...], train, test, threads: int) -> dict:
    """Loss after each iteration, and nDCG@20 after the measured ones."""
    scores = {}

    def measure(model, record) -> None:
        if record.iteration in measured:
            report = evaluate(model, train, test, 20, baseline=False, n_resamples=0)
            scores[record.iteration] = float(next(iter(report.per_user.values()))[METRIC].mean())

    history = WALS(**settings, num_threads=threads).fit(train, callback=measure).history_
    return {"losses": [record.loss for record in history], "scores": scores}


def ranking(runs: dict[str, list[dict]]) -> dict:
    """Of each system: iterations to the loss of the first one's fits, whether the loss always fell, nDCG@20."""
    goals = [one["losses"][-1] for one in next(iter(runs.values()))]
    systems = {}
    for system, found in runs.items():
        reached = [
            next((i for i, loss in enumerate(one["losses"], 1) if loss <= goal), None)
            for one, goal in zip(found, goals, strict=True)
        ]
        systems[system] = {
            "reached": None if None in reached else max(reached),
            "loss_falls": all(b <= 1.000001 * a for one in found for a, b in pairwise(one["losses"])),
            "ndcg@20": {str(n): [rounded(one["scores"][n], 5) for one in found] for n in SYSTEMS[system][1]},
        }
    return systems


def fit_seconds(settings: dict, train, threads: int) -> float:
    """Processor time, of all threads."""
    start = time.process_time()
    WALS(**settings, num_threads=threads).fit(train)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--logs", nargs="+", default=list(LOGS), choices=list(LOGS))
    parser.add_argument("--scores", type=Path, help="an earlier result file to take all but the seconds from")
    standard_arguments(parser, quick="one seed of a small log")
    args = parser.parse_args()
    seeds = SEEDS
    if args.quick:
        seeds, args.logs = SEEDS[:1], ["ml-100k"]
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    earlier = {} if args.scores is None else {r["log"]: r for r in json.loads(args.scores.read_text())["records"]}
    args.scores = bool(earlier)
    warnings.simplefilter("ignore")
    records = []
    for name in args.logs:
        matrix = load_log(name, folder)
        runs: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
        seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
        for seed in seeds:
            train, test = split(matrix, seed)
            for system in list(SYSTEMS) if seed % 2 else list(SYSTEMS)[::-1]:
                settings, measured = SYSTEMS[system]
                if not earlier:
                    runs[system].append(run(settings, measured, train, test, args.threads))
                seconds[system].append(fit_seconds(settings, train, args.threads))
        systems = earlier[name]["systems"] if earlier else ranking(runs)
        for system, found in seconds.items():
            systems[system]["seconds"] = rounded(float(np.median(found)), 3)
        records.append({"log": name, "shape": [*matrix.shape, matrix.nnz], "systems": systems})
        print(json.dumps(records[-1]), file=sys.stderr, flush=True)
    path = write_result("relaxation", args, records, seeds=list(seeds))
    print(relaxation_table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
