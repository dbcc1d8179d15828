"""Whether a CUDA device computes what the CPU computes, and from which size on it is the faster one.

That kernels were compiled for a device, and are started by its driver, is no proof of their results. So the first use
of a device runs every family of kernels on awkward sizes beside the CPU in float64, and times both on a small and on a
middling fit. It takes seconds; the outcome is kept for the device, its driver and this build.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import TorchMemory, load_cuda
from wals_gpu.backends.session import Backend, Session
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.files import whole_file
from wals_gpu.errors import DeviceLostError, SingularSystemError
from wals_gpu.objective.presets import make_objective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.system import exclusive, nvidia_driver_version

__all__ = ["Case", "Outcome", "approve", "cases", "check_kept", "compare", "cuda_backend", "place_of", "self_check"]
__all__ += ["work"]

#: Fits that both devices are timed on: users, items, entries. The first is what an iteration costs by itself.
TIMED = ((300, 200, 3_000), (20_000, 10_000, 1_000_000))
TIMED_FACTORS = 64

Dtype = type[np.floating[Any]]
Arrays = tuple[NDArray[Any], ...]
Compute = Callable[[Backend, Dtype], Arrays]


@dataclass(frozen=True)
class Case:
    """What one family of kernels is to compute at some sizes; `tolerance` is a part of the largest absolute value.

    `compute` gets a backend and a dtype; SingularSystemError is an answer too.
    """

    family: str
    sizes: str
    compute: Compute
    tolerance: float


@dataclass(frozen=True)
class Outcome:
    """What a self-check found.

    Attributes
    ----------
    device : str
        Its name.
    failures : list of str
        Family, sizes and what was wrong; none where all is well.
    families : dict
        For each family the largest error as a part of what is allowed.
    cpu, cuda : list of float
        Seconds of an iteration by itself, and for a unit of :func:`work`; empty where nothing was timed.
    seconds : float
        That the check took.
    """

    device: str
    failures: list[str] = field(default_factory=list)
    families: dict[str, float] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    cuda: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def speedup(self, amount: float) -> float:
        """How many times as fast the device is in an iteration of so much work."""
        cpu, cuda = (fixed + rate * amount for fixed, rate in (self.cpu, self.cuda))
        return cpu / cuda


def cuda_backend(index: int | None = None) -> CudaBackend:
    """The backend of a CUDA device, by default the current one, not checked; RuntimeError says why there is none."""
    return CudaBackend(load_cuda(index), TorchMemory(index))


# What is compared


def _problem(d: int, lengths: Sequence[int], dtype: Dtype, lowest: float) -> tuple[RowTerms, NDArray[Any]]:
    """Rows of these lengths, well conditioned, and the factors of the other side; the same numbers in either dtype."""
    rng = np.random.default_rng(d)
    counts, n_other = np.asarray(lengths), max(*lengths, 40)
    columns = [np.sort(rng.choice(n_other, n, replace=n > n_other)) for n in lengths]
    size, n = int(counts.sum()), len(counts)
    parts = {"rhs": (-2, 2, size), "gram": (lowest, 3, size), "background": (0.5, 1.5, n), "ridge": (0.5, 1.5, n)}
    parts["other_background"] = (0.5, 1.5, n_other)
    arrays = {name: rng.uniform(*part).astype(np.float32).astype(dtype) for name, part in parts.items()}
    row_ptr = np.concatenate([[0], np.cumsum(counts)])
    terms = RowTerms(row_ptr, np.concatenate(columns).astype(np.int32), gram_offset=0.0, target_square=0.0, **arrays)
    return terms, rng.normal(size=(n_other, d)).astype(np.float32).astype(dtype)


def _solving(
    d: int, lengths: Sequence[int], options: SolveOptions, prior: bool = False, lowest: float = 0.5
) -> Compute:
    def compute(backend: Backend, dtype: Dtype) -> Arrays:
        terms, other = _problem(d, lengths, dtype, lowest)
        x = np.random.default_rng(1).normal(size=(len(lengths), d)).astype(np.float32).astype(dtype)
        backend.solve_rows(terms, other, x, options, prior=x[::-1].copy() if prior else None)
        return (x,)

    return compute


def _singular(backend: Backend, dtype: Dtype) -> Arrays:
    """Rows without background and ridge, the third of which does not determine its factors."""
    terms, other = _problem(24, [30, 40, 3], dtype, 0.5)
    terms = replace(terms, background=np.zeros(1, dtype), ridge=np.zeros(1, dtype))
    backend.solve_rows(terms, other, np.zeros((3, 24), dtype))
    return ()


def _scaled(backend: Backend, dtype: Dtype) -> Arrays:
    """Numbers far beyond the range of f16, which the kernels' scales bring there."""
    terms, other = _problem(40, [10, 34, 80], dtype, 0.5)
    terms = replace(terms, ridge=terms.ridge * dtype(2.0**-68))
    x = np.zeros((3, 40), dtype)
    backend.solve_rows(replace(terms, background=np.zeros(1, dtype)), other * dtype(2.0**-33), x)
    return (x,)


