"""Logs of interactions to rank with, their splits, and how the cases about ranking score a fit."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix

from lib.common import rounded
from wals_gpu import WALS, as_interactions
from wals_gpu.datasets import load_debian_packages
from wals_gpu.evaluation import evaluate, random_holdout
from wals_gpu.objective import make_objective

#: Name, and the file with users, items and values beneath the data folder; None: embedded in the library.
LOGS = {
    "debian": None,
    "steam-200k": "steam-200k/interactions.parquet",
    "steam-200k hours": "steam-200k/play_hours.parquet",
    "lastfm-2k": "lastfm-2k/interactions.parquet",
    "ml-100k": "ml-100k/interactions.parquet",
    "ml-latest-small": "ml-latest-small/interactions.parquet",
    "ml-1m": "ml-1m/interactions.parquet",
    "citeulike-a": "citeulike-a/interactions.parquet",
    "amazon-beauty-2014": "amazon-beauty-2014/interactions.parquet",
    "anime-5k": "anime-5k/interactions.parquet",
}
METRIC = "ndcg@20"


def per_user(model, train: csr_matrix, test: csr_matrix) -> np.ndarray:
    """The metric of every user with something to find."""
    report = evaluate(model, train, test, 20, baseline=False, n_resamples=0)
    return next(iter(report.per_user.values()))[METRIC]


def gain(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator, samples: int = 1000) -> dict:
    """Mean of ours / mean of theirs - 1, and a paired interval of 95 % from resampled users."""
    n = len(ours)
    values = []
    for _ in range(samples):
        times = np.bincount(rng.integers(0, n, n), minlength=n)
        values.append((times @ ours) / (times @ theirs) - 1)
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": rounded(ours.mean() / theirs.mean() - 1), "low": rounded(low), "high": rounded(high)}


def load_log(name: str, folder: Path) -> csr_matrix:
    """Interactions (U, I) with the values that they come with."""
    path = LOGS[name]
    if path is None:
        return load_debian_packages().interactions.matrix
    table = pq.read_table(folder / path)
    # Named by place: user, item, and the value where there is one.
    columns = [*table.column_names, None]
    value = next((c for c in columns[2:] if c in ("value", "hours", "play_hours")), False)
    return as_interactions(table, user_column=columns[0], item_column=columns[1], value_column=value).matrix


def ones_of(matrix: csr_matrix) -> csr_matrix:
    """Every entry counted once."""
    return csr_matrix((np.ones_like(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def has_values(matrix: csr_matrix) -> bool:
    """Whether the values say more than that there is an entry."""
    return bool(np.median(matrix.data) != matrix.data.min() or np.quantile(matrix.data, 0.1) != matrix.data.max())


def split(matrix: csr_matrix, seed: int) -> tuple[csr_matrix, csr_matrix]:
    """Train and test: a random fifth of the entries is hidden."""
    return random_holdout(matrix, 0.2, seed)


def ridge_of_ials(matrix: csr_matrix, weight: float, nu: float, share: float) -> float:
    """The `regularization` of "ials" for which the mean user's ridge is a share of n + w0 I, whatever `nu` is."""
    return share * (matrix.nnz / matrix.shape[0] + weight * matrix.shape[1]) ** (1 - nu)


def draw_ials(matrix: csr_matrix, rng: np.random.Generator, near: bool) -> dict:
    """Random settings of an "ials" model: from wide ranges, or near where good ones lie for the density of the data."""
    density = matrix.nnz / (matrix.shape[0] * matrix.shape[1])
    if near:
        weight, share = density * 10 ** rng.uniform(0.3, 1.8), 10 ** rng.uniform(-2.5, -1.5)
        nu, factors = rng.choice([0.25, 0.5, 0.75, 1.0]), 256
    else:
        weight, share = 10 ** rng.uniform(-3, 0), 0.01 * 10 ** rng.uniform(-1.3, 2)
        nu, factors = rng.choice([0.0, 0.5, 1.0]), rng.choice([64, 128, 256])
    weight, nu = float(min(weight, 1.0)), float(nu)
    return {
        "factors": int(factors),
        "objective": "ials",
        "unobserved_weight": weight,
        "nu": nu,
        "regularization": ridge_of_ials(matrix, weight, nu, float(share)),
    }


def best_iteration(settings: dict, train: csr_matrix, valid: csr_matrix, iterations: int, threads: int, **more) -> dict:
    """The validation metric of a fit at its best iteration, of every second one, and which that is."""
    model = WALS(**settings, iterations=iterations, compute_loss=False, num_threads=threads, **more)
    model.fit(train, validation=valid, metric=METRIC, validate_every=2)
    best = max(record.validation or 0.0 for record in model.history_)
    return {**settings, "score": best, "iterations": model.best_iteration_}


def plain(settings: dict) -> dict:
    """Settings as JSON has them; refuses what no preset takes."""
    own = {k: v for k, v in settings.items() if k not in ("factors", "objective", "init_scale", "iterations", "score")}
    make_objective(settings.get("objective", "wals"), **own)
    return {k: (round(v, 6) if isinstance(v, float) else v) for k, v in settings.items()}
