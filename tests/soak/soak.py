"""Random use of the library under a seed, every result checked against the reference, memory watched.

``python tests/soak/soak.py --minutes 30 --seed 0`` prints what was done as JSON; the first wrong result ends it with an
error that names the seed and the step.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu import PRESETS, WALS, reference
from wals_gpu.als import AlternatingLeastSquares, calculate_loss

Random = np.random.Generator


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    """A model, the data it was fitted on, and steps that use them; every step checks what it gets."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.folder = folder
        self.checks = 0
        self.fit()

    def check(self, true: Any, what: str) -> None:
        self.checks += 1
        if not np.all(true):
            raise AssertionError(what)

    def close(self, got: Any, want: Any, what: str, tolerance: float | None = None, size: float | None = None) -> None:
        """Equal but for `tolerance` times `size`, by default that of the largest number."""
        self.checks += 1
        if tolerance is None:
            tolerance = 2e-3 if self.model.dtype == np.float32 else 1e-8
        size = np.abs(want).max(initial=1e-9) if size is None else size
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * size, err_msg=what)

    def steps(self) -> list[Callable[[], None]]:
        return [
            self.fit, self.fit_on, self.recommend, self.recommend, self.recommend_for, self.fold_in, self.similar,
            self.save_and_load, self.threads, self.bad_input, self.als, self.als_partial,
        ]  # fmt: skip

    def plays(self) -> csr_matrix:
        n_users, n_items = self.rng.integers(2, 80, 2)
        values = self.rng.integers(1, 6, (n_users, n_items)) * (self.rng.random((n_users, n_items)) < 0.2)
        values[0, 0] = 1  # one entry at least
        return csr_matrix(values.astype(np.float32))

    def fit(self) -> None:
        """A new model; its loss falls and is the reference's, its users solve their systems."""
        rng = self.rng
        self.data = self.plays()
        objective, ridge = str(rng.choice(list(PRESETS))), float(rng.uniform(0.05, 2))
        if objective == "wals":
            ridge /= 50  # of that one it is a share of what a row weighs: a large one leaves nothing of the factors
        self.model = WALS(
            int(rng.integers(1, 40)), objective, regularization=ridge,
            iterations=int(rng.integers(1, 5)), solver=str(rng.choice(["cholesky", "cg", "subspace"])), block_size=16,
            dtype=str(rng.choice(["float32", "float64"])), num_threads=int(rng.integers(1, 5)),
            random_state=int(rng.integers(2**31)),
        )  # fmt: skip
        self.model.fit(self.data)
        self.check_fit()

    def fit_on(self) -> None:
        """The same model goes on from where it is; so does its loss."""
        before = self.model.history_[-1].loss
        self.model.fit(self.data, warm_start=True)
        self.check(self.model.history_[0].loss <= before + 1e-4 * self.scale(), "a warm start raised the loss")
        self.check_fit()

    def terms(self):
        matrix = self.data.astype(self.model.dtype)
        bound = self.model.objective.bind(matrix)
        return bound, bound.user_terms(matrix), bound.item_terms(csr_matrix(matrix.T.tocsr()))

    def scale(self) -> float:
        return abs(self.terms()[1].target_square) + abs(self.model.history_[0].loss)

    def check_fit(self) -> None:
        model = self.model
        _, users, items = self.terms()
        want = reference.loss(users, model.user_factors, model.item_factors, items.ridge)
        losses = [record.loss for record in model.history_]
        slack = (1e-4 if model.dtype == np.float32 else 1e-9) * self.scale()
        self.check(abs(losses[-1] - want) <= slack, f"loss {losses[-1]}, by the reference {want}")
        self.check(np.diff(losses) <= slack, f"the loss rose: {losses}")

    def some(self, n: int) -> np.ndarray:
        return self.rng.integers(0, n, self.rng.integers(1, 9))

    def recommend(self) -> None:
        """The items of the highest scores, but for those seen."""
        model, users, k = self.model, self.some(self.data.shape[0]), int(self.rng.integers(1, 100))
        seen = bool(self.rng.integers(2))
        got = model.recommend(users, k, filter_seen=not seen)
        self.check_lists(got, model.user_factors[users], k, self.data[users], not seen)

    def check_lists(self, got: Any, queries: np.ndarray, k: int, known: csr_matrix, filter_seen: bool = True) -> None:
        """Lists of the highest scores; of users of whom nothing is known, the most popular items."""
        # Nothing is known from items either that nobody had, whose factors are 0.
        cold = (np.diff(known.indptr) == 0) | (np.abs(queries).max(axis=1) <= np.finfo(np.float32).tiny)
        self.check(np.array_equal(got.is_cold, cold), "users are cold who are not, or the reverse")
        counts = np.bincount(self.data.indices, minlength=self.data.shape[1]).astype(np.float64)
        order = np.lexsort((np.arange(len(counts)), -counts))
        for row in np.flatnonzero(cold):
            has = known[row].indices if filter_seen else []
            popular = order[~np.isin(order, has)][:k]
            ids, scores = got.ids[row], got.scores[row]
            self.check(ids[: len(popular)] == popular, "cold users do not get what is popular")
            self.check(scores[: len(popular)] == counts[popular], "scores of what is popular are not its counts")
        excluded = known[~cold] if filter_seen else None
        if not cold.all():
            self.check_scores((got.ids[~cold], got.scores[~cold]), queries[~cold], k, excluded)

    def check_scores(self, got: Any, queries: np.ndarray, k: int, excluded: csr_matrix | None) -> None:
        ids, scores = got
        _, want = reference.topk(queries, self.model.item_factors, k, excluded)
        self.check((ids >= 0) == np.isfinite(want), "lists of another length")
        filled = ids >= 0
        # A score is a sum that may cancel.
        size = float(np.linalg.norm(queries, axis=1).max() * np.linalg.norm(self.model.item_factors, axis=1).max())
        self.close(np.where(filled, scores, 0), np.where(filled, want, 0), "scores of recommend", size=size)
        dots = np.einsum("bd,bkd->bk", queries.astype(np.float64), self.model.item_factors[ids].astype(np.float64))
        self.close(np.where(filled, dots, 0), np.where(filled, want, 0), "ids of recommend", size=size)
        for row in ids:
            self.check(len(set(row[row >= 0])) == (row >= 0).sum(), "an item twice")

    def new_users(self) -> csr_matrix:
        n = self.data.shape[1]
        values = self.rng.integers(1, 6, (3, n)) * (self.rng.random((3, n)) < 0.3)
        return csr_matrix(values.astype(self.model.dtype))

    def fold_in(self) -> None:
        """Users from their entries: the exact solution."""
        rows = self.new_users()
        terms = self.terms()[0].user_terms(rows, fold_in=True)
        want = reference.solve_rows(terms, self.model.item_factors)
        self.close(self.model.fold_in(rows), want, "fold_in")

    def recommend_for(self) -> None:
        rows, k = self.new_users(), int(self.rng.integers(1, 20))
        self.check_lists(self.model.recommend_for(rows, k), self.model.fold_in(rows), k, rows)

    def similar(self) -> None:
        """Cosines, the item itself first."""
        items, k = self.some(self.data.shape[1]), int(self.rng.integers(1, 60))
        ids, scores = self.model.similar_items(items, k)
        y = self.model.item_factors.astype(np.float64)
        norms = np.linalg.norm(y, axis=1)
        for item, row, cosines in zip(items, ids, scores, strict=True):
            if norms[item] == 0:
                self.check(row == -1, "an item without a factor is similar to something")
                continue
            known = row[row >= 0]
            self.check(row[0] == item, "the item itself is not the first")
            self.close(cosines[row >= 0], y[known] @ y[item] / norms[known] / norms[item], "cosines", 1e-3)
            self.check(np.diff(cosines[1:][row[1:] >= 0]) <= 0, "cosines rise")

    def save_and_load(self) -> None:
        """The loaded model is the saved one, and goes on in its place."""
        self.model.save(self.folder / "model")
        again = WALS.load(self.folder / "model", num_threads=int(self.rng.integers(1, 5)))
        for name in ("user_factors", "item_factors"):
            self.check(getattr(again, name).tobytes() == getattr(self.model, name).tobytes(), f"{name} changed on disk")
        self.check(again.history_ == self.model.history_, "the history changed on disk")
        self.model = again

    def threads(self) -> None:
        """Several threads ask at once while another fits; each gets what one alone gets."""
        model, users = self.model, np.arange(self.data.shape[0])
        want = [array.tobytes() for array in model.recommend(users, 5)]
        fits = threading.Thread(target=lambda: WALS(8, iterations=2).fit(self.data))
        fits.start()
        with ThreadPoolExecutor(4) as pool:
            for got in pool.map(lambda _: model.recommend(users, 5), range(8)):
                self.check([array.tobytes() for array in got] == want, "threads get other answers")
        fits.join()

    def bad_input(self) -> None:
        """An error of the promised kind, and the model as it was."""
        model, n_items = self.model, self.data.shape[1]
        bad = csr_matrix((np.full(1, np.nan, np.float32), [0], [0, 1]), shape=(1, n_items))
        calls = [
            lambda: model.recommend([10**9]), lambda: model.recommend([-1]), lambda: model.recommend([0.5]),
            lambda: model.recommend(0, k=0), lambda: model.recommend("x"), lambda: model.fold_in(bad),
            lambda: model.fold_in(csr_matrix((1, n_items + 1), dtype=np.float32)), lambda: model.fit(bad),
            lambda: model.fit(np.zeros((2, 2))), lambda: model.fit(None), lambda: model.similar_items([n_items]),
            lambda: WALS(0), lambda: WALS(4, "no such"), lambda: WALS.load(self.folder / "none"),
        ]  # fmt: skip
        before = model.user_factors.tobytes(), model.item_factors.tobytes()
        try:
            calls[self.rng.integers(len(calls))]()
        except (ValueError, TypeError, LookupError, FileNotFoundError) as error:
            self.check(len(str(error)) > 10, "an error that says nothing")
        else:
            raise AssertionError("bad input was taken")
        self.check(
            before == (model.user_factors.tobytes(), model.item_factors.tobytes()), "bad input changed the model"
        )

    def als(self) -> None:
        """implicit's contract: exact fits and their loss."""
        other = AlternatingLeastSquares(
            int(self.rng.integers(1, 30)), regularization=0.1, iterations=2, use_cg=False, dtype=np.float64,
            random_state=int(self.rng.integers(2**31)), num_threads=2,
        )  # fmt: skip
        other.fit(self.data, show_progress=False)
        objective = PRESETS["implicit"](regularization=0.1)
        matrix = self.data.astype(np.float64)
        bound = objective.bind(matrix)
        items = bound.item_terms(csr_matrix(matrix.T.tocsr()))
        self.close(other.item_factors, reference.solve_rows(items, other.user_factors), "als, items", 1e-8)
        loss = calculate_loss(self.data, other.user_factors, other.item_factors, 0.1)
        total = reference.loss(bound.user_terms(matrix), other.user_factors, other.item_factors, items.ridge)
        weight = self.data.sum() + np.prod(self.data.shape) - self.data.nnz
        self.close(loss, (total + self.data.sum() - bound.user_terms(matrix).target_square) / weight, "als, loss", 1e-6)
        self.other, self.other_data = other, self.data

    def als_partial(self) -> None:
        """Users recalculated are the solutions of their rows."""
        if not hasattr(self, "other"):
            self.als()
        other, data = self.other, self.other_data
        users = np.unique(self.some(data.shape[0]))
        terms = PRESETS["implicit"](regularization=0.1).bind(data.astype(np.float64)).user_terms(
            csr_matrix(data[users].astype(np.float64)), fold_in=True
        )  # fmt: skip
        want = reference.solve_rows(terms, other.item_factors)
        other.partial_fit_users(users, data[users])
        self.close(other.user_factors[users], want, "partial_fit_users", 1e-7)
        self.close(other.recalculate_user(users, data[users]), want, "recalculate_user", 1e-7)


def run(seconds: float, seed: int) -> dict[str, Any]:
    """Steps at random until the time is over.

    Returns
    -------
    dict
        JSON-able; ``memory_mib``: resident, a quarter through and at the end.
    """
    counts: collections.Counter[str] = collections.Counter()
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soak = Soak(seed, Path(folder))
        steps = soak.steps()
        started = time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            step = steps[soak.rng.integers(len(steps))]
            try:
                step()
            except BaseException:
                print(f"seed {seed}, step {counts.total()}, {step.__name__}")
                raise
            counts[step.__name__] += 1
            if len(memory) < 4 * passed / seconds + 1:
                memory.append(resident_bytes())
        memory.append(resident_bytes())
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "steps": dict(sorted(counts.items())),
        "checks": soak.checks,
        "memory_mib": [round(m / 2**20, 1) for m in memory],
        "threads": threading.active_count(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(60 * arguments.minutes, arguments.seed), indent=1))
