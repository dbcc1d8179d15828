// First thresholds for a large k, guessed from a sample of the items.
//
// Without a guess a query's threshold starts at -inf and about k ln(I / k) more than the k items it needs get into its
// list. With the score at a suitable rank of a sample as its threshold, about 2 k do. A guess can be too high; then
// fewer than k items are left in the list, and those queries are done again without (one in 10,000). So results do not
// depend on guesses.
//
// The sample is every so many tiles of items, whatever their order may be. Its best scores are kept in groups, so that
// they fit in the place of the lists; two of the best in one group only make the guess lower.
#pragma once

#include "topk_few-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// A tenth of the items' tiles, kMost at most: larger samples guess better and cost as much as they save.
template <class T>
struct Sample {
    static constexpr int64_t kMost = 128;
    const TopkChunk<T>& p;
    int64_t begin, n_items, tiles, size, groups;

    Sample(const TopkChunk<T>& chunk, int64_t from, int64_t to)
        : p(chunk), begin(from), n_items(to - from), tiles(n_items / kTileItems<T>), size(tiles / 10) {
        if (size > kMost) size = kMost;
        const int64_t slots = p.capacity / kWidth<T>;
        groups = (size < slots ? size : slots) * kWidth<T>;
    }

    int64_t tile_begin(int64_t s) const { return begin + tiles * s / size * kTileItems<T>; }

    /// What is added to the scores of query q with vector b of tile s.
    Vec<T> added(int64_t q, int64_t s, int64_t b) const {
        const T* const row = p.added + q * p.added_stride;
        const int64_t place = tile_begin(s) + b * kWidth<T>;
        return p.rows ? gather(row, p.rows + place) : loadu(row + place);
    }

    /// Where tile s keeps the best scores of query q, one for each lane.
    T* best(int64_t q, int64_t s) const { return p.scores + q * p.stride + s * kWidth<T> % groups; }

    /// The rank that all of n best are above with probability 1e-4: what they hold of a sample is about a Poisson
    /// variable.
    int64_t rank(int64_t n) const {
        const double expected = double(n) * double(size) / double(tiles);
        return int64_t(expected + 4.5 * __builtin_sqrt(expected) + 2);
    }

    /// Whether the guess leaves clearly fewer items than starting from nothing would.
    bool pays(int64_t rank) const {
        const double without = double(p.k) * (1 + __builtin_log(double(n_items) / double(p.k)));
        return rank * 2 < groups && double(rank) * double(tiles) < 0.6 * without * double(size);
    }

    /// Whether to sample at all: if so, the lists' place is ready for the groups.
    bool start() const {
        if (size == 0 || !pays(rank(p.k))) return false;
        for (int64_t q = 0; q < p.n_queries; ++q)
            for (int64_t i = 0; i < groups; ++i) p.scores[q * p.stride + i] = -T(__builtin_inf());
        return true;
    }

    /// Threshold for query q, if it pays. Items it must not get may well be the best ones.
    bool guess(int64_t q, T* threshold) const {
        const int64_t r = rank(p.k + (p.excluded_ptr ? p.excluded_ptr[q + 1] - p.excluded_ptr[q] : 0));
        if (!pays(r)) return false;
        *threshold = find_cut(p.scores + q * p.stride, groups, r).value;
        return true;
    }
};

/// Does the queries again whose guess was too high: they alone have a threshold and fewer than k items.
template <class T>
static void repair_guesses(const TopkChunk<T>& p, int64_t begin, int64_t end, T* packed, int32_t* which) {
    int64_t n = 0;
    for (int64_t q = 0; q < p.n_queries; ++q) {
        if (p.count[q] >= p.k || !(p.threshold[q] > -T(__builtin_inf()))) continue;
        p.count[q] = 0;
        p.threshold[q] = -T(__builtin_inf());
        which[n++] = int32_t(q);
    }
    if (n > 0) score_tiles(p, which, n, begin, end, packed);
}

/// All queries of the chunk over places [begin, end).
template <class T>
static void topk_chunk(const TopkChunk<T>& p, int64_t begin, int64_t end, T* packed, int32_t* which) {
    constexpr int R = kTileRows<T>;
    const Sample<T> sample(p, begin, end);
    if (sample.start()) {
        for (int64_t s = 0; s < sample.size; ++s) {
            pack_items(p, sample.tile_begin(s), end, packed);
            for (int64_t q0 = 0; q0 < p.n_queries; q0 += R) {
                const T* row[R];
                for (int r = 0; r < R; ++r) row[r] = p.queries + (q0 + r < p.n_queries ? q0 + r : q0) * p.D;
                multiply_tile_rows<T>(row, p.D, packed, kItemTile, [&](int r, int64_t b, Vec<T> score) {
                    if (q0 + r >= p.n_queries) return;
                    if (p.added) score += sample.added(q0 + r, s, b);
                    T* const best = sample.best(q0 + r, s);
                    const Vec<T> present = loadu(best);
                    storeu(best, score > present ? score : present);
                });
            }
        }
        for (int64_t q = 0; q < p.n_queries; ++q) sample.guess(q, &p.threshold[q]);
    }
    for (int64_t q = 0; q < p.n_queries; ++q) which[q] = int32_t(q);
    score_tiles(p, which, p.n_queries, begin, end, packed);
    repair_guesses(p, begin, end, packed, which);
}

/// Workspace of topk_plain and, afterwards, finish_lists.
template <class T>
static int64_t topk_plain_bytes(int64_t D, int64_t n_queries, int64_t k) {
    const int64_t search = round_up(kTileItems<T> * D * int64_t(sizeof(T)), 64) + n_queries * int64_t(sizeof(int32_t));
    const int64_t sort = 2 * k * int64_t(sizeof(SortKey<T>));
    return search > sort ? search : sort;
}

/// The best k of places [begin, end) for every query of the chunk, in lists that may hold some more.
template <class T>
static void topk_plain(const TopkChunk<T>& p, int64_t begin, int64_t end, char* workspace) {
    Carver carve{workspace};
    T* const packed = carve.take<T>(kTileItems<T> * p.D);
    int32_t* const which = carve.take<int32_t>(p.n_queries);
    static_assert(kFewQueries == 3);
    if (p.n_queries == 1)
        topk_few<T, 1>(p, begin, end);
    else if (p.n_queries == 2)
        topk_few<T, 2>(p, begin, end);
    else if (p.n_queries == 3)
        topk_few<T, 3>(p, begin, end);
    else
        topk_chunk(p, begin, end, packed, which);
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
