// Scores of a chunk of queries against a range of items, filtered in registers (reference.topk).
//
// Items come in ascending order and each query carries the k-th best score found so far. A register tile of scores
// is compared with it at once; only survivors, about k ln(I / k) of them per query or 2 k (topk_guess-inl.h), ever
// reach memory. Users x items scores exist nowhere.
#pragma once

#include "score_entries-inl.h"
#include "topk_list-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

constexpr int64_t kItemTile = 3;  // vectors of items that stay in L1 while all queries pass

template <class T>
constexpr int64_t kTileItems = kItemTile * kWidth<T>;

/// id[i] = the item of place first + i; past the end the last one again.
template <class T>
static inline void items_from(const TopkChunk<T>& p, int64_t first, int64_t end, int32_t (&id)[kWidth<T>]) {
    for (int i = 0; i < kWidth<T>; ++i) id[i] = p.item(first + i < end ? first + i : end - 1);
}

/// Bits of the places first + l that are before the end.
template <class T>
static inline uint32_t lanes_inside(int64_t first, int64_t end) {
    const int64_t left = end - first;
    return left >= kWidth<T> ? (1u << kWidth<T>)-1 : left > 0 ? (1u << left) - 1 : 0;
}

template <class T>
static inline Vec<T> gather(const T* from, const int32_t* id) {
    T lanes[kWidth<T>] __attribute__((aligned(WALS_VECTOR_BYTES)));
    for (int l = 0; l < kWidth<T>; ++l) lanes[l] = from[id[l]];
    return load(lanes);
}

/// What is added to the scores of query q with the items id[l] of the places from `first` on.
template <class T>
static inline Vec<T> added_to(const TopkChunk<T>& p, int64_t q, int64_t first, const int32_t* id) {
    const T* const row = p.added + q * p.added_stride;
    return p.rows ? gather(row, id) : loadu(row + first);
}

/// Packs the items of places [begin, begin + 3 W), divided by their norms, k-major; past the end it repeats the last.
template <class T>
static inline void pack_items(const TopkChunk<T>& p, int64_t begin, int64_t end, T* packed) {
    constexpr int W = kWidth<T>;
    const int64_t D = p.D;
    for (int64_t b = 0; b < kItemTile; ++b) {
        int32_t id[W];
        items_from(p, begin + b * W, end, id);
        const T* row[W];
        for (int i = 0; i < W; ++i) row[i] = p.items + id[i] * D;
        const Vec<T> norm = p.norms ? norms_of(p.norms, id) : Vec<T>{};
        T* out = packed + b * D * W;
        int64_t j = 0;
        for (; j + W <= D; j += W) {
            Vec<T> m[W];
            load_transposed(row, j, m);
            if (p.norms)
                for (int i = 0; i < W; ++i) m[i] /= norm;
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(out + (j + i) * W, m[i]);
        }
        for (; j < D; ++j)
            for (int i = 0; i < W; ++i) out[j * W + i] = p.norms ? row[i][j] / norm[i] : row[i][j];
    }
}

/// Scores of the queries `which` (n) with a tile, the items of places [begin, min(begin + 3 W, end)), which are packed.
/// Cost: 2 D flops a pair and one compare per vector of pairs.
template <class T>
static inline void score_tile(const TopkChunk<T>& p, const int32_t* which, int64_t n, int64_t begin, int64_t end,
                              const T* packed) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    int32_t id[kItemTile][W];
    uint32_t inside[kItemTile];
    for (int64_t b = 0; b < kItemTile; ++b) {
        items_from(p, begin + b * W, end, id[b]);
        inside[b] = lanes_inside<T>(begin + b * W, end);
    }
    for (int64_t i0 = 0; i0 < n; i0 += R) {
        const T* row[R];
        for (int r = 0; r < R; ++r) row[r] = p.queries + which[i0 + r < n ? i0 + r : n - 1] * p.D;
        Vec<T> score[R][kItemTile];
        multiply_tile_rows<T>(row, p.D, packed, kItemTile, [&](int r, int64_t b, Vec<T> v) { score[r][b] = v; });
        for (int r = 0; r < R && i0 + r < n; ++r) {
            const int64_t q = which[i0 + r];
            for (int64_t b = 0; b < kItemTile; ++b) {
                if (p.added) score[r][b] += added_to(p, q, begin + b * W, id[b]);
                const uint32_t lanes = greater<T>(score[r][b], splat(p.threshold[q])) & inside[b];
                if (lanes) append(p, q, lanes, score[r][b], id[b]);
            }
        }
    }
    *p.scored += n * (end - begin < kTileItems<T> ? end - begin : kTileItems<T>);
}

/// The queries `which` (n) over places [begin, end).
template <class T>
static void score_tiles(const TopkChunk<T>& p, const int32_t* which, int64_t n, int64_t begin, int64_t end, T* packed) {
    for (int64_t i0 = begin; i0 < end; i0 += kTileItems<T>) {
        pack_items(p, i0, end, packed);
        score_tile(p, which, n, i0, end, packed);
    }
}

/// Cuts every list to its best k and sorts it; scratch is (2 k).
template <class T>
static void finish_lists(const TopkChunk<T>& p, SortKey<T>* scratch) {
    for (int64_t q = 0; q < p.n_queries; ++q) {
        T* const scores = p.scores + q * p.stride;
        int32_t* const ids = p.ids + q * p.stride;
        if (p.count[q] > p.k) {
            keep_best(scores, ids, p.count[q], p.k);
            p.count[q] = p.k;
        }
        sort_list(scores, ids, p.count[q], scratch);
    }
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
