// The dense work around the row solves: Gram matrices, the two rotations, and the loss of the observed entries.
#pragma once

#include "solve_exact-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

constexpr int64_t kGramRows = 256;  // rows of y per panel

/// out (D, D), upper triangle += sum over rows [begin, end) of weight y y', in float64 (reference.gram).
template <class T>
static void gram_rows(const T* y, int64_t D, Broadcast<T> weight, int64_t begin, int64_t end, double* out,
                      char* workspace) {
    constexpr int W = kWidth<double>;
    const int64_t M = round_up(D, W);
    Carver carve{workspace};
    Panel<double> panel{carve.take<double>(kGramRows * M), kGramRows};
    Panel<double> sum{carve.take<double>(M * M), M};
    for (int64_t i = 0; i < M * M; ++i) sum.data[i] = 0;
    for (int64_t i0 = begin; i0 < end; i0 += kGramRows) {
        const int64_t n = end - i0 < kGramRows ? end - i0 : kGramRows;
        for (int64_t k = 0; k < n; ++k) {
            const double scale = __builtin_sqrt(double(weight[i0 + k]));
            const T* row = y + (i0 + k) * D;
            for (int64_t b = 0; b < M / W; ++b) {
                double* to = panel.block(b) + k * W;
                const int64_t lanes = D - b * W < W ? D - b * W : W;
                for (int64_t l = 0; l < lanes; ++l) to[l] = scale * double(row[b * W + l]);
                for (int64_t l = lanes; l < W; ++l) to[l] = 0;
            }
        }
        add_gram(panel, M, n, n, sum);
    }
    for (int64_t i = 0; i < D; ++i)
        for (int64_t j = i; j < D; ++j) out[i * D + j] += sum.block(j / W)[i * W + j % W];
}

static inline int64_t gram_bytes(int64_t D) {
    const int64_t M = round_up(D, kWidth<double>);
    return (kGramRows + M) * M * int64_t(sizeof(double)) + 128;
}

constexpr int64_t kGramColumns = 256;  // of a block of gram_block
constexpr int64_t kGramDepth = 128;    // rows of y per panel there: two panels of float64 stay in L2

/// out (D, D): the columns of blocks `i` and `j` >= i, both triangles = sum of weight y y' in float64, over the rows of
/// each of `slabs` slabs, which end at bounds, then over these in order.
template <class T>
static void gram_block(const T* y, int64_t D, Broadcast<T> weight, const int64_t* bounds, int64_t slabs, int64_t i,
                       int64_t j, double* out, char* workspace) {
    constexpr int W = kWidth<double>, R = kTileRows<double>;
    constexpr int64_t kCapacity = kGramDepth + 16, kColumns = kGramColumns, kSums = kColumns * (kColumns + 16);
    Carver carve{workspace};
    const Panel<double> left{carve.take<double>(kColumns * kCapacity), kCapacity};
    const Panel<double> other{carve.take<double>(kColumns * kCapacity), kCapacity};
    const Panel<double> sum{carve.take<double>(kSums), kColumns + 16};
    const Panel<double> total{carve.take<double>(kSums), kColumns + 16};
    const Panel<double>& right = i == j ? left : other;
    for (int64_t k = 0; k < kSums; ++k) total.data[k] = 0;
    auto width = [&](int64_t block) { return D - block * kColumns < kColumns ? D - block * kColumns : kColumns; };
    const int64_t rows = width(i), columns = width(j), blocks = round_up(columns, W) / W;
    double scale[kGramDepth];
    auto pack = [&](int64_t k0, int64_t depth, int64_t first, int64_t count, const Panel<double>& to) {
        for (int64_t k = 0; k < depth; ++k) {
            const T* row = y + (k0 + k) * D + first;
            double* at = to.data + k * W;
            int64_t l = 0;
            for (; l + W <= count; l += W, at += kCapacity * W) store(at, splat(scale[k]) * load_as<double>(row + l));
            for (int64_t rest = 0; l < count && rest < W; ++rest)
                at[rest] = l + rest < count ? scale[k] * double(row[l + rest]) : 0;
        }
    };
    auto add = [&](auto nv, int64_t b, int64_t depth) {
        constexpr int NV = decltype(nv)::value;
        const int64_t whole = round_up(rows, R), below = i != j || (b + NV) * W > whole ? whole : (b + NV) * W;
        const double* from_right[NV];
        double* sums[NV];
        TileStart<double, NV> from;
        for (int v = 0; v < NV; ++v) from_right[v] = right.block(b + v);
        for (int64_t i0 = 0; i0 < below; i0 += R) {
            for (int v = 0; v < NV; ++v) from.rows[v] = sums[v] = sum.block(b + v) + i0 * W;
            sum_tile<double, NV>(sums, left.block(i0 / W) + i0 % W, from_right, depth, depth, from, nullptr);
        }
    };
    for (int64_t s = 0; s < slabs; ++s) {
        for (int64_t k = 0; k < kSums; ++k) sum.data[k] = 0;
        for (int64_t k0 = bounds[s], end = bounds[s + 1]; k0 < end; k0 += kGramDepth) {
            const int64_t depth = end - k0 < kGramDepth ? end - k0 : kGramDepth;
            for (int64_t k = 0; k < depth; ++k) scale[k] = __builtin_sqrt(double(weight[k0 + k]));
            pack(k0, depth, i * kColumns, rows, left);
            if (i != j) pack(k0, depth, j * kColumns, columns, other);
            int64_t b = 0;
            for (; b + 3 <= blocks; b += 3) add(Count<3>{}, b, depth);
            if (blocks - b == 2) add(Count<2>{}, b, depth);
            if (blocks - b == 1) add(Count<1>{}, b, depth);
        }
        for (int64_t k = 0; k < kSums; ++k) total.data[k] += sum.data[k];
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = i == j ? r : 0; c < columns; ++c) {
            const int64_t at_row = i * kColumns + r, at_column = j * kColumns + c;
            out[at_row * D + at_column] = out[at_column * D + at_row] = total.block(c / W)[r * W + c % W];
        }
}

