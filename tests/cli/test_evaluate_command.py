"""``wals-gpu evaluate``: splits by time, and known and cold users apart."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from wals_gpu import WALS, as_interactions
from wals_gpu.evaluation import evaluate, last_n, temporal_split

pytest_plugins = ["cli_fixtures"]

QUICK = ["--factors", "3", "--iterations", "2", "--quiet"]


def make_log():
    """Likes of 30 users, one an hour, some more than once; five users come late."""
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, 30, 500), rng.integers(0, 12, 500)
    hours = np.sort(rng.permutation(2000)[:500])
    user = np.where((hours < 1500) & (user < 5), user + 5, user)
    time = pd.Timestamp("2024-01-01") + pd.to_timedelta(hours, unit="h")
    log = pd.DataFrame({"user": [f"u{k:02}" for k in user], "item": item, "time": time})
    return log.sample(frac=1, random_state=0)


@pytest.fixture
def log(tmp_path):
    make_log().to_parquet(tmp_path / "log.parquet")
    return tmp_path / "log.parquet"


def numbers_of(report):
    return json.loads(json.dumps(report.to_dict()))["results"]


@pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")
@pytest.mark.parametrize("kind", ["dates", "zones", "text", "numbers"])
def test_a_cutoff_splits_by_date(run, tmp_path, kind):
    log, cutoff = make_log(), "2024-03-01"
    if kind == "zones":
        log["time"] = log["time"].dt.tz_localize("UTC").dt.tz_convert("America/New_York")
    elif kind == "text":
        log["time"] = log["time"].dt.strftime("%Y-%m-%d %H:%M")
    elif kind == "numbers":
        log["time"] = (log["time"] - pd.Timestamp("1970-01-01")) // pd.Timedelta("1s")
        cutoff = str(pd.Timestamp(cutoff).timestamp())
    path = tmp_path / ("log.csv" if kind == "text" else "log.parquet")
    log.to_csv(path, index=False) if kind == "text" else log.to_parquet(path)
    status, text, said = run("evaluate", path, *QUICK, "--time-column", "time", "--cutoff", cutoff, "-k", 4, "--json")
    assert status == 0, said
    found = json.loads(text)
    train, test = temporal_split(as_interactions(make_log(), time_column="time"), cutoff="2024-03-01")
    model = WALS(3, iterations=2).fit(train.matrix)
    report = evaluate(model, train, test, ks=4)
    assert found["results"] == numbers_of(report) and found["protocol"] == "temporal"
    assert found["cold_users"] == report.cold_users > 1 and set(found["cohorts"]) == {"known users", "cold users"}
    assert found["notes"] == report.notes and "they got the most popular items" in found["notes"][1]


def test_known_and_cold_users_are_printed(run, log):
    status, text, _ = run("evaluate", log, *QUICK, "--time-column", "time", "--cutoff", "2024-03-01", "-k", 4)
    assert status == 0 and "users have no training entry: they got the most popular items" in text
    lines = text.splitlines()
    for name in ("all", "known users", "cold users"):
        assert any(line.startswith(f"recall@4  {name} ") for line in lines)
    assert max(map(len, lines)) <= 100 and "split temporal" in text


@pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")
def test_the_last_entries_of_each_user(run, log):
    data = as_interactions(make_log(), time_column="time")
    for options, n in (([], 1), (["--last", 3], 3)):
        chosen = ["--protocol", "last-n"] if not options else []
        status, text, _ = run("evaluate", log, *QUICK, *chosen, *options, "--time-column", "time", "-k", 4, "--json")
        train, test = last_n(data, n)
        found = json.loads(text)
        assert status == 0 and found["protocol"] == "last-n"
        assert found["results"] == numbers_of(evaluate(WALS(3, iterations=2).fit(train.matrix), train, test, ks=4))
        assert found["cohorts"] == {}  # nobody loses everything


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--protocol last-n", "--protocol last-n needs --time-column"),
        ("--cutoff 2024-03-01", "--protocol temporal needs --time-column"),
        (
            "--protocol random --cutoff 2024-03-01 --time-column time",
            "--cutoff is for --protocol temporal, not for random",
        ),
        ("--protocol temporal --last 2 --time-column time", "--last is for --protocol last-n, not for temporal"),
        ("--last 0 --time-column time", "must be at least 1, got 0"),
        ("--cutoff soon --time-column time", "--cutoff must be a moment such as '2024-01-31'"),
        ("--cutoff 1.7e9 --time-column time", "--cutoff must be a moment such as '2024-01-31'"),
        ("--cutoff 2024-03-01 --time-column number", "--cutoff must be a number, as the times are"),
        ("--cutoff 2034-03-01 --time-column time", "leaves no entry for test"),
        ("--cutoff 2024-03-01 --time-column when", "--time-column 'when' is not there"),
    ],
)
def test_what_cannot_be_is_one_line(run, tmp_path, options, message):
    log = make_log()
    log.assign(number=range(len(log))).to_parquet(tmp_path / "log.parquet")
    status, _, said = run("evaluate", tmp_path / "log.parquet", *QUICK, *options.split())
    assert status == 2 and message in said.replace("time_column='when'", "--time-column 'when'"), said


def test_reranked_lists_are_measured(run, log, tmp_path):
    lines = [f"{item},{'odd' if item % 2 else 'even'}" for item in range(12)]
    (tmp_path / "items.csv").write_text("item_id,category\n" + "\n".join(lines) + "\n")
    given = ["evaluate", log, *QUICK, "-k", 6, "--json"]
    words = ["--diversity", 0.9, "--quota", "odd=2:2", "--categories", tmp_path / "items.csv"]
    plain, found = (json.loads(run(*given, *more)[1]) for more in ([], words))
    assert found["diversity"] == 0.9 and found["quota"] == [["odd", [2, 2]]] and "diversity" not in plain
    name = "intra_list_diversity@6"
    assert found["results"]["wals"][name]["value"] > plain["results"]["wals"][name]["value"]
    assert found["results"]["popularity"] == plain["results"]["popularity"]
    assert "--quota must fit" in run(*given, "--quota", "odd=7:8", "--categories", tmp_path / "items.csv")[2]
