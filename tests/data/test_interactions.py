"""Every kind of input gives the matrix that a plain Python dictionary gives, or a clear error."""

from __future__ import annotations

import csv
import datetime
import gzip
import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, as_interactions, read_interactions
from wals_gpu.errors import DataError, ModelFormatError, ParameterWarning

pytestmark = pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")

INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=6)
VALUES = st.integers(-(2**10), 2**10)  # sums of these are exact in float32


def triples(ids):
    return st.lists(st.tuples(ids, ids, VALUES), min_size=1, max_size=30)


def expected(rows):
    users, items = sorted({u for u, _, _ in rows}), sorted({i for _, i, _ in rows})
    dense = np.zeros((len(users), len(items)))
    for u, i, v in rows:
        dense[users.index(u), items.index(i)] += v
    return users, items, dense, len({(u, i) for u, i, _ in rows})


def check(got, rows):
    users, items, dense, n_pairs = expected(rows)
    assert got.user_ids.ids.tolist() == users
    assert got.item_ids.ids.tolist() == items
    np.testing.assert_array_equal(got.matrix.toarray(), dense)
    assert got.matrix.nnz == n_pairs  # pairs that sum to zero are kept
    check_canonical(got.matrix)


def check_canonical(matrix, dtype=np.float32):
    assert type(matrix) is sparse.csr_matrix
    assert matrix.dtype == dtype
    fresh = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    assert fresh.has_canonical_format


def arrow(rows, chunk=None):
    users, items, values = zip(*rows, strict=True)
    table = pa.table({"user_id": list(users), "item_id": list(items), "rating": list(values)})
    return table if chunk is None else pa.concat_tables(table.slice(k, chunk) for k in range(0, len(table), chunk))


def coded(table):
    """Each chunk with a dictionary of its own."""
    for k, name in enumerate(("user_id", "item_id")):
        chunks = [chunk.dictionary_encode() for chunk in table[name].chunks]
        table = table.set_column(k, name, pa.chunked_array(chunks))
    return table


def to_pandas(rows):
    return pytest.importorskip("pandas").DataFrame(rows, columns=["user_id", "item_id", "rating"])


def to_polars(rows):
    return pytest.importorskip("polars").DataFrame(rows, schema=["user_id", "item_id", "rating"], orient="row")


@settings(max_examples=60, deadline=None)
@given(rows=triples(INTEGERS) | triples(TEXT), chunk=st.integers(1, 7))
def test_tables_match_reference(rows, chunk):
    check(as_interactions(arrow(rows)), rows)
    check(as_interactions(arrow(rows, chunk)), rows)
    check(as_interactions(coded(arrow(rows, chunk))), rows)
    check(as_interactions(arrow(rows).to_batches()[0]), rows)
    check(as_interactions(to_pandas(rows)), rows)
    check(as_interactions(to_polars(rows)), rows)
    check(as_interactions(to_polars(rows).lazy()), rows)


@settings(max_examples=30, deadline=None)
@given(rows=triples(INTEGERS) | triples(TEXT), chunk=st.integers(1, 7))
def test_files_match_reference(tmp_path_factory, rows, chunk):
    folder = tmp_path_factory.mktemp("files")
    pq.write_table(arrow(rows), folder / "a.parquet", row_group_size=chunk)
    check(read_interactions(folder / "a.parquet"), rows)
    with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("user_id", "item_id", "rating"), *rows])
    got = read_interactions(str(folder / "a.csv"))
    # A column of texts that all look like integers is read as integers; the order is theirs then.
    users, items, dense, _ = expected(rows)
    assert set(map(str, got.user_ids.ids)) == set(map(str, users))
    assert set(map(str, got.item_ids.ids)) == set(map(str, items))
    order = [
        int(got.user_ids.find(u)) if got.user_ids.kind == "string" else int(got.user_ids.find(int(u))) for u in users
    ]
    columns = [
        int(got.item_ids.find(i)) if got.item_ids.kind == "string" else int(got.item_ids.find(int(i))) for i in items
    ]
    np.testing.assert_array_equal(got.matrix.toarray()[np.ix_(order, columns)], dense)


def test_row_order_does_not_matter():
    rng = np.random.default_rng(5)
    table = pa.table({"user": rng.integers(-50, 50, 999), "item": [f"i{k}" for k in rng.integers(0, 80, 999)]})
    first, second = as_interactions(table), as_interactions(table.take(pa.array(rng.permutation(999))))
    assert first.user_ids == second.user_ids and first.item_ids == second.item_ids
    assert (first.matrix != second.matrix).nnz == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr", "csr_array", "coo_array", "csc_array"])
@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool, np.float32, np.float64])
def test_matrix_formats(form, kind, dtype):
    dense = np.random.default_rng(1).integers(0, 3, (11, 7)).astype(kind)
    dense[4] = 0
    if form.endswith("array"):
        matrix = getattr(sparse, form)(dense)
    else:
        matrix = sparse.csr_matrix(dense).asformat(form)
    got = as_interactions(matrix, dtype=dtype)
    assert got.user_ids is None and got.item_ids is None
    check_canonical(got.matrix, np.dtype(dtype))
    np.testing.assert_array_equal(got.matrix.toarray(), dense.astype(dtype))
    assert got.matrix.nnz == np.count_nonzero(dense)
    np.testing.assert_array_equal(as_interactions(dense, dtype=dtype).matrix.toarray(), dense.astype(dtype))


