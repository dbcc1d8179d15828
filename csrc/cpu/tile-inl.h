// The register tile: Gram update, blocked Cholesky and triangular solves, all on one panel layout.
//
// A panel stores a (K, M) matrix k-major in column blocks of one vector: element (k, j) lies at
//   panel[(j / W) * capacity * W + k * W + j % W],       W = lanes of a vector.
// A tile of C = P' P then needs, per k, W-wide contiguous loads on one side and broadcasts on the other, both
// streaming forward through memory. The rows of the Cholesky factor U (A = U' U) are appended below the panel's
// own rows, so that the left-looking update of A is the same loop as the Gram update, only subtracted: each tile of
// the system is accumulated in registers from base, panel and factor, solved against the diagonal block in
// registers, and stored once.
#pragma once

#include "simd-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

template <class T>
constexpr int kTileRows = WALS_ROWS_PER_TILE < kWidth<T> ? WALS_ROWS_PER_TILE : kWidth<T>;

template <class T>
struct Panel {
    T* data;
    int64_t capacity;  // rows that a column block has room for
    T* block(int64_t j) const { return data + j * capacity * kWidth<T>; }
};

template <int N>
struct Count {
    static constexpr int value = N;
};

template <class T, int NV>
using Tile = Vec<T>[kTileRows<T>][NV];

/// Rows of a table that are packed next, given by their indices, to be fetched to L2 a cache line at a time.
struct Upcoming {
    const int32_t *at = nullptr, *end = nullptr;
    const char* table = nullptr;
    int64_t stride = 0, bytes = 0, line = 0;  // of a row: distance, what is fetched of it, what has been
    void fetch_line() {
        __builtin_prefetch(table + *at * stride + line, /*write=*/0, /*locality=*/2);
        line += 64;
        if (line >= bytes) {
            line = 0;
            ++at;
        }
    }
};

/// Adds (or subtracts) left[k][r] * right[v][k], k in [begin, end), in registers. kFetch: a line of `next` for every k.
template <class T, int NV, bool kSubtract, bool kFetch>
static inline __attribute__((always_inline)) void accumulate(Tile<T, NV>& acc, const T* left, const T* const* right,
                                                             int64_t begin, int64_t end, Upcoming* next) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const T* r0 = right[0] + begin * W;
    const T* r1 = right[NV > 1 ? 1 : 0] + begin * W;
    const T* r2 = right[NV > 2 ? 2 : 0] + begin * W;
    const T* l = left + begin * W;
    Upcoming fetch;
    if constexpr (kFetch) fetch = *next;
    for (int64_t k = begin; k < end; ++k, l += W, r0 += W, r1 += W, r2 += W) {
        if constexpr (kFetch)
            if (fetch.at != fetch.end) fetch.fetch_line();
        Vec<T> b[NV];
        b[0] = load(r0);
        if constexpr (NV > 1) b[1] = load(r1);
        if constexpr (NV > 2) b[2] = load(r2);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec<T> a = splat(l[r]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                if constexpr (kSubtract)
                    acc[r][v] -= a * b[v];
                else
                    acc[r][v] += a * b[v];
            }
        }
    }
    if constexpr (kFetch) *next = fetch;
}

/// What a tile of A starts from: rows of an earlier sum, W apart, or null; for the tile of the diagonal its elements,
/// added at lane.., and where to put the rows that hold them before anything is subtracted.
template <class T, int NV>
struct TileStart {
    const T* rows[NV] = {};
    const T* diagonal = nullptr;
    int lane = 0;
    T (*before)[kWidth<T>] = nullptr;
};

/// out[v][r] = start + sum over k in [0, n_plus) of left[k][r] * right[v][k] - sum over k in [n_plus, n_rows).
///
/// The loops that nearly all flops are spent in. Kept out of line: inlined into factor_tile, GCC 12 spills
/// accumulators inside the loops (a third of the whole solve's time).
template <class T, int NV, bool kFetch>
static __attribute__((noinline)) void sum_tile(T* const* out, const T* left, const T* const* right, int64_t n_plus,
                                               int64_t n_rows, const TileStart<T, NV>& start, Upcoming* next) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    Tile<T, NV> acc;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
    if (start.rows[0])
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] = load(start.rows[v] + r * W);
    if (start.diagonal) {
        const Index<T> column = lane_index<T>() - typename IndexOf<T>::scalar(start.lane);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
            acc[r][0] += column == typename IndexOf<T>::scalar(r) ? splat(start.diagonal[r]) : Vec<T>{};
    }
    accumulate<T, NV, false, kFetch>(acc, left, right, 0, n_plus, next);
    if (start.before)
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) store(start.before[r], acc[r][0]);
    accumulate<T, NV, true, false>(acc, left, right, n_plus, n_rows, nullptr);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out[v] + r * W, acc[r][v]);
}

