"""Which rank has which rows: contiguous ranges of each side that cost the same to solve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.devices import limits
from wals_gpu.backends.solve import SolveOptions

__all__ = ["Cuts", "cut_rows", "row_cost"]


@dataclass(frozen=True)
class Cuts:
    """Where the rows of a side end, rank by rank.

    Parameters
    ----------
    bounds : (N + 1,) int64
        From 0 to the number of rows, never falling; all but the last are multiples of ``limits().loss_rows``.
    """

    bounds: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Of all ranks."""
        return int(self.bounds[-1])

    @property
    def counts(self) -> list[int]:
        """Rows of each rank, (N,)."""
        counts: list[int] = np.diff(self.bounds).tolist()
        return counts

    def of(self, rank: int) -> slice:
        """The rows of a rank."""
        return slice(int(self.bounds[rank]), int(self.bounds[rank + 1]))

    def owners(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """The rank that has each of some rows, (n,)."""
        return np.searchsorted(self.bounds, rows, side="right") - 1

    def blocks(self, size: int) -> list[int]:
        """Blocks of `size` rows, of which all but the last are whole, that each rank has."""
        blocks: list[int] = (-(-np.diff(self.bounds) // size)).tolist()
        return blocks


def row_cost(lengths: NDArray[np.integer], factors: int, options: SolveOptions) -> NDArray[np.float64]:
    """Multiply-adds of a row with so many entries: its Gram matrix and elimination, or its steps of "cg"."""
    lengths = np.asarray(lengths, np.float64)
    cost: NDArray[np.floating]
    if options.solver == "cholesky":
        cost = lengths * float(factors) ** 2 / 2 + float(factors) ** 3 / 6
    elif options.solver == "cg":
        cost = lengths * (2.0 * factors * (options.cg_steps + 1)) + float(factors) ** 2
    else:
        block = min(options.block_size, factors)
        cost = lengths * float(factors) * (block / 2 + 2) + float(factors) * block**2 / 6
    return np.asarray(cost, np.float64)


def cut_rows(lengths: NDArray[np.integer], size: int, factors: int, options: SolveOptions) -> Cuts:
    """Ranges of a side that cost the same, one for each of `size` ranks.

    Parameters
    ----------
    lengths : (R,) int
        Entries of each row.
    size : int
    factors : int
    options : SolveOptions

    Returns
    -------
    Cuts
    """
    step, n = int(limits().loss_rows), len(lengths)
    cost = row_cost(np.asarray(lengths, np.int64), factors, options)
    starts = np.arange(0, max(n, 1), step)
    total = np.cumsum(np.add.reduceat(cost, starts)) if n else np.zeros(1)
    wanted = total[-1] * np.arange(1, size) / size
    # After the block with which a rank's share comes nearest to what it should be.
    after = np.searchsorted(total, wanted)
    before = np.where(after > 0, total[np.maximum(after - 1, 0)], 0.0)
    blocks = after + (wanted - before > total[np.minimum(after, len(total) - 1)] - wanted)
    bounds = np.concatenate([[0], np.minimum(blocks * step, n), [n]])
    # A rank's only row would have one number where the whole has one for each row: it is solved with other roundings
    # then, as one number for all is.
    if n > 1:
        bounds[bounds == n - 1] = n
    return Cuts(np.maximum.accumulate(bounds).astype(np.int64))
