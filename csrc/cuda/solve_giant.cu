// Launchers of the approximate solves of giant rows.
#include <algorithm>

#include "launch.h"
#include "row_shapes.h"
#include "solve_giant.cuh"

namespace wals::cuda {

int64_t cg_slot_bytes(int64_t D) {
    return CgSlot::floats(padded(D)) * int64_t(sizeof(float));
}

void solve_cg_sliced(const RotatedRows& p, const GramSlice* slices, int64_t n_slices, const SlicedRow* rows,
                     int64_t n_rows, int steps, double tolerance, void* workspace, Stream stream) {
    auto* const slots = static_cast<float*>(workspace);
    with_row_shape(p.D, [&](auto shape) {
        using S = decltype(shape);
        for (int step = 0; step <= steps; ++step) {
            launch(cg_slices_kernel<S>, unsigned(n_slices), 32 * kCgWarps, Carver::bytes_of<CgMemory<S>>(p.P, 0),
                   stream, p, slices, slots, step == 0);
            launch(cg_join_kernel, unsigned(n_rows), 32 * kCgWarps, Carver::bytes_of<CgVectors>(p.P), stream, p, rows,
                   slots, step == 0, step == steps, float(tolerance));
        }
    });
}

void solve_subspace_sliced(const RotatedRows& p, int64_t block, const GramSlice* slices, int64_t n_slices,
                           const SlicedRow* rows, int64_t n_rows, float* errors, void* workspace, Stream stream) {
    auto* const slots = static_cast<float*>(workspace);
    const auto solve = [&](auto shape) {
        using S = decltype(shape);
        for (int first = 0; first < p.P; first += int(block)) {
            launch(subspace_slices_kernel<S>, unsigned(n_slices), S::kThreads, Carver::bytes_of<PrimalMemory<S>>(),
                   stream, p, slices, first, int(block), errors, slots);
            launch(subspace_join_kernel<S>, unsigned(n_rows), S::kThreads, Carver::bytes_of<PrimalMemory<S>>(), stream,
                   p, rows, first, int(block), slots);
        }
    };
    with_shape<kSubspaceWarps>(block, [&](auto shape) {
        using S = decltype(shape);
        if constexpr (S::kMost == 256)
            if (!fits(Carver::bytes_of<PrimalMemory<S>>())) return solve(PanelShape<S::kMost, S::kWarps, 16>());
        solve(shape);
    });
}

}  // namespace wals::cuda
