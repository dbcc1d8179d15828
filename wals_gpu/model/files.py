"""Models as folders: what is written of one, and what is checked of one that is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend
from wals_gpu.checks import number
from wals_gpu.data.files import load_folder, real_folder, save_folder
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames
from wals_gpu.data.times import Period
from wals_gpu.errors import DeviceError, ModelFormatError
from wals_gpu.model.card import Measured, Sizes, model_card
from wals_gpu.model.parts import joined
from wals_gpu.objective.presets import bound_from_arrays
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration, check_exponent
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.state import FitRecord, History

__all__ = [
    "FACTORS", "SavedFactors", "SavedModel", "check_kind", "from_tensors", "half_exponent", "is_in_halves", "largest",
    "read_model", "to_tensors", "unreadable", "write_model",
]  # fmt: skip

FACTORS = ("user_factors", "item_factors")


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What the folder of a model holds.

    Parameters
    ----------
    settings : dict
        Arguments of :class:`wals_gpu.WALS` but for its objective, priors, device and threads.
    fitted : Fitted
    history : list of FitRecord
    metric : str, optional
        What the fit was validated with, if it was.
    best_iteration : int, optional
    measured : Measured, optional
        What lists of the model were measured to be.
    """

    settings: dict[str, Any]
    fitted: Fitted
    history: History
    metric: str | None = None
    best_iteration: int | None = None
    measured: Measured | None = None


#: Of each side, the power of two that float16 keeps its factors times.
Exponents = Mapping[str, int]


def write_model(path: str | PathLike[str], saved: SavedModel, *, in_halves: bool = False) -> None:
    """Write a model to a folder, in place of one that is there; see :meth:`wals_gpu.WALS.save`.

    `in_halves` rounds the factors to float16. What the folder says of the model stays the same.
    """
    fitted = saved.fitted
    exponents: dict[str, int] | None = None
    if in_halves:
        exponents = {name: half_exponent(largest(getattr(fitted, name))) for name in FACTORS}
    tensors, metadata = to_tensors(saved, exponents)
    assert fitted.seen is not None
    sizes = Sizes(fitted.n_users, fitted.n_items, int(fitted.seen.nnz))
    save_folder(path, tensors, metadata, card=model_card(sizes, metadata))


def is_in_halves(dtype: Any) -> bool:
    """Whether factors are to be saved as float16; ValueError where `dtype` is neither that nor None."""
    if dtype is not None and not (isinstance(dtype, str) and dtype == "float16"):
        raise ValueError(f"dtype must be 'float16', or None for that of the model, got {dtype!r}")
    return dtype is not None


