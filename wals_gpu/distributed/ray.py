"""Fits on the workers of a Ray cluster.

Ray's core alone: a worker is an actor, and finds the others as processes of torchrun do. ``TorchTrainer`` would want
``ray[train]`` (pandas, tensorboardX and others), a storage of its own on every machine, and wraps errors of workers in
its own; what it adds, restarts, is here a loop over checkpoints that any number of ranks can resume.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from wals_gpu.checks import as_path, integer, number
from wals_gpu.distributed.fit import fit_sharded
from wals_gpu.distributed.launch import connected
from wals_gpu.errors import DistributedError
from wals_gpu.model.files import is_in_halves
from wals_gpu.model.wals import WALS
from wals_gpu.training.state import History

__all__ = ["RayResult", "ray_train"]

#: Seconds in which the cause of a failure may follow the complaint that a rank is gone.
_GRACE = 10.0


class RayResult(NamedTuple):
    """What :func:`ray_train` leaves.

    Attributes
    ----------
    history : History
        Of the fit.
    folder : Path
        Of the saved model, for ``WALS.load``.
    """

    history: History
    folder: Path


def ray_train(
    model: WALS,
    data: Any,
    *,
    out: str | PathLike[str],
    num_workers: int,
    resources_per_worker: Mapping[str, float] | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    max_failures: int = 0,
    timeout: float = 1800.0,
    start_timeout: float = 600.0,
    placement: str = "SPREAD",
    save_dtype: str | None = None,
    **options: Any,
) -> RayResult:
    """Fit a model on the workers of a Ray cluster, and save it: the model of one process, to the bit.

    Parameters
    ----------
    model : WALS
        Its settings, as for :func:`.fit_sharded`; it is not changed. Without ``num_threads``, a worker has as many
        threads as CPUs.
    data : path or list of them, or whatever :func:`.fit_sharded` takes
        A path to files that all machines see, of which each worker reads a part. Anything else travels to every
        machine through Ray's object store.
    out : str or path
        Folder for the model, which all machines see; replaced.
    num_workers : int
        Ranks. One for a machine, with its CPUs, makes the least traffic.
    resources_per_worker : mapping of str to float, optional
        Default: one CPU.
    checkpoint_dir : str or path, optional
        In a folder that all machines see. A fit goes on from what is there; it is left there at the end.
    max_failures : int, default 0
        How many times the fit begins again with new workers after one was lost (killed, out of memory, its machine
        gone); with `checkpoint_dir` from its last checkpoint.
    timeout : float, default 1800
        Seconds after which a worker that hears nothing of another one gives up.
    start_timeout : float, default 600
        Seconds to wait for the resources.
    placement : {"SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK"}, default "SPREAD"
        Ray's strategy for the machines of workers.
    save_dtype : {"float16"}, optional
        ``dtype`` of :meth:`.ShardedModel.save`.
    **options
        Of :func:`.fit_sharded` (``warm_start``, ``validation``, ``patience``, ``mode``, ...) and of reading a table
        (``user_column``, ``min_value``, ...).

    Returns
    -------
    RayResult

    Raises
    ------
    DistributedError
        Ray is not there, or has not the resources; or a worker was lost.
    DataError, TypeError, ValueError, CheckpointError, SingularSystemError, ModelFitError, MemoryError, OSError
        Of a worker, as from :func:`.fit_sharded`.
    """
    integer("num_workers", num_workers, 1)
    integer("max_failures", max_failures, 0)
    is_in_halves(save_dtype)
    number("timeout", timeout, positive=True)
    number("start_timeout", start_timeout, positive=True)
    if not isinstance(model, WALS):
        raise TypeError(f"model must be a WALS, got {type(model).__name__}")
    strategies = ("SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK")
    if placement not in strategies:
        raise ValueError(f"placement must be one of {', '.join(strategies)}; got {placement!r}")
    resources = {"CPU": 1.0, **(resources_per_worker or {})}
    for name, amount in resources.items():
        number(f"resources_per_worker[{name!r}]", amount, low=0)
    try:
        import ray
    except ImportError as error:
        raise DistributedError("ray_train needs Ray and torch: pip install 'wals_gpu[ray]'") from error
    # Workers have other working folders.
    folder, options = os.path.abspath(as_path("out", out)), dict(options)
    if checkpoint_dir is not None:
        options |= {"checkpoint_dir": os.path.abspath(as_path("checkpoint_dir", checkpoint_dir)), "resume": True}
    for name in ("warm_start", "validation"):
        if name in options:
            options[name] = _seen_anywhere(options[name])
    task = {"out": folder, "timeout": float(timeout), "options": options, "save_dtype": save_dtype}
    data = _seen_anywhere(data)
    mine = not ray.is_initialized()
    if mine:
        ray.init()
    try:
        shared = ray.put((model, data, task))
        for attempt in range(max_failures + 1):
            try:
                history = _run(ray, shared, num_workers, resources, placement, start_timeout)
                return RayResult(history, Path(folder))
            except _Lost as error:
                if attempt == max_failures:
                    raise DistributedError(str(error)) from error
    finally:
        if mine:
            ray.shutdown()
    raise AssertionError  # the last attempt returns or raises


def _seen_anywhere(data: Any) -> Any:
    """Paths as they are called from any folder, addresses as they are; anything else itself."""
    if isinstance(data, (list, tuple)):
        return [_seen_anywhere(one) for one in data]
    is_path = isinstance(data, (str, PathLike)) and "://" not in os.fspath(data)
    return os.path.abspath(os.path.expanduser(data)) if is_path else data


class _Lost(Exception):
    """A worker is gone, where the fit may begin again."""


def _run(
    ray: Any, shared: Any, num_workers: int, resources: Mapping[str, float], placement: str, start_timeout: float
) -> History:
    """One attempt: workers are made, and are gone at the end."""
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([dict(resources)] * num_workers, strategy=placement)
    try:
        if not group.wait(start_timeout):
            raise DistributedError(
                f"the Ray cluster had not the resources for num_workers={num_workers} with "
                f"resources_per_worker={dict(resources)} within {start_timeout:g} s; it has {ray.cluster_resources()}"
            )
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        workers = [
            ray.remote(_Worker).options(
                num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), resources=others, max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            ).remote()
            for rank in range(num_workers)
        ]  # fmt: skip
        places = _answers(ray, [worker.place.remote() for worker in workers])
        hosts = [host for host, _ in places]
        calls = []
        for rank, worker in enumerate(workers):
            environment = {
                "RANK": rank,
                "WORLD_SIZE": num_workers,
                "LOCAL_RANK": hosts[:rank].count(hosts[rank]),
                "LOCAL_WORLD_SIZE": hosts.count(hosts[rank]),
                "MASTER_ADDR": hosts[0],
                "MASTER_PORT": places[0][1],
            }
            threads = max(int(resources["CPU"]), 1)
            calls.append(worker.fit.remote({k: str(v) for k, v in environment.items()}, threads, shared))
        history: History = _answers(ray, calls)[0]
        return history
    finally:
        remove_placement_group(group)  # ends the workers too


def _answers(ray: Any, calls: list[Any]) -> list[Any]:
    """What workers answer; the error of one, as it was raised there.

    Raises
    ------
    _Lost
        A worker is gone.
    """
    ranks, pending = {call: rank for rank, call in enumerate(calls)}, list(calls)
    answers: dict[int, Any] = {}
    complaint: DistributedError | None = None
    until = None
    while pending:
        done, pending = ray.wait(pending, timeout=None if until is None else max(until - time.monotonic(), 0))
        if not done:
            break
        for call in done:
            try:
                answers[ranks[call]] = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else None
                if cause is None:
                    raise DistributedError(f"rank {ranks[call]}: {error}") from error
                if not isinstance(cause, DistributedError):
                    raise cause from error
                # The rank whose end the others complain of has more to say, if it is not stuck.
                complaint = complaint or cause
                until = until or time.monotonic() + _GRACE
            except ray.exceptions.RayError as error:
                raise _Lost(f"rank {ranks[call]} of {len(calls)} was lost: {str(error).strip()}") from error
    if complaint is not None:
        raise complaint
    return [answers[rank] for rank in range(len(calls))]


class _Worker:
    """One rank."""

    def place(self) -> tuple[str, int]:
        """Address of the machine, and a port that is free on it."""
        import ray

        address: str = ray.util.get_node_ip_address()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind(("", 0))
            return address, probe.getsockname()[1]

    def fit(self, environment: dict[str, str], threads: int, shared: tuple[WALS, Any, dict[str, Any]]) -> History:
        """Fit with the others, and save."""
        model, data, task = shared
        os.environ.update(environment)
        if model.num_threads is None:
            model.set_params(num_threads=threads)
        with connected(task["timeout"]) as group:
            fitted = fit_sharded(model, data, group, **task["options"])
            fitted.save(task["out"], dtype=task["save_dtype"])
        return fitted.history
