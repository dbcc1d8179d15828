// Gram matrices of a row's entries on tensor cores.
//
//   primal   out (M, M) = sum over entries of a r r'           M columns of the table, depth: the row's entries
//   dual     out (M, M) = S S', S = diag(sqrt|a|) R B^-1/2     M entries, depth: the table's columns
//
// Both run over panels of kDepth. A panel's table rows come by cp.async, one panel ahead, as float32 into `raw`; each
// thread then scales and splits what it copied itself (no barrier in between) into the panel proper, hi and lo, from
// where ldmatrix makes fragments. Its stride is an odd number of 16-byte units, so ldmatrix has no bank conflicts.
// Only 16 x 16 tiles on and below the diagonal are formed; a warp's tiles are neighbours in the order (0,0) (1,0) (1,1)
// (2,0) ... and share their strips of rows.
//
// mma adds up with less care than a float32 addition: it cuts addends off. So 16 entries at a time are summed from
// zero, the small products first, and then added to the row's sum in float32, rounded to nearest: what is cut off stays
// the same share of the sum, however long the row (docs/gpu.md, "Accuracy under the coarsest tensor core").
#pragma once

#include "split.cuh"

namespace wals::cuda {

constexpr int kDepth = limits::panel_depth;  // entries (primal) or columns (dual) of a panel

constexpr int warps_for(int most) {
    return most <= 32 ? 2 : most <= 64 ? 4 : most <= 128 ? 8 : 12;
}

/// How a block works on matrices of at most Most rows. Registers are what limits blocks: 8 for each tile of a warp, and
/// about 65 others. 256 rows take 12 warps of 12 tiles: 16 warps of 9 would be left 128 registers each, which is too
/// few.
template <int Most, int Warps = warps_for(Most)>
struct Shape {
    static constexpr int kMost = Most, kWarps = Warps, kThreads = 32 * Warps;
    static constexpr int kTiles = Most / 16 * (Most / 16 + 1) / 2;
    static constexpr int kTilesPerWarp = (kTiles + kWarps - 1) / kWarps;
    static constexpr int kPieces =
        (8 * Most + kThreads - 1) / kThreads;    // 16-byte pieces of a panel that a thread moves
    static constexpr int kDepth = cuda::kDepth;  // of a panel
    static constexpr bool kHoldsMatrix = true;   // in shared memory; else in a workspace
    /// Blocks on an SM that the kernels are compiled for.
    static constexpr int kBlocks = Most <= 32 ? 10 : Most <= 64 ? 5 : Most <= 128 ? 2 : 1;
};

/// A block that has a panel in shared memory, and its matrix in a workspace.
template <int Most, int Warps, int Depth>
struct PanelShape : Shape<Most, Warps> {
    static constexpr int kDepth = Depth;
    static constexpr bool kHoldsMatrix = false;
};

/// The panel's place in shared memory; `Lines` are table rows, of which a panel reads `Width` columns.
template <class S, bool kDual>
struct PanelMemory {
    static constexpr int kDepth = S::kDepth;
    static constexpr int kLines = kDual ? S::kMost : kDepth;
    static constexpr int kWidth = kDual ? kDepth : S::kMost;
    static constexpr int kStride = kWidth + 8;                                       // f16 elements
    static constexpr int kRawBytes = kLines * kWidth * int(sizeof(float));           // one of two
    static constexpr int kHalfBytes = kLines * kStride * int(sizeof(uint16_t));      // hi, and the same for lo
    static constexpr int kSumBytes = kDual ? 0 : S::kThreads * int(sizeof(float4));  // each thread's part of rhs
    static constexpr int kBytes = 2 * kRawBytes + 2 * kHalfBytes + kSumBytes;

