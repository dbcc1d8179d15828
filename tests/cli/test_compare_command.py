"""``wals-gpu compare`` and ``--html``: what is compared, what is written, what is refused before any work."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from wals_gpu import WALS, as_interactions
from wals_gpu.evaluation import evaluate, random_holdout

pytest_plugins = ["cli_fixtures"]

QUICK = ["--factors", "3", "--iterations", "3", "--quiet", "--threads", "1"]


def table_of(data):
    coo = data.matrix.tocoo()
    return pa.table({"user_id": list(data.user_ids.take(coo.row)), "item_id": list(data.item_ids.take(coo.col))})


@pytest.fixture(scope="module")
def parts(plays, tmp_path_factory):
    """The log in two parts, and two models of the first: `a`, and `b` of its users up to p15 and one of its own."""
    folder = tmp_path_factory.mktemp("compare")
    train, test = random_holdout(as_interactions(str(plays)), 0.3, per_user=True)
    pyarrow.parquet.write_table(table_of(test), folder / "test.parquet")
    whole = table_of(train)
    few = whole.filter(pa.array([user <= "p15" for user in whole["user_id"].to_pylist()]))
    few = pa.concat_tables([few, pa.table({"user_id": ["zoe", "zoe"], "item_id": ["s00", "new"]})])
    for name, table in (("a", whole), ("b", few)):
        WALS(3, iterations=3, num_threads=1).fit(table).save(folder / name)
    return folder


def test_models_of_the_same_data(run, parts, tmp_path):
    WALS(1, iterations=3, num_threads=1).fit(WALS.load(parts / "a").fitted.seen).save(tmp_path / "numbers")
    a, data = WALS.load(parts / "a"), parts / "test.parquet"
    status, text, said = run("compare", parts / "a", "--data", data, "-k", 3, "--json", "--seed", 5)
    assert status == 0, said
    found = json.loads(text)
    alone = evaluate(a, a.fitted.seen.astype(np.float32), str(data), 3, random_state=5)
    assert found["results"]["a"]["ndcg@3"] == alone.results["wals"]["ndcg@3"]._asdict()
    assert found["models"] == {"a": str(parts / "a")} and found["differences"][0]["second"] == "popularity"
    status, _, said = run("compare", parts / "a", tmp_path / "numbers", "--data", data)
    assert status == 2 and "MODELs must all have user ids of one kind" in said and "some none" in said
    folders = [tmp_path / day / "model" for day in ("monday", "tuesday")]
    for folder in folders:
        shutil.copytree(parts / "a", folder)
    found = json.loads(run("compare", *folders, "--data", data, "-k", 3, "--json")[1])
    assert found["models"] == {f"{folder.parent.name}/model": str(folder) for folder in folders}
    again = folders[0] / ".." / "model"
    status, _, said = run("compare", *folders, again, "--data", data)
    assert status == 2 and f"MODEL {folders[0]} is there twice" in said


def test_models_without_ids_are_refused(run, parts, tmp_path):
    """The users of a file would be numbered in its own order: here all of them are one off."""
    seen = WALS.load(parts / "a").fitted.seen
    for name in ("one", "two"):
        WALS(1, iterations=1, num_threads=1).fit(seen).save(tmp_path / name)
    user, item = np.nonzero(seen.toarray() == 0)
    pyarrow.parquet.write_table(pa.table({"user_id": user + 1, "item_id": item + 1}), tmp_path / "test.parquet")
    status, text, said = run("compare", tmp_path / "one", tmp_path / "two", "--data", tmp_path / "test.parquet")
    assert (status, text) == (2, "") and "MODELs must have the ids that --data is read by: one, two were fitted" in said


def test_models_of_different_data(run, parts, tmp_path):
    page, data = tmp_path / "report.html", parts / "test.parquet"
    status, text, said = run("compare", parts / "a", parts / "b", "--data", data, "-k", 3, 6, "--html", page)
    assert status == 0 and f"wrote {page}" in said, said
    assert "a - b" in text and "p (Holm)" in text and "bootstrap over users; seed 0" in text
    source = page.read_text("utf-8")
    assert 'id="differences"' in source and 'id="examples"' in source and "Comparison on test.parquet" in source
    both = json.loads(run("compare", parts / "b", parts / "a", "--data", data, "-k", 3, "--json")[1])
    alone = json.loads(run("compare", parts / "a", "--data", data, "-k", 3, "--json")[1])
    for metric in ("recall@3", "ndcg@3", "map@3"):  # what b knows beside is of nobody who is asked for
        assert both["results"]["a"][metric] == alone["results"]["a"][metric]
    assert both["users"] == alone["users"] and both["results"]["b"] != both["results"]["a"]


def test_what_a_model_has_learned_is_left_out(run, parts, tmp_path):
    test = pyarrow.parquet.read_table(parts / "test.parquet")
    known = table_of_model(WALS.load(parts / "a")).slice(0, 7)
    pyarrow.parquet.write_table(pa.concat_tables([test, known]), tmp_path / "more.parquet")
    status, text, said = run("compare", parts / "a", parts / "b", "--data", tmp_path / "more.parquet", "-k", 3)
    assert status == 0 and f"warning: 7 of {len(test) + 7} entries of --data are left out" in said
    assert text == run("compare", parts / "a", parts / "b", "--data", parts / "test.parquet", "-k", 3)[1]
    pyarrow.parquet.write_table(known, tmp_path / "known.parquet")
    status, _, said = run("compare", parts / "a", "--data", tmp_path / "known.parquet")
    assert status == 2 and "--data: all of its 7 entries are among those that a model has learned from" in said


def table_of_model(model):
    coo = model.fitted.seen.tocoo()
    return pa.table({"user_id": list(model.user_ids.take(coo.row)), "item_id": list(model.item_ids.take(coo.col))})


def test_evaluate_and_tune_write_pages(run, plays, tmp_path):
    titles = tmp_path / "items.csv"
    titles.write_text("item_id,title\n" + "".join(f"s{song:02},Blue <i>Train</i>\n" for song in range(12)))
    page = tmp_path / "report.html"
    for protocol in ("random", "strong"):
        words = ["--protocol", protocol, "--html", page, "--titles", titles, "--time-column", "time", "-k", 3]
        status, text, said = run("evaluate", plays, *QUICK, *words)
        assert status == 0 and f"wrote {page}" in said and "popularity" in text, said
        source = page.read_text("utf-8")
        assert "Blue &lt;i&gt;Train" in source and f">{protocol}<" in source and 'id="time-title"' in source
        for slug in ("metrics", "cohorts", "examples", "training", "data", "settings"):
            assert f'<section id="{slug}"' in source, (protocol, slug)
    pytest.importorskip("optuna")
    trials = tmp_path / "trials.htm"
    words = ["--out", tmp_path / "best.json", "--html", trials, "--trials", 3, "--quiet", "--threads", 1, "--json"]
    status, text, said = run("tune", plays, *words)
    assert status == 0 and json.loads(text)["trials"] == 3 and "3 trials" in trials.read_text("utf-8"), said


def test_a_page_of_lists_that_are_ranked_again_shows_these(run, plays, tmp_path):
    kinds = tmp_path / "items.csv"
    kinds.write_text("item_id,title,kind\n" + "".join(f"s{n:02},Song {n},{'AB'[n % 2]}\n" for n in range(12)))
    page, recommended = tmp_path / "report.html", {}
    song = re.compile(r'</th><td><bdi dir="auto">Song (\d+)')
    words = ["evaluate", plays, *QUICK, "--html", page, "--titles", kinds, "-k", 3]
    for more in ([], ["--quota", "A=0", "--quota", "B=1:3", "--category-column", "kind"]):
        status, _, said = run(*words, *more)
        assert status == 0, said
        source = page.read_text("utf-8")
        lists = re.findall(r"<table.*?</table>", source[source.index('<section id="examples"') :], re.S)
        recommended[len(more)] = {int(n) % 2 for table in lists if "was hidden" in table for n in song.findall(table)}
    assert recommended == {0: {0, 1}, 6: {1}}
    assert "A=0, B=1:3" in source


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate PLAYS --html page.txt", "--html must end in .html, got page.txt"),
        ("evaluate PLAYS --html none/page.html", "--html none/page.html: there is no folder none; make it first"),
        ("evaluate PLAYS --titles items.csv", "--titles are shown in the page of --html FILE"),
        ("tune PLAYS --out best.json --html .", "--html must be a file; . is a folder"),
        ("demo --html page", "--html must end in .html, got page"),
        ("compare A", "the following arguments are required: --data"),
        ("compare A A --data TEST", "is there twice"),
        ("compare A --data A", "is a saved model; wanted is a file of interactions, for --data"),
        ("compare A --data none.parquet", "--data: No such file or directory: none.parquet"),
        ("compare none --data TEST", "none"),
        ("compare A --data TEST --titles items.csv", "--titles are shown in the page of --html FILE"),
        ("compare A --data TEST --html page.pdf", "--html must end in .html"),
        ("compare A --data TEST -k 0", "-k must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_one_line(run, plays, parts, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    names = {"PLAYS": plays, "A": parts / "a", "TEST": parts / "test.parquet"}
    status, text, said = run(*(names.get(word, word) for word in line.split()))
    assert (status, text) == (2, "") and message in said, said
    assert len(said.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("evaluate PLAYS --html page.html -k 3", "ndcg@3"),
        ("compare A --data TEST --html page.html -k 3", "ndcg@3"),
        ("tune PLAYS --out best.json --html page.html --trials 2 --quiet", "ndcg@20"),
    ],
)
def test_a_page_without_room_leaves_the_numbers(run, plays, parts, tmp_path, monkeypatch, line, number):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wals_gpu.report.write_report", full)
    names = {"PLAYS": plays, "A": parts / "a", "TEST": parts / "test.parquet"}
    status, text, said = run(*(names.get(word, word) for word in line.split()), "--threads", 1)
    assert status == 2 and number in text
    assert "--html page.html: No space left on device" in said
