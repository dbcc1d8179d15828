"""What a fit decides before it begins: data, objective, start values, what to watch and where to save."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.backends.devices import choose_backend
from wals_gpu.backends.session import Backend, Session
from wals_gpu.backends.solve import FitWork, SolveOptions
from wals_gpu.checks import flag, integer
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, Interactions, as_interactions
from wals_gpu.data.matching import in_kinds_of, places_of
from wals_gpu.data.stored import StoredMatrix, StoredTerms, as_stored
from wals_gpu.data.times import Period
from wals_gpu.evaluation.popularity import item_counts
from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.objective.terms import RowTerms, SideTerms, column_counts
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.priors.rows import RowsHere
from wals_gpu.priors.steps import PriorSteps
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration
from wals_gpu.training.checkpoints import Checkpoint, device_of_checkpoint, fingerprint
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.memory import FitSizes, check_memory, estimate_memory
from wals_gpu.training.neighbors import fit_neighbors
from wals_gpu.training.state import Side
from wals_gpu.training.validation import Validation, hold_out, parse_metric

__all__ = [
    "FitSettings", "HoldOut", "Plan", "Saving", "WarmStart", "check_start", "check_start_ids", "make_plan", "take_over",
]  # fmt: skip


@dataclass(frozen=True)
class FitSettings:
    """What a model says of its fits; :class:`wals_gpu.WALS` documents each."""

    factors: int
    objective: Objective
    iterations: int
    options: SolveOptions
    over_relaxation: float
    dtype: np.dtype
    random_state: int | np.random.Generator | None
    init_scale: float
    compute_loss: bool
    user_prior: LinearPrior | None
    item_prior: LinearPrior | None
    backend: Backend
    popularity_exponent: float | str = 0.0
    neighbors: int = 0
    neighbor_weight: float = 1.5
    neighbor_regularization: float = 20.0

    def check_device(self) -> None:
        """Refuse, with a :class:`.DeviceError`, what the device cannot do."""
        self.backend.check(factors=self.factors, dtype=self.dtype, options=self.options)

    def sizes(self, shape: tuple[int, int], n_entries: int, **more: Any) -> FitSizes:
        """Of a fit of interactions of a size; `more` are other fields of FitSizes."""
        priors, is_calibrated = (self.user_prior, self.item_prior), self.popularity_exponent != 0
        fixed = (shape, n_entries, self.factors, self.dtype, self.objective, self.options, priors)
        return FitSizes(*fixed, is_calibrated=is_calibrated, n_neighbors=self.neighbors, **more)

    def _of_neighbors(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("neighbors", "neighbor_weight", "neighbor_regularization")}

    def to_compare(self) -> dict[str, Any]:
        """What a resumed fit must have in common with the one that it goes on with; can be written as JSON."""
        name = self.objective.name
        of_objective = {
            f"{name} {parameter}": hashlib.sha256(value.data).hexdigest() if isinstance(value, np.ndarray) else value
            for parameter, value in self.objective.parameters().items()
        }
        solving = asdict(self.options)
        return {
            "objective": name,
            **of_objective,
            "factors": self.factors,
            **{option: solving[option] for option in ("solver", "cg_steps", "block_size")},
            "over_relaxation": self.over_relaxation,
            "init_scale": self.init_scale,
            "compute_loss": self.compute_loss,
            "dtype": self.dtype.name,
            "random_state": (
                self.random_state if isinstance(self.random_state, int) else type(self.random_state).__name__
            ),
            # Only where it is not what every fit of earlier versions had.
            **({"popularity_exponent": self.popularity_exponent} if self.popularity_exponent != 0 else {}),
            **(self._of_neighbors() if self.neighbors else {}),
            **{
                side: prior.fingerprint()
                for side, prior in (("item_prior", self.item_prior), ("user_prior", self.user_prior))
                if prior is not None
            },
        }


@dataclass(frozen=True)
class HoldOut:
    """What to validate a fit with; :meth:`wals_gpu.WALS.fit` documents each, `validation` None: nothing."""

    validation: Any = None
    metric: str = "ndcg@10"
    every: int = 1
    patience: int | None = None

    def check(self, settings: FitSettings) -> None:
        """TypeError or ValueError where something has no meaning, or cannot be done on the device."""
        if self.validation is None:
            if settings.popularity_exponent == "auto":
                raise ValueError(
                    'popularity_exponent="auto" needs validation, a share or held-out interactions: it is chosen by '
                    "what these are found with"
                )
            if (self.metric, self.every, self.patience) != ("ndcg@10", 1, None):
                message = "metric, validate_every and patience need validation: a share, or held-out interactions"
                raise ValueError(message)
            return
        integer("validate_every", self.every, 1, max(settings.iterations, 1))
        if self.patience is not None:
            integer("patience", self.patience, 1)
        settings.backend.check(k=parse_metric(self.metric)[1])


@dataclass(frozen=True)
class Saving:
    """Where to write checkpoints of a fit; :meth:`wals_gpu.WALS.fit` documents each, `folder` None: nowhere."""

    folder: str | PathLike[str] | None = None
    every: int = 1
    resume: bool = False

    def check(self, settings: FitSettings, holding: HoldOut) -> None:
        """TypeError or ValueError where something has no meaning, or a fit could not be resumed."""
        resume = flag("resume", self.resume)
        if self.folder is None and (self.every != 1 or resume):
            raise ValueError("checkpoint_every and resume need checkpoint_dir")
        is_share = isinstance(holding.validation, numbers.Real)
        if self.folder is not None and is_share and not isinstance(settings.random_state, int):
            raise ValueError(
                "checkpoint_dir with a share as validation needs an integer as random_state: a resumed fit has to hold "
                "out the same entries"
            )
        integer("checkpoint_every", self.every, 1)


@dataclass(frozen=True, eq=False)
class WarmStart:
    """What to start from.

    Parameters
    ----------
    is_wanted : bool, default False
        A fit can be resumed with the same answer only.
    fitted : Fitted, optional
        Has the factors, matched by id, or by row number without ids; other rows start at random. None: all do.
    """

    is_wanted: bool = False
    fitted: Fitted | None = None

    def check(self, settings: FitSettings) -> None:
        """ValueError where the factors cannot be those of the fit."""
        if self.fitted is not None:
            check_start(settings.factors, self.fitted.factors)


def check_start(wanted: int, found: int) -> None:
    """ValueError unless the model to start from has as many factors as the fit."""
    if found != wanted:
        raise ValueError(
            f"warm_start needs a model of as many factors: it has {found}, this fit {wanted}; factors={found} makes "
            "them the same"
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """A fit that can begin: nothing of it has changed the model yet.

    Parameters
    ----------
    settings : FitSettings
    train : (U, I) csr_matrix or StoredMatrix
    bound : BoundObjective
        The objective of `train`.
    users, items : Side
        With start values.
    validation : Validation, optional
    checkpoint : Checkpoint, optional
    resume : bool, default False
        Whether to go on from the checkpoint that is there.
    columns : ColumnNames, optional
        Of the table that the interactions came from.
    calibration : Calibration, optional
        Of the scores, where the exponent is a number other than 0.
    neighbors : Neighbors, optional
        What is added to the dot products.
    session : Session, optional
        Of these sides, open already: where they lie on several machines. None: the backend opens one.
    device : str
        What the fit computes on, and why.
    period : Period, optional
        The earliest and the latest time of the interactions, where they have times.
    """

    settings: FitSettings
    train: Any
    bound: BoundObjective
    users: Side
    items: Side
    validation: Validation | None = None
    checkpoint: Checkpoint | None = None
    resume: bool = False
    columns: ColumnNames | None = None
    calibration: Calibration | None = None
    neighbors: Neighbors | None = None
    session: Session | None = None
    device: str = ""
    period: Period | None = None


def make_plan(
    settings: FitSettings,
    interactions: Any,
    columns: Mapping[str, Any],
    holding: HoldOut,
    saving: Saving,
    start: WarmStart,
) -> Plan:
    """Read and check all that a fit needs.

    Parameters
    ----------
    settings : FitSettings
    interactions : matrix (U, I), DataFrame, Arrow table, path, Interactions or StoredMatrix
    columns : mapping
        ``user_column``, ``item_column``, ``value_column`` of a table.
    holding : HoldOut
    saving : Saving
    start : WarmStart

    Returns
    -------
    Plan

    Raises
    ------
    DataError, TypeError, ValueError
        Something cannot be used.
    MemoryError
        The fit cannot have the memory that it needs.
    """
    settings.check_device()
    holding.check(settings)
    saving.check(settings, holding)
    start.check(settings)
    data = as_stored(interactions, settings.dtype, columns)
    if data is not None and settings.neighbors:
        raise TypeError("stored interactions cannot be fitted with neighbors: give the table, or set neighbors=0")
    if data is None:
        # Ratings are what the objective "explicit" is for.
        wanted = {"warn_ratings": settings.objective.name != "explicit"} | dict(columns)
        data = as_interactions(interactions, dtype=settings.dtype, **wanted)
        data = in_kinds_of(data, *(_known_ids(side, settings, start.fitted) for side in ("user", "item")))
    train, validation = data.matrix, None
    if holding.validation is not None:
        train, test = hold_out(data, holding.validation, settings.random_state, settings.dtype, columns)
    sizes = _sizes_of(settings, train, holding.validation is not None)
    settings, device = _on_device(settings, sizes, holding, saving)
    check_memory(estimate_memory(sizes, settings.backend))
    calibration = None
    if settings.popularity_exponent not in (0, "auto"):
        calibration = Calibration.of(float(settings.popularity_exponent), item_counts(train))
    neighbors = None
    if settings.neighbors:
        neighbors = fit_neighbors(
            train, settings.neighbors, settings.neighbor_weight, settings.neighbor_regularization, settings.backend
        )
    if holding.validation is not None:
        validation = Validation(
            settings.backend,
            train,
            test,
            holding.metric,
            holding.every,
            holding.patience,
            cold_get_popular=settings.user_prior is None,
            calibration=calibration,
            neighbors=neighbors,
        )
    bound, terms = _bind(settings, train)
    factors = _start_values(settings, data, start.fitted)
    of_users = Side("user", terms[0], factors[0], data.user_ids)
    of_items = Side("item", terms[1], factors[1], data.item_ids)
    for side, prior in ((of_users, settings.user_prior), (of_items, settings.item_prior)):
        if prior is not None:
            side.prior = _begin_prior(settings, side, prior, start.is_wanted)
    checkpoint = None
    if saving.folder is not None:
        compared = _to_compare(settings, data, validation, start.is_wanted)
        checkpoint = Checkpoint(saving.folder, saving.every, compared, settings.backend.name)
    resume = flag("resume", saving.resume)
    watching = (validation, checkpoint, resume)
    return Plan(
        settings, train, bound, of_users, of_items, *watching, data.columns, calibration, neighbors,
        device=device, period=Period.of(data.times),
    )  # fmt: skip


def _on_device(settings: FitSettings, sizes: FitSizes, holding: HoldOut, saving: Saving) -> tuple[FitSettings, str]:
    """The settings with the device that the fit computes on, and why."""
    k = None if holding.validation is None else parse_metric(holding.metric)[1]
    before = device_of_checkpoint(saving.folder) if saving.resume and saving.folder is not None else None
    work = FitWork((sizes.of_side(0), sizes.of_side(1)), settings.options, settings.iterations, k, before)
    backend, device = choose_backend(settings.backend, work)
    return replace(settings, backend=backend), device


def _sizes_of(settings: FitSettings, train: Any, validation: bool) -> FitSizes:
    if isinstance(train, StoredMatrix):
        return settings.sizes(train.shape, train.nnz, validation=validation, block_bytes=train.block_bytes)
    values = (train.data.min(), train.data.max())
    return settings.sizes(train.shape, train.nnz, validation=validation, values=values)


def _bind(settings: FitSettings, train: Any) -> tuple[BoundObjective, tuple[SideTerms, SideTerms]]:
    """The objective of the training matrix, and the terms of users and items."""
    if isinstance(train, StoredMatrix):
        if settings.user_prior is not None or settings.item_prior is not None:
            raise TypeError("stored interactions cannot be fitted with priors: give the table, or fit without")
        bound = train.bind(settings.objective)
        return bound, (StoredTerms(bound, train, "user"), StoredTerms(bound, train, "item"))
    # Without the background of rows that nobody can have met yet by the setting of their prior.
    unmet = {}
    if settings.user_prior is not None and settings.user_prior.cold != "map":
        unmet["users"] = np.diff(train.indptr) == 0
    if settings.item_prior is not None and settings.item_prior.cold != "map":
        unmet["items"] = column_counts(train) == 0
    bound = settings.objective.bind(train).without_background(**unmet)
    return bound, (bound.user_terms(train), bound.item_terms(settings.backend.transpose(train)))


def _begin_prior(settings: FitSettings, side: Side, prior: LinearPrior, warm_start: bool) -> PriorSteps:
    assert isinstance(side.terms, RowTerms)  # priors on stored interactions were refused before
    raw, backend = prior.rows_for(side.name, side.ids, len(side.factors)), settings.backend
    steps = PriorSteps.begin(prior, raw, side.terms, backend, RowsHere(len(raw), backend), settings.factors)
    if warm_start:
        steps.regress(side.factors)
    return steps


def _known_ids(side: str, settings: FitSettings, start: Fitted | None) -> Ids | None:
    """Those that the rows of a side are found by: of the prior's embeddings, else of the earlier factors."""
    prior: LinearPrior | None = getattr(settings, f"{side}_prior")
    if prior is not None and prior.ids is not None:
        return prior.ids
    earlier: Ids | None = getattr(start, f"{side}_ids", None)
    return earlier