@settings(max_examples=50, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), VALUES), min_size=1, max_size=40),
    form=st.sampled_from(["coo", "csr", "csc"]),
)
def test_repeated_and_unsorted_entries_are_summed_and_the_input_is_left_alone(entries, form):
    rows, cols, values = map(np.array, zip(*entries, strict=True))
    dense = np.zeros((5, 7))
    np.add.at(dense, (rows, cols), values)
    matrix = sparse.coo_matrix((values, (rows, cols)), shape=(5, 7))
    if form != "coo":
        by = rows if form == "csr" else cols
        order = np.argsort(by, kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(by, minlength=5 if form == "csr" else 7))])
        minor = (cols if form == "csr" else rows)[order]
        matrix = getattr(sparse, f"{form}_matrix")((values[order], minor, indptr), shape=(5, 7))
    names = ("row", "col", "data") if form == "coo" else ("indptr", "indices", "data")
    before = [getattr(matrix, name).copy() for name in names]
    repeats = len(entries) - len({(u, i) for u, i, _ in entries})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = as_csr(matrix)
    assert [w.category for w in caught] == [ParameterWarning] * bool(repeats)
    if repeats:
        assert str(caught[0].message).startswith(f"{repeats} entries of interactions repeat")
        assert caught[0].filename == __file__
    check_canonical(got)
    np.testing.assert_array_equal(got.toarray(), dense)
    for name, was in zip(names, before, strict=True):
        np.testing.assert_array_equal(getattr(matrix, name), was)


def test_sums_do_not_overflow_in_the_type_of_the_data():
    at = ([0, 0], [0, 0])
    assert as_csr(sparse.coo_matrix((np.array([200, 200], np.uint8), at))).data.tolist() == [400]
    assert as_csr(sparse.coo_matrix((np.array([True, True]), at))).data.tolist() == [2]


def test_stored_zeros_are_kept():
    matrix = sparse.csr_matrix(([0.0, 2.0], [1, 2], [0, 2]), shape=(1, 4))
    assert as_csr(matrix).nnz == 2
    assert as_csr(sparse.bsr_matrix(np.eye(4), blocksize=(2, 2))).nnz == 4  # the padding of a block is no entry
    assert as_interactions(pa.table({"user": [1, 1], "item": [1, 2], "value": [0, 1]})).matrix.nnz == 2


def test_large_matrix_is_not_copied():
    matrix = sparse.random(50, 40, 0.2, format="csr", dtype=np.float32, random_state=0)
    matrix.sort_indices()
    got = as_csr(matrix)
    assert np.shares_memory(got.data, matrix.data) and np.shares_memory(got.indices, matrix.indices)


def test_duplicates_in_a_table_are_counted():
    table = pa.table({"user": ["a", "b", "a", "a"], "item": [1, 1, 1, 1], "count": [1, 2, 3, 4]})
    with pytest.warns(ParameterWarning, match="^2 of 4 rows of the table repeat a pair"):
        got = as_interactions(table)
    assert got.matrix.toarray().tolist() == [[8], [2]]


def test_strings_never_become_python_objects():
    n = 100_000
    rng = np.random.default_rng(3)
    names = pa.array([f"some name of a user, {k}" for k in range(500)])
    table = pa.table({"user": names.take(pa.array(rng.integers(0, 500, n))), "item": rng.integers(0, 1000, n)})
    as_interactions(table)
    tracemalloc.start()
    as_interactions(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * n  # a str alone is more; codes, values, and two CSR matrices are 8 numbers of 4 bytes


def test_import_is_light():
    code = "import sys, wals_gpu.interactions; print([m for m in ('pandas', 'polars', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


# --- pandas and polars ---------------------------------------------------------------------------------------------


def test_pandas_kinds_of_ids():
    pd = pytest.importorskip("pandas")
    for ids in (
        pd.Categorical(["y", "x"], categories=["z", "y", "x"]),  # unused categories get no row
        pd.array(["y", "x"], dtype="string[pyarrow]"),
        pd.array(["y", "x"], dtype="string[python]"),
        pd.Series(["y", "x"], dtype=object),
        pd.array(["y", "x"], dtype=pd.ArrowDtype(pa.string())),
    ):
        got = as_interactions(pd.DataFrame({"user": ids, "item": [1, 2]}))
        assert got.user_ids.ids.tolist() == ["x", "y"]
        assert got.matrix.toarray().tolist() == [[0, 1], [1, 0]]
    for ids in (pd.array([7, -5], dtype="Int64"), pd.Categorical([7, -5]), pd.Series([7, -5], dtype=object)):
        assert as_interactions(pd.DataFrame({"user": ids, "item": [1, 2]})).user_ids.ids.tolist() == [-5, 7]


def test_pandas_index_levels_and_series():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"user_id": ["b", "a", "b"], "item_id": [3, 3, 3]})
    for data in (
        frame.groupby(["user_id", "item_id"]).size(),
        frame.groupby(["user_id", "item_id"]).size().to_frame("count"),
        frame.assign(count=1).groupby(["user_id", "item_id"])["count"].sum().reset_index("item_id"),
    ):
        got = as_interactions(data)
        assert got.user_ids.ids.tolist() == ["a", "b"]
        assert got.matrix.toarray().tolist() == [[1], [2]]


