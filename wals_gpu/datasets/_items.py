"""What the data sets share: item tables whose first rows are the columns of the matrix."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from wals_gpu.data.ids import Ids


def in_column_order(items: pa.Table, item_ids: Ids) -> pa.Table:
    """Put the rows of an item table into the order of the columns of a matrix.

    Parameters
    ----------
    items : Table
        Columns ``item_id`` (no repetitions), ``summary``, ``text``.
    item_ids : Ids
        Ids of the I columns.

    Returns
    -------
    Table
        Row j < I describes column j; an id that ``items`` lacks gets empty texts. Items without a column follow, in
        the order of ``items``.
    """
    column = item_ids.find(items["item_id"])
    missing = np.setdiff1d(np.arange(len(item_ids)), column)
    if len(missing):
        texts = pa.array([""] * len(missing))
        ids = pa.array(item_ids.take(missing)).cast(items["item_id"].type)
        items = pa.concat_tables([items, pa.table([ids, texts, texts], schema=items.schema)])
        column = np.concatenate([column, missing])
    order = np.argsort(np.where(column < 0, len(item_ids), column), kind="stable")
    return items.take(order).combine_chunks()
