"""What a column of ratings is best taken for: every row a like weighted by its value, every row alike, or likes only.

    .venv/bin/python benchmarks/cases/bench_ratings.py DATA_FOLDER

A random fifth of the ratings is hidden, of three seeds; relevant are the hidden ones from 4 of 5 (8 of 10) on. Each way
of reading the rest is fitted with the defaults and measured by nDCG@20 over the users with a relevant item, all of what
they rated left out. Writes results/ratings.json, with paired intervals over users.
"""

import argparse
import sys
from pathlib import Path

import _path  # noqa: F401
import numpy as np
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from lib.common import rounded, standard_arguments, write_result
from lib.logs import METRIC, ones_of, split
from wals_gpu import WALS, as_interactions
from wals_gpu.evaluation import ranking_metrics
from wals_gpu.evaluation.metrics import row_metrics

SEEDS = (41, 42, 43)
SETS = {
    "ml-100k": ("ml-100k/interactions.parquet", 4.0),
    "ml-latest-small": ("ml-latest-small/interactions.parquet", 4.0),
    "anime-5k": ("anime-5k/ratings.parquet", 8.0),
}


def from_value(matrix: csr_matrix, lowest: float) -> csr_matrix:
    """The entries from a value on."""
    kept = matrix.copy()
    kept.data = np.where(matrix.data >= lowest, matrix.data, 0)
    kept.eliminate_zeros()
    return kept


def per_user(data: csr_matrix, rated: csr_matrix, liked: csr_matrix, threads: int) -> np.ndarray:
    """The metric of the defaults fitted on `data`; nobody is shown what they have `rated`."""
    model = WALS(num_threads=threads).fit(data)
    users = np.flatnonzero(np.diff(liked.indptr))
    ids, _ = model.recommend(users, 20, filter_seen=False, deny=rated[users])
    assert ranking_metrics(ids, liked[users], 20)["users"] == len(users)
    return row_metrics(ids, liked[users], [20], None)[METRIC]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_folder", type=Path)
    standard_arguments(parser, quick="one seed, one set")
    args = parser.parse_args()
    seeds, sets = (SEEDS[:1], ["ml-100k"]) if args.quick else (SEEDS, list(SETS))
    folder, args.data_folder = args.data_folder, None  # a matter of the machine
    records = []
    for name in sets:
        path, lowest = SETS[name]
        table = pq.read_table(folder / path)
        user, item, value = table.column_names[:3]
        matrix = as_interactions(table, user_column=user, item_column=item, value_column=value).matrix
        found: dict[str, list[np.ndarray]] = {}
        for seed in seeds:
            train, test = split(matrix, seed)
            liked = from_value(test, lowest)
            ways = {"weighted": train, "alike": ones_of(train), "likes only": from_value(train, lowest)}
            for way, data in ways.items():
                found.setdefault(way, []).append(per_user(data, train, liked, args.threads))
        joined = {way: np.concatenate(values) for way, values in found.items()}
        rng = np.random.default_rng(args.seed)
        record = {"log": name, "liked_from": lowest, "users": len(joined["weighted"])}
        for way, values in joined.items():
            record[way] = rounded(float(values.mean()))
            if way != "weighted":
                difference = joined["weighted"] - values
                means = [difference[rng.integers(0, len(values), len(values))].mean() for _ in range(1000)]
                low, high = np.quantile(means, [0.025, 0.975])
                record[f"weighted - {way}"] = [rounded(float(v), 3) for v in (difference.mean(), low, high)]
        records.append(record)
        print(record, file=sys.stderr, flush=True)
    write_result("ratings", args, records, seeds=list(seeds))


if __name__ == "__main__":
    main()
