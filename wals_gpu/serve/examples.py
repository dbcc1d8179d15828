"""Requests for the OpenAPI document that the model in use can answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from wals_gpu.serve.models import ServedModel

__all__ = ["examples_of"]


def examples_of(model: ServedModel) -> dict[str, dict[str, Any]]:
    """By path, the examples by name."""
    fitted = model.numbered.fitted
    user_row = 0
    if fitted.seen is not None and hasattr(fitted.seen, "indptr"):
        user_row = int(np.argmax(np.diff(fitted.seen.indptr) > 0))  # the first who has something
    (user,) = model.user_names([user_row])
    items = model.item_names(model.item_search.find("", 3))
    recommend: dict[str, Any] = {
        "user": {"summary": "Ten items for a user", "value": {"users": [user]}},
        "session": {
            "summary": "For somebody who has these items",
            "value": {"sessions": [items[:2]], "k": 5},
        },
        "lists": {
            "summary": "Without some items, varied, with a little exploration",
            "value": {
                "users": [user], "k": 5, "deny": items[-1:], "explore": "thompson", "noise": 0.5, "seed": 1,
            },
        },
    }  # fmt: skip
    if model.why_no_texts is None:
        recommend["text"] = {"summary": "For a sentence", "value": {"texts": ["something to read music files"], "k": 5}}
    return {
        "/recommend": recommend,
        "/similar": {
            "items": {"summary": "What is like an item", "value": {"items": items[:1], "k": 5}},
            "users": {"summary": "Who is like a user", "value": {"users": [user], "k": 5}},
        },
        "/explain": {
            "user": {"summary": "Why a user gets an item", "value": {"user": user, "item": items[0]}},
            "session": {"summary": "Why a session does", "value": {"session": items[:2], "item": items[-1]}},
        },
    }
