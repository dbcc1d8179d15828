"""Door to exports: a fitted model for other programs to search, as files or in a database."""

from wals_gpu.export.dispatch import TARGETS, export
from wals_gpu.export.folder import Export
from wals_gpu.export.indexes import export_faiss, export_usearch
from wals_gpu.export.onnx import export_onnx
from wals_gpu.export.parquet import export_parquet
from wals_gpu.export.pgvector import export_pgvector
from wals_gpu.export.qdrant import export_qdrant

__all__ = [
    "TARGETS",
    "Export",
    "export",
    "export_faiss",
    "export_onnx",
    "export_parquet",
    "export_pgvector",
    "export_qdrant",
    "export_usearch",
]
