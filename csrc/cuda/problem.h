// What the kernels of this folder share with their callers. All pointers are device memory.
#pragma once

#include <cstdint>

#include "../common/limits.h"
#include "../common/terms.h"

namespace wals::cuda {

/// Tables that kernels read are padded with zeros to whole tensor-core tiles, which are whole 64-byte lines.
WALS_HOST_DEVICE constexpr int64_t padded(int64_t D) {
    return (D + limits::tile - 1) / limits::tile * limits::tile;
}

/// Rows of the objective in the basis where the other side's Gram matrix is diagonal: A_r = g_r diag(spectrum) +
/// lambda_r I + sum over entries of gram r r', with r the rows of `table` (as in csrc/cpu/kernels.h).
struct RotatedRows {
    RowTerms<float> terms;
    int D = 0, P = 0;                   // factors, and padded(factors): the stride of table, prior and z
    const float* table = nullptr;       // (n_other, P)
    const float* column_max = nullptr;  // (P): largest |value| of each column of the table
    const double* spectrum = nullptr;   // (D): eigenvalues of the Gram matrix, rising
    const float* gram_bound =
        nullptr;                   // (R): largest |gram| of the row, as a negative number if one of them is below 0
    const float* prior = nullptr;  // (R, P), rotated, or null for zero
    float* z = nullptr;            // (R, P): rotated solution; the iterative solvers start from it
    int32_t* status = nullptr;     // (R): see RowStatus
    float relaxation = 1;          // how many times its way each block of a subspace step goes
};

/// Status of a row: 0 solved, k > 0 pivot k lost more than its digits allow, -1 the solution is not finite.
using RowStatus = int32_t;

// Giant rows: blocks sum slices of a row into slots of a workspace, which are added in order.

/// Entries [begin, end) of a row, summed by themselves into one slot of the workspace.
struct GramSlice {
    int64_t begin, end;
    int32_t row, slot;
    int32_t first_slot, unused;  // of the row
};

/// The slots of such a row.
struct SlicedRow {
    int32_t row, slot, n_slots, unused;
};

}  // namespace wals::cuda
