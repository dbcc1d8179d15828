"""Validation while fitting: what is measured, when the fit ends, and which factors stay."""

import builtins
import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, FitRecord, Interactions, ModelFitError, ParameterWarning, as_interactions, cli
from wals_gpu.data.csr import entry_rows, select
from wals_gpu.data.stored import write_stored
from wals_gpu.evaluation.report import evaluate
from wals_gpu.evaluation.splits import random_holdout
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.training.validation import METRICS


def make_likes(seed=0, users=70, items=40, kinds=4):
    """Most items of the user's kind, few others."""
    rng = np.random.default_rng(seed)
    same_kind = np.arange(users)[:, None] % kinds == np.arange(items) % kinds
    return csr_matrix((rng.random((users, items)) < np.where(same_kind, 0.6, 0.1)).astype(np.float32))


def make_split(seed=0, **sizes):
    return random_holdout(make_likes(seed, **sizes), 0.25, seed)


def make_model(**params):
    return WALS(**{"factors": 16, "objective": "hu", "alpha": 20, "regularization": 0.1, "iterations": 12, **params})


def same_factors(a, b):
    return np.array_equal(a.user_factors, b.user_factors) and np.array_equal(a.item_factors, b.item_factors)


LENGTHS = (1, 3, 5, 7, 10, 20, 10**9)


@pytest.mark.parametrize("metric", [f"{name}@{k}" for name, k in zip(METRICS, LENGTHS, strict=True)])
def test_the_metric_is_that_of_evaluate(metric):
    train, test = make_split()
    k = int(metric.split("@")[1])
    model = make_model(iterations=3).fit(train, validation=test, metric=metric)
    for record in model.history_:  # fits of fewer iterations end where this one passed by
        upto = make_model(iterations=record.iteration).fit(train)
        expected = evaluate(upto, train, test, k, baseline=False, n_resamples=0).results["wals"][metric].value
        assert record.validation == pytest.approx(expected, abs=1e-12)
    assert model.validation_metric_ == metric


@pytest.mark.parametrize("factors", [4, 16])  # of 16, both sides are rotated while the fit lasts
@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
def test_the_best_factors_stay(factors, solver):
    train, test = make_split(1)
    options = {"factors": factors, "solver": solver, "block_size": 16, "init_scale": 1.0}
    model = make_model(**options).fit(train, validation=test, metric="recall@5")
    scores = [record.validation for record in model.history_]
    best = 1 + int(np.argmax(scores))
    assert model.best_iteration_ == best < len(scores) == 12, "the test wants a best in the middle"
    assert same_factors(model, make_model(**options | {"iterations": best}).fit(train))


@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("stored", [False, True])
def test_users_without_training_entries_get_what_is_popular(k, stored, tmp_path):
    likes = make_likes(7)
    test = select(likes, (entry_rows(likes) < 20) | (likes.indices % 5 == 0))
    train = select(likes, ~((entry_rows(likes) < 20) | (likes.indices % 5 == 0)))
    data = write_stored(tmp_path / "stored", train) if stored else train
    model = make_model(iterations=3).fit(data, validation=test, metric=f"recall@{k}")
    for record in model.history_:
        upto = make_model(iterations=record.iteration).fit(train)
        report = evaluate(upto, train, test, k, baseline=False, n_resamples=0)
        assert report.cold_users == 20 and report.cold_lists == {"wals": "the most popular items"}
        assert record.validation == pytest.approx(report.results["wals"][f"recall@{k}"].value, abs=1e-12)
    # all of them are cold: nothing that is learned changes the metric, and the first iteration stays the best
    cold = select(test, entry_rows(test) < 20)
    model = make_model(iterations=3).fit(data, validation=cold, metric=f"recall@{k}")
    assert len({record.validation for record in model.history_}) == 1 and model.best_iteration_ == 1
    # features say something of users without entries, so these are not cold
    prior = LinearPrior(np.random.default_rng(0).random((70, 3)).astype(np.float32))
    model = make_model(iterations=3, user_prior=prior).fit(train, validation=cold, metric="mrr@40")
    assert len({record.validation for record in model.history_}) > 1


def test_a_best_in_the_end_changes_nothing():
    train, test = make_split(2)
    plain = make_model(iterations=1).fit(train)
    assert same_factors(plain, make_model(iterations=1).fit(train, validation=test))
    assert plain.best_iteration_ is None and plain.validation_metric_ is None


