"""Models whose users lie in several folders: written by the ranks of a fit, read as a whole or in part.

``model.json`` and its tensors hold what all users share, where the rows of each part end, and the first id of each;
``users-<r>-<tag>/`` what rank r has of its users. Each is written whole (:mod:`wals_gpu.data.files`), the shared part
last; the tag is of one save alone, so that the parts of a model that is there before stay as they are until the new one
is whole.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.data.files import load_folder, load_metadata, save_folder
from wals_gpu.data.ids import Ids
from wals_gpu.errors import ModelFormatError

__all__ = [
    "USERS", "forget_users", "is_of_users", "joined", "missing_users", "place_of_users", "write_shared", "write_users",
]  # fmt: skip

#: What ``model.json`` of a part says that it is.
USERS = "users of WALS"
_LEARNED = ("objective/learned.user_weights", "objective/learned.user_background")
_OF_USERS = ("user_factors", "user_prior/mean", "user_prior/strength")

Tensors = Mapping[str, NDArray[Any]]


def is_of_users(name: str, tensors: Tensors) -> bool:
    """Whether a tensor of a model has a row for each user."""
    if name in _LEARNED:  # one number for all, or one for each: of a part with a single user, which is not to be seen
        return len(tensors[name]) != 1 or len(tensors["user_factors"]) == 1
    return name in _OF_USERS or name.startswith(("user_ids", "seen."))


def place_of_users(folder: Path, rank: int, tag: str) -> Path:
    """The folder of a part."""
    return folder / f"users-{rank}-{tag}"


def write_users(folder: Path, rank: int, tag: str, tensors: Tensors) -> None:
    """Write what a rank has of its users, of the tensors of its own model."""
    own = {name: array for name, array in tensors.items() if is_of_users(name, tensors)}
    save_folder(place_of_users(folder, rank, tag), own, {"model": USERS})


def forget_users(folder: Path, rank: int, tag: str) -> None:
    """Remove a part of a save that failed, unless it is of the model that is there all the same."""
    with contextlib.suppress(ModelFormatError, OSError):
        if load_metadata(folder).get("user_parts") == tag:
            return
    shutil.rmtree(place_of_users(folder, rank, tag), ignore_errors=True)


def missing_users(folder: Path, tag: str, size: int) -> list[int]:
    """Ranks of which no part is to be seen here."""
    return [rank for rank in range(size) if not place_of_users(folder, rank, tag).is_dir()]


def write_shared(
    folder: Path,
    tag: str,
    tensors: Tensors,
    metadata: Mapping[str, Any],
    bounds: list[int],
    firsts: list[Any],
    card: str | None = None,
) -> None:
    """Write what all users share, once their parts are on the disk, in place of a model that is there.

    `bounds` are of the rows of the parts, `firsts` the first id of each, None where it has none.
    """
    shared = {name: array for name, array in tensors.items() if not is_of_users(name, tensors)}
    objective = {**metadata["objective"], "n_users": bounds[-1]}
    of_parts = {"objective": objective, "user_bounds": bounds, "user_parts": tag, "user_firsts": firsts}
    save_folder(folder, shared, {**metadata, **of_parts}, card=card)
    for other in folder.glob("users-*"):
        if not other.name.endswith(f"-{tag}"):
            shutil.rmtree(other, ignore_errors=True)


def joined(
    folder: Path, shared: Tensors, metadata: Mapping[str, Any], users: slice | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Tensors and metadata of a model of some users, by default of all.

    Raises
    ------
    ModelFormatError
        A part is missing, damaged, or not of as many users.
    ValueError
        `users` are none of the model.
    """
    bounds, tag = metadata["user_bounds"], metadata["user_parts"]
    start, stop, step = (slice(None) if users is None else users).indices(bounds[-1])
    if step != 1 or start >= stop:
        raise ValueError(f"users must be a range of rows in [0, {bounds[-1]}), got {users}")
    parts = []
    for rank, (first, last) in enumerate(pairwise(bounds)):
        if max(first, start) < min(last, stop):
            parts.append(
                _part(place_of_users(folder, rank, tag), last - first, max(start - first, 0), min(stop, last) - first)
            )
    names = [name for name in parts[0] if not name.startswith(("user_ids", "seen."))]
    if stop - start == bounds[-1]:  # counted again from the users that are there, as these may change
        shared = {name: array for name, array in shared.items() if name != "popularity"}
    tensors = {**shared, **{name: np.concatenate([part[name] for part in parts]) for name in names}}
    ids = [Ids.from_arrays(part, "user_ids", "user") for part in parts]
    if ids[0] is not None:
        tensors |= Ids(_concatenated(ids), "user").to_arrays("user_ids")
    tensors |= _joined_seen(parts)
    return tensors, {**metadata, "objective": {**metadata["objective"], "n_users": stop - start}}


def _part(folder: Path, n: int, start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Tensors of rows `start` to before `stop` of a part, which has n."""
    if not folder.exists():
        raise ModelFormatError(f"{folder} is missing: the model lies in several parts, and this is one")
    tensors, metadata = load_folder(folder)
    row_ptr = tensors.get("seen.row_ptr", np.zeros(0, np.int64))
    if metadata.get("model") != USERS or len(tensors["user_factors"]) != n or len(row_ptr) != n + 1:
        raise ModelFormatError(f"{folder} must hold the part of a model with {n} users")
    if (start, stop) == (0, n):
        return tensors
    first, last = row_ptr[start], row_ptr[stop]
    some = {name: array[start:stop] for name, array in tensors.items() if not name.startswith(("user_ids", "seen."))}
    some |= {"seen.row_ptr": row_ptr[start : stop + 1] - first, "seen.col_idx": tensors["seen.col_idx"][first:last]}
    if "seen.value" in tensors:
        value = tensors["seen.value"]
        some["seen.value"] = value if len(value) == 1 else value[first:last]
    ids = Ids.from_arrays(tensors, "user_ids", "user")
    if ids is not None:
        some |= ids.subset(np.arange(start, stop)).to_arrays("user_ids")
    return some


def _concatenated(ids: list[Ids | None]) -> Any:
    values = [pa.array(one) for one in ids]
    if not pa.types.is_integer(values[0].type):
        return pa.concat_arrays(values)
    # int64 where all of a part's ids fit, uint64 in other parts: together uint64, not float64.
    kind = np.uint64 if any(pa.types.is_uint64(part.type) for part in values) else np.int64
    return np.concatenate([part.to_numpy().astype(kind, copy=False) for part in values])


def _joined_seen(parts: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    pointers, columns, values, end = [np.zeros(1, np.int64)], [], [], 0
    has_values = "seen.value" in parts[0]
    for part in parts:
        columns.append(part["seen.col_idx"])
        pointers.append(part["seen.row_ptr"][1:] + end)
        end += len(columns[-1])
        if has_values:
            values.append(np.broadcast_to(part["seen.value"], len(columns[-1])))
    seen = {"seen.row_ptr": np.concatenate(pointers), "seen.col_idx": np.concatenate(columns)}
    return seen | ({"seen.value": np.concatenate(values)} if has_values else {})
