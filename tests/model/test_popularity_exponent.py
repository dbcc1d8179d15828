"""The setting popularity_exponent: scores times a power of the items' training entries, in every answer."""

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, ModelFitError, ModelFormatError
from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.data.stored import write_stored
from wals_gpu.evaluation import evaluate, random_holdout
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.retrieval import UCB, Thompson
from wals_gpu.tuning import tune_strength

USERS, ITEMS, GAMMA = 80, 40, 0.3


def make_likes(seed=0, empty=()):
    """Items of four kinds, of very different popularity."""
    rng = np.random.default_rng(seed)
    same_kind = np.arange(USERS)[:, None] % 4 == np.arange(ITEMS) % 4
    likes = rng.random((USERS, ITEMS)) < np.where(same_kind, 0.6, 0.15) * np.linspace(1.0, 0.15, ITEMS)
    likes[:, list(empty)] = False
    return csr_matrix(likes.astype(np.float32))


def make_model(exponent=GAMMA, **params):
    settings = {"factors": 8, "objective": "hu", "alpha": 10, "regularization": 1.0, "iterations": 5} | params
    return WALS(popularity_exponent=exponent, **settings)


def multipliers_of(matrix, exponent=GAMMA, of_fit=None):
    """By the definition; `of_fit` is the matrix whose typical count it is."""
    counts = np.asarray((matrix > 0).sum(axis=0)).ravel()
    of_fit = counts if of_fit is None else np.asarray((of_fit > 0).sum(axis=0)).ravel()
    typical = np.exp(sum(n * np.log(n) for n in of_fit if n) / of_fit.sum())
    return (np.maximum(counts, 1) / typical) ** exponent


@pytest.fixture(scope="module")
def likes():
    return make_likes(empty=[5])


@pytest.fixture(scope="module")
def plain(likes):
    return make_model(0.0).fit(likes)


@pytest.fixture(scope="module")
def model(likes):
    return make_model().fit(likes)


@pytest.fixture(scope="module")
def scores(likes, plain):
    """What every answer must be of: all scores, by the definition."""
    return plain.user_factors @ plain.item_factors.T * multipliers_of(likes)


def check_lists(found, scores, hidden=None):
    """Ids and scores of the best, as the definition has them."""
    scores = np.array(scores, np.float64)
    if hidden is not None:
        scores[hidden.toarray() != 0] = -np.inf
    ids, values = found
    expected = -np.sort(-scores, axis=1)[:, : ids.shape[1]]
    there = ids >= 0
    np.testing.assert_allclose(np.where(there, values, 0), np.where(there, expected, 0), rtol=1e-4, atol=1e-6)
    own = np.take_along_axis(scores, np.maximum(ids, 0), axis=1)
    np.testing.assert_allclose(np.where(there, values, 0), np.where(there, own, 0), rtol=1e-4, atol=1e-6)


def test_factors_and_what_is_similar_do_not_change(plain, model, likes):
    assert np.array_equal(model.user_factors, plain.user_factors)
    assert np.array_equal(model.item_factors, plain.item_factors)
    for method in ("similar_items", "similar_users"):
        for one, other in zip(getattr(model, method)([3, 4], 5), getattr(plain, method)([3, 4], 5), strict=True):
            assert np.array_equal(one, other)
    assert np.array_equal(model.fold_in(likes[:3]), plain.fold_in(likes[:3]))
    assert model.popularity_exponent_ == GAMMA
    assert plain.popularity_exponent_ == 0
    assert make_model().popularity_exponent_ is None


def test_it_changes_lists(plain, model):
    everybody = np.arange(USERS)
    assert not np.array_equal(model.recommend(everybody, 5)[0], plain.recommend(everybody, 5)[0])


def test_recommend(model, scores, likes):
    check_lists(model.recommend(np.arange(USERS), 10), scores, likes)
    check_lists(model.recommend(np.arange(USERS), 10, filter_seen=False), scores)
    allowed = [[1, 7, 30]] * USERS
    ids, values = model.recommend(np.arange(USERS), 3, allow=allowed, filter_seen=False)
    np.testing.assert_allclose(values, np.take_along_axis(scores, ids, axis=1), rtol=1e-4)
    for users, ids, values in model.recommend_chunks(k=4, chunk_size=30):
        check_lists((ids, values), scores[users], likes[users])


