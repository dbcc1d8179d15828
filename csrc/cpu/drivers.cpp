#include "drivers.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <numeric>

namespace wals::cpu {
namespace {

/// Rows are solved in tasks of about this many entries x D, enough to hide the cost of handing one out.
constexpr int64_t kTaskWork = 1 << 19;

/// The same in multiply-adds, where each task reads a large rotation: some hundredths of a second.
constexpr int64_t kRotatedTaskWork = int64_t{1} << 31;

/// Order of work: rows of more than `limit` entries, the longest first, so that no thread is left with one at the end;
/// then the others as they come, so that their entries and factors are read in a stream.
std::vector<int64_t> order_of_work(const int64_t* row_ptr, int64_t n_rows, int64_t limit) {
    auto length = [row_ptr](int64_t row) { return row_ptr[row + 1] - row_ptr[row]; };
    std::vector<int64_t> order(static_cast<size_t>(n_rows));
    std::iota(order.begin(), order.end(), int64_t{0});
    const auto rest =
        std::stable_partition(order.begin(), order.end(), [&](int64_t row) { return length(row) > limit; });
    std::stable_sort(order.begin(), rest, [&](int64_t a, int64_t b) { return length(a) > length(b); });
    return order;
}

/// Candidates that a query's list has room for before it is cut to k.
int64_t topk_capacity(int64_t k) {
    return k + std::max<int64_t>(k, 32);
}

/// Queries of a task: every thread gets the same number of equal chunks. At most what keeps lists and bounds in the
/// cache (L2) while items pass, and less than about half a second's work, as Ctrl-C waits for a task. What is added to
/// scores, so many bytes a query, is to stay in a share of L3; of fewer than 32 queries at a time the int8 filter has
/// nothing (topk_int8.cpp).
int64_t topk_chunk(int64_t B, int64_t n_items, int64_t D, int64_t capacity, int64_t added_bytes, int n_threads) {
    const int64_t room = (4 << 20) / (8 * capacity), work = (int64_t{1} << 35) / std::max<int64_t>(1, n_items * D);
    int64_t most = std::clamp<int64_t>(std::min(room, work), 64, 1024);
    if (added_bytes > 0) most = std::clamp<int64_t>((8 << 20) / added_bytes, 32, most);
    const int64_t share = (B + n_threads - 1) / n_threads;
    const int64_t rounds = std::max<int64_t>(1, (share + most - 1) / most);
    return std::max<int64_t>(1, (share + rounds - 1) / rounds);
}

/// What rows of added numbers have beyond their items, as kernels read whole tiles of them.
constexpr int64_t kAddedMargin = 3 * 16;

/// Eight marks from `first` on, those that are there: a byte of 1 for each that is not 0, the first one lowest.
uint64_t eight_marks(const uint8_t* marks, int64_t first, int64_t n) {
    uint64_t word = 0;
    std::memcpy(&word, marks + first, size_t(std::min<int64_t>(8, n - first)));
    constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
    return (((word & low) + low) | word) >> 7 & 0x0101010101010101;
}

int64_t count_marks(const uint8_t* marks, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += 8) count += int64_t(eight_marks(marks, i, n) * 0x0101010101010101 >> 56);
    return count;
}

/// row (count_marks + 8) = the places of marks that are not 0; written past its end.
void list_marks(const uint8_t* marks, int64_t n, int32_t* row) {
    for (int64_t i = 0; i < n; i += 8) {
        uint64_t word = eight_marks(marks, i, n);
        if (word == 0) continue;
        for (int32_t j = 0; j < 8; ++j, word >>= 8) {
            *row = int32_t(i) + j;
            row += word & 1;
        }
    }
}

}  // namespace

std::vector<int64_t> gram_bounds(int64_t n, int64_t D) {
    const int64_t most = D > 512 ? 8 : 32, slabs = std::max<int64_t>(1, std::min(most, n / 1024));
    std::vector<int64_t> bounds;
    for (int64_t s = 0; s <= slabs; ++s) bounds.push_back(n * s / slabs);
    return bounds;
}

