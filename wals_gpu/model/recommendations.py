"""What answers look like: the pair of arrays that programs take, and the same as tables, with titles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wals_gpu.data.ids import Ids
from wals_gpu.data.tables import Tabular, as_output, format_table, html_table
from wals_gpu.data.titles import Titles

__all__ = ["Explanation", "Layout", "Recommendations", "RecommendationsChunk", "arrow_type"]

#: Rows that a terminal or a notebook shows.
SHOWN = 20


class _WithTitles(Tabular):
    """What can be had as a table with the titles of its items in a column ``title``."""

    __slots__ = ()

    def to_arrow(self, *, titles: Any = None, title_column: str | None = None) -> pa.Table:
        raise NotImplementedError

    def to_pandas(self, *, titles: Any = None, title_column: str | None = None) -> Any:
        """The same as a pandas DataFrame.

        Parameters
        ----------
        titles, title_column
            As of :meth:`to_arrow`.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        return as_output(self.to_arrow(titles=titles, title_column=title_column), "pandas")

    def to_polars(self, *, titles: Any = None, title_column: str | None = None) -> Any:
        """The same as a polars DataFrame.

        Parameters
        ----------
        titles, title_column
            As of :meth:`to_arrow`.

        Returns
        -------
        polars.DataFrame

        Raises
        ------
        ImportError
            polars is not installed.
        """
        return as_output(self.to_arrow(titles=titles, title_column=title_column), "polars")


@dataclass(frozen=True)
class Layout:
    """The columns of a table of answers.

    Parameters
    ----------
    found : str
        The column of what was found.
    found_type : Arrow type
    query : str or None
        The column of whom (or what) it was found for; None without one.
    query_type : Arrow type
    has_source : bool
        Whether there is a column ``source``.
    titles : Titles or None
        Of what was found, shown beside it.
    """

    found: str = "item_id"
    found_type: pa.DataType = pa.int64()  # noqa: RUF009 (immutable)
    query: str | None = "user_id"
    query_type: pa.DataType = pa.int64()  # noqa: RUF009
    has_source: bool = True
    titles: Titles | None = None


def arrow_type(ids: Ids | None) -> pa.DataType:
    """Of a column of ids, or of row numbers where there are none."""
    if ids is None:
        return pa.int64()
    return pa.large_string() if ids.kind == "string" else pa.from_numpy_dtype(ids.ids.dtype)


class _Answers(_WithTitles):
    """What the whole of an answer and a part of one have in common."""

    __slots__ = ()

    ids: NDArray[Any]
    scores: NDArray[np.floating]
    users: Any
    source: Any
    layout: Layout

    @property
    def is_cold(self) -> Any:
        """Whether each row is for somebody the model has no factors for: (B,) bool, a bool for a single one."""
        return self.source != "model"

    def to_arrow(self, *, titles: Any = None, title_column: str | None = None) -> pa.Table:
        """As an Arrow table with a row for each item: ``user_id``, ``rank`` from 1, ``item_id``, ``score``, ``source``.

        Places without an item are left out. Similar items have ``item_id`` and ``similar_id``, similar users
        ``user_id`` and ``similar_id``, and both no ``source``.

        Parameters
        ----------
        titles : optional
            Titles of the items, for a column ``title``: a mapping of id to title, a table, or the path of a Parquet or
            CSV file. Default: those that the question was asked with.
        title_column : str, optional
            Of a table of titles. Default: the one named like ``title`` or ``name``.

        Returns
        -------
        pyarrow.Table
        """
        return self._table(titles, title_column, None)

    def _table(self, titles: Any, title_column: str | None, rows: int | None) -> pa.Table:
        """The first `rows` rows of the table; None: all."""
        layout = self.layout
        known = layout.titles if titles is None else Titles.read(titles, title_column)
        ids, scores = (np.atleast_2d(array) for array in (self.ids, self.scores))
        who, source = np.atleast_1d(np.asarray(self.users)), np.atleast_1d(self.source)
        if rows is not None:  # each line of the answer has a row or none
            some = np.cumsum((scores > -np.inf).sum(axis=1)) < rows
            n = min(int(some.sum()) + 1, len(ids))
            ids, scores, who, source = ids[:n], scores[:n], who[:n], source[:n]
        there = scores > -np.inf
        per_row = there.sum(axis=1)
        found = pa.array(ids[there], layout.found_type)
        columns: dict[str, Any] = {}
        if layout.query is not None:
            columns[layout.query] = _ids_column(np.repeat(who[: len(ids)], per_row), layout.query_type)
        ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)[there]
        columns |= {"rank": ranks, layout.found: found, "score": scores[there]}
        if known is not None:
            columns["title"] = known.of(found)
        if layout.has_source:
            columns["source"] = np.repeat(source[: len(ids)].astype(object), per_row)
            columns["source"] = pa.array(columns["source"], pa.string())
        table = pa.table(columns)
        return table if rows is None else table.slice(0, rows)

    def _lines(self) -> tuple[list[str], list[list[object]], int]:
        """Titles of columns, the first rows for people, and how many there are beside these."""
        table = self._table(None, None, SHOWN)
        names = [name for name in table.column_names if name != "source" or np.any(self.is_cold)]
        columns = {name: table[name].to_pylist() for name in names}
        if "source" in names:  # counts are shown as such
            columns["score"] = [
                int(score) if source == "popularity" else score
                for score, source in zip(columns["score"], columns["source"], strict=True)
            ]
        rows = [["" if value is None else value for value in row] for row in zip(*columns.values(), strict=True)]
        return names, rows, int((self.scores > -np.inf).sum()) - len(rows)

    def __repr__(self) -> str:
        names, rows, more = self._lines()
        return format_table(names, rows) + (f"\n... and {more:,} more rows" if more else "")

    def _repr_html_(self) -> str:
        names, rows, more = self._lines()
        return html_table(names, rows) + (f"\n<p>... and {more:,} more rows</p>" if more else "")


