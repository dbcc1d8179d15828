"""Files as people have them: however written, packed and divided, one reader takes them or says what is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import as_interactions, read_interactions
from wals_gpu.data.items import read_items
from wals_gpu.errors import DataError, ParameterWarning

pytestmark = pytest.mark.filterwarnings("ignore::wals_gpu.errors.ParameterWarning")

PLAIN = "user,item,value\na,x,1\nb,y,2.5\n"


def read(path, **options):
    """(user, item, value) of each entry, in order."""
    got = path if hasattr(path, "matrix") else read_interactions(path, **options)
    pairs = got.matrix.tocoo()
    users, items = got.user_ids.take(pairs.row), got.item_ids.take(pairs.col)
    return list(zip(users.tolist(), items.tolist(), pairs.data.tolist(), strict=True))


EXPECTED = [("a", "x", 1.0), ("b", "y", 2.5)]


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


# ------------------------------------------------------------------------------------------------- ways of writing


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (PLAIN, {}),
        (PLAIN.replace("\n", "\r\n"), {}),
        (PLAIN.replace("\n", "\r"), {}),
        ("\ufeff" + PLAIN, {}),
        ("\n\n" + PLAIN.replace("\n", "\n\n"), {}),
        (PLAIN.replace(",", ";"), {}),
        (PLAIN.replace(",", ";").replace("2.5", "2,5"), {}),
        (PLAIN.replace(",", "\t").replace("2.5", "2,5"), {"decimal": ","}),
        (PLAIN.replace(",", ", "), {}),
        ('user, item, value\n"a", "x", 1\n"b", "y", 2.5\n', {}),
        (PLAIN.replace(",", "::"), {}),
        ("user item  value\n a x 1 \nb   y 2.5\n", {}),
        (PLAIN.replace(",", "|"), {}),
        ("a,x,1\nb,y,2.5\n", {"columns": ["user", "item", "value"]}),
        ("7,a,x,1\n7,b,y,2.5\n", {"columns": ["_", "user", "item", "value"]}),
        ("a::x::1::978300760\nb::y::2.5::978300761\n", {"columns": ["user", "item", "value", "time"]}),
        ("user:token\titem:token\tvalue:float\na\tx\t1\nb\ty\t2.5\n", {}),
        ("sep=;\nuser;item;value\na;x;1\nb;y;2,5\n", {}),  # as spreadsheets have it
        ('"sep=,"\r\na,x,1\r\nb,y,2.5\r\n', {"columns": ["user", "item", "value"]}),
        ("user,item,value,text,text\na,x,1,p,q\nb,y,2.5,p,q\n", {}),  # names that nobody asks for, twice
        ('user,item,value,text\na,x,1,"one, two\nthree; ""four"""\nb,y,2.5,\n', {}),
    ],
)
def test_ways_of_writing(tmp_path, content, options):
    assert read(written(tmp_path / "a.csv", content), **options) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_byte_order_marks(tmp_path, encoding):
    got = read(written(tmp_path / "a.csv", "user;item;value\nä;x;1\nb;ß;2,5\n", encoding))
    assert got == [("b", "ß", 2.5), ("ä", "x", 1.0)]


def test_encodings(tmp_path):
    path = written(tmp_path / "a.csv", "Käufer,Artikel\nJürgen,Œuf\n", "cp1252")
    with pytest.raises(DataError, match=r"a\.csv is neither Parquet nor .*UTF-8 text.*encoding='cp1252'"):
        read(path)
    assert read(path, encoding="cp1252") == [("Jürgen", "Œuf", 1.0)]
    # bytes that are no text come late: all columns but the one with them are read in either case
    late = written(tmp_path / "late.csv", b"user,item\n" + b"a,x\n" * 50_000 + b"\xfc,y\n")
    with pytest.raises(DataError, match=r"late\.csv is neither.*encoding="):
        read(late)
    for bad in ("klingon", "base64", 5):
        with pytest.raises(ValueError, match="encoding must be the name of a text encoding"):
            read(path, encoding=bad)
    wide = written(tmp_path / "wide.csv", "user,item\na,x\n", "utf-16-le")
    with pytest.raises(DataError, match="looks like UTF-16, which encoding='utf-16-le' reads"):
        read(wide)
    assert read(wide, encoding="utf-16-le") == [("a", "x", 1.0)]


