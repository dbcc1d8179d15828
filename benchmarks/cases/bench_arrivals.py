"""What is a new item's factor worth, from its text alone and as its interactions come in?

    python benchmarks/cases/bench_arrivals.py DATA_FOLDER [--sets citeulike-a ...] [--cache FOLDER]

A fifth of the items is not there when the model is fitted (objective and text prior of `WALS.hybrid`). Then they are
added, `add_items`, and get the first 1, 3 and 5 of their interactions, in random order, by `update_items`, everything
else as it is. A ranking has to find all other interactions of those that have ten or more: among the new items alone,
and among all items together. Beside it the same without a prior, where an item has nothing to begin with.
"""

import argparse
import sys
import warnings

import _path  # noqa: F401
import numpy as np
from scipy.sparse import csr_matrix

from lib.common import write_result
from lib.texts import SETS, load, make_encoder, measure, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend
from wals_gpu.evaluation import cold_items_split
from wals_gpu.model.wals import HYBRID_PRIOR
from wals_gpu.priors import LinearPrior

ARRIVED = (0, 1, 3, 5)
ENOUGH = 10
EXPOSURES = (1.0, 0.1, 0.01, 0.0)


def in_random_order(test: csr_matrix, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """User and item of every entry, its place in its item's random order, from 1, and how many the item has."""
    coo = test.tocoo()
    order = np.lexsort((np.random.default_rng(seed).random(test.nnz), coo.col))
    counts = np.bincount(coo.col, minlength=test.shape[1])
    place = np.empty(test.nnz, np.int64)
    place[order] = np.arange(1, test.nnz + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    return coo.row, coo.col, place, counts[coo.col]


def stages(model: WALS, n_warm: int, entries: tuple, exposure: float, train: csr_matrix, backend):
    """(arrived, metrics among the new items, metrics among all) for a model that has the new items last."""
    start, bound = model.item_factors, model._bound
    user, item, place, count = entries

    def entries_where(mask: np.ndarray) -> csr_matrix:
        where = user[mask], item[mask] + n_warm
        return csr_matrix((np.ones(mask.sum(), np.float32), where), train.shape)

    hidden = entries_where((count >= ENOUGH) & (place > max(ARRIVED)))
    for arrived in ARRIVED:
        arrivals = entries_where(place <= arrived)
        model.item_factors, model._bound = start, bound
        if arrived:
            model.update_items(arrivals, exposure=exposure)
        users, items = model.user_factors, model.item_factors
        among_new, _ = backend.topk(users, np.ascontiguousarray(items[n_warm:]), 100, arrivals[:, n_warm:])
        among_all, _ = backend.topk(users, items, 100, (train + arrivals).tocsr())
        yield arrived, measure(among_new, hidden[:, n_warm:]), measure(among_all, hidden)
    model.item_factors, model._bound = start, bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one seed")
    parser.add_argument("--sets", nargs="+", default=["citeulike-a", "amazon-beauty-2014"], choices=list(SETS))
    args = parser.parse_args()
    if args.quick:
        args.seeds = args.seeds[:1]
    encoder, encoder_name = make_encoder(args)
    backend = make_backend("cpu", args.threads)
    records = []
    for name in args.sets:
        matrix, texts = load(name, args.data_folder)
        embeddings = encoder.encode(texts, show_progress_bar=True)
        for seed in args.seeds:
            rest, test, cold = cold_items_split(matrix, 0.2, seed)
            warm = np.flatnonzero(np.bincount(rest.indices, minlength=matrix.shape[1]))
            entries = in_random_order(test[:, cold], seed)
            train = csr_matrix((rest.data, rest.indices, rest.indptr), rest.shape)[:, np.concatenate([warm, cold])]
            train.sort_indices()
            common = {"compute_loss": False, "device": "cpu", "num_threads": args.threads, "random_state": seed}
            common |= {"iterations": args.iterations}
            about = {"set": name, "seed": seed, "new_items": len(cold)}

            def add(arm, exposure, model, about=about, warm=warm, entries=entries, train=train):
                for arrived, among_new, among_all in stages(model, len(warm), entries, exposure, train, backend):
                    recalls = {"arm": arm, "exposure": exposure, "arrived": arrived, "new": among_new, "all": among_all}
                    records.append(about | recalls)
                    line = f"new {among_new['recall@100']:.4f} all {among_all['recall@100']:.4f}"
                    print(about["set"], about["seed"], arm, exposure, arrived, line, file=sys.stderr, flush=True)

            for mode in ("prior_mean", "map"):
                prior = LinearPrior(embeddings[warm], **HYBRID_PRIOR)
                model = WALS(args.factors, item_prior=prior, **common).fit(train[:, : len(warm)])
                model.add_items(embeddings[cold], mode=mode)
                for exposure in EXPOSURES if mode == "prior_mean" else EXPOSURES[:1]:
                    add(mode, exposure, model)
            add("no prior", 1.0, WALS(args.factors, **common).fit(train))
            seeds = sorted({record["seed"] for record in records})
            write_result("arrivals", settings_of(args, encoder_name, seeds), records)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