def test_recommend_for(model, plain, likes):
    new = make_likes(seed=3)[:20]
    scores = plain.fold_in(new) @ plain.item_factors.T * multipliers_of(likes)
    check_lists(model.recommend_for(new, 6), scores, new)
    check_lists(model.search(model.fold_in(new), 6), scores)


def test_indexes(model, plain, scores):
    check_lists(model.item_index().search(model.user_factors, 7), scores)
    of_cosines = (index.search(model.user_factors[:5], 7) for index in (m.item_index("cosine") for m in (model, plain)))
    (ids, values), (plain_ids, plain_values) = of_cosines
    assert np.array_equal(ids, plain_ids) and np.array_equal(values, plain_values)


@pytest.mark.parametrize("library", ["faiss", "hnswlib", "usearch"])
def test_approximate_indexes(model, scores, library):
    pytest.importorskip(library)
    from wals_gpu.ann import AnnIndex

    check_lists(AnnIndex(model.item_index(), library, ef_search=ITEMS).search(model.user_factors[:20], 5), scores[:20])


@pytest.mark.parametrize("explore", [UCB(0.0), Thompson(0.0, 0)])
def test_exploring(model, scores, likes, explore):
    check_lists(model.recommend(np.arange(USERS), 5, explore=explore), scores, likes)


def test_bounds_are_scores_and_their_deviations(model):
    ids, bounds = model.recommend(3, 5, explore="ucb")
    mean, std = model.predict(3, ids, return_std=True)
    np.testing.assert_allclose(bounds, mean + std, rtol=1e-4)


def test_single_scores_and_their_deviations(model, plain, scores, likes):
    users, items = [0, 3, 3, 9], [5, 1, 39, 0]
    np.testing.assert_allclose(model.predict(users, items), scores[users, items], rtol=1e-4, atol=1e-6)
    own, before = (m.predict(users, items, return_std=True)[1] for m in (model, plain))
    np.testing.assert_allclose(own, before * multipliers_of(likes)[items], rtol=1e-5)


def test_explanations_add_up_to_the_score_that_is_shown(likes):
    model = make_model(dtype="float64", solver="cholesky").fit(likes)
    ids, scores = model.recommend_for(likes[2:3], 3)
    why = model.explain_for(likes[2:3], ids[0, 0], k=ITEMS)
    assert why.score == pytest.approx(scores[0, 0], rel=1e-9)
    assert why.contributions.sum() == pytest.approx(scores[0, 0], rel=1e-9)
    plain = make_model(0.0, dtype="float64", solver="cholesky").fit(likes)
    known, before = (m.explain(2, ids[0, 0], k=ITEMS) for m in (model, plain))
    factor = multipliers_of(likes)[ids[0, 0]]
    np.testing.assert_allclose(known.contributions, before.contributions * factor, rtol=1e-9)


def test_explanations_with_a_prior_add_up_too(likes):
    features = np.random.default_rng(0).normal(size=(USERS, 3))
    settings = {"dtype": "float64", "solver": "cholesky", "user_prior": LinearPrior(features), "iterations": 30}
    why = make_model(**settings).fit(likes).explain(2, 3, k=ITEMS)
    assert why.from_prior != 0
    assert why.contributions.sum() + why.from_prior == pytest.approx(why.score, rel=1e-9)
    before = make_model(0.0, **settings).fit(likes).explain(2, 3)
    assert why.score == pytest.approx(before.score * multipliers_of(likes)[3], rel=1e-9)


def test_items_without_entries_count_as_those_with_one(likes):
    with_prior = {"item_prior": LinearPrior(np.random.default_rng(0).normal(size=(ITEMS, 3)))}
    one = csr_matrix(([1.0], ([0], [6])), shape=likes.shape)
    data = make_likes(empty=[5, 6]) + one.astype(np.float32)
    model = make_model(**with_prior).fit(data)
    raw = model.user_factors[:9] @ model.item_factors.T
    assert np.abs(raw[:, 5]).min() > 0
    ratio = np.array([model.predict(range(9), item) / raw[:, item] for item in (5, 6)])
    np.testing.assert_allclose(ratio, multipliers_of(data)[6], rtol=1e-4)


