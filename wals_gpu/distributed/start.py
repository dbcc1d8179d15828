"""What a fit on several ranks begins with: factors of an earlier model, matched by id, on whatever ranks they were."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.data.files import folder_digest
from wals_gpu.data.ids import Ids
from wals_gpu.distributed.checkpoint import SEEN_WITHIN
from wals_gpu.distributed.group import Group, agree, gather_json, together
from wals_gpu.model.starting import SavedStart
from wals_gpu.model.wals import WALS
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.plan import check_start, take_over

__all__ = ["Start"]


@dataclass(frozen=True, eq=False)
class Start:
    """See :class:`.plan.WarmStart`.

    Parameters
    ----------
    is_wanted : bool, default False
    source : Fitted or SavedStart, optional
        A model in the memory of every rank, or one in a folder.
    """

    is_wanted: bool = False
    source: Fitted | SavedStart | None = None

    @classmethod
    def of(cls, group: Group, model: WALS, warm_start: Any) -> Start:
        """Of what :func:`.fit_sharded` was given. Every rank makes the call.

        Raises
        ------
        DistributedError
            The ranks have different models to start from.
        FileNotFoundError, ModelFormatError, ModelFitError, TypeError, ValueError
            There is no such model, it is damaged, not fitted, or has another number of factors; on all ranks.
        """
        start = cls()
        with together(group, "reading the model to start from"):
            if isinstance(warm_start, (bool, np.bool_)):
                has_factors = model.user_factors is not None and model.item_factors is not None
                start = cls(bool(warm_start), model.fitted if warm_start and has_factors else None)
            elif isinstance(warm_start, WALS):
                start = cls(True, warm_start.fitted)
            elif not isinstance(warm_start, (str, PathLike)):
                raise TypeError(
                    f"warm_start must be True, False, a fitted WALS or the path of one, got {warm_start!r:.60}"
                )
        is_folder = isinstance(warm_start, (str, PathLike))
        agree(group, warm_start=[start.is_wanted, is_folder, start.source is None])
        if is_folder:
            return cls(True, _opened(group, warm_start, model.factors))
        digest = ""
        with together(group, "reading the model to start from"):
            if isinstance(start.source, Fitted):
                check_start(model.factors, start.source.factors)
                digest = _digest(start.source)
        agree(group, warm_start=digest)
        return start

    def kind(self, side: str) -> str | None:
        """Of the ids that the earlier rows of a side have; None where there are none."""
        if isinstance(self.source, SavedStart):
            return self.source.kind(side)
        ids: Ids | None = getattr(self.source, f"{side}_ids", None)
        return None if ids is None else ids.kind

    def take_over(self, side: str, new: NDArray[np.floating], ids: Ids | None, first: int) -> None:
        """Write the earlier factors of the rank's rows of a side, which begin with number `first`, where there are any.

        Raises
        ------
        ValueError, ModelFormatError
            As from ``WALS.fit``.
        """
        if isinstance(self.source, SavedStart):
            self.source.take_over(side, new, ids, first)
        elif self.source is not None:
            old, old_ids = getattr(self.source, f"{side}_factors"), getattr(self.source, f"{side}_ids")
            take_over(new, ids, old, old_ids, first)


def _opened(group: Group, path: str | PathLike[str], factors: int) -> SavedStart:
    """The model of a folder, which may be replaced at any time: the same one on all ranks."""
    until, content = time.monotonic() + SEEN_WITHIN, ""
    while True:
        opened: list[SavedStart] = []
        with together(group, "reading the model to start from"):
            before = folder_digest(path)
            opened.append(SavedStart(path))
            check_start(factors, opened[0].factors)
            content = folder_digest(opened[0].folder)
            if content != before:
                content += secrets.token_hex(4)  # the same as on no other rank
        is_late = any(gather_json(group, time.monotonic() > until))
        if is_late or len(set(gather_json(group, content))) == 1:
            agree(group, warm_start=content)
            return opened[0]
        time.sleep(0.1)


def _digest(fitted: Fitted) -> str:
    """Of the factors and ids of a model that every rank has."""
    digest = hashlib.sha256()
    for factors, ids in ((fitted.user_factors, fitted.user_ids), (fitted.item_factors, fitted.item_ids)):
        digest.update(repr((factors.shape, factors.dtype.name)).encode())
        digest.update(np.ascontiguousarray(factors).data)
        for array in ({} if ids is None else ids.to_arrays("ids")).values():
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
