"""Nightly runs: what is measured, what is published, what is left when something goes wrong."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ParameterWarning, as_interactions
from wals_gpu.data import files
from wals_gpu.data.csr import contains, entry_keys
from wals_gpu.data.files import real_folder
from wals_gpu.evaluation import churn, evaluate
from wals_gpu.evaluation.metrics import row_metrics
from wals_gpu.publishing import BusyError, ModelFolder, publish
from wals_gpu.publishing import folder as folder_module
from wals_gpu.publishing.measure import NothingNewError, compare, hold_out

pytestmark = pytest.mark.filterwarnings("ignore::wals_gpu.ParameterWarning")

FIRST = np.datetime64("2026-01-01", "s")


def make_plays(days=(0, 20), seed=0, n=3000):
    """People of three tastes, songs of three kinds; a new person and a new song now and then."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.uniform(0, 30, n))
    users = (rng.random(n) * (60 + day)).astype(int)
    songs = (rng.random(n) * (30 + day / 5)).astype(int)
    songs = np.where(rng.random(n) < 0.8, songs // 3 * 3 + users % 3, songs)
    table = pd.DataFrame({"user": [f"u{u}" for u in users], "item": [f"s{s}" for s in songs]})
    table["time"] = FIRST + (day * 86400).astype("timedelta64[s]")
    return table[(day >= days[0]) & (day < days[1])].reset_index(drop=True)


def make_model(**settings):
    return WALS(**({"factors": 6, "iterations": 4, "num_threads": 1} | settings))


def interactions(table):
    return as_interactions(table, time_column="time")


def names(path):
    return sorted(entry for entry in os.listdir(path) if not entry.startswith("."))


# --- what is held out, and how it is measured ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_days():
    """Yesterday's model and today's interactions, with one that arrives late and an item that nobody had before."""
    yesterday = make_model().fit(make_plays((0, 20)), time_column="time")
    more = pd.DataFrame({"user": ["u1", "u2"], "item": ["late", "new"], "time": FIRST})
    more.loc[0, "time"] += np.timedelta64(5, "D")
    more.loc[1, "time"] += np.timedelta64(22 * 86400 - 60, "s")
    return yesterday, interactions(pd.concat([make_plays((0, 22)), more], ignore_index=True))


def pairs_of(data, matrix):
    coo = matrix.tocoo()
    return set(zip(data.user_ids.take(coo.row), data.item_ids.take(coo.col), strict=True))


def test_what_is_held_out_is_new_and_late_and_not_learned_from(two_days):
    yesterday, data = two_days
    held_out = hold_out(data, yesterday, None, 0)
    asked, rest = pairs_of(data, held_out.test), pairs_of(data, held_out.rest.matrix)
    seen = set(zip(*(make_plays((0, 20))[name] for name in ("user", "item")), strict=True))
    assert asked and not asked & seen and not asked & rest and asked | rest == pairs_of(data, data.matrix)
    is_asked = contains(entry_keys(held_out.test), entry_keys(data.matrix))
    assert data.times[is_asked].min() > yesterday.period_.last
    new = len(pairs_of(data, data.matrix) - seen) - 1  # without the one that is late
    assert ("u1", "late") in rest and ("u2", "new") in asked
    assert held_out.new == new and len(asked) == pytest.approx(new / 2, abs=1) and held_out.by == "time"
    coo = data.matrix.tocoo()
    pairs = zip(data.user_ids.take(coo.row), data.item_ids.take(coo.col), strict=True)
    is_new = np.array([pair not in seen and pair != ("u1", "late") for pair in pairs])
    assert data.times[is_asked].min() >= data.times[is_new & ~is_asked].max()


def test_without_times_a_share_of_the_new_pairs(two_days):
    yesterday, _ = two_days
    plain = as_interactions(make_plays((0, 22)))
    found = [hold_out(plain, yesterday, 0.3, seed) for seed in (0, 0, 1)]
    assert found[0].by == "chance" and found[0].test.nnz == round(0.3 * found[0].new)
    assert (found[0].test != found[1].test).nnz == 0 and (found[0].test != found[2].test).nnz
    seen = set(zip(*(make_plays((0, 20))[name] for name in ("user", "item")), strict=True))
    assert not pairs_of(plain, found[0].test) & seen


def test_nothing_new_and_times_of_another_kind(two_days):
    yesterday, _ = two_days
    with pytest.raises(NothingNewError, match=r"none is new to the model before .* later than 2026-01-20T"):
        hold_out(interactions(make_plays((0, 20))), yesterday, None, 0)
    numbered = make_plays((0, 22)).assign(time=np.arange(len(make_plays((0, 22)))))
    with pytest.raises(DataError, match="the times must be of one kind, got numbers now and dates before"):
        hold_out(interactions(numbered), yesterday, None, 0)
    with pytest.raises(
        DataError, match="the user ids of the interactions are integers, those of the model before strings"
    ):
        hold_out(as_interactions(make_plays((0, 22)).assign(user=1)), yesterday, None, 0)
    with pytest.raises(DataError, match="have ids and the model before none, or the reverse"):
        hold_out(as_interactions(csr_matrix(np.eye(3, dtype="float32"))), yesterday, None, 0)


def test_both_models_are_asked_the_same_by_the_same_people(two_days):
    """Against lists that are made here, one user at a time, from scores."""
    yesterday, data = two_days
    held_out = hold_out(data, yesterday, None, 0)
    candidate = make_model().fit(held_out.rest)
    found = compare(candidate, yesterday, held_out, ["ndcg@5"], 0)
    test, rest = held_out.test, held_out.rest.matrix
    known_items = set(data.item_ids.take(np.unique(rest.indices)))
    values = {"candidate": [], "yesterday": []}
    old = dict.fromkeys(yesterday.user_ids)
    models = {"candidate": candidate, "yesterday": yesterday}
    everything = {
        name: dict(zip(model.user_ids, model.recommend(model.user_ids.ids, 60).ids, strict=True))
        for name, model in models.items()
    }
    for row in np.flatnonzero(np.diff(test.indptr)):
        user = data.user_ids[row]
        asked = [i for i in data.item_ids.take(test[row].indices) if i in known_items]
        if not asked or user not in old or not rest[row].nnz:
            continue
        has = set(data.item_ids.take(held_out.known[row].indices))
        for name, lists in everything.items():
            ids = [i for i in lists[user] if i is not None and i not in has][:5]
            columns = np.array([data.item_ids.find(np.array(ids, object))])
            relevant = csr_matrix(np.isin(np.arange(test.shape[1]), data.item_ids.find(np.array(asked, object)))[None])
            values[name].append(row_metrics(columns, relevant.astype(float), [5], None)["ndcg@5"][0])
    for name, each in values.items():
        assert found.values["ndcg@5"][name].value == pytest.approx(np.mean(each))
    assert found.users == len(values["candidate"]) > 20 and found.unknown_items == 1
    difference = found.values["ndcg@5"]["difference"]
    assert difference.value == pytest.approx(np.mean(values["candidate"]) - np.mean(values["yesterday"]))
    assert difference.low < difference.value < difference.high


def test_a_model_against_itself_is_no_better_and_as_evaluate_says(two_days):
    _, data = two_days
    held_out = hold_out(data, None, 0.2, 0)
    model = make_model().fit(held_out.rest)
    found = compare(model, model, held_out, ["recall@10", "ndcg@10"], 0)
    known = np.bincount(held_out.rest.matrix.indices, minlength=held_out.test.shape[1]) > 0
    warm = np.diff(held_out.rest.matrix.indptr) > 0
    test = held_out.test.multiply(known[None, :]).multiply(warm[:, None]).tocsr()
    test.eliminate_zeros()
    report = evaluate(model, held_out.rest, replace(data, matrix=test, times=None), 10, n_resamples=0)
    for metric, of in found.values.items():
        assert of["candidate"].value == of["yesterday"].value == pytest.approx(report.results["wals"][metric].value)
        assert of["popularity"].value == pytest.approx(report.results["popularity"][metric].value)
        assert of["difference"] == (0, 0, 0)


def test_a_warm_start_reaches_the_loss_of_a_cold_one_sooner():
    """With users and items that come, go and stand in another order."""
    yesterday = make_model(iterations=10).fit(make_plays((0, 20)))
    today = make_plays((1, 22)).query("user != 'u3'").sample(frac=1, random_state=0)
    cold = make_model(iterations=6).fit(today)
    warm = make_model(iterations=6).fit(today, warm_start=yesterday)
    assert set(warm.user_ids) - set(yesterday.user_ids) and set(yesterday.user_ids) - set(warm.user_ids)
    losses = [record.loss for record in warm.history_]
    assert losses[1] < cold.history_[-1].loss < cold.history_[1].loss
    assert churn(yesterday, warm).overlap > churn(yesterday, cold).overlap, "and lists change less"


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_nights(tmp_path_factory):
    """Good, bad, good."""
    folder = tmp_path_factory.mktemp("nights") / "models"
    options = {"warm_start": folder, "time_column": "time", "keep_refused": True}
    condition = "ndcg@10 >= yesterday - 0.1 and ndcg@10 > popularity"
    outcomes = [
        publish(make_model(**settings), make_plays((0, end)), folder, condition, **options)
        for settings, end in (({}, 20), ({"regularization": 99.0}, 22), ({}, 24))
    ]
    return folder, outcomes


def test_three_nights(three_nights):
    folder, (first, bad, last) = three_nights
    assert first.published and last.published and not bad.published
    assert bad.name is None and "does not hold" in bad.reason
    store = ModelFolder(folder)
    assert store.current == last.name and store.names() == [first.name, last.name]
    loaded = WALS.load(folder / "current")
    np.testing.assert_array_equal(loaded.item_factors, last.model.item_factors)
    assert loaded.recommend("u1", 3).ids.tolist() == WALS.load(folder).recommend("u1", 3).ids.tolist()
    # What was published is fitted on everything; what was measured is not.
    assert loaded.fitted.seen.nnz == interactions(make_plays((0, 24))).matrix.nnz
    refused = WALS.load(folder / bad.record["kept"])
    assert refused.fitted.seen.nnz < interactions(make_plays((0, 22))).matrix.nnz
    assert names(folder) == sorted(["current", "runs.jsonl", first.name, last.name, bad.record["kept"]])


def test_each_run_is_a_line(three_nights):
    folder, outcomes = three_nights
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert runs == [outcome.record for outcome in outcomes] == ModelFolder(folder).runs()
    assert [run["decision"] for run in runs] == ["published", "refused", "published"]
    last = runs[2]
    assert last["previous"] == runs[0]["model"] == last["warm_start"] and last["data"]["new_users"] > 0
    assert set(last["seconds"]) == {"read", "hold_out", "fit", "measure", "refit", "churn", "save"}
    assert last["held_out"]["measured_users"] > 10 and 0 < last["churn"]["changed"] < 1
    assert set(last["metrics"]["ndcg@10"]) == {"candidate", "yesterday", "popularity", "difference"}
    assert last["settings"]["objective"]["name"] == "wals" and last["data"]["to"].startswith("2026-01-24T")
    text = json.dumps([{**run, "reason": ""} for run in runs])
    assert '"u1"' not in text and '"s1"' not in text
    card = (folder / last["model"] / "README.md").read_text()
    assert "then fitted once more on everything" in card and "| ndcg@10 of yesterday |" in card
    card = (folder / runs[1]["kept"] / "README.md").read_text()
    assert "| ndcg@10 of yesterday |" in card and "fitted once more" not in card


def test_back_and_forth(three_nights, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(three_nights[0], folder, symlinks=True)
    store = ModelFolder(folder)
    first, last = store.names()
    assert store.rollback() == (first, last) and store.current == first
    with pytest.raises(ValueError, match=r"was the first model of .*: there is none before it"):
        store.rollback()
    with pytest.raises(ValueError, match=f"has no model '{last[:-1]}'; did you mean '{last}'"):
        store.rollback(last[:-1])
    with pytest.raises(ValueError, match="is in use already"):
        store.rollback(first)
    assert store.current == first
    # A run goes on from the model in use, and the next step back is to it, not to the one that was left.
    third = publish(make_model(), make_plays((0, 26)), folder, "always", time_column="time", warm_start=folder)
    assert third.record["warm_start"] == first
    assert store.rollback() == (first, third.name) and store.rollback(last)[0] == last
    assert [run["decision"] for run in store.runs()[-4:]] == ["rolled back", "published", "rolled back", "rolled back"]
    (folder / "current").unlink()
    with pytest.raises(ValueError, match=f"^to must name one of {first}, .* has no model in use"):
        store.rollback()
    assert store.rollback(last) == (last, None) and store.current == last
    (folder / first / "model.json").unlink()
    with pytest.raises(ValueError, match="is not a whole model"):
        store.rollback(first)
    assert store.current == last


def test_old_models_go_but_not_those_in_use(tmp_path):
    folder = tmp_path / "models"
    matrix = csr_matrix(np.eye(4, dtype="float32"))
    store = ModelFolder(folder)
    for _ in range(4):
        publish(make_model(iterations=1), matrix, folder, "always", keep=3)
    assert len(store.names()) == 3
    store.rollback()
    second = store.rollback()[0]
    last = publish(make_model(iterations=1), matrix, folder, "always", keep=2)
    assert store.names() == [second, last.name], "the one in use before stays, whatever its age"
    unmeasured = "no condition had to hold, and nothing could be measured: there is nothing to compare with"
    assert last.reason.startswith(unmeasured)


def test_what_is_in_use_is_published_though_the_log_cannot_be_written(tmp_path, monkeypatch):
    folder, matrix = tmp_path / "models", csr_matrix(np.eye(4, dtype="float32"))
    store = ModelFolder(folder)
    first = publish(make_model(iterations=1), matrix, folder, "always")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ModelFolder, "_append", full)
    with pytest.warns(ParameterWarning, match="is in use now, but the log could not be written: .*No space left"):
        second = publish(make_model(iterations=1), matrix, folder, "always")
    assert second.published and store.current == second.name != first.name
    # And what could not be put to use is not there.
    monkeypatch.undo()
    monkeypatch.setattr(ModelFolder, "_switch", full)
    with pytest.raises(OSError, match="No space left"):
        publish(make_model(iterations=1), matrix, folder, "always")
    assert store.names() == [first.name, second.name] and store.current == second.name


def test_matrices_that_grow(tmp_path):
    """Without ids, rows and columns are who they are by their numbers."""
    rng = np.random.default_rng(0)
    same_kind = np.arange(70)[:, None] % 3 == np.arange(33) % 3
    likes = csr_matrix((rng.random((70, 33)) < np.where(same_kind, 0.7, 0.05)).astype("float32"))
    condition = "recall@5 >= yesterday - 0.2 and recall@5 > popularity and users >= 20"
    first = publish(make_model(), likes[:60, :30], tmp_path / "m", condition)
    second = publish(make_model(), likes, tmp_path / "m", condition, warm_start=tmp_path / "m")
    assert first.published and second.published, second.reason
    held_out, new = second.record["held_out"], likes.nnz - likes[:60, :30].nnz
    assert held_out["new"] == new and held_out["entries"] == round(new / 2) and held_out["by"] == "chance"
    assert held_out["users_new_to_a_model"] > 0 and second.record["churn"]["users"] == 60


# --- what can go wrong ----------------------------------------------------------------------------------------------


def test_a_failure_leaves_the_model_in_use_and_a_line(three_nights, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    good = publish(make_model(iterations=1), make_plays(), folder, "always").name
    for settings, fails in (
        ({"interactions": pd.DataFrame({"user": [1], "item": ["a"], "time": ["what"]})}, DataError),
        ({"warm_start": three_nights[0], "model": make_model(factors=5)}, ValueError),
        ({"warm_start": tmp_path / "nothing"}, FileNotFoundError),
        ({"stopped": lambda: True}, KeyboardInterrupt),
        ({"fit": {"metric": "none"}}, ValueError),
    ):
        given = {"model": make_model(), "interactions": make_plays((0, 22)), "publish_if": "always"} | settings
        with pytest.raises(fails):
            publish(folder=folder, time_column="time", **given)
        decision = "interrupted" if fails is KeyboardInterrupt else "failed"
        last = ModelFolder(folder).runs()[-1]
        assert last["decision"] == decision and last["reason"]

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WALS, "save", full)
    with pytest.raises(OSError, match="No space left"):
        publish(make_model(), make_plays((0, 22)), folder, "always")
    monkeypatch.undo()
    assert ModelFolder(folder).current == good and names(folder) == sorted([good, "current", "runs.jsonl"])
    assert not [entry for entry in os.listdir(folder) if entry.startswith(".incoming")]


def test_one_run_at_a_time(tmp_path):
    folder = tmp_path / "models"
    store = ModelFolder(folder)
    with store.locked():
        with pytest.raises(BusyError, match=rf"another run is using .*models \(process {os.getpid()} on "):
            publish(make_model(), make_plays(), folder, "always")
        waiting = threading.Thread(
            target=publish, args=(make_model(), make_plays(), folder, "always"), kwargs={"wait": 60}
        )
        waiting.start()
    waiting.join()
    assert store.current is not None and len(store.runs()) == 1


def test_a_damaged_model_is_left_by_a_rollback(tmp_path):
    folder = tmp_path / "models"
    for end in (18, 20):
        publish(make_model(), make_plays((0, end)), folder, "always", time_column="time")
    store = ModelFolder(folder)
    first, second = store.names()
    for file in (folder / second).iterdir():
        file.write_text("garbage")
    assert store.rollback() == (first, second) and store.current == first


def test_a_rollback_during_a_run_wins(tmp_path):
    folder = tmp_path / "models"
    for end in (18, 20):
        publish(make_model(), make_plays((0, end)), folder, "always", time_column="time")
    store = ModelFolder(folder)
    first, second = store.names()
    model = make_model()
    outcome = publish(
        model, make_plays((0, 22)), folder, "always", time_column="time", finish=lambda _: store.rollback()
    )
    assert not outcome.published and store.current == first
    assert outcome.reason == f"the model in use changed during the run, from {second} to {first}"
    assert store.names() == [first, second] and store.runs()[-1] == outcome.record


def test_readers_never_see_half(tmp_path):
    """One switches and prunes without pause; another loads all the time."""
    folder = tmp_path / "models"
    matrix = csr_matrix(np.eye(4, dtype="float32"))
    publish(make_model(iterations=1), matrix, folder, "always")
    code = (
        "import sys, numpy as np; from scipy.sparse import csr_matrix; from wals_gpu import WALS\n"
        "from wals_gpu.publishing import publish\n"
        "for seed in range(12):\n"
        "    publish(WALS(6, iterations=1, num_threads=1, random_state=seed), csr_matrix(np.eye(4, dtype='float32')), "
        f"{str(folder)!r}, 'always', keep=2)\n"
    )
    writer = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code])
    seen = set()
    while writer.poll() is None:
        seen.add(WALS.load(folder / "current").random_state)
    assert writer.returncode == 0 and len(seen) > 3
    assert len(ModelFolder(folder).names()) == 2 and len(ModelFolder(folder).runs()) == 13


