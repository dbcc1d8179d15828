"""The training objective: one formula, what a preset fills it with, and the coefficients of a training matrix.

::

    L(X, Y) =  sum of c_ui (t_ui - x_u.y_i)^2   over the observed entries
             + sum of g_u h_i (x_u.y_i)^2       over all other pairs
             + sum of lambda_u |x_u - p_u|^2 + sum of lambda_i |y_i - q_i|^2

A solver needs two numbers per observed entry, the Gram coefficient ``c - g h`` and the right-hand coefficient ``c t``,
and two per row, its background weight and its ridge. :class:`RowTerms` holds them; a preset (:data:`PRESETS`), bound to
the training matrix, computes them. Every *stored* entry of a sparse matrix is an observed one, whatever its value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import number
from wals_gpu.objective.terms import CHUNK, Floats, RowTerms, check_matrix, entry_error, product_at

__all__ = ["ONE", "BoundObjective", "Objective", "checked_number", "number_field"]

#: One number of all rows, columns or entries.
ONE: Floats = np.ones(1)


def number_field(default: float | str, *, positive: bool = False, auto: bool = False) -> Any:
    """A dataclass field for a finite number >= 0, or > 0 if `positive`; checked by ``Objective.__post_init__``.

    With `auto` it may also be "auto": a number that the preset finds out from the training data.
    """
    return field(default=default, metadata={"positive": positive, "auto": auto})


@dataclass(frozen=True, eq=False, kw_only=True)
class Objective:
    """Base of the presets. A preset says what confidence, target, background and ridge are; this class knows no system.

    Parameters
    ----------
    regularization : float, or "auto" where a preset has it
        lambda >= 0, the ridge of every row before any scaling that the preset applies.

    Raises
    ------
    TypeError, ValueError
        A parameter is not a number, or out of range.
    """

    regularization: float | str = number_field(0.01)

    name: ClassVar[str]
    #: Whether a value below zero has a meaning.
    accepts_negative: ClassVar[bool] = False
    #: Whether unobserved pairs of items differ in weight.
    weights_missing_items: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if "positive" not in f.metadata or (f.metadata["auto"] and getattr(self, f.name) == "auto"):
                continue
            checked = checked_number(self, f.name, f.metadata["positive"], or_auto=f.metadata["auto"])
            object.__setattr__(self, f.name, checked)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(np.array_equal(value, getattr(other, name)) for name, value in self.parameters().items())

    def __hash__(self) -> int:
        return hash((self.name, self.regularization))

    def parameters(self) -> dict[str, Any]:
        """The parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def of_rows(
        self, shape: tuple[int, int], users: NDArray[np.integer] | None = None, items: NDArray[np.integer] | None = None
    ) -> Objective:
        """The same for other users and items: parameters that have a number for each are those of these rows.

        Parameters
        ----------
        shape : (int, int)
            U, I: numbers of users and items up to now.
        users, items : (n,) int, optional
            Their row numbers up to now, -1 for new ones. None: they stay as they are.

        Returns
        -------
        Objective
        """
        return self

    def bind(self, matrix: csr_matrix) -> BoundObjective:
        """Learn what depends on the training data: numbers of users and items, item counts, weights by popularity.

        Parameters
        ----------
        matrix : (U, I) csr_matrix
            Training interactions, rows are users; canonical, float32 or float64.

        Returns
        -------
        BoundObjective

        Raises
        ------
        TypeError, ValueError
            The matrix is not canonical CSR of floats, or has values that the preset has no meaning for.
        """
        self._value_range(matrix, "user", None)
        n_users, n_items = matrix.shape
        return BoundObjective(self, n_users, n_items, **self.learn(matrix))

    def _value_range(self, matrix: csr_matrix, side: str, n_columns: int | None) -> tuple[float, float]:
        """Lowest and highest value of a matrix, after checking it."""
        lowest, highest = check_matrix(matrix, side, n_columns)
        if lowest < 0 and not self.accepts_negative:
            raise entry_error(f"objective {self.name!r} takes values >= 0 only", matrix, side, matrix.data < 0)
        return lowest, highest

    # What a preset overrides. Arrays are float64, of one chunk of entries or of size 1 for one value shared by all;
    # `bound` has what `learn` gave.

    def _unobserved_weight(self, bound: BoundObjective) -> float:
        """Weight of an unobserved pair (where `learn` gives an item_background: a factor of it)."""
        return 1.0

    def learn(self, matrix: csr_matrix) -> dict[str, Any]:
        """Fields of BoundObjective that come from the training matrix.

        Parameters
        ----------
        matrix : (U, I) csr_matrix
            Training interactions, as :meth:`bind` checked them.

        Returns
        -------
        dict of str to float64 array
            None of the fields, where a preset has nothing to learn.
        """
        return {}

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        """``c`` of entries with these values and products of row and column weight."""
        raise NotImplementedError

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        """``t`` of entries with these values; `lowest` is the lowest value of all entries."""
        raise NotImplementedError

    def _regularization(self, bound: BoundObjective) -> float:
        """`regularization` as a number, with what `learn` found where it is "auto"."""
        return float(self.regularization)

    def _rhs_is_value(self, lowest: float) -> bool:
        """Whether ``c t`` is the value itself for every entry, so that the matrix's own array can serve."""
        return False

    def _ridge_scale(self, matrix: csr_matrix, lowest: float, n_other: int, bound: BoundObjective) -> Floats:
        """What `regularization` is multiplied by in each row, (R,) or (1,)."""
        return ONE


