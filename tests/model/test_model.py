"""WALS from interactions to recommendations."""

import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_matrix, csc_array, csr_array, csr_matrix, lil_matrix

from wals_gpu import (
    PRESETS,
    WALS,
    FitRecord,
    ModelFitError,
    ModelFormatError,
    SingularSystemError,
    as_interactions,
    make_objective,
    read_interactions,
    reference,
)
from wals_gpu.errors import DataError
from wals_gpu.evaluation import Popularity
from wals_gpu.priors import LinearPrior
from wals_gpu.training.state import FitState

U, I = 23, 17  # noqa: E741


def make_matrix(seed=0, shape=(U, I), dtype=np.float32):
    """Every user and item has an entry."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, shape) * (rng.random(shape) < 0.3)
    dense[np.arange(max(shape)) % shape[0], np.arange(max(shape)) % shape[1]] = 3
    return csr_matrix(dense.astype(dtype))


def make_table(matrix, strings=True):
    """The matrix as a DataFrame in random order, with ids that sort as the row and column numbers."""
    coo = matrix.tocoo()
    user, item = (coo.row, coo.col) if not strings else ([f"u{r:02}" for r in coo.row], [f"i{c:02}" for c in coo.col])
    table = pd.DataFrame({"user": user, "item": item, "value": coo.data})
    if not strings:
        table["user"], table["item"] = table["user"] * 7 + 100, table["item"] * 3 - 5
    return table.sample(frac=1, random_state=0)


def make_model(**params):
    return WALS(**{"factors": 4, "objective": "hu", "alpha": 5, "iterations": 5, "num_threads": 2, **params})


def same_factors(a, b):
    return np.array_equal(a.user_factors, b.user_factors) and np.array_equal(a.item_factors, b.item_factors)


# Training


@pytest.mark.parametrize("factors", [4, 16, 48])  # of 16 and 48 both sides move to another basis and back
@pytest.mark.parametrize("objective", ["hu", "eals", "explicit"])
def test_fit_is_alternating_exact_solves(factors, objective):
    matrix = make_matrix(dtype=np.float64)
    model = WALS(factors, objective, dtype="float64", iterations=3, solver="cholesky", random_state=0).fit(matrix)
    rng = np.random.default_rng(0)
    _, y = (rng.standard_normal((n, factors)) * (0.1 / np.sqrt(factors)) for n in (U, I))
    bound = make_objective(objective).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(csr_matrix(matrix.T))
    for record in model.history_:
        x = reference.solve_rows(users, y)
        y = reference.solve_rows(items, x)
        assert record.loss == pytest.approx(reference.loss(users, x, y, items.ridge), rel=1e-9)
    np.testing.assert_allclose(model.user_factors, x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.item_factors, y, rtol=1e-6, atol=1e-9)


def test_callback_sees_factors_of_the_loss_it_is_told():
    matrix = make_matrix(dtype=np.float64)
    told = []

    def compare(model, record):
        bound = model.objective.bind(matrix)
        users, items = bound.user_terms(matrix), bound.item_terms(csr_matrix(matrix.T))
        loss = reference.loss(users, model.user_factors, model.item_factors, items.ridge)
        told.append((record.loss, loss))

    WALS(32, "hu", dtype="float64", iterations=4).fit(matrix, callback=compare)
    np.testing.assert_allclose(*zip(*told, strict=True), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_have_the_dtype_and_shape(dtype):
    model = make_model(dtype=dtype, factors=5).fit(make_matrix())
    assert model.user_factors.shape == (U, 5) and model.item_factors.shape == (I, 5)
    assert model.user_factors.dtype == model.item_factors.dtype == dtype
    assert model.recommend(0)[1].dtype == dtype


def test_every_kind_of_input_gives_the_same_model(tmp_path):
    matrix = make_matrix()
    expected = make_model().fit(matrix)
    for same in (csr_array(matrix), csc_array(matrix), coo_matrix(matrix), lil_matrix(matrix), matrix.toarray()):
        model = make_model().fit(same)
        assert same_factors(model, expected) and model.user_ids is None
    assert same_factors(make_model().fit(as_interactions(matrix)), expected)
    table = make_table(matrix)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(arrow, tmp_path / "data.parquet")
    table.to_csv(tmp_path / "data.csv", index=False)
    for same in (table, pl.from_pandas(table), arrow, tmp_path / "data.parquet", str(tmp_path / "data.csv")):
        model = make_model().fit(same)
        assert same_factors(model, expected)
        assert list(model.user_ids.ids) == [f"u{r:02}" for r in range(U)]
    renamed = table.rename(columns={"user": "who", "item": "what", "value": "n"})
    model = make_model().fit(renamed, user_column="who", item_column="what", value_column="n")
    assert same_factors(model, expected)


def test_callback_ends_the_fit_and_sees_the_model():
    calls = []

    def callback(model, record):
        calls.append((record, model.item_factors.copy()))
        return record.iteration == 3

    model = make_model(iterations=9).fit(make_matrix(), callback=callback)
    assert [record for record, _ in calls] == model.history_
    assert [record.iteration for record in model.history_] == [1, 2, 3]
    assert np.array_equal(calls[-1][1], model.item_factors)
    assert same_factors(model, make_model(iterations=3).fit(make_matrix()))
    assert not np.array_equal(calls[0][1], calls[1][1])


def test_history():
    model = make_model().fit(make_matrix())
    assert all(type(record) is FitRecord and record.seconds > 0 for record in model.history_)
    losses = [record.loss for record in model.history_]
    assert len(losses) == 5 and np.all(np.diff(losses) < 0)
    assert [r.loss for r in make_model(compute_loss=False).fit(make_matrix()).history_] == [None] * 5
    assert len(model.fit(make_matrix()).history_) == 5  # of the last fit only


def test_progress_bar_is_shown_on_request(capsys):
    make_model().fit(make_matrix())
    assert capsys.readouterr() == ("", "")
    model = make_model().fit(make_matrix(), show_progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "5/5" in err and f"loss={model.history_[-1].loss:.6g}" in err


def test_no_iterations_leave_the_start_values():
    model = make_model(iterations=0, init_scale=0.3, factors=64).fit(make_matrix(shape=(400, 300)))
    assert model.history_ == []
    assert model.user_factors.std() == pytest.approx(0.3 / 8, rel=0.05)
    assert model.item_factors.std() == pytest.approx(0.3 / 8, rel=0.05)
    assert WALS(init_scale=np.float32(0.25)).init_scale == 0.25
    assert not make_model(iterations=0, init_scale=0).fit(make_matrix()).user_factors.any()


def test_random_state():
    matrix = make_matrix()
    first = make_model(random_state=7).fit(matrix)
    assert same_factors(first, make_model(random_state=7).fit(matrix))
    assert same_factors(first, make_model(random_state=np.random.default_rng(7)).fit(matrix))
    assert same_factors(first, make_model(random_state=np.int64(7)).fit(matrix))
    assert same_factors(first, first.fit(matrix))
    assert not same_factors(first, make_model(random_state=8).fit(matrix))
    generator = np.random.default_rng(7)
    make_model(random_state=generator).fit(matrix)
    assert not same_factors(make_model(random_state=7).fit(matrix), make_model(random_state=generator).fit(matrix))
    assert not same_factors(*(make_model(random_state=None).fit(matrix) for _ in range(2)))


def test_the_number_of_threads_changes_no_bit():
    matrix = make_matrix(shape=(700, 300))
    one, *others = (make_model(num_threads=n, factors=33).fit(matrix) for n in (1, 2, 3, 7))
    assert all(same_factors(one, other) and one.history_[-1].loss == other.history_[-1].loss for other in others)


def test_warm_start_goes_on_where_the_fit_ended():
    matrix = make_matrix()
    expected = make_model(iterations=10).fit(matrix)
    for data in (matrix, make_table(matrix)):
        model = make_model(iterations=5).fit(data)
        assert not same_factors(model, expected)
        assert same_factors(model.fit(data, warm_start=True), expected)
        assert len(model.history_) == 5
        assert not same_factors(model.fit(data), expected)
    assert same_factors(make_model(iterations=10).fit(matrix, warm_start=True), expected)  # nothing to start from


def test_warm_start_with_a_larger_and_a_smaller_matrix():
    model = make_model(iterations=5).fit(make_matrix())
    x, y = model.user_factors.copy(), model.item_factors.copy()
    model.iterations = 0
    model.fit(make_matrix(shape=(U + 3, I + 2)), warm_start=True)
    assert np.array_equal(model.user_factors[:U], x) and np.array_equal(model.item_factors[:I], y)
    assert model.user_factors[U:].all() and len(model.item_factors) == I + 2
    model.fit(make_matrix(shape=(U - 4, I - 1)), warm_start=True)
    assert np.array_equal(model.user_factors, x[: U - 4]) and np.array_equal(model.item_factors, y[: I - 1])


@pytest.mark.parametrize("strings", [True, False])
def test_warm_start_finds_rows_by_id(strings):
    table = make_table(make_matrix(), strings)
    model = make_model(iterations=5).fit(table)
    old = {id_: model.user_factors[r].copy() for r, id_ in enumerate(model.user_ids.ids)}
    old_items = {id_: model.item_factors[r].copy() for r, id_ in enumerate(model.item_ids.ids)}
    new_user, new_item = ("a new one", "another") if strings else (3, 4)
    gone = model.user_ids.take(5)
    changed = pd.concat(
        [
            table[table["user"] != gone],
            pd.DataFrame({"user": [new_user] * 2, "item": [new_item, model.item_ids.take(0)], "value": [1.0, 2.0]}),
        ]
    )
    model.iterations = 0
    model.fit(changed, warm_start=True)
    assert set(model.user_ids.ids) == set(old) - {gone} | {new_user}
    for r, id_ in enumerate(model.user_ids.ids):
        assert np.array_equal(model.user_factors[r], old[id_]) if id_ in old else model.user_factors[r].any()
    for r, id_ in enumerate(model.item_ids.ids):
        assert np.array_equal(model.item_factors[r], old_items[id_]) if id_ in old_items else id_ == new_item


def test_warm_start_refuses_ids_of_another_kind():
    matrix = make_matrix()
    model = make_model().fit(make_table(matrix))
    before = model.user_factors.copy()
    with pytest.raises(ValueError, match=r"warm_start: .* have ids and the earlier ones none, or the reverse"):
        model.fit(matrix, warm_start=True)
    with pytest.raises(ValueError, match="warm_start: user ids are integers, the earlier ones strings"):
        model.fit(make_table(matrix, strings=False), warm_start=True)
    assert np.array_equal(model.user_factors, before)


def test_ids_of_text_files_take_the_kind_that_is_known(tmp_path):
    """In a file of text, 7 and "7" look the same: one id that is no number makes texts of all."""
    pairs = np.random.default_rng(0).permutation(12 * 25)[:150]
    table = pd.DataFrame({"user_id": pairs // 25 + 1, "item_id": pairs % 25 + 1})
    table.to_csv(tmp_path / "numbers.csv", index=False)
    names = [*map(str, range(1, 26)), "X9"]  # an item that nobody has
    prior = LinearPrior((names, np.random.default_rng(1).normal(size=(26, 3))), strength=3.0)
    model = make_model(item_prior=prior).fit(tmp_path / "numbers.csv")
    assert model.user_ids.kind == "integer" and model.item_ids.tolist() == sorted(names[:-1])
    typed = make_model(item_prior=prior).fit(table.astype({"item_id": str}))
    assert np.array_equal(model.item_factors, typed.item_factors)
    with pytest.raises(DataError, match="item_prior has string ids, the interactions have integers"):
        make_model(item_prior=prior).fit(table)
    free = np.setdiff1d(np.arange(25), pairs[pairs < 25]) + 1
    pd.DataFrame({"user_id": [1], "item_id": free[:1]}).to_csv(tmp_path / "held.csv", index=False)
    measured = [
        make_model(item_prior=prior).fit(tmp_path / "numbers.csv", validation=validation, metric="recall@24")
        for validation in (tmp_path / "held.csv", read_interactions(tmp_path / "held.csv"))
    ]
    assert measured[0].history_[-1].validation == measured[1].history_[-1].validation == 1.0

    with (tmp_path / "numbers.csv").open("a") as file:
        file.write("new,X9\n")
    for first, file in ((table.astype(str), "numbers.csv"), (table, "numbers.csv"), (table.astype(str), "held.csv")):
        before = make_model(iterations=2).fit(first)
        after = make_model(iterations=0).fit(tmp_path / file, warm_start=before)
        assert after.user_ids.kind == "string"
        assert np.array_equal(after.user_factors[after.user_ids.index_of("1")], before.user_factors[0])


def test_warm_start_from_another_model_or_its_folder(tmp_path):
    matrix = make_matrix()
    first = make_model(iterations=5).fit(make_table(matrix))
    first.save(tmp_path / "model")
    expected = make_model(iterations=10).fit(matrix)
    for start in (first, str(tmp_path / "model"), tmp_path / "model"):
        model = make_model(iterations=5)
        assert same_factors(model.fit(make_table(matrix), warm_start=start), expected)
    wide = make_model(iterations=5, dtype="float64").fit(make_table(matrix), warm_start=first)
    assert wide.user_factors.dtype == np.float64
    np.testing.assert_allclose(wide.user_factors, expected.user_factors, rtol=1e-3, atol=1e-5)


def test_warm_start_refuses_what_it_cannot_start_from(tmp_path):
    matrix = make_matrix()
    first = make_model(factors=3).fit(matrix)
    first.save(tmp_path / "model")
    model = make_model(factors=4).fit(matrix)
    before = model.user_factors.copy()
    message = "warm_start needs a model of as many factors: it has 3, this fit 4; factors=3 makes them the same"
    for start in (first, tmp_path / "model"):
        with pytest.raises(ValueError, match=message):
            model.fit(matrix, warm_start=start)
    model.factors = 5
    with pytest.raises(ValueError, match="it has 4, this fit 5"):
        model.fit(matrix, warm_start=True)
    with pytest.raises(FileNotFoundError):
        model.fit(matrix, warm_start=tmp_path / "nothing")
    with pytest.raises(ModelFitError, match="not fitted"):
        model.fit(matrix, warm_start=make_model())
    for wrong in (None, 1, np.eye(3)):
        with pytest.raises(TypeError, match="warm_start must be True, False, a fitted WALS or the path of one"):
            model.fit(matrix, warm_start=wrong)
    assert np.array_equal(model.user_factors, before)


# What ends a fit early


def test_interrupt_in_a_callback_leaves_a_usable_model():
    def callback(model, record):
        if record.iteration == 2:
            raise KeyboardInterrupt

    model = make_model(iterations=9)
    with pytest.raises(KeyboardInterrupt):
        model.fit(make_matrix(), callback=callback)
    assert len(model.history_) == 2
    assert same_factors(model, make_model(iterations=2).fit(make_matrix()))
    assert model.recommend(0, k=2)[0].shape == (2,)


INTERRUPTED = """
import traceback
import numpy as np
from scipy.sparse import csr_matrix
from wals_gpu import WALS, _cpu

