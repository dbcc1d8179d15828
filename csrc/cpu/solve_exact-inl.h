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
// Precision: the panel and its factor are in C (the compute type). When C is float and a pivot falls below
// limits::pivot_tolerance_float32 of its diagonal, the row is solved again in double.
#pragma once

#include "blocked-inl.h"
#include "kernels.h"

namespace wals::cpu {
namespace WALS_ISA {

constexpr int64_t kRowsPerCall = 64;

/// Entries per panel in the primal form.
template <class C>
constexpr int64_t panel_rows(int64_t D) {
    const int64_t fit = limits::panel_bytes / (padded<C>(D) * int64_t(sizeof(C))), enough = limits::panel_factors * D;
    const int64_t rows = fit < enough ? fit : enough;
    return rows < limits::panel_least ? limits::panel_least : rows;
}

/// Whether a system of so many unknowns is solved in blocks (blocked-inl.h).
static constexpr bool is_blocked(int64_t unknowns) {
    return unknowns > limits::blocked_factors;
}

/// Rows from one column block to the next of a system of M rows, M whole vectors, of so many unknowns.
static constexpr int64_t system_capacity(int64_t unknowns, int64_t M) {
    return is_blocked(unknowns) ? blocked_capacity(M) : M;
}

/// W values as C; p need not be aligned.
template <class C, class T>
static inline Vec<C> load_as(const T* p) {
    if constexpr (sizeof(C) == sizeof(T)) {
        return loadu(p);
    } else {
        typedef T Narrow __attribute__((vector_size(WALS_VECTOR_BYTES / 2), aligned(sizeof(T)), may_alias));
        return __builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Vec<C>);
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
    C *panel, *start, *base, *base_scale, *rhs, *dual, *inverse, *scratch, *scale, *magnitude, *border;
    int64_t* entries;

    ExactWorkspace(char* memory, int64_t D) {
        // Subspace steps have panels of more entries than a slab: sqrt(panel_factors * panel_bytes / sizeof(C)) at
        // most.
        const int64_t P = padded<C>(D), K = is_blocked(D) ? 1024 : panel_rows<C>(D);
        Carver carve{memory};
        if (is_blocked(D)) {
            // A slab; or, for subspace steps, the panel and the factor of a block that is solved in one.
            const int64_t most = round_up(limits::blocked_factors, 64), rows = panel_rows<C>(most) + most;
            const int64_t block = rows * most + limits::panel_bytes / int64_t(sizeof(C));
            panel = carve.take<C>(kSlabCapacity * P > block ? kSlabCapacity * P : block);
            start = carve.take<C>(blocked_capacity(P) * P);
        } else {
            panel = carve.take<C>((K + P > 2 * P ? K + P : 2 * P) * P);
            start = carve.take<C>(P * P);
        }
        base = carve.take<C>(P);
        base_scale = carve.take<C>(P);
        rhs = carve.take<C>(P);
        dual = carve.take<C>(P);
        inverse = carve.take<C>(P);
        scratch = carve.take<C>(kWidth<C> * kWidth<C>);
        scale = carve.take<C>(K > P ? K : P);
        magnitude = carve.take<C>(P);
        border = carve.take<C>((kWidth<C> / 4 + 1) * P);
        entries = carve.take<int64_t>(K > P ? K : P);
        end = carve.at;
    }
    char* end;
    static int64_t bytes(int64_t D) { return int64_t(ExactWorkspace(nullptr, D).end - static_cast<char*>(nullptr)); }
};

/// Above this many entries the primal form is cheaper.
static inline int64_t dual_limit(int64_t D) {
    return D * limits::dual_numerator / limits::dual_denominator;
}

/// Columns [first, first + count) of the rotated basis, count rounded up to whole vectors in M: all of them for an
/// exact solve, one block for a subspace step.
struct Columns {
    int64_t first, count, M;
};

/// What to fetch of entries [begin, end), of a panel's worth at most.
template <class C, class T>
static Upcoming upcoming(const RotatedRows<T>& p, int64_t begin, int64_t end, Columns columns) {
    const int64_t K = panel_rows<C>(columns.count);
    Upcoming next;
    next.at = p.terms.col_idx + begin;
    next.end = p.terms.col_idx + (end - begin < K ? end : begin + K);
    next.table = reinterpret_cast<const char*>(p.table + columns.first);
    next.stride = padded<T>(p.D) * int64_t(sizeof(T));
    next.bytes = columns.count * int64_t(sizeof(T));
    return next;
}

/// Number of positive and negative Gram coefficients.
struct Signs {
    int64_t plus = 0, minus = 0;
};

/// The Gram coefficients of entries from `begin` on, less `offset`, where they lie side by side; or null.
template <class T>
static inline const T* gram_side_by_side(const RowTerms<T>& terms, int64_t begin, T* offset) {
    const Broadcast<T>& a = terms.gram_array.data ? terms.gram_array : terms.rhs;
    *offset = terms.gram_array.data ? T(0) : terms.gram_offset;
    return a.stride == 1 ? a.data + begin : nullptr;
}

template <class T>
static Signs count_signs(const RowTerms<T>& terms, int64_t begin, int64_t end) {
    constexpr int W = kWidth<T>;
    Signs s;
    T offset;
    if (const T* a = gram_side_by_side(terms, begin, &offset)) {
        Index<T> plus{}, minus{};
        for (; begin + W <= end; begin += W, a += W) {
            const Vec<T> v = loadu(a) + splat(offset);
            plus -= v > Vec<T>{};
            minus -= v < Vec<T>{};
        }
        for (int l = 0; l < W; ++l) {
            s.plus += plus[l];
            s.minus += minus[l];
        }
    }
    for (; begin < end; ++begin) {
        const T a = terms.gram(begin);
        s.plus += a > 0;
        s.minus += a < 0;
    }
    return s;
}

/// scale[i] = sqrt|a| of entry begin + i.
template <class C, class T>
static void scale_entries(const RowTerms<T>& terms, int64_t begin, int64_t end, C* scale) {
    T offset;
    if (const T* a = gram_side_by_side(terms, begin, &offset))
        for (int64_t i = 0; i < end - begin; ++i) scale[i] = square_root(absolute(C(a[i] + offset)));
    else
        for (int64_t i = 0; i < end - begin; ++i) scale[i] = square_root(absolute(C(terms.gram(begin + i))));
}

/// The last coordinates of a system that fill less than a quarter of a vector: as columns of the panel they would take
/// the work of a whole one. They are a border of the matrix, whose sums are made like a right-hand side's.
template <class C>
struct Border {
    static constexpr int kMost = kWidth<C> / 4;
    int count = 0;
    int64_t stride = 0;                    // of sums
    C* sums = nullptr;                     // (count, all whole vectors): rows of the matrix
    C subtracted[kMost ? kMost : 1] = {};  // from its diagonal, by negative coefficients
};

/// Primal panel of entries [begin, end): positive coefficients first, then negative ones; rhs += P' rho of all.
/// rho: the entries' right-hand coefficients, or where `residual` is given, that (indexed from `begin`). `scale` gets
/// sqrt|a| of the entries. kBorder: the coordinates after the columns are a border.
template <class C, bool kBorder = false, class T>
static void pack_primal(const RotatedRows<T>& p, int64_t begin, int64_t end, Columns columns, Panel<C> panel,
                        Signs signs, C* scale, C* rhs, const T* residual = nullptr, Border<C>* border = nullptr) {
    constexpr int W = kWidth<C>, kTogether = 4, kLine = 64 / int(sizeof(T));
    const int64_t P = padded<T>(p.D), M = columns.M, last = p.terms.row_ptr[p.terms.n_rows] - 1;
    const int64_t right = M + (kBorder ? W : 0);  // of right-hand sides
    const Broadcast<T> rho = residual ? Broadcast<T>{residual, 1}
                                      : Broadcast<T>{p.terms.rhs.data + begin * p.terms.rhs.stride, p.terms.rhs.stride};
    const int64_t near = 4096 / (M * int64_t(sizeof(T)));  // rows that do not crowd L1
    const int64_t distance = near < 6 ? 6 : near < 16 ? near : 16;
    const bool all_plus = signs.plus == end - begin;
    scale_entries(p.terms, begin, end, scale);
    int64_t plus = 0, minus = signs.plus;
    auto table_row = [&](int64_t e) { return p.table + p.terms.col_idx[e] * P + columns.first; };
    auto positive = [&](int64_t e) { return all_plus || p.terms.gram(e) > 0; };
    for (int64_t e = begin; e < end;) {
        // Entries with a > 0 go four at a time: neighbours in the panel, one pass over rhs.
        if (e + kTogether <= end && positive(e) && positive(e + 1) && positive(e + 2) && positive(e + 3)) {
            C* out = panel.data + plus * W;
            const T *row[kTogether], *ahead[kTogether];
            Vec<C> by[kTogether], weight[kTogether];
#pragma GCC unroll 4
            for (int i = 0; i < kTogether; ++i) {
                row[i] = table_row(e + i);
                by[i] = splat(scale[e + i - begin]);
                weight[i] = splat(C(rho[e + i - begin]));
                // Beyond the last entry lie those of the next row, which mostly is solved next.
                const int64_t f = e + i + distance;
                ahead[i] = table_row(f < last ? f : last);
            }
            C in_border[Border<C>::kMost ? Border<C>::kMost : 1][kTogether];
            if constexpr (kBorder)
                for (int c = 0; c < border->count; ++c)
                    for (int i = 0; i < kTogether; ++i)
                        in_border[c][i] = C(p.terms.gram(e + i)) * C(row[i][columns.count + c]);
            for (int64_t j = 0; j < right; j += W, out += panel.capacity * W) {
                Vec<C> sum = load(rhs + j), r[kTogether];
#pragma GCC unroll 4
                for (int i = 0; i < kTogether; ++i) {
                    if (W >= kLine || j % kLine == 0) __builtin_prefetch(ahead[i] + j);
                    r[i] = load_as<C>(row[i] + j);
                    if (!kBorder || j < M) store(out + i * W, by[i] * r[i]);
                    sum += weight[i] * r[i];
                }
                store(rhs + j, sum);
                if constexpr (kBorder)
                    for (int c = 0; c < border->count; ++c) {
                        C* const to = border->sums + c * border->stride + j;
                        Vec<C> s = load(to);
#pragma GCC unroll 4
                        for (int i = 0; i < kTogether; ++i) s += splat(in_border[c][i]) * r[i];
                        store(to, s);
                    }
            }
            plus += kTogether;
            e += kTogether;
            continue;
        }
        const T a = p.terms.gram(e);
        const Vec<C> weight = splat(C(rho[e - begin])), by = splat(scale[e - begin]);
        const T* row = table_row(e++);
        C* out = a > 0 ? panel.data + plus++ * W : a < 0 ? panel.data + minus++ * W : nullptr;
        for (int64_t j = 0; j < right; j += W) {
            const Vec<C> r = load_as<C>(row + j);
            store(rhs + j, load(rhs + j) + weight * r);
            if (out && (!kBorder || j < M)) store(out + j * panel.capacity, by * r);
        }
        if constexpr (kBorder)
            for (int c = 0; c < border->count; ++c) {
                const C value = C(row[columns.count + c]), factor = C(a) * value;
                if (a < 0) border->subtracted[c] -= factor * value;
                C* const to = border->sums + c * border->stride;
                for (int64_t j = 0; j < right; j += W)
                    store(to + j, load(to + j) + splat(factor) * load_as<C>(row + j));
            }
    }
}

/// Rows [first, last) of the dual panel, whole vectors: column c = scale[c] * base_scale o table row of entries[c];
/// padding columns are zero.
template <class C, class T>
static void pack_dual(const RotatedRows<T>& p, int64_t n, ExactWorkspace<C>& w, Panel<C> panel, int64_t first,
                      int64_t last) {
    constexpr int W = kWidth<C>, kAhead = 4 * W;
    const int64_t P = padded<T>(p.D);
    auto fetch = [&](int64_t c) { prefetch_row(p.table + p.terms.col_idx[w.entries[c]] * P + first, last - first); };
    if (!is_blocked(p.D))
        for (int64_t c = 0; c < n; ++c) fetch(c);
    for (int64_t c0 = 0; c0 < n; c0 += W) {
        if (is_blocked(p.D))
            for (int64_t c = c0 + kAhead; c < c0 + kAhead + W && c < n; ++c) fetch(c);
        C* out = panel.block(c0 / W);
        const T* row[W];
        Vec<C> scale[W];
        for (int i = 0; i < W; ++i) {
            const bool real = c0 + i < n;
            row[i] = p.table + p.terms.col_idx[w.entries[real ? c0 + i : c0]] * P;
            scale[i] = splat(real ? w.scale[c0 + i] : C(0));
        }
        for (int64_t j = first; j < last; j += W) {
            Vec<C> m[W];
            const Vec<C> b = load(w.base_scale + j);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) m[i] = scale[i] * (b * load_as<C>(row[i] + j));
            transpose<C>(m);
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) store(out + (j - first + i) * W, m[i]);
        }
    }
}

