// Launchers of the exact row solves.
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "row_shapes.h"
#include "solve_exact.cuh"
#include "solve_large.cuh"

namespace wals::cuda {
namespace {

/// Of the kernel that has rows of at most S::kMost entries in the dual form.
template <class S>
using DualMemoryOf = std::conditional_t<(S::kMost > kWarpEntries), DualMemory<S>, DualWarpMemory>;

template <bool kSummed>
void launch_large(const RotatedRows& p, const int32_t* rows, const SlicedRow* sliced, int64_t n_rows, int64_t n_blocks,
                  float* slots, Stream stream) {
    clear(GramSlot(slots, 0, p.P).more, 1, stream);
    launch(solve_large_kernel<kSummed>, unsigned(std::min({n_blocks, n_rows, limits::blocks_of_device})),
           LargeShape::kThreads, Carver::bytes_of<LargeMemory>(p.P), stream, p, rows, sliced, unsigned(n_rows), slots);
}

}  // namespace

void solve_exact(const RotatedRows& p, const std::string& form, int size, const int32_t* rows, int64_t n_rows,
                 Stream stream) {
    const auto grid = unsigned(n_rows);
    if (form == "diagonal")
        return launch(solve_diagonal_kernel, grid, 32 * kDiagonalWarps, Carver::bytes_of<DiagonalMemory>(p.P), stream,
                      p, rows);
    with_shape(size, [&](auto shape) {
        using S = decltype(shape);
        if (form == "primal")
            launch(solve_primal_kernel<S>, grid, S::kThreads, Carver::bytes_of<PrimalMemory<S>>(), stream, p, rows);
        else if constexpr (const size_t bytes = Carver::bytes_of<DualMemoryOf<S>>(p.P); S::kMost > kWarpEntries)
            launch(solve_dual_kernel<S>, grid, S::kThreads, bytes, stream, p, rows);
        else
            launch(solve_dual_warp_kernel, grid, 32, bytes, stream, p, rows);
    });
}

int64_t exact_bytes(int size) {
    size_t bytes = 0;
    with_shape(size, [&](auto shape) {
        using S = decltype(shape);
        bytes = std::max(Carver::bytes_of<PrimalMemory<S>>(),
                         Carver::bytes_of<DualMemoryOf<S>>(int(limits::most_device_factors)));
    });
    return int64_t(bytes);
}

int64_t slot_bytes(int64_t D) {
    return GramSlot::floats(padded(D)) * int64_t(sizeof(float));
}

void solve_sliced(const RotatedRows& p, const GramSlice* slices, int64_t n_slices, const SlicedRow* rows,
                  int64_t n_rows, void* workspace, Stream stream) {
    auto* const slots = static_cast<float*>(workspace);
    const int64_t blocks = (p.P + 127) / 128;
    constexpr int64_t kMostY = 65535;  // of a grid
    for (int64_t i = 0; i < n_slices; i += kMostY)
        launch(gram_slices_kernel, dim3(unsigned(tile_index(blocks, 0)), unsigned(std::min(kMostY, n_slices - i))),
               SliceShape::kThreads, Carver::bytes_of<PrimalMemory<SliceShape>>(), stream, p, slices + i, slots);
    for (int64_t i = 0; i < n_rows && n_slices > n_rows; i += kMostY)
        launch(sum_slices_kernel, dim3(32, unsigned(std::min(kMostY, n_rows - i))), 256, 0, stream, rows + i,
               GramSlot::floats(p.P), GramSlot::floats(p.P) - p.P, slots);
    launch_large<true>(p, nullptr, rows, n_rows, n_rows, slots, stream);
}

void solve_large(const RotatedRows& p, const int32_t* rows, int64_t n_rows, int64_t n_slots, void* workspace,
                 Stream stream) {
    launch_large<false>(p, rows, nullptr, n_rows, n_slots, static_cast<float*>(workspace), stream);
}

void review(const RotatedRows& p, bool search, const int32_t* before, int32_t* list, int32_t* count, Stream stream) {
    launch(review_kernel, unsigned((p.terms.n_rows + kWideThreads - 1) / kWideThreads), kWideThreads,
           Carver::bytes_of<WideMemory>(p.P), stream, p, search, before, list, count);
}

int64_t wide_bytes(int64_t D) {
    return (D * D + D) * int64_t(sizeof(double));
}

void solve_wide(const RotatedRows& p, const int32_t* list, const int32_t* count, int64_t slots, void* workspace,
                int32_t* failed, Stream stream) {
    launch(solve_wide_kernel, unsigned(slots), kWideThreads, Carver::bytes_of<WideMemory>(p.P), stream, p, list, count,
           static_cast<double*>(workspace), failed);
}

}  // namespace wals::cuda
