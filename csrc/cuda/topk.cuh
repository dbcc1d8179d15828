// Top-k by dot product, fused: scores live in registers and one shared tile, and only what beats a query's k-th best so
// far is ever written (reference.topk). Order of results: score down, then index up (common/topk_order.h).
//
// A candidate is 64 bits: its score as an unsigned number that rises with it, then the complement of its index, so that
// larger is better and no two are equal. Lists are in the order of indices until the last sort.
#pragma once

#include "panel.cuh"

namespace wals::cuda {

constexpr int kTopkQueries = 64, kTopkItems = 128, kTopkWarps = 8, kTopkThreads = 32 * kTopkWarps;
constexpr int kMostSorted = 4096;  // candidates of a query in the last sort
static_assert(kMostSorted >= limits::most_results, "a list of results is sorted at once");

using Key = unsigned long long;

__device__ __forceinline__ unsigned score_key(float score) {
    const unsigned bits = __float_as_uint(score + 0.0f);  // -0 becomes 0, which it is equal to
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float key_score(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/// Room of a list: what is kept, and at least as much again or two tiles, so that lists are cut rarely.
WALS_HOST_DEVICE constexpr int topk_capacity(int k) {
    const int more = k > 2 * kTopkItems ? k : 2 * kTopkItems;
    return (k + more + 31) / 32 * 32;
}

/// out (n): a power of two for each row of x (n, P) that brings its largest |value| near 2^8. One warp a row.
__global__ void __launch_bounds__(32) row_scale_kernel(const float* x, int P, float* out) {
    const int64_t row = blockIdx.x;
    float most = 0;
    for (int j = lane_index(); j < P; j += 32) most = fmaxf(most, fabsf(x[row * P + j]));
    most = warp_reduce(most, Max());
    if (lane_index() == 0) out[row] = scale_for(most);
}

struct TopkProblem {
    int64_t n_queries, n_items;
    int P, k, segments;
    const float *queries, *items;           // (B, P), (I, P)
    const float *query_scale, *item_scale;  // (B), (I)
    const int64_t* excluded_ptr;            // (B + 1), or null
    const int32_t* excluded_idx;            // sorted within a row
    Key* lists;                             // (B, segments, capacity)
    int32_t* counts;                        // (B, segments)
};

template <int Depth>
struct TopkMemory {
    static constexpr int kDepth = Depth;
    static constexpr int kLines = kTopkQueries + kTopkItems, kStride = kDepth + 8, kScoreStride = kTopkItems + 4;
    static constexpr int kRaw = kLines * kDepth;
    static constexpr int kScores = kTopkQueries * kScoreStride;
    float *raw, *scale, *threshold;
    uint16_t* half;
    int *count, *histogram;
    __host__ __device__ explicit TopkMemory(Carver& carve) {
        raw = carve.take<float>(2 * kRaw > kScores ? 2 * kRaw
                                                   : kScores);  // copies of two panels, then the scores of a tile
        half = carve.take<uint16_t>(2 * kLines * kStride);
        scale = carve.take<float>(kLines);
        threshold = carve.take<float>(kTopkQueries);
        count = carve.take<int>(kTopkQueries);
        histogram = carve.take<int>(256 * kTopkWarps);
    }
    __device__ __forceinline__ Fragment fragment(int strip, int step) const {
        const int lane = lane_index();
        const int place = (16 * strip + lane % 8 + lane / 8 % 2 * 8) * kStride + 16 * step + lane / 16 * 8;
        Fragment f;
        ldmatrix<4>(f.hi, half + place);
        ldmatrix<4>(f.lo, half + kLines * kStride + place);
        return f;
    }
};

/// Cuts a list of n to its best k, in order; returns the score of the worst kept. By one warp; histogram (256, shared).
/// Radix selection: four passes find the k-th best score byte by byte, a fifth moves what is kept.
__device__ __forceinline__ float keep_best(Key* list, int n, int k, int* histogram) {
    const int lane = lane_index();
    unsigned prefix = 0;
    int left = k;  // of the keys that share the prefix, how many are kept
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = lane; i < 256; i += 32) histogram[i] = 0;
        __syncwarp();
        for (int i = lane; i < n; i += 32) {
            const unsigned key = unsigned(list[i] >> 32);
            if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))
                atomicAdd(histogram + (key >> shift & 255u), 1);
        }
        __syncwarp();
        // Lane l has bins 255 - 8 l and the seven below; `above` counts what is in better bins than its own.
        int own = 0;
        for (int i = 0; i < 8; ++i) own += histogram[255 - 8 * lane - i];
        int above = own;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(kFullWarp, above, step);
            if (lane >= step) above += other;
        }
        above -= own;
        const unsigned here = __ballot_sync(kFullWarp, above < left && left <= above + own);
        int digit = 255 - 8 * lane;
        if (above < left && left <= above + own)
            for (; above + histogram[digit] < left; --digit) above += histogram[digit];
        const int source = __ffs(int(here)) - 1;
        left -= __shfl_sync(kFullWarp, above, source);
        prefix |= unsigned(__shfl_sync(kFullWarp, digit, source)) << shift;
        __syncwarp();
    }
    int kept = 0, equal = 0;
    for (int i0 = 0; i0 < n; i0 += 32) {
        const Key key = i0 + lane < n ? list[i0 + lane] : 0;
        const unsigned score = unsigned(key >> 32);
        const unsigned ties = __ballot_sync(kFullWarp, i0 + lane < n && score == prefix), before = (1u << lane) - 1;
        const bool keep =
            i0 + lane < n && (score > prefix || (score == prefix && equal + __popc(ties & before) < left));
        const unsigned mask = __ballot_sync(kFullWarp, keep);
        __syncwarp();
        if (keep) list[kept + __popc(mask & before)] = key;
        kept += __popc(mask);
        equal += __popc(ties);
        __syncwarp();
    }
    return key_score(prefix);
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

