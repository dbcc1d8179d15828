"""Re-ranked lists against slow definitions in float64: place after place, each candidate looked at by itself."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ModelFitError, ParameterWarning
from wals_gpu.data.categories import Categories
from wals_gpu.evaluation import Popularity, evaluate, ranking_metrics
from wals_gpu.model import answers
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.retrieval import DPP, MMR
from wals_gpu.retrieval.quotas import Quotas
from wals_gpu.retrieval.rerank import SHARE, Reranking

NONE = [None] * 5


def cosines(vectors):
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1)
    return units @ units.T


def worth(diversity, chosen, items, relevance, similarity):
    """What each of some items is worth as the next one of a list of (positions in the pool) `chosen`."""
    if diversity is None or not chosen:
        return relevance[items]
    w = diversity.weight
    if isinstance(diversity, MMR):
        return (1 - w) * relevance[items] - w * similarity[np.ix_(items, chosen)].max(axis=1)
    kernel = (1 - SHARE) * similarity
    np.fill_diagonal(kernel, 1)

    def volume(some):
        sign, logarithm = np.linalg.slogdet(kernel[np.ix_(some, some)])
        assert sign > 0
        return logarithm

    return np.array([(1 - w) * relevance[i] + w * (volume([*chosen, i]) - volume(chosen)) for i in items])


def check_list(found, pool, scores, k, diversity=None, vectors=None, labels=None, quotas=NONE, cost=None, ends=None):
    """That a list (item numbers) is what the definitions say, up to what rounding decides; `pool` in rising order."""
    low, high = (scores.min(), scores.max()) if ends is None else ends
    relevance = (scores - low) / (high - low if high > low else 1) - (0 if cost is None else cost[pool])
    similarity = None if vectors is None else cosines(vectors[pool])
    chosen = []
    for place in range(k):
        bounds = {} if labels is None else quotas
        count = {label: sum(labels[pool[i]] == label for i in chosen) for label in bounds}
        there = {label: int((labels[pool] == label).sum()) for label in bounds}
        missing = {label: max(min(bounds[label][0], there[label]) - count[label], 0) for label in bounds}
        left = [i for i in range(len(pool)) if i not in chosen]
        left = [i for i in left if labels is None or count.get(labels[pool[i]], 0) < bounds[labels[pool[i]]][1]]
        if bounds and sum(missing.values()) >= k - place:
            left = [i for i in left if missing[labels[pool[i]]]]
        if not left:
            assert (found[place:] == -1).all()
            return
        values = worth(diversity, chosen, np.array(left), relevance, similarity)
        mine = left.index(int(np.flatnonzero(pool == found[place])[0]))
        assert values[mine] >= values.max() - 1e-6 * max(1, abs(values.max())), (place, found, values)
        equal = np.flatnonzero(values == values[mine])
        assert diversity is not None or mine == equal[0]
        chosen.append(left[mine])


def pools(rng, b, n, n_items):
    """Candidates of b users with scores in falling order, some users with fewer than n."""
    columns = np.stack([rng.permutation(n_items)[:n] for _ in range(b)]).astype(np.int32)
    scores = np.sort(rng.normal(size=(b, n)).round(1).astype(np.float32), axis=1)[:, ::-1].copy()
    scores[0] = 1  # nothing tells its candidates apart
    for row, left in enumerate(rng.integers(0, n + 1, b // 2), 1):
        columns[row, left:], scores[row, left:] = -1, -np.inf
    return columns, scores


def search_of(columns, scores):
    def search(rows, n, chunk):
        some = slice(None) if rows is None else rows
        yield slice(0, len(columns[some])), columns[some, :n], scores[some, :n]

    return search


@settings(max_examples=40)
@given(
    st.integers(0, 2**32), st.sampled_from([MMR, DPP, None]), st.sampled_from([0.1, 0.5, 0.9, 1.0]), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_lists_are_what_the_definitions_say(seed, kind, weight, has_quotas, has_penalty):
    rng = np.random.default_rng(seed)
    n_items, n, k, width = int(rng.integers(2, 40)), 30, int(rng.integers(1, 12)), int(rng.integers(1, 9))
    n = min(n, n_items)
    columns, scores = pools(rng, 6, n, n_items)
    vectors = rng.normal(size=(n_items, width)).astype(np.float32)
    vectors *= rng.choice(np.array([1e-30, 1, 1e30], np.float32))  # whose squares float32 does not have
    vectors[rng.integers(0, n_items, 3)] = 0
    vectors[rng.integers(0, n_items, 4)] = vectors[0]  # copies; and lists may be longer than the vectors are wide
    diversity = None if kind is None else kind(weight)
    counts, quotas, labels = rng.integers(0, 100, n_items), None, None
    if has_quotas:
        labels = rng.choice(list("abc"), n_items)
        quotas = {label: (int(rng.integers(0, 2)), int(rng.integers(1, 5))) for label in set(labels)}
        if sum(low for low, _ in quotas.values()) > k:
            quotas = dict.fromkeys(quotas, (0, 1))
    bounds = None if quotas is None else Quotas.of(quotas, Categories.read(labels, n_items, None))
    made = Reranking(diversity, None if diversity is None else vectors, bounds, 0.4 * has_penalty, counts)
    cost = 0.4 * np.log(1 + counts) / np.log(1 + max(counts.max(), 1)) if has_penalty else None
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)  # of quotas that cannot be met
        ((_, ids, values),) = list(made.chunks(search_of(columns, scores), k, n_items))
    for row in range(len(columns)):
        own = columns[row] >= 0
        order = np.argsort(columns[row][own])
        pool, score = columns[row][own][order], scores[row][own][order].astype(np.float64)
        assert ids[row].shape == (k,) and len(set(ids[row][ids[row] >= 0])) == (ids[row] >= 0).sum()
        of_item = dict(zip(pool.tolist(), score.tolist(), strict=True))
        np.testing.assert_array_equal(values[row], [of_item.get(int(i), -np.inf) for i in ids[row]])
        if len(pool):
            check_list(ids[row], pool, score, k, diversity, vectors, labels, quotas, cost)
        else:
            assert (ids[row] == -1).all()


# ---------------------------------------------------------------------------------------------------- quotas alone


@pytest.mark.parametrize("seed", range(8))
def test_quotas_give_the_best_of_all_lists(seed):
    """Without diversity, no set of k items that keeps to the quotas has a higher sum of scores."""
    rng = np.random.default_rng(seed)
    n, k = 9, int(rng.integers(2, 6))
    labels = rng.choice(list("abc"), n)
    labels[: 1 + seed % 2] = ""  # no category
    names = sorted(set(labels) - {""})
    quotas = {name: (int(rng.integers(0, 2)), int(rng.integers(1, 4))) for name in names}
    scores = np.sort(rng.random((1, n)), axis=1)[:, ::-1].copy()
    columns = rng.permutation(n)[None].astype(np.int32)
    score_of = dict(zip(columns[0].tolist(), scores[0].tolist(), strict=True))

    def keeps(some):
        counts = {name: sum(labels[i] == name for i in some) for name in names}
        return all(low <= counts[name] <= high for name, (low, high) in quotas.items())

    lists = [some for some in itertools.combinations(range(n), k) if keeps(some)]
    if sum(low for low, _ in quotas.values()) > k:
        return
    best = max((sum(score_of[i] for i in some) for some in lists), default=None)
    made = Reranking(quotas=Quotas.of(quotas, Categories.read(labels, n, None)))
    ((_, ids, _),) = list(made.chunks(search_of(columns, scores), k, n))
    found = ids[0][ids[0] >= 0].tolist()
    if best is None:  # no list is full: then as many as there may be
        assert len(found) < k
    else:
        assert keeps(found) and sum(score_of[i] for i in found) == pytest.approx(best)


# ---------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def model():
    """400 items, four users alike in each of 15 tastes; user 0 has nothing. Ids are texts."""
    rng = np.random.default_rng(4)
    taste = rng.integers(0, 15, 400)
    likes = rng.random((60, 400)) < np.where(np.arange(60)[:, None] % 15 == taste, 0.5, 0.05)
    likes[1 + np.arange(400) % 59, np.arange(400)] = True  # every item is there
    likes[0] = False
    users, items = np.nonzero(likes)
    log = pd.DataFrame({"user": [f"u{u:02}" for u in users], "item": [f"i{i:03}" for i in items]})
    return WALS(factors=8, iterations=4, num_threads=1).fit(log)


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


USERS = [f"u{u:02}" for u in range(1, 60)]


def test_without_diversity_lists_are_what_they_were(model):
    plain = model.recommend(USERS, 12)
    for options in ({"diversity": 0}, {"diversity": DPP(0)}, {"popularity_penalty": 0.0}):
        same(model.recommend(USERS, 12, **options), plain)


def test_diversity_is_by_the_scores_and_factors_of_the_model(model):
    """Pools of 100 are the best 100 by score; lists are the definition's, and keep their scores."""
    k = 8
    pool = model.recommend(USERS[::3], 100)
    for diversity in (MMR(0.4), DPP(0.4), MMR(1), MMR(0.4, by=np.eye(400)[:, :50])):
        found = model.recommend(USERS[::3], k, diversity=diversity)
        vectors = model.item_factors if isinstance(diversity.by, str) else diversity.by
        for row in range(len(USERS[::3])):
            items = model.item_ids.find(pool.ids[row])
            order = np.argsort(items)
            chosen = model.item_ids.find(found.ids[row])
            check_list(chosen, items[order], pool.scores[row][order].astype(float), k, diversity, vectors)
        score_of = [dict(zip(*row, strict=True)) for row in zip(pool.ids, pool.scores, strict=True)]
        assert (found.scores == [[score_of[u][i] for i in ids] for u, ids in enumerate(found.ids)]).all()
    same(model.recommend(USERS[::3], k, diversity=0.4), model.recommend(USERS[::3], k, diversity=MMR(0.4)))
    weights = (0, 0.2, 0.5, 0.9)
    lists = [model.item_ids.find(model.recommend(USERS[::3], k, diversity=weight).ids) for weight in weights]
    alike = [np.mean([cosines(model.item_factors[row]).sum() for row in rows]) for rows in lists]
    assert alike == sorted(alike, reverse=True) and alike[0] > 1.5 * alike[-1]


