// Small kernels that test the emulator, and what starts them.
#pragma once

#include <cstdint>
#include <string>

/// Sum over a row's items of the factor table's Gram row sums, with a bug of choice; `bug` 0 is clean.
void run_planted(int bug, int n_rows, const int64_t* row_ptr, const int32_t* col_idx, const float* table, float* out);

/// One operation on each of `n` threads in blocks of `block`: `in` and `out` have a word a thread. `own_limit`: each
/// launch sets the kernel's limit of shared memory to what it needs itself, which is a bug where threads launch.
void run_feature(const std::string& name, int n_blocks, int block, int smem, void* stream, bool own_limit,
                 const uint32_t* in, uint32_t* out);
