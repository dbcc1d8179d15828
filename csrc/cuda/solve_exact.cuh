// Exact solve of rows, in the basis where the shared part of every row system is diagonal (as
// csrc/cpu/solve_exact-inl.h; reference.solve_rows defines the result). With B = g diag(spectrum) + lambda I, R the
// table rows of the entries, a their Gram and rho their right-hand coefficients, q = lambda prior:
//
//   diagonal  all a = 0: z = B^-1 (q + R' rho)
//   primal    (B + R' diag(a) R) z = R' rho + q
//   dual      all a of one sign s: S = diag(sqrt|a|) R B^-1/2, (I + s S S') w = rho / sqrt|a| - s S B^-1/2 q,
//             z = B^-1 q + B^-1/2 S' w; the rho of any entry may as well be part of q, which becomes q + rho r
//
// The host chooses the form of each row and hands every kernel the rows of one form and size. A row whose system in
// float32 has a pivot below limits::pivot_tolerance_float32 is marked, and solved anew in float64 by solve_wide_kernel.
#pragma once

#include "rows.cuh"

namespace wals::cuda {

constexpr int kDiagonalWarps = 4;

struct DiagonalMemory {
    float *sums, *scratch, *out;
    __host__ __device__ DiagonalMemory(Carver& carve, int P) {
        sums = carve.take<float>(4 * 32 * kDiagonalWarps);
        scratch = carve.take<float>(kDiagonalWarps);
        out = carve.take<float>(P);
    }
};

/// Rows of which all Gram coefficients are 0, or that have no entries: z = B^-1 (q + R' rho), one block a row.
/// A row without entries has its prior (or 0) where B is 0. Cost: the gather, n D floats. Not yet run on a device.
__global__ void __launch_bounds__(32 * kDiagonalWarps) solve_diagonal_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DiagonalMemory m(carve, p.P);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row], n = p.terms.row_ptr[row + 1] - begin;
    weighted_sum<32 * kDiagonalWarps>(
        p, begin, n, [&](int64_t i) { return p.terms.rhs[begin + i]; }, m.sums,
        [&](int j, float sum) { m.out[j] = sum; });
    float singular = 0;  // first column, from 1, that nothing determines
    for (int j = p.D - 1 - int(threadIdx.x); j >= 0; j -= 32 * kDiagonalWarps)
        if (n > 0 && !(base_at(p, row, j) > 0)) singular = float(j + 1);
    singular = block_reduce<kDiagonalWarps>(singular, Max(), m.scratch);
    finish_row<kDiagonalWarps>(p, row, int(singular), m.scratch, [&](int j) {
        const float b = base_at(p, row, j);
        if (b > 0) return (prior_pull(p, row, j) + m.out[j]) / b;
        return p.prior ? p.prior[row * p.P + j] : 0.0f;
    });
}

/// Rows in the primal form, padded(D) <= S::kMost, one block a row; any signs.
/// Cost: n D (D + 16) + D^3 / 3 flops, three times that on tensor cores, and a gather of n D floats.
/// Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) solve_primal_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const PrimalMemory<S> m(carve);
    const auto row = [&] { return int64_t{rows[blockIdx.x]}; };  // read where needed: registers are scarce
    for (int j = int(threadIdx.x); j < p.P; j += S::kThreads) m.diagonal[j] = base_at(p, row(), j);
    const int status = solve_primal<S>(p, row(), 0, p.P, nullptr, m, [&](int j) { return prior_pull(p, row(), j); });
    finish_row<S::kWarps>(p, row(), status, m.scratch, [&](int j) { return m.out[j]; });
}

/// Shared memory of a row of at most S::kMost entries in the dual form. 62 KiB for 128 entries and D = 128.
template <class S>
struct DualMemory : MatrixMemory<S, true> {
    float *base_scale, *entry_weight;
    int32_t* table_row;
    __host__ __device__ DualMemory(Carver& carve, int P) : MatrixMemory<S, true>(carve) {
        entry_weight = carve.take<float>(S::kMost);
        table_row = carve.take<int32_t>(S::kMost);
        base_scale = carve.take<float>(P);  // what depends on P last: the other places are constants
    }
};

