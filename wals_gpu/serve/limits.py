"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from wals_gpu.checks import integer

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What is refused with an error that says so, before anything is computed.

    Parameters
    ----------
    max_k : int, default 200
        Items of a list.
    max_queries : int, default 256
        Users, sessions, texts or items that one request may name.
    max_ucb : int, default 16
        Users, sessions or texts of a request with ``explore: "ucb"``, which takes the square of the factors for each
        item, or with ``quotas``, which may need the order of all items.
    max_session : int, default 1000
        Items of a session.
    max_list : int, default 10000
        Items of ``deny`` and of ``allow``.
    max_id : int, default 512
        Characters of an id.
    max_text : int, default 4000
        Characters of a text.
    max_body : int, default 1048576
        Bytes of a request.
    max_waiting : int, default 1024
        Requests that may wait for an answer of one kind; what comes after is told to come again.

    Raises
    ------
    TypeError, ValueError
        One is not an integer from 1.
    """

    max_k: int = 200
    max_queries: int = 256
    max_ucb: int = 16
    max_session: int = 1000
    max_list: int = 10_000
    max_id: int = 512
    max_text: int = 4000
    max_body: int = 1 << 20
    max_waiting: int = 1024

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, integer(one.name, getattr(self, one.name), 1))