def test_places_beyond_the_catalogue_cost_nothing(model, monkeypatch):
    lengths, grow = [], DPP.grow
    monkeypatch.setattr(DPP, "grow", lambda self, vectors, k: lengths.append(k) or grow(self, vectors, k))
    found = model.recommend("u01", 5000, diversity=DPP(0.3, pool=20))
    assert lengths == [400] and found.ids.shape == (5000,), "400 items, and a factor of as many rows"
    assert set(found.ids) == set(model.recommend("u01", 5000).ids)


@pytest.mark.parametrize("options", [{}, {"explore": "ucb"}, {"explore": "thompson", "random_state": 3}])
def test_chunks_and_single_users_have_the_same_lists(model, options):
    options = options | {"diversity": DPP(0.3), "popularity_penalty": 0.2, "quotas": 2}
    options["categories"] = {f"i{i:03}": i % 40 for i in range(400)}
    whole = model.recommend(USERS, 15, **options)
    parts = list(model.recommend_chunks(USERS, 15, chunk_size=7, **options))
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    np.testing.assert_array_equal(model.recommend("u07", 15, **options).ids, whole.ids[6])
    assert all(np.unique([int(i[1:]) % 40 for i in row], return_counts=True)[1].max() <= 2 for row in whole.ids)


def test_lists_of_items_seen_items_and_unknown_users_hold(model):
    deny = [["i001", "i002"]] * 3
    options = {"diversity": 0.5, "cold_users": "popular", "unknown": "popular", "deny": deny}
    allow_items = [f"i{i:03}" for i in range(25)]
    found = model.recommend(["u01", "nobody", "u02"], 30, allow_items=allow_items, **options)
    plain = model.recommend(["u01", "nobody", "u02"], 30, allow_items=allow_items, **options | {"diversity": 0})
    for row in range(3):  # fewer than k: the same items in another order, and padding
        left = [i for i in found.ids[row] if i is not None]
        assert set(left) == {i for i in plain.ids[row] if i is not None} and len(left) < 30
        assert found.scores[row, len(left) :].max() == -np.inf
    assert found.source.tolist() == plain.source.tolist() == ["model", "popularity", "model"]
    assert found.ids[1].tolist() != plain.ids[1].tolist()
    of_rows = model.recommend_for(pd.DataFrame({"user": ["x"], "item": ["i005"]}), 10, diversity=0.5)
    assert "i005" not in of_rows.ids and of_rows.ids.shape == (1, 10)
    by_vector = model.search(model.item_factors[:2], 10, diversity=0.5)
    assert by_vector.ids[:, 0].tolist() == model.search(model.item_factors[:2], 1).ids[:, 0].tolist()
    same(model.recommend("u01", 500, diversity=0.5, filter_seen=False, deny=None), model.recommend(
        "u01", 500, diversity=MMR(0.5, pool=7), filter_seen=False))  # fmt: skip


