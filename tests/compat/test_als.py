"""The contract of implicit's AlternatingLeastSquares, against definitions in NumPy float64 and against implicit itself.

Tests that need implicit are skipped where it is not installed; the others state the same contract without it.
"""

import copy
import heapq
import inspect
import io
import itertools
import pickle
import pickletools

import numpy as np
import pytest
from rounding import rounding
from scipy.sparse import coo_matrix, csc_matrix, csr_array, csr_matrix, lil_matrix

from wals_gpu import ModelFitError, ParameterWarning, SingularSystemError
from wals_gpu.als import AlternatingLeastSquares, CpuAlternatingLeastSquares, calculate_loss
from wals_gpu.backends.cpu import CpuBackend

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
U, I, D = 37, 29, 7  # noqa: E741


@pytest.fixture
def implicit():
    """The real package, for the tests that compare with it."""
    pytest.importorskip("implicit", reason="implicit is not installed")
    import implicit

    return implicit


def interactions(rows=U, columns=I, signed=True, seed=0):
    """Values of both signs (or positive ones), stored zeros, an empty row and an empty column."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-2 if signed else 1, 6, (rows, columns)) * (rng.random((rows, columns)) < 0.3)
    dense[rows // 2] = dense[:, columns // 3] = 0
    matrix = csr_matrix(dense.astype(np.float32))
    if signed:
        matrix.data[:: len(matrix.data) // 5] = 0
    return matrix


def stored(matrix):
    """Values (rows, columns) and where there are any, of a matrix without repeated entries."""
    mask = np.zeros(matrix.shape, bool)
    mask[np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices] = True
    return matrix.toarray().astype(np.float64), mask


def exact_rows(matrix, other, regularization, alpha=1.0):
    """Rows from their systems, one by one, as implicit defines them."""
    values, mask = stored(matrix)
    c = alpha * values
    rows = np.zeros((len(c), other.shape[1]))
    for r in np.flatnonzero(mask.any(1)):
        weight = np.where(mask[r], np.abs(c[r]), 1)
        system = (other.T * weight) @ other + regularization * np.eye(other.shape[1])
        rows[r] = np.linalg.solve(system, other.T @ np.maximum(c[r], 0))
    return rows


def dense_loss(c, mask, x, y, regularization):
    scores, weight = x @ y.T, np.where(mask, np.abs(c), 1)
    errors = (weight * ((c > 0) - scores) ** 2).sum() + np.abs(c[c < 0]).sum()
    return (errors + regularization * ((x**2).sum() + (y**2).sum())) / weight.sum()


def selection(scores, filtered, n):
    """The ids that implicit's selection gives: a heap of n pairs (score, id), fed in rising order of the ids."""
    heap = []
    for i, score in enumerate(np.where(filtered, -np.inf, scores)):
        if len(heap) < n:
            heapq.heappush(heap, (score, i))
        elif score > heap[0][0]:
            heapq.heapreplace(heap, (score, i))
    return [i for _, i in sorted(heap, reverse=True)]


def fitted(cls=AlternatingLeastSquares, seed=1, **options):
    """A model with given factors, no training."""
    rng = np.random.default_rng(seed)
    model = cls(factors=D, regularization=0.3, **options)
    model.user_factors = rng.standard_normal((U, D)).astype(model.dtype)
    model.item_factors = rng.standard_normal((I, D)).astype(model.dtype)
    return model


def checkerboard(n):
    """Even users like even items, odd ones odd items; the diagonal is withheld."""
    dense = np.add.outer(np.arange(n), np.arange(n)) % 2 == 0
    np.fill_diagonal(dense, False)
    return csr_matrix(dense.astype(np.float32))


# --- training ------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_fit_is_half_steps_from_the_start_values(dtype, alpha):
    matrix = interactions()
    model = AlternatingLeastSquares(D, 0.3, alpha, dtype, use_cg=False, iterations=3, random_state=5)
    assert model.fit(matrix, show_progress=False) is None
    rng = np.random.default_rng(5)
    x = rng.random((U, D), dtype=dtype) * dtype(0.01)
    y = (rng.random((I, D), dtype=dtype) * dtype(0.01)).astype(np.float64)
    for _ in range(3):
        x = exact_rows(matrix, y, 0.3, alpha)
        y = exact_rows(matrix.T.tocsr(), x, 0.3, alpha)
    close = {"rtol": 0, "atol": 1e-4 if dtype == np.float32 else 1e-12}
    np.testing.assert_allclose(model.user_factors, x, **close)
    np.testing.assert_allclose(model.item_factors, y, **close)
    assert model.user_factors.dtype == model.item_factors.dtype == dtype
    assert not model.user_factors[U // 2].any() and not model.item_factors[I // 3].any()  # nothing is known of them


@dtypes
def test_cg_with_enough_steps_is_exact(dtype):
    matrix, models = interactions(), []
    for use_cg in (True, False):
        models.append(AlternatingLeastSquares(D, 0.3, dtype=dtype, use_cg=use_cg, iterations=2, random_state=5))
        models[-1].cg_steps = 5 * D
        models[-1].fit(matrix, show_progress=False)
    np.testing.assert_allclose(
        models[0].user_factors, models[1].user_factors, rtol=0, atol=2e-3 if dtype == np.float32 else 1e-8
    )


def test_cg_steps_lower_the_loss_and_fewer_stay_behind():
    losses = {}
    for steps in (1, 3, 50):
        model = AlternatingLeastSquares(D, 0.3, random_state=5, calculate_training_loss=True, dtype=np.float64)
        model.cg_steps, trace = steps, []
        model.fit(interactions(), show_progress=False, callback=lambda i, s, loss, trace=trace: trace.append(loss))
        assert len(trace) == 15 and all(b <= a for a, b in itertools.pairwise(trace))
        losses[steps] = trace[0]
    assert losses[1] > losses[3] > losses[50]


def test_use_native_changes_nothing():
    models = [AlternatingLeastSquares(D, use_native=native, random_state=5) for native in (True, False)]
    for model in models:
        model.fit(interactions(), show_progress=False)
    np.testing.assert_array_equal(models[0].user_factors, models[1].user_factors)


@pytest.mark.parametrize("use_cg", [True, False])
@dtypes
def test_reconstructs_a_small_matrix_without_regularization(dtype, use_cg):
    likes = np.array([list(map(int, row)) for row in "10101 11000 01011 00110 10001 01100".split()])
    model = AlternatingLeastSquares(5, 0, 2, dtype, use_cg=use_cg, random_state=42)
    model.fit(csr_matrix(likes.astype(np.float64)), show_progress=False)
    np.testing.assert_allclose(model.user_factors @ model.item_factors.T, likes, atol=1e-3)


@pytest.mark.parametrize("use_cg", [True, False])
@pytest.mark.parametrize("n", [10, 50])
def test_rows_that_depend_on_each_other_without_regularization(n, use_cg):
    board = checkerboard(n)
    model = AlternatingLeastSquares(32, 0.0 if use_cg else 1e-4, random_state=23, use_cg=use_cg)
    model.fit(board, show_progress=False)
    assert np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all()
    if n > 32:  # fewer rows are fitted exactly, the withheld zeros too
        ids, _ = model.recommend(np.arange(n), board, N=1)
        np.testing.assert_array_equal(ids[:, 0], np.arange(n))


def test_a_second_fit_goes_on_and_another_shape_is_refused():
    matrix = interactions()
    twice, once = (AlternatingLeastSquares(D, use_cg=False, iterations=n, random_state=5) for n in (2, 4))
    twice.fit(matrix, show_progress=False)
    before = twice.user_factors.copy()
    with pytest.raises(ValueError, match=rf"\({U + 1}, {I}\).*user_factors.*\({U + 1}, {D}\).*\({U}, {D}\)"):
        twice.fit(interactions(U + 1), show_progress=False)
    np.testing.assert_array_equal(twice.user_factors, before)
    twice.fit(matrix, show_progress=False)
    once.fit(matrix, show_progress=False)
    np.testing.assert_array_equal(twice.user_factors, once.user_factors)


def test_factors_of_one_side_may_be_given():
    model = AlternatingLeastSquares(D, 0.3, use_cg=False, iterations=1, random_state=5)
    y = np.asfortranarray(np.random.default_rng(0).random((I, 2 * D))[:, :D])  # any order, any dtype
    model.item_factors = y
    model.fit(interactions(), show_progress=False)
    np.testing.assert_allclose(model.user_factors, exact_rows(interactions(), y, 0.3), atol=1e-4)


def test_callback():
    calls, attribute = [], []
    model = AlternatingLeastSquares(D, iterations=3)
    model.fit(interactions(), False, lambda *args: calls.append(args))
    assert [c[0] for c in calls] == [0, 1, 2] and all(c[1] > 0 and c[2] is None for c in calls)
    model.fit_callback, model.calculate_training_loss = (lambda *args: attribute.append(args)), True
    model.fit(interactions(), False)
    assert [c[0] for c in attribute] == [0, 1, 2] and all(isinstance(c[2], float) for c in attribute)
    assert attribute[-1][2] == pytest.approx(
        calculate_loss(interactions(), model.user_factors, model.item_factors, 0.01), rel=1e-6
    )
    model.fit(interactions(), False, lambda *args: calls.append(args))
    assert len(calls) == 6 and len(attribute) == 3


def test_no_iterations():
    model = AlternatingLeastSquares(D, iterations=0, calculate_training_loss=True, random_state=0)
    model.fit(interactions(), show_progress=False)
    assert model.user_factors.shape == (U, D) and 0 < model.item_factors.max() < 0.01


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (3, 4)])
def test_a_matrix_without_entries(shape):
    model = AlternatingLeastSquares(D, use_cg=False, calculate_training_loss=True)
    model.fit(csr_matrix(shape, dtype=np.float32), show_progress=False)
    assert model.user_factors.shape == (shape[0], D) and not model.user_factors.any()


