"""A program of a user's who checks it with mypy --strict; test_typing.py checks it and runs it.

Lines that are wrong say so: mypy must find the error there, or it complains of a needless ignore.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu import WALS, Recommendations, as_interactions, make_objective
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
found: Recommendations = model.recommend([0, 1], k=3, unknown="skip")
cold: NDArray[np.bool_] = found.is_cold
columns: list[str] = found.to_arrow().column_names
frame: Any = model.recommend([0, 1], k=3, output="arrow")
users, items, values = next(model.recommend_chunks())

if model.user_factors is not None:
    rows: int = len(model.user_factors)
len(model.user_factors)  # type: ignore[arg-type]  # None before the fit


def wrong_calls() -> None:
    WALS("64")  # type: ignore[arg-type]
    WALS(num_threads="2")  # type: ignore[arg-type]
    model.fit(plays, patience="ten")  # type: ignore[arg-type]
    model.recommended(0)  # type: ignore[attr-defined]
    WALS(regularisation=0.1)  # type: ignore[call-arg]
    WALS(objective="hu", alpha="40")  # type: ignore[arg-type]
    make_objective("hu", alfa=40)  # type: ignore[call-arg]
    model.fit(plays, usr_column="who")  # type: ignore[call-arg]
    model.fit(plays, min_user_interactions="3")  # type: ignore[arg-type]
    model.update_users(plays, valu_column="n")  # type: ignore[call-arg]
    model.set_params(factorz=3)  # type: ignore[call-arg]
    model.alpha = 40  # type: ignore[attr-defined]
    model.factors = "64"  # type: ignore[assignment]
    model.objective = 3  # type: ignore[assignment]
    model.fit(plays, warm_start=3)  # type: ignore[arg-type]
    model.recommend(0, deny_item=[1])  # type: ignore[call-overload]


model.objective, model.dtype, model.iterations = "hu", "float64", 3
model.objective = make_objective("hu", alpha=3, regularization=1)
same: WALS = WALS.from_config(model.to_config()).set_params(factors=3, alpha=4.0)
exact: float = same.fit(plays).score(plays, metric="recall@2")
gone: NDArray[Any] = same.remove_users([0])
alpha: dict[str, Any] = same.get_params()
objective_name: str = same.objective.name

report = evaluate(Popularity(plays.matrix), plays.matrix, plays.matrix, filter_seen=False, n_resamples=0)
print(report.results)
other = AlternatingLeastSquares(factors=2, iterations=1)
similar: tuple[NDArray[Any], NDArray[Any]] = model.similar_items(0, 2)
