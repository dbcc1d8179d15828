"""A fit on several ranks: the plan of one machine with sides that lie on all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import secrets
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.devices import limits
from wals_gpu.checks import flag, integer
from wals_gpu.data.csr import select
from wals_gpu.data.files import version_of
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import check_columns, in_kinds_of, is_paths, is_table
from wals_gpu.data.stored import as_stored
from wals_gpu.distributed.checkpoint import ShardedCheckpoint
from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.device import DeviceRows, device_of_rank
from wals_gpu.distributed.group import Group, LocalGroup, agree, gather_json, gather_uneven, of_each, together
from wals_gpu.distributed.model import ShardedModel
from wals_gpu.distributed.priors import RowsOnRanks
from wals_gpu.distributed.read import read_sharded, read_validation, some_entries
from wals_gpu.distributed.session import ShardedSession, ShardedTerms
from wals_gpu.distributed.shards import Shards, shard
from wals_gpu.distributed.start import Start
from wals_gpu.distributed.tables import MODES
from wals_gpu.distributed.users import UsersOnRanks
from wals_gpu.distributed.validation import ShardedValidation
from wals_gpu.model.sharded import fit_settings
from wals_gpu.model.wals import WALS
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.priors.steps import PriorSteps
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.training.calibration import Calibration
from wals_gpu.training.checkpoints import fingerprint
from wals_gpu.training.loop import Run
from wals_gpu.training.neighbors import as_neighbors, owned_by, regressions
from wals_gpu.training.plan import FitSettings, HoldOut, Plan, Saving
from wals_gpu.training.state import FitRecord, History, Side
from wals_gpu.training.validation import checked_share, generator_of_holdout, hold_out, none_left

__all__ = ["OwnFactors", "fit_rows", "fit_sharded", "read_for"]

#: Start values that are drawn at a time.
_DRAWN = 1 << 16


def fit_sharded(
    model: WALS,
    interactions: Any,
    group: Group | None = None,
    *,
    warm_start: bool | WALS | str | PathLike[str] = False,
    callback: Callable[[FitRecord], bool | None] | None = None,
    show_progress: bool = False,
    validation: Any = None,
    metric: str = "ndcg@10",
    validate_every: int = 1,
    patience: int | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    mode: str = "auto",
    table_bytes: int | None = None,
    **columns: Any,
) -> ShardedModel:
    """Fit a model on all ranks of a group. Every rank makes the call, with the same arguments.

    The factors have the bits of ``model.fit`` of the same interactions, whatever the number of ranks, on machines with
    the same instruction set.

    Parameters
    ----------
    model : WALS
        Its settings; it is not changed. With ``device="cuda"`` each rank takes the device with its number on its
        machine (``LOCAL_RANK``). Embeddings of priors are the same on all ranks,
        and may be memory-mapped: each reads those of its own rows.
    interactions : Shards, or whatever ``WALS.fit`` takes
        What each rank has; or paths of files that all ranks see, of which each reads a part (:func:`.read_sharded`);
        or all of it, which each rank takes its part of. A :class:`wals_gpu.stored.StoredMatrix` in a folder that all
        machines see is read in part.
    group : Group, optional
        Default: :class:`.LocalGroup`, this process alone.
    warm_start : bool, fitted WALS, or path of a saved model, default False
        As for ``WALS.fit``: users and items are matched by id. Of a model in a folder that all ranks see, in one part
        or in those of any number of ranks, each rank reads the rows that it needs; a model in memory must be the same
        on all of them.
    callback : callable, optional
        Gets each :class:`.FitRecord`; a true result on any rank ends the fit.
    show_progress : bool, default False
        A progress bar, on rank 0.
    validation, metric, validate_every, patience, checkpoint_dir, checkpoint_every, resume
        As for ``WALS.fit``. Beside Shards or paths, a share can be held out, too; each rank reads a part of the files
        of validation, and a csr_matrix beside Shards is the rank's own rows. The checkpoint is in a folder that all
        ranks see; another number of ranks can go on.
    mode : {"auto", "all", "halo", "blocks"}, default "auto"
        How the other side's factors come, see docs/distributed.md. Changes no bit.
    table_bytes : int, optional
        Memory that a rank may give to them, in bytes; None: as much as the whole table takes.
    **columns
        Of a table, as for :func:`wals_gpu.as_interactions`.

    Returns
    -------
    ShardedModel

    Raises
    ------
    DistributedError
        Ranks differ in data, settings or versions, or one is gone.
    DataError, TypeError, ValueError, CheckpointError, SingularSystemError, ModelFitError, MemoryError, OSError
        As from ``WALS.fit``, on all ranks where one of them has it.
    """
    group = LocalGroup() if group is None else group
    with together(group, "reading the settings"):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        if table_bytes is not None:
            integer("table_bytes", table_bytes, 1)
        model = _on_own_device(model)
        settings = _settings_of(model)
        holding = HoldOut(validation, metric, validate_every, patience)
        saving = Saving(checkpoint_dir, checkpoint_every, resume)
        holding.check(settings)
        saving.check(settings, holding)
        check_columns(columns, fit_sharded)
    settings = _agreed(
        group,
        settings,
        mode=mode,
        table_bytes=table_bytes,
        validation=[metric, validate_every, patience, validation is None],
        checkpoint=[checkpoint_dir is None, checkpoint_every, bool(resume)],
    )
    start = Start.of(group, model, warm_start)
    shards, test = _shards_of(group, settings, interactions, validation, columns, start)
    plan = _plan(group, settings, shards, test, holding, saving, start, mode, table_bytes, model.num_threads)
    with Run(plan, lambda run: None) as run:
        run.iterate(_on_all_ranks(group, callback), show_progress and group.rank == 0)
    return ShardedModel.of(group, model, shards, plan, run)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnFactors:
    """What a fit leaves on a rank that keeps nothing of the others: see :func:`fit_rows`.

    Attributes
    ----------
    users, items : (own users, D), (own items, D)
    history : History
        The same on all ranks.
    """

    users: NDArray[np.floating]
    items: NDArray[np.floating]
    history: History


def fit_rows(model: WALS, shards: Shards, group: Group) -> OwnFactors:
    """Fit a model as :func:`fit_sharded` does, and leave each rank the factors of its own users and items alone.

    Parameters
    ----------
    model : WALS
    shards : Shards
        A repeated pair may have several entries.
    group : Group

    Returns
    -------
    OwnFactors

    Raises
    ------
    DistributedError, TypeError, ValueError, SingularSystemError, ModelFitError, MemoryError
        As from :func:`fit_sharded`.
    """
    with together(group, "reading the settings"):
        model = _on_own_device(model)
        settings = _settings_of(model)
    settings = _agreed(group, settings)
    shards, _ = _shards_of(group, settings, shards, None, {}, Start())
    plan = _plan(group, settings, shards, None, HoldOut(), Saving(), Start(), "auto", None, model.num_threads)
    with Run(plan, lambda run: None) as run:
        run.iterate(None, False)
    session = plan.session
    assert isinstance(session, ShardedSession)
    return OwnFactors(session.factors("user"), session.factors("item"), run.history)


def read_for(model: WALS, path: Any, group: Group, warm_start: Any = False, **columns: Any) -> Shards:
    """Read files as :func:`fit_sharded` reads them for a model. Every rank makes the call.

    Parameters
    ----------
    model : WALS
    path : path or list of them
    group : Group
    warm_start : bool, fitted WALS, or path of a saved model, default False
        Among whose ids those of files of text are to be found.
    **columns
        As for :func:`wals_gpu.as_interactions`.

    Returns
    -------
    Shards

    Raises
    ------
    DataError, FileNotFoundError, TypeError, ValueError, DistributedError
        As from :func:`.read_sharded`.
    """
    with together(group, "reading the settings"):
        settings = _settings_of(_on_own_device(model))
    _agreed(group, settings)
    kinds = _known_kinds(settings, Start.of(group, model, warm_start))
    return read_sharded(path, group, settings.factors, settings.options, kinds=kinds, **columns)


def _on_own_device(model: WALS) -> WALS:
    """The model, with the rank's own device where it names that of all ranks."""
    device = device_of_rank(model.device)
    return model if device == model.device else type(model)(**{**model.get_params(deep=False), "device": device})


