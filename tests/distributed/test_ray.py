"""Fits on workers of Ray: a local cluster of the real package."""

import os
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sharded_fit import make_matrix, make_model

from wals_gpu import WALS, DistributedError, SingularSystemError, as_interactions
from wals_gpu.distributed import fit_sharded, ray_train
from wals_gpu.priors import LinearPrior

try:
    import ray
    import torch  # noqa: F401  workers need it
except ImportError as error:
    if os.environ.get("WALS_GPU_REQUIRE_RAY") == "1":
        raise
    pytest.skip(f"needs Ray and torch: {error}", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    # Workers find what tests are made of, as they find installed packages.
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """A folder of Parquet files, text ids, and a table of the same rows."""
    folder, matrix = tmp_path_factory.mktemp("plays"), make_matrix(n=8000).tocoo()
    users, items = [f"ü{user}" for user in matrix.row], [f"i{item}" for item in matrix.col]
    table = pa.table({"user_id": users, "item_id": items, "plays": matrix.data})
    half = len(table) // 2
    pq.write_table(table[:half], folder / "a.parquet", row_group_size=1500)
    pq.write_table(table[half:], folder / "b.parquet")
    return folder, table


def test_parquet_files_on_two_workers_give_the_model_of_one_process(plays, tmp_path, monkeypatch):
    folder, table = plays
    monkeypatch.chdir(tmp_path)  # a relative path is of the driver
    ids = sorted(set(table["item_id"].to_pylist()))
    prior = LinearPrior((ids, np.random.default_rng(0).normal(size=(len(ids), 6))), relative_strength=0.5)
    found = ray_train(make_model(solver="cg", item_prior=prior), folder, num_workers=2, out="model")
    whole = fit_sharded(make_model(solver="cg", item_prior=prior), as_interactions(table)).local
    model = WALS.load(tmp_path / "model")
    assert found.folder == tmp_path / "model" and len(list(found.folder.glob("users-*"))) == 2
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)
    np.testing.assert_array_equal(model.item_factors, whole.item_factors)
    np.testing.assert_array_equal(model.item_prior_.weights, whole.item_prior_.weights)
    assert model.user_ids.tolist() == whole.user_ids.tolist()
    assert [record.loss for record in found.history] == [record.loss for record in whole.history_]


def die_once(marker):
    def callback(record):
        if record.iteration == 2 and os.environ["RANK"] == "1" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return callback


def test_a_fit_goes_on_after_a_worker_was_lost(tmp_path):
    matrix = make_matrix(n=8000)
    found = ray_train(
        make_model(), matrix, num_workers=2, out=tmp_path / "model", checkpoint_dir=tmp_path / "c", max_failures=1,
        validation=0.1, callback=die_once(tmp_path / "died"),
    )  # fmt: skip
    whole = fit_sharded(make_model(), matrix, validation=0.1).local
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(WALS.load(found.folder).user_factors, whole.user_factors)
    assert [record.validation for record in found.history] == [record.validation for record in whole.history_]


def test_the_error_of_a_worker_is_raised_as_it_was_there(tmp_path):
    unridged = make_model(objective="explicit", regularization=0.0, solver="cholesky")
    with pytest.raises(SingularSystemError, match="user") as of_workers:
        ray_train(unridged, make_matrix(n=3000), num_workers=2, out=tmp_path / "model")
    with pytest.raises(SingularSystemError) as alone:
        fit_sharded(unridged, make_matrix(n=3000))
    assert of_workers.value.row == alone.value.row
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_workers": 0}, ValueError, "num_workers must be an integer >= 1, got 0"),
        ({"resources_per_worker": {"CPU": -1}}, ValueError, r"resources_per_worker\['CPU'\] must be"),
        ({"placement": "near"}, ValueError, "placement must be one of SPREAD"),
        ({"num_workers": 9, "start_timeout": 0.2}, DistributedError, "had not the resources for num_workers=9"),
    ],
)
def test_what_cannot_be_started_is_named(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        ray_train(make_model(), make_matrix(n=100), **{"out": tmp_path / "m", "num_workers": 1, **options})
