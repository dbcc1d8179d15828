"""Columns of ids: checked, and turned into positions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wals_gpu.data.csr import MAX_SIDE
from wals_gpu.data.ids import Ids, dense_positions, is_string
from wals_gpu.data.source import Column, Source
from wals_gpu.errors import DataError

__all__ = [
    "as_plain",
    "checked_ids",
    "encode",
    "integers_among",
    "integers_if_all",
    "plain_type",
    "written_as_integers",
]


def plain_type(column: Column) -> Column:
    """A column without the types that only say how it is stored."""
    kind = column.type
    if getattr(pa.types, "is_run_end_encoded", lambda _: False)(kind):  # absent from older pyarrow
        column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type)
    return column


def as_plain(column: Column) -> pa.Array:
    """One array without a dictionary."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def checked_ids(column: Column, where: str, source: Source) -> Column:
    """A column of ids that are integers or text, one in each row.

    Raises
    ------
    DataError
        They are neither, or missing.
    """
    column = plain_type(column)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            f"{where} must have an id in every row, got {column.null_count} nulls (or NaN), the first in "
            f"{source.place(row)}"
        )
    coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    try:
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):  # as older writers of Parquet store text
            column = column.cast(
                pa.dictionary(column.type.index_type, pa.large_string()) if coded else pa.large_string()
            )
            kind = pa.large_string()
        elif pa.types.is_decimal(kind) and kind.scale == 0 and not coded:  # whole numbers of a database
            column = column.cast(pa.int64())
            kind = pa.int64()
    except pa.ArrowException as error:
        raise DataError(f"{where} must hold integers or strings, got {kind}: {error}") from error
    if not (is_string(kind) or pa.types.is_integer(kind)):
        raise DataError(f"{where} must hold integers or strings, got {kind}; convert it to one of these")
    return column


def encode(
    column: Column, side: str, name: Hashable, known: Ids | None, unknown: str, source: Source
) -> tuple[NDArray[np.int32], Ids]:
    """Position of each id of a column among the ids of its side; -1 where ``known`` does not have it."""
    where = f"{side}_column {name!r}"
    column = checked_ids(column, where, source)
    coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if coded else column.type
    numbered = None
    if known is None and not coded and pa.types.is_integer(kind):
        numbered = dense_positions([chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    elif known is None and coded and source.text_ids:
        numbered = _numbered(column)
    if numbered is not None:
        numbers, position = numbered
        _check_number(len(numbers), where)
        return position, Ids(numbers, side)
    column = column.unify_dictionaries() if coded else column.dictionary_encode()
    # Python never sees a row: codes and the distinct values are all that is handled from here on.
    codes = np.concatenate([chunk.indices.to_numpy(zero_copy_only=False) for chunk in column.chunks])
    distinct: Any = column.chunk(0).dictionary
    if is_string(kind):
        distinct = distinct.cast(pa.large_string())
    if coded:  # categories may be unused
        used = np.zeros(len(distinct), bool)
        used[codes] = True
        codes = (np.cumsum(used, dtype=np.int32) - np.int32(1))[codes]
        distinct = distinct.take(pa.array(np.flatnonzero(used)))
    if distinct.null_count:
        raise DataError(f"{where} must have an id in every row, got nulls")
    if source.text_ids and (known is None or known.kind == "integer"):
        distinct = integers_if_all(distinct)
    _check_number(len(distinct), where)
    if known is None:
        ids, position = Ids.encode(distinct, side)
        return position[codes], ids
    if (known.kind == "integer") != pa.types.is_integer(distinct.type):
        # In a file of text, one id that is no number makes texts of all of them.
        found = integers_among(distinct, known) if source.text_ids and known.kind == "integer" else None
        if found is None or (found < 0).all():
            raise DataError(f"{where} must hold {known.kind} ids as known before, got {distinct.type}")
        if unknown == "error" and (found < 0).any():
            strange = distinct[int(np.argmin(found))].as_py()
            raise KeyError(f"unknown {side} id: {strange!r:.60}")
        return found.astype(np.int32)[codes], known
    find = known.index_of if unknown == "error" else known.find
    return find(distinct.to_numpy(zero_copy_only=False)).astype(np.int32)[codes], known


def _numbered(column: Column) -> tuple[NDArray[np.integer], NDArray[np.int32]] | None:
    """As :func:`.dense_positions`, of texts that are all written like integers and lie close together as these.

    Each chunk has a dictionary of its own, which may be nearly as long as the chunk: to make one of them all, every
    text in them is hashed.
    """
    numbers, codes = [], []
    for chunk in column.chunks:
        texts, code = chunk.dictionary, chunk.indices.to_numpy(zero_copy_only=False)
        used = np.zeros(len(texts), bool)
        used[code] = True
        if not used.all():
            texts = texts.filter(pa.array(used))
            code = (np.cumsum(used, dtype=np.int32) - np.int32(1))[code]
        found = integers_if_all(texts)
        if len(texts) and (texts.null_count or not pa.types.is_integer(found.type)):
            return None
        numbers.append(found.to_numpy(zero_copy_only=False) if len(texts) else np.empty(0, np.int64))
        codes.append(code)
    dense = dense_positions(numbers)
    if dense is None:
        return None
    distinct, place = dense
    position = np.empty(len(column), np.int32)
    begin = row = 0
    for some, code in zip(numbers, codes, strict=True):
        position[row : row + len(code)] = place[begin : begin + len(some)][code]
        begin, row = begin + len(some), row + len(code)
    return distinct, position


def _check_number(n: int, where: str) -> None:
    if n > MAX_SIDE:
        raise DataError(f"{where} may hold at most {MAX_SIDE} distinct ids, got {n}")


def integers_among(texts: pa.Array, known: Ids) -> NDArray[np.int64]:
    """Positions of texts among integer ids (n,), -1 of those that are none, or not written as integers are."""
    texts = texts.cast(pa.large_string())
    whole = written_as_integers(texts)
    positions = np.full(len(texts), -1, np.int64)
    positions[whole] = known.find(texts.filter(pa.array(whole)).cast(pa.int64()).to_numpy())
    return positions


def written_as_integers(texts: pa.Array) -> NDArray[np.bool_]:
    """Which texts are written as integers are, (n,)."""
    whole: NDArray[np.bool_] = pc.match_substring_regex(texts, "^(0|-?[1-9][0-9]{0,17})$").to_numpy(False)
    return whole


def integers_if_all(texts: pa.Array) -> pa.Array:
    """Ids of a text file: integers if each is written as an integer is, so that no id changes; else strings."""
    for kind in (pa.int64(), pa.uint64()):
        try:
            integers = texts.cast(kind)
        except pa.ArrowInvalid:
            continue
        if integers.cast(texts.type).equals(texts):
            return integers
    return texts
