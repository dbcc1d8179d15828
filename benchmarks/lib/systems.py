"""The systems measured: one function each, all minimising the loss of loss.py.

Every function takes the training matrix, whose values it may change, and a Recorder, which it calls after every
iteration, and returns the user and the item factors. How each comes to confidence 1 + alpha v on stored entries,
weight 1 elsewhere and a constant ridge:

- wals_gpu (objective "implicit") and implicit: the confidence is the value itself, so they get 1 + alpha v.
- irspack: loss_type "ORIGINAL", alpha0 = 1, nu = 0 (which makes the ridge constant) and the values alpha v.
- cmfrec: CMF_implicit with alpha.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class System:
    """One system with its solver and the settings it was found fastest with (find_settings.py).

    Attributes
    ----------
    fit : function
        One of the fit_* functions below.
    module : str
        What to import before the clock starts.
    kind : {"exact", "cg", "subspace"}
        What an iteration does with a row: solve it, take 3 conjugate gradient steps, one pass over column blocks.
    options : dict
        Passed to `fit`.
    env : dict
        Environment variables of its process.
    """

    fit: Callable
    module: str
    kind: str
    options: dict = field(default_factory=dict)
    env: dict = field(default_factory=dict)


class Recorder:
    """Clock of one fit: records the time of each iteration, keeps factors at checkpoints, ends a fit that takes long.

    Parameters
    ----------
    checkpoints : sequence of int
        Iterations (1 for the first) whose factors are written to `folder`.
    folder : str
    budget : float
        Seconds after which `iteration` says stop, once there are three iterations.

    Attributes
    ----------
    elapsed : list of float
        Seconds from `start` to the end of each iteration, without what the recorder itself took.
    """

    def __init__(self, checkpoints, folder: str, budget: float) -> None:
        self.checkpoints, self.folder, self.budget = frozenset(checkpoints), folder, budget
        self.elapsed: list[float] = []
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def fit_seconds(self) -> float:
        """Seconds since `start`, without what the recorder itself took."""
        return time.perf_counter() - self._start

    def iteration(self, factors: Callable) -> bool:
        """Record the end of an iteration; `factors()` gives (user_factors, item_factors). True: time to stop."""
        now = time.perf_counter()
        self.elapsed.append(now - self._start)
        self.keep(len(self.elapsed), factors)
        self._start += time.perf_counter() - now
        return len(self.elapsed) >= 3 and self.elapsed[-1] > self.budget

    def keep(self, iteration: int, factors: Callable) -> None:
        if iteration in self.checkpoints:
            user_factors, item_factors = factors()
            np.savez(f"{self.folder}/{iteration}.npz", user_factors=user_factors, item_factors=item_factors)


class Stop(Exception):
    """Ends a fit that has no other way out of its callback."""


def fit_wals_gpu(matrix, recorder, *, factors, iterations, alpha, ridge, threads, seed, solver, over_relaxation=1.0):
    from wals_gpu import WALS

    matrix.data = 1 + np.float32(alpha) * matrix.data
    model = WALS(
        factors=factors,
        objective="implicit",
        alpha=1.0,
        regularization=ridge,
        solver=solver,
        over_relaxation=over_relaxation,
        iterations=iterations,
        compute_loss=False,
        # The loss is what is compared here: from there it falls fastest; with many factors from where irspack begins.
        init_scale=1.0 if factors < 1024 else 0.1,
        device="cpu",
        num_threads=threads,
        random_state=seed,
    )
    recorder.start()
    model.fit(matrix, callback=lambda *_: recorder.iteration(lambda: (model.user_factors, model.item_factors)))
    return model.user_factors, model.item_factors


def fit_implicit(matrix, recorder, *, factors, iterations, alpha, ridge, threads, seed, use_cg):
    from implicit.cpu.als import AlternatingLeastSquares

    matrix.data = 1 + np.float32(alpha) * matrix.data
    model = AlternatingLeastSquares(
        factors=factors,
        regularization=ridge,
        alpha=1.0,
        use_cg=use_cg,
        iterations=iterations,
        num_threads=threads,
        random_state=seed,
    )

    def callback(*_):
        if recorder.iteration(lambda: (model.user_factors, model.item_factors)):
            raise Stop

    recorder.start()
    try:
        model.fit(matrix, show_progress=False, callback=callback)
    except Stop:
        pass
    return model.user_factors, model.item_factors


def fit_irspack(matrix, recorder, *, factors, iterations, alpha, ridge, threads, seed, solver, block=64):
    from irspack import IALSRecommender

    matrix.data = np.float32(alpha) * matrix.data
    recorder.start()
    model = IALSRecommender(
        matrix,
        n_components=factors,
        alpha0=1.0,
        reg=ridge,
        nu=0.0,
        loss_type="ORIGINAL",
        solver_type=solver,
        max_cg_steps=3,
        ialspp_subspace_dimension=block,
        n_threads=threads,
        random_seed=seed,
    )
    model.start_learning()

    def both():
        return model.get_user_embedding(), model.get_item_embedding()

    for _ in range(iterations):
        model.run_epoch()
        if recorder.iteration(both):
            break
    return both()


def fit_cmfrec(matrix, recorder, *, factors, iterations, alpha, ridge, threads, seed, use_cg):
    from cmfrec import CMF_implicit

    triplets = matrix.tocoo()

    def run(n):
        model = CMF_implicit(
            k=factors,
            lambda_=ridge,
            alpha=alpha,
            use_cg=use_cg,
            max_cg_steps=3,
            finalize_chol=False,
            niter=n,
            nthreads=threads,
            random_state=seed,
            use_float=True,
            precompute_for_predictions=False,
            produce_dicts=False,
            handle_interrupt=False,
        )
        recorder.start()
        model.fit(triplets)
        recorder.keep(n, lambda: (model.A_, model.B_))
        return model

    # It has no hook between iterations: fit afresh for every number of iterations wanted. The difference between
    # the longest and the shortest fit, shared out, is what an iteration takes.
    run(1)
    first = recorder.fit_seconds()
    last = int(min(iterations, max(3, recorder.budget // first)))
    for n in sorted(recorder.checkpoints - {1, last}):
        if n < last:
            run(n)
    model = run(last)
    recorder.elapsed = list(np.linspace(first, recorder.fit_seconds(), last))
    return model.A_, model.B_


def newest_kernels() -> dict[str, str]:
    """Has OpenBLAS take its kernels for what this processor can do.

    An OpenBLAS older than the processor may not know its name: the one in faiss's wheel, of 2021, takes a processor of
    the Zen 5 generation for one without AVX.
    """
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    kernels = {"avx512bw": "SkylakeX", "avx2": "Haswell"}
    return next(({"OPENBLAS_CORETYPE": name} for flag, name in kernels.items() if flag in flags), {})


# implicit threads over rows and calls BLAS within a row: BLAS threads would only be in the way.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

SYSTEMS = {
    "wals_gpu exact": System(fit_wals_gpu, "wals_gpu", "exact", {"solver": "cholesky"}),
    "wals_gpu CG": System(fit_wals_gpu, "wals_gpu", "cg", {"solver": "cg"}),
    "wals_gpu subspace": System(fit_wals_gpu, "wals_gpu", "subspace", {"solver": "subspace"}),
    "wals_gpu exact, relaxed": System(
        fit_wals_gpu, "wals_gpu", "exact", {"solver": "cholesky", "over_relaxation": 1.7}
    ),
    "wals_gpu CG, relaxed": System(fit_wals_gpu, "wals_gpu", "cg", {"solver": "cg", "over_relaxation": 1.7}),
    "implicit Cholesky": System(fit_implicit, "implicit.cpu.als", "exact", {"use_cg": False}, ONE_BLAS_THREAD),
    "implicit CG": System(fit_implicit, "implicit.cpu.als", "cg", {"use_cg": True}, ONE_BLAS_THREAD),
    "irspack Cholesky": System(fit_irspack, "irspack", "exact", {"solver": "CHOLESKY"}),
    "irspack CG": System(fit_irspack, "irspack", "cg", {"solver": "CG"}),
    "irspack iALS++": System(fit_irspack, "irspack", "subspace", {"solver": "IALSPP", "block": 64}),
    "cmfrec Cholesky": System(fit_cmfrec, "cmfrec", "exact", {"use_cg": False}),
    "cmfrec CG": System(fit_cmfrec, "cmfrec", "cg", {"use_cg": True}),
}