/// Where a row was, and how many times the way from there to its solution it is to go; nowhere: to the solution.
///
/// Successive over-relaxation (Young 1954): the loss is a parabola along that way with its minimum at the solution, so
/// it falls for every factor between 0 and 2.
template <class T>
struct Relaxation {
    const T* from = nullptr;  // (padded D), rotated
    double factor = 1;

    template <class C>
    void apply(C* z, int64_t D) const {
        if (!from) return;
        for (int64_t j = 0; j < D; ++j) z[j] = C(from[j]) + C(factor) * (z[j] - C(from[j]));
    }
};

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
    for (int64_t j = 0; j < D; ++j) w.base[j] = C(g * p.spectrum[j] + lambda);
    shape.base_min = w.base[0];
    shape.base_max = w.base[D - 1];
    const T* prior = p.prior ? p.prior + row * padded<T>(D) : nullptr;
    for (int64_t j = 0; j < M; ++j) w.rhs[j] = 0;
    if (prior)
        for (int64_t j = 0; j < D; ++j) w.rhs[j] = C(lambda * double(prior[j]));
    for (int64_t j = D; j < M; ++j) w.base[j] = 1;
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    const Signs signs = count_signs(p.terms, begin, end);
    shape.plus = signs.plus;
    shape.minus = signs.minus;
    shape.zero = end - begin - signs.plus - signs.minus;
    return shape;
}

