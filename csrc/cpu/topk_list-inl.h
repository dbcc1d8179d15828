// The candidates of one query: what is appended, in vectors, and what is cut off again.
//
// A list holds scores and item numbers in two arrays, by item upwards. Every score is above the query's threshold. A
// list that reaches its capacity is cut to its best k and the k-th best becomes the threshold. A later item of the same
// score loses the tie, so "strictly above" is all that is ever asked of a score, and NaN fails it.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "simd-inl.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace wals::cpu {
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

/// Stores the chosen lanes one after the other and returns their number. A whole vector may be written.
template <class T>
static inline int compress(uint32_t lanes, Vec<T> score, const int32_t* id, T* to_score, int32_t* to_id) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        storeu(to_score, Vec<T>(_mm512_maskz_compress_ps(__mmask16(lanes), __m512(score))));
        _mm512_storeu_si512(to_id, _mm512_maskz_compress_epi32(__mmask16(lanes), _mm512_loadu_si512(id)));
    } else {
        storeu(to_score, Vec<T>(_mm512_maskz_compress_pd(__mmask8(lanes), __m512d(score))));
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(to_id),
            _mm256_maskz_compress_epi32(__mmask8(lanes), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(id))));
    }
    return __builtin_popcount(lanes);
#else
    T s[kWidth<T>] __attribute__((aligned(WALS_VECTOR_BYTES)));
    store(s, score);
    int n = 0;
    for (; lanes; lanes &= lanes - 1) {
        const int l = __builtin_ctz(lanes);
        to_score[n] = s[l];
        to_id[n++] = id[l];
    }
    return n;
#endif
}

/// Floating-point numbers as integers of the same order (but for -0 below +0), and back.
template <class T>
static inline typename IndexOf<T>::scalar to_rank(T x) {
    typename IndexOf<T>::scalar bits;
    __builtin_memcpy(&bits, &x, sizeof(T));
    return bits < 0 ? ~(bits ^ (typename IndexOf<T>::scalar(1) << (8 * sizeof(T) - 1))) : bits;
}
template <class T>
static inline T from_rank(typename IndexOf<T>::scalar rank) {
    if (rank < 0) rank = ~rank ^ (typename IndexOf<T>::scalar(1) << (8 * sizeof(T) - 1));
    T x;
    __builtin_memcpy(&x, &rank, sizeof(T));
    return x;
}

/// Where a list is cut: exactly k scores are above `value`, or `above` < k are and value is the k-th best itself.
template <class T>
struct Cut {
    T value;
    int64_t above;
};

/// Bisects for the cut of n >= k scores, none of them NaN; writes up to a vector past the end. About log2(range / gap)
/// passes of a compare and a count per vector; no branch depends on a single score.
template <class T>
static Cut<T> find_cut(T* score, int64_t n, int64_t k) {
    using Rank = typename IndexOf<T>::scalar;
    constexpr int W = kWidth<T>;
    const T lowest = -T(__builtin_inf());
    const int64_t end = round_up(n, W);
    for (int64_t i = n; i < end; ++i) score[i] = lowest;  // above nothing
    Vec<T> most = splat(lowest), least = splat(-lowest);
    for (int64_t i = 0; i < end; i += W) {
        const Vec<T> s = loadu(score + i), real = s > lowest ? s : splat(-lowest);
        most = s > most ? s : most;
        least = real < least ? real : least;
    }
    T top = most[0], bottom = least[0];
    for (int l = 1; l < W; ++l) {
        top = most[l] > top ? most[l] : top;
        bottom = least[l] < bottom ? least[l] : bottom;
    }
    auto count_above = [&](T value) {
        int64_t above = 0;
        for (int64_t i = 0; i < end; i += W) above += __builtin_popcount(greater<T>(loadu(score + i), splat(value)));
        return above;
    };
    Rank low = to_rank(bottom) - 1, high = to_rank(top);  // at least k are above low, fewer than k above high
    while (high - 1 > low) {
        const Rank middle = (low & high) + ((low ^ high) >> 1);  // their mean, which cannot overflow
        const int64_t above = count_above(from_rank<T>(middle));
        if (above == k) return {from_rank<T>(middle), k};
        if (above > k)
            low = middle;
        else
            high = middle;
    }
    return {from_rank<T>(high), count_above(from_rank<T>(high))};
}

