"""WALS.tune: what it searches, what it promises of its result, and what it refuses."""

from __future__ import annotations

import json
import signal
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ModelFitError, ParameterWarning, as_interactions
from wals_gpu.evaluation import random_holdout, temporal_split
from wals_gpu.priors import LinearPrior
from wals_gpu.tuning.confirm import confirm
from wals_gpu.tuning.problem import Outcome, Parts, Problem
from wals_gpu.tuning.search import Budget, Finished, Search, exponents_near, near_ranks, open_study
from wals_gpu.tuning.space import Parameter, make_space

optuna = pytest.importorskip("optuna")

SMALL = {"factors": [4, 8]}


@pytest.fixture(scope="module", autouse=True)
def few_factors_first():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wals_gpu.tuning.space.FIRST", 4)
        patch.setattr("wals_gpu.tuning.problem._ENOUGH", 1)  # users for a single split
        yield


def any_number(factors):
    return True


@pytest.fixture(scope="module")
def likes():
    """240 people of six tastes and 60 items; how many people like an item falls with its number."""
    rng = np.random.default_rng(5)
    same = np.arange(240)[:, None] % 6 == np.arange(60) % 6
    chance = np.where(same, 0.6, 0.04) * np.linspace(1, 0.3, 60)
    return csr_matrix((rng.random((240, 60)) < chance).astype("float32"))


@pytest.fixture(scope="module")
def tuning(likes):
    return WALS.tune(likes, None, trials=14, space=SMALL, num_threads=1)


def of(tuning):
    return [(t.settings, t.outcome.score, t.outcome.iterations) for t in tuning.trials]


def test_the_result_holds_what_was_found(tuning, likes):
    assert len(tuning.trials) == 14 and tuning.metric == "ndcg@20" and not tuning.interrupted
    best = max((one for one in tuning.trials if one.outcome.is_whole), key=lambda one: one.outcome.score)
    assert tuning.validation_score == best.outcome.score
    assert best.settings.items() <= tuning.best_settings.items()
    assert tuning.best_settings["iterations"] == best.outcome.iterations
    assert tuning.model.factors == best.factors and tuning.model.n_users == 240
    again = WALS(**tuning.best_settings).fit(likes)
    assert np.array_equal(again.item_factors, tuning.model.item_factors)


def test_what_is_found_beats_popularity_and_bad_settings(tuning, likes):
    compared = tuning.comparison
    assert tuning.best_score == compared.best and compared.users > 100
    assert compared.best.value > compared.popularity.value
    assert compared.gain.value == pytest.approx(compared.best.value - compared.default.value)
    assert compared.gain.low <= compared.gain.value <= compared.gain.high
    bad = WALS.tune(likes, None, trials=3, space=SMALL | {"regularization": (50, 100)}, test=0, num_threads=1)
    best = [max(one.outcome.score for one in found.trials) for found in (bad, tuning)]  # of the factors alone
    assert best[0] < best[1]
    assert bad.comparison is None and bad.best_score is None


def made_up(factors, score, number=0, **settings):
    """A trial with a score of our choice."""
    outcome = Outcome(score, 0.0, 3, score, (score,), True, 0.01)
    return Finished(number, {"factors": factors, **settings}, outcome)


def test_what_was_lucky_in_the_search_is_not_chosen(likes):
    """Of trials with scores from nowhere, the good settings come first on splits that chose none of them."""
    problem = Problem(WALS, {"num_threads": 1}, Parts.divide(as_interactions(likes), 0.1, 0.0, 0), "ndcg@5", 0)
    bad = [made_up(4, 0.9 + n / 1000, n, regularization=200.0 + n) for n in range(25)]
    good = made_up(8, 0.92, 25, regularization=0.02)
    found = confirm(problem, [*bad, good])
    assert found[0].trial is good and found[0].score > 1.05 * found[1].score and len(found) == 2
    assert found[0].settled().outcome.score == found[0].score and found[0].iterations > 1
    assert len(found[0].scores) == 16 and len(set(found[0].scores)) > 8  # other splits each time
    assert [one.scores for one in confirm(problem, [*bad, good])] == [one.scores for one in found]
    assert confirm(problem, bad[:19]) == []  # too few for two
    assert confirm(problem, [*bad, good], seconds=0.0) == []
    later = pd.DataFrame({"user_id": [1, 1, 2, 2, 1], "item_id": [1, 2, 1, 2, 3], "time": range(5)})
    of_times = Parts.divide(as_interactions(later, time_column="time"), 0.3, 0.0, 0)
    assert confirm(Problem(WALS, {}, of_times, "ndcg@5", 0), [*bad, good]) == []


