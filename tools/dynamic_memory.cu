// Prints a line "kernel bytes" for each kernel with dynamic shared memory; tools/cuda_budgets.py compiles it. Where
// the size depends on the factors, they are as many as stand here; conjugate gradients keep no rows of the table.
#include <cstdio>

#include "solve_exact.cuh"
#include "solve_giant.cuh"
#include "solve_iterative.cuh"
#include "solve_large.cuh"
#include "topk.cuh"

namespace {

using namespace wals;
using namespace wals::cuda;

constexpr int kDualFactors = 256, kMost = limits::most_device_factors;

template <class S>
void print_shape() {
    const auto print = [](const char* kernel, size_t bytes) {
        std::printf("solve_%s_kernel<Shape<%d, %d>> %zu\n", kernel, S::kMost, S::kWarps, bytes);
    };
    print("primal", Carver::bytes_of<PrimalMemory<S>>());
    if (S::kMost > kWarpEntries) print("dual", Carver::bytes_of<DualMemory<S>>(kDualFactors));
    print("subspace", Carver::bytes_of<PrimalMemory<S>>());
    std::printf("subspace_slices_kernel<Shape<%d, %d>> %zu\n", S::kMost, S::kWarps,
                Carver::bytes_of<PrimalMemory<S>>());
    std::printf("subspace_join_kernel<Shape<%d, %d>> %zu\n", S::kMost, S::kWarps, Carver::bytes_of<PrimalMemory<S>>());
}

/// Of blocks of subspace steps whose matrices are in the workspace.
template <class S>
void print_panel(const char* kernel) {
    std::printf("%s_kernel<PanelShape<%d, %d, %d>> %zu\n", kernel, S::kMost, S::kWarps, S::kDepth,
                Carver::bytes_of<PrimalMemory<S>>());
}

template <int Lanes, int Vectors>
void print_cg() {
    for (const char* kernel : {"solve_cg", "cg_slices"})
        std::printf("%s_kernel<RowShape<%d, %d>> %zu\n", kernel, Lanes, Vectors,
                    Carver::bytes_of<CgMemory<RowShape<Lanes, Vectors>>>(4 * Lanes * Vectors, 0));
}

}  // namespace

int main() {
    print_shape<Shape<32>>();
    print_shape<Shape<64>>();
    print_shape<Shape<128>>();
    print_shape<Shape<256>>();
    print_shape<Shape<256, 8>>();
    print_cg<8, 1>();
    print_cg<16, 1>();
    print_cg<32, 1>();
    print_cg<32, 2>();
    print_cg<32, 4>();
    print_cg<32, 8>();
    std::printf("solve_dual_warp_kernel %zu\n", Carver::bytes_of<DualWarpMemory>(kDualFactors));
    std::printf("solve_diagonal_kernel %zu\n", Carver::bytes_of<DiagonalMemory>(kMost));
    for (const char* summed : {"true", "false"})
        std::printf("solve_large_kernel<%s> %zu\n", summed, Carver::bytes_of<LargeMemory>(kMost));
    std::printf("solve_wide_kernel %zu\n", Carver::bytes_of<WideMemory>(kMost));
    std::printf("review_kernel %zu\n", Carver::bytes_of<WideMemory>(kMost));
    std::printf("cg_join_kernel %zu\n", Carver::bytes_of<CgVectors>(kMost));
    std::printf("gram_slices_kernel %zu\n", Carver::bytes_of<PrimalMemory<SliceShape>>());
    for (const char* kernel : {"subspace_slices", "subspace_join"}) print_panel<PanelShape<256, 8, 16>>(kernel);
    for (const char* pass : {"false", "true"}) {
        std::printf("topk_kernel<%s> %zu\n", pass, Carver::bytes_of<TopkMemory>(3));
        std::printf("topk_merge_kernel<%s> %zu\n", pass, 2 * topk_capacity(limits::most_results) * sizeof(Key));
    }
}
