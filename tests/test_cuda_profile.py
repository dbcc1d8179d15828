"""Hot loops of the CUDA kernels as the emulator's profiler sees them: no bank conflicts, no wasted sectors."""

import re

import numpy as np
import pytest
from emulated import ROOT
from emulated_cuda import emulated_backend
from test_cuda_solve_rows import problem

# Source text of an access that must be without conflicts, and the space it is in.
HOT = [
    ("panel.cuh", r"ldmatrix", "shared"),  # fragments of the Gram
    ("panel.cuh", r"cp_async<16>", "shared"),  # the gather of table rows, where it goes
    ("panel.cuh", r"cp_async<16>", "global"),  # and where it comes from
    ("split.cuh", r"ld<uint4>\(tile", "shared"),  # fragments of the Cholesky factor
]


@pytest.fixture(scope="module")
def profile():
    backend = emulated_backend(checked=True)
    backend._cuda.reset_profile()
    backend._cuda.configure(profile=True)
    for lengths, d in (([20, 35, 60], 64), ([100, 150], 64)):
        terms, other, _ = problem(d, lengths)
        backend.solve_rows(terms, other, np.zeros((len(lengths), d), np.float32))
    backend._cuda.configure()
    return backend._cuda.profile()


@pytest.mark.parametrize(("file", "text", "space"), HOT)
def test_hot_accesses_are_without_conflicts(profile, file, text, space):
    source = (ROOT / "csrc" / "cuda" / file).read_text().splitlines()
    lines = [n for n, line in enumerate(source, 1) if re.search(text, line)]
    found = [
        r
        for r in profile
        if r["file"].endswith(file) and r["space"] == space and any(abs(r["line"] - n) <= 1 for n in lines)
    ]
    assert found and sum(r["requests"] for r in found) > 50
    assert sum(r["units"] for r in found) <= 1.1 * sum(r["ideal"] for r in found)
