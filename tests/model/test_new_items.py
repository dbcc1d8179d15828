"""Items that come after the fit: added from embeddings or texts, refined from interactions, searched from the shell."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ModelFitError, cli
from wals_gpu.priors.linear import LinearPrior

KINDS, PER_KIND, USERS = 3, 8, 90


@pytest.fixture(scope="module")
def shop():
    """Users each like one kind of item; ids, embeddings that tell the kind, interactions, what each user likes."""
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(KINDS), PER_KIND)
    likes = np.arange(USERS) % KINDS
    taken = rng.random((USERS, len(kind))) < np.where(likes[:, None] == kind, 0.6, 0.03)
    embeddings = 3 + np.eye(KINDS)[kind] + 0.2 * rng.normal(size=(len(kind), KINDS))
    ids = np.array([f"item {n:02}" for n in range(len(kind))])
    return ids, embeddings, taken, likes


def table(taken, ids):
    user, item = np.nonzero(taken)
    return pa.table({"user_id": user, "item_id": ids[item]})


def fit(shop, held_out=(), **settings):
    ids, embeddings, taken, _ = shop
    kept = np.setdiff1d(np.arange(len(ids)), held_out)
    settings = {"objective": "ials", "regularization": 0.01, "dtype": "float64", "iterations": 30} | settings
    prior = settings.pop("item_prior", LinearPrior((ids, embeddings)))
    return WALS(4, item_prior=prior, **settings).fit(table(taken[:, kept], ids[kept]))


NEW = [20, 0, 9]  # one of each kind; the first and one in the middle, so that rows move


@pytest.mark.parametrize("mode", [None, "prior_mean", "map"])
def test_added_items_are_recommended_to_those_who_like_their_kind(shop, mode, tmp_path):
    ids, embeddings, _, likes = shop
    model = fit(shop, NEW)
    before = {one: model.item_factors[model.item_ids.index_of(one)].copy() for one in model.item_ids.ids}
    scores = model.predict(5, "item 01")
    seen = model.recommend(5, 30)[0]
    assert model.add_items(embeddings[NEW], ids[NEW], mode=mode).tolist() == ids[NEW].tolist()
    assert model.item_ids.ids.tolist() == ids.tolist()
    assert all(np.array_equal(model.item_factors[model.item_ids.index_of(one)], old) for one, old in before.items())
    assert model.predict(5, "item 01") == scores
    for new in NEW:
        of_new = model.predict(np.arange(USERS), ids[new])
        fans = likes == new // PER_KIND
        # 3.06 to 5.4 times, to 12 digits whatever the instruction set
        assert of_new[fans].mean() > 3 * np.abs(of_new[~fans]).mean()
    # Warm and cold together; what a user has is still left out.
    now = model.recommend(5, 30)[0]
    assert set(now[now != np.array(None)]) == set(seen[seen != np.array(None)]) | set(ids[NEW])
    model.save(tmp_path)
    assert np.array_equal(WALS.load(tmp_path).recommend(5, 30)[0], now)


def test_modes(shop):
    ids, embeddings, *_ = shop
    model = fit(shop, NEW)
    mean = model.project_items(embeddings[NEW])
    model.add_items(embeddings[NEW], ids[NEW])
    rows = model.item_ids.index_of(ids[NEW])
    assert np.array_equal(model.item_factors[rows], mean)
    # map: (w0 X'X + s) y = s q, with the ridge of an item that nobody has as s.
    model = fit(shop, NEW)
    model.add_items(embeddings[NEW], ids[NEW], mode="map")
    s = 0.01 * 0.1 * USERS
    a = 0.1 * model.user_factors.T @ model.user_factors + s * np.eye(4)
    rows = model.item_ids.index_of(ids[NEW])
    np.testing.assert_allclose(model.item_factors[rows], np.linalg.solve(a, s * mean.T).T, rtol=1e-8)


@pytest.mark.parametrize(("mode", "same"), [("prior_mean", True), ("map", False)])
def test_new_users_fold_in_as_if_cold_items_were_not_there(shop, mode, same):
    ids, embeddings, taken, _ = shop
    model = fit(shop, NEW, objective="hu")  # whose ridge does not depend on the number of items
    known = table(taken[:4][:, 1:9], ids[1:9])
    before = model.fold_in(known)
    model.add_items(embeddings[NEW], ids[NEW], mode=mode)
    assert np.allclose(model.fold_in(known), before, rtol=1e-10) == same


def test_a_model_of_a_matrix_gets_new_columns(shop):
    _, embeddings, taken, _likes = shop
    model = WALS(4, "ials", dtype="float64", item_prior=LinearPrior(embeddings[:16])).fit(
        csr_matrix(taken[:, :16].astype(float))
    )
    assert model.add_items(embeddings[16:]).tolist() == list(range(16, 24))
    assert model.item_factors.shape == model.item_prior_.mean.shape == (24, 4)
    with pytest.raises(TypeError, match="ids must not be given"):
        model.add_items(embeddings[16:], ["a"] * 8)
    assert model.add_items(embeddings[:0]).tolist() == []


@pytest.mark.parametrize("objective", ["implicit", "google_wals", "eals", "hu"])
def test_updated_with_what_a_fit_had_is_what_the_fit_gave(shop, objective):
    """An item added cold and then given its interactions has the factor of one that was there from the beginning."""
    ids, _, taken, _ = shop
    settings = {"exponent": 0.0} if objective == "google_wals" else {}
    model = fit(shop, objective=objective, regularization=1.0, iterations=500, solver="cholesky", **settings)
    want = model.item_factors.copy()
    rows = [0, 9, 20]
    broken = want.copy()
    broken[rows] = 7
    model.item_factors = broken
    assert model.update_items(table(taken[:, rows], ids[rows])).tolist() == ids[rows].tolist()
    np.testing.assert_allclose(model.item_factors, want, atol=1e-4)


def test_interactions_refine_a_cold_item(shop):
    ids, embeddings, _taken, likes = shop
    model = fit(shop, [0])
    # Its text says the wrong kind; users of kind 0 take it.
    model.add_items(embeddings[[9]], ids[[0]])
    fans = likes == 0
    assert model.predict(np.arange(USERS), ids[0])[fans].mean() < 0.2
    distances = []
    for n in (1, 5, 30):
        some = np.zeros((USERS, 1), bool)
        some[np.flatnonzero(fans)[:n]] = True
        assert model.update_items(table(some, ids[:1])).tolist() == [ids[0]]
        distances.append(model.predict(np.arange(USERS), ids[0])[fans].mean())
        # What they have is not recommended to them any more.
        assert ids[0] not in model.recommend(int(np.flatnonzero(fans)[0]), 24)[0]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert distances[2] > 0.5


def test_exposure_says_how_many_could_have_met_an_item(shop):
    ids, embeddings, _taken, likes = shop
    some = np.zeros((USERS, 1), bool)
    some[[0, 3]] = True

    def score(mode, exposure):
        model = fit(shop, [0])
        model.add_items(embeddings[[0]], ids[[0]], mode=mode)
        model.update_items(table(some, ids[:1]), exposure=exposure)
        assert model._bound.item_background is None or exposure in (None, model._bound.item_background[0])
        return model.predict(np.arange(USERS), ids[0])[likes == 0].mean()

    scores = [score("prior_mean", exposure) for exposure in (0.0, 0.3, 1.0)]
    assert scores[0] > scores[1] > scores[2]
    # By default as the item came: met by nobody yet, or by all.
    assert score("prior_mean", None) == scores[0]
    assert score("map", None) == score("map", 1.0) == scores[2]
    model = fit(shop, [0])
    model.add_items(embeddings[[0]], ids[[0]])
    with pytest.raises(ValueError, match="exposure must be a number from 0 to 1, got 2"):
        model.update_items(table(some, ids[:1]), exposure=2)


def test_update_keeps_other_entries_and_stored_zeros(shop):
    data = csr_matrix(np.array([[1.0, 0, 2], [0, 3, 0], [4, 5, 0]]))
    data.data[data.data == 5] = 0  # an observed zero
    model = WALS(2, "google_wals").fit(data)
    model.update_items(csr_matrix(np.array([[0, 0, 0], [0, 0, 8.0], [0, 0, 0]])))
    assert model._seen.toarray().tolist() == [[1, 0, 0], [0, 3, 8], [4, 0, 0]]
    assert model._seen.nnz == 5


def test_bad_input_leaves_the_model(shop):
    ids, embeddings, taken, _ = shop
    model = fit(shop, NEW)
    factors = model.item_factors
    for args, message in [
        ((embeddings[NEW], ids[NEW][:2]), r"one id for each of 3 items, got 2"),
        ((embeddings[NEW], ["a", "a", "b"]), "ids must be distinct"),
        ((embeddings[NEW], ["a", "item 01", "b"]), "the model knows 1 of them, such as 'item 01'"),
        ((embeddings[NEW] * np.nan, ["a", "b", "c"]), "must be finite"),
        ((embeddings[NEW][:, :2], ["a", "b", "c"]), r"shape \(n, E=3\) as in the fit, got \(3, 2\)"),
    ]:
        with pytest.raises(DataError, match=message):
            model.add_items(*args)
    with pytest.raises(TypeError, match="ids must be given"):
        model.add_items(embeddings[NEW])
    with pytest.raises(TypeError, match="ids are strings"):
        model.add_items(embeddings[NEW], [1, 2, 3])
    with pytest.raises(ValueError, match="mode must be one of prior_mean, map, regression; got 'zero'"):
        model.add_items(embeddings[NEW], ["a", "b", "c"], mode="zero")
    with pytest.raises(KeyError, match="unknown item id: 'item"):
        model.update_items(table(taken, ids))
    with pytest.raises(DataError, match="one per user; got"):
        model.update_items(csr_matrix(np.ones((3, 21))))
    assert model.item_factors is factors
    plain = WALS(2).fit(csr_matrix(np.eye(3)))
    with pytest.raises(ModelFitError, match="has no item_prior"):
        plain.add_items(embeddings)
    with pytest.raises(ModelFitError, match="not fitted"):
        WALS(2).add_items(embeddings)


# ---------------------------------------------------------------------------------------------------- texts


def letters(texts):
    """An encoder: how often each of some letters is there."""
    return [[text.count(letter) for letter in "abcxyz"] for text in texts]


def test_hybrid_is_the_recommended_configuration():
    model = WALS.hybrid(["abc", "xyz"], letters)
    assert (model.factors, model.iterations, model.objective.name) == (256, 20, "wals")
    prior = model.item_prior
    assert (prior.strength, prior.relative_strength, prior.votes, prior.cold) == (None, 0.5, "equal", "prior_mean")
    assert WALS.hybrid(np.eye(2), None, prior={"strength": 0.5}).item_prior.strength == 0.5
    assert WALS.hybrid(np.eye(2), None, objective="ials").item_prior.relative_strength == 0.5
    assert model.item_prior.embeddings.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    other = WALS.hybrid(np.eye(2), None, factors=8, objective="ials", prior={"strength": 3.0}, random_state=5)
    assert (other.factors, other.objective.name, other.item_prior.strength, other.random_state) == (8, "ials", 3.0, 5)
    assert WALS.hybrid(np.eye(2), None, exponent=0.2, regularization=1).objective.exponent == 0.2
    with pytest.raises(DataError, match=r"one row for each of the 3 items, got shape \(2, 6\)"):
        model.fit(csr_matrix(np.eye(3)))
    with pytest.raises(DataError, match="one row for each of 3 ids"):
        WALS.hybrid(["abc", "xyz"], letters, ids=[1, 2, 3])
    with pytest.raises(ValueError, match="cache_dir is for an encoder given by name or folder"):
        WALS.hybrid(["abc", "xyz"], letters, cache_dir="vectors")


def test_texts_of_new_items():
    texts = ["aab", "abb", "xyz", "zzx", None]
    taken = np.array([[1, 1, 0, 0, 0]] * 5 + [[0, 0, 1, 1, 0]] * 5)
    model = WALS.hybrid(texts, letters, factors=4, prior={"ridge": 0.01}).fit(csr_matrix(taken))
    model.add_items(["aabb", "xz", ""])
    scores = model.user_factors[[0, 5]] @ model.item_factors[5:].T
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]
    np.testing.assert_allclose(model.item_factors[7], model.item_prior_.unmet_weights[-1], atol=1e-6)


def test_texts_and_ids_of_new_items_come_in_every_form():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    table = pa.table({"user": [0, 0, 1, 1], "item": ["a", "b", "c", "d"]})
    expected, known = None, {"a": "aab", "b": "abb", "c": "xyz", "d": "zzx"}
    for kind in (list, pd.Series, np.array, pl.Series, pa.array):
        model = WALS.hybrid(known, letters, factors=2).fit(table)
        assert model.add_items(kind(["aabb", "xz"]), kind(["new", "old"])).tolist() == ["new", "old"]
        expected = model.item_factors if expected is None else expected
        assert np.array_equal(model.item_factors, expected)
        assert np.array_equal(model.project_items(pd.Series(["xz", np.nan])), model.project_items(["xz", None]))
    with pytest.raises(TypeError, match="ids must be a list of ids, one for each new item, got 'ef'"):
        model.add_items(["aabb", "xz"], "ef")
    vectors = np.array(letters(["aabb", "xz"]))
    for items in (
        {"new": "aabb", "old": "xz"},
        pd.Series(["aabb", "xz"], ["new", "old"]),
        {"new": vectors[0], "old": vectors[1]},
        pd.DataFrame(vectors, ["new", "old"]),
    ):
        model = WALS.hybrid(known, letters, factors=2).fit(table)
        assert model.add_items(items).tolist() == ["new", "old"] and np.array_equal(model.item_factors, expected)
    with pytest.raises(ValueError, match="ids must not be given with a mapping"):
        model.add_items({"x": "aabb"}, ["y"])
    with pytest.raises(TypeError, match="texts must be one column of the DataFrame"):
        WALS.hybrid(pd.DataFrame({"title": ["aab"]}), letters)
    with pytest.raises(DataError, match="where they have ids, give these too"):
        WALS.hybrid(["aab", "abb"], letters, factors=2).fit(table)


def test_command_line_from_texts_to_a_model_that_answers_texts(tmp_path, capsys):
    pytest.importorskip("transformers")
    from text_models import tiny_roberta

    tiny_roberta(tmp_path / "roberta", positions=140)
    kinds = ["numerical arrays and algebra", "plays music files"]
    names = [f"{kind} {n}" for kind in "am" for n in range(5)]
    texts = [f"{kinds[n // 5]} {'and more ' * (n % 5)}" for n in range(10)]
    pq.write_table(pa.table({"item_id": names, "title": names, "description": texts}), tmp_path / "items.parquet")
    rows = [(user, names[(user % 2) * 5 + n]) for user in range(20) for n in range(4)]  # nobody has the last of a kind
    pq.write_table(
        pa.table({"user_id": [r[0] for r in rows], "bought": [r[1] for r in rows]}), tmp_path / "plays.parquet"
    )
    fit = ["fit", f"{tmp_path}/plays.parquet", "--out", f"{tmp_path}/model", "--items", f"{tmp_path}/items.parquet"]
    fit += ["--text", "description", "--encoder", f"{tmp_path}/roberta", "--factors", "8", "--quiet"]
    fit += ["--item-column", "bought"]  # which the table of items calls otherwise
    assert cli.main([*fit, "--cache", f"{tmp_path}/vectors"]) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "vectors").glob("*/vectors.f32"))) == 1
    assert "8 factors, 20 iterations" in capsys.readouterr().out
    model = WALS.load(tmp_path / "model")
    assert model.item_ids.ids.tolist() == names
    assert cli.main(["recommend", f"{tmp_path}/model", "--text", "plays music files", "-k", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    vector = model.project_items(["plays music files"])[0]
    assert [pair["item"] for pair in found["items"]] == model.search(vector, 5, metric="cosine")[0].tolist()
    assert found["items"][0]["item"].startswith("m")
    assert cli.main(["recommend", f"{tmp_path}/model", "--text", "plays music files"]) == 0
    assert "cosine" in capsys.readouterr().out
    for wrong, message in [
        (["recommend", f"{tmp_path}/model", "3", "--text", "music"], "only one of them"),
        (["recommend", f"{tmp_path}/model", "--text", "music", "--seed", "1"], "--seed needs --explore thompson"),
        (fit[:6], "--items and --encoder belong together"),
        ([*fit[:4], "--text", "title"], "--cache, --strength and --relative-strength need --items and --encoder"),
        ([*fit, "--strength", "1", "--relative-strength", "1"], "must not both be given: one is absolute"),
        ([*fit, "--strength", "0"], "strength must be a finite number > 0"),
    ]:
        assert cli.main(wrong) != 0
        assert message in capsys.readouterr().err


def test_tables_of_new_items_have_their_ids_in_a_column(shop):
    """The ids were a feature, and had to be given a second time."""
    import pandas as pd
    import polars as pl

    ids, embeddings, *_ = shop
    new = list(range(5))
    columns = {"item_id": ids[new[::-1]]} | {f"f{k}": embeddings[new[::-1], k] for k in range(KINDS)}
    want = fit(shop, new)
    factors = want.project_items(embeddings[new[::-1]])
    want.add_items(embeddings[new], ids[new])
    for made in (pd.DataFrame, pl.DataFrame, pa.table):
        model = fit(shop, new)
        assert np.array_equal(model.project_items(made(columns)), factors)
        assert model.add_items(made(columns)).tolist() == ids[new[::-1]].tolist()
        assert np.array_equal(model.item_factors, want.item_factors)
        with pytest.raises(ValueError, match="ids of items must be what its column 'item_id' has"):
            fit(shop, new).add_items(made(columns), ids[new])
    frame = pd.DataFrame(embeddings[new], index=ids[new])
    with pytest.raises(ValueError, match="whose index has the same ids in another order"):
        fit(shop, new).add_items(frame, ids[new[::-1]])
    with pytest.raises(TypeError, match="ids must not be given: the model was fitted on a matrix"):
        matrix = WALS(2, item_prior=LinearPrior(embeddings), iterations=1).fit(csr_matrix(shop[2]))
        matrix.add_items(pd.DataFrame(columns))
