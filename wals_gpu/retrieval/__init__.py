"""Top-k search among item vectors: exact, filtered, exploring, and exported to approximate indexes."""

from wals_gpu.retrieval.exact import ExactIndex, Filters

__all__ = ["ExactIndex", "Filters"]
