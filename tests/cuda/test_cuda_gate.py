"""What nvcc makes of the CUDA kernels, without a GPU: every kernel for every architecture within its budget, none with
local memory, the tensor-core ones with tensor-core instructions."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import beside
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import cuda_budgets  # noqa: E402

TENSOR_CORES = re.compile(
    r"solve_(primal|dual|dual_warp|subspace|large)_kernel|gram_slices_kernel|subspace_(slices|join)_kernel"
    r"|topk_kernel|topk_merge_kernel<false>|rotate_split_kernel"
)
#: Kernels with more shared memory than some devices have; others do their work there.
LARGE = re.compile(r"(solve_(primal|dual|subspace)|subspace_(slices|join))_kernel<Shape<256|topk_kernel")
ASYNC_COPIES = re.compile(r"solve_(primal|dual|subspace|large)_kernel|(gram|subspace)_slices_kernel|topk_kernel")


compiles = pytest.mark.waits_for("kernels")


@pytest.fixture(scope="module")
def found():
    """Figures of all kernels, each source compiled once. CI sets WALS_GPU_REQUIRE_NVCC: there a skip is a failure."""
    try:
        cuda_budgets.find_tools()
        return beside.result("kernels")
    except cuda_budgets.ToolMissing as error:
        if os.environ.get("WALS_GPU_REQUIRE_NVCC") == "1":
            pytest.fail(f"WALS_GPU_REQUIRE_NVCC=1, but {error}", pytrace=False)
        pytest.skip(str(error))


@compiles
def test_no_kernel_is_above_its_budget(found):
    above = cuda_budgets.excesses(found, cuda_budgets.read())
    assert not above, "\n".join([*above, "If that is meant: python tools/cuda_budgets.py --write"])


@compiles
def test_no_kernel_uses_local_memory(found):
    local = ("stack", "spills", "ldl", "stl")
    uses = {(kernel, on) for kernel, each in found.items() for on, f in each.items() if any(f[k] for k in local)}
    # Without asynchronous copies, a strip on its way takes registers: 88 bytes more than a thread has.
    assert uses <= {("solve_large_kernel<false>", "sm_75")}


@compiles
def test_accesses_know_their_memory(found):
    """None is by a generic address."""
    assert not {kernel for kernel, each in found.items() if any(f["ld"] or f["st"] for f in each.values())}


@compiles
@pytest.mark.parametrize(("pattern", "instruction"), [(TENSOR_CORES, "hmma"), (ASYNC_COPIES, "ldgsts")])
def test_hot_kernels_have_their_instructions(found, pattern, instruction):
    named = [kernel for kernel in found if pattern.match(kernel)]
    assert len(named) >= 10
    for kernel in named:  # 7.5 has no asynchronous copies
        has = {on: bool(each[instruction]) for on, each in found[kernel].items()}
        assert has == {on: (on, instruction) != ("sm_75", "ldgsts") for on in has}, kernel
    assert not any(
        each["hmma"] for kernel in found for each in found[kernel].values() if not TENSOR_CORES.match(kernel)
    )


@compiles
def test_every_kernel_can_be_started(found):
    """On every device but those too small for it."""
    for kernel, each in found.items():
        assert all(f["blocks"] >= 1 and f["threads"] for f in each.values()), kernel
        missing = cuda_budgets.PROCESSORS.keys() - each.keys()
        assert not missing or LARGE.match(kernel), kernel
        assert missing <= {"sm_75"} if kernel.startswith("topk") else missing <= {"sm_75", "sm_86", "sm_89", "sm_120"}


def test_the_gate_compiles_what_is_shipped():
    cmake = (ROOT / "csrc" / "CMakeLists.txt").read_text(encoding="utf-8")
    listed = re.findall(r"cuda/(\w+\.cu)\b", cmake)
    assert sorted(listed) == sorted(source.name for source in cuda_budgets.SOURCES)
    architectures = re.search(r'WALS_CUDA_ARCHITECTURES "([^"]+)"', cmake)[1]
    assert [f"sm_{a}" for a in architectures.split(";")] == list(cuda_budgets.PROCESSORS)


def test_an_excess_is_told():
    """Each figure of each kernel by itself, one worse than its budget and one better."""
    budgets = cuda_budgets.read()
    assert cuda_budgets.excesses(budgets, budgets) == []
    for kernel, each in budgets.items():
        for architecture in each:
            for key, worse in {
                "registers": 1,
                "shared": 1,
                "stack": 1,
                "spills": 1,
                "blocks": -1,
                "threads": 1,
            }.items():
                found = copy.deepcopy({kernel: each})
                found[kernel][architecture][key] += worse
                told = cuda_budgets.excesses(found, {kernel: each})
                assert len(told) == 1 and f"{kernel}, {architecture}: {key} " in told[0]
                if key != "threads":
                    found[kernel][architecture][key] -= 2 * worse
                    assert cuda_budgets.excesses(found, {kernel: each}) == []
    kernel = next(iter(budgets))
    fewer = {name: each for name, each in budgets.items() if name != kernel}
    assert [kernel in told for told in cuda_budgets.excesses(fewer, budgets)] == [True]
    assert [kernel in told for told in cuda_budgets.excesses(budgets, fewer)] == [True]


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [  # as cuda_occupancy.h of CUDA 13.0 says
        ("sm_80", 128, 80, 18_496, 6),
        ("sm_90", 128, 72, 18_496, 7),
        ("sm_90", 256, 88, 69_184, 2),
        ("sm_80", 256, 255, 0, 1),
        ("sm_80", 384, 163, 100_000, 1),
        ("sm_100", 32, 16, 0, 32),
        ("sm_75", 32, 16, 0, 16),
        ("sm_75", 256, 64, 21_700, 3),
        ("sm_75", 256, 64, 21_800, 2),
        ("sm_86", 256, 40, 0, 6),
        ("sm_86", 64, 32, 0, 16),
        ("sm_89", 64, 32, 0, 24),
        ("sm_120", 256, 64, 50_176, 2),
        ("sm_120", 256, 64, 50_177, 1),
    ],
)
def test_blocks_of_a_processor(architecture, threads, registers, shared, blocks):
    assert cuda_budgets.blocks_per_processor(architecture, threads, registers, shared) == blocks


def test_the_documentation_has_these_figures():
    """docs/gpu.md: occupancy from the budgets, floors as benchmarks/lib/gpu_floors.py prints them."""
    page = (ROOT / "docs" / "gpu.md").read_text().splitlines()
    printed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "lib" / "gpu_floors.py"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line for line in page if line.startswith(("| ml-20m |", "| msd |"))] == printed[2:]

    budgets = cuda_budgets.read()
    kernels = {
        "primal, D <= 32": "solve_primal_kernel<Shape<32, 2>>",
        "primal, D <= 64": "solve_primal_kernel<Shape<64, 4>>",
        "primal, D <= 128": "solve_primal_kernel<Shape<128, 8>>",
        "primal, D <= 256": "solve_primal_kernel<Shape<256, 12>>",
        "CG, D <= 128": "solve_cg_kernel<RowShape<32, 1>>",
        "CG, D <= 256": "solve_cg_kernel<RowShape<32, 2>>",
        "subspace, blocks of 64": "solve_subspace_kernel<Shape<64, 4>>",
        "top-k": "topk_kernel<false>",
    }
    first = next(i for i, line in enumerate(page) if line.startswith("| kernel | threads |")) + 2
    for line, (name, kernel) in zip(page[first : first + len(kernels)], kernels.items(), strict=True):
        f = budgets[kernel]["sm_90"]
        kib = f"{f['shared'] / 1024:.3g}" if f["shared"] >= 100 << 10 else f"{f['shared'] / 1024:.1f}"
        warps = f["blocks"] * f["threads"] // 32
        cells = [name, f["threads"], f["registers"], f"{kib} KiB", f["blocks"], warps, f["hmma"], f["ldgsts"]]
        assert line == "| " + " | ".join("-" if cell == 0 else str(cell) for cell in cells) + " |"
