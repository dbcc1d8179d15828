"""Users and items of a fitted model that come, change and go."""

import copy

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_matrix, csr_matrix

from wals_gpu import (
    PRESETS,
    WALS,
    DataError,
    Interactions,
    ModelFitError,
    SingularSystemError,
    make_objective,
    reference,
)
from wals_gpu.data.csr import entry_rows, select
from wals_gpu.data.ids import Ids
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.stored import StoredMatrix, write_stored

U, I = 30, 15  # noqa: E741
KINDS = ["matrix", "strings", "integers"]


def make_matrix(seed=0, shape=(U, I)):
    """Every user and item has an entry; one entry is a stored zero."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, shape) * (rng.random(shape) < 0.3)
    dense[np.arange(max(shape)) % shape[0], np.arange(max(shape)) % shape[1]] = 3
    matrix = csr_matrix(dense.astype(np.float64))
    matrix.data[2] = 0
    return matrix


def user_id(row, kind):
    """The id of a row; ids sort as rows do."""
    return {"matrix": row, "strings": f"u{row:03}", "integers": 2 * row}[kind]


def item_id(column, kind):
    return {"matrix": column, "strings": f"i{column:03}", "integers": 3 * column - 7}[kind]


def as_data(matrix, kind, first=0):
    """A matrix as it is, or as a table in random order, whose first row is that of user number `first`."""
    if kind == "matrix":
        return matrix
    coo = coo_matrix(matrix)
    user, item = [user_id(r + first, kind) for r in coo.row], [item_id(c, kind) for c in coo.col]
    return pd.DataFrame({"user": user, "item": item, "value": coo.data}).sample(frac=1, random_state=0)


def only(matrix, rows=None, columns=None):
    """The entries of some rows or columns, in the same shape."""
    keep = np.isin(entry_rows(matrix), rows) if rows is not None else np.isin(matrix.indices, columns)
    return select(matrix, keep)


def fit(data, objective="hu", **settings):
    return WALS(**{"factors": 4, "objective": objective, "iterations": 4, "dtype": "float64"} | settings).fit(data)


def state(model):
    """All that answers come from, for comparisons."""
    fitted = model.fitted
    arrays, _ = fitted.bound.to_arrays()
    return {
        "factors": [fitted.user_factors.tolist(), fitted.item_factors.tolist()],
        "ids": [None if ids is None else ids.ids.tolist() for ids in (fitted.user_ids, fitted.item_ids)],
        "seen": [fitted.seen.shape, *(part.tolist() for part in (fitted.seen.indptr, fitted.seen.indices))],
        "values": fitted.seen.data.tolist(),
        "objective": {name: array.tolist() for name, array in arrays.items()},
        "shape": (fitted.bound.n_users, fitted.bound.n_items),
        "priors": [None if p is None else p.mean.tolist() for p in (fitted.user_prior, fitted.item_prior)],
    }


def answers(model):
    users = np.arange(model.n_users) if model.user_ids is None else model.user_ids.ids
    items = np.arange(model.n_items) if model.item_ids is None else model.item_ids.ids
    return [*model.recommend(users, k=I + 3), *model.similar_users(users[0], 5), *model.similar_items(items[0], 5)]


def check_files(model, path):
    """Saved and loaded, the model gives the same answers."""
    model.save(path)
    loaded = WALS.load(path)
    assert state(loaded) == state(model)
    assert all(np.array_equal(a, b) for a, b in zip(answers(model), answers(loaded), strict=True))


# ---------------------------------------------------------------------------------------------------- update_users


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", PRESETS)
def test_updated_users_have_the_exact_solution_of_their_rows(objective, kind):
    settings = {"row_weights": np.linspace(1, 2, U)} if objective == "google_wals" else {}
    matrix, rows = make_matrix(), [3, 7, 20]
    model = fit(as_data(matrix, kind), objective, **settings)
    before = model.user_factors.copy()
    exact = reference.solve_rows(model.objective.bind(matrix).user_terms(matrix), model.item_factors)
    updated = model.update_users(as_data(only(matrix, rows), kind))
    assert updated.tolist() == [user_id(row, kind) for row in rows]
    np.testing.assert_allclose(model.user_factors[rows], exact[rows], rtol=1e-7, atol=1e-10)
    others = np.setdiff1d(np.arange(U), rows)
    assert np.array_equal(model.user_factors[others], before[others])
    assert np.array_equal(model.fitted.seen.toarray(), matrix.toarray()) and model.fitted.seen.nnz == matrix.nnz


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", PRESETS)
def test_new_users_are_what_fold_in_gives_and_are_known_from_then_on(objective, kind, tmp_path):
    """The old users are rows 5 and on of a larger world, so that all rows of a model with ids move."""
    world = make_matrix(shape=(U + 5, I))
    old, new = world[5:], world[:5]
    settings = {"row_weights": np.linspace(1, 2, U)} if objective == "google_wals" else {}
    model = fit(as_data(old, kind, 0 if kind == "matrix" else 5), objective, **settings)
    before, items = model.user_factors.copy(), model.item_factors
    folded = model.fold_in(new)
    if kind == "matrix":
        added = model.update_users(
            csr_matrix((new.data, new.indices, np.append(np.zeros(U, int), new.indptr)), (U + 5, I))
        )
        new_rows, old_rows = np.arange(U, U + 5), np.arange(U)
        assert added.tolist() == new_rows.tolist()
    else:
        added = model.update_users(as_data(new, kind))
        new_rows, old_rows = np.arange(5), np.arange(5, U + 5)
        assert added.tolist() == [user_id(row, kind) for row in range(5)]
        assert model.user_ids.ids.tolist() == [user_id(row, kind) for row in range(U + 5)]
    assert model.n_users == U + 5 and model.item_factors is items
    np.testing.assert_allclose(model.user_factors[new_rows], folded, rtol=1e-9, atol=1e-12)
    assert np.array_equal(model.user_factors[old_rows], before)
    assert np.array_equal(model.fitted.seen[new_rows].toarray(), new.toarray())
    assert np.array_equal(model.fitted.seen[old_rows].toarray(), old.toarray())
    for row, one in enumerate(added):
        ids, _ = model.recommend(one, k=I)
        assert {item_id(c, kind) for c in new.indices[new.indptr[row] : new.indptr[row + 1]]}.isdisjoint(ids)
        assert np.array_equal(ids, model.recommend_for(new[row], k=I)[0][0])
    check_files(model, tmp_path)
    # Another fit of all, with the weights of the users who were there and 1 for the new ones.
    again = np.empty((U + 5, I))
    again[new_rows], again[old_rows] = new.toarray(), old.toarray()
    model.fit(csr_matrix(again), warm_start=False)
    if objective == "google_wals":
        assert model.objective.row_weights[new_rows].tolist() == [1.0] * 5
        assert model.objective.row_weights[old_rows].tolist() == np.linspace(1, 2, U).tolist()


def test_known_and_new_users_together_in_several_steps():
    matrix = make_matrix()
    model = fit(as_data(matrix[:15], "strings"))
    for stop in (19, 30):
        model.update_users(as_data(matrix[:stop], "strings"))
        assert model.n_users == stop
        exact = reference.solve_rows(model.objective.bind(matrix).user_terms(matrix), model.item_factors)
        np.testing.assert_allclose(model.user_factors, exact[:stop], rtol=1e-7, atol=1e-10)
        assert np.array_equal(model.fitted.seen.toarray(), matrix[:stop].toarray())
    counts = np.bincount(model.fitted.seen.indices, minlength=I)
    assert counts.tolist() == np.bincount(matrix.indices, minlength=I).tolist()


def test_a_new_user_without_entries_keeps_the_numbers_of_the_rows():
    matrix = make_matrix()
    model = fit(matrix[:20])
    without_one = np.setdiff1d(np.arange(20, 30), 25)
    assert model.update_users(only(matrix, without_one)[:28]).tolist() == list(range(20, 28))
    assert model.n_users == 28 and not model.user_factors[25].any() and model.user_factors[26].any()


def test_interactions_with_ids_and_files(tmp_path):
    matrix = make_matrix()
    by_table = fit(as_data(matrix[:20], "strings"))
    for data in (
        as_data(matrix, "strings"),
        tmp_path / "all.csv",
        Interactions(matrix, Ids(pa.array([user_id(row, "strings") for row in range(U)])), by_table.item_ids),
    ):
        model = fit(as_data(matrix[:20], "strings"))
        if not isinstance(data, (pd.DataFrame, Interactions)):
            as_data(matrix, "strings").to_csv(data, index=False)
        assert len(model.update_users(data)) == U
        by_table.update_users(as_data(matrix, "strings"))
        assert state(model) == state(by_table)
    # Ids of a text file that are all written like integers, in a model whose ids are not.
    (tmp_path / "few.csv").write_text("user,item,value\n9,i003,2\n10,i004,1\n")
    assert model.update_users(tmp_path / "few.csv").tolist() == ["10", "9"]
    assert model.update_users([tmp_path / "few.csv"]).tolist() == ["10", "9"]
    typed = pa.table({"user": [9], "item": ["i003"], "value": [2.0]})  # a file with types says what it means
    pq.write_table(typed, tmp_path / "few.parquet")
    with pytest.raises(DataError, match="user ids must be strings as those of the model, got integers"):
        model.update_users(tmp_path / "few.parquet")
    one = csr_matrix(([1.0], ([0], [4])), shape=(1, I))
    assert model.recommend_for(one, k=3)[0][0].tolist() == model.recommend("10", k=3)[0].tolist()


def test_update_users_refuses_what_it_cannot_use():
    matrix = make_matrix()
    named, numbered = fit(as_data(matrix, "strings")), fit(matrix)
    before = state(named), state(numbered)
    for model, data, error, message in [
        (named, pd.DataFrame({"user": ["u001"], "item": ["new"]}), KeyError, "unknown item id: 'new'"),
        (named, pd.DataFrame({"user": [1], "item": ["i001"]}), DataError, "user ids must be strings as those of the"),
        (named, make_matrix(shape=(U + 1, I)), DataError, "must have 30 rows, one per user; new users need ids"),
        (named, matrix[:5], DataError, r"interactions must have 30 rows, one per user.*got \(5, 15\)"),
        (numbered, matrix[:5], DataError, "must have 30 rows, one per user, and one for each new user after them"),
        (numbered, make_matrix(shape=(U, I + 1)), DataError, f"{I} columns"),
        (numbered, as_data(matrix, "strings"), TypeError, "must be a matrix: the model was fitted on one"),
        (numbered, matrix * np.nan, DataError, "every value must be finite"),
        (named, matrix * -1, ValueError, "takes values >= 0 only"),
    ]:
        with pytest.raises(error, match=message):
            model.update_users(data)
    with pytest.raises(ValueError, match="embeddings of users need a model with a user_prior"):
        named.update_users(as_data(matrix, "strings"), embeddings=np.eye(3))
    assert (state(named), state(numbered)) == before
    with pytest.raises(ModelFitError, match="not fitted"):
        WALS(2).update_users(matrix)
    singular = fit(as_data(matrix, "strings"), "explicit", factors=2, regularization=1e-3)
    singular.objective = make_objective("explicit", regularization=0)
    singular.fit(as_data(matrix[:, :3].toarray() + 1, "strings"))
    with pytest.raises(SingularSystemError, match=r"user 30 \(id 'zoe'\) is not positive definite"):
        singular.update_users(pd.DataFrame({"user": ["zoe"], "item": ["i001"], "value": [1.0]}))
    assert singular.n_users == U


@pytest.mark.parametrize("cold", ["prior_mean", "map"])
@pytest.mark.parametrize("strength", [None, "each"])
def test_users_with_a_prior(cold, strength, tmp_path):
    matrix = make_matrix()
    rng = np.random.default_rng(1)
    features = rng.normal(size=(U, 3))
    ids = [user_id(row, "strings") for row in range(U)]
    options = {"cold": cold, "strength": None if strength is None else np.linspace(1, 2, 20)}
    prior = LinearPrior((ids[:20], features[:20]), **options)
    model = fit(as_data(matrix[:20], "strings"), user_prior=prior)
    new = as_data(only(matrix, range(20, 30)), "strings")
    appearing = [int(one[1:]) for one in new["user"].unique()]
    assert appearing != sorted(appearing)
    folded = model.fold_in(matrix[20:], embeddings=features[20:])
    unknown = model.fold_in(matrix[20:])
    for embeddings, expected in [
        (features[appearing], folded),
        ((ids[::-1], features[::-1]), folded),
        (dict(zip(ids, features, strict=True)), folded),
        (pd.DataFrame(features, index=ids)[::-1], folded),
        (None, unknown),
    ]:
        model = fit(as_data(matrix[:20], "strings"), user_prior=prior)
        model.update_users(new, embeddings=embeddings)
        np.testing.assert_allclose(model.user_factors[20:], expected, rtol=1e-8, atol=1e-12)
        assert model.user_prior_.mean.shape == (U, 4)
        check_files(model, tmp_path)
    with pytest.raises(DataError, match="10 are missing"):
        fit(as_data(matrix[:20], "strings"), user_prior=prior).update_users(new, embeddings=(ids[:20], features[:20]))
    # Of those who were there, the same as a sweep of the fit.
    rows = np.arange(20)
    model.update_users(as_data(matrix[:20], "strings"))
    first = model.user_factors.copy()
    model.update_users(as_data(matrix[:20], "strings"))
    np.testing.assert_allclose(model.user_factors[rows], first[rows], rtol=1e-12)


# ---------------------------------------------------------------------------------------------------- removal


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", PRESETS)
def test_removed_users_leave_nothing(objective, kind, tmp_path):
    matrix, gone = make_matrix(), [0, 4, 29]
    settings = {"row_weights": np.linspace(1, 2, U)} if objective == "google_wals" else {}
    model = fit(as_data(matrix, kind), objective, **settings)
    kept = np.setdiff1d(np.arange(U), gone)
    before, items = model.user_factors.copy(), model.item_factors
    expected, new = model.recommend([user_id(r, kind) for r in kept], k=I), model.recommend_for(matrix[gone], k=I)
    removed = model.remove_users([user_id(row, kind) for row in (29, 0, 4, 0)])
    assert removed.tolist() == [user_id(row, kind) for row in gone]
    assert np.array_equal(model.user_factors, before[kept]) and model.item_factors is items
    assert np.array_equal(model.fitted.seen.toarray(), matrix[kept].toarray())
    assert model.fitted.bound.n_users == model.n_users == U - 3
    now = [user_id(row, kind) for row in kept] if kind != "matrix" else np.arange(U - 3)
    got = model.recommend(now, k=I)
    assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])
    assert np.array_equal(model.recommend_for(matrix[gone], k=I)[0], new[0])
    check_files(model, tmp_path)
    if kind != "matrix":
        with pytest.raises(KeyError, match="unknown user id"):
            model.recommend(user_id(4, kind))
    else:
        with pytest.raises(IndexError):
            model.recommend(U - 3)
    if objective == "google_wals":
        assert model.objective.row_weights.tolist() == np.linspace(1, 2, U)[kept].tolist()
    model.fit(as_data(matrix[kept], "matrix"))  # the next fit finds settings of its size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", PRESETS)
def test_removed_items_leave_nothing(objective, kind, tmp_path):
    matrix, gone = make_matrix(), [0, 4, 14]
    settings = {"column_weights": np.linspace(1, 2, I)} if objective == "google_wals" else {}
    model = fit(as_data(matrix, kind), objective, **settings)
    kept = np.setdiff1d(np.arange(I), gone)
    before, users = model.item_factors.copy(), model.user_factors
    every = [user_id(row, kind) for row in range(U)]
    expected = model.recommend(every, k=I, deny_items=[item_id(c, kind) for c in gone])
    assert model.remove_items([item_id(c, kind) for c in (14, 0, 4, 0)]).tolist() == [item_id(c, kind) for c in gone]
    assert np.array_equal(model.item_factors, before[kept]) and model.user_factors is users
    assert not model.item_factors.flags.writeable
    assert np.array_equal(model.fitted.seen.toarray(), matrix[:, kept].toarray())
    assert model.fitted.seen.nnz == np.isin(matrix.indices, kept).sum()
    got = model.recommend(every, k=I)
    wanted = expected[0] if kind != "matrix" else np.append(np.searchsorted(kept, np.arange(I)), -1)[expected[0]]
    assert np.array_equal(got[0], wanted) and np.array_equal(got[1], expected[1])
    check_files(model, tmp_path)
    exact = reference.solve_rows(model.fitted.bound.user_terms(model.fitted.seen), model.item_factors)
    folded = model.fold_in(model.fitted.seen)
    np.testing.assert_allclose(folded, exact, rtol=1e-7, atol=1e-10)
    if objective == "google_wals":
        assert model.objective.column_weights.tolist() == np.linspace(1, 2, I)[kept].tolist()
    model.fit(matrix[:, kept])


def test_unknown_ids_change_nothing_unless_skipped():
    matrix = make_matrix()
    named, numbered = fit(as_data(matrix, "strings")), fit(matrix)
    before = state(named), state(numbered)
    for call, error, message in [
        (lambda: named.remove_users(["u001", "nobody"]), KeyError, "unknown user id: 'nobody'"),
        (lambda: named.remove_items(["nothing"]), KeyError, "unknown item id: 'nothing'"),
        (lambda: named.remove_users([1]), TypeError, "user ids are strings"),
        (lambda: numbered.remove_users([0, U]), IndexError, rf"users must be in \[0, {U}\), got {U}"),
        (lambda: numbered.remove_items(-1), IndexError, "items must be in"),
        (lambda: numbered.remove_users(0.0), TypeError, "users must be row numbers"),
        (lambda: numbered.remove_users(0.0, unknown="skip"), TypeError, "users must be row numbers"),
        (lambda: named.remove_users("u001", unknown="drop"), ValueError, "unknown must be 'error' or 'skip'"),
        (lambda: named.remove_users(named.user_ids.ids), ValueError, "users must leave at least one of the 30 users"),
        (lambda: numbered.remove_items(range(I)), ValueError, "items must leave at least one of the 15 items"),
        (lambda: WALS(2).remove_users(0), ModelFitError, "not fitted"),
        (lambda: numbered.remove_items([True, 3]), TypeError, "items must be row numbers .* got bool True at position"),
        (lambda: named.remove_items(np.arange(I) == 2), TypeError, "item ids are strings"),
        (lambda: numbered.remove_users((np.arange(U) == 2) * 1), TypeError, "got a 0 or 1 for each of the 30 users"),
        (lambda: numbered.remove_items((np.arange(I) == 2) * 1), TypeError, "got a 0 or 1 for each of the 15 items"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert named.remove_users(["nobody"], unknown="skip").tolist() == []
    assert numbered.remove_items([], unknown="skip").tolist() == numbered.remove_users([]).tolist() == []
    assert (state(named), state(numbered)) == before
    assert named.remove_users(["u001", "nobody"], unknown="skip").tolist() == ["u001"]
    assert numbered.remove_users([-1, 3, U], unknown="skip").tolist() == [3]
    assert numbered.remove_users(3).tolist() == [3]


@pytest.mark.parametrize("with_ids", [True, False])
def test_features_of_who_is_gone_are_gone_too(with_ids, tmp_path):
    matrix = make_matrix()
    rng = np.random.default_rng(1)
    of_users, of_items = rng.normal(size=(U + 2, 3)), rng.normal(size=(I + 2, 3))
    kind = "strings" if with_ids else "matrix"
    users, items = [user_id(r, kind) for r in range(U + 2)], [item_id(c, kind) for c in range(I + 2)]
    if with_ids:  # and a catalogue with more than there is in the fit
        user_prior = LinearPrior((users[::-1], of_users[::-1]), strength=np.linspace(1, 2, U))
        item_prior = LinearPrior((items, of_items), strength=np.linspace(1, 2, I))
    else:
        user_prior, item_prior = LinearPrior(of_users[:U]), LinearPrior(of_items[:I])
    model = fit(as_data(matrix, kind), user_prior=user_prior, item_prior=item_prior)
    means = model.user_prior_.mean[1:], model.item_prior_.mean[:-1]
    model.remove_users(users[0])
    model.remove_items(items[I - 1])
    assert np.array_equal(model.user_prior_.mean, means[0]) and np.array_equal(model.item_prior_.mean, means[1])
    for prior, row in ((model.user_prior, of_users[0]), (model.item_prior, of_items[I - 1])):
        assert not (prior.embeddings == row).all(axis=1).any()
    assert len(model.user_prior.embeddings) == U - 1 + 2 * with_ids
    assert len(user_prior.embeddings) == U + 2 * with_ids  # the caller's own is as it was
    check_files(model, tmp_path)
    model.fit(as_data(matrix[1:, : I - 1], kind, first=1))
    model.fold_in(matrix[:, : I - 1], embeddings=of_users[:U])
    if with_ids:
        own = model.user_prior = LinearPrior((users, of_users))
        model.remove_users(users[1])
        assert model.user_prior is own  # assigned since the fit: not the model's to change


def test_coming_and_going_in_turn():
    """Whatever the order, the model is that of the rows that are left."""
    matrix = make_matrix()
    model = fit(as_data(matrix, "strings"))
    want = state(model)
    model.remove_users(["u003", "u017"])
    model.update_users(as_data(only(matrix, [3, 17]), "strings"))
    model.update_users(as_data(matrix, "strings"))
    exact = reference.solve_rows(model.objective.bind(matrix).user_terms(matrix), model.item_factors)
    np.testing.assert_allclose(model.user_factors, exact, rtol=1e-7, atol=1e-10)
    assert {k: v for k, v in state(model).items() if k != "factors"} == {
        k: v for k, v in want.items() if k != "factors"
    }


# ---------------------------------------------------------------------------------------------------- other models


def test_assigned_factors_of_others_are_refused_before_an_earlier_folder_is_replaced(tmp_path):
    model = fit(make_matrix())
    model.save(tmp_path / "m")
    users, items = model.user_factors, model.item_factors
    for side, factors, message in (
        ("user", users[:-1], rf"user_factors must have a row for each of the {U} users .* got shape \({U - 1}, "),
        ("item", np.vstack([items, items]), rf"item_factors must have a row for each of the {I} items"),
        ("item", np.hstack([items, items]), r"user_factors \(U, D\) and item_factors \(I, D\) must have one D"),
        ("item", items.astype(np.int8), "item_factors must be a float32 or float64 array .*, got int8"),
        ("user", users.tolist(), "user_factors must be a float32 or float64 array .*, got list"),
    ):
        wrong = fit(make_matrix())
        setattr(wrong, f"{side}_factors", factors)
        for call in (lambda m: m.recommend(0), lambda m: m.similar_items(0), lambda m: m.save(tmp_path / "m")):
            with pytest.raises(ModelFitError, match=message):
                call(wrong)
    model.user_factors = np.random.default_rng(0).random(users.shape)  # float64 beside items in float32
    expected = model.recommend(range(U), 3)[0]
    model.save(tmp_path / "m")
    assert np.array_equal(WALS.load(tmp_path / "m").recommend(range(U), 3)[0], expected)


def test_models_whose_rows_cannot_be_changed(tmp_path):
    matrix = make_matrix()
    write_stored(tmp_path / "plays", matrix, dtype="float64")
    stored = fit(StoredMatrix(tmp_path / "plays"))
    assigned = WALS(2)
    assigned.user_factors, assigned.item_factors = np.ones((U, 2), np.float32), np.ones((I, 2), np.float32)
    calls = [
        lambda m: m.update_users(matrix),
        lambda m: m.update_items(matrix),
        lambda m: m.remove_users(0),
        lambda m: m.remove_items(0),
    ]
    for call in calls:
        with pytest.raises(ModelFitError, match=r"training interactions are on disk.*save the model and load it again"):
            call(stored)
        with pytest.raises(ModelFitError, match="the factors were assigned, not learned"):
            call(assigned)
    stored.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    for call in calls:
        call(loaded)
    assert (loaded.n_users, loaded.n_items) == (U - 1, I - 1)


def test_readers_keep_what_they_have():
    """An answer that is under way, and a copy of the model, do not see a change."""
    matrix = make_matrix()
    model = fit(matrix)
    other = copy.copy(model)
    fitted, before = model.fitted, state(model)
    chunks = model.recommend_chunks(chunk_size=10)
    first = next(chunks)
    model.remove_users(range(20))
    model.update_users(make_matrix(5, (12, I)))
    assert state(other) == before and other.fitted.user_factors is fitted.user_factors
    rest = [part for _, part, _ in chunks]
    assert np.array_equal(np.vstack([first[1], *rest]), other.recommend(np.arange(U))[0])
