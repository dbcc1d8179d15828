"""What was found for users, items or a text: as a table for people, as JSON, as columns of a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wals_gpu.cli.output import say
from wals_gpu.data.ids import Ids, plain
from wals_gpu.data.tables import format_table
from wals_gpu.data.titles import Titles

__all__ = [
    "FOR_TEXT",
    "FOR_USERS",
    "MODEL",
    "SIMILAR",
    "Answer",
    "Names",
    "answers_of",
    "columns_of",
    "print_answers",
    "schema",
]

#: The source of a list that the model itself made.
MODEL = "model"


class Names(NamedTuple):
    """What columns are called, for people and in files; None where answers are for nobody."""

    query: str | None
    found: str
    score: str
    query_id: str | None
    found_id: str


FOR_USERS = Names("user", "item", "score", "user_id", "item_id")
FOR_TEXT = Names(None, "item", "cosine", None, "item_id")
SIMILAR = Names("item", "similar", "cosine", "item_id", "similar_id")


@dataclass(frozen=True)
class Answer:
    """A list of items, the best first.

    Attributes
    ----------
    query : id or None
        Whom, or what, it is for.
    items : list of ids
        Without the places that no item was left for.
    scores : list of float
    titles : list of str or None
        One for each item, empty where there is none; None where no titles are wanted.
    source : str
        "model", or what else the list is from.
    """

    query: Any
    items: list[Any]
    scores: list[float]
    titles: list[str] | None = None
    source: str = MODEL

    def to_json(self) -> list[dict[str, Any]]:
        """The items for JSON."""
        if self.titles is None:
            return [{"item": item, "score": score} for item, score in zip(self.items, self.scores, strict=True)]
        lines = zip(self.items, self.titles, self.scores, strict=True)
        return [{"item": item, "title": title, "score": score} for item, title, score in lines]


def answers_of(
    query: Iterable[Any], ids: Any, scores: Any, titles: Titles | None, sources: Iterable[str] | None = None
) -> list[Answer]:
    """The answers of arrays (B, k)."""
    sources = [MODEL] * len(ids) if sources is None else sources
    answers = []
    for one, found, values, source in zip(query, ids, scores, sources, strict=True):
        there = values > -np.inf
        named = None if titles is None else [title or "" for title in titles.of(found[there]).to_pylist()]
        items = [plain(item) for item in found[there]]
        answers.append(Answer(plain(one), items, [float(value) for value in values[there]], named, str(source)))
    return answers


def print_answers(answers: Sequence[Answer], names: Names) -> None:
    """A row for each item of each answer; a column says where lists are from, if not all are from the model."""
    with_title = any(answer.titles is not None for answer in answers)
    with_source = any(answer.source != MODEL for answer in answers)
    rows: list[list[object]] = []
    if empty := [repr(answer.query) for answer in answers if not answer.items and answer.query is not None]:
        say(f"no item is left for {', '.join(empty[:3])}" + (f" and {len(empty) - 3:,} more" if len(empty) > 3 else ""))
    for answer in answers:
        titles = [[]] * len(answer.items) if answer.titles is None else [[title] for title in answer.titles]
        for rank, (item, title, score) in enumerate(zip(answer.items, titles, answer.scores, strict=True), 1):
            query = [] if names.query is None else [str(answer.query)]
            rows.append([*query, rank, str(item), *title, score, *([answer.source] * with_source)])
    query = [] if names.query is None else [names.query]
    print(
        format_table([*query, "rank", names.found, *["title"] * with_title, names.score, *["from"] * with_source], rows)
    )


def schema(names: Names, query: Ids | None, found: Ids | None, with_title: bool, with_source: bool = False) -> Any:
    """The columns of a file, which do not depend on what is found."""
    import pyarrow as pa

    fields = [] if names.query_id is None else [(names.query_id, _type_of(query))]
    fields += [("rank", pa.int32()), (names.found_id, _type_of(found))]
    fields += (
        [("title", pa.string())] * with_title + [("score", pa.float32())] + [("source", pa.string())] * with_source
    )
    return pa.schema(fields)


def columns_of(
    query: NDArray[Any] | None,
    ids: NDArray[Any],
    scores: NDArray[np.floating],
    titles: Titles | None,
    sources: NDArray[Any] | None = None,
) -> list[Any]:
    """Arrays (B, k) as the columns of :func:`schema`, without the places that no item was left for."""
    there = scores > -np.inf
    each = there.sum(axis=1)
    ranks = np.broadcast_to(np.arange(1, ids.shape[1] + 1, dtype=np.int32), ids.shape)[there]
    first = [] if query is None else [np.repeat(query, each)]
    named = [] if titles is None else [titles.of(ids[there])]
    last = [] if sources is None else [np.repeat(np.asarray(sources, object), each)]
    return [*first, ranks, ids[there], *named, scores[there], *last]


def _type_of(ids: Ids | None) -> Any:
    import pyarrow as pa

    if ids is None:
        return pa.int64()
    return pa.string() if ids.kind == "string" else pa.from_numpy_dtype(ids.ids.dtype)