template <class C>
constexpr C pivot_tolerance() {
    return C(sizeof(C) == 4 ? limits::pivot_tolerance_float32 : limits::pivot_tolerance_float64);
}

/// Sums over entries [begin, end) of a row, restricted to `columns`, slab by slab: to a, to rhs, and to `magnitude`
/// what is subtracted from the diagonal of a. `residual` as in pack_primal.
template <class C, class T>
static void sum_slabs(const RotatedRows<T>& p, int64_t begin, int64_t end, ExactWorkspace<C>& w, Columns columns,
                      const Panel<C>& a, C* rhs, C* magnitude, const T* residual = nullptr) {
    const Panel<C> panel{w.panel, kSlabCapacity};
    for (; begin < end; begin += kSlab) {
        const int64_t stop = end - begin < kSlab ? end : begin + kSlab;
        const Signs s = count_signs(p.terms, begin, stop);
        pack_primal(p, begin, stop, columns, panel, s, w.scale, rhs, residual);
        if (residual) residual += stop - begin;
        add_squares(panel, columns.M, s.plus, s.plus + s.minus, magnitude);
        add_gram_blocked(panel, columns.M, s.plus, s.plus + s.minus, a);
    }
}

/// solve_primal where is_blocked(columns.count).
template <class C, class T>
static RowStatus solve_primal_blocked(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, Columns columns,
                                      const C* partial, const T* residual, double* energy,
                                      const Relaxation<T>& relaxation, bool started) {
    const int64_t M = columns.M, capacity = blocked_capacity(M);
    Panel<C> a{w.start, capacity};
    for (int64_t j = 0; j < M; ++j) w.magnitude[j] = 0;
    if (partial) {
        a.data = const_cast<C*>(partial);
        const C *const rhs = partial + M * capacity, *const subtracted = rhs + M;
        for (int64_t j = 0; j < M; ++j) {
            w.rhs[j] += rhs[j];
            w.magnitude[j] = subtracted[j];
            a.block(j / kWidth<C>)[j * kWidth<C> + j % kWidth<C>] += w.base[columns.first + j];
        }
    } else {
        if (started)
            for (int64_t j = 0; j < M; ++j)
                a.block(j / kWidth<C>)[j * kWidth<C> + j % kWidth<C>] += w.base[columns.first + j];
        else
            start_blocked(a, M, w.base + columns.first);
        sum_slabs(p, p.terms.row_ptr[row], p.terms.row_ptr[row + 1], w, columns, a, w.rhs, w.magnitude, residual);
    }
    add_diagonal(a, M, w.magnitude);
    C* const b = w.dual;
    for (int64_t j = 0; energy && j < M; ++j) b[j] = w.rhs[j];
    const int64_t bad = factor_blocked<C>(a, M, w.magnitude, w.inverse, pivot_tolerance<C>(), w.rhs);
    if (bad) return RowStatus(bad);
    back_substitute(a, M, 0, w.inverse, w.rhs, w.scratch);
    relaxation.apply(w.rhs, p.D);
    if (energy) {
        *energy = factored_energy(a, M, 0, w.rhs);
        for (int64_t j = 0; j < M; ++j) *energy -= 2 * double(b[j]) * double(w.rhs[j]);
    }
    return 0;
}

