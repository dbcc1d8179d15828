"""How the defaults of WALS were chosen: random settings of the objective "wals" on every log, regret beside the best.

    .venv/bin/python benchmarks/cases/find_defaults.py DATA_FOLDER

A trial has one set of settings for all logs; its regret on a log is how far it stays below the best trial there. The
first trial is that of the present defaults. Splits have the seed 100, which no other case uses. Writes
results/defaults-choice.json with every trial, the one of lowest mean regret, and for each log what would have been
chosen without it and its regret on it.
"""

import argparse
import sys
import time
from pathlib import Path

import _path  # noqa: F401
import numpy as np

from lib.common import rounded, standard_arguments, write_result
from lib.logs import LOGS, METRIC, load_log, plain, split
from wals_gpu import WALS
from wals_gpu.evaluation import evaluate

SEED = 100
ITERATIONS = (4, 6, 8, 10, 12)


def draw(rng: np.random.Generator) -> dict:
    return {
        "factors": int(rng.choice([128, 256, 256])),
        "init_scale": float(rng.choice([0.1, 0.1, 1.0])),
        "regularization": float(10 ** rng.uniform(-2.3, -1.5)),
        "background": float(10 ** rng.uniform(0.6, 1.4)),
        "exponent": float(rng.choice([0.0, 0.1, 0.2, 0.3, 0.4])),
        "nu": float(rng.choice([0.25, 0.5, 0.75, 1.0])),
        "damping": float(rng.choice([0.0, 0.25, 0.5, 0.75, 1.0])),
    }


def scores(settings: dict, train, test, users: np.ndarray, threads: int) -> list[float]:
    """The metric after each of ITERATIONS, over some of the users."""
    hidden = test.copy()
    hidden.data[:] = 0
    for row in users:
        hidden.data[test.indptr[row] : test.indptr[row + 1]] = 1
    hidden.eliminate_zeros()
    found = []

    def measure(model, record):
        if record.iteration in ITERATIONS:
            report = evaluate(model, train, hidden, 20, baseline=False, n_resamples=0)
            found.append(float(report.results["wals"][METRIC].value))

    model = WALS(**settings, iterations=max(ITERATIONS), compute_loss=False, num_threads=threads)
    model.fit(train, callback=measure)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--users", type=int, default=3000, help="of each log that the metric is taken over, at most")
    standard_arguments(parser, quick="two trials on two logs")
    args = parser.parse_args()
    logs = list(LOGS)
    if args.quick:
        args.trials, logs = 2, ["debian", "ml-100k"]
    data = {}
    for name in logs:
        train, test = split(load_log(name, args.data_folder), SEED)
        users = np.flatnonzero(np.diff(test.indptr))
        rng = np.random.default_rng(SEED)
        if len(users) > args.users:
            users = np.sort(rng.choice(users, args.users, replace=False))
        data[name] = (train, test, users)
    args.data_folder = None  # a matter of the machine
    rng = np.random.default_rng(args.seed)
    trials = []
    for number in range(args.trials):
        settings = {} if number == 0 else draw(rng)
        began = time.perf_counter()
        found = {name: scores(settings, *data[name], args.threads) for name in logs}
        trials.append((settings, found))
        print(number, settings, f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)

    best = {name: max(max(found[name]) for _, found in trials) for name in logs}
    candidates = [
        (settings, iterations, {name: 1 - found[name][place] / best[name] for name in logs})
        for settings, found in trials
        for place, iterations in enumerate(ITERATIONS)
    ]

    def mean_regret(candidate, without=None):
        return float(np.mean([regret for name, regret in candidate[2].items() if name != without]))

    records = []
    for settings, iterations, regrets in sorted(candidates, key=mean_regret):
        records.append(
            {
                "settings": plain(settings) or "defaults",
                "iterations": iterations,
                "mean_regret": rounded(float(np.mean(list(regrets.values())))),
                "worst_regret": rounded(max(regrets.values())),
                "regret": {name: rounded(regret, 3) for name, regret in regrets.items()},
            }
        )
    left_out = {}
    for name in logs:
        settings, iterations, regrets = min(candidates, key=lambda candidate: mean_regret(candidate, name))
        left_out[name] = {"settings": plain(settings) or "defaults", "iterations": iterations}
        left_out[name]["regret"] = rounded(regrets[name], 3)
    write_result("defaults-choice", args, records, best={k: rounded(v) for k, v in best.items()}, left_out=left_out)
    for record in records[:5]:
        print(record)
    print({name: choice["regret"] for name, choice in left_out.items()})


if __name__ == "__main__":
    main()
