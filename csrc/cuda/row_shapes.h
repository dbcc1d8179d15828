// Which shape of the approximate solvers' kernels suits a problem.
#pragma once

#include "solve_iterative.cuh"

namespace wals {

/// f(RowShape of conjugate gradients with D factors)
template <class F>
void with_row_shape(int64_t D, F&& f) {
    if (D <= 32)
        f(RowShape<8, 1>());
    else if (D <= 64)
        f(RowShape<16, 1>());
    else if (D <= 128)
        f(RowShape<32, 1>());
    else if (D <= 256)
        f(RowShape<32, 2>());
    else if (D <= 512)
        f(RowShape<32, 4>());
    else
        f(RowShape<32, 8>());
}

/// f(Shape of subspace steps on so many columns)
template <class F>
void with_block_shape(int64_t block, F&& f) {
    if (block <= 32)
        f(Shape<32>());
    else if (block <= 64)
        f(Shape<64>());
    else if (block <= 128)
        f(Shape<128>());
    else
        f(Shape<256, 8>());
}

}  // namespace wals