def _start_values(
    settings: FitSettings, data: Interactions, start: Fitted | None
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Of both sides: random, or where `start` has the id, its factors."""
    rng = settings.random_state
    if not isinstance(rng, np.random.Generator):
        rng = np.random.default_rng(rng)
    deviation = settings.dtype.type(settings.init_scale / np.sqrt(settings.factors))
    drawn = []
    for side, rows in zip(("user", "item"), data.matrix.shape, strict=True):
        new = settings.backend.empty_factors(rows, settings.factors, settings.dtype)
        rng.standard_normal(dtype=settings.dtype, out=new)
        new *= deviation
        if start is not None:
            old, old_ids = getattr(start, f"{side}_factors"), getattr(start, f"{side}_ids")
            take_over(new, getattr(data, f"{side}_ids"), old, old_ids, as_text=data.text_ids)
        drawn.append(new)
    return drawn[0], drawn[1]


def take_over(
    new: NDArray[np.floating],
    ids: Ids | None,
    old: NDArray[np.floating],
    old_ids: Ids | None,
    first: int = 0,
    *,
    as_text: bool = False,
) -> None:
    """Write the old factors of a side where their rows are now; `new` begins with row number `first`.

    `as_text`: the ids are of a file of text, whose numbers may be texts earlier, or the other way round.

    Raises
    ------
    DataError, ValueError
        One has ids and the other none, or of another kind.
    """
    kinds = [None if of_rows is None else of_rows.kind for of_rows in (ids, old_ids)]
    if not (as_text and None not in kinds):
        check_start_ids("row" if ids is None else ids.side, *kinds)
    if ids is None or old_ids is None:
        some = old[first : first + len(new)]
        new[: len(some)] = some
        return
    place = places_of("the new interactions", ids, old_ids, "the earlier ones", as_text)
    new[place >= 0] = old[place[place >= 0]]


def check_start_ids(side: str, now: str | None, before: str | None) -> None:
    """ValueError unless the rows of a side have ids of one kind, or none, in the fit and in the model to start from."""
    if (now is None) != (before is None):
        raise ValueError("warm_start: the new interactions have ids and the earlier ones none, or the reverse")
    if now != before:
        raise ValueError(f"warm_start: {side} ids are {now}s, the earlier ones {before}s")


def _to_compare(
    settings: FitSettings, data: Interactions, validation: Validation | None, warm_start: bool
) -> dict[str, Any]:
    """What a resumed fit must have in common with the one that it goes on with."""
    compared = {
        "data": fingerprint(data.matrix, data.user_ids, data.item_ids),
        "stored data": isinstance(data.matrix, StoredMatrix),
        **settings.to_compare(),
        "warm_start": warm_start,
    }
    if validation is not None:
        compared |= {name: getattr(validation, name) for name in ("metric", "every", "patience")}
        compared |= {"validation data": fingerprint(validation.test)}
    return compared
