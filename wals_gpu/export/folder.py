"""Where an export goes to: a folder that is there as a whole or not at all, and its manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wals_gpu.checks import as_path, flag
from wals_gpu.data.files import version_of
from wals_gpu.model.vectors import ScoreVectors

__all__ = ["MANIFEST", "Export", "check_folder", "manifest_of", "new_folder", "optional_module", "write_manifest"]

MANIFEST = "manifest.json"
#: What the manifest of an export says that it is.
FORMAT = "wals_gpu export"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Export:
    """What was written, and how to ask it.

    Attributes
    ----------
    to : str
        The target, such as "faiss".
    where : str
        The folder, schema or collection.
    sizes : dict of str to int
        What is there: bytes of files, rows of tables.
    unit : {"bytes", "rows"}
        Of `sizes`.
    query : str
        A line of a program that finds ten items for the first user.
    manifest : dict
        What ``manifest.json``, or what stands for it, holds.
    """

    to: str
    where: str
    sizes: dict[str, int]
    unit: str
    query: str
    manifest: dict[str, Any] = field(repr=False)


def manifest_of(to: str, vectors: ScoreVectors, **more: Any) -> dict[str, Any]:
    """What is said of every export: of which model it is, and what its numbers mean."""
    return {
        "format": FORMAT,
        "format_version": 1,
        "to": to,
        "versions": {"wals_gpu": version_of("wals_gpu")},
        "n_users": vectors.n_users,
        "n_items": vectors.n_items,
        "factors": vectors.factors,
        "metric": "inner product",
        "user_ids": "row numbers" if vectors.user_ids is None else vectors.user_ids.kind,
        "item_ids": "row numbers" if vectors.item_ids is None else vectors.item_ids.kind,
        "factors_only": vectors.factors_only,
        **more,
    }


def check_folder(path: str | os.PathLike[str], overwrite: bool, argument: str = "path") -> None:
    """Refuse a folder that an export may not be written to, before any work; `argument` is named in errors.

    Raises
    ------
    FileExistsError
        There is an export and `overwrite` is False; or there is something else, which is never removed.
    NotADirectoryError
        There is a file.
    FileNotFoundError
        There is no folder to make it in.
    """
    folder, overwrite = as_path("path", path), flag("overwrite", overwrite)
    named = f"{argument}: {folder}"
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"{named} cannot be made: there is no folder {folder.parent}; make it first")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"{named} must be a folder; there is a file of this name")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        own = set(manifest["entries"]) | {MANIFEST} if manifest["format"] == FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    if not own:
        raise FileExistsError(f"{named} holds something else than an export; give a new or empty folder")
    if not flag("overwrite", overwrite):
        raise FileExistsError(f"{named} holds an export already; overwrite=True puts the new one in its place")
    if foreign := sorted(names - own):
        raise FileExistsError(
            f"{named} cannot be overwritten: it holds {foreign[0]!r:.60}, which is not of the export; move it away"
        )


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool) -> Iterator[Path]:
    """A folder beside `path` to write to, which takes its place at the end; what fails leaves an earlier one.

    Errors are those of :func:`check_folder`, at once.
    """
    check_folder(path, overwrite)
    folder = as_path("path", path).absolute()
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        check_folder(path, overwrite)  # again: writing may have taken long
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)  # as any other folder's, not for one user alone
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the manifest of a folder that is whole but for it; the manifest, and the bytes of each file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    listed = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files
    }
    whole = manifest | {"files": listed, "entries": sorted(entry.name for entry in folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return whole, {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def optional_module(name: str, package: str, to: str) -> Any:
    """A module of an optional package; ModuleNotFoundError says how to install it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an export to {to} needs the package {package}: pip install '{package}'", name=error.name
        ) from error
