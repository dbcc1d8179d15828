"""Linear priors: features of items or users, such as embeddings of their texts, as prior means of their factors."""

from wals_gpu.priors.linear import FittedPrior, LinearPrior

__all__ = ["FittedPrior", "LinearPrior"]
