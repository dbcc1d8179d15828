"""What bench_ranking.py computes by itself: splits, EASE, intervals, tables, and going on after a stop."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from wals_gpu.evaluation import Popularity, ranking_metrics

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    folders = [str(BENCHMARKS), str(BENCHMARKS / "cases")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture
def ranking():
    from lib import ranking

    return ranking


@pytest.fixture
def log():
    """40 users of 3 to 22 items of 60, with random times; user 0 has one item."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(60, size=size, replace=False) for size in [1, *rng.integers(3, 23, 39)]]
    places = np.repeat(np.arange(40), [len(row) for row in rows])
    matrix = csr_matrix((np.ones(len(places), np.float32), (places, np.concatenate(rows))), shape=(40, 60))
    matrix.sort_indices()
    return matrix, rng.permutation(matrix.nnz).astype(float)


def lists_of(matrix, times):
    """Items of each row, earliest first."""
    parts = np.split(np.arange(matrix.nnz), matrix.indptr[1:-1])
    return [matrix.indices[part[np.argsort(times[part])]].tolist() for part in parts]


@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_window_is_what_comes_after_the_training_part_of_each_user(ranking, log, window):
    matrix, times = log
    train, test = ranking.window_split(matrix, times, window)
    for row, items in enumerate(lists_of(matrix, times)):
        size = max(1, len(items) // 10)
        end = len(items) - window * size
        is_kept = end - size > 0
        assert set(test[row].indices) == (set(items[end - size : end]) if is_kept else set())
        assert set(train[row].indices) == (set(items[: end - size]) if is_kept else set())


def test_entries_of_one_moment_are_divided_at_random_and_alike_each_time(ranking, log):
    matrix, times = log
    first, again, other = (ranking.window_split(matrix, times * 0, 0, seed)[1] for seed in (0, 0, 1))
    assert (first != again).nnz == 0 and (first != other).nnz > 0


def test_ease_is_the_formula_and_leaves_out_what_was_seen(ranking, log, monkeypatch):
    monkeypatch.setattr(ranking.Ease, "ROWS", 7)  # several blocks, the last one smaller
    matrix, _ = log
    model = ranking.Ease(matrix, 5.0)
    dense = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 5.0 * np.eye(60))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert np.abs(model.weights - weights).max() < 1e-5
    users = np.arange(40)
    ids, _ = model.recommend(users, 5)
    scores = dense @ weights
    scores[dense > 0] = -np.inf
    assert (ids == np.argsort(-scores, axis=1)[:, :5]).all()


def test_users_without_a_training_entry_get_what_is_popular(ranking, log):
    matrix, _ = log
    train = matrix.copy()
    train.data[: train.indptr[1]] = 0  # user 0
    train.eliminate_zeros()
    given = np.tile(np.arange(20), (2, 1))
    found = ranking.with_popular(given, np.array([0, 1]), train)
    assert (found[0] == Popularity(train).recommend([0], 20)[0][0]).all() and (found[1] == given[1]).all()
    assert (given[0] == np.arange(20)).all()


def test_metrics_of_users_stand_at_their_place(ranking, log):
    matrix, times = log
    train, test = ranking.window_split(matrix, times, 0)
    users = ranking.tested_users(test)
    ids = Popularity(train).recommend(users, 20)[0]
    values = ranking.per_user(ids, users, train, test)
    wanted = ranking_metrics(ids, test[users], ks=20)
    for name in ("ndcg@20", "recall@20"):
        assert np.isclose(np.nanmean(values[name]), wanted[name])
        assert (np.flatnonzero(np.isfinite(values[name])) == users).all() and len(values[name]) == 40


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda ids, seen: ids.__setitem__((1, 3), ids[1, 4]), "twice"),
        (lambda ids, seen: ids.__setitem__((2, 0), seen[2]), "has had"),
        (lambda ids, seen: ids.__setitem__((0, 0), 60), "of items or -1"),
    ],
)
def test_lists_that_cannot_be_are_refused(ranking, log, spoil, words):
    train, _ = ranking.window_split(*log, 0)
    users = np.flatnonzero(np.diff(train.indptr))
    ids = Popularity(train).recommend(users, 20)[0]
    ids[:, 19] = -1  # a list may end early
    ranking.check_lists(ids, users, train)
    spoil(ids, [train[user].indices[0] for user in users])
    with pytest.raises(ValueError, match=words):
        ranking.check_lists(ids, users, train)


