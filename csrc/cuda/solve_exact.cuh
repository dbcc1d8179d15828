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

#include <cfloat>
#include <cmath>

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

// The dual form. What its two kernels begin with:

/// Whether B spans no more than limits::dual_base_span; where it spans more, the row is marked for float64.
__device__ __forceinline__ bool fits_dual(const RotatedRows& p, int64_t row) {
    return base_at(p, row, 0) > float(limits::dual_base_span) * base_at(p, row, p.D - 1);
}

/// base_scale (P, shared) = B^-1/2, shift (P) = lambda prior. Returns the largest |value| that R B^-1/2 can have, and
/// the largest square norm of its rows. Each thread writes the columns of its number in kWarps warps, which share them.
template <int kWarps>
__device__ __forceinline__ float2 start_dual(const RotatedRows& p, int64_t row, float* base_scale, float* shift,
                                             float* scratch) {
    float2 bound = make_float2(0, 0);
    for (int j = int(threadIdx.x); j < p.P; j += 32 * kWarps) {
        const float scale = j < p.D ? rsqrtf(base_at(p, row, j)) : 0.0f, most = scale * p.column_max[j];
        base_scale[j] = scale;
        shift[j] = prior_pull(p, row, j);
        bound.x = fmaxf(bound.x, most);
        bound.y += most * most;
    }
    bound.x = block_reduce<kWarps>(bound.x, Max(), scratch);
    bound.y = block_reduce<kWarps>(bound.y, Sum(), scratch);
    return bound;
}

/// Whether the entry goes into q: its row of S is no longer than 1, and rho / sqrt|a| would grow beyond all bounds with
/// a -> 0.
__device__ __forceinline__ bool is_loose(float a, float2 bound) {
    return fabsf(a) * bound.y <= 1;
}

// At most kWarpEntries entries: a warp a row.

constexpr int kWarpEntries = limits::kernel_sizes.each[0], kWarpStride = kWarpEntries + 4;
static_assert(kWarpEntries == 32, "a lane a row");

/// Shared memory of a row. Lanes that each read four floats of a row of the matrix, or write a product's transpose, do
/// not meet in a bank.
struct DualWarpMemory {
    float *matrix, *weight, *base_scale;
    __host__ __device__ DualWarpMemory(Carver& carve, int P) {
        matrix = carve.take<float>(kWarpEntries * kWarpStride);
        weight = carve.take<float>(kWarpEntries);
        base_scale = carve.take<float>(P);
    }
};

/// Solves A u = y of n unknowns by elimination without pivoting, L D L' of a symmetric A: lane i holds row i, y_i and
/// the original A_ii, and gets u_i. Rows from n to the next eighth are 0 but for a diagonal; more take no part. Returns
/// 0, or k for the first pivot, counted from 1, that kept no more than `tolerance` of its diagonal. A lane keeps the
/// elements of U = D L' that it solves backward with.
__device__ __forceinline__ int solve_in_warp(float (&row)[kWarpEntries], int n, float diagonal, float tolerance,
                                             float& y) {
    const int lane = lane_index();
    float inverse = 0;  // of the lane's own pivot
#pragma unroll
    for (int first = 0; first < kWarpEntries; first += 8) {
        if (first >= n) break;
        float factor[8];
#pragma unroll
        for (int begin = first; begin < kWarpEntries; begin += 8) {
            if (begin >= n) break;
#pragma unroll
            for (int j = first; j < first + 8; ++j) {
                if (begin == first) {
                    const float root = rsqrtf(__shfl_sync(kFullWarp, row[j], j));
                    factor[j - first] = lane > j ? -row[j] * root * root : 0.0f;
                    if (lane == j) inverse = root * root;
                    y += factor[j - first] * __shfl_sync(kFullWarp, y, j);
                }
#pragma unroll
                for (int k = max(begin, j + 1); k < begin + 8; ++k)
                    row[k] += factor[j - first] * __shfl_sync(kFullWarp, row[k], j);
            }
        }
    }
#pragma unroll
    for (int first = kWarpEntries - 8; first >= 0; first -= 8) {
        if (first >= n) continue;
#pragma unroll
        for (int k = first + 7; k >= first; --k) {
            const float u = __shfl_sync(kFullWarp, y * inverse, k);
            if (lane < k) y -= row[k] * u;
        }
    }
    y *= inverse;
    return __ffs(int(__ballot_sync(kFullWarp, !(tolerance * diagonal * inverse < 1))));
}

