"""A saved model comes back as it was; a save that fails or is killed leaves the earlier model whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wals_gpu import WALS
from wals_gpu.data import files
from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.errors import ModelFormatError

DTYPES = [
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
OLD = ({"x": np.arange(12.0).reshape(3, 4), "ids": np.array([3, 5])}, {"name": "old", "alpha": 1.5})
NEW = ({"x": np.ones((5, 2), np.float32)}, {"name": "new", "nested": {"list": [1, None, True, "ü"]}})


def same(got, want):
    tensors, metadata = got
    assert metadata == want[1]
    assert tensors.keys() == want[0].keys()
    for name, tensor in want[0].items():
        assert tensors[name].dtype == tensor.dtype.newbyteorder("=")
        np.testing.assert_array_equal(tensors[name], tensor)
    return True


def which(folder):
    """Name of the model that is there, after comparing all of it."""
    got = load_folder(folder)
    assert same(got, OLD if got[1]["name"] == "old" else NEW)
    return got[1]["name"]


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "model", *OLD)
    return tmp_path / "model"


ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\ud800" not in repr(value))


@settings(max_examples=40, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4
    ),
    metadata=st.dictionaries(st.text(), JSON, max_size=3),
)
def test_round_trip(tmp_path_factory, tensors, metadata):
    folder = tmp_path_factory.mktemp("model")
    save_folder(folder, tensors, metadata)
    loaded, again = load_folder(folder)
    assert again == metadata
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].tobytes() == tensor.tobytes()  # NaNs too


def test_views_and_foreign_byte_order(tmp_path):
    x = np.arange(24.0).reshape(4, 6)
    tensors = {"transposed": x.T, "strided": x[::2, ::-3], "big_endian": x.astype(">f4"), "scalar": np.array(2.5)}
    save_folder(tmp_path, tensors, {})
    same(load_folder(tmp_path), (tensors, {}))
    assert all(tensor.flags.writeable for tensor in load_folder(tmp_path)[0].values())


def test_files_are_what_they_say(folder):
    document = json.loads((folder / "model.json").read_text("utf-8"))
    entry = document["tensors"]
    assert sorted(os.listdir(folder)) == sorted(["model.json", entry["file"]])
    content = (folder / entry["file"]).read_bytes()
    assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert document["format_version"] == 1 and document["versions"]["numpy"] == np.__version__
    # Readable by anything that reads safetensors.
    assert same((safetensors.numpy.load_file(folder / entry["file"]), OLD[1]), OLD)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save_folder(tmp_path / "model", *OLD)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "model").iterdir()} == {0o640}


def test_a_save_replaces_the_model_and_nothing_else(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "model-card.safetensors").write_text("mine too")
    save_folder(folder, *NEW)
    assert which(folder) == "new"
    save_folder(folder, *NEW)
    assert which(folder) == "new"
    assert len(os.listdir(folder)) == 4


def test_bad_arguments_write_nothing(tmp_path):
    x = np.ones(2)
    for tensors in ({"x": [1.0]}, {"x": x.astype(object)}, {"x": x.astype(complex)}, {"x": np.array(["a"])}):
        with pytest.raises(TypeError, match=r"tensors\['x'\] must be an array of numbers or bools, got"):
            save_folder(tmp_path / "model", tensors, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_folder(tmp_path / "model", {}, {"x": x})
    with pytest.raises(ValueError, match="JSON compliant"):
        save_folder(tmp_path / "model", {}, {"x": float("nan")})
    assert not (tmp_path / "model").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="path must be a folder; there is a file of this name"):
        save_folder(tmp_path / "file", *OLD)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ModelFormatError, match="not a model folder"):
        load_folder(tmp_path / "file")


# --- a save that fails ---------------------------------------------------------------------------------------------
#
# Python raises an audit event before each operation on files, so failing or dying at the n-th of them covers every
# state of the folder that other processes can see, whatever the code does.

_countdown: int | None = None


def _audit(event, args):
    global _countdown
    if _countdown is not None and event.startswith(("open", "os.", "fcntl.")):
        _countdown -= 1
        if _countdown < 0:
            _countdown = None
            raise OSError(28, f"simulated at {event}")


sys.addaudithook(_audit)  # for good: there is no way to remove one


def test_an_error_at_any_step_leaves_a_whole_model(folder):
    global _countdown
    failures = 0
    for n in range(100):
        shutil.rmtree(folder)
        save_folder(folder, *OLD)
        _countdown = n
        try:
            save_folder(folder, *NEW)
        except OSError as error:
            assert "simulated" in str(error)
            failures += 1
            assert which(folder) == "old"
            assert len(os.listdir(folder)) == 2
        if _countdown is not None:
            break
        _countdown = None
    _countdown = None
    assert failures >= 6  # two files, each opened and renamed; the folder, opened and locked
    assert which(folder) == "new" and len(os.listdir(folder)) == 2


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_an_error_in_writing_leaves_the_old_model(folder, monkeypatch, step):
    if step == "fsync":

        def fail(fd):
            raise OSError(5, "simulated")

        monkeypatch.setattr(files.os, "fsync", fail)
        with pytest.raises(OSError, match="simulated"):
            save_folder(folder, *NEW)
    else:
        # A real one: files may not grow beyond 4 KiB.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                save_folder(folder, {"x": np.zeros(10**5)}, NEW[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert which(folder) == "old"
    assert len(os.listdir(folder)) == 2


def test_data_reach_the_disk_before_their_names(tmp_path, monkeypatch):
    """What a power cut needs and a killed process does not: the order of fsync and rename."""
    calls = []
    fsync, replace = os.fsync, os.replace
    inode = tmp_path.stat().st_ino

    def logged_fsync(fd):
        calls.append("folder" if os.fstat(fd).st_ino == inode else os.fstat(fd).st_ino)
        fsync(fd)

    def logged_replace(source, target):
        calls.append((os.stat(source).st_ino, Path(target).suffix))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", logged_fsync)
    monkeypatch.setattr(files.os, "replace", logged_replace)
    save_folder(tmp_path, *OLD)
    tensors, text = tensor_file(tmp_path).stat().st_ino, (tmp_path / "model.json").stat().st_ino
    assert calls == [tensors, (tensors, ".safetensors"), "folder", text, (text, ".json"), "folder"]


KILLED = """
import os, shutil, signal, sys
import numpy as np
sys.path = {paths!r}
import test_persistence as t
from killed import kill_before_operation