def test_repeated_entries_are_terms_of_their_own():
    rows = csr_matrix((np.array([2, 3, 1], np.float32), [1, 1, 0], [0, 3]), shape=(1, 2))
    y = np.array([[1.0, 0.2], [0.3, 1.0]])
    system = y.T @ np.diag([1, 1 + (2 - 1) + (3 - 1)]) @ y + 0.3 * np.eye(2)
    x = np.zeros((1, 2))
    AlternatingLeastSquares(2, use_cg=False).solver(rows, x, y, 0.3)
    np.testing.assert_allclose(x[0], np.linalg.solve(system, y.T @ [1, 5]), rtol=1e-12)
    assert rows.indices.tolist() == [1, 1, 0]  # the caller's matrix stays as it was


@pytest.mark.parametrize("convert", [coo_matrix, lil_matrix, csc_matrix, csr_array])
def test_other_formats_are_converted_with_a_warning(convert):
    matrix = interactions(signed=False)
    want, got = (AlternatingLeastSquares(D, random_state=0) for _ in range(2))
    want.fit(matrix, show_progress=False)
    with pytest.warns(ParameterWarning, match=convert.__name__) as caught:
        got.fit(convert(matrix), show_progress=False)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(got.user_factors, want.user_factors)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("values", [np.float64, np.int64, np.uint8, bool])
def test_types_of_values_and_indices(values, index):
    matrix = interactions(signed=False)
    matrix.data[:] = matrix.data > 2
    want, got = (AlternatingLeastSquares(D, random_state=0) for _ in range(2))
    want.fit(matrix, show_progress=False)
    other = matrix.astype(values)
    other.data = matrix.data.astype(values)
    other.indices, other.indptr = matrix.indices.astype(index), matrix.indptr.astype(np.int64)
    got.fit(other, show_progress=False)
    np.testing.assert_array_equal(got.user_factors, want.user_factors)


def test_dense_arrays_are_taken_as_matrices():
    matrix = interactions(signed=False)
    want, got = (AlternatingLeastSquares(D, random_state=0) for _ in range(2))
    want.fit(matrix, show_progress=False)
    with pytest.warns(ParameterWarning, match="ndarray was given and had to be converted"):
        got.fit(matrix.toarray(), show_progress=False)
    np.testing.assert_array_equal(got.user_factors, want.user_factors)