def _settings_of(model: WALS) -> FitSettings:
    settings = fit_settings(model)
    settings.check_device()
    return settings


def _agreed(group: Group, settings: FitSettings, **options: Any) -> FitSettings:
    """The settings, the same on all ranks as the options are, with a seed that all know where none was given."""
    if not any(gather_json(group, settings.random_state is not None)):
        settings = dataclasses.replace(settings, random_state=gather_json(group, secrets.randbits(62))[0])
    agree(
        group,
        version=version_of("wals_gpu"),
        settings=settings.to_compare(),
        iterations=settings.iterations,
        random_state=_state_of(settings.random_state),
        **options,
    )
    return settings


def _state_of(random_state: Any) -> str | None:
    """What a generator draws from here on follows from; None where there is none."""
    if not isinstance(random_state, np.random.Generator):
        return None
    state = json.dumps(random_state.bit_generator.state, default=lambda array: array.tolist())
    return hashlib.sha256(state.encode()).hexdigest()


def _shards_of(
    group: Group, settings: FitSettings, interactions: Any, validation: Any, columns: dict[str, Any], start: Start
) -> tuple[Shards, csr_matrix | None]:
    """What the rank has to train on, and to find."""
    is_share = isinstance(validation, numbers.Real) and not isinstance(validation, bool)
    in_parts = is_paths(interactions) and not {"user_ids", "item_ids"} & set(columns)
    in_parts = in_parts and (validation is None or is_share or is_table(validation))
    if all(gather_json(group, in_parts)):
        columns = {"warn_ratings": settings.objective.name != "explicit"} | columns | {"dtype": settings.dtype.name}
        kinds = _known_kinds(settings, start)
        interactions = read_sharded(interactions, group, settings.factors, settings.options, kinds=kinds, **columns)
    if isinstance(interactions, Shards):
        with together(group, "reading the interactions"):
            if interactions.dtype != settings.dtype:
                raise TypeError(f"the shards hold {interactions.dtype}, the model is of dtype {settings.dtype}")
            known = validation is None or is_share or isinstance(validation, csr_matrix) or is_table(validation)
            if not known:
                raise TypeError(
                    "validation must be a share, a table, or a csr_matrix of the rank's own users, where the "
                    f"interactions are Shards, got {type(validation).__name__}"
                )
            if interactions.group.size != group.size or interactions.group.rank != group.rank:
                raise ValueError(
                    f"the shards are of rank {interactions.group.rank} of {interactions.group.size}, the fit is of "
                    f"rank {group.rank} of {group.size}"
                )
            wanted_shape = interactions.users.shape[0], interactions.shape[1]
            if isinstance(validation, csr_matrix) and validation.shape != wanted_shape:
                raise ValueError(
                    f"validation must have the shape {wanted_shape} of the rank's users, got {validation.shape}"
                )
        bounds = {"users": interactions.user_cuts.bounds.tolist(), "items": interactions.item_cuts.bounds.tolist()}
        agree(group, **bounds, validation=float(validation) if is_share else None)
        if is_share:
            return _divided(interactions, validation, settings.random_state)
        if any(gather_json(group, validation is not None and not isinstance(validation, csr_matrix))):
            validation = read_validation(validation, interactions, **columns)
        return interactions, validation
    test = None
    with together(group, "reading the interactions"):
        data = as_stored(interactions, settings.dtype, columns)
        if data is None:
            wanted = {"warn_ratings": settings.objective.name != "explicit"} | columns
            data = _in_known_kinds(as_interactions(interactions, dtype=settings.dtype, **wanted), settings, start)
        if validation is not None:
            train, test = hold_out(data, validation, settings.random_state, settings.dtype, columns)
            data = Interactions(train, data.user_ids, data.item_ids)
    shards = shard(data, group, settings.factors, settings.options)
    if test is not None:
        agree(group, validation=fingerprint(test))
    return shards, None if test is None else test[shards.user_cuts.of(group.rank)]