def solve_rows(*args):
    print("sweeping", flush=True)
    return native(*args)

native, _cpu.solve_rows = _cpu.solve_rows, solve_rows

# One sweep over the users takes the better part of a minute: 3000 systems of size 1024 from 950 entries each.
users, items, n = 3000, 1000, 950
matrix = csr_matrix((np.full(users * n, 3, np.float32), np.tile(np.arange(n), users), np.arange(users + 1) * n),
                    shape=(users, items))
model = WALS(factors=1024, iterations=1000, solver="cholesky", num_threads=1)
start = np.random.default_rng(0).standard_normal((users, 1024), dtype=np.float32) * np.float32(0.1 / 32)
try:
    model.fit(matrix)
except KeyboardInterrupt as error:
    print("interrupted", flush=True)
    assert traceback.extract_tb(error.__traceback__)[-1].name == "solve_rows"
    assert model.history_ == []
    # The others have been to another basis and back, so they are as they were but for rounding.
    near = np.isclose(model.user_factors, start, rtol=1e-3, atol=1e-7)
    solved = near.mean(axis=1) < 0.5
    assert 0 < solved.sum() < users  # whole rows, not all of them
    assert near[~solved].all()
    ids, scores = model.recommend([0, users - 1], k=3)
    assert ids.shape == (2, 3) and np.isfinite(scores).all()
    print("usable", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_in_a_long_sweep_leaves_a_usable_model():
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "sweeping\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert out == "interrupted\nusable\n" and process.returncode == 0


def test_singular_system_names_user_or_item_with_its_id():
    table = pd.DataFrame({"user": ["ann", "bob", "bob"], "item": [7, 8, 9], "value": [1.0, 2, 3]})
    with pytest.raises(SingularSystemError, match=r"user 0 \(id 'ann'\) is not positive definite; increase the reg"):
        WALS(factors=3, objective="explicit", regularization=0).fit(table)
    with pytest.raises(SingularSystemError, match="system of user 1 is not positive definite"):
        WALS(factors=2, objective="explicit", regularization=0, init_scale=10).fit(csr_matrix([[1.0, 1, 1], [1, 0, 0]]))
    with pytest.raises(SingularSystemError, match="system of item 2 is not positive definite") as info:
        WALS(factors=2, objective="explicit", regularization=0).fit(csr_matrix([[1.0, 1, 0], [1, 2, 1]]))
    assert info.value.row == 2


def test_values_beyond_the_dtype_end_the_fit():
    matrix = csr_matrix(np.array([[1e38, 1.0], [1.0, 1e38]]))
    with pytest.raises(ModelFitError, match=r"(users|items): .*(not finite|NaN or infinity)"):
        WALS(factors=2, objective="explicit", regularization=1e-12, init_scale=1e-9).fit(matrix)


def test_bad_input_leaves_an_earlier_fit_as_it_was():
    model = make_model().fit(make_matrix())
    x, y, history = model.user_factors.copy(), model.item_factors.copy(), list(model.history_)
    for bad, error in (
        (csr_matrix((3, 4)), DataError),
        (np.array([[1.0, np.nan]]), DataError),
        (np.array([[1.0, -2.0]]), ValueError),
        (np.ones(3), DataError),
        ("no/such/file.csv", FileNotFoundError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            model.fit(bad)
    assert np.array_equal(model.user_factors, x) and np.array_equal(model.item_factors, y)
    assert model.history_ == history and model.recommend(0)[0].shape == (10,)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"factors": 0}, ValueError, "factors must be an integer from 1 to 8192, got 0"),
        ({"factors": 8193}, ValueError, "factors must be an integer from 1 to 8192, got 8193"),
        ({"factors": 2.0}, TypeError, "factors must be an integer"),
        ({"factors": True}, TypeError, "factors must be an integer"),
        ({"iterations": -1}, ValueError, "iterations must be an integer >= 0, got -1"),
        ({"iterations": None}, TypeError, "iterations must be an integer"),
        ({"objective": "als"}, ValueError, "objective must be .*implicit.*got 'als'"),
        ({"objective": 3}, ValueError, "objective must be"),
        ({"objective": "hu", "alpha": -1}, ValueError, "alpha of objective 'hu'"),
        ({"objective": "ials", "alpha": 1}, TypeError, "has no parameter alpha"),
        ({"regularisation": 1}, TypeError, "has no parameter regularisation"),
        ({"solver": "lu"}, ValueError, "solver must be one of .*cholesky.*got 'lu'"),
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64, got float16"),
        ({"dtype": "nonsense"}, ValueError, "dtype must be float32 or float64, got 'nonsense'"),
        ({"dtype": int}, ValueError, "dtype must be float32 or float64, got int64"),
        ({"device": "tpu"}, ValueError, "device must be .* got 'tpu'"),
        ({"num_threads": -1}, ValueError, "num_threads must be an integer >= 0, got -1"),
        ({"num_threads": 1.5}, TypeError, "num_threads must be"),
        ({"random_state": -1}, ValueError, "random_state must be"),
        ({"random_state": "seed"}, TypeError, "random_state must be"),
        ({"random_state": np.random.RandomState(0)}, TypeError, "random_state must be"),
        ({"init_scale": -0.1}, ValueError, "init_scale must be"),
        ({"init_scale": np.nan}, ValueError, "init_scale must be"),
        ({"init_scale": True}, TypeError, "init_scale must be"),
        ({"init_scale": "big"}, TypeError, "init_scale must be"),
    ],
)
def test_bad_parameters_are_named(params, error, message):
    with pytest.raises(error, match=message):
        WALS(**params)


