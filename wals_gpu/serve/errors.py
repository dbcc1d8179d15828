"""What a request can be answered with in place of what it asked for: one form for all errors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["ServiceError", "of_validation"]


class ServiceError(Exception):
    """An answer ``{"error": {"type", "message", "field"}}``.

    Parameters
    ----------
    status : int
        Of HTTP, 400 or above.
    type : str
        What programs tell errors apart by, such as "unknown_user".
    message : str
        For people.
    field : str, optional
        Where in the request, such as "sessions[0][2]".
    headers : sequence of pairs of bytes, optional
        Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        field: str | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.message, self.field = status, type, message, field
        self.headers = tuple(headers)

    def body(self) -> bytes:
        """The answer as JSON."""
        error = {"type": self.type, "message": self.message, "field": self.field}
        return json.dumps({"error": error}).encode()


def of_validation(errors: Sequence[Any]) -> ServiceError:
    """The first error that pydantic found."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ServiceError(400, "invalid_json", f"the body must be JSON: {first['ctx']['error']}")
    field = _path(first["loc"])
    # Of an object where an id could stand too, what is wrong is inside of it.
    if inside := [one for one in errors if field and (_path(one["loc"]) or "").startswith(f"{field}.")]:
        return of_validation(inside)
    kind, more = first["type"], ""
    if kind == "value_error":
        return ServiceError(422, "invalid_request", str(first["ctx"]["error"]), field)
    same = [one["type"] for one in errors if _path(one["loc"]) == field]
    if len(same) > 1 and "string_type" in same:  # of an id, or of an item of a session
        message = "must be a text or an integer" + (", or an object with item and value" if len(same) > 2 else "")
    elif kind == "missing":
        message = "is missing"
    elif kind == "extra_forbidden":
        message = "is not known here"
    else:
        message = re.sub("^input ", "", first["msg"][:1].lower() + first["msg"][1:])
    if others := len({_path(one["loc"]) for one in errors} - {field}):
        more = f" ({others} more {'is' if others == 1 else 'are'} wrong)"
    return ServiceError(422, "invalid_request", f"{field or 'the body'} {message}{more}", field)


def _path(location: Sequence[Any]) -> str | None:
    """users[0] of ("users", 0, "str"): what pydantic calls the members of unions is left out."""
    path = ""
    for at, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif at == 0 and part in ("body", "query"):
            continue
        elif not path:
            path = str(part)
        elif part in _FIELDS_INSIDE:
            path += f".{part}"
    return path or None


#: Names of fields of objects that stand inside of lists.
_FIELDS_INSIDE = ("item", "value")