def _undetermined(backend: Backend, dtype: Dtype) -> Arrays:
    """Fewer items than factors: nothing but the ridge, which the second row has not, says where a row lies."""
    other = np.random.default_rng(0).standard_normal((10, 11)).astype(np.float32).astype(dtype)
    columns, one, ridge = np.tile(np.arange(10, dtype=np.int32), 2), np.ones(1, dtype), np.array([1, 0], dtype)
    terms = RowTerms(np.arange(3) * 10, columns, one, one, 0.0, one, ridge, one, 0.0)
    backend.solve_rows(terms, other, np.zeros((2, 11), dtype))
    return ()


def _nearly_singular(backend: Backend, dtype: Dtype) -> Arrays:
    """Rows that float32 does not get right, so that a device solves them again in float64."""
    rng, x = np.random.default_rng(5), np.zeros((2, 40), dtype)
    other = (rng.normal(size=(100, 1)) * rng.normal(size=40) + 1e-3 * rng.normal(size=(100, 40))).astype(np.float32)
    terms, _ = _problem(40, [20, 100], dtype, 0.5)
    terms = replace(terms, background=np.zeros(1, dtype), ridge=np.full(1, 2e-3, dtype))
    backend.solve_rows(terms, other.astype(dtype), x)
    return (x,)


def _gram(n: int, d: int) -> Compute:
    def compute(backend: Backend, dtype: Dtype) -> Arrays:
        values, vectors = backend.spectrum(*_problem(d, [n], dtype, 0.5))
        assert vectors is not None  # there is a background
        return ((vectors * values) @ vectors.T,)

    return compute


def _matrix(n_users: int, n_items: int, n_entries: int) -> csr_matrix:
    """Some users and items have most entries, the last of them few or none."""
    rng = np.random.default_rng(n_entries)
    users, items = ((n * rng.random(n_entries) ** 2).astype(np.int32) for n in (n_users, n_items))
    matrix = csr_matrix((np.ones(n_entries, np.float32), (users, items)), shape=(n_users, n_items))
    matrix.sum_duplicates()
    return matrix


def _losses(d: int) -> Compute:
    def compute(backend: Backend, dtype: Dtype) -> Arrays:
        rng, matrix = np.random.default_rng(d), _matrix(65, 33, 300).astype(dtype)
        x, y, prior = (rng.normal(size=(n, d)).astype(np.float32).astype(dtype) for n in (65, 33, 65))
        terms = make_objective("hu").bind(matrix).user_terms(matrix)
        loss, ridge = backend.loss(terms, x, y, np.full(33, 0.5, dtype)), np.ones(1, dtype)
        return np.array([loss]), np.array([backend.ridge_loss(x, ridge, prior)])

    return compute


def _searching(n_queries: int, n_items: int, d: int, k: int) -> Compute:
    """Scores that were found, and what the items that were found score in truth: both are those of the best."""

    def compute(backend: Backend, dtype: Dtype) -> Arrays:
        rng = np.random.default_rng(k)
        queries, items = (rng.normal(size=(n, d)).astype(np.float32).astype(dtype) for n in (n_queries, n_items))
        excluded = csr_matrix(rng.random((n_queries, n_items)) < min(0.2, 10 / n_items))
        ids, scores = backend.topk(queries, items, k, excluded)
        truth = np.where(excluded.toarray(), -np.inf, queries.astype(np.float64) @ items.T.astype(np.float64))
        truth = np.take_along_axis(truth, np.maximum(ids, 0), axis=1)
        distinct = np.array([len(set(row[row >= 0])) for row in ids])
        return np.where(ids >= 0, scores, 0.0), np.where(ids >= 0, truth, 0.0), distinct

    return compute


