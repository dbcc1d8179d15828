"""What tests share: property tests that are the same on every run, work beside them, and the instruction sets."""

import os
import signal

import beside
import pytest
from hypothesis import settings
from instruction_sets import TOPK_ONLY
from threadpoolctl import threadpool_limits

from wals_gpu import _cpu

# Its checks tell what they compared, as those of test modules do.
pytest.register_assert_rewrite("rows")

# The same examples every time, however busy the machine: a failure is the code's and can be repeated.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# Jobs that a shell runs in the background ignore Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest-xdist has a process for each core, and threads of torch that wait for each other do not let go of theirs.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# References are many small matrices; threads of NumPy's BLAS that wait for each other make them several times slower.
threadpool_limits(1, user_api="blas")


#: Where the process beside pytest-xdist's puts results.
_shared = pytest.StashKey[str]()


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "waits_for(*names): what is done beside other tests, see tests/support/beside.py"
    )


def _awaited(item):
    return [name for marker in item.iter_markers("waits_for") for name in marker.args]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: bool(_awaited(item)))


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        names = list(dict.fromkeys(name for item in session.items for name in _awaited(item)))
        beside.start(names, getattr(session.config, "workerinput", {}).get("beside"))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Processes of pytest-xdist have one beside them."""
    if _shared not in node.config.stash:
        node.config.stash[_shared] = beside.share()
    node.workerinput["beside"] = node.config.stash[_shared]


def pytest_unconfigure():
    beside.stop()


def _in_use(name: str):
    before = _cpu.isa()
    _cpu.use_isa(name)
    assert _cpu.isa() == name
    yield name
    _cpu.use_isa(before)


@pytest.fixture(scope="module", params=[name for name in _cpu.available_isas() if name not in TOPK_ONLY])
def isa(request):
    """Every instruction set of this processor in turn, in use; but for top-k, whose fixture is topk_isa."""
    yield from _in_use(request.param)


@pytest.fixture(scope="module", params=_cpu.available_isas())
def topk_isa(request):
    """The same with those that differ in top-k alone."""
    yield from _in_use(request.param)


@pytest.fixture(scope="module")
def one_torch_thread():
    """Of networks so small that threads which wait for each other take several times as long, on a busy machine ten."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