/// The same; where memory has time, in the largest tile, it fetches what is left of `next`.
template <class T, int NV>
static inline void sum_tile(T* const* out, const T* left, const T* const* right, int64_t n_plus, int64_t n_rows,
                            const TileStart<T, NV>& start, Upcoming* next) {
    if (NV == 3 && next && next->at != next->end)
        sum_tile<T, NV, true>(out, left, right, n_plus, n_rows, start, next);
    else
        sum_tile<T, NV, false>(out, left, right, n_plus, n_rows, start, nullptr);
}

/// What is left of one R x R diagonal block A = L D L' for the tiles beside it (U = D^1/2 L').
template <class T>
struct DiagonalBlock {
    T multiple[kTileRows<T>][kWidth<T>] __attribute__((aligned(WALS_VECTOR_BYTES)));  // row r of L', at lane + column
    T inverse[kTileRows<T>];                                                          // 1 / diagonal of U
};

/// Rows r of the tile: U^-T times what they hold, by the block that `d` describes.
template <class T, int NV>
static inline __attribute__((always_inline)) void eliminate(Tile<T, NV>& acc, const DiagonalBlock<T>& d, int lane) {
    constexpr int R = kTileRows<T>;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int s = r + 1; s < R; ++s) {
            const Vec<T> l = splat(d.multiple[r][lane + s]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[s][v] -= l * acc[r][v];
        }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] *= splat(d.inverse[r]);
}

/// to[i] = 1 / sqrt(from[i]), N of them.
template <class T, int N>
static inline void inverse_square_roots(const T* from, T* to) {
    for (int i = 0; i < N; ++i) to[i] = T(1) / square_root(from[i]);
}

/// The same for the tile whose first vector holds the block, at lanes `lane`.., making `d` on the way; returns the
/// 1-based index of the first pivot not above tolerance * magnitude, or 0.
///
/// One pivot depends on the one before through a division, a product and an update; square roots are left to the end,
/// where they do not wait for each other.
template <class T, int NV>
static inline __attribute__((always_inline)) int factor_diagonal(Tile<T, NV>& acc, DiagonalBlock<T>& d,
                                                                 const T (&magnitude)[kTileRows<T>], int lane,
                                                                 T tolerance) {
    constexpr int R = kTileRows<T>;
    constexpr int W = kWidth<T>;
    T pivot[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
    int bad = 0;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        T row[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        store(row, acc[r][0]);
        pivot[r] = shuffle2<T>(acc[r][0], acc[r][0], Index<T>{} + typename IndexOf<T>::scalar(lane + r))[0];
        if (!(pivot[r] > tolerance * magnitude[r]) && !bad) bad = r + 1;
        Vec<T> multiple[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
            // 1 / pivot overflows for a denormal pivot: float32 rows are solved again in float64 then, which divides.
            if constexpr (sizeof(T) == 4)
                multiple[v] = acc[r][v] * splat(T(1) / pivot[r]);
            else
                multiple[v] = acc[r][v] / splat(pivot[r]);
        store(d.multiple[r], multiple[0]);
#pragma GCC unroll 16
        for (int s = r + 1; s < R; ++s) {
            const Vec<T> l = splat(row[lane + s]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[s][v] -= l * multiple[v];
        }
    }
    inverse_square_roots<T, R>(pivot, d.inverse);
    const Index<T> column = lane_index<T>();
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] *= splat(d.inverse[r]);
        acc[r][0] = column >= typename IndexOf<T>::scalar(lane + r) ? acc[r][0] : Vec<T>{};  // nothing left of U
    }
    return bad;
}

/// Right-hand sides of a system, `stride` apart.
template <class T>
struct RightSides {
    T* x;
    int64_t stride = 0;
    int count = 1;
};

/// What rows i0.. of U, in the tile, do to x in U^-T x: its lanes' elements of x, then what the others have left.
/// kFirst: the tile holds the diagonal block, and x[i0].. is still to be solved.
template <class T, int NV, bool kFirst>
static inline __attribute__((always_inline)) void eliminate_one_right_side(const Tile<T, NV>& acc,
                                                                           const DiagonalBlock<T>& d, int lane,
                                                                           int64_t i0, T* xj, T* x) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    Vec<T> left[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) left[v] = load(xj + v * W);
    if constexpr (kFirst) {
        const Index<T> column = lane_index<T>() - typename IndexOf<T>::scalar(lane);
        Vec<T> solved{};
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const Vec<T> xr = shuffle2<T>(left[0], left[0], Index<T>{} + typename IndexOf<T>::scalar(lane + r));
            const Vec<T> inverse = splat(d.inverse[r]), v_r = xr * inverse;
            left[0] -= xr * (inverse * acc[r][0]);  // the next one waits for this
#pragma GCC unroll 4
            for (int v = 1; v < NV; ++v) left[v] -= v_r * acc[r][v];
            solved = column == typename IndexOf<T>::scalar(r) ? v_r : solved;
        }
        left[0] = (column >= 0) & (column < R) ? solved : left[0];
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) left[v] -= splat(x[i0 + r]) * acc[r][v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(xj + v * W, left[v]);
}

