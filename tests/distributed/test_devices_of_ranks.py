"""Ranks whose rows are solved by CUDA devices, one each: two emulated ones, over gloo."""

import json
import os
from pathlib import Path

import beside
import numpy as np
import pytest
from ranks import run_ranks
from scipy.sparse import random as random_matrix

from wals_gpu import WALS
from wals_gpu.distributed.device import device_of_rank
from wals_gpu.priors.linear import LinearPrior

pytest.importorskip("torch", reason="ranks need torch")
pytest.importorskip("pybind11", reason="pybind11 is not installed")

SETTINGS = {"factors": 12, "iterations": 2, "random_state": 3, "num_threads": 1}


def make_parts():
    """Users for two ranks, and features of the items."""
    matrix = random_matrix(1300, 40, 0.05, "csr", np.float32, random_state=1)
    matrix.data[:] = 1
    return matrix, np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


PROGRAM = """
import importlib.util
from emulated_cuda import EmulatedMemory
from test_devices_of_ranks import SETTINGS, make_parts
from wals_gpu import WALS
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.distributed import fit_sharded
from wals_gpu.model import settings
from wals_gpu.priors.linear import LinearPrior

spec = importlib.util.spec_from_file_location("_emulated", MODULE)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.configure(devices=2, architecture=80)
asked, solved = [], []

class Counted(CudaBackend):
    def solve_rows(self, *args, **options):
        solved.append(self.number)
        return super().solve_rows(*args, **options)

def make_backend(device, num_threads=0):
    asked.append(device)
    number = int(device.partition(":")[2] or 0)
    backend = Counted(module, EmulatedMemory(module, number))
    backend.number = number
    return backend

settings.make_backend = make_backend
os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
matrix, features = make_parts()
for name, more in (("plain", {}), ("prior", {"item_prior": LinearPrior(features), "solver": "cg"})):
    model = fit_sharded(WALS(**SETTINGS, **more, device="cuda"), matrix, group, validation=0.2, metric="recall@5")
    assert model.local.device == f"cuda:{rank}"
    np.savez(f"{folder}/{name}-{rank}.npz", users=model.local.user_factors, items=model.local.item_factors,
             losses=[r.loss for r in model.history], found=[r.validation for r in model.history])
print(json.dumps([sorted(set(asked)), solved]))
"""


@pytest.mark.waits_for("emulator")
def test_each_rank_solves_on_its_own_device(tmp_path):
    """As one process on the processor does, but for rounding: the kernels are float32."""
    path = next(Path(beside.result("emulator")).glob("_emulated.*.so"))
    out = run_ranks(f"MODULE = {str(path)!r}\n" + PROGRAM, 2, tmp_path, timeout=120.0)
    for rank, text in enumerate(out):
        asked, solved = json.loads(text)
        assert asked == ["cuda", f"cuda:{rank}"] and solved == [rank] * (4, 8)[rank]  # rank 1 has the items
    matrix, features = make_parts()
    for name, more in (("plain", {}), ("prior", {"item_prior": LinearPrior(features), "solver": "cg"})):
        model = WALS(**SETTINGS, **more).fit(matrix, validation=0.2, metric="recall@5")
        parts = [np.load(tmp_path / f"{name}-{rank}.npz") for rank in range(2)]
        assert min(len(part["users"]) for part in parts) > 200
        users = np.concatenate([part["users"] for part in parts])
        np.testing.assert_allclose(users, model.user_factors, rtol=1e-3, atol=1e-5)
        for part in parts:
            np.testing.assert_allclose(part["items"], model.item_factors, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(part["losses"], [r.loss for r in model.history_], rtol=1e-5)
            np.testing.assert_allclose(part["found"], [r.validation for r in model.history_], atol=0.01)


def test_the_device_of_a_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert device_of_rank("cuda") == "cuda"
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setitem(os.environ, name, value)
    assert [device_of_rank(name) for name in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]
