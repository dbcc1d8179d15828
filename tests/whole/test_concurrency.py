"""Threads, processes, signals and memory that runs out: the same answers, or an error; never the end of the process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

import wals_gpu
from wals_gpu import WALS
from wals_gpu.backends.blas import controller, one_blas_thread

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plays():
    return csr_matrix(random_array((300, 200), density=0.1, rng=np.random.default_rng(0), format="csr"))


@pytest.fixture(scope="module")
def model(plays):
    return WALS(32, iterations=3, num_threads=2).fit(plays)


def answers(model):
    """Everything that a model is asked for, to be compared bit by bit."""
    ids, scores = model.recommend(np.arange(50), 7)
    similar, cosines = model.similar_items(np.arange(20), 5)
    new = model.fold_in(csr_matrix(np.eye(3, model.item_factors.shape[0], dtype=np.float32)))
    return [array.tobytes() for array in (ids, scores, similar, cosines, new)]


# Threads


def test_what_a_thread_throws_reaches_the_caller(tmp_path):
    """The loop that all native threads run in, in a program of its own, since no kernel throws."""
    program = tmp_path / "parallel"
    compiler = os.environ.get("CXX", "c++")
    source = str(HERE / "support" / "native_parallel.cpp")
    subprocess.run([compiler, "-std=c++17", "-pthread", "-O1", source, "-o", program], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # tools/sanitize.sh
    done = subprocess.run([program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "11 caught\n"


def test_many_threads_ask_while_another_fits_a_copy(model, plays):
    expected = answers(model)
    fitted = WALS(32, iterations=6, num_threads=2).fit(plays).user_factors
    done = threading.Event()

    def fit():
        try:
            return [copy.deepcopy(model).fit(plays).user_factors for _ in range(4)]
        finally:
            done.set()

    def ask():
        asked = 0
        while not done.is_set() or asked < 5:
            assert answers(model) == expected
            asked += 1
        return asked

    with ThreadPoolExecutor(9) as pool:
        fits = pool.submit(fit)
        asks = [pool.submit(ask) for _ in range(8)]
        assert sum(task.result() for task in asks) >= 40
        for users in fits.result():
            assert users.tobytes() == model.user_factors.tobytes()
    assert fitted.shape == model.user_factors.shape


def test_fits_at_once_leave_the_threads_of_blas_as_they_were(plays):
    def threads():
        return [pool["num_threads"] for pool in controller().info() if pool["user_api"] == "blas"]

    with controller().limit(limits=2, user_api="blas"):
        before = threads()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: WALS(16, iterations=5, random_state=seed).fit(plays), range(24)))
        assert threads() == before and set(before) == {2}


def test_who_asks_for_one_blas_thread_waits_for_who_has_it():
    order = []

    def ask():
        with one_blas_thread():
            order.append("second")

    with one_blas_thread():
        second = threading.Thread(target=ask)
        second.start()
        second.join(0.2)
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_one_place_changes_the_threads_of_blas():
    package = Path(wals_gpu.__file__).parent
    users = {path.name for path in package.rglob("*.py") if re.search("ThreadpoolController|_limits", path.read_text())}
    assert users == {"blas.py"}


def test_more_threads_than_the_system_has():
    """Threads that cannot be started are done without."""
    code = (
        "import resource, numpy as np; from wals_gpu import WALS\n"
        "expected = WALS(8, num_threads=1).fit(np.eye(500)).item_factors\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)  # stacks of 200 take more\n"
        "print((WALS(8, num_threads=200).fit(np.eye(500)).item_factors == expected).all())"
    )
    assert run_python(code).stdout == "True\n"


# Memory


def run_python(code, **options):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


EXHAUSTED = """
import copy, resource
import numpy as np
from scipy.sparse import csr_matrix, random_array
from wals_gpu import WALS
from wals_gpu.als import AlternatingLeastSquares

plays = csr_matrix(random_array((20_000, 3_000), density=0.003, rng=np.random.default_rng(0), dtype=np.float32))
model = WALS(64, iterations=1, solver="cholesky", num_threads=2).fit(plays)
other = AlternatingLeastSquares(64, iterations=1, num_threads=2, random_state=0)
other.fit(plays, show_progress=False)
model.similar_items([0], 3)
expected = model.recommend([0, 5], 10)

def used_bytes():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

calls = {
    "fit": lambda: WALS(64, iterations=1, solver="cholesky", num_threads=2).fit(plays),
    "cg": lambda: WALS(128, iterations=1, solver="cg", num_threads=2).fit(plays),
    "subspace": lambda: WALS(128, iterations=1, solver="subspace", num_threads=2).fit(plays),
    "als": lambda: AlternatingLeastSquares(64, iterations=1, num_threads=2).fit(plays, show_progress=False),
    "recommend": lambda: model.recommend(np.arange(20_000), 300),
    "similar": lambda: model.similar_items(np.arange(3_000), 1000),
    "fold_in": lambda: model.fold_in(plays),
    "huge k": lambda: model.recommend(np.arange(20_000), 2_000_000),
}
before = resource.getrlimit(resource.RLIMIT_AS)
for name, call in calls.items():
    outcomes = []
    for megabytes in (1, 4, 10, 20, 50, 1024):
        ballast = []
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes() + (megabytes << 20), before[1]))
        try:
            while True:  # what malloc keeps of earlier calls is used up as well
                ballast.append(np.empty(1 << 18, np.uint8))
        except MemoryError:
            del ballast[: 4 * megabytes]
        try:
            call()
            outcomes.append("done")
        except MemoryError:
            outcomes.append("refused")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            del ballast
    print(name, *outcomes, sep=",")
    again = model.recommend([0, 5], 10)
    assert all((a == b).all() for a, b in zip(expected, again))
