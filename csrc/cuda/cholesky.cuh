// Blocked Cholesky factorisation of a symmetric matrix in 16 x 16 tiles, and the two triangular solves.
//
// The matrix is its lower triangle of tiles, 256 floats each, in the order of tile_index, a tile's elements in that of
// tile_place; in shared or global memory.
// Left-looking: a column of tiles is first reduced by all columns before it (tensor cores, float32-accurate as in
// split.cuh; its sums stay in registers) and then eliminated. Finished tiles are kept as f16 pairs in fragment order,
// in the place of their floats: they are read as often as the matrix has columns and never need a conversion again. The
// right-hand side goes along as one more row, so the forward solve is free.
#pragma once

#include "panel.cuh"

namespace wals::cuda {

/// A warp factors a 16 x 16 tile and takes 16 more rows along: lane r < 16 holds row r of the tile, lane 16 + r another
/// row; on return they hold the rows of L, and the others' rows times L'^-1. What lanes r < 16 hold right of the
/// diagonal takes part, harmlessly, and is worth nothing. Returns 0, or j + 1 for the first pivot below tolerance *
/// diagonal[j].
__device__ __forceinline__ int eliminate(float (&row)[16], const float* diagonal, float tolerance) {
    int bad = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const float pivot = __shfl_sync(kFullWarp, row[j], j);
        if (!(pivot > tolerance * diagonal[j]) && bad == 0) bad = j + 1;
        row[j] *= rsqrtf(pivot);
#pragma unroll
        for (int k = j + 1; k < 16; ++k) row[k] -= row[j] * __shfl_sync(kFullWarp, row[j], k);
    }
    return bad;
}

/// The matrix L of n strips, and what belongs to it.
struct Factor {
    float* tiles;    // (n (n + 1) / 2 tiles): the matrix, then L below the diagonal tiles, times `scale`
    float* inverse;  // (n tiles): inverse transposed of L's diagonal tiles
    int n;
    float scale;

    __device__ __forceinline__ float* tile(int row, int column) const { return tiles + 256 * tile_index(row, column); }
};

/// Row sums of a tile times y (16), for rows g and g + 8 of lane 4 g + c; in all four lanes of a row.
__device__ __forceinline__ float2 tile_times(const Fragment& f, const float* y) {
    const int c = 2 * (lane_index() % 4);
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const float2 l = join(f.hi[r], f.lo[r]);
        const float part = l.x * y[c + r / 2 * 8] + l.y * y[c + r / 2 * 8 + 1];
        (r % 2 ? sum.y : sum.x) += part;
    }
    return make_float2(sum.x, sum.y);
}

