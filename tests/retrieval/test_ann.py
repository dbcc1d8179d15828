"""Approximate indexes: which items they find, and that what they find is scored and ordered as by exact search."""

import sys

import numpy as np
import pytest

from wals_gpu.data.ids import Ids
from wals_gpu.retrieval.ann import AnnIndex
from wals_gpu.retrieval.exact import ExactIndex

LIBRARIES = ["faiss", "hnswlib", "usearch"]


@pytest.fixture(params=LIBRARIES)
def library(request):
    name = request.param
    pytest.importorskip(name, reason=f"{name} is not installed")
    return name


def vectors(n, d, seed=0):
    """Items of very different norms, so that the nearest one is seldom the one of highest dot product."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((n, d), dtype=np.float32) * rng.lognormal(0, 1, (n, 1)).astype(np.float32)
    return items, rng.standard_normal((50, d), dtype=np.float32)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_recall_and_scores(library, metric):
    items, queries = vectors(3000, 24)
    exact = ExactIndex(items, metric=metric)
    ann = AnnIndex(exact, library)
    assert ann.recall(queries, 10) > 0.95
    assert ann.recall(queries, 10, oversample=4) >= ann.recall(queries, 10)
    ids, scores = ann.search(queries, 10)
    expected, _ = exact.search(queries, 10)
    # Counted here once more: the share of the exact answer that was found.
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, expected, strict=True)]) > 0.95
    assert ids.dtype == np.int32 and scores.dtype == np.float32
    unit = np.linalg.norm(items, axis=1)[:, None] if metric == "cosine" else 1
    query_unit = np.linalg.norm(queries, axis=1)[:, None] if metric == "cosine" else 1
    truth = (queries / query_unit).astype(float) @ (items / unit).T
    np.testing.assert_allclose(scores, np.take_along_axis(truth, ids.astype(int), 1), rtol=1e-4, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_the_best_item_is_found_though_others_are_nearer(library):
    items, queries = vectors(2000, 16)
    exact = ExactIndex(items)
    found = AnnIndex(exact, library)._neighbours(queries, 1)[:, 0]
    best = exact.search(queries, 1)[0][:, 0]
    nearest = ((queries[:, None] - items) ** 2).sum(-1).argmin(axis=1)
    unit = items / np.linalg.norm(items, axis=1)[:, None]
    assert (found == best).mean() > 0.95 > 0.7 > (nearest == best).mean()
    assert ((queries @ unit.T).argmax(axis=1) == best).mean() < 0.7


def test_answers_look_like_those_of_exact_search(library):
    """Small enough that everything is found: ids, ties, one query, more asked for than there are, zero vectors."""
    rng = np.random.default_rng(1)
    items = rng.integers(-2, 3, (30, 6)).astype(np.float32)
    items[[4, 11, 20]] = items[2]
    items[7] = 0
    ids = Ids(np.arange(30) * 3, "item")
    queries = rng.integers(-2, 3, (5, 6)).astype(np.float32)
    queries[3] = 0
    for metric in ("dot", "cosine"):
        exact = ExactIndex(items, ids, metric=metric)
        ann = AnnIndex(exact, library, m=16, ef_construction=100, ef_search=100)
        for k in (1, 29, 35):
            found, scores = ann.search(queries, k, oversample=30)
            expected, expected_scores = exact.search(queries, k)
            np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
            if metric == "dot":  # cosines are equal to rounding only
                assert found.tolist() == expected.tolist()
        one, one_scores = ann.search(queries[1], 4, oversample=8)
        assert one.tolist() == exact.search(queries[1], 4)[0].tolist() and one_scores.shape == (4,)
        assert ann.search(queries[:0], 4)[0].shape == (0, 4) and ann.recall(queries, 5, oversample=6) == 1
    with pytest.raises(ValueError, match="queries must be numbers"):
        ann.search(np.ones((2, 7)))
    for k, message in ((0, "k must be an integer >= 1"), (10**15, "k must be smaller: lists of 1,000,000,000,000,000")):
        with pytest.raises(ValueError, match=message):
            ann.search(queries, k)


def test_more_results_than_candidates(library):
    """The search looks at as many candidates as are asked for, whatever `ef_search` says."""
    items, queries = vectors(500, 8)
    ann = AnnIndex(ExactIndex(items), library, ef_search=1)
    ids, _ = ann.search(queries, 60)
    assert (ids >= 0).all() and ann.recall(queries, 60) > 0.9
    assert AnnIndex(ExactIndex(items), library, ef_search=200).recall(queries, 1) > ann.recall(queries, 1) - 0.01


def test_a_graph_that_does_not_lead_everywhere(library):
    items, queries = vectors(1500, 8)
    items[500:] = items[0]  # of equal items a graph knows only each other
    ann = AnnIndex(ExactIndex(items), library, m=4, ef_construction=40)
    ids, scores = ann.search(queries[:3], 1500)
    for query, found, score in zip(queries, ids, scores, strict=False):
        n = int((found >= 0).sum())
        assert 10 <= n < 1500 and len(set(found[:n].tolist())) == n and (score[n:] == -np.inf).all()
        np.testing.assert_array_equal(ann.search(query, 1500)[0], found)


def test_recall_counts_what_is_missing(library, monkeypatch):
    items, queries = vectors(200, 8)
    ann = AnnIndex(ExactIndex(items), library)
    neighbours = ann._neighbours

    def without_the_best(points, wanted):
        found = neighbours(points, wanted)
        best = ann.exact.search(points, 2)[0]
        return np.where((found[:, :, None] == best[:, None]).any(-1), -1, found)

    before = ann.recall(queries, 10)
    assert before > 0.95  # usearch adds points from several threads, on a busy machine in another order each time
    monkeypatch.setattr(ann, "_neighbours", without_the_best)
    assert before - 0.21 < ann.recall(queries, 10) < before - 0.17  # two of ten


def test_native_labels_are_item_numbers(library):
    items, queries = vectors(100, 8)
    items[:50:2] = 0
    ann = AnnIndex(ExactIndex(items, metric="cosine"), library)
    found = ann._neighbours(queries, 75)
    assert (np.sort(found, axis=1) == np.flatnonzero(items.any(axis=1))).all()


def test_other_kinds_of_faiss_indexes():
    pytest.importorskip("faiss", reason="faiss is not installed")
    items, queries = vectors(1000, 16)
    exact = ExactIndex(items.astype(np.float64))
    flat = AnnIndex(exact, "faiss", factory="Flat")
    assert flat.recall(queries, 10) == 1 and flat.search(queries)[1].dtype == np.float64
    assert 0.1 < AnnIndex(exact, "faiss", factory="IVF16,Flat").recall(queries, 10) < 1  # one list of 16 is searched
    with pytest.raises(ValueError, match="factory is an option of library='faiss'"):
        AnnIndex(exact, "faiss", factory="Flat", m=8)


def test_bad_options_are_named(monkeypatch):
    exact = ExactIndex(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="library must be 'faiss', 'hnswlib' or 'usearch', got 'annoy'"):
        AnnIndex(exact, "annoy")
    with pytest.raises(ValueError, match="factory is an option of library='faiss'"):
        AnnIndex(exact, "hnswlib", factory="Flat")
    with pytest.raises(ValueError, match="m must be an integer >= 2, got 1"):
        AnnIndex(exact, "hnswlib", m=1)
    with pytest.raises(ValueError, match="index has no item that could be found"):
        AnnIndex(ExactIndex(np.zeros((3, 2)), metric="cosine"), "faiss")
    for name, package in (("faiss", "faiss-cpu"), ("hnswlib", "hnswlib"), ("usearch", "usearch")):
        monkeypatch.setitem(sys.modules, "usearch.index" if name == "usearch" else name, None)
        with pytest.raises(ModuleNotFoundError, match=f"library='{name}' needs .*: pip install {package}"):
            AnnIndex(exact, name)