"""


def test_memory_that_runs_out_is_a_memory_error():
    """At whatever place: nothing crashes, and the model gives the answers that it gave."""
    # Large blocks go back to the system when they are freed, and do not serve the next call.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    lines = [line.split(",") for line in run_python(EXHAUSTED, env=environment).stdout.splitlines()]
    assert len(lines) == 8
    for name, *outcomes in lines:
        assert set(outcomes) <= {"done", "refused"} and len(outcomes) == 6
        assert outcomes[0] == "refused", name
        assert outcomes[-1] == ("refused" if name == "huge k" else "done"), name


# Processes


def _answers_of(pickled):
    return answers(pickle.loads(pickled))


def _refit(pickled):
    model, plays = pickle.loads(pickled)
    return model.fit(plays).item_factors.tobytes()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes(model, plays, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_answers_of, [pickle.dumps(model)] * 4) == [answers(model)] * 4
        refitted = pool.map(_refit, [pickle.dumps((WALS(32, iterations=3), plays))] * 2)
        assert refitted == [model.item_factors.tobytes()] * 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_while_another_thread_is_in_a_sweep(model, plays):
    """The child has one thread only; nothing that the others held is missing there."""
    stop = threading.Event()

    def fit():
        while not stop.is_set():
            WALS(64, iterations=1, num_threads=2).fit(plays)

    thread = threading.Thread(target=fit)
    thread.start()
    try:
        for _ in range(20):
            pid = os.fork()
            if not pid:
                ok = False
                try:
                    signal.alarm(60)  # a child that hangs is ended by this
                    ok = answers(model)[0] == answers(model)[0] and WALS(32, iterations=1).fit(plays).history_
                finally:
                    os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


LOST_LOCK = """
import os
import numpy as np
from scipy.sparse import csr_matrix
from tqdm.auto import tqdm
from wals_gpu import WALS
from wals_gpu.compat.als import AlternatingLeastSquares

lock = tqdm.get_lock()
child = os.fork()
if not child:
    lock.acquire()
    os._exit(0)
os.waitpid(child, 0)
matrix = csr_matrix(np.eye(20, dtype=np.float32))
WALS(4, iterations=2).fit(matrix).recommend(range(20), 3)
AlternatingLeastSquares(4, iterations=2).fit(matrix, show_progress=False)
"""


def test_a_process_that_ended_with_the_lock_of_tqdm_stops_no_other():
    run_python(LOST_LOCK)


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(model, backend):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    tasks = [joblib.delayed(answers)(model)] * 4
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert joblib.Parallel()(tasks) == [answers(model)] * 4


class Recommended:
    """A data set of torch's kind: its workers ask the model that they were forked or spawned with."""

    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 40

    def __getitem__(self, user):
        return self.model.recommend(user, 5)[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_of_torch(model, method):
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    loader = data.DataLoader(Recommended(model), batch_size=8, num_workers=2, multiprocessing_context=method)
    np.testing.assert_array_equal(
        np.concatenate([batch.numpy() for batch in loader]), model.recommend(np.arange(40), 5)[0]
    )


# Ctrl-C


SWEEPING = """
import sys
import numpy as np
from scipy.sparse import csr_matrix
from wals_gpu import WALS
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.backends.cpu import CpuBackend

solve = CpuBackend._solve

def announced(self, *args):
    print("sweeping", flush=True)
    return solve(self, *args)

CpuBackend._solve = announced
rows, columns = 5_000, 2_000
every = np.tile(np.arange(columns, dtype=np.int32), rows)
plays = csr_matrix((np.ones(len(every), np.float32), every, np.arange(rows + 1) * columns), shape=(rows, columns))
if sys.argv[1] == "als":
    model = AlternatingLeastSquares(256, iterations=10_000)
    model.cg_steps = 200
else:
    model = WALS(256, iterations=10_000, solver=sys.argv[1], cg_steps=200)
try:
    model.fit(plays, show_progress=False)
except KeyboardInterrupt:
    print("finite", np.isfinite(model.user_factors).all() and np.isfinite(model.item_factors).all())
"""


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace", "als"])
def test_ctrl_c_ends_a_sweep(solver):
    """One sweep takes seconds, the fit would take hours; docs/reliability.md has the times until the answer."""
    process = subprocess.Popen([sys.executable, "-c", SWEEPING, solver], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "sweeping\n"
    time.sleep(0.2)
    asked = time.perf_counter()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    print(f"{solver}: answered after {time.perf_counter() - asked:.2f} s, with the exit of the process")
    assert process.wait() == 0
    assert rest.splitlines()[-1] == "finite True"
