// What the exact and the iterative kernels share: parts of a row's system, and its solution in the primal form.
#pragma once

#include "cholesky.cuh"

namespace wals::cuda {

/// put(j, sum over i < n of weight(i) r_ij) for every column j < P, r_i the table row of entry begin + i.
/// scratch: (4 kThreads, shared). Two barriers for each 4 kThreads columns, the last at the end.
template <int kThreads, class Weight, class Put>
__device__ __forceinline__ void weighted_sum(const RotatedRows& p, int64_t begin, int64_t n, Weight&& weight,
                                             float* scratch, Put&& put) {
    const int t = int(threadIdx.x), all = p.P / 4;
    for (int group0 = 0; group0 < all; group0 += kThreads) {
        const int groups = min(all - group0, kThreads), together = kThreads / groups;
        const int line0 = t / groups, group = t % groups;
        float4 sum = make_float4(0, 0, 0, 0);
        if (line0 < together) {
            const float* const table = p.table + 4 * (group0 + group);
#pragma unroll 4
            for (int64_t i = line0; i < n; i += together) {
                const float4 r = ld4(table + int64_t{p.terms.col_idx[begin + i]} * p.P);
                add_scaled(sum, weight(i), r);
            }
            st4(scratch + 4 * t, sum);
        }
        __syncthreads();
        for (int j = t; j < 4 * groups; j += kThreads) {
            float total = 0;
            for (int i = 0; i < together; ++i) total += scratch[i * 4 * groups + j];
            put(4 * group0 + j, total);
        }
        __syncthreads();
    }
}

__device__ __forceinline__ double wide_base_at(const RotatedRows& p, int64_t row, int j) {
    return double(p.terms.background[row]) * p.spectrum[j] + double(p.terms.ridge[row]);
}
__device__ __forceinline__ float base_at(const RotatedRows& p, int64_t row, int j) {
    return j < p.D ? float(wide_base_at(p, row, j)) : 1.0f;
}
__device__ __forceinline__ float prior_pull(const RotatedRows& p, int64_t row, int j) {
    return p.prior ? p.terms.ridge[row] * p.prior[row * p.P + j] : 0.0f;
}

/// The block's threads write value(j) to the row's z and its status: `status`, or -1 where a value is not finite.
template <int kWarps, class Value>
__device__ __forceinline__ void finish_row(const RotatedRows& p, int64_t row, int status, float* scratch,
                                           Value&& value) {
    float check = 0;
    for (int j = int(threadIdx.x); j < p.P; j += 32 * kWarps) {
        const float z = j < p.D ? value(j) : 0.0f;
        p.z[row * p.P + j] = z;
        check += not_finite(z);
    }
    check = block_reduce<kWarps>(check, Sum(), scratch);
    if (threadIdx.x == 0) p.status[row] = status ? status : check == 0 ? 0 : -1;
}

/// Shared memory of a row whose matrix has at most S::kMost columns. The panel and the matrix share their place: sums
/// are in registers while there is a panel.
template <class S, bool kDual>
struct MatrixMemory {
    static constexpr int kTileBytes = S::kHoldsMatrix ? (S::kTiles + S::kMost / 16) * 1024 : 0;
    static constexpr int kPanelBytes = PanelMemory<S, kDual>::kBytes;
    unsigned char* region;
    float *rhs, *diagonal, *out, *scratch;
    int *firsts, *bad;
    __host__ __device__ MatrixMemory(Carver& carve) {
        region = carve.take<unsigned char>(kTileBytes > kPanelBytes ? kTileBytes : kPanelBytes);
        rhs = carve.take<float>(S::kMost);
        diagonal = carve.take<float>(S::kMost);
        out = carve.take<float>(S::kMost);
        scratch = carve.take<float>(S::kWarps);
        firsts = carve.take<int>(S::kWarps);
        bad = carve.take<int>(1);
    }
    __device__ __forceinline__ float* tiles() const { return reinterpret_cast<float*>(region); }
    __device__ __forceinline__ float* inverse() const { return tiles() + 256 * S::kTiles; }
};

/// In the primal form: 56 KiB for 128 columns, 156 KiB for 256. Of a PanelShape, the panel alone: 60 KiB for 256
/// columns at a depth of 16.
template <class S>
struct PrimalMemory : MatrixMemory<S, false> {
    float* scale;
    PanelEntries<S::kDepth>* entries;
    __host__ __device__ PrimalMemory(Carver& carve) : MatrixMemory<S, false>(carve) {
        entries = carve.take<PanelEntries<S::kDepth>>(kPanelsAhead);
        scale = carve.take<float>(1);
    }
};

/// A slot of a workspace, of a system of P columns: the tiles of its matrix, the inverses of the diagonal tiles, the
/// right-hand side; and P more: of the first slot of all, how many rows blocks have taken, of a row's first, the last
/// subspace step.
struct GramSlot {
    float *tiles, *inverse, *rhs, *more;
    WALS_HOST_DEVICE static constexpr int64_t tile_floats(int64_t P) { return P / 16 * (P / 16 + 1) / 2 * 256; }
    WALS_HOST_DEVICE static constexpr int64_t floats(int64_t P) { return tile_floats(P) + 18 * P; }
    WALS_HOST_DEVICE GramSlot(float* workspace, int64_t slot, int P)
        : tiles(workspace + slot * floats(P)), inverse(tiles + tile_floats(P)), rhs(inverse + 16 * P), more(rhs + P) {}
};

/// Writes the tiles to `out`, 256 floats each: value * factor, on the diagonal plus diagonal[i], which becomes the sum,
/// unless it is null.
template <class Tiles>
__device__ __forceinline__ void store_matrix(const Tiles& tiles, float* out, float unscale, float sign,
                                             float* diagonal) {
    tiles.for_each_pair([&](auto at, int i, int j, float x, float y) {
        float2 v = make_float2(x * unscale * unscale * sign, y * unscale * unscale * sign);
        if (diagonal && at.row == at.column && i / 2 == j / 2) {
            float& d = diagonal[16 * at.row + i];
            if (i == j)
                d = v.x += d;
            else
                d = v.y += d;
        }
        st<float2>(out + 256 * tile_index(at.row, at.column) + tile_place(i, j), v);
    });
}

/// Largest value of diagonal (n, shared; without the padding, which is 1), and from it the scale of the factor: no
/// element of L is above its square root.
template <int kWarps>
__device__ __forceinline__ float factor_scale(const float* diagonal, int n, float* scratch) {
    float most = 0;
    for (int j = int(threadIdx.x); j < n; j += 32 * kWarps) most = fmaxf(most, diagonal[j]);
    return scale_for(sqrtf(block_reduce<kWarps>(most, Max(), scratch)));
}

/// m.out = A^-1 m.rhs, which is used up, for the matrix in `tiles` (strips) with diagonal m.diagonal, of which the
/// first `real` columns are no padding; *m.bad is 0. Returns the status.
template <int kWarps, class Memory>
__device__ __forceinline__ int solve_matrix(float* tiles, float* inverse, int strips, int real, const Memory& m) {
    const Factor f{tiles, inverse, strips, factor_scale<kWarps>(m.diagonal, real, m.scratch)};
    factor<kWarps>(f, m.diagonal, float(limits::pivot_tolerance_float32), m.rhs, m.bad);
    solve_transposed<kWarps>(f, m.rhs, m.out);
    return *m.bad;
}

/// Sums of a r r', times *m.scale squared, and of rho r (m.rhs) over entries [begin, end) of the row and columns
/// [first, first + count); residual as in primal_gram.
template <class S>
__device__ __forceinline__ TriangleTiles<S> sum_primal(const RotatedRows& p, int64_t row, int64_t begin, int64_t end,
                                                       int first, int count, const float* residual,
                                                       const PrimalMemory<S>& m) {
    const int t = int(threadIdx.x), width = int(padded(count));
    float most = 0;
    for (int j = t; j < width; j += S::kThreads) most = fmaxf(most, p.column_max[first + j]);
    most = block_reduce<S::kWarps>(most, Max(), m.scratch);
    if (t == 0) *m.scale = scale_for(most * sqrtf(fabsf(p.gram_bound[row])));
    TriangleTiles<S> tiles(m.firsts, width / 16);
    primal_gram<S>(p, begin, end, Columns(first, width), m.scale, p.gram_bound[row] < 0, residual, m.entries,
                   PanelMemory<S, false>{m.region}, tiles, m.rhs);
    return tiles;
}

/// The row's system over columns [first, first + count): m.diagonal holds B (1 on padding), constant(j) is added to the
/// right-hand side. Returns the status; m.out is the solution. residual as in primal_gram.
template <class S, class Constant>
__device__ __forceinline__ int solve_primal(const RotatedRows& p, int64_t row, int first, int count,
                                            const float* residual, const PrimalMemory<S>& m, Constant&& constant) {
    const int t = int(threadIdx.x), width = int(padded(count));
    const TriangleTiles<S> tiles =
        sum_primal(p, row, p.terms.row_ptr[row], p.terms.row_ptr[row + 1], first, count, residual, m);
    store_matrix(tiles, m.tiles(), 1.0f / *m.scale, 1.0f, m.diagonal);
    for (int j = t; j < width; j += S::kThreads) m.rhs[j] += constant(j);
    if (t == 0) *m.bad = 0;
    __syncthreads();
    return solve_matrix<S::kWarps>(m.tiles(), m.inverse(), width / 16, min(count, p.D - first), m);
}

}  // namespace wals::cuda
