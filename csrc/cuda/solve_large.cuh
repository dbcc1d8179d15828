// Rows that need more than one block, or more than shared memory: sums of giant rows' slices in a workspace, and the
// solution of rows whose factor is there. D > 256, or more than limits::giant_entries entries.
#pragma once

#include "rows.cuh"

namespace wals::cuda {

using SliceShape = PanelShape<256, 16, 16>;  // a warp has 4 of the 64 tiles of a block

/// sum of a r r' and of rho r over slices, in the primal form. grid: (blocks of 128 x 128 on and below the diagonal,
/// slices). A warp owns 16 x 64 of its block; a block off the diagonal reads two stretches of columns.
/// Not yet run on a device.
__global__ void __launch_bounds__(SliceShape::kThreads, 1)
    gram_slices_kernel(RotatedRows p, const GramSlice* slices, float* workspace) {
    Carver carve(dynamic_smem());
    const PrimalMemory<SliceShape> m(carve);
    const GramSlice slice = slices[blockIdx.y];
    const TilePosition block = TilePosition::of(int(blockIdx.x));
    const int strips = p.P / 16, row0 = 8 * block.row, column0 = 8 * block.column;
    const bool on_diagonal = block.row == block.column;
    float most = 0;
    for (int j = int(threadIdx.x); j < p.P; j += SliceShape::kThreads) most = fmaxf(most, p.column_max[j]);
    most = block_reduce<SliceShape::kWarps>(most, Max(), m.scratch);
    const float bound = p.gram_bound[slice.row];
    if (threadIdx.x == 0) *m.scale = scale_for(most * sqrtf(fabsf(bound)));
    const StripPosition first{warp_index() / 2, warp_index() % 2 * 4 + (on_diagonal ? 0 : 8)};
    GramTiles<4, StripPosition> tiles(m.firsts, first, on_diagonal ? min(max(first.row - first.column + 1, 0), 4) : 4);
    const Columns columns = on_diagonal ? Columns(16 * row0, 128) : Columns(16 * row0, 128, 16 * column0, 128);
    primal_gram<SliceShape>(p, slice.begin, slice.end, columns, m.scale, bound < 0, nullptr, m.entries,
                            PanelMemory<SliceShape, false>{m.region}, tiles, m.rhs);
    const GramSlot slot(workspace, slice.slot, p.P);
    const float unscale = 1.0f / *m.scale;
    tiles.for_each_pair([&](auto at, int i, int j, float x, float y) {
        const int row = row0 + at.row, column = on_diagonal ? column0 + at.column : column0 + at.column - 8;
        if (row >= strips || column > row) return;
        st<float2>(slot.tiles + 256 * tile_index(row, column) + tile_place(i, j),
                   make_float2(x * unscale * unscale, y * unscale * unscale));
    });
    if (on_diagonal)
        for (int j = int(threadIdx.x); j < 128 && 16 * row0 + j < p.P; j += SliceShape::kThreads)
            slot.rhs[16 * row0 + j] = m.rhs[j];
}

/// Adds the slots of each row in order, of each so many floats. grid: (parts, rows).
__global__ void __launch_bounds__(256)
    sum_slices_kernel(const SlicedRow* rows, int64_t slot_size, int64_t summed, float* workspace) {
    const SlicedRow r = rows[blockIdx.y];
    float* const slot = workspace + int64_t{r.slot} * slot_size;
    for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < summed && r.n_slots > 1;
         i += int64_t{gridDim.x} * 256) {
        float sum = slot[i];
        for (int64_t s = 1; s < r.n_slots; ++s) sum += slot[s * slot_size + i];
        slot[i] = sum;
    }
}

/// How solve_large_kernel works: panels of 8 strips of columns, below them a strip of rows for each warp.
using LargeShape = PanelShape<256, 8, 16>;  // each of so few warps has registers for 8 tiles and what else it needs
constexpr int kPanel = 8, kStripsAhead = 2;
/// An inverse of a diagonal tile is about as small as L is large, 2^8; the tile before it about 2^16.
constexpr float kInverseScale = 512;

