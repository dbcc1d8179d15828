"""Churn of lists: by hand, by another way to compute it, and between models whose ids are in another order."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError
from wals_gpu.data import Ids
from wals_gpu.evaluation import Popularity, churn


class Fixed:
    """Gives the lists that it was made with."""

    def __init__(self, lists, item_ids=None, n_items=9):
        self.lists = np.array(lists)
        self.user_factors, self.item_factors = np.zeros((len(lists), 1)), np.zeros((n_items, 1))
        self.user_ids = None
        self.item_ids = None if item_ids is None else Ids(np.array(item_ids), "item")

    def recommend(self, users, k=10, *, filter_seen=True):
        ids = self.lists[np.asarray(users), :k]
        return ids if self.item_ids is None else self.item_ids.take(ids), np.zeros(ids.shape)


def overlap_by_definition(a, b, p=0.9):
    """Rank-biased overlap, extrapolated, with sets: Webber et al. 2010, equation 30."""
    a, b = [i for i in a if i >= 0], [i for i in b if i >= 0]
    n = max(len(a), len(b))
    if not n:
        return 1.0
    common = [len(set(a[:d]) & set(b[:d])) for d in range(1, n + 1)]
    return common[-1] / n * p**n + (1 - p) / p * sum(common[d - 1] / d * p**d for d in range(1, n + 1))


def test_by_hand():
    old = Fixed([[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [4, 5, -1, -1]])
    new = Fixed([[0, 1, 2, 3], [1, 0, 2, 3], [5, 6, 7, 8], [4, 5, 6, -1]])
    found = churn(old, new, k=4)
    assert found.users == 4 and found.k == 4
    assert found.changed == pytest.approx((0 + 0 + 1 + 1 / 3) / 4)
    assert found.users_changed == 3 / 4 and found.first_changed == 2 / 4
    assert found.new_items == pytest.approx(3 / 9)  # 6, 7 and 8, of 0 to 8
    expected = [overlap_by_definition(a, b) for a, b in zip(old.lists, new.lists, strict=True)]
    assert expected[0] == pytest.approx(1) and expected[2] == 0
    assert found.overlap == pytest.approx(np.mean(expected))
    assert churn(old, new, [2], 4).changed == 1 and churn(old, old, k=4).to_dict() == {
        "k": 4, "users": 4, "changed": 0, "overlap": pytest.approx(1), "users_changed": 0, "first_changed": 0,
        "new_items": 0,
    }  # fmt: skip
    assert "rank-biased overlap" in str(found) and "<table" in found._repr_html_()


def test_against_the_definition():
    rng = np.random.default_rng(0)
    lists = [np.array([rng.permutation(30)[:12] for _ in range(50)]) for _ in range(2)]
    for side in lists:  # some end early
        side[np.arange(12) >= rng.integers(0, 13, 50)[:, None]] = -1
    found = churn(Fixed(lists[0], n_items=30), Fixed(lists[1], n_items=30), k=12)
    expected = [overlap_by_definition(a, b) for a, b in zip(*lists, strict=True)]
    assert found.overlap == pytest.approx(np.mean(expected))
    sets = [[set(row[row >= 0].tolist()) for row in side] for side in lists]
    longest = [max(len(a), len(b)) for a, b in zip(*sets, strict=True)]
    changed = [1 - len(a & b) / n if n else 0 for a, b, n in zip(*sets, longest, strict=True)]
    assert found.changed == pytest.approx(np.mean(changed))


def test_long_lists_take_memory_by_their_length():
    rng = np.random.default_rng(0)
    k, n = 600, 2000
    lists = [np.array([rng.permutation(n)[:k] for _ in range(20)]) for _ in range(2)]
    sides = [Fixed(side, n_items=n) for side in lists]
    tracemalloc.start()
    found = churn(*sides, k=k)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * k * 250  # for all pairs of places it was 20 k^2
    assert found.overlap == pytest.approx(np.mean([overlap_by_definition(*pair) for pair in zip(*lists, strict=True)]))


def test_items_are_compared_by_id():
    old, new = Fixed([[0, 1]], item_ids=[10, 20, 30]), Fixed([[1, 2]], item_ids=[5, 10, 20])
    assert churn(old, new, k=2).to_dict() == churn(old, old, k=2).to_dict()
    assert churn(old, Fixed([[0, 1]], item_ids=[5, 10, 20]), k=2).new_items == 0.5


def test_models_and_their_samples():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.integers(0, 40, 400), "item": rng.integers(0, 30, 400)})
    model = WALS(4, iterations=2, num_threads=1)
    with pytest.warns(UserWarning):
        first = model.fit(table)
        second = WALS(4, iterations=2, num_threads=1, random_state=1).fit(table[table.user > 3])
    found = churn(first, second, k=5)
    assert found.users == 36 and 0 < found.changed < 1
    sample = churn(first, second, k=5, sample=10)
    assert sample.users == 10 and sample == churn(first, second, k=5, sample=10)
    assert sample != churn(first, second, k=5, sample=10, random_state=1)
    with pytest.warns(UserWarning):
        assert churn(first, Popularity(table), k=5).users == 40
    assert churn(first, second, k=10**9) == replace(churn(first, second, k=30), k=10**9)  # there are 30 items
    with pytest.raises(DataError, match="users must be users of both models; the new one: unknown user id: 3"):
        churn(first, second, [3])
    with pytest.raises(DataError, match="one of the models has user ids and the other none"):
        churn(first, WALS(2, iterations=1, num_threads=1).fit(csr_matrix(np.eye(3, dtype="float32"))))
    with pytest.raises(ValueError, match="k must be an integer >= 1, got 0"):
        churn(first, second, k=0)
