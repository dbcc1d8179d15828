"""Data sets: the embedded one, the tool that made it, MovieLens files, and the generator."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.sparse.linalg import svds

from wals_gpu.datasets.debian import load_debian_packages
from wals_gpu.datasets.movielens import load_movielens
from wals_gpu.datasets.synthetic import SHAPES, synthetic
from wals_gpu.errors import DataError

FILES = ("debian_packages_interactions.parquet", "debian_packages_items.parquet", "debian_packages.md")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "build_debian_packages.py"


# --- the embedded set -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def debian():
    return load_debian_packages()


def test_debian_interactions(debian):
    matrix = debian.interactions.matrix
    assert matrix.shape == (31_176, 7_366)
    assert matrix.nnz == 222_096
    assert matrix.dtype == np.float32
    assert matrix.has_canonical_format
    assert set(np.unique(matrix.data)) == {1, 2, 3}
    assert np.diff(matrix.indptr).min() >= 3
    assert np.bincount(matrix.indices, minlength=matrix.shape[1]).min() >= 5


def test_debian_known_relations(debian):
    users, items = debian.interactions.user_ids, debian.interactions.item_ids

    def value(user, item):
        return debian.interactions.matrix[users.index_of(user), items.index_of(item)]

    assert value("python3", "libpython3-stdlib") == 3
    assert value("git", "perl") == 3
    assert value("git", "patch") == 2
    assert value("git", "openssh-client") == 2  # the second alternative, after a virtual package
    assert value("git", "git-doc") == 1
    assert value("git", "bash") == 0
    with pytest.raises(KeyError):
        items.index_of("mail-transport-agent")  # virtual, provided by several


def test_debian_items_begin_with_the_columns(debian):
    names = debian.items["item_id"].to_pylist()
    n_items = debian.interactions.matrix.shape[1]
    assert names[:n_items] == debian.interactions.item_ids.take(np.arange(n_items)).tolist()
    assert len(names) == len(set(names)) == 43_482
    assert (debian.interactions.item_ids.find(names[n_items:]) == -1).all()


def test_debian_texts_are_fit_to_embed(debian):
    names = debian.items["item_id"].to_pylist()
    summaries = debian.items["summary"].to_pylist()
    texts = debian.items["text"].to_pylist()
    assert all(
        text.startswith(f"{name}: {summary}.") for name, summary, text in zip(names, summaries, texts, strict=True)
    )
    assert all(summaries)
    assert max(map(len, texts)) < 512 + 200
    assert np.median([len(text) for text in texts]) > 150
    assert not any(re.search(r"\s\s|\n|^\s|\s$", text) for text in texts)
    assert not any(re.search(r"[\w.]+@[\w-]+\.\w", text) for text in texts)
    text = dict(zip(names, texts, strict=True))["libpng16-16"]
    assert "PNG library" in text and "libpng" in text


def test_debian_is_small_and_says_where_it_comes_from(debian):
    folder = resources.files("wals_gpu.datasets")
    assert sum(len((folder / name).read_bytes()) for name in FILES if name.endswith(".parquet")) < 3_000_000
    for words in ("bookworm", "tools/build_debian_packages.py", "NOT under the licence"):
        assert words in debian.provenance
    assert len(re.findall(r"\b[0-9a-f]{64}\b", debian.provenance)) == 2
    for count in (*debian.interactions.matrix.shape, debian.interactions.matrix.nnz, len(debian.items)):
        assert f"{count:,}" in debian.provenance


def test_debian_has_more_to_learn_than_popularity(debian):
    assert_more_than_popularity(debian.interactions.matrix[::8], rank=32, at_least=1.3)


def assert_more_than_popularity(matrix, rank, at_least):
    """A truncated SVD must find held-out entries that many times as often as popularity does.

    Columns are scaled by their popularity to the power -0.3, without which the SVD of the Debian set is spent on libc6.
    """
    rng = np.random.default_rng(0)
    held_out = rng.random(matrix.nnz) < 0.2
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    train = matrix.astype(bool).astype(float)
    train.data[held_out] = 0
    train.eliminate_zeros()
    test = np.zeros(matrix.shape, bool)
    test[rows[held_out], matrix.indices[held_out]] = True
    popularity = np.asarray(train.sum(axis=0)).ravel()
    scale = np.maximum(popularity, 1) ** -0.3
    left, sizes, right = svds(train.multiply(scale).tocsr(), k=rank, v0=np.ones(min(train.shape)))
    recalls = []
    for scores in ((left * sizes) @ right / scale, np.tile(popularity, (matrix.shape[0], 1))):
        scores[train.nonzero()] = -np.inf
        top = np.argpartition(-scores, 20, axis=1)[:, :20]
        recalls.append(np.take_along_axis(test, top, axis=1).sum() / test.sum())
    assert recalls[0] > at_least * recalls[1], recalls


# --- the tool that makes it -------------------------------------------------------------------------------------------

LONG = "word " * 30


@pytest.fixture
def tool(monkeypatch):
    spec = importlib.util.spec_from_file_location("build_debian_packages", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_index(folder, relations):
    """apt's three files for packages with the given control fields, and a to d and z without any; each with a text."""
    packages = dict.fromkeys(["a", "b", "c", "d", "z"], "") | relations
    index = "\n".join(
        f"Package: {name}\nDescription: about {name}\nDescription-md5: md5-{name}\n{fields}"
        for name, fields in packages.items()
    )
    texts = "\n".join(
        f"Package: {name}\nDescription-md5: md5-{name}\n"
        f"Description-en: about {name}\n Features:\n .\n {LONG}\n  of {name}.\n"
        for name in packages
    )
    prefix = "mirror_dists_bookworm_"
    sums = ""
    for name, content in (("main/binary-amd64/Packages", index), ("main/i18n/Translation-en", texts)):
        (folder / f"{prefix}{name.replace('/', '_')}").write_text(content)
        sums += f" {hashlib.sha256(content.encode()).hexdigest()} {len(content)} {name}\n"
    release = f"Version: 12.0\nCodename: bookworm\nDate: Sat, 10 Jun 2023 08:53:33 UTC\nSHA256:\n{sums}"
    (folder / f"{prefix}InRelease").write_text(release)


