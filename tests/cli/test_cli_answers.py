"""Answers of the command line: whom nobody knows, lists of ids as people save them, titles, and tables in files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from commands import QUICK
from scipy.sparse import csr_matrix

from wals_gpu.cli import recommend
from wals_gpu.model.wals import WALS
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.retrieval import DPP

pytest_plugins = ["cli_fixtures"]


@pytest.fixture(scope="module")
def matrix_model(tmp_path_factory):
    """A model of a matrix whose users 2 and 5 have nothing; item 0 is the most popular one."""
    rng = np.random.default_rng(3)
    matrix = (rng.random((7, 6)) < 0.5).astype(np.float32)
    matrix[:, 0] = 1
    matrix[[2, 5]] = 0
    path = tmp_path_factory.mktemp("matrix") / "m"
    WALS(3, "hu", iterations=3).fit(csr_matrix(matrix)).save(path)
    return path


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Titles of all songs but one, as CSV."""
    path = tmp_path_factory.mktemp("titles") / "songs.csv"
    lines = [f's{n:02},"Song, number {n}",{1990 + n}' for n in range(12) if n != 4]
    path.write_text("item_id,title,year\n" + "\n".join(lines) + "\n")
    return path


def title_of(item):
    return "" if item == "s04" else f"Song, number {int(item[1:])}"


# -------------------------------------------------------------------------------------------------- whom nobody knows


def test_unknown_ids_of_a_file_get_what_is_popular_and_are_counted(run, model, tmp_path):
    (tmp_path / "users.txt").write_text("p03\nzoe\np01\n")
    expected = WALS.load(model).recommend(["p03", "zoe", "p01"], 3, unknown="popular")
    status, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt", "-k", 3, "--json")
    lists = json.loads(text)
    assert status == 0
    assert [one["user"] for one in lists] == ["p03", "zoe", "p01"]
    assert [one["source"] for one in lists] == ["model", "popularity", "model"]
    assert [[pair["item"] for pair in one["items"]] for one in lists] == expected.ids.tolist()
    assert said == (
        "wals-gpu: 1 of 3 users is unknown to the model, 'zoe': the most popular items are recommended instead "
        "(--unknown skip leaves them out)\n"
    )
    text = run("recommend", model, "--users-file", tmp_path / "users.txt", "-k", 1)[1]
    assert text.splitlines()[0].split() == ["user", "rank", "item", "score", "from"]
    assert [line.split()[-1] for line in text.splitlines()[2:]] == ["model", "popularity", "model"]


