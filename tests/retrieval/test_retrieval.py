"""Exact top-k with lists, against the reference with everything else excluded."""

import functools
import re
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix, csc_array, csr_matrix

from wals_gpu import WALS, reference
from wals_gpu.backends.devices import DEVICES, make_backend
from wals_gpu.data.ids import Ids
from wals_gpu.retrieval import lists as lists_module
from wals_gpu.retrieval.exact import ExactIndex
from wals_gpu.retrieval.lists import Lists

ITEM_IDS = Ids(np.arange(100, 140), "item")


@pytest.mark.parametrize("thing", [WALS, ExactIndex, make_backend])
def test_docstrings_name_the_devices(thing):
    named = re.search(r"^ +device : \{(.*)\}, default \"auto\"$", thing.__doc__, re.MULTILINE)
    assert tuple(text.strip('"') for text in named[1].split(", ")) == (*DEVICES, "cuda:0", "...")


def integers(rng, *shape, dtype=np.float32):
    """Small integers: scores are exact, and many of them equal."""
    return rng.integers(-2, 3, shape).astype(dtype)


def as_lists(mask, ids=None):
    """Lists of ids in random order, with repeats."""
    rng = np.random.default_rng(len(mask))
    lists = []
    for row in mask:
        columns = np.flatnonzero(row)
        columns = rng.permutation(np.concatenate([columns, columns[:2]])).astype(int)
        lists.append((columns if ids is None else ids.take(columns)).tolist())
    return lists


@st.composite
def searches(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    B, n, D = draw(st.integers(0, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 20))
    lists, permitted = {}, np.ones((B, n), bool)
    share = draw(st.sampled_from([0.02, 0.3, 0.9, 1.0]))
    for name in draw(st.sets(st.sampled_from(["deny", "allow"]))):
        mask = rng.random((B, n)) < share
        permitted &= mask if name == "allow" else ~mask
        values = mask * rng.choice([0.5, -1.0], (B, n))  # the values do not matter
        lists[name] = draw(st.sampled_from([csr_matrix, csc_array, as_lists]))(values if B else np.zeros((B, n)))
    for name in draw(st.sets(st.sampled_from(["deny_items", "allow_items"]))):
        mask = rng.random((1, n)) < share
        permitted &= mask if name == "allow_items" else ~mask
        lists[name] = as_lists(mask)[0]
    return integers(rng, B, D), integers(rng, n, D), draw(st.sampled_from([1, 3, 50])), lists, permitted


@given(searches(), st.sampled_from([1, 2, 4096]))
def test_lists_agree_with_the_reference(search, chunk):
    x, y, k, lists, permitted = search
    expected_ids, expected = reference.topk(x, y, k, csr_matrix(~permitted))
    index = ExactIndex(y)
    ids, scores = index.search(x, k, **lists)
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected)
    parts = list(index.chunks(x.__getitem__, len(x), k, index.filters(len(x), Lists(**lists)), chunk=chunk))
    assert [part.stop - part.start for part, *_ in parts] == [min(chunk, len(x) - s) for s in range(0, len(x), chunk)]
    for part, ids, scores in parts:
        np.testing.assert_array_equal(ids, expected_ids[part])
        np.testing.assert_array_equal(scores, expected[part])


@given(searches())
def test_cosine_agrees_with_the_reference(search):
    x, y, k, lists, permitted = (part.astype(np.float64) if isinstance(part, np.ndarray) else part for part in search)
    permitted = permitted.astype(bool) & y.any(axis=1) & x.any(axis=1, keepdims=True)

    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)

    ids, scores = ExactIndex(y, metric="cosine").search(x, k, **lists)
    _, expected = reference.topk(unit(x), unit(y), k, csr_matrix(~permitted))
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    cosines = unit(x) @ unit(y).T
    for row in range(len(x)):
        there = ids[row] >= 0
        assert len(set(ids[row][there])) == there.sum() == min(k, permitted[row].sum())
        assert permitted[row, ids[row][there]].all()
        np.testing.assert_allclose(cosines[row, ids[row][there]], scores[row][there], atol=1e-12)


