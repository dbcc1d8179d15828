"""Does choosing a prior's settings pay? `WALS.hybrid` as it is beside what `tune_prior` makes of it.

    python benchmarks/cases/bench_tune_prior.py DATA_FOLDER [--sets debian ...] [--cache FOLDER]

`tune_prior` sees the training part of a split alone, and tries what `WALS.tune(..., item_prior=)` does beside the best
factors: strength (0 included), ridge, kernel features, and the map of cold items. Splits and cohorts are those of
bench_text.py. Writes results/tune-prior-SET.json after every seed.
"""

import argparse
import sys
import time
import warnings

import _path  # noqa: F401
import numpy as np

from lib.common import rounded, write_result
from lib.texts import SETS, cohorts, load, make_encoder, make_split, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend
from wals_gpu.tuning import tune_prior
from wals_gpu.tuning.run import COLD_WEIGHT, KERNELS, RIDGES, STRENGTHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one seed")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.set_defaults(seeds=[310, 311, 312])
    args = parser.parse_args()
    if args.quick:
        args.seeds = args.seeds[:1]
    encoder, encoder_name = make_encoder(args)
    backend = make_backend("cpu", args.threads)
    for name in args.sets:
        matrix, texts = load(name, args.data_folder)
        embeddings = encoder.encode(texts)
        records = []
        for seed in args.seeds:
            split = make_split(matrix, seed)
            options = {"factors": args.factors, "iterations": args.iterations, "compute_loss": False}
            options |= {"device": "cpu", "num_threads": args.threads, "random_state": seed}
            for arm in ("WALS.hybrid", "tune_prior"):
                model = WALS.hybrid(embeddings, None, **options)
                start = time.perf_counter()
                chosen = {}
                if arm == "tune_prior":
                    choice = tune_prior(
                        model,
                        split.train,
                        STRENGTHS,
                        ridges=RIDGES,
                        kernels=KERNELS,
                        cold_weight=COLD_WEIGHT,
                        random_state=seed,
                    )
                    model.item_prior = choice.applied(model.item_prior)
                    chosen = model.item_prior.to_config()
                seconds = rounded(time.perf_counter() - start)
                model.fit(split.train)
                users, items = model.user_factors, model.item_factors
                cold = np.ascontiguousarray(items[split.cold])
                result = cohorts(backend, users, items[split.warm], cold, split)
                about = {"set": name, "seed": seed, "arm": arm, "settings": chosen, "seconds": seconds}
                records.append(about | result)
                line = {key: one["ndcg@100"] for key, one in result.items()}
                print(name, seed, arm, line, chosen, seconds, file=sys.stderr, flush=True)
            seeds = args.seeds[: args.seeds.index(seed) + 1]
            write_result(f"tune-prior-{name}", settings_of(args, encoder_name, seeds, sets=[name]), records)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