static inline int64_t gram_block_bytes() {
    return (2 * (kGramDepth + 16) + 2 * (kGramColumns + 16)) * kGramColumns * int64_t(sizeof(double)) + 256;
}

/// Packs q (D, D), or its transpose, into column blocks of K = D rows for multiply_rows.
template <class T>
static void pack_square(const double* q, int64_t D, bool transposed, T* packed) {
    constexpr int W = kWidth<T>;
    for (int64_t b = 0; b < round_up(D, W) / W; ++b)
        for (int64_t k = 0; k < D; ++k)
            for (int l = 0; l < W; ++l) {
                const int64_t j = b * W + l;
                packed[(b * D + k) * W + l] = j >= D ? T(0) : T(transposed ? q[j * D + k] : q[k * D + j]);
            }
}

/// Calls put(r, b, v) for each of the R rows times packed (K, blocks of W): v is vector b of row r of the product.
template <class T, class Put>
static inline void multiply_tile_rows(const T* const (&row)[kTileRows<T>], int64_t K, const T* packed, int64_t blocks,
                                      Put&& put) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    auto tile = [&](auto nv, int64_t b) {
        constexpr int NV = decltype(nv)::value;
        Vec<T> acc[R][NV] = {};
        for (int64_t k = 0; k < K; ++k) {
            Vec<T> right[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) right[v] = load(packed + ((b + v) * K + k) * W);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const Vec<T> a = splat(row[r][k]);
#pragma GCC unroll 4
                for (int v = 0; v < NV; ++v) acc[r][v] += a * right[v];
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) put(r, b + v, acc[r][v]);
    };
    int64_t b = 0;
    for (; b + 3 <= blocks; b += 3) tile(Count<3>{}, b);
    if (blocks - b == 2) tile(Count<2>{}, b);
    if (blocks - b == 1) tile(Count<1>{}, b);
}

/// The same for n rows of a matrix.
template <class T, class Put>
static inline void multiply_rows(const T* left, int64_t left_stride, int64_t n, int64_t K, const T* packed,
                                 int64_t blocks, Put&& put) {
    constexpr int R = kTileRows<T>;
    for (int64_t i0 = 0; i0 < n; i0 += R) {
        const T* row[R];
        for (int r = 0; r < R; ++r) row[r] = left + (i0 + r < n ? i0 + r : n - 1) * left_stride;
        multiply_tile_rows<T>(row, K, packed, blocks, [&](int r, int64_t b, Vec<T> v) {
            if (i0 + r < n) put(i0 + r, b, v);
        });
    }
}