def test_disliked_items_are_not_popular():
    data = make_likes()
    data.data[data.indices == 7] = -1
    model = make_model(objective="implicit", alpha=1.0).fit(data)
    assert multipliers_of(data)[7] == pytest.approx(min(multipliers_of(data)))
    raw = model.user_factors @ model.item_factors.T
    np.testing.assert_allclose(model.predict(0, range(ITEMS)), raw[0] * multipliers_of(data), rtol=1e-3, atol=1e-6)


def test_users_nobody_knows_get_what_they_got_before(likes):
    data = likes.copy()
    data.data[data.indptr[4] : data.indptr[5]] = 0
    data.eliminate_zeros()
    model, plain = make_model().fit(data), make_model(0.0).fit(data)
    for one, other in zip(model.recommend(4, 5), plain.recommend(4, 5), strict=True):
        assert np.array_equal(one, other)
    mean = plain.fitted.mean_user()
    check = model.recommend(4, 5, cold_users="mean", filter_seen=False)
    check_lists([part[None] for part in check], (mean @ plain.item_factors.T * multipliers_of(data))[None])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_types_stay(dtype, likes):
    model = make_model(dtype=dtype).fit(likes)
    assert model.recommend(0, 3)[1].dtype == model.predict(0, [1]).dtype == np.dtype(dtype)


def test_the_table_is_made_once(model):
    fitted = model.fitted
    assert fitted.item_table() is fitted.item_table() is fitted.index("item").vectors
    assert not fitted.item_table().flags.writeable
    assert fitted.index("item", "cosine").vectors is not fitted.item_table()
    plain = make_model(0.0).fit(make_likes()).fitted
    assert plain.item_table() is plain.item_factors


def test_factors_that_are_assigned_are_scaled_too(likes):
    model = make_model().fit(likes)
    model.item_factors = model.item_factors * 2
    assert model.fitted.item_factors.flags.writeable
    scores = model.user_factors @ model.item_factors.T * multipliers_of(likes)
    check_lists(model.recommend(range(USERS), 5), scores, likes)
    model.item_factors[3] *= 100
    scores = model.user_factors @ model.item_factors.T * multipliers_of(likes)
    check_lists(model.recommend(range(USERS), 5), scores, likes)
    model.item_factors = model.item_factors[:-1]
    with pytest.raises(ModelFitError, match=r"item_factors .* each of the 40 items .* got shape \(39, "):
        model.item_index()


# ---------------------------------------------------------------------------------------------------- changes