def test_commas_that_may_be_of_thousands_are_told_of(tmp_path):
    path = tmp_path / "plays.csv"

    def values(*fields, **options):
        path.write_text("user;item;plays\n" + "".join(f"u{n};x;{field}\n" for n, field in enumerate(fields)))
        return [value for _, _, value, *_ in read(path, value_column="plays", **options)]

    with pytest.warns(ParameterWarning, match=r"'plays' of .*plays.csv has '1,000', read as 1 with a decimal comma"):
        assert values("12", "1,000", "2,500") == [12, 1, 2.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert values("12", "1,000", "2,500", decimal=",") == [12, 1, 2.5]
        assert values("1,000", "2,50") == [1, 2.5]
        assert values("0,125", "1,000") == [0.125, 1]


def test_decimal_commas_that_come_late(tmp_path):
    path = written(
        tmp_path / "a.csv", "user;item;value\n" + "".join(f"u{k};x;1\n" for k in range(20_000)) + "a;x;2,5\n"
    )
    assert read(path)[0] == ("a", "x", 2.5)
    with pytest.raises(DataError, match=r"column 'value' must hold numbers, got '2,5' in line 20002 of .*a\.csv"):
        read(path, decimal=".")
    with pytest.raises(ValueError, match="decimal must be"):
        read(path, decimal="x")


def test_rows_that_span_lines_where_a_block_ends(tmp_path, monkeypatch):
    from wals_gpu.data import text_tables

    monkeypatch.setattr(text_tables, "_BLOCK_BYTES", 40)
    rows = "".join(f'u{k},"x\n\n{k}",1\n' for k in range(30))
    assert len(read(written(tmp_path / "a.csv", "user,item,value\n" + rows))) == 30


def test_thousands_of_columns(tmp_path):
    names = ",".join(f"some column {k}" for k in range(9000))
    path = written(tmp_path / "a.csv", f"user,item,{names}\na,x{',' * 9000}\n")
    assert len(path.read_bytes()) > 2**17
    assert read(path) == [("a", "x", 1.0)]


def test_ids_are_as_written(tmp_path):
    got = read(written(tmp_path / "a.csv", "user,item\n00123, 7\n5, 8\n"))
    assert got == [("00123", 7, 1.0), ("5", 8, 1.0)]
    items = read_items(written(tmp_path / "items.csv", "movieId,title\n00123,Alien\n5,Heat\n"))
    assert items.ids.to_pylist() == ["00123", "5"]  # the same text as in the interactions
    assert read_items(written(tmp_path / "items.csv", "movieId,title\n123,Alien\n5,Heat\n")).ids.to_pylist() == [123, 5]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('user,item,value\na,x,1\n\nb,"y\nz",2\nc,x,three\n', {}, "got 'three' in line 6 of"),
        ("user,item,value\na,x,1\nb,y\n", {}, "line 3 of .* has 2 fields, its first line has 3"),
        ("user,item\na,x,1\nb,y,2\n", {}, "line 2 of .* has 3 fields"),
        ("user::item::value\na::x::1\nb::y::two\n", {}, "got 'two' in line 3"),
        ('user, item, value\n"a", "x", 1\n"b", "y", two\n', {}, "got 'two' in line 3"),
        ("wer,was\na,x\n", {}, "user_column must be given.*; item_column must be given.*'wer', 'was'"),
        (
            "wer,was\na,x\n",
            {"user_column": "u", "item_column": "i", "value_column": "v", "time_column": "t"},
            "user_column='u' is not there; item_column='i' .*; value_column='v' .*; time_column='t' .*'wer', 'was'",
        ),
        ("1,2,3\n4,5,6\n", {}, "first line looks like data: columns=\\['user', 'item', 'value', 'time'\\]"),
        ("1,2,3\n4,5,6\n", {"columns": ["user", "item"]}, "got 2 names, and 3 fields in its first line"),
        (PLAIN, {"columns": ["user", "item", "value"]}, "first line of .* has 'user', 'item', 'value': leave columns"),
        ("user,item\na,\n", {}, "item_column 'item' must have an id in every row.* in line 2 of"),
        ("user, item\na, \nb, x\n", {}, "item_column 'item' must have an id in every row.* in line 2 of"),
        ('user,item,value\na,x,"4,5"\n', {}, "must hold numbers, got '4,5' in line 2 of .*; decimal=',' reads decimal"),
        ('user,item,value\na,x,"1,000"\n', {}, "'1,000' in .*; commas of thousands have to go, and decimal=',' reads"),
        ('user,item,value\na,x,"1,000,000"\n', {}, "'1,000,000' in line 2 of .*; commas of thousands have to go$"),
        ("user;item;value\na;x;1,000.5\n", {}, "'1,000.5' in line 2 of .*; commas of thousands have to go$"),
        ('user,item\na,x\n"b,y\nc,z\n', {}, "line 3 of .* has 1 field, its first line has 2"),
        ('user,item,value\n"a\nb",x,1\nc,y,z\n', {}, "got 'z' in line 4 of"),
        ("sep=,\nuser,item,value\na,x,1\nc,y,z\n", {}, "got 'z' in line 4 of"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, content, options, message):
    with pytest.raises(DataError, match=message):
        read(written(tmp_path / "a.csv", content), **options)


STRAY = 'user\titem\tname\tplays\na\tx\t"Heroes\t1\nb\tx\tno quote\t2\nb\ty\t12"\t3\n'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # The line between would be a part of the name, and lost; that of the quote would have the plays of the last.
        (STRAY, [("a", "x", 1.0), ("b", "x", 2.0), ("b", "y", 3.0)]),
        ('user,item,name\na,x,"Heroes\nb,y,z\n', [("a", "x", 1.0), ("b", "y", 1.0)]),  # to the end of the file
        ('user,item\na,"x\nb,y\n', [("a", '"x', 1.0), ("b", "y", 1.0)]),
        (gzip.compress(STRAY.encode(), mtime=0), [("a", "x", 1.0), ("b", "x", 2.0), ("b", "y", 3.0)]),
    ],
)
def test_a_quote_that_ends_nowhere_takes_no_rows_away(tmp_path, content, expected):
    path = written(tmp_path / "a.tsv", content)
    with pytest.warns(ParameterWarning, match=r"line 2 of .*a\.tsv has a quote that ends nowhere.*every line is a row"):
        assert read(path) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('user,item,name\na,x,"one\ntwo"\n\nb,y,"three, four"\n', [("a", "x", 1.0), ("b", "y", 1.0)]),
        ('user,item\na,"x\ny,z"\n', [("a", "x\ny,z", 1.0)]),  # each of its lines would be a row
        ('"user","item"\n\n"a","x"\n\n"b","y"\n', [("a", "x", 1.0), ("b", "y", 1.0)]),
        ('user,item,name\na,x,"Weird Al" Y\nb,y,7" and 12"\n', [("a", "x", 1.0), ("b", "y", 1.0)]),
        ('user,item,name\na,x,"p\nq"\n'.encode("utf-16"), [("a", "x", 1.0)]),
    ],
)
def test_quotes_that_end_are_quotes(tmp_path, content, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(written(tmp_path / "a.csv", content)) == expected


def test_fields_in_quotes_beside_one_that_ends_nowhere_are_an_error(tmp_path):
    path = written(tmp_path / "a.csv", 'user,item,name\n"a","x","p\nb,y,q\nc,z,"r\n')
    with pytest.raises(DataError, match=r"line 2 of .*a\.csv has (a quote that ends nowhere.*in quotes|\d field)"):
        read(path)
    path = written(tmp_path / "a.csv", 'user,item,name\n"a",x,p\nb,y,"q\nc,z,r\n')
    with pytest.raises(
        DataError, match=r"line 3 of .*a\.csv has a quote that ends nowhere.* other fields are in quotes"
    ):
        read(path)


def test_a_field_beyond_what_pythons_reader_takes(tmp_path):
    path = written(tmp_path / "a.csv", f"user,item,text\na,x,{'word ' * 40_000}\nb,y,\n")
    assert read(path) == [("a", "x", 1.0), ("b", "y", 1.0)]
    with pytest.raises(DataError, match=r"text.* must hold numbers|cannot be read"):
        read(path, value_column="text")


def test_points_and_commas_in_one_column_are_named(tmp_path):
    path = written(tmp_path / "a.csv", "user;item;count\na;x;1.234\nb;y;5,5\n")
    with pytest.raises(DataError, match=r"with a point and with a comma, '1\.234' in line 2 and '5,5' in line 3"):
        read(path)
    with pytest.raises(DataError, match=r"column 'count' must hold numbers, got '1\.234' in line 2"):
        read(path, decimal=",")


def test_columns_must_be_names(tmp_path):
    path = written(tmp_path / "a.csv", "a,x\n")
    for columns in ("user,item", [1, 2], 5):
        with pytest.raises(TypeError, match="columns must be a list of names"):
            read(path, columns=columns)
    for columns in (["user", "user"], ["_", "_"]):
        with pytest.raises(ValueError, match="columns must be different names"):
            read(path, columns=columns)
    for option in ({"columns": ["user", "item"]}, {"encoding": "utf-8"}, {"decimal": ","}):
        with pytest.raises(TypeError, match=f"{next(iter(option))} can be given with files of text only"):
            as_interactions(pa.table({"user": [1], "item": [2]}), **option)


# ------------------------------------------------------------------------------------------- packed, divided, typed


@pytest.mark.parametrize("name", ["a.csv.gz", "a.csv.bz2", "a.csv.xz", "a.csv.zst", "no_suffix"])
def test_packed(tmp_path, name):
    raw = PLAIN.encode()
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}.get(
        name.rpartition(".")[2], gzip.compress
    )
    assert read(written(tmp_path / name, pack(raw))) == EXPECTED


