"""The page of ``write_report``: what it says is right, whatever text it holds is text, and everybody can read it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, as_interactions
from wals_gpu.evaluation import (
    Estimate,
    EvaluationReport,
    Popularity,
    evaluate,
    random_holdout,
    sample_negatives,
    strong_generalisation_split,
)
from wals_gpu.report import charts, write_report
from wals_gpu.report.lists import calibration
from wals_gpu.report.sections import popularity_shares
from wals_gpu.report.statistics import DataStatistics, concentration
from wals_gpu.report.style import PALETTES
from wals_gpu.tuning.problem import Outcome
from wals_gpu.tuning.result import Comparison as Compared
from wals_gpu.tuning.result import Trials, Tuning
from wals_gpu.tuning.search import Finished

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "<script>alert(1)</script>\"'&amp;<b>"
RIGHT_TO_LEFT = "\u0645\u0631\u062d\u0628\u0627 \u202e(1999)"
LONG = "wide" * 2500


class Node:
    """An element of a page: its tag, attributes, children, and all text below it."""

    def __init__(self, tag, attributes=()):
        self.tag, self.attributes, self.children, self.parts = tag, dict(attributes), [], []

    def all(self, *tags):
        found = []
        for child in self.children:
            found += [child] if not tags or child.tag in tags else []
            found += child.all(*tags)
        return found

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts).replace("\u00a0%", " %")


class Page(HTMLParser):
    """A tree; every end tag must be that of the element that is open."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.root = Node("page")
        self.open = [self.root]
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [self.root]
        self.ids = [node.attributes["id"] for node in self.root.all() if "id" in node.attributes]

    def handle_starttag(self, tag, attributes):
        node = Node(tag, attributes)
        self.open[-1].children.append(node)
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].parts.append(data)


def tastes(n_users=90, n_items=24):
    rng = np.random.default_rng(0)
    same = np.arange(n_users)[:, None] % 3 == np.arange(n_items) % 3
    return csr_matrix((rng.random((n_users, n_items)) < np.where(same, 0.8, 0.1)).astype("float32"))


def table_of(matrix):
    coo = matrix.tocoo()
    time = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(coo.nnz), unit="h")
    return pd.DataFrame({"user": [f"u{r:02}" for r in coo.row], "item": [f"i{c:02}" for c in coo.col], "time": time})


@pytest.fixture(scope="module")
def made():
    """Two models of a log, compared; one row is there twice."""
    table = table_of(tastes())
    data = as_interactions(pd.concat([table, table[:1]]), time_column="time")
    train, test = random_holdout(data, 0.3, per_user=True)
    models = {}
    for name, factors in (("three", 3), ("one", 1)):
        models[name] = WALS(factors, num_threads=1).fit(train, validation=0.1, metric="ndcg@5")
    report = evaluate(models, train, test, (5, 10), few_shot=4)
    return SimpleNamespace(data=data, train=train, test=test, models=models, report=report)