def test_a_kill_at_each_step_leaves_a_whole_model(tmp_path, monkeypatch):
    matrix = csr_matrix(np.eye(4, dtype="float32"))
    steps = ("rename", "replace", "symlink", "fsync", "write")

    class Killed(BaseException):
        pass

    def run(path, stop_at):
        count = 0

        def counting(real):
            def step(*args, **options):
                nonlocal count
                count += 1
                if count == stop_at:
                    raise Killed
                return real(*args, **options)

            return step

        with monkeypatch.context() as patch:
            for name in steps:
                patch.setattr(os, name, counting(getattr(os, name)))
            # What a kill would not do: clean up
            patch.setattr(folder_module.shutil, "rmtree", lambda *args, **options: None)
            try:
                publish(make_model(iterations=1, random_state=1), matrix, path, "always", wait=1)
            except Killed:
                return True
            return False

    publish(make_model(iterations=1), matrix, tmp_path / "before", "always")
    stop_at = 0
    while True:
        stop_at += 1
        path = tmp_path / str(stop_at)
        shutil.copytree(tmp_path / "before", path, symlinks=True)
        was_killed = run(path, stop_at)
        store = ModelFolder(path)
        assert WALS.load(path / "current").random_state in (0, 1)
        publish(make_model(iterations=1), matrix, path, "always")
        assert len(store.names()) in (2, 3) and store.runs()[-1]["decision"] == "published"
        assert not [entry for entry in os.listdir(path) if entry.startswith((".incoming", ".gone"))]
        if not was_killed:
            break
    assert stop_at > 10


