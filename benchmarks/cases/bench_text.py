"""Does the text help? Four arms on the same splits, three cohorts of items, and irspack's features beside.

    python benchmarks/cases/bench_text.py DATA_FOLDER --model MODEL_FOLDER [--sets citeulike-a ...] [--cache FOLDER]

A fifth of the items lose all their entries: the cold ones, ranked among themselves for the users who had them. Of the
other entries a tenth is hidden: the warm ones, ranked among all items that have an entry left; "few-shot" counts only
hidden entries of items with 1 to 5 users left. Arms:

- none: no prior. Cold items then have no factor; "ridge after" gives them one, by ridge regression of the finished
  factors on the same features.
- bias: a prior mean that is the same for all items, so what any prior does to the ridge without a word of text.
- shuffled: the texts' vectors in random order.
- text: the texts' vectors.

All arms have the same objective and its settings, chosen with seed 100; the seeds reported are others. irspack is given
the same features and objective, and its feature ridge is the best of four on seed 100 for cold items. Sets are folders
with interactions.parquet and items.parquet (a text column); "debian" is the embedded set.
"""

import argparse
import sys
import time
import warnings

import _path  # noqa: F401
import numpy as np

from lib.common import rounded, write_result
from lib.texts import PRIOR, SETTINGS, Split, cohorts, load, make_encoder, make_split, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend
from wals_gpu.priors import LinearPrior

ARMS = ("none", "bias", "shuffled", "text")


def popularity(split: Split) -> dict:
    """Everybody gets what most have; of the cold items it knows nothing, so theirs is the share that chance finds."""
    counts = np.bincount(split.train.indices, minlength=split.train.shape[1])[split.warm]
    ones = np.ones((split.train.shape[0], 1), np.float32)
    backend = make_backend("cpu")
    metrics = cohorts(backend, ones, counts[:, None].astype(np.float32), None, split)
    order = np.random.default_rng(0).permutation(len(split.cold))  # random scores, one order for all
    return metrics | {"cold": cohorts(backend, ones, counts[:, None], order[:, None], split)["cold"]}


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Centred, each of length 1: what LinearPrior makes of embeddings, for the systems beside it."""
    centred = embeddings - embeddings.mean(axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def ridge_after(model: WALS, features: np.ndarray, split: Split) -> np.ndarray:
    """Factors of the cold items: features mapped by ridge regression onto the finished factors of the warm ones."""
    extended = np.column_stack([features, np.ones(len(features))])
    a = extended[split.warm]
    gram = a.T @ a + np.diag([*np.ones(features.shape[1]), 0.0])
    return extended[split.cold] @ np.linalg.solve(gram, a.T @ model.item_factors[split.warm])


def run_arm(arm: str, embeddings: np.ndarray, split: Split, settings: dict, seed: int, args, backend) -> dict:
    settings = dict(settings)
    of_prior = {name: settings.pop(name) for name in PRIOR}
    prior = None
    if arm != "none":
        vectors = embeddings
        if arm == "bias":
            vectors = np.zeros((len(embeddings), 1), np.float32)
        if arm == "shuffled":
            vectors = embeddings[np.random.default_rng(seed).permutation(len(embeddings))]
        prior = LinearPrior(vectors, **of_prior)
    model = WALS(
        args.factors,
        "ials",
        iterations=args.iterations,
        compute_loss=False,
        device="cpu",
        num_threads=args.threads,
        random_state=seed,
        item_prior=prior,
        **settings,
    )
    start = time.perf_counter()
    model.fit(split.train)
    seconds = time.perf_counter() - start
    users, items = model.user_factors, model.item_factors
    cold = None if prior is None else items[split.cold]
    arms = [{"arm": arm, "seconds": rounded(seconds), **cohorts(backend, users, items[split.warm], cold, split)}]
    if arm == "none":
        cold = ridge_after(model, normalized(embeddings), split)
        after = cohorts(backend, users, items[split.warm], cold, split)
        arms.append({"arm": "ridge after", "seconds": rounded(seconds), "cold": after["cold"]})
    return arms


def run_irspack(embeddings: np.ndarray, split: Split, settings: dict, ridge: float, seed: int, args, backend) -> dict:
    from irspack import IALSRecommender

    features = np.column_stack([normalized(embeddings), np.ones(len(embeddings))]).astype(np.float32)
    model = IALSRecommender(
        split.train[:, split.warm].astype(np.float32),  # without the cold items, which it would take for disliked ones
        n_components=args.factors,
        alpha0=settings["unobserved_weight"],
        reg=settings["regularization"],
        nu=1.0,
        solver_type="CG",
        n_threads=args.threads,
        random_seed=seed,
        item_features=features[split.warm],
        lambda_item_feature=ridge,
    )
    start = time.perf_counter()
    model.start_learning()
    for _ in range(args.iterations):
        model.run_epoch()
    seconds = time.perf_counter() - start
    cold = model.trainer.transform_item_feature(features[split.cold])
    users, items = model.get_user_embedding(), model.get_item_embedding()
    metrics = cohorts(backend, np.ascontiguousarray(users, np.float32), items, cold, split)
    return {"arm": "irspack", "seconds": rounded(seconds), "feature_ridge": ridge, **metrics}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one seed")
    parser.add_argument("--sets", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--set", dest="change", nargs="+", default=[], metavar="NAME=VALUE", help="for trials")
    parser.add_argument("--arms", nargs="+", default=[*ARMS, "irspack"])
    args = parser.parse_args()
    if args.quick:
        args.seeds = args.seeds[:1]
    encoder, encoder_name = make_encoder(args)
    backend = make_backend("cpu", args.threads)
    changes = {name: float(value) for name, value in (change.split("=") for change in args.change)}
    for name in args.sets:
        records = []
        matrix, texts = load(name, args.data_folder)
        embeddings = encoder.encode(texts, show_progress_bar=True)
        settings = SETTINGS[name] | changes
        ridge = None
        if "irspack" in args.arms:
            split = make_split(matrix, 100)
            trials = [
                run_irspack(embeddings, split, settings, ridge, 100, args, backend) for ridge in (1.0, 10.0, 100.0, 1e3)
            ]
            ridge = max(trials, key=lambda record: record["cold"]["recall@100"])["feature_ridge"]
        for seed in args.seeds:
            split = make_split(matrix, seed)
            about = {"set": name, "seed": seed, "cold_items": len(split.cold), "settings": settings}
            arms = [{"arm": "popularity", **popularity(split)}]
            for arm in args.arms:
                if arm == "irspack":
                    arms.append(run_irspack(embeddings, split, settings, ridge, seed, args, backend))
                else:
                    arms += run_arm(arm, embeddings, split, settings, seed, args, backend)
            for record in arms:
                records.append(about | record)
                line = {key: value["recall@100"] for key, value in record.items() if isinstance(value, dict)}
                print(name, seed, record["arm"], line, record.get("seconds", ""), file=sys.stderr, flush=True)
            # After every seed, so that a run that is stopped has those before. Nothing of this machine's paths.
            result_settings = settings_of(args, encoder_name, args.seeds[: args.seeds.index(seed) + 1], sets=[name])
            write_result(f"text-{name}", result_settings, records, dimension=int(embeddings.shape[1]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
