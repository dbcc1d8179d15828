"""Settings of an item prior that a search chooses, and the files and commands that carry them on."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.interactions import Interactions
from wals_gpu.priors import LinearPrior

pytest.importorskip("optuna")
pytest_plugins = ["cli_fixtures"]

QUICK = {"trials": 2, "factors": 6, "num_threads": 1, "neighbors": 0}


@pytest.fixture(scope="module")
def tastes():
    """240 people of six tastes and 60 items: whom an item pleases is its number modulo six."""
    rng = np.random.default_rng(5)
    same = np.arange(240)[:, None] % 6 == np.arange(60) % 6
    return csr_matrix((rng.random((240, 60)) < np.where(same, 0.5, 0.02)).astype("float32"))


KINDS = np.eye(6)[np.arange(60) % 6]


def test_features_that_say_nothing_are_turned_down_and_others_are_kept(tastes):
    noise = np.random.default_rng(0).normal(size=(60, 40))
    found = {}
    for name, features, strength in (("kinds", KINDS, 1.0), ("noise", noise, 300.0)):
        prior = LinearPrior(features, relative_strength=strength, ridge=0.01)
        found[name] = WALS.tune(tastes, None, item_prior=prior, **QUICK)
        choice = found[name].prior
        start = {"relative_strength": strength, "ridge": 0.01, "kernel": 0.0, "cold": "prior_mean"}
        assert choice.start.settings == start and prior.relative_strength == strength  # the user's own stays
        chosen = found[name].best_settings["item_prior"]
        assert {key: getattr(chosen, key) for key in choice.settings} == choice.settings
        assert found[name].model.item_prior_.prior.relative_strength == choice.relative_strength
        assert found[name].to_dict()["prior_trials"] == len(choice.trials) > 8
    assert found["kinds"].prior.relative_strength > 0 and np.mean(found["kinds"].prior.trial.cold_scores) > 0.5
    assert found["noise"].prior.relative_strength <= 3  # of 300; which of the small ones is a matter of rounding
    assert any("item_prior: " in note and "on each of 3 splits" in note for note in found["noise"].notes)
    assert np.greater(*(one.scores(0.25) for one in (found["noise"].prior.trial, found["noise"].prior.start))).all()


@pytest.mark.parametrize(
    "given",
    [{"strength": 2.0}, {"shrinkage": 1.0}, {"learn": "empirical_bayes"}],
    ids=lambda given: next(iter(given)),
)
def test_what_is_given_is_not_searched(tastes, given):
    found = WALS.tune(tastes, None, item_prior=LinearPrior(KINDS, **given), test=0, refit=False, **QUICK)
    assert found.prior is None and vars(found.best_settings["item_prior"]).items() >= given.items()


def test_the_prior_is_searched_beside_times_and_stays_where_items_are_too_few(tastes):
    options = {"test": 0, "refit": False} | QUICK
    plays = Interactions(tastes, times=np.random.default_rng(0).permutation(tastes.nnz))
    found = WALS.tune(plays, None, item_prior=LinearPrior(KINDS), **options)
    assert "latest" in found.notes[0] and "on each of 3 splits" in found.notes[-1]
    assert f"{found.prior.relative_strength:g}" == dict(found._lines())["item_prior.relative_strength"]
    few = WALS.tune(tastes[:, :4], None, item_prior=LinearPrior(KINDS[:4]), **options)
    assert "item_prior has the settings that it came with: fraction=0.1 of 4 items" in few.notes[-1]


def test_a_saved_search_gives_its_settings_to_models_with_features(tastes, tmp_path):
    found = WALS.tune(tastes, None, item_prior=LinearPrior(KINDS, ridge=7.0, votes="equal"), test=0, **QUICK)
    path = tmp_path / "best.json"
    found.save(path)
    again = WALS.hybrid(KINDS, None).fit(tastes, settings=path)
    assert np.array_equal(again.item_factors, found.model.item_factors)
    assert again.item_prior.to_config() == found.best_settings["item_prior"].to_config()
    assert LinearPrior(KINDS, **again.item_prior.to_config()).fingerprint() == again.item_prior.fingerprint()
    for make in (lambda: WALS.from_config(path), lambda: WALS().fit(tastes, settings=path)):
        with pytest.raises(ValueError, match="settings of an item_prior, whose features it cannot hold"):
            make()
    config = json.loads(path.read_text())
    config["item_prior"]["ridge"] = -1
    model = WALS.hybrid(KINDS, None)
    with pytest.raises(ValueError, match="item_prior: ridge"):
        model.fit(tastes, settings=config)
    assert model.item_factors is None and model.item_prior.ridge == 1


def test_from_texts_to_settings_to_a_model(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from text_models import tiny_roberta

    monkeypatch.chdir(tmp_path)
    tiny_roberta(tmp_path / "roberta", positions=140)
    words = ["numerical arrays", "plays music files"]
    names = [f"{kind}{n}" for kind in "am" for n in range(12)]
    pq.write_table(
        pa.table({"item_id": names, "text": [words[n // 12] + " more" * n for n in range(24)]}), "items.parquet"
    )
    rows = [(user, names[(user % 2) * 12 + n]) for user in range(40) for n in range(11) if (user + n) % 5]
    pq.write_table(pa.table({"user_id": [r[0] for r in rows], "item_id": [r[1] for r in rows]}), "plays.parquet")
    of_texts = ["--items", "items.parquet", "--encoder", "roberta", "--cache", "vectors"]
    tune = ["tune", "plays.parquet", "--trials", 2, "--factors", 4, "--neighbors", 0, "--quiet", "--threads", 1]
    status, out, err = run(*tune, *of_texts, "--out", "best.json")
    assert status == 0, err
    settings = json.loads((tmp_path / "best.json").read_text())["item_prior"]
    assert settings["votes"] == "equal" and "item_prior" in out
    _, *command = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert command[command.index("--items") :][:6] == of_texts
    assert run(*command, "--quiet")[0] == 0
    model = WALS.load("model")
    assert model.item_prior_.prior.relative_strength == settings["relative_strength"]
    assert sorted(model.item_ids.ids) == sorted(names)  # those that nobody has, too
    assert run(*command, "--quiet", "--relative-strength", 0.9)[0] == 0
    assert WALS.load("model").item_prior_.prior.relative_strength == 0.9
    without = [word for word in command if word not in of_texts]
    status, _, err = run(*without, "--quiet")
    assert status != 0 and "best.json has settings of item texts, which need --items and --encoder" in err
    status, _, err = run(*tune, "--items", "items.parquet", "--out", "other.json")
    assert status != 0 and "--items and --encoder belong together" in err
    status, _, err = run(*tune, "--text", "title", "--out", "other.json")
    assert status != 0 and "--text and --cache need --items and --encoder" in err
    said = run("evaluate", "plays.parquet", "--settings", "best.json", "--quiet", "-k", 5)[2]
    assert "--settings best.json has settings of item texts, and this is without texts" in said
