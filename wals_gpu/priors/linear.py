"""Linear priors: what is known of an item (or user) beside its interactions, as the mean of its factor.

Item i has features e_i (E), its text's embedding for example. The prior mean of its factor is linear in them,
``q_i = W e_i + b``, and W and b are part of the objective, which has for this side, in place of ``ridge_i |y_i|^2``::

    sum_i [ shrinkage ridge_i |y_i|^2  +  s_i |y_i - W e_i - b|^2 ]  +  mu (|W|^2 + |b|^2)

See docs/priors.md. :class:`LinearPrior` is what a user configures, :class:`FittedPrior` what a fit learned for it; the
steps in between are in :mod:`wals_gpu.prior_steps`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, DTypeLike, NDArray

from wals_gpu.backends.blas import one_blas_thread
from wals_gpu.checks import flag, integer, number, refuse_ids, with_ids
from wals_gpu.data.encode import as_plain, checked_ids
from wals_gpu.data.features import feature_rows
from wals_gpu.data.ids import Ids
from wals_gpu.data.source import Source
from wals_gpu.data.tables import html_table
from wals_gpu.errors import DataError, ModelFitError
from wals_gpu.objective.terms import Floats, RowTerms
from wals_gpu.priors.kernel import Kernel
from wals_gpu.priors.rows import AllRows, over_chunks

__all__ = ["FittedPrior", "LinearPrior"]

COLD_MODES = ("prior_mean", "map", "regression")
VOTES = ("strength", "equal")
LEARN = ("none", "empirical_bayes")

# Rows of features handled at a time where a copy of them is made.
_ROWS = 1 << 14


class LinearPrior:
    """A prior mean for factors that is linear in given features, for ``WALS(item_prior=...)`` or ``user_prior=...``.

    Parameters
    ----------
    embeddings : (R, E) array, or mapping of id to (E,) array, or pair (ids, (n, E) array), or table
        Features. An array has one row for each item (user) of the matrix, in its order. With ids, rows are found by id;
        what the interactions do not have is left out. A table, of pandas, polars or Arrow, has the ids in a column
        with a name like ``item_id``, ``userId`` or ``id``; one of pandas without it in its index, unless that only
        counts the rows. Without either it is as an array. Features are its other columns, or one of lists.
    strength : float or (R,) array of numbers > 0, optional
        Of the rows of the matrix in its order, also where embeddings have ids:
        s, what the features of a row are worth in the units of the loss: an observation of confidence c is worth
        ``c |x|^2`` in its direction. Default: the row's ridge under the objective, which is thereby moved from 0 to
        the prior mean.
    relative_strength : float >= 0, optional
        c, in place of `strength`: s_i is c times the row's ridge under the objective, so that one number serves many
        data and objectives. Below 1, the rest of the ridge pulls to 0 (`shrinkage`), so that the whole is as without a
        prior. 0 turns the prior off: only rows without interactions have anything of it. Default: 1, where there is no
        `strength`.
    ridge : float > 0, default 1.0
        mu, of W and of b. (Were b free, the loss need not have a minimum: user factors could become ever smaller along
        an ever longer b, and so avoid their ridge; docs/priors.md.)
    shrinkage : float >= 0, optional
        Share of the row's ridge under the objective that stays, towards 0. Default: 0, and with a `relative_strength`
        c below 1, 1 - c.
    learn : {"none", "empirical_bayes"}, default "none"
        "empirical_bayes": `strength` is where it starts, and after every iteration it is multiplied by what makes the
        factors' spread about their prior means what it should be (docs/priors.md).
    votes : {"strength", "equal"}, default "strength"
        What a row weighs in the regression of W and b. "strength": its s, which makes them part of the one objective.
        "equal": every row with interactions counts once, whatever its strength; the fit then alternates between two
        objectives, that of the rows and that of the regression, and its loss may rise (docs/priors.md).
    kernel : float from 0 to 1, default 0.0
        a, the share of the features that is not linear in the embeddings: beside ``sqrt(1 - a) e`` there are up to
        `landmarks` features of a Gaussian kernel, times ``sqrt(a)``.
    kernel_width : float > 0, default 0.3
        gamma of the kernel ``exp(-gamma |e - z|^2)``; between normalized embeddings, ``|e - z|^2`` is at most 4.
    landmarks : int >= 1, default 1000
        Rows, drawn at random, that the kernel compares with (Nystroem's method).
    intercept : bool, default True
        Whether there is a b.
    normalize : bool, default True
        Centre the features on their mean over the rows, and scale each row to length 1. Language models put most of a
        vector's length into a direction that all texts share, and `ridge` would have another meaning with each model.
    cold : {"prior_mean", "map", "regression"}, default "prior_mean"
        What a row without interactions is. "prior_mean": unknown to all, so it is no part of the objective and its
        factor is q. "map": known to all and taken by nobody, a row like all others; its factor is the minimum of the
        loss, which is shorter than q, most so in the directions that the other side occupies. "regression": unknown to
        all, as with "prior_mean", but its factor comes from a linear map of its own, made after the fit from what
        interactions alone say of all rows that have any, with the ridge that leave-one-out finds best.
    whitening : Whitening, optional
        Applied before anything else; fitted on `embeddings` if it is not yet.
    encoder : optional
        Gave the embeddings; kept with the model, so that it can be asked for those of new texts. See
        :func:`wals_gpu.text.as_encoder`, and :meth:`from_texts`.

    Raises
    ------
    TypeError, ValueError, DataError
        A parameter is of the wrong kind, shape or range, or embeddings are not finite; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from wals_gpu import WALS
    >>> data = csr_matrix([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    >>> kinds = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # nobody has the last item; it is one like the third
    >>> model = WALS(2, "hu", alpha=10, regularization=1, item_prior=LinearPrior(kinds, ridge=0.1)).fit(data)
    >>> bool(model.predict(2, 3) > 10 * model.predict(0, 3))
    True
    """

    # Of a pickle that was written before there were these settings.
    relative_strength: float | None = None
    votes: str = "strength"
    kernel: float = 0.0
    kernel_width: float = 0.3
    landmarks: int = 1000

    def __init__(
        self,
        embeddings: Any,
        *,
        strength: ArrayLike | None = None,
        relative_strength: float | None = None,
        ridge: float = 1.0,
        shrinkage: float | None = None,
        learn: str = "none",
        votes: str = "strength",
        kernel: float = 0.0,
        kernel_width: float = 0.3,
        landmarks: int = 1000,
        intercept: bool = True,
        normalize: bool = True,
        cold: str = "prior_mean",
        whitening: Any = None,
        encoder: Any = None,
    ) -> None:
        self.embeddings: NDArray[Any] | None
        self.embeddings, self._ids, self._row_of_id = _read_embeddings(embeddings)
        self.strength = _checked_strength(strength)
        self.relative_strength = None if relative_strength is None else number("relative_strength", relative_strength)
        if self.strength is not None and self.relative_strength is not None:
            raise ValueError("strength and relative_strength must not both be given: one is absolute, one a multiple")
        self.ridge = number("ridge", ridge, positive=True)
        self.shrinkage = None if shrinkage is None else number("shrinkage", shrinkage)
        if learn not in LEARN:
            raise ValueError(f"learn must be one of {', '.join(LEARN)}; got {learn!r}")
        self.learn = learn
        if votes not in VOTES:
            raise ValueError(f"votes must be one of {', '.join(VOTES)}; got {votes!r}")
        if self.relative_strength == 0 and self.shrinkage is not None and self.shrinkage != 1:
            raise ValueError(f"shrinkage must be 1 with relative_strength=0, which turns it off; got {shrinkage}")
        if self.relative_strength == 0 and learn != "none":
            raise ValueError(f"learn must be 'none' with relative_strength=0, which turns the prior off; got {learn!r}")
        self.votes = votes
        self.kernel = number("kernel", kernel, high=1)
        self.kernel_width = number("kernel_width", kernel_width, positive=True)
        self.landmarks = integer("landmarks", landmarks, 1)
        self.intercept = flag("intercept", intercept)
        self.normalize = flag("normalize", normalize)
        if cold not in COLD_MODES:
            raise ValueError(f"cold must be one of {', '.join(COLD_MODES)}; got {cold!r}")
        self.cold = cold
        if whitening is not None and not (hasattr(whitening, "transform") and hasattr(whitening, "to_arrays")):
            raise TypeError(f"whitening must be a wals_gpu.text.Whitening, got {type(whitening).__name__}")
        self.whitening = whitening
        self.encoder = encoder

    @classmethod
    def from_texts(
        cls,
        texts: Any,
        encoder: Any = "roberta-base",
        *,
        ids: Any = None,
        show_progress: bool = False,
        **settings: Any,
    ) -> LinearPrior:
        """A prior from texts, encoded here.

        Parameters
        ----------
        texts : sequence of str or None, or mapping of id to text
            One for each row of the matrix, or for each of `ids`. A pandas Series has the ids in its index, unless that
            only counts the rows.
        encoder : default "roberta-base"
            Whatever :func:`wals_gpu.text.as_encoder` takes.
        ids : sequence, optional
            Of the texts.
        show_progress : bool, default False
        **settings
            As for the class.

        Returns
        -------
        LinearPrior
        """
        from wals_gpu.text.encoders import as_encoder

        if hasattr(texts, "columns"):
            raise TypeError(f"texts must be one column of the {type(texts).__name__}, or a mapping of id to text")
        texts, ids = with_ids("text", texts, ids)
        encoder = as_encoder(encoder)
        embeddings = encoder.encode(texts, show_progress_bar=show_progress)
        return cls(embeddings if ids is None else (ids, embeddings), encoder=encoder, **settings)

    def __sklearn_clone__(self) -> LinearPrior:
        return copy.copy(self)  # what is large, embeddings and encoder, is shared

    def with_parameters(self, **changes: Any) -> LinearPrior:
        """The same features with some settings changed, for a search of settings.

        Parameters
        ----------
        **changes
            As for the class, but `embeddings`. A `strength` takes the place of a `relative_strength`, and the other way
            round.

        Returns
        -------
        LinearPrior
            A new one; embeddings and encoder are shared.

        Raises
        ------
        TypeError, ValueError
            As for the class.
        """
        settings: dict[str, Any] = {name: getattr(self, name) for name in (*_SETTINGS, "whitening", "encoder")}
        chosen = changes.keys() & {"strength", "relative_strength"}
        settings |= {name: getattr(self, name) for name in ("strength", "relative_strength") if not chosen}
        changed = LinearPrior(None, **(settings | changes))
        changed.embeddings, changed._ids, changed._row_of_id = self.embeddings, self._ids, self._row_of_id
        return changed

    def to_config(self) -> dict[str, Any]:
        """The settings as JSON holds them, without features: ``LinearPrior(embeddings, **prior.to_config())``.

        Returns
        -------
        dict
            By name, all but `embeddings`, `whitening` and `encoder`.
        """
        strength = self.strength.tolist() if isinstance(self.strength, np.ndarray) else self.strength
        settings = {"strength": strength, "relative_strength": self.relative_strength}
        return settings | {name: getattr(self, name) for name in _SETTINGS}

    @property
    def ids(self) -> Ids | None:
        """The ids that the embeddings came with, in their order; None where there were none."""
        return self._ids

    @property
    def has_ids(self) -> bool:
        """Whether the embeddings came with ids."""
        return self._ids is not None

    @property
    def factor_of_ridge(self) -> float | None:
        """c, what the objective's ridge of a row is multiplied by; None where `strength` is given."""
        if self.strength is not None:
            return None
        return 1.0 if self.relative_strength is None else self.relative_strength

    @property
    def share_of_ridge(self) -> float:
        """The share of the objective's ridge that pulls to 0."""
        if self.shrinkage is not None:
            return self.shrinkage
        return 0.0 if self.relative_strength is None else max(0.0, 1 - self.relative_strength)

    @property
    def is_off(self) -> bool:
        """Whether rows with interactions have nothing of it."""
        return self.factor_of_ridge == 0

    def __repr__(self) -> str:
        shape = "not with the model" if self.embeddings is None else f"{self.embeddings.shape}"
        named = "strength" if self.relative_strength is None else "relative_strength"
        return f"LinearPrior(embeddings {shape}, {named}={getattr(self, named)!r}, ridge={self.ridge:g})"

    def settings(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        if isinstance(self.strength, np.ndarray):
            strength = f"{self.strength.min():g} to {self.strength.max():g}, of {len(self.strength):,} rows"
        else:
            factor = self.factor_of_ridge
            of_ridge = "that of the row's ridge" if factor == 1 else f"{factor:g} times the row's ridge"
            strength = of_ridge if self.strength is None else f"{self.strength:g}"
        shape = "not with the model" if self.embeddings is None else "{:,} x {:,}".format(*self.embeddings.shape)
        rows = [("embeddings", shape), ("strength", strength)]
        rows.append(("shrinkage", f"{self.share_of_ridge:g}"))
        return rows + [(name, str(getattr(self, name))) for name in _SETTINGS if name != "shrinkage"]

    def _repr_html_(self) -> str:
        return html_table([], self.settings(), "LinearPrior")

    def rows_for(self, side: str, ids: Ids | None, n_rows: int, rows: slice | None = None) -> NDArray[Any]:
        """Embeddings of the rows of a fit.

        Parameters
        ----------
        side : {"item", "user"}
            For error messages.
        ids : Ids or None
            Of the rows.
        n_rows : int
            R.
        rows : slice, optional
            The only ones to give; `ids` are those of these. Default: all.

        Returns
        -------
        (R, E) array

        Raises
        ------
        DataError
            They are not those of these rows: another number of them, or ids without an embedding.
        ValueError
            The prior of a saved model has no embeddings.
        """
        if isinstance(self.strength, np.ndarray) and len(self.strength) != n_rows:
            raise DataError(f"strength of {side}_prior must have shape ({n_rows},), got {self.strength.shape}")
        if self.embeddings is None:
            raise ValueError(
                f"a saved model has no embeddings of its {side}_prior: set its {side}_prior to a new LinearPrior first"
            )
        if self._ids is None:
            if len(self.embeddings) != n_rows:
                with_ids = "" if ids is None else "; where they have ids, give these too, and they are found by them"
                raise DataError(
                    f"embeddings of {side}_prior must have one row for each of the {n_rows} {side}s, got shape "
                    f"{self.embeddings.shape}{with_ids}"
                )
            return self.embeddings if rows is None else self.embeddings[rows]
        if ids is None:
            raise DataError(f"{side}_prior has ids, but the interactions are a matrix, without any: give it an array")
        if self._ids.kind != ids.kind:
            raise DataError(f"{side}_prior has {self._ids.kind} ids, the interactions have {ids.kind}s")
        place = self._ids.find(ids.ids)
        missing = np.flatnonzero(place < 0)
        if len(missing):
            raise DataError(
                f"{side}_prior must have embeddings of every {side} of the interactions; {len(missing)} are missing, "
                f"such as {', '.join(repr(one) for one in ids.take(missing[:3]).tolist())}: of what nothing is known, "
                "an empty text, or the mean of the others"
            )
        assert self._row_of_id is not None
        return np.asarray(self.embeddings[self._row_of_id[place]])

    def rows_named(self, side: str, names: NDArray[Any] | None, n_rows: int) -> NDArray[Any]:
        """Embeddings of rows in any order.

        Parameters
        ----------
        side : {"item", "user"}
            For error messages.
        names : (n_rows,) array of ids, or None
            Of the rows; None: they have none.
        n_rows : int

        Returns
        -------
        (n_rows, E) array

        Raises
        ------
        DataError, ValueError
            As :meth:`rows_for`.
        """
        if self._ids is None or names is None:
            return self.rows_for(side, None, n_rows)
        ids, place = Ids.encode(pa.array(names), side)
        return self.rows_for(side, ids, n_rows)[place]

    def sizes(self) -> tuple[int, int, int]:
        """Bytes of an embedding, number of features, and copies of the embeddings that a fit makes: for estimates."""
        if self.embeddings is None:
            return 0, 0, 0
        dimension = self.embeddings.shape[1]
        features = dimension if self.whitening is None else self.whitening.components or dimension
        features += min(self.landmarks, len(self.embeddings)) if self.kernel else 0
        return self.embeddings.itemsize * dimension, features, int(self._ids is not None)

    def left_over(self, ids: Ids) -> tuple[NDArray[Any], list[Any]]:
        """What has an embedding and is not among some ids: the rest of a catalogue, for :meth:`.WALS.add_items`.

        Parameters
        ----------
        ids : Ids

        Returns
        -------
        embeddings : (n, E) array
        ids : list of n
            Both empty where the embeddings came without ids.
        """
        if self.embeddings is None or self._ids is None or self._row_of_id is None:
            return np.empty((0, 0)), []
        rest = np.flatnonzero(ids.find(self._ids.ids) < 0)
        return self.embeddings[self._row_of_id[rest]], self._ids.take(rest).tolist()

    def of_rows(self, kept: NDArray[np.integer], ids: Ids | None, n_rows: int) -> LinearPrior:
        """The same without the features of other rows, those of a catalogue that were in no fit excepted.

        Parameters
        ----------
        kept : (n,) int
            Rows of the fit to keep, in rising order.
        ids : Ids, optional
            Of all rows of the fit.
        n_rows : int
            Their number.

        Returns
        -------
        LinearPrior
        """
        shrunk = copy.copy(self)
        if isinstance(self.strength, np.ndarray) and len(self.strength) == n_rows:
            shrunk.strength = self.strength[kept]
        if self.embeddings is None:
            return shrunk
        if self._ids is None or self._row_of_id is None:
            if len(self.embeddings) == n_rows:
                shrunk.embeddings = self.embeddings[kept]
        elif ids is not None and ids.kind == self._ids.kind:
            gone = np.setdiff1d(np.arange(n_rows), kept)
            place = np.asarray(self._ids.find(ids.take(gone)))
            rest = np.setdiff1d(np.arange(len(self._ids)), place)
            shrunk._ids = self._ids.subset(rest)
            shrunk.embeddings, shrunk._row_of_id = self.embeddings[self._row_of_id[rest]], np.arange(len(rest))
        return shrunk

    def of_part(self, rows: slice, n_rows: int) -> LinearPrior:
        """The same for consecutive rows of a fit; embeddings with ids stay, as they are found by these.

        Parameters
        ----------
        rows : slice
        n_rows : int
            Of the whole fit.

        Returns
        -------
        LinearPrior
        """
        part = copy.copy(self)
        if isinstance(self.strength, np.ndarray) and len(self.strength) == n_rows:
            part.strength = self.strength[rows]
        if self.embeddings is not None and self._ids is None and len(self.embeddings) == n_rows:
            part.embeddings = self.embeddings[rows]
        return part

    def fingerprint(self) -> str:
        """A digest of the embeddings and all settings that a fit depends on."""
        settings: list[Any] = [self.strength, self.ridge, self.share_of_ridge]
        settings += [self.learn, self.intercept, self.normalize, self.cold]
        digest = hashlib.sha256(repr(settings).encode())
        later = [self.relative_strength, self.votes, self.kernel and (self.kernel, self.kernel_width, self.landmarks)]
        if later != [None, "strength", 0.0]:  # without them, the digest is what it was before there were any
            digest.update(repr(later).encode())
        whitening = self.whitening
        if whitening is not None:
            digest.update(repr([whitening.whiten, whitening.components, whitening.epsilon]).encode())
        for array in (self.embeddings, self.strength):
            if isinstance(array, np.ndarray):
                for start in range(0, len(array), _ROWS):
                    digest.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
        return digest.hexdigest()


class FittedPrior:
    """What a fit learned: the map from features to prior means.

    Parameters
    ----------
    prior : LinearPrior
        The settings.
    weights : (E+1, D) float64
        W in the first E rows (transposed, ``q = e W + b``) and b in the last. Filled in by the fit.
    scale : (1,) float64
        What empirical Bayes multiplied the strength by.
    center : (E,) float32 or None
        Mean of the features, with ``normalize``.
    kernel : Kernel, optional
        What makes features that are not linear in the embeddings.

    Attributes
    ----------
    mean : (R, D) array or None
        Prior means of the rows of the model, after the fit.
    cold_weights : (E+1, D) float64 or None
        The map of ``cold="regression"``, after the fit.
    """

    # Of a pickle that was written before there were these.
    kernel: Kernel | None = None
    cold_weights: Floats | None = None

    def __init__(
        self,
        prior: LinearPrior,
        weights: Floats,
        scale: Floats,
        center: NDArray[np.float32] | None,
        kernel: Kernel | None = None,
    ) -> None:
        self.prior = prior
        self.weights = weights
        self.scale = scale
        self.center = center
        self.kernel = kernel
        self.cold_weights = None
        self.mean: NDArray[np.floating] | None = None

    def __repr__(self) -> str:
        features, factors = len(self.weights) - 1, self.weights.shape[1]
        return f"FittedPrior({self.prior!r}, {features} features to {factors} factors, scale={self.scale[0]:g})"

    def _repr_html_(self) -> str:
        rows = [("map", f"{len(self.weights) - 1:,} features to {self.weights.shape[1]:,} factors")]
        rows += [("rows", "unknown" if self.mean is None else f"{len(self.mean):,}")]
        if self.prior.learn != "none":
            rows.append(("strength was multiplied by", f"{self.scale[0]:.4g}"))
        return html_table([], rows + self.prior.settings(), "FittedPrior")

    @classmethod
    def begin(cls, prior: LinearPrior, raw: NDArray[Any], factors: int, rows: AllRows, threads: int = 1) -> FittedPrior:
        """Learn from the embeddings of a fit all that does not depend on factors; W = 0 and b = 0.

        Parameters
        ----------
        prior : LinearPrior
            Its whitening, if it has one and that is not fitted, is fitted here.
        raw : (R, E) array
            The embeddings.
        factors : int
            D.
        rows : AllRows
            Sums over all rows of the fit, where `raw` has only some of them.
        threads : int, default 1

        Returns
        -------
        FittedPrior
        """
        n, whitening = rows.n, prior.whitening

        def block_of(part: slice) -> NDArray[Any]:
            block = raw[part]
            return block if whitening is None else whitening.transform(block)

        if whitening is not None and whitening.mean_ is None:
            mean = rows.total(len(raw), lambda part: raw[part].astype(np.float64).sum(axis=0), threads) / n
            covariance = None
            if whitening.whiten:

                def square(part: slice) -> Floats:
                    block = raw[part].astype(np.float64) - mean
                    product: Floats = block.T @ block
                    return product

                covariance = rows.total(len(raw), square, threads) / max(n - 1, 1)
            with one_blas_thread():
                whitening.learn(mean, covariance)
            rows.agree(*(array for array in (whitening.mean_, whitening.matrix_) if array is not None))
        width = block_of(slice(0, 0)).shape[1]
        center = None
        if prior.normalize:
            total = rows.total(len(raw), lambda part: block_of(part).sum(axis=0, dtype=np.float64), threads)
            center = (total / n).astype(np.float32)
        fitted = cls(prior, np.zeros((width + 1, factors)), np.ones(1), center)
        if prior.kernel:
            chosen = np.sort(np.random.default_rng(0).choice(n, min(prior.landmarks, n), replace=False))
            first, last = np.searchsorted(chosen, [rows.first, rows.first + len(raw)])
            landmarks = rows.gather(np.ascontiguousarray(raw[chosen[first:last] - rows.first]))
            with one_blas_thread():
                fitted.kernel = Kernel.at(fitted.features(landmarks, np.float32), prior.kernel_width)
            rows.agree(fitted.kernel.landmarks, fitted.kernel.root)
            fitted.weights = np.zeros((width + len(chosen) + 1, factors))
        return fitted

    def features_of_fit(self, raw: NDArray[Any], dtype: DTypeLike, threads: int = 1) -> NDArray[np.floating]:
        """:meth:`features` of the rows of a fit, in the chunks that sums over them are taken in.

        Parameters
        ----------
        raw : (R, E) array
            Their embeddings.
        dtype : dtype
            Of the features.
        threads : int, default 1

        Returns
        -------
        (R, F) array
            F features: as many as `weights` has rows, less one.
        """
        out = np.empty((len(raw), len(self.weights) - 1), dtype)

        def fill(part: slice) -> None:
            out[part] = self.features(raw[part], dtype)

        for _ in over_chunks(len(raw), fill, threads):
            pass
        return out

    def features(self, raw: NDArray[Any], dtype: DTypeLike) -> NDArray[np.floating]:
        """Features of embeddings: whitened, centred and scaled to length 1, and of the kernel, as set.

        Parameters
        ----------
        raw : (n, E) array
            Embeddings, finite.
        dtype : dtype
            Of the features.

        Returns
        -------
        (n, F) array
            F features: as many as `weights` has rows, less one.
        """
        out = np.empty((len(raw), len(self.weights) - 1), dtype)
        for start in range(0, len(raw), _ROWS):
            block = raw[start : start + _ROWS]
            if self.prior.whitening is not None:
                block = self.prior.whitening.transform(block)
            if self.center is not None:
                block = block.astype(np.float64) - self.center
                length = np.linalg.norm(block, axis=1, keepdims=True)
                # What differs from the mean by rounding only (an empty text has the mean) says nothing of the row.
                known = length > 1e-6 * (np.linalg.norm(self.center) + np.finfo(np.float64).tiny)
                block = np.divide(block, length, out=np.zeros_like(block), where=known)
            if self.kernel is not None:
                share = self.prior.kernel
                block = np.hstack([np.sqrt(1 - share) * block, np.sqrt(share) * self.kernel.features(block)])
            out[start : start + _ROWS] = block
        return out

    def project(self, embeddings: Any, dtype: DTypeLike = np.float64) -> NDArray[np.floating]:
        """Prior means of rows from their embeddings.

        Parameters
        ----------
        embeddings : (n, E) array
        dtype : dtype, default float64

        Returns
        -------
        (n, D) array

        Raises
        ------
        DataError
            The embeddings are no finite numbers, or not as long as those of the fit.
        """
        return self._mapped(embeddings, self.weights, dtype)

    def project_unmet(self, embeddings: Any, dtype: DTypeLike = np.float64) -> NDArray[np.floating]:
        """Factors of rows without interactions: prior means, or by the map of ``cold="regression"``.

        Parameters
        ----------
        embeddings : (n, E) array
        dtype : dtype, default float64

        Returns
        -------
        (n, D) array

        Raises
        ------
        DataError
            The embeddings are no finite numbers, or not as long as those of the fit.
        """
        return self._mapped(embeddings, self.unmet_weights, dtype)

    @property
    def unmet_weights(self) -> Floats:
        """The map (E+1, D) that rows without interactions have their factor from."""
        return self.weights if self.cold_weights is None else self.cold_weights

    def _mapped(self, embeddings: Any, weights: Floats, dtype: DTypeLike) -> NDArray[np.floating]:
        raw = _checked_embeddings(embeddings)
        width = len(weights) - 1
        if self.kernel is not None:
            width = self.kernel.landmarks.shape[1]
        if self.prior.whitening is not None:
            width = len(self.prior.whitening.mean_)
        if raw.shape[1] != width:
            raise DataError(f"embeddings must have shape (n, E={width}) as in the fit, got {raw.shape}")
        mapped: NDArray[np.floating] = self.features(raw, np.float64) @ weights[:-1] + weights[-1]
        return mapped.astype(dtype, copy=False)

    def encode(self, texts: Sequence[str | None]) -> NDArray[np.floating]:
        """Embeddings of texts, by the encoder that the prior was made with.

        Parameters
        ----------
        texts : sequence of str or None
            Those that say nothing have the catalogue's mean, where it was kept.

        Returns
        -------
        (n, E) array

        Raises
        ------
        ModelFitError
            The prior has no encoder.
        """
        if self.prior.encoder is None:
            raise ModelFitError(
                "the prior was made from embeddings, without an encoder: give embeddings, or set its "
                "encoder= to what they were made with"
            )
        from wals_gpu.text.encoders import as_encoder, encoder_from_config

        encoder = self.prior.encoder
        encoder = encoder_from_config(encoder) if isinstance(encoder, dict) else as_encoder(encoder)
        self.prior.encoder = encoder  # models are loaded once
        # Texts that say nothing have the catalogue's mean, where it was kept.
        mean = self.center if self.prior.whitening is None else self.prior.whitening.mean_
        encoded: NDArray[np.floating] = encoder.encode(list(texts), empty=mean)
        return encoded

    def ridges(self, terms: RowTerms, rows: NDArray[np.integer] | None = None) -> tuple[Floats, Floats]:
        """What pulls rows towards 0 and what towards their prior means.

        Parameters
        ----------
        terms : RowTerms
            Of n rows, under the objective alone.
        rows : (n,) int, optional
            Their numbers in the fit, where these are not all of its rows; -1 for one that was not there. For a strength
            that was given for each row: rows that were not there have the mean.

        Returns
        -------
        towards_zero, strength : (n,) float64
        """
        ridge = np.broadcast_to(terms.ridge, terms.n_rows).astype(np.float64)
        factor = self.prior.factor_of_ridge
        base = self.prior.strength if factor is None else ridge * factor
        if isinstance(base, np.ndarray) and factor is None and rows is not None:
            base = np.where(rows >= 0, base[rows], base.mean())
        met = np.ones(terms.n_rows, np.bool_) if self.prior.cold == "map" else np.diff(terms.row_ptr) > 0
        if self.prior.is_off:
            return ridge * met, ridge * ~met
        return self.prior.share_of_ridge * ridge * met, np.broadcast_to(base * self.scale[0], terms.n_rows)

    def pulled(
        self, terms: RowTerms, mean: NDArray[np.floating], rows: NDArray[np.integer] | None = None
    ) -> tuple[RowTerms, NDArray[np.floating]]:
        """Both pulls of :meth:`ridges` as one.

        Parameters
        ----------
        terms : RowTerms
            Of n rows, under the objective alone.
        mean : (n, D) array
            Their prior means.
        rows : (n,) array of int, optional
            As of :meth:`ridges`.

        Returns
        -------
        terms : RowTerms
            Those whose ridge is the sum of both.
        to : (n, D) array
            What it pulls to.
        """
        towards_zero, strength = self.ridges(terms, rows)
        total = towards_zero + strength
        share = (strength / total)[:, None] if towards_zero.any() else 1.0
        dtype = mean.dtype
        return replace(terms, ridge=total.astype(dtype)), np.asarray(mean * share, dtype)

    # ------------------------------------------------------------------------------------------------ files

    def to_arrays(self, name: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """What :meth:`from_arrays` needs.

        The encoder is saved where it can be described; a function can not, and a loaded model then takes embeddings.

        Parameters
        ----------
        name : str
            What the names of the arrays begin with.

        Returns
        -------
        arrays : dict of str to array
        settings : dict
            Can be written as JSON.
        """
        prior = self.prior
        arrays: dict[str, NDArray[Any]] = {f"{name}/weights": self.weights, f"{name}/scale": self.scale}
        if self.center is not None:
            arrays[f"{name}/center"] = self.center
        if self.mean is not None:
            arrays[f"{name}/mean"] = self.mean
        if isinstance(prior.strength, np.ndarray):
            arrays[f"{name}/strength"] = prior.strength
        if self.cold_weights is not None:
            arrays[f"{name}/cold_weights"] = self.cold_weights
        if self.kernel is not None:
            arrays |= {f"{name}/landmarks": self.kernel.landmarks, f"{name}/kernel_root": self.kernel.root}
        if prior.whitening is not None:
            arrays |= prior.whitening.to_arrays(f"{name}/whitening")
        settings: dict[str, Any] = {key: getattr(prior, key) for key in _SETTINGS}
        settings["strength"] = None if isinstance(prior.strength, np.ndarray) else prior.strength
        settings["relative_strength"] = prior.relative_strength if prior.strength is None else None
        encoder = prior.encoder
        if encoder is not None and not isinstance(encoder, dict):
            from wals_gpu.text.encoders import as_encoder

            try:
                encoder = as_encoder(encoder).to_config()
            except (NotImplementedError, TypeError, ValueError):
                encoder = None
        return arrays, settings | {"encoder": encoder}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], name: str, settings: Mapping[str, Any]) -> FittedPrior:
        """The prior that :meth:`to_arrays` described.

        Parameters
        ----------
        arrays : mapping of str to array
            May hold others, too.
        name : str
        settings : mapping
            Both as of :meth:`to_arrays`.

        Returns
        -------
        FittedPrior

        Raises
        ------
        ValueError, TypeError, KeyError
            They describe none.
        """
        settings = dict(settings)
        if f"{name}/strength" in arrays:
            settings["strength"] = arrays[f"{name}/strength"]
        if f"{name}/whitening.mean" in arrays:
            from wals_gpu.text.whitening import Whitening

            settings["whitening"] = Whitening.from_arrays(arrays, f"{name}/whitening")
        prior = LinearPrior(None, **settings)
        weights, scale, center = arrays[f"{name}/weights"], arrays[f"{name}/scale"], arrays.get(f"{name}/center")
        if weights.ndim != 2 or weights.dtype != np.float64 or scale.shape != (1,) or scale.dtype != np.float64:
            raise ValueError(f"{name}: weights must be float64 (E+1, D) and scale (1,)")
        kernel = None
        n_linear = len(weights) - 1
        if prior.kernel:
            landmarks, root = arrays[f"{name}/landmarks"], arrays[f"{name}/kernel_root"]
            n_linear -= len(landmarks)
            if landmarks.shape[1:] != (n_linear,) or root.shape != (len(landmarks),) * 2:
                raise ValueError(f"{name}: landmarks must be (m, {n_linear}) and kernel_root (m, m)")
            kernel = Kernel(landmarks, root, prior.kernel_width)
        if (center is not None) != prior.normalize or (center is not None and center.shape != (n_linear,)):
            raise ValueError(f"{name}: center must have one number for each of {n_linear} features")
        cold_weights = arrays.get(f"{name}/cold_weights")
        if cold_weights is not None and (cold_weights.shape, cold_weights.dtype) != (weights.shape, weights.dtype):
            raise ValueError(f"{name}: cold_weights must be float64 {weights.shape}, as weights are")
        for key in ("weights", "scale", "center", "mean", "cold_weights", "landmarks", "kernel_root"):
            if f"{name}/{key}" in arrays and not np.isfinite(arrays[f"{name}/{key}"]).all():
                raise ValueError(f"{name}/{key} must be finite")
        fitted = cls(prior, weights, scale, center, kernel)
        fitted.cold_weights = cold_weights
        fitted.mean = arrays.get(f"{name}/mean")
        return fitted


_SETTINGS = (
    "ridge", "shrinkage", "learn", "votes", "kernel", "kernel_width", "landmarks", "intercept", "normalize", "cold",
)  # fmt: skip


def _read_embeddings(source: Any) -> tuple[NDArray[Any] | None, Ids | None, NDArray[np.int64] | None]:
    """Embeddings (n, E), and where they come with ids: these in order, and the row of each."""
    if source is None:
        return None, None, None
    given, features = source if isinstance(source, tuple) and len(source) == 2 else (None, source)
    if isinstance(given, (set, frozenset)):
        raise TypeError("ids of embeddings must be in the order of these, got a set, which has none")
    given, features = feature_rows("embeddings", features, given)
    embeddings = _checked_embeddings(features)
    if given is None:
        return embeddings, None, None
    try:
        values = pa.array(given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"ids of embeddings must be integers or strings: {error}") from error
    if len(values) != len(embeddings):
        raise DataError(f"embeddings must have one row for each of {len(values)} ids, got shape {embeddings.shape}")
    if values.null_count:
        raise DataError(f"ids of embeddings must be integers or strings, none missing; {values.null_count} are")
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    values = as_plain(checked_ids(column, "ids of embeddings", Source("the embeddings", [], lambda *_: [])))
    ids, place = Ids.encode(values, "embedded")
    if len(ids) < len(values):
        raise DataError(f"ids of embeddings must be distinct: {len(values) - len(ids)} of {len(values)} are repeats")
    row_of_id = np.empty(len(ids), np.int64)
    row_of_id[place] = np.arange(len(ids))
    return embeddings, ids, row_of_id


def _checked_embeddings(source: Any) -> NDArray[Any]:
    try:
        embeddings = np.asarray(source)
        if embeddings.dtype == object and embeddings.ndim == 1:  # a column of lists
            embeddings = np.array(embeddings.tolist())
    except ValueError as error:  # rows of several lengths
        raise DataError(f"embeddings must be an array (n, E): {error}") from error
    if embeddings.ndim != 2 or embeddings.dtype.kind not in "fiub" or not embeddings.shape[1]:
        raise DataError(f"embeddings must be an array (n, E) of numbers, got {embeddings.dtype} {embeddings.shape}")
    for start in range(0, len(embeddings), _ROWS):
        with np.errstate(over="ignore"):  # in which a fit reckons with them
            finite = np.isfinite(embeddings[start : start + _ROWS].astype(np.float32, copy=False)).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            large = "numbers beyond float32" if np.isfinite(embeddings[row]).all() else "NaN or infinity"
            raise DataError(f"embeddings must be finite, got {large} in row {row}")
    return embeddings


def _checked_strength(value: Any) -> float | Floats | None:
    if value is None:
        return None
    message = f"strength must be a finite number > 0, or an array (R,) of them, got {value!r}"
    if isinstance(value, (bool, str)):
        raise TypeError(message)
    refuse_ids("strength", value, "interactions.item_ids.ids")
    try:
        strength = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(message) from None
    if strength.ndim > 1 or not strength.size or not (np.isfinite(strength).all() and (strength > 0).all()):
        raise ValueError(message)
    return float(strength) if strength.ndim == 0 else strength
