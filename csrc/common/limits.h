// Every number that decides what is computed, or that two places have to agree on, once and with its reason.
//
// Here belongs: which form and precision a row is solved in, when a row counts as singular, how sums are cut (it moves
// last bits), what a kernel takes at most, and whatever Python or a second source file reads. A number that only tunes
// the speed of one source file, and shows in no result, stays there beside its reason.
//
// C++ has each as wals::limits::name. Python has the same list as `_cpu.LIMITS` and `_cuda.LIMITS`, made from the lines
// below by bindings/limits.h: whoever defines WALS_LIMIT(type, name, value...) before including this file gets the list
// itself, everybody else the constants.
#ifndef WALS_LIMIT

#ifndef WALS_COMMON_LIMITS_H
#define WALS_COMMON_LIMITS_H

#include <cstdint>

namespace wals::limits {

struct Sizes {
    int each[4];
};

#define WALS_LIMIT(type, name, ...) constexpr type name = __VA_ARGS__;
#include "limits.h"
#undef WALS_LIMIT

}  // namespace wals::limits

#endif

#else

// ---- sizes ----

/// Factors at most. No kernel of the CPU needs a bound; above this, a thread's system alone takes more than 256 MiB,
/// and the eigenvectors of a half-sweep minutes.
WALS_LIMIT(int64_t, most_factors, 8192)

/// The same on a device: the widest shape of conjugate gradients holds a table row of so many columns in the registers
/// of a warp (cuda/row_shapes.h).
WALS_LIMIT(int64_t, most_device_factors, 1024)

/// Columns of a tensor-core tile; as float32 they are one cache line. Rows of tables on a device, blocks of subspace
/// steps, and arrays that are rotated in place are whole tiles.
WALS_LIMIT(int64_t, tile, 16)

/// Results of a query at most on a device: its lists are cut and sorted in shared memory (cuda/topk.cuh).
WALS_LIMIT(int64_t, most_results, 1024)

/// What the exact kernels of a device are built for: columns in the primal form, entries in the dual one; the last is
/// also the widest block of subspace steps. The tiles of the next size's matrix do not fit into shared memory; those of
/// the last fit on some devices, and are in a workspace on others.
WALS_LIMIT(Sizes, kernel_sizes, {{32, 64, 128, 256}})

/// Entries (primal form) or columns (dual form, top-k) of a device's panel: two steps of the tensor cores, so that
/// there is work between two barriers, and two panels under way still fit beside the matrix. Half as much where a
/// device has too little shared memory.
WALS_LIMIT(int, panel_depth, 32)

/// Blocks that sums and top-k are cut into, as far as their size allows: two for each of an H100's 132 processors.
WALS_LIMIT(int64_t, blocks_of_device, 264)

// ---- how a row's sums are cut ----
// These depend on the row alone: results depend neither on the number of threads nor on the other rows.

/// Entries of a slice of a giant row: adding a slice up costs a 4096th of summing it, and a row of two slices already
/// has work for two threads or blocks.
WALS_LIMIT(int64_t, slice_entries, 4096)

/// A row is cut into slices if it has at least so many entries (CPU), or more (device): two slices.
WALS_LIMIT(int64_t, giant_entries, 2 * slice_entries)

/// And, on the CPU, more multiply-adds n D^2 in its Gram matrix: some hundredths of a second for one thread, which is
/// how long the others may be left without work at the end.
WALS_LIMIT(double, giant_work, 5e8)

/// But into no more slices than have so many bytes together, or two: a slice's sums are a matrix.
WALS_LIMIT(int64_t, giant_bytes, 1 << 29)

/// Rows whose losses are added up first, before blocks of rows are, on the CPU: the loss of factors that lie on several
/// machines is the same however they are divided, at multiples of this.
WALS_LIMIT(int64_t, loss_rows, 1024)

/// Entries of a panel of the primal form on the CPU: what fits into panel_bytes, a quarter of L2 on current servers,
/// but no more than panel_factors times D, enough that loading and storing the system's tiles for each panel does not
/// show, and no fewer than panel_least.
WALS_LIMIT(int64_t, panel_bytes, 512 << 10)
WALS_LIMIT(int64_t, panel_factors, 4)
WALS_LIMIT(int64_t, panel_least, 64)

