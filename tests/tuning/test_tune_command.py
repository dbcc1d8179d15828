"""``wals-gpu tune``: files that it writes, and what it refuses before any work."""

from __future__ import annotations

import json
import shlex
import signal

import pyarrow.parquet
import pytest

from wals_gpu import WALS

pytest.importorskip("optuna")
pytest_plugins = ["cli_fixtures"]

QUICK = ["--trials", 3, "--quiet", "--threads", 1]


def test_what_it_saves_is_what_fit_reads(run, plays, tmp_path):
    best = tmp_path / "best.json"
    status, out, err = run("tune", plays, "--out", best, *QUICK)
    assert (status, err) == (0, "")
    assert "3 trials" in out and "popularity" in out
    command = f"wals-gpu fit {plays} --settings {best} --out model"
    assert out.splitlines()[-1] == f"next: {command}"
    assert run("fit", plays, "--settings", best, "--out", tmp_path / "m", "--quiet")[0] == 0
    model, settings = WALS.load(tmp_path / "m"), WALS.from_config(best)
    assert model.objective == settings.objective and model.factors == settings.factors


def test_the_next_command_reads_the_same_data(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{user};{song};3" for user in range(20) for song in range(12) if (user + song) % 2]
    for name, some in (("jan 1.csv", rows[::2]), ("feb.csv", rows[1::2])):
        (tmp_path / name).write_text("\n".join(some) + "\n")
    words = ["--columns", "who,what,n", "--user-column", "who", "--item-column", "what", "--no-values"]
    status, out, err = run("tune", "jan 1.csv", "feb.csv", *words, "--out", "best.json", *QUICK)
    assert status == 0, err
    _, command, *following = shlex.split(out.splitlines()[-1].removeprefix("next: "))
    assert run(command, *following, "--quiet")[0] == 0
    assert WALS.load("model").fitted.seen.nnz == len(rows) and set(WALS.load("model").fitted.seen.data) == {1}


def test_json_table_and_pictures(run, plays, tmp_path):
    pytest.importorskip("matplotlib")
    table, pictures = tmp_path / "trials.parquet", tmp_path / "pictures"
    status, out, err = run(
        "tune", plays, "--out", tmp_path / "best.json", "--json", "--trials-table", table, "--plots", pictures,
        "--time-column", "time", "--metric", "recall@5", *QUICK,
    )  # fmt: skip
    assert status == 0 and "no importance.png, as the importance of settings needs 10 trials" in err
    found = json.loads(out)
    assert found["metric"] == "recall@5" and found["trials"] == 3 and "latest" in found["notes"][0]
    assert found["settings"] == json.loads((tmp_path / "best.json").read_text())
    assert pyarrow.parquet.read_table(table)["score"].to_pylist()[0] > 0
    assert (pictures / "slices.png").read_bytes()[:4] == b"\x89PNG"


def test_options_that_name_a_setting_fix_it(run, plays, tmp_path):
    best = tmp_path / "best.json"
    words = ["--factors", 6, "--set", "nu=0.25", "--seed", 4, "--objective", "wals"]
    assert run("tune", plays, "--out", best, *words, *QUICK)[0] == 0
    settings = json.loads(best.read_text())
    assert (settings["factors"], settings["objective"]["nu"], settings["random_state"]) == (6, 0.25, 4)


def test_ctrl_c_saves_the_best(run, plays, tmp_path, monkeypatch):
    tune = WALS.tune.__func__

    def interrupted(cls, *arguments, **options):
        stop = lambda trials: signal.raise_signal(signal.SIGINT) if len(trials) == 2 else None  # noqa: E731
        return tune(cls, *arguments, **options, callback=stop)

    monkeypatch.setattr(WALS, "tune", classmethod(interrupted))
    status, out, _ = run("tune", plays, "--out", tmp_path / "best.json", "--trials", 9, "--quiet")
    assert status == 130 and "Ctrl-C ended the search" in out
    assert WALS.from_config(tmp_path / "best.json").factors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", 0], "--minutes must be a number above 0, got 0"),
        (["--minutes", "soon"], "--minutes must be a number, got 'soon'"),
        (["--trials", 0], "--trials must be at least 1"),
        (["--metric", "auc"], "metric must be one of"),
        (["--validation", 0], "--validation must lie in (0, 1), got 0.0"),
        (["--trials-table", "trials.txt"], "--trials-table must end in"),
        (["--plots", "best.json"], "--plots must be a folder"),
        (["--storage", "none/search.db"], "--storage none/search.db: there is no folder none; make it first"),
        (["--iterations", 3], "there is no option --iterations"),
        (["--set", "iterations=3"], "iterations is a setting of the model"),
    ],
)
def test_what_is_refused(run, plays, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.json").write_text("an earlier one")
    status, _, err = run("tune", plays, "--out", "best.json", "--quiet", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert (tmp_path / "best.json").read_text() == "an earlier one"


def test_where_it_cannot_write(run, plays, tmp_path):
    for path, message in ((tmp_path, "--out must be a file"), (tmp_path / "none" / "best.json", "there is no folder")):
        status, _, err = run("tune", plays, "--out", path, *QUICK)
        assert status == 2 and message in err


def test_the_storage_of_other_data(run, plays, tmp_path):
    words = ["--out", tmp_path / "best.json", "--storage", tmp_path / "search.db", *QUICK]
    assert run("tune", plays, *words)[0] == 0
    status, _, err = run("tune", plays, *words, "--no-values")
    assert status == 2 and f"--storage cannot be {tmp_path / 'search.db'}, which holds a search with other data" in err