def test_callback_must_be_callable():
    with pytest.raises(TypeError, match="callback must be callable, got 3"):
        make_model().fit(make_matrix(), callback=3)


# Answers


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "explicit"])
def test_checkerboard_gets_back_what_was_withheld(name):
    """Users and items of two kinds; one entry of each user is withheld. Nothing else fits as well."""
    n = 20
    board = (np.add.outer(np.arange(n), np.arange(n)) % 2).astype(np.float32)
    rng = np.random.default_rng(0)
    withheld = np.array([rng.choice(np.flatnonzero(row)) for row in board])
    board[np.arange(n), withheld] = 0
    model = WALS(factors=2, objective=name, regularization=0.05, iterations=20).fit(board)
    ids, _ = model.recommend(np.arange(n), k=1)
    np.testing.assert_array_equal(ids[:, 0], withheld)
    new, _ = model.recommend_for(board, k=1)
    np.testing.assert_array_equal(new[:, 0], withheld)


def test_recommend_one_and_several():
    matrix = make_matrix()
    model = make_model().fit(matrix)
    expected, expected_scores = reference.topk(model.user_factors, model.item_factors, 3, matrix)
    ids, scores = model.recommend(np.arange(U), k=3)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    for one in (4, np.int64(4), np.array(4)):
        ids, scores = model.recommend(one, k=3)
        assert ids.shape == scores.shape == (3,) and ids.tolist() == expected[4].tolist()
    for several in ([4, 2, 4], (4, 2, 4), np.array([4, 2, 4], np.uint8), pd.Series([4, 2, 4])):
        assert model.recommend(several, k=3)[0].tolist() == expected[[4, 2, 4]].tolist()
    assert model.recommend([4], k=3)[0].shape == (1, 3)
    for empty in ([], np.empty(0, int)):
        ids, scores = model.recommend(empty, k=3)
        assert ids.shape == scores.shape == (0, 3)