/// sums (slabs / together, D, D): sums of the Gram matrices of so many slabs each, block by block of their columns.
template <class T>
static bool gram_blocks(const T* y, int64_t D, Broadcast<T> weight, const int64_t* bounds, int64_t slabs,
                        int64_t together, double* sums, int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t blocks = (D + k.gram_block_columns - 1) / k.gram_block_columns;
    const auto workspace = buffers_per_thread(n_threads, k.gram_block_workspace_bytes());
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t i = 0; i < blocks; ++i)
        for (int64_t j = i; j < blocks; ++j) pairs.emplace_back(i, j);
    const int64_t of_each = int64_t(pairs.size());
    return parallel_for(slabs / together * of_each, n_threads, interrupted, [&](int64_t task, int thread) {
        const int64_t s = task / of_each;
        const auto [i, j] = pairs[size_t(task % of_each)];
        k.gram_block(y, D, weight, bounds + s * together, together, i, j, sums + s * D * D,
                     workspace[size_t(thread)].data());
    });
}

template <class T>
bool gram_slabs(const T* y, int64_t D, Broadcast<T> weight, const int64_t* bounds, int64_t slabs, double* sums,
                int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    if (D > limits::blocked_factors)
        return gram_blocks(y, D, weight, bounds, slabs, /*together=*/1, sums, n_threads, interrupted);
    std::fill_n(sums, slabs * D * D, 0.0);
    const auto workspace = buffers_per_thread(n_threads, k.gram_workspace_bytes(D));
    return parallel_for(slabs, n_threads, interrupted, [&](int64_t s, int thread) {
        k.gram(y, D, weight, bounds[s], bounds[s + 1], sums + s * D * D, workspace[size_t(thread)].data());
    });
}

template <class T>
bool gram(const T* y, int64_t n, int64_t D, Broadcast<T> weight, double* out, int n_threads,
          const Interrupted& interrupted) {
    const std::vector<int64_t> bounds = gram_bounds(n, D);
    const int64_t slabs = int64_t(bounds.size()) - 1;
    if (D > limits::blocked_factors)  // a copy of the result for each slab would take more memory than the factors
        return gram_blocks(y, D, weight, bounds.data(), slabs, /*together=*/slabs, out, n_threads, interrupted);
    Buffer sums(slabs * D * D * int64_t(sizeof(double)));
    const bool done = gram_slabs(y, D, weight, bounds.data(), slabs, sums.as<double>(), n_threads, interrupted);
    for (int64_t i = 0; i < D; ++i)
        for (int64_t j = i; j < D; ++j) {
            double total = 0;
            for (int64_t s = 0; s < slabs; ++s) total += sums.as<double>()[(s * D + i) * D + j];
            out[i * D + j] = out[j * D + i] = total;
        }
    return done;
}

RotationSpace::RotationSpace(int64_t D, int n_threads)
    : packed(std::max(kernels<double>().rotation_size(D) * int64_t(sizeof(double)),
                      kernels<float>().factor_rotation_size(D) * int64_t(sizeof(float)))),
      per_thread(buffers_per_thread(n_threads, rotation_workspace(D) * int64_t(sizeof(double)))) {}