def test_unknown_ids_can_be_left_out_or_be_an_error(run, model, tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("zoe\np03\nyan\nxia\np01\nwim\n")
    status, text, said = run("recommend", model, "--users-file", users, "--unknown", "skip", "-k", 1)
    assert status == 0
    assert text.splitlines()[0].split() == ["user", "rank", "item", "score"]
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["p03", "p01"]
    assert said == ("wals-gpu: 4 of 6 users are unknown to the model, such as 'zoe', 'yan', 'xia', and left out\n")
    out = tmp_path / "top.csv"
    assert run("recommend", model, "--users-file", users, "--unknown", "error", "--out", out)[0] == 2
    assert run("recommend", model, "--users-file", users, "--unknown", "skip", "--out", out)[0] == 0
    assert set(pyarrow.csv.read_csv(out)["user_id"].to_pylist()) == {"p03", "p01"}
    assert run("recommend", model, "--users-file", users, "--unknown", "popular", "--out", out)[0] == 0
    table = pyarrow.csv.read_csv(out).to_pydict()
    assert dict(zip(table["user_id"], table["source"], strict=True)) == {
        "zoe": "popularity", "p03": "model", "yan": "popularity", "xia": "popularity", "p01": "model",
        "wim": "popularity",
    }  # fmt: skip


def test_a_typed_id_must_be_known_unless_something_else_is_said(run, model):
    assert run("recommend", model, "p03", "zoe")[2] == "wals-gpu: error: unknown user id: 'zoe'\n"
    assert run("recommend", model, "p03", "zoe", "--unknown", "error")[0] == 2
    for unknown, users in (("popular", ["p03", "zoe"]), ("skip", ["p03"])):
        status, text, said = run("recommend", model, "p03", "zoe", "--unknown", unknown, "--json")
        assert status == 0 and [one["user"] for one in json.loads(text)] == users
        assert said.startswith("wals-gpu: 1 of 2 users is unknown to the model, 'zoe'")


def test_a_file_of_which_nothing_is_known_is_the_wrong_file(run, model, tmp_path):
    (tmp_path / "users.txt").write_text("a\nb\nc\nd\n")
    status, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt")
    assert (status, text) == (2, "")
    assert "the model knows none of 4 ids, such as 'a', 'b', 'c'" in said and said.count("\n") == 1
    assert run("recommend", model, "--users-file", tmp_path / "users.txt", "--unknown", "popular")[0] == 0
    assert run("recommend", model, "--users-file", tmp_path / "users.txt", "--unknown", "skip")[0] == 0


def test_lists_of_each_user_hold_for_unknown_ones(run, model, tmp_path):
    popular = WALS.load(model).recommend(["zoe"], 2, unknown="popular").ids[0]
    (tmp_path / "deny.csv").write_text(f"user_id,item_id\nzoe,{popular[0]}\nyan,{popular[1]}\n")
    words = ["recommend", model, "p03", "zoe", "-k", 1, "--unknown", "popular", "--json"]
    status, text, said = run(*words, "--deny", tmp_path / "deny.csv")
    assert status == 0 and json.loads(text)[1]["items"][0]["item"] == popular[1]
    assert "--deny: 1 of 2 users are unknown" in said  # yan, whom nobody asked about
    status, text, _ = run(*words, "--allow", tmp_path / "deny.csv")
    assert [[pair["item"] for pair in one["items"]] for one in json.loads(text)] == [[], [popular[0]]]


@pytest.mark.parametrize("kind", ["texts", "integers"])
def test_lists_of_each_user_in_which_ids_look_otherwise(run, tmp_path, kind):
    """A file of a few rows whose ids all are integers, though not all of the model's; and the other way round."""
    last = "x" if kind == "texts" else "9"
    (tmp_path / "plays.csv").write_text(
        "user,item\n" + "".join(f"{u},{i}\n" for u in ["1", "2", "3", last] for i in ["1", "2", "3", "4", last])
    )
    assert run("fit", tmp_path / "plays.csv", "--out", tmp_path / "m", "--factors", 2)[0] == 0
    more = "" if kind == "texts" else "x,1\n2,y\n"
    (tmp_path / "deny.csv").write_text(f"user,item\n1,2\n1,3\n2,3\n{more}")
    words = ["recommend", tmp_path / "m", "1", "2", "-k", 9, "--include-seen", "--json"]
    status, text, _ = run(*words, "--deny", tmp_path / "deny.csv")
    items = [{str(pair["item"]) for pair in one["items"]} for one in json.loads(text)]
    assert status == 0 and items == [{"1", "4", last}, {"1", "2", "4", last}]


@pytest.mark.parametrize("policy", ["popular", "mean"])
def test_known_users_without_interactions_are_counted(run, matrix_model, tmp_path, policy, monkeypatch):
    monkeypatch.setattr(recommend, "USERS_PER_CHUNK", 3)
    expected = WALS.load(matrix_model).recommend(np.arange(7), 6, cold_users=policy)
    out = tmp_path / "top.parquet"
    status, _, said = run("recommend", matrix_model, "--all", "--out", out, "-k", 6, "--cold-users", policy)
    what = {"popular": "the most popular items", "mean": "the items of the mean user"}[policy]
    assert status == 0
    instead = f"{what} are recommended instead (--cold-users)\n"
    assert said == f"wals-gpu: 2 of 7 users have no interactions to go by, 2, 5: {instead}"
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert dict(zip(table["user_id"], table["source"], strict=True)) == dict(enumerate(expected.source))
    assert table["item_id"] == [item for row in expected.ids.tolist() for item in row if item >= 0]
    said = run("recommend", matrix_model, 2, "--cold-users", policy)[2]
    assert said == f"wals-gpu: 1 of 1 users has no interactions to go by, 2: {instead}"


def test_known_users_without_interactions_can_be_an_error(run, matrix_model, tmp_path):
    words = ["recommend", matrix_model, "--all", "--out", tmp_path / "top.csv", "--cold-users", "error"]
    status, text, said = run(*words)
    assert (status, text) == (2, "") and said.startswith("wals-gpu: error: ") and said.count("\n") == 1
    assert "2 of 7 users" in said and "--cold-users 'popular'" in said
    assert os.listdir(tmp_path) == []
    assert run("recommend", matrix_model, 0, "--cold-users", "error")[0] == 0


def test_row_numbers_beyond_the_matrix_are_unknown_users(run, matrix_model, tmp_path):
    (tmp_path / "users.txt").write_text("0\n99\n-1\n")
    lists = json.loads(run("recommend", matrix_model, "--users-file", tmp_path / "users.txt", "--json")[1])
    assert [(one["user"], one["source"]) for one in lists] == [(0, "model"), (99, "popularity"), (-1, "popularity")]
    assert run("recommend", matrix_model, "99")[0] == 2


# ------------------------------------------------------------------------------------------ lists, as people save them

AS_SAVED = {
    "utf-8": b"p03\np01\n",
    "no last line end": b"p03\np01",
    "Windows": b"p03\r\np01\r\n",
    "old Mac": b"p03\rp01\r",
    "byte order mark": "\ufeffp03\r\np01\r\n".encode(),
    "utf-16": "p03\r\np01\r\n".encode("utf-16"),
    "utf-16 big endian": "\ufeffp03\np01\n".encode("utf-16-be"),
    "utf-32": "p03\np01\n".encode("utf-32"),
    "blanks": b"\n  p03 \n\t\np01\t\n\n \n",
}


@pytest.mark.parametrize("content", AS_SAVED.values(), ids=AS_SAVED)
def test_users_files_are_read_however_they_were_saved(run, model, tmp_path, monkeypatch, content):
    (tmp_path / "users.txt").write_bytes(content)
    expected = run("recommend", model, "p03", "p01", "-k", 2)
    assert run("recommend", model, "--users-file", tmp_path / "users.txt", "-k", 2) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))
    assert run("recommend", model, "--users-file", "-", "-k", 2) == expected


