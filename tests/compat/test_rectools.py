"""A WALSModel in RecTools: lists are those of WALS, by the rules for hot, warm and cold users, and configs work."""

import numpy as np
import pytest

pytest.importorskip("rectools", reason="RecTools is not installed")

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MAP
from rectools.model_selection import LastNSplitter, cross_validate
from rectools.models import load_model, model_from_config

from wals_gpu import WALS
from wals_gpu.compat.rectools import WALSModel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")

SETTINGS = {"factors": 6, "iterations": 4, "num_threads": 1, "neighbors": 5}


def interactions(users=40, items=30, seed=0):
    rng = np.random.default_rng(seed)
    same = np.add.outer(np.arange(users), np.arange(items)) % 2 == 0
    user, item = np.nonzero(rng.random((users, items)) < np.where(same, 0.5, 0.05))
    days = pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, len(user)), unit="D")
    return pd.DataFrame(
        {Columns.User: user * 10, Columns.Item: item + 500, Columns.Weight: 1.0, Columns.Datetime: days}
    )


@pytest.fixture(scope="module")
def dataset():
    """User 999 has features and no interactions."""
    table = interactions()
    users = pd.DataFrame({"id": [*table[Columns.User].unique(), 999], "feature": "age", "value": 1})
    return Dataset.construct(table, user_features_df=users, cat_user_features=["age"])


@pytest.fixture(scope="module")
def fitted(dataset):
    return WALSModel(**SETTINGS).fit(dataset)


def by_target(found, column=Columns.User):
    return {key: part[Columns.Item].tolist() for key, part in found.groupby(column, sort=False)}


def test_lists_of_hot_users(dataset, fitted):
    users = dataset.user_id_map.external_ids[:20]
    own = WALS(**SETTINGS).fit(dataset.get_user_item_matrix(include_weights=True))
    for viewed in (True, False):
        found = fitted.recommend(users, dataset, k=5, filter_viewed=viewed)
        ids, scores = own.recommend(np.arange(20), 5, filter_seen=viewed)
        names = dataset.item_id_map.convert_to_external(ids.ravel()).reshape(ids.shape)
        assert list(by_target(found).values()) == names.tolist()
        np.testing.assert_allclose(found[Columns.Score].to_numpy(), scores.ravel(), rtol=1e-5)
        assert found[Columns.Rank].tolist() == [1, 2, 3, 4, 5] * 20
    some = [501, 504, 507, 12345]
    found = fitted.recommend(users, dataset, k=5, filter_viewed=False, items_to_recommend=some)
    assert set(found[Columns.Item]) <= set(some)


def test_warm_and_cold_users_get_what_is_popular(dataset, fitted):
    found = by_target(fitted.recommend([999, 12345, 0], dataset, k=4, filter_viewed=True))
    counts = dataset.get_user_item_matrix().getnnz(axis=0)
    popular = dataset.item_id_map.convert_to_external(np.argsort(-counts, kind="stable")[:4]).tolist()
    assert found[999] == found[12345] == popular != found[0]


def test_similar_items(dataset, fitted):
    found = by_target(fitted.recommend_to_items([503, 508], dataset, k=3), Columns.TargetItem)
    number = dataset.item_id_map.convert_to_internal([503])
    ids, _ = fitted.model.similar_items(number, 4)
    assert found[503] == dataset.item_id_map.convert_to_external(ids[0][1:]).tolist()
    itself = fitted.recommend_to_items([503], dataset, k=3, filter_itself=False)
    assert itself[Columns.Item].tolist()[0] == 503


def test_users_of_another_dataset_are_folded_in(dataset, fitted):
    table = dataset.get_raw_interactions()
    first = table[Columns.User].unique()[:1]
    other = table.assign(**{Columns.User: table[Columns.User] + 1})  # nobody that the model knows, the same items
    found = fitted.recommend(first + 1, Dataset.construct(other), k=5, filter_viewed=True)
    row = dataset.get_user_item_matrix(include_weights=True)[:1]
    ids, _ = fitted.model.recommend_for(row, 5)
    assert found[Columns.Item].tolist() == dataset.item_id_map.convert_to_external(ids[0]).tolist()
    with pytest.raises(ValueError, match="dataset must have the items of the dataset that the model was fitted on"):
        fitted.recommend(first, Dataset.construct(table.iloc[::-1]), k=5, filter_viewed=True)


def test_configs_and_files(dataset, fitted, tmp_path):
    config = fitted.get_config(simple_types=True)
    assert config["cls"] == "wals_gpu.compat.rectools.WALSModel" and config["settings"]["factors"] == 6
    again = model_from_config(config).fit(dataset)
    users = dataset.user_id_map.external_ids[:5]
    want = fitted.recommend(users, dataset, k=5, filter_viewed=True)
    pd.testing.assert_frame_equal(again.recommend(users, dataset, k=5, filter_viewed=True), want)
    fitted.save(tmp_path / "model")
    for loaded in (load_model(tmp_path / "model"), WALSModel.load(tmp_path / "model")):
        pd.testing.assert_frame_equal(loaded.recommend(users, dataset, k=5, filter_viewed=True), want)
    partial = WALSModel(**SETTINGS, random_state=1).fit_partial(dataset, epochs=2)
    before = partial.model.history_[-1].loss
    partial.fit_partial(dataset, epochs=3)
    assert partial.model.history_[-1].loss < before and partial.model.iterations == 4
    table = interactions()
    for other, side in ((table[::-1], "users"), (table[table[Columns.User] < 300], "users"), (table[50:], "users")):
        with pytest.raises(ValueError, match=f"dataset must have the {side} of the dataset that the model was fitted"):
            partial.fit_partial(Dataset.construct(other), epochs=1)
    new = pd.DataFrame({Columns.User: [7], Columns.Item: [7], Columns.Weight: 1.0, Columns.Datetime: "2024-05-01"})
    partial.fit_partial(Dataset.construct(pd.concat([table, new])), epochs=1)
    assert partial.model.n_users == 41 and partial.model.n_items == 31
    with pytest.raises(ValueError, match="a config has no setting 'iteration'; did you mean 'iterations"):
        WALSModel.from_config({"settings": {"iteration": 3}})


def test_cross_validation():
    found = cross_validate(
        Dataset.construct(interactions()),
        splitter=LastNSplitter(n=2, n_splits=1),
        metrics={"map": MAP(k=5)},
        models={"wals": WALSModel(**SETTINGS)},
        k=5,
        filter_viewed=True,
    )
    assert found["metrics"][0]["model"] == "wals" and found["metrics"][0]["map"] > 0.05
