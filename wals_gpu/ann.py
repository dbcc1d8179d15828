"""Door to :mod:`wals_gpu.retrieval.ann`: approximate indexes of item factors."""

from wals_gpu.retrieval.ann import AnnIndex

__all__ = ["AnnIndex"]
