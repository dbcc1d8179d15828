"""A fitted model on disk: a folder with one safetensors file and one JSON file, no pickles; and npz files of implicit.

``model.json`` names the tensor file, ``model-<first 16 digits of its SHA-256>.safetensors``, with its size and hash.
A save writes a new tensor file beside the old one and then replaces ``model.json`` in one rename: at every instant the
folder holds either the earlier model or the new one, whole. What is no longer named is removed after that.

``README.md`` beside them is for people: no hash of the model covers it, nothing is read from it, and once somebody has
edited it, no save writes it again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from wals_gpu.checks import as_path, warn
from wals_gpu.errors import ModelFormatError
from wals_gpu.system import exclusive, open_file

__all__ = [
    "CURRENT", "POINTER", "StoredTensors", "append_seal", "folder_digest", "load_folder", "load_metadata", "load_npz",
    "open_folder", "real_folder", "remove_folder", "save_folder", "version_of", "whole_file",
]  # fmt: skip

FORMAT_VERSION = 1

Tensors = TypeVar("Tensors")

#: What leads to the model in use, in a folder of several: a link, or where there are none a file with its name.
CURRENT = "current"
POINTER = re.compile(r"[0-9A-Za-z][\w.-]{0,99}\n?")

_JSON = "model.json"
_CARD = "README.md"
_SEAL = "<!-- sha256 {}: this page as it was written with the model. Edit it, and later saves leave it alone. -->\n"
_TENSOR_FILE = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"\.model-[0-9a-f]{16}\.tmp")
_DTYPES = {
    **{f"float{n}": f"F{n}" for n in (16, 32, 64)},
    **{f"int{n}": f"I{n}" for n in (8, 16, 32, 64)},
    **{f"uint{n}": f"U{n}" for n in (8, 16, 32, 64)},
    "bool": "BOOL",
}
_BLOCK = 1 << 20
_JSON_LIMIT = 1 << 26  # nothing in model.json grows with the data; parsed, a byte of JSON may take fifty
_MOST_COMPRESSION = 100  # an array of factors gives up a tenth of its size; beyond this an archive is made to deceive


def save_folder(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, Any],
    *,
    card: str | None = None,
) -> None:
    """Save named arrays and JSON-able metadata in a folder, in place of what an earlier save left there.

    Parameters
    ----------
    path : str or path
        Folder; made if it does not exist. Files in it that no save made are left alone.
    tensors : mapping of str to array
        Of float16/32/64, (u)int8/16/32/64 or bool, any shape.
    metadata : mapping
        Strings, finite numbers, bools, None, lists and dicts of them.
    card : str, optional
        A page about the model for people, in Markdown: ``README.md``, written when the model is whole. A page that is
        there and that no save wrote, or that somebody edited since, is left as it is, with a warning.

    Raises
    ------
    TypeError
        If an array or the metadata is of another kind.
    ValueError
        If the metadata hold NaN or infinity, or are larger than 64 MiB.
    OSError
        If a file cannot be written; the model that was there before is left as it was.

    Notes
    -----
    Data reach the disk (fsync) before the name does, so this holds for a killed process and for a power cut.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, np.ndarray) or tensor.dtype.name not in _DTYPES:
            got = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"tensors[{name!r}] must be an array of numbers or bools, got {got}")
    metadata_text = _canonical(dict(metadata))
    folder = as_path("path", path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "path must be a folder; there is a file of this name", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder) as to_disk:  # a second save waits, since each removes the files of the one before
        try:
            entry = _write_tensors(folder, tensors)
            to_disk()
            document = {
                "format": "wals_gpu",
                "format_version": FORMAT_VERSION,
                "versions": {name: version_of(name) for name in ("wals_gpu", "numpy", "safetensors")},
                "tensors": entry,
                "metadata_sha256": hashlib.sha256(metadata_text.encode()).hexdigest(),
                "metadata": json.loads(metadata_text),
            }
            text = (json.dumps(document, indent=1) + "\n").encode()
            if len(text) > _JSON_LIMIT:
                raise ValueError(f"metadata must fit into {_JSON_LIMIT} bytes of JSON, got {len(text)}")
            with _replacing(folder) as (file, rename):
                file.write(text)
                rename(_JSON)
            if card is not None:
                _write_card(folder, append_seal(card))
            to_disk()
        finally:
            _remove_leftovers(folder)


