// What users' histories add to their scores: score = x . y_i + sum over j in the history of h_j B_ji
// (reference.topk_neighbors).
#pragma once

#include <cstddef>

#include "kernels.h"
#include "simd-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// row (stride) = the sums of one query, divided by norms where there are some; most = the largest of their absolute
/// values. False, and nothing done, where an index is outside.
///
/// A sum is one chain over the history as it stands, whatever else is computed. Cost: an addition for each entry of the
/// neighbours of each item of the history, most of them to L2, and three passes over the row.
template <class T>
static bool add_history(const Histories<T>& p, int64_t query, T* row, int64_t stride, T* most) {
    constexpr int W = kWidth<T>;
    const int64_t begin = p.row_ptr[query], end = p.row_ptr[query + 1];
    bool inside = true;
    for (int64_t e = begin; inside && e < end; ++e) {
        const int64_t j = p.items[e];
        inside = j >= 0 && j < p.n_rows && p.to_ptr[j] >= 0 && p.to_ptr[j] <= p.to_ptr[j + 1] &&
                 p.to_ptr[j + 1] <= p.n_entries;
        if (!inside) break;
        uint32_t signs = 0;  // as of terms.col_idx (bindings/cpu_module.cpp)
        const auto last = uint32_t(p.n_items - 1);
        for (int64_t f = p.to_ptr[j]; f < p.to_ptr[j + 1]; ++f) signs |= uint32_t(p.to[f]) | (last - uint32_t(p.to[f]));
        inside = signs >> 31 == 0 || p.to_ptr[j] == p.to_ptr[j + 1];
    }
    if (!inside) return false;
    __builtin_memset(row, 0, size_t(stride) * sizeof(T));
    for (int64_t e = begin; e < end; ++e) {
        const int64_t j = p.items[e];
        const T h = p.weights[e];
        for (int64_t f = p.to_ptr[j]; f < p.to_ptr[j + 1]; ++f) row[p.to[f]] += h * p.to_weights[f];
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
