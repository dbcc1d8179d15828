"""One search, or one fit with its recommendations, of one system in this process; started by bench_ranking.py.

Every system takes the training matrix, all values 1, and gives lists of K items for users. A search sees the training
part alone, divides it once more, and has the same seconds in each system; what it finds is fitted on all of it.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from lib.common import load_matrix, peak_rss_mib, reset_peak, rounded, threadpools
from lib.logs import split
from lib.ranking import METRICS, Ease, K, per_user, tested_users
from lib.systems import ONE_BLAS_THREAD

VALIDATION_USERS = 3000
EASE_RIDGES = (100, 300, 30, 1000, 10)  # the likeliest first: a search may end early
MOST_RANDOM_FACTORS = 512  # of random trials: beyond, hundreds of them take days
KNN = [(kind, neighbours) for neighbours in (100, 200, 50, 20, 500) for kind in ("cosine", "bm25")]


class Validation:
    """A fifth of the training entries, to score lists with; of at most VALIDATION_USERS users."""

    def __init__(self, train, seed: int) -> None:
        self.train, self.test = split(train, seed)
        users = tested_users(self.test)
        if len(users) > VALIDATION_USERS:
            users = np.sort(np.random.default_rng(seed).choice(users, VALIDATION_USERS, replace=False))
        self.users = users

    def score(self, lists: Callable) -> float:
        """nDCG of `lists(users, train)`."""
        return float(np.nanmean(per_user(lists(self.users, self.train), self.users, self.train, self.test)[METRICS[0]]))


def best_of_grid(grid: list[dict], fit: Callable, train, seconds: float, seed: int, threads: int) -> tuple[dict, dict]:
    """The best of some settings, of as many as there is time for."""
    start = time.perf_counter()
    validation = Validation(train, seed)
    scores: list[float] = []
    for settings in grid:
        taken = time.perf_counter() - start
        if scores and taken * (1 + 1 / len(scores)) > seconds:
            break
        scores.append(validation.score(fit(validation.train, settings, threads, seed)))
    return grid[int(np.argmax(scores))], {"trials": len(scores), "validation": rounded(max(scores))}


# Each fit_* gives a function (users, train) -> lists (B, K).


def fit_popularity(train, settings, threads, seed):
    from wals_gpu.evaluation import Popularity

    model = Popularity(train)
    return lambda users, train: model.recommend(users, K)[0]


def fit_ease(train, settings, threads, seed):
    model = Ease(train, settings["ridge"])
    return lambda users, train: model.recommend(users, K)[0]


def search_ease(train, seconds, seed, threads):
    return best_of_grid([{"ridge": ridge} for ridge in EASE_RIDGES], fit_ease, train, seconds, seed, threads)


def fit_knn(train, settings, threads, seed):
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    kind = {"cosine": CosineRecommender, "bm25": BM25Recommender}[settings["kind"]]
    model = kind(K=settings["neighbours"], num_threads=threads)
    model.fit(train, show_progress=False)

    def lists(users, train):
        ids, scores = model.recommend(users, train[users], N=K)
        # Where a user's items have too few neighbours, what the user has had comes at the end, with a score of 0.
        return np.where(scores > 0, ids, -1)

    return lists


def search_knn(train, seconds, seed, threads):
    grid = [{"kind": kind, "neighbours": neighbours} for kind, neighbours in KNN]
    return best_of_grid(grid, fit_knn, train, seconds, seed, threads)


def make_implicit(settings, threads, seed):
    from implicit.cpu.als import AlternatingLeastSquares

    return AlternatingLeastSquares(**settings, num_threads=threads, random_state=seed)


def fit_implicit(train, settings, threads, seed):
    model = make_implicit(settings, threads, seed)
    model.fit(train, show_progress=False)
    return lambda users, train: model.recommend(users, train[users], N=K)[0]


class Stop(Exception):
    """Ends a fit of implicit, which has no other way out of its callback."""


def search_implicit(train, seconds, seed, threads):
    """Optuna's TPE over all that its ALS has, from its defaults on; every fit with its best iteration."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    deadline = time.perf_counter() + seconds
    validation = Validation(train, seed)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({"factors": 100, "regularization": 0.01, "alpha": 1.0})
    study.enqueue_trial({"factors": 128, "regularization": 10.0, "alpha": 20.0})
    every, most, patience = 3, 30, 2
    while time.perf_counter() < deadline:
        trial = study.ask()
        settings = {
            "factors": trial.suggest_int("factors", 16, 512, log=True),
            "regularization": trial.suggest_float("regularization", 1e-3, 1e3, log=True),
            "alpha": trial.suggest_float("alpha", 1.0, 1000.0, log=True),
        }
        model = make_implicit(settings | {"iterations": most}, threads, seed)
        scores: list[float] = []

        def after(iteration, *_, model=model, scores=scores):
            if (iteration + 1) % every == 0:
                scores.append(validation.score(lambda users, train: model.recommend(users, train[users], N=K)[0]))
            worse = len(scores) - 1 - int(np.argmax(scores)) if scores else 0
            if worse >= patience or (time.perf_counter() > deadline and scores):
                raise Stop

        try:
            model.fit(validation.train, show_progress=False, callback=after)
        except Stop:
            pass
        if not all(map(math.isfinite, scores)):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        trial.set_user_attr("iterations", every * (1 + int(np.argmax(scores))))
        study.tell(trial, max(scores))
    best = study.best_trial
    found = {**best.params, "iterations": best.user_attrs["iterations"]}
    return found, {"trials": len(study.trials), "validation": rounded(best.value)}


