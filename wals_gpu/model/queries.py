"""Whom an answer is for: users of the training data, new ones given by what they have, and those nobody knows.

Functions of :class:`.fitted.Fitted`; the methods of :class:`wals_gpu.WALS` document what they take and give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import flag
from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import row_numbers
from wals_gpu.data.interactions import Interactions, as_interactions, in_order_of_appearance
from wals_gpu.data.titles import Titles
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.model.recommendations import Layout, arrow_type
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.retrieval.explore import Part, Users
from wals_gpu.retrieval.posterior import Posterior
from wals_gpu.training.fitted import Fitted, says_something

__all__ = [
    "NewRows",
    "Policy",
    "Queries",
    "everybody",
    "fold_in",
    "known_users",
    "new_rows",
    "new_users",
    "row_queries",
    "user_queries",
]

COLD_USERS = ("popular", "mean", "error")
UNKNOWN = ("error", "popular", "skip")

Names = Callable[[slice], NDArray[Any]]


@dataclass(frozen=True)
class Policy:
    """What is recommended to users that the model knows nothing of; see :meth:`wals_gpu.WALS.recommend`.

    Raises
    ------
    ValueError
        An option has none of its values.
    """

    cold_users: str = "popular"
    unknown: str = "error"

    def __post_init__(self) -> None:
        for name, value, values in (("cold_users", self.cold_users, COLD_USERS), ("unknown", self.unknown, UNKNOWN)):
            if not (isinstance(value, str) and value in values):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}; got {value!r:.60}")

    @property
    def source(self) -> str:
        """What recommendations to users are from of whom nothing is known."""
        return "popularity" if self.cold_users == "popular" else self.cold_users

    def check_cold(self, cold: NDArray[np.bool_], name_of: Callable[[int], str]) -> None:
        """DataError where there are cold users (n,) and must be none; `name_of` tells who one of the n is."""
        if self.cold_users == "error" and cold.any():
            raise DataError(
                f"{cold.sum()} of {len(cold)} users have no interaction to go by, such as "
                f"{name_of(int(np.argmax(cold)))}; cold_users='popular' or 'mean' recommends to them all the same"
            )


@dataclass(frozen=True, eq=False)
class Queries:
    """Whom a question is about: n of B that were asked for, less where unknown ones are skipped.

    Parameters
    ----------
    users : Users
        The n.
    names : callable
        Ids, or row numbers, of a slice of them.
    kind : Arrow type
        Of the names.
    policy : Policy
    n_given : int
        B.
    kept : (n,) array of int, optional
        Their places among those asked for, where some are left out.
    is_single : bool
        Whether it was one id, not a list.
    """

    users: Users
    names: Names
    kind: pa.DataType
    policy: Policy
    n_given: int
    kept: NDArray[np.integer] | None = None
    is_single: bool = False

    def source(self, part: slice) -> NDArray[np.str_]:
        """What the recommendations to a slice of them are from."""
        return np.where(self.users.known(part), "model", self.policy.source)

    def layout(self, fitted: Fitted, titles: Titles | None) -> Layout:
        """Of the tables of their recommendations."""
        return Layout(found_type=arrow_type(fitted.item_ids), query_type=self.kind, titles=titles)


# ---------------------------------------------------------------------------------------------------- users


def user_queries(fitted: Fitted, users: ArrayLike, filter_seen: bool, policy: Policy) -> Queries:
    """Users of the training data, and with a policy for them users that it does not have.

    Raises
    ------
    KeyError, IndexError, TypeError, ValueError
        As :func:`.ids.row_numbers`; unknown ids only where the policy says so.
    DataError
        There are users without history, where the policy says so.
    """
    if policy.unknown == "error":
        rows, is_single = row_numbers(users, fitted.user_ids, fitted.n_users, "user")
    else:
        rows, is_single = _rows_or_none(fitted, users)
    if (rows >= 0).all():
        return replace(_queries(fitted, rows, _names_of(fitted, rows), filter_seen, policy), is_single=is_single)
    given, n_given, kept = np.atleast_1d(_as_given(users, fitted)), len(rows), None
    if policy.unknown == "skip":
        kept = np.flatnonzero(rows >= 0)
        rows = rows[kept]
        given = given if is_single else given[kept]
    queries = _queries(fitted, rows, given.__getitem__, filter_seen, policy)
    return replace(queries, n_given=n_given, kept=kept, is_single=is_single)


def everybody(fitted: Fitted, filter_seen: bool, policy: Policy) -> Queries:
    """All users of the training data; DataError as :func:`user_queries`."""
    rows = np.arange(fitted.n_users)
    return _queries(fitted, rows, _names_of(fitted, rows), filter_seen, policy)


def _queries(fitted: Fitted, rows: NDArray[np.integer], names: Names, filter_seen: bool, policy: Policy) -> Queries:
    known = rows >= 0
    cold = ~known
    if fitted.user_prior is None:  # its features say something of each user
        cold[known] = ~fitted.has_history(rows[known])

    def name_of(row: int) -> str:
        return fitted.name_of_user(int(rows[row])) if known[row] else repr(names(slice(row, row + 1)).tolist()[0])

    policy.check_cold(cold, name_of)
    users = _with_cold(fitted, known_users(fitted, rows, filter_seen), cold, policy)
    return Queries(users, names, arrow_type(fitted.user_ids), policy, len(rows))


def _names_of(fitted: Fitted, rows: NDArray[np.integer]) -> Names:
    """Ids, or row numbers, of users of the training data."""
    ids = fitted.user_ids
    return rows.__getitem__ if ids is None else lambda part: np.asarray(ids.take(rows[part]))


def _rows_or_none(fitted: Fitted, users: Any) -> tuple[NDArray[np.int64], bool]:
    """Row numbers (B,), -1 of users that are not there; whether it was a single one."""
    if fitted.user_ids is not None:
        rows = np.asarray(fitted.user_ids.find(users))
    else:
        rows = np.asarray(users)
        if rows.size and rows.dtype.kind not in "iu":
            raise TypeError(f"users must be row numbers (integers), got {rows.dtype}")
        rows = np.where((rows >= 0) & (rows < fitted.n_users), rows, -1)
    if rows.ndim > 1:
        raise ValueError(f"users must be one id or a 1-D list of ids, got shape {rows.shape}")
    return np.atleast_1d(rows).astype(np.int64), rows.ndim == 0


def _as_given(users: Any, fitted: Fitted) -> NDArray[Any]:
    """Ids as an array of the kind that the model's have."""
    if fitted.user_ids is not None and fitted.user_ids.kind == "string":
        return np.asarray(users, dtype=object)
    array = np.asarray(users)
    return array if array.dtype.kind in "iu" else np.asarray(users, dtype=object)


