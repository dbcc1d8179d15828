"""What a fitted model answers: recommendations, similar items and users, single scores, their certainty and reasons."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.checks import integer, number
from wals_gpu.data.csr import as_csr
from wals_gpu.data.ids import Ids, row_numbers
from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.terms import RowTerms
from wals_gpu.priors.linear import FittedPrior
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.explore import UCB, Thompson, Users, best_items, make_exploration
from wals_gpu.retrieval.lists import Filters, Lists, item_list
from wals_gpu.retrieval.posterior import Posterior

__all__ = ["Answers", "Explanation"]

#: Pairs that `predict` scores at a time: their users' factors are 8 MiB at 128 factors.
PAIRS = 16384


class Explanation(NamedTuple):
    """Why a user gets an item, see :meth:`Answers.explain`.

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


class Answers:
    """The answers of :class:`wals_gpu.WALS`, which provides the attributes below."""

    factors: int
    dtype: np.dtype
    user_factors: NDArray[np.floating] | None
    item_factors: NDArray[np.floating] | None
    user_ids: Ids | None
    item_ids: Ids | None
    _backend: Backend
    _bound: BoundObjective | None
    user_prior_: FittedPrior | None
    _seen: csr_matrix | None  # training interactions; without their values (bool) where a file did not have them
    _kept_spectrum: tuple[NDArray[np.floating], Spectrum] | None = None  # of the item factors beside it

    # ------------------------------------------------------------------------------------------------ recommendations

    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        show_progress: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k best items for users of the training data.

        Parameters
        ----------
        users : id, or (B,) list or array of ids
            Row numbers where the model was fitted on a matrix.
        k : int, default 10
        filter_seen : bool, default True
            Leave out the items that the user has an entry for.
        deny, allow : (B, I) sparse matrix, or B lists of item ids, optional
            For each user, items not to recommend, and the only ones to choose from: the stored entries of a row, of any
            value. With `allow`, only what it lists is scored.
        deny_items, allow_items : list of item ids, optional
            The same for all users. Whatever is given holds: an item must be on every allow list and on no deny list.
        explore : {None, "ucb", "thompson"}, UCB or Thompson, default None
            Recommend with the uncertainty of the scores in mind (:mod:`wals_gpu.retrieval.posterior`). "ucb": by
            ``score + noise sqrt(y' A^-1 y)``, the upper confidence bound, I D^2 multiplications a user. "thompson": by
            the scores of a draw of the user's factors. The texts are short for ``UCB(noise)`` and
            ``Thompson(noise, seed)`` of :mod:`wals_gpu.retrieval`, beside which `noise` and `random_state` are errors.
        noise : float, default 1.0
            With a text: standard deviation of an observation of confidence 1. 0 explores nothing.
        random_state : int, Generator or None
            With "thompson": seed of the draws. A user's draw depends on it and on the user only; None: from the
            operating system.
        show_progress : bool, default False

        Returns
        -------
        ids : (k,) for one user, (B, k) for several
            Item ids, or int32 column numbers of the matrix; None, or -1, where fewer than k items are left.
        scores : same shape
            Dot products (with `explore`: the bounds, or the drawn scores) in falling order, equal ones by item number;
            -inf where there is no item.

        Raises
        ------
        KeyError, IndexError
            A user or item that the model does not know.
        TypeError, ValueError
            Lists of a wrong kind or shape; an option that has no meaning beside the others.
        SingularSystemError
            With `explore`: scores of a user have no finite variance.
        ModelFitError
            The model is not fitted.
        """
        rows, scalar = self._user_rows(users)
        queries, lists = self._training_users(rows, filter_seen), Lists(deny, allow, deny_items, allow_items)
        index, chunks = self._best_items(queries, k, lists, make_exploration(explore, noise, random_state))
        columns, scores = index.collect(len(rows), k, chunks, show_progress)
        return index.named(columns[0] if scalar else columns), scores[0] if scalar else scores

    def recommend_chunks(
        self,
        users: ArrayLike | None = None,
        k: int = 10,
        *,
        chunk_size: int = CHUNK,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]]:
        """:meth:`recommend` for many users, some at a time: memory does not grow with their number.

        Parameters
        ----------
        users : (B,) list or array of ids, optional
            None: all.
        k : int, default 10
        chunk_size : int, default 4096
            Users at a time.
        filter_seen, deny, allow, deny_items, allow_items, explore, noise, random_state
            As for :meth:`recommend`.

        Yields
        ------
        users : (b,) array
            Ids, or row numbers.
        ids, scores : (b, k)
        """
        rows = np.arange(len(self._fitted()[0])) if users is None else self._user_rows(users)[0]
        queries, lists = self._training_users(rows, filter_seen), Lists(deny, allow, deny_items, allow_items)
        chunk_size = integer("chunk_size", chunk_size, 1)
        index, chunks = self._best_items(queries, k, lists, make_exploration(explore, noise, random_state), chunk_size)

        def named() -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]]:
            for part, columns, scores in chunks:
                who = rows[part] if self.user_ids is None else self.user_ids.take(rows[part])
                yield who, index.named(columns), scores

        return named()

    def recommend_for(
        self,
        interactions: Any,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        show_progress: bool = False,
        **columns: Any,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k best items for users given by their interactions, whether they were in the training data or not.

        Parameters
        ----------
        interactions, **columns
            As for :meth:`fold_in`.
        k, filter_seen, deny, allow, deny_items, allow_items, explore, noise, random_state, show_progress
            As for :meth:`recommend`; a draw depends on the seed and on the number of the row.

        Returns
        -------
        ids, scores : (R, k)
            As for :meth:`recommend`, one row for each user in the order of :meth:`fold_in`.
        """
        matrix = self._new_rows(interactions, columns)
        queries, lists = self._new_users(matrix, filter_seen), Lists(deny, allow, deny_items, allow_items)
        index, chunks = self._best_items(queries, k, lists, make_exploration(explore, noise, random_state))
        found, scores = index.collect(queries.n, k, chunks, show_progress)
        return index.named(found), scores

    def _best_items(
        self, queries: Users, k: int, lists: Lists, explore: UCB | Thompson | None, chunk_size: int = CHUNK
    ) -> tuple[ExactIndex, Iterator[tuple[slice, NDArray[np.int32], NDArray[np.floating]]]]:
        """The index of the items, and its answers for users, a chunk after the other."""
        index = self.item_index()
        filters = index.filters(queries.n, lists)
        return index, best_items(index, queries, integer("k", k, 1), filters, explore, chunk_size)

    def search(
        self,
        vectors: ArrayLike,
        k: int = 10,
        *,
        metric: str = "dot",
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        show_progress: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k best items for vectors in the space of the factors: of :meth:`fold_in`, or projected texts.

        Parameters
        ----------
        vectors : (D,) or (B, D) array
        k : int, default 10
        metric : {"dot", "cosine"}, default "dot"
        deny, allow, deny_items, allow_items, show_progress
            As for :meth:`recommend`.

        Returns
        -------
        ids, scores : (k,) for one vector, (B, k) for several
            As for :meth:`recommend`; scores are cosines with that metric.
        """
        return self.item_index(metric).search(
            vectors,
            k,
            deny=deny,
            allow=allow,
            deny_items=deny_items,
            allow_items=allow_items,
            show_progress=show_progress,
        )

    def item_index(self, metric: str = "dot") -> ExactIndex:
        """The item factors as an index: exact search, and export to approximate ones (:mod:`wals_gpu.ann`)."""
        return self._index(self._fitted()[1], self.item_ids, metric)

    # ------------------------------------------------------------------------------------------------ similarity

    def similar_items(
        self,
        items: ArrayLike,
        k: int = 10,
        *,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        show_progress: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k items with the most similar factors, the item itself first.

        Parameters
        ----------
        items : id, or (B,) list or array of ids
            Column numbers where the model was fitted on a matrix.
        k : int, default 10
        deny, allow, deny_items, allow_items, show_progress
            As for :meth:`recommend`, with one list for each of the `items`. They hold for the item itself too.

        Returns
        -------
        ids, scores : (k,) or (B, k)
            Cosines in falling order; None, or -1, and -inf where there are no more. Items with a zero factor (no
            interactions) are not similar to anything, not even to themselves.
        """
        rows, scalar = row_numbers(items, self.item_ids, len(self._fitted()[1]), "item")
        index = self.item_index("cosine")
        filters = index.filters(len(rows), Lists(deny, allow, deny_items, allow_items))
        columns, scores = index.similar(rows, k, filters, show_progress)
        return index.named(columns[0] if scalar else columns), scores[0] if scalar else scores

    def similar_users(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        deny_users: ArrayLike | None = None,
        allow_users: ArrayLike | None = None,
        show_progress: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.floating]]:
        """The k users with the most similar factors, the user themself first; otherwise as :meth:`similar_items`."""
        rows, scalar = self._user_rows(users)
        index = self._index(self._fitted()[0], self.user_ids, "cosine")
        filters = Filters(
            len(index),
            deny_items=item_list(deny_users, len(index), self.user_ids, "deny_users"),
            allow_items=item_list(allow_users, len(index), self.user_ids, "allow_users"),
        )
        columns, scores = index.similar(rows, k, filters, show_progress)
        return index.named(columns[0] if scalar else columns), scores[0] if scalar else scores

    # ------------------------------------------------------------------------------------------------ single scores

    def predict(
        self, users: ArrayLike, items: ArrayLike, *, return_std: bool = False, noise: float | None = None
    ) -> Any:
        """Scores of pairs of a user and an item.

        Parameters
        ----------
        users, items : id, or (n,) list or array of ids
            One id beside a list stands for each of its pairs.
        return_std : bool, default False
            Also the standard deviation of each score, ``noise sqrt(y' A^-1 y)`` with the user's system A: see
            :mod:`wals_gpu.retrieval.posterior`.
        noise : float, default 1.0
            With `return_std`: standard deviation of an observation of confidence 1.

        Returns
        -------
        scores : (n,) array, a number for two single ids
            In the dtype of the factors; the same for a pair in whatever list it stands.
        std : same shape, float64
            With `return_std`.

        Raises
        ------
        KeyError, IndexError
            A user or item that the model does not know.
        ValueError
            Lists of different lengths.
        SingularSystemError
            With `return_std`: scores of a user have no finite variance.
        """
        user_factors, item_factors = self._fitted()
        rows, one_user = self._user_rows(users)
        columns, one_item = row_numbers(items, self.item_ids, len(item_factors), "item")
        if not (one_user or one_item or len(rows) == len(columns)):
            raise ValueError(f"users and items must be pairs, got {len(rows)} users and {len(columns)} items")
        if noise is not None and not return_std:
            raise ValueError("noise has a meaning only with return_std=True")
        n = len(columns) if one_user else len(rows)
        rows, columns = np.broadcast_to(rows, n), np.broadcast_to(columns, n)
        scores = _pair_scores(self._backend, user_factors, item_factors, rows, columns)
        one = one_user and one_item
        if not return_std:
            return scores[0] if one else scores
        noise = 1.0 if noise is None else number("noise", noise)
        users, user_of_pair = np.unique(rows, return_inverse=True)
        std = noise * _pair_deviations(self._training_users(users, False), user_of_pair, item_factors, columns)
        return (scores[0], std[0]) if one else (scores, std)

    def explain(self, user: Any, item: Any, k: int = 10) -> Explanation:
        """What each of a user's items adds to the score of an item (Hu, Koren, Volinsky 2008, section 5).

        Parameters
        ----------
        user, item : id
        k : int, default 10
            Items of the user to name.

        Returns
        -------
        Explanation

        Raises
        ------
        KeyError, IndexError
            A user or item that the model does not know.
        SingularSystemError
            The user's system has no unique solution.
        """
        rows, one_user = self._user_rows(user)
        column, one_item = row_numbers(item, self.item_ids, len(self._fitted()[1]), "item")
        if not (one_user and one_item):
            raise ValueError("explain takes one user and one item")
        posterior = self._training_users(rows, filter_seen=False).posterior(slice(0, 1))
        columns, contributions, from_prior = posterior.contributions(0, self._fitted()[1][column[0]])
        best = np.argsort(-contributions, kind="stable")[: integer("k", k, 1)]
        score = float(contributions.sum()) + from_prior
        return Explanation(score, self.item_index().named(columns[best]), contributions[best], from_prior)

    # ------------------------------------------------------------------------------------------------ new users

    def fold_in(
        self, interactions: Any, *, embeddings: ArrayLike | None = None, **columns: Any
    ) -> NDArray[np.floating]:
        """Factors of users from their interactions, with the item factors as they are.

        Parameters
        ----------
        interactions : matrix (R, I), or a table with the items' ids
            All that is known of each user, not only what is new. A table's users come in increasing order of their ids.
        embeddings : (R, E) array, optional
            Of the users, for the model's `user_prior`; default: the mean of the users in training.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table.

        Returns
        -------
        (R, D) array

        Raises
        ------
        DataError, KeyError
            Input that cannot be used, or items that the model does not know.
        """
        return self._fold_in(self._new_rows(interactions, columns), embeddings)

    def _fold_in(self, matrix: csr_matrix, embeddings: Any = None) -> NDArray[np.floating]:
        _, item_factors = self._fitted()
        factors = np.zeros((matrix.shape[0], self.factors), self.dtype)
        terms, prior = _pulled_new_users(self._new_terms(matrix), self.user_prior_, embeddings)
        self._backend.solve_rows(terms, item_factors, factors, prior=prior, spectrum=self._spectrum(terms))
        return factors

    def _new_terms(self, matrix: csr_matrix) -> RowTerms:
        assert self._bound is not None
        return self._bound.user_terms(matrix, fold_in=True)

    def _new_rows(self, interactions: Any, columns: dict[str, Any]) -> csr_matrix:
        _, item_factors = self._fitted()
        if isinstance(interactions, Interactions) and interactions.item_ids is None:
            interactions = interactions.matrix
        if isinstance(interactions, np.ndarray) or hasattr(interactions, "tocsr"):
            return as_csr(interactions, dtype=self.dtype, n_columns=len(item_factors), allow_empty=True)
        if self.item_ids is None:
            raise TypeError("interactions must be a matrix: the model was fitted on one, so it has no item ids")
        return as_interactions(interactions, item_ids=self.item_ids, dtype=self.dtype, **columns).matrix

    # ------------------------------------------------------------------------------------------------ shared

    @property
    def n_users(self) -> int:
        """U; :class:`ModelFitError` where the model is not fitted."""
        return len(self._fitted()[0])

    @property
    def n_items(self) -> int:
        """I; :class:`ModelFitError` where the model is not fitted."""
        return len(self._fitted()[1])

    def _fitted(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        if self.user_factors is None or self.item_factors is None:
            raise ModelFitError("the model is not fitted: call fit(interactions) first")
        return self.user_factors, self.item_factors

    def _index(self, vectors: NDArray[np.floating], ids: Ids | None, metric: str) -> ExactIndex:
        return ExactIndex(vectors, ids, metric=metric, backend=self._backend)

    def _user_rows(self, users: ArrayLike) -> tuple[NDArray[np.int64], bool]:
        return row_numbers(users, self.user_ids, len(self._fitted()[0]), "user")

    def _training_users(self, rows: NDArray[np.integer], filter_seen: bool) -> Users:
        """Users of the training data by row number."""
        user_factors, seen = self._fitted()[0], self._seen if filter_seen else None

        def posterior(part: slice) -> Posterior:
            terms, prior = _pulled_training_users(self._training_terms(rows[part]), self.user_prior_, rows[part])
            return self._posterior(terms, prior, lambda row: self._user_name(int(rows[part.start + row])))

        return Users(
            len(rows),
            lambda part: user_factors[rows[part]],
            lambda part: None if seen is None else seen[rows[part]],
            posterior,
            rows,
        )

    def _new_users(self, matrix: csr_matrix, filter_seen: bool) -> Users:
        """Users given by their interactions (R, I)."""
        factors = self._fold_in(matrix)

        def posterior(part: slice) -> Posterior:
            terms, prior = _pulled_new_users(self._new_terms(matrix[part]), self.user_prior_)
            return self._posterior(terms, prior, lambda row: f"row {part.start + row}")

        return Users(
            len(factors),
            factors.__getitem__,
            lambda part: matrix[part] if filter_seen else None,
            posterior,
            np.arange(len(factors)),
        )

    def _training_terms(self, rows: NDArray[np.integer]) -> RowTerms:
        """Terms of users of the training data, as the fit had them."""
        assert self._bound is not None and self._seen is not None
        if self._seen.dtype == bool:
            raise ModelFitError(
                "the folder that this model was loaded from holds no values of the training data, as older versions "
                "saved it; fit and save it again"
            )
        return self._bound.of_users(rows).user_terms(self._seen[rows])

    def _posterior(
        self, terms: RowTerms, prior: NDArray[np.floating] | None, name_of: Callable[[int], str]
    ) -> Posterior:
        return Posterior(terms, self._fitted()[1], self._spectrum(terms), name_of, prior)

    def _user_name(self, row: int) -> str:
        return f"user {row}" if self.user_ids is None else f"user {row} (id {self.user_ids.take(row)!r})"

    def _spectrum(self, terms: RowTerms) -> Spectrum:
        """Of the item factors. Kept where these are read-only, as `fit` leaves them, so that it stays true."""
        items = self._fitted()[1]
        if not terms.background.any():  # of no weight, whatever the factors: not one to keep for others
            return self._backend.spectrum(terms, items)
        if self._kept_spectrum is None or self._kept_spectrum[0] is not items or items.flags.writeable:
            spectrum = self._backend.spectrum(terms, items)
            if items.flags.writeable:
                return spectrum
            self._kept_spectrum = (items, spectrum)
        return self._kept_spectrum[1]


# ---------------------------------------------------------------------------------------------------- pairs


def _pair_scores(
    backend: Backend,
    user_factors: NDArray[np.floating],
    item_factors: NDArray[np.floating],
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
) -> NDArray[np.floating]:
    """Dot products (n,) of pairs given by row numbers of users and of items."""
    scores = np.empty(len(rows), user_factors.dtype)
    for start in range(0, len(rows), PAIRS):
        part = slice(start, min(start + PAIRS, len(rows)))
        n = part.stop - start
        pairs = csr_matrix((np.ones(n, bool), columns[part], np.arange(n + 1)), shape=(n, len(item_factors)))
        scores[part] = backend.score_entries(user_factors[rows[part]], item_factors, pairs)
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