def test_pandas_subclass_and_column_names_that_are_no_strings():
    pd = pytest.importorskip("pandas")

    class Frame(pd.DataFrame):
        pass

    got = as_interactions(Frame([[1, 2, 3.0], [4, 2, 5.0]]), user_column=0, item_column=1, value_column=2)
    assert got.matrix.toarray().tolist() == [[3], [5]]


def test_polars_kinds_of_ids():
    pl = pytest.importorskip("polars")
    for kind in (pl.String, pl.Categorical, pl.Enum(["z", "y", "x"])):
        frame = pl.DataFrame({"user": pl.Series(["y", "x"], dtype=kind), "item": [1, 2], "other": [None, None]})
        for data in (frame, frame.lazy()):
            got = as_interactions(data)
            assert got.user_ids.ids.tolist() == ["x", "y"]
            assert got.matrix.toarray().tolist() == [[0, 1], [1, 0]]


# --- Arrow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "users",
    [
        pa.DictionaryArray.from_arrays([0, 1, 2], ["b", "a", "b"]),  # the same value twice in the dictionary
        pa.DictionaryArray.from_arrays([0, 2, 0], ["b", None, "a"]),  # a null that no row has
        pa.array(["x", "b", "a", "b"]).slice(1),
        pa.array(["x", "b", "a", "b"]).dictionary_encode().slice(1),
        pa.array(["b", "a", "b"], pa.large_string()),
        pa.chunked_array(
            [pa.array([], pa.string()).dictionary_encode(), pa.array(["b", "a", "b"]).dictionary_encode()]
        ),
    ],
)
def test_arrow_forms_of_strings(users):
    got = as_interactions(pa.table({"user": users, "item": [1, 2, 3]}))
    order = ["ab".index(u) for u in users.to_pylist()]
    assert got.user_ids.ids.tolist() == ["a", "b"]
    assert got.matrix.toarray().argmax(0).tolist() == order


def test_arrow_stream_interface():
    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"user": ["b", "a"], "item": [1, 2]}).__arrow_c_stream__(requested_schema)

    assert as_interactions(Stream()).user_ids.ids.tolist() == ["a", "b"]


@pytest.mark.skipif(not hasattr(pa, "string_view"), reason="string views came with a later pyarrow")
def test_arrow_string_views():
    users = pa.array(["b", "a"], pa.string_view())
    for column in (users, users.dictionary_encode()):
        assert as_interactions(pa.table({"user": column, "item": [1, 2]})).user_ids.ids.tolist() == ["a", "b"]


def test_value_kinds():
    def values(column):
        return as_interactions(pa.table({"user": [1, 2], "item": [1, 1], "value": column})).matrix.data.tolist()

    assert values(pa.array([True, False])) == [1, 0]
    assert values(pa.array(np.array([1.5, -2], np.float16))) == [1.5, -2]
    assert values(pa.array([1, 2], pa.decimal128(5, 2))) == [1, 2]
    assert values(pa.array([3, 4], pa.uint8()).dictionary_encode()) == [3, 4]


# --- choice of columns ---------------------------------------------------------------------------------------------


