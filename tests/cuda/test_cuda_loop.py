"""What the host does in an iteration of a fit on a CUDA device: it plans nothing, copies nothing there, and waits once,
for the few bytes of the loss and of how many rows were not solved."""

import contextlib
import gc
import itertools
import threading

import numpy as np
import pytest
from emulated import load
from emulated_cuda import ON_DEVICE, EmulatedMemory, needs_kernels
from scipy.sparse import random as sparse_random

from wals_gpu import WALS
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.backends import cuda_plan, cuda_terms
from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import load_cuda
from wals_gpu.backends.cuda_solve import Outcome
from wals_gpu.backends.session import iterate_in_turn
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.errors import ModelFitError, SingularSystemError
from wals_gpu.objective.presets import make_objective

pytestmark = needs_kernels


class Counting:
    """Memory that counts what an iteration asks of the host."""

    def __init__(self, memory):
        self.memory, self.uploads, self.downloads, self.allocated, self.bytes_down = memory, 0, 0, 0, 0

    def __getattr__(self, name):
        return getattr(self.memory, name)

    def upload(self, array):
        self.uploads += 1
        return self.memory.upload(array)

    def download(self, array):
        self.downloads += 1
        host = self.memory.download(array)
        self.bytes_down += host.nbytes
        return host

    def empty(self, n, dtype):
        self.allocated += 1
        return self.memory.empty(n, dtype)

    def counts(self):
        return np.array([self.uploads, self.downloads, self.allocated, self.bytes_down])


def counting_backend():
    module = load_cuda() if ON_DEVICE else load("_emulated")
    if not ON_DEVICE:
        module.configure()
    return CudaBackend(module, Counting(EmulatedMemory(module)))


def interactions(users=60, items=45, density=0.25):
    matrix = sparse_random(users, items, density=density, format="csr", dtype=np.float32, random_state=1)
    matrix.data[:] = 1
    return matrix


def problem(factors, objective="ials", **how):
    """An open session of a backend that counts, and the terms of both sides."""
    matrix, backend = interactions(), counting_backend()
    bound = make_objective(objective, **how).bind(matrix)
    users, items = bound.user_terms(matrix), bound.item_terms(backend.transpose(matrix))
    rng = np.random.default_rng(factors)
    x, y = (0.1 * rng.normal(size=(n, factors)).astype(np.float32) for n in matrix.shape)
    return backend, backend.session(x, y), users, items


@pytest.fixture
def no_plans(monkeypatch):
    """Nothing is planned from now on: a call in the returned context fails."""

    @contextlib.contextmanager
    def forbidden():
        with monkeypatch.context() as patch:
            for module, name in itertools.product((cuda_plan, cuda_terms), ("plan_rows", "gram_bounds", "slice_rows")):
                patch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"), raising=False)
            yield

    return forbidden


OPTIONS = [
    SolveOptions(solver, block_size=32, relaxation=relaxation)
    for solver in ("cholesky", "cg", "subspace")
    for relaxation in (1.0, 1.5)
]


@pytest.mark.parametrize(
    ("options", "factors", "return_loss"),
    [
        *((options, d, loss) for options in OPTIONS for d, loss in ((16, False), (16, True), (64, True))),
        (SolveOptions("subspace", block_size=32), 100, False),
        (SolveOptions("cg"), 128, True),
        (SolveOptions(relaxation=1.5), 130, True),
    ],
    ids=lambda o: f"{o.solver}, {o.relaxation}" if isinstance(o, SolveOptions) else None,
)
def test_an_iteration_copies_nothing_there_and_a_few_bytes_back(factors, options, return_loss, no_plans):
    backend, session, users, items = problem(factors)
    memory = backend.device.memory
    with session:
        session.iterate(users, items, options, return_loss=return_loss)  # terms, plans and buffers
        with no_plans():
            before = memory.counts()
            loss = session.iterate(users, items, options, return_loss=return_loss)
        uploads, downloads, allocated, bytes_down = memory.counts() - before
    assert (uploads, downloads, allocated, bytes_down) == (0, 1, 0, Outcome.RECORD.itemsize)
    assert (loss is not None) == return_loss


@pytest.mark.parametrize("what", ["upload", "download", "plan"])
def test_what_an_iteration_must_not_do_is_seen(what, monkeypatch):
    """The counts would tell: planted, each of them."""
    backend, session, users, items = problem(16)
    memory, real = backend.device.memory, backend.solver.start

    def start(*args, **kwargs):
        if what == "plan":
            for terms in backend.terms.kept.values():
                terms._plans.clear()
        elif what == "upload":
            memory.upload(np.zeros(1, np.float32))
        else:
            memory.download(memory.memory.empty(1, np.float32))
        return real(*args, **kwargs)

    with session:
        session.iterate(users, items, OPTIONS[0])
        before = memory.counts()
        monkeypatch.setattr(backend.solver, "start", start)
        with pytest.warns(RuntimeWarning, match="not permitted" if what == "download" else "no upload"):
            session.iterate(users, items, OPTIONS[0])
        uploads, downloads, *_ = memory.counts() - before
    # One each side, and one while it was tried to record them.
    assert {"upload": uploads == 3, "download": downloads == 4, "plan": uploads > 3}[what]


