"""Models whose factors are saved in float16."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, ModelFormatError
from wals_gpu.data.files import load_folder, save_folder

SIDES = ("user_factors", "item_factors")


def make_matrix(shape=(23, 17)):
    """Every user and item has an entry."""
    rng = np.random.default_rng(0)
    dense = rng.integers(1, 6, shape) * (rng.random(shape) < 0.3)
    dense[np.arange(max(shape)) % shape[0], np.arange(max(shape)) % shape[1]] = 3
    return csr_matrix(dense.astype(np.float32))


def make_model(**params):
    return WALS(**{"factors": 4, "objective": "hu", "alpha": 5, "iterations": 5, "num_threads": 1, **params})


def same_factors(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in SIDES)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def scaled_to(folder, model, factors):
    """Save the model with other factors."""
    model.fitted.user_factors.flags.writeable = model.fitted.item_factors.flags.writeable = True
    for name, values in zip(SIDES, factors, strict=True):
        getattr(model, name)[:] = values
    model.save(folder, dtype="float16")
    return WALS.load(folder)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factors", [1, 31, 33, 128])
def test_factors_come_back_to_eleven_bits_in_half_the_room(factors, dtype, tmp_path):
    matrix = make_matrix(shape=(300, 200))
    model = make_model(factors=factors, dtype=dtype, iterations=2).fit(matrix)
    model.save(tmp_path / "whole")
    model.save(tmp_path / "halves", dtype="float16")
    loaded = WALS.load(tmp_path / "halves")
    for name in SIDES:
        saved, back = getattr(model, name), getattr(loaded, name)
        assert back.dtype == saved.dtype
        # Half a unit of eleven bits, or of what float16 has left beneath its normal numbers.
        least = np.abs(saved).max() * 2.0**-39
        assert np.all(np.abs(back - saved) <= np.maximum(np.abs(saved) * 2.0**-11, least))
        assert not np.array_equal(back, saved)
    numbers = 500 * factors
    saving = size_of(tmp_path / "whole") - size_of(tmp_path / "halves")
    assert abs(saving - numbers * (np.dtype(dtype).itemsize - 2)) < 500
    assert loaded.dtype == model.dtype and loaded.history_ == model.history_ and loaded.objective == model.objective
    # Saved again, whole or in halves, nothing more is rounded.
    loaded.save(tmp_path / "again", dtype="float16")
    assert same_factors(WALS.load(tmp_path / "again"), loaded)
    loaded.save(tmp_path / "again")
    assert same_factors(WALS.load(tmp_path / "again"), loaded)
    assert json.loads((tmp_path / "again" / "model.json").read_text())["metadata"].get("halves") is None


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1.0, 7e4, 1e30])
def test_the_unit_of_the_factors_is_no_matter(unit, tmp_path):
    rng = np.random.default_rng(0)
    model = make_model().fit(make_matrix())
    users, items = (rng.standard_normal(getattr(model, name).shape).astype(np.float32) for name in SIDES)
    loaded = scaled_to(tmp_path / "model", model, (users * np.float32(unit), items / np.float32(unit)))
    for back, whole in ((loaded.user_factors, users * unit), (loaded.item_factors, items / unit)):
        assert np.allclose(back, whole, rtol=2.0**-11, atol=0)


def test_zeros_stay_zeros(tmp_path):
    model = make_model().fit(make_matrix())
    loaded = scaled_to(tmp_path / "model", model, (0.0, 1.0))
    assert not loaded.user_factors.any() and np.all(loaded.item_factors == 1)


def test_large_sides_are_converted_in_parts(tmp_path, monkeypatch):
    """The same numbers as at once: nothing between the parts is left out."""
    from wals_gpu.model import files

    model = make_model(factors=33).fit(make_matrix())
    model.save(tmp_path / "one", dtype="float16")
    whole = WALS.load(tmp_path / "one")
    monkeypatch.setattr(files, "_blocks", lambda factors: [slice(i, i + 7) for i in range(0, len(factors), 7)])
    model.save(tmp_path / "parts", dtype="float16")
    assert same_factors(WALS.load(tmp_path / "parts"), whole)


def test_a_rounded_model_answers_and_goes_on(tmp_path):
    coo = make_matrix().tocoo()
    data = pd.DataFrame({"user": [f"u{row}" for row in coo.row], "item": coo.col, "value": coo.data})
    model = make_model(factors=8).fit(data)
    model.save(tmp_path / "model", dtype="float16")
    loaded = WALS.load(tmp_path / "model")
    users = model.user_ids.ids
    ids, scores = model.recommend(users, k=3)
    their_ids, their_scores = loaded.recommend(users, k=3)
    assert np.allclose(scores, their_scores, rtol=0.01, atol=0.003) and np.mean(ids == their_ids) > 0.9
    assert loaded.fit(data, warm_start=True).history_[0].loss <= 1.001 * model.history_[-1].loss


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", np.float16, 16, b"float16"])
def test_other_types_are_refused(dtype, tmp_path):
    model = make_model().fit(make_matrix())
    with pytest.raises(ValueError, match="dtype must be 'float16', or None"):
        model.save(tmp_path / "model", dtype=dtype)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.pop("halves"),
        lambda tensors, metadata: metadata["halves"].pop("user_factors"),
        lambda tensors, metadata: metadata["halves"].update(user_factors="3"),
        lambda tensors, metadata: metadata["halves"].update(item_factors=1_000_000),
        lambda tensors, metadata: metadata["halves"].update(item_factors=True),
        lambda tensors, metadata: tensors.update(user_factors=tensors["user_factors"].astype(np.float32)),
        lambda tensors, metadata: tensors.update(item_factors=tensors["item_factors"][:, 1:]),
    ],
)
def test_files_that_do_not_fit_together_are_refused(change, tmp_path):
    make_model().fit(make_matrix()).save(tmp_path / "model", dtype="float16")
    tensors, metadata = load_folder(tmp_path / "model")
    change(tensors, metadata)
    save_folder(tmp_path / "model", tensors, metadata)
    with pytest.raises(ModelFormatError, match="not a model that this version can read"):
        WALS.load(tmp_path / "model")
