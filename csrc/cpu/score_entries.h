// Scores of listed items only (reference.topk with all others excluded): allow lists, and pairs by id.
#pragma once

#include "dense.h"

namespace wals {
namespace WALS_ISA {

/// scores (n) = x . items[listed[e]], x (D), items (., D). Bound by the latency of random rows, hence the prefetch. The
/// order of summation depends on D alone, so that a pair has the same score in whatever list it stands.
template <class T>
static void score_entries(const T* x, const T* items, int64_t D, const int32_t* listed, int64_t n, T* scores) {
    constexpr int W = kWidth<T>;
    const int64_t whole = D / (2 * W) * (2 * W);
    for (int64_t e = 0; e < n; ++e) {
        if (e + 8 < n) prefetch_row(items + listed[e + 8] * D, D);
        const T* y = items + listed[e] * D;
        Vec<T> even{}, odd{};
        for (int64_t j = 0; j < whole; j += 2 * W) {
            even += loadu(x + j) * loadu(y + j);
            odd += loadu(x + j + W) * loadu(y + j + W);
        }
        T score = sum_lanes<T>(even + odd);
        for (int64_t j = whole; j < D; ++j) score += x[j] * y[j];
        scores[e] = score;
    }
}

}  // namespace WALS_ISA
}  // namespace wals
