"""The web service as an ASGI application."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wals_gpu.data.files import version_of
from wals_gpu.model.wals import WALS
from wals_gpu.serve import answers, schemas
from wals_gpu.serve.batching import Batcher, Full
from wals_gpu.serve.errors import ServiceError, of_validation
from wals_gpu.serve.examples import examples_of
from wals_gpu.serve.explorer import explorer_page
from wals_gpu.serve.limits import Limits
from wals_gpu.serve.metrics import CONTENT_TYPE, Metrics
from wals_gpu.serve.models import Models, ServedModel

__all__ = ["LOOPBACK", "make_app"]

#: Names under which a server that is bound to loopback may be asked.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

#: Characters of what people type to find an item or a user.
_MAX_TYPED = 200

_HEADERS = [
    (b"content-type", b"application/json"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]

#: From the body of a request to that of its answer.
Direct = Callable[[bytes], Awaitable[bytes]]

DESCRIPTION = """\
Lists of items for users, for what somebody has, and for sentences; what is like an item; and why.

Ids are texts or integers, and `7` finds what `"7"` finds. Every error is `{"error": {"type", "message", "field"}}`.
"""


def make_app(
    source: str | os.PathLike[str] | WALS | Models,
    *,
    titles: Any = None,
    title_column: str | None = None,
    item_column: str | None = None,
    categories: Any = None,
    category_column: str | None = None,
    limits: Limits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    device: str = "auto",
    num_threads: int = 0,
    watch_every: float = 1.0,
) -> FastAPI:
    """A web service of a model, for any ASGI server.

    Parameters
    ----------
    source : path, WALS or Models
        The folder of a model, which is watched: what is saved there takes its place without a pause. Or a fitted model,
        which must not change any more.
    titles, title_column, item_column : optional
        Titles of items, as for :class:`.Titles`: a mapping, a table, or the path of one, which is read again with each
        new version of the model.
    categories, category_column : optional
        Categories of items for ``quotas``, in the forms that :meth:`.WALS.recommend` takes. Default: the column of a
        table of titles that is named like ``category`` or ``genre``, if there is one.
    limits : Limits, optional
        What one request may ask for.
    allowed_hosts : sequence of str, optional
        What the header ``Host`` may name, without the port; None: anything. A server on loopback should name
        ``LOOPBACK``, so that no page from elsewhere can make a browser ask it in the name of a host of its own.
    device, num_threads
        As for :meth:`.WALS.load`.
    watch_every : float, default 1.0
        Seconds between two looks at the folder.

    Returns
    -------
    fastapi.FastAPI
        Middleware can be added to it, and it can be mounted in another application.

    Raises
    ------
    FileNotFoundError, ModelFormatError, DataError
        There is no model to begin with, or its titles or categories cannot be read.
    ValueError
        Arguments that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from fastapi.testclient import TestClient
    >>> from wals_gpu import WALS
    >>> model = WALS(factors=2, objective="hu").fit(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]))
    >>> client = TestClient(make_app(model))
    >>> client.post("/recommend", json={"users": [0], "k": 1}).json()["lists"][0]["items"][0]["item"]
    2
    """
    if isinstance(allowed_hosts, str):
        raise TypeError(f"allowed_hosts must be a list of names, got {allowed_hosts!r:.60}")
    limits = Limits() if limits is None else limits
    if isinstance(source, Models):
        models = source
    else:
        options: dict[str, Any] = {"title_column": title_column, "item_column": item_column}
        options |= {"categories": categories, "category_column": category_column}
        models = Models(source, titles, device=device, num_threads=num_threads, every=watch_every, **options)
    service = _Service(models, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        models.watch()
        yield
        models.stop()
        service.close()

    app = FastAPI(
        title="wals_gpu",
        version=version_of("wals_gpu") or "0",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
    )
    app.state.models = models
    direct = _add_routes(app, service)
    app.add_middleware(_Front, service=service, direct=direct, allowed_hosts=allowed_hosts)
    for kind in (ServiceError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.openapi = _OpenApi(app, models)  # type: ignore[method-assign]
    return app


class _Service:
    """What the routes have in common: the models, and the threads that answer."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits, self.metrics = models, limits, Metrics()
        waiting = limits.max_waiting
        self.fast = Batcher(self._answer, waiting, name="answers")
        self.slow = Batcher(self._answer, waiting, 64, name="slow answers")
        self.calls = Batcher(self._call, waiting, 1, name="explanations")

    def _answer(self, queries: Sequence[answers.Query]) -> list[bytes | Exception]:
        self.metrics.batch.observe(len(queries))
        return answers.answer(self.models.current, queries)

    def _call(self, functions: Sequence[Callable[[ServedModel], bytes]]) -> list[bytes | Exception]:
        model = self.models.current  # one for all of them
        return [function(model) for function in functions]

    async def answer(self, query: answers.Query) -> bytes:
        """The JSON of an answer."""
        n = len(query.subjects)
        options = query.options
        name = "explore" if options.explore == "ucb" else "quotas" if options.quotas is not None else None
        if name is not None and n > self.limits.max_ucb:  # these may look at every item for each of them
            text = f"{name}: at most {self.limits.max_ucb} users, sessions or texts at a time, got {n}"
            raise ServiceError(422, "invalid_request", text, name)
        if query.is_slow:
            return await _in_line(self.slow, query)
        return await _in_line(self.fast, query, is_small=n == 1)

    def close(self) -> None:
        """End the threads."""
        for line in (self.fast, self.slow, self.calls):
            line.close()


