"""Fine-tuning an encoder on the factors that its texts are the prior of.

The joint objective of a model with a :class:`wals_gpu.priors.LinearPrior` depends on the encoder f through one term::

    sum_i s_i |y_i - q_i|^2,    q_i = W z(f(text_i)) + b

with z the prior's centring and scaling. WALS lowers the objective over factors, W and b; an epoch of the Hugging Face
Trainer lowers this term over the weights of f. The two alternate.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wals_gpu.errors import ModelFitError
from wals_gpu.interactions import as_interactions
from wals_gpu.priors import FittedPrior, LinearPrior
from wals_gpu.text.transformer import TextEncoder

if TYPE_CHECKING:
    import torch

    from wals_gpu.model import WALS

__all__ = ["FineTuneRound", "fine_tune"]


@dataclass(frozen=True)
class FineTuneRound:
    """One round of :func:`fine_tune`.

    Attributes
    ----------
    loss_before : float
        The joint objective when it began.
    loss_trained : float
        After the encoder's epochs, with factors, W and b as they were.
    loss_after : float
        After the iterations of WALS that followed.
    term_before, term_trained : float
        The regression term alone, in ``loss_before`` and ``loss_trained``.
    heldout_before, heldout_trained : float
        Its mean over the items that were held out of training, as a share of what q = mean of y leaves: 1 says that
        the text tells nothing of an item that the encoder was not trained on. NaN without such items.
    kept : bool
        Whether the trained weights were kept; not where they made the held-out items worse.
    """

    loss_before: float
    loss_trained: float
    loss_after: float
    term_before: float
    term_trained: float
    heldout_before: float
    heldout_trained: float
    kept: bool


def fine_tune(
    model: WALS,
    interactions: Any,
    texts: Sequence[str | None],
    *,
    rounds: int = 2,
    epochs: int = 1,
    iterations: int = 3,
    learning_rate: float = 2e-5,
    batch_size: int = 16,
    freeze_below: int = 0,
    heldout: float = 0.1,
    seed: int = 0,
    show_progress: bool = False,
    **columns: Any,
) -> list[FineTuneRound]:
    """Alternate epochs of the encoder and iterations of WALS.

    Parameters
    ----------
    model : WALS
        Fitted, with an ``item_prior`` whose encoder is a :class:`TextEncoder`. It is fitted further, and has a prior
        with the new embeddings afterwards.
    interactions, **columns
        What it was fitted on.
    texts : sequence of I str or None
        Of the rows of the model, in order.
    rounds : int, default 2
    epochs : int, default 1
        Of the encoder in each round.
    iterations : int, default 3
        Of WALS in each round, from the factors as they are.
    learning_rate : float, default 2e-5
        From 2e-5 to 5e-5 for a trained encoder; falls to 0 over a round.
    batch_size : int, default 16
        Texts per step.
    freeze_below : int, default 0
        Layers below this one, and the input embeddings, keep their weights: 0 trains all, 1 all but the embeddings, n
        the last of n layers only.
    heldout : float, default 0.1
        Share of the items with interactions that the encoder is not trained on, in [0, 1). They stand for items to
        come: a round that makes them worse is undone, and is the last.
    seed : int, default 0
        Of the held-out items, the order of training and dropout.
    show_progress : bool, default False

    Returns
    -------
    list of FineTuneRound
        What each round did to the joint objective.

    Raises
    ------
    ImportError
        accelerate, which the Trainer needs, is not installed.
    TypeError, ValueError, ModelFitError
        A parameter is out of range, the model has no such prior, or texts do not fit it.

    Notes
    -----
    Items weigh ``s_i h_i / (h_i + s_i)``, h_i the mean curvature of the data in the row of item i: close to s_i where
    interactions determine the factor, 0 where the factor is no more than its prior mean.

    The encoder's weights change in place; ``encoder.save_pretrained(folder)`` keeps them.
    """
    encoder, fitted = _checked_model(model, texts)
    for name, value, low in (("rounds", rounds, 1), ("epochs", epochs, 1), ("iterations", iterations, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    if not 0 <= heldout < 1:
        raise ValueError(f"heldout must be a share in [0, 1), got {heldout!r}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, got {learning_rate!r}")
    trained_layers = _trained_parameters(encoder.model, freeze_below)
    data = as_interactions(interactions, dtype=model.dtype, **columns)
    n_users = len(model._fitted()[0])
    if data.matrix.shape != (n_users, len(texts)):
        raise ValueError(f"interactions must be those of the fit, {(n_users, len(texts))}, got {data.matrix.shape}")
    assert model._bound is not None
    terms = model._bound.item_terms(model._backend.transpose(data.matrix))
    known = np.diff(terms.row_ptr) > 0
    told = known & np.array([bool(text and text.strip()) for text in texts])
    held = np.zeros(len(texts), np.bool_)
    rng = np.random.default_rng(seed)
    if heldout:
        held[rng.permutation(np.flatnonzero(told))[: round(heldout * told.sum())]] = True
    if not (told & ~held).any():
        raise ValueError("no item has a text and interactions, so there is nothing to train on")
    work = _Work(encoder, list(texts), told & ~held, trained_layers, epochs, learning_rate, batch_size, show_progress)

    done = []
    embeddings = encoder.encode(texts)
    for number in range(rounds):
        loss = _last_loss(model)
        users, items = model._fitted()
        targets = items.astype(np.float64)
        strength = fitted.ridges(terms)[1]
        before = ((targets - fitted.project(embeddings)) ** 2).sum(axis=1)
        weights_before = {name: tensor.detach().clone() for name, tensor in encoder.model.state_dict().items()}
        work.train(fitted, targets, _determined(terms, users, strength), seed + number)
        encoder.name = None  # what is saved under that name are other weights
        trained = encoder.encode(texts)
        after = ((targets - fitted.project(trained)) ** 2).sum(axis=1)
        spread = ((targets[held] - targets[known].mean(axis=0)) ** 2).sum() if heldout else np.nan
        term_before, term_trained = (float(strength[known] @ each[known]) for each in (before, after))
        heldout_before, heldout_trained = (float(each[held].sum() / spread) for each in (before, after))
        kept = not heldout_trained > heldout_before
        if kept:
            embeddings = trained
        else:
            encoder.model.load_state_dict(weights_before)
        assert model.item_prior is not None
        model.item_prior = _with_embeddings(model.item_prior, embeddings)
        _fit_further(model, data, iterations)
        _, fitted = _checked_model(model, texts)
        trained_loss = loss - term_before + term_trained
        after_all = _last_loss(model)
        terms_and_shares = (term_before, term_trained, heldout_before, heldout_trained)
        done.append(FineTuneRound(loss, trained_loss, after_all, *terms_and_shares, kept))
        if not kept:
            break
    return done


@dataclass
class _Work:
    """The encoder's part of a round."""

    encoder: TextEncoder
    texts: list[str | None]
    items: NDArray[np.bool_]  # to train on
    parameters: list[Any]
    epochs: int
    learning_rate: float
    batch_size: int
    show_progress: bool

    def train(self, fitted: FittedPrior, targets: NDArray[np.float64], weights: NDArray[np.float64], seed: int) -> None:
        import torch
        from transformers import Trainer, TrainingArguments

        encoder = self.encoder
        rows = np.flatnonzero(self.items)
        tokens = encoder.tokens([self.texts[row] or "" for row in rows])
        # In units of the weighted variance of the factors, so that a loss of 1 is what the mean factor gives.
        wanted = targets[rows]
        weight = weights[rows] / weights[rows].mean()
        unit = float((weight[:, None] * (wanted - wanted.mean(axis=0)) ** 2).sum() / len(rows)) or 1.0
        examples = [
            {"tokens": ids, "target": y, "weight": w}
            for ids, y, w in zip(tokens, wanted.astype(np.float32), (weight / unit).astype(np.float32), strict=True)
            if len(ids)
        ]
        head = network_head(encoder, fitted).to(encoder.device)

        def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
            padded = encoder.padded([each["tokens"] for each in batch])
            target = torch.from_numpy(np.stack([each["target"] for each in batch]))
            return {"batch": padded, "target": target, "weight": torch.tensor([each["weight"] for each in batch])}

        chosen = {id(parameter) for parameter in self.parameters}
        before = [(parameter, parameter.requires_grad) for parameter in encoder.model.parameters()]
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        try:
            with tempfile.TemporaryDirectory() as folder:
                arguments = TrainingArguments(
                    output_dir=folder,
                    num_train_epochs=self.epochs,
                    learning_rate=self.learning_rate,
                    per_device_train_batch_size=self.batch_size,
                    lr_scheduler_type="linear",
                    seed=seed,
                    use_cpu=encoder.device.type == "cpu",
                    remove_unused_columns=False,
                    dataloader_pin_memory=False,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to=[],
                    disable_tqdm=not self.show_progress,
                )
                Trainer(model=head, args=arguments, train_dataset=examples, data_collator=collate).train()
        finally:
            for parameter, wanted_grad in before:
                parameter.requires_grad_(wanted_grad)
            encoder.model.eval()


