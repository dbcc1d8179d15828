// Small steps that the kernels share: reductions over a warp or a block.
#pragma once

#include "device.h"
#include "problem.h"

namespace wals::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ int warp_index() {
    return int(threadIdx.x) / 32;
}
__device__ __forceinline__ int lane_index() {
    return int(threadIdx.x) % 32;
}

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

/// The values of Lanes neighbouring lanes joined, in the same order everywhere; every lane gets the result.
template <int Lanes = 32, class T, class Join>
__device__ __forceinline__ T warp_reduce(T v, Join join) {
#pragma unroll
    for (int step = Lanes / 2; step >= 1; step /= 2) v = join(v, __shfl_xor_sync(kFullWarp, v, step));
    return v;
}

/// The values of all threads joined; every thread gets the result. scratch (kWarps) is free again after the call's
/// second barrier, so calls may follow each other with the same scratch.
template <int kWarps, class T, class Join>
__device__ __forceinline__ T block_reduce(T v, Join join, T* scratch) {
    v = warp_reduce(v, join);
    if constexpr (kWarps == 1) return v;
    if (lane_index() == 0) scratch[warp_index()] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) v = join(v, scratch[w]);
    __syncthreads();
    return v;
}

/// sum += weight r
__device__ __forceinline__ void add_scaled(float4& sum, float weight, float4 r) {
    sum.x += weight * r.x;
    sum.y += weight * r.y;
    sum.z += weight * r.z;
    sum.w += weight * r.w;
}

/// Tile (row, column) of a lower triangle, in the order (0, 0) (1, 0) (1, 1) (2, 0) ...
struct TilePosition {
    int row, column;
    __device__ __forceinline__ static TilePosition of(int index) {
        int row = 0;
        while ((row + 1) * (row + 2) / 2 <= index) ++row;
        return {row, index - row * (row + 1) / 2};
    }
    __device__ __forceinline__ void next() {
        if (++column > row) {
            ++row;
            column = 0;
        }
    }
};

/// NaN unless all values added to it are finite.
__device__ __forceinline__ float not_finite(float v) {
    return v * 0.0f;
}

}  // namespace wals::cuda
