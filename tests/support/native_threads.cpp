// A program of its own, for sanitizers: every native call from several threads, each result bit by bit that of one.
//
// Built with the kernels of the baseline instruction set alone, which takes seconds; make sanitize has the others. With
// the name of a file it writes the results there, to be compared with those of another processor: for each array its
// length, then its values, all in float64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>

#include "../../csrc/cpu/neighbors.h"

namespace {

constexpr int64_t kRows = 300, kOther = 500, kGiant = 70000;  // the last row is so long that threads share it

template <class T>
struct World {
    int64_t D, padded = wals::cpu::padded<T>(D);
    std::mt19937 random{7};
    std::vector<int64_t> row_ptr{0};
    std::vector<int32_t> col_idx;
    std::vector<T> rhs, other, queries, factors;
    std::vector<double> spectrum, rotation;

    explicit World(int64_t factors_) : D(factors_) {
        for (int64_t row = 0; row < kRows; ++row) {
            const int64_t step = row == kRows - 1 ? 0 : 1 + int64_t(random() % 97);
            if (step)
                for (int64_t i = random() % 3; i < kOther && row % 50; i += step) col_idx.push_back(int32_t(i));
            else
                for (int64_t i = 0; i < kGiant; ++i) col_idx.push_back(int32_t(i * kOther / kGiant));
            row_ptr.push_back(int64_t(col_idx.size()));
        }
        std::normal_distribution<T> normal;
        auto fill = [&](std::vector<T>& array, int64_t n, T scale) {
            array.resize(size_t(n));
            for (T& value : array) value = normal(random) * scale;
        };
        fill(rhs, int64_t(col_idx.size()), T(1));
        for (T& value : rhs) value = 1 + std::abs(value);
        fill(other, kOther * padded, T(0.1));
        for (int64_t i = 0; i < kOther; ++i)
            for (int64_t d = D; d < padded; ++d) other[size_t(i * padded + d)] = 0;
        fill(queries, kRows * D, T(1));
        fill(factors, kRows * D, T(0.1));
        rotation.assign(size_t(D * D), 0.0);
        for (int64_t d = 0; d < D; ++d) {
            spectrum.push_back(0.1 * double(d));
            rotation[size_t(d * D + (d + 1) % D)] = 1;
        }
    }

