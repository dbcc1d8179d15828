// How the dense kernels form a product, in tiles of a block.
#pragma once

#include <algorithm>
#include <type_traits>

#include "block.cuh"

namespace wals::cuda {

constexpr int kDenseThreads = 256;
constexpr int kDenseTile = 64;  // rows and columns of a block's result
constexpr int kDenseDepth = 16;

/// Slabs of n rows that a product's sums over them are cut into, as many as keep a device busy.
inline int64_t dense_slabs(int64_t n, int64_t blocks) {
    return std::clamp<int64_t>(std::min(limits::blocks_of_device / blocks, n / 256), 1, limits::blocks_of_device);
}

/// put(i, j, sum over k in [begin, end) of left(k, i) right(k, j)) for i and j of a tile: a thread has four rows, and
/// columns 16 apart, so that a warp reads and writes neighbouring ones. A factor becomes a T as it is staged; where
/// left(k, i) has neighbours at k + 1, kByDepth, neighbouring threads stage these, and kPad keeps them apart in shared
/// memory. Barriers: each stage has one before and one after it is read.
template <class T, bool kByDepth, int kPad, class Index, class Left, class Right, class Put>
__device__ __forceinline__ void dense_product(Index begin, Index end, Left&& left_at, Right&& right_at, Put&& put) {
    STATIC_SMEM(left, T[kDenseDepth][kDenseTile + kPad]);
    STATIC_SMEM(right, T[kDenseDepth][kDenseTile]);
    using Two = std::conditional_t<sizeof(T) == 8, double2, float2>;
    const int t = int(threadIdx.x), row = t / 16 * 4, column = t % 16;
    T sum[4][4] = {};
    for (Index k0 = begin; k0 < end; k0 += kDenseDepth) {
        for (int i = t; i < kDenseDepth * kDenseTile; i += kDenseThreads) {
            const int k = i / kDenseTile, j = i % kDenseTile;
            const int l = kByDepth ? i % kDenseDepth : k, r = kByDepth ? i / kDenseDepth : j;
            right[k][j] = k0 + k < end ? right_at(k0 + k, j) : T(0);
            // The left as it lies in memory; where kByDepth, neighbours write a column apart.
            left[l][r] = k0 + l < end ? left_at(k0 + l, r) : T(0);
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDenseDepth; ++k) {
            const Two upper = ld<Two>(&left[k][row]), lower = ld<Two>(&left[k][row + 2]);
            const T a[4] = {upper.x, upper.y, lower.x, lower.y};
            T b[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = right[k][column + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) put(row + i, column + 16 * j, sum[i][j]);
}

constexpr int kLossWarps = 4;  // of a row's entries

}  // namespace wals::cuda
