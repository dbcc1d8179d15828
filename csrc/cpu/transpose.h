// CSR transposition by a parallel counting sort.
#pragma once

#include "parallel.h"

namespace wals::cpu {

/// (R, C) CSR to (C, R) CSR; columns of the result are in increasing order whatever the order of the input's.
/// t_row_ptr (C+1), t_col_idx (Z), t_value (Z); `value` may be null, then t_value is not touched.
template <class T>
bool transpose(int64_t n_rows, int64_t n_cols, const int64_t* row_ptr, const int32_t* col_idx, const T* value,
               int64_t* t_row_ptr, int32_t* t_col_idx, T* t_value, int n_threads, const Interrupted& interrupted);

}  // namespace wals::cpu