@pytest.mark.parametrize("strings", [True, False])
def test_recommend_by_id(strings):
    matrix = make_matrix()
    by_row = make_model().fit(matrix)
    model = make_model().fit(make_table(matrix, strings))
    users = model.user_ids.take([3, 0, 22])
    ids, scores = model.recommend(users, k=4)
    expected, expected_scores = by_row.recommend([3, 0, 22], k=4)
    assert ids.tolist() == model.item_ids.take(expected).tolist() and np.array_equal(scores, expected_scores)
    assert model.recommend(users[0], k=4)[0].tolist() == ids[0].tolist()
    assert model.recommend(list(users), k=4)[0].tolist() == ids.tolist()
    ids, scores = model.recommend([], k=4)
    assert ids.shape == scores.shape == (0, 4)
    similar, _ = model.similar_items(model.item_ids.take([6]), k=2)
    assert similar[0, 0] == model.item_ids.take(6)


def test_seen_items_are_left_out_unless_asked_for():
    matrix = make_matrix()
    matrix.data[::5] = 0  # a stored zero is seen too
    model = make_model().fit(matrix)
    seen = [set(matrix.indices[matrix.indptr[u] : matrix.indptr[u + 1]]) for u in range(U)]
    ids, scores = model.recommend(range(U), k=I)
    for u in range(U):
        left = I - len(seen[u])
        assert set(ids[u, :left]) == set(range(I)) - seen[u] and (ids[u, left:] == -1).all()
        assert np.isfinite(scores[u, :left]).all() and (scores[u, left:] == -np.inf).all()
    ids, scores = model.recommend(range(U), k=I, filter_seen=False)
    assert all(sorted(row) == list(range(I)) for row in ids)
    ids, _ = model.recommend_for(matrix, k=I, filter_seen=False)
    assert all(sorted(row) == list(range(I)) for row in ids)
    ids, _ = model.recommend_for(matrix, k=I)
    assert all(seen[u].isdisjoint(ids[u]) for u in range(U))


