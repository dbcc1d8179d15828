"""Small problems that start every kernel of the library, each held to the float64 definition.

``python tests/support/ptx_cases.py MODULE 80 v100 KERNELS.ptx ... [--case NAME]`` runs them by the backend's own host
code on nvcc's PTX (tools/ptx) and prints what came of each as JSON; MODULE is the emulated module, which hands its
launches over.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
from emulated_cuda import EmulatedMemory, with_lapack
from rows import make_check, make_terms, problem
from scipy.sparse import csr_matrix
from scipy.sparse import random as sparse_random
from solving import solve_rows
from steps import solve_by_reference

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from ptx.launches import Device, read_kernels
from ptx.parser import Kernel
from ptx.tensor import MODELS, Model

from wals_gpu import WALS, reference
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.errors import SingularSystemError
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import LinearPrior

CASES: dict[str, Callable[[CudaBackend], None]] = {}
#: Names of cases whose kernels have mma instructions begin so.
TENSOR_CORES = ("exact", "subspace", "top")
#: In these, and in no other, rows are marked in float32 and solved once more in float64.
SECOND_TRY = {"exact, in float64", "exact, undetermined"}
#: Where several giant rows make a case, they are giant from 33 entries on, and cut by 16.
SMALL = {"slice_entries": 16, "giant_entries": 32}


def case(name: str) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        CASES[name] = function
        return function

    return register


@contextmanager
def small_slices(backend: CudaBackend) -> Iterator[None]:
    module = backend.device.kernels
    limits = module.LIMITS
    module.LIMITS = limits._replace(**SMALL)
    try:
        yield
    finally:
        module.LIMITS = limits


def with_constants(terms: RowTerms) -> RowTerms:
    """One number for all rows and columns; coefficients of the Gram matrix from the right-hand ones."""
    one = np.ones(1, np.float32)
    return RowTerms(terms.row_ptr, terms.col_idx, abs(terms.rhs) + one, None, -0.5, one / 2, one / 4, one * 2, 0.0)


def exact(
    backend: CudaBackend, d: int, lengths: list[int], signs: str = "plus", with_prior: bool = False, constants=False
) -> None:
    terms, other, prior = problem(d, lengths, signs, seed=d)
    terms = with_constants(terms) if constants else terms
    x = np.full((len(lengths), d), np.nan, np.float32)
    solve_rows(backend, terms, other, x, prior=prior if with_prior else None)
    make_check(terms, other, prior if with_prior else None)(x)


for name, arguments in {
    "exact, 32": (32, [28, 45], "plus", True),
    "exact, 32, any signs": (20, [0, 5, 17, 40], "all", True),
    "exact, 64": (64, [40, 100], "plus", False, True),
    "exact, 64, minus": (50, [0, 1, 33, 43, 90], "minus", True),
    "exact, 128": (128, [100, 161], "mixed", True),
    "exact, 128, tiny": (113, [70, 113], "tiny", True),
    "exact, 256": (256, [200, 260], "tiny", True),
    "exact, in the workspace": (260, [0, 280], "plus", True),
}.items():
    case(name)(lambda backend, arguments=arguments: exact(backend, *arguments))


@case("exact, giant")
def _(backend: CudaBackend) -> None:
    with small_slices(backend):
        exact(backend, 40, [20, 75, 40], "mixed", True)
        exact(backend, 70, [75], "plus", False, True)


@case("exact, in float64")
def _(backend: CudaBackend) -> None:
    rng = np.random.default_rng(5)
    other = (rng.normal(size=(60, 1)) * rng.normal(size=40) + 1e-3 * rng.normal(size=(60, 40))).astype(np.float32)
    terms = make_terms([20, 60], 60, rng, np.float32, background=0.0, ridge=2e-3)
    x, prior = np.zeros((2, 40), np.float32), 1e-3 * rng.normal(size=(2, 40)).astype(np.float32)
    solve_rows(backend, terms, other, x, prior=prior)
    wanted = reference.solve_rows(terms, other, prior=prior)
    assert np.linalg.norm(x - wanted) < 1e-6 * np.linalg.norm(wanted)


@case("exact, undetermined")
def _(backend: CudaBackend) -> None:
    """Ten items leave one of eleven directions without data; a row without ridge has nothing else there."""
    other = np.random.default_rng(11).standard_normal((10, 11)).astype(np.float32)
    one, ridge = np.ones(1, np.float32), np.array([1, 0], np.float32)
    terms = RowTerms(np.arange(3) * 10, np.tile(np.arange(10, dtype=np.int32), 2), one, one, 0.0, one, ridge, one, 0.0)
    x = np.zeros((2, 11), np.float32)
    try:
        solve_rows(backend, terms, other, x)
    except SingularSystemError as error:
        assert "row 1 " in str(error) and x[0].any() and not x[1].any()
    else:
        raise AssertionError("no row was singular")


@case("relaxed, and its loss")
def _(backend: CudaBackend) -> None:
    terms, other, start = problem(150, [3, 20], "plus")
    x = start.copy()
    loss = solve_rows(backend, terms, other, x, relaxation=1.3, return_loss=True)
    wanted = solve_by_reference(terms, other, start, relaxation=1.3)
    np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())
    one = np.zeros(1, np.float32)
    np.testing.assert_allclose(loss + terms.target_square, reference.loss(terms, x, other, one), rtol=1e-5)


@case("loss")
def _(backend: CudaBackend) -> None:
    for d, lengths in ((33, [0, 3, 50]), (530, [2, 20])):
        terms, other, x = problem(d, lengths, "all")
        prior, other_prior, ridge = x[::-1].copy(), other[::-1].copy(), np.full(1, 0.3, np.float32)
        for of, priors in ((terms, {}), (with_constants(terms), {"user_prior": prior, "item_prior": other_prior})):
            wanted = reference.loss(of, x, other, ridge, **priors)
            assert abs(backend.loss(of, x, other, ridge, **priors) - wanted) <= 1e-11 * abs(wanted)
        np.testing.assert_allclose(
            solve_rows(backend, terms, other, x.copy(), solver="cg", cg_steps=1, return_loss=True),
            solve_rows(CpuBackend(1), terms, other, x.copy(), solver="cg", cg_steps=1, return_loss=True), rtol=1e-4,
        )  # fmt: skip


def steps(backend: CudaBackend, d: int, lengths: list[int], giant: bool = False, **how: object) -> None:
    terms, other, start = problem(d, lengths, "all", ridge=0.5)
    terms.gram[:] = abs(terms.gram)
    terms = with_constants(terms) if d in (100, 150) else terms
    other *= np.float32(0.3)
    x, prior = start.copy(), start[::-1].copy()
    if giant:
        with small_slices(backend):
            solve_rows(backend, terms, other, x, prior=prior, **how)
    else:
        solve_rows(backend, terms, other, x, prior=prior, **how)
    wanted = solve_by_reference(terms, other, start, prior=prior, **how)
    np.testing.assert_allclose(x, wanted, rtol=2e-4, atol=2e-4 * abs(wanted).max())


for d in (20, 50, 100, 200, 300, 600):
    case(f"conjugate gradients, {d}")(lambda backend, d=d: steps(backend, d, [0, 7, 45], solver="cg", cg_steps=2))
    case(f"conjugate gradients, {d}, giant")(
        lambda backend, d=d: steps(backend, d, [7, 50], giant=True, solver="cg", cg_steps=2)
    )
for d, block in ((50, 32), (100, 64), (150, 128), (272, 256)):  # rows of fewer entries than a block are solved exactly
    how = {"solver": "subspace", "block_size": block}
    lengths = [7, block + 37]
    case(f"subspace, blocks of {block}")(lambda backend, d=d, n=lengths, how=how: steps(backend, d, n, **how))
    case(f"subspace, blocks of {block}, giant")(
        lambda backend, d=d, n=lengths, how=how: steps(backend, d, n, giant=True, **how)
    )


def topk(backend: CudaBackend, queries: int, items: int, factors: int, k: int) -> None:
    """Small integers, of which scores are exact and ties plenty."""
    rng = np.random.default_rng(items)
    x, y = (rng.integers(-3, 4, (n, factors)).astype(np.float32) for n in (queries, items))
    excluded = sparse_random(queries, items, density=0.3, format="csr", random_state=1)
    excluded.sort_indices()
    ids, scores = backend.topk(x, y, k, excluded)
    wanted = reference.topk(x, y, k, excluded)
    np.testing.assert_array_equal(ids, wanted[0])
    np.testing.assert_array_equal(scores, wanted[1])


case("top 10 of 500")(lambda backend: topk(backend, 65, 500, 40, 10))
case("top 1000 of 3000")(lambda backend: topk(backend, 3, 3000, 70, 1000))


@case("top 20 of any size")
def _(backend: CudaBackend) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 40), np.float32), rng.standard_normal((400, 40), np.float32)
    x *= np.array([1e-12, 1e-3, 1, 1e12], np.float32)[:, None]
    y *= np.float32(10) ** rng.integers(-3, 4, (400, 1)).astype(np.float32)
    np.testing.assert_array_equal(backend.topk(x, y, 20)[0], reference.topk(x, y, 20)[0])


@case("eigenvectors")
def _(backend: CudaBackend) -> None:
    for d in (3, 20, 33):
        terms, other, _ = problem(d, [5, 40], "plus", seed=d)
        found = backend.spectrum(terms, other)
        gram = CpuBackend(1).gram(terms, other)
        values = np.linalg.eigvalsh(gram)
        bound = 2 * (d + 8 + len(other)) * np.finfo(np.float64).eps * values[-1]  # the sums of both matrices, too
        assert abs(found.values - values).max() <= bound
        assert abs(gram @ found.vectors - found.vectors * found.values).max() <= bound
        assert abs(found.vectors.T @ found.vectors - np.eye(d)).max() <= 2 * (d + 8) * np.finfo(np.float64).eps


@case("a fit with priors")
def _(backend: CudaBackend) -> None:
    rng = np.random.default_rng(3)
    likes = csr_matrix((rng.random((20, 14)) < 0.3).astype(np.float32))
    features = rng.normal(size=(14, 5))
    models = []
    for own in (None, backend):
        model = WALS(
            6, "ials", iterations=2, item_prior=LinearPrior(features, shrinkage=0.5, strength=2.0), random_state=0
        )
        model._backend = own or model._backend
        models.append(model.fit(likes))
    losses = [[record.loss for record in model.history_] for model in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    scores = [model.user_factors @ model.item_factors.T for model in models]
    np.testing.assert_allclose(scores[1], scores[0], atol=3e-3)


#: In these the kernels solve eigenproblems; elsewhere LAPACK does, in a hundredth of the time.
EIGENPROBLEMS = {"eigenvectors", "a fit with priors"}
#: Instructions that solve_wide_kernel goes through where it has nothing to do, at most.
NOTHING_TO_DO = 200


def run(name: str, kernels: dict[str, Kernel], model: Model, module: ModuleType, card: int = 80) -> Counter[str]:
    """One case, launched as on a card of that capability; how many instructions of each kernel it went through."""
    module.configure(architecture=card)
    device = Device(kernels, model)
    with device.instead_of(module):
        own = module.spectrum
        module.spectrum = getattr(own, "__wrapped__", own)  # other tests may have LAPACK in its place
        try:
            CASES[name](
                CudaBackend(with_lapack(module, 1 << 20 if name in EIGENPROBLEMS else 0), EmulatedMemory(module))
            )
        finally:
            module.spectrum = own
    second_try = any(n > NOTHING_TO_DO for kernel, n in device.launched.items() if "solve_wide" in kernel)
    assert second_try == (name in SECOND_TRY), "a row was solved in float64, or none of those that have to be"
    return device.launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("card", type=int)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--tensor-cores", action="store_true", help="only cases whose kernels have mma instructions")
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location(options.module.name.split(".")[0], options.module)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernels, results = read_kernels(options.files), {}
    for name in options.case or CASES:
        if options.tensor_cores and not name.startswith(TENSOR_CORES):
            continue
        begin, error, launched = time.perf_counter(), "", Counter()
        try:
            launched = run(name, kernels, MODELS[options.model], module, options.card)
        except Exception:
            error = traceback.format_exc()
        seconds = round(time.perf_counter() - begin, 2)
        results[name] = {"error": error, "seconds": seconds, "launched": launched}
    json.dump({"kernels": sorted(kernels), "cases": results}, sys.stdout)


if __name__ == "__main__":
    main()