def test_where_links_cannot_be(tmp_path, monkeypatch):
    """A file with the name stands for the link."""
    folder = tmp_path / "models"

    def no_links(*args, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "symlink", no_links)
    matrix = csr_matrix(np.eye(4, dtype="float32"))
    for seed in range(2):
        publish(make_model(iterations=1, random_state=seed), matrix, folder, "always")
    assert (folder / "current").is_file() and not (folder / "current").is_symlink()
    for path in (folder / "current", folder):
        assert WALS.load(path).random_state == 1 and files.load_metadata(path)["model"] == "WALS"
    ModelFolder(folder).rollback()
    assert WALS.load(folder / "current").random_state == 0
    (folder / "current").write_text("../elsewhere\n")
    with pytest.raises(ValueError, match="is not a model folder"):
        WALS.load(folder / "current")


def test_links_that_go_round_end(tmp_path):
    (tmp_path / "current").symlink_to(".")
    with pytest.raises(ValueError, match="is not a model folder"):
        WALS.load(tmp_path)
    assert real_folder(tmp_path / "nothing") == tmp_path / "nothing"


def test_a_log_that_was_cut_off(tmp_path):
    folder = tmp_path / "models"
    publish(make_model(iterations=1), csr_matrix(np.eye(4, dtype="float32")), folder, "always")
    with open(folder / "runs.jsonl", "a") as file:
        file.write('{"time": "2026')
    ModelFolder(folder).log({"time": "later"})
    assert [run["time"] for run in ModelFolder(folder).runs()][1:] == ["later"]


