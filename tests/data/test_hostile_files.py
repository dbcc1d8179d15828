"""Files made to deceive: an error, no crash, no memory beyond their size, whatever the bytes (tests/fuzzing)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fuzzing.mutations import mutate
from fuzzing.targets import Targets

from wals_gpu import WALS, ModelFormatError
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.data import files
from wals_gpu.data.files import load_folder, load_npz, save_folder

HERE = Path(__file__).parents[1]
TARGETS = ["model.json", "metadata.json", "tensors.safetensors", "implicit.npz", "table.csv"]
TARGETS += ["table.jsonl", "table.feather"]
# 105,000 hostile files in about two minutes of one core; WALS_FUZZ_INPUTS=1000000 looks further, from other seeds.
INPUTS = int(os.environ.get("WALS_FUZZ_INPUTS", 15_000))


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    # In memory where there is such a place: every input is a file.
    memory = Path("/dev/shm")
    folder = tmp_path_factory.mktemp("fuzz") if not memory.is_dir() else memory / f"wals-fuzz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    yield Targets(folder)
    shutil.rmtree(folder)


def test_targets_accept_their_seeds_and_can_fail(targets, monkeypatch):
    assert list(targets.all()) == TARGETS
    for name, target in targets.all().items():
        for seed in targets.seeds()[name]:
            target(seed)
    monkeypatch.setattr(files, "_read_tensors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        targets.model_json(targets.seeds()["model.json"][0])


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(targets, name):
    target, seeds = targets.all()[name], targets.seeds()[name]
    corpus = [*seeds, *(path.read_bytes() for path in sorted((HERE / "fuzzing/corpus" / name).glob("*")))]
    for data in corpus:
        target(data)
    for seed in range(INPUTS):
        rng = np.random.default_rng(seed)
        data = mutate(corpus[rng.integers(0, len(corpus))], name.rpartition(".")[2], rng)
        try:
            target(data)
        except BaseException:
            Path(f"hostile-{name}").write_bytes(data)
            print(
                f"input {seed} is in ./hostile-{name}; when it is solved, it belongs into tests/fuzzing/corpus/{name}/"
            )
            raise


# Each of these says that it is far larger than it is.


def forged(folder, header=None, tensors=None, **document):
    """A model folder whose tensor file has another header, or other tensors, and fields of model.json changed."""
    save_folder(folder, {"x": np.zeros(4)} if tensors is None else tensors, {})
    described = json.loads((folder / "model.json").read_text("utf-8"))
    if header is not None:
        file = folder / described["tensors"]["file"]
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(32))
        content = file.read_bytes()
        document["tensors"] = described["tensors"] | {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    (folder / "model.json").write_text(json.dumps(described | document))


def npz_of(header: bytes, file_size: int | None = None, compression=zipfile.ZIP_STORED) -> bytes:
    """An npz file with one member, its npy header as given, followed by four bytes, or by zeros up to `file_size`."""
    file = io.BytesIO()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("factors.npy", content + bytes(4 if file_size is None else file_size - len(content)))
    return file.getvalue()


def test_a_header_that_states_more_than_the_file_has(tmp_path):
    for header in (
        b'{"x":{"dtype":"F64","shape":[1152921504606846976],"data_offsets":[0,32]}}',
        b'{"x":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,32]}}',
        b'{"x":{"dtype":"F64","shape":[4],"data_offsets":[0,9223372036854775807]}}',
        b'{"x":{"dtype":"F64","shape":[4],"data_offsets":[32,0]}}',
        b'{"x":{"dtype":"F64","shape":[4],"data_offsets":[0,32]},"y":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}}',
        b'{"x":{"dtype":"F64","shape":[-4],"data_offsets":[0,32]}}',
        b"{" * 100_000,
    ):
        forged(tmp_path, header)
        with pytest.raises(ModelFormatError, match="is damaged"):
            load_folder(tmp_path)
    for said in (2**20, 2**62, 2**64 - 1):  # an oversized header
        forged(tmp_path, tensors={"x": np.zeros(4)})
        file = next(tmp_path.glob("*.safetensors"))
        content = said.to_bytes(8, "little") + file.read_bytes()[8:]
        file.write_bytes(content)
        described = json.loads((tmp_path / "model.json").read_text("utf-8"))
        described["tensors"]["sha256"] = hashlib.sha256(content).hexdigest()
        (tmp_path / "model.json").write_text(json.dumps(described))
        with pytest.raises(ModelFormatError, match="is damaged"):
            load_folder(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"),
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 0), }"),
        npz_of(b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"),
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 5000 + b"1"),
        npz_of(b"{'descr': '|S4294967295', 'fortran_order': False, 'shape': (1,), }"),
        # A hundred million zeros in a hundred thousand bytes.
        npz_of(b"{'descr': '<f4', 'fortran_order': False, 'shape': (24999968,), }", 10**8, zipfile.ZIP_DEFLATED),
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_npz_that_states_more_than_it_has(data, tmp_path):
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(ModelFormatError, match=r"m\.npz"):
        AlternatingLeastSquares.load(tmp_path / "m")


def test_npz_comes_back_compressed_or_not():
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.eye(3, 2, dtype=np.float32)),
        "c": np.array("x"),
    }
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, **arrays)
        got = load_npz(file, ["a", "b", "c", "none"])
        assert got.keys() == arrays.keys()
        for name, array in arrays.items():
            assert got[name].dtype == array.dtype and got[name].flags.writeable
            np.testing.assert_array_equal(got[name], array)


def test_neither_pipes_nor_devices_are_read(tmp_path):
    """A pipe would block for ever, /dev/zero never end."""
    WALS(2, iterations=0).fit(np.eye(3)).save(tmp_path)
    for name in ("model.json", next(tmp_path.glob("*.safetensors")).name):
        kept = (tmp_path / name).read_bytes()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir):
            (tmp_path / name).unlink()
            make(tmp_path / name)
            with pytest.raises(ModelFormatError, match=f"{name} is damaged: it is not a file"):
                WALS.load(tmp_path)
            (tmp_path / name).rmdir() if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
            (tmp_path / name).write_bytes(kept)
    (tmp_path / "model.json").rename(tmp_path / "elsewhere")
    (tmp_path / "model.json").symlink_to("elsewhere")  # as in caches that hold each file once
    assert WALS.load(tmp_path).factors == 2


def test_a_description_without_end_is_refused(tmp_path):
    forged(tmp_path)
    with open(tmp_path / "model.json", "ab") as file:
        file.truncate(files._JSON_LIMIT + 1)  # a hole: takes no space on the disk
    with pytest.raises(ModelFormatError, match="larger than"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="must fit into"):
        save_folder(tmp_path, {}, {"x": "y" * files._JSON_LIMIT})


LIMITED = """
import json, resource, sys
sys.path = {paths!r}
import numpy as np
import test_hostile_files as t
from wals_gpu import WALS, ModelFormatError
from pathlib import Path

