// Item-item regressions on each item's nearest items (reference.neighbors).
//
// With G = T' diag(v) T, T the 0/1 matrix (U, I), column i of B is the ridge regression of item i on the items N(i)
// whose columns are nearest to its own by cosine: b = (G_NN + ridge Id)^-1 G_Ni. Three steps, of which the first two
// need rows of G, that is sums over an item's users of what else each has:
//
//   select_neighbors    row i of G, its best m: N(i) and G_Ni
//   fill_pairs          row k of G to the right of k: G_kl for all pairs k < l of all N(i) that hold k
//   regress             G_NN from those, Cholesky
//
// G itself exists nowhere: a row is a dense array that stays in the cache (L2 up to 100,000 items), and computing it
// again costs less than looking pairs up in a sparse matrix that does not. What is kept between the steps are the pairs
// of the neighbourhoods: drivers.cpp takes as many items together as the memory that it was given holds.
//
// The floor, in additions to elements of a row (some 0.5 ns each): sum over users of n_u^2 for the first step, half of
// it for the second; I m^2 / 2 look-ups in a row; I m^3 / 6 multiply-adds.
//
// Sums are float64, over users in rising order, so that G_kl and G_lk are the same number.
#pragma once

#include <cstddef>

#include "solve_exact-inl.h"
#include "topk_list-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// A row of G is searched for its elements from end to end, unless it took fewer additions than a 16th of its length:
/// then a bit for each of them is set on the way.
constexpr int64_t kShortRow = 16;

/// Workspace of a thread; the row and the marks are zero between calls.
struct NeighborWorkspace {
    double* row;      // (n_items)
    uint64_t* marks;  // a bit for each item
    double* scores;   // a list as in topk_list-inl.h
    int32_t* ids;
    double *panel, *start, *diagonal, *inverse, *rhs, *scratch;  // of a system

    NeighborWorkspace(char* memory, int64_t n_items, int64_t m) {
        const int64_t M = round_up(m, kWidth<double>), list = 2 * m + 96;
        Carver carve{memory};
        row = carve.take<double>(n_items + 8);
        marks = carve.take<uint64_t>(n_items / 64 + 1);
        zeroed = carve.at;
        scores = carve.take<double>(list);
        ids = carve.take<int32_t>(list);
        panel = carve.take<double>(M * M);
        start = carve.take<double>(M * M);
        diagonal = carve.take<double>(M);
        inverse = carve.take<double>(M);
        rhs = carve.take<double>(M);
        scratch = carve.take<double>(kWidth<double> * kWidth<double>);
        end = carve.at;
    }
    char *zeroed, *end;  // the part that has to be zero ends at the first
};

static int64_t neighbor_workspace_bytes(int64_t n_items, int64_t m) {
    return NeighborWorkspace(nullptr, n_items, m).end - static_cast<char*>(nullptr);
}

static void start_neighbors(int64_t n_items, int64_t m, char* workspace) {
    const NeighborWorkspace w(workspace, n_items, m);
    __builtin_memset(workspace, 0, size_t(w.zeroed - workspace));
}

/// diagonal[i] = G_ii of items [begin, end).
template <class T>
static void sum_diagonal(const Neighborhoods<T>& p, int64_t begin, int64_t end, double* diagonal) {
    for (int64_t i = begin; i < end; ++i) {
        double sum = 0;
        for (int64_t e = p.item_ptr[i]; e < p.item_ptr[i + 1]; ++e) sum += double(p.user_weight[p.users[e]]);
        diagonal[i] = sum;
    }
}

/// Users' items are asked for so many users ahead, and so many of them: the rest of a long row comes as a stream.
constexpr int64_t kUsersAhead = 3, kFetchedItems = 256;

/// Items of a user: all of them, or those above `after`.
struct UserItems {
    const int32_t *begin, *end;

    template <class T>
    UserItems(const Neighborhoods<T>& p, int64_t user, int64_t after)
        : begin(p.items + p.user_ptr[user]), end(p.items + p.user_ptr[user + 1]) {
        if (after < 0) return;
        // Halving without a branch that depends on what is read: as a rule half of a user's items are left, and where
        // the cut lies cannot be foreseen.
        for (int64_t n = end - begin; n > 0;) {
            const int64_t half = (n + 1) / 2;
            begin += begin[half - 1] <= after ? half : 0;
            n -= half;
        }
    }
};

