"""Rows of every kind for solvers that go from a start, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from once import once
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random

from wals_gpu import reference
from wals_gpu.objective.presets import make_objective
from wals_gpu.objective.terms import RowTerms

ITEMS = 210
OBJECTIVES = [
    ("implicit", {"alpha": 2.0}),
    ("implicit", {"alpha": 0.5}),
    ("hu", {}),
    ("ials", {}),
    ("eals", {}),
    ("explicit", {"regularization": 1.0}),
]
STEPS = [{"solver": "cg", "cg_steps": 1}, {"solver": "cg", "cg_steps": 3}, {"solver": "subspace", "block_size": 16}]


def preset_problem(objective: str, parameters: dict, factors: int, dtype: type, *, signs: bool = False):
    """30 rows: an empty one, a full one, one of a single entry, the rest random; factors, priors and start values."""
    rng = np.random.default_rng(factors)
    matrix = sparse_random(30, ITEMS, density=0.25, random_state=1).tolil()
    matrix[3] = 0
    matrix[5] = 1
    matrix[6] = 0
    matrix[6, 7] = 1
    matrix = csr_matrix(matrix, dtype=dtype)
    matrix.data = np.ceil(matrix.data * 4).astype(dtype)
    matrix.sort_indices()
    if signs:
        matrix.data[::7] *= -1
        matrix.data[::5] = 0.5
    terms = make_objective(objective, **parameters).bind(matrix).user_terms(matrix)
    other, prior, start = (rng.standard_normal((n, factors)).astype(dtype) * 0.3 for n in (ITEMS, 30, 30))
    return terms, other, prior, start


def solve_by_reference(
    terms, other, start, *, prior=None, relaxation=1.0, solver="cholesky", cg_steps=3, block_size=64
):
    """What the reference makes of the arguments of Backend.solve_rows."""
    if solver == "subspace":
        return reference.solve_rows_subspace(terms, other, start, block_size, prior=prior, relaxation=relaxation)
    if solver == "cg":
        solved = reference.solve_rows_cg(terms, other, start, cg_steps, prior=prior)
    else:
        solved = reference.solve_rows(terms, other, prior=prior)
    return solved if relaxation == 1 else reference.relax(terms, start, solved, relaxation)


def row_losses(terms: RowTerms, other, prior) -> Callable[[np.ndarray], np.ndarray]:
    """x'Ax - 2b'x of each row, the loss but for a constant, as a function of factors."""
    systems = [
        reference.row_system(terms, row, other, prior=None if prior is None else prior[row])
        for row in range(terms.n_rows)
    ]

    def losses(factors: np.ndarray) -> np.ndarray:
        rows = zip(factors.astype(np.float64), systems, strict=True)
        return np.array([x @ a @ x - 2 * b @ x for x, (a, b) in rows])

    return losses


@once
def preset_solution(objective: str, parameters: dict, factors: int, dtype: type, *, with_prior: bool, **options):
    """What the reference makes of :func:`preset_problem`."""
    terms, other, prior, start = preset_problem(objective, parameters, factors, dtype)
    return solve_by_reference(terms, other, start, prior=prior if with_prior else None, **options)


def longest_problem(factors: int):
    """Rows that do not fit the cache, and some short ones."""
    rng = np.random.default_rng(factors)
    columns, lengths = 12_000, [9000, 0, 5000, 3, 11_000, 4500, 700, 12_000]
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    col_idx = np.concatenate([np.sort(rng.choice(columns, n, replace=False)) for n in lengths]).astype(np.int32)
    one = np.ones(1)
    terms = RowTerms(row_ptr, col_idx, rng.random(len(col_idx)) + 1, None, -0.5, 0.1 * one, 3 * one, one, 0.0)
    other, start = rng.standard_normal((columns, factors)), rng.standard_normal((len(lengths), factors))
    return terms, other, start


@once
def longest_solution(factors: int):
    terms, other, _ = longest_problem(factors)
    return reference.solve_rows(terms, other)
