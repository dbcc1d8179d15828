"""Whether this process is one of several, by the variables that torchrun, Slurm's wrappers and Ray set for torch."""

from __future__ import annotations

import os

__all__ = ["is_launched", "local_rank", "ranks_here"]


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_rank() -> int | None:
    """The number of this process among those of this machine; None where no launcher has said it."""
    number = os.environ.get("LOCAL_RANK")
    return int(number) if is_launched() and number is not None else None


def ranks_here() -> int:
    """How many of them are on this machine."""
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