def test_patience_counts_measurements_without_a_new_best():
    train, test = make_split(1)
    whole = make_model(iterations=20).fit(train, validation=test, metric="recall@5")
    scores = [record.validation for record in whole.history_]
    for patience in (1, 2, 4):
        model = make_model(iterations=20).fit(train, validation=test, metric="recall@5", patience=patience)
        best, end = 0, len(scores)
        for n, score in enumerate(scores):
            if score > scores[best]:
                best = n
            if n - best >= patience and (n == 0 or score <= scores[best]):
                end = n + 1
                break
        assert len(model.history_) == end < 20
        assert [record.validation for record in model.history_] == scores[:end]
        assert model.best_iteration_ == best + 1
        assert same_factors(model, make_model(iterations=best + 1).fit(train))


def test_measuring_every_few_iterations():
    train, test = make_split(1)
    every, third = (make_model().fit(train, validation=test, validate_every=n) for n in (1, 3))
    measured = {r.iteration: r.validation for r in third.history_ if r.validation is not None}
    assert measured == {r.iteration: r.validation for r in every.history_ if r.iteration % 3 == 0}
    assert [r.loss for r in third.history_] == [r.loss for r in every.history_]
    assert third.best_iteration_ == max(measured, key=measured.get)
    assert same_factors(third, make_model(iterations=third.best_iteration_).fit(train))
    stopped = make_model(iterations=50).fit(train, validation=test, validate_every=3, patience=1)
    assert len(stopped.history_) % 3 == 0


def test_a_share_is_held_out_of_the_training():
    likes = make_likes(3)
    model = make_model(random_state=5).fit(likes, validation=0.25, patience=2)
    train, test = random_holdout(likes, 0.25, np.random.default_rng([5, 1]))
    assert same_factors(model, make_model(random_state=5).fit(train, validation=test, patience=2))
    report = evaluate(model, train, test, 10, baseline=False, n_resamples=0)
    best = model.history_[model.best_iteration_ - 1].validation
    assert report.results["wals"]["ndcg@10"].value == pytest.approx(best, abs=1e-12)
    other = make_model(random_state=6).fit(likes, validation=0.25, patience=2)
    assert [r.validation for r in other.history_] != [r.validation for r in model.history_]


def test_validation_by_table_matrix_or_interactions_is_the_same():
    train, test = make_split(4)
    table, held_out = (
        pd.DataFrame({"user": [f"u{u:02}" for u in m.tocoo().row], "item": m.tocoo().col * 2, "value": m.data})
        for m in (train, test)
    )
    data = as_interactions(table)
    assert data.matrix.shape == train.shape
    expected = make_model().fit(train, validation=test)
    options = {"user_ids": data.user_ids, "item_ids": data.item_ids}
    for same in (held_out, test, test.tocoo(), as_interactions(held_out, **options), Interactions(test)):
        model = make_model().fit(data, validation=same)
        assert same_factors(model, expected) and model.history_[-1].validation == expected.history_[-1].validation
    stranger = pd.DataFrame({"user": ["who"], "item": [0], "value": [1.0]})
    with pytest.warns(ParameterWarning, match="1 of .* not known"):
        model = make_model().fit(data, validation=pd.concat([held_out, stranger]))
    assert same_factors(model, expected)


def as_table(matrix, user="user", item="item"):
    coo = matrix.tocoo()
    return pd.DataFrame({user: [f"u{u:02}" for u in coo.row], item: coo.col * 2, "value": coo.data})


def test_interactions_numbered_apart_are_compared_by_id():
    train, test = make_split(4)
    data = as_interactions(as_table(train))
    few = select(test, (entry_rows(test) > 30) & (test.indices % 3 > 0))
    apart = as_interactions(as_table(few))
    assert apart.matrix.shape != few.shape and apart.item_ids != data.item_ids
    expected = make_model(iterations=3).fit(train, validation=few)
    for same in (apart, few, as_table(few)):
        model = make_model(iterations=3).fit(data, validation=same)
        assert [r.validation for r in model.history_] == [r.validation for r in expected.history_]
    stranger = as_interactions(pd.concat([as_table(few), pd.DataFrame({"user": ["who"], "item": [0], "value": [1.0]})]))
    with pytest.raises(
        DataError, match=r"validation names 1 user that the training data does not know, such as user 'who'"
    ):
        make_model().fit(data, validation=stranger)
    numbers = as_interactions(as_table(few).assign(user=lambda t: t["user"].str[1:].astype(int)))
    with pytest.raises(DataError, match=r"user ids of validation are integers, such as 32, but .* are strings"):
        make_model().fit(data, validation=numbers)
    with pytest.raises(DataError, match="none of the 1 entries of validation is of a user and an item that"):
        make_model().fit(data, validation=pd.DataFrame({"user": ["who"], "item": [0]}))


