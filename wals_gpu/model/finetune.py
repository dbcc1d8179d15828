"""Fine-tuning an encoder on the factors that its texts are the prior of.

The joint objective of a model with a :class:`wals_gpu.priors.LinearPrior` depends on the encoder f through one term::

    sum_i s_i |y_i - q_i|^2,    q_i = W z(f(text_i)) + b

with z the prior's centring and scaling. WALS lowers the objective over factors, W and b; epochs of the Hugging Face
Trainer lower it over the weights of f. The two alternate.

Were the factors held still meanwhile, the encoder would get nowhere: y_i is tied to the q_i of the encoder as it was,
the closer the fewer interactions there are. So what is lowered is the term with every factor at its best for the q_i
that comes, ``min over y of data_i(y) + s_i |y - q_i|^2``. With the data's second derivative taken as h_i times the
identity, that is a regression again::

    s_i h_i / (h_i + s_i) |z_i - q_i|^2,    z_i = y_i + (s_i / h_i) (y_i - q_i)

with y_i and q_i as they were when the round began: z_i is where the factor would be without its prior.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer, number, with_ids
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import as_interactions
from wals_gpu.data.matching import check_columns
from wals_gpu.data.options import ColumnOptions
from wals_gpu.errors import ModelFitError
from wals_gpu.objective.options import Unpack
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.text.transformer import TextEncoder

if TYPE_CHECKING:
    import torch

    from wals_gpu.model.wals import WALS

__all__ = ["FineTuneRound", "fine_tune"]


@dataclass(frozen=True)
class FineTuneRound:
    """One round of :func:`fine_tune`.

    Attributes
    ----------
    loss_before : float
        The joint objective when it began.
    loss_trained : float
        After the encoder's epochs, with every item's factor solved anew for its new prior mean; users, W and b as they
        were.
    loss_after : float
        After the iterations of WALS that followed.
    items_before, items_trained : float
        The part of the objective that belongs to the items the encoder was trained on, their factors solved for the
        prior means before and after.
    heldout_before, heldout_trained : float
        The same of the items that were held out of training. 0 where there are none.
    kept : bool
        Whether the trained weights were kept; not where they made the held-out items worse.
    """

    loss_before: float
    loss_trained: float
    loss_after: float
    items_before: float
    items_trained: float
    heldout_before: float
    heldout_trained: float
    kept: bool


def fine_tune(
    model: WALS,
    interactions: Any,
    texts: Sequence[str | None] | Mapping[Any, str | None],
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
    **columns: Unpack[ColumnOptions],
) -> list[FineTuneRound]:
    """Alternate epochs of the encoder and iterations of WALS.

    Parameters
    ----------
    model : WALS
        Fitted, with an ``item_prior`` whose encoder is a :class:`TextEncoder`. It is fitted further, and has a prior
        with the new embeddings afterwards.
    interactions, **columns
        What it was fitted on.
    texts : sequence of I str or None, mapping of id to str or None, or Series
        Of the rows of the model, in the order of its `item_ids`. A mapping, or a pandas Series whose index has ids, may
        have any order and more items than the model.
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
    interactions determine the factor, 0 where the factor is no more than its prior mean. Training is without dropout.

    The encoder's weights change in place; ``encoder.save_pretrained(folder)`` keeps them.
    """
    encoder, fitted = _checked_model(model)
    texts = _texts_of_rows(model, texts)
    rounds, epochs = integer("rounds", rounds, 1), integer("epochs", epochs, 1)
    iterations, batch_size = integer("iterations", iterations, 1), integer("batch_size", batch_size, 1)
    heldout = number("heldout", heldout, below=1)
    learning_rate = number("learning_rate", learning_rate, positive=True)
    layers = _trained_parameters(encoder.model, freeze_below)
    options: Mapping[str, Any] = columns
    check_columns(options, fine_tune)
    data = as_interactions(interactions, dtype=model.dtype, **options)
    n_users = model.n_users
    if data.matrix.shape != (n_users, len(texts)):
        raise ValueError(f"interactions must be those of the fit, {(n_users, len(texts))}, got {data.matrix.shape}")
    for own, known in ((data.user_ids, model.user_ids), (data.item_ids, model.item_ids)):
        if own is not None and known is not None and own != known:
            raise ValueError(f"interactions must be those of the fit: their {own.side}s are others than the model's")
    of_items = model._backend.transpose(data.matrix)
    usable = (np.diff(of_items.indptr) > 0) & np.array([bool(text and text.strip()) for text in texts])
    held = np.zeros(len(texts), np.bool_)
    rng = np.random.default_rng(seed)
    if heldout:
        held[rng.permutation(np.flatnonzero(usable))[: round(heldout * usable.sum())]] = True
    if not (usable & ~held).any():
        raise ValueError("no item has a text and interactions, so there is nothing to train on")
    groups = {"trained": np.flatnonzero(usable & ~held), "held": np.flatnonzero(held), "rest": np.flatnonzero(~usable)}
    work = _Work(encoder, texts, groups["trained"], layers, epochs, learning_rate, batch_size, show_progress)

    records = []
    embeddings = encoder.encode(texts)
    _check_order(fitted.prior, model.item_ids, embeddings)
    for round_number in range(rounds):
        parts = {name: _ItemsPart(model, of_items, rows) for name, rows in groups.items()}
        loss, items = _last_loss(model), model.fitted.item_factors
        assert fitted.mean is not None
        beside = loss - sum(part.loss(items[part.rows], fitted.mean[part.rows]) for part in parts.values())
        best, before = _solved(parts, fitted.project(embeddings, model.dtype))
        weights_before = {name: tensor.detach().clone() for name, tensor in encoder.model.state_dict().items()}
        rows = groups["trained"]
        work.train(
            fitted, *parts["trained"].regression(best[rows], fitted.project(embeddings)[rows]), seed + round_number
        )
        encoder.name = None  # what is saved under that name are other weights
        trained = encoder.encode(texts)
        best_trained, after = _solved(parts, fitted.project(trained, model.dtype))
        kept = not after["held"] > before["held"]
        if kept:
            embeddings, best = trained, best_trained
        else:
            encoder.model.load_state_dict(weights_before)
        model.item_prior = _with_embeddings(fitted, embeddings, model.item_ids)
        model.item_factors = best
        _fit_further(model, data, iterations)
        _, fitted = _checked_model(model)
        losses = loss, beside + sum(after.values()), _last_loss(model)
        of_items_trained, of_held = (before["trained"], after["trained"]), (before["held"], after["held"])
        records.append(FineTuneRound(*losses, *of_items_trained, *of_held, kept))
        if not kept:
            break
    return records


class _ItemsPart:
    """The part of the joint objective that belongs to some items: their data and their prior, users fixed."""

    def __init__(self, model: WALS, of_items: csr_matrix, rows: NDArray[np.integer]) -> None:
        assert model._bound is not None and model.item_prior_ is not None and model.user_factors is not None
        self.rows = rows
        self._backend, self._prior, self._users = model._backend, model.item_prior_, model.user_factors
        self._terms = model._bound.of_items(rows).item_terms(of_items[rows])
        self._towards_zero, self._strength = self._prior.ridges(self._terms, rows)

    def best(self, mean: NDArray[np.floating]) -> NDArray[np.floating]:
        """Factors (n, D) that make it least for prior means (n, D)."""
        terms, target = self._prior.pulled(self._terms, mean, self.rows)
        factors = np.zeros_like(target)
        self._backend.solve_rows(terms, self._users, factors, prior=target)
        return factors

    def loss(self, factors: NDArray[np.floating], mean: NDArray[np.floating]) -> float:
        """Its value."""
        terms, target = self._prior.pulled(self._terms, mean, self.rows)
        nothing = np.zeros(1, factors.dtype)
        of_one_ridge = self._backend.loss(terms, factors, self._users, nothing, user_prior=target)
        # Two squares are one square and what does not depend on the factor.
        both = self._towards_zero * self._strength / (self._towards_zero + self._strength)
        return of_one_ridge + float(both @ np.einsum("nd,nd->n", mean, mean, dtype=np.float64))

    def regression(
        self, best: NDArray[np.floating], mean: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """z (n, D) and weights (n,) of the regression that stands for it, at its best factors for prior means."""
        squares = np.einsum("ud,ud->u", self._users, self._users, dtype=np.float64)
        terms, n = self._terms, self._terms.n_rows
        entries = terms.gram_values() * squares[terms.col_idx]
        own = np.bincount(np.repeat(np.arange(n), np.diff(terms.row_ptr)), entries, n)
        background = np.broadcast_to(terms.background, n) * float((terms.other_background * squares).sum())
        curvature = np.maximum(own + background, 0) / self._users.shape[1] + self._towards_zero
        curvature = np.maximum(curvature, 1e-9 * self._strength)  # of an item without any: it teaches nothing
        pull = (best.astype(np.float64) - mean) * (self._strength / curvature)[:, None]
        return best + pull, self._strength * curvature / (curvature + self._strength)


def _solved(parts: dict[str, _ItemsPart], mean: NDArray[np.floating]) -> tuple[NDArray[np.floating], dict[str, float]]:
    """All items' factors solved for prior means (I, D), and the loss of each part."""
    factors, losses = np.empty_like(mean), {}
    for name, part in parts.items():
        factors[part.rows] = part.best(mean[part.rows])
        losses[name] = part.loss(factors[part.rows], mean[part.rows])
    return factors, losses


