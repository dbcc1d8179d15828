"""Requests a second and latencies of the web service, beside a FastAPI service around implicit with the same factors.

    .venv/bin/python benchmarks/cases/bench_serve.py                  # needs wrk, and the extra "serve"
    .venv/bin/python benchmarks/cases/bench_serve.py --items 20000    # one size, into a result of its own

Each request asks for the ten best of all items for one user, without what the user has. Both services run in one
process under uvicorn with httptools and uvloop, without a log of requests, with as many threads of native code. Ours is
`wals-gpu serve`; implicit's is a plain `def` endpoint, which FastAPI runs in its pool of threads, and writes its JSON
with orjson where there is one. wrk asks on loopback, over 1, 16 and 64 connections, for a random user each time.
Services take turns; a service is started anew for each turn, checked against a full sort of float64 scores, and warmed
up. Writes results/serve.json.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import _path  # noqa: F401
import numpy as np
from scipy.sparse import csr_matrix

from lib.common import BENCHMARKS, UNSET, interleave, standard_arguments, summary, write_result
from lib.systems import ONE_BLAS_THREAD

SYSTEMS = ("implicit", "wals_gpu")
USERS, SEEN, K = 20_000, 20, 10
SCRIPTS = {
    "implicit": 'request = function() return wrk.format("GET", "/recommend?k=10&user=" .. math.random(0, 19999)) end',
    "wals_gpu": 'request = function() return wrk.format("POST", "/recommend", {["content-type"] = "application/json"}, '
    "'{\"users\":[' .. math.random(0, 19999) .. '],\"k\":10}') end",
}
# Errors are counted, as a fast service that fails is none.
DONE = """
done = function(summary, latency, requests)
  local wrong = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
  io.write(string.format("RESULT %d %d %d %.1f %.1f %.1f\\n", summary.requests, summary.duration,
    wrong + summary.errors.timeout, latency:percentile(50), latency:percentile(99), latency.max))
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 300_000])
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    standard_arguments(parser, quick="one repeat with 20,000 items, a second each")
    parser.set_defaults(threads=1)
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.items, args.seconds = 1, [20_000], 1
    if shutil.which("wrk") is None:
        sys.exit("bench_serve.py needs wrk: apt-get install wrk")

    records = []
    with tempfile.TemporaryDirectory() as temporary:
        for items in args.items:
            folder = Path(temporary) / str(items)
            truth = make_model(folder, items, args.factors, args.seed)
            runs: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
            for repeat, system in interleave(list(SYSTEMS), args.repeats, args.seed):
                runs[system].append(measured(system, folder, args, truth))
                rates = {n: round(one["rate"]) for n, one in runs[system][-1].items()}
                print(repeat, items, system, rates, file=sys.stderr)
            for system, own in runs.items():
                for connections in args.connections:
                    record = {"system": system, "items": items, "factors": args.factors, "connections": connections}
                    for name in ("rate", "p50_ms", "p99_ms"):
                        record[name] = summary([run[connections][name] for run in own])
                    records.append(record | {"k": K, "dtype": "float32", "unit": "requests/s, ms"})
    one_size = f"-{args.items[0]}" if len(args.items) == 1 and not args.quick else ""
    write_result(f"serve{one_size}", args, records)


def make_model(folder: Path, items: int, factors: int, seed: int):
    """A model in a folder, and a function that checks an answer."""
    from wals_gpu import WALS

    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal((n, factors), dtype=np.float32) for n in (USERS, items))
    y *= np.exp(0.5 * rng.standard_normal((items, 1), dtype=np.float32))
    columns = np.sort(rng.integers(items, size=(USERS, SEEN)), axis=1).ravel()
    liked = csr_matrix((np.ones(columns.size, np.float32), columns, np.arange(USERS + 1) * SEEN), shape=(USERS, items))
    liked.sum_duplicates()
    model = WALS(factors, "implicit", iterations=1, solver="cg", compute_loss=False).fit(liked)
    model.user_factors, model.item_factors = x, y
    model.save(folder)

    def check(user: int, found: list[dict]) -> None:
        scores = x[user].astype(np.float64) @ y.T.astype(np.float64)
        scores[liked[user].indices] = -np.inf
        ids = [one["item"] for one in found]
        assert len(set(ids)) == K, "an item twice"
        assert np.allclose(scores[ids], np.sort(scores)[: -K - 1 : -1], rtol=1e-4), "not the best"

    return check


def measured(system: str, folder: Path, args: argparse.Namespace, check) -> dict[int, dict]:
    """What wrk finds, by the number of connections."""
    with service(system, folder, args.threads) as port, tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        for user in (3, 4567):
            check(user, ask(system, port, user))
        script.write(f"math.randomseed({args.seed})\n{SCRIPTS[system]}\n{DONE}")
        script.flush()
        wrk(port, script.name, 16, 1)  # warm
        return {n: wrk(port, script.name, n, args.seconds) for n in args.connections}


def ask(system: str, port: int, user: int) -> list[dict]:
    url = f"http://127.0.0.1:{port}/recommend"
    if system == "implicit":
        with urllib.request.urlopen(f"{url}?k={K}&user={user}", timeout=30) as answer:
            return json.load(answer)["items"]
    body = json.dumps({"users": [user], "k": K}).encode()
    with urllib.request.urlopen(url, body, timeout=30) as answer:
        return json.load(answer)["lists"][0]["items"]


@contextlib.contextmanager
def service(system: str, folder: Path, threads: int):
    """The port of a service that has just been started, and is ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in UNSET} | ONE_BLAS_THREAD
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BENCHMARKS), environment.get("PYTHONPATH", "")]))
    command = [sys.executable, str(BENCHMARKS / "workers" / "worker_serve.py")]
    process = subprocess.Popen([*command, system, str(folder), str(port), str(threads)], env=environment)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None:
                raise RuntimeError(f"the service of {system} ended at once")
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wrk(port: int, script: str, connections: int, seconds: int) -> dict:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", script]
    output = subprocess.run([*command, f"http://127.0.0.1:{port}"], capture_output=True, text=True, timeout=120).stdout
    requests, duration, errors, p50, p99, _ = map(float, re.search(r"RESULT (.*)", output)[1].split())
    if errors or not requests:
        raise RuntimeError(f"{errors:.0f} errors in {requests:.0f} requests: {output[-400:]}")
    return {"rate": 1e6 * requests / duration, "p50_ms": p50 / 1e3, "p99_ms": p99 / 1e3}


if __name__ == "__main__":
    main()