/// Rows in the dual form, n <= S::kMost, all Gram coefficients of one sign or zero, one block a row; any D.
/// A row whose B spans more than limits::dual_base_span is marked for float64. Cost: n (n + 16) D + n^3 / 3 flops,
/// three times that on tensor cores, and two gathers of n D floats, the second from L2. Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) solve_dual_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DualMemory<S> m(carve, p.P);
    const int t = int(threadIdx.x);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row];
    const int n = int(p.terms.row_ptr[row + 1] - begin);
    float* const shift = p.z + row * p.P;  // B^-1/2 q, kept where the solution will be
    if (!(base_at(p, row, 0) > float(limits::dual_base_span) * base_at(p, row, p.D - 1))) {
        if (t == 0) p.status[row] = 1;
        return;
    }
    float most = 0, bound_sum = 0;
    for (int j = t; j < p.P; j += S::kThreads) {
        m.base_scale[j] = j < p.D ? rsqrtf(base_at(p, row, j)) : 0.0f;
        shift[j] = prior_pull(p, row, j);
        const float bound = m.base_scale[j] * p.column_max[j];
        most = fmaxf(most, bound);
        bound_sum += bound * bound;
    }
    most = block_reduce<S::kWarps>(most, Max(), m.scratch);
    bound_sum = block_reduce<S::kWarps>(bound_sum, Sum(), m.scratch);
    const float bound = p.gram_bound[row], sign = bound < 0 ? -1.0f : 1.0f;
    const float scale = scale_for(most * sqrtf(fabsf(bound))), unscale = 1.0f / scale;
    // An entry whose row of S is no longer than 1 goes into q: rho / sqrt|a| would grow beyond all bounds with a -> 0.
    const auto is_loose = [&](float a) { return fabsf(a) * bound_sum <= 1; };
    float loose = 0;
    for (int i = t; i < S::kMost; i += S::kThreads) {
        const float a = i < n ? p.terms.gram(begin + i) : 0.0f, rho = i < n ? p.terms.rhs[begin + i] : 0.0f;
        const float root = sqrtf(fabsf(a));
        m.entry_weight[i] = root * scale;
        m.table_row[i] = i < n ? p.terms.col_idx[begin + i] : 0;
        m.rhs[i] = is_loose(a) ? 0.0f : rho / root;
        m.diagonal[i] = 1;
        if (is_loose(a) && rho != 0) loose = 1;
    }
    loose = block_reduce<S::kWarps>(loose, Max(), m.scratch);
    if (loose != 0)
        weighted_sum<S::kThreads>(
            p, begin, n, [&](int64_t i) { return is_loose(p.terms.gram(begin + i)) ? p.terms.rhs[begin + i] : 0.0f; },
            m.tiles(), [&](int j, float sum) { shift[j] += sum; });
    const bool shifted = p.prior || loose != 0;
    for (int j = t; j < p.P; j += S::kThreads) shift[j] *= m.base_scale[j];
    __syncthreads();
    const int strips = (n + 15) / 16;
    TriangleTiles<S> tiles(m.firsts, strips);
    dual_gram<S>(p, n, m.table_row, m.entry_weight, m.base_scale, shifted ? shift : nullptr, m.out,
                 PanelMemory<S, true>{m.region}, tiles);
    store_matrix(tiles, m.tiles(), unscale, sign, m.diagonal);
    if (shifted)
        for (int i = t; i < n; i += S::kThreads) m.rhs[i] -= sign * unscale * m.out[i];
    if (t == 0) *m.bad = 0;
    __syncthreads();
    const int status = solve_matrix<S::kWarps>(m.tiles(), m.inverse(), strips, 16 * strips, m);
    weighted_sum<S::kThreads>(
        p, begin, n, [&](int64_t i) { return unscale * m.entry_weight[i] * m.out[i]; }, m.tiles(),
        [&](int j, float sum) { shift[j] = m.base_scale[j] * (shift[j] + m.base_scale[j] * sum); });
    finish_row<S::kWarps>(p, row, status, m.scratch, [&](int j) { return shift[j]; });
}

constexpr int kWideThreads = 256, kWideTile = 64, kWideDepth = 16;

struct WideMemory {
    double *rhs, *column;
    float *scratch, *entries, *weight;
    int* bad;
    __host__ __device__ WideMemory(Carver& carve, int P) {
        rhs = carve.take<double>(P);
        column = carve.take<double>(P);
        scratch = carve.take<float>(kWideThreads / 32);
        entries = carve.take<float>(2 * kWideTile * kWideDepth);
        weight = carve.take<float>(kWideDepth);
        bad = carve.take<int>(1);
    }
};

/// Whether background and ridge leave a direction, the weakest, to the row's entries alone.
__device__ __forceinline__ bool may_be_undetermined(const RotatedRows& p, int64_t row) {
    return p.terms.row_ptr[row] < p.terms.row_ptr[row + 1] &&
           wide_base_at(p, row, 0) < limits::undetermined_base * wide_base_at(p, row, p.D - 1);
}

