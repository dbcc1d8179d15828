// Launchers of the approximate row solves.
#include <algorithm>

#include "launch.h"
#include "row_shapes.h"
#include "solve_iterative.cuh"

namespace wals::cuda {
int64_t cg_staged_rows(int64_t D, int64_t smem_bytes) {
    int64_t fixed = 0;
    const int P = int(padded(D));
    with_row_shape(D, [&](auto shape) { fixed = int64_t(Carver::bytes_of<CgMemory<decltype(shape)>>(P, 0)); });
    return std::max<int64_t>(0, (smem_bytes - fixed) / (int64_t{P} * int64_t(sizeof(float))));
}

void solve_cg(const RotatedRows& p, const int32_t* rows, int64_t n_rows, int64_t staged, int steps, double tolerance,
              Stream stream) {
    with_row_shape(p.D, [&](auto shape) {
        using S = decltype(shape);
        launch(solve_cg_kernel<S>, unsigned(n_rows), 32 * kCgWarps, Carver::bytes_of<CgMemory<S>>(p.P, int(staged)),
               stream, p, rows, int(staged), steps, float(tolerance));
    });
}

void solve_subspace(const RotatedRows& p, int64_t block, const int32_t* rows, int64_t n_rows, float* errors,
                    Stream stream) {
    with_shape<kSubspaceWarps>(block, [&](auto shape) {
        using S = decltype(shape);
        launch(solve_subspace_kernel<S>, unsigned(n_rows), S::kThreads, Carver::bytes_of<PrimalMemory<S>>(), stream, p,
               rows, int(block), errors);
    });
}

}  // namespace wals::cuda