/// multiply_rows for matrices too large for L2, to the same bits: three vectors of kDepth rows of the packed matrix
/// meet all of the n rows, row_at(i). sums: room for n, rounded up to whole tiles, times three vectors.
template <class T, class Rows, class Put>
static inline void multiply_many_rows(Rows&& row_at, int64_t n, int64_t K, const T* packed, int64_t blocks, T* sums,
                                      Put&& put) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    constexpr int64_t kDepth = 256;
    auto columns = [&](auto nv, int64_t b) {
        constexpr int NV = decltype(nv)::value;
        for (int64_t k0 = 0; k0 < K; k0 += kDepth) {
            const int64_t end = K - k0 < kDepth ? K : k0 + kDepth;
            for (int64_t i0 = 0; i0 < n; i0 += R) {
                const T* row[R];
                for (int r = 0; r < R; ++r) row[r] = row_at(i0 + r < n ? i0 + r : n - 1);
                T* const at = sums + i0 * NV * W;
                Vec<T> acc[R][NV] = {};
                if (k0 > 0)
#pragma GCC unroll 16
                    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                        for (int v = 0; v < NV; ++v) acc[r][v] = load(at + (r * NV + v) * W);
                for (int64_t k = k0; k < end; ++k) {
                    Vec<T> right[NV];
#pragma GCC unroll 4
                    for (int v = 0; v < NV; ++v) right[v] = load(packed + ((b + v) * K + k) * W);
#pragma GCC unroll 16
                    for (int r = 0; r < R; ++r) {
                        const Vec<T> a = splat(row[r][k]);
#pragma GCC unroll 4
                        for (int v = 0; v < NV; ++v) acc[r][v] += a * right[v];
                    }
                }
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                    for (int v = 0; v < NV; ++v) store(at + (r * NV + v) * W, acc[r][v]);
            }
        }
        for (int64_t i = 0; i < n; ++i)
            for (int v = 0; v < NV; ++v) put(i, b + v, load(sums + (i * NV + v) * W));
    };
    int64_t b = 0;
    for (; b + 3 <= blocks; b += 3) columns(Count<3>{}, b);
    if (blocks - b == 2) columns(Count<2>{}, b);
    if (blocks - b == 1) columns(Count<1>{}, b);
}

/// out (n, padded D) = y (n, D) times the packed matrix, accumulated in C; columns beyond D are zero. out may be y
/// where that needs no padding: rows are copied to the workspace (rotation_workspace) before they are written.
template <class T, class C>
static void rotate_rows(const T* y, int64_t n, int64_t D, const C* packed, T* out, C* workspace) {
    constexpr int W = kWidth<C>, R = kTileRows<C>;
    const int64_t P = padded<T>(D), blocks = round_up(D, W) / W, together = rotates_many(D) ? kRotatedRows : R;
    for (int64_t i0 = 0; i0 < n; i0 += together) {
        const int64_t m = n - i0 < together ? n - i0 : together;
        for (int64_t i = 0; i < m * D; ++i) workspace[i] = C(y[i0 * D + i]);
        T* to = out + i0 * P;
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = D; j < P; ++j) to[i * P + j] = 0;
        auto put = [&](int64_t i, int64_t b, Vec<C> v) {
            if (b * W + W <= D) {
                if constexpr (sizeof(T) == sizeof(C)) {
                    storeu(to + i * P + b * W, v);
                    return;
                }
            }
            for (int l = 0; l < W && b * W + l < D; ++l) to[i * P + b * W + l] = T(v[l]);
        };
        if (rotates_many(D)) {
            C* const sums = workspace + round_up(kRotatedRows * D, 64);
            multiply_many_rows<C>([&](int64_t i) { return workspace + i * D; }, m, D, packed, blocks, sums, put);
        } else {
            multiply_rows(workspace, D, m, D, packed, blocks, put);
        }
    }
}