def test_fit_refusals():
    for wrong in (np.ones(3), "plays.csv", {"user_id": [1], "item_id": [2]}):
        with pytest.raises(TypeError, match=r"a sparse matrix of users x items is wanted, got .*wals_gpu\.WALS"):
            AlternatingLeastSquares().fit(wrong)
    with pytest.raises(TypeError, match="float16"):
        AlternatingLeastSquares(dtype=np.float16).fit(interactions())
    for value in (np.nan, np.inf, 1e39):
        matrix = interactions().astype(np.float64)
        matrix.data[3] = value
        with pytest.raises(ModelFitError, match=r"NaN encountered in factors.*user 0"):
            AlternatingLeastSquares(D).fit(matrix, show_progress=False)
    model = fitted()
    model.user_factors[0] = model.item_factors[0] = np.nan
    with pytest.raises(ModelFitError, match="NaN encountered in factors"):
        model.fit(interactions(), show_progress=False)
    with pytest.raises(ValueError, match="regularization"):
        AlternatingLeastSquares(D, -1.0).fit(interactions(), show_progress=False)
    for options, message in (
        ({"factors": 0}, "factors must be an integer >= 1, got 0"),
        ({"iterations": "9"}, "iterations"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            AlternatingLeastSquares(**options).fit(interactions(), show_progress=False)
    with pytest.raises(TypeError, match="user_items must hold real numbers, got dtype complex64"):
        AlternatingLeastSquares().fit(interactions().astype(np.complex64), show_progress=False)


@pytest.mark.parametrize("column", [-1, I])
def test_columns_outside_the_matrix(column):
    broken, model = interactions(), fitted()
    broken.indices[0] = column
    for call in (
        lambda: model.fit(broken, show_progress=False),
        lambda: model.recommend(np.arange(U), broken),
        lambda: model.recalculate_user(np.arange(U), broken),
        lambda: model.solver(broken, model.user_factors, model.item_factors, 0.1),
        lambda: calculate_loss(broken, model.user_factors, model.item_factors, 0.1),
    ):
        with pytest.raises(ValueError, match=r"ind(ex|ices)"):
            call()


def test_rows_need_not_be_sorted():
    matrix, model = interactions(), fitted(use_cg=False)
    shuffled, rng = matrix.copy(), np.random.default_rng(0)
    for begin, end in itertools.pairwise(matrix.indptr):
        order = rng.permutation(end - begin) + begin
        shuffled.indices[begin:end], shuffled.data[begin:end] = matrix.indices[order], matrix.data[order]
    assert not shuffled.has_sorted_indices
    before = shuffled.indices.tolist()
    for call in (
        lambda m: model.recommend(np.arange(U), m, items=np.arange(I)[::2])[0],
        lambda m: model.recalculate_user(np.arange(U), m),
        lambda m: calculate_loss(m, model.user_factors, model.item_factors, 1.0),
        lambda m: copy.deepcopy(model).fit(m, False) or model.user_factors,
    ):
        np.testing.assert_array_equal(call(shuffled), call(matrix))
    assert shuffled.indices.tolist() == before


def test_a_row_without_a_unique_solution():
    rows, y = csr_matrix(np.array([[0, 0], [1, 0]], np.float32)), np.array([[1.0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"row 1 .*Try increasing the regularization parameter") as caught:
        AlternatingLeastSquares(2, use_cg=False).solver(rows, np.zeros((2, 2)), y, 0.0)
    assert isinstance(caught.value, SingularSystemError)
    model = fitted()
    model.regularization, model.item_factors = 0.0, np.zeros((I, D), np.float32)
    with pytest.raises(SingularSystemError, match="user 0"):
        model.recalculate_user([0, 1], interactions()[:2])


@pytest.mark.parametrize("state", [7, np.int64(7), np.random.default_rng, np.random.RandomState])
def test_random_states(state):
    def make():
        return AlternatingLeastSquares(D, random_state=state(7) if callable(state) else state)

    first, second = make(), make()
    first.fit(interactions(), show_progress=False)
    second.fit(interactions(), show_progress=False)
    np.testing.assert_array_equal(first.user_factors, second.user_factors)


def test_without_a_seed_every_model_is_another():
    first, second = AlternatingLeastSquares(D, iterations=0), AlternatingLeastSquares(D, iterations=0)
    first.fit(interactions(), show_progress=False)
    second.fit(interactions(), show_progress=False)
    assert (first.user_factors != second.user_factors).any()


@dtypes
@pytest.mark.parametrize("use_cg", [True, False])
def test_solver_as_rectools_calls_it(dtype, use_cg):
    matrix, model = interactions(), fitted(dtype=dtype, use_cg=use_cg)
    x, y = model.user_factors.copy(), model.item_factors
    wide = np.zeros((U, D + 2), dtype)
    wide[:, 1:-1] = x
    assert model.solver(matrix, x, y, 0.3, 2) is None
    view = wide[:, 1:-1]  # not contiguous, and still changed in place
    model.solver(matrix, view, y, regularization=0.3, num_threads=1)
    np.testing.assert_array_equal(view, x)
    assert not wide[:, [0, -1]].any()
    if not use_cg:
        np.testing.assert_allclose(x, exact_rows(matrix, y.astype(np.float64), 0.3), atol=1e-5)
    with pytest.raises(ValueError, match=f"needs X with {U} rows"):
        model.solver(matrix, x[1:], y, 0.3)
    with pytest.raises(ValueError, match=f"column {I - 1}.*{I - 1} rows"):
        model.solver(matrix, x, y[:-1], 0.3)


# --- loss ----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("signed", [False, True])
def test_loss_is_the_formula(dtype, signed):
    matrix, model = interactions(signed=signed), fitted(dtype=dtype)
    got = calculate_loss(matrix, model.user_factors, model.item_factors, 0.7)
    x, y = (f.astype(np.float64) for f in (model.user_factors, model.item_factors))
    assert type(got) is float
    assert got == pytest.approx(dense_loss(*stored(matrix), x, y, 0.7), rel=1e-5 if dtype == np.float32 else 1e-12)


def test_loss_by_hand():
    one = csr_matrix(np.array([[1.0, 0.0]], np.float32))
    x, y = np.ones((1, 1)), np.array([[1.0], [0.0]])
    assert calculate_loss(one, x, y, 0) == 0
    assert calculate_loss(one, x, y, 1) == pytest.approx(1)  # (1 + 1) / 2 pairs
    assert calculate_loss(one, 0 * x, y, 0) == pytest.approx(0.5)
    assert calculate_loss(one, x, 2 * y[::-1], 0) == pytest.approx(2.5)  # (1 + 4) / 2
    nothing = csr_matrix((np.zeros(1, np.float32), [0], [0, 1]), shape=(1, 1))
    assert not np.isfinite(calculate_loss(nothing, x, y[:1], 1))  # no pair has a weight


def test_loss_refusals():
    with pytest.raises(ValueError, match=f"needs X with {U} rows"):
        calculate_loss(interactions(), np.ones((U - 1, D)), np.ones((I, D)), 1)
    with pytest.raises(ValueError, match=f"Cui .* column {I - 1}"):
        calculate_loss(interactions(), np.ones((U, D)), np.ones((I - 1, D)), 1)


# --- recommend -----------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("n", [1, 5, I - 2, I])
@pytest.mark.parametrize("hide", [None, [], [3], np.array([0, 5, 4, 28]), list(range(25))])
def test_recommend_is_the_selection_by_score(dtype, n, hide):
    matrix, model = interactions(), fitted(dtype=dtype)
    users = np.arange(U)[::2]
    ids, scores = model.recommend(users, matrix[users], N=n, filter_items=hide)
    assert ids.dtype == np.int32 and scores.dtype == dtype and ids.shape == scores.shape == (len(users), n)
    exact, filtered = model.user_factors[users] @ model.item_factors.T, stored(matrix)[1][users]
    filtered[:, [] if hide is None else hide] = True
    for row in range(len(users)):
        assert ids[row].tolist() == selection(exact[row], filtered[row], n)
        want = np.where(filtered[row], np.finfo(dtype).min, exact[row])[ids[row]]
        np.testing.assert_allclose(scores[row], want, rtol=1e-4)
        one_ids, one_scores = model.recommend(int(users[row]), matrix[users[row]], N=n, filter_items=hide)
        np.testing.assert_array_equal(one_ids, ids[row])
        np.testing.assert_allclose(one_scores, scores[row], rtol=1e-5)


@pytest.mark.parametrize("users", [[4, 0, 4], range(3), np.array([1, 2]), (7,), []])
def test_shapes_of_a_batch(users):
    ids, scores = fitted().recommend(users, None, N=6, filter_already_liked_items=False)
    assert ids.shape == scores.shape == (len(users), 6) and ids.dtype == np.int32


@pytest.mark.parametrize("user", [3, np.int64(3), np.uint8(3)])
def test_shapes_of_one_user(user):
    ids, scores = fitted().recommend(user, interactions()[3], N=6)
    assert ids.shape == scores.shape == (6,)
    assert (np.diff(scores) <= 0).all()


def test_ids_of_a_small_type():
    model = AlternatingLeastSquares(2)
    model.user_factors, model.item_factors = np.ones((300, 2), np.float32), np.ones((400, 2), np.float32)
    ids, _ = model.recommend(np.array([5, 255], np.uint8), None, filter_already_liked_items=False)
    assert ids.shape == (2, 10)


def test_equal_scores_by_falling_id():
    model = fitted()
    model.item_factors[[2, 9, 20, 28]] = model.item_factors[11] = 10 * model.user_factors[0]
    ids, _ = model.recommend(0, None, N=6, filter_already_liked_items=False)
    assert ids[:5].tolist() == [28, 20, 11, 9, 2]


def test_more_results_than_items():
    matrix, model = interactions(), fitted()
    ids, scores = model.recommend([1, 2], matrix[[1, 2]], N=I + 3)
    assert (np.sort(ids[:, :I]) == np.arange(I)).all() and (ids[:, I:] == -1).all()
    assert (scores[:, I:] == np.finfo(np.float32).min).all()
    model.strict_compat = True
    strict_ids, strict_scores = model.recommend([1, 2], matrix[[1, 2]], N=I + 3)
    np.testing.assert_array_equal(strict_ids[:, :I], ids[:, :I])
    assert not strict_ids[:, I:].any() and not strict_scores[:, I:].any()


@pytest.mark.parametrize("liked", [False, True])
def test_a_choice_of_items(liked):
    matrix, model = interactions(signed=False), fitted()
    items = [17, 3, 4, 28, 0, 12]
    ids, scores = model.recommend(np.arange(U), matrix, N=20, items=items, filter_already_liked_items=liked)
    assert ids.shape == (U, 6) and ids.dtype == np.int64
    exact, mask = (model.user_factors @ model.item_factors.T)[:, sorted(items)], stored(matrix)[1][:, sorted(items)]
    for row in range(U):
        want = selection(exact[row], mask[row] & liked, 6)
        assert ids[row].tolist() == [sorted(items)[place] for place in want]
        assert (scores[row] < -1e38).sum() == (mask[row] & liked).sum()
    two, _ = model.recommend(0, matrix[0], N=2, items=np.array(items))
    np.testing.assert_array_equal(two, model.recommend(0, matrix[0], N=6, items=np.array(items))[0][:2])
    assert items == [17, 3, 4, 28, 0, 12]


def test_an_item_chosen_twice_comes_twice():
    ids, scores = fitted().recommend(0, None, filter_already_liked_items=False, items=[5, 8, 5])
    assert sorted(ids.tolist()) == [5, 5, 8] and len(set(scores.tolist())) == 2


def test_fewer_columns_than_items():
    model = fitted()
    narrow = csr_matrix(np.eye(1, I - 4, 2, dtype=np.float32))
    ids, scores = model.recommend(0, narrow, N=I)
    assert ids[-1] == 2 and (scores < -1e38).sum() == 1
    ids, _ = model.recommend(0, narrow, N=3, recalculate_user=True)
    assert ids.shape == (3,)


def test_recalculated_users():
    matrix, model = interactions(), fitted()
    exact = exact_rows(matrix, model.item_factors.astype(np.float64), 0.3) @ model.item_factors.T
    ids, scores = model.recommend(10**6 + np.arange(U), matrix, N=4, recalculate_user=True)  # ids do not matter
    for row in np.flatnonzero(stored(matrix)[1].any(1)):
        assert ids[row].tolist() == selection(exact[row], stored(matrix)[1][row], 4)
        np.testing.assert_allclose(scores[row], exact[row][ids[row]], atol=1e-4)
    assert not scores[U // 2].any()  # nothing is known of this one
    one, _ = model.recommend(-5, matrix[4], N=4, recalculate_user=True)
    np.testing.assert_array_equal(one, ids[4])


RECOMMEND_ERRORS = {
    "csc": (dict(user_items=csc_matrix(interactions()[0])), ValueError, "needs to be a CSR sparse matrix"),
    "coo": (dict(user_items=coo_matrix(interactions()[0])), ValueError, "needs to be a CSR sparse matrix"),
    "csr_array": (dict(user_items=csr_array(interactions()[0])), ValueError, "needs to be a CSR sparse matrix"),
    "none": (dict(user_items=None), ValueError, "needs to be a CSR sparse matrix"),
    "none, recalculated": (
        dict(user_items=None, filter_already_liked_items=False, recalculate_user=True),
        ValueError,
        "needs to be a CSR sparse matrix",
    ),
    "rows": (dict(user_items=interactions()), ValueError, "must contain 1 row for every user in userids"),
    "rows of a batch": (dict(userid=[0, 1]), ValueError, "must contain 1 row for every user in userids"),
    "columns": (dict(user_items=csr_matrix(np.ones((1, I + 1)))), ValueError, f"column {I}.*only {I} rows"),
    "user": (dict(userid=U), IndexError, rf"userid must be in \[0, {U}\), got {U}"),
    "user of a batch": (dict(userid=[U + 7]), IndexError, f"got {U + 7}"),
    "negative user": (dict(userid=-1), IndexError, "got -1"),
    "text": (dict(userid="0"), IndexError, "must be integers"),
    "N": (dict(N=0), IndexError, "N must be at least 1, got 0"),
    "negative N": (dict(N=-2), IndexError, "N must be at least 1, got -2"),
    "huge N": (dict(N=10**15), ValueError, "N must be smaller: lists of 1,000,000,000,000,000 items take"),
    "both": (dict(items=[1], filter_items=[2]), ValueError, "Can't set both items and filter_items in recommend call"),
    "both, array": (dict(items=[1], filter_items=np.array([2, 3])), ValueError, "both items and filter_items"),
    "no items": (dict(items=[]), IndexError, "items must name at least one item"),
    "mask": (dict(items=np.arange(I) > 3), IndexError, "items must be a list of integers, got bool"),
    "set of items": (dict(items={1, 2}), IndexError, "items must be a list of integers, got object"),
    "names of items": (dict(items=["a"]), IndexError, "items must be a list of integers, got <U1"),
    "lists of items": (dict(items=[[1, 2]]), IndexError, r"got int64 of shape \(1, 2\)"),
    "items": (dict(items=[1, I]), IndexError, "Some itemids in the items parameter in are not in the model"),
    "negative items": (dict(items=[-1, 2]), IndexError, "Some itemids in the items parameter"),
    "filter_items": (dict(filter_items=[I]), IndexError, f"filter_items must be in .*got {I}"),
    "negative filter_items": (dict(filter_items=[-1]), IndexError, "got -1"),
}


@pytest.mark.parametrize("case", RECOMMEND_ERRORS)
def test_recommend_refusals(case):
    change, error, message = RECOMMEND_ERRORS[case]
    with pytest.raises(error, match=message):
        fitted().recommend(**{"userid": 0, "user_items": interactions()[0]} | change)


def test_a_mask_is_no_choice_of_what_is_similar():
    model = fitted()
    for call in (lambda mask: model.similar_items(0, items=mask), lambda mask: model.similar_users(0, users=mask)):
        with pytest.raises(IndexError, match="s must be a list of integers, got bool"):
            call(np.ones(I, bool))


def test_strict_compat_counts_negative_ids_from_the_end():
    matrix, model = interactions(), fitted(strict_compat=True)
    for got, want in (
        (model.recommend(-1, matrix[U - 1]), model.recommend(U - 1, matrix[U - 1])),
        (model.recommend(0, matrix[0], filter_items=[-2]), model.recommend(0, matrix[0], filter_items=[I - 2])),
        (model.similar_items([-1, 2]), model.similar_items([I - 1, 2])),
        (model.similar_users(-3), model.similar_users(U - 3)),
    ):
        np.testing.assert_array_equal(got[0], want[0])
    with pytest.raises(IndexError, match=rf"\[-{U}, {U}\)"):
        model.recommend(-U - 1, matrix[0])


def test_unfitted():
    model = AlternatingLeastSquares()
    for call in (
        lambda: model.recommend(0, interactions()[0]),
        lambda: model.similar_items(0),
        lambda: model.similar_users(0),
        lambda: model.recalculate_user(0, interactions()[0]),
        lambda: model.partial_fit_items([0], interactions()[0]),
        lambda: model.explain(0, interactions(), 0),
        lambda: model.YtY,
    ):
        with pytest.raises(TypeError, match="fit the model first"):
            call()


def test_masked_ids_are_refused():
    model, matrix = fitted(), interactions()
    masked = np.ma.array([1, 2], mask=[False, True])
    for name, ask in {
        "userid": lambda: model.recommend(masked, matrix[[1, 2]]),
        "itemid": lambda: model.similar_items(masked),
        "items": lambda: model.recommend(0, matrix[0], items=masked),
        "filter_items": lambda: model.recommend(0, matrix[0], filter_items=masked),
        "users": lambda: model.similar_users(0, users=masked),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be there throughout, 1 are masked"):
            ask()


def test_many_queries_with_a_filter():
    matrix, model = interactions(), fitted()
    ids, _ = model.recommend(np.arange(U), matrix, N=I, filter_items=[1, 2])
    for user in range(U):
        np.testing.assert_array_equal(ids[user], model.recommend(user, matrix[user], N=I, filter_items=[1, 2])[0])
    one, several = (
        model.similar_users(3, N=5, filter_users=hide)[0] for hide in (7, [7])
    )  # a single id, as implicit's
    np.testing.assert_array_equal(one, several)
    with pytest.raises(TypeError, match="N must be an integer, got str '5'"):
        model.recommend(0, matrix[0], N="5")


def test_deprecated_calls():
    matrix, model = interactions(), fitted()
    with pytest.warns(DeprecationWarning):
        ids = model.recommend_all(matrix, N=4, filter_items=[1])
    np.testing.assert_array_equal(ids, model.recommend(np.arange(U), matrix, N=4, filter_items=[1])[0])
    with pytest.warns(DeprecationWarning):
        ids = model.recommend_all(matrix[5:], N=4, users_items_offset=5)
    np.testing.assert_array_equal(ids, model.recommend(np.arange(5, U), matrix[5:], N=4)[0])
    with pytest.warns(DeprecationWarning):
        ids, scores = model.rank_items(3, matrix[3], [9, 1, 4])
    assert sorted(ids.tolist()) == [1, 4, 9] and (scores > -1e38).all()
    for bad in (-1, I, 300):
        with pytest.warns(DeprecationWarning), pytest.raises(IndexError):
            model.rank_items(3, matrix[3], [1, bad])


# --- similar -------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("side", ["item", "user"])
def test_similar_is_the_cosine(dtype, side):
    model = fitted(dtype=dtype)
    factors = model.item_factors if side == "item" else model.user_factors
    factors[6] = 0
    similar = model.similar_items if side == "item" else model.similar_users
    norms = np.linalg.norm(factors, axis=1)
    cosine = factors @ factors.T / np.outer(*[np.where(norms > 0, norms, 1)] * 2)
    ids, scores = similar(np.arange(12), N=8)
    assert ids.dtype == np.int32 and scores.dtype == dtype and ids.shape == (12, 8)
    for row in np.flatnonzero(np.arange(12) != 6):
        assert ids[row].tolist() == selection(cosine[row], np.zeros(len(factors), bool), 8)
        np.testing.assert_allclose(scores[row], cosine[row][ids[row]], atol=1e-6)
        assert ids[row, 0] == row and scores[row, 0] == pytest.approx(1)
        one_ids, one_scores = similar(int(row), N=8)
        np.testing.assert_array_equal(one_ids, ids[row])
        np.testing.assert_allclose(one_scores, scores[row], atol=1e-6)
    assert not scores[6].any()


@pytest.mark.parametrize("side", ["item", "user"])
def test_similar_with_a_choice_and_a_filter(side):
    model = fitted()
    similar, n = (model.similar_items, I) if side == "item" else (model.similar_users, U)
    everything, scores = similar(3, N=n)
    hidden, only = np.array([3, 8, 1]), np.array([20, 4, 9])
    ids, _ = similar(3, N=5, **{f"filter_{side}s": hidden})
    assert ids.tolist() == [i for i in everything if i not in hidden][:5]
    all_ids, all_scores = similar(3, N=n, **{f"filter_{side}s": hidden})
    assert all_ids[-3:].tolist() == [8, 3, 1] and (all_scores[-3:] < -1e37).all()
    ids, some = similar([3, 5], N=9, **{f"{side}s": only})
    assert ids.shape == (2, 3) and ids[0].tolist() == [i for i in everything if i in only]
    np.testing.assert_allclose(some[0], scores[np.isin(everything, only)], rtol=1e-5)
    model.strict_compat = True
    padded, pad_scores = similar([3, 5], N=5, **{f"{side}s": only})
    np.testing.assert_array_equal(padded[:, :3], ids)
    assert (padded[:, 3:] == 20).all() and not pad_scores[:, 3:].any()
    with pytest.raises(ValueError, match=f"Can't set both {side}s and filter_{side}s in similar_{side}s call"):
        similar(3, **{f"{side}s": only, f"filter_{side}s": hidden})
    for bad in ([-1], [n]):
        with pytest.raises(IndexError, match=f"Some {side}ids"):
            similar(3, **{f"{side}s": bad})
    model.strict_compat = False
    for bad in (-1, n, [0, n]):
        with pytest.raises(IndexError, match=f"{side}id must be in"):
            similar(bad)


def test_similar_to_a_recalculated_item():
    matrix, model = interactions().T.tocsr(), fitted()
    query = exact_rows(matrix, model.user_factors.astype(np.float64), 0.3)[[2, 3]]
    norms = np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(model.item_factors, axis=1))
    cosine = query @ model.item_factors.T / norms
    ids, scores = model.similar_items([2, 3], 5, recalculate_item=True, item_users=matrix[[2, 3]])
    for row in range(2):
        assert ids[row].tolist() == selection(cosine[row], np.zeros(I, bool), 5)
        np.testing.assert_allclose(scores[row], cosine[row][ids[row]], atol=1e-5)
    ids, _ = model.similar_items([2, 3], 5, item_users=matrix)  # not looked at
    np.testing.assert_array_equal(ids, model.similar_items([2, 3], 5)[0])


# --- new data ------------------------------------------------------------------------------------------------------


@dtypes
def test_recalculation_is_exact(dtype):
    matrix, model = interactions(), fitted(dtype=dtype, alpha=1.5)
    users = exact_rows(matrix, model.item_factors.astype(np.float64), 0.3, 1.5)
    items = exact_rows(matrix.T.tocsr(), model.user_factors.astype(np.float64), 0.3, 1.5)
    close = {"rtol": 0, "atol": 1e-4 if dtype == np.float32 else 1e-12}
    np.testing.assert_allclose(model.recalculate_user(np.arange(U), matrix), users, **close)
    np.testing.assert_allclose(model.recalculate_item(range(I), matrix.T.tocsr()), items, **close)
    few = model.recalculate_user([30, 2], matrix[[30, 2]])
    np.testing.assert_allclose(few, users[[30, 2]], **close)
    one = model.recalculate_item(5, matrix.T.tocsr()[5])
    np.testing.assert_allclose(one, items[5], **close)
    assert one.shape == (D,) and few.dtype == one.dtype == dtype
    with pytest.raises(ValueError, match=r"user_items should have one row for every item in user.*2 rows for 1"):
        model.recalculate_user(0, matrix[:2])
    with pytest.raises(ValueError, match="item_users should have one row for every item in item"):
        model.recalculate_item([0, 1, 2], matrix.T.tocsr()[:2])
    with pytest.warns(ParameterWarning) as caught:
        np.testing.assert_array_equal(model.recalculate_user([30, 2], matrix[[30, 2]].tocoo()), few)
    assert caught[0].filename == __file__


def change_in_place(model):
    model.item_factors[4] *= 3
    model._YtY = None  # as programs written for implicit do


@pytest.mark.parametrize("make", [AlternatingLeastSquares, CpuAlternatingLeastSquares])
def test_a_pickle_names_the_documented_class_and_nothing_inside(make):
    """Also after a recalculation: inner modules may move."""
    model = fitted(make)
    before = model.recalculate_user(0, interactions()[0])
    pickled = pickle.dumps(model, protocol=2)  # which has each global in one opcode
    names = {argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    ours = {name for name in names if name.startswith("wals_gpu")}
    assert ours == {f"wals_gpu.als {make.__name__}"}
    for again in (pickle.loads(pickled), copy.deepcopy(model)):
        assert np.array_equal(again.recalculate_user(0, interactions()[0]), before)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        lambda model: setattr(model, "item_factors", 2 * model.item_factors),
        lambda model: setattr(model, "dtype", np.dtype(np.float64)),
        lambda model: model.partial_fit_items([4], csr_matrix(np.ones((1, U), np.float32))),
        lambda model: model.fit(interactions(seed=9), show_progress=False),
    ],
)
def test_the_spectrum_is_kept_until_the_factors_change(change, monkeypatch):
    computed = []
    spectrum = CpuBackend.spectrum
    monkeypatch.setattr(CpuBackend, "spectrum", lambda *a: computed.append(len(a[2])) or spectrum(*a))
    matrix, model = interactions(), fitted()
    del computed[:]
    before = model.recalculate_user([30, 2], matrix[[30, 2]])
    for _ in range(2):
        np.testing.assert_array_equal(model.recalculate_user([30], matrix[[30]]), before[:1])
    model.recalculate_item(3, matrix.T.tocsr()[3])
    model.regularization = 0.2  # not a matter of the spectrum
    loose = model.recalculate_user(30, matrix[30])
    model.regularization = 0.3
    assert computed == [I, U] and abs(loose - before[0]).max() > 1e-4
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.recalculate_user([30, 2], matrix[[30, 2]]), before)
    change(model)
    want = exact_rows(matrix, model.item_factors.astype(np.float64), 0.3)
    np.testing.assert_allclose(model.recalculate_user(range(U), matrix), want, atol=1e-4)
    assert abs(want[[30, 2]] - before).max() > (1e-3 if model.dtype == np.float32 else 0)


@pytest.mark.parametrize("side", ["user", "item"])
def test_partial_fit(side):
    matrix, model = interactions(), fitted()
    matrix = matrix if side == "user" else matrix.T.tocsr()
    other = model.item_factors if side == "user" else model.user_factors
    fit = getattr(model, f"partial_fit_{side}s")
    known = getattr(model, f"{side}_factors").copy()
    caches = ("user_norms", "XtX") if side == "user" else ("item_norms", "YtY")
    for name in ("user_norms", "item_norms", "XtX", "YtY"):
        getattr(model, name)

    fit([0, 40, 43], matrix[[0, 1, 2]])
    new = getattr(model, f"{side}_factors")
    want = exact_rows(matrix, other.astype(np.float64), 0.3)
    np.testing.assert_allclose(new[[0, 40, 43]], want[[0, 1, 2]], atol=1e-4)
    np.testing.assert_array_equal(new[1 : len(known)], known[1:])
    assert new.shape == (44, D) and new.dtype == np.float32
    assert not new[len(known) : 40].any() and not new[41:43].any()
    assert getattr(model, caches[0]).shape == (44,) and (getattr(model, caches[0])[41:43] == np.float32(1e-10)).all()
    np.testing.assert_allclose(getattr(model, caches[1]), new.T @ new, rtol=1e-6)
    similar = model.similar_users if side == "user" else model.similar_items
    assert similar(43)[0][0] == 43  # served at once

    with pytest.raises(ValueError, match=f"_(items|users) must contain 1 row for every user in {side}ids"):
        fit([0, 1], matrix[[0, 1, 2]])
    for wrong in (np.array([True]), [1.0], ["a"]):  # a mask would have changed other rows
        with pytest.raises(IndexError, match=f"{side}ids must be integers"):
            fit(wrong, matrix[:1])
    with pytest.raises(ValueError, match=f"{side}ids must hold at least one id"):
        fit([], matrix[:0])
    with pytest.raises(IndexError, match=f"{side}ids must be >= 0, got -3"):
        fit([2, -3], matrix[[0, 1]])
    with pytest.raises(ValueError, match=f"column {len(other)}, but"):
        fit([0], csr_matrix(np.ones((1, len(other) + 1), np.float32)))
    np.testing.assert_array_equal(getattr(model, f"{side}_factors"), new)


def test_new_users_and_items_are_recommended_at_once():
    board = checkerboard(50)
    model = AlternatingLeastSquares(2, 0.0, random_state=23)
    model.fit(board, show_progress=False)
    model.partial_fit_users([100, 101], board[[0, 1]])
    ids, _ = model.recommend([100, 101], board[[0, 1]], N=1)
    assert ids.tolist() == [[0], [1]]
    model.partial_fit_items([100], board[[0]])
    assert 100 in model.recommend(2, board[2], N=2)[0]


@dtypes
def test_explain(dtype):
    matrix, model = interactions(), fitted(dtype=dtype, alpha=2.0)
    values, mask = stored(matrix)
    user = np.flatnonzero((values < 0).any(1) & (mask & (values == 0)).any(1))[-1]  # with a "no" and a stored zero
    item = 11
    total, parts, weights = model.explain(user, matrix, item, N=100)
    want = model.recalculate_user(user, matrix[user]) @ model.item_factors[item]
    assert total == pytest.approx(want, abs=1e-4) == sum(score for _, score in parts)
    assert sorted(i for i, _ in parts) == np.flatnonzero(mask[user] & (values[user] >= 0)).tolist()
    assert [s for _, s in parts] == sorted((s for _, s in parts), reverse=True)
    again, some, _ = model.explain(user, matrix, item, user_weights=weights, N=2)
    assert again == pytest.approx(total, rel=1e-9) and [i for i, _ in some] == [i for i, _ in parts[:2]]
    # The contribution of one entry by its definition: y_i' A^-1 y_j c_j.
    y = model.item_factors.astype(np.float64)
    weight = np.where(mask[user], np.abs(2 * values[user]), 1)
    inverse = np.linalg.inv((y.T * weight) @ y + 0.3 * np.eye(D))
    for j, score in parts:
        assert score == pytest.approx(y[item] @ inverse @ y[j] * 2 * values[user, j], abs=1e-5)
    assert model.explain(U // 2, matrix, item)[:2] == (0.0, [])
    for bad in (dict(userid=U), dict(userid=-1), dict(itemid=I), dict(itemid=-1)):
        with pytest.raises(IndexError):
            model.explain(**{"userid": 0, "user_items": matrix, "itemid": 0} | bad)


# --- caches, files, devices ----------------------------------------------------------------------------------------


def test_caches():
    model = fitted()
    model.item_factors[4] = 0
    np.testing.assert_allclose(model.YtY, model.item_factors.T @ model.item_factors)
    np.testing.assert_allclose(model.XtX, model.user_factors.T @ model.user_factors)
    assert model.item_norms[4] == np.float32(1e-10) and model.user_norms.shape == (U,)
    assert model.YtY is model.YtY and model.item_norms is model.item_norms
    model.fit(interactions(), show_progress=False)
    assert model._XtX is model._YtY is model._user_norms is model._item_norms is None


def test_queries_do_not_hand_out_the_factors():
    model = fitted()
    before = model.item_factors.copy()
    for query in (model._item_factor(3, None), model._item_factor([3, 4], None), model._user_factor(2, None)):
        query /= 7
    np.testing.assert_array_equal(model.item_factors, before)


OPTIONS = dict(factors=D, regularization=0.5, alpha=2.0, dtype=np.float64, use_cg=False, use_native=False, iterations=4,
               num_threads=1, random_state=3, calculate_training_loss=True, strict_compat=True)  # fmt: skip


@pytest.mark.parametrize("cls", [AlternatingLeastSquares, CpuAlternatingLeastSquares])
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_an_unfitted_model_survives_files(cls, options, tmp_path):
    model = cls(**options)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.npz").exists()
    from_files = [cls.load(str(tmp_path / "model")), cls.load(tmp_path / "model.npz")]
    for loaded in (*from_files, pickle.loads(pickle.dumps(model))):
        assert type(loaded) is cls and loaded.__dict__ == model.__dict__


@pytest.mark.parametrize("copied", [
    lambda model, path: pickle.loads(pickle.dumps(model)),
    lambda model, path: copy.deepcopy(model),
    lambda model, path: model.to_cpu(),
    lambda model, path: model.save(str(path / "m.npz")) or type(model).load(str(path / "m")),
])  # fmt: skip
def test_a_fitted_model_survives_copies(copied, tmp_path):
    matrix, model = interactions(), AlternatingLeastSquares(**OPTIONS)
    model.fit(matrix, show_progress=False)
    other = copied(model, tmp_path)
    np.testing.assert_array_equal(other.recommend(np.arange(U), matrix), model.recommend(np.arange(U), matrix))
    np.testing.assert_array_equal(other.similar_items(4), model.similar_items(4))
    np.testing.assert_array_equal(other.similar_users(4), model.similar_users(4))
    other.partial_fit_users([0], matrix[5])
    other.fit(matrix, show_progress=False)
    assert (model.user_factors[0] != other.user_factors[0]).any()


def test_file_objects_and_generators():
    model, file = fitted(random_state=np.random.default_rng(3)), io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = AlternatingLeastSquares.load(file)
    np.testing.assert_array_equal(loaded.item_factors, model.item_factors)
    assert loaded.random_state is None and loaded.dtype == np.float32


def test_files_hold_what_implicit_reads(tmp_path):
    fitted(random_state=1).save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz", allow_pickle=False) as state:
        assert set(state) == {
            "user_factors", "item_factors", "regularization", "factors", "num_threads", "iterations", "use_native",
            "use_cg", "cg_steps", "calculate_training_loss", "dtype", "random_state", "alpha",
        }  # fmt: skip
        assert str(state["dtype"]) == "float32"


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        AlternatingLeastSquares.load(tmp_path / "none")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="holds no model"):
        AlternatingLeastSquares.load(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", factors=np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        AlternatingLeastSquares.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "method.npz", factors=3, fit=1)
    assert callable(AlternatingLeastSquares.load(tmp_path / "method.npz").fit)


def test_the_gpu_is_refused():
    message = "No CUDA extension has been built, can't train on GPU."
    with pytest.raises(ValueError, match=message):
        AlternatingLeastSquares(use_gpu=True)
    with pytest.raises(ValueError, match=message):
        fitted().to_gpu()


# --- beside implicit -----------------------------------------------------------------------------------------------

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # implicit's, about threads of BLAS


def test_signatures_are_implicits(implicit):
    def arguments(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    def same(ours, theirs):
        ours, theirs = arguments(ours), arguments(theirs)
        assert [a for a in ours if a[0] != "strict_compat"] == theirs

    same(AlternatingLeastSquares, implicit.als.AlternatingLeastSquares)
    theirs = implicit.cpu.als.AlternatingLeastSquares
    same(CpuAlternatingLeastSquares, theirs)
    for name in (
        "fit recommend recommend_all rank_items similar_items similar_users explain recalculate_user recalculate_item "
        "partial_fit_users partial_fit_items save load to_gpu"
    ).split():
        same(getattr(CpuAlternatingLeastSquares, name), getattr(theirs, name))
    assert arguments(calculate_loss) == [(p, k, d) for p, k, d in zip(
        ("Cui", "X", "Y", "regularization", "num_threads"), [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 5,
        [inspect.Parameter.empty] * 4 + [0], strict=True)]  # fmt: skip


def twins(implicit, **options):
    ours = fitted(CpuAlternatingLeastSquares, **options)
    theirs = fitted(implicit.cpu.als.AlternatingLeastSquares, **options)
    assert {name for name in vars(theirs)} | {"strict_compat"} == set(vars(ours))
    return ours, theirs


@quiet
@dtypes
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 7.5])
def test_training_comes_out_as_in_implicit(implicit, dtype, signed, alpha):
    options = dict(factors=D, regularization=0.3, alpha=alpha, dtype=dtype, use_cg=False, iterations=8, random_state=5)
    losses, models = [], []
    for cls in (CpuAlternatingLeastSquares, implicit.cpu.als.AlternatingLeastSquares):
        model, trace = cls(calculate_training_loss=True, **options), []
        model.fit(interactions(signed=signed), False, lambda i, s, loss, trace=trace: trace.append(loss))
        losses.append(trace)
        models.append(model)
    # In float32 both round in every iteration; with several kernels of BLAS the losses went apart by up to 1.4 times
    # what a sum over all pairs may. In float64, implicit's loss has float32 in it: 2.2e-8.
    np.testing.assert_allclose(*losses, rtol=rounding(dtype, U * I, growth=5) if dtype == np.float32 else 1e-7)
    atol = 1e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(models[0].user_factors, models[1].user_factors, atol=atol)
    np.testing.assert_allclose(models[0].item_factors, models[1].item_factors, atol=atol)


@quiet
def test_cg_ends_no_worse_than_implicits(implicit):
    losses = []
    for cls in (CpuAlternatingLeastSquares, implicit.cpu.als.AlternatingLeastSquares):
        model, trace = cls(D, 0.3, 5.0, np.float64, calculate_training_loss=True, random_state=5), []
        model.fit(interactions(), False, lambda i, s, loss, trace=trace: trace.append(loss))
        losses.append(trace[-1])
    assert losses[0] < losses[1] * (1 + 1e-3)


CALLS = {
    "recommend": lambda m, d: m.recommend(np.arange(U), d),
    "one": lambda m, d: m.recommend(3, d[3], N=7),
    "all": lambda m, d: m.recommend(np.arange(U), d, N=I),
    "nearly all": lambda m, d: m.recommend(np.arange(U), d, N=I - 3),
    "unfiltered": lambda m, d: m.recommend([1, 2], None, filter_already_liked_items=False),
    "filter_items": lambda m, d: m.recommend(np.arange(U), d, N=12, filter_items=list(range(20))),
    "items": lambda m, d: m.recommend(np.arange(U), d, N=50, items=[20, 3, 4, 8, 0, 9, 11, 28]),
    "items, one": lambda m, d: m.recommend(2, d[2], N=3, items=[20, 3, 4, 8, 0, 9, 11, 28]),
    "recalculated": lambda m, d: m.recommend(np.arange(U) + 500, d, recalculate_user=True),
    "similar_items": lambda m, d: m.similar_items(np.arange(I), 5),
    "similar_items, one": lambda m, d: m.similar_items(3, 5),
    "similar_items, items": lambda m, d: m.similar_items([3, 7], 3, items=[8, 9, 1, 2]),
    "similar_items, filtered": lambda m, d: m.similar_items([3, 7], I - 1, filter_items=[8, 9, 1, 2]),
    "similar_items, recalculated": lambda m, d: m.similar_items([1, 2], 4, True, d.T.tocsr()[[1, 2]]),
    "similar_users": lambda m, d: m.similar_users(np.arange(U), 5),
    "similar_users, users": lambda m, d: m.similar_users(4, 2, users=np.array([8, 1, 30])),
    "more than items": lambda m, d: m.recommend([1, 2], d[[1, 2]], N=I + 4),
    "more than chosen": lambda m, d: m.similar_items([3, 7], 9, items=[8, 9, 1, 2]),
    "negative": lambda m, d: m.recommend([-1, -2], d[[-1, -2]], filter_items=[-5]),
}


@quiet
@dtypes
@pytest.mark.parametrize("call", CALLS)
def test_answers_are_implicits(implicit, call, dtype):
    """With ``strict_compat``, in every case; without it, where upstream's answer invites no mistake."""
    ours, theirs = twins(implicit, dtype=dtype)
    ours.strict_compat = call in ("more than items", "more than chosen", "negative")
    with np.errstate(over="ignore"):
        (ids, scores), (their_ids, their_scores) = (CALLS[call](m, interactions()) for m in (ours, theirs))
    np.testing.assert_array_equal(ids, their_ids)
    assert ids.dtype == their_ids.dtype and scores.dtype == their_scores.dtype
    np.testing.assert_allclose(scores, their_scores, rtol=1e-3 if dtype == np.float32 else 1e-9, atol=1e-5)


@quiet
def test_loss_and_explanations_are_implicits(implicit):
    ours, theirs = twins(implicit, dtype=np.float64, alpha=2.0)
    matrix = interactions()
    got = calculate_loss(matrix, ours.user_factors, ours.item_factors, 0.7)
    want = implicit.cpu.als.calculate_loss(matrix, ours.user_factors, ours.item_factors, 0.7)
    assert got == pytest.approx(want, rel=1e-7)
    got, want = ours.explain(3, matrix, 11, N=4), theirs.explain(3, matrix, 11, N=4)
    assert got[0] == pytest.approx(want[0]) and [i for i, _ in got[1]] == [i for i, _ in want[1]]
    np.testing.assert_allclose([s for _, s in got[1]], [s for _, s in want[1]])
    assert ours.explain(3, matrix, 11, user_weights=want[2])[0] == pytest.approx(want[0])


@quiet
@pytest.mark.parametrize("options", [{}, dict(dtype=np.float64, use_cg=False, alpha=3.0, random_state=4, iterations=2)])
def test_files_go_both_ways(implicit, options, tmp_path):
    ours, theirs = twins(implicit, **options)
    ours.save(str(tmp_path / "ours.npz"))
    theirs.save(str(tmp_path / "theirs.npz"))
    from_ours = implicit.cpu.als.AlternatingLeastSquares.load(str(tmp_path / "ours.npz"))
    from_theirs = CpuAlternatingLeastSquares.load(str(tmp_path / "theirs.npz"))
    for loaded, model in ((from_ours, theirs), (from_theirs, ours)):
        assert vars(loaded).keys() == vars(model).keys()
        for name, value in vars(model).items():
            np.testing.assert_array_equal(getattr(loaded, name), value)
            assert type(getattr(loaded, name)) is type(value)
    matrix = interactions()
    np.testing.assert_array_equal(from_ours.recommend(0, matrix[0])[0], from_theirs.recommend(0, matrix[0])[0])


def test_a_whole_number_may_be_a_float():
    matrix, model = interactions(), fitted()
    for call in (
        lambda n: model.recommend(0, matrix[0], N=n),
        lambda n: model.recommend(0, matrix[0], N=n, filter_already_liked_items=False, items=[1, 2, 3]),
        lambda n: model.similar_items(0, N=n),
        lambda n: model.similar_users([0, 1], N=n),
    ):
        for got, want in zip(call(2.0), call(2), strict=True):
            np.testing.assert_array_equal(got, want)
        with pytest.raises(TypeError, match="float"):
            call(2.5)
