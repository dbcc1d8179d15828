// Exact solve of one row, in the basis where the shared part of every row system is diagonal.
//
// With B = g diag(spectrum) + lambda I (positive), P the (n, D) rows of the table that the row's entries name, a their
// Gram coefficients and rho their right-hand ones (reference.solve_rows defines the result):
//
//   primal   (B + P' diag(a) P) z = P' rho + q,   q = lambda prior                   n D (D+1) + D^3/3 flops
//   dual     S = diag(sqrt|a|) P B^-1/2,  all a of one sign s:
//            z = B^-1 q + B^-1/2 S' w,   (I + s S S') w = rho/sqrt|a| - s S B^-1/2 q          n (n+1) D + n^3/3 flops
//
// The dual follows from Woodbury; entries with a = 0 enter through q alone. Both are one call of `factor` on a panel
// that lies in L2: primal panels hold entries as rows, dual panels hold them as columns.
//
// Precision: the panel and its factor are in C (the compute type). When C is float and a pivot falls below 1e-4 of
// its diagonal, so that fewer than three digits of it would be left, the row is solved again in double.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace wals {
namespace WALS_ISA {

constexpr int64_t kPanelBytes = 512 << 10;    // a quarter of L2 on current servers
constexpr int64_t kRowsPerCall = 64;

template <class C>
constexpr int64_t panel_rows(int64_t D) {    // entries per panel in the primal form
    const int64_t rows = kPanelBytes / (padded<C>(D) * int64_t(sizeof(C)));
    return rows < 64 ? 64 : rows;
}

template <class C, class T>
static inline Vec<C> load_as(const T* p) {
    if constexpr (sizeof(C) == sizeof(T)) {
        return load(p);
    } else {
        Vec<C> v;
        for (int l = 0; l < kWidth<C>; ++l) v[l] = C(p[l]);
        return v;
    }
}

/// Cuts a workspace into aligned arrays.
struct Carver {
    char* at;
    template <class U>
    U* take(int64_t n) {
        U* p = reinterpret_cast<U*>(at);
        at += round_up(n * int64_t(sizeof(U)), 64);
        return p;
    }
};

template <class C>
struct ExactWorkspace {
    C *panel, *start, *base, *base_scale, *rhs, *z, *inverse, *scratch, *scale;
    int64_t* entries;