def test_ids_in_lists_and_answers():
    rng = np.random.default_rng(0)
    x, y = integers(rng, 5, 8), integers(rng, 40, 8)
    mask, hidden = rng.random((5, 40)) < 0.3, rng.random((1, 40)) < 0.3
    index = ExactIndex(y, ITEM_IDS)
    expected, scores = ExactIndex(y).search(x, 40, allow=csr_matrix(mask), deny_items=np.flatnonzero(hidden))
    ids, named_scores = index.search(x, 40, allow=as_lists(mask, ITEM_IDS), deny_items=as_lists(hidden, ITEM_IDS)[0])
    assert np.array_equal(scores, named_scores)
    assert ids[expected >= 0].tolist() == (100 + expected[expected >= 0]).tolist()
    assert (ids[expected < 0] == None).all() and (expected < 0).any()  # noqa: E711
    one, one_scores = index.search(
        x[3], 40, allow=as_lists(mask, ITEM_IDS)[3:4], deny_items=set(100 + np.flatnonzero(hidden))
    )
    assert one.shape == (40,) and one.tolist() == ids[3].tolist() and np.array_equal(one_scores, scores[3])


def test_what_is_given_is_not_changed():
    rng = np.random.default_rng(0)
    x, y = integers(rng, 3, 4), integers(rng, 9, 4)
    deny = coo_matrix(([2.0, 3.0, 4.0], ([0, 0, 2], [5, 5, 1])), shape=(3, 9))  # a pair twice
    unsorted = csr_matrix((np.array([1.0, 0.0]), np.array([7, 2]), np.array([0, 2, 2, 2])), shape=(3, 9))
    before = [x.copy(), y.copy(), deny.copy(), unsorted.indices.copy()]
    ids, _ = ExactIndex(y).search(x, 9, deny=deny)
    assert [sorted(set(range(9)) - set(row)) for row in ids.tolist()] == [[5], [], [1]]
    ids, _ = ExactIndex(y).search(x, 9, deny=unsorted)
    assert set(range(9)) - set(ids[0].tolist()) == {2, 7}  # a stored zero is an entry
    assert np.array_equal(x, before[0]) and np.array_equal(y, before[1]) and deny.nnz == 3
    assert np.array_equal(unsorted.indices, before[3])


def test_lists_of_many_kinds():
    index = ExactIndex(np.eye(6))
    expected = index.search(np.ones((2, 6)), 6, deny=[[1, 2], []])[0].tolist()
    for lists in (
        ([2, 1], ()),
        [{1, 2}, set()],
        [np.array([1, 2], np.uint8), np.empty(0, int)],
        np.array([pd.Series([1, 2]), pd.Series([], dtype=int)], dtype=object),
        pd.Series([[1, 2], []]),
        pl.Series([[1, 2], []]),
        [range(1, 3), []],
        [{1: 0, 2: 0}.keys(), []],
    ):
        assert index.search(np.ones((2, 6)), 6, deny=lists)[0].tolist() == expected
    square = np.array([[1, 2], [3, 1]])  # two candidates for each of two
    assert [set(row) for row in index.search(np.ones((2, 6)), 2, allow=square)[0].tolist()] == [{1, 2}, {3, 1}]
    broken = csr_matrix(([1.0], ([0], [3])), shape=(2, 6))
    broken.indices[0] = 6
    with pytest.raises(ValueError, match="indices"):
        index.search(np.ones((2, 6)), deny=broken)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_nothing_left(metric):
    index = ExactIndex(np.ones((4, 2), np.float32), metric=metric)
    for lists in (
        {"allow_items": []},
        {"deny_items": range(4)},
        {"allow": [[], []]},
        {"allow": [[1], [2]], "deny": [[1], [2]]},
        {"allow": [[1], [1]], "deny_items": [1]},
        {"allow": [[1], [1]], "allow_items": [0, 2]},
        {"allow_items": [3], "deny": csr_matrix(np.ones((2, 4)))},
    ):
        ids, scores = index.search(np.ones((2, 2)), 3, **lists)
        assert (ids == -1).all() and (scores == -np.inf).all() and ids.shape == scores.shape == (2, 3)
    empty = ExactIndex(np.ones((0, 2), np.float32), metric=metric)
    assert (empty.search(np.ones((2, 2)), 3)[0] == -1).all()
    assert ExactIndex(np.zeros((3, 2)), metric="cosine").search([1.0, 0.0], 2)[0].tolist() == [-1, -1]
    assert ExactIndex(np.ones((3, 2)), metric="cosine").search([0.0, 0.0], 2)[0].tolist() == [-1, -1]