def test_every_number_of_factors_that_is_near_is_measured_again(likes):
    problem = Problem(WALS, {"num_threads": 1}, Parts.divide(as_interactions(likes), 0.1, 0.0, 0), "ndcg@5", 0)
    trials = [made_up(4, 0.5 + n / 1e4, n, regularization=0.02) for n in range(30)]
    trials += [made_up(8, 0.4999, 30), made_up(16, 0.48, 31)]
    assert list(near_ranks(trials)) == [4, 8]
    found = confirm(problem, trials)
    assert sorted(one.trial.factors for one in found) == [4, 4, 8]


def test_what_is_chosen_was_measured_again(likes):
    options = {"space": SMALL, "test": 0, "neighbors": 0, "refit": False}
    found = WALS.tune(likes, None, trials=22, num_threads=1, **options)
    again = WALS.tune(likes, None, trials=22, num_threads=2, **options)
    assert len(found.confirmed) == 2 and found.validation_score == found.confirmed[0].score
    assert found.best_settings["iterations"] == found.confirmed[0].iterations
    assert "measured on 16 more splits" in str(found)
    assert [one.scores for one in again.confirmed] == [one.scores for one in found.confirmed]
    assert again.config == found.config


def test_numbers_of_factors_that_are_near_take_turns(likes):
    """The best one every other time, the rest as they are cheap; one that is clearly worse never."""
    problem = Problem(WALS, {"num_threads": 1}, Parts.divide(as_interactions(likes), 0.1, 0.0, 0), "ndcg@5", 0)
    space = make_space(WALS().get_params(), {}, {"factors": [4, 8, 16]}, likes, any_number)
    search = Search(problem, space, open_study(None, "one", {}), Budget(None, 100, 0.0), 0)
    trials = [made_up(4, 0.5), made_up(8, 0.498, 1), made_up(16, 0.49, 2)]
    rng = np.random.default_rng(0)
    ranks = [search._rank(trials, rng) for _ in range(400)]
    assert set(ranks) == {4, 8} and 150 < ranks.count(8) < 250


def test_defaults_are_the_first_trial(tuning):
    first = tuning.trials[0].settings
    objective = WALS().objective
    assert (first["background"], first["nu"]) == (objective.background, objective.nu)
    assert first["factors"] == 4  # the fewest


def test_more_factors_are_tried_with_the_best_of_fewer(tuning):
    few = [one for one in tuning.trials if one.factors == 4]
    first_of_more = next(one for one in tuning.trials if one.factors == 8)
    best = max(
        (one for one in few if one.outcome.is_whole and one.number < first_of_more.number),
        key=lambda one: one.outcome.score,
    )
    assert first_of_more.settings == best.settings | {"factors": 8}


def test_same_seed_and_trials_same_result_with_any_number_of_threads(tuning, likes):
    again = WALS.tune(likes, None, trials=14, space=SMALL, num_threads=2, refit=False)
    assert of(again) == of(tuning) and again.model is None
    other = WALS.tune(likes, None, trials=14, space=SMALL, num_threads=1, random_state=1, refit=False)
    assert of(other) != of(tuning)


def test_a_search_goes_on_where_it_ended(likes, tmp_path):
    where = {"space": SMALL, "num_threads": 1, "refit": False, "storage": tmp_path / "search.db"}
    before = WALS.tune(likes, None, trials=3, test=0, **where)
    after = WALS.tune(likes, None, trials=9, test=0, **where)
    assert len(before.trials) == 3 and of(after)[:3] == of(before)
    assert [one.number for one in after.trials] == list(range(9))
    assert WALS.tune(likes, None, trials=5, test=0, **where).validation_score == after.validation_score  # none was made
    # As if it had not been interrupted.
    where["storage"] = None
    assert of(WALS.tune(likes, None, trials=9, test=0, **where)) == of(after)


