// Top-k for one to three queries: a request of a web service. Memory is read once, and nothing but the answer written.
//
// The score of a pair is one chain of multiply-adds (score_entries-inl.h), for which W rows have to be transposed in
// registers; for a single query that costs more than reading them. So W rows are estimated first, as they lie: products
// with the query in vectors, whose lanes are added up at the end, in another order than the chain. An estimate and the
// chain differ by rounding alone, so nearly all rows are ruled out by their estimate, and W rows that have a pair which
// is not are scored as ever. The result is therefore the same to the last bit.
//
// Bound. With u half the distance from 1 to the next number, chain and estimate each err by at most (D + 2) u times the
// sum of |q_j y_j|, which is at most |q| |y|; quotients by norms by some u more. 4 (D + 16) u is twice all that, for
// the rounding of the bound itself. In place of |y| it has the norm of all W rows, which takes no shuffles. Products
// that are too small for the type are allowed for by its smallest normal number. Half of the bound is taken before the
// division by the norm and half after it, so that it is infinite, or NaN, where one of the two sums may overflow; then
// the row passes.
//
// The floor: D sizeof(T) bytes of memory for each item. Per item of D = 64 float32, AVX-512: 8 loads (4 of the query,
// which stays in the cache), 8 multiply-adds, 2 shuffles.
#pragma once

#include "topk_rows-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// Rows are asked for so many bytes ahead: as they are searched in any order, and sixteen at a time, the processor's
/// own guess comes too late (half as fast without, the same from 8 to 16 KiB).
constexpr int64_t kAheadBytes = 8192;

/// Factors at most for which the bound holds: D u must be far below 1.
constexpr int64_t kMostEstimated = 1 << 16;

/// out[n] = scores of query x[n] with the items of W places but for rounding; returns the sum of all their squares.
/// Asks for the rows that are `ahead` places further, a place at most. kListed: p.rows is there.
template <class T, int N, bool kListed>
static inline __attribute__((always_inline)) T estimate_rows(const TopkChunk<T>& p, const T* const* x, int64_t place,
                                                             int64_t ahead, int64_t last, Vec<T>* out) {
    constexpr int W = kWidth<T>;
    const int64_t D = p.D, whole = D / W * W;
    auto row = [&](int64_t i) { return p.items + (kListed ? int64_t(p.rows[i]) : i) * D; };
    Vec<T> sum[N][W], squares[4] = {};
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        prefetch_row(row(place + i + ahead < last ? place + i + ahead : last), D);
        const T* const y = row(place + i);
        Vec<T> s[N] = {};
        for (int64_t j = 0; j < whole; j += W) {
            const Vec<T> v = loadu(y + j);
            squares[i % 4] += v * v;
            for (int n = 0; n < N; ++n) s[n] += v * loadu(x[n] + j);
        }
        for (int n = 0; n < N; ++n) sum[n][i] = s[n];
    }
    for (int n = 0; n < N; ++n) out[n] = sum_each<T, W>(sum[n]);
    for (int64_t j = whole; j < D; ++j) {
        T lanes[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        for (int i = 0; i < W; ++i) lanes[i] = row(place + i)[j];
        const Vec<T> v = load(lanes);
        squares[0] += v * v;
        for (int n = 0; n < N; ++n) out[n] += splat(x[n][j]) * v;
    }
    return sum_lanes<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

/// Bits of the places first + l, all before the end, where a query may score above its threshold.
template <class T, int N, bool kListed>
struct Estimator {
    static constexpr T kUnit = sizeof(T) == 4 ? T(0x1p-24) : T(0x1p-53);
    static constexpr T kTiny = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);
    const TopkChunk<T>& p;
    const T* x[N];
    T length[N], share, least;
    int64_t ahead, last;

    Estimator(const TopkChunk<T>& chunk, int64_t end) : p(chunk), last(end - 1) {
        const int64_t bytes = p.D * int64_t(sizeof(T));
        ahead = bytes >= kAheadBytes ? 1 : kAheadBytes / (bytes + 1) + 1;
        share = 2 * T(p.D + 16) * kUnit;
        least = T(kWidth<T> * p.D) * kTiny;
        for (int n = 0; n < N; ++n) {
            x[n] = p.queries + n * p.D;
            length[n] = least;
            for (int64_t j = 0; j < p.D; ++j) length[n] += x[n][j] * x[n][j];
            length[n] = square_root(length[n]);
        }
    }

    inline __attribute__((always_inline)) uint32_t operator()(int64_t place) const {
        Vec<T> estimate[N];
        const T squares = estimate_rows<T, N, kListed>(p, x, place, ahead, last, estimate);
        const T size = square_root(squares + least);
        Vec<T> norm = splat(T(1));
        if (p.norms) {
            if constexpr (kListed)
                norm = norms_of(p.norms, p.rows + place);
            else
                norm = loadu(p.norms + place);
        }
        uint32_t possible = 0;
        for (int n = 0; n < N; ++n) {
            const Vec<T> before = estimate[n] + splat(length[n] * size * share + least);
            const Vec<T> after = splat(length[n]) * (splat(size) / norm) * splat(share);
            Vec<T> bound = before / norm + after + splat(length[n] * kTiny + least);
            // A sum never rounds to less than that of a smaller number: what is above the score is so afterwards.
            if (p.added) {
                const T* const added = p.added + n * p.added_stride;
                if constexpr (kListed)
                    bound += gather(added, p.rows + place);
                else
                    bound += loadu(added + place);
            }
            possible |= ~greater<T>(splat(p.threshold[n]), bound);  // NaN is possible
        }
        return possible;
    }
};

