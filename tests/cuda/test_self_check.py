"""The self-check of a CUDA device: what it finds, what is kept of it, and what device="auto" makes of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
from emulated_cuda import ON_DEVICE, EmulatedMemory, emulated_backend, needs_kernels
from once import once
from rows import make_matrix

import wals_gpu
from wals_gpu import WALS, ParameterWarning
from wals_gpu.backends import auto, self_check
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.devices import make_backend
from wals_gpu.cli import main

pytestmark = [needs_kernels, pytest.mark.skipif(ON_DEVICE, reason="kernels of a device are right or wrong for good")]


class Planted(ModuleType):
    """The emulated kernels, with one of them wrong: it gets other arguments than it was given, or none."""

    def __init__(self, inner, name="", wrong=None):
        super().__init__("planted")
        self._inner, self._name, self._wrong = inner, name, wrong

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name == "device_properties":
            return lambda *given: found(*given) | {"name": "a device"}
        return (lambda *given: self._wrong(found, *given)) if name == self._name else found


def device(name="", wrong=None):
    kernels = emulated_backend().device.kernels
    kernels.configure()
    return CudaBackend(Planted(kernels, name, wrong), EmulatedMemory(kernels))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is known of the device, and a fit is timed in no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("WALS_GPU_SELF_CHECK", raising=False)
    monkeypatch.setattr(self_check, "_KNOWN", {})
    monkeypatch.setattr(self_check, "TIMED", ((30, 20, 100), (60, 40, 1_000)))
    monkeypatch.setattr(self_check, "TIMED_FACTORS", 8)
    return tmp_path / "wals_gpu"


@pytest.fixture
def checks(monkeypatch):
    """How often the cases were run; of them two will do here."""
    made, few = [], [case for case in self_check.cases() if case.family in ("Gram matrices", "losses")][::7]

    def cases():
        made.append(1)
        return iter(few)

    monkeypatch.setattr(self_check, "cases", cases)
    return made


def forget(monkeypatch):
    """As a new process begins."""
    monkeypatch.setattr(self_check, "_KNOWN", {})


def use(monkeypatch, backend):
    """Ask for device="cuda", and get this one."""
    monkeypatch.setattr("wals_gpu.backends.devices.load_cuda", lambda index=None: backend.device.kernels)
    monkeypatch.setattr(self_check, "cuda_backend", lambda index=None: backend)


# What is compared


class Watched(Planted):
    """The emulated kernels; notes which of them are started, and which forms of exact solves."""

    def __init__(self, inner):
        super().__init__(inner)
        self.started, self.forms = [], set()

    def __getattr__(self, name):
        found = super().__getattr__(name)
        if "Stream" in (getattr(found, "__doc__", None) or "") and callable(found):
            self.started.append(name)
        if name != "solve_exact":
            return found

        def seen(rows, form, size, *more):
            self.forms.add((form, size))
            return found(rows, form, size, *more)

        return seen


@once
def whole_check():
    """The outcome of a check, the forms of exact solves that it met, and for each kernel the cases that start it."""
    kernels = emulated_backend().device.kernels
    kernels.configure()
    watched = Watched(kernels)
    backend = CudaBackend(watched, EmulatedMemory(kernels))
    watched.started.clear()
    left, of_kernel = list(self_check.cases()), {}

    def tell(_line):
        case = left.pop(0)
        for name in watched.started:
            of_kernel.setdefault(name, {})[case.family, case.sizes] = case
        watched.started.clear()

    outcome = self_check.self_check(backend, tell=tell)
    assert not left
    return outcome, watched.forms, of_kernel


def few_cases(monkeypatch, *families):
    """Those of some families alone."""
    some = [case for case in self_check.cases() if case.family.startswith(families)]
    monkeypatch.setattr(self_check, "cases", lambda: iter(some))


def test_the_kernels_pass_with_room_to_spare():
    outcome, _, _ = whole_check()
    assert outcome.failures == [] and len(outcome.families) > 12
    assert max(outcome.families.values()) < 0.3
    assert len(outcome.cpu) == len(outcome.cuda) == 2 and min(outcome.cpu + outcome.cuda) >= 0


def skipped(found, *given):
    """A kernel that is never started."""


def test_no_kernel_can_be_left_out_unnoticed():
    """Whatever a case starts: where it does nothing, that case or another one says so."""
    _, _, of_kernel = whole_check()
    assert {"solve_exact", "solve_sliced", "solve_cg", "solve_subspace", "topk"} <= set(of_kernel)
    unnoticed = [
        name
        for name, cases in of_kernel.items()
        if not any(self_check.compare(case, device(name, skipped), CpuBackend(1))[1] for case in cases.values())
    ]
    # What this one looks for, the solves in float64 find too where rounding does not hide it.
    assert set(unnoticed) <= {"mark_undetermined"}


def test_one_row_that_is_left_out_is_found_with_its_form_and_size(monkeypatch):
    """The kernel of the dual form for up to 128 entries leaves out its last row."""
    few_cases(monkeypatch, "exact solves")

    def short(found, rows, form, size, numbers, n, *more):
        found(rows, form, size, numbers, n - ((form, size) == ("dual", 128)), *more)

    outcome = self_check.self_check(device("solve_exact", short))
    assert {text.split(" (")[0] for text in outcome.failures} == {"exact solves, dual"}
    assert any("128 factors, rows of 33, 64, 65, 112 entries" in text for text in outcome.failures)


def test_errors_above_what_is_allowed_are_found():
    case = next(case for case in self_check.cases() if case.family == "exact solves, primal" and "64 f" in case.sizes)

    class Off:
        def __init__(self, scale):
            self.scale = np.float32(scale)

        def solve_rows(self, terms, other, x, options, **more):
            CpuBackend(1).solve_rows(terms, other, x, options, **more)
            x[0, 5] += self.scale * np.abs(x).max()

    for scale, is_wrong in ((1e-6, False), (5e-5, True)):
        worst, what = self_check.compare(case, Off(scale), CpuBackend(1))
        assert bool(what) == is_wrong and (worst > 1) == is_wrong
    assert "of the largest value; 2e-05 is allowed" in what


def test_every_form_and_size_is_met():
    _, forms, _ = whole_check()
    sizes = emulated_backend().device.kernels.LIMITS.kernel_sizes
    assert forms >= {("diagonal", 0), *((form, size) for form in ("dual", "primal") for size in sizes)}


def test_an_error_of_a_kernel_is_a_failure_and_a_lost_device_ends_the_check(monkeypatch):
    few_cases(monkeypatch, "Gram", "conjugate gradients", "top-k")

    def refused(found, *given):
        raise RuntimeError("launch of topk: invalid argument")

    outcome = self_check.self_check(device("topk", refused))
    assert all(failure.startswith("top-k (") for failure in outcome.failures)
    assert outcome.failures[0].startswith("top-k (1 queries, 1 items, 1 factors, k = 1): RuntimeError: launch of topk")

    def lost(found, *given):
        raise RuntimeError("launch of solve_cg: an illegal memory access was encountered")

    outcome = self_check.self_check(device("solve_cg", lost), again=True)
    assert len(outcome.failures) == 1 and "conjugate gradients (1 factors" in outcome.failures[0]
    assert "top-k" not in outcome.families


# What is kept


def test_the_outcome_is_kept_for_device_driver_and_build(checks, monkeypatch, cache):
    first = self_check.self_check(device())
    forget(monkeypatch)
    assert self_check.self_check(device()) == first and len(checks) == 1
    (path,) = cache.glob("self_check-*.json")
    content = json.loads(path.read_text())
    assert set(content["key"]) >= {"device", "driver", "build"}
    key, _ = self_check.place_of(device())
    real = self_check.place_of
    for name in key:  # another one has another outcome
        with monkeypatch.context() as other:
            other.setattr(self_check, "place_of", lambda b, n=name: (real(b)[0] | {n: "another"}, path))
            forget(other)
            self_check.self_check(device())
    assert len(checks) == 1 + len(key)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"key": {}}', "KEY null", 'KEY {"device": "x", "failures": 3}', 'KEY {"other": 1}',
     'KEY {"device": "x", "cpu": [1]}', 'KEY {"device": "x", "cpu": ["a", 1], "cuda": [1, 2]}'],
)  # fmt: skip
def test_a_damaged_file_is_no_outcome(checks, cache, content):
    key, path = self_check.place_of(device())
    path.parent.mkdir()
    if content.startswith("KEY"):
        content = f'{{"key": {json.dumps(key)}, "outcome": {content[4:]}}}'
    path.write_text(content)
    assert self_check.self_check(device()).failures == [] and len(checks) == 1
    assert json.loads(path.read_text())["outcome"]["failures"] == []


def test_nowhere_to_keep_it(checks, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert self_check.self_check(device()).failures == []
    assert len(checks) == 1  # this process knows it
    forget(monkeypatch)
    self_check.self_check(device())
    assert len(checks) == 2


def test_a_check_that_was_killed_is_a_failure_and_one_that_was_interrupted_is_none(checks, monkeypatch, cache):
    def stopping(error):
        def cases():
            raise error
            yield

        monkeypatch.setattr(self_check, "cases", cases)

    real = self_check.cases
    stopping(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        self_check.self_check(device())
    assert list(cache.glob("*.json")) == []
    with monkeypatch.context() as killed:  # nothing is cleaned up then
        killed.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            self_check.self_check(device())
    monkeypatch.setattr(self_check, "cases", real)
    use(monkeypatch, device())
    with pytest.raises(RuntimeError, match="did not come to its end: `wals-gpu doctor --gpu` repeats it"):
        make_backend("cuda")
    assert self_check.self_check(device(), again=True).failures == []
    assert make_backend("cuda").name == "cuda"


def test_two_processes_check_once(tmp_path):
    """The second waits for the first, and takes over what it found."""
    code = (
        "import sys, time, types; from wals_gpu.backends import self_check as s; from pathlib import Path\n"
        "class Memory: device = None\n"
        "limits = types.SimpleNamespace(name='x', capability=(9, 0))\n"
        "device = types.SimpleNamespace(memory=Memory(), kernels=object(), limits=limits)\n"
        "backend = types.SimpleNamespace(device=device)\n"
        "def run(b, tell):\n"
        "    print('checked', flush=True); time.sleep(1.5); return s.Outcome('x', seconds=1.5)\n"
        "s._run = run; s.self_check(backend)"
    )
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)
    ]
    assert "".join(one.communicate(timeout=60)[0] for one in both) == "checked\n"
    assert [one.returncode for one in both] == [0, 0]


def test_the_environment_has_the_last_word(checks, monkeypatch):
    use(monkeypatch, device("gram", skipped))
    monkeypatch.setenv("WALS_GPU_SELF_CHECK", "0")
    assert make_backend("cuda").name == "cuda" and not checks
    monkeypatch.setenv("WALS_GPU_SELF_CHECK", "1")
    with pytest.raises(RuntimeError, match="WALS_GPU_SELF_CHECK=0 uses the device all the same"):
        make_backend("cuda")
    assert wals_gpu.cuda_status()[1].startswith("a device failed the self-check: Gram matrices (1 rows")
    use(monkeypatch, device())
    with pytest.raises(RuntimeError):  # it is known
        make_backend("cuda")
    forget(monkeypatch)
    monkeypatch.setenv("WALS_GPU_SELF_CHECK", "again")
    assert make_backend("cuda").name == make_backend("cuda").name == "cuda" and len(checks) == 2  # once a process
    assert wals_gpu.cuda_status() == (True, "")
    monkeypatch.setenv("WALS_GPU_SELF_CHECK", "yes")
    with pytest.raises(RuntimeError, match="WALS_GPU_SELF_CHECK must be 0, 1 or again, got 'yes'"):
        make_backend("cuda")


# device="auto"


@pytest.fixture
def large(monkeypatch, checks):
    """Any fit is large enough to ask for a device, and the device is fast."""
    monkeypatch.setattr(auto, "LEAST_WORK", 0.0)
    monkeypatch.setattr(auto, "START_SECONDS", 0.0)
    monkeypatch.setattr(self_check, "_line", lambda backend: [0.1, 1e-9] if backend.name == "cpu" else [0.01, 1e-10])


def auto_fit(factors=8, iterations=3, **options):
    settings = {name: options.pop(name) for name in ("dtype", "solver") if name in options}
    return WALS(factors, iterations=iterations, **settings).fit(make_matrix("hu", np.float32), **options)


def test_a_large_fit_goes_to_the_device_and_answers_stay_on_the_cpu(monkeypatch, large, caplog):
    backend = device()
    use(monkeypatch, backend)
    opened = []
    opening = backend.session
    monkeypatch.setattr(backend, "session", lambda *sides, **how: opened.append(1) or opening(*sides, **how))
    monkeypatch.setattr(backend, "topk", lambda *_, **__: pytest.fail("searched on the device"))
    with caplog.at_level(logging.INFO, "wals_gpu"):
        model = auto_fit()
    assert opened == [1]
    assert model.device_ == "cuda (device='auto': a device is about 10 times as fast in such a fit)"
    assert [record.message for record in caplog.records] == [model.device_]
    assert "cuda (device=&#x27;auto&#x27;" in model._repr_html_()
    on_cpu = WALS(8, iterations=3, device="cpu").fit(make_matrix("hu", np.float32))
    assert on_cpu.device_ == "cpu"
    np.testing.assert_allclose(model.recommend([0, 1], k=3)[1], on_cpu.recommend([0, 1], k=3)[1], atol=1e-3)


def test_a_small_fit_asks_nothing_of_cuda(monkeypatch):
    monkeypatch.setattr(self_check, "cuda_backend", lambda index=None: pytest.fail("asked"))
    assert auto_fit().device_ == "cpu (device='auto': the fit is small)"


def test_a_device_that_would_not_be_faster(monkeypatch, large):
    use(monkeypatch, device())
    monkeypatch.setattr(self_check, "_line", lambda backend: [0.1, 1e-9])
    assert auto_fit().device_ == "cpu (device='auto': a device would save nothing of some 0.3 s)"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dtype": "float64"}, "CUDA devices compute in float32"),
        ({"factors": 1025, "iterations": 1}, "factors must be from 1 to 1024 on a CUDA device, got 1025"),
        ({"validation": 0.2, "metric": "ndcg@1025"}, "k must be at most 1024 on a CUDA device, got 1025"),
    ],
)
def test_what_a_device_does_not_do_is_the_cpus(monkeypatch, large, options, why):
    use(monkeypatch, device())
    assert auto_fit(**options).device_ == f"cpu (device='auto': {why})"


def test_a_device_that_is_too_small(monkeypatch, large):
    kernels = emulated_backend().device.kernels
    use(monkeypatch, CudaBackend(kernels, EmulatedMemory(kernels), memory_limit=1 << 20))
    assert "GiB on the CUDA device, 0.0 are free)" in auto_fit().device_


def test_no_driver(monkeypatch, large):
    if wals_gpu.cuda_status()[0]:
        pytest.skip("there is a device here")
    model = auto_fit()
    assert model.device_ == f"cpu (device='auto': {wals_gpu.cuda_status()[1]})"


def test_a_device_that_computes_wrong_is_found_by_us(monkeypatch, large):
    """With one warning; asked for by name, it is an error."""
    use(monkeypatch, device("gram", skipped))
    with pytest.warns(ParameterWarning, match=r"device='auto' takes the CPU: a device failed the self-check: Gram"):
        model = auto_fit()
    assert model.device_.startswith(
        "cpu (device='auto': a device failed the self-check: Gram matrices (1 rows, 1 factors"
    )
    with pytest.raises(RuntimeError, match=r"failed the self-check: Gram matrices \(1 rows, 1 factors\)"):
        WALS(device="cuda")


def test_a_resumed_fit_stays_on_its_device(monkeypatch, large, tmp_path):
    use(monkeypatch, device())
    matrix, folder = make_matrix("hu", np.float32), {name: tmp_path / name for name in ("cuda", "cpu")}
    for name, on in (("cuda", "auto"), ("cpu", "cpu")):
        WALS(8, iterations=2, device=on).fit(matrix, checkpoint_dir=folder[name])
        whole = WALS(8, iterations=4, device=on).fit(matrix)
        monkeypatch.setattr(auto, "LEAST_WORK", 1e30)  # a fit of today would be small
        resumed = WALS(8, iterations=4).fit(matrix, checkpoint_dir=folder[name], resume=True)
        assert resumed.device_.startswith(f"{name} (device='auto': the checkpoint is of ")
        np.testing.assert_array_equal(resumed.user_factors, whole.user_factors)
        monkeypatch.setattr(auto, "LEAST_WORK", 0.0)


# wals-gpu doctor


def run(capsys, *words):
    status = main(list(words))
    return status, capsys.readouterr().out


def test_doctor_checks_the_device_and_prints_what_it_found(monkeypatch, checks, capsys, cache):
    use(monkeypatch, device())
    for _ in range(2):  # whatever is known
        status, text = run(capsys, "doctor", "--gpu")
        assert status == 0
        assert "Gram matrices (1 rows, 1 factors): right, " in text
        assert "Self-check     passed on a device, " in text and "times as fast there as on the CPU" in text
    assert len(checks) == 2 and str(next(cache.glob("*.json"))) in text
    use(monkeypatch, device("gram", skipped))
    status, text = run(capsys, "doctor", "--gpu", "--json")
    info = json.loads(text)["cuda"]["self_check"]
    assert status == 1 and not info["passed"] and info["failures"][0].startswith("Gram matrices (1 rows")
    status, text = run(capsys, "doctor", "--gpu")
    assert status == 1 and "Self-check     FAILED on a device" in text and "Failure 1      Gram matrices" in text


def test_doctor_says_no_where_make_backend_does(monkeypatch, checks, capsys):
    monkeypatch.setattr("wals_gpu.cli.installation._cuda_devices", lambda: (1, None))
    monkeypatch.setattr("wals_gpu.cli.installation.find_spec", lambda name: name)
    use(monkeypatch, device("gram", skipped))
    with pytest.raises(RuntimeError) as refused:
        make_backend("cuda")
    status, text = run(capsys, "doctor")
    assert status == 0 and f"CUDA           no: {refused.value}" in text


def test_doctor_without_a_device(capsys):
    if wals_gpu.cuda_status()[0]:
        pytest.skip("there is a device here")
    status, text = run(capsys, "doctor", "--gpu")
    assert status == 1 and f"Self-check     NOT RUN: {wals_gpu.cuda_status()[1]}" in text


@pytest.mark.parametrize("device", ["cpu", "1", "cuda:"])
def test_doctor_checks_cuda_devices_alone(device, capsys):
    assert main(["doctor", "--gpu", device]) == 2
    assert f"--gpu must be cuda, cuda:0, ..., or stand alone; got {device!r}" in capsys.readouterr().err


def test_kernels_and_torch_of_different_cuda(monkeypatch, checks, capsys):
    use(monkeypatch, device())
    monkeypatch.setattr("wals_gpu.cli.installation._cuda_devices", lambda: (1, None))
    monkeypatch.setattr("wals_gpu.cli.installation.cuda_of_torch", lambda: "12.6")
    module = ModuleType("wals_gpu._cuda")
    module.CUDA_VERSION, module.__spec__ = "13.0.48", ModuleSpec("wals_gpu._cuda", None)
    monkeypatch.setitem(sys.modules, "wals_gpu._cuda", module)
    monkeypatch.setattr("wals_gpu._cuda", module, raising=False)
    text = run(capsys, "doctor")[1]
    assert "CUDA           yes, 1 device(s); the kernels were built with CUDA 13.0.48, torch with 12.6" in text
    assert "if not, build with an nvcc of CUDA 12" in text
    monkeypatch.setattr("wals_gpu.cli.installation.cuda_of_torch", lambda: "13.1")
    assert "torch with" not in run(capsys, "doctor")[1]
