"""Many hostile requests to the web service: what schemathesis makes of its OpenAPI document, and mutations of that.

    python tests/soak/hostile_requests.py --requests 10000 --seed 0

Every answer must be JSON (or a page, or metrics), every error of the one form, and none a 500. Requests go to the
application itself, without a network: schemathesis makes right and wrong ones, and of each body come some more with
bytes changed, parts cut out and values replaced. Prints how many of each status there were; exit status 1 where
something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from wals_gpu import WALS
from wals_gpu.data.interactions import Interactions
from wals_gpu.serve import make_app

VALUES = (
    "null", "true", "-1", "0", "1e309", "1.5", "9223372036854775808", '""', '"\\u0000"', '"\\ud800"', "[]", "{}",
    "[[]]", '"i1"', '"u1"', '["i1","i2"]', '{"item":"i3","value":-5}', "1" * 400, '"' + "a" * 600 + '"', "[" * 600,
)  # fmt: skip


class Wrong(Exception):
    """An answer that must not be."""


def example_app():
    """A small model, with titles."""
    import pyarrow as pa

    from wals_gpu.data.ids import Ids

    rng = np.random.default_rng(0)
    users, items = (Ids.encode(pa.array([f"{side}{n}" for n in range(40)]), "x")[0] for side in "ui")
    matrix = (rng.random((40, 40)) < 0.2).astype(np.float32) * rng.integers(1, 5, (40, 40))
    from scipy.sparse import csr_matrix

    model = WALS(factors=8, num_threads=1, iterations=3).fit(Interactions(csr_matrix(matrix), users, items))
    return make_app(model, titles={f"i{n}": f"Song {n}" for n in range(40)})


async def ask(app, method: str, path: str, query: str, headers, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to a request."""
    sent: list[dict] = []
    given_away = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return given_away.pop() if given_away else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode("ascii", "replace"), "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def check(path: str, status: int, answer: bytes) -> None:
    """Raise Wrong where an answer is none of those that may be."""
    if status >= 500 and status != 503:
        raise Wrong(f"status {status}")
    if path in ("/metrics", "/"):
        return
    found = json.loads(answer, parse_constant=lambda name: (_ for _ in ()).throw(Wrong(f"{name} is no JSON")))
    if status >= 400 and (set(found) != {"error"} or set(found["error"]) != {"type", "message", "field"}):
        raise Wrong(f"an error of another form: {answer[:200]!r}")


def mutated(body: bytes, rng: random.Random) -> bytes:
    """A body that is a little different."""
    changed = bytearray(body or b"{}")
    for _ in range(rng.choice((1, 1, 2))):
        kind, at = rng.choice((0, 1, 2, 3, 3, 3, 3, 4)), rng.randrange(len(changed) + 1)
        if kind == 0 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 8)]
        elif kind == 2:
            changed[at:at] = rng.choice(VALUES).encode()
        elif kind == 3 and b":" in changed:
            start = rng.choice([n for n, one in enumerate(changed) if one == ord(":")]) + 1
            end = next((n for n in range(start, len(changed)) if changed[n] in b",}"), len(changed))
            changed[start:end] = rng.choice(VALUES).encode()
        else:
            changed[at:at] = changed[at : at + 20]
    return bytes(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutations", type=int, default=3, help="further requests of each body")
    args = parser.parse_args()
    app, rng, loop = example_app(), random.Random(args.seed), asyncio.new_event_loop()
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    document = app.openapi()
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: Counter = Counter()
    wrong: list[str] = []
    began = time.perf_counter()

    def one(label: str, method: str, path: str, query: str, headers, body: bytes) -> None:
        try:
            status, answer = loop.run_until_complete(ask(app, method, path, query, headers, body))
            check(path, status, answer)
            statuses[label, status] += 1
        except Exception as error:
            wrong.append(f"{label}: {type(error).__name__}: {error}; {method} {path}?{query} {body[:500]!r}")

    def send_all(operation, mode, n: int, of_each: int, good: list[bytes]) -> None:
        @seeded(args.seed)
        @settings(
            max_examples=n,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def send(case):
            prepared = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
            url, body = urlsplit(prepared.url), prepared.body or b""
            body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
            headers = [
                (name, value if isinstance(value, str) else value.decode("latin-1"))
                for name, value in prepared.headers.items()
            ]
            target = operation.label, prepared.method, operation.path, url.query, headers
            one(*target, body)
            for _ in range(of_each - 1):  # of this one, and of those that could be answered
                one(*target, mutated(rng.choice([body, *good]), rng))

        send()

    # POST has more to be wrong about.
    weights = {id(operation): 6 if operation.method.upper() == "POST" else 1 for operation in operations}
    each = args.requests / sum(weights.values())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):  # what there was until then is told all the same
        for operation in operations:
            of_each = 1 + args.mutations * (operation.method.upper() == "POST")
            post = document["paths"][operation.path].get("post")
            content = post["requestBody"]["content"] if post else {}
            good = [json.dumps(one["value"]).encode() for some in content.values() for one in some["examples"].values()]
            n = max(1, round(each * weights[id(operation)] / of_each / 2))
            for mode in schemathesis.GenerationMode:
                if mode.name == "NEGATIVE" and operation.path in ("/metrics", "/healthz"):
                    continue  # nothing can be wrong

                send_all(operation, mode, n, of_each, good)
    for (label, status), count in sorted(statuses.items()):
        print(f"{label:20} {status} {count:7,}")
    print(f"{sum(statuses.values()):,} answers in {time.perf_counter() - began:.0f} s, {len(wrong)} wrong")
    for text in wrong[:10]:
        print(text)
    return bool(wrong)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # not after threads of clients that were ended in the middle of a request
