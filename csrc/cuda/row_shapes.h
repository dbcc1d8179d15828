// Which shape of a kernel suits a problem.
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

/// f(Shape for so many columns or entries), the largest of so many warps
template <int kMostWarps = warps_for(limits::kernel_sizes.each[3]), class F>
void with_shape(int64_t size, F&& f) {
    constexpr auto& sizes = limits::kernel_sizes.each;
    if (size <= sizes[0])
        f(Shape<sizes[0]>());
    else if (size <= sizes[1])
        f(Shape<sizes[1]>());
    else if (size <= sizes[2])
        f(Shape<sizes[2]>());
    else
        f(Shape<sizes[3], kMostWarps>());
}

constexpr int kSubspaceWarps = 8;  // of the largest shape

}  // namespace wals::cuda
