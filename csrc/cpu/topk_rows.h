// Scores of a chunk of queries against a range of items, filtered in registers (reference.topk).
//
// Items come in ascending order and each query carries the k-th best score found so far. A register tile of scores
// is compared with it at once; only survivors, about k ln(I / k) of them per query, ever reach memory. A later item of
// equal score loses the tie, so "strictly above" is the whole test. Users x items scores exist nowhere.
#pragma once

#include "dense.h"
#include "solve_iterative.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace wals {
namespace WALS_ISA {

/// Bit l set where a[l] > b[l].
template <class T>
static inline uint32_t greater(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return _mm512_cmp_ps_mask(__m512(a), __m512(b), _CMP_GT_OQ);
    else
        return _mm512_cmp_pd_mask(__m512d(a), __m512d(b), _CMP_GT_OQ);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
        return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(__m256(a), __m256(b), _CMP_GT_OQ)));
    else
        return uint32_t(_mm256_movemask_pd(_mm256_cmp_pd(__m256d(a), __m256d(b), _CMP_GT_OQ)));
#else
    uint32_t mask = 0;
    for (int l = 0; l < kWidth<T>; ++l) mask |= uint32_t(a[l] > b[l]) << l;
    return mask;
#endif
}

/// Adds item `id` to the query's candidates unless it is excluded; a full list is cut to its best k by p.compact.
template <class T>
static inline void admit(const TopkChunk<T>& p, int64_t q, T score, int32_t id) {
    if (p.excluded_ptr) {
        const int64_t begin = p.excluded_ptr[q], n = p.excluded_ptr[q + 1] - begin;
        int64_t low = 0, high = n;
        const int32_t* list = p.excluded_idx + begin;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (list[middle] < id)
                low = middle + 1;
            else
                high = middle;
        }
        if (low < n && list[low] == id) return;
    }
    Candidate<T>* list = p.candidates + q * p.capacity;
    list[p.count[q]++] = {score, id};
    if (p.count[q] == p.capacity) {
        p.threshold[q] = p.compact(list, p.capacity, p.k);
        p.count[q] = p.k;
    }
}

constexpr int64_t kItemTile = 3;  // vectors of items that stay in L1 while all queries pass

/// Packs items [begin, begin + 3 W) k-major, zeros past the end.
template <class T>
static inline void pack_items(const T* items, int64_t n_items, int64_t D, int64_t begin, T* packed) {
    constexpr int W = kWidth<T>;
    for (int64_t b = 0; b < kItemTile; ++b) {
        const T* row[W];
        for (int i = 0; i < W; ++i) {
            const int64_t item = begin + b * W + i;
            row[i] = items + (item < n_items ? item : n_items - 1) * D;
        }
        T* out = packed + b * D * W;
        int64_t j = 0;
        for (; j + W <= D; j += W) {
            Vec<T> m[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) m[i] = loadu(row[i] + j);
            transpose<T>(m);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(out + (j + i) * W, m[i]);
        }
        for (; j < D; ++j)
            for (int i = 0; i < W; ++i) out[j * W + i] = row[i][j];
    }
}

/// Runs the chunk's queries over items [begin, end). Cost: 2 D flops a pair and one compare per vector of pairs.
template <class T>
static void topk_chunk(const TopkChunk<T>& p, int64_t begin, int64_t end, T* packed) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int64_t D = p.D;
    for (int64_t i0 = begin; i0 < end; i0 += kItemTile * W) {
        pack_items(p.items, end, D, i0, packed);
        for (int64_t q0 = 0; q0 < p.n_queries; q0 += R) {
            const T* row[R];
            for (int r = 0; r < R; ++r) row[r] = p.queries + (q0 + r < p.n_queries ? q0 + r : p.n_queries - 1) * D;
            Vec<T> score[R][kItemTile];
            multiply_tile_rows<T>(row, D, packed, kItemTile, [&](int r, int64_t b, Vec<T> v) { score[r][b] = v; });
            for (int r = 0; r < R && q0 + r < p.n_queries; ++r) {
                const int64_t q = q0 + r;
                const Vec<T> limit = splat(p.threshold[q]);
                for (int64_t b = 0; b < kItemTile; ++b) {
                    uint32_t survivors = greater<T>(score[r][b], limit);
                    if (!survivors) continue;
                    T lanes[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
                    store(lanes, score[r][b]);
                    for (; survivors; survivors &= survivors - 1) {
                        const int l = __builtin_ctz(survivors);
                        const int64_t item = i0 + b * W + l;
                        if (item < end && lanes[l] > p.threshold[q]) admit(p, q, lanes[l], int32_t(item));
                    }
                }
            }
        }
    }
}

/// The same for a few queries: items are read once, in place; packing them would cost more than the products.
template <class T>
static void topk_few(const TopkChunk<T>& p, int64_t begin, int64_t end) {
    constexpr int W = kWidth<T>, G = kGroup<T>;
    const int64_t D = p.D, whole = D / W * W;
    for (int64_t i0 = begin; i0 < end; i0 += G) {
        const T* row[G];
        for (int i = 0; i < G; ++i) row[i] = p.items + (i0 + i < end ? i0 + i : end - 1) * D;
        for (int64_t q = 0; q < p.n_queries; ++q) {
            const T* x = p.queries + q * D;
            Vec<T> sum[G];
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) sum[i] = Vec<T>{};
            for (int64_t j = 0; j < whole; j += W) {
                const Vec<T> v = loadu(x + j);
#pragma GCC unroll 8
                for (int i = 0; i < G; ++i) sum[i] += v * loadu(row[i] + j);
            }
            T dots[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
            store(dots, sum_each_of<T, G>(sum));
            for (int i = 0; i < G && i0 + i < end; ++i) {
                for (int64_t j = whole; j < D; ++j) dots[i] += x[j] * row[i][j];
                if (dots[i] > p.threshold[q]) admit(p, q, dots[i], int32_t(i0 + i));
            }
        }
    }
}

}  // namespace WALS_ISA
}  // namespace wals
