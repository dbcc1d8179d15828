"""The web service: its answers are those of the model, errors say what is wrong, and models are replaced under load."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from wals_gpu import WALS, DataError
from wals_gpu.data.ids import Ids
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.serve import Limits, answers, make_app
from wals_gpu.serve.batching import ALONE, LOOK, Batcher, Full
from wals_gpu.serve.lookup import ItemSearch, UserSearch, rows_of
from wals_gpu.serve.models import Models

N_USERS, N_ITEMS = 60, 40


def plays(seed=0, numbers=False):
    rng = np.random.default_rng(seed)
    rows = [
        (user, item, float(rng.integers(1, 5)))
        for user in range(N_USERS)
        for item in range(N_ITEMS)
        if rng.random() < (0.5 if user % 4 == item % 4 else 0.05)
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "count"])
    if not numbers:
        table["user_id"], table["item_id"] = (
            table["user_id"].map("u{:02}".format),
            table["item_id"].map("i{:02}".format),
        )
    return table


def fitted(seed=0, numbers=False, **options):
    return WALS(factors=8, objective="hu", alpha=10, num_threads=1, **options).fit(plays(seed, numbers))


TITLES = {f"i{n:02}": f"Song number {n}" for n in range(N_ITEMS)} | {"i07": 'Blue "Train" </script>'}
CATEGORIES = {f"i{n:02}": "ab"[n % 2] for n in range(N_ITEMS)}


@pytest.fixture(scope="module")
def model():
    return fitted()


@pytest.fixture(scope="module")
def client(model):
    limits = Limits(max_k=30, max_body=20_000)
    return TestClient(make_app(model, titles=TITLES, categories=CATEGORIES, limits=limits))


def ask(client, path, status=200, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def pairs(answer):
    return [(one["item"], one["score"]) for one in answer["items"]]


def of(found):
    ids, scores = found
    return [(item, float(score)) for item, score in zip(ids.tolist(), scores, strict=True) if item is not None]


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, {}),
        ({"k": 3}, {"k": 3}),
        ({"filter_seen": False}, {"filter_seen": False}),
        ({"deny": ["i00", "i04", "none"]}, {"deny_items": ["i00", "i04"]}),
        ({"allow": ["i01", "i02", "i03", "none"]}, {"allow_items": ["i01", "i02", "i03"]}),
        ({"diversity": 0.5}, {"diversity": 0.5}),
        ({"popularity_penalty": 0.7}, {"popularity_penalty": 0.7}),
        ({"quotas": 2, "k": 5}, {"quotas": 2, "k": 5, "categories": CATEGORIES}),
        (
            {"quotas": {"b": [2, 3], "a": 1}, "k": 6, "diversity": 0.2},
            {"quotas": {"b": (2, 3), "a": 1}, "k": 6, "diversity": 0.2, "categories": CATEGORIES},
        ),
        ({"explore": "ucb", "noise": 0.3}, {"explore": "ucb", "noise": 0.3}),
        ({"explore": "thompson", "seed": 4}, {"explore": "thompson", "random_state": 4}),
    ],
)
def test_lists_are_those_of_the_model(client, model, body, options):
    """To the last bit of the scores, with titles."""
    answer = ask(client, "/recommend", users=["u05", "u10", "u05"], **body)
    for user, one in zip(["u05", "u10", "u05"], answer["lists"], strict=True):
        assert pairs(one) == of(model.recommend(user, **options))
        assert (one["user"], one["known"], one["source"]) == (user, True, "model")
        assert all(item["title"] == TITLES[item["item"]] for item in one["items"])


def test_sessions_are_those_of_recommend_for(client, model):
    table = pd.DataFrame(
        [("a", "i01", 1.0), ("a", "i05", 3.0), ("b", "i02", 1.0)], columns=["user_id", "item_id", "count"]
    )
    sessions = [["i01", {"item": "i05", "value": 3}, "what"], ["i02"], ["what"]]
    answer = ask(client, "/recommend", sessions=sessions, k=5)["lists"]
    expected = model.recommend_for(table, 5)
    assert [pairs(one) for one in answer[:2]] == [of((expected.ids[row], expected.scores[row])) for row in range(2)]
    assert [one.get("unknown_items") for one in answer] == [["what"], None, ["what"]]
    assert [(one["known"], one["source"]) for one in answer] == [(True, "model")] * 2 + [(False, "popularity")]


def test_whom_nobody_knows_gets_what_is_popular_and_is_told_so(client, model):
    (one,) = ask(client, "/recommend", users=["nobody"], k=4)["lists"]
    assert pairs(one) == of(model.recommend("nobody", 4, unknown="popular"))
    assert (one["user"], one["known"], one["source"]) == ("nobody", False, "popularity")


def test_neighbours(client, model):
    answer = ask(client, "/similar", items=["i03", "i08"], k=4, deny=["i07"])
    for item, one in zip(["i03", "i08"], answer["lists"], strict=True):
        assert [(s["item"], s["score"]) for s in one["similar"]] == of(
            model.similar_items(item, 4, deny_items=["i07", item])
        )
        assert (one["item"], one["title"]) == (item, TITLES[item])
    (one,) = ask(client, "/similar", users=["u03"], k=3, deny=["u07"])["lists"]
    ids, scores = model.similar_users("u03", 4, deny_users=["u07"])
    assert [(s["user"], s["score"]) for s in one["similar"]] == of((ids[1:], scores[1:]))


def test_lists_longer_than_the_catalogue_end_with_it(model):
    client, k = TestClient(make_app(model, limits=Limits(max_k=10**15))), 10**15
    assert len(ask(client, "/recommend", users=["u03"], k=k, filter_seen=False)["lists"][0]["items"]) == N_ITEMS
    assert len(ask(client, "/similar", items=["i07"], k=k)["lists"][0]["similar"]) == N_ITEMS - 1
    assert len(ask(client, "/similar", users=["u03"], k=k)["lists"][0]["similar"]) == N_USERS - 1
    assert ask(client, "/explain", user="u03", item="i07", k=k)["others"] == pytest.approx(0, abs=1e-9)


def test_reasons(client, model):
    why, expected = ask(client, "/explain", user="u03", item="i07", k=2), model.explain("u03", "i07", 2)
    assert why["score"] == expected.score
    assert [(one["item"], one["adds"]) for one in why["because"]] == list(
        zip(expected.ids, expected.contributions, strict=True)
    )
    assert why["others"] == pytest.approx(expected.score - expected.contributions.sum(), abs=1e-9)
    session = pd.DataFrame([("a", "i01", 1.0)], columns=["user_id", "item_id", "count"])
    assert ask(client, "/explain", session=["i01"], item="i05")["score"] == model.explain_for(session, "i05").score


def test_what_a_user_has_and_what_can_be_typed(client, model):
    has = client.get("/history", params={"user": "u05"}).json()
    own = plays()[plays()["user_id"] == "u05"].sort_values("count", ascending=False)
    assert has["count"] == len(own) == len(has["items"])
    assert [one["value"] for one in has["items"]] == own["count"].tolist()
    assert client.get("/users", params={"prefix": "u1"}).json()["users"] == [f"u1{n}" for n in range(10)]
    hits = client.get("/items", params={"prefix": "train blu"}).json()["items"]
    assert [(one["item"], one["title"]) for one in hits] == [("i07", TITLES["i07"])]
    popular = client.get("/items", params={"limit": 5}).json()["items"]
    counts = plays()["item_id"].value_counts()
    assert [one["popularity"] for one in popular] == counts.tolist()[:5]


def test_texts_and_numbers_as_ids():
    """The "7" of JSON finds the 7 of a model, and the other way round; ids that no model could have find nothing."""
    model = fitted(numbers=True)
    client = TestClient(make_app(model))
    lists = ask(client, "/recommend", users=[7, "7", "007", "x", 2**63, -1])["lists"]
    assert pairs(lists[0]) == pairs(lists[1]) == of(model.recommend(7))
    assert [one["known"] for one in lists] == [True, True, False, False, False, False]
    assert "title" not in lists[0]["items"][0]
    texts = Ids.encode(pa.array(["7", "70", "a"]))[0]
    assert rows_of(texts, 3, [7, "a", 8]).tolist() == [0, 2, -1]
    assert rows_of(None, 3, [2, "2", 3, -1, "-0"]).tolist() == [2, 2, -1, -1, -1]
    numbers = Ids(np.array([-3, 0, 7, 8, 70, 79, 700, 7000], np.int64))
    search = UserSearch(numbers, 8)
    assert numbers[search.find("7", 9)].tolist() == [7, 70, 79, 700, 7000]
    assert search.find("7", 2).tolist() == [2, 4] and search.find("x", 2).size == 0
    assert UserSearch(None, 30).find("2", 20).tolist() == [2, *range(20, 30)]


def test_users_are_found_in_either_case(client):
    assert client.get("/users", params={"prefix": "U1"}).json()["users"] == [f"u1{n}" for n in range(10)]
    ids = Ids.encode(pa.array(["anna", "Anne", "ANTON", "Ärger", "ärmel", "Straße 1", "zoe"]))[0]
    search = UserSearch(ids, 7)

    def found(prefix, limit=9):
        return ids.take(search.find(prefix, limit)).tolist()

    assert found("an") == found("AN") == ["anna", "Anne", "ANTON"] and found("aN", 2) == ["anna", "Anne"]
    assert found("är") == found("ÄR") == ["Ärger", "ärmel"] and found("STRASSE") == ["Straße 1"]
    assert found("") == ["anna", "Anne", "ANTON", "Straße 1", "zoe", "Ärger", "ärmel"] and found("b") == []


def test_items_are_found_by_words():
    titles = pa.array(["The Cat", "cattle", "A cat and a dog", "Concat", None], pa.large_string())
    names = pa.array(list("abcde"), pa.large_string())
    search = ItemSearch(names, titles, np.array([1, 9, 5, 100, 7]))
    assert search.find("cat", 9).tolist() == [1, 2, 0, 3]  # begins so, has such words, has it inside
    assert search.find("dog CAT", 9).tolist() == [2] and search.find("e", 1).tolist() == [4]
    assert search.find("", 2).tolist() == [3, 1] and search.find("(*", 2).size == 0


def test_monitors_may_ask_for_the_head_alone(model):
    client = TestClient(make_app(model))
    for path in ("/healthz", "/metrics", "/"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/recommend").status_code == 405
    assert set(client.get("/openapi.json").json()["paths"]["/healthz"]) == {"get"}


def test_texts(model):
    """Sentences are encoded by the model's encoder, each alone; a model without one says so."""

    def encode(texts):
        return np.array([[len(text), text.count("a"), text.count("7"), 1] for text in texts], float)

    items = np.random.default_rng(0).standard_normal((N_ITEMS, 4))
    texts = fitted(item_prior=LinearPrior(items, encoder=encode))
    client = TestClient(make_app(texts))
    lists = ask(client, "/recommend", texts=["a song", "77"], k=3, deny=["i00"])["lists"]
    for text, one in zip(["a song", "77"], lists, strict=True):
        assert one["text"] == text
        vector = texts.project_items([text])[0]
        assert pairs(one) == of(texts.search(vector, 3, metric="cosine", deny_items=["i00"]))
    assert client.get("/healthz").json()["has_texts"] is True
    other = TestClient(make_app(model))
    error = ask(other, "/recommend", 422, texts=["a song"])["error"]
    assert (error["type"], error["field"]) == ("no_texts", "texts") and "encoder" in error["message"]
    assert "encoder" in other.get("/healthz").json()["why_no_texts"]


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "body", "status", "type_", "field", "words"),
    [
        ("/recommend", {}, 422, "invalid_request", None, "exactly one of users, sessions and texts"),
        ("/recommend", {"users": ["a"], "texts": ["b"]}, 422, "invalid_request", None, "got users and texts"),
        ("/recommend", {"users": []}, 422, "invalid_request", "users", "at least 1"),
        ("/recommend", {"users": "a"}, 422, "invalid_request", "users", "array"),
        ("/recommend", {"users": ["a", 1.5]}, 422, "invalid_request", "users[1]", "a text or an integer"),
        ("/recommend", {"users": [True]}, 422, "invalid_request", "users[0]", "a text or an integer"),
        ("/recommend", {"users": [10**30]}, 422, "invalid_request", "users[0]", ""),
        ("/recommend", {"users": ["a" * 513]}, 422, "invalid_request", "users[0]", ""),
        ("/recommend", {"users": ["a"] * 257}, 422, "invalid_request", "users", "256"),
        ("/recommend", {"users": ["a"], "k": 31}, 422, "invalid_request", "k", "30"),
        ("/recommend", {"users": ["a"], "k": "3"}, 422, "invalid_request", "k", "integer"),
        ("/recommend", {"users": ["a"], "top": 3}, 422, "invalid_request", "top", "not known"),
        ("/recommend", {"users": ["a"], "noise": 1}, 422, "invalid_request", None, "noise needs explore"),
        ("/recommend", {"users": ["a"], "diversity": 2}, 422, "invalid_request", "diversity", "1"),
        ("/recommend", {"users": ["a"], "popularity_penalty": -1}, 422, "invalid_request", "popularity_penalty", "0"),
        ("/recommend", {"users": ["u01"], "quotas": {"z": 1}}, 422, "not_possible", None, "no item has 'z'"),
        ("/recommend", {"users": ["u01"], "quotas": {"a": [3, 1]}}, 422, "not_possible", None, "at least 3"),
        ("/recommend", {"users": ["a"] * 17, "quotas": 1}, 422, "invalid_request", "quotas", "16"),
        ("/recommend", {"sessions": [["a", {"item": 1.5}]]}, 422, "invalid_request", "sessions[0][1].item", ""),
        (
            "/recommend",
            {"sessions": [["i00", {"item": "i01", "value": 1e9}]]},
            422,
            "invalid_request",
            "sessions[0][1].value",
            "",
        ),
        ("/recommend", {"users": ["a"] * 17, "explore": "ucb"}, 422, "invalid_request", "explore", "16"),
        ("/recommend", {"texts": ["x"], "explore": "ucb"}, 422, "invalid_request", None, "texts"),
        ("/recommend", {"users": ["a" * 500] * 50}, 413, "too_large", None, "20000 bytes"),
        ("/similar", {"items": ["i00", "x"]}, 404, "unknown_item", "items[1]", "'x'"),
        ("/similar", {"users": ["x"]}, 404, "unknown_user", "users[0]", "'x'"),
        ("/similar", {"users": ["x"], "items": ["i00"]}, 422, "invalid_request", None, "got both"),
        ("/explain", {"user": "x", "item": "i00"}, 404, "unknown_user", "user", "'x'"),
        ("/explain", {"user": "u00", "item": "x"}, 404, "unknown_item", "item", "'x'"),
        ("/explain", {"session": ["x"], "item": "i00"}, 404, "unknown_item", "session", "'x'"),
        ("/explain", {"user": "u00"}, 422, "invalid_request", "item", "is missing"),
    ],
)
def test_errors_say_what_is_wrong_and_where(client, path, body, status, type_, field, words):
    error = ask(client, path, status, **body)["error"]
    assert set(error) == {"type", "message", "field"} and error["type"] == type_ and words in error["message"]
    if field is not None:
        assert error["field"] == field and (status == 413 or field in error["message"])


