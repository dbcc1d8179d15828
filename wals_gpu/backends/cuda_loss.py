"""Gram matrices, their spectra and losses on the device: dot products and sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import Device
from wals_gpu.backends.cuda_factors import Factors, OtherSide, check_factors
from wals_gpu.backends.cuda_terms import TermsCache
from wals_gpu.backends.host import Spectrum, decompose, has_background, no_spectrum
from wals_gpu.objective.terms import RowTerms, SideTerms

__all__ = ["data_loss", "ridge_loss", "row_loss", "spectrum_of"]


def spectrum_of(device: Device, terms: SideTerms, other: Factors) -> Spectrum:
    """As :meth:`.cpu.CpuBackend.spectrum`; the eigenproblem is solved on the host, in float64."""
    if not has_background(terms):
        return no_spectrum(other.host.shape[1])
    return decompose(_gram(device, other, terms.other_background))


def data_loss(device: Device, cache: TermsCache, user_terms: RowTerms, users: Factors, items: Factors) -> float:
    """The loss but for its ridges."""
    total, side = user_terms.target_square, OtherSide(device, items, None)
    for rows, terms in cache.parts(user_terms, side):
        n = terms.host.n_rows
        x = side.rotate(users.plain(rows), n, wide=False)
        total += row_loss(device, terms.rows(side, x), n, wide=True)
    user_gram = _gram(device, users, user_terms.background)
    item_gram = _gram(device, items, user_terms.other_background)
    return total + float(np.vdot(user_gram, item_gram))


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


def _gram(device: Device, factors: Factors, weight: NDArray[np.floating]) -> NDArray[np.float64]:
    check_factors(factors.host)
    kernels, memory, (n, d) = device.kernels, device.memory, factors.host.shape
    y, w, out = factors.plain(), memory.upload(weight.astype(np.float32)), memory.empty(d * d, np.float64)
    workspace = memory.empty(kernels.gram_bytes(n, d), np.uint8)
    address = memory.address
    kernels.gram(address(y), n, d, device.values(w), address(out), address(workspace), memory.stream)
    return memory.download(out).reshape(d, d)


def _sum(device: Device, values: Any, n: int) -> float:
    memory = device.memory
    out = memory.empty(1, np.float64)
    device.kernels.sum(memory.address(values), n, memory.address(out), memory.stream)
    return float(memory.download(out)[0])
