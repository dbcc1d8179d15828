"""The processes of a fit on several machines, and what they tell each other: four collectives over torch.distributed.

Everything sharded goes through a :class:`Group`. :class:`LocalGroup` is one process alone and needs no torch;
:class:`TorchGroup` is a process group of torch, gloo on CPUs and NCCL on GPUs, however it was started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wals_gpu.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    DistributedError,
    ModelFitError,
    ModelFormatError,
    SingularSystemError,
)

__all__ = [
    "Group",
    "LocalGroup",
    "TorchGroup",
    "agree",
    "gather_json",
    "gather_uneven",
    "of_each",
    "to_receive",
    "together",
]


class Group(Protocol):
    """Processes ("ranks") that compute together. Every rank makes the same calls in the same order.

    Attributes
    ----------
    rank, size : int
        Of this process, from 0, and how many there are.
    sent_bytes : int
        What this rank has sent so far.
    """

    rank: int
    size: int
    sent_bytes: int

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The rows of all ranks, rank after rank, on every rank.

        Parameters
        ----------
        rows : (counts[rank], ...) array
        counts : (size,) sequence of int
            How many rows each rank has.
        out : (sum of counts, ...) array, optional
            C-ordered; written and returned.

        Returns
        -------
        (sum of counts, ...) array
        """

    def exchange_rows(self, pieces: Sequence[NDArray[Any]], counts: Sequence[int], out: NDArray[Any]) -> None:
        """Send a piece to every rank, and receive one from each.

        Parameters
        ----------
        pieces : sequence of (n_r, ...) arrays
            One for each rank r.
        counts : (size,) sequence of int
            How many rows come from each rank.
        out : (sum of counts, ...) array
            C-ordered; written, rank after rank.
        """

    def broadcast(self, array: NDArray[Any]) -> None:
        """Fill an array with that of rank 0.

        Parameters
        ----------
        array : array
            Of the same shape and dtype on all ranks; written, but on rank 0.
        """

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """What each rank gave, on every rank.

        Parameters
        ----------
        data : bytes
            Of any length.

        Returns
        -------
        list of bytes
            One for each rank.
        """

    def barrier(self) -> None:
        """Wait for all ranks."""


#: Up to so many bytes of all ranks together, time follows from the number of messages that wait for each other.
_SMALL_BYTES = 1 << 14


class LocalGroup(Group):
    """A single process; see :class:`Group`."""

    rank, size, sent_bytes = 0, 1, 0

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        if out is None:
            return rows
        out[:] = rows
        return out

    def exchange_rows(self, pieces: Sequence[NDArray[Any]], counts: Sequence[int], out: NDArray[Any]) -> None:
        out[:] = pieces[0]

    def broadcast(self, array: NDArray[Any]) -> None:
        return

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def barrier(self) -> None:
        return