def test_a_penalty_is_for_popular_items(model):
    counts = model.fitted.popularity()
    places = model.item_ids.find(np.stack([model.recommend(USERS, 10, popularity_penalty=p).ids for p in (0, 0.5, 5)]))
    means = counts[places].mean(axis=(1, 2))
    assert means[0] > means[1] > means[2]
    pool = model.recommend("u05", 100)
    items = np.sort(model.item_ids.find(pool.ids))
    score = model.predict("u05", model.item_ids.take(items)).astype(float)
    cost = 0.5 * np.log(1 + counts) / np.log(1 + counts.max())
    check_list(places[1][USERS.index("u05")], items, score, 10, cost=cost)
    cold = {"users": "u00", "k": 9, "unknown": "popular"}
    same(model.recommend(**cold, popularity_penalty=20), model.recommend(**cold))


def test_a_larger_pool_has_the_scale_of_the_first():
    rng = np.random.default_rng(11)
    columns, scores = pools(rng, 40, 30, 30)
    columns, scores = columns[21:], scores[21:]  # of users with a candidate for each place
    vectors, labels = rng.normal(size=(30, 3)), rng.choice(list("abcd"), 30)
    quotas, diversity = dict.fromkeys("abcd", (1, 2)), MMR(0.3, pool=6)
    made = Reranking(diversity, vectors, Quotas.of(quotas, Categories.read(labels, 30, None)))
    ((_, ids, _),) = list(made.chunks(search_of(columns, scores), 6, 30))
    widened = 0
    for row in range(len(ids)):
        n = next(n for n in (6, 24, 30) if np.isin(ids[row], columns[row, :n]).all())
        widened += n > 6
        order = np.argsort(columns[row, :n])
        score, ends = scores[row, :n][order].astype(float), (scores[row, 5], scores[row, 0])
        check_list(ids[row], columns[row, :n][order], score, 6, diversity, vectors, labels, quotas, ends=ends)
    assert 3 < widened