@pytest.mark.parametrize("content", ["csv", "dat", "jsonl"])
@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_packed_files_without_their_end_are_named(tmp_path, suffix, content):
    """Beyond what is looked at first, where another library meets the damage."""
    numbers = np.random.default_rng(0).integers(0, 10**9, (15_000, 2)).tolist()
    line = {"csv": "%d,%d\n", "dat": "%d::%d\n", "jsonl": '{"user": %d, "item": %d}\n'}[content]
    text = "user,item\n" * (content == "csv") + "".join(line % tuple(pair) for pair in numbers)
    packed = {"gz": gzip.compress, "xz": lzma.compress}[suffix](text.encode())
    options = {"columns": ["user", "item"]} if content == "dat" else {}
    bent = packed[:-2000] + bytes(byte ^ 0x55 for byte in packed[-2000:-1900]) + packed[-1900:]
    for damaged in (packed[: len(packed) * 3 // 4], packed[:-4], bent):
        path = written(tmp_path / f"a.{content}.{suffix}", damaged)
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_interactions(path, **options)


def zstd(raw):
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(raw)
    return out.getvalue().to_pybytes()


def test_a_line_of_names_in_the_midst_is_no_user(tmp_path):
    """What ``cat january.csv february.csv`` makes."""
    part = "user,item\nann,x\nuser,y\n"  # somebody may be called so
    assert read(written(tmp_path / "a.csv", part)) == [("ann", "x", 1.0), ("user", "y", 1.0)]
    assert read(written(tmp_path / "a.csv", "user,item,value\nuser,item,2\n")) == [("user", "item", 2.0)]
    for text in (part + part, "\ufeffuser;item\n1;2\n\ufeffuser;item\n3;4\n", part * 2000):
        path = written(tmp_path / "a.csv", text)
        with pytest.raises(DataError, match=r"line [34] of .*a\.csv is the line of names again"):
            read_interactions(path)


def test_several_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "2024-01.csv", "user,item,value\na,x,1\n")
    written(tmp_path / "2024-02.csv.gz", gzip.compress(b"value;user;item\n2,5;b;y\n"))
    for path in (
        ["2024-01.csv", tmp_path / "2024-02.csv.gz"],
        "2024-*",
        str(tmp_path / "2024-0[12].*"),
        f"file://{tmp_path}/2024-*.csv*",
        [f"file://{tmp_path}/2024-01.csv", "2024-02.csv.gz"],
    ):
        assert read(path) == EXPECTED, path
    assert read(as_interactions(["2024-01.csv", "2024-02.csv.gz"])) == EXPECTED
    written(tmp_path / "2024-03.csv", "user,thing\nc,z\n")
    with pytest.raises(DataError, match=r"same columns: 2024-01\.csv has .*'value'; 2024-03\.csv has 'user', 'thing'"):
        read("2024-0?.csv")
    written(tmp_path / "2024-03.csv", "user,item,value\nc,z,1\n,z,2\n")
    with pytest.raises(DataError, match=r"in line 3 of 2024-03\.csv"):
        read("2024-0?.csv")
    for nothing in ("2025-*", "none.csv", f"file://{tmp_path}/none.csv", f"file://{tmp_path}/none*"):
        with pytest.raises(FileNotFoundError):
            read(nothing)
    with pytest.raises(DataError, match=r"https://example.invalid/a.csv cannot be opened.*download the file first"):
        read("https://example.invalid/a.csv")


def test_folders(tmp_path):
    (tmp_path / "all" / "day=1").mkdir(parents=True)
    written(tmp_path / "all" / "a.csv", "user,item,value\na,x,1\n")
    written(tmp_path / "all" / "day=1" / "b.csv", "user,item,value\nb,y,2.5\n")
    for other in ("_SUCCESS", ".a.csv.crc", "README.md", "empty.csv"):
        written(tmp_path / "all" / other, "" if other == "empty.csv" else "not a table")
    assert read(tmp_path / "all") == EXPECTED
    assert read(f"file://{tmp_path}/all") == EXPECTED
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no file of a table"):
        read(tmp_path / "nothing")


def test_standard_input_and_pipes(tmp_path):
    path = written(tmp_path / "a.csv.gz", gzip.compress(PLAIN.encode()))
    code = (
        "import sys; from wals_gpu import read_interactions as read; "
        "got = read(sys.argv[1]); print(got.matrix.shape, got.matrix.sum())"
    )
    given = subprocess.run([sys.executable, "-c", code, "-"], stdin=path.open("rb"), capture_output=True, text=True)
    assert given.stdout.strip() == "(2, 2) 3.5", given.stderr
    if os.path.exists("/dev/fd"):
        shell = f"{sys.executable} -c '{code}' <(gzip -dc {path})"
        piped = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert piped.stdout.strip() == "(2, 2) 3.5", piped.stderr


def test_typed_files(tmp_path):
    table = pa.table({"user": ["a", "b"], "item": ["x", "y"], "value": [1, 2.5]})
    feather.write_feather(table, tmp_path / "a.feather")
    with pa.OSFile(str(tmp_path / "a.arrows"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "a.parquet")
    for name in ("a.feather", "a.arrows", "a.parquet"):
        assert read(tmp_path / name) == EXPECTED
        assert read(f"file://{tmp_path}/{name}") == EXPECTED
        with pytest.raises(DataError, match="encoding can be given with files of text only"):
            read(tmp_path / name, encoding="utf-8")
    whole = (tmp_path / "a.feather").read_bytes()
    for damaged in (whole[:8], whole[: len(whole) // 2]):
        with pytest.raises(DataError, match=r"b\.feather cannot be read"):
            read(written(tmp_path / "b.feather", damaged))
    with pytest.raises(DataError, match=r"c\.feather is not a Arrow|c\.feather is not"):
        read(written(tmp_path / "c.feather", PLAIN))
    for content, kind in ((b"PK\x03\x04xx", "ZIP archive"), (b"\x93NUMPY\x01", "numpy.load"), (b"%PDF-1.7", "a PDF")):
        with pytest.raises(DataError, match=kind):
            read(written(tmp_path / "d", content))


def test_parts_of_different_types(tmp_path):
    def part(name, items):
        pq.write_table(pa.table({"user": ["u"] * len(items), "item": items}), tmp_path / name)
        return tmp_path / name

    small, large = part("1.parquet", pa.array([1, 2], pa.int8())), part("2.parquet", pa.array([2**40], pa.int64()))
    assert [i for _, i, _ in read([small, large])] == [1, 2, 2**40]
    coded = part("3.parquet", pa.array(["x"]).dictionary_encode())
    assert [i for _, i, _ in read([coded, part("4.parquet", pa.array(["y"], pa.large_string()))])] == ["x", "y"]
    with pytest.raises(DataError, match=r"column 'item' is int8 in .*1\.parquet and string in .*3\.parquet"):
        read([small, coded])


def test_json_lines(tmp_path):
    rows = [{"user": "a", "item": "x", "value": 1, "at": "2024-05-01"}, {"user": "b", "item": "y", "value": 2.5}]
    lines = "\n\n".join(map(json.dumps, rows)) + "\n"
    for name in ("a.jsonl", "a.ndjson", "a.json", "a.txt"):
        assert read(written(tmp_path / name, lines)) == EXPECTED
    assert read(written(tmp_path / "a.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + lines.encode()))) == EXPECTED
    assert read(written(tmp_path / "a.json", json.dumps(rows))) == EXPECTED
    # Text stays text: neither dates nor numbers.
    got = read(written(tmp_path / "b.jsonl", '{"user": "2024-01-01", "item": "00123"}\n{"user": "7", "item": "5"}'))
    assert [row[:2] for row in got] == [("2024-01-01", "00123"), ("7", "5")]
    for content, message in (
        ('{"user": "a", "item": 1}\n{"user": 7, "item": 1}\n', "'a' in line 1 and 7 in line 2"),
        ('{"user": "a", "item": 1}\n{"item": 1}\n', "user_column 'user' must have an id.* in line 2 of"),
        ('{"user": "a", "item": 1}\n{"user": \n', "line 2: Expecting"),
        ("[1, 2]", "not all of its elements are objects"),
        ("3", "line 1: it is int"),
        ("\n", "holds no JSON object"),
        ('{"user": {"id": 1}, "item": 1}', "must hold text throughout, or numbers"),
    ):
        with pytest.raises(DataError, match=message):
            read(written(tmp_path / "c.jsonl", content))
    # beyond what is looked at first
    late = '{"user": "a", "item": 1}\n' * 2000 + '{"user": "a", "item": "x"}\n'
    with pytest.raises(DataError, match="line 2001 has 'x', the first lines int64"):
        read(written(tmp_path / "d.jsonl", late))
    with pytest.raises(DataError, match="columns cannot be given with JSON"):
        read(tmp_path / "a.jsonl", columns=["user", "item"])


# --------------------------------------------------------------------------------------------------- names of columns


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("Kundennummer Artikelnummer Bewertung Datum", "Kundennummer Artikelnummer Bewertung"),
        ("Benutzer-ID Produkt Anzahl", "Benutzer-ID Produkt Anzahl"),
        ("userId movieId rating timestamp", "userId movieId rating"),
        ("user_id user_name item_id item_name", "user_id item_id"),
        ("user_id session_id product_id", "user_id product_id"),
        ("session_id product", "session_id product"),
        ("id_client id_produit quantité", "id_client id_produit quantité"),
        ("usuario película fecha", "usuario película"),
        ("listener artist track plays", "listener track plays"),
        ("user artist play_count", "user artist play_count"),
        ("reviewerID asin overall unixReviewTime", "reviewerID asin overall"),
        ("User-ID ISBN Book-Rating", "User-ID ISBN Book-Rating"),
        ("review_id user_id business_id stars date", "user_id business_id stars"),
        ("user_id customer item_id product", "user_id item_id"),
        ("CustomerID StockCode Description Quantity InvoiceDate", "CustomerID StockCode Quantity"),
        ("código_de_cliente código_producto cantidad", "código_de_cliente código_producto cantidad"),
        ("Identifiant-client Réf-produit Quantité", "Identifiant-client Réf-produit Quantité"),
        ("usuario id_do_produto quantidade", "usuario id_do_produto quantidade"),
        ("user item liked", "user item liked"),
        ("user item is_click plays", "user item plays"),
    ],
)
def test_usual_names(names, chosen):
    got = as_interactions(pa.table({name: [1, 2] for name in names.split()}))
    assert [name for name in got.columns if name is not None] == chosen.split()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("user_id customer_id item", "user_column must say which of 'user_id', 'customer_id'"),
        ("user movie book", "item_column must say which of 'movie', 'book'"),
        ("user item rating count", "value_column must say which of 'rating', 'count'"),
        ("user item liked clicked", "value_column must say which of 'liked', 'clicked'"),
    ],
)
def test_names_that_leave_a_question(names, message):
    with pytest.raises(DataError, match=message):
        as_interactions(pa.table({name: [1] for name in names.split()}))


def test_a_note_in_words_is_no_value():
    assert as_interactions(pa.table({"user": [1], "item": [1], "note": ["late"]})).columns.value is None
    assert as_interactions(pa.table({"user": [1], "item": [1], "note": [5]})).columns.value == "note"


@pytest.mark.parametrize("values", [[1, 0], [True, False], [1.0, 0.0]])
def test_a_row_that_says_no_is_no_like(values):
    got = as_interactions(pa.table({"user": [1, 1], "item": [1, 2], "liked": values}))
    assert got.matrix.toarray().tolist() == [[1, 0]] and got.matrix.nnz == 2


def test_yes_and_no_in_words_are_not_passed_over(tmp_path):
    with pytest.raises(DataError, match="column 'liked' must hold numbers, got 'False' in line 2"):
        read(written(tmp_path / "a.csv", "user,item,liked\na,x,False\n"))
    words = written(tmp_path / "a.csv", "user,item,like\na,x,a lot\n")
    assert read_interactions(words).columns.value is None


def test_a_list_of_ids_is_no_list_of_files():
    with pytest.raises(FileNotFoundError, match=r"no such file \(a list of texts is one of paths\): 'item 1'"):
        as_interactions(["item 1", "item 2"])


def test_columns_must_be_named_by_names():
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pd.DataFrame({"user": [1], "item": [2]})
    for column in (frame["user"], pl.Series([1]), ["user"], np.array(["user"]), pa.array(["user"]), True):
        with pytest.raises(TypeError, match="user_column must be the name of a column of the DataFrame, got"):
            as_interactions(frame, user_column=column)
    assert as_interactions(frame, user_column=np.str_("user")).user_ids.ids.tolist() == [1]


# ---------------------------------------------------------------------------------------------------------- ratings


def ratings_warnings(table, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        as_interactions(table, **options)
    return [str(one.message) for one in caught if issubclass(one.category, ParameterWarning)]


def test_ratings_say_what_became_of_them():
    table = pa.table({"user": [1, 1, 2], "item": [1, 2, 2], "Bewertung": [0.5, 4, 5]})
    (said,) = ratings_warnings(table)
    assert "from 0.5 to 5" in said and "every row counts as a like" in said
    assert all(way in said for way in ("min_value=4", "value_column=False", "value_column='Bewertung'"))
    for quiet in (
        {"min_value": 4},
        {"value_column": False},
        {"value_column": "Bewertung"},
        {"warn_ratings": False},
    ):
        assert ratings_warnings(table, **quiet) == []
    assert ratings_warnings(table.rename_columns(["user", "item", "count"])) == []


def test_explicit_feedback_wants_ratings():
    from wals_gpu import WALS

    table = pa.table({"user": [1, 1, 2], "item": [1, 2, 2], "rating": [0.5, 4, 5]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ParameterWarning)
        WALS(2, "explicit", iterations=1).fit(table)
    with pytest.warns(ParameterWarning, match="every row counts as a like"):
        WALS(2, iterations=1).fit(table)


def test_min_value():
    table = pa.table({"user": ["a", "a", "b"], "item": ["x", "y", "y"], "rating": [3, 5, 1], "t": [1, 2, 3]})
    got = as_interactions(table, min_value=3, time_column="t")
    assert read(got) == [("a", "x", 3.0), ("a", "y", 5.0)]
    assert got.user_ids.ids.tolist() == ["a"] and got.times.tolist() == [1, 2]
    with pytest.raises(DataError, match="min_value=6 leaves no row: the highest value is 5"):
        as_interactions(table, min_value=6)
    with pytest.raises(DataError, match="min_value needs a column of values"):
        as_interactions(table.select(["user", "item"]), min_value=6)
    with pytest.raises(ValueError, match="min_value needs a column of values, but value_column is False"):
        as_interactions(table, min_value=6, value_column=False)
    for bad in ("4", np.nan, True):
        with pytest.raises((TypeError, ValueError), match="min_value must"):
            as_interactions(table, min_value=bad)


@pytest.mark.parametrize("ids", [lambda k: k, lambda k: f"id {k:03d}"])
def test_k_core_is_what_is_left_when_nothing_changes_any_more(ids):
    rng = np.random.default_rng(3)
    pairs = [(int(u), int(i)) for u, i in zip(rng.integers(0, 60, 300), rng.pareto(1, 300) * 3 % 80, strict=True)]
    left = set(pairs)
    while True:
        users = {u for u, _ in left if sum(u == v for v, _ in left) >= 3}
        items = {i for _, i in left if sum(i == j for _, j in left) >= 4}
        fewer = {(u, i) for u, i in left if u in users and i in items}
        if fewer == left:
            break
        left = fewer
    assert 0 < len(left) < len(set(pairs))
    table = pa.table({"user": [ids(u) for u, _ in pairs], "item": [ids(i) for _, i in pairs], "t": range(len(pairs))})
    got = as_interactions(table, min_user_interactions=3, min_item_interactions=4, time_column="t")
    assert {(u, i) for u, i, _ in read(got)} == {(ids(u), ids(i)) for u, i in left}
    assert len(got.user_ids) == len({u for u, _ in left}) and len(got.item_ids) == len({i for _, i in left})
    last = {(ids(u), ids(i)): k for k, (u, i) in enumerate(pairs)}
    assert [last[row[:2]] for row in read(got)] == got.times.tolist()
    assert sum(row[2] for row in read(got)) == sum(pair in left for pair in pairs)  # repeated pairs are summed
    with pytest.raises(DataError, match="min_user_interactions=99 and min_item_interactions=1 leave no interactions"):
        as_interactions(table, min_user_interactions=99)
    with pytest.raises(ValueError, match=r"min_item_interactions .* cannot be given with known ids"):
        as_interactions(table, min_item_interactions=2, user_ids=got.user_ids)
    for name in ("min_user_interactions", "min_item_interactions"):
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            as_interactions(table, **{name: 2.5})
        with pytest.raises(ValueError, match=f"{name} is for tables"):
            as_interactions(np.eye(3), **{name: 2})


# ---------------------------------------------------------------------------------------------- arrays and odd types


def test_arrays_of_triplets():
    rows = np.array([[1, 10, 5.0], [2, 20, 3.0], [3, 10, 1.0]])
    with pytest.raises(DataError, match="triplets=True if they are, or triplets=False"):
        as_interactions(rows)
    expected = [(1, 10, 5.0), (2, 20, 3.0), (3, 10, 1.0)]
    assert read(as_interactions(rows, triplets=True)) == expected
    assert as_interactions(rows, triplets=False).matrix.toarray().tolist() == rows.tolist()
    timed = as_interactions(np.column_stack([rows, [7, 8, 9]]).astype(">f4"), triplets=True)
    assert read(timed) == expected and timed.times.tolist() == [7, 8, 9]
    assert read(as_interactions(rows[:, :2].astype(int), triplets=True)) == [(1, 10, 1.0), (2, 20, 1.0), (3, 10, 1.0)]
    texts = np.array([["a", 10, 5.0], ["b", 20, 3.0]], dtype=object)
    assert read(as_interactions(texts, triplets=True)) == [("a", 10, 5.0), ("b", 20, 3.0)]
    named = np.array([(1, 10, 5.0)], dtype=[("user", ">i4"), ("item", "u2"), ("value", "f2")])
    assert read(as_interactions(named)) == [(1, 10, 5.0)]
    with pytest.raises(DataError, match=r"user ids must be whole numbers, got 1\.5 in row 0"):
        as_interactions(np.array([[1.5, 2, 3]]), triplets=True)
    with pytest.raises(DataError, match=r"below 16777216, from where float32 rounds them, got 16777216\.0 in row 1"):
        as_interactions(np.array([[1, 2], [16_777_217, 2]], np.float32), triplets=True)
    with pytest.raises(TypeError, match="triplets must be True or False, got 'yes'"):
        as_interactions(rows, triplets="yes")
    with pytest.raises(DataError, match="rows of user, item, value and time"):
        as_interactions(np.ones((3, 5)), triplets=True)
    with pytest.raises(TypeError, match="triplets=True is for arrays"):
        as_interactions(pa.table({"user": [1], "item": [2]}), triplets=True)


@pytest.mark.parametrize(
    "dense",
    [
        np.eye(3),
        np.ones((9, 3)),
        np.random.default_rng(0).integers(0, 3, (50, 3)),
        np.random.default_rng(0).integers(1, 4, (50, 3)),
        np.random.default_rng(0).random((50, 3)),
        -np.arange(9.0).reshape(3, 3) - 1,
        np.arange(12).reshape(3, 4) + 1,
    ],
)
def test_matrices_of_three_items_are_no_triplets(dense):
    assert as_interactions(dense).matrix.shape == dense.shape


@pytest.mark.parametrize("kind", ["float16", ">f2", ">f4", ">f8", ">i4", "longdouble"])
def test_arrays_of_unusual_types(kind):
    dense = np.array([[0, 1.0, 2], [3, 0, 0]]).astype(kind)
    for dtype in ("float32", "float64"):
        got = as_interactions(dense, dtype=dtype).matrix
        assert got.dtype == np.dtype(dtype) and got.toarray().tolist() == [[0, 1, 2], [3, 0, 0]]


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"])
def test_structured_arrays_with_times_of_every_unit(unit):
    rows = np.array([(1, 5, "2024"), (1, 6, "2025")], [("user", "i4"), ("item", "i4"), ("t", f"M8[{unit}]")])
    got = as_interactions(rows, time_column="t")
    assert (got.times == rows["t"]).all() and read(got) == [(1, 5, 1.0), (1, 6, 1.0)]


def test_structured_arrays_are_read_column_by_column():
    kind = [("user", "O"), ("item", ">U3"), ("value", "g"), ("vector", "f4", (3,)), ("pair", [("a", "i4")])]
    rows = np.zeros(2, kind)
    rows["user"], rows["item"], rows["value"] = ["b", "a"], ["x", "yé"], [1, 2.5]
    assert read(as_interactions(rows)) == [("a", "yé", 2.5), ("b", "x", 1.0)]
    for options, message in (
        ({"value_column": "vector"}, r"column 'vector' of the array must hold one value in each row, got shape \(3,\)"),
        ({"value_column": "pair"}, "column 'pair' of the array is of no type that can be read"),
    ):
        with pytest.raises(DataError, match=message):
            as_interactions(rows, **options)
    rows["user"] = ["b", 1]
    with pytest.raises(DataError, match=r"column 'user' of the array must hold values of one type, got 'b' \(str\)"):
        as_interactions(rows)


def test_what_is_masked_is_not_there():
    dense = np.ma.masked_equal(np.array([[0, 1.0, 2], [3, 0, 0]]), 2)
    assert as_interactions(dense).matrix.toarray().tolist() == [[0, 1, 0], [3, 0, 0]]
    with pytest.raises(DataError, match="triplets must be there in every row"):
        as_interactions(dense, triplets=True)


def test_columns_of_unusual_types():
    import decimal
    import uuid

    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"user": [1, 2], "item": [5, 6]})
    for values in (
        pd.arrays.SparseArray([1.0, 2]),
        pd.Series([1, 2], dtype="Int64"),
        pd.Categorical([1, 2]),
        np.array([1, 2], ">f4"),
        np.array([1, 2], np.float16),
        np.array([1, 2], np.longdouble),
        [decimal.Decimal("1"), decimal.Decimal("2")],
    ):
        assert as_interactions(frame.assign(value=values)).matrix.data.tolist() == [1, 2]
    for ids in (np.array([7, 3], ">i4"), pd.arrays.SparseArray([7, 3]), [decimal.Decimal(7), decimal.Decimal(3)]):
        assert as_interactions(frame.assign(user=ids)).user_ids.ids.tolist() == [3, 7]
    assert as_interactions(frame.assign(user=[b"b", b"a"])).user_ids.ids.tolist() == ["a", "b"]
    for bad, message in (
        (pd.Series(["\ud800", "b"], dtype=object), r"valid Unicode, got a lone surrogate in row 0: '\\ud800'"),
        ([uuid.UUID(int=1), uuid.UUID(int=2)], "must hold integers or strings, got"),
        ([1, "a"], r"column 'user' of the DataFrame must hold values of one type, got 1 \(int\) in row 0 and 'a'"),
        (pd.period_range("2024", periods=2, freq="D"), "must hold integers or strings, got"),
        ([1, 2**64], r"column 'user' of the DataFrame must hold integers of 64 bits, or text, got .* in row 1"),
        ([2**63, -1], "must hold integers of 64 bits, or text, got -1 in row 1 and 9223372036854775808 in row 0"),
    ):
        with pytest.raises(DataError, match=message):
            as_interactions(frame.assign(user=bad))
    for bad in (pd.to_timedelta([1, 2]), np.array([1, 2j]), ["1", "2"], pd.period_range("2024", periods=2, freq="D")):
        with pytest.raises(DataError, match="value"):
            as_interactions(frame.assign(value=bad))
    ree = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))
    assert as_interactions(pa.table({"user": ree, "item": [1, 2, 3]})).matrix.toarray().tolist() == [
        [1, 1, 0],
        [0, 0, 1],
    ]


