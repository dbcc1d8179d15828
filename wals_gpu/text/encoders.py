"""Encoders of what users have: a function, a model of sentence-transformers, a name or folder of a transformer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import integer
from wals_gpu.text.encoder import Encoder, checked_vectors
from wals_gpu.text.transformer import TextEncoder, weights_digest

__all__ = ["FunctionEncoder", "as_encoder", "encoder_from_config", "item_embeddings"]


class FunctionEncoder(Encoder):
    """Any function that gives vectors for texts, such as ``SentenceTransformer.encode`` or the client of a service.

    Parameters
    ----------
    function : callable
        ``list[str] -> (n, E)`` array, tensor or list of lists.
    name : str, optional
        What identifies the function and its settings in a cache; needed with `cache_dir` and for files, which cannot
        look inside a function.
    batch_size : int, default 512
        Texts per call; what is finished survives a kill call by call.
    cache_dir : path, optional
        As for :class:`Encoder`.
    """

    def __init__(
        self,
        function: Callable[[list[str]], Any],
        *,
        name: str | None = None,
        batch_size: int = 512,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(cache_dir)
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self.function = function
        self.name = name
        self.batch_size = integer("batch_size", batch_size, 1)

    def __repr__(self) -> str:
        return f"FunctionEncoder({self.name or getattr(self.function, '__name__', type(self.function).__name__)})"

    def _content(self) -> dict[str, Any]:
        if self.name is None:
            raise ValueError(
                "a cache or an output file needs FunctionEncoder(function, name=...): a name for the function and "
                "its settings, since its vectors must not be taken for another one's"
            )
        return {"function": self.name}

    def _embed(self, texts: list[str], batch_size: int | None) -> Iterator[tuple[NDArray[np.intp], Any]]:
        size = batch_size or self.batch_size
        for begin in range(0, len(texts), size):
            batch = texts[begin : begin + size]
            values = self.function(batch)
            if hasattr(values, "detach"):  # a torch tensor, on whatever device
                values = values.detach().float().cpu().numpy()
            yield np.arange(begin, begin + len(batch)), values


class _SentenceTransformerEncoder(FunctionEncoder):
    """A ``sentence_transformers.SentenceTransformer``, with its own pooling and prompts."""

    def __init__(self, model: Any, *, batch_size: int = 32, cache_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__(self._call, batch_size=1024, cache_dir=cache_dir)
        self.model = model
        self.model_batch_size = integer("batch_size", batch_size, 1)

    def __repr__(self) -> str:
        return "the SentenceTransformer"

    def _call(self, texts: list[str]) -> Any:
        return self.model.encode(texts, batch_size=self.model_batch_size, show_progress_bar=False)

    def _content(self) -> dict[str, Any]:
        parts = {str(place): type(part).__name__ for place, part in self.model.named_children()}
        return {"sentence_transformer": weights_digest(self.model), "modules": parts}


def as_encoder(encoder: Any, **settings: Any) -> Encoder:
    """An :class:`Encoder` from whatever can be one.

    Parameters
    ----------
    encoder : Encoder, str, path, (model, tokenizer), SentenceTransformer or callable
        An encoder is returned as it is; a name or folder, or a transformers model with its tokenizer, becomes a
        :class:`TextEncoder`; a callable takes a list of str and gives (n, E).
    **settings
        Of the :class:`TextEncoder` or :class:`FunctionEncoder` that is made; refused where none is.

    Returns
    -------
    Encoder
    """
    if isinstance(encoder, Encoder):
        if settings:
            raise TypeError(f"{encoder!r} has its settings already: got {', '.join(settings)}")
        return encoder
    if isinstance(encoder, (str, os.PathLike)):
        return TextEncoder(encoder, **settings)
    if isinstance(encoder, tuple) and len(encoder) == 2:
        return TextEncoder(encoder[0], tokenizer=encoder[1], **settings)
    bases = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(encoder).__mro__}
    if "sentence_transformers.SentenceTransformer" in bases:
        return _SentenceTransformerEncoder(encoder, **settings)
    if "transformers.PreTrainedModel" in bases:
        raise TypeError("encoder: a transformers model comes with its tokenizer, as the pair (model, tokenizer)")
    if callable(encoder):
        return FunctionEncoder(encoder, **settings)
    raise TypeError(
        "encoder must be a TextEncoder, the name or folder of a model, a pair (model, tokenizer), a "
        f"SentenceTransformer or a function list[str] -> (n, E); got {type(encoder).__name__}"
    )


def encoder_from_config(config: dict[str, Any]) -> Encoder:
    """The encoder that :meth:`Encoder.to_config` described.

    Parameters
    ----------
    config : dict

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        It was none that a file can describe, or its weights are not the same any more.
    """
    return TextEncoder.from_config(config)


def item_embeddings(source: Any, texts: Sequence[str | None], **encode: Any) -> NDArray[np.float32]:
    """Vectors (n, E) of n texts, by an encoder or ready-made.

    Parameters
    ----------
    source : array (n, E), or anything that :func:`as_encoder` takes
        A ready array is checked: its length, and that all of it is finite.
    texts : sequence of n str or None
    **encode
        Of :meth:`Encoder.encode`.

    Returns
    -------
    (n, E) float32 array
    """
    if not (isinstance(source, np.ndarray) or hasattr(source, "__array__")):
        encoded: NDArray[np.float32] = as_encoder(source).encode(list(texts), **encode)
        return encoded
    requirement = f"embeddings must be numbers of shape (n={len(texts)}, E), one row for each text; got"
    return checked_vectors(
        source, len(texts), requirement, lambda row: f"embeddings must be finite, got NaN or infinity in row {row}"
    )
