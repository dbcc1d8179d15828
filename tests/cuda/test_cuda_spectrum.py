"""The eigenproblem on the device, beside numpy.linalg.eigh in float64."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda import SCHEDULES, emulated_backend, needs_kernels
from rows import make_matrix, problem

from wals_gpu import ModelFitError
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_device import Buffers
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, OtherSide
from wals_gpu.backends.cuda_loss import gram_of, spectrum_of
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.objective.presets import make_objective

pytestmark = needs_kernels
EPS = np.finfo(np.float64).eps


def basis(d, rng):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def with_values(values, rng):
    q = basis(len(values), rng)
    gram = (q * values) @ q.T
    return (gram + gram.T) / 2


def spread(power):
    return lambda d, rng: with_values(np.geomspace(1, 10.0**-power, d), rng)


def deficient(d, rng):
    rows = rng.normal(size=(d // 2 + 1, d))
    return rows.T @ rows


def collinear(d, rng):
    rows = rng.normal(size=(3 * d, 1)) + 1e-9 * rng.normal(size=(3 * d, d))
    return rows.T @ rows


KINDS = {
    "random": lambda d, rng: with_values(rng.uniform(1, 2, d), rng),
    "spread by 1e4": spread(4),
    "spread by 1e12": spread(12),
    "rank-deficient": deficient,
    "collinear": collinear,
    "three values": lambda d, rng: with_values(np.array([1.0, 5.0, 9.0])[np.arange(d) % 3], rng),
    "one value": lambda d, rng: 3 * np.eye(d),
    "diagonal": lambda d, rng: np.diag(rng.uniform(0, 1, d)),
    "a column without data": lambda d, rng: np.pad(deficient(d, rng)[1:, 1:], (1, 0)),
    "huge": lambda d, rng: 1e80 * spread(3)(d, rng),
    "tiny": lambda d, rng: 1e-80 * spread(3)(d, rng),
    "zero": lambda d, rng: np.zeros((d, d)),
}


def decompose(gram, start=None, checked=False, **schedule):
    device, d = emulated_backend(checked).device, len(gram)
    device.kernels.configure(**schedule)
    memory, address = device.memory, device.memory.address
    arrays = [None if a is None else memory.upload(np.asarray(a, np.float64)) for a in (gram, start)]
    values, vectors = memory.empty(d, np.float64), memory.empty(d * d, np.float64)
    workspace = memory.empty(device.kernels.spectrum_bytes(d), np.uint8)
    where = [0 if a is None else address(a) for a in arrays]
    device.kernels.spectrum(where[0], d, where[1], address(values), address(vectors), address(workspace), memory.stream)
    device.kernels.configure()
    return memory.download(values), memory.download(vectors).reshape(d, d)


def check(gram, values, vectors):
    """Values, residuals and orthogonality within 2 (D + 8) roundings of the largest value."""
    d, exact = len(gram), np.linalg.eigvalsh(gram)
    bound = 2 * (d + 8) * EPS
    assert (np.diff(values) >= 0).all() and (values >= 0).all()
    assert abs(values - exact).max() <= bound * exact[-1]
    assert abs(gram @ vectors - vectors * values).max() <= bound * exact[-1]
    assert abs(vectors.T @ vectors - np.eye(d)).max() <= bound


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2, 3, 17, 32, 33, 64, 100])
def test_spectrum_is_that_of_lapack(d, kind):
    gram = KINDS[kind](d, np.random.default_rng(d))
    values, vectors = decompose(gram)
    check(gram, values, vectors)
    if kind in ("rank-deficient", "a column without data"):
        assert (values == 0).sum() == np.sum(np.linalg.eigvalsh(gram) <= d * EPS * values[-1])
    with pytest.raises(AssertionError):  # the check can fail
        check(gram, values * (1 + 1e-12) + 1e-300, vectors * (1 + 1e-12))


@pytest.mark.parametrize("d", [128, 200, 256])
def test_large_spectrum(d):
    for kind in ("spread by 1e4", "rank-deficient") if d < 256 else ("spread by 1e4",):
        gram = KINDS[kind](d, np.random.default_rng(d))
        check(gram, *decompose(gram))


@pytest.mark.parametrize("d", [5, 70])
def test_spectrum_has_the_same_bits_in_any_order_of_blocks(d):
    gram = spread(4)(d, np.random.default_rng(d))
    results = [np.column_stack(decompose(gram, **schedule)) for schedule in SCHEDULES]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_spectrum_from_an_earlier_basis():
    """Of a Gram matrix that has changed by a hundredth: as good as from scratch, from any basis, and its own."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(300, 70)) * np.geomspace(1, 0.01, 70)
    before = decompose(rows.T @ rows)[1]
    rows *= 1 + 0.01 * rng.normal(size=rows.shape)
    gram = rows.T @ rows
    for start in (before, np.eye(70), basis(70, rng)):
        check(gram, *decompose(gram, start))
    np.testing.assert_array_equal(decompose(gram, np.eye(70))[1], decompose(gram)[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gram_matrix_that_is_not_finite(bad):
    gram = np.eye(40)
    gram[3, 7] = gram[7, 3] = bad
    assert np.isnan(decompose(gram)[0]).all()
    terms, other, _ = problem(5, [3, 4])
    other[2, 1] = bad
    with pytest.raises(ModelFitError, match="NaN or infinity encountered in the factors or their Gram matrix"):
        emulated_backend().spectrum(terms, other)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_checked_spectrum(schedule):
    for d in (3, 40, 50):
        gram = spread(3)(d, np.random.default_rng(d))
        for start in (None, basis(d, np.random.default_rng(1))):
            check(gram, *decompose(gram, start, checked=True, **schedule))


class Watched:
    """Memory that says what is copied from it, and to it but for a weight."""

    def __init__(self, memory):
        self.memory, self.downloads, self.uploads = memory, 0, 0

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def upload(self, array):
        self.uploads += np.size(array) > 1
        return self.memory.upload(array)

    def download(self, array):
        self.downloads += 1
        return self.memory.download(array)


def test_a_spectrum_stays_on_the_device(monkeypatch):
    device = emulated_backend().device
    terms, other, _ = problem(20, [3, 4])
    backend = CudaBackend(device.kernels, device.memory)
    table, buffers = Factors(device.memory, other, "other", is_kept=True), Buffers(device)
    backend.terms.upload(terms)
    memory = Watched(device.memory)
    monkeypatch.setattr(device, "memory", memory)
    found = spectrum_of(device, backend.terms, terms, table, buffers)
    side = OtherSide(device, table, found, buffers)
    assert memory.downloads == memory.uploads == 0
    assert side.spectrum is found.values
    values, vectors = found.download(memory)
    expected = CpuBackend(1).spectrum(terms, other)
    np.testing.assert_allclose(values, expected.values, atol=1e-13 * values[-1])
    rotated = np.array(memory.download(side.table)).reshape(len(other), -1)[:, :20]
    np.testing.assert_allclose(rotated, other @ vectors, atol=1e-6)
    weight = memory.upload(terms.other_background)
    gram = memory.download(gram_of(device, table, weight, buffers)).reshape(20, 20)
    wide = other.astype(np.float64)
    np.testing.assert_allclose(gram, wide.T @ (wide * terms.other_background[:, None]), rtol=1e-12, atol=1e-12)
    none = DeviceSpectrum.upload(memory, expected._replace(vectors=None)).download(memory)
    np.testing.assert_array_equal(none.values, expected.values)
    assert none.vectors is None


def test_items_start_from_the_basis_of_users_and_resumed_fits_have_the_bits_of_others(monkeypatch):
    backend, rng = emulated_backend(), np.random.default_rng(9)
    matrix = make_matrix("ials", np.float32)
    bound = make_objective("ials", regularization=0.1).bind(matrix)
    terms = {"user": bound.user_terms(matrix), "item": bound.item_terms(backend.transpose(matrix))}
    kernels, starts = backend.device.kernels.spectrum, []
    monkeypatch.setattr(backend.device.kernels, "spectrum", lambda *args: starts.append(args[2] != 0) or kernels(*args))

    def fit(sides, iterations):
        with backend.session(*(array.copy() for array in sides)) as session:
            for _ in range(iterations):
                session.iterate(terms["user"], terms["item"], SolveOptions())
            return [session.factors(side).copy() for side in ("user", "item")]

    first = [rng.normal(size=(n, 20)).astype(np.float32) * 0.1 for n in matrix.shape]
    whole, resumed = fit(first, 4), fit(fit(first, 2), 2)
    np.testing.assert_array_equal(np.vstack(resumed), np.vstack(whole))
    assert starts == [False, True] * 6  # of each session the first iteration, and the second as it is recorded
    with backend.session(*(array.copy() for array in first)) as session:  # half-sweeps one by one
        for side in ("user", "item") * 4:
            session.solve(side, terms[side], SolveOptions())
        np.testing.assert_array_equal(session.factors("item"), whole[1])
        starts.clear()
        session.solve("item", terms["item"], SolveOptions())  # not after the users'
        assert starts == [False]