def build(tool, monkeypatch, lists, out):
    monkeypatch.setattr(sys, "argv", [str(TOOL), "--lists", str(lists), "--out", str(out)])
    tool.main()
    entries = pq.read_table(out / "debian_packages_interactions.parquet").to_pylist()
    return {(row["user_id"], row["item_id"]): row["value"] for row in entries}


def test_tool_reads_relations(tool, monkeypatch, tmp_path):
    fields = (
        "Pre-Depends: a (>= 1:2.0~rc1+dfsg-3)\n"
        "Depends: b:any, absent, many\n"
        "Recommends: only-one | c (<< 2), b\n"
        "Suggests: z,\n a\n"
    )
    users = {f"user{i}": fields for i in range(5)}
    users["d"] = "Provides: only-one (= 1), many\n"
    users["z"] = "Provides: many\nDepends: z, a, b, c\n"
    users["poor"] = "Depends: a, b\n"  # too few entries
    users["rare"] = "Depends: a, b, user0\n"  # user0 has too few, and then rare has
    write_index(tmp_path, users)
    entries = build(tool, monkeypatch, tmp_path, tmp_path / "out")
    expected = {("z", item): 3 for item in "abc"}
    for i in range(5):
        expected |= {(f"user{i}", item): value for item, value in {"a": 3, "b": 3, "c": 2, "d": 2, "z": 1}.items()}
    assert entries == expected

    items = {
        row["item_id"]: row for row in pq.read_table(tmp_path / "out" / "debian_packages_items.parquet").to_pylist()
    }
    assert set(items) == {"a", "b", "c", "d", "z", "user0"}  # the cold one too
    assert items["a"]["summary"] == "about a"
    assert items["a"]["description"] == f"Features: {LONG}of a."
    assert "6 x 5, 28 entries" in (tmp_path / "out" / "debian_packages.md").read_text()


def test_tool_gives_the_same_bytes_again(tool, monkeypatch, tmp_path):
    write_index(tmp_path, {f"user{i}": "Depends: a, b, c\n" for i in range(5)})
    for out in ("one", "two"):
        build(tool, monkeypatch, tmp_path, tmp_path / out)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_tool_refuses_files_of_another_release(tool, monkeypatch, tmp_path):
    write_index(tmp_path, {"user": "Depends: a\n"})
    index = tmp_path / "mirror_dists_bookworm_main_binary-amd64_Packages"
    index.write_text(index.read_text().replace("Depends: a", "Depends: b"))
    with pytest.raises(SystemExit, match=r"is not the main/binary-amd64/Packages that .*InRelease lists"):
        build(tool, monkeypatch, tmp_path, tmp_path / "out")


def test_tool_refuses_a_relation_that_it_cannot_read(tool):
    assert tool.named_packages("g++-12 (>= 12.2), libc6.1:any | x") == ["g++-12", "libc6.1", "x"]
    with pytest.raises(SystemExit, match="cannot read the relation 'a b'"):
        tool.named_packages("a b")


def test_tool_cuts_descriptions_at_a_word(tool):
    summary, text = tool.split_description("short\n" + " letters\n" * 100)
    assert summary == "short"
    assert text == " ".join(["letters"] * 64)  # 511 characters
    assert tool.split_description("short") == ("short", "")
    first = "x" * 80
    assert tool.split_description(f"short\n {first}\n .\n more") == ("short", first)
    assert tool.split_description("by J <j.doe@mail.example.org>\n or  j@x.org.\n") == ("by J", "or .")