def row_queries(
    fitted: Fitted, interactions: Any, columns: Mapping[str, Any], filter_seen: bool, policy: Policy
) -> Queries:
    """Users given by their interactions; errors as :func:`new_rows` and :func:`user_queries`."""
    rows = new_rows(fitted, interactions, columns, unknown="error" if policy.unknown == "error" else "drop")
    n_given, kept, matrix, names = rows.matrix.shape[0], None, rows.matrix, rows.names
    cold = np.diff(matrix.indptr) == 0
    if policy.unknown == "skip" and rows.is_table and cold.any():
        kept = np.flatnonzero(~cold)
        matrix, names, cold = matrix[kept], names[kept], cold[kept]
    users = new_users(fitted, matrix, filter_seen)
    if fitted.user_prior is None:
        cold = cold | ~says_something(users.factors(slice(None)), np.arange(users.n))
    policy.check_cold(cold, lambda row: f"user {names[row : row + 1].tolist()[0]!r}")
    users = _with_cold(fitted, users, cold, policy)
    return Queries(users, names.__getitem__, rows.kind, policy, n_given, kept)


def _with_cold(fitted: Fitted, users: Users, cold: NDArray[np.bool_], policy: Policy) -> Users:
    """The users, knowing which of them are cold, and with the factors that the policy gives these."""
    if not cold.any():
        return users
    if policy.cold_users != "mean":
        return replace(users, cold=cold)
    mean = fitted.mean_user()
    factors = users.factors
    return replace(users, factors=lambda part: np.where(cold[part, None], mean, factors(part)), cold=cold)