/// Rows in the dual form, n <= kWarpEntries, a block of one warp a row: no barriers, and as many rows on a processor as
/// registers allow; any D. With t = 1 / |a| and u = sqrt|a| w: (diag(t) + s R B^-1 R') u = t rho - s R B^-1 q,
/// z = B^-1 (q + R' u); both sides times the square of a scale. Pivots are compared with their own diagonal, so the
/// tolerance means the same as in the form with S.
/// Four lanes read 16 columns of a table row. A sum over columns may take them in any order that is the same on both
/// sides, so what a lane has read is its part of a tile already: table rows do not go through shared memory, which has
/// the finished matrix, to go from tiles to a row for each lane, 4.6 KiB, and P floats. Entries without a coefficient
/// have t = 1e30, as good as infinite; so have those up to the next eighth, which do not exist.
/// Cost: n (n + 16) D flops, three times that on tensor cores, and n^3 / 3; two gathers of n D floats, the second from
/// L2. Not yet run on a device.
__global__ void __launch_bounds__(32, 16) solve_dual_warp_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DualWarpMemory m(carve, p.P);
    const int lane = lane_index();
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row];
    const int n = int(p.terms.row_ptr[row + 1] - begin), group = lane / 4, column0 = lane % 4 * 4;
    if (!fits_dual(p, row)) {
        if (lane == 0) p.status[row] = 1;
        return;
    }
    float* const shift = p.z + row * p.P;  // q, kept where the solution will be
    const float2 bound = start_dual<1>(p, row, m.base_scale, shift, nullptr);
    // B^-1/2 times the scale is finite, too, where the table has next to nothing.
    const float scale = scale_for(fmaxf(bound.x, 0x1p-112f * rsqrtf(base_at(p, row, 0))));
    const float a = lane < n ? p.terms.gram(begin + lane) : 0.0f, rho = lane < n ? p.terms.rhs[begin + lane] : 0.0f;
    const float loose = is_loose(a, bound) ? rho : 0.0f;
    const bool any_loose = __ballot_sync(kFullWarp, loose != 0) != 0;
    m.weight[lane] = loose;
    __syncwarp();
    if (any_loose)
        weighted_sum<32>(
            p, begin, n, [&](int64_t i) { return m.weight[i]; }, m.matrix, [&](int j, float sum) { shift[j] += sum; });
    const bool shifted = p.prior || any_loose;

    const float* from[4];  // entries group + 8 k
    float4 next[4];
    float sum[3][2][4] = {}, dot[4] = {};
    Fragment f[2] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const bool real = group + 8 * k < n;
        from[k] = p.table + (real ? int64_t{p.terms.col_idx[begin + group + 8 * k]} * p.P : 0);
        next[k] = real ? ld4(from[k] + column0) : make_float4(0, 0, 0, 0);
    }
#pragma unroll 1
    for (int column = column0; column < p.P; column += 16) {
        const float4 b = ld4(m.base_scale + column), q = shifted ? ld4(shift + column) : make_float4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (8 * k >= n) break;
            const float4 r = next[k];
            const float4 x =
                make_float4(r.x * (b.x * scale), r.y * (b.y * scale), r.z * (b.z * scale), r.w * (b.w * scale));
            if (shifted) dot[k] += x.x * (b.x * q.x) + x.y * (b.y * q.y) + x.z * (b.z * q.z) + x.w * (b.w * q.w);
            const Halves near = split(x.x, x.y), far = split(x.z, x.w);
            f[k / 2].hi[k % 2] = near.hi, f[k / 2].hi[k % 2 + 2] = far.hi;
            f[k / 2].lo[k % 2] = near.lo, f[k / 2].lo[k % 2 + 2] = far.lo;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k)  // while the tensor cores work
            if (group + 8 * k < n && column + 16 < p.P) next[k] = ld4(from[k] + column + 16);
        add_product(sum[0], f[0], f[0]);
        if (n <= 16) continue;
        add_product(sum[1], f[1], f[0]);
        add_product(sum[2], f[1], f[1]);
    }
    const float sign = p.gram_bound[row] < 0 ? -1.0f : 1.0f, whole = scale / fabsf(a) * scale;
    const float t = whole > 1e30f ? 1e30f : whole;  // NaN stays
    float y = is_loose(a, bound) ? 0.0f : t * rho;