    unsigned char* memory;
    __device__ __forceinline__ float* raw(int buffer) const {
        return reinterpret_cast<float*>(memory + buffer * kRawBytes);
    }
    __device__ __forceinline__ uint16_t* half(int lo) const {
        return reinterpret_cast<uint16_t*>(memory + 2 * kRawBytes + lo * kHalfBytes);
    }
    __device__ __forceinline__ float* sums() const { return reinterpret_cast<float*>(memory + kBytes - kSumBytes); }
    __device__ __forceinline__ void put(int line, int column, float4 x) const {
        const Halves a = split(x.x, x.y), b = split(x.z, x.w);
        st<uint2>(half(0) + line * kStride + column, make_uint2(a.hi, b.hi));
        st<uint2>(half(1) + line * kStride + column, make_uint2(a.lo, b.lo));
    }
    /// Tile of strip `strip` (16 rows of the result) at depths [16 step, 16 step + 16).
    __device__ __forceinline__ Fragment fragment(int strip, int step) const {
        const int lane = lane_index(), low = lane % 8, first = lane / 8 % 2, second = lane / 16;
        const int place = kDual ? (16 * strip + low + 8 * first) * kStride + 16 * step + 8 * second
                                : (16 * step + low + 8 * second) * kStride + 16 * strip + 8 * first;
        Fragment f;
        if constexpr (kDual) {
            ldmatrix(f.hi, half(0) + place);
            ldmatrix(f.lo, half(1) + place);
        } else {
            ldmatrix_trans(f.hi, half(0) + place);
            ldmatrix_trans(f.lo, half(1) + place);
        }
        return f;
    }
};

/// Lines 0 to 7 in another order, in each eight of them: of a panel of 40 f16 a line, half a warp writes two, and lines
/// that are four apart do not meet in a bank.
__device__ __forceinline__ int apart(int line) {
    return (line & ~5) | (line & 1) << 2 | (line & 4) >> 2;
}

/// Tiles side by side.
struct StripPosition {
    int row, column;
    __device__ __forceinline__ void next() { ++column; }
};
__host__ __device__ __forceinline__ int64_t tile_index(int64_t row, int64_t column) {
    return row * (row + 1) / 2 + column;
}

/// The tiles of the result that a warp owns: `count` of them from a first one on, kept in shared memory: read anew for
/// each panel, it cannot be unrolled into the addresses of all tiles, which would take more registers than the sums.
template <int kMostTiles, class Position>
struct GramTiles {
    static constexpr int kMost = kMostTiles;
    float sum[kMostTiles][2][4] = {};
    int* first_at;
    int count;

    /// firsts: (warps, shared); the next barrier makes it known.
    __device__ __forceinline__ GramTiles(int* firsts, Position first, int n)
        : first_at(firsts + warp_index()), count(n) {
        if (lane_index() == 0) *first_at = first.row << 16 | first.column;
    }
    __device__ __forceinline__ Position first() const { return {*first_at >> 16, *first_at & 0xffff}; }

    /// Calls put(position, i, j, value, value to the right of it) for pairs of elements (i, j) of each tile.
    template <class Put>
    __device__ __forceinline__ void for_each_pair(Put&& put) const {
        Position at = first();
#pragma unroll
        for (int n = 0; n < kMostTiles; ++n) {
            if (n >= count) break;
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int r = 0; r < 4; r += 2)
                    put(at, sum_row(r), sum_column(half, r), sum[n][half][r], sum[n][half][r + 1]);
            at.next();
        }
    }
};

/// A warp's part of a lower triangle of `strips` strips: equal, consecutive parts.
template <class S>
struct TriangleTiles : GramTiles<S::kTilesPerWarp, TilePosition> {
    __device__ __forceinline__ TriangleTiles(int* firsts, int strips)
        : GramTiles<S::kTilesPerWarp, TilePosition>(firsts, TilePosition::of(begin(warp_index(), strips)),
                                                    begin(warp_index() + 1, strips) - begin(warp_index(), strips)) {}

   private:
    __device__ __forceinline__ static int begin(int warp, int strips) {
        const int all = strips * (strips + 1) / 2;
        return min(warp * ((all + S::kWarps - 1) / S::kWarps), all);
    }
};

/// Signs of the depths of a panel, for fragments on the left of a product: registers 0, 1 and 2, 3 flip by one mask
/// each.
struct SignMask {
    uint32_t near, far;
    __device__ __forceinline__ SignMask(const float* weight, int step) {
        const float* w = weight + 16 * step + 2 * (lane_index() % 4);
        near = (__float_as_uint(w[0]) >> 16 & 0x8000u) | (__float_as_uint(w[1]) & 0x80000000u);
        far = (__float_as_uint(w[8]) >> 16 & 0x8000u) | (__float_as_uint(w[9]) & 0x80000000u);
    }
    __device__ __forceinline__ void flip(Fragment& f) const {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const uint32_t mask = r < 2 ? near : far;
            f.hi[r] ^= mask;
            f.lo[r] ^= mask;
        }
    }
};

