"""One function for all targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from wals_gpu.checks import did_you_mean, flag, refuse_other
from wals_gpu.export.folder import Export
from wals_gpu.export.indexes import export_faiss, export_usearch
from wals_gpu.export.onnx import export_onnx
from wals_gpu.export.parquet import export_parquet
from wals_gpu.export.pgvector import export_pgvector
from wals_gpu.export.qdrant import export_qdrant
from wals_gpu.model.wals import WALS

__all__ = ["TARGETS", "export"]

_FLAGS = {"seen", "factors_only", "overwrite"}
#: What a model can be exported to, and the function that does it.
TARGETS: dict[str, Callable[..., Export]] = {
    "parquet": export_parquet,
    "faiss": export_faiss,
    "usearch": export_usearch,
    "pgvector": export_pgvector,
    "qdrant": export_qdrant,
    "onnx": export_onnx,
}


def export(model: WALS, out: Any, *, to: str, **options: Any) -> Export:
    """Write a fitted model for other programs to search.

    Parameters
    ----------
    model : WALS
        Fitted.
    out : str or path
        Where to: a folder; with "pgvector" the address of a database, with "qdrant" a folder or the address of a
        server.
    to : {"parquet", "faiss", "usearch", "pgvector", "qdrant", "onnx"}
    **options
        Of :func:`.export_parquet`, :func:`.export_faiss`, :func:`.export_usearch`, :func:`.export_pgvector`,
        :func:`.export_qdrant` or :func:`.export_onnx`.

    Returns
    -------
    Export

    Raises
    ------
    ValueError
        There is no such target; and whatever the function of the target raises.
    TypeError
        The target has no such option.

    Examples
    --------
    >>> import tempfile
    >>> from scipy.sparse import csr_matrix
    >>> from wals_gpu import WALS
    >>> model = WALS(factors=2, objective="hu", alpha=10).fit(csr_matrix([[1, 1, 0], [1, 0, 1]]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = export(model, folder, to="parquet")
    >>> sorted(done.sizes)
    ['items.parquet', 'users.parquet']
    """
    if to not in TARGETS:
        raise ValueError(f"to must be one of {', '.join(map(repr, TARGETS))}, got {to!r}{did_you_mean(to, TARGETS)}")
    known = [name for name, one in inspect.signature(TARGETS[to]).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise TypeError(f"an export to {to} has no option {name!r}{did_you_mean(name, known)}")
    refuse_other("model", model, "a fitted WALS", "fitted", "item_index")
    for name in _FLAGS & options.keys():
        flag(name, options[name])
    return TARGETS[to](model, out, **options)
