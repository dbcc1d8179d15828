"""A model whose users lie on several ranks: each has a whole model of its own users."""

from __future__ import annotations

import copy
import dataclasses
import secrets
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from wals_gpu.checks import as_path
from wals_gpu.data.ids import Ids
from wals_gpu.distributed.checkpoint import all_see
from wals_gpu.distributed.cuts import Cuts
from wals_gpu.distributed.group import Group, agree, gather_json, gather_uneven, of_each, together
from wals_gpu.distributed.session import ShardedSession
from wals_gpu.distributed.shards import Shards
from wals_gpu.errors import DistributedError
from wals_gpu.evaluation.report import EvaluationReport
from wals_gpu.model.card import Measured, Sizes, model_card
from wals_gpu.model.files import half_exponent, is_in_halves, largest
from wals_gpu.model.parts import forget_users, missing_users, write_shared, write_users
from wals_gpu.model.recommendations import RecommendationsChunk
from wals_gpu.model.sharded import model_of, tensors_of
from wals_gpu.model.wals import WALS
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.priors.steps import PriorSteps
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.loop import Run
from wals_gpu.training.plan import Plan
from wals_gpu.training.state import History

__all__ = ["ShardedModel", "gathered_ids"]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardedModel:
    """What a fit on several ranks leaves; :meth:`save` writes a model that ``WALS.load`` reads anywhere.

    Attributes
    ----------
    group : Group
    local : WALS
        A model of this rank's users (row numbers from 0) and all items: it recommends, explains and evaluates as any
        other.
    user_cuts : Cuts
        Which rank has which users.
    users : slice
        Which rows of all users this rank has.
    history : History
    """

    group: Group
    local: WALS
    user_cuts: Cuts

    @property
    def users(self) -> slice:
        """Which rows of all users this rank has."""
        return self.user_cuts.of(self.group.rank)

    @property
    def history(self) -> History:
        """Of the fit, the same on all ranks."""
        return self.local.history_

    @classmethod
    def of(
        cls,
        group: Group,
        model: WALS,
        shards: Shards,
        plan: Plan,
        run: Run,
    ) -> ShardedModel:
        """The model of a fit that has ended. Every rank makes the call.

        Parameters
        ----------
        group : Group
        model : WALS
            What was to be fitted: its settings.
        shards : Shards
            The interactions that it was fitted on.
        plan : Plan
        run : Run
            Of the fit, ended.

        Returns
        -------
        ShardedModel
        """
        session = plan.session
        assert isinstance(session, ShardedSession)
        items = session.gathered("item")
        items.flags.writeable = False  # answers may keep what they computed from it
        rows = shards.user_cuts.of(group.rank)
        bound = plan.bound.of_users(np.arange(rows.start, rows.stop))
        fitted = Fitted(
            plan.settings.backend,
            session.factors("user"),
            items,
            shards.user_ids,
            gathered_ids(group, shards.item_ids),
            bound,
            shards.users,
            _own_prior(plan.users.prior, shards.user_cuts, group.rank),
            _prior_of_all(plan.items.prior, group, shards.item_cuts),
            columns=plan.columns,
            calibration=run.fitted.calibration,
            neighbors=plan.neighbors,
            period=plan.period,
            counts=None if group.size == 1 else shards.item_counts(),
        )
        history, metric, best_iteration = run.history, run.metric, run.best_iteration
        return cls(group, model_of(model, fitted, history, metric, best_iteration, run.device), shards.user_cuts)

    def save(
        self,
        path: str | PathLike[str],
        *,
        dtype: str | None = None,
        metrics: EvaluationReport | Mapping[str, Any] | Measured | None = None,
    ) -> None:
        """Write the model to a folder that all ranks see, in place of one that is there. Every rank makes the call.

        Parameters
        ----------
        path : str or path
            The same on all ranks.
        dtype : {"float16"}, optional
            As for :meth:`.WALS.save`, with the values that one process would write.
        metrics : EvaluationReport, mapping of name to number or Estimate, or Measured, optional
            As for :meth:`.WALS.save`; those of rank 0 are written.

        Raises
        ------
        TypeError, ValueError
            `dtype` or `metrics` is something else.
        OSError
            A rank cannot write, or rank 0 does not see what another wrote, on all ranks. A model that was there before
            is left as it was.
        """
        folder, group, fitted = as_path("path", path), self.group, self.local.fitted
        tag = gather_json(group, secrets.token_hex(4))[0]
        exponents: dict[str, int] | None = None
        with together(group, f"saving to {folder}"):
            in_halves = is_in_halves(dtype)
            measured = None if metrics is None else Measured.of(metrics)
        agree(group, dtype=dtype)
        if in_halves:
            most = {"user_factors": float(of_each(group, largest(fitted.user_factors)).max())}
            most["item_factors"] = largest(fitted.item_factors)
            exponents = {name: half_exponent(of_side) for name, of_side in most.items()}
        users = self.local.user_ids
        firsts = gather_json(group, None if users is None or not len(users) else users[0])
        try:
            with together(group, f"saving to {folder}"):
                tensors, metadata = tensors_of(self.local, exponents, measured)
                tensors.setdefault("popularity", fitted.popularity())  # for whoever reads some of the users
                write_users(folder, group.rank, tag, tensors)
            n_entries = int(of_each(group, len(tensors["seen.col_idx"])).sum())
            with together(group, f"saving to {folder}"):
                if group.rank == 0:
                    all_see(folder, lambda: missing_users(folder, tag, group.size))
                    card = model_card(Sizes(int(self.user_cuts.bounds[-1]), self.local.n_items, n_entries), metadata)
                    write_shared(folder, tag, tensors, metadata, self.user_cuts.bounds.tolist(), firsts, card)
        except DistributedError:
            raise  # who is gone may have made the new model whole
        except Exception:
            forget_users(folder, group.rank, tag)
            raise

    def recommend_chunks(
        self, k: int = 10, *, chunk_size: int = 4096, **options: Any
    ) -> Iterator[RecommendationsChunk]:
        """The lists of this rank's users, some of them at a time.

        Parameters
        ----------
        k : int, default 10
        chunk_size : int, default 4096
            Users of a chunk.
        **options
            As for :meth:`.WALS.recommend_chunks`.

        Yields
        ------
        RecommendationsChunk
            Users by id, or by their row number among all users.
        """
        users = np.arange(self.local.n_users) if self.local.user_ids is None else self.local.user_ids.ids
        for chunk in self.local.recommend_chunks(users, k, chunk_size=chunk_size, **options):
            if self.local.user_ids is None:
                chunk = RecommendationsChunk(
                    chunk.ids, chunk.scores, chunk.users + self.users.start, chunk.source, chunk.layout
                )
            yield chunk


