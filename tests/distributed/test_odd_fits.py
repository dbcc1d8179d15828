"""Fits on several ranks of data and settings that few have: the bits of one process all the same."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import run_ranks
from scipy.sparse import csr_matrix
from test_sharded_fit import make_matrix, make_model

from wals_gpu import WALS, as_interactions
from wals_gpu.data.stored import StoredMatrix, write_stored
from wals_gpu.distributed import fit_sharded

pytest.importorskip("torch", reason="ranks need torch")


def scaled(power, dtype):
    """Values over many orders of magnitude."""
    matrix = make_matrix(n=4000, dtype=dtype)
    rng = np.random.default_rng(3)
    matrix.data *= (10.0 ** rng.uniform(-power, power, matrix.nnz)).astype(dtype)
    return matrix


def one_warm_user():
    row = make_matrix(n=100)[4200, :2500]
    return csr_matrix((row.data, (np.full(row.nnz, 3500), row.indices)), (4000, 2500))


def small(n_users, n_items, dtype=np.float32):
    rng = np.random.default_rng(n_users)
    matrix = csr_matrix(rng.integers(0, 3, (n_users, n_items)).astype(dtype))
    matrix[0, 0] = 2
    return matrix


#: The data, settings of the model, options of the fit.
CASES = {
    "values": (lambda: scaled(6, np.float32), {"iterations": 2}, {}),
    "float64": (lambda: scaled(30, np.float64), {"iterations": 2, "dtype": "float64", "solver": "cg"}, {}),
    "cold": (one_warm_user, {}, {"mode": "halo"}),
    "one item": (lambda: small(2500, 1), {"factors": 3}, {}),
    "one user": (lambda: small(1, 2500), {"factors": 3}, {"mode": "blocks"}),
    "one entry": (lambda: small(1, 1), {"factors": 2}, {}),
    "two rows": (lambda: small(2, 3), {"factors": 2}, {"mode": "halo"}),
    "1 factor": (lambda: make_matrix(n=9000), {"factors": 1, "iterations": 2}, {}),
    "100 factors": (lambda: make_matrix(n=9000), {"factors": 100, "iterations": 2, "over_relaxation": 1.2}, {}),
    "little memory": (lambda: make_matrix(n=9000), {"iterations": 2}, {"table_bytes": 40_000}),
    "some memory": (lambda: make_matrix(n=2000), {"iterations": 2}, {"table_bytes": 250_000}),
    "patience": (lambda: make_matrix(), {"iterations": 9, "solver": "cg"}, {"validation": 0.2, "patience": 1}),
}  # fmt: skip

#: Above the limits of one process: the same for any number of ranks.
WIDE = {
    "800 factors": (lambda: make_matrix(n=50)[3300:, :1100], {"factors": 800, "iterations": 1, "solver": "cg"}, {}),
    "1100 factors": (
        lambda: make_matrix(n=50)[3300:, :1100], {"factors": 1100, "iterations": 1, "solver": "subspace"}, {},
    ),
}  # fmt: skip

PROGRAM = """
from test_odd_fits import CASES, WIDE, make_model
from wals_gpu.distributed import fit_sharded
from wals_gpu.data.stored import StoredMatrix
for name, (make, settings, options) in (CASES | WIDE).items():
    model = fit_sharded(make_model(**settings), make(), group, **options)
    local = model.local
    np.savez(f"{folder}/{name}-{size}-{rank}.npz", users=local.user_factors, items=local.item_factors,
             losses=[record.loss for record in model.history],
             metric=[record.validation or 0 for record in model.history])
model = fit_sharded(make_model(), StoredMatrix(folder + "/stored"), group)
np.savez(f"{folder}/stored-{size}-{rank}.npz", users=model.local.user_factors, items=model.local.item_factors)

from wals_gpu.backends.solve import SolveOptions
from wals_gpu.distributed import read_sharded
for kind in ("uint64", "far", "text"):
    shards = read_sharded(f"{folder}/{kind}.parquet", group, 18, SolveOptions())
    fit_sharded(make_model(iterations=1), shards, group).save(f"{folder}/{kind}-{size}")

# Validation of users that one rank alone has.
own = shards.user_cuts.of(rank)
test = shards.users.copy() * (rank == size - 1)
test.data[:] = 0
test.eliminate_zeros()
if rank == size - 1:
    test[0, :] = np.float32(1) - np.minimum(shards.users[0].toarray(), 1)