/// Adds the product of the panel with itself to the warp's tiles. signs: (S::kDepth) weights whose sign bits count, or
/// null.
template <class S, bool kDual, class Tiles>
__device__ __forceinline__ void add_panel(const PanelMemory<S, kDual>& panel, const float* signs, Tiles& tiles) {
#pragma unroll 1
    for (int step = 0; step < S::kDepth / 16; ++step) {
        auto at = tiles.first();
        int loaded = -1;  // strip that `left` holds
        Fragment left;
#pragma unroll
        for (int n = 0; n < Tiles::kMost; ++n) {
            if (n >= tiles.count) break;
            if (at.row != loaded) {
                loaded = at.row;
                left = panel.fragment(at.row, step);
                if (signs) SignMask(signs, step).flip(left);
            }
            add_product(tiles.sum[n], left, panel.fragment(at.column, step));
            at.next();
        }
    }
}

/// Which columns of the table a panel holds: [first, first + split) and, from place `split` on, [second, ...); `count`
/// (padded) in all. Columns from P on are zero.
struct Columns {
    int first, count, second, split;
    __device__ __forceinline__ Columns(int begin, int n) : first(begin), count(n), second(0), split(n) {}
    __device__ __forceinline__ Columns(int begin, int n, int begin2, int n2)
        : first(begin), count(n + n2), second(begin2), split(n) {}
    __device__ __forceinline__ int source(int place) const {
        return place < split ? first + place : second + place - split;
    }
};
/// What a panel of the primal form needs to know of its entries, three panels in turn.
template <int Depth>
struct PanelEntries {
    int32_t table_row[Depth];  // -1 beyond the last entry
    float weight[Depth];       // signed sqrt|a|, scaled
    float rho[Depth];
};
constexpr int kPanelsAhead = 3;

/// Primal: tiles += the row's entries [begin, end) over `columns`, their values times `*scale` (shared); rhs (count,
/// shared) = sum of rho r. rho: the entries' right-hand coefficients, or residual[e] where that is given.
///
/// entries (kPanelsAhead, shared). While panel c is converted and multiplied, the copies of c + 1 are under way and the
/// entries of c + 2 are looked up. Barriers: each panel has one between writing and reading, one after; all threads
/// return after a barrier, so the panel's memory is free.
template <class S, class Tiles>
__device__ __forceinline__ void primal_gram(const RotatedRows& p, int64_t begin, int64_t end, Columns columns,
                                            const float* scale, bool any_negative, const float* residual,
                                            PanelEntries<S::kDepth>* entries, const PanelMemory<S, false>& panel,
                                            Tiles& tiles, float* rhs) {
    constexpr int kDepth = S::kDepth;
    const int t = int(threadIdx.x), width = columns.count, groups = width / 4, together = S::kThreads / groups;
    const int line0 = t / groups, place = 4 * (t % groups), column = columns.source(place);
    const int lines = line0 < together ? kDepth : 0;  // threads that are left over move nothing
    const int n = int(end - begin);
    auto look_up = [&](int first, PanelEntries<kDepth>& to) {
        if (t >= kDepth) return;
        const bool real = first + t < n;
        const int64_t e = begin + (first + t);
        const float a = real ? p.terms.gram(e) : 0.0f;
        to.table_row[t] = real ? p.terms.col_idx[e] : -1;
        to.weight[t] = copysignf(sqrtf(fabsf(a)) * *scale, a);
        to.rho[t] = real ? (residual ? residual[e] : p.terms.rhs[e]) : 0.0f;
    };
    auto start_copies = [&](const PanelEntries<kDepth>& from, float* raw) {
#pragma unroll 1
        for (int line = line0; line < lines; line += together) {
            const int table_row = from.table_row[line];
            const bool real = table_row >= 0 && column < p.P;
            cp_async(raw + line * width + place, p.table + (real ? int64_t{table_row} * p.P + column : 0), real);
        }
        cp_async_commit();
    };
    __syncthreads();  // scale
    look_up(0, entries[0]);
    look_up(kDepth, entries[1]);
    __syncthreads();
    start_copies(entries[0], panel.raw(0));
    st4(panel.sums() + 4 * t, make_float4(0, 0, 0, 0));
    int buffer = 0, now = 0;  // raw buffer and entries of this panel
#pragma unroll 1
    for (int first = 0; first < n; first += kDepth) {
        const int next = now + 1 < kPanelsAhead ? now + 1 : 0, after = next + 1 < kPanelsAhead ? next + 1 : 0;
        start_copies(entries[next], panel.raw(1 - buffer));
        look_up(first + 2 * kDepth, entries[after]);
        cp_async_wait<1>();
        const float* const raw = panel.raw(buffer);
        float4 sum = ld4(panel.sums() + 4 * t);  // of this thread's entries; not kept in registers, which are scarce
#pragma unroll 1
        for (int line = line0; line < lines; line += together) {
            const float4 r = ld4(raw + line * width + place);
            const float weight = fabsf(entries[now].weight[line]), rho = entries[now].rho[line];
            panel.put(line, place, make_float4(weight * r.x, weight * r.y, weight * r.z, weight * r.w));
            add_scaled(sum, rho, r);
        }
        st4(panel.sums() + 4 * t, sum);
        __syncthreads();
        add_panel(panel, any_negative ? entries[now].weight : nullptr, tiles);
        __syncthreads();
        buffer = 1 - buffer;
        now = next;
    }
    cp_async_wait<0>();
    __syncthreads();
    for (int j = t; j < width; j += S::kThreads) {
        float total = 0;
        for (int i = 0; i < together; ++i) total += panel.sums()[i * width + j];
        rhs[j] = total;
    }
    __syncthreads();
}

