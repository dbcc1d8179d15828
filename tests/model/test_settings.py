"""Settings as attributes, scikit-learn's conventions, and settings as JSON."""

import copy
import dataclasses
import inspect
import json
import pickle
import typing

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import PRESETS, WALS, DataError, ModelFitError, ParameterWarning, as_interactions, make_objective
from wals_gpu.data.options import ColumnOptions
from wals_gpu.evaluation import ranking_metrics
from wals_gpu.model.settings import SETTINGS, ModelOptions
from wals_gpu.objective.options import ObjectiveOptions
from wals_gpu.priors.linear import LinearPrior

USERS, ITEMS = 60, 24


@pytest.fixture(scope="module")
def likes():
    """Users of three tastes, items of three kinds."""
    rng = np.random.default_rng(0)
    same = np.arange(USERS)[:, None] % 3 == np.arange(ITEMS) % 3
    return csr_matrix((rng.random((USERS, ITEMS)) < np.where(same, 0.7, 0.05)).astype(np.float32))


def table(matrix):
    entries = matrix.tocoo()
    frame = pd.DataFrame({"user": entries.row + 100, "item": [f"i{c:02}" for c in entries.col], "value": entries.data})
    return frame.sample(frac=1, random_state=0)


# ---------------------------------------------------------------------------------------------------- attributes


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("factors", 0, ValueError, "factors must be an integer from 1 to 8192, got 0"),
        ("factors", 2.5, TypeError, "factors must be an integer"),
        ("objective", "als", ValueError, "objective must be .* got 'als'"),
        ("iterations", -1, ValueError, "iterations must be an integer >= 0"),
        ("solver", "lu", ValueError, "solver must be one of"),
        ("cg_steps", 0, ValueError, "cg_steps must be"),
        ("block_size", 20, ValueError, "block_size must be a multiple of 16"),
        ("over_relaxation", 2, ValueError, "over_relaxation must be"),
        ("dtype", "float16", ValueError, "dtype must be float32 or float64, got float16"),
        ("device", "tpu", ValueError, "device must be"),
        ("num_threads", 1.5, TypeError, "num_threads must be"),
        ("random_state", "seed", TypeError, "random_state must be"),
        ("init_scale", np.nan, ValueError, "init_scale must be"),
        ("compute_loss", "no", TypeError, "compute_loss must be True or False, got 'no'"),
        ("item_prior", 3, TypeError, "item_prior must be a LinearPrior"),
        ("user_prior", np.eye(2), TypeError, "user_prior must be a LinearPrior"),
        ("popularity_exponent", 1.5, ValueError, "popularity_exponent must be a number from -1 to 1, got 1.5"),
        ("popularity_exponent", np.nan, ValueError, "popularity_exponent must be a number from -1 to 1, got nan"),
        ("popularity_exponent", "best", ValueError, 'popularity_exponent must be a number from -1 to 1, or "auto"'),
        ("popularity_exponent", None, TypeError, "popularity_exponent must be a number from -1 to 1, got None"),
        ("popularity_exponent", True, TypeError, "popularity_exponent must be a number from -1 to 1, got True"),
    ],
)
def test_what_is_assigned_is_checked_as_by_the_constructor(name, value, error, message):
    model = WALS(2, "hu", alpha=3)
    before = model.get_params()
    for attempt in (
        lambda: setattr(model, name, value),
        lambda: WALS(**{name: value}),
        lambda: model.set_params(iterations=1, **{name: value}) if name != "iterations" else WALS(iterations=value),
    ):
        with pytest.raises(error, match=message):
            attempt()
    assert model.get_params() == before