def test_a_table_of_validation_has_the_columns_of_the_training_data():
    train, test = make_split(4)
    expected = make_model(iterations=2).fit(train, validation=test)
    named = {"user_column": "who", "item_column": "what"}
    tables = [as_table(part, "who", "what") for part in (train, test)]
    data = as_interactions(tables[0], **named)
    ids = {"user_ids": data.user_ids, "item_ids": data.item_ids, "unknown": "drop"}  # of the training data
    for first, validation, columns in (
        (tables[0], tables[1], named), (data, tables[1], {}), (data, as_table(test), {}),
        (tables[0], tables[1], named | ids), (tables[0], tables[1], named | {"min_user_interactions": 1}),
    ):  # fmt: skip
        model = make_model(iterations=2).fit(first, validation=validation, **columns)
        assert [r.validation for r in model.history_] == [r.validation for r in expected.history_]


def test_values_up_to_zero_are_nothing_to_find():
    train, test = make_split(5)
    signs = test.copy()
    signs.data[::3] = -1.0
    signs.data[1::3] = 0.0
    positive = select(signs, signs.data > 0)
    a, b = (WALS(4, iterations=3).fit(train, validation=v) for v in (signs, positive))
    assert [r.validation for r in a.history_] == [r.validation for r in b.history_]


def test_the_number_of_threads_changes_no_metric():
    train, test = make_split(6, users=300)
    one, three = (make_model(num_threads=n).fit(train, validation=test) for n in (1, 3))
    assert same_factors(one, three)
    assert [r.validation for r in one.history_] == [r.validation for r in three.history_]


def test_ctrl_c_leaves_the_best_factors():
    train, test = make_split(1)
    whole = make_model().fit(train, validation=test, metric="recall@5")

    def interrupt(model, record):
        if record.iteration == whole.best_iteration_ + 2:
            raise KeyboardInterrupt

    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        model.fit(train, validation=test, metric="recall@5", callback=interrupt)
    assert model.best_iteration_ == whole.best_iteration_
    assert same_factors(model, whole)


def test_callbacks_cannot_change_factors_and_see_the_metric():
    train, test = make_split()
    seen = []

    def callback(model, record):
        seen.append(record.validation)
        with pytest.raises(ValueError, match="read-only"):
            model.item_factors[0] = 0
        model.recommend([0, 1], k=3)

    model = make_model(iterations=3).fit(train, validation=test, callback=callback)
    assert seen == [r.validation for r in model.history_]


@pytest.mark.parametrize("factors", [5, 16])
def test_callbacks_get_the_answers_of_their_iteration(factors):
    train, test = make_split()
    answers = []
    options = {"factors": factors, "dtype": "float64"}
    make_model(**options, iterations=3).fit(train, callback=lambda m, _: answers.append(m.recommend_for(test, 40)[1]))
    for iteration, scores in enumerate(answers, 1):
        upto = make_model(**options, iterations=iteration).fit(train)
        np.testing.assert_allclose(scores, upto.recommend_for(test, 40)[1], rtol=1e-9, atol=1e-12)


def test_saved_with_the_model(tmp_path):
    train, test = make_split()
    model = make_model().fit(train, validation=test, metric="map@7", validate_every=4)
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert (loaded.validation_metric_, loaded.best_iteration_) == ("map@7", model.best_iteration_)
    assert loaded.history_ == model.history_ and same_factors(loaded, model)


