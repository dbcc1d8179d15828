// Subspace steps in the factors' own coordinates, for ranks at which the eigenvectors of the Gram matrix G would take
// longer than the steps.
//
// There G couples a block with all others: a step's gradient wants the block's rows of G z. Rows go through the blocks
// together, so that this is one matrix product for all rows of a call. The table lies block by block, so that what a
// block's steps gather is a part that a cache holds. Predictions of the rows' entries are kept up to date.
#pragma once

#include "dense-inl.h"
#include "solve_iterative-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// predicted[e - begin] += v . r for entries [begin, end), r the rows of the table; v (padded D).
template <class T>
static void add_products(const RotatedRows<T>& p, int64_t begin, int64_t end, const T* v, T* predicted) {
    constexpr int W = kWidth<T>, G = kGroup<T>;
    const int64_t P = padded<T>(p.D), M = round_up(p.D, W);
    for (int64_t e = begin; e < end; e += G, predicted += G) {
        const int count = end - e < G ? int(end - e) : G;
        const T* row[G];
        Vec<T> sum[G];
#pragma GCC unroll 8
        for (int i = 0; i < G; ++i) {
            row[i] = p.table + p.terms.col_idx[i < count ? e + i : e] * P;
            sum[i] = Vec<T>{};
        }
        for (int64_t j = 0; j < M; j += W) {
            const Vec<T> x = load(v + j);
#pragma GCC unroll 8
            for (int i = 0; i < G; ++i) sum[i] += x * load(row[i] + j);
        }
        T dots[W] __attribute__((aligned(WALS_VECTOR_BYTES)));
        store(dots, sum_each<T, G>(sum));
        for (int i = 0; i < count; ++i) predicted[i] += dots[i];
    }
}

/// One block of coordinates that the rows of a call step along.
template <class T>
struct Block {
    RotatedRows<T> rows;  // D: the block's coordinates; table: theirs of all table rows
    int64_t first;        // coordinate
    const double* gram;   // (D, D) of all coordinates
    int64_t D;
    const T* own_gram;  // (columns of the block)^2 in the layout of its system
};

/// Step of one row along a block, (count) to `step`: the solution of (g G_bb + lambda I + sum of a r r') step = sum of
/// errors r - g (G z)_b - lambda z_b. A pivot's number, counted from 1, where the system is singular to C's precision.
template <class C, class T>
static RowStatus block_step(const Block<T>& block, int64_t row, const T* gradient, const T* z, const T* errors,
                            char* memory, T* step) {
    constexpr int W = kWidth<C>;
    const RotatedRows<T>& p = block.rows;
    const int64_t count = p.D, M = round_up(count, W), capacity = system_capacity(count, M);
    const T g = p.terms.background[row], lambda = p.terms.ridge[row];
    ExactWorkspace<C> w(memory, count);
    const Panel<C> start{w.start, capacity};
    if constexpr (sizeof(C) == sizeof(T)) {
        for (int64_t k = 0; k < M * capacity; k += W) store(w.start + k, splat(g) * load(block.own_gram + k));
    } else {
        for (int64_t j = 0; j < M; ++j)
            for (int64_t i = 0; i < M; ++i) {
                const double* from = block.gram + (block.first + i) * block.D + block.first + j;
                start.block(j / W)[i * W + j % W] = i < count && j < count ? C(g) * C(*from) : C(0);
            }
    }
    for (int64_t j = 0; j < M; ++j) {
        w.base[j] = j < count ? C(lambda) : C(1);
        w.rhs[j] = j < count ? -(C(g) * C(gradient[j]) + C(lambda) * C(z[j])) : C(0);
    }
    const Columns all{0, count, M};
    if (const RowStatus bad = solve_primal<C, T>(p, row, w, all, nullptr, errors, nullptr, {}, /*started=*/true))
        return bad;
    for (int64_t j = 0; j < count; ++j) step[j] = T(w.rhs[j]);
    return 0;
}

/// Workspace of solve_plain_subspace.
template <class T>
struct PlainWorkspace {
    T *z, *gradient, *sums, *predicted, *errors, *own_gram, *step;

    PlainWorkspace(char* memory, int64_t D, int64_t block, int64_t entries) {
        const int64_t width = padded<T>(block);
        Carver carve{memory};
        z = carve.take<T>(kPlainRows * padded<T>(D));
        gradient = carve.take<T>(kPlainRows * width);
        sums = carve.take<T>(kPlainRows * 3 * kWidth<T>);
        predicted = carve.take<T>(entries);
        errors = carve.take<T>(entries);
        own_gram = carve.take<T>(width * system_capacity(block, width));
        step = carve.take<T>(width);
        rest = carve.at;
    }
    char* rest;
    static int64_t bytes(int64_t D, int64_t block, int64_t entries) {
        const int64_t own = int64_t(PlainWorkspace(nullptr, D, block, entries).rest - static_cast<char*>(nullptr));
        int64_t most = 0;  // the last block may be smaller, and then be solved in another way
        const int64_t widths[] = {block < D ? block : D, D % block > 0 ? D % block : block};
        for (const int64_t width : widths) {
            const int64_t narrow = ExactWorkspace<T>::bytes(width), wide = ExactWorkspace<double>::bytes(width);
            most = narrow > most ? narrow : most;
            most = wide > most ? wide : most;
        }
        return own + most + 64;
    }
};