@dataclass
class _Work:
    """The encoder's part of a round."""

    encoder: TextEncoder
    texts: list[str | None]
    rows: NDArray[np.integer]  # the items to train on
    parameters: list[Any]
    epochs: int
    learning_rate: float
    batch_size: int
    show_progress: bool

    def train(self, fitted: FittedPrior, targets: NDArray[np.float64], weights: NDArray[np.float64], seed: int) -> None:
        import torch
        from transformers import Trainer, TrainingArguments

        encoder = self.encoder
        tokens = encoder.tokens([self.texts[row] or "" for row in self.rows])
        # In units of the weighted variance of the factors, so that a loss of 1 is what the mean factor gives.
        weight = weights / weights.mean()
        unit = float((weight[:, None] * (targets - targets.mean(axis=0)) ** 2).sum() / len(weight)) or 1.0
        examples = [
            {"tokens": ids, "target": y, "weight": w}
            for ids, y, w in zip(tokens, targets.astype(np.float32), (weight / unit).astype(np.float32), strict=True)
            if len(ids)
        ]
        head = network_head(encoder, fitted).to(encoder.device)

        def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
            padded = encoder.padded([example["tokens"] for example in batch])
            target = torch.from_numpy(np.stack([example["target"] for example in batch]))
            return {"batch": padded, "target": target, "weight": torch.tensor([example["weight"] for example in batch])}

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

        def train(self, mode: bool = True) -> Head:
            # Without dropout: it moves vectors further than an epoch does, and the regression is of those without it.
            return super().train(False)

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