@pytest.mark.parametrize("make", [WALS, AlternatingLeastSquares])
@pytest.mark.parametrize("looks", [False, True])
def test_a_fit_does_no_more_for_more_iterations(make, looks, monkeypatch):
    def counts(iterations):
        backend = counting_backend()
        for place in ("model.settings", "model.wals", "compat.als"):
            monkeypatch.setattr(f"wals_gpu.{place}.make_backend", lambda *args, **kwargs: backend)
        option = {} if not looks else {"compute_loss" if make is WALS else "calculate_training_loss": True}
        make(factors=13, iterations=iterations, random_state=0, **option).fit(interactions(), show_progress=False)
        return backend.device.memory.counts()[:2]

    few, more = counts(4), counts(9)
    uploads, downloads = (more - few) / 5
    own_loss = looks and make is AlternatingLeastSquares  # has a definition of its own: computed after the iteration
    assert (uploads, downloads) == ((0, 2) if own_loss else (0, 1))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.solver}, {o.relaxation}")
def test_an_iteration_is_two_solves(options):
    results = []
    for iterate in (iterate_in_turn, lambda session, *how: session.iterate(*how[:4], return_loss=how[4])):
        _, session, users, items = problem(33, "hu")
        with session:
            losses = [iterate(session, users, items, options, contextlib.nullcontext, True) for _ in range(4)]
        results.append([losses, *(session.factors(side).tobytes() for side in ("user", "item"))])
    assert results[0] == results[1]


# Iterations as one graph

only_emulated = pytest.mark.skipif(ON_DEVICE, reason="the emulator counts")


@only_emulated
@pytest.mark.parametrize(("options", "return_loss"), list(zip(OPTIONS, [False, True] * 3, strict=True)))
def test_an_iteration_is_started_as_one_from_the_second_on(options, return_loss):
    backend, session, users, items = problem(40, "hu", alpha=30)
    module = backend.device.kernels
    counts = []
    with session:
        for _ in range(4):
            module.reset_counts()
            session.iterate(users, items, options, return_loss=return_loss)
            counts.append(module.counts())
    assert counts[0]["launches"] == counts[1]["launches"] + 1 > 50 and counts[0]["graphs"] == 0
    for later in counts[2:]:
        assert {name: n for name, n in later.items() if n} == {"graphs": 1, "downloads": 1, "waits": 2}


