"""What every encoder does around its model: blocks, empty texts, the cache, resuming, output files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wals_gpu.checks import as_path, integer
from wals_gpu.data.progress import progress_bar
from wals_gpu.text.cache import EmbeddingStore

__all__ = ["Encoder", "checked_vectors"]

# Texts are tokenized and sorted by length within blocks of this many: memory stays bounded, and so few batches of a
# block mix lengths that a larger one would not save padding.
_BLOCK = 1 << 16


class Encoder:
    """Texts in, one vector each out. Subclasses bring the model; see :class:`wals_gpu.text.TextEncoder`.

    Parameters
    ----------
    cache_dir : path, optional
        Keep every vector here and never compute it again: stores are keyed by the content of the model and its
        settings, vectors by the content of their text.
    """

    def __init__(self, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self.cache_dir = None if cache_dir is None else as_path("cache_dir", cache_dir)

    def encode(
        self,
        sentences: str | Sequence[str | None],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        empty: ArrayLike | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> Any:
        """One vector for each text; the arguments are called as in sentence-transformers.

        Parameters
        ----------
        sentences : str, or sequence of n str or None
            None, and text without a character other than white space, is empty.
        batch_size : int, optional
            In place of the encoder's own.
        show_progress_bar : bool, default False
        convert_to_numpy : bool, default True
            False: a torch tensor, as with `convert_to_tensor`.
        convert_to_tensor : bool, default False
        normalize_embeddings : bool, default False
            Scale every vector to length 1.
        empty : (E,) array, optional
            The vector of empty texts; default: the mean of all others of this call, so that nothing is known of them.
        out : path, optional
            Write to this .npy file and return it memory-mapped, so that the vectors need not fit into memory. The file
            gets its name when it is whole. After a kill, the same call goes on where the last one ended: until then,
            vectors are kept in ``<out>.partial`` (in `cache_dir` where there is one).

        Returns
        -------
        (n, E) float32 array, or (E,) for a single str
            All finite.

        Raises
        ------
        TypeError, ValueError
            Something that is not a text; only empty texts and no `empty`; an encoder that gives NaN, infinity or
            another number of vectors than it got texts. The message says which text.
        """
        texts, single = _as_texts(sentences)
        if batch_size is not None:
            batch_size = integer("batch_size", batch_size, 1)
        out = None if out is None else as_path("out", out)
        partial = None if out is None or self.cache_dir is not None else Path(f"{out}.partial")
        folder = partial or self.cache_dir
        store = None if folder is None else self._store(folder)
        vectors = self._encode_all(texts, store, batch_size, show_progress_bar, empty, out)
        if normalize_embeddings:
            for begin in range(0, len(vectors), _BLOCK):
                block = vectors[begin : begin + _BLOCK]
                block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        if out is not None:
            vectors = _named(vectors, out)
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)
        if convert_to_tensor or not convert_to_numpy:
            import torch

            tensor = torch.from_numpy(vectors if out is None else np.array(vectors))
            return tensor[0] if single else tensor
        return vectors[0] if single else vectors

    def to_config(self) -> dict[str, Any]:
        """What :func:`encoder_from_config` needs to make this encoder again.

        Returns
        -------
        dict
            Can be written as JSON.

        Raises
        ------
        ValueError
            It cannot be made again from a description, such as a Python function.
        """
        raise ValueError(f"{self!r} cannot be described in a file")

    def _embed(self, texts: list[str], batch_size: int | None) -> Iterator[tuple[NDArray[np.intp], Any]]:
        """Places in `texts` and their vectors, batch by batch; None for vectors where a text has no token."""
        raise NotImplementedError

    def _content(self) -> dict[str, Any]:
        """Everything that a vector depends on beside its text, JSON-able."""
        raise NotImplementedError

    def _store(self, folder: Path) -> EmbeddingStore:
        content = self._content()
        key = hashlib.sha256(repr(sorted(content.items())).encode()).hexdigest()[:24]
        return EmbeddingStore(folder / key, content)

    def _encode_all(
        self,
        texts: list[str],
        store: EmbeddingStore | None,
        batch_size: int | None,
        show_progress: bool,
        empty: ArrayLike | None,
        out: str | os.PathLike[str] | None,
    ) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] | None = None
        filled = np.zeros(len(texts), np.bool_)
        total: Any = 0.0
        with progress_bar(len(texts), show_progress, desc="Encoding", unit="text") as progress:
            for begin in range(0, len(texts), _BLOCK):
                block = texts[begin : begin + _BLOCK]
                rows: dict[str, list[int]] = {}  # of each different text
                for row, text in enumerate(block, begin):
                    if text:
                        rows.setdefault(text, []).append(row)
                progress.update(len(block) - sum(map(len, rows.values())))
                for batch, values in self._vectors_of(list(rows), store, batch_size):
                    places = [rows[text] for text in batch]
                    progress.update(sum(map(len, places)))
                    if values is None:
                        continue
                    if vectors is None:
                        vectors = _allocate((len(texts), values.shape[1]), out)
                    elif values.shape[1] != vectors.shape[1]:
                        raise ValueError(
                            f"{self!r} gave vectors of {vectors.shape[1]} and of {values.shape[1]} numbers"
                        )
                    counts = [len(rows_of_text) for rows_of_text in places]
                    targets = np.concatenate(places)
                    vectors[targets] = np.repeat(values, counts, axis=0)
                    filled[targets] = True
                    total = total + np.asarray(counts, np.float64) @ values.astype(np.float64)
        if filled.all() and vectors is not None:
            return vectors
        if empty is None and vectors is None:
            if texts:
                raise ValueError(f"all {len(texts)} texts are empty, so they have no mean: give empty=(E,) vector")
            raise ValueError("sentences must hold at least one text, got none")
        mean = total / filled.sum() if empty is None else _checked_empty(empty, vectors)
        if vectors is None:
            vectors = _allocate((len(texts), len(mean)), out)
        vectors[~filled] = mean
        return vectors

    def _vectors_of(
        self, texts: list[str], store: EmbeddingStore | None, batch_size: int | None
    ) -> Iterator[tuple[list[str], NDArray[np.float32] | None]]:
        """Texts with their vectors: those in the store, then the others as they are computed."""
        if not texts:
            return
        if store is not None:
            known, vectors = store.find(texts)
            if known.any():
                yield [text for text, is_known in zip(texts, known, strict=True) if is_known], vectors
            texts = [text for text, is_known in zip(texts, known, strict=True) if not is_known]
        if not texts:
            return
        for places, values in self._embed(texts, batch_size):
            batch = [texts[place] for place in places]
            if values is not None:
                values = self._checked(values, batch)
                if store is not None:
                    store.add(batch, values)
            yield batch, values

    def _checked(self, values: Any, batch: list[str]) -> NDArray[np.float32]:
        requirement = f"{self!r} must give numbers of shape (n, E) for n texts; for {len(batch)} it gave"
        return checked_vectors(
            values,
            len(batch),
            requirement,
            lambda row: f"{self!r} gave NaN or infinity for the text {batch[row]!r:.80}",
        )


def checked_vectors(values: Any, n: int, requirement: str, not_finite: Callable[[int], str]) -> NDArray[np.float32]:
    """Finite vectors (n, E); a ValueError says `requirement` and what came, or `not_finite` of the first such row."""
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != n or values.dtype.kind not in "fiu":
        raise ValueError(f"{requirement} {values.dtype} {values.shape}")
    values = values.astype(np.float32, copy=False)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(not_finite(int(np.argmin(finite))))
    return np.asarray(values)


def _as_texts(sentences: Any) -> tuple[list[str], bool]:
    """A list of texts, empty ones as "", and whether it was a single one."""
    if isinstance(sentences, str):
        return [sentences if sentences.strip() else ""], True
    # What goes through the keys of a mapping goes through the names of a table's columns as well.
    no_sequence = isinstance(sentences, (bytes, Mapping, Set)) or hasattr(sentences, "columns")
    if no_sequence or not hasattr(sentences, "__iter__"):
        raise TypeError(f"sentences must be a str or a sequence of str, got {type(sentences).__name__}")
    texts = sentences.to_pylist() if hasattr(sentences, "to_pylist") else list(sentences)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            missing = text is None or (isinstance(text, float) and text != text) or type(text).__name__ == "NAType"
            if not missing:  # NaN and NA are how pandas writes a text that is not there
                raise TypeError(f"sentences[{place}] must be a str or None, got {type(text).__name__}: {text!r:.60}")
            texts[place] = ""
        elif not text.strip():
            texts[place] = ""
    return texts, False


def _checked_empty(empty: ArrayLike, vectors: NDArray[np.float32] | None) -> NDArray[np.floating]:
    empty = np.asarray(empty)
    dimension = "E" if vectors is None else f"E={vectors.shape[1]}"
    fits = empty.ndim == 1 and empty.dtype.kind in "fiu" and (vectors is None or len(empty) == vectors.shape[1])
    if not fits or not np.isfinite(empty).all():
        raise ValueError(f"empty must be finite numbers of shape ({dimension},), got {empty.dtype} {empty.shape}")
    return empty


def _allocate(shape: tuple[int, int], out: str | os.PathLike[str] | None) -> NDArray[np.float32]:
    if out is None:
        return np.empty(shape, np.float32)
    return np.lib.format.open_memmap(_unfinished(Path(out)), "w+", np.float32, shape)


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


def _named(vectors: Any, out: Path) -> NDArray[np.float32]:
    """The finished file under its own name, open for reading."""
    vectors.flush()
    with open(_unfinished(out), "rb") as file:
        os.fsync(file.fileno())
    os.replace(_unfinished(out), out)
    mapped: NDArray[np.float32] = np.load(out, mmap_mode="r", allow_pickle=False)
    return mapped
