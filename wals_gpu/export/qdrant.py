"""Qdrant: collections of users and items, on a server or in a folder of its local mode.

Shapes: U users, I items, D factors.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from wals_gpu.checks import flag, integer
from wals_gpu.data.ids import Ids
from wals_gpu.export.folder import Export, check_folder, manifest_of, new_folder, optional_module, write_manifest
from wals_gpu.export.tables import parts
from wals_gpu.model.vectors import ScoreVectors, score_vectors
from wals_gpu.model.wals import WALS
from wals_gpu.system import folder_in_memory

__all__ = ["export_qdrant"]

#: Points in a request: a few MiB at 256 factors, where a server takes 32 at most.
POINTS = 1 << 10


def export_qdrant(
    model: WALS,
    target: Any,
    *,
    collection: str = "wals",
    api_key: str | None = None,
    m: int = 32,
    ef_construction: int = 200,
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the vectors to collections of Qdrant, with the distance "Dot".

    ``wals_items`` has a point for each item with the payload ``item_id`` and ``popularity``; ``wals_users`` one for
    each user with ``user_id``, ``known`` and ``seen``, the numbers of the points that `recommend` leaves out: for a
    filter ``must_not`` with ``has_id``. The number of a point is its id where ids are integers from 0, else its row.

    Parameters
    ----------
    model : WALS
        Fitted.
    target : str, path or qdrant_client.QdrantClient
        ``http://...`` or ``https://...``: a server; a folder, new or empty: the client's local mode, which compares all
        items; or a client that is there. On a server, and with a client, the names of the collections are aliases that
        are switched in one step when all points are there.
    collection : str, default "wals"
        What the names of both collections begin with.
    api_key : str, optional
        Of a server.
    m, ef_construction : int
        Of the graph that a server makes: neighbours of an item, and candidates looked at where one is added.
    seen, factors_only, overwrite
        As of :func:`.export_parquet`.

    Returns
    -------
    Export

    Raises
    ------
    ModuleNotFoundError
        qdrant-client is not installed.
    ValueError
        The scores of the model are not dot products alone, and `factors_only` is False.
    FileExistsError
        There is an export and `overwrite` is False; or there is something else, which is never removed.
    ConnectionError
        The server cannot be reached, or refused something; collections that were begun are removed.
    ModelFitError
        The model is not fitted.
    """
    m = integer("m", m, 2)
    ef_construction = integer("ef_construction", ef_construction, 4)
    package = optional_module("qdrant_client", "qdrant-client", "qdrant")
    vectors = score_vectors(model.fitted, factors_only=factors_only)
    query = (
        f"user = client.retrieve('{collection}_users', [{_points(vectors.user_ids, slice(0, 1))[0]}], "
        f"with_vectors=True)[0]; client.query_points('{collection}_items', user.vector, limit=10"
        + (", query_filter=Filter(must_not=[HasIdCondition(has_id=user.payload['seen'])]))" if seen else ")")
    )
    manifest = manifest_of("qdrant", vectors, collection=collection, seen=seen, query=query)
    writer = _Writer(package, vectors, collection, seen, m, ef_construction)
    sizes = {f"{collection}_items": vectors.n_items, f"{collection}_users": vectors.n_users}
    if isinstance(target, package.QdrantClient):
        with _refusals(package):
            writer.switch(target, manifest, overwrite)
        return Export("qdrant", f"collections {collection}_*", sizes, "rows", query, manifest)
    if isinstance(target, str) and target.startswith(("http://", "https://")):
        with _refusals(package), contextlib.closing(package.QdrantClient(url=target, api_key=api_key)) as client:
            writer.switch(client, manifest, overwrite)
        return Export("qdrant", f"collections {collection}_*", sizes, "rows", query, manifest)
    if isinstance(target, str) and "://" in target:
        raise ValueError(f"target must be http://, https:// or a folder, got {target!r:.60}")
    check_folder(target, overwrite)
    with new_folder(target, overwrite) as folder:
        # The local mode waits for the disk after each point: where there is a folder in memory, that is where to write.
        with tempfile.TemporaryDirectory(prefix=".wals_gpu", dir=folder_in_memory() or folder.parent) as fast:
            with contextlib.closing(package.QdrantClient(path=fast)) as client:
                writer.write(client, "items", f"{collection}_items", manifest)
                writer.write(client, "users", f"{collection}_users", manifest)
            shutil.copytree(fast, folder, dirs_exist_ok=True)
        manifest, _ = write_manifest(folder, manifest)
    return Export("qdrant", os.fspath(target), sizes, "rows", query, manifest)


@contextlib.contextmanager
def _refusals(package: Any) -> Iterator[None]:
    """What the client raises as errors that say what it was about."""
    exceptions = package.http.exceptions
    try:
        yield
    except (exceptions.ApiException, exceptions.ResponseHandlingException) as error:
        raise ConnectionError(f"Qdrant: {' '.join(str(error).split()) or type(error).__name__}") from error