def fit_irspack(train, settings, threads, seed):
    from irspack import IALSRecommender
    from irspack.utils.id_mapping import retrieve_recommend_from_score

    model = IALSRecommender(train, **settings, n_threads=threads, random_seed=seed)
    model.learn()

    def lists(users, train):
        ids = np.full((len(users), K), -1, np.int64)
        for start in range(0, len(users), 1024):  # as its evaluator does, with fewer and larger blocks
            scores = model.get_score_remove_seen(users[start : start + 1024])
            for row, answer in enumerate(retrieve_recommend_from_score(scores, [], K, n_threads=threads), start):
                ids[row, : len(answer)] = [item for item, _ in answer]
        return ids

    return lists


def search_irspack(train, seconds, seed, threads):
    """Its own `tune` as its documentation has it: its own split by rows, its own ranges, TPE, pruning, best epoch."""
    import logging

    import optuna
    from irspack import Evaluator, IALSRecommender, rowwise_train_test_split

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fitted, valid = rowwise_train_test_split(train, test_ratio=0.2, random_state=seed)
    evaluator = Evaluator(valid, cutoff=K, target_metric="ndcg", n_threads=threads)
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.ERROR)
    found, trials = IALSRecommender.tune(
        fitted,
        evaluator,
        n_trials=100_000,
        timeout=seconds,  # a trial that has begun then is finished
        tuning_random_seed=seed,
        n_threads=threads,
        logger=quiet,
    )
    return found, {"trials": len(trials), "validation": rounded(-float(trials["value"].min()))}


def fit_ours(train, settings, threads, seed):
    from wals_gpu import WALS

    model = WALS(**settings, num_threads=threads, random_state=seed)
    model.fit(train)
    return lambda users, train: model.recommend(users, K, filter_seen=True)[0]


def fit_ours_with_neighbors(train, settings, threads, seed):
    return fit_ours(train, {"neighbors": 100} | settings, threads, seed)


def search_ours(train, seconds, seed, threads):
    from wals_gpu import WALS

    # Nothing held back for a report of its own, and no fit at the end: both are done here, for all systems alike.
    tuning = WALS.tune(train, budget=seconds, test=0, refit=False, num_threads=threads, random_state=seed)
    settings = {name: v for name, v in tuning.best_settings.items() if name not in ("num_threads", "random_state")}
    return settings, {"trials": len(tuning.trials), "validation": rounded(tuning.validation_score)}


def search_blind(train, seconds, seed, threads):
    """`WALS.tune` without the settings that it begins with, which come from these logs; the defaults do too."""
    from wals_gpu.tuning import space

    space.KNOWN = ()
    return search_ours(train, seconds, seed, threads)


