"""A rank whose rows are solved by a CUDA device: one rank, one device.

The rank's factors are in its memory between the half-sweeps, and travel from there; the device gets the table of a
half-sweep, rotates it and solves the rank's rows. Gram matrices of slabs, what priors sum over rows, and losses of
ridges are computed on the processor, as without a device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.launched import local_rank
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import EXACT, SolveOptions
from wals_gpu.objective.terms import RowTerms

__all__ = ["DeviceRows", "device_of_rank"]


def device_of_rank(device: str) -> str:
    """The device of this rank: of "cuda", which is of all ranks, the one with its number on this machine."""
    number = local_rank()
    return device if device != "cuda" or number is None else f"cuda:{number}"


class DeviceRows(CpuBackend):
    """The processor, but for solves of rows.

    Parameters
    ----------
    device : Backend
        Solves rows.
    num_threads : int, default 0
        As of :class:`.CpuBackend`.
    """

    def __init__(self, device: Backend, num_threads: int = 0) -> None:
        super().__init__(num_threads)
        self._device = device

    def takes_plain_steps(self, factors: int, options: SolveOptions) -> bool:
        """Never: the device solves in the basis of eigenvectors."""
        return False

    def moves(self, factors: int, rows: int) -> bool:
        """Never: the same."""
        return False

    def rotated(self, factors: NDArray[np.floating], spectrum: Spectrum) -> NDArray[np.floating]:
        """The factors as they are: the device rotates what it gets."""
        return np.ascontiguousarray(factors)

    def solve_rotated(
        self,
        terms: RowTerms,
        table: NDArray[np.floating],
        spectrum: Spectrum,
        factors: NDArray[np.floating],
        options: SolveOptions = EXACT,
        prior: NDArray[np.floating] | None = None,
        *,
        row_loss: NDArray[np.float64] | None = None,
    ) -> None:
        """See :meth:`.CpuBackend.solve_rotated`. The device knows the loss of all rows together, which becomes that of
        the first."""
        means = None if prior is None else np.ascontiguousarray(prior, table.dtype)
        given: dict[str, Any] = {"prior": means, "return_loss": row_loss is not None, "spectrum": spectrum}
        loss = self._device.solve_rows(terms, table, factors, options, **given)
        if row_loss is not None and len(row_loss):
            row_loss[0] = loss or 0.0
