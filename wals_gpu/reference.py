"""Door to :mod:`wals_gpu.objective.reference`: the definition of what solvers compute, in NumPy float64."""

from wals_gpu.objective.reference import (
    gradient,
    loss,
    neighbors,
    prior_loss,
    regress_prior,
    relax,
    row_system,
    solve_rows,
    solve_rows_cg,
    solve_rows_subspace,
    topk,
    topk_neighbors,
)

__all__ = [
    "gradient",
    "loss",
    "neighbors",
    "prior_loss",
    "regress_prior",
    "relax",
    "row_system",
    "solve_rows",
    "solve_rows_cg",
    "solve_rows_subspace",
    "topk",
    "topk_neighbors",
]
