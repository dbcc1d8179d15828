"""What a fit on several ranks will take, before anybody starts one: memory of a rank, bytes, and seconds.

Counts are exact, up to rounding (:mod:`.session` says what travels); seconds follow from them by a rate of arithmetic,
measured on this machine or given, and a bandwidth. The network's latency, and the wait for the slowest rank, are not in
it: docs/distributed.md has what a fit took beside what this says.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import numpy as np
from scipy.sparse import csr_matrix

from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.backends.solve import SolveOptions, SolveSizes
from wals_gpu.checks import integer, number
from wals_gpu.distributed.cuts import row_cost
from wals_gpu.distributed.tables import MODES
from wals_gpu.objective.presets import make_objective
from wals_gpu.priors.rows import chunk_rows

__all__ = ["FitCost", "fit_cost", "measured_rate"]


@dataclass(frozen=True)
class FitCost:
    """What a rank takes, all ranks being alike.

    Attributes
    ----------
    ranks : int
        N; 1 is one machine.
    entries : int
        Bytes of its interactions, by users and by items.
    coefficients : int
        Of what the objective computes for each entry, at most.
    factors : int
        Of its own rows.
    table : int
        Of the other side's factors in a half-sweep.
    working : int
        Of what the solver needs beside.
    priors : int
        Of features, prior means and what the steps of priors need, at most; and of the embeddings of all rows, which
        each rank is given, and which need no memory where they are memory-mapped.
    sent : int
        Bytes that it sends in an iteration.
    arithmetic, network : float
        Seconds of an iteration.
    """

    ranks: int
    entries: int
    coefficients: int
    factors: int
    table: int
    working: int
    priors: int
    sent: int
    arithmetic: float
    network: float

    @property
    def memory(self) -> int:
        """All bytes of a rank."""
        return self.entries + self.coefficients + self.factors + self.table + self.working + self.priors

    @property
    def seconds(self) -> float:
        """Of an iteration: arithmetic and network follow each other."""
        return self.arithmetic + self.network

    def to_dict(self) -> dict[str, float]:
        """All numbers by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"memory": self.memory, "seconds": self.seconds}