template <class T>
bool rotate(const T* y, int64_t n, int64_t D, const double* q, bool wide, T* out, int n_threads,
            const RotationSpace& space, const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t P = padded<T>(D), rows = kRotatedRows;
    if (!q) {
        return parallel_for((n + rows - 1) / rows, n_threads, interrupted, [&](int64_t task, int) {
            for (int64_t i = task * rows; i < std::min(n, (task + 1) * rows); ++i) {
                std::copy_n(y + i * D, D, out + i * P);
                std::fill(out + i * P + D, out + (i + 1) * P, T(0));
            }
        });
    }
    const int64_t tasks = (n + rows - 1) / rows;
    if (wide)
        k.pack_rotation(q, D, /*transposed=*/false, space.packed.as<double>());
    else
        k.pack_factor_rotation(q, D, /*transposed=*/false, space.packed.as<T>());
    return parallel_for(tasks, n_threads, interrupted, [&](int64_t task, int thread) {
        const int64_t begin = task * rows, count = std::min(n - begin, rows);
        const Buffer& own = space.per_thread[size_t(thread)];
        if (wide)
            k.rotate(y + begin * D, count, D, space.packed.as<double>(), out + begin * P, own.as<double>());
        else
            k.rotate_in_factor_type(y + begin * D, count, D, space.packed.as<T>(), out + begin * P, own.as<T>());
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
    const int64_t long_row = limits::long_row_bytes / (padded<T>(D) * int64_t(sizeof(T)));
    const std::vector<int64_t> order = order_of_work(row_ptr, n_rows, long_row);
    int64_t longest = 0;
    for (int64_t row = 0; row < n_rows; ++row) longest = std::max(longest, row_ptr[row + 1] - row_ptr[row]);
    const auto workspace = buffers_per_thread(n_threads, k.workspace_bytes(D, longest));
    auto length = [row_ptr](int64_t row) { return row_ptr[row + 1] - row_ptr[row]; };

    int64_t first = 0;
    Buffer sums;
    int64_t sums_size = 0;
    auto is_giant = [&](int64_t row) {
        const int64_t n = length(row);
        return n >= limits::giant_entries && double(n) * double(D) * double(D) > limits::giant_work;
    };
    for (; solver.kind == Solver::kExact && first < n_rows && is_giant(order[size_t(first)]); ++first) {
        const int64_t row = order[size_t(first)], n = length(row), size = k.exact_partial_size(D);
        const int64_t most = std::max<int64_t>(2, limits::giant_bytes / (size * int64_t(sizeof(T))));
        const int64_t slices = std::min(n / limits::slice_entries, most);
        if (size * slices > sums_size) sums = Buffer((sums_size = size * slices) * int64_t(sizeof(T)));
        T* const sum = sums.as<T>();
        const bool done = parallel_for(slices, n_threads, interrupted, [&](int64_t s, int thread) {
            k.exact_partial(problem, row_ptr[row] + n * s / slices, row_ptr[row] + n * (s + 1) / slices,
                            workspace[size_t(thread)].data(), sum + s * size);
        });
        if (!done) return false;
        for (int64_t s = 1; s < slices; ++s)
            for (int64_t i = 0; i < size; ++i) sum[i] += sum[s * size + i];
        k.solve_exact_from(problem, solver, row, sum, workspace[0].data(), status);
    }

    // Tasks: consecutive rows of `order`. Where a rotation does not fit L2, a task reads it from memory, as long as
    // some rows of a few entries take: there work is multiply-adds, and rows of a task so many that this does not show.
    const bool counts_work = q && rotates_many(D);
    auto row_work = [&](int64_t n) {
        const int64_t steps = solver.kind == Solver::kConjugateGradients ? 4 * (solver.cg_steps + 1)
                              : solver.kind == Solver::kSubspace         ? solver.block
                                                                         : std::min(n, D);
        return (n + 4) * D * (counts_work ? steps : 1);
    };
    std::vector<int64_t> task_begin;
    int64_t work = 0;
    for (int64_t i = first; i < n_rows; ++i) {
        const int64_t cost = row_work(length(order[size_t(i)]));
        if (i == first || work + cost > (counts_work ? kRotatedTaskWork : kTaskWork) ||
            i - task_begin.back() >= k.rows_per_call) {
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
bool solve_plain_rows(PlainRows<T> problem, const T* other, const double* gram, double relaxation, RowStatus* status,
                      int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const int64_t n_rows = problem.terms.n_rows, D = problem.D, n_other = problem.n_other;
    const int64_t* row_ptr = problem.terms.row_ptr;
    Buffer table(n_other * padded<T>(D) * int64_t(sizeof(T)));
    Buffer packed(k.factor_rotation_size(D) * int64_t(sizeof(T)));
    k.pack_factor_rotation(gram, D, /*transposed=*/false, packed.as<T>());
    const int64_t blocks = (D + problem.block - 1) / problem.block, copied = 256;
    const bool is_copied = parallel_for((n_other + copied - 1) / copied, n_threads, interrupted, [&](int64_t c, int) {
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = b * problem.block, count = std::min(problem.block, D - first);
            const int64_t width = padded<T>(count);
            for (int64_t i = c * copied; i < std::min(n_other, (c + 1) * copied); ++i) {
                T* to = table.as<T>() + n_other * first + i * width;
                std::copy_n(other + i * D + first, count, to);
                std::fill(to + count, to + width, T(0));
            }
        }
    });
    if (!is_copied) return false;
    problem.table = table.as<T>();
    problem.gram = gram;
    problem.packed_gram = packed.as<T>();

    const std::vector<int64_t> order =
        order_of_work(row_ptr, n_rows, limits::long_row_bytes / (padded<T>(D) * int64_t(sizeof(T))));
    // Tasks: consecutive rows of `order`, as many as share G well and leave every thread some.
    constexpr double kMostFlops = 2e10;
    const int64_t most = std::clamp<int64_t>(n_rows / (4 * n_threads), 16, kPlainRows);
    std::vector<int64_t> task_begin{0}, entries;
    int64_t in_task = 0, most_entries = 0;
    double flops = 0;
    for (int64_t i = 0; i < n_rows; ++i) {
        const int64_t n = row_ptr[order[size_t(i)] + 1] - row_ptr[order[size_t(i)]];
        const double cost = (double(n) * double(problem.block + 8) + 2 * double(D)) * double(D);
        if (i > task_begin.back() && (i - task_begin.back() >= most || flops + cost > kMostFlops)) {
            entries.push_back(in_task);
            task_begin.push_back(i);
            in_task = 0;
            flops = 0;
        }
        in_task += n;
        flops += cost;
        most_entries = std::max(most_entries, in_task);
    }
    if (n_rows > 0) entries.push_back(in_task);
    const auto workspace = buffers_per_thread(n_threads, k.plain_workspace_bytes(D, problem.block, most_entries));
    return parallel_for(int64_t(entries.size()), n_threads, interrupted, [&](int64_t t, int thread) {
        const int64_t begin = task_begin[size_t(t)],
                      end = t + 1 < int64_t(entries.size()) ? task_begin[size_t(t) + 1] : n_rows;
        k.solve_plain(problem, relaxation, order.data() + begin, end - begin, entries[size_t(t)],
                      workspace[size_t(thread)].data(), status);
    });
}

template <class T>
bool ridge_losses(const T* x, const T* prior, int64_t n, int64_t D, Broadcast<T> ridge, double* losses, int n_threads,
                  const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    return parallel_for(loss_blocks(n), n_threads, interrupted, [&](int64_t b, int) {
        const int64_t begin = b * limits::loss_rows;
        losses[b] = k.ridge_loss(x, prior, D, ridge, begin, std::min(n, begin + limits::loss_rows));
    });
}

template <class T>
bool entry_loss(const RowTerms<T>& terms, const T* x, const T* y, int64_t D, double* total, int n_threads,
                const Interrupted& interrupted) {
    const KernelTable<T>& k = kernels<T>();
    const auto workspace = buffers_per_thread(n_threads, D * int64_t(sizeof(double)));
    constexpr int64_t block = 64;
    std::vector<double> sums(size_t((terms.n_rows + block - 1) / block), 0.0);  // added in order: threads do not matter
    const bool done = parallel_for(int64_t(sums.size()), n_threads, interrupted, [&](int64_t b, int thread) {
        sums[size_t(b)] = k.entry_loss(terms, x, y, D, b * block, std::min(terms.n_rows, (b + 1) * block),
                                       workspace[size_t(thread)].template as<double>());
    });
    *total = std::accumulate(sums.begin(), sums.end(), 0.0);
    return done;
}

namespace {

/// What prepared items begin with: who wrote them, as instruction sets differ in how they lie, and their shape.
struct alignas(64) PreparedHeader {
    const void* writer;
    int64_t n_items, D;
};

template <class T>
PreparedHeader prepared_header(int64_t n_items, int64_t D) {
    return {reinterpret_cast<const void*>(kernels<T>().prepare), n_items, D};
}

}  // namespace

template <class T>
int64_t prepared_bytes(int64_t n_items, int64_t D) {
    const auto bytes = kernels<T>().prepared_bytes;
    const int64_t n = bytes && n_items > 0 ? bytes(n_items, D) : 0;
    return n > 0 ? n + int64_t(sizeof(PreparedHeader)) : 0;
}

template <class T>
bool prepare(const T* items, const T* norms, int64_t n_items, int64_t D, char* prepared, int n_threads,
             const Interrupted& interrupted) {
    const KernelTable<T>& kernel = kernels<T>();
    const auto workspace = buffers_per_thread(n_threads, kernel.topk_workspace_bytes(D, 1, 1));
    TopkChunk<T> c;
    c.D = D;
    c.items = items;
    c.n_items = n_items;
    c.norms = norms;
    c.prepared = prepared + sizeof(PreparedHeader);
    constexpr int64_t block = 64 * kPreparedTogether;
    const bool done = parallel_for((n_items + block - 1) / block, n_threads, interrupted, [&](int64_t b, int thread) {
        kernel.prepare(c, b * block, std::min(n_items, (b + 1) * block), workspace[size_t(thread)].data());
    });
    const PreparedHeader header = prepared_header<T>(n_items, D);
    std::memcpy(prepared, &header, sizeof(header));
    return done;
}

template <class T>
bool topk(const T* queries, int64_t B, const T* items, int64_t n_items, int64_t D, int64_t k, bool filter,
          const int64_t* excluded_ptr, const int32_t* excluded_idx, const uint8_t* permitted, const T* norms,
          char* prepared, const Histories<T>* histories, int32_t* ids, T* scores, int64_t* scored, bool* outside,
          int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& kernel = kernels<T>();
    // A list for everybody: of a few queries, each row that is scored is looked up in it, while it leaves most of them.
    // Else the rows to search are listed once; taking every other row is no slower than taking all.
    const int64_t n_permitted = permitted ? count_marks(permitted, n_items) : n_items;
    const bool by_lookup = (B + n_threads - 1) / n_threads <= kFewQueries && 2 * n_permitted > n_items;
    Buffer rows(by_lookup || n_permitted == n_items ? 0 : (n_permitted + 8) * int64_t(sizeof(int32_t)));
    if (rows.data()) list_marks(permitted, n_items, rows.as<int32_t>());
    const int64_t n_searched = rows.data() ? n_permitted : n_items;
    const int64_t n_results = std::min(k, n_permitted), capacity = topk_capacity(n_results), stride = capacity + 32;
    // A task is a chunk of queries over a segment of the items. There is one segment, unless queries are too few to
    // keep the threads busy; then the segments' results are merged. The result is the same for any split.
    const int64_t added_stride = histories ? n_items + kAddedMargin : 0;
    const int64_t chunk = topk_chunk(B, n_searched, D, capacity, added_stride * int64_t(sizeof(T)), n_threads);
    const int64_t chunks = (B + chunk - 1) / chunk;
    const int64_t segments =
        chunks >= n_threads ? 1 : std::clamp<int64_t>(n_threads, 1, std::max<int64_t>(1, n_searched / 4096));
    const auto workspace = buffers_per_thread(n_threads, kernel.topk_workspace_bytes(D, chunk, n_results));
    const auto list_scores = buffers_per_thread(n_threads, chunk * stride * int64_t(sizeof(T)));
    const auto list_ids = buffers_per_thread(n_threads, chunk * stride * int64_t(sizeof(int32_t)));
    Buffer parts(segments > 1 ? segments * B * n_results * int64_t(sizeof(Candidate<T>)) : 0);
    std::vector<int64_t> part_count(segments > 1 ? size_t(segments * B) : 0), pairs(size_t(n_threads), 0);
    Buffer counts(n_threads * chunk * int64_t(sizeof(int64_t))), thresholds(n_threads * chunk * int64_t(sizeof(T)));
    const T lowest = -std::numeric_limits<T>::infinity();
    // What histories add: of a task's queries; or of all, which are few, before their segments.
    const int64_t added_rows = segments > 1 ? B : chunk;
    const auto added =
        buffers_per_thread(segments > 1 || !histories ? 1 : n_threads, added_rows * added_stride * int64_t(sizeof(T)));
    Buffer most_added((segments > 1 ? B : n_threads * chunk) * int64_t(sizeof(T)));
    std::atomic<bool> is_outside{false};
    auto add = [&](int64_t q, int64_t row, T* to, T* most) {
        if (!kernel.add_history(*histories, q, to + row * added_stride, added_stride, most + row))
            is_outside.store(true, std::memory_order_relaxed);
    };
    if (histories && segments > 1) {
        const bool done = parallel_for(B, n_threads, interrupted, [&](int64_t q, int) {
            add(q, q, added[0].template as<T>(), most_added.as<T>());
        });
        *outside = is_outside.load();
        if (!done || *outside) return done;
    }

    const PreparedHeader header = prepared_header<T>(n_items, D);
    const bool is_prepared = prepared && std::memcmp(prepared, &header, offsetof(PreparedHeader, D) + sizeof(D)) == 0;
    auto bound = [&](int64_t segment) {  // whole tiles, as items are prepared
        return segment == segments ? n_searched
                                   : n_searched * segment / segments / kPreparedTogether * kPreparedTogether;
    };
    auto pad = [&](int64_t q, int64_t n) {
        std::fill(ids + q * k + n, ids + (q + 1) * k, -1);
        std::fill(scores + q * k + n, scores + (q + 1) * k, lowest);
    };
    const bool done = parallel_for(chunks * segments, n_threads, interrupted, [&](int64_t task, int thread) {
        const int64_t first = task / segments * chunk, segment = task % segments;
        TopkChunk<T> c;
        c.n_queries = std::min(chunk, B - first);
        c.D = D;
        c.k = n_results;
        c.queries = queries + first * D;
        c.items = items;
        c.norms = norms;
        c.rows = rows.as<int32_t>();
        c.permitted = by_lookup && n_permitted < n_items ? permitted : nullptr;
        if (excluded_ptr) {
            c.excluded_ptr = excluded_ptr + first;
            c.excluded_idx = excluded_idx;
        }
        c.filter = filter;
        c.prepared = is_prepared ? prepared + sizeof(PreparedHeader) : nullptr;
        c.n_items = n_items;
        c.capacity = capacity;
        c.stride = stride;
        c.scores = list_scores[size_t(thread)].template as<T>();
        c.ids = list_ids[size_t(thread)].template as<int32_t>();
        c.count = counts.as<int64_t>() + thread * chunk;
        c.threshold = thresholds.as<T>() + thread * chunk;
        c.scored = &pairs[size_t(thread)];
        if (histories) {
            T* const rows_of_task = segments > 1 ? added[0].template as<T>() + first * added_stride
                                                 : added[size_t(thread)].template as<T>();
            T* const most = most_added.as<T>() + (segments > 1 ? first : thread * chunk);
            for (int64_t q = 0; segments == 1 && q < c.n_queries; ++q) add(first + q, q, rows_of_task, most);
            if (is_outside.load(std::memory_order_relaxed)) return;
            c.added = rows_of_task;
            c.added_stride = added_stride;
            c.most_added = most;
        }
        std::fill_n(c.count, c.n_queries, 0);
        std::fill_n(c.threshold, c.n_queries, lowest);
        kernel.topk(c, bound(segment), bound(segment + 1), workspace[size_t(thread)].data());
        for (int64_t q = 0; q < c.n_queries; ++q) {
            const T* score = c.scores + q * stride;
            const int32_t* id = c.ids + q * stride;
            const int64_t n = c.count[q];
            if (segments == 1) {
                std::copy_n(score, n, scores + (first + q) * k);
                std::copy_n(id, n, ids + (first + q) * k);
                pad(first + q, n);
            } else {
                const int64_t part = (first + q) * segments + segment;
                part_count[size_t(part)] = n;
                for (int64_t i = 0; i < n; ++i) parts.as<Candidate<T>>()[part * n_results + i] = {score[i], id[i]};
            }
        }
    });
    *scored = std::accumulate(pairs.begin(), pairs.end(), int64_t{0});
    *outside = is_outside.load();
    if (*outside) return done;
    if (!done || segments == 1) return done;
    std::vector<Candidate<T>> all(size_t(segments * n_results));
    for (int64_t q = 0; q < B; ++q) {
        int64_t n = 0;
        for (int64_t part = q * segments; part < (q + 1) * segments; ++part) {
            std::copy_n(parts.as<Candidate<T>>() + part * n_results, part_count[size_t(part)], all.data() + n);
            n += part_count[size_t(part)];
        }
        std::sort(all.data(), all.data() + n, comes_before<T>);
        n = std::min(n, n_results);
        for (int64_t i = 0; i < n; ++i) {
            ids[q * k + i] = all[size_t(i)].id;
            scores[q * k + i] = all[size_t(i)].score;
        }
        pad(q, n);
    }
    return true;
}

namespace {

/// Queries of a task that scores listed items.
constexpr int64_t kListedQueries = 16;

/// Keeps the best k of a candidate list, in no order.
template <class T>
void compact(Candidate<T>* list, int64_t n, int64_t k) {
    std::nth_element(list, list + (k - 1), list + n, comes_before<T>);
}

}  // namespace

template <class T>
bool score_entries(const T* queries, int64_t B, const T* items, int64_t D, const int64_t* listed_ptr,
                   const int32_t* listed_idx, T* scores, int n_threads, const Interrupted& interrupted) {
    const KernelTable<T>& kernel = kernels<T>();
    return parallel_for((B + kListedQueries - 1) / kListedQueries, n_threads, interrupted, [&](int64_t task, int) {
        for (int64_t q = task * kListedQueries; q < std::min(B, (task + 1) * kListedQueries); ++q) {
            const int64_t begin = listed_ptr[q];
            kernel.score_entries(queries + q * D, items, nullptr, D, listed_idx + begin, listed_ptr[q + 1] - begin,
                                 scores + begin);
        }
    });
}

template <class T>
bool topk_listed(const T* queries, int64_t B, const T* items, int64_t D, int64_t k, const int64_t* listed_ptr,
                 const int32_t* listed_idx, const T* norms, int32_t* ids, T* scores, int n_threads,
                 const Interrupted& interrupted) {
    const KernelTable<T>& kernel = kernels<T>();
    int64_t longest = 0;
    for (int64_t q = 0; q < B; ++q) longest = std::max(longest, listed_ptr[q + 1] - listed_ptr[q]);
    const auto row_scores = buffers_per_thread(n_threads, longest * int64_t(sizeof(T)));
    const auto lists = buffers_per_thread(n_threads, longest * int64_t(sizeof(Candidate<T>)));
    const T lowest = -std::numeric_limits<T>::infinity();
    auto answer = [&](int64_t q, int thread) {
        const int32_t* listed = listed_idx + listed_ptr[q];
        const int64_t n = listed_ptr[q + 1] - listed_ptr[q];
        T* const score = row_scores[size_t(thread)].template as<T>();
        Candidate<T>* const list = lists[size_t(thread)].template as<Candidate<T>>();
        kernel.score_entries(queries + q * D, items, norms, D, listed, n, score);
        int64_t found = 0;
        for (int64_t e = 0; e < n; ++e)
            if (score[e] > lowest) list[found++] = {score[e], listed[e]};  // not NaN either
        if (found > k) {
            compact(list, found, k);
            found = k;
        }
        std::sort(list, list + found, comes_before<T>);
        for (int64_t i = 0; i < k; ++i) {
            ids[q * k + i] = i < found ? list[i].id : -1;
            scores[q * k + i] = i < found ? list[i].score : lowest;
        }
    };
    return parallel_for((B + kListedQueries - 1) / kListedQueries, n_threads, interrupted,
                        [&](int64_t task, int thread) {
                            for (int64_t q = task * kListedQueries; q < std::min(B, (task + 1) * kListedQueries); ++q)
                                answer(q, thread);
                        });
}

#define WALS_INSTANTIATE(T)                                                                                         \
    template bool gram<T>(const T*, int64_t, int64_t, Broadcast<T>, double*, int, const Interrupted&);              \
    template bool gram_slabs<T>(const T*, int64_t, Broadcast<T>, const int64_t*, int64_t, double*, int,             \
                                const Interrupted&);                                                                \
    template bool rotate<T>(const T*, int64_t, int64_t, const double*, bool, T*, int, const RotationSpace&,         \
                            const Interrupted&);                                                                    \
    template bool solve_rows<T>(RotatedRows<T>, const Solver&, const double*, RowStatus*, int, const Interrupted&); \
    template bool solve_plain_rows<T>(PlainRows<T>, const T*, const double*, double, RowStatus*, int,               \
                                      const Interrupted&);                                                          \
    template bool entry_loss<T>(const RowTerms<T>&, const T*, const T*, int64_t, double*, int, const Interrupted&); \
    template bool ridge_losses<T>(const T*, const T*, int64_t, int64_t, Broadcast<T>, double*, int,                 \
                                  const Interrupted&);                                                              \
    template int64_t prepared_bytes<T>(int64_t, int64_t);                                                           \
    template bool prepare<T>(const T*, const T*, int64_t, int64_t, char*, int, const Interrupted&);                 \
    template bool topk<T>(const T*, int64_t, const T*, int64_t, int64_t, int64_t, bool, const int64_t*,             \
                          const int32_t*, const uint8_t*, const T*, char*, const Histories<T>*, int32_t*, T*,       \
                          int64_t*, bool*, int, const Interrupted&);                                                \
    template bool score_entries<T>(const T*, int64_t, const T*, int64_t, const int64_t*, const int32_t*, T*, int,   \
                                   const Interrupted&);                                                             \
    template bool topk_listed<T>(const T*, int64_t, const T*, int64_t, int64_t, const int64_t*, const int32_t*,     \
                                 const T*, int32_t*, T*, int, const Interrupted&);
WALS_INSTANTIATE(float)
WALS_INSTANTIATE(double)

}  // namespace wals::cpu