def test_quotas_look_further_than_the_pool(model, monkeypatch):
    """At most one of a category that has nearly all items, and one of which the pool has none."""
    rare = model.recommend("u03", 400).ids[250:253].tolist()
    categories = {f"i{i:03}": "usual" for i in range(400)} | dict.fromkeys(rare, "rare")
    found = model.recommend(["u03", "u04"], 4, quotas={"usual": 1}, categories=categories)
    assert found.ids[0].tolist() == [model.recommend("u03", 1).ids[0], *rare]
    must = model.recommend("u03", 4, quotas={"rare": (2, 3)}, categories=categories)
    assert must.ids.tolist() == [*model.recommend("u03", 2).ids.tolist(), *rare[:2]]
    drawn = {"explore": "thompson", "quotas": {"rare": (2, 3)}, "categories": categories, "diversity": 0.3}
    drawings = []
    best_items = answers.best_items
    monkeypatch.setattr(answers, "best_items", lambda *args: drawings.append(args[4]) or best_items(*args))
    assert len(set(model.recommend("u03", 4, **drawn).ids) & set(rare)) == 2
    assert len(drawings) > 1 and {one.seed for one in drawings} == {drawings[0].seed}
    assert drawings[0].seed is not None  # who is searched again has the same draw
    with pytest.warns(ParameterWarning, match="2 lists have fewer items of a category than quotas want"):
        short = model.recommend(["u03", "u04"], 5, quotas={"rare": (4, 5)}, categories=categories)
    assert set(rare) <= set(short.ids[0].tolist()) and None not in short.ids[0].tolist()