def test_a_clear_lead_is_seen_and_equal_systems_have_none(ranking):
    rng = np.random.default_rng(1)
    low = rng.random(300) * 0.5
    worse = [low, np.where(rng.random(300) < 0.5, low, np.nan)]
    better = [values + 0.01 * rng.random(300) for values in worse]  # far below the spread of either
    found = ranking.compare({"ours tuned": better, "EASE": worse}, "ours tuned", ["EASE"])
    assert found["ahead"] == "ours tuned" and found["minus best"]["of"] == "ours tuned"
    value, least, most = found["minus best peer"]["ours tuned"]
    assert 0.004 < least < value < most < 0.006 and found["minus best peer"]["of"] == "EASE"
    assert found["minus ours"]["EASE"][0] == -value
    same = ranking.compare({"ours tuned": worse, "EASE": worse}, "ours tuned", ["EASE"])
    assert same["ahead"] is None and same["minus ours"]["EASE"] == [0, 0, 0]


def test_a_user_in_three_splits_counts_as_one(ranking):
    values = np.random.default_rng(2).random(200)
    once, thrice = (ranking.resampled({"a": [values] * times})["a"] for times in (1, 3))
    assert np.allclose(once, thrice)


def test_systems_tested_with_other_users_are_not_compared(ranking):
    other = np.array([0.1, np.nan, 0.3])
    with pytest.raises(ValueError, match="same users"):
        ranking.resampled({"a": [np.array([0.1, 0.2, 0.3])], "b": [other]})


@pytest.mark.parametrize("seconds, trials", [(0, 1), (1e9, 3)])
def test_a_grid_ends_with_its_time_but_tries_one(log, seconds, trials):
    from workers.worker_ranking import best_of_grid

    train = log[0]

    def fit(train, settings, threads, seed):
        order = Popularity(train)
        backwards = settings["backwards"]
        return lambda users, train: (
            (-1 - 0 * order.recommend(users, 20)[0]) if backwards else order.recommend(users, 20)[0]
        )

    grid = [{"backwards": True}, {"backwards": False}, {"backwards": True}]
    found, facts = best_of_grid(grid, fit, train, seconds, 0, 1)
    assert facts["trials"] == trials and found["backwards"] == (trials == 1)


def arguments(**more):
    defaults = {"threads": 1, "seed": 0, "quick": False, "minutes": 0.1, "tune_once": False}
    return argparse.Namespace(**defaults | {"systems": ["popularity", "EASE"]} | more)


@pytest.fixture
def case(tmp_path, monkeypatch, log):
    """bench_ranking.py with results of its own, workers that only count, and one split of a made-up log."""
    import bench_ranking

    from lib import common

    for module in (bench_ranking, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_ranking, "busy_cores", lambda seconds: 0.0)
    monkeypatch.setattr(bench_ranking, "commit_of", lambda folder: "abc")
    matrix, _ = log
    monkeypatch.setattr(bench_ranking, "make_split", lambda *_: (matrix, matrix))
    started = []

    def run_worker(script, spec, environment=None, timeout=0.0):
        started.append((spec["system"], spec["stage"], spec.get("settings")))
        if spec["stage"] == "search":
            return {"settings": {"ridge": 7}, "seconds": 1.0}
        level = 0.2 if spec["system"] == "EASE" else 0.1
        rng = np.random.default_rng(0)
        values = {name: (level + 0.01 * rng.random(40)).astype(np.float32) for name in bench_ranking.METRICS}
        np.savez(spec["out"], **values)
        return {"fit_seconds": 1.0, "recommend_seconds": 1.0, "mib": 1} | dict.fromkeys(values, level)

    monkeypatch.setattr(bench_ranking, "run_worker", run_worker)
    return bench_ranking, started