/// Coordinates of the border of a system of `count`, or 0.
template <class C>
static constexpr int64_t border_of(int64_t count) {
    const int64_t rest = count % kWidth<C>;
    return count > rest && rest <= Border<C>::kMost ? rest : 0;
}

/// The end of a factorisation with a border: border.sums has its columns of U above the diagonal, (M) each, and behind
/// them its rows of the matrix from column M on, then in the same way a right-hand side. Leaves the Cholesky factor of
/// the border's own block there, its part of the solution in rhs[M..], and in rhs[0..M) what is left of the right-hand
/// side. Returns 0 or, counted from 1, the first bad pivot.
template <class C>
static int64_t factor_border(const Border<C>& border, int64_t M, const C* base, C* rhs) {
    const int n = border.count;
    auto of = [&](int row) { return border.sums + row * border.stride; };
    auto dot = [&](const C* x, const C* y) {
        Vec<C> s{};
        for (int64_t j = 0; j < M; j += kWidth<C>) s += load(x + j) * load(y + j);
        return sum_lanes<C>(s);
    };
    C solution[Border<C>::kMost ? Border<C>::kMost : 1] = {};
    for (int i = 0; i < n; ++i) {
        C* const ui = of(i) + M;
        const C magnitude = ui[i] + base[i] + border.subtracted[i];
        for (int j = i; j <= n; ++j) {  // the last is the right-hand side
            C value = j < n ? ui[j] : of(n)[M + i];
            value -= dot(of(i), of(j));
            if (j == i) value += base[i];
            for (int k = 0; k < i; ++k) value -= of(k)[M + i] * (j < n ? of(k)[M + j] : solution[k]);
            if (j == i) {
                if (!(value > pivot_tolerance<C>() * magnitude)) return i + 1;
                ui[i] = square_root(value);
            } else if (j < n) {
                ui[j] = value / ui[i];
            } else {
                solution[i] = value / ui[i];
            }
        }
    }
    for (int i = n - 1; i >= 0; --i) {
        for (int k = i + 1; k < n; ++k) solution[i] -= of(i)[M + k] * solution[k];
        solution[i] /= of(i)[M + i];
        rhs[M + i] = solution[i];
    }
    for (int64_t j = 0; j < M; j += kWidth<C>) {
        Vec<C> left = load(of(n) + j);
        for (int i = 0; i < n; ++i) left -= splat(solution[i]) * load(of(i) + j);
        store(rhs + j, left);
    }
    for (int64_t j = M + n; j < M + kWidth<C>; ++j) rhs[j] = 0;
    return 0;
}

