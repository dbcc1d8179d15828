"""PostgreSQL with pgvector: users, items and what was seen as tables, and a function that recommends.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import flag, integer
from wals_gpu.data.ids import Ids
from wals_gpu.errors import DataError
from wals_gpu.export.folder import Export, manifest_of, optional_module
from wals_gpu.export.tables import parts
from wals_gpu.model.vectors import ScoreVectors, score_vectors
from wals_gpu.model.wals import WALS

__all__ = ["export_pgvector"]

#: Numbers of a vector that pgvector can index: its page is 8 KiB, see the limits in pgvector's own documentation.
INDEXED = {"float32": 2000, "float16": 4000}
#: Numbers of a vector that it can store.
STORED = 16_000
TYPES = {"float32": "vector", "float16": "halfvec"}
#: Versions of the extension from which on it has graphs, halves, and searches that go on until enough rows are left.
HNSW, HALVES, ITERATIVE = (0, 5), (0, 7), (0, 8)
#: What stands before the rows of COPY ... FORMAT binary, and after them.
HEAD, TAIL = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
#: Pairs of user and item that are written at a time.
PAIRS = 1 << 18
TABLES = ("users", "items", "seen", "manifest")
#: Seconds that a replacement waits for transactions that read the earlier tables. As long, others wait behind it.
PATIENCE = 30.0


def export_pgvector(
    model: WALS,
    url: str,
    *,
    schema: str = "wals",
    index: str = "hnsw",
    dtype: str = "float32",
    m: int = 16,
    ef_construction: int = 128,
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the vectors to tables of a PostgreSQL database, and a function ``recommend(user_id, k)``.

    In one transaction: readers have the earlier tables until it ends, and no table is left where it fails. The tables
    are ``items (item_id, vector, popularity)``, ``users (user_id, vector, known)``, ``seen (user_id, item_id)`` and
    ``manifest``. The function searches by inner product (pgvector's ``<#>``), leaves out what the user has seen, and
    gives users that the model does not know what is popular, as :meth:`wals_gpu.WALS.recommend` does.

    Parameters
    ----------
    model : WALS
        Fitted.
    url : str
        As psycopg takes it: ``postgresql://user@host/database``, or ``host=... dbname=...``. What it does not say, such
        as a password, comes from PGPASSWORD and the others of libpq.
    schema : str, default "wals"
        Where the tables are made; made itself where it is not there.
    index : {"hnsw", "none"}, default "hnsw"
        "hnsw": a graph of the items, approximate, from pgvector 0.5 on. "none": all items are compared, exact.
    dtype : {"float32", "float16"}, default "float32"
        Of the items' vectors: float16 is ``halfvec``, in half the room, from pgvector 0.7 on.
    m : int from 2 to 100, default 16
        Neighbours of an item in the graph.
    ef_construction : int from 4 to 1000, default 128
        Candidates looked at where an item is added to it; at least twice `m`.
    seen, factors_only, overwrite
        As of :func:`.export_parquet`. Of an earlier export its own tables and function are replaced, nothing else.

    Returns
    -------
    Export

    Raises
    ------
    ModuleNotFoundError
        psycopg is not installed.
    ValueError
        An option has no such value, or the model has more factors than pgvector can index in this type.
    FileExistsError
        The schema has tables of these names, of an earlier export with `overwrite` False, or of somebody else.
    ConnectionError
        The database cannot be reached.
    TimeoutError
        A transaction has used the earlier tables for more than 30 seconds.
    OSError
        The database refused something: it says what. It is as it was.
    DataError
        Ids that PostgreSQL has no type for.
    ModelFitError
        The model is not fitted.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be the address of a database, such as postgresql://host/name, got {url!r:.60}")
    _check_options(index, dtype, m, ef_construction)
    psycopg = optional_module("psycopg", "psycopg[binary]", "pgvector")
    vectors = score_vectors(model.fitted, factors_only=factors_only)
    _check_size(vectors.factors, index, dtype)
    try:
        connection = psycopg.connect(url)
    except psycopg.Error as error:
        raise ConnectionError(f"the PostgreSQL database cannot be reached: {_said(error)}") from error
    try:
        with connection, connection.cursor() as cursor:  # commits at its end, else rolls back
            loading = _Loading(psycopg.sql, cursor, vectors, schema, dtype)
            loading.check(overwrite)
            version = loading.make_extension(index)
            loading.make_tables(seen)
            if index == "hnsw":
                loading.make_index(m, ef_construction)
            query = f"SELECT * FROM {loading.quoted_schema()}.recommend({loading.first_user()}, 10)"
            options = {"seen": seen, "index": index, "dtype": dtype, "pgvector": version, "query": query}
            manifest = manifest_of("pgvector", vectors, **options)
            loading.make_manifest(manifest)
            loading.move()
            loading.make_function(index, version)
    except psycopg.errors.LockNotAvailable as error:
        raise TimeoutError(
            f"the earlier tables in schema {schema!r} are in use by a transaction of more than {PATIENCE:g} s; they "
            "are as they were"
        ) from error
    except psycopg.Error as error:
        raise OSError(f"PostgreSQL refused: {_said(error)}") from error
    return Export("pgvector", f"schema {schema}", loading.rows, "rows", query, manifest)


def _check_options(index: str, dtype: str, m: int, ef_construction: int) -> None:
    if index not in ("hnsw", "none"):
        raise ValueError(f"index must be 'hnsw' or 'none', got {index!r}")
    if dtype not in TYPES:
        raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
    m = integer("m", m, 2, 100)
    integer("ef_construction", ef_construction, max(4, 2 * m), 1000)


def _check_size(factors: int, index: str, dtype: str) -> None:
    if factors > STORED:
        raise ValueError(f"pgvector takes up to {STORED:,} numbers in a vector, the model has factors={factors}")
    if index != "none" and factors > INDEXED[dtype]:
        more = f"dtype='float16' has one up to {INDEXED['float16']:,}, " if factors <= INDEXED["float16"] else ""
        raise ValueError(
            f"pgvector has indexes of up to {INDEXED[dtype]:,} {dtype} numbers in a vector, the model has "
            f"factors={factors}: {more}index='none' compares all items"
        )


def _said(error: Any) -> str:
    """What the server says, in a line and without the statement it is about."""
    diagnosis = getattr(error, "diag", None)
    text = getattr(diagnosis, "message_primary", None) or str(error)
    detail = getattr(diagnosis, "message_detail", None) or getattr(diagnosis, "message_hint", None)
    return " ".join(f"{text}{f' ({detail})' if detail else ''}".split())


def _numbers(version: str) -> tuple[int, ...]:
    """Of a version such as "0.8.1"."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