def append_seal(card: str) -> str:
    """A page with a last line that tells whether somebody has edited it since."""
    return card + _SEAL.format(hashlib.sha256(card.encode()).hexdigest())


def _write_card(folder: Path, text: str) -> None:
    path = folder / _CARD
    try:
        before = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        before = ""
    start = before.rstrip("\n").rfind("\n") + 1
    if before and append_seal(before[:start]) != before:
        warn(f"{path} was not written by a save, or was edited since: it is left as it is; remove it to have a new one")
        return
    with _replacing(folder) as (file, rename):
        file.write(text.encode())
        rename(_CARD)


def real_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a model that a name leads to at this moment.

    Parameters
    ----------
    path : str or path
        The folder itself; a link to it; a file that holds nothing but the name of a folder beside it; or a folder of
        several models, which has such a link or file with the name ``current``.

    Returns
    -------
    Path
        `path` itself where it leads nowhere else. What comes next may change any time: who reads several files reads
        them all from the folder that this gave.
    """
    folder = as_path("path", path)
    for _ in range(4):  # a link to a folder of several models, its current one; where links go round, enough is enough
        if folder.is_symlink():
            folder = Path(os.path.realpath(folder))
        elif folder.is_dir() and not (folder / _JSON).exists() and os.path.lexists(folder / CURRENT):
            folder = folder / CURRENT
        elif folder.name == CURRENT and (name := _pointed_at(folder)) is not None:
            folder = folder.parent / name
        else:
            break
    return folder


def _pointed_at(path: Path) -> str | None:
    """What a file names that stands for a link; None where it is none."""
    try:
        with _open_file(path) as file:
            name = file.read(128).decode()
    except (OSError, ModelFormatError, UnicodeDecodeError):
        return None
    return name.strip() if POINTER.fullmatch(name) else None


def load_folder(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Load what :func:`save_folder` saved, after checking every byte of it against its hash.

    Parameters
    ----------
    path : str or path
        The folder.

    Returns
    -------
    tensors : dict of str to array
        New, writable arrays.
    metadata : dict

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ModelFormatError
        If it holds no model, a damaged one, or one of a newer format; the message names the file and what is wrong.
    """
    return _read_folder(path, _read_tensors)


def open_folder(path: str | os.PathLike[str]) -> tuple[StoredTensors, dict[str, Any]]:
    """As :func:`load_folder`, every byte checked, but arrays are read when they are asked for, also rows of them.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    tensors : StoredTensors
        Of the file as it is now, even if a later save removes it.
    metadata : dict

    Raises
    ------
    FileNotFoundError, ModelFormatError
        As from :func:`load_folder`.
    """
    return _read_folder(path, lambda folder, entry: StoredTensors(_checked_tensors(folder, entry)))


class StoredTensors:
    """Arrays in a file, by name.

    Parameters
    ----------
    path : Path
        Of a safetensors file that was checked.

    Raises
    ------
    ModelFormatError
        It is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._damaged():
            self._file = cast(Any, safe_open(path, "numpy"))  # its methods have no types
            self._names = frozenset(self._file.keys())

    @contextlib.contextmanager
    def _damaged(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModelFormatError(f"{self._path} is damaged: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> NDArray[Any]:
        with self._damaged():
            array: NDArray[Any] = self._file.get_tensor(name)
            return array

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array, without reading it."""
        with self._damaged():
            return tuple(self._file.get_slice(name).get_shape())

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to before `stop` of an array."""
        with self._damaged():
            rows: NDArray[Any] = self._file.get_slice(name)[start:stop]
            return rows


def _read_folder(
    path: str | os.PathLike[str], read: Callable[[Path, Mapping[str, Any]], Tensors]
) -> tuple[Tensors, dict[str, Any]]:
    while True:
        folder = real_folder(path)
        if not folder.exists():
            raise FileNotFoundError(f"no model folder at {folder}")
        text = _read_json(folder)
        document = _parse(text, folder / _JSON)
        try:
            return read(folder, document["tensors"]), document["metadata"]
        except FileNotFoundError as error:
            if real_folder(path) == folder and _read_json(folder) == text:
                raise ModelFormatError(f"{error.filename} is missing: {folder} is not a whole model") from error
            # A save of another process removed the file between the two reads: take the new model.


def load_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone of what :func:`save_folder` saved, checked as there."""
    folder = real_folder(path)
    if not folder.exists():
        raise FileNotFoundError(f"no model folder at {folder}")
    metadata: dict[str, Any] = _parse(_read_json(folder), folder / _JSON)["metadata"]
    return metadata


