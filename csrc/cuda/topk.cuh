// Top-k by dot product, fused: scores live in registers, and only what may be among a query's best is ever written
// (reference.topk). Order of results: score down, then index up (common/topk_order.h).
//
// The score of a pair is the float32 value that three f16 products give (split.cuh). Most pairs need not be scored: one
// f16 product, s = hi hi, rules them out. With N the norm of a vector times its scale, whose largest value is 2^8 to
// 2^9, and P columns,
//
//     |s - score| <= bound N_q N_y,    bound = 2^-10 + 2^-15 + P 2^-21,
//
//   2^-10     rounding to f16: each vector moves by 2^-11 of its norm at most, and by 2^-28 for what is below f16's
//             normal numbers (2^-25 in each of 1,024 columns, beside a largest of 2^8). The square, 2^-22, is below.
//   P 2^-21   mma. The coarsest chip known (V100: Fasi et al., PeerJ CS 330) adds four products and the sum at a time,
//             each cut at 2^-23 of the largest, and cuts the result there: 24 2^-23 for each 16 columns, of terms that
//             are at most N_q N_y by Cauchy-Schwarz. 64 2^-23 are allowed.
//   2^-15     what the score itself and the bound lose: lo lo and the rounding of lo 3 2^-22, 72 2^-23 for three mma
//   that
//             begin at zero (their terms add up to N_q N_y over all columns), 64 2^-24 for float32 sums, 2^-22 for s,
//             the norms and the comparison; half of it in all.
//
// A list has each candidate's lower end, s - bound N_q N_y. What has its upper end at or below the k-th best lower end
// is passed over; what is left in the end is scored (rescore), with the bits that three products of all pairs give.
// Candidates beyond a list's room (scores that are nearly all alike) are no loss: such a query is marked, and a second
// pass, whose blocks are over at once where there is none, forms the three products of its pairs.
//
// The bound is for vectors of 0 and for those with a largest value from 2^-31 to 2^50, whose scores are multiples of
// 2^-126 and not above 2^110: no score rounds to another one's. Other items are always candidates, other queries are
// left to the second pass. In the first pass everything is in units of the query's scale.
//
// A candidate is 64 bits: its score as an unsigned number that rises with it, then the complement of its index, so that
// larger is better and no two are equal. Lists of a segment are in the order of indices.
#pragma once

#include "split.cuh"

