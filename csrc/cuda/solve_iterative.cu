// Launchers of the approximate row solves.
#include <algorithm>

#include "launch.h"
#include "solve_iterative.cuh"

namespace wals {
namespace {

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

template <class S>
void launch_subspace(const RotatedRows& p, int64_t block, const int32_t* rows, int64_t n_rows, float* errors,
                     cudaStream_t stream) {
    launch(solve_subspace_kernel<S>, unsigned(n_rows), S::kThreads, Carver::bytes_of<PrimalMemory<S>>(), stream, p,
           rows, int(block), errors);
}

}  // namespace

int64_t cg_staged_rows(int64_t D, int64_t smem_bytes) {
    int64_t fixed = 0;
    const int P = int(padded(D));
    with_row_shape(D, [&](auto shape) { fixed = int64_t(Carver::bytes_of<CgMemory<decltype(shape)>>(P, 0)); });
    return std::max<int64_t>(0, (smem_bytes - fixed) / (int64_t{P} * int64_t(sizeof(float))));
}

void solve_cg(const RotatedRows& p, const int32_t* rows, int64_t n_rows, int64_t staged, int steps, double tolerance,
              Stream stream) {
    if (n_rows == 0) return;
    with_row_shape(p.D, [&](auto shape) {
        using S = decltype(shape);
        launch(solve_cg_kernel<S>, unsigned(n_rows), 32 * kCgWarps, Carver::bytes_of<CgMemory<S>>(p.P, int(staged)),
               static_cast<cudaStream_t>(stream), p, rows, int(staged), steps, float(tolerance));
    });
}

void solve_subspace(const RotatedRows& p, int64_t block, const int32_t* rows, int64_t n_rows, float* errors,
                    Stream stream) {
    if (n_rows == 0) return;
    const auto on = static_cast<cudaStream_t>(stream);
    if (block <= 32)
        launch_subspace<Shape<32>>(p, block, rows, n_rows, errors, on);
    else if (block <= 64)
        launch_subspace<Shape<64>>(p, block, rows, n_rows, errors, on);
    else if (block <= 128)
        launch_subspace<Shape<128>>(p, block, rows, n_rows, errors, on);
    else
        launch_subspace<Shape<256, 8>>(p, block, rows, n_rows, errors, on);
}

}  // namespace wals
