// How the dense kernels cut their results into tiles of a block.
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

    /// acc[i][j] += sum over k of left[k][row i] right[k][column j].
    template <int kLeft, int kRight>
    __device__ __forceinline__ void add_product(double (&acc)[4][4], const double (&left)[kDenseDepth][kLeft],
                                                const double (&right)[kDenseDepth][kRight]) const {
#pragma unroll 4
        for (int k = 0; k < kDenseDepth; ++k) {
            const double2 upper = ld<double2>(&left[k][row]), lower = ld<double2>(&left[k][row + 2]);
            const double a[4] = {upper.x, upper.y, lower.x, lower.y};
            double b[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = right[k][column + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] += a[i] * b[j];
        }
    }
};

constexpr int kLossWarps = 4;  // of a row's entries

}  // namespace wals::cuda
