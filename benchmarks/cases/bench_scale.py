"""Fits on 1, 2 and 4 ranks of this machine, and on two hosts in network namespaces, beside what `wals-gpu plan` says.

    python benchmarks/cases/bench_scale.py [SET] [--network]

Each rank is a process of one thread, so more ranks than cores show traffic and memory, not speed. With --network
(Linux, root) two ranks sit in network namespaces that are joined by a link of a bounded rate (tc): seconds against the
model's.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import _path  # noqa: F401
import numpy as np

from lib.common import BENCHMARKS, rounded, write_result
from wals_gpu.data.stored import write_stored
from wals_gpu.datasets import SHAPES, synthetic
from wals_gpu.distributed.plan import fit_cost, measured_rate

WORKER = BENCHMARKS / "workers" / "worker_scale.py"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def run_ranks(ranks: int, spec: dict, folder: str, namespaces: list[str] = ()) -> list[dict]:
    """What each rank reports."""
    meeting = f"{folder}/meeting-{os.urandom(4).hex()}"
    shared = {**spec, "ranks": ranks, "meeting": meeting, "address": None, "interface": None}
    if namespaces:
        shared |= {"address": f"tcp://{ADDRESSES[0]}:29400"}
    path = os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    processes = []
    for rank in range(ranks):
        inside = ["ip", "netns", "exec", namespaces[rank]] if namespaces else []
        own = shared | {"rank": rank, "interface": f"veth{rank}" if namespaces else None}
        process = subprocess.Popen(
            [*inside, sys.executable, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        process.stdin.write(json.dumps(own))
        process.stdin.close()
        process.stdin = None
        processes.append(process)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a rank of {ranks} failed")
    return [json.loads(output) for output in outputs]


@contextlib.contextmanager
def two_hosts(megabits: float):
    """Names of two network namespaces joined by a link that sends so many bits a second each way."""
    names = [f"wals{os.getpid()}-{rank}" for rank in (0, 1)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "veth0", "netns", names[0], "type", "veth", "peer", "name", "veth1", "netns", names[1])
        for rank, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{ADDRESSES[rank]}/24", "dev", f"veth{rank}")
            ip("-n", name, "link", "set", f"veth{rank}", "up")
            ip("-n", name, "link", "set", "lo", "up")
            limit = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "50ms"]
            subprocess.run(
                ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", f"veth{rank}", "root", "tbf", *limit],
                check=True,
            )
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def record_of(reports: list[dict], cost, **more) -> dict:
    """Measured beside computed, of the slowest and of the largest rank."""
    seconds = [float(np.median(report["seconds"][1:])) for report in reports]
    return {
        **more,
        "ranks": len(reports),
        "seconds": rounded(max(seconds)),
        "seconds_planned": rounded(cost.seconds),
        "sent_mib": rounded(max(report["sent"] for report in reports) / 2**20),
        "sent_mib_planned": rounded(cost.sent / 2**20),
        "peak_mib": rounded(max(report["peak_mib"] - report["before_mib"] for report in reports)),
        "peak_mib_planned": rounded(cost.memory / 2**20),
        "loss": reports[0]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SHAPES, nargs="?", default="ml-20m")
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--solvers", nargs="+", default=["cholesky", "cg"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--megabits", type=float, nargs="+", default=[1000.0, 200.0])
    parser.add_argument("--network", action="store_true", help="also two hosts in network namespaces (root)")
    parser.add_argument("--quick", action="store_true", help="a small set")
    args = parser.parse_args()
    if args.quick:
        args.set = "ml-1m"
    if args.network and (os.geteuid() or not shutil.which("tc")):
        parser.error("--network needs root and tc (iproute2)")
    matrix = synthetic(*SHAPES[args.set], random_state=0)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        write_stored(data, matrix)
        shape, n_entries = matrix.shape, matrix.nnz
        del matrix
        for solver in args.solvers:
            rate = measured_rate(args.factors, solver, seconds=3)
            spec = {
                "data": data, "factors": args.factors, "solver": solver, "iterations": args.iterations, "threads": 1,
                "mode": "all",
            }  # fmt: skip
            sizes = (*shape, n_entries, args.factors)
            for ranks in args.ranks:
                cost = fit_cost(*sizes, ranks, solver=solver, rate=rate, bandwidth=1e15)
                records.append(record_of(run_ranks(ranks, spec, folder), cost, solver=solver, network=None))
                print(json.dumps(records[-1]), file=sys.stderr)
            for megabits in args.megabits if args.network else []:
                cost = fit_cost(*sizes, 2, solver=solver, rate=rate, bandwidth=megabits * 1e6)
                with two_hosts(megabits) as names:
                    reports = run_ranks(2, spec, folder, names)
                records.append(record_of(reports, cost, solver=solver, network=f"{megabits:g} Mb/s"))
                print(json.dumps(records[-1]), file=sys.stderr)
    losses = {record["solver"]: record["loss"] for record in records}
    assert all(record["loss"] == losses[record["solver"]] for record in records), "the number of ranks changed the loss"
    write_result("scale", args, records, shape=[*shape, n_entries])


if __name__ == "__main__":
    main()