/// The same for all of them, columns j..
template <class T, int NV, bool kFirst>
static inline __attribute__((always_inline)) void eliminate_right_sides(const Tile<T, NV>& acc,
                                                                        const DiagonalBlock<T>& d, int lane, int64_t i0,
                                                                        int64_t j, const RightSides<T>& right) {
    for (int q = 0; q < right.count; ++q) {
        T* const x = right.x + q * right.stride;
        eliminate_one_right_side<T, NV, kFirst>(acc, d, lane, i0, x + j, x);
    }
}

/// One tile of `factor`: rows i0.. of U, columns of the vectors from block j on. kFirst: holds the diagonal block.
template <class T, int NV, bool kFirst>
static inline __attribute__((always_inline)) int factor_tile(const Panel<T>& panel, int64_t n_plus, int64_t u_row,
                                                             int64_t i0, int64_t j, const T* diagonal,
                                                             const Panel<T>* start, DiagonalBlock<T>& d, T tolerance,
                                                             const RightSides<T>& x, Upcoming* next) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int lane = int(i0 % W);
    const T* right[NV];
    T* out[NV];
    TileStart<T, NV> from;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
        right[v] = panel.block(j + v);
        out[v] = panel.block(j + v) + (u_row + i0) * W;
        if (start) from.rows[v] = start->block(j + v) + i0 * W;
    }
    T before[R][W] __attribute__((aligned(WALS_VECTOR_BYTES)));
    if constexpr (kFirst) {
        from.diagonal = diagonal + i0;
        from.lane = lane;
        from.before = before;
    }
    sum_tile<T, NV>(out, panel.block(i0 / W) + lane, right, n_plus, u_row + i0, from, next);

    Tile<T, NV> acc;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = load(out[v] + r * W);
    int bad = 0;
    if constexpr (kFirst) {
        T magnitude[R];
        for (int r = 0; r < R; ++r) magnitude[r] = before[r][lane + r];  // the scale a pivot is judged by
        bad = factor_diagonal<T, NV>(acc, d, magnitude, lane, tolerance);
    } else {
        eliminate<T, NV>(acc, d, lane);
    }
    eliminate_right_sides<T, NV, kFirst>(acc, d, lane, i0, j * W, x);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(out[v] + r * W, acc[r][v]);
    return bad;
}

/// A = diag(diagonal) + start + sum of p p' over the panel's first n_plus rows - sum over the next n_minus rows, (M,
/// M); its upper Cholesky factor goes to rows n_plus + n_minus .. of the panel, 1 / its diagonal to `inverse`.
///
/// M is n rounded up to whole vectors: callers pad with columns of zeros and a diagonal of 1. `start` (same layout, M
/// rows, or null) is the part of A summed earlier. Each x (M) becomes U^-T x on the way. Returns 0, or 1-based, the
/// first pivot not above tolerance * A_ii.
template <class T>
static inline int factor(const Panel<T>& panel, int64_t n, int64_t n_plus, int64_t n_minus, const T* diagonal,
                         const Panel<T>* start, T* inverse, T tolerance, const RightSides<T>& x,
                         Upcoming* next = nullptr) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int64_t blocks = round_up(n, W) / W, u_row = n_plus + n_minus;
    DiagonalBlock<T> d;
    for (int64_t i0 = 0; i0 < n; i0 += R) {
        int64_t j = i0 / W;
        int bad;
#define WALS_FACTOR_TILE(NV, kFirst) \
    factor_tile<T, NV, kFirst>(panel, n_plus, u_row, i0, j, diagonal, start, d, tolerance, x, next)
        if (blocks - j >= 3) {
            bad = WALS_FACTOR_TILE(3, true);
            j += 3;
        } else if (blocks - j == 2) {
            bad = WALS_FACTOR_TILE(2, true);
            j += 2;
        } else {
            bad = WALS_FACTOR_TILE(1, true);
            j += 1;
        }
        if (bad) return int(i0) + bad;
        for (; j + 3 <= blocks; j += 3) WALS_FACTOR_TILE(3, false);
        if (blocks - j == 2)
            WALS_FACTOR_TILE(2, false);
        else if (blocks - j == 1)
            WALS_FACTOR_TILE(1, false);
#undef WALS_FACTOR_TILE
        for (int r = 0; r < R; ++r) inverse[i0 + r] = d.inverse[r];
    }
    for (int64_t i = round_up(n, R); i < blocks * W; ++i) {  // rows of padding alone
        store(panel.block(blocks - 1) + (u_row + i) * W, Vec<T>{});
        inverse[i] = 1;
    }
    return 0;
}

