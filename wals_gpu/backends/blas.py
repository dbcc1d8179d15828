"""One BLAS thread at a time: the setting belongs to the process, so one place changes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

from wals_gpu.system import after_fork

__all__ = ["controller", "one_blas_thread"]

# Two fits at once must not each restore what the other has set.
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that held it is not there any more


after_fork(_after_fork)


@cache
def controller() -> ThreadpoolController:
    """The BLAS libraries of this process."""
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS calls within it, of any thread, use one thread each; other threads that ask for the same wait."""
    with _lock, controller().limit(limits=1, user_api="blas"):
        yield