def folder_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256, in hexadecimal, of what names the content of a model folder: another one for any other content.

    Raises
    ------
    FileNotFoundError, ModelFormatError
        There is no such folder, or it holds no model.
    """
    folder = real_folder(path)
    if not folder.exists():
        raise FileNotFoundError(f"no model folder at {folder}")
    return hashlib.sha256(_read_json(folder)).hexdigest()


def load_npz(file: str | os.PathLike[str] | IO[bytes], names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a file that ``numpy.savez`` wrote, as implicit does, without believing what it says of their sizes.

    Parameters
    ----------
    file : str, path or binary file that can seek
    names : collection of str
        The arrays to read, where they are there; others are not looked at.

    Returns
    -------
    dict of str to array
        New, writable arrays.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFormatError
        If it is no npz file, is damaged, or holds Python objects, which are never unpickled.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open(file, "rb")) if isinstance(file, (str, os.PathLike)) else file
        try:
            archive = stack.enter_context(zipfile.ZipFile(source))
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _read_npy(archive, members[name]) for name in names if name in members}
        except ModelFormatError as error:
            raise ModelFormatError(f"{file} is damaged: {error}") from None
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # zipfile and NumPy's parser of headers raise whatever comes up; zlib.error, TokenError
            raise ModelFormatError(f"{file} is damaged, or no npz file: {error!r}") from error


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    """The array of one member; no more memory than the archive has bytes, times what compression can explain."""
    name = info.filename
    if info.file_size > _MOST_COMPRESSION * max(info.compress_size, 1):
        raise ModelFormatError(f"{name} says that {info.compress_size} bytes hold {info.file_size}")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ModelFormatError(f"{name} has the npy version {version}; 1.0 and 2.0 are known")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(member)
        if dtype.kind not in "biufU":
            raise ModelFormatError(f"{name} holds {dtype}, not numbers or text; Python objects (pickles) are not read")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - member.tell():
            raise ModelFormatError(f"{name} says that it has the shape {shape} in {info.file_size} bytes")
        content = bytearray(member.read(size))
        if len(content) != size:
            raise ModelFormatError(f"{name} ends early")
    return np.ndarray(shape, dtype, content, order="F" if fortran_order else "C")


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove what :func:`save_folder` wrote, and the folder if nothing else is in it.

    Parameters
    ----------
    path : str or path
        A folder that holds a model; one that is not there is fine.

    Raises
    ------
    OSError
        If a file cannot be removed.
    """
    folder = as_path("path", path)
    if not (folder / _JSON).exists():
        return
    with exclusive(folder):
        (folder / _JSON).unlink()  # first: what is left by a kill in between is no model
        for entry in list(folder.iterdir()):
            if _TENSOR_FILE.fullmatch(entry.name) or _TEMPORARY.fullmatch(entry.name):
                entry.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _write_tensors(folder: Path, tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Write the tensor file under its final name; its entry for ``model.json``.

    Written here and not by safetensors: it is hashed on the way, no second copy is held in memory, the file gets
    the permissions that the umask asks for, and a full disk is an OSError.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + tensor.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest = hashlib.sha256()
    with _replacing(folder) as (file, rename):
        for part in _parts(text, tensors):
            digest.update(part)
            file.write(part)
        size = file.tell()
        name = f"model-{digest.hexdigest()[:16]}.safetensors"
        rename(name)
    return {"file": name, "bytes": size, "sha256": digest.hexdigest()}


def _parts(header: bytes, tensors: Mapping[str, NDArray[Any]]) -> Iterator[Any]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors.values():
        little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
        yield little.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when it is whole; what fails leaves an earlier one.

    A link stays, and what it leads to is replaced.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the file that was asked for
    finally:
        with contextlib.suppress(OSError):  # not instead of what went wrong
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """A new file and the call that gives it its name, for good and in one step."""
    temporary = folder / f".model-{secrets.token_hex(8)}.tmp"
    with open(temporary, "xb") as file:

        def rename(name: str) -> None:
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, folder / name)

        yield file, rename