def to_tensors(saved: SavedModel, exponents: Exponents | None = None) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays, and what can be written as JSON, that :func:`from_tensors` makes a model of.

    With `exponents`, see :func:`half_exponent`, the factors are rounded to float16.
    """
    fitted = saved.fitted
    assert fitted.bound is not None and fitted.seen is not None
    arrays, objective = fitted.bound.to_arrays()
    # Whoever assigned user factors may have given them another type than the items have, which answers are computed in.
    user_factors = fitted.user_factors.astype(fitted.dtype, copy=False)
    tensors: dict[str, NDArray[Any]] = {"user_factors": user_factors, "item_factors": fitted.item_factors}
    if exponents is not None:
        tensors |= {name: _to_halves(tensors[name], exponents[name]) for name in FACTORS}
    tensors |= {f"objective/{name}": array for name, array in arrays.items()}
    tensors |= {"seen.row_ptr": fitted.seen.indptr.astype(np.int64), "seen.col_idx": np.asarray(fitted.seen.indices)}
    if fitted.seen.dtype != bool:
        value = np.asarray(fitted.seen.data)
        tensors["seen.value"] = value[:1] if value.size and value.min() == value.max() else value
    for name, ids in (("user_ids", fitted.user_ids), ("item_ids", fitted.item_ids)):
        if ids is not None:
            tensors |= ids.to_arrays(name)
    priors = {}
    for name, prior in (("item_prior", fitted.item_prior), ("user_prior", fitted.user_prior)):
        if prior is not None:
            arrays, priors[name] = prior.to_arrays(name)
            tensors |= arrays
    metadata: dict[str, Any] = {
        "model": "WALS",
        "objective": objective,
        "settings": saved.settings,
        "history": [dataclasses.asdict(record) for record in saved.history],
    }
    if fitted.calibration is not None:
        tensors["item_counts"] = fitted.calibration.counts
        metadata["calibration"] = {
            "exponent": fitted.calibration.exponent,
            "typical": fitted.calibration.typical,
        }
    if fitted.neighbors is not None:
        weights = fitted.neighbors.weights
        tensors |= {"neighbors.row_ptr": weights.indptr.astype(np.int64), "neighbors.value": weights.data}
        tensors["neighbors.col_idx"] = weights.indices.astype(np.int32)
    if exponents is not None:
        metadata["halves"] = dict(exponents)
    if priors:
        metadata["priors"] = priors
    if fitted.columns is not None and all(name is None or isinstance(name, str) for name in fitted.columns):
        metadata["columns"] = fitted.columns._asdict()
    if fitted.counts is not None:
        tensors["popularity"] = fitted.counts
    if fitted.period is not None:
        metadata["period"] = fitted.period.to_json()
    if saved.measured is not None:
        metadata["measured"] = saved.measured.to_json()
    if saved.metric is not None:
        metadata["validation"] = {"metric": saved.metric, "best_iteration": saved.best_iteration}
    return tensors, metadata


def read_model(path: str | PathLike[str], backend: Backend, users: slice | None = None) -> SavedModel:
    """Read and check a folder that :func:`write_model`, an earlier version, or a fit on several ranks wrote.

    `users` are the rows to read of a model that lies in several parts; None: all.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ModelFormatError
        It holds no model, a damaged one, or one of a newer version.
    ValueError
        `users` of a model that lies in one part, or of none.
    """
    while True:
        folder = real_folder(path)
        try:
            return _read_folder(folder, backend, users)
        except (FileNotFoundError, ModelFormatError):
            if real_folder(path) == folder:
                raise
            # What the name leads to was replaced, and removed, meanwhile: read what it leads to now.


def _read_folder(path: Path, backend: Backend, users: slice | None) -> SavedModel:
    tensors, metadata = load_folder(path)
    check_kind(path, metadata)
    if "user_bounds" in metadata:
        tensors, metadata = joined(path, tensors, metadata, users)
    elif users is not None:
        raise ValueError(f"users: the model in {path} lies in one part, which is read as a whole")
    return from_tensors(path, tensors, metadata, backend)


def check_kind(path: str | PathLike[str], metadata: Mapping[str, Any]) -> None:
    """ModelFormatError where a folder holds a checkpoint."""
    if "checkpoint" in str(metadata.get("model")):
        raise ModelFormatError(f"{path} holds a checkpoint of a fit, not a model: go on with fit(..., resume=True)")


def from_tensors(
    path: str | PathLike[str], tensors: dict[str, NDArray[Any]], metadata: Mapping[str, Any], backend: Backend
) -> SavedModel:
    """What :func:`to_tensors` took apart, checked; `path` is for texts of errors."""
    with unreadable(path):
        bound = bound_from_arrays(
            {name.split("/", 1)[1]: array for name, array in tensors.items() if name.startswith("objective/")},
            metadata["objective"],
        )
        settings, shape = dict(metadata["settings"]), (bound.n_users, bound.n_items)
        for name, n in zip(FACTORS, shape, strict=True):
            saved = SavedFactors.of(metadata, name)
            saved.check(tensors[name].shape, tensors[name].dtype, n)
            tensors[name] = saved.restored(tensors[name])
        width = settings["factors"]
        users, items = (tensors[name] for name in FACTORS)
        user_ids, item_ids = (Ids.from_arrays(tensors, f"{side}_ids", side) for side in ("user", "item"))
        for of_side, n in zip((user_ids, item_ids), shape, strict=True):
            if of_side is not None and len(of_side) != n:
                raise ValueError(f"{len(of_side)} {of_side.side} ids for {n} rows")
        seen = _read_seen(tensors, shape)
        priors = _read_priors(tensors, metadata, shape, width)
        history = History(FitRecord(**record) for record in metadata["history"])
        validation = metadata.get("validation", {"metric": None, "best_iteration": None})
        metric, best_iteration = validation["metric"], validation["best_iteration"]
        columns = _read_columns(metadata.get("columns"))
        calibration = _read_calibration(tensors, metadata.get("calibration"), shape[1])
        neighbors = _read_neighbors(tensors, shape[1])
        period = None if metadata.get("period") is None else Period.from_json(metadata["period"])
        measured = None if metadata.get("measured") is None else Measured.from_json(metadata["measured"])
        counts = _read_popularity(tensors, shape[1])
    users.flags.writeable = items.flags.writeable = False  # answers may keep what they computed from them
    sides = (users, items, user_ids, item_ids)
    of_priors = (priors["user_prior"], priors["item_prior"])
    fitted = Fitted(backend, *sides, bound, seen, *of_priors, columns, calibration, neighbors, period, counts)
    return SavedModel(settings, fitted, history, metric, best_iteration, measured)


@dataclass(frozen=True)
class SavedFactors:
    """How the factors of a side lie in a file.

    Parameters
    ----------
    name : {"user_factors", "item_factors"}
    width : int
        D.
    dtype : dtype
        Of the model.
    exponent : int, optional
        Of the power of two that they are times, as float16; None: they are as they were.
    """

    name: str
    width: int
    dtype: np.dtype[Any]
    exponent: int | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any], name: str) -> SavedFactors:
        """As ``model.json`` says; KeyError, TypeError or ValueError where it makes no sense."""
        settings, exponents = metadata["settings"], metadata.get("halves")
        if settings["dtype"] not in ("float32", "float64"):  # not for NumPy, which raises SyntaxError for some texts
            raise ValueError(f"dtype must be 'float32' or 'float64', got {settings['dtype']!r}")
        exponent = None if exponents is None else _checked_exponents(exponents)[name]
        return cls(name, settings["factors"], np.dtype(settings["dtype"]), exponent)

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> None:
        """ValueError unless an array is one of n rows of these factors."""
        stored = self.dtype if self.exponent is None else np.dtype(np.float16)
        if shape != (n, self.width) or dtype != stored:
            raise ValueError(f"{self.name} must be {stored} ({n}, {self.width}), got {dtype} {shape}")

    def restored(self, rows: NDArray[np.floating]) -> NDArray[np.floating]:
        """Factors in the type of the model."""
        return rows if self.exponent is None else _from_halves(rows, self.exponent, self.dtype)


def largest(factors: NDArray[np.floating]) -> float:
    """The largest absolute value of factors; 0 where there are none."""
    return max(float(factors.max(initial=0)), -float(factors.min(initial=0)))


def half_exponent(most: float) -> int:
    """Of the power of two times which factors are kept as float16: `most`, the largest, is just in range.

    What is below 2^-29 of the largest keeps fewer than float16's eleven bits.
    """
    return 15 - math.frexp(most)[1] if most > 0 else 0


def _to_halves(factors: NDArray[np.floating], exponent: int) -> NDArray[np.float16]:
    """Factors times a power of two, as float16."""
    halves = np.empty(factors.shape, np.float16)
    for rows in _blocks(factors):
        halves[rows] = np.ldexp(factors[rows], exponent)
    return halves


def _from_halves(halves: NDArray[np.float16], exponent: int, dtype: np.dtype) -> NDArray[np.floating]:
    """What :func:`_to_halves` rounded."""
    factors = np.empty(halves.shape, dtype)
    with np.errstate(over="ignore", under="ignore"):  # of a file that no save wrote
        for rows in _blocks(factors):
            factors[rows] = np.ldexp(halves[rows].astype(dtype), -exponent)
    return factors


def _blocks(factors: NDArray[np.floating]) -> Iterator[slice]:
    """Rows of about 16 MiB: a conversion needs no second copy of all factors."""
    step = max(1, (1 << 24) // max(1, factors.shape[1] * factors.itemsize))
    return (slice(start, start + step) for start in range(0, len(factors), step))


def _checked_exponents(saved: Any) -> dict[str, int]:
    """Of each side; float64 has exponents of up to some 1,100."""
    exponents = {name: saved[name] for name in FACTORS}
    if any(type(exponent) is not int or abs(exponent) > 1_200 for exponent in exponents.values()):
        raise ValueError(f"exponents of halves must be integers from -1200 to 1200, got {exponents}")
    return exponents


@contextmanager
def unreadable(path: str | PathLike[str]) -> Iterator[None]:
    """What goes wrong within is a :class:`.ModelFormatError` that names the folder."""
    try:
        yield
    except DeviceError:  # nothing is wrong with the folder
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(f"{path} is not a model that this version can read: {error}") from error


def _read_columns(saved: Any) -> ColumnNames | None:
    """The names of the columns; earlier versions did not save them."""
    if saved is None:
        return None
    columns = ColumnNames(**saved)
    for name in columns:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"names of columns must be text, got {name!r}")
    return columns


def _read_calibration(tensors: Mapping[str, NDArray[Any]], saved: Any, n_items: int) -> Calibration | None:
    """What scores are multiplied by; models without, and those of earlier versions, have nothing of it."""
    if saved is None:
        return None
    exponent = check_exponent("calibration.exponent", saved["exponent"])
    typical = number("calibration.typical", saved["typical"], positive=True)
    counts = tensors["item_counts"]
    if counts.shape != (n_items,) or counts.dtype != np.int64 or (counts < 0).any():
        raise ValueError(f"item_counts must be {n_items} int64 from 0, got {counts.dtype} {counts.shape}")
    return Calibration(exponent, counts, typical)


def _read_popularity(tensors: Mapping[str, NDArray[Any]], n_items: int) -> NDArray[np.int64] | None:
    """Counts of items whose users are not in the file; most files have all that they were counted from."""
    counts = tensors.get("popularity")
    if counts is not None and (counts.shape != (n_items,) or counts.dtype != np.int64 or (counts < 0).any()):
        raise ValueError(f"popularity must be {n_items} int64 from 0, got {counts.dtype} {counts.shape}")
    return counts


def _read_neighbors(tensors: Mapping[str, NDArray[Any]], n_items: int) -> Neighbors | None:
    """What items add to the scores of others; most models have nothing."""
    if "neighbors.value" not in tensors:
        return None
    value, col_idx, row_ptr = (tensors[f"neighbors.{name}"] for name in ("value", "col_idx", "row_ptr"))
    weights = csr_matrix((value, col_idx, row_ptr), shape=(n_items, n_items))
    weights.check_format(full_check=True)
    if value.dtype != np.float32 or not np.isfinite(value).all() or not weights.has_canonical_format:
        raise ValueError("neighbors must be a matrix of finite float32 with sorted rows")
    return Neighbors(weights)


def _read_seen(tensors: Mapping[str, NDArray[Any]], shape: tuple[int, int]) -> csr_matrix:
    """The training interactions."""
    col_idx = tensors["seen.col_idx"]
    value = tensors.get("seen.value", np.ones(1, np.bool_))  # earlier versions did not save the values
    value = np.full(len(col_idx), value[0]) if len(value) == 1 else value
    seen = csr_matrix((value, col_idx, tensors["seen.row_ptr"]), shape=shape)
    seen.check_format(full_check=True)
    if np.any(np.diff(seen.indptr) < 0) or not seen.has_canonical_format:
        raise ValueError("seen.row_ptr and seen.col_idx are no matrix with sorted rows")
    return seen


def _read_priors(
    tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any], shape: tuple[int, int], factors: int
) -> dict[str, FittedPrior | None]:
    priors: dict[str, FittedPrior | None] = {"user_prior": None, "item_prior": None}
    for name, settings in dict(metadata.get("priors", {})).items():
        prior = FittedPrior.from_arrays(tensors, name, settings)
        n = {"user_prior": shape[0], "item_prior": shape[1]}[name]
        if prior.weights.shape[1] != factors or prior.mean is None or len(prior.mean) != n:
            raise ValueError(f"{name} does not fit {n} rows of {factors} factors")
        priors[name] = prior
    return priors
