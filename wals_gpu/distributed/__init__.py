"""Fits on several machines, or on several processes of one: the same model, to the bit.

:func:`fit_sharded` is :meth:`wals_gpu.WALS.fit` on the ranks of a group; ``torchrun -m wals_gpu fit`` calls it. Users
and items are cut into contiguous ranges that cost the same; each rank has its own, and in each half-sweep gets the
factors of the other side that its rows meet. docs/distributed.md says when that pays.
"""

from wals_gpu.distributed.fit import fit_rows, fit_sharded
from wals_gpu.distributed.group import Group, LocalGroup, TorchGroup
from wals_gpu.distributed.launch import connected
from wals_gpu.distributed.model import ShardedModel
from wals_gpu.distributed.publish import publish_sharded
from wals_gpu.distributed.ray import RayResult, ray_train
from wals_gpu.distributed.read import merge_entries, merge_shards, read_sharded
from wals_gpu.distributed.shards import Shards, shard

__all__ = [
    "Group",
    "LocalGroup",
    "RayResult",
    "ShardedModel",
    "Shards",
    "TorchGroup",
    "connected",
    "fit_rows",
    "fit_sharded",
    "merge_entries",
    "merge_shards",
    "publish_sharded",
    "ray_train",
    "read_sharded",
    "shard",
]
