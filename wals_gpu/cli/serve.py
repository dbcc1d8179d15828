"""``wals-gpu serve``: a saved model as a web service, with an explorer for people."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from wals_gpu.cli.inputs import refuse_model
from wals_gpu.cli.options import add_computation, add_model_folder, add_titles, check_device, positive, whole_number
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.data.files import real_folder

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["add", "app_of_environment", "run"]

#: Where the processes that the first one starts find what they are to serve.
ENVIRONMENT = "WALS_GPU_SERVE"

EPILOG = """\
examples:
  wals-gpu serve model
  wals-gpu serve model --titles items.csv
  wals-gpu serve model --host 0.0.0.0 --port 80 --workers 4 --log json

Open http://127.0.0.1:8000 to look at lists of users, items and sentences. For
programs: /recommend, /similar, /explain, /healthz, /metrics, and openapi.json.
A model that is saved to the folder meanwhile takes the place of the old one,
without a pause. Needs: pip install 'wals_gpu[serve]'.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "serve", "serve a saved model on the web, with an explorer for people", run, EPILOG)
    add_model_folder(parser)
    place = parser.add_argument_group("where")
    place.add_argument(
        "--host", default="127.0.0.1", help="address (default 127.0.0.1: only this machine; 0.0.0.0: everybody)"
    )
    place.add_argument("--port", metavar="N", type=whole_number, default=8000, help="default 8000; 0: any that is free")
    place.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="also answer under this name (on 127.0.0.1, by default, only under those of this machine)",
    )  # fmt: skip
    place.add_argument(
        "--workers", metavar="N", type=positive, default=1, help="processes, each with its own copy of the model"
    )
    add_titles(parser)
    parser.add_argument(
        "--categories", metavar="FILE", type=Path,
        help="table of items with their categories, for quotas (default: --titles)",
    )  # fmt: skip
    parser.add_argument("--category-column", metavar="COLUMN", help="default: the one named like category or genre")
    parser.add_argument("--item-column", metavar="COLUMN", help="of both tables; default: the one named like item_id")
    parser.add_argument("--max-k", metavar="N", type=positive, default=200, help="items of a list (default 200)")
    parser.add_argument("--log", choices=["plain", "json"], default="plain", help="lines on standard error")
    parser.add_argument("--access-log", action="store_true", help="a line for each request")
    add_computation(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    try:
        import uvicorn

        from wals_gpu.serve.app import LOOPBACK
    except ImportError as error:
        raise ImportError(
            f"serve needs FastAPI, uvicorn and prometheus-client ({error}): pip install 'wals_gpu[serve]'",
            name=error.name,
        ) from error
    if not args.host.strip():  # to the system that is every address of this machine
        raise ValueError("--host must be a name or an address, got ''; 0.0.0.0 is everybody")
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port must be from 0 to 65535, got {args.port}")
    if args.titles is None and args.title_column is not None:
        raise ValueError("--title-column needs --titles FILE")
    if args.titles is not None:
        refuse_model(args.titles, "a table of items, for --titles")
        args.titles.stat()  # it is not there: said with the name of the option
    if args.categories is not None:
        refuse_model(args.categories, "a table of items, for --categories")
        args.categories.stat()
    elif args.category_column is not None and args.titles is None:
        raise ValueError("--category-column needs --categories FILE, or --titles FILE")
    if args.model.is_file() and real_folder(args.model) == args.model:
        raise ValueError(f"MODEL must be a folder that 'wals-gpu fit' saved; {args.model} is a file")
    check_device(args, args.max_k)
    _log_to(args.log)
    listening = _listen(args.host, args.port)
    port = listening.getsockname()[1]
    is_loopback = args.host in ("localhost", "127.0.0.1", "::1") or args.host.startswith("127.")
    hosts = [*LOOPBACK, args.host, *args.allow_host] if is_loopback or args.allow_host else None
    settings = {
        "model": str(args.model.absolute()),
        "titles": None if args.titles is None else str(args.titles.absolute()),
        "title_column": args.title_column,
        "categories": None if args.categories is None else str(args.categories.absolute()),
        "category_column": args.category_column,
        "item_column": args.item_column,
        "max_k": args.max_k,
        "device": args.device,
        "threads": args.threads,
        "hosts": hosts,
        "log": args.log,
    }
    shown = f"[{args.host}]" if ":" in args.host else args.host
    options: dict[str, Any] = {
        "log_config": None,
        "access_log": args.access_log,
        "server_header": False,
        "timeout_graceful_shutdown": 30,
        "timeout_keep_alive": 60,
        "backlog": 2048,
    }
    try:
        if args.workers == 1:
            server = uvicorn.Server(uvicorn.Config(_app_of(settings), **options))  # a signal while it loads ends it
            with _signals(lambda: server.should_exit):
                _announce(args, f"http://{shown}:{port}")
                server.run(sockets=[listening])
        else:
            with _signals(lambda: True):
                _serve_in_processes(args, settings, options, listening, f"http://{shown}:{port}")
    finally:
        listening.close()
    return 0


@contextlib.contextmanager
def _signals(is_obeyed: Callable[[], bool]) -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it has ended in order: that one is passed over, and one
    that came before uvicorn looked for signals is not."""

    def once_more(number: int, frame: FrameType | None) -> None:
        if not is_obeyed():
            raise KeyboardInterrupt

    before = {one: signal.signal(one, once_more) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _announce(args: argparse.Namespace, address: str) -> None:
    logging.getLogger("wals_gpu.serve").info("serving %s at %s", args.model, address)
    if args.json:
        print(json.dumps({"url": address}), flush=True)


def _serve_in_processes(
    args: argparse.Namespace, settings: dict[str, Any], options: dict[str, Any], listening: socket.socket, address: str
) -> None:
    """Several processes that share the socket; the first one starts them again where they end."""
    import uvicorn

    from wals_gpu.data.files import load_metadata

    load_metadata(args.model)  # what is wrong with the folder is said here, once
    with tempfile.TemporaryDirectory(prefix="wals-gpu-metrics-") as folder:
        os.environ[ENVIRONMENT] = json.dumps(settings)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where their counters meet
        _announce(args, address)
        app = "wals_gpu.cli.serve:app_of_environment"
        uvicorn.run(app, factory=True, workers=args.workers, fd=listening.fileno(), **options)


def app_of_environment() -> FastAPI:
    """The application of one of several processes."""
    settings = json.loads(os.environ[ENVIRONMENT])
    _log_to(settings["log"])
    return _app_of(settings)


def _app_of(settings: dict[str, Any]) -> FastAPI:
    from wals_gpu.serve import Limits, make_app

    app = make_app(
        settings["model"],
        titles=settings["titles"],
        title_column=settings["title_column"],
        categories=settings["categories"],
        category_column=settings["category_column"],
        item_column=settings["item_column"],
        limits=Limits(max_k=settings["max_k"]),
        allowed_hosts=settings["hosts"],
        device=settings["device"],
        num_threads=settings["threads"],
    )
    # What there is now stays. Python would look through all of it from time to time, 0.1 to 0.25 s without an answer.
    gc.collect()
    gc.freeze()
    return app


def _listen(host: str, port: int) -> socket.socket:
    """A socket at the address; an error that names the option where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"--port {port} of {host} is taken by another program; --port 0 takes a free one"
            ) from None
        if error.errno == errno.EACCES:
            raise ValueError(
                f"--port {port} needs rights that this program does not have; take one from 1024"
            ) from None
        raise ValueError(f"--host {host} is no address of this machine: {error.strerror or error}") from None
    listening.set_inheritable(True)
    return listening


class _Json(logging.Formatter):
    """A JSON object for each line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to(form: str) -> None:
    """Lines of the service and of uvicorn, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else logging.Formatter("wals-gpu: %(message)s"))
    for name, level in (
        ("wals_gpu.serve", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("uvicorn.access", logging.INFO),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
