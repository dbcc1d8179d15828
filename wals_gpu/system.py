"""What only Linux has, or has in its own way: the one module that asks which system this is.

Everything here answers on other systems, too: with less (no lock, no limit of memory known), never with an error.
docs/platforms.md says what macOS and Windows would need beyond it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "NVIDIA_DRIVER", "after_fork", "available_memory", "cpu_model", "cpu_quota", "exclusive", "folder_in_memory",
    "nvidia_driver", "nvidia_driver_version", "open_file", "to_disk", "try_lock", "usable_cpus",
]  # fmt: skip

#: The library that comes with the driver.
NVIDIA_DRIVER = "libcuda.so.1"


# Processors


def usable_cpus() -> int:
    """Processors that this process may run on, at least 1; elsewhere than on Linux all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """CPUs that the cgroup (v2) of this process may use: a container that sees 64 CPUs may be granted the time of 2."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def cpu_model() -> str:
    """The name of the processor, for people."""
    with contextlib.suppress(OSError):
        for line in _lines("/proc/cpuinfo"):
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# Memory


def available_memory() -> int | None:
    """Bytes that this process can still get: by the system, its cgroups, its limit of address space. None: unknown."""
    limits = []
    try:
        pages = {line.split(":")[0]: int(line.split()[1]) << 10 for line in _lines("/proc/meminfo")}
        limits.append(pages["MemAvailable"] + pages["SwapFree"])
        limits += [left for group in _cgroups() if (left := _left_in(group)) is not None]
        limit = next(line for line in _lines("/proc/self/limits") if line.startswith("Max address space")).split()[3]
        if limit != "unlimited":
            used = next(line for line in _lines("/proc/self/status") if line.startswith("VmSize:")).split()[1]
            limits.append(int(limit) - (int(used) << 10))
    except (OSError, KeyError, StopIteration, ValueError, IndexError):  # not Linux, or /proc is not there
        pass
    return max(min(limits), 0) if limits else None


def _lines(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines()


def _cgroups() -> list[Path]:
    """Folders of the cgroup (v2) of this process and of those around it."""
    name = next((line.split("::", 1)[1] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), None)
    if name is None:
        return []
    own = Path("/sys/fs/cgroup", name.lstrip("/"))
    return [group for group in (own, *own.parents) if (group / "memory.max").exists()]


def _left_in(group: Path) -> int | None:
    """What is left under the limit of a cgroup; the page cache counts as left."""
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return None
    counts = dict(line.split() for line in _lines(group / "memory.stat"))
    cache = int(counts["inactive_file"]) + int(counts["active_file"])
    return int(limit) - int((group / "memory.current").read_text()) + cache


def folder_in_memory() -> Path | None:
    """A folder for files that need not survive; None where there is none."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() and os.access(folder, os.W_OK) else None


# Files


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[Callable[[], None]]:
    """As long as it lasts, others who ask for the same folder or file wait.

    Some network file systems, and Windows, have no such locks: there nobody waits, and writers must not meet.

    Parameters
    ----------
    path : Path
        A folder or a file that is there.

    Yields
    ------
    callable
        :func:`to_disk` of it.

    Raises
    ------
    OSError
        There is no such folder or file, or it may not be opened.
    """
    if fcntl is None:
        path.stat()
        yield lambda: to_disk(path)
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that is open to read alone
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield lambda: os.fsync(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Lock an open file until it is closed.

    Parameters
    ----------
    fd : int
        Its descriptor.

    Returns
    -------
    bool
        False where another process holds it. True also where there are no such locks (see :func:`exclusive`).
    """
    if fcntl is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut; Windows cannot be asked for names.

    Parameters
    ----------
    path : Path
        The file or the folder.

    Raises
    ------
    OSError
        It is not there, or the disk failed.
    """
    if os.name == "nt" and path.is_dir():
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(path: Path) -> BinaryIO | None:
    """Open a file to read, and nothing else: a pipe or a device in its place could block for ever, or never end.

    Parameters
    ----------
    path : Path

    Returns
    -------
    binary file or None
        None: it is there, but no file.

    Raises
    ------
    OSError
        It is not there, or may not be opened.
    """
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY"))
    fd = os.open(path, os.O_RDONLY | sum(flags))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return os.fdopen(fd, "rb")


# Processes and drivers


def after_fork(function: Callable[[], None]) -> None:
    """Call a function in each child that this process forks; where nothing forks, never.

    Parameters
    ----------
    function : callable
        Without arguments.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def nvidia_driver() -> ctypes.CDLL:
    """The driver's library; an OSError where there is none."""
    return ctypes.CDLL(NVIDIA_DRIVER)


def nvidia_driver_version() -> str | None:
    """What the loaded kernel module says of itself."""
    try:
        return _lines("/proc/driver/nvidia/version")[0]
    except (OSError, IndexError):
        return None
