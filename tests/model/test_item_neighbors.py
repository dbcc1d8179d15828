"""Neighbours of items in the scores: B by its definition, and every answer by ``x_u.y_i + sum_j B_ji``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.errors import ModelFitError, ModelFormatError
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.stored import write_stored

U, N = 120, 40  # users, items
ALL = np.arange(U)


def log(seed: int = 0, values: bool = False) -> csr_matrix:
    """Users who take what their tastes say, with pairs of items that go together whatever the tastes."""
    rng = np.random.default_rng(seed)
    taste = rng.random((U, 3)) @ rng.random((3, N))
    taken = taste > np.quantile(taste, 0.85)
    taken[:, 1::2] |= taken[:, ::2] & (rng.random((U, N // 2)) < 0.7)
    matrix = csr_matrix(taken.astype(np.float32))
    if values:
        matrix.data = rng.integers(-1, 4, matrix.nnz).astype(np.float32)
    return matrix


def fitted(**settings: Any) -> WALS:
    """A model with neighbours."""
    return WALS(8, iterations=4, **({"neighbors": 7} | settings)).fit(log())


def expected(model: WALS, matrix: csr_matrix, users: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
    """Scores by the definition, in float64."""
    assert model.user_factors is not None and model.item_factors is not None and model.neighbors_ is not None
    own = model.user_factors if users is None else users
    scores = own.astype(np.float64) @ model.item_factors.T.astype(np.float64)
    scores += (matrix.toarray() > 0).astype(np.float64) @ model.neighbors_.toarray().astype(np.float64)
    exponent = model.popularity_exponent_
    if exponent:
        counts = item_counts(log())
        typical = np.exp((counts @ np.log(np.maximum(counts, 1))) / counts.sum())
        scores *= (np.maximum(counts, 1) / typical) ** exponent
    return scores


def best(scores: NDArray[np.floating], hidden: csr_matrix | None, k: int) -> NDArray[np.floating]:
    """The k highest scores of each row, none of them hidden."""
    scores = scores.copy()
    if hidden is not None:
        scores[hidden.nonzero()] = -np.inf
    return -np.sort(-scores, axis=1)[:, :k]


# ---------------------------------------------------------------------------------------------------- B


@pytest.mark.parametrize("neighbors", [1, 7, N + 5])
@pytest.mark.parametrize("values", [False, True])
def test_the_weights_are_ridge_regressions_on_the_nearest_items(neighbors: int, values: bool) -> None:
    matrix = log(1, values)
    model = WALS(
        4, iterations=1, neighbors=neighbors, neighbor_weight=1.5, neighbor_regularization=3.0, objective="ials"
    ).fit(abs(matrix) if not values else matrix.multiply(matrix > 0).tocsr() + 0 * matrix)
    assert model.neighbors_ is not None
    owned = (matrix.toarray() > 0).astype(np.float64)
    n = owned.sum(axis=1)
    v = np.where(n > 0, 1 / np.sqrt(np.maximum(n, 1)), 0)
    v *= n.sum() / (v * n).sum()
    gram = owned.T @ (v[:, None] * owned)
    cosine = gram / np.sqrt(np.maximum(np.outer(gram.diagonal(), gram.diagonal()), 1e-30))
    found = model.neighbors_.toarray()
    for item in range(N):
        near = [j for j in np.argsort(-cosine[:, item], kind="stable") if j != item and gram[j, item] > 0][:neighbors]
        want = np.zeros(N)
        if near:
            system = gram[np.ix_(near, near)] + 3.0 * np.eye(len(near))
            want[near] = 1.5 * np.linalg.solve(system, gram[near, item])
        # Ties of cosines, equal but for the last bits, may be cut differently: then the prediction errors agree.
        if set(np.flatnonzero(found[:, item])) == set(np.flatnonzero(want)):
            np.testing.assert_allclose(found[:, item], want, atol=2e-5)
        else:
            last = cosine[near, item].min() * (1 - 1e-6)
            assert (cosine[found[:, item] != 0, item] >= last).all()
    assert (found.diagonal() == 0).all()


def test_pairs_that_go_together_are_learned() -> None:
    model = fitted(neighbor_weight=1.0)
    assert model.neighbors_ is not None
    weights = model.neighbors_.toarray()
    partners = weights[np.arange(0, N, 2), np.arange(1, N, 2)]
    assert partners.mean() > 5 * np.abs(weights).mean()


def test_more_threads_give_the_same_bits() -> None:
    one, two = (fitted(num_threads=n) for n in (1, 2))
    assert one.neighbors_ is not None and two.neighbors_ is not None
    assert (one.neighbors_ != two.neighbors_).nnz == 0
    np.testing.assert_array_equal(one.recommend(ALL, 9)[1], two.recommend(ALL, 9)[1])


# ---------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("exponent", [0.0, 0.2])
def test_lists_have_the_highest_scores(dtype: str, exponent: float) -> None:
    model, matrix = fitted(dtype=dtype, popularity_exponent=exponent), log()
    scores = expected(model, matrix)
    has = np.diff(matrix.indptr) > 0
    for hidden in (matrix, None):
        ids, found = model.recommend(ALL[has], 12, filter_seen=hidden is not None)
        np.testing.assert_allclose(found, best(scores, hidden, 12)[has], atol=3e-5)
        own = np.where(ids < 0, -np.inf, np.take_along_axis(scores[has], ids, 1))
        np.testing.assert_allclose(own, found, atol=3e-5)
    chunks = list(model.recommend_chunks(ALL[has], 12, chunk_size=17))
    np.testing.assert_array_equal(np.vstack([c.ids for c in chunks]), model.recommend(ALL[has], 12)[0])


def test_new_users_get_what_known_ones_with_the_same_history_get() -> None:
    model, matrix = fitted(), log()
    has = np.flatnonzero(np.diff(matrix.indptr) > 0)[:20]
    folded = model.fold_in(matrix[has])
    _, found = model.recommend_for(matrix[has], 10)
    np.testing.assert_allclose(found, best(expected(model, matrix[has], folded), matrix[has], 10), atol=3e-5)


def test_lists_of_allowed_and_denied_items_hold() -> None:
    model, matrix = fitted(), log()
    scores = expected(model, matrix)
    users, allowed = np.flatnonzero(np.diff(matrix.indptr))[:6], [3, 8, 9, 20, 31]
    mask = np.full((U, N), -np.inf)
    mask[:, allowed] = 0
    mask[:, 9] = -np.inf
    for options in ({"allow": [allowed] * 6}, {"allow_items": allowed}):
        ids, found = model.recommend(users, 4, deny_items=[9], filter_seen=False, **options)
        np.testing.assert_allclose(found, best(scores + mask, None, 4)[users], atol=3e-5)
        assert not np.isin(ids, [9]).any()


def test_exploration_adds_to_the_same_scores() -> None:
    model, matrix = fitted(), log()
    has = np.flatnonzero(np.diff(matrix.indptr) > 0)[:5]
    for explore in ("ucb", "thompson"):
        options = {"random_state": 0} if explore == "thompson" else {}
        _, found = model.recommend(has, 8, explore=explore, noise=0.0, **options)
        np.testing.assert_allclose(found, best(expected(model, matrix), matrix, 8)[has], atol=3e-5)


def test_single_scores_are_those_of_lists() -> None:
    model, matrix = fitted(popularity_exponent=0.1), log()
    users, items = np.random.default_rng(0).integers(0, (U, N), (200, 2)).T
    np.testing.assert_allclose(model.predict(users, items), expected(model, matrix)[users, items], atol=3e-5)
    assert isinstance(float(model.predict(3, 5)), float)


def test_explanations_sum_to_the_score() -> None:
    model, matrix = fitted(solver="cholesky"), log()
    row = int(np.argmax(np.diff(matrix.indptr)))
    folded = model.fold_in(matrix[row])
    explained = model.explain_for(matrix[row], 5, k=N)
    want = expected(model, matrix[row], folded)[0, 5]
    assert explained.score == pytest.approx(want, abs=3e-5)
    assert explained.contributions.sum() + explained.from_prior == pytest.approx(want, abs=3e-5)


def test_other_devices_and_the_generic_search_agree() -> None:
    from wals_gpu.retrieval.neighbors import Extra, Neighbors, searched

    model, matrix = fitted(), log()
    assert model.user_factors is not None and model.item_factors is not None and model.neighbors_ is not None
    extra = Extra(Neighbors(model.neighbors_), matrix)
    for hidden in (matrix, None):
        generic = searched(model.fitted.backend, model.user_factors, model.item_factors, 9, hidden, extra=extra)
        np.testing.assert_allclose(generic[1], best(expected(model, matrix), hidden, 9), atol=3e-5)


def test_validation_measures_the_scores_that_are_given() -> None:
    model = WALS(8, iterations=3, neighbors=7, popularity_exponent=0.1)
    model.fit(log(), validation=0.2, metric="recall@10")
    plain = WALS(8, iterations=3).fit(log(), validation=0.2, metric="recall@10")
    assert [r.validation for r in model.history_] != [r.validation for r in plain.history_]
    assert max(r.validation or 0 for r in model.history_) > max(r.validation or 0 for r in plain.history_)


# ---------------------------------------------------------------------------------------------------- changes and files


def test_a_saved_model_gives_the_same_answers(tmp_path: Any) -> None:
    model = fitted(popularity_exponent=0.1, neighbor_weight=1.25)
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert (loaded.neighbors, loaded.neighbor_weight, loaded.neighbor_regularization) == (7, 1.25, 20.0)
    for one, other in zip(model.recommend(ALL, 9), loaded.recommend(ALL, 9), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_model_is_refused(tmp_path: Any) -> None:
    from wals_gpu.data.files import load_folder, save_folder

    fitted().save(tmp_path / "model")
    tensors, metadata = load_folder(tmp_path / "model")
    tensors = dict(tensors)
    tensors["neighbors.col_idx"] = np.full_like(tensors["neighbors.col_idx"], N)
    save_folder(tmp_path / "broken", tensors, metadata)
    with pytest.raises(ModelFormatError):
        WALS.load(tmp_path / "broken")


def test_removed_items_leave_the_neighbours_too() -> None:
    model, matrix = fitted(), log()
    model.remove_items([4, 11])
    kept = np.delete(np.arange(N), [4, 11])
    has = np.flatnonzero(np.diff(matrix[:, kept].indptr) > 0)
    _, found = model.recommend(has, 9)
    np.testing.assert_allclose(found, best(expected(model, matrix[:, kept]), matrix[:, kept], 9)[has], atol=3e-5)


def test_updated_users_are_answered_by_their_new_history() -> None:
    model, changed = fitted(), log(3)
    rows = np.flatnonzero(np.diff(changed.indptr) > 0)
    model.update_users(changed)
    has = rows[:10]
    _, found = model.recommend(has, 9)
    np.testing.assert_allclose(found, best(expected(model, changed), changed, 9)[has], atol=3e-5)


def test_factors_of_other_items_are_refused() -> None:
    model = fitted()
    model.item_factors = np.ones((N + 1, 8), np.float32)
    with pytest.raises(ModelFitError, match="item_factors must have a row for each of the 40 items"):
        model.recommend(0, 3)


def test_stored_interactions_are_refused(tmp_path: Any) -> None:
    stored = write_stored(tmp_path / "log", log())
    with pytest.raises(TypeError, match="neighbors"):
        WALS(8, neighbors=5).fit(stored)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("neighbors", -1, ValueError),
        ("neighbors", 1.5, TypeError),
        ("neighbors", 1025, ValueError),
        ("neighbor_weight", float("nan"), ValueError),
        ("neighbor_regularization", 0.0, ValueError),
    ],
)
def test_bad_settings_are_refused_by_name(setting: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=setting):
        WALS(**{setting: value})
