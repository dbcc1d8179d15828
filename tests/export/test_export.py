"""Exports: programs that know the files alone find what `recommend` finds, and nothing that is there is lost."""

import json
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from exported import ITEMS, USERS, expected, exported_model
from scipy.sparse import csr_matrix

from wals_gpu import WALS, ParameterWarning
from wals_gpu.export import export
from wals_gpu.objective.presets import PRESETS

IDS = ["text", "integers", "rows"]


def read(folder, name):
    return pq.read_table(folder / name)


def vectors_of(table):
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def asked(model, n=20):
    """Users with factors, among them the one who has nearly everything."""
    return [u for u in range(n) if model.fitted.has_history(np.array([u]))[0]]


@pytest.mark.parametrize("ids", IDS)
def test_parquet(tmp_path, ids):
    model = exported_model(ids)
    done = export(model, tmp_path / "out", to="parquet")
    items, users = read(tmp_path / "out", "items.parquet"), read(tmp_path / "out", "users.parquet")
    scores = vectors_of(users) @ vectors_of(items).T
    names, seen = np.array(items["item_id"].to_pylist()), users["seen"].to_pylist()
    rows = asked(model)
    want, want_scores = expected(model, rows)
    for user, ids_of_user, scores_of_user in zip(rows, want, want_scores, strict=True):
        mine = np.where(np.isin(names, seen[user]), -np.inf, scores[user])
        best = np.argsort(-mine, kind="stable")[:10]
        there = scores_of_user > -np.inf
        assert names[best][there].tolist() == ids_of_user[there].tolist()
        np.testing.assert_allclose(mine[best], scores_of_user, rtol=1e-5)
    assert users["known"].to_pylist() == model.fitted.has_history(np.arange(model.n_users)).tolist()
    assert items["popularity"].to_pylist() == model.fitted.popularity().tolist()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == done.manifest and manifest["n_items"] == model.n_items and manifest["factors"] == 12
    assert manifest["files"]["items.parquet"]["bytes"] == (tmp_path / "out" / "items.parquet").stat().st_size


@pytest.mark.parametrize("ids", ["text", "rows"])
@pytest.mark.parametrize("index", ["hnsw", "flat"])
def test_faiss(tmp_path, ids, index):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    model = exported_model(ids)
    export(model, tmp_path / "out", to="faiss", index=index)
    found = faiss.read_index(str(tmp_path / "out" / "items.faiss"))
    items, users = read(tmp_path / "out", "items.parquet"), read(tmp_path / "out", "users.parquet")
    rows = asked(model)
    want, want_scores = expected(model, rows)
    for user, ids_of_user, scores_of_user in zip(rows, want, want_scores, strict=True):
        seen = faiss.IDSelectorNot(faiss.IDSelectorBatch(users["seen_rows"][user].as_py()))
        kind = (
            faiss.SearchParametersHNSW(sel=seen, efSearch=200) if index == "hnsw" else faiss.SearchParameters(sel=seen)
        )
        scores, labels = found.search(vectors_of(users)[user : user + 1], 10, params=kind)
        there = scores_of_user > -np.inf
        assert (labels[0] >= 0).tolist() == there.tolist()
        assert items["item_id"].take(labels[0][there]).to_pylist() == ids_of_user[there].tolist()
        np.testing.assert_allclose(scores[0][there], scores_of_user[there], rtol=1e-5)


def test_usearch(tmp_path):
    index = pytest.importorskip("usearch.index", reason="usearch is not installed")
    model = exported_model("integers")
    export(model, tmp_path / "out", to="usearch", m=16)
    found = index.Index.restore(str(tmp_path / "out" / "items.usearch"))
    items, users = read(tmp_path / "out", "items.parquet"), read(tmp_path / "out", "users.parquet")
    want, _ = expected(model, [0, 1])
    for user in (0, 1):
        seen = users["seen_rows"][user].as_py()
        keys = found.search(vectors_of(users)[user], 10 + len(seen)).keys
        left = [key for key in keys.tolist() if key not in seen][:10]
        assert items["item_id"].take(left).to_pylist() == want[user].tolist()


@pytest.mark.parametrize("ids", IDS)
def test_qdrant(tmp_path, ids):
    """In the client's local mode, as its documentation asks a server."""
    package = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    models, model = package.models, exported_model(ids)
    done = export(model, tmp_path / "out", to="qdrant")
    client = package.QdrantClient(path=str(tmp_path / "out"))
    rows = asked(model)
    want, want_scores = expected(model, rows)
    number = (lambda row: int(model.user_ids[row])) if ids == "integers" else (lambda row: row)
    for user, ids_of_user, scores_of_user in zip(rows, want, want_scores, strict=True):
        (point,) = client.retrieve("wals_users", [number(user)], with_vectors=True)
        seen = models.Filter(must_not=[models.HasIdCondition(has_id=point.payload["seen"])])
        hits = client.query_points("wals_items", point.vector, limit=10, query_filter=seen).points
        there = scores_of_user > -np.inf
        assert [hit.payload["item_id"] for hit in hits] == ids_of_user[there].tolist()
        np.testing.assert_allclose([hit.score for hit in hits], scores_of_user[there], rtol=1e-5)
    assert (tmp_path / "out").stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777 | 0o055  # as the umask says
    assert client.count("wals_users").count == model.n_users and done.sizes["wals_items"] == model.n_items
    client.close()
    export(model, tmp_path / "out", to="qdrant", overwrite=True)