def test_columns_by_usual_name_and_by_argument():
    table = pa.table(
        {"userId": [1, 2], "movieId": [5, 5], "rating": [2.0, 3.0], "timestamp": [0, 1], "who": ["b", "a"]}
    )
    assert as_interactions(table).matrix.toarray().tolist() == [[2], [3]]
    assert as_interactions(table, user_column="who").matrix.toarray().tolist() == [[3], [2]]
    assert as_interactions(table, value_column="timestamp").matrix.toarray().tolist() == [[0], [1]]
    assert as_interactions(table, value_column=False).matrix.toarray().tolist() == [[1], [1]]
    assert as_interactions(table.drop_columns(["rating"])).matrix.toarray().tolist() == [[1], [1]]
    bought = pa.table({"user": [1, 2], "bought": [5, 5]})  # a name of values, too
    assert as_interactions(bought, item_column="bought").matrix.toarray().tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"user": [1], "thing": [2]}, {}, "item_column must be given.*has the columns 'user', 'thing'"),
        ({"user": [1], "thing": [2]}, {"item_column": "thng"}, "item_column='thng' is not there.*'user', 'thing'"),
        (
            {"user_id": [1], "customer_id": [2], "item": [3]},
            {},
            "user_column must say which of 'user_id', 'customer_id'",
        ),
        (
            {"user": [1], "item": [2], "count": [3], "rating": [4]},
            {},
            "value_column must say which of 'count', 'rating'",
        ),
        ({"user": [1], "item": [2]}, {"item_column": "user"}, "different columns, got \\['user', 'user'\\]"),
        ({"user": [1], "item": [2]}, {"value_column": "stars"}, "value_column='stars' is not there"),
        (
            {"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())},
            {},
            "at least one row; the table has none",
        ),
        ({"user": pa.chunked_array([], pa.int64()), "item": pa.chunked_array([], pa.int64())}, {}, "at least one row"),
        ({"user": [None, None], "item": [1, 2]}, {}, "user_column 'user' must have an id in every row, got 2 null"),
        ({"user": [1, 2, 3], "item": ["a", "b", None]}, {}, "item_column 'item' .* got 1 nulls .*first in row 2"),
        ({"user": pa.DictionaryArray.from_arrays([0, 1], ["a", None]), "item": [1, 2]}, {}, "got nulls"),
        ({"user": [1.0], "item": [2]}, {}, "user_column 'user' must hold integers or strings, got double"),
        ({"user": [True], "item": [2]}, {}, "must hold integers or strings, got bool"),
        ({"user": [1], "item": [datetime.date(2020, 1, 2)]}, {}, "item_column 'item' must hold .* got date32"),
        ({"user": [1], "item": pa.array([datetime.date(2020, 1, 2)]).dictionary_encode()}, {}, "got date32"),
        ({"user": [1], "item": [datetime.datetime(2020, 1, 2)]}, {}, "got timestamp"),
        ({"user": [b"\xff"], "item": [1]}, {}, "got binary"),
        ({"user": [[1]], "item": [1]}, {}, "got list"),
        ({"user": [1], "item": [2], "value": ["5"]}, {}, "value_column 'value' must hold numbers, got string"),
        ({"user": [1], "item": [2], "value": [datetime.date(2020, 1, 2)]}, {}, "must hold numbers, got date32"),
        ({"user": [1, 2], "item": [2, 2], "value": [5, None]}, {}, "must have a number in every row, got .* in row 1"),
        (
            {"user": [1, 2], "item": [2, 2], "value": [5, np.nan]},
            {},
            "finite, but row 1 of value_column 'value' is nan",
        ),
        ({"user": [1, 2], "item": [2, 2], "value": [-np.inf, 1]}, {}, "row 0 of value_column 'value' is -inf"),
        ({"user": [1, 2], "item": [2, 2], "value": [1, 1e300]}, {}, "fit float32, but row 1 .* is 1e\\+300"),
        ({"user": [1, 1], "item": [2, 2], "value": [3e38, 3e38]}, {}, "the sum of column 'value'"),
    ],
)
def test_bad_tables(columns, options, message):
    with pytest.raises(DataError, match=message):
        as_interactions(pa.table(columns), **options)


def test_bad_frames():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for frame, message in (
        (pd.DataFrame({"user": [1.0, np.nan], "item": [1, 2]}), "got 1 nulls .or NaN., the first in row 1"),
        (pd.DataFrame({"user": pd.array([1, None], dtype="Int64"), "item": [1, 2]}), "got 1 nulls"),
        (pd.DataFrame({"user": pd.Categorical(["a", None]), "item": [1, 2]}), "got 1 nulls"),
        (pd.DataFrame({"user": pd.Series(["a", 1], dtype=object), "item": [1, 2]}), "column 'user' of the DataFrame"),
        (pd.DataFrame({"user": pd.to_datetime(["2020-01-02"]), "item": [1]}), "got timestamp"),
        (pd.DataFrame({"user": [1, 2], "item": [1, 2], "value": [1, np.nan]}), "a null .or NaN. in row 1"),
        (pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"]), "item_column must say which"),
        (pd.DataFrame({"user": [], "item": []}), "at least one row"),
        (pl.DataFrame({"user": ["a", None], "item": [1, 2]}), "got 1 nulls"),
        (pl.DataFrame({"user": [datetime.date(2020, 1, 2)], "item": [1]}), "got date32"),
        (pl.DataFrame({"user": ["a", "b"], "item": [1, 2], "value": [1.0, float("nan")]}), "row 1 .* is nan"),
        (pl.DataFrame({"a": ["a"]}), "user_column must be given"),
    ):
        with pytest.raises(DataError, match=message):
            as_interactions(frame)


# --- matrices that cannot be used ----------------------------------------------------------------------------------


def broken(form, name, at, value):
    matrix = sparse.csr_matrix(np.eye(3)).asformat(form)
    getattr(matrix, name)[at] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 2)), "at least one entry, got none in shape \\(2, 2\\)"),
        (sparse.csr_matrix((0, 3)), "at least one entry"),
        (np.ones(3), "2-D matrix .* got shape \\(3,\\)"),
        (np.ones((2, 2, 2)), "got shape \\(2, 2, 2\\)"),
        (np.array([["a"]]), "real numbers, got dtype <U1"),
        (np.array([[1j]]), "real numbers, got dtype complex128"),
        (np.array([[1, 0], [0, np.nan]]), "interactions\\[1, 1\\] is nan"),
        (broken("csr", "data", 2, np.inf), "interactions\\[2, 2\\] is inf"),
        (broken("csc", "data", 1, -1e200), "fit float32, but interactions\\[1, 1\\] is -1e\\+200"),
        (broken("csr", "indices", 1, 3), "column indices in \\[0, 3\\), got 3"),
        (broken("csr", "indices", 1, -1), "column indices in \\[0, 3\\), got -1"),
        (broken("csc", "indices", 1, 10**9), "row indices in \\[0, 3\\), got 1000000000"),
        (broken("bsr", "indices", 1, 5), "column indices"),
        (broken("coo", "row", 0, 7), "row indices in \\[0, 3\\), got 7"),
        (broken("coo", "col", 0, -2), "column indices in \\[0, 3\\), got -2"),
        (broken("csr", "indptr", 3, 10), "no valid CSR matrix: indptr"),
        (broken("csr", "indptr", 1, 3), "no valid CSR matrix: indptr"),
        (broken("csr", "indptr", 0, 1), "no valid CSR matrix: indptr"),
        (sparse.coo_matrix(([1.0], ([0], [2**31])), shape=(1, 2**31 + 1)), "at most 2147483647 rows and columns"),
        (sparse.coo_matrix(([3e38, 3e38], ([1, 1], [0, 0])), shape=(2, 2)), "the sum at interactions\\[1, 0\\] is inf"),
        (sparse.csr_matrix(([3e38, 3e38], [1, 1], [0, 2]), shape=(1, 2)), "the sum at interactions\\[0, 1\\] is inf"),
    ],
)
def test_bad_matrices(matrix, message):
    with pytest.raises(DataError, match=message):
        as_interactions(matrix)