# --- MovieLens --------------------------------------------------------------------------------------------------------


def write_movielens(folder, form):
    """Two users, three rated movies (one without a title) and one unrated, in the form of one of the releases."""
    ratings = [(7, 50, "4"), (7, 9, "2"), (3, 50, "5"), (3, 11, "3")]
    if form == "csv":
        lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r}.5,978300760" for u, i, r in ratings)]
        (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
        movies = (
            'movieId,title,genres\n9,"Matrix, The (1999)",Action|Sci-Fi\n12,Unrated,(no genres listed)\n'
            '50,"Am\u00e9lie: a ""film"" (2001)",Comedy\n'
        )
        (folder / "movies.csv").write_text(movies, encoding="utf-8")
    elif form == "dat":
        (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{r}.5::978300760\n" for u, i, r in ratings))
        movies = (
            "9::Matrix, The (1999)::Action|Sci-Fi\n12::Unrated::(no genres listed)\n"
            '50::Am\u00e9lie: a "film" (2001)::Comedy\n'
        )
        (folder / "movies.dat").write_text(movies, encoding="latin-1")
    else:
        (folder / "u.data").write_text("".join(f"{u}\t{i}\t{r}.5\t978300760\n" for u, i, r in ratings))

        def flags(*on):
            return "|".join(str(int(k in on)) for k in range(19))

        movies = (
            f"9|Matrix, The (1999)|01-Jan-1999||http://x|{flags(1, 15)}\n"
            f"12|Unrated||||{flags(0)}\n"
            f'50|Am\u00e9lie: a "film" (2001)|01-Jan-2001||http://x|{flags(5)}\n'
        )
        (folder / "u.item").write_text(movies, encoding="latin-1")


@pytest.mark.parametrize("form", ["csv", "dat", "u"])
def test_movielens(tmp_path, form):
    write_movielens(tmp_path, form)
    data = load_movielens(tmp_path)
    assert data.interactions.user_ids.take([0, 1]).tolist() == [3, 7]
    assert data.interactions.item_ids.take([0, 1, 2]).tolist() == [9, 11, 50]
    np.testing.assert_array_equal(data.interactions.matrix.toarray(), [[0, 3.5, 5.5], [2.5, 0, 4.5]])
    assert data.items.to_pylist() == [
        {"item_id": 9, "summary": "The Matrix (1999)", "text": "The Matrix (1999). Genres: Action, Sci-Fi"},
        {"item_id": 11, "summary": "", "text": ""},
        {
            "item_id": 50,
            "summary": 'Am\u00e9lie: a "film" (2001)',
            "text": 'Am\u00e9lie: a "film" (2001). Genres: Comedy',
        },
        {"item_id": 12, "summary": "Unrated", "text": "Unrated"},
    ]


def test_movielens_min_rating_drops_what_becomes_empty(tmp_path):
    write_movielens(tmp_path, "dat")
    data = load_movielens(tmp_path / "ratings.dat", min_rating=4.5)
    assert data.interactions.matrix.toarray().tolist() == [[5.5], [4.5]]
    assert data.items["item_id"].to_pylist() == [50, 9, 12]
    with pytest.raises(DataError, match="min_rating must leave at least one rating"):
        load_movielens(tmp_path, min_rating=6)


def test_movielens_without_titles(tmp_path):
    write_movielens(tmp_path, "u")
    (tmp_path / "u.item").unlink()
    data = load_movielens(tmp_path)
    assert data.interactions.matrix.nnz == 4
    assert data.items["item_id"].to_pylist() == [9, 11, 50]
    assert data.items["text"].to_pylist() == ["", "", ""]


def test_movielens_columns_are_found_by_their_names(tmp_path):
    (tmp_path / "ratings.csv").write_text("timestamp,movieId,userId,rating\n9,3,1,5.0\n9,4,1,4.0\n")
    data = load_movielens(tmp_path).interactions
    assert (data.user_ids.tolist(), data.item_ids.tolist()) == ([1], [3, 4])
    assert data.matrix.toarray().tolist() == [[5, 4]]


def test_movielens_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ratings.csv, ratings.dat, u.data in it \(unpack the archive\)"):
        load_movielens(tmp_path)
    (tmp_path / "ml-1m.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="must be a folder or a file named"):
        load_movielens(tmp_path / "ml-1m.zip")
    with pytest.raises(FileNotFoundError):
        load_movielens(tmp_path / "ratings.csv")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,good,3\n")
    with pytest.raises(DataError, match=r"ratings\.csv must be a MovieLens ratings file"):
        load_movielens(tmp_path)
    write_movielens(tmp_path, "csv")
    (tmp_path / "movies.csv").write_text("movieId,name\n1,x\n")
    with pytest.raises(DataError, match=r"movies\.csv must list MovieLens titles"):
        load_movielens(tmp_path)
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n,x,y\n")
    with pytest.raises(DataError, match=r"movies\.csv must list MovieLens titles, each with its movieId; one has none"):
        load_movielens(tmp_path)
    (tmp_path / "ratings.csv").write_text("user,item,rating\n1,2,3\n")
    with pytest.raises(DataError, match=r"ratings\.csv must be a MovieLens ratings file: Column 'userId'"):
        load_movielens(tmp_path)
    with pytest.raises(TypeError, match="min_rating must be a finite number >= 0, got '4'"):
        load_movielens(tmp_path, min_rating="4")


# --- the generator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_users", "n_items", "n_entries"),
    [(1, 1, 1), (1, 7, 3), (5, 1, 5), (37, 11, 37), (37, 11, 200), (37, 11, 406), (37, 11, 407), (300, 5000, 30_001)],
)
def test_synthetic_is_canonical_and_exact(n_users, n_items, n_entries):
    matrix = synthetic(n_users, n_items, n_entries, rank=3)
    assert matrix.shape == (n_users, n_items)
    assert matrix.nnz == n_entries
    assert matrix.dtype == np.float32
    assert np.diff(matrix.indptr).min() >= 1
    assert matrix.data.min() >= 1 and (matrix.data % 1 == 0).all()
    rows = np.repeat(np.arange(n_users), np.diff(matrix.indptr))
    assert (np.diff(rows * n_items + matrix.indices) > 0).all()  # sorted, none twice
    assert matrix.indices.max() < n_items and matrix.indices.min() >= 0


def test_synthetic_is_seeded():
    one, same = synthetic(200, 100, 2000, random_state=5), synthetic(200, 100, 2000, random_state=5)
    np.testing.assert_array_equal(one.toarray(), same.toarray())
    assert (one != synthetic(200, 100, 2000, random_state=6)).nnz > 1000


def test_synthetic_in_chunks(monkeypatch):
    monkeypatch.setattr(sys.modules["wals_gpu.datasets.synthetic"], "_CHUNK_ENTRIES", 500)
    matrix = synthetic(300, 200, 5001)
    assert matrix.nnz == 5001
    matrix.check_format()
    assert matrix.has_canonical_format


def test_synthetic_has_the_tails_that_it_promises():
    matrix = synthetic(n_users=13_668, n_items=20_108, n_entries=1_000_000)  # ML-20M with a tenth of its users
    users = np.diff(matrix.indptr)
    items = np.bincount(matrix.indices, minlength=20_108)
    # By the seed, on every processor: the users' numbers are 3 % off at most, the items' 5 %.
    assert np.median(users) == pytest.approx(33, rel=0.05)
    assert np.quantile(users, 0.95) == pytest.approx(260, rel=0.05)
    assert np.median(items) == pytest.approx(8.9, rel=0.2)
    assert np.quantile(items, 0.99) == pytest.approx(912.2, rel=0.2)


def test_synthetic_draws_items_by_their_probability(monkeypatch):
    """Both ways of drawing (rejection and Gumbel) must give the inclusion frequencies of successive sampling."""
    module = sys.modules["wals_gpu.datasets.synthetic"]
    weights = np.array([[0.5, 0.25, 0.15, 0.1]])
    # First p_i, then p_i among those left.
    expected = [p + sum(q * p / (1 - q) for j, q in enumerate(weights[0]) if j != i) for i, p in enumerate(weights[0])]
    n_rows = 40_000
    for rounds in (0, 1, 8):
        monkeypatch.setattr(module, "_REJECTION_ROUNDS", rounds)
        items = module._draw_items(np.random.default_rng(0), np.full(n_rows, 2), np.ones((n_rows, 1)), weights)
        # Four standard deviations of a frequency.
        np.testing.assert_allclose(np.bincount(items, minlength=4) / n_rows, expected, atol=4 * 0.5 / n_rows**0.5)


def test_synthetic_has_planted_preferences():
    assert_more_than_popularity(synthetic(3000, 2000, 100_000, rank=8), rank=8, at_least=1.15)


def test_synthetic_shapes():
    assert SHAPES["ml-20m"] == (136_677, 20_108, 10_000_000)
    assert all(users <= entries <= users * items for users, items, entries in SHAPES.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 5), "n_users must be at least 1, got 0"),
        ((5, -1, 5), "n_items must be at least 1, got -1"),
        ((5, 5, 26), "n_entries must be between n_users = 5 and n_users \\* n_items = 25, got 26"),
        ((5, 5, 4), "n_entries must be between"),
    ],
)
def test_synthetic_refuses_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic(*arguments)
    with pytest.raises(TypeError):
        synthetic(5, 5, 5.5)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        synthetic(5, 5, 5, rank=0)
