"""What a prior can do beside the joint objective: strength by the ridge, equal votes, a kernel, a map for cold rows."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, ModelFitError, ModelFormatError
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.priors.kernel import Kernel
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.priors.steps import regression_map
from wals_gpu.tuning.priors import tune_prior

USERS, ITEMS, DIMENSION = 60, 43, 11
COLD = [5, 40]


@pytest.fixture(scope="module")
def world():
    """Interactions that follow from the items' features; items 5 and 40 have none."""
    rng = np.random.default_rng(3)
    group, likes = rng.integers(4, size=ITEMS), rng.integers(4, size=USERS)
    taken = rng.random((USERS, ITEMS)) < np.where(likes[:, None] == group, 0.4, 0.04)
    taken[:, COLD] = False
    embeddings = np.eye(4)[group] @ rng.normal(size=(4, DIMENSION)) + 0.3 * rng.normal(size=(ITEMS, DIMENSION)) + 5
    return csr_matrix(taken.astype(np.float64)), embeddings, group, likes


def fit(world, data=None, iterations=12, objective="ials", **prior):
    settings = {"regularization": 0.02, "dtype": "float64", "iterations": iterations, "random_state": 1}
    prior = LinearPrior(world[1], **prior) if prior.pop("given", True) else None
    return WALS(8, objective, item_prior=prior, **settings).fit(world[0] if data is None else data)


def item_terms(model, world):
    return model._bound.item_terms(csr_matrix(world[0].T))


def normalized(embeddings):
    centred = embeddings - embeddings.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------- strength


def test_relative_strength_is_a_multiple_of_the_ridge(world):
    model = fit(world, relative_strength=2.5)
    terms = item_terms(model, world)
    towards_zero, strength = model.item_prior_.ridges(terms)
    np.testing.assert_allclose(strength, 2.5 * np.broadcast_to(terms.ridge, ITEMS))
    assert not towards_zero.any()
    given = fit(world, strength=2.5 * np.broadcast_to(terms.ridge, ITEMS))
    np.testing.assert_allclose(model.item_factors, given.item_factors)
    half = fit(world, relative_strength=0.5)
    towards_zero, strength = half.item_prior_.ridges(terms)
    met = np.diff(terms.row_ptr) > 0
    np.testing.assert_allclose(towards_zero + strength, np.where(met, 1, 0.5) * np.broadcast_to(terms.ridge, ITEMS))
    np.testing.assert_allclose(towards_zero[met], strength[met])
    explicit = fit(world, strength=0.5 * np.broadcast_to(terms.ridge, ITEMS), shrinkage=0.5)
    np.testing.assert_allclose(half.item_factors, explicit.item_factors)
    one = fit(world, relative_strength=1.0)
    assert np.array_equal(one.item_factors, fit(world).item_factors)  # what it is by default


def test_strength_zero_is_no_prior_for_rows_with_interactions(world):
    """The same scores as without a prior, at the minimum; and cold items have their factor from the features."""
    plain = fit(world, iterations=400, given=False)
    off = fit(world, iterations=400, relative_strength=0)
    warm = np.setdiff1d(np.arange(ITEMS), COLD)
    scores = [model.user_factors @ model.item_factors[warm].T for model in (off, plain)]
    # Without a prior, the two empty items are part of the objective; they pull all scores a little towards 0.
    assert np.abs(scores[0] - scores[1]).max() < 0.05 and np.corrcoef(*map(np.ravel, scores))[0, 1] > 0.999
    assert all(after.loss <= before.loss * (1 + 1e-12) for before, after in itertools.pairwise(off.history_))
    np.testing.assert_allclose(off.item_factors[COLD], off.item_prior_.project(world[1][COLD]))
    shown = normalized(world[1])
    a = np.column_stack([shown, np.ones(ITEMS)])[warm]
    want = np.linalg.solve(a.T @ a + np.eye(DIMENSION + 1), a.T @ off.item_factors[warm])
    np.testing.assert_allclose(off.item_prior_.weights, want, atol=1e-6)