/// One pass of subspace steps of n rows (kPlainRows at most), in place; defined by reference.solve_rows_subspace with
/// rotated=False. Rows without entries become zero. Cost of a row: 2 D^2 + n D block + D block^2 / 3 + 4 n D flops.
template <class T>
static void solve_plain_subspace(const PlainRows<T>& p, double relaxation, const int64_t* rows, int64_t n,
                                 int64_t entries, char* workspace, RowStatus* status) {
    constexpr int W = kWidth<T>;
    const int64_t D = p.D, P = padded<T>(D);
    PlainWorkspace<T> w(workspace, D, p.block, entries);
    auto length = [&](int64_t i) { return p.terms.row_ptr[rows[i] + 1] - p.terms.row_ptr[rows[i]]; };
    for (int64_t i = 0; i < n; ++i) {
        const T* from = p.factors + rows[i] * D;
        const bool empty = length(i) == 0;
        status[rows[i]] = 0;
        for (int64_t j = 0; j < P; ++j) w.z[i * P + j] = j < D && !empty ? from[j] : T(0);
    }
    for (int64_t e = 0; e < entries; ++e) w.predicted[e] = 0;

    /// Calls f(block) for each block of coordinates.
    auto each_block = [&](auto&& f) {
        for (int64_t first = 0; first < D; first += p.block) {
            Block<T> block;
            block.rows.terms = p.terms;
            block.rows.D = D - first < p.block ? D - first : p.block;
            block.rows.table = p.table + p.n_other * first;
            block.first = first;
            block.gram = p.gram;
            block.D = D;
            block.own_gram = w.own_gram;
            f(block);
        }
    };
    /// Calls f(i, row, its predictions) for each row of entries.
    auto each_row = [&](auto&& f) {
        T* predicted = w.predicted;
        for (int64_t i = 0; i < n; predicted += length(i++))
            if (length(i) > 0 && status[rows[i]] == 0) f(i, rows[i], predicted);
    };
    auto multiply_by_gram = [&](const Block<T>& block) {
        const int64_t width = padded<T>(block.rows.D), blocks = round_up(block.rows.D, W) / W;
        multiply_many_rows<T>([&](int64_t i) { return w.z + i * P; }, n, D, p.packed_gram + block.first * D, blocks,
                              w.sums,
                              [&](int64_t i, int64_t b, Vec<T> v) { store(w.gradient + i * width + b * W, v); });
    };
    each_block([&](const Block<T>& block) {
        each_row([&](int64_t i, int64_t row, T* predicted) {
            add_products(block.rows, p.terms.row_ptr[row], p.terms.row_ptr[row + 1], w.z + i * P + block.first,
                         predicted);
        });
    });
    each_block([&](const Block<T>& block) {
        const int64_t count = block.rows.D, width = padded<T>(count), M = round_up(count, W);
        multiply_by_gram(block);
        const Panel<T> own{w.own_gram, system_capacity(count, M)};
        for (int64_t i = 0; i < M; ++i)
            for (int64_t j = 0; j < M; ++j)
                own.block(j / W)[i * W + j % W] =
                    i < count && j < count ? T(p.gram[(block.first + i) * D + block.first + j]) : T(0);
        for (int64_t b = 0; b < M / W; ++b)  // what a capacity has beyond its rows is only copied
            for (int64_t k = M * W; k < own.capacity * W; ++k) own.block(b)[k] = 0;
        for (int64_t j = 0; j < width; ++j) w.step[j] = 0;
        each_row([&](int64_t i, int64_t row, T* predicted) {
            const int64_t begin = p.terms.row_ptr[row], end = p.terms.row_ptr[row + 1];
            for (int64_t e = begin; e < end; ++e)
                w.errors[e - begin] = p.terms.rhs[e] - p.terms.gram(e) * predicted[e - begin];
            T* const z = w.z + i * P + block.first;
            RowStatus bad = block_step<T>(block, row, w.gradient + i * width, z, w.errors, w.rest, w.step);
            if (sizeof(T) == 4 && bad)
                bad = block_step<double>(block, row, w.gradient + i * width, z, w.errors, w.rest, w.step);
            if (bad) {
                status[row] = RowStatus(block.first) + bad;
                return;
            }
            for (int64_t j = 0; j < count; ++j) z[j] += w.step[j] *= T(relaxation);
            add_products(block.rows, begin, end, w.step, predicted);
        });
    });
    each_row([&](int64_t i, int64_t row, T*) { status[row] = take_solution(w.z + i * P, D, w.z + i * P); });
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; status[rows[i]] == 0 && j < D; ++j) p.factors[rows[i] * D + j] = w.z[i * P + j];
    if (!p.loss) return;
    for (int64_t i = 0; i < n; ++i) p.loss[rows[i]] = 0;
    each_block([&](const Block<T>& block) {
        const int64_t width = padded<T>(block.rows.D);
        multiply_by_gram(block);
        each_row([&](int64_t i, int64_t row, T*) {
            const double g = double(p.terms.background[row]), lambda = double(p.terms.ridge[row]);
            for (int64_t j = 0; j < block.rows.D; ++j) {
                const double zj = double(w.z[i * P + block.first + j]);
                p.loss[row] += zj * (g * double(w.gradient[i * width + j]) + lambda * zj);
            }
        });
    });
    each_row([&](int64_t, int64_t row, T* predicted) {
        for (int64_t e = p.terms.row_ptr[row]; e < p.terms.row_ptr[row + 1]; ++e, ++predicted)
            p.loss[row] +=
                double(*predicted) * (double(p.terms.gram(e)) * double(*predicted) - 2 * double(p.terms.rhs[e]));
    });
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
