"""What a fitted model answers, against the reference and the dense float64 inverse of each user's system."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, vstack
from scipy.stats import chi2

from wals_gpu import PRESETS, WALS, ModelFitError, SingularSystemError, make_objective, reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.evaluation import evaluate
from wals_gpu.retrieval import UCB, ExactIndex, Thompson
from wals_gpu.retrieval import exact as exact_module
from wals_gpu.retrieval import explore as explore_module
from wals_gpu.retrieval.posterior import Posterior, squares_along

U, I, D = 30, 22, 5  # noqa: E741


def make_matrix(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, (U, I)) * (rng.random((U, I)) < 0.3)
    dense[np.arange(U), np.arange(U) % I] = 3
    return csr_matrix(dense.astype(dtype))


def make_table(matrix):
    coo = matrix.tocoo()
    return pd.DataFrame(
        {"user": [f"u{r:02}" for r in coo.row], "item": [f"i{c:02}" for c in coo.col], "value": coo.data}
    )


def make_model(data=None, **params):
    params = {"factors": D, "objective": "hu", "alpha": 2, "regularization": 2, "iterations": 3} | params
    return WALS(num_threads=2, **params).fit(make_matrix() if data is None else data)


def preset_model(name, dtype="float64"):
    params = {"row_weights": np.linspace(1, 2, U)} if name == "google_wals" else {}
    return WALS(D, name, iterations=3, dtype=dtype, **params).fit(make_matrix(dtype=np.dtype(dtype)))


def inverses(model, matrix, fold_in=False):
    """A_u^-1 of every user."""
    terms = model.objective.bind(matrix).user_terms(matrix, fold_in=fold_in)
    return [np.linalg.inv(reference.row_system(terms, u, model.item_factors)[0]) for u in range(matrix.shape[0])]


# Lists


def test_lists_with_and_without_ids():
    matrix = make_matrix()
    by_row, model = make_model(), make_model(make_table(matrix))
    rng = np.random.default_rng(1)
    deny, allow = rng.random((U, I)) < 0.2, rng.random((U, I)) < 0.7
    hidden, shown = [3, 8, 8], list(range(2, 20))
    lists = {"deny": csr_matrix(deny), "allow": csr_matrix(allow), "deny_items": hidden, "allow_items": shown}
    permitted = allow & ~deny & ~np.isin(np.arange(I), hidden) & np.isin(np.arange(I), shown)
    for filter_seen in (True, False):
        left = permitted & ~(filter_seen & (matrix.toarray() != 0))
        expected, scores = reference.topk(by_row.user_factors, by_row.item_factors, 6, csr_matrix(~left))
        ids, found = by_row.recommend(range(U), 6, filter_seen=filter_seen, **lists)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(found, scores, rtol=1e-5)
        named = {
            "deny": [model.item_ids.take(np.flatnonzero(row)).tolist() for row in deny],
            "allow": [model.item_ids.take(np.flatnonzero(row)) for row in allow],
            "deny_items": ["i03", "i08"],
            "allow_items": pd.Series([f"i{c:02}" for c in shown]),
        }
        ids, _ = model.recommend(model.user_ids.ids, 6, filter_seen=filter_seen, **named)
        assert ids.tolist() == model.item_ids.take(expected).tolist()
        folded = by_row.fold_in(matrix)
        expected, _ = reference.topk(folded, by_row.item_factors, 6, csr_matrix(~left))
        ids, _ = by_row.recommend_for(matrix, 6, filter_seen=filter_seen, **lists)
        np.testing.assert_array_equal(ids, expected)
        ids, _ = by_row.search(
            folded, 6, **({**lists, "deny": csr_matrix(deny | ((matrix.toarray() != 0) & filter_seen))})
        )
        np.testing.assert_array_equal(ids, expected)
    ids, _ = by_row.recommend(4, 3, allow=[[1, 2, 5]], filter_seen=False)
    assert ids.shape == (3,) and set(ids.tolist()) == {1, 2, 5}


def test_seen_items_are_left_out_of_the_rows_asked_for():
    """The training rows are picked per chunk: users in another order, and twice."""
    matrix, model = make_matrix(), make_model()
    users = [7, 3, 3, 29, 0, 7]
    for ids in (
        model.recommend(users, I)[0],
        np.concatenate([ids for _, ids, _ in model.recommend_chunks(users, I, chunk_size=4)]),
    ):
        for user, row in zip(users, ids, strict=True):
            assert set(row.tolist()) - {-1} == set(range(I)) - set(matrix[user].indices.tolist())


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_are_the_whole(chunk_size):
    for model, names in ((make_model(), np.arange(U)), (make_model(make_table(make_matrix())), None)):
        names = model.user_ids.ids if names is None else names
        deny = csr_matrix(np.random.default_rng(0).random((U, I)) < 0.3)
        ids, scores = model.recommend(names, 4, deny=deny, deny_items=names[:0])
        parts = list(model.recommend_chunks(k=4, chunk_size=chunk_size, deny=deny))
        assert len(parts) == -(-U // chunk_size)
        users, found, found_scores = (np.concatenate(each) for each in zip(*parts, strict=True))
        assert users.tolist() == names.tolist() and found.tolist() == ids.tolist()
        np.testing.assert_allclose(found_scores, scores, rtol=1e-5)
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1, got 0"):
        model.recommend_chunks(chunk_size=0)  # at once, not when the first chunk is asked for
    with pytest.raises(ValueError, match="deny must be"):
        model.recommend_chunks(deny=csr_matrix((U, I + 1)))


def test_filter_seen_is_true_or_false():
    model = make_model(make_matrix())
    assert np.array_equal(model.recommend(1, 5, filter_seen=np.False_)[0], model.recommend(1, 5, filter_seen=False)[0])
    for wrong in ("no", make_matrix(), None, 2):
        for ask in (model.recommend, lambda _, **seen: model.recommend_for(make_matrix(), **seen)):
            with pytest.raises(TypeError, match="filter_seen must be True or False, got"):
                ask(1, filter_seen=wrong)
        with pytest.raises(TypeError, match="filter_seen must be True or False, got"):
            evaluate(model, make_matrix(), make_matrix(1), filter_seen=wrong)


def test_lists_are_refused_by_name():
    named, numbered = make_model(make_table(make_matrix())), make_model()
    for options, error, message in (
        ({"deny_items": [3]}, TypeError, r"deny_items: item ids are strings, got \[3\]"),
        ({"allow_items": ["i03", None]}, TypeError, "allow_items: item ids are strings, got None at position 1"),
        ({"deny": [[7]]}, TypeError, r"deny: item ids are strings, got \[7\]"),
        ({"allow": [["i03", "?"]]}, KeyError, "allow: unknown item id: '\\?'"),
    ):
        with pytest.raises(error, match=message):
            named.recommend(["u03"], **options)
    with pytest.raises(TypeError, match="deny_users: user ids are strings"):
        named.similar_users("u03", deny_users=[1])
    # As lists of item numbers, a mask would deny the items 0 and 1.
    mask = (make_matrix().toarray()[:2] > 0).astype(np.int64)
    for dense in (mask, mask.astype(float), mask.astype(bool), mask.astype(np.uint8)):
        for name in ("deny", "allow"):
            with pytest.raises(
                TypeError, match=rf"{name} must be a sparse matrix \(2, {I}\) .*got a dense array of 0 and 1"
            ):
                numbered.recommend([0, 1], **{name: dense})
    for given in (mask[0], mask[0].astype(np.uint8), mask[0].tolist(), pd.Series(mask[0])):
        for name in ("deny", "allow"):
            with pytest.raises(TypeError, match=f"^{name}_items must be a list of items, got a 0 or 1 for each"):
                numbered.recommend([0, 1], **{f"{name}_items": given})
            with pytest.raises(TypeError, match=f"^each of the lists of {name} must be a list of items, got a 0 or 1"):
                numbered.recommend([0, 1], **{name: [[3], given]})
    lists = np.array([[4, 5, 6], [7, 8, 9]])
    assert not np.isin(numbered.recommend([0, 1], I, deny=lists)[0][0], lists[0]).any()


@pytest.mark.parametrize("name", ["deny", "allow"])
def test_lists_in_a_series_with_ids_are_refused(name):
    """As groupby gives them, in the order of its index: they were those of other users."""
    model = make_model(make_table(make_matrix()))
    lists, users = pd.Series([["i00", "i01"], ["i05", "i06"]], index=["u03", "u07"]), ["u07", "u03"]
    for ask in (model.recommend, lambda users, **given: model.recommend_chunks(users, **given)):
        with pytest.raises(ValueError, match=f"{name} must be in the order of the queries, whatever the index"):
            list(ask(users, **{name: lists}))
    ids = model.recommend(users, I, filter_seen=False, **{name: lists.loc[users].tolist()}).ids
    assert {"i05", "i06"}.issubset(ids[0]) == (name == "allow") == {"i00", "i01"}.issubset(ids[1])
    same = model.recommend(users, I, filter_seen=False, **{name: lists.loc[users].reset_index(drop=True)}).ids
    assert same.tolist() == ids.tolist()


def test_masked_ids_are_refused():
    """What is masked is not there; it was taken as if it were."""
    model = make_model()
    masked, whole = np.ma.array([3, 4], mask=[False, True]), np.ma.array([3, 4])
    for name, ask in {
        "users": model.recommend,
        "items": model.similar_items,
        "deny_items": lambda items: model.recommend([1, 2], deny_items=items),
        "the lists of allow": lambda items: model.recommend([1, 2], allow=[[5], items]),
        "the lists of deny": lambda items: model.recommend([1, 2], deny=[items, items]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be there throughout, 1 are masked"):
            ask(masked)
        ask(whole)


def test_search_by_cosine_and_similar_users():
    model = make_model(dtype="float64")
    x, y = model.user_factors, model.item_factors
    cosines = (x / np.linalg.norm(x, axis=1)[:, None]) @ (y / np.linalg.norm(y, axis=1)[:, None]).T
    ids, scores = model.search(x, 3, metric="cosine")
    np.testing.assert_array_equal(ids, np.argsort(-cosines, axis=1)[:, :3])
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, ids.astype(int), 1))
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    expected = np.argsort(-unit @ unit.T, axis=1)
    ids, scores = model.similar_users(range(U), 4)
    np.testing.assert_array_equal(ids, expected[:, :4])
    np.testing.assert_allclose(scores, np.take_along_axis(unit @ unit.T, ids.astype(int), 1))
    few = [2, 9, 11, 4]
    ids, _ = model.similar_users([9, 3], 4, allow_users=few, deny_users=[4])
    assert ids[0, 0] == 9 and [set(row) for row in ids.tolist()] == [{2, 9, 11, -1}] * 2
    named = make_model(make_table(make_matrix()))
    assert named.similar_users("u09", 2)[0][0] == "u09"
    with pytest.raises(KeyError, match="deny_users: unknown user id: 'i00'"):
        named.similar_users("u09", deny_users=["i00"])
    ids, _ = named.similar_items(["i03", "i04"], 3, allow_items=["i04", "i05"], deny=[[], ["i05"]])
    assert set(ids[0]) == {"i04", "i05", None} and ids[1].tolist() == ["i04", None, None]


# Pairs


def test_predict_pairs():
    model, named = make_model(), make_model(make_table(make_matrix()))
    scores = model.user_factors.astype(float) @ model.item_factors.T.astype(float)
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, U, 40_000), rng.integers(0, I, 40_000)  # some chunks
    found = model.predict(users, items)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scores[users, items], rtol=1e-5, atol=1e-6)
    assert np.ndim(model.predict(3, 4)) == 0 and model.predict(3, 4) == model.predict([3], [4])[0]
    assert np.array_equal(model.predict(3, range(I)), model.predict([3] * I, range(I)))
    assert np.array_equal(model.predict(range(U), 4), model.predict(range(U), [4] * U))
    assert named.predict("u03", "i04") == model.predict(3, 4)
    assert model.predict([], []).shape == (0,)
    ids, best = model.recommend(3, 5, allow=[range(I)], filter_seen=False)
    assert np.array_equal(best, model.predict(3, ids))  # the bits too
    with pytest.raises(ValueError, match="users and items must be pairs, got 2 users and 3 items"):
        model.predict([1, 2], [1, 2, 3])
    with pytest.raises(IndexError, match=rf"items must be in \[0, {I}\)"):
        model.predict(0, I)
    with pytest.raises(KeyError, match="unknown user id"):
        named.predict("i04", "i04")


# Uncertainty


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_deviation_of_a_score_is_that_of_the_dense_inverse(name, dtype):
    model = preset_model(name, dtype)
    y = model.item_factors.astype(np.float64)
    expected = np.sqrt(
        [np.einsum("id,de,ie->i", y, inverse, y) for inverse in inverses(model, make_matrix(dtype=dtype))]
    )
    users, items = np.repeat(np.arange(U), I), np.tile(np.arange(I), U)
    order = np.random.default_rng(0).permutation(len(users))
    scores, std = model.predict(users[order], items[order], return_std=True, noise=1.5)
    np.testing.assert_allclose(std, 1.5 * expected.ravel()[order], rtol=1e-9 if dtype == "float64" else 2e-4)
    assert np.array_equal(scores, model.predict(users[order], items[order]))
    _, one = model.predict(4, 7, return_std=True)
    assert np.ndim(one) == 0 and one == pytest.approx(expected[4, 7], rel=2e-4)


def test_deviations_of_users_chunk_by_chunk(monkeypatch):
    model = make_model()
    users, items = np.repeat(np.arange(U), I), np.tile(np.arange(I), U)
    order = np.random.default_rng(0).permutation(len(users))
    _, expected = model.predict(users[order], items[order], return_std=True)
    monkeypatch.setattr("wals_gpu.model.answers.CHUNK", 7)
    monkeypatch.setattr("wals_gpu.model.answers.PAIRS", 11)
    scores, std = model.predict(users[order], items[order], return_std=True)
    assert np.array_equal(std, expected) and np.array_equal(scores, make_model().predict(users[order], items[order]))


@pytest.mark.parametrize("name", PRESETS)
def test_ucb_ranks_by_the_dense_bound(name):
    matrix, model = make_matrix(dtype=np.float64), preset_model(name)
    y = model.item_factors
    rng = np.random.default_rng(3)
    deny, allow = rng.random((U, I)) < 0.2, rng.random((U, I)) < 0.7
    for fold_in, factors in ((False, model.user_factors), (True, model.fold_in(matrix))):
        deviation = [np.sqrt(np.einsum("id,de,ie->i", y, a, y)) for a in inverses(model, matrix, fold_in)]
        bounds = factors @ y.T + 0.7 * np.array(deviation)
        bounds[(matrix.toarray() != 0) | deny | ~allow] = -np.inf
        bounds[:, 5] = -np.inf
        ranked = np.argsort(-bounds, axis=1, kind="stable")
        expected = np.take_along_axis(bounds, ranked, 1)
        lists = {"deny": csr_matrix(deny), "allow": csr_matrix(allow), "deny_items": [5]}
        options = {"explore": "ucb", "noise": 0.7, **lists}
        ids, scores = model.recommend_for(matrix, I, **options) if fold_in else model.recommend(range(U), I, **options)
        np.testing.assert_allclose(scores, expected, rtol=1e-8)
        np.testing.assert_array_equal(ids, np.where(expected > -np.inf, ranked, -1))
        few = model.recommend_for(matrix, 2, **options) if fold_in else model.recommend(range(U), 2, **options)
        np.testing.assert_array_equal(few[0], ids[:, :2])
        if not fold_in:
            parts = list(model.recommend_chunks(k=2, chunk_size=7, **options))
            np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), few[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", PRESETS)
def test_variances_are_no_more_than_they_can_be(name, dtype):
    matrix, rng = make_matrix(dtype=dtype), np.random.default_rng(8)
    params = {"row_weights": np.linspace(1, 2, U)} if name == "google_wals" else {}
    terms = make_objective(name, **params).bind(matrix).user_terms(matrix)
    other = (rng.normal(size=(I, D)) * np.geomspace(1, 1e-4, D)).astype(dtype)  # some directions are weak
    posterior = Posterior(terms, other, CpuBackend(1).spectrum(terms, other), str)
    items = np.concatenate([other, rng.normal(size=(40, D)).astype(dtype)])
    most = posterior.variances_at_most(slice(2, U), squares_along(items, posterior.eigenvectors))
    exact = np.array([posterior.variances(row, items) for row in range(2, U)])
    assert most.shape == exact.shape and (most >= exact).all()
    gram, ptr = terms.gram_values(), terms.row_ptr
    counts_against = [bool((gram[ptr[row] : ptr[row + 1]] < 0).any()) for row in range(2, U)]
    assert np.isinf(most).any(axis=1).tolist() == counts_against and (name == "eals") == any(counts_against)


def test_what_variances_can_be_at_most_is_theirs_without_entries_and_unknown_where_one_counts_against():
    matrix = make_matrix(dtype=np.float64)
    terms = make_objective("hu", alpha=2, regularization=2).bind(matrix).user_terms(matrix)
    other = np.random.default_rng(1).normal(size=(I, D))
    none = make_objective("hu", alpha=2, regularization=2).bind(matrix).user_terms(csr_matrix(matrix.shape))
    posterior = Posterior(none, other, CpuBackend(1).spectrum(none, other), str)
    exact = np.array([posterior.variances(row, other) for row in range(U)])
    squares = squares_along(other, posterior.eigenvectors)
    most = posterior.variances_at_most(slice(0, U), squares)
    # Roundings of float32: of squares and weights, of the sum, and what is added for those.
    np.testing.assert_allclose(most, exact, rtol=3 * (D + 10) * np.finfo(np.float32).eps)
    gram = terms.gram_values().copy()
    gram[terms.row_ptr[3]] = -0.01
    against = replace(terms, gram=gram)
    posterior = Posterior(against, other, CpuBackend(1).spectrum(terms, other), str)
    most = posterior.variances_at_most(slice(0, U), squares_along(other, posterior.eigenvectors))
    assert np.isinf(most).all(axis=1).tolist() == [row == 3 for row in range(U)]


def test_few_variances_are_computed_and_the_bounds_stay(monkeypatch):
    rng = np.random.default_rng(2)
    dense = (rng.random((40, 1500)) < 0.02).astype(np.float64)
    model = make_model(csr_matrix(dense), dtype="float64", factors=16)
    counts = []
    real = explore_module.variances_by
    monkeypatch.setattr(
        explore_module, "variances_by", lambda factor, items: counts.append(len(items)) or real(factor, items)
    )
    found = model.recommend(range(40), 10, explore="ucb", noise=2)
    assert 0 < sum(counts) < 40 * 1500 / 5
    monkeypatch.setattr(Posterior, "variances_at_most", lambda self, rows, items: np.full((40, len(items)), np.inf))
    for few, every in zip(found, model.recommend(range(40), 10, explore="ucb", noise=2), strict=True):
        np.testing.assert_allclose(few, every, rtol=1e-12)
    monkeypatch.setattr(explore_module, "_PAIRS", 4000)  # two users at a time
    monkeypatch.setattr(Posterior, "variances_at_most", lambda self, rows, items: np.full((2, len(items)), np.inf))
    np.testing.assert_array_equal(model.recommend(range(40), 10, explore="ucb", noise=2)[0], found[0])
    monkeypatch.undo()
    for nothing, plain in zip(
        model.recommend(range(40), 10, explore="ucb", noise=0), model.recommend(range(40), 10), strict=True
    ):
        np.testing.assert_allclose(nothing, plain, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_are_no_more_than_they_can_be(dtype):
    """Of vectors of very different lengths; where a product overflows, nothing is known."""
    rng = np.random.default_rng(3)
    items = (rng.normal(size=(500, 40)) * np.geomspace(1e-3, 1e3, 500)[:, None]).astype(dtype)
    users = (rng.normal(size=(20, 40)) * np.geomspace(1e-20, 1e3, 20)[:, None]).astype(dtype)
    longest = float(np.linalg.norm(items.astype(np.float64), axis=1).max())
    most = explore_module._scores_at_most(users, items, longest)
    exact = users.astype(np.longdouble) @ items.astype(np.longdouble).T
    room = 50 * np.finfo(dtype).eps * longest * np.linalg.norm(users.astype(np.float64), axis=1)[:, None]
    assert (most >= exact).all() and (most <= exact + 2 * room + 1e-30).all()
    huge = np.finfo(dtype).max / 4 * np.array([[1, 1], [1, -1]], dtype)
    with np.errstate(over="ignore"):
        longest = float(np.linalg.norm(huge.astype(np.longdouble), axis=1).max())
    assert (explore_module._scores_at_most(huge, huge, longest) == np.inf).all()


def test_what_bounds_need_of_the_items_is_kept_from_the_second_call_on(monkeypatch):
    model = make_model(make_matrix())
    made = []
    real = exact_module.squares_along
    monkeypatch.setattr(exact_module, "squares_along", lambda *given: made.append(1) or real(*given))
    lists = [model.recommend([3], 4, explore="ucb") for _ in range(4)]
    assert len(made) == 2
    for ids, scores in lists:
        np.testing.assert_array_equal(ids, lists[0][0])
        np.testing.assert_array_equal(scores, lists[0][1])


def test_bounds_that_are_equal_come_in_order_of_the_items():
    matrix = make_matrix(dtype=np.float64).toarray()
    matrix[:, [4, 9, 13]] = matrix[:, [2]]
    model = make_model(csr_matrix(matrix), dtype="float64")
    model.item_factors = model.item_factors.copy()
    model.item_factors[[4, 9, 13]] = model.item_factors[2]
    for k in (1, 3, I):
        ids, _ = model.recommend(range(U), k, explore="ucb", filter_seen=False)
        for row in ids.tolist():
            twins = [i for i in row if i in (2, 4, 9, 13)]
            assert twins == [2, 4, 9, 13][: len(twins)]


@pytest.mark.parametrize("name", ["hu", "eals", "explicit"])
def test_thompson_draws_have_the_posteriors_mean_and_covariance(name):
    matrix, model = make_matrix(dtype=np.float64), preset_model(name)
    y, n, user = model.item_factors, 4000, 6
    draws = np.empty((n, I))
    for seed in range(n):
        ids, scores = model.recommend(user, I, explore="thompson", noise=0.5, random_state=seed, filter_seen=False)
        draws[seed, ids] = scores
    covariance = 0.25 * y @ inverses(model, matrix)[user] @ y.T
    error = draws.mean(axis=0) - y @ model.user_factors[user]
    basis = np.linalg.qr(y)[0]  # I scores of rank D
    statistic = n * (basis.T @ error) @ np.linalg.solve(basis.T @ covariance @ basis, basis.T @ error)
    assert statistic < chi2.ppf(0.9999, D)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=5 * np.abs(covariance).max() / np.sqrt(n))


def test_draws_are_seeded_by_user():
    model = make_model()
    options = {"explore": "thompson", "noise": 3.0, "random_state": 5}
    ids, scores = model.recommend(range(U), 4, **options)
    again, _ = model.recommend(range(U), 4, **options)
    assert np.array_equal(ids, again)
    one, one_scores = model.recommend(17, 4, **options)  # not a matter of who else is asked for
    assert np.array_equal(one, ids[17])
    np.testing.assert_allclose(one_scores, scores[17], rtol=1e-5)
    pairs = model.recommend([17, 17, 3], 4, **options)[0]
    assert np.array_equal(pairs, ids[[17, 17, 3]])
    parts = model.recommend_chunks(k=4, chunk_size=7, **options)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), ids)
    one_thread = WALS(D, "hu", alpha=2, regularization=2, iterations=3, num_threads=1).fit(make_matrix())
    assert np.array_equal(one_thread.recommend(range(U), 4, **options)[0], ids)
    other = model.recommend(range(U), 4, **{**options, "random_state": 6})[0]
    assert not np.array_equal(other, ids)
    generator = np.random.default_rng(8)
    first, second = (model.recommend(range(U), 4, **{**options, "random_state": generator})[0] for _ in range(2))
    assert not np.array_equal(first, second)
    unseeded = [model.recommend(range(U), 4, explore="thompson", noise=3.0)[0] for _ in range(2)]
    assert not np.array_equal(*unseeded)
    rows = model.recommend_for(make_matrix()[3:5], 4, **options)[0]
    assert np.array_equal(rows, model.recommend_for(make_matrix()[3:5], 4, **options)[0])


@pytest.mark.parametrize("explore", ["ucb", "thompson"])
def test_without_noise_nothing_is_explored(explore):
    model = make_model()
    ids, scores = model.recommend(range(U), 4, explore=explore, noise=0)
    expected, expected_scores = model.recommend(range(U), 4)
    assert np.array_equal(ids, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_options_of_exploration_are_checked():
    model = make_model()
    for options, message in (
        ({"explore": "greedy"}, "explore must be None, 'ucb' or 'thompson', got 'greedy'"),
        ({"noise": 2.0}, "noise has a meaning only with explore="),
        ({"random_state": 2}, "random_state has a meaning only with explore='thompson'"),
        ({"explore": "ucb", "random_state": 2}, "random_state has a meaning only with explore='thompson'"),
        ({"explore": "ucb", "noise": -1}, "noise must be a finite number >= 0, got -1"),
        ({"explore": "ucb", "noise": np.nan}, "noise must be a finite number"),
        ({"explore": "thompson", "random_state": -1}, "random_state must be an integer >= 0"),
        ({"explore": UCB(), "noise": 2.0}, r"noise has no meaning beside an object: explore=UCB\(noise=1.0\) says it"),
        ({"explore": Thompson(seed=3), "random_state": 3}, "random_state has no meaning beside an object"),
    ):
        for call in (
            lambda options: model.recommend(0, **options),
            lambda options: model.recommend_for(make_matrix(), **options),
            lambda options: model.recommend_chunks(**options),
        ):
            with pytest.raises(ValueError, match=message):
                call(options)
            with pytest.raises(TypeError, match="noise must be a finite number"):
                call({"explore": "ucb", "noise": True})
    with pytest.raises(ValueError, match="noise has a meaning only with return_std=True"):
        model.predict(0, 0, noise=1.0)


def test_objects_say_what_the_texts_are_short_for():
    model, matrix = make_model(), make_matrix()
    for explore, options in (
        (UCB(noise=0.5), {"explore": "ucb", "noise": 0.5}),
        (UCB(), {"explore": "ucb"}),
        (Thompson(0.5, seed=7), {"explore": "thompson", "noise": 0.5, "random_state": 7}),
        (Thompson(seed=0), {"explore": "thompson", "random_state": 0}),
    ):
        for call in (
            lambda **options: model.recommend(range(U), 4, **options),
            lambda **options: model.recommend_for(matrix, 4, **options),
            lambda **options: next(model.recommend_chunks(k=4, **options))[1:],
        ):
            for by_object, by_text in zip(call(explore=explore), call(**options), strict=True):
                np.testing.assert_array_equal(by_object, by_text)


def test_an_object_without_seed_draws_anew_in_every_call():
    model, explore = make_model(), Thompson()
    assert not np.array_equal(model.recommend([0], 4, explore=explore)[1], model.recommend([0], 4, explore=explore)[1])


def test_exploration_objects_are_checked():
    for make, error, message in (
        (lambda: UCB(-1), ValueError, "noise must be a finite number >= 0, got -1"),
        (lambda: UCB("much"), TypeError, "noise must be a finite number >= 0, got 'much'"),
        (lambda: Thompson(np.inf), ValueError, "noise must be a finite number >= 0, got inf"),
        (lambda: Thompson(seed=-1), ValueError, "seed must be an integer >= 0, got -1"),
        (lambda: Thompson(seed=0.5), TypeError, "seed must be an integer >= 0, got 0.5"),
    ):
        with pytest.raises(error, match=message):
            make()
    assert UCB(np.float32(0.5)) == UCB(0.5) and Thompson(1, np.int64(3)) == Thompson(1.0, 3)


def test_a_user_without_bound_is_named():
    matrix = make_matrix()
    matrix.data[matrix.indptr[3] : matrix.indptr[4]] = 0
    matrix.eliminate_zeros()
    model = WALS(D, "explicit").fit(matrix)
    with pytest.raises(SingularSystemError, match="user 3 is not positive definite; its scores have no finite"):
        model.predict(3, 0, return_std=True)
    # A user with one entry is not one of whom nothing is known, but it is too little for a bound.
    one = csr_matrix(([3.0], ([0], [4])), shape=(1, I), dtype=np.float32)
    little = vstack([matrix[:3], one, matrix[4:]], format="csr")
    model = WALS(2, "explicit", regularization=0, iterations=0).fit(little)
    for explore in ("ucb", "thompson"):
        with pytest.raises(SingularSystemError, match="user 3 is not positive definite; its scores have no finite"):
            model.recommend([0, 3], explore=explore)
        with pytest.raises(SingularSystemError, match="row 1 is not"):
            model.recommend_for(little[[2, 3]], explore=explore)
    named = WALS(D, "explicit", regularization=0, iterations=0).fit(make_table(matrix))
    few = int(np.flatnonzero(np.diff(matrix.indptr) < D)[-1])
    with pytest.raises(SingularSystemError, match=rf"user \d+ \(id 'u{few:02}'\)"):
        named.predict(f"u{few:02}", "i00", return_std=True)


# Explanations


@pytest.mark.parametrize("name", PRESETS)
def test_contributions_add_up_to_the_score(name):
    matrix, model = make_matrix(dtype=np.float64), preset_model(name)
    terms = model.objective.bind(matrix).user_terms(matrix)
    exact = reference.solve_rows(terms, model.item_factors)
    for user, item in ((0, 3), (12, 12), (29, 0)):
        entries = slice(*matrix.indptr[user : user + 2])
        why = model.explain(user, item, I)
        assert why.score == pytest.approx(exact[user] @ model.item_factors[item], rel=1e-9)
        assert why.contributions.sum() == pytest.approx(why.score) and why.from_prior == 0
        assert np.all(np.diff(why.contributions) <= 0) and sorted(why.ids) == sorted(matrix.indices[entries])
        inverse = inverses(model, matrix)[user]
        weights = model.item_factors[item] @ inverse @ model.item_factors[matrix.indices[entries]].T
        expected = dict(zip(matrix.indices[entries], terms.rhs_values()[entries] * weights, strict=True))
        assert dict(zip(why.ids, why.contributions, strict=True)) == pytest.approx(expected)
        assert model.explain(user, item, 2).ids.tolist() == why.ids[:2].tolist()
    named = make_model(make_table(matrix))
    assert set(named.explain("u03", "i04").ids) <= set(named.item_ids.ids)
    with pytest.raises(ValueError, match=r"user must be one id, got \[0, 1\]"):
        model.explain([0, 1], 3)


# What is kept


def test_the_kept_spectrum_follows_the_factors():
    matrix = make_matrix()
    model = make_model()
    first = model.fold_in(matrix)
    assert model.fitted._kept_spectrum and model.fitted.item_factors is model.item_factors
    assert np.array_equal(model.fold_in(matrix), first)
    with pytest.raises(ValueError, match="read-only"):
        model.item_factors[0] = 1
    doubled = make_model()
    doubled.item_factors = 2 * doubled.item_factors
    expected = doubled.fold_in(matrix)
    model.item_factors = 2 * model.item_factors
    assert np.array_equal(model.fold_in(matrix), expected)
    model.item_factors *= 0.5  # in place: nothing was kept of an array that may change
    assert np.array_equal(model.fold_in(matrix), first)
    model.fit(make_matrix(4))
    assert np.array_equal(model.fold_in(matrix), make_model(make_matrix(4)).fold_in(matrix))
    model.item_factors.flags.writeable = True  # whoever does this may change them
    model.item_factors *= 2
    doubled = make_model(make_matrix(4))
    doubled.item_factors = 2 * doubled.item_factors
    assert np.array_equal(model.fold_in(matrix), doubled.fold_in(matrix))


def test_the_kept_index_follows_the_factors():
    model = make_model()
    first = [array.copy() for array in (*model.similar_items(3, 5), *model.similar_users(3, 5))]
    assert model.item_index("cosine") is model.item_index("cosine")
    assert model.item_index("cosine") is not model.item_index()

    def assert_similar_of(other):
        expected = ExactIndex(other.item_factors.copy(), metric="cosine")
        columns = expected.search(other.item_factors[3], 6)[0]
        assert model.similar_items(3, 6)[0].tolist() == columns.tolist()

    assert_similar_of(model)
    changed = model.item_factors * np.linspace(1, 2, model.item_factors.shape[1], dtype=np.float32)
    model.item_factors = changed
    assert_similar_of(model)
    assert model.item_index("cosine") is not model.item_index("cosine")  # of an array that may change
    model.item_factors[:] = changed[::-1].copy()  # in place
    assert_similar_of(model)
    again = make_model()
    again.item_index("cosine")
    again.item_factors.flags.writeable = True  # whoever does this may change them
    again.item_factors[:] = model.item_factors
    assert again.similar_items(3, 6)[0].tolist() == model.similar_items(3, 6)[0].tolist()
    for found, before in zip(
        (*make_model().similar_items(3, 5), *make_model().similar_users(3, 5)), first, strict=True
    ):
        np.testing.assert_array_equal(found, before)


def test_every_way_to_a_model_leaves_factors_that_answers_may_keep(tmp_path):
    """The norms of all users were computed again for each request of similar_users, and more of models from pickles."""
    table = make_table(make_matrix())
    model = make_model(table)
    model.save(tmp_path / "m")
    loaded = WALS.load(tmp_path / "m")
    loaded.update_users(table[table["user"] == "u03"])
    updated = loaded.user_factors
    loaded.remove_users(["u05"])
    assert not updated.flags.writeable
    for other in (model, loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        for side in ("user", "item"):
            assert not getattr(other, f"{side}_factors").flags.writeable
            assert other.fitted.index(side, "cosine") is other.fitted.index(side, "cosine")
    model.user_factors = model.user_factors.copy()  # whoever assigns an array may change it
    again = pickle.loads(pickle.dumps(model))
    assert again.user_factors.flags.writeable and not again.item_factors.flags.writeable
    first = again.similar_users("u03", 2)[0].tolist()
    again.user_factors[:] = again.user_factors[::-1].copy()
    assert again.similar_users("u03", 2)[0].tolist() != first


def test_rows_without_background_leave_nothing_behind():
    """Their spectrum is zero; rows with a background must not get it."""
    matrix, model = make_matrix(), make_model()
    terms = model.fitted.bound.user_terms(matrix, fold_in=True)
    none = replace(terms, background=np.zeros_like(terms.background))
    assert not model.fitted.spectrum(none).values.any()
    assert model.fitted.spectrum(terms).values.any()
    assert np.array_equal(model.fold_in(matrix), make_model().fold_in(matrix))


def test_answers_in_a_callback_see_the_factors_of_their_iteration():
    matrix = make_matrix()
    options = {"solver": "cholesky", "factors": 16}  # 16: both sides move to another basis while fitting
    scores = []
    model = WALS(objective="hu", alpha=2, regularization=2, iterations=3, **options)
    model.fit(matrix, callback=lambda m, record: scores.append(m.fold_in(matrix) @ m.item_factors.T))
    for n, found in enumerate(scores, 1):
        after = WALS(objective="hu", alpha=2, regularization=2, iterations=n, **options).fit(matrix)
        np.testing.assert_allclose(found, after.fold_in(matrix) @ after.item_factors.T, atol=1e-4)


@pytest.mark.parametrize("equal", [True, False])
def test_a_loaded_model_knows_the_values_of_its_training_data(tmp_path, equal):
    matrix = make_matrix()
    if equal:
        matrix.data[:] = 3
    model = make_model(matrix)
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert (loaded._seen != model._seen).nnz == 0 and loaded._seen.dtype == np.float32
    users, items = np.repeat(np.arange(U), I), np.tile(np.arange(I), U)
    for got, expected in zip(
        loaded.predict(users, items, return_std=True), model.predict(users, items, return_std=True), strict=True
    ):
        assert np.array_equal(got, expected)
    assert loaded.explain(3, 4).score == model.explain(3, 4).score
    tensors, metadata = load_folder(tmp_path / "model")
    assert len(tensors["seen.value"]) == (1 if equal else matrix.nnz)
    save_folder(tmp_path / "old", {name: t for name, t in tensors.items() if name != "seen.value"}, metadata)
    old = WALS.load(tmp_path / "old")
    assert np.array_equal(old.recommend(range(U))[0], model.recommend(range(U))[0])
    old.save(tmp_path / "again")
    for reloaded in (old, WALS.load(tmp_path / "again")):
        with pytest.raises(ModelFitError, match="holds no values of the training data"):
            reloaded.predict(0, 0, return_std=True)