def _iterate(session: Session, users: RowTerms, items: RowTerms, options: SolveOptions) -> float:
    """An iteration, as fits make it; its loss, but for what does not depend on the factors."""
    loss = session.iterate(users, items, options, return_loss=True)
    assert loss is not None
    return loss - users.target_square


def _fitting(solver: str) -> Compute:
    """Scores and losses of three iterations in a session, where arrays and plans are kept from one to the next."""

    def compute(backend: Backend, dtype: Dtype) -> Arrays:
        matrix, rng = _matrix(150, 90, 2_000).astype(dtype), np.random.default_rng(0)
        bound, losses = make_objective("hu").bind(matrix), []
        users, items = bound.user_terms(matrix), bound.item_terms(matrix.T.tocsr())
        x, y = (rng.normal(0, 0.1, (n, 40)).astype(np.float32).astype(dtype) for n in matrix.shape)
        with backend.session(x, y, may_move=True) as session:
            for relaxation in (1.0, 1.0, 1.3):  # the second is started as one graph
                options = SolveOptions(solver, block_size=16, relaxation=relaxation)
                losses.append(_iterate(session, users, items, options))
        return x @ y.T, np.array(losses)

    return compute


def cases() -> Iterator[Case]:
    """Every family of kernels, each at the sizes where its code takes another way."""
    for n, d in ((1, 1), (33, 20), (300, 33), (77, 100), (280, 260)):
        yield Case("Gram matrices", f"{n} rows, {d} factors", _gram(n, d), 1e-5)
    some, steps = (40, (0, 12, 34, 90)), ((1, (0, 3)), (33, (0, 3, 40, 300)), (130, (1, 129, 260)), (5, (8193, 20)))
    dual = ((1, (0, 1)), (33, (0, 1, 15, 16, 17, 28)), (128, (33, 64, 65, 112)), (256, (129, 224)))
    primal = ((1, (0, 2, 70)), (31, (31, 32, 33, 65, 200)), (64, (64, 101)), (100, (99, 161)), (256, (257,)))
    # 2e-5: the emulator's errors are up to 7e-7; f16 products without their second halves would be above.
    solves: list[tuple[str, Any, dict[str, Any], float]] = [
        ("exact solves, dual", dual, {}, 2e-5),
        ("exact solves, primal", primal, {}, 2e-5),
        ("exact solves, in slices", ((257, (5, 260)), (5, (8193, 20))), {}, 2e-5),
        ("exact solves, coefficients below 0", [some], {"lowest": -0.005}, 2e-5),
        ("exact solves, priors and relaxation", [some], {"relaxation": 1.5, "prior": True}, 2e-5),
        ("conjugate gradients", steps, {"solver": "cg"}, 1e-4),
        ("conjugate gradients, priors", [some], {"solver": "cg", "prior": True}, 1e-4),
        ("subspace steps", steps, {"solver": "subspace", "block_size": 16}, 1e-4),
    ]
    for family, sizes, how, tolerance in solves:
        how = dict(how)
        of_problem = {name: how.pop(name) for name in ("prior", "lowest") if name in how}
        for d, lengths in sizes:
            named = f"{d} factors, rows of {', '.join(map(str, lengths))} entries"
            yield Case(family, named, _solving(d, lengths, SolveOptions(**how), **of_problem), tolerance)
    yield Case("exact solves, small and large numbers", "40 factors, rows of 10, 34, 80 entries", _scaled, 2e-5)
    nearly = "40 factors, nearly singular rows of 20, 100 entries"
    yield Case("exact solves, float64", nearly, _nearly_singular, 2e-5)
    yield Case("rows that have no solution", "24 factors, rows of 30, 40, 3 entries", _singular, 0.0)
    yield Case("rows that have no solution", "11 factors, rows of all 10 items", _undetermined, 0.0)
    for d in (1, 33, 100):
        yield Case("losses", f"65 x 33, {d} factors", _losses(d), 1e-5)
    for b, n, d, k in ((1, 1, 1, 1), (3, 33, 20, 40), (70, 5_000, 100, 10), (5, 1_500, 33, 1_000)):
        yield Case("top-k", f"{b} queries, {n} items, {d} factors, k = {k}", _searching(b, n, d, k), 1e-5)
    for solver in ("cholesky", "cg", "subspace"):
        yield Case("fits", f"{solver}, 150 x 90, 40 factors", _fitting(solver), 1e-4)


