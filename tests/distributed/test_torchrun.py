"""The command under torchrun: a rank that is killed, and what is left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sharded_fit import make_matrix

from wals_gpu import WALS, DistributedError
from wals_gpu.distributed import fit_sharded
from wals_gpu.distributed.launch import name_of_attempt

pytest.importorskip("torch", reason="ranks need torch")

FIT = ["--factors", "18", "--iterations", "30", "--seed", "7", "--threads", "1", "--no-values"]


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    path, matrix = tmp_path_factory.mktemp("plays") / "plays.parquet", make_matrix(n=60_000).tocoo()
    table = pa.table({"user_id": matrix.row, "item_id": [f"i{item}" for item in matrix.col]})
    pq.write_table(table, path, row_group_size=9000)
    return path


def start(*arguments, restarts=0):
    """The command on two ranks."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    launcher = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--monitor-interval", "0.1"]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "wals_gpu", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def children_of(pid):
    """Processes that `pid` started, without itself."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return sorted(int(line) for line in found.stdout.split())


def iterations_behind(folder):
    """Of the checkpoint that is there."""
    try:
        return len(json.loads((folder / "model.json").read_text())["metadata"]["history"])
    except FileNotFoundError:
        return -1


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        if time.monotonic() > until:
            for rank in children_of(process.pid):
                os.kill(rank, signal.SIGKILL)
            process.kill()
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.skipif(not os.path.exists("/bin/ps") and not os.path.exists("/usr/bin/ps"), reason="needs ps")
def test_killed_twice_a_fit_ends_as_one_that_was_not(plays, tmp_path):
    unfinished = tmp_path / "unfinished"
    process = start(
        "fit", plays, "--out", tmp_path / "model", *FIT, "--checkpoint-dir", unfinished, "--resume", "--json",
        restarts=2,
    )  # fmt: skip
    for victim, iteration in ((1, 3), (0, 12)):
        wait_for(lambda n=iteration: iterations_behind(unfinished) >= n, process)
        os.kill(children_of(process.pid)[victim], signal.SIGKILL)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert len(json.loads(out)["history"]) == 30 and not unfinished.exists()
    model = WALS.load(tmp_path / "model")
    whole = fit_sharded(WALS(**model.get_params()), pq.read_table(plays)).local
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)
    np.testing.assert_array_equal(model.item_factors, whole.item_factors)
    assert [record.loss for record in model.history_] == [record.loss for record in whole.history_]


def test_restarts_that_would_not_go_on_are_warned_of(monkeypatch):
    from wals_gpu.cli.entry import make_parser
    from wals_gpu.cli.fit import _check_restarts

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    words = ["fit", "plays.parquet", "--out", "model", "--checkpoint-dir", "unfinished"]
    with pytest.warns(match="only with --resume"):
        _check_restarts(make_parser().parse_args(words))
    _check_restarts(make_parser().parse_args([*words, "--resume"]))


@pytest.mark.skipif(not os.path.exists("/bin/ps") and not os.path.exists("/usr/bin/ps"), reason="needs ps")
def test_ctrl_c_of_one_rank_stops_all_and_keeps_the_checkpoint(plays, tmp_path):
    unfinished = tmp_path / "unfinished"
    process = start(
        "fit",
        plays,
        "--out",
        tmp_path / "model",
        *FIT,
        "--iterations",
        "4000",
        "--checkpoint-dir",
        unfinished,
        "--json",
    )
    wait_for(lambda: iterations_behind(unfinished) >= 2, process)
    os.kill(children_of(process.pid)[1], signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    found = json.loads(out[out.index("{") :])
    assert found["interrupted"] and 2 <= len(found["history"]) < 4000
    assert iterations_behind(unfinished) == len(found["history"])
    assert len(WALS.load(tmp_path / "model").history_) == len(found["history"])


def test_ranks_do_not_take_those_of_an_earlier_attempt_for_the_present_ones():
    """What dead ranks left in the store of torchrun, which begins again with the same one."""
    import torch.distributed as dist

    store, found = dist.HashStore(), {}

    def join(rank):
        found[rank] = name_of_attempt(store, rank, 3, 20)

    names = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):  # with a pause before each: the first one finds old names alone
        threads = [threading.Thread(target=join, args=(rank,)) for rank in order]
        for thread in threads:
            thread.start()
            time.sleep(0.1)
        for thread in threads:
            thread.join(30)
        assert len(found) == 3 and len(set(found.values())) == 1
        names.append(found[0])
        found.clear()
    assert len(set(names)) == 3
    with pytest.raises(DistributedError, match="rank 0 does not answer rank 2 within"):
        name_of_attempt(store, 2, 3, 0.2)