def _in_known_kinds(data: Interactions, settings: FitSettings, start: Start) -> Interactions:
    """Of a file of text, numbers as texts where those whom they are found among have texts."""
    if not data.text_ids:
        return data
    known = [
        None if kind is None else Ids(pa.array([], pa.large_string()) if kind == "string" else np.empty(0, np.int64))
        for kind in _known_kinds(settings, start)
    ]
    return in_kinds_of(data, *known)


def _known_kinds(settings: FitSettings, start: Start) -> list[str | None]:
    """Of the ids of users and of items among which those of the interactions are to be found; None: of no matter."""
    priors = (("user", settings.user_prior), ("item", settings.item_prior))
    return [start.kind(side) if prior is None or prior.ids is None else prior.ids.kind for side, prior in priors]


def _divided(shards: Shards, share: Any, random_state: Any) -> tuple[Shards, csr_matrix]:
    """What :func:`.validation.hold_out` divides the whole into: each rank makes all of its draws, and keeps its own."""
    group, everyone = shards.group, UsersOnRanks(shards.group)
    first, n_entries = everyone.place(shards.users.nnz)
    draws, n_test = np.empty(0), 0
    with together(group, "holding out"):
        n_test = round(checked_share(share) * n_entries)
        if not 0 < n_test < n_entries:
            raise none_left(share, n_entries)
        draws = _own_draws(generator_of_holdout(random_state), n_entries, slice(first, first + shards.users.nnz))
    last = -everyone.cutoff(-draws, n_test)
    held_out = draws < last
    ties = np.flatnonzero(draws == last)  # of which the first ones are held out
    n_left = n_test - int(everyone.total(np.count_nonzero(held_out))) - everyone.place(len(ties))[0]
    held_out[ties[: max(n_left, 0)]] = True
    return some_entries(shards, ~held_out), select(shards.users, held_out)


