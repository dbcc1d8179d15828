"""A WALSScorer in LensKit's pipelines: scores and lists are those of WALS, of known users, new ones and nobody."""

import numpy as np
import pytest

pytest.importorskip("lenskit", reason="LensKit is not installed")

import pandas as pd
from lenskit import batch, recommend, score
from lenskit.data import ItemList, RecQuery, from_interactions_df
from lenskit.pipeline import topn_pipeline
from lenskit.training import TrainingOptions

from wals_gpu import WALS
from wals_gpu.compat.lenskit import WALSScorer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SETTINGS = {"factors": 6, "iterations": 4, "num_threads": 1, "neighbors": 5, "random_state": 7}


def table(seed=0, users=40, items=30):
    rng = np.random.default_rng(seed)
    same = np.add.outer(np.arange(users), np.arange(items)) % 2 == 0
    user, item = np.nonzero(rng.random((users, items)) < np.where(same, 0.5, 0.05))
    return pd.DataFrame({"user_id": user * 10, "item_id": item + 500, "rating": rng.integers(1, 6, len(user))})


@pytest.fixture(scope="module")
def data():
    return from_interactions_df(table())


@pytest.fixture(scope="module")
def pipeline(data):
    made = topn_pipeline(WALSScorer(**SETTINGS), n=5)
    made.train(data)
    return made


@pytest.fixture(scope="module")
def model():
    return WALS(**SETTINGS).fit(table()[["user_id", "item_id"]])


def test_lists_are_those_of_recommend(pipeline, model):
    for user in (0, 110, 390):
        found = recommend(pipeline, user)
        ids, scores = model.recommend(user, 5)
        assert found.ids().tolist() == ids.tolist()
        np.testing.assert_allclose(found.scores(), scores, rtol=1e-4)
    lists = batch.recommend(pipeline, [0, 110], n=3, n_jobs=1)
    assert lists.lookup(user_id=110).ids().tolist() == model.recommend(110, 3).ids.tolist()


def test_new_users_are_folded_in(pipeline, model, data):
    items = ItemList([503, 509, 511])
    want = model.recommend_for(pd.DataFrame({"user_id": "x", "item_id": [503, 509, 511]}), 5)
    for query in (RecQuery(history_items=items), RecQuery(user_id=77, history_items=items)):
        found = recommend(pipeline, query)
        # LensKit leaves out what is in the query, as recommend_for does.
        assert [one for one in found.ids().tolist() if one not in (503, 509, 511)][:2] == want.ids[0][:2].tolist()
    # A known user with another history than that of the training, and an item twice.
    asked = ItemList([520, 503, 520])
    found = score(pipeline, RecQuery(user_id=0, history_items=items), asked).scores()
    by_item = model.recommend_for(
        pd.DataFrame({"user_id": "x", "item_id": [503, 509, 511]}), 2, allow=[[520, 503]], filter_seen=False
    )
    want = dict(zip(by_item.ids[0].tolist(), by_item.scores[0].tolist(), strict=True))
    np.testing.assert_allclose(found, [want[520], want[503], want[520]], rtol=1e-4)


def test_nothing_is_said_of_what_is_not_known(pipeline):
    items = ItemList([503, 1, 504])
    assert np.isnan(score(pipeline, 0, items).scores()).tolist() == [False, True, False]
    for query in (RecQuery(user_id=12345), RecQuery(), RecQuery(history_items=ItemList([1, 2]))):
        assert np.isnan(score(pipeline, query, items).scores()).all()
    assert len(score(pipeline, 0, ItemList())) == 0


def test_configs_ratings_and_copies(data, pipeline):
    import pickle

    settings = {name: value for name, value in SETTINGS.items() if name != "random_state"}
    scorer = WALSScorer(objective="hu", alpha=3.0, use_ratings=True, **settings)
    config = scorer.dump_config()
    assert config["alpha"] == 3.0 and config["use_ratings"] is True
    again = WALSScorer(WALSScorer.validate_config(config))
    assert again.dump_config() == config
    again.train(data, TrainingOptions(rng=1))
    own = WALS(objective="hu", alpha=3.0, random_state=np.random.default_rng(1), **settings).fit(table())
    np.testing.assert_allclose(again.model.user_factors, own.user_factors, rtol=1e-4, atol=1e-6)
    before = again.model
    again.train(data, TrainingOptions(retrain=False))
    assert again.model is before
    copy = pickle.loads(pickle.dumps(pipeline.component("scorer")))
    items = ItemList([503, 504])
    assert copy(0, items).scores().tolist() == pipeline.component("scorer")(0, items).scores().tolist()
    with pytest.raises(TypeError, match="factorz"):
        WALSScorer(factorz=3).train(data, TrainingOptions())
