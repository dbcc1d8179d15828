"""Top-k search among item vectors: exact, filtered, exploring, and exported to approximate indexes."""

from wals_gpu.retrieval.exact import ExactIndex
from wals_gpu.retrieval.explore import UCB, Thompson
from wals_gpu.retrieval.lists import Filters, Lists

__all__ = ["UCB", "ExactIndex", "Filters", "Lists", "Thompson"]
