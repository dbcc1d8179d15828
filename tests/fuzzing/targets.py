"""What hostile files are fed to: functions from bytes to nothing, which may raise only what their readers promise.

A file that loads is used as well, since an array that does not fit would show there first, in native code.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, ModelFitError, ModelFormatError, SingularSystemError, read_interactions
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.data.files import _canonical, _parse

DATA = csr_matrix(np.array([[1, 0, 2, 0, 1], [0, 1, 0, 3, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 2]], np.float32))


def _arrow_files() -> list[bytes]:
    """A table as a file and as a stream."""
    table = pa.table({"user": ["a", "b"], "item": pa.array([1, 2]).dictionary_encode(), "value": [1.0, 2.5]})
    files = []
    for writer in (pa.ipc.new_file, pa.ipc.new_stream):
        out = pa.BufferOutputStream()
        with writer(out, table.schema) as stream:
            stream.write_table(table)
        files.append(out.getvalue().to_pybytes())
    return files


class Targets:
    """The targets, with a folder for the files that they need. A name ends in what its seeds are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        WALS(2, "google_wals", exponent=0.5, iterations=1).fit(DATA).save(folder)
        (self.tensor_file,) = folder.glob("*.safetensors")
        self.document = json.loads((folder / "model.json").read_bytes())
        self.tensors = self.tensor_file.read_bytes()

    def all(self) -> dict[str, Callable[[bytes], None]]:
        return {
            "model.json": self.model_json,
            "metadata.json": self.metadata,
            "tensors.safetensors": self.tensor_content,
            "implicit.npz": self.npz,
            "table.csv": self.csv,
            "table.jsonl": self.jsonl,
            "table.feather": self.feather,
        }

    def seeds(self) -> dict[str, list[bytes]]:
        """A good file for each target."""
        npz = io.BytesIO()
        als = AlternatingLeastSquares(factors=2, iterations=1, random_state=0)
        als.fit(DATA, show_progress=False)
        als.save(npz)
        return {
            "model.json": [json.dumps(self.document).encode()],
            "metadata.json": [json.dumps(self.document["metadata"]).encode()],
            "tensors.safetensors": [self.tensors],
            "implicit.npz": [npz.getvalue()],
            "table.csv": [
                b"user,item,value\n1,2,3\n2,1,0.5\n",
                b'user\titem\n"a b"\t\xc3\xa9\n"",x\nNA\tnull\n',
                b'user, item, t\n"a", "x, y", 2024-05-01\n"b", "z", 1.5.2024 9:30\n',
                b"1::2::3::4\n5::6::7::8\n",
                "user;item;value\n\xe4;1;1,5\n".encode("utf-16"),
            ],
            "table.jsonl": [
                b'{"user": "a", "item": 5, "value": 2, "t": "2024-05-01"}\n{"user": "b", "item": 6, "value": 1.5}\n',
                b'[{"user": "a", "item": 5}, {"user": "b", "item": 6}]',
            ],
            "table.feather": _arrow_files(),
        }

    def model_json(self, data: bytes) -> None:
        """Any bytes as model.json, beside the right tensors."""
        self._load(data, self.tensors)

    def metadata(self, data: bytes) -> None:
        """Any JSON as the metadata, with the right hash."""
        try:
            metadata = json.loads(data)
            digest = hashlib.sha256(_canonical(metadata).encode()).hexdigest()
        except (ValueError, RecursionError):
            return
        self._load(json.dumps(self.document | {"metadata": metadata, "metadata_sha256": digest}).encode(), self.tensors)

    def tensor_content(self, data: bytes) -> None:
        """Any bytes as the tensor file, with the right size and hash."""
        entry = self.document["tensors"] | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self._load(json.dumps(self.document | {"tensors": entry}).encode(), data)

    def _load(self, document: bytes, tensors: bytes) -> None:
        (self.folder / "model.json").write_bytes(document)
        self.tensor_file.write_bytes(tensors)
        try:
            model = WALS.load(self.folder, num_threads=1)
        except ModelFormatError as error:
            assert str(self.folder) in str(error)
            return
        _parse(document, self.folder)
        users, items = model.user_factors.shape[0], model.item_factors.shape[0]
        try:
            model.recommend(np.arange(users) if model.user_ids is None else model.user_ids.ids, 3)
            model.recommend_for(csr_matrix((1, items), dtype=model.dtype), 2)
            model.recommend_for(csr_matrix(np.ones((1, items), model.dtype)), 2)
            model.similar_items(np.arange(items) if model.item_ids is None else model.item_ids.ids, 2)
            repr(model)
        except (ModelFitError, SingularSystemError):
            pass  # numbers that nobody can compute with
        except ValueError as error:
            if "coefficients too large" not in str(error):
                raise

    def npz(self, data: bytes) -> None:
        """Any bytes as a file of implicit's."""
        try:
            model = AlternatingLeastSquares.load(io.BytesIO(data))
        except ModelFormatError:
            return
        assert model.factors > 0

    def csv(self, data: bytes) -> None:
        """Any bytes as a text file of interactions, with names and without."""
        self._table("table.csv", data)
        self._table("table.csv", data, columns=["user", "item", "value", "time"])
        self._table("table.csv", data, time_column="t", encoding="cp1252")

    def jsonl(self, data: bytes) -> None:
        """Any bytes as JSON."""
        self._table("table.jsonl", data)
        self._table("table.jsonl", data, time_column="t")

    def feather(self, data: bytes) -> None:
        """Any bytes as a file or a stream of Arrow's."""
        self._table("table.feather", data)

    def _table(self, name: str, data: bytes, **options: Any) -> None:
        path = self.folder / name
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read = read_interactions(path, **options)
            except DataError as error:
                assert str(error)
                return
        assert read.matrix.nnz and np.isfinite(read.matrix.data).all()
        read.matrix.check_format(full_check=True)
