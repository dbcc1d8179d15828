"""Door to :mod:`wals_gpu.training.state`, under the name that pickles of version 0.1.0 have."""

from wals_gpu.training.state import FitRecord

__all__ = ["FitRecord"]