def test_another_exponent_can_be_assigned(likes, plain, scores):
    changed = copy.copy(plain)
    changed.popularity_exponent_ = GAMMA
    assert changed.popularity_exponent == 0, "the setting is for the next fit"
    check_lists(changed.recommend(range(USERS), 5), scores, likes)
    changed.popularity_exponent_ = -0.1
    expected = plain.user_factors @ plain.item_factors.T * multipliers_of(likes, -0.1)
    check_lists(changed.recommend(range(USERS), 5), expected, likes)
    changed.popularity_exponent_ = 0
    for one, other in zip(changed.recommend(range(USERS), 5), plain.recommend(range(USERS), 5), strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(ValueError, match="popularity_exponent_ must be a number from -1 to 1, got 2"):
        changed.popularity_exponent_ = 2
    with pytest.raises(TypeError, match="popularity_exponent_ must be a number from -1 to 1, got 'auto'"):
        changed.popularity_exponent_ = "auto"
    with pytest.raises(ModelFitError, match="not fitted"):
        make_model().popularity_exponent_ = 0.1


def test_an_update_of_items_counts_anew_and_leaves_the_others(likes):
    model = make_model().fit(likes)
    before = model.predict(0, range(ITEMS))
    news = np.zeros(likes.shape, np.float32)
    news[:50, 5], news[3, 0] = 1, 1  # nobody had item 5; item 0 is left with one of many
    assert model.update_items(csr_matrix(news)).tolist() == [0, 5]
    now = likes.toarray()
    now[:, [0, 5]] = news[:, [0, 5]]
    scores = model.user_factors @ model.item_factors.T * multipliers_of(csr_matrix(now), of_fit=likes)
    check_lists(model.recommend(range(USERS), 6), scores, csr_matrix(now))
    np.testing.assert_array_equal(np.delete(model.predict(0, range(ITEMS)), [0, 5]), np.delete(before, [0, 5]))


def test_added_items_have_no_entries(likes):
    ids = [f"item {n:02}" for n in range(ITEMS)]
    features = np.random.default_rng(0).normal(size=(ITEMS + 1, 3))
    user, item = likes.nonzero()
    data = pd.DataFrame({"user_id": user, "item_id": np.array(ids)[item]})
    known = sorted(set(data["item_id"]))
    prior = LinearPrior(([*ids, "item 10b"], features))
    model = make_model(item_prior=prior).fit(data)
    before = model.predict(0, known)
    model.add_items(features[-1:], ["item 10b"])
    np.testing.assert_array_equal(model.predict(0, known), before)
    raw = model.user_factors[0] @ model.item_factors[model.item_ids.index_of("item 10b")]
    expected = raw * multipliers_of(likes).min() / 1.0
    counts = np.asarray((likes > 0).sum(axis=0)).ravel()
    expected *= (1 / counts[counts > 0].min()) ** GAMMA if counts.min() > 0 else 1.0
    assert model.predict(0, "item 10b") == pytest.approx(expected, rel=1e-4)


def test_removed_items_and_users_leave_the_scores_of_the_rest(likes):
    model = make_model().fit(likes)
    before = model.fitted.user_factors @ model.fitted.item_table().T
    model.remove_items([2, 7])
    np.testing.assert_array_equal(model.predict(9, range(ITEMS - 2)), np.delete(make_all(likes, 9), [2, 7]))
    model.remove_users(range(30))
    after = model.fitted.user_factors @ model.fitted.item_table().T
    np.testing.assert_allclose(after, np.delete(before[30:], [2, 7], axis=1), rtol=1e-4, atol=1e-6)


def make_all(likes, user):
    return make_model().fit(likes).predict(user, range(ITEMS))


def test_updates_of_users_leave_the_items(likes):
    model = make_model().fit(likes)
    before = model.predict(1, range(ITEMS))
    more = csr_matrix(np.vstack([np.zeros((USERS, ITEMS)), np.eye(ITEMS)[[5] * 30]]).astype(np.float32))
    model.update_users(more)
    np.testing.assert_array_equal(model.predict(1, range(ITEMS)), before)
    raw = model.user_factors[USERS] @ model.item_factors.T
    np.testing.assert_allclose(model.predict(USERS, range(ITEMS)), raw * multipliers_of(likes), rtol=1e-3, atol=1e-6)


def test_a_warm_start_takes_factors_that_are_not_scaled(model, plain, likes):
    further = [make_model().fit(likes, warm_start=start) for start in (model, plain)]
    assert np.array_equal(further[0].item_factors, further[1].item_factors)
    assert np.array_equal(further[0].predict(0, range(ITEMS)), further[1].predict(0, range(ITEMS)))


def test_the_score_of_sklearn_searches(model, plain, likes):
    test = make_likes(seed=8)
    scores = {}
    for exponent in (0.0, GAMMA):
        scores[exponent] = make_model(exponent).fit(likes).score(test, metric="ndcg@10")
    changed = copy.copy(plain)
    changed.popularity_exponent_ = GAMMA
    assert changed.score(test, metric="ndcg@10") == scores[GAMMA] != scores[0.0]


# ---------------------------------------------------------------------------------------------------- files


def answers_of(model):
    return model.recommend(range(USERS), 5)[0].tobytes(), model.predict(0, range(ITEMS)).tobytes()


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert loaded.popularity_exponent == loaded.popularity_exponent_ == GAMMA
    assert answers_of(loaded) == answers_of(model)
    assert answers_of(pickle.loads(pickle.dumps(model))) == answers_of(model)
    assert answers_of(copy.deepcopy(model)) == answers_of(model)


def test_counts_that_changed_are_saved(likes, tmp_path):
    model = make_model().fit(likes)
    model.remove_users(range(40))
    model.save(tmp_path / "model")
    assert WALS.load(tmp_path / "model").predict(0, range(ITEMS)).tobytes() == model.predict(0, range(ITEMS)).tobytes()


def test_without_an_exponent_files_are_what_they_were(plain, tmp_path):
    plain.save(tmp_path / "model")
    tensors, metadata = load_folder(tmp_path / "model")
    assert "item_counts" not in tensors
    assert not {"calibration", "popularity_exponent"} & {*metadata, *metadata["settings"]}
    loaded = WALS.load(tmp_path / "model")
    assert loaded.popularity_exponent == loaded.popularity_exponent_ == 0
    loaded.popularity_exponent_ = GAMMA
    changed = copy.copy(plain)
    changed.popularity_exponent_ = GAMMA
    assert answers_of(loaded) == answers_of(changed)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("exponent", 3.0),
        ("exponent", "auto"),
        ("exponent", None),
        ("typical", 0.0),
        ("typical", "10"),
        ("counts", np.arange(3)),
        ("counts", np.full(ITEMS, -1)),
        ("counts", np.ones(ITEMS, np.float32)),
        ("counts", None),
    ],
)
def test_damaged_files_are_refused(model, tmp_path, part, value):
    model.save(tmp_path / "model")
    tensors, metadata = load_folder(tmp_path / "model")
    if part != "counts":
        metadata["calibration"][part] = value
    elif value is None:
        del tensors["item_counts"]
    else:
        tensors["item_counts"] = value
    metadata = {key: metadata[key] for key in metadata if key not in ("format", "version", "tensors")}
    save_folder(tmp_path / "other", tensors, metadata)
    with pytest.raises(ModelFormatError):
        WALS.load(tmp_path / "other")