def measure(case, args, number=0):
    book = case.Book("ranking", args)
    case.measure(book, args, "ml-100k", "random", number, Path("nowhere"), float("inf"))
    return book


def test_a_run_goes_on_where_it_was(case):
    module, started = case
    measure(module, arguments(systems=["EASE"]))
    assert started == [("EASE", "search", None), ("EASE", "fit", {"ridge": 7})]
    measure(module, arguments())
    assert [one[:2] for one in started[2:]] == [("popularity", "fit")]
    book = measure(module, arguments())
    assert len(started) == 3 and len(book.records) == 3
    assert all(record["commit"] == "abc" and record["threads"] == 1 for record in book.records)


def test_what_failed_is_tried_again(case, monkeypatch):
    module, started = case
    works = module.run_worker
    monkeypatch.setattr(module, "run_worker", lambda *_, **__: {"error": "out of memory"})
    measure(module, arguments())
    monkeypatch.setattr(module, "run_worker", works)
    book = measure(module, arguments())
    assert len(started) == 3 and not any("error" in record for record in book.records)


def test_one_search_serves_all_splits(case):
    module, started = case
    args = arguments(systems=["EASE"], tune_once=True)
    measure(module, args, 1)
    assert not started  # nothing found yet
    measure(module, args, 0)
    book = measure(module, args, 1)
    assert [one[1] for one in started] == ["search", "fit", "fit"]
    assert [record.get("searched_on") for record in book.records if record["stage"] == "fit"] == [0, 0]


def test_a_run_out_of_time_begins_nothing(case):
    module, started = case
    args = arguments()
    module.measure(module.Book("ranking", args), args, "ml-100k", "random", 0, Path("nowhere"), float("-inf"))
    assert not started


def test_items_too_many_for_ease_are_said(case, monkeypatch):
    module, started = case
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    book = measure(module, arguments(systems=["EASE"]))
    assert not started and "GiB" in book.records[0]["skipped"]


def test_tables_and_intervals_come_from_the_file(case, tmp_path):
    from lib.tables import VIEWS, ranking_cost_table, ranking_table

    module, _ = case
    args = arguments()
    for number in range(2):
        book = measure(module, args, number)
    book.compare()
    result = json.loads((tmp_path / "ranking.json").read_text())
    assert result["comparisons"][0]["splits"] == [0, 1]
    text = ranking_table(result)
    popular, ease = (result["comparisons"][0]["ndcg@20"]["mean"][system][0] for system in ("popularity", "EASE"))
    assert f"| ml-100k | {popular:.3f} | **{ease:.3f}** | - |" in text and "item-kNN" not in text  # not measured
    assert "mean of 2 splits; searches of 0.1 minutes each; bold" in text
    costs = ranking_cost_table(result)
    assert "| ml-100k: fit, s | 1 | 1 |" in costs and "busy" not in costs
    result["records"][0]["busy"] = 0.9
    assert "The machine was busy" in ranking_cost_table(result)
    short = VIEWS["ranking-short"][1](result)
    assert "| ml-100k |" in short and "item-kNN" not in short


def test_a_split_that_not_all_were_measured_on_counts_for_nobody(case):
    module, _ = case
    for number, systems in ((0, ["popularity", "EASE"]), (1, ["EASE"])):
        book = measure(module, arguments(systems=systems), number)
    book.compare()
    assert book.comparisons[0]["splits"] == [0] and set(book.comparisons[0]["ndcg@20"]["mean"]) == {
        "popularity",
        "EASE",
    }


