"""What executors do: functions of batches of Arrow, as ``DataFrame.mapInArrow`` takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu import errors
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.data.ids import Ids
from wals_gpu.distributed.fit import OwnFactors, fit_rows
from wals_gpu.distributed.group import Group, gather_json
from wals_gpu.distributed.read import merge_entries
from wals_gpu.errors import DataError, DistributedError, SingularSystemError
from wals_gpu.model.sharded import fit_settings
from wals_gpu.model.wals import WALS
from wals_gpu.spark.barrier import joined

__all__ = [
    "FIT_SCHEMA",
    "ITEM",
    "PACKED_SCHEMA",
    "REPORT",
    "USER",
    "FitOrder",
    "fitted",
    "packed",
    "raised",
    "topk_lists",
]

#: Ratings of a row of :func:`packed`: 768 KiB.
_PACKED = 1 << 16

#: Values of factors in a batch of :func:`fitted`: 16 MiB.
_BATCH = 1 << 22

PACKED_SCHEMA = "ratings binary"
FIT_SCHEMA = "side tinyint, id int, features array<float>, report string"

#: What a row of :func:`fitted` is of.
USER, ITEM, REPORT = 0, 1, 2

_FIT_ARROW = pa.schema(
    [("side", pa.int8()), ("id", pa.int32()), ("features", pa.list_(pa.float32())), ("report", pa.string())]
)


def packed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Many ratings in a row, for the way to the executors that fit: users and items (int32), then ratings (float32).

    Parameters
    ----------
    batches : iterable of RecordBatch
        Columns user (int32), item (int32) and rating (float32), without nulls.

    Yields
    ------
    RecordBatch
    """
    waiting: list[pa.RecordBatch] = []
    n = 0
    for batch in batches:
        waiting.append(batch)
        n += batch.num_rows
        if n >= _PACKED:
            yield _joined(waiting)
            waiting, n = [], 0
    if n:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    kinds = (np.int32, np.int32, np.float32)
    data = b"".join(
        np.concatenate([batch.column(k).to_numpy(zero_copy_only=False) for batch in batches]).astype(kind).tobytes()
        for k, kind in enumerate(kinds)
    )
    return pa.record_batch([pa.array([data], pa.binary())], names=["ratings"])


