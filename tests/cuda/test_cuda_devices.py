"""Every device that CUDA supports: the kernels within the limits of each, forms that do not fit replaced by others.

The emulator refuses a launch that asks for more than its architecture has, and computes as that does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from emulated import load
from emulated_cuda import ON_DEVICE, EmulatedMemory
from rows import make_check, problem
from solving import solve_rows
from steps import solve_by_reference

from wals_gpu import reference
from wals_gpu._cpu import LIMITS
from wals_gpu.backends import cuda_memory
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_device import DeviceLimits
from wals_gpu.backends.cuda_plan import plan_exact

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import cuda_budgets

pytestmark = [pytest.mark.waits_for("emulator"), pytest.mark.skipif(ON_DEVICE, reason="a device is what it is")]
ARCHITECTURES = [int(name.removeprefix("sm_")) for name in cuda_budgets.PROCESSORS]
ROOMS = {75: 64, 86: 99, 80: 163}  # an architecture of each size of shared memory, in KiB
SIZES = [1, 33, 129, 200, 256, 257]


@pytest.fixture
def on():
    """A backend over the emulator of an architecture."""
    module = load("_emulated")

    def make(architecture, **schedule):
        module.configure(architecture=architecture, **schedule)
        return CudaBackend(module, EmulatedMemory(module))

    yield make
    module.configure()


@pytest.fixture
def checked_on():
    module = load("_emulated_checked")

    def make(architecture):
        module.configure(architecture=architecture, order="random", seed=2, resident_blocks=2)
        return CudaBackend(module, EmulatedMemory(module))

    yield make
    module.configure()


# What each device has


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_emulator_and_the_budgets_mean_the_same_devices(on, architecture):
    limits, processor = on(architecture).device.limits, cuda_budgets.PROCESSORS[f"sm_{architecture}"]
    assert limits.capability == divmod(architecture, 10) and limits.name == f"emulated sm_{architecture}"
    assert limits.threads == 32 * processor.warps and limits.registers == cuda_budgets.REGISTERS
    assert (limits.shared, limits.shared_reserved) == (processor.shared, processor.reserved)
    assert limits.shared_of_block == processor.shared - processor.reserved
    assert limits.processors > 0 and limits.memory_bytes > limits.cache_bytes > 1 << 20


def test_limits_follow_the_shared_memory(on):
    limits = {architecture: on(architecture).device.limits for architecture in ROOMS}
    for architecture, kib in ROOMS.items():
        assert limits[architecture].shared_of_block == kib << 10
        assert limits[architecture].shared_of_each(1) == kib << 10
        for blocks in (2, 3, 5):
            each = limits[architecture].shared_of_each(blocks) + limits[architecture].shared_reserved
            assert blocks * each <= limits[architecture].shared < blocks * (each + 256)
    assert limits[80].kernel_sizes == LIMITS.kernel_sizes
    assert limits[75].kernel_sizes == limits[86].kernel_sizes == LIMITS.kernel_sizes[:-1]
    with pytest.raises(RuntimeError, match="cudaGetDeviceProperties"):
        DeviceLimits.of(load("_emulated"), device=7)


def test_a_launch_beyond_the_device_fails(on):
    """The largest matrices need more than 99 KiB: a plan for another device is not silently wrong."""
    terms, other, start = problem(200, [230])
    big = on(80)
    on(86)
    with pytest.raises(RuntimeError, match=r"limit: .* at most 101376 on sm_86"):
        solve_rows(big, terms, other, start)


#: What is asked of torch.
OF_TORCH = SimpleNamespace(
    version=SimpleNamespace(cuda="13.0"), cuda=SimpleNamespace(is_available=lambda: True, current_device=lambda: 0)
)


def status():
    """Whether the kernels run on the device, and why not."""
    try:
        cuda_memory.load_cuda()
    except RuntimeError as error:
        return False, str(error)
    return True, ""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_supported_device_is_refused(architecture, monkeypatch):
    """Whatever the version of torch: it is not asked about the device."""
    module = load("_emulated")
    module.configure(architecture=architecture)
    real, found = cuda_memory.importlib.import_module, {"wals_gpu._cuda": module, "torch": OF_TORCH}
    monkeypatch.setattr(cuda_memory.importlib, "import_module", lambda name: found.get(name) or real(name))
    assert status() == (True, "")
    module.configure()


def test_older_devices_and_those_left_out_of_a_build_are_refused(monkeypatch):
    def ask(oldest, capability):
        properties = {"name": "V100", "capability": capability}
        found["wals_gpu._cuda"] = SimpleNamespace(
            devices=lambda: (1, ""), device_properties=lambda device: properties, OLDEST_CAPABILITY=oldest
        )
        return status()

    found = {"torch": OF_TORCH}
    real = cuda_memory.importlib.import_module
    monkeypatch.setattr(cuda_memory.importlib, "import_module", lambda name: found.get(name) or real(name))
    assert load("_emulated").OLDEST_CAPABILITY == (7, 5)
    why = "the kernels of this build need compute capability 7.5 or later, V100 has 7.0"
    assert ask((7, 5), (7, 0)) == (False, why)
    assert ask((7, 5), (7, 5)) == (True, "") and ask((8, 0), (12, 1)) == (True, "")
    assert "8.0 or later, V100 has 7.5" in ask((8, 0), (7, 5))[1]


# What runs there


@pytest.mark.parametrize("architecture", ROOMS)
@pytest.mark.parametrize("d", SIZES)
def test_exact_rows(on, architecture, d):
    terms, other, prior = problem(d, [0, 5, 33, 130, 200, 260], "plus", seed=d)
    backend = on(architecture)
    solved = np.full((6, d), np.nan, np.float32)
    solve_rows(backend, terms, other, solved, prior=prior)
    make_check(terms, other, prior)(solved)
    sizes = backend.device.limits.kernel_sizes
    plan = {(rows.form, rows.size) for rows in plan_exact(terms, d, sizes, LIMITS.giant_entries)}
    assert max(size for _, size in plan) <= sizes[-1]
    assert (("large", 0) in plan) == (d > sizes[-1])


@pytest.mark.parametrize("architecture", ROOMS)
@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize(
    "how",
    [{"solver": "cg", "cg_steps": 3}, *({"solver": "subspace", "block_size": size} for size in (16, 128, 256))],
    ids=lambda how: f"{how['solver']}{how.get('block_size', '')}",
)
def test_steps(on, architecture, d, how):
    """Blocks of 256 of subspace steps have their matrices in the workspace where a block's memory is too small."""
    terms, other, start = problem(d, [0, 5, 33, 130, 270], "plus", seed=d, ridge=0.5)
    other *= np.float32(0.3)
    solved = start.copy()
    solve_rows(on(architecture), terms, other, solved, prior=start[::-1].copy(), **how)
    expected = solve_by_reference(terms, other, start, prior=start[::-1].copy(), **how)
    np.testing.assert_allclose(solved, expected, rtol=5e-4, atol=5e-4 * abs(expected).max())


