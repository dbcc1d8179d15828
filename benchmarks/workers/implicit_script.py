"""A program as users of implicit write it, which bench_accel.py runs with implicit and, unchanged, with wals_gpu.accel.

    python benchmarks/workers/implicit_script.py RATINGS.npz [cholesky]

Prints one JSON object: seconds of its parts, and how well it ranks.
"""

import json
import sys
import time

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.evaluation import ranking_metrics_at_k, train_test_split
from scipy.sparse import load_npz

ratings = load_npz(sys.argv[1])
train, test = train_test_split(ratings, train_percentage=0.8, random_state=1)
if "cholesky" in sys.argv[2:]:
    model = AlternatingLeastSquares(factors=128, alpha=10.0, iterations=3, use_cg=False, use_gpu=False, random_state=1)
else:
    model = AlternatingLeastSquares(factors=128, alpha=10.0, use_gpu=False, random_state=1)

start = time.perf_counter()
model.fit(train, show_progress=False)
after_fit = time.perf_counter()
ids, scores = model.recommend(np.arange(train.shape[0]), train, N=10)
after_recommend = time.perf_counter()
metrics = ranking_metrics_at_k(model, train, test, K=10, show_progress=False)
end = time.perf_counter()

seconds = {"fit": after_fit - start, "recommend": after_recommend - after_fit, "evaluate": end - after_recommend}
print(json.dumps({"seconds": seconds | {"all": end - start}, "class": type(model).__module__, "ndcg": metrics["ndcg"]}))
