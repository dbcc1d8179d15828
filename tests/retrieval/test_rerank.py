"""Re-ranked lists against slow definitions in float64: one place after the other, each candidate looked at by itself."""

import warnings

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wals_gpu import ParameterWarning
from wals_gpu.data.categories import Categories
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


def check_list(found, pool, scores, k, diversity=None, vectors=None, labels=None, quotas=NONE, cost=None):
    """That a list (item numbers) is what the definitions say, up to what rounding decides; `pool` in rising order."""
    low, high = scores.min(), scores.max()
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
