"""Linear priors in a fit: the mathematics against dense float64, bad input, files."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ModelFitError, ModelFormatError, reference
from wals_gpu.data.ids import Ids
from wals_gpu.evaluation.metrics import ranking_metrics
from wals_gpu.evaluation.splits import cold_items_split, random_holdout
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.tuning.priors import tune_strength

USERS, ITEMS, DIMENSION = 60, 43, 11


@pytest.fixture(scope="module")
def world():
    """Interactions that follow from features, of users and items in four groups; items 5 and 40, user 7 have none."""
    rng = np.random.default_rng(3)
    group = rng.integers(4, size=ITEMS)
    likes = rng.integers(4, size=USERS)
    taken = rng.random((USERS, ITEMS)) < np.where(likes[:, None] == group, 0.4, 0.04)
    taken[:, [5, 40]] = False
    taken[7] = False
    embeddings = np.eye(4)[group] @ rng.normal(size=(4, DIMENSION)) + 0.3 * rng.normal(size=(ITEMS, DIMENSION)) + 5
    user_embeddings = np.eye(4)[likes] @ rng.normal(size=(4, 3)) + 0.3 * rng.normal(size=(USERS, 3))
    return csr_matrix(taken.astype(np.float64)), embeddings, user_embeddings, group, likes


SETTINGS = {
    "default": {},
    "strong": {"strength": 30.0},
    "per row": {"strength": np.linspace(0.2, 4, ITEMS)},
    "shrunk": {"strength": 2.0, "shrinkage": 0.5},
    "map": {"cold": "map", "strength": 2.0},
    "bare": {"intercept": False, "normalize": False, "ridge": 30.0},
}


def make(world, settings, *, users=False, **model):
    _, embeddings, user_embeddings, *_ = world
    model = {"objective": "ials", "regularization": 0.02, "dtype": "float64", "iterations": 12, **model}
    return WALS(
        8,
        item_prior=LinearPrior(embeddings, **settings),
        user_prior=LinearPrior(user_embeddings, strength=1.5) if users else None,
        **model,
    )


def parts(model, world):
    """Terms of both sides, and of the items' prior: features, W, b, strength, remaining ridge."""
    matrix = world[0]
    bound = model._bound
    users, items = bound.user_terms(matrix), bound.item_terms(csr_matrix(matrix.T))
    fitted = model.item_prior_
    features = fitted.features(world[1], np.float64)
    towards_zero, strength = fitted.ridges(items)
    return users, items, features, fitted.weights[:-1].T, fitted.weights[-1], strength, towards_zero


def dense_loss(model, world):
    """The whole objective, over all pairs, without any of the code under test."""
    users, _, features, weights, b, strength, towards_zero = parts(model, world)
    x, y, prior = model.user_factors, model.item_factors, model.item_prior
    pairs = reference.loss(users, x, y, np.zeros(ITEMS))
    total = pairs + reference.prior_loss(features, y, weights, b, strength, prior.ridge, towards_zero=towards_zero)
    if model.user_prior is None:
        return total
    fitted = model.user_prior_
    ridge_part = float(np.sum(np.broadcast_to(users.ridge, USERS)[:, None] * x**2))
    features, w = fitted.features(world[2], np.float64), fitted.weights
    strength = fitted.ridges(users)[1]
    return total - ridge_part + reference.prior_loss(features, x, w[:-1].T, w[-1], strength, fitted.prior.ridge)


def gradients(model, world):
    """Largest entries of the gradients over X, Y, W and b, each relative to the part that it balances."""
    users, _items, features, weights, b, strength, towards_zero = parts(model, world)
    x, y, prior = model.user_factors, model.item_factors, model.item_prior
    mean = features @ weights.T + b
    total = towards_zero + strength
    target = mean * (strength / total)[:, None]
    over_x, over_y = reference.gradient(users, x, y, total, item_prior=target)
    residual = strength[:, None] * (y - mean)
    over_w = -2 * residual.T @ features + 2 * prior.ridge * weights
    over_b = -2 * residual.sum(axis=0) + 2 * prior.ridge * b if prior.intercept else np.zeros(1)
    return [np.abs(g).max() for g in (over_x, over_y, over_w, over_b)]


# ---------------------------------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_loss_never_rises_and_is_the_dense_one(world, settings, solver):
    model = make(world, settings, users=True, solver=solver).fit(world[0])
    losses = [record.loss for record in model.history_]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] == pytest.approx(dense_loss(model, world), rel=1e-10)


