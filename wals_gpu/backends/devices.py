"""The backend of a device's name, and the numbers that all of them share (csrc/common/limits.h)."""

from __future__ import annotations

from typing import Any

from wals_gpu.backends.session import Backend
from wals_gpu.checks import did_you_mean

__all__ = ["DEVICES", "limits", "make_backend"]

DEVICES = ("auto", "cpu", "cuda")


def make_backend(device: str = "auto", num_threads: int = 0) -> Backend:
    """The backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto": the CPU. "cuda": the current CUDA device, in float32; :func:`wals_gpu.cuda_status` tells whether there
        is one.
    num_threads : int, default 0
        Threads on the CPU; 0: all that the process may use.

    Raises
    ------
    ValueError
        Another device.
    RuntimeError
        "cuda" where it cannot be used; the text says why.
    """
    if device not in DEVICES:
        like = did_you_mean(device, DEVICES, gpu="cuda")
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}{like}")
    # Imported here: `wals-gpu doctor` must run where a native module does not.
    if device == "cuda":
        from wals_gpu.backends.cuda import CudaBackend

        return CudaBackend()
    from wals_gpu.backends.cpu import CpuBackend

    return CpuBackend(num_threads)


def limits() -> Any:
    """The numbers that the native sources and Python share: sizes, thresholds, how sums are cut, by name.

    ``csrc/common/limits.h`` has the reason of each.
    """
    from wals_gpu import _cpu

    return _cpu.LIMITS