def compare(case: Case, backend: Backend, cpu: Backend) -> tuple[float, str]:
    """The largest error of a case as a part of what is allowed, and what is wrong ("" where nothing is)."""
    answers: list[Any] = []
    for one, dtype in ((cpu, np.float64), (backend, np.float32)):
        try:
            answers.append(case.compute(one, dtype))
        except (DeviceLostError, MemoryError):
            raise
        except SingularSystemError as error:
            answers.append(str(error))
        except Exception as error:  # whatever it is, it does not happen on the CPU
            answers.append(f"{type(error).__name__}: {error}")
    right, got = answers
    if isinstance(got, str) or isinstance(right, str):
        return (
            (0.0, "") if got == right else (np.inf, got if isinstance(got, str) else f"no error, but {right!r} is one")
        )
    worst = 0.0
    for ours, expected in zip(got, right, strict=True):
        if ours.shape != expected.shape or not np.isfinite(ours).all():
            return np.inf, "NaN or infinity, or too few results"
        size = float(np.abs(expected).max(initial=0.0)) or 1.0
        off = float(np.abs(ours - expected.astype(np.float64)).max(initial=0.0)) / size
        worst = max(worst, off / case.tolerance if case.tolerance else np.inf if off else 0.0)
        if off > case.tolerance:
            return worst, f"the largest error is {off:.2g} of the largest value; {case.tolerance:g} is allowed"
    return worst, ""


# Times


def work(n_entries: int, factors: int, options: SolveOptions) -> float:
    """Multiply-adds over the entries in an iteration, with which times grow on either device."""
    each = {"cholesky": factors, "cg": 4 * (options.cg_steps + 1), "subspace": min(options.block_size, factors)}
    return 2.0 * n_entries * factors * each[options.solver]


def _line(backend: Backend) -> list[float]:
    """Seconds of an iteration by itself, and for a unit of work: from the least of three iterations at both sizes."""
    points, options = [], SolveOptions()
    for shape in TIMED:
        matrix, rng = _matrix(*shape), np.random.default_rng(0)
        bound, times = make_objective("hu").bind(matrix), []
        users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
        x, y = (rng.normal(0, 0.1, (n, TIMED_FACTORS)).astype(np.float32) for n in matrix.shape)
        with backend.session(x, y, may_move=True) as session:
            for _ in range(4):
                started = time.perf_counter()
                _iterate(session, users, items, options)  # whose loss waits for the device
                times.append(time.perf_counter() - started)
        points.append((work(matrix.nnz, TIMED_FACTORS, options), min(times[1:])))  # the first uploads, and plans
    (small, first), (large, second) = points
    rate = max(second - first, 1e-9) / (large - small)
    return [max(first - rate * small, 0.0), rate]


def _run(backend: CudaBackend, tell: Callable[[str], None]) -> Outcome:
    started, cpu, outcome = time.perf_counter(), CpuBackend(), Outcome(place_of(backend)[0]["device"])
    what = "the first case"
    try:
        for case in cases():
            what = f"{case.family} ({case.sizes})"
            worst, wrong = compare(case, backend, cpu)
            outcome.families[case.family] = max(worst, outcome.families.get(case.family, 0.0))
            tell(f"{what}: {wrong or f'right, {worst:.1g} of what is allowed'}")
            if wrong:
                outcome.failures.append(f"{what}: {wrong}")
        if not outcome.failures:
            what = f"fits that are timed ({TIMED_FACTORS} factors)"
            outcome.cuda[:], outcome.cpu[:] = _line(backend), _line(cpu)
    except Exception as error:  # the device is gone, or has no room
        outcome.failures.append(f"{what}: {type(error).__name__}: {error}")
    return replace(outcome, seconds=time.perf_counter() - started)


# What is kept of it

_KNOWN: dict[str, Outcome] = {}  # by this process


def mode() -> str:
    """WALS_GPU_SELF_CHECK: "1" (the default) uses what is kept, "again" checks anew, "0" takes a device as it is."""
    value = os.environ.get("WALS_GPU_SELF_CHECK", "1")
    if value not in ("0", "1", "again"):
        raise RuntimeError(f"WALS_GPU_SELF_CHECK must be 0, 1 or again, got {value!r}")
    return value


