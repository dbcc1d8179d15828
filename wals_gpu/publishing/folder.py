"""A folder of models of which one is in use: ``current`` leads to it, and is replaced in one step.

::

    models/
        current -> 20261130T020311Z     the model in use; a file with the name, where there are no links
        20261129T020254Z/               earlier ones, each a model's folder with published.json: how it came to be here
        20261130T020311Z/
        refused-20261128T020302Z/       models that were not to be published, if they were to be kept
        runs.jsonl                      a line for each run
        .lock .switch                   locks, of a run and of a change of `current`

Whoever opens ``models/current`` has the model before or the one after, whole (:func:`wals_gpu.data.files.real_folder`).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from wals_gpu.checks import as_path, did_you_mean, integer, warn
from wals_gpu.data.files import CURRENT, real_folder, whole_file
from wals_gpu.system import to_disk, try_lock

__all__ = ["BusyError", "ModelFolder", "now"]

LOG = "runs.jsonl"
PUBLISHED = "published.json"
_NAME = re.compile(r"\d{8}T\d{6}Z(-\d{3,6})?")
_REFUSED = "refused-"
_TEMPORARY = re.compile(r"\.(incoming|gone)-[0-9a-f]{16}")


class BusyError(RuntimeError):
    """Another run holds the folder."""


class ModelFolder:
    """See the module's text.

    Parameters
    ----------
    path : str or path
        Need not be there yet.

    Raises
    ------
    ValueError
        There is something else: a file, or a model's own folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path("path", path)
        if (self.path / "model.json").exists():
            raise ValueError(
                f"{self.path} is a model itself; a folder of models has one in each of its folders: give another name"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is there and is not a folder")
        if (self.path / CURRENT).is_dir() and not (self.path / CURRENT).is_symlink():
            raise ValueError(f"{self.path / CURRENT} must lead to a model, but is a folder itself: give another name")

    # ------------------------------------------------------------------------------------------------ what is there

    @property
    def current(self) -> str | None:
        """The name of the model in use; None where there is none."""
        target = real_folder(self.path / CURRENT)
        return target.name if target.name != CURRENT and (target / "model.json").is_file() else None

    def names(self) -> list[str]:
        """Models that were published, the earliest first."""
        if not self.path.is_dir():
            return []
        return sorted(entry.name for entry in self.path.iterdir() if _NAME.fullmatch(entry.name) and entry.is_dir())

    def about(self, name: str) -> dict[str, Any]:
        """What is known of how a model came to be published.

        Parameters
        ----------
        name : str
            One of :meth:`names`.

        Returns
        -------
        dict
            The record of its run; empty, where its file is gone or damaged.
        """
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.path / name / PUBLISHED).read_text("utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _before(self, name: str) -> str | None:
        """What was in use before a model: of the log, where the model's folder is damaged."""
        about = self.about(name) or next(
            (run for run in reversed(self.runs()) if run.get("decision") == "published" and run.get("model") == name),
            {},
        )
        found = about.get("previous")
        return found if isinstance(found, str) else None

    def runs(self) -> list[dict[str, Any]]:
        """The log, a dict for each run, the earliest first; a line that a crash cut off is passed over."""
        try:
            lines = (self.path / LOG).read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
        return found

    # ------------------------------------------------------------------------------------------------ one at a time

    @contextlib.contextmanager
    def locked(self, wait: float = 0.0) -> Iterator[None]:
        """Keep other runs out, as long as it lasts; what a killed one left is removed.

        Parameters
        ----------
        wait : float, default 0
            Seconds to wait for another run to end.

        Raises
        ------
        BusyError
            It did not.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock(".lock", wait):
            for entry in list(self.path.iterdir()):
                if _TEMPORARY.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)
            yield

    @contextlib.contextmanager
    def _lock(self, name: str, wait: float) -> Iterator[None]:
        path, until = self.path / name, time.monotonic() + wait
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not try_lock(fd):
                if time.monotonic() >= until:
                    holder = os.read(fd, 200).decode(errors="replace").strip()
                    raise BusyError(f"another run is using {self.path} ({holder or 'unknown'})")
                time.sleep(min(0.2, max(until - time.monotonic(), 0.01)))
            os.ftruncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()} since {now()}\n".encode())
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------------------------------------------ changes

    def publish(
        self, save: Callable[[Path], None], record: dict[str, Any], expected: str | None, keep: int
    ) -> tuple[str, bool]:
        """Write a model and make it the current one, unless another has become that meanwhile.

        Parameters
        ----------
        save : callable
            Writes the model to the folder that it is given.
        record : dict
            Of the run: it is written beside the model and to the log, with its name and the one before.
        expected : str, optional
            The model that was in use when the run began.
        keep : int
            How many models stay, the new one and the one before among them.

        Returns
        -------
        name : str
        is_current : bool
            False where `current` has changed: nothing is written but the line in the log.
        """
        integer("keep", keep, 2)
        temporary = self.path / f".incoming-{secrets.token_hex(8)}"
        try:
            save(temporary)
            with self._lock(".switch", 60.0):
                before = self.current
                name = self._new_name()
                record |= {"model": name, "previous": before}
                if before != expected:
                    record |= {
                        "decision": "refused",
                        "model": None,
                        "reason": f"the model in use changed during the run, from {expected} to {before}",
                    }
                    self._append(record)
                    return name, False
                _write(temporary / PUBLISHED, json.dumps(record, indent=1, allow_nan=False) + "\n")
                os.rename(temporary, self.path / name)
                try:
                    self._switch(name)
                except BaseException:
                    shutil.rmtree(self.path / name, ignore_errors=True)  # it was never in use
                    raise
                try:
                    self._append(record)
                except OSError as error:  # the model is in use, whatever the log says
                    warn(f"{name} is in use now, but the log could not be written: {error}")
            self._prune(keep)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return name, True

    def keep_refused(self, save: Callable[[Path], None], keep: int) -> str:
        """Write a model that is not to be published, to be looked at.

        Parameters
        ----------
        save : callable
            Writes the model to the folder that it is given.
        keep : int
            How many refused models stay, this one among them; the earliest go.

        Returns
        -------
        str
            The name of its folder.
        """
        temporary = self.path / f".incoming-{secrets.token_hex(8)}"
        try:
            save(temporary)
            name = _REFUSED + self._new_name()
            os.rename(temporary, self.path / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        refused = sorted(entry for entry in self.path.glob(f"{_REFUSED}*") if entry.is_dir())
        for entry in refused[: max(len(refused) - keep, 0)]:
            shutil.rmtree(entry, ignore_errors=True)
        return name

    def rollback(self, to: str | None = None) -> tuple[str, str | None]:
        """Go back to the model that was in use before the current one, or to a named one; the run is in the log.

        Parameters
        ----------
        to : str, optional
            One of :meth:`names`.

        Returns
        -------
        name : str
            The model that is in use now.
        before : str or None
            The one that was until now; None where `current` was gone, or led nowhere.

        Raises
        ------
        ValueError
            There is no model to go back to, or none of that name; or none is in use and `to` names none. Nothing has
            changed.
        """
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is no folder of models: there is nothing")
        with self._lock(".switch", 60.0):
            before, names = self.current, self.names()
            if not names:
                raise ValueError(f"{self.path} is no folder of models: there is none")
            if to is None:
                if before is None:
                    raise ValueError(f"to must name one of {', '.join(names)}: {self.path} has no model in use")
                to = self._before(before)
                if to is None:
                    raise ValueError(f"{before} was the first model of {self.path}: there is none before it")
                if to not in names:
                    others = ", ".join(name for name in names if name != before) or "no other"
                    raise ValueError(f"the model before {before} was {to}, which is gone; there is {others}")
            elif to not in names:
                hint = did_you_mean(to, names) or f"; there is {', '.join(names)}"
                raise ValueError(f"{self.path} has no model {to!r}{hint}")
            if not (self.path / to / "model.json").is_file():
                raise ValueError(f"{self.path / to} is not a whole model")
            if to == before:
                raise ValueError(f"{to} is in use already")
            self._switch(to)
            self._append({"time": now(), "decision": "rolled back", "model": to, "previous": before})
            return to, before

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a run to the log.

        Parameters
        ----------
        record : mapping
            Can be written as JSON.
        """
        with self._lock(".switch", 60.0):
            self._append(record)

    def _switch(self, name: str) -> None:
        """Make a model the current one: a new link, or a file where links cannot be, in the place of the old one."""
        temporary = self.path / f".{CURRENT}.{secrets.token_hex(8)}"
        try:
            try:
                os.symlink(name, temporary)
            except OSError:
                _write(temporary, f"{name}\n")
            os.replace(temporary, self.path / CURRENT)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync(self.path)

    def _append(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False, ensure_ascii=True) + "\n"
        fd = os.open(self.path / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.fstat(fd).st_size:
                os.lseek(fd, -1, os.SEEK_END)
                if os.read(fd, 1) != b"\n":  # a crash cut the line before
                    line = "\n" + line
            os.write(fd, line.encode())
            os.fsync(fd)
        finally:
            os.close(fd)

    def _new_name(self) -> str:
        """Later than all names that are there, in the order of texts, whatever the clock says."""
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        there = [entry.name.removeprefix(_REFUSED) for entry in self.path.iterdir()]
        newest = max((name for name in there if _NAME.fullmatch(name)), default="")
        if stamp > newest:
            return stamp
        stamp, _, n = newest.partition("-")
        return f"{stamp}-{int(n or 1) + 1:03}"

    def _prune(self, keep: int) -> None:
        """Remove the earliest models, but not the current one and the one before it."""
        current = self.current
        if current is None:
            return
        needed = {current, self._before(current)}
        spare = [name for name in self.names() if name not in needed]
        n_needed = sum(name in needed for name in self.names())
        for name in spare[: max(len(spare) + n_needed - keep, 0)]:
            gone = self.path / f".gone-{secrets.token_hex(8)}"
            with contextlib.suppress(OSError):
                os.rename(self.path / name, gone)
                shutil.rmtree(gone, ignore_errors=True)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Have the names in a folder reach the disk."""
    with contextlib.suppress(OSError):
        to_disk(folder)
