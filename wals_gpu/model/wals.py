"""The model: weighted alternating least squares from interactions to recommendations."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import limits, make_backend
from wals_gpu.backends.session import Backend
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.checks import integer
from wals_gpu.data.files import load_folder, save_folder
from wals_gpu.data.ids import Ids
from wals_gpu.errors import ModelFormatError
from wals_gpu.model.answers import Answers
from wals_gpu.model.new_items import NewItems
from wals_gpu.model.plot import plot_history
from wals_gpu.objective.bound import BoundObjective, Objective
from wals_gpu.objective.presets import bound_from_arrays, make_objective
from wals_gpu.priors.linear import FittedPrior, LinearPrior
from wals_gpu.training.fitted import Fitted
from wals_gpu.training.loop import Run
from wals_gpu.training.memory import MemoryEstimate, estimate_memory
from wals_gpu.training.plan import FitSettings, HoldOut, Saving, make_plan
from wals_gpu.training.state import FitRecord

__all__ = ["WALS", "FitRecord"]


class WALS(Answers, NewItems):
    """Weighted matrix factorisation of implicit feedback.

    Minimises the objective of :mod:`wals_gpu.objective` over user factors X (U, D) and item factors Y (I, D); the score
    of a pair is their dot product.

    Parameters
    ----------
    factors : int, default 128
        D, from 1 to 1024.
    objective : str or Objective, default "implicit"
        A preset by name ("implicit", "hu", "ials", "google_wals", "eals", "spark", "explicit"), or an instance.
    iterations : int, default 15
        Sweeps over users and items; 0 leaves the start values.
    solver : {"auto", "cholesky", "cg", "subspace"}, default "auto"
        How row systems are solved. "cholesky": exactly, in the cheaper of the primal and the dual form of each row.
        "cg": `cg_steps` conjugate-gradient steps from the present factor. "subspace": one pass of exact steps over
        blocks of `block_size` coordinates (iALS++). "auto": "cholesky" up to 64 factors, above that "cg" (see
        docs/solvers.md for the measured reasons). All three lower the loss in every sweep and have the same fixed
        points.
    cg_steps : int, default 3
    block_size : int, default 64
        A multiple of 16.
    over_relaxation : float, default 1.0
        From 1 (none) to below 2. Above 1, rows go beyond what their solver gives, by a factor that rises by 0.1 an
        iteration, from 1.2 in the second, up to this: 1.7 takes less than half the iterations to the same loss, and
        the loss still falls in every sweep; see docs/solvers.md.
    dtype : {"float32", "float64"}, default "float32"
        Type of factors and coefficients.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto": the CPU. "cuda": the current CUDA device, in float32, where there is one that can be used
        (:func:`wals_gpu.cuda_status` tells, and why not).
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
    **objective_params
        Parameters of the preset, such as ``regularization`` and ``alpha``.

    Attributes
    ----------
    user_factors : (U, D) array or None
    item_factors : (I, D) array or None
        None before `fit`. The item factors are read-only after it, as answers keep what they computed from them; to
        change them, assign a new array.
    user_ids, item_ids : Ids or None
        The ids that the training data came with; None when it was a matrix, whose row numbers are the ids then.
    item_prior_, user_prior_ : FittedPrior or None
        What the last `fit` learned of the priors.
    history_ : list of FitRecord
        One for each iteration of the last `fit`.
    validation_metric_ : str or None
        What the last `fit` was validated with; None without validation.
    best_iteration_ : int or None
        The iteration that the factors are from, with validation; None without, or before the first measurement.

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

    def __init__(
        self,
        factors: int = 128,
        objective: str | Objective = "implicit",
        *,
        iterations: int = 15,
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
        **objective_params: Any,
    ) -> None:
        self.factors = integer("factors", factors, 1, limits().most_factors)
        self.objective = make_objective(objective, **objective_params)
        self.iterations = integer("iterations", iterations, 0)
        options = SolveOptions.choose(solver, self.factors, cg_steps=cg_steps, block_size=block_size)
        self.solver, self.cg_steps, self.block_size = solver, options.cg_steps, options.block_size
        number = isinstance(over_relaxation, numbers.Real) and not isinstance(over_relaxation, bool)
        if not (number and 1 <= over_relaxation < 2):
            raise ValueError(f"over_relaxation must be a number from 1 to below 2, got {over_relaxation!r}")
        self.over_relaxation = float(over_relaxation)
        try:
            self.dtype = np.dtype(dtype)
        except (TypeError, ValueError, SyntaxError):  # NumPy parses texts such as "f4, (2,3)f8"
            raise ValueError(f"dtype must be float32 or float64, got {dtype!r}") from None
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        self.device = device
        self.num_threads = integer("num_threads", num_threads, 0)
        if not (random_state is None or isinstance(random_state, np.random.Generator)):
            random_state = integer("random_state", random_state, 0)
        self.random_state = random_state
        number = isinstance(init_scale, numbers.Real) and not isinstance(init_scale, bool)
        if not (number and np.isfinite(init_scale) and init_scale >= 0):
            raise ValueError(f"init_scale must be a finite number >= 0, got {init_scale!r}")
        self.init_scale = float(init_scale)
        self.compute_loss = bool(compute_loss)
        for name, prior in (("item_prior", item_prior), ("user_prior", user_prior)):
            if not (prior is None or isinstance(prior, LinearPrior)):
                raise TypeError(f"{name} must be a LinearPrior, such as LinearPrior(embeddings); got {prior!r:.60}")
        self.item_prior = item_prior
        self.user_prior = user_prior
        self._backend: Backend = make_backend(device, self.num_threads)
        self._settings().check_device()

        self.user_factors: NDArray[np.floating] | None = None
        self.item_factors: NDArray[np.floating] | None = None
        self.user_ids: Ids | None = None
        self.item_ids: Ids | None = None
        self.item_prior_: FittedPrior | None = None
        self.user_prior_: FittedPrior | None = None
        self.history_: list[FitRecord] = []
        self.validation_metric_: str | None = None
        self.best_iteration_: int | None = None
        self._bound: BoundObjective | None = None
        self._seen: csr_matrix | None = None  # training interactions

    @classmethod
    def hybrid(
        cls,
        items: Any,
        encoder: Any = "roberta-base",
        *,
        ids: Any = None,
        max_length: int = 128,
        batch_size: int = 32,
        prior: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> WALS:
        """A model of interactions and item texts in the recommended configuration: 256 factors, 20 iterations, Google's
        WALS objective with weighting exponent 0.5, unobserved weight 0.01 and ridge 0.05, and a linear prior of
        strength 3.

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
        batch_size : int, default 32
            Texts in a batch, likewise.
        prior : mapping, optional
            Settings of :class:`.LinearPrior`, in place of the recommended strength.
        **settings
            Of :class:`WALS`, in place of the recommended ones. Those of the objective, and the strength, are used with
            ``objective="google_wals"`` only.

        Returns
        -------
        WALS
            Not fitted yet.

        Examples
        --------
        >>> model = WALS.hybrid(["a film about dogs", "dogs and more dogs"], lambda texts: [[len(t)] for t in texts])
        >>> model.factors, model.objective.exponent
        (256, 0.5)
        """
        from wals_gpu.text.encoders import as_encoder

        recommended: dict[str, Any] = {"factors": 256, "objective": "google_wals", "iterations": 20}
        prior = dict(prior or {})
        if settings.get("objective", "google_wals") == "google_wals":
            recommended |= {"exponent": 0.5, "unobserved_weight": 0.01, "regularization": 0.05}
            if "column_weights" in settings:
                del recommended["exponent"]
            # The ridge alone, as strength, leaves cold items far below what their texts could tell (docs/priors.md).
            prior = {"strength": 3.0} | prior
        if encoder is None:
            if ids is not None:
                items = (ids, items)
            item_prior = LinearPrior(items, **prior)
        else:
            if isinstance(encoder, (str, PathLike)):
                encoder = as_encoder(encoder, max_length=max_length, batch_size=batch_size)
            item_prior = LinearPrior.from_texts(items, encoder, ids=ids, **prior)
        return cls(**(recommended | settings), item_prior=item_prior)

    def __repr__(self) -> str:
        fitted = "not fitted"
        if self.user_factors is not None and self.item_factors is not None:
            fitted = f"{len(self.user_factors)} users x {len(self.item_factors)} items"
        return f"WALS(factors={self.factors}, objective={self.objective!r}, {fitted})"

    # ------------------------------------------------------------------------------------------------ training

    def fit(
        self,
        interactions: Any,
        *,
        warm_start: bool = False,
        callback: Callable[[WALS, FitRecord], bool | None] | None = None,
        show_progress: bool = False,
        validation: Any = None,
        metric: str = "ndcg@10",
        validate_every: int = 1,
        patience: int | None = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
        **columns: Any,
    ) -> WALS:
        """Learn the factors; docs/training.md shows validation and checkpoints at work.

        Parameters
        ----------
        interactions : matrix (U, I), DataFrame, Arrow table, path or Interactions
            See :func:`wals_gpu.interactions.as_interactions`. Repeated pairs are summed, with a warning. More than the
            memory holds: a :class:`wals_gpu.stored.StoredMatrix`, which is read block by block.
        warm_start : bool, default False
            Start from the present factors, matched by id (by row number without ids); new rows start at random.
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
        OSError
            A checkpoint cannot be written; the one before is whole, and the model has the factors reached so far.
        KeyboardInterrupt
            Ctrl-C; the model is usable and has the factors reached so far, or with `validation` the best ones.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        holding = HoldOut(validation, metric, validate_every, patience)
        saving = Saving(checkpoint_dir, checkpoint_every, resume)
        start = self._snapshot() if warm_start and self.user_factors is not None else None
        plan = make_plan(self._settings(), interactions, columns, holding, saving, start, warm_start=warm_start)
        with Run(plan, self._take) as run:
            run.iterate(None if callback is None else self._announcer(callback), show_progress)
        return self

    def _settings(self) -> FitSettings:
        """What fits depend on beside their data."""
        options = SolveOptions.choose(self.solver, self.factors, cg_steps=self.cg_steps, block_size=self.block_size)
        return FitSettings(
            self.factors,
            self.objective,
            self.iterations,
            options,
            self.over_relaxation,
            self.dtype,
            self.random_state,
            self.init_scale,
            self.compute_loss,
            self.user_prior,
            self.item_prior,
            self._backend,
        )

    def _take(self, run: Run) -> None:
        """Become the model of a fit, which has begun or ended."""
        self._become(run.fitted)
        self.history_, self.validation_metric_, self.best_iteration_ = run.history, run.metric, run.best_iteration

    def _become(self, fitted: Fitted) -> None:
        self.user_factors, self.item_factors = fitted.user_factors, fitted.item_factors
        self.user_ids, self.item_ids = fitted.user_ids, fitted.item_ids
        self.user_prior_, self.item_prior_ = fitted.user_prior, fitted.item_prior
        self._bound, self._seen = fitted.bound, fitted.seen

    def _announcer(self, callback: Callable[[WALS, FitRecord], bool | None]) -> Callable[[FitRecord], bool | None]:
        """What calls the user's callback with the model of the moment."""

        def announce(record: FitRecord) -> bool | None:
            # New views each time: an answer may keep what it computed from read-only factors.
            users, items = self._fitted()
            self.user_factors, self.item_factors = _read_only(users), _read_only(items)
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
        sizes = self._settings().sizes(shape, integer("n_entries", n_entries, 0), **more)
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

    def _snapshot(self) -> Fitted:
        """What answers are computed from, as it is now."""
        users, items = self._fitted()
        return Fitted(
            self._backend,
            users,
            items,
            self.user_ids,
            self.item_ids,
            self._bound,
            self._seen,
            self.user_prior_,
            self.item_prior_,
        )

    # ------------------------------------------------------------------------------------------------ files

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to a folder, in place of a model that is there.

        Parameters
        ----------
        path : str or path
            The folder; made if needed. A save that fails leaves the earlier model whole.

        Raises
        ------
        ModelFitError
            The model is not fitted.
        OSError
            The folder cannot be written.
        """
        user_factors, item_factors = self._fitted()
        assert self._bound is not None and self._seen is not None
        arrays, objective = self._bound.to_arrays()
        tensors: dict[str, NDArray[Any]] = {"user_factors": user_factors, "item_factors": item_factors}
        tensors |= {f"objective/{name}": array for name, array in arrays.items()}
        tensors |= {"seen.row_ptr": self._seen.indptr.astype(np.int64), "seen.col_idx": np.asarray(self._seen.indices)}
        if self._seen.dtype != bool:
            value = np.asarray(self._seen.data)
            tensors["seen.value"] = value[:1] if value.size and value.min() == value.max() else value
        for name, ids in (("user_ids", self.user_ids), ("item_ids", self.item_ids)):
            if ids is not None:
                tensors |= ids.to_arrays(name)
        seed = self.random_state
        priors = {}
        for name, fitted in (("item_prior", self.item_prior_), ("user_prior", self.user_prior_)):
            if fitted is not None:
                arrays, priors[name] = fitted.to_arrays(name)
                tensors |= arrays
        validation: dict[str, Any] = {}
        if self.validation_metric_ is not None:
            validation["validation"] = {"metric": self.validation_metric_, "best_iteration": self.best_iteration_}
        save_folder(
            path,
            tensors,
            {
                "model": "WALS",
                "objective": objective,
                "settings": {name: getattr(self, name) for name in _SETTINGS}
                | {"dtype": self.dtype.name, "random_state": seed if isinstance(seed, int) else None},
                "history": [dataclasses.asdict(record) for record in self.history_],
            }
            | ({"priors": priors} if priors else {})
            | validation,
        )

    @classmethod
    def load(cls, path: str | PathLike[str], *, device: str = "auto", num_threads: int = 0) -> WALS:
        """Read a model from a folder.

        Parameters
        ----------
        path : str or path
        device, num_threads
            As for the constructor: a matter of this machine, not of the file.

        Returns
        -------
        WALS
            Gives the same answers as the model that was saved.

        Raises
        ------
        FileNotFoundError
            There is no such folder.
        ModelFormatError
            It holds no model, a damaged one, or one of a newer version.
        """
        tensors, metadata = load_folder(path)
        if "checkpoint" in str(metadata.get("model")):
            raise ModelFormatError(f"{path} holds a checkpoint of a fit, not a model: go on with fit(..., resume=True)")
        try:
            bound = bound_from_arrays(
                {name.split("/", 1)[1]: array for name, array in tensors.items() if name.startswith("objective/")},
                metadata["objective"],
            )
            model = cls(objective=bound.objective, device=device, num_threads=num_threads, **metadata["settings"])
            users, items = tensors["user_factors"], tensors["item_factors"]
            shape = (bound.n_users, bound.n_items)
            for name, factors, n in (("user_factors", users, shape[0]), ("item_factors", items, shape[1])):
                if factors.shape != (n, model.factors) or factors.dtype != model.dtype:
                    raise ValueError(f"{name} must be {model.dtype} ({n}, {model.factors}), got {factors.shape}")
            model.user_ids = Ids.from_arrays(tensors, "user_ids", "user")
            model.item_ids = Ids.from_arrays(tensors, "item_ids", "item")
            for ids, n in ((model.user_ids, shape[0]), (model.item_ids, shape[1])):
                if ids is not None and len(ids) != n:
                    raise ValueError(f"{len(ids)} {ids.side} ids for {n} rows")
            col_idx = tensors["seen.col_idx"]
            value = tensors.get("seen.value", np.ones(1, np.bool_))  # earlier versions did not save the values
            value = np.full(len(col_idx), value[0]) if len(value) == 1 else value
            seen = csr_matrix((value, col_idx, tensors["seen.row_ptr"]), shape=shape)
            seen.check_format(full_check=True)
            if np.any(np.diff(seen.indptr) < 0) or not seen.has_canonical_format:
                raise ValueError("seen.row_ptr and seen.col_idx are no matrix with sorted rows")
            for name, settings in dict(metadata.get("priors", {})).items():
                fitted = FittedPrior.from_arrays(tensors, name, settings)
                n = {"user_prior": shape[0], "item_prior": shape[1]}[name]
                if fitted.weights.shape[1] != model.factors or fitted.mean is None or len(fitted.mean) != n:
                    raise ValueError(f"{name} does not fit {n} rows of {model.factors} factors")
                setattr(model, name, fitted.prior)
                setattr(model, f"{name}_", fitted)
            model.user_factors, model.item_factors = users, items
            model.history_ = [FitRecord(**record) for record in metadata["history"]]
            if "validation" in metadata:
                model.validation_metric_ = metadata["validation"]["metric"]
                model.best_iteration_ = metadata["validation"]["best_iteration"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{path} is not a model that this version can read: {error}") from error
        model._bound, model._seen = bound, seen
        items.flags.writeable = False
        return model


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


def _read_only(array: NDArray[np.floating]) -> NDArray[np.floating]:
    view = array.view()
    view.flags.writeable = False
    return view
