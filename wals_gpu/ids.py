"""Door to :mod:`wals_gpu.data.ids`, under the name that pickles of version 0.1.0 have."""

from wals_gpu.data.ids import Ids

__all__ = ["Ids"]
