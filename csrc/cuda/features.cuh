// Maps from features to factors, as linear priors have them: their products, and what a fit of them sums over rows.
#pragma once

#include "dense_tile.cuh"

namespace wals::cuda {

/// out (n, D) = scale[i] (F W + b), or grows by it, in rows whose status (n), where there is one, is 0. F (n, E);
/// W (E + 1, D) has b as its last row. In float32. grid: (blocks of 64 rows, of 64 columns). Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    map_kernel(const float* features, int64_t n, int E, const float* weights, int D, Broadcast<float> scale,
               const int32_t* status, bool add, float* out) {
    STATIC_SMEM(left, float[kDenseDepth][kDenseTile + 4]);
    STATIC_SMEM(right, float[kDenseDepth][kDenseTile]);
    const DensePlace place;
    const int t = int(threadIdx.x), column0 = int(blockIdx.y) * kDenseTile;
    const int64_t row0 = int64_t{blockIdx.x} * kDenseTile;
    float acc[4][4] = {};
    for (int k0 = 0; k0 < E; k0 += kDenseDepth) {
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            const int k = k0 + i % kDenseDepth, r = i / kDenseDepth;
            left[i % kDenseDepth][r] = k < E && row0 + r < n ? features[(row0 + r) * E + k] : 0.0f;
            const int l = k0 + i / kDenseTile, j = column0 + i % kDenseTile;
            right[i / kDenseTile][i % kDenseTile] = l < E && j < D ? weights[int64_t{l} * D + j] : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDenseDepth; ++k) {
            const float4 l = ld4(&left[k][place.row]);
            const float a[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float b = right[k][place.column + 16 * j];
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[i][j] += a[i] * b;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t r = row0 + place.row + i;
        if (r >= n || (status && status[r])) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int c = column0 + place.column + 16 * j;
            if (c >= D) continue;
            const float value = scale[r] * (acc[i][j] + weights[int64_t{E} * D + c]);
            out[r * D + c] = add ? out[r * D + c] + value : value;
        }
    }
}

/// partial (slabs, E + 1, D) float64 = sum over a slab of rows of weight f (x - m)', f with a 1 at its end; m may be
/// null. grid: (blocks of 64 x 64, slabs). Cost: 2 n E D flops in float64. Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    cross_kernel(const float* features, int64_t n, int E, Broadcast<float> weight, const float* x, const float* m,
                 int D, double* partial) {
    STATIC_SMEM(left, double[kDenseDepth][kDenseTile]);
    STATIC_SMEM(right, double[kDenseDepth][kDenseTile]);
    const int across = (D + kDenseTile - 1) / kDenseTile, t = int(threadIdx.x);
    const int row0 = int(blockIdx.x) / across * kDenseTile, column0 = int(blockIdx.x) % across * kDenseTile;
    const int64_t begin = n * blockIdx.y / gridDim.y, end = n * (blockIdx.y + 1) / gridDim.y;
    const DensePlace place;
    double acc[4][4] = {};
    for (int64_t k0 = begin; k0 < end; k0 += kDenseDepth) {
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            const int k = i / kDenseTile, f = row0 + i % kDenseTile, c = column0 + i % kDenseTile;
            const int64_t r = k0 + k;
            const bool real = r < end;
            left[k][i % kDenseTile] = real && f < E ? double(features[r * E + f]) : real && f == E ? 1.0 : 0.0;
            const double of_mean = real && c < D && m ? double(m[r * D + c]) : 0.0;
            right[k][i % kDenseTile] = real && c < D ? double(weight[r]) * (double(x[r * D + c]) - of_mean) : 0.0;
        }
        __syncthreads();
        place.add_product(acc, left, right);
        __syncthreads();
    }
    double* const out = partial + int64_t{blockIdx.y} * (E + 1) * D;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int r = row0 + place.row + i, c = column0 + place.column + 16 * j;
            if (r <= E && c < D) out[int64_t{r} * D + c] = acc[i][j];
        }
}

/// out (size) = the slabs' sums in order.
__global__ void __launch_bounds__(kDenseThreads)
    cross_sum_kernel(const double* partial, int slabs, int64_t size, double* out) {
    const int64_t i = int64_t{blockIdx.x} * kDenseThreads + threadIdx.x;
    if (i >= size) return;
    double sum = 0;
    for (int s = 0; s < slabs; ++s) sum += partial[s * size + i];
    out[i] = sum;
}

/// slope, curvature (R) float64: each row's sums over its entries of (gram x.y - rhs) v.y and of gram (v.y)^2; x: p.z,
/// v (R, P), y: p.table. One block a row, as in row_loss_kernel. Not yet run on a device.
__global__ void __launch_bounds__(32 * kLossWarps, 4)
    line_kernel(RotatedRows p, const float* v, double* slope, double* curvature) {
    STATIC_SMEM(sums, double[kLossWarps]);
    const int64_t row = blockIdx.x, begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    double along = 0, bend = 0;
    for (int64_t e = begin + warp_index(); e < end; e += kLossWarps) {
        const float* const y = p.table + int64_t{p.terms.col_idx[e]} * p.P;
        float at = 0, change = 0;
        for (int j = 4 * lane_index(); j < p.P; j += 128) {
            const float4 a = ld4(p.z + row * p.P + j), b = ld4(y + j), c = ld4(v + row * p.P + j);
            at += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
            change += c.x * b.x + c.y * b.y + c.z * b.z + c.w * b.w;
        }
        const double s = double(warp_reduce(at, Sum())), d = double(warp_reduce(change, Sum()));
        const double weighted = double(p.terms.gram(e)) * d;
        along += weighted * s - double(p.terms.rhs[e]) * d;
        bend += weighted * d;
    }
    if (lane_index() != 0) along = bend = 0;
    along = block_reduce<kLossWarps>(along, Sum(), sums);
    bend = block_reduce<kLossWarps>(bend, Sum(), sums);
    if (threadIdx.x == 0) slope[row] = along, curvature[row] = bend;
}

/// n values times a factor.
__global__ void __launch_bounds__(kDenseThreads) scale_kernel(float* values, int64_t n, float factor) {
    for (int64_t i = int64_t{blockIdx.x} * kDenseThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kDenseThreads)
        values[i] *= factor;
}

}  // namespace wals::cuda