def fake_tuning(n=1000):
    rng = np.random.default_rng(0)
    names = ("background", "regularization", "nu", "exponent", "damping", "init_scale", "over_relaxation")
    trials = []
    for number in range(n):
        settings = {name: float(rng.lognormal()) for name in names} | {"factors": int(2 ** rng.integers(5, 9))}
        outcome = Outcome(float(rng.random()), 0.1, 8, 0.4, (0.3, 0.4), number < 9, 1.25)
        trials.append(Finished(number, settings, outcome))
    compared = Compared(*(Estimate(v, v - 0.01, v + 0.01) for v in (0.3, 0.2, 0.1)), Estimate(0.1, 0.09, 0.11), 500)
    return Tuning(
        best_settings={"factors": 64, "nu": 0.5}, model=None, metric="ndcg@20", validation_score=0.4,
        best_score=compared.best, comparison=compared, trials=Trials(trials), confirmed=[], prior=None,
        neighbor_trials=[], edges={}, notes=[f"held out {HOSTILE}"], config={},
        interrupted=False, seconds=12.0, study=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    titles = {f"i{c:02}": (HOSTILE, RIGHT_TO_LEFT, LONG, "one\x00 two")[c % 4] for c in range(24)}
    path = write_report(
        tmp_path_factory.mktemp("page") / "report.html", made.report, model=made.models, train=made.train,
        test=made.test, data=made.data, titles=titles, title=f"Title {HOSTILE}",
        settings={"split": HOSTILE, "file": "half \ud800 of a character"},
    )  # fmt: skip
    return Page(path)


# --------------------------------------------------------------------------------------------------- what it says


def section(page, slug):
    return next(node for node in page.root.all("section") if node.attributes["id"] == slug)


def rows_of(table):
    return [[cell.text for cell in row.all("th", "td")] for row in table.all("tr")]


def test_the_first_sentence_is_the_answer(page, made):
    one = made.report.between("three", "one")["ndcg@5"]
    popular = made.report.between("three", "popularity")["ndcg@5"]
    assert one.is_clear and popular.is_clear
    headline = page.root.all("h1")[0].text
    assert headline in (
        f"three ranks {100 * (one.ratio - 1):.1f} % better than one",
        f"three ranks {one.ratio:.1f} times as well as one",
    )  # fmt: skip
    first, second = (node.text for node in page.root.all("p") if node.attributes.get("class") == "lead")
    assert f"a difference of {one.value:.4f}, interval {one.low:.4f} to {one.high:.4f}, p < 0.001 (Holm)" in first
    assert f"95 % interval {popular.ratio_low:.2f} to {popular.ratio_high:.2f} times" in second


def test_a_report_of_one_model_has_the_same_sentence_beside_popularity(made, tmp_path):
    train, test, model = made.train.matrix, made.test.matrix, WALS(3, num_threads=1).fit(made.train.matrix)
    report = evaluate(model, train, test, 5)
    page = Page(write_report(tmp_path / "r.html", report))
    ours, popular = (report.results[name]["ndcg@5"].value for name in ("wals", "popularity"))
    assert page.root.all("h1")[
        0
    ].text == f"wals ranks {ours / popular:.{2 if ours < 2 * popular else 1}f} times as " + ("well as popularity")
    assert [one.attributes["id"] for one in page.root.all("section")] == ["metrics", "differences", "popularity"]
    flat = evaluate({"a": Popularity(train), "b": Popularity(train)}, train, test, 5)
    assert Page(write_report(tmp_path / "r.html", flat)).root.all("h1")[0].text == "a and b cannot be told apart"
    alone = evaluate(model, train, test, 5, baseline=False, n_resamples=0)
    text = Page(write_report(tmp_path / "r.html", alone)).root.all("h1")[0].text
    assert text == f"wals: ndcg@5 is {alone.results['wals']['ndcg@5'].value:.4f}"


def test_metrics_differences_and_cohorts_are_those_of_the_evaluation(page, made):
    shown = rows_of(section(page, "metrics").all("table")[0])
    for name, values in made.report.results.items():
        one = values["ndcg@5"]
        assert [f" {name}", f"{one.value:.4f}", f"{one.low:.4f} to {one.high:.4f}", ""] in shown
    every = rows_of(section(page, "metrics").all("table")[1])
    assert [row[0] for row in every[1:]] == list(made.report.results["three"])
    differences = rows_of(section(page, "differences").all("table")[0])
    one = made.report.between("one", "popularity")["recall@10"]
    assert any(row[0] == "one \u2212 popularity" and row[1] == f"{one.value:.4f}" for row in differences)
    cohorts = section(page, "cohorts").text
    for name, part in made.report.cohorts.items():
        assert f"{name}: {part.users:,} users, {part.entries:,} hidden items" in cohorts


def test_sections_are_there_in_order_and_linked(page):
    slugs = [
        "metrics",
        "differences",
        "cohorts",
        "popularity",
        "calibration",
        "examples",
        "training",
        "data",
        "settings",
    ]
    assert [node.attributes["id"] for node in page.root.all("section")] == slugs
    links = [node.attributes["href"] for node in page.root.all("a")]
    assert links == ["#content", *(f"#{slug}" for slug in slugs)] and "content" in page.ids


def test_the_data_in_numbers(page, made):
    tiles = {node.children[0].text: node.children[1].text for node in section(page, "data").all("dl")[0].all("div")}
    n_entries = made.data.matrix.nnz
    assert tiles["entries"].startswith(f"{n_entries:,}") and tiles["repeated rows"].startswith("1")
    assert tiles["time span"].startswith("2024-01-01")
    statistics = DataStatistics.of(made.data)
    assert statistics.repeats == 1 and sum(statistics.periods[1]) == n_entries
    names, users = statistics.activity()
    per_user = np.diff(made.data.matrix.indptr)
    assert sum(users) == 90
    assert dict(zip(names, users, strict=True))["5\u20138"] == ((per_user > 4) & (per_user < 9)).sum()
    x, y = concentration(np.array([1, 7, 0, 2]))
    assert dict(zip(x.tolist(), y.tolist(), strict=True)) == {0.0: 0.0, 0.25: 0.7, 0.5: 0.9, 0.75: 1.0, 1.0: 1.0}


def test_head_middle_and_tail():
    per_item = np.array(
        [1, 6, 3, 2, 3, 1, 2]
    )  # in order of popularity 6 3 3 2 2 1 1: head 6, middle 3 3, tail the rest
    found = popularity_shares(per_item, {"all": per_item, "lists": np.array([0, 5, 0, 0, 4, 1, 0])})
    assert found["all"] == pytest.approx([6 / 18, 6 / 18, 6 / 18]) and found["lists"] == pytest.approx([0.5, 0.4, 0.1])
    assert found["items"] == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def test_hits_by_score_are_counted(made):
    from wals_gpu.evaluation.task import Task

    model = made.models["three"]
    task = Task.make({"three": model}, made.train, made.test, None, None, True, [10], None, {})
    bins = calibration(task, model, 10, 0)
    ids, scores = model.recommend(made.train.user_ids.ids, 10, deny=made.train.matrix)  # some it has not seen
    pairs = []
    for user, items, values in zip(made.train.user_ids, ids, scores, strict=True):
        row = made.test.matrix[made.test.user_ids.index_of(user)]
        hidden = set(made.test.item_ids.take(row.indices))
        pairs += [(s, item in hidden) for item, s in zip(items, values, strict=True) if item is not None]
    pairs.sort(key=lambda pair: pair[0])
    assert sum(one.n for one in bins) == len(pairs) and len(bins) == 10
    first = pairs[: bins[0].n]
    assert bins[0].hits == sum(hit for _, hit in first) and bins[0].score == pytest.approx(
        np.mean([s for s, _ in first])
    )
    assert bins[-1].low < bins[-1].share < bins[-1].high and bins[-1].share > bins[0].share


def test_lists_have_hits_and_reasons(page, made):
    cards = section(page, "examples").all("article")
    assert len(cards) == 8 and "because of" in cards[0].text
    user = re.match(r"User (u\d\d) three", cards[0].text)[1]
    ids, _ = made.models["three"].recommend(user, 6, deny=made.train.matrix[made.train.user_ids.index_of(user)])
    row = made.test.matrix[made.test.user_ids.index_of(user)]
    hidden = set(made.test.item_ids.take(row.indices))
    lines = rows_of(cards[0].all("table")[0])[1:]
    assert [("found" in line[3]) for line in lines] == [item in hidden for item in ids]
    assert all(item in line[1] for item, line in zip(ids, lines, strict=True))


@pytest.mark.filterwarnings("ignore:.*fewer items of a category than quotas want")
@pytest.mark.parametrize("least", [3, 8])
def test_lists_are_the_beginnings_of_those_that_were_measured(made, tmp_path, least):
    """Of which quotas make others where they are to be shorter, or, from 7 items that must be there on, none."""
    model = made.models["one"]
    options = {"quotas": {"rare": (least, None)}, "categories": ["usual", "rare"] * 12}
    report = evaluate(model, made.train, made.test, 10, options=options, n_resamples=0, baseline=False)
    path = tmp_path / "r.html"
    page = Page(write_report(path, report, model=model, train=made.train, test=made.test, options=options))
    cards = section(page, "examples").all("article")
    assert len(cards) == 4
    for card in cards:
        user = re.match(r"User (u\d\d) wals", card.text)[1]
        ids, _ = model.recommend(user, 10, deny=made.train.matrix[made.train.user_ids.index_of(user)], **options)
        assert [line[1][:3] for line in rows_of(card.all("table")[0])[1:]] == ids[:6].tolist()
    assert section(page, "calibration").all("figure")


@pytest.mark.parametrize("is_fold_in", [False, True])
def test_lists_are_of_the_candidates(tmp_path, is_fold_in):
    (train, test), fold_in = random_holdout(tastes(), 0.3), None
    if is_fold_in:
        train, fold_in, test = strong_generalisation_split(tastes(), 30, 0.4)[:3]
    candidates = sample_negatives(train if fold_in is None else fold_in, test, 3)
    model = WALS(3, num_threads=1).fit(train)
    given = {"train": train, "test": test, "fold_in": fold_in, "candidates": candidates}
    report = evaluate(model, **given, ks=5, n_resamples=0)
    page = Page(write_report(tmp_path / "r.html", report, model=model, **given))
    cards = section(page, "examples").all("article")
    assert len(cards) == 4
    for card in cards:
        user = int(re.match(r"User (\d+) ", card.text)[1])
        listed = {int(line[1].split("because")[0]) for line in rows_of(card.all("table")[0])[1:]}
        assert listed and listed <= set(candidates[user].indices.tolist())


def test_a_model_of_several_says_which_it_is(made, tmp_path):
    with pytest.raises(
        ValueError, match="model must be a dict of models by name, as evaluation is of several: 'three'"
    ):
        write_report(tmp_path / "r.html", made.report, model=made.models["one"])
    assert not list(tmp_path.iterdir())


def test_long_names_that_end_differently_stay_apart(made, tmp_path):
    models = {f"{'models/' * 20}{name}": model for name, model in made.models.items()}
    report = evaluate(models, made.train, made.test, 5, n_resamples=0, n_permutations=0)
    given = {"model": models, "train": made.train, "test": made.test}
    page = Page(write_report(tmp_path / "r.html", report, **given))
    headline = page.root.all("h1")[0].text
    assert "models/three" in headline and "models/one" in headline and len(headline) < 130
    captions = [table.all("caption")[0].text for table in section(page, "settings").all("table")]
    assert len(set(captions)) == 2 and all(caption.startswith("Model models/") for caption in captions)


def test_lists_with_what_people_have(tmp_path):
    train = tastes()
    model = WALS(3, num_threads=1).fit(train)
    report = evaluate(model, train, train, 5, filter_seen=False, n_resamples=0)
    given = {"model": model, "train": train, "test": train}
    page = Page(write_report(tmp_path / "r.html", report, filter_seen=False, **given))
    assert "found" in section(page, "examples").text
    with pytest.raises(ValueError, match=f"{train.nnz} test entries are among the user's seen items"):
        write_report(tmp_path / "r.html", report, **given)


def test_the_trials_of_a_search(tmp_path):
    tuning = fake_tuning(30)
    page = Page(write_report(tmp_path / "r.html", tuning=tuning))
    assert page.root.all("h1")[0].text == "The settings that 30 trials found rank 50.0 % better than the defaults"
    whole = [one for one in tuning.trials if one.outcome.is_whole]
    best = max(whole, key=lambda one: one.outcome.score)  # others were ended early, with the score of fewer users
    assert best.outcome.score < max(one.outcome.score for one in tuning.trials)
    assert f"the best has {charts.short(best.outcome.score, 4)}." in section(page, "tuning").all("figure")[0].text
    table = next(t for t in section(page, "tuning").all("table") if t.all("caption")[0].text == "The ten best trials")
    assert rows_of(table)[1][:2] == [str(best.number), f"{best.outcome.score:.4f}"] and len(rows_of(table)) == 11
    assert [row[-1] for row in rows_of(table)[1:]] == ["yes"] * 9 + ["ended early"]
    dots = [node for node in page.root.all("path") if node.attributes.get("class", "").startswith("dots")]
    assert {node.attributes["d"].count("M") for node in dots} == {30}
    noise = dataclasses.replace(tuning.comparison, gain=Estimate(0.001, -0.01, 0.02))
    worse = dataclasses.replace(tuning.comparison, gain=Estimate(-0.1, -0.12, -0.05))
    for compared, text in ((noise, "30 trials found nothing that is clearly better"), (worse, "found nothing better")):
        path = write_report(tmp_path / "r.html", tuning=dataclasses.replace(tuning, comparison=compared))
        assert text in Page(path).root.all("h1")[0].text


def test_curves_of_a_fit(page, made, tmp_path):
    training = section(page, "training")
    assert [node.text for node in training.all("title")] == [
        "Loss of three by iteration", "Loss of one by iteration", "Validation by iteration",
    ]  # fmt: skip
    numbers = rows_of(training.all("table")[0])
    history = made.models["three"].history_
    assert len(numbers) == len(history) + 1 and numbers[1] == ["1", charts.short(history[0].loss)]
    only_model = Page(write_report(tmp_path / "r.html", model=made.models["three"]))
    assert [one.attributes["id"] for one in only_model.root.all("section")] == ["training", "settings"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234, "1,234"), (0.01234, "0.0123"), (-2.5, "\u22122.5"), (12_345_678, "12.3\u00a0M"), (0.0, "0"),
     (1e-7, "1.00e-07"), (float("nan"), "nan"), (None, ""), (True, "yes"), ("text", "text"), (123456.7, "123,457")],
)  # fmt: skip
def test_numbers_in_words(value, text):
    assert charts.short(value) == text


