"""device="cuda" where there is a device (the emulator, torch as owner of its memory), and where there is none."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
from emulated import load
from emulated_cuda import ON_DEVICE, EmulatedMemory, emulated_backend, needs_kernels
from rows import problem
from scipy.sparse import random as sparse_random
from solving import solve_rows

import wals_gpu
from wals_gpu import WALS, DeviceError, backends
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import TorchMemory, load_cuda
from wals_gpu.evaluation import random_holdout

torch = pytest.importorskip("torch", reason="torch is not installed")

pytestmark = needs_kernels
HAS_CUDA, WHY_NOT = wals_gpu.cuda_status()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="there is a CUDA device here")


class HostTorchMemory(TorchMemory):
    """TorchMemory with tensors on the CPU, where the emulated kernels can reach them."""

    stream = 0

    def __init__(self):
        self.torch, self.device = torch, torch.device("cpu")

    def free_bytes(self):
        return 1 << 40


def parts(owner="emulated"):
    """Kernels and memory: the emulator's, with torch or the emulator as owner of the memory, or the device's."""
    if ON_DEVICE:
        return load_cuda(), TorchMemory()
    module = load("_emulated")
    module.configure()
    return module, HostTorchMemory() if owner == "torch" else EmulatedMemory(module)


#: Where models get their backend from.
PLACES = [f"wals_gpu.{name}.make_backend" for name in ("model.settings", "model.wals", "compat.als")]


@pytest.fixture(params=["torch"] if ON_DEVICE else ["torch", "emulated"])
def on_device(request, monkeypatch):
    """Models ask for device="cuda" and get the backend over the emulator, or over the device."""

    def make(device="auto", num_threads=0):
        return CudaBackend(*parts(request.param)) if device == "cuda" else real(device, num_threads)

    real = backends.make_backend
    for place in PLACES:
        monkeypatch.setattr(place, make)
    monkeypatch.setattr("wals_gpu.compat.als.cuda_status", lambda: (True, ""))


def interactions():
    matrix = sparse_random(40, 30, density=0.2, format="csr", dtype=np.float32, random_state=1)
    matrix.data[:] = 1
    return matrix


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
def test_a_model_on_the_device_is_the_model_on_the_cpu(on_device, solver):
    models = []
    for device in ("cpu", "cuda"):
        model = WALS(
            factors=20, solver=solver, block_size=16, iterations=3, compute_loss=True, random_state=0, device=device
        )
        models.append(model.fit(interactions(), show_progress=False))
    losses = [[record.loss for record in model.history_] for model in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[1] == sorted(losses[1], reverse=True)
    scores = [model.user_factors @ model.item_factors.T for model in models]
    np.testing.assert_allclose(scores[1], scores[0], atol=2e-3)
    found = [model.recommend(np.arange(40), k=5) for model in models]
    np.testing.assert_allclose(found[1][1], found[0][1], atol=2e-3)


@pytest.mark.parametrize("exponent", [0.4, "auto"])
def test_a_popularity_exponent_is_the_same_on_the_device(on_device, exponent):
    train, held_out = random_holdout(interactions(), 0.2, 0)
    models = []
    for device in ("cpu", "cuda"):
        model = WALS(8, "hu", iterations=3, popularity_exponent=exponent, device=device)
        models.append(model.fit(train, validation=held_out, metric="recall@3"))
    on_cpu, moved = models
    assert moved.popularity_exponent_ == on_cpu.popularity_exponent_
    measured = [[record.validation for record in model.history_] for model in models]
    np.testing.assert_allclose(measured[1], measured[0], atol=1e-9)
    moved.popularity_exponent_ = on_cpu.popularity_exponent_ = 0.4
    counts = np.maximum(moved.fitted.popularity(), 1)
    raw = moved.user_factors @ moved.item_factors.T
    known = np.flatnonzero(np.abs(raw).max(axis=1))
    ids, scores = moved.recommend(known, k=5, filter_seen=False)
    expected = np.take_along_axis(raw[known] * counts**0.4, ids, axis=1)
    np.testing.assert_allclose(scores / scores[:, :1], expected / expected[:, :1], atol=1e-4)
    assert not np.array_equal(ids, np.argsort(-raw[known], axis=1)[:, :5])
    np.testing.assert_allclose(scores, on_cpu.recommend(known, k=5, filter_seen=False)[1], atol=2e-3)


def test_neighbors_are_added_to_what_the_device_finds(on_device):
    train, held_out = random_holdout(interactions(), 0.2, 0)
    models = []
    for device in ("cpu", "cuda"):
        model = WALS(8, "hu", iterations=3, neighbors=5, popularity_exponent=0.2, device=device)
        models.append(model.fit(train, validation=held_out, metric="recall@3"))
    on_cpu, moved = models
    assert (moved.neighbors_ != on_cpu.neighbors_).nnz == 0
    known = np.flatnonzero(np.diff(train.indptr))
    for options in ({}, {"filter_seen": False}, {"allow_items": [1, 2, 3, 5, 8]}):
        found = [model.recommend(known, k=5, **options)[1] for model in models]
        np.testing.assert_allclose(found[1], found[0], atol=2e-3)
    scores = moved.user_factors @ moved.item_factors.T + (train.toarray() > 0) @ moved.neighbors_.toarray()
    scores *= moved.fitted.calibration.multipliers()
    best = -np.sort(-scores, axis=1)[known, :5]
    np.testing.assert_allclose(moved.recommend(known, k=5, filter_seen=False)[1], best, rtol=1e-4, atol=1e-4)


def test_implicits_model_moves_to_the_device_and_back(on_device):
    model = AlternatingLeastSquares(factors=8, iterations=2, random_state=0)
    model.fit(interactions(), show_progress=False)
    moved = AlternatingLeastSquares(factors=8, iterations=2, random_state=0).to_gpu()
    moved.fit(interactions(), show_progress=False)
    np.testing.assert_allclose(moved.user_factors, model.user_factors, atol=2e-3)
    direct = AlternatingLeastSquares(factors=8, iterations=2, random_state=0, use_gpu=True)
    direct.fit(interactions(), show_progress=False)
    np.testing.assert_array_equal(direct.item_factors, moved.item_factors)
    assert moved._device == "cuda" and moved.to_cpu()._device == "cpu"
    assert model.to_cpu().__dict__.keys() == model.__dict__.keys()
    ids, _ = moved.recommend(3, interactions()[3], N=4)
    np.testing.assert_array_equal(ids, moved.to_cpu().recommend(3, interactions()[3], N=4)[0])
    with pytest.raises(ValueError, match="dtype must be float32 on a GPU, got float64"):
        AlternatingLeastSquares(dtype=np.float64).to_gpu()


@pytest.mark.skipif(ON_DEVICE, reason="compares two runs of the emulator")
def test_tensors_are_used_where_they_lie():
    memory = HostTorchMemory()
    tensor = torch.arange(12.0).reshape(3, 4)
    assert memory.address(memory.upload(tensor)) == tensor.data_ptr()
    backend = CudaBackend(load("_emulated"), memory)
    items = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    ids, scores = backend.topk(items[:5], items, 3)
    expected = emulated_backend().topk(items[:5].numpy(), items.numpy(), 3)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_read_only_arrays_and_records_go_to_the_device():
    memory, fixed = HostTorchMemory(), np.arange(5, dtype=np.int64)
    fixed.flags.writeable = False
    np.testing.assert_array_equal(memory.download(memory.upload(fixed)), fixed)
    records = np.array([(1, 2), (3, 4)], [("a", np.int64), ("b", np.int32)])
    np.testing.assert_array_equal(memory.download(memory.upload(records)), records.view(np.uint8))


def test_terms_are_copied_once_and_freed_with_their_owner():
    backend = CudaBackend(*parts())
    terms, other, start = problem(8, [3, 50])
    solve_rows(backend, terms, other, start)
    kept = backend.terms.kept[terms]
    solve_rows(backend, terms, other, start)
    assert backend.terms.kept[terms] is kept and len(backend.terms.kept) == 1
    del terms, kept
    assert len(backend.terms.kept) == 0


class Counting:
    """Memory that counts copies of as many numbers as one of the two factor arrays has."""

    def __init__(self, memory, sizes):
        self.memory, self.sizes, self.up, self.down = memory, sizes, 0, 0

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def upload(self, array):
        self.up += isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size in self.sizes
        return self.memory.upload(array)

    def download(self, array):
        result = self.memory.download(array)
        self.down += result.dtype == np.float32 and result.size in self.sizes
        return result


@pytest.mark.parametrize("make", [WALS, AlternatingLeastSquares])
def test_factors_stay_on_the_device_during_a_fit(make, monkeypatch):
    def copies(iterations, keeps=True, **options):
        module, memory = parts()
        memory = Counting(memory, (40 * 13, 30 * 13))
        backend = CudaBackend(module, memory)
        if not keeps:
            keeping = backend.session
            monkeypatch.setattr(backend, "session", lambda *sides, **_: keeping(*sides, is_shared=True))
        for place in PLACES:
            monkeypatch.setattr(place, lambda *args, **kwargs: backend)
        model = make(factors=13, iterations=iterations, random_state=0)
        model.fit(interactions(), show_progress=False, **options)
        return memory.up, memory.down, model.user_factors

    assert copies(2)[:2] == copies(6)[:2] == (2, 2)
    up, down, factors = copies(3, keeps=False)
    assert up > 2 and down > 2
    np.testing.assert_array_equal(factors, copies(3)[2])
    kept = []
    callback = {"callback": lambda *args: kept.append(args) or None}
    assert copies(4, **callback)[:2] == (2, 2 * 4) and len(kept) == 4  # who looks on gets them


# What the device cannot do


def on_emulator(monkeypatch):
    backend = CudaBackend(*parts())
    for place in PLACES:
        monkeypatch.setattr(place, lambda *args, **kwargs: backend)
    return backend


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dtype": "float64"}, r"dtype must be float32 on a CUDA device \(device='cuda'\), got float64"),
        ({"solver": "subspace", "block_size": 272}, r"block_size must be a multiple of 16 from 16 to 256 .*, got 272"),
    ],
)
def test_the_constructor_refuses_what_the_device_cannot_do(parameters, message, monkeypatch):
    WALS(**parameters)  # on the CPU
    on_emulator(monkeypatch)
    with pytest.raises(DeviceError, match=message):
        WALS(**parameters)


def test_a_model_that_the_device_cannot_hold_is_not_called_damaged(tmp_path, monkeypatch):
    WALS(4, dtype="float64", iterations=1).fit(interactions()).save(tmp_path / "model")
    on_emulator(monkeypatch)
    with pytest.raises(DeviceError, match="dtype must be float32 on a CUDA device"):
        WALS.load(tmp_path / "model", device="cuda")


def test_texts_are_not_encoded_for_a_model_that_is_refused(monkeypatch):
    on_emulator(monkeypatch)
    with pytest.raises(DeviceError, match="dtype must be float32"):
        WALS.hybrid(["a text"], lambda texts: pytest.fail("encoded"), dtype="float64")


def test_a_block_size_that_is_not_used_is_not_refused(monkeypatch):
    on_emulator(monkeypatch)
    assert WALS(solver="cg", block_size=272).fit(interactions()).history_


def test_validation_that_the_device_cannot_search_is_refused_before_the_data_are_read(monkeypatch):
    on_emulator(monkeypatch)
    model = WALS(4)
    with pytest.raises(ValueError, match=r"k must be at most 1024 on a CUDA device, got 1025"):
        model.fit("no such file.csv", validation=0.2, metric="ndcg@1025")
    with pytest.raises(FileNotFoundError):
        model.fit("no such file.csv", validation=0.2, metric="ndcg@1024")


def test_memory_of_a_fit_says_what_the_device_needs(monkeypatch):
    on_host = WALS(8).estimate_memory(1000, 100, 5000)
    on_emulator(monkeypatch)
    estimate = WALS(8).estimate_memory(1000, 100, 5000)
    assert estimate.device > 1 << 20 and on_host.device == 0 and estimate.factors == on_host.factors
    assert str(estimate).splitlines()[-1].startswith("on device") and "device" not in str(on_host)


# Without a device


@without_cuda
def test_the_device_is_refused_with_the_reason():
    with pytest.raises(RuntimeError) as refused:
        WALS(device="cuda")
    assert str(refused.value) == WHY_NOT
    assert "CUDA" in WHY_NOT
    with pytest.raises(ValueError, match="No CUDA extension has been built, can't train on GPU"):
        AlternatingLeastSquares().to_gpu()
    assert WALS(device="auto")._backend.name == "cpu"


def test_torch_records_as_the_emulators_does():
    signature = inspect.signature(torch.cuda.graph)
    signature.bind(torch.cuda.CUDAGraph, stream=None, capture_error_mode="thread_local")
    assert callable(torch.cuda.CUDAGraph.replay) and issubclass(torch.cuda.ExternalStream, torch.cuda.Stream)


def test_the_package_does_not_import_torch():
    code = "import sys, wals_gpu; wals_gpu.cuda_status; assert not {'torch', 'wals_gpu._cuda'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