def known_users(fitted: Fitted, rows: NDArray[np.integer], filter_seen: bool) -> Users:
    """Users of the training data by row number; -1 is somebody who is not there and has factors of 0."""

    filter_seen = flag("filter_seen", filter_seen)

    def factors(part: Part) -> NDArray[np.floating]:
        if not fitted.n_users:  # of a model without its users, all are somebody who is not there
            return np.zeros((len(rows[part]), fitted.factors), fitted.dtype)
        own: NDArray[np.floating] = fitted.user_factors[rows[part]]
        own[rows[part] < 0] = 0
        return own

    def entries(part: Part) -> csr_matrix | None:
        seen = fitted.seen
        if seen is None or (rows[part] >= 0).all():
            return None if seen is None else seen[rows[part]]
        is_known = rows[part] >= 0
        own = seen[rows[part][is_known]]
        row_ptr = np.zeros(len(is_known) + 1, own.indptr.dtype)
        row_ptr[1:][is_known] = np.diff(own.indptr)
        return csr_matrix((own.data, own.indices, np.cumsum(row_ptr)), shape=(len(is_known), fitted.n_items))

    def posterior(part: Part) -> Posterior:
        own = np.maximum(rows[part], 0)  # who is not there is never looked at
        terms, prior = _pulled_training_users(_training_terms(fitted, own), fitted.user_prior, own)
        return _posterior(fitted, terms, prior, lambda row: fitted.name_of_user(int(own[row])))

    def nothing(part: Part) -> csr_matrix | None:
        return None

    return Users(len(rows), factors, entries if filter_seen else nothing, posterior, rows, entries)


def new_users(fitted: Fitted, matrix: csr_matrix, filter_seen: bool) -> Users:
    """Users given by their interactions (R, I)."""
    filter_seen = flag("filter_seen", filter_seen)
    factors = fold_in(fitted, matrix)

    def posterior(part: Part) -> Posterior:
        terms, prior = _pulled_new_users(_new_terms(fitted, matrix[part]), fitted.user_prior)
        numbers = np.arange(len(factors))[part]
        return _posterior(fitted, terms, prior, lambda row: f"row {numbers[row]}")

    return Users(
        len(factors),
        factors.__getitem__,
        lambda part: matrix[part] if filter_seen else None,
        posterior,
        np.arange(len(factors)),
        matrix.__getitem__,
    )


# ---------------------------------------------------------------------------------------------------- new users


class NewRows(NamedTuple):
    """Interactions of new users, as :func:`new_rows` reads them."""

    matrix: csr_matrix  # (R, I)
    names: NDArray[Any]  # (R,) ids, or row numbers
    kind: pa.DataType  # of the names
    has_ids: bool  # else the names are row numbers
    is_table: bool  # whether each of them has a row in a table, though maybe none with an item that the model knows


def embeddings_of(fitted: Fitted, rows: NewRows, embeddings: Any) -> NDArray[np.floating] | None:
    """Embeddings (R, E) of new users, found by id where they come with ids."""
    if embeddings is None:
        return None
    if fitted.user_prior is None:
        raise ValueError("embeddings of users need a model with a user_prior")
    names = rows.names if rows.has_ids else None
    return LinearPrior(embeddings).rows_named("user", names, rows.matrix.shape[0])