/// Rotates the present factors of the rows into z (n, padded D).
template <class T>
static void rotate_in(const RotatedRows<T>& p, const int64_t* rows, int64_t n, T* z) {
    constexpr int W = kWidth<T>, R = kTileRows<T>;
    const int64_t P = padded<T>(p.D), D = p.D;
    for (int64_t i = 0; i < n * P; ++i) z[i] = 0;
    if (!p.into) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < D; ++j) z[i * P + j] = p.factors[rows[i] * p.factor_stride + j];
        return;
    }
    auto put = [&](int64_t i, int64_t b, Vec<T> v) { store(z + i * P + b * W, v); };
    if (rotates_many(D)) {
        T sums[kRowsPerCall * 3 * W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        auto row_at = [&](int64_t i) { return p.factors + rows[i] * p.factor_stride; };
        return multiply_many_rows<T>(row_at, n, D, p.into, round_up(D, W) / W, sums, put);
    }
    for (int64_t i0 = 0; i0 < n; i0 += R) {
        const T* left[R];
        for (int r = 0; r < R; ++r) left[r] = p.factors + rows[i0 + r < n ? i0 + r : n - 1] * p.factor_stride;
        multiply_tile_rows<T>(left, D, p.into, round_up(D, W) / W, [&](int r, int64_t b, Vec<T> v) {
            if (i0 + r < n) put(i0 + r, b, v);
        });
    }
}

/// Rotates solutions z (n, padded D) back and writes them to the factor rows.
template <class T>
static void write_back(const RotatedRows<T>& p, const int64_t* rows, int64_t n, const T* z) {
    constexpr int W = kWidth<T>;
    const int64_t P = padded<T>(p.D), D = p.D;
    if (!p.back) {
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < D; ++j) p.factors[rows[i] * p.factor_stride + j] = z[i * P + j];
        return;
    }
    auto put = [&](int64_t i, int64_t b, Vec<T> v) {
        T* to = p.factors + rows[i] * p.factor_stride + b * W;
        if (b * W + W <= D)
            storeu(to, v);
        else
            for (int l = 0; b * W + l < D; ++l) to[l] = v[l];
    };
    if (rotates_many(D)) {
        T sums[kRowsPerCall * 3 * W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        multiply_many_rows<T>([&](int64_t i) { return z + i * P; }, n, D, p.back, round_up(D, W) / W, sums, put);
    } else {
        multiply_rows(z, P, n, D, p.back, round_up(D, W) / W, put);
    }
}

/// Sum over rows [begin, end) of ridge |x - prior|^2 in float64; prior may be null.
template <class T>
static double ridge_loss_rows(const T* x, const T* prior, int64_t D, Broadcast<T> ridge, int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t r = begin; r < end; ++r) {
        double lanes[8] = {};
        for (int64_t j = 0; j < D; ++j) {
            const double difference = double(x[r * D + j]) - (prior ? double(prior[r * D + j]) : 0.0);
            lanes[j % 8] += difference * difference;
        }
        for (int l = 1; l < 8; ++l) lanes[0] += lanes[l];
        total += double(ridge[r]) * lanes[0];
    }
    return total;
}

/// Sum over the entries of rows [begin, end) of gram s^2 - 2 rhs s, s = x . y, all in float64.
template <class T>
static double entry_loss_rows(const RowTerms<T>& terms, const T* x, const T* y, int64_t D, int64_t begin, int64_t end,
                              double* workspace) {
    constexpr int W = kWidth<double>;
    const int64_t whole = D / (2 * W) * (2 * W);
    double total = 0;
    for (int64_t r = begin; r < end; ++r) {
        for (int64_t j = 0; j < D; ++j) workspace[j] = double(x[r * D + j]);
        double row = 0;
        for (int64_t e = terms.row_ptr[r]; e < terms.row_ptr[r + 1]; ++e) {
            if (e + 8 < terms.row_ptr[r + 1]) prefetch_row(y + terms.col_idx[e + 8] * D, D);
            const T* yc = y + terms.col_idx[e] * D;
            Vec<double> s0{}, s1{};
            for (int64_t j = 0; j < whole; j += 2 * W) {
                s0 += load(workspace + j) * load_as<double>(yc + j);
                s1 += load(workspace + j + W) * load_as<double>(yc + j + W);
            }
            double s = sum_lanes<double>(s0 + s1);
            for (int64_t j = whole; j < D; ++j) s += workspace[j] * double(yc[j]);
            row += s * (double(terms.gram(e)) * s - 2 * double(terms.rhs[e]));
        }
        total += row;
    }
    return total;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
