"""What WALS() ranks like without settings: regret beside tuned "ials" settings, on every log, and beside popularity.

    .venv/bin/python benchmarks/cases/bench_defaults.py DATA_FOLDER

A random fifth of the entries of each log is hidden, with seeds that no setting was chosen with. Each model is fitted on
the rest and measured by nDCG@20 over every user with a hidden entry; users with none left get what is popular, from
each. "ials, tuned" is the best of 48 random settings (24 from wide ranges, 24 from where good ones lie for the density
of the log) and its best iteration, on a fifth of the training entries of a split of its own. Regret is 1 - WALS() /
tuned, with an interval from a bootstrap over users, paired. EASE (Steck 2019), a closed-form item-item model, is there
for logs of up to 8,000 items. Writes results/defaults.json.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import _path  # noqa: F401
import numpy as np
from scipy.sparse import csr_matrix

from lib.common import rounded, standard_arguments, write_result
from lib.logs import (
    LOGS,
    best_iteration,
    draw_ials,
    gain,
    has_values,
    load_log,
    ones_of,
    per_user,
    plain,
    split,
)
from lib.ranking import Ease
from lib.tables import defaults_table
from wals_gpu import WALS
from wals_gpu.evaluation import Popularity

SEEDS = (41, 42, 43)
TUNING_SEED = 21
BEFORE = {"factors": 128, "objective": "implicit", "iterations": 15}
MOST_ITEMS_OF_EASE = 8_000


def tune_ease(train: csr_matrix, valid: csr_matrix) -> float:
    return max((30.0, 100.0, 300.0, 1000.0), key=lambda ridge: float(per_user(Ease(train, ridge), train, valid).mean()))


def tune_ials(train: csr_matrix, valid: csr_matrix, seed: int, trials: int, threads: int) -> dict:
    """The best settings on a validation part, with their best iteration."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(trials):
        settings = draw_ials(train, rng, near=number % 2 == 1)
        found.append(best_iteration(settings, train, valid, 12, threads))
    return max(found, key=lambda trial: trial["score"])


def regret(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> dict:
    """1 - mean of ours / mean of theirs, and a paired interval of 95 % from resampled users."""
    found = gain(ours, theirs, rng)
    return {"value": 0 - found["value"], "low": 0 - found["high"], "high": 0 - found["low"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--logs", nargs="+", default=list(LOGS), choices=list(LOGS))
    parser.add_argument("--tuned", type=Path, help="an earlier result file to take the tuned settings from")
    standard_arguments(parser, quick="four trials, one seed, two logs")
    args = parser.parse_args()
    seeds = SEEDS
    if args.quick:
        args.trials, seeds, args.logs = 4, SEEDS[:1], ["debian", "ml-100k"]
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    earlier = {} if args.tuned is None else {r["log"]: r for r in json.loads(args.tuned.read_text())["records"]}
    args.tuned = bool(earlier)
    records = []
    for name in args.logs:
        began = time.perf_counter()
        matrix = load_log(name, folder)
        shape = [*matrix.shape, matrix.nnz]
        counted = ones_of(matrix)
        with_ease = matrix.shape[1] <= MOST_ITEMS_OF_EASE
        if name in earlier:
            tuned, ridge = dict(earlier[name]["tuned"]), earlier[name]["ease_ridge"]
            score = tuned.pop("validation")
        else:
            train, _ = split(counted, TUNING_SEED)
            tuned = tune_ials(*split(train, TUNING_SEED), args.seed, args.trials, args.threads)
            score = tuned.pop("score")
            ridge = tune_ease(*split(train, TUNING_SEED)) if with_ease else None
        found: dict[str, list[np.ndarray]] = {}
        seconds = []
        for seed in seeds:
            train, test = split(matrix, seed)
            ones = ones_of(train)
            models = {
                "popularity": (Popularity(train), train),
                "WALS()": (WALS(num_threads=args.threads), train),
                "WALS() before": (WALS(**BEFORE, num_threads=args.threads), train),
                "ials as it is": (WALS(128, "ials", iterations=15, num_threads=args.threads), ones),
                "ials, tuned": (WALS(**tuned, num_threads=args.threads), ones),
            }
            if has_values(matrix):
                models["WALS(), ones"] = (WALS(num_threads=args.threads), ones)
                models["WALS() before, ones"] = (WALS(**BEFORE, num_threads=args.threads), ones)
            for system, (model, data) in models.items():
                start = time.perf_counter()
                if isinstance(model, WALS):
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        model.fit(data)
                if system == "WALS()":
                    seconds.append(time.perf_counter() - start)
                found.setdefault(system, []).append(per_user(model, data, test))
            if with_ease:
                found.setdefault("EASE", []).append(per_user(Ease(ones, ridge), ones, test))
        joined = {system: np.concatenate(values) for system, values in found.items()}
        rng = np.random.default_rng(args.seed)
        for ours in ("WALS()", "WALS(), ones"):
            if ours not in joined:
                continue
            record = {
                "log": name,
                "values": "ones" if ours.endswith("ones") else "own",
                "shape": shape,
                "users": len(joined[ours]),
                "ndcg@20": {system: rounded(float(values.mean())) for system, values in joined.items()},
                "of_seeds": {system: [rounded(float(v.mean())) for v in values] for system, values in found.items()},
                "regret": regret(joined[ours], joined["ials, tuned"], rng),
                "over_popularity": rounded(float(joined[ours].mean() / joined["popularity"].mean())),
                "tuned": plain(tuned) | {"validation": rounded(score)},
                "ease_ridge": ridge,
                "fit_seconds": rounded(float(np.median(seconds)), 3),
            }
            records.append(record)
            print(name, record["values"], record["ndcg@20"], record["regret"], file=sys.stderr)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    regrets = [record["regret"]["value"] for record in records]
    summary = {"mean_regret": rounded(float(np.mean(regrets))), "worst_regret": rounded(max(regrets))}
    summary["least_over_popularity"] = min(record["over_popularity"] for record in records)
    path = write_result("defaults", args, records, seeds=list(seeds), summary=summary)
    print(defaults_table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
