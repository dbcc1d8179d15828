"""Embeddings on disk, found again by the content of their text.

A store is a folder with two files that only ever grow, one record per text::

    vectors.f32   E float32 per record
    keys.bin      16 bytes of BLAKE2b of the text, 4 bytes of checksum over key and vector

A vector is written before its key, so whatever a killed process leaves behind is at most a torn tail: the next writer
cuts both files back to whole records. After a power cut a key can be on disk without its vector; the checksum tells.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.errors import DataError
from wals_gpu.system import exclusive

__all__ = ["EmbeddingStore"]

_KEY = np.dtype([("digest", "S16"), ("checksum", "<u4")])
_CHECKSUM_START = np.uint32(0x9E3779B9)  # so that a record of zeros, as a power cut leaves it, is not valid
_ABOUT = "about.json"


class EmbeddingStore:
    """Vectors of texts under one encoder with one set of settings.

    Parameters
    ----------
    folder : path
        Made when the first vectors come.
    about : dict
        What made the vectors, JSON-able; kept beside them for people, and compared: a store of another encoder is
        refused.

    Raises
    ------
    DataError
        The folder holds vectors of another encoder, or something else.
    """

    def __init__(self, folder: str | os.PathLike[str], about: dict[str, Any]) -> None:
        self._folder = Path(folder)
        self._about = about
        self._dimension: int | None = None
        self._read_about()

    def find(self, texts: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """The vectors that are there.

        Parameters
        ----------
        texts : sequence of n str

        Returns
        -------
        known : (n,) array of bool
        vectors : (known.sum(), E) array
            Of the known texts, in order.
        """
        nothing = np.zeros(len(texts), np.bool_), np.empty((0, self._dimension or 0), np.float32)
        self._read_about()
        if self._dimension is None:
            return nothing
        count = self._whole_records()
        if not count:
            return nothing
        keys = np.fromfile(self._folder / "keys.bin", _KEY, count)
        vectors = np.memmap(self._folder / "vectors.f32", "<f4", "r", shape=(count, self._dimension))
        order = np.argsort(keys["digest"], kind="stable")
        digests = _digests(texts)
        # The last of equal keys: a text is written again only where its earlier vector was damaged.
        place = np.searchsorted(keys["digest"], digests, side="right", sorter=order) - 1
        rows = order[np.maximum(place, 0)]
        known = (place >= 0) & (keys["digest"][rows] == digests)
        values = np.array(vectors[rows[known]])
        is_whole = _checksums(digests[known], values) == keys["checksum"][rows[known]]
        known[known] = is_whole
        return known, values[is_whole]

    def add(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep the vectors (n, E) of n texts. Several processes may add to one store."""
        vectors = np.ascontiguousarray(vectors, "<f4")
        if self._dimension is None:
            self._write_about(vectors.shape[1])
        keys = np.empty(len(texts), _KEY)
        keys["digest"] = _digests(texts)
        keys["checksum"] = _checksums(keys["digest"], vectors)
        with exclusive(self._folder):
            count = self._whole_records()
            for name, size, data in (("vectors.f32", 4 * vectors.shape[1], vectors), ("keys.bin", _KEY.itemsize, keys)):
                fd = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o666)
                with open(fd, "r+b", buffering=0) as file:
                    file.truncate(count * size)
                    file.seek(count * size)
                    left = data.data.cast("B")
                    while left:
                        left = left[file.write(left) :]

    def _whole_records(self) -> int:
        """Records that are in both files."""
        sizes = (("keys.bin", _KEY.itemsize), ("vectors.f32", 4 * (self._dimension or 1)))
        try:
            return min((self._folder / name).stat().st_size // size for name, size in sizes)
        except FileNotFoundError:
            return 0

    def _read_about(self) -> None:
        path = self._folder / _ABOUT
        if not path.exists():
            return
        try:
            about = json.loads(path.read_bytes())
            self._dimension = int(about.pop("dimension"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not what describes an embedding store: {error}; remove {self._folder}"
            ) from error
        if about != self._about:
            differences = [
                name for name in about.keys() | self._about.keys() if about.get(name) != self._about.get(name)
            ]
            raise DataError(
                f"{self._folder} holds embeddings of another encoder (different: {', '.join(sorted(differences))}); "
                "remove it or give another folder"
            )

    def _write_about(self, dimension: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{_ABOUT}.{os.getpid()}"
        temporary.write_text(json.dumps({**self._about, "dimension": dimension}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self._folder / _ABOUT)
        self._dimension = dimension


def _digests(texts: Sequence[str]) -> NDArray[np.bytes_]:
    # surrogatepass: a text with a lone surrogate, as broken files have them, is a text like any other here.
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(digests), "S16")


def _checksums(digests: NDArray[np.bytes_], vectors: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Sum of the words of key and vector, modulo 2^32."""
    words = np.frombuffer(digests.tobytes(), "<u4").reshape(len(digests), 4).sum(axis=1, dtype=np.uint32)
    return np.asarray(words + vectors.view("<u4").sum(axis=1, dtype=np.uint32) + _CHECKSUM_START)