/// The border's part of |U x|^2; what its columns add to the other rows' products goes to y (M).
template <class C>
static double border_energy(const Border<C>& border, int64_t M, const C* x, C* y) {
    double energy = 0;
    for (int64_t j = 0; j < M; ++j) y[j] = 0;
    for (int i = 0; i < border.count; ++i) {
        const C* const u = border.sums + i * border.stride;
        C product = 0;
        for (int k = i; k < border.count; ++k) product += u[M + k] * x[M + k];
        energy += double(product) * double(product);
        for (int64_t j = 0; j < M; ++j) y[j] += u[j] * x[M + i];
    }
    return energy;
}

/// solve_primal where not is_blocked(columns.count), with a border of so many coordinates or none.
template <class C, bool kBorder, class T>
static RowStatus solve_primal_in(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, Columns columns,
                                 int64_t borders, const C* partial, const T* residual, double* energy,
                                 const Relaxation<T>& relaxation, bool started) {
    // In the panel: all but the border, and whole vectors where there is one.
    const Columns inner = kBorder ? Columns{columns.first, columns.count - borders, columns.count - borders} : columns;
    const int64_t M = inner.M, K = panel_rows<C>(columns.count);
    Border<C> border;
    if constexpr (kBorder) {
        border.count = int(borders);
        border.sums = w.border;
        border.stride = padded<C>(p.D);
        for (int c = 0; c < borders; ++c)
            for (int64_t j = 0; j < columns.M; ++j) border.sums[c * border.stride + j] = 0;
    }
    const int64_t first = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    int64_t begin = first;
    auto rest = [&] { return residual ? residual + (begin - first) : nullptr; };
    Panel<C> start{w.start, M};
    if (partial) {
        start.data = const_cast<C*>(partial);
        for (int64_t j = 0; j < M; ++j) w.rhs[j] += partial[M * M + j];
        started = true;
        begin = end;
    }
    for (; end - begin > K; begin += K) {
        if (!started)
            for (int64_t i = 0; i < M * M; ++i) w.start[i] = 0;
        started = true;
        const Signs s = count_signs(p.terms, begin, begin + K);
        Panel<C> panel{w.panel, s.plus + s.minus};
        pack_primal<C, kBorder>(p, begin, begin + K, inner, panel, s, w.scale, w.rhs, rest(), &border);
        Upcoming next = upcoming<C>(p, begin + K, end, columns);
        add_gram(panel, M, s.plus, s.plus + s.minus, start, &next);
    }
    const Signs s = count_signs(p.terms, begin, end);
    const int64_t u_row = s.plus + s.minus;
    Panel<C> panel{w.panel, u_row + M};
    pack_primal<C, kBorder>(p, begin, end, inner, panel, s, w.scale, w.rhs, rest(), &border);
    C* const b = w.dual;
    for (int64_t j = 0; energy && j < columns.M; ++j) b[j] = w.rhs[j];
    // The border's rows are right-hand sides too: U^-T times them are its columns of U.
    if constexpr (kBorder)
        for (int64_t j = 0; j < columns.M; ++j) border.sums[borders * border.stride + j] = w.rhs[j];
    const RightSides<C> right =
        kBorder ? RightSides<C>{border.sums, border.stride, int(borders) + 1} : RightSides<C>{w.rhs};
    const int bad = factor<C>(panel, inner.count, s.plus, s.minus, w.base + columns.first, started ? &start : nullptr,
                              w.inverse, pivot_tolerance<C>(), right);
    if (bad) return bad;
    if constexpr (kBorder)
        if (const int64_t at = factor_border(border, M, w.base + columns.first + M, w.rhs)) return RowStatus(M + at);
    back_substitute(panel, M, u_row, w.inverse, w.rhs, w.scratch);
    relaxation.apply(w.rhs, p.D);
    if (energy) {
        *energy = kBorder ? border_energy(border, M, w.rhs, w.base_scale) : 0;
        *energy += factored_energy(panel, M, u_row, w.rhs, kBorder ? w.base_scale : nullptr);
        for (int64_t j = 0; j < columns.M; ++j) *energy -= 2 * double(b[j]) * double(w.rhs[j]);
    }
    return 0;
}