def _own_draws(rng: np.random.Generator, n: int, own: slice) -> NDArray[np.float64]:
    """Those of n numbers in [0, 1) that are the rank's own."""
    draws = np.empty(own.stop - own.start)
    for start in range(0, n, _DRAWN):
        block = rng.random(min(_DRAWN, n - start))
        first, last = max(start, own.start), min(start + len(block), own.stop)
        if first < last:
            draws[first - own.start : last - own.start] = block[first - start : last - start]
    return draws


def _plan(
    group: Group,
    settings: FitSettings,
    shards: Shards,
    test: csr_matrix | None,
    holding: HoldOut,
    saving: Saving,
    start: Start,
    mode: str,
    table_bytes: int | None,
    num_threads: int,
) -> Plan:
    backend, rows_of = settings.backend, settings.backend
    if not isinstance(rows_of, CpuBackend):
        rows_of = DeviceRows(rows_of, num_threads)
    bound = shards.bind(settings.objective, **_unmet(settings, shards))
    terms = {side: ShardedTerms.of(shards, bound, side) for side in ("user", "item")}
    with together(group, "making room for the factors"):
        factors = _start_values(settings, (shards.user_cuts, shards.item_cuts), group.rank)
    with together(group, "reading the model to start from"):
        for side, new, ids in zip(("user", "item"), factors, (shards.user_ids, shards.item_ids), strict=True):
            start.take_over(side, new, ids, shards.rows_of(side)[1].of(group.rank).start)
    sides = (
        Side("user", terms["user"], factors[0], shards.user_ids),
        Side("item", terms["item"], factors[1], shards.item_ids),
    )
    has_prior = settings.user_prior is not None or settings.item_prior is not None
    session = ShardedSession(
        group, rows_of, *factors, terms["user"], terms["item"], mode, table_bytes, may_move=not has_prior
    )
    for of_side, prior in zip(sides, (settings.user_prior, settings.item_prior), strict=True):
        if prior is not None:
            rows = RowsOnRanks(group, session, of_side.name, terms)
            of_side.prior = _begin_prior(settings, rows_of, of_side, prior, rows)
            if start.is_wanted:
                of_side.prior.regress(of_side.factors)
    validation = calibration = neighbors = None
    counts = np.empty(0, np.int64)
    if test is not None or settings.popularity_exponent != 0:
        counts = shards.item_counts()
    if settings.popularity_exponent not in (0, "auto"):
        calibration = Calibration.of(float(settings.popularity_exponent), counts)
    if settings.neighbors:
        neighbors = _neighbors(settings, shards)
    if test is not None:
        validation = ShardedValidation(
            group, counts, backend, shards.users, test, holding.metric, holding.every, holding.patience,
            cold_get_popular=settings.user_prior is None, calibration=calibration, neighbors=neighbors,
        )  # fmt: skip
    checkpoint = None
    if saving.folder is not None:
        cuts = {"user": shards.user_cuts, "item": shards.item_cuts}
        compared = _to_compare(group, settings, shards, validation)
        if start.is_wanted:  # where not, nothing is said of it, as in checkpoints of earlier versions
            compared["warm_start"] = True
        checkpoint = ShardedCheckpoint(saving.folder, saving.every, compared, group, cuts)
    resume = flag("resume", saving.resume)
    return Plan(
        settings, shards.users, bound, *sides, validation, checkpoint, resume, shards.columns,
        calibration=calibration, neighbors=neighbors, session=session, period=shards.period,
    )  # fmt: skip


