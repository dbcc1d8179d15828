"""Checks of arguments: TypeError for the kind, ValueError for the range, and a message that says what was wanted."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import wals_gpu.evaluation as ev
from wals_gpu import WALS
from wals_gpu.checks import integer, number, seed
from wals_gpu.export import export, export_pgvector
from wals_gpu.priors import LinearPrior
from wals_gpu.publishing import publish
from wals_gpu.report import write_report
from wals_gpu.text import Whitening

SHARE = {"positive": True, "below": 1}
RELAXATION = {"low": 1, "below": 2}


@pytest.mark.parametrize(
    "options, wanted, inside, outside",
    [
        ({}, "x must be a finite number >= 0", [0, 0.0, -0.0, 1e300], [-1e-300, -1]),
        ({"positive": True}, "x must be a finite number > 0", [5e-324, 1, 1e300], [0, 0.0, -0.0, -1]),
        ({"high": 1}, "x must be a number from 0 to 1", [0, 0.5, 1, np.float32(1)], [-0.1, math.nextafter(1, 2)]),
        (SHARE, "x must lie in (0, 1)", [5e-324, 0.5, math.nextafter(1, 0)], [0, 1, -0.5, 1.5]),
        (RELAXATION, "x must be a number from 1 to below 2", [1, 1.5, math.nextafter(2, 0)], [2, 0.99, -1.5]),
        ({"low": -1, "high": 1}, "x must be a number from -1 to 1", [-1, 0, 1], [-1.5, 1.5]),
    ],
)
def test_number(options, wanted, inside, outside):
    for value in inside:
        checked = number("x", value, **options)
        assert type(checked) is float and checked == value
    for value in [*outside, math.nan, math.inf, -math.inf, 10**400, -(10**400)]:
        with pytest.raises(ValueError, match=f"^{re.escape(f'{wanted}, got {value!r}')}$"):
            number("x", value, **options)
    for value in [None, "1", True, False, np.True_, 1 + 0j, [1.0], np.ones(1)]:
        with pytest.raises(TypeError, match=f"^{re.escape(f'{wanted}, got {value!r}')}$"):
            number("x", value, **options)


def test_number_takes_numbers_of_other_libraries():
    for value in [np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.int64(1)]:
        checked = number("x", value, positive=True)
        assert type(checked) is float and checked == value


def test_integer():
    for value in [0, 7, np.int8(3)]:
        checked = integer("n", value, 0, 7)
        assert type(checked) is int and checked == value
    for value, high, wanted in [(-1, None, ">= 0"), (8, 7, "from 0 to 7"), (-1, 7, "from 0 to 7")]:
        with pytest.raises(ValueError, match=f"^n must be an integer {wanted}, got {value}$"):
            integer("n", value, 0, high)
    for value in [None, "1", True, 1.0, np.float32(1)]:
        with pytest.raises(TypeError, match=f"^{re.escape(f'n must be an integer >= 0, got {value!r}')}$"):
            integer("n", value, 0)


def test_seed():
    generator = np.random.default_rng(0)
    assert (seed("s", np.int64(7)), seed("s", None), seed("s", generator)) == (7, None, generator)
    for value, error in ((-1, ValueError), ("x", TypeError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match=f"^s must be an integer >= 0, got {value!r}$"):
            seed("s", value)


# ---------------------------------------------------------------------------------------------------- of the library


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    matrix = csr_matrix((rng.random((9, 12)) > 0.4).astype(np.float32))
    return WALS(4, iterations=2, random_state=0).fit(matrix), matrix


class Ragged:
    """Its lists are of several lengths."""

    def recommend(self, users, k=10, filter_seen=True):
        lists = [[1, 2], *([1] for _ in users[1:])]
        return lists, lists


FLAGS = {
    "seen": lambda model, x, out: export(model, out, to="parquet", seen="no"),
    "factors_only": lambda model, x, out: export(model, out, to="faiss", factors_only="no"),
    "overwrite": lambda model, x, out: export(model, out, to="parquet", overwrite="no"),
    "trainable": lambda model, x, out: model.as_torch(trainable="no"),
    "return_std": lambda model, x, out: model.predict(0, 1, return_std="no"),
    "resume": lambda model, x, out: WALS(2).fit(x, checkpoint_dir=out, resume="no"),
    "show_progress": lambda model, x, out: WALS(2).fit(x, show_progress="no"),
    "baseline": lambda model, x, out: ev.evaluate(model, x, x, baseline="no"),
    "filter_seen": lambda model, x, out: ev.Popularity(x).recommend([0], filter_seen="no"),
    "refit": lambda model, x, out: publish(WALS(2), out, x, "ndcg@20 > 0", refit="no"),
    "intercept": lambda model, x, out: LinearPrior(np.eye(3), intercept="no"),
    "normalize": lambda model, x, out: LinearPrior(np.eye(3), normalize="no"),
    "whiten": lambda model, x, out: Whitening(whiten="no"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_text_is_no_flag(fitted, tmp_path, name):
    """The text "no" counted as true."""
    if name == "trainable":
        pytest.importorskip("torch")
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got 'no'$"):
        FLAGS[name](*fitted, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


WRONG = [
    (
        lambda m, x, out: export(str(out), out, to="parquet"),
        "model must be a fitted WALS, got .*; WALS.load.path. reads",
    ),
    (lambda m, x, out: export_pgvector(m, None), "url must be the address of a database, .*got None"),
    (lambda m, x, out: publish(str(out), out, x, "ndcg@20 > 0"), "model must be a WALS, .*WALS.load"),
    (lambda m, x, out: write_report(out / "r.html", model="path"), "model must be a fitted model, or a dict of such"),
    (lambda m, x, out: write_report(out / "r.html", model={"a": 5}), "model must be a fitted model, .*got 5"),
    (lambda m, x, out: write_report(out / "r.html", "x"), "evaluation must be what evaluate gave, got 'x'$"),
    (lambda m, x, out: write_report(out / "r.html", tuning="best.json"), "tuning must be what WALS.tune gave, got"),
    (lambda m, x, out: write_report(out / "r.html", model=m, settings=[1]), r"settings must be a dict, got \[1\]"),
    (
        lambda m, x, out: ev.evaluate(Ragged(), x, x, filter_seen=False),
        "the lists of Ragged must be lists of one length",
    ),
    (lambda m, x, out: ev.evaluate(m, x, x, options=["diversity"]), "options must be a dict of arguments of recommend"),
    (lambda m, x, out: ev.sample_negatives(x, x, n=0), "n must be an integer >= 1, got 0"),
    (lambda m, x, out: ev.churn("path", m), "old must be a fitted model, got 'path'; WALS.load"),
    (lambda m, x, out: ev.last_n(x, 10**30, np.arange(x.nnz)), "leaves nothing to hold out"),
    (lambda m, x, out: WALS.from_config('{"factors": 3}'), r"a config must be .*, got JSON: give json.loads"),
    (lambda m, x, out: WALS(2).fit(x, settings='{"factors": 3}'), r"a config must be .*, got JSON: give json.loads"),
    (lambda m, x, out: WALS.hybrid("items.csv"), "items must be texts, .*got 'items.csv'"),
    (lambda m, x, out: WALS.hybrid(np.eye(3), None, prior=["x"]), "prior must be a dict of settings of LinearPrior"),
    (
        lambda m, x, out: WALS.hybrid(np.eye(3), None, prior={"rige": 1}),
        "prior has no setting 'rige'; did you mean 'ri",
    ),
    (lambda m, x, out: WALS.load(out, num_threads="2"), "num_threads must be an integer >= 0, got '2'"),
    (lambda m, x, out: m.recommend([0], allow=damaged()), "allow must be a sparse matrix .* got one that is damaged"),
]


def damaged():
    matrix = csr_matrix(np.eye(12)[:1])
    matrix.indices[0] = 99
    return matrix


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_what_is_wanted_is_named(fitted, tmp_path, case):
    call, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call(*fitted, tmp_path)


def test_a_file_of_a_model_is_no_model(fitted, tmp_path):
    fitted[0].save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"model.json is not a model folder: .*give the folder that it lies in"):
        WALS.load(tmp_path / "m" / "model.json")


def test_days_are_integers_in_a_cutoff_as_in_a_column(fitted):
    days = np.resize([20240101, 20240105], fitted[1].nnz)
    table = {"user_id": np.arange(len(days)), "item_id": np.arange(len(days)) % 3, "date": days}
    import pyarrow as pa

    for cutoff in (20240105, np.int64(20240105), "20240105"):
        train, _ = ev.temporal_split(pa.table(table), cutoff=cutoff, time_column="date")
        assert train.matrix.nnz == (days == 20240101).sum()
    with pytest.raises(TypeError, match=r"cutoff must be a moment such as .* got 7"):
        ev.temporal_split(pa.table(table), cutoff=7, time_column="date")


def test_users_of_a_module(fitted):
    torch = pytest.importorskip("torch")
    module = fitted[0].as_torch()
    want = module.recommend(torch.tensor([2, 0]), 3)[0].tolist()
    for users in ([2, 0], np.array([2, 0]), np.array([2, 0], np.int32)):
        assert module.recommend(users, 3)[0].tolist() == want
    for users in (0, [[1]], [0.5], torch.tensor([True])):
        with pytest.raises(TypeError, match="users must be a 1-D tensor of row numbers"):
            module.recommend(users)
    for user in (-1, 9):
        with pytest.raises(IndexError, match=rf"users must be in \[0, 9\), got {user}"):
            module.recommend([0, user])
    vectors = torch.ones(2, 4, requires_grad=True)
    assert fitted[0].search(vectors, 3)[0].tolist() == fitted[0].search(np.ones((2, 4)), 3)[0].tolist()


def test_categories_in_columns_of_arrow_and_polars():
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from wals_gpu.data.categories import Categories
    from wals_gpu.data.ids import Ids

    ids = Ids(np.arange(3), "item")
    for labels in (pl.Series(["a", "b", None]), pa.array(["a", "b", None]), pa.chunked_array([["a", "b"], [None]])):
        found = Categories.read(labels, 3, ids)
        assert (found.names, found.codes.tolist()) == (["a", "b"], [0, 1, -1])
    frame = pd.DataFrame({"item_id": [0, 1, 2], "category": [7, 12, None]})  # which pandas keeps as floats
    for labels in (frame, frame.set_index("item_id")["category"], np.array([7, 12, np.nan])):
        assert Categories.read(labels, 3, ids).names == ["7", "12"]  # they were "7.0" and "12.0"
