"""Settings chosen on held-out interactions: :meth:`wals_gpu.WALS.tune`, and those of a prior alone."""

from wals_gpu.tuning.priors import PriorChoice, PriorTrial, StrengthTrial, tune_prior, tune_strength
from wals_gpu.tuning.result import Comparison, Tuning

__all__ = ["Comparison", "PriorChoice", "PriorTrial", "StrengthTrial", "Tuning", "tune_prior", "tune_strength"]
