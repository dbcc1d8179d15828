"""The encoder for transformers models: hidden states, averaged over layers and tokens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.checks import integer
from wals_gpu.text.encoder import Encoder

if TYPE_CHECKING:
    import torch

__all__ = ["TextEncoder", "weights_digest"]

_POOLINGS = ("mean", "cls")
_DTYPES = ("auto", "float32", "bfloat16")
_SETTINGS = ("layers", "pooling", "max_length", "dtype")


class TextEncoder(Encoder):
    """A transformers model as encoder: hidden states, averaged over layers, then over tokens.

    Parameters
    ----------
    model : str, path or PreTrainedModel, default "roberta-base"
        A folder or a name on the Hugging Face hub, loaded with ``AutoModel.from_pretrained``; or a model that is there
        already, with its `tokenizer`. Of an encoder-decoder model, the encoder is used.
    layers : {"last4", "last", "first_last", "all"} or list of int, default "last4"
        Hidden states to average: the last four layers; the last; the first and the last layer; all, the input
        embeddings among them; or by number, 0 the input embeddings and -1 the last layer.
    pooling : {"mean", "cls"}, default "mean"
        The mean over the tokens, or the first token. Padding never counts.
    max_length : int, default 128
        Tokens of a text, special ones included; what comes after is left out.
    batch_size : int, default 32, on a CPU 8
        Texts of `max_length` tokens in a batch. Texts are sorted by length, and of shorter ones more are taken, up to
        as many tokens. On a CPU, batches of 1,000 tokens took 0.8 times as long as those of 4,000: what passes from
        layer to layer stays in the cache.
    device : str, optional
        Default: "cuda" where there is one, else "cpu".
    dtype : {"auto", "float32", "bfloat16"}, default "auto"
        Of the computation; weights stay float32 and vectors are float32. "auto": bfloat16 on a GPU that has it, else
        float32.
    cache_dir : path, optional
        Keep every vector here, keyed by content: weights, tokenizer, settings and text.
    tokenizer : PreTrainedTokenizer, optional
        In place of the one that comes with the model.

    Raises
    ------
    ImportError
        torch or transformers is not installed.
    OSError
        No such model here, and none to be had from the hub; the message says what to do.
    ValueError, TypeError
        A setting that this model does not allow.

    Notes
    -----
    Vectors depend on the other texts of a batch by rounding only, as with every batched encoder.
    """

    def __init__(
        self,
        model: Any = "roberta-base",
        *,
        layers: str | Sequence[int] = "last4",
        pooling: str = "mean",
        max_length: int = 128,
        batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        tokenizer: Any | None = None,
    ) -> None:
        super().__init__(cache_dir)
        torch, _ = _libraries()
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}; got {pooling!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
        self.device = _device(device)
        if batch_size is None:
            batch_size = 8 if self.device.type == "cpu" else 32
        self.max_length = integer("max_length", max_length, 1)
        self.batch_size = integer("batch_size", batch_size, 1)
        self.name: str | None
        if isinstance(model, (str, os.PathLike)):
            self.name = os.path.abspath(model) if os.path.isdir(model) else os.fspath(model)
            model, loaded = _load(self.name, tokenizer is None)
            tokenizer = tokenizer or loaded
        else:
            self.name = getattr(model, "name_or_path", None) or None
            if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
                raise TypeError(f"model must be a name, a folder or a transformers model, got {type(model).__name__}")
            if tokenizer is None:
                raise TypeError("model: a transformers model that is loaded already needs tokenizer=...")
            if model.config.is_encoder_decoder:
                model = model.get_encoder()
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.layers, self._chosen = _chosen_layers(layers, int(model.config.num_hidden_layers))
        self.pooling = pooling
        limit = _longest(model, tokenizer)
        if self.max_length > limit:
            raise ValueError(f"max_length must be at most {limit}, the longest text of {self!r}; got {max_length}")
        self.dtype = dtype
        if dtype == "auto":
            fast = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] >= 8
            self.dtype = "bfloat16" if fast else "float32"

    def __repr__(self) -> str:
        return f"TextEncoder({self.name or type(self.model).__name__})"

    @property
    def dimension(self) -> int:
        """E, the numbers in a vector."""
        return int(self.model.config.hidden_size)

    def get_sentence_embedding_dimension(self) -> int:
        """E, under sentence-transformers' name."""
        return self.dimension

    def to_config(self) -> dict[str, Any]:
        """Model and settings for :meth:`from_config`, with a digest of the weights.

        Returns
        -------
        dict
            Can be written as JSON.

        Raises
        ------
        ValueError
            The model has no name or folder.
        """
        if self.name is None:
            raise ValueError("this encoder's model has no name or folder: call save_pretrained(folder) first")
        return {"model": self.name, **{name: getattr(self, name) for name in _SETTINGS}, "content": self._content()}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], *, model: str | os.PathLike[str] | None = None, **settings: Any
    ) -> TextEncoder:
        """The encoder that :meth:`to_config` described.

        Parameters
        ----------
        config : dict
        model : str or path, optional
            Where the model is now, if it is not where it was.
        **settings
            Of this machine: ``device``, ``batch_size``, ``cache_dir``.

        Returns
        -------
        TextEncoder

        Raises
        ------
        ValueError
            The model under that name has other weights or another tokenizer now: vectors would not fit those that
            the description was made with.
        """
        encoder = cls(model or config["model"], **{name: config[name] for name in _SETTINGS}, **settings)
        now, then = encoder._content(), config["content"]
        if now != then:
            changed = ", ".join(sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name)))
            raise ValueError(f"{encoder.name} is not the encoder that was described: its {changed} changed since")
        return encoder

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write model and tokenizer to a folder that `model` takes, and be called after it from now on.

        Parameters
        ----------
        folder : str or path
            Made where it is not there.
        """
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.name = os.path.abspath(folder)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of texts, without padding.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        list of lists of int
            One for each text, of at most `max_length` tokens.
        """
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        tokens: list[list[int]] = encoded["input_ids"]
        return tokens

    def padded(self, tokens: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """A batch for the model.

        Parameters
        ----------
        tokens : sequence of B sequences of int
            As :meth:`tokens` gives them; T in the longest.

        Returns
        -------
        dict of str to int64 tensor
            ``input_ids`` (B, T), and ``attention_mask`` (B, T) where there is padding.
        """
        import torch

        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        is_token = np.arange(lengths.max()) < lengths[:, None]
        # The model's own padding number: RoBERTa counts positions by what is not it.
        padding = self.model.config.pad_token_id
        ids = np.full(is_token.shape, self.tokenizer.pad_token_id or 0 if padding is None else padding, np.int64)
        ids[is_token] = np.concatenate([np.asarray(each, np.int64) for each in tokens])
        batch = {"input_ids": torch.from_numpy(ids)}
        # Without a mask, attention takes its faster way.
        return batch if is_token.all() else batch | {"attention_mask": torch.from_numpy(is_token.astype(np.int64))}

    def pooled(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors of a batch; gradients flow to the weights.

        Parameters
        ----------
        batch : dict of str to tensor
            From :meth:`padded`.

        Returns
        -------
        (B, E) float32 tensor
            On the encoder's device.
        """
        import torch

        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            states = self.model(**batch, output_hidden_states=True).hidden_states
        mask = batch.get("attention_mask")
        vectors = [self._pool(states[layer].float(), mask) for layer in self._chosen]
        return vectors[0] if len(vectors) == 1 else torch.stack(vectors).mean(dim=0)

    def _pool(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.pooling == "cls":
            return states[:, 0]
        if mask is None:
            return states.mean(dim=1)
        return (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def _embed(self, texts: list[str], batch_size: int | None) -> Iterator[tuple[NDArray[np.intp], Any]]:
        import torch

        tokens = self.tokens(texts)
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        # Longest first: if memory does not suffice, that shows in the first batch.
        order = np.argsort(-lengths, kind="stable")
        order, silent = order[: np.count_nonzero(lengths)], order[np.count_nonzero(lengths) :]
        if silent.size:
            yield silent, None
        budget = (batch_size or self.batch_size) * self.max_length
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                while order.size:
                    batch, order = np.split(order, [max(1, budget // lengths[order[0]])])
                    yield batch, self.pooled(self.padded([tokens[place] for place in batch])).cpu().numpy()
        finally:
            self.model.train(training)

    def _content(self) -> dict[str, Any]:
        return {
            "weights": weights_digest(self.model),
            "tokenizer": _tokenizer_digest(self.tokenizer),
            "layers": self._chosen,
            "pooling": self.pooling,
            "max_length": self.max_length,
            "dtype": self.dtype,
        }


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a module's configuration and weights; a pooling head that no hidden state passes is left out."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("pooler."):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = getattr(model, "config", None)
    for name in ("model_type", "hidden_act", "layer_norm_eps", "num_attention_heads", "pad_token_id"):
        digest.update(f"{name}={getattr(config, name, None)}\n".encode())
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    if getattr(tokenizer, "is_fast", False):
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        # The state of the last call, not of the tokenizer.
        description = {name: part for name, part in description.items() if name not in ("truncation", "padding")}
    else:
        description = {"kind": type(tokenizer).__name__, "vocabulary": sorted(tokenizer.get_vocab().items())}
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"a TextEncoder needs torch and transformers ({error}): pip install 'wals_gpu[text]'", name=error.name
        ) from error
    return torch, transformers


def _device(device: str | None) -> torch.device:
    import torch

    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be None or a name such as 'cpu' or 'cuda', got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this torch ({torch.__version__}) sees no CUDA device")
    return target


def _load(name: str, with_tokenizer: bool) -> tuple[Any, Any]:
    _, transformers = _libraries()
    try:
        with _quiet(transformers.utils.logging):
            load = functools.partial(transformers.AutoModel.from_pretrained, name, output_loading_info=True)
            try:  # the head over the first token is not used, and random where a checkpoint has none
                model, info = load(add_pooling_layer=False)
            except TypeError:  # a kind of model without such a head
                model, info = load()
        tokenizer = transformers.AutoTokenizer.from_pretrained(name) if with_tokenizer else None
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    random = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if random:
        raise ValueError(
            f"encoder {name} lacks {len(random)} weights of a {type(model).__name__}, such as {random[0]}: its vectors "
            "would be noise. Is it the model that its config.json says?"
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.float(), tokenizer


@contextlib.contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Neither a progress bar over the tensors of a file nor a table of those that are not used."""
    has_bar, level = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if has_bar:
            log.enable_progress_bar()


def _not_loaded(name: str, error: Exception) -> Exception:
    """What went wrong and what to do, in place of the loading code's page of text."""
    first = str(error).strip().partition("\n")[0]
    if Path(name).exists():
        return OSError(f"encoder {name} cannot be loaded: {first}")
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if {"RepositoryNotFoundError", "HFValidationError"} & set(causes):
        return OSError(f"unknown encoder {name!r}: no folder of that name here, and no such model on the hub")
    return OSError(
        f"encoder {name!r} cannot be loaded: it is no folder, it is not in the cache of the Hugging Face hub, and the "
        "hub does not answer (no network, or HF_HUB_OFFLINE is set). On a machine with network, run "
        f"'hf download {name} --local-dir FOLDER', bring the folder here and name it as the encoder. ({first})"
    )


def _longest(model: Any, tokenizer: Any) -> int:
    """Tokens that a model has positions for, RoBERTa's start after its padding number."""
    longest = int(min(tokenizer.model_max_length, 1 << 30))
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and hasattr(module, "num_embeddings"):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            longest = min(longest, module.num_embeddings - first)
    return longest


def _chosen_layers(layers: str | Sequence[int], n: int) -> tuple[str | list[int], list[int]]:
    """A name or numbers of layers, checked, and the places of their hidden states, 0 (input) to n."""
    choices = {"last4": range(max(1, n - 3), n + 1), "last": [n], "first_last": [min(1, n), n], "all": range(n + 1)}
    if isinstance(layers, str):
        if layers not in choices:
            raise ValueError(f"layers must be one of {', '.join(choices)}, or a list of numbers; got {layers!r}")
        return layers, sorted(set(choices[layers]))
    numbers = [integer(f"layers[{place}]", layer, -n - 1, n) for place, layer in enumerate(layers)]
    if not numbers:
        raise ValueError("layers must name at least one layer, got an empty list")
    return numbers, sorted({layer % (n + 1) for layer in numbers})
