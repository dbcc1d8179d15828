"""Native CPU kernels of wals_gpu; use wals_gpu.backends.cpu."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

class Limits(NamedTuple):
    """The numbers of csrc/common/limits.h, which has their reasons."""

    most_factors: int
    most_device_factors: int
    tile: int
    most_results: int
    kernel_sizes: tuple[int, ...]
    panel_depth: int
    blocks_of_device: int
    slice_entries: int
    giant_entries: int
    giant_work: float
    giant_bytes: int
    loss_rows: int
    panel_bytes: int
    panel_factors: int
    panel_least: int
    long_row_bytes: int
    near_row_bytes: int
    blocked_factors: int
    rotated_subspace_factors: int
    dual_numerator: int
    dual_denominator: int
    dual_base_span: float
    pivot_tolerance_float32: float
    pivot_tolerance_float64: float
    undetermined_base: float
    undetermined_diagonal: float
    cg_rounding_float32: float
    cg_rounding_float64: float
    cg_least_curvature: int
    cg_vanishing_float32: float
    cg_vanishing_float64: float
    cg_rounding_units: int
    cg_small_ridge: int
    cg_ridge_share: int
    copy_steps: int
    copy_from_bytes: int
    copy_bytes: int

LIMITS: Limits

def available_isas() -> list[str]:
    """Instruction sets that this processor runs, best first."""

def entry_loss(terms: object, factors: NDArray[Any], other: NDArray[Any], n_threads: int) -> float:
    """Sum over entries of gram s^2 - 2 rhs s, s = x . y, in float64."""

def fit_neighbors(
    row_ptr: NDArray[np.int64],
    columns: NDArray[np.int32],
    row_ptr_t: NDArray[np.int64],
    columns_t: NDArray[np.int32],
    user_weights: NDArray[Any],
    n_neighbors: int,
    ridge: float,
    memory: int,
    n_threads: int,
    first: int = 0,
    last: int | None = None,
) -> tuple[Any, ...]:
    """ids (n, m) and weights (n, m) of the regressions of items [first, last), by default all, on their nearest
    items, of users' sorted items and items' sorted users; works in so many bytes."""

def gram(factors: NDArray[Any], weight: NDArray[Any], n_threads: int) -> NDArray[Any]:
    """Sum of weight[i] y_i y_i' in float64, (D, D)."""

def gram_bounds(n: int, factors: int) -> list[int]:
    """Where the slabs end that gram() adds up in order, from 0 to n."""

def gram_slabs(factors: NDArray[Any], weight: NDArray[Any], bounds: NDArray[np.int64], n_threads: int) -> NDArray[Any]:
    """The same of rows from one bound to the next, (slabs, D, D): upper triangles."""

def isa() -> str:
    """Name of the instruction set in use."""

def neighbor_memory(n_items: int, n_neighbors: int, wide: bool, n_threads: int) -> tuple[Any, ...]:
    """Bytes that fit_neighbors works in: the least, and the most that can be of use."""

def prepare_items(items: NDArray[Any], norms: NDArray[Any] | None, n_threads: int) -> NDArray[np.uint8] | None:
    """Items (I, D), divided by norms (I,) or None, as the int8 filter of topk reads them; None where it has
    none."""

def ridge_losses(
    factors: NDArray[Any],
    prior: NDArray[Any] | None,
    ridge: NDArray[Any],
    n_threads: int,
) -> NDArray[Any]:
    """Sums of ridge |x - prior|^2 over blocks of LIMITS.loss_rows rows, in float64."""

def rotate(factors: NDArray[Any], rotation: NDArray[np.float64] | None, n_threads: int) -> NDArray[Any]:
    """factors (n, D) @ rotation (D, D), padded to whole cache lines; rotation None: a padded copy."""

def rotate_together(
    factors: NDArray[Any],
    other: NDArray[Any],
    basis: NDArray[np.float64],
    rotation: NDArray[np.float64],
    wide_other: bool,
    n_threads: int,
) -> None:
    """Rotates three arrays in place, other in float64 if wide_other; not interruptible."""

def score_entries(
    queries: NDArray[Any],
    items: NDArray[Any],
    listed_ptr: NDArray[np.int64],
    listed_idx: NDArray[np.int32],
    n_threads: int,
) -> NDArray[Any]:
    """scores (Z) of each query (B, D) with its listed items."""

def solve_rows(
    terms: object,
    table: NDArray[Any],
    spectrum: NDArray[np.float64],
    rotation: NDArray[np.float64] | None,
    prior: NDArray[Any] | None,
    factors: NDArray[Any],
    solver: str,
    cg_steps: int,
    cg_tolerance: float,
    block: int,
    relaxation: float,
    loss: NDArray[np.float64] | None,
    n_threads: int,
) -> NDArray[np.int32]:
    """Solves every row into factors (R, D), its part of the loss into loss (R,) if given; returns a status per row
    (0: solved)."""

def solve_rows_plain(
    terms: object,
    other: NDArray[Any],
    gram: NDArray[np.float64],
    factors: NDArray[Any],
    block: int,
    relaxation: float,
    loss: NDArray[np.float64] | None,
    n_threads: int,
) -> NDArray[np.int32]:
    """One pass of subspace steps over every row of factors (R, D) in their own coordinates; otherwise as
    solve_rows."""

def topk(
    queries: NDArray[Any],
    items: NDArray[Any],
    k: int,
    excluded_ptr: NDArray[np.int64] | None,
    excluded_idx: NDArray[np.int32] | None,
    n_threads: int,
    filter: bool = True,
    permitted: NDArray[np.bool] | None = None,
    norms: NDArray[Any] | None = None,
    history: tuple[Any, ...] | None = None,
    neighbors: tuple[Any, ...] | None = None,
    prepared: NDArray[np.uint8] | None = None,
) -> tuple[Any, ...]:
    """ids (B, k) and scores (B, k) of the best items, and how many pairs were scored in full: all without filter,
    else those that a bound does not rule out. permitted (I,): nobody gets the others; norms (I,): scores are
    divided by them; history (B, n) and neighbors (n, I), CSR arrays of either: their product is added to scores
    before; prepared: prepare_items of the same items and norms, for speed."""

def topk_listed(
    queries: NDArray[Any],
    items: NDArray[Any],
    k: int,
    listed_ptr: NDArray[np.int64],
    listed_idx: NDArray[np.int32],
    n_threads: int,
    norms: NDArray[Any] | None = None,
) -> tuple[Any, ...]:
    """ids (B, k) and scores (B, k) of the best listed items."""

def transpose(
    row_ptr: NDArray[np.int64],
    col_idx: NDArray[np.int32],
    value: NDArray[Any] | None,
    n_cols: int,
    n_threads: int,
) -> tuple[Any, ...]:
    """CSR arrays of the transposed matrix."""

def use_isa(name: str) -> None:
    """Switches the process to another available instruction set."""