/// A row whose table rows take more than this is long, and handed out before others: they do not stay in L2.
WALS_LIMIT(int64_t, long_row_bytes, 1 << 20)

/// The same of the nearest cache (L1): table rows of a longer row are asked for ahead of time.
WALS_LIMIT(int64_t, near_row_bytes, 32 << 10)

// ---- the form of a row's system ----

/// On the CPU, systems of more factors are summed and factored in blocks (cpu/blocked-inl.h), and Gram matrices summed
/// block by block. Above, panel and factor of the loop for smaller ones take more than 5 MiB, which a thread of most
/// servers does not have in its caches.
WALS_LIMIT(int64_t, blocked_factors, 768)

/// On the CPU, subspace steps with a background and no prior means are taken in the factors' own coordinates where
/// there are more factors (cpu/subspace-inl.h): the eigenvectors of a Gram matrix of D columns take some 10 D^3 flops,
/// and would take longer than the steps.
WALS_LIMIT(int64_t, rotated_subspace_factors, 1024)

/// The dual form (n unknowns) is for rows of at most dual_numerator / dual_denominator D entries, all Gram coefficients
/// of one sign. Not for up to D: transposing the dual's panel costs about a fifth of its Gram (bench_rows.py).
WALS_LIMIT(int64_t, dual_numerator, 7)
WALS_LIMIT(int64_t, dual_denominator, 8)

/// And for a base B = g diag(spectrum) + lambda I whose least element is above this part of its largest. The dual form
/// divides by sqrt(B); where that spans more than five digits, the strong directions' rounding covers the weak ones.
/// Such rows are solved in the primal form (CPU) or in float64 (device).
WALS_LIMIT(double, dual_base_span, 1e-10)

// ---- precision ----

/// A pivot of the Cholesky factorisation is bad below this part of its diagonal element. In float32, of some seven
/// digits, fewer than three would be left: the row is solved again in float64. In float64 next to none would be left:
/// the row is singular.
WALS_LIMIT(double, pivot_tolerance_float32, 1e-4)
WALS_LIMIT(double, pivot_tolerance_float64, 1e-14)

/// Only where the least element of B is below this part of the largest can a coordinate be undetermined (neither
/// background and ridge nor entries act on it but by rounding); other rows are not searched for one. A hundred times
/// float64's rounding: below about this, eigenvalues are rounding and were set to 0.
WALS_LIMIT(double, undetermined_base, 1e-14)

/// A coordinate is undetermined where its diagonal element is below this part of the largest. Of a direction without
/// data the rotation (in float64) leaves some 1e-16, whose square is 1e-32; ten digits are for what sums of such
/// squares may come to.
WALS_LIMIT(double, undetermined_diagonal, 1e-22)

// ---- conjugate gradients ----

/// The preconditioned residual (of its first norm), and a direction's curvature (of what the diagonal says, times
/// cg_least_curvature), are rounding below these. Following them in a singular system (no ridge, fewer entries than
/// factors) would walk off along its null space.
WALS_LIMIT(double, cg_rounding_float32, 1e-6)
WALS_LIMIT(double, cg_rounding_float64, 1e-15)
WALS_LIMIT(int, cg_least_curvature, 10)

/// Below these, squares have few digits or are zero.
WALS_LIMIT(double, cg_vanishing_float32, 1e-36)
WALS_LIMIT(double, cg_vanishing_float64, 1e-300)

/// A coordinate keeps its value where the data say less of it than their rounding (so many units of the largest
/// diagonal element) and there is no ridge, or one so small (its diagonal at most cg_ridge_share ridges, and the ridge
/// times cg_small_ridge not above that rounding) that rounding over ridge is a long way.
WALS_LIMIT(int, cg_rounding_units, 4)
WALS_LIMIT(int, cg_small_ridge, 1000)
WALS_LIMIT(int, cg_ridge_share, 2)

/// On the CPU, float32 rows are copied in half the bytes (cpu/row_copy-inl.h) for at most so many steps: more are for
/// more digits than the copy has. Only where the table rows take more than copy_from_bytes, half of L2; the copy takes
/// copy_bytes of each thread's memory at most, and what is beyond is read from the table.
WALS_LIMIT(int, copy_steps, 4)
WALS_LIMIT(int64_t, copy_from_bytes, 512 << 10)
WALS_LIMIT(int64_t, copy_bytes, 4 << 20)

#endif
