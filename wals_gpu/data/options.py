"""Which columns of a table, and which of its rows: the keyword arguments that every method passes on to the reader."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, TypedDict

from wals_gpu.data.interactions import ColumnNames

__all__ = ["ColumnOptions"]


class ColumnOptions(TypedDict, total=False):
    """Options of :func:`.interactions.as_interactions`, which documents each."""

    user_column: Hashable | None
    item_column: Hashable | None
    value_column: Hashable | Literal[False] | None
    time_column: Hashable | None
    half_life: Any
    min_value: float | None
    min_user_interactions: int | None
    min_item_interactions: int | None
    encoding: str | None
    decimal: Literal[".", ","] | None
    columns: Sequence[str] | None
    triplets: bool | None
    warn_ratings: bool
    like: ColumnNames | None