/// row[j] += G_ij for all j, or those above `after`; the additions are in the order of users. Returns their number.
template <class T>
static inline int64_t add_row(const Neighborhoods<T>& p, int64_t i, int64_t after, double* row) {
    int64_t additions = 0;
    for (int64_t e = p.item_ptr[i]; e < p.item_ptr[i + 1]; ++e) {
        if (e + kUsersAhead < p.item_ptr[i + 1]) {
            const int64_t user = p.users[e + kUsersAhead], first = p.user_ptr[user], n = p.user_ptr[user + 1] - first;
            prefetch_row(p.items + first, n < kFetchedItems ? n : kFetchedItems);
        }
        const double v = double(p.user_weight[p.users[e]]);
        const UserItems items(p, p.users[e], after);
        const int32_t* at = items.begin;
        for (; items.end - at >= 8; at += 8) {
#pragma GCC unroll 8
            for (int n = 0; n < 8; ++n) row[at[n]] += v;  // 0.4 ns each; without unrolling 1
        }
        for (; at < items.end; ++at) row[*at] += v;
        additions += items.end - items.begin;
    }
    return additions;
}

/// row = 0, wherever add_row has added.
template <class T>
static inline void clear_row(const Neighborhoods<T>& p, int64_t i, int64_t after, int64_t additions, double* row) {
    if (additions >= p.n_items / kShortRow) {
        __builtin_memset(row + after + 1, 0, size_t(p.n_items - after - 1) * sizeof(double));
        return;
    }
    for (int64_t e = p.item_ptr[i]; e < p.item_ptr[i + 1]; ++e) {
        const UserItems items(p, p.users[e], after);
        for (const int32_t* at = items.begin; at < items.end; ++at) row[*at] = 0;
    }
}

/// Finds the m items j with the largest G_ij / sqrt(G_ii G_jj), equal ones by number, G_ij > 0 and j != i: p.ids and
/// p.weights of item i get their numbers, rising, and G_ij; p.count how many there are. -1 and 0 fill up the rest.
///
/// Compared are G_ij^2 / G_jj: of integer sums, equal cosines are equal numbers then.
template <class T>
static void select_neighbors(const Neighborhoods<T>& p, int64_t i, char* workspace) {
    constexpr int W = kWidth<double>;
    const NeighborWorkspace w(workspace, p.n_items, p.m);
    double* const row = w.row;
    const double* const diagonal = p.diagonal;
    const int64_t additions = add_row(p, i, /*after=*/-1, row);
    int64_t count = 0;
    row[i] = 0;
    const int64_t capacity = p.m + (p.m > 32 ? p.m : 32);
    double threshold = 0;
    auto cut = [&] {
        if (count < capacity) return;
        threshold = keep_best(w.scores, w.ids, count, p.m);
        count = p.m;
    };
    if (additions < p.n_items / kShortRow) {
        for (int64_t e = p.item_ptr[i]; e < p.item_ptr[i + 1]; ++e) {
            const UserItems items(p, p.users[e], /*after=*/-1);
            for (const int32_t* at = items.begin; at < items.end; ++at) w.marks[*at / 64] |= uint64_t{1} << (*at % 64);
        }
        for (int64_t word = 0; word <= p.n_items / 64; ++word) {
            if (!w.marks[word]) continue;
            for (uint64_t left = w.marks[word]; left; left &= left - 1) {
                const int64_t j = word * 64 + __builtin_ctzll(left);
                const double score = row[j] * row[j] / diagonal[j];
                if (score > threshold) {
                    w.scores[count] = score;
                    w.ids[count++] = int32_t(j);
                    cut();
                }
            }
            w.marks[word] = 0;
        }
    } else {
        int64_t j = 0;
        for (; j + W <= p.n_items; j += W) {
            const Vec<double> g = load(row + j), score = g * g / loadu(diagonal + j);
            const uint32_t lanes = greater<double>(score, splat(threshold));  // not of 0 / 0
            if (!lanes) continue;
            int32_t id[W];
            for (int l = 0; l < W; ++l) id[l] = int32_t(j) + l;
            count += compress<double>(lanes, score, id, w.scores + count, w.ids + count);
            cut();
        }
        for (; j < p.n_items; ++j) {
            const double score = row[j] * row[j] / diagonal[j];
            if (!(score > threshold)) continue;
            w.scores[count] = score;
            w.ids[count++] = int32_t(j);
            cut();
        }
    }
    if (count > p.m) {
        keep_best(w.scores, w.ids, count, p.m);
        count = p.m;
    }
    int32_t* const ids = p.ids + (i - p.first) * p.stride;
    T* const weights = p.weights + (i - p.first) * p.stride;
    for (int64_t n = 0; n < count; ++n) {
        ids[n] = w.ids[n];
        weights[n] = T(row[w.ids[n]]);
    }
    for (int64_t n = count; n < p.stride; ++n) {
        ids[n] = -1;
        weights[n] = 0;
    }
    p.count[i] = int32_t(count);
    clear_row(p, i, /*after=*/-1, additions, row);
}