def test_qdrant_switches_aliases(tmp_path, monkeypatch):
    """With a client, as on a server: an export that fails leaves the earlier one, and none of its own."""
    package = pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    client, model = package.QdrantClient(":memory:"), exported_model("text")
    export(model, client, to="qdrant", collection="songs")
    before = {one.name for one in client.get_collections().collections}
    with pytest.raises(FileExistsError, match="there is an export under 'songs_items' already"):
        export(model, client, to="qdrant", collection="songs")
    export(exported_model("rows"), client, to="qdrant", collection="songs", overwrite=True)
    after = {one.name for one in client.get_collections().collections}
    assert len(after) == 2 and not before & after and client.count("songs_items").count == ITEMS
    assert len(client.query_points("songs_items", [1.0] * 12, limit=3).points) == 3

    def fail(*_, **__):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(client, "update_collection_aliases", fail)
    with pytest.raises(RuntimeError, match="the disk is full"):
        export(model, client, to="qdrant", collection="songs", overwrite=True)
    assert {one.name for one in client.get_collections().collections} == after
    client.create_collection("mine_items", vectors_config=package.models.VectorParams(size=2, distance="Dot"))
    with pytest.raises(FileExistsError, match="a collection 'mine_items' that no export made"):
        export(model, client, to="qdrant", collection="mine", overwrite=True)


# ---------------------------------------------------------------------------------------------------- ONNX


def session(folder):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    return runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def rows_of(model, ids):
    """Row numbers of items, -1 for none."""
    if model.item_ids is None:
        return ids
    none = np.equal(ids, None)
    return np.where(none, -1, model.item_ids.find(np.where(none, model.item_ids[0], ids)))


def same(found, model, want, want_scores):
    items, scores, *names = found
    np.testing.assert_array_equal(items, rows_of(model, want))
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5, atol=1e-6)
    if model.item_ids is not None:
        assert np.where(items < 0, None, names[0]).tolist() == want.tolist()


@pytest.mark.parametrize("neighbors", [0, 8])
@pytest.mark.parametrize("ids", IDS)
def test_onnx_of_users(tmp_path, ids, neighbors):
    """Lists of everybody, also of whom nobody knows, and of who has seen all but a few items."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = exported_model(ids, neighbors=neighbors)
    export(model, tmp_path / "out", to="onnx")
    users = np.arange(model.n_users)
    deny = np.array([[3, -1]] * model.n_users)
    found = session(tmp_path / "out").run(None, {"user": users, "exclude": deny, "k": [10]})
    item = 3 if model.item_ids is None else model.item_ids[3]
    same(found, model, *expected(model, users, deny_items=[item]))
    assert (found[0] == -1).any() and not (found[0] == 3).any()
    export(model, tmp_path / "all", to="onnx", seen=False)
    none = np.zeros((3, 0), np.int64)
    found = session(tmp_path / "all").run(None, {"user": [0, 1, 2], "exclude": none, "k": [1000]})
    same(found, model, *expected(model, [0, 1, 2], k=ITEMS, filter_seen=False))


def test_onnx_takes_equal_scores_by_the_lower_number(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    model = exported_model("rows", popularity_exponent=0.0, dtype="float64")
    items, before = model.item_factors.copy(), model.item_factors
    items[50:] = items[20]
    model.item_factors = items
    try:
        export(model, tmp_path / "out", to="onnx", query="vectors")
        found = session(tmp_path / "out").run(
            None, {"vector": items[20:21] * 100, "exclude": np.array([[51]]), "k": [30]}
        )
        ids = found[0][0].tolist()
        start = ids.index(20)
        assert ids[start : start + 4] == [20, 50, 52, 53]
        same(found, model, *model.search(items[20:21] * 100, 30, deny=[[51]]))
    finally:
        model.item_factors = before


def test_onnx_of_large_ids(tmp_path):
    """Of ids beyond int64, a graph was written that no runtime could load."""
    import pyarrow as pa

    ids = np.array([5, 2**63, 2**64 - 1], np.uint64)
    table = pa.table({"user_id": [0, 0, 1, 1, 2], "item_id": ids[[0, 1, 1, 2, 0]]})
    model = WALS(2, iterations=2, random_state=0).fit(table)
    pytest.importorskip("onnx", reason="onnx is not installed")
    export(model, tmp_path / "out", to="onnx")
    _, _, names = session(tmp_path / "out").run(None, {"user": [0], "exclude": np.array([[0]]), "k": [3]})
    assert names.dtype == np.uint64 and names.tolist() == [[2**64 - 1, 0, 0]]  # one that is new, two of nothing


@pytest.mark.parametrize("objective", PRESETS)
def test_onnx_of_histories(tmp_path, objective):
    """New users, solved in the graph: one, several of different lengths, and one who has nothing."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    neighbors = 8 if objective == "wals" else 0
    model = exported_model("rows", objective=objective, neighbors=neighbors)
    export(model, tmp_path / "out", to="onnx", query="history")
    histories = [[7], [4, 1, 88], list(range(0, 90, 3)), []]
    rows = np.full((4, 30), -1)
    matrix = np.zeros((4, ITEMS), np.float32)
    for user, own in enumerate(histories):
        rows[user, : len(own)], matrix[user, own] = own, 1
    found = session(tmp_path / "out").run(None, {"history": rows, "exclude": np.full((4, 1), 2), "k": [8]})
    answer = model.recommend_for(csr_matrix(matrix), 8, deny_items=[2])
    np.testing.assert_allclose(found[1], answer.scores, rtol=1e-4, atol=1e-5)
    assert (found[0] == answer.ids).mean() > 0.95  # values that are equal but for rounding may change places


