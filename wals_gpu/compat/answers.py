"""What a model answers: recommendations, similar items and users, explanations.

Shapes: U users, I items, D factors, B rows of a batch, N results.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix

from wals_gpu.checks import list_length, refuse_masked
from wals_gpu.compat.factors import Factors
from wals_gpu.compat.ranking import chosen_columns, rank
from wals_gpu.compat.rows import as_csr, csr, singular

__all__ = ["Answers"]


class Answers(Factors):
    """Questions to :class:`wals_gpu.als.CpuAlternatingLeastSquares` in implicit's words."""

    def recommend(
        self,
        userid: ArrayLike,
        user_items: csr_matrix | None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: ArrayLike | None = None,
        recalculate_user: bool = False,
        items: ArrayLike | None = None,
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The N best items for one user or for each user of a batch.

        Parameters
        ----------
        userid : int or (B,) array of int
        user_items : (B, I) csr_matrix or None
            Rows of these users, in the order of the ids. None only with ``filter_already_liked_items=False`` and
            ``recalculate_user=False``.
        N : int, default 10
            With `items`, at most as many as they are.
        filter_already_liked_items : bool, default True
            Put what the user's row holds last.
        filter_items : array of int, optional
            Items to put last for all users.
        recalculate_user : bool, default False
            Use factors recalculated from `user_items`; the values of the ids do not matter then.
        items : array of int, optional
            The only items to rank. Not together with `filter_items`.

        Returns
        -------
        ids : (N,) or (B, N)
            int32, with `items` their type. Filtered items come last. -1 where the model has fewer than N items.
        scores : same shape
            Dot products, falling; equal ones by falling id. The lowest number of the dtype (-3.4028235e38) for
            filtered items and empty slots.

        Raises
        ------
        IndexError
            An id that the model does not have, N < 1, or no `items`.
        ValueError
            `user_items` is no CSR matrix, or does not fit the ids or the model; both `items` and `filter_items`.
        TypeError
            The model is not fitted.
        """
        if filter_already_liked_items or recalculate_user:
            if not isinstance(user_items, csr_matrix):
                raise ValueError("user_items needs to be a CSR sparse matrix")
            if user_items.shape[0] != np.size(userid):
                raise ValueError("user_items must contain 1 row for every user in userids")
        query = self._user_factor(userid, user_items, recalculate_user)
        factors = self._fitted("item")
        liked = csr(user_items, "user_items", len(factors)) if filter_already_liked_items else None
        if items is not None:
            items = np.sort(_choice(items, "item"))
            N = min(N, len(items))
        return self._top(query, factors, N, "item", items, filter_items, "recommend", liked)

    def recommend_all(
        self,
        user_items: csr_matrix,
        N: int = 10,
        recalculate_user: bool = False,
        filter_already_liked_items: bool = True,
        filter_items: ArrayLike | None = None,
        users_items_offset: int = 0,
    ) -> NDArray[np.integer]:
        """Deprecated: the ids of :meth:`recommend` for users ``users_items_offset``, ``users_items_offset + 1``, ...

        Parameters
        ----------
        user_items : (B, I) csr_matrix
            Rows of these users.
        N : int, default 10
        recalculate_user, filter_already_liked_items, filter_items
            As for :meth:`recommend`.
        users_items_offset : int, default 0
            The first user.

        Returns
        -------
        (B, N) array of int

        Warns
        -----
        DeprecationWarning
            At each call.
        """
        warnings.warn("recommend_all is deprecated: call recommend with all ids", DeprecationWarning, stacklevel=2)
        userids = np.arange(user_items.shape[0]) + users_items_offset
        return self.recommend(
            userids, user_items, N, filter_already_liked_items, filter_items, recalculate_user=recalculate_user
        )[0]

    def rank_items(
        self,
        userid: ArrayLike,
        user_items: csr_matrix | None,
        selected_items: ArrayLike,
        recalculate_user: bool = False,
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """Deprecated: :meth:`recommend` with ``items=selected_items`` and no filter, the ten best.

        Parameters
        ----------
        userid, user_items, recalculate_user
            As for :meth:`recommend`.
        selected_items : array of int
            The only items to rank.

        Returns
        -------
        ids, scores : (10,) or (B, 10), or as many as the items are
            As of :meth:`recommend`.

        Warns
        -----
        DeprecationWarning
            At each call.
        """
        warnings.warn("rank_items is deprecated: call recommend with items=...", DeprecationWarning, stacklevel=2)
        return self.recommend(
            userid,
            user_items,
            filter_already_liked_items=False,
            recalculate_user=recalculate_user,
            items=selected_items,
        )

    def similar_items(
        self,
        itemid: ArrayLike,
        N: int = 10,
        recalculate_item: bool = False,
        item_users: csr_matrix | None = None,
        filter_items: ArrayLike | None = None,
        items: ArrayLike | None = None,
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The N items of highest cosine with one item, or with each item of a batch; the item itself comes first.

        Parameters
        ----------
        itemid : int or (B,) array of int
        N : int, default 10
        recalculate_item : bool, default False
            Use factors recalculated from `item_users` (B, U), which is not looked at otherwise.
        item_users : csr_matrix, optional
        filter_items, items
            As for :meth:`recommend`.

        Returns
        -------
        ids, scores : (N,) or (B, N)
            As for :meth:`recommend`; the score of a filtered item is further divided by the norm of the query.

        Raises
        ------
        IndexError, TypeError, ValueError
            As :meth:`recommend`.
        """
        query = self._item_factor(itemid, item_users, recalculate_item)
        return self._similar(query, N, "item", items, filter_items)

    def similar_users(
        self,
        userid: ArrayLike,
        N: int = 10,
        filter_users: ArrayLike | None = None,
        users: ArrayLike | None = None,
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The N users of highest cosine with one user, or with each user of a batch; the user themself comes first.

        Parameters
        ----------
        userid : int or (B,) array of int
        N : int, default 10
        filter_users : array of int, optional
            Users to put last.
        users : array of int, optional
            The only users to rank. Not together with `filter_users`.

        Returns
        -------
        ids, scores : (N,) or (B, N)
            As of :meth:`similar_items`.

        Raises
        ------
        IndexError, TypeError, ValueError
            As :meth:`recommend`.
        """
        query = self._user_factor(userid)
        return self._similar(query, N, "user", users, filter_users)

    def explain(
        self,
        userid: int,
        user_items: csr_matrix,
        itemid: int,
        user_weights: tuple[NDArray[np.floating], bool] | None = None,
        N: int = 10,
    ) -> tuple[float, list[tuple[int, float]], tuple[NDArray[np.floating], bool]]:
        """How much each liked item adds to a score (Hu, Koren, Volinsky 2008, section 5).

        Parameters
        ----------
        userid : int
            Row of `user_items`.
        user_items : csr_matrix
        itemid : int
            The item whose score is explained.
        user_weights : tuple, optional
            What an earlier call for the same user returned, to save its factorisation.
        N : int, default 10

        Returns
        -------
        total_score : float
            The score of the item with exactly recalculated user factors.
        top_contributions : list of (item id, contribution)
            The N highest, falling; all of them add up to the score.
        user_weights : tuple
            Cholesky factor of the user's system, as of ``scipy.linalg.cho_factor``.

        Raises
        ------
        IndexError
            Unknown ids.
        SingularSystemError
            The user's system has no unique solution.
        """
        factors = self._fitted("item")
        matrix = as_csr(user_items)
        matrix = csr(matrix[self._index(userid, matrix.shape[0], "userid")], "user_items", len(factors))
        terms = self._terms(matrix, "user")
        system, _, of_entries = terms.system(0, factors, self.YtY)
        if user_weights is None:
            try:
                user_weights = cho_factor(system)
            except LinAlgError:
                raise singular(int(userid), "user") from None
        weighted = cho_solve(user_weights, factors[self._index(itemid, len(factors), "itemid")].astype(np.float64))
        liked = matrix.data >= 0
        ids, contributions = matrix.indices[liked], (terms.rhs_values() * (of_entries @ weighted))[liked]
        best = np.lexsort((ids, contributions))[::-1][:N]
        return (
            float(contributions.sum()),
            [(int(ids[k]), float(contributions[k])) for k in best],
            user_weights,
        )

    def _similar(
        self, query: NDArray[np.floating], N: int, side: str, only: ArrayLike | None, hide: ArrayLike | None
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        factors = self._fitted(side)
        norms = self.user_norms if side == "user" else self.item_norms
        if only is not None:
            only = _choice(only, side)
            N = N if self.strict_compat else min(N, len(only))
        ids, scores = self._top(query, factors, N, side, only, hide, f"similar_{side}s", norms=norms)
        norm = np.linalg.norm(query, axis=-1, keepdims=True)
        with np.errstate(over="ignore"):  # the score of a filtered item
            return ids, scores / np.where(norm == 0, query.dtype.type(1e-10), norm)

    def _top(
        self,
        query: NDArray[np.floating],
        factors: NDArray[np.floating],
        N: int,
        side: str,
        only: NDArray[np.integer] | None,
        hide: ArrayLike | None,
        call: str,
        liked: csr_matrix | None = None,
        norms: NDArray[np.floating] | None = None,
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The N rows of `factors` (n, D), divided by their norms (n,) if given, best for a query (D,) or (B, D).

        Only rows `only`, if given; rows `hide` and the entries of `liked` (B, n) come last. `side` and `call` name
        things in errors.
        """
        hidden = choice = None
        n_rows = len(factors)
        if hide is not None and np.size(hide):
            if only is not None:
                raise ValueError(f"Can't set both {side}s and filter_{side}s in {call} call")
            hidden = np.atleast_1d(self._index(hide, n_rows, f"filter_{side}s"))  # implicit takes a single one
        if only is not None:
            if not len(only):
                raise IndexError(f"{side}s must name at least one {side}")
            if only.min() < 0 or only.max() >= n_rows:
                # The words of implicit, which programs may look for.
                raise IndexError(f"Some {side}ids in the {side}s parameter in are not in the model")
            n_rows = len(only)
            if liked is not None and not liked.data.all():  # implicit filters stored zeros only without a choice
                liked = liked.copy()
                liked.eliminate_zeros()
            if only.dtype.kind in "iu" and (only[1:] > only[:-1]).all():
                choice = only
            else:  # an id twice is answered twice, and equal scores come by their places in the list
                factors, norms = factors[only], None if norms is None else norms[only]
                liked = None if liked is None else chosen_columns(liked, only)
        N = _count(N)
        if N < 1:
            raise IndexError(f"N must be at least 1, got {N}")
        n_queries = 1 if query.ndim == 1 else len(query)
        list_length("N", N, len(factors), 2 * n_queries * (4 + factors.itemsize))  # also while they are filled up

        queries = np.ascontiguousarray(np.atleast_2d(query), factors.dtype)
        ids: NDArray[np.integer]
        ids, scores = rank(self._backend, queries, factors, N, liked=liked, hidden=hidden, only=choice, norms=norms)
        if only is not None:
            ids = ids.astype(only.dtype) if choice is not None else only[ids]
        if N > n_rows:
            id_, score = (0, 0.0) if self.strict_compat else (-1, np.finfo(scores.dtype).min)
            if only is not None:
                id_ = only[id_]
            empty = ((0, 0), (0, N - n_rows))
            ids, scores = np.pad(ids, empty, constant_values=id_), np.pad(scores, empty, constant_values=score)
        if query.ndim == 1:
            ids, scores = ids[0], scores[0]
        return ids, scores

    def _user_factor(
        self, userid: ArrayLike, user_items: csr_matrix | None = None, recalculate_user: bool = False
    ) -> NDArray[np.floating]:
        if recalculate_user:
            return self.recalculate_user(userid, user_items)
        factors = self._fitted("user")
        rows: NDArray[np.floating] = factors[self._index(userid, len(factors), "userid")]
        return rows.copy()  # implicit's Faiss model scales it in place

    def _item_factor(
        self, itemid: ArrayLike, item_users: csr_matrix | None = None, recalculate_item: bool = False
    ) -> NDArray[np.floating]:
        if recalculate_item:
            return self.recalculate_item(itemid, item_users)
        factors = self._fitted("item")
        rows: NDArray[np.floating] = factors[self._index(itemid, len(factors), "itemid")]
        return rows.copy()


def _choice(ids: ArrayLike, side: str) -> NDArray[np.integer]:
    """The only rows of a side to rank, as an array: a mask would be taken for the rows 0 and 1."""
    refuse_masked(f"{side}s", ids)
    only = np.asarray(ids)
    if only.ndim != 1 or (only.size and only.dtype.kind not in "iu"):
        raise IndexError(f"{side}s must be a list of integers, got {only.dtype} of shape {only.shape}")
    return only


def _count(N: Any) -> int:
    """N as an integer; implicit takes 10.0 for 10."""
    if isinstance(N, (float, np.floating)) and float(N).is_integer():
        return int(N)
    try:
        return operator.index(N)
    except TypeError:
        raise TypeError(f"N must be an integer, got {type(N).__name__} {N!r:.60}") from None
