"""What every device does, the one of a name, and LIMITS, the numbers that all of them share (csrc/common/limits.h)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu._cpu import LIMITS
from wals_gpu.backends.host import Spectrum
from wals_gpu.objective.terms import RowTerms

if TYPE_CHECKING:
    from wals_gpu.data.stored import StoredTerms

__all__ = ["LIMITS", "Backend", "held", "make_backend"]


class Backend(Protocol):
    """What every device does, as :mod:`wals_gpu.reference` defines it; :class:`.cpu.CpuBackend` documents the rest."""

    name: str

    def solve_rows(
        self,
        terms: RowTerms,
        other: NDArray[np.floating],
        factors: NDArray[np.floating],
        *,
        prior: NDArray[np.floating] | None = None,
        solver: str = "cholesky",
        cg_steps: int = 3,
        cg_tolerance: float = 0.0,
        block_size: int = 64,
        relaxation: float = 1.0,
        return_loss: bool = False,
        basis: NDArray[np.float64] | None = None,
        spectrum: Spectrum | None = None,
    ) -> float | None: ...

    def spectrum(self, terms: RowTerms | StoredTerms, other: NDArray[np.floating]) -> Spectrum: ...

    def empty_factors(self, n: int, factors: int, dtype: np.dtype) -> NDArray[np.floating]: ...

    def moving_basis(
        self, factors: NDArray[np.floating], other: NDArray[np.floating]
    ) -> NDArray[np.float64] | None: ...

    def restore_basis(
        self, factors: NDArray[np.floating], other: NDArray[np.floating], basis: NDArray[np.float64]
    ) -> None: ...

    def loss(
        self,
        user_terms: RowTerms,
        user_factors: NDArray[np.floating],
        item_factors: NDArray[np.floating],
        item_ridge: NDArray[np.floating],
        *,
        user_prior: NDArray[np.floating] | None = None,
        item_prior: NDArray[np.floating] | None = None,
    ) -> float: ...

    def ridge_loss(
        self, factors: NDArray[np.floating], ridge: NDArray[np.floating], prior: NDArray[np.floating] | None = None
    ) -> float: ...

    def topk(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, excluded: csr_matrix | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...

    def topk_listed(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], k: int, listed: csr_matrix
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]]: ...

    def score_entries(
        self, queries: NDArray[np.floating], items: NDArray[np.floating], listed: csr_matrix
    ) -> NDArray[np.floating]: ...

    def transpose(self, matrix: csr_matrix) -> csr_matrix: ...

    def hold(self, *factors: NDArray[np.floating]) -> None: ...

    def fetch(self) -> None: ...

    def release(self) -> None: ...


@contextmanager
def held(backend: Backend, *factors: NDArray[np.floating]) -> Iterator[None]:
    """As long as it lasts, a device may keep these arrays in its own memory: solves and losses work on them there.

    Meanwhile nobody else writes to the arrays, and who reads them calls ``backend.fetch()`` before.
    """
    backend.hold(*factors)
    try:
        yield
    finally:
        backend.release()


def make_backend(device: str = "auto", num_threads: int = 0) -> Backend:
    """The backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto": the CPU. "cuda": the current CUDA device, in float32; :func:`wals_gpu.cuda_status` tells whether there
        is one.
    num_threads : int, default 0
        Threads on the CPU; 0: all that the process may use.

    Raises
    ------
    ValueError
        Another device.
    RuntimeError
        "cuda" where it cannot be used; the text says why.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    # Imported here: `wals-gpu doctor` must run where a native module does not.
    if device == "cuda":
        from wals_gpu.backends.cuda import CudaBackend

        return CudaBackend()
    from wals_gpu.backends.cpu import CpuBackend

    return CpuBackend(num_threads)
