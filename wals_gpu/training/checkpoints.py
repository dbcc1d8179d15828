"""Checkpoints of a fit: what the next iteration depends on, in a folder that is whole at every instant."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import as_path
from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.data.ids import Ids
from wals_gpu.errors import CheckpointError, ModelFormatError
from wals_gpu.objective.terms import CHUNK
from wals_gpu.training.state import FitRecord, FitState
from wals_gpu.training.validation import Validation

__all__ = ["Checkpoint", "device_of_checkpoint", "fingerprint"]

_KIND = "checkpoint of WALS.fit"


class Checkpoint:
    """The checkpoint of one fit, in a folder as :mod:`wals_gpu.persistence` writes them.

    Parameters
    ----------
    path : str or path
        The folder; made by the first :meth:`save`.
    every : int
        Iterations from one checkpoint to the next.
    settings : mapping
        What a fit must share with the one that wrote the checkpoint, by the name to call it by; can be written as JSON.
    device : str, default "cpu"
        That the fit computes on: what it needs to go on may be there alone.
    """

    kind = _KIND

    def __init__(self, path: str | PathLike[str], every: int, settings: Mapping[str, Any], device: str = "cpu") -> None:
        self.device = device
        self.path = as_path("checkpoint_dir", path)
        self.every = every
        self.settings = dict(settings)

    def save(self, state: FitState, history: list[FitRecord], validation: Validation | None) -> None:
        """Replace the checkpoint.

        Raises
        ------
        OSError
            It cannot be written; the one that was there before is left as it was.
        """
        tensors = {f"present/{name}": array for name, array in state.arrays().items()}
        progress = None
        if validation is not None:
            best, progress = validation.progress()
            if validation.best_iteration != len(history):  # else they are the present ones
                tensors |= {f"best/{name}": array for name, array in best.items()}
        try:
            save_folder(self.path, tensors, self._metadata(history, progress) | {"device": self.device})
        except OSError as error:
            left = "; an earlier checkpoint in it is whole" if self.exists() else ""
            text = (
                f"the checkpoint after iteration {len(history)} could not be written: {error.strerror or error}{left}"
            )
            raise OSError(error.errno, text, str(self.path)) from error

    def _metadata(self, history: list[FitRecord], progress: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "model": self.kind,
            "settings": self.settings,
            "history": [dataclasses.asdict(record) for record in history],
            "validation": progress,
        }

    def exists(self) -> bool:
        """Whether the folder holds a checkpoint, or a saved model."""
        return (self.path / "model.json").exists()

    def begin(
        self, state: FitState, iterations: int, validation: Validation | None, *, resume: bool
    ) -> list[FitRecord]:
        """Write the first checkpoint, before hours are spent that could not be saved; or with `resume` bring the fit to
        where an earlier one was written.

        Returns
        -------
        list of FitRecord
            The iterations that the fit has behind it.

        Raises
        ------
        CheckpointError
            There is one and `resume` is false; or it is of a fit of other data or settings, has more than `iterations`
            behind it, or is no checkpoint.
        ModelFormatError
            It is damaged.
        OSError
            It cannot be written.
        """
        if not self.exists():
            self.save(state, [], validation)
            return []
        tensors, metadata = load_folder(self.path) if resume else ({}, {})
        try:
            history = self._checked(metadata, iterations, resume=resume)
            state.restore(_under("present/", tensors))
            if validation is not None:
                progress = metadata["validation"]
                best = _under("best/", tensors)
                if progress["best_iteration"] == len(history) > 0:
                    best = _under("present/", tensors)
                validation.resume(best, progress)
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            device = metadata.get("device", "cpu")
            if device != self.device:
                raise CheckpointError(
                    f"{self.path} holds a checkpoint that was written on another device: go on with device={device!r} "
                    f"(this is {self.device!r}), or begin from what it has reached with warm_start"
                ) from error
            raise ModelFormatError(f"{self.path} holds no checkpoint that this version can read: {error!r}") from error
        return history

    def _checked(self, metadata: Mapping[str, Any], iterations: int, *, resume: bool) -> list[FitRecord]:
        """The history of a checkpoint that is there, after a look at whose it is."""
        if not resume:
            raise CheckpointError(
                f"{self.path} holds a checkpoint, or a model: go on from a checkpoint (resume=True, or --resume), or "
                "give another folder"
            )
        if metadata.get("model") != self.kind:
            other = str(metadata.get("model"))
            own, kind = (self.kind, other) if "checkpoint" in other else ("checkpoint", f"{other} model")
            raise CheckpointError(f"{self.path} holds no {own} but a {kind}")
        self._compare(metadata["settings"])
        history = [FitRecord(**record) for record in metadata["history"]]
        if len(history) > iterations:
            raise CheckpointError(f"{self.path} has {len(history)} iterations behind it, more than {iterations}")
        return history

    def _compare(self, saved: Mapping[str, Any]) -> None:
        names = [name for name in {**self.settings, **saved} if self.settings.get(name) != saved.get(name)]
        if names:
            parts = [
                f"other {name}"
                if isinstance(saved.get(name), str) and len(saved[name]) == 64
                else f"{name} = {saved.get(name)!r} there, {self.settings.get(name)!r} here"
                for name in names
            ]
            raise CheckpointError(
                f"{self.path} holds the checkpoint of another fit: {'; '.join(parts)}. Resume with what it was begun "
                "with, or give another folder"
            )


def device_of_checkpoint(path: str | PathLike[str]) -> str | None:
    """The device that a checkpoint was written on; None where there is none that can be read."""
    try:
        metadata = json.loads((Path(path) / "model.json").read_bytes())
        return str(metadata["metadata"].get("device", "cpu"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fingerprint(matrix: csr_matrix, *ids: Ids | None) -> str:
    """SHA-256 of the content of a matrix and of the ids of its sides; the type of index arrays does not matter."""
    digest = hashlib.sha256(repr((matrix.shape, matrix.dtype.name)).encode())
    for array, dtype in ((matrix.indptr, np.int64), (matrix.indices, np.int32), (matrix.data, matrix.dtype)):
        for start in range(0, len(array), CHUNK):
            digest.update(np.ascontiguousarray(array[start : start + CHUNK], dtype).data)
    for side in ids:
        arrays = {} if side is None else side.to_arrays("ids")
        for name, array in arrays.items():
            digest.update(repr((name, array.shape, array.dtype.name)).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _under(prefix: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
