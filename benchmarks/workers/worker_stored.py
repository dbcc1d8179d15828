"""One step of bench_stored.py in this process, under its limit of address space. Prints one JSON object."""

import json
import resource
import sys
import time

import numpy as np
from scipy.sparse import csr_matrix

from lib.common import peak_rss_mib, reset_peak
from wals_gpu import WALS
from wals_gpu.stored import StoredMatrix, write_stored


def blocks(n_users: int, n_items: int, per_user: int, seed: int, rows: int = 20_000):
    """Users who each have one item of every `n_items / per_user` consecutive ones."""
    width = n_items // per_user
    for begin in range(0, n_users, rows):
        rng = np.random.default_rng([seed, begin])
        n = min(rows, n_users - begin)
        columns = (np.arange(per_user) * width + rng.integers(0, width, (n, per_user))).astype(np.int32)
        values = rng.integers(1, 6, n * per_user).astype(np.float32)
        yield csr_matrix((values, columns.ravel(), np.arange(n + 1) * per_user), shape=(n, n_items))


def step(spec: dict) -> dict:
    """One step in this process: its seconds and memory."""
    limit = spec["limit_mib"] << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    block_bytes = spec["block_mib"] << 20
    reset_peak()
    start = time.perf_counter()
    record = {}
    if spec["step"] == "write":
        data = blocks(*spec["shape"], spec["per_user"], spec["seed"])
        write_stored(spec["folder"], data, block_bytes=block_bytes)
    else:
        model = WALS(spec["factors"], "hu", iterations=spec["iterations"], num_threads=spec["threads"])
        model.fit(StoredMatrix(spec["folder"], block_bytes=block_bytes))
        record["losses"] = [each.loss for each in model.history_]
        record["seconds_per_iteration"] = float(np.median([each.seconds for each in model.history_]))
    return {"seconds": time.perf_counter() - start, "peak_rss_mib": peak_rss_mib()} | record


if __name__ == "__main__":
    print(json.dumps(step(json.loads(sys.argv[1]))))
