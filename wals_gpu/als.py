"""Door to :mod:`wals_gpu.compat.als`: a drop-in replacement for ``implicit.als``."""

from wals_gpu.compat.als import AlternatingLeastSquares, CpuAlternatingLeastSquares, calculate_loss

__all__ = ["AlternatingLeastSquares", "CpuAlternatingLeastSquares", "calculate_loss"]
