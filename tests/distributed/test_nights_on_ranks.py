"""``fit --publish-if`` on several ranks: the decisions of one process, and what is left when something goes wrong."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ranks import run_ranks

from wals_gpu import WALS
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.distributed import LocalGroup, fit_sharded, publish_sharded, read_sharded
from wals_gpu.publishing import ModelFolder, publish

pytest.importorskip("torch", reason="ranks need torch")
pytestmark = pytest.mark.filterwarnings("ignore::wals_gpu.ParameterWarning")

CONDITION = "ndcg@10 >= yesterday - 0.1 and ndcg@10 > popularity and users >= 100"


def make_plays(until, n=40_000, seed=0):
    """People of three tastes, more of them than one rank has, with times; some take a thing twice."""
    rng = np.random.default_rng(seed)
    day = np.sort(rng.uniform(0, 30, n))
    users = (rng.random(n) * (2400 + 20 * day)).astype(int)
    items = (rng.random(n) * (300 + 3 * day)).astype(int)
    items = np.where(rng.random(n) < 0.8, items // 3 * 3 + users % 3, items)
    table = pd.DataFrame({"user_id": users * 7, "item_id": [f"s{item}" for item in items]})
    table["time"] = np.datetime64("2026-01-01", "us") + (day * 86400e6).astype("timedelta64[us]")
    return table[day < until]


PROGRAM = f"""
from unittest import mock
from wals_gpu.cli.entry import main
from wals_gpu.distributed import ShardedModel
from wals_gpu.publishing import ModelFolder
os.environ |= {{"RANK": str(rank), "WORLD_SIZE": str(size)}}
models = folder + "/models"
def night(day, *more):
    return main([
        "fit", f"{{folder}}/plays-{{day}}.parquet", "--time-column", "time", "--factors", "6", "--iterations", "4",
        "--seed", "3", "--threads", "1", "--quiet", "--warm-start", models, "--out", models,
        "--publish-if", {CONDITION!r}, *more,
    ])
statuses = [
    night(20),
    night(22, "--set", "regularization=99999", "--keep-refused"),
    night(24, "--save-dtype", "float16", "--validation", "0.1"),
]
statuses.append(main(["recommend", models, "--all", "-k", "3", "--popularity-penalty", "0.2", "--quiet", "--out",
                      folder + "/lists.parquet"]))
warm = ["fit", folder + "/plays-24.parquet", "--iterations", "1", "--seed", "3", "--threads", "1", "--quiet",
        "--warm-start", models, "--save-dtype", "float16"]
statuses += [main([*warm, "--factors", factors, "--out", f"{{folder}}/warm-{{factors}}"]) for factors in "65"]
if rank == 0:
    with ModelFolder(models).locked():
        statuses.append(night(24))
    before = os.readlink(models + "/current"), sorted(os.listdir(models))
else:
    statuses.append(night(24))
print(json.dumps(statuses), flush=True)

def dies(self, path, **options):
    os._exit(0)
if rank == 1:
    with mock.patch.object(ShardedModel, "save", dies):
        night(26)
status = night(26)
assert status == 2 and before == (os.readlink(models + "/current"), sorted(os.listdir(models)))
assert ModelFolder(models).runs()[-1]["reason"].startswith("DistributedError: rank 0 of 2 cannot reach the others")
"""


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Good, bad, good, busy, one whose rank 1 dies while it saves; and what two ranks printed."""
    folder = tmp_path_factory.mktemp("nights")
    for day in (20, 22, 24, 26):
        make_plays(day).to_parquet(folder / f"plays-{day}.parquet", row_group_size=7000)
    (folder / "lists.parquet").mkdir()
    for name in ("part-00001.parquet", "part-00002.parquet", ".part-00000.parquet", ".part-00001.parquet.9.tmp"):
        (folder / "lists.parquet" / name).write_text("of an earlier run, on more ranks, and of one that was killed")
    return folder, run_ranks(PROGRAM, 2, folder)


def plain(record):
    """What does not depend on the clock."""
    names = ("time", "model", "previous", "warm_start", "seconds", "kept")
    return {name: value for name, value in record.items() if name not in names}


def in_one_process(folder, publish_one):
    """The first three nights."""
    for day, settings, more in (
        (20, {}, {}),
        (22, {"regularization": 99_999.0}, {"keep_refused": True}),
        (24, {}, {"dtype": "float16", "fit": {"validation": 0.1}}),
    ):
        model = WALS(6, iterations=4, random_state=3, num_threads=1, **settings)
        publish_one(model, day, folder=folder, publish_if=CONDITION, warm_start=folder, **more)
    return ModelFolder(folder).runs()


