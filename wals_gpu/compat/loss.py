"""The training loss that implicit reports.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.compat.rows import check_rows, csr, row_terms
from wals_gpu.objective.terms import RowTerms

__all__ = ["absolute_sum", "calculate_loss", "mean_loss"]


def calculate_loss(
    Cui: csr_matrix, X: NDArray[np.floating], Y: NDArray[np.floating], regularization: float, num_threads: int = 0
) -> float:
    """The training loss that implicit reports: the objective divided by the weight of all pairs.

    ::

        ( sum over stored pairs of |c| (p - x.y)^2 + sum over all others of (x.y)^2 + regularization (|X|^2 + |Y|^2)
          + sum of |c| where c < 0 ) / ( sum of |c| + U I - number of stored pairs )

    The sum over c < 0 is a constant that implicit adds.

    Parameters
    ----------
    Cui : (U, I) csr_matrix
        Confidences c; multiply by alpha first. p is 1 where c > 0, else 0.
    X : (U, D) float32 or float64
    Y : (I, D)
    regularization : float
    num_threads : int, default 0

    Returns
    -------
    float
        Accumulated in float64. NaN or infinity where all pairs weigh 0.

    Raises
    ------
    ValueError
        The shapes do not fit.
    """
    X = np.ascontiguousarray(X)
    Y = np.ascontiguousarray(Y, X.dtype)
    matrix = csr(Cui, "Cui", len(Y))
    check_rows(matrix, X)
    terms = row_terms(matrix, "user", X.dtype, 1.0, regularization)
    total = make_backend("cpu", num_threads).loss(terms, X, Y, terms.ridge)
    return mean_loss(total, terms, len(Y), absolute_sum(matrix))


def absolute_sum(matrix: csr_matrix) -> float:
    """Sum of |c| over the stored values, in float64."""
    return float(np.abs(matrix.data).sum(dtype=np.float64))


def mean_loss(total: float, terms: RowTerms, n_items: int, confidence: float) -> float:
    """The loss as implicit counts it, from the sum `total`; `confidence` is the sum of all |c|."""
    total = total + confidence - terms.target_square
    weight = confidence + terms.n_rows * n_items - terms.n_entries
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(total) / weight)
