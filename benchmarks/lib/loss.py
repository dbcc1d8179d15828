"""The loss of a factorisation in float64, independent of every system measured.

    L(X, Y) = sum over stored (u, i)   (1 + alpha v_ui) (1 - x_u.y_i)^2
            + sum over all others      (x_u.y_i)^2
            + ridge (|X|^2 + |Y|^2)

(Hu, Koren and Volinsky 2008, linear confidence.) `python benchmarks/lib/loss.py` checks it
against the dense formula.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

CHUNK = 1 << 13  # entries at a time; two float64 panels of 8 MiB at D = 128: fastest of 2^12, 2^13, 2^15 and 2^17


def hu_loss(matrix, user_factors, item_factors, *, alpha: float, ridge: float, threads: int = 2) -> float:
    """Loss in O(Z D + (U + I) D^2).

    Parameters
    ----------
    matrix : csr_matrix (U, I)
        Stored values v > 0.
    user_factors, item_factors : ndarray (U, D), (I, D)
        Any float dtype; every sum is in float64.
    alpha, ridge : float
        Confidence slope and ridge.
    threads : int, default 2
        Threads for the entries.
    """
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))

    def entries(start: int) -> float:
        part = slice(start, start + CHUNK)
        prediction = np.einsum(
            "nd,nd->n",
            np.take(user_factors, rows[part], axis=0).astype(np.float64),
            np.take(item_factors, matrix.indices[part], axis=0).astype(np.float64),
        )
        confidence = 1.0 + alpha * matrix.data[part].astype(np.float64)
        # Every pair is in the Gram term below with weight 1, so the stored ones take that part back here.
        return float(np.sum(confidence * (1.0 - prediction) ** 2 - prediction**2))

    with ThreadPoolExecutor(threads) as pool:
        stored = sum(pool.map(entries, range(0, matrix.nnz, CHUNK)))
    user_gram, item_gram = (gram(factors) for factors in (user_factors, item_factors))
    return stored + float(np.sum(user_gram * item_gram)) + ridge * float(np.trace(user_gram) + np.trace(item_gram))


def gram(factors, chunk: int = 1 << 14) -> np.ndarray:
    """`factors.T @ factors` (D, D) in float64, without a float64 copy of the whole."""
    total = np.zeros((factors.shape[1],) * 2)
    for start in range(0, len(factors), chunk):
        part = factors[start : start + chunk].astype(np.float64)
        total += part.T @ part
    return total


def row_residuals(matrix, solved, other, *, alpha: float, ridge: float, rows) -> np.ndarray:
    """|A x - b| / |b| of some rows: 0 to rounding where `solved` is the exact answer to `other`.

    It tells whether a system really minimises the loss above: an exact solver's last half-sweep must solve these
    equations and no others.

    Parameters
    ----------
    matrix : csr_matrix (R, n_other)
        The side that was solved last, as rows.
    solved, other : ndarray (R, D), (n_other, D)
        Its factors and the opposite ones.
    rows : sequence of int
        Which rows to look at; they must have entries.
    """
    other_gram = gram(other) + ridge * np.eye(other.shape[1])
    result = []
    for row in rows:
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        y = other[matrix.indices[part]].astype(np.float64)
        extra = alpha * matrix.data[part].astype(np.float64)
        b = y.T @ (1.0 + extra)
        a_x = other_gram @ solved[row].astype(np.float64) + y.T @ (extra * (y @ solved[row].astype(np.float64)))
        result.append(np.linalg.norm(a_x - b) / np.linalg.norm(b))
    return np.array(result)


def self_test() -> None:
    """Compare both functions with the dense formula on a small matrix; AssertionError when they differ."""
    from scipy.sparse import random as random_sparse

    rng = np.random.default_rng(0)
    users, items, factors, alpha, ridge = 213, 57, 11, 3.0, 0.7
    matrix = random_sparse(users, items, 0.1, format="csr", random_state=rng)
    x, y = rng.normal(size=(users, factors)), rng.normal(size=(items, factors))
    dense = matrix.toarray()
    prediction = x @ y.T
    weight = np.where(dense > 0, 1 + alpha * dense, 1)
    expected = np.sum(weight * ((dense > 0) - prediction) ** 2) + ridge * (np.sum(x**2) + np.sum(y**2))
    assert np.isclose(hu_loss(matrix, x, y, alpha=alpha, ridge=ridge), expected, rtol=1e-12)

    busy = np.flatnonzero(np.diff(matrix.indptr))
    x[np.diff(matrix.indptr) == 0] = 0
    for u in busy:
        a = (y * weight[u, :, None]).T @ y + ridge * np.eye(factors)
        x[u] = np.linalg.solve(a, y.T @ (weight[u] * (dense[u] > 0)))
    assert row_residuals(matrix, x, y, alpha=alpha, ridge=ridge, rows=busy).max() < 1e-12
    assert row_residuals(matrix, x + 1e-6, y, alpha=alpha, ridge=ridge, rows=busy).min() > 1e-9
    # The minimum over X must not be lowered by moving any way.
    lowest = hu_loss(matrix, x, y, alpha=alpha, ridge=ridge)
    assert all(
        hu_loss(matrix, x + 1e-3 * rng.normal(size=x.shape), y, alpha=alpha, ridge=ridge) > lowest for _ in range(5)
    )


if __name__ == "__main__":
    self_test()
    print("loss.py agrees with the dense formula")
