"""Linear priors on the device: the features of a side's rows, and what a fit sums over them; see priors/steps.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_device import Buffers, Device
from wals_gpu.backends.cuda_factors import Factors, OnDevice, OtherSide
from wals_gpu.backends.cuda_loss import gram_of, spectrum_of
from wals_gpu.backends.cuda_solve import Outcome, ridge_loss
from wals_gpu.backends.cuda_terms import TermsCache
from wals_gpu.backends.host import Spectrum
from wals_gpu.objective.terms import Floats, RowTerms

__all__ = ["CudaFeatures"]


class CudaFeatures:
    """See :class:`.session.FeatureRows`. Features, prior means and factors stay on the device; maps go there, and sums
    of the size of a map come back."""

    def __init__(
        self,
        device: Device,
        cache: TermsCache,
        own: Factors,
        other: Factors,
        buffers: Buffers,
        features: NDArray[np.floating],
    ) -> None:
        self._device, self._cache, self._own, self._other, self._buffers = device, cache, own, other, buffers
        self._n, self._width = features.shape
        self._factors = own.host.shape[1]
        self._features = device.memory.upload(features)
        self._means = device.memory.empty(max(own.host.size, 1), np.float32)
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._one = device.memory.upload(np.ones(1, np.float32))

    def project(self, weights: Floats) -> None:
        """See :meth:`.session.FeatureRows.project`."""
        self._map(weights, self._means)

    def mean(self) -> NDArray[np.floating]:
        """See :meth:`.session.FeatureRows.mean`."""
        return self._device.memory.download(self._means)[: self._own.host.size].reshape(self._own.host.shape)

    def target(self, weights: Floats, shrunk: NDArray[np.floating] | None) -> Any:
        """See :meth:`.session.FeatureRows.target`."""
        if shrunk is None:
            return OnDevice(self._means, self._factors)
        out = self._buffers.get(f"{self._own.name} target", self._own.host.size, np.float32)
        self._map(weights, out, scale=self._vector("shrunk", shrunk))
        return OnDevice(out, self._factors)

    def settle(self, weights: Floats, stays: NDArray[np.bool_]) -> None:
        """See :meth:`.session.FeatureRows.settle`."""
        if not stays.all():
            self._map(weights, self._own.to_write(), status=self._vector("stays", stays, np.int32))

    def move(self, step: Floats) -> None:
        """See :meth:`.session.FeatureRows.move`."""
        self._map(step, self._own.to_write(), add=True)

    def cross(self, name: str, weight: Floats, *, from_mean: bool = False) -> Floats:
        """See :meth:`.session.FeatureRows.cross`."""
        device, n, width, d = self._device, self._n, self._width, self._factors
        out = self._buffers.get("cross", (width + 1) * d, np.float64)
        workspace = self._buffers.get("cross workspace", device.kernels.cross_bytes(n, width, d), np.uint8)
        of_rows, means = device.values(self._vector(name, weight)), self._means if from_mean else None
        device.start("cross", self._features, n, width, of_rows, self._own.plain(), means, d, out, workspace)
        sums: Floats = np.array(device.memory.download(out)[: (width + 1) * d]).reshape(width + 1, d)
        return sums

    def line(self, step: Floats, terms: RowTerms) -> tuple[float, float]:
        """See :meth:`.session.FeatureRows.line`."""
        device, buffers, d = self._device, self._buffers, self._factors
        direction = buffers.get("direction", self._own.host.size, np.float32)
        self._map(step, direction)
        side, outcome = OtherSide(device, self._other, None, buffers), Outcome(device)
        for rows, part in self._cache.parts(terms, side):
            n = rows.stop - rows.start
            x = side.rotate(self._own.plain(rows), n, side.empty_rows(n, self._own.name), wide=False)
            v = direction[rows.start * d : rows.stop * d]
            v = side.rotate(v, n, side.empty_rows(n, "direction"), wide=False)
            sums = [buffers.get(name, max(n, 1), np.float64) for name in ("parts", "curvature")]
            device.start("line", part.rows(side, x), v, *sums)
            for array, name in zip(sums, ("loss", "ridge"), strict=True):
                device.start("sum", array, None, n, outcome.address(name))
        found = outcome.read()
        return float(found["loss"]), float(found["ridge"])

    def gram(self, terms: RowTerms) -> Floats | None:
        """See :meth:`.session.FeatureRows.gram`."""
        is_any, weight = self._cache.other_background(terms)
        if not is_any:
            return None
        gram: Floats = self._device.memory.download(gram_of(self._device, self._other, weight, self._buffers))
        return np.array(gram[: self._factors**2]).reshape(self._factors, self._factors)

    def spectrum(self, terms: RowTerms) -> Spectrum:
        """See :meth:`.session.FeatureRows.spectrum`."""
        self._cache.upload(terms)
        on_device = spectrum_of(self._device, self._cache, terms, self._other, self._buffers)
        return on_device.download(self._device.memory)

    def ridge_loss(self, name: str, ridge: Floats, *, from_mean: bool = False) -> float:
        """See :meth:`.session.FeatureRows.ridge_loss`."""
        means = OnDevice(self._means, self._factors) if from_mean else None
        return ridge_loss(self._device, self._own, self._vector(name, ridge), self._buffers, means)

    def _map(self, weights: Floats, out: Any, *, scale: Any = None, status: Any = None, add: bool = False) -> None:
        device, on_device = self._device, self._device.memory.upload(weights.astype(np.float32))
        scales = device.values(self._one if scale is None else scale)
        sizes = self._n, self._width
        device.start("map_features", self._features, *sizes, on_device, self._factors, scales, status, add, out)

    def _vector(self, name: str, values: NDArray[Any], dtype: type[np.generic] = np.float32) -> Any:
        """A number for each row, copied to the device when it is another array than before."""
        if name not in self._kept or self._kept[name][0] is not values:
            self._kept[name] = values, self._device.memory.upload(values.astype(dtype))
        return self._kept[name][1]