/// Dual: tiles += S S' for n entries. table_row (n, shared); entry_weight (kMost, shared): sqrt|a| times the scale, 0
/// beyond n; base_scale (P, shared). Where shift (P) is given, dots (kMost, shared) = S shift, times the scale.
/// Barriers as in primal_gram.
template <class S, class Tiles>
__device__ __forceinline__ void dual_gram(const RotatedRows& p, int n, const int32_t* table_row,
                                          const float* entry_weight, const float* base_scale, const float* shift,
                                          float* dots, const PanelMemory<S, true>& panel, Tiles& tiles) {
    constexpr int kGroups = kDepth / 4, kTogether = S::kThreads / kGroups;
    const int t = int(threadIdx.x), line0 = apart(t / kGroups), column0 = t % kGroups * 4, lines = (n + 15) / 16 * 16;
    float dot[S::kPieces] = {};
    auto start_copies = [&](int c) {
        const int column = c * kDepth + column0;
#pragma unroll 1
        for (int line = line0; line < lines; line += kTogether) {
            const bool real = line < n && column < p.P;
            cp_async(panel.raw(c % 2) + line * kDepth + column0,
                     p.table + (real ? int64_t{table_row[line]} * p.P + column : 0), real);
        }
        cp_async_commit();
    };
    const int panels = (p.P + kDepth - 1) / kDepth;
    start_copies(0);
#pragma unroll 1
    for (int c = 0; c < panels; ++c) {
        start_copies(c + 1);
        cp_async_wait<1>();
        const int column = c * kDepth + column0;
        const bool real = column < p.P;
        const float4 zero = make_float4(0, 0, 0, 0);
        const float4 b = real ? ld4(base_scale + column) : zero, q = real && shift ? ld4(shift + column) : zero;
#pragma unroll
        for (int i = 0; i < S::kPieces; ++i) {
            const int line = line0 + i * kTogether;
            if (line >= lines) break;
            const float4 r = ld4(panel.raw(c % 2) + line * kDepth + column0);
            const float w = entry_weight[line];
            const float4 s = make_float4(w * (b.x * r.x), w * (b.y * r.y), w * (b.z * r.z), w * (b.w * r.w));
            panel.put(line, column0, s);
            if (shift) dot[i] += s.x * q.x + s.y * q.y + s.z * q.z + s.w * q.w;
        }
        __syncthreads();
        add_panel(panel, nullptr, tiles);
        __syncthreads();
    }
    cp_async_wait<0>();
    __syncthreads();
    if (!shift) return;
#pragma unroll
    for (int i = 0; i < S::kPieces; ++i) {
        const float sum = warp_reduce<kGroups>(dot[i], Sum());
        const int line = line0 + i * kTogether;
        if (t % kGroups == 0 && line < lines) dots[line] = sum;
    }
    __syncthreads();
}

}  // namespace wals::cuda