class TorchGroup(Group):
    """A process group of torch.distributed; see :class:`Group`.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        Default: ``torch.distributed.group.WORLD``, after ``init_process_group``.
    device : str, optional
        Where the group's tensors are: "cpu" for gloo, "cuda:0" and the like for NCCL. Default: by the backend of the
        group, the current CUDA device for NCCL.

    Raises
    ------
    DistributedError
        A call fails: another rank has ended, or does not answer within the timeout of the group.
    """

    def __init__(self, process_group: Any = None, device: str | None = None) -> None:
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            raise DistributedError(
                "torch.distributed has no process group yet: start the program with torchrun and call "
                "wals_gpu.distributed.connect(), or torch.distributed.init_process_group()"
            )
        self._torch, self._dist = torch, dist
        self._group: Any = dist.group.WORLD if process_group is None else process_group
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        if device is None:
            device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend(self._group) == "nccl" else "cpu"
        self._device = torch.device(device)
        self.sent_bytes = 0

    def gather_rows(self, rows: NDArray[Any], counts: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        # Around a ring: each step passes the piece on that came with the last one, so that every link is busy. What is
        # small goes to all at once: it takes the time of one step.
        ends = np.cumsum(counts)
        if out is None:
            out = np.empty((int(ends[-1]), *rows.shape[1:]), rows.dtype)
        pieces = [out[end - count : end] for end, count in zip(ends, counts, strict=True)]
        if pieces[self.rank].ctypes.data != rows.ctypes.data:
            pieces[self.rank][...] = rows
        if out.nbytes <= _SMALL_BYTES:
            others = [rank for rank in range(self.size) if rank != self.rank]
            self._pass([(rank, pieces[self.rank]) for rank in others], [(rank, pieces[rank]) for rank in others])
            return out
        onward, back = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for step in range(self.size - 1):
            sent, received = pieces[(self.rank - step) % self.size], pieces[(self.rank - step - 1) % self.size]
            self._pass([(onward, sent)], [(back, received)])
        return out

    def exchange_rows(self, pieces: Sequence[NDArray[Any]], counts: Sequence[int], out: NDArray[Any]) -> None:
        ends = np.cumsum(counts)
        places = [out[end - count : end] for end, count in zip(ends, counts, strict=True)]
        places[self.rank][...] = pieces[self.rank]
        for step in range(1, self.size):
            to, source = (self.rank + step) % self.size, (self.rank - step) % self.size
            self._pass([(to, pieces[to])], [(source, places[source])])

    def broadcast(self, array: NDArray[Any]) -> None:
        if not array.size or self.size == 1:
            return
        tensor = self._bytes_of(array)
        with self._failures():
            self._dist.broadcast(tensor, self._global(0), group=self._group)
        self.sent_bytes += array.nbytes if self.rank == 0 else 0
        if self.rank:
            self._take(array, tensor)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = of_each(self, len(data))
        rows = np.frombuffer(data, np.uint8)
        joined = self.gather_rows(rows, lengths.tolist())
        return [piece.tobytes() for piece in np.split(joined, np.cumsum(lengths)[:-1])]

    def barrier(self) -> None:
        of_each(self, np.uint8(0))

    def _pass(self, sends: list[tuple[int, NDArray[Any]]], receives: list[tuple[int, NDArray[Any]]]) -> None:
        """Send arrays to ranks and receive others, at once."""
        operations, incoming = [], []
        for to, array in sends:
            if array.size:
                tensor = self._bytes_of(array)
                operations.append(self._dist.P2POp(self._dist.isend, tensor, self._global(to), self._group))
                self.sent_bytes += array.nbytes
        for source, array in receives:
            if array.size:
                tensor = self._bytes_of(array)
                operations.append(self._dist.P2POp(self._dist.irecv, tensor, self._global(source), self._group))
                incoming.append((array, tensor))
        if not operations:
            return
        with self._failures():
            for request in self._dist.batch_isend_irecv(operations):
                request.wait()
        for array, tensor in incoming:
            self._take(array, tensor)

    def _global(self, rank: int) -> int:
        return int(self._dist.get_global_rank(self._group, rank))

    def _bytes_of(self, array: NDArray[Any]) -> Any:
        """The bytes of an array, as a tensor: in place on the CPU, where the array is C-ordered."""
        array = np.ascontiguousarray(array)
        flat = array.view(np.uint8).reshape(-1) if array.flags.writeable else array.copy().view(np.uint8).reshape(-1)
        return self._torch.from_numpy(flat).to(self._device)

    def _take(self, array: NDArray[Any], tensor: Any) -> None:
        """What was received is in the array already, unless it came to a device or to a copy."""
        received = tensor.cpu().numpy()
        if received.ctypes.data != array.ctypes.data:
            array[...] = received.view(array.dtype).reshape(array.shape)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DistributedError(
                f"rank {self.rank} of {self.size} cannot reach the others: one has ended, or the network stalls "
                f"({text})"
            ) from error


# Small things of all ranks, and what they have to agree on.

#: What a rank may raise and the others raise with it; anything else becomes a DistributedError.
_KNOWN: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        CheckpointError, DataError, DeviceError, FileNotFoundError, KeyError, MemoryError, ModelFitError,
        ModelFormatError, OSError, TypeError, ValueError,
    )
}  # fmt: skip


