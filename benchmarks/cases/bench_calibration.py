"""What popularity_exponent is worth on top of WALS() as it is: fixed exponents, and the one that validation chooses.

    .venv/bin/python benchmarks/cases/bench_calibration.py DATA_FOLDER

A random fifth of the entries of each log is hidden, with seeds that nothing was chosen with. WALS() is fitted on the
rest and measured by nDCG@20 over every user with a hidden entry, with each exponent. "auto" is chosen in a fit of its
own, WALS(popularity_exponent="auto").fit(train, validation=0.1), and measured twice: in that fit beside an exponent of
0, and as a number in the fit on the whole of the training entries. Gains are relative to an exponent of 0 of the same
fit, with intervals from a bootstrap over users, paired. "fold-in" is what would be chosen without a validation: a
fifth of the entries of 2,500 users is set aside, the users are folded in from the rest and asked for it; the items
were fitted with all of it. Writes results/calibration.json.
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
from lib.logs import LOGS, METRIC, gain, load_log, per_user, split
from lib.tables import calibration_table
from wals_gpu import WALS
from wals_gpu.evaluation import random_holdout
from wals_gpu.training.calibration import choose_popularity_exponent

SEEDS = (71, 72, 73)
EXPONENTS = (-0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2)
USERS = 2500


def with_exponent(model: WALS, exponent: float, train: csr_matrix, test: csr_matrix) -> np.ndarray:
    model.popularity_exponent_ = exponent
    return per_user(model, train, test)


def by_folding_in(model: WALS, train: csr_matrix) -> tuple[float, float]:
    """The exponent that users are found best with who are folded in from a part of what the items were fitted with.

    And the seconds of the choice alone, which are those of every choice.
    """
    rng = np.random.default_rng(0)
    users = np.flatnonzero(np.diff(train.indptr) > 1)
    rows = train[np.sort(rng.permutation(users)[:USERS])]
    known, hidden = random_holdout(rows, 0.2, 0)
    found = (model.fold_in(known), model.item_factors, model.fitted.popularity(), known, hidden, model._backend)
    start = time.perf_counter()
    exponent, _ = choose_popularity_exponent(*found)
    return exponent, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--logs", nargs="+", default=list(LOGS), choices=list(LOGS))
    parser.add_argument("--beside", type=Path, help="an earlier result file, whose other logs are kept")
    standard_arguments(parser, quick="one seed, two logs")
    args = parser.parse_args()
    seeds = SEEDS
    if args.quick:
        seeds, args.logs = SEEDS[:1], ["debian", "ml-100k"]
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    records = []
    for name in args.logs:
        began = time.perf_counter()
        matrix = load_log(name, folder)
        fixed: dict[float, list[np.ndarray]] = {exponent: [] for exponent in EXPONENTS}
        auto, own_auto, own_zero = [], [], []
        chosen, folded, seconds = [], [], []
        for seed in seeds:
            train, test = split(matrix, seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = WALS(num_threads=args.threads, compute_loss=False).fit(train)
                half = WALS(num_threads=args.threads, compute_loss=False, popularity_exponent="auto")
                half.fit(train, validation=0.1, metric=METRIC)
            chosen.append(half.popularity_exponent_)
            exponent, took = by_folding_in(model, train)
            folded.append(exponent)
            seconds.append(took)
            for exponent in EXPONENTS:
                fixed[exponent].append(with_exponent(model, exponent, train, test))
            auto.append(with_exponent(model, chosen[-1], train, test))
            own = half.fitted.seen
            own_auto.append(with_exponent(half, chosen[-1], own, test))
            own_zero.append(with_exponent(half, 0.0, own, test))
        rng = np.random.default_rng(args.seed)
        joined = {exponent: np.concatenate(values) for exponent, values in fixed.items()}
        means = {exponent: float(values.mean()) for exponent, values in joined.items()}
        best = max(means, key=means.__getitem__)
        record = {
            "log": name,
            "users": len(joined[0.0]),
            "ndcg@20": {f"{exponent:g}": rounded(value) for exponent, value in means.items()},
            "best": best,
            "gain": {f"{e:g}": gain(v, joined[0.0], rng) for e, v in joined.items() if e},
            "chosen": chosen,
            "by_folding_in": folded,
            "auto": gain(np.concatenate(auto), joined[0.0], rng),
            "auto_own_fit": gain(np.concatenate(own_auto), np.concatenate(own_zero), rng),
            "seconds_of_a_choice": rounded(float(np.median(seconds)), 2),
        }
        records.append(record)
        print(name, record, f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    if args.beside is not None and args.beside.exists():
        earlier = json.loads(args.beside.read_text())["records"]
        records += [record for record in earlier if record["log"] not in args.logs]
    args.beside = args.beside is not None
    order = list(LOGS)
    records.sort(key=lambda record: order.index(record["log"]))
    summary = {"exponents": {}}
    for exponent in (f"{e:g}" for e in EXPONENTS if e):
        values = [record["gain"][exponent]["value"] for record in records]
        summary["exponents"][exponent] = {"mean": rounded(float(np.mean(values))), "worst": min(values)}
    for kind in ("auto", "auto_own_fit"):
        values = [record[kind]["value"] for record in records]
        summary[kind] = {"mean": rounded(float(np.mean(values))), "worst": min(values)}
    path = write_result("calibration", args, records, seeds=list(seeds), summary=summary)
    print(calibration_table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
