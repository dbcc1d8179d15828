"""How much memory a fit takes, and whether there is as much."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu.objective.bound import Objective

if TYPE_CHECKING:
    from wals_gpu.priors.linear import LinearPrior

__all__ = ["MemoryEstimate", "available_memory", "check_memory", "estimate_memory"]


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
        Of both sides; with validation twice, for the best ones.
    working : int
        What a sweep needs beside: rotated copies, results of rows, a block of stored interactions.
    priors : int
        Features, prior means, and what the steps of the priors need; embeddings that are an array with a row for each
        item (user) are not in it.
    """

    interactions: int
    transposed: int
    coefficients: int
    factors: int
    working: int
    priors: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)] + [("total", self.total)]
        return "\n".join(f"{name:<13}{size / 2**20:>12,.1f} MiB" for name, size in rows)


def estimate_memory(
    shape: tuple[int, int],
    n_entries: int,
    *,
    factors: int,
    dtype: np.dtype,
    objective: Objective,
    validation: bool = False,
    block_bytes: int | None = None,
    values: tuple[float, float] = (1.0, 2.0),
    priors: tuple[LinearPrior | None, LinearPrior | None] = (None, None),
) -> MemoryEstimate:
    """The memory of a fit, see :meth:`WALS.estimate_memory`.

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
    validation : bool, default False
    block_bytes : int, optional
        Of stored interactions; None: they are in memory.
    values : (float, float), default (1.0, 2.0)
        Lowest and highest value. Where all are equal, some objectives need one coefficient for all.
    priors : (LinearPrior or None, LinearPrior or None)
        Of users and items.
    """
    rows, size = sum(shape), dtype.itemsize
    own = size * factors * rows
    aligned = factors % 16 == 0 and block_bytes is None and priors == (None, None)
    padded = -(-factors * size // 64) * 64
    rotated = 0 if aligned else padded * max(shape)  # a copy of the side that is not being solved
    # Per row: place in the order of work, status and part of the loss; ridge and background of some objectives.
    per_row = (8 + 4 + 8) * max(shape) + 2 * size * rows
    if block_bytes is not None:
        return MemoryEstimate(8 * (rows + 2), 0, 0, own * (1 + validation), rotated + per_row + block_bytes)
    index = 4 if n_entries < 2**31 else 8
    matrix = n_entries * (index + size) + 8 * (rows + 2)
    coefficients = 2 * n_entries * size * _arrays_per_entry(objective, dtype, values)
    of_priors = sum(
        _bytes_of_prior(prior, n, n_entries, factors, size)
        for prior, n in zip(priors, shape, strict=True)
        if prior is not None
    )
    return MemoryEstimate(matrix, matrix, coefficients, own * (1 + validation), rotated + per_row, of_priors)


def _bytes_of_prior(prior: LinearPrior, rows: int, n_entries: int, factors: int, size: int) -> int:
    """What a prior of `rows` rows holds during a fit, and the larger of what its two large steps take beside."""
    own, features, copied = prior.sizes()
    held = rows * (size * (features + factors) + copied * own + 8 * 5) + 3 * 8 * (features + 1) ** 2
    solving = 2 * size * factors * rows  # what rows are pulled to, and the same rotated
    # Direction; of every entry its column, its scores, present and changed, and its Gram coefficient.
    along = size * factors * rows + n_entries * (3 * size + 4)
    return held + max(solving, along)


def _arrays_per_entry(objective: Objective, dtype: np.dtype, values: tuple[float, float]) -> int:
    """Numbers that an objective keeps for each entry beside its value: found out with a matrix of two entries."""
    low, high = values if objective.accepts_negative else np.abs(values)
    sample = csr_matrix(([low, high], ([0, 1], [0, 1])), dtype=dtype)
    params = objective.parameters()
    shortened: dict[str, Any] = {n: np.ones(2) if isinstance(p, np.ndarray) else p for n, p in params.items()}
    plain = type(objective)(**shortened)
    terms = plain.bind(sample).user_terms(sample)
    arrays = [array for array in (terms.rhs, terms.gram) if array is not None and array.size == 2]
    return sum(not np.shares_memory(array, sample.data) for array in arrays)


def available_memory() -> int | None:
    """Bytes that this process can still get: by the system, its cgroups, its limit of address space. None: unknown."""
    limits = []
    try:
        pages = {line.split(":")[0]: int(line.split()[1]) << 10 for line in _lines("/proc/meminfo")}
        limits.append(pages["MemAvailable"] + pages["SwapFree"])
        limits += [left for group in _cgroups() if (left := _left_in(group)) is not None]
        limit = next(line for line in _lines("/proc/self/limits") if line.startswith("Max address space")).split()[3]
        if limit != "unlimited":
            used = next(line for line in _lines("/proc/self/status") if line.startswith("VmSize:")).split()[1]
            limits.append(int(limit) - (int(used) << 10))
    except (OSError, KeyError, StopIteration, ValueError, IndexError):  # not Linux, or /proc is not there
        pass
    return max(min(limits), 0) if limits else None


def _lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines()


def _cgroups() -> list[Path]:
    """Folders of the cgroup (v2) of this process and of those around it."""
    name = next((line.split("::", 1)[1] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    if name is None:
        return []
    own = Path("/sys/fs/cgroup", name.lstrip("/"))
    return [group for group in (own, *own.parents) if (group / "memory.max").exists()]


def _left_in(group: Path) -> int | None:
    """What is left under the limit of a cgroup; the page cache counts as left."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return None
    counts = dict(line.split() for line in _lines(group / "memory.stat"))
    cache = int(counts["inactive_file"]) + int(counts["active_file"])
    return int(limit) - int((group / "memory.current").read_text()) + cache


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
        of_what = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
        raise MemoryError(
            f"the fit needs {needed / 2**30:.2f} GiB beside the interactions ({of_what}), and {available / 2**30:.2f} "
            "GiB are available; take fewer factors or float32, or keep the interactions on disk (wals_gpu.stored)"
        )