def _own_prior(steps: PriorSteps | None, cuts: Cuts, rank: int) -> FittedPrior | None:
    """What a fit learned of the users' prior, for the rank's own users."""
    if steps is None:
        return None
    fitted = copy.copy(steps.fitted)  # its means are those of the rank's rows
    fitted.prior = fitted.prior.of_part(cuts.of(rank), cuts.n_rows)
    return fitted


def _prior_of_all(steps: PriorSteps | None, group: Group, cuts: Cuts) -> FittedPrior | None:
    """What a fit learned of the items' prior, with the means of all ranks."""
    if steps is None:
        return None
    fitted = copy.copy(steps.fitted)
    assert fitted.mean is not None
    fitted.mean = group.gather_rows(fitted.mean, cuts.counts)
    return fitted


def gathered_ids(group: Group, ids: Ids | None) -> Ids | None:
    """Those of all ranks."""
    if ids is None:
        return None
    arrays = ids.to_arrays("ids")
    if ids.kind == "integer" and "uint64" in gather_json(group, arrays["ids"].dtype.name):
        arrays["ids"] = arrays["ids"].astype(np.uint64)  # int64 where all of the rank's own fit
    gathered = {}
    for name, array in arrays.items():
        own = array[:-1] if name.endswith("offsets") else array
        gathered[name] = gather_uneven(group, own)
    if ids.kind == "integer":
        return Ids(gathered["ids"], ids.side)
    ends = of_each(group, arrays["ids.offsets"][-1])
    starts = np.concatenate([[0], np.cumsum(ends)])
    offsets = gathered["ids.offsets"] + np.repeat(starts[:-1], of_each(group, len(ids)))
    gathered["ids.offsets"] = np.append(offsets, starts[-1])
    return Ids.from_arrays(gathered, "ids", ids.side)
