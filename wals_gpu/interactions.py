"""Door to :mod:`wals_gpu.data`: tables and matrices of interactions."""

from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, as_interactions, read_interactions

__all__ = ["Ids", "Interactions", "as_csr", "as_interactions", "read_interactions"]
