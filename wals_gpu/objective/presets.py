"""The presets: each system is the one formula of :mod:`.bound`, filled in. Nothing else knows systems by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import did_you_mean, number, refuse_ids, refuse_masked
from wals_gpu.errors import ModelFormatError
from wals_gpu.objective.bound import ONE, BoundObjective, Objective, checked_number, number_field
from wals_gpu.objective.options import ObjectiveOptions, Unpack
from wals_gpu.objective.terms import CHUNK, Floats, column_counts, row_of_entry

__all__ = [
    "PRESETS",
    "Eals",
    "Explicit",
    "GoogleWals",
    "Hu",
    "Ials",
    "Implicit",
    "Spark",
    "Wals",
    "bound_from_arrays",
    "make_objective",
    "usual_regularization",
]

#: Ridge of the mean row of "wals", as a share of its weight, where there are many items: see find_defaults.py of the
#: benchmarks. bench_small_catalogues.py chose from where on that is, and measured down to where the rule holds.
_RIDGE, _MANY_ITEMS, _FEWEST_ITEMS = 0.0117, 1600, 50


def _positive(values: Floats, lowest: float) -> Floats:
    """1 where a value is above zero, else 0; a single 1 where all are."""
    return ONE if lowest > 0 else (values > 0).astype(np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class Wals(Objective):
    """The default: every setting is a proportion of what the training data are like, so that one serves many data.

    With Z entries of U users and I items, n_u and n_i entries of a row, n_U and n_I of the mean row, and averages over
    the entries:

    - an unobserved pair has the weight ``w0 = background Z / (U I)``: all pairs together weigh `background` times what
      the observed ones do (Rendle et al. 2022 have w0 itself, which has to follow the density of the data);
    - an observed pair has the confidence ``w0 + C_i d(v)`` and the target 1, or 0 for v < 0. The item's weight is
      ``C_i ~ n_i^-exponent``, 1 on average: Google's weighting exponent. The value counts as ``d(v) ~ |v|^damping``, 1
      on average: whatever the unit, and without a few large counts that outweigh all others. A stored zero is the same
      as an absent pair;
    - a user's ridge is ``regularization m ((n_u + w0 I) / m)^nu`` with ``m = n_U + w0 I``, an item's likewise with U:
      the frequency scaling of Rendle et al., with an exponent that does not change the ridge of the mean row.

    docs/objective.md says which data the defaults were chosen with, and what they cost on others.

    Parameters
    ----------
    background : float > 0, default 8.0
    exponent : float, default 0.25
        0: all items have the same weight.
    damping : float from 0 to 1, default 0.5
        1: confidence in proportion to the value; 0: every entry counts alike.
    nu : float, default 0.6
        0: every row has the same ridge; 1: in proportion to its weight.
    regularization : float, or "auto", default "auto"
        Ridge of the mean row, as a share of its weight. "auto": 0.0117, of fewer than 1,600 items more, see
        :func:`usual_regularization`.
    """

    regularization: float | str = number_field("auto", auto=True)
    background: float = number_field(8.0, positive=True)
    exponent: float = number_field(0.25)
    damping: float = number_field(0.5)
    nu: float = number_field(0.6)

    name: ClassVar[str] = "wals"
    accepts_negative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping > 1:
            raise ValueError(f"damping of objective 'wals' must be from 0 to 1, got {self.damping!r}")

    def learn(self, matrix: csr_matrix) -> dict[str, Any]:
        """Item weights, and numbers of the data as a whole: w0, the mean of ``|v|^damping``, and the lowest value.

        Parameters
        ----------
        matrix : (U, I) csr_matrix
            As of :meth:`.Objective.learn`.

        Returns
        -------
        dict of str to float64 array
            ``item_weights`` (I,), and ``numbers`` (3,), or (4,) with the regularization that "auto" stands for.

        Raises
        ------
        ValueError
            The values add up to more than float64 holds.
        """
        counts, n_entries = column_counts(matrix), max(matrix.indices.size, 1)
        n_users, n_items = matrix.shape
        w0 = self.background * n_entries / (max(n_users, 1) * max(n_items, 1))
        # An item that nobody has counts as one that one user has; its weight first matters when a new user brings it.
        weights = np.maximum(counts, 1.0) ** -self.exponent
        weights *= n_entries / max(counts @ weights, 1.0)
        total, lowest = 0.0, math.inf
        for start in range(0, matrix.indices.size, CHUNK):
            values = np.asarray(matrix.data[start : start + CHUNK], np.float64)
            total += float(self._damped(values).sum())
            lowest = min(lowest, float(values.min()))
        if not math.isfinite(total):
            raise ValueError("objective 'wals': the values add up to more than float64 holds")
        numbers = [w0, total / n_entries if total else 1.0, lowest]
        if self.regularization == "auto":
            # Kept as a number: that a model gets or loses items later does not change the ridge it was fitted with.
            numbers.append(usual_regularization(n_items))
        return {"item_weights": weights, "numbers": np.array(numbers)}

    def _damped(self, values: Floats) -> Floats:
        # A stored zero is the same as an absent pair, with any damping.
        damped: Floats = np.where(values == 0, 0.0, np.abs(values) ** self.damping)
        return damped

    def _unobserved_weight(self, bound: BoundObjective) -> float:
        return float(_numbers(bound)[0])

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        w0, mean = _numbers(bound)[:2]
        confidence: Floats = w0 + weights * (self._damped(values) / mean)
        return confidence

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        # Blocks of a matrix on disk, read one at a time, must all be of the kind that the whole matrix is.
        return _positive(values, min(lowest, _numbers(bound)[2]))

    def _ridge_scale(self, matrix: csr_matrix, lowest: float, n_other: int, bound: BoundObjective) -> Floats:
        of_background = _numbers(bound)[0] * n_other
        mean = of_background * (1 + 1 / self.background)  # a row's entries are 1 / background of that, on average
        if self.nu == 0:
            return np.full(1, mean)
        scale: Floats = mean * ((np.diff(matrix.indptr) + of_background) / mean) ** self.nu
        return scale

    def _regularization(self, bound: BoundObjective) -> float:
        if self.regularization != "auto":
            return float(self.regularization)
        numbers = _numbers(bound)
        if len(numbers) < 4:
            raise ValueError("objective 'wals' has not learned what its regularization \"auto\" stands for")
        return float(numbers[3])


def _numbers(bound: BoundObjective) -> Floats:
    assert bound.numbers is not None
    return bound.numbers


def usual_regularization(n_items: int) -> float:
    """What `regularization` of "wals" is where nothing is said: ``0.0117 sqrt(1600 / I)``.

    I is the number of items, taken as 1,600 where it is more, and as 50 where it is less. docs/objective.md has the
    figures that it was chosen and measured with.

    Parameters
    ----------
    n_items : int
        Of the training matrix.

    Returns
    -------
    float
        From 0.0117 to 0.0662.
    """
    return _RIDGE * math.sqrt(_MANY_ITEMS / min(max(n_items, _FEWEST_ITEMS), _MANY_ITEMS))


@dataclass(frozen=True, eq=False, kw_only=True)
class Implicit(Objective):
    """The objective of the ``implicit`` library's AlternatingLeastSquares.

    Confidence ``|alpha v|`` (not ``1 + alpha v``), target 1 for v > 0 and 0 otherwise, unobserved weight 1, constant
    ridge. A stored zero has confidence 0: the pair is left out, while an absent pair has weight 1. A negative value is
    a confident "no".

    Parameters
    ----------
    alpha : float, default 1.0
        Factor of the values.
    regularization : float, default 0.01
    """

    alpha: float = number_field(1.0)

    name: ClassVar[str] = "implicit"
    accepts_negative: ClassVar[bool] = True

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return np.abs(self.alpha * values)

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        # The target of a stored zero is immaterial, its confidence is 0.
        return ONE if lowest >= 0 else _positive(values, lowest)

    def _rhs_is_value(self, lowest: float) -> bool:
        return self.alpha == 1 and lowest >= 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Hu(Objective):
    """Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM 2008), and its power form.

    Target 1 for v > 0 and 0 for v = 0, unobserved weight 1, constant ridge, and the confidence

    - ``"linear"``: ``1 + alpha v``
    - ``"log"``: ``1 + alpha log(1 + v / epsilon)``
    - ``"power"``: ``1 + alpha v^exponent``

    so that a stored zero is the same as an absent pair. Negative values are refused.

    Parameters
    ----------
    alpha : float, default 40.0
    weighting : {"linear", "log", "power"}, default "linear"
    epsilon : float > 0, default 1.0
        Scale of the values under ``"log"``; refused with the others.
    exponent : float > 0, default 0.5
        Weighting exponent under ``"power"``; refused with the others.
    regularization : float, default 10.0
        The paper names no value; it found alpha = 40 to work well.
    """

    regularization: float = number_field(10.0)
    alpha: float = number_field(40.0)
    weighting: str = "linear"
    epsilon: float = number_field(1.0, positive=True)
    exponent: float = number_field(0.5, positive=True)

    name: ClassVar[str] = "hu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("linear", "log", "power"):
            raise ValueError(f"weighting must be 'linear', 'log' or 'power', got {self.weighting!r}")
        for parameter, weighting in (("epsilon", "log"), ("exponent", "power")):
            if self.weighting != weighting and getattr(self, parameter) != getattr(Hu, parameter):
                raise ValueError(
                    f"{parameter} has a meaning only with weighting={weighting!r}, got weighting={self.weighting!r}"
                )

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        if self.weighting == "log":
            values = np.log1p(values / self.epsilon)
        elif self.weighting == "power":
            values = values**self.exponent
        return 1 + self.alpha * values

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return _positive(values, lowest)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ials(Objective):
    """iALS with frequency-scaled ridge: Rendle et al., "Revisiting the Performance of iALS" (RecSys 2022), also iALS++.

    The paper adds ``unobserved_weight (x.y)^2`` over *all* pairs to ``(1 - x.y)^2`` over the observed ones. Up to a
    constant that is confidence ``1 + unobserved_weight`` with target ``1 / (1 + unobserved_weight)``. A user with n
    entries has the ridge ``regularization (n + unobserved_weight I)^nu``, an item
    ``regularization (n + unobserved_weight U)^nu``. Every stored entry counts as observed and its value is not used;
    negative values are refused.

    Parameters
    ----------
    unobserved_weight : float, default 0.1
        alpha_0 in the paper.
    nu : float, default 1.0
        Exponent of the frequency scaling: 0 gives every row the same ridge.
    regularization : float, default 0.003
        Small, as it is multiplied by the scale above.
    """

    regularization: float = number_field(0.003)
    unobserved_weight: float = number_field(0.1)
    nu: float = number_field(1.0)

    name: ClassVar[str] = "ials"

    def _unobserved_weight(self, bound: BoundObjective) -> float:
        return self.unobserved_weight

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return ONE + self.unobserved_weight

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return ONE / (1 + self.unobserved_weight)

    def _ridge_scale(self, matrix: csr_matrix, lowest: float, n_other: int, bound: BoundObjective) -> Floats:
        if self.nu == 0:
            return ONE
        scale: Floats = (np.diff(matrix.indptr) + self.unobserved_weight * n_other) ** self.nu
        return scale


@dataclass(frozen=True, eq=False, kw_only=True)
class GoogleWals(Objective):
    """The objective of Google's ``WALSModel`` (TensorFlow), with the column weights of its recommendation tutorial.

    Confidence ``unobserved_weight + R_u C_i``, target the value itself, constant ridge. The column weight is
    ``C_i = factor w_i`` where w_i is `column_weights`, or ``n_i^-exponent`` with n_i the number of users that have item
    i in training, or 1 if neither is given. An item that nobody has counts as n_i = 1; its weight first matters when a
    new user brings it. Values may be negative; a stored zero is an observed zero.

    Parameters
    ----------
    unobserved_weight : float, default 0.1
    row_weights : float or (U,) array of numbers >= 0, optional
        R, by default 1. Users unseen in training (``fold_in=True``) have weight 1. (``WALSModel`` gives every pair
        `unobserved_weight` when it has no weights; here that is ``row_weights=0``.)
    column_weights : float or (I,) array of numbers >= 0, optional
        w.
    exponent : float, optional
        Weighting exponent; not together with `column_weights`.
    factor : float, default 1.0
    regularization : float, default 1.0
        ``WALSModel`` has none unless asked for.
    """

    regularization: float = number_field(1.0)
    unobserved_weight: float = number_field(0.1)
    row_weights: ArrayLike | None = None
    column_weights: ArrayLike | None = None
    exponent: float | None = None
    factor: float = number_field(1.0)

    name: ClassVar[str] = "google_wals"
    accepts_negative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for parameter in ("row_weights", "column_weights"):
            object.__setattr__(self, parameter, _checked_weights(parameter, getattr(self, parameter)))
        if self.exponent is not None:
            object.__setattr__(self, "exponent", checked_number(self, "exponent", False))
            if self.column_weights is not None:
                raise ValueError(
                    "column_weights and exponent were both given; the exponent computes column weights, so give one"
                )

    def _unobserved_weight(self, bound: BoundObjective) -> float:
        return self.unobserved_weight

    def of_rows(
        self, shape: tuple[int, int], users: NDArray[np.integer] | None = None, items: NDArray[np.integer] | None = None
    ) -> Objective:
        """With the weights of other rows: 1 for a new user, and the highest for a new item.

        Parameters
        ----------
        shape, users, items
            As of :meth:`.Objective.of_rows`.

        Returns
        -------
        Objective
        """
        changes: dict[str, Any] = {}
        for parameter, rows, n in (("row_weights", users, shape[0]), ("column_weights", items, shape[1])):
            weights = getattr(self, parameter)
            if rows is not None and isinstance(weights, np.ndarray) and len(weights) == n:
                new = 1.0 if parameter == "row_weights" else weights.max()
                changes[parameter] = np.where(rows >= 0, weights[rows], new)
        return dataclasses.replace(self, **changes) if changes else self

    def learn(self, matrix: csr_matrix) -> dict[str, Any]:
        """Row and column weights of the right number; column weights by the popularity exponent.

        Parameters
        ----------
        matrix : (U, I) csr_matrix
            As of :meth:`.Objective.learn`.

        Returns
        -------
        dict of str to float64 array
            ``user_weights`` (U,) or (1,), and ``item_weights`` (I,) or (1,).

        Raises
        ------
        ValueError
            There are not as many weights as users, or items.
        """
        column_weights = self.column_weights
        for parameter, side, size in (
            ("row_weights", "user", matrix.shape[0]),
            ("column_weights", "item", matrix.shape[1]),
        ):
            weights = getattr(self, parameter)
            if isinstance(weights, np.ndarray) and len(weights) != size:
                raise ValueError(f"{parameter} must have {size} weights, one for each {side}, got {len(weights)}")
        if self.exponent is not None:
            column_weights = np.maximum(column_counts(matrix), 1.0) ** -self.exponent
        return {
            "user_weights": np.atleast_1d(1.0 if self.row_weights is None else self.row_weights),
            "item_weights": self.factor * np.atleast_1d(1.0 if column_weights is None else column_weights),
        }

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return self.unobserved_weight + weights

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return values


@dataclass(frozen=True, eq=False, kw_only=True)
class Eals(Objective):
    """eALS, which weights missing data by popularity.

    He et al., "Fast Matrix Factorization for Online Recommendation with Implicit Feedback" (SIGIR 2016). Constant
    confidence, target 1, constant ridge. An unobserved pair with item i has weight
    ``missing_weight n_i^exponent / sum_j n_j^exponent``, where n_i is the number of users that have i in training: a
    popular item that a user does not have was more likely seen and left. With exponent > 0, items that nobody has get
    weight 0. Every stored entry counts as observed and its value is not used; negative values are refused.

    Parameters
    ----------
    confidence : float, default 1.0
        Weight of an observed entry.
    missing_weight : float, default 512.0
        c_0, the weight of missing data summed over all items. Tune it: a good value grows with the number of items.
    exponent : float, default 0.4
        alpha in the paper; 0 is a uniform weight.
    regularization : float, default 1.0
    """

    regularization: float = number_field(1.0)
    confidence: float = number_field(1.0)
    missing_weight: float = number_field(512.0)
    exponent: float = number_field(0.4)

    name: ClassVar[str] = "eals"
    weights_missing_items: ClassVar[bool] = True

    def learn(self, matrix: csr_matrix) -> dict[str, Any]:
        """The background of each item, by its popularity.

        Parameters
        ----------
        matrix : (U, I) csr_matrix
            As of :meth:`.Objective.learn`.

        Returns
        -------
        dict of str to float64 array
            ``item_background`` (I,).
        """
        counts = column_counts(matrix)
        popularity = (counts / counts.max(initial=1.0)) ** self.exponent  # relative, so that no power overflows
        total = popularity.sum()
        return {"item_background": popularity * (self.missing_weight / total if total else 0.0)}

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return ONE * self.confidence

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return ONE


@dataclass(frozen=True, eq=False, kw_only=True)
class Spark(Objective):
    """Spark ML's ALS with ``implicitPrefs=True``.

    Confidence ``1 + alpha |v|``, target 1 for v > 0 and 0 otherwise, unobserved weight 1. The ridge is
    ``regularization n`` where n counts only the row's values above zero, as Spark does. A row that has nothing but
    negative values therefore has no ridge.

    Parameters
    ----------
    alpha : float, default 1.0
    regularization : float, default 0.1
        ``regParam``.
    """

    regularization: float = number_field(0.1)
    alpha: float = number_field(1.0)

    name: ClassVar[str] = "spark"
    accepts_negative: ClassVar[bool] = True

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return 1 + self.alpha * np.abs(values)

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return _positive(values, lowest)

    def _ridge_scale(self, matrix: csr_matrix, lowest: float, n_other: int, bound: BoundObjective) -> Floats:
        counts: Floats = np.diff(matrix.indptr).astype(np.float64)
        if lowest <= 0:
            rows = row_of_entry(matrix, np.flatnonzero(matrix.data <= 0))
            counts -= np.bincount(rows, minlength=len(counts))
        return counts


@dataclass(frozen=True, eq=False, kw_only=True)
class Explicit(Objective):
    """Explicit ratings, ALS-WR.

    Zhou et al., "Large-Scale Parallel Collaborative Filtering for the Netflix Prize" (AAIM 2008); also Spark ML's ALS
    without ``implicitPrefs``. Confidence 1, target the value itself, unobserved pairs have no weight, ridge
    ``regularization n`` with n the number of the row's entries. Values may be negative; a stored zero is a rating of 0.

    Parameters
    ----------
    regularization : float, default 0.1
    """

    regularization: float = number_field(0.1)

    name: ClassVar[str] = "explicit"
    accepts_negative: ClassVar[bool] = True

    def _unobserved_weight(self, bound: BoundObjective) -> float:
        return 0.0

    def _confidence(self, values: Floats, weights: Floats, bound: BoundObjective) -> Floats:
        return ONE

    def _target(self, values: Floats, lowest: float, bound: BoundObjective) -> Floats:
        return values

    def _rhs_is_value(self, lowest: float) -> bool:
        return True

    def _ridge_scale(self, matrix: csr_matrix, lowest: float, n_other: int, bound: BoundObjective) -> Floats:
        counts: Floats = np.diff(matrix.indptr).astype(np.float64)
        return counts


#: Every preset by its name.
PRESETS: dict[str, type[Objective]] = {c.name: c for c in (Wals, Implicit, Hu, Ials, GoogleWals, Eals, Spark, Explicit)}

#: What other libraries call a parameter.
ELSEWHERE = dict.fromkeys(("lambda", "lam", "l2", "reg", "reg-param", "regparam"), "regularization")


def make_objective(objective: str | Objective = "wals", **params: Unpack[ObjectiveOptions]) -> Objective:
    """An objective from the name of a preset and its parameters.

    Parameters
    ----------
    objective : str or Objective
        A key of :data:`PRESETS`, or a ready objective, which is returned as it is.
    **params
        Parameters of the preset.

    Returns
    -------
    Objective

    Raises
    ------
    ValueError
        No such preset, or a parameter is out of range.
    TypeError
        The preset has no such parameter, or parameters were given beside a ready objective.
    """
    if isinstance(objective, Objective):
        if params:
            raise TypeError(
                f"objective is already a {type(objective).__name__}; set {', '.join(params)} when you make it"
            )
        return objective
    if not isinstance(objective, str) or objective not in PRESETS:
        wanted = f"objective must be an Objective or one of {', '.join(PRESETS)}, got {objective!r}"
        raise ValueError(wanted + did_you_mean(objective, PRESETS))
    preset: Any = PRESETS[objective]
    accepted = [f.name for f in dataclasses.fields(preset)]
    unknown = [name for name in params if name not in accepted]
    if unknown:
        message = f"objective {objective!r} has no parameter {', '.join(unknown)}; it has {', '.join(accepted)}"
        others = [name for name, other in PRESETS.items() if unknown[0] in {f.name for f in dataclasses.fields(other)}]
        if others:
            message += f"; {', '.join(others)} {'has' if len(others) == 1 else 'have'} one of that name"
        raise TypeError(message + did_you_mean(unknown[0], accepted, **ELSEWHERE))
    made: Objective = preset(**params)
    return made


def _checked_weights(parameter: str, value: Any) -> float | Floats | None:
    if value is None:
        return None
    side = "user" if parameter == "row_weights" else "item"
    refuse_ids(parameter, value, f"interactions.{side}_ids.ids")
    refuse_masked(parameter, value)
    message = f"{parameter} must be one number or a 1-D array of finite numbers >= 0, got {value!r}"
    if np.asarray(value).dtype.kind not in "biufO":  # texts of numbers would be read
        raise TypeError(message)
    try:
        weights = np.array(value, np.float64)  # a copy, as an objective does not change
    except (TypeError, ValueError):
        raise TypeError(message) from None
    if weights.ndim > 1 or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(message)
    if weights.ndim == 0:
        return float(weights)
    weights.flags.writeable = False
    return weights


def bound_from_arrays(arrays: dict[str, Floats], params: dict[str, Any]) -> BoundObjective:
    """The inverse of :meth:`BoundObjective.to_arrays`.

    Parameters
    ----------
    arrays : dict of str to float64 array
    params : dict
        Both as they were given.

    Returns
    -------
    BoundObjective

    Raises
    ------
    ModelFormatError
        The arrays and params do not describe an objective.
    """
    try:
        parts: dict[str, dict[str, Any]] = {"learned": {}, "parameter": {}}
        for key, array in arrays.items():
            part, name = key.split(".", 1)
            parts[part][name] = array
        objective = make_objective(params["objective"], **params["parameters"], **parts["parameter"])
        bound = BoundObjective(objective, params["n_users"], params["n_items"], **parts["learned"])
        number("regularization", bound.regularization)  # also where it is one that was learned
        return bound
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFormatError(f"the saved objective cannot be read: {error!r}") from error
