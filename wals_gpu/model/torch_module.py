"""A fitted model as a module of PyTorch: two embeddings, and what their dot products are ranked with.

Shapes: U users, I items, D factors, B queries, k results.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from wals_gpu.checks import flag, integer
from wals_gpu.model.vectors import ScoreVectors

__all__ = ["ScoreModule"]


class ScoreModule(torch.nn.Module):
    """Scores and lists of a model; made by :meth:`wals_gpu.WALS.as_torch`.

    All that it knows is in its ``state_dict``: ``users.weight`` (U, D) and ``items.weight`` (I, D), whose dot products
    are the scores, and the buffers ``known`` (U,), ``popularity`` (I,), ``seen_row_ptr`` (U + 1,) and ``seen_col_idx``
    (Z,). Users and items are row numbers: ``model.user_ids.index_of(ids)``, ``model.item_ids.take(rows)``.

    Parameters
    ----------
    vectors : ScoreVectors
    trainable : bool
        Whether the embeddings have gradients.
    seen : bool
        Whether it holds what users have seen; without it, `recommend` cannot leave it out.
    """

    known: torch.Tensor
    popularity: torch.Tensor
    seen_row_ptr: torch.Tensor
    seen_col_idx: torch.Tensor

    def __init__(self, vectors: ScoreVectors, trainable: bool, seen: bool) -> None:
        super().__init__()
        trainable, seen = flag("trainable", trainable), flag("seen", seen)
        self.users = torch.nn.Embedding.from_pretrained(_copied(vectors.users), freeze=not trainable)  # type: ignore[no-untyped-call]
        self.items = torch.nn.Embedding.from_pretrained(_copied(vectors.items), freeze=not trainable)  # type: ignore[no-untyped-call]
        matrix = vectors.seen_by(slice(0, vectors.n_users))
        row_ptr, col_idx = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
        self.register_buffer("known", _copied(vectors.known))
        self.register_buffer("popularity", _copied(vectors.popularity))
        self.register_buffer("seen_row_ptr", _copied(row_ptr if seen else np.zeros_like(row_ptr)))
        self.register_buffer("seen_col_idx", _copied(col_idx if seen else col_idx[:0]))

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of pairs, as of :meth:`wals_gpu.WALS.predict`.

        Parameters
        ----------
        users, items : int tensors
            Row numbers, of shapes that broadcast.

        Returns
        -------
        tensor of that shape
        """
        scores: torch.Tensor = (self.users(users) * self.items(items)).sum(-1)
        return scores

    @torch.no_grad()
    def recommend(
        self, users: torch.Tensor, k: int = 10, *, filter_seen: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best items for users, as of :meth:`wals_gpu.WALS.recommend`.

        Parameters
        ----------
        users : (B,) int tensor, or what becomes one
            Row numbers.
        k : int, default 10
        filter_seen : bool, default True
            Leave out what they have seen.

        Returns
        -------
        items : (B, k) int64 tensor
            Row numbers, equal scores in their order; -1 where fewer than k are left. At most I columns.
        scores : (B, k) tensor
            -inf there. Of users that the model does not know, the items' training entries.

        Raises
        ------
        TypeError, ValueError, IndexError
            `users` are no row numbers, `k` no length.
        """
        users = torch.as_tensor(users, device=self.items.weight.device)
        if users.ndim != 1 or (len(users) and (users.dtype == torch.bool or users.is_floating_point())):
            raise TypeError(f"users must be a 1-D tensor of row numbers, got {users.dtype} {tuple(users.shape)}")
        users, filter_seen = users.long(), flag("filter_seen", filter_seen)
        if len(users) and not (users.min() >= 0 and users.max() < self.users.num_embeddings):
            got = int(users.min()) if users.min() < 0 else int(users.max())
            raise IndexError(f"users must be in [0, {self.users.num_embeddings}), got {got}")
        k = min(integer("k", k, 1), self.items.num_embeddings)
        scores = self.users(users) @ self.items.weight.T
        scores = torch.where(self.known[users, None], scores, self.popularity.to(scores.dtype))
        if filter_seen:
            start, stop = self.seen_row_ptr[users], self.seen_row_ptr[users + 1]
            rows = torch.repeat_interleave(torch.arange(len(users), device=users.device), stop - start)
            # The place of each among those of its own row, added to where that row begins.
            before = torch.cumsum(stop - start, 0) - (stop - start)
            place = torch.arange(len(rows), device=users.device) - before[rows] + start[rows]
            scores[rows, self.seen_col_idx[place]] = -torch.inf
        # topk has no order among equal scores.
        best, items = torch.sort(scores, dim=1, descending=True, stable=True)
        best, items = best[:, :k], items[:, :k]
        return torch.where(best > -torch.inf, items, -1), best


def _copied(array: NDArray[np.generic]) -> torch.Tensor:
    """A tensor of its own: factors may be read-only, and must not change with the module."""
    return torch.from_numpy(np.array(array, order="C"))
