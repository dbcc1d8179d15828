"""Models that tests export, and the lists that an export must give again."""

import numpy as np
import pyarrow as pa
from once import once
from scipy.sparse import csr_matrix

from wals_gpu import WALS

USERS, ITEMS = 60, 90


def likes():
    """Three tastes; a user with next to everything, and one with nothing."""
    rng = np.random.default_rng(3)
    same = np.add.outer(np.arange(USERS), np.arange(ITEMS)) % 3 == 0
    pattern = rng.random((USERS, ITEMS)) < np.where(same, 0.4, 0.04)
    pattern[5, 4:] = True
    pattern[9] = False
    return pattern


@once
def exported_model(ids, **settings):
    """A fitted model whose ids are "text", "integers" (not from 0 on) or "rows"."""
    pattern = likes()
    settings = {"factors": 12, "iterations": 4, "num_threads": 1, "popularity_exponent": 0.2} | settings
    if ids == "rows":
        return WALS(**settings).fit(csr_matrix(pattern.astype(np.float32)))
    users, items = np.nonzero(pattern)
    if ids == "text":
        # Which are in another order by code point than by most languages' rules.
        table = pa.table({"user_id": [f"Ü{u}" if u % 2 else f"u{u}" for u in users],
                          "item_id": [f"i'{i}" if i % 2 else f"I{i}" for i in items]})  # fmt: skip
    else:
        table = pa.table({"user_id": users * 7 + 100, "item_id": items * 3 + 10**10})
    return WALS(**settings).fit(table)


def expected(model, users, k=10, **options):
    """Ids and scores that `recommend` gives, by row number of the users."""
    rows = np.asarray(users)
    found = model.recommend(rows if model.user_ids is None else model.user_ids.take(rows), k, **options)
    return found.ids, found.scores
