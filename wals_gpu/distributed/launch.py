"""The group of processes that torchrun, Ray or Slurm started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from wals_gpu.backends.cpu import available_threads
from wals_gpu.backends.launched import is_launched, ranks_here
from wals_gpu.checks import number
from wals_gpu.distributed.group import Group, LocalGroup, TorchGroup
from wals_gpu.errors import DistributedError

__all__ = ["connected", "threads_of_rank"]


def threads_of_rank() -> int:
    """Threads for this rank: its part of the processors that the ranks of this machine share."""
    return max(available_threads() // ranks_here(), 1)


@contextmanager
def connected(timeout: float = 1800.0) -> Iterator[Group]:
    """The group of this program: of all processes that torchrun started, or this one alone.

    Parameters
    ----------
    timeout : float, default 1800
        Seconds after which a rank that hears nothing of another one gives up.

    Raises
    ------
    DistributedError
        torch is not there, or the others cannot be reached.

    Examples
    --------
    >>> with connected() as group:
    ...     print(group.rank, "of", group.size)
    0 of 1
    """
    number("timeout", timeout, positive=True)
    if not is_launched():
        yield LocalGroup()
        return
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise DistributedError("fits on several ranks need torch: pip install 'wals_gpu[distributed]'") from error
    mine = not dist.is_initialized()
    if mine:
        try:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise DistributedError(f"the other ranks cannot be reached: {error}") from error
    try:
        yield TorchGroup()
    finally:
        if mine:
            dist.destroy_process_group()