def _points(ids: Ids | None, part: slice) -> list[int]:
    """The numbers of points of some rows: the ids where they are integers from 0, as a point's number must be."""
    if ids is not None and ids.kind == "integer" and (not len(ids) or ids[0] >= 0):
        numbers: list[int] = ids[part].tolist()
        return numbers
    return list(range(part.start, part.stop))


class _Writer:
    """What writes the collections.

    Parameters
    ----------
    package : module
        ``qdrant_client``.
    vectors : ScoreVectors
    prefix : str
    seen : bool
    m, ef_construction : int
    """

    def __init__(
        self, package: Any, vectors: ScoreVectors, prefix: str, seen: bool, m: int, ef_construction: int
    ) -> None:
        self._models, self._vectors, self._prefix, self._seen = package.models, vectors, prefix, seen
        self._graph = {"m": m, "ef_construct": ef_construction}

    def write(self, client: Any, side: str, name: str, manifest: dict[str, Any]) -> None:
        """A collection of a side, "users" or "items"."""
        models, vectors = self._models, self._vectors
        # Users are asked for by number and never searched: no graph of them.
        graph = models.HnswConfigDiff(**self._graph) if side == "items" else models.HnswConfigDiff(m=0)
        size = models.VectorParams(size=vectors.factors, distance=models.Distance.DOT)
        client.create_collection(name, vectors_config=size, hnsw_config=graph, metadata=manifest)
        table, n = (vectors.items, vectors.n_items) if side == "items" else (vectors.users, vectors.n_users)
        ids = vectors.item_ids if side == "items" else vectors.user_ids
        for block in parts(n):
            payloads = self._items(block) if side == "items" else self._users(block)
            for start in range(block.start, block.stop, POINTS):
                part = slice(start, min(start + POINTS, block.stop))
                own = payloads[part.start - block.start : part.stop - block.start]
                rows = np.asarray(table[part], np.float32).tolist()
                batch = models.Batch(ids=_points(ids, part), vectors=rows, payloads=own)
                client.upsert(name, points=batch, wait=True)

    def _items(self, part: slice) -> list[dict[str, Any]]:
        ids, counts = _names(self._vectors.item_ids, part), self._vectors.popularity[part].tolist()
        return [{"item_id": one, "popularity": count} for one, count in zip(ids, counts, strict=True)]

    def _users(self, part: slice) -> list[dict[str, Any]]:
        vectors = self._vectors
        payloads = [
            {"user_id": one, "known": known}
            for one, known in zip(_names(vectors.user_ids, part), vectors.known[part].tolist(), strict=True)
        ]
        if self._seen:
            seen, numbers = vectors.seen_by(part), np.asarray(_points(vectors.item_ids, slice(0, vectors.n_items)))
            for row, payload in enumerate(payloads):
                payload["seen"] = numbers[seen.indices[seen.indptr[row] : seen.indptr[row + 1]]].tolist()
        return payloads

    def switch(self, client: Any, manifest: dict[str, Any], overwrite: bool) -> None:
        """New collections, and aliases that lead to them from one moment on."""
        models = self._models
        names = {side: f"{self._prefix}_{side}" for side in ("items", "users")}
        present = {one.alias_name: one.collection_name for one in client.get_aliases().aliases}
        for name in names.values():
            if name not in present and client.collection_exists(name):
                raise FileExistsError(f"there is a collection {name!r} that no export made; give another name")
            if name in present and not flag("overwrite", overwrite):
                raise FileExistsError(
                    f"there is an export under {name!r} already; overwrite=True puts the new one in its place"
                )
        token = secrets.token_hex(4)
        made = {side: f"{name}_{token}" for side, name in names.items()}
        try:
            for side, name in made.items():
                self.write(client, side, name, manifest)
            operations: list[Any] = []
            for side, name in names.items():
                if name in present:
                    operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
                alias = models.CreateAlias(collection_name=made[side], alias_name=name)
                operations.append(models.CreateAliasOperation(create_alias=alias))
            client.update_collection_aliases(operations)
        except BaseException:
            for name in made.values():
                with contextlib.suppress(Exception):  # not instead of what went wrong
                    client.delete_collection(name)
            raise
        for name in names.values():
            # Of an earlier export, by its name; an alias may have led somewhere else, which stays.
            if name in present and present[name].startswith(f"{name}_"):
                client.delete_collection(present[name])


def _names(ids: Ids | None, part: slice) -> list[Any]:
    """Ids of some rows; their numbers where there are none."""
    names: list[Any] = list(range(part.start, part.stop)) if ids is None else ids[part].tolist()
    return names