folder = Path({folder!r})
model = WALS(2, iterations=1, num_threads=1).fit(np.eye(4, dtype=np.float32))
model.save(folder)
assert WALS.load(folder, num_threads=1).recommend(0, 2)  # everything that is loaded late is loaded now
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
try:
    np.empty(32 << 20, np.uint8)
except MemoryError:
    print("limited")
text = (folder / "model.json").read_text()
for old, new in (('"n_users": 4', '"n_users": 1099511627776'), ('"n_items": 4', '"n_items": 1099511627776'),
                 ('"factors": 2', '"factors": 1024'), ('"bytes": ', '"bytes": 9999999')):
    document = json.loads(text.replace(old, new))
    document["metadata_sha256"] = t.hashlib.sha256(t.files._canonical(document["metadata"]).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(document))
    try:
        WALS.load(folder, num_threads=1)
    except ModelFormatError as error:
        print("refused")
t.test_a_header_that_states_more_than_the_file_has(folder)
for mark in t.test_npz_that_states_more_than_it_has.pytestmark:
    for data in mark.args[1]:
        t.test_npz_that_states_more_than_it_has(data, folder)
print("done")
"""


def test_nothing_is_allocated_beyond_the_size_of_the_file(tmp_path):
    """16 MiB of address space are left, and files of a few hundred bytes claim to need more."""
    code = LIMITED.format(paths=sys.path, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["limited", *["refused"] * 4, "done"], done.stderr
