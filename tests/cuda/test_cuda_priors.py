"""Linear priors on the CUDA backend (the emulator): the fit of the CPU, and items that come after it."""

import itertools

import numpy as np
import pytest
from emulated_cuda import SCHEDULES, emulated_backend, needs_kernels
from rows import problem
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.backends.cuda import CudaBackend
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


def fitted(world, settings, backend=None, iterations=4, **how):
    matrix, features, of_users = world
    settings = dict(settings)
    item_prior = LinearPrior(features, **settings.pop("item", {}))
    user_prior = LinearPrior(of_users, strength=1.5)
    model = WALS(12, "ials", iterations=iterations, item_prior=item_prior, user_prior=user_prior, **settings)
    model._backend = backend or model._backend
    return model.fit(matrix, **how)


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


# On the device


class Counting:
    """Memory that counts copies of the size of factors or features, and all bytes that are copied."""

    def __init__(self, memory, sizes):
        self.memory, self.sizes, self.large, self.bytes = memory, sizes, 0, 0

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def _count(self, size, n_bytes):
        self.large += size in self.sizes
        self.bytes += n_bytes

    def upload(self, array):
        self._count(np.size(array), getattr(array, "nbytes", 0))
        return self.memory.upload(array)

    def download(self, array):
        host = self.memory.download(array)
        self._count(host.size, host.nbytes)
        return host


def counting_backend(world, memory_limit=None):
    real = emulated_backend().device
    sizes = {array.size for array in world[1:]} | {USERS * 12, ITEMS * 12}
    return CudaBackend(real.kernels, Counting(real.memory, sizes), memory_limit)


@pytest.mark.parametrize("settings", [SETTINGS["exact"], SETTINGS["shrunk"], SETTINGS["cg"]], ids=str)
def test_factors_and_features_stay_on_the_device(world, settings):
    def copies(iterations):
        backend = counting_backend(world)
        fitted(world, settings, backend, iterations)
        return np.array([backend.device.memory.large, backend.device.memory.bytes])

    few, more = copies(3), copies(6)
    assert few[0] == more[0]
    in_one = (more - few)[1] / 3
    assert in_one < 60 * (12 * 12 * 8)  # maps, sums and Gram matrices, of some (D, D)


def test_where_features_do_not_fit_the_fit_is_the_same(world):
    """What a fit needs fits, the features beside the factors do not: these are the caller's again."""
    kept, without = (fitted(world, SETTINGS["exact"], emulated_backend()) for _ in range(2))
    np.testing.assert_array_equal(kept.item_factors, without.item_factors)
    backend = counting_backend(world)
    backend.device.available = lambda: 4 * (USERS + ITEMS) * 12 * 4 + 100
    session = backend.session(kept.user_factors.copy(), kept.item_factors.copy())
    users = session.factors("user")
    assert session.features({"item": np.zeros((ITEMS, 300), np.float32)}) is None
    assert backend.device.kept_bytes == 0
    users[:] = 3  # seen at once
    session.scale("user", 2.0)
    assert (session.factors("user") == 6).all() and (users == 6).all()


def test_a_resumed_fit_with_priors_has_the_same_bits(world, tmp_path):
    whole = fitted(world, SETTINGS["map, learned"], emulated_backend(), 5)
    fitted(world, SETTINGS["map, learned"], emulated_backend(), 2, checkpoint_dir=tmp_path / "state")
    resumed = fitted(
        world, SETTINGS["map, learned"], emulated_backend(), 5, checkpoint_dir=tmp_path / "state", resume=True
    )
    assert resumed.user_factors.tobytes() == whole.user_factors.tobytes()
    assert resumed.item_factors.tobytes() == whole.item_factors.tobytes()
    assert [r.loss for r in resumed.history_] == [r.loss for r in whole.history_]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("n", "width", "d"), [(5, 1, 1), (70, 20, 33), (600, 65, 70)])
def test_checked_sums_over_rows(n, width, d, schedule):
    """Each operation against NumPy in float64, on the checked build."""
    backend = emulated_backend(checked=True)
    rng = np.random.default_rng(n)
    lengths = rng.integers(0, 6, n)
    terms, y, _ = problem(d, lengths, "all")
    x, features = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(n, width)).astype(np.float32)
    start, weights = x.astype(np.float64), rng.normal(size=(width + 1, d))
    with_one = np.hstack([features, np.ones((n, 1))]).astype(np.float64)
    weight, stays = rng.random(n), rng.random(n) < 0.7
    backend.device.kernels.configure(**schedule)
    with backend.session(x, y.copy()) as session:
        rows = session.features({"user": features})["user"]
        rows.project(weights)
        mean = with_one @ weights
        near = {"rtol": 2e-5, "atol": 2e-5 * abs(mean).max()}
        np.testing.assert_allclose(rows.mean(), mean, **near)
        target = rows.target(weights, weight.astype(np.float32)).array
        shrunk = np.array(backend.device.memory.download(target))[: n * d].reshape(n, d)
        np.testing.assert_allclose(shrunk, weight[:, None] * mean, **near)
        for from_mean in (False, True):
            residual = start - rows.mean() * from_mean
            expected = with_one.T @ (weight.astype(np.float32)[:, None] * residual)
            found = rows.cross("weight", weight, from_mean=from_mean)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12 * n * abs(residual).max() * 5)
            loss = (weight.astype(np.float32) * (residual**2).sum(axis=1)).sum()
            assert rows.ridge_loss("weight", weight, from_mean=from_mean) == pytest.approx(loss, rel=1e-12)
        row = np.repeat(np.arange(n), lengths)
        other = y[terms.col_idx].astype(np.float64)
        score, change = ((a[row] * other).sum(axis=1) for a in (start, mean))
        gram, rhs = terms.gram_values().astype(np.float64), terms.rhs_values()
        slope, curvature = rows.line(weights, terms)
        assert slope == pytest.approx(((gram * score - rhs) * change).sum(), rel=1e-4, abs=1e-3)
        assert curvature == pytest.approx((gram * change**2).sum(), rel=1e-4, abs=1e-3)
        np.testing.assert_allclose(rows.gram(terms), y.T @ (y * terms.other_background[:, None]), rtol=1e-4, atol=1e-4)
        rows.move(weights)
        np.testing.assert_allclose(session.factors("user"), start + mean, **near)
        rows.settle(weights, stays)
        np.testing.assert_array_equal(session.factors("user")[~stays], rows.mean()[~stays])
        np.testing.assert_allclose(session.factors("user")[stays], (start + mean)[stays], **near)
        before = session.factors("user").copy()
        session.scale("user", 0.5)
        np.testing.assert_array_equal(session.factors("user"), before / 2)
    backend.device.kernels.configure()