    ExactWorkspace(char* memory, int64_t D) {
        const int64_t P = padded<C>(D), K = panel_rows<C>(D);
        Carver carve{memory};
        panel = carve.take<C>((K + P > 2 * P ? K + P : 2 * P) * P);
        start = carve.take<C>(P * P);
        base = carve.take<C>(P);
        base_scale = carve.take<C>(P);
        rhs = carve.take<C>(P);
        z = carve.take<C>(P);
        inverse = carve.take<C>(P);
        scratch = carve.take<C>(kWidth<C> * kWidth<C>);
        scale = carve.take<C>(K > P ? K : P);
        entries = carve.take<int64_t>(K > P ? K : P);
        end = carve.at;
    }
    char* end;
    static int64_t bytes(int64_t D) { return int64_t(ExactWorkspace(nullptr, D).end - static_cast<char*>(nullptr)); }
};

/// Above this many entries the primal form is cheaper (bench_rows.py: transposing the dual's panel costs about a
/// fifth of its Gram).
static inline int64_t dual_limit(int64_t D) {
    return D * 7 / 8;
}

template <class T>
static inline void prefetch_row(const T* row, int64_t P) {
    for (int64_t j = 0; j < P; j += 64 / int64_t(sizeof(T))) __builtin_prefetch(row + j);
}

/// Primal panel of entries [begin, end): positive coefficients first, then negative ones; rhs += P' rho of all.
template <class C, class T>
static void pack_primal(const RotatedRows<T>& p, int64_t begin, int64_t end, Panel<C> panel, int64_t n_plus, C* rhs) {
    constexpr int W = kWidth<C>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    int64_t plus = 0, minus = n_plus;
    for (int64_t e = begin; e < end; ++e) {
        if (e + 6 < end) prefetch_row(p.table + p.terms.col_idx[e + 6] * P, P);
        const C a = C(p.terms.gram(e)), rho = C(p.terms.rhs[e]);
        const T* row = p.table + p.terms.col_idx[e] * P;
        if (a == 0) {
            for (int64_t j = 0; j < M; j += W) store(rhs + j, load(rhs + j) + splat(rho) * load_as<C>(row + j));
            continue;
        }
        const int64_t k = a > 0 ? plus++ : minus++;
        const C scale = __builtin_sqrt(a > 0 ? a : -a);
        C* out = panel.data + k * W;
        for (int64_t j = 0; j < M; j += W, out += panel.capacity * W) {
            const Vec<C> r = load_as<C>(row + j);
            store(out, splat(scale) * r);
            store(rhs + j, load(rhs + j) + splat(rho) * r);
        }
    }
}

/// Dual panel: column c = scale[c] * base_scale o table row of entries[c]; padding columns are zero.
template <class C, class T>
static void pack_dual(const RotatedRows<T>& p, int64_t n, ExactWorkspace<C>& w, Panel<C> panel) {
    constexpr int W = kWidth<C>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    for (int64_t c = 0; c < n; ++c) prefetch_row(p.table + p.terms.col_idx[w.entries[c]] * P, P);
    for (int64_t c0 = 0; c0 < n; c0 += W) {
        C* out = panel.block(c0 / W);
        const T* row[W];
        Vec<C> scale[W];
        for (int i = 0; i < W; ++i) {
            const bool real = c0 + i < n;
            row[i] = p.table + p.terms.col_idx[w.entries[real ? c0 + i : c0]] * P;
            scale[i] = splat(real ? w.scale[c0 + i] : C(0));
        }
        for (int64_t j = 0; j < M; j += W) {
            Vec<C> m[W];
            const Vec<C> b = load(w.base_scale + j);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) m[i] = scale[i] * (b * load_as<C>(row[i] + j));
            transpose<C>(m);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(out + (j + i) * W, m[i]);
        }
    }
}

/// How one row is made up.
template <class C>
struct RowShape {
    int64_t plus = 0, minus = 0, zero = 0;
    C base_min, base_max;
};

/// base = g spectrum + lambda (1 on padding), rhs = lambda prior; counts the signs of the Gram coefficients.
template <class C, class T>
static RowShape<C> prepare(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w) {
    constexpr int W = kWidth<C>;
    const int64_t D = p.D, M = round_up(D, W);
    const double g = double(p.terms.background[row]), lambda = double(p.terms.ridge[row]);
    RowShape<C> shape;
    double low = 1e300, high = 0;
    for (int64_t j = 0; j < D; ++j) {
        const double b = (p.spectrum ? g * p.spectrum[j] : 0.0) + lambda;
        low = b < low ? b : low;
        high = b > high ? b : high;
        w.base[j] = C(b);
    }
    shape.base_min = C(low);
    shape.base_max = C(high);
    const T* prior = p.prior ? p.prior + row * padded<T>(D) : nullptr;
    for (int64_t j = 0; j < D; ++j) w.rhs[j] = prior ? C(lambda * double(prior[j])) : C(0);
    for (int64_t j = D; j < M; ++j) {
        w.base[j] = 1;
        w.rhs[j] = 0;
    }
    for (int64_t e = p.terms.row_ptr[row]; e < p.terms.row_ptr[row + 1]; ++e) {
        const T a = p.terms.gram(e);
        shape.plus += a > 0;
        shape.minus += a < 0;
    }
    shape.zero = p.terms.row_ptr[row + 1] - p.terms.row_ptr[row] - shape.plus - shape.minus;
    return shape;
}

template <class C>
constexpr C pivot_tolerance() {
    return sizeof(C) == 4 ? C(1e-4) : C(1e-14);
}

