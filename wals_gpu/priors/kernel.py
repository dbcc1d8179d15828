"""Features of a Gaussian kernel: what of a row's embedding a linear map cannot read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wals_gpu.objective.terms import Floats

__all__ = ["Kernel"]

# Directions of the landmarks' own kernel matrix below this part of its largest eigenvalue are rounding: two landmarks
# with the same text, for example.
_SMALLEST = 1e-6


class Kernel:
    """Nystroem's features ``K(e, Z) K(Z, Z)^-1/2`` of the kernel ``K(e, z) = exp(-width |e - z|^2)``.

    Dot products of two rows' features are about the kernel between them. Written here, and not scikit-learn's
    ``Nystroem``, because a model folder must give the features of new texts from two arrays and NumPy alone.

    Parameters
    ----------
    landmarks : (m, E) float32
        Z.
    root : (m, m) float32
        ``K(Z, Z)^-1/2``.
    width : float
    """

    def __init__(self, landmarks: NDArray[np.float32], root: NDArray[np.float32], width: float) -> None:
        self.landmarks, self.root, self.width = landmarks, root, width
        # Less those of the origin, the embedding of a text that says nothing: so its features stay 0.
        self._of_origin = self._raw(np.zeros((1, landmarks.shape[1])))

    @classmethod
    def at(cls, landmarks: NDArray[np.floating], width: float) -> Kernel:
        """The features with these landmarks (m, E)."""
        kept = landmarks.astype(np.float32)
        values, vectors = np.linalg.eigh(_kernel(kept.astype(np.float64), kept.astype(np.float64), width))
        known = values > _SMALLEST * values[-1]
        root = (vectors[:, known] / np.sqrt(values[known])) @ vectors[:, known].T
        return cls(kept, root.astype(np.float32), width)

    def features(self, embeddings: Floats) -> Floats:
        """Features (n, m) of embeddings (n, E)."""
        features: Floats = self._raw(embeddings) - self._of_origin
        return features

    def _raw(self, embeddings: Floats) -> Floats:
        raw: Floats = _kernel(embeddings, self.landmarks.astype(np.float64), self.width) @ self.root.astype(np.float64)
        return raw


def _kernel(a: Floats, b: Floats, width: float) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    kernel: Floats = np.exp(-width * np.maximum(squares, 0))
    return kernel