@dataclass(frozen=True, eq=False)
class BoundObjective:
    """An objective together with what it learned from the training matrix. Made by :meth:`Objective.bind`.

    Parameters
    ----------
    objective : Objective
    n_users, n_items : int
        U and I of the training matrix.
    user_weights, item_weights : (U,) or (1,) and (I,) or (1,) float64, optional
        R and C; None: the confidence does not depend on them.
    item_background : (I,) float64, optional
        h; None: every item has the same.
    user_background : (U,) float64, optional
        g; None: every user has the same.
    numbers : (n,) float64, optional
        What the preset learned of the data as a whole, in an order of its own.
    """

    objective: Objective
    n_users: int
    n_items: int
    user_weights: Floats | None = None
    item_weights: Floats | None = None
    item_background: Floats | None = None
    user_background: Floats | None = None
    numbers: Floats | None = None

    def __post_init__(self) -> None:
        for name, size in (
            ("user_weights", self.n_users),
            ("item_weights", self.n_items),
            ("item_background", self.n_items),
            ("user_background", self.n_users),
        ):
            array = getattr(self, name)
            if array is not None and array.shape not in ((1,), (size,)):
                raise ValueError(f"{name} must have shape (1,) or ({size},), got {array.shape}")

    @property
    def regularization(self) -> float:
        """That of the objective; where it is "auto", the number that was found for the training data."""
        return self.objective._regularization(self)

    def user_terms(self, matrix: csr_matrix, *, fold_in: bool = False) -> RowTerms:
        """Terms of the rows of users.

        Parameters
        ----------
        matrix : (R, I) csr_matrix
            Rows are users, in training or not; canonical, float32 or float64, which is the dtype of the terms.
        fold_in : bool, default False
            The rows are not the U training users: weights that belong to one training user do not apply, 1 is used.

        Returns
        -------
        RowTerms

        Raises
        ------
        TypeError, ValueError
            As :meth:`Objective.bind`; also another number of columns than I, or of rows than U where there is a weight
            for every training user and `fold_in` is False.
        """
        weights, background = (None, None) if fold_in else (self.user_weights, self.user_background)
        return self._terms(matrix, "user", self.n_items, weights, self.item_weights, background, self.item_background)

    def item_terms(self, matrix_t: csr_matrix) -> RowTerms:
        """Terms of the rows of items, of the same loss as the terms of the training users.

        Parameters
        ----------
        matrix_t : (R, U) csr_matrix
            Rows are items, columns the training users: the transposed training matrix. Presets that have no weight by
            item accept any items.

        Returns
        -------
        RowTerms

        Raises
        ------
        TypeError, ValueError
            As :meth:`user_terms`.
        """
        return self._terms(
            matrix_t,
            "item",
            self.n_users,
            self.item_weights,
            self.user_weights,
            self.item_background,
            self.user_background,
        )

    def without_background(
        self, users: NDArray[np.bool_] | None = None, items: NDArray[np.bool_] | None = None
    ) -> BoundObjective:
        """The objective without the unobserved pairs of some users and items: of those that nobody can have met yet.

        Parameters
        ----------
        users : (U,) bool, optional
        items : (I,) bool, optional

        Returns
        -------
        BoundObjective
        """
        changes: dict[str, Any] = {}
        for name, absent, n in (("user_background", users, self.n_users), ("item_background", items, self.n_items)):
            if absent is not None and absent.any():
                present = getattr(self, name)
                changes[name] = np.where(absent, 0.0, np.ones(n) if present is None else present)
        return dataclasses.replace(self, **changes) if changes else self

    def _terms(
        self,
        matrix: csr_matrix,
        side: str,
        n_other: int,
        row_weights: Floats | None,
        col_weights: Floats | None,
        row_background: Floats | None,
        col_background: Floats | None,
    ) -> RowTerms:
        objective = self.objective
        lowest, highest = objective._value_range(matrix, side, n_other)
        for per_row in (row_weights, row_background):
            if per_row is not None and len(per_row) not in (1, matrix.shape[0]):
                remedy = "; pass fold_in=True for users unseen in training" if side == "user" else ""
                raise ValueError(
                    f"objective {objective.name!r} has a weight for each training {side}, so matrix must have "
                    f"{len(per_row)} rows, got shape {matrix.shape}{remedy}"
                )
        dtype = matrix.dtype.type
        w0 = objective._unobserved_weight(self)
        try:
            with np.errstate(over="raise"):
                rhs, gram, target_square = _entry_coefficients(
                    self, matrix, (lowest, highest), (row_weights, col_weights), (row_background, col_background)
                )
                scale = objective._ridge_scale(matrix, lowest, n_other, self)
                ridge = (self.regularization * scale).astype(dtype)
                background = (w0 * (ONE if row_background is None else row_background)).astype(dtype)
                other_background = (ONE if col_background is None else col_background).astype(dtype)
        except FloatingPointError:
            raise ValueError(
                f"objective {objective.name!r}: values up to {max(-lowest, highest):g} give coefficients too large for "
                f"{matrix.dtype} with parameters {objective.parameters()}"
            ) from None
        return RowTerms(
            row_ptr=matrix.indptr.astype(np.int64, copy=False),
            col_idx=matrix.indices.astype(np.int32, copy=False),
            rhs=rhs,
            gram=gram,
            gram_offset=-w0 if gram is None else 0.0,
            background=background,
            ridge=ridge,
            other_background=other_background,
            target_square=target_square,
        )

    def of_users(self, rows: NDArray[np.integer]) -> BoundObjective:
        """The objective of some of the training users.

        A new user has weight and background 1.

        Parameters
        ----------
        rows : (n,) array of int
            Their row numbers; -1 is a new user.

        Returns
        -------
        BoundObjective
        """
        new = None if rows.size == 0 or rows.min() >= 0 else 1.0
        return dataclasses.replace(
            self,
            n_users=len(rows),
            user_weights=_take(self.user_weights, rows, new),
            user_background=_take(self.user_background, rows, new),
        )

    def of_items(self, rows: NDArray[np.integer]) -> BoundObjective:
        """The objective of some of the training items.

        A new item has the background and the weight of the rarest items: the lowest background above 0, and the highest
        weight.

        Parameters
        ----------
        rows : (n,) array of int
            Their column numbers; -1 is a new item.

        Returns
        -------
        BoundObjective
        """
        return dataclasses.replace(
            self,
            n_items=len(rows),
            item_weights=_take(self.item_weights, rows, None if self.item_weights is None else self.item_weights.max()),
            item_background=_take(self.item_background, rows, self._lowest_background()),
        )

    def met(self, items: NDArray[np.integer], exposure: float) -> BoundObjective:
        """The objective with the unobserved pairs of some items at a share of their full weight.

        Parameters
        ----------
        items : (n,) array of int
            Column numbers.
        exposure : float from 0 to 1
            The share.

        Returns
        -------
        BoundObjective
        """
        background = self.item_background
        if background is None and exposure == 1:
            return self
        background = np.ones(self.n_items) if background is None else background.copy()
        full: Any = 1.0
        if self.objective.weights_missing_items:
            full = np.where(background[items] > 0, background[items], self._lowest_background())
        background[items] = full * exposure
        return dataclasses.replace(self, item_background=background)

    def _lowest_background(self) -> float:
        positive = np.ones(1) if self.item_background is None else self.item_background[self.item_background > 0]
        return float(positive.min()) if positive.size else 0.0

    def to_arrays(self) -> tuple[dict[str, Floats], dict[str, Any]]:
        """What :func:`.presets.bound_from_arrays` needs to make this object again.

        Returns
        -------
        arrays : dict of float64 arrays
        params : dict
            Can be written as JSON.
        """
        arrays = {
            f"learned.{name}": getattr(self, name)
            for name in ("user_weights", "item_weights", "item_background", "user_background", "numbers")
            if getattr(self, name) is not None
        }
        params = self.objective.parameters()
        for name in [name for name, value in params.items() if isinstance(value, np.ndarray)]:
            arrays[f"parameter.{name}"] = params.pop(name)
        return arrays, {
            "objective": self.objective.name,
            "parameters": params,
            "n_users": self.n_users,
            "n_items": self.n_items,
        }