def of_each(group: Group, value: Any) -> NDArray[Any]:
    """A number of each rank, or an array that is as long on all of them: (N, ...), on every rank."""
    return group.gather_rows(np.array([value]), [1] * group.size)


def to_receive(group: Group, counts: Any) -> list[int]:
    """How many rows each rank has for this one, where this one has counts[r] for rank r: what `exchange_rows` takes."""
    received: list[int] = of_each(group, counts)[:, group.rank].tolist()
    return received


def gather_uneven(group: Group, rows: NDArray[Any]) -> NDArray[Any]:
    """The rows of all ranks, rank after rank, of which each knows its own number alone."""
    return group.gather_rows(rows, of_each(group, len(rows)).tolist())


def gather_json(group: Group, value: Any) -> list[Any]:
    """What each rank gave, of the kinds that JSON has, on every rank."""
    return [json.loads(data) for data in group.gather_bytes(json.dumps(value).encode())]


def agree(group: Group, **values: Any) -> None:
    """Raise, on all ranks, where a value (of JSON's kinds) is not the same on all; its name says what it is."""
    given = gather_json(group, values)
    for rank, other in enumerate(given):
        parts = [
            f"{name} is {mine!r} on rank 0, {theirs!r} on rank {rank}"
            for name, mine, theirs in _differences(given[0], other)
        ]
        if parts:
            text = "; ".join(parts)
            raise DistributedError(f"all ranks must have the same data, settings and versions: {text:.2000}")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What is not the same, with its innermost name."""
    for name in dict.fromkeys([*one, *other]):
        mine, theirs = one.get(name), other.get(name)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            yield from _differences(mine, theirs)
        elif mine != theirs:
            yield name, mine, theirs


@contextmanager
def together(group: Group, who: str = "") -> Iterator[None]:
    """An error of one rank within becomes an error of all of them, the same, that says which rank it was.

    `who` (a verb, "solving users") leads texts of errors that do not speak for themselves. What is within must not call
    the group: the others would wait.
    """
    error: Exception | None = None
    try:
        yield
    except DistributedError:
        raise  # of the group itself: the others see it too, or are gone
    except Exception as caught:
        error = caught
    if not of_each(group, error is not None).any():
        return
    rank, found = next((r, d) for r, d in enumerate(gather_json(group, _described(error, who))) if d is not None)
    raise _as_error(found, f"rank {rank}{found['who']}", group.size) from error


def _described(error: Exception | None, who: str) -> dict[str, Any] | None:
    if error is None:
        return None
    found: dict[str, Any] = {"kind": type(error).__name__, "text": str(error), "who": f": {who}" if who else ""}
    if isinstance(error, KeyError) and error.args:
        found["text"] = str(error.args[0])  # str() of one is in quotes
    if isinstance(error, SingularSystemError):
        found |= {"row": error.row, "remedy": error.remedy, "of": error.who}
    if isinstance(error, OSError) and error.errno is not None:  # else it has a text alone
        found |= {"errno": error.errno, "text": error.strerror or str(error), "file": _text(error.filename)}
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _as_error(found: dict[str, Any], where: str, size: int) -> Exception:
    prefix = f"{where}: " if size > 1 else ""
    if "row" in found:
        return SingularSystemError(found["row"], found["remedy"], found["of"])
    if "errno" in found:
        return OSError(found["errno"], prefix + found["text"], found["file"])
    if found["kind"] in _KNOWN:
        return _KNOWN[found["kind"]](prefix + found["text"])
    return DistributedError(f"{prefix}{found['kind']}: {found['text']}")
