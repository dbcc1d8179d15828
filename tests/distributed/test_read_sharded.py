"""Reading by parts: ids, rows and values as one machine has them, whatever rank read what."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import run_ranks

from wals_gpu import WALS, DataError, as_interactions
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.times import Period
from wals_gpu.distributed import LocalGroup, fit_sharded, read_sharded
from wals_gpu.distributed.read import parquet_files

pytest.importorskip("torch", reason="ranks need torch")


def make_table(kind, n=30_000, seed=0):
    """Repeated pairs, skewed ids, text with more than ASCII."""
    rng = np.random.default_rng(seed)
    users, items = (6000 * rng.random(n) ** 2).astype(int) * 3 - 40, (2500 * rng.random(n) ** 3).astype(int)
    if kind == "text":
        users, items = [f"ü{user}" for user in users], [f"{'ab'[item % 2]}-{item}" for item in items]
    plays, times = rng.integers(1, 5, n).astype(np.float32), rng.integers(0, 10**9, n).astype("datetime64[s]")
    times = times.astype(np.int64) / 7 if kind == "numbers" else times
    return pa.table({"user_id": users, "item_id": items, "plays": plays, "time": times})


def write_parts(folder, table):
    folder.mkdir()
    third = len(table) // 3
    pq.write_table(table[:third], folder / "a.parquet", row_group_size=1000)
    pq.write_table(table[third:], folder / "b.parquet", row_group_size=4096)


PROGRAM = """
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.distributed import read_sharded
for kind in ("numbers", "text", "few.parquet"):
    shards = read_sharded(f"{folder}/{kind}", group, 16, SolveOptions(), time_column="time")
    own, cuts = shards.rows_of("user")
    users, items = (ids.to_numpy().astype("U") for ids in (shards.user_ids, shards.item_ids))
    np.savez(f"{folder}/{kind}-{rank}.npz", users=users, items=items,
             bounds=np.concatenate([shards.user_cuts.bounds, shards.item_cuts.bounds]),
             rows=own.tocoo().row + cuts.of(rank).start, columns=own.indices, values=own.data,
             item_rows=shards.items.tocoo().row + shards.item_cuts.of(rank).start, item_columns=shards.items.indices,
             item_values=shards.items.data, times=shards.times)
    print([str(end) for end in shards.period], *shards.columns)
"""


@pytest.mark.parametrize("size", [1, 3])
def test_parts_are_those_of_the_whole(tmp_path, size):
    """Also of a file with fewer row groups than ranks."""
    tables = {"numbers": make_table("numbers"), "text": make_table("text"), "few.parquet": make_table("numbers", 900)}
    for kind in ("numbers", "text"):
        write_parts(tmp_path / kind, tables[kind])
    pq.write_table(tables["few.parquet"], tmp_path / "few.parquet")
    out = run_ranks(PROGRAM, size, tmp_path)
    assert len(set(out)) == 1
    for kind, table, line in zip(tables, tables.values(), out[0].splitlines(), strict=True):
        with pytest.warns(match="repeat a pair"):
            whole = as_interactions(table, time_column="time")
        parts = [np.load(tmp_path / f"{kind}-{rank}.npz") for rank in range(size)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert joined["users"].tolist() == whole.user_ids.to_numpy().astype("U").tolist(), kind
        assert joined["items"].tolist() == whole.item_ids.to_numpy().astype("U").tolist(), kind
        np.testing.assert_array_equal(joined["times"], whole.times, kind)
        assert line == f"{[str(end) for end in Period.of(whole.times)]} user_id item_id plays time"
        matrix = whole.matrix.tocoo()
        for prefix, expected in (("", matrix), ("item_", matrix.T.tocsr().tocoo())):
            np.testing.assert_array_equal(joined[prefix + "rows"], expected.row, kind)
            np.testing.assert_array_equal(joined[prefix + "columns"], expected.col, kind)
            np.testing.assert_array_equal(joined[prefix + "values"], expected.data, kind)


def test_a_fit_of_parts_is_that_of_the_whole(tmp_path):
    write_parts(tmp_path / "plays", make_table("numbers"))
    model = WALS(factors=12, iterations=2, random_state=0, num_threads=1)
    with pytest.warns(match="repeat a pair"):
        shards = read_sharded(tmp_path / "plays", LocalGroup(), 12, SolveOptions())
        whole = fit_sharded(model, make_table("numbers"))
    parts = fit_sharded(model, shards)
    np.testing.assert_array_equal(parts.local.user_factors, whole.local.user_factors)
    assert parts.local.item_ids.tolist() == whole.local.item_ids.tolist()


def test_what_cannot_be_read_in_parts_is_named(tmp_path):
    (tmp_path / "plays.csv").write_text("user_id,item_id\n1,2\n")
    with pytest.raises(DataError, match="holds no Parquet files"):
        read_sharded(tmp_path / "plays.csv", LocalGroup(), 4, SolveOptions())
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_sharded(tmp_path / "nothing", LocalGroup(), 4, SolveOptions())
    pq.write_table(make_table("text", 10), tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="half_life cannot be used"):
        read_sharded(tmp_path / "p.parquet", LocalGroup(), 4, SolveOptions(), half_life="9d")
    pq.write_table(make_table("text", 10)[:0], tmp_path / "none.parquet")
    with pytest.raises(DataError, match="there are no interactions"):
        read_sharded(tmp_path / "none.parquet", LocalGroup(), 4, SolveOptions())


REPEATS = """
from wals_gpu import WALS
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.distributed import fit_rows, merge_entries
import pyarrow as pa
rng = np.random.default_rng(1)
users, items, values = rng.integers(0, 3000, 9000), rng.integers(0, 1500, 9000) ** 2, rng.integers(-2, 5, 9000)
users[4000:6000], items[4000:6000] = users[:2000], items[:2000]
order = rng.permutation(9000)
mine = order[: 2000] if size == 2 and rank == 0 else order[2000:] if size == 2 else np.arange(9000)
(user_ids, rows), (item_ids, columns) = Ids.encode(pa.array(users[mine]), "u"), Ids.encode(pa.array(items[mine]), "i")
shards = merge_entries(user_ids, item_ids, rows, columns, values[mine].astype(np.float32), group, 8,
                       SolveOptions(), add_repeats=False)