def _take(array: Floats | None, rows: NDArray[np.integer], new: float | None) -> Floats | None:
    """Numbers of some rows, or the one number of all; `new` for rows that are -1."""
    if array is None or len(array) == 1:
        return array
    return array[rows] if new is None else np.where(rows >= 0, array[rows], new)


def _entry_coefficients(
    bound: BoundObjective,
    matrix: csr_matrix,
    value_range: tuple[float, float],
    weights: tuple[Floats | None, Floats | None],
    background: tuple[Floats | None, Floats | None],
) -> tuple[NDArray[np.floating], NDArray[np.floating] | None, float]:
    """``c t`` and ``c - g h`` of every entry, each (Z,), or (1,) where all are equal; and the sum of ``c t^2``.

    The second is None where it is the first minus a constant. `weights` and `background` are (of rows, of columns).
    """
    objective = bound.objective
    lowest, highest = value_range
    data, size = matrix.data, matrix.data.size
    rhs: NDArray[np.floating] = np.empty(0, data.dtype)
    gram: NDArray[np.floating] | None = np.empty(0, data.dtype)
    total = 0.0
    for start in range(0, size, CHUNK):
        entries = slice(start, min(start + CHUNK, size))
        values = np.array([lowest]) if lowest == highest else data[entries].astype(np.float64)
        c = objective._confidence(values, product_at(matrix, entries, *weights), bound)
        t = objective._target(values, lowest, bound)
        gh = objective._unobserved_weight(bound) * product_at(matrix, entries, *background)
        c_t, c_gh = c * t, c - gh
        squares = c_t * t
        if start == 0:
            if c_t.size == c_gh.size == 1:
                return c_t.astype(data.dtype), c_gh.astype(data.dtype), float(squares[0]) * size
            rhs = data if objective._rhs_is_value(lowest) else np.empty(1 if c_t.size == 1 else size, data.dtype)
            target_is_one = t.size == 1 and t[0] == 1
            gram = None if target_is_one and gh.size == 1 else np.empty(1 if c_gh.size == 1 else size, data.dtype)
        # Where only one of the two varies, the other has size 1: its slice is empty after the first chunk.
        if rhs is not data:
            rhs[entries] = c_t
        if gram is not None:
            gram[entries] = c_gh
        total += float(squares.sum()) * ((entries.stop - start) // squares.size)
    return rhs, gram, total


def checked_number(objective: Objective, parameter: str, positive: bool, *, or_auto: bool = False) -> float:
    """A parameter of an objective: a finite number >= 0, or > 0 if `positive`; `or_auto`: what else it may be."""
    value = getattr(objective, parameter)
    name = f"{parameter} of objective {objective.name!r}"
    if or_auto and isinstance(value, str):
        raise ValueError(
            f'{name} must be a finite number {"> 0" if positive else ">= 0"}, or "auto"; got {value!r:.60}'
        )
    return number(name, value, positive=positive)
