"""The steps of a fit that a linear prior adds: what its rows are solved with, and how its W and b follow.

With the other side fixed, the part of the objective that a prior changes is, for the rows of its side (see
:mod:`wals_gpu.priors`)::

    data(Y) + sum_i [ r_i |y_i|^2 + s_i |y_i - q_i|^2 ] + mu (|W|^2 + |b|^2),    q_i = W e_i + b

Three steps lower it in turn. None ever raises it.

1. Rows: both squares are one, ``(r + s) |y - s/(r+s) q|^2`` and what does not depend on y, so the solvers need no more
   than a ridge and a prior mean.
2. Along: W and b move, and every y_i with its q_i, so that ``y_i - q_i`` stays; by exact line search.
3. Regression: W and b in closed form, y fixed. One (E+1) x (E+1) Cholesky factor serves all columns and iterations.

With ``votes="equal"`` step 3 counts every row once, which is the regression of another objective, and step 2 is left
out; a prior that is off has neither. With ``cold="regression"``, a map for rows without interactions comes at the end.

Rows and regression alone would do, and be slow where the prior is strong: each y_i is then tied to a q_i that is tied
to the y's. Step 2 changes both together, and the same loss takes fewer iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.backends.session import Backend, FeatureRows
from wals_gpu.objective.terms import CHUNK, Floats, RowTerms
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.priors.rows import AllRows, RowsHere, over_chunks

__all__ = ["PriorSteps"]

# Rows that the trace of empirical Bayes is estimated from, with one vector of random signs each: the relative error
# is below sqrt(2 / (rows D)), and the rows are a small part of a sweep.
_TRACE_ROWS = 2048
# Rows that a cold map's ridge is chosen with, each left out in turn.
_LEFT_OUT_ROWS = 4096
_COLD_RIDGES = tuple(10.0 ** (step / 2) for step in range(-4, 9))
# A learned strength moves only where it moves by more than this part of itself: so it comes to rest, and the loss of
# later iterations is that of one objective.
_STRENGTH_STEP = 0.01


class PriorSteps:
    """A prior in a fit.

    Parameters
    ----------
    fitted : FittedPrior
        Its weights and scale are written.
    features : (R, E) array
        In the type of the factors.
    terms : RowTerms
        Of the R rows, under the objective alone.
    backend : Backend
    rows : AllRows
        Knows of the others where these are not all rows of the side. Every call is made wherever there are some.

    Attributes
    ----------
    terms : RowTerms
        What the rows are solved with, towards :meth:`target`.
    """

    def __init__(
        self,
        fitted: FittedPrior,
        features: NDArray[np.floating],
        terms: RowTerms,
        backend: Backend,
        rows: AllRows,
    ) -> None:
        prior, n = fitted.prior, len(features)
        self.fitted = fitted
        self._features, self._terms, self._backend = features, terms, backend
        self._all = rows
        # Rows that are no part of the objective are their prior means. In the regression they would only slow it down.
        self._active = np.ones(n, np.bool_) if prior.cold == "map" else np.diff(terms.row_ptr) > 0
        numbers = None if self._all.n == n else np.arange(self._all.first, self._all.first + n)
        self._remaining, strength = fitted.ridges(terms, numbers)
        self._base: Floats = strength / fitted.scale[0]

        def check() -> None:
            if not (prior.is_off or (self._base[self._active] > 0).all()):
                raise ValueError(
                    "strength must be given: by default it is the ridge of the objective, which is 0 for some rows"
                )

        self._all.alone(check)
        self._weight = self._base * self._active
        # Of the regression. A prior that is off has none but the last, after the fit.
        self._is_joint = prior.votes == "strength" and not prior.is_off
        self._votes = self._weight if self._is_joint else self._active.astype(np.float64)

        def gram(rows: slice) -> Floats:
            f = _with_one(features[rows].astype(np.float64), prior.intercept)
            product: Floats = (f.T * self._votes[rows]) @ f
            return product

        self._gram = self._sum(gram)
        counts = self._sum(lambda rows: np.array([self._active[rows].sum(), self._base[rows].sum()]))
        self._n_active, self._mean_base = int(counts[0]), float(counts[1]) / max(self._all.n, 1)
        self._sampled: tuple[NDArray[np.int64], NDArray[np.floating]] | None = None  # of empirical Bayes
        self._rows: FeatureRows | None = None  # where a device does the sums over rows
        self._line_terms: RowTerms | None = None
        self._grams: dict[str, Floats] = {}
        self._mean: NDArray[np.floating] = np.zeros((n, fitted.weights.shape[1]), features.dtype)
        self.refresh()

    @classmethod
    def begin(
        cls,
        prior: LinearPrior,
        raw: NDArray[Any],
        terms: RowTerms,
        backend: Backend,
        rows: AllRows,
        factors: int,
    ) -> PriorSteps:
        """The prior of a fit that begins, from the embeddings (R, E) of the rows."""
        threads = int(getattr(backend, "num_threads", 1))
        fitted = FittedPrior.begin(prior, raw, factors, rows, threads)
        features = rows.alone(lambda: fitted.features_of_fit(raw, terms.rhs.dtype, threads))
        return cls(fitted, features, terms, backend, rows)

    @property
    def features(self) -> NDArray[np.floating]:
        """Of the rows, (R, E)."""
        return self._features

    def attach(self, rows: FeatureRows | None) -> None:
        """From now on a device has the factors, and does what is summed over rows; None: no longer."""
        if rows is not self._rows:
            self._rows = rows
            self._project()

    @property
    def strength(self) -> Floats:
        """s of every row, (R,)."""
        strength: Floats = self._base * self.fitted.scale[0]
        return strength

    @property
    def mean_strength(self) -> float:
        """The mean of s over all rows."""
        return self._mean_base * float(self.fitted.scale[0])

    def _set_scale(self) -> None:
        """Follow a change of the strength's scale."""
        prior = self.fitted.prior
        ridge = (self._remaining + self.strength).astype(self._features.dtype)
        self.terms = replace(self._terms, ridge=ridge)
        scale = self.fitted.scale[0] if self._is_joint else 1.0
        self._pull = self._votes * scale
        self._strength = self.strength
        self._shrunk = None
        if self._remaining.any():
            self._shrunk = (self._strength / (self._remaining + self._strength)).astype(self._features.dtype)
        with one_blas_thread():  # the last bits must not depend on how many there are
            self._factor = cho_factor(scale * self._gram + prior.ridge * np.eye(len(self._gram)), lower=True)

    def finish(self, factors: NDArray[np.floating], other: NDArray[np.floating]) -> None:
        """Leave the prior means with the fitted prior, and rows without interactions with the factors they get."""
        prior = self.fitted.prior
        if prior.is_off:
            self.fitted.weights[:] = 0
            self._project()
            self._regress(factors)
        self._project()
        self.fitted.mean = self._mean
        cold = self._mean
        if prior.cold == "regression" and self._all.gather(np.array([np.isfinite(other).all()])).all():
            self.fitted.cold_weights = self._cold_map(other)
            cold = np.empty_like(factors)
            self._apply(self.fitted.cold_weights, cold)
        if prior.cold == "regression" or prior.is_off:
            factors[~self._active] = cold[~self._active]

    def _cold_map(self, other: NDArray[np.floating]) -> Floats:
        """The map of ``cold="regression"``: to what interactions alone say of the rows that have any.

        Their factors in the fit are drawn towards a map's own values, most so where there is little to go by; solved
        once more, without the prior, they are not.
        """
        alone = self._terms
        ridge = np.broadcast_to(alone.ridge, alone.n_rows)
        if not self._all.gather(np.array([(ridge[self._active] > 0).all()])).all():
            alone = replace(alone, ridge=self.terms.ridge)  # an absolute strength alone makes such a row solvable
        targets = np.zeros((len(self._features), other.shape[1]), self._features.dtype)
        self._all.solve(alone, other, targets)
        rows = self._active_rows()

        def sums(part: slice) -> Floats:
            f = _with_one(self._features[part][self._active[part]].astype(np.float64), True)
            y = targets[part][self._active[part]].astype(np.float64)
            product: Floats = f.T @ np.hstack([f, y])
            return product

        rng = np.random.default_rng(len(rows))
        some = np.sort(rng.choice(rows, min(_LEFT_OUT_ROWS, len(rows)), replace=False))
        here = self._here(some)
        with_targets = self._sum(sums)
        left_out = self._all.gather(self._features[here]), self._all.gather(targets[here])
        with one_blas_thread():
            found = regression_map(with_targets, *left_out)
        self._all.agree(found)
        return found

    def _active_rows(self) -> NDArray[np.int64]:
        """Numbers of the rows, wherever they are, that are part of the objective."""
        return np.flatnonzero(self._all.gather(self._active))

    def _here(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some rows, numbers in rising order, that are here, counted from the first one here."""
        first, last = np.searchsorted(rows, [self._all.first, self._all.first + len(self._features)])
        return rows[first:last] - self._all.first

    def move_to(self, backend: Backend) -> None:
        """Compute on another device from now on, of which the rows' factors are the caller's own."""
        self._backend, self._rows, self._all = backend, None, RowsHere(len(self._features), backend)
        self._project()

    def scale_by(self, factor: float) -> None:
        """Follow factors that were multiplied by a number."""
        self.fitted.weights *= factor
        self._project()  # not scaled: means depend on nothing but the weights, as a resumed fit has only those

    def refresh(self) -> None:
        """Follow a change of weights and scale from elsewhere."""
        self._set_scale()
        self._project()

    def _project(self) -> None:
        if self._rows is None:
            self._apply(self.fitted.weights, self._mean)
        else:
            self._rows.project(self.fitted.weights)

    def _settle(self, factors: NDArray[np.floating]) -> None:
        """Rows that are no part of the objective have their prior means."""
        if self._rows is None:
            factors[~self._active] = self._mean[~self._active]
        else:
            self._rows.settle(self.fitted.weights, self._active)

    def _apply(self, weights: Floats, out: NDArray[np.floating]) -> None:
        """What a map gives for all rows."""
        in_dtype = weights.astype(self._features.dtype)

        def mean(rows: slice) -> None:
            np.matmul(self._features[rows], in_dtype[:-1], out=out[rows])
            out[rows] += in_dtype[-1]

        self._over_rows(mean)

    def target(self) -> Any:
        """What :attr:`terms` pull the rows to, (R, D), for the session's solve."""
        if self._rows is not None:
            return self._rows.target(self.fitted.weights, self._shrunk)
        return self._mean if self._shrunk is None else self._mean * self._shrunk[:, None]

    def penalty(self, factors: NDArray[np.floating]) -> float:
        """What the prior adds to the loss: all but the data part."""
        if self._rows is not None:
            of_rows = self._rows.ridge_loss("strength", self._strength, from_mean=True)
            if self._shrunk is not None:
                of_rows += self._rows.ridge_loss("remaining", self._remaining)
        else:
            of_ridges = ((self._remaining, None), (self.strength, self._mean))
            of_rows = sum(self._all.ridge_loss(factors, r.astype(factors.dtype), mean) for r, mean in of_ridges)
        return of_rows + self.fitted.prior.ridge * float(np.vdot(self.fitted.weights, self.fitted.weights))

    def update(self, factors: NDArray[np.floating], other: NDArray[np.floating]) -> float:
        """Steps 2 and 3, after the rows were solved; `factors` move along.

        Returns
        -------
        float
            The change of the loss's data part.
        """
        weights = self.fitted.weights
        if self.fitted.prior.is_off:
            return 0.0
        if not self._is_joint:
            self._regress(factors)
            self._settle(factors)
            return 0.0
        downhill = self._downhill(factors)
        change, step = self._along(self._regression(downhill), factors, other)
        weights += step
        # The residuals of all rows are what they were, so the regression needs no second pass over the rows.
        weights += self._regression(downhill - self.fitted.prior.ridge * step)
        self._all.agree(weights)
        self._project()
        self._settle(factors)
        return change

    def regress(self, factors: NDArray[np.floating]) -> None:
        """Step 3 alone, for factors that are there already when the fit begins."""
        if not self.fitted.prior.is_off:
            self._regress(factors)

    def _regress(self, factors: NDArray[np.floating]) -> None:
        self.fitted.weights += self._regression(self._downhill(factors))
        self._all.agree(self.fitted.weights)
        self._project()

    def _regression(self, downhill: Floats) -> Floats:
        with one_blas_thread():
            solved: Floats = cho_solve(self._factor, downhill)
        return solved

    def _downhill(self, factors: NDArray[np.floating]) -> Floats:
        """Half the negative gradient of the prior's part over the weights; at solved rows, of the whole loss."""
        pull = self._pull.astype(factors.dtype)[:, None]

        def towards(rows: slice) -> Floats:
            residual = pull[rows] * (factors[rows] - self._mean[rows])
            return np.vstack([self._features[rows].T @ residual, residual.sum(axis=0)]).astype(np.float64)

        summed = self._sum(towards) if self._rows is None else self._rows.cross("pull", self._pull, from_mean=True)
        downhill = summed - self.fitted.prior.ridge * self.fitted.weights
        if not self.fitted.prior.intercept:
            downhill[-1] = 0
        return downhill

    def _along(
        self, regression: Floats, factors: NDArray[np.floating], other: NDArray[np.floating]
    ) -> tuple[float, Floats]:
        """Step 2; the change of the data part, and what is added to the weights.

        The direction is the regression's own, times ``s A^-1`` on the side of the factors, with A the mean of the
        rows' matrices: what a Newton step would add to the regression if all rows had the same matrix.
        """
        terms, weights = self._terms, self.fitted.weights
        n_active = max(self._n_active, 1)
        background = np.broadcast_to(terms.background, terms.n_rows).astype(np.float64)

        def means(rows: slice) -> Floats:
            is_active = self._active[rows]
            of_active = background[rows][is_active].sum(), self._strength[rows][is_active].sum()
            return np.array([*of_active, self._remaining[rows].sum()])

        mean_background, mean_strength, mean_remaining = self._sum(means) / n_active
        if self._line_terms is None:
            per_other = self._all.column_sums(terms, len(other)) / n_active
            per_other += mean_background * terms.other_background
            self._line_terms = replace(
                terms, background=np.ones(1), other_background=np.maximum(per_other, 0).astype(other.dtype)
            )
        spectrum_of = partial(self._all.spectrum, other=other) if self._rows is None else self._rows.spectrum
        values, vectors = spectrum_of(self._line_terms)
        values = values + mean_remaining
        if vectors is None or values[-1] <= 0:
            return 0.0, np.zeros_like(weights)
        inverse = 1 / np.maximum(values, 1e-6 * values[-1])
        with one_blas_thread():
            step = ((regression @ vectors) * inverse) @ vectors.T * mean_strength
        self._all.agree(step)

        # f(a) = data(Y + a V) + sum r |y + a v|^2 + mu |W + a P|^2 is a parabola in a; s |y - q|^2 does not change.
        if self._rows is not None:
            slope, curvature, ridge_slope, ridge_curvature = self._on_device(self._rows, step)
            change, length = self._along_line(step, slope, curvature, ridge_slope, ridge_curvature)
            if not length:
                return 0.0, np.zeros_like(weights)
            self._rows.move(length * step)
            return change, length * step
        direction = np.empty_like(factors)
        in_dtype = step.astype(factors.dtype)

        def move(rows: slice) -> None:
            np.matmul(self._features[rows], in_dtype[:-1], out=direction[rows])
            direction[rows] += in_dtype[-1]

        self._over_rows(move)
        of_entries = self._entries_part(factors, direction, other)
        values, vectors = self._all.spectrum(terms, other)
        with one_blas_thread():
            other_gram = None if vectors is None else ((vectors * values) @ vectors.T).astype(factors.dtype)

        def of_rows(rows: slice) -> Floats:
            y, v = factors[rows], direction[rows]
            r = self._remaining[rows]
            parts = np.array([r @ _row_dots(y, v), r @ _row_dots(v, v), 0, 0, *of_entries(rows)])
            if other_gram is not None:
                product = v @ other_gram
                parts[2:4] = background[rows] @ _row_dots(y, product), background[rows] @ _row_dots(v, product)
            return parts

        ridge_slope, ridge_curvature, background_slope, background_curvature, *of_data = self._sum(of_rows)
        slope, curvature = of_data[0] + background_slope, of_data[1] + background_curvature
        change, length = self._along_line(step, slope, curvature, ridge_slope, ridge_curvature)
        if not length:
            return 0.0, np.zeros_like(weights)
        direction *= direction.dtype.type(length)
        factors += direction
        return change, length * step

    def _along_line(
        self, step: Floats, slope: float, curvature: float, ridge_slope: float, ridge_curvature: float
    ) -> tuple[float, float]:
        """The change of the data part at the lowest point of the line, and how many steps it is away."""
        ridge_slope += self.fitted.prior.ridge * float(np.sum(self.fitted.weights * step))
        ridge_curvature += self.fitted.prior.ridge * float(np.sum(step**2))
        if not curvature + ridge_curvature > 0:
            return 0.0, 0.0
        length = -(slope + ridge_slope) / (curvature + ridge_curvature)
        return float(2 * length * slope + length**2 * curvature), float(length)

    def _on_device(self, rows: FeatureRows, step: Floats) -> tuple[float, float, float, float]:
        """Slope and curvature of the data part and of the ridge towards 0 along a step: a row's v is ``[f 1] step``, so
        sums over rows of ``w y.v`` and ``w v.v`` follow from sums of the size of the step."""

        def sums(name: str, weight: Floats, metric: Floats | None) -> tuple[float, float]:
            of_factors = rows.cross(name, weight)
            if name not in self._grams:
                self._grams[name] = self._sum(lambda part: _weighted_gram(self._features[part], weight[part]))
            of_steps = self._grams[name] @ step
            if metric is not None:
                of_factors, of_steps = of_factors @ metric, of_steps @ metric
            return float(np.vdot(of_factors, step)), float(np.vdot(of_steps, step))

        slope, curvature = rows.line(step, self._terms)
        gram = rows.gram(self._terms)
        if gram is not None:
            background = np.broadcast_to(self._terms.background, len(self._features)).astype(np.float64)
            more = sums("background", background, gram)
            slope, curvature = slope + more[0], curvature + more[1]
        of_ridge = (0.0, 0.0) if self._shrunk is None else sums("remaining", self._remaining, None)
        return slope, curvature, *of_ridge

    def _entries_part(
        self, factors: NDArray[np.floating], direction: NDArray[np.floating], other: NDArray[np.floating]
    ) -> Callable[[slice], Floats]:
        """Sums over the entries of rows of ``(gram x.y - rhs) x.v`` and of ``gram (x.v)^2``, (2,)."""
        terms = self._terms
        present, change = self._all.products(terms, [factors, direction], other)
        gram, rhs = terms.gram_values(), terms.rhs_values()

        def of_rows(rows: slice) -> Floats:
            sums, first, last = np.zeros(2), int(terms.row_ptr[rows.start]), int(terms.row_ptr[rows.stop])
            for start in range(first, last, CHUNK):
                z = slice(start, min(start + CHUNK, last))
                v = change[z].astype(np.float64)
                weighted = gram[z] * v
                sums += weighted @ present[z] - rhs[z] @ v, weighted @ v
            return sums

        return of_rows

    def learn(self, factors: NDArray[np.floating], other: NDArray[np.floating]) -> None:
        """Empirical Bayes: the strength that factors ask for, ``1/s = mean over rows of (|y - q|^2 + tr A^-1) / D``.

        That is the M step for a normal prior with variance 1/s, with exp(-loss / 2) as the likelihood. The trace is
        Hutchinson's estimate, v' A^-1 v with random signs v, of some of the rows: one exact solve more. Rows and signs
        are the same each time, so the strength comes to rest.
        """
        if self.fitted.prior.learn == "none" or not self.fitted.weights.any():
            return
        if self._rows is not None:
            self._mean = self._rows.mean()
        if self._sampled is None:
            active = self._active_rows()
            rng = np.random.default_rng(len(active))
            chosen = np.sort(rng.choice(active, min(_TRACE_ROWS, len(active)), replace=False))
            drawn = rng.choice(np.array([-1, 1], factors.dtype), (len(chosen), factors.shape[1]))
            first = int(np.searchsorted(chosen, self._all.first))
            here = self._here(chosen)
            self._sampled = here, drawn[first : first + len(here)].copy()
        rows, signs = self._sampled
        some = _take_rows(self.terms, rows)
        solved = np.zeros_like(signs)
        # With right-hand coefficients of 0, a row's solution is A^-1 (ridge x prior mean).
        self._all.solve_some(some, other, solved, signs / some.ridge[:, None])
        traces = self._all.gather(self._base[rows] * _row_dots(signs, solved))

        def spread(rows: slice) -> Floats:
            difference = factors[rows] - self._mean[rows]
            return np.array(self._weight[rows] @ _row_dots(difference, difference))

        inverse = (float(self._sum(spread)) / self._n_active + np.mean(traces)) / factors.shape[1]
        if abs(np.log(1 / inverse / self.fitted.scale[0])) > _STRENGTH_STEP:
            self.fitted.scale[0] = 1 / inverse
            self._set_scale()

    def _over_rows(self, work: Callable[[slice], Any]) -> None:
        def all_here() -> None:
            for _ in over_chunks(len(self._features), work, self._threads):
                pass

        self._all.alone(all_here)

    def _sum(self, work: Callable[[slice], Any]) -> Floats:
        """Sum over the chunks of all rows. Products are in the type of the factors, their sum is in float64, and its
        order follows from the number of rows alone (:mod:`wals_gpu.priors.rows`)."""
        return self._all.total(len(self._features), work, self._threads)

    @property
    def _threads(self) -> int:
        return int(getattr(self._backend, "num_threads", 1))


def regression_map(sums: Floats, features: NDArray[np.floating], targets: NDArray[np.floating]) -> Floats:
    """Ridge regression with a free intercept; its ridge is the best of several when each of some rows is left out.

    Parameters
    ----------
    sums : (E+1, E+1+D)
        ``[F 1]' [F 1 Y]`` of all n rows.
    features : (m, E)
        Of some of them.
    targets : (m, D)
        Of the same.

    Returns
    -------
    (E+1, D) float64
        The map, its intercept in the last row. It is no more than the mean where no ridge does better than that.
    """
    n_features = len(sums) - 1
    n = max(sums[-1, n_features], 1.0)
    center, mean = sums[-1, :n_features] / n, sums[-1, n_features + 1 :] / n
    gram = sums[:-1, :n_features] - n * np.outer(center, center)
    values, vectors = np.linalg.eigh(gram)
    values = np.maximum(values, 0)
    products = vectors.T @ (sums[:-1, n_features + 1 :] - n * np.outer(center, mean))
    rotated, wanted = (features - center) @ vectors, targets - mean
    best = n / max(n - 1, 1) * float(np.linalg.norm(wanted))
    chosen = np.zeros_like(products)
    for ridge in _COLD_RIDGES:
        coefficients = products / (values + ridge)[:, None]
        leverage = 1 / n + rotated**2 @ (1 / (values + ridge))
        residual = (wanted - rotated @ coefficients) / np.maximum(1 - leverage, 1e-9)[:, None]
        error = float(np.linalg.norm(residual))
        if error < best:
            best, chosen = error, coefficients
    weights = vectors @ chosen
    return np.vstack([weights, mean - center @ weights])


def _with_one(features: Floats, intercept: bool) -> Floats:
    """Features with one more column, of ones, or of zeros without an intercept."""
    return np.hstack([features, np.full((len(features), 1), float(intercept))])


def _weighted_gram(features: NDArray[np.floating], weight: Floats) -> Floats:
    f = _with_one(features.astype(np.float64), True)
    product: Floats = (f.T * weight) @ f
    return product


def _row_dots(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    dots: Floats = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return dots


def _take_rows(terms: RowTerms, rows: NDArray[np.integer]) -> RowTerms:
    """The matrices of some rows, with right-hand coefficients of 0."""
    lengths = np.diff(terms.row_ptr)[rows]
    row_ptr = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.arange(row_ptr[-1]) + np.repeat(terms.row_ptr[rows] - row_ptr[:-1], lengths)
    return replace(
        terms,
        row_ptr=row_ptr,
        col_idx=terms.col_idx[entries],
        rhs=np.zeros(1, terms.rhs.dtype),
        gram=terms.gram_values()[entries],
        background=terms.background[rows] if len(terms.background) > 1 else terms.background,
        ridge=terms.ridge[rows],
        target_square=0.0,
    )
