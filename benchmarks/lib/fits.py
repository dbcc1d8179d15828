"""One fit of a system in a process of its own, and the record that its repeats make: what cases about fits share."""

import argparse
import tempfile

import numpy as np

from lib.common import rounded, run_worker, summary
from lib.loss import hu_loss
from lib.systems import SYSTEMS
from wals_gpu.datasets import SHAPES


def problem_arguments(parser: argparse.ArgumentParser) -> None:
    """What is fitted: see systems.py."""
    parser.add_argument("set", choices=SHAPES)
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=10.0, help="slope of the confidence")
    parser.add_argument("--ridge", type=float, default=10.0)


def run_system(name: str, args: argparse.Namespace, path: str, matrix, checkpoints: list[int]) -> dict:
    """One fit in a process of its own, and the loss of what it kept at the checkpoints."""
    keys = ("factors", "iterations", "alpha", "ridge", "threads", "seed")
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "system": name,
            "data": path,
            "folder": folder,
            "budget": args.budget,
            "checkpoints": checkpoints,
            "fit": {key: getattr(args, key) for key in keys},
        }
        run = run_worker("worker_fit.py", spec, SYSTEMS[name].env)
        if "error" in run:
            return run
        run["losses"] = []
        for iteration in checkpoints:
            if iteration <= len(run["elapsed"]):
                saved = np.load(f"{folder}/{iteration}.npz")
                factors = saved["user_factors"], saved["item_factors"]
                loss = hu_loss(matrix, *factors, alpha=args.alpha, ridge=args.ridge, threads=args.threads)
                seconds = rounded(run["elapsed"][iteration - 1])
                run["losses"].append({"iteration": iteration, "seconds": seconds, "loss": rounded(loss, 8)})
    return run


def line_of(run: dict) -> str:
    """A fit in a few words: its error, or the median seconds of its iterations but the first."""
    return run.get("error") or f"{np.median(np.diff(run['elapsed'])):.3f} s/iteration"


def record_of(name: str, runs: list[dict]) -> dict:
    """One record from all repeats of a system."""
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        return {"system": name, "error": errors[0]}
    first, last = runs[0], runs[-1]
    return {
        "system": name,
        "kind": SYSTEMS[name].kind,
        # over all iterations of all repeats but each fit's first, which has the preparation in it
        "seconds_per_iteration": summary(np.concatenate([np.diff(run["elapsed"]) for run in runs])),
        "repeats": len(runs),
        "iterations": len(first["elapsed"]),
        "fit_seconds": summary([run["fit_seconds"] for run in runs]),
        "fit_mib": last["peak_rss_mib"] - last["peak_rss_before_fit_mib"],
        "process_mib": last["peak_rss_mib"],
        "losses": first.get("losses", []),
        "largest_residual": last.get("largest_residual"),
        "options": SYSTEMS[name].options,
        "env": SYSTEMS[name].env,
        "threadpools": last["threadpools"],
    }