def child(n, folder):
    kill_before_operation(n)
    t.save_folder(folder, *t.NEW)
    os._exit(0)

for n in range(100):
    folder = os.path.join({root!r}, str(n))
    t.save_folder(folder, *t.OLD)
    pid = os.fork()
    if not pid:
        child(n, folder)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    if status == 0:
        break
print(n)
"""


def test_kill_at_any_step_leaves_a_whole_model(tmp_path):
    code = KILLED.format(paths=sys.path, root=str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    n = int(done.stdout)
    states = [which(tmp_path / str(k)) for k in range(n + 1)]
    assert states.count("old") >= 6 and states[-1] == "new"
    assert states == sorted(states, reverse=True)  # old up to some step, new from there on
    assert any(len(os.listdir(tmp_path / str(k))) > 2 for k in range(n))  # a killed save may leave a file behind
    for k in range(n + 1):
        save_folder(tmp_path / str(k), *OLD)
        assert which(tmp_path / str(k)) == "old" and len(os.listdir(tmp_path / str(k))) == 2


SAVING = """
import os, signal, sys, time
import numpy as np
sys.path = {paths!r}
import test_persistence as t

big = np.random.default_rng(0).random(2**16)
old, new = ({{"x": big}}, {{"name": "old"}}), ({{"x": -big}}, {{"name": "new"}})
folder, rng, cycle = {folder!r}, np.random.default_rng(0), None
for kill in range(101):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        while True:
            t.save_folder(folder, *old)
            t.save_folder(folder, *new)
            os.write(writer, b".")
    os.read(reader, 1)  # it is at work
    if not kill:
        started = time.perf_counter()
        os.read(reader, 1)
        cycle = time.perf_counter() - started
    time.sleep(rng.uniform(0, cycle))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    os.close(reader), os.close(writer)
    got = t.load_folder(folder)
    assert t.same(got, old if got[1]["name"] == "old" else new)
    print(got[1]["name"], flush=True)
