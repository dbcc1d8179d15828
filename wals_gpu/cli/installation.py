"""What this installation has and uses; also where the native modules cannot be loaded."""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np

from wals_gpu.backends.cuda_memory import cuda_of_torch
from wals_gpu.backends.devices import cuda_status, device_index
from wals_gpu.system import NVIDIA_DRIVER, cpu_model, cpu_quota, nvidia_driver, usable_cpus

__all__ = ["check_gpu", "describe_installation", "installed_version"]

_PACKAGES = ("numpy", "scipy", "pyarrow", "safetensors", "tqdm", "pandas", "polars", "torch", "transformers")


def describe_installation() -> dict[str, Any]:
    """Describe the installation and the machine, importing nothing that is not needed to say so.

    Returns
    -------
    dict
        JSON-able. ``wals_gpu``, ``python``, ``platform``: str. ``cpu``: ``model``, ``cores``, ``usable`` (by affinity),
        ``quota`` (CPUs that the cgroup grants, or None). ``native``: ``available``, ``why`` not, ``isa`` (the
        instruction set in use), ``available_isas``. ``blas``: ``numpy``, ``pools`` (what threadpoolctl sees, or None
        without it). ``cuda``: ``built``, ``devices``, ``available``, ``why`` not, ``note``. ``packages``: version or
        None.
    """
    return {
        "wals_gpu": installed_version("wals_gpu"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable": usable_cpus(), "quota": cpu_quota()},
        "native": _native(),
        "blas": {"numpy": _numpy_blas(), "pools": _blas_pools()},
        "cuda": _cuda(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
    }


def installed_version(package: str) -> str | None:
    """Version of an installed package, without importing it; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    try:
        cpu = importlib.import_module("wals_gpu._cpu")
    except ImportError as error:
        return {"available": False, "why": str(error), "isa": None, "available_isas": []}
    return {"available": True, "why": None, "isa": cpu.isa(), "available_isas": list(cpu.available_isas())}


def _numpy_blas() -> str:
    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    except (TypeError, KeyError):  # NumPy before 1.26 prints instead
        return "unknown"
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def _blas_pools() -> list[dict[str, Any]] | None:
    if find_spec("threadpoolctl") is None:
        return None
    importlib.import_module("scipy.linalg")  # loads SciPy's own BLAS, which need not be NumPy's
    pools = importlib.import_module("threadpoolctl").threadpool_info()
    return [
        {"library": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]} for pool in pools
    ]


def _cuda() -> dict[str, Any]:
    devices, why = _cuda_devices()
    built, note = find_spec("wals_gpu._cuda") is not None, None
    if not built:
        why = "this build has no CUDA code (wals_gpu._cuda)" + (f"; also, {why}" if why else "")
    elif why is None:  # torch is imported, as by whoever uses the device
        why = cuda_status()[1] or None
        note = _note_on_versions()
    return {"built": built, "devices": devices, "available": why is None, "why": why, "note": note}


def _note_on_versions() -> str | None:
    """What to know where kernels and torch were built with CUDA of different major versions."""
    try:
        ours = str(importlib.import_module("wals_gpu._cuda").CUDA_VERSION)
    except (ImportError, AttributeError):
        return None
    theirs = cuda_of_torch()
    if theirs is None or ours.partition(".")[0] == theirs.partition(".")[0]:
        return None
    return (
        f"the kernels were built with CUDA {ours}, torch with {theirs}: they share the driver; the self-check tells "
        f"whether they get along (wals-gpu doctor --gpu); if not, build with an nvcc of CUDA {theirs.partition('.')[0]}"
    )


def check_gpu(device: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run the self-check of a CUDA device, whatever is known of it.

    Returns
    -------
    dict
        JSON-able. ``device``: its name, None where it cannot be used at all, and ``why``. ``passed``, ``failures``,
        ``families`` (largest errors, as parts of what is allowed), ``seconds``, ``speedup`` of a large fit, ``file``.
    """
    try:
        from wals_gpu.backends import self_check

        backend = self_check.cuda_backend(device_index(device))
        outcome = self_check.self_check(backend, again=True, tell=tell)
    except (ImportError, RuntimeError, ValueError, MemoryError) as error:
        return {"device": None, "why": str(error), "passed": False, "failures": []}
    return {
        "device": outcome.device,
        "passed": not outcome.failures,
        "failures": list(outcome.failures),
        "families": outcome.families,
        "seconds": outcome.seconds,
        "speedup": outcome.speedup(1e12) if outcome.cuda else None,
        "file": str(self_check.place_of(backend)[1]),
    }


def _cuda_devices() -> tuple[int, str | None]:
    """Number of NVIDIA GPUs that the driver lets this process use, and why there are none."""
    try:
        driver = nvidia_driver()
    except OSError:
        return 0, f"no NVIDIA driver was found ({NVIDIA_DRIVER})"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return 0, f"the NVIDIA driver reports error {status}"
    return count.value, None if count.value else "the NVIDIA driver sees no device"
