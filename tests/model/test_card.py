"""The page about a model: what it says, that it stays a person's, and that it tells on nobody."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from wals_gpu import WALS
from wals_gpu.evaluation import evaluate, random_holdout


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"who": [f"secret{n}" for n in rng.integers(0, 30, 400)]})
    table["what"] = [f"hidden{n}" for n in rng.integers(0, 20, 400)]
    table["when"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(np.arange(400), "h")
    return table.drop_duplicates(["who", "what"])


COLUMNS = {"user_column": "who", "item_column": "what", "time_column": "when"}


@pytest.fixture(scope="module")
def model(table):
    return WALS(4, iterations=3, num_threads=1).fit(table, validation=0.2, **COLUMNS)


def test_what_it_says(model, table, tmp_path):
    model.save(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    n_users, n_items = len(set(table["who"])), len(set(table["what"]))
    best = model.history_[model.best_iteration_ - 1].validation
    for line in (
        f"| users | {n_users} |", f"| items | {n_items} |", f"| interactions | {model.fitted.seen.nnz} |",
        "| from | 2026-01-01T00:00:00.000000 |", "| objective | wals |", "| factors | 4 |", "| iterations | 3 of 3 |",
        f"| ndcg@10 (validation) | {best:.4f} |", f"| numpy | {np.__version__} |", "library_name: wals_gpu",
    ):  # fmt: skip
        assert line in card.splitlines(), line
    assert not re.search("secret|hidden", card), "ids are nobody's business"
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1 and compile(blocks[0], "card", "exec")


def test_its_front_is_yaml(model, table, tmp_path):
    yaml = pytest.importorskip("yaml")
    train, test = random_holdout(table, 0.2, **COLUMNS)
    fitted = WALS(4, iterations=3, num_threads=1).fit(train)
    report = evaluate(fitted, train, test, 5)
    fitted.save(tmp_path, metrics=report)
    front = yaml.safe_load((tmp_path / "README.md").read_text("utf-8").split("---\n")[1])
    (result,) = front["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["ndcg@5"] == pytest.approx(report.results["wals"]["ndcg@5"].value, rel=1e-5)
    loaded = WALS.load(tmp_path)
    assert loaded.measured_.values == report.results["wals"] and "users evaluated" in loaded.measured_.about
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_bytes() == (tmp_path / "README.md").read_bytes()
    assert loaded.period_ == fitted.period_ and loaded.period_.last > loaded.period_.first
    loaded.fit(train)
    assert loaded.measured_ is None, "they were of the fit before"


def test_metrics_of_several_models_are_not_those_of_one(model, table, tmp_path):
    train, test = random_holdout(table, 0.2, **COLUMNS)
    models = {name: WALS(n, iterations=2, num_threads=1).fit(train) for name, n in (("a", 4), ("b", 2))}
    report = evaluate(models, train, test, 5, confidence=0.9, n_resamples=20, n_permutations=0)
    with pytest.raises(
        ValueError, match=r"metrics must be of the model that is saved, got those of 'a', 'b': give rep"
    ):
        models["b"].save(tmp_path / "b", metrics=report)
    assert not (tmp_path / "b").exists()
    models["b"].save(tmp_path / "b", metrics=report.results["b"])
    assert WALS.load(tmp_path / "b").measured_.values == report.results["b"]
    report = evaluate(models["b"], train, test, 5, confidence=0.9, n_resamples=20)
    report.results["wals"]["gini@5"] = report.results["wals"]["gini@5"]._replace(value=float("nan"))  # of no list
    models["b"].save(tmp_path / "b", metrics=report)
    values = WALS.load(tmp_path / "b").measured_.values
    assert "gini@5" not in values and values["ndcg@5"] == (report.results["wals"]["ndcg@5"].value, None, None)


def test_the_same_model_makes_the_same_page(model, tmp_path):
    for name in ("a", "b"):
        model.save(tmp_path / name)
    assert (tmp_path / "a" / "README.md").read_bytes() == (tmp_path / "b" / "README.md").read_bytes()


def test_a_page_that_was_edited_stays(model, table, tmp_path):
    model.save(tmp_path)
    page = tmp_path / "README.md"
    first = page.read_text("utf-8")
    other = WALS(3, iterations=1, num_threads=1).fit(table, **COLUMNS)
    other.save(tmp_path)  # nobody has touched it
    assert page.read_text("utf-8") != first and "| factors | 3 |" in page.read_text("utf-8")
    edited = page.read_text("utf-8").replace("# A model of wals_gpu", "# For the shop")
    for text in (edited, "mine", edited + "\n"):
        page.write_text(text, "utf-8")
        with pytest.warns(UserWarning, match=r"README\.md was not written by a save, or was edited since: it is left"):
            model.save(tmp_path)
        assert page.read_text("utf-8") == text and WALS.load(tmp_path).factors == 4
    page.unlink()
    assert WALS.load(tmp_path).factors == 4
    model.save(tmp_path)
    assert page.read_text("utf-8") == first


def test_metrics_of_a_wrong_kind(model, tmp_path):
    for wrong, message in (
        (3, "metrics must be what evaluate gave, or a mapping of names to numbers"),
        ({"ndcg@5": "high"}, r"metrics\['ndcg@5'\] must be a finite number|must be a"),
        ({"ndcg@5": float("nan")}, r"metrics\['ndcg@5'\] must"),
        ({5: 0.1}, "metrics must be what evaluate gave"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            model.save(tmp_path / "new", metrics=wrong)
    assert not (tmp_path / "new").exists()
    model.save(tmp_path, metrics={"a | b\n": 0.5})
    assert "| a \\| b | 0.5000 |" in (tmp_path / "README.md").read_text("utf-8")


def test_a_damaged_file_of_metrics_or_times_is_refused(model, tmp_path):
    from wals_gpu.data.files import load_folder, save_folder

    model.save(tmp_path / "m", metrics={"x": 1.0})
    tensors, metadata = load_folder(tmp_path / "m")
    assert json.dumps(metadata["period"]).startswith('["2026-01-01T')
    for wrong in (
        {"measured": 3}, {"measured": {"values": [["x"]], "about": ""}}, {"measured": {"values": [["x", None, 1, 1]]}},
        {"period": [1]}, {"period": ["soon", "later"]}, {"period": ["NaT", "NaT"]}, {"period": [1, "2026"]},
    ):  # fmt: skip
        save_folder(tmp_path / "wrong", tensors, metadata | wrong)
        with pytest.raises(ValueError, match="is not a model that this version can read"):
            WALS.load(tmp_path / "wrong")