def new_rows(fitted: Fitted, interactions: Any, columns: Mapping[str, Any], unknown: str = "error") -> NewRows:
    """Interactions of new users from a matrix, or from a table with ids, in the order in which its users appear.

    Rows of a table whose item the model does not know are an error, or with ``unknown="drop"`` ignored.
    """
    columns = {name: column for name, column in columns.items() if column is not None}
    is_matrix = isinstance(interactions, (Interactions, np.ndarray)) or hasattr(interactions, "tocsr")
    if is_matrix and columns:
        raise TypeError(f"{', '.join(columns)} can be given with a table only; interactions is a matrix")
    if isinstance(interactions, Interactions):
        ids = interactions.user_ids
        if interactions.item_ids is not None and fitted.item_ids is not None:
            interactions = as_interactions(interactions, item_ids=fitted.item_ids, dtype=fitted.dtype)
        elif interactions.item_ids is not None:
            raise TypeError(_NO_IDS)
        matrix = as_csr(interactions.matrix, dtype=fitted.dtype, n_columns=fitted.n_items, allow_empty=True)
        names = np.arange(matrix.shape[0]) if ids is None else ids.ids
        return NewRows(matrix, names, arrow_type(ids), ids is not None, is_table=False)
    if is_matrix:
        matrix = as_csr(interactions, dtype=fitted.dtype, n_columns=fitted.n_items, allow_empty=True)
        return NewRows(matrix, np.arange(matrix.shape[0]), pa.int64(), False, is_table=False)
    if fitted.item_ids is None:
        raise TypeError(_NO_IDS)
    options: dict[str, Any] = {"item_ids": fitted.item_ids, "dtype": fitted.dtype, "unknown": unknown}
    options |= {"like": fitted.columns, "warn_ratings": False}
    own, rows = in_order_of_appearance(interactions, **options, **columns)
    assert own.user_ids is not None  # as of every table
    return NewRows(own.matrix[rows], own.user_ids.take(rows), arrow_type(own.user_ids), True, is_table=True)


_NO_IDS = "interactions must be a matrix: the model was fitted on one, so it has no item ids"


def fold_in(fitted: Fitted, matrix: csr_matrix, embeddings: NDArray[np.floating] | None = None) -> NDArray[np.floating]:
    """Factors (R, D) of users from their interactions (R, I), with the item factors as they are."""
    factors = np.zeros((matrix.shape[0], fitted.factors), fitted.dtype)
    terms, prior = _pulled_new_users(_new_terms(fitted, matrix), fitted.user_prior, embeddings)
    fitted.backend.solve_rows(terms, fitted.item_factors, factors, prior=prior, spectrum=fitted.spectrum(terms))
    return factors


def _new_terms(fitted: Fitted, matrix: csr_matrix) -> RowTerms:
    assert fitted.bound is not None
    return fitted.bound.user_terms(matrix, fold_in=True)


def _training_terms(fitted: Fitted, rows: NDArray[np.integer]) -> RowTerms:
    """Terms of users of the training data, as the fit had them."""
    assert fitted.bound is not None and fitted.seen is not None
    if fitted.seen.dtype == bool:
        raise ModelFitError(
            "the folder that this model was loaded from holds no values of the training data, as older versions "
            "saved it; fit and save it again"
        )
    return fitted.bound.of_users(rows).user_terms(fitted.seen[rows])


def _posterior(
    fitted: Fitted, terms: RowTerms, prior: NDArray[np.floating] | None, name_of: Callable[[int], str]
) -> Posterior:
    return Posterior(terms, fitted.item_factors, fitted.spectrum(terms), name_of, prior)


# ---------------------------------------------------------------------------------------------------- user priors


def _pulled_training_users(
    terms: RowTerms, fitted: FittedPrior | None, rows: NDArray[np.integer]
) -> tuple[RowTerms, NDArray[np.floating] | None]:
    """Terms and prior means (None without a prior) of users of the training data, by their row numbers."""
    if fitted is None:
        return terms, None
    assert fitted.mean is not None
    return fitted.pulled(terms, fitted.mean[rows], rows)


def _pulled_new_users(
    terms: RowTerms, fitted: FittedPrior | None, embeddings: NDArray[np.floating] | None = None
) -> tuple[RowTerms, NDArray[np.floating] | None]:
    """The same of users that were not there, with their embeddings or those of the mean user."""
    if fitted is None:
        return terms, None
    met = np.diff(terms.row_ptr) > 0
    if embeddings is None:  # of features like the mean of all
        of_met, of_unmet = (np.tile(w[-1], (terms.n_rows, 1)) for w in (fitted.weights, fitted.unmet_weights))
    else:
        of_met, of_unmet = fitted.project(embeddings), fitted.project_unmet(embeddings)
    mean = np.where(met[:, None], of_met, of_unmet)
    dtype = terms.ridge.dtype
    if fitted.prior.cold != "map":
        terms = replace(terms, background=np.where(met, terms.background, 0).astype(dtype))
    return fitted.pulled(terms, mean.astype(dtype), np.full(terms.n_rows, -1))
