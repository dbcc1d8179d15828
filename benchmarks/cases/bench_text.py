"""Does the text help? Systems beside each other on the same splits, three cohorts of items, settings by one rule.

    python benchmarks/cases/bench_text.py DATA_FOLDER [--sets citeulike-a ...] [--cache FOLDER] [--splits 5]

A fifth of the items lose all their entries: the cold ones, ranked among themselves for the users who had them. Of the
other entries a tenth is hidden: the warm ones, ranked among all items that have an entry left; "few-shot" counts only
hidden entries of items with 1 to 5 users left. Means over users, and beside them means over items: of the share of an
item's users who are offered it, which no single popular item decides. Arms:

- none: no prior, so no factor of cold items.
- ridge after: the same fits, and cold items from ridge regression of the finished factors on the texts' vectors.
- joint prior: the texts as the prior mean of the items' factors, W part of the objective (LinearPrior's own defaults).
- texts: the prior of `WALS.hybrid`, searched like the others.
- default: `WALS.hybrid` as it is, without any search.
- irspack: its iALS with the same vectors as item features.
- bias, shuffled (on demand): the joint prior without a word of text, and with the texts in random order.

One rule chooses the settings of every arm: the same number of trials, at the same points of background weight, ridge
and one number of its own (ridge of the regression, strength, feature ridge), measured on a split of the training part
of every split's own (--choose each) or of split --choice-seed (once); the best has the highest geometric mean of the
NDCG@100 of warm (weight 2), few-shot and cold items (1 each; "none" has none of the latter). With "once", entries that
are hidden in a reported split may have been seen when settings were chosen, by all arms alike. Sets are folders with
interactions.parquet and items.parquet (a text column); "debian" is the embedded set.
"""

import argparse
import sys
import time
import warnings

import _path  # noqa: F401
import numpy as np
from scipy.stats import qmc

from lib.common import rounded, write_result
from lib.texts import SETS, Split, cohorts, cold_metrics, load, make_encoder, make_split, settings_of, text_arguments
from wals_gpu import WALS
from wals_gpu.backends import make_backend
from wals_gpu.model.wals import HYBRID_PRIOR
from wals_gpu.priors import LinearPrior

#: Of every arm: of the mean observed and unobserved weight, and the ridge of the mean row as a share of its weight.
BACKGROUND, REGULARIZATION = (1.0, 32.0), (0.003, 0.03)
FEATURE_RIDGE, STRENGTH, SHARE = (0.1, 1000.0), (0.2, 5.0), (0.2, 1.25)
#: The number of its own that an arm searches beside these two.
OWN = {
    "none": None,
    "ridge after": FEATURE_RIDGE,
    "joint prior": STRENGTH,
    "bias": STRENGTH,
    "shuffled": STRENGTH,
    "texts": SHARE,
    "irspack": FEATURE_RIDGE,
}
ARMS = ("none", "ridge after", "joint prior", "texts", "default", "irspack")


def points(arm: str, trials: int) -> list[dict[str, float]]:
    """The settings that an arm tries: first the defaults and the middle, then points that fill the ranges evenly."""
    own = OWN[arm] or (1.0, 1.0)
    low, high = np.log([BACKGROUND, REGULARIZATION, own]).T
    spread = qmc.Halton(3, scramble=False).random(trials + 1)[1:]
    tried = np.exp(low + spread * (high - low))
    tried[0] = [8.0, 0.0117, np.sqrt(own[0] * own[1])]
    return [dict(zip(("background", "regularization", "own"), map(rounded, each), strict=True)) for each in tried]


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Centred, each of length 1: what LinearPrior makes of embeddings, for the systems beside it."""
    centred = embeddings - embeddings.mean(axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def ridge_after(factors: np.ndarray, features: np.ndarray, ridge: float, split: Split) -> np.ndarray:
    """Factors of the cold items: features mapped by ridge regression onto the finished factors of the warm ones."""
    extended = np.column_stack([features, np.ones(len(features))])
    a = extended[split.warm]
    gram = a.T @ a + np.diag([*np.full(features.shape[1], ridge), 1e-6])
    return extended[split.cold] @ np.linalg.solve(gram, a.T @ factors[split.warm])


class Systems:
    """One split's arms: each is fitted with some settings and measured."""

    def __init__(self, embeddings: np.ndarray, split: Split, seed: int, args, backend) -> None:
        self.embeddings, self.split, self.seed, self.args, self.backend = embeddings, split, seed, args, backend
        self._plain: dict[tuple[float, float], tuple[WALS, float]] = {}  # "none" and "ridge after" share their fits

    def run(self, arm: str, settings: dict[str, float]) -> dict:
        """Metrics of each cohort, and the seconds of the fit."""
        if arm == "irspack":
            users, warm, cold, seconds = self._irspack(settings)
        else:
            cold = None
            if arm in ("none", "ridge after"):
                key = settings["background"], settings["regularization"]
                if key not in self._plain:
                    self._plain[key] = self._fit(None, settings)
                model, seconds = self._plain[key]
            else:
                hybrid = arm == "default"
                model, seconds = self._fit(None if hybrid else self._prior(arm, settings), settings, hybrid=hybrid)
                cold = model.item_prior_.mean[self.split.cold]
            users, warm = model.user_factors, model.item_factors[self.split.warm]
            if arm == "ridge after":
                cold = ridge_after(model.item_factors, normalized(self.embeddings), settings["own"], self.split)
        users = np.ascontiguousarray(users, np.float32)
        metrics = cohorts(self.backend, users, warm, cold, self.split)
        if arm in ("texts", "default"):  # beside W, the map of cold="regression", which changes no other factor
            mapped = model.item_factors[self.split.cold]
            metrics["cold by regression"] = cold_metrics(self.backend, users, mapped, self.split)
        return {"seconds": rounded(seconds), **metrics}

    def _prior(self, arm: str, settings: dict[str, float]) -> LinearPrior:
        vectors = self.embeddings
        if arm == "bias":
            vectors = np.zeros((len(vectors), 1), np.float32)
        if arm == "shuffled":
            vectors = vectors[np.random.default_rng(self.seed).permutation(len(vectors))]
        if arm == "texts":
            return LinearPrior(vectors, **(HYBRID_PRIOR | {"relative_strength": settings["own"], "cold": "regression"}))
        return LinearPrior(vectors, relative_strength=settings["own"], shrinkage=0)

    def _fit(self, prior: LinearPrior | None, settings: dict[str, float], *, hybrid: bool = False):
        args = self.args
        options = {"iterations": args.iterations, "compute_loss": False, "device": "cpu", "num_threads": args.threads}
        objective = {name: settings[name] for name in ("background", "regularization") if name in settings}
        if hybrid:
            options |= {"factors": args.factors, "random_state": self.seed, "prior": {"cold": "regression"}}
            model = WALS.hybrid(self.embeddings, None, **options)
        else:
            model = WALS(args.factors, item_prior=prior, random_state=self.seed, **options, **objective)
        start = time.perf_counter()
        model.fit(self.split.train)
        return model, time.perf_counter() - start

    def _irspack(self, settings: dict[str, float]):
        from irspack import IALSRecommender

        split = self.split
        features = np.column_stack([normalized(self.embeddings), np.ones(len(self.embeddings))]).astype(np.float32)
        train = split.train[:, split.warm].astype(np.float32)  # it would take the cold items for disliked ones
        density = train.nnz / (train.shape[0] * train.shape[1])
        model = IALSRecommender(
            train,
            n_components=self.args.factors,
            alpha0=settings["background"] * density,
            reg=settings["regularization"],
            nu=1.0,
            solver_type="CG",
            n_threads=self.args.threads,
            random_seed=self.seed,
            item_features=features[split.warm],
            lambda_item_feature=settings["own"],
        )
        start = time.perf_counter()
        model.start_learning()
        for _ in range(self.args.iterations):
            model.run_epoch()
        seconds = time.perf_counter() - start
        cold = model.trainer.transform_item_feature(features[split.cold])
        return model.get_user_embedding(), model.get_item_embedding(), cold, seconds