@pytest.mark.parametrize("name", ["deny", "allow"])
def test_a_list_that_is_given_for_many_queries_is_looked_up_once(monkeypatch, name):
    """The same object: as for all, in the memory of one. Others, or one for some: as if each had a copy."""
    rng = np.random.default_rng(5)
    queries, items = rng.normal(size=(300, 8)), rng.normal(size=(2000, 8))
    index = ExactIndex(items)
    one, other = rng.permutation(2000)[:900].tolist(), rng.permutation(2000)[:500]
    seen = []
    of_lists = lists_module._numbers
    monkeypatch.setattr(
        lists_module, "_numbers", lambda items, *rest: seen.append(len(items)) or of_lists(items, *rest)
    )
    search = functools.partial(index.search, queries, k=5)
    index.search(queries[:1], k=5, **{name: [one]})
    tracemalloc.start()
    same = search(**{name: [one] * 300})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == [900, 900] and peak < 300 * 900
    for found, expected in zip(same, search(**{f"{name}_items": one}), strict=True):
        np.testing.assert_array_equal(found, expected)
    mixed = [other if n % 3 else one for n in range(300)]
    found = search(**{name: mixed})
    assert seen[-1] == 1400
    for ids, expected in zip(found, search(**{name: [list(items) for items in mixed]}), strict=True):
        np.testing.assert_array_equal(ids, expected)
    for_all = {f"{name}_items": other.tolist()}
    both, expected = search(**{name: [one] * 300}, **for_all), search(**{name: [list(one) for _ in mixed]}, **for_all)
    for found, of_copies in zip(both, expected, strict=True):
        np.testing.assert_array_equal(found, of_copies)
    with pytest.raises(IndexError, match=rf"^{name} must be in .*got 2000"):
        search(**{name: [[*one, 2000]] * 300})
    with pytest.raises(ValueError, match=f"^{name} must be .*got 299 lists"):
        search(**{name: [one] * 299})
    rows = np.array([other] * 300)  # rows of an array are objects of their own, made as they are asked for
    for ids, expected in zip(search(**{name: rows}), search(**{f"{name}_items": other}), strict=True):
        np.testing.assert_array_equal(ids, expected)


def test_an_item_comes_first_among_its_neighbours_unless_lists_exclude_it():
    rng = np.random.default_rng(2)
    y = rng.standard_normal((30, 5))
    y[7] = y[3]  # the same direction: item 3 is as near to 7 as 7 itself
    y[9] = 0
    index = ExactIndex(y, metric="cosine")
    rows = np.array([7, 3, 9, 7, 12])
    ids, cosines = index.similar(rows, 4, index.filters(5, Lists()))
    assert ids[:, 0].tolist() == [7, 3, -1, 7, 12] and ids[[0, 1, 3], 1].tolist() == [3, 7, 3]
    assert (ids[2] == -1).all() and (cosines[2] == -np.inf).all() and (cosines[[0, 1, 3, 4], 0] == 1).all()
    filters = index.filters(5, Lists(deny=[[7], [], [], [], []], allow_items=[3, 7, 9, 20, 21]))
    ids, cosines = index.similar(rows, 4, filters)
    assert ids[0, 0] == 3 and set(ids[0].tolist()) == {3, 20, 21, -1}  # denied for this one
    assert ids[1, :2].tolist() == [3, 7] and ids[3, :2].tolist() == [7, 3]
    assert set(ids[4].tolist()) == {3, 7, 20, 21}  # not allowed in its own list
    assert all(len(set(row)) == 4 for row in ids[[0, 1, 3, 4]].tolist())
    ids, _ = index.similar(rows, 4, index.filters(5, Lists(allow=[[7, 1], [1], [9], [3], [1, 2]])))
    assert [set(row) - {-1} for row in ids.tolist()] == [{7, 1}, {1}, set(), {3}, {1, 2}] and ids[0, 0] == 7
    ids, _ = index.similar(rows, 1, index.filters(5, Lists()))
    assert ids[:, 0].tolist() == [7, 3, -1, 7, 12]


