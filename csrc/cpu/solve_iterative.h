// Approximate solves of one row, in the same rotated basis as solve_exact.h and from the row's present factor:
// conjugate gradients and subspace steps. Neither raises the row's part of the loss: each step minimises it over a
// direction, or over a block of coordinates.
#pragma once

#include "solve_exact.h"

namespace wals {
namespace WALS_ISA {

/// Entries handled together in a product with the row's panel: enough independent sums to hide an FMA's latency.
template <class T>
constexpr int kGroup = kWidth<T> < 8 ? kWidth<T> : 8;

/// out[l] = sum of the lanes of rows[l % N], N a power of two of at most W.
template <class T, int N>
static inline Vec<T> sum_each_of(Vec<T> (&rows)[N]) {
    const Index<T> lane = lane_index<T>();
#pragma GCC unroll 4
    for (int half = N / 2; half >= 1; half /= 2) {
        const Index<T> second = ((lane & half) != 0) & kWidth<T>;
        const Index<T> a = (lane & ~half) + second, b = (lane | half) + second;
#pragma GCC unroll 4
        for (int i = 0; i < half; ++i)
            rows[i] = shuffle2<T>(rows[i], rows[i + half], a) + shuffle2<T>(rows[i], rows[i + half], b);
    }
#pragma GCC unroll 4
    for (int bit = N; bit < kWidth<T>; bit *= 2) rows[0] += shuffle2<T>(rows[0], rows[0], lane ^ bit);
    return rows[0];
}

enum class Pass {
    kResidual,  // out += sum of (rho - a (r . v)) r, diagonal += sum of a r o r
    kProduct,   // out += sum of a (r . v) r
    kErrors,    // errors[e] = rho - a (r . v)
};

/// One pass over a row's entries, a Gram and rho right-hand coefficients, r rows of the table. The table rows are read
/// where they lie: after the first pass they are in L1 or L2.
template <class T, Pass kPass>
static inline void panel_pass(const RotatedRows<T>& p, int64_t begin, int64_t end, const T* v, T* out, T* diagonal) {
    constexpr int W = kWidth<T>, G = kGroup<T>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    // Later passes find the rows in the cache, unless there are more than it holds; fetching what is there costs 15 %.
    const bool fetch = kPass != Pass::kProduct || (end - begin) * P * int64_t(sizeof(T)) > (1 << 20);
    for (int64_t e0 = begin; e0 < end; e0 += G) {
        const T* row[G];
        T a[G], rho[G];
        for (int i = 0; i < G; ++i) {  // a last group repeats the row's first entry with weight 0
            const int64_t e = e0 + i < end ? e0 + i : begin;
            row[i] = p.table + p.terms.col_idx[e] * P;
            a[i] = e0 + i < end ? p.terms.gram(e) : T(0);
            rho[i] = e0 + i < end ? p.terms.rhs[e] : T(0);
            if (fetch && e0 + i + 2 * G < end) prefetch_row(p.table + p.terms.col_idx[e0 + i + 2 * G] * P, P);
        }
        Vec<T> sum[G];
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) sum[i] = Vec<T>{};
        for (int64_t j = 0; j < M; j += W) {
            const Vec<T> x = load(v + j);
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) sum[i] += x * load(row[i] + j);
        }
        T dots[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        store(dots, sum_each_of<T, G>(sum));
        if constexpr (kPass == Pass::kErrors) {
            for (int i = 0; i < G && e0 + i < end; ++i) out[e0 - begin + i] = rho[i] - a[i] * dots[i];
            continue;
        }
        Vec<T> weight[G], square[G];
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) {
            weight[i] = splat(kPass == Pass::kResidual ? rho[i] - a[i] * dots[i] : a[i] * dots[i]);
            square[i] = splat(a[i]);
        }
        for (int64_t j = 0; j < M; j += W) {
            Vec<T> s0 = load(out + j), s1{}, d{};
#pragma GCC unroll 8
            for (int i = 0; i < G; i += 2) {
                const Vec<T> r0 = load(row[i] + j), r1 = load(row[i + 1] + j);
                s0 += weight[i] * r0;
                s1 += weight[i + 1] * r1;
                if constexpr (kPass == Pass::kResidual) d += square[i] * (r0 * r0) + square[i + 1] * (r1 * r1);
            }
            store(out + j, s0 + s1);
            if constexpr (kPass == Pass::kResidual) store(diagonal + j, load(diagonal + j) + d);
        }
    }
}

/// sum of w a b, or of a b where w is null.
template <class T>
static inline T dot(const T* a, const T* b, int64_t M, const T* w = nullptr) {
    Vec<T> s{};
    for (int64_t j = 0; j < M; j += kWidth<T>) s += load(a + j) * load(b + j) * (w ? load(w + j) : splat(T(1)));
    return sum_lanes<T>(s);
}

/// base = g spectrum + lambda (1 on padding) and residual = lambda prior - base z.
template <class T>
static inline void start_row(const RotatedRows<T>& p, int64_t row, const T* z, T* base, T* residual) {
    const int64_t D = p.D, M = round_up(D, kWidth<T>);
    const double g = double(p.terms.background[row]), lambda = double(p.terms.ridge[row]);
    const T* prior = p.prior ? p.prior + row * padded<T>(D) : nullptr;
    for (int64_t j = 0; j < D; ++j) base[j] = T(g * p.spectrum[j] + lambda);
    for (int64_t j = D; j < M; ++j) base[j] = 1;
    for (int64_t j = 0; j < M; ++j) residual[j] = -base[j] * z[j];
    if (prior)
        for (int64_t j = 0; j < D; ++j) residual[j] += T(lambda) * prior[j];
}