def test_settings_travel(tmp_path):
    sklearn = pytest.importorskip("sklearn.base")
    for exponent in (0.25, -0.1, "auto"):
        model = make_model(exponent)
        assert model.popularity_exponent == model.get_params()["popularity_exponent"] == exponent
        assert sklearn.clone(model).popularity_exponent == exponent
        (tmp_path / "config.json").write_text(json.dumps(model.to_config()))
        assert WALS.from_config(tmp_path / "config.json").popularity_exponent == exponent
    model.set_params(popularity_exponent=0.1)
    assert model.popularity_exponent == 0.1


# ---------------------------------------------------------------------------------------------------- validation


def test_the_metric_of_a_fit_is_that_of_its_lists():
    train, test = random_holdout(make_likes(seed=4), 0.25, 0)
    model = make_model(iterations=6).fit(train, validation=test, metric="ndcg@5")
    best = model.history_[model.best_iteration_ - 1].validation
    report = evaluate(model, train, test, 5, baseline=False, n_resamples=0)
    assert best == pytest.approx(report.results["wals"]["ndcg@5"].value, abs=1e-12)
    other = make_model(0.0, iterations=6).fit(train, validation=test, metric="ndcg@5")
    assert [record.validation for record in other.history_] != [record.validation for record in model.history_]


def popular_taste(seed=0, n=300):
    """What is held out are popular items much more than what is known: an exponent above 0 finds more."""
    rng = np.random.default_rng(seed)
    same_kind = np.arange(n)[:, None] % 4 == np.arange(ITEMS) % 4
    taken = rng.random((n, ITEMS)) < np.where(same_kind, 0.9, 0.3) * 0.93 ** np.arange(ITEMS)
    held = taken & (rng.random((n, ITEMS)) < np.where(np.arange(ITEMS) < 10, 0.3, 0.02))
    return csr_matrix((taken & ~held).astype(np.float32)), csr_matrix(held.astype(np.float32))


def test_auto_takes_what_the_held_out_entries_say():
    train, test = popular_taste()
    model = make_model("auto", iterations=6).fit(train, validation=test, metric="recall@5")
    plain = make_model(0.0, iterations=6).fit(train, validation=test, metric="recall@5")
    # The metric of iterations is that of the factors alone; the exponent is chosen once the best are known.
    assert [record.validation for record in model.history_] == [record.validation for record in plain.history_]
    assert np.array_equal(model.item_factors, plain.item_factors)
    assert model.popularity_exponent == "auto"
    assert model.popularity_exponent_ > 0

    def measured(exponent):
        plain.popularity_exponent_ = exponent
        report = evaluate(plain, train, test, 5, baseline=False, n_resamples=0)
        return report.results["wals"]["recall@5"].value

    grid = [round(0.05 * n, 2) for n in range(-4, 9)]
    best = max(measured(exponent) for exponent in grid)
    assert measured(model.popularity_exponent_) >= best - 0.01
    assert best > measured(0.0) + 0.05