model = fit_sharded(make_model(iterations=2), shards, group, validation=test, metric="recall@10")
print(json.dumps([record.validation for record in model.history]))
"""


def ids_of(kind, n=9000):
    rng = np.random.default_rng(5)
    numbers = rng.integers(0, 2500, n)
    if kind == "uint64":
        return numbers.astype(np.uint64) * np.uint64(7_000_000_000_000_000) + np.uint64(5)  # up to 1.7e19
    if kind == "far":
        return (numbers - 1200) * 3_000_000_001
    texts = ["", "\0", "a\0b", "a", "🎧", "🎧\0🎸", "e\u0301", "é", "\ud7ff", "\U0010ffff", " ", "\n"]
    return [f"{texts[n % len(texts)]}{n // len(texts) or ''}" for n in numbers]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    write_stored(folder / "stored", make_matrix(n=9000))
    rng = np.random.default_rng(6)
    for kind in ("uint64", "far", "text"):
        items = rng.integers(0, 1500, 9000)
        if kind == "uint64":  # of a part of the rows, and of a part of the items, none is above 2**63 - 1
            items = np.where(np.arange(9000) < 8500, items, items + 7).astype(np.uint64) + np.uint64(2**63 - 1400)
            items[:700] = 7
        table = pa.table({"user_id": ids_of(kind), "item_id": items})
        pq.write_table(table, folder / f"{kind}.parquet", row_group_size=700)
    return folder


@pytest.fixture(scope="module")
def expected():
    return {name: fit_sharded(make_model(**settings), make(), **options)
            for name, (make, settings, options) in (CASES | WIDE).items()}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_rank_is_a_fit_of_stored_interactions(expected, tmp_path, name):
    make, settings, options = CASES[name]
    options = {option: value for option, value in options.items() if option not in ("mode", "table_bytes")}
    matrix, model, found = make(), make_model(**settings), expected[name]
    if options:
        model.fit(matrix, **options)  # stored interactions take no part of themselves out
        assert [r.validation for r in model.history_] == pytest.approx([r.validation for r in found.history], abs=1e-3)
        return
    stored = write_stored(tmp_path / "stored", matrix, dtype=matrix.dtype)
    model.fit(stored)
    np.testing.assert_array_equal(model.user_factors, found.local.user_factors)
    np.testing.assert_array_equal(model.item_factors, found.local.item_factors)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_bits_of_one(inputs, expected, size):
    out = run_ranks(PROGRAM, size, inputs)
    assert np.isfinite(expected["values"].local.user_factors).all()
    for name, model in expected.items():
        parts = [np.load(inputs / f"{name}-{size}-{rank}.npz") for rank in range(size)]
        users = np.concatenate([part["users"] for part in parts])
        np.testing.assert_array_equal(users, model.local.user_factors, name)
        for part in parts:
            np.testing.assert_array_equal(part["items"], model.local.item_factors, name)
            assert part["losses"].tolist() == [record.loss for record in model.history], name
            assert part["metric"].tolist() == [record.validation or 0 for record in model.history], name
    assert 1 < len(expected["patience"].history) < 9
    stored = make_model().fit(StoredMatrix(inputs / "stored"))
    users = np.concatenate([np.load(inputs / f"stored-{size}-{rank}.npz")["users"] for rank in range(size)])
    np.testing.assert_array_equal(users, stored.user_factors)
    for kind in ("uint64", "far", "text"):
        model = WALS.load(inputs / f"{kind}-{size}")
        with pytest.warns(match="repeat a pair"):
            whole = as_interactions(pq.read_table(inputs / f"{kind}.parquet"))
        assert model.user_ids.tolist() == whole.user_ids.tolist() and model.user_ids.kind == whole.user_ids.kind
        local = fit_sharded(make_model(iterations=1), whole).local
        np.testing.assert_array_equal(model.user_factors, local.user_factors, kind)
        np.testing.assert_array_equal(
            model.recommend(model.user_ids[:40], 5).ids, local.recommend(local.user_ids[:40], 5).ids
        )
    metrics = [json.loads(text) for text in out]
    assert metrics[1:] == metrics[:-1] and len(metrics[0]) == 2
