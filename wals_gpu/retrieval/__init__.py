"""Top-k search among item vectors: exact, filtered, exploring, re-ranked, and exported to approximate indexes."""

from wals_gpu.data.categories import Categories
from wals_gpu.retrieval.exact import ExactIndex
from wals_gpu.retrieval.explore import UCB, Thompson
from wals_gpu.retrieval.lists import Filters, Lists
from wals_gpu.retrieval.rerank import DPP, MMR

__all__ = ["DPP", "MMR", "UCB", "Categories", "ExactIndex", "Filters", "Lists", "Thompson"]