/// Scores of 64 queries (blockIdx.x) against a segment of the items (blockIdx.y), 128 items at a time. A warp has 32 x
/// 32 scores of a tile, then looks through eight queries of it. Later items lose ties, so "above the threshold" is the
/// whole test. Cost: 2 D flops a pair, three times that on tensor cores; one vote for each query and 32 items.
/// Barriers: panels as in dual_gram; around the scores, which share their place with the copies.
/// Panels of a depth of 16 instead of 32 take 60 KiB instead of 87. Not yet run on a device.
template <int Depth>
__global__ void __launch_bounds__(kTopkThreads, Depth == 32 ? 2 : 1) topk_kernel(TopkProblem p) {
    Carver carve(dynamic_smem());
    using Memory = TopkMemory<Depth>;
    constexpr int kDepth = Depth;
    const Memory m(carve);
    const int t = int(threadIdx.x), lane = lane_index(), warp = warp_index(), capacity = topk_capacity(p.k);
    const int64_t query0 = int64_t{blockIdx.x} * kTopkQueries;
    const int64_t segment_begin = p.n_items * blockIdx.y / p.segments,
                  segment_end = p.n_items * (blockIdx.y + 1) / p.segments;
    auto list_of = [&](int q) { return ((query0 + q) * p.segments + blockIdx.y); };
    for (int i = t; i < kTopkQueries; i += kTopkThreads) {
        m.threshold[i] = -INFINITY;
        m.count[i] = 0;
        m.scale[i] = query0 + i < p.n_queries ? p.query_scale[query0 + i] : 1.0f;
    }
    const int line0 = apart(t / (kDepth / 4)), column0 = t % (kDepth / 4) * 4, panels = (p.P + kDepth - 1) / kDepth;
    for (int64_t item0 = segment_begin; item0 < segment_end; item0 += kTopkItems) {
        for (int i = t; i < kTopkItems; i += kTopkThreads)
            m.scale[kTopkQueries + i] = item0 + i < segment_end ? p.item_scale[item0 + i] : 1.0f;
        auto start_copies = [&](int c) {
            const int column = c * kDepth + column0;
#pragma unroll 1
            for (int line = line0; line < Memory::kLines; line += kTopkThreads / (kDepth / 4)) {
                const bool is_query = line < kTopkQueries;
                const int64_t row = is_query ? query0 + line : item0 + line - kTopkQueries;
                const bool real = column < p.P && row < (is_query ? p.n_queries : segment_end);
                const float* const from = is_query ? p.queries : p.items;
                cp_async<16>(m.raw + c % 2 * Memory::kRaw + line * kDepth + column0,
                             from + (real ? row * p.P + column : 0), real ? 16 : 0);
            }
            cp_async_commit();
        };
        float sum[2][2][2][4] = {};
        start_copies(0);
        __syncthreads();  // scales
#pragma unroll 1
        for (int c = 0; c < panels; ++c) {
            start_copies(c + 1);
            cp_async_wait<1>();
#pragma unroll 2
            for (int line = line0; line < Memory::kLines; line += kTopkThreads / (kDepth / 4)) {
                const float4 x = ld4(m.raw + c % 2 * Memory::kRaw + line * kDepth + column0);
                const float s = m.scale[line];
                const Halves a = split(s * x.x, s * x.y), b = split(s * x.z, s * x.w);
                uint16_t* const to = m.half + line * Memory::kStride + column0;
                st<uint2>(to, make_uint2(a.hi, b.hi));
                st<uint2>(to + Memory::kLines * Memory::kStride, make_uint2(a.lo, b.lo));
            }
            __syncthreads();
#pragma unroll 1
            for (int step = 0; step < kDepth / 16; ++step) {
                const Fragment q[2] = {m.fragment(warp / 4 * 2, step), m.fragment(warp / 4 * 2 + 1, step)};
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const Fragment y = m.fragment(kTopkQueries / 16 + warp % 4 * 2 + j, step);
#pragma unroll
                    for (int i = 0; i < 2; ++i) add_product(sum[i][j], q[i], y);
                }
            }
            __syncthreads();
        }
        cp_async_wait<0>();
        __syncthreads();
        float* const scores = m.raw;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half)