def _unpacked(
    batches: Iterable[pa.RecordBatch],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """All users, items and ratings."""
    parts: list[list[NDArray[Any]]] = [[], [], []]
    for batch in batches:
        for value in batch.column(0):
            data = value.as_buffer()
            n = data.size // 12
            for part, kind, first in zip(parts, (np.int32, np.int32, np.float32), (0, 4 * n, 8 * n), strict=True):
                part.append(np.frombuffer(data, kind, n, first))
    users, items, ratings = (
        np.concatenate([np.empty(0, kind), *part])
        for part, kind in zip(parts, (np.int32, np.int32, np.float32), strict=True)
    )
    return users, items, ratings


@dataclass(frozen=True)
class FitOrder:
    """What the tasks of a fit are told.

    Parameters
    ----------
    settings : dict
        Of the :class:`wals_gpu.WALS`, without threads.
    threads : int
        Of a rank; 0: as the executor has cores.
    cores : int
        Of an executor; 0: all of its machine.
    timeout : float
        Seconds.
    """

    settings: dict[str, Any]
    threads: int
    cores: int
    timeout: float


def fitted(batches: Iterable[pa.RecordBatch], order: FitOrder) -> Iterator[pa.RecordBatch]:
    """The factors of a rank of a barrier stage, from the ratings that came to it, and on rank 0 a report.

    An error of the data or the settings is a report in place of factors: a stage that failed would be tried again.

    Parameters
    ----------
    batches : iterable of RecordBatch
        Of :func:`packed`.
    order : FitOrder

    Yields
    ------
    RecordBatch
        Of :data:`FIT_SCHEMA`.
    """
    ratings = _unpacked(batches)
    with joined(order.cores, order.timeout) as (group, threads):
        threads = order.threads or threads
        try:
            ids, found = _fit(group, WALS(**order.settings, num_threads=threads), *ratings)
        except DistributedError:
            raise
        except (ValueError, TypeError, MemoryError, np.linalg.LinAlgError) as error:
            if group.rank == 0:
                yield _report(error=_described(error))
            return
        del ratings
        if group.rank == 0:
            losses = [record.loss for record in found.history]
            yield _report(losses=losses, ranks=group.size, threads=threads)
    # Its first side is Spark's items.
    for side, of_side, factors in ((ITEM, ids[0], found.users), (USER, ids[1], found.items)):
        yield from _batches(side, np.asarray(of_side), factors)


def _fit(
    group: Group, model: WALS, users: NDArray[np.int32], items: NDArray[np.int32], ratings: NDArray[np.float32]
) -> tuple[tuple[Ids, Ids], OwnFactors]:
    settings = fit_settings(model)
    if not sum(gather_json(group, len(users))):
        raise DataError("there are no ratings: the DataFrame to fit is empty")
    # Spark solves its items first, and its users last.
    first, second = (Ids.encode(pa.array(ids), side) for ids, side in ((items, "item"), (users, "user")))
    item_ids, user_ids = (first[0], second[0]) if len(users) else (None, None)
    shards = merge_entries(
        item_ids, user_ids, first[1], second[1], ratings, group, settings.factors, settings.options, add_repeats=False
    )
    try:
        found = fit_rows(model, shards, group)
    except SingularSystemError as error:
        raise SingularSystemError(error.row, "increase regParam", _swapped(error.who)) from error
    assert shards.user_ids is not None and shards.item_ids is not None
    return (shards.user_ids, shards.item_ids), found


def _swapped(who: str | None) -> str | None:
    if who is None:
        return None
    side, _, rest = who.partition(" ")
    return f"{ {'user': 'item', 'item': 'user'}.get(side, side) } {rest}"


def _batches(side: int, ids: NDArray[np.int64], factors: NDArray[np.floating]) -> Iterator[pa.RecordBatch]:
    step = max(_BATCH // factors.shape[1], 1)
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        n = len(some)
        flat = pa.array(np.ascontiguousarray(factors[start : start + step], np.float32).reshape(-1))
        offsets = np.arange(0, (n + 1) * factors.shape[1], factors.shape[1], dtype=np.int32)
        yield pa.record_batch(
            [
                pa.array(np.full(n, side, np.int8)),
                pa.array(some.astype(np.int32)),
                pa.ListArray.from_arrays(pa.array(offsets), flat),
                pa.nulls(n, pa.string()),
            ],
            schema=_FIT_ARROW,
        )


def _report(**values: Any) -> pa.RecordBatch:
    columns = {"side": [REPORT], "id": [0], "features": [None], "report": [json.dumps(values)]}
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in _FIT_ARROW], schema=_FIT_ARROW)


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, SingularSystemError):
        return {"kind": "SingularSystemError", "arguments": [error.row, error.remedy, error.who]}
    return {"kind": type(error).__name__, "arguments": [str(error)]}


def raised(described: dict[str, Any]) -> Exception:
    """The error of a report, of the same kind."""
    kind, arguments = described["kind"], described["arguments"]
    builtin = {"TypeError": TypeError, "MemoryError": MemoryError}
    found: Any = getattr(errors, kind, None) or builtin.get(kind, ValueError)
    error: Exception = found(*arguments)
    return error


def topk_lists(
    batches: Iterable[pa.RecordBatch], ids: NDArray[np.int32], vectors: NDArray[np.float32], k: int, names: list[str]
) -> Iterator[pa.RecordBatch]:
    """The best of the other side for each row of batches.

    Parameters
    ----------
    batches : iterable of RecordBatch
        Columns id (int32) and features (list of float32).
    ids : (I,) int32
        Of the other side.
    vectors : (I, D) float32
    k : int
    names : list of str
        Of the ids of this side, of the lists, of the other side's ids in them, and of their scores.

    Yields
    ------
    RecordBatch
    """
    backend = CpuBackend(1)  # as many tasks as cores
    k = min(k, len(ids))
    for batch in batches:
        if not batch.num_rows:
            continue
        queries = batch.column(1).flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
        places, scores = backend.topk(queries, vectors, k)
        found = pa.StructArray.from_arrays(
            [pa.array(ids[places.reshape(-1)]), pa.array(scores.reshape(-1))], names=names[2:]
        )
        offsets = np.arange(0, (len(queries) + 1) * k, max(k, 1), dtype=np.int32)[: len(queries) + 1]
        yield pa.record_batch([batch.column(0), pa.ListArray.from_arrays(pa.array(offsets), found)], names=names[:2])