/// 63 KiB for 1,024 columns. Panel of the Gram; then strips of L on their way; then the tiles that are factored.
struct LargeMemory {
    static constexpr int kTiles = kPanel * (kPanel + 1) / 2;
    static constexpr int kPanelBytes = PanelMemory<LargeShape, false>::kBytes;
    static_assert(kPanelBytes >= 1024 * (kTiles + kPanel) && kPanelBytes >= 2048 * kStripsAhead * kPanel);
    unsigned char* region;
    float *scale, *v, *rhs, *diagonal, *scratch, *gram_scale;
    PanelEntries<LargeShape::kDepth>* entries;
    int *firsts, *bad;
    int* at;  // row and slot
    __host__ __device__ LargeMemory(Carver& carve, int P) {
        region = carve.take<unsigned char>(kPanelBytes);
        rhs = carve.take<float>(LargeShape::kMost);
        diagonal = carve.take<float>(16 * kPanel);
        scratch = carve.take<float>(LargeShape::kWarps);
        gram_scale = carve.take<float>(1);
        entries = carve.take<PanelEntries<LargeShape::kDepth>>(kPanelsAhead);
        firsts = carve.take<int>(LargeShape::kWarps);
        bad = carve.take<int>(1);
        at = carve.take<int>(2);
        scale = carve.take<float>(P);  // what depends on P last: the other places are constants
        v = carve.take<float>(P);
    }
    __device__ __forceinline__ float* tiles() const { return reinterpret_cast<float*>(region); }
};

/// The state of a block that solves a row; the steps of solve_large, each by the whole block.
struct LargeRow {
    static constexpr int kThreads = LargeShape::kThreads, kWarps = LargeShape::kWarps;
    const RotatedRows& p;
    const LargeMemory& m;
    float* workspace;

    // Read where needed: registers are scarce.
    __device__ __forceinline__ int64_t row() const { return m.at[0]; }
    __device__ __forceinline__ int strips() const { return p.P / 16; }
    __device__ __forceinline__ float* slot() const { return workspace + int64_t{m.at[1]} * GramSlot::floats(p.P); }
    __device__ __forceinline__ float* tile(int i, int j) const { return slot() + 256 * (i * (i + 1) / 2 + j); }
    __device__ __forceinline__ float* inverse() const { return tile(strips(), 0); }
    __device__ __forceinline__ const float* rhs() const { return inverse() + 256 * strips(); }

    /// Powers of two that make all diagonal elements of L about 2^8 at most, from a bound of the matrix's diagonal:
    /// what has been summed, or else the sum of |a| times the square of the column's largest.
    __device__ __forceinline__ void find_scales(bool is_summed) const {
        const int64_t begin = p.terms.row_ptr[row()], end = p.terms.row_ptr[row() + 1];
        float most = 0, all = 0;
        for (int j = int(threadIdx.x); j < p.P; j += kThreads) most = fmaxf(most, p.column_max[j]);
        for (int64_t e = begin + threadIdx.x; e < end && !is_summed; e += kThreads) all += fabsf(p.terms.gram(e));
        most = block_reduce<kWarps>(most, Max(), m.scratch);
        all = block_reduce<kWarps>(all, Sum(), m.scratch);
        if (threadIdx.x == 0) *m.gram_scale = scale_for(most * sqrtf(fabsf(p.gram_bound[row()])));
        for (int j = int(threadIdx.x); j < p.P; j += kThreads) {
            const float data = is_summed ? tile(j / 16, j / 16)[tile_place(j % 16, j % 16)] : 0.0f;
            const float root = sqrtf(is_summed ? data + base_at(p, row(), j) : base_at(p, row(), j));
            m.scale[j] = scale_for(root + sqrtf(all) * p.column_max[j]);
        }
        __syncthreads();
    }

