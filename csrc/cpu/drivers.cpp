#include "drivers.h"

#include <algorithm>
#include <numeric>

namespace wals {
namespace {

/// Rows are solved in tasks of about this many entries x D, enough to hide the cost of handing one out.
constexpr int64_t kTaskWork = 1 << 17;

/// A row with more than this many multiply-adds in its Gram matrix is summed in slices that threads share. The slices
/// depend on the row alone, so that the result does not depend on the number of threads.
constexpr double kGiantWork = 5e8;
constexpr int64_t kSliceEntries = 4096;

/// Slabs of rows whose Gram matrices are summed separately, then in order.
int64_t gram_slabs(int64_t n, int64_t D) {
    const int64_t most = D > 512 ? 8 : 32;
    return std::max<int64_t>(1, std::min(most, n / 1024));
}

/// Row numbers, the longest rows first (counting sort on length; equal lengths stay in order).
std::vector<int64_t> longest_first(const int64_t* row_ptr, int64_t n_rows) {
    std::vector<int64_t> order(static_cast<size_t>(n_rows));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [row_ptr](int64_t a, int64_t b) {
        return row_ptr[a + 1] - row_ptr[a] > row_ptr[b + 1] - row_ptr[b];
    });
    return order;
}

}    // namespace

template <class T>
bool gram(const T* y, int64_t n, int64_t D, Broadcast<T> weight, double* out, int n_threads,
          const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t slabs = gram_slabs(n, D);
    Buffer sums(slabs * D * D * int64_t(sizeof(double)));
    std::fill_n(sums.as<double>(), slabs * D * D, 0.0);
    const auto workspace = buffers_per_thread(n_threads, k.gram_workspace_bytes(D));
    const bool done = parallel_for(slabs, n_threads, interrupted, [&](int64_t s, int thread) {
        k.gram(y, D, weight, n * s / slabs, n * (s + 1) / slabs, sums.as<double>() + s * D * D,
               workspace[size_t(thread)].data());
    });
    for (int64_t i = 0; i < D; ++i)
        for (int64_t j = i; j < D; ++j) {
            double total = 0;
            for (int64_t s = 0; s < slabs; ++s) total += sums.as<double>()[(s * D + i) * D + j];
            out[i * D + j] = out[j * D + i] = total;
        }
    return done;
}

template <class T>
bool rotate(const T* y, int64_t n, int64_t D, const double* q, T* out, int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t P = padded<T>(D), rows = 256;
    if (!q) {
        return parallel_for((n + rows - 1) / rows, n_threads, interrupted, [&](int64_t task, int) {
            for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i) {
                std::copy_n(y + i * D, D, out + i * P);
                std::fill(out + i * P + D, out + (i + 1) * P, T(0));
            }
        });
    }
    Buffer packed(k.rotation_size(D) * int64_t(sizeof(double)));
    k.pack_rotation(q, D, /*transposed=*/false, packed.as<double>());
    const auto workspace = buffers_per_thread(n_threads, 16 * D * int64_t(sizeof(double)));
    return parallel_for((n + rows - 1) / rows, n_threads, interrupted, [&](int64_t task, int thread) {
        const int64_t begin = task * rows, end = std::min(n, begin + rows);
        k.rotate(y + begin * D, end - begin, D, packed.as<double>(), out + begin * P,
                 workspace[size_t(thread)].template as<double>());
    });
}

template <class T>
bool solve_rows(RotatedRows<T> problem, const Solver& solver, const double* q, RowStatus* status, int n_threads,
                const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t* row_ptr = problem.terms.row_ptr;
    const int64_t n_rows = problem.terms.n_rows, D = problem.D;
    const int64_t packed = q ? k.factor_rotation_size(D) : 0;
    Buffer rotations(2 * packed * int64_t(sizeof(T)));
    if (q) {
        T* const into = rotations.as<T>();
        k.pack_factor_rotation(q, D, /*transposed=*/false, into);
        k.pack_factor_rotation(q, D, /*transposed=*/true, into + packed);
        problem.into = into;
        problem.back = into + packed;
    }
    const std::vector<int64_t> order = longest_first(row_ptr, n_rows);
    const int64_t longest = n_rows ? row_ptr[order[0] + 1] - row_ptr[order[0]] : 0;
    const auto workspace = buffers_per_thread(n_threads, k.workspace_bytes(D, longest));
    auto length = [row_ptr](int64_t row) { return row_ptr[row + 1] - row_ptr[row]; };

    int64_t first = 0;
    Buffer sums;
    int64_t sums_size = 0;
    for (; first<n_rows&& double(length(order[size_t(first)])) * double(D) * double(D)> kGiantWork &&
           length(order[size_t(first)]) >= 2 * kSliceEntries;
         ++first) {
        const int64_t row = order[size_t(first)], n = length(row), slices = n / kSliceEntries;
        const int64_t size = k.exact_partial_size(D);
        if (size * slices > sums_size) sums = Buffer((sums_size = size * slices) * int64_t(sizeof(T)));
        T* const sum = sums.as<T>();
        const bool done = parallel_for(slices, n_threads, interrupted, [&](int64_t s, int thread) {
            k.exact_partial(problem, row_ptr[row] + n * s / slices, row_ptr[row] + n * (s + 1) / slices,
                            workspace[size_t(thread)].data(), sum + s * size);
        });
        if (!done) return false;
        for (int64_t s = 1; s < slices; ++s)
            for (int64_t i = 0; i < size; ++i) sum[i] += sum[s * size + i];
        k.solve_exact_from(problem, row, sum, workspace[0].data(), status);
    }

    std::vector<int64_t> task_begin;    // tasks: consecutive rows of `order`
    int64_t work = 0;
    for (int64_t i = first; i < n_rows; ++i) {
        const int64_t cost = (length(order[size_t(i)]) + 4) * D;
        if (task_begin.empty() || work + cost > kTaskWork || i - task_begin.back() >= k.rows_per_call) {
            task_begin.push_back(i);
            work = 0;
        }
        work += cost;
    }
    task_begin.push_back(n_rows);
    return parallel_for(int64_t(task_begin.size()) - 1, n_threads, interrupted, [&](int64_t t, int thread) {
        const int64_t begin = task_begin[size_t(t)];
        k.solve(problem, solver, order.data() + begin, task_begin[size_t(t) + 1] - begin,
                workspace[size_t(thread)].data(), status);
    });
}

template <class T>
bool entry_loss(const RowTerms<T>& terms, const T* x, const T* y, int64_t D, double* total, int n_threads,
                const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t rows = 64, tasks = (terms.n_rows + rows - 1) / rows;
    std::vector<double> sums(size_t(tasks), 0.0);
    const bool done = parallel_for(tasks, n_threads, interrupted, [&](int64_t t, int) {
        sums[size_t(t)] = k.entry_loss(terms, x, y, D, t * rows, std::min(terms.n_rows, (t + 1) * rows));
    });
    *total = std::accumulate(sums.begin(), sums.end(), 0.0);
    return done;
}

#define WALS_INSTANTIATE(T)                                                                                         \
    template bool gram<T>(const T*, int64_t, int64_t, Broadcast<T>, double*, int, const Interrupted&);              \
    template bool rotate<T>(const T*, int64_t, int64_t, const double*, T*, int, const Interrupted&);                \
    template bool solve_rows<T>(RotatedRows<T>, const Solver&, const double*, RowStatus*, int, const Interrupted&); \
    template bool entry_loss<T>(const RowTerms<T>&, const T*, const T*, int64_t, double*, int, const Interrupted&);
WALS_INSTANTIATE(float)
WALS_INSTANTIATE(double)

}    // namespace wals