def test_progress_is_shown_on_request(capsys):
    index = ExactIndex(np.ones((4, 2)))
    index.search(np.ones((5, 2)))
    assert capsys.readouterr().err == ""
    index.search(np.ones((5, 2)), show_progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_lists_for_all_are_one_list_and_the_table_is_not_copied(monkeypatch, metric):
    """Whatever the number of queries: the backend gets the vectors themselves, and a mask of the items."""
    vectors = np.ones((1000, 2), np.float32)
    vectors[:7] = 0  # no direction
    index = ExactIndex(vectors, metric=metric)
    calls = []
    topk = index._backend.topk

    def spy(queries, items, k, excluded=None, *, permitted=None, norms=None):
        calls.append((0 if excluded is None else excluded.nnz, None if permitted is None else int(permitted.sum())))
        assert items.shape == vectors.shape and np.shares_memory(items, vectors)
        return topk(queries, items, k, excluded, permitted=permitted, norms=norms)

    monkeypatch.setattr(index._backend, "topk", spy)
    missing = 7 if metric == "cosine" else 0
    index.search(np.ones((1, 2)))
    index.search(np.ones((5000, 2)), deny_items=range(100, 500))  # 4,096 queries at a time
    index.search(np.ones((2, 2)), deny_items=[500], allow_items=range(500, 600))
    index.search(np.ones((2, 2)), allow_items=[])
    none = None if metric == "dot" else 993
    assert calls == [(0, none), (0, 600 - missing), (0, 600 - missing), (0, 99), (0, 0)]
    del calls[:]
    index.search(np.ones((9000, 2)), deny=csr_matrix(np.ones((9000, 1000), bool)))
    assert calls == [(4_096_000, none), (4_096_000, none), (808_000, none)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"queries": np.ones((2, 3))},
            ValueError,
            r"queries must be numbers of shape \(D=2,\) or \(B, 2\), got .*\(2, 3\)",
        ),
        ({"queries": [["a", "b"]]}, ValueError, "queries must be numbers"),
        ({"queries": np.ones((1, 1, 2))}, ValueError, "queries must be numbers"),
        ({"queries": [[1.0, 0.0], [np.nan, 0.0]]}, ValueError, "queries must be finite, but query 1 is not"),
        ({"k": 0}, ValueError, "k must be an integer >= 1, got 0"),
        ({"k": 2.0}, TypeError, "k must be an integer >= 1, got 2.0"),
        ({"deny": csr_matrix((2, 4))}, ValueError, r"deny must be a sparse matrix \(2, 5\).*got a matrix \(2, 4\)"),
        ({"allow": csr_matrix((3, 5))}, ValueError, r"allow must be a sparse matrix \(2, 5\).*got a matrix \(3, 5\)"),
        ({"allow": [[1]]}, ValueError, "allow must be .* 2 lists of item ids, got 1 lists"),
        ({"deny": [1, 2]}, TypeError, "deny must be .* got 1 for one of the lists; deny_items= holds for all"),
        ({"deny": ["ab", "c"]}, TypeError, "deny must be .* got 'ab' for one of the lists"),
        ({"deny": np.array(3)}, TypeError, "deny must be .* got ndarray"),
        ({"deny": [np.array(3), []]}, TypeError, r"deny must be .* got array\(3\) for one of the lists"),
        ({"deny": [[[1]], [2]]}, TypeError, r"deny must be .* got \[\[1\]\] for one of the lists"),
        ({"deny": "ab"}, TypeError, "deny must be .* got str"),
        ({"allow": {0: [1]}}, TypeError, "allow must be .* got dict"),
        ({"deny": [[1], [5]]}, IndexError, r"deny must be in \[0, 5\), got 5"),
        ({"deny_items": [-1]}, IndexError, r"deny_items must be in \[0, 5\), got -1"),
        ({"allow_items": [0.5]}, TypeError, "allow_items must be row numbers"),
        ({"allow_items": np.ones(4, bool)}, ValueError, r"allow_items as an array of bool must have shape \(5,\)"),
        ({"allow_items": [[1]]}, ValueError, "allow_items must be one id or a 1-D list"),
    ],
)
def test_bad_searches_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ExactIndex(np.ones((5, 2), np.float32)).search(**{"queries": np.ones((2, 2)), **arguments})


def test_bad_indexes_are_named():
    for vectors in ([[1.0]], np.ones(3), np.ones((2, 2), int), np.ones((2, 2), np.float16)):
        with pytest.raises(TypeError, match="vectors must be a float32 or float64 array"):
            ExactIndex(vectors)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="vectors must be finite, got NaN or infinity in row 1"):
            ExactIndex(np.array([[1.0, 2], [value, 1]]))
    with pytest.raises(ValueError, match="ids must name the 3 vectors, got 40 ids"):
        ExactIndex(np.ones((3, 2)), ITEM_IDS)
    with pytest.raises(ValueError, match="metric must be 'dot' or 'cosine', got 'l2'"):
        ExactIndex(np.ones((3, 2)), metric="l2")
    with pytest.raises(KeyError, match="deny_items: unknown item id: 7"):
        ExactIndex(np.ones((40, 2)), ITEM_IDS).search([1, 1], deny_items=[101, 7])
    with pytest.raises(KeyError, match="allow: unknown item id: 7"):
        ExactIndex(np.ones((40, 2)), ITEM_IDS).search([1, 1], allow=[[101, 7]])


