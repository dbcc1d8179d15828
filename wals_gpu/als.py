"""Door to :mod:`wals_gpu.compat.als`: a drop-in replacement for ``implicit.als``."""

from wals_gpu.compat.als import AlternatingLeastSquares, CpuAlternatingLeastSquares, calculate_loss
from wals_gpu.compat.factors import KnownSpectrum as _KeptSpectrum  # noqa: F401  pickles of version 0.1.0 name it

__all__ = ["AlternatingLeastSquares", "CpuAlternatingLeastSquares", "calculate_loss"]