template <class T>
struct CgWorkspace {
    T *base, *residual, *direction, *product, *diagonal, *inverse_diagonal;
    char* end;
    CgWorkspace(char* memory, int64_t D) {
        const int64_t P = padded<T>(D);
        Carver carve{memory};
        base = carve.take<T>(P);
        residual = carve.take<T>(P);
        direction = carve.take<T>(P);
        product = carve.take<T>(P);
        diagonal = carve.take<T>(P);
        inverse_diagonal = carve.take<T>(P);
        end = carve.at;
    }
    static int64_t bytes(int64_t D) { return int64_t(CgWorkspace(nullptr, D).end - static_cast<char*>(nullptr)); }
};

/// Preconditioned conjugate gradients on A z = b from z (padded D), in place; defined by reference.solve_rows_cg.
///
/// The preconditioner is the diagonal of A: in the rotated basis that is all of the background's share. Stops after
/// `steps`, or when the preconditioned residual has fallen to `tolerance` times its first norm. Cost: (steps + 1)
/// passes of 4 n D flops, nothing of size D^2.
template <class T>
static RowStatus solve_row_cg(const RotatedRows<T>& p, int64_t row, int steps, double tolerance, char* memory, T* z) {
    constexpr int W = kWidth<T>;
    CgWorkspace<T> w(memory, p.D);
    const int64_t M = round_up(p.D, W), begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    start_row(p, row, z, w.base, w.residual);
    for (int64_t j = 0; j < M; ++j) w.diagonal[j] = w.base[j];
    panel_pass<T, Pass::kResidual>(p, begin, end, z, w.residual, w.diagonal);
    for (int64_t j = 0; j < M; ++j) {
        // A coordinate that nothing acts on (no ridge, no data) keeps its value.
        w.inverse_diagonal[j] = w.diagonal[j] > 0 ? T(1) / w.diagonal[j] : T(0);
        w.direction[j] = w.inverse_diagonal[j] * w.residual[j];
    }
    T rho = dot(w.residual, w.direction, M);
    // Below these the residual, or a direction's curvature, is rounding. Following it in a singular system (no ridge,
    // fewer entries than factors) would walk off along its null space.
    constexpr double kRounding = sizeof(T) == 4 ? 1e-6 : 1e-15;
    const double least = tolerance > kRounding ? tolerance : kRounding;
    const double enough = least * least * double(rho);
    for (int step = 0; step<steps&& double(rho)> enough && double(rho) > 1e-30; ++step) {
        for (int64_t j = 0; j < M; j += W) store(w.product + j, load(w.base + j) * load(w.direction + j));
        panel_pass<T, Pass::kProduct>(p, begin, end, w.direction, w.product, nullptr);
        const T curvature = dot(w.direction, w.product, M);
        if (!(double(curvature) > 10 * kRounding * double(dot(w.direction, w.direction, M, w.diagonal)))) break;
        const Vec<T> length = splat(rho / curvature);
        for (int64_t j = 0; j < M; j += W) {
            store(z + j, load(z + j) + length * load(w.direction + j));
            store(w.residual + j, load(w.residual + j) - length * load(w.product + j));
        }
        const T next = dot(w.residual, w.residual, M, w.inverse_diagonal);
        const Vec<T> keep = splat(next / rho);
        rho = next;
        for (int64_t j = 0; j < M; j += W)
            store(w.direction + j, load(w.inverse_diagonal + j) * load(w.residual + j) + keep * load(w.direction + j));
    }
    return take_solution(z, p.D, z);
}

/// One pass of subspace steps (iALS++, Rendle et al. 2021) from z (padded D), in place: block after block of `width`
/// rotated coordinates is solved exactly with the others fixed. Defined by reference.solve_rows_subspace.
///
/// The rotation takes the background's coupling between blocks away, so a block's gradient needs only the errors of the
/// row's own entries, which are kept up to date. A row with no more entries than a block has columns is solved
/// exactly: its dual form costs less. Cost: n D width + D width^2 / 3 + 6 n D flops.
template <class T>
static RowStatus solve_row_subspace(const RotatedRows<T>& p, int64_t row, int64_t width, char* memory, T* errors,
                                    T* z) {
    constexpr int W = kWidth<T>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    if (end - begin <= width || width >= M) return solve_row<T>(p, row, memory, nullptr, z);
    ExactWorkspace<T> w(memory, p.D);
    T* const gradient = w.base_scale;
    start_row(p, row, z, w.base, gradient);
    panel_pass<T, Pass::kErrors>(p, begin, end, z, errors, nullptr);
    for (int64_t j0 = 0; j0 < M; j0 += width) {
        const int64_t count = p.D - j0 < width ? p.D - j0 : width, m = round_up(count, W);
        for (int64_t j = 0; j < m; ++j) w.rhs[j] = gradient[j0 + j];
        if (solve_primal<T>(p, row, w, {j0, count, m}, nullptr, errors))
            return solve_row<T>(p, row, memory, nullptr, z);  // near-singular: the exact solve has a wider fallback
        for (int64_t j = 0; j < count; ++j) z[j0 + j] += w.rhs[j];
        if (j0 + width >= M) break;
        for (int64_t e = begin; e < end; ++e) {
            const T* r = p.table + p.terms.col_idx[e] * P + j0;
            Vec<T> s{};
            for (int64_t j = 0; j < m; j += W) s += load(w.rhs + j) * load(r + j);
            errors[e - begin] -= p.terms.gram(e) * sum_lanes<T>(s);
        }
    }
    return take_solution(z, p.D, z);
}

}  // namespace WALS_ISA
}  // namespace wals
