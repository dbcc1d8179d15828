"""Answers to many requests at once: equal options are one search, and each answer has the bits of one alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.model.recommendations import Recommendations
from wals_gpu.serve.errors import ServiceError
from wals_gpu.serve.lookup import rows_of
from wals_gpu.serve.models import ServedModel
from wals_gpu.serve.schemas import ExplainRequest, RecommendRequest, SessionItem, SimilarRequest

__all__ = ["Query", "answer", "explain", "history", "of_recommend", "of_similar"]


#: Of one search: users, sessions, ..., and items of their lists, which have a row for each of them.
_SUBJECTS, _LISTED = 1024, 4_000_000


class Options(NamedTuple):
    """What requests must have in common to be answered by one search."""

    kind: str
    k: int
    filter_seen: bool = True
    diversity: float = 0.0
    explore: str | None = None
    noise: float | None = None
    seed: int | None = None
    has_allow: bool = False
    popularity_penalty: float = 0.0
    quotas: int | tuple[tuple[str, int | tuple[int, ...]], ...] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the factors alone say what is best."""
        return not (self.has_allow or self.explore or self.is_reranked)

    @property
    def is_reranked(self) -> bool:
        """Whether the best items are put into another order."""
        return self.diversity > 0 or self.popularity_penalty > 0 or self.quotas is not None


@dataclass(slots=True)
class Query:
    """A request: for whom, how, and with which lists of its own."""

    options: Options
    subjects: Sequence[Any]
    deny: Sequence[str | int] = ()
    allow: Sequence[str | int] | None = None
    alone: bool = field(default=False)

    @property
    def is_slow(self) -> bool:
        """Whether others should not wait for it: texts are encoded, and bounds computed of every item."""
        return self.options.kind == "texts" or self.options.explore == "ucb" or self.options.is_reranked


def of_recommend(request: RecommendRequest) -> Query:
    """The query of a request."""
    if request.users is not None:
        kind, subjects = "users", request.users
    elif request.sessions is not None:
        kind, subjects = "sessions", request.sessions  # type: ignore[assignment]
    else:
        kind, subjects = "texts", request.texts or []  # type: ignore[assignment]
    options = Options(
        kind,
        request.k,
        request.filter_seen,
        request.diversity,
        request.explore,
        request.noise,
        request.seed,
        request.allow is not None,
        request.popularity_penalty,
        _frozen(request.quotas),
    )
    # A draw for a session depends on its number in the call.
    alone = kind == "sessions" and request.explore == "thompson"
    return Query(options, subjects, request.deny, request.allow, alone)


def _frozen(quotas: Any) -> Any:
    """Quotas that can be compared and hashed."""
    if not isinstance(quotas, dict):
        return quotas
    return tuple((name, tuple(one) if isinstance(one, list) else one) for name, one in quotas.items())


def of_similar(request: SimilarRequest) -> Query:
    """The query of a request."""
    if request.items is not None:
        return Query(
            Options("items", request.k, has_allow=request.allow is not None), request.items, request.deny, request.allow
        )
    # Lists of users hold for a whole call.
    assert request.users is not None
    alone = bool(request.deny) or request.allow is not None
    options = Options("neighbours", request.k, has_allow=request.allow is not None)
    return Query(options, request.users, request.deny, request.allow, alone)