async def _in_line(line: Batcher[Any, bytes], request: Any, *, is_small: bool = False) -> bytes:
    try:
        return await line.ask(request, is_small=is_small)
    except Full:
        raise ServiceError(
            503, "overloaded", "too many requests wait already: come again", headers=[(b"retry-after", b"1")]
        ) from None


# -------------------------------------------------------------------------------------------------------------- routes


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The body of a request, read no further than it may be long."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ServiceError(400, "disconnected", "the request ended early")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > most:
            raise ServiceError(413, "too_large", f"the body must have at most {most} bytes")
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


class _ItemsQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prefix: Annotated[str, Query(max_length=_MAX_TYPED, description="Words of the title, or an id.")] = ""
    limit: Annotated[int, Query(ge=1, le=100)] = 12


class _UsersQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    prefix: Annotated[str, Query(max_length=_MAX_TYPED, description="What the id begins with, in any case.")] = ""
    limit: Annotated[int, Query(ge=1, le=100)] = 12


class _HistoryQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    user: Annotated[str, Query(max_length=512)]
    limit: Annotated[int, Query(ge=1, le=1000)] = 50


def _add_routes(app: FastAPI, service: _Service) -> dict[str, Direct]:
    """Add the routes; by path those that :class:`_Front` answers itself."""
    direct: dict[str, Direct] = {}
    models, known = service.models, schemas.schemas(service.limits)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": schemas.Error, "description": text}
        for status, text in (
            (400, "No JSON."),
            (404, "An id that the model does not have."),
            (413, "Too large."),
            (422, "Not possible; the message says what is wanted."),
            (503, "Too many requests wait."),
        )
    }

    def post(
        path: str, body: type[BaseModel], response: Any, text: str, ask: Callable[[Any], Awaitable[bytes]]
    ) -> None:
        validate = TypeAdapter(body).validator.validate_json

        async def answer(content: bytes) -> bytes:
            try:
                request = validate(content)
            except ValidationError as error:
                raise of_validation(error.errors(include_url=False, include_input=False)) from None
            return await ask(request)

        async def endpoint(request: Any) -> Response:  # what FastAPI documents
            return _bytes(await ask(request))

        direct[path] = answer
        endpoint.__name__ = path.strip("/")
        endpoint.__annotations__ = {"request": body, "return": Response}
        app.post(
            path,
            response_model=response,
            responses=errors,
            summary=text,
            operation_id=path.strip("/"),
            description=body.__doc__,
        )(endpoint)

    async def recommend(request: schemas.RecommendRequest) -> bytes:
        return await service.answer(answers.of_recommend(request))

    async def similar(request: schemas.SimilarRequest) -> bytes:
        return await service.answer(answers.of_similar(request))

    async def explain(request: schemas.ExplainRequest) -> bytes:
        return await _in_line(service.calls, lambda model: answers.explain(model, request))

    post("/recommend", known.recommend, schemas.Recommendations, "Items for users, sessions or texts", recommend)
    post("/similar", known.similar, schemas.SimilarItems, "What is like some items, who like some users", similar)
    post("/explain", known.explain, schemas.Explanation, "Why somebody gets an item", explain)

    of_query: dict[int | str, dict[str, Any]] = {status: errors[status] for status in (404, 422)}

    @app.get("/items", response_model=schemas.ItemHits, responses=of_query, summary="Items by words of their titles")
    def items(query: Annotated[_ItemsQuery, Query()]) -> Any:
        model = models.current
        rows = model.item_search.find(query.prefix, query.limit).tolist()
        names, titles = model.item_names(rows), model.item_titles(rows)
        counts = model.popularity[rows].tolist()
        hits: list[dict[str, Any]] = [
            {"item": name, "popularity": count} for name, count in zip(names, counts, strict=True)
        ]
        if titles is not None:
            hits = [hit | {"title": title} for hit, title in zip(hits, titles, strict=True)]
        return _json({"items": hits})

    @app.get(
        "/users", response_model=schemas.UserHits, responses=of_query, summary="Users by the beginning of their id"
    )
    def users(query: Annotated[_UsersQuery, Query()]) -> Any:
        model = models.current
        rows = model.user_search.find(query.prefix, query.limit)
        return _json({"users": model.user_names(rows)})

    @app.get("/history", response_model=schemas.History, responses=of_query, summary="What a user has")
    def history(query: Annotated[_HistoryQuery, Query()]) -> Any:
        return _bytes(answers.history(models.current, query.user, query.limit))

    @app.get("/healthz", response_model=schemas.Health, summary="Whether it works, and with which model")
    async def healthz() -> Any:
        found = {"status": "ok", **models.current.described()}
        return _json(found | {"last_error": models.last_error, "max_k": service.limits.max_k})

    @app.get(
        "/metrics", summary="For Prometheus", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}}
    )
    async def metrics() -> Response:
        service.metrics.model.set(models.current.loaded)
        service.metrics.loaded.set(models.n_loaded)
        service.metrics.refused.set(models.n_refused)
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    page, policy = explorer_page()

    @app.get("/", include_in_schema=False)
    async def explorer() -> Response:
        headers = {
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-cache",
        }
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    for path, answer in (("/healthz", healthz), ("/metrics", metrics), ("/", explorer)):  # as monitors ask
        app.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False, response_class=Response)
    return direct


