"""A component of LensKit (2025): a scorer for its pipelines, fitted by :class:`wals_gpu.WALS`."""

from __future__ import annotations

from typing import Any

import numpy as np
from lenskit.data import Dataset, ItemList, QueryInput, RecQuery, Vocabulary
from lenskit.parallel import get_parallel_config
from lenskit.pipeline import Component
from lenskit.training import Trainable, TrainingOptions
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue
from scipy.sparse import csr_matrix

from wals_gpu.model.wals import WALS

__all__ = ["WALSConfig", "WALSScorer"]


class WALSConfig(BaseModel, extra="allow"):
    """Settings of :class:`WALSScorer`: those of :class:`wals_gpu.WALS`, and what is read of a dataset.

    Attributes
    ----------
    use_ratings : bool, default False
        Whether the values of interactions are their ratings; else every one counts 1.
    """

    __pydantic_extra__: dict[str, JsonValue]
    use_ratings: bool = False


class WALSScorer(Component[ItemList], Trainable):  # type: ignore[misc]
    """:class:`wals_gpu.WALS` for pipelines of LensKit, such as ``topn_pipeline(WALSScorer(factors=64))``.

    Users of the training data are scored by their factors, if a query comes with no items, or with those that they have
    in the training data, as LensKit's own history lookup gives them; else by factors that are folded in from the items
    of the query. Items that the model does not know have no score (NaN), and neither has anything for a user of whom
    nothing is known: LensKit's fallbacks are for these.

    Attributes
    ----------
    config : WALSConfig
    model : WALS
        Fitted by `train`; ``model.save(folder)`` writes it.
    users, items : Vocabulary
        Of its rows.
    """

    config: WALSConfig
    model: WALS | None = None
    users: Vocabulary
    items: Vocabulary

    def train(self, data: Dataset, options: TrainingOptions = TrainingOptions()) -> None:  # noqa: B008 (frozen)
        """Fit the model.

        Parameters
        ----------
        data : Dataset
        options : TrainingOptions
            `rng` is the seed, where the settings have none; `device` likewise.

        Raises
        ------
        TypeError, ValueError
            A setting is of the wrong kind or out of range, or there are no ratings to use.
        """
        if self.model is not None and not options.retrain:
            return
        settings: dict[str, Any] = dict(self.config.__pydantic_extra__ or {})
        if options.rng is not None:
            settings.setdefault("random_state", options.random_generator())
        if options.device is not None:
            settings.setdefault("device", options.device)
        settings.setdefault("num_threads", get_parallel_config().threads)
        try:
            rows = data.interactions().matrix().scipy("rating" if self.config.use_ratings else None, layout="csr")
        except KeyError as error:
            raise ValueError("use_ratings must be False: the dataset has no ratings") from error
        model = WALS(**settings)
        self.model = model.fit(csr_matrix(rows, dtype=model.dtype))
        self.users, self.items = data.users, data.items

    def __call__(self, query: QueryInput, items: ItemList) -> ItemList:
        """Scores of items for a query.

        Parameters
        ----------
        query : RecQuery, or what it can be made of
        items : ItemList

        Returns
        -------
        ItemList
            `items` with scores.
        """
        asked = RecQuery.create(query)
        numbers = items.numbers(vocabulary=self.items, missing="negative")
        known = np.flatnonzero(numbers >= 0)
        scores = np.full(len(items), np.nan, np.float32)
        if len(known):
            own = self._scores(asked, numbers[known])
            if own is not None:
                scores[known] = own
        return ItemList(items, scores=scores)

    def _scores(self, query: RecQuery, items: NDArray[np.integer]) -> NDArray[np.floating] | None:
        """Of items by their numbers; None where nothing is known of the user."""
        assert self.model is not None, "train comes first"
        fitted = self.model.fitted
        user = None if query.user_id is None else self.users.number(query.user_id, missing=None)
        history = self._history(query)
        if user is not None and (history is None or self._is_trained(int(user), history)):
            if not fitted.has_history(np.array([user]))[0]:
                return None
            scores: NDArray[np.floating] = self.model.predict(int(user), items)
            return scores
        if history is None or history.nnz == 0:
            return None
        different, place = np.unique(items, return_inverse=True)
        found = self.model.recommend_for(history, len(different), allow=[different], filter_seen=False)
        order = np.argsort(found.ids[0])  # all of them were asked for
        by_item: NDArray[np.floating] = found.scores[0][order]
        return by_item[place]

    def _history(self, query: RecQuery) -> csr_matrix | None:
        """The items of a query (1, I) that the model knows; None where it comes with none."""
        given = query.query_items
        if given is None or len(given) == 0:
            return None
        assert self.model is not None
        numbers = given.numbers(vocabulary=self.items, missing="negative")
        values = np.ones(len(numbers))
        if self.config.use_ratings:
            ratings = given.field("rating")
            if ratings is None:
                raise ValueError("use_ratings=True needs ratings, and the items of the query have none")
            values = np.asarray(ratings, np.float64)
        there = numbers >= 0
        row = csr_matrix(
            (values[there], (np.zeros(there.sum(), np.int64), numbers[there])), shape=(1, self.model.n_items)
        )
        row.sum_duplicates()  # and in the order of the items
        return row.astype(self.model.dtype)

    def _is_trained(self, user: int, history: csr_matrix) -> bool:
        """Whether a history is what the model was fitted on."""
        assert self.model is not None
        seen = self.model.fitted.seen
        assert seen is not None
        own = seen[[user]]
        return np.array_equal(own.indices, history.indices) and np.array_equal(own.data, history.data)
