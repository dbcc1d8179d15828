"""Users' data, checked once on its way in: tables, matrices, ids, interactions on disk, and the files of models."""

from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, Interactions, as_interactions, read_interactions
from wals_gpu.data.items import ItemTable, read_items

__all__ = [
    "ColumnNames",
    "Ids",
    "Interactions",
    "ItemTable",
    "as_csr",
    "as_interactions",
    "read_interactions",
    "read_items",
]