def test_errors_of_http_have_the_same_form(client):
    response = client.post("/recommend", content=b"{")
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_json")
    response = client.get("/recommend")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert client.get("/nothing").json()["error"]["type"] == "not_found"
    assert client.get("/items", params={"limit": 0}).json()["error"]["field"] == "limit"
    assert client.get("/items", params={"what": 0}).status_code == 422


def test_what_one_request_does_wrong_is_not_told_another(client, model):
    """They are answered by one search, which fails for one of them."""
    served = Models(model).current
    options = answers.Options("items", 3)
    good, bad = answers.Query(options, ["i00"]), answers.Query(options, ["none"])
    first, second, third = answers.answer(served, [good, bad, good])
    assert first == third == answers.answer(served, [good])[0] and second.type == "unknown_item"


def test_a_mistake_of_ours_is_an_error_of_the_same_form(model, monkeypatch):
    def broken(*_):
        raise RuntimeError("not for the eyes of users")

    monkeypatch.setattr(answers, "explain", broken)
    client = TestClient(make_app(model), raise_server_exceptions=False)
    error = ask(client, "/explain", 500, user="u00", item="i00")["error"]
    assert error["type"] == "internal" and "eyes" not in error["message"]


def test_only_hosts_that_are_served(model):
    app = make_app(model, allowed_hosts=["localhost", "[::1]"])
    for host, status in (("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:80", 200), ("evil.example", 421)):
        response = TestClient(app).get("/healthz", headers={"host": host})
        assert response.status_code == status, host
    assert response.json()["error"]["type"] == "wrong_host"
    with pytest.raises(
        TypeError, match="allowed_hosts must be a list of names, got 'localhost'"
    ):  # each letter was one
        make_app(model, allowed_hosts="localhost")
    with pytest.raises(TypeError, match=r"source must be a str or a pathlib\.Path, got None"):
        make_app(None)