def random_ours(train, trials: int, seed: int, threads: int, diary: Path) -> tuple[dict, dict]:
    """The best of random settings from the space of `WALS.tune`, each measured as it does.

    That is up to the best iteration, and with the best popularity exponent; then neighbours are chosen beside the best
    of all. The first trial has the defaults. Every trial is a line of `diary`, and not made again.
    """
    from wals_gpu import WALS, as_interactions
    from wals_gpu.tuning.neighbors import choose_neighbors
    from wals_gpu.tuning.problem import Parts, Problem
    from wals_gpu.tuning.space import make_space

    parts = Parts.divide(as_interactions(train), 0.1, 0.0, seed)
    space = make_space(WALS().get_params(), {}, {}, parts.train.matrix, lambda factors: factors <= MOST_RANDOM_FACTORS)
    problem = Problem(WALS, {"num_threads": threads, "random_state": seed}, parts, METRICS[0], seed)
    rng = np.random.default_rng(seed)
    drawn: list[dict] = [{}]
    while len(drawn) < trials:
        settings = space.at({parameter.name: rng.random() for parameter in space.parameters})
        drawn.append(settings | {"factors": int(rng.choice(space.ranks))})
    made = [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
    with diary.open("a") as lines:
        for settings in drawn[len(made) :]:
            outcome = problem.measure(settings)
            found = {"iterations": outcome.iterations, "popularity_exponent": outcome.popularity_exponent}
            made.append({"settings": settings | found, "score": outcome.score, "seconds": outcome.seconds})
            lines.write(json.dumps(made[-1]) + "\n")
            lines.flush()
    best = max(made[:trials], key=lambda trial: trial["score"])
    settings = dict(best["settings"])
    start = time.perf_counter()
    beside = asdict(choose_neighbors(problem, settings, settings.pop("popularity_exponent"))[-1])
    seconds = time.perf_counter() - start + sum(trial["seconds"] for trial in made[:trials])
    facts = {"trials": trials, "validation": rounded(beside.pop("score")), "seconds": rounded(seconds)}
    return settings | (beside if beside["neighbors"] else {"popularity_exponent": beside["popularity_exponent"]}), facts


@dataclass(frozen=True)
class Ranker:
    """One system.

    Attributes
    ----------
    fit : function
        (train, settings, threads, seed) -> lists.
    search : function or None
        (train, seconds, seed, threads) -> settings, facts about the search.
    modules : tuple of str
        What to import before the clock starts.
    env : dict
        Environment variables of its process.
    takes_times : bool
        Whether the search is told when each interaction happened, where a log is split by time.
    """

    fit: Callable
    search: Callable | None
    modules: tuple[str, ...]
    env: dict = field(default_factory=dict)
    takes_times: bool = False


RANKERS = {
    "popularity": Ranker(fit_popularity, None, ("wals_gpu.evaluation",)),
    "item-kNN": Ranker(fit_knn, search_knn, ("implicit.nearest_neighbours",), ONE_BLAS_THREAD),
    "EASE": Ranker(fit_ease, search_ease, ("scipy.linalg",)),
    "implicit": Ranker(fit_implicit, None, ("implicit.cpu.als",), ONE_BLAS_THREAD),
    "implicit tuned": Ranker(fit_implicit, search_implicit, ("implicit.cpu.als", "optuna"), ONE_BLAS_THREAD),
    "irspack tuned": Ranker(fit_irspack, search_irspack, ("irspack", "optuna")),
    "ours": Ranker(fit_ours, None, ("wals_gpu",)),
    "ours, neighbors": Ranker(fit_ours_with_neighbors, None, ("wals_gpu",)),
    "ours tuned": Ranker(fit_ours, search_ours, ("wals_gpu",), takes_times=True),
}


def plain(value):
    """A setting as JSON has it."""
    value = value.item() if isinstance(value, np.generic) else value
    return rounded(value, 6) if isinstance(value, float) else value


def pools() -> list[str]:
    """Libraries with threads in this process: name, threads, kernels."""
    return [
        " ".join(str(pool.get(k, "")) for k in ("internal_api", "num_threads", "architecture")).strip()
        for pool in threadpools()
    ]


def main() -> None:
    spec = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    ranker = RANKERS[spec["system"]]
    for module in ranker.modules:
        __import__(module)
    train = load_matrix(spec["train"])
    threads, seed = spec["threads"], spec["seed"]
    reset_peak()
    before = peak_rss_mib()
    start = time.perf_counter()
    if spec["stage"] != "fit":
        if spec["stage"] == "random":
            settings, facts = random_ours(train, spec["trials"], seed, threads, Path(spec["diary"]))
        else:
            search = search_blind if spec["stage"] == "blind" else ranker.search
            data = train
            if ranker.takes_times and "times" in spec:
                from wals_gpu.data.interactions import Interactions

                data = Interactions(train, times=np.load(spec["times"]))
            settings, facts = search(data, spec["seconds"], seed, threads)
            if data is not train:
                facts["times"] = True
        result = {
            "seconds": rounded(time.perf_counter() - start),
            "settings": {name: plain(value) for name, value in settings.items()},
            **facts,
        }
    else:
        lists = ranker.fit(train, spec["settings"], threads, seed)
        fitted = time.perf_counter()
        test = load_matrix(spec["test"])
        users = tested_users(test)
        asked = time.perf_counter()
        ids = lists(users, train)
        answered = time.perf_counter()
        result = {"fit_seconds": rounded(fitted - start), "recommend_seconds": rounded(answered - asked)}
    result["mib"] = round(peak_rss_mib() - before)
    result["threadpools"] = pools()
    if spec["stage"] == "fit":
        ids = np.asarray(ids)
        values = per_user(ids, users, train, test)
        np.savez_compressed(spec["out"], **{name: value.astype(np.float32) for name, value in values.items()})
        result |= {name: rounded(float(np.nanmean(value)), 6) for name, value in values.items()}
        result["users"] = len(users)
        result["cold_users"] = int((np.diff(train.indptr)[users] == 0).sum())
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main()