class _Loading:
    """An export under way: tables are made in a schema of their own and moved at the end.

    Parameters
    ----------
    sql : module
        ``psycopg.sql``.
    cursor : psycopg.Cursor
    vectors : ScoreVectors
    schema : str
    dtype : str
    """

    def __init__(self, sql: Any, cursor: Any, vectors: ScoreVectors, schema: str, dtype: str) -> None:
        self._sql, self._cursor, self._vectors = sql, cursor, vectors
        self._schema, self._dtype = schema, dtype
        self._at = f"wals_gpu_loading_{os.getpid()}"
        self._types = {"users": _type_of(vectors.user_ids), "items": _type_of(vectors.item_ids)}
        self._has_old = False
        self.rows: dict[str, int] = {}

    def _run(self, statement: str, *values: Any, **names: Any) -> Any:
        """Run a statement; in it {old} and {new} are the schemas, other names in braces are given."""
        sql = self._sql
        known = {"old": sql.Identifier(self._schema), "new": sql.Identifier(self._at)}
        known |= {name: value if isinstance(value, sql.Composable) else sql.SQL(value) for name, value in names.items()}
        return self._cursor.execute(sql.SQL(statement).format(**known), values or None)

    def check(self, overwrite: bool) -> None:
        """Refuse what is there and not to be replaced."""
        found = self._run(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')",
            self._schema, list(TABLES),
        )  # fmt: skip
        names = sorted(row[0] for row in found)
        if not names:
            return
        self._has_old = "manifest" in names and self._is_own()
        if not self._has_old:
            raise FileExistsError(
                f"schema {self._schema!r} has a table {names[0]!r} that no export made; give another schema"
            )
        if not flag("overwrite", overwrite):
            raise FileExistsError(
                f"schema {self._schema!r} holds an export already; overwrite=True puts the new one in its place"
            )

    def _is_own(self) -> bool:
        columns = self._run(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = %s AND table_name = "
            "'manifest'", self._schema,
        ).fetchall()  # fmt: skip
        if columns != [("manifest", "jsonb")]:
            return False
        return bool(self._run("SELECT count(*) FROM {old}.manifest WHERE manifest ? 'format'").fetchone()[0])

    def make_extension(self, index: str) -> str:
        """pgvector, and its version."""
        there = self._run("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'").fetchone()
        if there is None:
            raise OSError("the PostgreSQL server has no pgvector: install the extension 'vector' there")
        self._run("CREATE EXTENSION IF NOT EXISTS vector")
        version = str(self._run("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()[0])
        for wanted, since, remedy in (
            (index == "hnsw", HNSW, "index='none' compares all items"),
            (self._dtype == "float16", HALVES, "dtype='float32' works"),
        ):
            if wanted and _numbers(version) < since:
                what = "graphs" if since == HNSW else "halfvec"
                raise ValueError(f"pgvector has {what} from {since[0]}.{since[1]} on, this is {version}; {remedy}")
        return version

    def make_tables(self, seen: bool) -> None:
        """All of them, with their rows."""
        v, (user, item) = self._vectors, self._types.values()
        self._run("CREATE SCHEMA {new}")
        vector = f"{TYPES[self._dtype]}({v.factors})"
        # No compression: it would be tried on each row, and numbers have none.
        self._run("CREATE TABLE {new}.items (item_id {id}, vector {v} NOT NULL, popularity bigint NOT NULL)",
                  id=item, v=vector)  # fmt: skip
        self._run("CREATE TABLE {new}.users (user_id {id}, vector vector({d}) NOT NULL, known boolean NOT NULL)",
                  id=user, d=str(v.factors))  # fmt: skip
        self._run("CREATE TABLE {new}.seen (user_id {user}, item_id {item})", user=user, item=item)
        self._run("CREATE TABLE {new}.manifest (manifest jsonb NOT NULL)")
        counts, known = v.popularity.astype(">i8"), v.known.astype(np.uint8)
        self._copy("items", _rows(v.item_ids, v.items, counts, np.dtype(self._dtype)), v.n_items)
        self._copy("users", _rows(v.user_ids, v.users, known, np.dtype(np.float32)), v.n_users)
        if seen:
            self._copy("seen", self._pairs(), int(v.seen.nnz))
        self._run("ALTER TABLE {new}.items ADD PRIMARY KEY (item_id)")
        self._run("ALTER TABLE {new}.users ADD PRIMARY KEY (user_id)")
        self._run("ALTER TABLE {new}.seen ADD PRIMARY KEY (user_id, item_id)")

    def _copy(self, table: str, pieces: Iterator[bytes], n: int) -> None:
        statement = self._sql.SQL("COPY {}.{} FROM STDIN (FORMAT binary)")
        statement = statement.format(self._sql.Identifier(self._at), self._sql.Identifier(table))
        with self._cursor.copy(statement) as copy:
            copy.write(HEAD)
            for piece in pieces:
                copy.write(piece)
            copy.write(TAIL)
        self.rows[table] = n

    def _pairs(self) -> Iterator[bytes]:
        v = self._vectors
        for part in parts(v.n_users):
            seen = v.seen_by(part)
            users = np.repeat(np.arange(part.start, part.stop), np.diff(seen.indptr))
            for start in range(0, len(users), PAIRS):
                piece = slice(start, start + PAIRS)
                yield _fields([_ids(v.user_ids, users[piece]), _ids(v.item_ids, seen.indices[piece])])

    def make_index(self, m: int, ef_construction: int) -> None:
        """The graph of the items."""
        self._run("CREATE INDEX ON {new}.items USING hnsw (vector {ops}) WITH (m = {m}, ef_construction = {ef})",
                  ops=f"{TYPES[self._dtype]}_ip_ops", m=str(m), ef=str(ef_construction))  # fmt: skip

    def first_user(self) -> str:
        """The first user as a literal."""
        ids = self._vectors.user_ids
        return str(self._sql.Literal(0 if ids is None else ids[0]).as_string(self._cursor))

    def quoted_schema(self) -> str:
        """The name of the schema as a statement has it: in quotes where PostgreSQL would read it otherwise."""
        return str(self._cursor.execute("SELECT quote_ident(%s)", [self._schema]).fetchone()[0])

    def make_manifest(self, manifest: dict[str, Any]) -> None:
        """A row with what the export is of."""
        self._run("INSERT INTO {new}.manifest VALUES (%s::jsonb)", json.dumps(manifest))

    def move(self) -> None:
        """Put the tables in the place of those of an earlier export. What else is in the schema stays."""
        self._run("CREATE SCHEMA IF NOT EXISTS {old}")
        self._run("SET LOCAL lock_timeout = {wait}", wait=str(int(PATIENCE * 1000)))
        for table in TABLES:
            name = self._sql.Identifier(table)
            if self._has_old:  # refused by the server where something of a user's depends on it, such as a view
                self._run("DROP TABLE IF EXISTS {old}.{table}", table=name)
            self._run("ALTER TABLE {new}.{table} SET SCHEMA {old}", table=name)
        self._run("DROP SCHEMA {new}")

    def make_function(self, index: str, version: str) -> None:
        """``recommend(who, k)``."""
        for user in ("bigint", "text"):  # an earlier export may have had ids of the other kind
            self._run("DROP FUNCTION IF EXISTS {old}.recommend({user}, integer)", user=user)
        query = "u.vector" if self._dtype == "float32" else f"u.vector::{TYPES[self._dtype]}({self._vectors.factors})"
        user, item = (kind.split()[0] for kind in self._types.values())
        # A graph gives candidates, of which the seen ones are left out: the search goes on until k are left, or in
        # older versions begins with as many as it can.
        settings = {"none": "", "hnsw": "SET hnsw.ef_search = 1000"}[index]
        if index == "hnsw" and _numbers(version) >= ITERATIVE:
            settings = "SET hnsw.ef_search = 128 SET hnsw.iterative_scan = 'strict_order'"
        # Equal scores go by id; a graph has no second column to order by, and orders those that it found only.
        tie = ", i.item_id" if index == "none" else ""
        self._run(_FUNCTION, user=user, item=item, query=query, settings=settings, tie=tie)


_FUNCTION = """\
CREATE FUNCTION {old}.recommend(who {user}, k integer DEFAULT 10) RETURNS TABLE (item_id {item}, score real)
LANGUAGE plpgsql STABLE {settings} AS $$
#variable_conflict use_column
DECLARE
  asked {old}.items.vector%TYPE := (SELECT {query} FROM {old}.users u WHERE u.user_id = who AND u.known);
  denied {item}[] := ARRAY(SELECT s.item_id FROM {old}.seen s WHERE s.user_id = who);
BEGIN
  IF asked IS NULL THEN  -- nobody that the model knows: what is popular
    RETURN QUERY SELECT i.item_id, i.popularity::real FROM {old}.items i WHERE i.item_id <> ALL (denied)
      ORDER BY i.popularity DESC, i.item_id LIMIT k;
  ELSE
    RETURN QUERY SELECT f.item_id, (-f.distance)::real FROM (
      SELECT i.item_id, i.vector <#> asked AS distance FROM {old}.items i WHERE i.item_id <> ALL (denied)
        ORDER BY i.vector <#> asked{tie} LIMIT k
    ) f ORDER BY f.distance, f.item_id;
  END IF;
END $$"""


def _type_of(ids: Ids | None) -> str:
    """Of a column of ids. Texts go by code point, as everywhere in a model, whatever the database is set to."""
    if ids is not None and ids.kind == "string":
        return 'text COLLATE "C"'
    if ids is not None and ids.ids.dtype == np.uint64:
        raise DataError(f"{ids.side} ids must be integers below 2**63 for PostgreSQL, got {ids[-1]}")
    return "bigint"


# What COPY ... FORMAT binary reads: for each row the number of its fields, for each of these its bytes before it, all
# numbers from their high byte on.


def _ids(ids: Ids | None, rows: NDArray[np.integer]) -> NDArray[Any] | list[bytes]:
    """A field of ids: numbers, or texts as bytes."""
    if ids is None:
        return rows.astype(">i8")
    values = ids.take(rows)
    return values.astype(">i8") if ids.kind == "integer" else [text.encode() for text in values]


def _rows(ids: Ids | None, vectors: NDArray[Any], last: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[bytes]:
    """Rows of an id, a vector and one more number. A vector is its length, a zero, and its numbers."""
    size = vectors.shape[1]
    big = dtype.newbyteorder(">")
    kind = np.dtype([("size", ">i2"), ("unused", ">i2"), ("numbers", big, (size,))])
    for part in parts(len(vectors)):
        numbers = vectors[part].astype(dtype)
        if not np.isfinite(numbers).all():
            raise DataError(f"vectors must be finite in {dtype}, got {np.abs(vectors[part]).max():g}")
        field = np.zeros(len(numbers), kind)
        field["size"], field["numbers"] = size, numbers
        yield _fields([_ids(ids, np.arange(part.start, part.stop)), field, last[part]])


def _fields(fields: list[Any]) -> bytes:
    """Rows of these fields, one after the other."""
    if all(isinstance(field, np.ndarray) for field in fields):
        kind = [("n", ">i2")]
        for name, field in zip("abc", fields, strict=False):
            kind += [(f"{name}_size", ">i4"), (name, field.dtype)]
        rows = np.zeros(len(fields[0]), kind)
        rows["n"] = len(fields)
        for name, field in zip("abc", fields, strict=False):
            rows[f"{name}_size"], rows[name] = field.dtype.itemsize, field
        return rows.tobytes()
    encoded = [field if isinstance(field, list) else [value.tobytes() for value in field] for field in fields]
    count = len(fields).to_bytes(2, "big")
    pieces = []
    for row in zip(*encoded, strict=True):
        pieces.append(count)
        for value in row:
            pieces += (len(value).to_bytes(4, "big"), value)
    return b"".join(pieces)
