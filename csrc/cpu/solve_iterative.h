// Approximate solves of one row, in the same rotated basis as solve_exact.h and from the row's present factor:
// conjugate gradients and subspace steps. Neither raises the row's part of the loss: each step minimises it over a
// direction, or over a block of coordinates.
#pragma once

#include <new>

#include "solve_exact.h"

namespace wals {
namespace WALS_ISA {

/// Entries handled together in a product with the row's panel: enough independent sums to hide an FMA's latency.
template <class T>
constexpr int kGroup = kWidth<T> < 8 ? kWidth<T> : 8;

enum class Pass {
    kResidual,  // out += sum of (rho - a (r . v)) r, diagonal += sum of a r o r; returns what kLoss does, to T's
                // rounding
    kProduct,   // out += sum of a (r . v) r
    kErrors,    // errors[e] = rho - a (r . v)
    kLoss,      // returns the sum of a (r . v)^2 - 2 rho (r . v), added up in float64
};

/// One group of panel_pass: entries [e, e + count), count = G if kFull, else at most G.
template <class T, Pass kPass, int G, bool kFull>
static inline __attribute__((always_inline)) double panel_group(const RotatedRows<T>& p, int64_t e, int count,
                                                                const T* v, T* out, T* diagonal) {
    constexpr int W = kWidth<T>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    const T* row[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i)  // the last group repeats its first entry with weight 0
        row[i] = p.table + p.terms.col_idx[kFull || i < count ? e + i : e] * P;
    Vec<T> sum[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sum[i] = Vec<T>{};
    for (int64_t j = 0; j < M; j += W) {
        const Vec<T> x = load(v + j);
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) sum[i] += x * load(row[i] + j);
    }
    T dots[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
    store(dots, sum_each<T, G>(sum));
    if constexpr (kPass == Pass::kLoss) {
        double loss = 0;
        for (int i = 0; i < (kFull ? G : count); ++i)
            loss += double(dots[i]) * (double(p.terms.gram(e + i)) * double(dots[i]) - 2 * double(p.terms.rhs[e + i]));
        return loss;
    }
    Vec<T> weight[G], square[G];
    T loss = 0;
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) {
        const bool real = kFull || i < count;
        const T a = real ? p.terms.gram(e + i) : T(0);
        if constexpr (kPass == Pass::kErrors) {
            if (real) out[i] = p.terms.rhs[e + i] - a * dots[i];
        } else {
            const T rho = kPass == Pass::kResidual && real ? p.terms.rhs[e + i] : T(0);
            const T w = kPass == Pass::kResidual ? rho - a * dots[i] : a * dots[i];
            if constexpr (kPass == Pass::kResidual) loss -= dots[i] * (w + rho);
            weight[i] = splat(w);
            square[i] = splat(a);
        }
    }
    if constexpr (kPass == Pass::kErrors) return 0;
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
    return double(loss);
}

/// One pass over entries of a row, a Gram and rho right-hand coefficients, r rows of the table. The table rows are read
/// where they lie; `fetch` asks for those that are not in the cache ahead of time (where they are it costs 15 %).
template <class T, Pass kPass>
static inline double panel_pass(const RotatedRows<T>& p, int64_t begin, int64_t end, bool fetch, const T* v, T* out,
                                T* diagonal) {
    constexpr int G = kGroup<T>;
    const int64_t P = padded<T>(p.D);
    auto errors = [&](int64_t e) { return kPass == Pass::kErrors ? out + (e - begin) : out; };
    double loss = 0;
    int64_t e = begin;
    for (; e + G <= end; e += G) {
        if (fetch)
            for (int64_t ahead = e + 2 * G; ahead < e + 3 * G && ahead < end; ++ahead)
                prefetch_row(p.table + p.terms.col_idx[ahead] * P, P);
        loss += panel_group<T, kPass, G, true>(p, e, G, v, errors(e), diagonal);
    }
    // What is left goes in a group of half the size if it fits: blocks of a long row end in one each.
    constexpr int H = G >= 4 ? G / 2 : G;
    const int rest = int(end - e);
    if (rest > H)
        loss += panel_group<T, kPass, G, false>(p, e, rest, v, errors(e), diagonal);
    else if (rest > 0)
        loss += panel_group<T, kPass, H, false>(p, e, rest, v, errors(e), diagonal);
    return loss;
}

/// What a row adds to the loss apart from its entries: g z' diag(spectrum) z + lambda |z - prior|^2.
template <class T>
static inline double background_loss(const RotatedRows<T>& p, int64_t row, const T* z) {
    const T* prior = p.prior ? p.prior + row * padded<T>(p.D) : nullptr;
    double background = 0, ridge = 0;
    for (int64_t j = 0; j < p.D; ++j) {
        const double difference = double(z[j]) - (prior ? double(prior[j]) : 0.0);
        background += p.spectrum[j] * double(z[j]) * double(z[j]);
        ridge += difference * difference;
    }
    return double(p.terms.background[row]) * background + double(p.terms.ridge[row]) * ridge;
}

/// The row's part of the loss at z: a pass over its entries while they are in the cache.
template <class T>
static inline double row_loss(const RotatedRows<T>& p, int64_t row, const T* z) {
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    const bool fetch = (end - begin) * padded<T>(p.D) * int64_t(sizeof(T)) > kLongRowBytes;
    return background_loss(p, row, z) + panel_pass<T, Pass::kLoss>(p, begin, end, fetch, z, nullptr, nullptr);
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

/// State of one row.
template <class T>
struct CgRow {
    T *base, *residual, *direction, *product, *diagonal, *inverse_diagonal, *z;
    int64_t row, begin, end, at;
    T rho;
    double enough, loss;  // of the start; what the steps took from it is in `fallen`
    double fallen;
    bool active, in_range;

    CgRow(char* memory, int64_t D) {
        const int64_t P = padded<T>(D);
        Carver carve{memory};
        base = carve.take<T>(P);
        residual = carve.take<T>(P);
        direction = carve.take<T>(P);
        product = carve.take<T>(P);
        diagonal = carve.take<T>(P);
        inverse_diagonal = carve.take<T>(P);
        memory_end = carve.at;
    }
    char* memory_end;
    static int64_t bytes(int64_t D) {
        return int64_t(CgRow(nullptr, D).memory_end - static_cast<char*>(nullptr)) + round_up(sizeof(CgRow), 64);
    }
};

/// panel_pass over all entries of the active rows; the product pass reads the direction, the others z.
///
/// Long rows go over a block of the table at a time, which stays in L2 while each of them takes its entries from it;
/// alone, each would fetch its share of the whole table from memory in every pass. Sums are split at the blocks'
/// limits also for a single long row, so that the result does not depend on which rows are together.
template <class T, Pass kPass>
static inline void pass_together(const RotatedRows<T>& p, CgRow<T>* const* rows, int n, bool are_long) {
    const int64_t block = kLongRowBytes / (padded<T>(p.D) * int64_t(sizeof(T)));
    auto one = [&](CgRow<T>& r, int64_t begin, int64_t end, bool fetch) {
        if constexpr (kPass == Pass::kProduct)
            panel_pass<T, kPass>(p, begin, end, fetch, r.direction, r.product, nullptr);
        else
            r.loss += panel_pass<T, kPass>(p, begin, end, fetch, r.z, r.residual, r.diagonal);
    };
    if (!are_long) {
        for (int i = 0; i < n; ++i)
            if (rows[i]->active) one(*rows[i], rows[i]->begin, rows[i]->end, kPass == Pass::kResidual);
        return;
    }
    int64_t n_columns = 0;
    for (int i = 0; i < n; ++i) {
        const int64_t columns = p.terms.col_idx[rows[i]->end - 1] + 1;
        n_columns = columns > n_columns ? columns : n_columns;
    }
    for (int i = 0; i < n; ++i) rows[i]->at = rows[i]->begin;
    for (int64_t limit = block; limit < n_columns + block; limit += block)
        for (int i = 0; i < n; ++i) {
            CgRow<T>& r = *rows[i];
            if (!r.active) continue;
            int64_t low = r.at, high = r.end;  // first entry at or beyond the limit
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (p.terms.col_idx[middle] < limit)
                    low = middle + 1;
                else
                    high = middle;
            }
            one(r, r.at, low, true);
            r.at = low;
        }
}

/// Preconditioned conjugate gradients on A z = b for n rows, from and to z (n, padded D); defined by
/// reference.solve_rows_cg.
///
/// The preconditioner is the diagonal of A: in the rotated basis that is all of the background's share. A row stops
/// after `steps`, or when its preconditioned residual has fallen to `tolerance` times its first norm. Cost: (steps + 1)
/// passes of 4 n D flops, nothing of size D^2. are_long: see pass_together. `start`: what z holds at first, for the
/// relaxation.
template <class T>
static void solve_rows_cg(const RotatedRows<T>& p, const int64_t* row_ids, int n, bool are_long, const Solver& solver,
                          char* memory, const T* start, T* z, RowStatus* status) {
    constexpr int W = kWidth<T>;
    const int64_t D = p.D, M = round_up(D, W), P = padded<T>(D);
    CgRow<T>* rows[kLongRowsTogether];
    for (int i = 0; i < n; ++i) {
        char* place = memory + i * CgRow<T>::bytes(D);
        CgRow<T>& r = *(rows[i] = new (place) CgRow<T>(place + round_up(sizeof(CgRow<T>), 64), D));
        r.row = row_ids[i];
        r.begin = p.terms.row_ptr[r.row];
        r.end = p.terms.row_ptr[r.row + 1];
        r.z = z + i * P;
        r.active = true;
        r.loss = p.loss ? background_loss(p, r.row, r.z) : 0;
        r.fallen = 0;
        start_row(p, r.row, r.z, r.base, r.residual);
        for (int64_t j = 0; j < M; ++j) r.diagonal[j] = r.base[j];
    }
    pass_together<T, Pass::kResidual>(p, rows, n, are_long);
    // Below these the residual, or a direction's curvature, is rounding. Following it in a singular system (no ridge,
    // fewer entries than factors) would walk off along its null space.
    constexpr double kRounding = sizeof(T) == 4 ? 1e-6 : 1e-15;
    const double least = solver.cg_tolerance > kRounding ? solver.cg_tolerance : kRounding;
    constexpr double kEpsilon = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
    constexpr double kVanishing = sizeof(T) == 4 ? 1e-36 : 1e-300;  // below it squares have few digits, or are zero
    for (int i = 0; i < n; ++i) {
        CgRow<T>& r = *rows[i];
        Vec<T> most{};
        int64_t j = 0;
        for (; j + W <= D; j += W) most = load(r.diagonal + j) > most ? load(r.diagonal + j) : most;
        T largest = 0;
        for (int l = 0; l < W; ++l) largest = most[l] > largest ? most[l] : largest;
        for (; j < D; ++j) largest = r.diagonal[j] > largest ? r.diagonal[j] : largest;
        // A coordinate keeps its value where the data say less of it than their rounding and there is no ridge, or one
        // so small that rounding over ridge is a long way.
        const T ridge = p.terms.ridge[r.row], rounding = T(4 * kEpsilon) * largest;
        const Vec<T> by_data = splat(rounding), by_ridge = splat(1000 * ridge > rounding ? 2 * ridge : T(-1));
        Index<T> any{};
        for (j = 0; j < M; j += W) {
            const Vec<T> diagonal = load(r.diagonal + j);
            const Vec<T> inverse = (diagonal > by_data) | (diagonal <= by_ridge) ? splat(T(1)) / diagonal : Vec<T>{};
            const Vec<T> direction = inverse * load(r.residual + j);
            any |= direction != Vec<T>{};
            store(r.inverse_diagonal + j, inverse);
            store(r.direction + j, direction);
        }
        bool moves = false;
        for (int l = 0; l < W; ++l) moves |= any[l] != 0;
        r.rho = dot(r.residual, r.direction, M);
        r.enough = least * least * double(r.rho);
        r.in_range = (r.rho + largest) * T(0) == 0 && (!moves || double(r.rho) > kVanishing);
    }
    for (int step = 0; step < solver.cg_steps; ++step) {
        for (int i = 0; i < n; ++i) {
            CgRow<T>& r = *rows[i];
            r.active = r.active && double(r.rho) > r.enough && double(r.rho) > kVanishing;
            for (int64_t j = 0; j < M; j += W) store(r.product + j, load(r.base + j) * load(r.direction + j));
        }
        pass_together<T, Pass::kProduct>(p, rows, n, are_long);
        for (int i = 0; i < n; ++i) {
            CgRow<T>& r = *rows[i];
            if (!r.active) continue;
            const T curvature = dot(r.direction, r.product, M);
            if (!(double(curvature) > 10 * kRounding * double(dot(r.direction, r.direction, M, r.diagonal)))) {
                r.active = false;
                continue;
            }
            const Vec<T> length = splat(r.rho / curvature);
            r.fallen += double(r.rho) / double(curvature) * double(r.rho);
            for (int64_t j = 0; j < M; j += W) {
                store(r.z + j, load(r.z + j) + length * load(r.direction + j));
                store(r.residual + j, load(r.residual + j) - length * load(r.product + j));
            }
            const T next = dot(r.residual, r.residual, M, r.inverse_diagonal);
            const Vec<T> keep = splat(next / r.rho);
            r.rho = next;
            for (int64_t j = 0; j < M; j += W)
                store(r.direction + j,
                      load(r.inverse_diagonal + j) * load(r.residual + j) + keep * load(r.direction + j));
        }
    }
    auto relaxation = [&](int i) { return Relaxation<T>{start + i * P, solver.relaxation}; };
    int failed[kLongRowsTogether], n_failed = 0;
    for (int i = 0; i < n; ++i) {
        CgRow<T>& r = *rows[i];
        // Sums out of T's range leave NaN, infinity or a step that never was; the exact solve has a wider type.
        status[r.row] = r.in_range ? take_solution(r.z, D, r.z) : -1;
        if (status[r.row] != 0) failed[n_failed++] = i;
        if (solver.relaxation != 1) relaxation(i).apply(r.z, D);
        if (!p.loss) continue;
        // A step lowers the loss by rho^2 / curvature, and as the last point has the lowest loss of all between start
        // and steps, w times the way there takes w (2 - w) of it. Where that is nearly all, what is left is mostly
        // rounding.
        const double loss = r.loss - solver.relaxation * (2 - solver.relaxation) * r.fallen;
        p.loss[r.row] = r.fallen < 100 * (loss < 0 ? -loss : loss) ? loss : row_loss(p, r.row, r.z);
    }
    for (int f = 0; f < n_failed; ++f) {  // last: their workspace is that of all rows
        const int64_t row = row_ids[failed[f]];
        T* const zi = z + failed[f] * P;
        status[row] = solve_row<T>(p, row, memory, nullptr, zi, nullptr, relaxation(failed[f]));
        if (p.loss && status[row] == 0) p.loss[row] = row_loss(p, row, zi);
    }
}

/// One pass of subspace steps (iALS++, Rendle et al. 2021) from z (padded D), in place: block after block of `width`
/// rotated coordinates is solved exactly with the others fixed. Defined by reference.solve_rows_subspace.
///
/// The rotation takes the background's coupling between blocks away, so a block's gradient needs only the errors of the
/// row's own entries, which are kept up to date. A row with no more entries than a block has columns is solved
/// exactly: its dual form costs less. Relaxation is that of each block's step. Cost: n D width + D width^2 / 3 + 6 n D
/// flops.
template <class T>
static RowStatus solve_row_subspace(const RotatedRows<T>& p, int64_t row, int64_t width, char* memory, T* errors, T* z,
                                    const Relaxation<T>& relaxation) {
    constexpr int W = kWidth<T>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    auto exactly = [&] { return solve_row<T>(p, row, memory, nullptr, z, nullptr, relaxation); };
    if (end - begin <= width || width >= M) return exactly();
    ExactWorkspace<T> w(memory, p.D);
    T* const gradient = w.base_scale;
    start_row(p, row, z, w.base, gradient);
    if (const RowStatus bad = undetermined(p, row, w)) return bad;
    panel_pass<T, Pass::kErrors>(p, begin, end, /*fetch=*/true, z, errors, nullptr);
    for (int64_t j0 = 0; j0 < M; j0 += width) {
        const int64_t count = p.D - j0 < width ? p.D - j0 : width, m = round_up(count, W);
        for (int64_t j = 0; j < m; ++j) w.rhs[j] = gradient[j0 + j];
        if (solve_primal<T>(p, row, w, {j0, count, m}, nullptr, errors))
            return exactly();  // near-singular: the exact solve has a wider fallback
        for (int64_t j = 0; j < count; ++j) z[j0 + j] += w.rhs[j] *= T(relaxation.factor);
        if (j0 + width >= M) break;
        for (int64_t e = begin; e < end; ++e) {
            const T* r = p.table + p.terms.col_idx[e] * P + j0;
            Vec<T> s{};
            for (int64_t j = 0; j < m; j += W) s += load(w.rhs + j) * load(r + j);
            errors[e - begin] -= p.terms.gram(e) * sum_lanes<T>(s);
        }
    }
    const RowStatus status = take_solution(z, p.D, z);
    return status == 0 ? 0 : exactly();
}

}  // namespace WALS_ISA
}  // namespace wals
