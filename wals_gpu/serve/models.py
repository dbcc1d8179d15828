"""Models in use: prepared for questions by row number, and replaced when their folder holds another one."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from wals_gpu.checks import as_path
from wals_gpu.data.categories import Categories
from wals_gpu.data.files import folder_digest, real_folder
from wals_gpu.data.ids import Ids, plain
from wals_gpu.data.titles import Titles
from wals_gpu.errors import DataError
from wals_gpu.model.wals import WALS
from wals_gpu.serve.lookup import ItemSearch, UserSearch

__all__ = ["Models", "ServedModel"]

log = logging.getLogger("wals_gpu.serve")

#: What is kept of JSON of items, and of vectors of texts.
_KEPT_ITEMS, _KEPT_TEXTS = 200_000, 1024

#: Seconds until a folder that was refused is tried again, at most.
_LONGEST_PAUSE = 60.0


class ServedModel:
    """A model that does not change any more, with what answers need beside it.

    Parameters
    ----------
    model : WALS
        Fitted.
    version : str
    titles : Titles, optional
    categories : Categories, optional
        Of the model's items.

    Attributes
    ----------
    numbered : WALS
        The same model without ids: it is asked, and answers, by row numbers, and its answers have the same bits.
    loaded : float
        Time of the clock, in seconds.
    why_no_texts : str or None
        Why it cannot read texts; None where it can.
    """

    def __init__(
        self, model: WALS, version: str, titles: Titles | None = None, categories: Categories | None = None
    ) -> None:
        self.version, self.loaded, self.categories = version, time.time(), categories
        self.user_ids, self.item_ids = model.user_ids, model.item_ids
        self.n_users, self.n_items = model.n_users, model.n_items
        self.numbered = copy.copy(model)
        self.numbered.user_ids = self.numbered.item_ids = None
        # Of arrays that cannot change, answers keep what they computed.
        self.numbered.user_factors = _read_only(model.fitted.user_factors)
        self.numbered.item_factors = _read_only(model.fitted.item_factors)
        names = _texts(model.item_ids, model.n_items)
        self.titles: pa.Array | None = None
        if titles is not None:
            ids = np.arange(model.n_items) if model.item_ids is None else pa.array(model.item_ids)
            self.titles = titles.checked(model.item_ids).of(ids)
        fitted = self.numbered.fitted
        has_entries = fitted.seen is not None
        self.popularity: NDArray[Any] = fitted.popularity() if has_entries else np.zeros(model.n_items, np.int64)
        self.item_search = ItemSearch(names, self.titles, self.popularity)
        self.user_search = UserSearch(model.user_ids, model.n_users)
        # Whom the factors alone say what to recommend to, and with what.
        self._direct = fitted.index("item") if fitted.neighbors is None and has_entries else None
        self._has_history = np.ones(model.n_users, bool)
        if fitted.user_prior is None:
            self._has_history = fitted.has_history(np.arange(model.n_users))
        self._pieces: dict[int, str] = {}
        self._vectors: OrderedDict[str, NDArray[np.floating]] = OrderedDict()
        self._vectors_lock = threading.Lock()
        self.why_no_texts = self._try_texts()
        self._warm_up()

    def _try_texts(self) -> str | None:
        """Load the encoder now, and not for the first who asks."""
        prior = self.numbered.fitted.item_prior
        if prior is None or prior.prior.encoder is None:
            return "the model was fitted without item texts and an encoder"
        try:
            self.numbered.project_items(["to load the encoder"])
        except Exception as error:  # whatever an encoder raises: the model does without it
            return f"the encoder of its item texts cannot be used here: {' '.join(str(error).split())}"
        return None

    def _warm_up(self) -> None:
        """Make what the first answer of each kind would have to wait for."""
        k = min(10, self.n_items)
        self.numbered.recommend([0] if self.numbered.fitted.seen is None else [0, -1], k, unknown="popular")
        self.numbered.similar_items([0], k)
        for metric in ("dot", "cosine"):
            self.numbered.fitted.index("item", metric).prepare()

    def best_items(
        self, rows: NDArray[np.int64], k: int, filter_seen: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.floating]] | None:
        """What ``numbered.recommend`` gives to users by row number, as numbers and scores (B, k), in half the time.

        None where it takes more than a search: unknown users, or a model with neighbours.
        """
        if self._direct is None or rows.min() < 0 or not self._has_history[rows].all():
            return None
        fitted = self.numbered.fitted
        queries = np.ascontiguousarray(fitted.user_factors[rows], fitted.dtype)
        seen = fitted.seen
        if not filter_seen or seen is None:
            return self._direct.best(queries, k)
        if len(rows) > 1:
            return self._direct.best(queries, k, seen[rows])
        start, end = seen.indptr[rows[0]], seen.indptr[rows[0] + 1]  # as seen[rows], in a third of the time
        parts = seen.data[start:end], seen.indices[start:end], np.array([0, end - start], seen.indptr.dtype)
        return self._direct.best(queries, k, csr_matrix(parts, shape=(1, self.n_items)))

    def vectors_of(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Factors (n, D) of texts, each encoded alone, so that they do not depend on the others; some are kept."""
        vectors = []
        for text in texts:
            with self._vectors_lock:
                vector = self._vectors.get(text)
                if vector is not None:
                    self._vectors.move_to_end(text)
            if vector is None:
                vector = self.numbered.project_items([text])[0]
                with self._vectors_lock:
                    self._vectors[text] = vector
                    while len(self._vectors) > _KEPT_TEXTS:
                        self._vectors.popitem(last=False)
            vectors.append(vector)
        return np.array(vectors)

    # ---------------------------------------------------------------------------------------------------- names

    def item_pieces(self, rows: Sequence[int]) -> list[str]:
        """What JSON objects of items begin with: ``{"item": ..., "title": ...`` without the closing brace."""
        pieces = self._pieces
        try:
            return [pieces[row] for row in rows]  # nearly always
        except KeyError:
            missing = [row for row in dict.fromkeys(rows) if row not in pieces]
        if len(pieces) + len(missing) > _KEPT_ITEMS:
            pieces = {}  # a new one: others may read the old
            missing = list(dict.fromkeys(rows))
        names = self.item_names(missing)
        titles = self.item_titles(missing)
        for at, row in enumerate(missing):
            title = "" if titles is None else f',"title":{json.dumps(titles[at])}'
            pieces[row] = f'{{"item":{json.dumps(names[at])}{title}'
        self._pieces = pieces
        return [pieces[row] for row in rows]

    def item_names(self, rows: Sequence[int] | NDArray[Any]) -> list[Any]:
        """Ids of items, for JSON."""
        return _names(self.item_ids, rows)

    def user_names(self, rows: Sequence[int] | NDArray[Any]) -> list[Any]:
        """Ids of users, for JSON."""
        return _names(self.user_ids, rows)

    def item_titles(self, rows: Sequence[int] | NDArray[Any]) -> list[str | None] | None:
        """Titles of items, None where there are none."""
        if self.titles is None:
            return None
        found: list[str | None] = self.titles.take(pa.array(np.asarray(rows, np.int64))).to_pylist()
        return found

    def described(self) -> dict[str, Any]:
        """For people and for monitoring."""
        seen = self.numbered.fitted.seen
        return {
            "model": self.version,
            "loaded": datetime.fromtimestamp(self.loaded, timezone.utc).isoformat(timespec="seconds"),
            "age_seconds": round(time.time() - self.loaded, 1),
            "users": self.n_users,
            "items": self.n_items,
            "factors": self.numbered.fitted.factors,
            "interactions": None if seen is None else int(seen.nnz),
            "has_titles": self.titles is not None,
            "categories": None if self.categories is None else len(self.categories.names),
            "has_texts": self.why_no_texts is None,
            "why_no_texts": self.why_no_texts,
        }