#pragma unroll
    for (int tile = 0; tile < 3; ++tile) {
        if (tile > 0 && n <= 16) break;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int i = sum_row(r) + (tile > 0 ? 16 : 0), j = sum_column(half, r) + (tile > 1 ? 16 : 0);
                m.matrix[kWarpStride * j + i] = sign * sum[tile][half][r];
                if (tile == 1) m.matrix[kWarpStride * i + j] = sign * sum[tile][half][r];
            }
    }
    if (shifted)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float all = __shfl_sync(kFullWarp, warp_reduce<4>(dot[k], Sum()), lane % 8 * 4);
            if (lane / 8 == k) y -= sign * scale * all;
        }
    __syncwarp();
    const bool has_row = lane < 16 || n > 16;
    float* const own = m.matrix + kWarpStride * lane;
    const float diagonal = has_row ? own[lane] += t : t;
    float elements[kWarpEntries] = {};
#pragma unroll
    for (int k = 0; k < kWarpEntries; k += 4) {
        if (!has_row || k / 8 * 8 >= n) break;
        const float4 x = ld4(own + k);
        elements[k] = x.x, elements[k + 1] = x.y, elements[k + 2] = x.z, elements[k + 3] = x.w;
    }
    // Where t is no normal number, the matrix is beyond float32's range.
    const float tolerance = t >= FLT_MIN ? float(limits::pivot_tolerance_float32) : INFINITY;
    const int status = solve_in_warp(elements, n, diagonal, tolerance, y);
    m.weight[lane] = y;
    __syncwarp();
    weighted_sum<32>(
        p, begin, n, [&](int64_t i) { return m.weight[i]; }, m.matrix,
        [&](int j, float sum) {
            const float b = m.base_scale[j];
            m.base_scale[j] = b * (b * (shift[j] + sum));
        });
    finish_row<1>(p, row, status, nullptr, [&](int j) { return m.base_scale[j]; });
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

/// Rows in the dual form, kWarpEntries < n <= S::kMost, all Gram coefficients of one sign or zero, one block a row; any
/// D. A row whose B spans more than limits::dual_base_span is marked for float64. Cost: n (n + 16) D + n^3 / 3 flops,
/// three times that on tensor cores, and two gathers of n D floats, the second from L2. Not yet run on a device.
template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks) solve_dual_kernel(RotatedRows p, const int32_t* rows) {
    Carver carve(dynamic_smem());
    const DualMemory<S> m(carve, p.P);
    const int t = int(threadIdx.x);
    const int64_t row = rows[blockIdx.x], begin = p.terms.row_ptr[row];
    const int n = int(p.terms.row_ptr[row + 1] - begin);
    float* const shift = p.z + row * p.P;  // B^-1/2 q, kept where the solution will be
    if (!fits_dual(p, row)) {
        if (t == 0) p.status[row] = 1;
        return;
    }
    const float2 bound = start_dual<S::kWarps>(p, row, m.base_scale, shift, m.scratch);
    const float gram_bound = p.gram_bound[row], sign = gram_bound < 0 ? -1.0f : 1.0f;
    const float scale = scale_for(bound.x * sqrtf(fabsf(gram_bound))), unscale = 1.0f / scale;
    float loose = 0;
    for (int i = t; i < S::kMost; i += S::kThreads) {
        const float a = i < n ? p.terms.gram(begin + i) : 0.0f, rho = i < n ? p.terms.rhs[begin + i] : 0.0f;
        const float root = sqrtf(fabsf(a));
        m.entry_weight[i] = root * scale;
        m.table_row[i] = i < n ? p.terms.col_idx[begin + i] : 0;
        m.rhs[i] = is_loose(a, bound) ? 0.0f : rho / root;
        m.diagonal[i] = 1;
        if (is_loose(a, bound) && rho != 0) loose = 1;
    }
    loose = block_reduce<S::kWarps>(loose, Max(), m.scratch);
    if (loose != 0)
        weighted_sum<S::kThreads>(
            p, begin, n,
            [&](int64_t i) { return is_loose(p.terms.gram(begin + i), bound) ? p.terms.rhs[begin + i] : 0.0f; },
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