def _trained_parameters(network: Any, freeze_below: int) -> list[Any]:
    """Parameters of the layers from `freeze_below` on, 1 the first; 0: all."""
    import torch

    n = int(network.config.num_hidden_layers)
    if not integer("freeze_below", freeze_below, 0, n):
        return list(network.parameters())
    stacks = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
    if not stacks:
        raise ValueError(f"freeze_below: a {type(network).__name__} has no list of its {n} layers; use 0")
    return [parameter for layer in stacks[0][freeze_below - 1 :] for parameter in layer.parameters()]


def _checked_model(model: WALS) -> tuple[TextEncoder, FittedPrior]:
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
    if model.item_prior.kernel:
        raise ValueError("fine_tune needs a prior that is linear in the embeddings: kernel=0")
    if model.item_prior.is_off:
        raise ValueError("fine_tune needs a prior that is on: relative_strength > 0")
    if model.history_ and model.history_[-1].loss is None:
        raise ValueError("fine_tune reports the loss: the model needs compute_loss=True")
    if not model.history_:
        raise ModelFitError("fine_tune needs a model that was fitted for at least one iteration")
    return encoder, model.item_prior_


def _texts_of_rows(model: WALS, texts: Any) -> list[str | None]:
    """A text of every item in the order of the model, whatever the order of texts with ids."""
    n_items = len(model.fitted.item_factors)
    rows, ids = with_ids("text", texts, None)
    if ids is not None and model.item_ids is None:
        raise ValueError("texts have ids, but the model was fitted on a matrix, without any: give them in its order")
    if ids is None or model.item_ids is None:
        if isinstance(rows, str) or len(rows) != n_items:
            raise ValueError(f"texts must hold one for each of the {n_items} items, got {len(rows)}")
        return list(rows)
    try:
        places = model.item_ids.find(ids)
    except TypeError as error:
        raise TypeError(f"ids of texts: {error}") from error
    row_of_place = np.full(n_items, -1)
    row_of_place[places[places >= 0]] = np.flatnonzero(places >= 0)
    if len(missing := np.flatnonzero(row_of_place < 0)):
        raise ValueError(
            f"texts must hold one for each of the {n_items} items; {len(missing)} have none, such as "
            f"{model.item_ids[int(missing[0])]!r}"
        )
    rows = list(rows)
    return [rows[row] for row in row_of_place]