def test_more_than_there_are_items():
    ids, scores = make_model().fit(make_matrix()).recommend([0, 1], k=I + 5, filter_seen=False)
    assert ids.shape == (2, I + 5) and (ids[:, I:] == -1).all() and (scores[:, I:] == -np.inf).all()
    model = make_model().fit(make_table(make_matrix()))
    ids, _ = model.recommend("u00", k=I + 5, filter_seen=False)
    assert ids[I:].tolist() == [None] * 5 and set(ids[:I]) == set(model.item_ids.ids)
    ids, scores = model.similar_items("i00", k=I + 5)
    assert ids[I:].tolist() == [None] * 5 and (scores[I:] == -np.inf).all()


def test_lists_that_no_memory_could_hold_are_refused_by_name():
    """The end of the catalogue is no reason to refuse a long list; that it cannot be there is."""
    matrix, huge = make_matrix(), 10**15
    model = make_model().fit(matrix)
    calls = {
        "recommend": lambda: model.recommend([0, 1], huge),
        "chunks": lambda: model.recommend_chunks([0], huge),  # before the first one
        "reranked": lambda: model.recommend(0, huge, diversity=0.3),
        "explored": lambda: model.recommend(0, huge, explore="ucb"),
        "recommend_for": lambda: model.recommend_for(matrix[:2], huge),
        "search": lambda: model.search(model.user_factors[0], huge),
        "similar_items": lambda: model.similar_items(0, huge),
        "similar_users": lambda: model.similar_users(0, huge),
        "popularity": lambda: Popularity(matrix).recommend([0], huge),
    }
    message = r"k must be smaller: lists of 1,000,000,000,000,000 items take [\d,.]+ GiB, .* there are {n} to choose"
    for name, call in calls.items():
        with pytest.raises(ValueError, match=message.format(n=U if name == "similar_users" else I)):
            call()


