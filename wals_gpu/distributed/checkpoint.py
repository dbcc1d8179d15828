"""Checkpoints of a fit on several ranks: each writes its own rows, and any number of ranks can go on from them.

A folder ``checkpoint_dir`` holds::

    model.json, model-*.safetensors   settings, history and what is in which folder below; written last, by rank 0
    step-<n>/rows-<r>/                the factors of rank r after n iterations, present and best ones

What priors have learned, which is the same on all ranks, is in the first of these.

Each folder is written whole (:mod:`wals_gpu.data.files`). What model.json names is complete: it is replaced when all
ranks have their rows on the disk, and older steps are removed after that.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.group import Group, gather_json, together
from wals_gpu.errors import CheckpointError, DistributedError, ModelFormatError
from wals_gpu.training.checkpoints import Checkpoint
from wals_gpu.training.state import FitRecord, FitState
from wals_gpu.training.validation import Validation

__all__ = ["SEEN_WITHIN", "ShardedCheckpoint", "all_see", "read_rows"]

#: Seconds until another machine's new folders are to be seen: NFS keeps what it knows of a folder for up to 60.
SEEN_WITHIN = 70.0

_KIND = "checkpoint of a fit on several ranks"


class ShardedCheckpoint(Checkpoint):
    """See :class:`.checkpoints.Checkpoint`; every rank makes the same calls, with a folder that all of them see.

    Parameters
    ----------
    path, every, settings
        As there.
    group : Group
    cuts : dict of str to Cuts
        Of "user" and "item".
    """

    kind = _KIND

    def __init__(
        self,
        path: str | PathLike[str],
        every: int,
        settings: Mapping[str, Any],
        group: Group,
        cuts: Mapping[str, Cuts],
    ) -> None:
        super().__init__(path, every, settings)
        self._group, self._cuts = group, dict(cuts)

    def save(self, state: FitState, history: list[FitRecord], validation: Validation | None) -> None:
        """Replace the checkpoint; OSError, on all ranks, where one cannot write."""
        group, n, progress = self._group, len(history), None
        arrays = {"present": dict(state.arrays())}
        if validation is not None:
            best, progress = validation.progress()
            if validation.best_iteration != n:
                arrays["best"] = dict(best)
        step = self.path / f"step-{n}"
        metadata = self._metadata(history, progress) | {
            "step": step.name,
            "kept": sorted(kind for kind, values in arrays.items() if values),
            "bounds": {side: cuts.bounds.tolist() for side, cuts in self._cuts.items()},
        }
        tensors = {f"{kind}/{name}": array for kind, values in arrays.items() for name, array in values.items()}
        shared = {name: tensors.pop(name) for name in [name for name in tensors if not name.endswith("_factors")]}
        own = step / f"rows-{group.rank}"
        with self._taken_back(own):
            with together(group, f"writing the checkpoint after iteration {n}"):
                save_folder(own, tensors, {"model": _KIND})
            with together(group, f"writing the checkpoint after iteration {n}"):
                if group.rank == 0:
                    all_see(step, lambda: [rank for rank in range(group.size) if not (step / f"rows-{rank}").is_dir()])
                    save_folder(self.path, shared, metadata)
                    for old in self.path.glob("step-*"):
                        if old != step:
                            shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def _taken_back(self, own: Path) -> Iterator[None]:
        """A checkpoint that cannot be written leaves nothing behind: the disk may be full."""
        is_new = not own.exists()
        try:
            yield
        except DistributedError:
            raise  # the others may be anywhere
        except Exception:
            if is_new:
                shutil.rmtree(own, ignore_errors=True)
                with suppress(OSError):  # those of other ranks are there
                    own.parent.rmdir()
            raise

    def begin(
        self, state: FitState, iterations: int, validation: Validation | None, *, resume: bool
    ) -> list[FitRecord]:
        """As there; the checkpoint may be of another number of ranks."""
        is_there = any(gather_json(self._group, self.exists()))
        if not is_there:
            self.save(state, [], validation)
            return []
        history: list[FitRecord] = []
        with together(self._group, "resuming"):
            shared, metadata = load_folder(self.path) if resume else ({}, {})
            try:
                history = self._checked(metadata, iterations, resume=resume)
                self._restore(shared, metadata, state, validation, len(history))
            except (CheckpointError, ModelFormatError):
                raise
            except (KeyError, TypeError, ValueError) as error:
                raise ModelFormatError(
                    f"{self.path} holds no checkpoint that this version can read: {error!r}"
                ) from error
        return history

    def _restore(
        self,
        shared: dict[str, NDArray[Any]],
        metadata: dict[str, Any],
        state: FitState,
        validation: Validation | None,
        n: int,
    ) -> None:
        of_kind = {
            kind: self._rows(metadata, kind)
            | {name.partition("/")[2]: array for name, array in shared.items() if name.startswith(f"{kind}/")}
            for kind in metadata["kept"]
        }
        state.restore(of_kind["present"])
        if validation is not None:
            progress = metadata["validation"]
            is_present = progress["best_iteration"] == n > 0
            validation.resume(of_kind["present"] if is_present else of_kind.get("best", {}), progress)

    def _rows(self, metadata: dict[str, Any], kind: str) -> dict[str, NDArray[Any]]:
        """This rank's rows of both sides."""
        folder = self.path / metadata["step"]
        return {
            f"{side}_factors": read_rows(
                folder, f"{kind}/{side}_factors", metadata["bounds"][side], cuts.of(self._group.rank)
            )
            for side, cuts in self._cuts.items()
        }


def all_see(folder: Path, missing: Callable[[], list[int]]) -> None:
    """Raise OSError unless this rank sees what the others have written; a network file system may take its time."""
    until = time.monotonic() + SEEN_WITHIN
    while ranks := missing():
        if time.monotonic() > until:
            text = f"rank 0 does not see what rank {ranks[0]} has written; the folder must be one that all ranks share"
            raise OSError(errno.ENOENT, text, str(folder))
        time.sleep(0.05)


def read_rows(folder: Path, name: str, bounds: list[int], rows: slice) -> NDArray[Any]:
    """Rows of an array of which rank r wrote those from bounds[r] to bounds[r + 1].

    Raises
    ------
    ModelFormatError
        What a rank wrote is missing, damaged, or not of as many rows.
    """
    pieces = []
    for rank, (start, stop) in enumerate(pairwise(bounds)):
        if start >= rows.stop or stop <= rows.start or start == stop:
            continue
        place = folder / f"rows-{rank}"
        if not place.exists():
            raise ModelFormatError(f"{place} is missing: rank {rank} wrote rows {start} to {stop - 1} there")
        tensors, _ = load_folder(place)
        if name not in tensors or len(tensors[name]) != stop - start:
            raise ModelFormatError(f"{place} must have {name} of {stop - start} rows")
        pieces.append(tensors[name][max(rows.start - start, 0) : rows.stop - start])
    if not pieces:
        tensors, _ = load_folder(folder / "rows-0")
        return tensors[name][:0]
    return np.concatenate(pieces)
