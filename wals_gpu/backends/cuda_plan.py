"""Which kernel solves which row of a matrix: decided once, from the lengths and Gram coefficients of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.objective.terms import RowTerms

__all__ = ["Rows", "SlicedRows", "gram_bounds", "plan_cg", "plan_exact", "plan_rows", "plan_subspace", "slice_rows"]

Numbers = NDArray[np.int32]

#: As GramSlice and SlicedRow in csrc/cuda/problem.h.
SLICE = np.dtype(
    [("begin", np.int64), ("end", np.int64)] + [(name, np.int32) for name in ("row", "slot", "first_slot", "unused")]
)
SLICED_ROW = np.dtype([("row", np.int32), ("slot", np.int32), ("n_slots", np.int32), ("unused", np.int32)])

#: A row has at most so many slices; longer rows have longer slices.
MOST_SLICES = 64


@dataclass(frozen=True)
class Rows:
    """Rows that one kernel solves, the longest first, so that none is left alone at the end.

    `form` is "diagonal", "primal", "dual", "large", "cg", "subspace", or "sliced" of "exact", "cg" or "subspace".
    `size` is the kernel's (of ``LIMITS.kernel_sizes``), of "cg" how many table rows stay in shared memory, or 0.
    """

    form: str
    size: int
    numbers: Numbers


@dataclass(frozen=True)
class SlicedRows:
    """Rows whose sums are in a workspace of `n_slots` slots, as the kernels read them."""

    rows: NDArray[np.void]
    slices: NDArray[np.void]
    n_slots: int


def gram_bounds(terms: RowTerms) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Largest |Gram coefficient| of each row, negative where one of them is below 0; whether a row has both signs;
    whether all its coefficients are 0."""
    n = terms.n_rows
    low, high = np.zeros(n, np.float32), np.zeros(n, np.float32)
    gram, filled = terms.gram_values(), np.flatnonzero(np.diff(terms.row_ptr))
    if len(filled):
        starts = terms.row_ptr[filled]
        low[filled] = np.minimum(np.minimum.reduceat(gram, starts), 0)
        high[filled] = np.maximum(np.maximum.reduceat(gram, starts), 0)
    bound = np.maximum(high, -low)
    return np.where(low < 0, -bound, bound), (low < 0) & (high > 0), bound == 0


def plan_rows(
    terms: RowTerms, factors: int, options: SolveOptions, sizes: tuple[int, ...], giant: int, staged: tuple[int, ...]
) -> list[Rows]:
    """All rows, for a solver, those with most entries first; `sizes` and `giant` as for :func:`plan_exact`, `staged` as
    for :func:`plan_cg`."""
    if options.solver == "cg":
        plan = plan_cg(terms, staged, giant)
    elif takes_steps(options, factors):
        plan = plan_subspace(terms, factors, options.block_size, sizes, giant)
    else:
        plan = plan_exact(terms, factors, sizes, giant)
    lengths = np.diff(terms.row_ptr)
    return sorted((rows for rows in plan if len(rows.numbers)), key=lambda rows: -int(lengths[rows.numbers].sum()))


def takes_steps(options: SolveOptions, factors: int) -> bool:
    """Whether rows are solved in steps over blocks of coordinates, which relax each block by itself."""
    return options.solver == "subspace" and options.block_size < factors


