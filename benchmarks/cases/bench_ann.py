"""Recall of approximate indexes, with the dot product itself and with vectors made longer for a metric.

    .venv/bin/python benchmarks/cases/bench_ann.py

Items are the factors of a model of the embedded Debian data, and random vectors whose norms differ much. "Longer
vectors" have one more coordinate that gives all items the same norm (Bachrach et al., RecSys 2014): there the nearest
item by angle or distance is the best one. Recall is the share of the exact ten best that are found. Writes
results/ann.json; runs without the peers. No times are taken.
"""

import argparse
import sys

import _path  # noqa: F401
import numpy as np

from lib.common import default_threads, rounded, write_result
from wals_gpu import WALS
from wals_gpu.ann import AnnIndex
from wals_gpu.datasets import load_debian_packages
from wals_gpu.retrieval import ExactIndex


def debian(n_queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Item factors and some user factors of a model."""
    model = WALS(64, "ials", unobserved_weight=0.005, regularization=0.01, iterations=5)
    model.fit(load_debian_packages().interactions)
    return model.item_factors, model.user_factors[rng.choice(len(model.user_factors), n_queries, replace=False)]


def log_normal(n_queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """5,000 items of random directions and log-normal norms."""
    items = rng.standard_normal((5000, 32), dtype=np.float32)
    items *= np.exp(rng.standard_normal((5000, 1), dtype=np.float32))
    return items, rng.standard_normal((n_queries, 32), dtype=np.float32)


def longer(items: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squares = (items.astype(np.float64) ** 2).sum(axis=1)
    extra = np.sqrt(squares.max() - squares).astype(np.float32)
    return np.column_stack([items, extra]), np.pad(queries, ((0, 0), (0, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ef-search", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the queries")
    args = parser.parse_args()
    args.threads = default_threads()
    n_queries = args.queries // 10 if args.quick else args.queries

    records = []
    for name, make in (("debian", debian), ("log-normal norms", log_normal)):
        plain = make(n_queries, np.random.default_rng(args.seed))
        for vectors, (items, queries) in (("dot product", plain), ("longer vectors", longer(*plain))):
            exact = ExactIndex(np.ascontiguousarray(items))
            for library in ("faiss", "hnswlib", "usearch"):
                ann = AnnIndex(exact, library)
                for ann.ef_search in args.ef_search:
                    recall = rounded(ann.recall(queries, 10))
                    records.append(
                        {"system": library, "items": name, "shape": plain[0].shape, "vectors": vectors}
                        | {"ef_search": ann.ef_search, "recall_at_10": recall}
                    )
                    print(*records[-1].values(), file=sys.stderr)
    write_result("ann", args, records)


if __name__ == "__main__":
    main()
