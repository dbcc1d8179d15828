"""The CUDA device as the backend sees it: whether there is one, and its memory.

Kernels see nothing but addresses and a stream. What owns the memory is a small class over torch; tests give it another
torch, whose memory is that of the kernels' emulator on the CPU.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_errors import driver_cuda, no_device

__all__ = ["Recorded", "TorchMemory", "cuda_of_torch", "load_cuda"]

#: Uploads of at most so many bytes go through pinned memory, and nobody waits for them.
PINNED_BYTES = 1 << 24

_RECORDING = threading.Lock()  # for the streams below, which a device has once


@functools.cache
def _recording_streams(own_stream: Callable[[int], int], device: int) -> tuple[int, int]:
    """Two streams that nobody else gives work to: torch's go round, and what a stranger starts would be recorded."""
    return own_stream(device), own_stream(device)


class _Streams(threading.local):
    """The two streams of a memory, the same for all threads, but for one that records."""

    def __init__(self, main: Any, side: Any) -> None:
        self.main, self.side = main, side
        self.arrays: list[Any] | None = None  # that kernels were told of, while a thread records


@dataclass(frozen=True)
class Recorded:
    """What a call gave the device, as one CUDA graph, and what the call returned. The arrays are those that its kernels
    use; they live as long."""

    graph: Any
    arrays: list[Any]
    result: Any