def test_the_storage_of_another_search_is_refused(likes, tmp_path):
    where = {"num_threads": 1, "refit": False, "storage": tmp_path / "search.db", "test": 0}
    WALS.tune(likes, None, trials=1, space=SMALL, **where)
    for change, named in (
        ({"space": {"factors": [4]}}, "space"),
        ({"space": SMALL, "metric": "recall@5"}, "metric"),
        ({"space": SMALL, "nu": 0.5}, "settings"),
    ):
        with pytest.raises(
            ValueError, match=rf"storage cannot be .*search.db, which holds a search with other .*{named}"
        ):
            WALS.tune(likes, None, trials=1, **(where | change))
    with pytest.raises(ValueError, match="search with other data"):
        WALS.tune(likes[:200], None, trials=1, space=SMALL, **where)


def test_any_name_of_a_storage_is_that_of_its_file(likes, tmp_path):
    name = "one two?three%25.db"
    WALS.tune(likes, None, trials=1, storage=tmp_path / name, space=SMALL, num_threads=1, test=0, refit=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_message_has_the_password_of_a_storage(likes, monkeypatch):
    monkeypatch.setattr("wals_gpu.tuning.search.time.sleep", lambda seconds: None)
    with pytest.raises(ValueError, match=r"storage cannot be mysql://me:\*\*\*@127.0.0.1:1/trials: ") as caught:
        WALS.tune(likes, None, trials=1, storage="mysql://me:se@cret@127.0.0.1:1/trials")
    assert "cret" not in str(caught.value)


def test_exponents_do_not_leave_their_range():
    trials = [
        Finished(number, {"factors": 4}, Outcome(0.5, exponent, 3, 0.5, (0.5,), True, 1.0))
        for number, exponent in enumerate((0.98, 1.0, 0.97))
    ]
    assert exponents_near(trials) == [0.95, 1.0, 1.0, 1.0]
    assert exponents_near(trials[:2]) is None


def test_a_storage_that_is_none(likes, tmp_path):
    (tmp_path / "notes.txt").write_text("these are no trials, " * 100)
    with pytest.raises(ValueError, match=r"storage cannot be .*notes.txt: "):
        WALS.tune(likes, None, trials=1, storage=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text().startswith("these are no trials")
    with pytest.raises(ValueError, match="storage must be a file"):
        WALS.tune(likes, None, trials=1, storage=tmp_path)
    with pytest.raises(TypeError, match=r"storage must be a str or a pathlib\.Path, got 5"):
        WALS.tune(likes, None, trials=1, storage=5)
    with pytest.raises(ValueError, match="storage must be a file in a folder"):
        WALS.tune(likes, None, trials=1, storage=tmp_path / "none" / "search.db")


def test_a_text_is_no_answer_to_whether_to_refit(likes):
    with pytest.raises(TypeError, match="refit must be True or False, got 'no'"):
        WALS.tune(likes, None, trials=1, refit="no")


def test_a_budget_of_time_ends_the_search(likes):
    found = WALS.tune(likes, "1.5s", space=SMALL, num_threads=1)
    assert 1 <= len(found.trials) and found.seconds < 30
    assert WALS.tune(likes, 1e-6, space=SMALL, num_threads=1, test=0).trials  # one at least


def test_settings_that_are_given_are_not_searched(likes):
    found = WALS.tune(likes, None, trials=3, factors=6, nu=0.25, num_threads=1, test=0)
    assert {one.factors for one in found.trials} == {6}
    assert found.best_settings["nu"] == 0.25 and "nu" not in found.trials[0].settings
    assert found.model.objective.nu == 0.25 and found.model.factors == 6


def test_a_search_begins_with_the_regularization_that_a_fit_would_have(likes):
    few = make_space(WALS().get_params(), {}, {}, likes, any_number).start
    many = make_space(WALS().get_params(), {}, {}, csr_matrix((30, 5000), dtype=np.float32), any_number).start
    assert few["regularization"] == WALS(4).fit(likes).regularization_ > many["regularization"] == 0.0117
    own = make_space(WALS().get_params(), {}, {"regularization": (0.001, 1, "log")}, likes, any_number)
    assert own.start == few


def test_damping_is_searched_only_where_values_differ(likes):
    space = make_space(WALS().get_params(), {}, {}, likes, any_number)
    assert "damping" not in space.start and {"background", "regularization", "nu"} <= set(space.start)
    counts = likes.copy()
    counts.data[::3] = 5
    assert "damping" in make_space(WALS().get_params(), {}, {}, counts, any_number).start


def test_another_objective_with_ranges_of_ones_own(likes):
    found = WALS.tune(
        likes, None, trials=4, objective="hu", space=SMALL | {"alpha": (1, 100, "log")}, num_threads=1, test=0
    )
    assert found.model.objective.name == "hu" and 1 <= found.model.objective.alpha <= 100
    assert "background" not in found.trials[0].settings


def test_parameters_of_a_prior_are_searched(likes):
    prior = LinearPrior(np.eye(6)[np.arange(60) % 6], strength=2.0)
    space = {"item_prior.strength": (0.1, 10, "log"), "item_prior.ridge": (0.5, 5)}
    found = WALS.tune(likes, None, trials=9, factors=4, item_prior=prior, space=space, test=0, num_threads=1)
    assert found.trials[0].settings["item_prior.strength"] == 2 and prior.strength == 2
    strengths = [one.settings["item_prior.strength"] for one in found.trials]
    assert len(set(strengths)) > 1 and 0.1 <= min(strengths) <= max(strengths) <= 10
    best = max((one for one in found.trials if one.outcome.is_whole), key=lambda one: one.outcome.score)
    assert found.best_settings["item_prior"].strength == best.settings["item_prior.strength"]
    assert found.model.item_prior.ridge == best.settings["item_prior.ridge"]
    for wrong in ("item_prior.strenght", "user_prior.strength", "prior.strength"):
        with pytest.raises(ValueError, match=f"space has no number '{wrong}'"):
            WALS.tune(likes, None, trials=1, item_prior=prior, space={wrong: (1, 2)})


def test_embeddings_with_ids_are_found_by_these(likes):
    users, items = likes.nonzero()
    names = np.array([f"i{(7 * item) % 60:02}" for item in range(60)])
    named = as_interactions(pd.DataFrame({"user_id": users, "item_id": names[items]}))
    features = np.eye(6)[np.arange(60) % 6]
    settings = {"trials": 1, "factors": 4, "test": 0, "num_threads": 1, "refit": False}
    by_id = WALS.tune(named, None, item_prior=LinearPrior((names, features)), **settings)
    by_row = WALS.tune(named.matrix, None, item_prior=LinearPrior(features[np.argsort(names)]), **settings)
    assert by_id.validation_score == by_row.validation_score


def test_numbers_of_factors_follow_data_and_memory(likes):
    assert make_space(WALS().get_params(), {}, {}, likes, any_number).ranks == (32, 64)
    few = make_space(WALS().get_params(), {}, {}, csr_matrix((10, 5000)), any_number)
    assert few.ranks == (10,)
    large = csr_matrix((9000, 9000))
    assert make_space(WALS().get_params(), {}, {}, large, lambda factors: factors < 300).ranks == (32, 64, 128, 256)
    with pytest.raises(ValueError, match="numbers that a model can have"):
        WALS.tune(likes, None, trials=1, space={"factors": [8, 10**7]})


def test_edges_are_named(likes):
    found = WALS.tune(
        likes, None, trials=4, space={"factors": [4, 8], "regularization": (40, 40.001)}, num_threads=1, test=0
    )
    end = "high" if found.best_settings["factors"] == 8 else "low"
    assert found.edges["factors"] == end
    assert any(f"factors is at the {end} end of its range (4 ... 8)" in note for note in found.notes)
    parameter = Parameter("x", 1, 100, log=True)
    assert (parameter.edge(1.1), parameter.edge(10), parameter.edge(99)) == ("low", None, "high")
    assert parameter.value(0.5) == pytest.approx(10) and parameter.place(10) == pytest.approx(0.5)


def test_noise_is_said_to_be_noise(likes):
    """The only setting there is to choose hardly matters."""
    narrow = {"over_relaxation": (1, 1.0001)}
    fixed = {name: value for name, value in WALS().objective.parameters().items()}
    found = WALS.tune(likes, None, trials=2, factors=8, init_scale=0.1, space=narrow, num_threads=1, **fixed)
    assert found.comparison.is_noise and any("noise explains" in note for note in found.notes)


def test_the_latest_interactions_are_held_out_where_there_are_times(likes):
    entries = likes.tocoo()
    table = pd.DataFrame({"user": entries.row, "item": entries.col, "time": np.arange(entries.nnz) % 97})
    data = as_interactions(table, time_column="time")
    parts = Parts.divide(data, 0.1, 0.1, 0)
    assert parts.by_time
    assert parts.train.times.max() <= parts.valid.times.min() <= parts.valid.times.max() <= parts.test.times.min()
    assert parts.train.matrix.nnz + parts.valid.matrix.nnz + parts.test.matrix.nnz == data.matrix.nnz
    found = WALS.tune(table, None, trials=2, space=SMALL, time_column="time", num_threads=1)
    assert "the latest interactions were held out" in found.notes[0]
    assert found.model.user_ids is not None
    assert not Parts.divide(as_interactions(table), 0.1, 0.1, 0).by_time
    same = as_interactions(table.assign(time=7), time_column="time")
    assert not Parts.divide(same, 0.1, 0.1, 0).by_time


def test_where_users_come_and_go_each_ones_latest_are_held_out(likes, monkeypatch):
    """Of the last days alone, hardly anybody was there before; times of a user are in no order of the columns."""
    monkeypatch.setattr("wals_gpu.tuning.problem._ENOUGH", 4000)
    entries = likes.tocoo()
    minutes = np.random.default_rng(4).permutation(entries.nnz)
    table = pd.DataFrame({"user": entries.row, "item": entries.col, "time": 10**6 * entries.row + minutes})
    parts = Parts.divide(as_interactions(table, time_column="time"), 0.1, 0.1, 0)
    assert parts.by_time and parts.held == "latest of each user"
    size = np.diff(parts.whole.matrix.indptr)
    assert (np.diff(parts.test.matrix.indptr) == np.where(size > 1, np.maximum(1, size // 10), 0)).all()

    def of_users(part, edge):
        times = np.full(len(size), np.nan)
        edge.at(times, np.repeat(np.arange(len(times)), np.diff(part.matrix.indptr)), part.times)
        return times

    for earlier, later in ((parts.train, parts.valid), (parts.valid, parts.test)):
        last, first = of_users(earlier, np.fmax), of_users(later, np.fmin)
        assert (last < first)[np.isfinite(last) & np.isfinite(first)].all()
    problem = Problem(WALS, {}, parts, "ndcg@10", 0)
    entries_of = [split.train.nnz for split in problem.splits]
    assert len(entries_of) > 1 and entries_of == sorted(set(entries_of), reverse=True)  # window before window
    for split in problem.splits:
        assert split.train.multiply(split.valid).nnz == 0
    found = WALS.tune(table, None, trials=2, space=SMALL, time_column="time", num_threads=1)
    assert found.notes[0].startswith("each user's latest interactions")


def test_no_trial_sees_the_test_part(likes):
    parts = Parts.divide(as_interactions(likes), 0.2, 0.25, 3)
    assert parts.train.matrix.multiply(parts.test.matrix).nnz == 0
    assert parts.valid.matrix.multiply(parts.test.matrix).nnz == 0
    assert parts.search.matrix.nnz == pytest.approx(0.75 * likes.nnz, abs=1)
    assert parts.valid.matrix.nnz == pytest.approx(0.2 * likes.nnz, abs=1)


def test_a_score_is_that_of_the_fit_it_stands_for(likes):
    parts = Parts.divide(as_interactions(likes), 0.2, 0, 0)
    problem = Problem(WALS, {"num_threads": 1}, parts, "ndcg@20", 0)
    chosen = {"factors": 8, "regularization": 0.02}
    outcome = problem.measure(chosen)
    model = WALS(**chosen, iterations=outcome.iterations)
    known = np.diff(parts.train.matrix.indptr) > 0  # others get what is popular from every model
    asked = parts.valid.matrix.multiply(known[:, None]).tocsr()
    model.fit(parts.train, validation=asked, metric="ndcg@20")
    assert outcome.curve[outcome.iterations - 1] == model.history_[outcome.iterations - 1].validation
    assert outcome.score >= max(outcome.curve) == outcome.curve[outcome.iterations - 1]
    fixed = Problem(WALS, {"num_threads": 1, "popularity_exponent": 0.3}, parts, "ndcg@20", 0).measure(chosen)
    assert fixed.popularity_exponent in (0, 0.3) and fixed.score != outcome.score


def test_few_users_are_asked_several_times(likes, monkeypatch):
    monkeypatch.setattr("wals_gpu.tuning.problem._ENOUGH", 4000)
    parts = Parts.divide(as_interactions(likes), 0.2, 0, 0)
    several = Problem(WALS, {"num_threads": 1}, parts, "ndcg@20", 0)
    chosen = {"factors": 8, "regularization": 0.02}
    whole, hopeless = several.measure(chosen), several.measure(chosen, worth=0.99)
    assert len(several.splits) == 4 and whole.is_whole and whole.score != whole.first
    assert not hopeless.is_whole and hopeless.score == hopeless.first == whole.first
    monkeypatch.setattr("wals_gpu.tuning.problem._ENOUGH", 1)
    once = Problem(WALS, {"num_threads": 1}, parts, "ndcg@20", 0)
    assert len(once.splits) == 1 and once.measure(chosen).score == whole.first


def test_ridge_and_background_do_not_fight():
    """Where one background takes the place of another, the ridge of the same place is the same share of the entries."""
    space = make_space(WALS().get_params(), {}, {}, csr_matrix(np.eye(300)), any_number)
    places = space.places(space.start)
    low, high = (space.at(places | {"background": place}) for place in (0.1, 0.9))
    ridges = [point["regularization"] * (1 + point["background"]) for point in (low, high)]
    assert ridges[0] == pytest.approx(ridges[1], rel=1e-3) and low["regularization"] > 3 * high["regularization"]
    for point in space.known():
        assert space.at(space.places(point)) == pytest.approx(point, rel=1e-3)
        assert space.of_params(space.params(point)) == pytest.approx(point, rel=1e-3)


def test_what_is_saved_makes_the_same_model(tuning, likes, tmp_path):
    path = tmp_path / "best.json"
    path.write_text("an earlier one")
    tuning.save(path)
    model = WALS.from_config(path).fit(likes)
    assert np.array_equal(model.item_factors, tuning.model.item_factors)
    assert "num_threads" not in json.loads(path.read_text())  # of this machine
    assert tuning.command("my plays.csv", path).startswith("wals-gpu fit 'my plays.csv' --settings ")
    with pytest.raises(FileNotFoundError, match=r"none/best\.json'$"):  # no temporary file beside it
        tuning.save(tmp_path / "none" / "best.json")
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]


def test_tables_and_words(tuning):
    table = tuning.trials.to_pandas()
    assert len(table) == 14 and table["score"][table["whole"]].max() == tuning.validation_score
    assert {"trial", "score", "background", "factors", "iterations", "seconds"} <= set(table.columns)
    for text in (str(tuning), tuning._repr_html_()):
        assert "popularity" in text and "best - default" in text and "held out" in text
    assert json.loads(json.dumps(tuning.to_dict()))["trials"] == 14
    assert "background" in str(tuning.trials) and "<table>" in tuning.trials._repr_html_()


def test_pictures(tuning):
    pytest.importorskip("matplotlib").use("Agg")
    figure = tuning.plot_slices(["nu", "factors"])
    assert [ax.get_xlabel() for ax in figure.axes] == ["nu", "factors"]
    with pytest.raises(ValueError, match="settings must be of"):
        tuning.plot_slices(["momentum"])
    with pytest.raises(ValueError, match="needs 10 trials"):
        tuning.plot_importance()


def test_importance(likes):
    pytest.importorskip("matplotlib").use("Agg")
    found = WALS.tune(likes, None, trials=24, factors=4, num_threads=1, test=0, refit=False)
    shares = found.importance()
    assert set(shares) == set(found.trials[0].settings) - {"factors"}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert len(found.plot_importance().patches) == len(shares)


def test_ctrl_c_keeps_the_best(likes):
    def interrupt(trials):
        if len(trials) == 3:
            signal.raise_signal(signal.SIGINT)

    found = WALS.tune(likes, None, trials=50, space=SMALL, callback=interrupt, num_threads=1)
    assert found.interrupted and len(found.trials) == 3 and found.model is not None
    assert any("Ctrl-C" in note for note in found.notes)


def test_a_trial_that_cannot_be_fitted_is_no_end(likes, monkeypatch):
    def measure(problem, chosen, *arguments):
        if len(calls) in fails:
            calls.append(chosen)
            raise ModelFitError("NaN came up")
        calls.append(chosen)
        return whole(problem, chosen, *arguments)

    whole, calls, fails = Problem.measure, [], {0, 2}
    monkeypatch.setattr(Problem, "measure", measure)
    with pytest.warns(ParameterWarning, match="failed: NaN came up"):
        found = WALS.tune(likes, None, trials=4, space=SMALL, num_threads=1, test=0)
    assert [one.outcome.score > 0 for one in found.trials] == [False, True, False, True]
    assert found.best_settings["nu"] in [found.trials[1].settings["nu"], found.trials[3].settings["nu"]]
    calls, fails = [], set(range(100))
    with pytest.warns(ParameterWarning), pytest.raises(ModelFitError, match="no trial could be fitted"):
        WALS.tune(likes, None, trials=4, space=SMALL, num_threads=1, test=0)
    assert len(calls) == 4


def test_a_callback_ends_the_search(likes):
    found = WALS.tune(likes, None, trials=50, space=SMALL, callback=lambda trials: len(trials) == 2, num_threads=1)
    assert len(found.trials) == 2 and not found.interrupted


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"budget": "soon"}, ValueError, "budget must be a length of time above 0.*'2min'.*got 'soon'"),
        ({"budget": 0}, ValueError, "budget must be a length of time above 0"),
        ({"budget": "2 months"}, ValueError, "budget must be"),
        ({"budget": [2]}, TypeError, "budget must be"),
        ({"budget": None}, ValueError, "budget and trials are both None"),
        ({"trials": 0}, ValueError, "trials must be an integer >= 1"),
        ({"metric": "auc"}, ValueError, "metric must be one of"),
        ({"validation": 0}, ValueError, "validation must lie in"),
        ({"validation": 0.6, "test": 0.5}, ValueError, "validation and test together must be below 1"),
        ({"test": 1}, ValueError, "test must be"),
        ({"space": [1]}, TypeError, "space must be a dict of ranges"),
        ({"space": {5: (0, 1)}}, TypeError, "space must be a dict of ranges by the names of settings, got the key 5"),
        ({"space": {"backgroud": (1, 2)}}, ValueError, "no number 'backgroud'.*did you mean 'background'"),
        ({"space": {"nu": (1, 0)}}, ValueError, "space: nu must be"),
        ({"space": {"nu": (0, 1, "log")}}, ValueError, "a 'log' range begins above 0"),
        ({"space": {"nu": 0.5}}, TypeError, "space: nu must be"),
        ({"space": {"factors": (0, 2)}}, ValueError, "space: each of factors must be an integer >= 1"),
        ({"space": {"nu": (0, 1)}, "nu": 0.5}, ValueError, "space has nu, which is given as a setting too"),
        ({"factr": 8}, TypeError, "WALS has no setting factr"),
        ({"iterations": 5}, TypeError, "iterations are found by tune"),
        ({"random_state": None}, TypeError, "random_state must be an integer"),
        ({"callback": 3}, TypeError, "callback must be callable"),
    ],
)
def test_bad_arguments(likes, arguments, error, message):
    with pytest.raises(error, match=message):
        WALS.tune(likes, **arguments)


def test_nothing_to_hold_out():
    with pytest.raises(DataError, match=r"(test|validation)=0.1.* of . interactions leaves none"):
        WALS.tune(csr_matrix([[1.0, 0, 1], [0, 1, 0]]), None, trials=1)


def test_without_optuna_the_extra_is_named(likes, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'wals_gpu\[tune\]'"):
        WALS.tune(likes, None, trials=1)


def test_optunas_settings_stay_as_they_were(likes):
    before = optuna.logging.get_verbosity()
    WALS.tune(likes, None, trials=1, space=SMALL, num_threads=1, test=0, refit=False)
    assert optuna.logging.get_verbosity() == before


def test_the_splits_are_those_of_the_evaluation(likes):
    train, _ = random_holdout(likes, 0.2, 0)
    assert Parts.divide(as_interactions(likes), 0.1, 0.2, 0).search.matrix.nnz == train.nnz
    times = np.arange(likes.nnz, dtype=float)
    kept, _ = temporal_split(likes, times, fraction=0.2)
    assert kept.nnz == pytest.approx(0.8 * likes.nnz, abs=1)
