"""What users get of whom the model knows nothing: without history, unknown, or with unknown items only."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import PRESETS, WALS, DataError, ModelFitError, ParameterWarning, as_interactions
from wals_gpu.evaluation import Popularity
from wals_gpu.model.recommendations import Recommendations, RecommendationsChunk
from wals_gpu.priors import LinearPrior
from wals_gpu.stored import write_stored

pl = pytest.importorskip("polars")

U, I = 40, 15  # noqa: E741
COLD = [4, 7, 39]


def make_matrix(seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, (U, I)) * (rng.random((U, I)) < 0.3)
    dense[np.arange(U), np.arange(U) % I] = 3
    dense[:, 9] = dense[:, 3]  # as popular as another one
    dense[COLD] = 0
    return csr_matrix(dense.astype(np.float32))


def make_table(matrix):
    coo = matrix.tocoo()
    return pd.DataFrame(
        {"user": [f"u{r:02}" for r in coo.row], "item": [f"i{c:02}" for c in coo.col], "value": coo.data}
    )


def make_model(data=None, **params):
    return WALS(4, "hu", alpha=2, iterations=3, num_threads=2, **params).fit(make_matrix() if data is None else data)


def popular(matrix, k, permitted=None):
    """Columns and counts of the k most popular of the permitted items, -1 and -inf behind them."""
    counts = (matrix.toarray() > 0).sum(axis=0).astype(float)
    counts[~(np.ones(I, bool) if permitted is None else permitted)] = -np.inf
    order = np.argsort(-counts, kind="stable")[:k]
    return np.where(counts[order] > -np.inf, order, -1), counts[order]


# Users without history


def test_users_without_history_get_what_is_popular():
    matrix, model = make_matrix(), make_model()
    users = [0, 4, 39, 1, 4]
    found = model.recommend(users, 6)
    columns, counts = popular(matrix, 6)
    for row in (1, 2, 4):
        assert found.ids[row].tolist() == columns.tolist() and found.scores[row].tolist() == counts.tolist()
    assert found.source.tolist() == ["model", "popularity", "popularity", "model", "popularity"]
    assert found.is_cold.tolist() == [False, True, True, False, True] and found.users.tolist() == users
    ids, scores = model.recommend([0, 1], 6)
    assert np.array_equal(found.ids[[0, 3]], ids) and np.array_equal(found.scores[[0, 3]], scores)
    one = model.recommend(7, 6)
    assert one.ids.tolist() == columns.tolist() and one.source == "popularity" and one.is_cold and one.users == 7
    assert model.recommend(0).source == "model" and not model.recommend(0).is_cold
    # The baseline of evaluations says the same.
    assert np.array_equal(Popularity(matrix).recommend([4], 6)[0][0], columns)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("objective", ["wals", "implicit", "hu"])
def test_whom_nothing_above_0_is_known_of(objective, dtype):
    """They had factors of 0, hence scores of 0 and the first items by number, as if the model said so."""
    dense = make_matrix().toarray()
    dense[7, [2, 5]] = 0 if objective == "hu" else -1
    matrix = csr_matrix((dense[dense != 0], np.nonzero(dense)), shape=dense.shape)
    if objective == "hu":  # stored zeros
        rows, columns = matrix.nonzero()
        rows, columns = np.append(rows, [7, 7]), np.append(columns, [2, 5])
        matrix = csr_matrix((np.append(matrix.data, [0, 0]), (rows, columns)), shape=dense.shape)
    assert np.diff(matrix.indptr)[7] == 2
    model = WALS(4, objective, iterations=3, dtype=dtype).fit(matrix)
    permitted = np.ones(I, bool)
    permitted[[2, 5]] = False
    expected = popular(csr_matrix(dense), 4, permitted)
    for found, place in ((model.recommend([0, 7], 4), 1), (model.recommend_for(matrix[[7, 0]], 4), 0)):
        assert found.source[place] == "popularity" and found.source[1 - place] == "model"
        assert found.ids[place].tolist() == expected[0].tolist()
        assert found.scores[place].tolist() == expected[1].tolist()


def test_dislikes_say_something_where_the_objective_learns_from_them():
    dense = make_matrix().toarray()
    dense[7, [2, 5]] = -1
    assert WALS(4, "google_wals", iterations=3).fit(csr_matrix(dense)).recommend(7, 2).source == "model"


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
def test_lists_hold_for_popular_items(chunk_size):
    matrix, model, rng = make_matrix(), make_model(), np.random.default_rng(1)
    deny, allow = rng.random((U, I)) < 0.3, rng.random((U, I)) < 0.6
    hidden, shown = [9, 2], list(range(1, I))
    for lists, permitted in (
        ({}, np.ones((U, I), bool)),
        ({"deny": csr_matrix(deny), "deny_items": hidden}, ~deny & ~np.isin(np.arange(I), hidden)),
        ({"allow": csr_matrix(allow)}, allow),
        (
            {"deny": csr_matrix(deny), "allow": csr_matrix(allow), "deny_items": hidden, "allow_items": shown},
            ~deny & allow & ~np.isin(np.arange(I), hidden) & np.isin(np.arange(I), shown),
        ),
    ):
        parts = list(model.recommend_chunks(k=I, chunk_size=chunk_size, **lists))
        assert all(isinstance(part, RecommendationsChunk) and len(part) == 3 for part in parts)
        users, ids, scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert users.tolist() == list(range(U))
        source = np.concatenate([part.source for part in parts])
        assert np.flatnonzero(source == "popularity").tolist() == COLD
        assert np.concatenate([part.is_cold for part in parts]).sum() == len(COLD)
        for user in COLD:
            columns, counts = popular(matrix, I, permitted[user])
            assert ids[user].tolist() == columns.tolist() and scores[user].tolist() == counts.tolist()
        whole = model.recommend(range(U), I, **lists)
        assert np.array_equal(whole.ids, ids)


def test_only_liked_entries_make_an_item_popular():
    dense = np.zeros((6, 3), np.float32)
    dense[:5, 0] = -1
    dense[:2, 1] = 2
    dense[2, 2] = 1
    model = WALS(2, "explicit", iterations=2).fit(csr_matrix(dense))
    ids, scores = model.recommend(5, 3)
    assert ids.tolist() == [1, 2, 0] and scores.tolist() == [2, 1, 0]


def test_popularity_of_interactions_on_disk_and_of_loaded_models(tmp_path, monkeypatch):
    monkeypatch.setattr("wals_gpu.evaluation.popularity._ENTRIES", 7)  # some pieces
    matrix, expected = make_matrix(), popular(make_matrix(), 5)
    stored = write_stored(tmp_path / "stored", matrix)
    models = [make_model(stored), make_model()]
    models[1].save(tmp_path / "model")
    models.append(WALS.load(tmp_path / "model"))
    for model in models:
        found = model.recommend([4, 0], 5)
        assert found.ids[0].tolist() == expected[0].tolist() and found.scores[0].tolist() == expected[1].tolist()
        assert found.source.tolist() == ["popularity", "model"]
        skipped = model.recommend([99, 0, 4], 5, unknown="popular")
        assert np.array_equal(skipped.ids[[0, 2]], np.stack([expected[0]] * 2))


def test_large_counts_are_compared_exactly():
    """float32, the type of the scores, has no 2^24 + 1."""
    model = make_model()
    counts = np.full(I, 2**24)
    counts[[5, 11]] = 2**24 + 1, 2**24 + 2
    model.fitted._kept_popularity.append(counts)
    ids, scores = model.recommend(4, 3)
    assert ids.tolist() == [11, 5, 0] and scores.dtype == np.float32


def test_popularity_follows_the_model():
    matrix = make_matrix()
    model = make_model()
    before, _ = model.recommend(4, 1)
    rare = popular(matrix, I)[0][-1]
    everybody = csr_matrix((np.ones(U, np.float32), (np.arange(U), np.full(U, rare))), shape=(U, I))
    model.update_items(everybody)
    # Has it now, and is known by it once somebody solves for it: the factors are 0 as before.
    last = model.user_factors.shape[0] - 1
    assert model.recommend(last, 1, filter_seen=False).source == "popularity"
    model.update_users(everybody)
    assert model.recommend(last, 1, filter_seen=False).source == "model"
    assert model.fitted.popularity()[rare] == U and before[0] != rare


def test_mean_and_error():
    matrix, model = make_matrix(), make_model(dtype="float64")
    warm = np.setdiff1d(np.arange(U), COLD)
    scores = model.item_factors @ model.user_factors[warm].mean(axis=0)
    found = model.recommend([4, 0, 7], 3, cold_users="mean")
    expected = np.argsort(-scores, kind="stable")[:3]
    assert found.ids[0].tolist() == found.ids[2].tolist() == expected.tolist()
    np.testing.assert_allclose(found.scores[0], scores[expected])
    assert found.source.tolist() == ["mean", "model", "mean"] and np.array_equal(
        found.ids[1], model.recommend(0, 3).ids
    )
    new = csr_matrix((1, I), dtype=np.float32)
    assert model.recommend_for(new, 3, cold_users="mean").ids[0].tolist() == expected.tolist()
    parts = list(model.recommend_chunks([4], 3, cold_users="mean"))
    assert parts[0].ids[0].tolist() == expected.tolist()
    named = make_model(make_table(matrix))
    message = r"2 of 3 users have no interaction to go by, such as user 4; cold_users='popular' or 'mean'"
    for call in (
        lambda: model.recommend([0, 4, 7], cold_users="error"),
        lambda: model.recommend_chunks([0, 4, 7], cold_users="error"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(DataError, match="1 of 1 users have no interaction to go by, such as 'who'"):
        named.recommend("who", unknown="popular", cold_users="error")
    with pytest.raises(DataError, match=r"1 of 2 users have no .* such as user 1"):
        model.recommend_for(csr_matrix(([1.0], ([0], [2])), shape=(2, I)), cold_users="error")
    assert model.recommend([0, 1], cold_users="error").source.tolist() == ["model"] * 2


def test_the_mean_user_is_computed_once_of_factors_that_stay():
    model = make_model()
    mean = model.fitted.mean_user()
    assert model.fitted.mean_user() is mean
    model.user_factors = 2 * model.user_factors
    assert np.allclose(model.fitted.mean_user(), 2 * mean)
    model.user_factors *= 2  # in place: nothing was kept of an array that may change
    assert np.allclose(model.fitted.mean_user(), 4 * mean)


def test_nothing_is_explored_for_whom_nothing_is_known():
    """Without a ridge the system of somebody without entries has no inverse, and no bound."""
    dense = make_matrix().toarray()
    model = WALS(2, "explicit", iterations=2).fit(csr_matrix(dense))
    expected = popular(csr_matrix(dense), 3)[0]
    for explore in ("ucb", "thompson"):
        found = model.recommend([4, 0], 3, explore=explore)
        assert found.ids[0].tolist() == expected.tolist() and found.source.tolist() == ["popularity", "model"]
        mean = model.recommend([4, 0], 3, explore=explore, cold_users="mean")
        np.testing.assert_array_equal(mean.ids[0], model.recommend(4, 3, cold_users="mean").ids)
        found = model.recommend_for(csr_matrix(dense[[4, 0]]), 3, explore=explore)
        assert found.ids[0].tolist() == expected.tolist()
        found = model.recommend([99, 0], 3, explore=explore, unknown="popular")
        assert found.ids[0].tolist() == expected.tolist()
    draws = {"explore": "thompson", "random_state": 3, "noise": 0.5}
    alone = model.recommend([0], 3, **draws)  # who else is there changes nothing
    assert np.array_equal(model.recommend([4, 0], 3, **draws).ids[1], alone.ids[0])


def test_features_say_something_of_users_without_history():
    features = np.random.default_rng(0).random((U, 3))
    model = make_model(user_prior=LinearPrior(features))
    assert model.recommend(COLD, 3).source.tolist() == ["model"] * 3
    assert model.recommend([99, 4], 3, unknown="popular").source.tolist() == ["popularity", "model"]
    assert model.recommend_for(csr_matrix((1, I), dtype=np.float32)).source.tolist() == ["popularity"]


def test_models_of_assigned_factors_know_no_popularity():
    model = WALS(2)
    model.user_factors, model.item_factors = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    assert model.recommend([0, 2], 2).source.tolist() == ["model"] * 2
    with pytest.raises(ModelFitError, match="the model knows no interactions, so it does not know which items are pop"):
        model.recommend(5, unknown="popular")
    assert model.recommend(5, 2, unknown="popular", cold_users="mean").source == "mean"


# Unknown ids


def test_unknown_row_numbers():
    model, columns = make_model(), popular(make_matrix(), 4)[0].tolist()
    for users in ([0, U, -1, 2**40, 4], np.array([0, U, -1, 2**40, 4])):
        found = model.recommend(users, 4, unknown="popular")
        assert found.users.tolist() == [0, U, -1, 2**40, 4]
        assert found.source.tolist() == ["model"] + ["popularity"] * 4
        assert [row.tolist() for row in found.ids[1:]] == [columns] * 4
        kept = model.recommend(users, 4, unknown="skip")
        assert kept.users.tolist() == [0, 4] and np.array_equal(kept.ids, found.ids[[0, 4]])
        parts = list(model.recommend_chunks(users, 4, chunk_size=2, unknown="skip"))
        assert np.concatenate([part.users for part in parts]).tolist() == [0, 4]
    with pytest.raises(IndexError, match=r"users must be in \[0, 40\), got 40"):
        model.recommend([0, U])
    for unknown in ("popular", "skip"):
        with pytest.raises(TypeError, match="users must be row numbers"):
            model.recommend(["a"], unknown=unknown)
        with pytest.raises(ValueError, match="users must be one id or a 1-D list of ids"):
            model.recommend([[0]], unknown=unknown)
        assert model.recommend([], 4, unknown=unknown).ids.shape == (0, 4)


@pytest.mark.parametrize("kind", [list, pd.Series, np.array, pa.array, pl.Series])
def test_unknown_ids(kind):
    matrix = make_matrix()
    table = make_table(matrix)
    for model, users, who in (
        (make_model(table), ["u03", "nobody", "u00"], ["u03", "nobody", "u00"]),
        (make_model(table.assign(user=table["user"].str[1:].astype(int))), [3, -5, 0], [3, -5, 0]),
    ):
        found = model.recommend(kind(users), 3, unknown="popular")
        assert found.users.tolist() == who and found.source.tolist() == ["model", "popularity", "model"]
        assert found.ids[1].tolist() == model.item_ids.take(popular(matrix, 3)[0]).tolist()
        kept = model.recommend(kind(users), 3, unknown="skip", deny=[[], ["i00"], [found.ids[2][0]]])
        assert kept.users.tolist() == [who[0], who[2]] and kept.ids.shape == (2, 3)
        assert kept.ids[0].tolist() == found.ids[0].tolist()
        assert kept.ids[1].tolist()[:2] == found.ids[2].tolist()[1:]  # lists are for those that were asked for
        with pytest.raises(KeyError, match="unknown user id"):
            model.recommend(kind(users))
        with pytest.raises(ValueError, match="deny must be"):
            model.recommend(kind(users), deny=[[], []], unknown="skip")


def test_a_single_unknown_id():
    model = make_model(make_table(make_matrix()))
    one = model.recommend("who", 3, unknown="popular")
    assert one.users == "who" and one.source == "popularity" and one.ids.shape == (3,)
    none = model.recommend("who", 3, unknown="skip")
    assert none.ids.shape == none.scores.shape == (0,) and none.source == "skipped" and none.users == "who"
    assert none.to_arrow().num_rows == 0 and none.to_arrow().column_names[0] == "user_id"
    with pytest.raises(KeyError, match="'who'"):
        model.recommend("who")
    for wrong in (3, None, 1.5):
        for unknown in ("error", "popular", "skip"):
            with pytest.raises(TypeError, match="user ids are strings"):
                model.recommend(wrong, unknown=unknown)
    huge = make_model(pd.DataFrame({"user": [1, 2, 2], "item": ["a", "b", "a"]}))
    found = huge.recommend([1, 2**70], 1, unknown="popular")
    assert found.users.tolist() == [1, 2**70]
    assert found.to_arrow()["user_id"].to_pylist() == ["1", str(2**70)]


def test_options_are_checked_first():
    model = make_model()
    for options, message in (
        ({"cold_users": "zero"}, "cold_users must be one of 'popular', 'mean', 'error'; got 'zero'"),
        ({"cold_users": None}, "cold_users must be one of"),
        ({"cold_users": np.array(["mean", "mean"])}, "cold_users must be one of"),
        ({"unknown": "drop"}, "unknown must be one of 'error', 'popular', 'skip'; got 'drop'"),
    ):
        for call in (
            lambda options: model.recommend(0, **options),
            lambda options: model.recommend_for(make_matrix(), **options),
            lambda options: model.recommend_chunks(**options),
        ):
            with pytest.raises(ValueError, match=message):
                call(options)


# Users given by what they have


def new_table():
    return pd.DataFrame(
        {"user": ["zoe", "ann", "zoe", "bob", "eve"], "item": ["i01", "i02", "i03", "nothing", "i04"], "value": 2.0}
    )


def csv_of(table, tmp_path):
    path = tmp_path / "new.csv"
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("form", ["pandas", "polars", "lazy", "arrow", "categorical", "dictionary", "csv", "parquet"])
def test_rows_are_in_the_order_in_which_users_appear(form, tmp_path):
    model, table = make_model(make_table(make_matrix())), new_table()
    forms = {
        "pandas": lambda: table,
        "polars": lambda: pl.from_pandas(table),
        "lazy": lambda: pl.from_pandas(table).lazy(),
        "arrow": lambda: pa.Table.from_pandas(table),
        "categorical": lambda: table.astype({"user": pd.CategoricalDtype(["unused", "ann", "bob", "eve", "zoe"])}),
        "dictionary": lambda: pa.table(
            {"user": pa.array(table["user"]).dictionary_encode(), "item": list(table["item"]), "value": [2.0] * 5}
        ),
        "csv": lambda: csv_of(table, tmp_path),
        "parquet": lambda: (table.to_parquet(tmp_path / "new.parquet"), tmp_path / "new.parquet")[1],
    }
    with pytest.raises(KeyError, match="unknown item id: 'nothing'"):
        model.recommend_for(forms[form]())
    with pytest.warns(ParameterWarning, match="1 of 5 rows name a user or an item that is not known"):
        found = model.recommend_for(forms[form](), 3, unknown="popular")
    assert found.users.tolist() == ["zoe", "ann", "bob", "eve"]
    assert found.source.tolist() == ["model", "model", "popularity", "model"]
    assert found.ids[2].tolist() == model.item_ids.take(popular(make_matrix(), 3)[0]).tolist()
    known = np.zeros((3, I), np.float32)
    known[0, [1, 3]] = known[1, 2] = known[2, 4] = 2
    expected = model.recommend_for(csr_matrix(known), 3)
    assert np.array_equal(found.ids[[0, 1, 3]], expected.ids) and expected.users.tolist() == [0, 1, 2]
    with pytest.warns(ParameterWarning, match="1 of 5 rows"):
        kept = model.recommend_for(forms[form](), 3, unknown="skip", deny=[[], [], ["i00"], ["i00"]])
    assert kept.users.tolist() == ["zoe", "ann", "eve"] and "i00" not in kept.ids[2].tolist()
    some = table[table["item"] != "nothing"]
    assert np.array_equal(model.fold_in(some), model.fold_in(csr_matrix(known)))


def test_integer_users_of_a_text_file(tmp_path):
    model = make_model(make_table(make_matrix()))
    path = csv_of(pd.DataFrame({"user": [30, 4, 30, 7], "item": ["i01", "i02", "i03", "i04"]}), tmp_path)
    assert model.recommend_for(path, 2).users.tolist() == [30, 4, 7]
    frame = model.recommend_for(path, 2).to_arrow()
    assert frame["user_id"].to_pylist() == [30, 30, 4, 4, 7, 7] and frame.schema.field("user_id").type == pa.int64()


def test_interactions_and_matrices_keep_their_order():
    model = make_model(make_table(make_matrix()))
    own = as_interactions(new_table()[lambda t: t["item"] != "nothing"], item_ids=model.item_ids)
    assert model.recommend_for(own, 2).users.tolist() == ["ann", "eve", "zoe"]
    assert model.recommend_for(replace(own, item_ids=None), 2).users.tolist() == ["ann", "eve", "zoe"]
    with pytest.raises(TypeError, match="user_column can be given with a table only; interactions is a matrix"):
        model.recommend_for(own.matrix, 2, user_column="user")
    with pytest.raises(TypeError, match=r"fold_in\(\) has no argument 'colour'"):
        model.fold_in(own, colour="red")
    assert model.recommend_for(own.matrix, 2, user_column=None).users.tolist() == [0, 1, 2]
    # A row of a matrix without entries is somebody of whom nothing is known, whatever is said of unknown items.
    empty = csr_matrix((2, I), dtype=np.float32)
    for unknown in ("error", "popular", "skip"):
        assert model.recommend_for(empty, 2, unknown=unknown).source.tolist() == ["popularity"] * 2


@pytest.mark.parametrize("objective", sorted(PRESETS))
def test_nothing_explains_the_score_of_who_has_nothing(objective):
    """With a ridge for each entry ("spark", "explicit") the system of such a user is 0."""
    model = WALS(3, objective, iterations=2, num_threads=1).fit(make_matrix())
    for found in (model.explain(COLD[0], 2), model.explain_for(csr_matrix((1, I)), 2)):
        assert found.score == 0 and len(found.ids) == len(found.contributions) == 0


def test_explain_for_new_users():
    matrix = make_matrix()
    model = make_model(make_table(matrix))
    table = new_table()[:1]
    why = model.explain_for(table, "i05")
    assert why.ids.tolist() == ["i01"]
    found = model.recommend_for(table, I, allow_items=["i05"])
    assert why.score == pytest.approx(float(found.scores[0, 0]), rel=1e-4)
    several = make_model()
    row = matrix[[0]]
    why = several.explain_for(row, 5, 2)
    assert len(why.ids) == 2 and set(why.ids) <= set(row.indices)
    whole = several.explain_for(row, 5, I)
    assert whole.contributions.sum() == pytest.approx(whole.score)
    for call, error, message in (
        (lambda: model.explain_for(new_table()[:2], "i05"), DataError, "interactions must be of one user, got 2"),
        (lambda: model.explain_for(table, ["i05"]), ValueError, "explain_for takes one item"),
        (lambda: model.explain_for(table, "nothing"), KeyError, "unknown item id"),
        (lambda: model.explain_for(table, "i05", 0), ValueError, "k must be an integer >= 1"),
    ):
        with pytest.raises(error, match=message):
            call()


# The object


def test_recommendations_are_a_pair_that_can_be_copied():
    model = make_model(make_table(make_matrix()))
    found = model.recommend(["u00", "who"], 3, unknown="popular", titles={"i03": "Three"})
    chunk = next(model.recommend_chunks(k=3))
    ids, scores = found
    assert isinstance(found, tuple) and len(found) == 2 and found[0] is ids is found.ids and scores is found.scores
    for one in (found, chunk, model.recommend("u00"), model.similar_items("i01"), model.explain("u00", "i01")):
        for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert type(other) is type(one) and len(other) == len(one)
            assert all(np.array_equal(a, b) for a, b in zip(other, one, strict=True))
            assert other.to_arrow().equals(one.to_arrow()) and str(other) == str(one)
    assert isinstance(found, Recommendations)