# ------------------------------------------------------------------------------------------------ whatever it holds


def test_text_stays_text(page):
    assert not page.root.all("script", "b", "iframe", "object", "img", "form")
    assert HOSTILE in section(page, "examples").text and f"Title {HOSTILE}" in page.root.all("p")[0].text
    assert HOSTILE in section(page, "settings").text
    assert not [name for node in page.root.all() for name in node.attributes if name.startswith("on")]
    assert RIGHT_TO_LEFT in [node.text for node in page.root.all("bdi") if node.attributes["dir"] == "auto"]
    longest = max(len(node.text) for node in page.root.all("bdi"))
    assert longest <= 160 and LONG[:100] in page.source and LONG[:200] not in page.source
    assert "one\ufffd two" in page.source and "half \ufffd of a character" in page.source and "\x00" not in page.source


def test_a_large_page_is_small(tmp_path):
    """300,000 items, 1,000 trials, long names."""
    n_items, rng = 300_000, np.random.default_rng(0)
    per_user = {"ndcg@20": rng.random(500), "recall@20": rng.random(500)}
    names = [f"{'model ' * 30}{number}" for number in range(5)] + ["popularity"]
    results = {name: {metric: Estimate(0.5, 0.4, 0.6) for metric in per_user} for name in names}
    counts = {20: rng.zipf(1.5, n_items).clip(max=10**6)}
    report = EvaluationReport(
        results, dict.fromkeys(names, per_user), np.arange(500), 0, {}, recommended=dict.fromkeys(names, counts)
    )
    item = np.minimum(rng.zipf(1.3, 400_000), n_items) - 1
    data = csr_matrix((np.ones(len(item), "float32"), (rng.integers(0, 5000, len(item)), item)), shape=(5000, n_items))
    path = write_report(tmp_path / "r.html", report, data=data, tuning=fake_tuning(1000))
    assert path.stat().st_size < 1_000_000
    Page(path)


