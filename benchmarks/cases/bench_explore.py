"""What lists that explore take beside plain ones, and how many variances upper confidence bounds need.

    .venv/bin/python benchmarks/cases/bench_explore.py

Lists of 10 for one user at a time, of the embedded Debian set and of synthetic users, the ways interleaved: plain, by
upper confidence bounds, by bounds from the variances of all items (``predict(return_std=True)``, the same lists), and
by draws. No peer has either. Writes results/explore.json.
"""

import argparse
import json
import sys
import time

import _path  # noqa: F401
import numpy as np
from scipy.sparse import csr_matrix

from lib.common import rounded, standard_arguments, write_result
from lib.tables import explore_table
from wals_gpu import WALS
from wals_gpu.datasets import load_debian_packages, synthetic
from wals_gpu.retrieval import UCB, Thompson, explore

K = 10
NOISE = 0.5
WAYS = ("plain", "upper bounds", "upper bounds, variances of all items", "draws")


def list_of(model: WALS, matrix: csr_matrix, user: int, way: str) -> np.ndarray:
    """K items for a user."""
    if way == WAYS[2]:
        items = np.arange(model.n_items)
        scores, deviations = model.predict(np.full(len(items), user), items, return_std=True, noise=NOISE)
        bounds = scores + deviations
        bounds[matrix[user].indices] = -np.inf  # seen
        return np.argsort(-bounds, kind="stable")[:K]
    how = {"plain": None, "upper bounds": UCB(NOISE), "draws": Thompson(NOISE, seed=0)}[way]
    return model.recommend([user], K, explore=how).ids[0]


def measure(log: str, matrix: csr_matrix, factors: int, n_users: int, args: argparse.Namespace) -> list[dict]:
    model = WALS(factors, num_threads=args.threads).fit(matrix)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    variances_by, counted = explore.variances_by, []

    def counting(factor: np.ndarray, items: np.ndarray) -> np.ndarray:
        counted.append(len(items))
        return variances_by(factor, items)

    explore.variances_by = counting
    for user in np.random.default_rng(args.seed).choice(matrix.shape[0], n_users, replace=False):
        found = {}
        for way in WAYS:
            began = time.perf_counter()
            found[way] = list_of(model, matrix, user, way)
            seconds[way].append(time.perf_counter() - began)
        assert (found[WAYS[1]] == found[WAYS[2]]).all()
    explore.variances_by = variances_by
    variances = (0, sum(counted) / n_users, matrix.shape[1], 0)
    shape = {"log": log, "users": matrix.shape[0], "items": matrix.shape[1], "factors": factors, "lists": n_users}
    return [
        shape | {"way": way, "ms_a_list": rounded(1e3 * float(np.median(seconds[way]))), "variances": rounded(n)}
        for way, n in zip(WAYS, variances, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=100, help="who get lists (default 100)")
    standard_arguments(parser, quick="few users and factors")
    args = parser.parse_args()
    factors, n_users = (16, 5) if args.quick else (128, args.users)
    shape = (500, 900, 5_000) if args.quick else (20_000, 50_000, 1_000_000)
    logs = {
        "debian": load_debian_packages().interactions.matrix,
        "synthetic": synthetic(*shape, random_state=args.seed),
    }
    records = []
    for log, matrix in logs.items():
        records += measure(log, matrix, factors, n_users, args)
        print(*records[-len(WAYS) :], sep="\n", file=sys.stderr, flush=True)
    print(explore_table(json.loads(write_result("explore", args, records).read_text())))


if __name__ == "__main__":
    main()
