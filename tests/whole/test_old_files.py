"""Files that earlier versions wrote: models, checkpoints, stored interactions, pickles, implicit's files, embeddings.

tests/samples/README.md says how each was made. Everything here goes through documented names, as old programs do.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, as_interactions
from wals_gpu.als import AlternatingLeastSquares, CpuAlternatingLeastSquares
from wals_gpu.interactions import Interactions
from wals_gpu.persistence import load_folder
from wals_gpu.priors import LinearPrior
from wals_gpu.stored import StoredMatrix
from wals_gpu.text import FunctionEncoder

SAMPLES = Path(__file__).parents[1] / "samples" / "version-0.1.0"


class Sample:
    """What the samples were made from, and what they gave."""

    def __init__(self) -> None:
        with np.load(SAMPLES / "inputs.npz") as inputs:
            self.likes = csr_matrix((inputs["value"], inputs["col_idx"], inputs["row_ptr"]), shape=inputs["shape"])
            self.held_out = csr_matrix(
                (inputs["held_out_value"], inputs["held_out_col_idx"], inputs["held_out_row_ptr"]), self.likes.shape
            )
            self.item_features, self.user_features = inputs["item_features"], inputs["user_features"]
        with np.load(SAMPLES / "expected.npz") as expected:
            self.expected = dict(expected)

    def table(self, matrix=None):
        """The interactions as a table with ids: "u0" ... of users, 100, 107 ... of items."""
        entries = (self.likes if matrix is None else matrix).tocoo()
        users = [f"u{row}" for row in entries.row]
        return pd.DataFrame({"user": users, "item": 100 + 7 * entries.col, "value": entries.data})

    def model(self):
        model = WALS(6, "hu", alpha=4, regularization=0.5, iterations=6, num_threads=2)
        return model.fit(self.table(), validation=self.table(self.held_out), metric="recall@5")

    def prior_model(self, learn):
        prior = LinearPrior(self.item_features, ridge=0.5, strength=2.0, learn=learn)
        return WALS(6, "ials", iterations=5, num_threads=2, item_prior=prior).fit(self.likes)

    def implicit_model(self, cls=AlternatingLeastSquares):
        model = cls(6, regularization=0.1, alpha=2.0, iterations=4, num_threads=2, random_state=5)
        model.fit(self.likes, show_progress=False)
        return model

    def checkpointed(self, name, **where):
        """A fit of 9 iterations; its checkpoint is of the third."""
        data, how = self.likes, {"validation": self.held_out, "metric": "ndcg@5"} if name == "validation" else {}
        options = {
            "basis": {"factors": 16, "solver": "cholesky"},
            "odd": {"factors": 5, "dtype": "float64", "solver": "cholesky"},
            "priors": {
                "factors": 6,
                "solver": "cg",
                "item_prior": LinearPrior(self.item_features, strength=2.0, learn="empirical_bayes"),
                "user_prior": LinearPrior(self.user_features, strength=1.0),
            },
            "validation": {"factors": 16, "solver": "subspace", "block_size": 16, "init_scale": 1.0},
            "over_relaxation": {"factors": 16, "solver": "cg", "over_relaxation": 1.6},
        }[name]
        model = WALS(objective="hu", alpha=4, regularization=0.5, iterations=9, num_threads=2, **options)
        return model.fit(data, **how, **where)

    def pickled(self):
        """Objects by the name of their file; the first one has computed what it keeps between calls."""
        used = self.implicit_model()
        used.recalculate_user(1, self.likes[1])
        return {
            "implicit": used,
            "implicit-cpu": self.implicit_model(CpuAlternatingLeastSquares),
            "model": self.model(),
            "model-prior": self.prior_model("empirical_bayes"),
            "interactions": as_interactions(self.table()),
        }


CHECKPOINTS = ("basis", "odd", "priors", "validation", "over_relaxation")
TEXTS = ["a player of music", "eine Bücherei", "a player of music", "", "editor"]


@pytest.fixture(scope="module")
def sample():
    return Sample()


def close(got, expected, growth=1.0):
    """Whether two results agree up to rounding: `growth` roundings of the largest number."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=growth * np.finfo(got.dtype).eps * abs(expected).max())


