"""Which items a search may answer with: the lists that a user gives, and what an index makes of them.

Shapes: B queries, I items. A pattern is a canonical CSR matrix of bool whose stored entries are all True.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, issparse

from wals_gpu.checks import index_of_ids, is_list, refuse_masked, refuse_zeros_and_ones
from wals_gpu.data.csr import contains, entry_keys
from wals_gpu.data.ids import Ids, row_numbers

__all__ = ["Filters", "Lists", "pattern", "permitted_items", "stored", "union"]

#: Types of ids; whether a thing is a list is only looked at where it is of another type.
_SCALARS = {int, str, np.int64, np.int32, np.str_}


@dataclass(frozen=True, eq=False)
class Lists:
    """What queries may and may not get, as a user gives it. None excludes nothing; whatever is given holds.

    Parameters
    ----------
    deny : (B, I) sparse matrix, or B lists of ids, optional
        Items that each query must not get: the stored entries of its row, of any value.
    allow : (B, I) sparse matrix, or B lists of ids, optional
        The only items that each query may get.
    deny_items, allow_items : list of ids, or (I,) array of bool, optional
        The same for all queries; as a mask (:meth:`.Ids.mask`) it is not looked up again for each search.
    """

    deny: Any = None
    allow: Any = None
    deny_items: ArrayLike | None = None
    allow_items: ArrayLike | None = None

    def filters(self, n_queries: int, n_items: int, ids: Ids | None) -> Filters:
        """The lists checked, with item numbers in place of ids.

        Parameters
        ----------
        n_queries, n_items : int
            B, I.
        ids : Ids or None
            Of the items; None: the lists hold numbers already.

        Returns
        -------
        Filters

        Raises
        ------
        KeyError, IndexError
            A list names an item that is not there.
        TypeError, ValueError
            A list is of a wrong kind or shape.
        """
        shape = (n_queries, n_items)
        permitted = permitted_items(self.deny_items, self.allow_items, n_items, ids)
        found = {}
        for name, given in (("deny", self.deny), ("allow", self.allow)):
            lists, of_query = _per_query(given, shape, ids, name)
            if lists is not None and of_query is not None and lists.shape[0] == 1:  # one for all, given for each
                listed = np.zeros(n_items, bool)
                listed[lists.indices] = True
                permitted = np.ones(n_items, bool) if permitted is None else permitted
                permitted &= ~listed if name == "deny" else listed
            elif lists is not None:
                found[name] = lists if of_query is None else lists[of_query]
        return Filters(n_items, found.get("deny"), found.get("allow"), permitted)


@dataclass(frozen=True)
class Filters:
    """Which items a search may answer with; what is None excludes nothing. Made by :meth:`Lists.filters`.

    Parameters
    ----------
    n_items : int
        I.
    deny, allow : (B, I) pattern, optional
        For each query the items that it must not get, and the only ones that it may get.
    permitted_items : (I,) array of bool, optional
        Which items the lists permit that hold for all queries.
    """

    n_items: int
    deny: csr_matrix | None = None
    allow: csr_matrix | None = None
    permitted_items: NDArray[np.bool_] | None = None

    def of(self, queries: NDArray[np.integer]) -> Filters:
        """The same for some of the queries.

        Parameters
        ----------
        queries : (b,) array of int
            Their numbers.

        Returns
        -------
        Filters
        """
        deny, allow = (None if lists is None else lists[queries] for lists in (self.deny, self.allow))
        return replace(self, deny=deny, allow=allow)

    def permitted(self, query: int, deny: NDArray[np.integer] | None = None) -> NDArray[np.bool_]:
        """Whether each item is permitted for one query.

        Parameters
        ----------
        query : int
            Its number.
        deny : array of int, optional
            Numbers of further items that it must not get.

        Returns
        -------
        (I,) array of bool
            A new one.
        """
        permitted = np.ones(self.n_items, bool) if self.permitted_items is None else self.permitted_items.copy()
        if self.allow is not None:
            listed = np.zeros(self.n_items, bool)
            listed[_row(self.allow, query)] = True
            permitted &= listed
        for denied in (deny, None if self.deny is None else _row(self.deny, query)):
            if denied is not None:
                permitted[denied] = False
        return permitted


# ---------------------------------------------------------------------------------------------------- lists of ids


def permitted_items(
    deny: ArrayLike | None,
    allow: ArrayLike | None,
    n_items: int,
    ids: Ids | None,
    names: tuple[str, str] = ("deny_items", "allow_items"),
) -> NDArray[np.bool_] | None:
    """Which items (I,) two lists of ids permit that hold for all queries; None where there are no lists.

    `names` are the arguments', for errors.
    """
    if deny is None and allow is None:
        return None
    permitted = np.ones(n_items, bool) if allow is None else _mask(allow, n_items, ids, names[1])
    if deny is not None:
        permitted &= ~_mask(deny, n_items, ids, names[0])
    return permitted


def _mask(items: ArrayLike, n_items: int, ids: Ids | None, name: str) -> NDArray[np.bool_]:
    """Which items (I,) a list of ids names; a new array."""
    if isinstance(items, np.ndarray) and items.dtype == bool:
        if items.shape != (n_items,):
            raise ValueError(f"{name} as an array of bool must have shape ({n_items},), got {items.shape}")
        return items.copy()
    refuse_zeros_and_ones(name, items, n_items, "item")
    mask = np.zeros(n_items, bool)
    mask[_numbers(list(items) if isinstance(items, Set) else items, n_items, ids, name)] = True
    return mask


def _numbers(items: ArrayLike, n_items: int, ids: Ids | None, name: str) -> NDArray[np.int64]:
    try:
        return row_numbers(items, ids, n_items, "item", name)[0]
    except (KeyError, TypeError) as error:
        text = str(error.args[0])
        raise type(error)(text if text.startswith(name) else f"{name}: {text}") from None


def _per_query(
    lists: Any, shape: tuple[int, int], ids: Ids | None, name: str
) -> tuple[csr_matrix | None, NDArray[np.int64] | None]:
    """A list of items for each query as a pattern (n, I), and the row of each query; None: they are the queries'.

    What was given for many queries, the same object, has one row.
    """
    if lists is None:
        return None, None
    n_queries, n_items = shape
    requirement = f"{name} must be a sparse matrix ({n_queries}, {n_items}) or {n_queries} lists of item ids"
    if issparse(lists):
        if lists.shape != shape:
            raise ValueError(f"{requirement}, got a matrix {lists.shape}")
        lists = csr_matrix(lists)
        try:
            lists.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{requirement}, got one that is damaged: {error}") from error
        return pattern(lists), None
    if not is_list(lists):
        raise TypeError(f"{requirement}, got {type(lists).__name__}")
    if isinstance(lists, np.ndarray) and lists.shape == shape and n_items > 2 and lists.dtype.kind in "biuf":
        if ((lists == 0) | (lists == 1)).all():  # as lists of numbers, each would name few items, again and again
            raise TypeError(f"{requirement}, got a dense array of 0 and 1; scipy.sparse.csr_matrix({name}) is one")
    if index_of_ids(lists) is not None:
        raise ValueError(
            f"{name} must be in the order of the queries, whatever the index of a {type(lists).__name__} says: give "
            "series.loc[queries].tolist() where the index has their ids, series.tolist() where the order is theirs"
        )
    lists = list(lists)
    if len(lists) != n_queries:
        raise ValueError(f"{requirement}, got {len(lists)} lists")
    place: dict[int, int] = {}
    of_query = np.array([place.setdefault(id(items), len(place)) for items in lists], np.int64)
    lists = [lists[first] for first in np.unique(of_query, return_index=True)[1]]
    # Of arrays, no Python object for each number.
    kinds = {getattr(items, "dtype", None) if isinstance(items, np.ndarray) else None for items in lists}
    are_arrays = len(kinds) == 1 and None not in kinds and all(items.ndim == 1 for items in lists)
    for items in lists:
        refuse_masked(f"the lists of {name}", items)
        refuse_zeros_and_ones(f"each of the lists of {name}", items, n_items, "item")
    for items in [] if are_arrays else lists:
        if not is_list(items) or (not set(map(type, items)) <= _SCALARS and any(map(is_list, items))):
            raise TypeError(
                f"{requirement}, got {items!r:.60} for one of the lists; {name}_items= holds for all queries"
            )
    row_ptr = np.concatenate([[0], np.cumsum([len(items) for items in lists], dtype=np.int64)])
    named = np.concatenate(lists) if are_arrays else list(chain.from_iterable(lists))
    columns = _numbers(named, n_items, ids, name)
    of_lists = (len(lists), n_items)
    made = pattern(csr_matrix((np.ones(len(columns), bool), columns.astype(np.int32), row_ptr), shape=of_lists))
    return made, of_query if len(lists) < n_queries else None


# ---------------------------------------------------------------------------------------------------- patterns


def pattern(matrix: csr_matrix | None) -> csr_matrix | None:
    """The stored entries of a matrix, of any value. The matrix given is not changed."""
    if matrix is None:
        return None
    made = csr_matrix((np.ones(len(matrix.indices), bool), matrix.indices, matrix.indptr), shape=matrix.shape)
    made.prune()
    if not made.has_canonical_format:
        made = made.copy()
        made.sum_duplicates()
    return made


def union(a: csr_matrix | None, b: csr_matrix | None) -> csr_matrix | None:
    """The entries of either of two patterns of the same shape; None has none."""
    if a is None or b is None:
        return a if b is None else b
    return a + b


def stored(matrix: csr_matrix, other: csr_matrix) -> NDArray[np.bool_]:
    """Which entries of the pattern `other` (Z,) are in the pattern `matrix` of the same shape."""
    return contains(entry_keys(matrix), entry_keys(other))


def _row(matrix: csr_matrix, row: int) -> NDArray[np.integer]:
    indices: NDArray[np.integer] = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return indices