namespace wals::cuda {

constexpr int kTopkQueries = 64, kTopkItems = 128, kTopkWarps = 8, kTopkThreads = 32 * kTopkWarps;
constexpr int kTopkMerged = 16;  // lists that a block merges
constexpr int kHistogram = 128;  // words of the counts of 256 digits, 16 bits each

using Key = unsigned long long;

__device__ __forceinline__ unsigned score_key(float score) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 becomes 0, which it is equal to
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float key_score(Key key) {
    const unsigned bits = unsigned(key >> 32);
    return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ Key make_key(float score, int32_t item) {
    return Key{score_key(score)} << 32 | unsigned(~item);
}
__device__ __forceinline__ int32_t key_item(Key key) {
    return int32_t(~unsigned(key));
}

/// Room of a list: what is kept, and at least as much again or two tiles, so that lists are cut rarely.
WALS_HOST_DEVICE constexpr int topk_capacity(int k) {
    const int more = k > 2 * kTopkItems ? k : 2 * kTopkItems;
    return (k + more + 31) / 32 * 32;
}

/// Vectors (n, P) as the kernels read them: each times a power of two, in two f16 parts.
struct SplitRows {
    uint16_t *hi, *lo;  // (n, P)
    float* unscale;     // (n): 1 / that power
    float* weight;      // (n): of items the norm, of queries bound N_q; infinite where there is no bound

    static int64_t bytes(int64_t n, int P) { return (n * (4 * P + 8) + 15) / 16 * 16; }
    static SplitRows at(void* memory, int64_t n, int P) {
        uint16_t* const hi = static_cast<uint16_t*>(memory);
        float* const unscale = reinterpret_cast<float*>(hi + 2 * n * P);
        return {hi, hi + n * P, unscale, unscale + n};
    }
    __host__ __device__ SplitRows from(int64_t row, int P) const {
        return {hi + row * P, lo + row * P, unscale + row, weight + row};
    }
};

/// out = x (n, D), each row divided by its norm if norms are given. One warp a row. Queries have `exact` (n), 1 where
/// there is no bound, and `bound`. Not yet run on a device.
__global__ void __launch_bounds__(kTopkThreads)
    split_rows_kernel(const float* x, int64_t n, int D, int P, const float* norms, SplitRows out, unsigned* exact,
                      float bound) {
    const int64_t row = int64_t{blockIdx.x} * kTopkWarps + warp_index();
    if (row >= n) return;
    const float* const from = x + row * D;
    const float norm = norms ? norms[row] : 1.0f;
    auto value = [&](int j) { return j < D ? from[j] / norm : 0.0f; };
    float most = 0, squares = 0;
    for (int j = lane_index(); j < D; j += 32) most = fmaxf(most, fabsf(value(j)));
    most = warp_reduce(most, Max());
    const float scale = scale_for(most);
    for (int j = 2 * lane_index(); j < P; j += 64) {
        const float a = scale * value(j), b = scale * value(j + 1);
        const Halves both = split(a, b);
        *reinterpret_cast<uint32_t*>(out.hi + row * P + j) = both.hi;
        *reinterpret_cast<uint32_t*>(out.lo + row * P + j) = both.lo;
        squares = fmaf(a, a, fmaf(b, b, squares));
    }
    squares = warp_reduce(squares, Sum());
    if (lane_index()) return;
    const bool bounded = squares == 0 || (most >= 0x1p-31f && most < 0x1p50f && squares < INFINITY);
    const float weight = bounded ? sqrtf(squares) * (exact ? bound : 1.0f / scale) : INFINITY;
    out.unscale[row] = 1.0f / scale;
    out.weight[row] = weight;
    if (exact) exact[row] = !(weight < INFINITY);
}

struct TopkLists {
    Key* keys;        // (B, n, capacity)
    int32_t* counts;  // (B, n)
    int n;
};
struct TopkProblem {
    int64_t n_queries, n_items;
    int P, k;
    int stages;  // 2 or 3: panels in shared memory
    SplitRows queries, items;
    const int64_t* excluded_ptr;  // (B + 1), or null
    const int32_t* excluded_idx;  // sorted within a row
    const uint32_t* permitted;    // a bit for each item, up to whole tiles; or null
    TopkLists lists;              // of segments
    unsigned* exact;              // (B): 1 where a query is left to the second pass
};

struct TopkMemory {
    static constexpr int kLines = kTopkQueries + kTopkItems, kPanel = 32 * kLines;
    uint16_t* panel;  // stages of 32 numbers a line: 32 columns of hi, or 16 of hi and of lo
    float *scores, *unscale, *weight, *threshold, *spread;
    unsigned* passed;  // a bit for each pair of a tile
    int* count;        // -1: nothing to be done
    unsigned* histogram;
    __host__ __device__ TopkMemory(Carver& carve, int stages) {
        scores = carve.take<float>(kTopkQueries * kTopkItems);
        unscale = carve.take<float>(kTopkItems);
        weight = carve.take<float>(kTopkItems);  // -inf: not permitted
        threshold = carve.take<float>(kTopkQueries);
        spread = carve.take<float>(kTopkQueries);  // weights of queries; in the second pass their unscale
        passed = carve.take<unsigned>(kTopkQueries * kTopkItems / 32);
        count = carve.take<int>(kTopkQueries);
        histogram = carve.take<unsigned>(kHistogram * kTopkWarps);
        panel = carve.take<uint16_t>(size_t(stages) * kPanel);  // last: the others' places are then constants
    }
    /// Eight numbers of a line. Neither eight lines nor neighbouring places of two lines meet in a bank.
    __device__ __forceinline__ static int place(int line, int eighth) {
        return 32 * line + 8 * (eighth ^ (line / 2 % 4));
    }
    /// Numbers [16 step, 16 step + 16) of 16 lines.
    __device__ __forceinline__ void fragment(uint32_t (&f)[4], int stage, int strip, int step) const {
        const int lane = lane_index();
        ldmatrix(f, panel + stage * kPanel + place(16 * strip + lane % 16, 2 * step + lane / 16));
    }
};

/// The k-th best of at least k keys, down to bit `lowest`; of the keys with the same bits, `left` are among the best k.
/// By a warp or a block, of at most 65,535 keys; each(visit) calls visit with a thread's keys; histogram (kHistogram,
/// shared).
template <int kThreads, class Each>
__device__ __forceinline__ Key kth_best(const Each& each, int k, int lowest, unsigned* histogram, int& left) {
    auto sync = [] {
        if constexpr (kThreads == 32)
            __syncwarp();
        else
            __syncthreads();
    };
    const int lane = lane_index();
    Key prefix = 0;
    left = k;
#pragma unroll 1
    for (int shift = 56; shift >= lowest; shift -= 8) {
        for (int i = kThreads == 32 ? lane : int(threadIdx.x); i < kHistogram; i += kThreads) histogram[i] = 0;
        sync();
        each([&](Key key) {
            const unsigned digit = unsigned(key >> shift) & 255u;
            if (shift == 56 || (key ^ prefix) >> (shift + 8) == 0)
                atomicAdd(histogram + digit / 2, digit % 2 ? 1u << 16 : 1u);
        });
        sync();
        // Lane l has bins 255 - 8 l and the seven below; `above` counts what is in better bins than its own.
        int own = 0;
        auto with = [&](int digit) { return int(histogram[digit / 2] >> (digit % 2 * 16) & 0xffffu); };
        for (int i = 0; i < 8; ++i) own += with(255 - 8 * lane - i);
        int above = own;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(kFullWarp, above, step);
            if (lane >= step) above += other;
        }
        above -= own;
        const unsigned here = __ballot_sync(kFullWarp, above < left && left <= above + own);
        int digit = 255 - 8 * lane;
        if (above < left && left <= above + own)
            for (; above + with(digit) < left; --digit) above += with(digit);
        const int source = __ffs(int(here)) - 1;
        left -= __shfl_sync(kFullWarp, above, source);
        prefix |= Key(unsigned(__shfl_sync(kFullWarp, digit, source))) << shift;
        sync();
    }
    return prefix;
}

/// The upper end of a candidate.
template <bool kExact>
__device__ __forceinline__ float upper_end(const TopkProblem& p, Key key, float spread) {
    return kExact ? key_score(key) : key_score(key) + 2 * spread * p.items.weight[key_item(key)];
}

/// Cuts a list of n > k to what may be among the best k, in order; returns how many these are. By one warp.
template <bool kExact>
__device__ __forceinline__ int cut_list(const TopkProblem& p, Key* list, int n, float spread, unsigned* histogram,
                                        float& threshold) {
    const int lane = lane_index();
    int left;
    auto each = [&](auto&& visit) {
        for (int i = lane; i < n; i += 32) visit(list[i]);
    };
    threshold = key_score(kth_best<32>(each, p.k, 32, histogram, left));
    int kept = 0, equal = 0;
    for (int i0 = 0; i0 < n; i0 += 32) {
        const bool real = i0 + lane < n;
        const Key key = real ? list[i0 + lane] : 0;
        const float high = real ? upper_end<kExact>(p, key, spread) : 0.0f;
        const unsigned ties = __ballot_sync(kFullWarp, real && key_score(key) == threshold), before = (1u << lane) - 1;
        // At the threshold: the better ones and those before it are k already.
        const bool is_late = high == threshold && equal + __popc(ties & before) >= left;
        const bool keep = real && !(high < threshold) && !is_late;
        const unsigned mask = __ballot_sync(kFullWarp, keep);
        __syncwarp();
        if (keep) list[kept + __popc(mask & before)] = key;
        kept += __popc(mask);
        equal += __popc(ties);
        __syncwarp();
    }
    return kept;
}

__device__ __forceinline__ bool is_permitted(const TopkProblem& p, int64_t item) {
    return item < p.n_items && (!p.permitted || (p.permitted[item / 32] >> (item % 32) & 1));
}

__device__ __forceinline__ bool is_excluded(const TopkProblem& p, int64_t query, int32_t item) {
    if (!p.excluded_ptr) return false;
    int64_t low = p.excluded_ptr[query], high = p.excluded_ptr[query + 1];
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        const int32_t at = p.excluded_idx[middle];
        if (at == item) return true;
        if (at < item)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/// Candidates among 64 queries (blockIdx.x) and a segment of the items (blockIdx.y), 128 items at a time: by one
/// product and its bound, or, of queries that were left, by their scores. A warp has 32 x 32 pairs of a tile, then
/// looks through eight queries of it. Later items lose ties, so "above the threshold" is the whole test. Tiles without
/// a permitted item are passed over, and of others what is not permitted is not read. Cost: 2 D flops a pair on tensor
/// cores (three times that in the second pass), 2 P bytes an item and block (4 P), and three instructions a pair.
/// Barriers: one a panel, after which the stage read two panels before is written again; one before and one after the
/// pairs of a tile are compared. Not yet run on a device.
template <bool kExact>
__global__ void __launch_bounds__(kTopkThreads, kExact ? 1 : 2) topk_kernel(TopkProblem p) {
    Carver carve(dynamic_smem());
    const TopkMemory m(carve, p.stages);
    constexpr int kColumns = kExact ? 16 : 32;  // of a panel
    const int t = int(threadIdx.x), lane = lane_index(), warp = warp_index(), capacity = topk_capacity(p.k);
    const int64_t query0 = int64_t{blockIdx.x} * kTopkQueries;
    const int64_t tiles = (p.n_items + kTopkItems - 1) / kTopkItems;
    const auto begin = unsigned(tiles * blockIdx.y / p.lists.n * kTopkItems);
    const auto end = unsigned(tiles * (blockIdx.y + 1) / p.lists.n * kTopkItems);
    auto list_of = [&](int q) { return (query0 + q) * p.lists.n + blockIdx.y; };
    bool any = false;
    for (int i = t; i < kTopkQueries; i += kTopkThreads) {
        const bool real = query0 + i < p.n_queries;
        m.spread[i] = real ? (kExact ? p.queries.unscale : p.queries.weight)[query0 + i] : 0.0f;
        any = real && (kExact ? p.exact[query0 + i] != 0 : m.spread[i] < INFINITY);
        m.threshold[i] = any ? -INFINITY : INFINITY;
        m.count[i] = any ? 0 : -1;
    }
    m.passed[t] = 0;
    static_assert(kTopkThreads == kTopkQueries * kTopkItems / 32, "a thread for each word");
    if (!__syncthreads_or(any)) return;

    auto next_tile = [&](unsigned tile) {
        for (; p.permitted && tile < end; tile += kTopkItems) {
            const uint4 bits = ld<uint4>(p.permitted + tile / 32);
            if (bits.x | bits.y | bits.z | bits.w) break;
        }
        return tile;
    };
    // Copies run p.stages - 1 panels ahead; of the last two groups one need not be there.
    const int line = t / 4, eighth = t % 4, panels = (p.P + kColumns - 1) / kColumns;
    unsigned next = next_tile(begin);
    int next_panel = 0, next_stage = 0;
    auto start_copies = [&] {
        if (next < end) {
            const int column = next_panel * kColumns + (kExact ? eighth % 2 : eighth) * 8;
            const bool is_low = kExact && eighth >= 2;
#pragma unroll
            for (int part = 0; part < TopkMemory::kLines / 64; ++part) {
                const int64_t row = part ? int64_t{next} + line + 64 * (part - 1) : query0 + line;
                const bool real = column < p.P && (part ? is_permitted(p, row) : row < p.n_queries);
                const SplitRows& from = part ? p.items : p.queries;
                cp_async(m.panel + next_stage * TopkMemory::kPanel + TopkMemory::place(line + 64 * part, eighth),
                         (is_low ? from.lo : from.hi) + (real ? row * p.P + column : 0), real);
            }
            if (++next_panel == panels) {
                next_panel = 0;
                next = next_tile(next + kTopkItems);
            }
            next_stage = next_stage + 1 < p.stages ? next_stage + 1 : 0;
        }
        cp_async_commit();
        if (p.stages == 2) cp_async_commit();
    };
    const unsigned first = next;
    for (int i = 1; i < p.stages; ++i) start_copies();
    int stage = 0;
    const bool is_real = query0 + 32 * (warp / 4) < p.n_queries;  // whether the warp has a query
#pragma unroll 1
    for (unsigned tile = first; tile < end; tile = next_tile(tile + kTopkItems)) {
        const bool has_item = t < kTopkItems && is_permitted(p, tile + unsigned(t));
        const float unscale = has_item ? p.items.unscale[tile + t] : 0.0f;
        const float weight = has_item ? p.items.weight[tile + t] : -INFINITY;
        float sum[2][2][2][4] = {};
#pragma unroll 1
        for (int c = 0; c < panels; ++c) {
            cp_async_wait<1>();
            __syncthreads();
            if (c == 0 && t < kTopkItems) {
                m.unscale[t] = unscale;
                m.weight[t] = weight;
            }
            start_copies();
            if (is_real) {
                if constexpr (kExact) {
                    Fragment q[2];
#pragma unroll
                    for (int step = 0; step < 2; ++step)
#pragma unroll
                        for (int i = 0; i < 2; ++i) m.fragment(step ? q[i].lo : q[i].hi, stage, warp / 4 * 2 + i, step);
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        Fragment y;
                        m.fragment(y.hi, stage, kTopkQueries / 16 + warp % 4 * 2 + j, 0);
                        m.fragment(y.lo, stage, kTopkQueries / 16 + warp % 4 * 2 + j, 1);
#pragma unroll
                        for (int i = 0; i < 2; ++i) add_product(sum[i][j], q[i], y);
                    }
                } else {
#pragma unroll
                    for (int step = 0; step < 2; ++step) {
                        uint32_t q[2][4];
                        m.fragment(q[0], stage, warp / 4 * 2, step);
                        m.fragment(q[1], stage, warp / 4 * 2 + 1, step);
#pragma unroll
                        for (int j = 0; j < 2; ++j) {
                            uint32_t y[4];
                            m.fragment(y, stage, kTopkQueries / 16 + warp % 4 * 2 + j, step);
#pragma unroll
                            for (int half = 0; half < 2; ++half)
#pragma unroll
                                for (int i = 0; i < 2; ++i)
                                    mma_f16(sum[i][j][half], q[i], {y[half], y[half + 2]}, sum[i][j][half]);
                        }
                    }
                }
            }
            stage = stage + 1 < p.stages ? stage + 1 : 0;
        }
        __syncthreads();
        if (is_real) {
            auto compare = [&](auto&& pass) {  // calls pass(q, y, lower end) for pairs that may be above the threshold
                const int own = opaque(t), q0 = own / 128 * 32 + own % 32 / 4, y0 = own / 32 % 4 * 32 + own % 4 * 2;
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int y = y0 + 16 * j + 8 * half;
                        const float2 u = ld<float2>(m.unscale + y), w = ld<float2>(m.weight + y);
#pragma unroll
#pragma unroll
                        for (int i = 0; i < 2; ++i)
#pragma unroll
                            for (int r = 0; r < 4; ++r) {
                                const int q = q0 + 16 * i + r / 2 * 8;
                                const float unit = r % 2 ? u.y : u.x, norm = r % 2 ? w.y : w.x;
                                const float spread = m.spread[q], threshold = m.threshold[q];
                                if constexpr (kExact) {
                                    const float score = sum[i][j][half][r] * spread * unit;
                                    if (norm >= 0 && score > threshold) pass(q, y + r % 2, score);
                                } else {
                                    const float s = sum[i][j][half][r] * unit, width = spread * norm;
                                    if (!(s + width <= threshold)) pass(q, y + r % 2, fmaxf(s - width, -INFINITY));
                                }
                            }
                    }
            };
            bool has_some = false;
            compare([&](int, int, float) { has_some = true; });
            if (has_some)
                compare([&](int q, int y, float low) {
                    const int pair = kTopkItems * q + y;
                    atomicOr(m.passed + pair / 32, 1u << (pair % 32));
                    m.scores[pair] = low;
                });
        }
        __syncthreads();
        const unsigned own = m.passed[t];  // lanes 4 i to 4 i + 3 have the tile of the warp's query i
        if (own) m.passed[t] = 0;
#pragma unroll 1
        for (unsigned words = __ballot_sync(kFullWarp, own != 0); words; words &= words - 1) {
            const int word = __ffs(int(words)) - 1, q = warp * (kTopkQueries / kTopkWarps) + word / 4;
            const int y = 32 * (word % 4) + lane;
            const unsigned bits = __shfl_sync(kFullWarp, own, word);
            int count = m.count[q];
            if (count < 0) continue;
            const int32_t item = int32_t(tile + y);
            const bool good = (bits >> lane & 1) && m.weight[y] >= 0 && !is_excluded(p, query0 + q, item);
            const unsigned mask = __ballot_sync(kFullWarp, good);
            Key* const list = p.lists.keys + list_of(q) * capacity;
            if (good) list[count + __popc(mask & ((1u << lane) - 1))] = make_key(m.scores[kTopkItems * q + y], item);
            count += __popc(mask);
            __syncwarp();
            if (count > capacity - 32) {
                float threshold;
                count = cut_list<kExact>(p, list, count, m.spread[q], m.histogram + kHistogram * warp, threshold);
                if (!kExact && count > capacity - kTopkItems) {
                    count = -1;
                    threshold = INFINITY;
                }
                if (lane == 0) m.threshold[q] = threshold;
            }
            if (lane == 0) m.count[q] = count;
            __syncwarp();
        }
    }
    cp_async_wait<0>();
    for (int i = 0; i < kTopkQueries / kTopkWarps; ++i) {
        const int q = warp * (kTopkQueries / kTopkWarps) + i;
        if (query0 + q >= p.n_queries) break;
        int count = m.count[q];
        float threshold;
        if (count > p.k)
            count = cut_list<kExact>(p, p.lists.keys + list_of(q) * capacity, count, m.spread[q],
                                     m.histogram + kHistogram * warp, threshold);
        if (lane == 0) {
            p.lists.counts[list_of(q)] = count;
            if (!kExact && count < 0) atomicOr(p.exact + query0 + q, 1u);
        }
    }
}

