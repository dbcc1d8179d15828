"""A hub on this machine: as much of the interface of huggingface_hub's server as uploads and downloads ask for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """What the server has: of each repository the files of each commit, newest last, and its branches."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, commit, path
        self.branches: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.url = ""

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[repo][self.commit(repo, revision)]

    def commit(self, repo: str, revision: str) -> str:
        return self.branches[repo].get(revision, revision)

    def add(self, repo: str, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{repo} {branch} {len(self.commits[repo])}".encode()).hexdigest()
        self.commits[repo][oid] = files
        self.branches[repo][branch] = oid
        return oid


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def nothing(self, code: str) -> None:
            self.answer({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

        def handle_all(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+)(?:/(.*))?)?", path):
                repo, what, rest = match[1], match[2], match[3] or "main"
                if repo not in hub.commits:
                    return self.nothing("RepoNotFound")
                return self.of_repo(repo, what, rest, body)
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
                return self.of_file(*match.groups())
            self.answer({}, 200 if path == "/api/validate-yaml" else 404)

        do_GET = do_HEAD = do_POST = do_PUT = handle_all

        def create(self, wanted: dict[str, Any]) -> None:
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            status = 409 if repo in hub.commits else 200
            if status == 200:
                hub.commits[repo], hub.branches[repo] = {}, {}
                hub.private[repo] = bool(wanted.get("private")) or wanted.get("visibility") == "private"
                hub.add(repo, "main", {".gitattributes": b""})
            self.answer({"url": f"{hub.url}/{repo}", "id": repo}, status)

        def of_repo(self, repo: str, what: str | None, rest: str, body: bytes) -> None:
            if what == "branch":
                status = 409 if rest in hub.branches[repo] else 200
                hub.branches[repo].setdefault(rest, hub.branches[repo]["main"])
                return self.answer({}, status)
            revision = rest.split("/")[0]
            oid = hub.commit(repo, revision)
            if oid not in hub.commits[repo]:
                return self.nothing("RevisionNotFound")
            files = hub.commits[repo][oid]
            if what == "preupload":
                listed = json.loads(body)["files"]
                found = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in listed]
                return self.answer({"files": found})
            if what == "commit":
                return self.take_commit(repo, revision, dict(files), body)
            entries = [
                {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": _oid(content)}
                for name, content in files.items()
            ]
            if what == "tree":
                return self.answer(entries)
            self.answer({"id": repo, "modelId": repo, "sha": oid, "siblings": entries, "tags": [], "private": True})

        def take_commit(self, repo: str, branch: str, files: dict[str, bytes], body: bytes) -> None:
            for line in body.decode().splitlines():
                operation = json.loads(line)
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            oid = hub.add(repo, branch, files)
            self.answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"})

        def of_file(self, repo: str, revision: str, name: str) -> None:
            if repo not in hub.commits:
                return self.nothing("RepoNotFound")
            oid = hub.commit(repo, revision)
            if oid not in hub.commits[repo]:
                return self.nothing("RevisionNotFound")
            content = hub.commits[repo][oid].get(name)
            if content is None:
                return self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            self.answer(content, ETag=f'"{_oid(content)}"', X_Repo_Commit=oid, Accept_Ranges="bytes")

    return Handler


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on this machine, at ``hub.url``."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