@pytest.mark.parametrize("settings", [{"relative_strength": 0}, {"relative_strength": 2, "votes": "equal"}])
@pytest.mark.parametrize("cold", ["prior_mean", "regression"])
def test_texts_say_who_likes_a_cold_item(world, settings, cold):
    _, _, group, likes = world
    model = fit(world, cold=cold, **settings)
    scores = model.user_factors @ model.item_factors[COLD].T
    for column, item in enumerate(COLD):
        liked = likes == group[item]
        assert scores[liked, column].mean() > scores[~liked, column].mean() + 0.1


def test_absolute_and_relative_strength_exclude_each_other(world):
    with pytest.raises(ValueError, match="strength and relative_strength must not both be given"):
        LinearPrior(world[1], strength=1, relative_strength=1)
    with pytest.raises(ValueError, match="relative_strength"):
        LinearPrior(world[1], relative_strength=-1)
    with pytest.raises(ValueError, match="learn must be 'none' with relative_strength=0"):
        LinearPrior(world[1], relative_strength=0, learn="empirical_bayes")
    with pytest.raises(ValueError, match="shrinkage must be 1 with relative_strength=0"):
        LinearPrior(world[1], relative_strength=0, shrinkage=0.5)
    with pytest.raises(ValueError, match="votes must be one of strength, equal; got 'one'"):
        LinearPrior(world[1], votes="one")
    for name, wrong in {"kernel": 1.5, "kernel_width": 0, "landmarks": 0}.items():
        with pytest.raises(ValueError, match=name):
            LinearPrior(world[1], **{name: wrong})


# ---------------------------------------------------------------------------------------------------- votes


def test_equal_votes_regress_every_row_once(world):
    model = fit(world, votes="equal", relative_strength=2, ridge=0.5)
    warm = np.setdiff1d(np.arange(ITEMS), COLD)
    a = np.column_stack([normalized(world[1]), np.ones(ITEMS)])[warm]
    want = np.linalg.solve(a.T @ a + 0.5 * np.eye(DIMENSION + 1), a.T @ model.item_factors[warm])
    # The centre of the features is kept in float32.
    np.testing.assert_allclose(model.item_prior_.weights, want, atol=1e-6)
    np.testing.assert_allclose(model.item_factors[COLD], model.item_prior_.project(world[1][COLD]), rtol=1e-9)


