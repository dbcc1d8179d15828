"""``implicit``'s alternating least squares, with its arguments, results and files, on the solvers of this package.

A program moves over by importing :class:`AlternatingLeastSquares` and :func:`calculate_loss` from here, or without a
changed line through :mod:`wals_gpu.accel`. The objective is the preset "implicit" of :mod:`wals_gpu.objective`.

Shapes: U users, I items, D factors, B rows of a batch, N results.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from scipy.sparse import csr_matrix

from wals_gpu.backends.devices import cuda_status, make_backend
from wals_gpu.backends.session import Backend
from wals_gpu.checks import integer
from wals_gpu.compat.answers import Answers
from wals_gpu.compat.loss import absolute_sum, calculate_loss, mean_loss
from wals_gpu.compat.rows import csr, half_step, implicits_words, options_of
from wals_gpu.data.files import load_npz
from wals_gpu.data.progress import progress_bar
from wals_gpu.errors import ModelFormatError

__all__ = ["AlternatingLeastSquares", "CpuAlternatingLeastSquares", "calculate_loss"]

log = logging.getLogger(__name__)

#: What a saved file holds, in implicit's names.
SAVED = (
    "user_factors",
    "item_factors",
    "regularization",
    "factors",
    "num_threads",
    "iterations",
    "use_native",
    "use_cg",
    "cg_steps",
    "calculate_training_loss",
    "dtype",
    "random_state",
    "alpha",
    "strict_compat",
)


class CpuAlternatingLeastSquares(Answers):
    """Alternating least squares with the arguments of ``implicit.cpu.als.AlternatingLeastSquares``, in that order.

    Minimises, over user factors X and item factors Y::

        sum over stored pairs of |c| (p - x.y)^2 + sum over all others of (x.y)^2 + regularization (|X|^2 + |Y|^2)

    with confidence ``c = alpha * value`` and preference ``p = 1`` for c > 0, else 0.

    Parameters
    ----------
    factors : int, default 100
        D.
    regularization : float, default 0.01
    alpha : float, default 1.0
    dtype : {float32, float64}, default float32
        Type of the factors.
    use_native : bool, default True
        Kept for implicit's sake: both values run the same native code.
    use_cg : bool, default True
        Whether rows are solved by `cg_steps` conjugate-gradient steps from their present factors, or exactly.
    iterations : int, default 15
    calculate_training_loss : bool, default False
        Whether every iteration ends with :func:`calculate_loss`.
    num_threads : int, default 0
        0: all processors that this process may use. Results do not depend on it.
    random_state : int, Generator, RandomState or None, default None
        Seed of the start values.
    strict_compat : bool, default False
        Also do as implicit does where that invites mistakes: slots without an item have id 0 and score 0 instead of
        -1 and the score of filtered items; ``similar_items(items=...)`` fills such slots with ``items[0]`` instead of
        returning fewer; negative ids count from the end instead of raising IndexError.

    Attributes
    ----------
    user_factors : (U, D) array or None
    item_factors : (I, D) array or None
        None before `fit`. They may be set.
    cg_steps : int
        3.
    fit_callback : callable or None
        Used by `fit` where it is called without `callback`.
    """

    _device = "cpu"  # or "cuda"

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: DTypeLike = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        *,
        strict_compat: bool = False,
    ) -> None:
        self.factors = factors
        self.regularization = regularization
        self.alpha = alpha
        self.dtype = np.dtype(dtype)
        self.use_native = use_native
        self.use_cg = use_cg
        self.iterations = iterations
        self.calculate_training_loss = calculate_training_loss
        self.num_threads = num_threads
        self.random_state = random_state
        self.strict_compat = strict_compat
        self.fit_callback: Callable[[int, float, float | None], Any] | None = None
        self.cg_steps = 3

        self.user_factors: NDArray[np.floating] | None = None
        self.item_factors: NDArray[np.floating] | None = None
        # Caches under implicit's names: programs reset them after they change the factors.
        self._user_norms: NDArray[np.floating] | None = None
        self._item_norms: NDArray[np.floating] | None = None
        self._XtX: NDArray[np.floating] | None = None
        self._YtY: NDArray[np.floating] | None = None

    # ------------------------------------------------------------------------------------------------ training

    def fit(
        self,
        user_items: csr_matrix,
        show_progress: bool = True,
        callback: Callable[[int, float, float | None], Any] | None = None,
    ) -> None:
        """Learn the factors; where there are factors already, go on from them.

        Parameters
        ----------
        user_items : (U, I) csr_matrix
            Values become confidences, see the class. A stored 0 has no weight, a negative value is a confident "no".
            Other sparse formats are converted, with a ParameterWarning.
        show_progress : bool, default True
        callback : callable, optional
            Called as ``callback(iteration, seconds, loss)`` after each iteration; the first is 0, and loss is None
            unless `calculate_training_loss`.

        Raises
        ------
        ModelFitError
            A value or a factor is NaN or infinite.
        SingularSystemError
            A kind of ValueError: a row has no unique solution, possible with ``regularization=0`` and ``use_cg=False``.
        TypeError, ValueError
            Unusable arguments, or factors of another shape than the matrix.
        """
        integer("factors", self.factors, 1)
        integer("iterations", self.iterations, 0)
        matrix = csr(user_items, "user_items")
        backend = self._backend
        user_terms = self._terms(matrix, "user")
        item_terms = self._terms(backend.transpose(matrix), "item")
        users, items = self.user_factors, self.item_factors = self._start(matrix.shape)
        options = options_of(self.cg_steps if self.use_cg else None)
        self._user_norms = self._item_norms = self._XtX = self._YtY = None
        self._user_spectrum = self._item_spectrum = None

        confidence = self.alpha * absolute_sum(matrix) if self.calculate_training_loss else 0.0
        loss = None
        progress = progress_bar(self.iterations, show_progress)
        with progress, backend.session(users, items) as session:
            for iteration in range(self.iterations):
                started = time.perf_counter()
                session.iterate(user_terms, item_terms, options, implicits_words)
                progress.update(1)
                if self.calculate_training_loss:
                    total = session.loss(user_terms, user_terms.ridge)
                    loss = mean_loss(total, user_terms, len(items), confidence)
                    progress.set_postfix({"loss": loss})
                    log.info("iteration %d: loss %.4f", iteration, loss)
                callback = callback or self.fit_callback
                if callback:
                    session.factors("user"), session.factors("item")  # the model's own arrays, brought up to date
                    callback(iteration, time.perf_counter() - started, loss)

    def _start(self, shape: tuple[int, int]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Start values as implicit draws them, where there are no factors yet."""
        rng = generator(self.random_state)
        start = {}
        dtype: Any = self.dtype
        for name, rows in zip(("user_factors", "item_factors"), shape, strict=True):
            factors = getattr(self, name)
            if factors is None:
                factors = rng.random((rows, self.factors), dtype=dtype) * dtype.type(0.01)
            elif np.shape(factors) != (rows, self.factors):
                raise ValueError(
                    f"user_items of shape {shape} needs {name} of shape {(rows, self.factors)}, but the model has "
                    f"{np.shape(factors)} from before; set {name} to None to start anew"
                )
            start[name] = np.ascontiguousarray(factors, self.dtype)
        return start["user_factors"], start["item_factors"]

    @property
    def _backend(self) -> Backend:
        return make_backend(self._device, self.num_threads)

    @property
    def solver(self) -> Callable[..., None]:
        """The half-step that `fit` repeats, to be called as ``solver(Cui, X, Y, regularization, num_threads)``.

        ``Cui`` (R, n) are confidences, `alpha` included; X (R, D) is changed in place, given Y (n, D).
        """
        return partial(half_step, cg_steps=self.cg_steps if self.use_cg else None)

    # ------------------------------------------------------------------------------------------------ files, devices

    def save(self, fileobj_or_path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the model as an npz file that implicit can load.

        A random generator is not written, the loaded model has ``random_state=None`` then.

        Parameters
        ----------
        fileobj_or_path : str, path or binary file
            ``.npz`` is added to a path without it.
        """
        state = {name: getattr(self, name) for name in SAVED}
        state["dtype"] = self.dtype.name
        if not isinstance(self.random_state, (int, np.integer)):
            state["random_state"] = None
        state["strict_compat"] = self.strict_compat or None  # implicit has no such attribute
        np.savez(fileobj_or_path, **{name: value for name, value in state.items() if value is not None})

    @classmethod
    def load(cls, fileobj_or_path: str | os.PathLike[str] | IO[bytes]) -> CpuAlternatingLeastSquares:
        """Read a model that this class or implicit saved.

        Parameters
        ----------
        fileobj_or_path : str, path or binary file
            ``.npz`` is added to a path without it.

        Returns
        -------
        CpuAlternatingLeastSquares

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ModelFormatError
            A kind of ValueError: the file holds no model, is damaged, or has Python objects, which are never unpickled.
        """
        if isinstance(fileobj_or_path, (str, os.PathLike)):
            fileobj_or_path = os.fspath(fileobj_or_path)
            if not fileobj_or_path.endswith(".npz"):
                fileobj_or_path += ".npz"
        model = cls()
        state = load_npz(fileobj_or_path, SAVED)
        if "factors" not in state:
            raise ModelFormatError(f"{fileobj_or_path} holds no model: it has {', '.join(state) or 'nothing of one'}")
        for name, value in state.items():
            is_factors = name in ("user_factors", "item_factors")
            if value.ndim != (2 if is_factors else 0) or (is_factors and value.dtype.kind != "f"):
                raise ModelFormatError(
                    f"{fileobj_or_path} is damaged: {name} must be "
                    f"{'a matrix of floats' if is_factors else 'one value'}, got {value.dtype} {value.shape}"
                )
            setattr(model, name, value if is_factors else value.item())
        try:
            model.dtype = np.dtype(model.dtype)
        except (TypeError, ValueError, SyntaxError) as error:
            raise ModelFormatError(f"{fileobj_or_path} is damaged: dtype {model.dtype!r} is none") from error
        return model

    def to_cpu(self) -> CpuAlternatingLeastSquares:
        """A copy of the model that computes on the CPU.

        Returns
        -------
        CpuAlternatingLeastSquares
        """
        model = copy.deepcopy(self)
        model.__dict__.pop("_device", None)
        return model

    def to_gpu(self) -> CpuAlternatingLeastSquares:
        """A copy of the model that computes on the CUDA device, in float32; its factors stay NumPy arrays.

        Returns
        -------
        CpuAlternatingLeastSquares

        Raises
        ------
        ValueError
            There is no CUDA device to use (the text says why), or the model is not float32.
        """
        model = copy.deepcopy(self)
        model._use_gpu()
        return model

    def _use_gpu(self) -> None:
        available, why = cuda_status()
        if not available:
            raise ValueError(f"{_NO_GPU} ({why})")
        if self.dtype != np.float32:
            raise ValueError(f"dtype must be float32 on a GPU, got {self.dtype}")
        self._device = "cuda"


class AlternatingLeastSquares(CpuAlternatingLeastSquares):
    """Alternating least squares with the arguments of ``implicit.als.AlternatingLeastSquares``, in that order.

    Parameters
    ----------
    factors, regularization, alpha, dtype, use_native, use_cg
        See :class:`CpuAlternatingLeastSquares`, as for all attributes and methods.
    use_gpu : bool, default False
        Compute on the CUDA device, as :meth:`to_gpu` does.
    iterations, calculate_training_loss, num_threads, random_state, strict_compat
        See :class:`CpuAlternatingLeastSquares`.

    Raises
    ------
    ValueError
        ``use_gpu=True`` where there is no CUDA device to use.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> user_items = csr_matrix([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]])
    >>> model = AlternatingLeastSquares(factors=2, alpha=10, random_state=0)
    >>> model.fit(user_items, show_progress=False)
    >>> ids, scores = model.recommend(0, user_items[0], N=1)
    >>> int(ids[0])
    2
    """

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: DTypeLike = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        use_gpu: bool = False,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: int | np.random.Generator | np.random.RandomState | None = None,
        *,
        strict_compat: bool = False,
    ) -> None:
        super().__init__(
            factors,
            regularization,
            alpha,
            dtype,
            use_native,
            use_cg,
            iterations,
            calculate_training_loss,
            num_threads,
            random_state,
            strict_compat=strict_compat,
        )
        if use_gpu:
            self._use_gpu()


# Pickles, and what programs write down of a class, name it by its documented place.
for _class in (CpuAlternatingLeastSquares, AlternatingLeastSquares):
    _class.__module__ = "wals_gpu.als"

_NO_GPU = "No CUDA extension has been built, can't train on GPU."


def generator(random_state: int | np.random.Generator | np.random.RandomState | None) -> np.random.Generator:
    """The generator of a `random_state`, which may be of NumPy's older kind."""
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31)
    return np.random.default_rng(random_state)