def place_of(backend: CudaBackend) -> tuple[dict[str, str], Path]:
    """What an outcome is valid for (the device, the driver, the build), and the file where it is kept."""
    memory: Any = backend.device.memory
    limits = backend.device.limits
    key = {"device": limits.name, "capability": str(limits.capability)}
    with contextlib.suppress(AttributeError, RuntimeError, ValueError, AssertionError):  # not torch's memory
        found = memory.torch.cuda.get_device_properties(memory.device)  # torch before 2.5 knows no UUIDs
        key |= {"uuid": str(getattr(found, "uuid", memory.device.index)), "torch": str(memory.torch.__version__)}
    key["driver"] = nvidia_driver_version() or "unknown"
    key["build"] = _build_of(getattr(backend.device.kernels, "__file__", None))
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(folder) if os.path.isabs(folder) else Path(os.path.expanduser("~/.cache"))
    return key, base / "wals_gpu" / f"self_check-{name}.json"


@functools.cache  # fits ask each time, and what was imported does not change
def _build_of(native: str | None) -> str:
    """The version, and a digest of the code that this process has imported."""
    digest, release = hashlib.sha256(), "unknown"
    with contextlib.suppress(PackageNotFoundError):  # a source tree that was never installed
        release = version("wals_gpu")
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *([Path(native)] if native else [])):
        digest.update(path.read_bytes())
    return f"{release} {digest.hexdigest()[:16]}"


def _read(path: Path, key: dict[str, str]) -> Outcome | None:
    """What is kept; None where nothing is, or nothing that can be read."""
    if str(path) in _KNOWN:
        return _KNOWN[str(path)]
    try:
        content = json.loads(path.read_bytes())
        outcome = Outcome(**content["outcome"])
        numbers = [*outcome.cpu, *outcome.cuda, *outcome.families.values(), outcome.seconds]
        is_sound = all(isinstance(number, (int, float)) for number in numbers) and "".join(outcome.failures) is not None
        is_sound &= len(outcome.cpu) == len(outcome.cuda) in (0, 2)
        return outcome if is_sound and content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, key: dict[str, str], outcome: Outcome) -> None:
    with contextlib.suppress(OSError), whole_file(path) as file:  # else it is checked again
        file.write_text(json.dumps({"key": key, "outcome": asdict(outcome)}, indent=1))


def self_check(backend: CudaBackend, *, again: bool = False, tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """The outcome for a device: what is kept, or with `again` or where nothing is, that of a check, which is kept.

    `tell` gets a line for each case. A second process waits for the check of the first, where files can be locked.
    """
    key, path = place_of(backend)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".lock").touch()
            stack.enter_context(exclusive(path.with_suffix(".lock")))
        known = None if again else _read(path, key)
        if known is None:
            # What the next process finds if this one does not survive the check.
            died = "an earlier check did not come to its end: `wals-gpu doctor --gpu` repeats it"
            _write(path, key, Outcome(key["device"], [died]))
            try:
                known = _run(backend, tell)
            except BaseException:  # Ctrl-C is no verdict
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
            _write(path, key, known)
        _KNOWN[str(path)] = known
        return known


def _refusal(outcome: Outcome) -> str:
    more = f" (and {len(outcome.failures) - 1} more)" if len(outcome.failures) > 1 else ""
    return (
        f"{outcome.device} failed the self-check: {outcome.failures[0]}{more}. Use the CPU, and please report "
        "what `wals-gpu doctor --gpu` prints; WALS_GPU_SELF_CHECK=0 uses the device all the same"
    )


def check_kept(backend: CudaBackend) -> None:
    """RuntimeError where the device is known to fail, unless WALS_GPU_SELF_CHECK has another wish."""
    key, path = place_of(backend)
    known = _read(path, key)
    if mode() == "1" and known is not None and known.failures:
        raise RuntimeError(_refusal(known))


def approve(backend: CudaBackend) -> Outcome | None:
    """The outcome for a device that may be used; None where WALS_GPU_SELF_CHECK=0 asks for no check.

    Raises
    ------
    RuntimeError
        It failed; the text names the family of kernels and the sizes.
    """
    if mode() == "0":
        return None
    outcome = self_check(backend, again=mode() == "again" and str(place_of(backend)[1]) not in _KNOWN)
    if outcome.failures:
        raise RuntimeError(_refusal(outcome))
    return outcome
