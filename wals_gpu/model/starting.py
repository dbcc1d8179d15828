"""Factors of a saved model, of which a fit that begins with them reads the rows that it needs.

:meth:`wals_gpu.WALS.fit` reads the model as a whole. A rank of a fit on several ones needs the rows of its own users
and items; those of its users lie in few of the parts that another fit on several ranks wrote, or in a range of the one
file of any other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wals_gpu.data.files import StoredTensors, load_metadata, open_folder, real_folder
from wals_gpu.data.ids import Ids
from wals_gpu.errors import ModelFormatError
from wals_gpu.model.files import SavedFactors, check_kind, unreadable
from wals_gpu.model.parts import USERS, place_of_users
from wals_gpu.training.plan import check_start_ids

__all__ = ["SavedStart", "ids_between"]


class _Piece(NamedTuple):
    """Rows `first` to before `stop` of a side."""

    tensors: StoredTensors
    first: int
    stop: int


class SavedStart:
    """The factors of a model in a folder, in one part or in several, of which nothing is read before it is asked for.

    Parameters
    ----------
    path : str or path
        Of the folder, or what leads to it.

    Attributes
    ----------
    folder : Path
        What the path led to.
    factors : int
        D.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ModelFormatError
        It holds no model, a damaged one, or one of a newer version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.folder = real_folder(path)
        self._metadata = load_metadata(self.folder)
        self._opened: list[StoredTensors] = []
        check_kind(self.folder, self._metadata)
        with unreadable(self.folder):
            self._saved = {side: SavedFactors.of(self._metadata, f"{side}_factors") for side in ("user", "item")}
            shape = self._metadata["objective"]
            self._n = {"user": int(shape["n_users"]), "item": int(shape["n_items"])}
            self.factors = int(self._saved["user"].width)

    def take_over(self, side: str, new: NDArray[np.floating], ids: Ids | None, first: int) -> None:
        """As :func:`.plan.take_over`; in memory are ids, and the rows between the first and the last that are needed.

        Parameters
        ----------
        side : {"user", "item"}
        new : (n, D)
            Written where the model has the row.
        ids : Ids, optional
            Of these rows.
        first : int

        Raises
        ------
        ValueError
            One has ids and the other none, or of another kind.
        ModelFormatError
            The model is damaged.
        """
        saved = self._saved[side]
        for piece in self._pieces(side, ids, slice(first, first + len(new))):
            with unreadable(self.folder):
                shape, dtype = piece.tensors.shape(saved.name), piece.tensors.rows(saved.name, 0, 0).dtype
                saved.check(shape, dtype, piece.stop - piece.first)
                own = self._ids(piece, side)
            check_start_ids(side, *(None if of_rows is None else of_rows.kind for of_rows in (ids, own)))
            if ids is None or own is None:
                place = np.arange(first, first + len(new)) - piece.first
                place[place >= piece.stop - piece.first] = -1
            else:
                place = np.asarray(own.find(ids.ids))
            there = np.flatnonzero(place >= 0)
            if len(there):
                start, stop = int(place[there[0]]), int(place[there[-1]]) + 1  # both in the order of ids
                rows = saved.restored(piece.tensors.rows(saved.name, start, stop))
                new[there] = rows[place[there] - start]

    @property
    def in_parts(self) -> bool:
        """Whether its users lie in several folders."""
        return "user_bounds" in self._metadata

    def kind(self, side: str) -> str | None:
        """Of the ids of a side: "integer" or "string"; None where it has none."""
        for piece in self._pieces(side, None, slice(0, self._n[side])):
            if f"{side}_ids" in piece.tensors:
                return "integer"
            return "string" if f"{side}_ids.utf8" in piece.tensors else None
        return None

    def users_between(self, ids: Ids | None, rows: slice) -> slice:
        """Row numbers of those of its users whose id is between the first and the last of some; without ids, of rows.

        Raises
        ------
        ModelFormatError
            The model is damaged.
        """
        n = self._n["user"]
        found: list[slice] = []
        if ids is None:
            return slice(min(rows.start, n), min(rows.stop, n))
        for piece in self._pieces("user", ids, rows):
            with unreadable(self.folder):
                own = self._ids(piece, "user")
            if own is not None:
                some = ids_between(own, ids)
                found.append(slice(piece.first + some.start, piece.first + some.stop))
        found = [some for some in found if some.start < some.stop] or [slice(0, 0)]
        return slice(found[0].start, found[-1].stop)

    def _shared(self) -> StoredTensors:
        """What is in the folder itself."""
        if not self._opened:
            tensors, metadata = open_folder(self.folder)
            if metadata != self._metadata:
                raise ModelFormatError(f"{self.folder} was replaced by another model while it was read")
            self._opened.append(tensors)
        return self._opened[0]

    def _ids(self, piece: _Piece, side: str) -> Ids | None:
        names = [name for name in _names_of_ids(side) if name in piece.tensors]
        ids = Ids.from_arrays({name: piece.tensors[name] for name in names}, f"{side}_ids", side)
        if ids is not None and len(ids) != piece.stop - piece.first:
            raise ValueError(f"{len(ids)} {side} ids for {piece.stop - piece.first} rows")
        return ids

    def _pieces(self, side: str, ids: Ids | None, rows: slice) -> Iterator[_Piece]:
        """Those that may have some of the rows; at least one, so that kinds of ids are compared on every rank."""
        if side == "item" or not self.in_parts:
            yield _Piece(self._shared(), 0, self._n[side])
            return
        with unreadable(self.folder):
            bounds, tag = [int(bound) for bound in self._metadata["user_bounds"]], str(self._metadata["user_parts"])
            firsts = self._metadata.get("user_firsts")  # earlier versions did not save them
            parts = [part for part in range(len(bounds) - 1) if bounds[part] < bounds[part + 1]]
            some = parts
            if ids is None:
                some = [part for part in parts if bounds[part] < rows.stop and rows.start < bounds[part + 1]]
            elif firsts is not None:
                of_parts = dict(zip(range(len(bounds) - 1), firsts, strict=True))
                some = _parts_with(ids, [(part, of_parts[part]) for part in parts])
        for part in some or parts[:1]:
            yield _Piece(_open_part(self.folder, part, tag), bounds[part], bounds[part + 1])


def ids_between(own: Ids, ids: Ids) -> slice:
    """Positions of ids between the first and the last of others; none where those are of another kind."""
    if not len(ids) or own.kind != ids.kind:
        return slice(0, 0)
    return slice(bisect_left(own, ids[0]), bisect_right(own, ids[-1]))


def _names_of_ids(side: str) -> list[str]:
    return [f"{side}_ids", f"{side}_ids.offsets", f"{side}_ids.utf8"]


def _parts_with(ids: Ids, firsts: list[tuple[int, Any]]) -> list[int]:
    """Parts, of which the first ids are known, in whose range some ids are; none where ids are of another kind."""
    kind = int if ids.kind == "integer" else str
    if not len(ids) or not all(isinstance(first, kind) for _, first in firsts):
        return []
    low, high = ids[0], ids[-1]
    ends = [first for _, first in firsts[1:]] + [None]
    return [
        part for (part, first), end in zip(firsts, ends, strict=True) if first <= high and (end is None or low < end)
    ]


def _open_part(folder: Path, rank: int, tag: str) -> StoredTensors:
    place = place_of_users(folder, rank, tag)
    if not place.exists():
        raise ModelFormatError(f"{place} is missing: the model lies in several parts, and this is one")
    tensors, metadata = open_folder(place)
    if metadata.get("model") != USERS:
        raise ModelFormatError(f"{place} must hold users of a model")
    return tensors