def test_what_is_assigned_holds_for_the_next_fit(likes):
    model = WALS(2, iterations=1).fit(likes)
    model.factors, model.iterations, model.objective, model.dtype = np.int64(3), 2, "ials", "float64"
    assert (model.factors, type(model.factors), model.dtype) == (3, int, np.float64)
    assert model.objective == make_objective("ials")
    assert model.user_factors.shape == (USERS, 2)
    expected = WALS(3, "ials", iterations=2, dtype="float64").fit(likes)
    assert np.array_equal(model.fit(likes).user_factors, expected.user_factors)
    model.objective = make_objective("hu", alpha=2)
    assert np.array_equal(
        model.fit(likes).user_factors, WALS(3, "hu", alpha=2, iterations=2, dtype="float64").fit(likes).user_factors
    )


def test_an_objective_that_is_assigned_has_its_own_parameters():
    model = WALS(2, "hu", alpha=5)
    model.objective = "hu"
    assert model.objective == make_objective("hu") and "alpha" not in model.get_params(deep=False)
    model.objective = "ials"
    assert model.get_params()["unobserved_weight"] == 0.1


def test_num_threads_and_device_make_another_backend(likes):
    model = WALS(2, num_threads=1).fit(likes)
    before, backend = model.recommend(0), model._backend
    model.iterations = 3
    assert model._backend is backend
    model.num_threads = 2
    assert model._backend is not backend and model.fitted.backend is model._backend
    assert np.array_equal(model.recommend(0)[1], before[1])


def test_a_saved_model_can_be_read_whatever_was_set_since(likes, tmp_path):
    model = WALS(4, iterations=2).fit(likes)
    before = model.recommend(0)
    model.factors, model.dtype, model.iterations = 7, "float64", 9
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert np.array_equal(loaded.recommend(0)[1], before[1])
    assert (loaded.factors, loaded.dtype, loaded.iterations) == (4, np.float32, 9)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "alpha",
            40,
            r"alpha is a parameter of the objective: model.set_params\(alpha=40\), or model.objective = make_obj",
        ),
        (
            "missing_weight",
            9,
            r"missing_weight is a parameter of the objective 'eals', not of 'hu': model.objective = make_obj",
        ),
        ("iteratons", 3, "WALS has no setting iteratons; did you mean 'iterations'?"),
        ("regularisation", 3, "did you mean 'regularization'?"),
        ("validation", 0.1, r"validation is an argument of fit: model.fit\(interactions, validation=0.1\)"),
        ("xyz", 3, "WALS has no setting xyz; it has factors, objective, iterations"),
    ],
)
def test_an_attribute_without_effect_is_an_error_that_says_how(name, value, message):
    model = WALS(2, "hu")
    with pytest.raises(AttributeError, match=message):
        setattr(model, name, value)
    assert not hasattr(model, name)


def test_what_says_so_is_what_works():
    model = WALS(2, "hu")
    assert model.set_params(alpha=41).objective == make_objective("hu", alpha=41)
    model.objective = make_objective("hu", alpha=40)
    assert model.objective.alpha == 40


class Own(WALS):
    """A class of a user's, with attributes and arguments of its own."""

    declared: int = 3

    def __init__(self, factors=3, *, label="x"):
        super().__init__(factors, "hu", iterations=2)
        self._label, self.learned_, self.declared, self.alpha = label, None, 4, 7
        self.label = label

    alpha = None


def test_attributes_of_another_kind_can_be_assigned(likes):
    model = WALS(2).fit(likes)
    model._mine, model.mine_ = 1, 2
    model.user_factors = model.user_factors * 2
    model.item_ids = None
    model.recommend = lambda *_: "stub"
    assert model.recommend(0) == "stub"
    own = Own(label="y").fit(likes)
    assert (own.declared, own.alpha, own.label, own.factors) == (4, 7, "y", 3)
    with pytest.raises(AttributeError, match="epsilon is a parameter of the objective"):
        own.epsilon = 3


def test_copies_are_independent(likes):
    model = WALS(2, "hu", alpha=3, random_state=np.random.default_rng(0)).fit(likes)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.get_params(deep=False).keys() == model.get_params(deep=False).keys()
        other.set_params(alpha=4, factors=3)
        assert (other.objective.alpha, other.factors, other.get_params()["alpha"]) == (4, 3, 4)
        assert np.array_equal(other.recommend(0)[1], model.recommend(0)[1])
    assert (model.objective.alpha, model.factors, model.get_params()["alpha"]) == (3, 2, 3)


