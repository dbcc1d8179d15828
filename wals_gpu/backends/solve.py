"""How rows are solved: which solver, with which steps; and the sizes of a solve, from which its memory follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from wals_gpu.checks import did_you_mean, integer, number

__all__ = ["EXACT", "SOLVERS", "FitWork", "SolveMemory", "SolveOptions", "SolveSizes"]

SOLVERS = ("cholesky", "cg", "subspace")

#: Blocks are whole tiles: ``limits().tile``, typed again since options can be made where the native module cannot be
#: imported. A test compares the two.
TILE = 16

#: "auto" is exact up to so many factors: there it is the faster way to a loss (docs/solvers.md has the measurements).
MOST_FACTORS_EXACT = 64

#: And "cg" up to so many. Above, the eigenvectors that it needs take most of its time, and steps of "subspace" do
#: without (docs/solvers.md); in blocks of at least so many coordinates, as smaller ones take more time to a loss.
MOST_FACTORS_CG = 2048
LEAST_BLOCK_MANY_FACTORS = 128


@dataclass(frozen=True)
class SolveOptions:
    """How rows are solved, the same on every device. Checked once, here; :meth:`Backend.check` says what a device adds.

    Parameters
    ----------
    solver : {"cholesky", "cg", "subspace"}, default "cholesky"
        Exact; conjugate gradients; one pass of exact steps over blocks of coordinates (iALS++).
    cg_steps : int, default 3
        Steps of "cg" at most.
    cg_tolerance : float, default 0
        "cg" ends early when the preconditioned residual has fallen to this part of its first norm.
    block_size : int, default 64
        Coordinates of a block of "subspace", a multiple of 16.
    relaxation : float, default 1
        Rows with entries go this many times the way from where they are to what the solver gives ("subspace": block by
        block), see :func:`wals_gpu.reference.relax`; above 0 and below 2.

    Raises
    ------
    TypeError, ValueError
        An option is of the wrong kind or out of range; the message names it.
    """

    solver: str = "cholesky"
    cg_steps: int = 3
    cg_tolerance: float = 0.0
    block_size: int = 64
    relaxation: float = 1.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")
        integer("cg_steps", self.cg_steps, 1)
        number("cg_tolerance", self.cg_tolerance)
        if integer("block_size", self.block_size, TILE) % TILE:
            raise ValueError(f"block_size must be a multiple of {TILE}, got {self.block_size}")
        number("relaxation", self.relaxation, positive=True, below=2)

    @classmethod
    def choose(cls, solver: str, factors: int, **options: float) -> SolveOptions:
        """The options of a model of `factors`, whose `solver` may also be "auto"."""
        if solver == "auto":
            solver = "cholesky" if factors <= MOST_FACTORS_EXACT else "cg"
            if factors > MOST_FACTORS_CG:
                steps = cls("subspace", **options)  # type: ignore[arg-type]  # checked there
                return replace(steps, block_size=max(steps.block_size, LEAST_BLOCK_MANY_FACTORS))
        elif solver not in SOLVERS:
            names = ("auto", *SOLVERS)
            like = did_you_mean(solver, names)
            raise ValueError(f"solver must be one of {', '.join(names)}; got {solver!r}{like}")
        return cls(solver, **options)  # type: ignore[arg-type]  # checked there

    def relaxed(self, relaxation: float) -> SolveOptions:
        """The same with another relaxation."""
        return replace(self, relaxation=relaxation)


#: Rows are solved exactly where no options say otherwise.
EXACT = SolveOptions()


@dataclass(frozen=True)
class SolveSizes:
    """What the memory of solving a side depends on.

    Parameters
    ----------
    n_rows, n_other : int
        Rows being solved, and of the other side.
    n_entries : int
        Z.
    factors : int
        D.
    itemsize : int, default 4
        Bytes of a number: 4 for float32, 8 for float64.
    solver : str, default "cholesky"
    has_prior : bool, default False
        Whether rows have prior means.
    is_relaxed : bool, default False
    is_moving : bool, default False
        Whether both sides may be left in another basis, which saves a rotated copy.
    """

    n_rows: int
    n_other: int
    n_entries: int
    factors: int
    itemsize: int = 4
    solver: str = "cholesky"
    has_prior: bool = False
    is_relaxed: bool = False
    is_moving: bool = False


@dataclass(frozen=True)
class FitWork:
    """What the choice of a device for a fit depends on.

    Parameters
    ----------
    sides : (SolveSizes, SolveSizes)
        Of users and items.
    options : SolveOptions
    iterations : int
    k : int, optional
        Results of the searches that validate the fit.
    before : str, optional
        The device of the checkpoint that the fit goes on from.
    """

    sides: tuple[SolveSizes, SolveSizes]
    options: SolveOptions
    iterations: int
    k: int | None = None
    before: str | None = None


class SolveMemory(NamedTuple):
    """Bytes that solving a side takes beside its factors and terms.

    Attributes
    ----------
    host : int
        On the host.
    fixed : int
        On the device, whatever the number of rows solved together.
    growing : int
        On the device, in proportion to the rows and entries solved together; 0 on the CPU, as `fixed`.
    """

    host: int
    fixed: int = 0
    growing: int = 0
