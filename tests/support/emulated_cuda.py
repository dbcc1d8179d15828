"""The CUDA backend over the emulated kernels: device memory is the emulator's, which knows the bounds of each array.

With WALS_GPU_TEST_DEVICE=cuda it is the real backend on the device instead; what only an emulator can do is skipped.
"""

import ctypes
import functools
import os

import numpy as np
import pytest
from emulated import load
from fake_torch import FakeTorch

from wals_gpu.backends.cuda import CudaBackend
from wals_gpu.backends.cuda_memory import TorchMemory, load_cuda
from wals_gpu.backends.host import decompose

ON_DEVICE = os.environ.get("WALS_GPU_TEST_DEVICE") == "cuda"
#: For tests that call emulated_backend().
needs_kernels = pytest.mark.waits_for(*() if ON_DEVICE else ("emulator",))
SCHEDULES = [
    {"order": "forward"},
    {"order": "reverse", "eager_copies": True},
    {"order": "random", "seed": 3, "resident_blocks": 3},
]


class EmulatedMemory(TorchMemory):
    """Device memory of an emulated module; what is not initialised is NaN."""

    def __init__(self, module, device=0):
        self.module = module
        super().__init__(device, FakeTorch(module))


#: Spectra of more factors take the emulator seconds to minutes: LAPACK has them, but where a test asks for the kernels.
EMULATED_SPECTRUM = 128


def with_lapack(module, from_factors=EMULATED_SPECTRUM + 1):
    """The module, in which eigenproblems of many factors are LAPACK's."""
    kernels = module.spectrum
    if hasattr(kernels, "__wrapped__"):
        return module

    def array(address, *shape):
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_double)), shape)

    @functools.wraps(kernels)
    def spectrum(gram, d, start, values, vectors, workspace, stream):
        if d >= from_factors:
            module.synchronize(stream)  # it is done at once; no graph can have it
        if d < from_factors or not np.isfinite(array(gram, d, d)).all():
            return kernels(gram, d, start, values, vectors, workspace, stream)
        array(values, d)[:], array(vectors, d, d)[:] = decompose(array(gram, d, d))

    module.spectrum = spectrum
    return module


@functools.cache
def emulated_backend(checked=False, memory_limit=None):
    if ON_DEVICE and checked:
        pytest.skip("only the emulator checks accesses")
    if ON_DEVICE:
        module = load_cuda()
        module.configure = lambda **schedule: None  # a device has its own
    else:
        module = with_lapack(load("_emulated_checked" if checked else "_emulated"))
    return CudaBackend(module, EmulatedMemory(module), memory_limit)


if ON_DEVICE:

    def EmulatedMemory(module):
        return TorchMemory()
