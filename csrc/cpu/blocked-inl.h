// Gram update and Cholesky factorisation of systems too large for the caches: the tiles of tile-inl.h in blocks.
//
// The matrix lies in panel layout (tile-inl.h), M rows in column blocks of one vector; only tiles on and right of the
// diagonal are used. Three vectors of a slab of at most kSlab rows (48 KiB) stay in the nearest cache while the slab's
// other columns, kLeftRows at a time so that they stay in L2, pass by: memory is read once for every kLeftRows rows of
// the result, and each tile of the result is read and written once a slab, 2 kSlab flops for each of its elements.
// The factorisation is right-looking: of kSlab rows, the triangle on the diagonal is factored, the columns right of it
// are solved against it, three vectors at a time, and the rows are a slab that is subtracted from those below, as they
// lie.
#pragma once

#include "tile-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

constexpr int64_t kSlab = 256;      // rows of a panel, and of the factor, that are used together
constexpr int64_t kLeftRows = 512;  // rows of the result for which a slab's columns stay in L2

/// Rows from one column block of a matrix of M rows to the next. Where blocks lie a power of two apart, they share a
/// few sets of the caches.
constexpr int64_t blocked_capacity(int64_t M) {
    return M + 256 + 16;
}

/// The same for a panel of a slab.
constexpr int64_t kSlabCapacity = kSlab + 16;

/// out, tiles of rows i_begin.. on and right of the diagonal, += sum of p p' over panel rows [0, n_plus) - sum over
/// [n_plus, n_rows), of (at most kSlab rows, M). The tiles left of the diagonal next to it are left with rubbish.
template <class T>
static void add_gram_blocked(const Panel<T>& panel, int64_t M, int64_t n_plus, int64_t n_rows, const Panel<T>& out,
                             int64_t i_begin = 0) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int64_t blocks = M / W;
    for (int64_t first = i_begin; first < M; first += kLeftRows) {
        const int64_t last = first + kLeftRows < M ? first + kLeftRows : M;
        auto tiles = [&](auto nv, int64_t j) {
            constexpr int NV = decltype(nv)::value;
            const int64_t below = (j + NV) * W < last ? (j + NV) * W : last;
            const T* right[NV];
            T* sums[NV];
            TileStart<T, NV> from;
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) right[v] = panel.block(j + v);
            for (int64_t i0 = first; i0 < below; i0 += R) {
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) from.rows[v] = sums[v] = out.block(j + v) + i0 * W;
                sum_tile<T, NV>(sums, panel.block(i0 / W) + i0 % W, right, n_plus, n_rows, from, nullptr);
            }
        };
        int64_t j = first / W;
        for (; j + 3 <= blocks; j += 3) tiles(Count<3>{}, j);
        if (blocks - j == 2) tiles(Count<2>{}, j);
        if (blocks - j == 1) tiles(Count<1>{}, j);
    }
}

/// One tile of `factor_blocked`: rows i0.. of U in place of those of A, from which the slabs above `first` are
/// subtracted already. kFirst: holds the diagonal block.
template <class T, int NV, bool kFirst>
static inline __attribute__((always_inline)) int factor_tile_in_place(const Panel<T>& a, int64_t first, int64_t i0,
                                                                      int64_t j, const T* magnitude,
                                                                      DiagonalBlock<T>& d, T tolerance, T* x) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int lane = int(i0 % W);
    const T* right[NV];
    T* out[NV];
    TileStart<T, NV> from;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
        right[v] = a.block(j + v) + first * W;
        from.rows[v] = out[v] = a.block(j + v) + i0 * W;
    }
    if (i0 > first) sum_tile<T, NV>(out, a.block(i0 / W) + first * W + lane, right, 0, i0 - first, from, nullptr);
    Tile<T, NV> acc;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = load(out[v] + r * W);
    int bad = 0;
    if constexpr (kFirst) {
        T of_rows[R];
        for (int r = 0; r < R; ++r) of_rows[r] = magnitude[i0 + r];
        bad = factor_diagonal<T, NV>(acc, d, of_rows, lane, tolerance);
    } else {
        eliminate<T, NV>(acc, d, lane);
    }
    eliminate_right_sides<T, NV, kFirst>(acc, d, lane, i0, j * W, {x});
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out[v] + r * W, acc[r][v]);
    return bad;
}

