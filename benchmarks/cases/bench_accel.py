"""One program written for implicit, run unchanged with implicit and through `python -m wals_gpu.accel`.

    .venv/bin/python benchmarks/cases/bench_accel.py                # about a minute and a half

The program is implicit_script.py: fit, recommend to all users, evaluate. Each run is a fresh process, the two ways
interleaved, both with one BLAS thread, as implicit asks for. Writes results/accel.json; needs implicit alone.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import _path  # noqa: F401
from scipy.sparse import save_npz

from lib.common import default_threads, interleave, rounded, run_worker, summary, write_result
from lib.systems import ONE_BLAS_THREAD
from wals_gpu.datasets import SHAPES, synthetic

WAYS = {"implicit": [], "wals_gpu": ["-m", "wals_gpu.accel"]}
MODULES = {"implicit": "implicit.cpu.als", "wals_gpu": "wals_gpu.als"}
#: The program's argument beside the data, and what it does then.
CASES = {"": "15 iterations of CG (the default)", "cholesky": "3 iterations of Cholesky"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SHAPES, default="ml-1m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    args = parser.parse_args()
    args.threads = default_threads()

    runs: dict[tuple, list[dict]] = {(way, case): [] for case in CASES for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.npz"
        save_npz(path, synthetic(*SHAPES[args.set], random_state=args.seed))
        for repeat, (way, case) in interleave(list(runs), 1 if args.quick else args.repeats, args.seed):
            arguments = [str(path), *filter(None, [case])]
            run = run_worker("implicit_script.py", arguments, ONE_BLAS_THREAD, through=WAYS[way])
            if run.get("class") != MODULES[way]:
                raise SystemExit(f"{way}: {run.get('error', run)}")
            runs[way, case].append(run)
            print(repeat, way, case, {part: rounded(s) for part, s in run["seconds"].items()}, file=sys.stderr)

    records = []
    for (way, case), own_runs in runs.items():
        seconds = {part: summary([run["seconds"][part] for run in own_runs]) for part in own_runs[0]["seconds"]}
        record = {"system": way, "case": CASES[case], "set": args.set, "factors": 128, "unit": "s"}
        records.append(record | {"seconds": seconds, "ndcg_at_10": rounded(own_runs[0]["ndcg"])})
    write_result("accel", args, records, env=ONE_BLAS_THREAD)


if __name__ == "__main__":
    main()
