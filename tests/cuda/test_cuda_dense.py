"""Rotations and Gram matrices on the device, beside float64, on what is hard for them."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import emulated_backend, needs_kernels
from rows import make_check, make_terms
from solving import solve_rows

from wals_gpu import reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda_device import Buffers
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, OtherSide
from wals_gpu.backends.cuda_loss import gram_of
from wals_gpu.backends.host import Spectrum

pytestmark = needs_kernels
WIDTHS = [1, 16, 33, 100, 257]


def orthogonal(d, rng):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def table(kind, n, d, rng):
    """Factors that are hard in one way each."""
    y = rng.normal(size=(n, d))
    if kind == "collinear":
        y = rng.normal(size=(n, 1)) * rng.normal(size=d) + 1e-4 * y
    elif kind == "short and long rows":
        y *= np.geomspace(1e-12, 1e12, n)[:, None]
    elif kind == "uneven columns":
        y *= np.geomspace(1, 1e-8, d)
    elif kind == "huge":
        y *= 1e37
    elif kind == "tiny":
        y *= 1e-36
    elif kind == "one number":
        y[:] = np.float32(1 / 3)
    return y.astype(np.float32)


KINDS = ["normal", "collinear", "short and long rows", "uneven columns", "huge", "tiny", "one number"]


def rotations(y, q, checked=False):
    """Factors in the basis q by split products and in float64, and by split products back from the former."""
    device, (n, d) = emulated_backend(checked).device, y.shape
    memory, factors = device.memory, Factors(device.memory, y, "item")
    spectrum = DeviceSpectrum.upload(memory, Spectrum(np.zeros(d), q))
    side, back = OtherSide(device, factors, spectrum, Buffers(device)), memory.empty(n * d, np.float32)
    split = side.rotate(factors.plain(), n, memory.empty(n * side.padded, np.float32), wide=False)
    side.rotate_back(split, n, None, back)
    padded = [memory.download(rows)[: n * side.padded].reshape(n, -1) for rows in (split, side.table)]
    assert not any(rows[:, d:].any() for rows in padded)
    return padded[0][:, :d], padded[1][:, :d], memory.download(back).reshape(n, d)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", WIDTHS)
def test_rotations_have_the_accuracy_that_they_claim(d, kind):
    """(52 + P / 16) 2^-24 of each row's own length by split products; one float32 rounding in float64."""
    rng = np.random.default_rng(d)
    y, q = table(kind, 70, d, rng), orthogonal(d, rng)
    split, wide, back = (a.astype(np.float64) for a in rotations(y, q))
    exact, padded = y.astype(np.float64) @ q, -(-d // 16) * 16
    length = np.linalg.norm(y.astype(np.float64), axis=1)[:, None]
    bound = (52 + padded / 16) * 2.0**-24 * length
    assert (abs(split - exact) <= bound).all()
    assert (abs(back - split @ q.T) <= bound * (1 + 1e-5)).all()
    assert (abs(wide - exact) <= 2.0**-24 * abs(exact) + d * 2.0**-52 * length + 2.0**-149).all()
    if d > 1 and kind == "normal":
        assert (abs(split - exact) > 2.0**-27 * abs(exact)).any()  # the bounds are not for nothing


def test_a_rotation_of_many_columns():
    rng = np.random.default_rng(3)
    y, q = table("collinear", 33, 1024, rng), orthogonal(1024, rng)
    split, _, back = (a.astype(np.float64) for a in rotations(y, q))
    bound = (52 + 1024 / 16) * 2.0**-24 * np.linalg.norm(y, axis=1)[:, None]
    assert (abs(split - y.astype(np.float64) @ q) <= bound).all()
    assert (abs(back - split @ q.T) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_in_its_row(bad):
    rng = np.random.default_rng(4)
    y, q = table("normal", 70, 33, rng), orthogonal(33, rng)
    y[40, 5] = bad
    for rotated in rotations(y, q):
        assert not np.isfinite(rotated[40]).any() and np.isfinite(np.delete(rotated, 40, 0)).all()


def test_checked_rotations():
    rng = np.random.default_rng(5)
    for n, d in ((1, 1), (33, 20), (200, 70)):
        y, q = table("normal", n, d, rng), orthogonal(d, rng)
        for checked, plain in zip(rotations(y, q, checked=True), rotations(y, q), strict=True):
            np.testing.assert_array_equal(checked, plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 33, 100, 257])
def test_gram_matrices_are_sums_in_float64(d, kind):
    """Within n + 8 float64 roundings of the sum of magnitudes: what spectra of weak directions stand on."""
    rng, n = np.random.default_rng(d), 200
    y, weight = table(kind, n, d, rng), rng.uniform(0, 2, n).astype(np.float32)
    device = emulated_backend().device
    factors, weight_there = Factors(device.memory, y, "item"), device.memory.upload(weight)
    gram = device.memory.download(gram_of(device, factors, weight_there, Buffers(device)))[: d * d].reshape(d, d)
    wide = y.astype(np.longdouble)
    exact = (wide.T * weight) @ wide
    allowed = (n + 8) * 2.0**-53 * ((abs(wide).T * weight) @ abs(wide))
    assert (abs(gram - exact) <= allowed).all()
    np.testing.assert_array_equal(gram, gram.T)


@pytest.mark.parametrize("kind", ["normal", "collinear", "uneven columns", "short and long rows"])
@pytest.mark.parametrize("d", [1, 33, 100])
def test_half_sweeps_on_hard_factors_are_those_of_the_cpu(d, kind):
    """Exact solves: residuals and errors within the bounds that the CPU's are held to, of the float64 definition."""
    rng = np.random.default_rng(d)
    other = table(kind, 300, d, rng)
    if kind == "short and long rows":
        other = (other / np.geomspace(1e-12, 1e12, 300)[:, None] * np.geomspace(1e-3, 10, 300)[:, None]).astype("f4")
    terms = make_terms([0, 3, 40, 90, 260], 300, rng, np.float32, ridge=0.1)
    check = make_check(terms, other)
    for backend in (CpuBackend(1), emulated_backend()):
        x = np.zeros((5, d), np.float32)
        solve_rows(backend, terms, other, x)
        check(x)


def test_solvers_want_their_table_in_float64(monkeypatch):
    """By split products, weak directions of nearly collinear factors are noise: a hundred times the error."""
    rng, errors = np.random.default_rng(3), []
    other = table("collinear", 300, 33, rng)
    terms = make_terms([3, 40, 90, 260], 300, rng, np.float32, ridge=1e-3, background=0.01)
    expected, rotate = reference.solve_rows(terms, other), OtherSide.rotate
    for is_wide in (True, False):
        monkeypatch.setattr(OtherSide, "rotate", lambda *args, wide, is_wide=is_wide: rotate(*args, wide=is_wide))
        x = np.zeros((4, 33), np.float32)
        solve_rows(emulated_backend(), terms, other, x)
        errors.append(abs(x - expected).max() / abs(expected).max())
    assert errors[1] > 1e-4 and errors[1] > 30 * errors[0]


@pytest.mark.parametrize("d", [33, 100])
def test_half_sweeps_of_conjugate_gradients_are_those_of_the_cpu(d):
    """Their start is rotated by split products, and where they end is rotated back."""
    rng = np.random.default_rng(d)
    other, start = table("normal", 300, d, rng), table("normal", 5, d, rng)
    terms = make_terms([0, 3, 40, 90, 260], 300, rng, np.float32, ridge=1.0)
    results = []
    for backend in (CpuBackend(1), emulated_backend()):
        x = start.copy()
        solve_rows(backend, terms, other, x, solver="cg", cg_steps=3)
        results.append(x)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5 * abs(results[0]).max())
