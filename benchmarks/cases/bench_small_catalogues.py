"""The ridge that WALS() takes on small catalogues, regularization="auto": chosen on some logs, measured on others.

    .venv/bin/python benchmarks/cases/bench_small_catalogues.py DATA_FOLDER --choose    # the choice
    .venv/bin/python benchmarks/cases/bench_small_catalogues.py DATA_FOLDER             # what it is worth elsewhere

A small catalogue is a part of a log: of 3,000 users, drawn at random where there are more, the N most popular items, or
N random ones of those that five of them and more have, and the users who have three of these and more. Random items are
sparser than popular ones of the same number, so that the number of items, the density and the entries of a user can be
told apart. A random fifth of the entries is hidden, and the lists of 20 are measured over all users with a hidden entry
(see lib/ranking.py).

`--choose` fits multiples of 0.0117 on the logs of the choice, those with more than 3,000 users also with all of them,
and writes results/small-catalogues-choice.json: the best multiple of each part, and how far rules for it stay below the
best, values between two multiples interpolated. Without it, the logs are others, and the seeds such that nothing was
chosen with; WALS() is compared with 0.0117 and 0.03 for all, with intervals over users, paired. A part with fewer than
200 users to measure is left out. Writes results/small-catalogues.json; with `--all-users`, of popular items on the logs
that have more than 3,000 users and without drawing any, results/small-catalogues-all-users.json.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import _path  # noqa: F401
import numpy as np
from scipy.sparse import csr_matrix

from lib.common import rounded, standard_arguments, write_result
from lib.logs import load_log, split
from lib.ranking import METRICS, K, interval, per_user, resampled, tested_users
from lib.tables import small_catalogues_table
from wals_gpu import WALS
from wals_gpu.objective.presets import usual_regularization

CHOSEN_ON = ("debian", "lastfm-2k", "ml-100k", "citeulike-a")
MEASURED_ON = ("steam-200k", "ml-latest-small", "ml-1m", "amazon-beauty-2014", "anime-5k")
SEEDS = (301, 302, 303)
SIZES = (50, 100, 300, 1000)
CHOICE_SEED = 110
CHOICE_SIZES = (50, 100, 200, 300, 500, 1000, 2000)
MOST_USERS = 3000
KINDS = ("popular", "random")
ALL_USERS = "popular, all users"
RIDGE = 0.0117
MULTIPLES = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
FEWEST_USERS = 200
SETTINGS = {"auto": "auto", "0.0117": RIDGE, "0.03": 0.03}

#: How many times 0.0117 the ridge should be, from the numbers of users, items and entries: what WALS() does, and the
#: best rules of other kinds on earlier splits of the same logs (those with 20 and 8e8: on these very parts). All are at
#: least 1.
RULES = {
    "sqrt(1600 / I), what WALS() does": lambda u, i, z: usual_regularization(i) / RIDGE,
    "24.5 I^-0.4": lambda u, i, z: 24.5 * i**-0.4,
    "20 I^-0.35": lambda u, i, z: 20 * i**-0.35,
    "(8e8 / (I Z))^0.2": lambda u, i, z: (8e8 / (i * z)) ** 0.2,
    "181 U^-0.6": lambda u, i, z: 181 * u**-0.6,
    "6 (Z / U)^-0.3, by the entries of a user": lambda u, i, z: 6 * (z / u) ** -0.3,
    "5 (Z / (U I))^0.2, by the density": lambda u, i, z: 5 * (z / (u * i)) ** 0.2,
    "2.56: 0.03 for all": lambda u, i, z: 0.03 / RIDGE,
    "1: 0.0117 for all": lambda u, i, z: 1.0,
}


def part_of(
    log: csr_matrix, n_items: int, kind: str, seed: int, most_users: int = MOST_USERS
) -> tuple[csr_matrix, np.ndarray]:
    """A small catalogue (U', I'), and the rows of its users in the log."""
    rng = np.random.default_rng(seed)
    rows = np.arange(log.shape[0])
    if len(rows) > most_users:
        rows = np.sort(rng.choice(rows, most_users, replace=False))
    matrix = csr_matrix(log[rows])
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    if kind != "random":
        items = np.argsort(-counts, kind="stable")[:n_items]
    else:
        usable = np.flatnonzero(counts >= 5)
        items = rng.choice(usable, min(n_items, len(usable)), replace=False)
    matrix = csr_matrix(matrix[:, np.sort(items)])
    kept = np.flatnonzero(np.diff(matrix.indptr) >= 3)
    matrix = csr_matrix(matrix[kept])
    matrix.sort_indices()
    return matrix, rows[kept]


def measure(train: csr_matrix, test: csr_matrix, regularization, args) -> dict[str, np.ndarray]:
    """Each metric (U',) of a model with the defaults but the ridge."""
    users = tested_users(test)
    model = WALS(regularization=regularization, num_threads=args.threads, compute_loss=False).fit(train)
    return per_user(np.asarray(model.recommend(users, K)[0]), users, train, test)


def choose(args, folder: Path) -> None:
    records = []
    for name in args.logs or CHOSEN_ON:
        log = load_log(name, folder)
        for kind in (*KINDS, ALL_USERS):
            if kind == ALL_USERS and log.shape[0] <= MOST_USERS:
                continue
            most_users = log.shape[0] if kind == ALL_USERS else MOST_USERS
            for n_items in CHOICE_SIZES[: 2 if args.quick else None]:
                matrix, _ = part_of(log, n_items, kind, CHOICE_SEED, most_users)
                train, test = split(matrix, CHOICE_SEED)
                if matrix.shape[1] < n_items or n_items == log.shape[1] or len(tested_users(test)) < FEWEST_USERS:
                    continue
                found = [measure(train, test, RIDGE * multiple, args)[METRICS[0]] for multiple in MULTIPLES]
                means = [float(np.nanmean(values)) for values in found]
                record = {
                    "log": name,
                    "kind": kind,
                    "items": n_items,
                    "shape": [*matrix.shape, matrix.nnz],
                    "best": MULTIPLES[int(np.argmax(means))],
                    METRICS[0]: [rounded(mean) for mean in means],
                }
                records.append(record)
                print(record, file=sys.stderr, flush=True)
    rules = regrets_of_rules(records)
    of_choice = {"seed_of_choice": CHOICE_SEED, "multiples": list(MULTIPLES), "rules": rules}
    write_result("small-catalogues-choice", args, records, **of_choice)
    print(json.dumps(rules, indent=1))


def regrets_of_rules(records: list[dict]) -> dict[str, dict[str, float]]:
    """How far each rule stays below the best multiple."""
    rules, kinds = {}, np.array([record["kind"] for record in records])
    for name, rule in RULES.items():
        regrets = np.empty(len(records))
        for n, record in enumerate(records):
            multiple = min(max(rule(*record["shape"]), 1.0), MULTIPLES[-1])
            value = np.interp(math.log(multiple), np.log(MULTIPLES), record[METRICS[0]])
            regrets[n] = 1 - value / max(record[METRICS[0]])
        found = {"mean": regrets.mean(), "worst": regrets.max()}
        found |= {kind: regrets[kinds == kind].mean() for kind in dict.fromkeys(kinds.tolist())}
        rules[name] = {key: rounded(float(value), 3) for key, value in found.items()}
    return rules


def compare(args, folder: Path) -> None:
    records = []
    for name in args.logs or MEASURED_ON:
        log = load_log(name, folder)
        if args.all_users and log.shape[0] <= MOST_USERS:
            continue
        for kind in KINDS[: 1 if args.all_users else None]:
            for n_items in SIZES[: 2 if args.quick else None]:
                found = {metric: {setting: [] for setting in SETTINGS} for metric in METRICS}
                shapes = []
                for seed in SEEDS[: 1 if args.quick else None]:
                    matrix, rows = part_of(log, n_items, kind, seed, log.shape[0] if args.all_users else MOST_USERS)
                    train, test = split(matrix, seed)
                    if len(tested_users(test)) < FEWEST_USERS:
                        break
                    shapes.append([*matrix.shape, matrix.nnz])
                    for setting, ridge in SETTINGS.items():
                        measured = measure(train, test, ridge, args)
                        for metric in METRICS:
                            of_log = np.full(log.shape[0], np.nan)  # a user is the same one in all splits
                            of_log[rows] = measured[metric]
                            found[metric][setting].append(of_log)
                else:
                    record = {"log": name, "kind": kind, "items": n_items, "shapes": shapes}
                    for metric in METRICS:
                        means = resampled(found[metric], seed=args.seed)
                        record[metric] = {
                            "mean": {setting: rounded(float(of_setting[0])) for setting, of_setting in means.items()},
                            **{f"gain over {o}": interval(means["auto"] / means[o] - 1) for o in ("0.0117", "0.03")},
                        }
                    records.append(record)
                    print(record, file=sys.stderr, flush=True)
    name = "small-catalogues-all-users" if args.all_users else "small-catalogues"
    path = write_result(name, args, records, seeds=list(SEEDS))
    print(small_catalogues_table(json.loads(path.read_text())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument(
        "--choose", action="store_true", help="measure multiples of the ridge on the logs of the choice"
    )
    parser.add_argument("--all-users", action="store_true", help="popular items, of all users of the larger logs")
    parser.add_argument("--logs", nargs="+", choices=[*CHOSEN_ON, *MEASURED_ON], help="these alone")
    standard_arguments(parser, quick="one seed, two sizes")
    args = parser.parse_args()
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    (choose if args.choose else compare)(args, folder)


if __name__ == "__main__":
    main()
