"""The exponent of items' popularity: what it multiplies scores by, and how it is found."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.errors import DataError
from wals_gpu.training.calibration import Calibration, choose_popularity_exponent

U, ITEMS, D = 600, 200, 8


@pytest.fixture(scope="module")
def backend():
    return make_backend("cpu", 1)


def world(gamma, seed=0):
    """Factors whose lists are best with an exponent, counts, and what is held out."""
    rng = np.random.default_rng(seed)
    users, items = rng.random((U, D)), rng.random((ITEMS, D))
    counts = np.maximum((2000 / np.arange(1, ITEMS + 1) ** 1.2).astype(np.int64), 1)
    wanted = (users @ items.T) * np.exp(rng.normal(0, 0.3, (U, ITEMS)))
    known = np.zeros((U, ITEMS), bool)
    held_out = np.zeros((U, ITEMS), bool)
    best = np.argsort(-wanted, axis=1)[:, :16]
    np.put_along_axis(held_out, best, True, axis=1)
    known[:, 0] = True
    held_out[:, 0] = False
    items /= Calibration.of(gamma, counts).multipliers()[:, None]
    return (
        users.astype(np.float32),
        items.astype(np.float32),
        counts,
        csr_matrix(known.astype(np.float32)),
        csr_matrix(held_out.astype(np.float32)),
    )


def test_multipliers_are_powers_of_the_counts():
    counts = np.array([0, 1, 4, 100])
    calibration = Calibration.of(0.5, counts)
    # The geometric mean over entries: one of an item with 1, four of one with 4, a hundred of one with 100.
    typical = np.exp((4 * np.log(4) + 100 * np.log(100)) / 105)
    np.testing.assert_allclose(calibration.multipliers(), np.sqrt([1, 1, 4, 100]) / np.sqrt(typical))
    assert counts @ np.log(calibration.multipliers()) == pytest.approx(0)


def test_an_exponent_of_0_leaves_the_array():
    items = np.ones((3, 2), np.float32)
    assert Calibration.of(0.0, np.array([1, 2, 3])).scaled(items) is items


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scaled_factors_have_their_type(dtype):
    items = np.ones((3, 2), dtype)
    calibration = Calibration.of(-0.3, np.array([1, 2, 3]))
    scaled = calibration.scaled(items)
    assert scaled.dtype == dtype
    np.testing.assert_allclose(scaled, np.tile(calibration.multipliers()[:, None], 2), rtol=1e-6)


def test_without_any_entry_all_items_are_alike():
    assert Calibration.of(0.5, np.zeros(3, np.int64)).multipliers().tolist() == [1, 1, 1]


@pytest.mark.parametrize("gamma", [-0.15, 0.1, 0.3])
def test_finds_the_exponent_that_was_put_in(gamma, backend):
    found, metrics = choose_popularity_exponent(*world(gamma), backend, k=10)
    assert found == pytest.approx(gamma, abs=0.051)
    assert metrics[found] == max(metrics.values())
    assert list(metrics) == sorted(metrics)


def test_what_was_tried_is_measured_as_a_user_would_see_it(backend):
    users, items, counts, known, held_out = world(0.2)
    _, metrics = choose_popularity_exponent(users, items, counts, known, held_out, backend, k=5, metric="precision")
    for exponent, value in metrics.items():
        scores = users @ items.T * (np.maximum(counts, 1) ** exponent)
        scores[known.toarray() > 0] = -np.inf
        lists = np.argsort(-scores, axis=1)[:, :5]
        asked = np.diff(held_out.indptr) > 0
        expected = np.take_along_axis(held_out.toarray(), lists, axis=1)[asked].mean()
        assert value == pytest.approx(expected, abs=1e-3), exponent


def test_0_where_the_gain_is_noise(backend):
    users, items, _, known, held_out = world(0.0, seed=1)
    rng = np.random.default_rng(0)
    shuffled = csr_matrix((held_out.data, rng.permutation(ITEMS)[held_out.indices], held_out.indptr), held_out.shape)
    few = shuffled[:40]
    found, metrics = choose_popularity_exponent(users[:40], items, np.ones(ITEMS, int), known[:40], few, backend)
    assert found == 0
    assert len(set(metrics.values())) == 1  # where all items are as popular nothing changes


def test_a_small_gain_of_few_users_is_noise_and_of_many_is_none(backend):
    users, items, counts, known, held_out = world(0.05, seed=3)

    def chosen(n):
        given = (users[:n], items, counts, known[:n], held_out[:n], backend)
        return choose_popularity_exponent(*given, k=5, grid=[0.05])

    for n in (1, 20):
        exponent, metrics = chosen(n)
        assert exponent == 0
        assert list(metrics) == [0, 0.05]
    assert metrics[0.05] - metrics[0] > 0.015
    exponent, metrics = chosen(len(users))
    assert exponent == 0.05
    assert metrics[0.05] - metrics[0] < 0.025


def test_users_are_drawn_where_there_are_more(backend):
    users, items, counts, known, held_out = world(0.2)
    asked = []

    class Counting:
        def topk(self, queries, *rest, **options):
            asked.append(len(queries))
            return backend.topk(queries, *rest, **options)

    found, metrics = choose_popularity_exponent(users, items, counts, known, held_out, Counting(), max_users=300)
    assert found > 0
    assert set(asked) == {300}
    assert len(asked) == len(metrics)


def test_nothing_held_out_is_an_error(backend):
    users, items, counts, known, held_out = world(0.2)
    with pytest.raises(DataError, match="held_out has no value above 0"):
        choose_popularity_exponent(users, items, counts, known, held_out * 0, backend)


@pytest.mark.parametrize("grid", [[2.0], [float("nan")]])
def test_exponents_out_of_range_are_errors(grid, backend):
    with pytest.raises(ValueError, match="each of grid must be a number from -1 to 1"):
        choose_popularity_exponent(*world(0.2), backend, grid=grid)
