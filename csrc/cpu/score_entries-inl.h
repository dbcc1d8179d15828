// Scores of single pairs: of listed items (allow lists, pairs by id), and of what a top-k search scores one by one.
//
// The score of a pair is one chain of multiply-adds over d = 0 .. D - 1, whichever kernel computes it
// (multiply_tile_rows of dense-inl.h, score_rows) and whatever else is computed beside it. So a pair has the same score
// in every list, and results depend on nothing but the factors and the instruction set.
#pragma once

#include "dense-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// Norms of the items id[l], or of their first n and then ones.
template <class T>
static inline Vec<T> norms_of(const T* norms, const int32_t* id, int64_t n = kWidth<T>) {
    T lanes[kWidth<T>] __attribute__((aligned(WALS_VECTOR_BYTES)));
    for (int l = 0; l < kWidth<T>; ++l) lanes[l] = l < n ? norms[id[l]] : T(1);
    return load(lanes);
}

/// out[n] = scores of query x[n] with W items, whose table rows are transposed in registers and, where there are norms
/// of the items, divided by them: to the same bits as a table that was divided.
template <class T, int N>
static inline __attribute__((always_inline)) void score_rows(const T* const* x, const T* const* row, int64_t D,
                                                             Vec<T>* out, const Vec<T>* norm = nullptr) {
    constexpr int W = kWidth<T>;
    Vec<T> sum[N] = {};
    int64_t j = 0;
    for (; j + W <= D; j += W) {
        Vec<T> m[W];
        load_transposed(row, j, m);
        if (norm)
            for (int i = 0; i < W; ++i) m[i] /= *norm;
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
            for (int n = 0; n < N; ++n) sum[n] += splat(x[n][j + i]) * m[i];
    }
    for (; j < D; ++j) {
        T lanes[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        for (int i = 0; i < W; ++i) lanes[i] = row[i][j];
        const Vec<T> values = norm ? load(lanes) / *norm : load(lanes);
        for (int n = 0; n < N; ++n) sum[n] += splat(x[n][j]) * values;
    }
    for (int n = 0; n < N; ++n) out[n] = sum[n];
}

/// scores (n) = x . items[listed[e]], x (D), items (., D), divided by their norms (.) unless these are null. Bound by
/// the latency of random rows, hence the prefetch.
template <class T>
static void score_entries(const T* x, const T* items, const T* norms, int64_t D, const int32_t* listed, int64_t n,
                          T* scores) {
    constexpr int W = kWidth<T>;
    for (int64_t e0 = 0; e0 < n; e0 += W) {
        const T* row[W];
        for (int i = 0; i < W; ++i) {
            row[i] = items + listed[e0 + i < n ? e0 + i : n - 1] * D;
            if (e0 + W + i < n) prefetch_row(items + listed[e0 + W + i] * D, D);
        }
        Vec<T> score, norm;
        if (norms) norm = n - e0 >= W ? norms_of(norms, listed + e0) : norms_of(norms, listed + e0, n - e0);
        score_rows<T, 1>(&x, row, D, &score, norms ? &norm : nullptr);
        if (n - e0 >= W)
            storeu(scores + e0, score);
        else
            for (int i = 0; i < n - e0; ++i) scores[e0 + i] = score[i];
    }
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