@pytest.mark.parametrize("architecture", ROOMS)
@pytest.mark.parametrize("d", SIZES)
def test_topk(on, architecture, d):
    rng = np.random.default_rng(d)
    x = rng.integers(-3, 4, (67, d)).astype(np.float32)
    y = rng.integers(-3, 4, (1500, d)).astype(np.float32)
    for found, expected in zip(on(architecture).topk(x, y, 10), reference.topk(x, y, 10), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("how", [{}, {"solver": "cg"}, {"solver": "subspace", "block_size": 256}], ids=str)
def test_one_form_gives_the_same_bits_in_every_room(on, how):
    """Slices of half the depth, less of a row kept, matrices in the workspace: the order of sums is the same where a
    block has 128 or 256 columns. Only 7.5 differs: its products are of depth 8."""
    terms, other, start = problem(512, [460, 600])
    results = []
    for architecture in (80, 86, 90, 120):
        solved = start.copy()
        solve_rows(on(architecture), terms, other, solved, **how)
        results.append(solved)
    for solved in results[1:]:
        np.testing.assert_array_equal(solved, results[0])


def test_checked_small_forms(on, checked_on):
    """What only small devices run: no race, no access out of bounds, nothing uninitialised."""
    for d, how in ((140, {}), (140, {"solver": "subspace", "block_size": 256}), (20, {"solver": "cg"})):
        terms, other, start = problem(d, [135, 150] if how.get("solver") != "subspace" else [270])
        plain, checked = start.copy(), start.copy()
        solve_rows(on(75), terms, other, plain, **how)
        solve_rows(checked_on(75), terms, other, checked, **how)
        np.testing.assert_allclose(checked, plain, rtol=1e-4, atol=1e-5 * abs(plain).max())
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3, 40)).astype(np.float32), rng.normal(size=(300, 40)).astype(np.float32)
    for found, expected in zip(checked_on(75).topk(x, y, 20), on(75).topk(x, y, 20), strict=True):
        np.testing.assert_array_equal(found, expected)
