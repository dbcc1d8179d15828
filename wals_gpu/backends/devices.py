"""The backend of a device's name."""

from __future__ import annotations

from wals_gpu.backends.session import Backend

__all__ = ["DEVICES", "make_backend"]

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
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    # Imported here: `wals-gpu doctor` must run where a native module does not.
    if device == "cuda":
        from wals_gpu.backends.cuda import CudaBackend

        return CudaBackend()
    from wals_gpu.backends.cpu import CpuBackend

    return CpuBackend(num_threads)