/// Solves the row's system restricted to `columns`, primal form, in place of w.rhs (which holds what is not a sum over
/// entries). `partial`: the sums over entries, from exact_partial. `residual` as in pack_primal, indexed from the
/// row's first entry. `energy`, if given: z' A z - 2 b' z at the result z, from the factor of A, which the entries
/// need not be read again for. `started`: w.start holds what A has besides entries and w.base, in the capacity of
/// system_capacity.
template <class C, class T>
static RowStatus solve_primal(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, Columns columns,
                              const C* partial = nullptr, const T* residual = nullptr, double* energy = nullptr,
                              const Relaxation<T>& relaxation = {}, bool started = false) {
    if (is_blocked(columns.count))
        return solve_primal_blocked(p, row, w, columns, partial, residual, energy, relaxation, started);
    const int64_t borders = started || partial ? 0 : border_of<C>(columns.count);
    if (borders > 0)
        return solve_primal_in<C, true, T>(p, row, w, columns, borders, partial, residual, energy, relaxation, started);
    return solve_primal_in<C, false, T>(p, row, w, columns, 0, partial, residual, energy, relaxation, started);
}

template <class C, class T>
static RowStatus solve_dual(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, const RowShape<C>& shape) {
    constexpr int W = kWidth<C>;
    const int64_t P = padded<T>(p.D), MD = round_up(p.D, W), n = shape.plus + shape.minus, M = round_up(n, W);
    const C sign = shape.minus ? C(-1) : C(1);
    for (int64_t j = 0; j < MD; ++j) w.base_scale[j] = C(1) / square_root(w.base[j]);
    int64_t c = 0;
    bool shifted = p.prior != nullptr;
    for (int64_t e = p.terms.row_ptr[row]; e < p.terms.row_ptr[row + 1]; ++e) {
        const C a = C(p.terms.gram(e)), rho = C(p.terms.rhs[e]);
        if (a != 0) {
            w.scale[c] = square_root(a > 0 ? a : -a);
            w.entries[c++] = e;
        } else if (rho != 0) {
            shifted = true;
            const T* r = p.table + p.terms.col_idx[e] * P;
            for (int64_t j = 0; j < MD; j += W) store(w.rhs + j, load(w.rhs + j) + splat(rho) * load_as<C>(r + j));
        }
    }
    C* const t = w.dual;  // (M): right-hand side, then w
    for (int64_t i = 0; i < n; ++i) t[i] = C(p.terms.rhs[w.entries[i]]) / w.scale[i];
    for (int64_t i = n; i < M; ++i) t[i] = 0;
    if (shifted)
        for (int64_t j = 0; j < MD; ++j) w.rhs[j] *= w.base_scale[j];
    // t -= sign times the panel's rows [first, last), in place there, by w.rhs
    auto shift = [&](const Panel<C>& panel, int64_t first, int64_t last) {
        for (int64_t b = 0; shifted && b < M / W; ++b) {
            Vec<C> s{};
            for (int64_t j = first; j < last; ++j) s += splat(w.rhs[j]) * load(panel.block(b) + (j - first) * W);
            store(t + b * W, load(t + b * W) - splat(sign) * s);
        }
    };
    C* ones;
    if (is_blocked(p.D)) {
        ones = w.magnitude;
        for (int64_t i = 0; i < M; ++i) ones[i] = 1;
        const Panel<C> panel{w.panel, kSlabCapacity}, a{w.start, blocked_capacity(M)};
        start_blocked(a, M, ones);
        for (int64_t i = 0; i < M; ++i) w.magnitude[i] = 0;
        for (int64_t first = 0; first < MD; first += kSlab) {
            const int64_t last = first + kSlab < MD ? first + kSlab : MD;
            pack_dual(p, n, w, panel, first, last);
            shift(panel, first, last);
            if (sign < 0) add_squares(panel, M, 0, last - first, w.magnitude);
            add_gram_blocked(panel, M, sign > 0 ? last - first : 0, last - first, a);
        }
        add_diagonal(a, M, w.magnitude);
        const int64_t bad = factor_blocked<C>(a, M, w.magnitude, w.inverse, pivot_tolerance<C>(), t);
        if (bad) return RowStatus(bad);
        back_substitute(a, M, 0, w.inverse, t, w.scratch);
    } else {
        Panel<C> panel{w.panel, MD + M};
        pack_dual(p, n, w, panel, 0, MD);
        shift(panel, 0, MD);
        ones = w.base;  // base is not needed below
        for (int64_t i = 0; i < M; ++i) ones[i] = 1;
        const int64_t n_plus = sign > 0 ? MD : 0;
        const int bad = factor<C>(panel, n, n_plus, MD - n_plus, ones, nullptr, w.inverse, pivot_tolerance<C>(), {t});
        if (bad) return bad;
        back_substitute(panel, M, MD, w.inverse, t, w.scratch);
    }
    for (int64_t i = 0; i < n; ++i) w.scale[i] *= t[i];
    // z = base_scale o (shift + base_scale o sum of scale r); the table rows are still in L2.
    auto combine = [&](auto nv, int64_t j0) {
        constexpr int NV = decltype(nv)::value;
        Vec<C> s[NV] = {};
        for (int64_t i = 0; i < n; ++i) {
            const T* r = p.table + p.terms.col_idx[w.entries[i]] * P + j0;
            const Vec<C> scale = splat(w.scale[i]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) s[v] += scale * load_as<C>(r + v * W);
        }
        for (int v = 0; v < NV; ++v) {
            const Vec<C> b = load(w.base_scale + j0 + v * W);
            Vec<C> z = b * s[v];
            if (shifted) z += load(w.rhs + j0 + v * W);
            store(w.rhs + j0 + v * W, b * z);
        }
    };
    int64_t j = 0;
    for (; j + 8 * W <= MD; j += 8 * W) combine(Count<8>{}, j);
    for (; j + 4 * W <= MD; j += 4 * W) combine(Count<4>{}, j);
    for (; j < MD; j += W) combine(Count<1>{}, j);
    return 0;
}

