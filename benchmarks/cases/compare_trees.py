"""Fits of two source trees of wals_gpu beside each other: the same times, the same bits?

    .venv/bin/python benchmarks/cases/compare_trees.py --before CHECKOUT --after CHECKOUT

For a change that should leave both alone. Each tree is a checkout whose native modules are built in place
(`python setup.py build_ext --inplace`). Every fit runs in a process of its own with the tree in PYTHONPATH, the trees
in turns: before, after, in the next repeat after, before. A ratio is after over before within one repeat; the table has
its median and quartiles over the repeats. The same tree on both sides shows how much of a ratio is chance. Prints the
table and writes results/compare-trees.json; runs without the peers.
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import _path  # noqa: F401
import numpy as np

from lib.common import commit_of, run_worker, save_matrix, standard_arguments, summary, write_result
from lib.fits import line_of, record_of
from lib.systems import SYSTEMS
from lib.tables import compare_trees_table, load
from wals_gpu.datasets import SHAPES, synthetic

CASES = [("wals_gpu exact", 64), ("wals_gpu exact", 128), ("wals_gpu CG", 128)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--after", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--set", choices=SHAPES, default="ml-20m")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=10.0, help="slope of the confidence")
    parser.add_argument("--ridge", type=float, default=10.0)
    standard_arguments(parser, quick="one repeat of three iterations on the smallest set, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.set, args.repeats, args.iterations = "ml-1m", 1, 3
    return args


def facts(tree: Path) -> dict:
    """Commit of a tree and digests of its native modules; SystemExit where they are not built."""
    modules = sorted((tree / "wals_gpu").rglob("*.so"))
    if not modules:
        raise SystemExit(f"{tree} has no native modules: run `python setup.py build_ext --inplace` there")
    native = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in modules}
    return {"commit": commit_of(tree), "native": native}


def fit(tree: Path, system: str, factors: int, args: argparse.Namespace, data: str, folder: str) -> dict:
    """One fit with the wals_gpu of `tree`; its last factors lie in `folder` then."""
    keys = ("iterations", "alpha", "ridge", "threads", "seed")
    spec = {"system": system, "data": data, "folder": folder, "budget": 3600.0, "checkpoints": [args.iterations]}
    spec["fit"] = {"factors": factors} | {key: getattr(args, key) for key in keys}
    run = run_worker("worker_fit.py", spec, SYSTEMS[system].env | {"PYTHONPATH": str(tree)})
    if "error" in run:
        raise SystemExit(f"{tree}, {system}, {factors} factors: {run['error']}")
    if tree not in Path(run["module_file"]).resolve().parents:
        raise SystemExit(f"{tree}: the process imported {run['module_file']} instead")
    return run


def largest_difference(folders: list[str], iteration: int) -> float:
    """Largest difference between the factors in two folders; 0 where they are the same bits."""
    before, after = (np.load(f"{folder}/{iteration}.npz") for folder in folders)
    if all(before[name].tobytes() == after[name].tobytes() for name in before.files):
        return 0.0
    return max(float(np.abs(before[name] - after[name]).max()) for name in before.files)


def main() -> None:
    args = parse()
    trees = {"before": args.before.resolve(), "after": args.after.resolve()}
    about = {name: facts(tree) for name, tree in trees.items()}
    matrix = synthetic(*SHAPES[args.set], random_state=args.seed)
    runs: dict[tuple, dict[str, list[dict]]] = {case: {name: [] for name in trees} for case in CASES}
    differences: dict[tuple, list[float]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/matrix.npz"
        save_matrix(data, matrix)
        folders = {name: f"{folder}/{name}" for name in trees}
        for path in folders.values():
            Path(path).mkdir()
        for repeat in range(args.repeats):
            for case in CASES:
                for name in list(trees)[:: -1 if repeat % 2 else 1]:
                    run = fit(trees[name], *case, args, data, folders[name])
                    runs[case][name].append(run)
                    print(repeat, *case, name, line_of(run), file=sys.stderr)
                differences[case].append(largest_difference(list(folders.values()), args.iterations))

    shared = {"shape": [*matrix.shape, int(matrix.nnz)], "dtype": "float32", "device": "cpu"}
    shared |= {"threads": args.threads, "seed": args.seed, "unit": "s/iteration"}
    records, comparisons = [], []
    for (system, factors), by_tree in runs.items():
        records += [record_of(system, by_tree[name]) | {"tree": name, "factors": factors} | shared for name in trees]
        pairs = list(zip(by_tree["before"], by_tree["after"], strict=True))
        per_iteration = [[np.median(np.diff(run["elapsed"])) for run in pair] for pair in pairs]
        comparisons.append(
            {
                "system": system,
                "factors": factors,
                "iteration_ratio": summary([after / before for before, after in per_iteration]),
                "fit_ratio": summary([after["fit_seconds"] / before["fit_seconds"] for before, after in pairs]),
                "largest_difference": max(differences[system, factors]),
            }
        )
    args.before, args.after = args.before.name, args.after.name  # the result holds none of this machine's paths
    path = write_result("compare-trees", args, records, trees=about, comparisons=comparisons)
    print(compare_trees_table(load(path.stem)))


if __name__ == "__main__":
    main()
