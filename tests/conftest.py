"""What tests share: property tests that are the same on every run, and the instruction sets."""

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from wals_gpu import _cpu

# The same examples every time, however busy the machine: a failure is the code's and can be repeated.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

# References are many small matrices; threads of NumPy's BLAS that wait for each other make them several times slower.
threadpool_limits(1, user_api="blas")


@pytest.fixture(scope="module", params=_cpu.available_isas())
def isa(request):
    """Every instruction set of this processor in turn, in use."""
    before = _cpu.isa()
    _cpu.use_isa(request.param)
    assert _cpu.isa() == request.param
    yield request.param
    _cpu.use_isa(before)
