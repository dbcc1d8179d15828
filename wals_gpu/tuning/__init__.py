"""Settings chosen on held-out interactions: :meth:`wals_gpu.WALS.tune`, and the strength of a prior alone."""

from wals_gpu.model.tuning import StrengthTrial, tune_strength
from wals_gpu.tuning.result import Comparison, Tuning

__all__ = ["Comparison", "StrengthTrial", "Tuning", "tune_strength"]