def check_model(model, sample):
    """The answers of the model with ids; scores are sums of 6 products, each below the largest."""
    for side in ("user", "item"):
        np.testing.assert_array_equal(getattr(model, f"{side}_factors"), sample.expected[f"model/{side}_factors"])
    ids, scores = model.recommend(["u3", "u11"], k=4)
    np.testing.assert_array_equal(ids, sample.expected["model/ids"])
    close(scores, sample.expected["model/scores"], 6)
    assert model.validation_metric_ == "recall@5" and model.best_iteration_ == int(sample.expected["model/best"])
    assert [record.iteration for record in model.history_] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal([record.loss for record in model.history_], sample.expected["model/losses"])
    np.testing.assert_array_equal([r.validation for r in model.history_], sample.expected["model/metric"])
    assert sorted(model.user_ids.ids) == sorted({f"u{row}" for row in sample.likes.nonzero()[0]})
    assert set(model.item_ids.ids) == {100 + 7 * column for column in sample.likes.nonzero()[1]}
    assert (model.objective.name, model.objective.alpha, model.objective.regularization) == ("hu", 4, 0.5)
    # Of a user who has what u3 has, the factor is that of one more sweep; the model goes on from where it is.
    model.recommend_for(sample.table(sample.likes[3]), k=2)
    assert model.fit(sample.table(), warm_start=True).history_[-1].loss < sample.expected["model/losses"][-1]


def test_a_model_with_ids_values_history_and_validation(sample, tmp_path):
    shutil.copytree(SAMPLES / "model", tmp_path / "model")
    model = WALS.load(tmp_path / "model")
    model.save(tmp_path / "again")
    check_model(model, sample)
    check_model(WALS.load(tmp_path / "again"), sample)


def check_prior_model(model, sample, learn):
    assert model.item_prior.learn == learn and model.item_prior.strength == 2.0 and model.item_prior.ridge == 0.5
    for name in ("user_factors", "item_factors"):
        np.testing.assert_array_equal(getattr(model, name), sample.expected[f"prior-{learn}/{name}"])
    np.testing.assert_array_equal(model.item_prior_.scale, sample.expected[f"prior-{learn}/scale"])
    assert (model.item_prior_.scale[0] == 1) == (learn == "none")
    close(model.project_items(-sample.item_features[:3]), sample.expected[f"prior-{learn}/projected"], 20)
    model.add_items(-sample.item_features[:2])
    close(model.item_factors[-2:], sample.expected[f"prior-{learn}/projected"][:2], 20)
    close(model.predict(4, [0, 7]), sample.expected[f"prior-{learn}/predicted"], 6)


@pytest.mark.parametrize("learn", ["none", "empirical_bayes"])
def test_a_model_with_an_item_prior(sample, tmp_path, learn):
    shutil.copytree(SAMPLES / f"prior-{learn}", tmp_path / "model")
    model = WALS.load(tmp_path / "model")
    model.save(tmp_path / "again")
    check_prior_model(model, sample, learn)
    check_prior_model(WALS.load(tmp_path / "again"), sample, learn)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_goes_on(sample, tmp_path, name):
    folder = tmp_path / "checkpoint"
    shutil.copytree(SAMPLES / f"checkpoint-{name}", folder)
    tensors, metadata = load_folder(folder)
    assert len(metadata["history"]) == 3
    assert ("present/basis" in tensors) == (name in ("basis", "validation", "over_relaxation"))
    resumed = sample.checkpointed(name, checkpoint_dir=folder, resume=True)
    whole = sample.checkpointed(name)
    assert [record.iteration for record in resumed.history_] == list(range(1, 10))
    # On another processor the last digits differ from the first iteration on, and each iteration solves systems made of
    # them. Over four instruction sets and six kernels of OpenBLAS, factors came out up to 96 roundings apart (of the
    # largest; over-relaxation adds most). A sweep more or less changes them by 4e5 and more.
    for side in ("user", "item"):
        got, expected = getattr(resumed, f"{side}_factors"), sample.expected[f"checkpoint-{name}/{side}_factors"]
        close(got, expected, 1000)
        close(getattr(whole, f"{side}_factors"), expected, 1000)
        close(got, getattr(whole, f"{side}_factors"), 1000)
    assert resumed.best_iteration_ == whole.best_iteration_
    assert load_folder(folder)[1]["settings"] == metadata["settings"]