class Recommendations(_Answers, tuple[NDArray[Any], NDArray[np.floating]]):
    """The pair ``(ids, scores)``, which also knows whom each row is for and can be had as a table.

    Attributes
    ----------
    ids : (k,) for one user, (B, k) for several
        Item ids, or column numbers; None, or -1, where no item was left.
    scores : same shape
        Falling, but where lists were re-ranked; -inf where no item was left.
    users : id, or (B,) array of ids
        Whom each row is for: ids or row numbers (for :meth:`WALS.similar_items`, the items).
    source : str, or (B,) array of str
        What each row is from: "model", or for whom the model does not know, "popularity" or "mean" (see ``cold_users``
        of :meth:`WALS.recommend`).
    is_cold : bool, or (B,) array of bool
        Where `source` is not "model".

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from wals_gpu import WALS
    >>> data = csr_matrix([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    >>> found = WALS(factors=2, objective="hu", alpha=10).fit(data).recommend([0, 2], k=1)
    >>> ids, scores = found
    >>> found.users.tolist(), found.source.tolist()
    ([0, 2], ['model', 'model'])
    >>> found.to_arrow().column_names
    ['user_id', 'rank', 'item_id', 'score', 'source']
    """

    def __new__(
        cls, ids: NDArray[Any], scores: NDArray[np.floating], users: Any, source: Any, layout: Layout
    ) -> Recommendations:
        self = super().__new__(cls, (ids, scores))
        self.ids, self.scores, self.users, self.source, self.layout = ids, scores, users, source, layout
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:  # copies and pickles are made with these
        return self.ids, self.scores, self.users, self.source, self.layout


class RecommendationsChunk(_Answers, tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]):
    """The triple ``(users, ids, scores)`` of some users of :meth:`WALS.recommend_chunks`, with `source` and tables.

    Attributes are those of :class:`Recommendations`.
    """

    def __new__(
        cls, ids: NDArray[Any], scores: NDArray[np.floating], users: Any, source: Any, layout: Layout
    ) -> RecommendationsChunk:
        self = super().__new__(cls, (users, ids, scores))
        self.ids, self.scores, self.users, self.source, self.layout = ids, scores, users, source, layout
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.ids, self.scores, self.users, self.source, self.layout


class _ExplanationFields(NamedTuple):
    score: float
    ids: NDArray[Any]
    contributions: NDArray[np.float64]
    from_prior: float


class Explanation(_WithTitles, _ExplanationFields):
    """Why a user gets an item, see :meth:`wals_gpu.WALS.explain`; ``print`` shows it.

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

    __slots__ = ()

    def to_arrow(self, *, titles: Any = None, title_column: str | None = None) -> pa.Table:
        """As an Arrow table with a row for each of the user's items: ``rank``, ``item_id``, ``contribution``.

        Parameters
        ----------
        titles, title_column
            As for :meth:`Recommendations.to_arrow`.

        Returns
        -------
        pyarrow.Table
        """
        kind = pa.large_string() if self.ids.dtype.kind == "O" else pa.from_numpy_dtype(self.ids.dtype)
        ids = pa.array(self.ids, kind)
        columns = {"rank": np.arange(1, len(ids) + 1, dtype=np.int32), "item_id": ids}
        columns["contribution"] = self.contributions
        if titles is not None:
            columns["title"] = Titles.read(titles, title_column).of(ids)
        return pa.table(columns)

    def _lines(self) -> list[list[object]]:
        rows: list[list[object]] = [[str(i), float(c)] for i, c in zip(self.ids, self.contributions, strict=True)]
        others = self.score - self.from_prior - float(self.contributions.sum())
        if abs(others) > 1e-9 * max(float(np.abs(self.contributions).sum()), abs(self.score)):
            rows.append(["(other items)", others])
        if self.from_prior:
            rows.append(["(prior of the user)", self.from_prior])
        return [*rows, ["(score)", self.score]]

    def __str__(self) -> str:
        return format_table(["item_id", "adds"], self._lines())

    def _repr_html_(self) -> str:
        return html_table(["item_id", "adds"], self._lines())


def _ids_column(ids: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Ids as a column. Some that the model does not know may be beyond the integers of the ones that it knows."""
    try:
        return pa.array(ids, kind)
    except (pa.ArrowInvalid, OverflowError):
        return pa.array([str(one) for one in ids], pa.large_string())
