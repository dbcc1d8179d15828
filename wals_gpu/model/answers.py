"""What a fitted model answers: recommendations, similar rows, single scores, their certainty and reasons.

Functions of :class:`.fitted.Fitted`; the methods of :class:`wals_gpu.WALS` document what they take and give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number
from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import row_numbers
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.explore import UCB, Thompson, Users, best_items
from wals_gpu.retrieval.lists import Filters, Lists, item_list
from wals_gpu.retrieval.posterior import Posterior
from wals_gpu.training.fitted import Fitted

__all__ = [
    "Explanation",
    "explain",
    "fold_in",
    "item_index",
    "known_users",
    "new_rows",
    "new_users",
    "predict",
    "recommend",
    "recommend_chunks",
    "similar_items",
    "similar_users",
]

#: Pairs that `predict` scores at a time: their users' factors are 8 MiB at 128 factors.
PAIRS = 16384

Results = tuple[NDArray[Any], NDArray[np.floating]]


class Explanation(NamedTuple):
    """Why a user gets an item, see :meth:`wals_gpu.WALS.explain`.

    Attributes
    ----------
    score : float
        The score with exactly solved user factors: the sum of all contributions and `from_prior`.
    ids : (n,) array
        The user's items that add most, falling.
    contributions : (n,) float64
        What each adds; negative where it speaks against the item.
    from_prior : float
        What the user's prior mean adds; 0 without a prior.
    """

    score: float
    ids: NDArray[Any]
    contributions: NDArray[np.float64]
    from_prior: float


# ---------------------------------------------------------------------------------------------------- recommendations


def recommend(
    fitted: Fitted, users: Users, k: int, lists: Lists, explore: UCB | Thompson | None, show_progress: bool = False
) -> Results:
    """The k best items for users, (n, k) each: ids, or column numbers, and scores."""
    index, chunks = _best_items(fitted, users, k, lists, explore, CHUNK)
    columns, scores = index.collect(users.n, k, chunks, show_progress)
    return index.named(columns), scores


def recommend_chunks(
    fitted: Fitted, users: Users, k: int, lists: Lists, explore: UCB | Thompson | None, chunk_size: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]]:
    """The same, some users at a time, with their ids, or row numbers; wrong options are refused at once."""
    index, chunks = _best_items(fitted, users, k, lists, explore, integer("chunk_size", chunk_size, 1))

    def named() -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]]:
        for part, columns, scores in chunks:
            rows = users.keys[part]
            yield rows if fitted.user_ids is None else fitted.user_ids.take(rows), index.named(columns), scores

    return named()


def _best_items(
    fitted: Fitted, users: Users, k: int, lists: Lists, explore: UCB | Thompson | None, chunk_size: int
) -> tuple[ExactIndex, Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]]:
    """The index of the items, and its answers for users, a chunk after the other."""
    index = item_index(fitted)
    filters = index.filters(users.n, lists)
    return index, best_items(index, users, integer("k", k, 1), filters, explore, chunk_size)


def item_index(fitted: Fitted, metric: str = "dot") -> ExactIndex:
    """The item factors as an index."""
    return ExactIndex(fitted.item_factors, fitted.item_ids, metric=metric, backend=fitted.backend)


def similar_items(fitted: Fitted, items: ArrayLike, k: int, lists: Lists, show_progress: bool) -> Results:
    """The k items with the most similar factors, the item itself first."""
    rows, is_single = row_numbers(items, fitted.item_ids, fitted.n_items, "item")
    index = item_index(fitted, "cosine")
    return _similar(index, rows, is_single, k, index.filters(len(rows), lists), show_progress)


def similar_users(
    fitted: Fitted, users: ArrayLike, k: int, deny: ArrayLike | None, allow: ArrayLike | None, show_progress: bool
) -> Results:
    """The k users with the most similar factors, the user themself first; of those that the lists permit."""
    rows, is_single = row_numbers(users, fitted.user_ids, fitted.n_users, "user")
    index = ExactIndex(fitted.user_factors, fitted.user_ids, metric="cosine", backend=fitted.backend)
    filters = Filters(
        len(index),
        deny_items=item_list(deny, len(index), fitted.user_ids, "deny_users"),
        allow_items=item_list(allow, len(index), fitted.user_ids, "allow_users"),
    )
    return _similar(index, rows, is_single, k, filters, show_progress)


def _similar(
    index: ExactIndex, rows: NDArray[np.int64], is_single: bool, k: int, filters: Filters, show_progress: bool
) -> Results:
    columns, scores = index.similar(rows, k, filters, show_progress)
    return index.named(columns[0] if is_single else columns), scores[0] if is_single else scores


# ---------------------------------------------------------------------------------------------------- single scores


def predict(fitted: Fitted, users: ArrayLike, items: ArrayLike, noise: float | None) -> Any:
    """Scores of pairs of a user and an item; with `noise` also their standard deviations."""
    rows, one_user = row_numbers(users, fitted.user_ids, fitted.n_users, "user")
    columns, one_item = row_numbers(items, fitted.item_ids, fitted.n_items, "item")
    if not (one_user or one_item or len(rows) == len(columns)):
        raise ValueError(f"users and items must be pairs, got {len(rows)} users and {len(columns)} items")
    n = len(columns) if one_user else len(rows)
    rows, columns = np.broadcast_to(rows, n), np.broadcast_to(columns, n)
    scores = _pair_scores(fitted, rows, columns)
    one = one_user and one_item
    if noise is None:
        return scores[0] if one else scores
    different, user_of_pair = np.unique(rows, return_inverse=True)
    queries = known_users(fitted, different, filter_seen=False)
    std = number("noise", noise) * _pair_deviations(queries, user_of_pair, fitted.item_factors, columns)
    return (scores[0], std[0]) if one else (scores, std)


def explain(fitted: Fitted, user: Any, item: Any, k: int) -> Explanation:
    """What each of a user's items adds to the score of an item."""
    rows, one_user = row_numbers(user, fitted.user_ids, fitted.n_users, "user")
    column, one_item = row_numbers(item, fitted.item_ids, fitted.n_items, "item")
    if not (one_user and one_item):
        raise ValueError("explain takes one user and one item")
    posterior = known_users(fitted, rows, filter_seen=False).posterior(slice(0, 1))
    columns, contributions, from_prior = posterior.contributions(0, fitted.item_factors[column[0]])
    best = np.argsort(-contributions, kind="stable")[: integer("k", k, 1)]
    score = float(contributions.sum()) + from_prior
    return Explanation(score, item_index(fitted).named(columns[best]), contributions[best], from_prior)


