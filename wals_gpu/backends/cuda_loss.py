"""Gram matrices, their spectra and losses on the device: dot products and sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import Buffers, Device
from wals_gpu.backends.cuda_factors import DeviceSpectrum, Factors, OnDevice, OtherSide, check_factors, upload_factors
from wals_gpu.backends.cuda_terms import TermsCache
from wals_gpu.objective.terms import RowTerms, SideTerms

__all__ = ["add_data_loss", "add_ridge_loss", "add_row_loss", "gram_of", "spectrum_of"]


def spectrum_of(
    device: Device, cache: TermsCache, terms: SideTerms, other: Factors, buffers: Buffers, start: Any = None
) -> DeviceSpectrum:
    """As :meth:`.cpu.CpuBackend.spectrum`, in device memory: nothing is copied there or back but the weights, where the
    terms are not there yet, and nothing waits. NaN where the Gram matrix is not finite.

    `start`, if there is one, is an orthogonal basis (D, D) in device memory, flat float64, in which the Gram matrix is
    nearly diagonal, as the vectors of an earlier one may be: from there it takes fewer sweeps. Last bits depend on it.
    """
    d, values = other.host.shape[1], buffers.get("spectrum", other.host.shape[1], np.float64)
    is_any, weight = cache.other_background(terms)
    if not is_any:
        device.start("clear", values, 2 * d)
        return DeviceSpectrum(values)
    gram = gram_of(device, other, weight, buffers)
    vectors = buffers.get("basis", d * d, np.float64)
    workspace = buffers.get("spectrum workspace", device.kernels.spectrum_bytes(d), np.uint8)
    device.start("spectrum", gram, d, start, values, vectors, workspace)
    return DeviceSpectrum(values, vectors)


def add_data_loss(
    device: Device, cache: TermsCache, user_terms: RowTerms, users: Factors, items: Factors, loss: int, buffers: Buffers
) -> None:
    """*loss grows by the loss but for its ridges and its constant."""
    side = OtherSide(device, items, None, buffers)
    for rows, terms in cache.parts(user_terms, side):
        n = terms.host.n_rows
        x = side.rotate(users.plain(rows), n, side.empty_rows(n, users.name), wide=False)
        add_row_loss(device, terms.rows(side, x), n, loss, buffers, wide=True)
    d, kept = items.host.shape[1], cache.find(user_terms)
    grams = []
    for factors, name in ((users, "background"), (items, "other_background")):
        if kept is None:
            weight = device.memory.upload(np.asarray(getattr(user_terms, name), np.float32))
        else:
            weight = kept.array(name)
        grams.append(gram_of(device, factors, weight, buffers))
    device.start("sum", *grams, d * d, loss)


def add_row_loss(device: Device, rows: Any, n: int, loss: int, buffers: Buffers, *, wide: bool) -> None:
    """*loss grows by the rows' parts of it."""
    if n:
        parts = buffers.get("parts", n, np.float64)
        device.start("row_loss", rows, wide, parts)
        device.start("sum", parts, None, n, loss)


def add_ridge_loss(
    device: Device,
    factors: Factors,
    ridge: Any,
    loss: int,
    buffers: Buffers,
    prior: NDArray[np.floating] | OnDevice | None = None,
) -> None:
    """*loss grows by what :meth:`.cpu.CpuBackend.ridge_loss` is; `ridge` (R,) or (1,) float32 is on the device."""
    n, d = factors.host.shape
    if n == 0:
        return
    check_factors(factors.host)
    parts, means = buffers.get("parts", n, np.float64), upload_factors(device.memory, prior)
    device.start("ridge_loss", factors.plain(), means, n, d, device.values(ridge), parts)
    device.start("sum", parts, None, n, loss)


def gram_of(device: Device, factors: Factors, weight: Any, buffers: Buffers) -> Any:
    """The Gram matrix (D, D) float64 of factors, with a weight (n,) or (1,) float32, all on the device."""
    check_factors(factors.host)
    n, d = factors.host.shape
    out = buffers.get(f"{factors.name} gram", d * d, np.float64)
    workspace = buffers.get("gram", device.kernels.gram_bytes(n, d), np.uint8)
    device.start("gram", factors.plain(), n, d, device.values(weight), out, workspace)
    return out