def plan_exact(terms: RowTerms, factors: int, sizes: tuple[int, ...], giant: int) -> list[Rows]:
    """Exact solves of all rows.

    A diagonal system where no coefficient counts; the dual form where the entries are fewer than the factors, of one
    sign, and fit a block; else the primal form: in one block, its factor in a workspace where there are too many
    factors for shared memory, or in slices where the row is longer than `giant`.
    """
    lengths = np.diff(terms.row_ptr)
    _, mixed, diagonal = gram_bounds(terms)
    dual = ~diagonal & ~mixed & (lengths <= min(sizes[-1], factors * LIMITS.dual_numerator // LIMITS.dual_denominator))
    primal = ~diagonal & ~dual
    sliced = primal & (lengths > giant)
    large = primal & ~sliced & (factors > sizes[-1])
    plan = [Rows("diagonal", 0, _longest_first(diagonal, lengths))]
    lower = 0
    for size in sizes:
        plan.append(Rows("dual", size, _longest_first(dual & (lengths > lower) & (lengths <= size), lengths)))
        if lower < factors <= size:
            plan.append(Rows("primal", size, _longest_first(primal & ~sliced, lengths)))
        lower = size
    plan += [Rows("large", 0, _longest_first(large, lengths)), Rows("sliced exact", 0, _longest_first(sliced, lengths))]
    return [rows for rows in plan if len(rows.numbers)]


def plan_cg(terms: RowTerms, staged: tuple[int, ...], giant: int) -> list[Rows]:
    """Conjugate gradients, in slices where a row is longer than `giant`.

    `staged` are the numbers of table rows that some sizes of shared memory hold, rising. A row gets the least that
    holds all of it. Of a row twice as long as the last, so little would stay that the other blocks on a processor gain
    more.
    """
    lengths = np.diff(terms.row_ptr)
    plan, lower = [Rows("diagonal", 0, _longest_first(lengths == 0, lengths))], 0
    for most, longest in (*zip(staged, staged, strict=True), (staged[-1], 2 * max(staged)), (0, giant)):
        rows = _longest_first((lengths > lower) & (lengths <= min(longest, giant)), lengths)
        plan.append(Rows("cg", min(most, int(lengths[rows].max(initial=0))), rows))
        lower = max(lower, min(longest, giant))
    return [*plan[::-1], Rows("sliced cg", 0, _longest_first(lengths > giant, lengths))]


def plan_subspace(terms: RowTerms, factors: int, block: int, sizes: tuple[int, ...], giant: int) -> list[Rows]:
    """Exact solves of rows of no more entries than a block has factors; steps of the others, in slices where a row is
    longer than `giant`, or the matrix of a block has no room in shared memory."""
    lengths = np.diff(terms.row_ptr)
    steps, sliced = lengths > block, lengths > (giant if block <= sizes[-1] else 0)
    plan = plan_exact(terms, factors, sizes, giant)
    plan = [Rows(part.form, part.size, part.numbers[~steps[part.numbers]]) for part in plan]
    plan.append(Rows("subspace", 0, _longest_first(steps & ~sliced, lengths)))
    return [*plan, Rows("sliced subspace", 0, _longest_first(steps & sliced, lengths))]


def slice_rows(row_ptr: NDArray[np.int64], numbers: Numbers, slice_entries: int, most_slots: int) -> list[SlicedRows]:
    """Batches of rows of at most `most_slots` slots (or a single row). How a row is cut depends on its length alone."""
    batches: list[SlicedRows] = []
    rows: list[tuple[int, ...]] = []
    slices: list[tuple[int, ...]] = []
    slots = 0
    for row in numbers.tolist():
        begin, n = int(row_ptr[row]), int(row_ptr[row + 1] - row_ptr[row])
        parts = min(max(-(-n // slice_entries), 1), MOST_SLICES)
        if rows and slots + parts > most_slots:
            batches.append(SlicedRows(np.array(rows, SLICED_ROW), np.array(slices, SLICE), slots))
            rows, slices, slots = [], [], 0
        rows.append((row, slots, parts, 0))
        for s in range(parts):
            slices.append((begin + n * s // parts, begin + n * (s + 1) // parts, row, slots + s, slots, 0))
        slots += parts
    if rows:
        batches.append(SlicedRows(np.array(rows, SLICED_ROW), np.array(slices, SLICE), slots))
    return batches


def _longest_first(mask: NDArray[np.bool_], lengths: NDArray[np.int64]) -> Numbers:
    rows = np.flatnonzero(mask)
    return rows[np.argsort(-lengths[rows], kind="stable")].astype(np.int32)
