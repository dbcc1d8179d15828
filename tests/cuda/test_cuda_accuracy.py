"""What products on tensor cores lose, whatever chip adds them up: the bounds that docs/gpu.md derives."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from emulated import ROOT
from emulated_cuda import ON_DEVICE, emulated_backend, needs_kernels
from rows import make_check, problem
from solving import solve_rows

from wals_gpu.objective.terms import RowTerms

sys.path.insert(0, str(ROOT / "tools"))
from ptx.tensor import MODELS

pytestmark = needs_kernels
UNIT = 2.0**-24  # of float32: most that rounding to nearest changes a number by, relative to it
LEAST = 2.0**-33  # of the largest number of a split: what is lost of others, whatever their size


def of_split_products(chip: str, n: int) -> float:
    """Most that a sum of n products of float32 numbers loses, relative to the sum of their magnitudes.

    2^-22 of each of two numbers are lost, and as much with the product of their low parts; each sum of 16 loses what
    its three mma cut off, two of them of small parts; the sums of 16 are added in float32.
    """
    return 3.01 * 2.0**-22 + MODELS[chip].error() * (1 + 2.0**-9) + -(-n // 16) * UNIT


@pytest.fixture(params=["a device"] if ON_DEVICE else list(MODELS))
def chip(request):
    """In use; a device has its own, of which nothing is known but that no chip is coarser than the first."""
    if ON_DEVICE:
        return "v100"
    kernels = emulated_backend().device.kernels
    kernels.configure(tensor=request.param)
    yield request.param
    kernels.configure()


def gram_sums(n: int, spread: float) -> np.ndarray:
    """Relative errors of the sums of a r^2 of 200 rows with n entries each, which solves of one factor give away.

    All terms are positive, so what is cut off adds up. One entry alone has a right-hand coefficient, so nothing but the
    sum in the denominator is rounded more than a few times.
    """
    rng = np.random.default_rng(n)
    other = (rng.uniform(0.5, 1, (n, 1)) * 10 ** rng.uniform(-spread, 0, (n, 1))).astype(np.float32)
    gram = rng.uniform(0.5, 1, 200 * n).astype(np.float32)
    rhs = np.zeros(200 * n, np.float32)
    rhs[::n] = 1
    zero, one, ridge = np.zeros(1, np.float32), np.ones(1, np.float32), np.full(1, 1e-30, np.float32)
    columns = np.tile(np.arange(n, dtype=np.int32), 200)
    terms = RowTerms(np.arange(201) * n, columns, rhs, gram, 0.0, zero, ridge, one, 0.0)
    x = np.zeros((200, 1), np.float32)
    solve_rows(emulated_backend(), terms, other, x)
    y = other[:, 0].astype(np.float64)
    return x[:, 0] * (gram.reshape(200, n).astype(np.float64) @ y**2) / y[0] - 1


@pytest.mark.parametrize("spread", [0, 1, 3])
@pytest.mark.parametrize("n", [17, 32, 250, 3000])
def test_sums_of_a_row_keep_their_bound(chip, n, spread):
    """5 and 8 roundings of float32: those of sqrt(a) r on both sides, and of the solution."""
    allowed = of_split_products(chip, n) + 13 * UNIT + n * LEAST * 10.0**spread
    assert abs(gram_sums(n, spread)).max() <= allowed


@pytest.mark.skipif(ON_DEVICE, reason="a device has its own tensor cores")
def test_chips_differ_in_what_a_sum_loses():
    """Sums come out too small, and solutions too large, the more so the coarser the chip: the models are in use."""
    shares = {}
    for name in MODELS:
        emulated_backend().device.kernels.configure(tensor=name)
        shares[name] = gram_sums(250, 3).mean()
    emulated_backend().device.kernels.configure()
    assert shares["v100"] > 1.3 * shares["a100"] > 1.5 * shares["h100"] > 1.5 * shares["exact"] > 0


@pytest.mark.parametrize("d", [16, 40, 250])
def test_scores_keep_their_bound(chip, d):
    rng = np.random.default_rng(d)
    x, y = rng.standard_normal((30, d), np.float32), np.abs(rng.standard_normal((400, d), np.float32))
    x[::2] = abs(x[::2])
    ids, scores = emulated_backend().topk(x, y, 400)
    exact, size = (np.take_along_axis(q.astype(float) @ y.T.astype(float), ids.astype(int), 1) for q in (x, abs(x)))
    least = (
        LEAST * abs(x).max(1, keepdims=True) * abs(y).sum(1)[ids] + LEAST * abs(x).sum(1)[:, None] * abs(y).max(1)[ids]
    )
    assert (abs(scores - exact) <= (of_split_products(chip, d) + UNIT) * size + least).all()


@pytest.mark.parametrize("signs", ["plus", "mixed"])
@pytest.mark.parametrize("d", [32, 64, 128, 160])
def test_solutions_are_as_close_as_with_float32_sums(chip, d, signs):
    """Of every shape of the primal and the dual form, with the allowance of all float32 kernels."""
    terms, other, prior = problem(d, [0, 17, d // 2, d + 3, 300], signs, seed=d)
    x = np.full((terms.n_rows, d), np.nan, np.float32)
    solve_rows(emulated_backend(), terms, other, x, prior=prior)
    make_check(terms, other, prior)(x)
