"""What a model that is saved with dtype="float16" ranks like, and how much room it takes.

    .venv/bin/python benchmarks/cases/bench_halves.py DATA_FOLDER

A random fifth of the entries of each log is hidden; WALS() is fitted on the rest, saved as it is and with
dtype="float16", loaded from both folders, and measured by nDCG@20 over every user with a hidden entry. Writes
results/halves.json.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path

import _path  # noqa: F401
import numpy as np

from lib.common import rounded, standard_arguments, write_result
from lib.logs import LOGS, METRIC, load_log, split
from lib.tables import halves_table
from wals_gpu import WALS
from wals_gpu.evaluation import evaluate

SEEDS = (41, 42, 43)
SHOWN = ("debian", "steam-200k", "lastfm-2k", "ml-1m", "citeulike-a")


def mib(folder: Path) -> float:
    return rounded(sum(path.stat().st_size for path in folder.iterdir()) / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("--logs", nargs="+", default=list(SHOWN), choices=list(LOGS))
    parser.add_argument("--splits", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    standard_arguments(parser, quick="one seed of a small log")
    args = parser.parse_args()
    seeds = SEEDS[: args.splits]
    if args.quick:
        seeds, args.logs = SEEDS[:1], ["ml-100k"]
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    records = []
    for name in args.logs:
        matrix = load_log(name, folder)
        scores: dict[str, list[float]] = {"whole": [], "halves": []}
        same, sizes = [], {}
        for seed in seeds:
            train, test = split(matrix, seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = WALS(num_threads=args.threads).fit(train)
            lists = {}
            with tempfile.TemporaryDirectory() as temporary:
                for kind, dtype in (("whole", None), ("halves", "float16")):
                    path = Path(temporary, kind)
                    fitted.save(path, dtype=dtype)
                    sizes[kind] = mib(path)
                    model = WALS.load(path, num_threads=args.threads)
                    report = evaluate(model, train, test, 20, baseline=False, n_resamples=0)
                    scores[kind].append(float(next(iter(report.per_user.values()))[METRIC].mean()))
                    lists[kind] = model.recommend(np.arange(train.shape[0]), k=20)[0]
            same.append(float((lists["whole"][:, 0] == lists["halves"][:, 0]).mean()))
        record = {"log": name, "shape": [*matrix.shape, matrix.nnz], "mib": sizes, "same_first": rounded(min(same))}
        record["ndcg@20"] = {kind: rounded(float(np.mean(values)), 5) for kind, values in scores.items()}
        record["largest_difference"] = rounded(float(np.abs(np.subtract(*scores.values())).max()), 3)
        records.append(record)
        print(record, file=sys.stderr, flush=True)
    path = write_result("halves", args, records, seeds=list(seeds))
    print(halves_table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