/// Gives candidates (n, shared) of a query their scores, with the bits of topk_kernel<true>; of those without one (NaN,
/// -inf) the key becomes 0. A warp takes eight at a time, as the right factor of mma, with the query in each row of the
/// left one. Gathers 4 P bytes a candidate.
__device__ __forceinline__ void rescore(const TopkProblem& p, int64_t query, Key* keys, int n) {
    const int lane = lane_index(), pair = lane % 4 * 2;
    const SplitRows q = p.queries.from(query, p.P);
    auto two = [](const uint16_t* at) { return *reinterpret_cast<const uint32_t*>(at); };
#pragma unroll 1
    for (int first = 8 * warp_index(); first < n; first += 8 * kTopkWarps) {
        const SplitRows y = p.items.from(key_item(keys[min(first + lane / 4, n - 1)]), p.P);
        float sum[2] = {};
#pragma unroll 2
        for (int j = pair; j < p.P; j += 16) {
            const uint32_t qh[2] = {two(q.hi + j), two(q.hi + j + 8)}, ql[2] = {two(q.lo + j), two(q.lo + j + 8)};
            const uint32_t hi[2] = {two(y.hi + j), two(y.hi + j + 8)}, lo[2] = {two(y.lo + j), two(y.lo + j + 8)};
            float product[4] = {};
            mma_f16(product, {ql[0], ql[0], ql[1], ql[1]}, hi, product);
            mma_f16(product, {qh[0], qh[0], qh[1], qh[1]}, lo, product);
            mma_f16(product, {qh[0], qh[0], qh[1], qh[1]}, hi, product);
            sum[0] += product[0];
            sum[1] += product[1];
        }
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int i = first + pair + r;
            if (lane >= 4 || i >= n) continue;
            const int32_t item = key_item(keys[i]);
            const float score = sum[r] * *q.unscale * p.items.unscale[item];
            keys[i] = score > -INFINITY ? make_key(score, item) : 0;
        }
    }
}

