"""Reading by parts: ids, rows and values as one machine has them, whatever rank read what."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ranks import run_ranks

from wals_gpu import WALS, DataError, as_interactions
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.columns import open_source
from wals_gpu.data.paths import part_of
from wals_gpu.data.times import Period
from wals_gpu.distributed import LocalGroup, fit_sharded, read_sharded
from wals_gpu.distributed.read import read_validation

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


HEADER = "user_id,item_id,plays,time\n"


def write_texts(folder, table):
    """A file a day, the first of which has no day beyond the twelfth, and items that are all numbers in it alone."""
    folder.mkdir()
    numbered = np.array([not name.startswith("b") for name in table["item_id"].to_pylist()])
    for name, rows in (("a.csv", table.filter(pa.array(numbered))), ("b.csv", table.filter(pa.array(~numbered)))):
        items = [item.removeprefix("a-") for item in rows["item_id"].to_pylist()]
        times = [time.strftime(f"%-m/{'%-d' if name == 'b.csv' else '1'}/%Y") for time in rows["time"].to_pylist()]
        lines = zip(rows["user_id"].to_pylist(), items, rows["plays"].to_pylist(), times, strict=True)
        text = "".join(f"{user},{item},{play / 3:.9g},{time}\n" for user, item, play, time in lines)
        (folder / name).write_text(HEADER + text)
    lines = ['9,"b-8,2,1/30/2000\n', "9,b-9,2,1/31/2000\n", "9,b-1,2,1/30/2000\n", '9,"b-7,2,1/30/2000\n']
    (folder / "c.csv").write_text(HEADER + "".join(lines))


#: Of reading; what each of them looks at is spread over all ranks.
OPTIONS = {
    "numbers": {"half_life": 3e7, "min_user_interactions": 3, "min_item_interactions": 9, "min_value": 2},
    "text": {"half_life": "400d"},
    "few.parquet": {},
    "texts": {"half_life": "200d", "min_item_interactions": 20},
}


def write_shards(folder, group):
    """What this rank has of each input; what it says of all."""
    rank = group.rank
    for kind, options in OPTIONS.items():
        shards = read_sharded(folder / kind, group, 16, SolveOptions(), time_column="time", **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            test = read_validation(folder / f"test-{kind}", shards, **options)
        if kind == "texts":  # the last rank reads the file with a quote, rank 0 speaks of it
            assert any("c.csv has a quote" in str(one.message) for one in caught) == (rank == 0)
        users, items = (ids.to_numpy().astype("U") for ids in (shards.user_ids, shards.item_ids))
        found = {"users": users, "items": items, "times": shards.times}
        for name, matrix, cuts in (
            ("", shards.users, shards.user_cuts),
            ("item_", shards.items, shards.item_cuts),
            ("test_", test, shards.user_cuts),
        ):
            found[f"{name}rows"] = matrix.tocoo().row + cuts.of(rank).start
            found |= {f"{name}columns": matrix.indices, f"{name}values": matrix.data}
        np.savez(folder / f"{kind}-{group.size}-{rank}.npz", **found)
        print([str(end) for end in shards.period], *shards.columns)


PROGRAM = """
from pathlib import Path
from test_read_sharded import SolveOptions, read_sharded, write_shards
write_shards(Path(folder), group)
try:
    read_sharded(f"{folder}/{('numbers', 'text')[rank % 2]}", group, 4, SolveOptions())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name, seed, n in (("", 0, 30_000), ("test-", 9, 3000)):
        for kind in ("numbers", "text"):
            write_parts(folder / (name + kind), make_table(kind, n, seed))
        pq.write_table(make_table("numbers", 900, seed), folder / f"{name}few.parquet")
        write_texts(folder / f"{name}texts", make_table("text", n // 3, seed))
    return folder


@pytest.mark.filterwarnings("ignore::wals_gpu.ParameterWarning")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_are_those_of_the_whole(folder, capsys, size):
    """Weights by time, users and items without enough, values of repeated pairs, validation: bits of one process."""
    if size == 1:
        write_shards(folder, LocalGroup())
        out = [capsys.readouterr().out]
    else:
        out = run_ranks(PROGRAM, size, folder)
        assert len(set(out)) == 1
        out[0], last, _ = out[0].rsplit("\n", 2)
        assert last.startswith("DistributedError: all ranks must have the same data, settings"), last
    for (kind, options), line in zip(OPTIONS.items(), out[0].splitlines(), strict=True):
        whole = as_interactions(folder / kind, time_column="time", **options)
        known = {"user_ids": whole.user_ids, "item_ids": whole.item_ids, "unknown": "drop"}
        least = {"min_value": options["min_value"]} if "min_value" in options else {}
        test = as_interactions(folder / f"test-{kind}", **known, **least)
        parts = [np.load(folder / f"{kind}-{size}-{rank}.npz") for rank in range(size)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert joined["users"].tolist() == whole.user_ids.to_numpy().astype("U").tolist(), kind
        assert joined["items"].tolist() == whole.item_ids.to_numpy().astype("U").tolist(), kind
        np.testing.assert_array_equal(joined["times"], whole.times, kind)
        assert line == f"{[str(end) for end in Period.of(whole.times)]} user_id item_id plays time"
        matrix = whole.matrix.tocoo()
        for prefix, expected in (("", matrix), ("item_", matrix.T.tocsr().tocoo()), ("test_", test.matrix.tocoo())):
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


def test_what_cannot_be_read_is_named(tmp_path):
    group = LocalGroup()

    def read(path, **options):
        return read_sharded(tmp_path / path, group, 4, SolveOptions(), **options)

    with pytest.raises(FileNotFoundError, match="nothing"):
        read("nothing")
    pq.write_table(make_table("text", 10), tmp_path / "p.parquet")
    with pytest.raises(DataError, match="min_value=9 leaves no row: the highest value is 3"):
        read("p.parquet", min_value=9)
    with pytest.raises(DataError, match="min_user_interactions=5 and min_item_interactions=1 leave no interactions"):
        read("p.parquet", min_user_interactions=5)
    with pytest.raises(ValueError, match="user_ids cannot be used"):
        read("p.parquet", user_ids=1)
    with pytest.raises(TypeError, match="unexpected argument 'colour'"):
        read("p.parquet", colour=1)
    pq.write_table(make_table("text", 10)[:0], tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"must hold at least one row; .*none.parquet has none"):
        read("none.parquet")
    pq.write_table(make_table("numbers", 10), tmp_path / "n.parquet")
    shards = read("p.parquet")
    with pytest.raises(DataError, match=r"user ids of validation are integers, such as .*are strings"):
        read_validation(tmp_path / "n.parquet", shards)
    with pytest.raises(DataError, match="none of the 10 rows of validation is of a user and an item"):
        read_validation(pa.table({"user_id": ["nobody"] * 10, "item_id": ["x"] * 10}), shards)


@pytest.mark.parametrize(("ids", "others"), [(("1", "3"), ("x", "3")), ((str(2**63 + 7), "3"), ("-4", "3"))])
def test_validation_finds_the_integers_among_other_ids(tmp_path, ids, others):
    for name, users in (("plays.csv", ids), ("test.csv", others)):
        (tmp_path / name).write_text("user_id,item_id\n" + "".join(f"{user},{n}\n" for n, user in enumerate(users)))
    shards = read_sharded(tmp_path / "plays.csv", LocalGroup(), 4, SolveOptions())
    with pytest.warns(match="1 of 2 rows of validation"):
        test = read_validation(tmp_path / "test.csv", shards)
    assert test.nnz == 1 and test[shards.user_ids.tolist().index(3), 1] == 1


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


def test_parts_of_folders_whose_names_are_columns_and_of_several_paths(tmp_path):
    table = make_table("numbers", 3000)
    for half in range(2):
        (tmp_path / f"plays/item_id={half + 7}").mkdir(parents=True)
        part = table.drop_columns(["item_id"])[half * 1500 : half * 1500 + 1500]
        pq.write_table(part, tmp_path / f"plays/item_id={half + 7}/part.parquet", row_group_size=700)
    pq.write_table(table, tmp_path / "more.parquet", row_group_size=1600)
    for paths in (tmp_path / "plays", [tmp_path / "more.parquet", str(tmp_path / "m*.parquet")]):
        source = open_source(paths)
        parts = [part_of(source, part, 2) for part in range(2)]
        whole, *read = ([c.to_pylist() for c in one.read(["item_id"], ["plays"], ["time"])] for one in (source, *parts))
        assert whole == [first + second for first, second in zip(*read, strict=True)]
        assert f"row {len(read[0][0]) % 3000}" in parts[1].place(0)
    assert part_of(open_source(tmp_path / "more.parquet"), 2, 3) is None  # of two row groups