/// The first coordinate, counted from 1, on which neither background and ridge nor entries act but for the rounding of
/// the rotation, or 0: as in csrc/cpu/solve_exact-inl.h, pivots do not show it. By a whole block; ends with a barrier.
__device__ __forceinline__ int undetermined(const RotatedRows& p, int64_t row, const WideMemory& m) {
    if (!may_be_undetermined(p, row)) return 0;
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    for (int j = int(threadIdx.x); j < p.D; j += kWideThreads) {
        double sum = wide_base_at(p, row, j);
        for (int64_t e = begin; e < end; ++e) {
            const double r = double(p.table[int64_t{p.terms.col_idx[e]} * p.P + j]);
            sum += fabs(double(p.terms.gram(e))) * r * r;
        }
        m.column[j] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int found = 0;
        double largest = 0;
        for (int j = p.D - 1; j >= 0 && !found; --j) {  // the weakest at last
            largest = fmax(largest, m.column[j]);
            if (m.column[j] < limits::undetermined_diagonal * largest) found = j + 1;
        }
        *m.bad = found;
    }
    __syncthreads();
    const int found = *m.bad;
    __syncthreads();
    return found;
}

/// Lists the rows that were not solved, in any order; those with an undetermined coordinate, looked for if `search`,
/// get their status first. Where *before is not 0, no row is listed, and all have a status. A block has kWideThreads
/// rows. Cost: a few numbers a row, and where there may be such a coordinate the row's gather. Not yet run on a device.
__global__ void __launch_bounds__(kWideThreads)
    review_kernel(RotatedRows p, bool search, const int32_t* before, int32_t* list, int32_t* count) {
    Carver carve(dynamic_smem());
    const WideMemory m(carve, p.P);
    STATIC_SMEM(suspects, unsigned char[kWideThreads]);
    const int64_t row0 = int64_t{blockIdx.x} * kWideThreads, row = row0 + threadIdx.x;
    const bool real = row < p.terms.n_rows;
    if (before && *before) {
        if (real) p.status[row] = -1;
        return;
    }
    const bool suspect = search && real && may_be_undetermined(p, row);
    suspects[threadIdx.x] = suspect;
    if (__syncthreads_or(suspect)) {
        for (int i = 0; i < kWideThreads; ++i) {
            if (!suspects[i]) continue;
            const int found = undetermined(p, row0 + i, m);
            if (threadIdx.x == 0 && found) p.status[row0 + i] = found;
        }
        __syncthreads();
    }
    if (real && p.status[row]) list[atomicAdd(count, 1)] = int32_t(row);
}