constexpr int64_t kHoldersAhead = 4;

/// G_kl to the pairs of each neighbourhood that holds k, for l from k on; `holders` (n) tells which these are.
template <class T>
static void fill_pairs(const Neighborhoods<T>& p, int64_t k, const Holder* holders, int64_t n, T* pairs,
                       char* workspace) {
    const NeighborWorkspace w(workspace, p.n_items, p.m);
    const int64_t additions = add_row(p, k, /*after=*/k, w.row);
    w.row[k] = p.diagonal[k];
    for (const Holder* holder = holders; holder < holders + n; ++holder) {
        if (holder + kHoldersAhead < holders + n) {
            const Holder next = holder[kHoldersAhead];
            prefetch_row(p.ids + next.from, next.n);
            for (int64_t l = 0; l < next.n; l += 64 / int64_t(sizeof(T)))
                __builtin_prefetch(pairs + next.to + l, /*write=*/1);
        }
        const int32_t* const ids = p.ids + holder->from;
        T* const out = pairs + holder->to;
        for (int64_t l = 0; l < holder->n; ++l) out[l] = T(w.row[ids[l]]);
    }
    w.row[k] = 0;
    clear_row(p, k, /*after=*/k, additions, w.row);
}

/// to (n) = from, if all are finite in its type; else nothing.
template <class T>
static inline bool take_finite(const double* from, int64_t n, T* to) {
    T check = 0;
    for (int64_t j = 0; j < n; ++j) check += T(from[j]) * T(0);
    if (!(check == 0)) return false;
    for (int64_t j = 0; j < n; ++j) to[j] = T(from[j]);
    return true;
}

/// p.weights of item i: its regression, in place of G_Ni. `pairs`: G_NN, its upper triangle by rows.
///
/// In float64: pairs of items that nearly the same users have leave pivots of the ridge alone, a 10,000th of the
/// diagonal and less, and the system takes a small part of the time. Where a pivot is bad all the same (no ridge and
/// dependent columns), a ridge of 1e-10 of the largest diagonal element is added, then 1,000 times as much, and so on.
template <class T>
static void regress(const Neighborhoods<T>& p, int64_t i, const T* pairs, char* workspace) {
    constexpr int W = kWidth<double>;
    const int64_t n = p.count[i], M = round_up(n, W);
    if (n == 0) return;
    const NeighborWorkspace w(workspace, p.n_items, p.m);
    const Panel<double> start{w.start, M}, panel{w.panel, M};
    T* const weights = p.weights + (i - p.first) * p.stride;
    for (int64_t j = 0; j < M * M; ++j) w.start[j] = 0;
    double largest = 0;
    for (int64_t r = 0; r < n; ++r) {
        largest = double(*pairs) > largest ? double(*pairs) : largest;
        for (int64_t c = r; c < n; ++c) start.block(c / W)[r * W + c % W] = double(*pairs++);
    }
    double ridge = p.ridge;
    for (double more = 1e-10 * largest;; more *= 1000) {
        for (int64_t j = 0; j < M; ++j) {
            w.diagonal[j] = j < n ? ridge : 1;
            w.rhs[j] = j < n ? double(weights[j]) : 0;
        }
        const RightSides<double> right{w.rhs};
        const int bad = factor<double>(panel, n, 0, 0, w.diagonal, &start, w.inverse, pivot_tolerance<double>(), right);
        if (bad == 0) back_substitute(panel, M, 0, w.inverse, w.rhs, w.scratch);
        if (bad == 0 && take_finite(w.rhs, n, weights)) return;
        if (!(more < 1e10 * largest)) break;  // not for finite numbers
        ridge = p.ridge + more;
    }
    for (int64_t j = 0; j < n; ++j) weights[j] = 0;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
