// The native calls of the CPU path: what bindings/cpu_module.cpp exposes. Each spreads kernels of one instruction set
// over threads; results do not depend on the number of threads. They throw std::bad_alloc and nothing else, from the
// calling thread, before work has begun. A false return means interrupted.
#pragma once

#include "kernels.h"
#include "parallel.h"

namespace wals::cpu {

template <class T>
const KernelTable<T>& kernels();  // of the instruction set in use (dispatch.cpp)

/// Where the slabs of n rows of D factors end, from 0 to n: a Gram matrix is the sum of theirs, in order.
std::vector<int64_t> gram_bounds(int64_t n, int64_t D);

/// sums (slabs, D, D) float64: upper triangles of the sums of weight[i] y_i y_i' over rows [bounds[s], bounds[s + 1]).
template <class T>
bool gram_slabs(const T* y, int64_t D, Broadcast<T> weight, const int64_t* bounds, int64_t slabs, double* sums,
                int n_threads, const Interrupted&);

/// out (D, D) float64 = sum of weight[i] y_i y_i', both triangles.
template <class T>
bool gram(const T* y, int64_t n, int64_t D, Broadcast<T> weight, double* out, int n_threads, const Interrupted&);

/// Memory that rotate works in, for arrays of either type.
struct RotationSpace {
    RotationSpace(int64_t D, int n_threads);
    Buffer packed;
    std::vector<Buffer> per_thread;
};

/// out (n, padded D) = y (n, D) q, q (D, D) float64 or null for a padded copy; accumulated in float64, or in T if not
/// `wide`. out may be y where that needs no padding.
/// Allocates nothing, so that of a series of rotations none fails between the others; space: (D, n_threads), unused
/// without q.
template <class T>
bool rotate(const T* y, int64_t n, int64_t D, const double* q, bool wide, T* out, int n_threads, const RotationSpace&,
            const Interrupted&);

/// Solves every row; `q` (D, D) float64 as in rotate, or null. problem.into and .back are set here. status is (R).
template <class T>
bool solve_rows(RotatedRows<T> problem, const Solver& solver, const double* q, RowStatus* status, int n_threads,
                const Interrupted&);

/// One pass of subspace steps over every row, from and to factors, in their own coordinates: `gram` (D, D) is that of
/// `other` (n_other, D), weighted. problem's table, gram and packed_gram are set here. status is (R).
template <class T>
bool solve_plain_rows(PlainRows<T> problem, const T* other, const double* gram, double relaxation, RowStatus* status,
                      int n_threads, const Interrupted&);

/// Blocks of limits::loss_rows rows.
constexpr int64_t loss_blocks(int64_t n) {
    return (n + limits::loss_rows - 1) / limits::loss_rows;
}

/// losses (loss_blocks(n)): sums of ridge |x - prior|^2 over the rows of each block; prior (n, D) may be null.
template <class T>
bool ridge_losses(const T* x, const T* prior, int64_t n, int64_t D, Broadcast<T> ridge, double* losses, int n_threads,
                  const Interrupted&);

/// Sum over all entries of gram s^2 - 2 rhs s.
template <class T>
bool entry_loss(const RowTerms<T>& terms, const T* x, const T* y, int64_t D, double* total, int n_threads,
                const Interrupted&);

/// For each of B queries (B, D) the k best of n items (n, D): ids and scores (B, k), padded with -1 and -inf.
/// excluded_ptr (B + 1) and excluded_idx (sorted within a row), or null. permitted (n): 0 for items that nobody gets;
/// or null. norms (n): items are divided by them first; or null. `filter`: pairs that a bound rules out need not be
/// scored; the result is the same. `scored` tells how many were. prepared: what `prepare` wrote of the same items and
/// norms, which saves time; or null; not used where another instruction set wrote it. histories: of the queries, what
/// they add to scores; or null. `outside` is set where an index of these is, and the result is worth nothing then.
template <class T>
bool topk(const T* queries, int64_t B, const T* items, int64_t n_items, int64_t D, int64_t k, bool filter,
          const int64_t* excluded_ptr, const int32_t* excluded_idx, const uint8_t* permitted, const T* norms,
          char* prepared, const Histories<T>* histories, int32_t* ids, T* scores, int64_t* scored, bool* outside,
          int n_threads, const Interrupted&);

/// Bytes, aligned by 64, that n items (n, D) take prepared for many searches; 0 where that saves nothing here.
template <class T>
int64_t prepared_bytes(int64_t n_items, int64_t D);

/// Prepares items (n, D), to be divided by norms (n) or null.
template <class T>
bool prepare(const T* items, const T* norms, int64_t n_items, int64_t D, char* prepared, int n_threads,
             const Interrupted&);

/// scores (Z): of each of B queries (B, D) with the items that its row of listed_ptr (B + 1), listed_idx (Z) names.
template <class T>
bool score_entries(const T* queries, int64_t B, const T* items, int64_t D, const int64_t* listed_ptr,
                   const int32_t* listed_idx, T* scores, int n_threads, const Interrupted&);

/// As topk, from the listed items of each query only: no item twice in a row. norms (n) as in topk.
template <class T>
bool topk_listed(const T* queries, int64_t B, const T* items, int64_t D, int64_t k, const int64_t* listed_ptr,
                 const int32_t* listed_idx, const T* norms, int32_t* ids, T* scores, int n_threads, const Interrupted&);

}  // namespace wals::cpu