def assert_alike(one, other, tolerance):
    """Records of a night, as far as they are no rounding."""
    for name in ("metrics", "churn"):
        assert (name in one) == (name in other)
        numbers = [pd.json_normalize(record.get(name, {"none": 0})).T[0] for record in (one, other)]
        pd.testing.assert_series_equal(*numbers, rtol=0, atol=tolerance)
    names = ("decision", "condition", "data", "held_out", "settings", "versions", "iterations")
    assert [one[name] for name in names] == [other[name] for name in names]
    assert one["loss"] == pytest.approx(other["loss"], rel=max(tolerance / 10, 1e-12))


def test_statuses_are_those_of_one_process_on_all_ranks(nights, tmp_path):
    folder, out = nights
    assert [json.loads(text.splitlines()[-1]) for text in out] == [[0, 3, 0, 0, 0, 2, 4]] * 2
    runs = ModelFolder(folder / "models").runs()
    assert [run["decision"] for run in runs[:4]] == ["published", "refused", "published", "failed"]
    # A fit alone that begins with the model in use, and is saved in halves; with other factors, nothing.
    plays = read_sharded(folder / "plays-24.parquet", LocalGroup(), 6, SolveOptions.choose("auto", 6))
    model = WALS(6, iterations=1, random_state=3, num_threads=1)
    fit_sharded(model, plays, warm_start=folder / "models" / runs[2]["model"]).save(tmp_path / "one", dtype="float16")
    one, ranks = WALS.load(tmp_path / "one"), WALS.load(folder / "warm-6")
    np.testing.assert_array_equal(ranks.user_factors, one.user_factors)
    assert not (folder / "warm-5").exists()


def test_nights_are_those_of_one_process(nights, tmp_path):
    """To the bit of one rank, and to rounding of a run without ranks, whose factors have other last bits."""
    folder, _ = nights

    def with_a_rank(model, day, **options):
        def read():
            path = folder / f"plays-{day}.parquet"
            return read_sharded(path, LocalGroup(), 6, SolveOptions.choose("auto", 6), time_column="time")

        publish_sharded(model, read, LocalGroup(), **options)

    def without(model, day, **options):
        publish(model, folder / f"plays-{day}.parquet", time_column="time", **options)

    runs = ModelFolder(folder / "models").runs()[:3]
    for one, other in zip(runs, in_one_process(tmp_path / "rank", with_a_rank), strict=True):
        assert_alike(plain(one), plain(other), 1e-12)
    for one, other in zip(runs, in_one_process(tmp_path / "none", without), strict=True):
        assert_alike(plain(one), plain(other), 0.03)
    model, same = WALS.load(folder / "models"), WALS.load(tmp_path / "rank")
    np.testing.assert_array_equal(model.user_factors, same.user_factors)
    np.testing.assert_array_equal(model.item_factors, same.item_factors)
    assert (model.period_, model.columns_) == (same.period_, same.columns_)
    assert model.period_ == WALS.load(tmp_path / "none").period_
    assert runs[1]["kept"].startswith("refused-") and WALS.load(folder / "models" / runs[1]["kept"]).n_users > 2000
    assert runs[2]["data"]["new_users"] > 0 and runs[2]["warm_start"] == runs[0]["model"] == runs[2]["previous"]


def test_models_of_ranks_answer_and_go_back(nights):
    folder, _ = nights
    store, lists = ModelFolder(folder / "models"), pq.read_table(folder / "lists.parquet").to_pandas()
    model = WALS.load(folder / "models")
    expected = model.recommend(model.user_ids.ids, 3, popularity_penalty=0.2)
    assert lists["item_id"].tolist() == expected.ids.ravel().tolist()
    parts = sorted(path.name for path in (folder / "lists.parquet").iterdir())
    assert parts == ["part-00000.parquet", "part-00001.parquet"]
    first, last = store.names()
    assert store.rollback() == (first, last) and WALS.load(folder / "models").n_users < model.n_users
    assert store.rollback(last) == (last, first)
    # The next night, in one process, goes on from the model of the ranks.
    plays = folder / "plays-26.parquet"
    found = publish(WALS(6, iterations=2, num_threads=1), plays, folder / "models", "always", time_column="time")
    assert found.record["previous"] == last and "yesterday" in found.record["metrics"]["ndcg@20"]