/// The first coordinate, counted from 1, on which neither background and ridge (w.base) nor entries act but for the
/// rounding of the rotation, or 0. The Cholesky factorisation compares a pivot with its own diagonal and would not see
/// it. Possible only with hardly any ridge and fewer independent rows on the other side than factors.
template <class C, class T>
static RowStatus undetermined(const RotatedRows<T>& p, int64_t row, const ExactWorkspace<C>& w) {
    if (!(double(w.base[0]) < limits::undetermined_base * double(w.base[p.D - 1]))) return 0;
    double largest = 0, diagonal;
    for (int64_t j = p.D - 1; j >= 0; --j) {  // the weakest at last
        diagonal = double(w.base[j]);
        for (int64_t e = p.terms.row_ptr[row]; e < p.terms.row_ptr[row + 1]; ++e) {
            const double r = double(p.table[p.terms.col_idx[e] * padded<T>(p.D) + j]), a = double(p.terms.gram(e));
            diagonal += (a > 0 ? a : -a) * r * r;
        }
        largest = diagonal > largest ? diagonal : largest;
        if (diagonal < limits::undetermined_diagonal * largest) return RowStatus(j + 1);
    }
    return 0;
}

/// Solution of one row to w.rhs, relaxed if the row has entries. `loss`, if given, gets the row's part of the loss
/// where that is a by-product, or NaN.
template <class C, class T>
static RowStatus solve_row_in(const RotatedRows<T>& p, int64_t row, ExactWorkspace<C>& w, const C* partial,
                              double* loss, const Relaxation<T>& relaxation) {
    const RowShape<C> shape = prepare<C>(p, row, w);
    const int64_t n = shape.plus + shape.minus, D = p.D;
    if (loss) *loss = __builtin_nan("");
    if (n + shape.zero == 0) {  // no entries: the prior mean, or zero
        const T* prior = p.prior ? p.prior + row * padded<T>(D) : nullptr;
        for (int64_t j = 0; j < D; ++j) w.rhs[j] = w.base[j] > 0 ? w.rhs[j] / w.base[j] : prior ? C(prior[j]) : C(0);
        return 0;
    }
    if (const RowStatus bad = undetermined(p, row, w)) return bad;
    const bool dual = !partial && n <= dual_limit(D) && (shape.plus == 0 || shape.minus == 0) &&
                      shape.base_min > C(limits::dual_base_span) * shape.base_max;
    if (dual) {
        const RowStatus status = solve_dual(p, row, w, shape);
        relaxation.apply(w.rhs, D);
        return status;
    }
    const Columns all{0, D, round_up(D, kWidth<C>)};
    const RowStatus status = solve_primal<C, T>(p, row, w, all, partial, nullptr, loss, relaxation);
    for (int64_t j = 0; loss && p.prior && j < D; ++j) {
        const double prior = double(p.prior[row * padded<T>(D) + j]);
        *loss += double(p.terms.ridge[row]) * prior * prior;
    }
    return status;
}