class TorchMemory:
    """Memory of torch's allocator on one CUDA device, used on two streams of its own: flat arrays of any kind that have
    ``len()`` and keep their memory while they live.

    Torch reuses memory in the order of the stream that it was made on, so arrays may be dropped as soon as the kernels
    that read them have been started there. The streams belong to this object and not to a thread, so threads that share
    it need no events between them; what a caller's tensors wait for, this waits for too.

    Parameters
    ----------
    device : int, optional
        Its number; by default torch's current one.
    torch : optional
        What to use in place of the module torch.

    Attributes
    ----------
    note : str
        Ends the message when there is no more memory.
    """

    note = ""
    _streams = _Streams(None, None)

    def __init__(self, device: int | None = None, torch: Any = None) -> None:
        self.torch = importlib.import_module("torch") if torch is None else torch
        index = self.torch.cuda.current_device() if device is None else device
        self.device = self.torch.device("cuda", index)
        self._streams = _Streams(self.torch.cuda.Stream(self.device), self.torch.cuda.Stream(self.device))

    @property
    def _main(self) -> Any:
        return self._streams.main

    @property
    def stream(self) -> Any:
        """The stream that everything is ordered by, for kernels: the device's number and CUDA's own handle."""
        return self._main and (self.device.index, int(self._main.cuda_stream))

    @contextmanager
    def side_stream(self) -> Iterator[Any]:
        """A second stream for kernels, beside what the first is given meanwhile: it begins after what the first had
        been given, and what the first is given behind the context comes after it.

        Arrays that it uses are there before it begins and live until it ends.
        """
        main, side = self._streams.main, self._streams.side
        if side is None:
            yield self.stream
            return
        side.wait_stream(main)
        try:
            yield self.device.index, int(side.cuda_stream)
        finally:
            main.wait_stream(side)

    def record(self, start: Callable[[], Any], own_stream: Callable[[int], int]) -> Recorded | None:
        """What start() gives the device, which is not done: :meth:`replay` does it, as often as it is called. None
        where there are no streams. Other threads go on as ever. `own_stream` makes a stream of a device, see
        csrc/cuda/launch.h.

        Raises
        ------
        RuntimeError
            CUDA does not record it, because something of it waits, say.
        """
        streams, torch = self._streams, self.torch
        if streams.main is None:
            return None
        before, arrays = (streams.main, streams.side), list[Any]()
        with _RECORDING:
            own = _recording_streams(own_stream, self.device.index)
            streams.main, streams.side = (torch.cuda.ExternalStream(handle, self.device) for handle in own)
            streams.arrays, graph = arrays, torch.cuda.CUDAGraph()
            now = torch.cuda.current_stream(self.device)  # torch leaves another behind where it fails
            recording = torch.cuda.graph(graph, stream=streams.main, capture_error_mode="thread_local")
            try:
                with torch.cuda.stream(now), recording:
                    result = start()
            finally:
                (streams.main, streams.side), streams.arrays = before, None
        return Recorded(graph, arrays, result)

    def replay(self, recorded: Recorded) -> None:
        """Do what was recorded, in the order of the stream."""
        with self._ordered():
            recorded.graph.replay()

    def _ordered(self) -> AbstractContextManager[Any]:
        """What torch does in it is in the order of the stream, on the device."""
        ordered: AbstractContextManager[Any] = self.torch.cuda.stream(self._main)
        return ordered

    def _new(self, n_bytes: int, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What make() gives, in the order of the stream; it takes so many bytes."""
        try:
            with self._ordered():
                return make(*args, **options)
        except self.torch.cuda.OutOfMemoryError as error:
            wanted = f"{n_bytes} bytes of device memory were asked for, {self.free_bytes()} are free"
            raise MemoryError(wanted + self.note) from error

    def empty(self, n: int, dtype: type[np.generic] | np.dtype) -> Any:
        """A flat array of `n` numbers, not initialised."""
        is_a = np.dtype(dtype)
        like = {"dtype": getattr(self.torch, is_a.name), "device": self.device}
        return self._new(n * is_a.itemsize, self.torch.empty, n, **like)

    def upload(self, array: Any) -> Any:
        """A flat copy of a NumPy array, which may be changed at once; what is on the device already (torch, DLPack,
        __cuda_array_interface__) is used in place where it is contiguous."""
        if not isinstance(array, np.ndarray):
            tensor = self.torch.as_tensor(array, device=self.device)
            if self._main is not None:  # it may still be computed, and be dropped before kernels have read it
                self._main.wait_stream(self.torch.cuda.current_stream(self.device))
                tensor.record_stream(self._main)
            with self._ordered():
                return tensor.contiguous().reshape(-1)
        if self._streams.arrays is not None:
            raise RuntimeError("a graph has no upload: what it would read on the host is gone when it is replayed")
        array = np.ascontiguousarray(array).reshape(-1)
        if array.dtype.fields is not None:  # records: torch sees their bytes
            array = array.view(np.uint8)
        if not array.flags.writeable:  # torch warns
            array = array.copy()
        host = self.torch.from_numpy(array)
        if self._main is not None and 0 < array.nbytes <= PINNED_BYTES:
            with suppress(RuntimeError):  # systems may let nobody pin memory
                host = host.pin_memory()
        return self._new(array.nbytes, host.to, self.device, non_blocking=host.is_pinned())

    def download(self, array: Any) -> NDArray[Any]:
        """A copy on the host; waits for the kernels that write to the array."""
        with self._ordered():
            host: NDArray[Any] = array.cpu().numpy()
        return host

    def address(self, array: Any) -> int:
        """Where the array begins on the device."""
        if self._streams.arrays is not None:
            self._streams.arrays.append(array)
        return int(array.data_ptr())

    def free_bytes(self) -> int:
        """What may be allocated: free on the device, or kept by torch's allocator without use."""
        free, _ = self.torch.cuda.mem_get_info(self.device)
        cached = self.torch.cuda.memory_reserved(self.device) - self.torch.cuda.memory_allocated(self.device)
        return int(free + cached)


def load_cuda(device: int | None = None) -> ModuleType:
    """The native module, where its kernels can run on a device, by default the current one.

    Raises
    ------
    RuntimeError
        They cannot: the build has none, there is no device or driver, or no torch to own its memory. The text says
        which, and what to do.
    """
    try:
        cuda = importlib.import_module("wals_gpu._cuda")
    except ImportError as error:
        raise RuntimeError(
            f"this build has no CUDA kernels ({error}); install nvcc (CUDA 13) and rebuild with WALS_GPU_CUDA=1"
        ) from error
    count, why = cuda.devices()
    if not count:
        raise RuntimeError(
            f"no CUDA device can be used: {no_device(why, cuda_of_torch(), getattr(cuda, 'CUDA_VERSION', None))}"
        )
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise RuntimeError(
            "torch, which owns the device memory, is not installed: pip install 'wals_gpu[gpu]'"
        ) from error
    index = "https://download.pytorch.org/whl"
    if torch.version.cuda is None:
        raise RuntimeError(f"this torch ({torch.__version__}) was built without CUDA; install one of {index}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"this torch cannot use the CUDA device: it was built with CUDA {torch.version.cuda}, the driver is for "
            f"{driver_cuda()}; install a newer driver, or a torch for CUDA {driver_cuda()} or earlier ({index})"
        )
    if device is not None and device >= torch.cuda.device_count():
        raise RuntimeError(
            f"there is no device='cuda:{device}': this process sees {torch.cuda.device_count()} (nvidia-smi -L lists "
            "all; CUDA_VISIBLE_DEVICES chooses; of MIG slices a process sees one)"
        )
    properties = cuda.device_properties(torch.cuda.current_device() if device is None else device)
    if properties["capability"] < cuda.OLDEST_CAPABILITY:
        wanted, has = (".".join(map(str, version)) for version in (cuda.OLDEST_CAPABILITY, properties["capability"]))
        raise RuntimeError(
            f"the kernels of this build need compute capability {wanted} or later, {properties['name']} has {has}"
        )
    return cuda


def cuda_of_torch() -> str | None:
    """The CUDA version of the installed torch, which is not imported: it takes seconds."""
    found = importlib.util.find_spec("torch")
    try:
        text = Path(str(found and found.origin)).with_name("version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda.*= '([\d.]+)'", text, re.MULTILINE)
    return match and match[1]
