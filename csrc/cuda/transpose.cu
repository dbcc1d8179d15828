// Launcher of the CSR transposition.
#include <algorithm>

#include "launch.h"
#include "transpose.cuh"

namespace wals::cuda {
namespace {

int sort_slabs(int64_t Z) {
    return int(std::clamp<int64_t>(Z / 1024, 1, 2048));
}
int sort_passes(int64_t n_cols) {
    int passes = 1;
    while (passes < 4 && (n_cols - 1) >> (8 * passes)) ++passes;
    return passes;
}
int64_t whole(int64_t bytes) {
    return (bytes + 15) / 16 * 16;
}

}  // namespace

int64_t transpose_bytes(int64_t Z) {
    return 6 * whole(Z * 4) + int64_t{kDigits} * sort_slabs(Z) * int64_t(sizeof(int64_t));
}

void transpose(int64_t n_rows, int64_t n_cols, int64_t Z, const int64_t* row_ptr, const int32_t* col_idx,
               const float* value, int64_t* t_row_ptr, int32_t* t_col_idx, float* t_value, void* workspace,
               Stream stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    auto* at = static_cast<unsigned char*>(workspace);
    auto take = [&](int64_t bytes) {
        auto* const p = at;
        at += whole(bytes);
        return p;
    };
    SortedEntries buffers[2];
    for (SortedEntries& b : buffers) {
        b.column = reinterpret_cast<int32_t*>(take(Z * 4));
        b.row = reinterpret_cast<int32_t*>(take(Z * 4));
        b.value = value ? reinterpret_cast<float*>(take(Z * 4)) : nullptr;
    }
    auto* const counts = reinterpret_cast<int64_t*>(at);
    const int passes = sort_passes(n_cols), slabs = sort_slabs(Z);
    const unsigned blocks = unsigned((slabs + kSortWarps - 1) / kSortWarps);
    if (Z) {
        int32_t* const rows = buffers[1].row;
        launch(expand_rows_kernel, unsigned((n_rows + 7) / 8), 256, 0, cuda_stream, row_ptr, n_rows, rows);
        SortedEntries from{const_cast<int32_t*>(col_idx), rows, const_cast<float*>(value)};
        for (int pass = 0; pass < passes; ++pass) {
            SortedEntries to = buffers[pass % 2];
            if (pass + 1 == passes) {
                to.row = t_col_idx;
                to.value = t_value;
            }
            launch(count_digits_kernel, blocks, 32 * kSortWarps, 0, cuda_stream,
                   static_cast<const int32_t*>(from.column), Z, 8 * pass, slabs, counts);
            launch(scan_kernel, 1, 1024, 0, cuda_stream, counts, int64_t{kDigits} * slabs);
            launch(scatter_kernel, blocks, 32 * kSortWarps, 0, cuda_stream, from, to, Z, 8 * pass, slabs,
                   static_cast<const int64_t*>(counts));
            from = to;
        }
        launch(column_starts_kernel, unsigned(Z / 256 + 1), 256, 0, cuda_stream,
               static_cast<const int32_t*>(from.column), Z, n_cols, t_row_ptr);
    } else {
        launch(column_starts_kernel, 1, 256, 0, cuda_stream, col_idx, Z, n_cols, t_row_ptr);
    }
}

}  // namespace wals::cuda
