"""What TorchMemory uses of torch, over the emulator's devices, streams and memory: its rules are torch's.

New memory belongs to the current stream of its device; freed memory is gone as soon as that stream has come so far, and
other streams that use it are named by ``record_stream``. Copies of pinned memory happen when their turn comes.
"""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np

__all__ = ["FakeTorch"]

POOL = 4  # streams of a device; torch has 32, and gives them out in turn too


class Device(NamedTuple):
    type: str
    index: int = 0


class Tensor:
    """On the host, pinned or not, or in device memory; what is there is looked at by cpu() alone."""

    def __init__(self, torch, array, device=None, pinned=False):
        self.torch, self.array, self.device, self.pinned = torch, array, device or Device("cpu"), pinned
        self.dtype, self.shape = array.dtype, array.shape

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        return Tensor(self.torch, self.array[index], self.device, self.pinned)

    def __array__(self, dtype=None, copy=None):
        return self.array  # for kernels of tests

    def data_ptr(self):
        return self.array.ctypes.data

    def is_pinned(self):
        return self.pinned

    def reshape(self, *shape):
        return Tensor(self.torch, self.array.reshape(*shape), self.device, self.pinned)

    def contiguous(self):
        assert self.array.flags.c_contiguous
        return self

    def numpy(self):
        return self.array

    def pin_memory(self):
        pinned = self.torch.module.pinned(self.array.nbytes).view(self.dtype).reshape(self.shape)
        pinned[...] = self.array
        return Tensor(self.torch, pinned, pinned=True)

    def to(self, device, non_blocking=False):
        if device == self.device:
            return self
        out = self.torch.empty(self.array.size, self.dtype, device).reshape(self.shape)
        return self.torch.copy(out, self, device, non_blocking)

    def cpu(self):
        out = self.torch.from_numpy(np.empty(self.shape, self.dtype))
        return self.torch.copy(out, self, self.device, non_blocking=False)

    def record_stream(self, stream):
        self.torch.module.share(self.data_ptr(), stream.pair)


class Stream:
    pools: ClassVar = {}

    def __init__(self, torch, device, handle=None):
        self.torch, self.device = torch, device
        if handle is None:
            pool = self.pools.get((torch.module, device))
            if pool is None:
                handles = [torch.module.new_stream(device.index) for _ in range(POOL)]
                pool = self.pools[torch.module, device] = itertools.cycle(handles)
            handle = next(pool)
        self.cuda_stream = handle
        self.pair = device.index, handle

    def wait_stream(self, other):
        self.torch.module.wait(self.pair, self.torch.module.record(other.pair))

    def synchronize(self):
        self.torch.module.synchronize(self.pair)


class CUDAGraph:
    """What was recorded; memory that was made meanwhile is its own."""

    def __init__(self, torch):
        self.torch, self.number, self.memory = torch, None, []

    def replay(self):
        device = self.torch.device("cuda", self.torch.module.current_device())
        self.torch.module.replay(self.torch.current_stream(device).pair, self.number)


class OutOfMemoryError(RuntimeError):
    pass


class FakeTorch:
    """The module torch; streams of the same emulated module are shared."""

    def __init__(self, module):
        self.module, self.local = module, threading.local()
        self.device = Device
        self.cuda = SimpleNamespace(
            Stream=lambda device: Stream(self, device),
            OutOfMemoryError=OutOfMemoryError,
            current_device=module.current_device,
            current_stream=self.current_stream,
            is_available=lambda: True,
            mem_get_info=lambda device: (module.free_memory(device.index), 1 << 40),
            memory_allocated=lambda device: 0,
            memory_reserved=lambda device: 0,
            stream=self.stream,
            ExternalStream=lambda handle, device: Stream(self, device, handle),
            CUDAGraph=lambda: CUDAGraph(self),
            graph=self.graph,
        )

    def __getattr__(self, name):
        return np.dtype(name)

    def current_stream(self, device):
        return getattr(self.local, str(device.index), None) or Stream(self, device, 0)

    @contextmanager
    def stream(self, stream):
        before, device = self.current_stream(stream.device), self.module.current_device()
        self.module.set_device(stream.device.index)
        setattr(self.local, str(stream.device.index), stream)
        try:
            yield
        finally:
            setattr(self.local, str(stream.device.index), before)
            self.module.set_device(device)

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"  # else what other threads allocate would end it
        within = self.stream(stream)
        within.__enter__()
        self.module.begin_graph(stream.pair)
        self.local.graph = graph
        try:
            yield
        finally:
            self.local.graph = None
            graph.number = self.module.end_graph(stream.pair)
            within.__exit__(None, None, None)  # not where that fails, as in torch

    def empty(self, n, dtype, device):
        try:
            memory = self.module.empty(n * dtype.itemsize, "array", self.current_stream(device).pair)
        except MemoryError:
            raise OutOfMemoryError("CUDA out of memory.") from None
        graph = getattr(self.local, "graph", None)
        if graph is not None:
            graph.memory.append(memory)
        return Tensor(self, memory.view(dtype), device)

    def from_numpy(self, array):
        return Tensor(self, array)

    def as_tensor(self, array, device):
        return (array if isinstance(array, Tensor) else self.from_numpy(np.asarray(array))).to(device)

    def copy(self, to, source, device, non_blocking):
        pair = self.current_stream(device).pair
        self.module.copy(to.data_ptr(), source.data_ptr(), source.array.nbytes, pair)
        if not non_blocking:
            self.module.synchronize(pair)
        return to
