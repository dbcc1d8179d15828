"""Differences of models, pair by pair: on the same users, with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.data.tables import Tabular, format_table, html_table
from wals_gpu.evaluation.resampling import Estimate, holm, interval_of, paired_p_values, resampled_means

__all__ = ["Difference", "Differences", "differences_of"]


class Difference(NamedTuple):
    """What a metric of one model has more than that of another, as a mean over the same users.

    Attributes
    ----------
    metric : str
    first, second : str
        The models: `value` is ``first - second``.
    value : float
    low, high : float or None
        Its paired interval: the users are resampled, and both models with them. None without resamples.
    p_value : float or None
        Of the paired permutation test (two-sided). None without permutations.
    p_adjusted : float or None
        The same adjusted by Holm for all pairs of models of the metric.
    ratio, ratio_low, ratio_high : float or None
        The mean of the first over that of the second, and its interval from the same resamples; None where a mean of
        the second is 0.
    """

    metric: str
    first: str
    second: str
    value: float
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether the adjusted p-value is below 0.05; without one, whether the interval leaves out 0."""
        if self.p_adjusted is not None:
            return self.p_adjusted < 0.05
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high

    def reversed(self) -> Difference:
        """The same seen from the second model."""

        def turned(value: float | None, by: float | None) -> float | None:
            return None if not value or by is None else 1 / value

        return Difference(
            self.metric, self.second, self.first, -self.value,
            None if self.high is None else -self.high, None if self.low is None else -self.low,
            self.p_value, self.p_adjusted,
            turned(self.ratio, self.ratio), turned(self.ratio_high, self.ratio), turned(self.ratio_low, self.ratio),
        )  # fmt: skip


class Differences(list[Difference], Tabular):
    """The differences of all pairs of models in all metrics; a table for people, and for programs."""

    def to_arrow(self) -> pa.Table:
        """An Arrow table with a row for each: the columns are the attributes of :class:`Difference`."""
        kinds = dict.fromkeys(Difference._fields, pa.float64())
        kinds |= dict.fromkeys(("metric", "first", "second"), pa.string())
        return pa.table({name: pa.array([getattr(one, name) for one in self], kind) for name, kind in kinds.items()})

    def of(self, *metrics: str) -> Differences:
        """Those of some metrics only.

        Parameters
        ----------
        *metrics : str
            Such as "ndcg@20".

        Returns
        -------
        Differences
        """
        return Differences(one for one in self if one.metric in metrics)

    def between(self, first: str, second: str) -> dict[str, Difference]:
        """Those of two models, by metric.

        Parameters
        ----------
        first, second : str
            In either order; values are ``first - second``.

        Returns
        -------
        dict of str to Difference

        Raises
        ------
        KeyError
            These two were not compared.
        """
        found = {one.metric: one for one in self if (one.first, one.second) == (first, second)}
        found |= {one.metric: one.reversed() for one in self if (one.first, one.second) == (second, first)}
        if not found:
            names = list(dict.fromkeys(name for one in self for name in (one.first, one.second)))
            raise KeyError(f"{first!r} and {second!r} were not compared; there are {', '.join(map(repr, names))}")
        return found

    def lines(self) -> tuple[list[str], list[list[Any]]]:
        """Header and rows for people."""
        header = ["metric", "difference", "of", "times", "p", "p (Holm)", ""]
        rows = [
            [
                one.metric,
                Estimate(one.value, one.low, one.high),
                f"{one.first} - {one.second}",
                "" if one.ratio is None else f"{one.ratio:.3g}",
                *("" if p is None else in_words(p) for p in (one.p_value, one.p_adjusted)),
                "clear" if one.is_clear else "may be chance",
            ]
            for one in self
        ]
        return header, rows

    def __str__(self) -> str:
        return format_table(*self.lines()) if self else "no pairs of models"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self.lines()) if self else "<p>no pairs of models</p>"


def in_words(p_value: float) -> str:
    """A p-value with as many digits as say something."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def differences_of(
    per_user: Mapping[str, Mapping[str, NDArray[np.float64]]],
    metrics: Sequence[str],
    *,
    confidence: float,
    n_resamples: int,
    n_permutations: int,
    random_state: int | np.random.Generator | None,
) -> Differences:
    """All pairs of models, metric by metric.

    Parameters
    ----------
    per_user : dict of str to dict of str to (V,) array
        ``per_user[model][metric]``, of the same users in the same order.
    metrics : sequence of str
    confidence, n_resamples, n_permutations, random_state
        As of :func:`.evaluate`.

    Returns
    -------
    Differences
        Metric by metric; in each, pairs in the order of the models.
    """
    pairs = list(combinations(per_user, 2))
    if not pairs:
        return Differences()
    tables = {name: np.column_stack([values[metric] for metric in metrics]) for name, values in per_user.items()}
    resampled = {}
    if n_resamples:  # the same draws for every model, so that differences of their means are of the same users
        both = np.column_stack(list(tables.values()))
        means = resampled_means(both, n_resamples, np.random.default_rng(random_state))
        parts = np.split(means, len(tables), axis=1)
        resampled = dict(zip(tables, parts, strict=True))
    p_values: NDArray[np.float64] | None = None
    if n_permutations:
        table = np.column_stack([tables[first] - tables[second] for first, second in pairs])
        found = paired_p_values(table, n_permutations, np.random.default_rng(random_state))
        p_values = found.reshape(len(pairs), len(metrics))
    differences = Differences()
    for column, metric in enumerate(metrics):
        of_metric = None if p_values is None else p_values[:, column].tolist()
        adjusted = None if of_metric is None else holm(of_metric)
        for number, (first, second) in enumerate(pairs):
            mean, other = (float(tables[name][:, column].mean()) for name in (first, second))
            low = high = ratio = ratio_low = ratio_high = None
            ratio = mean / other if other > 0 else None
            if resampled:
                ours, theirs = (resampled[name][:, column] for name in (first, second))
                low, high = map(float, interval_of(ours - theirs, confidence))
                if ratio is not None and (theirs > 0).all():
                    ratio_low, ratio_high = map(float, interval_of(ours / theirs, confidence))
            differences.append(
                Difference(
                    metric, first, second, mean - other, low, high,
                    None if of_metric is None else of_metric[number], None if adjusted is None else adjusted[number],
                    ratio, ratio_low, ratio_high,
                )
            )  # fmt: skip
    return differences