@pytest.mark.parametrize(
    ("settings", "solver"), [(s, "cholesky") for s in SETTINGS.values()] + [({}, "cg"), ({}, "subspace")]
)
def test_gradient_is_zero_at_convergence(world, settings, solver):
    start = gradients(make(world, settings, solver=solver, iterations=3).fit(world[0]), world)
    model = make(world, settings, solver=solver, iterations=400).fit(world[0])
    assert max(gradients(model, world)) < 1e-6 * max(start)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_weights_are_the_regression_of_the_factors(world, settings):
    model = make(world, settings).fit(world[0])
    _, _, features, weights, b, strength, _ = parts(model, world)
    known = np.isin(np.arange(ITEMS), [5, 40], invert=model.item_prior.cold == "prior_mean") | (
        model.item_prior.cold == "map"
    )
    prior = model.item_prior
    want = reference.regress_prior(
        features[known], model.item_factors[known], strength[known], prior.ridge, intercept=prior.intercept
    )
    np.testing.assert_allclose(weights, want[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(b, want[1], rtol=1e-8, atol=1e-10)


def test_moving_along_never_raises_the_loss_and_saves_iterations(world, monkeypatch):
    """The same objective with the step left out: it takes half as many iterations more to the same loss."""
    from wals_gpu.priors.steps import PriorSteps

    quick = [r.loss for r in make(world, SETTINGS["strong"], iterations=8).fit(world[0]).history_]
    monkeypatch.setattr(PriorSteps, "_along", lambda self, step, factors, other: (0.0, np.zeros_like(step)))
    slow = [r.loss for r in make(world, SETTINGS["strong"], iterations=40).fit(world[0]).history_]
    assert slow[11] > quick[7] > 0.99 * slow[-1]


def test_rows_nobody_has_are_their_prior_mean(world):
    model = make(world, {"strength": 2.0}, users=True).fit(world[0])
    want = model.item_prior_.project(world[1][[5, 40]])
    np.testing.assert_allclose(model.item_factors[[5, 40]], want, rtol=1e-12)
    np.testing.assert_allclose(model.user_factors[7], model.user_prior_.project(world[2][[7]])[0], rtol=1e-12)
    # They are no part of the objective: without them, the fit is the same.
    kept = np.setdiff1d(np.arange(ITEMS), [5, 40])
    fitted = model.item_prior_
    features = fitted.features(world[1], np.float64)
    smaller = WALS(
        8,
        "hu",
        dtype="float64",
        iterations=300,
        item_prior=LinearPrior(features[kept], strength=2.0, normalize=False),
    ).fit(world[0][:, kept])
    larger = WALS(
        8, "hu", dtype="float64", iterations=300, item_prior=LinearPrior(features, strength=2.0, normalize=False)
    ).fit(world[0])
    assert larger.history_[-1].loss == pytest.approx(smaller.history_[-1].loss, rel=1e-4)


def test_map_solves_empty_rows_like_all_others(world):
    model = make(world, SETTINGS["map"], iterations=500).fit(world[0])
    _, items, features, weights, b, strength, _ = parts(model, world)
    mean = features @ weights.T + b
    for row in (5, 40):
        a, rhs = reference.row_system(items, row, model.user_factors)
        a += (strength[row] - items.ridge[row]) * np.eye(8)
        np.testing.assert_allclose(
            model.item_factors[row], np.linalg.solve(a, rhs + strength[row] * mean[row]), atol=1e-6
        )
        assert np.linalg.norm(model.item_factors[row]) < np.linalg.norm(mean[row])


def test_a_strong_prior_gives_the_prior_means_and_a_weak_one_the_plain_fit(world):
    strong = make(world, {"strength": 1e7, "ridge": 1e-3}, iterations=200).fit(world[0])
    np.testing.assert_allclose(strong.item_factors, strong.item_prior_.mean, atol=1e-4)
    weak = make(world, {"strength": 1e-9, "shrinkage": 1.0, "cold": "map"}, iterations=200).fit(world[0])
    plain = make(world, {}, iterations=200)
    plain.item_prior = None
    assert weak.history_[-1].loss == pytest.approx(plain.fit(world[0]).history_[-1].loss, rel=1e-5)


def test_text_says_who_likes_a_cold_item(world):
    model = make(world, {}, iterations=30).fit(world[0])
    scores = model.user_factors @ model.item_factors[[5, 40]].T
    for item, of_item in zip((5, 40), scores.T, strict=True):
        liking = world[4] == world[3][item]
        assert of_item[liking].mean() > 2 * np.abs(of_item[~liking]).mean()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_number_of_threads(world, dtype):
    models = [
        make(world, {"learn": "empirical_bayes"}, users=True, dtype=dtype, num_threads=n).fit(world[0]) for n in (1, 3)
    ]
    assert np.array_equal(models[0].item_factors, models[1].item_factors)
    assert np.array_equal(models[0].item_prior_.weights, models[1].item_prior_.weights)
    assert [r.loss for r in models[0].history_] == [r.loss for r in models[1].history_]


def test_many_chunks_of_rows_are_one(world, monkeypatch):
    want = make(world, SETTINGS["shrunk"], users=True).fit(world[0])
    monkeypatch.setattr("wals_gpu.priors.rows.chunk_rows", lambda: 5)
    monkeypatch.setattr("wals_gpu.priors.linear._ROWS", 4)
    got = make(world, SETTINGS["shrunk"], users=True).fit(world[0])
    np.testing.assert_allclose(got.item_factors, want.item_factors, rtol=1e-6, atol=1e-9)


def test_the_loss_of_float32_is_that_of_its_factors(world):
    model = make(world, {"strength": 3.0}, users=True, dtype="float32").fit(world[0])
    assert model.item_factors.dtype == np.float32
    assert model.history_[-1].loss == pytest.approx(dense_loss(model, world), rel=1e-5)


def test_without_a_ridge_on_b_the_loss_has_no_minimum(world):
    """From a fit with one factor to spare: b longer and longer, the users' part along it shorter and shorter."""
    model = make(world, {"strength": 2.0}, iterations=300, solver="cholesky").fit(world[0])
    users, items, features, weights, b, strength, _ = parts(model, world)
    active = np.diff(items.row_ptr) > 0
    # Half the downhill direction of a constant that a user's scores of all items have in common.
    x, y = np.c_[model.user_factors, np.zeros(USERS)], np.c_[model.item_factors, active]
    taste = -0.5 * reference.gradient(users, x, y, np.zeros(ITEMS))[0][:, -1]

    def loss(length, ridge_of_b):
        """With b of that length along the spare factor, where the users have 0.02 taste / length."""
        x = np.c_[model.user_factors, 0.02 * taste / length]
        y = np.c_[model.item_factors, length * active]
        w, long_b = np.r_[weights, np.zeros((1, DIMENSION))], np.r_[b, length]
        y[~active] = features[~active] @ w.T + long_b
        of_pairs = reference.loss(users, x, y, np.zeros(ITEMS))
        of_ridges = model.item_prior.ridge * np.sum(w**2) + ridge_of_b * float(long_b @ long_b)
        return of_pairs + reference.prior_loss(features, y, w, long_b, strength, 0.0) + of_ridges

    lengths = 10.0 ** np.arange(0, 4)
    free = [loss(length, 0.0) for length in lengths]
    assert all(after < before for before, after in itertools.pairwise(free))
    assert free[-1] < model.history_[-1].loss - model.item_prior.ridge * float(b @ b)
    # With its ridge, the same path leads up again.
    assert loss(lengths[-1], 1.0) > 1e3 * loss(lengths[0], 1.0)


def test_the_ridge_of_b_hardly_moves_it(world):
    """b is the mean of y - W e, short by ridge / (sum of strengths + ridge)."""
    model = make(world, {"strength": 2.0}, iterations=20).fit(world[0])
    _, _, features, weights, b, strength, _ = parts(model, world)
    known = np.isin(np.arange(ITEMS), [5, 40], invert=True)
    rest = (model.item_factors - features @ weights.T)[known].mean(axis=0)
    total = strength[known].sum()
    np.testing.assert_allclose(b, rest * total / (total + model.item_prior.ridge), rtol=1e-8)


# ---------------------------------------------------------------------------------------------------- strength


def test_empirical_bayes_is_the_m_step_with_exact_traces(world, monkeypatch):
    """One update from known factors, with every trace computed by inversion."""
    monkeypatch.setattr("wals_gpu.priors.steps._STRENGTH_STEP", 0.0)
    model = make(world, {"strength": 2.0, "learn": "empirical_bayes"}, iterations=1, solver="cholesky").fit(world[0])
    _, items, features, weights, b, _strength, _ = parts(model, world)
    mean = features @ weights.T + b
    rows = np.setdiff1d(np.arange(ITEMS), [5, 40])
    spread = []
    for row in rows:
        a = reference.row_system(items, row, model.user_factors)[0] + (2.0 - items.ridge[row]) * np.eye(8)
        spread.append(np.sum((model.item_factors[row] - mean[row]) ** 2) + np.trace(np.linalg.inv(a)))
    want = 8 / np.mean(spread)
    two = make(world, {"strength": 2.0, "learn": "empirical_bayes"}, iterations=2, solver="cholesky").fit(world[0])
    # Traces are estimated, by probes from a seed: 1.2 % off, the same to 5 digits with every instruction set and BLAS.
    assert [r.item_strength for r in two.history_] == pytest.approx([2.0, want], rel=0.03)


def test_learned_strength_comes_to_rest_and_then_the_loss_falls(world):
    model = make(world, {"learn": "empirical_bayes"}, iterations=400).fit(world[0])
    history = model.history_
    assert history[0].item_strength != history[-1].item_strength == history[-30].item_strength
    for before, after in itertools.pairwise(history):
        if before.item_strength == after.item_strength:
            assert after.loss <= before.loss * (1 + 1e-12)
    assert all(record.user_strength is None for record in history)


def test_tuning_finds_the_strength_that_the_features_deserve(world):
    matrix, embeddings, *_ = world
    told = tune_strength(make(world, {}, iterations=8), matrix, (0.01, 1.0, 10.0), heldout=0.25, k=10)
    assert sorted(trial.strength for trial in told) == [0.01, 1.0, 10.0]
    scores = [(trial.warm * trial.cold) ** 0.5 for trial in told]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    # Features that tell nothing: less of them is better for items that have interactions.
    noise = np.random.default_rng(0).normal(size=embeddings.shape)
    model = WALS(8, "ials", regularization=0.02, iterations=8, item_prior=LinearPrior(noise, ridge=0.01))
    trials = tune_strength(model, matrix, (0.1, 100.0), cold_weight=0.0, heldout=0.25, k=10)
    assert trials[0].strength == 0.1 and trials[0].warm > trials[1].warm
    assert model.item_factors is None and model.item_prior.strength is None and model.compute_loss


def test_tuning_measures_what_a_fit_on_its_split_gives(world):
    """One trial done by hand."""
    matrix = world[0]
    (trial,) = tune_strength(make(world, {}, iterations=5), matrix, [2.0], heldout=0.2, k=5, random_state=3)
    rest, cold_test, cold = cold_items_split(matrix, 0.2, 3)
    train, warm_test = random_holdout(rest, 0.2, 3)
    model = make(world, {"strength": 2.0}, iterations=5).fit(train)
    scores = model.user_factors @ model.item_factors.T
    warm = np.flatnonzero(train.getnnz(axis=0))
    scores_of_warm = np.where(train.toarray() > 0, -np.inf, scores)[:, warm]
    for got, of_items, test in (
        (trial.warm, scores_of_warm, warm_test[:, warm]),
        (trial.cold, scores[:, cold], cold_test[:, cold]),
    ):
        ids = np.argsort(-of_items, axis=1, kind="stable")[:, :5]
        assert got == pytest.approx(ranking_metrics(ids, test, 5)["ndcg@5"])


def test_what_cannot_be_tuned(world):
    model = make(world, {})
    for given, message in (
        ({"strengths": []}, "strengths must be a sequence of numbers > 0, got \\[\\]"),
        ({"strengths": [1.0, 0.0]}, "each of strengths must be a finite number > 0, got 0.0"),
        ({"cold_weight": 1.5}, "cold_weight must be a number from 0 to 1, got 1.5"),
        ({"heldout": 0.0}, r"heldout must lie in \(0, 1\), got 0.0"),
        ({"k": 0}, "k must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_strength(model, world[0], **given)
    with pytest.raises(ModelFitError, match="needs a model with an item_prior"):
        tune_strength(WALS(4), world[0])


# ---------------------------------------------------------------------------------------------------- rows by id


def test_embeddings_by_id_in_any_order(world):
    matrix, embeddings, *_ = world
    coo = matrix.tocoo()
    ids = np.array([f"item {n:02}" for n in range(ITEMS)])
    table = {"user_id": coo.row, "item_id": ids[coo.col]}
    import pyarrow as pa

    data = pa.table(table)
    known = np.setdiff1d(np.arange(ITEMS), [5, 40])
    order = np.random.default_rng(0).permutation(ITEMS)
    want = WALS(4, item_prior=LinearPrior(embeddings[known]), dtype="float64").fit(
        matrix[np.diff(matrix.indptr) > 0][:, known]
    )
    pair = WALS(4, item_prior=LinearPrior((ids[order], embeddings[order])), dtype="float64").fit(data)
    mapping = WALS(4, item_prior=LinearPrior(dict(zip(ids, embeddings, strict=True))), dtype="float64").fit(data)
    np.testing.assert_allclose(pair.item_factors, want.item_factors, rtol=1e-9)
    assert np.array_equal(pair.item_factors, mapping.item_factors)
    with pytest.raises(DataError, match="2 are missing, such as 'item 00', 'item 01'"):
        WALS(4, item_prior=LinearPrior((ids[2:], embeddings[2:]))).fit(data)
    with pytest.raises(DataError, match="has integer ids, the interactions have strings"):
        WALS(4, item_prior=LinearPrior((np.arange(ITEMS), embeddings))).fit(data)
    with pytest.raises(DataError, match="matrix, without any"):
        WALS(4, item_prior=LinearPrior((ids, embeddings))).fit(matrix)


def test_ids_of_embeddings_are_texts_in_whatever_form():
    """Texts of pandas 3 are large strings to Arrow, and were refused as none."""
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    import pyarrow as pa

    names, vectors = ["b", "a", "c"], np.eye(3)
    series, known = pd.Series(names), Ids(pa.array(["a", "c"]), "item")
    forms = [names, series, pd.Index(names), series.astype(object), pd.Categorical(names), pl.Series(names)]
    forms += [pa.array(names, pa.large_string()), pa.chunked_array([names]), np.array(names), dict.fromkeys(names)]
    for ids in forms:
        assert LinearPrior((ids, vectors)).rows_for("item", known, 2).tolist() == vectors[1:].tolist()
    for wrong, error in ((set(names), TypeError), (["\ud800", "a", "b"], DataError), ([0.5, 1, 2], DataError)):
        with pytest.raises(error, match="ids of embeddings must"):
            LinearPrior((wrong, vectors))


def test_frames_and_series_are_found_by_their_index():
    """Their rows were taken to be in the order of the items, whatever the index said."""
    pd = pytest.importorskip("pandas")
    import pyarrow as pa

    known = Ids(pa.array(["a", "b", "c"]), "item")
    frame = pd.DataFrame(np.eye(3), index=["a", "b", "c"])
    texts = pd.Series(["x", "xx", "xxx"], index=["a", "b", "c"])
    for order in (["a", "b", "c"], ["c", "a", "b"]):
        assert LinearPrior(frame.loc[order]).rows_for("item", known, 3).tolist() == np.eye(3).tolist()
        by_text = LinearPrior.from_texts(texts[order], lambda batch: [[len(text)] for text in batch])
        assert by_text.rows_for("item", known, 3).tolist() == [[1], [2], [3]]
        vectors = pd.Series(frame.to_numpy().tolist(), index=frame.index)[order]  # a column of lists, as in Parquet
        assert LinearPrior(vectors).rows_for("item", known, 3).tolist() == np.eye(3).tolist()
        assert LinearPrior((order, pa.array(vectors))).rows_for("item", known, 3).tolist() == np.eye(3).tolist()
    with pytest.raises(DataError, match=r"embeddings must be an array \(n, E\)"):
        LinearPrior(pd.Series([[1.0, 2.0], None], index=["a", "b"]))
    with pytest.raises(ValueError, match=r"strength must be in the order of .*whatever the index of a Series says"):
        LinearPrior(frame, strength=pd.Series([1.0, 2.0, 3.0], index=frame.index))
    assert LinearPrior(frame, strength=pd.Series([1.0, 2.0, 3.0])).strength.tolist() == [1, 2, 3]
    counted = LinearPrior(frame.reset_index(drop=True))  # this index says nothing
    assert not counted.has_ids and counted.rows_for("item", None, 3).tolist() == np.eye(3).tolist()


def _tables(ids, vectors, name="item_id"):
    """The same features as tables of every kind, with the ids in a column."""
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    columns = {"f": vectors[:, 0], name: ids, "g": vectors[:, 1]}
    lists = {name: ids, "vector": vectors.tolist()}
    frame = pd.DataFrame(columns)
    arrow = pa.table(lists)
    fixed = arrow.set_column(1, "vector", arrow["vector"].cast(pa.list_(pa.float64(), vectors.shape[1])))
    yield from (frame, frame[frame["f"] < 1e9].set_axis(np.arange(len(ids)) + 3), pd.DataFrame(lists))
    yield from (pl.DataFrame(columns), pl.DataFrame(columns).lazy(), pl.DataFrame(lists))
    yield from (pa.table(columns), pa.table(columns).to_batches()[0], arrow, fixed)


@pytest.mark.parametrize("name", ["item_id", "movieId", "id", "user", "sku"])
def test_a_column_of_ids_is_no_feature(name):
    """It was one, and the rows were taken in their order."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("polars")
    for ids in (np.array([30, 10, 20]), np.array(["c", "a", "b"], object)):
        vectors = np.arange(6.0).reshape(3, 2) ** 2
        known = Ids.encode(pa.array(ids), "item")[0]
        want = vectors[np.argsort(ids)].tolist()
        for source in _tables(ids, vectors, name):
            assert LinearPrior(source).rows_for("item", known, 3).tolist() == want
            assert LinearPrior((ids, source)).rows_for("item", known, 3).tolist() == want
            with pytest.raises(ValueError, match=f"ids of embeddings must be what its column '{name}' has"):
                LinearPrior((ids[::-1], source))


def test_columns_that_are_features_stay_so():
    pd = pytest.importorskip("pandas")
    flags = pd.DataFrame({"film": [1, 0, 0], "book": [0, 1, 1], "category_id": [7, 7, 9]})  # kinds of things
    assert LinearPrior(flags).rows_for("item", None, 3).tolist() == flags.to_numpy().tolist()
    with pytest.raises(DataError, match="embeddings must have one column of ids, got 'item_id', 'user_id'"):
        LinearPrior(pd.DataFrame({"item_id": [1, 2], "user_id": [1, 2], "f": [0.5, 1]}))
    with pytest.raises(DataError, match=r"must have numbers in every column but that of ids, got .*string in 'name'"):
        LinearPrior(pd.DataFrame({"item_id": [1, 2], "name": ["a", "b"]}))
    with pytest.raises(DataError, match="must have columns of numbers beside that of ids"):
        LinearPrior(pd.DataFrame({"item_id": [1, 2]}))
    with pytest.raises(DataError, match="a vector of one length in each row of column 'v'"):
        LinearPrior(pd.DataFrame({"item_id": [1, 2], "v": [[1.0], [1.0, 2.0]]}))
    with pytest.raises(ValueError, match="index of embeddings must be what its column 'item_id' has"):
        LinearPrior(pd.DataFrame({"item_id": [1, 2], "f": [0.5, 1]}, index=["a", "b"]))


def test_given_ids_and_an_index_in_another_order():
    """The ids counted, and the index was passed over: one of the two orders is wrong."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.eye(3), index=["a", "b", "c"])
    series = pd.Series(["x", "xx", "xxx"], index=["a", "b", "c"])
    encoder = lambda batch: [[len(text)] for text in batch]  # noqa: E731
    for call in (
        lambda ids: LinearPrior((ids, frame)),
        lambda ids: LinearPrior.from_texts(series, encoder, ids=ids),
        lambda ids: WALS.hybrid(series, encoder, ids=ids).item_prior,
    ):
        assert call(["a", "b", "c"]).ids.tolist() == ["a", "b", "c"]
        assert call(["f", "e", "d"]).ids.tolist() == ["d", "e", "f"]
        with pytest.raises(ValueError, match="whose index has the same ids in another order"):
            call(["c", "a", "b"])
    left = frame.set_axis([4, 7, 9])  # the numbers of the rows that were chosen say nothing
    assert LinearPrior((["c", "a", "b"], left)).ids.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["user_id", "user"])
def test_new_users_have_the_embeddings_of_their_ids(name):
    """`fold_in` took them in their order, whatever their ids."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("polars")
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user_id": rng.integers(0, 9, 60), "item_id": rng.integers(0, 7, 60)}).drop_duplicates()
    prior = LinearPrior((np.arange(9), rng.normal(size=(9, 2))))
    model = WALS(3, iterations=2, random_state=0, user_prior=prior).fit(rows)
    news = pd.DataFrame({"user_id": [22, 22, 11, 33], "item_id": [0, 1, 2, 3]})
    vectors = rng.normal(size=(3, 2))
    want = model.fold_in(news, embeddings=vectors)  # of 22, 11, 33
    ids, order = np.array([33, 22, 11]), [2, 0, 1]
    frame = pd.DataFrame(vectors[order], index=ids)
    by_id = dict(zip(ids, vectors[order], strict=True))
    for embeddings in (frame, by_id, (ids, vectors[order]), *_tables(ids, vectors[order], name)):
        assert np.array_equal(model.fold_in(news, embeddings=embeddings), want)
    with pytest.raises(DataError, match=r"must have embeddings of every user .* 1 are missing, such as 22"):
        model.fold_in(news, embeddings=frame.drop(22))
    with pytest.raises(DataError, match="has ids, but the interactions are a matrix"):
        model.fold_in(np.eye(7)[:3], embeddings=frame)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": 0}, "strength must be a finite number > 0"),
        ({"strength": -1.0}, "strength must be a finite number > 0"),
        ({"strength": np.nan}, "strength must be a finite number > 0"),
        ({"strength": [1.0, 0.0]}, "strength must be a finite number > 0"),
        ({"strength": [[1.0]]}, "strength must be a finite number > 0"),
        ({"strength": "strong"}, "strength must be a finite number > 0"),
        ({"strength": True}, "strength must be a finite number > 0"),
        ({"ridge": 0}, "ridge must be a finite number > 0, got 0"),
        ({"ridge": None}, "ridge must be a finite number > 0, got None"),
        ({"shrinkage": -0.1}, "shrinkage must be a finite number >= 0, got -0.1"),
        ({"learn": "yes"}, "learn must be one of none, empirical_bayes; got 'yes'"),
        ({"cold": "zero"}, "cold must be one of prior_mean, map, regression; got 'zero'"),
        ({"whitening": True}, "whitening must be a wals_gpu.text.Whitening, got bool"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LinearPrior(np.ones((3, 2)), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones(3), r"must be an array \(n, E\) of numbers, got float64 \(3,\)"),
        (np.ones((3, 0)), r"must be an array \(n, E\) of numbers, got float64 \(3, 0\)"),
        (np.array([[1.0, 2], [np.nan, 1]]), "must be finite, got NaN or infinity in row 1"),
        (np.array([[1.0, 2], [1e39, 1]]), "must be finite, got numbers beyond float32 in row 1"),
        (np.array([["a"]]), "must be an array"),
        ([[1.0], [1.0, 2.0]], "must be an array"),
        ((["a", "b"], np.ones((3, 2))), "one row for each of 2 ids"),
        ((["a", "a"], np.ones((2, 2))), "1 of 2 are repeats"),
        (([0.5, 1], np.ones((2, 2))), "integers or strings"),
        ((["a", None], np.ones((2, 2))), "none missing"),
        ({"a": [1, 2], "b": [1]}, "all of one length"),
        ({}, "all of one length"),
    ],
)
def test_bad_embeddings(given, message):
    with pytest.raises(DataError, match=message):
        LinearPrior(given)


def test_what_does_not_fit_the_interactions_leaves_the_model(world):
    model = make(world, {}).fit(world[0])
    before = model.item_factors
    model.item_prior = LinearPrior(world[1][:-1])
    with pytest.raises(DataError, match=r"one row for each of the 43 items, got shape \(42, 11\)"):
        model.fit(world[0])
    model.item_prior = LinearPrior(world[1], strength=np.ones(5))
    with pytest.raises(DataError, match=r"strength of item_prior must have shape \(43,\), got \(5,\)"):
        model.fit(world[0])
    assert model.item_factors is before
    with pytest.raises(TypeError, match=r"item_prior must be a LinearPrior, such as LinearPrior\(embeddings\)"):
        WALS(item_prior=world[1])
    with pytest.raises(ValueError, match="strength must be given"):
        WALS(4, "implicit", regularization=0, item_prior=LinearPrior(world[1])).fit(world[0])


def test_features_are_centred_unit_vectors(world):
    model = make(world, {}).fit(world[0])
    features = model.item_prior_.features(world[1], np.float64)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1)
    # A text that says nothing has the catalogue's mean, and the prior mean is b.
    np.testing.assert_allclose(model.item_prior_.project(world[1].mean(axis=0)[None])[0], model.item_prior_.weights[-1])
    with pytest.raises(DataError, match=r"shape \(n, E=11\) as in the fit, got \(1, 4\)"):
        model.item_prior_.project(np.ones((1, 4)))


# ---------------------------------------------------------------------------------------------------- files, resuming


def test_save_and_load(world, tmp_path):
    settings = {"strength": np.linspace(0.5, 2, ITEMS), "shrinkage": 0.1, "learn": "empirical_bayes"}
    model = make(world, settings, users=True).fit(world[0])
    model.save(tmp_path)
    loaded = WALS.load(tmp_path)
    new = np.random.default_rng(0).normal(size=(3, DIMENSION))
    assert np.array_equal(model.project_items(new), loaded.project_items(new))
    assert np.array_equal(loaded.item_prior_.mean, model.item_prior_.mean)
    assert loaded.item_prior_.scale == model.item_prior_.scale
    assert np.array_equal(loaded.fold_in(world[0][:4]), model.fold_in(world[0][:4]))
    some = np.array([5, 2])
    columns = world[0].tocsc()[:, some]
    update = csr_matrix(world[0].shape, dtype=np.float64).tolil()
    update[:, some] = columns
    for each in (model, loaded):
        each.update_items(csr_matrix(update))
    assert np.array_equal(loaded.item_factors, model.item_factors)
    with pytest.raises(ValueError, match="set its user_prior to a new LinearPrior"):
        loaded.fit(world[0])
    loaded.save(tmp_path / "again")
    assert np.array_equal(WALS.load(tmp_path / "again").project_items(new), model.project_items(new))


def test_damaged_priors_are_refused(world, tmp_path):
    from wals_gpu.data.files import load_folder, save_folder

    make(world, {}).fit(world[0]).save(tmp_path)
    tensors, metadata = load_folder(tmp_path)
    for name, array in {
        "item_prior/weights": np.zeros((4, 3)),
        "item_prior/mean": np.zeros((ITEMS - 1, 8)),
        "item_prior/center": np.full(DIMENSION, np.nan, np.float32),
        "item_prior/scale": np.ones(2),
    }.items():
        save_folder(tmp_path / "bad", tensors | {name: array}, metadata)
        with pytest.raises(ModelFormatError):
            WALS.load(tmp_path / "bad")
    for priors in ({"item_prior": {"ridge": 1}, "else": {}}, {"item_prior": {"nonsense": 1}}, {"item_prior": None}):
        save_folder(tmp_path / "bad", tensors, metadata | {"priors": priors})
        with pytest.raises(ModelFormatError):
            WALS.load(tmp_path / "bad")


def test_a_resumed_fit_is_one_that_was_never_interrupted(world, tmp_path):
    settings = {"learn": "empirical_bayes", "strength": 2.0}
    want = make(world, settings, users=True, iterations=8).fit(world[0])
    stopping = make(world, settings, users=True, iterations=8)
    stopping.fit(world[0], checkpoint_dir=tmp_path, callback=lambda model, record: record.iteration == 3)
    resumed = make(world, settings, users=True, iterations=8).fit(world[0], checkpoint_dir=tmp_path, resume=True)
    assert np.array_equal(resumed.item_factors, want.item_factors)
    assert np.array_equal(resumed.item_prior_.mean, want.item_prior_.mean)
    assert [r.loss for r in resumed.history_] == [r.loss for r in want.history_]
    other = make((world[0], world[1] + np.eye(ITEMS, DIMENSION), *world[2:]), settings, users=True, iterations=8)
    with pytest.raises(ValueError, match="item_prior"):
        other.fit(world[0], checkpoint_dir=tmp_path, resume=True)


def test_validation_keeps_the_prior_of_the_best_factors(world):
    model = make(world, {"strength": 2.0}, iterations=6).fit(world[0], validation=0.2, metric="recall@5")
    shorter = make(world, {"strength": 2.0}, iterations=model.best_iteration_)
    shorter.fit(world[0], validation=0.2, metric="recall@5")
    assert np.array_equal(model.item_prior_.weights, shorter.item_prior_.weights)
    np.testing.assert_allclose(model.item_prior_.mean, model.item_prior_.project(world[1]))


def test_warm_start_begins_with_the_regression_of_the_factors_it_has(world):
    model = make(world, {"strength": 2.0}, iterations=50).fit(world[0])
    loss = model.history_[-1].loss
    model.iterations = 1
    model.fit(world[0], warm_start=True)
    assert model.history_[0].loss <= loss * (1 + 1e-9)


# ---------------------------------------------------------------------------------------------------- users


def test_a_training_user_folds_in_to_their_factor(world):
    model = make(world, {"strength": 2.0}, users=True, iterations=2000).fit(world[0])
    want = model.user_factors
    np.testing.assert_allclose(model.fold_in(world[0], embeddings=world[2]), want, atol=1e-5)
    unknown = model.fold_in(world[0])
    assert np.abs(unknown - want).max() > 1e-3
    np.testing.assert_allclose(unknown[7], model.user_prior_.weights[-1])
    with pytest.raises(DataError, match=r"one row for each of the 60 users, got shape \(2, 3\)"):
        model.fold_in(world[0], embeddings=world[2][:2])
    plain = make(world, {}).fit(world[0])
    with pytest.raises(ValueError, match="embeddings of users need a model with a user_prior"):
        plain.fold_in(world[0], embeddings=world[2])


def test_explanations_add_up_with_a_user_prior(world):
    model = make(world, {"strength": 2.0}, users=True, iterations=2000).fit(world[0])
    why = model.explain(3, 8)
    assert why.score == pytest.approx(model.predict(3, 8), abs=1e-5)
    assert why.from_prior != 0


def test_texts_need_an_encoder(world):
    model = make(world, {}).fit(world[0])
    with pytest.raises(ModelFitError, match="made from embeddings, without an encoder"):
        model.project_items(["a text"])
    with pytest.raises(TypeError, match="put it into a list"):
        model.project_items("a text")