def test_quotes_of_csv_are_no_part_of_ids(run, model, tmp_path):
    (tmp_path / "users.txt").write_text('"user_id"\n"p03"\n"p01"\n')
    (tmp_path / "plain.txt").write_text("user_id\np03\np01\n")
    said = [run("recommend", model, "--users-file", tmp_path / name, "-k", 2)[1] for name in ("users.txt", "plain.txt")]
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("content", AS_SAVED.values(), ids=AS_SAVED)
@pytest.mark.parametrize("option", ["--deny-items", "--allow-items"])
def test_item_lists_are_read_however_they_were_saved(run, model, tmp_path, content, option):
    text = content.replace(b"p", b"s")
    (tmp_path / "items.txt").write_bytes(text)
    (tmp_path / "plain.txt").write_text("s03\ns01\n")
    words = ["p00", "-k", 12, "--include-seen", "--json"]
    status, text, said = run("recommend", model, *words, option, tmp_path / "items.txt")
    assert (status, said) == (0, "")
    assert text == run("recommend", model, *words, option, tmp_path / "plain.txt")[1]
    items = {pair["item"] for pair in json.loads(text)[0]["items"]}
    assert items == {"s03", "s01"} if option == "--allow-items" else not items & {"s03", "s01"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"p03\ncaf\xe9\n", "users.txt is not UTF-8 text (line 2); save it as UTF-8"),
        (b"p03\0\n", "--users-file must be a text file with an id per line"),
        (b"", "holds no user ids"),
        (b"\xef\xbb\xbf\r\n", "holds no user ids"),
    ],
)
def test_what_is_no_list_is_refused(run, model, tmp_path, content, message):
    (tmp_path / "users.txt").write_bytes(content)
    status, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt")
    assert (status, text) == (2, "") and message in said and said.count("\n") == 1


def test_a_parquet_file_is_no_list(run, model, plays):
    assert "is a Parquet file" in run("recommend", model, "--users-file", plays)[2]


def test_a_packed_file_is_no_list(run, model, tmp_path):
    (tmp_path / "items.gz").write_bytes(gzip.compress(b"ra\nrb\n"))
    status, _, said = run(
        "recommend", model, "--all", "--out", tmp_path / "o.csv", "--allow-items", tmp_path / "items.gz"
    )
    assert status == 2 and "--allow-items must be a text file" in said and "items.gz is packed by gzip" in said