# ---------------------------------------------------------------------------------------------------- what is refused


def test_what_no_vectors_can_express_is_refused(tmp_path):
    model = exported_model("text", neighbors=8)
    for to, options in (("parquet", {}), ("faiss", {}), ("onnx", {"query": "vectors"})):
        pytest.importorskip(to if to != "parquet" else "pyarrow")
        with pytest.raises(ValueError, match=r"neighbours .* is no dot product: factors_only=True"):
            export(model, tmp_path / "out", to=to, **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(ParameterWarning, match="is left out"):
        assert export(model, tmp_path / "out", to="parquet", factors_only=True).manifest["factors_only"]
    items, users = read(tmp_path / "out", "items.parquet"), read(tmp_path / "out", "users.parquet")
    scores = vectors_of(users)[3] @ vectors_of(items).T
    np.testing.assert_allclose(scores, model.fitted.user_factors[3] @ model.fitted.item_table().T, rtol=1e-6)


def test_nothing_that_is_there_is_lost(tmp_path, monkeypatch):
    model, out = exported_model("rows"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"^path: .*holds something else than an export"):
        export(model, out, to="parquet", overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    export(model, out, to="parquet")
    with pytest.raises(TypeError, match="overwrite must be True or False, got 'no'"):
        export(model, out, to="parquet", overwrite="no")
    with pytest.raises(FileExistsError, match="holds an export already; overwrite=True"):
        export(model, out, to="parquet")
    (out / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"it holds 'notes.md', which is not of the export"):
        export(model, out, to="parquet", overwrite=True)
    (out / "notes.md").unlink()
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", full)
        with pytest.raises(OSError, match="No space left"):
            export(model, out, to="parquet", overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["out"]
    export(model, out, to="faiss", overwrite=True) if "faiss" in sys.modules else None
    export(model, out, to="parquet", overwrite=True, seen=False)
    assert "seen" not in read(out, "users.parquet").column_names and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"to": "fais"}, ValueError, r"to must be one of .* got 'fais'; did you mean 'faiss'\?"),
        ({"to": "parquet", "sen": True}, TypeError, r"an export to parquet has no option 'sen'; did you mean 'seen'\?"),
        ({"to": "onnx", "query": "user"}, ValueError, "query must be one of 'users', 'vectors', 'history', got 'user'"),
        ({"to": "faiss", "index": "flat", "m": 8}, ValueError, r"are of index='hnsw', got index='flat'"),
        ({"to": "faiss", "index": "ivf"}, ValueError, "index='ivf': faiss says: could not parse index string ivf"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        export(exported_model("rows"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package onnx: pip install 'onnx'"):
        export(exported_model("rows"), tmp_path / "out", to="onnx")


def test_large_tables_lie_beside_the_graph(tmp_path, monkeypatch):
    """As of models whose tables protobuf cannot hold."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.setattr("wals_gpu.export.onnx.LARGE", 1000)
    model = exported_model("text")
    done = export(model, tmp_path / "out", to="onnx")
    assert done.sizes["model.onnx.data"] > 4 * 12 * (USERS + ITEMS) * 0.8
    found = session(tmp_path / "out").run(None, {"user": [4], "exclude": np.zeros((1, 0), np.int64), "k": [5]})
    same(found, model, *expected(model, [4], k=5))