def test_auto_is_saved_with_the_exponent_that_it_chose(tmp_path):
    train, test = popular_taste()
    model = make_model("auto").fit(train, validation=test)
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert loaded.popularity_exponent == "auto"
    assert loaded.popularity_exponent_ == model.popularity_exponent_ > 0
    assert answers_of(loaded) == answers_of(model)


def test_auto_without_validation_is_refused_and_an_earlier_fit_stays(likes):
    model = make_model().fit(likes)
    before = answers_of(model)
    model.popularity_exponent = "auto"
    with pytest.raises(ValueError, match='popularity_exponent="auto" needs validation'):
        model.fit(likes)
    assert answers_of(model) == before


def test_auto_where_all_who_are_asked_are_new():
    data = make_likes()
    train, test = data.copy(), data.copy()
    first = data.indptr[5]
    train.data[:first], test.data[first:] = 0, 0
    train.eliminate_zeros()
    assert make_model("auto").fit(train, validation=test).popularity_exponent_ == 0


def test_an_interrupted_fit_chooses_too():
    train, test = popular_taste()

    def stop(model, record):
        assert model.popularity_exponent_ == 0
        if record.iteration == 3:
            raise KeyboardInterrupt

    model = make_model("auto", iterations=6)
    with pytest.raises(KeyboardInterrupt):
        model.fit(train, validation=test, callback=stop)
    assert model.popularity_exponent_ > 0


def test_a_resumed_fit_chooses_the_same(tmp_path):
    train, test = popular_taste()
    whole = make_model("auto", iterations=6).fit(train, validation=test)
    make_model("auto", iterations=3).fit(train, validation=test, checkpoint_dir=tmp_path / "c")
    resumed = make_model("auto", iterations=6).fit(train, validation=test, checkpoint_dir=tmp_path / "c", resume=True)
    assert resumed.popularity_exponent_ == whole.popularity_exponent_
    assert answers_of(resumed) == answers_of(whole)


def test_a_fit_is_not_resumed_with_another_exponent(tmp_path):
    train, test = popular_taste()
    make_model(0.1).fit(train, validation=test, checkpoint_dir=tmp_path / "c")
    with pytest.raises(ValueError, match=r"popularity_exponent = 0.1 there, None here"):
        make_model(0.0).fit(train, validation=test, checkpoint_dir=tmp_path / "c", resume=True)


def test_interactions_on_disk(likes, tmp_path):
    model = make_model().fit(write_stored(tmp_path / "stored", likes))
    scores = model.user_factors @ model.item_factors.T * multipliers_of(likes)
    check_lists(model.recommend(range(USERS), 5), scores, likes)


def test_the_estimate_has_what_validation_searches():
    sizes = (1000, 500, 10_000)
    plain, scaled = (make_model(exponent).estimate_memory(*sizes, validation=True) for exponent in (0.0, "auto"))
    assert scaled.factors == plain.factors + 500 * 8 * 4
    without = [make_model(exponent).estimate_memory(*sizes).total for exponent in (0.0, "auto")]
    assert without[0] == without[1]


def test_the_strength_of_a_prior_is_tuned_before_the_exponent(likes):
    prior = LinearPrior(np.random.default_rng(0).normal(size=(ITEMS, 3)))
    trials = [tune_strength(make_model(e, item_prior=prior), likes, [0.1, 1.0]) for e in ("auto", 0.0)]
    assert trials[0] == trials[1]
    model = make_model(item_prior=prior)
    assert [trial.warm for trial in tune_strength(model, likes, [0.1])] != [trials[1][0].warm]
    assert model.popularity_exponent == GAMMA


def test_validation_on_a_device_sees_the_same(monkeypatch):
    """What the backend is handed is the scaled table: no backend has to know of it."""
    train, test = popular_taste()
    model = make_model(iterations=2)
    tables = []
    real = model._backend.topk

    def topk(queries, items, *rest, **options):
        tables.append(np.array(items))
        return real(queries, items, *rest, **options)

    monkeypatch.setattr(model._backend, "topk", topk)
    model.fit(train, validation=test)
    model.recommend(0, 3)
    np.testing.assert_array_equal(tables[-1], model.fitted.item_table())
    lengths = [np.linalg.norm(table, axis=1) / np.linalg.norm(model.item_factors, axis=1) for table in tables[-1:]]
    np.testing.assert_allclose(lengths[0], multipliers_of(train), rtol=1e-5)
    assert len(tables) == 3
