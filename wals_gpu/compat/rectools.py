"""A model of RecTools: what its cross-validation, configs and reports take, fitted by :class:`wals_gpu.WALS`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rectools.models.base import ModelBase, ModelConfig
from scipy.sparse import csr_matrix

from wals_gpu.checks import integer
from wals_gpu.model.wals import WALS

__all__ = ["WALSModel", "WALSModelConfig"]

#: Users or items, items, and scores: what RecTools makes its table of.
Triplet = tuple[NDArray[Any], NDArray[Any], NDArray[np.floating]]


class WALSModelConfig(ModelConfig):  # type: ignore[misc]
    """What :meth:`WALSModel.from_config` takes.

    Attributes
    ----------
    settings : dict
        Of :class:`wals_gpu.WALS`, as its ``to_config`` gives them, or a part of them.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)


class WALSModel(ModelBase[WALSModelConfig]):  # type: ignore[misc]
    """:class:`wals_gpu.WALS` for RecTools.

    Users of the dataset's interactions ("hot" ones) get lists by their factors; where the dataset has other users than
    that of the fit, or in another order, all of them by factors that are folded in from what they have in it. Users
    without interactions, with features or not, get what is popular. Features are not used.

    Parameters
    ----------
    verbose : int, default 0
        Above 0: a progress bar of the fit.
    **settings
        Of :class:`wals_gpu.WALS`.

    Attributes
    ----------
    model : WALS
        Of which ``model.save(folder)`` writes a model without a pickle.

    Raises
    ------
    TypeError, ValueError
        A setting is of the wrong kind or out of range.

    Examples
    --------
    >>> WALSModel(factors=64, alpha=10, objective="hu").get_config()["settings"]["factors"]
    64
    """

    recommends_for_warm = False
    recommends_for_cold = True
    config_class = WALSModelConfig

    def __init__(self, *, verbose: int = 0, **settings: Any) -> None:
        super().__init__(verbose=verbose)
        self.model = WALS(**settings)
        self._users: NDArray[Any] | None = None  # ids of the dataset of the fit
        self._items: NDArray[Any] | None = None

    def _get_config(self) -> WALSModelConfig:
        return WALSModelConfig(cls=self.__class__, verbose=self.verbose, settings=self.model.to_config())

    @classmethod
    def _from_config(cls, config: WALSModelConfig) -> WALSModel:
        made = cls(verbose=config.verbose)
        made.model = WALS.from_config(config.settings)
        return made

    def get_vectors(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Factors of users (U, D) and of items (I, D), as vector models of RecTools have them.

        Raises
        ------
        NotFittedError
            The model is not fitted.
        """
        self._check_is_fitted()
        fitted = self.model.fitted
        return fitted.user_factors, fitted.item_factors

    # ------------------------------------------------------------------------------------------------ fits

    def _fit(self, dataset: Any) -> None:
        self.model.fit(_matrix(dataset), show_progress=self.verbose > 0)
        self._users, self._items = _hot(dataset, "user"), _hot(dataset, "item")

    def _fit_partial(self, dataset: Any, epochs: int) -> None:
        """From the present factors. Users and items must be those of the earlier fit, in its order; new ones follow."""
        model, warm = self.model, self.is_fitted
        for side, known in (("user", self._users), ("item", self._items)):
            if warm and known is not None and not _same(known, _hot(dataset, side)[: len(known)]):
                raise ValueError(
                    f"dataset must have the {side}s of the dataset that the model was fitted on, in the same order, "
                    "and new ones after these; or call fit, for a new model"
                )
        iterations = model.iterations
        model.iterations = integer("epochs", epochs, 1)
        try:
            model.fit(_matrix(dataset), warm_start=warm, show_progress=self.verbose > 0)
        finally:
            model.iterations = iterations
        self._users, self._items = _hot(dataset, "user"), _hot(dataset, "item")

    # ------------------------------------------------------------------------------------------------ lists

    def _recommend_u2i(
        self,
        user_ids: NDArray[np.integer],
        dataset: Any,
        k: int,
        filter_viewed: bool,
        sorted_item_ids_to_recommend: NDArray[np.integer] | None,
    ) -> Triplet:
        self._check_items(dataset)
        matrix = _matrix(dataset)[user_ids]
        options: dict[str, Any] = {"allow_items": self._allowed(sorted_item_ids_to_recommend), "filter_seen": False}
        if filter_viewed:
            options["deny"] = matrix
        k = min(k, self.model.n_items)  # places that stay empty are left out anyhow
        if _same(self._users, _hot(dataset, "user")):
            found = self.model.recommend(user_ids, k, **options)
        else:
            found = self.model.recommend_for(matrix, k, **options)
        return _triplet(user_ids, found)

    def _recommend_i2i(
        self, target_ids: NDArray[np.integer], dataset: Any, k: int, sorted_item_ids_to_recommend: NDArray[Any] | None
    ) -> Triplet:
        self._check_items(dataset)
        allowed = self._allowed(sorted_item_ids_to_recommend)
        k = min(k, self.model.n_items)
        return _triplet(target_ids, self.model.similar_items(target_ids, k, allow_items=allowed))

    def _recommend_cold(
        self, target_ids: NDArray[Any], dataset: Any, k: int, sorted_item_ids_to_recommend: NDArray[Any] | None
    ) -> Triplet:
        """What is popular, for users and items that the dataset has no interactions of."""
        self._check_items(dataset)
        nobody, allowed = self.model.n_users, self._allowed(sorted_item_ids_to_recommend)
        found = self.model.recommend([nobody], min(k, self.model.n_items), unknown="popular", allow_items=allowed)
        there = found.scores[0] > -np.inf
        n = int(there.sum())
        items, scores = found.ids[0][there], found.scores[0][there]
        return np.repeat(target_ids, n), np.tile(items, len(target_ids)), np.tile(scores, len(target_ids))

    def _allowed(self, items: NDArray[np.integer] | None) -> NDArray[np.integer] | None:
        """The items to choose from that the model knows: not those with features alone."""
        return None if items is None else items[items < self.model.n_items]

    def _check_items(self, dataset: Any) -> None:
        if not _same(self._items, _hot(dataset, "item")):
            raise ValueError(
                "dataset must have the items of the dataset that the model was fitted on, in the same order; it has "
                f"{dataset.n_hot_items}, the model {self.model.n_items}"
            )


def _matrix(dataset: Any) -> csr_matrix:
    return csr_matrix(dataset.get_user_item_matrix(include_weights=True), dtype=np.float32)


def _hot(dataset: Any, side: str) -> NDArray[Any]:
    """Ids of the users, or items, that have interactions."""
    ids: NDArray[Any] = getattr(dataset, f"{side}_id_map").external_ids[: getattr(dataset, f"n_hot_{side}s")]
    return ids


def _same(a: NDArray[Any] | None, b: NDArray[Any]) -> bool:
    return a is b or np.array_equal(a, b)  # type: ignore[arg-type]


def _triplet(targets: NDArray[Any], found: Any) -> Triplet:
    there = found.scores > -np.inf
    return np.repeat(targets, there.sum(axis=1)), found.ids[there], found.scores[there]
