"""Top-k of one system in this process; started by bench_topk.py. Prints one JSON object.

`mode` "time" checks every answer, then times it; "memory" answers once and measures the memory of that.
"""

import json
import sys
import warnings

import numpy as np
from scipy.sparse import csr_matrix

from lib.common import median_seconds, peak_rss_mib, reset_peak, threadpools

SEEN = 50  # items per user to leave out


def make_input(spec):
    """Queries (B, D), items (I, D) of unequal norms, and the items each user has seen, CSR (B, I)."""
    rng = np.random.default_rng(spec["seed"])
    users, items, factors = spec["users"], spec["items"], spec["factors"]
    queries = rng.standard_normal((users, factors), dtype=np.float32)
    table = rng.standard_normal((items, factors), dtype=np.float32)
    table *= np.exp(0.5 * rng.standard_normal((items, 1), dtype=np.float32))
    # distinct per row: one from each of SEEN equal ranges
    low = np.arange(SEEN) * (items // SEEN)
    columns = (low + rng.integers(items // SEEN, size=(users, SEEN))).astype(np.int32).ravel()
    seen = csr_matrix(
        (np.ones(columns.size, np.float32), columns, np.arange(0, columns.size + 1, SEEN)), shape=(users, items)
    )
    return queries, table, seen


def wals_gpu(queries, table, threads):
    from wals_gpu.backends import make_backend

    backend = make_backend("cpu", threads)
    return lambda k, seen: backend.topk(queries, table, k, seen)


def implicit(queries, table, threads):
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=table.shape[1], num_threads=threads)
    model.user_factors, model.item_factors = queries, table
    users = np.arange(len(queries))
    return lambda k, seen: model.recommend(users, seen, N=k, filter_already_liked_items=seen is not None)


def faiss(queries, table, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    # Its default leaves matrix products to a loop of its own up to 128,000 queries: 17 times slower than BLAS with 512
    # queries and 500,000 items. Blocks are the fastest of 1,024, 4,096 and 16,384 items by 1,024 and 4,096 queries.
    faiss.cvar.distance_compute_blas_threshold = 1
    faiss.cvar.distance_compute_blas_query_bs = 1024
    faiss.cvar.distance_compute_blas_database_bs = 1024 if len(table) < 100_000 else 4096
    index = faiss.IndexFlatIP(table.shape[1])
    index.add(table)

    def search(k, seen):
        scores, ids = index.search(queries, k)
        return ids, scores

    return search


SYSTEMS = {"wals_gpu": wals_gpu, "implicit": implicit, "faiss": faiss}


def check(ids, queries, table, seen, k: int, sample: int = 16) -> None:
    """Compare some users' answers with a full sort of float64 scores; AssertionError when one is not the top k."""
    users = np.linspace(0, len(queries) - 1, sample).astype(int)
    of_all = queries[users].astype(np.float64) @ table.astype(np.float64).T
    for user, scores in zip(users, of_all, strict=True):
        if seen is not None:
            scores[seen.indices[seen.indptr[user] : seen.indptr[user + 1]]] = -np.inf
        assert len(set(ids[user])) == k, f"user {user}: an item twice"
        # float32 scores may swap near-equal items, so scores are compared, not ids
        best = np.sort(scores)[: -k - 1 : -1]
        assert np.allclose(np.sort(scores[ids[user]])[::-1], best, rtol=1e-5), f"user {user}: not the top {k}"


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    queries, table, seen = make_input(spec)
    search = SYSTEMS[spec["system"]](queries, table, spec["threads"])
    if spec["mode"] == "memory":
        reset_peak()
        before = peak_rss_mib()
        ids, scores = search(spec["k"][0], None)
        output = (ids.nbytes + scores.nbytes) / 2**20
        print(json.dumps({"extra_mib": round(peak_rss_mib() - before - output, 1)}))
        return
    results = []
    for k in spec["k"]:
        for excluded in (None, seen):
            if excluded is not None and spec["system"] == "faiss":
                continue  # its selectors are the same for all queries of a call
            check(search(k, excluded)[0], queries, table, excluded, k)
            seconds = median_seconds(lambda k=k, excluded=excluded: search(k, excluded))
            results.append({"k": k, "filter_seen": excluded is not None, "seconds": seconds["median"]})
    print(json.dumps({"results": results, "threadpools": threadpools()}))


if __name__ == "__main__":
    main()