def test_a_list_for_all_may_be_a_mask():
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((40, 8)).astype(np.float32)
    names = [f"i{n:02d}" for n in range(40)]
    ids, _ = Ids.encode(pa.array(names), "item")
    for index, of in (
        (ExactIndex(vectors), list),
        (ExactIndex(vectors, ids), lambda rows: [names[row] for row in rows]),
    ):
        deny, allow = rng.choice(40, 15, replace=False), rng.choice(40, 25, replace=False)
        masks = [np.isin(np.arange(40), rows) for rows in (deny, allow)]
        before = [mask.copy() for mask in masks]
        query = rng.standard_normal((3, 8)).astype(np.float32)
        for mixed in (
            {"deny_items": masks[0], "allow_items": masks[1]},
            {"deny_items": of(deny), "allow_items": masks[1]},
            {"deny_items": masks[0], "allow_items": of(allow)},
        ):
            got = index.search(query, 9, **mixed)
            want = index.search(query, 9, deny_items=of(deny), allow_items=of(allow))
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(masks, before)
        with pytest.raises(ValueError, match=r"deny_items as an array of bool must have shape \(40,\), got \(39,\)"):
            index.search(query, deny_items=np.zeros(39, bool))
    assert ids.mask(["i03", "i01"]).nonzero()[0].tolist() == [1, 3]
    assert ids.mask({"i03", "gone"}, unknown="skip").sum() == 1
    with pytest.raises(KeyError, match="gone"):
        ids.mask(["gone"])


@pytest.mark.parametrize("scale", [1e-36, 1e-22, 1.0, 1e18, 1e30])
def test_cosines_do_not_depend_on_the_size_of_float32_factors(scale):
    """Squares of 1e-23 and 1e20 are no float32 numbers."""
    rng = np.random.default_rng(3)
    vectors = (rng.standard_normal((60, 12)) * scale).astype(np.float32)
    exact = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    ids, cosines = ExactIndex(vectors, metric="cosine").search(vectors[:5], 10)
    want = np.take_along_axis(exact[:5] @ exact.T, ids, axis=1)
    # Two divisions and a sum of 12 products of numbers up to 1, each rounded: below 30 units of 2^-24.
    np.testing.assert_allclose(cosines, want, rtol=0, atol=3 * 30 * 2.0**-24)
    assert (ids[:, 0] == np.arange(5)).all()


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_items_that_are_searched_often_are_prepared_and_answers_stay(metric):
    """After some searches with few queries; not by one batch, nor in a catalogue that is in the cache anyway."""
    rng = np.random.default_rng(4)
    y, x = (rng.standard_normal((n, 40), dtype=np.float32) for n in (8000, 70))
    plain = ExactIndex(y, metric=metric, num_threads=1).search(x, 12)
    index = ExactIndex(y, metric=metric, num_threads=1)
    lists = {"deny_items": np.arange(0, 8000, 3)}
    denied = index.search(x, 12, **lists)
    assert index._prepared is None
    for row in range(20):
        for some, options in ((plain, {}), (denied, lists)):
            ids, scores = index.search(x[row], 12, **options)
            np.testing.assert_array_equal(ids, some[0][row])
            assert scores.tobytes() == some[1][row].tobytes()
    has_int8 = index._backend.prepare(y) is not None
    assert (index._prepared is not None) == has_int8
    ids, scores = index.search(x, 12)
    assert ids.tobytes() == plain[0].tobytes() and scores.tobytes() == plain[1].tobytes()
    for few in (y[:500], y.astype(np.float64)):
        small = ExactIndex(few, metric=metric, num_threads=1)
        small.prepare()
        assert small._prepared is None and len(small.search(x[0].astype(few.dtype), 3)[0]) == 3


def test_a_model_with_neighbours_answers_the_same_once_prepared():
    rng = np.random.default_rng(5)
    likes = csr_matrix((rng.random((60, 9000)) < 0.02).astype(np.float32))
    model = WALS(32, neighbors=5, iterations=1, num_threads=1, random_state=0).fit(likes)
    ids, scores = model.recommend(range(60), k=9)
    for _ in range(2):
        for user in range(20):
            own_ids, own_scores = model.recommend(user, k=9)
            np.testing.assert_array_equal(own_ids, ids[user])
            assert own_scores.tobytes() == scores[user].tobytes()
