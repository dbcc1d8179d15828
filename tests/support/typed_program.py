"""A program of a user's who checks it with mypy --strict; test_typing.py checks it and runs it.

Lines that are wrong say so: mypy must find the error there, or it complains of a needless ignore.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu import WALS, as_interactions
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.evaluation.popularity import Popularity
from wals_gpu.evaluation.report import evaluate

plays = as_interactions(np.eye(6, dtype=np.float32) + np.eye(6, k=1, dtype=np.float32))
model = WALS(factors=2, objective="ials", iterations=2)
fitted: WALS = model.fit(plays, validation=0.3, metric="recall@2")
loss: float | None = fitted.history_[-1].loss
ids: NDArray[Any]
ids, scores = model.recommend([0, 1], k=3)
text: str = ids  # type: ignore[assignment]

if model.user_factors is not None:
    rows: int = len(model.user_factors)
len(model.user_factors)  # type: ignore[arg-type]  # None before the fit


def wrong_calls() -> None:
    WALS("64")  # type: ignore[arg-type]
    WALS(num_threads="2")  # type: ignore[arg-type]
    model.fit(plays, patience="ten")  # type: ignore[arg-type]
    model.recommended(0)  # type: ignore[attr-defined]


report = evaluate(Popularity(plays.matrix), plays.matrix, plays.matrix, filter_seen=False, n_resamples=0)
print(report.results)
other = AlternatingLeastSquares(factors=2, iterations=1)
similar: tuple[NDArray[Any], NDArray[Any]] = model.similar_items(0, 2)
