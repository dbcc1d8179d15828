// The dense work around the row solves: Gram matrices, rotations, bounds, and the losses.
#pragma once

#include "block.cuh"

namespace wals::cuda {

constexpr int kDenseThreads = 256;
constexpr int kDenseTile = 64;  // rows and columns of a block's result
constexpr int kDenseDepth = 16;

/// A thread has rows row + i and columns column + 16 j, i and j below 4: a warp reads and writes neighbouring columns.
struct DensePlace {
    int row, column;
    __device__ __forceinline__ DensePlace() : row(int(threadIdx.x) / 16 * 4), column(int(threadIdx.x) % 16) {}
};

/// partial (slabs, D, D) float64 = sum over a slab of rows of weight y y' (reference: Gram matrix), lower blocks of 64
/// x 64. grid: (blocks on and below the diagonal, slabs). Barriers: each stage has one before and one after it is read.
/// Cost: n D^2 flops in float64. Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    gram_kernel(const float* y, int64_t n, int D, Broadcast<float> weight, double* partial) {
    STATIC_SMEM(left, float[kDenseDepth][kDenseTile]);
    STATIC_SMEM(right, float[kDenseDepth][kDenseTile]);
    STATIC_SMEM(weights, float[kDenseDepth]);
    int block_row = 0;
    while ((block_row + 1) * (block_row + 2) / 2 <= int(blockIdx.x)) ++block_row;
    const int row0 = kDenseTile * block_row, column0 = kDenseTile * (int(blockIdx.x) - block_row * (block_row + 1) / 2);
    const int64_t begin = n * blockIdx.y / gridDim.y, end = n * (blockIdx.y + 1) / gridDim.y;
    const int t = int(threadIdx.x);
    const DensePlace place;
    double acc[4][4] = {};
    for (int64_t k0 = begin; k0 < end; k0 += kDenseDepth) {
        if (t < kDenseDepth) weights[t] = k0 + t < end ? weight[k0 + t] : 0.0f;
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            const int k = i / kDenseTile, j = i % kDenseTile;
            const bool real = k0 + k < end;
            left[k][j] = real && row0 + j < D ? y[(k0 + k) * D + row0 + j] : 0.0f;
            right[k][j] = real && column0 + j < D ? y[(k0 + k) * D + column0 + j] : 0.0f;
        }
        __syncthreads();
#pragma unroll 2
        for (int k = 0; k < kDenseDepth; ++k) {
            double a[4], b[4];
            const double w = double(weights[k]);
            const float4 l = ld4(&left[k][place.row]);
            a[0] = w * double(l.x), a[1] = w * double(l.y), a[2] = w * double(l.z), a[3] = w * double(l.w);
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = double(right[k][place.column + 16 * j]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
    double* const out = partial + int64_t{blockIdx.y} * D * D;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int r = row0 + place.row + i, c = column0 + place.column + 16 * j;
            if (r < D && c <= r) out[int64_t{r} * D + c] = acc[i][j];
        }
}

constexpr int kSumTile = 16;

/// out (D, D) = the slabs' sums in order, both triangles. grid: tiles on and below the diagonal; a tile goes through
/// shared memory, so that its mirror image is written by rows, too.
__global__ void __launch_bounds__(kDenseThreads) gram_sum_kernel(const double* partial, int slabs, int D, double* out) {
    STATIC_SMEM(tile, double[kSumTile][kSumTile + 1]);
    int tile_row = 0;
    while ((tile_row + 1) * (tile_row + 2) / 2 <= int(blockIdx.x)) ++tile_row;
    const int tile_column = int(blockIdx.x) - tile_row * (tile_row + 1) / 2;
    const int i = int(threadIdx.x) / kSumTile, j = int(threadIdx.x) % kSumTile;
    const int64_t r = kSumTile * tile_row + i, c = kSumTile * tile_column + j;
    const int64_t mirror_r = kSumTile * tile_column + i, mirror_c = kSumTile * tile_row + j;
    double sum = 0;
    if (r < D && c <= r)
        for (int s = 0; s < slabs; ++s) sum += partial[s * int64_t{D} * D + r * D + c];
    tile[i][j] = sum;
    __syncthreads();
    if (r < D && c <= r) out[r * D + c] = sum;
    if (mirror_c < D && mirror_r < mirror_c) out[mirror_r * D + mirror_c] = tile[j][i];
}

/// A product's shape.
struct RotateShape {
    int64_t n;
    int D, in_stride, out_stride;  // out columns from D to out_stride are zero
    bool transposed;               // multiply by Q' instead of Q
};

/// out (n, out_stride) = y (n, in_stride) Q, Q (D, D) float64; products and sums in C. q null: a copy.
/// grid: (blocks of 64 rows, blocks of 64 columns); in and out must not overlap. Not yet run on a device.
template <class C>
__global__ void __launch_bounds__(kDenseThreads, sizeof(C) == 4 ? 3 : 2)
    rotate_kernel(RotateShape shape, const float* y, const double* q, const int32_t* status, float* out) {
    // Tiles are written by columns: strides keep the 16 lanes of a column apart (those of `left` in pairs: it has rows
    // of whole float4).
    STATIC_SMEM(left, float[kDenseDepth][kDenseTile + 4]);
    STATIC_SMEM(right, C[kDenseDepth][kDenseTile + 8 / int(sizeof(C))]);
    const DensePlace place;
    const int t = int(threadIdx.x), D = shape.D, column0 = int(blockIdx.y) * kDenseTile;
    const int64_t row0 = int64_t{blockIdx.x} * kDenseTile;
    C acc[4][4] = {};
    for (int k0 = 0; q && k0 < D; k0 += kDenseDepth) {
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            const int k = k0 + i % kDenseDepth, r = i / kDenseDepth;
            left[i % kDenseDepth][r] = k < D && row0 + r < shape.n ? y[(row0 + r) * shape.in_stride + k] : 0.0f;
        }
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            // Neighbouring threads read neighbouring elements, whichever way round.
            const int k = shape.transposed ? i % kDenseDepth : i / kDenseTile;
            const int j = shape.transposed ? i / kDenseDepth : i % kDenseTile;
            const int64_t row = shape.transposed ? column0 + j : k0 + k,
                          column = shape.transposed ? k0 + k : column0 + j;
            right[k][j] = k0 + k < D && column0 + j < D ? C(q[row * D + column]) : C(0);
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDenseDepth; ++k) {
            const float4 l = ld4(&left[k][place.row]);
            const C a[4] = {C(l.x), C(l.y), C(l.z), C(l.w)};
            C b[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = right[k][place.column + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t r = row0 + place.row + i;
        if (r >= shape.n || (status && status[r])) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int c = column0 + place.column + 16 * j;
            if (c >= shape.out_stride) continue;
            out[r * shape.out_stride + c] = c >= D ? 0.0f : q ? float(acc[i][j]) : y[r * shape.in_stride + c];
        }
    }
}

/// out (P), 0 before: the largest |value| of each column of table (n, P). A maximum does not depend on its order, so an
/// atomic one is deterministic. grid: (blocks of 256 columns, slabs of rows).
__global__ void __launch_bounds__(kDenseThreads)
    column_max_kernel(const float* table, int64_t n, int P, unsigned* out) {
    const int j = int(blockIdx.x) * kDenseThreads + int(threadIdx.x);
    if (j >= P) return;
    const int64_t begin = n * blockIdx.y / gridDim.y, end = n * (blockIdx.y + 1) / gridDim.y;
    float most = 0;
    for (int64_t i = begin; i < end; ++i) most = fmaxf(most, fabsf(table[i * P + j]));
    atomicMax(out + j, __float_as_uint(most));  // of positive floats, bits are in the order of values
}

constexpr int kLossWarps = 4;

/// loss (R) float64 = sum over the row's entries of gram s^2 - 2 rhs s, s = x . y in C, added up in float64; with a
/// spectrum also the rest of the row's part of the loss, g z' diag(spectrum) z + lambda |z - prior|^2. One block a row;
/// a warp takes every fourth entry, 128 columns at a time. x: p.z, y: p.table, both of stride p.P. Not yet run on a
/// device.
template <class C>
__global__ void __launch_bounds__(32 * kLossWarps) row_loss_kernel(RotatedRows p, double* loss) {
    STATIC_SMEM(sums, double[kLossWarps]);
    const int64_t row = blockIdx.x, begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    const float* const x = p.z + row * p.P;
    const int lane = lane_index();
    double total = 0;
    for (int64_t e = begin + warp_index(); e < end; e += kLossWarps) {
        const float* const y = p.table + int64_t{p.terms.col_idx[e]} * p.P;
        C s = 0;
        for (int j = 4 * lane; j < p.P; j += 128) {
            const float4 a = ld4(x + j), b = ld4(y + j);
            s += C(a.x) * C(b.x) + C(a.y) * C(b.y) + C(a.z) * C(b.z) + C(a.w) * C(b.w);
        }
        const double score = double(warp_reduce(s, Sum()));
        total += score * (double(p.terms.gram(e)) * score - 2 * double(p.terms.rhs[e]));
    }
    if (lane != 0) total = 0;
    if (p.spectrum) {
        double background = 0, ridge = 0;
        for (int j = int(threadIdx.x); j < p.D; j += 32 * kLossWarps) {
            const double z = double(x[j]), d = z - (p.prior ? double(p.prior[row * p.P + j]) : 0.0);
            background += p.spectrum[j] * z * z;
            ridge += d * d;
        }
        total += double(p.terms.background[row]) * background + double(p.terms.ridge[row]) * ridge;
    }
    total = block_reduce<kLossWarps>(total, Sum(), sums);
    if (threadIdx.x == 0) loss[row] = total;
}

/// loss (R) float64 = ridge |x - prior|^2; x and prior (R, D), prior may be null. One warp a row.
__global__ void __launch_bounds__(32)
    ridge_loss_kernel(const float* x, const float* prior, int D, Broadcast<float> ridge, double* loss) {
    const int64_t row = blockIdx.x;
    double sum = 0;
    for (int j = int(threadIdx.x); j < D; j += 32) {
        const double d = double(x[row * D + j]) - (prior ? double(prior[row * D + j]) : 0.0);
        sum += d * d;
    }
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x == 0) loss[row] = double(ridge[row]) * sum;
}

