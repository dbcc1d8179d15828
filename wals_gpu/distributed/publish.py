"""A nightly run on several ranks: :func:`wals_gpu.publishing.publish`, with the same result.

Each rank measures the lists of its own users, with all items; what is summed or drawn over users is of all of them, so
that every rank comes to the same decision. Rank 0 alone has the folder's lock, writes the log and replaces ``current``,
once all ranks have their part of the model on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.data.matching import check_columns
from wals_gpu.data.times import Period
from wals_gpu.distributed.fit import fit_sharded
from wals_gpu.distributed.group import Group, agree, gather_json, together
from wals_gpu.distributed.model import ShardedModel, gathered_ids
from wals_gpu.distributed.read import some_entries
from wals_gpu.distributed.shards import Shards, shard
from wals_gpu.distributed.users import UsersOnRanks
from wals_gpu.errors import DistributedError
from wals_gpu.model.card import Measured
from wals_gpu.model.sharded import own_users
from wals_gpu.model.wals import WALS
from wals_gpu.publishing.condition import Condition
from wals_gpu.publishing.folder import BusyError
from wals_gpu.publishing.run import Night, Outcome

__all__ = ["publish_sharded"]


def publish_sharded(
    model: WALS,
    interactions: Any,
    group: Group,
    folder: str | PathLike[str],
    publish_if: str | Condition,
    *,
    warm_start: WALS | str | PathLike[str] | None = None,
    holdout: float | None = None,
    refit: bool = True,
    keep: int = 7,
    keep_refused: bool = False,
    wait: float = 0.0,
    dtype: str | None = None,
    fit: Mapping[str, Any] | None = None,
    finish: Callable[[WALS], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    show_progress: bool = False,
    **columns: Any,
) -> Outcome:
    """:func:`wals_gpu.publishing.publish` on all ranks of a group. Every rank makes the call, with the same arguments.

    A rank needs, beside its fit, the model before: its own users and all items, of a model that ranks have saved; of a
    model in one part, each rank reads the whole for a moment. Lists are measured of own users; metrics of 100,000 users
    at most, some numbers each, go to all ranks.

    Parameters
    ----------
    model : WALS
        Its settings; it is not changed.
    interactions : Shards, what ``WALS.fit`` takes, or function that returns one of these
        As for :func:`.fit_sharded`. A function is called once the folder is locked, on every rank.
    group : Group
    folder : str or path
        That all ranks see.
    publish_if, warm_start, holdout, refit, keep, keep_refused, dtype
        As there; `warm_start` in a folder that all ranks see, or a model that is the same on all.
    wait : float, default 0
        As there; the other ranks wait for rank 0, and give up after the timeout of the group.
    fit : mapping, optional
        Further arguments of :func:`.fit_sharded`.
    finish : callable, optional
        Called on every rank with the model of its users and all items before it is saved.
    stopped : callable, optional
        As there; a true answer on any rank ends the run on all.
    show_progress : bool, default False
        On rank 0.
    **columns
        As there.

    Returns
    -------
    Outcome
        The same on all ranks, but for `model`, which has the rank's own users.

    Raises
    ------
    BusyError, KeyboardInterrupt
        As there, on all ranks.
    DistributedError
        The ranks differ, or one is gone: the model in use stays, unless the new one was whole already.
    DataError, TypeError, ValueError, OSError, MemoryError, ...
        As there, on all ranks where one of them has it.
    """
    nights: list[_NightOnRanks] = []
    with together(group):
        check_columns(columns, publish_sharded)
        nights.append(_NightOnRanks(group, model, folder, publish_if, dict(fit or {}), stopped, show_progress))
    night = nights[0]
    agree(
        group, condition=night.condition.text, holdout=holdout, refit=refit, keep=keep, keep_refused=keep_refused,
        dtype=dtype,
    )  # fmt: skip
    return night.run(
        interactions, warm_start, holdout=holdout, refit=refit, keep=keep, keep_refused=keep_refused, wait=wait,
        dtype=dtype, finish=finish, columns=columns,
    )  # fmt: skip


class _NightOnRanks(Night):
    """See :class:`.run.Night`. What is in `record` is of rank 0 in the end."""

    def __init__(
        self,
        group: Group,
        model: WALS,
        folder: str | PathLike[str],
        publish_if: str | Condition,
        options: dict[str, Any],
        stopped: Callable[[], bool] | None,
        show_progress: bool,
    ) -> None:
        super().__init__(model, folder, publish_if, options, stopped, show_progress, UsersOnRanks(group))
        self._group = group
        self._shards: Shards | None = None
        self._fitted: ShardedModel | None = None

    @property
    def candidate(self) -> WALS:
        """The model of the rank's own users."""
        assert self._fitted is not None
        return self._fitted.local

    @contextmanager
    def locked(self, wait: float) -> Iterator[None]:
        """See :meth:`.Night.locked`: by rank 0."""
        with ExitStack() as stack:
            busy: BusyError | None = None
            with together(self._group, "locking the folder"):
                if self._group.rank == 0:
                    try:
                        stack.enter_context(self.store.locked(wait))
                    except BusyError as error:
                        busy = error
            self._raise_busy(busy)
            yield

    def _raise_busy(self, error: Exception | None) -> None:
        """On all ranks, where it is a BusyError of rank 0: of its own kind, which `together` does not keep."""
        busy = str(error) if isinstance(error, BusyError) else None
        if (busy := gather_json(self._group, busy)[0]) is not None:
            raise BusyError(busy)

    def current(self) -> str | None:
        """See :meth:`.Night.current`: as rank 0 sees it."""
        name: str | None = None
        with together(self._group, "reading the folder"):
            name = self.store.current
        found: str | None = gather_json(self._group, name)[0]
        return found

    def read(self, interactions: Any, columns: Mapping[str, Any], source: Any) -> tuple[Interactions, WALS | None]:
        """See :meth:`.Night.read`: the interactions of the rank's own users, and those of the model before who are
        between them."""
        group = self._group
        data = interactions() if callable(interactions) else interactions  # may read with the others
        if not isinstance(data, Shards):
            found: list[Interactions] = []
            with together(group, "reading the interactions"):
                found.append(as_interactions(data, **({"dtype": self.model.dtype} | dict(columns))))
            model = self.model
            solving = SolveOptions.choose(
                model.solver, model.factors, cg_steps=model.cg_steps, block_size=model.block_size
            )
            data = shard(found[0], group, model.factors, solving)
        self._shards, rows = data, data.user_cuts.of(group.rank)
        yesterday: list[WALS] = []
        with together(group, "reading the model before"):
            if source is not None:
                computation = {"device": self.model.device, "num_threads": self.model.num_threads}
                yesterday.append(own_users(source, data.user_ids, rows, **computation))
                self.check_yesterday(yesterday[0])
        agree(group, warm_start=self.record["warm_start"], yesterday=len(yesterday))
        item_ids = gathered_ids(group, data.item_ids)
        own = Interactions(data.users, data.user_ids, item_ids, data.times, data.columns)
        return own, yesterday[0] if yesterday else None

    def period(self, data: Interactions) -> Period | None:
        """See :meth:`.Night.period`."""
        assert self._shards is not None
        return self._shards.period

    def fit(self, data: Interactions, options: Mapping[str, Any]) -> None:
        """See :meth:`.Night.fit`."""
        shards, group = self._shards, self._group
        assert shards is not None
        if data.matrix is not shards.users:
            assert self.held_out is not None
            shards = some_entries(shards, self.held_out.keep)
        self._fitted = fit_sharded(
            self.model,
            shards,
            group,
            warm_start=self.start,
            callback=lambda _: self.stopped(),
            show_progress=self.show_progress,
            **options,
        )
        if any(gather_json(group, bool(self.stopped()))):
            raise KeyboardInterrupt

    def save(
        self, path: Path, dtype: str | None, measured: Measured | None, finish: Callable[[WALS], None] | None
    ) -> None:
        """See :meth:`.Night.save`."""
        assert self._fitted is not None
        with together(self._group, "finishing the model"):
            if finish is not None:
                finish(self._fitted.local)
        self._fitted.save(path, dtype=dtype, metrics=measured)

    def publish(self, save: Callable[[Path], None], current: str | None, keep: int) -> tuple[str, bool]:
        """See :meth:`.Night.publish`."""
        publish = super().publish
        name, is_current = self._with_rank_0(lambda saved: publish(saved, current, keep), save)
        return name, is_current

    def keep_refused(self, save: Callable[[Path], None], keep: int) -> str:
        """See :meth:`.Night.keep_refused`."""
        keep_refused = super().keep_refused
        name: str = self._with_rank_0(lambda saved: keep_refused(saved, keep), save)
        return name

    def _with_rank_0(self, work: Callable[[Callable[[Path], None]], Any], save: Callable[[Path], None]) -> Any:
        """What rank 0 does, on the way of which all ranks save; an error of it is one of all."""
        group = self._group
        found: Any = None
        failed: Exception | None = None
        is_saved = False

        def with_all(path: Path) -> None:
            nonlocal is_saved
            save(Path(gather_json(group, str(path))[0]))
            is_saved = True

        try:
            if group.rank == 0:
                found = work(with_all)
            else:
                with_all(Path())
        except DistributedError:
            raise
        except Exception as error:
            if not is_saved:
                raise  # all ranks have it
            failed = error
        self._raise_busy(failed)
        with together(group, "publishing"):
            if failed is not None:
                raise failed
        return gather_json(group, found)[0]

    def log(self) -> None:
        """See :meth:`.Night.log`: by rank 0."""
        if self._group.rank == 0:
            super().log()
        self.is_over = True

    def outcome(self, published: bool, name: str | None) -> Outcome:
        """See :meth:`.Night.outcome`: what rank 0 has found."""
        self.record = gather_json(self._group, self.record if self._group.rank == 0 else None)[0]
        model = self.model if self._fitted is None else self._fitted.local
        return Outcome(published, name, self.record["reason"], self.record, model)