template <class C, class T>
static RowStatus solve_primal(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, const C* partial) {
    constexpr int W = kWidth<C>;
    const int64_t M = round_up(p.D, W), K = panel_rows<C>(p.D);
    int64_t begin = p.terms.row_ptr[row];
    const int64_t end = p.terms.row_ptr[row + 1];
    auto signs = [&](int64_t b, int64_t e) {
        RowShape<C> s;
        for (; b < e; ++b) {
            s.plus += p.terms.gram(b) > 0;
            s.minus += p.terms.gram(b) < 0;
        }
        return s;
    };
    Panel<C> start{w.start, M};
    bool started = false;
    if (partial) {    // the Gram matrix and right-hand side were summed elsewhere
        start.data = const_cast<C*>(partial);
        for (int64_t j = 0; j < M; ++j) w.rhs[j] += partial[M * M + j];
        started = true;
        begin = end;
    }
    while (end - begin > K) {
        const RowShape<C> s = signs(begin, begin + K);
        if (!started)
            for (int64_t i = 0; i < M * M; ++i) w.start[i] = 0;
        started = true;
        Panel<C> panel{w.panel, s.plus + s.minus};
        pack_primal(p, begin, begin + K, panel, s.plus, w.rhs);
        add_gram(panel, M, s.plus, s.plus + s.minus, start);
        begin += K;
    }
    const RowShape<C> s = signs(begin, end);
    const int64_t u_row = s.plus + s.minus;
    Panel<C> panel{w.panel, u_row + M};
    pack_primal(p, begin, end, panel, s.plus, w.rhs);
    const int bad =
        factor<C>(panel, M, s.plus, s.minus, w.base, started ? &start : nullptr, w.inverse, pivot_tolerance<C>());
    if (bad) return bad;
    for (int64_t j = 0; j < M; ++j) w.z[j] = w.rhs[j];
    solve_factored(panel, M, u_row, w.inverse, w.z, w.scratch);
    return 0;
}

