"""Gram matrices, their spectra and losses on the device: dot products and sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, OtherSide, check_factors
from wals_gpu.backends.cuda_terms import TermsCache
from wals_gpu.backends.host import has_background
from wals_gpu.objective.terms import RowTerms, SideTerms

__all__ = ["data_loss", "gram_of", "ridge_loss", "row_loss", "spectrum_of"]


def spectrum_of(device: Device, terms: SideTerms, other: Factors, start: Any = None) -> DeviceSpectrum:
    """As :meth:`.cpu.CpuBackend.spectrum`, in device memory: nothing is copied there or back but the weights, and
    nothing waits. NaN where the Gram matrix is not finite.

    `start`, if there is one, is an orthogonal basis (D, D) in device memory, flat float64, in which the Gram matrix is
    nearly diagonal, as the vectors of an earlier one may be: from there it takes fewer sweeps. Last bits depend on it.
    """
    memory, d = device.memory, other.host.shape[1]
    if not has_background(terms):
        return DeviceSpectrum(memory.zeros(d, np.float64))
    gram = gram_of(device, other, terms.other_background)
    values, vectors = memory.empty(d, np.float64), memory.empty(d * d, np.float64)
    workspace, address = memory.empty(device.kernels.spectrum_bytes(d), np.uint8), memory.address
    device.kernels.spectrum(
        address(gram),
        d,
        0 if start is None else address(start),
        address(values),
        address(vectors),
        address(workspace),
        memory.stream,
    )
    return DeviceSpectrum(values, vectors)


def data_loss(device: Device, cache: TermsCache, user_terms: RowTerms, users: Factors, items: Factors) -> float:
    """The loss but for its ridges."""
    total, side = user_terms.target_square, OtherSide(device, items, None)
    for rows, terms in cache.parts(user_terms, side):
        n = terms.host.n_rows
        x = side.rotate(users.plain(rows), n, wide=False)
        total += row_loss(device, terms.rows(side, x), n, wide=True)
    grams = (
        device.memory.download(gram_of(device, factors, weight))
        for factors, weight in ((users, user_terms.background), (items, user_terms.other_background))
    )
    return total + float(np.vdot(*grams))


def row_loss(device: Device, rows: Any, n: int, *, wide: bool) -> float:
    """Sum of the rows' parts of the loss."""
    memory = device.memory
    parts = memory.empty(max(n, 1), np.float64)
    device.kernels.row_loss(rows, wide, memory.address(parts), memory.stream)
    return _sum(device, parts, n)


def ridge_loss(
    device: Device, factors: Factors, ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
) -> float:
    """As :meth:`.cpu.CpuBackend.ridge_loss`."""
    memory, (n, d) = device.memory, factors.host.shape
    if n == 0:
        return 0.0
    check_factors(factors.host)
    x, weight = factors.plain(), memory.upload(ridge.astype(np.float32))
    means = None if prior is None else memory.upload(np.asarray(prior, np.float32))
    parts = memory.empty(n, np.float64)
    device.kernels.ridge_loss(
        memory.address(x),
        0 if means is None else memory.address(means),
        n,
        d,
        device.values(weight),
        memory.address(parts),
        memory.stream,
    )
    return _sum(device, parts, n)


def gram_of(device: Device, factors: Factors, weight: NDArray[np.floating]) -> Any:
    """The weighted Gram matrix (D, D) of factors, in device memory, flat float64."""
    check_factors(factors.host)
    kernels, memory, (n, d) = device.kernels, device.memory, factors.host.shape
    y, w, out = factors.plain(), memory.upload(weight.astype(np.float32)), memory.empty(d * d, np.float64)
    workspace = memory.empty(kernels.gram_bytes(n, d), np.uint8)
    address = memory.address
    kernels.gram(address(y), n, d, device.values(w), address(out), address(workspace), memory.stream)
    return out


def _sum(device: Device, values: Any, n: int) -> float:
    memory = device.memory
    out = memory.empty(1, np.float64)
    device.kernels.sum(memory.address(values), n, memory.address(out), memory.stream)
    return float(memory.download(out)[0])