def test_mounted_in_another_application_and_behind_middleware(model):
    """Middleware that is added stands before every route, those that are answered directly too."""
    app, outer = make_app(model), FastAPI()

    @app.middleware("http")
    async def only_with_a_key(request, call_next):
        return await call_next(request) if "key" in request.headers else Response(status_code=401)

    outer.mount("/lists", app)
    client = TestClient(outer)
    assert client.post("/lists/recommend", json={"users": ["u05"]}).status_code == 401
    client.headers["key"] = "1"
    assert pairs(ask(client, "/lists/recommend", users=["u05"])["lists"][0]) == of(model.recommend("u05"))
    assert ask(client, "/lists/recommend", 422, users=[])["error"]["field"] == "users"
    assert client.post("/recommend", json={"users": ["u05"]}).status_code == 404
    text = client.get("/lists/metrics").text
    assert 'wals_requests_total{path="/recommend",status="200"} 1.0' in text
    assert 'wals_requests_total{path="/recommend",status="422"} 1.0' in text


def test_categories_are_those_of_the_table_of_titles(model, tmp_path):
    table = tmp_path / "items.csv"
    table.write_text("item_id,title,genre\n" + "".join(f"{item},{item},{CATEGORIES[item]}\n" for item in CATEGORIES))
    client = TestClient(make_app(model, titles=table))
    assert client.get("/healthz").json()["categories"] == 2
    (one,) = ask(client, "/recommend", users=["u05"], k=6, quotas={"b": 1})["lists"]
    assert sum(CATEGORIES[item["item"]] == "b" for item in one["items"]) == 1 and len(one["items"]) == 6
    plain = TestClient(make_app(model, titles=TITLES))
    assert plain.get("/healthz").json()["categories"] is None
    error = ask(plain, "/recommend", 422, users=["u05"], quotas=1)["error"]
    assert (error["type"], error["field"]) == ("no_categories", "quotas")
    with pytest.raises(ValueError, match="category_column needs categories, or titles in a table"):
        make_app(model, category_column="genre")
    with pytest.raises(DataError, match="kind"):
        make_app(model, titles=table, category_column="kind")


