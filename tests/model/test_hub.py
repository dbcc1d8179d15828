"""Models on a hub of this machine, through huggingface_hub's own client."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from hub_server import serving

from wals_gpu import WALS, ModelFitError, ModelFormatError
from wals_gpu.priors.linear import LinearPrior

pytest.importorskip("huggingface_hub")
from huggingface_hub import errors

USERS = [f"person-{n}" for n in range(30)]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.choice(USERS, 300), "item": [f"song-{n}" for n in rng.integers(0, 20, 300)]})
    return table.drop_duplicates()


@pytest.fixture(scope="module")
def model(table):
    return WALS(4, iterations=3, num_threads=1).fit(table)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, beside which nothing is kept in the cache that everybody shares."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path / "shared")
    with serving() as hub:
        yield hub
    assert not (tmp_path / "shared").exists()


@pytest.fixture
def to_hub(hub, tmp_path):
    """Where, and as whom: no address, cache or token of the machine's."""
    there = {"token": "hf_test", "endpoint": hub.url}
    return there, there | {"cache_dir": tmp_path / "cache"}


def test_there_and_back_without_users(model, table, hub, to_hub):
    there, back = to_hub
    address = model.push_to_hub("me/plays", **there)
    oid = hub.branches["me/plays"]["main"]
    assert address == f"{hub.url}/me/plays/commit/{oid}" and hub.private["me/plays"]
    files = hub.files("me/plays")
    assert {name.split("-")[0] for name in files} == {".gitattributes", "model.json", "model", "README.md"}
    everything = b"".join(files.values())
    assert b"person-" not in everything and b"song-1" in everything and "none: they were left out" in str(everything)

    found = WALS.from_hub("me/plays", revision=oid, **back)
    np.testing.assert_array_equal(found.item_factors, model.item_factors)
    assert found.n_users == 0 and len(found.user_ids) == 0 and found.n_items == 20
    some = table[table["user"].isin(USERS[:5])]
    for mine, theirs in zip(model.recommend_for(some, 5), found.recommend_for(some, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(model.similar_items("song-1", 3)[0], found.similar_items("song-1", 3)[0])
    np.testing.assert_array_equal(model.fitted.popularity(), found.fitted.popularity())
    popular = model.recommend("nobody", 5, unknown="popular")
    assert popular.ids.tolist() == found.recommend("nobody", 5, unknown="popular").ids.tolist()
    with pytest.raises(KeyError, match="unknown user id"):
        found.recommend(USERS[0])
    # It goes on living: users come, items go, and it is saved as any other.
    found.update_users(some)
    assert found.recommend(USERS[0], 5).ids.tolist()[0] in set(table["item"])
    found.remove_items("song-1")
    assert len(found.fitted.popularity()) == 19
    assert WALS.from_hub("me/plays", local_files_only=True, revision=oid, **back).n_items == 20
    assert model.n_users == len(set(table["user"])), "the model itself stays as it was"


def test_with_users_and_in_halves(model, hub, to_hub):
    there, back = to_hub
    model.push_to_hub("me/all", users=True, private=False, dtype="float16", metrics={"ndcg@20": 0.5}, **there)
    found = WALS.from_hub("me/all", **back)
    assert found.recommend(USERS[0], 3).ids.tolist() == model.recommend(USERS[0], 3).ids.tolist()
    assert not hub.private["me/all"] and "| ndcg@20 | 0.5000 |" in hub.files("me/all")["README.md"].decode()
    assert found.measured_.values["ndcg@20"].value == 0.5


def test_a_second_upload_replaces_the_first_and_nothing_else(model, table, hub, to_hub):
    there, back = to_hub
    model.push_to_hub("me/plays", **there)
    first = hub.branches["me/plays"]["main"]
    hub.files("me/plays")["notes.txt"] = b"mine"
    card = hub.files("me/plays")["README.md"]
    hub.files("me/plays")["README.md"] = edited = card.replace(b"# A model", b"# My model")
    other = WALS(4, iterations=1, num_threads=1).fit(table)
    with pytest.warns(UserWarning, match=r"README.md was not written by a save, or was edited since"):
        other.push_to_hub("me/plays", **there)
    files = hub.files("me/plays")
    assert files["notes.txt"] == b"mine" and files["README.md"] == edited
    assert sum(name.startswith("model-") for name in files) == 1
    np.testing.assert_array_equal(WALS.from_hub("me/plays", **back).item_factors, other.item_factors)
    np.testing.assert_array_equal(WALS.from_hub("me/plays", revision=first, **back).item_factors, model.item_factors)


def test_branches(model, hub, to_hub):
    there, back = to_hub
    model.push_to_hub("me/plays", revision="next", **there)
    assert "model.json" in hub.files("me/plays", "next") and "model.json" not in hub.files("me/plays")
    assert WALS.from_hub("me/plays", revision="next", **back).n_items == 20
    with pytest.raises(ModelFormatError, match=r"me/plays holds no model of wals_gpu: there is no model\.json"):
        WALS.from_hub("me/plays", **back)


def test_what_cannot_be(model, table, hub, to_hub, monkeypatch):
    there, back = to_hub
    with pytest.raises(errors.RepositoryNotFoundError):
        WALS.from_hub("me/nothing", **back)
    with pytest.raises(ValueError, match="repo_id: "):
        model.push_to_hub("no name", **there)
    with pytest.raises(ModelFitError, match="the model is not fitted"):
        WALS(4).push_to_hub("me/plays", **there)
    features = (sorted(set(table["user"])), np.eye(len(set(table["user"]))))
    personal = WALS(4, iterations=1, num_threads=1, user_prior=LinearPrior(features)).fit(table)
    with pytest.raises(ModelFitError, match="a model with a user prior cannot be had without its users"):
        personal.push_to_hub("me/plays", **there)
    for name in ("users", "private"):  # personal data, and who may see them: a text would count as true
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 'no'"):
            model.push_to_hub("me/plays", **{name: "no"}, **there)
    assert hub.commits == {}, "nothing was made for what cannot be uploaded"
    model.push_to_hub("me/plays", **there)
    files = hub.files("me/plays")
    name = next(name for name in files if name.startswith("model-"))
    files[name] = files[name][:-1] + b"#"
    with pytest.raises(ModelFormatError, match="is damaged"):
        WALS.from_hub("me/plays", **back)
    for missing in ("huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"the hub needs huggingface_hub: pip install 'wals_gpu\[hub\]'"):
        model.push_to_hub("me/plays", **there)


def test_without_a_connection(model, tmp_path):
    there = {"token": "hf_test", "endpoint": "http://127.0.0.1:9"}  # where nobody listens
    back = there | {"cache_dir": tmp_path}
    message = r"me/plays could not be {}, as there is no connection to http://127.0.0.1:9 \(.+\); check the network, or"
    with pytest.raises(ConnectionError, match=message.format("uploaded")) as failed:
        model.push_to_hub("me/plays", **there)
    assert failed.value.__cause__ is not None
    with pytest.raises(ConnectionError, match=message.format("downloaded") + " name another .* HF_ENDPOINT"):
        WALS.from_hub("me/plays", **back)
    with pytest.raises(FileNotFoundError, match="local_files_only"):
        WALS.from_hub("me/plays", local_files_only=True, **back)
    with serving() as hub:
        model.push_to_hub("me/plays", **there | {"endpoint": hub.url})
        WALS.from_hub("me/plays", **back | {"endpoint": hub.url})
    assert WALS.from_hub("me/plays", **back).n_items == 20, "what was downloaded before is found"


def test_the_card_is_one_of_the_hub(model, tmp_path):
    from huggingface_hub import ModelCard

    model.save(tmp_path, metrics={"ndcg@20": 0.25})
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "wals_gpu" and "implicit-feedback" in data.tags
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("ndcg@20", 0.25)
    assert json.loads((tmp_path / "model.json").read_text())["metadata"]["measured"]["values"] == [
        ["ndcg@20", 0.25, None, None]
    ]
