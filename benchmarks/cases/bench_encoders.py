"""Does a larger encoder help, and which of its layers? `WALS.hybrid` as it is, with the vectors of each.

    python benchmarks/cases/bench_encoders.py DATA_FOLDER [--sets debian ...] [--larger FOLDER ...] [--cache FOLDER]

Splits and cohorts are those of bench_text.py. Writes results/encoders-SET.json after every seed.
"""

import argparse
import copy
import sys
import warnings

import _path  # noqa: F401

from lib.common import write_result
from lib.texts import SETS, cohorts, load, make_encoder, make_split, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend

LAYERS = ("last4", "last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one seed")
    parser.add_argument("--sets", nargs="+", default=["debian", "citeulike-a"], choices=list(SETS))
    parser.add_argument("--larger", nargs="*", default=[], help="folders of other encoders, beside --model")
    parser.add_argument("--dtype", default="float32", help="of the encoders' computation")
    parser.set_defaults(seeds=[300, 301, 302])
    args = parser.parse_args()
    if args.quick:
        args.seeds = args.seeds[:1]
    backend = make_backend("cpu", args.threads)
    for name in args.sets:
        matrix, texts = load(name, args.data_folder)
        vectors, names = {}, []
        for model in (args.model, *args.larger):
            of_model = copy.copy(args)
            of_model.model = model
            for layers in LAYERS:
                encoder, encoder_name = make_encoder(of_model, layers=layers, dtype=args.dtype)
                vectors[f"{encoder_name}, {layers}"] = encoder.encode(texts)
            names.append(encoder_name)
        records = []
        for seed in args.seeds:
            split = make_split(matrix, seed)
            for arm, embeddings in vectors.items():
                options = {"factors": args.factors, "iterations": args.iterations, "compute_loss": False}
                options |= {"device": "cpu", "num_threads": args.threads, "random_state": seed}
                model = WALS.hybrid(embeddings, None, **options).fit(split.train)
                users, items = model.user_factors, model.item_factors
                result = cohorts(backend, users, items[split.warm], model.item_prior_.mean[split.cold], split)
                records.append({"set": name, "seed": seed, "arm": arm, **result})
                print(
                    name, seed, arm, {key: one["ndcg@100"] for key, one in result.items()}, file=sys.stderr, flush=True
                )
            of_seeds = args.seeds[: args.seeds.index(seed) + 1]
            settings = settings_of(args, ", ".join(names), of_seeds, sets=[name], larger=None)
            write_result(f"encoders-{name}", settings, records)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