# ------------------------------------------------------------------------------------------------- tables of items


def test_items(tmp_path):
    path = written(tmp_path / "items.csv", "Artikelnummer;Bezeichnung;Beschreibung\n1;Brot;rund\n2;Käse;\n7;;x\n")
    table = read_items(path)
    assert table.ids.to_pylist() == [1, 2, 7] and table.columns["Bezeichnung"].to_pylist() == ["Brot", "Käse", None]
    assert list(read_items(path, texts=True).columns) == ["Beschreibung"]
    assert list(read_items(path, ["Beschreibung", "Bezeichnung"]).columns) == ["Beschreibung", "Bezeichnung"]
    # in the numbering of a model, whose ids are of either kind
    assert table.of(Ids(np.array([0, 2, 7]), "item")) == [None, "Käse", None]
    assert table.of(Ids(pa.array(["1", "x"]), "item")) == ["Brot", None]
    texts = read_items(pa.table({"id": ["01", "1", "x"], "name": ["a", "b", "c"]}))
    assert texts.of(Ids(np.array([1, 2]), "item")) == ["b", None]
    assert read_items(pa.table({"title": ["a"]})).ids is None
    for columns, options, message in (
        ({"id": [1, 1], "title": ["a", "b"]}, {}, "must have each id once, got 2 rows of 1 ids, 1 more than once"),
        ({"id": [1, None], "title": ["a", "b"]}, {}, "item_column 'id' must have an id in every row"),
        ({"id": [1], "x": ["a"]}, {}, "columns must be given, since no column has a usual name such as 'title'"),
        (
            {"id": [1], "x": ["a"]},
            {"columns": ["p", "q"], "item_column": "r"},
            "columns='p' is not there; columns='q' is not there; item_column='r' is not there",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read_items(pa.table(columns), **options)


# --------------------------------------------------------------------------------------- what a model remembers of it


def test_a_model_remembers_its_columns(tmp_path):
    from wals_gpu import WALS

    table = pa.table({"who": [1, 1, 2, 3], "what": ["x", "y", "y", "z"], "n": [1.0, 2, 3, 1], "user": [9] * 4})
    model = WALS(2, iterations=2).fit(table, user_column="who", item_column="what", value_column="n")
    assert tuple(model.columns_) == ("who", "what", "n", None)
    model.save(tmp_path / "model")
    again = WALS.load(tmp_path / "model")
    assert again.columns_ == model.columns_
    new = table.slice(0, 2)
    expected = model.fold_in(new, user_column="who", item_column="what", value_column="n")
    for one in (model, again):
        np.testing.assert_array_equal(one.fold_in(new), expected)
    assert again.recommend_for(new, 1)[0].shape == (1, 1)
    assert again.update_items(table).tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(  # other names than the model's are found as ever
        again.fold_in(new.drop_columns(["user"]).rename_columns(["user", "item", "value"])), expected
    )
    assert WALS(2, iterations=1).fit(np.eye(3)).columns_ is None


def test_known_columns_of_another_table():
    first = as_interactions(
        pa.table({"who": [1], "what": [5], "user": [2], "x": [9]}), user_column="who", item_column="what"
    )
    more = pa.table({"user": [7, 8], "who": [1, 2], "what": [5, 5], "count": [3, 4]})
    got = as_interactions(more, like=first.columns)
    assert read(got) == [(1, 5, 1.0), (2, 5, 1.0)]  # each row counted 1 there, too
    assert read(as_interactions(more, like=first.columns, value_column="count")) == [(1, 5, 3.0), (2, 5, 4.0)]


@pytest.mark.parametrize(
    "last",
    ["7", "007", "-3", "9223372036854775807", "18446744073709551615", "18446744073709551616", "x", "1e3"],
)
def test_ids_of_many_blocks_are_those_of_one(tmp_path, monkeypatch, last):
    from wals_gpu.data import text_tables

    rng = np.random.default_rng(0)
    users = [*rng.integers(-50, 900, 4000).astype(str), last]
    items = [*(f"i{n}" for n in rng.integers(0, 40, 4000)), "i7"]
    path = tmp_path / "plays.csv"
    path.write_text("user_id,item_id\n" + "".join(f"{u},{i}\n" for u, i in zip(users, items, strict=True)))
    distinct = {text_tables._BLOCK_BYTES: None, 2048: None}
    for size in distinct:
        monkeypatch.setattr(text_tables, "_BLOCK_BYTES", size)
        distinct[size] = read_interactions(path)
    whole, parts = distinct.values()
    assert parts.user_ids == whole.user_ids and parts.item_ids == whole.item_ids
    assert (parts.matrix != whole.matrix).nnz == 0 and parts.matrix.sum() == 4001
    is_number = last not in ("007", "18446744073709551615", "18446744073709551616", "x", "1e3")  # beside a negative one
    expected = sorted({int(u) for u in users}) if is_number else sorted(set(users))
    assert parts.user_ids.tolist() == expected