/// n words become 0.
__global__ void __launch_bounds__(kDenseThreads) clear_kernel(int32_t* words, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * kDenseThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kDenseThreads)
        words[i] = 0;
}

/// z = from + p.relaxation (z - from), both (R, P), in rows of 1 to `most` entries, or in longer ones of a list; see
/// Relaxation in csrc/cpu/solve_exact-inl.h. One warp a row: 12 bytes a value and next to no flops, so bound by memory.
/// Not yet run on a device.
__global__ void __launch_bounds__(32)
    relax_kernel(RotatedRows p, int64_t most, const int32_t* list, const int32_t* count, const float* from) {
    const int64_t n_rows = list ? *count : p.terms.n_rows;
    for (int64_t i = blockIdx.x; i < n_rows; i += gridDim.x) {
        const int64_t row = list ? list[i] : i, n = p.terms.row_ptr[row + 1] - p.terms.row_ptr[row];
        if (list ? n <= most : n == 0 || n > most) continue;
        for (int j = int(threadIdx.x); j < p.P; j += 32) {
            const float start = from[row * p.P + j];
            p.z[row * p.P + j] = start + p.relaxation * (p.z[row * p.P + j] - start);
        }
    }
}

/// out (1) grows by the sum of values (n), times weights (n) if there are some, in an order that does not depend on the
/// grid: one block.
__global__ void __launch_bounds__(kDenseThreads)
    sum_kernel(const double* values, const double* weights, int64_t n, double* out) {
    STATIC_SMEM(sums, double[kDenseThreads / 32]);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kDenseThreads) sum += weights ? weights[i] * values[i] : values[i];
    sum = block_reduce<kDenseThreads / 32>(sum, Sum(), sums);
    if (threadIdx.x == 0) *out += sum;
}

}  // namespace wals::cuda
