"""Matrices as implicit takes them, and their rows solved, with errors in implicit's words.

Shapes: R rows, n rows of the other side's factors, D factors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import warn
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.presets import Implicit
from wals_gpu.objective.terms import RowTerms

__all__ = [
    "as_csr",
    "check_rows",
    "csr",
    "half_step",
    "implicits_words",
    "options_of",
    "row_terms",
    "singular",
    "solve",
]


def as_csr(matrix: Any) -> csr_matrix:
    """CSR of any sparse matrix or 2-D array, with a ParameterWarning where it was converted."""
    if isinstance(matrix, csr_matrix):
        return matrix
    if hasattr(matrix, "tocsr"):
        rows = csr_matrix(matrix.tocsr())
    elif isinstance(matrix, np.ndarray) and matrix.ndim == 2 and matrix.dtype.kind in "biuf":
        rows = csr_matrix(matrix)
    else:
        kind = f"{type(matrix).__module__.partition('.')[0]}.{type(matrix).__name__}".removeprefix("builtins.")
        raise TypeError(
            f"a sparse matrix of users x items is wanted, got {kind}; tables are for wals_gpu.WALS, or for "
            "wals_gpu.as_interactions(table).matrix"
        )
    warn(f"a csr_matrix is wanted, {type(matrix).__name__} was given and had to be converted")
    return rows


def csr(matrix: Any, name: str, n_known: int | None = None) -> csr_matrix:
    """A checked CSR matrix of float32 with sorted rows. No column number may reach `n_known`."""
    matrix = as_csr(matrix)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {matrix.dtype}")
    with np.errstate(over="ignore"):  # infinity is refused where values matter
        data = matrix.data.astype(np.float32, copy=False)
    matrix = csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    matrix.check_format(full_check=True)
    if not matrix.has_sorted_indices:
        matrix = matrix.sorted_indices()
    if n_known is not None and matrix.nnz and matrix.indices.max() >= n_known:
        raise ValueError(
            f"{name} of shape {matrix.shape} has an entry in column {matrix.indices.max()}, "
            f"but the factors have only {n_known} rows"
        )
    return matrix


def check_rows(matrix: csr_matrix, factors: NDArray[np.floating]) -> None:
    """Refuse factors that are not one for each row."""
    if matrix.shape[0] != len(factors):
        raise ValueError(f"Cui of shape {matrix.shape} needs X with {matrix.shape[0]} rows, got shape {factors.shape}")


def row_terms(matrix: csr_matrix, side: str, dtype: DTypeLike, alpha: float, regularization: float) -> RowTerms:
    """What a solver gets to see of a matrix (R, n) from :func:`csr`, whose rows are of a side, "user" or "item"."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    objective = Implicit(alpha=alpha, regularization=regularization)
    matrix = csr_matrix((matrix.data.astype(dtype, copy=False), matrix.indices, matrix.indptr), shape=matrix.shape)
    # Two entries of one pair are two terms of the loss for implicit, which does not sum their values. (astype does.)
    matrix.has_canonical_format = True
    try:
        if side == "user":
            return BoundObjective(objective, *matrix.shape).user_terms(matrix)
        return BoundObjective(objective, *matrix.shape[::-1]).item_terms(matrix)
    except ValueError as error:
        raise ModelFitError(f"NaN encountered in factors: {error}") from error


def solve(
    backend: Backend,
    terms: RowTerms,
    other: NDArray[np.floating],
    factors: NDArray[np.floating],
    side: str,
    cg_steps: int | None,
    spectrum: Spectrum | None = None,
) -> None:
    """Solve rows in place, exactly or by `cg_steps` CG steps; `side` is what errors call a row."""
    with implicits_words(side):
        backend.solve_rows(terms, other, factors, options_of(cg_steps), spectrum=spectrum)


def options_of(cg_steps: int | None) -> SolveOptions:
    """So many CG steps, or None: exactly."""
    return SolveOptions() if cg_steps is None else SolveOptions("cg", cg_steps)


@contextlib.contextmanager
def implicits_words(side: str) -> Iterator[None]:
    """Errors of the solvers as implicit says them."""
    try:
        yield
    except SingularSystemError as error:
        raise singular(error.row, side) from error
    except ModelFitError as error:
        raise ModelFitError(f"NaN encountered in factors: {error}") from error


def singular(row: int, side: str) -> SingularSystemError:
    """The error of a row without a unique solution, in implicit's words."""
    return SingularSystemError(int(row), "Try increasing the regularization parameter.", f"{side} {row}")


def half_step(
    Cui: csr_matrix,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    regularization: float,
    num_threads: int = 0,
    cg_steps: int | None = None,
) -> None:
    """Solve X (R, D) in place from confidences (R, n) and Y (n, D): exactly, or by `cg_steps` CG steps."""
    matrix = csr(Cui, "Cui", len(Y))
    check_rows(matrix, X)
    factors = np.ascontiguousarray(X)
    terms = row_terms(matrix, "user", X.dtype, 1.0, regularization)
    solve(make_backend("cpu", num_threads), terms, np.ascontiguousarray(Y, X.dtype), factors, "row", cg_steps)
    if factors is not X:
        X[...] = factors
