"""Seconds that wals_gpu, implicit and irspack take to come within 0.1 % of the exact solver's final loss.

    .venv-peers/bin/python benchmarks/cases/bench_converge.py ml-20m --factors 128

The final loss is that of wals_gpu's exact solver after --iterations. Every system is fitted once, in a process of its
own, until it is over --budget; the loss of each iteration is computed here, in float64. A system's time is that of
its first iteration within reach. Writes results/converge-<set>-<factors>.json.
"""

import argparse
import sys
import tempfile

import _path  # noqa: F401

from lib.common import save_matrix, standard_arguments, write_result
from lib.fits import problem_arguments, run_system
from lib.systems import SYSTEMS
from wals_gpu.datasets import SHAPES, synthetic

REFERENCE = "wals_gpu exact"
OTHERS = ["wals_gpu CG, relaxed", "wals_gpu exact, relaxed", "wals_gpu CG", "wals_gpu subspace", "implicit CG"]
OTHERS += ["irspack CG", "irspack Cholesky", "irspack iALS++"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    problem_arguments(parser)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--within", type=float, default=1e-3, help="relative distance from the final loss")
    parser.add_argument("--budget", type=float, default=120, help="seconds after which a fit ends")
    parser.add_argument("--systems", nargs="*", default=OTHERS, choices=SYSTEMS, metavar="SYSTEM")
    standard_arguments(parser, quick="five iterations, to try the script")
    args = parser.parse_args()
    if args.quick:
        args.iterations, args.within = 5, 0.1
    return args


def main() -> None:
    args = parse()
    matrix = synthetic(*SHAPES[args.set], random_state=args.seed)
    # Every other iteration of the later ones: each costs the time and the disk of its factors, outside the clock.
    checkpoints = [n for n in range(2, args.iterations + 1) if n <= 8 or n % 2 == 0 or n == args.iterations]
    records, final = [], None
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/matrix.npz"
        save_matrix(path, matrix)
        for name in [REFERENCE, *(name for name in args.systems if name != REFERENCE)]:
            run = run_system(name, args, path, matrix, checkpoints)
            if "error" in run:
                records.append({"system": name, "error": run["error"]})
                continue
            if name == REFERENCE:
                final = run["losses"][-1]["loss"]
            reached = next((at for at in run["losses"] if at["loss"] <= final * (1 + args.within)), None)
            records.append(
                {
                    "system": name,
                    "kind": SYSTEMS[name].kind,
                    "reached": reached,
                    "iterations": len(run["elapsed"]),
                    "losses": run["losses"],
                    "options": SYSTEMS[name].options,
                }
            )
            print(name, reached or f"not within {run['elapsed'][-1]:.0f} s", file=sys.stderr)
    write_result(f"converge-{args.set}-{args.factors}", args, records, final_loss=final, shape=[*matrix.shape])


if __name__ == "__main__":
    main()
