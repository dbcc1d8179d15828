// Which shape of the approximate solvers' kernels suits a problem.
#pragma once

#include "solve_iterative.cuh"

namespace wals::cuda {

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
    static_assert(32 * 8 * 4 >= limits::most_device_factors, "the widest shape holds every table row");
}

/// f(Shape of subspace steps on so many columns)
template <class F>
void with_block_shape(int64_t block, F&& f) {
    constexpr auto& sizes = limits::kernel_sizes.each;
    if (block <= sizes[0])
        f(Shape<sizes[0]>());
    else if (block <= sizes[1])
        f(Shape<sizes[1]>());
    else if (block <= sizes[2])
        f(Shape<sizes[2]>());
    else
        f(Shape<sizes[3], 8>());
}

}  // namespace wals::cuda