def test_an_item_of_two_categories_is_refused(model):
    """A row for each pair of item and category: the first counted, in whatever order the rows were."""
    rows = pd.DataFrame({"item_id": [*model.item_ids.ids, model.item_ids[0]], "genre": ["a"] * model.n_items + ["b"]})
    series = rows.set_index("item_id").genre
    for categories in (rows, rows[::-1], series):
        with pytest.raises(DataError, match=r"categories must be one label for each item, got '[ab]' and '[ab]' for"):
            model.recommend(model.user_ids[0], 3, quotas={"b": 0}, categories=categories)
    same = rows.assign(genre="a")  # said twice is said once
    assert not model.recommend(model.user_ids[0], 3, quotas={"a": 0}, categories=same).to_arrow().num_rows


def test_categories_come_in_any_form(model, tmp_path):
    labels = [f"c{i % 7}" if i % 3 else None for i in range(len(model.item_ids))]
    of_id = dict(zip(model.item_ids.tolist(), labels, strict=True))
    table = pd.DataFrame({"item_id": list(of_id), "genre": labels}).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "items.csv", index=False)
    expected = model.recommend(USERS, 10, quotas=1, categories=labels)
    nullable = pd.Series(of_id, dtype="string")  # with NA, whose comparison with itself is no bool
    frames = (table, str(tmp_path / "items.csv"), nullable, nullable.tolist())
    for categories in (of_id, pd.Series(of_id), np.array(labels, object), *frames):
        same(model.recommend(USERS, 10, quotas=1, categories=categories), expected)
    same(
        model.recommend(USERS, 10, quotas=1, categories=table.rename(columns={"genre": "x"}), category_column="x"),
        expected,
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"diversity": 1.5}, ValueError, "diversity must be a number from 0 to 1, got 1.5"),
        ({"diversity": "mmr"}, TypeError, "diversity must be a number from 0 to 1, or an MMR or DPP, got 'mmr'"),
        ({"quotas": 2}, ValueError, "quotas need categories="),
        ({"categories": {}}, ValueError, "categories has a meaning only with quotas="),
        ({"quotas": 2, "categories": {"zz": "a"}}, DataError, "categories has none of any of the model's 400 items"),
        ({"quotas": 2, "categories": ["a"]}, ValueError, "a label for each of 400 items, got 1"),
        ({"quotas": 2, "categories": 7}, TypeError, "categories must be a label for each item, a mapping"),
        ({"quotas": {"b": 1}, "categories": ["a"] * 400}, ValueError, "quotas must name .* no item has 'b'"),
        ({"quotas": {"a": (3, 2)}, "categories": ["a"] * 400}, ValueError, "got at least 3 and at most 2"),
        ({"quotas": {"a": (11, None)}, "categories": ["a"] * 400}, ValueError, "k=10 items, but want at least 11"),
        ({"quotas": {"a": -1}, "categories": ["a"] * 400}, ValueError, r"quotas\['a'\] must be an integer >= 0"),
        ({"quotas": 1, "categories": [["a", "b"]] * 400}, TypeError, "must be one label for each item, got .'a', 'b'."),
        ({"quotas": 1.5, "categories": ["a"] * 400}, TypeError, "quotas must be a number for every category, or"),
        ({"quotas": {}, "categories": ["a"] * 400}, ValueError, "quotas must name at least one category"),
        ({"popularity_penalty": -1}, ValueError, "popularity_penalty must be a finite number >= 0"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_by_name(model, options, error, message):
    with pytest.raises(error, match=message):
        model.recommend(USERS, 10, **options)


def test_texts_tell_items_apart(model):
    """by="prior" is by the prior means of the items, by an array what that says."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(400, 5))
    train = model.fitted.seen
    with_texts = WALS(factors=4, iterations=2, num_threads=1, item_prior=LinearPrior(embeddings)).fit(train)
    means = with_texts.item_prior_.project(embeddings)
    by_prior, by_array = (with_texts.recommend([3, 4], 8, diversity=DPP(0.5, by=by)) for by in ("prior", means))
    np.testing.assert_array_equal(by_prior.ids, by_array.ids)
    assert (by_prior.ids != with_texts.recommend([3, 4], 8, diversity=DPP(0.5)).ids).any()


def test_evaluate_asks_with_options(model):
    train = model.fitted.seen
    test = csr_matrix(np.roll(train.toarray(), 1, axis=1) > train.toarray()).astype(np.float32)
    other = WALS(factors=4, iterations=2, num_threads=1).fit(train)
    report = evaluate(other, train, test, 10, options={"diversity": 0.6, "popularity_penalty": 0.1}, n_resamples=0)
    ids = other.recommend(np.arange(59), 10, diversity=0.6, popularity_penalty=0.1).ids
    popular = Popularity(train).recommend(np.arange(59), 10)[0]
    direct = ranking_metrics(ids, test, 10, train=train, vectors=other.item_factors, expected=popular)
    assert {name: value.value for name, value in report.results["wals"].items()} == pytest.approx(
        {name: direct[name] for name in report.results["wals"]}
    )
    plain = evaluate(other, train, test, 10, n_resamples=0).results["wals"]
    assert direct["intra_list_diversity@10"] > plain["intra_list_diversity@10"].value
    labels = evaluate(other, train, test, 10, vectors=np.ones((400, 1)), n_resamples=0)
    assert labels.results["wals"]["intra_list_diversity@10"].value == pytest.approx(0)
    with pytest.raises(TypeError, match=r"diverse=0\.3 needs a model whose recommend takes diverse="):
        evaluate(other, train, test, 10, options={"diverse": 0.3})
    with pytest.raises(TypeError, match="options must not have 'filter_seen'"):
        evaluate(other, train, test, 10, options={"filter_seen": False})


def test_wrong_vectors_are_refused(model):
    for make, error, message in (
        (lambda: MMR(by="text"), ValueError, "by must be 'factors', 'prior' or an array"),
        (lambda: DPP(by=[1.0]), TypeError, r"by must be 'factors', 'prior' or an array \(I, E\) of numbers"),
        (lambda: DPP(by=[[np.nan]]), ValueError, "by must be finite"),
        (lambda: MMR(by=np.ones((400, 0))), TypeError, r"got float64 \(400, 0\)"),
        (
            lambda: MMR(by=pd.DataFrame(np.eye(2), index=["b", "a"])),
            ValueError,
            "whatever the index of a DataFrame says",
        ),
        (lambda: MMR(2), ValueError, "weight must be a number from 0 to 1"),
        (lambda: MMR(pool=0), ValueError, "pool must be an integer >= 1"),
        (lambda: model.recommend("u01", diversity=MMR(by=np.ones((3, 2)))), ValueError, "by must have a row for each"),
        (lambda: model.recommend("u01", diversity=MMR(by="prior")), ModelFitError, "needs a model with an item_prior"),
    ):
        with pytest.raises(error, match=message):
            make()