def test_what_is_no_folder_of_models(tmp_path):
    make_model(iterations=1).fit(csr_matrix(np.eye(4, dtype="float32"))).save(tmp_path / "model")
    with pytest.raises(ValueError, match="is a model itself; a folder of models has one in each of its folders"):
        ModelFolder(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is there and is not a folder"):
        ModelFolder(tmp_path / "file")
    (tmp_path / "other" / "current").mkdir(parents=True)
    with pytest.raises(ValueError, match="must lead to a model, but is a folder itself"):
        ModelFolder(tmp_path / "other")
    with pytest.raises(ValueError, match="is no folder of models"):
        ModelFolder(tmp_path / "nothing").rollback()


def test_validation_is_for_the_first_fit_only(tmp_path):
    model = make_model(iterations=6, popularity_exponent="auto")
    outcome = publish(
        model, make_plays(), tmp_path / "m", "always", fit={"validation": 0.2, "patience": 1}, time_column="time"
    )
    assert model.validation_metric_ is None and model.popularity_exponent == "auto" and model.iterations == 6
    assert len(model.history_) <= 6 and outcome.record["iterations"] == len(model.history_)
    assert model.fitted.seen.nnz == interactions(make_plays()).matrix.nnz


@pytest.mark.parametrize("has_links", [True, False])
def test_a_service_follows_what_is_in_use(tmp_path, monkeypatch, has_links):
    for name in ("fastapi", "prometheus_client"):
        pytest.importorskip(name)
    from wals_gpu.serve.models import Models

    def no_links(*args, **options):
        raise OSError(95, "Operation not supported")

    if not has_links:
        monkeypatch.setattr(os, "symlink", no_links)
    matrix, folder = csr_matrix(np.eye(4, dtype="float32")), tmp_path / "models"
    publish(make_model(iterations=1, random_state=0), matrix, folder, "always")
    served = [Models(path, device="cpu", num_threads=1) for path in (folder, folder / "current")]
    first = {models.current.version for models in served}
    publish(make_model(iterations=1, random_state=1), matrix, folder, "always")
    assert [models.look() for models in served] == [True, True] and [models.look() for models in served] == [False] * 2
    second = {models.current.version for models in served}
    ModelFolder(folder).rollback()
    assert [models.look() for models in served] == [True, True]
    assert {models.current.version for models in served} == first != second
