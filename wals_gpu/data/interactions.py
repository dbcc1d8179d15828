"""Interactions as users have them, turned into one checked sparse matrix with id maps.

This is the only place where input data is checked. What leaves it is canonical: rows sorted by column, no pair twice,
every number finite.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike, NDArray
from scipy import sparse

from wals_gpu.checks import flag, integer, number, warn
from wals_gpu.data.columns import native, open_source
from wals_gpu.data.csr import as_csr, cast_values, entry_rows, value_dtype, warn_repeats
from wals_gpu.data.encode import as_plain, encode, plain_type
from wals_gpu.data.ids import Ids, is_string
from wals_gpu.data.names import (
    Missing,
    choose_item,
    choose_named,
    choose_user,
    choose_value,
    is_rating,
    is_time,
    missing_error,
    usual_time,
)
from wals_gpu.data.source import Column, Source, TextOptions
from wals_gpu.data.times import Period, as_times, checked_times, recency, shown_times
from wals_gpu.errors import DataError, EmptyTableError

__all__ = [
    "Bounds",
    "ColumnNames",
    "Entries",
    "Interactions",
    "TableRows",
    "as_interactions",
    "in_order_of_appearance",
    "latest_times",
    "no_rows",
    "nothing_left",
    "read_interactions",
    "repeats_of_table",
]


class ColumnNames(NamedTuple):
    """What the columns of a table are called that interactions came from.

    Attributes
    ----------
    user, item : str, or what else names a column
    value, time : the same, or None
        None where there was none.
    """

    user: Hashable
    item: Hashable
    value: Hashable | None = None
    time: Hashable | None = None


@dataclass(frozen=True)
class Interactions:
    """Who interacted with what, and how much.

    Attributes
    ----------
    matrix : csr_matrix, (U, I), float32 or float64
        Canonical: columns sorted within a row, no pair twice, all values finite. Index arrays have SciPy's usual
        type: int32, or int64 from 2**31 entries on. A stored zero is kept: it is not the same as an absent entry.
    user_ids, item_ids : Ids or None
        The ids of the rows and of the columns; ``None`` where the data came as a matrix, whose rows are 0..U-1.
    times : (Z,) float64 or datetime64 array, or None
        When each entry of ``matrix`` happened, in the order of ``matrix.data``; of a repeated pair the latest time.
    columns : ColumnNames or None
        The columns of the table that the data came from; ``None`` for a matrix.
    repeats : int
        Rows of that table that repeated a pair of user and item.
    text_ids : bool
        Whether the table is a file of text, in which the number 7 and the text "7" are the same.
    """

    matrix: sparse.csr_matrix
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    times: NDArray[Any] | None = None
    columns: ColumnNames | None = None
    repeats: int = 0
    text_ids: bool = False

    def __post_init__(self) -> None:
        for name in ("user_ids", "item_ids"):
            if not isinstance(ids := getattr(self, name), (Ids, type(None))):
                raise TypeError(f"{name} of Interactions must be Ids, which say what is in which row; got {ids!r:.60}")
        if not (hasattr(self.matrix, "nnz") or isinstance(self.matrix, np.ndarray)):
            got = type(self.matrix).__name__
            raise TypeError(
                f"matrix of Interactions must be a SciPy sparse matrix, got {got}; as_interactions reads tables"
            )
        if not isinstance(self.times, (np.ndarray, type(None))):
            raise TypeError(f"times of Interactions must be an array, got {self.times!r:.60}")
        if self.times is not None:
            object.__setattr__(self, "times", checked_times("times of Interactions", self.times))

    def __repr__(self) -> str:
        """Sizes and the first ids, in place of all values and times."""
        parts = [repr(self.matrix)]
        if hasattr(self.matrix, "nnz"):
            n_users, n_items = self.matrix.shape
            parts = [f"{n_users:,} users x {n_items:,} items", f"{self.matrix.nnz:,} entries"]
        parts += [repr(ids) for ids in (self.user_ids, self.item_ids) if ids is not None]
        if self.times is not None and len(self.times):
            parts.append(f"times {self.times.min()} ... {self.times.max()}")
        return f"Interactions({', '.join(parts)})"


@dataclass(frozen=True)
class _Wanted:
    """What of a table is wanted, as :func:`as_interactions` documents it."""

    user_column: Hashable | None = None
    item_column: Hashable | None = None
    value_column: Hashable | Literal[False] | None = None
    time_column: Hashable | None = None
    min_value: float | None = None
    min_user_interactions: int | None = None
    min_item_interactions: int | None = None
    half_life: Any = None
    user_ids: Ids | None = None
    item_ids: Ids | None = None
    unknown: str = "error"
    dtype: DTypeLike = "float32"
    warn_ratings: bool = True
    like: ColumnNames | None = None

    def of_tables(self) -> list[str]:
        """Names of the arguments that were given and have a meaning for tables only."""
        names = (
            "user_column", "item_column", "value_column", "time_column", "min_value", "min_user_interactions",
            "min_item_interactions", "half_life",
        )  # fmt: skip
        return [name for name in names if getattr(self, name) is not None]

    def check(self) -> None:
        """Refuse what has no meaning, before anything is read."""
        value_dtype(self.dtype)
        if self.unknown not in ("error", "drop"):
            raise ValueError(f"unknown must be 'error' or 'drop', got {self.unknown!r}")
        for name in ("user_ids", "item_ids"):
            if not isinstance(known := getattr(self, name), (Ids, type(None))):
                raise TypeError(f"{name} must be Ids, such as those of a model or of other data, got {known!r:.60}")
        if not isinstance(self.like, (ColumnNames, type(None))):
            raise TypeError(f"like must be ColumnNames, such as Interactions.columns, got {self.like!r:.60}")
        if self.min_value is not None:
            number("min_value", self.min_value, -np.inf)
            if self.value_column is False:
                raise ValueError("min_value needs a column of values, but value_column is False")
        for side in ("user", "item"):
            name = f"min_{side}_interactions"
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
                if self.user_ids is not None or self.item_ids is not None:
                    raise ValueError(f"{name} chooses users and items, so it cannot be given with known ids of them")
        if self.half_life is not None and self.time_column is None:
            raise ValueError("half_life needs time_column: how old each interaction is")


def as_interactions(
    data: Any,
    *,
    user_column: Hashable | None = None,
    item_column: Hashable | None = None,
    value_column: Hashable | Literal[False] | None = None,
    time_column: Hashable | None = None,
    min_value: float | None = None,
    min_user_interactions: int | None = None,
    min_item_interactions: int | None = None,
    half_life: Any = None,
    user_ids: Ids | None = None,
    item_ids: Ids | None = None,
    unknown: Literal["error", "drop"] = "error",
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    decimal: Literal[".", ","] | None = None,
    triplets: bool | None = None,
    dtype: DTypeLike = "float32",
    warn_ratings: bool = True,
    like: ColumnNames | None = None,
) -> Interactions:
    """Check user data and turn it into a canonical sparse matrix with id maps.

    Parameters
    ----------
    data : sparse matrix or array, ndarray, DataFrame, Arrow table, Interactions, path, or list of paths
        A matrix is (U, I): any SciPy sparse format, or a dense 2-D array whose zeros are absent entries. A table has
        one row per interaction: pandas or polars DataFrame (polars LazyFrame too), Arrow table, any object with the
        Arrow stream interface, structured array, or files as in :func:`read_interactions`.
    user_column, item_column : str, optional
        Columns with the ids: integers or strings, no nulls. By default the one column that is named like
        ``user_id``, ``userId``, ``customer`` or ``Kundennummer``; like ``item_id``, ``movieId``, ``product`` or
        ``Artikelnummer``: docs/input.md has the rule. In a pandas DataFrame a named index level counts as a column.
    value_column : str or False, optional
        Column with finite numbers. By default the one that is named like ``value``, ``rating``, ``count``,
        ``plays``, ``quantity`` or ``Anzahl``. If there is none, or with ``False``, every row counts 1.
    time_column : str, optional
        Column with the time of each row: numbers, dates with or without time zones, or such text; kept as
        ``Interactions.times``. By default there are no times.
    min_value : float, optional
        Rows with a lower value are left out, such as ratings that are no likes.
    min_user_interactions, min_item_interactions : int, optional
        Users with fewer different items are left out, and items with fewer different users, until all that are left
        have enough of each other. What is left out has no id in the result.
    half_life : float, str or timedelta, optional
        Weigh each value by 2**-(age / half_life), where the latest row has age 0. A number in the unit of times that
        are numbers; a span such as ``"90d"`` or ``"12h"``, or a timedelta, where they are dates.
    user_ids, item_ids : Ids, optional
        Ids that are known already, such as those of a fitted model: rows (columns) get their positions, and the
        matrix their number. By default the distinct ids of the data in increasing order, so that the order of the
        rows of the table does not matter.
    unknown : {"error", "drop"}
        What to do with rows of a table whose id is not among ``user_ids`` or ``item_ids``.
    columns : sequence of str, optional
        For a text file whose first line has no names: names of its columns, such as
        ``["user", "item", "value", "time"]``, ``"_"`` for one to skip. One called ``time`` is the `time_column`.
    encoding : str, optional
        Of text files; default UTF-8, or what a byte order mark says.
    decimal : {".", ","}, optional
        What separates decimals in text files; default: as it looks.
    triplets : bool, optional
        Whether the rows of a dense array (n, 2 to 4) are user, item, value and time. By default an array of three
        columns that looks like this is refused, with the question.
    dtype : {"float32", "float64"}
        Type of the values; integers and bools are converted.
    warn_ratings : bool, default True
        Whether to warn where a column of ratings is found by its name, and all of its rows count as likes.
    like : ColumnNames, optional
        Of a table that was read before, such as ``Interactions.columns`` or ``WALS.columns_``: users, items and
        values are in the columns of these names, where they are there and nothing else is said; without a value
        column there, each row counts 1 here, too.

    Returns
    -------
    Interactions
        The values of repeated pairs are summed, and have their latest time. Where nothing has to be converted or
        sorted, the matrix shares the memory of ``data``; ``data`` itself is never changed.

    Raises
    ------
    DataError
        If the data cannot be used: no interactions, NaN or infinite values, null ids, ids of another type, indices
        out of range, columns that are missing or ambiguous, times that are none, a file that cannot be read.
    KeyError
        If an id is not among ``user_ids`` or ``item_ids``, with ``unknown="error"``.
    TypeError
        If ``data`` is of no kind listed above, or an argument of none that it can be.
    ValueError
        If an argument has no meaning, or none with this data.
    FileNotFoundError
        If ``data`` is a path and there is nothing.

    Warns
    -----
    ParameterWarning
        If pairs were repeated, or rows dropped; says how many. If ratings count as likes.
    """
    names = None if columns is None else _names(columns)
    options = TextOptions(names, encoding, decimal)
    wanted = _Wanted(
        user_column, item_column, value_column, _time_column(time_column, names), min_value, min_user_interactions,
        min_item_interactions, half_life, user_ids, item_ids, unknown, dtype, warn_ratings, like,
    )  # fmt: skip
    wanted.check()
    is_array = isinstance(data, np.ndarray) and data.dtype.names is None
    triplets = None if triplets is None else flag("triplets", triplets)
    if triplets and not is_array:
        raise TypeError(f"triplets=True is for arrays of rows (user, item, value, time), got {type(data).__name__}")
    if is_array and triplets is None and looks_like_triplets(data):
        raise DataError(
            f"interactions is an array {data.shape} whose rows look like (user, item, value): give triplets=True if "
            "they are, or triplets=False if it is a dense matrix of users and 3 items"
        )
    if isinstance(data, Interactions) or (is_array and not triplets) or sparse.issparse(data):
        if given := [*wanted.of_tables(), *options.given()]:
            raise ValueError(
                f"{', '.join(given)} {'are' if len(given) > 1 else 'is'} for tables; interactions is a matrix"
            )
        return _from_matrix(data, user_ids, item_ids, dtype)
    if is_array:
        data, four = _table_of_triplets(data), data.shape[1] == 4
        if four and wanted.time_column is None:
            wanted = replace(wanted, time_column="time")
    return _from_table(data if isinstance(data, Source) else open_source(data, options), wanted)


def read_interactions(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any) -> Interactions:
    """Read files of interactions.

    Parameters
    ----------
    path : str or path, or a list of them
        Each a file, a pattern such as ``"logs/2024-*.csv.gz"``, a folder, ``"-"`` for standard input, or the address
        of a file or folder on a file system of Arrow (``s3://``, ``gs://``, ``hdfs://``, ``file://``). Parquet and
        Feather (Arrow) files are recognised by content; JSON Lines by its suffix or content; anything else is text:
        UTF-8 or `encoding`, the column names in its first line (else `columns`), separated by comma, tab, semicolon,
        ``|``, ``::`` or blanks, whichever fits the first lines. Text may be compressed: gzip, bzip2, zstd, lz4, xz.
        Several files must have the same columns.
    **options
        As for :func:`as_interactions`.

    Returns
    -------
    Interactions
        Ids of a text file are integers if all of the column are written as plain integers (``42``, but not ``007``
        or ``4.0``), else strings, exactly as written.

    Raises
    ------
    DataError, KeyError, FileNotFoundError
        As :func:`as_interactions`.
    """
    paths: list[Any] = list(path) if isinstance(path, (list, tuple)) else [path]
    for one in paths:
        if not isinstance(one, (str, os.PathLike)):
            raise TypeError(
                f"path must be that of a file, or a list of such, got {one!r:.60}; as_interactions takes tables"
            )
    if not paths:
        raise ValueError("path must name at least one file, got an empty list")
    return as_interactions([os.fspath(one) for one in paths], **options)


def in_order_of_appearance(
    data: Any,
    *,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    decimal: Literal[".", ","] | None = None,
    **options: Any,
) -> tuple[Interactions, NDArray[np.int64]]:
    """A table as :func:`as_interactions` takes it, and its users in the order in which they first appear in it.

    Parameters
    ----------
    data : table or path, or a Source of one
    columns, encoding, decimal, **options
        As for :func:`as_interactions`.

    Returns
    -------
    interactions : Interactions
    rows : (U,) int64 array
        Their row numbers.
    """
    names = None if columns is None else _names(columns)
    source = data if isinstance(data, Source) else open_source(data, TextOptions(names, encoding, decimal))
    kept: list[Column] = []

    def read(ids: Sequence[Any], numbers: Sequence[Any] = (), plain: Sequence[Any] = ()) -> list[Column]:
        found = source.read(ids, numbers, plain)
        kept.append(plain_type(found[0]))
        return found

    if names is not None and "time" in names:
        options = {"time_column": "time"} | options
    interactions = as_interactions(replace(source, read=read), **options)
    ids = interactions.user_ids
    assert ids is not None
    first = as_plain(kept[0]).unique()
    if ids.kind == "string":
        first = first.cast(pa.large_string())
    elif not pa.types.is_integer(first.type):  # of a file without types, and what databases have
        first = first.cast(pa.from_numpy_dtype(ids.ids.dtype))
    rows = np.asarray(ids.find(first.to_numpy(zero_copy_only=False)))
    return interactions, rows[rows >= 0]  # who has no row that counts is not among them


def _time_column(time_column: Hashable | None, names: tuple[str, ...] | None) -> Hashable | None:
    """Also where it is among the names that were given to all columns."""
    return "time" if time_column is None and names is not None and "time" in names else time_column


def _names(columns: Any) -> tuple[str, ...]:
    if isinstance(columns, str) or not isinstance(columns, Sequence) or not all(isinstance(c, str) for c in columns):
        raise TypeError(f"columns must be a list of names such as ['user', 'item', 'value', 'time'], got {columns!r}")
    names = [name for name in columns if name != "_"]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"columns must be different names, '_' for what to skip, got {list(columns)!r}")
    return tuple(columns)


def looks_like_triplets(array: NDArray[Any]) -> bool:
    """Whether a dense array has rows of user, item and value: three columns, the first two whole numbers from 0 on,
    hardly a zero, and pairs that mostly differ. A matrix of three items that nearly everybody has would look so too.
    """
    if array.ndim != 2 or array.shape[1] != 3 or array.shape[0] < 3 or array.dtype.kind not in "iuf":
        return False
    pairs = array[:, :2]
    if not ((pairs >= 0).all() and (pairs == np.floor(pairs)).all() and np.isfinite(pairs).all()):
        return False
    return bool(np.mean(array == 0) <= 0.1 and len(np.unique(pairs, axis=0)) * 2 > len(pairs))


def _table_of_triplets(array: NDArray[Any]) -> pa.Table:
    if array.ndim != 2 or not 2 <= array.shape[1] <= 4:
        raise DataError(f"triplets=True needs rows of user, item, value and time, (n, 2 to 4); got shape {array.shape}")
    if np.ma.is_masked(array):
        raise DataError("triplets must be there in every row, got masked ones; leave out the rows that have them")
    table: dict[str, Any] = {}
    for name, values in zip(("user", "item", "value", "time"), native(array).T, strict=False):
        values = np.ascontiguousarray(values)
        if name in ("user", "item") and values.dtype.kind == "f":
            exact = 2.0 ** min(np.finfo(values.dtype).nmant + 1, 53)  # the first that may be another one, rounded
            whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < exact)
            if not whole.all():
                row = int(np.argmin(whole))
                large = f" below {exact:.0f}, from where {values.dtype} rounds them" if values[row] >= exact else ""
                raise DataError(f"triplets: {name} ids must be whole numbers{large}, got {values[row]} in row {row}")
            values = values.astype(np.int64)
        try:
            table[name] = pa.array(values.tolist() if values.dtype.kind in "OUS" else values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"triplets: the {name}s are of no type that can be read: {error}") from error
    return pa.table(table)


def _from_matrix(data: Any, user_ids: Ids | None, item_ids: Ids | None, dtype: DTypeLike) -> Interactions:
    matrix = as_csr(getattr(data, "matrix", data), dtype=dtype)
    own = data if isinstance(data, Interactions) else Interactions(matrix)
    if own.times is not None:
        in_order = getattr(own.matrix, "format", "") == "csr" and own.matrix.has_canonical_format
        if not in_order or np.shape(own.times) != (matrix.nnz,):
            raise DataError(
                "times of Interactions must be one for each entry of a CSR matrix with sorted columns and no pair "
                f"twice; got shape {np.shape(own.times)} for {matrix.nnz} entries"
            )
    for known, has, n, what in ((user_ids, own.user_ids, 0, "rows"), (item_ids, own.item_ids, 1, "columns")):
        for ids in (known, has):
            if ids is not None and len(ids) != matrix.shape[n]:
                raise DataError(f"interactions must have {len(ids)} {what}, one per id; got shape {matrix.shape}")
        if known is not None and has is not None and known != has:
            raise DataError(f"the {known.side} ids of interactions are not the known ones; build it with these")
    known_users = own.user_ids if user_ids is None else user_ids
    known_items = own.item_ids if item_ids is None else item_ids
    return Interactions(matrix, known_users, known_items, own.times, own.columns, text_ids=own.text_ids)


def _from_table(source: Source, wanted: _Wanted) -> Interactions:
    table = TableRows.read(source, wanted).with_times()
    entries = table.entries(table.bounds)
    del table
    rows, cols, values, times = entries.rows, entries.columns, entries.values, entries.times
    is_known = (wanted.user_ids, wanted.item_ids) != (None, None)
    if is_known and (absent := (rows < 0) | (cols < 0)).any():
        rows, cols, values = rows[~absent], cols[~absent], values[~absent]
        times = None if times is None else times[~absent]
        warn(f"{absent.sum()} of {len(absent)} rows name a user or an item that is not known; they were dropped")
    matrix = sparse.coo_matrix((values, (rows, cols)), shape=(len(entries.user_ids), len(entries.item_ids))).tocsr()
    if times is not None:
        times = latest_times(rows, cols, times)
    n_repeats = len(values) - matrix.nnz
    if n_repeats:
        repeats_of_table(entries.names, source.what, n_repeats, len(values), matrix.data)
    found = Interactions(matrix, entries.user_ids, entries.item_ids, times, entries.names)
    if wanted.min_user_interactions is not None or wanted.min_item_interactions is not None:
        found = _with_enough(found, wanted.min_user_interactions or 1, wanted.min_item_interactions or 1)
    return replace(found, repeats=n_repeats, text_ids=source.text_ids)


class Bounds(NamedTuple):
    """What is looked at of all rows of a table before a row of them can be weighed.

    Attributes
    ----------
    n_rows, n_kept : int
        With how many of them `min_value` leaves.
    low, high : float
        Of the values.
    period : Period or None
        Of the times.
    """

    n_rows: int
    n_kept: int
    low: float
    high: float
    period: Period | None

    @classmethod
    def of_all(cls, parts: Sequence[Bounds]) -> Bounds:
        """Of a table, from those of its parts, of which at least one has rows."""
        periods = [part.period for part in parts if part.period is not None]
        return cls(
            sum(part.n_rows for part in parts),
            sum(part.n_kept for part in parts),
            min(part.low for part in parts if part.n_rows),
            max(part.high for part in parts if part.n_rows),
            Period.of_all(periods),
        )


@dataclass(frozen=True, eq=False)
class TableRows:
    """The rows of a table, or of a part of one, as they were read; by :meth:`read`, then :meth:`with_times`."""

    ids: Sequence[Column]
    values: NDArray[np.floating]
    time_column: Column | None
    times: NDArray[Any] | None
    keep: NDArray[np.bool_] | None
    names: ColumnNames
    source: Source
    wanted: _Wanted

    @classmethod
    def read(cls, source: Source, wanted: _Wanted | Mapping[str, Any]) -> TableRows:
        """Read the wanted columns.

        Parameters
        ----------
        source : Source
        wanted : mapping
            Arguments of :func:`as_interactions`.

        Raises
        ------
        DataError, TypeError, ValueError
            As from :func:`as_interactions`.
        """
        if not isinstance(wanted, _Wanted):
            of_rows = {name: value for name, value in wanted.items() if name not in ("columns", "encoding", "decimal")}
            if strange := set(of_rows) - {field.name for field in fields(_Wanted)}:
                raise TypeError(
                    f"unexpected argument {min(strange)!r}; options of reading are those of as_interactions"
                )
            time = _time_column(of_rows.pop("time_column", None), wanted.get("columns"))
            wanted = _Wanted(time_column=time, **of_rows)
            wanted.check()
        wanted = _remembered(source, wanted)
        names = _choose(source, wanted)
        number_names = [] if names.value is None else [names.value]
        time_names = [] if names.time is None else [names.time]
        arrays = source.read([names.user, names.item], number_names, time_names)
        n_rows = len(arrays[0])
        if not n_rows:
            raise no_rows(source.what)
        dtype = value_dtype(wanted.dtype)
        values = np.ones(n_rows, dtype) if names.value is None else _numbers(arrays[2], names.value, dtype, source)
        keep = None if wanted.min_value is None else values >= wanted.min_value
        return cls(arrays[:2], values, arrays[-1] if time_names else None, None, keep, names, source, wanted)

    def shown_times(self) -> list[Any]:
        """See :func:`.times.shown_times`."""
        return [] if self.time_column is None else shown_times(self.time_column)

    def with_times(self, shown: Sequence[Any] = ()) -> TableRows:
        """The rows with their times, read as those of the whole table, other parts of which have `shown` theirs.

        Raises
        ------
        DataError
            A time is missing, or is none.
        """
        if self.time_column is None:
            return self
        column, n = plain_type(self.time_column), len(self.values)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        alike = [one for one in shown if isinstance(one, str) == is_string(column.type)]
        if pa.types.is_integer(column.type) or is_string(column.type):
            column = pa.chunked_array([*column.chunks, pa.array(alike, column.type)], column.type)

        def place(row: int) -> str:
            return self.source.place(row) if row < n else "the rows of another rank"

        times = as_times(column, self.names.time, place)[:n]
        return replace(self, time_column=None, times=times)

    @property
    def bounds(self) -> Bounds:
        """Of these rows."""
        n_rows = len(self.values)
        n_kept = n_rows if self.keep is None else int(np.count_nonzero(self.keep))
        period = None if self.wanted.half_life is None else Period.of(self.times)
        return Bounds(n_rows, n_kept, float(self.values.min()), float(self.values.max()), period)

    def entries(self, of_all: Bounds) -> Entries:
        """The rows that are wanted, weighed, with numbered ids.

        Parameters
        ----------
        of_all : Bounds
            Of the whole table.

        Raises
        ------
        DataError, KeyError
            As from :func:`as_interactions`.
        """
        source, names, wanted = self.source, self.names, self.wanted
        values, times, columns, keep = self.values, self.times, self.ids, self.keep
        if keep is not None:
            if not of_all.n_kept:
                raise DataError(f"min_value={wanted.min_value:g} leaves no row: the highest value is {of_all.high:g}")
        elif names.value is not None and wanted.value_column is None and wanted.warn_ratings and is_rating(names.value):
            _warn_ratings(names.value, of_all.low, of_all.high)
        if times is not None and wanted.half_life is not None:
            # Not quite 0, however old: what is in the table is an interaction.
            last = None if of_all.period is None else of_all.period.last
            weight = np.maximum(recency(times, wanted.half_life, last), float(np.finfo(np.float32).tiny))
            values = (values * weight).astype(values.dtype)
        if keep is not None:
            # Before ids are numbered, so that who has no row left has no number.
            columns = [column.filter(pa.array(keep)) for column in columns]
            values, times = values[keep], None if times is None else times[keep]
        rows, user_ids = encode(columns[0], "user", names.user, wanted.user_ids, wanted.unknown, source)
        cols, item_ids = encode(columns[1], "item", names.item, wanted.item_ids, wanted.unknown, source)
        return Entries(rows, cols, values, times, user_ids, item_ids, names, source)


@dataclass(frozen=True, eq=False)
class Entries:
    """Rows of a table with numbered ids, before the values of a pair are one.

    Attributes
    ----------
    rows, columns : (n,) int32
        Numbers among the ids; -1 for one that is not among known ones.
    values : (n,) float32 or float64
    times : (n,) float64 or datetime64, or None
    user_ids, item_ids : Ids
    names : ColumnNames
    source : Source
    """

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    values: NDArray[np.floating]
    times: NDArray[Any] | None
    user_ids: Ids
    item_ids: Ids
    names: ColumnNames
    source: Source


def repeats_of_table(
    names: ColumnNames, what: str, n: int, n_rows: int, sums: NDArray[np.floating], *, quiet: bool = False
) -> None:
    """Warn, unless `quiet`, that n of the rows of a table repeat a pair.

    Raises
    ------
    DataError
        A sum of such values is beyond their type.
    """
    times_too = names.value is not None and is_time(names.value)
    advice = f"; if these are times, time_column={names.value!r} keeps the latest of a pair" if times_too else ""
    if not quiet:
        warn_repeats(n, f"of {n_rows} rows of {what}", advice)
    cast_values(sums, sums.dtype, lambda k: f"the sum of column {names.value!r} for a repeated pair")


def no_rows(what: str) -> DataError:
    """The error where a table has no rows."""
    return EmptyTableError(f"interactions must hold at least one row; {what} has none")


def _remembered(source: Source, wanted: _Wanted) -> _Wanted:
    """With the names of columns of an earlier table, where nothing else was asked for."""
    like = wanted.like
    if like is None:
        return wanted
    found: dict[str, Any] = {
        f"{role}_column": name
        for role, name in (("user", like.user), ("item", like.item), ("value", like.value))
        if name is not None and getattr(wanted, f"{role}_column") is None and any(name == n for n in source.names)
    }
    if like.value is None and wanted.value_column is None and wanted.min_value is None:
        found["value_column"] = False
    return replace(wanted, **found)


def _choose(source: Source, wanted: _Wanted) -> ColumnNames:
    """The columns to read; all that is wrong with them is one error."""
    problems: list[str] = []

    def choose(how: Any, *args: Any) -> Any:
        try:
            return how(source, *args)
        except Missing as error:
            problems.append(str(error))
            return None

    user, item = choose(choose_user, wanted.user_column), choose(choose_item, wanted.item_column)
    value = None
    if wanted.value_column is None:
        value = choose(choose_value, (user, item))
    elif wanted.value_column is not False:
        value = choose(choose_named, wanted.value_column, "value_column")
    time, hint = None, ""
    if wanted.time_column is not None:
        time = choose(choose_named, wanted.time_column, "time_column")
        usual = usual_time(source.names)
        hint = f" (its time column may be {usual!r})" if time is None and usual is not None else ""
    if problems:
        raise missing_error(source, problems, hint)
    if wanted.min_value is not None and value is None:
        raise DataError(f"min_value needs a column of values, and {source.what} has none; value_column names it")
    chosen = [name for name in (user, item, value, time) if name is not None]
    if len(set(chosen)) < len(chosen):
        raise DataError(
            f"user_column, item_column, value_column and time_column must be different columns, got {chosen}"
        )
    return ColumnNames(user, item, value, time)


def _numbers(column: Column, name: Hashable, dtype: np.dtype[Any], source: Source) -> NDArray[np.floating]:
    where = f"value_column {name!r}"
    column = plain_type(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"{where} must have a number in every row, got a null (or NaN) in {source.place(row)}")
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
    if not any(is_kind(kind) for is_kind in known):
        raise DataError(f"{where} must hold numbers, got {kind}")
    if not pa.types.is_floating(kind):
        # Times as values are looked at before they are rounded.
        column = column.cast(pa.float64() if is_time(name) else pa.from_numpy_dtype(dtype), safe=False)
    values = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks])

    def place(k: int) -> str:
        found = source.place(k)
        return f"{where} in {found}" if " of " in found else f"{found} of {where}"

    cast = cast_values(values, dtype, place)
    if is_time(name) and cast.dtype != values.dtype and len(values):
        largest = int(np.argmax(np.abs(values)))
        if float(cast[largest]) != float(values[largest]):
            raise DataError(
                f"{where} has {values[largest]:.17g} in {source.place(largest)}, which {dtype} rounds to "
                f"{float(cast[largest]):.17g}: if these are times, give time_column={name!r}"
            )
    return cast


def _warn_ratings(name: Hashable, low: float, high: float) -> None:
    if low == high:
        return
    middle = low + 0.75 * (high - low)
    likes = f"{round(middle)}" if high - low >= 2 else f"{middle:.2g}"
    warn(
        f"value_column {name!r}, found by its name, has values from {low:g} to {high:g}: if these are ratings, note "
        "that every row counts as a like, weighted by its value, also the lowest; "
        f"min_value={likes} keeps likes only, value_column=False counts all rows alike, and value_column={name!r} "
        "keeps them as they are without this warning"
    )


def latest_times(rows: NDArray[np.int32], cols: NDArray[np.int32], times: NDArray[Any]) -> NDArray[Any]:
    """The latest time of each pair, in the order of the canonical matrix."""
    order = np.lexsort((cols, rows))
    rows, cols, times = rows[order], cols[order], times[order]
    starts = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]) | (cols[1:] != cols[:-1])]))
    if len(starts) == len(times):
        return times
    latest: NDArray[Any] = np.maximum.reduceat(times, starts)
    return latest


def _with_enough(data: Interactions, of_user: int, of_item: int) -> Interactions:
    """Users with at least so many items and items with at least so many users, of what is left of the others."""
    matrix = data.matrix
    row, col = entry_rows(matrix), matrix.indices
    keep = np.ones(matrix.nnz, bool)
    while True:
        users = np.bincount(row[keep], minlength=matrix.shape[0]) >= of_user
        items = np.bincount(col[keep], minlength=matrix.shape[1]) >= of_item
        left = users[row] & items[col]
        if np.array_equal(left, keep):
            break
        keep = left
    if not keep.any():
        raise nothing_left(of_user, of_item)
    users, items = np.bincount(row[keep], minlength=len(users)) > 0, np.bincount(col[keep], minlength=len(items)) > 0
    ids = [_part(known, mask) for known, mask in ((data.user_ids, users), (data.item_ids, items))]
    times = None if data.times is None else data.times[keep]
    return Interactions(matrix[users][:, items], ids[0], ids[1], times, data.columns)


def nothing_left(of_user: int, of_item: int) -> DataError:
    """The error where no users have so many items, and no items so many users."""
    return DataError(
        f"min_user_interactions={of_user} and min_item_interactions={of_item} leave no interactions: no users and "
        "items have so many of each other"
    )


def _part(ids: Ids | None, mask: NDArray[np.bool_]) -> Ids | None:
    return ids if ids is None or mask.all() else ids.subset(np.flatnonzero(mask))