/// Factors in place; v (16 n, shared): the right-hand side b, on return L^-1 b. diagonal (16 n): the matrix's own.
/// bad (shared, 0 before): the first pivot, from 1, that kept less than `tolerance` of its diagonal.
/// Barriers: after a column is reduced, and after it is eliminated; the last one is the function's end.
template <int kWarps>
__device__ __forceinline__ void factor(const Factor& m, const float* diagonal, float tolerance, float* v, int* bad) {
    const float unscale = 1.0f / m.scale;
#pragma unroll 1
    for (int k = 0; k < m.n; ++k) {
#pragma unroll 1
        for (int i = k + warp_index(); k > 0 && i <= m.n; i += kWarps) {
            if (i == m.n) {  // the right-hand side: v_k -= sum over j of L(k, j) v_j
                float2 sum = make_float2(0, 0);
                for (int j = 0; j < k; ++j) {
                    const float2 part = tile_times(load_fragment(m.tile(k, j)), v + 16 * j);
                    sum.x += part.x;
                    sum.y += part.y;
                }
                sum.x = warp_reduce<4>(sum.x, Sum());
                sum.y = warp_reduce<4>(sum.y, Sum());
                const int lane = lane_index();
                if (lane % 4 == 0) {
                    v[16 * k + lane / 4] -= sum.x * unscale;
                    v[16 * k + lane / 4 + 8] -= sum.y * unscale;
                }
                break;
            }
            float sum[2][4] = {};
#pragma unroll 1
            for (int j = 0; j < k; ++j) add_product(sum, load_fragment(m.tile(i, j)), load_fragment(m.tile(k, j)));
            float* const tile = m.tile(i, k);
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int r = 0; r < 4; r += 2) {
                    float* const at = tile + tile_place(sum_row(r), sum_column(half, r));
                    float2 x = ld<float2>(at);
                    x.x -= sum[half][r] * unscale * unscale;
                    x.y -= sum[half][r + 1] * unscale * unscale;
                    st<float2>(at, x);
                }
        }
        __syncthreads();
#pragma unroll 1
        for (int i = k + 1 + warp_index(); i <= m.n; i += kWarps) {
            const int lane = opaque(lane_index());  // places in tiles would take a dozen registers
            const bool is_identity = i == m.n;
            float row[16];
            const float* const from = m.tile(lane < 16 || is_identity ? k : i, k);
#pragma unroll
            for (int c = 0; c < 16; c += 4) {
                const float4 x = ld4(from + tile_place(lane % 16, c));
                row[c] = x.x, row[c + 1] = x.y, row[c + 2] = x.z, row[c + 3] = x.w;
            }
            if (is_identity && lane >= 16) {
#pragma unroll
                for (int c = 0; c < 16; ++c) row[c] = c == lane - 16 ? 1.0f : 0.0f;
            }
            __syncwarp();
            const int first_bad = eliminate(row, diagonal + 16 * k, tolerance);
            if (!is_identity) {
                if (lane >= 16) {
                    uint32_t* const out = reinterpret_cast<uint32_t*>(m.tile(i, k));
#pragma unroll
                    for (int pair = 0; pair < 8; ++pair) {
                        const Halves l = split(row[2 * pair] * m.scale, row[2 * pair + 1] * m.scale);
                        out[pair_place(lane - 16, pair)] = l.hi;
                        out[pair_place(lane - 16, pair) + 128] = l.lo;
                    }
                }
                continue;
            }
            float* const inverse = m.inverse + 256 * k;
            if (lane >= 16) {
#pragma unroll
                for (int c = 0; c < 16; c += 4)
                    st4(inverse + tile_place(lane - 16, c), make_float4(row[c], row[c + 1], row[c + 2], row[c + 3]));
            }
            __syncwarp();
            float y = 0;  // element lane % 16 of L(k, k)^-1 v_k; each half of the warp sums every other term
#pragma unroll
            for (int pair = 0; pair < 8; ++pair) {
                const int r = 2 * pair + lane / 16;
                y += inverse[tile_place(r, lane % 16)] * v[16 * k + r];
            }
            y += __shfl_xor_sync(kFullWarp, y, 16);
            __syncwarp();
            if (lane < 16) v[16 * k + lane] = y;
            if (lane == 0 && first_bad && *bad == 0) *bad = 16 * k + first_bad;
        }
        __syncthreads();
    }
}

/// out (16 n, shared) = L'^-1 v; v is used up. Each warp solves the diagonal tile for itself, which saves a barrier.
template <int kWarps>
__device__ __forceinline__ void solve_transposed(const Factor& m, float* v, float* out) {
    const int lane = lane_index();
    const float unscale = 1.0f / m.scale;
#pragma unroll 1
    for (int k = m.n - 1; k >= 0; --k) {
        float x = 0;  // element lane % 16; each half of the warp sums eight terms
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int c = lane / 16 * 8 + 4 * i;
            const float4 l = ld4(m.inverse + 256 * k + tile_place(lane % 16, c)), y = ld4(v + 16 * k + c);
            x += l.x * y.x + l.y * y.y + l.z * y.z + l.w * y.w;
        }
        x += __shfl_xor_sync(kFullWarp, x, 16);
        if (warp_index() == 0 && lane < 16) out[16 * k + lane] = x;
        const float near = __shfl_sync(kFullWarp, x, lane / 4) * unscale;
        const float far = __shfl_sync(kFullWarp, x, lane / 4 + 8) * unscale;
        for (int j = warp_index(); j < k; j += kWarps) {
            const Fragment f = load_fragment(m.tile(k, j));
            float sum[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 a = join(f.hi[2 * half], f.lo[2 * half]), b = join(f.hi[2 * half + 1], f.lo[2 * half + 1]);
                sum[2 * half] = a.x * near + b.x * far;
                sum[2 * half + 1] = a.y * near + b.y * far;
            }
#pragma unroll
            for (int s = 0; s < 4; ++s)
#pragma unroll
                for (int step = 4; step <= 16; step *= 2) sum[s] += __shfl_xor_sync(kFullWarp, sum[s], step);
            if (lane < 4) {
                float* const to = v + 16 * j + 2 * lane;
                to[0] -= sum[0];
                to[1] -= sum[1];
                to[8] -= sum[2];
                to[9] -= sum[3];
            }
        }
        __syncthreads();
    }
}

}  // namespace wals::cuda