# ------------------------------------------------------------------------------------------------------------ batching


def test_a_batch_gives_the_bits_of_single_requests(model, monkeypatch):
    served = Models(model, TITLES, categories=CATEGORIES).current
    rng = np.random.default_rng(0)
    users = [f"u{n:02}" for n in range(N_USERS)] + ["nobody"]
    options = [{}, {"k": 3}, {"diversity": 0.4}, {"explore": "ucb"}, {"explore": "thompson", "seed": 2}]
    options += [{"quotas": 2}, {"quotas": (("a", 1), ("b", (1, 4)))}, {"popularity_penalty": 0.5}]
    queries = [
        answers.Query(answers.Options("users", **({"k": 9} | some)), [user]) for user in users for some in options
    ]
    for n in range(N_ITEMS):
        deny = [f"i{one:02}" for one in rng.integers(N_ITEMS, size=3)]
        session = [f"i{n:02}", f"i{(n + 4) % N_ITEMS:02}"]
        queries.append(answers.Query(answers.Options("sessions", 9), [session], deny if n % 2 else []))
        allowed = answers.Options("users", 9, has_allow=True)
        queries.append(answers.Query(allowed, [users[n]], deny, [f"i{one:02}" for one in range(n, N_ITEMS)]))
        queries.append(answers.Query(answers.Options("items", 9), [session[0]], deny if n % 2 else []))
    order = rng.permutation(len(queries))
    queries = [queries[at] for at in order]
    together = answers.answer(served, queries)
    assert together == [answers.answer(served, [query])[0] for query in queries]
    assert all(isinstance(one, bytes) and b'"score"' in one for one in together)
    monkeypatch.setattr(answers, "_SUBJECTS", 7)  # as a batch that is too large for one search
    monkeypatch.setattr(answers, "_LISTED", 50)
    assert answers.answer(served, queries) == together


