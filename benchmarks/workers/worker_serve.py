"""A web service of one system, on loopback until it is ended; started by bench_serve.py.

Arguments: system, folder of the model, port, threads of native code.
"""

import gc
import json
import sys

try:
    from orjson import dumps
except ImportError:

    def dumps(value) -> bytes:
        return json.dumps(value).encode()


def wals_gpu(folder: str, port: str, threads: str) -> None:
    from wals_gpu.cli import main

    sys.exit(main(["serve", folder, "--port", port, "--threads", threads]))


def implicit(folder: str, port: str, threads: str) -> None:
    from fastapi import FastAPI, Response
    from implicit.cpu.als import AlternatingLeastSquares

    from wals_gpu import WALS

    fitted = WALS.load(folder).fitted
    model = AlternatingLeastSquares(factors=fitted.factors, num_threads=int(threads))
    model.user_factors, model.item_factors = fitted.user_factors, fitted.item_factors
    liked = fitted.seen
    app = FastAPI()

    @app.get("/recommend")
    def recommend(user: int, k: int = 10) -> Response:
        ids, scores = model.recommend(user, liked[user], N=k, filter_already_liked_items=True)
        items = [{"item": item, "score": score} for item, score in zip(ids.tolist(), scores.tolist(), strict=True)]
        return Response(dumps({"items": items}), media_type="application/json")

    serve(app, port)


def serve(app, port: str) -> None:
    import uvicorn

    gc.collect()
    gc.freeze()  # as wals-gpu serve does: full collections stop either service for a tenth of a second and more
    options = {"log_level": "warning", "access_log": False, "server_header": False}
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", **options)


if __name__ == "__main__":
    system, *arguments = sys.argv[1:]
    {"wals_gpu": wals_gpu, "implicit": implicit}[system](*arguments)
