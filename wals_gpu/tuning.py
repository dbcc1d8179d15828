"""Door to :mod:`wals_gpu.model.tuning`: settings chosen on held-out interactions."""

from wals_gpu.model.tuning import StrengthTrial, tune_strength

__all__ = ["StrengthTrial", "tune_strength"]