def _remove_leftovers(folder: Path) -> None:
    """Remove what ``model.json`` does not name, of this save or of one that was killed; failing is harmless."""
    with contextlib.suppress(OSError, ModelFormatError):
        current = _parse(_read_json(folder), folder / _JSON)["tensors"]["file"] if (folder / _JSON).exists() else None
        for entry in list(folder.iterdir()):
            stale = _TENSOR_FILE.fullmatch(entry.name) and entry.name != current
            if stale or _TEMPORARY.fullmatch(entry.name):
                entry.unlink()


def _read_json(folder: Path) -> bytes:
    try:
        with _open_file(folder / _JSON) as file:
            if os.fstat(file.fileno()).st_size > _JSON_LIMIT:
                raise ModelFormatError(f"{folder / _JSON} is damaged: larger than {_JSON_LIMIT} bytes")
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "; it is a file of one: give the folder that it lies in" if (folder.parent / _JSON).is_file() else ""
        raise ModelFormatError(f"{folder} is not a model folder: it has no {_JSON}{advice}") from error


def _open_file(path: Path) -> BinaryIO:
    file = open_file(path)
    if file is None:
        raise ModelFormatError(f"{path} is damaged: it is not a file")
    return file


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    """The document in ``model.json``, every field of it checked."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != "wals_gpu":
        raise ModelFormatError(f"{path} does not describe a wals_gpu model")
    version = document.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ModelFormatError(
            f"{path} has format version {version}, written by a newer wals_gpu; this one reads up to {FORMAT_VERSION}"
        )
    if type(version) is not int or version < 1:
        raise ModelFormatError(f"{path} is damaged: format_version must be a positive integer, got {version!r}")
    entry, metadata = document.get("tensors"), document.get("metadata")
    if not isinstance(entry, dict) or not isinstance(metadata, dict):
        raise ModelFormatError(f"{path} is damaged: it must hold the objects 'tensors' and 'metadata'")
    name, size, digest = entry.get("file"), entry.get("bytes"), entry.get("sha256")
    if not isinstance(name, str) or not _TENSOR_FILE.fullmatch(name):
        raise ModelFormatError(f"{path} is damaged: {name!r:.80} is no name of a tensor file")
    if type(size) is not int or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ModelFormatError(f"{path} is damaged: the size and SHA-256 of {name} are not there")
    try:
        digest = hashlib.sha256(_canonical(metadata).encode()).hexdigest()
    except (ValueError, RecursionError) as error:  # NaN, infinity
        raise ModelFormatError(f"{path} is damaged: {error}") from error
    if digest != document.get("metadata_sha256"):
        raise ModelFormatError(f"{path} is damaged: the metadata do not have the SHA-256 noted with them")
    return document


def _checked_tensors(folder: Path, entry: Mapping[str, Any]) -> Path:
    """The file of the tensors, after a look at every byte of it."""
    path: Path = folder / entry["file"]
    digest = hashlib.sha256()
    with _open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry["bytes"]:
            raise ModelFormatError(f"{path} is damaged: {size} bytes, saved with {entry['bytes']}")
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != entry["sha256"]:
        raise ModelFormatError(f"{path} is damaged: its content does not have the SHA-256 noted in {_JSON}")
    return path


def _read_tensors(folder: Path, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    path = _checked_tensors(folder, entry)
    try:
        return safetensors.numpy.load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelFormatError(f"{path} is damaged: {error}") from error


def _canonical(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, allow_nan=False, ensure_ascii=True)


def version_of(package: str) -> str | None:
    """Of a package that is installed, else None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