/// out += sum of p p' over panel rows [0, n_plus) - sum over [n_plus, n_rows): tiles on and right of the diagonal.
template <class T>
static inline void add_gram(const Panel<T>& panel, int64_t M, int64_t n_plus, int64_t n_rows, const Panel<T>& out,
                            Upcoming* next = nullptr) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int64_t blocks = M / W;
    auto tile = [&](auto nv, int64_t i0, int64_t j) {
        constexpr int NV = decltype(nv)::value;
        const T* right[NV];
        T* sums[NV];
        TileStart<T, NV> from;
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            right[v] = panel.block(j + v);
            from.rows[v] = sums[v] = out.block(j + v) + i0 * W;
        }
        sum_tile<T, NV>(sums, panel.block(i0 / W) + i0 % W, right, n_plus, n_rows, from, next);
    };
    for (int64_t i0 = 0; i0 < M; i0 += R) {
        int64_t j = i0 / W;
        for (; j + 3 <= blocks; j += 3) tile(Count<3>{}, i0, j);
        if (blocks - j == 2) tile(Count<2>{}, i0, j);
        if (blocks - j == 1) tile(Count<1>{}, i0, j);
    }
}

/// x = U^-1 x for the factor stored at panel rows u_row.. ; x is (M), 64-byte aligned; scratch is (W * W).
template <class T>
static inline void back_substitute(const Panel<T>& panel, int64_t M, int64_t u_row, const T* inverse, T* x,
                                   T* scratch) {
    constexpr int W = kWidth<T>;
    const int64_t blocks = M / W;
    const Index<T> lane = lane_index<T>();
    for (int64_t b = blocks - 1; b >= 0; --b) {
        Vec<T> m[W];
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) m[k] = load(panel.block(b) + (u_row + b * W + k) * W);
        transpose<T>(m);  // m[k] lane i = U[i, k]
#pragma GCC unroll 16
        for (int k = 0; k < W; ++k) store(scratch + k * W, m[k] * splat(inverse[b * W + k]));
        Vec<T> s = load(x + b * W);
        if (b + 1 < blocks) {  // less what the solved blocks take
            Vec<T> rows[W] = {};
            for (int64_t c = b + 1; c < blocks; ++c) {
                const T* u = panel.block(c) + (u_row + b * W) * W;
                const Vec<T> xc = load(x + c * W);
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) rows[i] += load(u + i * W) * xc;
            }
            s -= sum_each<T, W>(rows);
        }
        Vec<T> solved{};
#pragma GCC unroll 4
        for (int k = W - 1; k >= 0; --k) {
            const Vec<T> v = shuffle2<T>(s, s, Index<T>{} + typename IndexOf<T>::scalar(k));
            s -= v * load(scratch + k * W);
            solved = lane == typename IndexOf<T>::scalar(k) ? v : solved;
        }
        store(x + b * W, solved * load(inverse + b * W));
    }
}

/// |U x + y|^2 for the same factor, x' A x without y; products in T, squares added up in float64.
template <class T>
static inline double factored_energy(const Panel<T>& panel, int64_t M, int64_t u_row, const T* x,
                                     const T* y = nullptr) {
    constexpr int W = kWidth<T>;
    double energy = 0;
    for (int64_t i0 = 0; i0 < M; i0 += W) {
        Vec<T> rows[W] = {};
        for (int64_t j0 = i0; j0 < M; j0 += W) {
            const T* u = panel.block(j0 / W) + (u_row + i0) * W;
            const Vec<T> xj = load(x + j0);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) rows[i] += load(u + i * W) * xj;
        }
        Vec<T> product = sum_each<T, W>(rows);
        if (y) product += load(y + i0);
        for (int i = 0; i < W; ++i) energy += double(product[i]) * double(product[i]);
    }
    return energy;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
