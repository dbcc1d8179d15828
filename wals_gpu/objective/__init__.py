"""The training objective: every system is a preset that fills in one formula. Nothing else knows systems by name.

::

    L(X, Y) =  sum of c_ui (t_ui - x_u.y_i)^2   over the observed entries
             + sum of g_u h_i (x_u.y_i)^2       over all other pairs
             + sum of lambda_u |x_u - p_u|^2 + sum of lambda_i |y_i - q_i|^2

:mod:`.presets` has the systems by name, :mod:`.bound` binds one to a training matrix, :mod:`.terms` is what solvers get
to see of it, and :mod:`.reference` is the definition of what they compute.
"""

from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.objective.presets import (
    PRESETS,
    Eals,
    Explicit,
    GoogleWals,
    Hu,
    Ials,
    Implicit,
    Spark,
    Wals,
    bound_from_arrays,
    make_objective,
)
from wals_gpu.objective.terms import RowTerms

__all__ = [
    "PRESETS",
    "BoundObjective",
    "Eals",
    "Explicit",
    "GoogleWals",
    "Hu",
    "Ials",
    "Implicit",
    "Objective",
    "RowTerms",
    "Spark",
    "Wals",
    "bound_from_arrays",
    "make_objective",
]
