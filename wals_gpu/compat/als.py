"""``implicit``'s alternating least squares, with its arguments, results and files, on the solvers of this package.

A program moves over by importing :class:`AlternatingLeastSquares` and :func:`calculate_loss` from here, or without a
changed line through :mod:`wals_gpu.accel`. The objective is the preset "implicit" of :mod:`wals_gpu.objective`.

Shapes: U users, I items, D factors, B rows of a batch, N results.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import operator
import os
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from tqdm.auto import tqdm

from wals_gpu.backends.cuda_memory import cuda_status
from wals_gpu.backends.devices import make_backend
from wals_gpu.backends.host import Spectrum
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import warn
from wals_gpu.compat.ranking import chosen_columns, rank
from wals_gpu.data.files import load_npz
from wals_gpu.errors import ModelFitError, ModelFormatError, SingularSystemError
from wals_gpu.objective.bound import BoundObjective
from wals_gpu.objective.presets import Implicit
from wals_gpu.objective.terms import RowTerms

__all__ = ["AlternatingLeastSquares", "CpuAlternatingLeastSquares", "calculate_loss"]

log = logging.getLogger(__name__)

#: What a saved file holds, in implicit's names.
SAVED = (
    "user_factors",
    "item_factors",
    "regularization",
    "factors",
    "num_threads",
    "iterations",
    "use_native",
    "use_cg",
    "cg_steps",
    "calculate_training_loss",
    "dtype",
    "random_state",
    "alpha",
    "strict_compat",
)


class _KeptSpectrum(NamedTuple):
    """A spectrum and what it is of: the factors and Gram matrix of a side; and these factors in the model's type."""

    factors: NDArray[np.floating]
    gram: NDArray[np.floating]
    table: NDArray[np.floating]
    spectrum: Spectrum