/// The items of W places, of which `inside` are to be looked at, scored and appended to the lists of the N queries.
template <class T, int N>
static __attribute__((noinline)) void score_places(const TopkChunk<T>& p, int64_t place, int64_t end, uint32_t inside) {
    constexpr int W = kWidth<T>;
    int32_t id[W];
    items_from(p, place, end, id);
    if (p.permitted)
        for (uint32_t left = inside; left; left &= left - 1)
            if (!p.permitted[id[__builtin_ctz(left)]]) inside ^= left & (0 - left);
    if (!inside) return;
    const T *row[W], *x[N];
    const int some = __builtin_ctz(inside);  // in place of those that are not looked at, which are far away in memory
    for (int i = 0; i < W; ++i) row[i] = p.items + id[inside >> i & 1 ? i : some] * p.D;
    for (int n = 0; n < N; ++n) x[n] = p.queries + n * p.D;
    Vec<T> score[N], norm;
    if (p.norms) norm = norms_of(p.norms, id);
    score_rows<T, N>(x, row, p.D, score, p.norms ? &norm : nullptr);
    *p.scored += N * __builtin_popcount(inside);
    for (int n = 0; n < N; ++n) {
        if (p.added) score[n] += added_to(p, n, place, id);
        const uint32_t lanes = greater<T>(score[n], splat(p.threshold[n])) & inside;
        if (lanes) append(p, n, lanes, score[n], id);
    }
}

/// The N queries of the chunk over places [begin, end): lists as topk_chunk leaves them.
template <class T, int N, bool kListed>
static void topk_few(const TopkChunk<T>& p, int64_t begin, int64_t end) {
    constexpr int W = kWidth<T>;
    const bool estimates = p.filter && p.D >= W && p.D <= kMostEstimated;  // of short rows, scores cost as much
    const Estimator<T, N, kListed> estimate(p, end);
    for (int64_t i0 = begin; i0 < end; i0 += W) {
        uint32_t inside = lanes_inside<T>(i0, end);
        if (estimates && end - i0 >= W) inside &= estimate(i0);
        if (inside) score_places<T, N>(p, i0, end, inside);
    }
}

template <class T, int N>
static void topk_few(const TopkChunk<T>& p, int64_t begin, int64_t end) {
    if (p.rows)
        topk_few<T, N, true>(p, begin, end);
    else
        topk_few<T, N, false>(p, begin, end);
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