@only_emulated
@pytest.mark.parametrize(("factors", "launches"), [(64, 193), (96, 297)])
def test_kernels_of_an_iteration(factors, launches):
    """37, and 26 of the eigenproblem for each of its rounds on each side; docs/gpu.md has these numbers."""
    backend, session, users, items = problem(factors)
    with session:
        session.iterate(users, items, SolveOptions(), return_loss=True)
        backend.device.kernels.reset_counts()
        session.iterate(users, items, SolveOptions(), return_loss=True)
    assert backend.device.kernels.counts()["launches"] == launches == 37 + 2 * 26 * (factors // 16 - 1)


@only_emulated
def test_what_changes_an_iteration_ends_its_graph():
    """Other settings, terms or factors, and buffers that others have outgrown: as without a graph, to the bit."""
    bits, graphs = [], []
    for iterate in (iterate_in_turn, lambda session, *how: session.iterate(*how[:4], return_loss=how[4])):
        backend, session, users, items = problem(20, "hu")
        module, plain, relaxed = backend.device.kernels, SolveOptions("cg"), SolveOptions("cg", relaxation=1.3)
        stronger = type(items)(**{**vars(items), "ridge": items.ridge.copy()})
        losses = []

        def several(*changed):
            for _ in range(2):
                module.reset_counts()  # noqa: B023
                losses.append(iterate(session, *changed, contextlib.nullcontext, True))  # noqa: B023
                graphs.append(module.counts()["graphs"])  # noqa: B023

        with session:
            start = {name: array.copy() for name, array in session.arrays().items()}
            several(users, items, plain)
            several(users, items, relaxed)
            several(users, stronger, relaxed)
            stronger.ridge[:] *= 3
            several(users, stronger, relaxed)
            losses.append(session.loss(users, stronger.ridge))
            session.scale("item", 2.0)
            several(users, stronger, relaxed)
            for name, array in list(session._buffers._arrays.items()):
                session._buffers.get(name, 4 * len(array), array.dtype)
            del array
            gc.collect()
            several(users, stronger, relaxed)
            session.restore(start)
            several(users, stronger, relaxed)
            bits.append([losses, *(session.factors(side).tobytes() for side in ("user", "item"))])
    assert bits[0] == bits[1]
    of_session = graphs[len(graphs) // 2 :]
    assert not any(graphs[: len(graphs) // 2])
    assert of_session == [0, 1] * 4 + [1] * 4 + [0, 1]


@only_emulated
def test_where_cuda_records_nothing_kernels_are_started_one_by_one(monkeypatch):
    backend, session, users, items = problem(16)
    module = backend.device.kernels

    @contextlib.contextmanager
    def refused(graph, stream, capture_error_mode):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(backend.device.memory.memory.torch.cuda, "graph", refused)
    _, recorded, *terms = problem(16)
    with session, recorded:
        losses = [recorded.iterate(*terms, SolveOptions(), return_loss=True) for _ in range(4)]
        first = session.iterate(users, items, SolveOptions(), return_loss=True)
        with pytest.warns(RuntimeWarning, match="does not record the iterations of this fit.*not permitted"):
            second = session.iterate(users, items, SolveOptions(), return_loss=True)
        module.reset_counts()
        later = [session.iterate(users, items, SolveOptions(), return_loss=True) for _ in range(2)]
    assert module.counts()["graphs"] == 0
    assert [first, second, *later] == losses


@only_emulated
def test_what_other_threads_do_meanwhile_is_not_recorded(monkeypatch):
    """One backend serves a search while an iteration of another thread is recorded."""
    backend, session, users, items = problem(16)
    queries, table = np.eye(3, 16, dtype=np.float32), np.eye(20, 16, dtype=np.float32)
    answers, real = [], backend.solver.start

    def start(*args, **kwargs):
        other = threading.Thread(target=lambda: answers.append(backend.topk(queries, table, 1)[0].ravel().tolist()))
        other.start()
        other.join()
        return real(*args, **kwargs)

    with session:
        session.iterate(users, items, SolveOptions())
        monkeypatch.setattr(backend.solver, "start", start)
        session.iterate(users, items, SolveOptions())
        assert answers == [[0, 1, 2]] * 2
        backend.device.kernels.reset_counts()
        session.iterate(users, items, SolveOptions())
        assert len(answers) == 2 and backend.device.kernels.counts()["graphs"] == 1


def test_factors_that_are_no_numbers_end_an_iteration_that_was_recorded():
    _, session, users, items = problem(20)
    with session:
        for _ in range(3):
            session.iterate(users, items, SolveOptions())
        session.scale("item", np.nan)
        before = session.factors("user").copy()
        with pytest.raises(ModelFitError, match="NaN or infinity"):
            session.iterate(users, items, SolveOptions())
        np.testing.assert_array_equal(session.factors("user"), before)


@pytest.mark.parametrize("side", ["user", "item"])
def test_a_row_without_a_solution_is_named_and_the_other_side_stays(side):
    _, session, *terms = problem(40)
    number = ("user", "item").index(side)
    ridge = np.ones(terms[number].n_rows, np.float32)
    ridge[[3, 5]] = 0
    none = np.zeros(1, np.float32)
    changed = [type(t)(**{**vars(t), "background": none, "ridge": np.ones(1, np.float32)}) for t in terms]
    changed[number] = type(changed[number])(**{**vars(changed[number]), "ridge": ridge})
    before = {name: session.factors(name).copy() for name in ("user", "item")}
    entered = []

    @contextlib.contextmanager
    def errors_of(name):
        entered.append(name)
        yield

    with session:
        with pytest.raises(SingularSystemError) as error:
            session.iterate(*changed, SolveOptions(), errors_of)
        after = {name: session.factors(name).copy() for name in ("user", "item")}
    assert error.value.row == 3 and entered[-1] == side
    same = (after[side] == before[side]).all(axis=1)
    assert same[[3, 5]].all() and same.sum() == 2
    if side == "user":  # nothing came after
        np.testing.assert_array_equal(after["item"], before["item"])
    else:
        assert not (after["user"] == before["user"]).all(axis=1).any()


def test_factors_that_are_no_numbers_end_an_iteration():
    _, session, users, items = problem(20)
    before = session.factors("user").copy()
    arrays = {name: array.copy() for name, array in session.arrays().items()}
    arrays["item_factors"][7, 3] = np.nan
    with session:
        session.restore(arrays)
        with pytest.raises(ModelFitError, match="NaN or infinity"):
            session.iterate(users, items, SolveOptions(), return_loss=True)
        np.testing.assert_array_equal(session.factors("user"), before)


def test_terms_that_differ_in_small_arrays_share_the_rest():
    """A learned prior changes the ridge, and nothing else is copied again."""
    backend, session, users, items = problem(16)
    memory = backend.device.memory
    with session:
        session.iterate(users, items, SolveOptions())
        before = memory.counts()
        stronger = type(items)(**{**vars(items), "ridge": items.ridge * 2})
        session.iterate(users, stronger, SolveOptions())
        assert (memory.counts() - before)[:2].tolist() == [1, 1]