    /// tiles = sums of a r r' times the scales of their rows and columns, for panel k0 and, unless null, strips from r0
    /// on below it; without the latter also m.diagonal and m.v.
    template <bool kSummed, class Tiles>
    __device__ __forceinline__ void sum(Tiles& tiles, int k0, int columns, int r0) const {
        float unscale = 1;
        if constexpr (kSummed) {
            __syncwarp();  // tiles.first()
        } else {
            const Columns from = r0 ? Columns(16 * k0, 16 * kPanel, 16 * r0, 16 * min(kWarps, strips() - r0))
                                    : Columns(16 * k0, 16 * columns);
            primal_gram<LargeShape>(p, p.terms.row_ptr[row()], p.terms.row_ptr[row() + 1], from, m.gram_scale,
                                    p.gram_bound[row()] < 0, nullptr, m.entries,
                                    PanelMemory<LargeShape, false>{m.region}, tiles, m.rhs);
            unscale = 1.0f / *m.gram_scale;
        }
        const int lane = opaque(lane_index());
        auto at = tiles.first();
#pragma unroll
        for (int n = 0; n < Tiles::kMost; ++n) {
            if (n >= tiles.count) break;
            const int row_strip = r0 ? r0 + at.row - kPanel : k0 + at.row;
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const int i = lane / 4 + 8 * (r / 2), j = 8 * half + 2 * (lane % 4) + r % 2;  // of the tile
                    float& x = tiles.sum[n][half][r];
                    if constexpr (kSummed) x = tile(row_strip, k0 + at.column)[tile_place(i, j)];
                    x *= unscale * m.scale[16 * row_strip + i];
                    x *= unscale * m.scale[16 * (k0 + at.column) + j];
                    if (!r0 && at.row == at.column && i == j) m.diagonal[16 * at.row + i] = x;
                }
            at.next();
        }
        static_assert(kThreads >= 16 * kPanel);
        if (const int j = int(threadIdx.x); j < 16 * columns && !r0)
            m.v[16 * k0 + j] =
                m.scale[16 * k0 + j] * ((kSummed ? rhs()[16 * k0 + j] : m.rhs[j]) + prior_pull(p, row(), 16 * k0 + j));
        __syncthreads();
    }

    /// add(j, the panel's strips of column j) for each column of L before k0: by cp.async, a few ahead.
    template <class Add>
    __device__ __forceinline__ void for_each_column(int k0, int columns, Add&& add) const {
        constexpr int kBuffer = 256 * kStripsAhead * kPanel;
        auto start_copies = [&](int j0) {
            for (int i = int(threadIdx.x); i < 64 * kStripsAhead * columns && j0 < k0; i += kThreads) {
                const int which = i / 64;
                cp_async(m.tiles() + kBuffer * (j0 / kStripsAhead % 2) + 4 * i,
                         tile(k0 + which % columns, j0 + which / columns) + i % 64 * 4);
            }
            cp_async_commit();
        };
        start_copies(0);
#pragma unroll 1
        for (int j0 = 0; j0 < k0; j0 += kStripsAhead) {
            start_copies(j0 + kStripsAhead);
            cp_async_wait<1>();
            __syncthreads();
#pragma unroll 1
            for (int j = j0; j < j0 + kStripsAhead; ++j)
                add(j, m.tiles() + kBuffer * (j0 / kStripsAhead % 2) + 256 * (j - j0) * columns);
            __syncthreads();
        }
    }

    /// The panel's own strips, in shared memory. The inverses of diagonal tiles go to the slot as they are; as
    /// fragments they take the place of the tiles. Returns the first bad pivot.
    template <bool kSummed>
    __device__ __forceinline__ int factor_panel(int k0, int columns) const {
        const int t = int(threadIdx.x), warp = warp_index();
        TriangleTiles<Shape<16 * kPanel, kWarps>> tiles(m.firsts, columns);
        sum<kSummed>(tiles, k0, columns, 0);
        float2 dot = make_float2(0, 0);
        for_each_column(k0, columns, [&](int j, const float* strips_of) {
            auto at = tiles.first();
            int loaded = -1;
            Fragment left;
#pragma unroll
            for (int n = 0; n < tiles.kMost; ++n) {
                if (n >= tiles.count) break;
                if (at.row != loaded) {
                    loaded = at.row;
                    left = load_fragment(strips_of + 256 * at.row);
                    negate(left);
                }
                add_product(tiles.sum[n], left, load_fragment(strips_of + 256 * at.column));
                at.next();
            }
            if (warp < columns) {
                const float2 part = tile_times(load_fragment(strips_of + 256 * warp), m.v + 16 * j);
                dot.x += part.x;
                dot.y += part.y;
            }
        });
        dot.x = warp_reduce<4>(dot.x, Sum());
        dot.y = warp_reduce<4>(dot.y, Sum());
        if (warp < columns && lane_index() % 4 == 0) {
            m.v[16 * (k0 + warp) + lane_index() / 4] -= dot.x;
            m.v[16 * (k0 + warp) + lane_index() / 4 + 8] -= dot.y;
        }
        store_matrix(tiles, m.tiles(), 1.0f, 1.0f, nullptr);
        if (t == 0) *m.bad = 0;
        __syncthreads();
        if (const int j = t; j < 16 * columns) {
            const float scale = m.scale[16 * k0 + j], base = base_at(p, row(), 16 * k0 + j) * scale * scale;
            m.tiles()[256 * tile_index(j / 16, j / 16) + tile_place(j % 16, j % 16)] += base;
            m.diagonal[j] += base;
        }
        __syncthreads();
        float* const inverses = m.tiles() + 256 * LargeMemory::kTiles;
        factor<kWarps>(Factor{m.tiles(), inverses, columns, 1.0f}, m.diagonal, float(limits::pivot_tolerance_float32),
                       m.v + 16 * k0, m.bad);
        for (int i = t; i < 64 * columns; i += kThreads) st4(inverse() + 256 * k0 + 4 * i, ld4(inverses + 4 * i));
        if (warp < columns) {
            const int lane = opaque(lane_index());  // or places would be kept in registers from row to row
            Fragment f;
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                const int i = lane / 4 + 8 * (r % 2), j = 2 * (lane % 4) + 8 * (r / 2);
                const float* const from = inverses + 256 * warp;
                const Halves x =
                    split(from[tile_place(j, i)] * kInverseScale, from[tile_place(j + 1, i)] * kInverseScale);
                f.hi[r] = x.hi;
                f.lo[r] = x.lo;
            }
            store_fragment(m.tiles() + 256 * tile_index(warp, warp), f);
        }
        __syncthreads();
        for (int q = warp; q < int(tile_index(columns, 0)); q += kWarps) {
            const TilePosition at = TilePosition::of(q);
            store_fragment(tile(k0 + at.row, k0 + at.column), load_fragment(m.tiles() + 256 * q));
        }
        return *m.bad ? 16 * k0 + *m.bad : 0;
    }

    /// L of strips below the panel's own, one for each warp, which needs no other: what is left of each tile times the
    /// inverse, then from those to its right.
    template <bool kSummed>
    __device__ __forceinline__ void eliminate_strips(int k0, int r0) const {
        const int warp = warp_index(), strip = r0 + warp;
        GramTiles<kPanel, StripPosition> tiles(m.firsts, {kPanel + warp, 0}, strip < strips() ? kPanel : 0);
        sum<kSummed>(tiles, k0, kPanel, r0);
        Fragment ahead;
        if (k0 > 0 && strip < strips()) ahead = load_fragment(tile(strip, 0));
        for_each_column(k0, kPanel, [&](int j, const float* strips_of) {
            if (strip >= strips()) return;
            Fragment left = ahead;
            if (j + 1 < k0) ahead = load_fragment(tile(strip, j + 1));
            negate(left);
#pragma unroll
            for (int n = 0; n < kPanel; ++n) add_product(tiles.sum[n], left, load_fragment(strips_of + 256 * n));
        });
        for (int q = warp; q < LargeMemory::kTiles; q += kWarps) {
            const TilePosition at = TilePosition::of(q);
            store_fragment(m.tiles() + 256 * q, load_fragment(tile(k0 + at.row, k0 + at.column)));
        }
        __syncthreads();
        if (strip >= strips()) return;
#pragma unroll 1
        for (int n = 0; n < kPanel; ++n) {  // tile n is in the first place, the others move up: unrolled, too many
            float x[2][4] = {};             // fragments would be loaded ahead of their time
            add_product(x, fragment_of(tiles.sum[0], 1 / kInverseScale),
                        load_fragment(m.tiles() + 256 * tile_index(n, n)));
            Fragment l = fragment_of(x, 1.0f);
            store_fragment(tile(strip, k0 + n), l);
            negate(l);
#pragma unroll
            for (int place = 1; place < kPanel; ++place) {
#pragma unroll
                for (int r = 0; r < 8; ++r) tiles.sum[place - 1][r / 4][r % 4] = tiles.sum[place][r / 4][r % 4];
                if (n + place < kPanel)
                    add_product(tiles.sum[place - 1], l, load_fragment(m.tiles() + 256 * tile_index(n + place, n)));
            }
        }
    }

    /// Status; m.tiles() times m.scale is the solution.
    template <bool kSummed>
    __device__ __forceinline__ int solve() const {
        find_scales(kSummed);
#pragma unroll 1
        for (int k0 = 0; k0 < strips(); k0 += kPanel) {
            if (const int status = factor_panel<kSummed>(k0, min(kPanel, strips() - k0))) return status;
            __syncthreads();
#pragma unroll 1
            for (int r0 = k0 + kPanel; r0 < strips(); r0 += kWarps) {
                eliminate_strips<kSummed>(k0, r0);
                __syncthreads();
            }
        }
        solve_transposed<kWarps>(Factor{slot(), inverse(), strips(), 1.0f}, m.v, m.tiles());
        return 0;
    }
};

