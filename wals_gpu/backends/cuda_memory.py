"""The CUDA device as the backend sees it: whether there is one, and its memory.

Kernels see nothing but addresses and a stream. What owns the memory is a small class; the one over torch is here, and
tests have one over NumPy, with which the same backend runs on the CPU emulator of the kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.cuda_errors import driver_cuda, no_device

__all__ = ["Memory", "TorchMemory", "cuda_of_torch", "load_cuda"]


class Memory(Protocol):
    """Device memory: flat arrays of any kind that have ``len()`` and keep their memory while they live."""

    @property
    def stream(self) -> int: ...

    def empty(self, n: int, dtype: type[np.generic] | np.dtype) -> Any: ...

    def zeros(self, n: int, dtype: type[np.generic] | np.dtype) -> Any: ...

    def upload(self, array: Any) -> Any: ...

    def download(self, array: Any) -> NDArray[Any]: ...

    def address(self, array: Any) -> int: ...

    def free_bytes(self) -> int: ...


class TorchMemory:
    """Memory of torch's allocator on one CUDA device, used on torch's current stream.

    Torch reuses memory in the order of its stream, so arrays may be dropped as soon as the kernels that read them have
    been started there.
    """

    def __init__(self, device: int | None = None) -> None:
        self.torch = importlib.import_module("torch")
        index = self.torch.cuda.current_device() if device is None else device
        self.device = self.torch.device("cuda", index)

    @property
    def stream(self) -> int:
        """torch's current stream, as CUDA's own handle."""
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)

    def _dtype(self, dtype: type[np.generic] | np.dtype) -> Any:
        return getattr(self.torch, np.dtype(dtype).name)

    def empty(self, n: int, dtype: type[np.generic] | np.dtype) -> Any:
        """A flat array of `n` numbers, not initialised."""
        return self.torch.empty(n, dtype=self._dtype(dtype), device=self.device)

    def zeros(self, n: int, dtype: type[np.generic] | np.dtype) -> Any:
        """A flat array of `n` zeros."""
        return self.torch.zeros(n, dtype=self._dtype(dtype), device=self.device)

    def upload(self, array: Any) -> Any:
        """A flat copy of a NumPy array; what is on the device already (torch, DLPack, __cuda_array_interface__) is used
        in place where it is contiguous."""
        if isinstance(array, np.ndarray):
            array = np.ascontiguousarray(array).reshape(-1)
            if array.dtype.fields is not None:  # records: torch sees their bytes
                array = array.view(np.uint8)
            if not array.flags.writeable:  # torch warns
                array = array.copy()
            return self.torch.from_numpy(array).to(self.device)
        return self.torch.as_tensor(array, device=self.device).contiguous().reshape(-1)

    def download(self, array: Any) -> NDArray[Any]:
        """A copy on the host; waits for the kernels that write to the array."""
        host: NDArray[Any] = array.cpu().numpy()
        return host

    def address(self, array: Any) -> int:
        """Where the array begins on the device."""
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