def test_ids_there_twice_are_answered_once(run, model, tmp_path):
    (tmp_path / "users.txt").write_text("p03\np01\np03 \n")
    _, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt", "--json")
    assert [one["user"] for one in json.loads(text)] == ["p03", "p01"]
    assert said == "wals-gpu: --users-file: 1 of 3 ids are there a second time and left out\n"


def test_a_heading_is_no_user(run, model, tmp_path):
    (tmp_path / "users.txt").write_text("User ID\np03\n")
    _, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt", "--json")
    assert [one["user"] for one in json.loads(text)] == ["p03"]
    assert said == "wals-gpu: --users-file: the first line, 'User ID', is a heading and left out\n"


def test_ids_with_blanks_at_their_ends_are_found(run, tmp_path):
    table = pa.table({"user": ["ann ", "ann ", "bob", "bob"], "item": ["x", "y", "y", "z"]})
    pyarrow.parquet.write_table(table, tmp_path / "plays.parquet")
    assert run("fit", tmp_path / "plays.parquet", "--out", tmp_path / "m", "--factors", 2, "--quiet")[0] == 0
    (tmp_path / "users.txt").write_text("ann \nbob \n")
    said = json.loads(run("recommend", tmp_path / "m", "--users-file", tmp_path / "users.txt", "--json")[1])
    assert [(one["user"], one["source"]) for one in said] == [("ann ", "model"), ("bob", "model")]


def test_lines_that_can_be_no_ids_do_not_end_a_batch(run, tmp_path):
    pyarrow.parquet.write_table(pa.table({"user": [1, 1, 2], "item": [5, 6, 6]}), tmp_path / "plays.parquet")
    model = tmp_path / "m"
    assert run("fit", tmp_path / "plays.parquet", "--out", model, "--factors", 2, "--quiet")[0] == 0
    (tmp_path / "users.txt").write_text("user_id\n1\nzoe\n+2\n1_0\n99999999999999999999\n 3\n")
    status, text, said = run("recommend", model, "--users-file", tmp_path / "users.txt", "--json")
    assert status == 0
    assert [(one["user"], one["source"]) for one in json.loads(text)] == [
        (1, "model"), (2, "model"), (3, "popularity")
    ]  # fmt: skip
    assert "'user_id', is a heading" in said
    assert "this model's user ids are integers; 3 of 6 lines, such as 'zoe', are not, and left out" in said
    (tmp_path / "words.txt").write_text("ann\nzoe\n")
    assert (
        "this model's user ids are integers: got 'ann'"
        in run("recommend", model, "--users-file", tmp_path / "words.txt")[2]
    )


# ----------------------------------------------------------------------------------------------------- titles, tables


def test_titles_stand_beside_ids(run, model, songs):
    _, text, said = run("recommend", model, "p03", "-k", 12, "--include-seen", "--titles", songs)
    header, line, *rows = text.splitlines()
    assert said == "" and header.split() == ["user", "rank", "item", "title", "score"]
    at = header.index("title")
    shown = {row.split()[2]: row[at : line.index(" ", at)].strip() for row in rows}
    assert len(shown) == 12 and shown == {item: title_of(item) for item in shown}
    lists = json.loads(run("recommend", model, "p03", "-k", 3, "--titles", songs, "--json")[1])
    assert [pair["title"] for pair in lists[0]["items"]] == [title_of(pair["item"]) for pair in lists[0]["items"]]
    lists = json.loads(run("similar", model, "s00", "s05", "--titles", songs, "--json")[1])
    assert all(pair["title"] == title_of(pair["item"]) for one in lists for pair in one["similar"])
    header = run("similar", model, "s00", "--titles", songs)[1].splitlines()[0]
    assert header.split() == ["item", "rank", "similar", "title", "cosine"]
    assert "title" not in json.loads(run("similar", model, "s00", "--json")[1])[0]["similar"][0]