def test_stored_interactions(sample):
    stored = StoredMatrix(SAMPLES / "stored")
    assert (stored.shape, stored.nnz, stored.dtype) == (sample.likes.shape, sample.likes.nnz, np.float32)
    from_disk, from_memory = (WALS(5, "hu", iterations=3).fit(data) for data in (stored, sample.likes))
    np.testing.assert_array_equal(from_disk.item_factors, from_memory.item_factors)


def unpickled(name):
    pytest.importorskip("numpy._core", reason="NumPy before 1.26 cannot read arrays that NumPy 2 pickled")
    return pickle.loads((SAMPLES / f"{name}.pickle").read_bytes())


def check_implicit(model, cls, sample):
    assert type(model) is cls and model.cg_steps == 3 and model.random_state == 5
    np.testing.assert_array_equal(model.user_factors, sample.expected["implicit/user_factors"])
    np.testing.assert_array_equal(model.item_factors, sample.expected["implicit/item_factors"])
    ids, scores = model.recommend([3, 4], sample.likes[[3, 4]], N=3)
    np.testing.assert_array_equal(ids, sample.expected["implicit/ids"])
    close(scores, sample.expected["implicit/scores"], 6)
    again = model.recalculate_user([2, 1], sample.likes[[2, 1]])
    np.testing.assert_array_equal(again[1], model.recalculate_user(1, sample.likes[1]))
    model.fit(sample.likes, show_progress=False)


@pytest.mark.parametrize(
    ("name", "cls"), [("implicit", AlternatingLeastSquares), ("implicit-cpu", CpuAlternatingLeastSquares)]
)
def test_pickles_of_implicits_model(sample, name, cls):
    check_implicit(unpickled(name), cls, sample)


def test_pickles_of_models_and_interactions(sample):
    check_model(unpickled("model"), sample)
    check_prior_model(unpickled("model-prior"), sample, "empirical_bayes")
    interactions, expected = unpickled("interactions"), as_interactions(sample.table())
    assert isinstance(interactions, Interactions)
    assert (interactions.matrix != expected.matrix).nnz == 0
    assert interactions.user_ids.ids.tolist() == expected.user_ids.ids.tolist()
    assert interactions.item_ids.take(2) == expected.item_ids.take(2)
    factors = [WALS(5, iterations=2).fit(each).item_factors for each in (interactions, expected)]
    np.testing.assert_array_equal(*factors)


@pytest.mark.parametrize("cls", [AlternatingLeastSquares, CpuAlternatingLeastSquares])
def test_implicits_file(sample, cls):
    check_implicit(cls.load(SAMPLES / "implicit.npz"), cls, sample)


def test_embeddings_are_found_again(sample, tmp_path):
    shutil.copytree(SAMPLES / "embeddings", tmp_path / "embeddings")

    def unwanted(texts):
        raise AssertionError(f"encoded again: {texts}")

    encoder = FunctionEncoder(unwanted, name="lengths and letters", cache_dir=tmp_path / "embeddings")
    np.testing.assert_array_equal(encoder.encode(TEXTS), sample.expected["embeddings"])
    new = FunctionEncoder(lambda texts: [[1, 2, 3]] * len(texts), name="lengths and letters",
                          cache_dir=tmp_path / "embeddings")  # fmt: skip
    np.testing.assert_array_equal(new.encode(["another", *TEXTS[:3]])[0], [1, 2, 3])