def _pair_scores(fitted: Fitted, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.floating]:
    """Dot products (n,) of pairs given by row numbers of users and of items."""
    scores = np.empty(len(rows), fitted.dtype)
    for start in range(0, len(rows), PAIRS):
        part = slice(start, min(start + PAIRS, len(rows)))
        n = part.stop - start
        pairs = csr_matrix((np.ones(n, bool), columns[part], np.arange(n + 1)), shape=(n, fitted.n_items))
        scores[part] = fitted.backend.score_entries(fitted.user_factors[rows[part]], fitted.item_factors, pairs)
    return scores


def _pair_deviations(
    users: Users, user_of_pair: NDArray[np.integer], item_factors: NDArray[np.floating], columns: NDArray[np.integer]
) -> NDArray[np.float64]:
    """``sqrt(y' A^-1 y)`` (n,) of pairs of one of the users, by its place among them, and an item."""
    deviations = np.empty(len(columns))
    order = np.argsort(user_of_pair, kind="stable")
    ends = np.searchsorted(user_of_pair[order], np.arange(users.n + 1))
    for start in range(0, users.n, CHUNK):
        part = slice(start, min(start + CHUNK, users.n))
        posterior = users.posterior(part)
        for row in range(part.stop - start):
            pairs = order[ends[start + row] : ends[start + row + 1]]
            deviations[pairs] = np.sqrt(posterior.variances(row, item_factors[columns[pairs]]))
    return deviations


# ---------------------------------------------------------------------------------------------------- users


def known_users(fitted: Fitted, rows: NDArray[np.integer], filter_seen: bool) -> Users:
    """Users of the training data by row number."""
    seen = fitted.seen if filter_seen else None

    def posterior(part: slice) -> Posterior:
        terms, prior = _pulled_training_users(_training_terms(fitted, rows[part]), fitted.user_prior, rows[part])
        return _posterior(fitted, terms, prior, lambda row: fitted.name_of_user(int(rows[part.start + row])))

    return Users(
        len(rows),
        lambda part: fitted.user_factors[rows[part]],
        lambda part: None if seen is None else seen[rows[part]],
        posterior,
        rows,
    )


def new_users(fitted: Fitted, matrix: csr_matrix, filter_seen: bool) -> Users:
    """Users given by their interactions (R, I)."""
    factors = fold_in(fitted, matrix)

    def posterior(part: slice) -> Posterior:
        terms, prior = _pulled_new_users(_new_terms(fitted, matrix[part]), fitted.user_prior)
        return _posterior(fitted, terms, prior, lambda row: f"row {part.start + row}")

    return Users(
        len(factors),
        factors.__getitem__,
        lambda part: matrix[part] if filter_seen else None,
        posterior,
        np.arange(len(factors)),
    )


def fold_in(fitted: Fitted, matrix: csr_matrix, embeddings: Any = None) -> NDArray[np.floating]:
    """Factors (R, D) of users from their interactions (R, I), with the item factors as they are."""
    factors = np.zeros((matrix.shape[0], fitted.factors), fitted.dtype)
    terms, prior = _pulled_new_users(_new_terms(fitted, matrix), fitted.user_prior, embeddings)
    fitted.backend.solve_rows(terms, fitted.item_factors, factors, prior=prior, spectrum=fitted.spectrum(terms))
    return factors


def new_rows(fitted: Fitted, interactions: Any, columns: Mapping[str, Any]) -> csr_matrix:
    """Interactions of new users (R, I), from a matrix, or from a table with ids that the model knows."""
    if isinstance(interactions, Interactions) and interactions.item_ids is None:
        interactions = interactions.matrix
    if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
        return as_csr(interactions, dtype=fitted.dtype, n_columns=fitted.n_items, allow_empty=True)
    if fitted.item_ids is None:
        raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no item ids")
    return as_interactions(interactions, item_ids=fitted.item_ids, dtype=fitted.dtype, **columns).matrix


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
    terms: RowTerms, fitted: FittedPrior | None, embeddings: Any = None
) -> tuple[RowTerms, NDArray[np.floating] | None]:
    """The same of users that were not there, with their embeddings or those of the mean user."""
    if fitted is None:
        if embeddings is not None:
            raise ValueError("embeddings of users need a model with a user_prior")
        return terms, None
    if embeddings is None:
        mean = np.tile(fitted.weights[-1], (terms.n_rows, 1))  # of features like the mean of all
    else:
        mean = fitted.project(embeddings)
        if len(mean) != terms.n_rows:
            raise DataError(f"embeddings must have one row for each of {terms.n_rows} users, got {len(mean)}")
    dtype = terms.ridge.dtype
    if fitted.prior.cold == "prior_mean":
        met = np.diff(terms.row_ptr) > 0
        terms = dataclasses.replace(terms, background=np.where(met, terms.background, 0).astype(dtype))
    return fitted.pulled(terms, mean.astype(dtype), np.full(terms.n_rows, -1))
