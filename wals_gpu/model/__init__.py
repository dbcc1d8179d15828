"""The model: weighted alternating least squares from interactions to recommendations."""

from wals_gpu.model.wals import WALS, FitRecord

__all__ = ["WALS", "FitRecord"]