def _texts(ids: Ids | None, n: int) -> pa.Array:
    return pa.array(np.arange(n) if ids is None else ids).cast(pa.large_string())


def _names(ids: Ids | None, rows: Any) -> list[Any]:
    if ids is None:
        return [int(row) for row in rows]
    return [plain(name) for name in ids.take(np.asarray(rows, np.int64)).tolist()]


class Models:
    """The model in use, and a thread that looks whether its folder holds another one.

    Whoever reads :attr:`current` has one model for as long as they keep it; the next reader may have another. A new
    version is loaded beside the old one, every byte checked against its hash, and prepared, before it is used: for
    that time the memory holds both. One that cannot be loaded is left alone, and the old one stays.

    Parameters
    ----------
    source : path or WALS
        A folder, or a fitted model, which is not watched.
    titles : optional
        As of :class:`.Titles`. A path is read again for each new version.
    device, num_threads
        As of :meth:`WALS.load`.
    title_column, item_column : str, optional
        Of titles in a table.
    categories, category_column : optional
        As of :class:`.Categories`, for quotas; without them a column of the table of titles, if one is named like
        ``category`` or ``genre``.
    every : float, default 1.0
        Seconds between two looks at the folder.

    Raises
    ------
    FileNotFoundError, ModelFormatError
        There is no model to begin with.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | WALS,
        titles: Any = None,
        *,
        device: str = "auto",
        num_threads: int = 0,
        title_column: str | None = None,
        item_column: str | None = None,
        categories: Any = None,
        category_column: str | None = None,
        every: float = 1.0,
    ) -> None:
        self._titles, self._title_column, self._item_column = titles, title_column, item_column
        self._categories, self._category_column = categories, category_column
        self._device, self._num_threads, self._every = device, num_threads, every
        self.last_error: str | None = None
        self.n_loaded, self.n_refused = 0, 0
        self._looking = threading.Lock()
        self._stop: threading.Event | None = None
        self._folder: Path | None = None
        self._refused: tuple[Any, str] | None = None
        self._pause, self._again = every, 0.0
        if isinstance(source, WALS):
            self.current = self._served(source, _digest_of(source))
        else:
            self._folder = as_path("source", source)
            self._stamp = _stamp(self._folder)
            self.current = self._load(self._folder)
        self.n_loaded += 1

    def _served(self, model: WALS, version: str) -> ServedModel:
        return ServedModel(model, version, self._read_titles(), self._read_categories(model))

    def _read_categories(self, model: WALS) -> Categories | None:
        is_given = self._categories is not None or self._category_column is not None
        table = self._titles if self._categories is None else self._categories
        if table is None or isinstance(table, Titles) or (not is_given and isinstance(table, Mapping)):
            if is_given:
                raise ValueError("category_column needs categories, or titles in a table")
            return None
        try:
            return Categories.read(table, model.n_items, model.item_ids, self._category_column, self._item_column)
        except (DataError, TypeError, ValueError):
            if is_given:
                raise
            return None  # titles alone

    def _read_titles(self) -> Titles | None:
        if self._titles is None:
            return None
        if isinstance(self._titles, (str, os.PathLike)) and self._item_column is not None:
            return Titles.read(self._titles, self._title_column, self._item_column)
        return Titles.read(self._titles, self._title_column)

    def _load(self, folder: Path) -> ServedModel:
        while True:
            digest = folder_digest(folder)
            model = WALS.load(folder, device=self._device, num_threads=self._num_threads)
            if folder_digest(folder) == digest:  # else it was replaced meanwhile
                return self._served(model, digest[:12])

    def look(self) -> bool:
        """Look at the folder now, and take the model that it holds if it is another one; whether it did."""
        with self._looking:
            return self._look()

    def _look(self) -> bool:
        folder = self._folder
        if folder is None:
            return False
        stamp = _stamp(folder)
        if stamp is None or stamp == self._stamp:
            return False
        if self._refused is not None and self._refused[0] == stamp and time.monotonic() < self._again:
            return False
        try:
            if folder_digest(folder)[:12] == self.current.version:  # saved again as it was
                self._stamp, self.last_error = stamp, None
                return False
            began = time.perf_counter()
            new = self._load(folder)
        except Exception as error:  # of any kind: whatever is wrong with the new one, the old one goes on
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if self._refused != (stamp, message):
                self.n_refused += 1
                self._pause = self._every
                log.error("the new model in %s is refused, %s goes on: %s", folder, self.current.version, message)
            # Files that are still being copied are whole some time later, though model.json stays as it is.
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._again = time.monotonic() + self._pause
            self._refused, self.last_error = (stamp, message), message
            return False
        seconds = time.perf_counter() - began
        log.info("model %s takes the place of %s after %.1f s", new.version, self.current.version, seconds)
        self.current, self._stamp, self.last_error, self._refused = new, stamp, None, None
        self.n_loaded += 1
        return True

    def watch(self) -> None:
        """Begin to look at the folder in a thread of its own."""
        if self._folder is not None and self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._watch, args=(self._stop,), name="wals-gpu watch", daemon=True).start()

    def stop(self) -> None:
        """Look no longer."""
        if self._stop is not None:
            self._stop.set()
        self._stop = None

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self._every):
            self.look()


def _read_only(factors: NDArray[np.floating]) -> NDArray[np.floating]:
    view = factors.view()
    view.flags.writeable = False
    return view


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What changes when a model is saved; None while there is none."""
    try:
        stat = os.stat(real_folder(folder) / "model.json")
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _digest_of(model: WALS) -> str:
    """Of a model that lies in no folder: of the factors."""
    digest = hashlib.sha256()
    for factors in (model.fitted.user_factors, model.fitted.item_factors):
        digest.update(np.ascontiguousarray(factors).data)
    return digest.hexdigest()[:12]
