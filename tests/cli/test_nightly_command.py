"""``wals-gpu fit --publish-if`` and ``rollback``: what they print, and how they end."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from wals_gpu import WALS
from wals_gpu.publishing import ModelFolder

pytest_plugins = ["cli_fixtures"]

FIT = ["--factors", "8", "--iterations", "3", "--threads", "1", "--quiet", "--time-column", "time"]


@pytest.fixture
def later(plays, tmp_path):
    """The same people a while later."""
    table = pyarrow.parquet.read_table(plays)
    known = set(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))
    fresh = [(f"p{p:02}", f"s{s:02}") for p in range(24) for s in range(12) if (f"p{p:02}", f"s{s:02}") not in known]
    users, items = zip(*fresh[::2], strict=True)
    more = pa.table(
        {"user_id": users, "item_id": items, "count": np.ones(len(users)), "time": 5000 + np.arange(len(users))}
    )
    path = tmp_path / "later.parquet"
    pyarrow.parquet.write_table(pa.concat_tables([table, more.cast(table.schema)]), path)
    return path


def test_publish_refuse_and_go_back(run, plays, later, tmp_path):
    models = tmp_path / "models"
    options = [*FIT, "--out", models, "--warm-start", models]
    status, out, _ = run("fit", plays, *options, "--publish-if", "ndcg@5 >= yesterday")
    first = ModelFolder(models).current
    assert status == 0 and "there is no model before" in out and f"current is {first} now" in out
    status, out, _ = run(
        "fit", later, *options, "--publish-if", "ndcg@5 > popularity + 0.99 and users >= 1", "--keep-refused"
    )
    assert status == 3 and "ndcg@5 > popularity + 0.99: " in out and "does not hold" in out and "difference" in out
    assert f"{models / 'current'} stays as it was; this one is in {models / 'refused-'}" in out
    status, out, _ = run("fit", later, *options, "--publish-if", "always", "--json", "--no-refit")
    record = json.loads(out)
    assert status == 0 and record["decision"] == "published" and record["previous"] == first
    assert record["reason"] == "no condition had to hold"
    assert "refit" not in record["seconds"] and record["data"]["entries"] > record["held_out"]["new"] > 0
    second = record["model"]
    status, out, _ = run("rollback", models, "--list")
    assert status == 0 and out.splitlines()[-1].split()[:3] == ["*", second, first]
    assert run("recommend", models, "p01", "-k", "3")[0] == run("similar", models / "current", "s01")[0] == 0
    assert run("rollback", models)[:2] == (0, f"{models / 'current'} is {first} now; it was {second}\n")
    assert json.loads(run("rollback", models, "--to", second, "--json")[1]) == {"model": second, "previous": first}
    assert WALS.load(models).fitted.n_users == 24
    (models / first / "model.json").write_text("garbage")
    assert [one["is_damaged"] for one in json.loads(run("rollback", models, "--list", "--json")[1])] == [True, False]
    assert "damaged" in run("rollback", models, "--list")[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--publish-if", "ndcg@5 >="],
            "--publish-if: at character 10 of 'ndcg@5 >=': wanted is yesterday, ",
        ),
        (["--keep", "3", "--no-refit"], "--no-refit and --keep need --publish-if"),
        (["--publish-if", "always", "--keep", "1"], "--keep must be at least 2"),
        (["--publish-if", "always", "--holdout", "1.5"], "--holdout must lie between 0 and 1, got 1.5"),
        (["--publish-if", "always", "--wait", "soon"], "--wait must be a length of time above 0"),
        (["--publish-if", "always", "--checkpoint-dir", "c"], "--checkpoint-dir cannot be used with --publish-if"),
        (["--publish-if", "always", "--validation", "v.csv"], "--validation must be a share with --publish-if"),
        (["--publish-if", "always", "--warm-start", "nothing"], "no model folder at nothing"),
    ],
)
def test_what_is_refused_at_once(run, plays, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("fit", plays, *FIT, "--out", "models", *options)
    assert (status, out) == (2, "") and err.count("\n") == 1 and says in err
    assert ModelFolder("models").current is None


def test_folders_of_two_kinds_are_told_apart(run, plays, model, tmp_path):
    status, _, err = run("fit", plays, *FIT, "--out", model, "--publish-if", "always")
    assert status == 2 and f"--out: {model} is a model itself" in err
    models = tmp_path / "models"
    assert run("fit", plays, *FIT, "--out", models, "--publish-if", "always")[0] == 0
    status, _, err = run("fit", plays, *FIT, "--out", models)
    assert status == 2 and f"--out: {models} is a folder of models, for --publish-if" in err
    status, _, err = run("fit", plays, *FIT, "--out", models / "current")
    assert status == 2 and "leads to the model in use, which is replaced as a whole" in err
    status, _, err = run("rollback", models)
    assert status == 2 and "was the first model of" in err
    status, _, err = run("rollback", tmp_path / "nothing", "--list")
    assert status == 2 and "is no folder of models" in err
    status, _, err = run("fit", models, *FIT, "--out", tmp_path / "new")
    assert status == 2 and "is a saved model; wanted is a file of interactions" in err


def test_two_runs_at_once(run, plays, tmp_path):
    models = tmp_path / "models"
    with ModelFolder(models).locked():
        status, out, err = run("fit", plays, *FIT, "--out", models, "--publish-if", "always", "--wait", "0.2s")
    assert (status, out) == (4, "") and "another run is using" in err and "--wait 30min would wait" in err
