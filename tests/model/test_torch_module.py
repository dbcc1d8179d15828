"""A model as a module of PyTorch: scores of predict, lists of recommend, and a state that makes the module again."""

import numpy as np
import pytest
from exported import expected, exported_model

from wals_gpu import ParameterWarning

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("ids", ["text", "rows"])
def test_scores_and_lists(ids):
    model = exported_model(ids)
    module = model.as_torch()
    users = np.arange(model.n_users)
    items = (users * 7) % model.n_items
    names = (users, items) if ids == "rows" else (model.user_ids.take(users), model.item_ids.take(items))
    scores = module(torch.from_numpy(users), torch.from_numpy(items))
    np.testing.assert_allclose(scores.numpy(), model.predict(*names), rtol=1e-5, atol=1e-6)
    for options in ({}, {"filter_seen": False}):
        found, best = module.recommend(torch.from_numpy(users), 10, **options)
        want, want_scores = expected(model, users, **options)
        rows = np.where(found.numpy() < 0, None, model.item_ids.take(found.numpy())) if ids == "text" else found.numpy()
        assert rows.tolist() == want.tolist()
        np.testing.assert_allclose(best.numpy(), want_scores, rtol=1e-5, atol=1e-6)
    assert module.recommend(torch.tensor([0]), 1000)[0].shape == (1, model.n_items)


def test_a_state_makes_the_same_module(tmp_path):
    import safetensors.torch

    model = exported_model("rows")
    module = model.as_torch(trainable=True)
    before = model.user_factors.copy()
    loss = (1 - module(torch.tensor([0, 1]), torch.tensor([2, 3]))).square().sum()
    loss.backward()
    with torch.no_grad():
        module.users.weight -= module.users.weight.grad
    assert not np.array_equal(module.users.weight[0].detach().numpy(), before[0])
    np.testing.assert_array_equal(model.user_factors, before)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "module.safetensors")
    again = model.as_torch()
    assert not again.users.weight.requires_grad
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "module.safetensors"))
    everybody = torch.arange(model.n_users)
    for a, b in zip(again.recommend(everybody), module.recommend(everybody), strict=True):
        assert torch.equal(a, b)
    bare = model.as_torch(seen=False)
    assert torch.equal(bare.recommend(everybody)[0], bare.recommend(everybody, filter_seen=False)[0])


def test_neighbours_are_refused():
    model = exported_model("text", neighbors=8)
    with pytest.raises(ValueError, match="is no dot product: factors_only=True"):
        model.as_torch()
    with pytest.warns(ParameterWarning, match="is left out"):
        assert model.as_torch(factors_only=True).items.weight.shape == (model.n_items, 12)
