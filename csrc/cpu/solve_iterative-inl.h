// Approximate solves of one row, in the same rotated basis as solve_exact-inl.h and from the row's present factor:
// conjugate gradients and subspace steps. Neither raises the row's part of the loss: each step minimises it over a
// direction, or over a block of coordinates.
#pragma once

#include "row_copy-inl.h"
#include "solve_exact-inl.h"

namespace wals::cpu {
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

/// One group of panel_pass: entries [e, e + count), count = G if kFull, else at most G. With kFetch it asks for the
/// rows `coming` as well, a line of each after a line of work: a whole row's lines at once would wait for each other
/// (CG on long rows takes a fifth longer).
template <class T, Pass kPass, int G, bool kFull, bool kFetch = false>
static inline __attribute__((always_inline)) double panel_group(const RotatedRows<T>& p, int64_t e, int count,
                                                                const T* v, T* out, T* diagonal,
                                                                const T* const* coming = nullptr) {
    constexpr int W = kWidth<T>;
    constexpr bool kUpdates = kPass == Pass::kResidual || kPass == Pass::kProduct;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    auto fetch_lines = [&](int64_t j) {
        if (j % (64 / int64_t(sizeof(T))) != 0) return;
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) __builtin_prefetch(coming[i] + j);
    };
    const T* row[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i)  // the last group repeats its first entry with weight 0
        row[i] = p.table + p.terms.col_idx[kFull || i < count ? e + i : e] * P;
    Vec<T> sum[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) sum[i] = Vec<T>{};
    for (int64_t j = 0; j < M; j += W) {
        if constexpr (kFetch && !kUpdates) fetch_lines(j);
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
        if constexpr (kFetch) fetch_lines(j);
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

/// Groups between asking for an entry's table row and taking it: fewer come late, more push others out of L1.
constexpr int kGroupsAhead = 2;

/// One pass over entries of a row, a Gram and rho right-hand coefficients, r rows of the table. The table rows are read
/// where they lie; `fetch` asks for those that are not in the nearest cache ahead of time (where they are it costs a
/// third). copy: where copies of them go (row_copy-inl.h), or null.
template <class T, Pass kPass>
static inline double panel_pass(const RotatedRows<T>& p, int64_t begin, int64_t end, bool fetch, const T* v, T* out,
                                T* diagonal, T* copy = nullptr) {
    constexpr int G = kGroup<T>;
    const int64_t P = padded<T>(p.D), stride = copy_stride<T>(p.D);
    auto copy_rows = [&](int64_t from, int64_t to) {
        if constexpr (kHasCopy<T> && kPass == Pass::kResidual)
            for (; copy && from < to; ++from, copy += stride) copy_row(p.table + p.terms.col_idx[from] * P, p.D, copy);
    };
    auto errors = [&](int64_t e) { return kPass == Pass::kErrors ? out + (e - begin) : out; };
    double loss = 0;
    int64_t e = begin;
    for (; e + G <= end; e += G) {
        const int64_t ahead = e + kGroupsAhead * G;
        if (fetch && ahead + G <= end) {
            const T* coming[G];
            for (int i = 0; i < G; ++i) coming[i] = p.table + p.terms.col_idx[ahead + i] * P;
            loss += panel_group<T, kPass, G, true, true>(p, e, G, v, errors(e), diagonal, coming);
        } else {
            for (int64_t last = ahead; fetch && last < end; ++last)
                prefetch_row(p.table + p.terms.col_idx[last] * P, P);
            loss += panel_group<T, kPass, G, true>(p, e, G, v, errors(e), diagonal);
        }
        copy_rows(e, e + G);
    }
    // What is left goes in a group of half the size if it fits: blocks of a long row end in one each.
    constexpr int H = G >= 4 ? G / 2 : G;
    const int rest = int(end - e);
    if (rest > H)
        loss += panel_group<T, kPass, G, false>(p, e, rest, v, errors(e), diagonal);
    else if (rest > 0)
        loss += panel_group<T, kPass, H, false>(p, e, rest, v, errors(e), diagonal);
    copy_rows(e, end);
    return loss;
}

/// panel_group for a product with copied rows, the first of them at `copy`.
template <int G, bool kFull>
static inline __attribute__((always_inline)) void copied_group(const RotatedRows<float>& p, int64_t e, int count,
                                                               const float* copy, const float* v, float* out) {
    constexpr int W = kWidth<float>;
    const int64_t stride = copy_stride<float>(p.D);
    const float* row[G];
    Vec<float> sum[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) {
        row[i] = kFull || i < count ? copy + i * stride : copy;
        sum[i] = Vec<float>{};
    }
    for (int64_t j = 0; j < stride; j += W) {
        const Vec<float> x = load(v + 2 * j), y = load(v + 2 * j + W);
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) {
            const Vec<float> word = load(row[i] + j);
            sum[i] += y * second_of_pair(word);
            sum[i] += x * first_of_pair(word);
        }
    }
    float dots[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
    store(dots, sum_each<float, G>(sum));
    Vec<float> weight[G];
#pragma GCC unroll 8
    for (int i = 0; i < G; ++i) weight[i] = splat(kFull || i < count ? p.terms.gram(e + i) * dots[i] : 0.0f);
    for (int64_t j = 0; j < stride; j += W) {
        Vec<float> x0 = load(out + 2 * j), y0 = load(out + 2 * j + W), x1{}, y1{};
#pragma GCC unroll 8
        for (int i = 0; i < G; i += 2) {
            const Vec<float> word0 = load(row[i] + j), word1 = load(row[i + 1] + j);
            x0 += weight[i] * first_of_pair(word0);
            y0 += weight[i] * second_of_pair(word0);
            x1 += weight[i + 1] * first_of_pair(word1);
            y1 += weight[i + 1] * second_of_pair(word1);
        }
        store(out + 2 * j, x0 + x1);
        store(out + 2 * j + W, y0 + y1);
    }
}

/// out += sum of a (r . v) r over entries [begin, end) from the copies of their rows; v and out have whole pairs of
/// vectors.
static inline void copied_product(const RotatedRows<float>& p, int64_t begin, int64_t end, const float* copy,
                                  const float* v, float* out) {
    constexpr int G = kGroup<float>, H = G >= 4 ? G / 2 : G;
    const int64_t stride = copy_stride<float>(p.D);
    int64_t e = begin;
    for (; e + G <= end; e += G, copy += G * stride) copied_group<G, true>(p, e, G, copy, v, out);
    const int rest = int(end - e);
    if (rest > H)
        copied_group<G, false>(p, e, rest, copy, v, out);
    else if (rest > 0)
        copied_group<H, false>(p, e, rest, copy, v, out);
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
    const bool fetch = (end - begin) * padded<T>(p.D) * int64_t(sizeof(T)) > limits::near_row_bytes;
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

/// Workspace of conjugate gradients.
template <class T>
struct CgWorkspace {
    T *base, *residual, *direction, *product, *diagonal, *inverse_diagonal, *copy;

    CgWorkspace(char* memory, int64_t D, int64_t longest) {
        const int64_t P = round_up(padded<T>(D), 2 * kWidth<T>);  // pairs of vectors: see row_copy-inl.h
        Carver carve{memory};
        base = carve.take<T>(P);
        residual = carve.take<T>(P);
        direction = carve.take<T>(P);
        product = carve.take<T>(P);
        diagonal = carve.take<T>(P);
        inverse_diagonal = carve.take<T>(P);
        const int64_t most = copied_entries<T>(D);
        copy = carve.take<T>((longest < most ? longest : most) * copy_stride<T>(D));
        end = carve.at;
    }
    char* end;
    static int64_t bytes(int64_t D, int64_t longest) {
        return int64_t(CgWorkspace(nullptr, D, longest).end - static_cast<char*>(nullptr));
    }
};

/// Preconditioned conjugate gradients on A z = b, from and to z (padded D); defined by reference.solve_rows_cg.
///
/// The preconditioner is the diagonal of A: in the rotated basis that is all of the background's share. The row stops
/// after solver.cg_steps, or when its preconditioned residual has fallen to solver.cg_tolerance times its first norm.
/// Cost: (steps + 1) passes of 4 n D flops, nothing of size D^2.
template <class T>
static RowStatus solve_row_cg(const RotatedRows<T>& p, int64_t row, const Solver& solver, char* memory, T* z,
                              const Relaxation<T>& relaxation) {
    constexpr int W = kWidth<T>;
    const int64_t D = p.D, M = round_up(D, W);
    const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
    const int64_t row_bytes = (end - begin) * padded<T>(D) * int64_t(sizeof(T));
    const bool is_far = row_bytes > limits::near_row_bytes;
    CgWorkspace<T> w(memory, D, end - begin);
    // Entries [begin, copied) are read from the table once, the others in every pass.
    int64_t copied = begin;
    if (kHasCopy<T> && solver.cg_steps <= limits::copy_steps && row_bytes > limits::copy_from_bytes &&
        count_signs(p.terms, begin, end).minus == 0) {
        const int64_t most = copied_entries<T>(D);
        copied = end - begin < most ? end : begin + most;
    }
    double loss = p.loss ? background_loss(p, row, z) : 0, fallen = 0;  // fallen: what the steps took from the loss
    start_row(p, row, z, w.base, w.residual);
    for (int64_t j = 0; j < M; ++j) w.diagonal[j] = w.base[j];
    loss += panel_pass<T, Pass::kResidual>(p, begin, copied, /*fetch=*/true, z, w.residual, w.diagonal, w.copy);
    loss += panel_pass<T, Pass::kResidual>(p, copied, end, /*fetch=*/true, z, w.residual, w.diagonal);
    if (copied > begin && !copy_lowers_loss(w.base, w.diagonal, D, relaxation.factor)) copied = begin;
    constexpr double kRounding = sizeof(T) == 4 ? limits::cg_rounding_float32 : limits::cg_rounding_float64;
    constexpr double kVanishing = sizeof(T) == 4 ? limits::cg_vanishing_float32 : limits::cg_vanishing_float64;
    constexpr double kEpsilon = sizeof(T) == 4 ? __FLT_EPSILON__ : __DBL_EPSILON__;
    const double least = solver.cg_tolerance > kRounding ? solver.cg_tolerance : kRounding;
    Vec<T> most{};
    int64_t j = 0;
    for (; j + W <= D; j += W) most = load(w.diagonal + j) > most ? load(w.diagonal + j) : most;
    T largest = 0;
    for (int l = 0; l < W; ++l) largest = most[l] > largest ? most[l] : largest;
    for (; j < D; ++j) largest = w.diagonal[j] > largest ? w.diagonal[j] : largest;
    // A coordinate moves where its diagonal element is above the first, or not above the second.
    const T ridge = p.terms.ridge[row], rounding = T(limits::cg_rounding_units * kEpsilon) * largest;
    const bool ridge_counts = limits::cg_small_ridge * ridge > rounding;
    const Vec<T> by_data = splat(rounding), by_ridge = splat(ridge_counts ? limits::cg_ridge_share * ridge : T(-1));
    Index<T> any{};
    for (j = 0; j < M; j += W) {
        const Vec<T> diagonal = load(w.diagonal + j);
        const Vec<T> inverse = (diagonal > by_data) | (diagonal <= by_ridge) ? splat(T(1)) / diagonal : Vec<T>{};
        const Vec<T> direction = inverse * load(w.residual + j);
        any |= direction != Vec<T>{};
        store(w.inverse_diagonal + j, inverse);
        store(w.direction + j, direction);
    }
    if (round_up(D, 2 * W) > M) {
        store(w.direction + M, Vec<T>{});
        store(w.product + M, Vec<T>{});
    }
    bool moves = false;
    for (int l = 0; l < W; ++l) moves |= any[l] != 0;
    T rho = dot(w.residual, w.direction, M);
    const double enough = least * least * double(rho);
    const bool in_range = (rho + largest) * T(0) == 0 && (!moves || double(rho) > kVanishing);
    for (int step = 0; step < solver.cg_steps; ++step) {
        if (!(double(rho) > enough && double(rho) > kVanishing)) break;
        for (j = 0; j < M; j += W) store(w.product + j, load(w.base + j) * load(w.direction + j));
        if constexpr (kHasCopy<T>) copied_product(p, begin, copied, w.copy, w.direction, w.product);
        panel_pass<T, Pass::kProduct>(p, copied, end, is_far, w.direction, w.product, nullptr);
        const T curvature = dot(w.direction, w.product, M);
        const double size = double(dot(w.direction, w.direction, M, w.diagonal));
        if (!(double(curvature) > limits::cg_least_curvature * kRounding * size)) break;
        const Vec<T> length = splat(rho / curvature);
        fallen += double(rho) / double(curvature) * double(rho);
        for (j = 0; j < M; j += W) {
            store(z + j, load(z + j) + length * load(w.direction + j));
            store(w.residual + j, load(w.residual + j) - length * load(w.product + j));
        }
        const T next = dot(w.residual, w.residual, M, w.inverse_diagonal);
        const Vec<T> keep = splat(next / rho);
        rho = next;
        for (j = 0; j < M; j += W)
            store(w.direction + j, load(w.inverse_diagonal + j) * load(w.residual + j) + keep * load(w.direction + j));
    }
    // Sums out of T's range leave NaN, infinity or a step that never was; the exact solve has a wider type.
    RowStatus status = in_range ? take_solution(z, D, z) : -1;
    if (status != 0) {
        status = solve_row<T>(p, row, memory, nullptr, z, nullptr, relaxation);
        if (p.loss && status == 0) p.loss[row] = row_loss(p, row, z);
        return status;
    }
    relaxation.apply(z, D);
    if (p.loss) {
        // A step lowers the loss by rho^2 / curvature, and as the last point has the lowest loss of all between start
        // and steps, w times the way there takes w (2 - w) of it. Where that is nearly all, what is left is mostly
        // rounding: that of T, or of the copy, whose curvatures have about four digits.
        fallen *= relaxation.factor * (2 - relaxation.factor);
        const double left = loss - fallen, enough_left = copied > begin ? 0.01 : 100;
        p.loss[row] = fallen < enough_left * (left < 0 ? -left : left) ? left : row_loss(p, row, z);
    }
    return status;
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
}  // namespace wals::cpu