def test_nothing_is_fetched(page):
    policy = next(n for n in page.root.all("meta") if n.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert not page.root.all("link")
    for node in page.root.all():
        assert "src" not in node.attributes and node.attributes.get("href", "#").startswith("#")
    style = page.root.all("style")[0].text
    assert "url(" not in style and "@import" not in style and "http" not in style


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("report.txt", {"train": 1}, r"path must end in .html, got .*report.txt"),
        (".", {"train": 1}, "path must be a file; .* is a folder"),
        ("none/report.html", {"train": 1}, "there is no folder .*none; make it first"),
        ("report.html", {}, "write_report needs something to show"),
    ],
)
def test_what_cannot_be_a_page_is_refused(tmp_path, path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / path, **arguments)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- for everybody


def test_landmarks_headings_and_names(page):
    root = page.root
    assert root.all("html")[0].attributes["lang"] == "en" and root.all("title")[0].text
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(root.all(tag)) == 1, tag
    assert root.all("nav")[0].attributes["aria-label"] == "Sections"
    levels = [int(node.tag[1]) for node in root.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
    assert len(set(page.ids)) == len(page.ids)
    for node in root.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert node.attributes.get(name, page.ids[0]) in page.ids
    first = root.all("body")[0].children[0]
    assert first.tag == "a" and first.attributes["href"] == "#content" and ":focus-visible" in page.source


def test_tables_and_pictures_can_be_heard(page):
    tables = page.root.all("table")
    assert len(tables) > 15
    for table in tables:
        assert table.children[0].tag == "caption" and table.children[0].text.strip()
        for cell in table.all("th"):
            assert cell.attributes["scope"] in ("col", "row", "rowgroup") and cell.text.strip()
        widths = {sum(int(cell.attributes.get("colspan", 1)) for cell in row.children) for row in table.all("tr")}
        assert len(widths) == 1
    for picture in page.root.all("svg"):
        if picture.attributes.get("role") == "img":
            assert [node.tag for node in picture.children[:2]] == ["title", "desc"]
            assert all(node.text.strip() for node in picture.children[:2])
    hidden = [n for n in page.root.all("svg") if n.attributes.get("aria-hidden") == "true"]
    inner = [n for n in hidden for n in n.all("svg")]
    assert len(hidden) + len(inner) + sum(n.attributes.get("role") == "img" for n in page.root.all("svg")) == len(
        page.root.all("svg")
    )
    for node in page.root.all("div"):
        if node.attributes.get("class") == "scroll":
            assert node.attributes["tabindex"] == "0" and node.attributes["aria-label"]
    regions = [node.attributes["aria-label"] for node in page.root.all() if node.attributes.get("role") == "region"]
    assert len(set(regions)) == len(regions)
    figures = page.root.all("figure")
    assert all(figure.all("table") for figure in figures)  # the numbers of each chart


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    a, b = sorted((luminance(one), luminance(other)), reverse=True)
    return (a + 0.05) / (b + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(theme):
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#ffffff") < 4.5
    colors = PALETTES[theme]
    for ground in ("page", "card", "tint"):
        for text in ("ink", "soft", "link", "good", "bad"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    for ground in ("page", "card"):
        for name in colors:
            if name.startswith(("series-", "part-")) or name == "mark":
                assert contrast(colors[name], colors[ground]) >= 3, (name, ground)
    assert set(PALETTES["light"]) == set(PALETTES["dark"])
