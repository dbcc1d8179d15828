#include "transpose.h"

#include <algorithm>

namespace wals::cpu {

template <class T>
bool transpose(int64_t n_rows, int64_t n_cols, const int64_t* row_ptr, const int32_t* col_idx, const T* value,
               int64_t* t_row_ptr, int32_t* t_col_idx, T* t_value, int n_threads, const Interrupted& interrupted) {
    // Each part of the rows counts its entries per column, a prefix sum over (column, part) turns the counts into
    // places, and each part then fills its own places. Parts are as equal in entries as rows allow.
    const int64_t Z = row_ptr[n_rows];
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(n_threads, Z / (1 << 16)));
    std::vector<int64_t> first_row(static_cast<size_t>(parts) + 1, n_rows);
    for (int64_t p = 0; p < parts; ++p)
        first_row[size_t(p)] = std::lower_bound(row_ptr, row_ptr + n_rows + 1, Z * p / parts) - row_ptr;
    first_row[0] = 0;
    first_row[size_t(parts)] = n_rows;

    std::vector<int64_t> place(static_cast<size_t>(parts * n_cols), 0);
    if (!parallel_for(parts, n_threads, interrupted, [&](int64_t p, int) {
            int64_t* count = place.data() + p * n_cols;
            for (int64_t e = row_ptr[first_row[size_t(p)]]; e < row_ptr[first_row[size_t(p) + 1]]; ++e)
                ++count[col_idx[e]];
        }))
        return false;
    int64_t at = 0;
    for (int64_t c = 0; c < n_cols; ++c) {
        t_row_ptr[c] = at;
        for (int64_t p = 0; p < parts; ++p) {
            const int64_t n = place[size_t(p * n_cols + c)];
            place[size_t(p * n_cols + c)] = at;
            at += n;
        }
    }
    t_row_ptr[n_cols] = at;
    return parallel_for(parts, n_threads, interrupted, [&](int64_t p, int) {
        int64_t* next = place.data() + p * n_cols;
        for (int64_t r = first_row[size_t(p)]; r < first_row[size_t(p) + 1]; ++r)
            for (int64_t e = row_ptr[r]; e < row_ptr[r + 1]; ++e) {
                const int64_t to = next[col_idx[e]]++;
                t_col_idx[to] = int32_t(r);
                if (value) t_value[to] = value[e];
            }
    });
}

template bool transpose<float>(int64_t, int64_t, const int64_t*, const int32_t*, const float*, int64_t*, int32_t*,
                               float*, int, const Interrupted&);
template bool transpose<double>(int64_t, int64_t, const int64_t*, const int32_t*, const double*, int64_t*, int32_t*,
                                double*, int, const Interrupted&);

}  // namespace wals::cpu
