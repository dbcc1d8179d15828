"""The tasks of a barrier stage as ranks of a group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from pyspark import BarrierTaskContext

from wals_gpu.distributed.group import Group, LocalGroup, TorchGroup
from wals_gpu.errors import DistributedError
from wals_gpu.system import usable_cpus

__all__ = ["joined"]


@contextmanager
def joined(cores: int, timeout: float) -> Iterator[tuple[Group, int]]:
    """The group of the tasks of this barrier stage, and the threads that this one is to use.

    Parameters
    ----------
    cores : int
        Of an executor; 0: all of its machine.
    timeout : float
        Seconds after which a rank that hears nothing of another one gives up.

    Raises
    ------
    DistributedError
        torch is not there, or the others cannot be reached.
    """
    context = BarrierTaskContext.get()
    rank, hosts = context.partitionId(), [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
    # Python workers of one executor have one parent.
    where = [hosts[rank], os.getppid()] if cores else [hosts[rank]]
    everywhere = [json.loads(one) for one in context.allGather(json.dumps(where))]
    shared = min(cores, usable_cpus()) if cores else usable_cpus()
    threads = max(shared // everywhere.count(where), 1)
    if len(hosts) == 1:
        yield LocalGroup(), threads
        return
    try:
        import torch.distributed as torch_distributed
    except ImportError as error:
        raise DistributedError(
            "fits on several executors need torch on each of them: pip install 'wals_gpu[spark]'"
        ) from error
    dist: Any = torch_distributed
    wait = timedelta(seconds=timeout)
    store, port = None, ""
    if rank == 0:
        store = dist.TCPStore(hosts[0], 0, len(hosts), is_master=True, timeout=wait, wait_for_workers=False)
        port = str(store.port)
    port = context.allGather(port)[0]
    try:
        if store is None:
            store = dist.TCPStore(hosts[0], int(port), len(hosts), is_master=False, timeout=wait)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=len(hosts), timeout=wait)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"the other executors cannot be reached ({hosts[0]}:{port}): {error}") from error
    try:
        yield TorchGroup(), threads
        context.barrier()  # rank 0 has the store: it stays until all are done with it
    finally:
        dist.destroy_process_group()