def test_the_columns_of_titles_can_be_named(run, model, tmp_path):
    table = pa.table({"sku": [f"s{n:02}" for n in range(12)], "was": [f"old {n}" for n in range(12)]})
    pyarrow.parquet.write_table(table, tmp_path / "songs.parquet")
    titles = ["--titles", tmp_path / "songs.parquet"]
    said = run("similar", model, "s00", *titles)[2]
    assert said.startswith("wals-gpu: error: --title-column must be given") and said.count("\n") == 1
    said = run("similar", model, "s00", *titles, "--title-column", "name")[2]
    assert "--title-column 'name' is not there; " in said
    said = run("similar", model, "s00", *titles, "--title-column", "was", "--item-column", "item")[2]
    assert "--item-column 'item' is not there" in said
    (tmp_path / "odd.csv").write_text("zzz,title\ns00,one\n")
    assert run("similar", model, "s00", "--titles", tmp_path / "odd.csv")[2].endswith("--item-column names it\n")
    named = [*titles, "--title-column", "was", "--item-column", "sku"]
    lists = json.loads(run("similar", model, "s00", *named, "--json", "-k", 2)[1])
    assert all(pair["title"] == f"old {int(pair['item'][1:])}" for pair in lists[0]["similar"])
    # The column of items of another file, which has another name there
    (tmp_path / "deny.csv").write_text("who,sku\np03,s00\n")
    (tmp_path / "titles.csv").write_text("item_id,title\ns01,one\n")
    words = ["--deny", tmp_path / "deny.csv", "--user-column", "who", "--item-column", "sku"]
    assert run("recommend", model, "p03", *words, "--titles", tmp_path / "titles.csv")[0] == 0


def test_titles_of_integer_ids(run, matrix_model, tmp_path):
    (tmp_path / "t.csv").write_text("id,name\n0,zero\n1,one\n2,two\n3,three\n4,four\n5,five\n")
    names = ["zero", "one", "two", "three", "four", "five"]
    lists = json.loads(run("similar", matrix_model, 0, "--titles", tmp_path / "t.csv", "--json")[1])
    assert [pair["title"] for pair in lists[0]["similar"]] == [names[pair["item"]] for pair in lists[0]["similar"]]


