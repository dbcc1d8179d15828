"""What requests and answers look like: read by pydantic, shown in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from typing_extensions import Self

from wals_gpu.serve.limits import Limits

__all__ = [
    "Error",
    "ExplainRequest",
    "Explanation",
    "Health",
    "History",
    "ItemHits",
    "RecommendRequest",
    "Recommendations",
    "Schemas",
    "SessionItem",
    "SimilarItems",
    "SimilarRequest",
    "UserHits",
    "schemas",
]

#: Ids as JSON has them: 7 and "7" are the same one.
Id = str | int
#: How many items of a category.
Quota = Annotated[int, Field(ge=0, le=1_000_000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _one_of(*names: str, kind: str) -> ConfigDict:
    """Exactly one of some fields is there and not null, for the OpenAPI document; validators check it."""
    ways = [
        {
            "required": [name],
            "properties": {one: {"type": kind} if one == name else {"type": "null"} for one in names},
        }
        for name in names
    ]
    return ConfigDict(json_schema_extra={"oneOf": ways})  # type: ignore[dict-item]


class SessionItem(_Request):
    """An item that somebody has, with how much."""

    item: Id
    value: float = Field(1.0, ge=-1e6, le=1e6, allow_inf_nan=False)


class RecommendRequest(_Request):
    """For whom, and how. Exactly one of `users`, `sessions` and `texts`."""

    model_config = _one_of("users", "sessions", "texts", kind="array")

    users: list[Id] | None = Field(None, min_length=1, description="Ids of users; unknown ones get what is popular.")
    sessions: list[list[Id | SessionItem]] | None = Field(
        None,
        min_length=1,
        description="For each of some people the items they have; items the model does not know are ignored.",
    )
    texts: list[str] | None = Field(
        None, min_length=1, description="Sentences; needs a model with a text prior and its encoder."
    )
    k: int = Field(10, ge=1, description="Items of each list.")
    filter_seen: bool = Field(True, description="Leave out what a user, or a session, already has.")
    deny: list[Id] = Field([], description="Items not to show; unknown ones are ignored.")
    allow: list[Id] | None = Field(None, description="The only items to show; unknown ones are ignored.")
    diversity: float = Field(0.0, ge=0, le=1, description="0: the best items; towards 1: items that differ.")
    popularity_penalty: float = Field(0.0, ge=0, le=10, description="Above 0: what everybody has ranks lower.")
    quotas: Quota | dict[str, Quota | Annotated[list[Quota], Field(min_length=2, max_length=2)]] | None = Field(
        None,
        description="At most so many items of each category, or of those that are named; of a pair, also at least so "
        "many. Needs a server that knows categories.",
    )
    explore: Literal["ucb", "thompson"] | None = Field(
        None, description="Rank by upper confidence bounds, or by a draw: what the model is unsure of gets a chance."
    )
    noise: float | None = Field(None, ge=0, le=1e6, description="How much is explored; 1 where nothing is said.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Of the draws; without one they differ each time.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        given = [name for name in ("users", "sessions", "texts") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none of them"
            raise ValueError(f"give exactly one of users, sessions and texts; got {got}")
        if self.noise is not None and self.explore is None:
            raise ValueError("noise needs explore")
        if self.seed is not None and self.explore != "thompson":
            raise ValueError("seed needs explore thompson: nothing else is random")
        if self.texts is not None and self.explore is not None:
            raise ValueError("explore is not for texts, which are no users")
        return self


class SimilarRequest(_Request):
    """What is like some items, or who is like some users. Exactly one of `items` and `users`."""

    model_config = _one_of("items", "users", kind="array")

    items: list[Id] | None = Field(None, min_length=1)
    users: list[Id] | None = Field(None, min_length=1)
    k: int = Field(10, ge=1, description="Neighbours of each, itself not among them.")
    deny: list[Id] = Field([], description="Items (or users) not to show; unknown ones are ignored.")
    allow: list[Id] | None = Field(None, description="The only ones to show; unknown ones are ignored.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.items is None) == (self.users is None):
            raise ValueError(f"give exactly one of items and users; got {'none' if self.items is None else 'both'}")
        return self


class ExplainRequest(_Request):
    """Why somebody gets an item. Exactly one of `user` and `session`."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["user"],
                    "properties": {"user": {"type": ["string", "integer"]}, "session": {"type": "null"}},
                },
                {"required": ["session"], "properties": {"session": {"type": "array"}, "user": {"type": "null"}}},
            ]
        }
    )

    user: Id | None = None
    session: list[Id | SessionItem] | None = Field(None, min_length=1)
    item: Id
    k: int = Field(5, ge=1, description="Items of the user to name.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if (self.user is None) == (self.session is None):
            raise ValueError(f"give exactly one of user and session; got {'none' if self.user is None else 'both'}")
        return self


# ------------------------------------------------------------------------------------------------------------- answers


class Found(BaseModel):
    """An item of a list."""

    item: Id
    title: str | None = Field(None, description="Absent where the server has no titles.")
    score: float | None = Field(description="Compares items of one list; null where it is beyond the floats.")


class List(BaseModel):
    """The answer for one user, session or text."""

    user: Id | None = Field(None, description="As asked for; only of users.")
    text: str | None = Field(None, description="Only of texts.")
    known: bool = Field(description="Whether the model knows something of the user, or of an item of the session.")
    source: Literal["model", "popularity"]
    unknown_items: list[Id] | None = Field(None, description="Of a session; only where there are some.")
    items: list[Found]


class Recommendations(BaseModel):
    """A list for each user, session or text, in their order."""

    model: str = Field(description="Version of the model that answered.")
    lists: list[List]


class Neighbours(BaseModel):
    """What is like an item, or who is like a user: cosines of factors."""

    item: Id | None = None
    user: Id | None = None
    title: str | None = None
    similar: list[dict[str, Any]]


class SimilarItems(BaseModel):
    """The neighbours of each."""

    model: str
    lists: list[Neighbours]


class Reason(BaseModel):
    """One of the user's items and what it adds to the score."""

    item: Id
    title: str | None = None
    adds: float | None


class Explanation(BaseModel):
    """The score is the sum of what all of the user's items add, and `from_prior`."""

    model: str
    item: Id
    title: str | None = None
    score: float | None
    because: list[Reason] = Field(description="The items that add most.")
    others: float | None = Field(description="What all other items add.")
    from_prior: float | None = Field(description="What is known of the user beside the items.")


class Health(BaseModel):
    """What the server has."""

    status: Literal["ok"]
    model: str
    loaded: str = Field(description="When, in UTC.")
    age_seconds: float = Field(description="Since it was loaded.")
    users: int
    items: int
    factors: int
    interactions: int | None
    has_titles: bool
    categories: int | None = Field(None, description="How many there are for quotas; null: none are known.")
    has_texts: bool
    why_no_texts: str | None = None
    last_error: str | None = Field(None, description="Why the newest version of the folder is not the one in use.")
    max_k: int


class ItemHit(BaseModel):
    """An item by its title or id."""

    item: Id
    title: str | None = None
    popularity: int


class ItemHits(BaseModel):
    """Items whose title has the words, the most popular first."""

    items: list[ItemHit]


class UserHits(BaseModel):
    """Ids of users that begin as asked for."""

    users: list[Id]


class History(BaseModel):
    """What a user has, the most of it first."""

    model: str
    user: Id
    count: int
    items: list[dict[str, Any]]


class ErrorBody(BaseModel):
    """What went wrong."""

    type: str
    message: str
    field: str | None = Field(description="Where in the request.")


class Error(BaseModel):
    """Every answer with a status from 400 on."""

    error: ErrorBody


# ------------------------------------------------------------------------------------------------- within the limits


class Schemas:
    """The requests within some limits."""

    def __init__(
        self, recommend: type[RecommendRequest], similar: type[SimilarRequest], explain: type[ExplainRequest]
    ) -> None:
        self.recommend, self.similar, self.explain = recommend, similar, explain


def schemas(limits: Limits) -> Schemas:
    """The requests of which pydantic refuses what is beyond the limits."""
    name: Any = Annotated[str, Field(max_length=limits.max_id)]
    an_id: Any = name | Annotated[int, Field(ge=-(2**63), lt=2**64)]
    k: Any = Annotated[int, Field(ge=1, le=limits.max_k)]
    item: Any = create_model("SessionItem", __base__=SessionItem, item=(an_id, ...))
    session: Any = Annotated[list[an_id | item], Field(max_length=limits.max_session)]
    some: Any = Annotated[list[an_id], Field(max_length=limits.max_queries, min_length=1)] | None
    listed: Any = Annotated[list[an_id], Field(max_length=limits.max_list)]
    text: Any = Annotated[str, Field(max_length=limits.max_text)]

    def within(base: type[BaseModel], **types: Any) -> Any:
        """The same with narrower types; descriptions and defaults stay."""
        narrowed: dict[str, Any] = {}
        for field, kind in types.items():
            was = base.model_fields[field]
            default: Any = ... if was.is_required() else was.default
            narrowed[field] = (kind, Field(default, description=was.description))
        return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **narrowed)

    lists = {"deny": listed, "allow": listed | None}
    sessions = Annotated[list[session], Field(max_length=limits.max_queries, min_length=1)] | None
    texts = Annotated[list[text], Field(max_length=limits.max_queries, min_length=1)] | None
    return Schemas(
        within(RecommendRequest, users=some, sessions=sessions, texts=texts, k=k, **lists),
        within(SimilarRequest, items=some, users=some, k=k, **lists),
        within(
            ExplainRequest,
            user=an_id | None,
            session=Annotated[session, Field(min_length=1)] | None,
            item=an_id,
            k=k,
        ),
    )
