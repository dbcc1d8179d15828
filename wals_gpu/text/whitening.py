"""Centring and whitening of embeddings, fitted on the catalogue and kept with the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.checks import flag, integer, number

__all__ = ["Whitening"]


class Whitening:
    """Move embeddings to mean 0 and, if wanted, to unit covariance.

    Embeddings of language models share one long common direction, and a few directions carry most of the variance.
    Taking both away makes their dot products tell more of meaning: Su et al., "Whitening Sentence Representations"
    (2021), Huang et al., "WhiteningBERT" (2021).

    Parameters
    ----------
    whiten : bool, default True
        False: subtract the mean only.
    components : int, optional
        Keep the directions of largest variance only, in falling order; default all E. Needs ``whiten=True``.
    epsilon : float, default 1e-3
        Added to every variance, as a fraction of the mean variance, so that directions in which the catalogue hardly
        varies are not blown up to noise.

    Attributes
    ----------
    mean_ : (E,) float32 array or None
        None before `fit`.
    matrix_ : (E, E') float32 array or None
        Also None with ``whiten=False``.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.random.default_rng(0).normal(size=(1000, 3)) @ np.diag([5, 1, 1]) + 7
    >>> white = Whitening(epsilon=0).fit(points).transform(points)
    >>> bool(np.allclose(np.cov(white.T), np.eye(3), atol=1e-4))
    True
    """

    def __init__(self, *, whiten: bool = True, components: int | None = None, epsilon: float = 1e-3) -> None:
        self.whiten = flag("whiten", whiten)
        if components is not None and not whiten:
            raise ValueError(f"components needs whiten=True, got {components!r}")
        self.components = None if components is None else integer("components", components, 1)
        self.epsilon = number("epsilon", epsilon)
        self.mean_: NDArray[np.float32] | None = None
        self.matrix_: NDArray[np.float32] | None = None

    def fit(self, embeddings: ArrayLike) -> Whitening:
        """Learn mean and covariance.

        Parameters
        ----------
        embeddings : (n, E) array
            Of the catalogue, n >= 1, no NaN. Rows are taken in blocks: a memory-mapped array is not read into memory.

        Returns
        -------
        self
        """
        embeddings = _checked(embeddings)
        n = len(embeddings)
        if not n:
            raise ValueError("embeddings must have at least one row to learn a mean from, got (0, E)")
        mean = sum(block.sum(axis=0) for block in _blocks(embeddings)) / n
        covariance = None
        if self.whiten:
            covariance = sum((block - mean).T @ (block - mean) for block in _blocks(embeddings)) / max(n - 1, 1)
        return self.learn(mean, covariance)

    def learn(self, mean: NDArray[np.float64], covariance: NDArray[np.float64] | None) -> Whitening:
        """:meth:`fit`, of embeddings whose mean and covariance are known.

        Parameters
        ----------
        mean : (E,) float64 array
        covariance : (E, E) float64 array or None
            None with ``whiten=False``.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            `components` is above E.
        """
        if self.components is not None and self.components > len(mean):
            raise ValueError(f"components must be at most E={len(mean)}, got {self.components}")
        self.mean_, self.matrix_ = mean.astype(np.float32), None
        if covariance is not None:
            variance, directions = np.linalg.eigh(covariance)
            floor = self.epsilon * max(variance.mean(), 0.0)
            order = np.argsort(-variance, kind="stable")[: self.components]
            variance = np.maximum(variance[order], 0.0) + floor
            # A direction without any variance stays at 0 instead of dividing by it.
            scale = np.divide(1.0, np.sqrt(variance), out=np.zeros_like(variance), where=variance > 1e-12 * variance[0])
            self.matrix_ = (directions[:, order] * scale).astype(np.float32)
        return self

    def transform(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """``(embeddings - mean) @ matrix``.

        Parameters
        ----------
        embeddings : (n, E) array

        Returns
        -------
        (n, E') float32 array
        """
        if self.mean_ is None:
            raise ValueError("this Whitening is not fitted: call fit(embeddings) first")
        embeddings = _checked(embeddings)
        if embeddings.shape[1] != len(self.mean_):
            raise ValueError(f"embeddings must have E={len(self.mean_)} columns as in fit, got {embeddings.shape[1]}")
        centred: NDArray[np.float32] = embeddings.astype(np.float32) - self.mean_
        return centred if self.matrix_ is None else centred @ self.matrix_

    def fit_transform(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """:meth:`fit`, then :meth:`transform` of the same embeddings.

        Parameters
        ----------
        embeddings : (n, E) array

        Returns
        -------
        (n, E') float32 array
        """
        return self.fit(embeddings).transform(embeddings)

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """What was learned, as plain arrays to save.

        Parameters
        ----------
        name : str
            What their names begin with.

        Returns
        -------
        dict of str to float32 array
            ``name.mean`` (E,) and, where there is one, ``name.matrix`` (E, E').

        Raises
        ------
        ValueError
            Nothing was learned yet.
        """
        if self.mean_ is None:
            raise ValueError("this Whitening is not fitted: there is nothing to save")
        arrays = {f"{name}.mean": self.mean_}
        return arrays if self.matrix_ is None else arrays | {f"{name}.matrix": self.matrix_}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Whitening | None:
        """The transformation that :meth:`to_arrays` wrote.

        Parameters
        ----------
        arrays : mapping of str to array
            May hold others, too.
        name : str
            As it was given to :meth:`to_arrays`.

        Returns
        -------
        Whitening or None
            None where there is none of this name.

        Raises
        ------
        ValueError
            If the arrays are not what :meth:`to_arrays` writes.
        """
        mean, matrix = arrays.get(f"{name}.mean"), arrays.get(f"{name}.matrix")
        if mean is None:
            return None
        if mean.ndim != 1 or mean.dtype != np.float32 or not np.isfinite(mean).all():
            raise ValueError(f"{name}.mean must be finite float32 (E,), got {mean.dtype} {mean.shape}")
        if matrix is not None:
            fits = matrix.ndim == 2 and len(matrix) == len(mean) and matrix.dtype == np.float32
            if not fits or not np.isfinite(matrix).all():
                raise ValueError(f"{name}.matrix must be finite float32 (E={len(mean)}, E'), got {matrix.shape}")
        whitening = cls(whiten=matrix is not None, components=None if matrix is None else matrix.shape[1])
        whitening.mean_, whitening.matrix_ = mean, matrix
        return whitening


def _checked(embeddings: ArrayLike) -> NDArray[np.floating]:
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiu":
        raise ValueError(f"embeddings must be numbers of shape (n, E), got {embeddings.dtype} {embeddings.shape}")
    for begin, block in zip(range(0, len(embeddings), _ROWS), _blocks(embeddings), strict=True):
        if not np.isfinite(block).all():
            bad = begin + int(np.argmin(np.isfinite(block).all(axis=1)))
            raise ValueError(f"embeddings must be finite, got NaN or infinity in row {bad}")
    return embeddings


_ROWS = 1 << 14


def _blocks(embeddings: NDArray[np.floating]) -> list[NDArray[np.float64]] | Any:
    return (embeddings[begin : begin + _ROWS].astype(np.float64) for begin in range(0, len(embeddings), _ROWS))