def network_head(encoder: TextEncoder, fitted: FittedPrior) -> Any:
    """What the Trainer trains: a module from a batch of texts to the weighted loss of their prior means.

    W, b and what the prior does to embeddings are constants in it; gradients flow to the encoder alone.
    """
    import torch

    whitening = fitted.prior.whitening
    constants = {"weights": fitted.weights, "center": fitted.center, "mean": None, "matrix": None}
    if whitening is not None:
        constants |= {"mean": whitening.mean_, "matrix": whitening.matrix_}

    class Head(torch.nn.Module):
        weights: torch.Tensor
        center: torch.Tensor | None
        mean: torch.Tensor | None
        matrix: torch.Tensor | None

        def __init__(self) -> None:
            super().__init__()
            self.network = encoder.model  # so that the Trainer finds its parameters
            for name, value in constants.items():
                tensor = None if value is None else torch.as_tensor(np.asarray(value, np.float32))
                self.register_buffer(name, tensor, persistent=False)

        def forward(self, batch: dict[str, Any], target: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            vectors = encoder.pooled(batch)
            if self.mean is not None:
                vectors = vectors - self.mean
            if self.matrix is not None:
                vectors = vectors @ self.matrix
            if self.center is not None:
                vectors = torch.nn.functional.normalize(vectors - self.center, dim=1)
            residual = target - (vectors @ self.weights[:-1] + self.weights[-1])
            return {"loss": (weight * residual.square().sum(dim=1)).mean()}

    return Head()


def _determined(terms: Any, users: NDArray[np.floating], strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """s h / (h + s) for every item, h the mean of the diagonal of its data's second derivative."""
    squares = np.einsum("ud,ud->u", users, users, dtype=np.float64)
    entries = terms.gram_values() * squares[terms.col_idx]
    own = np.bincount(np.repeat(np.arange(terms.n_rows), np.diff(terms.row_ptr)), entries, terms.n_rows)
    background = np.broadcast_to(terms.background, terms.n_rows) * float((terms.other_background * squares).sum())
    curvature = np.maximum(own + background, 0) / users.shape[1]
    return np.asarray(strength * curvature / (curvature + strength))


def _trained_parameters(network: Any, freeze_below: int) -> list[Any]:
    """Parameters of the layers from `freeze_below` on, 1 the first; 0: all."""
    import torch

    n = int(network.config.num_hidden_layers)
    if isinstance(freeze_below, bool) or not isinstance(freeze_below, int) or not 0 <= freeze_below <= n:
        raise ValueError(
            f"freeze_below must be an integer from 0 to {n}, the layers of the encoder; got {freeze_below!r}"
        )
    if not freeze_below:
        return list(network.parameters())
    stacks = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
    if not stacks:
        raise ValueError(f"freeze_below: a {type(network).__name__} has no list of its {n} layers; use 0")
    return [parameter for layer in stacks[0][freeze_below - 1 :] for parameter in layer.parameters()]


def _checked_model(model: WALS, texts: Sequence[str | None]) -> tuple[TextEncoder, FittedPrior]:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ImportError("fine-tuning needs accelerate: pip install 'wals_gpu[text]'", name="accelerate") from error
    if model.item_factors is None or model.item_prior_ is None or model.item_prior is None:
        raise ModelFitError("fine_tune needs a fitted model with an item_prior")
    encoder = model.item_prior.encoder
    if not isinstance(encoder, TextEncoder):
        raise TypeError(
            f"fine_tune needs LinearPrior(..., encoder=TextEncoder(...)), got encoder={type(encoder).__name__}"
        )
    if isinstance(texts, str) or len(texts) != len(model.item_factors):
        raise ValueError(f"texts must hold one for each of the {len(model.item_factors)} items, got {len(texts)}")
    if model.history_ and model.history_[-1].loss is None:
        raise ValueError("fine_tune reports the loss: the model needs compute_loss=True")
    if not model.history_:
        raise ModelFitError("fine_tune needs a model that was fitted for at least one iteration")
    return encoder, model.item_prior_


def _last_loss(model: WALS) -> float:
    loss = model.history_[-1].loss
    assert loss is not None  # checked at the start
    return loss


def _with_embeddings(prior: LinearPrior, embeddings: NDArray[np.float32]) -> LinearPrior:
    """The prior with the same settings and other embeddings, one row for each item."""
    whitening = prior.whitening
    if whitening is not None:
        whitening = type(whitening)(whiten=whitening.whiten, components=whitening.components, epsilon=whitening.epsilon)
    settings: dict[str, Any] = {
        name: getattr(prior, name)
        for name in ("strength", "ridge", "shrinkage", "learn", "intercept", "normalize", "cold", "encoder")
    }
    return LinearPrior(embeddings, whitening=whitening, **settings)


def _fit_further(model: WALS, data: Any, iterations: int) -> None:
    wanted, model.iterations = model.iterations, iterations
    try:
        model.fit(dataclasses.replace(data, user_ids=model.user_ids, item_ids=model.item_ids), warm_start=True)
    finally:
        model.iterations = wanted
