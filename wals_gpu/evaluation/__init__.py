"""Ranking metrics (defined in :mod:`.metrics`), splits, the popularity baseline, and :func:`evaluate`."""

from wals_gpu.evaluation.churn import Churn, churn
from wals_gpu.evaluation.comparison import Difference, Differences
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.report import Cohort, Comparison, EvaluationReport, evaluate
from wals_gpu.evaluation.resampling import Estimate, bootstrap_interval
from wals_gpu.evaluation.splits import (
    StrongSplit,
    cold_items_split,
    last_n,
    leave_one_out,
    random_holdout,
    rolling_windows,
    sample_negatives,
    strong_generalisation_split,
    temporal_split,
)

__all__ = [
    "Churn",
    "Cohort",
    "Comparison",
    "Difference",
    "Differences",
    "Estimate",
    "EvaluationReport",
    "Popularity",
    "StrongSplit",
    "bootstrap_interval",
    "churn",
    "cold_items_split",
    "evaluate",
    "last_n",
    "leave_one_out",
    "random_holdout",
    "ranking_metrics",
    "rolling_windows",
    "sample_negatives",
    "strong_generalisation_split",
    "temporal_split",
]
