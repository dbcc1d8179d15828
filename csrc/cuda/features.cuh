// Maps from features to factors, as linear priors have them: their products, and what a fit of them sums over rows.
#pragma once

#include "dense_tile.cuh"

namespace wals::cuda {

/// out (n, D) = scale[i] (F W + b), or grows by it, in rows whose status (n), where there is one, is 0. F (n, E);
/// W (E + 1, D) has b as its last row. In float32. grid: (blocks of 64 rows, of 64 columns). Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    map_kernel(const float* features, int64_t n, int E, const float* weights, int D, Broadcast<float> scale,
               const int32_t* status, bool add, float* out) {
    const int column0 = int(blockIdx.y) * kDenseTile;
    const int64_t row0 = int64_t{blockIdx.x} * kDenseTile;
    dense_product<float, true, 4>(
        0, E, [&](int k, int i) { return row0 + i < n ? features[(row0 + i) * E + k] : 0.0f; },
        [&](int k, int j) { return column0 + j < D ? weights[int64_t{k} * D + column0 + j] : 0.0f; },
        [&](int i, int j, float sum) {
            const int64_t r = row0 + i;
            const int c = column0 + j;
            if (r >= n || (status && status[r]) || c >= D) return;
            const float value = scale[r] * (sum + weights[int64_t{E} * D + c]);
            out[r * D + c] = add ? out[r * D + c] + value : value;
        });
}

/// partial (slabs, E + 1, D) float64 = sum over a slab of rows of weight f (x - m)', f with a 1 at its end; m may be
/// null. grid: (blocks of 64 x 64, slabs). Cost: 2 n E D flops in float64. Not yet run on a device.
__global__ void __launch_bounds__(kDenseThreads, 2)
    cross_kernel(const float* features, int64_t n, int E, Broadcast<float> weight, const float* x, const float* m,
                 int D, double* partial) {
    const int across = (D + kDenseTile - 1) / kDenseTile;
    const int row0 = int(blockIdx.x) / across * kDenseTile, column0 = int(blockIdx.x) % across * kDenseTile;
    double* const out = partial + int64_t{blockIdx.y} * (E + 1) * D;
    dense_product<double, false, 0>(
        n * blockIdx.y / gridDim.y, n * (blockIdx.y + 1) / gridDim.y,
        [&](int64_t k, int i) {
            const int f = row0 + i;
            return f < E ? double(features[k * E + f]) : f == E ? 1.0 : 0.0;
        },
        [&](int64_t k, int j) {
            const int64_t at = k * D + column0 + j;
            return column0 + j < D ? double(weight[k]) * (double(x[at]) - (m ? double(m[at]) : 0.0)) : 0.0;
        },
        [&](int i, int j, double sum) {
            if (row0 + i <= E && column0 + j < D) out[int64_t{row0 + i} * D + column0 + j] = sum;
        });
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