def test_sparse_vector():
    vector = sparse.coo_array(np.ones(3))
    if vector.ndim != 1:
        pytest.skip("this SciPy has no 1-D sparse arrays")
    with pytest.raises(DataError, match=r"2-D matrix .* got shape \(3,\)"):
        as_interactions(vector)


def test_other_bad_arguments():
    for data in (None, 5, [1, 2], {"user": [1]}, object()):
        with pytest.raises(TypeError, match=f"interactions must be .* got builtins.{type(data).__name__}"):
            as_interactions(data)
    with pytest.raises(TypeError, match="seen must be a SciPy sparse matrix"):
        as_csr([[1]], argument="seen")
    with pytest.raises(DataError, match="seen must have 3 columns, one per item; got shape \\(2, 2\\)"):
        as_csr(np.eye(2), n_columns=3, argument="seen")
    table = pa.table({"user": ["a"], "item": [1]})
    for data in (table, np.eye(1)):
        for ids in (["a"], np.array(["a"]), "a"):
            with pytest.raises(TypeError, match="user_ids must be Ids, such as those of a model or of other data, got"):
                as_interactions(data, user_ids=ids)
    with pytest.raises(TypeError, match=r"like must be ColumnNames, such as Interactions.columns, got \{'user'"):
        as_interactions(table, like={"user": "user"})
    for dtype in ("nope", None, "float16"):
        with pytest.raises(ValueError, match=f"dtype must be 'float32' or 'float64', got {dtype!r}"):
            as_interactions(table, dtype=dtype)
    for path in (None, 5, b"a.csv", {"a.csv"}, ["a.csv", 5], iter(["a.csv"])):
        with pytest.raises(TypeError, match="path must be that of a file, or a list of such, got"):
            read_interactions(path)
    with pytest.raises(ValueError, match="path must name at least one file"):
        read_interactions([])
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64', got 'int32'"):
        as_interactions(np.eye(2), dtype="int32")
    with pytest.raises(ValueError, match="user_column is for tables"):
        as_interactions(np.eye(2), user_column="user")
    with pytest.raises(ValueError, match="unknown must be"):
        as_interactions(np.eye(2), unknown="ignore")
    assert as_csr(sparse.csr_matrix((2, 5)), n_columns=5, allow_empty=True).shape == (2, 5)


# --- files ---------------------------------------------------------------------------------------------------------