def fit_cost(
    n_users: int,
    n_items: int,
    n_entries: int,
    factors: int,
    ranks: int = 1,
    *,
    solver: str = "auto",
    threads: int = 1,
    bandwidth: float = 10e9,
    rate: float = 50e9,
    mode: str = "all",
    met: tuple[float, float] = (1.0, 1.0),
    itemsize: int = 4,
    features: tuple[int, int] = (0, 0),
) -> FitCost:
    """Memory, traffic and seconds of a rank.

    Parameters
    ----------
    n_users, n_items, n_entries, factors : int
        U, I, Z and D.
    ranks : int, default 1
    solver : {"auto", "cholesky", "cg", "subspace"}
    threads : int, default 1
        Of a rank.
    bandwidth : float, default 10e9
        Bits a second that a rank sends, and receives at the same time.
    rate : float, default 50e9
        Multiply-adds a second of one thread, see :func:`measured_rate`.
    mode : {"all", "halo"}
        How factors travel.
    met : (float, float), default (1, 1)
        With "halo": shares of the items that a rank's users meet, and of the users that its items meet.
    itemsize : int, default 4
        Bytes of a number.
    features : (int, int), default (0, 0)
        Numbers in the embedding of a user and of an item, for priors; 0 without. They are taken to be fitted with
        ``votes="strength"``: with "equal", as ``WALS.hybrid`` does, less is sent.

    Returns
    -------
    FitCost

    Raises
    ------
    TypeError, ValueError
        A number is out of range; the message names it.
    """
    for name, value in (
        ("users", n_users),
        ("items", n_items),
        ("factors", factors),
        ("ranks", ranks),
        ("threads", threads),
        ("entries", n_entries),
    ):
        integer(name, value, 1)
    for name, width in zip(("user_features", "item_features"), features, strict=True):
        integer(name, width, 0)
    number("bandwidth", bandwidth, positive=True)
    number("rate", rate, positive=True)
    if mode not in ("all", "halo"):
        raise ValueError(f"mode must be 'all' or 'halo' (of {', '.join(MODES)}), got {mode!r}")
    options = SolveOptions.choose(solver, factors)
    padded = -(-factors * itemsize // 64) * 64
    sides = ((n_users, n_items, met[0]), (n_items, n_users, met[1]))
    others = 0.0 if ranks == 1 else (ranks - 1) / ranks
    arithmetic = sent = 0.0
    tables, slabs, priors = [], [], 0.0
    for (n_own, n_other, share), width in zip(sides, features, strict=True):
        lengths = np.array([n_entries / n_own])
        solves = float(row_cost(lengths, factors, options)[0]) * n_own
        dense = n_other * factors**2 * 1.5  # the Gram matrix, half of it, and the rotation
        arithmetic += (solves + dense) / ranks
        share = share if mode == "halo" else 1.0
        tables.append(n_other * share * padded)
        slabs.append((len(CpuBackend.gram_bounds(n_other, factors)) - 1) * factors**2 * 8)
        sent += others * (n_other * share * padded + slabs[-1])
        if not width:
            continue
        # Sums of chunks that belong together, which go to rank 0, and the weights, thrice on their way back.
        pieces = 2 * np.log2(max(n_own / ranks / chunk_rows(), 1)) + 1
        of_weights = (width + 1) * factors * 8
        own, of_entries = n_own / ranks, n_entries / ranks
        gram = 8 * (width + 1) ** 2
        priors += n_own * width * itemsize + own * (width + 4 * factors) * itemsize + of_entries * 3 * itemsize
        priors += (3 + pieces * (1 if ranks == 1 else 1 + ranks)) * max(gram, of_weights)
        if ranks > 1:
            sent += others * (n_other * share * factors * itemsize + slabs[-1])  # as they are, for the line search
            sent += (pieces + 3) * of_weights
        arithmetic += (n_own * width * factors * 4 + 2 * n_entries * factors + 1.5 * n_other * factors**2) / ranks
    sizes = SolveSizes(-(-n_users // ranks), n_items, -(-n_entries // ranks), factors, itemsize, options.solver)
    working = CpuBackend(threads).memory_of(sizes).host - padded * n_items
    return FitCost(
        ranks=ranks,
        entries=round(2 * n_entries / ranks * (4 + itemsize) + 8 * (n_users + n_items) / ranks),
        coefficients=round(2 * n_entries / ranks * 2 * itemsize),
        factors=round((n_users + n_items) * factors * itemsize / ranks),
        table=round(max(tables)),
        working=round(working + max(slabs)),
        priors=round(priors),
        sent=round(sent),
        arithmetic=arithmetic / (rate * threads),
        network=sent * 8 / bandwidth,
    )


def measured_rate(factors: int, solver: str = "auto", seconds: float = 1.0) -> float:
    """Multiply-adds a second of one thread of this machine, in rows of 100 entries, as :func:`fit_cost` counts them.

    Parameters
    ----------
    factors : int
    solver : {"auto", "cholesky", "cg", "subspace"}
    seconds : float, default 1
        How long to measure.

    Returns
    -------
    float
    """
    options, backend = SolveOptions.choose(solver, factors), CpuBackend(1)
    rng, n_rows, n_other = np.random.default_rng(0), 2000, 20_000
    columns = np.sort(rng.integers(0, n_other, (n_rows, 100)), axis=1).astype(np.int32)
    columns += np.arange(100, dtype=np.int32)  # no column twice in a row
    matrix = csr_matrix((np.ones(columns.size, np.float32), columns.ravel(), np.arange(0, columns.size + 1, 100)))
    terms = make_objective("hu").bind(matrix).user_terms(matrix)
    other = rng.standard_normal((matrix.shape[1], factors), np.float32)
    solved = np.zeros((n_rows, factors), np.float32)
    spectrum = backend.spectrum(terms, other)
    table = backend.rotated(other, spectrum)
    work = float(row_cost(np.full(n_rows, 100), factors, options).sum())
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        backend.solve_rotated(terms, table, spectrum, solved, options)
        best = min(best, time.perf_counter() - start)
    return work / best
