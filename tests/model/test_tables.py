"""Answers and reports as tables of pandas, polars and Arrow, with titles, and as people see them."""

import subprocess
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ParameterWarning
from wals_gpu.data.tables import format_table, html_table
from wals_gpu.data.titles import Titles
from wals_gpu.priors import LinearPrior
from wals_gpu.training.state import FitRecord, History

pl = pytest.importorskip("polars")

U, I = 20, 8  # noqa: E741


def make_matrix():
    rng = np.random.default_rng(0)
    dense = (rng.random((U, I)) < 0.4).astype(np.float32)
    dense[:, 0] = 1
    dense[5] = 0
    return csr_matrix(dense)


def make_model(kind="text", **params):
    coo = make_matrix().tocoo()
    table = pd.DataFrame({"user": coo.row, "item": coo.col})
    data = {
        "matrix": make_matrix(),
        "number": table,
        "text": pd.DataFrame({"user": [f"u{r:02}" for r in coo.row], "item": [f"i{c}" for c in coo.col]}),
        "unsigned": table.assign(item=table["item"].astype("uint64") + np.uint64(2**63)),
    }[kind]
    return WALS(3, "hu", alpha=2, iterations=3, num_threads=2, **params).fit(data)


class Page(HTMLParser):
    """Cells of the tables of a page, line by line; fails where tags are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.lines, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.lines[-1][-1] += data


# Tables


@pytest.mark.parametrize("kind", ["matrix", "number", "text", "unsigned"])
def test_recommendations_as_tables(kind):
    model = make_model(kind)
    users = [3, 5] if kind != "text" else ["u03", "who"]
    found = model.recommend(users, 6, unknown="popular")
    table = found.to_arrow()
    assert table.column_names == ["user_id", "rank", "item_id", "score", "source"]
    assert table.schema.field("score").type == pa.float32() and table.schema.field("rank").type == pa.int32()
    expected = [
        (user, rank, item, score, source)
        for user, items, scores, source in zip(users, found.ids, found.scores, found.source, strict=True)
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1)
        if score > -np.inf  # places without an item are left out
    ]
    assert list(zip(*table.to_pydict().values(), strict=True)) == expected
    assert len(expected) < 2 * 6
    frame, polars = found.to_pandas(), found.to_polars()
    assert isinstance(frame, pd.DataFrame) and isinstance(polars, pl.DataFrame)
    for one in (frame.to_dict("list"), polars.to_dict(as_series=False)):
        assert list(zip(*one.values(), strict=True)) == expected
    one = model.recommend(users[0], 6).to_arrow()
    assert one.to_pylist() == [row for row in table.to_pylist() if row["user_id"] == users[0]]
    parts = [chunk.to_arrow() for chunk in model.recommend_chunks(users, 6, chunk_size=1, unknown="popular")]
    assert pa.concat_tables(parts).equals(table)


def test_output_gives_the_same_tables():
    model = make_model()
    new = pd.DataFrame({"user": ["x", "a"], "item": ["i1", "i2"]})
    for ask in (
        lambda **options: model.recommend(["u03", "u01"], 3, **options),
        lambda **options: model.recommend("u03", 3, **options),
        lambda **options: model.recommend_for(new, 3, **options),
        lambda **options: model.search(model.user_factors[:2], 3, **options),
        lambda **options: model.search(model.user_factors[0], 3, **options),
        lambda **options: model.similar_items(["i1", "i2"], 3, **options),
        lambda **options: model.similar_items("i1", 3, **options),
        lambda **options: model.similar_users(["u03", "u01"], 3, **options),
    ):
        found = ask()
        ids, scores = found
        assert isinstance(ids, np.ndarray) and isinstance(scores, np.ndarray)
        assert ask(output="arrow").equals(found.to_arrow())
        pd.testing.assert_frame_equal(ask(output="pandas"), found.to_pandas())
        assert ask(output="polars").equals(found.to_polars())
        with pytest.raises(ValueError, match="output must be None or one of 'pandas', 'polars', 'arrow', got 'excel'"):
            ask(output="excel")


def test_columns_of_what_is_no_recommendation():
    model = make_model()
    assert model.similar_items("i1", 2).to_arrow().column_names == ["item_id", "rank", "similar_id", "score"]
    assert model.similar_users("u01", 2).to_arrow()["user_id"].to_pylist() == ["u01", "u01"]
    found = model.search(model.user_factors[[4, 2]], 2, metric="cosine").to_arrow()
    assert found["query"].to_pylist() == [0, 0, 1, 1] and "source" not in found.column_names
    assert model.search(model.user_factors[0], 2).to_arrow().column_names == ["rank", "item_id", "score"]
    assert model.similar_items(["i2", "i1"], 2).users.tolist() == ["i2", "i1"]
    empty = model.recommend([], 3).to_arrow()
    assert empty.num_rows == 0 and empty.schema.field("item_id").type == pa.large_string()
    nothing = model.recommend("u01", 3, allow_items=[])
    assert nothing.to_arrow().num_rows == 0 and nothing.to_polars().schema["item_id"] == pl.String


def test_history_as_table(tmp_path):
    model = make_model("matrix", compute_loss=False)
    table = model.history_.to_arrow()
    assert table["iteration"].to_pylist() == [1, 2, 3] and table["loss"].null_count == 3
    assert table.schema.field("loss").type == pa.float64()
    model = make_model("matrix")
    model.save(tmp_path / "model")
    resumed = WALS(3, iterations=4).fit(make_matrix(), checkpoint_dir=tmp_path / "checkpoint")
    resumed = WALS(3, iterations=6).fit(make_matrix(), checkpoint_dir=tmp_path / "checkpoint", resume=True)
    for one in (model, WALS.load(tmp_path / "model"), resumed):
        assert isinstance(one.history_, list)
        assert one.history_.to_pandas()["loss"].tolist() == [record.loss for record in one.history_]
        assert one.history_.to_polars()["iteration"].to_list() == [record.iteration for record in one.history_]
    assert WALS(3).history_ == [] and WALS(3).history_.to_arrow().num_rows == 0


def test_explanation_as_table():
    model = make_model()
    why = model.explain("u03", "i7", 2)
    _, ids, contributions, _ = why
    table = why.to_arrow(titles={ids[1]: "Second"})
    assert table.column_names == ["rank", "item_id", "contribution", "title"]
    assert table["item_id"].to_pylist() == ids.tolist() and table["contribution"].to_pylist() == contributions.tolist()
    assert table["title"].to_pylist() == [None, "Second"]
    assert why.to_pandas(titles={ids[0]: "First"})["title"].tolist()[0] == "First"
    assert why.to_polars()["rank"].to_list() == [1, 2]
    assert make_model("matrix").explain(5, 0).to_arrow().num_rows == 0  # somebody without items


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_missing_package_is_named_before_anything_is_computed(package, monkeypatch):
    model = make_model()
    monkeypatch.setitem(sys.modules, package, None)
    message = f"tables of {package} need it: pip install {package}"
    with pytest.raises(ImportError, match=message):
        model.recommend("u01", output=package)
    with pytest.raises(ImportError, match=message):
        getattr(model.history_, f"to_{package}")()
    with pytest.raises(ImportError, match=message):
        getattr(model.recommend("u01"), f"to_{package}")()
    assert model.recommend("u01", output="arrow").num_rows


def test_what_needs_no_pandas_works_without_it():
    code = """