def test_unknown_and_wrong_ids():
    model = make_model().fit(make_matrix())
    for bad in (U, -1, [0, U], [-1]):
        with pytest.raises(IndexError, match=rf"users must be in \[0, {U}\), got (-1|{U})"):
            model.recommend(bad)
    for bad in (0.0, "0", [True], [0.5], None):
        with pytest.raises(TypeError, match="users must be row numbers"):
            model.recommend(bad)
    with pytest.raises(ValueError, match=r"users must be one id or a 1-D list of ids, got shape \(1, 1\)"):
        model.recommend([[0]])
    with pytest.raises(IndexError, match="items must be in"):
        model.similar_items(I)
    for bad, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match="k must be an integer >= 1"):
            model.recommend(0, k=bad)
        with pytest.raises(error, match="k must be an integer >= 1"):
            model.similar_items(0, k=bad)
    model = make_model().fit(make_table(make_matrix()))
    with pytest.raises(KeyError, match="unknown user id: 'nobody'"):
        model.recommend(["u00", "nobody"])
    with pytest.raises(TypeError, match="user ids are strings"):
        model.recommend(0)
    with pytest.raises(KeyError, match="unknown item id: 'nothing'"):
        model.similar_items("nothing")


def test_nothing_works_before_fit(tmp_path):
    model = make_model()
    assert "not fitted" in repr(model)
    for call in (
        lambda: model.recommend(0),
        lambda: model.recommend_for(make_matrix()),
        lambda: model.similar_items(0),
        lambda: model.fold_in(make_matrix()),
        lambda: model.save(tmp_path / "model"),
    ):
        with pytest.raises(ModelFitError, match=r"the model is not fitted: call fit\(interactions\) first"):
            call()
    assert not (tmp_path / "model").exists()
    assert f"{U} users x {I} items" in repr(model.fit(make_matrix()))


@pytest.mark.parametrize("name", PRESETS)
def test_fold_in_of_the_training_data_is_one_more_user_sweep(name):
    matrix = make_matrix(dtype=np.float64)
    params = {"alpha": 1} if name == "hu" else {}
    model = WALS(factors=4, objective=name, regularization=5, iterations=300, dtype="float64", **params).fit(matrix)
    np.testing.assert_allclose(model.fold_in(matrix), model.user_factors, rtol=1e-7, atol=1e-9)
    early = WALS(factors=4, objective=name, iterations=1, dtype="float64").fit(matrix)
    folded = early.fold_in(matrix)
    assert abs(folded - early.user_factors).max() > 1e-5
    early.fit(matrix, warm_start=True)
    assert np.array_equal(early.user_factors, folded)


