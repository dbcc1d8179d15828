"""Training on interactions that stay on disk: the same model as from memory, in bounded memory."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import (
    PRESETS,
    WALS,
    CheckpointError,
    DataError,
    Interactions,
    ParameterWarning,
    SingularSystemError,
    as_interactions,
    reference,
)
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.data.stored import StoredMatrix, write_stored
from wals_gpu.priors.linear import LinearPrior

ENTRY = 40  # bytes that a float32 entry counts in block_bytes


def make_matrix(seed=0, shape=(61, 43), dtype=np.float32):
    """Rows and columns without entries, one row and one column with very many."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 6, shape) * (rng.random(shape) < 0.2)
    dense[[0, 7, 8, shape[0] - 1]] = 0
    dense[:, [3, shape[1] - 1]] = 0
    dense[5, 4:], dense[9:20, 11] = 2, 1
    return csr_matrix(dense.astype(dtype))


def make_model(**params):
    return WALS(**{"factors": 5, "objective": "hu", "alpha": 5, "iterations": 4, **params})


def same_factors(a, b):
    return np.array_equal(a.user_factors, b.user_factors) and np.array_equal(a.item_factors, b.item_factors)


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The format


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("entries", [1, 7, 50, 10**6])
def test_the_files_are_the_matrix_and_its_transpose(tmp_path, entries, dtype):
    matrix = make_matrix(dtype=np.dtype(dtype))
    stored = write_stored(tmp_path / "s", matrix, dtype=dtype, block_bytes=entries * ENTRY)
    assert (stored.shape, stored.nnz, stored.dtype) == (matrix.shape, matrix.nnz, dtype)
    for side, wanted in (("users", matrix), ("items", matrix.T.tocsr())):
        parts = [
            np.load(tmp_path / "s" / side / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")
        ]
        assert [part.dtype for part in parts] == [dtype, np.int32, np.int64]
        got = csr_matrix(tuple(parts), shape=wanted.shape)
        assert got.has_canonical_format and (got != wanted).nnz == 0 and got.nnz == wanted.nnz
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["items", "stored.json", "users"]
    assert len(files_of(tmp_path / "s")) == 7 and len(list(tmp_path.iterdir())) == 1


def test_every_kind_of_input_gives_the_same_files(tmp_path):
    matrix = make_matrix()
    for name, array in (("data", matrix.data), ("indices", matrix.indices), ("indptr", matrix.indptr)):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr"))
    kinds = {
        "matrix": (matrix, {}),
        "coo": (matrix.tocoo(), {}),
        "dense": (matrix.toarray(), {}),
        "arrays": (mapped, {"n_columns": 43, "block_bytes": 20 * ENTRY}),
        "blocks": ((matrix[a : a + 10] for a in range(0, 61, 10)), {"block_bytes": 33 * ENTRY}),
        "list": ([matrix[:1], matrix[1:1], matrix[1:]], {"n_columns": 43}),
    }
    for name, (data, options) in kinds.items():
        write_stored(tmp_path / name, data, **options)
        assert files_of(tmp_path / name) == files_of(tmp_path / "matrix"), name


def test_stored_zeros_stay_and_repeated_pairs_are_summed(tmp_path):
    arrays = (np.array([1.0, 2, 0, 3, 4]), np.array([1, 1, 2, 2, 0]), np.array([0, 3, 3, 5]))
    with pytest.warns(ParameterWarning, match="1 entries"):
        stored = write_stored(tmp_path / "s", arrays, n_columns=4)
    assert stored[:].toarray().tolist() == [[0, 3, 0, 0], [0, 0, 0, 0], [4, 0, 3, 0]]
    assert stored.nnz == stored.transposed.nnz == 4


def test_rows_are_read_as_scipy_gives_them(tmp_path):
    matrix = make_matrix()
    stored = write_stored(tmp_path / "s", matrix)
    rng = np.random.default_rng(0)
    for rows in (
        slice(None),
        slice(3, 9),
        slice(50, 2, -7),
        np.array([4, 5, 6, 2, 2, 60, 0]),
        np.array([], int),
        [-1, 3],
        rng.integers(0, 61, 200),
        rng.random(61) < 0.5,
    ):
        got, wanted = stored[rows], matrix[rows]
        assert got.shape == wanted.shape and (got != wanted).nnz == 0 and got.dtype == np.float32
    assert (stored[7] != matrix[7]).nnz == 0
    for wrong in (61, -62, [0, 61], np.ones(60, bool), [0.5], "7", [[1]]):
        with pytest.raises(IndexError, match="row"):
            stored[wrong]
    again = pickle.loads(pickle.dumps(stored))
    assert (again[:] != matrix).nnz == 0
    stored.shape = (10**14, 43)  # with as many rows, what counts them all has no memory for it
    assert (stored[[7, 5]] != matrix[[7, 5]]).nnz == 0


# Fits


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
@pytest.mark.parametrize("objective", PRESETS)
def test_the_model_is_that_of_the_matrix_in_memory(tmp_path, objective, solver):
    matrix = make_matrix()
    params = {"row_weights": np.linspace(0.5, 2, 61), "exponent": 0.5} if objective == "google_wals" else {}
    make = lambda: WALS(5, objective, iterations=3, solver=solver, **params)  # noqa: E731
    expected = make().fit(matrix)
    for entries in (1, 60, 10**6):
        stored = write_stored(tmp_path / str(entries), matrix, block_bytes=entries * ENTRY)
        model = make().fit(stored)
        assert same_factors(model, expected)
        losses = [[record.loss for record in each.history_] for each in (model, expected)]
        np.testing.assert_allclose(*losses, rtol=1e-12)


@pytest.mark.parametrize("factors", [16, 48])  # those that a fit in memory rotates in place, with its own rounding
def test_every_size_agrees_with_the_reference(tmp_path, factors):
    matrix = make_matrix(dtype=np.float64)
    stored = write_stored(tmp_path / "s", matrix, dtype="float64", block_bytes=4000)
    model = WALS(factors, "hu", dtype="float64", iterations=3, solver="cholesky", random_state=0).fit(stored)
    rng = np.random.default_rng(0)
    _, y = (rng.standard_normal((n, factors)) * (0.1 / np.sqrt(factors)) for n in (61, 43))
    bound = model.objective.bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(matrix.T.tocsr())
    for record in model.history_:
        x = reference.solve_rows(users, y)
        y = reference.solve_rows(items, x)
        assert record.loss == pytest.approx(reference.loss(users, x, y, items.ridge), rel=1e-9)
    np.testing.assert_allclose(model.user_factors, x, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.item_factors, y, rtol=1e-6, atol=1e-9)


def test_block_size_and_threads_change_no_bit(tmp_path):
    matrix = make_matrix(shape=(600, 200))
    models = []
    for n, threads in ((1000, 1), (77, 3), (10**6, 2)):
        stored = write_stored(tmp_path / str(n), matrix, block_bytes=n * ENTRY)
        models.append(make_model(factors=32, num_threads=threads).fit(stored))
    assert same_factors(models[0], models[1]) and same_factors(models[0], models[2])
    reopened = StoredMatrix(tmp_path / "77", block_bytes=10**9)
    assert same_factors(make_model(factors=32).fit(reopened), models[0])


def test_the_other_side_is_rotated_once_a_half_sweep(tmp_path, monkeypatch):
    matrix, rows = make_matrix(), []
    rotated = CpuBackend.rotated

    def counted(self, factors, spectrum):
        rows.append(len(factors))
        return rotated(self, factors, spectrum)

    monkeypatch.setattr(CpuBackend, "rotated", counted)
    for n in (5, 40, 10**6):  # entries of a block
        rows.clear()
        make_model(iterations=3).fit(write_stored(tmp_path / str(n), matrix, block_bytes=n * ENTRY))
        n_users, n_items = matrix.shape
        assert rows == 3 * [n_items, n_users], n


def test_answers_and_files_are_those_of_a_model_from_memory(tmp_path):
    matrix = make_matrix()
    table = pd.DataFrame({"user": matrix.tocoo().row, "item": matrix.tocoo().col, "value": matrix.data})
    data = as_interactions(table)
    for known in (Interactions(matrix), data):
        expected = make_model().fit(known)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        stored = write_stored(folder, known.matrix)
        model = make_model().fit(Interactions(stored, known.user_ids, known.item_ids))
        model.save(folder / "model")
        loaded = WALS.load(folder / "model")
        users = np.arange(61) if known.user_ids is None else known.user_ids.ids
        for each in (model, loaded):
            for got, wanted in zip(each.recommend(users, 9), expected.recommend(users, 9), strict=True):
                assert np.array_equal(got, wanted)
            assert np.array_equal(each.fold_in(known.matrix[:5]), expected.fold_in(known.matrix[:5]))


def test_validation_and_checkpoints_work_on_stored_interactions(tmp_path):
    matrix, rng = make_matrix(), np.random.default_rng(1)
    held_out = csr_matrix((rng.random(matrix.shape) < 0.1) & (matrix.toarray() == 0)).astype(np.float32)
    stored = write_stored(tmp_path / "s", matrix, block_bytes=70 * ENTRY)
    whole = make_model(iterations=8).fit(stored, validation=held_out)
    assert same_factors(whole, make_model(iterations=8).fit(matrix, validation=held_out))

    class Stop(Exception):
        pass

    def stop(model, record):
        if record.iteration == 5:
            raise Stop

    options = {"validation": held_out, "checkpoint_dir": tmp_path / "c"}
    with pytest.raises(Stop):
        make_model(iterations=8).fit(stored, callback=stop, **options)
    with pytest.raises(CheckpointError, match="stored data = True there, False here"):
        make_model(iterations=8).fit(matrix, resume=True, **options)
    resumed = make_model(iterations=8).fit(stored, resume=True, **options)
    assert same_factors(resumed, whole)
    assert [r.loss for r in resumed.history_] == [r.loss for r in whole.history_]
    with pytest.raises(TypeError, match="hold some out as you write"):
        make_model().fit(stored, validation=0.1)


def test_errors_name_the_row_of_the_whole(tmp_path):
    matrix = make_matrix()
    stored = write_stored(tmp_path / "s", matrix, block_bytes=30 * ENTRY)
    with pytest.raises(SingularSystemError) as expected:
        WALS(5, "explicit", regularization=0.0).fit(matrix)
    with pytest.raises(SingularSystemError) as error:
        WALS(5, "explicit", regularization=0.0).fit(stored)
    assert str(error.value) == str(expected.value) and error.value.row == expected.value.row > 15
    full = csr_matrix(np.eye(30, 3, -29) + np.ones((30, 3)) * (np.arange(30)[:, None] < 29), dtype=np.float32)
    with pytest.raises(SingularSystemError, match="user 29 "):
        WALS(3, "explicit", regularization=0.0).fit(write_stored(tmp_path / "t", full, block_bytes=30 * ENTRY))
    below = matrix.copy()
    below.data[-1] = -1
    with pytest.raises(ValueError, match=r"begins at user \d+: .* takes values >= 0 only"):
        make_model().fit(write_stored(tmp_path / "u", below, block_bytes=30 * ENTRY))
    huge = matrix.copy()
    huge.data[:] = 1e38
    with pytest.raises(ValueError, match="too large"):
        make_model().fit(write_stored(tmp_path / "v", huge, block_bytes=30 * ENTRY))


# What is refused


def test_a_table_is_stored_as_the_error_for_it_says(tmp_path):
    table = pd.DataFrame({"user_id": ["ann", "bob", "bob"], "item_id": ["x", "x", "y"]})
    known = as_interactions(table)
    stored = write_stored(tmp_path / "s", known.matrix)
    model = WALS(2, iterations=2).fit(Interactions(stored, known.user_ids, known.item_ids))
    assert model.recommend(["ann"], k=1).to_pandas()["item_id"].tolist() == ["y"]


def test_bad_input_leaves_nothing_behind(tmp_path):
    matrix = make_matrix()
    data, indices, indptr = matrix.data, matrix.indices, matrix.indptr

    def broken():
        yield matrix[:10]
        raise RuntimeError("the network is gone")

    infinite = data.copy()
    infinite[7] = np.inf
    for interactions, options, error, text in (
        (broken(), {}, RuntimeError, "network"),
        ((data, indices, indptr), {}, ValueError, "n_columns"),
        ((data, indices, indptr), {"n_columns": 20}, DataError, r"must be in \[0, 20\)"),
        ((data, indices, indptr[::-1]), {"n_columns": 43}, DataError, "indptr must rise from 0"),
        ((data, indices, indptr + 1), {"n_columns": 43}, DataError, "indptr must rise from 0"),
        ((data[:-1], indices, indptr), {"n_columns": 43}, DataError, "at most the number of indices and data"),
        ((list(data), indices, indptr), {"n_columns": 43}, DataError, "data must be a one-dimensional array"),
        ((data, indices * 1.0, indptr), {"n_columns": 43}, DataError, "indices must be a one-dimensional array"),
        ((infinite, indices, indptr), {"n_columns": 43}, DataError, r"interactions\[0:61\]\[\d+, \d+\] is inf"),
        ([matrix[:5], matrix[5:, :40]], {}, DataError, r"interactions\[5:61\] must have 43 columns"),
        ([matrix, "rows"], {}, TypeError, "must be a SciPy sparse matrix or a NumPy array, got str"),
        ([], {}, DataError, "at least one entry"),
        (csr_matrix((3, 4)), {}, DataError, "at least one entry"),
        ("plays.parquet", {}, TypeError, "an iterable of matrices; got str"),
        ({"a": matrix}, {}, TypeError, "an iterable of matrices; got dict"),
        (Interactions(matrix), {}, TypeError, r"got Interactions: give interactions\.matrix, and the ids"),
        (
            pd.DataFrame({"user_id": [1]}),
            {},
            TypeError,
            r"got DataFrame: give as_interactions\(table\)\.matrix, and the",
        ),
        (matrix, {"n_columns": "43"}, TypeError, "n_columns must be an integer from 1 to 2147483647, got '43'"),
        (matrix, {"n_columns": -1}, ValueError, "n_columns must be an integer from 1"),
        (3, {}, TypeError, "got int"),
        (matrix, {"dtype": "int32"}, ValueError, "dtype must be 'float32' or 'float64', got 'int32'"),
        (matrix, {"dtype": None}, ValueError, "dtype must be 'float32' or 'float64', got None"),
        (matrix, {"block_bytes": 0}, ValueError, "block_bytes must be an integer >= 1"),
        (matrix, {"n_columns": 42}, DataError, "must have 42 columns"),
    ):
        with pytest.raises(error, match=text):
            write_stored(tmp_path / "s", interactions, **options)
        assert not list(tmp_path.iterdir())
    (tmp_path / "s").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        write_stored(tmp_path / "s", matrix)


KILLED = """
import os, pathlib, signal, sys
sys.path = {paths!r}
import test_stored as t
from killed import kill_before_operation

for n in range(500):
    path = pathlib.Path({root!r}) / str(n)
    pid = os.fork()
    if not pid:
        kill_before_operation(n)
        t.write_stored(path, t.make_matrix(), block_bytes=50 * t.ENTRY)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    assert path.exists() or status
    if path.exists():
        assert (t.StoredMatrix(path)[:] != t.make_matrix()).nnz == 0
    if not status:
        break
print(n, sum((pathlib.Path({root!r}) / str(k)).exists() for k in range(n)))
"""


def test_kill_at_any_step_leaves_all_or_nothing(tmp_path):
    """At each operation on files in turn, as in test_persistence.py."""
    code = KILLED.format(paths=sys.path, root=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    kills, whole = map(int, done.stdout.split())
    print(f"{kills} kills, {whole} of them after the folder was there")
    assert 40 < kills < 499 and 0 < whole < 40


def test_data_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    synced, fsync, rename = set(), os.fsync, os.rename

    def logged_fsync(fd):
        synced.add(os.fstat(fd).st_ino)
        fsync(fd)

    def checked_rename(source, target):
        assert {path.stat().st_ino for path in (source, *source.rglob("*"))} <= synced
        assert tmp_path.stat().st_ino not in synced
        rename(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", checked_rename)
    write_stored(tmp_path / "s", make_matrix())
    assert tmp_path.stat().st_ino in synced


def test_damaged_folders_are_refused(tmp_path):
    matrix = make_matrix()
    write_stored(tmp_path / "s", matrix)
    noted = (tmp_path / "s" / "stored.json").read_text()

    def refused(text, path=tmp_path / "s", error=DataError):
        with pytest.raises(error, match=text):
            make_model().fit(StoredMatrix(path))

    refused("no stored interactions at", tmp_path / "nothing", FileNotFoundError)
    refused("holds no stored interactions", tmp_path)
    for name, change in {
        "not JSON": "{",
        "a list": "[]",
        "format": noted.replace("wals_gpu interactions", "x"),
        "version": noted.replace('version": 1', 'version": 2'),
        "dtype": noted.replace("float32", "object"),
        "shape": noted.replace("61", '"61"'),
        "negative": noted.replace("61", "-61"),
        "deep": "[" * 100_000,
    }.items():
        (tmp_path / "s" / "stored.json").write_text(change)
        refused("no stored interactions that this version can read")
        assert name
    (tmp_path / "s" / "stored.json").write_text(noted.replace("61", "60"))
    refused("indptr must have 61 numbers")
    (tmp_path / "s" / "stored.json").write_text(noted)
    for file in sorted((tmp_path / "s").rglob("*.npy")):
        content = file.read_bytes()
        for damage in (content[:-1], content + b"\0", content[:50], b"", content.replace(b"<", b">", 1), b"x" * 500):
            file.write_bytes(damage)
            refused(str(file.name))
        file.write_bytes(content)
    np.save(tmp_path / "s" / "users" / "data.npy", np.ones(matrix.nnz))
    refused("must hold float32, got float64")
    np.save(tmp_path / "s" / "users" / "data.npy", np.ones(matrix.nnz - 1, np.float32))
    refused("is no CSR matrix")
    np.save(tmp_path / "s" / "users" / "data.npy", np.full(matrix.nnz, np.nan, np.float32))
    refused("finite", error=ValueError)
    np.save(tmp_path / "s" / "users" / "data.npy", matrix.data)
    np.save(tmp_path / "s" / "users" / "indices.npy", matrix.indices + 1000)
    refused("col_idx has an index outside", error=ValueError)
    np.save(tmp_path / "s" / "users" / "indices.npy", matrix.indices[::-1])
    refused("sorted indices", error=ValueError)
    np.save(tmp_path / "s" / "users" / "indices.npy", matrix.indices.astype(object), allow_pickle=True)
    refused("integers or floats")


def test_a_file_that_becomes_shorter_is_an_error(tmp_path):
    stored = write_stored(tmp_path / "s", make_matrix())
    path = tmp_path / "s" / "items" / "data.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="has become shorter"):
        make_model().fit(stored)


def test_what_does_not_go_with_stored_interactions_is_refused(tmp_path):
    stored = write_stored(tmp_path / "s", make_matrix())
    with pytest.raises(DataError, match="stored as float32, the model is of dtype float64"):
        make_model(dtype="float64").fit(stored)
    with pytest.raises(TypeError, match="user_column can be given with a table only"):
        make_model().fit(stored, user_column="who")
    with pytest.raises(TypeError, match="cannot be fitted with priors"):
        make_model(item_prior=LinearPrior(np.ones((43, 2)))).fit(stored)
    ids = as_interactions(pd.DataFrame({"user": [1, 2], "item": [1, 2]}))
    with pytest.raises(DataError, match="one user id for each of 61 users, got 2"):
        make_model().fit(Interactions(stored, ids.user_ids, None))


# Bounded memory

LIMITED = """
import json, resource, sys
import numpy as np
from scipy.sparse import csr_matrix
from wals_gpu import WALS
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.data.stored import write_stored

U, I, PER_USER = 60_000, 2_000, 100

def blocks(n=2_000):
    for begin in range(0, U, n):
        rng = np.random.default_rng(begin)
        columns = np.sort((np.arange(PER_USER) * 20 + rng.integers(0, 20, (n, PER_USER))).astype(np.int32), axis=1)
        values = rng.integers(1, 6, n * PER_USER).astype(np.float32)
        yield csr_matrix((values, columns.ravel(), np.arange(n + 1) * PER_USER), shape=(n, I))

def model():
    return WALS(8, "hu", iterations=2, num_threads=1)

model().fit(next(blocks()))  # what is loaded and started once
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (80 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
kind, path = sys.argv[1:]
if kind == "stored":
    fitted = model().fit(write_stored(path, blocks(), block_bytes=8 << 20))
else:
    from scipy.sparse import vstack
    fitted = model().fit(vstack(list(blocks()), format="csr"))
np.save(path + ".npy", fitted.item_factors)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the size of its address space from /proc")
def test_a_fit_in_less_memory_than_the_data_have(tmp_path):
    """6 million entries are 46 MiB, needed twice and with coefficients; 80 MiB more than at the start are allowed."""

    def run(kind):
        command = [sys.executable, "-c", LIMITED, kind, str(tmp_path / kind)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    in_memory, stored = run("memory"), run("stored")
    assert in_memory.returncode != 0 and "MemoryError" in in_memory.stderr
    assert stored.returncode == 0, stored.stderr
    assert sum(path.stat().st_size for path in (tmp_path / "stored").rglob("*")) > 90 << 20
    assert np.load(tmp_path / "stored.npy").any()
