"""Seconds per iteration of every peer under different settings: how the ones in systems.py were chosen.

    .venv-peers/bin/python benchmarks/cases/find_settings.py

Runs one set and rank with each combination of BLAS threads, OpenBLAS instruction set and solver options that a peer
has, interleaved. Writes results/settings.json; `used` marks the settings of systems.py.
"""

import argparse
import sys
import tempfile

import _path  # noqa: F401
import numpy as np

from lib.common import interleave, run_worker, save_matrix, standard_arguments, summary, write_result
from lib.fits import line_of
from lib.systems import SYSTEMS
from wals_gpu.datasets import SHAPES, synthetic


def variants(threads: int) -> list[tuple[str, dict, dict]]:
    """(system, options, env) of everything to try."""
    one, many = ({"OPENBLAS_NUM_THREADS": str(n), "MKL_NUM_THREADS": str(n)} for n in (1, threads))
    environments = {
        # BLAS of SciPy: OpenBLAS, which picks its kernels by OPENBLAS_CORETYPE
        "implicit": [{}, one, many, *(one | {"OPENBLAS_CORETYPE": core} for core in ("Haswell", "Sapphirerapids"))],
        # BLAS: MKL
        "cmfrec": [{}, one, many, {"MKL_THREADING_LAYER": "GNU"}, {"MKL_THREADING_LAYER": "SEQUENTIAL"}],
        # Eigen and its own threads, no BLAS
        "irspack": [{}],
    }
    result = [(name, {}, env) for name in SYSTEMS for env in environments.get(name.split()[0], [])]
    return result + [("irspack iALS++", {"block": block}, {}) for block in (16, 32, 128)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SHAPES, default="ml-1m")
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    standard_arguments(parser, quick="one repeat at 32 factors, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.factors = 1, 32

    combinations = variants(args.threads)
    runs: list[list[dict]] = [[] for _ in combinations]
    fit = {"factors": args.factors, "iterations": 4, "alpha": 10.0, "ridge": 10.0}
    fit |= {"threads": args.threads, "seed": args.seed}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/matrix.npz"
        save_matrix(path, synthetic(*SHAPES[args.set], random_state=args.seed))
        for _, index in interleave(list(range(len(combinations))), args.repeats, args.seed):
            name, options, env = combinations[index]
            spec = {"system": name, "data": path, "folder": folder, "budget": 15, "checkpoints": []}
            run = run_worker("worker_fit.py", spec | {"fit": fit, "options": options}, env)
            runs[index].append(run)
            print(name, options, env, line_of(run), file=sys.stderr)

    records = []
    for (name, options, env), own_runs in zip(combinations, runs, strict=True):
        record = {"system": name, "options": options, "env": env, "unit": "s/iteration", **fit}
        record["used"] = env == SYSTEMS[name].env and SYSTEMS[name].options | options == SYSTEMS[name].options
        errors = [run["error"] for run in own_runs if "error" in run]
        if errors:
            record["error"] = errors[0]
        else:
            record["seconds_per_iteration"] = summary([np.median(np.diff(run["elapsed"])) for run in own_runs])
        records.append(record)
    write_result("settings", args, records)


if __name__ == "__main__":
    main()