def text(path: Path, content: str, encoding="utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def test_text_ids_stay_as_written(tmp_path):
    got = read_interactions(text(tmp_path / "a.csv", "user,item,rating\n007,NA,1\n8,null,2\n9,nan,3\n"))
    assert got.user_ids.ids.tolist() == ["007", "8", "9"]
    assert got.item_ids.ids.tolist() == ["NA", "nan", "null"]
    got = read_interactions(text(tmp_path / "a.csv", "user,item\n-7,9223372036854775808\n12,0\n"))
    assert got.user_ids.ids.tolist() == [-7, 12] and got.item_ids.ids.tolist() == [0, 2**63]
    got = read_interactions(text(tmp_path / "a.csv", "user,item\n2020-01-02,1.0\n2020-01-01,99999999999999999999\n"))
    assert got.user_ids.ids.tolist() == ["2020-01-01", "2020-01-02"]
    assert got.item_ids.ids.tolist() == ["1.0", "99999999999999999999"]


@pytest.mark.parametrize(
    "content",
    [
        "user,item,rating\n1,a b,2\n",
        "\ufeffuser,item,rating\r\n1,a b,2\r\n",
        "user\titem\trating\n1\ta b\t2",
        "user,item,rating\r1,a b,2\r",
        "user;item;rating\n1;a b;2.0\n",
        "rating|item|user|more\n2|a b|1|x,y,z\n",
        '"user","item","rating"\n"1","a b","2"\n',
    ],
)
def test_text_dialects(tmp_path, content):
    got = read_interactions(text(tmp_path / "a.txt", content))
    assert (got.user_ids.ids.tolist(), got.item_ids.ids.tolist(), got.matrix.data.tolist()) == ([1], ["a b"], [2])


def test_compressed_text_and_folder_of_parquet(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("user,item\n1,a\n2,b\n")
    assert read_interactions(tmp_path / "a.csv.gz").matrix.shape == (2, 2)
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    for k in range(2):
        pq.write_table(pa.table({"user": [f"u{k}"], "item": [1]}), folder / f"part-{k}.parquet")
    assert read_interactions(folder).user_ids.ids.tolist() == ["u0", "u1"]
    # Another part of the same columns, whose writer chose other types.
    pq.write_table(
        pa.table({"user": ["u1"], "item": pa.array([2], pa.int32()), "value": [3]}), folder / "part-0.parquet"
    )
    pq.write_table(pa.table({"user": ["u2"], "item": [2**40], "value": [0.5]}), folder / "part-1.parquet")
    got = read_interactions(folder)
    assert got.item_ids.ids.tolist() == [2, 2**40] and got.matrix.toarray().tolist() == [[3, 0], [0, 0.5]]
    pq.write_table(pa.table({"user": [7], "item": [2], "value": [0.5]}), folder / "part-1.parquet")
    with pytest.raises(DataError, match=r"column 'user' is string in .*part-0.parquet and int64 in .*part-1.parquet"):
        read_interactions(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "column names in its first line"),
        ("PK\x03\x04" + "x" * 10**5, "is a ZIP archive or a spreadsheet"),
        ("1,2,3\n4,5,6\n", "user_column must be given.*has the columns '1', '2', '3'"),
        ("user,item,rating\n", "at least one row"),
        ("user,item,rating\n1,2,x\n", "column 'rating' must hold numbers, got 'x' in line 2 of .*a.csv"),
        ("user,item,rating\n1,2,NaN\n", "value_column 'rating' in line 2 of .*a.csv is nan"),
        ("user,item,rating\n1,2,\n", "a null .or NaN. in line 2"),
        ("user,item,rating\n1,2,3\n,2,3\n", "user_column 'user' must have an id in every row.*line 3"),
        ("user,item,rating\n1,2,3\n4,5", "line 3 of .*a.csv has 2 fields, its first line has 3"),
        ("user,item,item\n1,2,3\n", "item_column must say which"),
    ],
)
def test_bad_text(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_interactions(text(tmp_path / "a.csv", content))


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        as_interactions(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "latin.csv"))):
        read_interactions(text(tmp_path / "latin.csv", "user,item\na,\u00e9\n", "latin-1"))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="neither Parquet nor readable UTF-8 text"):
        read_interactions(tmp_path / "binary")
    with pytest.raises(DataError, match="holds no file of a table"):
        (tmp_path / "empty").mkdir()
        read_interactions(tmp_path / "empty")

    rng = np.random.default_rng(0)
    table = pa.table({"user": rng.integers(0, 10**9, 2000), "item": [str(k) for k in rng.integers(0, 10**9, 2000)]})
    pq.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for damaged in (whole[:4], whole[: len(whole) // 2], whole[:-1], whole[1:], whole[:200] + bytes(400) + whole[600:]):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(str(tmp_path / "a.parquet"))):
            read_interactions(tmp_path / "a.parquet")

    content = "user,item\n" + "".join(f"{u},{i}\n" for u, i in rng.integers(0, 10**9, (3000, 2)))
    whole = gzip.compress(content.encode())
    (tmp_path / "a.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "a.csv.gz"))):
        read_interactions(tmp_path / "a.csv.gz")


# --- ids -----------------------------------------------------------------------------------------------------------

UNSIGNED = st.integers(0, 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(ids=st.sets(INTEGERS) | st.sets(UNSIGNED), others=st.lists(st.integers(-(2**70), 2**70)))
def test_integer_ids(ids, others):
    ordered = sorted(ids)
    kind = np.uint64 if ordered and ordered[-1] >= 2**63 else np.int64
    check_ids(Ids(np.array(ordered, kind), "user"), ordered, others + ordered)


@settings(max_examples=60, deadline=None)
@given(ids=st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=200), others=st.lists(TEXT))
def test_string_ids(ids, others):
    ordered = sorted(ids)
    check_ids(Ids(pa.array(ordered, pa.string()), "user"), ordered, others + ordered)


def check_ids(made, ordered, queries):
    assert len(made) == len(ordered) and made.ids.tolist() == ordered
    index = {value: k for k, value in enumerate(ordered)}
    want = [index.get(q, -1) for q in queries]
    assert made.find(queries).tolist() == want
    assert [int(made.find(q)) for q in queries] == want
    known = [q for q in queries if q in index]
    assert made.take(made.index_of(known)).tolist() == known
    assert Ids.from_arrays(made.to_arrays("u"), "u", "user") == made


def test_ids_of_any_shape():
    for ids in (Ids(np.array([10, 20, 30]), "user"), Ids(pa.array(["10", "20", "30"]), "user")):
        a, b, c = ids.ids.tolist()
        assert ids.index_of([[a, c], [b, a]]).tolist() == [[0, 2], [1, 0]]
        assert ids.take([[2, -1], [0, 1]]).tolist() == [[c, None], [a, b]]
        assert ids.take(1) == b and ids.take(-1) is None and type(ids.take(1)) is type(b)
        assert ids.index_of([]).tolist() == [] and ids.take([]).tolist() == []
        assert ids.find(np.zeros((0, 5), int) if ids.kind == "integer" else []).size == 0
        for index in ([3], [-2]):
            with pytest.raises(IndexError, match=r"index must be in \[-1, 3\) for 3 user ids, got"):
                ids.take(index)
        with pytest.raises(TypeError, match="index must be integers"):
            ids.take([0.5])
    assert repr(ids) == "Ids(3 user ids, string: '10', '20', '30')"


def test_integers_of_the_other_sign_are_not_mixed_up():
    unsigned, signed = Ids(np.array([0, 2**64 - 1], np.uint64), "user"), Ids(np.array([-1, 0]), "user")
    assert unsigned.find(np.array([-1, 0])).tolist() == [-1, 0]
    assert signed.find(np.array([2**64 - 1, 0], np.uint64)).tolist() == [-1, 1]


def test_unknown_ids_are_named():
    with pytest.raises(KeyError, match="unknown user id: 4, 9, 5 and 1 more"):
        Ids(np.arange(3), "user").index_of([1, 4, 9, 5, -1])
    with pytest.raises(KeyError, match="unknown item id: 'x'"):
        Ids(pa.array(["a"]), "item").index_of("x")


def test_ids_of_another_kind_are_refused():
    for value in ("1", 1.0, True):
        with pytest.raises(TypeError, match="user ids are integers, got"):
            Ids(np.arange(3), "user").find([value])
    for values in ([1, True], (1, False)):  # which NumPy takes for integers
        with pytest.raises(TypeError, match=r"user ids are integers, got bool (True|False) at position 1"):
            Ids(np.arange(3), "user").find(values)
    for values in ([1, None], np.array([1, np.nan]), pd.array([1, None], "Int64"), pa.array([1, None])):
        with pytest.raises(TypeError, match=r"user ids are integers, and none may be missing; got .* at position 1$"):
            Ids(np.arange(3), "user").find(values)
    for value in (1.0, True, None):
        with pytest.raises(TypeError, match="user ids are strings, got"):
            Ids(pa.array(["a"]), "user").find(["1", value])
    for values in (
        np.array([2, 1]),
        np.array([1, 1]),
        pa.array(["b", "a"]),
        pa.array(["a", "a"]),
        pa.array(["a", None]),
    ):
        with pytest.raises(ValueError, match="strictly increasing"):
            Ids(values)
    for values in (np.array([1.0]), np.array([[1]]), pa.array([1.5])):
        with pytest.raises(TypeError, match="row ids must be"):
            Ids(values)


def test_ids_from_frames():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    strings, integers = Ids(pa.array(["a", "b"])), Ids(np.array([1, 5]))
    assert strings.index_of(pd.Series(["b", "a"])).tolist() == [1, 0]
    assert strings.index_of(pd.Categorical(["b", "a"])).tolist() == [1, 0]
    assert strings.index_of(pl.Series(["b", "a"])).tolist() == [1, 0]
    assert strings.index_of(pa.array(["b", "a"])).tolist() == [1, 0]
    assert strings.index_of(np.array(["b", "a"])).tolist() == [1, 0]
    assert integers.index_of(pd.array([5, 1], dtype="Int64")).tolist() == [1, 0]
    assert integers.index_of(pl.Series([5, 1])).tolist() == [1, 0]
    assert integers.index_of(np.array([5, 1], np.uint8)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "arrays",
    [
        {"u": np.array([2, 1])},
        {"u": np.array([1.0])},
        {"u.offsets": np.array([0, 1])},
        {"u.utf8": np.zeros(1, np.uint8)},
        {"u.offsets": np.array([0, 2]), "u.utf8": np.frombuffer(b"a", np.uint8)},
        {"u.offsets": np.array([1, 1]), "u.utf8": np.frombuffer(b"a", np.uint8)},
        {"u.offsets": np.array([0, 5, 1]), "u.utf8": np.frombuffer(b"a", np.uint8)},
        {"u.offsets": np.array([], np.int64), "u.utf8": np.array([], np.uint8)},
        {"u.offsets": np.array([0, 1], np.int32), "u.utf8": np.frombuffer(b"a", np.uint8)},
        {"u.offsets": np.array([0, 1]), "u.utf8": np.frombuffer(b"\xff", np.uint8)},
        {"u.offsets": np.array([0, 1, 2]), "u.utf8": np.frombuffer(b"ba", np.uint8)},
    ],
)
def test_damaged_ids_are_refused(arrays):
    with pytest.raises(ModelFormatError, match="user ids 'u' are damaged"):
        Ids.from_arrays(arrays, "u", "user")


def test_absent_ids():
    assert Ids.from_arrays({}, "u", "user") is None


# --- known ids -----------------------------------------------------------------------------------------------------


def test_known_ids_fix_rows_and_columns(tmp_path):
    train = as_interactions(pa.table({"user": ["a", "b"], "item": [10, 30]}))
    more = pa.table({"user": ["b", "c", "b"], "item": [10, 30, 20], "value": [2, 3, 4]})
    got = as_interactions(more.slice(0, 2), item_ids=train.item_ids)
    assert got.item_ids is train.item_ids and got.user_ids.ids.tolist() == ["b", "c"]
    assert got.matrix.toarray().tolist() == [[2, 0], [0, 3]]
    with pytest.raises(KeyError, match="unknown item id: 20"):
        as_interactions(more, item_ids=train.item_ids)
    with pytest.warns(ParameterWarning, match="2 of 3 rows .* were dropped"):
        got = as_interactions(more, user_ids=train.user_ids, item_ids=train.item_ids, unknown="drop")
    assert got.matrix.toarray().tolist() == [[0, 0], [2, 0]]
    with pytest.raises(DataError, match="item_column 'item' must hold integer ids"):
        as_interactions(pa.table({"user": ["a"], "item": ["10"]}), item_ids=train.item_ids)

    # Text that looks like integers is read as the ids are known.
    strings = Ids(pa.array(["10", "30"]), "item")
    path = text(tmp_path / "a.csv", "user,item\nx,30\n")
    assert read_interactions(path, item_ids=strings).matrix.toarray().tolist() == [[0, 1]]
    assert read_interactions(path, item_ids=train.item_ids).matrix.toarray().tolist() == [[0, 1]]


def test_known_ids_and_matrices():
    ids = Ids(np.array([5, 6]), "item")
    assert as_interactions(np.eye(2), item_ids=ids).item_ids is ids
    with pytest.raises(DataError, match="must have 2 columns, one per id; got shape \\(3, 3\\)"):
        as_interactions(np.eye(3), item_ids=ids)
    train = as_interactions(pa.table({"user": ["a", "b"], "item": [10, 30]}))
    again = as_interactions(train, item_ids=train.item_ids)
    assert again.user_ids == train.user_ids and (again.matrix != train.matrix).nnz == 0
    with pytest.raises(DataError, match="not the known ones"):
        as_interactions(train, item_ids=ids)


_NO_TIMES = ("object", "m8[s]", "complex64", "<U3", "bool")


def test_ids_and_times_of_another_kind_are_refused():
    """A list of ids was taken, and every question by id ended in an AttributeError."""
    matrix = sparse.csr_matrix(np.eye(2))
    for fields, text in (
        ({"user_ids": ["a", "b"]}, "user_ids of Interactions must be Ids, .* got \\['a', 'b'\\]"),
        ({"item_ids": np.arange(2)}, "item_ids of Interactions must be Ids"),
        ({"times": [1.0, 2.0]}, "times of Interactions must be an array, got \\[1.0, 2.0\\]"),
    ):
        with pytest.raises(TypeError, match=text):
            Interactions(matrix, **fields)
    for times, text in (
        (np.array(["2024-01-01", "NaT"], "M8[D]"), "must be there for every entry, 1 of 2 are NaN or NaT"),
        (np.array([1.0, np.nan]), "must be there for every entry, 1 of 2"),
        (np.array([1.0, np.inf]), "must be finite, got infinity"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), "must be there for every entry, 1 are masked"),
        (np.array([1.7e9, 1.7e9], np.float32), "as float32 are rounded to 128"),
        *((np.array([1, 2], kind), "must be numbers or datetime64, got dtype ") for kind in _NO_TIMES),
    ):
        with pytest.raises(DataError, match=f"times of Interactions {text}"):  # a fit took them, and could not be saved
            Interactions(matrix, times=times)
    assert Interactions(matrix, times=np.array([1, 2], np.int8)).times.dtype == np.int64
    for wrong in (None, [[1, 0]], pd.DataFrame({"user_id": [1], "item_id": [1]})):
        with pytest.raises(TypeError, match="matrix of Interactions must be a SciPy sparse matrix, got"):
            Interactions(wrong)


def test_interactions_are_shown_in_a_line():
    table = {"user": ["a", "b", "a"], "item": [1, 2, 2], "day": np.arange(3, 6).astype("datetime64[D]")}
    data = as_interactions(pa.table(table), time_column="day")
    assert repr(data) == (
        "Interactions(2 users x 2 items, 3 entries, Ids(2 user ids, string: 'a', 'b'), Ids(2 item ids, integer: 1, 2), "
        f"times {data.times.min()} ... {data.times.max()})"
    )
    assert repr(Interactions(np.eye(2))).startswith("Interactions(array(")


# --- the page for users --------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "input.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S))
def test_examples_of_the_page(block, tmp_path, monkeypatch):
    pytest.importorskip("pandas"), pytest.importorskip("polars")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec"), {})
