"""The export to PostgreSQL, with a real server: lists are those of `recommend`, and all is there or nothing."""

import numpy as np
import pyarrow as pa
import pytest
from exported import expected, exported_model
from postgres import postgres

from wals_gpu import WALS, DataError
from wals_gpu.export import export

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

IDS = ["text", "integers", "rows"]


@pytest.fixture(scope="module")
def server():
    with postgres() as address:
        yield address


@pytest.fixture
def database(server):
    """A connection to an empty database, and its address."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS test WITH (FORCE)")
        connection.execute("CREATE DATABASE test")
    address = server.replace("dbname=postgres", "dbname=test")
    with psycopg.connect(address, autocommit=True) as connection:
        yield connection, address


def recommended(connection, model, user, k=10, schema="wals"):
    name = user if model.user_ids is None else model.user_ids[user]
    rows = connection.execute(f"SELECT * FROM {schema}.recommend(%s, %s)", [name, k]).fetchall()
    return [row[0] for row in rows], [row[1] for row in rows]


def same_lists(connection, model, users, k=10, schema="wals", **options):
    want, want_scores = expected(model, users, k, **options)
    for user, ids, scores in zip(users, want, want_scores, strict=True):
        there = scores > -np.inf
        names, values = recommended(connection, model, user, k, schema)
        assert names == ids[there].tolist(), user
        np.testing.assert_allclose(values, scores[there], rtol=1e-5)


@pytest.mark.parametrize("index", ["hnsw", "none"])
@pytest.mark.parametrize("ids", IDS)
def test_lists_are_those_of_recommend(database, ids, index):
    """Of everybody, also of user 9, of whom a matrix has nothing, and of user 5, who has nearly everything."""
    connection, address = database
    model = exported_model(ids)
    done = export(model, address, to="pgvector", index=index)
    same_lists(connection, model, range(model.n_users))
    assert done.sizes == {"items": model.n_items, "users": model.n_users, "seen": model.fitted.seen.nnz}
    ((manifest,),) = connection.execute("SELECT manifest FROM wals.manifest").fetchall()
    assert manifest == done.manifest
    assert connection.execute(done.query).rowcount == 10
    # Nobody that it knows: what is popular.
    nobody = "nobody" if ids == "text" else -1
    popular = connection.execute("SELECT item_id FROM wals.recommend(%s, 5)", [nobody]).fetchall()
    counts = model.fitted.popularity()
    best = np.argsort(-counts, kind="stable")[:5]
    assert [row[0] for row in popular] == (best.tolist() if ids == "rows" else model.item_ids.take(best).tolist())


def test_a_graph_is_searched_and_goes_on_past_what_is_seen(database):
    connection, address = database
    rng = np.random.default_rng(0)
    pattern = rng.random((300, 3000)) < 0.03
    pattern[0, :1500] = True  # more than the candidates of a search
    model = WALS(factors=8, iterations=2, num_threads=1).fit(pattern.astype(np.float32))
    export(model, address, to="pgvector")
    plan = "EXPLAIN SELECT item_id FROM wals.items ORDER BY vector <#> (SELECT vector FROM wals.users LIMIT 1) LIMIT 10"
    assert any("Index Scan using items_vector_idx" in row[0] for row in connection.execute(plan))
    connection.execute("SET enable_seqscan = off")
    names, scores = recommended(connection, model, 0, 50)
    assert len(names) == 50 and min(names) >= 1500 and scores == sorted(scores, reverse=True)
    assert len(set(names) & set(model.recommend(0, 50).ids.tolist())) >= 48


def test_halves_and_widths(database):
    connection, address = database
    model = exported_model("rows", popularity_exponent=0.0)
    export(model, address, to="pgvector", dtype="float16", schema="half")
    items = model.item_factors.astype(np.float16).astype(np.float64)
    for user in (0, 5):
        names, scores = recommended(connection, model, user, 5, "half")
        exact = items[names] @ model.user_factors[user].astype(np.float16).astype(np.float64)
        np.testing.assert_allclose(scores, exact, rtol=1e-3, atol=1e-4)
        # float16 may change the order of what is close
        assert len(set(names) & set(model.recommend(user, 7).ids.tolist())) == len(names)
    wide = WALS(factors=2100, iterations=0, num_threads=1).fit(np.eye(4))
    with pytest.raises(ValueError, match=r"up to 2,000 float32 numbers .* factors=2100: dtype='float16' has one up to"):
        export(wide, address, to="pgvector", schema="wide")
    export(wide, address, to="pgvector", schema="wide", dtype="float16")
    export(wide, address, to="pgvector", schema="wide", index="none", overwrite=True)
    assert connection.execute("SELECT vector_dims(vector) FROM wide.items").fetchone() == (2100,)
    # What is printed can be sent as it is, whatever the schema is called.
    for schema in ("wals", "User", 'it"s mine'):
        done = export(model, address, to="pgvector", schema=schema, overwrite=True)
        assert len(connection.execute(done.query).fetchall()) == 10


def test_nothing_that_is_there_is_lost(database, monkeypatch):
    connection, address = database
    connection.execute("CREATE SCHEMA mine; CREATE TABLE mine.items (name text); INSERT INTO mine.items VALUES ('tea')")
    model = exported_model("text")
    with pytest.raises(FileExistsError, match="schema 'mine' has a table 'items' that no export made"):
        export(model, address, to="pgvector", schema="mine", overwrite=True)
    assert connection.execute("SELECT name FROM mine.items").fetchall() == [("tea",)]
    export(model, address, to="pgvector")
    with pytest.raises(FileExistsError, match="schema 'wals' holds an export already"):
        export(model, address, to="pgvector")
    # What fails at its end, after all rows were written, leaves everything as it was.
    from wals_gpu.export import pgvector

    monkeypatch.setattr(pgvector, "_FUNCTION", "CREATE FUNCTION {old}.recommend() nonsense")
    with pytest.raises(OSError, match=r"PostgreSQL refused: syntax error"):
        export(exported_model("rows"), address, to="pgvector", overwrite=True)
    monkeypatch.undo()
    same_lists(connection, model, [0, 1])
    connection.execute("CREATE TABLE wals.orders (id int); CREATE VIEW wals.best AS SELECT * FROM wals.items")
    with pytest.raises(OSError, match=r"cannot drop table wals.items because other objects depend on it"):
        export(model, address, to="pgvector", overwrite=True)
    same_lists(connection, model, [0, 1])
    connection.execute("DROP VIEW wals.best")
    # Ids of another kind, and a reader in the middle of a transaction, who sees one export as a whole.
    with psycopg.connect(address) as reader:
        before = reader.execute("SELECT count(*) FROM wals.seen").fetchone()
        monkeypatch.setattr(pgvector, "PATIENCE", 0.2)
        with pytest.raises(TimeoutError, match=r"are in use by a transaction of more than 0\.2 s"):
            export(model, address, to="pgvector", overwrite=True)
        assert reader.execute("SELECT count(*) FROM wals.seen").fetchone() == before
        reader.commit()
        export(exported_model("rows"), address, to="pgvector", overwrite=True, seen=False)
        assert reader.execute("SELECT count(*) FROM wals.seen").fetchone() == (0,) and before[0] > 0
    same_lists(connection, exported_model("rows"), [0, 1], filter_seen=False)
    schemas = [row[0] for row in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'")]
    assert sorted(schemas) == ["information_schema", "mine", "public", "wals"]
    assert connection.execute("SELECT count(*) FROM wals.orders").fetchone() == (0,)


def test_what_cannot_be_is_said(database, tmp_path):
    _, address = database
    model = exported_model("rows")
    for options, text in (
        ({"index": "ivf"}, "index must be 'hnsw' or 'none', got 'ivf'"),
        ({"dtype": "int8"}, "dtype must be 'float32' or 'float16', got 'int8'"),
        ({"m": 101}, "m must be an integer from 2 to 100, got 101"),
        ({"m": 20, "ef_construction": 30}, "ef_construction must be an integer from 40 to 1000, got 30"),
    ):
        with pytest.raises(ValueError, match=text):
            export(model, address, to="pgvector", **options)
    with pytest.raises(ConnectionError, match=r"the PostgreSQL database cannot be reached: .*No such file") as e:
        export(model, f"host={tmp_path} dbname=x password=geheim", to="pgvector")
    assert "geheim" not in str(e.value)
    ids = {"user_id": [1, 2], "item_id": pa.array([1, 2**64 - 1], pa.uint64())}
    huge = WALS(factors=2, iterations=1, num_threads=1).fit(pa.table(ids))
    with pytest.raises(DataError, match=r"item ids must be integers below 2\*\*63 for PostgreSQL"):
        export(huge, address, to="pgvector")