def _check_order(prior: LinearPrior, ids: Ids | None, embeddings: NDArray[np.floating]) -> None:
    """Texts in the order in which the prior got them, rather than in that of the model, would be those of others."""
    if not prior.has_ids or prior.embeddings is None or np.shape(prior.embeddings) != embeddings.shape:
        return
    given, own = np.asarray(prior.embeddings), prior.rows_for("item", ids, len(embeddings))
    if np.allclose(embeddings, given, atol=1e-3) and not np.allclose(given, own, atol=1e-3):
        raise ValueError(
            "texts are in the order in which item_prior got them; they must be in the order of the model's item_ids, "
            "or a mapping of id to text"
        )


def _last_loss(model: WALS) -> float:
    loss = model.history_[-1].loss
    assert loss is not None  # checked at the start
    return loss


def _with_embeddings(fitted: FittedPrior, embeddings: NDArray[np.float32], ids: Ids | None) -> LinearPrior:
    """The prior with the same settings and other embeddings, one row for each item."""
    prior, whitening = fitted.prior, fitted.prior.whitening
    if whitening is not None:
        whitening = type(whitening)(whiten=whitening.whiten, components=whitening.components, epsilon=whitening.epsilon)
    kept = ("strength", "relative_strength", "ridge", "shrinkage", "learn", "votes", "intercept", "normalize", "cold")
    settings: dict[str, Any] = {name: getattr(prior, name) for name in (*kept, "encoder")}
    if prior.strength is not None:
        settings["strength"] = prior.strength * fitted.scale[0]  # a learned one goes on from where it is
    return LinearPrior(embeddings if ids is None else (ids, embeddings), whitening=whitening, **settings)


def _fit_further(model: WALS, data: Any, iterations: int) -> None:
    original, model.iterations = model.iterations, iterations
    exponent = model.popularity_exponent
    if exponent == "auto":  # the one that was chosen stays
        model.popularity_exponent = model.popularity_exponent_ or 0.0
    try:
        model.fit(dataclasses.replace(data, user_ids=model.user_ids, item_ids=model.item_ids), warm_start=True)
    finally:
        model.iterations, model.popularity_exponent = original, exponent