/// One list from kTopkMerged of a query's (blockIdx.x; those of blockIdx.y), or, where there is no place for it, the
/// result: ids and scores (B, k_out), best first, padded with -1 and -inf. Radix selection finds the k-th best; what
/// may be among the best k goes to shared memory, where the last merge scores and sorts it (bitonic).
/// Not yet run on a device.
template <bool kExact>
__global__ void __launch_bounds__(kTopkThreads)
    topk_merge_kernel(TopkProblem p, TopkLists from, TopkLists to, int64_t k_out, int32_t* ids, float* scores) {
    STATIC_SMEM(histogram, unsigned[kHistogram]);
    STATIC_SMEM(total, int[2]);  // candidates before and after
    const int64_t query = blockIdx.x;
    const int t = int(threadIdx.x), capacity = topk_capacity(p.k), begin = kTopkMerged * int(blockIdx.y);
    const int end = min(begin + kTopkMerged, from.n);
    Carver carve(dynamic_smem());
    Key* const keys = carve.take<Key>(size_t(2 * capacity));
    if (t < 2) total[t] = 0;
    // Blocks of this launch may mark the query, too.
    if (bool(__syncthreads_or(t == 0 && atomicOr(p.exact + query, 0u))) != kExact) return;
    if (t < end - begin) atomicAdd(total, from.counts[query * from.n + begin + t]);
    __syncthreads();
    auto each = [&](auto&& visit) {
#pragma unroll 1
        for (int l = begin + warp_index(); l < end; l += kTopkWarps) {
            const int64_t list = query * from.n + l;
            const int n = from.counts[list];
#pragma unroll 1
            for (int i = lane_index(); i < n; i += 32) visit(from.keys[list * capacity + i]);
        }
    };
    int left;
    const Key least = total[0] > p.k ? kth_best<kTopkThreads>(each, p.k, 0, histogram, left) : 0;
    const float threshold = key_score(least), spread = p.queries.weight[query];
    each([&](Key key) {
        const float high = upper_end<kExact>(p, key, spread);
        if (key < least && (high < threshold || high == key_score(key))) return;  // the latter: nothing is unknown
        const int place = atomicAdd(total + 1, 1);
        if (place < capacity) keys[place] = key;
    });
    __syncthreads();
    const int n = total[1];
    if (n > capacity) {
        if (t == 0) atomicOr(p.exact + query, 1u);
        return;
    }
    if (to.keys) {
        const int64_t list = query * to.n + blockIdx.y;
        for (int i = t; i < n; i += kTopkThreads) to.keys[list * capacity + i] = keys[i];
        if (t == 0) to.counts[list] = n;
        return;
    }
    if constexpr (!kExact) rescore(p, query, keys, n);
    int places = 1;
    while (places < n) places *= 2;
    for (int i = n + t; i < places; i += kTopkThreads) keys[i] = 0;
    __syncthreads();
    for (int size = 2; size <= places; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            for (int i = t; i < places / 2; i += kTopkThreads) {
                const int a = i / step * 2 * step + i % step, b = a + step;
                const bool falling = (a & size) == 0;
                const Key x = keys[a], y = keys[b];
                if ((x < y) == falling) {
                    keys[a] = y;
                    keys[b] = x;
                }
            }
            __syncthreads();
        }
    for (int64_t i = t; i < k_out; i += kTopkThreads) {
        const bool real = i < n && i < p.k && keys[i];
        ids[query * k_out + i] = real ? key_item(keys[i]) : -1;
        scores[query * k_out + i] = real ? key_score(keys[i]) : -INFINITY;
    }
}

}  // namespace wals::cuda