def _json(value: Any) -> Response:
    import json

    return _bytes(json.dumps(value).encode())


def _bytes(content: bytes, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    response = Response(content, status)
    response.raw_headers = [*_headers(content), *headers]
    return response


def _headers(content: bytes) -> list[tuple[bytes, bytes]]:
    return [*_HEADERS, (b"content-length", str(len(content)).encode())]


# -------------------------------------------------------------------------------------------------------------- errors


async def _on_error(request: Request, error: Exception) -> Response:
    """Every error in the one form."""
    if isinstance(error, RequestValidationError):
        found = of_validation(error.errors())
    elif isinstance(error, ServiceError):
        found = error
    elif isinstance(error, HTTPException):
        path = request.url.path
        type_, message = {
            404: ("not_found", f"there is nothing at {path!r:.80}"),
            405: ("method_not_allowed", f"{request.method} is not for {path!r:.80}"),
        }.get(error.status_code, ("http_error", str(error.detail)))
        headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        found = ServiceError(error.status_code, type_, message, headers=headers)
    else:  # a mistake of ours: Starlette raises it again, and the server logs it
        found = ServiceError(500, "internal", "something went wrong here; the log of the server says what")
    return _error(found)


def _error(error: ServiceError) -> Response:
    return _bytes(error.body(), error.status, error.headers)


class _Front:
    """Counts what is answered, refuses hosts that are not served, and answers the routes that are asked most.

    Their way through FastAPI's stack and routes, there and back, takes as long as a search of 20,000 items. Whatever
    middleware an application is given stands before this one.
    """

    def __init__(
        self, app: ASGIApp, service: _Service, direct: dict[str, Direct], allowed_hosts: Sequence[str] | None
    ) -> None:
        self._app, self._metrics, self._direct = app, service.metrics, direct
        self._max_body = service.limits.max_body
        self._hosts = None if allowed_hosts is None else {host.lower().encode() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics = self._metrics
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # of an application that is mounted in another
        direct = self._direct.get(path) if scope["method"] == "POST" else None
        began = time.perf_counter()
        metrics.in_flight.inc()
        try:
            if self._hosts is not None and not self._is_allowed(scope):
                text = "the server does not serve this host: see --allow-host, or allowed_hosts= of make_app"
                raise ServiceError(421, "wrong_host", text)
            if direct is None:
                await self._app(scope, receive, noting)
                return
            answer = await direct(await _body(scope, receive, self._max_body))
            status = 200
            await send({"type": "http.response.start", "status": status, "headers": _headers(answer)})
            await send({"type": "http.response.body", "body": answer})
        except ServiceError as error:
            await _error(error)(scope, receive, noting)
        finally:
            metrics.in_flight.dec()
            route = scope.get("route")
            known = path if direct is not None else "other" if route is None else route.path
            metrics.count(known, status, time.perf_counter() - began)

    def _is_allowed(self, scope: Scope) -> bool:
        assert self._hosts is not None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.lower()
                # "[::1]:8000" and "localhost:8000", but not the colons inside of an address
                return host in self._hosts or (host.rpartition(b":")[0] in self._hosts)
        return False


class _OpenApi:
    """The OpenAPI document, with examples that the model in use can answer."""

    def __init__(self, app: FastAPI, models: Models) -> None:
        self._app, self._models = app, models
        self._of: tuple[str, dict[str, Any]] | None = None

    def __call__(self) -> dict[str, Any]:
        model = self._models.current
        if self._of is None or self._of[0] != model.version:
            app = self._app
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path, examples in examples_of(model).items():
                operation = document["paths"][path]["post"]
                operation["requestBody"]["content"]["application/json"]["examples"] = examples
            for schema in document["components"]["schemas"].values():
                schema.pop("title", None)
            self._of = model.version, document
        return self._of[1]
