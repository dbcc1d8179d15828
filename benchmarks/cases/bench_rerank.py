"""What re-ranking takes from the hits of lists, what it gives to their diversity, and how long it takes.

    .venv/bin/python benchmarks/cases/bench_rerank.py

Quality: a random fifth of the embedded Debian set is hidden, WALS() fitted on the rest, and lists of 20 measured over
users with a hidden entry, with each way of re-ranking. Intra-list diversity is measured by the factors, which lists are
re-ranked by, and by vectors that nothing here has seen: 64 singular vectors of the TF-IDF of the packages' texts (needs
scikit-learn). Time: users, items and factors drawn at random, lists of 20 from pools of 200; the search alone, which
finds 20 or the 200, and with re-ranking, interleaved. Writes results/rerank.json; with --part only one of the two is
measured, and the other one kept.
"""

import argparse
import json
import sys
import time

import _path  # noqa: F401
import numpy as np

from lib.common import RESULTS, rounded, standard_arguments, write_result
from lib.logs import split
from lib.tables import rerank_table, rerank_time_table
from wals_gpu import WALS
from wals_gpu.datasets import load_debian_packages
from wals_gpu.evaluation import Popularity, ranking_metrics
from wals_gpu.retrieval import DPP, MMR

K = 20
#: How lists are re-ranked: what a table says, and options of ``recommend``.
WAYS = {
    "none": {},
    "MMR 0.1": {"diversity": MMR(0.1)},
    "MMR 0.3": {"diversity": MMR(0.3)},
    "MMR 0.5": {"diversity": MMR(0.5)},
    "DPP 0.1": {"diversity": DPP(0.1)},
    "DPP 0.3": {"diversity": DPP(0.3)},
    "DPP 0.5": {"diversity": DPP(0.5)},
    "popularity penalty 0.1": {"popularity_penalty": 0.1},
    "popularity penalty 0.3": {"popularity_penalty": 0.3},
}
METRICS = ("ndcg", "recall", "intra_list_diversity", "serendipity", "novelty", "coverage")


def text_vectors(texts: list[str], seed: int) -> np.ndarray:
    """Of texts (n, 64): what their words say, whoever names whom."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(min_df=3, stop_words="english", sublinear_tf=True).fit_transform(texts)
    return TruncatedSVD(64, random_state=seed).fit_transform(words)


def measure_quality(args: argparse.Namespace) -> list[dict]:
    data = load_debian_packages()
    matrix = data.interactions.matrix
    train, test = split(matrix, args.seed)
    rng = np.random.default_rng(args.seed)
    asked = np.flatnonzero(np.diff(test.indptr))
    asked = np.sort(rng.permutation(asked)[: 300 if args.quick else args.users])
    test = test[asked]
    texts = text_vectors(data.items["text"].to_pylist()[: matrix.shape[1]], args.seed)
    settings = {"factors": 16, "iterations": 2} if args.quick else {}
    model = WALS(num_threads=args.threads, **settings).fit(train)
    records = []
    expected = Popularity(train).recommend(asked, K)[0]
    for name, options in WAYS.items():
        ids = model.recommend(asked, K, **options).ids
        found = ranking_metrics(ids, test, K, train=train, expected=expected, vectors=model.item_factors)
        record = {"part": "quality", "way": name, "users": len(asked)}
        record |= {metric: rounded(found[f"{metric}@{K}"]) for metric in METRICS}
        by_text = ranking_metrics(ids, test, K, vectors=texts)[f"intra_list_diversity@{K}"]
        records.append(record | {"diversity_of_texts": rounded(by_text)})
        print(records[-1], file=sys.stderr, flush=True)
    return records


def measure_time(args: argparse.Namespace) -> list[dict]:
    n_users, n_items, factors = (500, 2000, 16) if args.quick else (10_000, 20_000, 128)
    rng = np.random.default_rng(args.seed)
    model = WALS(factors, num_threads=args.threads)
    model.user_factors = rng.normal(size=(n_users, factors)).astype(np.float32)
    model.item_factors = rng.normal(size=(n_items, factors)).astype(np.float32)
    users, labels = np.arange(n_users), rng.integers(0, 100, n_items)
    ways = {
        "search for 20": (K, {}),
        "search for 200": (200, {}),
        "MMR": (K, {"diversity": MMR(0.3, pool=200)}),
        "DPP": (K, {"diversity": DPP(0.3, pool=200)}),
        "quotas, 2 of each of 100 categories": (K, {"quotas": 2, "categories": labels}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 if args.quick else 3):
        for name, (k, options) in ways.items():
            began = time.perf_counter()
            model.recommend(users, k, filter_seen=False, **options)
            seconds[name].append(time.perf_counter() - began)
    shape = {"part": "time", "users": n_users, "items": n_items, "factors": factors}
    return [
        shape | {"way": name, "ms_per_user": rounded(1e3 * float(np.median(times)) / n_users)}
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["quality", "time"], help="default: both")
    parser.add_argument("--users", type=int, default=5000, help="whose lists are measured (default 5000)")
    standard_arguments(parser, quick="few users and factors")
    args = parser.parse_args()
    records = []
    for part, measure in (("quality", measure_quality), ("time", measure_time)):
        if args.part in (None, part):
            records += measure(args)
        elif (path := RESULTS / f"rerank{'-quick' if args.quick else ''}.json").exists():
            records += [record for record in json.loads(path.read_text())["records"] if record["part"] == part]
    result = json.loads(write_result("rerank", args, records).read_text())
    print(rerank_table(result))
    print(rerank_time_table(result))


if __name__ == "__main__":
    main()