/// The upper Cholesky factor of a (M, M), in its place; 1 / its diagonal to `inverse`; x (M) becomes U^-T x. A pivot is
/// judged by magnitude (M). M is whole vectors: callers pad with a diagonal of 1. Returns 0, or 1-based, the first
/// pivot not above tolerance * magnitude.
template <class T>
static int64_t factor_blocked(const Panel<T>& a, int64_t M, const T* magnitude, T* inverse, T tolerance, T* x) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    static_assert(W % R == 0 && kSlab % W == 0, "slabs are whole tiles");
    DiagonalBlock<T> d[kSlab / R];
    for (int64_t first = 0; first < M; first += kSlab) {
        const int64_t last = first + kSlab < M ? first + kSlab : M, own = last / W, blocks = M / W;
        for (int64_t i0 = first; i0 < last; i0 += R) {
            DiagonalBlock<T>& di = d[(i0 - first) / R];
            int64_t j = i0 / W;
            int bad;
#define WALS_FACTOR_TILE(NV, kFirst) factor_tile_in_place<T, NV, kFirst>(a, first, i0, j, magnitude, di, tolerance, x)
            if (own - j >= 3) {
                bad = WALS_FACTOR_TILE(3, true);
                j += 3;
            } else if (own - j == 2) {
                bad = WALS_FACTOR_TILE(2, true);
                j += 2;
            } else {
                bad = WALS_FACTOR_TILE(1, true);
                j += 1;
            }
            if (bad) return i0 + bad;
            for (; j + 3 <= own; j += 3) WALS_FACTOR_TILE(3, false);
            if (own - j == 2)
                WALS_FACTOR_TILE(2, false);
            else if (own - j == 1)
                WALS_FACTOR_TILE(1, false);
            for (int r = 0; r < R; ++r) inverse[i0 + r] = di.inverse[r];
        }
        for (int64_t j = own; j < blocks; j += 3)
            for (int64_t i0 = first; i0 < last; i0 += R) {
                DiagonalBlock<T>& di = d[(i0 - first) / R];
                if (blocks - j >= 3)
                    WALS_FACTOR_TILE(3, false);
                else if (blocks - j == 2)
                    WALS_FACTOR_TILE(2, false);
                else
                    WALS_FACTOR_TILE(1, false);
            }
#undef WALS_FACTOR_TILE
        add_gram_blocked(Panel<T>{a.data + first * W, a.capacity}, M, 0, last - first, a, last);
    }
    return 0;
}

/// Starts the sums of a system: zeros in all tiles that add_gram_blocked adds to, and the diagonal.
template <class T>
static void start_blocked(const Panel<T>& a, int64_t M, const T* diagonal) {
    constexpr int W = kWidth<T>;
    for (int64_t b = 0; b < M / W; ++b) {
        T* const block = a.block(b);
        const int64_t rows = (b + 3) * W < M ? (b + 3) * W : M;
        for (int64_t i = 0; i < rows; ++i) store(block + i * W, Vec<T>{});
        for (int l = 0; l < W; ++l) block[(b * W + l) * W + l] = diagonal[b * W + l];
    }
}

/// magnitude[i] += a[i, i].
template <class T>
static void add_diagonal(const Panel<T>& a, int64_t M, T* magnitude) {
    constexpr int W = kWidth<T>;
    for (int64_t i = 0; i < M; ++i) magnitude[i] += a.block(i / W)[i * W + i % W];
}

/// magnitude += the squares of panel rows [begin, end), by columns: what was subtracted from the diagonal.
template <class T>
static void add_squares(const Panel<T>& panel, int64_t M, int64_t begin, int64_t end, T* magnitude) {
    constexpr int W = kWidth<T>;
    for (int64_t j = 0; begin < end && j < M; j += W) {
        Vec<T> sum = load(magnitude + j);
        for (int64_t k = begin; k < end; ++k) {
            const Vec<T> p = load(panel.block(j / W) + k * W);
            sum += p * p;
        }
        store(magnitude + j, sum);
    }
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
