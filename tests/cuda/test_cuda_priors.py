"""Linear priors on the CUDA backend (the emulator): the fit of the CPU, and items that come after it."""

import itertools

import numpy as np
import pytest
from emulated_cuda import emulated_backend, needs_kernels
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.priors.linear import LinearPrior

USERS, ITEMS = 50, 33
pytestmark = needs_kernels

SETTINGS = {
    "exact": {"solver": "cholesky"},
    "cg": {"solver": "cg"},
    "subspace": {"solver": "subspace", "block_size": 16},
    "shrunk": {"solver": "cholesky", "item": {"shrinkage": 0.5, "strength": 2.0}},
    "map, learned": {"solver": "cholesky", "item": {"cold": "map", "learn": "empirical_bayes", "strength": 2.0}},
}


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(5)
    kind, likes = rng.integers(3, size=ITEMS), rng.integers(3, size=USERS)
    taken = rng.random((USERS, ITEMS)) < np.where(likes[:, None] == kind, 0.5, 0.05)
    taken[:, 4] = False
    features = np.eye(3)[kind] + 0.2 * rng.normal(size=(ITEMS, 3))
    return csr_matrix(taken.astype(np.float32)), features, np.eye(3)[likes] + 0.2 * rng.normal(size=(USERS, 3))


def fitted(world, settings, backend=None):
    matrix, features, of_users = world
    settings = dict(settings)
    item_prior = LinearPrior(features, **settings.pop("item", {}))
    user_prior = LinearPrior(of_users, strength=1.5)
    model = WALS(12, "ials", iterations=4, item_prior=item_prior, user_prior=user_prior, **settings)
    model._backend = backend or model._backend
    return model.fit(matrix)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_fit_is_that_of_the_cpu(world, settings):
    models = [fitted(world, settings, backend) for backend in (None, emulated_backend())]
    losses = [[record.loss for record in model.history_] for model in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    if "learn" not in settings.get("item", {}):
        assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(losses[1]))
    scores = [model.user_factors @ model.item_factors.T for model in models]
    np.testing.assert_allclose(scores[1], scores[0], atol=3e-3)
    means = [model.user_factors @ model.item_prior_.mean.T for model in models]
    np.testing.assert_allclose(means[1], means[0], atol=3e-3)


def test_items_that_come_later_are_those_of_the_cpu(world):
    update = csr_matrix((np.ones(3, np.float32), ([1, 5, 7], [ITEMS, ITEMS, ITEMS + 1])), shape=(USERS, ITEMS + 2))
    found = []
    for backend in (None, emulated_backend()):
        model = fitted(world, SETTINGS["exact"], backend)
        model.add_items(np.eye(3)[:2])
        model.add_items(np.eye(3)[2:], mode="map")
        model.update_items(csr_matrix((update.data, update.indices, update.indptr), shape=(USERS, ITEMS + 3)))
        found.append(model.user_factors @ model.item_factors.T)
        ids, _ = model.recommend(np.arange(USERS), k=5)
        assert ids.shape == (USERS, 5)
    np.testing.assert_allclose(found[1], found[0], atol=3e-3)
