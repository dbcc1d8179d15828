"""Hot loops of the CUDA kernels as the emulator's profiler sees them: no bank conflicts, no wasted sectors."""

import re

import numpy as np
import pytest
from emulated import ROOT
from emulated_cuda import emulated_backend, needs_kernels
from rows import problem
from solving import solve_rows

pytestmark = needs_kernels

# Source text of an access, the space it is in, and wavefronts or sectors over the least possible. The profiler counts 8
# and 16 bytes a lane in halves and quarters of a warp, also where all of them read the same words.
HOT = [
    ("panel.cuh", r"ldmatrix", "shared", 1.0),  # fragments of the Gram
    ("panel.cuh", r"cp_async\(", "shared", 1.0),  # the gather of table rows, where it goes
    ("panel.cuh", r"cp_async\(", "global", 1.0),  # and where it comes from
    ("panel.cuh", r"st<uint2>\(half", "shared", 1.1),  # the split panel; 2 for 32 columns or fewer
    ("split.cuh", r"ld<uint4>\(own", "shared", 1.0),  # fragments of the Cholesky factor
    ("rows.cuh", r"st<float2>\(out", "shared", 1.0),  # sums of the Gram to their tiles
    ("cholesky.cuh", r"(ld|st)<float2>\(at", "shared", 1.0),  # a column of tiles that is reduced,
    ("cholesky.cuh", r"ld4\(from", "shared", 1.34),  # eliminated (the tile that inverts itself is read twice),
    ("cholesky.cuh", r"out\[pair_place", "shared", 1.0),  # and split
    ("cholesky.cuh", r"st4\(inverse", "shared", 1.0),
    ("cholesky.cuh", r"inverse\[tile_place", "shared", 1.0),
    ("cholesky.cuh", r"ld4\(m.inverse", "shared", 1.61),  # and ld4(v), one element for half a warp
    ("solve_exact.cuh", r"ld4\(from\[k\]", "global", 1.02),  # a warp a row: the gather (and col_idx),
    ("solve_exact.cuh", r"kWarpStride \* j \+ i\]", "shared", 1.25),  # tiles to its matrix, one both ways: 2 there,
    ("solve_exact.cuh", r"ld4\(own \+ k", "shared", 1.0),  # and from there a row to a lane
    ("dense_tile.cuh", r"right\[k\]\[column", "shared", 2.0),  # float64, half a warp reads what the other does
    ("dense_tile.cuh", r"left\[l\]\[r\] =", "shared", 2.0),  # of 16 lanes of a column, two meet
    ("dense.cuh", r"ld<uint4>\(own", "global", 1.0),
    ("dense_tile.cuh", r"right\[k\]\[j\] =", "shared", 1.0),
    ("dense.cuh", r"out\[r \* shape.out_stride", "global", 1.0),
    ("dense.cuh", r"out\[(r \* D \+ c|mirror_r)", "global", 1.1),
    ("dense.cuh", r"out\[int64_t\{r\} \* D", "global", 1.5),  # blocks on the diagonal have half rows
    ("solve_iterative.cuh", r"st4\((m.parts|kept)", "shared", 1.0),
    ("solve_iterative.cuh", r"ld4\(row \+ column", "global", 1.0),
    ("topk.cuh", r"ldmatrix", "shared", 1.0),
]


@pytest.fixture(scope="module")
def profile():
    backend = emulated_backend(checked=True)
    backend.device.kernels.reset_profile()
    backend.device.kernels.configure(profile=True)
    for lengths, d in (([*range(14, 33), 35, 60], 64), ([100, 150], 64)):
        terms, other, start = problem(d, lengths)
        solve_rows(backend, terms, other, np.zeros((len(lengths), d), np.float32))
        solve_rows(backend, terms, other, start, solver="cg")
    rng = np.random.default_rng(0)
    queries, items = (rng.normal(size=(n, 64)).astype(np.float32) for n in (70, 600))
    backend.topk(queries, items, 10)
    backend.device.kernels.configure()
    return backend.device.kernels.profile()


@pytest.mark.parametrize(("file", "text", "space", "most"), HOT)
def test_hot_accesses_are_without_conflicts(profile, file, text, space, most):
    source = (ROOT / "csrc" / "cuda" / file).read_text().splitlines()
    lines = [n for n, line in enumerate(source, 1) if re.search(text, line)]
    found = [
        r
        for r in profile
        if r["file"].endswith(file) and r["space"] == space and any(abs(r["line"] - n) <= 1 for n in lines)
    ]
    assert found and sum(r["requests"] for r in found) > 50
    assert sum(r["units"] for r in found) <= 1.001 * most * sum(r["ideal"] for r in found)