/// Copies a solution to z (padded D) in its dtype: 0, or -1 where it is not finite (there).
template <class C, class T>
static RowStatus take_solution(const C* from, int64_t D, T* z) {
    T check = 0;
    for (int64_t j = 0; j < D; ++j) {
        z[j] = T(from[j]);
        check += z[j] * T(0);  // NaN unless all are finite
    }
    for (int64_t j = D; j < padded<T>(D); ++j) z[j] = 0;
    return check == 0 ? 0 : -1;
}

/// Solves one row exactly into z (padded D). `loss` and `relaxation` as for solve_row_in.
template <class T>
static RowStatus solve_row(const RotatedRows<T>& p, int64_t row, char* memory, const T* partial, T* z,
                           double* loss = nullptr, const Relaxation<T>& relaxation = {}) {
    ExactWorkspace<T> w(memory, p.D);
    RowStatus status = solve_row_in<T>(p, row, w, partial, loss, relaxation);
    if (status == 0) status = take_solution(w.rhs, p.D, z);
    if constexpr (sizeof(T) == 4) {
        if (status != 0) {
            ExactWorkspace<double> wide(memory, p.D);
            status = solve_row_in<double>(p, row, wide, nullptr, loss, relaxation);
            if (status == 0) status = take_solution(wide.rhs, p.D, z);
        }
    }
    return status;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
