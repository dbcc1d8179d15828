"""faiss and usearch: an index of the items, and the vectors of the users beside it.

Both search by the inner product itself; why not by the longer vectors that turn it into a distance, and what each
finds, is in :mod:`wals_gpu.retrieval.ann`.
"""

from __future__ import annotations

import os
from typing import Any

from wals_gpu.export.folder import Export, check_folder, manifest_of, new_folder, write_manifest
from wals_gpu.export.tables import write_items, write_users
from wals_gpu.model.vectors import score_vectors
from wals_gpu.model.wals import WALS
from wals_gpu.retrieval.ann import AnnIndex

__all__ = ["export_faiss", "export_usearch"]


def export_faiss(
    model: WALS,
    out: str | os.PathLike[str],
    *,
    index: str = "hnsw",
    m: int | None = None,
    ef_construction: int | None = None,
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the items as an index of faiss.

    ``items.faiss`` is an ``IndexIDMap`` of inner products whose labels are the rows of ``items.parquet``, where the ids
    are. ``users.parquet`` has the vectors to ask with, and ``seen_rows``, the labels to leave out with
    ``faiss.IDSelectorNot``.

    Parameters
    ----------
    model, out, seen, factors_only, overwrite
        As of :func:`.export_parquet`.
    index : str, default "hnsw"
        "hnsw": a graph, approximate. "flat": all items are compared, exact. Else a text for ``faiss.index_factory``,
        such as "IVF1024,Flat".
    m : int, default 32
        Neighbours of an item in the graph.
    ef_construction : int, default 200
        Candidates looked at where an item is added to it.

    Returns
    -------
    Export

    Raises
    ------
    ModuleNotFoundError
        faiss is not installed.
    ValueError, FileExistsError, NotADirectoryError, FileNotFoundError, ModelFitError
        As of :func:`.export_parquet`; also an option without a meaning for the index.
    """
    if index != "hnsw" and (m, ef_construction) != (None, None):
        raise ValueError(f"m and ef_construction are of index='hnsw', got index={index!r}")
    factory = {"hnsw": None, "flat": "Flat"}.get(index, index)
    left_out = "sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(seen_rows))" if seen else ""
    params = {
        "hnsw": f", params=faiss.SearchParametersHNSW({', '.join(filter(None, ['efSearch=128', left_out]))})",
        "flat": f", params=faiss.SearchParameters({left_out})" if seen else "",
    }.get(index, "")
    query = f"labels = faiss.read_index('items.faiss').search(vectors, 10{params})[1]"
    options: dict[str, Any] = {"m": m, "ef_construction": ef_construction, "factory": factory}
    try:
        return _export(model, out, "faiss", index, query, options, seen, factors_only, overwrite)
    except RuntimeError as error:  # what faiss makes of a text that it cannot read, or of too few items for it
        if factory is None or "faiss" not in str(error):
            raise
        raise ValueError(f"index={index!r}: faiss says: {str(error).rsplit(': ', 1)[-1]}") from error


def export_usearch(
    model: WALS,
    out: str | os.PathLike[str],
    *,
    m: int | None = None,
    ef_construction: int | None = None,
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the items as an index of usearch.

    ``items.usearch`` is a graph by the metric "ip" whose keys are the rows of ``items.parquet``. The library cannot
    leave out what a user has seen: ask for as many items more as the user has in ``seen_rows``.

    Parameters
    ----------
    model, out, seen, factors_only, overwrite
        As of :func:`.export_parquet`.
    m, ef_construction
        As of :func:`export_faiss`.

    Returns
    -------
    Export

    Raises
    ------
    ModuleNotFoundError
        usearch is not installed.
    ValueError, FileExistsError, NotADirectoryError, FileNotFoundError, ModelFitError
        As of :func:`.export_parquet`.
    """
    query = "keys = usearch.index.Index.restore('items.usearch').search(vector, 10 + len(seen_rows)).keys"
    options = {"m": m, "ef_construction": ef_construction}
    return _export(model, out, "usearch", "hnsw", query, options, seen, factors_only, overwrite)


def _export(
    model: WALS,
    out: str | os.PathLike[str],
    library: str,
    index: str,
    query: str,
    options: dict[str, Any],
    seen: bool,
    factors_only: bool,
    overwrite: bool,
) -> Export:
    check_folder(out, overwrite)
    vectors = score_vectors(model.fitted, factors_only=factors_only)
    native = AnnIndex(model.item_index(), library, **options).native
    with new_folder(out, overwrite) as folder:
        file = folder / f"items.{library}"
        if library == "faiss":
            import faiss

            faiss.write_index(native, str(file))
        else:
            native.save(str(file))
        write_items(folder, vectors, with_vectors=False)
        write_users(folder, vectors, seen="seen_rows" if seen else None)
        manifest = manifest_of(library, vectors, seen=seen, index=index, query=query)
        manifest, sizes = write_manifest(folder, manifest)
    return Export(library, str(out), sizes, "bytes", query, manifest)
