"""Settings from a file (--config), help that states the library's defaults, and fits that begin with another model."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import QUICK, command_parsers

from wals_gpu.cli.entry import make_parser
from wals_gpu.cli.settings import default_of, fill_settings
from wals_gpu.model.wals import HYBRID_SETTINGS, WALS

pytest_plugins = ["cli_fixtures"]


def settings_of(*words):
    args = make_parser().parse_args([str(word) for word in words])
    fill_settings(args)
    return args


@pytest.fixture
def config(tmp_path):
    """The settings of a model in a file, as Python writes them."""
    path = tmp_path / "settings.json"
    model = WALS(5, "ials", iterations=4, unobserved_weight=0.2, nu=0.5, dtype="float64", random_state=3, cg_steps=2)
    path.write_text(json.dumps(model.to_config()))
    return path


def test_fit_with_a_config_fits_what_the_library_would(run, plays, config, tmp_path):
    assert run("fit", plays, "--out", tmp_path / "m", "--config", config, "--quiet")[::2] == (0, "")
    loaded, expected = WALS.load(tmp_path / "m"), WALS.from_config(config).fit(plays)
    assert loaded.objective == expected.objective and loaded.cg_steps == 2
    assert loaded.item_factors.dtype == np.float64
    assert np.array_equal(loaded.item_factors, expected.item_factors)


def test_options_go_before_the_config(config):
    words = ["fit", "plays.csv", "--out", "m", "--config", config]
    args = settings_of(*words)
    assert (args.seed, args.dtype, args.device, args.threads, args.factors) == (3, "float64", "auto", 0, 5)
    assert args.settings["unobserved_weight"] == 0.2 and args.settings["nu"] == 0.5
    args = settings_of(*words, "--seed", 9, "--dtype", "float32", "--factors", 7, "--set", "nu=1", "--threads", 2)
    assert (args.seed, args.dtype, args.threads) == (9, "float32", 2)
    model = WALS(**args.settings)
    assert (model.factors, model.iterations, model.random_state, model.num_threads) == (7, 4, 9, 2)
    assert (model.objective.nu, model.objective.unobserved_weight) == (1, 0.2)


def test_another_objective_leaves_the_parameters_of_the_one_in_the_config(config):
    words = ["fit", "plays.csv", "--out", "m", "--config", config]
    model = WALS(**settings_of(*words, "--objective", "hu", "--set", "alpha=3").settings)
    assert (model.objective.name, model.objective.alpha, model.factors) == ("hu", 3, 5)
    model = WALS(**settings_of(*words, "--objective", "ials").settings)
    assert model.objective.unobserved_weight == 0.2


def test_a_config_may_hold_a_part(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('\ufeff{"factors": 3, "objective": "hu", "alpha": 2}')
    model = WALS(**settings_of("evaluate", "plays.csv", "--config", path).settings)
    assert (model.factors, model.objective.name, model.objective.alpha) == (3, "hu", 2)
    path.write_text("{}")
    args = settings_of("evaluate", "plays.csv", "--config", path)
    assert WALS(**args.settings).to_config() == WALS().to_config()
    assert (args.seed, args.dtype) == (0, "float32")
    path.write_text('{"background": 5}')  # of the default objective
    assert (
        WALS(**settings_of("evaluate", "p", "--config", path, "--objective", "wals").settings).objective.background == 5
    )


def test_evaluate_takes_a_config(run, plays, config):
    status, text, _ = run("evaluate", plays, "--config", config, "-k", 3, "--quiet", "--json")
    said = json.loads(text)
    assert status == 0
    assert said["objective"] == {"name": "ials", "regularization": 0.003, "unobserved_weight": 0.2, "nu": 0.5}
    assert said["seed"] == 3


@pytest.mark.parametrize("words", [(), ("--set", "regularization=auto")])
def test_the_regularization_that_was_found_is_said(run, plays, tmp_path, words):
    expected, short = WALS(4, iterations=2).fit(plays), ["--factors", "4", "--iterations", "2", "--quiet"]
    status, text, _ = run("fit", plays, "--out", tmp_path / "m", *words, *short, "--json")
    said = json.loads(text)
    assert status == 0 and said["objective"]["regularization"] == "auto"
    assert said["regularization"] == expected.regularization_ > 0.0117
    assert WALS.load(tmp_path / "m").regularization_ == expected.regularization_
    status, text, _ = run("fit", plays, "--out", tmp_path / "n", "--set", "regularization=0.0117", *short, "--json")
    assert json.loads(text)["regularization"] == json.loads(text)["objective"]["regularization"] == 0.0117
    _, text, _ = run("fit", "--help")
    assert "regularization=auto, background=8.0" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"factors": 0}', "c.json: factors must be an integer from 1 to 8192, got 0"),
        ('{"iteration": 5}', "c.json: a config has no setting 'iteration'; did you mean 'iterations'?"),
        ('{"objective": {"name": "ials", "alhpa": 1}}', "c.json: objective 'ials' has no parameter 'alhpa'"),
        ('{"factors": 5,}', "c.json is not JSON: "),
        ("[]", "c.json: a config must be an object of settings by name"),
        ("", "c.json is not JSON: "),
        (None, "no config at c.json"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(run, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    status, text, said = run("fit", "nowhere.csv", "--out", "m", "--config", "c.json")
    assert (status, text) == (2, "") and message in said and said.count("\n") == 1


def test_set_is_for_parameters_of_the_objective(run):
    said = run("fit", "nowhere.csv", "--out", "m", "--set", "factors=3")[2]
    assert "factors is a setting of the model, which has the option --factors" in said
    said = run("fit", "nowhere.csv", "--out", "m", "--set", "cg_steps=3")[2]
    assert said.endswith("cg_steps is a setting of the model; --settings takes it\n")


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_help_states_the_defaults_of_the_library(command):
    text = " ".join(command_parsers()[command].format_help().split())
    for setting in ("factors", "iterations", "objective", "solver", "random_state"):
        assert f"default {default_of(setting)}" in text
    for setting, value in HYBRID_SETTINGS.items():
        assert value == default_of(setting) or f"default {default_of(setting)}; with --encoder {value}" in text


# ---------------------------------------------------------------------------------------------------------- warm start


def test_a_fit_begins_with_another_model(run, plays, model, tmp_path):
    """Also where some are new; the same as in Python, and not what a fit from the start gives."""
    table = pyarrow.parquet.read_table(plays)
    more = pa.table({"user_id": ["new", "p00"], "item_id": ["s00", "new song"], "count": [2.0, 1.0], "time": [9, 9]})
    pyarrow.parquet.write_table(pa.concat_tables([table, more]), tmp_path / "more.parquet")
    options = [*QUICK, "--iterations", 1]
    words = ["fit", tmp_path / "more.parquet", "--out", tmp_path / "m", *options, "--warm-start", model]
    assert run(*words)[::2] == (0, "")
    expected = WALS(8, "hu", alpha=10, iterations=1).fit(tmp_path / "more.parquet", warm_start=WALS.load(model))
    found = WALS.load(tmp_path / "m")
    assert np.array_equal(found.user_factors, expected.user_factors)
    assert run("fit", tmp_path / "more.parquet", "--out", tmp_path / "cold", *options)[0] == 0
    assert not np.allclose(found.user_factors, WALS.load(tmp_path / "cold").user_factors)


def test_a_model_can_be_replaced_by_what_begins_with_it(run, plays, model, tmp_path):
    assert run("fit", plays, "--out", tmp_path / "m", *QUICK)[0] == 0
    before = WALS.load(tmp_path / "m")
    assert run("fit", plays, "--out", tmp_path / "m", *QUICK, "--warm-start", tmp_path / "m")[0] == 0
    assert WALS.load(tmp_path / "m").history_[-1].loss < before.history_[-1].loss


def test_a_model_that_no_fit_can_begin_with_is_refused_before_any_work(run, plays, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run("fit", plays, "--out", "m", *QUICK, "--factors", 5, "--warm-start", model)[2]
    assert said == (
        "wals-gpu: error: --warm-start needs a model of as many factors: it has 8, this fit 5; --factors 8 makes them "
        "the same\n"
    )
    for path, message in (
        ("none", "no model folder at none"),
        (plays, "--warm-start must be a folder that 'wals-gpu fit' saved"),
        (model / "model.json", "--warm-start must be a folder that 'wals-gpu fit' saved"),
    ):
        status, _, said = run("fit", "nowhere.csv", "--out", "m", *QUICK, "--warm-start", path)
        assert status == 2 and message in said and said.count("\n") == 1


def test_a_popularity_exponent_is_fitted_saved_and_used(run, plays, tmp_path):
    assert run("fit", plays, "--out", tmp_path / "m", *QUICK, "--popularity-exponent", "0.5")[::2] == (0, "")
    model = WALS.load(tmp_path / "m")
    assert model.popularity_exponent == model.popularity_exponent_ == 0.5
    status, text, _ = run("recommend", tmp_path / "m", "p00", "--json")
    assert status == 0
    ids, scores = model.recommend("p00")
    pairs = json.loads(text)[0]["items"]
    assert [pair["item"] for pair in pairs] == [one for one in ids if one is not None]
    np.testing.assert_allclose([pair["score"] for pair in pairs], scores[: len(pairs)], rtol=1e-4)


def test_the_exponent_of_a_config_is_the_models_and_an_option_goes_before_it(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(WALS(4, popularity_exponent="auto").to_config()))
    words = ["fit", "plays.csv", "--out", "m", "--config", path]
    assert settings_of(*words).settings["popularity_exponent"] == "auto"
    assert settings_of(*words, "--popularity-exponent", "-0.05").settings["popularity_exponent"] == -0.05
    assert "popularity_exponent" not in settings_of("fit", "plays.csv", "--out", "m").settings


def test_an_exponent_that_validation_chose_is_told(run, plays, tmp_path):
    words = ["fit", plays, *QUICK, "--popularity-exponent", "auto", "--validation", "0.3", "--metric", "ndcg@5"]
    status, text, _ = run(*words, "--out", tmp_path / "m")
    chosen = WALS.load(tmp_path / "m").popularity_exponent_
    assert status == 0
    assert f"popularity exponent {chosen:g}\n" in text
    status, text, _ = run(*words, "--out", tmp_path / "n", "--json")
    assert json.loads(text)["popularity_exponent"] == chosen
    (tmp_path / "settings.json").write_text(json.dumps({"popularity_exponent": "auto"}))
    status, _, said = run("fit", plays, "--out", tmp_path / "o", "--config", tmp_path / "settings.json")
    assert (status, said.splitlines()[0]) == (
        2,
        "wals-gpu: error: --popularity-exponent auto needs --validation, by which it is chosen; or give a number",
    )


def test_neighbors_are_fitted_saved_and_used(run, plays, tmp_path):
    words = ["--neighbors", "3", "--neighbor-weight", "2.5", "--neighbor-regularization", "4"]
    assert run("fit", plays, "--out", tmp_path / "m", *QUICK, *words)[::2] == (0, "")
    model = WALS.load(tmp_path / "m")
    assert (model.neighbors, model.neighbor_weight, model.neighbor_regularization) == (3, 2.5, 4.0)
    status, text, _ = run("recommend", tmp_path / "m", "p00", "--json")
    assert status == 0
    ids, _ = model.recommend("p00")
    assert [pair["item"] for pair in json.loads(text)[0]["items"]] == [one for one in ids if one is not None]
    status, _, said = run("fit", plays, "--out", tmp_path / "n", *QUICK, "--neighbors", "-1")
    assert status == 2 and "--neighbors must be" in said and not (tmp_path / "n").exists()
