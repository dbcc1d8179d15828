"""Fits that are interrupted, and whether two of them are the same."""

import dataclasses

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu import WALS


def make_likes(seed=0, shape=(70, 40)):
    rng = np.random.default_rng(seed)
    return csr_matrix((rng.random(shape) < 0.3) * rng.integers(1, 5, shape).astype(np.float32))


def make_model(**params):
    return WALS(**{"factors": 16, "objective": "hu", "alpha": 5, "iterations": 9, "num_threads": 2, **params})


def same_course(a, b):
    """Whether two fits agree in every bit of what they computed."""
    records = [[dataclasses.replace(record, seconds=0.0) for record in model.history_] for model in (a, b)]
    factors = (np.array_equal(getattr(a, name), getattr(b, name)) for name in ("user_factors", "item_factors"))
    return records[0] == records[1] and all(factors) and a.best_iteration_ == b.best_iteration_


class Stop(Exception):
    pass


def interrupt_at(*iterations):
    def callback(model, record):
        if record.iteration in iterations:
            raise Stop

    return callback
