"""Whether this process is one of several, by the variables that torchrun, Slurm's wrappers and Ray set for torch."""

from __future__ import annotations

import os

__all__ = ["is_launched", "ranks_here"]


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def ranks_here() -> int:
    """How many of them are on this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
