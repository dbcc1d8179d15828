"""The group of processes that torchrun, Ray or Slurm started."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from wals_gpu.backends.launched import is_launched, ranks_here
from wals_gpu.checks import number
from wals_gpu.distributed.group import Group, LocalGroup, TorchGroup
from wals_gpu.errors import DistributedError
from wals_gpu.system import usable_cpus

__all__ = ["connected", "name_of_attempt", "threads_of_rank"]


def threads_of_rank() -> int:
    """Threads for this rank: its part of the processors that the ranks of this machine share."""
    return max(usable_cpus() // ranks_here(), 1)


def name_of_attempt(store: Any, rank: int, size: int, timeout: float) -> str:
    """A name under which the ranks that are there now, and no others, find each other in a store.

    The store of torchrun outlives ranks. After a restart a rank that is faster than another one would find the address
    of its predecessor there, and wait for it until the timeout.

    Rank 0 makes a name and waits until each of the others has left a word of its own under it, which it answers. A rank
    that has read the name of an earlier attempt gets no answer, and looks again.
    """
    key, end = "wals_gpu/attempt", time.monotonic() + timeout
    if rank == 0:
        new = f"wals_gpu/{secrets.token_hex(8)}"
        store.set(key, new)
        for other in range(1, size):
            store.set(f"{new}/{store.get(f'{new}/{other}').decode()}", "")
        return new
    word, told = secrets.token_hex(8), ""
    while time.monotonic() < end:
        name: str = store.get(key).decode()
        if name != told:
            store.set(f"{name}/{rank}", word)
            told = name
        if store.check([f"{name}/{word}"]):
            return name
        time.sleep(0.01)
    raise DistributedError(f"rank 0 does not answer rank {rank} within {timeout:g} s")


@contextmanager
def connected(timeout: float = 1800.0) -> Iterator[Group]:
    """The group of this program: of all processes that torchrun started, or this one alone.

    Parameters
    ----------
    timeout : float, default 1800
        Seconds after which a rank that hears nothing of another one gives up.

    Yields
    ------
    Group
        A :class:`TorchGroup`, or a :class:`LocalGroup`. A process group that was begun here ends with it.

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
            limit = timedelta(seconds=timeout)
            c10d: Any = dist  # its types do not name what it exports
            store, rank, size = next(c10d.rendezvous("env://", timeout=limit))
            store.set_timeout(limit)
            store = c10d.PrefixStore(name_of_attempt(store, rank, size, timeout), store)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise DistributedError(f"the other ranks cannot be reached: {error}") from error
    try:
        yield TorchGroup()
    finally:
        if mine:
            dist.destroy_process_group()
