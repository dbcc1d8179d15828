// What users' histories add to their scores: score = x . y_i + sum over j in the history of h_j B_ji
// (reference.topk_neighbors).
#pragma once

#include <cstddef>

#include "kernels.h"
#include "simd-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// The rows of neighbours are asked for so many entries of the history ahead, and so much of them: from there on the
/// processor sees that they are read in a stream.
constexpr int64_t kAhead = 2, kFetched = 128;

/// row (stride) = the sums of one query, divided by norms where there are some; most = the largest of their absolute
/// values. False, and nothing done, where an index is outside.
///
/// A sum is one chain over the history as it stands, whatever else is computed. Cost: an addition for each entry of the
/// neighbours of each item of the history, most of them to L2, and three passes over the row.
template <class T>
static bool add_history(const Histories<T>& p, int64_t query, T* row, int64_t stride, T* most) {
    constexpr int W = kWidth<T>;
    const int64_t begin = p.row_ptr[query], end = p.row_ptr[query + 1];
    const auto last = uint32_t(p.n_items - 1);
    auto row_of = [&](int64_t e, int64_t* from, int64_t* stop) {
        const int64_t j = p.items[e];
        if (j < 0 || j >= p.n_rows) return false;
        *from = p.to_ptr[j];
        *stop = p.to_ptr[j + 1];
        return 0 <= *from && *from <= *stop && *stop <= p.n_entries;
    };
    __builtin_memset(row, 0, size_t(stride) * sizeof(T));
    for (int64_t e = begin; e < end; ++e) {
        int64_t from, stop, ahead, ahead_stop;
        if (!row_of(e, &from, &stop)) return false;
        if (e + kAhead < end && row_of(e + kAhead, &ahead, &ahead_stop)) {
            if (ahead_stop > ahead + kFetched) ahead_stop = ahead + kFetched;
            for (; ahead < ahead_stop; ahead += 16) {
                __builtin_prefetch(p.to + ahead);
                prefetch_row(p.to_weights + ahead, 16);
            }
        }
        uint32_t signs = 0;  // as of terms.col_idx (bindings/cpu_module.cpp)
        for (int64_t f = from; f < stop; ++f) signs |= uint32_t(p.to[f]) | (last - uint32_t(p.to[f]));
        if (from < stop && (p.n_items == 0 || signs >> 31)) return false;
        const T h = p.weights[e];
        int64_t f = from;
        for (; f + 8 <= stop; f += 8) {
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) row[p.to[f + i]] += h * p.to_weights[f + i];
        }
        for (; f < stop; ++f) row[p.to[f]] += h * p.to_weights[f];
    }
    Vec<T> largest{};
    auto take = [&](Vec<T> v) {
        v = v < Vec<T>{} ? -v : v;
        largest = v > largest ? v : largest;
    };
    int64_t i = 0;
    for (; i + W <= p.n_items; i += W) {
        Vec<T> v = loadu(row + i);
        if (p.norms) storeu(row + i, v /= loadu(p.norms + i));
        take(v);
    }
    for (; i < p.n_items; ++i) {
        if (p.norms) row[i] /= p.norms[i];
        take(splat(row[i]));
    }
    *most = largest[0];
    for (int l = 1; l < W; ++l) *most = largest[l] > *most ? largest[l] : *most;
    return true;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
