"""Validation of a fit on several ranks: each measures its own users, and all know the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.session import Backend
from wals_gpu.distributed.group import Group, gather_uneven, of_each, together
from wals_gpu.distributed.session import ShardedSession
from wals_gpu.training.calibration import Calibration, best_exponent, metric_of_users, some_users
from wals_gpu.training.state import FitState
from wals_gpu.training.validation import Validation, parse_metric

__all__ = ["ShardedValidation"]


class ShardedValidation(Validation):
    """See :class:`.validation.Validation`; every rank makes the same calls, and decides the same.

    Parameters
    ----------
    group : Group
    counts : (I,) int64
        In how many training entries of all ranks each item is.
    backend, train, test, metric, every, patience
        As there; rows are the rank's own users.
    """

    def __init__(
        self,
        group: Group,
        counts: NDArray[np.int64],
        backend: Backend,
        train: csr_matrix,
        test: csr_matrix,
        metric: str,
        every: int,
        patience: int | None,
        **more: Any,
    ) -> None:
        self._group, self._counts = group, counts
        super().__init__(backend, train, test, metric, every, patience, **more)

    def _is_something_to_find(self) -> bool:
        return bool(of_each(self._group, len(self._users)).any())

    def _item_counts(self) -> NDArray[np.int64]:
        return self._counts

    def calibration_of(self, user_factors: NDArray[np.floating], item_factors: NDArray[np.floating]) -> Calibration:
        """See :meth:`.validation.Validation.calibration_of`; of the rank's own factors of both sides."""
        group, exponent = self._group, 0.0
        items, n_own = gather_uneven(group, item_factors), of_each(group, len(self._users))
        if n_own.any():
            # The users that one process would draw: places among those of all ranks, which are in the order of rows.
            first = int(n_own[: group.rank].sum())
            drawn = some_users(np.arange(n_own.sum())) - first
            users = self._users[drawn[(drawn >= 0) & (drawn < len(self._users))]]
            name, k = parse_metric(self.metric)
            given = (user_factors, items, self.train, self.test, self._backend, users)

            def measure(exponent: float) -> NDArray[np.float64]:
                own = np.empty(0)
                with together(group, "measuring"):
                    calibration = Calibration.of(exponent, self._counts)
                    own = metric_of_users(*given, calibration, metric=name, k=k, neighbors=self._neighbors)
                return gather_uneven(group, own)

            exponent, _ = best_exponent(measure)
        return Calibration.of(exponent, self._counts)

    def measure(self, state: FitState) -> float:
        """The mean over the users of all ranks, as one process has it."""
        session = state.session
        assert isinstance(session, ShardedSession)
        items = session.gathered("item")
        own, n_cold = np.empty(0), len(self._values_of_cold)
        with together(self._group, "measuring"):
            own = self._values(session.factors("user"), items)
        # Users without training entries first, as in one process: the order decides the last bit of the mean.
        parts = [gather_uneven(self._group, part) for part in (own[:n_cold], own[n_cold:])]
        return float(np.concatenate(parts).mean())
