"""What goes wrong with drivers, builds and devices, each told in a sentence that says what to do."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from emulated_cuda import ON_DEVICE, EmulatedMemory, emulated_backend, needs_kernels
from rows import make_matrix

import wals_gpu
from wals_gpu import WALS, DeviceError, DeviceLostError
from wals_gpu.backends import cuda_errors, cuda_memory
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_errors import explained
from wals_gpu.backends.devices import make_backend
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.training import loop


@pytest.fixture
def machine(monkeypatch):
    """A machine with a module, a driver and a torch, of which tests take something away."""
    properties = {"name": "NVIDIA Test", "capability": (9, 0)}
    cuda = SimpleNamespace(
        counted=(1, ""), properties=properties, CUDA_VERSION="13.0.48", OLDEST_CAPABILITY=(7, 5), __file__=__file__,
        devices=lambda: cuda.counted, device_properties=lambda index: cuda.properties,
    )  # fmt: skip
    of_cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0)
    torch = SimpleNamespace(__version__="2.2.0+cu121", version=SimpleNamespace(cuda="12.1"), cuda=of_cuda)
    found = {"wals_gpu._cuda": cuda, "torch": torch}
    real = cuda_memory.importlib.import_module

    def import_module(name):
        if isinstance(found.get(name), ImportError):
            raise found[name]
        return found.get(name) or real(name)

    monkeypatch.setattr(cuda_memory.importlib, "import_module", import_module)
    monkeypatch.setattr(cuda_memory, "cuda_of_torch", lambda: torch.version.cuda)
    for module in (cuda_memory, cuda_errors):
        monkeypatch.setattr(module, "driver_cuda", lambda: "12.4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return SimpleNamespace(cuda=cuda, torch=torch, found=found)


def told():
    with pytest.raises(RuntimeError) as error:
        cuda_memory.load_cuda()
    text = str(error.value)
    assert wals_gpu.cuda_status() == (False, text)
    with pytest.raises(RuntimeError) as error:
        make_backend("cuda")
    assert str(error.value) == text
    return text


def test_what_is_missing_is_named(machine, monkeypatch):
    assert cuda_memory.load_cuda() is machine.cuda
    machine.found["wals_gpu._cuda"] = ImportError("no file")
    assert "this build has no CUDA kernels (no file); install nvcc" in told()
    machine.found["wals_gpu._cuda"] = machine.cuda
    machine.found["torch"] = ImportError("no torch")
    assert "torch, which owns the device memory, is not installed: pip install" in told()


def test_a_driver_that_is_too_old_for_the_kernels(machine, monkeypatch):
    machine.cuda.counted = (0, "CUDA driver version is insufficient for CUDA runtime version")
    text = told()
    assert "the driver is for CUDA 12.4, the kernels were built with 13.0.48" in text
    assert (
        "Install a newer driver, or build with an nvcc of CUDA 12.x, which is what torch was built with (12.1)" in text
    )
    assert "CUDACXX=/usr/local/cuda-12/bin/nvcc WALS_GPU_CUDA=1 pip install" in text
    machine.torch.version.cuda = "13.0"
    assert "an nvcc of CUDA 12.x: CUDACXX" in told()
    monkeypatch.setattr(cuda_errors, "driver_cuda", lambda: None)  # what CUDA says is the same then
    assert "no CUDA device can be used: no NVIDIA driver was found (libcuda.so.1): install one" in told()


def test_a_driver_that_is_too_old_for_torch(machine):
    machine.torch.cuda.is_available = lambda: False
    machine.torch.version.cuda = "13.0"
    assert "torch cannot use the CUDA device: it was built with CUDA 13.0, the driver is for 12.4" in told()
    machine.torch.version.cuda = None
    assert "this torch (2.2.0+cu121) was built without CUDA; install one of https://" in told()


def test_no_device_and_slices(machine, monkeypatch):
    machine.cuda.counted = (0, "no CUDA-capable device is detected")
    assert "a GPU in MIG mode needs a slice" in told()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES='0' leaves none; `nvidia-smi -L` lists devices and MIG slices" in told()


def test_a_device_that_is_not_there_or_too_old(machine):
    with pytest.raises(
        RuntimeError, match=r"no device='cuda:1': this process sees 1 .* of MIG slices a process sees one"
    ):
        make_backend("cuda:1")
    for name in ("cuda:", "cuda:x", "cuda:-1", "gpu:0", 3):
        with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', got"):
            make_backend(name)
    machine.cuda.properties["capability"] = (7, 0)
    assert "the kernels of this build need compute capability 7.5 or later, NVIDIA Test has 7.0" in told()


def test_the_cuda_of_torch_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    cuda_memory.importlib.invalidate_caches()
    for line, version in (("cuda: Optional[str] = '12.6'", "12.6"), ("cuda = None", None)):
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.2'\n{line}\n")
        assert cuda_memory.cuda_of_torch() == version


@pytest.mark.parametrize(
    ("text", "kind", "advice"),
    [
        ("CUDA error: unspecified launch failure", DeviceLostError, "begin a new one, or use the CPU in this one"),
        ("launch of solve: an illegal memory access was encountered", DeviceLostError, "nothing can be computed on it"),
        ("CUDA error: uncorrectable ECC error encountered", DeviceLostError, "`wals-gpu doctor --gpu` checks"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", MemoryError, "end other programs on it"),
        ("launch of gram: no kernel image is available", DeviceError, "build them here (WALS_GPU_CUDA=1 pip install"),
    ],
)
def test_errors_of_cuda_say_what_to_do(text, kind, advice):
    error = explained(RuntimeError(text))
    assert type(error) is kind and text in str(error) and advice in str(error)


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("out of memory"), DeviceLostError("unknown error")])
def test_other_errors_stay_what_they_are(error):
    assert explained(error) is error


# A device that is lost in the middle of a fit


class Failing:
    """Kernels, or memory, of a device that stops working when `left` calls are behind it, as a sticky error does."""

    def __init__(self, inner, counter):
        self._inner, self._counter = inner, counter

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        is_called = "Stream" in (getattr(found, "__doc__", None) or "") or name in ("upload", "download", "empty")
        if not callable(found) or isinstance(found, type) or not is_called or name == "side_stream":
            return found

        def call(*arguments, **options):
            self._counter["left"] -= 1
            if self._counter["left"] < 0:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return found(*arguments, **options)

        return call


def failing_backend(left):
    kernels, counter = emulated_backend().device.kernels, {"left": left}
    kernels.configure()
    fake = ModuleType("failing")
    fake.__getattr__ = Failing(kernels, counter).__getattr__
    return CudaBackend(fake, Failing(EmulatedMemory(kernels), counter)), counter


def lost_fit(monkeypatch, share, options=None, **settings):
    """A fit whose device is lost when this share of its calls is behind it: model, error, the calls that are left."""
    backend, counter = failing_backend(10**9)
    for place in ("model.settings", "model.wals"):
        monkeypatch.setattr(
            f"wals_gpu.{place}.make_backend",
            lambda device, threads=0: backend if device == "cuda" else make_backend("cpu"),
        )
    model = WALS(**({"factors": 8, "iterations": 6, "device": "cuda"} | settings))
    counter["left"] = 10**9
    without = {name: value for name, value in (options or {}).items() if name != "checkpoint_dir"}
    model.fit(make_matrix("hu", np.float32), **without)
    counter["left"] = int(share * (10**9 - counter["left"]))
    with pytest.raises(DeviceLostError) as error:
        model.fit(make_matrix("hu", np.float32), **(options or {}))
    return model, str(error.value), counter


needs_emulator = pytest.mark.skipif(ON_DEVICE, reason="a device is not lost at will")


def whole_fit(iterations, **settings):
    return WALS(8, iterations=iterations, **settings).fit(make_matrix("hu", np.float32))


@needs_kernels
@needs_emulator
@pytest.mark.parametrize("share", [0.2, 0.3, *np.arange(0.5, 0.99, 0.04)])
def test_the_factors_of_an_earlier_iteration_are_left(monkeypatch, share):
    monkeypatch.setattr(loop, "HOME_EVERY", 0.0)  # after every iteration
    model, text, _ = lost_fit(monkeypatch, share)
    done = len(model.history_)
    assert "the CUDA device stopped working (CUDA error: unspecified launch failure)" in text
    if not done:
        assert "had come to nothing yet" in text
        return
    assert f"The model has the factors after iteration {done} of 6; fit(..., warm_start=True) goes on from them" in text
    expected = whole_fit(done)
    scores = [one.user_factors @ one.item_factors.T for one in (model, expected)]
    np.testing.assert_allclose(*scores, atol=1e-4)
    with pytest.raises(DeviceLostError):  # on the device, still
        model.recommend([0, 1], k=3)
    model.device = "cpu"
    np.testing.assert_allclose(model.recommend([0, 1], k=3)[1], expected.recommend([0, 1], k=3)[1], atol=1e-4)
    model.fit(make_matrix("hu", np.float32), warm_start=True)
    assert len(model.history_) == 6


@needs_kernels
@needs_emulator
def test_a_fit_that_never_came_home_has_its_start_values(monkeypatch):
    model, text, _ = lost_fit(monkeypatch, 0.7)
    assert "had come to nothing yet" in text and not model.history_
    assert np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()


@needs_kernels
@needs_emulator
def test_what_a_callback_saw_is_left(monkeypatch):
    seen = []

    def look(model, record):
        if record.iteration == 1:
            seen.clear()
        seen.append(model.user_factors @ model.item_factors.T)

    model, text, _ = lost_fit(monkeypatch, 0.7, {"callback": look})
    assert 0 < len(seen) == len(model.history_) < 6 and f"after iteration {len(seen)} of 6" in text
    np.testing.assert_array_equal(model.user_factors @ model.item_factors.T, seen[-1])


@needs_kernels
@needs_emulator
def test_the_best_factors_are_left_with_validation(monkeypatch):
    model, text, _ = lost_fit(monkeypatch, 0.8, {"validation": 0.2, "metric": "recall@3"})
    assert model.best_iteration_ and f"The model has the factors after iteration {model.best_iteration_}" in text
    assert len(model.history_) >= model.best_iteration_
    expected = WALS(8, iterations=model.best_iteration_).fit(
        make_matrix("hu", np.float32), validation=0.2, metric="recall@3"
    )
    scores = [one.user_factors @ one.item_factors.T for one in (model, expected)]
    np.testing.assert_allclose(*scores, atol=1e-3)


@needs_kernels
@needs_emulator
def test_the_checkpoint_goes_on(monkeypatch, tmp_path):
    options = {"checkpoint_dir": tmp_path / "kept"}
    model, text, counter = lost_fit(monkeypatch, 0.8, options)
    done = len(model.history_)
    assert 0 < done < 6 and f"after iteration {done}, and {tmp_path / 'kept'} a checkpoint" in text
    assert "the same fit with resume=True goes on from it" in text
    counter["left"] = 10**9  # as in a new process
    model.fit(make_matrix("hu", np.float32), resume=True, **options)
    backend, _ = failing_backend(10**9)
    monkeypatch.setattr("wals_gpu.model.settings.make_backend", lambda *_: backend)
    whole = WALS(8, iterations=6, device="cuda").fit(make_matrix("hu", np.float32))
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)


@needs_kernels
@needs_emulator
@pytest.mark.parametrize("cold", ["map", "regression"])
def test_a_prior_is_finished_on_the_cpu(monkeypatch, cold):
    matrix = make_matrix("hu", np.float32)
    features = np.random.default_rng(0).normal(size=(matrix.shape[1], 3))
    model, _, _ = lost_fit(monkeypatch, 0.7, item_prior=LinearPrior(features, cold=cold))
    assert np.isfinite(model.item_factors).all() and model.item_prior_ is not None
    model.device = "cpu"
    assert np.isfinite(model.recommend([0], k=3)[1]).all()


@needs_kernels
@needs_emulator
def test_the_last_download_may_be_the_one_that_fails(monkeypatch):
    """Nothing is waited for before the end: the error comes when the factors are fetched."""
    backend, counter = failing_backend(10**9)
    monkeypatch.setattr("wals_gpu.model.settings.make_backend", lambda *_: backend)
    model = WALS(8, iterations=2, device="cuda")
    closing = type(backend.session(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))).close

    def close(self):
        counter["left"] = 0
        closing(self)

    monkeypatch.setattr("wals_gpu.backends.cuda.CudaSession.close", close)
    with pytest.raises(DeviceLostError, match="come to nothing yet"):
        model.fit(make_matrix("hu", np.float32))
    assert not model.history_ and np.isfinite(model.user_factors).all()


@needs_kernels
@needs_emulator
def test_a_device_without_memory_is_no_lost_one(monkeypatch):
    backend, _ = failing_backend(10**9)

    def full(n, dtype):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    backend.device.memory.empty = full
    monkeypatch.setattr("wals_gpu.model.settings.make_backend", lambda *_: backend)
    with pytest.raises(MemoryError, match=r"no memory left .* take fewer factors, or use the CPU"):
        WALS(8, device="cuda").fit(make_matrix("hu", np.float32))