template <class C, class T>
static RowStatus solve_dual(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, const RowShape<C>& shape) {
    constexpr int W = kWidth<C>;
    const int64_t P = padded<T>(p.D), MD = round_up(p.D, W), n = shape.plus + shape.minus, M = round_up(n, W);
    const C sign = shape.minus ? C(-1) : C(1);
    for (int64_t j = 0; j < MD; j += W) {
        Vec<C> b = load(w.base + j);
        for (int l = 0; l < W; ++l) b[l] = C(1) / __builtin_sqrt(b[l]);
        store(w.base_scale + j, b);
    }
    int64_t c = 0;
    bool shifted = p.prior != nullptr;
    for (int64_t e = p.terms.row_ptr[row]; e < p.terms.row_ptr[row + 1]; ++e) {
        const C a = C(p.terms.gram(e)), rho = C(p.terms.rhs[e]);
        if (a != 0) {
            w.scale[c] = __builtin_sqrt(a > 0 ? a : -a);
            w.entries[c++] = e;
        } else if (rho != 0) {
            shifted = true;
            const T* r = p.table + p.terms.col_idx[e] * P;
            for (int64_t j = 0; j < MD; j += W) store(w.rhs + j, load(w.rhs + j) + splat(rho) * load_as<C>(r + j));
        }
    }
    Panel<C> panel{w.panel, MD + M};
    pack_dual(p, n, w, panel);
    C* const t = w.z;    // (M): right-hand side, then w
    for (int64_t i = 0; i < n; ++i) t[i] = C(p.terms.rhs[w.entries[i]]) / w.scale[i];
    for (int64_t i = n; i < M; ++i) t[i] = 0;
    if (shifted) {
        for (int64_t j = 0; j < MD; ++j) w.rhs[j] *= w.base_scale[j];
        for (int64_t b = 0; b < M / W; ++b) {
            Vec<C> s{};
            for (int64_t j = 0; j < MD; ++j) s += splat(w.rhs[j]) * load(panel.block(b) + j * W);
            store(t + b * W, load(t + b * W) - splat(sign) * s);
        }
    }
    C* const ones = w.base;    // base is not needed below
    for (int64_t i = 0; i < M; ++i) ones[i] = 1;
    const int64_t n_plus = sign > 0 ? MD : 0;
    const int bad = factor<C>(panel, M, n_plus, MD - n_plus, ones, nullptr, w.inverse, pivot_tolerance<C>());
    if (bad) return bad;
    solve_factored(panel, M, MD, w.inverse, t, w.scratch);
    for (int64_t i = 0; i < n; ++i) w.scale[i] *= t[i];
    // z = base_scale o (shift + base_scale o sum of scale r); the table rows are still in L2.
    for (int64_t j0 = 0; j0 < MD; j0 += 4 * W) {
        const int64_t width = MD - j0 < 4 * W ? MD - j0 : 4 * W;
        Vec<C> s[4] = {};
        if (width == 4 * W) {
            for (int64_t i = 0; i < n; ++i) {
                const T* r = p.table + p.terms.col_idx[w.entries[i]] * P + j0;
#pragma GCC unroll 4
                for (int v = 0; v < 4; ++v) s[v] += splat(w.scale[i]) * load_as<C>(r + v * W);
            }
        } else {
            for (int64_t i = 0; i < n; ++i) {
                const T* r = p.table + p.terms.col_idx[w.entries[i]] * P + j0;
                for (int64_t v = 0; v * W < width; ++v) s[v] += splat(w.scale[i]) * load_as<C>(r + v * W);
            }
        }
        for (int64_t v = 0; v * W < width; ++v) {
            const int64_t j = j0 + v * W;
            const Vec<C> b = load(w.base_scale + j);
            Vec<C> z = b * s[v];
            if (shifted) z += load(w.rhs + j);
            store(w.rhs + j, b * z);
        }
    }
    for (int64_t j = 0; j < MD; ++j) w.z[j] = w.rhs[j];
    return 0;
}

/// Solution of one row to w.z.
template <class C, class T>
static RowStatus solve_row_in(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, const C* partial) {
    const RowShape<C> shape = prepare<C>(p, row, w);
    const int64_t n = shape.plus + shape.minus, D = p.D;
    RowStatus status = 0;
    if (n + shape.zero == 0) {    // no entries: the prior mean, or zero
        const T* prior = p.prior ? p.prior + row * padded<T>(D) : nullptr;
        for (int64_t j = 0; j < D; ++j) w.z[j] = w.base[j] > 0 ? w.rhs[j] / w.base[j] : prior ? C(prior[j]) : C(0);
        return 0;
    }
    const bool dual = !partial && n <= dual_limit(D) && (shape.plus == 0 || shape.minus == 0) &&
                      shape.base_min > C(1e-10) * shape.base_max;
    status = dual ? solve_dual(p, row, w, shape) : solve_primal(p, row, w, partial);
    if (status) return status;
    C check = 0;
    for (int64_t j = 0; j < D; ++j) check += w.z[j] * C(0);    // NaN unless every z is finite
    return check == 0 ? 0 : -1;
}

template <class T>
static RowStatus solve_row(const RotatedRows<T>& p, int64_t row, char* memory, const T* partial, T* z) {
    ExactWorkspace<T> w(memory, p.D);
    RowStatus status = solve_row_in<T>(p, row, w, partial);
    if (status == 0) {
        for (int64_t j = 0; j < p.D; ++j) z[j] = w.z[j];
        return 0;
    }
    if constexpr (sizeof(T) == 4) {
        ExactWorkspace<double> wide(memory, p.D);
        status = solve_row_in<double>(p, row, wide, nullptr);
        if (status == 0)
            for (int64_t j = 0; j < p.D; ++j) z[j] = T(wide.z[j]);
    }
    return status;
}

}    // namespace WALS_ISA
}    // namespace wals