"""


def test_100_kills_at_random_times_leave_a_whole_model(tmp_path):
    code = SAVING.format(paths=sys.path, folder=str(tmp_path / "model"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    found = done.stdout.split()
    assert len(found) == 101 and set(found) == {"old", "new"}, done.stderr
    save_folder(tmp_path / "model", *OLD)  # and clears away what the killed ones left
    assert len(os.listdir(tmp_path / "model")) == 2


def test_savers_and_readers_at_once(folder):
    """Each reader sees one model or the other, never a mixture or a missing file."""
    errors = []

    def run(action):
        try:
            for _ in range(15):
                action()
        except Exception as error:
            errors.append(error)

    actions = [lambda: save_folder(folder, *OLD), lambda: save_folder(folder, *NEW), lambda: which(folder)]
    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(os.listdir(folder)) == 2


def test_a_save_between_the_two_reads_of_a_load(folder, monkeypatch):
    parse = files._parse

    def parse_and_save(*args):
        monkeypatch.setattr(files, "_parse", parse)
        save_folder(folder, *NEW)
        return parse(*args)

    monkeypatch.setattr(files, "_parse", parse_and_save)
    assert which(folder) == "new"


# --- a folder that cannot be loaded --------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        load_folder(tmp_path / "nothing")
    with pytest.raises(ModelFormatError, match=r"is not a model folder: it has no model\.json"):
        load_folder(tmp_path)
    for call in (load_folder, lambda path: save_folder(path, {}, {})):
        with pytest.raises(TypeError, match=r"path must be a str or a pathlib\.Path, got 5"):
            call(5)
        with pytest.raises(ValueError, match="path must be the name of a file or a folder, got ''"):
            call("")


def tensor_file(folder):
    return folder / json.loads((folder / "model.json").read_text("utf-8"))["tensors"]["file"]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_damaged_byte_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("model")
    save_folder(folder, *OLD)
    file = data.draw(st.sampled_from([folder / "model.json", tensor_file(folder)]))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        got = load_folder(folder)
    except ModelFormatError as error:
        assert str(folder) in str(error)
    else:
        # Only where the byte carries nothing: the blank space and the versions noted in the JSON.
        assert file.name == "model.json" and same(got, OLD)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, -2])
def test_truncated_files(folder, size):
    for file in (tensor_file(folder), folder / "model.json"):
        content = file.read_bytes()
        file.write_bytes(content[:size])
        with pytest.raises(ModelFormatError, match=re.escape(file.name)):
            load_folder(folder)
        file.write_bytes(content)
    assert which(folder) == "old"


def test_missing_tensor_file(folder):
    file = tensor_file(folder)
    file.unlink()
    with pytest.raises(ModelFormatError, match=f"{file.name} is missing"):
        load_folder(folder)


def edit(folder, **changes):
    document = json.loads((folder / "model.json").read_text("utf-8"))
    for key, value in changes.items():
        target, _, name = key.rpartition("__")
        (document[target] if target else document)[name] = value
    (folder / "model.json").write_text(json.dumps(document), "utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "does not describe a wals_gpu model"),
        ({"format_version": 2}, "format version 2, written by a newer wals_gpu; this one reads up to 1"),
        ({"format_version": 0}, "format_version must be a positive integer, got 0"),
        ({"format_version": "1"}, "format_version must be a positive integer, got '1'"),
        ({"format_version": True}, "format_version must be a positive integer, got True"),
        ({"tensors": None}, "must hold the objects"),
        ({"metadata": []}, "must hold the objects"),
        ({"metadata": {"name": "forged"}}, "metadata do not have the SHA-256"),
        ({"metadata_sha256": None}, "metadata do not have the SHA-256"),
        ({"tensors__file": "../secret.safetensors"}, "is no name of a tensor file"),
        ({"tensors__file": "/etc/passwd"}, "is no name of a tensor file"),
        ({"tensors__file": "model-0123456789abcdef.safetensors/../../x"}, "is no name of a tensor file"),
        ({"tensors__file": "model-0123456789abcdef.safetensors\n"}, "is no name of a tensor file"),
        ({"tensors__file": 5}, "is no name of a tensor file"),
        ({"tensors__file": "model-0123456789abcdef.safetensors"}, "is missing"),
        ({"tensors__bytes": "1"}, "size and SHA-256"),
        ({"tensors__bytes": 1}, "bytes, saved with 1"),
        ({"tensors__sha256": "00"}, "size and SHA-256"),
        ({"tensors__sha256": "0" * 64}, "does not have the SHA-256"),
    ],
)
def test_wrong_json(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ModelFormatError, match=message):
        load_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"[" * 10**5, b'{"format": "wals_gpu"}'])
def test_json_of_another_kind(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelFormatError, match=r"model\.json"):
        load_folder(folder)
    save_folder(folder, *NEW)  # what cannot be read does not stand in the way
    assert which(folder) == "new"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (10).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (56).to_bytes(8, "little") + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}  ' + bytes(4),
        (56).to_bytes(8, "little") + b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0, 4]}}  ' + bytes(4),
        (56).to_bytes(8, "little") + b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}  ' + bytes(4),
    ],
)
def test_forged_tensor_file(folder, content):
    """With the right size and hash: the structure itself is checked too."""
    file = tensor_file(folder)
    file.write_bytes(content)
    edit(folder, tensors__bytes=len(content), tensors__sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ModelFormatError, match=f"{file.name} is damaged"):
        load_folder(folder)


# --- models of earlier versions ------------------------------------------------------------------------------------


def test_there_is_a_sample_of_every_format():
    samples = {path.name for path in (Path(__file__).parents[1] / "samples").glob("format-*")}
    assert samples == {f"format-{version}" for version in range(1, files.FORMAT_VERSION + 1)}


def test_a_model_of_format_1_gives_the_answers_it_gave(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "samples/format-1", tmp_path / "model")
    model = WALS.load(tmp_path / "model")
    ids, scores = model.recommend(["ann", "dör"], k=2)
    assert ids.tolist() == [[-3, 2**40], [9, 7]]
    np.testing.assert_allclose(scores, [[0.21696119, 0.00504516], [0.01384301, -0.00765835]], rtol=1e-5)
    assert [record.iteration for record in model.history_] == [1, 2, 3]
    assert model.item_ids.ids.tolist() == [-3, 7, 9, 2**40] and model.objective.missing_weight == 2
    model.save(tmp_path / "model")  # in the present format
    np.testing.assert_array_equal(WALS.load(tmp_path / "model").item_factors, model.item_factors)