/// Elements [i0, i0 + kWideTile) x [j0, j0 + kWideTile) of the matrix, where they are below the diagonal: a thread has
/// 16 of them, and adds the entries in order. Cost: 2 kWideTile n floats (L2). Two barriers for each kWideDepth
/// entries.
__device__ __forceinline__ void wide_gram(const RotatedRows& p, int64_t row, int i0, int j0, double* a,
                                          double* diagonal, const WideMemory& m) {
    constexpr int kColumns = 2 * kWideTile, kEach = kWideTile / 16;
    const int t = int(threadIdx.x), i1 = t / 16, j1 = t % 16, D = p.D;
    const int64_t end = p.terms.row_ptr[row + 1];
    double sum[kEach][kEach] = {};
    if (i0 == j0 && i1 == j1)
#pragma unroll
        for (int k = 0; k < kEach; ++k)
            if (const int j = i0 + i1 + 16 * k; j < D) sum[k][k] = wide_base_at(p, row, j);
#pragma unroll 1
    for (int64_t e0 = p.terms.row_ptr[row]; e0 < end; e0 += kWideDepth) {
        const int n = int(end - e0 < kWideDepth ? end - e0 : kWideDepth);
        __syncthreads();
        for (int k = t; k < kColumns * n; k += kWideThreads) {
            const int place = k % kColumns, j = place < kWideTile ? i0 + place : j0 + place - kWideTile;
            m.entries[k] = j < D ? p.table[int64_t{p.terms.col_idx[e0 + k / kColumns]} * p.P + j] : 0.0f;
        }
        if (t < n) m.weight[t] = p.terms.gram(e0 + t);
        __syncthreads();
#pragma unroll 1
        for (int e = 0; e < n; ++e) {
            const float* const r = m.entries + kColumns * e;
            double right[kEach];
#pragma unroll
            for (int k = 0; k < kEach; ++k) right[k] = double(r[kWideTile + j1 + 16 * k]);
#pragma unroll
            for (int k = 0; k < kEach; ++k) {
                const double left = double(m.weight[e]) * double(r[i1 + 16 * k]);
#pragma unroll
                for (int l = 0; l < kEach; ++l) sum[k][l] += left * right[l];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k)
#pragma unroll
        for (int l = 0; l < kEach; ++l) {
            const int i = i0 + i1 + 16 * k, j = j0 + j1 + 16 * l;
            if (i >= D || j > i) continue;
            a[int64_t{i} * D + j] = sum[k][l];
            if (i == j) diagonal[i] = sum[k][l];
        }
}

/// One row in float64 from the float32 table: primal, unblocked, its matrix a (D, D) in the workspace, then (D). Status
/// k: pivot k is not positive to float64's digits. By a whole block.
__device__ __forceinline__ void solve_wide_row(const RotatedRows& p, int64_t row, const WideMemory& m, double* a) {
    const int t = int(threadIdx.x), D = p.D;
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    double* const diagonal = a + int64_t{D} * D;  // before elimination
    if (const int found = undetermined(p, row, m)) {
        if (t == 0) p.status[row] = found;
        return;
    }
    for (int j = t; j < D; j += kWideThreads) {
        double sum = p.prior ? double(p.terms.ridge[row]) * double(p.prior[row * p.P + j]) : 0.0;
        for (int64_t e = begin; e < end; ++e)
            sum += double(p.terms.rhs[e]) * double(p.table[int64_t{p.terms.col_idx[e]} * p.P + j]);
        m.rhs[j] = sum;
    }
    for (int i0 = 0; i0 < D; i0 += kWideTile)
        for (int j0 = 0; j0 <= i0; j0 += kWideTile) wide_gram(p, row, i0, j0, a, diagonal, m);
    if (t == 0) *m.bad = 0;
    __syncthreads();
    for (int k = 0; k < D; ++k) {
        const double pivot = a[int64_t{k} * D + k];
        if (t == 0 && *m.bad == 0 && !(pivot > limits::pivot_tolerance_float64 * diagonal[k])) *m.bad = k + 1;
        const double root = sqrt(pivot), y = m.rhs[k] / root;
        for (int i = k + t; i < D; i += kWideThreads) m.column[i] = a[int64_t{i} * D + k] / root;
        __syncthreads();
        for (int i = k + 1 + t; i < D; i += kWideThreads) m.rhs[i] -= m.column[i] * y;
        for (int i = k + 1; i < D; ++i)
            for (int j = k + 1 + t; j <= i; j += kWideThreads) a[int64_t{i} * D + j] -= m.column[i] * m.column[j];
        for (int i = k + t; i < D; i += kWideThreads) a[int64_t{i} * D + k] = m.column[i];
        if (t == 0) m.rhs[k] = y;
        __syncthreads();
    }
    for (int k = D - 1; k >= 0; --k) {
        const double x = m.rhs[k] / a[int64_t{k} * D + k];
        for (int j = t; j < k; j += kWideThreads) m.rhs[j] -= a[int64_t{k} * D + j] * x;
        __syncthreads();
        if (t == 0) m.rhs[k] = x;
        __syncthreads();
    }
    finish_row<kWideThreads / 32>(p, row, *m.bad, m.scratch, [&](int j) { return float(m.rhs[j]); });
}

/// The *count rows of a list that float32 could not solve, each by one of the grid's blocks; those that float64 cannot
/// solve either are counted in *failed. Where nothing is finite there is nothing to solve. Slow, and meant for few
/// rows.
__global__ void __launch_bounds__(kWideThreads, 2)
    solve_wide_kernel(RotatedRows p, const int32_t* list, const int32_t* count, double* workspace, int32_t* failed) {
    Carver carve(dynamic_smem());
    const WideMemory m(carve, p.P);
    double* const a = workspace + int64_t{blockIdx.x} * (int64_t{p.D} * p.D + p.D);
    const bool finite = p.spectrum[p.D - 1] * 0 == 0;
    for (int64_t i = blockIdx.x, n = *count; i < n; i += gridDim.x) {
        const int64_t row = list[i];
        if (finite) solve_wide_row(p, row, m, a);
        if (threadIdx.x == 0 && p.status[row]) atomicAdd(failed, 1);
        __syncthreads();
    }
}

}  // namespace wals::cuda
