"""Metrics against numbers worked out by hand and a slow loop, splits against their promises, and the baseline."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse import random as random_sparse

from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.evaluation import metrics
from wals_gpu.evaluation.metrics import bootstrap_interval, ranking_metrics
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.report import evaluate
from wals_gpu.evaluation.splits import (
    cold_items_split,
    leave_one_out,
    random_holdout,
    sample_negatives,
    strong_generalisation_split,
    temporal_split,
)
from wals_gpu.model.wals import WALS


def sparse(shape, density=0.2, seed=0):
    return csr_matrix(random_sparse(*shape, density=density, random_state=np.random.default_rng(seed), format="csr"))


def entries(matrix):
    coo = matrix.tocoo()
    return set(zip(coo.row.tolist(), coo.col.tolist(), strict=True))


# -------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_worked_out_by_hand():
    # User 0 has three relevant items, 1 4 5; the list finds 4 at rank 1 and 1 at rank 3. User 1 has item 2, at rank 2.
    test = csr_matrix(np.array([[0, 1, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]]))
    found = ranking_metrics([[4, 0, 1, 2], [5, 2, -1, -1]], test, ks=[2, 4])
    log = math.log2
    expected = {
        "recall@2": (1 / 2 + 1) / 2,  # min(2, 3) = 2 possible hits for user 0
        "plain_recall@2": (1 / 3 + 1) / 2,
        "precision@2": (1 / 2 + 1 / 2) / 2,
        "hit_rate@2": 1.0,
        "ndcg@2": (1 / (1 + 1 / log(3)) + (1 / log(3)) / 1) / 2,
        "map@2": (1 / 2 + (1 / 2) / 1) / 2,
        "mrr@2": (1 + 1 / 2) / 2,
        "recall@4": (2 / 3 + 1) / 2,
        "plain_recall@4": (2 / 3 + 1) / 2,
        "precision@4": (2 / 4 + 1 / 4) / 2,
        "hit_rate@4": 1.0,
        "ndcg@4": ((1 + 1 / log(4)) / (1 + 1 / log(3) + 1 / log(4)) + 1 / log(3)) / 2,
        "map@4": ((1 / 1 + 2 / 3) / 3 + 1 / 2) / 2,
        "mrr@4": (1 + 1 / 2) / 2,
        "coverage@2": 4 / 6,  # 4 0 5 2
        "coverage@4": 5 / 6,  # and 1; item 2 twice
        "gini@2": 2 * (3 + 4 + 5 + 6) / (6 * 4) - 7 / 6,  # counts 0 0 1 1 1 1
        "gini@4": 2 * (2 + 3 + 4 + 5 + 2 * 6) / (6 * 6) - 7 / 6,  # counts 0 1 1 1 1 2
        "users": 2,
        "users_left_out": 0,
    }
    assert found == pytest.approx(expected, abs=1e-12)


def slow_metrics(ids, liked, k):
    hits = [item in liked for item in ids[:k]]
    possible = min(k, len(liked))
    return {
        "recall": sum(hits) / possible,
        "plain_recall": sum(hits) / len(liked),
        "precision": sum(hits) / k,
        "hit_rate": float(any(hits)),
        "ndcg": sum(h / math.log2(r + 2) for r, h in enumerate(hits))
        / sum(1 / math.log2(r + 2) for r in range(possible)),
        "map": sum(h * sum(hits[: r + 1]) / (r + 1) for r, h in enumerate(hits)) / possible,
        "mrr": max([h / (r + 1) for r, h in enumerate(hits)]),
    }


@pytest.mark.parametrize(("n_items", "ks"), [(40, (1, 5, 31)), (33, (32, 33)), (7, (7,))])
def test_metrics_equal_a_loop_over_users(n_items, ks):
    rng = np.random.default_rng(n_items)
    test = sparse((50, n_items), seed=n_items)
    ids = np.argsort(rng.random((50, n_items)), axis=1)[:, : max(ks)]
    ids[rng.random(50) < 0.3, max(ks) // 2 :] = -1
    found = ranking_metrics(ids, test, ks)
    rows = [row for row in range(50) if test[row].nnz]
    assert (found["users"], found["users_left_out"]) == (len(rows), 50 - len(rows))
    for k in ks:
        slow = [slow_metrics(ids[row].tolist(), set(test[row].indices.tolist()), k) for row in rows]
        for name in slow[0]:
            assert found[f"{name}@{k}"] == pytest.approx(np.mean([each[name] for each in slow]), abs=1e-12), name


def peers_world():
    """Scores of 60 users and 40 items, and what is relevant; user 7 has nothing."""
    rng = np.random.default_rng(7)
    scores, liked = rng.random((60, 40)), rng.random((60, 40)) < 0.15
    liked[np.arange(60), np.arange(60) % 40] = True
    liked[7] = False
    return np.argsort(-scores, axis=1), csr_matrix(liked.astype(np.float64))


# Of EvaluatorCore.get_metrics_f64 of irspack 0.5.2 on peers_world(); "recall" with recall_with_cutoff False and True.
IRSPACK = {
    5: {
        "recall": (0.14347610957780446, 0.18587570621468932),
        "precision": 0.17288135593220344,
        "hit": 0.6101694915254238,
        "ndcg": 0.18104961143619866,
        "map": 0.07563285819641749,
        "gini_index": 0.16228813559322033,
        "appeared_item": 40.0,
        "valid_user": 59.0,
    },
    20: {
        "recall": (0.5294094323755342, 0.5294094323755342),
        "precision": 0.16610169491525428,
        "hit": 1.0,
        "ndcg": 0.34493207843970747,
        "map": 0.1600371462416343,
        "gini_index": 0.08394067796610169,
        "appeared_item": 40.0,
        "valid_user": 59.0,
    },
}


@pytest.mark.parametrize("k", IRSPACK)
def test_metrics_agree_with_irspack(k):
    order, liked = peers_world()
    found, theirs = ranking_metrics(order[:, :k], liked, k), IRSPACK[k]
    assert (found[f"plain_recall@{k}"], found[f"recall@{k}"]) == pytest.approx(theirs["recall"], abs=1e-12)
    # irspack divides the sum of precisions by the number of relevant items, not by at most k.
    relevant = np.diff(liked.indptr)
    hit = np.take_along_axis(liked.toarray(), order[:, :k], 1)
    precisions = (hit * hit.cumsum(axis=1) / np.arange(1, k + 1)).sum(axis=1)
    assert np.mean((precisions / np.maximum(relevant, 1))[relevant > 0]) == pytest.approx(theirs["map"], abs=1e-12)
    assert found[f"map@{k}"] == pytest.approx(np.mean((precisions / np.clip(relevant, 1, k))[relevant > 0]), abs=1e-12)
    for ours, name in (("precision", "precision"), ("hit_rate", "hit"), ("ndcg", "ndcg"), ("gini", "gini_index")):
        assert found[f"{ours}@{k}"] == pytest.approx(theirs[name], abs=1e-12), name
    assert (found[f"coverage@{k}"] * 40, found["users"]) == (theirs["appeared_item"], theirs["valid_user"])


@pytest.mark.parametrize("k", [1, 5, 20, 40])
def test_metrics_agree_with_implicit(k):
    evaluation = pytest.importorskip("implicit.evaluation", reason="implicit is not installed")
    order, liked = peers_world()

    class Lists:
        def recommend(self, userid, user_items, N):
            return order[userid][:, :N].astype(np.int32), np.ones((len(userid), N), np.float32)

    theirs = evaluation.ranking_metrics_at_k(Lists(), csr_matrix(liked.shape), liked, K=k, show_progress=False)
    found = ranking_metrics(order[:, :k], liked, k)
    assert found[f"ndcg@{k}"] == pytest.approx(theirs["ndcg"], abs=1e-12)
    assert found[f"map@{k}"] == pytest.approx(theirs["map"], abs=1e-12)
    hits = np.take_along_axis(liked.toarray(), order[:, :k], 1).sum()
    possible = np.minimum(k, np.diff(liked.indptr)).sum()
    assert theirs["precision"] == pytest.approx(hits / possible)  # the one metric that none of ours is
    assert found[f"precision@{k}"] == pytest.approx(hits / k / found["users"])


def test_values_of_zero_and_below_are_not_relevant():
    test = csr_matrix((np.array([1.0, 0.0, -2.0, -1.0]), ([0, 0, 0, 1], [0, 1, 2, 0])), shape=(2, 3))
    found = ranking_metrics([[1, 2, 0], [0, 1, 2]], test, ks=[1, 3])
    assert (found["recall@1"], found["recall@3"], found["users"], found["users_left_out"]) == (0.0, 1.0, 1, 1)


def test_novelty_is_the_self_information_of_the_items():
    train = csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]]))
    found = ranking_metrics([[1, 0, -1]], csr_matrix(np.array([[0, 0, 1]])), ks=[1, 3], train=train)
    assert found["novelty@1"] == pytest.approx(2.0)  # a quarter of the users
    assert found["novelty@3"] == pytest.approx((2.0 + 0.0) / 2)  # item 0 is everybody's; -1 does not count


@pytest.mark.parametrize(
    ("ids", "ks", "message"),
    [
        ([[0, 1]], 3, "ks must not exceed"),
        ([[0, 1]], 0, "at least 1"),
        ([[0, 5]], 1, r"ids must lie in \[-1, 3\)"),
        ([[-2, 1]], 1, r"ids must lie in \[-1, 3\)"),
        ([[1, 1]], 1, "twice in a row; row 0"),
        ([0, 1], 1, r"shape \(B=1, K\)"),
        ([[0.5, 1.0]], 1, "integers"),
    ],
)
def test_bad_lists_are_refused(ids, ks, message):
    with pytest.raises(ValueError, match=message):
        ranking_metrics(ids, csr_matrix(np.array([[1, 0, 0]])), ks)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="nothing to measure"):
        ranking_metrics([[0]], csr_matrix((1, 3)), 1)


# --------------------------------------------------------------------------------------------------------------- splits


def test_random_holdout_is_the_same_everywhere():
    _, test = random_holdout(csr_matrix(np.ones((4, 5))), 0.25, random_state=7)
    assert sorted(entries(test)) == [(0, 3), (0, 4), (1, 1), (2, 1), (2, 2)]


@pytest.mark.parametrize("per_user", [False, True])
def test_random_holdout_divides_the_entries(per_user):
    matrix = sparse((60, 45))
    train, test = random_holdout(matrix, 0.3, random_state=1, per_user=per_user)
    assert not entries(train) & entries(test)
    assert abs(train + test - matrix).nnz == 0
    if per_user:
        expected = np.floor(0.3 * np.diff(matrix.indptr))
        assert np.diff(test.indptr).tolist() == expected.tolist()
    else:
        assert test.nnz == round(0.3 * matrix.nnz)


def test_splits_do_not_depend_on_the_order_of_the_input_and_leave_it_alone():
    matrix = sparse((30, 20))
    coo = matrix.tocoo()
    order = np.random.default_rng(3).permutation(matrix.nnz)
    shuffled = coo_matrix((coo.data[order], (coo.row[order], coo.col[order])), shape=matrix.shape)
    before = shuffled.row.copy()
    for split in (random_holdout, leave_one_out, cold_items_split, strong_generalisation_split):
        ours, theirs = split(matrix, random_state=5), split(shuffled, random_state=5)
        other = split(matrix, random_state=6)
        assert abs(ours[1] - theirs[1]).nnz == 0
        assert entries(ours[1]) != entries(other[1])
    assert np.array_equal(shuffled.row, before)


def test_explicit_zeros_stay_entries():
    matrix = csr_matrix((np.zeros(10), (np.arange(10), np.arange(10))), shape=(10, 10))
    train, test = random_holdout(matrix, 0.5)
    assert (train.nnz, test.nnz) == (5, 5)


def test_leave_one_out_takes_the_last_by_time():
    matrix = csr_matrix(np.array([[1, 1, 1], [0, 1, 0], [1, 0, 1]]))
    times = np.array([30, 10, 20, 99, 5, 5])  # of (0,0) (0,1) (0,2) (1,1) (2,0) (2,2)
    train, test = leave_one_out(matrix, times)
    assert entries(test) == {(0, 0), (2, 2)}  # a tie: the higher column; user 1 has one entry and keeps it
    assert entries(train) == {(0, 1), (0, 2), (1, 1), (2, 0)}
    as_matrix = csr_matrix((times.astype(float), matrix.indices, matrix.indptr), shape=matrix.shape)
    assert entries(leave_one_out(matrix, as_matrix)[1]) == entries(test)
    assert entries(leave_one_out(matrix, times.astype("datetime64[s]"))[1]) == entries(test)


def test_leave_one_out_at_random_takes_one_of_each():
    matrix = sparse((80, 12))
    train, test = leave_one_out(matrix, random_state=2)
    assert np.array_equal(np.diff(test.indptr), np.diff(matrix.indptr) >= 2)
    assert abs(train + test - matrix).nnz == 0


def test_temporal_split_cuts_at_a_moment():
    matrix = csr_matrix(np.array([[1, 1, 1], [0, 1, 1]]))
    times = np.array([1, 2, 3, 4, 5])
    assert entries(temporal_split(matrix, times, cutoff=4)[1]) == {(1, 1), (1, 2)}
    assert entries(temporal_split(matrix, times, fraction=0.2)[1]) == {(1, 2)}
    assert entries(temporal_split(matrix, times.astype("datetime64[D]"), fraction=0.4)[1]) == {(1, 1), (1, 2)}
    for cutoff, side in [(0, "train"), (6, "test")]:
        with pytest.raises(ValueError, match=f"no entry for {side}"):
            temporal_split(matrix, times, cutoff=cutoff)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 2.0], r"shape \(3,\), got shape \(2,\)"),
        ([1.0, np.nan, 2.0], "1 of 3"),
        (np.array(["2020", "NaT", "2021"], dtype="datetime64[D]"), "1 of 3"),
        (["a", "b", "c"], "numbers, or dates such as .* got 'a' in place 0"),
        (csr_matrix(np.array([[1, 1, 0], [0, 0, 1]])), "stored entries of matrix"),
    ],
)
def test_bad_timestamps_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out(csr_matrix(np.array([[1, 1, 0], [0, 1, 0]])), times)


def test_timestamps_in_another_order_than_the_entries_are_refused():
    shuffled = coo_matrix(([1.0, 1.0], ([0, 0], [1, 0])), shape=(1, 2))
    with pytest.raises(ValueError, match="sparse matrix of timestamps"):
        leave_one_out(shuffled, [1, 2])
    times = coo_matrix(([1.0, 2.0], ([0, 0], [1, 0])), shape=(1, 2))
    assert entries(leave_one_out(shuffled, times)[1]) == {(0, 0)}


def test_negatives_are_drawn_from_what_a_user_does_not_have():
    matrix = sparse((300, 50), 0.3)
    train, test = leave_one_out(matrix, random_state=3)
    candidates = sample_negatives(train, test, 12, random_state=5)
    for user in range(300):
        row, asked = set(candidates[user].indices.tolist()), set(test[user].indices.tolist())
        assert asked <= row and len(row - asked) == (12 if asked else 0)
        assert not row & set(train[user].indices.tolist())
    assert candidates.has_sorted_indices and candidates.shape == (300, 50)
    again = sample_negatives(train.tocoo(), test.tocsc(), 12, random_state=5)
    assert np.array_equal(again.indices, candidates.indices)
    assert not np.array_equal(sample_negatives(train, test, 12, random_state=6).indices, candidates.indices)
    # Every item that a user does not have is as likely as any other.
    one, none = csr_matrix(np.array([[1, 0, 1, 0, 0, 0, 1, 0]])), csr_matrix(np.array([[0, 0, 0, 1, 0, 0, 0, 0]]))
    rng = np.random.default_rng(0)
    drawn = np.zeros(8)
    for _ in range(3000):
        drawn[sample_negatives(one, none, 2, rng).indices] += 1
    assert drawn[[0, 2, 6]].tolist() == [0, 0, 0] and drawn[3] == 3000
    assert abs(drawn[[1, 4, 5, 7]] - 1500).max() < 5 * np.sqrt(3000 / 4)
    assert sample_negatives(one, none, 4).nnz == 5
    with pytest.raises(ValueError, match=r"n must be at most .* 4 for user 0"):
        sample_negatives(one, none, 5)
    with pytest.raises(ValueError, match="one shape"):
        sample_negatives(train, test[:5])


def test_cold_items_lose_every_entry():
    matrix = sparse((60, 45))
    train, test, cold = cold_items_split(matrix, 0.2, random_state=4)
    assert cold.size == round(0.2 * np.count_nonzero(np.diff(matrix.tocsc().indptr)))
    assert train[:, cold].nnz == 0
    assert test.nnz == test[:, cold].nnz == matrix[:, cold].nnz > 0
    assert abs(train + test - matrix).nnz == 0


@pytest.mark.parametrize("heldout", [0.25, 15])
def test_strong_generalisation_holds_out_users(heldout):
    matrix = sparse((60, 45), density=0.06)
    matrix = csr_matrix(matrix + csr_matrix((np.ones(60), (range(60), [0] * 60)), shape=(60, 45)))  # nobody is empty
    split = strong_generalisation_split(matrix, heldout, test_fraction=0.4, random_state=9)
    assert split.heldout_users.size == 15
    assert sorted([*split.train_users, *split.heldout_users]) == list(range(60))
    assert abs(split.train - matrix[split.train_users]).nnz == 0
    whole = split.fold_in + split.test
    known = np.diff(split.train.tocsc().indptr) > 0
    assert whole.nnz < matrix[split.heldout_users].nnz  # some items have no training user
    assert entries(whole) == {(r, c) for r, c in entries(matrix[split.heldout_users]) if known[c]}
    assert np.array_equal(np.diff(split.test.indptr), np.floor(0.4 * np.diff(whole.indptr)))


@pytest.mark.parametrize("heldout", [0, 60, 0.0, 1.0, -3])
def test_strong_generalisation_needs_users_on_both_sides(heldout):
    with pytest.raises(ValueError, match="users on both sides"):
        strong_generalisation_split(sparse((60, 45), density=0.5), heldout)


@pytest.mark.parametrize("heldout", ["3", True, None, 1.5, float("nan")])
def test_strong_generalisation_needs_a_number_of_users(heldout):
    with pytest.raises((TypeError, ValueError), match=rf"heldout must be a number from 0 to 1, got {heldout!r}"):
        strong_generalisation_split(sparse((60, 45), density=0.5), heldout)


@pytest.mark.parametrize("k", [0, -1, "2", 2.5])
def test_popularity_needs_a_length(k):
    with pytest.raises((TypeError, ValueError), match=rf"k must be an integer >= 1, got {k!r}"):
        Popularity(sparse((6, 5), density=0.5)).recommend([1], k)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_fractions_are_checked(fraction):
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        random_holdout(sparse((5, 5)), fraction)
    with pytest.raises(TypeError, match=r"fraction must lie in \(0, 1\), got '0.5'"):
        random_holdout(sparse((5, 5)), "0.5")


def test_a_dense_array_is_a_matrix_whose_zeros_are_absent():
    dense = np.arange(12.0).reshape(3, 4)
    train, test = random_holdout(dense, 0.3)
    assert train.dtype == np.float64 and (train + test).toarray().tolist() == dense.tolist()
    assert (train.nnz, test.nnz) == (8, 3)
    for wrong in (np.ones(3), np.array([["a"]])):
        with pytest.raises(ValueError, match="matrix: interactions must"):
            random_holdout(wrong)
    with pytest.raises(TypeError, match="matrix: interactions must be"):
        random_holdout(7)


# ----------------------------------------------------------------------------------------------------------- popularity


@pytest.mark.parametrize("k", [1, 7, 20, 26])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_popularity_equals_sorting_per_user(k, filter_seen):
    train = sparse((40, 23), density=0.4)
    train.data[::5] *= -1  # dislikes: seen, but not popular
    counts = (train.toarray() > 0).sum(axis=0)
    ids, scores = Popularity(train).recommend(np.arange(40), k, filter_seen=filter_seen)
    for user in range(40):
        candidates = set(range(23)) - (set(train[user].indices.tolist()) if filter_seen else set())
        expected = sorted(candidates, key=lambda item: (-counts[item], item))[:k]
        expected += [-1] * (k - len(expected))
        assert ids[user].tolist() == expected
        assert scores[user].tolist() == [counts[item] if item >= 0 else -np.inf for item in expected]


def test_popularity_on_a_world_with_a_known_answer():
    # Item i is liked by users 0 .. 9 - i, and each user's test item is the most popular one that they do not have:
    # popularity is right for everybody. User 0 has everything.
    dense = np.array([[1 if user < 10 - item else 0 for item in range(10)] for user in range(10)])
    train = csr_matrix(dense)
    answers = np.array([[1 if item == 10 - user else 0 for item in range(10)] for user in range(10)])
    report = evaluate(Popularity(train), train, csr_matrix(answers), ks=(1, 2))
    assert list(report.results) == ["popularity"]
    assert report.results["popularity"]["recall@1"].value == 1.0
    assert report.users.tolist() == list(range(1, 10))
    assert report.users_left_out == 1


# -------------------------------------------------------------------------------------------------- bootstrap, evaluate


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(0.3, 0.1, size=2000)
    estimate = bootstrap_interval(values, n_resamples=2000)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.08 * half)
    assert estimate == bootstrap_interval(values, n_resamples=2000)
    assert estimate != bootstrap_interval(values, n_resamples=2000, random_state=1)
    wider = bootstrap_interval(values, n_resamples=2000, confidence=0.99)
    assert wider.low < estimate.low < estimate.high < wider.high


def test_bootstrap_resamples_columns_together():
    values = np.random.default_rng(0).random(50)
    first, second, constant = bootstrap_interval(np.column_stack([values, values + 1, np.ones(50)]))
    assert second == pytest.approx(np.add(first, 1.0))
    assert constant == (1.0, 1.0, 1.0)
    assert first == pytest.approx(bootstrap_interval(values))


def test_bootstrap_checks_its_input():
    with pytest.raises(ValueError, match="V > 0"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="n_resamples"):
        bootstrap_interval([1.0], n_resamples=0)


class Oracle:
    """Recommends the test items first, then the others in order."""

    def __init__(self, test):
        self.order = np.argsort(-test.toarray(), axis=1, kind="stable")

    def recommend(self, users, k=10, *, filter_seen=True):
        return self.order[users][:, :k], np.zeros((len(users), k))


def test_diversity_and_serendipity_are_those_of_each_pair_and_place():
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(30, 4)).astype(np.float32)
    vectors[3] = 0
    test = sparse((40, 30), density=0.3)
    ids, expected = (np.argsort(rng.random((40, 30)), axis=1)[:, :8] for _ in range(2))
    for row, left in enumerate([0, 1, 2, 5]):
        ids[row, left:], expected[row + 2, left:] = -1, -1
    found = ranking_metrics(ids, test, [1, 5, 8], vectors=vectors * 1e20, expected=expected)
    units = vectors.astype(float) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    users = np.flatnonzero(np.diff(test.indptr))
    for k in (1, 5, 8):
        diversity, serendipity = [], []
        for user in users:
            items = [i for i in ids[user, :k] if i >= 0]
            pairs = [1 - units[a] @ units[b] for a, b in itertools.combinations(items, 2)]
            diversity.append(np.mean(pairs) if pairs else 0)
            liked = [i for i in items if test[user, i] > 0 and i not in expected[user, :k]]
            serendipity.append(len(liked) / k)
        assert found[f"intra_list_diversity@{k}"] == pytest.approx(np.mean(diversity), abs=1e-6)
        assert found[f"serendipity@{k}"] == pytest.approx(np.mean(serendipity))
    for options, message in (
        ({"vectors": vectors[1:]}, r"vectors must be numbers of shape \(I=30, E\), got float32 \(29, 4\)"),
        ({"vectors": vectors * np.nan}, "vectors must be finite"),
        ({"vectors": pd.DataFrame(vectors, index=range(1, 31))}, "whatever the index of a DataFrame says"),
        ({"expected": expected[:, :3]}, "expected must have at least 8 items in a row"),
        ({"expected": expected + 30}, r"expected must lie in \[-1, 30\)"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking_metrics(ids, test, 8, **options)


def test_evaluate_puts_popularity_beside_the_model():
    train, test = random_holdout(sparse((120, 30), density=0.3), 0.3, random_state=1)
    test.data[:] = 1
    report = evaluate(Oracle(test), train, test, ks=(5, 10), filter_seen=False, batch_size=7)
    assert report.results["oracle"]["recall@10"] == (1.0, 1.0, 1.0)
    assert report.results["oracle"]["ndcg@5"].value == pytest.approx(1.0)
    popular = Popularity(train).recommend(np.arange(120), 10, filter_seen=False)[0]
    direct = ranking_metrics(popular, test, (5, 10), train=train, expected=popular)
    assert direct["serendipity@5"] == 0  # by definition
    for name, estimate in report.results["popularity"].items():
        assert estimate.value == pytest.approx(direct[name]), name
    interval = report.results["popularity"]["recall@5"]
    assert interval.low < interval.value < interval.high
    assert report.results["popularity"]["coverage@5"].low is None
    assert "recall@5" in str(report)
    assert f"{report.users.size} users evaluated" in str(report)
    assert report.to_dict()["results"]["oracle"]["recall@10"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    paired = report.per_user["oracle"]["recall@5"] - report.per_user["popularity"]["recall@5"]
    assert bootstrap_interval(paired).low > 0


def test_evaluate_recommends_to_heldout_users_from_what_is_known_of_them():
    split = strong_generalisation_split(sparse((60, 25), density=0.4), 20)
    report = evaluate(Popularity(split.train), split.train, split.test, ks=5, fold_in=split.fold_in)
    ids, _ = Popularity(split.train).recommend_for(split.fold_in, 5)
    direct = ranking_metrics(ids, split.test, 5)
    assert report.results["popularity"]["ndcg@5"].value == pytest.approx(direct["ndcg@5"])


@pytest.mark.parametrize("names", [list("zyxwvutsrqponmlkjihg"), range(100, 80, -1)], ids=["strings", "integers"])
def test_evaluate_understands_a_model_that_speaks_in_ids(names):
    train, test = random_holdout(sparse((40, 20), density=0.5), 0.3)
    user_ids, item_ids = (
        Ids.encode(pa.array(ids), side)[0] for ids, side in ((range(500, 540), "user"), (names, "item"))
    )
    named = WALS(4, iterations=3).fit(Interactions(train, user_ids, item_ids))
    plain = WALS(4, iterations=3).fit(train)
    ks = (3, 20)  # 20: some lists end early
    assert (
        evaluate(named, train, test, ks).to_dict()["results"] == evaluate(plain, train, test, ks).to_dict()["results"]
    )
    split = strong_generalisation_split(train + test, 15)
    for model in (named, plain):
        model.fit(Interactions(split.train, None, model.item_ids))
    reports = [evaluate(model, split.train, split.test, ks, fold_in=split.fold_in) for model in (named, plain)]
    assert reports[0].to_dict()["results"] == reports[1].to_dict()["results"]
    ids, _ = plain.recommend_for(split.fold_in, 20)
    direct = ranking_metrics(ids, split.test, 3)
    assert reports[1].results["wals"]["ndcg@3"].value == pytest.approx(direct["ndcg@3"])


@pytest.mark.parametrize("names", [False, True])
def test_leave_one_out_with_sampled_negatives(names):
    """A hit is a test item that fewer than k of the candidates beat: counted here one by one."""
    matrix = sparse((40, 30), 0.3, seed=2)
    train, test = leave_one_out(matrix, random_state=1)
    candidates = sample_negatives(train, test, 9, random_state=1)
    data = train
    if names:
        coo = train.tocoo()
        table = pa.table(
            {"user": [f"u{r:02}" for r in coo.row], "item": [f"i{c:02}" for c in coo.col], "value": coo.data}
        )
        data = as_interactions(table)
        assert data.matrix.shape == train.shape
    model = WALS(factors=3, iterations=2).fit(data)
    report = evaluate(model, train, test, ks=(1, 4), candidates=candidates)
    scores = model.user_factors @ model.item_factors.T
    popular = np.bincount(train.indices[train.data > 0], minlength=30)
    for name, table in (("wals", scores), ("popularity", np.tile(popular - np.arange(30) / 100, (40, 1)))):
        places = []
        for user in report.users:
            row, asked = candidates[user].indices, test[user].indices[0]
            places.append(1 + (table[user, row] > table[user, asked]).sum())
        for k in (1, 4):
            found = report.per_user[name][f"hit_rate@{k}"]
            assert found.tolist() == [float(place <= k) for place in places]
            assert report.results[name][f"ndcg@{k}"].value == pytest.approx(
                np.mean([1 / math.log2(1 + place) if place <= k else 0 for place in places])
            )
    with pytest.raises(
        ValueError, match=r"candidates must have (the shape of test|40 rows, one for each user of the model)"
    ):
        evaluate(model, train, test, candidates=candidates[:5])


def test_candidates_with_fold_in_and_seen_items():
    matrix = sparse((40, 30), 0.3, seed=2)
    split = strong_generalisation_split(matrix, 10)
    model = WALS(factors=3, iterations=2).fit(split.train)
    candidates = sample_negatives(split.fold_in, split.test, 5)
    report = evaluate(model, split.train, split.test, ks=40, fold_in=split.fold_in, candidates=candidates)
    assert all((report.per_user[name]["plain_recall@40"] == 1).all() for name in ("wals", "popularity"))
    for seen in (True, False):  # what a user has is left out of the candidates unless asked for
        both = (candidates + split.fold_in.astype(bool)).astype(bool)
        for recommender in (model, Popularity(split.train)):
            ids, _ = recommender.recommend_for(split.fold_in, 40, filter_seen=seen, allow=both)
            expected = candidates if seen else both
            assert [set(row) - {-1} for row in ids.tolist()] == [set(row.indices.tolist()) for row in expected]


def test_cohorts_by_how_much_is_known():
    rng = np.random.default_rng(4)
    liked = rng.random((60, 40)) < 0.02 + 0.3 * (np.arange(40) / 40) ** 2
    liked[:7] = False
    train = csr_matrix(liked.astype(float))
    test = csr_matrix((rng.random((60, 40)) < 0.2) & (train.toarray() == 0), dtype=float)
    model = WALS(factors=3, iterations=2).fit(train)
    report = evaluate(model, train, test, ks=(5, 10), few_shot=3)
    of_user, of_item = np.diff(train.indptr), np.bincount(train.indices, minlength=40)
    assert (of_item == 0).any() and set(report.cohorts) == {
        f"{name} {side}" for name in ("cold", "few-shot", "warm") for side in ("users", "items")
    } | {"known users"}
    ids = {"wals": model.recommend(range(60), 10)[0], "popularity": Popularity(train).recommend(range(60), 10)[0]}
    for name, low, high in (("known", 1, 99), ("cold", 0, 0), ("few-shot", 1, 3), ("warm", 4, 99)):
        for side, keep in (
            ("users", ((of_user >= low) & (of_user <= high))[:, None]),
            ("items", ((of_item >= low) & (of_item <= high))[None]),
        )[: 1 if name == "known" else 2]:
            part = csr_matrix(test.toarray() * keep)
            found = report.cohorts[f"{name} {side}"]
            assert (found.users, found.entries) == ((np.diff(part.indptr) > 0).sum(), part.nnz)
            for who, lists in ids.items():
                expected = ranking_metrics(lists, part, ks=(5, 10))
                for metric, estimate in found.results[who].items():
                    assert estimate.value == pytest.approx(expected[metric]), (name, side, metric)
                    assert estimate.low <= estimate.value <= estimate.high
    assert "few-shot items" in str(report) and "cold users" in json.dumps(report.to_dict())
    whole = evaluate(model, train, test, ks=(5, 10), batch_size=7, few_shot=3)
    assert whole.cohorts == report.cohorts
    alone = evaluate(model, train, test, ks=(5, 10)).cohorts  # cold users are shown apart, asked for or not
    assert alone == {name: report.cohorts[name] for name in ("known users", "cold users")}
    known = test.multiply(of_user[:, None] > 0).tocsr()
    known.eliminate_zeros()
    assert evaluate(model, train, csr_matrix(known), ks=5).cohorts == {}
    plain = evaluate(model, train, test, ks=5, few_shot=30, n_resamples=0)
    assert set(plain.cohorts) == {"known users", "cold users", "few-shot users", "cold items", "few-shot items"}
    assert plain.cohorts["cold items"].results["wals"]["ndcg@5"].low is None
    with pytest.raises(ValueError, match="few_shot must be an integer >= 1, got 0"):
        evaluate(model, train, test, few_shot=0)


def test_evaluate_refuses_what_cannot_be_right():
    train, test = random_holdout(sparse((20, 10), density=0.5), 0.3)

    class Bare:
        def recommend(self, users, k, filter_seen=True):
            return [[0]] * 5

    with pytest.raises(TypeError, match=r"what Bare recommends must be a pair \(ids, scores\), .* got \[\[0\], \[0\]"):
        evaluate(Bare(), train, test)
    with pytest.raises(ValueError, match="never recommends"):
        evaluate(Popularity(train), train, train)
    with pytest.raises(ValueError, match=r"test must have shape \(20, 10\)"):
        evaluate(Popularity(train), train, test[:5])
    with pytest.raises(ValueError, match="nothing to measure"):
        evaluate(Popularity(train), train, csr_matrix((20, 10)))
    for options, message in (
        ({"confidence": 95}, r"confidence must lie in \(0, 1\), got 95"),
        ({"n_resamples": -1}, "n_resamples must be an integer >= 0, got -1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(Popularity(train), train, test, **options)
    for name in ("k", "users"):
        with pytest.raises(TypeError, match=f"options must not have '{name}', which evaluate itself gives"):
            evaluate(WALS(2, iterations=1).fit(train), train, test, options={name: 3})


# --------------------------------------------------------------------------------------------------- the page for users

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
def test_examples_of_the_page(block):
    exec(compile(block, str(PAGE), "exec"), {})


def test_the_page_defines_every_metric():
    found = ranking_metrics([[0]], csr_matrix([[1.0]]), 1, train=csr_matrix([[1.0]]))
    for name in found:
        if "@" in name:
            assert f"| `{name.replace('@1', '@k')}` |" in PAGE.read_text("utf-8")
            assert f"``{name.replace('@1', '@k')}``" in metrics.__doc__


def test_the_report_says_where_popularity_is_ahead():
    rng = np.random.default_rng(0)
    data = csr_matrix((rng.random((200, 60)) < np.linspace(0.4, 0.02, 60)).astype(np.float32))  # nobody has a taste
    train, test = random_holdout(data, 0.2)

    class Last(Popularity):
        def recommend(self, users, k=10, **options):
            ids, scores = super().recommend(users, 60, **options)
            return ids[:, ::-1][:, :k], scores[:, ::-1][:, :k]

    notes = evaluate(Last(train), train, test, 10).notes
    assert any(note.startswith("popularity is ahead in ndcg@10") for note in notes)
    assert not any("is ahead" in note for note in evaluate(Last(train), train, test, 10, baseline=False).notes)
    better = WALS(8, regularization=1.0, num_threads=1).fit(train)  # nearly popularity
    report = evaluate(better, train, test, 10)
    ahead = report.results["wals"]["ndcg@10"].value < report.results["popularity"]["ndcg@10"].value
    assert any("is ahead" in note for note in report.notes) == ahead
