"""Item texts as vectors, for the priors of :mod:`wals_gpu.priors`: encoders, a cache, whitening.

Importing this package imports neither torch nor transformers; making a :class:`TextEncoder` does.
"""

from wals_gpu.text.encoder import Encoder
from wals_gpu.text.encoders import FunctionEncoder, as_encoder, encoder_from_config, item_embeddings
from wals_gpu.text.transformer import TextEncoder
from wals_gpu.text.whitening import Whitening

__all__ = [
    "Encoder",
    "FunctionEncoder",
    "TextEncoder",
    "Whitening",
    "as_encoder",
    "encoder_from_config",
    "item_embeddings",
]
