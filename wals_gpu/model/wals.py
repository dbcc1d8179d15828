"""The model: weighted alternating least squares from interactions to recommendations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import make_backend
from wals_gpu.checks import did_you_mean, flag, integer, warn
from wals_gpu.data.ids import Ids
from wals_gpu.data.interactions import ColumnNames, as_interactions
from wals_gpu.data.options import ColumnOptions
from wals_gpu.data.tables import as_output, check_output, html_table
from wals_gpu.data.times import Period
from wals_gpu.data.titles import Titles
from wals_gpu.errors import ModelFitError
from wals_gpu.evaluation.report import EvaluationReport
from wals_gpu.model import answers, hub, new_items, new_users, queries, removal, scoring
from wals_gpu.model.card import Measured
from wals_gpu.model.configured import Configured
from wals_gpu.model.files import SavedModel, is_in_halves, read_model, unreadable, write_model
from wals_gpu.model.plot import plot_history
from wals_gpu.model.recommendations import Explanation, Recommendations, RecommendationsChunk
from wals_gpu.model.reranking import make_reranking
from wals_gpu.model.settings import ModelOptions
from wals_gpu.model.vectors import score_vectors
from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.objective.options import ObjectiveOptions, Unpack
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.retrieval.exact import CHUNK, ExactIndex
from wals_gpu.retrieval.explore import UCB, Thompson, make_exploration
from wals_gpu.retrieval.lists import Lists
from wals_gpu.retrieval.neighbors import Neighbors
from wals_gpu.retrieval.rerank import DPP, MMR
from wals_gpu.training.calibration import Calibration, check_exponent
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.loop import Run
from wals_gpu.training.memory import MemoryEstimate, estimate_memory
from wals_gpu.training.plan import HoldOut, Saving, WarmStart, make_plan
from wals_gpu.training.state import FitRecord, History

if TYPE_CHECKING:
    from wals_gpu.model.torch_module import ScoreModule
    from wals_gpu.tuning.result import Trials, Tuning

__all__ = ["WALS", "FitRecord"]

#: What :meth:`WALS.hybrid` recommends: settings of the model, and of the prior (docs/text.md has the measurements).
HYBRID_SETTINGS: dict[str, Any] = {"factors": 256, "objective": "wals", "iterations": 20}
HYBRID_PRIOR: dict[str, Any] = {"relative_strength": 0.5, "votes": "equal"}


class WALS(Configured):
    """Weighted matrix factorisation of implicit feedback.

    Minimises the objective of :mod:`wals_gpu.objective` over user factors X (U, D) and item factors Y (I, D); the score
    of a pair is their dot product.

    Parameters
    ----------
    factors : int, default 256
        D, from 1 to 8192; to 1024 on a CUDA device. From some thousand on, docs/solvers.md says what they cost.
    objective : str or Objective, default "wals"
        A preset by name ("wals", "implicit", "hu", "ials", "google_wals", "eals", "spark", "explicit"), or an instance.
        "wals" adapts itself to density and values of the data; see docs/objective.md.
    iterations : int, default 10
        Sweeps over users and items; 0 leaves the start values.
    solver : {"auto", "cholesky", "cg", "subspace"}, default "auto"
        How row systems are solved. "cholesky": exactly, in the cheaper of the primal and the dual form of each row.
        "cg": `cg_steps` conjugate-gradient steps from the present factor. "subspace": one pass of exact steps over
        blocks of `block_size` coordinates (iALS++). "auto": "cholesky" up to 64 factors, "cg" up to 2048, above that
        "subspace" with blocks of at least 128 (see docs/solvers.md for the measured reasons). All three lower the loss
        in every sweep and have the same fixed points.
    cg_steps : int, default 3
    block_size : int, default 64
        A multiple of 16.
    over_relaxation : float, default 1.0
        From 1 (none) to below 2. Above 1, rows go beyond what their solver gives, by a factor that rises by 0.1 an
        iteration, from 1.2 in the second, up to this: 1.7 takes less than half the iterations to the same loss, and
        the loss still falls in every sweep; see docs/solvers.md.
    dtype : {"float32", "float64"}, default "float32"
        Type of factors and coefficients.
    device : {"auto", "cpu", "cuda", "cuda:0", ...}, default "auto"
        "auto": the CPU, but for fits that are large enough to pay on a CUDA device that has passed its self-check;
        `device_` tells which it was, and why. "cuda": the current CUDA device, in float32, where there is one that can
        be used (:func:`wals_gpu.cuda_status` tells, and why not); "cuda:1": that one. See docs/gpu.md.
    num_threads : int, default 0
        0: all processors that this process may use. Results do not depend on it.
    random_state : int, Generator or None, default 0
        Seed of the start values; None: from the operating system.
    init_scale : float, default 0.1
        Start values are normal with standard deviation ``init_scale / sqrt(D)``, as in Rendle et al. (2021). From 1.0
        the training loss falls faster; from 0.1 the first iterations learn the large directions only, and a fit of few
        iterations ranks unseen items better.
    compute_loss : bool, default True
        Whether each iteration has its loss, evaluated during the sweep over the items (a few percent of its time).
    item_prior, user_prior : LinearPrior, optional
        Features of items, users, such as embeddings of their texts, as prior means of their factors; see
        docs/priors.md.
    popularity_exponent : float from -1 to 1, or "auto", default 0.0
        gamma of the scores ``x_u.y_i (n_i / n)^gamma``, with n_i the training entries of an item and n what is typical
        of them: above 0, popular items rank higher than the factors alone say. "auto": chosen after a fit by its
        validation, which it needs. See docs/calibration.md.
    neighbors : int from 0 to 1024, default 0
        With m > 0 the score of a user and an item is ``x_u.y_i + sum_j B_ji`` over the items j that the user has: B is
        a ridge regression of each item on the m items that most resemble it. 100 to 300 rank better than factors alone
        wherever pairs of items say something; see docs/neighbors.md.
    neighbor_weight : float, default 1.5
        What B is multiplied by, to stand beside the dot products.
    neighbor_regularization : float, default 20.0
        Ridge of B, in users.
    **objective_params
        Parameters of the preset, such as ``regularization`` and ``alpha``.

    Attributes
    ----------
    factors, objective, iterations, ...
        Every parameter but those of the objective. Assigning one checks it as the constructor does, and it holds for
        the next `fit`; `device` and `num_threads` hold at once. An objective is assigned by name or ready, with its
        parameters; :meth:`set_params` changes some of these only.
    user_factors : (U, D) array or None
    item_factors : (I, D) array or None
        None before `fit`. They are read-only after it, as answers keep what they computed from them; to change them,
        assign a new array.
    user_ids, item_ids : Ids or None
        The ids that the training data came with; None when it was a matrix, whose row numbers are the ids then.
    item_prior_, user_prior_ : FittedPrior or None
        What the last `fit` learned of the priors.
    columns_ : ColumnNames or None
        What the columns of the training table were called, ``None`` for a matrix: new interactions are looked for in
        columns of the same names.
    history_ : History, a list of FitRecord
        One for each iteration of the last `fit`; as a table with ``to_pandas()``, ``to_polars()``, ``to_arrow()``.
    validation_metric_ : str or None
        What the last `fit` was validated with; None without validation.
    best_iteration_ : int or None
        The iteration that the factors are from, with validation; None without, or before the first measurement.
    device_ : str or None
        What the last `fit` computed on, with ``device="auto"`` also why; None before.
    neighbors_ : (I, I) csr_matrix or None
        What having an item (row) adds to the score of each item (column); None without `neighbors`.
    popularity_exponent_ : float or None
        gamma of the scores that the model gives; None before `fit`. It may be assigned: scores and lists follow.
    regularization_ : float or None
        That of the last `fit`: the number that was found where `regularization` is "auto", as it is by default; None
        before.
    period_ : Period or None
        The earliest and the latest time, ``first`` and ``last``, of the interactions that the model was fitted on;
        None where they had no times (``time_column=``).
    measured_ : Measured or None
        What :meth:`save` was given as metrics, of a model that was loaded; `fit` forgets it.

    Raises
    ------
    TypeError, ValueError
        A parameter is of the wrong kind or out of range; the message names it.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> data = csr_matrix([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    >>> model = WALS(factors=2, objective="hu", alpha=10).fit(data)
    >>> ids, scores = model.recommend(0, k=1)
    >>> int(ids[0])
    2
    """

    user_factors: NDArray[np.floating] | None
    item_factors: NDArray[np.floating] | None
    user_ids: Ids | None
    item_ids: Ids | None
    item_prior_: FittedPrior | None
    user_prior_: FittedPrior | None
    history_: History
    columns_: ColumnNames | None = None  # also of those that an earlier version pickled
    validation_metric_: str | None
    best_iteration_: int | None
    device_: str | None = None  # also of those that an earlier version pickled
    period_: Period | None = None  # likewise
    measured_: Measured | None = None  # likewise
    _is_closed = True  # an unknown attribute is an error; classes made from this one may have more
    _bound: BoundObjective | None
    _seen: csr_matrix | None  # training interactions
    _calibration: Calibration | None = None  # also of those that an earlier version pickled
    _neighbors: Neighbors | None = None  # likewise
    _counts: NDArray[np.int64] | None = None  # of items, where the users that they were counted from are not there
    _last: tuple[tuple[Any, ...], Fitted] | None = None  # see `fitted`

    def __init__(
        self,
        factors: int = 256,
        objective: str | Objective = "wals",
        *,
        iterations: int = 10,
        solver: str = "auto",
        cg_steps: int = 3,
        block_size: int = 64,
        over_relaxation: float = 1.0,
        dtype: DTypeLike = "float32",
        device: str = "auto",
        num_threads: int = 0,
        random_state: int | np.random.Generator | None = 0,
        init_scale: float = 0.1,
        compute_loss: bool = True,
        item_prior: LinearPrior | None = None,
        user_prior: LinearPrior | None = None,
        popularity_exponent: float | str = 0.0,
        neighbors: int = 0,
        neighbor_weight: float = 1.5,
        neighbor_regularization: float = 20.0,
        **objective_params: Unpack[ObjectiveOptions],
    ) -> None:
        arguments = {
            "factors": factors,
            "objective": objective,
            "iterations": iterations,
            "solver": solver,
            "cg_steps": cg_steps,
            "block_size": block_size,
            "over_relaxation": over_relaxation,
            "dtype": dtype,
            "device": device,
            "num_threads": num_threads,
            "random_state": random_state,
            "init_scale": init_scale,
            "compute_loss": compute_loss,
            "item_prior": item_prior,
            "user_prior": user_prior,
            "popularity_exponent": popularity_exponent,
            "neighbors": neighbors,
            "neighbor_weight": neighbor_weight,
            "neighbor_regularization": neighbor_regularization,
        }
        self._configure(arguments, objective_params)
        self.user_factors = self.item_factors = None
        self.user_ids = self.item_ids = None
        self.item_prior_ = self.user_prior_ = None
        self.history_ = History()
        self.validation_metric_ = self.best_iteration_ = self.device_ = None
        self._bound = self._seen = self._calibration = self._neighbors = None
        self.period_ = self.measured_ = self._counts = None

    @classmethod
    def hybrid(
        cls,
        items: Any,
        encoder: Any = "roberta-base",
        *,
        ids: Any = None,
        max_length: int = 128,
        batch_size: int | None = None,
        cache_dir: str | PathLike[str] | None = None,
        show_progress: bool = False,
        prior: Mapping[str, Any] | None = None,
        **settings: Unpack[ModelOptions],
    ) -> WALS:
        """A model of interactions and item texts in the recommended configuration: 256 factors, 20 iterations, the
        default objective, and a linear prior that takes half of an item's ridge, with one vote for each item
        (docs/priors.md). It is the same for all data: none of it was chosen for a single set.

        Parameters
        ----------
        items : sequence of n str or None, mapping of id to text, or (n, E) array
            Texts, or with ``encoder=None`` embeddings in any form that :class:`.LinearPrior` takes.
        encoder : default "roberta-base"
            Whatever :func:`wals_gpu.text.as_encoder` takes; None: `items` are embeddings.
        ids : sequence of n ids, optional
            Of the texts; default: they are those of the items in the order of the matrix.
        max_length : int, default 128
            Tokens of a text, where `encoder` is a name or folder.
        batch_size : int, optional
            Texts in a batch, likewise; default: the encoder's own.
        cache_dir : path, optional
            Keep the texts' vectors here, likewise: encoding takes most of the time of a first fit, none of a second.
        show_progress : bool, default False
            A progress bar of the encoding.
        prior : mapping, optional
            Settings of :class:`.LinearPrior`, in place of the recommended ones.
        **settings
            Of :class:`WALS`, in place of the recommended ones.

        Returns
        -------
        WALS
            Not fitted yet.

        Examples
        --------
        >>> model = WALS.hybrid(["a film about dogs", "dogs and more dogs"], lambda texts: [[len(t)] for t in texts])
        >>> model.factors, model.item_prior.relative_strength
        (256, 0.5)
        """
        from wals_gpu.text.encoders import as_encoder

        if isinstance(items, (str, PathLike)):
            raise TypeError(f"items must be texts, or embeddings with encoder=None, got {items!r:.60}: read the file")
        if not isinstance(prior, (Mapping, type(None))):
            raise TypeError(f"prior must be a dict of settings of LinearPrior, got {prior!r:.60}")
        recommended: dict[str, Any] = {**HYBRID_SETTINGS, **settings}
        given = dict(prior or {})
        known = inspect.signature(LinearPrior).parameters.keys() - {"embeddings"}
        for name in given.keys() - known:
            raise TypeError(f"prior has no setting {name!r}{did_you_mean(name, known)}")
        prior = HYBRID_PRIOR | given
        if given.get("strength") is not None and "relative_strength" not in given:
            del prior["relative_strength"]
        model = cls(**recommended, item_prior=None)  # refuses what is wrong before texts are encoded
        if encoder is None:
            model.item_prior = LinearPrior(items if ids is None else (ids, items), **prior)
        else:
            if isinstance(encoder, (str, PathLike)):
                encoder = as_encoder(encoder, max_length=max_length, batch_size=batch_size, cache_dir=cache_dir)
            elif cache_dir is not None:
                raise ValueError("cache_dir is for an encoder given by name or folder; others have one of their own")
            model.item_prior = LinearPrior.from_texts(items, encoder, ids=ids, show_progress=show_progress, **prior)
        return model

    @classmethod
    def tune(
        cls,
        interactions: Any,
        budget: Any = "2min",
        *,
        trials: int | None = None,
        metric: str = "ndcg@20",
        validation: float = 0.1,
        test: float = 0.1,
        space: Mapping[str, Any] | None = None,
        storage: str | PathLike[str] | None = None,
        refit: bool = True,
        show_progress: bool = False,
        callback: Callable[[Trials], bool | None] | None = None,
        **settings: Any,
    ) -> Tuning:
        """Search the settings that rank best on held-out interactions, and fit a model with them; see docs/tuning.md.

        Needs Optuna: ``pip install 'wals_gpu[tune]'``.

        Parameters
        ----------
        interactions : matrix (U, I), DataFrame, Arrow table, path or Interactions
            As for :meth:`fit`. Where there are times (`time_column`), the latest interactions are held out, of all or,
            where these are of too few users who were there before, of each user; else some at random.
        budget : str, float, timedelta or None, default "2min"
            How long it may take, the last fits included: text such as "90s", or a number of seconds. None: as long as
            `trials` take. How many trials a machine makes in a time differs from run to run, and so does the result.
        trials : int, optional
            Trials to make; with `storage` those that it holds count. With ``budget=None`` the same seed gives the same
            result, whatever the number of threads.
        metric : str, default "ndcg@20"
            What is to be high, as for :meth:`fit`.
        validation : float, default 0.1
            The share of the interactions that settings are chosen with.
        test : float, default 0.1
            The share that no trial sees: the settings that were found, the defaults and popularity are compared with
            it. 0: no comparison.
        space : dict, optional
            Ranges in place of the usual ones, ``{"regularization": (1e-3, 1, "log"), "nu": (0, 1)}``, or of other
            numbers, such as parameters of another objective; for ``factors`` a list. "item_prior.strength" and the
            like are settings of a prior.
        storage : str or path, optional
            A file of SQLite, or an address that Optuna knows: the search goes on from the trials that are there, and
            several processes that are given the same one share the work.
        refit : bool, default True
            Whether to fit a model with the best settings on all interactions.
        show_progress : bool, default False
        callback : callable, optional
            Called as ``callback(trials)`` after each trial; a true result ends the search.
        **settings
            Settings of the model that are not to be searched, ``random_state`` among them, the seed of the search; and
            ``user_column``, ``item_column``, ``value_column``, ``time_column`` and the like of a table.

        Returns
        -------
        Tuning
            ``best_settings``, ``model``, and what there is to know of the search. Ctrl-C ends it with the best so far.

        Raises
        ------
        ImportError
            Optuna is not installed.
        DataError, TypeError, ValueError
            An argument cannot be used, nothing is left to hold out, or `storage` holds another search.

        Examples
        --------
        >>> from scipy.sparse import random as random_matrix
        >>> data = random_matrix(60, 40, 0.2, "csr", random_state=0)
        >>> tuning = WALS.tune(data, budget=None, trials=30)  # doctest: +SKIP
        >>> model = WALS(**tuning.best_settings)  # doctest: +SKIP
        """
        from wals_gpu.tuning.run import tune

        columns = {name: settings.pop(name) for name in _COLUMNS if name in settings}
        return tune(
            cls,
            interactions,
            budget,
            trials=trials,
            metric=metric,
            validation=validation,
            test=test,
            space=space,
            storage=storage,
            refit=refit,
            show_progress=show_progress,
            callback=callback,
            fixed=settings,
            columns=columns,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "_last"}
        sides = ("user_factors", "item_factors")
        fixed = [name for name in sides if isinstance(state[name], np.ndarray) and not state[name].flags.writeable]
        return state | {"_fixed": fixed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        for name in state.pop("_fixed", ()):  # NumPy's arrays come out of a pickle writeable
            state[name].flags.writeable = False
        vars(self).update(state)

    def __repr__(self) -> str:
        fitted = "not fitted"
        if self.user_factors is not None and self.item_factors is not None:
            fitted = f"{len(self.user_factors)} users x {len(self.item_factors)} items"
        return f"WALS(factors={self.factors}, objective={self.objective!r}, {fitted})"

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [("factors", self.factors), ("objective", self.objective)]
        rows += [
            (name, getattr(self, name)) for name in ("item_prior", "user_prior") if getattr(self, name) is not None
        ]
        exponent = self.popularity_exponent if self.popularity_exponent_ is None else self.popularity_exponent_
        if exponent != 0:
            rows.append(("popularity exponent", exponent))
        if self.neighbors:
            rows.append(("neighbors", f"{self.neighbors}, weight {self.neighbor_weight:g}"))
        rows += [("solver", self.solver), ("type, device", f"{self.dtype}, {self.device_ or self._backend.name}")]
        if self.user_factors is None or self.item_factors is None:
            rows.append(("iterations", f"{self.iterations}, not fitted yet"))
            return html_table([], [(name, str(value)) for name, value in rows], "WALS")
        rows.append(("size", f"{len(self.user_factors):,} users, {len(self.item_factors):,} items"))
        if self._seen is not None:
            rows.append(("interactions", f"{self._seen.nnz:,}"))
        rows.append(("iterations", f"{len(self.history_)} of {self.iterations}"))
        if self.history_ and self.history_[-1].loss is not None:
            rows.append(("loss", f"{self.history_[-1].loss:.6g}"))
        if self.validation_metric_ is not None and self.best_iteration_ is not None:
            best = self.history_[self.best_iteration_ - 1].validation
            rows.append((f"{self.validation_metric_}", f"{best:.4f}, of iteration {self.best_iteration_}"))
        return html_table([], [(name, str(value)) for name, value in rows], "WALS")

    # ------------------------------------------------------------------------------------------------ training

    def fit(
        self,
        interactions: Any,
        y: Any = None,
        *,
        warm_start: bool | WALS | str | PathLike[str] = False,
        callback: Callable[[WALS, FitRecord], bool | None] | None = None,
        show_progress: bool = False,
        validation: Any = None,
        metric: str = "ndcg@10",
        validate_every: int = 1,
        patience: int | None = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        settings: Mapping[str, Any] | str | PathLike[str] | None = None,
        **columns: Unpack[ColumnOptions],
    ) -> WALS:
        """Learn the factors; docs/training.md shows validation and checkpoints at work.

        Parameters
        ----------
        interactions : matrix (U, I), DataFrame, Arrow table, path or Interactions
            See :func:`wals_gpu.interactions.as_interactions`. Repeated pairs are summed, with a warning. More than the
            memory holds: a :class:`wals_gpu.stored.StoredMatrix`, which is read block by block.
        y : ignored
            What scikit-learn's pipelines and searches pass; with a warning where it is not None.
        warm_start : bool, fitted WALS, or path of a saved model, default False
            Start from the present factors (True) or those of another model, matched by id (by row number without ids);
            new rows start at random. Both must have the same number of factors.
        callback : callable, optional
            Called as ``callback(model, record)`` after each iteration; a true result ends the fit. Until the fit ends,
            both factor arrays are read-only and may be rotated, in the same way: scores, cosines, norms and the loss
            are right, but coordinates do not compare from one iteration to another.
        show_progress : bool, default False
            A progress bar with the loss, and the best metric so far.
        validation : float, or matrix (U, I), table or Interactions, optional
            What to measure `metric` with: a share of the entries, which is held out of the training and drawn with
            `random_state`; or interactions that are not in `interactions`, of the same users and items. The model
            ends up with the factors that were best at it (the first of equals).
        metric : str, default "ndcg@10"
            "recall", "plain_recall", "precision", "hit_rate", "ndcg", "map" or "mrr" with a list length; see
            docs/evaluation.md.
        validate_every : int, default 1
            Measure after every so many iterations.
        patience : int, optional
            End the fit after this many measurements in a row without a new best.
        checkpoint_dir : str or path, optional
            A folder to write checkpoints to: one at the start, one every `checkpoint_every` iterations and one at
            the end, each in place of the one before. It must hold none, unless `resume` is true.
        checkpoint_every : int, default 1
        resume : bool, default False
            Go on from the checkpoint in `checkpoint_dir`, if there is one. The result is that of a fit that was never
            interrupted, to the last bit on the same machine. `iterations` and `num_threads` may differ from before.
        settings : dict, or path of a JSON file, optional
            Settings to take over for this fit and later ones, such as :meth:`tune` saved; those that it does not name
            stay. Where it names the objective, that comes with its own parameters.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table.

        Returns
        -------
        self

        Raises
        ------
        DataError, TypeError, ValueError
            The input cannot be used; an earlier fit is left as it was.
        CheckpointError
            The checkpoint is of other data or settings, or is there and `resume` is false; an earlier fit is left as it
            was.
        SingularSystemError
            The system of a row is singular; possible only without regularization.
        ModelFitError
            NaN or infinity came up: values or ridges are out of the range of the dtype.
        MemoryError
            The fit cannot have the memory that it needs: told before it begins.
        DeviceLostError
            The CUDA device stopped working; the model is usable and has the factors of an earlier iteration, which the
            message names: no older than 30 seconds, or the last one that was validated, in a checkpoint or shown to a
            callback.
        OSError
            A checkpoint cannot be written; the one before is whole, and the model has the factors reached so far.
        KeyboardInterrupt
            Ctrl-C; the model is usable and has the factors reached so far, or with `validation` the best ones.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        if y is not None:
            warn("y is not used: fit takes held-out interactions as validation=")
        _check_columns(columns, "fit")
        own = self._settings() if settings is None else self._settings_with(settings)
        holding = HoldOut(validation, metric, validate_every, patience)
        saving = Saving(checkpoint_dir, checkpoint_every, resume)
        plan = make_plan(own.of_fit(), interactions, columns, holding, saving, self._start(warm_start))
        self._take_settings(own)
        with Run(plan, self._take) as run:  # once it has begun, an earlier fit is gone
            run.iterate(None if callback is None else self._announcer(callback), show_progress)
        return self

    def _start(self, warm_start: bool | WALS | str | PathLike[str]) -> WarmStart:
        if isinstance(warm_start, (bool, np.bool_)):
            has_factors = self.user_factors is not None and self.item_factors is not None
            return WarmStart(bool(warm_start), self.fitted if warm_start and has_factors else None)
        if isinstance(warm_start, (str, PathLike)):
            return WarmStart(True, read_model(warm_start, self._backend).fitted)
        if isinstance(warm_start, WALS):
            return WarmStart(True, warm_start.fitted)
        raise TypeError(f"warm_start must be True, False, a fitted WALS or the path of one, got {warm_start!r:.60}")

    def _take(self, run: Run) -> None:
        """Become the model of a fit, which has begun or ended."""
        self._become(run.fitted)
        self.history_, self.validation_metric_, self.best_iteration_ = run.history, run.metric, run.best_iteration
        self.device_, self.measured_ = run.device, None

    def _become(self, fitted: Fitted) -> None:
        self.user_factors, self.item_factors = fitted.user_factors, fitted.item_factors
        self.user_ids, self.item_ids = fitted.user_ids, fitted.item_ids
        self.user_prior_, self.item_prior_ = fitted.user_prior, fitted.item_prior
        self._bound, self._seen = fitted.bound, fitted.seen
        self.columns_, self._calibration, self._neighbors = fitted.columns, fitted.calibration, fitted.neighbors
        self.period_, self._counts = fitted.period, fitted.counts
        self._last = None  # an earlier model's factors are free

    def _announcer(self, callback: Callable[[WALS, FitRecord], bool | None]) -> Callable[[FitRecord], bool | None]:
        """What calls the user's callback with the model of the moment."""

        def announce(record: FitRecord) -> bool | None:
            # New views each time: an answer may keep what it computed from read-only factors.
            now = self.fitted
            self.user_factors, self.item_factors = _read_only(now.user_factors), _read_only(now.item_factors)
            return callback(self, record)

        return announce

    def estimate_memory(
        self,
        n_users: int,
        n_items: int,
        n_entries: int,
        *,
        validation: bool = False,
        block_bytes: int | None = None,
    ) -> MemoryEstimate:
        """How much memory `fit` would take for interactions of a size, whatever machine this is.

        Parameters
        ----------
        n_users, n_items, n_entries : int
            U, I and Z, the number of different pairs.
        validation : bool, default False
            Whether the fit is validated, which keeps a second set of factors.
        block_bytes : int, optional
            For interactions on disk, memory for a block of their rows, see :class:`wals_gpu.stored.StoredMatrix`.

        Returns
        -------
        MemoryEstimate
            In bytes; `print` shows it. Of values that differ from entry to entry; the import of the library, 100 MiB
            or so, and reading a table are not in it.
        """
        shape = integer("n_users", n_users, 1, 2**31 - 1), integer("n_items", n_items, 1, 2**31 - 1)
        more: dict[str, Any] = {"validation": bool(validation)}
        if block_bytes is not None:
            more["block_bytes"] = integer("block_bytes", block_bytes, 1)
        sizes = self._settings().of_fit().sizes(shape, integer("n_entries", n_entries, 0), **more)
        return estimate_memory(sizes, self._backend)

    def plot_history(self, ax: Any = None) -> Any:
        """Draw the loss, and the validation metric with its best iteration, of the last `fit`; needs matplotlib.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            To draw into; by default those of a new figure.

        Returns
        -------
        matplotlib Axes
            With the loss, or without it the metric; with both, the metric has an axis of its own on the right.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ModelFitError
            Nothing was recorded.
        """
        return plot_history(self.history_, self.validation_metric_, self.best_iteration_, ax)

    def score(
        self,
        interactions: Any,
        y: Any = None,
        *,
        metric: str = "ndcg@10",
        heldout: float = 0.2,
        random_state: int | np.random.Generator = 0,
        **columns: Unpack[ColumnOptions],
    ) -> float:
        """How well the model finds what users took: what scikit-learn's searches maximise.

        Users of a table whom the model knows, with entries that it was not fitted on, are ranked with their factors and
        asked for these entries. All others, so every row of a matrix, count as new users: they are folded in from a
        part of their entries and asked for the rest.

        Parameters
        ----------
        interactions : matrix (R, I), or a table
            Of users, known or not. Entries of items that the model does not know are dropped, with a warning.
        y : ignored
        metric : str, default "ndcg@10"
            As for :meth:`fit`. What a user is given, or has in training, is not recommended; values above 0 are
            relevant.
        heldout : float, default 0.2
            The share of a new user's entries to ask for, drawn at random, rounded down but at least one. Who has a
            single entry is left out.
        random_state : int or Generator, default 0
            Seed of the draw.
        **columns
            As for :meth:`fit`.

        Returns
        -------
        float
            The mean over the users who are asked for something.

        Raises
        ------
        DataError, TypeError, ValueError
            Input that cannot be used, or nobody to ask for anything.
        ModelFitError
            The model is not fitted.
        """
        _check_columns(columns, "score")
        return scoring.score(self.fitted, interactions, metric, heldout, random_state, columns)

    def __sklearn_is_fitted__(self) -> bool:
        return self.user_factors is not None and self.item_factors is not None

    @property
    def fitted(self) -> Fitted:
        """What answers are computed from: the factors as they are now, and what they mean.

        Raises
        ------
        ModelFitError
            The model is not fitted; or factors were assigned that are of other users or items, or no factors.
        """
        if self.user_factors is None or self.item_factors is None:
            raise ModelFitError("the model is not fitted: call fit(interactions) first")
        ids, priors = (self.user_ids, self.item_ids), (self.user_prior_, self.item_prior_)
        learned = (self.user_factors, self.item_factors, *ids, self._bound, self._seen, *priors, self.columns_)
        parts = (self._backend, *learned, self._calibration, self._neighbors, self.period_, self._counts)
        # The same object as long as nothing was assigned: it keeps what answers computed from it.
        last = self._last  # read once and set in one step: other threads do the same
        if last is None or any(a is not b for a, b in zip(last[0], parts, strict=True)):
            fitted = Fitted(*parts)
            fitted.check_assigned()
            last = self._last = (parts, fitted)
        return last[1]

    @property
    def popularity_exponent_(self) -> float | None:
        """gamma of the scores that the model gives; None before `fit`. It may be assigned."""
        if self.user_factors is None or self.item_factors is None:
            return None
        return 0.0 if self._calibration is None else self._calibration.exponent

    @popularity_exponent_.setter
    def popularity_exponent_(self, exponent: float) -> None:
        exponent = check_exponent("popularity_exponent_", exponent)
        fitted = self.fitted
        if fitted.calibration is not None:
            self._calibration = replace(fitted.calibration, exponent=exponent)
        else:
            self._calibration = None if exponent == 0 else Calibration.of(exponent, fitted.popularity())

    @property
    def regularization_(self) -> float | None:
        """That of the last fit, a number also where it is "auto"; None before."""
        return None if self._bound is None else self._bound.regularization

    @property
    def neighbors_(self) -> csr_matrix | None:
        """What having an item (row) adds to the score of each item (column), (I, I); None without `neighbors`."""
        return None if self._neighbors is None else self._neighbors.weights

    @property
    def n_users(self) -> int:
        """U; :class:`.ModelFitError` where the model is not fitted."""
        return self.fitted.n_users

    @property
    def n_items(self) -> int:
        """I; :class:`.ModelFitError` where the model is not fitted."""
        return self.fitted.n_items

    # ------------------------------------------------------------------------------------------------ recommendations

    @overload
    def recommend(self, users: ArrayLike, k: int = ..., *, output: str, **options: Any) -> Any: ...

    @overload
    def recommend(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        cold_users: str = "popular",
        unknown: str = "error",
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: None = None,
    ) -> Recommendations: ...

    def recommend(  # type: ignore[misc]  # with output= too it takes no other options than these
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        cold_users: str = "popular",
        unknown: str = "error",
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: str | None = None,
    ) -> Any:
        """The k best items for users of the training data, and what everybody likes for whom the model does not know.

        Parameters
        ----------
        users : id, or (B,) list or array of ids
            Row numbers where the model was fitted on a matrix.
        k : int, default 10
        filter_seen : bool, default True
            Leave out the items that the user has an entry for.
        deny, allow : (B, I) sparse matrix, or B lists of item ids, optional
            For each user, items not to recommend, and the only ones to choose from: the stored entries of a row, of any
            value. With `allow`, only what it lists is scored.
        deny_items, allow_items : list of item ids, or (I,) array of bool, optional
            The same for all users. Whatever is given holds: an item must be on every allow list and on no deny list.
        explore : {None, "ucb", "thompson"}, UCB or Thompson, default None
            Recommend with the uncertainty of the scores in mind (:mod:`wals_gpu.retrieval.posterior`). "ucb": by
            ``score + noise sqrt(y' A^-1 y)``, the upper confidence bound. "thompson": by the scores of a draw of the
            user's factors. The texts are short for ``UCB(noise)`` and
            ``Thompson(noise, seed)`` of :mod:`wals_gpu.retrieval`, beside which `noise` and `random_state` are errors.
        noise : float, default 1.0
            With a text: standard deviation of an observation of confidence 1. 0 explores nothing.
        random_state : int, Generator or None
            With "thompson": seed of the draws. A user's draw depends on it and on the user only; None: from the
            operating system.
        diversity : float from 0 to 1, MMR or DPP, default 0.0
            How much items of a list are to differ from one another (docs/reranking.md): w of maximal marginal
            relevance, whose next item is the one with the highest ``(1 - w) r - w max cos`` among the candidates, r
            their scores scaled to [0, 1] and cos the similarity of their factors with those that are in the list. 0
            changes nothing; with 1, only the first item is chosen by its score. A number is short for ``MMR(weight)``
            of :mod:`wals_gpu.retrieval`, which has more options, as ``DPP(weight)`` has: vectors of your own, and how
            many candidates there are.
        quotas : int, or mapping of category to int or (int, int), optional
            At most so many items of each category, or of those that are named; of a pair, also at least so many.
            Items without a category always may be there. Where no more items of a category are left for a user, its
            list has as many as there are, with a warning.
        categories : (I,) list or array of labels, mapping of item id to label, table or path
            What `quotas` are for, one category an item: in the order of `item_ids` for a list; with a column of ids and
            one of labels for a table.
        category_column : str, optional
            Of a table of categories. Default: the one named like ``category`` or ``genre``.
        popularity_penalty : float, default 0.0
            p of the relevance ``r - p log(1 + n) / log(1 + max n)``, n the training entries of an item with a value
            above 0, that lists are made by. Not for lists of what is popular.
        cold_users : {"popular", "mean", "error"}, default "popular"
            What users get who have no entry in the training data (unless the model has a user_prior, whose features say
            something of them), and ids that are unknown. "popular": the items with most training entries of a value
            above 0, with that number as score; `explore` is not for them, the lists are. "mean": what the mean of all
            users with entries would get. "error": a DataError.
        unknown : {"error", "popular", "skip"}, default "error"
            What ids get that are not in the training data. "error": a KeyError (IndexError for a row number).
            "popular": what `cold_users` says. "skip": no row in the answer; its `users` says who is there. For a single
            id that is skipped, both arrays are empty and `source` is "skipped".
        titles : mapping of id to title, list, table or path, optional
            Titles of items for the tables: of items by number for a list, with a column of ids and one of titles for a
            table (pandas, polars, Arrow, or a Parquet or CSV file).
        title_column : str, optional
            Of a table of titles. Default: the one named like ``title`` or ``name``.
        show_progress : bool, default False
        output : {None, "pandas", "polars", "arrow"}, default None
            A table in place of the pair of arrays, see :meth:`.Recommendations.to_arrow`.

        Returns
        -------
        Recommendations
            The pair ``ids, scores`` of arrays, (k,) for one user, (B, k) for several, with more as attributes. Ids are
            item ids, or int32 column numbers of the matrix; None, or -1, where fewer than k items are left. Scores are
            dot products (with `explore`: the bounds, or the drawn scores) in falling order, equal ones by item number;
            -inf where there is no item. Lists that are re-ranked (`diversity`, `quotas`, `popularity_penalty`) have the
            same scores in the order of the list, which is not that of the scores. With `output`, a table.

        Raises
        ------
        KeyError, IndexError
            An item that the model does not know; a user, with ``unknown="error"``.
        DataError
            A user without entries, with ``cold_users="error"``; titles that cannot be read.
        TypeError, ValueError
            Lists of a wrong kind or shape; an option of a wrong value, or one that has no meaning beside the others.
        ImportError
            `output` needs a package that is not installed.
        SingularSystemError
            With `explore`: scores of a user have no finite variance.
        ModelFitError
            The model is not fitted.
        """
        fitted, output = self.fitted, check_output(output)
        exploration, policy = make_exploration(explore, noise, random_state), queries.Policy(cold_users, unknown)
        batch = queries.user_queries(fitted, users, filter_seen, policy)
        lists, known_titles = Lists(deny, allow, deny_items, allow_items), _titles(titles, title_column, self.item_ids)
        reranking = make_reranking(fitted, diversity, quotas, categories, category_column, popularity_penalty)
        found = answers.recommend(fitted, batch, k, lists, exploration, known_titles, show_progress, reranking)
        return found if output is None else as_output(found.to_arrow(), output)

    def recommend_chunks(
        self,
        users: ArrayLike | None = None,
        k: int = 10,
        *,
        chunk_size: int = CHUNK,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        cold_users: str = "popular",
        unknown: str = "error",
        titles: Any = None,
        title_column: str | None = None,
    ) -> Iterator[RecommendationsChunk]:
        """:meth:`recommend` for many users, some at a time: memory does not grow with their number.

        Parameters
        ----------
        users : (B,) list or array of ids, optional
            None: all.
        k : int, default 10
        chunk_size : int, default 4096
            Users at a time.
        filter_seen, deny, allow, deny_items, allow_items, explore, noise, random_state, cold_users, unknown
            As for :meth:`recommend`.
        diversity, quotas, categories, category_column, popularity_penalty
            As for :meth:`recommend`.
        titles, title_column
            Of the tables that each chunk can be had as.

        Yields
        ------
        RecommendationsChunk
            The triple ``users, ids, scores``: (b,) ids or row numbers, (b, k) and (b, k), with `source` and tables as
            :class:`.Recommendations`.
        """
        fitted, policy = self.fitted, queries.Policy(cold_users, unknown)
        exploration, lists = make_exploration(explore, noise, random_state), Lists(deny, allow, deny_items, allow_items)
        if users is None:
            batch = queries.everybody(fitted, filter_seen, policy)
        else:
            batch = queries.user_queries(fitted, users, filter_seen, policy)
        known_titles = _titles(titles, title_column, self.item_ids)
        reranking = make_reranking(fitted, diversity, quotas, categories, category_column, popularity_penalty)
        return answers.recommend_chunks(fitted, batch, k, lists, exploration, chunk_size, known_titles, reranking)

    @overload
    def recommend_for(self, interactions: Any, k: int = ..., *, output: str, **options: Any) -> Any: ...

    @overload
    def recommend_for(
        self,
        interactions: Any,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        cold_users: str = "popular",
        unknown: str = "error",
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: None = None,
        **columns: Unpack[ColumnOptions],
    ) -> Recommendations: ...

    def recommend_for(
        self,
        interactions: Any,
        k: int = 10,
        *,
        filter_seen: bool = True,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        explore: str | UCB | Thompson | None = None,
        noise: float | None = None,
        random_state: int | np.random.Generator | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        cold_users: str = "popular",
        unknown: str = "error",
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: str | None = None,
        **columns: Any,
    ) -> Any:
        """The k best items for users given by their interactions, whether they were in the training data or not.

        Parameters
        ----------
        interactions, **columns
            As for :meth:`fold_in`.
        k, filter_seen, deny, allow, deny_items, allow_items, explore, noise, random_state, show_progress, output
            As for :meth:`recommend`; a draw depends on the seed and on the number of the row.
        diversity, quotas, categories, category_column, popularity_penalty
            As for :meth:`recommend`.
        cold_users : {"popular", "mean", "error"}, default "popular"
            What a row without an item that the model knows gets, as for :meth:`recommend`.
        unknown : {"error", "popular", "skip"}, default "error"
            What to do with rows of a table whose item the model does not know. "error": a KeyError. "popular": they are
            ignored, with a warning that counts them, and users with nothing else get what `cold_users` says. "skip":
            the same, and users with nothing else are left out.
        titles, title_column
            As for :meth:`recommend`.

        Returns
        -------
        Recommendations
            As for :meth:`recommend`, one row for each user, in the order in which users first appear in a table; of a
            matrix, in its order. `users` says who each row is for.

        Warns
        -----
        ParameterWarning
            Rows were ignored, or pairs repeated.
        """
        _check_columns(columns, "recommend_for")
        fitted, output = self.fitted, check_output(output)
        exploration, policy = make_exploration(explore, noise, random_state), queries.Policy(cold_users, unknown)
        batch = queries.row_queries(fitted, interactions, columns, filter_seen, policy)
        lists, known_titles = Lists(deny, allow, deny_items, allow_items), _titles(titles, title_column, self.item_ids)
        reranking = make_reranking(fitted, diversity, quotas, categories, category_column, popularity_penalty)
        found = answers.recommend(fitted, batch, k, lists, exploration, known_titles, show_progress, reranking)
        return found if output is None else as_output(found.to_arrow(), output)

    @overload
    def search(self, vectors: ArrayLike, k: int = ..., *, output: str, **options: Any) -> Any: ...

    @overload
    def search(
        self,
        vectors: ArrayLike,
        k: int = 10,
        *,
        metric: str = "dot",
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: None = None,
    ) -> Recommendations: ...

    def search(  # type: ignore[misc]  # with output= too it takes no other options than these
        self,
        vectors: ArrayLike,
        k: int = 10,
        *,
        metric: str = "dot",
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        diversity: float | MMR | DPP = 0.0,
        quotas: Any = None,
        categories: Any = None,
        category_column: str | None = None,
        popularity_penalty: float = 0.0,
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: str | None = None,
    ) -> Any:
        """The k best items for vectors in the space of the factors: of :meth:`fold_in`, or projected texts.

        Parameters
        ----------
        vectors : (D,) or (B, D) array
        k : int, default 10
        metric : {"dot", "cosine"}, default "dot"
        deny, allow, deny_items, allow_items, titles, title_column, show_progress, output
            As for :meth:`recommend`.
        diversity, quotas, categories, category_column, popularity_penalty
            As for :meth:`recommend`.

        Returns
        -------
        Recommendations
            As for :meth:`recommend`, (k,) for one vector, (B, k) for several; scores are cosines with that metric. A
            table of several has the number of the vector in a column ``query``.
        """
        index, output = self.item_index(metric), check_output(output)
        lists, known_titles = Lists(deny, allow, deny_items, allow_items), _titles(titles, title_column, self.item_ids)
        reranking = make_reranking(self.fitted, diversity, quotas, categories, category_column, popularity_penalty)
        found = answers.search(index, vectors, k, lists, known_titles, show_progress, reranking)
        return found if output is None else as_output(found.to_arrow(), output)

    def as_torch(self, *, trainable: bool = False, seen: bool = True, factors_only: bool = False) -> ScoreModule:
        """The model as a ``torch.nn.Module``: embeddings, scores of pairs, and lists; needs PyTorch.

        Parameters
        ----------
        trainable : bool, default False
            Whether the embeddings have gradients, to be trained further.
        seen : bool, default True
            Whether the module holds what users have seen, so that its ``recommend`` leaves it out.
        factors_only : bool, default False
            Leave out, with a warning, what is no dot product, where the model has it: neighbours of items.

        Returns
        -------
        ScoreModule
            ``module(users, items)`` gives the scores of :meth:`predict`, ``module.recommend(users, k)`` the lists of
            :meth:`recommend`, both of row numbers. It shares no memory with the model.

        Raises
        ------
        ImportError
            PyTorch is not installed.
        ValueError
            The scores are not dot products alone, and `factors_only` is False.
        ModelFitError
            The model is not fitted.
        """
        vectors = score_vectors(self.fitted, factors_only=factors_only)
        try:
            from wals_gpu.model.torch_module import ScoreModule
        except ModuleNotFoundError as error:
            raise ImportError("as_torch needs PyTorch: pip install torch", name=error.name) from error
        return ScoreModule(vectors, trainable, seen)

    def item_index(self, metric: str = "dot") -> ExactIndex:
        """The item factors as an index: exact search, and export to approximate ones (:mod:`wals_gpu.ann`).

        Parameters
        ----------
        metric : {"dot", "cosine"}, default "dot"
            What it compares by.

        Returns
        -------
        ExactIndex
        """
        return answers.item_index(self.fitted, metric)

    @overload
    def similar_items(self, items: ArrayLike, k: int = ..., *, output: str, **options: Any) -> Any: ...

    @overload
    def similar_items(
        self,
        items: ArrayLike,
        k: int = 10,
        *,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: None = None,
    ) -> Recommendations: ...

    def similar_items(  # type: ignore[misc]  # with output= too it takes no other options than these
        self,
        items: ArrayLike,
        k: int = 10,
        *,
        deny: Any = None,
        allow: Any = None,
        deny_items: ArrayLike | None = None,
        allow_items: ArrayLike | None = None,
        titles: Any = None,
        title_column: str | None = None,
        show_progress: bool = False,
        output: str | None = None,
    ) -> Any:
        """The k items with the most similar factors, the item itself first.

        Parameters
        ----------
        items : id, or (B,) list or array of ids
            Column numbers where the model was fitted on a matrix.
        k : int, default 10
        deny, allow, deny_items, allow_items, titles, title_column, show_progress, output
            As for :meth:`recommend`, with one list for each of the `items`. They hold for the item itself too.

        Returns
        -------
        Recommendations
            The pair ``ids, scores``, (k,) or (B, k): cosines in falling order; None, or -1, and -inf where there are no
            more. Items with a zero factor (no interactions) are not similar to anything, not even to themselves. A
            table has the columns ``item_id``, ``rank`` (1 for the item itself), ``similar_id`` and ``score``.
        """
        fitted, output = self.fitted, check_output(output)
        lists, known_titles = Lists(deny, allow, deny_items, allow_items), _titles(titles, title_column, self.item_ids)
        found = answers.similar_items(fitted, items, k, lists, known_titles, show_progress)
        return found if output is None else as_output(found.to_arrow(), output)

    @overload
    def similar_users(self, users: ArrayLike, k: int = ..., *, output: str, **options: Any) -> Any: ...

    @overload
    def similar_users(
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        deny_users: ArrayLike | None = None,
        allow_users: ArrayLike | None = None,
        show_progress: bool = False,
        output: None = None,
    ) -> Recommendations: ...

    def similar_users(  # type: ignore[misc]  # with output= too it takes no other options than these
        self,
        users: ArrayLike,
        k: int = 10,
        *,
        deny_users: ArrayLike | None = None,
        allow_users: ArrayLike | None = None,
        show_progress: bool = False,
        output: str | None = None,
    ) -> Any:
        """The k users with the most similar factors, the user themself first.

        Parameters
        ----------
        users : id, or (B,) list or array of ids
            Row numbers where the model was fitted on a matrix.
        k : int, default 10
        deny_users, allow_users : list of ids, or (U,) array of bool, optional
            Users that no list may have, and the only ones that lists may have; both hold for the user themself too.
        show_progress : bool, default False
        output : {"pandas", "polars", "arrow"}, optional
            As for :meth:`recommend`.

        Returns
        -------
        Recommendations
            The pair ``ids, scores``, (k,) or (B, k), as of :meth:`similar_items`. A table has the columns ``user_id``,
            ``rank`` (1 for the user themself), ``similar_id`` and ``score``.

        Raises
        ------
        KeyError, IndexError
            A user is unknown.
        ValueError
            `k` is below 1, or the lists would not fit into the memory.
        """
        fitted, output = self.fitted, check_output(output)
        found = answers.similar_users(fitted, users, k, deny_users, allow_users, show_progress)
        return found if output is None else as_output(found.to_arrow(), output)

    # ------------------------------------------------------------------------------------------------ single scores

    def predict(
        self, users: ArrayLike, items: ArrayLike, *, return_std: bool = False, noise: float | None = None
    ) -> Any:
        """Scores of pairs of a user and an item.

        Parameters
        ----------
        users, items : id, or (n,) list or array of ids
            One id beside a list stands for each of its pairs.
        return_std : bool, default False
            Also the standard deviation of each score, ``noise sqrt(y' A^-1 y)`` with the user's system A: see
            :mod:`wals_gpu.retrieval.posterior`.
        noise : float, default 1.0
            With `return_std`: standard deviation of an observation of confidence 1.

        Returns
        -------
        scores : (n,) array, a number for two single ids
            In the dtype of the factors; the same for a pair in whatever list it stands.
        std : same shape, float64
            With `return_std`.

        Raises
        ------
        KeyError, IndexError
            A user or item that the model does not know.
        ValueError
            Lists of different lengths.
        SingularSystemError
            With `return_std`: scores of a user have no finite variance.
        """
        return_std = flag("return_std", return_std)
        if noise is not None and not return_std:
            raise ValueError("noise has a meaning only with return_std=True")
        return answers.predict(self.fitted, users, items, (1.0 if noise is None else noise) if return_std else None)

    def explain(self, user: Any, item: Any, k: int = 10) -> Explanation:
        """What each of a user's items adds to the score of an item (Hu, Koren, Volinsky 2008, section 5).

        Parameters
        ----------
        user, item : id
        k : int, default 10
            Items of the user to name.

        Returns
        -------
        Explanation

        Raises
        ------
        KeyError, IndexError
            A user or item that the model does not know.
        SingularSystemError
            The user's system has no unique solution.
        """
        return answers.explain(self.fitted, user, item, k)

    def explain_for(self, interactions: Any, item: Any, k: int = 10, **columns: Unpack[ColumnOptions]) -> Explanation:
        """:meth:`explain` for one user given by interactions, whether they were in the training data or not.

        Parameters
        ----------
        interactions, **columns
            As for :meth:`fold_in`: a matrix (1, I), or a table in which one user occurs.
        item : id
        k : int, default 10
            Items of the user to name.

        Returns
        -------
        Explanation
            Its score is that of :meth:`recommend_for`.

        Raises
        ------
        DataError, KeyError, TypeError
            Input that cannot be used, such as several users, or items that the model does not know.
        SingularSystemError
            The user's system has no unique solution.
        """
        _check_columns(columns, "explain_for")
        return answers.explain_for(self.fitted, interactions, item, k, columns)

    # ---------------------------------------------------------------------------------------- new users and items

    def fold_in(
        self, interactions: Any, *, embeddings: Any = None, **columns: Unpack[ColumnOptions]
    ) -> NDArray[np.floating]:
        """Factors of users from their interactions, with the item factors as they are.

        Parameters
        ----------
        interactions : matrix (R, I), or a table with the items' ids
            All that is known of each user, not only what is new. A table's users come in the order in which they first
            appear in it, as of ``table["user_id"].unique()``.
        embeddings : (R, E) array, or with ids as of :class:`.LinearPrior`, optional
            Of the users, for the model's `user_prior`; default: the mean of the users in training.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table.

        Returns
        -------
        (R, D) array

        Raises
        ------
        DataError, KeyError
            Input that cannot be used, or items that the model does not know.
        """
        _check_columns(columns, "fold_in")
        fitted = self.fitted
        rows = queries.new_rows(fitted, interactions, columns)
        return queries.fold_in(fitted, rows.matrix, queries.embeddings_of(fitted, rows, embeddings))

    def project_items(self, items: Any) -> NDArray[np.floating]:
        """Factors of items that nobody has, from their texts or embeddings, for :meth:`search`, for example.

        Parameters
        ----------
        items : list of n str or None, or (n, E) array
            Texts need a model whose prior has its encoder: see :class:`.LinearPrior`.

        Returns
        -------
        (n, D) array
        """
        return new_items.project_items(self.fitted, items)

    def add_items(self, items: Any, ids: ArrayLike | None = None, *, mode: str | None = None) -> NDArray[Any]:
        """Take in items that have no interactions yet; they are recommended from now on.

        Parameters
        ----------
        items : list of n str or None, (n, E) array, or mapping of id to text or embedding
            Texts, or embeddings, as for :meth:`project_items`.
        ids : (n,) list or array of ids, optional
            Of the items, none of them known yet. Default: the keys of a mapping, or the index of a pandas object. Not
            where the model was fitted on a matrix: the new items are then its next columns.
        mode : {"prior_mean", "map", "regression"}, optional
            Factor of an item: its prior mean, or the solution of its row as one that everybody could have met and
            nobody has, or what the map of its own gives that a prior with ``cold="regression"`` has. Default: as the
            prior's `cold`.

        Returns
        -------
        (n,) array
            Ids, or column numbers, in the order of `items`. With ids, the row numbers of other items may change: rows
            are in the order of the ids.

        Raises
        ------
        DataError, TypeError, ValueError
            Lengths or kinds that do not fit, ids that are repeated or known; the model is left as it was.
        ModelFitError
            The model is not fitted, or has no item_prior.
        """
        changed, added = new_items.add_items(self.fitted, items, ids, mode)
        self._adopt(changed)
        return added

    def update_items(
        self, interactions: Any, *, exposure: float | None = None, **columns: Unpack[ColumnOptions]
    ) -> NDArray[Any]:
        """Factors of some items from their interactions, everything else as it is.

        Parameters
        ----------
        interactions : matrix (U, I), or a table with ids that the model knows
            All that is known of the items that occur in it, not only what is new; other items stay as they are.
        exposure : float from 0 to 1, optional
            How far users without an interaction count as users who did not want the item: the share of the objective's
            weight of unobserved pairs. Default: as it is, which is 1 for an item of the fit, or added with mode "map",
            and 0 for one added as its prior mean, which hardly anybody can have met yet.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table.

        Returns
        -------
        (n,) array
            Ids, or column numbers, of the items that have new factors.

        Raises
        ------
        DataError, KeyError, TypeError, ValueError
            Input that cannot be used, or users or items that the model does not know; the model is left as it was.
        """
        _check_columns(columns, "update_items")
        changed, updated = new_items.update_items(self.fitted, interactions, exposure, columns)
        self._adopt(changed)
        return updated

    def update_users(
        self, interactions: Any, *, embeddings: Any = None, **columns: Unpack[ColumnOptions]
    ) -> NDArray[Any]:
        """Factors of some users from their interactions, everything else as it is; new users are taken in.

        Parameters
        ----------
        interactions : matrix (R, I), or a table with items that the model knows
            All that is known of the users that occur in it, not only what is new; other users stay as they are. Users
            of a table whom the model does not know become users of the model. Of a matrix, the rows with entries are
            updated; where the model was fitted on one, rows from U on are new users.
        embeddings : (n, E) array, mapping of id to (E,) array, or pair (ids, (n, E) array), optional
            Of the new users, for the model's `user_prior`: an array in the order in which they first appear in a table,
            or of their rows. Default: the mean of the users in training.
        **columns
            ``user_column``, ``item_column``, ``value_column`` of a table, and whatever else :meth:`fit` takes of it.

        Returns
        -------
        (n,) array
            Ids, or row numbers, of the users that have new factors, in rising order. With ids, the row numbers of other
            users may change: rows are in the order of the ids.

        Raises
        ------
        DataError, KeyError, TypeError, ValueError
            Input that cannot be used, or items that the model does not know; the model is left as it was.
        SingularSystemError
            The system of a user is singular; possible only without regularization. Likewise.
        ModelFitError
            The model is not fitted, or its training interactions are on disk.
        """
        _check_columns(columns, "update_users")
        changed, updated = new_users.update_users(self.fitted, interactions, embeddings, columns)
        self._adopt(changed)
        return updated

    def remove_users(self, users: ArrayLike, *, unknown: str = "error") -> NDArray[Any]:
        """Forget users: their factors, interactions, ids, weights and features; everything else stays as it is.

        What others' factors learned from them stays too, until the next :meth:`fit`; so do files that were saved.

        Parameters
        ----------
        users : id, or (B,) list or array of ids
            Row numbers where the model was fitted on a matrix; the users after them move up then, as in
            ``numpy.delete``.
        unknown : {"error", "skip"}, default "error"
            What to do about a user that the model does not know.

        Returns
        -------
        (n,) array
            Ids, or former row numbers, of the users who are gone, in rising order.

        Raises
        ------
        KeyError, IndexError
            A user that the model does not know; the model is left as it was.
        TypeError, ValueError
            Something that is no id; or no user would be left.
        ModelFitError
            The model is not fitted, or its training interactions are on disk.
        """
        changed, gone = removal.remove_users(self.fitted, users, unknown)
        self._adopt(changed)
        return gone

    def remove_items(self, items: ArrayLike, *, unknown: str = "error") -> NDArray[Any]:
        """Forget items, which are not recommended any more; everything else stays, the factors of users too.

        Parameters
        ----------
        items : id, or (B,) list or array of ids
            Column numbers where the model was fitted on a matrix; the items after them move up then, as in
            ``numpy.delete``.
        unknown : {"error", "skip"}, default "error"
            What to do about an item that the model does not know.

        Returns
        -------
        (n,) array
            Ids, or former column numbers, of the items that are gone, in rising order.

        Raises
        ------
        KeyError, IndexError, TypeError, ValueError, ModelFitError
            As :meth:`remove_users`; the model is left as it was.
        """
        changed, gone = removal.remove_items(self.fitted, items, unknown)
        self._adopt(changed)
        return gone

    def _adopt(self, changed: Fitted) -> None:
        """Become a model with other rows; settings that go by rows follow, unless they were assigned since the fit."""
        before = self.fitted
        for side in ("user", "item"):
            old, new = getattr(before, f"{side}_prior"), getattr(changed, f"{side}_prior")
            if old is not None and new is not old and getattr(self, f"{side}_prior") is old.prior:
                setattr(self, f"{side}_prior", new.prior)
        if before.bound is not None and changed.bound is not None and self.objective == before.bound.objective:
            if changed.bound.objective != self.objective:
                self.objective = changed.bound.objective
        self._become(changed)

    # ------------------------------------------------------------------------------------------------ files

    def save(
        self,
        path: str | PathLike[str],
        *,
        dtype: str | None = None,
        metrics: EvaluationReport | Mapping[str, Any] | Measured | None = None,
    ) -> None:
        """Write the model to a folder, in place of a model that is there, with a page about it, ``README.md``.

        The page has sizes, settings, metrics and versions, no ids and no titles, and the form of a model card of the
        Hugging Face hub. No hash covers it and nothing is read from it: once somebody has edited it, later saves leave
        it as it is, with a warning.

        Parameters
        ----------
        path : str or path
            The folder; made if needed. A save that fails leaves the earlier model whole.
        dtype : {"float16"}, optional
            Round the factors in the file to float16, to about three digits: they take half the room (a quarter of
            float64), and the model is loaded in the type that it has now. By default they are written as they are.
        metrics : EvaluationReport, mapping of name to number or Estimate, or Measured, optional
            What lists of this model were measured to be, such as what :func:`wals_gpu.evaluation.evaluate` gave: kept
            in the folder, and on its page. Default: `measured_`.

        Raises
        ------
        TypeError, ValueError
            `dtype` or `metrics` is something else.
        ModelFitError
            The model is not fitted.
        OSError
            The folder cannot be written.
        """
        in_halves = is_in_halves(dtype)
        saved = self._saved()
        if metrics is not None:
            saved = replace(saved, measured=Measured.of(metrics))
        write_model(path, saved, in_halves=in_halves)

    def _saved(self) -> SavedModel:
        """What a folder of the model holds."""
        seed = self.random_state
        settings = {name: getattr(self, name) for name in _SETTINGS}
        settings |= {"dtype": self.dtype.name, "random_state": seed if isinstance(seed, int) else None}
        # What the factors have, where another number or type was set for the next fit.
        settings |= {"factors": self.fitted.factors, "dtype": self.fitted.dtype.name}
        # Only where the model is not one that earlier versions can read.
        if self.popularity_exponent != 0:
            settings["popularity_exponent"] = self.popularity_exponent
        if self.neighbors:
            of_neighbors = ("neighbors", "neighbor_weight", "neighbor_regularization")
            settings |= {name: getattr(self, name) for name in of_neighbors}
        of_fit = (self.history_, self.validation_metric_, self.best_iteration_, self.measured_)
        return SavedModel(settings, self.fitted, *of_fit)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, device: str = "auto", num_threads: int = 0, users: slice | None = None
    ) -> WALS:
        """Read a model from a folder.

        Parameters
        ----------
        path : str or path
        users : slice, optional
            Rows of the users to read of a model that was fitted on several ranks (docs/distributed.md), and so lies in
            several parts, with all items. Their row numbers begin at 0 then. Default: all.
        device, num_threads
            As for the constructor: a matter of this machine, not of the file.

        Returns
        -------
        WALS
            Gives the same answers as the model that was saved, but for factors that were rounded to float16.

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        ModelFormatError
            It holds no model, a damaged one, or one of a newer version.
        DeviceError
            The device cannot do what the model needs, such as float64.
        """
        saved = read_model(path, make_backend(device, num_threads), users)
        fitted = saved.fitted
        assert fitted.bound is not None
        with unreadable(path):
            model = cls(objective=fitted.bound.objective, device=device, num_threads=num_threads, **saved.settings)
        for side in ("user", "item"):
            prior = getattr(fitted, f"{side}_prior")
            if prior is not None:
                setattr(model, f"{side}_prior", prior.prior)
        model._become(fitted)
        model.history_, model.validation_metric_ = saved.history, saved.metric
        model.best_iteration_, model.measured_ = saved.best_iteration, saved.measured
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        users: bool = False,
        private: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "A wals_gpu model",
        dtype: str | None = None,
        metrics: EvaluationReport | Mapping[str, Any] | Measured | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, or to another server of its kind, in one commit.

        Parameters
        ----------
        repo_id : str
            Such as "me/plays"; made if it is not there.
        users : bool, default False
            Whether users are uploaded too: their ids, their interactions and their factors, which are personal data.
            Without, the model answers for users that are given by their interactions (:meth:`recommend_for`,
            :meth:`fold_in`, :meth:`similar_items`), and for all others with what is popular.
        private : bool, default True
            Of a repository that is made. One that is there stays as it is.
        revision : str, optional
            A branch to commit to; made if it is not there. Default: the main one.
        token : str or bool, optional
            Default: what ``hf auth login`` or the environment has.
        commit_message : str
        dtype, metrics
            As for :meth:`save`.
        endpoint : str, optional
            Of another server. Default: the hub, or what the variable ``HF_ENDPOINT`` says.

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        ImportError
            huggingface_hub is not installed (``pip install 'wals_gpu[hub]'``).
        ModelFitError
            The model is not fitted; or without users, it has a user prior.
        huggingface_hub.errors.HfHubHTTPError
            The server refuses.
        ConnectionError
            The server cannot be reached.
        """
        private = flag("private", private)
        model: WALS = self if flag("users", users) else self._without_users()
        where = hub.Place(repo_id, revision, token, endpoint)
        return hub.push(where, lambda folder: model.save(folder, dtype=dtype, metrics=metrics), private, commit_message)

    def _without_users(self) -> WALS:
        """A model of the same items that knows nobody."""
        known = type(self)(**self.get_params())
        known._become(removal.without_users(self.fitted))
        of_fit = (self.history_, self.validation_metric_, self.best_iteration_, self.measured_)
        known.history_, known.validation_metric_, known.best_iteration_, known.measured_ = of_fit
        return known

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | PathLike[str] | None = None,
        local_files_only: bool = False,
        device: str = "auto",
        num_threads: int = 0,
        endpoint: str | None = None,
    ) -> WALS:
        """Download a model that :meth:`push_to_hub` uploaded; every byte of it is checked, and no code runs.

        Parameters
        ----------
        repo_id : str
        revision : str, optional
            A branch, a tag or a commit. In production name a commit: a branch can change.
        token, endpoint
            As for :meth:`push_to_hub`.
        cache_dir : path, optional
            Where downloads are kept. Default: the cache of huggingface_hub.
        local_files_only : bool, default False
            Take what was downloaded before, and ask no server.
        device, num_threads
            As for :meth:`load`.

        Returns
        -------
        WALS

        Raises
        ------
        ImportError
            huggingface_hub is not installed.
        ModelFormatError
            The repository holds no model, or a damaged one.
        huggingface_hub.errors.HfHubHTTPError
            There is no such repository or revision, or it may not be read.
        ConnectionError
            The server cannot be reached, and the model was not downloaded before.
        FileNotFoundError
            With `local_files_only`, the model was not downloaded before.
        """
        folder = hub.pull(hub.Place(repo_id, revision, token, endpoint), cache_dir, local_files_only)
        return cls.load(folder, device=device, num_threads=num_threads)


_SETTINGS = (
    "factors",
    "iterations",
    "solver",
    "cg_steps",
    "block_size",
    "over_relaxation",
    "init_scale",
    "compute_loss",
)


def _titles(titles: Any, column: str | None, item_ids: Ids | None) -> Titles | None:
    if titles is None and column is not None:
        raise ValueError("title_column has a meaning only with titles=")
    return None if titles is None else Titles.read(titles, column).checked(item_ids)


def _check_columns(columns: Mapping[str, Any], method: str) -> None:
    """TypeError where one is no argument of the method, and none that is passed on to the reader."""
    for name in columns:
        if name not in _COLUMNS:
            known = (*inspect.signature(getattr(WALS, method)).parameters, *_COLUMNS)
            raise TypeError(f"{method}() has no argument {name!r}{did_you_mean(name, known[1:])}")


_COLUMNS = tuple(set(inspect.signature(as_interactions).parameters) - {"data", "dtype"})


def _read_only(array: NDArray[np.floating]) -> NDArray[np.floating]:
    view = array.view()
    view.flags.writeable = False
    return view
