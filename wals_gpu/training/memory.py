"""How much memory a fit takes, and whether there is as much: adds what each part says of itself, and compares."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import EXACT, SolveOptions, SolveSizes
from wals_gpu.data.tables import html_table
from wals_gpu.objective.bound import Objective
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.system import available_memory

__all__ = ["FitSizes", "MemoryEstimate", "check_memory", "estimate_memory"]


#: Its number, its weight, and both once more while the matrix is made of them.
_BYTES_OF_NEIGHBOR = 28


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a fit takes; ``print(estimate)`` shows a table.

    Attributes
    ----------
    interactions : int
        The matrix in CSR form, as the fit uses it. It may be the user's own.
    transposed : int
        The same by items.
    coefficients : int
        What the objective computes for each entry, by users and by items.
    factors : int
        Of both sides; with validation twice, for the best ones, and with a popularity exponent the items once more.
    working : int
        What a sweep needs beside: rotated copies, results of rows, a block of stored interactions; neighbours.
    priors : int
        Features, prior means, and what the steps of the priors need; embeddings that are an array with a row for each
        item (user) are not in it.
    device : int
        Memory of the device for a sweep in one part; rows that do not fit together are solved in parts. 0 on the CPU.
    """

    interactions: int
    transposed: int
    coefficients: int
    factors: int
    working: int
    priors: int = 0
    device: int = 0

    @property
    def total(self) -> int:
        """All of the host's memory together."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "device")

    def _sizes(self) -> list[tuple[str, str]]:
        names = [field.name for field in fields(self) if field.name != "device"] + ["total"]
        sizes = [(name, getattr(self, name)) for name in names]
        if self.device:
            sizes.append(("on device", self.device))
        return [(name, f"{size / 2**20:,.1f} MiB") for name, size in sizes]

    def __str__(self) -> str:
        return "\n".join(f"{name:<13}{size:>16}" for name, size in self._sizes())

    def _repr_html_(self) -> str:
        return html_table([], self._sizes(), "Memory of a fit")


@dataclass(frozen=True)
class FitSizes:
    """What the memory of a fit depends on.

    Parameters
    ----------
    shape : (int, int)
        U, I.
    n_entries : int
        Z.
    factors : int
        D.
    dtype : dtype
    objective : Objective
    options : SolveOptions
    priors : (LinearPrior or None, LinearPrior or None)
        Of users and items.
    validation : bool, default False
    is_calibrated : bool, default False
        Whether scores are multiplied by powers of the items' popularity.
    n_neighbors : int, default 0
        Of each item.
    block_bytes : int, optional
        Of stored interactions; None: they are in memory.
    values : (float, float), default (1.0, 2.0)
        Lowest and highest value. Where all are equal, some objectives need one coefficient for all.
    """

    shape: tuple[int, int]
    n_entries: int
    factors: int
    dtype: np.dtype
    objective: Objective
    options: SolveOptions = EXACT
    priors: tuple[LinearPrior | None, LinearPrior | None] = (None, None)
    validation: bool = False
    is_calibrated: bool = False
    n_neighbors: int = 0
    block_bytes: int | None = None
    values: tuple[float, float] = (1.0, 2.0)

    def of_side(self, side: int) -> SolveSizes:
        """Of a solve of the users (0) or the items (1)."""
        return SolveSizes(
            self.shape[side],
            self.shape[1 - side],
            self.n_entries,
            self.factors,
            self.dtype.itemsize,
            self.options.solver,
            has_prior=self.priors[side] is not None,
            is_moving=self.priors == (None, None),
        )


def estimate_memory(sizes: FitSizes, backend: Backend) -> MemoryEstimate:
    """The memory of a fit on a device, see :meth:`wals_gpu.WALS.estimate_memory`."""
    rows, size, n_entries = sum(sizes.shape), sizes.dtype.itemsize, sizes.n_entries
    solves = [backend.memory_of(sizes.of_side(side)) for side in (0, 1)]
    of_factors = size * sizes.factors * rows * (1 + sizes.validation)
    if sizes.validation and sizes.is_calibrated:  # what is searched
        of_factors += size * sizes.factors * sizes.shape[1]
    working = max(solve.host for solve in solves) + 2 * size * rows  # ridge and background of some objectives
    working += _BYTES_OF_NEIGHBOR * sizes.n_neighbors * sizes.shape[1]
    device = max(solve.fixed + solve.growing for solve in solves)
    if sizes.block_bytes is not None:
        return MemoryEstimate(8 * (rows + 2), 0, 0, of_factors, working + sizes.block_bytes, device=device)
    index = 4 if n_entries < 2**31 else 8
    matrix = n_entries * (index + size) + 8 * (rows + 2)
    coefficients = 2 * n_entries * size * _arrays_per_entry(sizes)
    of_priors = sum(
        _bytes_of_prior(prior, n, n_entries, sizes.factors, size)
        for prior, n in zip(sizes.priors, sizes.shape, strict=True)
        if prior is not None
    )
    return MemoryEstimate(matrix, matrix, coefficients, of_factors, working, of_priors, device)


def _bytes_of_prior(prior: LinearPrior, rows: int, n_entries: int, factors: int, size: int) -> int:
    """What a prior of `rows` rows holds during a fit, and the larger of what its two large steps take beside."""
    own, features, copied = prior.sizes()
    held = rows * (size * (features + factors) + copied * own + 8 * 5) + 3 * 8 * (features + 1) ** 2
    solving = 2 * size * factors * rows  # what rows are pulled to, and the same rotated
    # Direction; of every entry its column, its scores, present and changed, and its Gram coefficient.
    along = size * factors * rows + n_entries * (3 * size + 4)
    return held + max(solving, along)


def _arrays_per_entry(sizes: FitSizes) -> int:
    """Numbers that an objective keeps for each entry beside its value: found out with a matrix of two entries."""
    objective = sizes.objective
    low, high = sizes.values if objective.accepts_negative else np.abs(sizes.values)
    sample = csr_matrix(([low, high], ([0, 1], [0, 1])), dtype=sizes.dtype)
    params = objective.parameters()
    shortened: dict[str, Any] = {n: np.ones(2) if isinstance(p, np.ndarray) else p for n, p in params.items()}
    plain = type(objective)(**shortened)
    terms = plain.bind(sample).user_terms(sample)
    arrays = [array for array in (terms.rhs, terms.gram) if array is not None and array.size == 2]
    return sum(not np.shares_memory(array, sample.data) for array in arrays)


def check_memory(estimate: MemoryEstimate) -> None:
    """Refuse a fit whose arrays cannot fit beside the interactions, which are there already.

    Raises
    ------
    MemoryError
        Says how much is needed for what, how much there is, and what helps.
    """
    entries = estimate.transposed + estimate.coefficients
    needed, available = estimate.factors + entries + estimate.priors, available_memory()
    if available is not None and needed > available:
        parts = {"factors": estimate.factors, "transposed interactions and coefficients": entries}
        if estimate.priors:
            parts["priors"] = estimate.priors
        shares = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        raise MemoryError(
            f"the fit needs {needed / 2**30:.2f} GiB beside the interactions ({shares}), and {available / 2**30:.2f} "
            "GiB are available; take fewer factors or float32, or keep the interactions on disk (wals_gpu.stored)"
        )