def test_fold_in_takes_matrices_and_tables():
    matrix = make_matrix()
    model = make_model().fit(make_table(matrix))
    expected = model.fold_in(matrix)
    assert np.array_equal(model.fold_in(matrix.toarray()), expected)
    assert np.array_equal(model.fold_in(coo_matrix(matrix)), expected)
    assert np.array_equal(model.fold_in(as_interactions(make_table(matrix))), expected)
    table = make_table(matrix)  # its rows are shuffled: users come in the order of their first
    assert np.array_equal(model.fold_in(table), expected[model.user_ids.index_of(table["user"].unique())])
    for fitted in (model, make_model().fit(matrix)):
        assert np.array_equal(fitted.fold_in(as_interactions(matrix)), expected)
    assert np.array_equal(model.fold_in(matrix[[5]]), expected[[5]])
    new = pd.DataFrame({"user": ["new"], "item": ["i03"], "value": [2.0]})
    one = csr_matrix(([2.0], ([0], [3])), shape=(1, I))
    assert np.array_equal(model.fold_in(new), model.fold_in(one))
    ids, scores = model.recommend_for(new, k=3)
    assert ids.shape == scores.shape == (1, 3) and "i03" not in ids
    assert not model.fold_in(csr_matrix((2, I))).any()
    assert model.fold_in(csr_matrix((0, I))).shape == (0, 4)
    assert model.recommend_for(csr_matrix((0, I)), k=3)[0].shape == (0, 3)


def test_fold_in_refuses_what_it_does_not_know():
    model = make_model().fit(make_table(make_matrix()))
    with pytest.raises(DataError, match=f"{I} columns"):
        model.fold_in(make_matrix(shape=(3, I + 1)))
    with pytest.raises(KeyError, match="unknown item id: 'nothing'"):
        model.fold_in(pd.DataFrame({"user": ["a"], "item": ["nothing"]}))
    with pytest.raises(TypeError, match="must be a matrix: the model was fitted on one"):
        make_model().fit(make_matrix()).fold_in(make_table(make_matrix()))


def test_similar_items():
    matrix = make_matrix().toarray()
    matrix[:, 9] = matrix[:, 2]  # the same factor, so the same cosine to everything
    matrix[:, 5] = 0
    model = make_model().fit(csr_matrix(matrix))
    y = model.item_factors.astype(np.float64)
    assert not y[5].any()
    ids, scores = model.similar_items(range(I), k=I)
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    for i in set(range(I)) - {5}:
        assert ids[i, 0] == i and scores[i, 0] == pytest.approx(1, abs=1e-6)
        known = [j for j in ids[i] if j != -1]
        assert sorted(known) == sorted(set(range(I)) - {5}) and ids[i, -1] == -1 and scores[i, -1] == -np.inf
        cosines = y[known] @ y[i] / np.linalg.norm(y[known], axis=1) / np.linalg.norm(y[i])
        np.testing.assert_allclose(scores[i, :-1], cosines, atol=1e-6)
        assert np.all(np.diff(scores[i, :-1]) <= 1e-6)
    # Nothing is known of item 5.
    assert (ids[5] == -1).all() and (scores[5] == -np.inf).all()
    ids, scores = model.similar_items(9, k=1)
    assert ids.tolist() == [9] and scores.shape == (1,)
    assert model.similar_items([], k=2)[0].shape == (0, 2)


# Files