def test_a_model_of_a_pickle_that_does_not_know_what_was_given(likes):
    model = WALS(2, "hu", alpha=3).fit(likes)
    state = {name: value for name, value in vars(model).items() if name != "_given"}  # as version 0.1.0 wrote it
    old = WALS.__new__(WALS)
    vars(old).update(state)
    assert WALS(**old.get_params()).objective == model.objective
    assert old.set_params(alpha=4, iterations=3).objective.alpha == 4
    old.objective = "ials"
    assert np.array_equal(old.fit(likes).user_factors, WALS(2, "ials", iterations=3).fit(likes).user_factors)


# ---------------------------------------------------------------------------------------------------- parameters


def test_get_params_are_arguments_as_given():
    seed = np.random.default_rng(0)
    model = WALS(4, "hu", alpha=40, iterations=7, random_state=seed, dtype=np.float64)
    shallow = model.get_params(deep=False)
    assert shallow == {
        "factors": 4,
        "objective": "hu",
        "iterations": 7,
        "solver": "auto",
        "cg_steps": 3,
        "block_size": 64,
        "over_relaxation": 1.0,
        "dtype": np.float64,
        "device": "auto",
        "num_threads": 0,
        "random_state": seed,
        "init_scale": 0.1,
        "compute_loss": True,
        "item_prior": None,
        "user_prior": None,
        "popularity_exponent": 0.0,
        "neighbors": 0,
        "neighbor_weight": 1.5,
        "neighbor_regularization": 20.0,
        "alpha": 40,
    }
    assert model.get_params() == shallow | {
        "regularization": 10.0,
        "weighting": "linear",
        "epsilon": 1.0,
        "exponent": 0.5,
    }
    for params in (shallow, model.get_params()):
        assert WALS(**params).objective == model.objective
    ready = make_objective("hu", alpha=40)
    assert WALS(**WALS(2, ready).get_params()).objective is ready


@pytest.mark.parametrize("name", PRESETS)
def test_get_params_of_every_preset(name):
    model = WALS(objective=name, regularization=0.5)
    assert WALS(**model.get_params()).objective == model.objective


def test_set_params_changes_all_or_nothing():
    model = WALS(2, "hu", alpha=3)
    assert model.set_params(factors=5, regularization=1.5, alpha=4) is model
    assert (model.factors, model.objective) == (5, make_objective("hu", alpha=4, regularization=1.5))
    for params, error, message in [
        ({"factors": 6, "iterations": -1}, ValueError, "iterations must be"),
        ({"factors": 6, "factorz": 3}, ValueError, "WALS has no setting factorz; did you mean 'factors'?"),
        ({"factors": 6, "nu": 3}, TypeError, "objective 'hu' has no parameter nu; it has regularization, alpha"),
        ({"factors": 6, "objective": "ials"}, TypeError, "objective 'ials' has no parameter"),
        ({"factors": 6, "objective": make_objective("ials")}, TypeError, "objective is already a Ials; set"),
    ]:
        with pytest.raises(error, match=message):
            model.set_params(**params)
        assert (model.factors, model.objective.alpha) == (5, 4)
    ready = WALS(2, make_objective("hu", alpha=3)).set_params(regularization=2)
    assert ready.objective == make_objective("hu", alpha=3, regularization=2)
    with pytest.raises(TypeError, match="objective 'hu' has no parameter nu"):
        ready.set_params(nu=2)
    assert WALS(2).set_params(objective="ials", nu=0.5).objective == make_objective("ials", nu=0.5)


