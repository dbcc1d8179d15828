"""``wals-gpu serve``: a server that starts, answers, shows its explorer in a browser, and ends in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from programs import program

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytest_plugins = ["cli_fixtures"]

BROWSER = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
BROWSER += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def titles(tmp_path_factory):
    path = tmp_path_factory.mktemp("titles") / "songs.csv"
    lines = [f's{n:02},"Song number {n}, <i>live</i>"' for n in range(12)]
    path.write_text("\n".join(["item_id,title", *lines]) + "\n")
    return path


class Served:
    """A server in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "wals_gpu", "serve", *map(str, arguments), "--port", "0", "--json"]
        # Without the variables that tell processes where metrics of several meet, as a shell has it.
        environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.url = json.loads(self.process.stdout.readline())["url"]

    def get(self, path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def test_a_signal_while_the_model_is_read_is_obeyed(run, model, monkeypatch):
    """And not passed over, with a server that runs on."""
    monkeypatch.setattr("wals_gpu.cli.serve._app_of", lambda settings: signal.raise_signal(signal.SIGINT))
    assert run("serve", model, "--port", 0)[0] == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_server_from_start_to_end(model, titles, tmp_path):
    """It answers requests and a browser, only under its own names, and ends in order with status 0."""
    served = Served(model, "--titles", titles, "--threads", 1, "--log", "json", "--max-k", 20)
    try:
        assert served.url.startswith("http://127.0.0.1:")
        found = json.loads(served.get("/recommend", {"users": ["p01", "stranger"], "k": 3}))["lists"]
        assert [len(one["items"]) for one in found] == [3, 3] and [one["known"] for one in found] == [True, False]
        with pytest.raises(urllib.error.HTTPError) as refused:
            served.get("/healthz", Host="evil.example")
        assert refused.value.code == 421
        with pytest.raises(urllib.error.HTTPError) as refused:
            served.get("/recommend", {"users": ["p01"], "k": 21})
        assert json.load(refused.value)["error"]["field"] == "k"
        item = found[0]["items"][0]
        page = _page(served.url, f"/?user=p01&k=5&diversity=0.5&explore=0.3&open={item['item']}", tmp_path)
        assert page.count('class="item') == 5 and "For p01" in page
        assert item["title"].replace("<", "&lt;").replace(">", "&gt;") in page and "<i>live</i>" not in page
        assert "Similar items" in page and '<div class="adds">' in page  # the reasons of the item that is open
        page = _page(served.url, "/?user=stranger", tmp_path)
        assert "does not know “stranger”" in page
    finally:
        status, errors = served.end()
    assert status == 0 and "Traceback" not in errors
    assert "serving" in json.loads(errors.splitlines()[0])["message"]


def _page(url, path, tmp_path):
    """What a browser makes of a page."""
    command = [program("chromium"), *BROWSER, f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=8000"]
    done = subprocess.run([*command, "--dump-dom", url + path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_several_processes_share_port_and_metrics(model):
    served = Served(model, "--workers", 2, "--threads", 1)
    try:
        for _ in range(6):
            served.get("/recommend", {"users": ["p01"]})
        counted = b'wals_requests_total{path="/recommend",status="200"} 6.0'
        # A process counts a request once the answer has left: another one may be asked before that.
        assert any(counted in served.get("/metrics") or time.sleep(0.1) for _ in range(100))
    finally:
        status, errors = served.end()
    assert status == 0 and "Traceback" not in errors


def test_mistakes_are_one_line(run, model, tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = run("serve", model, "--port", port)
        assert status == 2 and f"--port {port} of 127.0.0.1 is taken" in errors
    for arguments, words in (
        ((model, "--port", 70000), "--port must be from 0 to 65535"),
        ((model, "--port", 0, "--host", ""), "--host must be a name or an address, got ''"),
        ((model, "--host", "192.0.2.1"), "--host 192.0.2.1 is no address of this machine"),
        ((model, "--port", 0, "--title-column", "x"), "--title-column needs --titles"),
        ((model, "--port", 0, "--titles", "none.csv"), "--titles: No such file or directory: none.csv"),
        ((model / "model.json", "--port", 0), "MODEL must be a folder"),
        ((tmp_path, "--port", 0), "is not a model folder"),
        ((tmp_path / "none", "--port", 0), "no model folder"),
    ):
        status, _, errors = run("serve", *arguments)
        assert status == 2 and words in errors and errors.count("\n") == 1, errors
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, errors = run("serve", model)
    assert status == 2 and "pip install 'wals_gpu[serve]'" in errors