model = WALS(8, "spark", solver="cholesky", iterations=2, random_state=0, num_threads=1, regularization=1.0)
own = fit_rows(model, shards, group)
np.savez(f"{folder}/{size}-{rank}.npz", users=own.users, items=own.items, last=own.history[-1].loss,
         lengths=np.diff(shards.users.indptr), columns=shards.users.indices, values=shards.users.data)
"""


def test_repeated_pairs_that_stay_entries_of_their_own(tmp_path):
    """Whoever had what, and in which order: the same entries and factors, which are those of Spark's equations."""
    for size in (1, 2):
        run_ranks(REPEATS, size, tmp_path)
    whole = np.load(tmp_path / "1-0.npz")
    parts = [np.load(tmp_path / f"2-{rank}.npz") for rank in range(2)]
    for name in ("users", "items", "lengths", "columns", "values"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    rng = np.random.default_rng(1)
    users, items, values = rng.integers(0, 3000, 9000), rng.integers(0, 1500, 9000) ** 2, rng.integers(-2, 5, 9000)
    users[4000:6000], items[4000:6000] = users[:2000], items[:2000]
    item, x = items[4000], whole["users"].astype(np.float64)
    place = np.searchsorted(np.unique(items), item)
    rows, own = np.searchsorted(np.unique(users), users[items == item]), values[items == item]
    assert len(rows) > len(set(rows))  # some user has it twice
    gram = x.T @ x + np.einsum("n,nd,ne->de", abs(own), x[rows], x[rows]) + (own > 0).sum() * np.eye(8)
    expected = np.linalg.solve(gram, x[rows].T @ ((1 + abs(own)) * (own > 0)))
    np.testing.assert_allclose(whole["items"][place], expected, rtol=1e-4, atol=1e-6)


def test_the_command_reads_a_part_of_parquet_files_and_the_whole_of_others(tmp_path):
    from wals_gpu.cli.entry import make_parser
    from wals_gpu.cli.fit import _read_on_ranks
    from wals_gpu.distributed import Shards

    table = make_table("numbers", 3000)
    write_parts(tmp_path / "plays", table)
    pq.write_table(table, tmp_path / "more.parquet")
    pd = pytest.importorskip("pandas")
    table.to_pandas(types_mapper=pd.ArrowDtype).to_csv(tmp_path / "plays.csv", index=False)

    def read(*words):
        args = make_parser().parse_args(["fit", *map(str, words), "--out", str(tmp_path / "model")])
        with pytest.warns(match="repeat a pair"):
            return _read_on_ranks(LocalGroup(), WALS(factors=4), args)

    both = read(tmp_path / "plays", tmp_path / "more.parquet")
    assert isinstance(both, Shards) and both.users.sum() == 2 * sum(table["plays"].to_pylist())
    assert isinstance(read(tmp_path / "plays", "--validation", "0.1", "--time-column", "time"), Shards)
    for words in ([tmp_path / "plays.csv"], [tmp_path / "plays", "--validation", str(tmp_path / "plays.csv")]):
        assert not isinstance(read(*words), Shards)
    assert parquet_files([tmp_path / "plays", tmp_path / "plays.csv"]) == []