    /// All that the calls compute, one after the other, each array behind its length.
    std::vector<double> results(int n_threads) {
        std::vector<double> out;
        auto keep = [&](const auto& array) {
            out.push_back(double(array.size()));
            out.insert(out.end(), array.begin(), array.end());
        };
        const T one = 1, ridge = T(0.3);
        wals::cpu::RotatedRows<T> problem;
        problem.terms.n_rows = kRows;
        problem.terms.row_ptr = row_ptr.data();
        problem.terms.col_idx = col_idx.data();
        problem.terms.rhs = {rhs.data(), 1};
        problem.terms.background = {&one, 0};
        problem.terms.ridge = {&ridge, 0};
        problem.D = D;
        problem.table = other.data();
        problem.spectrum = spectrum.data();
        problem.factor_stride = D;
        for (auto kind :
             {wals::cpu::Solver::kExact, wals::cpu::Solver::kConjugateGradients, wals::cpu::Solver::kSubspace})
            for (const double* q : {static_cast<const double*>(nullptr), static_cast<const double*>(rotation.data())}) {
                std::vector<T> x = factors;
                std::vector<double> loss(kRows);
                std::vector<wals::cpu::RowStatus> status(kRows);
                problem.factors = x.data();
                problem.loss = loss.data();
                wals::cpu::Solver solver;
                solver.kind = kind;
                solver.block = 16;
                wals::cpu::solve_rows<T>(problem, solver, q, status.data(), n_threads, {});
                keep(x), keep(loss), keep(status);
            }

        std::vector<double> gram(size_t(D * D)), totals(2);
        std::vector<T> rotated(size_t(kRows * padded)), items(size_t(kOther * D));
        for (int64_t i = 0; i < kOther; ++i)
            for (int64_t d = 0; d < D; ++d) items[size_t(i * D + d)] = other[size_t(i * padded + d)];
        wals::cpu::gram<T>(items.data(), kOther, D, {&one, 0}, gram.data(), n_threads, {});
        for (bool wide : {false, true}) {
            const wals::cpu::RotationSpace space(D, n_threads);
            wals::cpu::rotate<T>(factors.data(), kRows, D, rotation.data(), wide, rotated.data(), n_threads, space, {});
            keep(rotated);
        }
        wals::cpu::entry_loss<T>(problem.terms, factors.data(), items.data(), D, &totals[0], n_threads, {});
        std::vector<double> losses(size_t(wals::cpu::loss_blocks(kRows)));
        wals::cpu::ridge_losses<T>(factors.data(), nullptr, kRows, D, {&ridge, 0}, losses.data(), n_threads, {});
        for (double loss : losses) totals[1] += loss;
        keep(gram), keep(totals);

        const int64_t k = 20, n_queries = kRows - 1;  // rows without an item twice
        std::vector<int32_t> ids(size_t(n_queries * k));
        std::vector<T> scores(size_t(n_queries * k));
        std::vector<T> entries(rhs.size() - size_t(kGiant));
        int64_t scored = 0;
        std::vector<uint8_t> some(size_t(kOther), 1), few(size_t(kOther), 0);
        for (int64_t i = 0; i < kOther; ++i) some[size_t(i)] = i % 5 != 0, few[size_t(i)] = i % 5 == 0;
        const std::vector<T> norms(size_t(kOther), T(1.5));
        const std::vector<const uint8_t*> lists = {nullptr, some.data(), few.data()};
        // The same matrix as histories, of items that there are rows of, and as neighbours.
        std::vector<int32_t> history = col_idx;
        for (int32_t& item : history) item %= int32_t(n_queries);
        wals::cpu::Histories<T> some_history;
        some_history.n_queries = some_history.n_rows = n_queries;
        some_history.n_items = kOther;
        some_history.row_ptr = some_history.to_ptr = row_ptr.data();
        some_history.items = history.data();
        some_history.to = col_idx.data();
        some_history.weights = some_history.to_weights = rhs.data();
        some_history.n_entries = row_ptr[size_t(n_queries)];
        bool outside = false;
        for (int64_t n : {int64_t{1}, int64_t{3}, n_queries})
            for (size_t list = 0; list < lists.size(); ++list) {
                ids.assign(ids.size(), 0), scores.assign(scores.size(), T(0));
                wals::cpu::topk<T>(queries.data(), n, items.data(), kOther, D, k, true,
                                   list == 1 ? nullptr : row_ptr.data(), col_idx.data(), lists[list],
                                   list == 0 ? nullptr : norms.data(), nullptr, nullptr, ids.data(), scores.data(),
                                   &scored, &outside, n_threads, {});
                keep(ids), keep(scores);
                wals::cpu::topk<T>(queries.data(), n, items.data(), kOther, D, k, true, nullptr, nullptr, lists[list],
                                   nullptr, nullptr, &some_history, ids.data(), scores.data(), &scored, &outside,
                                   n_threads, {});
                keep(ids), keep(scores);
            }
        wals::cpu::topk_listed<T>(queries.data(), n_queries, items.data(), D, k, row_ptr.data(), col_idx.data(),
                                  norms.data(), ids.data(), scores.data(), n_threads, {});
        wals::cpu::score_entries<T>(queries.data(), n_queries, items.data(), D, row_ptr.data(), col_idx.data(),
                                    entries.data(), n_threads, {});
        keep(ids), keep(scores), keep(entries);

        std::vector<int64_t> item_ptr(size_t(kOther) + 1);
        std::vector<int32_t> users;
        for (int64_t i = 0; i < kOther; ++i) {
            for (int64_t row = 0; row < n_queries; ++row)
                if (std::binary_search(col_idx.begin() + row_ptr[size_t(row)],
                                       col_idx.begin() + row_ptr[size_t(row) + 1], int32_t(i)))
                    users.push_back(int32_t(row));
            item_ptr[size_t(i) + 1] = int64_t(users.size());
        }
        const int64_t m = 15;
        std::vector<int32_t> neighbors(size_t(kOther * m));
        std::vector<T> weights(size_t(kOther * m));
        for (int64_t memory : {int64_t{0}, int64_t{1} << 30}) {
            wals::cpu::Neighborhoods<T> p;
            p.n_users = n_queries;
            p.n_items = kOther;
            p.user_ptr = row_ptr.data();
            p.items = col_idx.data();
            p.item_ptr = item_ptr.data();
            p.users = users.data();
            p.user_weight = rhs.data();
            p.ridge = 0.5;
            p.stride = m;
            p.ids = neighbors.data();
            p.weights = weights.data();
            wals::cpu::fit_neighbors<T>(p, memory, n_threads, {});
            keep(neighbors), keep(weights);
        }
        return out;
    }
};

template <class T>
bool same(int64_t D, std::FILE* file) {
    World<T> world(D);
    const std::vector<double> expected = world.results(1);
    if (file) std::fwrite(expected.data(), sizeof(double), expected.size(), file);
    if (std::any_of(expected.begin(), expected.end(), [](double value) { return std::isnan(value); })) return false;
    return world.results(4) == expected;
}

}  // namespace

int main(int argc, char** argv) {
    std::FILE* file = argc > 1 ? std::fopen(argv[1], "wb") : nullptr;
    int n = same<float>(96, file);
    n += same<float>(7, file);
    n += same<double>(64, file);
    n += same<double>(17, file);
    if (file) std::fclose(file);
    std::printf("%d of 4 the same\n", n);
}