def test_names_that_are_none_say_what_was_meant():
    for call, message in [
        (lambda: WALS(iteratons=3), "has no setting iteratons.*; did you mean 'iterations'?"),
        (lambda: WALS(factor=3), "has no setting factor, .* no parameter factor; .*; did you mean 'factors'?"),
        (lambda: WALS(objective="hu", alfa=3), "has no parameter alfa; it has .*; did you mean 'alpha'?"),
        (
            lambda: WALS(2).fit(np.eye(3), usr_column="a"),
            r"fit\(\) has no argument 'usr_column'; did you mean 'user_col",
        ),
        (
            lambda: WALS(2).fit(np.eye(3), valdation=0.1),
            r"fit\(\) has no argument 'valdation'; did you mean 'validation",
        ),
        (lambda: WALS(2).fit(np.eye(3)).update_users(np.eye(3), valu_column=3), "did you mean 'value_column'?"),
        (lambda: WALS(2).fit(np.eye(3)).fold_in(np.eye(3), usr_column=3), r"fold_in\(\) has no argument 'usr_column'"),
        (lambda: WALS(2).fit(np.eye(3)).recommend_for(np.eye(3), fliter_seen=3), "did you mean 'filter_seen'?"),
        (lambda: WALS(2).fit(np.eye(3)).score(np.eye(3), mertic=3), "did you mean 'metric'?"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()


def test_typed_names_are_all_names():
    fields = {field.name for preset in PRESETS.values() for field in dataclasses.fields(preset)}
    assert fields == set(ObjectiveOptions.__annotations__)
    assert set(ModelOptions.__annotations__) == fields | set(SETTINGS)
    constructor = inspect.signature(WALS).parameters
    assert tuple(constructor)[:-1] == SETTINGS
    of_reader = set(inspect.signature(as_interactions).parameters) - {
        "data",
        "user_ids",
        "item_ids",
        "unknown",
        "dtype",
    }
    assert of_reader <= set(ColumnOptions.__annotations__)


def test_type_hints_can_be_looked_up_while_a_program_runs():
    for method in (WALS.__init__, WALS.fit, WALS.set_params, WALS.update_users, make_objective):
        assert "return" in typing.get_type_hints(method)


# ---------------------------------------------------------------------------------------------------- scikit-learn


def test_y_is_accepted_and_said_to_be_ignored(likes):
    expected = WALS(2, iterations=2).fit(likes)
    assert np.array_equal(WALS(2, iterations=2).fit(likes, None).user_factors, expected.user_factors)
    with pytest.warns(ParameterWarning, match="y is not used"):
        assert np.array_equal(WALS(2, iterations=2).fit(likes, likes).user_factors, expected.user_factors)


def test_score_of_new_users_is_the_metric_of_what_was_kept_from_them(likes):
    model = WALS(4, iterations=5).fit(likes[:40])
    new = likes[40:]
    assert model.score(new) == model.score(new.toarray()) == model.score(new, None, random_state=0)
    assert model.score(new) != model.score(new, random_state=1)
    with pytest.raises(ValueError, match="metric must be one of"):
        model.score(new, metric="rmse@3")
    with pytest.raises(ValueError, match=r"heldout must lie in \(0, 1\)"):
        model.score(new, heldout=1)
    with pytest.raises(TypeError, match="random_state must be an integer"):
        model.score(new, random_state=None)
    # By hand, with a row each: one of two entries is asked for.
    pairs = csr_matrix(np.eye(2, ITEMS) + np.eye(2, ITEMS, k=3))
    hits = []
    for seed in range(6):
        by_draw = []
        for asked in np.ndindex(2, 2):
            columns = [(row, row + 3)[which] for row, which in enumerate(asked)]
            test = csr_matrix((np.ones(2), (range(2), columns)), shape=pairs.shape)
            ids, _ = model.recommend_for(pairs - test, k=3)
            by_draw.append(ranking_metrics(ids, test, 3)["recall@3"])
        hits.append(model.score(pairs, metric="recall@3", random_state=seed))
        assert hits[-1] in by_draw
    assert model.score(csr_matrix(np.vstack([pairs.toarray(), np.eye(1, ITEMS)])), metric="recall@3") == hits[0]
    with pytest.raises(DataError, match="interactions have nothing to ask for"):
        model.score(np.eye(ITEMS))
    with pytest.raises(ModelFitError, match="not fitted"):
        WALS(2).score(likes)


def test_score_of_known_users_asks_for_what_they_have_beside_training(likes):
    frame = table(likes)
    train, rest = frame[:200], frame[200:]
    rest = rest[rest["user"].isin(train["user"]) & rest["item"].isin(train["item"])]
    model = WALS(4, iterations=5).fit(train)
    rows, columns = model.user_ids.index_of(rest["user"]), model.item_ids.index_of(rest["item"])
    test = csr_matrix((np.ones(len(rest)), (rows, columns)), shape=(model.n_users, model.n_items))
    users = np.flatnonzero(np.diff(test.indptr))
    ids, _ = model.recommend(model.user_ids.take(users), k=5)
    expected = ranking_metrics(model.item_ids.index_of(ids), test[users], 5)["ndcg@5"]
    assert model.score(rest, metric="ndcg@5") == pytest.approx(expected, rel=1e-12)
    assert model.score(pd.concat([rest, train]), metric="ndcg@5") == pytest.approx(expected, rel=0.2)
    # Whom the model does not know, and of whom it has seen all, is folded in.
    unknown = rest.assign(user=rest["user"] + 1000)
    assert 0 < model.score(unknown, metric="ndcg@5") != expected
    matrix = model.fitted.seen
    assert model.score(train, metric="ndcg@5") == pytest.approx(model.score(matrix, metric="ndcg@5"), rel=1e-12)
    with pytest.warns(ParameterWarning, match="rows name a user or an item that is not known"):
        model.score(pd.concat([rest, pd.DataFrame({"user": [100], "item": ["new"], "value": [1.0]})]))


def test_score_finds_known_users_in_files_of_text(tmp_path):
    """Ids of a file that are all written as integers were compared as such with texts: nobody was known."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user": rng.integers(0, 40, 700), "item": rng.integers(0, 30, 700)}).drop_duplicates()
    train, rest = frame[:300].astype(str), frame[300:].astype(str)
    train = pd.concat([train, pd.DataFrame({"user": ["x"], "item": ["y"]})])
    rest = rest[rest["user"].isin(train["user"]) & rest["item"].isin(train["item"])]
    model = WALS(4, iterations=5).fit(train)
    expected = model.score(rest)
    rest.to_csv(tmp_path / "rest.csv", index=False)
    for source in (tmp_path / "rest.csv", [tmp_path / "rest.csv"]):
        assert model.score(source) == pytest.approx(expected, rel=1e-12)  # users in another order
    with pytest.raises(
        DataError, match=r"the user ids of interactions are integers, .* those of the model are strings"
    ):
        model.score(rest.astype({"user": int}))


def test_clone_in_scikit_learns_strict_sense():
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    prior = LinearPrior(np.eye(ITEMS), encoder=lambda texts: texts)
    for model in (
        WALS(4, "hu", alpha=40, random_state=np.random.default_rng(1), item_prior=prior, dtype="float64"),
        WALS(4, make_objective("google_wals", row_weights=np.ones(3))),
        Own(5, label="z"),
    ):
        copied = base.clone(model)
        assert type(copied) is type(model) and copied.user_factors is None
        assert copied.objective == model.objective and copied.get_params().keys() == model.get_params().keys()
    assert base.clone(Own(5, label="z")).label == "z"
    assert base.clone(WALS(item_prior=prior)).item_prior.embeddings is prior.embeddings


def test_grid_search_and_pipeline(likes):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    search = selection.GridSearchCV(WALS(iterations=5), {"factors": [1, 8], "regularization": [0.1, 1e4]}, cv=3)
    search.fit(likes)
    assert search.best_params_ == {"factors": 8, "regularization": 0.1}
    assert search.best_estimator_.user_factors.shape == (USERS, 8)
    folds = list(selection.KFold(3).split(likes))
    by_hand = [WALS(8, iterations=5, regularization=0.1).fit(likes[train]).score(likes[test]) for train, test in folds]
    assert search.best_score_ == pytest.approx(np.mean(by_hand), rel=1e-12)

    pipe = make_pipeline(TfidfTransformer(), WALS(4, iterations=3))
    assert 0 < pipe.fit(likes).score(likes) <= 1
    weighted = TfidfTransformer().fit_transform(likes)
    assert np.array_equal(pipe[-1].user_factors, WALS(4, iterations=3).fit(weighted).user_factors)
    search = selection.GridSearchCV(pipe, {"wals__objective": ["hu", "ials"], "wals__factors": [1, 4]}, cv=2).fit(likes)
    assert search.best_params_["wals__factors"] == 4
    check_is_fitted(WALS(2, iterations=1).fit(likes))
    with pytest.raises(ValueError, match="not fitted yet"):
        check_is_fitted(WALS(2))


def test_grid_search_on_a_table(likes):
    selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    frame = table(likes)
    search = selection.GridSearchCV(WALS(iterations=5), {"factors": [1, 6]}, cv=3).fit(frame)
    assert search.best_params_ == {"factors": 6} and np.isfinite(search.cv_results_["mean_test_score"]).all()
    scores = selection.cross_val_score(WALS(6), frame, groups=frame["user"], cv=selection.GroupKFold(3))
    assert (scores > 0.3).all()


# ---------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_goes_through_json_unchanged(name, tmp_path):
    settings = {"regularization": 1 / 3, "iterations": 7, "dtype": "float64", "solver": "cg", "random_state": None}
    if name == "google_wals":
        settings |= {"row_weights": np.arange(4) / 3, "column_weights": np.float64(0.7)}
    model = WALS(9, name, **settings)
    config = model.to_config()
    assert config["objective"]["name"] == name and "item_prior" not in config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config, indent=2))
    for source in (config, json.loads(path.read_text()), path, str(path)):
        again = WALS.from_config(source)
        assert again.to_config() == config and again.objective == model.objective and again.dtype == np.float64
    assert type(Sub.from_config(config)) is Sub


def test_a_regularization_from_the_data(tmp_path):
    rng = np.random.default_rng(0)
    few, many = (csr_matrix((rng.random((30, n)) < 0.1).astype(np.float32)) for n in (100, 2000))
    model = WALS(4)
    assert model.regularization_ is None and model.to_config()["objective"]["regularization"] == "auto"
    model.fit(few)
    model.save(tmp_path / "m")
    again = WALS.load(tmp_path / "m")
    assert again.regularization_ == model.regularization_ == 4 * 0.0117
    np.testing.assert_array_equal(again.fold_in(few[:3]), model.fold_in(few[:3]))
    assert again.fit(many).regularization_ == 0.0117  # found anew
    model.set_params(regularization=0.0117)
    assert model.regularization_ == 4 * 0.0117 and model.fit(few).regularization_ == 0.0117
    assert WALS(4, "hu").fit(few).regularization_ == 10


class Sub(WALS):
    """Takes what WALS takes."""


def test_a_config_that_was_written_by_hand(tmp_path):
    assert WALS.from_config({}).to_config() == WALS().to_config()
    flat = WALS.from_config({"factors": 8, "objective": "hu", "alpha": 3})
    nested = WALS.from_config({"factors": 8, "objective": {"name": "hu", "alpha": 3.0}})
    assert flat.to_config() == nested.to_config() and flat.objective == make_objective("hu", alpha=3)
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"factors": 3}')
    assert WALS.from_config(tmp_path / "bom.json").factors == 3


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"factors": 4,\n "iterations": }', ValueError, "is not JSON: Expecting value in line 2, column 16"),
        ("", ValueError, "is not JSON"),
        ("[" * 100_000, ValueError, "is not JSON"),
        ('{"factors": 4, "factors": 5}', ValueError, "'factors' is given twice"),
        ("[4]", TypeError, r"a config must be an object of settings by name, got \[4\]"),
        ('{"factrs": 4}', ValueError, "a config has no setting 'factrs'; did you mean 'factors'?"),
        ('{"factors": "4"}', TypeError, "factors must be an integer from 1 to 8192, got '4'"),
        ('{"factors": NaN}', TypeError, "factors must be an integer"),
        ('{"init_scale": Infinity}', ValueError, "init_scale must be a finite number"),
        ('{"objective": "huu"}', ValueError, "objective must be .* got 'huu'"),
        ('{"objective": {"alpha": 3}}', TypeError, "objective must be a name, or an object with a name"),
        ('{"objective": {"name": "hu", "nu": 3}}', ValueError, "objective 'hu' has no parameter 'nu'"),
        ('{"objective": "hu", "nu": 3}', ValueError, "a config has no setting 'nu'"),
        ('{"objective": {"name": "hu", "alpha": "3"}}', TypeError, "alpha of objective 'hu' must be"),
        ('{"objective": {"name": "hu", "alpha": 3}, "alpha": 3}', ValueError, "alpha is given twice"),
        ('{"item_prior": {"strength": 3}}', ValueError, "the config has settings of an item_prior, whose features"),
        (
            '{"item_prior": {"strenght": 3}}',
            ValueError,
            "item_prior has no setting 'strenght'; did you mean 'strength'?",
        ),
        ('{"item_prior": 3}', ValueError, "a config has no item_prior"),
        ('{"user_prior": {"strength": 3}}', ValueError, "a config has no user_prior"),
    ],
)
def test_a_config_that_is_wrong_says_where(text, error, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(error, match=message) as info:
        WALS.from_config(path)
    assert str(info.value).startswith(str(path))


def test_a_config_that_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config at"):
        WALS.from_config(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="is not a file"):
        WALS.from_config(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not JSON"):
        WALS.from_config(tmp_path / "binary")
    with pytest.raises(TypeError, match="a config must be a dict or the path of a JSON file, got int"):
        WALS.from_config(3)


def test_what_a_config_cannot_hold(likes):
    with pytest.raises(ValueError, match="random_state is a Generator"):
        WALS(random_state=np.random.default_rng(0)).to_config()

    class Mine(type(make_objective("hu"))):
        name = "mine"

    with pytest.raises(ValueError, match="a config names one of the objectives"):
        WALS(objective=Mine()).to_config()
    model = WALS(2, item_prior=LinearPrior(np.eye(3)))
    with pytest.warns(ParameterWarning, match="item_prior is not in the config"):
        config = model.to_config()
    assert config == WALS(2).to_config()


def test_fit_takes_settings_over(likes, tmp_path):
    tuned = WALS(3, "ials", unobserved_weight=0.2, iterations=4, neighbors=2)
    (tmp_path / "best.json").write_text(json.dumps(tuned.to_config()))
    expected = tuned.fit(likes)
    for settings in (tmp_path / "best.json", str(tmp_path / "best.json"), tuned.to_config()):
        model = WALS(5, "hu", alpha=3, random_state=tuned.random_state).fit(likes, settings=settings)
        assert np.array_equal(model.item_factors, expected.item_factors)
        assert (model.factors, model.objective, model.neighbors) == (3, expected.objective, 2)
    some = WALS(5, "hu", alpha=3).fit(likes, settings={"iterations": 2, "alpha": 7})
    assert (some.iterations, some.objective.alpha, some.factors) == (2, 7, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 3}, "no setting 'ranks'"),
        ("nowhere.json", "nowhere.json"),
        (3, "a config must be a dict"),
    ],
)
def test_settings_that_fit_cannot_take_leave_the_model_as_it_was(likes, settings, message):
    model = WALS(4).fit(likes)
    before = model.item_factors
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        model.fit(likes, settings=settings)
    assert model.factors == 4 and model.item_factors is before
