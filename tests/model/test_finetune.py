"""Fine-tuning: the joint objective falls, held-out items stand for items to come, frozen weights stay."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, reference
from wals_gpu.errors import ModelFitError
from wals_gpu.priors.linear import LinearPrior
from wals_gpu.text.transformer import TextEncoder
from wals_gpu.text.whitening import Whitening

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from text_models import tiny_roberta

from wals_gpu.model.finetune import fine_tune

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KINDS = ("music", "editor", "server")
RNG = np.random.default_rng(0)
# Which of three words a text has decides who has the item; where it stands and what else is there tells nothing.
KIND = RNG.integers(3, size=90)
TEXTS = [
    " ".join(RNG.permutation([KINDS[kind], *RNG.choice(["a", "web", "library", "plays", "files", "for"], 3)]))
    for kind in KIND
]


@pytest.fixture(scope="module")
def likes():
    same = np.arange(120)[:, None] % 3 == KIND
    return csr_matrix((np.random.default_rng(1).random((120, 90)) < np.where(same, 0.5, 0.03)).astype(np.float32))


@pytest.fixture
def encoder(tmp_path):
    # Dropout would hide whether a wide step was a good one: 16 numbers are few to lose some of.
    return TextEncoder(tiny_roberta(tmp_path / "tiny", layers=3, dropout=0.0), max_length=16, device="cpu")


def fitted(likes, encoder, **settings):
    prior = LinearPrior(encoder.encode(TEXTS), encoder=encoder, strength=5.0, **settings)
    return WALS(4, "ials", unobserved_weight=0.1, iterations=6, item_prior=prior).fit(likes)


@pytest.mark.parametrize("settings", [{}, {"whitening": Whitening(), "normalize": False}, {"whitening": Whitening()}])
def test_training_lowers_the_joint_objective(likes, encoder, settings):
    model = fitted(likes, encoder, **settings)
    begin = model.history_[-1].loss
    rounds = fine_tune(model, likes, TEXTS, rounds=2, epochs=8, learning_rate=3e-4, heldout=0.2)
    first = rounds[0]
    assert first.loss_before == begin
    assert first.kept and first.heldout_trained < first.heldout_before
    assert first.items_trained < first.items_before
    assert first.loss_trained < begin
    if not settings:  # otherwise the features' scale is learned anew in the next fit, and with it the objective
        assert first.loss_after < first.loss_trained
    assert rounds[-1].loss_after == model.history_[-1].loss < begin
    np.testing.assert_array_equal(model.item_prior.embeddings, encoder.encode(TEXTS))


def test_losses_are_those_of_the_joint_objective(likes, encoder):
    """Each figure against the dense formula over all pairs, with factors from dense systems, in float64."""
    model = fitted(likes, encoder, shrinkage=0.5)
    before = model.item_prior_
    users, items = model.user_factors.astype(np.float64), model.item_factors.astype(np.float64)
    user_terms, item_terms = model._bound.user_terms(likes), model._bound.item_terms(csr_matrix(likes.T))
    towards_zero, strength = before.ridges(item_terms)

    def objective(items, mean):
        pairs = reference.loss(user_terms, users, items, towards_zero)
        weights = float(np.sum(before.weights**2)) * model.item_prior.ridge
        return pairs + float(strength @ ((items - mean) ** 2).sum(axis=1)) + weights

    def best(mean):
        factors = np.empty_like(items)
        for row in range(90):
            a, b = reference.row_system(item_terms, row, users)
            a += (towards_zero[row] + strength[row] - item_terms.ridge[row]) * np.eye(4)
            factors[row] = np.linalg.solve(a, b + strength[row] * mean[row])
        return factors

    assert np.isclose(model.history_[-1].loss, objective(items, before.mean), rtol=1e-5)
    old = objective(best(before.mean), before.mean)
    (only,) = fine_tune(model, likes, TEXTS, rounds=1, epochs=3, learning_rate=1e-3, heldout=0.25)
    mean = before.project(encoder.encode(TEXTS))
    new = objective(best(mean), mean)
    assert np.isclose(only.loss_trained, new, rtol=1e-5)
    change = only.items_trained + only.heldout_trained - only.items_before - only.heldout_before
    assert np.isclose(change, new - old, rtol=1e-3)
    assert 0 < only.heldout_before < only.items_before


def test_the_regression_has_the_gradient_of_the_joint_objective(likes, encoder):
    """Over the prior means, at the present ones, where every factor is at its best for them."""
    from wals_gpu.model.finetune import _ItemsPart

    model = fitted(likes, encoder, shrinkage=0.3)
    mean = model.item_prior_.mean.astype(np.float64)
    part = _ItemsPart(model, csr_matrix(likes.T), np.arange(90))
    at_best = part.best(mean.astype(np.float32)).astype(np.float64)
    targets, weights = part.regression(at_best, mean)
    strength = model.item_prior_.ridges(model._bound.item_terms(csr_matrix(likes.T)))[1]
    np.testing.assert_allclose(weights[:, None] * (targets - mean), strength[:, None] * (at_best - mean), rtol=1e-9)
    assert (0 < weights).all() and (weights < strength).all()


def test_the_network_head_is_the_prior(likes, encoder):
    from wals_gpu.model.finetune import network_head

    for settings in ({}, {"whitening": Whitening(components=5)}, {"normalize": False}):
        model = fitted(likes, encoder, **settings)
        head = network_head(encoder, model.item_prior_)
        target = torch.zeros(90, 4)
        with torch.no_grad():
            loss = head(encoder.padded(encoder.tokens(TEXTS)), target, torch.ones(90))["loss"]
        means = model.item_prior_.project(encoder.encode(TEXTS))
        assert np.isclose(float(loss), (means**2).sum(axis=1).mean(), rtol=1e-4)


def test_a_round_that_makes_held_out_items_worse_is_undone(likes, encoder):
    model = fitted(likes, encoder)
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    embeddings = encoder.encode(TEXTS)
    rounds = fine_tune(model, likes, TEXTS, rounds=3, epochs=2, learning_rate=3.0, heldout=0.2)  # far too fast
    assert len(rounds) == 1 and not rounds[0].kept
    assert rounds[0].heldout_trained > rounds[0].heldout_before
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    np.testing.assert_array_equal(model.item_prior.embeddings, embeddings)


@pytest.mark.parametrize("freeze_below", [0, 1, 3])
def test_lower_layers_can_be_frozen(likes, encoder, freeze_below):
    model = fitted(likes, encoder)
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    fine_tune(model, likes, TEXTS, rounds=1, learning_rate=1e-3, heldout=0.0, freeze_below=freeze_below)
    changed = {name for name, tensor in encoder.model.state_dict().items() if not torch.equal(tensor, before[name])}
    layers = {int(name.split(".")[2]) + 1 for name in changed if name.startswith("encoder.layer")}
    assert layers == set(range(max(freeze_below, 1), 4))
    assert any(name.startswith("embeddings") for name in changed) == (freeze_below == 0)
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())


def test_the_same_seed_gives_the_same_encoder(likes, tmp_path):
    found = []
    for name in ("a", "b"):
        encoder = TextEncoder(tiny_roberta(tmp_path / name, layers=3), max_length=16, device="cpu")
        fine_tune(fitted(likes, encoder), likes, TEXTS, rounds=1, learning_rate=1e-3, seed=3)
        found.append(encoder.encode(TEXTS))
    np.testing.assert_array_equal(*found)


def test_a_fine_tuned_encoder_is_saved_under_its_own_name(likes, encoder, tmp_path):
    model = fitted(likes, encoder)
    fine_tune(model, likes, TEXTS, rounds=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"call save_pretrained\(folder\) first"):
        encoder.to_config()
    encoder.save_pretrained(tmp_path / "tuned")
    model.save(tmp_path / "model")
    loaded = WALS.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.project_items(TEXTS), model.project_items(TEXTS), atol=1e-5)


def test_texts_with_ids_have_any_order(likes, encoder):
    rows, columns = likes.nonzero()
    names = np.array([f"i{(7 * item) % 90:02}" for item in range(90)])  # not in the order of the texts
    plays = {"user_id": rows, "item_id": names[columns]}
    text_of = dict(zip(names.tolist(), TEXTS, strict=True))
    prior = LinearPrior.from_texts(text_of, encoder, strength=5.0)
    model = WALS(4, "ials", unobserved_weight=0.1, iterations=3, item_prior=prior).fit(pd.DataFrame(plays))
    with pytest.raises(ValueError, match="in the order in which item_prior got them; they must be in the order of"):
        fine_tune(model, pd.DataFrame(plays), TEXTS)
    with pytest.raises(ValueError, match="texts must hold one for each of the 90 items; 1 have none, such as 'i00'"):
        fine_tune(model, pd.DataFrame(plays), {name: text for name, text in text_of.items() if name != "i00"})
    with pytest.raises(TypeError, match="ids of texts: item ids are strings"):
        fine_tune(model, pd.DataFrame(plays), dict(enumerate(TEXTS)))
    with pytest.raises(ValueError, match="interactions must be those of the fit: their items are others than the"):
        fine_tune(model, pd.DataFrame(plays | {"item_id": [f"{name}x" for name in plays["item_id"]]}), text_of)
    with pytest.raises(ValueError, match="texts have ids, but the model was fitted on a matrix"):
        fine_tune(fitted(likes, encoder), likes, text_of)
    (only,) = fine_tune(model, pd.DataFrame(plays), text_of | {"of nobody": "web"}, rounds=1, iterations=1)
    by_id = model.item_prior.rows_for("item", model.item_ids, 90)
    np.testing.assert_allclose(by_id, encoder.encode([text_of[item] for item in model.item_ids]), atol=1e-5)
    assert only.kept and model.item_prior.has_ids  # so that a fit of other items finds them


def test_what_cannot_be_fine_tuned(likes, encoder):
    model = fitted(likes, encoder)
    for settings, words in (
        ({"rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"heldout": 1.0}, "heldout must be a number from 0 to below 1, got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"freeze_below": 4}, "freeze_below must be an integer from 0 to 3, got 4"),
    ):
        with pytest.raises(ValueError, match=words):
            fine_tune(model, likes, TEXTS, **settings)
    for settings, words in (
        ({"epochs": True}, "epochs must be an integer >= 1, got True"),
        ({"heldout": "0.1"}, "heldout must be a number from 0 to below 1, got '0.1'"),
        ({"freeze_below": 1.0}, "freeze_below must be an integer from 0 to 3, got 1.0"),
    ):
        with pytest.raises(TypeError, match=words):
            fine_tune(model, likes, TEXTS, **settings)
    with pytest.raises(ValueError, match="texts must hold one for each of the 90 items, got 3"):
        fine_tune(model, likes, TEXTS[:3])
    with pytest.raises(ValueError, match=r"interactions must be those of the fit, \(120, 90\), got \(60, 90\)"):
        fine_tune(model, likes[:60], TEXTS)
    with pytest.raises(ModelFitError, match="needs a fitted model with an item_prior"):
        fine_tune(WALS(4).fit(likes), likes, TEXTS)
    for settings, words in (({"kernel": 0.5}, "kernel=0"), ({"relative_strength": 0}, "relative_strength > 0")):
        unfit = LinearPrior(encoder.encode(TEXTS), encoder=encoder, **settings)
        with pytest.raises(ValueError, match=words):
            fine_tune(WALS(4, item_prior=unfit).fit(likes), likes, TEXTS)
    model.item_prior.encoder = None
    with pytest.raises(TypeError, match=r"needs LinearPrior\(..., encoder=TextEncoder\(...\)\)"):
        fine_tune(model, likes, TEXTS)
