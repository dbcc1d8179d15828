"""What every backend does on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spectrum"]


class Spectrum(NamedTuple):
    """The weighted Gram matrix of one side, ``vectors diag(values) vectors'``, as the solvers of the other side use it.

    Attributes
    ----------
    values : (D,) float64
        Eigenvalues, rising; none below 0.
    vectors : (D, D) float64 or None
        Eigenvectors in columns; None where there is no background, all eigenvalues being 0.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64] | None
