// The calls that start kernels: pointers are device memory, work goes to `stream` (0 is the default one) of the current
// device, nothing is allocated and nothing waits. They throw std::runtime_error when a kernel
// cannot be started. No CUDA header here: bindings are compiled without.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "problem.h"

struct CUstream_st;  // CUDA's

namespace wals::cuda {

using Stream = CUstream_st*;

/// Devices of this process, and why there are none.
struct Devices {
    int count;
    std::string why;
};
Devices devices();

/// What a device has, by name, for whoever plans what runs on it: "capability" (86 is 8.6), "processors"; "threads",
/// "registers" and bytes of "shared" memory of a processor; "shared_reserved", what a block takes of these beyond its
/// own, "shared_of_block", its own at most; "cache_bytes" of L2, "memory_bytes". device -1: the current one. Throws
/// std::runtime_error where it cannot be asked. Takes about a millisecond.
std::map<std::string, int64_t> device_properties(int device, std::string& name);

/// Whether a block of the current device can have so many bytes of shared memory.
bool fits(size_t shared);

/// Makes a device current for as long as it lives; -1: whatever is current.
class DeviceGuard {
    int before_ = -1;

   public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
};

/// The handle of a stream of a device that nobody else gets, as long as the process runs.
int64_t own_stream(int device);

// Dense work (dense.cu).

/// out (D, D) float64 = sum of weight[i] y_i y_i', y (n, D); workspace gram_bytes(n, D).
int64_t gram_bytes(int64_t n, int64_t D);
void gram(const float* y, int64_t n, int64_t D, Broadcast<float> weight, double* out, void* workspace, Stream stream);

/// Eigenvalues (D), rising, those that are rounding being 0, and eigenvectors (D, D) in columns of a Gram matrix (D,
/// D), all float64 (spectrum.cu); NaN unless it is finite. start (D, D): an orthogonal basis in which it is nearly
/// diagonal, or null; it takes fewer sweeps then. start and vectors may be the same. workspace spectrum_bytes(D).
int64_t spectrum_bytes(int64_t D);
void spectrum(const double* gram, int64_t D, const double* start, double* values, double* vectors, void* workspace,
              Stream stream);

/// out (n, out_stride) = y (n, in_stride) Q, Q (D, D) float64 or null for a copy, summed in float64; columns from D on
/// become zero. Rows with a status (n), where there is one, stay as they are.
void rotate(const float* y, int64_t n, int64_t D, int64_t in_stride, const double* q, const int32_t* status, float* out,
            int64_t out_stride, Stream stream);

/// The same to float32 accuracy on tensor cores, with `tiles` (split_basis_bytes(D), 16-byte aligned), which
/// split_basis makes of an orthogonal Q, or of Q' if `transposed`. out_stride is D or padded(D).
int64_t split_basis_bytes(int64_t D);
void split_basis(const double* q, int64_t D, bool transposed, void* tiles, Stream stream);
void rotate_split(const float* y, int64_t n, int64_t D, int64_t in_stride, const void* tiles, const int32_t* status,
                  float* out, int64_t out_stride, Stream stream);

/// n words of 32 bits become 0.
void clear(void* words, int64_t n, Stream stream);

/// out (padded D), zero before: largest |value| of each column of table (n, padded D).
void column_max(const float* table, int64_t n, int64_t D, float* out, Stream stream);

/// p.z = from + p.relaxation (p.z - from), from (R, P), in the rows that have 1 to `most` entries; with a list those of
/// its *count rows that have more.
void relax(const RotatedRows& p, int64_t most, const int32_t* list, const int32_t* count, const float* from,
           Stream stream);

/// loss (R) float64: each row's entries' part at x = p.z, y = p.table (stride p.P), dot products in float64 if `wide`;
/// with p.spectrum the whole row's part but for its constant.
void row_loss(const RotatedRows& p, bool wide, double* loss, Stream stream);

/// loss (n) float64 = ridge |x - prior|^2, x and prior (n, D); prior may be null.
void ridge_loss(const float* x, const float* prior, int64_t n, int64_t D, Broadcast<float> ridge, double* loss,
                Stream stream);

/// out (1) grows by the sum of values (n), times weights (n) or null, always in the same order.
void sum(const double* values, const double* weights, int64_t n, double* out, Stream stream);

// Linear priors (features.cu): F (n, E) features, W (E + 1, D) a map to factors with its constant as the last row.

/// out (n, D) = scale[i] (F W + b), or grows by it, in rows whose status (n) or null is 0.
void map_features(const float* features, int64_t n, int64_t E, const float* weights, int64_t D, Broadcast<float> scale,
                  const int32_t* status, bool add, float* out, Stream stream);

/// out (E + 1, D) float64 = sum over rows of weight (f, 1) (x - m)', x and m (n, D); m may be null. workspace
/// cross_bytes(n, E, D).
int64_t cross_bytes(int64_t n, int64_t E, int64_t D);
void cross(const float* features, int64_t n, int64_t E, Broadcast<float> weight, const float* x, const float* m,
           int64_t D, double* out, void* workspace, Stream stream);

/// Each row's entries' part of slope and curvature (R) float64 of the data part of the loss at x = p.z along v (R, P).
void line(const RotatedRows& p, const float* v, double* slope, double* curvature, Stream stream);

/// n values times a factor.
void scale(float* values, int64_t n, float factor, Stream stream);

// Row solves (solve_exact.cu). rows (n_rows) int32: row numbers, all of one form and size.

/// form: "diagonal", "primal" or "dual". `size`: one of limits::kernel_sizes, which holds the rows' columns (primal) or
/// entries (dual).
void solve_exact(const RotatedRows& p, const std::string& form, int size, const int32_t* rows, int64_t n_rows,
                 Stream stream);

/// Shared memory that a block of that size takes at most.
int64_t exact_bytes(int size);

/// Rows of any length and any D: their sums in `workspace`, slot by slot. slices (n_slices), rows (n_rows): as
/// problem.h has them.
int64_t slot_bytes(int64_t D);
void solve_sliced(const RotatedRows& p, const GramSlice* slices, int64_t n_slices, const SlicedRow* rows,
                  int64_t n_rows, void* workspace, Stream stream);

/// Rows of more factors than a block's shared memory holds; workspace: slot_bytes(D) for each of n_slots blocks, which
/// take the rows in order.
void solve_large(const RotatedRows& p, const int32_t* rows, int64_t n_rows, int64_t n_slots, void* workspace,
                 Stream stream);

/// After the kernels of all rows (R > 0): the rows that they could not solve are listed, list (R), *count 0 before;
/// with `search` those that have an undetermined coordinate, too (see solve_exact.cuh). Where *before (or null) is not
/// 0, an earlier half-sweep failed: all rows get a status, and none is listed.
void review(const RotatedRows& p, bool search, const int32_t* before, int32_t* list, int32_t* count, Stream stream);

/// Rows of such a list in float64, `slots` at a time; workspace wide_bytes(D) for each. *failed grows by the number of
/// rows that keep a status.
int64_t wide_bytes(int64_t D);
void solve_wide(const RotatedRows& p, const int32_t* list, const int32_t* count, int64_t slots, void* workspace,
                int32_t* failed, Stream stream);

// Approximate solves (solve_iterative.cu), from and to p.z.

/// Table rows of a row that conjugate gradients can keep in so much shared memory of a block.
int64_t cg_staged_rows(int64_t D, int64_t smem_bytes);
void solve_cg(const RotatedRows& p, const int32_t* rows, int64_t n_rows, int64_t staged, int steps, double tolerance,
              Stream stream);

/// errors (Z): workspace, an element for each entry of p.terms. block: whole tiles, at most the last of
/// limits::kernel_sizes.
void solve_subspace(const RotatedRows& p, int64_t block, const int32_t* rows, int64_t n_rows, float* errors,
                    Stream stream);

// The same for giant rows, in slices (solve_giant.cu); workspace: so many bytes for each slot, slot_bytes(block) for
// subspace steps, which want p.status to be 0 before.
int64_t cg_slot_bytes(int64_t D);
void solve_cg_sliced(const RotatedRows& p, const GramSlice* slices, int64_t n_slices, const SlicedRow* rows,
                     int64_t n_rows, int steps, double tolerance, void* workspace, Stream stream);
void solve_subspace_sliced(const RotatedRows& p, int64_t block, const GramSlice* slices, int64_t n_slices,
                           const SlicedRow* rows, int64_t n_rows, float* errors, void* workspace, Stream stream);

// Retrieval (topk.cu).

/// Items first to first + n of a table of n_items, x (n, D), divided by norms (n) where they are given. The table:
/// topk_table_bytes, 16-byte aligned.
int64_t topk_table_bytes(int64_t n_items, int64_t D);
void topk_table(const float* x, int64_t n, int64_t D, const float* norms, void* table, int64_t first, int64_t n_items,
                Stream stream);

/// queries (B, D); permitted: a bit for each item up to a multiple of 128, 16-byte aligned, or null; ids and scores
/// (B, k), padded with -1 and -inf. min(k, n_items) <= limits::most_results. blocks: that the device runs at once.
/// workspace: topk_bytes, 16-byte aligned.
int64_t topk_bytes(int64_t B, int64_t n_items, int64_t D, int64_t k, int64_t blocks);
void topk(const float* queries, int64_t B, void* table, int64_t n_items, int64_t D, int64_t k, int64_t blocks,
          const int64_t* excluded_ptr, const int32_t* excluded_idx, const uint32_t* permitted, int32_t* ids,
          float* scores, void* workspace, Stream stream);

/// Parts of the items that go to different blocks: what keeps a device busy to the end that runs so many at once.
int64_t topk_segments(int64_t B, int64_t n_items, int64_t k, int64_t blocks);

/// Of the difference between a score and its one product, in norms of query and item.
float topk_bound(int64_t D);

}  // namespace wals::cuda
