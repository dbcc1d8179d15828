"""The neighbours that a search puts beside the best factors."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS

pytest.importorskip("optuna")

QUICK = {"trials": 3, "factors": 4, "num_threads": 1, "metric": "ndcg@5"}


def pairs(seed: int = 0) -> csr_matrix:
    """Two hundred pairs of items that go together and have nothing else in common: too many for four factors."""
    rng = np.random.default_rng(seed)
    taken = np.zeros((900, 200), bool)
    for user in taken:
        user[rng.choice(100, 4, replace=False)] = True
    taken[:, 100:] = taken[:, :100] & (rng.random((900, 100)) < 0.8)
    return csr_matrix(taken.astype(np.float32))


def test_neighbors_are_found_where_pairs_matter() -> None:
    tuning = WALS.tune(pairs(), None, **QUICK)
    alone, found = tuning.neighbor_trials[0], tuning.neighbor_trials[-1]
    assert alone.neighbors == 0 and found.neighbors > 0 and found.score > 2 * alone.score
    assert tuning.validation_score == found.score
    settings = {name: tuning.best_settings[name] for name in ("neighbors", "neighbor_weight")}
    assert settings == {"neighbors": found.neighbors, "neighbor_weight": found.neighbor_weight}
    assert tuning.model.neighbors_ is not None and any("neighbors of each item" in note for note in tuning.notes)
    assert WALS.from_config(tuning.config).neighbors == found.neighbors
    again = WALS.tune(pairs(), None, **QUICK | {"num_threads": 2})
    assert again.neighbor_trials == tuning.neighbor_trials


def test_neighbors_that_are_noise_are_left_out() -> None:
    noise = csr_matrix((np.random.default_rng(0).random((300, 60)) < 0.1).astype(np.float32))
    tuning = WALS.tune(noise, None, **QUICK)
    found = tuning.neighbor_trials[-1]
    if found.neighbors:  # by chance: then it must be a gain on the same users
        assert found.score > tuning.neighbor_trials[0].score
    else:
        assert "neighbors" not in tuning.best_settings and tuning.model.neighbors_ is None


def test_neighbors_that_are_given_are_not_searched() -> None:
    tuning = WALS.tune(pairs(), None, neighbors=0, **QUICK)
    assert tuning.neighbor_trials == [] and tuning.model.neighbors_ is None
    given = {"neighbor_weight": 0.7, "neighbor_regularization": 33.0}
    tuning = WALS.tune(pairs(), None, refit=False, test=0, **given, **QUICK)
    assert tuning.best_settings.items() >= given.items() and tuning.best_settings["neighbors"] > 0
    tried = {(one.neighbor_weight, one.neighbor_regularization) for one in tuning.neighbor_trials if one.neighbors}
    assert tried == {(0.7, 33.0)} and len({one.neighbors for one in tuning.neighbor_trials}) > 2
    beside = WALS.tune(pairs(), None, neighbors=50, refit=False, test=0, **QUICK)
    assert beside.neighbor_trials == [] and beside.validation_score > 2 * tuning.neighbor_trials[0].score
    with pytest.raises(ValueError, match="neighbors"):
        WALS.tune(pairs(), None, neighbors=-1, **QUICK)
    with pytest.raises(
        ValueError, match="space has no place for neighbor_weight, which is found beside the best factors"
    ):
        WALS.tune(pairs(), None, space={"neighbor_weight": (1, 2)}, **QUICK)
