"""``wals-gpu export``: what it writes, says and refuses."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from wals_gpu import WALS

pytest_plugins = ["cli_fixtures"]


def test_parquet(run, model, tmp_path):
    status, out, errors = run("export", model, "--to", "parquet", "--out", tmp_path / "v", "--no-seen")
    assert status == 0 and not errors
    assert "wrote items.parquet (" in out and " kB) to " in out and "ask it:\nDuckDB: SELECT" in out
    assert "list_contains" not in out
    status, _, errors = run("export", model, "--to", "parquet", "--out", tmp_path / "v")
    assert status == 2 and errors.startswith("wals-gpu: error: --out: ")
    assert "holds an export already; --overwrite puts the new one in its place" in errors
    status, out, _ = run("export", model, "--to", "parquet", "--out", tmp_path / "v", "--overwrite", "--json")
    assert status == 0 and set(json.loads(out)["bytes"]) == {"items.parquet", "users.parquet"}
    assert pq.read_table(tmp_path / "v" / "users.parquet")["seen"].null_count == 0


def test_onnx_of_histories(run, model, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    status, out, _ = run("export", model, "--to", "onnx", "--query", "history", "--out", tmp_path / "g")
    assert status == 0 and "model.onnx" in out and "'history'" in out
    inputs = {"history": [[0, 3]], "exclude": np.zeros((1, 0), np.int64), "k": [4]}
    found = runtime.InferenceSession(str(tmp_path / "g" / "model.onnx")).run(None, inputs)
    loaded = WALS.load(model)
    table = {"user_id": ["new", "new"], "item_id": loaded.item_ids.take([0, 3]).tolist()}
    import pyarrow as pa

    assert found[2][0].tolist() == loaded.recommend_for(pa.table(table), 4).ids[0].tolist()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--to", "milvus", "--out", "x"], "--to must be one of parquet, faiss, usearch, pgvector, qdrant, onnx"),
        (["--to", "parquet"], "--out FOLDER must be given"),
        (["--to", "qdrant"], "--out FOLDER or --url URL must be given"),
        (["--to", "qdrant", "--url", "h:6333"], "--url must be an address such as http://localhost:6333, got 'h:6333'"),
        (["--to", "faiss", "--url", "http://h"], "--url has no meaning with --to faiss; --out is the folder to write"),
        (["--to", "pgvector", "--out", "x"], "--out has no meaning with --to pgvector; --url is the address"),
        (["--to", "parquet", "--out", "x", "--schema", "s"], "--schema has no meaning with --to parquet"),
        (["--to", "pgvector", "--url", "host=/nowhere", "--m", "200"], "--m must be an integer from 2 to 100, got 200"),
        (["--to", "parquet", "--out", "no/such/x"], "no/such/x cannot be made: there is no folder no/such"),
        (["--to", "onnx", "--out", "x", "--query", "user"], "--query must be one of 'users', 'vectors', 'history'"),
    ],
)
def test_wrong_lines_are_refused(run, model, options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("onnx", "psycopg"):
        if f"{name}" in options or name == "psycopg":
            pytest.importorskip(name)
    status, out, errors = run("export", model, *options)
    assert status == 2 and text in errors and not out and len(errors.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_neighbours_need_a_word(run, plays, tmp_path):
    assert run("fit", plays, "--out", tmp_path / "m", "--neighbors", "3", "--factors", "4", "--quiet")[0] == 0
    status, _, errors = run("export", tmp_path / "m", "--to", "parquet", "--out", tmp_path / "v")
    assert status == 2 and "no dot product: --factors-only takes the factors alone, whose lists are others" in errors
    status, _, errors = run("export", tmp_path / "m", "--to", "parquet", "--out", tmp_path / "v", "--factors-only")
    assert status == 0 and "warning" in errors and "is left out" in errors