/// Cuts a list of n > k to its best k, still by item upwards; returns the worst score kept.
template <class T>
static T keep_best(T* score, int32_t* id, int64_t n, int64_t k) {
    constexpr int W = kWidth<T>;
    const Cut<T> cut = find_cut(score, n, k);
    int64_t ties = k - cut.above, kept = 0;  // the first items of the k-th best score fill up the list
    T worst = T(__builtin_inf());
    for (int64_t i = 0; i < n; i += W) {
        const Vec<T> s = loadu(score + i);
        uint32_t lanes = greater<T>(s, splat(cut.value));
        if (ties > 0) {
            uint32_t equal = ~lanes & ~greater<T>(splat(cut.value), s) & ((1u << W) - 1);
            for (; equal && ties > 0; equal &= equal - 1, --ties) lanes |= equal & (0 - equal);
        }
        const int added = compress<T>(lanes, s, id + i, score + kept, id + kept);
        for (int a = 0; a < added; ++a) worst = score[kept + a] < worst ? score[kept + a] : worst;
        kept += added;
    }
    return worst;
}

/// A list's element while it is sorted: the complement of a score's rank, unsigned, so that the best comes first.
template <class T>
struct SortKey {
    typename std::make_unsigned<typename IndexOf<T>::scalar>::type key;
    int32_t id;
};

/// Sorts a list, by item upwards, into score down and, for equal scores, item up: least significant byte first, each
/// pass stable. scratch is (2 n). A comparison sort takes five times as long at n = 100 and twelve times at 1,000, for
/// the branches that it mispredicts.
template <class T>
static void sort_list(T* score, int32_t* id, int64_t n, SortKey<T>* scratch) {
    using Key = decltype(scratch->key);
    constexpr int kDigits = int(sizeof(T));
    constexpr Key kSign = Key(1) << (8 * sizeof(T) - 1);
    SortKey<T>*from = scratch, *to = scratch + n;
    auto write = [&] {
        for (int64_t i = 0; i < n; ++i) {
            score[i] = from_rank<T>(typename IndexOf<T>::scalar(~(from[i].key ^ kSign)));
            id[i] = from[i].id;
        }
    };
    for (int64_t i = 0; i < n; ++i) from[i] = {Key(~Key(to_rank(score[i])) ^ kSign), id[i]};
    if (n <= 32) {  // by insertion
        for (int64_t i = 1; i < n; ++i) {
            const SortKey<T> moved = from[i];
            int64_t j = i;
            for (; j > 0 && from[j - 1].key > moved.key; --j) from[j] = from[j - 1];
            from[j] = moved;
        }
        return write();
    }
    int32_t place[kDigits][256] = {};
    for (int64_t i = 0; i < n; ++i)
        for (int d = 0; d < kDigits; ++d) ++place[d][from[i].key >> (8 * d) & 255];
    for (int d = 0; d < kDigits; ++d) {
        int32_t* const digit = place[d];
        if (digit[from[0].key >> (8 * d) & 255] == n) continue;  // all the same
        int32_t before = 0;
        for (int v = 0; v < 256; ++v) {
            const int32_t count = digit[v];
            digit[v] = before;
            before += count;
        }
        for (int64_t i = 0; i < n; ++i) to[digit[from[i].key >> (8 * d) & 255]++] = from[i];
        SortKey<T>* const other = from;
        from = to;
        to = other;
    }
    write();
}

/// The lanes whose items the query must not get taken out.
template <class T>
static inline uint32_t without_excluded(const TopkChunk<T>& p, int64_t q, const int32_t* id, uint32_t lanes) {
    const int32_t* list = p.excluded_idx + p.excluded_ptr[q];
    const int64_t n = p.excluded_ptr[q + 1] - p.excluded_ptr[q];
    for (uint32_t left = lanes; left; left &= left - 1) {
        const int l = __builtin_ctz(left);
        int64_t low = 0, high = n;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (list[middle] < id[l])
                low = middle + 1;
            else
                high = middle;
        }
        if (low < n && list[low] == id[l]) lanes ^= 1u << l;
    }
    return lanes;
}

/// Adds the chosen lanes, scores of items id[l], to the query's candidates; they are above its threshold.
template <class T>
static inline void append(const TopkChunk<T>& p, int64_t q, uint32_t lanes, Vec<T> score, const int32_t* id) {
    if (p.excluded_ptr) lanes = without_excluded(p, q, id, lanes);
    T* const scores = p.scores + q * p.stride;
    int32_t* const ids = p.ids + q * p.stride;
    score += splat(T(0));  // no -0: equal to +0, but not as an integer
    p.count[q] += compress<T>(lanes, score, id, scores + p.count[q], ids + p.count[q]);
    if (p.count[q] >= p.capacity) {
        p.threshold[q] = keep_best(scores, ids, p.count[q], p.k);
        p.count[q] = p.k;
    }
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
