"""The backend of a device's name, and the numbers that all of them share (csrc/common/limits.h)."""

from __future__ import annotations

import re
from typing import Any

from wals_gpu.backends.cuda_memory import load_cuda
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import FitWork
from wals_gpu.checks import did_you_mean, integer

__all__ = ["DEVICES", "choose_backend", "cuda_status", "device_index", "limits", "make_backend"]

DEVICES = ("auto", "cpu", "cuda")


def device_index(device: Any) -> int | None:
    """The number of a device that is called "cuda:1" or the like; None for other names."""
    match = re.fullmatch(r"cuda:(\d{1,4})", device) if isinstance(device, str) else None
    return None if match is None else int(match[1])


def make_backend(device: str = "auto", num_threads: int = 0) -> Backend:
    """The backend of a device.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:0", ...}, default "auto"
        "auto": the CPU, and for a fit that pays it (:func:`choose_backend`) a CUDA device. "cuda": the current CUDA
        device, in float32; "cuda:1": that one. :func:`wals_gpu.cuda_status` tells whether there is one. Its first use
        checks it, see :mod:`wals_gpu.backends.self_check`.
    num_threads : int, default 0
        Threads on the CPU; 0: all that the process may use.

    Raises
    ------
    ValueError
        Another device.
    RuntimeError
        "cuda" where it cannot be used, or does not compute what the CPU does; the text says why.
    """
    index, num_threads = device_index(device), integer("num_threads", num_threads, 0)
    if index is None and device not in DEVICES:
        like = did_you_mean(device, DEVICES, gpu="cuda")
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}{like}")
    # Imported here: `wals-gpu doctor` must run where a native module does not.
    if device == "cuda" or index is not None:
        load_cuda(index)  # before what needs the native modules
        from wals_gpu.backends.self_check import approve, cuda_backend

        backend = cuda_backend(index)
        approve(backend)
        return backend
    if device == "auto":
        from wals_gpu.backends.auto import AutoBackend

        return AutoBackend(num_threads)
    from wals_gpu.backends.cpu import CpuBackend

    return CpuBackend(num_threads)


def choose_backend(backend: Backend, work: FitWork) -> tuple[Backend, str]:
    """Where a fit computes, and why, for its report.

    Of ``device="auto"`` a CUDA device, where it passed its check and the fit is large enough to pay; else the backend
    itself.
    """
    if getattr(backend, "chooses", False):
        from wals_gpu.backends.auto import AutoBackend

        assert isinstance(backend, AutoBackend)
        return backend.choose(work)
    return backend, backend.name


def cuda_status() -> tuple[bool, str]:
    """Whether ``device="cuda"`` works here, and why not.

    A device that was never used is not checked, its first use does that; one that is known to fail does not work.

    Returns
    -------
    works : bool
    why : str
        "" if it does.
    """
    try:
        load_cuda()
        from wals_gpu.backends.self_check import check_kept, cuda_backend

        check_kept(cuda_backend())
    except (RuntimeError, ImportError) as error:
        return False, str(error)
    return True, ""


def limits() -> Any:
    """The numbers that the native sources and Python share: sizes, thresholds, how sums are cut, by name.

    ``csrc/common/limits.h`` has the reason of each.
    """
    from wals_gpu import _cpu

    return _cpu.LIMITS
