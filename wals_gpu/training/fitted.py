"""What a fit learned: all that answers are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.data.ids import Ids
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import FittedPrior

__all__ = ["Fitted"]


@dataclass(frozen=True, eq=False)
class Fitted:
    """Factors and what they mean. It does not change: who changes a model makes another (``dataclasses.replace``).

    Parameters
    ----------
    backend : Backend
        What answers are computed on.
    user_factors, item_factors : (U, D) and (I, D)
    user_ids, item_ids : Ids, optional
        Of the rows; None where they go by their numbers.
    bound : BoundObjective, optional
        The objective of the training matrix; None where factors were assigned, not learned.
    seen : (U, I) csr_matrix or StoredMatrix, optional
        The training interactions; without their values (bool) where a file did not have them.
    user_prior, item_prior : FittedPrior, optional
    """

    backend: Backend
    user_factors: NDArray[np.floating]
    item_factors: NDArray[np.floating]
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    bound: BoundObjective | None = None
    seen: csr_matrix | Any | None = None
    user_prior: FittedPrior | None = None
    item_prior: FittedPrior | None = None
    _kept_spectrum: list[Spectrum] = field(default_factory=list, init=False, repr=False)

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_factors)

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.item_factors)

    @property
    def factors(self) -> int:
        """D."""
        return int(self.item_factors.shape[1])

    @property
    def dtype(self) -> np.dtype:
        """Of the factors."""
        return self.item_factors.dtype

    def spectrum(self, terms: RowTerms) -> Spectrum:
        """Of the item factors, for rows of users. Kept where these are read-only, as a fit leaves them."""
        if not terms.background.any() or self.item_factors.flags.writeable:
            return self.backend.spectrum(terms, self.item_factors)
        if not self._kept_spectrum:
            self._kept_spectrum.append(self.backend.spectrum(terms, self.item_factors))
        return self._kept_spectrum[0]

    def name_of_user(self, row: int) -> str:
        """A user in the caller's words, such as "user 3 (id 'ann')"."""
        return f"user {row}" if self.user_ids is None else f"user {row} (id {self.user_ids.take(row)!r})"