def answer(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    """JSON for each query, or what is wrong with it."""
    if len(queries) == 1:
        return _together(_HOW[queries[0].options.kind], model, queries)
    answers: list[bytes | Exception] = [b""] * len(queries)
    groups: dict[Any, list[int]] = {}
    for at, query in enumerate(queries):
        key: Any = (query.options, at) if query.alone else query.options
        groups.setdefault(key, []).append(at)
    for group in groups.values():
        how = _HOW[queries[group[0]].options.kind]
        for places in _pieces(queries, group):
            found = _together(how, model, [queries[at] for at in places])
            for at, one in zip(places, found, strict=True):
                answers[at] = one
    return answers


def _pieces(queries: Sequence[Query], group: Sequence[int]) -> Iterator[list[int]]:
    """The places of a group in pieces whose subjects, with their lists, take a bounded memory."""
    piece: list[int] = []
    n_subjects = n_listed = 0
    for at in group:
        query = queries[at]
        n = len(query.subjects)
        listed = n * (len(query.deny) + len(query.allow or ()))
        if piece and (n_subjects + n > _SUBJECTS or n_listed + listed > _LISTED):
            yield piece
            piece, n_subjects, n_listed = [], 0, 0
        piece.append(at)
        n_subjects, n_listed = n_subjects + n, n_listed + listed
    yield piece


How = Callable[[ServedModel, Sequence[Query]], list["bytes | Exception"]]


def _together(how: How, model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    """Answers of one search; where it fails, each query has its own, and its own error."""
    try:
        return how(model, queries)
    except Exception as error:
        if len(queries) == 1:
            return [_in_words(error)]
    return [one for query in queries for one in _together(how, model, [query])]


def _in_words(error: Exception) -> Exception:
    """What the library refuses, as an answer; other errors are nobody's fault but ours."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, MemoryError):
        return ServiceError(503, "overloaded", "there is not enough memory for this now")
    if isinstance(error, (ValueError, LinAlgError)):
        return ServiceError(422, "not_possible", " ".join(str(error).split()))
    return error


# ----------------------------------------------------------------------------------------------------- recommendations


def _for_users(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    given = [user for query in queries for user in query.subjects]
    rows = rows_of(model.user_ids, model.n_users, given)
    heads = [
        f'{{"user":{_name(user)},"known":{"true" if row >= 0 else "false"}'
        for user, row in zip(given, rows.tolist(), strict=True)
    ]
    options = queries[0].options
    if options.is_plain and not any(query.deny for query in queries):  # most requests
        best = model.best_items(rows, min(options.k, model.n_items), options.filter_seen)
        if best is not None:
            return _bodies(model, queries, heads, *best, ["model"] * len(rows))
    found = _recommend(model, queries, lambda k, **options: model.numbered.recommend(rows, k, **options))
    return _bodies(model, queries, heads, *found, found.source.tolist())


def _for_sessions(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    sessions = [session for query in queries for session in query.subjects]
    matrix, unknown = _matrix_of(model, sessions)
    found = _recommend(model, queries, lambda k, **options: model.numbered.recommend_for(matrix, k, **options))
    known = np.diff(matrix.indptr) > 0
    heads = [
        f'{{"known":{_json(is_known)}' + (f',"unknown_items":{json.dumps(some)}' if some else "")
        for is_known, some in zip(known.tolist(), unknown, strict=True)
    ]
    return _bodies(model, queries, heads, *found, found.source.tolist())


def _matrix_of(model: ServedModel, sessions: Sequence[Sequence[Any]]) -> tuple[csr_matrix, list[list[Any]]]:
    """The interactions (R, I) of sessions, values of repeated items summed; and the items of each that are unknown."""
    items = [one.item if isinstance(one, SessionItem) else one for session in sessions for one in session]
    values = [one.value if isinstance(one, SessionItem) else 1.0 for session in sessions for one in session]
    rows = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions])
    columns = rows_of(model.item_ids, model.n_items, items)
    unknown: list[list[Any]] = [[] for _ in sessions]
    for at in np.flatnonzero(columns < 0).tolist():
        if items[at] not in unknown[rows[at]]:
            unknown[rows[at]].append(items[at])
    there = columns >= 0
    dtype = model.numbered.fitted.dtype
    matrix = csr_matrix(
        (np.array(values, dtype)[there], (rows[there], columns[there])), shape=(len(sessions), model.n_items)
    )
    return matrix, unknown


def _for_texts(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    if model.why_no_texts is not None:
        raise ServiceError(422, "no_texts", f"texts: this model reads none: {model.why_no_texts}", "texts")
    texts = [text for query in queries for text in query.subjects]
    vectors, options = model.vectors_of(texts), queries[0].options
    k = min(options.k, model.n_items)
    how: dict[str, Any] = _lists(model, queries) | _reranking(model, options)
    found: Recommendations = model.numbered.search(vectors, k, metric="cosine", **how)
    heads = [f'{{"text":{json.dumps(text)},"known":true' for text in texts]
    return _bodies(model, queries, heads, *found, found.source.tolist())


def _recommend(model: ServedModel, queries: Sequence[Query], call: Callable[..., Recommendations]) -> Recommendations:
    options = queries[0].options
    how: dict[str, Any] = {"filter_seen": options.filter_seen, "unknown": "popular"}
    if options.explore is not None:
        how |= {"explore": options.explore, "noise": options.noise, "random_state": options.seed}
    return call(min(options.k, model.n_items), **how, **_reranking(model, options), **_lists(model, queries))


def _reranking(model: ServedModel, options: Options) -> dict[str, Any]:
    """``diversity=`` and the like."""
    how: dict[str, Any] = {}
    if options.diversity > 0:
        how["diversity"] = options.diversity
    if options.popularity_penalty > 0:
        how["popularity_penalty"] = options.popularity_penalty
    if options.quotas is not None:
        if model.categories is None:
            raise ServiceError(422, "no_categories", "quotas: this server knows no categories of items", "quotas")
        how["quotas"] = dict(options.quotas) if isinstance(options.quotas, tuple) else options.quotas
        how["categories"] = model.categories
    return how


def _lists(model: ServedModel, queries: Sequence[Query]) -> dict[str, Any]:
    """``deny=`` and ``allow=`` of all subjects of some queries."""
    lists: dict[str, Any] = {}
    if any(query.deny for query in queries):
        lists["deny"] = _pattern(model, queries, [query.deny for query in queries])
    if queries[0].options.has_allow:
        lists["allow"] = _pattern(model, queries, [query.allow or () for query in queries])
    return lists


def _pattern(model: ServedModel, queries: Sequence[Query], listed: Sequence[Sequence[str | int]]) -> csr_matrix:
    """The items of each query's list, for each of its subjects."""
    parts, lengths = [], []
    for query, items in zip(queries, listed, strict=True):
        columns = rows_of(model.item_ids, model.n_items, items) if items else np.empty(0, np.int64)
        columns = np.unique(columns[columns >= 0])
        parts += [columns] * len(query.subjects)
        lengths += [len(columns)] * len(query.subjects)
    columns = np.concatenate(parts)
    row_ptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return csr_matrix((np.ones(len(columns), bool), columns, row_ptr), shape=(len(lengths), model.n_items))


def _bodies(
    model: ServedModel,
    queries: Sequence[Query],
    heads: Sequence[str],
    columns: NDArray[np.integer],
    scores: NDArray[np.floating],
    sources: Sequence[str],
) -> list[bytes | Exception]:
    """The JSON of each query."""
    lists = _json_lists(model, columns, scores)
    texts = [
        f'{head},"source":"{source}","items":[{items}]}}'
        for head, source, items in zip(heads, sources, lists, strict=True)
    ]
    return _lists_of(model, queries, texts)


def _json_lists(model: ServedModel, columns: NDArray[Any], scores: NDArray[Any]) -> list[str]:
    """The items of each row (B, k) in JSON, without those places that no item was left for."""
    k = columns.shape[1]
    rows, values = columns.ravel().tolist(), scores.ravel().tolist()
    if -1 in rows:
        per_row = (columns >= 0).sum(axis=1).tolist()
        return [
            _json_list(model, rows[at * k : at * k + n], values[at * k : at * k + n]) for at, n in enumerate(per_row)
        ]
    pieces = model.item_pieces(rows)
    if not all(map(math.isfinite, values)):
        values = [value if math.isfinite(value) else None for value in values]
    texts = [
        f'{piece},"score":{value!r}}}' if value is not None else f'{piece},"score":null}}'
        for piece, value in zip(pieces, values, strict=True)
    ]
    return [",".join(texts[at : at + k]) for at in range(0, len(texts), k)] if k else [""] * len(columns)


def _json_list(model: ServedModel, rows: Sequence[int], values: Sequence[float]) -> str:
    return ",".join(
        f'{piece},"score":{_json(value)}}}' for piece, value in zip(model.item_pieces(rows), values, strict=True)
    )


def _name(name: str | int) -> str:
    """An id in JSON, in a fifth of the time that json.dumps takes."""
    return encode_basestring_ascii(name) if isinstance(name, str) else str(name)


def _json(value: Any) -> str:
    """A number, bool or text in JSON, which has no infinity."""
    return "null" if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


# ----------------------------------------------------------------------------------------------------------- neighbours


def _like_items(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    given = [item for query in queries for item in query.subjects]
    rows = _known(model.item_ids, model.n_items, given, "item", queries)
    k = min(queries[0].options.k, model.n_items)
    lists = _lists(model, queries)
    own = csr_matrix((np.ones(len(rows), bool), rows, np.arange(len(rows) + 1)), shape=(len(rows), model.n_items))
    lists["deny"] = lists["deny"] + own if "deny" in lists else own  # nobody wants the item itself
    columns, scores = model.numbered.similar_items(rows, k, **lists)
    texts = [
        f'{piece},"similar":[{similar}]}}'
        for piece, similar in zip(model.item_pieces(rows.tolist()), _json_lists(model, columns, scores), strict=True)
    ]
    return _lists_of(model, queries, texts)


def _like_users(model: ServedModel, queries: Sequence[Query]) -> list[bytes | Exception]:
    given = [user for query in queries for user in query.subjects]
    rows = _known(model.user_ids, model.n_users, given, "user", queries)
    options: dict[str, Any] = {}
    query = queries[0]  # with lists it is alone
    for name, listed in (("deny_users", query.deny), ("allow_users", query.allow)):
        if listed or (listed is not None and name == "allow_users"):
            some = rows_of(model.user_ids, model.n_users, listed)
            options[name] = some[some >= 0]
    k = min(query.options.k + 1, model.n_users)
    columns, scores = model.numbered.similar_users(rows, k, **options)
    texts = []
    for row, some, values in zip(rows.tolist(), columns.tolist(), scores.tolist(), strict=True):
        others = [(one, value) for one, value in zip(some, values, strict=True) if one not in (-1, row)]
        others = others[: query.options.k]
        names = model.user_names([one for one, _ in others])
        similar = ",".join(
            f'{{"user":{json.dumps(name)},"score":{_json(value)}}}'
            for name, (_, value) in zip(names, others, strict=True)
        )
        texts.append(f'{{"user":{json.dumps(model.user_names([row])[0])},"similar":[{similar}]}}')
    return _lists_of(model, queries, texts)


def _lists_of(model: ServedModel, queries: Sequence[Query], texts: Sequence[str]) -> list[bytes | Exception]:
    """The JSON of each query, from that of each subject."""
    bodies: list[bytes | Exception] = []
    start = 0
    for query in queries:
        end = start + len(query.subjects)
        bodies.append(f'{{"model":"{model.version}","lists":[{",".join(texts[start:end])}]}}'.encode())
        start = end
    return bodies


def _known(ids: Any, n: int, given: Sequence[str | int], side: str, queries: Sequence[Query] = ()) -> NDArray[np.int64]:
    """Row numbers; an error where one is unknown, which names its place in the one query that there is then."""
    rows = rows_of(ids, n, given)
    if (rows < 0).any():
        at = int(np.argmax(rows < 0))
        field = f"{side}s[{at}]" if queries else side
        raise ServiceError(404, f"unknown_{side}", f"{field}: the model has no {side} {given[at]!r:.80}", field)
    return rows


_HOW: dict[str, How] = {
    "users": _for_users,
    "sessions": _for_sessions,
    "texts": _for_texts,
    "items": _like_items,
    "neighbours": _like_users,
}


# ------------------------------------------------------------------------------------------------------- one by one


def explain(model: ServedModel, request: ExplainRequest) -> bytes:
    """Why somebody gets an item, as JSON."""
    column = int(_known(model.item_ids, model.n_items, [request.item], "item")[0])
    try:
        if request.session is not None:
            matrix, unknown = _matrix_of(model, [request.session])
            if not matrix.nnz:
                raise ServiceError(
                    404, "unknown_item", f"session: the model has no item {unknown[0][0]!r:.80}", "session"
                )
            found = model.numbered.explain_for(matrix, column, request.k)
        else:
            assert request.user is not None
            row = int(_known(model.user_ids, model.n_users, [request.user], "user")[0])
            found = model.numbered.explain(row, column, request.k)
    except Exception as error:
        raise _in_words(error) from error
    rows = [int(one) for one in found.ids]
    others = found.score - found.from_prior - float(found.contributions.sum())
    because = ",".join(
        f'{piece},"adds":{_json(float(value))}}}'
        for piece, value in zip(model.item_pieces(rows), found.contributions, strict=True)
    )
    return (
        f'{model.item_pieces([column])[0]},"model":"{model.version}","score":{_json(float(found.score))},'
        f'"because":[{because}],"others":{_json(others)},"from_prior":{_json(float(found.from_prior))}}}'
    ).encode()


def history(model: ServedModel, user: str, limit: int) -> bytes:
    """What a user has, as JSON."""
    row = int(_known(model.user_ids, model.n_users, [user], "user")[0])
    seen = model.numbered.fitted.seen
    name, items, count = json.dumps(model.user_names([row])[0]), "", 0
    if seen is not None:
        own = seen[[row]]
        count = int(own.nnz)
        values = np.asarray(own.data, np.float64)
        best = np.lexsort((-model.popularity[own.indices], -values))[:limit]
        pieces = model.item_pieces(own.indices[best].tolist())
        items = ",".join(
            f'{piece},"value":{_json(float(value))}}}' for piece, value in zip(pieces, values[best], strict=True)
        )
    return f'{{"model":"{model.version}","user":{name},"count":{count},"items":[{items}]}}'.encode()
