"""Parquet: the vectors as tables, for DuckDB, Spark, pandas and whatever else reads them."""

from __future__ import annotations

import os

from wals_gpu.export.folder import Export, manifest_of, new_folder, write_manifest
from wals_gpu.export.tables import write_items, write_users
from wals_gpu.model.vectors import score_vectors
from wals_gpu.model.wals import WALS

__all__ = ["export_parquet"]


def export_parquet(
    model: WALS,
    out: str | os.PathLike[str],
    *,
    seen: bool = True,
    factors_only: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write the vectors of users and items to Parquet files.

    ``items.parquet`` has ``row``, ``item_id``, ``popularity`` (training entries) and ``vector``, a list of D float32;
    ``users.parquet`` has ``row``, ``user_id``, ``known`` (whether the model learned factors), ``vector`` and ``seen``,
    the list of ids that `recommend` leaves out. The dot product of two vectors is the score of `recommend`, a
    popularity exponent included.

    Parameters
    ----------
    model : WALS
        Fitted.
    out : str or path
        The folder, new or empty.
    seen : bool, default True
        Whether to write what users have seen.
    factors_only : bool, default False
        Leave out what is no dot product, with a warning, where the model has it (``neighbors=``).
    overwrite : bool, default False
        Put it in the place of an earlier export in the folder.

    Returns
    -------
    Export

    Raises
    ------
    ValueError
        The scores of the model are not dot products alone, and `factors_only` is False.
    FileExistsError, NotADirectoryError, FileNotFoundError
        `out` holds something, or cannot be made; what is there is as it was.
    ModelFitError
        The model is not fitted.
    """
    vectors = score_vectors(model.fitted, factors_only=factors_only)
    with new_folder(out, overwrite) as folder:
        write_items(folder, vectors)
        write_users(folder, vectors, seen="seen" if seen else None)
        query = (
            "DuckDB: SELECT item_id, list_dot_product(u.vector, i.vector) AS score FROM 'users.parquet' u, "
            f"'items.parquet' i WHERE u.row = 0{' AND NOT list_contains(u.seen, i.item_id)' if seen else ''} "
            "ORDER BY score DESC, i.row LIMIT 10"
        )
        manifest, sizes = write_manifest(folder, manifest_of("parquet", vectors, seen=seen, query=query))
    return Export("parquet", str(out), sizes, "bytes", query, manifest)