import sys
import warnings
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in ("pandas", "polars"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, NotInstalled())
from scipy.sparse import eye
from wals_gpu import WALS
model = WALS(2, "hu", iterations=1).fit(eye(4, format="csr"))
found = model.recommend([0, 1], 2, titles={0: "Nought"})
print(found, found._repr_html_(), found.to_arrow().num_rows, model.history_, model.explain(0, 1), model._repr_html_())
print([name for name in ("torch", "matplotlib", "IPython") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# Titles


def title_forms(tmp_path):
    table = pd.DataFrame(
        {"itemId": [f"i{n}" for n in range(I)], "year": 1990, "Title": [f"Film {n}" for n in range(I)]}
    )
    table.to_csv(tmp_path / "items.csv", index=False)
    table.to_csv(tmp_path / "items.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "items.parquet")
    pairs = dict(zip(table["itemId"], table["Title"], strict=True))
    return {
        "mapping": pairs,
        "series": pd.Series(pairs),
        "pandas": table,
        "indexed": table.set_index("itemId"),
        "polars": pl.from_pandas(table),
        "arrow": pa.Table.from_pandas(table),
        "csv": tmp_path / "items.csv",
        "tsv": str(tmp_path / "items.tsv"),
        "parquet": tmp_path / "items.parquet",
        "titles": Titles.read(pairs),
    }


def test_titles_in_every_form(tmp_path):
    model = make_model()
    for form, titles in title_forms(tmp_path).items():
        found = model.recommend(["u03", "u05"], 2, titles=titles, unknown="popular")
        expected = [f"Film {item[1:]}" for item in found.to_arrow()["item_id"].to_pylist()]
        assert found.to_arrow()["title"].to_pylist() == expected, form
        plain = model.recommend(["u03", "u05"], 2, unknown="popular")
        assert plain.to_pandas(titles=titles)["title"].tolist() == expected, form
        assert model.similar_items("i1", 1, titles=titles, output="polars")["title"].to_list() == ["Film 1"], form
        assert next(model.recommend_chunks(titles=titles, k=1)).to_arrow()["title"].null_count == 0


def test_titles_of_numbered_items():
    for kind in ("matrix", "number"):
        model = make_model(kind)
        found = model.recommend([3], 2)
        expected = [f"no. {item}" for item in found.ids[0]]
        for titles in ([f"no. {n}" for n in range(I)], {str(n): f"no. {n}" for n in range(I)}):
            assert found.to_arrow(titles=titles)["title"].to_pylist() == expected
        numbered = pa.table({"id": pa.array(range(I), pa.int16()), "label": [f"no. {n}" for n in range(I)]})
        assert found.to_arrow(titles=numbered, title_column="label")["title"].to_pylist() == expected
        array = np.array([f"no. {n}" for n in range(I)])
        assert model.search(model.user_factors[0], 1, titles=array).to_arrow()["title"].to_pylist()[0].startswith("no.")


def test_titles_that_are_missing_or_repeated(tmp_path):
    titles = pa.table({"id": ["i1", "i1", "i2"], "title": ["first", "second", None]})
    known = Titles.read(titles)
    assert known.of(np.array(["i2", "i1", "i9"], object)).to_pylist() == [None, "first", None] and len(known) == 3
    assert Titles.read({"i1": None, "i2": float("nan"), "i3": 7}).of(np.array(["i1", "i2", "i3"])).to_pylist() == [
        None,
        None,
        "7",
    ]
    for missing in (pd.NA, pd.NaT, np.nan, None):  # whose comparison with itself is no bool, in one case
        assert Titles.read({"i1": "x", "i2": missing}).of(np.array(["i1", "i2"])).to_pylist() == ["x", None]
    nullable = pd.Series(["x", pd.NA], index=["i1", "i2"], dtype="string")
    assert Titles.read(nullable).of(np.array(["i1", "i2"])).to_pylist() == ["x", None]
    path = tmp_path / "items.csv"
    path.write_text('item_id,title,text\ni1,"One, two","a\nb"\ni2,"He said ""no""",\n')
    assert Titles.read(path).of(np.array(["i1", "i2"])).to_pylist() == ["One, two", 'He said "no"']


def test_titles_are_found_however_many_there_are():
    """A few of many are looked up by halves; of a repeated id the first title counts in either case."""
    ids = [f"i{k % 900}" for k in np.random.default_rng(0).permutation(1000)]
    titles = Titles(pa.array(ids, pa.large_string()), pa.array([f"no. {k}" for k in range(1000)], pa.large_string()))
    for wanted in (["i0", "nothing", "i899", "i5", None], [*dict.fromkeys(ids), "nothing"]):
        got = titles.of(pa.array(wanted)).to_pylist()
        assert got == [f"no. {ids.index(one)}" if one in ids else None for one in wanted]


def test_titles_are_compared_with_the_ids_of_a_model_once(monkeypatch):
    model, titles = make_model(), Titles.read({"i0": "x"})
    model.recommend("u03", titles=titles)
    monkeypatch.setattr("wals_gpu.data.titles.pc", None)  # nothing is computed
    model.recommend("u03", titles=titles)


def test_titles_of_other_items_are_noticed():
    number, text = make_model("number"), make_model()
    for model, user, titles, message in (
        (
            number,
            3,
            {f"{n:02}": "x" for n in range(I)},
            "none of the 8 titles .* such as '00', the model has such as 0",
        ),
        (number, 3, pd.Series({1.0: "x"}), "none of the 1 titles is of an item of the model: .* such as '1.0'"),
        (text, "u03", {n: "x" for n in range(I)}, "such as '0', the model has such as 'i0'"),
    ):
        with pytest.warns(ParameterWarning, match=message):
            assert model.recommend(user, titles=titles).to_arrow()["title"].null_count > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        number.recommend(3, titles={0: "one is enough", "strange": "x"})
        text.recommend("u03", titles={})
    with pytest.raises(DataError, match="titles is a list, which is for items that are numbers; these have texts"):
        text.recommend("u03", titles=["a"] * I)
    with pytest.raises(DataError, match="titles is a list"):
        text.recommend("u03").to_pandas(titles=["a"] * I)
    with pytest.raises(TypeError, match=r"titles must be texts, got \('i0', 'x'\); pairs .*: dict\(pairs\)"):
        text.recommend("u03", titles=[("i0", "x")])


def test_whatever_an_id_is_a_line_stays_a_line():
    table = format_table(
        ["id", "n"], [["a\nb\x1b[31m\t\u202e\ud800", 1], ["x" * 5000, 22], ["\u00e4 \u4e2d \U0001f600", 3]]
    )
    lines = table.splitlines()
    assert len(lines) == 5 and max(map(len, lines)) == 104 and lines[3].startswith("x" * 97 + "...")
    assert lines[2].startswith(r"a\nb\x1b[31m\t\u202e\ud800 ") and lines[4].startswith("\u00e4 \u4e2d \U0001f600 ")


def test_columns_stand_below_each_other_in_every_script():
    """As a terminal shows them, where a character of Chinese or Japanese takes two columns and an accent none."""
    lines = format_table(["item", "n"], [["東京", 1], ["e\u0301", 2], ["plain", 3]]).splitlines()
    assert lines == ["item   n", "-----  -", "東京   1", "e\u0301      2", "plain  3"]


def test_titles_that_cannot_be_used(tmp_path):
    model = make_model()
    table = pa.table({"item_id": ["i1"], "text": ["a film"], "price": [1.5]})
    for titles, column, error, message in (
        (
            table,
            None,
            DataError,
            "title_column must be given, since no column has a usual name such as 'title'; the ta",
        ),
        (
            table,
            "heading",
            DataError,
            "title_column='heading' is not there; the table has the columns 'item_id', 'text'",
        ),
        (table, "price", DataError, "titles must be texts or integers, got double in column 'price'"),
        (table.select(["text"]), "text", DataError, "titles must have a column of item ids that is named like"),
        (
            pa.table({"id": [None, "a"], "title": ["b", "c"]}),
            None,
            DataError,
            "must have an id in every row, got 1 null",
        ),
        (tmp_path / "none.csv", None, FileNotFoundError, "none.csv"),
        (7, None, TypeError, "titles must be a mapping of item id to title, a list of titles, a table, or the path of"),
        (None, "text", ValueError, "title_column has a meaning only with titles="),
    ):
        for ask in (model.recommend, model.similar_items):
            with pytest.raises(error, match=message):
                ask("u03" if ask == model.recommend else "i1", titles=titles, title_column=column)
    assert model.recommend("u03", titles=table, title_column="text").layout.titles is not None


# For people


def test_recommendations_show_themselves():
    model = make_model()
    found = model.recommend(["u03", "who"], 2, unknown="popular", titles={"i0": "<b>Nought</b> & co"})
    lines = str(found).splitlines()
    assert lines[0].split() == ["user_id", "rank", "item_id", "score", "title", "source"] and len(lines) == 6
    assert lines[2].startswith("u03") and lines[-1].endswith("popularity") and repr(found) == str(found)
    assert f" {found.scores[1, 0]:.0f} " in lines[4] and f" {found.scores[0, 0]:.4f} " in lines[2]
    page = Page(found._repr_html_())
    assert page.lines[0] == ["user_id", "rank", "item_id", "score", "title", "source"] and len(page.lines) == 5
    assert "<b>Nought" not in found._repr_html_() and "<b>Nought</b> & co" in page.text
    warm = model.recommend(["u03", "u01"], 2)
    assert "source" not in str(warm)  # says nothing where it is the same for all
    many = model.recommend(model.user_ids.ids, 2)
    assert len(str(many).splitlines()) == 2 + 20 + 1
    n = int((many.scores > -np.inf).sum())
    assert str(many).endswith(f"... and {n - 20} more rows") and f"... and {n - 20} more rows" in many._repr_html_()
    assert len(str(model.recommend([], 2)).splitlines()) == 2
    Page(model.similar_items(["i1", "i2"], 3)._repr_html_()), Page(next(model.recommend_chunks())._repr_html_())


def test_explanations_show_themselves():
    prior = LinearPrior(np.random.default_rng(0).random((U, 3)))
    for model in (make_model("matrix"), make_model("matrix", user_prior=prior)):
        for k in (2, I):
            why = model.explain(3, 7, k)
            lines = str(why).splitlines()
            names = [line.split("  ")[0].strip() for line in lines[2:]]
            assert names[: len(why.ids)] == [str(item) for item in why.ids] and names[-1] == "(score)"
            assert ("(prior of the user)" in names) == (model.user_prior is not None)
            assert ("(other items)" in names) == (k == 2)
            adds = [float(line.split()[-1]) for line in lines[2:]]
            assert sum(adds[:-1]) == pytest.approx(adds[-1], abs=1e-3)
            assert [line[0] for line in Page(why._repr_html_()).lines[1:]] == names


def test_models_and_what_belongs_to_them_show_themselves():
    rng = np.random.default_rng(0)
    prior = LinearPrior(rng.random((I, 3)), strength=rng.random(I) + 1, learn="empirical_bayes")
    model = WALS(3, "hu", iterations=3, item_prior=prior)
    cells = dict(Page(model._repr_html_()).lines)
    assert cells["iterations"] == "3, not fitted yet" and cells["factors"] == "3"
    model.fit(make_matrix(), validation=0.3)
    cells = dict(Page(model._repr_html_()).lines)
    assert cells["size"] == f"{U} users, {I} items" and cells["iterations"] == "3 of 3" and "ndcg@10" in cells
    assert dict(Page(prior._repr_html_()).lines)["embeddings"] == f"{I} x 3"
    cells = dict(Page(model.item_prior_._repr_html_()).lines)
    assert cells["map"] == "3 features to 3 factors" and "strength was multiplied by" in cells
    assert repr(model.item_prior_).startswith("FittedPrior(LinearPrior(embeddings (8, 3)")
    estimate = model.estimate_memory(10**6, 10**5, 10**8)
    assert [line[0] for line in Page(estimate._repr_html_()).lines] == [
        line.split()[0] for line in str(estimate).splitlines()
    ]
    lines = str(model.history_).splitlines()
    assert lines[0].split() == ["iteration", "loss", "seconds", "validation", "item_strength"] and len(lines) == 5
    assert len(Page(model.history_._repr_html_()).lines) == 4
    assert str(History()) == "no iterations" and "no iterations" in Page(History()._repr_html_()).text
    some = History([FitRecord(1, 2.0, 0.1), FitRecord(2, 1.0, 0.1, validation=0.5)])
    assert str(some).splitlines()[2].split() == ["1", "2.0000", "0.1000"]


def test_html_is_the_same_table_as_text():
    header, rows = ["name", "n", "x"], [["<a>", 1, 0.5], ['"b"', 22, 1.0]]
    page = Page(html_table(header, rows, "R&D"))
    assert page.lines == [header, ["<a>", "1", "0.5000"], ['"b"', "22", "1.0000"]] and page.text.startswith("R&D")
    assert format_table(header, rows).splitlines()[2].split() == page.lines[1]
    assert Page(html_table(header, [])).lines == [header]
    assert Page(html_table([], [["only", "cells"]])).lines == [["only", "cells"]]