class CpuAlternatingLeastSquares:
    """Alternating least squares with the arguments of ``implicit.cpu.als.AlternatingLeastSquares``, in that order.

    Minimises, over user factors X and item factors Y::

        sum over stored pairs of |c| (p - x.y)^2 + sum over all others of (x.y)^2 + regularization (|X|^2 + |Y|^2)

    with confidence ``c = alpha * value`` and preference ``p = 1`` for c > 0, else 0.

    Parameters
    ----------
    factors : int, default 100
        D.
    regularization : float, default 0.01
    alpha : float, default 1.0
    dtype : {float32, float64}, default float32
        Type of the factors.
    use_native : bool, default True
        Kept for implicit's sake: both values run the same native code.
    use_cg : bool, default True
        Whether rows are solved by `cg_steps` conjugate-gradient steps from their present factors, or exactly.
    iterations : int, default 15
    calculate_training_loss : bool, default False
        Whether every iteration ends with :func:`calculate_loss`.
    num_threads : int, default 0
        0: all processors that this process may use. Results do not depend on it.
    random_state : int, Generator, RandomState or None, default None
        Seed of the start values.
    strict_compat : bool, default False
        Also do as implicit does where that invites mistakes: slots without an item have id 0 and score 0 instead of
        -1 and the score of filtered items; ``similar_items(items=...)`` fills such slots with ``items[0]`` instead of
        returning fewer; negative ids count from the end instead of raising IndexError.

    Attributes
    ----------
    user_factors : (U, D) array or None
    item_factors : (I, D) array or None
        None before `fit`. They may be set.
    cg_steps : int
        3.
    fit_callback : callable or None
        Used by `fit` where it is called without `callback`.
    """

    strict_compat = False  # for instances unpickled from implicit's own class
    _device = "cpu"  # or "cuda"
    _user_spectrum: _KeptSpectrum | None = None
    _item_spectrum: _KeptSpectrum | None = None

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: DTypeLike = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        *,
        strict_compat: bool = False,
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.alpha = alpha
        self.dtype = np.dtype(dtype)
        self.use_native = use_native
        self.use_cg = use_cg
        self.iterations = iterations
        self.calculate_training_loss = calculate_training_loss
        self.num_threads = num_threads
        self.random_state = random_state
        self.strict_compat = strict_compat
        self.fit_callback: Callable[[int, float, float | None], Any] | None = None
        self.cg_steps = 3

        self.user_factors: NDArray[np.floating] | None = None
        self.item_factors: NDArray[np.floating] | None = None
        # Caches under implicit's names: programs reset them after they change the factors.
        self._user_norms: NDArray[np.floating] | None = None
        self._item_norms: NDArray[np.floating] | None = None
        self._XtX: NDArray[np.floating] | None = None
        self._YtY: NDArray[np.floating] | None = None

    # ------------------------------------------------------------------------------------------------ training

    def fit(
        self,
        user_items: csr_matrix,
        show_progress: bool = True,
        callback: Callable[[int, float, float | None], Any] | None = None,
    ) -> None:
        """Learn the factors; where there are factors already, go on from them.

        Parameters
        ----------
        user_items : (U, I) csr_matrix
            Values become confidences, see the class. A stored 0 has no weight, a negative value is a confident "no".
            Other sparse formats are converted, with a ParameterWarning.
        show_progress : bool, default True
        callback : callable, optional
            Called as ``callback(iteration, seconds, loss)`` after each iteration; the first is 0, and loss is None
            unless `calculate_training_loss`.

        Raises
        ------
        ModelFitError
            A value or a factor is NaN or infinite.
        SingularSystemError
            A kind of ValueError: a row has no unique solution, possible with ``regularization=0`` and ``use_cg=False``.
        TypeError, ValueError
            Unusable arguments, or factors of another shape than the matrix.
        """
        matrix = _csr(user_items, "user_items")
        backend = self._backend
        user_terms = self._terms(matrix, "user")
        item_terms = self._terms(backend.transpose(matrix), "item")
        users, items = self.user_factors, self.item_factors = self._start(matrix.shape)
        options = _options(self.cg_steps if self.use_cg else None)
        self._user_norms = self._item_norms = self._XtX = self._YtY = None
        self._user_spectrum = self._item_spectrum = None

        confidence = self.alpha * _absolute_sum(matrix) if self.calculate_training_loss else 0.0
        loss = None
        progress = tqdm(total=self.iterations, disable=not show_progress)
        with progress, backend.session(users, items) as session:
            for iteration in range(self.iterations):
                started = time.perf_counter()
                for side, terms in (("user", user_terms), ("item", item_terms)):
                    with _implicits_words(side):
                        session.solve(side, terms, options)
                progress.update(1)
                if self.calculate_training_loss:
                    total = session.loss(user_terms, user_terms.ridge)
                    loss = _mean_loss(total, user_terms, len(items), confidence)
                    progress.set_postfix({"loss": loss})
                    log.info("iteration %d: loss %.4f", iteration, loss)
                callback = callback or self.fit_callback
                if callback:
                    session.factors("user"), session.factors("item")  # the model's own arrays, brought up to date
                    callback(iteration, time.perf_counter() - started, loss)

    def _start(self, shape: tuple[int, int]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Start values as implicit draws them, where there are no factors yet."""
        rng = generator(self.random_state)
        start = {}
        dtype: Any = self.dtype
        for name, rows in zip(("user_factors", "item_factors"), shape, strict=True):
            factors = getattr(self, name)
            if factors is None:
                factors = rng.random((rows, self.factors), dtype=dtype) * dtype.type(0.01)
            elif np.shape(factors) != (rows, self.factors):
                raise ValueError(
                    f"user_items of shape {shape} needs {name} of shape {(rows, self.factors)}, but the model has "
                    f"{np.shape(factors)} from before; set {name} to None to start anew"
                )
            start[name] = np.ascontiguousarray(factors, self.dtype)
        return start["user_factors"], start["item_factors"]

    @property
    def _backend(self) -> Backend:
        return make_backend(self._device, self.num_threads)

    def _terms(self, matrix: csr_matrix, side: str) -> RowTerms:
        return _terms(matrix, side, self.dtype, self.alpha, self.regularization)

    @property
    def solver(self) -> Callable[..., None]:
        """The half-step that `fit` repeats, to be called as ``solver(Cui, X, Y, regularization, num_threads)``.

        ``Cui`` (R, n) are confidences, `alpha` included; X (R, D) is changed in place, given Y (n, D).
        """
        return partial(_half_step, cg_steps=self.cg_steps if self.use_cg else None)

    # ------------------------------------------------------------------------------------------------ new data

    def recalculate_user(self, userid: ArrayLike, user_items: csr_matrix) -> NDArray[np.floating]:
        """Exact factors of users from their rows, without storing them.

        Parameters
        ----------
        userid : int or (B,) array of int
            Only its length matters.
        user_items : (B, I) csr_matrix
            All that is known of each user, not only what is new.

        Returns
        -------
        (D,) for one id, else (B, D)

        Raises
        ------
        ValueError
            Another number of rows than ids, or an item that the model does not know.
        SingularSystemError
            A row has no unique solution.
        """
        return self._recalculate(userid, user_items, "user")

    def recalculate_item(self, itemid: ArrayLike, item_users: csr_matrix) -> NDArray[np.floating]:
        """Exact factors of items from their rows ``item_users`` (B, U); otherwise as :meth:`recalculate_user`."""
        return self._recalculate(itemid, item_users, "item")

    def partial_fit_users(self, userids: ArrayLike, user_items: csr_matrix) -> None:
        """Recalculate users and store their factors; new ids make the model larger, rows between them are zero.

        Parameters
        ----------
        userids : (B,) array of int
        user_items : (B, I) csr_matrix
            All that is known of each user, not only what is new.

        Raises
        ------
        IndexError
            A negative id.
        ValueError
            As :meth:`recalculate_user`, and no ids.
        """
        if np.size(userids) != user_items.shape[0]:
            raise ValueError("user_items must contain 1 row for every user in userids")
        self.user_factors = self._with_rows(userids, user_items, "user")
        self._user_norms = self._XtX = None

    def partial_fit_items(self, itemids: ArrayLike, item_users: csr_matrix) -> None:
        """As :meth:`partial_fit_users`, for items and their rows ``item_users`` (B, U)."""
        if np.size(itemids) != item_users.shape[0]:
            raise ValueError("item_users must contain 1 row for every user in itemids")
        self.item_factors = self._with_rows(itemids, item_users, "item")
        self._item_norms = self._YtY = None

    def _with_rows(self, ids: ArrayLike, matrix: csr_matrix, side: str) -> NDArray[np.floating]:
        """Factors of a side, grown by zero rows as far as needed, with recalculated rows at `ids`."""
        factors, index = self._fitted(side), np.asarray(ids)
        if not index.size:
            raise ValueError(f"{side}ids must hold at least one id")
        if index.min() < 0:
            raise IndexError(f"{side}ids must be >= 0, got {index.min()}")
        new = self._recalculate(ids, matrix, side)
        missing = int(index.max()) + 1 - len(factors)
        if missing > 0:
            factors = np.concatenate([factors, np.zeros((missing, factors.shape[1]), factors.dtype)])
        factors[index] = new
        return factors

    def _recalculate(self, ids: ArrayLike, matrix: csr_matrix, side: str) -> NDArray[np.floating]:
        name, other_side = ("user_items", "item") if side == "user" else ("item_users", "user")
        rows = np.size(ids)
        if matrix.shape[0] != rows:
            raise ValueError(
                f"{name} should have one row for every item in {side}: got {matrix.shape[0]} rows for {rows} ids"
            )
        other = self._fitted(other_side)
        terms = self._terms(_csr(matrix, name, len(other)), side)
        factors = np.zeros((rows, other.shape[1]), self.dtype)
        table, spectrum = self._spectrum(other_side, terms)
        _solve(self._backend, terms, table, factors, side, None, spectrum)
        return factors[0] if np.isscalar(ids) else factors

    def _spectrum(self, side: str, terms: RowTerms) -> tuple[NDArray[np.floating], Spectrum]:
        """Factors of a side in the model's type, and their spectrum, kept from an earlier call while that is true.

        Whoever changes factors in place resets `_XtX` and `_YtY`, as for implicit; new arrays are noticed.
        """
        factors, gram = self._fitted(side), self.XtX if side == "user" else self.YtY
        kept = getattr(self, f"_{side}_spectrum")
        if kept is None or kept.factors is not factors or kept.gram is not gram or kept.table.dtype != self.dtype:
            table = np.ascontiguousarray(factors, self.dtype)
            with _implicits_words(side):
                kept = _KeptSpectrum(factors, gram, table, self._backend.spectrum(terms, table))
            setattr(self, f"_{side}_spectrum", kept)
        return kept.table, kept.spectrum

    # ------------------------------------------------------------------------------------------------ answers

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
        liked = _csr(user_items, "user_items", len(factors)) if filter_already_liked_items else None
        if items is not None:
            items = np.sort(items)
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
        """Deprecated: the ids of :meth:`recommend` for users ``users_items_offset``, ``users_items_offset + 1``, ..."""
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
        """Deprecated: :meth:`recommend` with ``items=selected_items`` and no filter."""
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
        """The N users of highest cosine; as :meth:`similar_items`, for users."""
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
        matrix = _as_csr_matrix(user_items)
        matrix = _csr(matrix[self._index(userid, matrix.shape[0], "userid")], "user_items", len(factors))
        terms = self._terms(matrix, "user")
        system, known, _ = _row_system(terms, 0, factors, self.YtY)
        if user_weights is None:
            try:
                user_weights = cho_factor(system)
            except LinAlgError:
                raise _singular(int(userid), "user") from None
        weighted = cho_solve(user_weights, factors[self._index(itemid, len(factors), "itemid")].astype(np.float64))
        liked = matrix.data >= 0
        ids, contributions = matrix.indices[liked], (terms.rhs_values() * (known @ weighted))[liked]
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
            only = np.asarray(only)
            N = N if self.strict_compat else min(N, len(only))
        ids, scores = self._top(query, factors / norms[:, None], N, side, only, hide, f"similar_{side}s")
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
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The N rows of `factors` (n, D) best for a query (D,) or (B, D).

        Only rows `only`, if given; rows `hide` and the entries of `liked` (B, n) come last. `side` and `call` name
        things in errors.
        """
        hidden = np.empty(0, np.int64)
        if hide is not None and np.size(hide):
            if only is not None:
                raise ValueError(f"Can't set both {side}s and filter_{side}s in {call} call")
            hidden = np.unique(self._index(hide, len(factors), f"filter_{side}s"))
        if only is not None:
            if not len(only):
                raise IndexError(f"{side}s must name at least one {side}")
            if only.min() < 0 or only.max() >= len(factors):
                # The words of implicit, which programs may look for.
                raise IndexError(f"Some {side}ids in the {side}s parameter in are not in the model")
            factors = factors[only]
            liked = None if liked is None else chosen_columns(liked, only)
        N = operator.index(N)
        if N < 1:
            raise IndexError(f"N must be at least 1, got {N}")

        ids, scores = rank(self._backend, np.atleast_2d(query), factors, N, liked, hidden)
        if N > len(factors):
            id_, score = (0, 0.0) if self.strict_compat else (-1, np.finfo(scores.dtype).min)
            empty = ((0, 0), (0, N - len(factors)))
            ids, scores = np.pad(ids, empty, constant_values=id_), np.pad(scores, empty, constant_values=score)
        if query.ndim == 1:
            ids, scores = ids[0], scores[0]
        return (ids if only is None else only[ids]), scores

    def _user_factor(
        self, userid: ArrayLike, user_items: csr_matrix | None = None, recalculate_user: bool = False
    ) -> NDArray[np.floating]:
        if recalculate_user:
            return self.recalculate_user(userid, user_items)
        factors = self._fitted("user")
        found: NDArray[np.floating] = factors[self._index(userid, len(factors), "userid")]
        return found.copy()  # implicit's Faiss model scales it in place

    def _item_factor(
        self, itemid: ArrayLike, item_users: csr_matrix | None = None, recalculate_item: bool = False
    ) -> NDArray[np.floating]:
        if recalculate_item:
            return self.recalculate_item(itemid, item_users)
        factors = self._fitted("item")
        found: NDArray[np.floating] = factors[self._index(itemid, len(factors), "itemid")]
        return found.copy()

    def _index(self, ids: ArrayLike, n: int, name: str) -> NDArray[np.integer]:
        """Ids as row numbers in [0, n)."""
        index = np.asarray(ids)
        if not index.size:
            return index.astype(np.intp)
        if index.dtype.kind not in "iu":
            raise IndexError(f"{name} must be integers, got {index.dtype}")
        lowest = -n if self.strict_compat else 0
        if index.min() < lowest or index.max() >= n:
            bad = index[(index < lowest) | (index >= n)].flat[0]
            raise IndexError(f"{name} must be in [{lowest}, {n}), got {bad}")
        return index.astype(np.intp) % n

    def _fitted(self, side: str) -> NDArray[np.floating]:
        factors = self.user_factors if side == "user" else self.item_factors
        if factors is None:
            raise TypeError(f"{side}_factors is None: fit the model first")
        return factors

    @property
    def user_norms(self) -> NDArray[np.floating]:
        """Norms of the user factors (U,), 1e-10 in place of 0; cached."""
        if self._user_norms is None:
            self._user_norms = _norms(self._fitted("user"))
        return self._user_norms

    @property
    def item_norms(self) -> NDArray[np.floating]:
        """Norms of the item factors (I,), 1e-10 in place of 0; cached."""
        if self._item_norms is None:
            self._item_norms = _norms(self._fitted("item"))
        return self._item_norms

    @property
    def XtX(self) -> NDArray[np.floating]:
        """Gram matrix (D, D) of the user factors; cached."""
        if self._XtX is None:
            users = self._fitted("user")
            self._XtX = users.T @ users
        return self._XtX

    @property
    def YtY(self) -> NDArray[np.floating]:
        """Gram matrix (D, D) of the item factors; cached."""
        if self._YtY is None:
            items = self._fitted("item")
            self._YtY = items.T @ items
        return self._YtY

    # ------------------------------------------------------------------------------------------------ files, devices

    def save(self, fileobj_or_path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the model as an npz file that implicit can load; ``.npz`` is added to a path without it.

        A random generator is not written, the loaded model has ``random_state=None`` then.
        """
        state = {name: getattr(self, name) for name in SAVED}
        state["dtype"] = self.dtype.name
        if not isinstance(self.random_state, (int, np.integer)):
            state["random_state"] = None
        state["strict_compat"] = self.strict_compat or None  # implicit has no such attribute
        np.savez(fileobj_or_path, **{name: value for name, value in state.items() if value is not None})

    @classmethod
    def load(cls, fileobj_or_path: str | os.PathLike[str] | IO[bytes]) -> CpuAlternatingLeastSquares:
        """Read a model that this class or implicit saved; ``.npz`` is added to a path without it.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ModelFormatError
            A kind of ValueError: the file holds no model, is damaged, or has Python objects, which are never unpickled.
        """
        if isinstance(fileobj_or_path, (str, os.PathLike)):
            fileobj_or_path = os.fspath(fileobj_or_path)
            if not fileobj_or_path.endswith(".npz"):
                fileobj_or_path += ".npz"
        model = cls()
        state = load_npz(fileobj_or_path, SAVED)
        if "factors" not in state:
            raise ModelFormatError(f"{fileobj_or_path} holds no model: it has {', '.join(state) or 'nothing of one'}")
        for name, value in state.items():
            is_factors = name in ("user_factors", "item_factors")
            if value.ndim != (2 if is_factors else 0) or (is_factors and value.dtype.kind != "f"):
                raise ModelFormatError(
                    f"{fileobj_or_path} is damaged: {name} must be "
                    f"{'a matrix of floats' if is_factors else 'one value'}, got {value.dtype} {value.shape}"
                )
            setattr(model, name, value if is_factors else value.item())
        try:
            model.dtype = np.dtype(model.dtype)
        except (TypeError, ValueError, SyntaxError) as error:
            raise ModelFormatError(f"{fileobj_or_path} is damaged: dtype {model.dtype!r} is none") from error
        return model

    def to_cpu(self) -> CpuAlternatingLeastSquares:
        """A copy of the model that computes on the CPU."""
        model = copy.deepcopy(self)
        model.__dict__.pop("_device", None)
        return model

    def to_gpu(self) -> CpuAlternatingLeastSquares:
        """A copy of the model that computes on the CUDA device, in float32; its factors stay NumPy arrays.

        Raises
        ------
        ValueError
            There is no CUDA device to use (the text says why), or the model is not float32.
        """
        model = copy.deepcopy(self)
        model._use_gpu()
        return model

    def _use_gpu(self) -> None:
        available, why = cuda_status()
        if not available:
            raise ValueError(f"{_NO_GPU} ({why})")
        if self.dtype != np.float32:
            raise ValueError(f"dtype must be float32 on a GPU, got {self.dtype}")
        self._device = "cuda"


class AlternatingLeastSquares(CpuAlternatingLeastSquares):
    """Alternating least squares with the arguments of ``implicit.als.AlternatingLeastSquares``, in that order.

    Parameters
    ----------
    factors, regularization, alpha, dtype, use_native, use_cg
        See :class:`CpuAlternatingLeastSquares`, as for all attributes and methods.
    use_gpu : bool, default False
        Compute on the CUDA device, as :meth:`to_gpu` does.
    iterations, calculate_training_loss, num_threads, random_state, strict_compat
        See :class:`CpuAlternatingLeastSquares`.

    Raises
    ------
    ValueError
        ``use_gpu=True`` where there is no CUDA device to use.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> user_items = csr_matrix([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    >>> model = AlternatingLeastSquares(factors=2, alpha=10, random_state=0)
    >>> model.fit(user_items, show_progress=False)
    >>> ids, scores = model.recommend(0, user_items[0], N=1)
    >>> int(ids[0])
    2
    """

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: DTypeLike = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        use_gpu: bool = False,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        *,
        strict_compat: bool = False,
    ) -> None:
        super().__init__(
            factors,
            regularization,
            alpha,
            dtype,
            use_native,
            use_cg,
            iterations,
            calculate_training_loss,
            num_threads,
            random_state,
            strict_compat=strict_compat,
        )
        if use_gpu:
            self._use_gpu()


# Pickles, and what programs write down of a class, name it by its documented place.
for _class in (CpuAlternatingLeastSquares, AlternatingLeastSquares):
    _class.__module__ = "wals_gpu.als"

_NO_GPU = "No CUDA extension has been built, can't train on GPU."


def calculate_loss(
    Cui: csr_matrix, X: NDArray[np.floating], Y: NDArray[np.floating], regularization: float, num_threads: int = 0
) -> float:
    """The training loss that implicit reports: the objective divided by the weight of all pairs.

    ::

        ( sum over stored pairs of |c| (p - x.y)^2 + sum over all others of (x.y)^2 + regularization (|X|^2 + |Y|^2)
          + sum of |c| where c < 0 ) / ( sum of |c| + U I - number of stored pairs )

    The sum over c < 0 is a constant that implicit adds.

    Parameters
    ----------
    Cui : (U, I) csr_matrix
        Confidences c; multiply by alpha first. p is 1 where c > 0, else 0.
    X : (U, D) float32 or float64
    Y : (I, D)
    regularization : float
    num_threads : int, default 0

    Returns
    -------
    float
        Accumulated in float64. NaN or infinity where all pairs weigh 0.

    Raises
    ------
    ValueError
        The shapes do not fit.
    """
    X = np.ascontiguousarray(X)
    Y = np.ascontiguousarray(Y, X.dtype)
    matrix = _csr(Cui, "Cui", len(Y))
    _check_rows(matrix, X)
    terms = _terms(matrix, "user", X.dtype, 1.0, regularization)
    total = make_backend("cpu", num_threads).loss(terms, X, Y, terms.ridge)
    return _mean_loss(total, terms, len(Y), _absolute_sum(matrix))


def _absolute_sum(matrix: csr_matrix) -> float:
    return float(np.abs(matrix.data).sum(dtype=np.float64))


def _mean_loss(total: float, terms: RowTerms, n_items: int, confidence: float) -> float:
    """The loss as implicit counts it, from the sum `total`; `confidence` is the sum of all |c|."""
    total = total + confidence - terms.target_square
    weight = confidence + terms.n_rows * n_items - terms.n_entries
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(total) / weight)


def _half_step(
    Cui: csr_matrix,
    X: NDArray[np.floating],
    Y: NDArray[np.floating],
    regularization: float,
    num_threads: int = 0,
    cg_steps: int | None = None,
) -> None:
    """Solve X (R, D) in place from confidences (R, n) and Y (n, D): exactly, or by `cg_steps` CG steps."""
    matrix = _csr(Cui, "Cui", len(Y))
    _check_rows(matrix, X)
    factors = np.ascontiguousarray(X)
    terms = _terms(matrix, "user", X.dtype, 1.0, regularization)
    _solve(make_backend("cpu", num_threads), terms, np.ascontiguousarray(Y, X.dtype), factors, "row", cg_steps)
    if factors is not X:
        X[...] = factors


def _solve(
    backend: Backend,
    terms: RowTerms,
    other: NDArray[np.floating],
    factors: NDArray[np.floating],
    side: str,
    cg_steps: int | None,
    spectrum: Spectrum | None = None,
) -> None:
    """Solve rows in place, with errors in implicit's words."""
    with _implicits_words(side):
        backend.solve_rows(terms, other, factors, _options(cg_steps), spectrum=spectrum)


def _options(cg_steps: int | None) -> SolveOptions:
    return SolveOptions() if cg_steps is None else SolveOptions("cg", cg_steps)


@contextlib.contextmanager
def _implicits_words(side: str) -> Iterator[None]:
    """Errors of the solvers as implicit says them."""
    try:
        yield
    except SingularSystemError as error:
        raise _singular(error.row, side) from error
    except ModelFitError as error:
        raise ModelFitError(f"NaN encountered in factors: {error}") from error


def _singular(row: int, side: str) -> SingularSystemError:
    return SingularSystemError(int(row), "Try increasing the regularization parameter.", f"{side} {row}")


def _row_system(
    terms: RowTerms, row: int, other: NDArray[np.floating], gram: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], slice]:
    """Matrix (D, D) of a row, given the Gram matrix of `other`; factors (n, D) of its n entries; where these stand."""
    entries = slice(terms.row_ptr[row], terms.row_ptr[row + 1])
    known = other[terms.col_idx[entries]].astype(np.float64)
    system = gram + (known.T * terms.gram_values()[entries]) @ known
    np.fill_diagonal(system, system.diagonal() + terms.ridge[0])
    return system, known, entries


def _terms(matrix: csr_matrix, side: str, dtype: DTypeLike, alpha: float, regularization: float) -> RowTerms:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    objective = Implicit(alpha=alpha, regularization=regularization)
    matrix = csr_matrix((matrix.data.astype(dtype, copy=False), matrix.indices, matrix.indptr), shape=matrix.shape)
    # Two entries of one pair are two terms of the loss for implicit, which does not sum their values. (astype does.)
    matrix.has_canonical_format = True
    try:
        if side == "user":
            return BoundObjective(objective, *matrix.shape).user_terms(matrix)
        return BoundObjective(objective, *matrix.shape[::-1]).item_terms(matrix)
    except ValueError as error:
        raise ModelFitError(f"NaN encountered in factors: {error}") from error


def _as_csr_matrix(matrix: Any) -> csr_matrix:
    """CSR of any sparse matrix; a ParameterWarning where it was converted."""
    if isinstance(matrix, csr_matrix):
        return matrix
    converted = csr_matrix(matrix.tocsr())
    warn(f"a csr_matrix is wanted, {type(matrix).__name__} was given and had to be converted")
    return converted


def _csr(matrix: Any, name: str, n_known: int | None = None) -> csr_matrix:
    """A checked CSR matrix of float32 with sorted rows. No column number may reach `n_known`."""
    given = _as_csr_matrix(matrix)
    with np.errstate(over="ignore"):  # infinity is refused where values matter
        data = given.data.astype(np.float32, copy=False)
    matrix = csr_matrix((data, given.indices, given.indptr), shape=given.shape)
    matrix.check_format(full_check=True)
    if not matrix.has_sorted_indices:
        matrix = matrix.sorted_indices()
    if n_known is not None and matrix.nnz and matrix.indices.max() >= n_known:
        raise ValueError(
            f"{name} of shape {matrix.shape} has an entry in column {matrix.indices.max()}, "
            f"but the factors have only {n_known} rows"
        )
    return matrix


def _check_rows(matrix: csr_matrix, factors: NDArray[np.floating]) -> None:
    if matrix.shape[0] != len(factors):
        raise ValueError(f"Cui of shape {matrix.shape} needs X with {matrix.shape[0]} rows, got shape {factors.shape}")


def generator(random_state: int | np.random.Generator | np.random.RandomState | None) -> np.random.Generator:
    """The generator of a `random_state`, which may be of NumPy's older kind."""
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31)
    return np.random.default_rng(random_state)


def _norms(factors: NDArray[np.floating]) -> NDArray[np.floating]:
    norms: NDArray[np.floating] = np.linalg.norm(factors, axis=-1)
    norms[norms == 0] = 1e-10
    return norms