def value_of(arm: str, metrics: dict) -> float:
    """What a trial is chosen by; warm items count as much as few-shot and cold ones together."""
    weights = {"warm": 2, "few-shot": 1} | ({} if arm == "none" else {"cold": 1})
    parts = [(weight, metrics[cohort]["ndcg@100"]) for cohort, weight in weights.items() if cohort in metrics]
    total = sum(weight for weight, _ in parts)
    return float(np.exp(sum(weight * np.log(max(value, 1e-6)) for weight, value in parts) / total))


def choose(embeddings: np.ndarray, split: Split, seed: int, args, backend, report) -> dict[str, dict[str, float]]:
    """The best settings of each arm on a split of a split's training part."""
    inner = make_split(split.train[:, split.warm], seed + 1000)
    systems = Systems(embeddings[split.warm], inner, seed, args, backend)
    chosen = {"default": {}}
    for arm in (arm for arm in args.arms if arm in OWN):
        trials = points(arm, args.trials)
        values = [value_of(arm, systems.run(arm, settings)) for settings in trials]
        best = int(np.argmax(values))
        chosen[arm] = trials[best]
        report(arm, "chosen", best, trials[best], [round(value, 4) for value in values])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text_arguments(parser, quick="one split, two trials")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*OWN, "default"])
    parser.add_argument("--splits", type=int, default=5, help="seeds 300 and following, unless --seeds names some")
    parser.add_argument("--trials", type=int, default=12, help="of every arm")
    parser.add_argument("--choose", choices=["each", "once"], default="each", help="settings for each split, or once")
    parser.add_argument("--choice-seed", type=int, default=200, help="of the split to choose on with --choose once")
    parser.set_defaults(seeds=None)
    args = parser.parse_args()
    if args.quick:
        args.splits, args.trials = 1, 2
    args.seeds = args.seeds or [300 + number for number in range(args.splits)]
    encoder, encoder_name = make_encoder(args)
    backend = make_backend("cpu", args.threads)
    for name in args.sets:

        def report(*words, name=name):
            print(name, *words, file=sys.stderr, flush=True)

        records = []
        matrix, texts = load(name, args.data_folder)
        embeddings = encoder.encode(texts)
        if args.choose == "once":
            chosen = choose(embeddings, make_split(matrix, args.choice_seed), args.choice_seed, args, backend, report)
        for seed in args.seeds:
            split = make_split(matrix, seed)
            if args.choose == "each":
                chosen = choose(embeddings, split, seed, args, backend, report)
            systems = Systems(embeddings, split, seed, args, backend)
            for arm in args.arms:
                result = systems.run(arm, chosen[arm])
                about = {"set": name, "seed": seed, "cold_items": len(split.cold), "arm": arm, "settings": chosen[arm]}
                records.append(about | result)
                line = {cohort: one["ndcg@100"] for cohort, one in result.items() if isinstance(one, dict)}
                report(seed, arm, line, result["seconds"])
            # After every seed, so that a run that is stopped has those before. Nothing of this machine's paths.
            result_settings = settings_of(args, encoder_name, args.seeds[: args.seeds.index(seed) + 1], sets=[name])
            write_result(f"text-{name}", result_settings, records, dimension=int(embeddings.shape[1]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