def test_intervals_stay_where_values_are_gone(case):
    module, _ = case
    book = measure(module, arguments())
    book.compare()
    before = list(book.comparisons)
    for path in book.users.iterdir():
        path.unlink()
    book = module.Book("ranking", arguments())
    book.compare()
    assert before and book.comparisons == json.loads(json.dumps(before))


def test_a_plot_is_drawn(case, tmp_path):
    pytest.importorskip("matplotlib")
    from lib.plots import plot_ranking

    module, _ = case
    book = measure(module, arguments())
    book.compare()
    plot_ranking(json.loads(book.path.read_text()), tmp_path / "ranking.svg")
    assert "<svg" in (tmp_path / "ranking.svg").read_text()


def test_a_worker_fits_and_answers_in_its_own_process(ranking, log, tmp_path):
    from lib.common import run_worker, save_matrix

    train, test = ranking.window_split(*log, 0)
    paths = {"train": str(tmp_path / "train.npz"), "test": str(tmp_path / "test.npz"), "out": str(tmp_path / "out.npz")}
    save_matrix(paths["train"], train)
    save_matrix(paths["test"], test)
    spec = {"system": "EASE", "threads": 1, "seed": 0, **paths}
    found = run_worker("worker_ranking.py", spec | {"stage": "search", "seconds": 60})
    assert found["trials"] == 5 and found["settings"]["ridge"] in (10, 30, 100, 300, 1000)
    fitted = run_worker("worker_ranking.py", spec | {"stage": "fit", "settings": found["settings"]})
    values = np.load(paths["out"])["ndcg@20"]
    assert np.isclose(np.nanmean(values), fitted["ndcg@20"], rtol=1e-4)
    assert fitted["users"] == np.isfinite(values).sum() == len(ranking.tested_users(test))


def test_a_search_is_compared_with_random_trials(case, tmp_path, monkeypatch):
    from lib.tables import make_table

    module, started = case
    level = {"search": 0.3, "blind": 0.2, "random": 0.4}
    found = []

    def run_worker(script, spec, environment=None, timeout=0.0):
        started.append(spec["stage"])
        if spec["stage"] == "fit":
            return {"ndcg@20": level[spec["settings"]["way"]]}
        return {"settings": {"way": spec["stage"]}, "seconds": 5.0, "threadpools": []}

    monkeypatch.setattr(module, "run_worker", run_worker)
    for ways in (["random"], ["tune", "blind", "random"], ["tune", "blind", "random"]):  # what is there stays
        args = arguments(sets=["ml-100k"], trials=9, again=False, ways=ways)
        module.target(args, Path("nowhere"))
        found.append(len(started))
    assert found == [2, 6, 6] and started[0] == "random"
    record = json.loads((tmp_path / "ranking-target.json").read_text())["records"][0]
    assert record["share"] == {"tune": 0.75, "blind": 0.5} and record["trials"] == 9
    monkeypatch.setattr(sys.modules["lib.tables"], "RESULTS", tmp_path)
    assert "| ml-100k | 0.3000, 75.0% | 0.2000, 50.0% | 0.4000 | 9 | 5 |" in make_table("ranking-target")


def test_a_search_that_the_ranking_has_made_is_not_made_again(case, tmp_path, monkeypatch):
    module, _ = case
    args = arguments(sets=["ml-100k"], trials=9, again=False, ways=["tune"])
    book = module.Book("ranking", args)
    key = {"set": "ml-100k", "kind": "random", "split": 0, "system": "ours tuned"}
    book.put(key | {"stage": "search"}, {"settings": {"factors": 8}, "seconds": 5.0})
    book.put(key | {"stage": "fit"}, {"ndcg@20": 0.25})
    monkeypatch.setattr(module, "run_worker", lambda *_, **__: pytest.fail("a search was made"))
    module.target(args, Path("nowhere"))
    [record] = json.loads((tmp_path / "ranking-target.json").read_text())["records"]
    assert record["tune"]["ndcg@20"] == 0.25 and record["tune"]["settings"] == {"factors": 8}
    args.minutes += 1
    assert module.searched(book, args, "ml-100k") is None
