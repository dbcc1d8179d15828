"""Puts this package's alternating least squares in the place of implicit's: programs written for it run unchanged.

::

    python -m wals_gpu.accel script.py [arguments]
    python -m wals_gpu.accel -m module [arguments]

or, in a program, before it takes names out of implicit: ``wals_gpu.accel.install()``.
"""

from __future__ import annotations

import functools
import inspect
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from wals_gpu import errors
from wals_gpu.compat import als

__all__ = ["install", "main", "uninstall"]

#: Packages whose modules may have taken the replaced names from implicit already.
PACKAGES = ("implicit", "rectools")

USAGE = "usage: python -m wals_gpu.accel {SCRIPT | -m MODULE} [ARGUMENTS]"

_pairs: list[tuple[Any, Any]] = []  # (implicit's, ours) while installed


def install() -> None:
    """Put our class, loss, warning and error in the place of implicit's, until :func:`uninstall`.

    ``implicit.cpu.als.AlternatingLeastSquares`` and what ``implicit.als.AlternatingLeastSquares`` makes (with
    ``use_gpu=False``, which is the default where implicit has no CUDA) is then
    :class:`wals_gpu.als.CpuAlternatingLeastSquares`; also replaced are ``implicit.cpu.als.calculate_loss``,
    ``implicit.utils.ParameterWarning`` and ``implicit.recommender_base.ModelFitError``, and
    ``implicit.evaluation.leave_k_out_split`` honours its seed. Modules of implicit and RecTools may have been imported
    before; names that other modules took from implicit before stay implicit's. Calling it again does nothing.

    Raises
    ------
    ImportError
        There is no implicit, or one older than 0.7.
    """
    if _pairs:
        return
    try:
        import implicit
        import implicit.als
        import implicit.cpu.als
        import implicit.evaluation
        import implicit.recommender_base
        import implicit.utils
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"wals_gpu.accel takes the place of implicit's ALS: {error}", name=error.name
        ) from error
    if tuple(int(part) for part in implicit.__version__.split(".")[:2]) < (0, 7):
        raise ImportError(
            f"wals_gpu.accel takes the place of implicit 0.7, but this is implicit {implicit.__version__}"
        )
    theirs = implicit.cpu.als.AlternatingLeastSquares
    # For whoever holds implicit's class, ours counts as one, after uninstall() too.
    theirs.register(als.CpuAlternatingLeastSquares)
    _pairs[:] = [
        (theirs, als.CpuAlternatingLeastSquares),
        (implicit.als.AlternatingLeastSquares, _factory(implicit.als.AlternatingLeastSquares)),
        (implicit.cpu.als.calculate_loss, als.calculate_loss),
        (implicit.utils.ParameterWarning, errors.ParameterWarning),
        (implicit.recommender_base.ModelFitError, errors.ModelFitError),
        (implicit.evaluation.leave_k_out_split, _seeded(implicit.evaluation.leave_k_out_split)),
    ]
    _replace({id(their): our for their, our in _pairs})


def uninstall() -> None:
    """Give implicit its own back, in all modules of implicit and RecTools. Models made meanwhile stay as they are."""
    _replace({id(our): their for their, our in _pairs})
    _pairs.clear()


def _factory(original: Callable[..., Any]) -> Callable[..., Any]:
    """implicit.als.AlternatingLeastSquares, which is a function, with our class where it would take its CPU class."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments.pop("use_gpu"):
            return original(*args, **kwargs)
        return als.CpuAlternatingLeastSquares(**call.arguments)

    return make


def _seeded(original: Callable[..., Any]) -> Callable[..., Any]:
    """implicit.evaluation.leave_k_out_split, with the same result for the same `random_state`.

    The original draws from NumPy's global generator, whatever `random_state` is.
    """

    @functools.wraps(original)
    def leave_k_out_split(ratings: Any, K: int = 1, train_only_size: float = 0.0, random_state: Any = None) -> Any:
        if random_state is None:
            return original(ratings, K, train_only_size)
        rng = als.generator(random_state)
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(rng.integers(2**32))  # noqa: NPY002
        try:
            return original(ratings, K, train_only_size, rng)
        finally:
            np.random.set_state(before)  # noqa: NPY002

    return leave_k_out_split


def _replace(replacements: dict[int, Any]) -> None:
    """Rebind every module-level name of the packages that is bound to an object of one of these identities."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] in PACKAGES and isinstance(module, ModuleType):
            for name, value in list(vars(module).items()):
                if id(value) in replacements:
                    setattr(module, name, replacements[id(value)])


def main(arguments: Sequence[str]) -> None:
    """Run a script or module, as ``python`` would, with our ALS in place.

    Parameters
    ----------
    arguments : list of str
        What follows ``python -m wals_gpu.accel``.

    Raises
    ------
    SystemExit
        Nothing to run; and what the program raises itself.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    as_module = bool(arguments) and arguments[0] == "-m"
    arguments = list(arguments[as_module:])
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    program = arguments[0]
    if not as_module and not os.path.exists(program):
        print(f"wals_gpu.accel: can't open file {program!r}", file=sys.stderr)
        sys.exit(2)
    install()
    sys.argv = arguments
    if as_module:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(program))  # there stands the current folder, for -m
    runpy.run_path(program, run_name="__main__")
