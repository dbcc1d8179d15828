// What a solver needs to know of the observed entries; shared by every device.
//
// Memory layout, stated once for the whole library:
//   dense matrices are row-major; a leading dimension ("stride") is in elements;
//   CSR: row_ptr (R+1) int64, col_idx (Z) int32; offsets are 64-bit before any multiplication.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define WALS_HOST_DEVICE __host__ __device__
#else
#define WALS_HOST_DEVICE
#endif

namespace wals {

/// Values of which there may be one per index or one for all (stride 0).
template <class T>
struct Broadcast {
    const T* data = nullptr;
    int64_t stride = 0;
    WALS_HOST_DEVICE T operator[](int64_t i) const { return data[i * stride]; }
};

/// The rows of one side of the objective: entry e of row r has Gram coefficient `gram(e)` = c - g h and
/// right-hand coefficient `rhs[e]` = c t; the row has background weight g and ridge lambda.
template <class T>
struct RowTerms {
    int64_t n_rows = 0;
    const int64_t* row_ptr = nullptr;
    const int32_t* col_idx = nullptr;
    Broadcast<T> rhs;
    Broadcast<T> gram_array;  // data == nullptr: gram = rhs + gram_offset
    T gram_offset = 0;
    Broadcast<T> background;
    Broadcast<T> ridge;

    WALS_HOST_DEVICE T gram(int64_t e) const { return gram_array.data ? gram_array[e] : rhs[e] + gram_offset; }
};

}  // namespace wals