#pragma unroll
                    for (int r = 0; r < 4; r += 2) {
                        const int q = 16 * (warp / 4 * 2 + i) + sum_row(r);
                        const int y = 16 * (warp % 4 * 2 + j) + sum_column(half, r);
                        const float unscale = 1.0f / m.scale[q];
                        st<float2>(scores + q * Memory::kScoreStride + y,
                                   make_float2(sum[i][j][half][r] * unscale / m.scale[kTopkQueries + y],
                                               sum[i][j][half][r + 1] * unscale / m.scale[kTopkQueries + y + 1]));
                    }
        __syncthreads();
        for (int i = 0; i < kTopkQueries / kTopkWarps; ++i) {
            const int q = warp * (kTopkQueries / kTopkWarps) + i;
            if (query0 + q >= p.n_queries) break;
            float threshold = m.threshold[q];
            int count = m.count[q];
            Key* const list = p.lists + list_of(q) * capacity;
#pragma unroll 1
            for (int y = lane; y < kTopkItems; y += 32) {
                const float score = scores[q * Memory::kScoreStride + y];
                bool good = item0 + y < segment_end && score > threshold;
                if (!__any_sync(kFullWarp, good)) continue;
                const int32_t item = int32_t(item0 + y);
                good = good && !is_excluded(p, query0 + q, item);
                const unsigned mask = __ballot_sync(kFullWarp, good);
                if (good)
                    list[count + __popc(mask & ((1u << lane) - 1))] = Key{score_key(score)} << 32 | unsigned(~item);
                count += __popc(mask);
                __syncwarp();
                if (count > capacity - 32) {
                    threshold = keep_best(list, count, p.k, m.histogram + 256 * warp);
                    count = p.k;
                }
            }
            __syncwarp();  // all lanes have read threshold and count
            if (lane == 0) {
                m.threshold[q] = threshold;
                m.count[q] = count;
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < kTopkQueries / kTopkWarps; ++i) {
        const int q = warp * (kTopkQueries / kTopkWarps) + i;
        if (query0 + q >= p.n_queries) break;
        int count = m.count[q];
        if (count > p.k) {
            keep_best(p.lists + list_of(q) * capacity, count, p.k, m.histogram + 256 * warp);
            count = p.k;
        }
        if (lane == 0) p.counts[list_of(q)] = count;
    }
}

/// ids and scores (B, k_out) from the lists, best first, padded with -1 and -inf. One block a query; bitonic sort in
/// shared memory of the power of two that holds all segments' candidates.
__global__ void __launch_bounds__(kTopkThreads)
    topk_sort_kernel(TopkProblem p, int places, int64_t k_out, int32_t* ids, float* scores) {
    Carver carve(dynamic_smem());
    Key* const keys = carve.take<Key>(size_t(places));
    const int64_t query = blockIdx.x;
    const int t = int(threadIdx.x), capacity = topk_capacity(p.k);
    int filled = 0;
    for (int s = 0; s < p.segments; ++s) {
        const int64_t list = query * p.segments + s;
        const int n = p.counts[list];
        for (int i = t; i < n; i += kTopkThreads) keys[filled + i] = p.lists[list * capacity + i];
        filled += n;
    }
    for (int i = filled + t; i < places; i += kTopkThreads) keys[i] = 0;
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
        const bool real = i < filled && i < p.k;
        ids[query * k_out + i] = real ? int32_t(~unsigned(keys[i])) : -1;
        scores[query * k_out + i] = real ? key_score(unsigned(keys[i] >> 32)) : -INFINITY;
    }
}

}  // namespace wals::cuda
