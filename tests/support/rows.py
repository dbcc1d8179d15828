"""Rows to solve, and the check of solutions against the float64 definition.

How close is close enough follows from the system ``A x = b``. Let ``M`` be A with the absolute values of its terms, and
``B`` the sum of the lengths of the terms of b. Rounding each term by the unit roundoff eps changes A by ``eps |M|`` and
b by ``eps B``, so the residual by ``eps (|M| |x| + B)``, and the solution by that over the smallest eigenvalue of A.
Neither number knows in which order a kernel adds up. Over some thousand systems, on all instruction sets and several
kernels of the reference's BLAS, float32 was at most 1.6 times the second, and in the primal form 2.4 times the first;
the dual form, which solves for n other unknowns, is held to the second only. float64 was at most 4.6 and 5.0 times
them, where a row without entries is solved from the Gram matrix and its eigenvectors, which float32 has in float64 too.
`ROOM` is what is allowed: three times that.
"""

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu import _cpu, reference
from wals_gpu._cpu import LIMITS
from wals_gpu.objective.terms import RowTerms

ROOM = {"float32": 8, "float64": 16}
SIGNED = ("implicit", "google_wals", "spark", "explicit")


# Where the kernels change from one form of a row's system to another: from their own numbers, so that the sizes below
# move with them and no path goes untested unnoticed.


def dual_limit(d):
    """Rows of more entries, all Gram coefficients of one sign, are solved in the primal form."""
    return d * LIMITS.dual_numerator // LIMITS.dual_denominator


def panel_rows(d, dtype):
    """Entries of a primal panel; longer rows have several."""
    lane = 64 // np.dtype(dtype).itemsize
    fit = LIMITS.panel_bytes // (-(-d // lane) * 64)
    return max(min(fit, LIMITS.panel_factors * d), LIMITS.panel_least)


def giant_length(d):
    """Rows of at least as many entries are summed in slices by all threads."""
    return max(LIMITS.giant_entries, int(LIMITS.giant_work / d**2) + 1)


def make_signs(kind, n, rng):
    """Signs of Gram coefficients; "runs": whole stretches of one sign, so that a panel may have no other."""
    if kind == "runs":
        return np.array([1, -1, 0])[np.arange(n) // 300 % 3]
    return rng.choice(
        {"plus": [1], "minus": [-1], "zero": [0], "tiny": [1], "mixed": [1, -1], "all": [1, 1, 1, -1, 0]}[kind], n
    )


def make_terms(lengths, n_other, rng, dtype, signs="plus", background=1.0, ridge=0.1):
    """Rows of these lengths. Below zero, a Gram coefficient c - g h has 0 <= c < g h, so systems are definite."""
    lengths = np.asarray(lengths)
    size = int(lengths.sum())
    # Columns repeat only where a row is longer than the table.
    cols = [np.sort(rng.choice(n_other, n, replace=n > n_other)) for n in lengths]
    cols = np.concatenate([[], *cols]).astype(np.int32)
    g = background * rng.uniform(0.5, 1.5, len(lengths))
    h = rng.uniform(0.5, 1.5, n_other)
    sign = make_signs(signs, size, rng)
    row = np.repeat(np.arange(len(lengths)), lengths)
    _, which, times = np.unique(row * n_other + cols, return_inverse=True, return_counts=True)
    most = g[row] * h[cols] / times[which]
    gram = np.where(sign > 0, 3.0, np.where(sign < 0, -most, 0)) * rng.uniform(0.2, 0.9, size)
    if signs == "tiny":  # as where a confidence is all but the weight of an unobserved pair
        gram *= 10 ** rng.uniform(-30, 0, size)
    return RowTerms(
        row_ptr=np.concatenate([[0], np.cumsum(lengths)]),
        col_idx=cols,
        rhs=rng.normal(size=size).astype(dtype),
        gram=gram.astype(dtype),
        gram_offset=0.0,
        background=g.astype(dtype),
        ridge=(ridge * rng.uniform(0.5, 1.5, len(lengths))).astype(dtype),
        other_background=h.astype(dtype),
        target_square=0.0,
    )


def problem(d, lengths, signs="plus", seed=0, **parameters):
    rng = np.random.default_rng(seed)
    n_other = max(*lengths, 40)
    terms = make_terms(lengths, n_other, rng, np.float32, signs, **parameters)
    other = rng.normal(size=(n_other, d)).astype(np.float32)
    return terms, other, rng.normal(size=(len(lengths), d)).astype(np.float32)


def make_matrix(name, dtype, shape=(37, 53)):
    """Canonical, with a few stored zeros, negative values where they have a meaning, an empty row and column."""
    rng = np.random.default_rng(7)
    seen = rng.random(shape) < 0.3
    seen[4], seen[:, 6] = False, False
    rows, cols = np.nonzero(seen)
    values = rng.uniform(0.1, 4, len(rows))
    values[::9] = 0
    if name in SIGNED:
        values[1::7] *= -1
    row_ptr = np.concatenate([[0], np.cumsum(seen.sum(axis=1))])
    return csr_matrix((values.astype(dtype), cols, row_ptr), shape=shape)


def make_check(terms, other, prior=None):
    """A function that fails unless every row of a solution is within the allowance, and its residual too."""
    expected = reference.solve_rows(terms, other, prior=prior)
    eps, room = np.finfo(other.dtype).eps, ROOM[other.dtype.name]
    other = np.asarray(other, np.float64)
    h = np.broadcast_to(terms.other_background, len(other)).astype(np.float64)
    shared = (other.T * h) @ other
    rows = []
    for r in range(terms.n_rows):
        entries = slice(terms.row_ptr[r], terms.row_ptr[r + 1])
        y, gram = other[terms.col_idx[entries]], terms.gram_values()[entries].astype(np.float64)
        g, ridge = (float(np.broadcast_to(a, terms.n_rows)[r]) for a in (terms.background, terms.ridge))
        fixed = g * shared + ridge * np.eye(other.shape[1])
        a = fixed + (y.T * gram) @ y
        eigenvalues = np.linalg.eigvalsh(a)
        magnitude = eigenvalues[-1] if (gram >= 0).all() else np.linalg.eigvalsh(fixed + (y.T * abs(gram)) @ y)[-1]
        rhs = terms.rhs_values()[entries].astype(np.float64)
        b, size_b = rhs @ y, np.abs(rhs) @ np.linalg.norm(y, axis=1)
        if prior is not None:
            p = np.asarray(prior[r], np.float64)
            b, size_b = b + ridge * p, size_b + ridge * np.linalg.norm(p)
        allowed = eps * (magnitude * np.linalg.norm(expected[r]) + size_b)
        dual = 0 < len(gram) <= dual_limit(other.shape[1]) and ((gram >= 0).all() or (gram <= 0).all())
        rows.append((a, b, eigenvalues[0], allowed, dual))

    def check(solved):
        assert solved.shape == expected.shape
        for r, (a, b, smallest, allowed, dual) in enumerate(rows):
            x, n = solved[r].astype(np.float64), terms.row_ptr[r + 1] - terms.row_ptr[r]
            residual, error = np.linalg.norm(a @ x - b), smallest * np.linalg.norm(x - expected[r])
            assert dual or residual <= room * allowed, f"{_cpu.isa()}, row {r} of {n} entries"
            assert error <= room * allowed, f"{_cpu.isa()}, row {r} of {n} entries"

    return check