def test_requests_that_wait_are_the_next_batch():
    """The first is begun at once; the others, which come while it is worked on, are one batch."""
    begun, go_on, sizes = threading.Event(), threading.Event(), []

    def answer(requests):
        sizes.append(len(requests))
        begun.set()
        assert go_on.wait(10)
        return [ValueError(one) if one == 3 else one * 10 for one in requests]

    async def run():
        batcher = Batcher(answer, most_waiting=5, most_at_once=4)
        tasks = [asyncio.create_task(batcher.ask(0))]
        await asyncio.to_thread(begun.wait, 10)
        tasks += [asyncio.create_task(batcher.ask(one)) for one in range(1, 6)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batcher.ask(6)
        tasks[2].cancel()  # who asked has gone away
        await asyncio.sleep(0)
        go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        assert await batcher.ask(7) == 70  # it begins again
        batcher.close()
        return found

    found = asyncio.run(run())
    assert sizes == [1, 4, 1] and found[:2] == [0, 10] and found[4:] == [40, 50]
    assert isinstance(found[2], asyncio.CancelledError) and isinstance(found[3], ValueError)


def test_a_small_request_that_comes_alone_is_answered_on_the_spot(monkeypatch):
    """In the thread of the loop, once the last one was quick; not where others came with it, nor while it is slow."""
    answered, pause, now = [], [0.0], [0.0]
    monkeypatch.setattr("wals_gpu.serve.batching.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def answer(requests):
        now[0] += pause[0]
        answered.append((len(requests), threading.current_thread() is threading.main_thread()))
        return [ValueError("no") if one < 0 else one for one in requests]

    async def run():
        batcher = Batcher(answer, most_waiting=50)
        for one in (1, 2):
            assert await batcher.ask(one, is_small=True) == one
        with pytest.raises(ValueError, match="no"):
            await batcher.ask(-1, is_small=True)
        assert await batcher.ask(3) == 3
        together = await asyncio.gather(*(batcher.ask(one, is_small=True) for one in range(4)))
        assert together == [0, 1, 2, 3]
        pause[0] = 0.02
        for one in (4, 5):
            await batcher.ask(one, is_small=True)
        pause[0] = 0.0
        for one in (6, 7):
            await batcher.ask(one, is_small=True)
        batcher.close()

    asyncio.run(run())
    n = len(answered)
    assert answered[:4] == [(1, False), (1, True), (1, True), (1, False)]
    assert sum(size for size, _ in answered[4:-4]) == 4 and not any(here for _, here in answered[4:-4])
    # Slow: the first took too long for the second, and that one for the third, after which all is well again.
    assert answered[n - 4 :] == [(1, True), (1, False), (1, False), (1, True)]


def test_after_many_that_were_alone_few_are_looked_at_until_others_come():
    """Those who come together then are noticed after a few of them, and go together as before."""
    on_the_spot = []

    def answer(requests):
        on_the_spot.append(threading.current_thread() is threading.main_thread())
        return requests

    async def run():
        batcher = Batcher(answer, most_waiting=100)
        for one in range(ALONE + 2):
            assert await batcher.ask(one, is_small=True) == one
        for most in (LOOK, 0):
            on_the_spot.clear()
            assert await asyncio.gather(*(batcher.ask(one, is_small=True) for one in range(50))) == list(range(50))
            assert sum(on_the_spot) <= most
        batcher.close()

    asyncio.run(run())


def test_who_asks_while_a_line_is_closed_is_answered():
    """By a new thread, which does not take the end of the first one for its own."""
    begun, go_on = threading.Event(), threading.Event()

    def answer(requests):
        begun.set()
        assert go_on.wait(10)
        return requests

    async def run():
        batcher = Batcher(answer, most_waiting=5)
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.to_thread(begun.wait, 10)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        while batcher._thread is not None:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(batcher.ask(2))
        await asyncio.sleep(0.01)
        go_on.set()
        assert await asyncio.wait_for(asyncio.gather(first, second, closing), 10) == [1, 2, None]
        batcher.close()

    asyncio.run(run())


def test_who_comes_when_too_many_wait_is_told_to_come_again(model):
    app = make_app(model, limits=Limits(max_waiting=1))
    held = threading.Event()
    served = app.state.models.current
    best, begun = served.best_items, threading.Event()

    def slow(*arguments, **options):
        begun.set()
        assert held.wait(20)
        return best(*arguments, **options)

    served.best_items = slow
    statuses = []

    def one():
        response = TestClient(app).post("/recommend", json={"users": ["u00"]})
        statuses.append((response.status_code, response.headers.get("retry-after")))

    threads = [threading.Thread(target=one) for _ in range(4)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    for _ in range(1000):
        if len(statuses) >= 2:
            break
        time.sleep(0.01)
    held.set()
    for thread in threads:
        thread.join()
    assert Counter(statuses) == {(200, None): 2, (503, "1"): 2}


# ---------------------------------------------------------------------------------------------------- another model


def test_the_model_is_replaced_under_load(tmp_path):
    """Threads ask while the folder is replaced twenty times: nobody fails, and every answer is of one version whole."""
    both = [fitted(seed) for seed in (1, 2)]
    both[0].save(tmp_path / "model")
    app = make_app(tmp_path / "model", num_threads=1, watch_every=0.01)
    models = app.state.models
    expected, seen, failures, stop = {}, Counter(), [], threading.Event()
    users = ["u01", "u02", "nobody"]

    def lists_of(model):
        return [of(model.recommend(user, 5, unknown="popular")) for user in users]

    expected[models.current.version] = lists_of(both[0])
    with TestClient(app) as client:

        def load():
            while not stop.is_set():
                answer = ask(client, "/recommend", users=users, k=5)
                if [pairs(one) for one in answer["lists"]] != expected[answer["model"]]:
                    failures.append(answer)
                seen[answer["model"]] += 1

        def guarded():
            try:
                load()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(20):
            last = models.current.version
            saved = both[(number + 1) % 2]
            # Its version is that of the folder's content, which is known before the folder is replaced.
            saved.save(tmp_path / "other")
            expected[Models(tmp_path / "other", num_threads=1).current.version] = lists_of(saved)
            saved.save(tmp_path / "model")
            for _ in range(2000):
                if models.current.version != last:
                    break
                time.sleep(0.005)
            assert models.current.version != last
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures and len(seen) == 2 and models.n_loaded == 21


def test_a_model_that_is_damaged_is_refused(tmp_path, caplog):
    """The old one goes on, /healthz says why as long as it is so, and a whole one is taken afterwards."""
    good, new = fitted(1), fitted(2)
    good.save(tmp_path / "model")
    models = Models(tmp_path / "model", num_threads=1, every=0.0)
    client = TestClient(make_app(models))
    before = ask(client, "/recommend", users=["u01"])
    new.save(tmp_path / "model")
    (tensors,) = (tmp_path / "model").glob("*.safetensors")
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not models.look() and not models.look()
    assert ask(client, "/recommend", users=["u01"]) == before
    assert "SHA-256" in client.get("/healthz").json()["last_error"]
    assert models.n_refused == 1 and caplog.text.count("is refused") == 1
    tensors.write_bytes(content)  # as of a copy that has come to its end
    assert models.look() and client.get("/healthz").json()["last_error"] is None
    assert pairs(ask(client, "/recommend", users=["u01"])["lists"][0]) == of(new.recommend("u01"))
    (tmp_path / "model").rename(tmp_path / "away")
    assert not models.look()
    ask(client, "/recommend", users=["u01"])
    assert "no model in" in client.get("/healthz").json()["last_error"]
    (tmp_path / "away").rename(tmp_path / "model")
    assert not models.look() and client.get("/healthz").json()["last_error"] is None


# ------------------------------------------------------------------------------------------------ what is beside them


def test_metrics(model):
    client = TestClient(make_app(model))
    for status, body in ((200, {"users": ["u00"]}), (200, {"users": ["u01"]}), (422, {})):
        ask(client, "/recommend", status, **body)
    client.get("/nothing/of/the/kind")
    lines = client.get("/metrics").text.splitlines()
    assert 'wals_requests_total{path="/recommend",status="200"} 2.0' in lines
    assert 'wals_requests_total{path="/recommend",status="422"} 1.0' in lines
    assert 'wals_requests_total{path="other",status="404"} 1.0' in lines
    assert 'wals_request_seconds_count{path="/recommend"} 3.0' in lines and "wals_batch_requests_count 2.0" in lines


def test_every_example_of_the_openapi_document_is_answered(client):
    document = client.get("/openapi.json").json()
    n = 0
    for path, methods in document["paths"].items():
        for example in methods.get("post", {}).get("requestBody", {"content": {}})["content"].values():
            for one in example["examples"].values():
                ask(client, path, **one["value"])
                n += 1
    assert n >= 7 and set(document["paths"]["/recommend"]["post"]["responses"]) == {
        "200",
        "400",
        "404",
        "413",
        "422",
        "503",
    }


def test_the_explorer_needs_nothing_from_elsewhere(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    outside = [url for url in re.findall(r"https?://[^'\"\s)]+", response.text) if "www.w3.org" not in url]
    assert not outside and " style=" not in response.text and not re.search(r"\son\w+=\"", response.text)


def test_hostile_requests(client):
    """What schemathesis makes of the OpenAPI document: a sample; docs/serving.md says how to run more."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    every = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    statuses = Counter()
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    for operation in (found.ok() for found in schema.get_all_operations()):
        if operation.path in ("/metrics", "/healthz"):
            continue
        for mode in schemathesis.GenerationMode:

            @seed(1)
            @settings(
                max_examples=15,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode))
            def check(case):
                response = case.call()
                statuses[case.operation.label, response.status_code] += 1
                case.validate_response(response, checks=every)

            check()
    assert sum(statuses.values()) >= 100 and max(status for _, status in statuses) < 500


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_k"):
        Limits(max_k=0)