/// Rows of any D <= limits::most_device_factors in the primal form, a block a row; blocks take the rows in order. A
/// panel of 128 columns at a time is summed in registers, reduced by the columns before it and eliminated, so that of a
/// matrix only L is in the workspace: a slot for each block. Where kSummed, `sliced` has rows whose sums are in their
/// slots already. Cost: as the primal form; about D / 170 gathers of n D floats (L2), D^3 / 384 floats of L for the
/// panels' sums. Not yet run on a device.
template <bool kSummed>
__global__ void __launch_bounds__(LargeShape::kThreads, 1)
    solve_large_kernel(RotatedRows p, const int32_t* rows, const SlicedRow* sliced, unsigned n_rows, float* workspace) {
    Carver carve(dynamic_smem());
    const LargeMemory m(carve, p.P);
    auto* const taken = reinterpret_cast<unsigned*>(GramSlot(workspace, 0, p.P).more);
    const LargeRow large{p, m, workspace};
    for (;;) {
        if (threadIdx.x == 0) {
            const unsigned next = atomicAdd(taken, 1u);
            m.at[0] = next >= n_rows ? -1 : kSummed ? sliced[next].row : rows[next];
            m.at[1] = kSummed && next < n_rows ? sliced[next].slot : int(blockIdx.x);
        }
        __syncthreads();
        if (m.at[0] < 0) return;
        const int status = large.solve<kSummed>();
        finish_row<LargeShape::kWarps>(p, large.row(), status, m.scratch,
                                       [&](int j) { return m.tiles()[j] * m.scale[j]; });
        __syncthreads();
    }
}

}  // namespace wals::cuda
