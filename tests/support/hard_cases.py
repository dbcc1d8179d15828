"""Systems that break solvers, and what each solver returns: ``python tests/support/hard_cases.py`` prints the table.

A case gives the terms of some rows and the other side's factors. Its result is the backward error of the worst row,
``|A x - b| / (|A| |x| + |b|)`` in float64, which does not depend on the condition of A: a few roundings of the dtype
for an exact solver. Iterative solvers are called 41 times, each from where the one before ended.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from once import once
from rounding import rounding
from solving import solve_rows

from wals_gpu import reference
from wals_gpu.backends import Backend
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.terms import RowTerms

D = 32
SOLVERS = {
    "cholesky": {"solver": "cholesky"},
    "cg": {"solver": "cg", "cg_steps": 50},
    "subspace": {"solver": "subspace", "block_size": 16},
}
LENGTHS = (3, 20, 31, 100, 400)  # below and above the limit between the dual and the primal form

Case = tuple[RowTerms, NDArray[np.floating]]
CASES: dict[str, Callable[[np.dtype, np.random.Generator], Case]] = {}


def case(title: str) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    def register(function: Callable[..., Case]) -> Callable[..., Case]:
        CASES[title] = function
        return function

    return register


def system(dtype, rng, other, *, lengths=LENGTHS, confidence=1.0, rhs=None, background=1.0, ridge=0.01) -> Case:
    """Rows of these lengths over random columns; `confidence` is a number, or makes them from the number of entries."""
    n = len(other)
    columns = [np.sort(rng.choice(n, min(length, n), replace=False)) for length in lengths]
    row_ptr = np.cumsum([0, *map(len, columns)]).astype(np.int64)
    gram = confidence(row_ptr[-1]) if callable(confidence) else np.full(row_ptr[-1], float(confidence))
    rhs = gram if rhs is None else np.full(row_ptr[-1], float(rhs))
    one = np.ones(1, dtype)
    with np.errstate(over="ignore"):
        terms = RowTerms(
            row_ptr, np.concatenate(columns).astype(np.int32), rhs.astype(dtype), gram.astype(dtype), 0.0,
            one * dtype.type(background), one * dtype.type(ridge), one, 0.0,
        )  # fmt: skip
    return terms, np.ascontiguousarray(other, dtype)


def normal(rng, n=400):
    return rng.standard_normal((n, D))


def conditioned(rng, condition, n=400):
    """Factors whose Gram matrix has this condition number."""
    left = np.linalg.qr(normal(rng, n))[0]
    right = np.linalg.qr(rng.standard_normal((D, D)))[0]
    return left * np.logspace(0, -np.log10(condition) / 2, D) @ right


for exponent in (4, 6, 8):

    @case(f"condition number 1e{exponent}, no ridge")
    def _(dtype, rng, exponent=exponent):
        return system(dtype, rng, conditioned(rng, 10.0**exponent), ridge=0)


@case("confidences from 1e-8 to 1e8 in one row")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), confidence=lambda n: 10.0 ** rng.uniform(-8, 8, n))


@case("the same, nothing unobserved")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), confidence=lambda n: 10.0 ** rng.uniform(-8, 8, n), background=0)


@case("the same, with negative Gram coefficients")
def _(dtype, rng):
    def gram(n):
        c = 10.0 ** rng.uniform(-8, 8, n)
        return np.where(c < 1, c - 1, c)

    return system(dtype, rng, normal(rng), confidence=gram, rhs=1.0)


@case("all confidences 1e-8")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), confidence=1e-8, background=0, ridge=1e-8)


@case("all confidences 1e8, ridge 1e-8")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), confidence=1e8, ridge=1e-8)


@case("400 equal items")
def _(dtype, rng):
    return system(dtype, rng, np.repeat(normal(rng, 1), 400, axis=0))


@case("400 equal items, no ridge")
def _(dtype, rng):
    return system(dtype, rng, np.repeat(normal(rng, 1), 400, axis=0), ridge=0)


@case("more factors than items")
def _(dtype, rng):
    return system(dtype, rng, normal(rng, 10))


@case("more factors than items, no ridge")
def _(dtype, rng):
    return system(dtype, rng, normal(rng, 10), ridge=0)


@case("one factor more than items, no ridge")
def _(dtype, rng):
    return system(dtype, rng, normal(rng, D - 1), lengths=(D - 1, 5), ridge=0)


@case("more factors than entries, no ridge, nothing unobserved")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), lengths=(3, 20), background=0, ridge=0)


@case("denormal values")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), confidence=np.finfo(dtype).tiny / 64)


@case("denormal values and ridge, nothing unobserved")
def _(dtype, rng):
    tiny = np.finfo(dtype).tiny / 64
    return system(dtype, rng, normal(rng), confidence=tiny, ridge=tiny, background=0)


@case("denormal factors")
def _(dtype, rng):
    return system(dtype, rng, normal(rng) * float(np.finfo(dtype).tiny / 64))


@case("factors whose squares overflow")
def _(dtype, rng):
    return system(dtype, rng, normal(rng) * np.sqrt(float(np.finfo(dtype).max)))


@case("targets near the largest number")
def _(dtype, rng):
    return system(dtype, rng, normal(rng), rhs=np.finfo(dtype).max / 4)


@case("one user with all of 50,000 items")
def _(dtype, rng):
    return system(dtype, rng, normal(rng, 50_000), lengths=(50_000, 1), confidence=40)


System = tuple[NDArray[np.float64], NDArray[np.float64]]


@once
def make(title: str, dtype: str) -> tuple[RowTerms, NDArray[np.floating], list[System]]:
    """The terms and factors of a case, and the system of each row."""
    terms, other = CASES[title](np.dtype(dtype), np.random.default_rng(3))
    with np.errstate(all="ignore"):
        return terms, other, [reference.row_system(terms, row, other) for row in range(terms.n_rows)]


def solve(
    title: str, dtype: str, solver: str, backend: Backend | None = None, calls: int = 41
) -> tuple[str | float, float]:
    """The backward error, or the name of the error; and by how much a single call raised the loss of a row at most.

    The rise is relative to the sizes of what the loss is the difference of.
    """
    terms, other, systems = make(title, dtype)
    backend = CpuBackend(2) if backend is None else backend
    start = (0.1 * np.random.default_rng(1).standard_normal((terms.n_rows, D))).astype(dtype)

    def loss(x):
        return [float(x @ a @ x - 2 * b @ x) for x, (a, b) in zip(x.astype(np.float64), systems, strict=True)]

    factors = start.copy()
    try:
        with np.errstate(all="ignore"):
            solve_rows(backend, terms, other, factors, **SOLVERS[solver])
            first = factors.copy()
            for _ in range(0 if solver == "cholesky" else calls - 1):
                solve_rows(backend, terms, other, factors, **SOLVERS[solver])
    except (SingularSystemError, ModelFitError) as error:
        assert "regularization" in str(error)  # the remedy
        return type(error).__name__, 0.0
    assert np.isfinite(factors).all() and np.isfinite(first).all()
    with np.errstate(all="ignore"):
        size = [abs(x) @ abs(a) @ abs(x) + 2 * abs(b) @ abs(x) for x, (a, b) in zip(start, systems, strict=True)]
        rises = np.subtract(loss(first), loss(start)) / np.maximum(size, np.finfo(np.float64).tiny)
        return max(map(backward_error, factors, systems)), float(np.nan_to_num(rises).max())


def backward_error(x: NDArray[np.floating], ab: System) -> float:
    """Below the smallest normal number there is no relative accuracy, so that much of `x` is not asked for."""
    a, b = (np.ldexp(m, -int(np.frexp(abs(ab[0]).max())[1])) for m in ab)  # |A| about 1: no square overflows
    tiny = float(np.finfo(x.dtype).tiny)
    unit = max(float(abs(x).max()), float(abs(b).max()), tiny)
    y, b = x.astype(np.float64) / unit, b / unit
    size = np.linalg.norm(a, 2) * (np.linalg.norm(y) + tiny / unit) + np.linalg.norm(b)
    return float(np.linalg.norm(a @ y - b) / size)


SINGULAR = {"400 equal items, no ridge", "more factors than items, no ridge", "one factor more than items, no ridge",
            "more factors than entries, no ridge, nothing unobserved"}  # fmt: skip
OVERFLOW = {"factors whose squares overflow", "targets near the largest number"}  # float32 is saved by float64
# Backward errors that convergence decides, not rounding. CG in float64 gains nothing below the rounding of confidences
# from 1e-8 to 1e8 (1.3e-10). Subspace steps on systems where the blocks depend on each other come closer by a part each
# time, and 41 calls are not the end: 1.25e-2 in both dtypes, the same on all instruction sets.
SLOW = {("cg", "float64"): 1e-9, ("subspace", "float32"): 3e-2, ("subspace", "float64"): 3e-2}


def backward_bound(title, solver, dtype):
    """Roundings, as of sums of 400 entries (26 at most on all instruction sets, where all of these are equal)."""
    # The numbers of these cases are 1/64 of the smallest normal one, so they have 6 bits less, and there is nothing of
    # normal size to add them to: 4.3 of such roundings.
    bits = 64 if title == "denormal values and ridge, nothing unobserved" else 1
    return SLOW.get((solver, dtype), rounding(dtype, 400, growth=5 if bits == 1 else bits))


def main() -> None:
    print("| case | " + " | ".join(f"{solver}, {bits}" for bits in (32, 64) for solver in SOLVERS) + " |")
    print("|---" * 7 + "|")
    for title in CASES:
        cells = []
        for dtype in ("float32", "float64"):
            for solver in SOLVERS:
                result, rise = solve(title, dtype, solver)
                cells.append(result if isinstance(result, str) else f"{result:.0e}" + f" {rise:.0e}" * (rise > 0))
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