def test_bad_input_is_named_before_anything_is_changed():
    train, test = make_split()
    model = make_model().fit(train)
    before = model.user_factors
    for options, error, text in (
        ({"validation": 0.0}, ValueError, r"share in \(0, 1\), or interactions; got 0.0"),
        ({"validation": 1.5}, ValueError, "got 1.5"),
        ({"validation": 1e-9}, DataError, "leaves none on one of the two sides"),
        ({"validation": True}, TypeError, "must be a matrix or a share"),
        ({"validation": np.zeros(5)}, DataError, r"^validation: .* must be a 2-D matrix .*shape \(5,\)"),
        ({"validation": test * np.nan}, DataError, "^validation: .*finite"),
        ({"checkpoint_dir": 5}, TypeError, r"^checkpoint_dir must be a str or a pathlib\.Path, got 5"),
        ({"resume": "no", "checkpoint_dir": "x"}, TypeError, "^resume must be True or False, got 'no'"),
        ({"validation": test[:5]}, DataError, "must have 70 rows|shape"),
        ({"validation": train}, DataError, f"{train.nnz} entries of validation are in the interactions too"),
        ({"validation": test * 0}, DataError, "no value above 0"),
        ({"validation": pd.DataFrame({"user": [1], "item": [2]})}, TypeError, "so there are no ids"),
        ({"validation": test, "metric": "ndcg"}, ValueError, "list length .*got 'ndcg'"),
        ({"validation": test, "metric": "ndcg@0"}, ValueError, "got 'ndcg@0'"),
        ({"validation": test, "metric": "gini@10"}, ValueError, "got 'gini@10'"),
        ({"validation": test, "metric": 3}, ValueError, "got 3"),
        ({"validation": test, "validate_every": 0}, ValueError, "validate_every must be an integer from 1 to 12"),
        ({"validation": test, "validate_every": 13}, ValueError, "got 13"),
        ({"validation": test, "patience": 0}, ValueError, "patience must be an integer >= 1, got 0"),
        ({"validation": test, "patience": 1.5}, TypeError, "patience"),
        ({"metric": "recall@5"}, ValueError, "need validation"),
        ({"patience": 3}, ValueError, "need validation"),
        ({"validate_every": 2}, ValueError, "need validation"),
    ):
        with pytest.raises(error, match=text):
            model.fit(train, **options)
        assert model.user_factors is before and len(model.history_) == 12


# The picture


def test_plot_history():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    train, test = make_split()
    model = make_model().fit(train, validation=test, validate_every=3)
    ax = model.plot_history()
    (losses,) = ax.lines
    assert losses.get_xydata().tolist() == [[r.iteration, r.loss] for r in model.history_]
    (right,) = (other for other in ax.figure.axes if other is not ax)
    metric, best = right.lines
    assert metric.get_xydata().tolist() == [[r.iteration, r.validation] for r in model.history_ if r.validation]
    assert right.get_ylabel() == "ndcg@10" and set(best.get_xdata()) == {model.best_iteration_}
    ax.figure.canvas.draw()

    _, own = matplotlib.pyplot.subplots()
    assert make_model().fit(train).plot_history(own) is own and len(own.figure.axes) == 1
    model = make_model(compute_loss=False).fit(train, validation=test)
    assert model.plot_history().get_ylabel() == "ndcg@10"
    with pytest.raises(ModelFitError, match="no history to plot"):
        make_model(compute_loss=False).fit(train).plot_history()
    matplotlib.pyplot.close("all")


def test_plot_history_without_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    model = make_model(iterations=1).fit(make_likes())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'wals_gpu\[plot\]'"):
        model.plot_history()


# The command line


def test_the_command_validates(tmp_path, capsys):
    train, test = make_split(1)
    paths = []
    for name, matrix in (("train", train), ("test", test)):
        table = pd.DataFrame({"who": [f"u{u:02}" for u in matrix.tocoo().row], "what": matrix.tocoo().col})
        paths.append(str(tmp_path / f"{name}.csv"))
        table.to_csv(paths[-1], index=False)
    common = ["--user-column", "who", "--item-column", "what", "--factors", "16", "--objective", "hu", "--quiet"]
    settings = ["--set", "alpha=20", "--set", "regularization=0.1", "--iterations", "30", "--metric", "recall@5"]
    for validation in (paths[1], "0.25"):
        command = ["fit", paths[0], "--out", str(tmp_path / "m"), "--validation", validation, "--patience", "2"]
        assert cli.main([*command, *common, *settings]) == 0
        said = capsys.readouterr().out
        loaded = WALS.load(tmp_path / "m")
        by_hand = make_model(iterations=30)
        held_out = test if validation == paths[1] else 0.25
        by_hand.fit(as_interactions(train), validation=held_out, metric="recall@5", patience=2)
        assert same_factors(loaded, by_hand) and loaded.validation_metric_ == "recall@5"
        best = loaded.history_[loaded.best_iteration_ - 1].validation
        assert f"best recall@5 {best:.4f}, after iteration {loaded.best_iteration_}" in said
        assert f"{len(loaded.history_)} iterations of 30" in said
    assert cli.main([*command[:4], *common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best_iteration"] is None
    assert cli.main([*command[:4], *common, "--patience", "2"]) == 2
    assert "--patience needs --validation" in capsys.readouterr().err
    assert cli.main([*command[:4], *common, "--validation", str(tmp_path / "nothing.csv")]) == 2
    assert "nothing.csv" in capsys.readouterr().err


def test_records_of_older_models_have_no_metric():
    assert FitRecord(iteration=1, loss=2.0, seconds=0.5).validation is None
