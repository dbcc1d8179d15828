"""Errors of CUDA, its driver and torch, told with what to do about them."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from wals_gpu.errors import DeviceError, DeviceLostError
from wals_gpu.system import NVIDIA_DRIVER, nvidia_driver

__all__ = ["driver_cuda", "explained", "no_device", "tells_device_errors"]

C = TypeVar("C", bound=type)

#: Texts of CUDA errors after which nothing works any more in the process, whatever is called.
_LOST = re.compile(
    "illegal memory access|unspecified launch failure|misaligned address|illegal instruction|invalid program counter|"
    "invalid device pointer state|device-side assert|launch timed out|uncorrectable|hardware stack error|"
    "context is destroyed|contained the error|unknown error|device is lost|cuda error: no cuda-capable device|"
    "busy or unavailable"
)
_BUILD = "WALS_GPU_CUDA=1 pip install --no-cache-dir --force-reinstall wals_gpu"
_WRONG_BUILD = re.compile("no kernel image|invalid device function|unsupported toolchain|unsupported ptx version")


def driver_cuda() -> str | None:
    """The CUDA version that the installed driver is for, such as "12.4"; None without a driver."""
    try:
        driver, number = nvidia_driver(), ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(number)):
            return None
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def no_device(why: str, torch_cuda: str | None, built_with: str | None = None) -> str:
    """What to do where the native module sees no device, given what its CUDA says of it.

    Parameters
    ----------
    why : str
        CUDA's own text.
    torch_cuda : str or None
        The CUDA version that the installed torch was built with.
    built_with : str, optional
        The one that the kernels were built with.
    """
    driver, ours = driver_cuda(), built_with or "a later CUDA"
    if driver is None:
        return f"no NVIDIA driver was found ({NVIDIA_DRIVER}): install one, or use the CPU"
    if "insufficient" in why:
        major = driver.partition(".")[0]
        other = f", which is what torch was built with ({torch_cuda})" if (torch_cuda or "").startswith(major) else ""
        return (
            f"{why}: the driver is for CUDA {driver}, the kernels were built with {ours}. Install a newer driver, or "
            f"build with an nvcc of CUDA {major}.x{other}: CUDACXX=/usr/local/cuda-{major}/bin/nvcc {_BUILD}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (
            f"{why}: CUDA_VISIBLE_DEVICES={visible!r} leaves none; `nvidia-smi -L` lists devices and MIG slices (a GPU "
            "in MIG mode is used by the UUID of a slice, MIG-...)"
        )
    return f"{why}: `nvidia-smi -L` lists what there is; a GPU in MIG mode needs a slice (nvidia-smi mig -cgi ... -C)"


def explained(error: BaseException) -> BaseException:
    """An error in words that say what to do; the same object where it is none of CUDA's."""
    text = " ".join(str(error).split())
    plain = text.lower()
    if isinstance(error, (DeviceError, ValueError)) or not isinstance(error, RuntimeError):
        return error
    short = text[:300]
    if "out of memory" in plain:
        return MemoryError(
            f"the CUDA device has no memory left ({short}): end other programs on it (nvidia-smi shows them), take "
            "fewer factors, or use the CPU"
        )
    if _LOST.search(plain):
        return DeviceLostError(
            f"the CUDA device stopped working ({short}): nothing can be computed on it any more in this process; begin "
            "a new one, or use the CPU in this one. `wals-gpu doctor --gpu` checks the device"
        )
    if _WRONG_BUILD.search(plain):
        return DeviceError(
            f"the kernels were not built for this CUDA device or driver ({short}): build them here ({_BUILD}), or use "
            "the CPU"
        )
    return error


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except (RuntimeError, DeviceLostError) as error:
            told = explained(error)
            if isinstance(told, DeviceLostError) and hasattr(self, "forget_device"):
                self.forget_device()
            if told is error:
                raise
            raise told from error

    return call


def tells_device_errors(cls: C) -> C:
    """A class whose public methods raise what :func:`explained` makes of CUDA's errors.

    Where the device is lost, `forget_device` is called before, if the class has it.
    """
    for name, method in list(vars(cls).items()):
        if callable(method) and (not name.startswith("_") or name == "__init__") and name != "forget_device":
            setattr(cls, name, _telling(method))
    return cls