@pytest.mark.parametrize("kind", ["matrix", "strings", "integers"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_saved_model_gives_the_same_answers(name, kind, tmp_path):
    matrix = make_matrix()
    data = matrix if kind == "matrix" else make_table(matrix, kind == "strings")
    params = {"row_weights": np.linspace(1, 2, U)} if name == "google_wals" else {}
    model = WALS(factors=4, objective=name, iterations=3, random_state=5, init_scale=0.2, **params).fit(data)
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    assert same_factors(model, loaded) and loaded.history_ == model.history_ and loaded.objective == model.objective
    users = np.arange(U) if kind == "matrix" else model.user_ids.ids
    items = np.arange(I) if kind == "matrix" else model.item_ids.ids
    for call in (
        lambda m: m.recommend(users, k=I),
        lambda m: m.recommend(users[1], k=2, filter_seen=False),
        lambda m: m.recommend_for(matrix[:5], k=4),
        lambda m: m.similar_items(items, k=3),
        lambda m: (m.fold_in(data),),
    ):
        for expected, got in zip(call(model), call(loaded), strict=True):
            assert np.array_equal(expected, got) and expected.dtype == got.dtype
    for setting in ("factors", "iterations", "solver", "dtype", "random_state", "init_scale", "compute_loss"):
        assert getattr(loaded, setting) == getattr(model, setting)
    assert same_factors(model.fit(data, warm_start=True), loaded.fit(data, warm_start=True))


def test_saving_again_and_over_another_model(tmp_path):
    first, second = (make_model(random_state=seed).fit(make_matrix(seed)) for seed in (1, 2))
    first.save(tmp_path / "model")
    second.save(str(tmp_path / "model"))
    assert same_factors(WALS.load(tmp_path / "model"), second)
    generator = make_model(random_state=np.random.default_rng(3), dtype="float64").fit(make_matrix())
    generator.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model", num_threads=1)
    assert same_factors(loaded, generator) and loaded.random_state is None and loaded.num_threads == 1


def test_a_damaged_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        WALS.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFormatError):
        WALS.load(tmp_path / "empty")
    make_model().fit(make_table(make_matrix())).save(tmp_path / "model")
    files = {path: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.name != "README.md"}
    assert len(files) >= 2
    (tmp_path / "model" / "README.md").write_text("what people write here is no part of the model")
    for path, content in files.items():
        for damaged in (content[:-2], content[: len(content) // 2], b"", content[:-40] + b"#" + content[-39:]):
            path.write_bytes(damaged)
            with pytest.raises(ModelFormatError):
                WALS.load(tmp_path / "model")
        path.unlink()
        with pytest.raises(ModelFormatError):
            WALS.load(tmp_path / "model")
        path.write_bytes(content)
    assert WALS.load(tmp_path / "model").recommend("u00")[0].shape == (10,)


def test_a_folder_with_other_content_is_refused(tmp_path):
    """Whole files that do not make up a model: wrong shapes, missing tensors, settings of no meaning."""
    from wals_gpu.data.files import load_folder, save_folder

    make_model().fit(make_table(make_matrix())).save(tmp_path / "model")
    tensors, metadata = load_folder(tmp_path / "model")
    save_folder(tmp_path / "same", tensors, metadata)
    assert WALS.load(tmp_path / "same").recommend("u00")[0].shape == (10,)
    settings = metadata["settings"]
    wrong = [
        ({name: t for name, t in tensors.items() if name != left_out}, metadata)
        for left_out in ("user_factors", "item_factors", "seen.row_ptr", "seen.col_idx")
    ]
    wrong += [
        ({**tensors, name: tensors[name][:-1]}, metadata) for name in ("user_factors", "item_factors", "seen.row_ptr")
    ]
    wrong += [({**tensors, "seen.col_idx": tensors["seen.col_idx"] + I}, metadata)]
    wrong += [({**tensors, "user_factors": tensors["user_factors"].astype(np.float64)}, metadata)]
    wrong += [
        (tensors, {name: m for name, m in metadata.items() if name != gone}) for gone in ("settings", "objective")
    ]
    wrong += [(tensors, {**metadata, "settings": {**settings, "factors": 5}})]
    wrong += [(tensors, {**metadata, "settings": {**settings, "unknown": 5}})]
    wrong += [(tensors, {**metadata, "history": [{"iteration": 1}]})]
    for n, (bad_tensors, bad_metadata) in enumerate(wrong):
        save_folder(tmp_path / f"{n}", bad_tensors, bad_metadata)
        with pytest.raises(ModelFormatError, match=f"{n} is not a model that this version can read"):
            WALS.load(tmp_path / f"{n}")


def test_a_new_fit_lets_go_of_the_earlier_factors(monkeypatch):
    """Also where answers kept what they computed, and where the new fit starts from them."""
    likes, iterate, alive = csr_matrix(np.eye(6, dtype=np.float32)), FitState.iterate, []
    for warm_start in (False, True):
        model = WALS(4, iterations=1).fit(likes)
        model.recommend([0, 1], k=2)
        model.fold_in(likes)
        earlier = weakref.ref(model.item_factors.base)
        monkeypatch.setattr(FitState, "iterate", lambda *a, e=earlier: alive.append(e() is not None) or iterate(*a))
        model.fit(likes, warm_start=warm_start)
        monkeypatch.undo()
    assert alive == [False, False]


def test_threads_that_ask_a_new_model_get_what_it_learned():
    """The object that answers share is made by whoever comes first, while others look for it."""
    model = WALS(4, iterations=1).fit(csr_matrix(np.eye(6, dtype=np.float32)))
    learned, paused = model.fitted, threading.Event()

    class Slow(WALS):
        """Lets another thread ask between the two sides of each assignment of a private attribute."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name.startswith("_last") and value and not paused.is_set():
                paused.set()
                with ThreadPoolExecutor(1) as other:
                    others.append(other.submit(lambda: self.fitted).result())

    model.__class__, others = Slow, []
    model._become(learned)
    assert model.fitted.item_factors is learned.item_factors
    assert [each.item_factors is learned.item_factors for each in others] == [True]