def test_equal_votes_come_to_rest(world):
    few, many = (fit(world, iterations=n, votes="equal", relative_strength=2) for n in (3000, 3001))
    scores = [model.user_factors @ model.item_factors.T for model in (few, many)]
    np.testing.assert_allclose(*scores, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- kernel


def test_dot_products_of_kernel_features_are_the_kernel():
    rng = np.random.default_rng(0)
    points = normalized(rng.normal(size=(40, 5)))
    points[7] = points[3]  # a repeated text
    kernel = Kernel.at(points, 0.7)
    features = kernel.features(points) + kernel._of_origin
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(features @ features.T, np.exp(-0.7 * squares), atol=1e-3)
    assert not kernel.features(np.zeros((1, 5))).any()


def test_a_kernel_reads_what_no_linear_map_can():
    """Items on a ring around the origin, and a group in it: means of both groups are the same."""
    rng = np.random.default_rng(2)
    n = 240
    outside = np.arange(n) % 2 == 0
    angle = rng.uniform(0, 2 * np.pi, n)
    points = np.where(outside, 1.0, 0.2)[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    likes = np.arange(90) % 2 == 0
    taken = rng.random((90, n)) < np.where(likes[:, None] == outside, 0.4, 0.03)
    cold = np.arange(n - 60, n)
    wanted = csr_matrix(taken[:, cold].astype(float))
    taken[:, cold] = False
    found = {}
    for share in (0.0, 0.5):
        prior = LinearPrior(points, kernel=share, kernel_width=2.0, landmarks=50, normalize=False, cold="regression")
        model = WALS(4, item_prior=prior, iterations=8).fit(csr_matrix(taken.astype(np.float32)))
        order = np.argsort(-(model.user_factors @ model.item_factors[cold].T), axis=1, kind="stable")[:, :20]
        found[share] = ranking_metrics(order, wanted, 20)["ndcg@20"]
    assert found[0.5] > found[0.0] + 0.2


# ---------------------------------------------------------------------------------------------------- cold rows


def test_the_map_of_cold_items_is_ridge_regression_of_what_interactions_say(world):
    model = fit(world, relative_strength=2, cold="regression", iterations=5)
    terms = item_terms(model, world)
    warm = np.setdiff1d(np.arange(ITEMS), COLD)
    from wals_gpu import reference

    alone = np.array([np.linalg.solve(*reference.row_system(terms, row, model.user_factors)) for row in warm])
    features = normalized(world[1])
    a, y = features[warm] - features[warm].mean(axis=0), alone - alone.mean(axis=0)
    left_out = {}
    for ridge in 10.0 ** (np.arange(-4, 9) / 2):
        inverse = np.linalg.inv(a.T @ a + ridge * np.eye(DIMENSION))
        hat = a @ inverse @ a.T + 1 / len(warm)
        left_out[ridge] = np.linalg.norm((y - a @ inverse @ a.T @ y) / (1 - np.diag(hat))[:, None])
    ridge = min(left_out, key=left_out.get)
    want = np.linalg.solve(a.T @ a + ridge * np.eye(DIMENSION), a.T @ y)
    np.testing.assert_allclose(model.item_prior_.cold_weights[:-1], want, rtol=1e-5, atol=1e-8)
    given = alone.mean(axis=0) + (features[COLD] - features[warm].mean(axis=0)) @ want
    np.testing.assert_allclose(model.item_factors[COLD], given, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.project_items(world[1][COLD]), given, rtol=1e-5, atol=1e-7)
    # Rows with interactions keep to the prior means.
    assert np.abs(model.item_prior_.mean[COLD] - given).max() > 1e-3


def test_the_map_is_the_mean_where_features_say_nothing():
    rng = np.random.default_rng(1)
    features, targets = rng.normal(size=(30, 25)), rng.normal(size=(30, 4)) + 1
    f = np.column_stack([features, np.ones(30)])
    mapped = regression_map(f.T @ np.hstack([f, targets]), features, targets)
    np.testing.assert_allclose(mapped[-1], targets.mean(axis=0), atol=0.2)
    assert np.abs(mapped[:-1]).max() < 0.05


def test_added_items_get_what_cold_items_of_the_fit_get(world):
    model = fit(world, relative_strength=2, cold="regression")
    columns = model.add_items(world[1][COLD])
    np.testing.assert_allclose(model.item_factors[columns], model.item_factors[COLD], rtol=1e-9)
    means = model.add_items(world[1][COLD], mode="prior_mean")
    np.testing.assert_allclose(model.item_factors[means], model.item_prior_.project(world[1][COLD]))
    # With interactions, an item is drawn to its prior mean, which is another.
    some = csr_matrix(([1.0, 1.0], ([0, 1], [columns[0]] * 2)), shape=(USERS, ITEMS + 4))
    before = model.predict(0, columns[0])
    model.update_items(some)
    assert model.predict(0, columns[0]) > before
    with pytest.raises(ValueError, match=r"mode 'regression' needs a model that was fitted with .*cold='regression'"):
        fit(world).add_items(world[1][COLD], mode="regression")


def test_users_without_interactions_have_a_map_of_their_own(world):
    data = csr_matrix(world[0].T)  # the items are the users
    prior = LinearPrior(world[1], relative_strength=2, cold="regression")
    model = WALS(8, "ials", regularization=0.02, dtype="float64", user_prior=prior, iterations=5).fit(data)
    new = model.fold_in(csr_matrix((2, USERS)), embeddings=world[1][COLD])
    np.testing.assert_allclose(new, model.user_factors[COLD], rtol=1e-8)


# ---------------------------------------------------------------------------------------------------- tuning


def test_settings_of_a_prior_change_and_its_features_stay(world):
    ids = list(range(100, 100 + ITEMS))
    prior = LinearPrior((ids, world[1]), strength=3.0, kernel=0.5, cold="map")
    changed = prior.with_parameters(relative_strength=2.0, ridge=5.0)
    assert (changed.strength, changed.relative_strength, changed.ridge) == (None, 2.0, 5.0)
    assert (changed.kernel, changed.cold) == (0.5, "map") and prior.strength == 3.0
    assert changed.embeddings is prior.embeddings and changed._row_of_id is prior._row_of_id
    assert changed.with_parameters(cold="regression").relative_strength == 2.0
    assert changed.with_parameters(strength=1.0).relative_strength is None
    with pytest.raises(ValueError, match="ridge"):
        prior.with_parameters(ridge=-1)
    with pytest.raises(TypeError, match="riddge"):
        prior.with_parameters(riddge=1)


def test_the_choice_is_off_where_features_say_nothing_and_on_where_they_do(world):
    data, embeddings, *_ = world
    settings = {"regularization": 0.02, "iterations": 8}
    noise = np.random.default_rng(0).normal(size=embeddings.shape)
    weak = WALS(8, "ials", item_prior=LinearPrior(noise, relative_strength=300.0, ridge=0.01), **settings)
    choice = tune_prior(weak, data, (0.0,), splits=2, heldout=0.25, k=10, cold_weight=0)
    assert choice.relative_strength == 0.0
    told = WALS(8, "ials", item_prior=LinearPrior(embeddings, relative_strength=2.0), **settings)
    assert tune_prior(told, data, (0.0,), splits=2, heldout=0.25, k=10).relative_strength == 2.0
    applied = choice.applied(weak.item_prior)
    assert (applied.relative_strength, applied.cold) == (0.0, choice.cold)
    assert weak.item_factors is None and weak.item_prior.relative_strength == 300.0 and weak.compute_loss


def test_trials_are_measured_on_every_split_and_a_better_mean_is_not_enough(world, monkeypatch):
    from wals_gpu.tuning import priors as tuning

    model = WALS(8, "ials", item_prior=LinearPrior(world[1]), regularization=0.02, iterations=3)
    calls = []

    def measured(trial, factors, *rest):
        calls.append(trial.item_prior.relative_strength)
        better = {0.5: [0.5, 0.5], 4.0: [0.9, 0.49], 1.0: [0.51, 0.51]}[calls[-1]]
        return better[(len(calls) - 1) // 3 % 2]  # three measurements of a fit, then those of the other split

    monkeypatch.setattr(tuning, "_ndcg", measured)
    choice = tune_prior(model, world[0], (1.0, 4.0), splits=2)
    assert len(calls) == 18 and choice.relative_strength == 1.0
    assert choice.trials[0].relative_strength == 4.0 and choice.trials[0].warm_scores == (0.9, 0.49)


def test_ridge_and_kernel_are_tried_beside_the_best_strength(world, monkeypatch):
    from wals_gpu.tuning import priors as tuning

    fitted = []

    def measured(trial, factors, *rest):
        prior = trial.item_prior
        fitted.append((prior.relative_strength, prior.ridge, prior.kernel))
        return 0.5 + 0.1 * (prior.relative_strength == 1) + 0.1 * (prior.ridge == 3) - 0.1 * (prior.kernel == 0.5)

    monkeypatch.setattr(tuning, "_ndcg", measured)
    model = WALS(4, "ials", item_prior=LinearPrior(world[1], relative_strength=0.5), regularization=0.02, iterations=1)
    options = {"ridges": (0.3, 3.0), "kernels": (0.5,), "splits": 2}
    choice = tune_prior(model, world[0], (1.0,), **options)
    assert list(dict.fromkeys(fitted)) == [(0.5, 1, 0), (1, 1, 0), (1, 0.3, 0), (1, 3, 0), (1, 3, 0.5)]
    assert choice.settings == {"relative_strength": 1, "ridge": 3, "kernel": 0, "cold": "prior_mean"}
    assert choice.start.settings == {"relative_strength": 0.5, "ridge": 1, "kernel": 0, "cold": "prior_mean"}
    assert choice.trial.warm_scores == pytest.approx((0.7, 0.7)) and choice.applied(model.item_prior).ridge == 3
    # Without time, what the prior has is measured and stays.
    late = tune_prior(model, world[0], (1.0,), **options, deadline=0.0)
    assert late.settings == late.start.settings and len(late.trials) == 2


def test_what_cannot_be_tuned(world):
    model = WALS(8, "ials", item_prior=LinearPrior(world[1]))
    for given, message in (
        ({"relative_strengths": []}, r"relative_strengths must be a sequence of numbers >= 0, got \[\]"),
        ({"relative_strengths": [-1.0]}, "each of relative_strengths"),
        ({"splits": 0}, "splits must be an integer >= 1, got 0"),
        ({"ridges": 3.0}, "ridges must be a sequence of numbers, got 3.0"),
        ({"ridges": [0.0]}, "each of ridges"),
        ({"kernels": [1.5]}, "each of kernels"),
        ({"cold_weight": 1.5}, "cold_weight must be a number from 0 to 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_prior(model, world[0], **given)
    with pytest.raises(ModelFitError, match="needs a model with an item_prior"):
        tune_prior(WALS(4), world[0])


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "settings",
    [
        {"relative_strength": 2, "votes": "equal", "cold": "regression", "kernel": 0.5, "landmarks": 20},
        {"relative_strength": 0, "cold": "regression"},
    ],
)
def test_save_and_load(world, settings, tmp_path):
    model = fit(world, **settings)
    model.save(tmp_path)
    loaded = WALS.load(tmp_path)
    assert np.array_equal(loaded.project_items(world[1]), model.project_items(world[1]))
    for name, value in settings.items():
        assert getattr(loaded.item_prior, name) == value
    for each in (model, loaded):
        each.add_items(world[1][:3])
        each.update_items(csr_matrix(([1.0, 1.0], ([3, 4], [ITEMS, ITEMS])), shape=(USERS, ITEMS + 3)))
    assert np.array_equal(loaded.item_factors, model.item_factors)
    loaded.save(tmp_path / "again")
    assert np.array_equal(WALS.load(tmp_path / "again").item_factors, model.item_factors)


def test_damaged_maps_are_refused(world, tmp_path):
    from wals_gpu.data.files import load_folder, save_folder

    fit(world, cold="regression", kernel=0.5, landmarks=20).save(tmp_path)
    tensors, metadata = load_folder(tmp_path)
    for name, array in {
        "item_prior/cold_weights": np.zeros((4, 3)),
        "item_prior/landmarks": np.zeros((20, 3), np.float32),
        "item_prior/kernel_root": np.full((20, 20), np.nan, np.float32),
    }.items():
        save_folder(tmp_path / "bad", tensors | {name: array}, metadata)
        with pytest.raises(ModelFormatError):
            WALS.load(tmp_path / "bad")


def test_a_resumed_fit_is_one_that_was_never_interrupted(world, tmp_path):
    settings = {"relative_strength": 2, "votes": "equal", "cold": "regression", "kernel": 0.5, "landmarks": 20}
    want = fit(world, iterations=6, **settings)

    def begin():
        prior = LinearPrior(world[1], **settings)
        return WALS(8, "ials", regularization=0.02, dtype="float64", iterations=6, random_state=1, item_prior=prior)

    begin().fit(world[0], checkpoint_dir=tmp_path, callback=lambda model, record: record.iteration == 3)
    resumed = begin().fit(world[0], checkpoint_dir=tmp_path, resume=True)
    assert np.array_equal(resumed.item_factors, want.item_factors)
    assert np.array_equal(resumed.item_prior_.cold_weights, want.item_prior_.cold_weights)