def read_table(path):
    kind = path.suffix
    if kind == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if kind == ".feather":
        return pyarrow.feather.read_table(path).to_pylist()
    if kind == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if kind == ".tsv" else ",")
        kinds = {"rank": int, "score": float}
        return [{key: kinds.get(key, lambda text: text or None)(value) for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl", "feather"])
def test_tables_of_every_kind_say_the_same(run, model, songs, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(recommend, "USERS_PER_CHUNK", 5)
    loaded = WALS.load(model)
    users = list(loaded.user_ids.ids)
    out = tmp_path / f"top.{kind}"
    status, text, _ = run("recommend", model, "--all", "--out", out, "-k", 3, "--titles", songs)
    expected = [
        {"user_id": user, "rank": rank, "item_id": item, "title": title_of(item) or None, "score": score,
         "source": "model"}
        for user, row in zip(users, zip(*loaded.recommend(users, 3), strict=True), strict=True)
        for rank, (item, score) in enumerate(zip(*row, strict=True), 1)
        if item is not None
    ]  # fmt: skip
    assert status == 0 and text == f"wrote {len(expected):,} rows for 24 users to {out}\n"
    found = read_table(out)
    assert list(found[0]) == ["user_id", "rank", "item_id", "title", "score", "source"]
    for row in expected:
        row["score"] = pytest.approx(float(row["score"]), rel=1e-5, abs=1e-6)
    assert found == expected
    assert os.listdir(tmp_path) == [out.name]


def test_similar_items_go_to_files(run, model, songs, tmp_path):
    ids, scores = WALS.load(model).similar_items(["s00", "s05"], 4)
    out = tmp_path / "similar.CSV"
    out.write_text("earlier")
    status, text, _ = run("similar", model, "s00", "s05", "-k", 3, "--titles", songs, "--out", out)
    assert (status, text) == (0, f"wrote 6 rows for 2 items to {out}\n")
    table = pyarrow.csv.read_csv(out)
    assert table.column_names == ["item_id", "rank", "similar_id", "title", "score"]
    assert table["item_id"].to_pylist() == ["s00"] * 3 + ["s05"] * 3
    assert table["similar_id"].to_pylist() == [*ids[0, 1:], *ids[1, 1:]]
    assert np.allclose(table["score"].to_numpy(), [*scores[0, 1:], *scores[1, 1:]], atol=1e-6)
    said = json.loads(run("similar", model, "s00", "--out", out, "--json")[1])
    assert said == {"out": str(out), "items": 1, "rows": 10}


def test_items_for_a_text_have_titles_and_go_to_files(run, songs, tmp_path, monkeypatch):
    vectors = np.eye(4, dtype=np.float32)
    matrix = csr_matrix(np.kron(np.eye(2), np.ones((3, 2))).astype(np.float32))
    model = WALS(2, "hu", iterations=2, item_prior=LinearPrior(vectors)).fit(matrix)
    model.save(tmp_path / "m")
    # Stands for an encoder, which tests of texts have
    monkeypatch.setattr(WALS, "project_items", lambda self, texts: self.item_factors[[len(texts[0])]])
    ids, scores = model.search(model.item_factors[2], 2, metric="cosine")
    (tmp_path / "t.csv").write_text("id,title\n0,zero\n1,one\n2,two\n")
    words = ["recommend", tmp_path / "m", "--text", "ab", "-k", 2, "--titles", tmp_path / "t.csv"]
    names = {0: "zero", 1: "one", 2: "two", 3: ""}
    status, text, _ = run(*words)
    assert status == 0 and text.splitlines()[0].split() == ["rank", "item", "title", "cosine"]
    said = json.loads(run(*words, "--json")[1])
    assert [pair["item"] for pair in said["items"]] == ids.tolist()
    assert [pair["title"] for pair in said["items"]] == [names[item] for item in ids.tolist()]
    out = tmp_path / "like.parquet"
    status, text, _ = run(*words, "--out", out)
    assert (status, text) == (0, f"wrote 2 rows to {out}\n")
    table = pyarrow.parquet.read_table(out)
    assert table.column_names == ["rank", "item_id", "title", "score"]
    assert table["item_id"].to_pylist() == ids.tolist()
    assert np.allclose(table["score"].to_numpy(), scores)
    assert json.loads(run(*words, "--out", out, "--json")[1]) == {"text": "ab", "out": str(out), "rows": 2}
    assert "--unknown cannot be used with --text" in run(*words, "--unknown", "skip")[2]


# -------------------------------------------------------------------------------------------------- re-ranked lists


def test_lists_are_reranked(run, model, tmp_path):
    """As the library does it, with the categories of the table of titles, or of another one."""
    genres = [f"s{n:02},song {n},{'abc'[n % 3]}" for n in range(12)]
    (tmp_path / "songs.csv").write_text("item_id,title,genre\n" + "\n".join(genres) + "\n")
    labels = {f"s{n:02}": "abc"[n % 3] for n in range(12)}
    loaded = WALS.load(model)
    given = ["recommend", model, "p03", "p01", "-k", 4, "--include-seen", "--json"]
    reranked = ["--diversity", 0.4, "--popularity-penalty", 0.2]
    options = {"filter_seen": False, "diversity": 0.4, "popularity_penalty": 0.2, "categories": labels}
    for words, quotas, file in (
        (["--quota", 2], 2, "titles"),
        (["--quota", "a=1:2", "--quota", "b=0"], {"a": (1, 2), "b": 0}, "categories"),
    ):
        text = run(*given, *reranked, *words, f"--{file}", tmp_path / "songs.csv")[1]
        expected = loaded.recommend(["p03", "p01"], 4, quotas=quotas, **options)
        lists = [[item["item"] for item in one["items"]] for one in json.loads(text)]
        assert lists == expected.ids.tolist()
    text = run(*given, "--diversity", 0.4, "--diversity-method", "dpp", "--pool", 9)[1]
    expected = loaded.recommend(["p03", "p01"], 4, filter_seen=False, diversity=DPP(0.4, pool=9))
    assert [[item["item"] for item in one["items"]] for one in json.loads(text)] == expected.ids.tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--diversity", "2"], "--diversity must be a number from 0 to 1, got 2"),
        (["--pool", "9"], "--pool needs --diversity W"),
        (["--quota", "2"], "--quota needs --categories FILE, or --titles FILE"),
        (["--quota", "a=b"], "--quota must look like 2, Action=2 or Action=1:3, got 'a=b'"),
        (["--quota", "a=2:1"], "--quota must want at most as many as it allows, got 'a=2:1'"),
        (["--quota", "2", "--quota", "a=1"], "--quota N, which is for every category, cannot stand beside another"),
        (["--quota", "a=1", "--quota", "a=2"], "--quota has 'a' twice"),
        (["--category-column", "x"], "--category-column needs --quota N"),
        (["--popularity-penalty", "-1"], "--popularity-penalty must be a finite number >= 0, got -1"),
        (["--quota", "7000=1", "--titles", "SONGS", "--category-column", "year"], "--quota must name categories of"),
        (["--quota", "1995=9:9", "--titles", "SONGS", "--category-column", "year", "-k", "5"], "--quota must fit into"),
        (["--quota", "1", "--titles", "SONGS"], "--category-column must be given, since no column has a usual name"),
    ],
)
def test_wrong_options_of_reranking_are_refused_by_name(run, model, songs, words, message):
    words = [songs if word == "SONGS" else word for word in words]
    status, text, said = run("recommend", model, "p03", *words)
    assert (status, text) == (2, "") and message in said


# ------------------------------------------------------------------------------------------------- what is not there


@pytest.mark.parametrize("content", ["", "user_id,item_id\n"])
def test_tables_of_pairs_may_be_empty(run, model, tmp_path, content):
    """A night in which nothing was returned is no error."""
    (tmp_path / "pairs.csv").write_text(content)
    plain = run("recommend", model, "p03", "p04", "--json")
    status, text, said = run("recommend", model, "p03", "p04", "--json", "--deny", tmp_path / "pairs.csv")
    assert (status, text) == plain[:2] and "--deny: " in said and "has no rows, so nothing is denied" in said
    status, text, said = run("recommend", model, "p03", "--json", "--allow", tmp_path / "pairs.csv")
    assert status == 0 and json.loads(text)[0]["items"] == [] and "so nothing is allowed" in said
    assert run("fit", tmp_path / "pairs.csv", "--out", tmp_path / "m", *QUICK)[0] == 2


def test_an_empty_name_is_named(run, tmp_path):
    """As of a variable of a script that has no value."""
    said = run("fit", "", "--out", tmp_path / "m", *QUICK)[2]
    assert said == "wals-gpu: error: INTERACTIONS: No such file or directory: ''\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_standard_output_cannot_show_is_escaped(tmp_path, encoding):
    """The model was saved, and the exit status 2: its name could not be printed."""
    (tmp_path / "plays.csv").write_text("user_id,item_id\nŁ,p\nŁ,é\nbob,p\n", "utf-8")
    out = os.fsencode(tmp_path) + b"/m\xff"
    code = (
        "import sys; from wals_gpu.cli import main; data, out, user, *quick = sys.argv[1:];"
        "words = ['recommend', out, user, '--include-seen'];"
        "sys.exit(main(['fit', data, '--out', out, *quick]) or main(words) or main([*words, '--json']))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, tmp_path / "plays.csv", out, "Ł".encode(), *QUICK]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    said, bracket, lists = done.stdout.decode(encoding).partition("[\n")
    found = json.loads(bracket + lists)
    assert found[0]["user"] == "Ł" and {one["item"] for one in found[0]["items"]} == {"p", "é"}
    assert "m\\udcff" in said and ("Ł" if encoding == "utf-8" else "\\u0141") in said


def test_what_is_read_is_not_replaced_by_what_is_written(run, model, plays, tmp_path):
    """Also where one of them is a link; a link to another file stays one."""
    table, link = tmp_path / "songs.csv", tmp_path / "link.csv"
    table.write_text("item_id,title\ns00,Zero\n")
    link.symlink_to(table)
    before = table.read_bytes()
    for words, message in (
        (
            ["recommend", model, "--all", "--titles", table, "--out", table],
            f"--out: {table} is the file of --titles, too",
        ),
        (
            ["recommend", model, "--all", "--titles", table, "--out", link],
            f"--out: {link} is the file of --titles, too",
        ),
        (
            ["similar", model, "s00", "--titles", link, "--out", table],
            "is the file of --titles, too; give it another name",
        ),
        (["tune", table, "--out", table], "is the file of INTERACTIONS, too"),
        (
            ["tune", plays, "--out", tmp_path / "a.csv", "--trials-table", tmp_path / "a.csv"],
            "the file of --trials-table, too",
        ),
    ):
        status, _, said = run(*words)
        assert status == 2 and message in said
    assert table.read_bytes() == before
    assert run("recommend", model, "--all", "--out", link)[0] == 0
    assert link.is_symlink() and table.read_text().startswith('"user_id"')