def _neighbors(settings: FitSettings, shards: Shards) -> Neighbors:
    """Each rank finds the neighbours of its own items, for which it needs what all users have."""
    group, n_items = shards.group, shards.shape[1]
    found: list[NDArray[Any]] = []
    owned = csr_matrix((0, n_items), dtype=np.float32)
    with together(group, "finding neighbours"):
        owned = owned_by(shards.users)
    lengths = group.gather_rows(np.diff(owned.indptr).astype(np.int64), shards.user_cuts.counts)
    columns = gather_uneven(group, owned.indices.astype(np.int32))
    items = shards.item_cuts.of(group.rank)
    with together(group, "finding neighbours"):
        ends = np.concatenate([[0], np.cumsum(lengths)])
        whole = csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=shards.shape)
        found += regressions(whole, settings.neighbors, settings.neighbor_regularization, settings.backend, items)
    ids, values = (group.gather_rows(part, shards.item_cuts.counts) for part in found)
    return as_neighbors(ids, values, settings.neighbor_weight)


def _unmet(settings: FitSettings, shards: Shards) -> dict[str, NDArray[np.bool_]]:
    """Rows of all ranks that nobody can have met yet by the setting of their prior: they have no unobserved pairs."""
    unmet = {}
    for side, prior in (("user", settings.user_prior), ("item", settings.item_prior)):
        if prior is not None and prior.cold != "map":
            matrix, cuts = shards.rows_of(side)
            unmet[f"{side}s"] = shards.group.gather_rows(np.diff(matrix.indptr) == 0, cuts.counts)
    return unmet


def _begin_prior(
    settings: FitSettings, backend: CpuBackend, side: Side, prior: LinearPrior, rows: RowsOnRanks
) -> PriorSteps:
    terms = side.terms
    assert isinstance(terms, ShardedTerms)
    own = slice(rows.first, rows.first + len(side.factors))
    raw = rows.alone(lambda: prior.rows_for(side.name, side.ids, rows.n, own))
    return PriorSteps.begin(prior, raw, terms.own, backend, rows, settings.factors)


def _start_values(
    settings: FitSettings, cuts: tuple[Cuts, Cuts], rank: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The rank's rows of the values that one process would draw: all are drawn, those of others forgotten."""
    rng = np.random.default_rng(settings.random_state)
    deviation = settings.dtype.type(settings.init_scale / np.sqrt(settings.factors))
    drawn = []
    for of_side in cuts:
        rows = of_side.of(rank)
        own = settings.backend.empty_factors(rows.stop - rows.start, settings.factors, settings.dtype)
        block = np.empty((min(_DRAWN, of_side.n_rows), settings.factors), settings.dtype)
        for start in range(0, of_side.n_rows, _DRAWN):
            some = block[: min(_DRAWN, of_side.n_rows - start)]
            rng.standard_normal(dtype=settings.dtype, out=some)
            first, last = max(start, rows.start), min(start + len(some), rows.stop)
            if first < last:
                own[first - rows.start : last - rows.start] = some[first - start : last - start]
        own *= deviation
        drawn.append(own)
    return drawn[0], drawn[1]


def _to_compare(
    group: Group, settings: FitSettings, shards: Shards, validation: ShardedValidation | None
) -> dict[str, Any]:
    """What a resumed fit must have in common with the one that it goes on with, whatever the number of ranks."""
    compared = {"data": _digest(group, shards.users, shards.user_ids), **settings.to_compare()}
    compared["items"] = _digest(group, None, shards.item_ids)
    if validation is not None:
        compared |= {name: getattr(validation, name) for name in ("metric", "every", "patience")}
        compared["validation data"] = _digest(group, validation.test, None)
    return compared


def _digest(group: Group, matrix: csr_matrix | None, ids: Ids | None) -> str:
    """Of the rows of all ranks, block by block, so that it does not depend on the ranks that have them."""
    step, own = int(limits().loss_rows), []
    n = matrix.shape[0] if matrix is not None else 0 if ids is None else len(ids)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        digest = "" if matrix is None else fingerprint(matrix[rows])
        digest += "" if ids is None else hashlib.sha256(repr(ids[rows].tolist()).encode()).hexdigest()
        own.append(digest)
    blocks = [digest for of_rank in gather_json(group, own) for digest in of_rank]
    return hashlib.sha256("".join(blocks).encode()).hexdigest()


def _on_all_ranks(
    group: Group, callback: Callable[[FitRecord], bool | None] | None
) -> Callable[[FitRecord], bool | None] | None:
    """What ends the fit on all ranks where the callback of one wants to."""
    if not any(gather_json(group, callback is not None)):
        return None

    def called(record: FitRecord) -> bool:
        ends = False
        with together(group, "in the callback"):
            ends = callback is not None and bool(callback(record))
        return bool(of_each(group, ends).any())

    return called
