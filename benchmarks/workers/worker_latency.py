"""One request at a time, and a batch with a list for everybody, of one system; started by bench_latency.py.

`mode` "requests" checks and times every kind of request; "batch" answers one batch twice, with and without a deny list,
and measures time and memory of it. Prints one JSON object.
"""

import json
import sys
import time
import warnings

import numpy as np
from scipy.sparse import csr_matrix

from lib.common import median_seconds, peak_rss_mib, reset_peak, threadpools

SEEN = 20  # entries of a user
K = 10


def make_input(spec):
    """User factors (U, D), item factors (I, D), read-only as a fit leaves them, and the entries (U, I)."""
    rng = np.random.default_rng(spec["seed"])
    users, items, factors = spec["users"], spec["items"], spec["factors"]
    x, y = (rng.standard_normal((n, factors), dtype=np.float32) for n in (users, items))
    y *= np.exp(0.5 * rng.standard_normal((items, 1), dtype=np.float32))
    x.flags.writeable = y.flags.writeable = False
    columns = np.sort(rng.integers(items, size=(users, SEEN)), axis=1).ravel()
    ones = np.ones(columns.size, np.float32)
    liked = csr_matrix((ones, columns, np.arange(users + 1) * SEEN), shape=(users, items))
    liked.sum_duplicates()
    return x, y, liked


def of_implicit(cls):
    def make(x, y, liked, threads):
        model = cls(factors=x.shape[1], num_threads=threads)
        model.user_factors, model.item_factors = x, y
        return {
            "recommend": lambda user, **lists: model.recommend(user, liked[user], N=K, **lists),
            "deny": "filter_items",
            "allow": "items",
            "similar": lambda item: model.similar_items(item, N=K),
        }

    return make


def implicit(*data):
    from implicit.cpu.als import AlternatingLeastSquares

    return of_implicit(AlternatingLeastSquares)(*data)


def drop_in(*data):
    from wals_gpu.als import CpuAlternatingLeastSquares

    return of_implicit(CpuAlternatingLeastSquares)(*data)


def wals(x, y, liked, threads):
    from wals_gpu import WALS

    model = WALS(x.shape[1], "implicit", iterations=1, solver="cg", num_threads=threads).fit(liked)
    model.user_factors, model.item_factors = x, y
    return {
        "recommend": lambda user, **lists: model.recommend(user, K, **lists),
        "deny": "deny_items",
        "allow": "allow_items",
        "similar": lambda item: model.similar_items(item, K),
    }


SYSTEMS = {"implicit": implicit, "wals_gpu.als": drop_in, "WALS": wals}


def check(found, scores) -> None:
    """Compare answers (B, K) with a full sort of float64 scores (B, I), -inf where an item must not be answered."""
    for ids, row in zip(np.atleast_2d(found), scores, strict=True):
        assert len(set(ids.tolist())) == K, "an item twice"
        # float32 scores may swap near-equal items, so scores are compared, not ids
        assert np.allclose(np.sort(row[ids])[::-1], np.sort(row)[: -K - 1 : -1], rtol=1e-4), "not the best"


def requests(spec):
    x, y, liked = make_input(spec)
    model = SYSTEMS[spec["system"]](x, y, liked, spec["threads"])
    listed = np.random.default_rng(1).permutation(spec["items"])[: spec["items"] // 3]
    is_listed = np.isin(np.arange(spec["items"]), listed)

    def scores(users, permitted=True):
        of_all = x[users].astype(np.float64) @ y.T.astype(np.float64)
        return np.where((liked[users].toarray() > 0) | ~np.broadcast_to(permitted, of_all.shape), -np.inf, of_all)

    unit = y / np.linalg.norm(y.astype(np.float64), axis=1, keepdims=True)
    some = np.arange(16)
    calls = {
        "recommend": (lambda: model["recommend"](5), scores([5])),
        f"deny list of {len(listed):,}": (
            lambda: model["recommend"](5, **{model["deny"]: listed}),
            scores([5], ~is_listed),
        ),
        f"allow list of {len(listed):,}": (
            lambda: model["recommend"](5, **{model["allow"]: listed}),
            scores([5], is_listed),
        ),
        "similar_items": (lambda: model["similar"](5), unit[[5]] @ unit.T),
        "recommend, 16 users": (lambda: model["recommend"](some), scores(some)),
    }
    results = []
    for name, (call, expected) in calls.items():
        check(call()[0], expected)
        seconds = median_seconds(call, at_least=20, seconds=0.5, at_most=200)
        results.append({"request": name, "seconds": seconds["median"]})
    return results


def batch(spec):
    x, y, liked = make_input(spec)
    model = SYSTEMS[spec["system"]](x, y, liked, spec["threads"])
    users, denied = np.arange(spec["users"]), np.arange(0, spec["items"], 2)
    model["recommend"](users)  # what the first call loads is not counted
    results = []
    for name, lists in (("no list", {}), (f"deny list of {len(denied):,}", {model["deny"]: denied})):
        reset_peak()
        before, start = peak_rss_mib(), time.perf_counter()
        found = model["recommend"](users, **lists)
        seconds = time.perf_counter() - start
        answer = sum(array.nbytes for array in found) / 2**20
        extra = round(max(peak_rss_mib() - before - answer, 0), 1)
        few = users[:: max(len(users) // 16, 1)]
        of_all = x[few].astype(np.float64) @ y.T.astype(np.float64)
        of_all[liked[few].toarray() > 0] = -np.inf
        if lists:
            of_all[:, denied] = -np.inf
        check(np.asarray(found[0])[few], of_all)
        results.append({"request": name, "seconds": seconds, "extra_mib": extra})
    return results


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    results = {"requests": requests, "batch": batch}[spec["mode"]](spec)
    print(json.dumps({"results": results, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
